//! Answers that wait for their posts. They come in any order and number; posts then take them in index order.
//!
//! Indexes are cut into *shards*, ranges of a fixed width. Each shard has a buffer, and one budget of bytes holds
//! for all buffers together: when it is used up the largest ones are appended to one anonymous temp file, which
//! is gone when the process is, however it ends. A shard is read back by folding its entries, in whatever order
//! they are found, into a table with one cell per (index, analysis): memory is what distinct cells take, not
//! entries. A shard that is too wide or too heavy for that is first cut into narrower ones, the same way.
//!
//! The fold of a cell does not depend on order: a value beats any fault, equal values count once, of different
//! values the lowest rank is kept and the cell remembers that there was a conflict.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::{
    drill,
    error::{Error, Kind, Result},
};

/// Cells in the table: a shard's width times the analyses.
const CELLS: u64 = 1 << 17;
/// Most shards at one time: 134 million posts with the six analyses; higher indexes share the last one.
const FAN: u64 = 8192;
/// One read from the temp file.
const READ_BYTES: usize = 256 << 10;
/// Bytes of answers that lost, below which taking them out of the arena is not worth the work.
const GARBAGE_BYTES: usize = 1 << 20;
/// An arena that a heavy shard made larger goes back to this size.
const ARENA_BYTES: usize = 8 << 20;

#[derive(Clone, Debug)]
struct Shape {
    analyses: usize,
    /// A table covers `1 << leaf_shift` indexes.
    leaf_shift: u32,
    fan: u64,
    /// Budget of bytes for buffers.
    memory: usize,
    tmp_dir: PathBuf,
}

/// Takes answers in any order.
#[derive(Debug)]
pub struct AnswerStore {
    shape: Shape,
    level: Level,
}

impl AnswerStore {
    /// `memory` is the budget of bytes for answers that wait; the rest goes to a file without a name in `tmp_dir`.
    pub fn new(analyses: usize, memory: u64, tmp_dir: &Path) -> Result<Self> {
        let width = CELLS / u64::try_from(analyses).unwrap_or(CELLS).clamp(1, CELLS);
        Self::with_shape(analyses, memory, tmp_dir, width.ilog2(), FAN)
    }

    fn with_shape(analyses: usize, memory: u64, tmp_dir: &Path, leaf_shift: u32, fan: u64) -> Result<Self> {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let shape = Shape { analyses, leaf_shift, fan, memory, tmp_dir: tmp_dir.to_owned() };
        let mut level = Level::new(0, leaf_shift);
        // Made now, so that a directory that cannot be used is known before the work.
        level.file = Some(temp_file(&shape)?);
        Ok(Self { shape, level })
    }

    /// An accepted answer. `rank` is its order of precedence: of different values the lowest is kept.
    pub fn push_value(&mut self, index: u64, analysis: usize, rank: u64, value: &[u8]) -> Result<()> {
        self.push(index, &Entry { offset: 0, analysis, is_value: true, rank, payload: value })
    }

    /// An answer that was a fault; `payload` is given back by [`Row::cell`].
    pub fn push_fault(&mut self, index: u64, analysis: usize, rank: u64, payload: &[u8]) -> Result<()> {
        self.push(index, &Entry { offset: 0, analysis, is_value: false, rank, payload })
    }

    fn push(&mut self, index: u64, entry: &Entry<'_>) -> Result<()> {
        debug_assert!(entry.analysis < self.shape.analyses, "an analysis is a place in the set");
        self.level.push(&self.shape, index, entry)
    }

    /// No more answers: they can be taken now.
    pub fn join(self) -> Joined {
        let table = Table::new(&self.shape);
        Joined { shape: self.shape, levels: vec![self.level], table, block: Vec::new() }
    }
}

/// Gives answers back in index order.
#[derive(Debug)]
pub struct Joined {
    shape: Shape,
    /// The shards that are left; each level but the first is one shard of the level before, cut into narrower ones.
    levels: Vec<Level>,
    table: Table,
    block: Vec<u8>,
}

impl Joined {
    /// The answers for one post. Indexes must ascend; gaps are allowed.
    pub fn row(&mut self, index: u64) -> Result<Row<'_>> {
        if index > self.table.last || self.table.is_empty() {
            self.seek(index)?;
        }
        Ok(self.table.row(index))
    }

    /// Calls `each` with index, analysis and cell of every answer from `index` on, in order; nothing is left then.
    pub fn beyond(mut self, index: u64, mut each: impl FnMut(u64, usize, Cell<'_>) -> Result<()>) -> Result<()> {
        if index > self.table.last || self.table.is_empty() {
            self.seek(index)?;
        }
        while !self.table.is_empty() {
            self.table.touched.sort_unstable();
            for at in &self.table.touched {
                let (place, analysis) = self.table.place(*at);
                if place >= index {
                    each(place, analysis, self.table.row(place).cell(analysis))?;
                }
            }
            let Some(next) = self.table.last.checked_add(1) else { break };
            self.seek(next)?;
        }
        Ok(())
    }

    /// Folds the first shard that holds anything from `index` on; the table is empty when there is none.
    fn seek(&mut self, index: u64) -> Result<()> {
        self.table.clear();
        while let Some(level) = self.levels.last_mut() {
            let Some((number, range, bytes)) = level.find(&self.shape, index) else {
                self.levels.pop();
                continue;
            };
            let narrow = range.last - range.start < 1 << self.shape.leaf_shift;
            let light = bytes <= self.shape.memory as u64 || range.start == range.last;
            if narrow && light {
                let shard = level.take(number);
                self.table.cover(range);
                return level.read(&self.shape, &shard, &mut self.block, |entry| {
                    self.table.fold(&entry);
                    Ok(())
                });
            }
            // The budget is for one level at a time; what is left of the others is so little that a level with a
            // few far answers in it needs no file.
            level.spill_down_to(&self.shape, self.shape.memory / 16)?;
            let shard = level.take(number);
            let mut narrower = Level::new(range.start, self.shape.cut(range, bytes));
            level.read(&self.shape, &shard, &mut self.block, |entry| {
                narrower.push(&self.shape, range.start + entry.offset, &entry)
            })?;
            self.levels.push(narrower);
        }
        Ok(())
    }
}

impl Shape {
    /// The width, as a power of two, of the shards that a range is cut into.
    fn cut(&self, range: Range, bytes: u64) -> u32 {
        let span = range.last - range.start;
        if span >= 1 << self.leaf_shift {
            // Too wide: as many shards as may be, none narrower than a table.
            return (self.leaf_shift..u64::BITS).find(|shift| span >> shift < self.fan).unwrap_or(u64::BITS - 1);
        }
        // Too heavy: shards of about half the budget, if answers are spread evenly.
        let parts = (bytes / (self.memory as u64 / 2).max(1) + 1).next_power_of_two();
        let parts = parts.clamp(2, self.fan);
        (span + 1).next_power_of_two().ilog2().saturating_sub(parts.ilog2())
    }
}

/// The answers for one post.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    cells: &'a [Kept],
    arena: &'a [u8],
}

/// What is known for one post and analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    Absent,
    Value(&'a [u8]),
    Fault(&'a [u8]),
}

impl<'a> Row<'a> {
    pub fn cell(&self, analysis: usize) -> Cell<'a> {
        let Some(kept) = self.cells.get(analysis) else { return Cell::Absent };
        match kept.state {
            State::Absent => Cell::Absent,
            State::Fault => Cell::Fault(kept.payload(self.arena)),
            State::Value => Cell::Value(kept.payload(self.arena)),
        }
    }

    /// There were different values; the one of the lowest rank is in the cell.
    pub fn conflict(&self, analysis: usize) -> bool {
        self.cells.get(analysis).is_some_and(|kept| kept.conflict)
    }
}

/// Both ends belong to it.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    last: u64,
}

/// Shards of one width and the file that their buffers are spilled to.
#[derive(Debug)]
struct Level {
    start: u64,
    /// A shard covers `1 << shift` indexes.
    shift: u32,
    /// The highest index that came.
    last: u64,
    shards: BTreeMap<u64, Shard>,
    /// Capacity of all buffers.
    used: usize,
    file: Option<File>,
    end: u64,
}

#[derive(Debug, Default)]
struct Shard {
    /// Empty, or room for a [`Link`] and then entries.
    buffer: Vec<u8>,
    /// Of all its entries, spilled ones too.
    bytes: u64,
    spilled: Link,
}

/// Where a piece of a shard is in the file. Each piece begins with the link to the one before it, so that a
/// shard costs the same memory however often it was spilled.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    offset: u64,
    /// 0: there is none.
    bytes: u64,
}

const LINK_BYTES: usize = 16;

impl Link {
    fn encode(self) -> [u8; LINK_BYTES] {
        ((u128::from(self.offset) << 64) | u128::from(self.bytes)).to_le_bytes()
    }

    fn decode(bytes: [u8; LINK_BYTES]) -> Self {
        let both = u128::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "each half is 64 bits")]
        let (offset, bytes) = ((both >> 64) as u64, both as u64);
        Self { offset, bytes }
    }
}

impl Level {
    fn new(start: u64, shift: u32) -> Self {
        Self { start, shift, last: start, shards: BTreeMap::new(), used: 0, file: None, end: 0 }
    }

    fn number(&self, shape: &Shape, index: u64) -> u64 {
        (index.saturating_sub(self.start) >> self.shift).min(shape.fan - 1)
    }

    fn range(&self, shape: &Shape, number: u64) -> Range {
        let start = self.start + (number << self.shift);
        let width = (1 << self.shift) - 1;
        let last = if number + 1 == shape.fan { self.last } else { start.saturating_add(width).min(self.last) };
        Range { start, last }
    }

    fn push(&mut self, shape: &Shape, index: u64, entry: &Entry<'_>) -> Result<()> {
        let number = self.number(shape, index);
        let offset = index - self.start - (number << self.shift);
        self.last = self.last.max(index);
        let need = entry.payload.len() + LINK_BYTES + ENTRY_HEAD;
        let buffer = &self.shards.entry(number).or_default().buffer;
        // A buffer that must grow doubles: looked at before, so that the budget holds at all times.
        if buffer.capacity() - buffer.len() < need && self.used + buffer.capacity().max(need) > shape.memory {
            self.spill_down_to(shape, shape.memory / 2)?;
        }
        let shard = self.shards.entry(number).or_default();
        let capacity = shard.buffer.capacity();
        if shard.buffer.is_empty() {
            shard.buffer.extend_from_slice(&[0; LINK_BYTES]);
        }
        let before = shard.buffer.len();
        Entry { offset, ..*entry }.encode(&mut shard.buffer);
        shard.bytes += (shard.buffer.len() - before) as u64;
        self.used += shard.buffer.capacity() - capacity;
        if self.used > shape.memory {
            self.spill_down_to(shape, shape.memory / 2)?;
        }
        Ok(())
    }

    /// Writes out the largest buffers, until the rest takes no more than `target` bytes.
    fn spill_down_to(&mut self, shape: &Shape, target: usize) -> Result<()> {
        if self.used <= target {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(temp_file(shape)?),
        };
        let mut buffers: Vec<(usize, &mut Shard)> =
            self.shards.values_mut().map(|shard| (shard.buffer.capacity(), shard)).filter(|(c, _)| *c > 0).collect();
        buffers.sort_unstable_by_key(|(capacity, _)| std::cmp::Reverse(*capacity));
        for (capacity, shard) in buffers {
            if self.used <= target {
                break;
            }
            let mut buffer = std::mem::take(&mut shard.buffer);
            self.used -= capacity;
            if let Some(link) = buffer.first_chunk_mut() {
                *link = shard.spilled.encode();
            }
            drill::step("spill", "answers");
            file.write_all_at(&buffer, self.end).map_err(|e| spill_error("spill answers to", shape, &e))?;
            shard.spilled = Link { offset: self.end, bytes: buffer.len() as u64 };
            self.end += buffer.len() as u64;
        }
        Ok(())
    }

    /// The first shard that holds anything from `index` on: its number, its range, its bytes.
    fn find(&self, shape: &Shape, index: u64) -> Option<(u64, Range, u64)> {
        let first = self.number(shape, index);
        let (number, shard) = self.shards.range(first..).next()?;
        (index <= self.last).then(|| (*number, self.range(shape, *number), shard.bytes))
    }

    fn take(&mut self, number: u64) -> Shard {
        let shard = self.shards.remove(&number).unwrap_or_default();
        self.used -= shard.buffer.capacity();
        shard
    }

    /// Calls `each` for the entries of a shard, in no particular order.
    fn read(
        &self,
        shape: &Shape,
        shard: &Shard,
        block: &mut Vec<u8>,
        mut each: impl FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<()> {
        let torn = || Error::new(Kind::Io, format!("answers spilled to {} came back torn", shape.tmp_dir.display()));
        let mut link = shard.spilled;
        while link.bytes > 0 {
            let file = self.file.as_ref().ok_or_else(torn)?;
            let (mut at, end) = (link.offset, link.offset + link.bytes);
            let mut head = [0; LINK_BYTES];
            file.read_exact_at(&mut head, at).map_err(|e| spill_error("read answers spilled to", shape, &e))?;
            at += LINK_BYTES as u64;
            block.clear();
            while at < end {
                let have = block.len();
                let more = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
                block.resize(have + more, 0);
                file.read_exact_at(block.get_mut(have..).unwrap_or_default(), at)
                    .map_err(|e| spill_error("read answers spilled to", shape, &e))?;
                at += more as u64;
                let left = decode_all(block, &mut each)?;
                block.drain(..block.len() - left);
            }
            if !block.is_empty() {
                return Err(torn());
            }
            block.shrink_to(2 * READ_BYTES);
            link = Link::decode(head);
        }
        match decode_all(shard.buffer.get(LINK_BYTES..).unwrap_or_default(), &mut each)? {
            0 => Ok(()),
            _ => Err(torn()),
        }
    }
}

fn temp_file(shape: &Shape) -> Result<File> {
    tempfile::tempfile_in(&shape.tmp_dir).map_err(|e| spill_error("make a temp file in", shape, &e))
}

fn spill_error(operation: &str, shape: &Shape, error: &std::io::Error) -> Error {
    Error::io(operation, &shape.tmp_dir, error).fix("make room there, or name another directory with --tmp-dir")
}

/// One answer, as it is kept in buffers and in the file: four varints and the payload.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    /// Index, from the start of the shard.
    offset: u64,
    analysis: usize,
    is_value: bool,
    rank: u64,
    payload: &'a [u8],
}

/// Most bytes of an entry before its payload.
const ENTRY_HEAD: usize = 40;

impl<'a> Entry<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(self.offset, out);
        put_varint((self.analysis as u64) << 1 | u64::from(self.is_value), out);
        put_varint(self.rank, out);
        put_varint(self.payload.len() as u64, out);
        out.extend_from_slice(self.payload);
    }

    /// Takes an entry off the front; `None` if it is not all there.
    fn decode(bytes: &mut &'a [u8]) -> Option<Self> {
        let mut rest = *bytes;
        let offset = take_varint(&mut rest)?;
        let analysis = take_varint(&mut rest)?;
        let rank = take_varint(&mut rest)?;
        let len = usize::try_from(take_varint(&mut rest)?).ok()?;
        let (payload, rest) = rest.split_at_checked(len)?;
        *bytes = rest;
        Some(Self {
            offset,
            analysis: usize::try_from(analysis >> 1).ok()?,
            is_value: analysis & 1 == 1,
            rank,
            payload,
        })
    }
}

/// Returns how many bytes are left: the beginning of an entry that is not all there.
fn decode_all(mut bytes: &[u8], each: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<usize> {
    while let Some(entry) = Entry::decode(&mut bytes) {
        each(entry)?;
    }
    Ok(bytes.len())
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "seven bits are left")]
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The answers of one shard, folded.
#[derive(Debug)]
struct Table {
    analyses: usize,
    start: u64,
    last: u64,
    cells: Vec<Kept>,
    /// Cells that hold something, so that a table with little in it costs little.
    touched: Vec<usize>,
    arena: Vec<u8>,
    /// Bytes of the arena that no cell refers to.
    garbage: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    start: usize,
    len: usize,
    rank: u64,
    state: State,
    conflict: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Absent,
    Fault,
    Value,
}

impl Kept {
    fn payload<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        arena.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl Table {
    fn new(shape: &Shape) -> Self {
        let cells = vec![Kept::default(); shape.analyses << shape.leaf_shift];
        let (touched, arena) = (Vec::new(), Vec::new());
        Self { analyses: shape.analyses, start: 0, last: 0, cells, touched, arena, garbage: 0 }
    }

    fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    fn clear(&mut self) {
        for at in self.touched.drain(..) {
            if let Some(kept) = self.cells.get_mut(at) {
                *kept = Kept::default();
            }
        }
        self.arena.clear();
        self.arena.shrink_to(ARENA_BYTES);
        self.garbage = 0;
    }

    fn cover(&mut self, range: Range) {
        (self.start, self.last) = (range.start, range.last);
    }

    fn row(&self, index: u64) -> Row<'_> {
        let first = index.checked_sub(self.start).filter(|_| index <= self.last).and_then(|n| usize::try_from(n).ok());
        let cells = first.and_then(|row| self.cells.get(row * self.analyses..(row + 1) * self.analyses));
        Row { cells: cells.unwrap_or_default(), arena: &self.arena }
    }

    /// The (index, analysis) of a cell.
    fn place(&self, at: usize) -> (u64, usize) {
        (self.start + (at / self.analyses) as u64, at % self.analyses)
    }

    fn fold(&mut self, entry: &Entry<'_>) {
        let at = usize::try_from(entry.offset).map_or(usize::MAX, |row| row * self.analyses + entry.analysis);
        let Some(kept) = self.cells.get_mut(at) else { return };
        let old = kept.payload(&self.arena);
        let precedes = (entry.rank, entry.payload) < (kept.rank, old);
        let wins = match (kept.state, entry.is_value) {
            (State::Absent, _) => {
                self.touched.push(at);
                true
            }
            (State::Fault, true) => true,
            (State::Fault, false) => precedes,
            (State::Value, false) => false,
            (State::Value, true) if old == entry.payload => {
                kept.rank = kept.rank.min(entry.rank);
                false
            }
            (State::Value, true) => {
                kept.conflict = true;
                precedes
            }
        };
        if !wins {
            return;
        }
        self.garbage += kept.len;
        kept.state = if entry.is_value { State::Value } else { State::Fault };
        (kept.start, kept.len, kept.rank) = (self.arena.len(), entry.payload.len(), entry.rank);
        self.arena.extend_from_slice(entry.payload);
        if self.garbage > GARBAGE_BYTES && self.garbage > self.arena.len() / 2 {
            self.compact();
        }
    }

    /// Moves the payloads together that cells refer to.
    fn compact(&mut self) {
        let start = |at: &usize| self.cells.get(*at).map_or(0, |kept| kept.start);
        self.touched.sort_unstable_by_key(start);
        let mut end = 0;
        for at in &self.touched {
            if let Some(kept) = self.cells.get_mut(*at) {
                self.arena.copy_within(kept.start..kept.start + kept.len, end);
                kept.start = end;
                end += kept.len;
            }
        }
        self.arena.truncate(end);
        self.garbage = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// index, analysis, rank, a value or a fault, its payload.
    type Answer = (u64, usize, u64, bool, Vec<u8>);
    type Cells = BTreeMap<(u64, usize), (bool, u64, Vec<u8>, bool)>;

    const ANALYSES: usize = 3;

    fn answers() -> impl Strategy<Value = Vec<Answer>> {
        let index =
            prop_oneof![0u64..30, 0u64..300, (1u64 << 40)..(1 << 40) + 20, u64::MAX - 3..=u64::MAX, any::<u64>()];
        let payload = prop_oneof![
            proptest::collection::vec(b'a'..b'c', 0..3),
            (b'x'..=b'z', 0usize..2000).prop_map(|(byte, len)| vec![byte; len])
        ];
        proptest::collection::vec((index, 0..ANALYSES, 0u64..6, any::<bool>(), payload), 0..200)
    }

    /// The rule of the contract, in the words of the contract.
    fn naive(answers: &[Answer]) -> Cells {
        let mut places: BTreeMap<(u64, usize), Vec<&Answer>> = BTreeMap::new();
        for answer in answers {
            places.entry((answer.0, answer.1)).or_default().push(answer);
        }
        places
            .into_iter()
            .map(|(place, all)| {
                let values: Vec<_> = all.iter().filter(|a| a.3).collect();
                let of = if values.is_empty() { all.iter().collect() } else { values };
                let first = of.iter().min_by_key(|a| (a.2, &a.4)).expect("one at least");
                (place, (first.3, 0, first.4.clone(), first.3 && of.iter().any(|a| a.4 != first.4)))
            })
            .collect()
    }

    fn fill(mut store: AnswerStore, answers: &[Answer]) -> Joined {
        for (index, analysis, rank, is_value, payload) in answers {
            match is_value {
                true => store.push_value(*index, *analysis, *rank, payload).expect("pushed"),
                false => store.push_fault(*index, *analysis, *rank, payload).expect("pushed"),
            }
            assert!(store.level.used <= store.shape.memory, "over the budget");
        }
        store.join()
    }

    fn take(joined: &mut Joined, index: u64, cells: &mut Cells) {
        let row = joined.row(index).expect("a row");
        for analysis in 0..ANALYSES {
            let (is_value, payload) = match row.cell(analysis) {
                Cell::Absent => continue,
                Cell::Value(payload) => (true, payload.to_vec()),
                Cell::Fault(payload) => (false, payload.to_vec()),
            };
            cells.insert((index, analysis), (is_value, 0, payload, row.conflict(analysis)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]
        #[test]
        fn joining_is_the_naive_join(
            answers in answers(),
            shuffled in any::<u64>(),
            (memory, leaf_shift, fan) in (prop_oneof![Just(1u64), Just(64), Just(1 << 10), Just(1 << 20)], 0u32..6, 2u64..20),
            posts in 0u64..400,
        ) {
            let expected = naive(&answers);
            let mut answers = answers;
            answers.sort_by_key(|a| (a.0 ^ a.2 ^ a.4.len() as u64).wrapping_mul(shuffled | 1));
            let dir = std::env::temp_dir();
            let store = AnswerStore::with_shape(ANALYSES, memory, &dir, leaf_shift, fan).expect("a store");
            let mut joined = fill(store, &answers);
            let mut cells = Cells::new();
            for index in 0..posts {
                take(&mut joined, index, &mut cells);
            }
            let mut beyond = Vec::new();
            joined.beyond(posts, |index, analysis, _| { beyond.push((index, analysis)); Ok(()) }).expect("the rest");
            let (before, after): (Cells, Cells) = expected.into_iter().partition(|((index, _), _)| *index < posts);
            prop_assert_eq!(cells, before);
            prop_assert_eq!(beyond, after.into_keys().collect::<Vec<_>>());
        }

        #[test]
        fn gaps_are_passed_over(answers in answers(), step in 1u64..50) {
            let expected = naive(&answers);
            let store = AnswerStore::with_shape(ANALYSES, 256, &std::env::temp_dir(), 2, 8).expect("a store");
            let mut joined = fill(store, &answers);
            let mut cells = Cells::new();
            for index in (0..400).step_by(usize::try_from(step).expect("small")) {
                take(&mut joined, index, &mut cells);
            }
            let asked = |(index, _): &(u64, usize)| *index < 400 && index % step == 0;
            prop_assert_eq!(cells, expected.into_iter().filter(|(place, _)| asked(place)).collect());
        }

        #[test]
        fn varints_round_trip(value: u64) {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            for end in 0..bytes.len() {
                prop_assert_eq!(take_varint(&mut &bytes[..end]), None);
            }
            prop_assert_eq!(take_varint(&mut bytes.as_slice()), Some(value));
        }
    }

    #[test]
    fn duplicates_of_one_cell_do_not_grow() {
        let store = AnswerStore::with_shape(2, 64 << 10, &std::env::temp_dir(), 4, 16).expect("a store");
        let value = |n: u64| vec![b'0' + u8::try_from(n % 7).expect("small"); 1000];
        // The rank falls, so that each different value wins over the one before.
        let answers: Vec<Answer> = (0..5_000).map(|n| (3, 1, 5_000 - n, true, value(n))).collect();
        let mut joined = fill(store, &answers);
        let row = joined.row(3).expect("a row");
        assert_eq!((row.cell(1), row.conflict(1)), (Cell::Value(&value(4_999)), true));
        assert!(joined.table.arena.len() < 3 * GARBAGE_BYTES, "{} bytes for one cell", joined.table.arena.len());
    }

    #[test]
    fn many_far_indexes_take_no_longer_than_near_ones() {
        let mut store = AnswerStore::new(6, 1 << 20, &std::env::temp_dir()).expect("a store");
        let far = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for n in 1..=50_000 {
            store.push_value(far(n), 5, n, b"1").expect("pushed");
        }
        let mut last = 0;
        let mut count = 0;
        let each = |index, analysis, _: Cell<'_>| {
            assert!(index > last && analysis == 5, "in order");
            (last, count) = (index, count + 1);
            Ok(())
        };
        store.join().beyond(0, each).expect("all of them");
        assert_eq!(count, 50_000);
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_at_once() {
        let error = AnswerStore::new(6, 1, Path::new("/nowhere")).expect_err("refused");
        assert!(error.to_string().contains("/nowhere") && error.to_string().contains("--tmp-dir"), "{error}");
        assert_eq!(error.kind(), Kind::Io);
    }
}
