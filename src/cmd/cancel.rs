//! Cancels what runs.

use super::{
    Ended,
    remote::{Opened, client, command, keep_to_server, open, runtime},
};
use crate::{
    cli::CancelArgs,
    console::Console,
    error::Result,
    journal::{Event, Job, Step},
    units::count,
};

pub fn run(args: &CancelArgs, console: &Console) -> Result<Ended> {
    let Opened { config, dir, work: _held, journal } = open(&args.source, &args.work, &args.provider, console)?;
    let client = client(&config, &args.provider, &args.remote, console)?;
    keep_to_server(&journal, &client, &dir)?;
    let runtime = runtime()?;
    let is_running = |job: &&Job| job.step() == Step::Created;
    let (running, holds, is_cancelled) = journal.read(|state| {
        let running = state.jobs.iter().filter(is_running);
        let running = running.filter_map(|job| Some((job.chunk.id.clone(), job.batch()?.clone())));
        let holds = state.posts.is_none() || state.below(Step::Fetched) > 0;
        (running.collect::<Vec<_>>(), holds, state.cancelled)
    })?;
    let (mut asked, mut trouble) = (0_u64, None);
    // The event comes before the first call: if this process dies, no other one creates batches.
    if holds && !is_cancelled {
        journal.append(&Event::Cancelled {})?;
    }
    for (chunk, id) in running {
        match runtime.block_on(client.cancel(&id)) {
            Ok(batch) => {
                asked += 1;
                console.note(format_args!("{chunk}: {id} is {}", batch.status.as_str()));
                journal.append(&Event::Cancelling { chunk })?;
            }
            // It may have ended before we knew.
            Err(error) => match runtime.block_on(client.batch(&id)) {
                Ok(batch) if batch.status.is_terminal() => {
                    console.note(format_args!("{chunk}: {id} is {} already", batch.status.as_str()));
                }
                _ => {
                    console.always(format_args!("{chunk}: {error}"));
                    trouble.get_or_insert(error);
                }
            },
        }
    }
    let next = command("fetch", &dir, &args.typed);
    let unclear = journal.read(|state| state.at(Step::Intended))?;
    if unclear > 0 {
        console.always(format_args!(
            "no answer is known to {}, and what that made is not cancelled; `{next}` finds it, then cancel again",
            count(unclear, "create")
        ));
    }
    if holds {
        console.note("no batch is created here any more, until submit or run is given --resume");
    }
    console.note(format_args!("asked to cancel: {}; next: {next}", count(asked, "batch")));
    trouble.map_or(Ok(Ended::Finished), |error| Err(error.into()))
}
