//! Whether the input is the one that the chunks of the journal were cut from: it is hashed as it is read, and compared at each
//! place that the journal has a mark for.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::PIECE;
use crate::error::{Error, Result};

/// How far the input was read when a chunk ended. A resumed run reads as far again and compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputMark {
    /// Places in the input, faults included.
    pub posts: u64,
    /// Hash of all lines up to there, each with a line feed, in hexadecimal.
    pub blake3: String,
}

/// Hashes an input place by place.
#[derive(Debug, Default)]
pub struct InputHash {
    hasher: blake3::Hasher,
    /// Not yet hashed; at most [`PIECE`] bytes.
    pending: Vec<u8>,
    places: u64,
}

impl InputHash {
    pub fn add(&mut self, place: &[u8]) {
        if self.pending.len() + place.len() >= PIECE {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
        // A long line is not held twice.
        if place.len() >= PIECE {
            self.hasher.update(place);
        } else {
            self.pending.extend_from_slice(place);
        }
        self.pending.push(b'\n');
        self.places += 1;
    }

    pub fn mark(&mut self) -> InputMark {
        self.hasher.update(&self.pending);
        self.pending.clear();
        InputMark { posts: self.places, blake3: self.hasher.finalize().to_hex().to_string() }
    }
}

/// Compares an input with what the journal says of it.
#[derive(Debug, Default)]
pub struct InputCheck {
    hash: InputHash,
    /// The marks of the journal that were not found again yet, in ascending order, each with the name of its chunk.
    marks: VecDeque<(InputMark, String)>,
    /// Places in the whole input, if the journal has seen its end.
    end: Option<u64>,
}

impl InputCheck {
    /// `chunks`: the journal's mark at each chunk, with the chunk's name. `end`: its mark at the end of the input.
    pub fn new(chunks: impl IntoIterator<Item = (InputMark, String)>, end: Option<&InputMark>) -> Self {
        let end_mark = end.map(|mark| (mark.clone(), "the end of the input".to_owned()));
        let mut marks: Vec<_> = chunks.into_iter().chain(end_mark).collect();
        marks.sort_by_key(|(mark, _)| mark.posts);
        Self { hash: InputHash::default(), marks: marks.into(), end: end.map(|mark| mark.posts) }
    }

    /// Takes note of the next place of the input, before the requests that come of it.
    ///
    /// # Errors
    /// The input is not the one that the journal's chunks were cut from.
    pub fn add(&mut self, place: &[u8]) -> Result<()> {
        if self.end == Some(self.hash.places) {
            let places = count(self.hash.places);
            return Err(another_input(format_args!("it goes on after {places}, where that one ended")));
        }
        self.hash.add(place);
        self.find_marks()
    }

    fn find_marks(&mut self) -> Result<()> {
        while self.marks.front().is_some_and(|(mark, _)| mark.posts == self.hash.places) {
            let here = self.hash.mark();
            if self.marks.front().is_some_and(|(mark, _)| *mark != here) {
                return self.check_no_mark_is_left();
            }
            self.marks.pop_front();
        }
        Ok(())
    }

    /// The input is the same as far as the journal can tell: reading on would compare nothing more.
    pub fn is_done(&self) -> bool {
        self.marks.is_empty() && self.end.is_none()
    }

    /// # Errors
    /// A mark of the journal was not found again.
    pub fn check_no_mark_is_left(&self) -> Result<()> {
        match self.marks.front() {
            None => Ok(()),
            Some((mark, what)) => {
                Err(another_input(format_args!("it differs before {what}, in the first {}", count(mark.posts))))
            }
        }
    }

    /// The input has ended.
    ///
    /// # Errors
    /// It ended before the journal's marks.
    pub fn finish(&mut self) -> Result<()> {
        self.find_marks()?;
        self.check_no_mark_is_left()
    }

    pub fn mark(&mut self) -> InputMark {
        self.hash.mark()
    }
}

fn another_input(how: std::fmt::Arguments<'_>) -> Error {
    Error::input(format!("the input is not the one this work directory was made from: {how}"))
        .fix("give the same input, or --new to begin again (the old contents are kept in DIR.old-N)")
}

fn count(places: u64) -> String {
    if places == 1 { "1 line".to_owned() } else { format!("{places} lines") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_input_is_told_by_its_first_chunk() {
        let mark = |text: &str| InputMark {
            posts: text.lines().count() as u64,
            blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
        };
        for (input, told) in [
            ("a\nb\nc\n", None),
            ("a\nx\nc\n", Some("part1")),
            ("a\n", Some("part1")),
            ("a\nb\nx\n", Some("end")),
            ("a\nb\n", Some("end")),
            ("a\nb\nc\nd\n", Some("goes on after 3 lines")),
        ] {
            let mut check = InputCheck::new([(mark("a\nb\n"), "part1".to_owned())], Some(&mark("a\nb\nc\n")));
            let outcome = input.lines().try_for_each(|line| check.add(line.as_bytes())).and_then(|()| check.finish());
            match (outcome, told) {
                (Ok(()), None) => {}
                (Err(error), Some(told)) => assert!(error.to_string().contains(told), "{error}"),
                (outcome, told) => panic!("{input:?}: {outcome:?}, {told:?}"),
            }
        }
    }
}
