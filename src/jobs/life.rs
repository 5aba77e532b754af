//! The life of a chunk, from top to bottom.

use super::{
    Fetched, Goal, Jobs, TOLD_CHUNKS,
    create::Batched,
    poll::PollEnd,
    slots::{Full, Slot},
};
use crate::{
    error::{Error, Kind, Result},
    flow::chunks::Chunk,
    journal::{ChunkPlace, Step},
    provider::{ApiError, Class},
    units::count,
};

/// Chunks given up one after another because their upload or create was refused as wrong, before no other is tried.
const REFUSED_CHUNKS: u32 = 3;
/// How often in a row the account's queue may be found full, while no batch of this job runs, before the model's chunks are
/// given up until the next command.
pub(super) const FULL_QUEUES: u32 = 20;

/// Why a chunk's life ends before its results are here.
#[derive(Debug)]
pub(super) enum Halt {
    /// The rest is left to another command, or to a later turn. If something is wrong, it has been said.
    Left,
    /// The journal or the disk failed: no job can go on.
    Broken(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// Which creates an error makes pointless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closes {
    /// None but that of its own chunk.
    Nothing,
    /// Those under the chunk's model.
    Model,
    AllCreates,
}

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

    /// Waits for a part of a life unless a signal or the deadline asks for the end.
    pub(super) async fn unless_stopped<T>(&self, part: impl Future<Output = T>) -> Result<T, Halt> {
        self.stop.run(part).await.map_err(|_| Halt::Left)
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

    /// Gives the rest of a chunk's life up, and says why. The first error is told again at the end, and there with its advice.
    pub(super) fn give_up(&self, chunk: &Chunk, closes: Closes, error: impl Into<Error>) -> Halt {
        let error = error.into();
        let mut end = self.end.borrow_mut();
        match closes {
            Closes::Nothing => {}
            Closes::Model => {
                end.refused_model = Some(chunk.model.clone());
                self.slots.close_model(&chunk.model);
            }
            Closes::AllCreates => self.slots.close(),
        }
        let id = chunk.id.to_string();
        let told = if end.left == 0 { error.line() } else { error.parts().0 };
        let told = if told.starts_with(&id) { told } else { format!("{id}: {told}") };
        end.left = end.left.saturating_add(1);
        match end.left {
            1 => self.progress.note(told),
            2..=TOLD_CHUNKS => self.progress.always(told),
            _ => self.progress.detail(told),
        }
        end.trouble.get_or_insert(error);
        Halt::Left
    }

    /// Gives a chunk up whose upload or create was refused. The first chunks may be bad in their own way; all of them are not.
    pub(super) fn give_up_refused(&self, chunk: &Chunk, error: ApiError) -> Halt {
        let mut closes = closes_after(&error);
        if closes == Closes::Nothing {
            self.refused.set(self.refused.get() + 1);
            if self.refused.get() >= REFUSED_CHUNKS {
                closes = Closes::AllCreates;
            }
        }
        self.give_up(chunk, closes, error)
    }
}

/// The creates that an error on the way to a batch makes pointless. An error on the way from a batch to its results closes none:
/// creates go on where only downloads fail.
pub(super) fn closes_after(error: &ApiError) -> Closes {
    match error.class {
        _ if error.is_too_large() => Closes::AllCreates,
        Class::Model => Closes::Model,
        Class::BadRequest | Class::NotFound => Closes::Nothing,
        Class::Key
        | Class::Account
        | Class::RateLimited
        | Class::Transient
        | Class::Unreachable
        | Class::Reply
        | Class::Redirect
        | Class::Certificate
        | Class::Proxy
        | Class::Io => Closes::AllCreates,
    }
}
