//! Chunks → batches.

use std::ops::ControlFlow;

use futures::stream;

use super::{
    Ended,
    remote::{Opened, announce, client, command, conclude, job_settings, keep_to_server, open, runtime},
};
use crate::{
    cli::SubmitArgs,
    console::Console,
    error::Result,
    jobs::{Goal, Jobs, check_caps, drive},
    journal::{State, Step},
    progress::Progress,
    snapshots,
    stop::Stop,
    units::sum,
    workdir::claim::stays_cancelled,
};

pub fn run(args: &SubmitArgs, console: &Console) -> Result<Ended> {
    let Opened { config, dir, work, journal } = open(&args.source, &args.work, &args.provider, console)?;
    let next = |verb| command(verb, &dir, &args.typed);
    if stays_cancelled(&journal, args.spend.resume, &dir, console)? {
        console.note(format_args!(
            "what its batches finished: {}; to go on: {} --resume",
            next("fetch"),
            next("submit")
        ));
        return Ok(Ended::Remains);
    }
    let client = client(&config, &args.provider, &args.remote, console)?;
    keep_to_server(&journal, &client, &dir)?;
    let settings = job_settings(&config, Goal::Submitted, &args.remote, Some(&args.spend), false);
    let (chunks, requests, bytes) = journal.read(|state| {
        let waiting = || state.jobs.iter().filter(|job| job.step() < Step::Intended);
        let (requests, bytes) = (waiting().map(|job| job.chunk.lines), waiting().map(|job| job.chunk.bytes));
        (state.below(Step::Intended), sum(requests), sum(bytes))
    })?;
    if chunks > 0 {
        announce(console, chunks, requests, bytes, &settings);
    }
    let (batches_spent, requests_spent) = journal.read(State::spent)?;
    if let Some(error) =
        check_caps(&settings, batches_spent.saturating_add(chunks), requests_spent.saturating_add(requests))
    {
        return Err(error);
    }
    let progress = Progress::new(*console, Some(journal.read(|state| state.jobs.len())? as u64));
    let runtime = runtime()?;
    let stop = Stop::listen(&runtime, config.timeout(args.remote.timeout).map(|timeout| timeout.value))?;
    let jobs = Jobs::new((&client, &work, &journal), settings, &stop, &progress);
    // All chunks are in the journal: none comes later.
    let end = runtime.block_on(drive(&jobs, stream::empty(), |_| ControlFlow::Continue(())));
    journal.read(|state| snapshots::write_batch_results(&work, state, console))??;
    let end = end?;
    let ended = journal.read(|state| conclude(end, state, Goal::Submitted, &next("submit"), console))??;
    if ended == Ended::Finished {
        if journal.read(|state| state.posts.is_none())? {
            console.always("the input was not cut to its end: run the same `zbatch gen -d` or `zbatch chunk -d` again");
        }
        console.note(format_args!("every chunk has a batch; next: {}", next("fetch")));
    }
    Ok(ended)
}
