//! Faults of posts and requests, found when chunks are cut and kept in the work directory (`faults.jsonl`) until the posts are
//! written: so the join renders no request and opens no image. One [`FaultLine`] a line, in the order of the posts.

use std::io::{BufWriter, Write as _};

use super::FaultLine;
use crate::{
    error::{Error, Result},
    folder::Entry,
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
        output::AtomicFile,
    },
};

/// A fault holds excerpts of bounded length; a longer line was not written by zbatch.
const LONGEST: u64 = 1 << 20;

/// Writes the file; it appears whole when [`KeptFaults::commit`] returns.
#[derive(Debug)]
pub struct KeptFaults {
    file: AtomicFile,
    buffer: BufWriter<std::fs::File>,
    line: Vec<u8>,
}

impl KeptFaults {
    pub fn create(entry: &Entry) -> Result<Self> {
        let file = AtomicFile::within(entry)?;
        let buffer = file.file().try_clone().map_err(|e| Error::io("open", file.path(), &e))?;
        Ok(Self { file, buffer: BufWriter::new(buffer), line: Vec::new() })
    }

    pub fn add(&mut self, fault: &FaultLine) -> Result<()> {
        self.line.clear();
        fault.write_to(&mut self.line);
        self.buffer.write_all(&self.line).map_err(|e| Error::io("write", self.file.path(), &e))
    }

    pub fn commit(mut self) -> Result<()> {
        self.buffer.flush().map_err(|e| Error::io("write", self.file.path(), &e))?;
        drop(self.buffer);
        self.file.commit()
    }
}

/// Reads the file in step with the posts.
#[derive(Debug)]
pub struct KeptFaultsReader {
    entry: Entry,
    lines: LineReader,
    block: Block,
    /// The next line of the block.
    next: usize,
    /// It was read, and belongs to a later post.
    ahead: Option<FaultLine>,
}

impl KeptFaultsReader {
    pub fn open(entry: &Entry) -> Result<Self> {
        let input = Input { reader: Box::new(entry.open()?), name: entry.to_string() };
        let lines = LineReader::new(input, Shape::Own, LONGEST, 0);
        Ok(Self { entry: entry.clone(), lines, block: Block::default(), next: 0, ahead: None })
    }

    /// The next fault, if it belongs to the post `index` or to one before it.
    pub fn up_to(&mut self, index: u64) -> Result<Option<FaultLine>> {
        if self.ahead.is_none() {
            self.ahead = self.read()?;
        }
        let is_later = |fault: &FaultLine| fault.index.is_some_and(|own| own > index);
        Ok(if self.ahead.as_ref().is_some_and(is_later) { None } else { self.ahead.take() })
    }

    fn read(&mut self) -> Result<Option<FaultLine>> {
        while self.next == self.block.len() {
            if !self.lines.fill(&mut self.block)? {
                return Ok(None);
            }
            self.next = 0;
        }
        let Some(line) = self.block.line(self.next) else { return Ok(None) };
        self.next += 1;
        serde_json::from_slice(line.bytes).map(Some).map_err(|e| {
            Error::input(format!("{}: line {} is no fault that zbatch wrote: {e}", self.entry, line.number))
                .fix("remove the file and run the same command again: it is written again from the posts")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Fault, FaultKind};

    #[test]
    fn faults_come_back_in_step_with_the_posts() {
        let dir = tempfile::tempdir().expect("a directory");
        let entry = Entry::of(&dir.path().join("faults.jsonl")).expect("an entry");
        let fault = |index: u64, analysis: Option<&str>| FaultLine {
            index: Some(index),
            analysis: analysis.map(str::to_owned),
            ..FaultLine::new(Fault::new(FaultKind::Image, "长\u{1b}\n"))
        };
        let faults = [fault(2, None), fault(2, Some("a")), fault(5, Some("b"))];
        let mut kept = KeptFaults::create(&entry).expect("made");
        faults.iter().for_each(|fault| kept.add(fault).expect("added"));
        assert!(!entry.exists().expect("looked for"), "it appears whole");
        kept.commit().expect("there");
        let mut reader = KeptFaultsReader::open(&entry).expect("opened");
        let mut up_to = |index| reader.up_to(index).expect("read");
        assert_eq!(
            [up_to(1), up_to(2), up_to(2), up_to(2), up_to(4)].map(|fault| fault.is_some()),
            [false, true, true, false, false]
        );
        assert_eq!([up_to(7), up_to(7)], [Some(faults[2].clone()), None]);
        entry.write(b"{\"index\":1}\n").expect("written");
        let error = KeptFaultsReader::open(&entry).expect("opened").up_to(9).expect_err("refused");
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
