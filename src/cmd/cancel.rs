//! Cancels what runs.

use super::{
    Ended,
    remote::{Opened, client, command, open, runtime},
};
use crate::{cli::CancelArgs, console::Console, error::Result, journal::Step, provider::BatchId};

pub fn run(args: &CancelArgs, console: &Console) -> Result<Ended> {
    let Opened { config, dir, work: _held, journal } = open(&args.source, &args.work, &args.provider, console)?;
    let client = client(&config, &args.provider, &args.remote)?;
    let runtime = runtime()?;
    let running = journal.state.jobs.iter().filter(|job| job.step == Step::Created);
    let (mut asked, mut trouble) = (0, None);
    for job in running {
        let Some(id) = &job.batch_id else { continue };
        let id: BatchId = id.parse()?;
        match runtime.block_on(client.cancel(&id)) {
            Ok(batch) => {
                asked += 1;
                console.note(format_args!("{}: {id} is {}", job.chunk.id, batch.status.as_str()));
            }
            // It may have ended before we knew.
            Err(error) => match runtime.block_on(client.batch(&id)) {
                Ok(batch) if batch.status.is_terminal() => {
                    console.note(format_args!("{}: {id} is {} already", job.chunk.id, batch.status.as_str()));
                }
                _ => {
                    console.always(format_args!("{}: {error}", job.chunk.id));
                    trouble.get_or_insert(error);
                }
            },
        }
    }
    let next = command("fetch", &dir, &args.typed);
    let unclear = journal.state.at(Step::Intended);
    if unclear > 0 {
        console.always(format_args!(
            "{unclear} creates have no known answer, and what they made is not cancelled; `{next}` finds it, then cancel again"
        ));
    }
    console.note(format_args!("{asked} batches asked to cancel; next: {next}"));
    trouble.map_or(Ok(Ended::Finished), |error| Err(error.into()))
}
