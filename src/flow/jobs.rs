//! Chunks → jobs → results files: the one async stage. A job is a chunk's way through the provider: upload, intent,
//! create, poll, download, verify, clean up. Every step is in the journal before the next one; a killed process goes on
//! from there.
//!
//! One task drives all jobs. It starts a job when there is room, gives the room to the next when the batch has ended, and
//! downloads meanwhile. Whoever stops it (a signal, a deadline) stops it between calls; only a create is waited for.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    convert::Infallible,
    future::Future,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::sleep,
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
    journal::{BatchEnd, Event, Job, Journal, RefusedLine, State, Step, locked},
    progress::Progress,
    provider::{ApiError, Batch, BatchId, BatchStatus, Class, Client, CreateError, FileId},
    units::count,
    workdir::{ResultFile, WorkDir},
};

/// Complete listings that must not show a batch before its create counts as lost.
const LISTINGS: u32 = 3;
/// Failed polls in a row (each was retried by the client) before the provider counts as gone.
const FAILED_POLLS: u32 = 10;
/// Polls of a batch that has ended and does not say where its results are, or how many, before it is taken as it is.
const VAGUE_POLLS: u32 = 3;
/// Creates of a chunk that may go without an answer, and be looked for in vain, before it is held: the second one may have
/// been paid for as the first.
const LOST_CREATES: u32 = 1;
/// Chunks given up one after another because their upload or create was refused as wrong, before all others are spared it.
const REFUSED_CHUNKS: u32 = 3;
/// How often a batch may find the account's queue full before its chunk is given up until the next command.
const FULL_QUEUES: u32 = 20;
/// The longest pause before a full queue is tried again, if none of our batches ends meanwhile.
const LONGEST_QUEUE_PAUSE: Duration = Duration::from_secs(600);
/// Seconds between downloads of a file that the provider does not have yet: its batch may have ended a moment ago.
const LATE_FILE: [u64; 7] = [2, 5, 10, 20, 40, 80, 120];
/// Seconds after which a command that does not wait gives up such a file, counted from the first that asked for it.
const LATEST_FILE: u64 = 600;
/// From the pause of this length on the wait is told.
const TOLD_FROM: u64 = 10;
/// Creates refused for the moment (rate, overload) before the chunk is given up.
const REFUSALS: u32 = 30;
const REFUSALS_NO_WAIT: u32 = 2;
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_REFUSAL_PAUSE: Duration = Duration::from_secs(60);
/// Downloads of a file that came short.
const DOWNLOADS: u32 = 3;
/// A create in flight is waited for this long after a stop; what comes later is found in a listing next time.
const LAST_CALL: Duration = Duration::from_secs(10);
/// Uploads at one time, and downloads: more of them would not be faster, only larger.
const TRANSFERS: usize = 4;
/// Chunks that wait for room, beside those that run: a few more on disk than are needed at once.
const WAITING: usize = 4;
/// Jobs that are looked after at one time, beside those that run; the places of the others wait. What a job takes does not add up over a
/// directory of many thousand chunks, nor do connections.
const LOOKED_AFTER: usize = 128;
/// Between two looks at what the client waits for.
const LOOK_AT_WAITS: Duration = Duration::from_secs(5);
/// Key of our mark in a batch's metadata.
const MARK: &str = "zbatch";

/// Why to stop before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Signal(i32),
    TimedOut,
}

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
    pub no_wait: bool,
    pub keep_requests: bool,
    pub keep_remote: bool,
}

/// How the stage ended.
#[derive(Debug, Default)]
pub struct JobsEnd {
    /// The first thing that went wrong badly enough to leave chunks behind.
    pub trouble: Option<Error>,
    pub stopped: Option<Stop>,
    /// What calls still waited for.
    pub waits: Vec<String>,
}

/// Where a job's future got to.
enum Reached {
    /// Its batch exists.
    Created(usize),
    /// Its batch is terminal: there is room for another.
    Ended(usize),
    /// It may not have a batch now.
    Left(usize),
    /// The provider's queue was full: its create was refused for that, or its batch failed before anything ran.
    Full(usize),
    /// The queue may have room again.
    Room(usize),
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
        place: usize,
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
    pub journal: &'a Mutex<Journal>,
    pub settings: JobSettings,
    pub stop: watch::Receiver<Option<Stop>>,
    pub progress: &'a Progress,
    /// Gets the place of each chunk whose results are here; bounded, so that a slow reader slows the fetching.
    pub fetched: Option<mpsc::Sender<usize>>,
}

/// What the jobs share. Once `halted` is set, no job sends another create, not even one that has already uploaded.
struct Gate {
    halted: Cell<bool>,
    halted_models: RefCell<HashSet<String>>,
    /// Chunks in a row whose upload or create was refused as wrong.
    refused: Cell<u32>,
    uploads: Semaphore,
    downloads: Semaphore,
    /// Rings when a batch of ours has ended, and when `halted` is set.
    changed: Notify,
}

/// Who waits for room and who has it.
#[derive(Default)]
struct Floor {
    /// A map in order, so that the same state gives the same start.
    models: BTreeMap<String, Queue>,
    /// Jobs that have room: on their way to a batch, or with one that runs.
    live: usize,
    /// Those of them that are on their way to a batch.
    creating: usize,
    /// How often each job has found the provider's queue full since a batch of ours last ended. At most one entry a chunk.
    full: HashMap<usize, u32>,
}

/// What became of a create.
#[derive(PartialEq, Eq)]
enum Sent {
    /// The journal says what.
    Once,
    /// It was refused, since the account's queue is full.
    QueueFull,
}

/// What a listing says of a create without an answer.
#[derive(PartialEq, Eq)]
enum Listed {
    Adopted,
    Absent {
        /// The listing would show the batch if there were one.
        is_proof: bool,
    },
}

/// Whether a listing can show our batches: it does if it shows one that we know of with its input file or mark. Where we
/// know of none yet, objects that have such fields are enough, and so is an empty listing.
struct Evidence {
    /// Input file and mark of each batch that we know of.
    known: HashMap<String, (Option<String>, String)>,
    /// A batch of this directory was found in a listing before.
    proven: Cell<bool>,
    any: Cell<bool>,
    traceable: Cell<bool>,
}

/// What a download of a batch's files brought.
struct Downloaded {
    balance: RowBalance,
    /// The first rows that are absent.
    absent: Vec<u64>,
    /// A file that the provider does not have, or not yet.
    missing: Option<ApiError>,
}

/// The jobs of one model.
#[derive(Default)]
struct Queue {
    /// Places and their requests.
    waiting: VecDeque<(usize, u64)>,
    /// Requests at the provider, and the most there may be.
    queued: u64,
    limit: Option<u64>,
    /// Chunks that found the provider's queue full and wait: until they are back, no other one tries.
    full: usize,
}

type JobFuture<'f> = LocalBoxFuture<'f, std::result::Result<Reached, Gave>>;

impl Driver<'_> {
    /// Drives all jobs of the journal, and those whose places come through `cut`, as far as the goal.
    ///
    /// # Errors
    /// The journal or the disk failed. Everything else is told in [`JobsEnd`].
    pub async fn drive(&self, cut: mpsc::Receiver<usize>) -> Result<JobsEnd> {
        let end = tokio::select! {
            biased;
            end = self.drive_jobs(cut) => end?,
            never = self.say_waits() => match never {},
        };
        Ok(JobsEnd { waits: self.client.waits(), ..end })
    }

    /// Says what is waited for, once it is waited for long.
    async fn say_waits(&self) -> Infallible {
        loop {
            sleep(LOOK_AT_WAITS).await;
            for wait in self.client.long_waits() {
                self.progress.note(format_args!("still waiting {wait}"));
            }
        }
    }

    async fn drive_jobs(&self, mut cut: mpsc::Receiver<usize>) -> Result<JobsEnd> {
        let goal = self.settings.goal;
        let gate = Gate::new();
        let mut floor = Floor::default();
        // Places of jobs that have a batch: to be looked after when it is their turn.
        let mut later = VecDeque::new();
        let mut end = JobsEnd::default();
        let mut running: FuturesUnordered<JobFuture<'_>> = FuturesUnordered::new();
        let mut stop = self.stop.clone();
        let mut more = true;
        let known = locked(self.journal)?.state.jobs.len();
        for place in 0..known {
            let job = self.job(place)?;
            match job.step {
                Step::Cut | Step::Uploaded if goal == Goal::Fetched => {}
                Step::Cut | Step::Uploaded => self.queue(&mut floor, &job.chunk).wait(place, &job.chunk),
                // These may be paid for: they are looked after at once, whatever the number of rooms.
                Step::Intended => {
                    self.queue(&mut floor, &job.chunk).queued += job.chunk.lines;
                    (floor.live, floor.creating) = (floor.live + 1, floor.creating + 1);
                    running.push(Box::pin(self.to_batch(place, &gate)));
                }
                Step::Created => {
                    self.queue(&mut floor, &job.chunk).queued += job.chunk.lines;
                    floor.live += 1;
                    later.push_back(place);
                }
                Step::Ended if goal != Goal::Submitted => later.push_back(place),
                Step::Fetched if !job.cleaned => later.push_back(place),
                Step::Ended | Step::Fetched => {}
            }
        }
        loop {
            while let Some(place) = floor.start(&gate, self.settings.max_concurrent) {
                running.push(Box::pin(self.to_batch(place, &gate)));
            }
            while running.len() < LOOKED_AFTER.saturating_add(self.settings.max_concurrent)
                && let Some(place) = later.pop_front()
            {
                running.push(match self.job(place)?.step {
                    Step::Ended => Box::pin(self.to_results(place, &gate)),
                    Step::Fetched => Box::pin(self.to_clean(place, &gate)),
                    _ => Box::pin(self.to_end(place, true)),
                });
            }
            let waiting = floor.waiting(&gate);
            let takes_more = more && waiting + floor.waiting_for_room() < WAITING && !gate.halted.get();
            let may_create = floor.creating + floor.waiting_for_room() > 0 || waiting > 0 || more && !gate.halted.get();
            if running.is_empty() && later.is_empty() && !takes_more || goal == Goal::Submitted && !may_create {
                break;
            }
            let reached = tokio::select! {
                biased;
                reason = stopped(&mut stop), if end.stopped.is_none() => {
                    end.stopped = Some(reason);
                    gate.halt();
                    cut.close();
                    continue;
                }
                Some(reached) = running.next() => reached,
                place = cut.recv(), if takes_more => {
                    match place {
                        // It was in the journal before the first look at it: it is on its way.
                        Some(place) if place < known => {}
                        Some(place) => {
                            let chunk = self.job(place)?.chunk;
                            self.queue(&mut floor, &chunk).wait(place, &chunk);
                        }
                        None => more = false,
                    }
                    continue;
                }
            };
            match reached {
                Ok(Reached::Created(place)) => {
                    floor.creating -= 1;
                    running.push(Box::pin(self.to_end(place, self.settings.no_wait)));
                }
                Ok(Reached::Ended(place)) => {
                    floor.leave(&self.job(place)?.chunk);
                    // The queue moves.
                    floor.full.clear();
                    gate.changed.notify_waiters();
                    if goal != Goal::Submitted {
                        later.push_back(place);
                    }
                }
                Ok(Reached::Left(place)) => {
                    floor.creating -= 1;
                    floor.leave(&self.job(place)?.chunk);
                }
                Ok(Reached::Full(place)) => {
                    let Job { chunk, step, .. } = self.job(place)?;
                    // A create that was refused leaves its upload; a batch that failed had been created.
                    floor.creating -= usize::from(step == Step::Uploaded);
                    floor.leave(&chunk);
                    match floor.found_full(place) {
                        _ if goal == Goal::Fetched || self.settings.no_wait => {}
                        tries if tries > FULL_QUEUES => {
                            gate.bar(chunk.model.clone());
                            end.give_up(self.progress, &chunk, queue_stays_full());
                        }
                        tries => {
                            self.queue(&mut floor, &chunk).full += 1;
                            running.push(Box::pin(self.to_room(place, tries, &gate)));
                        }
                    }
                }
                Ok(Reached::Room(place)) => {
                    let chunk = self.job(place)?.chunk;
                    let queue = self.queue(&mut floor, &chunk);
                    queue.full -= 1;
                    queue.waiting.push_front((place, chunk.lines));
                }
                Ok(Reached::Done) | Err(Gave::Stopped) => {}
                // Whoever read the results says why he stopped.
                Err(Gave::Unread) => break,
                Err(Gave::Broken(error)) => {
                    self.progress.finish();
                    return Err(error);
                }
                Err(Gave::Up { place, scope, error }) => {
                    let job = self.job(place)?;
                    floor.creating -= usize::from(job.step < Step::Created);
                    if job.step < Step::Ended {
                        floor.leave(&job.chunk);
                    }
                    match scope {
                        Scope::Chunk => {}
                        Scope::Model(model) => gate.bar(model),
                        Scope::Creates => gate.halt(),
                    }
                    end.give_up(self.progress, &job.chunk, error);
                }
            }
        }
        // The jobs may all have heard of it before this loop did.
        end.stopped = end.stopped.or(*self.stop.borrow());
        self.progress.finish();
        Ok(end)
    }

    fn queue<'f>(&self, floor: &'f mut Floor, chunk: &Chunk) -> &'f mut Queue {
        let limit = self.client.dialect().queue_limit(&chunk.model);
        floor.models.entry(chunk.model.clone()).or_insert_with(|| Queue { limit, ..Queue::default() })
    }

    fn job(&self, place: usize) -> Result<Job> {
        let journal = locked(self.journal)?;
        journal.state.jobs.get(place).cloned().ok_or_else(|| Error::input(format!("there is no chunk {place}")))
    }

    fn append(&self, event: &Event) -> Result<()> {
        let mut journal = locked(self.journal)?;
        journal.append(event)?;
        self.progress.update(&journal.state);
        Ok(())
    }

    /// To the time when a queue that was full may have room: a batch of ours has ended, or a while has passed.
    async fn to_room(&self, place: usize, tries: u32, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let pause = self.settings.poll_interval.saturating_mul(1 << tries.min(16)).min(LONGEST_QUEUE_PAUSE);
        let room = async {
            tokio::select! { biased; () = gate.changed.notified() => {} () = sleep(pause) => {} }
        };
        self.unless_stopped(room).await?;
        Ok(Reached::Room(place))
    }

    /// To a batch that exists.
    async fn to_batch(&self, place: usize, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let mut refusals = 0;
        loop {
            let job = self.job(place)?;
            let may_create = self.settings.goal != Goal::Fetched && !gate.bars(&job.chunk.model);
            match job.step {
                Step::Cut | Step::Uploaded if self.stop.borrow().is_some() => return Err(Gave::Stopped),
                Step::Cut | Step::Uploaded if !may_create => return Ok(Reached::Left(place)),
                Step::Cut => self.upload(place, &job, gate).await?,
                Step::Uploaded => {
                    if self.create(place, &job, &mut refusals, gate).await? == Sent::QueueFull {
                        return Ok(Reached::Full(place));
                    }
                }
                Step::Intended if self.settings.goal == Goal::Fetched => {
                    if self.adopt(place, &job).await? != Listed::Adopted {
                        return Ok(Reached::Left(place));
                    }
                }
                Step::Intended => self.look_up(place, &job).await?,
                Step::Created | Step::Ended | Step::Fetched => return Ok(Reached::Created(place)),
            }
        }
    }

    async fn upload(&self, place: usize, job: &Job, gate: &Gate) -> std::result::Result<(), Gave> {
        let _turn = self.unless_stopped(gate.uploads.acquire()).await?;
        let path = self.work.request(&job.chunk.id);
        let give_up = |scope, error| Gave::Up { place, scope, error };
        if !path.exists()? {
            return Err(give_up(Scope::Chunk, RowSet::gone(&path)));
        }
        let (hash, file) = (job.chunk.blake3.clone(), path.clone());
        let now = blocking::run(move || FileMark::of(&file)).await.map_err(|error| give_up(Scope::Chunk, error))?;
        if now.blake3 != hash && !drill::without(Guard::ChunkHash) {
            let error = Error::input(format!("{} is not the file that was cut: its hash differs", path))
                .fix("begin again with --new, or in another work directory");
            return Err(give_up(Scope::Chunk, error));
        }
        let name = format!("{}.jsonl", job.chunk.id);
        let file_id = self
            .unless_stopped(self.client.upload(&path, &name))
            .await?
            .map_err(|error| give_up(gate.scope_of(&error, &job.chunk), error.into()))?;
        self.append(&Event::Uploaded { chunk: job.chunk.id.clone(), file_id: file_id.to_string() })?;
        Ok(())
    }

    async fn create(
        &self,
        place: usize,
        job: &Job,
        refusals: &mut u32,
        gate: &Gate,
    ) -> std::result::Result<Sent, Gave> {
        let id = &job.chunk.id;
        let file_id = file_id(job)?;
        // A create that counted as lost may be listed by now.
        if job.lost > 0 && self.adopt(place, job).await? == Listed::Adopted {
            return Ok(Sent::Once);
        }
        let error = match self.send_create(place, job, &file_id).await? {
            Ok(batch) => {
                gate.refused.set(0);
                self.created(job, &batch.id, false)?;
                return Ok(Sent::Once);
            }
            Err(CreateError::Ambiguous(error) | CreateError::Made(error)) => {
                self.progress.note(format_args!("{id}: no clear answer to its create ({error}); looking it up"));
                return Ok(Sent::Once);
            }
            // A page in the place of an answer is a no, unless the batch is there all the same.
            Err(CreateError::Denied(_)) if self.adopt(place, job).await? == Listed::Adopted => return Ok(Sent::Once),
            Err(CreateError::Refused(error) | CreateError::NotSent(error) | CreateError::Denied(error)) => error,
        };
        self.append(&Event::Refused { chunk: id.clone(), why: error.to_string() })?;
        if error.says_full_queue() {
            self.progress.note(format_args!("{id}: the provider's queue is full ({error}); it is created later"));
            return Ok(Sent::QueueFull);
        }
        *refusals += 1;
        // The uploaded file may be gone, or too old: once, a fresh one is tried.
        if matches!(error.class, Class::NotFound | Class::BadRequest) && *refusals == 1 {
            // As good as gone, whether this succeeds or not.
            let _deleted = self.unless_stopped(self.client.delete(&file_id)).await?;
            self.append(&Event::Lost { chunk: id.clone(), why: error.to_string() })?;
            return Ok(Sent::Once);
        }
        let most = if self.settings.no_wait { REFUSALS_NO_WAIT } else { REFUSALS };
        if !error.is_retryable() || *refusals > most {
            return Err(Gave::Up { place, scope: gate.scope_of(&error, &job.chunk), error: error.into() });
        }
        let pause = REFUSAL_PAUSE.saturating_mul(1 << refusals.saturating_sub(1).min(6));
        let pause = pause.max(error.retry_after.unwrap_or_default()).min(LONGEST_REFUSAL_PAUSE);
        self.progress.detail(format_args!("{id}: {error}; trying again in {pause:?}"));
        self.unless_stopped(sleep(pause)).await?;
        Ok(Sent::Once)
    }

    /// Sends a create, once, between the event that announces it and the event that says what came of it.
    async fn send_create(
        &self,
        place: usize,
        job: &Job,
        file_id: &FileId,
    ) -> std::result::Result<std::result::Result<Batch, CreateError>, Gave> {
        let id = &job.chunk.id;
        let attempt = job.attempt + 1;
        let blake3 = job.chunk.blake3.clone();
        // An intent is a create that may have been sent: the provider's pause comes before it.
        self.unless_stopped(self.client.turn()).await?;
        self.work.check_place()?;
        // Nothing is awaited between this and the intent, so that no other create comes in between.
        if let Some(error) = self.over_the_cap(job)? {
            return Err(Gave::Up { place, scope: Scope::Creates, error });
        }
        let intent = Event::Intent { chunk: id.clone(), file_id: file_id.to_string(), attempt, blake3 };
        if !drill::without(Guard::Intent) {
            self.append(&intent)?;
        }
        let metadata = [
            (MARK, self.mark(job)?),
            ("analysis", job.chunk.analysis.clone()),
            ("chunk", id.to_string()),
            ("attempt", attempt.to_string()),
        ];
        let answer = tokio::select! {
            biased;
            answer = self.client.create(file_id, &metadata) => answer,
            () = self.last_call() => return Err(Gave::Stopped),
        };
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

    /// A create was sent, and whether it happened is not known: the listing tells, if it can (`promises.md` M1).
    async fn look_up(&self, place: usize, job: &Job) -> std::result::Result<(), Gave> {
        let id = &job.chunk.id;
        // A listing shows a batch late; a chunk that is held was looked for long enough.
        let Some(is_proof) = self.is_listed(place, job, if job.held { 1 } else { LISTINGS }).await? else {
            return Ok(());
        };
        if self.settings.on_ambiguous == OnAmbiguous::Hold {
            let made = job.unclear.as_ref().is_some_and(|unclear| unclear.made);
            let error = Error::new(Kind::TryAgain, format!("{id}: whether its batch was created is not known"));
            let error = error.fix(if made {
                "the provider said that it made a batch, and not which: look for it at the provider's console"
            } else {
                "look at the provider's console; the same command without --on-ambiguous hold creates it anew"
            });
            return Err(Gave::Up { place, scope: Scope::Chunk, error });
        }
        if let Some(why) = self.why_held(job, is_proof)? {
            return Err(self.hold(place, job, why)?);
        }
        // Without its input a create that is still on its way cannot become a batch.
        if !drill::without(Guard::Fence) {
            let fence = self.unless_stopped(self.client.delete(&file_id(job)?)).await?;
            fence.map_err(|error| Gave::Up { place, scope: Scope::Chunk, error: error.into() })?;
        }
        // One that came just before is listed as late as any other.
        if self.is_listed(place, job, LISTINGS).await?.is_none() {
            return Ok(());
        }
        self.progress
            .note(format_args!("{id}: {LISTINGS} listings do not show its batch; uploading and creating anew"));
        self.append(&Event::Lost { chunk: id.clone(), why: "no listing shows the batch".to_owned() })?;
        Ok(())
    }

    /// Looks for the batch of this chunk until it must be listed if it exists. `None`: it is there, and adopted; else
    /// whether the listings prove that it does not exist.
    async fn is_listed(&self, place: usize, job: &Job, listings: u32) -> std::result::Result<Option<bool>, Gave> {
        let mut is_proof = false;
        for listing in 0..listings {
            if listing > 0 && !drill::without(Guard::Settle) {
                self.unless_stopped(sleep(self.settings.settle / (LISTINGS - 1))).await?;
            }
            match self.adopt(place, job).await? {
                Listed::Adopted => return Ok(None),
                Listed::Absent { is_proof: proof } => is_proof |= proof,
            }
        }
        Ok(Some(is_proof))
    }

    /// Why a create that no listing shows is not sent again; `None`: it may be, once.
    fn why_held(&self, job: &Job, is_proof: bool) -> Result<Option<&'static str>> {
        let holds_another = locked(self.journal)?.state.holds_another(&job.chunk.id);
        let made = job.unclear.as_ref().is_some_and(|unclear| unclear.made);
        Ok(match self.settings.on_ambiguous {
            OnAmbiguous::Again if job.held => None,
            _ if made => Some("the provider said that it made a batch, and not which"),
            _ if job.lost >= LOST_CREATES && !drill::without(Guard::Once) => {
                Some("it is the second create without a clear answer")
            }
            _ if !is_proof && !drill::without(Guard::Evidence) => {
                Some("the provider's list of batches cannot show that there is none")
            }
            _ if holds_another => Some("another chunk is held already"),
            _ => None,
        })
    }

    /// Gives a chunk up until the user says what to do.
    fn hold(&self, place: usize, job: &Job, why: &str) -> Result<Gave> {
        let id = &job.chunk.id;
        let answer = job.unclear.as_ref().map(|unclear| format!(" ({})", unclear.why)).unwrap_or_default();
        if !job.held {
            self.append(&Event::Held { chunk: id.clone(), why: format!("{why}{answer}") })?;
        }
        // A refusal that repeats in the provider's own words is the provider's trouble, not a doubt of ours.
        let refused = job.unclear.as_ref().and_then(|unclear| unclear.status).is_some_and(|status| status >= 300);
        let kind = if refused && job.lost >= LOST_CREATES { Kind::Unavailable } else { Kind::TryAgain };
        let what =
            format!("{id}: whether its batch was created is not known{answer}, and it is not created again: {why}");
        let (mark, file) = (self.mark(job)?, job.file_id.as_deref().unwrap_or_default());
        let error = Error::new(kind, what).fix(format!(
            "look for a batch with the metadata `{MARK}: {mark}` or the input file {file} at the provider's console. \
             If there is one, run the same command later: it is adopted as soon as the list shows it. \
             If there is none, run the same command with --on-ambiguous again"
        ));
        let scope = if job.held { Scope::Chunk } else { Scope::Creates };
        Ok(Gave::Up { place, scope, error })
    }

    /// Takes the batch of this chunk from a complete listing, if it is there.
    async fn adopt(&self, place: usize, job: &Job) -> std::result::Result<Listed, Gave> {
        let (mark, file) = (self.mark(job)?, file_id(job)?);
        let evidence = Evidence::of(&locked(self.journal)?.state);
        let ours = |batch: &Batch| {
            evidence.look_at(batch);
            let same_file = batch.input_file_id.as_ref() == Some(&file);
            // An earlier attempt that came late found its input deleted: it did nothing and cost nothing.
            same_file || !has_failed(batch) && batch.metadata.get(MARK).is_some_and(|it| *it == mark)
        };
        let listing = self.unless_stopped(self.client.find_batches(ours)).await?;
        let listing =
            listing.map_err(|error| Gave::Up { place, scope: scope_of(&error, &job.chunk), error: error.into() })?;
        let mut found = listing.found;
        found.sort_by_key(|batch| (has_failed(batch), batch.created_at, batch.id.to_string()));
        let mut found = found.into_iter();
        let Some(oldest) = found.next() else {
            return Ok(Listed::Absent { is_proof: listing.complete && evidence.shows_ours() });
        };
        self.progress.note(format_args!("{}: its batch {} was created after all", job.chunk.id, oldest.id));
        // Before the journal forgets that there may be others.
        for other in found.filter(|other| !other.status.is_terminal()) {
            let outcome = self.unless_stopped(self.client.cancel(&other.id)).await?;
            let outcome =
                outcome.map_or_else(|e| format!("could not be cancelled: {e}"), |_| "is cancelled".to_owned());
            self.progress.always(format_args!("{}: a second batch {} {outcome}", job.chunk.id, other.id));
        }
        self.created(job, &oldest.id, true)?;
        Ok(Listed::Adopted)
    }

    fn created(&self, job: &Job, batch: &BatchId, adopted: bool) -> Result<()> {
        self.append(&Event::Created { chunk: job.chunk.id.clone(), batch_id: batch.to_string(), adopted })
    }

    /// What all attempts of a chunk carry, and no other directory's chunk.
    fn mark(&self, job: &Job) -> Result<String> {
        Ok(mark(&locked(self.journal)?.state, &job.chunk))
    }

    fn over_the_cap(&self, job: &Job) -> Result<Option<Error>> {
        let (batches, requests) = locked(self.journal)?.state.spent();
        Ok(check_caps(&self.settings, batches + 1, requests + job.chunk.lines))
    }

    /// To a terminal batch.
    async fn to_end(&self, place: usize, mut at_once: bool) -> std::result::Result<Reached, Gave> {
        let job = self.job(place)?;
        let batch_id: BatchId = parsed(job.batch_id.as_deref(), &job.chunk)?;
        let (mut failed, mut vague) = (0, 0);
        loop {
            if !at_once {
                self.unless_stopped(sleep(self.settings.poll_interval)).await?;
            }
            at_once = false;
            match self.unless_stopped(self.client.batch(&batch_id)).await? {
                Ok(batch) if batch.found_full_queue() => {
                    self.found_full_queue(&job, &batch).await?;
                    return Ok(Reached::Full(place));
                }
                Ok(batch) if batch.status.is_terminal() => {
                    let end = end_of(&batch);
                    // The object may be half empty now and whole the next time.
                    if is_vague(&end) && vague < VAGUE_POLLS && !self.settings.no_wait {
                        vague += 1;
                        continue;
                    }
                    // Otherwise it is told with its rows.
                    if end.status != "completed" && self.settings.goal == Goal::Submitted {
                        self.progress.always(format_args!("{}: {}", job.chunk.id, describe_end(&batch_id, &end)));
                    }
                    self.append(&Event::Ended { chunk: job.chunk.id.clone(), end })?;
                    return Ok(Reached::Ended(place));
                }
                Ok(_) => failed = 0,
                // A failed poll is not a state change.
                Err(error) => {
                    failed += 1;
                    // The emulator's disk is ours: more polls do not mend it.
                    let for_good = matches!(
                        error.class,
                        Class::Key | Class::Io | Class::Redirect | Class::Certificate | Class::Proxy
                    );
                    if failed > FAILED_POLLS || self.settings.no_wait || for_good {
                        let lost = error.class == Class::NotFound;
                        let mut error = Error::from(error);
                        if lost {
                            error = error.fix(format!(
                                "{batch_id} is not known under this key: use the one it was created with"
                            ));
                        }
                        return Err(Gave::Up { place, scope: Scope::Chunk, error });
                    }
                    self.progress.detail(format_args!("{}: {error}", job.chunk.id));
                }
            }
            if self.settings.no_wait {
                return Ok(Reached::Done);
            }
        }
    }

    /// Nothing of the batch ran: its chunk is as if it had never been sent (`promises.md` M6).
    async fn found_full_queue(&self, job: &Job, batch: &Batch) -> std::result::Result<(), Gave> {
        let (id, why) = (&job.chunk.id, batch.errors.join("; "));
        self.progress.note(format_args!(
            "{id}: the provider's queue was full, and nothing of batch {} ran ({why}); it is created again when one of ours has ended",
            batch.id
        ));
        // A fresh upload tells the next batch from this one in a listing. If this delete fails, an unused file is left there.
        if let Some(file) = &job.file_id {
            let file: FileId = parsed(Some(file), &job.chunk)?;
            let _left_there = self.unless_stopped(self.client.delete(&file)).await?;
        }
        Ok(self.append(&Event::Full { chunk: id.clone(), why })?)
    }

    /// From a terminal batch to verified results, and no trace left at the provider.
    async fn to_results(&self, place: usize, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let mut turn = self.unless_stopped(gate.downloads.acquire()).await?;
        let job = self.ended_job(place).await?;
        let chunk = &job.chunk;
        let rows = self.work.rows(&chunk.id);
        if !rows.exists()? {
            return Err(Gave::Up { place, scope: Scope::Chunk, error: RowSet::gone(&rows) });
        }
        if let Some(end) = job.end.as_ref().filter(|end| end.status != "completed") {
            let batch_id: BatchId = parsed(job.batch_id.as_deref(), chunk)?;
            self.progress.always(format_args!("{}: {}", chunk.id, describe_end(&batch_id, end)));
        }
        let (mut tries, mut pauses) = (0, LATE_FILE.iter());
        loop {
            let Downloaded { mut balance, absent, missing } = self.download(place, &job).await?;
            if let Some(error) = missing {
                // A batch may say that it has ended before its files can be read.
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let is_late = job.missing.is_some_and(|since| now.saturating_sub(since) > LATEST_FILE);
                if self.settings.no_wait && !is_late {
                    self.append(&Event::Missing { chunk: chunk.id.clone(), why: error.to_string(), at: now })?;
                    self.progress.note(format_args!("{}: {error}; it is asked for again next time", chunk.id));
                    return Ok(Reached::Done);
                }
                if let Some(seconds) = pauses.next().filter(|_| !self.settings.no_wait) {
                    let pause = Duration::from_secs(*seconds);
                    // The first pauses are short: a file that is late by seconds is nothing to tell.
                    if *seconds == TOLD_FROM {
                        self.progress
                            .note(format_args!("{}: {error}; it is asked for again for some minutes", chunk.id));
                    }
                    self.progress.detail(format_args!("{}: {error}; asking again in {pause:?}", chunk.id));
                    drop(turn);
                    self.unless_stopped(sleep(pause)).await?;
                    turn = self.unless_stopped(gate.downloads.acquire()).await?;
                    continue;
                }
                // It will not come: another download would not bring more.
                (balance.short, balance.missing) = (false, true);
                self.tell_absent(&job, &balance, &absent, Some(&error));
            } else {
                tries += 1;
                let end = job.end.as_ref();
                let has_files = end.is_some_and(|end| end.output_file_id.is_some() || end.error_file_id.is_some());
                if balance.short && has_files && tries < DOWNLOADS {
                    self.unless_stopped(sleep(REFUSAL_PAUSE)).await?;
                    continue;
                }
                self.tell_absent(&job, &balance, &absent, None);
            }
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

    /// A job whose batch has ended. A batch that did not say where its results are is asked once more.
    async fn ended_job(&self, place: usize) -> std::result::Result<Job, Gave> {
        let job = self.job(place)?;
        if job.end.as_deref().is_some_and(is_vague) {
            let batch_id: BatchId = parsed(job.batch_id.as_deref(), &job.chunk)?;
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

    fn tell_absent(&self, job: &Job, balance: &RowBalance, first: &[u64], missing: Option<&ApiError>) {
        if balance.absent == 0 {
            return;
        }
        let named: Vec<String> = first.iter().map(ToString::to_string).collect();
        let more = if first.len() as u64 == balance.absent { "" } else { ", …" };
        let gone = missing.map(|error| format!("; the provider does not have its file: {error}")).unwrap_or_default();
        let again = if balance.short { "; the next fetch or run tries once more" } else { "" };
        let (id, named) = (&job.chunk.id, named.join(", "));
        self.progress.note(format_args!(
            "{id}: {} of {} absent: {named}{more}{gone}{again}",
            balance.absent,
            count(job.chunk.lines, "row")
        ));
    }

    /// Downloads a batch's files and counts their rows.
    async fn download(&self, place: usize, job: &Job) -> std::result::Result<Downloaded, Gave> {
        let chunk = &job.chunk;
        let end = job.end.clone().unwrap_or_default();
        let files = ResultFile::BOTH.map(|file| self.work.results(&chunk.id, file));
        let (mut whole, mut missing) = (true, None);
        for (to, id) in files.iter().zip([&end.output_file_id, &end.error_file_id]) {
            let Some(id) = id else {
                to.remove()?;
                continue;
            };
            let id: FileId = parsed(Some(id), chunk)?;
            match self.unless_stopped(self.client.download(&id, to)).await? {
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
        balance.short |= !whole || missing.is_some() || is_short(&balance, &end, chunk.lines);
        balance.short &= !drill::without(Guard::Counts);
        Ok(Downloaded { balance, absent, missing })
    }

    /// Deletes what nobody needs any more, here and at the provider. What cannot be deleted now is tried next time.
    async fn to_clean(&self, place: usize, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let job = self.job(place)?;
        if !self.settings.keep_requests {
            self.work.request(&job.chunk.id).remove()?;
        }
        // What may be wanted again stays there.
        let short = job.rows.as_ref().is_some_and(|rows| rows.short || rows.textless || rows.missing);
        if self.settings.keep_remote || job.cleaned || short {
            return Ok(Reached::Done);
        }
        let _turn = self.unless_stopped(gate.downloads.acquire()).await?;
        let end = job.end.clone().unwrap_or_default();
        for id in [end.output_file_id, end.error_file_id, job.file_id].into_iter().flatten() {
            let id: FileId = parsed(Some(&id), &job.chunk)?;
            if let Err(error) = self.unless_stopped(self.client.delete(&id)).await? {
                self.progress.detail(format_args!("{}: {error}; it is tried again next time", job.chunk.id));
                return Ok(Reached::Done);
            }
        }
        self.append(&Event::Cleaned { chunk: job.chunk.id })?;
        Ok(Reached::Done)
    }

    /// Gives a call up when we are told to stop.
    async fn unless_stopped<T>(&self, call: impl Future<Output = T>) -> std::result::Result<T, Gave> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stopped(&mut stop) => Err(Gave::Stopped),
            answer = call => Ok(answer),
        }
    }

    async fn last_call(&self) {
        let mut stop = self.stop.clone();
        stopped(&mut stop).await;
        sleep(LAST_CALL).await;
    }
}

impl Gate {
    fn new() -> Self {
        Self {
            halted: Cell::new(false),
            halted_models: RefCell::default(),
            refused: Cell::new(0),
            uploads: Semaphore::new(TRANSFERS),
            downloads: Semaphore::new(TRANSFERS),
            changed: Notify::new(),
        }
    }

    fn halt(&self) {
        self.halted.set(true);
        self.changed.notify_waiters();
    }

    /// No more creates under this model; whoever waits for its queue need not.
    fn bar(&self, model: String) {
        self.halted_models.borrow_mut().insert(model);
        self.changed.notify_waiters();
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

impl Evidence {
    fn of(state: &State) -> Self {
        let known = state
            .jobs
            .iter()
            .filter_map(|job| Some((job.batch_id.clone()?, (job.file_id.clone(), mark(state, &job.chunk)))));
        let (any, traceable) = (Cell::new(false), Cell::new(false));
        Self { known: known.collect(), proven: Cell::new(state.was_listed), any, traceable }
    }

    fn look_at(&self, batch: &Batch) {
        let (file, mark) = (batch.input_file_id.as_ref().map(FileId::as_str), batch.metadata.get(MARK));
        self.any.set(true);
        self.traceable.set(self.traceable.get() || file.is_some() || mark.is_some());
        if let Some((known_file, known_mark)) = self.known.get(batch.id.as_str()) {
            let same = file.is_some() && file == known_file.as_deref() || mark == Some(known_mark);
            self.proven.set(self.proven.get() || same);
        }
    }

    fn shows_ours(&self) -> bool {
        self.proven.get() || self.known.is_empty() && (!self.any.get() || self.traceable.get())
    }
}

impl Floor {
    /// Chunks that could start if there were room.
    fn waiting(&self, gate: &Gate) -> usize {
        self.models.iter().filter(|(model, _)| !gate.bars(model)).map(|(_, queue)| queue.waiting.len()).sum()
    }

    /// Gives room to the first chunk for which there is some.
    fn start(&mut self, gate: &Gate, most: usize) -> Option<usize> {
        if self.live >= most {
            return None;
        }
        let open = self.models.iter_mut().filter(|(model, _)| !gate.bars(model));
        let (_, queue) = open.filter_map(|(_, queue)| Some((queue.next()?, queue))).min_by_key(|(place, _)| *place)?;
        let (place, lines) = queue.waiting.pop_front()?;
        queue.queued += lines;
        self.live += 1;
        self.creating += 1;
        Some(place)
    }

    /// Chunks that wait for the provider's queue to have room.
    fn waiting_for_room(&self) -> usize {
        self.models.values().map(|queue| queue.full).sum()
    }

    /// How often this chunk has found the provider's queue full, now included.
    fn found_full(&mut self, place: usize) -> u32 {
        let times = self.full.entry(place).or_default();
        *times += 1;
        *times
    }

    fn leave(&mut self, chunk: &Chunk) {
        self.live -= 1;
        if let Some(queue) = self.models.get_mut(&chunk.model) {
            queue.queued -= chunk.lines;
        }
    }
}

impl JobsEnd {
    /// A chunk is left behind. The first trouble is told again at the end.
    fn give_up(&mut self, progress: &Progress, chunk: &Chunk, error: Error) {
        let id = chunk.id.to_string();
        let told = error.to_string();
        let told = if told.starts_with(&id) { told } else { format!("{id}: {told}") };
        match self.trouble {
            None => progress.note(told),
            Some(_) => progress.always(told),
        }
        self.trouble.get_or_insert(error);
    }
}

impl Queue {
    fn wait(&mut self, place: usize, chunk: &Chunk) {
        self.waiting.push_back((place, chunk.lines));
    }

    /// The first in line, if the provider's queue has room for it.
    fn next(&self) -> Option<usize> {
        let (place, lines) = self.waiting.front().filter(|_| self.full == 0)?;
        // A chunk that is larger than the queue goes alone; the provider will say what it thinks of it.
        let fits = self.limit.is_none_or(|limit| self.queued == 0 || self.queued + lines <= limit);
        fits.then_some(*place)
    }
}

/// Whether so many batches and requests in all are more than the user allows (`promises.md` M3).
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

async fn stopped(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    loop {
        if let Some(reason) = *stop.borrow_and_update() {
            return reason;
        }
        if stop.changed().await.is_err() {
            // Nobody is left who could stop us.
            std::future::pending::<()>().await;
        }
    }
}

fn file_id(job: &Job) -> Result<FileId> {
    parsed(job.file_id.as_deref(), &job.chunk)
}

/// An id that the journal holds.
fn parsed<T: std::str::FromStr<Err = Error>>(id: Option<&str>, chunk: &Chunk) -> Result<T> {
    id.ok_or_else(|| Error::input(format!("the journal has no id for {}", chunk.id)))?.parse()
}

fn end_of(batch: &Batch) -> BatchEnd {
    let counts = batch.request_counts;
    BatchEnd {
        status: batch.status.as_str().to_owned(),
        output_file_id: batch.output_file_id.as_ref().map(ToString::to_string),
        error_file_id: batch.error_file_id.as_ref().map(ToString::to_string),
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
    let output = rows.output + rows.bad;
    if end.status == "completed" && end.completed + end.failed == 0 {
        return output + rows.error < lines;
    }
    output < end.completed || rows.error < end.failed
}

/// It promises rows and does not say where they are, or has files and does not say how many rows they hold.
fn is_vague(end: &BatchEnd) -> bool {
    let (no_output, no_errors) = (end.output_file_id.is_none(), end.error_file_id.is_none());
    let uncounted = end.completed + end.failed == 0;
    let empty = no_output && no_errors;
    no_output && end.completed > 0 || no_errors && end.failed > 0 || uncounted && (!empty || end.status == "completed")
}

fn describe_end(batch: &BatchId, end: &BatchEnd) -> String {
    let why = if end.errors.is_empty() { "the provider gives no reason".to_owned() } else { end.errors.join("; ") };
    format!("its batch is {}: {why} ({batch})", end.status)
}

/// It did not validate, and nothing of it ran.
fn has_failed(batch: &Batch) -> bool {
    batch.status == BatchStatus::Failed
}

/// What all attempts of a chunk carry in their metadata.
fn mark(state: &State, chunk: &Chunk) -> String {
    format!("{}/{}", state.run, chunk.id)
}

fn queue_stays_full() -> Error {
    let what = format!("the provider's queue was full {FULL_QUEUES} times in a row");
    Error::new(Kind::Unavailable, what).fix("run the same command again when other batches of the account have ended")
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

#[cfg(test)]
mod tests;
