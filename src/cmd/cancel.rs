//! Cancels what runs.

use super::{
    Ended,
    remote::{Opened, client, command, keep_to_server, open, runtime},
};
use crate::{
    cli::CancelArgs,
    console::Console,
    error::Result,
    flow::ChunkId,
    journal::{Event, Step},
    provider::BatchId,
    units::count,
};

pub fn run(args: &CancelArgs, console: &Console) -> Result<Ended> {
    let Opened { config, dir, work: _held, mut journal } = open(&args.source, &args.work, &args.provider, console)?;
    let client = client(&config, &args.provider, &args.remote, console)?;
    keep_to_server(&mut journal, &client, &dir)?;
    let runtime = runtime()?;
    let running = journal.state.jobs.iter().filter(|job| job.step == Step::Created);
    let running: Vec<(ChunkId, String)> =
        running.filter_map(|job| Some((job.chunk.id.clone(), job.batch_id.clone()?))).collect();
    let (mut asked, mut trouble) = (0_u64, None);
    // The event comes before the first call: if this process dies, no other one creates batches.
    let holds = journal.state.posts.is_none() || journal.state.below(Step::Fetched) > 0;
    if holds && !journal.state.cancelled {
        journal.append(&Event::Cancelled {})?;
    }
    for (chunk, id) in running {
        let id: BatchId = id.parse()?;
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
    let unclear = journal.state.at(Step::Intended);
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
