//! The life of a chunk, from top to bottom.

use super::{
    Fetched, Goal, Jobs,
    create::Batched,
    give_up::{Closes, Halt},
    poll::PollEnd,
    slots::{Full, Slot},
};
use crate::{
    error::{Error, Kind, Result},
    journal::{ChunkPlace, Step},
    units::count,
};

/// How often in a row the account's queue may be found full, while no batch of this job runs, before the model's chunks are
/// given up until the next command.
pub(super) const FULL_QUEUES: u32 = 20;

impl Jobs<'_> {
    /// Drives a chunk on from where the journal says that it stands. `slot`: what it holds until its batch has ended.
    ///
    /// # Errors
    /// The journal or the disk failed.
    pub(super) async fn drive(&self, place: ChunkPlace, slot: Option<Slot<'_>>) -> Result<Option<Fetched>> {
        match self.live(place, slot).await {
            Ok(fetched) => Ok(fetched),
            Err(Halt::Left) => Ok(None),
            Err(Halt::Broken(error)) => Err(error),
        }
    }

    async fn live(&self, place: ChunkPlace, slot: Option<Slot<'_>>) -> Result<Option<Fetched>, Halt> {
        let begins_at = self.journal.job(place)?.step();
        if let Some(mut slot) = slot {
            if begins_at < Step::Created {
                match Box::pin(self.to_batch(place)).await? {
                    Batched::Created => slot.created(),
                    Batched::QueueFull => return self.wait_for_queue(place, slot),
                    Batched::TurnedBack => {
                        slot.wait_again(place);
                        return Ok(None);
                    }
                }
            }
            let at_once = begins_at == Step::Created || self.settings.no_wait;
            match Box::pin(self.unless_stopped(self.to_end(place, at_once))).await?? {
                PollEnd::Ended => slot.ended(),
                PollEnd::QueueFull => return self.wait_for_queue(place, slot),
                PollEnd::RunsOn => {
                    slot.keep();
                    return Ok(None);
                }
            }
            if self.settings.goal == Goal::Submitted {
                return Ok(None);
            }
        }
        let fetched = match begins_at {
            Step::Fetched => None,
            _ => Some(Box::pin(self.unless_stopped(self.to_results(place))).await??),
        };
        match Box::pin(self.unless_stopped(self.clean(place))).await {
            // The results are here all the same.
            Err(_stopped) => Ok(fetched),
            Ok(cleaned) => Ok(cleaned.map(|()| fetched)?),
        }
    }

    /// The chunk found the provider's queue full: it waits before all others of its model, and they wait too.
    fn wait_for_queue(&self, place: ChunkPlace, slot: Slot<'_>) -> Result<Option<Fetched>, Halt> {
        let job = self.journal.job(place)?;
        let chunk = &job.chunk;
        // A create that was refused leaves its upload; a batch that failed had been created.
        let was_made = job.step() != Step::Uploaded;
        let full = slot.wait_for_queue(place, was_made, self.settings.poll_interval);
        let Full { times, running, pause, is_news } = full;
        let waits = !self.settings.no_wait && self.settings.goal != Goal::Fetched;
        if is_news {
            let next = match waits {
                true => format!("it is tried again when one of them has ended, or in {} s", pause.as_secs().max(1)),
                false => "it is tried again by the next command".to_owned(),
            };
            self.progress.note(format_args!(
                "{}: the provider's queue for {} is full, with {} of this job in it ({}); {next}",
                chunk.id,
                chunk.model,
                count(running, "batch"),
                job.trouble.as_deref().unwrap_or_default()
            ));
        }
        if !waits {
            self.slots.close_model(&chunk.model);
        } else if times > FULL_QUEUES && running == 0 {
            let what = format!("the provider's queue was full {FULL_QUEUES} times in a row");
            let error = Error::new(Kind::Unavailable, what)
                .fix("run the same command again when other batches of the account have ended");
            self.slots.close_model(&chunk.model);
            return Err(self.give_up(chunk, Closes::Nothing, error));
        }
        Ok(None)
    }
}
