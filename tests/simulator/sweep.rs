//! A kill at every durable step of one job, and again during the resume.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::world::{Count, Fate, Job, Outcome, World, golden};

/// Jobs with several chunks: both providers, with faults of lines; one whose answers wait in the temp file.
const JOBS: [u64; 3] = [2, 39, 13];

/// Sweeps: at the first, middle and last step of each kind, or at every one. What failed.
pub fn all(threads: u64, every: bool) -> Vec<String> {
    let failed = Mutex::new(Vec::new());
    for job in JOBS.map(Job::new) {
        let names = World::step_names(job);
        let mut kinds: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
        for (at, name) in names.iter().enumerate() {
            kinds.entry(name).or_default().push(at);
        }
        let picked = kinds.values().flat_map(|all| {
            let mut some = vec![all[0], all[all.len() / 2], all[all.len() - 1]];
            some.dedup();
            if every { all.clone() } else { some }
        });
        let places: Vec<usize> = picked.collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(at) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(failure) = kill_at(job, *at as u64 + 1) {
                            let failure = format!("{job:?}, killed at {} ({at}): {failure}", names[*at]);
                            failed.lock().expect("no panic").push(failure);
                        }
                    }
                });
            }
        });
        println!(
            "sweep: {job:?}: {} of {} steps, of {} kinds, each with a kill and four during the resume",
            places.len(),
            names.len(),
            kinds.len()
        );
    }
    failed.into_inner().expect("no panic")
}

/// Killed at a step; then the resume is killed at its first, middle and last step; each time it must end as if nothing happened.
fn kill_at(job: Job, step: u64) -> Result<(), String> {
    let golden = golden(job);
    let mut resume_steps = 0_u64;
    for again in 0..5 {
        let mut world = World::new(job, 1, None, false);
        let mut kills = 1;
        if !matches!(world.start(Fate { step: Some(step), ..Fate::default() }), Outcome::Killed) {
            return Err("it was not killed".to_owned());
        }
        world.check(&golden)?;
        world.pause(Duration::from_secs(1));
        let second = match again {
            0 => None,
            1 => Some(1),
            2 => Some(resume_steps / 2),
            3 => Some(resume_steps.saturating_sub(1)),
            _ => Some(resume_steps),
        };
        if let Some(second) = second.filter(|second| *second > 0) {
            world.start(Fate { step: Some(second), ..Fate::default() });
            kills += 1;
            world.check(&golden)?;
        }
        let ended = match world.start(Fate::default()) {
            Outcome::Ended(ended) => ended,
            other => return Err(format!("the resume: {other:?}")),
        };
        if again == 0 {
            resume_steps = world.steps;
        }
        world.check(&golden)?;
        let left = world.left(ended.exit_code());
        if left != golden {
            return Err(format!("with second kill {second:?} it left {left:?}\n instead of {golden:?}"));
        }
        Count::add(Count { starts: kills + 1, kills, creates: left.creates as u64, ..Count::default() });
    }
    Ok(())
}
