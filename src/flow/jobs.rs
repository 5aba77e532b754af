//! Chunks → jobs → results files: the one async stage. A job is a chunk's way through the provider: upload, intent,
//! create, poll, download, verify, clean up. Every step is in the journal before the next one; a killed process goes on
//! from there.
//!
//! One task drives all jobs. It starts a job when there is room, gives the room to the next when the batch has ended, and
//! downloads meanwhile. Whoever stops it (a signal, a deadline) stops it between calls; only a create is waited for.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet, VecDeque},
    future::Future,
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use futures::{StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::{sync::mpsc, sync::watch, time::sleep};

use super::{
    chunks::Chunk,
    rows::{RowSet, verify},
};
use crate::{
    cli::OnAmbiguous,
    error::{Error, Kind, Result},
    journal::{BatchEnd, Event, Job, Journal, RowBalance, Step, locked},
    progress::Progress,
    provider::{ApiError, Batch, BatchId, Class, Client, CreateError, FileId},
    workdir::{ResultFile, WorkDir},
};

/// Complete listings that must not show a batch before its create counts as lost.
const LISTINGS: u32 = 3;
/// Failed polls in a row (each was retried by the client) before the provider counts as gone.
const FAILED_POLLS: u32 = 5;
/// Creates refused for the moment (rate, overload) before the chunk is given up.
const REFUSALS: u32 = 30;
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_REFUSAL_PAUSE: Duration = Duration::from_secs(60);
/// Downloads of a file that came short.
const DOWNLOADS: u32 = 3;
/// A create in flight is waited for this long after a stop; what comes later is found in a listing next time.
const LAST_CALL: Duration = Duration::from_secs(10);
/// Chunks that wait for room, beside those that run: a few more on disk than are needed at once.
const WAITING: usize = 4;
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
}

/// Where a job's future got to.
enum Reached {
    /// Its batch is terminal, or was before: there is room for another.
    Ended(usize),
    /// Its results are here.
    Fetched,
    /// Not to be waited for (`--no-wait`).
    Running,
}

/// Why a job's future gave up.
enum Gave {
    Stopped,
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

/// Who runs and who may not.
#[derive(Default)]
struct Floor {
    waiting: VecDeque<usize>,
    live: usize,
    /// Requests queued at the provider, by model.
    queued: HashMap<String, u64>,
    halted: bool,
    halted_models: HashSet<String>,
    /// Places that gave up.
    left: HashSet<usize>,
}

type JobFuture<'f> = LocalBoxFuture<'f, std::result::Result<Reached, Gave>>;

impl Driver<'_> {
    /// Drives all jobs of the journal, and those whose places come through `cut`, as far as the goal.
    ///
    /// # Errors
    /// The journal or the disk failed. Everything else is told in [`JobsEnd`].
    pub async fn drive(&self, mut cut: mpsc::Receiver<usize>) -> Result<JobsEnd> {
        let mut floor = Floor::default();
        let mut end = JobsEnd::default();
        let mut running: FuturesUnordered<JobFuture<'_>> = FuturesUnordered::new();
        let mut stop = self.stop.clone();
        let mut more = true;
        let known = locked(self.journal)?.state.jobs.len();
        for place in 0..known {
            let job = self.job(place)?;
            match job.step {
                Step::Cut | Step::Uploaded if self.settings.goal == Goal::Fetched => {}
                Step::Cut | Step::Uploaded => floor.waiting.push_back(place),
                // These may be paid for: they are looked after at once, whatever the number of rooms.
                Step::Intended | Step::Created => {
                    floor.enter(&job.chunk);
                    running.push(Box::pin(self.to_its_end(place)));
                }
                Step::Ended if self.settings.goal != Goal::Submitted => running.push(Box::pin(self.to_results(place))),
                Step::Fetched => running.push(Box::pin(self.to_clean(place))),
                Step::Ended => {}
            }
        }
        loop {
            while let Some(place) = self.next_start(&mut floor)? {
                running.push(Box::pin(self.to_its_end(place)));
            }
            let is_waiting = !floor.waiting.is_empty() && floor.live > 0 && !floor.halted;
            if self.settings.goal == Goal::Submitted && !more && !is_waiting && self.all_created(&floor)? {
                break;
            }
            let takes_more = more && floor.waiting.len() < WAITING && !floor.halted;
            if running.is_empty() && !takes_more {
                break;
            }
            tokio::select! {
                biased;
                Some(reached) = running.next() => match reached {
                    Ok(Reached::Ended(place)) => {
                        floor.leave(&self.job(place)?.chunk);
                        if self.settings.goal != Goal::Submitted {
                            running.push(Box::pin(self.to_results(place)));
                        }
                    }
                    Ok(Reached::Fetched | Reached::Running) => {}
                    Err(Gave::Stopped) => {}
                    Err(Gave::Broken(error)) => return Err(error),
                    Err(Gave::Up { place, scope, error }) => {
                        let job = self.job(place)?;
                        if job.step < Step::Ended {
                            floor.leave(&job.chunk);
                        }
                        floor.left.insert(place);
                        self.progress.note(format_args!("{}: {error}", job.chunk.id));
                        match scope {
                            Scope::Chunk => {}
                            Scope::Model(model) => drop(floor.halted_models.insert(model)),
                            Scope::Creates => floor.halted = true,
                        }
                        end.trouble.get_or_insert(error);
                    }
                },
                place = cut.recv(), if takes_more => match place {
                    Some(place) => floor.waiting.push_back(place),
                    None => more = false,
                },
                reason = stopped(&mut stop), if end.stopped.is_none() => {
                    end.stopped = Some(reason);
                    floor.halted = true;
                    cut.close();
                }
            }
        }
        // The jobs may all have heard of it before this loop did.
        end.stopped = end.stopped.or(*self.stop.borrow());
        self.progress.finish();
        Ok(end)
    }

    fn all_created(&self, floor: &Floor) -> Result<bool> {
        let state = &locked(self.journal)?.state;
        let is_open = |place: &&usize| state.jobs.get(**place).is_some_and(|job| job.step < Step::Created);
        Ok(state.below(Step::Created) == floor.left.iter().filter(is_open).count() as u64)
    }

    /// The next chunk for which there is room.
    fn next_start(&self, floor: &mut Floor) -> Result<Option<usize>> {
        if floor.halted || floor.live >= self.settings.max_concurrent {
            return Ok(None);
        }
        for at in 0..floor.waiting.len() {
            let Some(&place) = floor.waiting.get(at) else { break };
            let chunk = self.job(place)?.chunk;
            if floor.halted_models.contains(&chunk.model) {
                floor.waiting.remove(at);
                floor.left.insert(place);
                return self.next_start(floor);
            }
            if floor.has_room(&chunk, self.client.dialect().queue_limit(&chunk.model)) {
                floor.waiting.remove(at);
                floor.enter(&chunk);
                return Ok(Some(place));
            }
        }
        Ok(None)
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

    /// From wherever the job is to a terminal batch.
    async fn to_its_end(&self, place: usize) -> std::result::Result<Reached, Gave> {
        let refusals = Cell::new(0);
        loop {
            let job = self.job(place)?;
            match job.step {
                Step::Cut => self.upload(place, &job).await?,
                Step::Uploaded => self.create(place, &job, &refusals).await?,
                Step::Intended => self.look_up(place, &job).await?,
                Step::Created => return self.poll(place, &job).await,
                Step::Ended | Step::Fetched => return Ok(Reached::Ended(place)),
            }
        }
    }

    async fn upload(&self, place: usize, job: &Job) -> std::result::Result<(), Gave> {
        let path = self.work.join(&job.chunk.path);
        let give_up = |scope, error| Gave::Up { place, scope, error };
        let (hash, file) = (job.chunk.blake3.clone(), path.clone());
        let same = blocking(move || file_hash(&file)).await.map_err(|error| give_up(Scope::Chunk, error))?;
        if same != hash {
            let error = Error::input(format!("{} is not the file that was cut: its hash differs", path.display()))
                .fix("begin again with --new, or in another work directory");
            return Err(give_up(Scope::Chunk, error));
        }
        let name = format!("{}.jsonl", job.chunk.id);
        let file_id = self
            .unless_stopped(self.client.upload(&path, &name))
            .await?
            .map_err(|error| give_up(scope_of(&error, &job.chunk), error.into()))?;
        self.append(&Event::Uploaded { chunk: job.chunk.id.clone(), file_id: file_id.to_string() })?;
        Ok(())
    }

    async fn create(&self, place: usize, job: &Job, refusals: &Cell<u32>) -> std::result::Result<(), Gave> {
        let id = &job.chunk.id;
        let file_id = file_id(job)?;
        if let Some(error) = self.over_the_cap(job)? {
            return Err(Gave::Up { place, scope: Scope::Creates, error });
        }
        if self.stop.borrow().is_some() {
            return Err(Gave::Stopped);
        }
        let attempt = job.attempt + 1;
        let blake3 = job.chunk.blake3.clone();
        self.append(&Event::Intent { chunk: id.clone(), file_id: file_id.to_string(), attempt, blake3 })?;
        let metadata = [
            (MARK, self.mark(job)?),
            ("analysis", job.chunk.analysis.clone()),
            ("chunk", id.to_string()),
            ("attempt", attempt.to_string()),
        ];
        let answer = tokio::select! {
            answer = self.client.create(&file_id, &metadata) => answer,
            () = self.last_call() => return Err(Gave::Stopped),
        };
        match answer {
            Ok(batch) => self.created(job, &batch.id, false)?,
            Err(CreateError::Ambiguous(error)) => {
                self.progress.note(format_args!("{id}: no clear answer to its create ({error}); looking it up"));
            }
            Err(CreateError::Refused(error) | CreateError::NotSent(error)) => {
                self.append(&Event::Refused { chunk: id.clone(), why: error.to_string() })?;
                refusals.set(refusals.get() + 1);
                if error.stops_creates() || !error.is_retryable() || refusals.get() > REFUSALS {
                    // A file that is gone is uploaded again, once.
                    if error.class == Class::NotFound && refusals.get() == 1 {
                        self.append(&Event::Lost { chunk: id.clone(), why: error.to_string() })?;
                        return Ok(());
                    }
                    return Err(Gave::Up { place, scope: scope_of(&error, &job.chunk), error: error.into() });
                }
                let pause = REFUSAL_PAUSE.saturating_mul(1 << refusals.get().min(6)).min(LONGEST_REFUSAL_PAUSE);
                self.unless_stopped(sleep(pause)).await?;
            }
        }
        Ok(())
    }

    /// A create was sent, and whether it happened is not known: the listing tells (`promises.md` M1).
    async fn look_up(&self, place: usize, job: &Job) -> std::result::Result<(), Gave> {
        let id = &job.chunk.id;
        let give_up = |error: ApiError| Gave::Up { place, scope: scope_of(&error, &job.chunk), error: error.into() };
        for listing in 0..LISTINGS {
            if listing > 0 {
                self.unless_stopped(sleep(self.settings.settle / (LISTINGS - 1))).await?;
            }
            if self.adopt(job).await?.map_err(give_up)? {
                return Ok(());
            }
        }
        if self.settings.on_ambiguous == OnAmbiguous::Hold {
            let error = Error::new(Kind::TryAgain, format!("{id}: whether its batch was created is not known"))
                .fix("look at the provider's console; the same command without --on-ambiguous hold creates it anew");
            return Err(Gave::Up { place, scope: Scope::Chunk, error });
        }
        // Without its input a create that is still on its way cannot become a batch.
        self.unless_stopped(self.client.delete(&file_id(job)?)).await?.map_err(give_up)?;
        if self.adopt(job).await?.map_err(give_up)? {
            return Ok(());
        }
        self.progress
            .note(format_args!("{id}: {LISTINGS} listings do not show its batch; uploading and creating anew"));
        self.append(&Event::Lost { chunk: id.clone(), why: "no listing shows the batch".to_owned() })?;
        Ok(())
    }

    /// Takes the batch of this chunk from a complete listing, if it is there.
    async fn adopt(&self, job: &Job) -> std::result::Result<std::result::Result<bool, ApiError>, Gave> {
        let (mark, file) = (self.mark(job)?, file_id(job)?);
        let ours = |batch: &Batch| {
            batch.input_file_id.as_ref() == Some(&file) || batch.metadata.get(MARK).is_some_and(|it| *it == mark)
        };
        let mut found = match self.unless_stopped(self.client.find_batches(ours)).await? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        found.sort_by_key(|batch| (batch.created_at, batch.id.to_string()));
        let mut found = found.into_iter();
        let Some(oldest) = found.next() else { return Ok(Ok(false)) };
        self.progress.note(format_args!("{}: its batch {} was created after all", job.chunk.id, oldest.id));
        self.created(job, &oldest.id, true)?;
        for other in found {
            let outcome = self.unless_stopped(self.client.cancel(&other.id)).await?;
            let outcome =
                outcome.map_or_else(|e| format!("could not be cancelled: {e}"), |_| "is cancelled".to_owned());
            self.progress.note(format_args!("{}: a second batch {} {outcome}", job.chunk.id, other.id));
        }
        Ok(Ok(true))
    }

    fn created(&self, job: &Job, batch: &BatchId, adopted: bool) -> Result<()> {
        self.append(&Event::Created { chunk: job.chunk.id.clone(), batch_id: batch.to_string(), adopted })
    }

    /// What all attempts of a chunk carry, and no other directory's chunk.
    fn mark(&self, job: &Job) -> Result<String> {
        Ok(format!("{}/{}", locked(self.journal)?.state.run, job.chunk.id))
    }

    fn over_the_cap(&self, job: &Job) -> Result<Option<Error>> {
        let (batches, requests) = locked(self.journal)?.state.spent();
        Ok(check_caps(&self.settings, batches + 1, requests + job.chunk.lines))
    }

    async fn poll(&self, place: usize, job: &Job) -> std::result::Result<Reached, Gave> {
        let batch_id: BatchId = parsed(job.batch_id.as_deref(), &job.chunk)?;
        let mut failed = 0;
        let mut first = !self.settings.no_wait;
        loop {
            if first {
                self.unless_stopped(sleep(self.settings.poll_interval)).await?;
            }
            first = true;
            match self.unless_stopped(self.client.batch(&batch_id)).await? {
                Ok(batch) if batch.status.is_terminal() => {
                    self.append(&Event::Ended { chunk: job.chunk.id.clone(), end: end_of(&batch) })?;
                    return Ok(Reached::Ended(place));
                }
                Ok(_) => failed = 0,
                // A failed poll is not a state change.
                Err(error) => {
                    failed += 1;
                    if failed > FAILED_POLLS || matches!(error.class, Class::Key) {
                        return Err(Gave::Up { place, scope: scope_of(&error, &job.chunk), error: error.into() });
                    }
                    self.progress.detail(format_args!("{}: {error}", job.chunk.id));
                }
            }
            if self.settings.no_wait {
                return Ok(Reached::Running);
            }
        }
    }

    /// From a terminal batch to verified results, and no trace left at the provider.
    async fn to_results(&self, place: usize) -> std::result::Result<Reached, Gave> {
        let job = self.job(place)?;
        let chunk = &job.chunk;
        let end = job.end.clone().unwrap_or_default();
        let files = ResultFile::BOTH.map(|file| self.work.results(&chunk.id, file));
        let mut missed: Option<Error> = None;
        for tries in 1..=DOWNLOADS {
            missed = None;
            let mut whole = true;
            for (file, id) in ResultFile::BOTH.into_iter().zip([&end.output_file_id, &end.error_file_id]) {
                let to = self.work.results(&chunk.id, file);
                let Some(id) = id else {
                    remove(&to)?;
                    continue;
                };
                let id: FileId = parsed(Some(id), chunk)?;
                match self.unless_stopped(self.client.download(&id, &to)).await? {
                    Ok(download) => whole &= download.complete,
                    Err(error) if error.class == Class::NotFound => {
                        whole = false;
                        missed = Some(error.into());
                    }
                    Err(error) => {
                        return Err(Gave::Up { place, scope: scope_of(&error, chunk), error: error.into() });
                    }
                }
            }
            let (files, analysis, rows) = (files.clone(), chunk.analysis.clone(), self.work.rows(&chunk.id));
            let mut balance = blocking(move || verify(&files, &analysis, &RowSet::read(&rows)?)).await?;
            balance.short = !whole || is_short(&balance, &end);
            if !balance.short || tries == DOWNLOADS || missed.is_some() {
                if balance.short {
                    self.progress.note(format_args!("{}: {}", chunk.id, describe_short(&balance, &end)));
                }
                self.append(&Event::Fetched { chunk: chunk.id.clone(), rows: balance })?;
                break;
            }
            self.unless_stopped(sleep(REFUSAL_PAUSE)).await?;
        }
        if let Some(fetched) = &self.fetched {
            // The reader has gone only if it failed; then its own error is told.
            let _reader_gone = fetched.send(place).await;
        }
        match missed {
            Some(error) => Err(Gave::Up { place, scope: Scope::Chunk, error }),
            None => self.to_clean(place).await,
        }
    }

    /// Deletes what nobody needs any more, here and at the provider. What cannot be deleted now is tried next time.
    async fn to_clean(&self, place: usize) -> std::result::Result<Reached, Gave> {
        let job = self.job(place)?;
        if !self.settings.keep_requests {
            remove(&self.work.join(&job.chunk.path))?;
        }
        let short = job.rows.as_ref().is_some_and(|rows| rows.short);
        if self.settings.keep_remote || job.cleaned || short {
            return Ok(Reached::Fetched);
        }
        let end = job.end.clone().unwrap_or_default();
        for id in [end.output_file_id, end.error_file_id, job.file_id].into_iter().flatten() {
            let id: FileId = parsed(Some(&id), &job.chunk)?;
            if let Err(error) = self.unless_stopped(self.client.delete(&id)).await? {
                self.progress.detail(format_args!("{}: {error}; it is tried again next time", job.chunk.id));
                return Ok(Reached::Fetched);
            }
        }
        self.append(&Event::Cleaned { chunk: job.chunk.id })?;
        Ok(Reached::Fetched)
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

impl Floor {
    fn has_room(&self, chunk: &Chunk, limit: Option<u64>) -> bool {
        let queued = self.queued.get(&chunk.model).copied().unwrap_or_default();
        // A chunk that is larger than the queue goes alone; the provider will say what it thinks of it.
        limit.is_none_or(|limit| queued == 0 || queued + chunk.lines <= limit)
    }

    fn enter(&mut self, chunk: &Chunk) {
        self.live += 1;
        *self.queued.entry(chunk.model.clone()).or_default() += chunk.lines;
    }

    fn leave(&mut self, chunk: &Chunk) {
        self.live = self.live.saturating_sub(1);
        if let Some(queued) = self.queued.get_mut(&chunk.model) {
            *queued = queued.saturating_sub(chunk.lines);
        }
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::input(format!("a thread died: {e}; run the same command again"))))
}

fn file_hash(path: &PathBuf) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, &e))?;
    hasher.update_reader(file).map_err(|e| Error::io("read", path, &e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn remove(path: &PathBuf) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
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
    }
}

/// A completed batch promised more rows than its files hold.
fn is_short(rows: &RowBalance, end: &BatchEnd) -> bool {
    rows.output + rows.foreign + rows.bad < end.completed || rows.error < end.failed && end.error_file_id.is_some()
}

fn describe_short(rows: &RowBalance, end: &BatchEnd) -> String {
    format!(
        "its results hold {} rows of the {} that the provider counts; {} rows are absent (`zbatch fetch --again failed` tries once more)",
        rows.output + rows.error,
        end.completed + end.failed,
        rows.absent
    )
}

fn scope_of(error: &ApiError, chunk: &Chunk) -> Scope {
    match error.class {
        Class::Model => Scope::Model(chunk.model.clone()),
        Class::BadRequest | Class::NotFound | Class::Reply => Scope::Chunk,
        Class::Key | Class::Account | Class::RateLimited | Class::Transient | Class::Unreachable | Class::Io => {
            Scope::Creates
        }
    }
}
