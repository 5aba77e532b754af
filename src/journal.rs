//! The state of a work directory on disk: `journal.jsonl`. Each line is an [`Event`], appended and synced before the call
//! that it announces, and never re-written. [`State`], the fold of the events, is all that is known of the directory.
//!
//! | event | says | status of the chunk, or remark |
//! |---|---|---|
//! | `start` | version, run id, [`Config`]: what decides the requests | always the first line |
//! | `origin` | the server that the batches are at: scheme, host and port; none for the embedded emulator | the same until a create is billed |
//! | `place` | where the journal lies: a copy of the directory is noticed by it | |
//! | `chunk` | a [`Chunk`](crate::flow::chunks::Chunk) is on disk, whole and synced, and how far the input was read then | [`JobStatus::Cut`] |
//! | `posts` | the input has ended: how many places, how many good posts, hash of all | |
//! | `uploaded` | the provider keeps the chunk's file | [`JobStatus::Uploaded`] |
//! | `intent` | a create will be sent next, once | [`JobStatus::Intended`] |
//! | `refused` | that create was refused for certain: nothing is billed | [`JobStatus::Uploaded`] |
//! | `unclear` | that create was answered with neither yes nor no; `made`: with a yes that does not name the batch | |
//! | `held` | no listing settles whether that create made a batch, or the results of an adopted batch are gone: the chunk is not created again unless the user says so | |
//! | `lost` | that create never happened: no listing shows it and its file is deleted; or the upload is gone; or the user gives a held batch up | [`JobStatus::Cut`] |
//! | `created` | the batch exists; `adopted`: it was found in a listing, also without an intent, if another copy of the directory made it | [`JobStatus::Created`] |
//! | `cancelling` | the provider was asked to cancel the batch, and took it | |
//! | `full` | the batch failed before any of its requests ran, since the account's queue was full: nothing is billed | [`JobStatus::Cut`] |
//! | `ended` | the batch is terminal; its result files (a second one: where they are after all) | [`JobStatus::Ended`] |
//! | `fetched` | its results are on disk, verified and synced; the counts of its rows, length and hash of each file | [`JobStatus::Fetched`] |
//! | `missing` | the batch, or a results file, is not at the provider, or not yet | |
//! | `again` | its results are to be downloaded once more | [`JobStatus::Ended`] |
//! | `cleaned` | its files at the provider are deleted | |
//! | `cancelled` | `zbatch cancel` was here: no batch is created any more | |
//! | `resumed` | the user said `--resume`: batches are created again | |
//! | `repaired` | the lines that followed were damaged and are in another file: before a create, the provider's list is searched for a batch of the chunk | |
//!
//! Each line ends with `sum`, the CRC-32 of the rest of it, so that a changed byte is noticed also inside a value.
//! A last line without its line feed was torn by a crash and is dropped, with a notice. Any other line that is not an event,
//! and an event that cannot follow, is damage: the journal is refused with the line's number and offset
//! (`docs/reliability.md` S3). [`repair`] moves that line, and all that follow it, to another file.

mod events;
mod fold;

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

pub use self::{
    events::{BatchEnd, Config, Event, Location, RefusedLine, start},
    fold::{ChunkPlace, Job, JobStatus, Made, State, Step, Unclear, totals},
};
use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
    folder::Folder,
    json::Object,
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
        output::AtomicFile,
    },
    shell,
    units::{count, sum},
};

pub const FILE: &str = "journal.jsonl";
/// Name of the file that holds the damaged end of a journal, after the journal's own; a number follows.
pub const BAD: &str = ".bad-";
const VERSION: u32 = 1;
/// An event is a line of a few hundred bytes; a longer one is damage.
const LONGEST_EVENT: u64 = 1 << 20;

/// The journal, open for appending, and its fold. Clones are the same journal: the thread that cuts and the jobs share it.
#[derive(Clone, Debug)]
pub struct Journal {
    log: Arc<Mutex<Log>>,
    /// Bytes of a torn last line that were dropped at opening.
    pub torn: u64,
    /// It held events when it was opened.
    pub resumed: bool,
}

#[derive(Debug)]
struct Log {
    file: File,
    path: PathBuf,
    state: State,
    /// Why a write or a sync failed. Nobody knows then how the file ends, and nothing may follow.
    failed: Option<String>,
}

impl Journal {
    /// For tests, without a lock.
    #[cfg(test)]
    pub fn open(dir: &Path) -> Result<Self> {
        let entry = Folder::open(dir)?.file(FILE);
        Self::of(entry.append()?, entry.path())
    }

    /// Reads an open file that the caller has locked. `path` is for messages.
    pub fn of(file: File, path: PathBuf) -> Result<Self> {
        let Replay { state, whole, torn, .. } = replay(&file, &path)?.sound()?;
        if torn > 0 && !drill::without(Guard::TornTail) {
            file.set_len(whole)
                .and_then(|()| file.sync_all())
                .map_err(|e| Error::io("cut the torn end of", &path, &e))?;
        }
        let resumed = state.config.is_some();
        let log = Log { file, path, state, failed: None };
        Ok(Self { log: Arc::new(Mutex::new(log)), torn, resumed })
    }

    /// Writes an event down and syncs it; it is true only when this returns.
    ///
    /// # Errors
    /// An event that cannot follow (a bug), or a disk that refuses.
    pub fn append(&self, event: &Event) -> Result<()> {
        self.log()?.append(event)
    }

    /// Looks at the fold. `look` must not append.
    ///
    /// # Errors
    /// Another thread died while it held the journal.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T> {
        Ok(look(&self.log()?.state))
    }

    /// A copy of a chunk's job.
    ///
    /// # Errors
    /// The journal has no such chunk.
    pub fn job(&self, place: ChunkPlace) -> Result<Job> {
        let job = self.read(|state| state.jobs.get(place.index()).cloned())?;
        job.ok_or_else(|| Error::input(format!("the journal has no chunk {}", place.index())))
    }

    fn log(&self) -> Result<MutexGuard<'_, Log>> {
        let died = "a thread died while it held the journal; run the same command again";
        self.log.lock().map_err(|_| Error::input(died))
    }
}

impl Log {
    fn append(&mut self, event: &Event) -> Result<()> {
        if let Some(why) = &self.failed {
            return Err(Error::new(Kind::Io, why));
        }
        self.state.apply(event).map_err(|what| Error::input(format!("{}: {what}", self.path.display())))?;
        let line = to_line(event).map_err(|e| Error::io("write", &self.path, &e))?;
        let written = self.write(&line, &event.name());
        self.failed = written.as_ref().err().map(|error| error.parts().0);
        written
    }

    fn write(&mut self, line: &[u8], event: &str) -> Result<()> {
        drill::step("before", event);
        if drill::tears("within", event) {
            let half = line.get(..line.len() / 2).unwrap_or_default();
            self.file.write_all(half).map_err(|e| Error::io("append to", &self.path, &e))?;
            drill::die();
        }
        self.file.write_all(line).map_err(|e| Error::io("append to", &self.path, &e))?;
        if !drill::without(Guard::JournalSync) {
            self.file.sync_data().map_err(|e| Error::io("sync", &self.path, &e))?;
        }
        drill::step("after", event);
        Ok(())
    }
}

/// The directory is a work directory: it has a journal.
pub fn is_in(dir: &Path) -> bool {
    const BEGIN: &[u8] = br#"{"event":"start""#;

    let mut head = [0; BEGIN.len()];
    let path = dir.join(FILE);
    path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == BEGIN
}

/// Reads a journal without touching it; for verbs that take no lock. A torn last line is passed over.
pub fn read(dir: &Path) -> Result<State> {
    examine(dir)?.sound().map(|read| read.state)
}

/// Bytes of the whole lines that a journal has now.
pub fn whole(dir: &Path) -> Result<u64> {
    let entry = Folder::open(dir)?.file(FILE);
    let file = entry.open()?;
    let length = || end_of_last_line(&file, file.metadata()?.len());
    length().map_err(|e| Error::io("read", entry.path(), &e))
}

/// Reads a journal without touching it, also one with damage.
pub fn examine(dir: &Path) -> Result<Replay> {
    let none = |why: &dyn std::fmt::Display| {
        Error::input(format!("{} is not a work directory: {why}", dir.display()))
            .fix("name one with -d; `zbatch gen -d DIR posts.jsonl` makes one")
    };
    let entry = Folder::open(dir).map_err(|e| none(&e))?.file(FILE);
    let file = entry.find()?.ok_or_else(|| none(&format_args!("it has no {FILE}")))?;
    replay(&file, &entry.path())
}

/// A journal as it was read.
#[derive(Debug)]
pub struct Replay {
    /// The fold of all events, or of those before the damage.
    pub state: State,
    /// Bytes of whole lines.
    pub whole: u64,
    /// Bytes of a torn last line.
    pub torn: u64,
    /// The first line that is not an event, or cannot follow.
    pub damage: Option<Error>,
    /// Bytes of the lines before that one.
    sound: u64,
    /// Where the line of each chunk begins.
    chunks: Vec<u64>,
}

impl Replay {
    fn sound(self) -> Result<Self> {
        match self.damage {
            Some(damage) => Err(damage),
            None => Ok(self),
        }
    }
}

/// Folds the whole lines of a journal.
fn replay(file: &File, path: &Path) -> Result<Replay> {
    let all = file.metadata().map_err(|e| Error::io("look at", path, &e))?.len();
    replay_part(file, path, all)
}

/// Folds the whole lines of the first `all` bytes.
fn replay_part(file: &File, path: &Path, all: u64) -> Result<Replay> {
    let whole = end_of_last_line(file, all).map_err(|e| Error::io("read", path, &e))?;
    let mut reader = file.try_clone().map_err(|e| Error::io("open", path, &e))?;
    reader.seek(SeekFrom::Start(0)).map_err(|e| Error::io("seek in", path, &e))?;
    let input = Input { reader: Box::new(reader.take(whole)), name: path.display().to_string() };
    let mut lines = LineReader::new(input, Shape::Own, LONGEST_EVENT, 0);
    let mut block = Block::default();
    let mut read =
        Replay { state: State::default(), whole, torn: all - whole, damage: None, sound: whole, chunks: Vec::new() };
    // The first damage, and the fold of all lines that follow in spite of it.
    let mut damaged: Option<(String, State)> = None;
    while lines.fill(&mut block)? {
        for line in block.lines() {
            let event =
                check_sum(line.bytes).and_then(|()| serde_json::from_slice(line.bytes).map_err(|e| unreadable(&e)));
            let state = damaged.as_mut().map_or(&mut read.state, |(_, beyond)| beyond);
            let followed = event.and_then(|Object(event): Object<Event>| state.apply(&event));
            if let Err(what) = followed
                && damaged.is_none()
            {
                let what = format!("{}, line {}, byte {}: {what}", path.display(), line.number, line.offset);
                read.sound = line.offset;
                damaged = Some((what, read.state.clone()));
            }
            if damaged.is_none() && read.state.jobs.len() > read.chunks.len() {
                read.chunks.push(line.offset);
            }
        }
    }
    read.damage = damaged.map(|(what, beyond)| Error::input(what).fix(way_out(path, &read.state, &beyond)));
    Ok(read)
}

/// Begins the last member of a line: eight hexadecimal digits, the CRC-32 of the line without that member.
const SUM: &[u8] = br#","sum":""#;

/// The line of an event, with its sum and its line feed.
fn to_line(event: &Event) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    let sum = crc32fast::hash(&line);
    // The closing brace comes after the sum. Every event has at least its name, so a comma stands between them.
    line.pop();
    line.extend_from_slice(SUM);
    line.extend_from_slice(format!("{sum:08x}\"}}\n").as_bytes());
    Ok(line)
}

/// A byte that a disk changed inside a value leaves JSON whole. Lines of earlier versions, and lines that a person wrote, have no
/// sum and are taken as they are.
fn check_sum(line: &[u8]) -> std::result::Result<(), String> {
    const DIGITS: usize = 8;

    let end = line.strip_suffix(b"\"}").and_then(|rest| rest.split_last_chunk::<DIGITS>());
    let Some((text, digits)) = end.and_then(|(rest, digits)| Some((rest.strip_suffix(SUM)?, digits))) else {
        return Ok(());
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(text);
    hasher.update(b"}");
    match format!("{:08x}", hasher.finalize()).as_bytes() == digits {
        true => Ok(()),
        false => Err("the line is not as it was written: its sum differs".to_owned()),
    }
}

/// The error without serde's list of all events.
fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(", expected one of") {
        Some((what, _)) => format!("{what}: this version knows no such event"),
        None => text,
    }
}

/// How the user can go on with a damaged journal, and what beginning again would cost. `beyond`: the fold of the lines after
/// the damage, too.
fn way_out(path: &Path, sound: &State, beyond: &State) -> String {
    if sound.config.is_none() {
        return "this line names the job, or is of another version of zbatch: put the journal back from a backup"
            .to_owned();
    }
    let paid = beyond.jobs.iter().filter(|job| job.step() >= Step::Intended);
    let (batches, rows) = (paid.clone().count(), sum(paid.map(|job| job.chunk.lines)));
    let dir = shell::path(path.parent().unwrap_or(path));
    format!(
        "the journal is damaged, or of another version of zbatch. To go on: zbatch verify --repair -d {dir}, then the same \
         command, which finds the batches in the provider's list. To begin again, in this directory or another, would pay \
         for {} of {} again, or more",
        count(rows, "row"),
        count(batches, "batch")
    )
}

/// Where the line of the first chunk begins that has no batch and whose request file is gone.
fn first_without_requests(dir: &Path, read: &Replay) -> Option<u64> {
    let is_gone = |job: &Job| job.step() < Step::Created && !dir.join(&job.chunk.path).exists();
    read.state.jobs.iter().zip(&read.chunks).find(|(job, _)| is_gone(job)).map(|(_, at)| *at)
}

/// Moves the first damaged line, and all that follow, to `journal.jsonl.bad-N`; the caller holds the directory's lock.
/// `None`: no line is damaged. The next command recovers what the lines said: the provider lists the batches, results that
/// are here are taken, and chunks are cut again.
///
/// # Errors
/// The first line is damaged. It names the job, and nothing else does.
pub fn repair(dir: &Path) -> Result<Option<PathBuf>> {
    let path = dir.join(FILE);
    let file = File::options().read(true).write(true).open(&path).map_err(|e| Error::io("open", &path, &e))?;
    let mut read = replay(&file, &path)?;
    let Some(damage) = read.damage.take() else { return Ok(None) };
    if read.state.config.is_none() {
        return Err(damage);
    }
    let mut sound = read.sound;
    // A request file may have been removed after its batch was made, by an event that is lost now: cut its chunk again.
    while let Some(at) = first_without_requests(dir, &read) {
        sound = at;
        read = replay_part(&file, &path, sound)?;
    }
    let free = (1_u32..).map(|n| dir.join(format!("{FILE}{BAD}{n}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| dir.join(format!("{FILE}{BAD}0")));
    let mut copy = AtomicFile::create_private(&aside)?;
    let mut rest = file.try_clone().map_err(|e| Error::io("open", &path, &e))?;
    let copied = rest.seek(SeekFrom::Start(sound)).and_then(|_| std::io::copy(&mut rest, &mut copy));
    copied.map_err(|e| Error::io("write", &aside, &e))?;
    // Before the journal forgets these lines.
    copy.commit()?;
    // Whatever ends this process, the journal is damaged still, or says that it was repaired.
    let line = to_line(&Event::Repaired {}).map_err(|e| Error::io("write", &path, &e))?;
    let end = sound + line.len() as u64;
    let written = file.write_all_at(&line, sound).and_then(|()| file.sync_all());
    let cut = written.and_then(|()| file.set_len(end)).and_then(|()| file.sync_all());
    cut.map_err(|e| Error::io("cut the damaged end of", &path, &e))?;
    Ok(Some(aside))
}

fn end_of_last_line(mut file: &File, len: u64) -> std::io::Result<u64> {
    let start = len.saturating_sub(LONGEST_EVENT);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    // Another process may append meanwhile: read no further than `len`.
    #[expect(clippy::disallowed_methods, reason = "at most LONGEST_EVENT bytes")]
    file.take(len - start).read_to_end(&mut tail)?;
    Ok(memchr::memrchr(b'\n', &tail).map_or(if start == 0 { 0 } else { len }, |at| start + at as u64 + 1))
}

#[cfg(test)]
pub mod tests {
    use std::str::FromStr;

    use super::*;
    use crate::{
        cli::ImageUrls,
        flow::{
            ChunkId,
            chunks::{Chunk, InputMark},
            rows::RowBalance,
        },
    };

    pub fn config() -> Config {
        Config {
            input: "posts".to_owned(),
            analyses: vec![("a".to_owned(), "f".to_owned())],
            model: "m".to_owned(),
            multimodal_model: "v".to_owned(),
            temperature: "0.7".to_owned(),
            provider: "zhipu".to_owned(),
            emulate: false,
            max_lines: 10,
            max_bytes: 1000,
            start_index: 0,
            missing: false,
            skip: None,
            image_urls: ImageUrls::All,
            upstream: None,
        }
    }

    #[test]
    fn r11_8_the_server_may_change_until_a_create_is_billed() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path()).expect("opened");
        let at = |origin: &str| Event::Origin { origin: origin.to_owned() };
        let is_intent = |event: &Event| matches!(event, Event::Intent { .. });
        let intent = events().iter().position(is_intent).expect("an intent");
        journal.append(&events()[0]).expect("follows");
        for origin in ["https://a", "https://b"] {
            journal.append(&at(origin)).expect("nothing was created");
        }
        events()[1..=intent].iter().for_each(|event| journal.append(event).expect("follows"));
        assert!(journal.append(&at("https://a")).is_err(), "the batch is at b");
        journal.append(&at("https://b")).expect("the same");
        assert_eq!(read(dir.path()).expect("read").origin.as_deref(), Some("https://b"));
    }

    pub fn id<T: FromStr<Err = Error>>(text: &str) -> T {
        text.parse().expect("an id")
    }

    fn events() -> Vec<Event> {
        let chunk_id = || -> ChunkId { "a_batch_part1".parse().expect("a chunk") };
        let chunk = Chunk {
            id: chunk_id(),
            path: "requests/a_batch_part1.jsonl".to_owned(),
            analysis: "a".to_owned(),
            model: "m".to_owned(),
            lines: 2,
            bytes: 20,
            first_index: 0,
            last_index: 1,
            blake3: "00".to_owned(),
        };
        let input = InputMark { posts: 2, blake3: "11".to_owned() };
        vec![
            start("r".to_owned(), false, config()),
            Event::Chunk { chunk, input: input.clone() },
            Event::Posts { good: 2, input },
            Event::Uploaded { chunk: chunk_id(), file_id: id("f1") },
            Event::Intent { chunk: chunk_id(), file_id: id("f1"), attempt: 1, blake3: "00".to_owned() },
            Event::Lost { chunk: chunk_id(), why: "reset".to_owned() },
            Event::Uploaded { chunk: chunk_id(), file_id: id("f2") },
            Event::Intent { chunk: chunk_id(), file_id: id("f2"), attempt: 2, blake3: "00".to_owned() },
            Event::Created { chunk: chunk_id(), batch_id: id("b"), adopted: true, file_id: None },
            Event::Ended { chunk: chunk_id(), end: BatchEnd { status: "completed".to_owned(), ..Default::default() } },
            Event::Fetched { chunk: chunk_id(), rows: RowBalance { output: 2, ..Default::default() } },
            Event::Cleaned { chunk: chunk_id() },
        ]
    }

    #[test]
    fn s3_a_journal_cut_anywhere_opens_as_its_whole_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path()).expect("new");
        for event in events() {
            journal.append(&event).expect("follows");
        }
        let text = crate::lines::input::read_small(&dir.path().join(FILE), 1 << 20).expect("small");
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        // Around each line's end, and here and there within: every case costs a dozen syncs.
        for cut in (0..=text.len()).filter(|cut| cut % 37 == 0 || ends.iter().any(|end| cut.abs_diff(*end) <= 1)) {
            let dir = tempfile::tempdir().expect("a directory");
            crate::lines::output::write_whole(&dir.path().join(FILE), &text.as_bytes()[..cut]).expect("written");
            let whole = text.as_bytes()[..cut].iter().filter(|b| **b == b'\n').count();
            let journal = Journal::open(dir.path()).expect("opens");
            assert_eq!(journal.torn > 0, cut > 0 && text.as_bytes()[cut - 1] != b'\n', "{cut}");
            for event in events().iter().skip(whole) {
                journal.append(event).expect("goes on where it stopped");
            }
            let job = journal.job(ChunkPlace::default()).expect("there");
            assert_eq!((job.step(), job.batch(), job.attempt), (Step::Fetched, Some(&id("b")), 2));
        }
    }

    /// `status` and `verify` read while somebody appends: more may be there than the length that was asked for.
    #[test]
    fn r3_the_last_line_is_looked_for_in_what_was_there() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"{}\n{\n{}\n").expect("written");
        for (length, end) in [(0, 0), (1, 0), (3, 3), (4, 3), (5, 5), (8, 8)] {
            assert_eq!(end_of_last_line(&file, length).expect("read"), end, "{length}");
        }
    }

    #[test]
    fn s3_damage_elsewhere_is_refused_by_line_and_offset() {
        for bad in ["nonsense", "{\"event\":\"dance\"}", "{\"event\":\"cleaned\",\"chunk\":\"a_batch_part9\"}"] {
            let dir = tempfile::tempdir().expect("a directory");
            let journal = Journal::open(dir.path()).expect("new");
            journal.append(&events()[0]).expect("follows");
            let first = crate::lines::input::read_small(&dir.path().join(FILE), 1 << 20).expect("small");
            crate::lines::output::write_whole(&dir.path().join(FILE), format!("{first}{bad}\n").as_bytes())
                .expect("ok");
            let error = Journal::open(dir.path()).expect_err("refused").to_string();
            assert!(error.contains(&format!("line 2, byte {}", first.len())), "{error}");
        }
    }

    #[test]
    fn s2_nothing_follows_a_failed_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path()).expect("new");
        let only_read = File::open(dir.path().join(FILE)).expect("to read");
        let good = std::mem::replace(&mut journal.log().expect("whole").file, only_read);
        assert_eq!(journal.append(&events()[0]).expect_err("not to write").kind(), Kind::Io);
        journal.log().expect("whole").file = good;
        assert_eq!(journal.append(&events()[1]).expect_err("not any more").kind(), Kind::Io);
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).expect("there").len(), 0);
    }

    #[test]
    fn a_step_that_cannot_follow_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path()).expect("new");
        let events = events();
        journal.append(&events[0]).expect("follows");
        journal.append(&events[1]).expect("follows");
        assert!(journal.append(&events[4]).is_err(), "an intent without an upload");
        let batch = |adopted| Event::Created {
            chunk: "a_batch_part1".parse().expect("a chunk"),
            batch_id: id("b"),
            adopted,
            file_id: None,
        };
        assert!(journal.append(&batch(false)).is_err(), "a batch without an intent");
        assert!(journal.append(&events[1]).is_err(), "the same chunk twice");
        let spent = || journal.read(State::spent).expect("whole");
        assert_eq!(spent(), (0, 0));
        journal.append(&batch(true)).expect("another copy of the directory made it");
        assert_eq!(spent(), (1, 2), "caps count it all the same");
    }

    /// `fixtures/journals/every-event.jsonl` was written by the version before the events had types: it holds every kind.
    #[test]
    fn s3_every_event_of_an_older_version_is_read_and_written_as_it_was() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals/every-event.jsonl");
        let text = crate::lines::input::read_small(&path, 1 << 20).expect("small");
        let mut state = State::default();
        let mut names = std::collections::BTreeSet::new();
        for line in text.lines() {
            let event: Event = serde_json::from_str(line).expect(line);
            assert_eq!(serde_json::to_string(&event).expect("written"), line);
            state.apply(&event).expect(line);
            names.insert(event.name());
        }
        assert_eq!(names.len(), 22, "{names:?}");
        let steps = [Step::Created, Step::Fetched].map(|step| state.at(step));
        assert_eq!((state.jobs.len(), steps, state.spent()), (12, [2, 10], (14, 14)));
    }

    #[test]
    fn s3_an_id_that_cannot_be_one_is_damage_of_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path()).expect("new");
        events()[..2].iter().for_each(|event| journal.append(event).expect("follows"));
        let text = crate::lines::input::read_small(&dir.path().join(FILE), 1 << 20).expect("small");
        let bad = "{\"event\":\"uploaded\",\"chunk\":\"a_batch_part1\",\"file_id\":\"..\"}\n";
        crate::lines::output::write_whole(&dir.path().join(FILE), format!("{text}{bad}").as_bytes()).expect("written");
        let error = Journal::open(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("line 3") && error.contains("file id"), "{error}");
    }

    #[test]
    fn differences_are_named() {
        let there = config();
        assert_eq!(there.difference(&there), None);
        let now = Config { max_lines: 11, ..config() };
        assert_eq!(there.difference(&now).as_deref(), Some("its `max_lines` is 10; now it is 11"));
        let now = Config { analyses: vec![("a".to_owned(), "g".to_owned())], ..config() };
        assert!(there.difference(&now).expect("one").contains("`a` has changed"));
        let now = Config { input: "requests".to_owned(), analyses: Vec::new(), ..config() };
        assert_eq!(there.difference(&now).as_deref(), Some("it was cut from posts; now requests are given"));
    }
}
