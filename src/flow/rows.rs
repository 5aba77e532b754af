//! The rows of a chunk, and how much of them its results files hold: what was submitted is answered, faulted or absent,
//! and nothing else counts (`docs/reliability.md` S9).

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{CustomId, results::parse_result};
use crate::{
    error::{Error, Result},
    folder::Entry,
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
    },
    units::sum,
};

/// A file of ranges: at most 50,000 lines.
const LARGEST: u64 = 16 << 20;
/// No provider takes a file of so many lines: a chunk that is said to have more was not cut by us.
pub const MOST_ROWS: u64 = 1 << 20;
/// A result line holds one answer; a longer one is damage, and is read past in constant memory.
pub const LONGEST_RESULT: u64 = 64 << 20;

/// The indexes of a chunk's rows, as ranges: what its results may name. At most one range a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowSet {
    /// Ascending, apart from each other, ends included.
    ranges: Vec<(u64, u64)>,
}

impl RowSet {
    /// All indexes from `first` to `last`.
    pub fn range(first: u64, last: u64) -> Self {
        Self { ranges: vec![(first, last)] }
    }

    /// `false`: it was there.
    pub fn insert(&mut self, index: u64) -> bool {
        let at = self.ranges.partition_point(|(_, last)| *last < index);
        if self.ranges.get(at).is_some_and(|(first, _)| *first <= index) {
            return false;
        }
        let joins_after = self.ranges.get(at).is_some_and(|(first, _)| index + 1 == *first);
        let before = at.checked_sub(1).and_then(|before| self.ranges.get_mut(before));
        match before.filter(|(_, last)| *last + 1 == index) {
            Some(before) if !joins_after => before.1 = index,
            Some(_) => {
                let (_, last) = self.ranges.remove(at);
                if let Some(before) = self.ranges.get_mut(at - 1) {
                    before.1 = last;
                }
            }
            None => match self.ranges.get_mut(at) {
                Some(after) if joins_after => after.0 = index,
                _ => self.ranges.insert(at, (index, index)),
            },
        }
        true
    }

    pub fn contains(&self, index: u64) -> bool {
        let at = self.ranges.partition_point(|(_, last)| *last < index);
        self.ranges.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub fn len(&self) -> u64 {
        sum(self.ranges.iter().map(|(first, last)| (last - first).saturating_add(1)))
    }

    pub fn indexes(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The least index and the greatest.
    pub fn ends(&self) -> Option<(u64, u64)> {
        Some((self.ranges.first()?.0, self.ranges.last()?.1))
    }

    pub fn to_text(&self) -> String {
        self.ranges.iter().map(|(first, last)| format!("{first}-{last}\n")).collect()
    }

    /// # Errors
    /// The file is not there, or is not what [`RowSet::to_text`] wrote.
    pub fn read(file: &Entry) -> Result<Self> {
        if !file.exists()? {
            return Err(Self::gone(file));
        }
        Self::parse(&file.read_small(LARGEST)?).map_err(|what| Error::input(format!("{file}: {what}")))
    }

    /// # Errors
    /// A line that is no range, by number.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let range = line.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            match range {
                Some((first, last)) if first <= last && ranges.last().is_none_or(|(_, end)| *end < first) => {
                    ranges.push((first, last));
                }
                _ => return Err(format!("line {} is not a range of indexes", number + 1)),
            }
        }
        let rows = Self { ranges };
        if rows.len() > MOST_ROWS {
            return Err(format!("it holds {} indexes, and no chunk has more than {MOST_ROWS}", rows.len()));
        }
        Ok(rows)
    }
}

impl RowSet {
    /// Of a file of the chunk that nothing here tells again.
    pub fn gone(file: &Entry) -> Error {
        Error::input(format!("{file}: it is gone")).fix(
            "run the command that cut the chunk (zbatch run, gen -d or chunk -d) again with the same input: it makes the file \
             again and pays for nothing twice; `zbatch fetch` fetches all other chunks",
        )
    }
}

/// The rows of a chunk that no line of its results has answered.
#[derive(Debug)]
pub struct Unanswered {
    indexes: Vec<u64>,
    is_answered: Vec<bool>,
    /// The place that comes after the last one: results often come in order.
    next: usize,
}

impl Unanswered {
    pub fn of(rows: &RowSet) -> Self {
        let indexes: Vec<u64> = rows.indexes().collect();
        Self { is_answered: vec![false; indexes.len()], indexes, next: 0 }
    }

    pub fn remove(&mut self, index: u64) {
        let at = match self.indexes.get(self.next) {
            Some(next) if *next == index => self.next,
            _ => self.indexes.binary_search(&index).unwrap_or(usize::MAX),
        };
        if let Some(is_answered) = self.is_answered.get_mut(at) {
            *is_answered = true;
            self.next = at + 1;
        }
    }

    pub fn indexes(&self) -> impl Iterator<Item = u64> {
        self.indexes.iter().zip(&self.is_answered).filter(|(_, is_answered)| !**is_answered).map(|(index, _)| *index)
    }
}

/// The rows of a chunk after its results were verified: `submitted = results + absent` (`docs/reliability.md` S9).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowBalance {
    /// Rows of the chunk that the output file, the error file holds.
    pub output: u64,
    pub error: u64,
    pub absent: u64,
    /// Lines that are no row of this chunk, and lines that cannot be read.
    pub foreign: u64,
    pub bad: u64,
    /// A file came shorter than its batch had promised, or not at all.
    #[serde(default)]
    pub short: bool,
    /// Answers came, and none of them has text where text stands: this is another format, not a bad model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub textless: bool,
    /// A results file was not at the provider, however long it was asked for. What it has may still come to light.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// The output file and the error file as they were counted, where there is one. `None`: counted before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<[Option<FileMark>; 2]>,
}

/// A file's length and hash: what tells later whether it is still the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    pub bytes: u64,
    /// In hexadecimal.
    pub blake3: String,
}

impl FileMark {
    pub fn of(file: &Entry) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file.open()?).map_err(|e| Error::io("read", file.path(), &e))?;
        Ok(Self::taken(&hasher))
    }

    fn taken(hasher: &blake3::Hasher) -> Self {
        Self { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() }
    }
}

/// Takes the mark of a file while somebody else reads it.
#[derive(Debug)]
struct Marking {
    file: File,
    hasher: Arc<Mutex<blake3::Hasher>>,
}

impl Read for Marking {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(to)?;
        let mut hasher = self.hasher.lock().unwrap_or_else(PoisonError::into_inner);
        hasher.update(to.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Absent rows that are named.
const NAMED: usize = 5;

/// A results file, byte for byte: whatever it begins with, nothing is decoded.
pub fn read_results(file: &Entry) -> Result<LineReader> {
    Ok(lines_of(file.open()?, file))
}

fn lines_of(reader: impl Read + Send + 'static, file: &Entry) -> LineReader {
    let input = Input { reader: Box::new(reader), name: file.to_string() };
    LineReader::new(input, Shape::Lines, LONGEST_RESULT, 0)
}

/// Counts the lines of a chunk's results files that are there, output first, and names the first absent rows. A row
/// counts where it is first seen. A file whose last line is torn is short. The mark of each file is taken on the way.
pub fn verify(files: &[Entry; 2], analysis: &str, rows: &RowSet) -> Result<(RowBalance, Vec<u64>)> {
    let mut balance = RowBalance::default();
    let mut seen = RowSet::default();
    let mut marks = [None, None];
    let (mut texts, mut blanks) = (false, false);
    for (at, (path, mark)) in files.iter().zip(&mut marks).enumerate() {
        let Some(file) = path.find()? else { continue };
        let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
        let mut reader = lines_of(Marking { file, hasher: Arc::clone(&hasher) }, path);
        let mut block = Block::default();
        let mut last_is_bad = false;
        while reader.fill(&mut block)? {
            for line in block.lines() {
                let result = parse_result(line.bytes).ok().filter(|_| !line.too_long);
                last_is_bad = result.is_none();
                let Some(result) = result else {
                    balance.bad += 1;
                    continue;
                };
                texts |= result.has_text == Some(true);
                blanks |= result.has_text == Some(false);
                match CustomId::parse(&result.custom_id)
                    .filter(|id| id.analysis == analysis && rows.contains(id.index.0))
                {
                    None => balance.foreign += 1,
                    Some(id) if !seen.insert(id.index.0) => {}
                    Some(_) if at == 0 => balance.output += 1,
                    Some(_) => balance.error += 1,
                }
            }
        }
        balance.short |= last_is_bad && !ends_in_line_feed(path)?;
        *mark = Some(FileMark::taken(&hasher.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    balance.files = Some(marks);
    balance.textless = blanks && !texts;
    balance.absent = rows.len() - seen.len();
    let absent = rows.indexes().filter(|index| !seen.contains(*index)).take(NAMED).collect();
    Ok((balance, absent))
}

fn ends_in_line_feed(path: &Entry) -> Result<bool> {
    let mut file = path.open()?;
    let mut last = || {
        file.seek(SeekFrom::End(-1))?;
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        Ok(byte == *b"\n")
    };
    last().map_err(|e| Error::io("read", path.path(), &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s9_rows_balance() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = |id: &str| format!("{{\"custom_id\":\"{id}\",\"response\":{{}}}}\n");
        let output =
            [line("a_0001"), line("a_2"), line("a_0001"), line("a_9"), line("b_1"), "torn {\n".to_owned()].concat();
        let files = ["output", "error"].map(|name| Entry::of(&dir.path().join(name)).expect("opened"));
        files[0].write(output.as_bytes()).expect("written");
        files[1].write(line("a_3").as_bytes()).expect("written");
        let rows = RowSet::parse("1-4\n").expect("ranges");
        let mark = |text: &str| Some(FileMark::taken(blake3::Hasher::new().update(text.as_bytes())));
        let marks = Some([mark(&output), mark(&line("a_3"))]);
        // The lines have responses without choices.
        let balance = RowBalance {
            output: 2,
            error: 1,
            absent: 1,
            foreign: 2,
            bad: 1,
            short: false,
            textless: true,
            missing: false,
            files: marks,
        };
        assert_eq!(verify(&files, "a", &rows).expect("read"), (balance.clone(), vec![4]));
        // The same without the last line feed was cut off within a line.
        files[0].write(output.trim_end().as_bytes()).expect("written");
        let marks = Some([mark(output.trim_end()), mark(&line("a_3"))]);
        assert_eq!(verify(&files, "a", &rows).expect("read").0, RowBalance { short: true, files: marks, ..balance });
        // What looks compressed is a bad line like another.
        files[0].write(b"\x1f\x8b\x08 nonsense\n").expect("written");
        let (balance, absent) = verify(&files, "a", &rows).expect("read");
        assert_eq!((balance.bad, balance.error, absent), (1, 1, vec![1, 2, 4]));
    }

    #[test]
    fn r11_7_no_provider_takes_a_chunk_of_more_rows() {
        assert!(crate::provider::Dialect::ALL.iter().all(|dialect| dialect.max_lines <= MOST_ROWS));
        let most = MOST_ROWS - 1;
        assert!(RowSet::parse(&format!("0-{most}\n")).is_ok() && RowSet::parse(&format!("0-{MOST_ROWS}\n")).is_err());
        assert!(RowSet::parse("0-0\n18446744073709551615-18446744073709551615\n").is_ok());
    }

    #[test]
    fn rows_without_a_line_are_left() {
        let rows = RowSet::parse("1-3\n7-8\n").expect("ranges");
        let mut unanswered = Unanswered::of(&rows);
        assert!(unanswered.indexes().eq([1, 2, 3, 7, 8]));
        for index in [2, 3, 3, 8, 9, 1] {
            unanswered.remove(index);
        }
        assert!(unanswered.indexes().eq([7]));
    }

    proptest! {
        #[test]
        fn rows_are_a_set(mut indexes in proptest::collection::vec(0u64..60, 0..80), probe in 0u64..70) {
            let mut rows = RowSet::default();
            let mut set = std::collections::BTreeSet::new();
            for index in &indexes {
                prop_assert_eq!(rows.insert(*index), set.insert(*index));
            }
            prop_assert_eq!(rows.len(), set.len() as u64);
            prop_assert_eq!(rows.contains(probe), set.contains(&probe));
            prop_assert_eq!(RowSet::parse(&rows.to_text()), Ok(rows));
            indexes.clear();
        }
    }
}
