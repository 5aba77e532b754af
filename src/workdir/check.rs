//! Holds a work directory against its journal, offline: nothing is written and no lock is taken.
//!
//! Another process may work there meanwhile. Each step is in the journal before or after what it does to files, in an order
//! that is known; so what seems wrong with a chunk is looked at again if the journal has moved it since, and only what
//! its last events do not explain is a problem.

use std::path::Path;

use crate::{
    console::Console,
    error::{Error, Kind, Result},
    flow::{
        chunks::{request_file, rows_file},
        rows::{FileMark, RowBalance, RowSet, verify},
    },
    folder::{Entry, Folder},
    journal::{self, BAD, FILE, Job, State, Step, totals},
    lines::{
        input::{Input, read_error},
        output::Output,
    },
    shell,
    text::escape_control,
    units::count,
    workdir::{FOLDERS, NAMES, ResultFile, SPOOL, SPOOL_HASH, is_part, list, results_file},
};

/// Foreign files that are named.
const NAMED: usize = 5;
/// Chunks with problems that are looked for.
const MOST: usize = 10_000;
/// A hash in a file of its own.
const LONGEST_HASH: u64 = 1 << 10;
const REMAKE: &str =
    "the command that cut the chunk (zbatch run, gen -d or chunk -d) makes it again from the same input";
const RESTORE: &str = "put it back from a backup, or move it away: the command that cut the chunk (zbatch run, gen -d or chunk -d) \
                       makes it again from the same input";

/// # Errors
/// Something in the directory is not as its journal says: the problems are on stdout.
pub fn check(path: &Path, console: &Console) -> Result<()> {
    let journal::Replay { mut state, whole, torn, damage, .. } = journal::examine(path)?;
    let dir = &Folder::open(path)?;
    if torn > 0 {
        console.note(format_args!(
            "{}: the last line is torn, {torn} bytes: a crash does that, and the next command drops it",
            dir.file(FILE)
        ));
    }
    let is_whole = damage.is_none();
    if !is_whole {
        console.note("the journal is not read past its damaged line: only what it had fetched until then is checked");
    }
    let mut problems: Vec<Error> = damage.into_iter().collect();
    problems.extend(check_beginning(dir, &state, is_whole)?);
    problems.extend(check_spool(dir, &state)?);
    let mut files = Files::default();
    problems.extend(check_chunks(dir, &mut state, whole, is_whole, &mut files)?);
    tell_what_is_left(dir, &state, is_whole, console)?;
    if journal::whole(path)? != whole {
        console.note("another process works there: what it did meanwhile is checked in part; run it again at the end");
    }
    print(&problems)?;
    let rows = totals(&state.jobs);
    let sum = format!(
        "{}: {}, {} of them fetched: {}, {}, {}; {}, {} read",
        path.display(),
        count(state.jobs.len(), "chunk"),
        state.at(Step::Fetched),
        count(rows.output, "result"),
        count(rows.error, "error"),
        count(rows.absent, "absent row"),
        count(files.count, "file"),
        count(files.bytes, "byte"),
    );
    match problems.len() {
        0 => {
            console.note(format_args!("{sum}; all is as the journal says"));
            Ok(())
        }
        many if many < MOST => Err(Error::input(format!("{sum}; {}", count(many, "problem")))),
        many => Err(Error::input(format!("{sum}; {}; no more were looked for", count(many, "problem")))),
    }
}

/// One line a problem. Whoever closes the pipe still gets the exit code.
fn print(problems: &[Error]) -> Result<()> {
    let mut stdout = Output::create(None)?;
    let lines: String = problems.iter().map(|problem| problem.line() + "\n").collect();
    match stdout.put(lines.as_bytes()).and_then(|()| stdout.commit()) {
        Err(error) if error.kind() == Kind::ClosedPipe => Ok(()),
        done => done,
    }
}

/// What was read.
#[derive(Debug, Default)]
struct Files {
    count: u64,
    bytes: u64,
}

impl Files {
    fn add(&mut self, mark: &FileMark) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(mark.bytes);
    }
}

/// What is wrong with the files of all chunks. `state` is brought up to date where it no longer holds; `whole` is the length of
/// the journal that it was read from. Past damage (`is_whole` is false) only what was fetched is sure: the lines that were not read may
/// explain the rest. After [`MOST`] problems no more are looked for.
fn check_chunks(
    dir: &Folder,
    state: &mut State,
    mut whole: u64,
    is_whole: bool,
    files: &mut Files,
) -> Result<Vec<Error>> {
    let mut problems = Vec::new();
    let is_sure = |(_, job): &(usize, &Job)| is_whole || job.step() == Step::Fetched;
    let mut places: Vec<usize> = state.jobs.iter().enumerate().filter(is_sure).map(|(place, _)| place).collect();
    loop {
        let mut suspects = Vec::new();
        for place in places {
            let Some(job) = state.jobs.get(place) else { continue };
            let found = check_chunk(dir, job, files);
            if !found.is_empty() {
                suspects.push((place, found));
            }
            if suspects.len() + problems.len() >= MOST {
                break;
            }
        }
        if suspects.is_empty() {
            return Ok(problems);
        }
        if journal::whole(dir.path())? == whole {
            problems.extend(suspects.into_iter().flat_map(|(_, found)| found));
            return Ok(problems);
        }
        let journal::Replay { state: now, whole: length, .. } = journal::examine(dir.path())?;
        whole = length;
        places = Vec::new();
        for (place, found) in suspects {
            if state.jobs.get(place) == now.jobs.get(place) {
                problems.extend(found);
            } else {
                places.push(place);
            }
        }
        *state = now;
    }
}

/// What is wrong with the files of a chunk.
fn check_chunk(dir: &Folder, job: &Job, files: &mut Files) -> Vec<Error> {
    let mut problems = Vec::new();
    let rows = check_rows(dir, job).map_err(|problem| problems.push(problem)).ok();
    let request = request_file(dir, &job.chunk.id);
    // Where there is a batch it is not sent any more: it may be there or not, and to begin again would be to pay again.
    let is_there = request.exists().unwrap_or(true);
    let fix = match (job.step() < Step::Created, is_there) {
        (true, true) => RESTORE,
        (true, false) => REMAKE,
        (false, _) => "the chunk has its batch, and nothing reads this file any more",
    };
    if is_there || job.step() < Step::Created {
        let then = FileMark { bytes: job.chunk.bytes, blake3: job.chunk.blake3.clone() };
        let now = is_there.then(|| FileMark::of(&request)).transpose();
        match now {
            Ok(now) => {
                now.iter().for_each(|now| files.add(now));
                problems.extend(difference(&request, Some(&then), now.as_ref(), fix));
            }
            Err(error) => problems.push(error),
        }
    }
    if let Some(balance) = job.rows().filter(|_| job.step() == Step::Fetched) {
        match check_results(dir, job, balance, rows.as_ref(), files) {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(error),
        }
    }
    problems
}

fn check_rows(dir: &Folder, job: &Job) -> Result<RowSet> {
    let path = rows_file(dir, &job.chunk.id);
    if !path.exists()? {
        return Err(Error::input(format!("{path}: it is gone")).fix(REMAKE));
    }
    let rows = RowSet::read(&path)?;
    let chunk = &job.chunk;
    let then = (chunk.lines, Some((chunk.first_index, chunk.last_index)));
    if (rows.len(), rows.ends()) != then {
        let (first, last) = rows.ends().unwrap_or_default();
        return Err(Error::input(format!(
            "{path}: {}, {first} to {last}; {} were cut, {} to {}",
            count(rows.len(), "row"),
            chunk.lines,
            chunk.first_index,
            chunk.last_index
        ))
        .fix(RESTORE));
    }
    Ok(rows)
}

/// Without `rows` only the files are held against their marks.
fn check_results(
    dir: &Folder,
    job: &Job,
    then: &RowBalance,
    rows: Option<&RowSet>,
    files: &mut Files,
) -> Result<Vec<Error>> {
    let id = &job.chunk.id;
    let again = if job.is_cleaned() {
        "the provider's copy is deleted: put it back from a backup, or ask for its rows in another round (--missing)"
            .to_owned()
    } else {
        format!("`zbatch fetch -d {} --again {id}` downloads it again", shell::path(dir.path()))
    };
    let paths = ResultFile::BOTH.map(|file| results_file(dir, id, file));
    let none = RowSet::default();
    let (now, _) = verify(&paths, &job.chunk.analysis, rows.unwrap_or(&none))?;
    let marks = now.files.clone().unwrap_or_default();
    marks.iter().flatten().for_each(|mark| files.add(mark));
    let mut problems = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let Some(then) = then.files.as_ref().and_then(|marks| marks.get(at)) else { continue };
        let now = marks.get(at).and_then(Option::as_ref);
        problems.extend(difference(path, then.as_ref(), now, &again));
    }
    let counts = |rows: &RowBalance| [rows.output, rows.error, rows.absent, rows.foreign, rows.bad];
    if problems.is_empty() && rows.is_some() && counts(then) != counts(&now) {
        let say = |rows: &RowBalance| {
            let [output, error, absent, foreign, bad] = counts(rows);
            let (output, error) = (count(output, "result"), count(error, "error"));
            format!("{output}, {error}, {absent} absent, {foreign} foreign, {bad} unreadable")
        };
        let what = format!("{}: its rows do not balance: {}; {} when it was fetched", id, say(&now), say(then));
        problems.push(Error::input(what).fix(again));
    }
    Ok(problems)
}

/// What is no longer as it was written, in words.
fn difference(file: &Entry, then: Option<&FileMark>, now: Option<&FileMark>, fix: &str) -> Option<Error> {
    let what = match (then, now) {
        _ if then == now => return None,
        (_, None) => "it is gone".to_owned(),
        (None, Some(now)) => format!("it has {} bytes, and was not there when the chunk was fetched", now.bytes),
        (Some(then), Some(now)) if then.bytes == now.bytes => {
            format!("its {} bytes are not those that were written: the hash differs", now.bytes)
        }
        (Some(then), Some(now)) => format!("it has {} bytes; {} were written", now.bytes, then.bytes),
    };
    Some(Error::input(format!("{file}: {what}")).fix(fix))
}

/// Rows are written after the journal's first line: without it nobody knows what was paid for.
fn check_beginning(dir: &Folder, state: &State, is_whole: bool) -> Result<Option<Error>> {
    let is_lost = is_whole && state.config.is_none() && !list(dir, "rows")?.is_empty();
    let what = || Error::input(format!("{}: it is empty, and chunks were cut here", dir.file(FILE)));
    Ok(is_lost.then(|| what().fix("put it back from a backup: without it all would be paid for again")))
}

/// The kept posts, where the job has some: without them no output can be written.
fn check_spool(dir: &Folder, state: &State) -> Result<Option<Error>> {
    const FIX: &str =
        "move it away, and give the same posts and the same command again: they are compared with what was cut";
    let (spool, sum) = (dir.file(SPOOL), dir.file(SPOOL_HASH));
    // Until something is cut, they are read again from where they came.
    if !state.spooled || state.jobs.is_empty() {
        return Ok(None);
    }
    for file in [&sum, &spool] {
        if !file.exists()? {
            let fix = "give the same posts and the same command again: they are compared with what was cut";
            return Ok(Some(Error::input(format!("{file}: it is gone")).fix(fix)));
        }
    }
    let then = sum.read_small(LONGEST_HASH)?;
    let mut hasher = blake3::Hasher::new();
    let mut input = Input::of(spool.open()?, spool.to_string())?;
    let now = match hasher.update_reader(&mut input.reader) {
        Ok(hasher) => hasher.finalize().to_hex(),
        Err(e) => {
            let error = read_error(&input.name, &e);
            return if error.kind() == Kind::Input { Ok(Some(error.fix(FIX))) } else { Err(error) };
        }
    };
    let differs = || Error::input(format!("{spool}: its posts are not those that were kept: the hash differs"));
    Ok((then.trim() != now.as_str()).then(|| differs().fix(FIX)))
}

/// Notes, not problems: what came short, what a killed process left, what is not ours.
fn tell_what_is_left(dir: &Folder, state: &State, is_whole: bool, console: &Console) -> Result<()> {
    let short = state.jobs.iter().filter(|job| job.rows().is_some_and(|rows| rows.short));
    for job in short {
        console
            .note(format_args!("{}: its results came short; the next fetch or run downloads them again", job.chunk.id));
    }
    let mut files: Vec<Entry> = dir.list()?.into_iter().map(|(name, _)| dir.file(name)).collect();
    for folder in FOLDERS {
        files.extend(list(dir, folder)?);
    }
    files.retain(|file| !is_known(file.name(), state));
    let (parts, mut foreign): (Vec<Entry>, Vec<Entry>) =
        files.into_iter().partition(|file| is_part(file.name().file_name().unwrap_or_default()));
    if !parts.is_empty() {
        console.note(format_args!(
            "{} half-written files: a killed process leaves them, the next one removes them",
            parts.len()
        ));
    }
    // A journal that ends early knows few of the files.
    if !foreign.is_empty() && is_whole {
        foreign.sort_unstable_by(|one, other| one.name().cmp(other.name()));
        let named: Vec<String> = foreign.iter().take(NAMED).map(|file| escape_control(&file.to_string())).collect();
        let more = if foreign.len() > named.len() { ", …" } else { "" };
        let (files, are) = (count(foreign.len(), "file"), if foreign.len() == 1 { "is" } else { "are" });
        console.note(format_args!("{files} {are} not this job's: {}{more}", named.join(", ")));
    }
    Ok(())
}

/// A name that zbatch gives in this directory.
fn is_known(name: &Path, state: &State) -> bool {
    let Some(name) = name.to_str() else { return false };
    let Some((folder, file)) = name.split_once('/') else {
        // The damaged end of a journal is ours.
        return NAMES.contains(&name) || name.strip_prefix(FILE).is_some_and(|end| end.starts_with(BAD));
    };
    let endings: &[&str] = match folder {
        "requests" => &[".jsonl"],
        "rows" => &[".txt"],
        _ => &[".output.jsonl", ".error.jsonl"],
    };
    let id = endings.iter().find_map(|ending| file.strip_suffix(ending)).and_then(|stem| stem.parse().ok());
    id.is_some_and(|id| state.place(&id).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::chunks::{Chunk, InputMark},
        journal::{Event, Journal},
    };

    /// A directory whose one chunk was fetched, as `zbatch` writes it.
    fn fetched(dir: &Path) -> (Journal, Chunk) {
        let folder = Folder::open(dir).expect("opened");
        FOLDERS.iter().for_each(|name| drop(folder.make_folder(name).expect("made")));
        let id: crate::flow::ChunkId = "a_batch_part1".parse().expect("a chunk");
        let chunk = Chunk {
            path: format!("requests/{id}.jsonl"),
            id,
            analysis: "a".to_owned(),
            model: "m".to_owned(),
            lines: 2,
            bytes: 0,
            first_index: 0,
            last_index: 1,
            blake3: String::new(),
        };
        let (id, attempt) = (|| chunk.id.clone(), 1);
        rows_file(&folder, &chunk.id).write(b"0-1\n").expect("written");
        let journal = Journal::open(dir).expect("opened");
        for event in [
            journal::start("run".to_owned(), false, journal::tests::config()),
            Event::Chunk { chunk: chunk.clone(), input: InputMark { posts: 2, blake3: String::new() } },
            Event::Uploaded { chunk: id(), file_id: journal::tests::id("f") },
            Event::Intent { chunk: id(), file_id: journal::tests::id("f"), attempt, blake3: String::new() },
            Event::Created { chunk: id(), batch_id: journal::tests::id("b"), adopted: false, file_id: None },
            Event::Ended { chunk: id(), end: journal::BatchEnd::default() },
        ] {
            journal.append(&event).expect("follows");
        }
        download(&folder, &journal, &chunk, "{\"custom_id\":\"a_0000\"}\n");
        (journal, chunk)
    }

    /// New results, journaled.
    fn download(dir: &Folder, journal: &Journal, chunk: &Chunk, output: &str) {
        let paths = ResultFile::BOTH.map(|file| results_file(dir, &chunk.id, file));
        paths[0].write(output.as_bytes()).expect("written");
        let rows = RowSet::read(&rows_file(dir, &chunk.id)).expect("rows");
        let (rows, _) = verify(&paths, "a", &rows).expect("read");
        journal.append(&Event::Fetched { chunk: chunk.id.clone(), rows }).expect("follows");
    }

    #[test]
    fn what_another_process_moved_meanwhile_is_looked_at_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (journal, chunk) = fetched(dir.path());
        let folder = Folder::open(dir.path()).expect("opened");
        let mut files = Files::default();
        let mut look = |state: &mut State| check_chunks(&folder, state, 0, true, &mut files).expect("read").len();
        let now = || journal.read(State::clone).expect("whole");
        let mut state = now();
        assert_eq!(look(&mut state), 0);
        // After we read the journal it was told to download again, and did.
        journal.append(&Event::Again { chunk: chunk.id.clone() }).expect("follows");
        let again = now();
        download(&folder, &journal, &chunk, "{\"custom_id\":\"a_0001\"}\n");
        assert_eq!(look(&mut state.clone()), 0, "seen before, found after");
        assert_eq!(look(&mut again.clone()), 0);
        // The same file without the events is a problem.
        results_file(&folder, &chunk.id, ResultFile::Output).write(b"other\n").expect("written");
        assert_eq!(look(&mut state), 1);
        assert_eq!(look(&mut now()), 1);
    }
}
