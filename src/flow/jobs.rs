//! Chunks → jobs → results files: the one async stage. A job is a chunk's way through the provider: upload, intent,
//! create, poll, download, verify, clean up. Every step is in the journal before the next one; a killed process goes on
//! from there.
//!
//! One task drives all jobs. It starts a job when there is room, gives the room to the next when the batch has ended, and
//! downloads meanwhile. Whoever stops it (a signal, a deadline) stops it between calls; only a create is waited for.

mod creates;
mod floor;
mod listed;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    fmt,
    future::Future,
    ops::ControlFlow,
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{OnceCell, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};

use self::{
    floor::{Floor, Full},
    listed::Strays,
};
use super::{
    chunks::Chunk,
    rows::{FileMark, RowBalance, RowSet, verify},
};
use crate::{
    blocking,
    cli::OnAmbiguous,
    drill::{self, Guard},
    error::{Error, Kind, Result},
    journal::{BatchEnd, ChunkPlace, Event, Job, Journal, RefusedLine, State, Step},
    progress::{Counts, Progress, Waiting},
    provider::{ApiError, Batch, BatchId, Class, Client, CreateError, FileId},
    stop::{Stop, StopReason},
    units::{count, sum},
    workdir::{ResultFile, WorkDir},
};

/// Polls in a row that were refused, before the batch counts as lost to us.
const FAILED_POLLS: u32 = 10;
/// Looks in a row at a batch that the provider does not have before it has vanished.
const ABSENT_LOOKS: u32 = 5;
/// The status of such a batch.
const VANISHED: &str = "vanished";
/// Polls of a batch that has ended and does not say where its results are, or how many, before it is taken as it is.
const VAGUE_POLLS: u32 = 3;
/// Chunks given up one after another because their upload or create was refused as wrong, before all others are spared it.
const REFUSED_CHUNKS: u32 = 3;
/// How often in a row the account's queue may be found full, while none of our batches runs, before the model's chunks are
/// given up until the next command.
const FULL_QUEUES: u32 = 20;
/// Seconds between downloads of a file that the provider does not have yet: its batch may have ended a moment ago.
const LATE_FILE: [u64; 7] = [2, 5, 10, 20, 40, 80, 120];
/// Seconds after which a command that does not wait gives up such a file, counted from the first that asked for it.
const LATEST_FILE: u64 = 600;
/// From the pause of this length on the wait is told.
const TOLD_FROM: u64 = 10;
/// Chunks of which one kind of trouble is told in full. One cause may meet thousands of them.
const TOLD_CHUNKS: u32 = 3;
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// Downloads of a file that came short.
const DOWNLOADS: u32 = 3;
/// Chunks on their way from upload to create at one time, and downloads: more of them would not be faster, only larger. A queue
/// that is found full has refused no more creates than these.
const TRANSFERS: usize = 4;
/// Chunks that wait for room, beside those that run: a few more on disk than are needed at once.
const WAITING: usize = 4;
/// Jobs that are looked after at one time, beside those that run; the places of the others wait. What a job takes does not add up over a
/// directory of many thousand chunks, nor do connections.
const LOOKED_AFTER: usize = 128;
/// Between two polls of many batches: ten a second, whatever their number and the interval.
const POLL_GAP: Duration = Duration::from_millis(100);
/// So many batches are polled as often as the interval says, however short it is.
const FEW_BATCHES: u32 = 3;
/// Polls that may be sent at once.
const FEW_POLLS: u32 = 10;
/// Between two looks at what the client waits for.
const LOOK_AT_WAITS: Duration = Duration::from_secs(5);
/// Between two lines that say that the job goes on.
const HEARTBEAT: Duration = Duration::from_secs(600);

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Every chunk has a batch.
    Submitted,
    /// Every batch that exists is terminal and its results are here.
    Fetched,
    /// Both.
    Done,
}

#[derive(Clone, Debug)]
pub struct JobSettings {
    pub goal: Goal,
    /// Most batches live at one time.
    pub max_concurrent: usize,
    pub poll_interval: Duration,
    pub settle: Duration,
    pub on_ambiguous: OnAmbiguous,
    pub max_batches: Option<u64>,
    pub max_requests: Option<u64>,
    /// How long a provider that is gone is waited for while batches run.
    pub patience: Duration,
    pub no_wait: bool,
    /// Ten polls a second are the most; an emulator in the same process need not be spared.
    pub spreads_polls: bool,
    pub keep_requests: bool,
    pub keep_remote: bool,
}

/// How the stage ended.
#[derive(Debug, Default)]
pub struct JobsEnd {
    /// The first thing that went wrong badly enough to leave chunks behind.
    pub trouble: Option<Error>,
    pub stopped: Option<StopReason>,
    /// A model that the provider does not take, or not any more.
    pub refused_model: Option<String>,
    /// Chunks that were left behind.
    pub left: u32,
    /// What calls still waited for.
    pub waits: Vec<Waiting>,
}

/// Where a job's future got to.
enum Reached {
    /// Its batch exists.
    Created(ChunkPlace),
    /// Its batch is terminal: there is room for another.
    Ended(ChunkPlace),
    /// It may not have a batch now.
    Left(ChunkPlace),
    /// The provider's queue was full: its create was refused for that, or its batch failed before anything ran.
    Full(ChunkPlace),
    /// Another chunk has just found the queue full: it waits with the others.
    Back(ChunkPlace),
    /// Nothing more to do: its results are here, or it is not to be waited for.
    Done,
}

/// Why a job's future gave up.
enum Gave {
    Stopped,
    /// Nobody takes the results any more.
    Unread,
    /// What remains of the chunk is not done; `place` is its place.
    Up {
        place: ChunkPlace,
        scope: Scope,
        error: Error,
    },
    /// Nothing can go on: the disk or the journal failed.
    Broken(Error),
}

/// What else is pointless after an error.
enum Scope {
    Chunk,
    /// Creates under this model.
    Model(String),
    /// All creates.
    Creates,
}

impl From<Error> for Gave {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// Drives the jobs of one work directory.
#[derive(Debug)]
pub struct Driver<'a> {
    pub client: &'a Client,
    pub work: &'a WorkDir,
    pub journal: &'a Journal,
    pub settings: JobSettings,
    pub stop: &'a Stop,
    pub progress: &'a Progress,
    /// Gets the place of each chunk whose results are here; bounded, so that a slow reader slows the fetching.
    pub fetched: Option<mpsc::Sender<ChunkPlace>>,
}

/// What the jobs share. Once `halted` is set, no job sends another create, not even one that has already uploaded.
struct Gate {
    halted: Cell<bool>,
    halted_models: RefCell<HashSet<String>>,
    /// Chunks in a row whose upload or create was refused as wrong.
    refused: Cell<u32>,
    /// How often the queue of each model was found full.
    full: RefCell<HashMap<String, u32>>,
    /// Turns on the way from upload to create.
    creates: Semaphore,
    downloads: Semaphore,
    polls: Pace,
    /// Batches that the journal knew at the start, and whether one of them was seen under this key.
    before: RefCell<HashSet<BatchId>>,
    sees_ours: Cell<bool>,
    /// What another copy of the directory made; `None`: it cannot be known now, and `untold` says why.
    strays: OnceCell<Option<Strays>>,
    untold: RefCell<Option<Error>>,
    /// Chunks whose files come late, and chunks whose results are gone.
    late: Cell<u32>,
    gone: Cell<u32>,
}

/// The looks at one batch so far.
#[derive(Default)]
struct Looks {
    /// In a row: those that failed, and those that did not find the batch.
    failed: u32,
    absent: u32,
    /// Those that found it half empty after its end.
    vague: u32,
    /// The key is the one it was created with.
    is_known: bool,
}

impl Looks {
    /// Batches that were created together are not polled together for ever. One that is not there is given more time each
    /// time.
    fn pause(&self, poll_interval: Duration) -> Duration {
        let spread = poll_interval.mul_f64(0.75 + fastrand::f64() / 2.0);
        match self.absent {
            0 => spread,
            absent => spread.max(Duration::from_secs(1 << (absent - 1).min(6))),
        }
    }
}

/// Spreads polls in time: a few may come at once, more of them one after the other.
struct Pace {
    /// Between two polls; `None`: there is no server to be spared.
    gap: Option<Duration>,
    next: Cell<Option<Instant>>,
}

/// One drive of the jobs: who is under way, who waits, and how it ended so far.
struct Round<'f> {
    gate: &'f Gate,
    floor: Floor,
    running: FuturesUnordered<JobFuture<'f>>,
    /// Places of jobs that have a batch: to be looked after when it is their turn.
    later: VecDeque<ChunkPlace>,
    end: JobsEnd,
}

impl<'f> Round<'f> {
    fn new(gate: &'f Gate) -> Self {
        Self {
            gate,
            floor: Floor::default(),
            running: FuturesUnordered::new(),
            later: VecDeque::new(),
            end: JobsEnd::default(),
        }
    }
}

/// Whether a results file that the provider does not have may come.
enum Late {
    After(Duration),
    /// The next command asks for it.
    NextTime,
    Never,
}

/// What a download of a batch's files brought.
struct Downloaded {
    balance: RowBalance,
    /// The first rows that are absent.
    absent: Vec<u64>,
    /// A file that the provider does not have, or not yet.
    missing: Option<ApiError>,
}

type JobFuture<'f> = LocalBoxFuture<'f, std::result::Result<Reached, Gave>>;

impl Driver<'_> {
    /// Drives all jobs of the journal, and those whose places come through `cut`, as far as the goal.
    ///
    /// # Errors
    /// The journal or the disk failed. Everything else is told in [`JobsEnd`].
    pub async fn drive(&self, cut: mpsc::Receiver<ChunkPlace>) -> Result<JobsEnd> {
        let end = tokio::select! {
            biased;
            end = self.drive_jobs(cut) => end?,
            never = self.say_waits() => match never {},
        };
        Ok(JobsEnd { waits: self.client.waits(), ..end })
    }

    /// Says what is waited for, once it is waited for long, and now and then how far all is.
    async fn say_waits(&self) -> Infallible {
        let heartbeat = drill::heartbeat(HEARTBEAT);
        let mut last = Instant::now();
        loop {
            sleep(LOOK_AT_WAITS.min(heartbeat)).await;
            for wait in self.client.long_waits() {
                self.progress.note(format_args!("still waiting {wait}"));
            }
            if last.elapsed() >= heartbeat {
                last = Instant::now();
                let waits = self.client.waits();
                // A journal that cannot be read ends the jobs elsewhere.
                let _told = self.journal.read(|state| self.progress.heartbeat(counts(state), &waits));
            }
        }
    }

    async fn drive_jobs(&self, mut cut: mpsc::Receiver<ChunkPlace>) -> Result<JobsEnd> {
        let goal = self.settings.goal;
        let gate = Gate::new(self.settings.spreads_polls.then_some(self.settings.poll_interval));
        let mut round = Round::new(&gate);
        let mut more = true;
        let known = self.journal.read(|state| state.jobs.len())?;
        for place in (0..known).filter_map(ChunkPlace::new) {
            self.enter(place, &mut round)?;
        }
        loop {
            self.start(&mut round)?;
            let waiting = round.floor.waiting(&gate);
            let takes_more = more && goal != Goal::Fetched && waiting < WAITING && !gate.halted.get();
            let may_create = round.floor.creating > 0 || waiting > 0 || more && !gate.halted.get();
            // A chunk that waits for a probe has no future. With --no-wait, batches that run on have none either.
            let probe = round.floor.next_probe(&gate, self.settings.max_concurrent);
            let is_idle = round.running.is_empty() && round.later.is_empty() && probe.is_none();
            if is_idle && !takes_more || goal == Goal::Submitted && !may_create {
                break;
            }
            let reached = tokio::select! {
                biased;
                () = self.stop.asked(), if round.end.stopped.is_none() => {
                    round.end.stopped = self.stop.reason();
                    gate.halt();
                    cut.close();
                    continue;
                }
                Some(reached) = round.running.next() => reached,
                place = cut.recv(), if takes_more => {
                    match place {
                        // It was in the journal before the first look at it: it is on its way.
                        Some(place) if place.index() < known => {}
                        Some(place) => {
                            let chunk = self.job(place)?.chunk;
                            self.queue(&mut round.floor, &chunk).wait(place, &chunk);
                        }
                        None => more = false,
                    }
                    continue;
                }
                () = sleep_until(probe.unwrap_or_else(Instant::now)), if probe.is_some() => continue,
            };
            if self.settle(reached, &mut round)?.is_break() {
                break;
            }
        }
        // The jobs may all have heard of it before this loop did.
        round.end.stopped = round.end.stopped.or(self.stop.reason());
        self.progress.finish();
        let untold = round.end.left.saturating_sub(TOLD_CHUNKS);
        if untold > 0 {
            let (chunks, were) = (count(untold, "more chunk"), if untold == 1 { "was" } else { "were" });
            self.progress
                .always(format_args!("{chunks} {were} left in the same way; --verbose names each with its reason"));
        }
        Ok(round.end)
    }

    /// A job of the journal, at the start.
    fn enter<'f>(&'f self, place: ChunkPlace, round: &mut Round<'f>) -> Result<()> {
        let goal = self.settings.goal;
        let mut job = self.job(place)?;
        if job.step() == Step::Ended
            && job.is_held()
            && self.settings.on_ambiguous == OnAmbiguous::Again
            && goal != Goal::Fetched
        {
            self.append(&Event::Lost { chunk: job.chunk.id.clone(), why: "its results were given up".to_owned() })?;
            job = self.job(place)?;
        }
        round.gate.before.borrow_mut().extend(job.batch().cloned());
        let limit = self.client.dialect().queue_limit(&job.chunk.model);
        match job.step() {
            Step::Cut | Step::Uploaded if goal == Goal::Fetched => {}
            Step::Cut | Step::Uploaded => round.floor.queue(&job.chunk, limit).wait(place, &job.chunk),
            // A batch may already exist for these chunks, so resolve them first, even above --max-concurrent-tasks.
            Step::Intended => {
                round.floor.enter(&job.chunk, limit, false);
                round.running.push(Box::pin(self.to_batch(place, round.gate)));
            }
            Step::Created => {
                round.floor.enter(&job.chunk, limit, true);
                round.later.push_back(place);
            }
            Step::Ended if goal != Goal::Submitted => round.later.push_back(place),
            Step::Fetched if !job.is_cleaned() => round.later.push_back(place),
            Step::Ended | Step::Fetched => {}
        }
        Ok(())
    }

    /// Starts what there is room for.
    fn start<'f>(&'f self, round: &mut Round<'f>) -> Result<()> {
        let gate = round.gate;
        while let Some(place) = round.floor.start(gate, self.settings.max_concurrent) {
            round.running.push(Box::pin(self.to_batch(place, gate)));
        }
        while round.running.len() < LOOKED_AFTER.saturating_add(self.settings.max_concurrent)
            && let Some(place) = round.later.pop_front()
        {
            round.running.push(match self.job(place)?.step() {
                Step::Ended => Box::pin(self.to_results(place, gate)),
                Step::Fetched => Box::pin(self.to_clean(place, gate)),
                _ => Box::pin(self.to_end(place, true, gate)),
            });
        }
        Ok(())
    }

    /// What comes of a job's future. A break: nothing more is to be done.
    fn settle<'f>(
        &'f self,
        reached: std::result::Result<Reached, Gave>,
        round: &mut Round<'f>,
    ) -> Result<ControlFlow<()>> {
        let gate = round.gate;
        match reached {
            Ok(Reached::Created(place)) => {
                round.floor.arrive(&self.job(place)?.chunk);
                round.running.push(Box::pin(self.to_end(place, self.settings.no_wait, gate)));
            }
            Ok(Reached::Ended(place)) => {
                let chunk = self.job(place)?.chunk;
                round.floor.leave(&chunk, true);
                round.floor.ran(&chunk);
                if self.settings.goal != Goal::Submitted {
                    round.later.push_back(place);
                }
            }
            Ok(Reached::Left(place)) => round.floor.leave(&self.job(place)?.chunk, false),
            Ok(Reached::Back(place)) => {
                let chunk = self.job(place)?.chunk;
                round.floor.leave(&chunk, false);
                self.queue(&mut round.floor, &chunk).wait_first(place, &chunk);
            }
            Ok(Reached::Full(place)) => self.wait_for_queue(place, round)?,
            Ok(Reached::Done) | Err(Gave::Stopped) => {}
            // Whoever read the results says why he stopped.
            Err(Gave::Unread) => return Ok(ControlFlow::Break(())),
            Err(Gave::Broken(error)) => {
                self.progress.finish();
                return Err(error);
            }
            Err(Gave::Up { place, scope, error }) => {
                let job = self.job(place)?;
                if job.step() < Step::Ended {
                    round.floor.leave(&job.chunk, job.step() == Step::Created);
                }
                match scope {
                    Scope::Chunk => {}
                    Scope::Model(model) => {
                        round.end.refused_model = Some(model.clone());
                        gate.bar(model);
                    }
                    Scope::Creates => gate.halt(),
                }
                round.end.give_up(self.progress, &job.chunk, error);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A chunk found the provider's queue full: it waits, and so do the others of its model.
    fn wait_for_queue(&self, place: ChunkPlace, round: &mut Round<'_>) -> Result<()> {
        let job = self.job(place)?;
        let Job { chunk, trouble, .. } = &job;
        // A create that was refused leaves its upload; a batch that failed had been created.
        let was_made = job.step() != Step::Uploaded;
        round.floor.leave(chunk, was_made);
        let Some(full) = round.floor.found_full(place, chunk, was_made, self.settings.poll_interval) else {
            return Ok(());
        };
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
                trouble.as_deref().unwrap_or_default()
            ));
        }
        if !waits {
            round.gate.bar(chunk.model.clone());
        } else if times > FULL_QUEUES && running == 0 {
            round.gate.bar(chunk.model.clone());
            round.end.give_up(self.progress, chunk, queue_stays_full());
        }
        Ok(())
    }

    fn queue<'r>(&self, floor: &'r mut Floor, chunk: &Chunk) -> &'r mut floor::Queue {
        floor.queue(chunk, self.client.dialect().queue_limit(&chunk.model))
    }

    fn job(&self, place: ChunkPlace) -> Result<Job> {
        self.journal.job(place)
    }

    fn append(&self, event: &Event) -> Result<()> {
        self.journal.append(event)?;
        self.journal.read(|state| self.progress.update(counts(state)))
    }

    /// To a terminal batch.
    async fn to_end(&self, place: ChunkPlace, mut at_once: bool, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let job = self.job(place)?;
        let batch_id = batch_of(&job)?;
        // Of a batch that this process made, its key is the right one.
        let was_before = gate.before.borrow().contains(&batch_id);
        let mut looks = Looks { is_known: !was_before, ..Looks::default() };
        loop {
            if !at_once {
                let pause = looks.pause(self.settings.poll_interval);
                self.progress.polls_in(pause);
                self.unless_stopped(sleep(pause)).await?;
            }
            at_once = false;
            self.unless_stopped(gate.polls.turn()).await?;
            match self.patiently(ApiError::is_retryable, async || self.client.batch(&batch_id).await).await? {
                Ok(batch) if batch.found_full_queue() => {
                    self.found_full_queue(&job, &batch, gate).await?;
                    return Ok(Reached::Full(place));
                }
                Ok(batch) if batch.status.is_terminal() => {
                    gate.sees_ours.set(gate.sees_ours.get() || was_before);
                    let end = end_of(&batch);
                    // The object may be half empty now and whole the next time.
                    if is_vague(&end) && looks.vague < VAGUE_POLLS && !self.settings.no_wait {
                        looks.vague += 1;
                        continue;
                    }
                    // Otherwise it is told with its rows.
                    if end.status != "completed" && self.settings.goal == Goal::Submitted {
                        self.progress.always(format_args!("{}: {}", job.chunk.id, describe_end(&batch_id, &end)));
                    }
                    self.append(&Event::Ended { chunk: job.chunk.id.clone(), end })?;
                    return Ok(Reached::Ended(place));
                }
                Ok(_) => {
                    gate.sees_ours.set(gate.sees_ours.get() || was_before);
                    (looks.failed, looks.absent, looks.is_known) = (0, 0, true);
                }
                Err(error) if error.class == Class::NotFound => {
                    if let Some(reached) = self.not_there(place, &job, error, &mut looks, gate).await? {
                        return Ok(reached);
                    }
                }
                Err(error) => self.failed_look(place, &job, error, &mut looks)?,
            }
            if self.settings.no_wait {
                return Ok(Reached::Done);
            }
        }
    }

    /// A failed poll is not a state change.
    fn failed_look(
        &self,
        place: ChunkPlace,
        job: &Job,
        error: ApiError,
        looks: &mut Looks,
    ) -> std::result::Result<(), Gave> {
        looks.failed += 1;
        // The emulator's disk is ours: more polls do not mend it.
        let for_good =
            matches!(error.class, Class::Key | Class::Io | Class::Redirect | Class::Certificate | Class::Proxy);
        if looks.failed > FAILED_POLLS || self.settings.no_wait || for_good || error.is_retryable() {
            return Err(Gave::Up { place, scope: Scope::Chunk, error: error.into() });
        }
        self.progress.detail(format_args!("{}: {error}", job.chunk.id));
        Ok(())
    }

    /// The provider does not have the batch, or not yet. After some looks it has vanished, with its results, provided that the
    /// key is the one it was created with: another account does not have it either.
    async fn not_there(
        &self,
        place: ChunkPlace,
        job: &Job,
        error: ApiError,
        looks: &mut Looks,
        gate: &Gate,
    ) -> std::result::Result<Option<Reached>, Gave> {
        let (id, why) = (&job.chunk.id, error.to_string());
        looks.absent += 1;
        self.progress.detail(format_args!("{id}: {error}"));
        if self.settings.no_wait {
            let now = now();
            if job.missing.is_none_or(|since| now.saturating_sub(since) <= LATEST_FILE) {
                self.append(&Event::Missing { chunk: id.clone(), why, at: now })?;
                return Ok(Some(Reached::Done));
            }
        } else if looks.absent < ABSENT_LOOKS {
            return Ok(None);
        }
        let is_ours = looks.is_known || gate.sees_ours.get() || self.settings.on_ambiguous == OnAmbiguous::Again;
        if !is_ours && !self.lists_ours(gate).await? {
            let batch = batch_of(job)?;
            let error = Error::from(error).fix(format!(
                "no batch of this directory is known under this key: if {batch} was created with another one, use that. If \
                 the provider has deleted all of them, `submit` or `run` of this directory with --on-ambiguous again gives them up"
            ));
            return Err(Gave::Up { place, scope: Scope::Chunk, error });
        }
        self.append(&Event::Ended {
            chunk: id.clone(),
            end: BatchEnd { status: VANISHED.to_owned(), errors: vec![why], ..BatchEnd::default() },
        })?;
        Ok(Some(Reached::Ended(place)))
    }

    /// The account's list shows a batch of this directory.
    async fn lists_ours(&self, gate: &Gate) -> std::result::Result<bool, Gave> {
        // A list that fails shows nothing.
        let _listing = self
            .unless_stopped(self.client.find_batches(|batch| {
                gate.sees_ours.set(gate.sees_ours.get() || gate.before.borrow().contains(&batch.id));
                false
            }))
            .await?;
        Ok(gate.sees_ours.get())
    }

    /// Nothing of the batch ran: its chunk is as if it had never been sent (`docs/reliability.md` M6).
    async fn found_full_queue(&self, job: &Job, batch: &Batch, gate: &Gate) -> std::result::Result<(), Gave> {
        let (id, why) = (&job.chunk.id, format!("nothing of batch {} ran: {}", batch.id, batch.errors.join("; ")));
        gate.found_full(&job.chunk.model);
        // A fresh upload tells the next batch from this one in a listing. If this delete fails, an unused file is left there.
        if let Some(file) = job.file() {
            let _left_there = self.unless_stopped(self.client.delete(file)).await?;
        }
        Ok(self.append(&Event::Full { chunk: id.clone(), why })?)
    }

    /// From a terminal batch to verified results, and no trace left at the provider.
    async fn to_results(&self, place: ChunkPlace, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let mut turn = self.unless_stopped(gate.downloads.acquire()).await?;
        let job = self.ended_job(place).await?;
        let chunk = &job.chunk;
        let rows = self.work.rows(&chunk.id);
        if !rows.exists()? {
            return Err(Gave::Up { place, scope: Scope::Chunk, error: RowSet::gone(&rows) });
        }
        if let Some(end) = job.end().filter(|end| end.status != "completed") {
            let batch_id = batch_of(&job)?;
            self.progress.always(format_args!("{}: {}", chunk.id, describe_end(&batch_id, end)));
        }
        let (mut tries, mut pauses) = (0, LATE_FILE.iter());
        loop {
            let Downloaded { mut balance, absent, missing } = self.download(place, &job).await?;
            let gone = match missing {
                Some(error) => match self.wait_for_file(&job, &error, pauses.next(), gate)? {
                    Late::NextTime => return Ok(Reached::Done),
                    Late::After(pause) => {
                        drop(turn);
                        self.unless_stopped(sleep(pause)).await?;
                        turn = self.unless_stopped(gate.downloads.acquire()).await?;
                        continue;
                    }
                    Late::Never => Some(format!("the provider does not have its file: {error}")),
                },
                None => has_vanished(&job).then(|| "the provider does not have its batch".to_owned()),
            };
            if gone.is_some() {
                // Another download would not bring more.
                (balance.short, balance.missing) = (false, true);
            } else {
                tries += 1;
                let end = job.end();
                let has_files = end.is_some_and(|end| end.output_file_id.is_some() || end.error_file_id.is_some());
                if balance.short && has_files && tries < DOWNLOADS {
                    self.unless_stopped(sleep(REFUSAL_PAUSE)).await?;
                    continue;
                }
            }
            if let Some(gone) = gone.as_ref().filter(|_| job.made().is_some_and(|made| made.adopted)) {
                return Err(self.hold_gone(place, &job, gone)?);
            }
            self.tell_absent(&job, &balance, &absent, gone.as_deref(), gate);
            if balance.textless {
                self.progress.note(format_args!(
                    "{}: no line of its results has text where an answer stands; this looks like another format, not like \
                     bad answers, so the provider's files are kept",
                    chunk.id
                ));
            }
            self.append(&Event::Fetched { chunk: chunk.id.clone(), rows: balance })?;
            break;
        }
        if let Some(fetched) = &self.fetched
            && self.unless_stopped(fetched.send(place)).await?.is_err()
        {
            return Err(Gave::Unread);
        }
        drop(turn);
        self.to_clean(place, gate).await
    }

    /// Whether a file that the provider does not have may still come: a batch may say that it has ended before its files can be
    /// read.
    fn wait_for_file(&self, job: &Job, error: &ApiError, pause: Option<&u64>, gate: &Gate) -> Result<Late> {
        let (id, now) = (&job.chunk.id, now());
        let is_late = job.missing.is_some_and(|since| now.saturating_sub(since) > LATEST_FILE);
        if self.settings.no_wait && !is_late {
            self.append(&Event::Missing { chunk: id.clone(), why: error.to_string(), at: now })?;
            self.tell_few(&gate.late, format_args!("{id}: {error}; it is asked for again next time"));
            return Ok(Late::NextTime);
        }
        let Some(seconds) = pause.filter(|_| !self.settings.no_wait && !is_late && !job.is_held()) else {
            return Ok(Late::Never);
        };
        let pause = Duration::from_secs(*seconds);
        // The first pauses are short: a file that is late by seconds is nothing to tell.
        if *seconds == TOLD_FROM {
            self.tell_few(&gate.late, format_args!("{id}: {error}; it is asked for again for some minutes"));
        }
        self.progress.detail(format_args!("{id}: {error}; asking again in {pause:?}"));
        Ok(Late::After(pause))
    }

    /// Says something of the first chunks that it is true of, and of the others only with `--verbose`.
    fn tell_few(&self, told: &Cell<u32>, text: fmt::Arguments<'_>) {
        told.set(told.get().saturating_add(1));
        match told.get() {
            ..TOLD_CHUNKS => self.progress.note(text),
            TOLD_CHUNKS => self.progress.note(format_args!("{text} (more chunks like this are told with --verbose)")),
            _ => self.progress.detail(text),
        }
    }

    /// Gives up a chunk whose batch was found in a listing and whose results are gone. It is not created again until the user
    /// says so.
    fn hold_gone(&self, place: ChunkPlace, job: &Job, gone: &str) -> Result<Gave> {
        let id = &job.chunk.id;
        let scope = if job.is_held() { Scope::Chunk } else { Scope::Creates };
        if !job.is_held() {
            self.append(&Event::Held { chunk: id.clone(), why: gone.to_owned() })?;
        }
        let what = format!(
            "{id}: its batch {} was made and its results are gone from the provider: another copy of this directory has \
             probably fetched and deleted them ({gone}). It is not created again",
            batch_of(job)?
        );
        let error = Error::new(Kind::TryAgain, what).fix(format!(
            "look for results/{id}.output.jsonl in other copies of this directory, and go on in the one that has it. If there \
             is none, `submit` or `run` of this directory with --on-ambiguous again creates it once more, and it is paid once more"
        ));
        Ok(Gave::Up { place, scope, error })
    }

    /// A job whose batch has ended. A batch that did not say where its results are is asked once more.
    async fn ended_job(&self, place: ChunkPlace) -> std::result::Result<Job, Gave> {
        let job = self.job(place)?;
        if has_vanished(&job) || job.end().is_some_and(is_vague) {
            let batch_id = batch_of(&job)?;
            // What cannot be asked now is not there, as before.
            if let Ok(batch) = self.unless_stopped(self.client.batch(&batch_id)).await?
                && batch.status.is_terminal()
                && !is_vague(&end_of(&batch))
            {
                self.append(&Event::Ended { chunk: job.chunk.id.clone(), end: end_of(&batch) })?;
                return Ok(self.job(place)?);
            }
        }
        Ok(job)
    }

    fn tell_absent(&self, job: &Job, balance: &RowBalance, first: &[u64], gone: Option<&str>, gate: &Gate) {
        if balance.absent == 0 {
            return;
        }
        let named: Vec<String> = first.iter().map(ToString::to_string).collect();
        let more = if first.len() as u64 == balance.absent { "" } else { ", …" };
        let is_first = gone.is_some() && gate.gone.replace(1) == 0;
        let advice = "; if another copy of this directory has fetched them, they are there; else `zbatch run --missing` \
                      asks for them again";
        let gone = gone.map(|gone| format!("; {gone}{}", if is_first { advice } else { "" })).unwrap_or_default();
        let again = if balance.short { "; the next fetch or run tries once more" } else { "" };
        let (id, named) = (&job.chunk.id, named.join(", "));
        self.progress.note(format_args!(
            "{id}: {} of {} absent: {named}{more}{gone}{again}",
            balance.absent,
            count(job.chunk.lines, "row")
        ));
    }

    /// Downloads a batch's files and counts their rows.
    async fn download(&self, place: ChunkPlace, job: &Job) -> std::result::Result<Downloaded, Gave> {
        let chunk = &job.chunk;
        let end = job.end().cloned().unwrap_or_default();
        let files = ResultFile::BOTH.map(|file| self.work.results(&chunk.id, file));
        let (mut whole, mut missing) = (true, None);
        for (to, id) in files.iter().zip([&end.output_file_id, &end.error_file_id]) {
            let Some(id) = id else {
                to.remove()?;
                continue;
            };
            match self.patiently(is_gone, async || self.client.download(id, to).await).await? {
                Ok(download) => whole &= download.complete,
                // Some say in other words that it is not there yet; no request of ours for a file is a bad one.
                Err(error) if matches!(error.class, Class::NotFound | Class::BadRequest) => missing = Some(error),
                Err(error) => {
                    // What cannot be fetched need not be paid for: the next batch's files are kept at the same place.
                    let scope = if error.class == Class::Redirect { Scope::Creates } else { Scope::Chunk };
                    return Err(Gave::Up { place, scope, error: error.into() });
                }
            }
        }
        let (analysis, rows) = (chunk.analysis.clone(), self.work.rows(&chunk.id));
        drill::step("verify", "results");
        let (mut balance, absent) = blocking::run(move || verify(&files, &analysis, &RowSet::read(&rows)?)).await?;
        // The provider's copy was deleted when it had come: the journal may have lost that, the directory has not.
        let missing = missing.filter(|_| balance.absent > 0);
        balance.short |= !whole || missing.is_some() || is_short(&balance, &end, chunk.lines);
        balance.short &= !drill::without(Guard::Counts);
        Ok(Downloaded { balance, absent, missing })
    }

    /// Deletes what nobody needs any more, here and at the provider. What cannot be deleted now is tried next time.
    async fn to_clean(&self, place: ChunkPlace, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let job = self.job(place)?;
        if !self.settings.keep_requests {
            self.work.request(&job.chunk.id).remove()?;
        }
        // What may be wanted again stays there.
        let short = job.rows().is_some_and(|rows| rows.short || rows.textless || rows.missing);
        if self.settings.keep_remote || job.is_cleaned() || short {
            return Ok(Reached::Done);
        }
        let _turn = self.unless_stopped(gate.downloads.acquire()).await?;
        for id in job.remote_files() {
            if let Err(error) = self.unless_stopped(self.client.delete(id)).await? {
                self.progress.detail(format_args!("{}: {error}; it is tried again next time", job.chunk.id));
                return Ok(Reached::Done);
            }
        }
        self.append(&Event::Cleaned { chunk: job.chunk.id })?;
        Ok(Reached::Done)
    }

    /// Gives a call up when we are told to stop.
    async fn unless_stopped<T>(&self, call: impl Future<Output = T>) -> std::result::Result<T, Gave> {
        self.stop.run(call).await.map_err(|_| Gave::Stopped)
    }
}

impl Gate {
    /// `poll_interval`: `None` where there is no server to be spared.
    fn new(poll_interval: Option<Duration>) -> Self {
        Self {
            halted: Cell::new(false),
            halted_models: RefCell::default(),
            refused: Cell::new(0),
            full: RefCell::default(),
            creates: Semaphore::new(TRANSFERS),
            downloads: Semaphore::new(TRANSFERS),
            polls: Pace {
                gap: poll_interval.map(|interval| POLL_GAP.min(interval / FEW_BATCHES)),
                next: Cell::new(None),
            },
            before: RefCell::default(),
            sees_ours: Cell::new(false),
            strays: OnceCell::new(),
            untold: RefCell::default(),
            late: Cell::new(0),
            gone: Cell::new(0),
        }
    }

    fn halt(&self) {
        self.halted.set(true);
    }

    /// No more creates under this model.
    fn bar(&self, model: String) {
        self.halted_models.borrow_mut().insert(model);
    }

    /// How often the model's queue was found full.
    fn times_full(&self, model: &str) -> u32 {
        self.full.borrow().get(model).copied().unwrap_or_default()
    }

    /// The model's queue is full: who is on the way to a create turns back.
    fn found_full(&self, model: &str) {
        *self.full.borrow_mut().entry(model.to_owned()).or_default() += 1;
    }

    /// What else an upload or a create that was refused makes pointless.
    fn scope_of(&self, error: &ApiError, chunk: &Chunk) -> Scope {
        match scope_of(error, chunk) {
            Scope::Chunk => {
                self.refused.set(self.refused.get() + 1);
                // The first chunks may be bad in their own way; all of them are not.
                if self.refused.get() >= REFUSED_CHUNKS { Scope::Creates } else { Scope::Chunk }
            }
            scope => scope,
        }
    }

    fn bars(&self, model: &str) -> bool {
        self.halted.get() || self.halted_models.borrow().contains(model)
    }
}

impl Pace {
    async fn turn(&self) {
        let Some(gap) = self.gap else { return };
        let now = Instant::now();
        let earliest = now.checked_sub(gap * FEW_POLLS).unwrap_or(now);
        let turn = self.next.get().map_or(earliest, |next| next.max(earliest));
        self.next.set(Some(turn + gap));
        sleep_until(turn).await;
    }
}

impl JobsEnd {
    /// A chunk is left behind. The first trouble is told again at the end, and there with its advice.
    fn give_up(&mut self, progress: &Progress, chunk: &Chunk, error: Error) {
        let id = chunk.id.to_string();
        // Its advice is told once.
        let told = if self.left == 0 { error.line() } else { error.parts().0 };
        let told = if told.starts_with(&id) { told } else { format!("{id}: {told}") };
        self.left = self.left.saturating_add(1);
        match self.left {
            1 => progress.note(told),
            2..=TOLD_CHUNKS => progress.always(told),
            _ => progress.detail(told),
        }
        self.trouble.get_or_insert(error);
    }
}

/// Whether so many batches and requests in all are more than the user allows (`docs/reliability.md` M3).
pub fn check_caps(settings: &JobSettings, batches: u64, requests: u64) -> Option<Error> {
    let over = |what: &str, flag: &str, count: u64, most: Option<u64>| {
        let most = most.filter(|most| count > *most)?;
        Some(
            Error::new(Kind::Unavailable, format!("this takes {count} {what}; {flag} allows {most}"))
                .fix(format!("raise {flag}, or give fewer posts")),
        )
    };
    over("batches", "--max-batches", batches, settings.max_batches)
        .or_else(|| over("requests", "--max-requests", requests, settings.max_requests))
}

fn file_id(job: &Job) -> Result<FileId> {
    job.file().cloned().ok_or_else(|| Error::input(format!("the journal has no file of {}", job.chunk.id)))
}

fn batch_of(job: &Job) -> Result<BatchId> {
    job.batch().cloned().ok_or_else(|| Error::input(format!("the journal has no batch of {}", job.chunk.id)))
}

fn end_of(batch: &Batch) -> BatchEnd {
    let counts = batch.request_counts;
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
        refused_lines: batch
            .refused_lines
            .iter()
            .map(|(line, why)| RefusedLine { line: *line, why: why.clone() })
            .collect(),
    }
}

/// A batch promised more rows than its files hold. One that has completed and counts nothing promised all.
fn is_short(rows: &RowBalance, end: &BatchEnd, lines: u64) -> bool {
    // A line that cannot be read stands for a row; a foreign one does not.
    let output = rows.output.saturating_add(rows.bad);
    if end.status == "completed" && end.counts_nothing() {
        return output.saturating_add(rows.error) < lines;
    }
    output < end.completed || rows.error < end.failed
}

/// It promises rows and does not say where they are, or has files and does not say how many rows they hold.
fn is_vague(end: &BatchEnd) -> bool {
    let (no_output, no_errors) = (end.output_file_id.is_none(), end.error_file_id.is_none());
    let uncounted = end.counts_nothing();
    let empty = no_output && no_errors;
    no_output && end.completed > 0 || no_errors && end.failed > 0 || uncounted && (!empty || end.status == "completed")
}

/// The provider did not have the batch any more.
fn has_vanished(job: &Job) -> bool {
    job.end().is_some_and(|end| end.status == VANISHED)
}

fn describe_end(batch: &BatchId, end: &BatchEnd) -> String {
    let why = if end.errors.is_empty() { "the provider gives no reason".to_owned() } else { end.errors.join("; ") };
    match end.status.as_str() {
        VANISHED => format!("its batch {batch} is not at the provider any more: {why}"),
        status => format!("its batch is {status}: {why} ({batch})"),
    }
}

/// Seconds since 1970.
fn counts(state: &State) -> Counts {
    let fetched = state.jobs.iter().filter(|job| job.step() == Step::Fetched);
    Counts {
        chunks: state.jobs.len() as u64,
        waiting: state.below(Step::Created),
        running: state.at(Step::Created),
        ended: state.at(Step::Ended),
        fetched: state.at(Step::Fetched),
        rows: sum(state.jobs.iter().map(|job| job.chunk.lines)),
        rows_fetched: sum(fetched.map(|job| job.chunk.lines)),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn queue_stays_full() -> Error {
    let what = format!("the provider's queue was full {FULL_QUEUES} times in a row");
    Error::new(Kind::Unavailable, what).fix("run the same command again when other batches of the account have ended")
}

/// Nobody answers, whatever is asked for.
fn is_gone(error: &ApiError) -> bool {
    error.class == Class::Unreachable
}

/// What else an error on the way to a batch makes pointless. One on the way from a batch to its results concerns its chunk
/// alone: what is paid for elsewhere is created and fetched all the same.
fn scope_of(error: &ApiError, chunk: &Chunk) -> Scope {
    match error.class {
        _ if error.is_too_large() => Scope::Creates,
        Class::Model => Scope::Model(chunk.model.clone()),
        Class::BadRequest | Class::NotFound => Scope::Chunk,
        Class::Key
        | Class::Account
        | Class::RateLimited
        | Class::Transient
        | Class::Unreachable
        | Class::Reply
        | Class::Redirect
        | Class::Certificate
        | Class::Proxy
        | Class::Io => Scope::Creates,
    }
}

mod patience;
#[cfg(test)]
mod tests;
