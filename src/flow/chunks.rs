//! Request lines → chunks: files with a bounded number of lines and bytes, one analysis and one model each.
//!
//! A chunk is yielded when it is on disk, whole and synced, and in the journal. A killed run goes on where the journal ends.

mod cutter;
mod files;
mod input;

use std::io::Write;

use serde::{Deserialize, Serialize};

use self::{
    cutter::Destination,
    files::{ChunkFiles, Closing},
};
pub use self::{
    cutter::{Cutter, Ended, Group, Kept},
    input::{InputCheck, InputHash, InputMark},
};
use super::{
    ChunkId, CustomId,
    results::read_custom_id,
    rows::{FileMark, MOST_ROWS, RowSet, read_results},
};
use crate::{
    error::Result,
    folder::{Entry, Folder},
    lines::blocks::Block,
};

/// A chunk file that is on disk, whole and synced. Printed as one line by `gen -d`, kept in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    #[serde(rename = "chunk")]
    pub id: ChunkId,
    /// Relative to the work directory.
    pub path: String,
    pub analysis: String,
    pub model: String,
    pub lines: u64,
    pub bytes: u64,
    pub first_index: u64,
    pub last_index: u64,
    /// Hash of the file's bytes, in hexadecimal.
    pub blake3: String,
}

/// No provider takes a file of so many bytes.
const MOST_BYTES: u64 = 1 << 40;

impl Chunk {
    /// Holds the numbers of a chunk that a journal tells of against what a chunk can be: sums of them pass no cap then.
    pub fn check(&self) -> std::result::Result<(), String> {
        let indexes = self.last_index.checked_sub(self.first_index).map_or(0, |more| more.saturating_add(1));
        if self.lines > indexes.min(MOST_ROWS) || self.bytes > MOST_BYTES {
            let Self { id, lines, bytes, first_index, last_index, .. } = self;
            return Err(format!(
                "no chunk is like {id}, with {lines} lines and {bytes} bytes for the indexes {first_index} to {last_index}"
            ));
        }
        Ok(())
    }

    /// The rows of a chunk whose rows file is gone, if the journal or the chunk's request lines still say which they are.
    pub fn recover_rows(&self, requests: &Entry) -> Result<Option<RowSet>> {
        if self.last_index.checked_sub(self.first_index).is_some_and(|more| more + 1 == self.lines) {
            return Ok(Some(RowSet::range(self.first_index, self.last_index)));
        }
        if !requests.exists()? || FileMark::of(requests)?.blake3 != self.blake3 {
            return Ok(None);
        }
        let mut rows = RowSet::default();
        let mut lines = read_results(requests)?;
        let mut block = Block::default();
        while lines.fill(&mut block)? {
            for line in block.lines() {
                let id = read_custom_id(line.bytes);
                let Some(id) = id.as_deref().and_then(CustomId::parse) else { return Ok(None) };
                rows.insert(id.index.0);
            }
        }
        let is_whole = (rows.len(), rows.ends()) == (self.lines, Some((self.first_index, self.last_index)));
        Ok(is_whole.then_some(rows))
    }
}

/// The most that a chunk may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub lines: u64,
    /// Line feeds included.
    pub bytes: u64,
}

impl Limits {
    /// A line of so many bytes may stand in a chunk at all.
    pub fn admit(self, bytes: u64) -> bool {
        bytes <= self.bytes
    }

    /// Another line of so many bytes still fits.
    pub fn fit(self, lines: u64, bytes: u64, more: u64) -> bool {
        lines < self.lines && bytes.saturating_add(more) <= self.bytes
    }

    /// No further line can fit.
    pub fn are_reached(self, lines: u64, bytes: u64) -> bool {
        lines >= self.lines || bytes >= self.bytes
    }
}

/// The hash is several times as fast on pieces of this size as on single lines.
const PIECE: usize = 128 << 10;

/// A chunk's request lines, in a work directory.
pub fn request_file(dir: &Folder, chunk: &ChunkId) -> Entry {
    dir.file(chunk.path())
}

/// A chunk's rows.
pub fn rows_file(dir: &Folder, chunk: &ChunkId) -> Entry {
    dir.file(format!("rows/{chunk}.txt"))
}

/// Where the requests of chunks come from.
pub trait Source {
    /// Reads one place of the input, gives it to [`Cut::place`], and each request that comes of it to [`Cut::push`].
    /// `false`: the input has ended.
    fn read(&mut self, cut: &mut Cut) -> Result<bool>;

    /// The input was read to its end, and all its chunks are in the journal. Gives its good places; `None`: it has places,
    /// and all of them are bad.
    fn end(&mut self) -> Result<Option<u64>>;
}

/// What goes into the journal, in this order.
#[derive(Debug)]
pub enum Milestone<'c> {
    /// A chunk is durable.
    Chunk(&'c Chunk, InputMark),
    /// The input was read to its end.
    End { good: u64, input: InputMark },
}

/// Puts a milestone into the journal.
pub type Record = Box<dyn FnMut(Milestone<'_>) -> Result<()> + Send>;

/// Reads requests from a source and yields their chunks.
pub struct Chunks<S> {
    source: S,
    cut: Cut,
    record: Record,
    /// How reading ended, until that is told. Chunks may still be on their way to the disk then.
    end: Option<Result<InputMark>>,
    has_ended: bool,
}

impl<S> std::fmt::Debug for Chunks<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks").field("cut", &self.cut).finish_non_exhaustive()
    }
}

impl<S: Source> Chunks<S> {
    pub fn new(source: S, cut: Cut, record: Record) -> Self {
        Self { source, cut, record, end: None, has_ended: false }
    }

    /// Reads on until a chunk is durable and in the journal. `None`: all are, and the journal has the end of the input.
    ///
    /// # Errors
    /// The source, the disk or the journal failed. Chunks that had ended before are yielded first.
    #[expect(clippy::should_implement_trait, reason = "an error ends it, so this is no iterator")]
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        loop {
            if let Some((chunk, input)) = self.cut.files.next_done() {
                (self.record)(Milestone::Chunk(&chunk, input))?;
                return Ok(Some(chunk));
            }
            if self.has_ended {
                if self.cut.files.wait()? {
                    continue;
                }
                let Some(end) = self.end.take() else { return Ok(None) };
                let input = end?;
                if let Some(good) = self.source.end()? {
                    (self.record)(Milestone::End { good, input })?;
                }
                return Ok(None);
            }
            self.end = match self.source.read(&mut self.cut) {
                Ok(true) => None,
                Ok(false) => Some(self.cut.finish()),
                Err(error) => Some(Err(error)),
            };
            self.has_ended = self.end.is_some();
        }
    }

    /// Writes the lost files of chunks of the journal again, and reads no further than that needs.
    ///
    /// # Errors
    /// The input no longer gives these chunks.
    pub fn remake(&mut self) -> Result<()> {
        while self.cut.cutter.gone() > 0 {
            if !self.source.read(&mut self.cut)? {
                self.cut.finish()?;
                break;
            }
        }
        while self.cut.files.wait()? {}
        Ok(())
    }

    pub fn cutter(&self) -> &Cutter {
        &self.cut.cutter
    }

    /// Gives the source back; files that are not whole are removed.
    pub fn into_source(self) -> S {
        self.source
    }
}

/// What a [`Source`] gives its input and its requests to: the check of the input, the decision, and the files.
#[derive(Debug)]
pub struct Cut {
    input: InputCheck,
    cutter: Cutter,
    files: ChunkFiles,
    dir: Folder,
}

impl Cut {
    pub fn new(dir: Folder, input: InputCheck, cutter: Cutter) -> Result<Self> {
        Ok(Self { input, cutter, files: ChunkFiles::new(dir.clone())?, dir })
    }

    pub fn group(&mut self, analysis: &str, vision: bool, model: &str) -> Group {
        let group = self.cutter.group(analysis, vision, model);
        self.files.add_group(group);
        group
    }

    /// Takes note of the next place of the input, before the requests that come of it.
    ///
    /// # Errors
    /// The input is not the one that the journal's chunks were cut from.
    pub fn place(&mut self, bytes: &[u8]) -> Result<()> {
        self.input.add(bytes)
    }

    /// Puts a request into its group's chunk. `false`: the chunk has a row of this index already.
    pub fn push(
        &mut self,
        group: Group,
        index: u64,
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<bool> {
        while let Some(ended) = self.cutter.make_room(group, index, bytes)? {
            self.end(group, ended)?;
        }
        match self.cutter.add(group, index, bytes) {
            Destination::Twice => return Ok(false),
            Destination::Held => {}
            Destination::Open => self.files.write(group, true, write)?,
            Destination::Again { requests } => self.files.write(group, requests, write)?,
        }
        if let Some(ended) = self.cutter.take_full(group)? {
            self.end(group, ended)?;
        }
        Ok(true)
    }

    /// Ends every open chunk, and checks that the input ended where the journal says.
    fn finish(&mut self) -> Result<InputMark> {
        self.input.finish()?;
        while let Some((group, ended)) = self.cutter.take_rest()? {
            self.end(group, ended)?;
        }
        Ok(self.input.mark())
    }

    fn end(&mut self, group: Group, ended: Ended) -> Result<()> {
        match ended {
            Ended::New { chunk, rows } => {
                // Chunks end in a fixed order. If a new one ends while marks of the journal are left, the input has changed.
                self.input.check_no_mark_is_left()?;
                let input = Some(self.input.mark());
                self.files.close(group, Closing { chunk, rows, input })
            }
            Ended::Held { chunk, rows } if RowSet::read(&rows_file(&self.dir, &chunk.id))? == rows => Ok(()),
            Ended::Held { chunk, .. } => Err(cutter::differs("rows", &chunk)),
            Ended::Again { chunk, rows, requests } => {
                self.files.close_again(group, requests, Closing { chunk, rows, input: None })
            }
        }
    }
}

#[cfg(test)]
mod tests;
