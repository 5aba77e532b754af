//! A journal: reading is total, and the journal of a run that was stopped earlier is the beginning of a later one.

use zbatch::journal::{self, Event, State, Step};

fn replay(bytes: &[u8]) -> Option<State> {
    let path = super::scratch(journal::FILE);
    super::write(&path, bytes);
    journal::read(path.parent().expect("its directory")).ok()
}

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let whole = replay(data);
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
        let written = serde_json::to_vec(&event).expect("written");
        assert!(!written.contains(&b'\n'), "an event is one line");
        assert_eq!(serde_json::from_slice::<Event>(&written).expect("read"), event);
    }
    let Some(whole) = whole else { return };
    let counted: u64 = Step::ALL.into_iter().map(|step| whole.at(step)).sum();
    assert_eq!(counted, whole.jobs.len() as u64, "every chunk is at one step");
    // Cut after any line, and within the last one.
    let ends = data.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let ends: Vec<usize> = std::iter::once(0).chain(ends).collect();
    for end in ends.iter().rev().take(8) {
        let (before, after) = data.split_at(*end);
        let part = replay(before).expect("what was accepted was accepted line by line");
        assert!(part.jobs.len() <= whole.jobs.len());
        assert!(part.config.is_none() || part.config == whole.config);
        for (early, late) in part.jobs.iter().zip(&whole.jobs) {
            assert_eq!(early.chunk, late.chunk, "a chunk that was cut stays as it is");
        }
        let torn = after.iter().position(|byte| *byte == b'\n').unwrap_or(after.len());
        let torn = replay(data.get(..end + torn).expect("within")).expect("a torn line is passed over");
        assert_eq!(torn.jobs.len(), part.jobs.len());
    }
}
