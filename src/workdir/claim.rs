//! Claiming a work directory: it is opened, or made, for one configuration and no other, and its cutting goes on where its
//! journal ends.

use std::{path::Path, time::SystemTime};

use super::{ALL_RESULTS, WorkDir, settle_place};
use crate::{
    console::Console,
    error::{Error, Kind, Result},
    flow::chunks::{Cutter, InputCheck, Kept, Limits, Milestone, Record, request_file, rows_file},
    folder::Folder,
    journal::{self, Event, Job, Journal, State},
    provider::FileId,
    shell,
    units::count,
};

/// Opens the work directory that belongs to this configuration, or makes it.
///
/// # Errors
/// [`crate::error::Kind::Input`] naming the difference if it belongs to another one.
pub fn claim(
    dir: &Path,
    (new, moved): (bool, bool),
    record: journal::Config,
    spooled: bool,
    console: &Console,
) -> Result<(WorkDir, Journal)> {
    let mut work = WorkDir::create(dir)?;
    let mut journal = open_journal(&mut work, console)?;
    // Files of chunks are written after the journal's first line: without it nobody knows what was paid for.
    let lost_journal = !journal.resumed && work.has_chunks()?;
    if lost_journal && !new {
        return Err(Error::input(format!(
            "the journal of {} is gone or empty, and chunks were cut there",
            dir.display()
        ))
        .fix("put journal.jsonl back: without it all would be paid for again; --new does begin again"));
    }
    let was_cleaned = !journal.resumed && work.file(ALL_RESULTS).exists()?;
    if was_cleaned && !new {
        let results = shell::path(work.join(ALL_RESULTS));
        return Err(Error::input(format!("{} was cleaned: of its job only the results are left", dir.display())).fix(format!(
            "zbatch parse {results} | zbatch merge POSTS - gives its output again; --new begins again and pays again"
        )));
    }
    if new && (journal.resumed || lost_journal || was_cleaned || work.spool().exists()?) {
        journal.read(|state| check_stake(state, dir, console))??;
        drop(journal);
        work = work.renew()?;
        journal = work.journal()?;
    }
    settle_place(&work, &journal, moved)?;
    // An empty input made no job.
    if journal.read(|state| state.is_empty() && state.config.is_some())? {
        drop(journal);
        work.forget(false)?;
        journal = work.journal()?;
    }
    if let Some(was_cut) = journal.read(|state| unpaid_of_other_settings(state, &record, dir, console))? {
        drop(journal);
        work.forget(was_cut)?;
        journal = work.journal()?;
    }
    if journal.read(|state| state.config.is_none())? {
        journal.append(&journal::start(run_id(), spooled, record))?;
        settle_place(&work, &journal, moved)?;
    } else {
        journal.read(|state| go_on(&work, state, &record, console))??;
    }
    Ok((work, journal))
}

/// Whether the directory is of other settings and nothing was paid for: a first try that was refused does not tie it to its
/// flags. `Some`: whether it holds chunks.
fn unpaid_of_other_settings(state: &State, record: &journal::Config, dir: &Path, console: &Console) -> Option<bool> {
    let there = state.config.as_ref().filter(|there| there.input == record.input)?;
    let difference = there.difference(record)?;
    if state.spent().0 > 0 || state.repaired {
        return None;
    }
    say_what_is_left(state, dir, &difference, console);
    Some(!state.jobs.is_empty())
}

/// Goes on with a directory that holds a job.
fn go_on(work: &WorkDir, state: &State, record: &journal::Config, console: &Console) -> Result<()> {
    let dir = work.path().display();
    if let Some(difference) = state.config.as_ref().and_then(|there| there.difference(record)) {
        let (_, rows) = state.at_stake();
        return Err(Error::input(format!("{dir} belongs to another job: {difference}")).fix(format!(
            "use another directory (-d); with --missing and the output so far as its input, finished rows are not \
             asked again. --new begins again (the old contents are kept in DIR.old-N) and would pay for {} again",
            count(rows, "fetched row")
        )));
    }
    recover_rows(work, state, console)?;
    let chunks = state.jobs.len();
    if chunks > 0 {
        console.note(format_args!("{dir} holds {} already", count(chunks, "chunk")));
    }
    Ok(())
}

/// What `--new` leaves behind may run on, and is paid for again.
fn check_stake(state: &State, dir: &Path, console: &Console) -> Result<()> {
    let is_invented = state.config.as_ref().is_some_and(|config| config.emulate && config.upstream.is_none());
    let (batches, rows) = state.at_stake();
    if is_invented || batches == 0 && rows == 0 {
        return Ok(());
    }
    let (here, rows) = (dir.display(), count(rows, "fetched row"));
    if batches == 0 {
        console.note(format_args!("--new: {rows} of {here} will be paid for again, if these are the same posts"));
        return Ok(());
    }
    let word = shell::path(dir);
    let what = format!("{here}: {} would run on, and {rows} would be paid for again", count(batches, "batch"));
    Err(Error::new(Kind::TryAgain, format!("--new is refused. {what}")).fix(format!(
        "go on with the same command without --new; or end the batches (zbatch cancel -d {word}, then zbatch fetch -d {word}) and \
         give --new again; or leave them all the same: mv {word} {word}.left"
    )))
}

/// Whether `zbatch cancel` holds for this job; `resume` ends that.
pub fn stays_cancelled(journal: &Journal, resume: bool, dir: &Path, console: &Console) -> Result<bool> {
    if resume && journal.read(|state| state.cancelled)? {
        journal.append(&Event::Resumed {})?;
    }
    let stays = journal.read(State::stays_cancelled)?;
    if stays {
        console.always(format_args!(
            "{}: the job was cancelled: no batch is created until --resume is given; what was finished is fetched",
            dir.display()
        ));
    }
    Ok(stays)
}

/// Before chunks are cut anew with other settings.
fn say_what_is_left(state: &State, dir: &Path, difference: &str, console: &Console) {
    if !state.jobs.is_empty() {
        console.note(format_args!(
            "{}: {difference}; no batch was created yet, so {} cut anew",
            dir.display(),
            if state.jobs.len() == 1 { "its chunk is" } else { "its chunks are" }
        ));
    }
    let uploaded: Vec<&str> = state.jobs.iter().filter_map(|job| job.file().map(FileId::as_str)).collect();
    if !uploaded.is_empty() {
        console.note(format_args!("files that were uploaded stay at the provider: {}", uploaded.join(", ")));
    }
}

/// An empty input makes no job: afterwards its directory is no work directory. Whether that is so.
pub fn forget_empty(work: &WorkDir, journal: &Journal, console: &Console) -> Result<bool> {
    let is_empty = journal.read(State::is_empty)?;
    if is_empty {
        console.note(format_args!("the input is empty: there is no job in {}", work.path().display()));
        work.forget(false)?;
    }
    Ok(is_empty)
}

pub fn open_journal(work: &mut WorkDir, console: &Console) -> Result<Journal> {
    let journal = work.journal()?;
    if journal.torn > 0 {
        console
            .note(format_args!("the journal's last line was torn by a crash; its {} bytes are dropped", journal.torn));
    }
    Ok(journal)
}

/// Whether the files of a chunk are there, as far as they are needed: the requests until there is a batch.
fn kept(job: &Job, dir: &Folder) -> Result<Kept> {
    let requests = job.step() < journal::Step::Created && !request_file(dir, &job.chunk.id).exists()?;
    let is_gone = requests || !rows_file(dir, &job.chunk.id).exists()?;
    Ok(if is_gone { Kept::Gone { requests } } else { Kept::Whole })
}

/// Cutting goes on after the chunks of the journal: the check of the input, and the cutter.
pub fn resume(work: &WorkDir, journal: &Journal, limits: Limits) -> Result<(InputCheck, Cutter)> {
    journal.read(|state| {
        let held: Result<Vec<_>> = state.jobs.iter().map(|job| Ok((&job.chunk, kept(job, work.folder())?))).collect();
        Ok((input_check(state), Cutter::new(limits, held?)))
    })?
}

/// Compares an input with the one that the chunks of the journal were cut from.
pub fn input_check(state: &State) -> InputCheck {
    let chunks = state.jobs.iter().map(|job| (job.input.clone(), job.chunk.id.to_string()));
    InputCheck::new(chunks, state.posts.as_ref().map(|(_, mark)| mark))
}

/// Puts the milestones of cutting into the journal. The end of the input is there once.
pub fn recorder(journal: &Journal) -> Record {
    let journal = journal.clone();
    Box::new(move |milestone| match milestone {
        Milestone::Chunk(chunk, input) => journal.append(&Event::Chunk { chunk: chunk.clone(), input }),
        Milestone::End { .. } if journal.read(|state| state.posts.is_some())? => Ok(()),
        Milestone::End { good, input } => journal.append(&Event::Posts { good, input }),
    })
}

/// Writes the rows of chunks again whose files are gone, as far as the directory itself tells them.
pub fn recover_rows(work: &WorkDir, state: &State, console: &Console) -> Result<()> {
    let mut made: u64 = 0;
    for Job { chunk, .. } in &state.jobs {
        let file = work.rows(&chunk.id);
        if !file.exists()?
            && let Some(rows) = chunk.recover_rows(&work.request(&chunk.id))?
        {
            file.write(rows.to_text().as_bytes())?;
            made += 1;
        }
    }
    if made > 0 {
        console.note(format_args!("the rows of {} were gone; they are written again", count(made, "chunk")));
    }
    Ok(())
}

/// Tells apart the batches of different directories in one account.
pub fn run_id() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = format!("{} {}", now.as_nanos(), std::process::id());
    blake3::hash(seed.as_bytes()).to_hex().chars().take(16).collect()
}
