//! A chunk's way to a batch that exists: upload, intent, create (`docs/reliability.md` M1).

use std::time::Duration;

use tokio::time::sleep;

use super::{
    Goal, Jobs, check_caps,
    give_up::{Closes, Halt},
    listed::CONTENT,
    lookup::Listed,
    patience::is_unreachable,
};
use crate::{
    blocking,
    drill::{self, Guard},
    error::{Error, Kind, Result},
    flow::{
        ChunkId,
        rows::{FileMark, RowSet},
    },
    journal::{ChunkPlace, Event, Job, JobStatus, State},
    provider::{Batch, Class, CreateError, FileId, MARK},
};

/// Creates refused for the moment (rate, overload) before the chunk is given up.
const REFUSALS: u32 = 30;
const REFUSALS_NO_WAIT: u32 = 2;
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_REFUSAL_PAUSE: Duration = Duration::from_secs(60);

/// How the way to a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batched {
    Created,
    /// The create was refused, since the account's queue is full.
    QueueFull,
    /// Another chunk of the model has just found the queue full.
    TurnedBack,
}

/// How a create ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// The journal says how.
    Once,
    QueueFull,
}

impl Jobs<'_> {
    /// To a batch that exists: made by this process, or found in a listing.
    pub(super) async fn to_batch(&self, place: ChunkPlace) -> Result<Batched, Halt> {
        let mut refusals = 0;
        let mut is_looked_for = !self.journal.resumed || drill::without(Guard::History);
        let mut turn = None;
        let model = self.journal.job(place)?.chunk.model;
        let times_full = self.slots.times_full(&model);
        loop {
            let job = self.journal.job(place)?;
            match &job.status {
                JobStatus::Created { .. } | JobStatus::Ended { .. } | JobStatus::Fetched { .. } => {
                    return Ok(Batched::Created);
                }
                JobStatus::Intended { .. } if self.settings.goal == Goal::Fetched => {
                    if self.unless_stopped(self.adopt(&job)).await?? != Listed::Adopted {
                        return Err(Halt::Left);
                    }
                }
                JobStatus::Intended { .. } => {
                    // It may take minutes.
                    turn = None;
                    self.unless_stopped(self.look_up(&job)).await??;
                }
                _ if self.settings.goal == Goal::Fetched || !self.slots.are_open_for(&model) => return Err(Halt::Left),
                // An upload that no batch can use now would only lie at the provider.
                _ if self.slots.times_full(&model) > times_full => return Ok(Batched::TurnedBack),
                _ if !is_looked_for => {
                    self.unless_stopped(self.adopt_stray(&job)).await??;
                    is_looked_for = true;
                }
                _ if turn.is_none() => {
                    turn = Some(self.unless_stopped(self.creates.acquire()).await?);
                }
                JobStatus::Cut => self.unless_stopped(self.upload(&job)).await??,
                JobStatus::Uploaded { file } => {
                    if self.create(&job, file, &mut refusals).await? == Sent::QueueFull {
                        return Ok(Batched::QueueFull);
                    }
                }
            }
        }
    }

    async fn upload(&self, job: &Job) -> Result<(), Halt> {
        let chunk = &job.chunk;
        let path = self.work.request(&chunk.id);
        if !path.exists()? {
            return Err(self.give_up(chunk, Closes::Nothing, RowSet::gone(&path)));
        }
        let file = path.clone();
        let mark = blocking::run(move || FileMark::of(&file)).await;
        let mark = mark.map_err(|error| self.give_up(chunk, Closes::Nothing, error))?;
        if mark.blake3 != chunk.blake3 && !drill::without(Guard::ChunkHash) {
            let error = Error::input(format!("{path} is not the file that was cut: its hash differs"))
                .fix("begin again with --new, or in another work directory");
            return Err(self.give_up(chunk, Closes::Nothing, error));
        }
        let name = format!("{}.jsonl", chunk.id);
        let uploaded = self.patiently(is_unreachable, async || self.client.upload(&path, &name).await).await?;
        let file_id = uploaded.map_err(|error| self.give_up_refused(chunk, error))?;
        Ok(self.append(&Event::Uploaded { chunk: chunk.id.clone(), file_id })?)
    }

    /// Sends a create, and waits if it was refused for the moment.
    async fn create(&self, job: &Job, file: &FileId, refusals: &mut u32) -> Result<Sent, Halt> {
        let (chunk, id) = (&job.chunk, &job.chunk.id);
        if self.unless_stopped(self.was_created_before(job)).await?? {
            return Ok(Sent::Once);
        }
        let error = match self.send_create(job, file).await? {
            Ok(batch) => {
                self.refused.set(0);
                let created = Event::Created { chunk: id.clone(), batch_id: batch.id, adopted: false, file_id: None };
                self.append(&created)?;
                return Ok(Sent::Once);
            }
            Err(CreateError::Ambiguous(error) | CreateError::Made(error)) => {
                self.progress.note(format_args!("{id}: no clear answer to its create ({error}); looking it up"));
                return Ok(Sent::Once);
            }
            // A page in the place of an answer is a no, unless the batch is there all the same.
            Err(CreateError::Denied(error)) => match self.unless_stopped(self.adopt(job)).await?? {
                Listed::Adopted => return Ok(Sent::Once),
                Listed::Absent { .. } => error,
            },
            Err(CreateError::Refused(error) | CreateError::NotSent(error)) => error,
        };
        self.append(&Event::Refused { chunk: id.clone(), why: error.to_string() })?;
        if error.says_full_queue() {
            self.slots.count_full(&chunk.model);
            return Ok(Sent::QueueFull);
        }
        *refusals += 1;
        // The uploaded file may be gone, or too old: one fresh upload is tried.
        if matches!(error.class, Class::NotFound | Class::BadRequest) && *refusals == 1 {
            // If this delete fails, an unused file is left there.
            let _deleted = self.unless_stopped(self.client.delete(file)).await?;
            self.append(&Event::Lost { chunk: id.clone(), why: error.to_string() })?;
            return Ok(Sent::Once);
        }
        let most = if self.settings.no_wait { REFUSALS_NO_WAIT } else { REFUSALS };
        if !error.is_retryable() || *refusals > most {
            return Err(self.give_up_refused(chunk, error));
        }
        let pause = REFUSAL_PAUSE.saturating_mul(1 << refusals.saturating_sub(1).min(6));
        let pause = pause.max(error.retry_after.unwrap_or_default()).min(LONGEST_REFUSAL_PAUSE);
        self.progress.detail(format_args!("{id}: {error}; trying again in {pause:?}"));
        self.unless_stopped(sleep(pause)).await?;
        Ok(Sent::Once)
    }

    /// A create that counted as lost, or that a repaired journal has forgotten, may be listed by now.
    async fn was_created_before(&self, job: &Job) -> Result<bool, Halt> {
        let repaired = self.journal.read(|state| state.repaired)?;
        if job.lost == 0 && !repaired {
            return Ok(false);
        }
        match self.adopt(job).await? {
            Listed::Adopted => Ok(true),
            Listed::Absent { is_proof: false } if repaired => {
                Err(self.give_up(&job.chunk, Closes::AllCreates, cannot_know(&job.chunk.id)))
            }
            Listed::Absent { .. } => Ok(false),
        }
    }

    /// Sends a create, once, between the event that announces it and the event that says how it ended.
    async fn send_create(&self, job: &Job, file: &FileId) -> Result<Result<Batch, CreateError>, Halt> {
        let (chunk, id) = (&job.chunk, &job.chunk.id);
        let attempt = job.attempt.saturating_add(1);
        // An intent is a create that may have been sent: the provider's pause comes before it.
        self.unless_stopped(self.client.turn()).await?;
        self.work.check_place()?;
        // Nothing is awaited between this and the intent, so that no other create comes in between.
        if let Some(error) = self.over_the_cap(job)? {
            return Err(self.give_up(chunk, Closes::AllCreates, error));
        }
        let (file_id, blake3) = (file.clone(), chunk.blake3.clone());
        let intent = Event::Intent { chunk: id.clone(), file_id, attempt, blake3 };
        if !drill::without(Guard::Intent) {
            self.append(&intent)?;
        }
        let metadata = [
            (MARK, self.mark(job)?),
            ("analysis", chunk.analysis.clone()),
            ("chunk", id.to_string()),
            ("attempt", attempt.to_string()),
            (CONTENT, chunk.blake3.clone()),
        ];
        let create = self.stop.run_last_call(self.client.create(file, &metadata));
        let answer = create.await.map_err(|_| Halt::Left)?;
        if drill::without(Guard::Intent) {
            self.append(&intent)?;
        }
        if let Err(unclear @ (CreateError::Ambiguous(error) | CreateError::Made(error))) = &answer {
            let made = matches!(unclear, CreateError::Made(_)) && !drill::without(Guard::Made);
            let why = error.to_string();
            self.append(&Event::Unclear { chunk: id.clone(), why, status: error.status, made })?;
        }
        Ok(answer)
    }

    fn over_the_cap(&self, job: &Job) -> Result<Option<Error>> {
        let (batches, requests) = self.journal.read(State::spent)?;
        Ok(check_caps(&self.settings, batches.saturating_add(1), requests.saturating_add(job.chunk.lines)))
    }
}

/// The journal has lost events, and the list does not show which batches they named.
fn cannot_know(id: &ChunkId) -> Error {
    let what = format!(
        "{id}: the journal was repaired, and the provider's list cannot show whether the chunk has a batch: none is created"
    );
    Error::new(Kind::TryAgain, what).fix("look at the provider's console, and run the same command later")
}
