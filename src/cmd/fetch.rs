//! Batches → results files.

mod elsewhere;

use std::path::Path;

use futures::stream;
use tokio::sync::mpsc;

use super::{
    Ended, outputs,
    remote::{Opened, client, command, conclude, job_settings, keep_to_server, open, runtime},
};
use crate::{
    cli::FetchArgs,
    console::Console,
    error::{Error, Result},
    flow::ChunkId,
    jobs::{Fetched, Goal, Jobs, UNREAD, drive, hand_over},
    journal::{Event, Journal, State, Step, totals},
    lines::output::Output,
    progress::Progress,
    snapshots,
    stop::Stop,
    threads,
    units::count,
    workdir::{
        WorkDir,
        results::{Lost, append_results, find_lost_results},
    },
};

pub fn run(args: &FetchArgs, console: &Console) -> Result<Ended> {
    if !args.batch.is_empty() {
        return elsewhere::run(args, console);
    }
    let Opened { config, dir, work, journal } = open(&args.source, &args.work, &args.provider, console)?;
    // Not after the hours that the batches take.
    if let Some(path) = &args.output {
        outputs::refuse_in_work_dir("-o", path, Some(&dir))?;
        Output::probe(path)?;
    }
    let Lost { mut again, gone } = journal.read(|state| find_lost_results(state, &work, console))?;
    let keep_remote = config.keep_remote(args.remote.keep_remote).value;
    if args.again.is_empty() && again.is_empty() && journal.read(|state| all_is_here(state, keep_remote))? {
        // Nothing to ask a provider for, and so no key.
        let (_, none) = mpsc::channel(1);
        if let Some(path) = &args.output {
            appear(emit_all(path, &work, &journal, none)?, path, gone, console)?;
        }
        return journal.read(|state| tell(state, gone, console));
    }
    let client = client(&config, &args.provider, &args.remote, console)?;
    keep_to_server(&journal, &client, &dir)?;
    again.extend(journal.read(|state| named_again(&args.again, state))??);
    again.sort_unstable();
    again.dedup();
    if !args.again.is_empty() {
        console.note(format_args!("downloading again: {}", count(again.len(), "chunk")));
    }
    again.into_iter().try_for_each(|chunk| journal.append(&Event::Again { chunk }))?;
    let settings = job_settings(&config, Goal::Fetched, &args.remote, None, false);
    let progress = Progress::new(*console, Some(journal.read(|state| state.jobs.len())? as u64));
    let runtime = runtime()?;
    let stop = Stop::listen(&runtime, config.timeout(args.remote.timeout).map(|timeout| timeout.value))?;
    let jobs = Jobs::new((&client, &work, &journal), settings, &stop, &progress);
    let (send, receive) = mpsc::channel(UNREAD);
    let send = args.output.is_some().then_some(send);
    let (held, shared) = (&work, &journal);
    let (end, emitted) = std::thread::scope(|scope| {
        let emit = |path| threads::spawn_scoped(scope, move || emit_all(path, held, shared, receive));
        let emitter = args.output.as_deref().map(emit).transpose()?;
        let end = runtime.block_on(drive(&jobs, stream::empty(), hand_over(send)));
        let died = |_| Err(Error::input("the thread that writes the results died; run the same command again"));
        let emitted = emitter.map(|emitter| emitter.join().unwrap_or_else(died)).transpose();
        Ok::<_, Error>((end, emitted))
    })?;
    journal.read(|state| snapshots::write_download_info(&work, state, console))??;
    let (end, output) = (end?, emitted?);
    let next = {
        let next = |verb| command(verb, &dir, &args.typed);
        let (all_created, is_cancelled) = journal.read(|state| (state.below(Step::Created) == 0, state.cancelled))?;
        let resume = if is_cancelled { " --resume" } else { "" };
        if all_created { next("fetch") } else { format!("{}{resume}, then {}", next("submit"), next("fetch")) }
    };
    let ended = journal.read(|state| conclude(end, state, Goal::Fetched, &next, console))??;
    if let (Some(output), Some(path), Ended::Finished) = (output, &args.output, ended) {
        appear(output, path, gone, console)?;
    }
    let found = journal.read(|state| tell(state, gone, console))?;
    Ok(if ended == Ended::Finished { found } else { ended })
}

/// Results that are `gone` may be in an output that is there already: it stays.
fn appear(output: Output, path: &Path, gone: usize, console: &Console) -> Result<()> {
    if gone == 0 || !outputs::is_there(path)? {
        return output.commit();
    }
    let aside = output.commit_aside()?;
    console.always(format_args!(
        "{} stays as it is, since it may hold the results that are gone; the new output is in {}",
        path.display(),
        aside.display()
    ));
    Ok(())
}

/// Every chunk's results are on disk, and nothing is left to delete at the provider.
fn all_is_here(state: &State, keep_remote: bool) -> bool {
    state.jobs.iter().all(|job| job.step() == Step::Fetched && (job.is_cleaned() || keep_remote))
}

/// Prints the counts of the rows. Absent rows, foreign lines and unreadable lines are faults, and so is a results file that
/// neither this machine nor the provider has.
fn tell(state: &State, gone: usize, console: &Console) -> Ended {
    let rows = totals(&state.jobs);
    console.note(format_args!(
        "{}, {}, {}, {}, {}",
        count(rows.output, "result"),
        count(rows.error, "error"),
        count(rows.absent, "absent row"),
        count(rows.foreign, "foreign line"),
        count(rows.bad, "unreadable line")
    ));
    if rows.absent > 0 || rows.foreign > 0 || rows.bad > 0 || gone > 0 { Ended::WithFaults } else { Ended::Finished }
}

/// The chunks that `--again` names.
fn named_again(names: &[String], state: &State) -> Result<Vec<ChunkId>> {
    let mut chunks = Vec::new();
    for name in names {
        if name == "failed" {
            chunks.extend(state.jobs.iter().filter(|job| job.came_short()).map(|job| job.chunk.id.clone()));
            continue;
        }
        let id: ChunkId = name.parse().map_err(Error::usage)?;
        let job = state
            .job(&id)
            .ok_or_else(|| Error::usage(format!("there is no chunk {id}")).fix("`zbatch status` lists the chunks"))?;
        if job.is_cleaned() {
            return Err(Error::input(format!("the files of {id} at the provider are deleted already"))
                .fix("--keep-remote keeps them; what is here is in results/"));
        }
        if job.step() == Step::Fetched {
            chunks.push(id);
        }
    }
    Ok(chunks)
}

/// Writes the results of every fetched chunk, one whole file at a time: first those that were here, then the others as
/// they come. Whether that was all, and the output may appear, the caller knows.
fn emit_all(path: &Path, work: &WorkDir, journal: &Journal, mut fetched: mpsc::Receiver<Fetched>) -> Result<Output> {
    let mut output = Output::create(Some(path))?;
    let here = journal.read(|state| state.fetched())?;
    for place in &here {
        append_results(&journal.job(*place)?, work, &mut output)?;
    }
    while let Some(chunk) = fetched.blocking_recv() {
        // It may have come before the journal was read.
        if here.binary_search(&chunk.place).is_err() {
            append_results(&journal.job(chunk.place)?, work, &mut output)?;
        }
    }
    Ok(output)
}
