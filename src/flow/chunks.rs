//! Request lines → chunks: files of at most so many lines and bytes, one analysis and one model each.
//!
//! A chunk is on disk, whole and synced, before anyone hears of it. Which request goes into which chunk depends on the
//! order of the requests alone: a group's chunks are filled one after another, and what earlier chunks hold is passed
//! over by count, so that a killed run goes on where the journal ends.

mod writer;

use std::{
    collections::{HashMap, VecDeque},
    io::Write,
};

use serde::{Deserialize, Serialize};

use self::writer::Closing;
pub use self::writer::{ChunkWriter, write_behind};
use super::{
    ChunkId, CustomId,
    results::read_custom_id,
    rows::{FileMark, MOST_ROWS, RowSet, read_results},
};
use crate::{
    error::{Error, Result},
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

/// The file of a chunk's request lines, in a work directory.
pub fn request_file(dir: &Folder, chunk: &ChunkId) -> Entry {
    dir.file(chunk.path())
}

/// The file of a chunk's rows, in a work directory.
pub fn rows_file(dir: &Folder, chunk: &ChunkId) -> Entry {
    dir.file(format!("rows/{chunk}.txt"))
}

/// How far the input had been read when something was written down: a resumed run reads that far again
/// and compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputMark {
    /// Places in the input, faults included.
    pub posts: u64,
    /// Hash of all lines up to there, each with a line feed, in hexadecimal.
    pub blake3: String,
}

/// The hash is several times as fast on pieces of this size as on single lines.
const PIECE: usize = 128 << 10;
/// Bytes of all open chunks that wait for their piece to be full; with many groups pieces are smaller.
const PENDING: usize = 8 << 20;
const SMALLEST_PIECE: usize = 4 << 10;

/// Takes an input in place by place, and says how far it came.
#[derive(Debug, Default)]
pub struct InputHash {
    hasher: blake3::Hasher,
    /// Not yet hashed; at most [`PIECE`].
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

/// Number of a group in its [`Cutter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(usize);

/// Writes requests into chunks. At most one chunk a group is open.
#[derive(Debug)]
pub struct Cutter {
    dir: Folder,
    limits: Limits,
    groups: Vec<GroupState>,
    /// The chunks of the journal, by analysis and model, until their group is asked for.
    held: HashMap<(String, String), VecDeque<HeldChunk>>,
    /// The last part of each name, by analysis and whether it is the multimodal model's.
    parts: HashMap<(String, bool), u32>,
    input: InputHash,
    /// What the journal says of the input, to be found again: in ascending order.
    marks: VecDeque<(InputMark, String)>,
    /// Places in the whole input, if the journal has seen its end.
    end: Option<u64>,
    /// A chunk ended since the next line's bytes did not fit.
    bytes_bind: bool,
    /// Chunks of the journal whose files are gone and are to be made again, and those that were.
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
    /// Journaled chunks whose requests are still to be passed over.
    held: VecDeque<HeldChunk>,
    open: Option<OpenChunk>,
}

/// Whether the files of a chunk of the journal are where they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Whole,
    /// Its rows are gone; its requests are gone too, and are needed, if `requests` says so.
    Gone {
        requests: bool,
    },
}

/// A chunk of the journal, as its requests come by again.
#[derive(Debug)]
struct HeldChunk {
    chunk: Chunk,
    kept: Kept,
    /// The chunk as it is made again.
    again: Option<OpenChunk>,
    /// What came by of it, so that a row that was refused as its second is refused again.
    passed: u64,
    rows: RowSet,
}

impl HeldChunk {
    /// What became of a request when the chunk was cut; `None` if it came after the chunk.
    fn pass(&mut self, index: u64, bytes: u64, limits: Limits) -> Option<Pushed> {
        let is_full = self.passed == self.chunk.lines;
        if is_full {
            let came_twice = limits.fit(self.chunk.lines, self.chunk.bytes, bytes) && self.rows.contains(index);
            return came_twice.then_some(Pushed::Twice);
        }
        let is_new = self.rows.insert(index);
        self.passed += u64::from(is_new);
        Some(if is_new { Pushed::Held } else { Pushed::Twice })
    }

    /// The same rows came by as the chunk was cut with. Images are no part of the input's hash: one that appeared or went
    /// away moves its row to another group, and counting alone would leave a row out or ask for it twice.
    fn check(&self, dir: &Folder) -> Result<()> {
        let is_same = match self.kept {
            Kept::Whole => RowSet::read(&rows_file(dir, &self.chunk.id))? == self.rows,
            // It was compared when its last request came by.
            Kept::Gone { .. } => self.passed == self.chunk.lines,
        };
        if is_same { Ok(()) } else { Err(self.differs("rows")) }
    }

    fn differs(&self, what: &str) -> Error {
        Error::input(format!("the posts no longer give the {what} of {}; have images changed?", self.chunk.id))
            .fix("put the images back as they were, or --new to begin again (the old contents are kept in DIR.old-N)")
    }

    /// Writes a request once more into the chunk whose files are gone. `true`: it was the last, and the files are there again.
    ///
    /// # Errors
    /// The chunk is not the one that was cut.
    fn remake(
        &mut self,
        (group, piece): (usize, usize),
        (index, bytes): (u64, u64),
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
        writer: &mut ChunkWriter<'_>,
    ) -> Result<bool> {
        let Kept::Gone { requests } = self.kept else { return Ok(false) };
        let open = self.again.get_or_insert_with(|| OpenChunk::new(index));
        write(&mut Pieces { open, writer: requests.then_some(&mut *writer), group, piece })?;
        open.lines += 1;
        open.bytes += bytes;
        if open.lines < self.chunk.lines {
            return Ok(false);
        }
        let Some(mut open) = self.again.take() else { return Ok(false) };
        open.hasher.update(&open.pending);
        if (open.bytes, open.hasher.finalize().to_hex().as_str()) != (self.chunk.bytes, self.chunk.blake3.as_str()) {
            return Err(self.differs("requests"));
        }
        let last = requests.then_some(open.pending);
        writer.close(group, Closing { last, chunk: self.chunk.clone(), rows: self.rows.clone(), input: None })?;
        Ok(true)
    }
}

#[derive(Debug)]
struct OpenChunk {
    /// On its way to the hash and the file.
    pending: Vec<u8>,
    hasher: blake3::Hasher,
    lines: u64,
    bytes: u64,
    rows: RowSet,
    first: u64,
    last: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Written,
    /// A chunk of the journal holds it.
    Held,
    /// The open chunk has a row of this index.
    Twice,
}

impl Cutter {
    /// `dir` is the work directory, `cut` what its journal holds of chunks, in order, `end` where the input ended. The files of
    /// chunks that are [`Kept::Gone`] are made again as their requests come by.
    pub fn new<'c>(
        dir: Folder,
        limits: Limits,
        cut: impl IntoIterator<Item = (&'c Chunk, &'c InputMark, Kept)>,
        end: Option<&InputMark>,
    ) -> Self {
        let mut held: HashMap<(String, String), VecDeque<HeldChunk>> = HashMap::new();
        let mut parts: HashMap<(String, bool), u32> = HashMap::new();
        let mut marks = Vec::new();
        let mut gone = 0;
        for (chunk, mark, kept) in cut {
            marks.push((mark.clone(), chunk.id.to_string()));
            gone += u64::from(kept != Kept::Whole);
            let group = held.entry((chunk.analysis.clone(), chunk.model.clone())).or_default();
            let rows = RowSet::default();
            group.push_back(HeldChunk { chunk: chunk.clone(), kept, again: None, passed: 0, rows });
            let part = parts.entry((chunk.analysis.clone(), chunk.id.vision)).or_default();
            *part = chunk.id.part.max(*part);
        }
        marks.extend(end.map(|mark| (mark.clone(), "the end of the input".to_owned())));
        marks.sort_by_key(|(mark, _)| mark.posts);
        Self {
            dir,
            limits,
            groups: Vec::new(),
            held,
            parts,
            input: InputHash::default(),
            marks: marks.into(),
            end: end.map(|mark| mark.posts),
            bytes_bind: false,
            gone,
            remade: 0,
            only_held: false,
        }
    }

    /// The same for the chunks of the journal alone: nothing new is cut.
    #[must_use]
    pub fn of_held_chunks(self) -> Self {
        Self { only_held: true, ..self }
    }

    /// Chunks whose files are still to be made again.
    pub fn gone(&self) -> u64 {
        self.gone - self.remade
    }

    /// Chunks whose files were made again.
    pub fn remade(&self) -> u64 {
        self.remade
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

    /// Takes note of a place of the input, before the requests that come of it.
    ///
    /// # Errors
    /// The input is not the one that the journal's chunks were cut from.
    pub fn read_place(&mut self, bytes: &[u8]) -> Result<()> {
        if self.end == Some(self.input.places) {
            let places = count(self.input.places);
            return Err(another_input(format_args!("it goes on after {places}, where that one ended")));
        }
        self.input.add(bytes);
        self.find_marks()
    }

    fn find_marks(&mut self) -> Result<()> {
        while self.marks.front().is_some_and(|(mark, _)| mark.posts == self.input.places) {
            let here = self.input.mark();
            if self.marks.front().is_some_and(|(mark, _)| *mark != here) {
                return self.check_no_mark_is_left();
            }
            self.marks.pop_front();
        }
        Ok(())
    }

    /// Reading on can tell nothing more of whether this is the same input.
    pub fn knows_the_input(&self) -> bool {
        self.marks.is_empty() && self.end.is_none()
    }

    /// Everything that the journal says of the input was found again, up to here.
    pub fn check_no_mark_is_left(&self) -> Result<()> {
        match self.marks.front() {
            None => Ok(()),
            Some((mark, what)) => {
                Err(another_input(format_args!("it differs before {what}, in the first {}", count(mark.posts))))
            }
        }
    }

    /// A chunk ended since the next line's bytes did not fit.
    pub fn bytes_bind(&self) -> bool {
        self.bytes_bind
    }

    pub fn mark(&mut self) -> InputMark {
        self.input.mark()
    }

    /// Puts a request into its group's chunk.
    pub fn push(
        &mut self,
        group: Group,
        index: u64,
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
        writer: &mut ChunkWriter<'_>,
    ) -> Result<Pushed> {
        let piece = (PENDING / self.groups.len()).clamp(SMALLEST_PIECE, PIECE);
        let Some(state) = self.groups.get_mut(group.0) else { return Ok(Pushed::Held) };
        while let Some(held) = state.held.front_mut() {
            if let Some(pushed) = held.pass(index, bytes, self.limits) {
                if pushed == Pushed::Held {
                    self.remade += u64::from(held.remake((group.0, piece), (index, bytes), write, writer)?);
                }
                return Ok(pushed);
            }
            held.check(&self.dir)?;
            state.held.pop_front();
        }
        if self.only_held {
            return Ok(Pushed::Held);
        }
        if let Some(open) = state.open.as_ref().filter(|open| !self.limits.fit(open.lines, open.bytes, bytes)) {
            self.bytes_bind |= open.lines < self.limits.lines;
            self.close(group, writer)?;
        }
        let Some(state) = self.groups.get_mut(group.0) else { return Ok(Pushed::Held) };
        let open = state.open.get_or_insert_with(|| OpenChunk::new(index));
        if !open.rows.insert(index) {
            return Ok(Pushed::Twice);
        }
        write(&mut Pieces { open, writer: Some(writer), group: group.0, piece })?;
        open.lines += 1;
        open.bytes += bytes;
        open.first = open.first.min(index);
        open.last = open.last.max(index);
        if self.limits.are_reached(open.lines, open.bytes) {
            self.close(group, writer)?;
        }
        Ok(Pushed::Written)
    }

    /// Ends every open chunk and checks that the input ended where the journal says.
    pub fn finish(&mut self, writer: &mut ChunkWriter<'_>) -> Result<InputMark> {
        self.find_marks()?;
        self.check_no_mark_is_left()?;
        for held in self.groups.iter().flat_map(|group| &group.held).chain(self.held.values().flatten()) {
            held.check(&self.dir)?;
        }
        for group in 0..self.groups.len() {
            self.close(Group(group), writer)?;
        }
        Ok(self.mark())
    }

    fn close(&mut self, group: Group, writer: &mut ChunkWriter<'_>) -> Result<()> {
        let Some(state) = self.groups.get_mut(group.0) else { return Ok(()) };
        let Some(mut open) = state.open.take() else { return Ok(()) };
        // Chunks are journaled in the order in which they end: a new one before an old one comes of another input.
        self.check_no_mark_is_left()?;
        let Some(state) = self.groups.get(group.0) else { return Ok(()) };
        let part = self.parts.entry((state.analysis.clone(), state.vision)).or_default();
        *part = part.saturating_add(1);
        open.hasher.update(&open.pending);
        let id = ChunkId { analysis: state.analysis.clone(), vision: state.vision, part: *part };
        let path = id.path();
        let chunk = Chunk {
            id,
            path,
            analysis: state.analysis.clone(),
            model: state.model.clone(),
            lines: open.lines,
            bytes: open.bytes,
            first_index: open.first,
            last_index: open.last,
            blake3: open.hasher.finalize().to_hex().to_string(),
        };
        let input = self.mark();
        writer.close(group.0, Closing { last: Some(open.pending), chunk, rows: open.rows, input: Some(input) })
    }
}

fn another_input(how: std::fmt::Arguments<'_>) -> Error {
    Error::input(format!("the input is not the one this work directory was made from: {how}"))
        .fix("give the same input, or --new to begin again (the old contents are kept in DIR.old-N)")
}

fn count(places: u64) -> String {
    if places == 1 { "1 line".to_owned() } else { format!("{places} lines") }
}

impl OpenChunk {
    fn new(index: u64) -> Self {
        Self {
            pending: Vec::new(),
            hasher: blake3::Hasher::new(),
            lines: 0,
            bytes: 0,
            rows: RowSet::default(),
            first: index,
            last: index,
        }
    }

    /// Without a writer it is only hashed.
    fn flush(&mut self, group: usize, writer: Option<&mut ChunkWriter<'_>>) -> Result<()> {
        self.hasher.update(&self.pending);
        match writer {
            Some(writer) => writer.write(group, &mut self.pending),
            None => {
                self.pending.clear();
                Ok(())
            }
        }
    }
}

/// Cuts what is written into pieces for the hash and the file.
struct Pieces<'a, 'w> {
    open: &'a mut OpenChunk,
    writer: Option<&'a mut ChunkWriter<'w>>,
    group: usize,
    /// Bytes of each.
    piece: usize,
}

/// Takes all bytes or fails: a writer that takes fewer is allowed by its contract, and not everybody who writes can bear it.
impl Write for Pieces<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.open.pending.len() >= self.piece {
                self.open.flush(self.group, self.writer.as_deref_mut())?;
            }
            let room = self.piece - self.open.pending.len();
            let (fits, after) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            self.open.pending.extend_from_slice(fits);
            rest = after;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Cuts lines of the given lengths and gives the lines and bytes of each chunk.
    fn cut(lengths: &[u64], limits: Limits) -> Vec<(u64, u64)> {
        let dir = tempfile::tempdir().expect("a directory");
        for folder in ["requests", "rows"] {
            std::fs::create_dir(dir.path().join(folder)).expect("made");
        }
        let mut cutter = Cutter::new(Folder::open(dir.path()).expect("opened"), limits, [], None);
        let group = cutter.group("a", false, "m");
        let mut chunks = Vec::new();
        let keep = |chunk: Chunk, _: InputMark| {
            let file = crate::lines::input::read_small(&dir.path().join(&chunk.path), 1 << 20)?;
            assert_eq!((file.len() as u64, file.lines().count() as u64), (chunk.bytes, chunk.lines));
            assert_eq!(blake3::hash(file.as_bytes()).to_hex().as_str(), chunk.blake3);
            chunks.push((chunk.lines, chunk.bytes));
            Ok(())
        };
        write_behind(&Folder::open(dir.path()).expect("opened"), keep, |writer| {
            for (index, length) in lengths.iter().enumerate() {
                let line = "x".repeat(*length as usize - 1) + "\n";
                cutter.read_place(line.as_bytes())?;
                let write =
                    |out: &mut dyn Write| out.write_all(line.as_bytes()).map_err(|e| Error::io("write", "", &e));
                cutter.push(group, index as u64, *length, write, writer)?;
            }
            cutter.finish(writer)
        })
        .expect("cut");
        chunks
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
    fn another_input_is_told_by_its_first_chunk() {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = Limits { lines: 3, bytes: 1000 };
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
            let mut cutter = Cutter::new(Folder::open(dir.path()).expect("opened"), limits, [], None);
            cutter.marks = [(mark("a\nb\n"), "part1".to_owned()), (mark("a\nb\nc\n"), "the end".to_owned())].into();
            cutter.end = Some(3);
            let outcome = write_behind(
                &Folder::open(dir.path()).expect("opened"),
                |_, _| Ok(()),
                |writer| {
                    input.lines().try_for_each(|line| cutter.read_place(line.as_bytes()))?;
                    cutter.finish(writer)
                },
            )
            .map(|_| ());
            match (outcome, told) {
                (Ok(()), None) => {}
                (Err(error), Some(told)) => assert!(error.to_string().contains(told), "{error}"),
                (outcome, told) => panic!("{input:?}: {outcome:?}, {told:?}"),
            }
        }
    }

    #[test]
    fn an_error_on_either_thread_is_told_and_what_ended_before_is_yielded() {
        let run = |fails_at: usize, pushes: u64| {
            let dir = tempfile::tempdir().expect("a directory");
            for folder in ["requests", "rows"] {
                std::fs::create_dir(dir.path().join(folder)).expect("made");
            }
            let mut cutter =
                Cutter::new(Folder::open(dir.path()).expect("opened"), Limits { lines: 1, bytes: 1000 }, [], None);
            let group = cutter.group("a", false, "m");
            let mut yielded = 0;
            let keep = |_: Chunk, _: InputMark| {
                if yielded == fails_at {
                    return Err(Error::input("no more are taken"));
                }
                yielded += 1;
                Ok(())
            };
            let error = write_behind(&Folder::open(dir.path()).expect("opened"), keep, |writer| {
                for index in 0..pushes {
                    let write = |out: &mut dyn Write| out.write_all(b"{}\n").map_err(|e| Error::io("write", "", &e));
                    cutter.push(group, index, 3, write, writer)?;
                }
                Err::<(), _>(Error::input("the posts are broken"))
            });
            (yielded, error.expect_err("told").to_string())
        };
        assert_eq!(run(usize::MAX, 5), (5, "the posts are broken".to_owned()));
        assert_eq!(run(3, 50), (3, "no more are taken".to_owned()));
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
}
