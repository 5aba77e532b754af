//! Chunks → jobs → results files: the one async stage. A job is a chunk's way through the provider, one future, in
//! `life.rs`: slot, batch, end, results, clean. Every step is in the journal before the next one, so that a killed
//! process goes on from there.
//!
//! [`jobs`] offers the stage as a stream: it pulls chunks when slots are free, drives their futures, and yields each
//! chunk whose results are here. A signal or a deadline ends every call but a create, which has a last call ([`Stop`]).
//!
//! | file | is about |
//! |---|---|
//! | `life.rs` | a chunk from top to bottom |
//! | `give_up.rs` | errors: what is left to another command, and which creates are closed |
//! | `slots.rs` | which chunk may begin: `--max-concurrent-tasks`, documented and learned limits |
//! | `create.rs` | upload, intent, create |
//! | `lookup.rs`, `listed.rs` | batches that may exist: creates without an answer, batches of another copy of the directory |
//! | `poll.rs` | waiting for the end of a batch |
//! | `results.rs` | download, verify, clean up |
//! | `patience.rs` | a provider that does not answer |

mod create;
mod give_up;
mod life;
mod listed;
mod lookup;
mod patience;
mod poll;
mod results;
mod slots;

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::ready,
    ops::ControlFlow,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};

use self::{
    lookup::Account,
    poll::Pace,
    slots::{Slot, Slots},
};
use crate::{
    cli::OnAmbiguous,
    drill,
    error::{Error, Kind, Result},
    journal::{ChunkPlace, Event, Job, JobStatus, Journal, State, Step},
    progress::{Counts, Progress, Waiting},
    provider::Client,
    stop::{Stop, StopReason},
    units::{count, sum},
    workdir::WorkDir,
};

/// Chunks of which one kind of trouble is told in full. One cause may meet thousands of them.
const TOLD_CHUNKS: u32 = 3;
/// Chunks on their way from upload to create at one time, and downloads: more of them would not be faster, only larger. A queue
/// that is found full has refused no more creates than these.
const TRANSFERS: usize = 4;
/// New chunks that wait for a slot: a few more on disk than are needed at once.
const WAITING: usize = 4;
/// Futures of jobs, beside one for each slot, of chunks that had a batch when the command began; and the same of all others. The
/// memory of a job does not add up over a directory of many thousand chunks, nor do connections. While so many chunks wait for
/// their downloads, no batch is created.
const LOOKED_AFTER: usize = 128;
/// Fetched chunks whose results nobody has read. Further chunks wait before their download.
pub const UNREAD: usize = 16;
/// Between two looks at what the client waits for.
const LOOK_AT_WAITS: Duration = Duration::from_secs(5);
/// Between two lines that say that the job goes on.
const HEARTBEAT: Duration = Duration::from_secs(600);

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Every chunk of the journal has a batch.
    Submitted,
    /// Every batch that exists is terminal and its results are here.
    Fetched,
    /// Every chunk, also those that are cut meanwhile, has its results here.
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
    /// How long a provider that does not answer is waited for while batches run.
    pub patience: Duration,
    pub no_wait: bool,
    /// Send ten polls a second at most. An emulator in the same process needs no such limit.
    pub spreads_polls: bool,
    pub keep_requests: bool,
    pub keep_remote: bool,
}

/// How the stage ended.
#[derive(Debug, Default)]
pub struct JobsEnd {
    /// The first error that left a chunk behind.
    pub trouble: Option<Error>,
    pub stopped: Option<StopReason>,
    /// A model that the provider does not take, or not any more.
    pub refused_model: Option<String>,
    /// Chunks that were left behind.
    pub left: u32,
    /// Calls that were still waited for.
    pub waits: Vec<Waiting>,
}

/// A chunk whose results are here. While it is not dropped, it counts against [`UNREAD`].
#[derive(Debug)]
pub struct Fetched {
    pub place: ChunkPlace,
    _unread: OwnedSemaphorePermit,
}

/// What all jobs of one work directory share.
#[derive(Debug)]
pub struct Jobs<'a> {
    client: &'a Client,
    work: &'a WorkDir,
    journal: &'a Journal,
    settings: JobSettings,
    stop: &'a Stop,
    progress: &'a Progress,
    slots: Slots,
    /// Turns on the way from upload to create.
    creates: Semaphore,
    downloads: Semaphore,
    unread: Arc<Semaphore>,
    polls: Pace,
    account: Account,
    /// Chunks in a row whose upload or create was refused as wrong.
    refused: Cell<u32>,
    /// Chunks whose files came late, and chunks whose results are gone.
    late: Cell<u32>,
    gone: Cell<u32>,
    /// The input may give more chunks.
    expects_chunks: Cell<bool>,
    end: RefCell<JobsEnd>,
}

/// A chunk of the journal to go on with, and its slot if its batch may run.
type Begun<'a> = (ChunkPlace, Option<Slot<'a>>);

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

/// Drives all jobs to their end. `take` gets each chunk whose results are here; a break ends the stage.
///
/// # Errors
/// The journal or the disk failed. Everything else is told in [`JobsEnd`].
pub async fn drive(
    jobs: &Jobs<'_>,
    chunks: impl Stream<Item = Result<ChunkPlace>>,
    mut take: impl FnMut(Fetched) -> ControlFlow<()>,
) -> Result<JobsEnd> {
    let mut fetched = pin!(self::jobs(jobs, chunks)?);
    while let Some(chunk) = fetched.try_next().await.inspect_err(|_| jobs.progress.finish())? {
        if take(chunk).is_break() {
            break;
        }
    }
    Ok(jobs.end())
}

/// Sends fetched chunks to another thread over a channel of [`UNREAD`] places, which is never full. Ends the stage when that
/// thread has gone. Without a channel nobody reads the results.
pub fn hand_over(to: Option<mpsc::Sender<Fetched>>) -> impl FnMut(Fetched) -> ControlFlow<()> {
    move |fetched| match &to {
        Some(to) if to.try_send(fetched).is_err() => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

/// The stage. `chunks` are the places of new chunks; those of the journal are driven without being announced.
///
/// The stream must be polled while chunks are read, since it also polls batches.
///
/// # Errors
/// The journal or the disk failed, now or in the stream: nothing can go on then.
pub fn jobs<'j>(
    jobs: &'j Jobs<'j>,
    chunks: impl Stream<Item = Result<ChunkPlace>> + 'j,
) -> Result<impl Stream<Item = Result<Fetched>> + 'j> {
    let bound = LOOKED_AFTER.saturating_add(jobs.settings.max_concurrent);
    let (known, begun) = jobs.enter_journal()?;
    let begun = stream::iter(begun).map(|(place, slot)| jobs.drive(place, slot)).buffer_unordered(bound);
    let new = jobs.as_slots_come_free(chunks, known);
    let new = new.map_ok(|(place, slot)| jobs.drive(place, Some(slot))).try_buffer_unordered(bound);
    let fetched = stream::select(begun, new).filter_map(|fetched| ready(fetched.transpose()));
    Ok(fetched.take_until(jobs.until_submitted()))
}

impl<'a> Jobs<'a> {
    pub fn new(
        (client, work, journal): (&'a Client, &'a WorkDir, &'a Journal),
        settings: JobSettings,
        stop: &'a Stop,
        progress: &'a Progress,
    ) -> Self {
        Self {
            client,
            work,
            journal,
            stop,
            progress,
            slots: Slots::new(settings.max_concurrent),
            creates: Semaphore::new(TRANSFERS),
            downloads: Semaphore::new(TRANSFERS),
            unread: Arc::new(Semaphore::new(UNREAD)),
            polls: Pace::new(settings.spreads_polls.then_some(settings.poll_interval)),
            account: Account::default(),
            refused: Cell::default(),
            late: Cell::default(),
            gone: Cell::default(),
            expects_chunks: Cell::new(settings.goal == Goal::Done),
            end: RefCell::default(),
            settings,
        }
    }

    /// How the stage ended, told once.
    fn end(&self) -> JobsEnd {
        let end = self.end.take();
        self.progress.finish();
        let untold = end.left.saturating_sub(TOLD_CHUNKS);
        if untold > 0 {
            let (chunks, were) = (count(untold, "more chunk"), if untold == 1 { "was" } else { "were" });
            self.progress
                .always(format_args!("{chunks} {were} left in the same way; --verbose names each with its reason"));
        }
        JobsEnd { waits: self.client.waits(), stopped: self.stop.reason(), ..end }
    }

    /// Puts the chunks of the journal that have no batch in line. Yields the number of all, and the chunks that have something else
    /// left to do, with the slots of those whose batch may run: first the chunks whose create has no known answer.
    fn enter_journal(&'a self) -> Result<(usize, Vec<Begun<'a>>)> {
        let goal = self.settings.goal;
        for lost in self.journal.read(|state| self.give_up_held(&state.jobs))? {
            self.append(&lost)?;
        }
        self.journal.read(|state| {
            let (mut unclear, mut others) = (Vec::new(), Vec::new());
            for (place, job) in state.placed() {
                self.account.before.borrow_mut().extend(job.batch().cloned());
                let limit = self.client.dialect().queue_limit(&job.chunk.model);
                match job.step() {
                    Step::Cut | Step::Uploaded if goal == Goal::Fetched => {}
                    Step::Cut | Step::Uploaded => self.slots.wait(place, &job.chunk, limit),
                    // A batch may exist: look for it at once, even above --max-concurrent-tasks.
                    Step::Intended => unclear.push((place, Some(self.slots.occupy(&job.chunk, limit, false)))),
                    Step::Created => others.push((place, Some(self.slots.occupy(&job.chunk, limit, true)))),
                    Step::Ended if goal != Goal::Submitted => others.push((place, None)),
                    Step::Fetched if !job.is_cleaned() => others.push((place, None)),
                    Step::Ended | Step::Fetched => {}
                }
            }
            unclear.append(&mut others);
            (state.jobs.len(), unclear)
        })
    }

    /// The user gives up results that are gone (`--on-ambiguous again`): their chunks are created once more.
    fn give_up_held(&self, jobs: &[Job]) -> Vec<Event> {
        if self.settings.on_ambiguous != OnAmbiguous::Again || self.settings.goal == Goal::Fetched {
            return Vec::new();
        }
        let held = jobs.iter().filter(|job| matches!(job.status, JobStatus::Ended { held: true, .. }));
        held.map(|job| Event::Lost { chunk: job.chunk.id.clone(), why: "its results were given up".to_owned() })
            .collect()
    }

    /// Takes new chunks, a few ahead, and yields each chunk that waits as it gets its slot. Ends when no more can get one.
    /// The first `known` chunks came from the journal.
    fn as_slots_come_free<'j>(
        &'j self,
        chunks: impl Stream<Item = Result<ChunkPlace>> + 'j,
        known: usize,
    ) -> impl Stream<Item = Result<(ChunkPlace, Slot<'j>)>> + 'j {
        stream::try_unfold(Box::pin(chunks), move |mut chunks| async move {
            loop {
                if self.stop.reason().is_some() {
                    return Ok(None);
                }
                if let Some(started) = self.slots.start() {
                    return Ok(Some((started, chunks)));
                }
                let takes_more =
                    self.expects_chunks.get() && self.slots.waiting() < WAITING && !self.slots.are_closed();
                let probe = self.slots.next_probe();
                // A job that holds a slot may come back to the line.
                if !takes_more && probe.is_none() && !self.slots.are_in_use() {
                    return Ok(None);
                }
                tokio::select! {
                    biased;
                    () = self.stop.asked() => {}
                    chunk = chunks.next(), if takes_more => match chunk.transpose()? {
                        None => self.expects_chunks.set(false),
                        // The thread that cuts announces it, and the journal had it already.
                        Some(place) if place.index() < known => {}
                        Some(place) => {
                            let chunk = self.journal.job(place)?.chunk;
                            self.slots.wait(place, &chunk, self.client.dialect().queue_limit(&chunk.model));
                        }
                    },
                    () = self.slots.changed() => {}
                    () = sleep_until(probe.unwrap_or_else(Instant::now)), if probe.is_some() => {}
                }
            }
        })
    }

    /// Completes under [`Goal::Submitted`] once no chunk waits for a batch. Meanwhile it says what is waited for, and now
    /// and then how far all is.
    async fn until_submitted(&self) {
        tokio::select! {
            biased;
            () = self.slots.until_all_created(), if self.settings.goal == Goal::Submitted => {}
            never = self.say_waits() => match never {},
        }
    }

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
                let _said = self.journal.read(|state| self.progress.heartbeat(counts(state), &waits));
            }
        }
    }

    fn append(&self, event: &Event) -> Result<()> {
        self.journal.append(event)?;
        self.journal.read(|state| self.progress.update(counts(state)))
    }
}

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

#[cfg(test)]
mod tests;
