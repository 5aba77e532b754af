//! The whole job, overlapped: one thread cuts chunks, one task drives the jobs, one thread reads results as they come;
//! then the posts stream past the answers. Between them are bounded channels, so that the slowest sets the pace.

mod gather;
mod join;

pub use join::OF_A_ROUND;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::{runtime::Runtime, sync::mpsc};

pub use self::gather::Gathered;
use self::{gather::read_results, join::Join};
use super::{
    Ended,
    r#gen::{Seen, cut, remake},
    outputs,
    remote::{announce, client, conclude, job_settings, keep_to_server, runtime},
    setup::{Rendering, Step as Rendered, claim, cutter, forget_empty, stays_cancelled},
    source::{Posts, Source},
};
use crate::{
    cli::RunArgs,
    console::Console,
    emulator::{self, Emulator},
    error::{Error, Kind, Result},
    flow::{
        chunks::{Chunk, Limits},
        columns::Columns,
        faults::FaultLog,
        posts::PostReader,
    },
    jobs::{Fetched, Goal, JobSettings, Jobs, JobsEnd, UNREAD, check_caps, drive, hand_over},
    journal::{self, ChunkPlace, Event, Journal, State, Step},
    lines::{output::Output, spill::AnswerStore},
    progress::Progress,
    provider::{Client, ClientSettings, Key},
    settings::Config,
    shell, snapshots,
    stop::{Stop, StopReason},
    threads,
    units::now,
    workdir::{
        WorkDir,
        results::{Lost, find_lost_results},
    },
};

/// Chunks that are cut and that the driver has not taken.
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

/// One run of a work directory. Its parts may also be called in turn, on one thread: the simulator does that.
#[derive(Debug)]
pub struct Run<'a> {
    args: &'a RunArgs,
    console: &'a Console,
    rendering: Rendering,
    output: PathBuf,
    settings: JobSettings,
    client: Client,
    work: WorkDir,
    pub journal: Journal,
    posts: Posts,
    progress: Progress,
    began: (Instant, String),
    timeout: Option<Duration>,
    /// The command that asks another model for what one that is gone left.
    advice: OnceLock<String>,
    /// Chunks whose results neither this machine nor the provider has any more.
    gone: usize,
}

impl<'a> Run<'a> {
    /// All that comes before the first call: what can be refused is refused before anything is read or paid.
    /// `provider` takes the place of the one that the arguments name.
    pub fn begin(args: &'a RunArgs, provider: Option<Client>, console: &'a Console) -> Result<Self> {
        let began = (Instant::now(), now());
        let emulator = emulator_settings(args)?;
        let config = Config::load(args.source.config.as_deref(), console)?;
        let rendering =
            Rendering::resolve(&config, &args.source, &args.model, &args.rows, &args.limits, &args.input, console)?;
        let dir = config.work_dir(args.work.work_dir.as_deref()).value;
        let output = find_output(args, &config, &rendering)?;
        let settings = job_settings(&config, Goal::Done, &args.remote, Some(&args.spend), args.emulate);
        outputs::check(args.posts.as_deref(), [], Some(&output), &args.faults, Some(&dir))?;
        Output::probe(&output)?;
        let source = Source::find(args, &config, &output).map_err(|error| what_is_left(error, &dir))?;
        let remote = match provider {
            None if !args.emulate => Some(client(&config, &args.model.provider, &args.remote, console)?),
            given => given,
        };
        let upstream = emulator.as_ref().and_then(|emulator| emulator.upstream.as_ref());
        let upstream = upstream.map(|upstream| upstream.name().to_owned());
        let record = journal::Config { upstream, ..rendering.record(args.emulate) };
        let (work, journal) = claim(&dir, (args.new, args.work.moved), record, source.is_spooled(), console)?;
        // `run` still fetches the batches that run, and writes the rows that were finished.
        let is_held = stays_cancelled(&journal, args.spend.resume, &dir, console)?;
        let settings = JobSettings { goal: if is_held { Goal::Fetched } else { Goal::Done }, ..settings };
        let posts = source.settle(&work, &journal, console)?;
        let client = match remote {
            Some(client) => client,
            None => emulated(emulator.unwrap_or_default(), &work, &rendering, console)?,
        };
        keep_to_server(&journal, &client, &dir)?;
        // Rows that are gone for good are absent faults of the join.
        let Lost { again, gone } = journal.read(|state| find_lost_results(state, &work, console))?;
        again.into_iter().try_for_each(|chunk| journal.append(&Event::Again { chunk }))?;
        check_input(&posts, &rendering, &work, &journal)?;
        remake(&|| open(&rendering, &posts), &rendering, &work, &journal, console)?;
        let chunks = plan(&posts, &rendering, &journal, &settings, console)?;
        let progress = Progress::new(*console, chunks);
        let timeout = config.timeout(args.remote.timeout).map(|timeout| timeout.value);
        let advice = OnceLock::new();
        Ok(Self {
            args,
            console,
            rendering,
            output,
            settings,
            client,
            work,
            journal,
            posts,
            progress,
            began,
            timeout,
            advice,
            gone,
        })
    }

    /// Cuts, drives and gathers at the same time.
    fn overlapped(&self, runtime: &Runtime, stop: &Stop) -> Result<(JobsEnd, Gathered)> {
        let store = self.store()?;
        std::thread::scope(|scope| {
            let (cut_send, cut_receive) = mpsc::channel(CUT_AHEAD);
            let (fetched_send, fetched_receive) = mpsc::channel(UNREAD);
            let cutter = threads::spawn_scoped(scope, || self.cut(cut_send))?;
            let reader = threads::spawn_scoped(scope, || self.gather(store, fetched_receive))?;
            let end = runtime.block_on(self.drive(stop, cut_receive, hand_over(Some(fetched_send))));
            let cut = cutter.join().unwrap_or_else(|_| Err(died("cuts chunks")));
            let read = reader.join().unwrap_or_else(|_| Err(died("reads results")));
            let end = end?;
            cut?;
            Ok((end, read?))
        })
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

    pub fn store(&self) -> Result<AnswerStore> {
        let tmp_dir = self.args.memory.tmp_dir.clone().unwrap_or_else(|| self.work.path().to_owned());
        AnswerStore::new(self.rendering.set.list.len() * 2, self.args.memory.memory, &tmp_dir)
    }

    /// Posts → chunks; the place of each goes to the driver.
    pub fn cut(&self, places: mpsc::Sender<ChunkPlace>) -> Result<()> {
        if self.settings.goal == Goal::Fetched {
            return Ok(());
        }
        cut_all(&self.posts, &self.rendering, &self.work, &self.journal, places, self.console)
    }

    /// Chunks → results files. `take` gets each chunk whose results are here.
    pub async fn drive(
        &self,
        stop: &Stop,
        mut cut: mpsc::Receiver<ChunkPlace>,
        take: impl FnMut(Fetched) -> ControlFlow<()>,
    ) -> Result<JobsEnd> {
        let of = (&self.client, &self.work, &self.journal);
        let jobs = Jobs::new(of, self.settings.clone(), stop, &self.progress);
        drive(&jobs, stream::poll_fn(move |context| cut.poll_recv(context)).map(Ok), take).await
    }

    /// Results files → answers, until no more places come.
    pub fn gather(&self, store: AnswerStore, fetched: mpsc::Receiver<Fetched>) -> Result<Gathered> {
        read_results(&self.rendering, &self.work, &self.journal, store, fetched)
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
            rendering: &self.rendering,
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
        gathered.mark_pending(&self.rendering.set, &self.work, &self.journal)?;
        let Gathered { store, tally, .. } = gathered;
        join.write(store.join(), tally, &self.work, &self.journal, &times)
    }
}

/// How the run ends, and what remains of it.
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

fn died(what: &str) -> Error {
    Error::input(format!("the thread that {what} died; run the same command again"))
}

/// Where the posts go. A file that only the config names, and that is there, is not replaced unless it is an output.
fn find_output(args: &RunArgs, config: &Config, rendering: &Rendering) -> Result<PathBuf> {
    if let Some(named) = &args.output.output {
        return Ok(named.clone());
    }
    let output = config.enhanced_output().value;
    if !args.force {
        outputs::check_replaces_posts(&output, &rendering.set)?;
    }
    Ok(output)
}

/// Of posts that cannot be read any more, though their batches may run.
fn what_is_left(error: Error, dir: &Path) -> Error {
    if error.kind() != Kind::Input || !dir.join(journal::FILE).is_file() {
        return error;
    }
    let dir = shell::path(dir);
    error.fix(format!(
        "check the path, or put the posts back; without them, `zbatch fetch -d {dir} -o results.jsonl` still fetches the \
         results of the batches that were created"
    ))
}

/// How the embedded emulator is to behave, if it is wanted at all.
fn emulator_settings(args: &RunArgs) -> Result<Option<emulator::Settings>> {
    if args.emulate {
        return emulator::Settings::of(&args.emulator).map(Some);
    }
    match args.emulator.typed() {
        None => Ok(None),
        Some(flag) => Err(Error::usage(format!("{flag} is a flag of the emulator, and --emulate is not there"))
            .fix(format!("add --emulate, or leave {flag} out: it would mean nothing to the provider"))),
    }
}

/// A client that calls the emulator in this process.
fn emulated(settings: emulator::Settings, work: &WorkDir, rendering: &Rendering, console: &Console) -> Result<Client> {
    match &settings.upstream {
        Some(upstream) => {
            console.note(format_args!("answers come from {}, asked by the embedded server", upstream.name()))
        }
        None => console.note("answers come from the embedded emulator: they are invented"),
    }
    let server = Emulator::open(settings, &work.join("emulator"), Arc::clone(&rendering.set))?;
    Client::new(ClientSettings {
        dialect: rendering.dialect,
        base_url: Some(format!("http://127.0.0.1{}", rendering.dialect.emulated_path)),
        key: Key::new("any-key")?,
        ca_cert: None,
        direct: Some(server.router()),
    })
}

/// Before anything more is paid for, or waited for: what was cut is found again in these posts.
fn check_input(posts: &Posts, rendering: &Rendering, work: &WorkDir, journal: &Journal) -> Result<()> {
    if journal.read(|state| state.below(Step::Fetched))? == 0 {
        return Ok(());
    }
    let mut cutter = cutter(journal, work.folder(), rendering.limits)?;
    let read = open(rendering, posts)?.for_each(|place| {
        if cutter.knows_the_input() {
            return Err(Error::new(Kind::ClosedPipe, "the rest is not needed"));
        }
        cutter.read_place(place.bytes)
    });
    match read {
        Err(error) if error.kind() == Kind::ClosedPipe => Ok(()),
        Err(error) => Err(error),
        Ok(_) => cutter.check_no_mark_is_left(),
    }
}

fn open<'r>(rendering: &'r Rendering, posts: &Posts) -> Result<PostReader<'r>> {
    rendering.posts(Some(&posts.path), Some(&posts.name))
}

/// Before the first create: counts what the whole input will take, says it, and holds it against the caps. A broken input
/// is found here, before it costs anything.
fn plan(
    posts: &Posts,
    rendering: &Rendering,
    journal: &Journal,
    settings: &JobSettings,
    console: &Console,
) -> Result<Option<u64>> {
    let (spent, known) =
        journal.read(|state| (state.spent().0, state.posts.as_ref().map(|_| state.jobs.len() as u64)))?;
    if spent > 0 {
        return Ok(known);
    }
    let mut groups = vec![[Planned::default(); 2]; rendering.set.list.len()];
    let mut renderer = rendering.renderer()?;
    let mut columns = Columns::new(&rendering.set);
    let counts = rendering.render(open(rendering, posts)?, &mut renderer, |step| {
        match step {
            Rendered::Place(place) => columns.note(place),
            Rendered::Request(request) => {
                if let Some(group) = groups.get_mut(request.analysis)
                    && let Some(planned) = group.get_mut(usize::from(request.vision))
                {
                    planned.add(request.bytes, rendering.limits);
                }
            }
            Rendered::Fault(_) => {}
        }
        Ok(())
    })?;
    counts.check_number(rendering.expected, &posts.name)?;
    counts.check(&posts.name, console)?;
    if let Some(note) = columns.judge(&posts.name)? {
        console.note(note);
    }
    let mut sum = Planned::default();
    for planned in groups.iter().flatten() {
        sum.chunks += planned.chunks + u64::from(planned.lines > 0);
        sum.requests += planned.requests;
        sum.all_bytes += planned.all_bytes;
    }
    announce(console, sum.chunks, sum.requests, sum.all_bytes, settings);
    match check_caps(settings, sum.chunks, sum.requests) {
        Some(error) => Err(error),
        None => Ok(Some(sum.chunks)),
    }
}

/// What a group of requests will take, by the cutter's own limits.
#[derive(Clone, Copy, Default)]
struct Planned {
    lines: u64,
    bytes: u64,
    chunks: u64,
    requests: u64,
    all_bytes: u64,
}

impl Planned {
    fn add(&mut self, bytes: u64, limits: Limits) {
        if !limits.fit(self.lines, self.bytes, bytes) {
            (self.lines, self.bytes) = (0, 0);
            self.chunks += 1;
        }
        self.lines += 1;
        self.bytes += bytes;
        self.requests += 1;
        self.all_bytes += bytes;
    }
}

/// Cuts the posts into chunks, no faster than the driver takes them.
fn cut_all(
    posts: &Posts,
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Journal,
    cut_send: mpsc::Sender<ChunkPlace>,
    console: &Console,
) -> Result<()> {
    // What is wrong with a post is told at the end, when its row is written.
    let mut seen = Seen::new(rendering, FaultLog::create(None)?, None);
    let mut send = |chunk: Chunk| {
        let place = journal.read(|state| state.place(&chunk.id))?.unwrap_or_default();
        // The driver takes no more: it was told to stop, or cannot go on. Its own end says why.
        cut_send.blocking_send(place).map_err(|_| Error::new(Kind::ClosedPipe, "no more chunks are taken"))
    };
    match cut(open(rendering, posts)?, rendering, work, journal, &mut seen, &mut send) {
        Ok((_, tally)) => {
            seen.tell(&tally, console);
            Ok(())
        }
        Err(error) if error.kind() == Kind::ClosedPipe => Ok(()),
        Err(error) => {
            // Told again at the end, which may be hours away.
            console.always(format_args!("no more chunks are cut: {}", error.line()));
            console.note("what is cut already is finished first");
            Err(error)
        }
    }
}
