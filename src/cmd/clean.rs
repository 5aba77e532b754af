//! `clean` deletes a finished job's leftovers at the provider, and the files that its work directory no longer needs.
//!
//! The directory is verified first, as by `verify`. Nothing is deleted while a batch lives or rows remain to be fetched, at the
//! provider nothing that does not carry this directory's mark or stands in its journal, and here nothing by another name
//! than those that zbatch gives.

use std::{collections::HashSet, path::Path};

use rustix::fs::{FileType, Stat};

use super::{
    Ended,
    remote::{Opened, client, keep_to_server, open, runtime},
};
use crate::{
    cli::{CleanArgs, RemoteArgs, WorkArgs},
    console::Console,
    emulator,
    error::{Error, Kind, Result},
    folder::{Entry, Folder},
    journal::{self, Event, FILE, Job, Journal, State, Step},
    lines::output::Output,
    provider::{Batch, BatchId, Client, FileId, MARK},
    shell,
    text::escape_control,
    units::count,
    workdir::{
        ALL_RESULTS, FOLDERS, LOCK, NAMES, ResultFile, SPOOL, SPOOL_HASH, WorkDir, check, claim::open_journal, list,
        results::write_results, settle_place,
    },
};

pub fn run(args: &CleanArgs, console: &Console) -> Result<Ended> {
    args.work_dirs.iter().try_for_each(|dir| clean(dir, args, console))?;
    Ok(Ended::Finished)
}

fn clean(dir: &Path, args: &CleanArgs, console: &Console) -> Result<()> {
    let is_emulated = journal::read(dir)?.config.is_some_and(|config| config.emulate);
    let is_remote = !args.local && !is_emulated;
    let (config, work, journal) = if is_remote {
        let work = WorkArgs { work_dir: Some(dir.to_owned()), moved: args.moved };
        let Opened { config, work, journal, .. } = open(&args.source, &work, &args.provider, console)?;
        (Some(config), work, journal)
    } else {
        let mut work = WorkDir::open(dir)?;
        let journal = open_journal(&mut work, console)?;
        settle_place(&work, &journal, args.moved)?;
        (None, work, journal)
    };
    check::check(dir, console)?;
    journal.read(|state| check_is_over(dir, state))??;
    let mut told = Told { dry: args.dry_run, stdout: Output::create(None)? };
    if let Some(config) = config {
        let remote =
            RemoteArgs { key_file: args.key_file.clone(), ca_cert: args.ca_cert.clone(), ..RemoteArgs::default() };
        let client = client(&config, &args.provider, &remote, console)?;
        keep_to_server(&journal, &client, dir)?;
        runtime()?.block_on(clean_provider(&client, dir, &journal, &mut told))?;
    }
    journal.read(|state| clean_directory(&work, state, args, &mut told))??;
    told.stdout.commit()?;
    Ok(())
}

/// # Errors
/// [`Kind::TryAgain`] while something may still come of the job.
fn check_is_over(dir: &Path, state: &State) -> Result<()> {
    let at = |step| state.at(step);
    let what = match () {
        () if at(Step::Created) > 0 => format!("{} may still run", count(at(Step::Created), "batch")),
        () if at(Step::Intended) > 0 => {
            format!("whether {} made a batch is not known", count(at(Step::Intended), "create"))
        }
        () if at(Step::Ended) > 0 => format!("the results of {} are not fetched", count(at(Step::Ended), "chunk")),
        () if state.jobs.iter().any(Job::came_short) => "some results came short".to_owned(),
        // What was cancelled before it had a batch stays so.
        () if state.stays_cancelled() => return Ok(()),
        () if state.below(Step::Intended) > 0 => {
            format!("without a batch yet: {}", count(state.below(Step::Intended), "chunk"))
        }
        () if state.posts.is_none() => "the input is not cut to its end".to_owned(),
        () => return Ok(()),
    };
    let here = shell::path(dir);
    let is_emulated = state.config.as_ref().is_some_and(|config| config.emulate);
    Err(Error::new(Kind::TryAgain, format!("{}: {what}; nothing is deleted", dir.display())).fix(match is_emulated {
        true => "finish the job first, by the same `zbatch run --emulate` command".to_owned(),
        false => format!(
            "finish the job first: the command that began it, or `zbatch submit -d {here}`, then `zbatch fetch -d {here}`"
        ),
    }))
}

/// Says each step on stdout, before it is taken or instead.
struct Told {
    dry: bool,
    stdout: Output,
}

impl Told {
    /// Whether it is to be done.
    fn tell(&mut self, what: &str, thing: &str) -> Result<bool> {
        let would = if self.dry { "would " } else { "" };
        self.stdout.put((escape_control(&format!("{would}{what} {thing}")) + "\n").as_bytes())?;
        self.stdout.flush()?;
        Ok(!self.dry)
    }

    fn remove(&mut self, entry: &Entry) -> Result<()> {
        let is_file = |stat: Stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        // `remove` takes a link away and does not follow it.
        let is_there = entry.stat()?.is_some_and(is_file);
        if is_there && self.tell("remove", &entry.to_string())? { entry.remove() } else { Ok(()) }
    }
}

/// Deletes the files of the chunks, then those of batches that carry this directory's mark and are not in its journal.
async fn clean_provider(client: &Client, dir: &Path, journal: &Journal, told: &mut Told) -> Result<()> {
    let (run, jobs) = journal.read(|state| (state.run.clone(), state.jobs.clone()))?;
    let strays = find_strays(client, &run, &jobs).await?;
    if let Some(batch) = strays.iter().find(|batch| !batch.status.is_terminal()) {
        return Err(Error::new(
            Kind::TryAgain,
            format!("{}: batch {} of this job is {}, and not in its journal", dir.display(), batch.id, batch.status),
        )
        .fix("wait for its end or cancel it; `zbatch doctor --orphans` shows how"));
    }
    for job in jobs.iter().filter(|job| !job.is_cleaned()) {
        let mut all = true;
        for id in job.remote_files() {
            all &= delete(client, id, &job.chunk.id.to_string(), told).await?;
        }
        if all && job.step() == Step::Fetched {
            journal.append(&Event::Cleaned { chunk: job.chunk.id.clone() })?;
        }
    }
    for batch in &strays {
        for id in [&batch.output_file_id, &batch.error_file_id, &batch.input_file_id].into_iter().flatten() {
            delete(client, id, &format!("batch {}", batch.id), told).await?;
        }
    }
    Ok(())
}

async fn delete(client: &Client, id: &FileId, of: &str, told: &mut Told) -> Result<bool> {
    let is_meant = told.tell("delete at the provider:", &format!("file {id} of {of}"))?;
    if is_meant {
        client.delete(id).await?;
    }
    Ok(is_meant)
}

/// Batches with this directory's mark that its journal does not name.
async fn find_strays(client: &Client, run: &str, jobs: &[Job]) -> Result<Vec<Batch>> {
    let known: HashSet<&BatchId> = jobs.iter().filter_map(Job::batch).collect();
    let is_ours = |batch: &Batch| {
        let of_run = batch.metadata.get(MARK).and_then(|mark| mark.split_once('/')).map(|(run, _)| run);
        of_run == Some(run) && !known.contains(&batch.id)
    };
    let listing = client.find_batches(is_ours).await?;
    if !listing.complete {
        return Err(Error::new(Kind::TryAgain, "the list of batches did not come to its end; nothing is deleted")
            .fix("run the same command again, or --local for this machine alone"));
    }
    Ok(listing.found)
}

fn clean_directory(work: &WorkDir, state: &State, args: &CleanArgs, told: &mut Told) -> Result<()> {
    let jobs = &state.jobs;
    let all_results = work.join(ALL_RESULTS);
    if args.compress && told.tell("write", &all_results.display().to_string())? {
        write_results(&all_results, work, state)?;
    }
    // What no step needs any more. A job that `cancel` holds may go on with its other chunks.
    let is_over = |job: &&Job| args.all || args.compress || job.step() >= Step::Created;
    jobs.iter().filter(is_over).try_for_each(|job| told.remove(&work.request(&job.chunk.id)))?;
    if state.config.as_ref().is_some_and(|config| config.emulate) {
        remove_emulator(work.folder(), told)?;
    }
    if !args.all && !args.compress {
        return Ok(());
    }
    for job in jobs {
        ResultFile::BOTH.into_iter().try_for_each(|file| told.remove(&work.results(&job.chunk.id, file)))?;
        told.remove(&work.rows(&job.chunk.id))?;
    }
    // The posts may be here alone; the journal goes last, since without one the rest would be taken for a loss.
    let kept = |name: &&&str| [FILE, LOCK].contains(*name) || args.compress && [SPOOL, SPOOL_HASH].contains(*name);
    for name in NAMES.iter().filter(|name| !kept(name)).chain(&[FILE, LOCK]) {
        told.remove(&work.file(name))?;
    }
    if !told.dry {
        FOLDERS.iter().for_each(|folder| remove_empty(&work.join(folder)));
        remove_empty(work.path());
    }
    Ok(())
}

/// What holds something else stays.
fn remove_empty(dir: &Path) {
    let _not_empty = std::fs::remove_dir(dir);
}

/// Files that the embedded server made.
fn remove_emulator(dir: &Folder, told: &mut Told) -> Result<()> {
    let is_file_id = |name: &str| {
        name.split_once('_').is_some_and(|(seconds, hash)| {
            let is_hash = hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            is_hash && seconds.bytes().all(|b| b.is_ascii_digit())
        })
    };
    for folder in ["emulator/files", "emulator"] {
        let is_folder = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !dir.file(folder).stat()?.is_some_and(is_folder) {
            continue;
        }
        for entry in list(dir, folder)? {
            let name = entry.name().file_name().unwrap_or_default().to_string_lossy().into_owned();
            if is_file_id(&name) || name == emulator::STATE_FILE {
                told.remove(&entry)?;
            }
        }
        if !told.dry {
            remove_empty(&dir.path().join(folder));
        }
    }
    Ok(())
}
