//! An external sort: entries come in any order and number, and are given back in the order of their [`Key`]s.
//!
//! Indexes are cut into *shards*, ranges of a fixed width; the last shard takes all higher indexes. Each shard has a buffer, and
//! one budget of bytes (`--memory`) holds for all buffers together. When it is used up, the largest buffers are appended to one
//! temp file without a name, which is gone when the process is, however it ends. A shard is sorted when it is read back. One
//! that is too large for that, in bytes or in entries, becomes sorted runs in the same file, and these are merged. So memory
//! depends neither on the number of entries nor on how they are spread: 100 million entries of one index need no more.
//!
//! Nothing is folded here: entries of equal keys all come back. The join folds them as they go by (`flow/enhanced.rs`).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, btree_map},
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::{
    drill,
    error::{Error, Kind, Result},
};

/// Where an entry belongs, in the order in which entries are given back. Of one index and field, values come before faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub index: u64,
    pub field: u16,
    pub is_fault: bool,
    /// Precedence among entries of one index and field: the lowest comes first.
    pub rank: u64,
}

/// The field of an analysis, by its place in the set.
pub fn field(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}

/// Entries of one buffer, at most. A shard is as wide as that allows, if each index has one entry a field.
const ENTRIES: u64 = 1 << 16;
/// Shards, at most: 134 million posts with the six analyses have a shard of this width each.
const SHARDS: u64 = 1 << 14;
/// What is sorted at one time is at most this share of the budget, and this many full buffers; sorting takes 32 bytes an entry.
const SORTED_SHARE: usize = 4;
const SORTED_BUFFERS: u64 = 2;
/// The read buffer of one run. An entry that is larger makes it larger until the next one.
const READ_BYTES: usize = 16 << 10;
/// One write of a run to the temp file.
const WRITE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
struct Shape {
    /// A shard covers `1 << shift` indexes.
    shift: u32,
    shards: u64,
    /// Entries of one buffer, at most.
    entries: u64,
    /// Budget of bytes for buffers.
    memory: usize,
}

impl Shape {
    /// Bytes of one buffer, of entries that are sorted, and of the read buffers of a merge, at most.
    fn share(self) -> usize {
        self.memory / SORTED_SHARE
    }
}

/// Takes entries in any order.
#[derive(Debug)]
pub struct Shards {
    shape: Shape,
    shards: BTreeMap<u64, Shard>,
    /// Capacity of all buffers.
    used: usize,
    temp: Temp,
}

#[derive(Debug, Default)]
struct Shard {
    buffer: Vec<u8>,
    /// Of the buffer.
    entries: u64,
    /// What was spilled last.
    spilled: Link,
}

impl Shards {
    /// `fields` is how many fields an index has, `memory` the budget of bytes for entries that wait. The rest goes to a file
    /// without a name in `tmp_dir`; it is made now, so that a directory that cannot be used is known before the work.
    pub fn new(fields: usize, memory: u64, tmp_dir: &Path) -> Result<Self> {
        let width = ENTRIES / u64::try_from(fields).unwrap_or(ENTRIES).clamp(1, ENTRIES);
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        Self::with_shape(Shape { shift: width.ilog2(), shards: SHARDS, entries: ENTRIES, memory }, tmp_dir)
    }

    fn with_shape(shape: Shape, tmp_dir: &Path) -> Result<Self> {
        Ok(Self { shape, shards: BTreeMap::new(), used: 0, temp: Temp::create(tmp_dir)? })
    }

    pub fn push(&mut self, key: Key, payload: &[u8]) -> Result<()> {
        let number = (key.index >> self.shape.shift).min(self.shape.shards - 1);
        let head = Head::of(key, number << self.shape.shift, payload);
        let shard = self.shards.entry(number).or_default();
        if shard.buffer.len() + shard.need(payload) <= shard.buffer.capacity() && shard.entries < self.shape.entries {
            shard.put(&head, payload);
            return Ok(());
        }
        self.make_room(number, payload)?;
        let shard = self.shards.entry(number).or_default();
        let capacity = shard.buffer.capacity();
        shard.buffer.reserve(shard.need(payload));
        shard.put(&head, payload);
        self.used += shard.buffer.capacity() - capacity;
        if self.used > self.shape.memory { self.spill_down_to(self.shape.memory / 2) } else { Ok(()) }
    }

    /// Spills what must go before the buffer of a shard may grow, so that the budget holds at all times.
    fn make_room(&mut self, number: u64, payload: &[u8]) -> Result<()> {
        let Some(shard) = self.shards.get(&number) else { return Ok(()) };
        // A buffer that must grow doubles.
        let more = shard.buffer.capacity().max(shard.need(payload));
        if shard.entries >= self.shape.entries || shard.buffer.capacity() + more > self.shape.share() {
            self.spill(number)?;
        }
        if self.used + more > self.shape.memory { self.spill_down_to(self.shape.memory / 2) } else { Ok(()) }
    }

    /// Spills the largest buffers, until the rest takes no more than `target` bytes.
    fn spill_down_to(&mut self, target: usize) -> Result<()> {
        let sizes = self.shards.iter().map(|(number, shard)| (shard.buffer.capacity(), *number));
        let mut sizes: Vec<(usize, u64)> = sizes.filter(|(capacity, _)| *capacity > 0).collect();
        sizes.sort_unstable_by_key(|(capacity, number)| (Reverse(*capacity), *number));
        for (_, number) in sizes {
            if self.used <= target {
                break;
            }
            self.spill(number)?;
        }
        Ok(())
    }

    /// Appends the buffer of one shard to the temp file.
    fn spill(&mut self, number: u64) -> Result<()> {
        let Some(shard) = self.shards.get_mut(&number).filter(|shard| shard.entries > 0) else { return Ok(()) };
        let mut buffer = std::mem::take(&mut shard.buffer);
        self.used -= buffer.capacity();
        buffer.extend_from_slice(&shard.spilled.encode());
        drill::step("spill", "answers");
        let offset = self.temp.end;
        self.temp.write(&buffer, offset)?;
        self.temp.end += buffer.len() as u64;
        shard.spilled = Link { offset, bytes: buffer.len() as u64, entries: std::mem::take(&mut shard.entries) };
        Ok(())
    }

    /// No more entries come: they can be taken now.
    pub fn sorted(self) -> Sorted {
        let Self { shape, shards, temp, .. } = self;
        Sorted { shape, shards: shards.into_iter(), temp, merge: Merge::default() }
    }
}

impl Shard {
    /// Bytes that the buffer needs for an entry, and for the link behind the last one.
    fn need(&self, payload: &[u8]) -> usize {
        HEAD_BYTES + payload.len() + LINK_BYTES
    }

    fn put(&mut self, head: &Head, payload: &[u8]) {
        head.encode(&mut self.buffer);
        self.buffer.extend_from_slice(payload);
        self.entries += 1;
    }
}

/// Gives entries back in the order of their keys.
#[derive(Debug)]
pub struct Sorted {
    shape: Shape,
    /// The shards that are left.
    shards: btree_map::IntoIter<u64, Shard>,
    temp: Temp,
    /// The shard that is read.
    merge: Merge,
}

impl Sorted {
    /// The next entry: its key and its payload.
    #[expect(clippy::should_implement_trait, reason = "the payload is borrowed, and reading may fail")]
    pub fn next(&mut self) -> Result<Option<(Key, &[u8])>> {
        self.up_to(u64::MAX)
    }

    /// The next entry, if its index is `last` or lower.
    pub fn up_to(&mut self, last: u64) -> Result<Option<(Key, &[u8])>> {
        match self.index()? {
            Some(index) if index <= last => self.merge.give(&self.temp),
            _ => Ok(None),
        }
    }

    /// The index of the next entry.
    pub fn index(&mut self) -> Result<Option<u64>> {
        loop {
            if let Some((key, _)) = self.merge.first(&self.temp)? {
                return Ok(Some(key.index));
            }
            let Some((number, shard)) = self.shards.next() else { return Ok(None) };
            self.merge = Merge::default();
            self.merge = self.open(number << self.shape.shift, shard)?;
        }
    }

    /// Opens a shard that begins at `start`. It needs nothing of any other shard.
    fn open(&mut self, start: u64, shard: Shard) -> Result<Merge> {
        let Shard { buffer, entries, spilled } = shard;
        let (mut block, mut entries, mut rest) = self.load(buffer, entries, spilled)?;
        if rest.is_none() {
            let mut merge = Merge::of(start);
            merge.add(Source::of_block(block, entries), &self.temp)?;
            return Ok(merge);
        }
        let mut runs = Link::default();
        while entries > 0 {
            runs = self.write_sorted(&block, entries, runs)?;
            (block, entries, rest) = self.load(Vec::new(), 0, rest)?;
        }
        drop(block);
        loop {
            let (merge, rest) = self.merge_runs(start, runs)?;
            if rest.is_none() {
                return Ok(merge);
            }
            runs = self.merge_all(start, merge, rest)?;
        }
    }

    /// Appends what was spilled to `block`, as much as may be sorted at one time. Gives the block, its entries, and the link
    /// to what is left.
    fn load(&self, mut block: Vec<u8>, mut entries: u64, mut link: Link) -> Result<(Vec<u8>, u64, Link)> {
        while !link.is_none() {
            let bytes = usize::try_from(link.bytes).unwrap_or(usize::MAX);
            let fits = block.len() + bytes <= self.shape.share()
                && entries + link.entries <= self.shape.entries * SORTED_BUFFERS;
            if entries > 0 && !fits {
                break;
            }
            let end = block.len();
            block.resize(end + bytes, 0);
            self.temp.read(block.get_mut(end..).unwrap_or_default(), link.offset)?;
            entries += link.entries;
            link = block.last_chunk().map(Link::decode).unwrap_or_default();
            block.truncate(end + bytes - LINK_BYTES);
        }
        Ok((block, entries, link))
    }

    /// Writes a block as a sorted run, with a link to the run before it.
    fn write_sorted(&mut self, block: &[u8], entries: u64, before: Link) -> Result<Link> {
        let mut run = RunWriter::begin(&self.temp);
        for place in sort(block, entries) {
            let bytes = place.entry(block).ok_or_else(|| self.temp.torn())?;
            run.put(&self.temp, bytes)?;
        }
        run.end(&mut self.temp, before)
    }

    /// Merges as many runs of a shard as there may be read buffers, but at least two. Gives the link to those that are left.
    fn merge_runs(&self, start: u64, mut link: Link) -> Result<(Merge, Link)> {
        const AT_LEAST: usize = 2;
        let most = (self.shape.share() / READ_BYTES).max(AT_LEAST);
        let mut merge = Merge::of(start);
        while !link.is_none() && merge.sources.len() < most {
            let end = link.offset + link.bytes.saturating_sub(LINK_BYTES as u64);
            merge.add(Source::of_run(link.offset, end), &self.temp)?;
            let mut bytes = [0; LINK_BYTES];
            self.temp.read(&mut bytes, end)?;
            link = Link::decode(&bytes);
        }
        Ok((merge, link))
    }

    /// Merges all runs of a shard into fewer; the last of the new ones. `merge` are the first of them, `rest` the others.
    fn merge_all(&mut self, start: u64, mut merge: Merge, mut rest: Link) -> Result<Link> {
        let (mut merged, mut head) = (Link::default(), Vec::new());
        loop {
            let mut run = RunWriter::begin(&self.temp);
            while merge.first(&self.temp)?.is_some()
                && let Some((key, payload)) = merge.give(&self.temp)?
            {
                head.clear();
                Head::of(key, start, payload).encode(&mut head);
                run.put(&self.temp, &head)?;
                run.put(&self.temp, payload)?;
            }
            merged = run.end(&mut self.temp, merged)?;
            if rest.is_none() {
                return Ok(merged);
            }
            (merge, rest) = self.merge_runs(start, rest)?;
        }
    }
}

/// The sources of one shard, merged.
#[derive(Debug, Default)]
struct Merge {
    /// Where the shard begins.
    start: u64,
    sources: Vec<Source>,
    /// The next key and the place of its source.
    first: Option<(Key, usize)>,
    /// The same of the other sources.
    others: BinaryHeap<Reverse<(Key, usize)>>,
    /// The first entry was given. Its source moves on when the next one is asked for, since the payload is borrowed.
    is_given: bool,
}

impl Merge {
    fn of(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    fn add(&mut self, mut source: Source, temp: &Temp) -> Result<()> {
        if let Some(key) = source.advance(self.start, temp)? {
            let first = self.first.replace((key, self.sources.len()));
            self.sources.push(source);
            self.others.extend(first.map(Reverse));
            self.choose();
        }
        Ok(())
    }

    fn first(&mut self, temp: &Temp) -> Result<Option<&(Key, usize)>> {
        if std::mem::take(&mut self.is_given)
            && let Some((key, at)) = &mut self.first
            && let Some(source) = self.sources.get_mut(*at)
        {
            match source.advance(self.start, temp)? {
                Some(next) => {
                    *key = next;
                    self.choose();
                }
                None => {
                    *source = Source::default();
                    self.first = self.others.pop().map(|other| other.0);
                }
            }
        }
        Ok(self.first.as_ref())
    }

    /// Makes the lowest key the first.
    fn choose(&mut self) {
        if let Some(first) = &mut self.first
            && let Some(mut other) = self.others.peek_mut()
            && other.0 < *first
        {
            std::mem::swap(&mut other.0, first);
        }
    }

    /// The first entry, after [`Merge::first`] found it.
    fn give(&mut self, temp: &Temp) -> Result<Option<(Key, &[u8])>> {
        let Some((key, at)) = self.first else { return Ok(None) };
        self.is_given = true;
        let Some(source) = self.sources.get_mut(at) else { return Ok(None) };
        Ok(Some((key, source.payload(temp)?)))
    }
}

/// Entries in order: a block with the places of its entries, or a run that is read piece by piece.
#[derive(Debug, Default)]
struct Source {
    block: Vec<u8>,
    /// Where in the block the payload of the present entry begins, and how long it is.
    at: usize,
    len: usize,
    /// Of a block.
    places: Option<std::vec::IntoIter<Place>>,
    /// Of a run: where in the file it goes on, and where it ends.
    offset: u64,
    end: u64,
}

impl Source {
    fn of_block(block: Vec<u8>, entries: u64) -> Self {
        let places = Some(sort(&block, entries).into_iter());
        Self { block, places, ..Self::default() }
    }

    fn of_run(offset: u64, end: u64) -> Self {
        Self { offset, end, ..Self::default() }
    }

    /// Goes to the next entry and gives its key; `start` is that of the shard.
    fn advance(&mut self, start: u64, temp: &Temp) -> Result<Option<Key>> {
        let next = match &mut self.places {
            Some(places) => places.next().map(Place::at),
            None => {
                self.fill(self.at + self.len, HEAD_BYTES, temp)?;
                (self.at < self.block.len()).then_some(self.at)
            }
        };
        let Some(next) = next else { return Ok(None) };
        let (head, bytes) = Head::decode(self.block.get(next..).unwrap_or_default()).ok_or_else(|| temp.torn())?;
        (self.at, self.len) = (next + bytes, head.len);
        Ok(Some(head.key(start)))
    }

    fn payload(&mut self, temp: &Temp) -> Result<&[u8]> {
        if self.places.is_none() {
            self.fill(self.at, self.len, temp)?;
        }
        self.block.get(self.at..self.at + self.len).ok_or_else(|| temp.torn())
    }

    /// Reads on until the block holds `need` bytes from `at`, or all that the run has.
    fn fill(&mut self, at: usize, need: usize, temp: &Temp) -> Result<()> {
        self.at = at;
        let have = self.block.len().saturating_sub(at);
        if have >= need || self.offset == self.end {
            return Ok(());
        }
        self.block.drain(..at);
        self.at = 0;
        let room = need.max(READ_BYTES);
        self.block.shrink_to(room);
        let more = (room - have).min(usize::try_from(self.end - self.offset).unwrap_or(usize::MAX));
        self.block.resize(have + more, 0);
        temp.read(self.block.get_mut(have..).unwrap_or_default(), self.offset)?;
        self.offset += more as u64;
        Ok(())
    }
}

/// An entry of a block, to be sorted: its index, field and kind, and where in the block it is.
#[derive(Clone, Copy, Debug)]
struct Place(u128);

const AT_BITS: u32 = u128::BITS - u64::BITS - KIND_BITS;
/// A step of the radix sort.
const DIGIT_BITS: u32 = 8;
const DIGIT: u128 = (1 << DIGIT_BITS) - 1;

impl Place {
    fn new(head: &Head, at: usize) -> Self {
        Self(u128::from(head.offset) << u64::BITS | u128::from(head.kind()) << AT_BITS | at as u128)
    }

    fn at(self) -> usize {
        usize::try_from(self.0 & ((1 << AT_BITS) - 1)).unwrap_or(usize::MAX)
    }

    /// The bytes of the entry.
    fn entry(self, block: &[u8]) -> Option<&[u8]> {
        let bytes = block.get(self.at()..)?;
        let (head, payload) = Head::decode(bytes)?;
        bytes.get(..payload + head.len)
    }
}

/// The places of a block's entries, in order: a radix sort, so that the time is linear whatever the order was.
fn sort(block: &[u8], entries: u64) -> Vec<Place> {
    let mut places = Vec::with_capacity(usize::try_from(entries).unwrap_or_default());
    let mut at = 0;
    while let Some((head, bytes)) = Head::decode(block.get(at..).unwrap_or_default()) {
        places.push(Place::new(&head, at));
        at += bytes + head.len;
    }
    if !places.is_sorted_by_key(|place| place.0) {
        places = radix_sort(places);
    }
    let rank = |place: &Place| block.get(place.at()..).and_then(Head::decode).map_or(0, |(head, _)| head.rank);
    for equal in places.chunk_by_mut(|a, b| a.0 >> AT_BITS == b.0 >> AT_BITS).filter(|equal| equal.len() > 1) {
        equal.sort_by_key(rank);
    }
    places
}

fn radix_sort(mut places: Vec<Place>) -> Vec<Place> {
    let first = places.first().map_or(0, |place| place.0);
    let differing = places.iter().fold(0, |bits, place| bits | place.0 ^ first);
    let mut to = vec![Place(0); places.len()];
    for shift in (AT_BITS..u128::BITS).step_by(DIGIT_BITS as usize).filter(|shift| differing >> shift & DIGIT > 0) {
        let digit = |place: &Place| usize::try_from(place.0 >> shift & DIGIT).unwrap_or_default();
        // First how many places have each digit, then where the next place with it goes.
        let mut next = [0; 1 << DIGIT_BITS];
        for place in &places {
            if let Some(count) = next.get_mut(digit(place)) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for count in &mut next {
            sum += std::mem::replace(count, sum);
        }
        for place in &places {
            if let Some(next) = next.get_mut(digit(place))
                && let Some(to) = to.get_mut(*next)
            {
                *to = *place;
                *next += 1;
            }
        }
        std::mem::swap(&mut places, &mut to);
    }
    places
}

/// What stands before an entry's payload: a word of 32 bits, then the offset, the rank and the payload's length, each in as many
/// bytes as it needs. The word says how many (three bits each), and holds the field and the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// The index, from the start of the shard.
    offset: u64,
    field: u16,
    is_fault: bool,
    rank: u64,
    /// Bytes of the payload.
    len: usize,
}

const WORD_BYTES: usize = 4;
/// Bytes of a head, at most.
const HEAD_BYTES: usize = WORD_BYTES + 3 * 8;
/// The field, and whether it is a fault.
const KIND_BITS: u32 = u16::BITS + 1;

impl Head {
    fn of(key: Key, start: u64, payload: &[u8]) -> Self {
        let Key { index, field, is_fault, rank } = key;
        Self { offset: index - start, field, is_fault, rank, len: payload.len() }
    }

    fn key(&self, start: u64) -> Key {
        Key { index: start + self.offset, field: self.field, is_fault: self.is_fault, rank: self.rank }
    }

    fn kind(&self) -> u32 {
        u32::from(self.field) << 1 | u32::from(self.is_fault)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; HEAD_BYTES];
        let (mut word, mut at) = (self.kind(), WORD_BYTES);
        for (number, shift) in [self.offset, self.rank, self.len as u64].into_iter().zip((KIND_BITS..).step_by(3)) {
            let more = number.checked_ilog2().unwrap_or_default() / u8::BITS;
            word |= more << shift;
            if let Some(to) = bytes.get_mut(at..at + 8) {
                to.copy_from_slice(&number.to_le_bytes());
            }
            at += more as usize + 1;
        }
        if let Some(to) = bytes.first_chunk_mut() {
            *to = word.to_le_bytes();
        }
        out.extend_from_slice(bytes.get(..at).unwrap_or_default());
    }

    /// The head at the front, and how many bytes it has. `None`: it is not all there.
    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut padded = [0; HEAD_BYTES];
        let head = match bytes.first_chunk() {
            Some(head) => head,
            None => {
                padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
                &padded
            }
        };
        let word = u32::from_le_bytes(*head.first_chunk()?);
        let (mut numbers, mut at) = ([0; 3], WORD_BYTES);
        for (number, shift) in numbers.iter_mut().zip((KIND_BITS..).step_by(3)) {
            let more = word >> shift & 7;
            let all = u64::from_le_bytes(*head.get(at..)?.first_chunk()?);
            *number = all & u64::MAX >> (u64::BITS - u8::BITS * (more + 1));
            at += more as usize + 1;
        }
        let [offset, rank, len] = numbers;
        let is_fault = word & 1 == 1;
        #[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
        let field = (word >> 1) as u16;
        let head = Self { offset, field, is_fault, rank, len: usize::try_from(len).ok()? };
        (at <= bytes.len()).then_some((head, at))
    }
}

/// Where a spilled buffer or a run is in the temp file; no bytes: there is none. Each ends with the link to the one of the same
/// shard before it, so that a shard takes the same memory however often it was spilled.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    offset: u64,
    /// With the link at its end.
    bytes: u64,
    /// Of a spilled buffer; of a run it is not needed.
    entries: u64,
}

const LINK_BYTES: usize = 3 * 8;

impl Link {
    fn is_none(self) -> bool {
        self.bytes == 0
    }

    fn encode(self) -> [u8; LINK_BYTES] {
        let mut bytes = [0; LINK_BYTES];
        for (to, number) in bytes.chunks_exact_mut(8).zip([self.offset, self.bytes, self.entries]) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; LINK_BYTES]) -> Self {
        let mut numbers =
            bytes.chunks_exact(8).map(|from| from.first_chunk().map_or(0, |from| u64::from_le_bytes(*from)));
        let mut next = || numbers.next().unwrap_or_default();
        Self { offset: next(), bytes: next(), entries: next() }
    }
}

/// The temp file.
#[derive(Debug)]
struct Temp {
    file: File,
    end: u64,
    dir: PathBuf,
}

impl Temp {
    fn create(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|e| temp_error("make a temp file in", dir, &e))?;
        Ok(Self { file, end: 0, dir: dir.to_owned() })
    }

    fn read(&self, to: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(to, offset).map_err(|e| temp_error("read answers spilled to", &self.dir, &e))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| temp_error("spill answers to", &self.dir, &e))
    }

    fn torn(&self) -> Error {
        Error::new(Kind::Io, format!("answers spilled to {} came back torn", self.dir.display()))
    }
}

fn temp_error(operation: &str, dir: &Path, error: &std::io::Error) -> Error {
    Error::io(operation, dir, error).fix("make room there, or name another directory with --tmp-dir")
}

/// Appends one run to the temp file.
#[derive(Debug)]
struct RunWriter {
    start: u64,
    /// Where the block goes.
    at: u64,
    block: Vec<u8>,
}

impl RunWriter {
    fn begin(temp: &Temp) -> Self {
        Self { start: temp.end, at: temp.end, block: Vec::new() }
    }

    fn put(&mut self, temp: &Temp, bytes: &[u8]) -> Result<()> {
        self.block.extend_from_slice(bytes);
        if self.block.len() < WRITE_BYTES { Ok(()) } else { self.flush(temp) }
    }

    fn flush(&mut self, temp: &Temp) -> Result<()> {
        temp.write(&self.block, self.at)?;
        self.at += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    fn end(mut self, temp: &mut Temp, before: Link) -> Result<Link> {
        self.block.extend_from_slice(&before.encode());
        drill::step("spill", "run");
        self.flush(temp)?;
        temp.end = self.at;
        Ok(Link { offset: self.start, bytes: self.at - self.start, entries: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Entry = (Key, Vec<u8>);

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let index =
            prop_oneof![0u64..30, 0u64..300, (1u64 << 40)..(1 << 40) + 20, u64::MAX - 3..=u64::MAX, any::<u64>()];
        let payload = prop_oneof![
            proptest::collection::vec(b'a'..b'c', 0..3),
            (b'x'..=b'z', 0usize..2000).prop_map(|(byte, len)| vec![byte; len]),
            (b'x'..=b'z', READ_BYTES - 60..2 * READ_BYTES).prop_map(|(byte, len)| vec![byte; len]),
        ];
        let key = (index, prop_oneof![0u16..3, Just(u16::MAX)], any::<bool>(), prop_oneof![0u64..6, any::<u64>()]);
        let key = key.prop_map(|(index, field, is_fault, rank)| Key { index, field, is_fault, rank });
        proptest::collection::vec((key, payload), 0..200)
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let memory = prop_oneof![Just(1usize), Just(64), Just(1 << 10), Just(1 << 20)];
        (0u32..6, 2u64..20, prop_oneof![1u64..50, Just(ENTRIES)], memory)
            .prop_map(|(shift, shards, entries, memory)| Shape { shift, shards, entries, memory })
    }

    fn filled(shape: Shape, entries: &[Entry]) -> Sorted {
        let mut shards = Shards::with_shape(shape, &std::env::temp_dir()).expect("shards");
        for (key, payload) in entries {
            shards.push(*key, payload).expect("pushed");
            assert!(shards.used <= shape.memory, "over the budget");
            let held: usize = shards.shards.values().map(|shard| shard.buffer.capacity()).sum();
            assert_eq!(shards.used, held);
        }
        shards.sorted()
    }

    fn take_all(mut sorted: Sorted) -> Vec<Entry> {
        let mut taken = Vec::new();
        while let Some((key, payload)) = sorted.next().expect("read") {
            taken.push((key, payload.to_vec()));
        }
        assert_eq!(sorted.index().expect("read"), None, "the end stays the end");
        taken
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]
        #[test]
        fn entries_come_back_in_order(mut entries in entries(), shape in shape()) {
            let mut taken = take_all(filled(shape, &entries));
            prop_assert!(taken.is_sorted_by_key(|(key, _)| *key), "in order");
            // Entries of one key may come in any order.
            entries.sort();
            taken.sort();
            prop_assert_eq!(taken, entries);
        }

        #[test]
        fn heads_round_trip(offset: u64, field: u16, is_fault: bool, rank: u64, len: usize) {
            let head = Head { offset, field, is_fault, rank, len };
            let mut bytes = Vec::new();
            head.encode(&mut bytes);
            prop_assert!(bytes.len() <= HEAD_BYTES);
            for end in 0..bytes.len() {
                prop_assert_eq!(Head::decode(&bytes[..end]), None);
            }
            prop_assert_eq!(Head::decode(&bytes), Some((head, bytes.len())));
        }
    }

    #[test]
    fn entries_of_one_index_take_no_more_memory() {
        const COUNT: u64 = 100_000;
        let mut shards = Shards::new(2, 64 << 10, &std::env::temp_dir()).expect("shards");
        for n in 0..COUNT {
            // The rank falls, so that no run continues the one before.
            let key = Key { index: u64::MAX, field: 1, is_fault: false, rank: COUNT - n };
            shards.push(key, b"0123456789").expect("pushed");
        }
        let mut sorted = shards.sorted();
        for rank in 1..=COUNT {
            let (key, payload) = sorted.next().expect("read").expect("an entry");
            assert_eq!((key.rank, payload), (rank, &b"0123456789"[..]));
            let held: usize = sorted.merge.sources.iter().map(|source| source.block.capacity()).sum();
            assert!(held <= 128 << 10, "{held} bytes of read buffers");
        }
        assert_eq!(sorted.next().expect("read"), None);
    }

    #[test]
    fn a_large_entry_takes_memory_only_while_it_is_given() {
        const LARGE: usize = 1 << 20;
        let mut shards = Shards::new(2, 64 << 10, &std::env::temp_dir()).expect("shards");
        for index in 0..20 {
            let key = Key { index, field: 0, is_fault: false, rank: 0 };
            shards.push(key, &vec![b'x'; LARGE]).expect("pushed");
        }
        let mut sorted = shards.sorted();
        for _ in 0..20 {
            assert_eq!(sorted.next().expect("read").map(|(_, payload)| payload.len()), Some(LARGE));
            let held: usize = sorted.merge.sources.iter().map(|source| source.block.capacity()).sum();
            assert!(held < 2 * LARGE, "{held} bytes of read buffers");
        }
    }

    #[test]
    fn many_far_indexes_take_no_longer_than_near_ones() {
        let mut shards = Shards::new(6, 1 << 20, &std::env::temp_dir()).expect("shards");
        let far = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for n in 1..=50_000 {
            shards.push(Key { index: far(n), field: 5, is_fault: false, rank: n }, b"1").expect("pushed");
        }
        let taken = take_all(shards.sorted());
        assert!(taken.len() == 50_000 && taken.is_sorted());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named_at_once() {
        let error = Shards::new(6, 1, Path::new("/nowhere")).expect_err("refused");
        assert!(error.to_string().contains("/nowhere") && error.to_string().contains("--tmp-dir"), "{error}");
        assert_eq!(error.kind(), Kind::Io);
    }
}
