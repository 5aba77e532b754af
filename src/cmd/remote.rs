//! The verbs that talk to a provider share this: they make a client, open a work directory, and report how they ended.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

use super::{Ended, next::NextCommand};
use crate::{
    cli::{ProviderArgs, RemoteArgs, SourceArgs, SpendArgs, Typed, WorkArgs},
    console::Console,
    error::{Error, Kind, Result},
    flow::ChunkId,
    jobs::{Goal, JobSettings, JobsEnd},
    journal::{Event, Journal, State, Step},
    provider::{Client, ClientSettings, Dialect, Key, is_same_server},
    settings::Config,
    shell,
    stop::StopReason,
    threads,
    units::count,
    workdir::{
        WorkDir,
        claim::{open_journal, recover_rows},
        settle_place,
    },
};

/// How long a create without an answer is looked for in listings.
pub const SETTLE: Duration = Duration::from_secs(120);
/// How long a provider that is gone is waited for while batches run.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// For an emulator in the same process, which hides nothing.
const EMULATED_POLL: Duration = Duration::from_millis(50);

/// Threads of the async runtime that run tasks.
const WORKERS: usize = 2;
/// As good as for ever.
const KEPT: Duration = Duration::from_secs(365 * 24 * 3600);

pub fn runtime() -> Result<Runtime> {
    threads::check_room(WORKERS + 1)?;
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(8).thread_keep_alive(KEPT).enable_all();
    let runtime = builder.build().map_err(|e| Error::new(Kind::Io, format!("start the runtime: {e}")))?;
    // One thread for file work is kept from now on: later there may be none to be had, and the work would wait for ever.
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

/// A client for the provider that flags and config name, with its key. It is said who gets that key, before the first call.
pub fn client(config: &Config, provider: &ProviderArgs, remote: &RemoteArgs, console: &Console) -> Result<Client> {
    let (name, base_url) = config.provider(provider)?;
    let dialect = Dialect::find(&name.value)?;
    let client = Client::new(ClientSettings {
        dialect,
        base_url: base_url.map(|url| url.value),
        key: Key::load(dialect, remote.key_file.as_deref())?,
        ca_cert: remote.ca_cert.clone(),
        direct: None,
    })?;
    let file = config.path().map(|path| format!(" (config: {})", path.display())).unwrap_or_default();
    console.note(format_args!("{}{file}", client.describe()));
    Ok(client)
}

/// A directory goes on with the server that it began with: another one has none of its batches, and is sent none of its
/// posts. Until a create is billed it may change.
pub fn keep_to_server(journal: &Journal, client: &Client, dir: &Path) -> Result<()> {
    let Some(now) = client.origin() else { return Ok(()) };
    let (origin, spent, uploaded) = journal.read(|state| {
        let uploaded = state.jobs.iter().filter(|job| job.step() == Step::Uploaded);
        let uploaded: Vec<ChunkId> = uploaded.map(|job| job.chunk.id.clone()).collect();
        (state.origin.clone(), state.spent().0, uploaded)
    })?;
    match &origin {
        Some(there) if is_same_server(there, &now) => return Ok(()),
        Some(there) if spent > 0 => {
            let what = format!(
                "{} belongs to another job: its batches are at {there}; now the server is {now}",
                dir.display()
            );
            return Err(
                Error::input(what).fix("go on with the --base-url that it began with, or use another directory (-d)")
            );
        }
        Some(_) => {
            let why = "it was uploaded to another server";
            uploaded.into_iter().try_for_each(|chunk| journal.append(&Event::Lost { chunk, why: why.to_owned() }))?;
        }
        None => {}
    }
    journal.append(&Event::Origin { origin: now })
}

/// A work directory that a verb goes on with, and its settings.
#[derive(Debug)]
pub struct Opened {
    pub config: Config,
    pub dir: PathBuf,
    pub work: WorkDir,
    pub journal: Journal,
}

/// # Errors
/// The directory is none, is in use, or belongs to another provider.
pub fn open(source: &SourceArgs, work: &WorkArgs, provider: &ProviderArgs, console: &Console) -> Result<Opened> {
    let config = Config::load(source.config.as_deref(), console)?;
    let dir = config.work_dir(work.work_dir.as_deref()).value;
    let moved = work.moved;
    let mut work = WorkDir::open(&dir)?;
    let journal = open_journal(&mut work, console)?;
    let provider = config.provider(provider)?.0.value;
    journal.read(|state| check_provider(state, &dir, &provider))??;
    settle_place(&work, &journal, moved)?;
    journal.read(|state| recover_rows(&work, state, console))??;
    Ok(Opened { config, dir, work, journal })
}

/// Refuses to go on with a directory under another provider than it began with: its batches are not there.
fn check_provider(state: &State, dir: &Path, provider: &str) -> Result<()> {
    let Some(there) = &state.config else {
        return Err(Error::input(format!("{} holds no chunks", dir.display()))
            .fix("make some with `zbatch gen -d DIR posts.jsonl`"));
    };
    if there.emulate {
        return Err(Error::input(format!("{} was made by `run --emulate`", dir.display()))
            .fix("go on with the same `zbatch run --emulate` command"));
    }
    if there.provider != provider {
        return Err(Error::input(format!("{} belongs to {}, not to {provider}", dir.display(), there.provider))
            .fix(format!("add --provider {}", shell::word(&there.provider))));
    }
    Ok(())
}

pub fn job_settings(
    config: &Config,
    goal: Goal,
    remote: &RemoteArgs,
    spend: Option<&SpendArgs>,
    emulate: bool,
) -> JobSettings {
    let poll = config.poll_interval(remote.poll_interval);
    let untold = remote.poll_interval.is_none();
    let settle = spend.and_then(|spend| spend.settle);
    JobSettings {
        goal,
        max_concurrent: config.max_concurrent(spend.and_then(|spend| spend.max_concurrent_tasks)).value.get() as usize,
        poll_interval: if emulate && untold { EMULATED_POLL } else { poll.value },
        settle: settle.unwrap_or(if emulate { Duration::ZERO } else { SETTLE }),
        on_ambiguous: spend.map(|spend| spend.on_ambiguous).unwrap_or_default(),
        max_batches: spend.and_then(|spend| spend.max_batches),
        max_requests: spend.and_then(|spend| spend.max_requests),
        patience: remote.patience.unwrap_or(PATIENCE),
        no_wait: remote.no_wait,
        spreads_polls: !emulate,
        keep_requests: remote.keep_requests,
        keep_remote: config.keep_remote(remote.keep_remote).value,
    }
}

/// Says what the jobs will take before the first of them is created.
pub fn announce(console: &Console, chunks: u64, requests: u64, bytes: u64, settings: &JobSettings) {
    /// More rounds than this are worth a hint.
    const MANY_ROUNDS: u64 = 10;

    #[expect(clippy::cast_precision_loss, reason = "megabytes for people to read")]
    let megabytes = bytes as f64 / 1e6;
    console.note(format_args!("{}, {}, {megabytes:.1} MB", count(chunks, "chunk"), count(requests, "request")));
    let at_once = settings.max_concurrent as u64;
    if chunks > MANY_ROUNDS * at_once {
        console.note(format_args!("{chunks} chunks, {at_once} at once; --max-concurrent-tasks raises it"));
    }
}

/// Turns the end of the jobs into that of the verb, and says what remains.
pub fn conclude(end: JobsEnd, state: &State, goal: Goal, again: &str, console: &Console) -> Result<Ended> {
    let unfinished = match goal {
        Goal::Submitted => state.below(Step::Created),
        Goal::Fetched | Goal::Done => state.below(Step::Fetched),
    };
    if unfinished > 0 {
        // An error that ends the jobs is told by itself.
        if end.trouble.is_none() {
            end.waits.iter().for_each(|wait| console.note(format_args!("still waiting at the end: {}", wait.what)));
        }
        say_what_runs(state, again, console);
    }
    if let Some(StopReason::Signal(number)) = end.stopped {
        return Err(Error::new(Kind::Interrupted(number), "interrupted; nothing is lost"));
    }
    match end.trouble {
        Some(trouble) => Err(trouble),
        None if unfinished > 0 => Ok(Ended::Remains),
        None => Ok(Ended::Finished),
    }
}

/// Batches named when a verb is stopped.
const NAMED: usize = 10;

fn say_what_runs(state: &State, again: &str, console: &Console) {
    let running: Vec<String> = state
        .jobs
        .iter()
        .filter(|job| job.step() == Step::Created)
        .filter_map(|job| Some(format!("{} ({})", job.batch()?, job.chunk.id)))
        .take(NAMED)
        .collect();
    let more = state.at(Step::Created).saturating_sub(running.len() as u64);
    if !running.is_empty() {
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        console.note(format_args!("these batches run on: {}{more}", running.join(", ")));
    }
    let waiting = state.below(Step::Intended);
    if waiting > 0 {
        console.note(format_args!("without a batch yet: {}", count(waiting, "chunk")));
    }
    let unclear = state.at(Step::Intended);
    if unclear > 0 {
        console.note(format_args!(
            "no answer is known to {}; the next run looks for the batch before it sends anything again",
            count(unclear, "create")
        ));
    }
    let held = state.jobs.iter().filter(|job| job.is_held()).count();
    if held > 0 {
        console.note(format_args!(
            "held: {}; each use of --on-ambiguous again creates them once more, so look at the provider's console before it",
            count(held, "chunk")
        ));
    }
    console.note(format_args!("to go on: {again}"));
}

/// The complete command that goes on with a directory, with what was typed for this one.
pub fn command(verb: &str, dir: &Path, typed: &Typed) -> String {
    // `--again`, `--moved` and `--resume` are in the journal.
    NextCommand::new(&format!("zbatch {verb}"))
        .path("-d", Some(dir))
        .typed(verb, typed, &["work_dir", "again", "moved", "resume"])
        .into_text()
}
