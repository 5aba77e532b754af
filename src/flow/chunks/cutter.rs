//! Which request goes into which chunk. This depends on the order of the requests alone: the chunks of a group are filled one
//! after another. Requests that the journal's chunks hold are passed over by count.
//!
//! Nothing here touches the disk, so the same code counts the chunks of a job, finds lost ones again and cuts new ones.

use std::collections::{HashMap, VecDeque};

use super::{Chunk, Limits};
use crate::{
    error::{Error, Result},
    flow::{ChunkId, rows::RowSet},
};

/// Number of a group in its [`Cutter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub(super) usize);

/// Whether the files of a chunk of the journal are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Whole,
    /// The rows are lost, or requests that are still needed are. `requests`: the file of requests must be written again.
    Gone {
        requests: bool,
    },
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The open chunk of its group.
    Open,
    /// A chunk of the journal that is whole.
    Held,
    /// A chunk of the journal whose files are written again; `requests` as in [`Kept::Gone`].
    Again { requests: bool },
    /// Nowhere: the chunk has a row of this index.
    Twice,
}

/// A chunk that has all its requests.
#[derive(Debug)]
pub enum Ended {
    /// A new chunk. Its hash is still empty.
    New { chunk: Chunk, rows: RowSet },
    /// A chunk of the journal that is whole on disk: its file of rows must hold these.
    Held { chunk: Chunk, rows: RowSet },
    /// A chunk of the journal that was written again; `requests` as in [`Kept::Gone`].
    Again { chunk: Chunk, rows: RowSet, requests: bool },
}

/// Puts requests into chunks. At most one chunk a group is open.
///
/// For each request: [`Cutter::make_room`] until it gives nothing, [`Cutter::add`], [`Cutter::take_full`]; after the last request
/// [`Cutter::take_rest`] until it gives nothing.
#[derive(Debug)]
pub struct Cutter {
    limits: Limits,
    groups: Vec<GroupState>,
    /// The chunks of the journal, by analysis and model, until their group is asked for.
    held: HashMap<(String, String), VecDeque<HeldChunk>>,
    /// The last part of each name, by analysis and whether it is the multimodal model's.
    parts: HashMap<(String, bool), u32>,
    /// A chunk ended because the bytes of the next line did not fit.
    bytes_bind: bool,
    /// Chunks of the journal whose files are lost and not yet written again, and those that were written again.
    gone: u64,
    remade: u64,
    /// Requests that no chunk of the journal holds are passed over.
    only_held: bool,
}

#[derive(Debug)]
struct GroupState {
    analysis: String,
    vision: bool,
    model: String,
    /// Chunks of the journal whose requests are still to come by.
    held: VecDeque<HeldChunk>,
    open: Option<OpenChunk>,
}

/// A chunk of the journal, as its requests come by again.
#[derive(Debug)]
struct HeldChunk {
    chunk: Chunk,
    kept: Kept,
    /// Requests that came by, their bytes, and their rows. With these a row that was refused as its second is refused again.
    passed: u64,
    bytes: u64,
    rows: RowSet,
    remade: bool,
}

#[derive(Debug)]
struct OpenChunk {
    lines: u64,
    bytes: u64,
    rows: RowSet,
    first: u64,
    last: u64,
}

impl Cutter {
    /// `held`: the chunks of the journal, in order.
    pub fn new<'c>(limits: Limits, held: impl IntoIterator<Item = (&'c Chunk, Kept)>) -> Self {
        let mut cutter = Self {
            limits,
            groups: Vec::new(),
            held: HashMap::new(),
            parts: HashMap::new(),
            bytes_bind: false,
            gone: 0,
            remade: 0,
            only_held: false,
        };
        for (chunk, kept) in held {
            cutter.gone += u64::from(kept != Kept::Whole);
            let part = cutter.parts.entry((chunk.analysis.clone(), chunk.id.vision)).or_default();
            *part = chunk.id.part.max(*part);
            let group = cutter.held.entry((chunk.analysis.clone(), chunk.model.clone())).or_default();
            group.push_back(HeldChunk::new(chunk.clone(), kept));
        }
        cutter
    }

    /// The same for the chunks of the journal alone: nothing new is cut.
    #[must_use]
    pub fn of_held_chunks(self) -> Self {
        Self { only_held: true, ..self }
    }

    /// Chunks of the journal whose files are lost and not yet written again.
    pub fn gone(&self) -> u64 {
        self.gone
    }

    /// Chunks of the journal whose files were written again.
    pub fn remade(&self) -> u64 {
        self.remade
    }

    /// A chunk ended because the bytes of the next line did not fit.
    pub fn bytes_bind(&self) -> bool {
        self.bytes_bind
    }

    /// The group of an analysis and a model; `vision` marks the names of its chunks.
    pub fn group(&mut self, analysis: &str, vision: bool, model: &str) -> Group {
        let known = self.groups.iter().position(|group| group.analysis == analysis && group.model == model);
        Group(known.unwrap_or_else(|| {
            let key = (analysis.to_owned(), model.to_owned());
            let held = self.held.remove(&key).unwrap_or_default();
            self.groups.push(GroupState { analysis: key.0, vision, model: key.1, held, open: None });
            self.groups.len() - 1
        }))
    }

    /// Ends a chunk that a request of this group comes after.
    ///
    /// # Errors
    /// The requests of a chunk that was written again are fewer than it had.
    pub fn make_room(&mut self, group: Group, index: u64, bytes: u64) -> Result<Option<Ended>> {
        let limits = self.limits;
        let Some(state) = self.groups.get_mut(group.0) else { return Ok(None) };
        while let Some(held) = state.held.front() {
            if held.takes(index, bytes, limits) {
                return Ok(None);
            }
            if let Some(ended) = state.held.pop_front().map_or(Ok(None), HeldChunk::end)? {
                return Ok(Some(ended));
            }
        }
        match &state.open {
            Some(open) if !limits.fit(open.lines, open.bytes, bytes) => {
                self.bytes_bind |= open.lines < limits.lines;
                Ok(self.close(group))
            }
            _ => Ok(None),
        }
    }

    /// Puts a request into its chunk.
    pub fn add(&mut self, group: Group, index: u64, bytes: u64) -> Destination {
        let Some(state) = self.groups.get_mut(group.0) else { return Destination::Held };
        if let Some(held) = state.held.front_mut() {
            return held.pass(index, bytes);
        }
        if self.only_held {
            return Destination::Held;
        }
        let open = state.open.get_or_insert_with(|| OpenChunk::new(index));
        if !open.rows.insert(index) {
            return Destination::Twice;
        }
        open.lines += 1;
        open.bytes += bytes;
        open.first = open.first.min(index);
        open.last = open.last.max(index);
        Destination::Open
    }

    /// Ends the chunk of this group if nothing more can go into it.
    ///
    /// # Errors
    /// The requests of a chunk that was written again have not the bytes that it had.
    pub fn take_full(&mut self, group: Group) -> Result<Option<Ended>> {
        let Some(state) = self.groups.get_mut(group.0) else { return Ok(None) };
        if let Some(held) = state.held.front_mut() {
            let ended = held.take_remade()?;
            let count = u64::from(ended.is_some());
            (self.gone, self.remade) = (self.gone - count, self.remade + count);
            return Ok(ended);
        }
        let is_full = state.open.as_ref().is_some_and(|open| self.limits.are_reached(open.lines, open.bytes));
        Ok(if is_full { self.close(group) } else { None })
    }

    /// Ends the next chunk after the last request; the number is its group's.
    ///
    /// # Errors
    /// The requests of a chunk that was written again are fewer than it had.
    pub fn take_rest(&mut self) -> Result<Option<(Group, Ended)>> {
        let groups = self.groups.iter_mut().map(|group| &mut group.held);
        for held in groups.chain(self.held.values_mut()) {
            while let Some(held) = held.pop_front() {
                if let Some(ended) = held.end()? {
                    return Ok(Some((Group(0), ended)));
                }
            }
        }
        Ok((0..self.groups.len()).map(Group).find_map(|group| Some((group, self.close(group)?))))
    }

    fn close(&mut self, group: Group) -> Option<Ended> {
        let state = self.groups.get_mut(group.0)?;
        let OpenChunk { lines, bytes, rows, first, last } = state.open.take()?;
        let part = self.parts.entry((state.analysis.clone(), state.vision)).or_default();
        *part = part.saturating_add(1);
        let id = ChunkId { analysis: state.analysis.clone(), vision: state.vision, part: *part };
        let chunk = Chunk {
            path: id.path(),
            id,
            analysis: state.analysis.clone(),
            model: state.model.clone(),
            lines,
            bytes,
            first_index: first,
            last_index: last,
            blake3: String::new(),
        };
        Some(Ended::New { chunk, rows })
    }
}

impl OpenChunk {
    fn new(index: u64) -> Self {
        Self { lines: 0, bytes: 0, rows: RowSet::default(), first: index, last: index }
    }
}

impl HeldChunk {
    fn new(chunk: Chunk, kept: Kept) -> Self {
        Self { chunk, kept, passed: 0, bytes: 0, rows: RowSet::default(), remade: false }
    }

    fn is_full(&self) -> bool {
        self.passed == self.chunk.lines
    }

    /// The request was one of this chunk's when it was cut, or was refused as the second of its row.
    fn takes(&self, index: u64, bytes: u64, limits: Limits) -> bool {
        !self.is_full() || limits.fit(self.chunk.lines, self.chunk.bytes, bytes) && self.rows.contains(index)
    }

    fn pass(&mut self, index: u64, bytes: u64) -> Destination {
        if self.is_full() || !self.rows.insert(index) {
            return Destination::Twice;
        }
        self.passed += 1;
        self.bytes += bytes;
        match self.kept {
            Kept::Whole => Destination::Held,
            Kept::Gone { requests } => Destination::Again { requests },
        }
    }

    /// The chunk, once, when all its requests have come by and its files are to be written again.
    fn take_remade(&mut self) -> Result<Option<Ended>> {
        let Kept::Gone { requests } = self.kept else { return Ok(None) };
        if self.remade || !self.is_full() {
            return Ok(None);
        }
        if self.bytes != self.chunk.bytes {
            return Err(differs("requests", &self.chunk));
        }
        self.remade = true;
        Ok(Some(Ended::Again { chunk: self.chunk.clone(), rows: self.rows.clone(), requests }))
    }

    /// What must be compared now that the chunk's requests have come by. The hash of the input says nothing of images: one that
    /// appeared or vanished moves its row to another group, and by counting alone a row would be left out or asked for twice.
    fn end(self) -> Result<Option<Ended>> {
        match self.kept {
            Kept::Whole => Ok(Some(Ended::Held { chunk: self.chunk, rows: self.rows })),
            Kept::Gone { .. } if self.is_full() => Ok(None),
            Kept::Gone { .. } => Err(differs("rows", &self.chunk)),
        }
    }
}

/// The error for posts that no longer give a chunk of the journal.
pub fn differs(what: &str, chunk: &Chunk) -> Error {
    Error::input(format!("the posts no longer give the {what} of {}; have images changed?", chunk.id))
        .fix("put the images back as they were, or --new to begin again (the old contents are kept in DIR.old-N)")
}
