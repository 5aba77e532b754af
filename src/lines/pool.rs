//! The loop that maps blocks on several threads and keeps their order. One thread reads and writes; workers only compute,
//! each with a state of its own. One worker runs inline, without a thread.

use std::{collections::VecDeque, num::NonZeroUsize, sync::mpsc::sync_channel, thread};

use crate::{
    drill,
    error::{Error, Result},
    threads,
};

/// Jobs that a worker has or waits for: one in hand, one ahead. So many jobs times workers is all that is ever held.
const AHEAD: usize = 2;
/// More workers than this wait for the one thread that reads and writes.
const MOST: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

/// As many workers as there are cores to run them; a drill is of one thread.
pub fn workers() -> NonZeroUsize {
    if drill::is_on() {
        return NonZeroUsize::MIN;
    }
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).min(MOST)
}

/// Calls `fill` until it gives `false`, `work` on each job with the worker's state, and `write` in the order of filling.
/// Jobs are used again. Gives the workers' states back.
///
/// # Errors
/// What `fill` and `write` fail with; what was filled and not yet written is lost then.
pub fn map_in_order<J: Default + Send, S: Send>(
    states: Vec<S>,
    mut fill: impl FnMut(&mut J) -> Result<bool>,
    work: impl Fn(&mut S, &mut J) + Sync,
    mut write: impl FnMut(&mut J) -> Result<()>,
) -> Result<Vec<S>> {
    let mut states = states;
    if let [state] = states.as_mut_slice() {
        let mut job = J::default();
        while fill(&mut job)? {
            work(state, &mut job);
            write(&mut job)?;
        }
        return Ok(states);
    }
    let work = &work;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for mut state in states {
            let (send, todo) = sync_channel::<J>(AHEAD);
            let (done_send, done) = sync_channel::<J>(AHEAD);
            let thread = threads::spawn_scoped(scope, move || {
                for mut job in todo {
                    work(&mut state, &mut job);
                    // Nobody listens any more: the loop has failed and tells of it itself.
                    if done_send.send(job).is_err() {
                        break;
                    }
                }
                state
            })?;
            workers.push((send, done, thread));
        }
        let died = || Error::input("a worker thread died; run the same command again");
        let mut free: Vec<J> = Vec::new();
        // Numbers of the workers that hold a job, in the order of the jobs.
        let mut order: VecDeque<usize> = VecDeque::new();
        let mut next = 0;
        let mut more = true;
        while more || !order.is_empty() {
            if more {
                let mut job = free.pop().unwrap_or_default();
                more = fill(&mut job)?;
                if more {
                    let at = next % workers.len();
                    let (send, ..) = workers.get(at).ok_or_else(died)?;
                    send.send(job).map_err(|_| died())?;
                    order.push_back(at);
                    next += 1;
                }
            }
            if !more || order.len() == AHEAD * workers.len() {
                let Some(at) = order.pop_front() else { break };
                let (_, done, _) = workers.get(at).ok_or_else(died)?;
                let mut job = done.recv().map_err(|_| died())?;
                write(&mut job)?;
                free.push(job);
            }
        }
        let mut states = Vec::new();
        for (send, done, thread) in workers {
            drop((send, done));
            states.push(thread.join().map_err(|_| died())?);
        }
        Ok(states)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_number_of_workers_gives_what_one_gives(jobs in proptest::collection::vec(0u64..1000, 0..200), workers in 1usize..6) {
            let mut todo = jobs.iter();
            let mut written = Vec::new();
            let states = map_in_order(
                vec![0u64; workers],
                |job: &mut u64| Ok(todo.next().is_some_and(|next| { *job = *next; true })),
                |seen, job| {
                    *seen += *job;
                    std::thread::sleep(std::time::Duration::from_micros(*job % 7));
                    *job *= 2;
                },
                |job| { written.push(*job); Ok(()) },
            ).expect("no error");
            prop_assert_eq!(written, jobs.iter().map(|job| job * 2).collect::<Vec<_>>());
            prop_assert_eq!(states.iter().sum::<u64>(), jobs.iter().sum::<u64>());
        }
    }

    #[test]
    fn an_error_ends_it_and_leaves_no_thread_behind() {
        for fails_at in [0, 1, 5, 90] {
            let mut count = 0;
            let fill = |_: &mut u64| {
                count += 1;
                if count > fails_at { Err(Error::input("no more")) } else { Ok(true) }
            };
            let error = map_in_order(vec![(); 3], fill, |(), _| {}, |_| Ok(())).expect_err("told");
            assert_eq!(error.to_string(), "no more");
            let write = |_: &mut u64| Err(Error::input("full"));
            assert!(map_in_order(vec![(); 3], |_| Ok(true), |(), _| {}, write).is_err());
        }
    }
}
