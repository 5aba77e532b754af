//! From a batch to its end: polls, spread over the interval.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Goal, Jobs,
    give_up::{Closes, Halt},
};
use crate::{
    cli::OnAmbiguous,
    error::{Error, Result},
    journal::{BatchEnd, ChunkPlace, Event, Job, Made, RefusedLine},
    provider::{ApiError, Batch, BatchId, Class},
};

/// Polls in a row that were refused, before the chunk is left to the next command.
const FAILED_POLLS: u32 = 10;
/// Polls in a row that do not find the batch, before it has vanished.
const ABSENT_POLLS: u32 = 5;
/// The status of such a batch.
const VANISHED: &str = "vanished";
/// How often a terminal batch that lacks file ids or counts is polled again before it is accepted.
const VAGUE_POLLS: u32 = 3;
/// Seconds after which a command that does not wait gives up a batch or a file that the provider does not have, counted from
/// the first command that asked for it.
pub(super) const LATEST: u64 = 600;
/// Between two polls of many batches: ten a second, whatever their number and the interval.
const POLL_GAP: Duration = Duration::from_millis(100);
/// This many batches are polled as often as the interval says, however short it is.
const FEW_BATCHES: u32 = 3;
/// Polls that may be sent at once.
const FEW_POLLS: u32 = 10;

/// How the polls of a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollEnd {
    /// The batch is terminal.
    Ended,
    /// Nothing of the batch ran, since the account's queue was full.
    QueueFull,
    /// `--no-wait`: the next command asks again.
    RunsOn,
}

/// The polls of one batch so far.
#[derive(Default)]
struct Polls {
    /// In a row: those that failed, and those that did not find the batch.
    failed: u32,
    absent: u32,
    /// Those that found it half empty after its end.
    vague: u32,
    /// This key has shown the batch.
    is_known: bool,
}

impl Polls {
    /// The pause before the next poll. Batches that were created together are not polled together for ever. A batch that is
    /// not there is given more time each time.
    fn pause(&self, poll_interval: Duration) -> Duration {
        let spread = poll_interval.mul_f64(0.75 + fastrand::f64() / 2.0);
        match self.absent {
            0 => spread,
            absent => spread.max(Duration::from_secs(1 << (absent - 1).min(6))),
        }
    }
}

/// Spreads polls in time: a few may be sent at once, more of them one after the other.
#[derive(Debug)]
pub(super) struct Pace {
    /// Between two polls; `None`: there is no server to be spared.
    gap: Option<Duration>,
    next: Cell<Option<Instant>>,
}

impl Pace {
    /// `poll_interval`: `None` where there is no server to be spared.
    pub fn new(poll_interval: Option<Duration>) -> Self {
        Self { gap: poll_interval.map(|interval| POLL_GAP.min(interval / FEW_BATCHES)), next: Cell::new(None) }
    }

    async fn turn(&self) {
        let Some(gap) = self.gap else { return };
        let now = Instant::now();
        let earliest = now.checked_sub(gap * FEW_POLLS).unwrap_or(now);
        let turn = self.next.get().map_or(earliest, |next| next.max(earliest));
        self.next.set(Some(turn + gap));
        sleep_until(turn).await;
    }
}

impl Jobs<'_> {
    /// To a terminal batch. `at_once`: the first poll does not wait for the interval.
    pub(super) async fn to_end(&self, place: ChunkPlace, mut at_once: bool) -> Result<PollEnd, Halt> {
        let job = self.journal.job(place)?;
        let made = batch_of(&job)?;
        // A batch that this process made was made with this key.
        let was_before = self.account.before.borrow().contains(&made.batch);
        let mut polls = Polls { is_known: !was_before, ..Polls::default() };
        loop {
            if !at_once {
                let pause = polls.pause(self.settings.poll_interval);
                self.progress.polls_in(pause);
                sleep(pause).await;
            }
            at_once = false;
            self.polls.turn().await;
            let polled = self.patiently(ApiError::is_retryable, async || self.client.batch(&made.batch).await);
            match polled.await? {
                Ok(batch) if batch.found_full_queue() => {
                    self.undo_for_full_queue(&job, made, &batch).await?;
                    return Ok(PollEnd::QueueFull);
                }
                Ok(batch) => {
                    self.account.sees_ours.set(self.account.sees_ours.get() || was_before);
                    (polls.failed, polls.absent, polls.is_known) = (0, 0, true);
                    if self.has_ended(&job, &batch, &mut polls)? {
                        return Ok(PollEnd::Ended);
                    }
                }
                Err(error) if error.class == Class::NotFound => {
                    if let Some(end) = self.not_there(&job, made, error, &mut polls).await? {
                        return Ok(end);
                    }
                }
                Err(error) => self.failed_poll(&job, error, &mut polls)?,
            }
            if self.settings.no_wait {
                return Ok(PollEnd::RunsOn);
            }
        }
    }

    /// Whether the batch is terminal; the journal says so then.
    fn has_ended(&self, job: &Job, batch: &Batch, polls: &mut Polls) -> Result<bool> {
        if !batch.status.is_terminal() {
            return Ok(false);
        }
        let end = end_of(batch);
        // The object may be half empty now and whole the next time.
        if is_vague(&end) && polls.vague < VAGUE_POLLS && !self.settings.no_wait {
            polls.vague += 1;
            return Ok(false);
        }
        // For other goals the status is reported together with the absent rows.
        if end.status != "completed" && self.settings.goal == Goal::Submitted {
            self.progress.always(format_args!("{}: {}", job.chunk.id, describe_end(&batch.id, &end)));
        }
        self.append(&Event::Ended { chunk: job.chunk.id.clone(), end })?;
        Ok(true)
    }

    /// A failed poll is not a state change.
    fn failed_poll(&self, job: &Job, error: ApiError, polls: &mut Polls) -> Result<(), Halt> {
        polls.failed += 1;
        // `Class::Io` comes from the disk of the emulator in this process: polling again cannot help.
        let for_good =
            matches!(error.class, Class::Key | Class::Io | Class::Redirect | Class::Certificate | Class::Proxy);
        if polls.failed > FAILED_POLLS || self.settings.no_wait || for_good || error.is_retryable() {
            return Err(self.give_up(&job.chunk, Closes::Nothing, error));
        }
        self.progress.detail(format_args!("{}: {error}", job.chunk.id));
        Ok(())
    }

    /// The provider does not have the batch, or not yet. After some polls it has vanished, with its results, provided that the
    /// key is the one it was created with: another account does not have it either.
    async fn not_there(
        &self,
        job: &Job,
        made: &Made,
        error: ApiError,
        polls: &mut Polls,
    ) -> Result<Option<PollEnd>, Halt> {
        let (id, why) = (&job.chunk.id, error.to_string());
        polls.absent += 1;
        self.progress.detail(format_args!("{id}: {error}"));
        if self.settings.no_wait {
            let now = seconds_now();
            if job.missing.is_none_or(|since| now.saturating_sub(since) <= LATEST) {
                self.append(&Event::Missing { chunk: id.clone(), why, at: now })?;
                return Ok(Some(PollEnd::RunsOn));
            }
        } else if polls.absent < ABSENT_POLLS {
            return Ok(None);
        }
        let is_ours =
            polls.is_known || self.account.sees_ours.get() || self.settings.on_ambiguous == OnAmbiguous::Again;
        if !is_ours && !self.lists_ours().await {
            let batch = &made.batch;
            let error = Error::from(error).fix(format!(
                "no batch of this directory is known under this key: if {batch} was created with another one, use that. If \
                 the provider has deleted all of them, `submit` or `run` of this directory with --on-ambiguous again gives them up"
            ));
            return Err(self.give_up(&job.chunk, Closes::Nothing, error));
        }
        let end = BatchEnd { status: VANISHED.to_owned(), errors: vec![why], ..BatchEnd::default() };
        self.append(&Event::Ended { chunk: id.clone(), end })?;
        Ok(Some(PollEnd::Ended))
    }

    /// Nothing of the batch ran: its chunk is as if it had never been sent (`docs/reliability.md` M6).
    async fn undo_for_full_queue(&self, job: &Job, made: &Made, batch: &Batch) -> Result<()> {
        let why = format!("nothing of batch {} ran: {}", batch.id, batch.errors.join("; "));
        self.slots.count_full(&job.chunk.model);
        // A fresh upload tells the next batch from this one in a listing. If this delete fails, an unused file is left there.
        if let Some(file) = &made.file {
            let _left_there = self.client.delete(file).await;
        }
        self.append(&Event::Full { chunk: job.chunk.id.clone(), why })
    }
}

/// The batch of a job that has one.
pub(super) fn batch_of(job: &Job) -> Result<&Made> {
    job.made().ok_or_else(|| Error::input(format!("the journal has no batch of {}; this is a bug", job.chunk.id)))
}

pub(super) fn end_of(batch: &Batch) -> BatchEnd {
    let counts = batch.request_counts;
    let refused = batch.refused_lines.iter().map(|(line, why)| RefusedLine { line: *line, why: why.clone() });
    BatchEnd {
        status: batch.status.as_str().to_owned(),
        output_file_id: batch.output_file_id.clone(),
        error_file_id: batch.error_file_id.clone(),
        total: counts.total,
        completed: counts.completed,
        failed: counts.failed,
        created_at: batch.created_at,
        completed_at: batch.completed_at,
        errors: batch.errors.clone(),
        refused_lines: refused.collect(),
    }
}

/// It promises rows and does not say where they are, or has files and does not say how many rows they hold.
pub(super) fn is_vague(end: &BatchEnd) -> bool {
    let (no_output, no_errors) = (end.output_file_id.is_none(), end.error_file_id.is_none());
    let uncounted = end.counts_nothing();
    let empty = no_output && no_errors;
    no_output && end.completed > 0 || no_errors && end.failed > 0 || uncounted && (!empty || end.status == "completed")
}

/// The provider did not have the batch any more.
pub(super) fn has_vanished(job: &Job) -> bool {
    job.end().is_some_and(|end| end.status == VANISHED)
}

pub(super) fn describe_end(batch: &BatchId, end: &BatchEnd) -> String {
    let why = if end.errors.is_empty() { "the provider gives no reason".to_owned() } else { end.errors.join("; ") };
    match end.status.as_str() {
        VANISHED => format!("its batch {batch} is not at the provider any more: {why}"),
        status => format!("its batch is {status}: {why} ({batch})"),
    }
}

/// Seconds since 1970.
pub(super) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
