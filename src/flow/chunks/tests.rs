use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::error::Error;

/// Lines of the given lengths as requests, and the error after them.
struct Lines {
    lengths: Vec<u64>,
    next: u64,
    error: Option<&'static str>,
}

impl Source for Lines {
    fn read(&mut self, cut: &mut Cut) -> Result<bool> {
        let group = cut.group("a", false, "m");
        let Some(length) = self.lengths.get(self.next as usize) else {
            return self.error.map_or(Ok(false), |error| Err(Error::input(error)));
        };
        let line = "x".repeat(*length as usize - 1) + "\n";
        cut.place(line.as_bytes())?;
        cut.push(group, self.next, *length, |out| {
            out.write_all(line.as_bytes()).map_err(|e| Error::io("write", "", &e))
        })?;
        self.next += 1;
        Ok(true)
    }

    fn end(&mut self) -> Result<Option<u64>> {
        Ok(Some(self.next))
    }
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for folder in ["requests", "rows"] {
        std::fs::create_dir(dir.path().join(folder)).expect("made");
    }
    dir
}

fn chunks(dir: &tempfile::TempDir, limits: Limits, source: Lines, record: Record) -> Chunks<Lines> {
    let folder = Folder::open(dir.path()).expect("opened");
    Chunks::new(source, Cut::new(folder, InputCheck::default(), Cutter::new(limits, [])).expect("ready"), record)
}

/// Cuts lines of the given lengths and gives the lines and bytes of each chunk.
fn cut(lengths: &[u64], limits: Limits) -> Vec<(u64, u64)> {
    let dir = directory();
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let record = {
        let recorded = Arc::clone(&recorded);
        move |milestone: Milestone<'_>| {
            recorded.lock().expect("no panic").push(match milestone {
                Milestone::Chunk(chunk, input) => {
                    assert!(input.posts > chunk.last_index, "the chunk ended after its last line");
                    chunk.id.to_string()
                }
                Milestone::End { good, input } => format!("{good} of {}", input.posts),
            });
            Ok(())
        }
    };
    let source = Lines { lengths: lengths.to_vec(), next: 0, error: None };
    let mut all = chunks(&dir, limits, source, Box::new(record));
    let (mut sizes, mut names) = (Vec::new(), Vec::new());
    while let Some(chunk) = all.next().expect("cut") {
        assert_eq!(recorded.lock().expect("no panic").last(), Some(&chunk.id.to_string()), "in the journal first");
        let file = crate::lines::input::read_small(&dir.path().join(&chunk.path), 1 << 20).expect("durable");
        assert_eq!((file.len() as u64, file.lines().count() as u64), (chunk.bytes, chunk.lines));
        assert_eq!(blake3::hash(file.as_bytes()).to_hex().as_str(), chunk.blake3);
        let rows = RowSet::read(&rows_file(&Folder::open(dir.path()).expect("opened"), &chunk.id)).expect("durable");
        assert_eq!((rows.len(), rows.ends()), (chunk.lines, Some((chunk.first_index, chunk.last_index))));
        sizes.push((chunk.lines, chunk.bytes));
        names.push(chunk.id.to_string());
    }
    assert_eq!(all.next().expect("still ended"), None);
    names.push(format!("{0} of {0}", lengths.len()));
    assert_eq!(*recorded.lock().expect("no panic"), names, "the end of the input comes last, once");
    sizes
}

#[test]
fn lines_at_the_limit_and_around_it() {
    let limits = Limits { lines: 3, bytes: 1000 };
    assert_eq!(cut(&[5; 2], limits), [(2, 10)]);
    assert_eq!(cut(&[5; 3], limits), [(3, 15)]);
    assert_eq!(cut(&[5; 4], limits), [(3, 15), (1, 5)]);
    assert_eq!(cut(&[], limits), []);
}

#[test]
fn bytes_at_the_limit_and_around_it() {
    let limits = Limits { lines: 100, bytes: 20 };
    assert_eq!(cut(&[10, 9], limits), [(2, 19)]);
    assert_eq!(cut(&[10, 10], limits), [(2, 20)]);
    assert_eq!(cut(&[10, 11], limits), [(1, 10), (1, 11)]);
    assert_eq!(cut(&[20, 1], limits), [(1, 20), (1, 1)]);
}

/// The contract's own numbers, with a counting writer in place of half a gigabyte.
#[test]
fn the_limits_of_the_contract() {
    let limits = Limits { lines: 10_000, bytes: 500_000_000 };
    let mut counted = (0, 0);
    let mut sizes = Vec::new();
    let line = 49_999;
    for _ in 0..20_001 {
        if !limits.fit(counted.0, counted.1, line) {
            sizes.push(counted);
            counted = (0, 0);
        }
        counted = (counted.0 + 1, counted.1 + line);
    }
    assert_eq!(sizes, [(10_000, 499_990_000), (10_000, 499_990_000)], "lines bind first");
    for (bytes, fits) in [(499_999_999, true), (500_000_000, true), (500_000_001, false)] {
        assert_eq!(limits.admit(bytes), fits);
        assert_eq!(limits.fit(1, bytes - 7, 7), fits);
    }
    assert!(limits.fit(9_999, 0, 1) && !limits.fit(10_000, 0, 1));
}

#[test]
fn what_ended_before_an_error_is_yielded_and_then_the_error() {
    let run = |fails_at: usize, lines: usize| {
        let dir = directory();
        let mut recorded = 0;
        let record = move |_: Milestone<'_>| {
            if recorded == fails_at {
                return Err(Error::input("the journal is full"));
            }
            recorded += 1;
            Ok(())
        };
        let source = Lines { lengths: vec![3; lines], next: 0, error: Some("the posts are broken") };
        let mut all = chunks(&dir, Limits { lines: 1, bytes: 1000 }, source, Box::new(record));
        let mut yielded = 0;
        loop {
            match all.next() {
                Ok(Some(_)) => yielded += 1,
                Ok(None) => panic!("an error is no end"),
                Err(error) => return (yielded, error.to_string()),
            }
        }
    };
    assert_eq!(run(usize::MAX, 5), (5, "the posts are broken".to_owned()));
    assert_eq!(run(3, 50), (3, "the journal is full".to_owned()));
}

#[test]
fn no_file_is_left_of_chunks_that_are_not_whole() {
    let dir = directory();
    let source = Lines { lengths: vec![300_000; 4], next: 0, error: Some("the posts are broken") };
    let mut all = chunks(&dir, Limits { lines: 3, bytes: 1 << 20 }, source, Box::new(|_| Ok(())));
    assert!(all.next().expect("cut").is_some());
    drop(all);
    let requests = std::fs::read_dir(dir.path().join("requests")).expect("a directory");
    let names: Vec<String> =
        requests.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["a_batch_part1.jsonl"]);
}

proptest! {
    #[test]
    fn no_chunk_is_over_a_limit_and_none_could_take_its_next_line(lengths in proptest::collection::vec(1u64..30, 0..60), lines in 1u64..7, bytes in 30u64..90) {
        let chunks = cut(&lengths, Limits { lines, bytes });
        prop_assert!(chunks.iter().all(|(l, b)| *l <= lines && *b <= bytes));
        prop_assert_eq!(chunks.iter().map(|c| c.0).sum::<u64>(), lengths.len() as u64);
        let mut at = 0;
        for (count, size) in &chunks {
            at += *count as usize;
            if let Some(next) = lengths.get(at) {
                prop_assert!(*count == lines || size + next > bytes);
            }
        }
    }
}
