//! The whole job, overlapped: chunks are cut as the jobs take them, one task drives the jobs, one thread reads results as they
//! come; then the posts stream past the answers. Between the stages are bounded channels, so that the slowest sets the pace.

mod begin;
mod gather;
mod join;
mod plan;

pub use join::OF_A_ROUND;

use std::{
    ops::ControlFlow,
    path::PathBuf,
    pin::pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    stream::{self, Stream, TryStreamExt as _},
};
use serde_json::json;
use tokio::{runtime::Runtime, sync::mpsc};

pub use self::gather::{Gathered, Store};
use self::{
    gather::{PENDING_RANK, fault_key, read_results},
    join::Join,
    plan::open,
};
use super::{
    Ended,
    cutting::{Noted, chunks, stream},
    remote::{conclude, runtime},
    request_settings::RequestSettings,
    source::PostsFile,
};
use crate::{
    cli::RunArgs,
    console::Console,
    error::{Error, Kind, Result},
    flow::{chunks::Chunk, enhanced::PENDING, faults::FaultLog, kept_faults::KeptFaults, requests::Request},
    jobs::{Fetched, Goal, JobSettings, Jobs, JobsEnd, UNREAD, drive, hand_over},
    journal::{ChunkPlace, Journal, State, Step},
    progress::Progress,
    provider::Client,
    snapshots,
    stop::{Stop, StopReason},
    threads,
    units::now,
    workdir::{CUT_FAULTS, WorkDir, claim::forget_empty},
};

/// Chunks that are cut and that the jobs have not taken.
const CUT_AHEAD: usize = 1;

pub fn run(args: &RunArgs, console: &Console) -> Result<Ended> {
    let runtime = runtime()?;
    let run = Run::begin(args, None, console)?;
    let stop = Stop::listen(&runtime, run.timeout)?;
    let overlapped = run.overlapped(&runtime, &stop);
    let kept = run.write_snapshots();
    let (end, gathered) = overlapped?;
    kept?;
    let joined = run.join(&end, gathered, &stop);
    let end = run.advise(end)?;
    match joined {
        Ok(ended) => {
            let ended = finish(end, ended, &run.journal, console)?;
            forget_empty(&run.work, &run.journal, console)?;
            Ok(ended)
        }
        // Also then it is said what remains of the batches; that has the last word.
        Err(error) if error.kind() == Kind::Input => match finish(end, Ended::Finished, &run.journal, console) {
            Ok(Ended::Finished) => Err(error),
            left => {
                console.error(&error);
                left
            }
        },
        Err(error) => Err(error),
    }
}

/// One run of a work directory. The simulator calls its stages on one thread.
#[derive(Debug)]
pub struct Run<'a> {
    args: &'a RunArgs,
    console: &'a Console,
    requests: Arc<RequestSettings>,
    output: PathBuf,
    settings: JobSettings,
    client: Client,
    work: WorkDir,
    pub journal: Journal,
    posts: PostsFile,
    progress: Progress,
    began: (Instant, String),
    timeout: Option<Duration>,
    /// The command that asks another model for what one that is gone left.
    advice: OnceLock<String>,
    /// Chunks whose results neither this machine nor the provider has any more.
    gone: usize,
}

impl<'a> Run<'a> {
    /// Cuts, drives and gathers at the same time.
    fn overlapped(&self, runtime: &Runtime, stop: &Stop) -> Result<(JobsEnd, Gathered)> {
        let store = self.store()?;
        std::thread::scope(|scope| {
            let (fetched_send, fetched_receive) = mpsc::channel(UNREAD);
            let reader = threads::spawn_scoped(scope, || self.gather(store, fetched_receive))?;
            let end = runtime.block_on(self.drive(stop, hand_over(Some(fetched_send))));
            let died = |_| Err(Error::input("the thread that reads results died; run the same command again"));
            let read = reader.join().unwrap_or_else(died);
            Ok((end?, read?))
        })
    }

    /// Posts → chunks → results files. `take` gets each chunk whose results are here.
    pub async fn drive(&self, stop: &Stop, take: impl FnMut(Fetched) -> ControlFlow<()>) -> Result<JobsEnd> {
        let (places, mut cut) = mpsc::channel(CUT_AHEAD);
        let of = (&self.client, &self.work, &self.journal);
        let jobs = Jobs::new(of, self.settings.clone(), stop, &self.progress);
        let chunks = stream::poll_fn(move |context| cut.poll_recv(context)).map(Ok);
        // The cutting is waited for: it appends to the journal.
        let (end, cut) = tokio::join!(drive(&jobs, chunks, take), self.cut(places));
        let end = end?;
        cut.map(|()| end)
    }

    /// Posts → chunks. The place of each goes to the jobs, until they take no more: their own end says why.
    async fn cut(&self, places: mpsc::Sender<ChunkPlace>) -> Result<()> {
        if self.settings.goal == Goal::Fetched {
            return Ok(());
        }
        let forward = async {
            let mut chunks = pin!(self.chunks()?);
            while let Some(chunk) = chunks.try_next().await? {
                let place = self.journal.read(|state| state.place(&chunk.id))?.unwrap_or_default();
                if places.send(place).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        forward.await.inspect_err(|error: &Error| {
            // The error is said again at the end, which may be hours away.
            self.console.always(format_args!("no more chunks are cut: {}", error.line()));
            self.console.note("what is cut already is finished first");
        })
    }

    /// Chunks that are durable and in the journal, in order.
    fn chunks(&self) -> Result<impl Stream<Item = Result<Chunk>>> {
        // What is wrong with a post is said at the end, when its row is written.
        let noted = Noted::new(&self.requests, FaultLog::create(None)?, None);
        let posts = open(&self.posts, &self.requests)?;
        Ok(stream(chunks(posts, noted, &self.requests, &self.work, &self.journal)?, *self.console))
    }

    /// A model that is gone does not come back: another one is asked for the rest, not again for what is finished.
    fn advise(&self, end: JobsEnd) -> Result<JobsEnd> {
        if end.refused_model.is_none() {
            return Ok(end);
        }
        let (batches, rows) = self.journal.read(State::at_stake)?;
        let fix = match self.advice.get() {
            Some(command) => format!("ask another model for the rest: {command}"),
            None if batches > 0 => {
                "run the same command until no batch runs any more; its end names the command for the rest".to_owned()
            }
            None if rows == 0 => "nothing was paid: give the same command with another --model".to_owned(),
            None => "run the same command once more; its end names the command for the rest".to_owned(),
        };
        Ok(JobsEnd { trouble: end.trouble.map(|trouble| trouble.fix(fix)), ..end })
    }

    pub fn store(&self) -> Result<Store> {
        let tmp_dir = self.args.memory.tmp_dir.clone().unwrap_or_else(|| self.work.path().to_owned());
        Store::new(self.requests.set.list.len(), self.args.memory.memory, &tmp_dir)
    }

    /// Results files → answers, until no more places come.
    pub fn gather(&self, store: Store, fetched: mpsc::Receiver<Fetched>) -> Result<Gathered> {
        read_results(&self.requests, &self.work, &self.journal, store, fetched)
    }

    /// Also after an error, which is told before any that comes of this.
    pub fn write_snapshots(&self) -> Result<()> {
        self.journal.read(|state| {
            if state.is_empty() {
                return Ok(());
            }
            snapshots::write_files_info(&self.work, state, self.console)?;
            snapshots::write_batch_results(&self.work, state, self.console)?;
            snapshots::write_download_info(&self.work, state, self.console)
        })?
    }

    /// Posts and answers → enhanced posts, faults, report.
    pub fn join(&self, end: &JobsEnd, gathered: Gathered, stop: &Stop) -> Result<Ended> {
        let nothing_yet = self.journal.read(|state| {
            let is_uncut = state.posts.is_none();
            is_uncut && !state.cancelled || state.at(Step::Fetched) == 0 && (is_uncut || !state.jobs.is_empty())
        })?;
        // On a disk that failed an output with gaps is no help, and may be the end of a better one.
        let disk_failed = end.trouble.as_ref().is_some_and(|trouble| trouble.kind() == Kind::Io);
        if nothing_yet || disk_failed || matches!(end.stopped, Some(StopReason::Signal(_))) {
            return Ok(Ended::Finished);
        }
        let (args, console) = (self.args, self.console);
        let join = Join {
            args,
            rendering: &self.requests,
            output: &self.output,
            posts: &self.posts,
            refused_model: end.refused_model.as_deref(),
            advice: &self.advice,
            gone: self.gone,
            stop,
            console,
        };
        let times = || {
            json!({
                "started": self.began.1, "ended": now(),
                "seconds": (self.began.0.elapsed().as_secs_f64() * 100.0).round() / 100.0,
            })
        };
        let mut gathered = gathered;
        gathered.mark_pending(&self.requests.set, &self.work, &self.journal)?;
        self.find_cut_faults(&mut gathered, stop)?;
        join.write(gathered, &self.work, &self.journal, &times)
    }

    /// Makes the file of faults that were found when chunks were cut, where there is none: in a directory of an older version,
    /// and where the cut did not come to its end. Then rows that are in no chunk are pending.
    fn find_cut_faults(&self, gathered: &mut Gathered, stop: &Stop) -> Result<()> {
        let is_uncut = self.journal.read(|state| state.posts.is_none())?;
        let file = self.work.file(CUT_FAULTS);
        if !is_uncut && file.exists()? {
            return Ok(());
        }
        let mut kept = KeptFaults::create(&file)?;
        let mut requests = self.requests.requests()?;
        let mut posts = open(&self.posts, &self.requests)?;
        while let Some(place) = posts.next()? {
            check_signal(stop)?;
            for request in requests.of(&place.post) {
                match request {
                    Ok(Request { index, analysis, .. }) if is_uncut => {
                        gathered.store.answers.push(fault_key(index.0, analysis, PENDING_RANK), PENDING)?;
                    }
                    Ok(_) => {}
                    Err(fault) => kept.add(&fault)?,
                }
            }
        }
        kept.commit()
    }
}

/// # Errors
/// The user wants the run to end now.
fn check_signal(stop: &Stop) -> Result<()> {
    match stop.signal() {
        Some(number) => {
            let what = "interrupted while writing the posts; the same command writes them";
            Err(Error::new(Kind::Interrupted(number), what))
        }
        None => Ok(()),
    }
}

/// Turns the end of the jobs and the end of the join into the end of the run, and prints which batches remain.
pub fn finish(end: JobsEnd, joined: Ended, journal: &Journal, console: &Console) -> Result<Ended> {
    let is_held = journal.read(State::stays_cancelled)?;
    let again = if is_held { "the same command with --resume" } else { "the same command" };
    match journal.read(|state| conclude(end, state, Goal::Done, again, console))?? {
        Ended::Finished if is_held => {
            console.note(format_args!("to go on: {again}"));
            Ok(Ended::Remains)
        }
        Ended::Finished => Ok(joined),
        ended => Ok(ended),
    }
}
