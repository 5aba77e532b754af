//! What a run settles before its first call: what can be refused is refused before anything is read or paid.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::{
    Run,
    plan::{check_input, open, plan},
};
use crate::{
    cli::RunArgs,
    cmd::{
        cutting::remake,
        outputs,
        remote::{client, job_settings, keep_to_server},
        request_settings::RequestSettings,
        source::Source,
    },
    console::Console,
    emulator::{self, Emulator},
    error::{Error, Kind, Result},
    jobs::{Goal, JobSettings},
    journal::{self, Event},
    lines::output::Output,
    progress::Progress,
    provider::{Client, ClientSettings, Key},
    settings::Config,
    shell,
    units::now,
    workdir::{
        WorkDir,
        claim::{claim, stays_cancelled},
        results::{Lost, find_lost_results},
    },
};

impl<'a> Run<'a> {
    /// All that comes before the first call: what can be refused is refused before anything is read or paid.
    /// `provider` takes the place of the one that the arguments name.
    pub fn begin(args: &'a RunArgs, provider: Option<Client>, console: &'a Console) -> Result<Self> {
        let began = (Instant::now(), now());
        let emulator = emulator_settings(args)?;
        let config = Config::load(args.source.config.as_deref(), console)?;
        let requests = RequestSettings::resolve(
            &config,
            &args.source,
            &args.model,
            &args.rows,
            &args.limits,
            &args.input,
            console,
        )?;
        let requests = Arc::new(requests);
        let dir = config.work_dir(args.work.work_dir.as_deref()).value;
        let output = find_output(args, &config, &requests)?;
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
        let record = journal::Config { upstream, ..requests.record(args.emulate) };
        let (work, journal) = claim(&dir, (args.new, args.work.moved), record, source.is_spooled(), console)?;
        // `run` still fetches the batches that run, and writes the rows that were finished.
        let is_held = stays_cancelled(&journal, args.spend.resume, &dir, console)?;
        let settings = JobSettings { goal: if is_held { Goal::Fetched } else { Goal::Done }, ..settings };
        let posts = source.settle(&work, &journal, console)?;
        let client = match remote {
            Some(client) => client,
            None => emulated(emulator.unwrap_or_default(), &work, &requests, console)?,
        };
        keep_to_server(&journal, &client, &dir)?;
        // Rows that are gone for good are absent faults of the join.
        let Lost { again, gone } = journal.read(|state| find_lost_results(state, &work, console))?;
        again.into_iter().try_for_each(|chunk| journal.append(&Event::Again { chunk }))?;
        check_input(&posts, &requests, &journal)?;
        remake(|| open(&posts, &requests), &requests, &work, &journal, console)?;
        let chunks = plan(&posts, &requests, &journal, &settings, console)?;
        let progress = Progress::new(*console, chunks);
        let timeout = config.timeout(args.remote.timeout).map(|timeout| timeout.value);
        let advice = OnceLock::new();
        Ok(Self {
            args,
            console,
            requests,
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
}

/// Where the posts go. A file that only the config names, and that is there, is not replaced unless it is an output.
fn find_output(args: &RunArgs, config: &Config, requests: &RequestSettings) -> Result<PathBuf> {
    if let Some(named) = &args.output.output {
        return Ok(named.clone());
    }
    let output = config.enhanced_output().value;
    if !args.force {
        outputs::check_replaces_posts(&output, &requests.set)?;
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
fn emulated(
    settings: emulator::Settings,
    work: &WorkDir,
    requests: &RequestSettings,
    console: &Console,
) -> Result<Client> {
    match &settings.upstream {
        Some(upstream) => {
            console.note(format_args!("answers come from {}, asked by the embedded server", upstream.name()))
        }
        None => console.note("answers come from the embedded emulator: they are invented"),
    }
    let server = Emulator::open(settings, &work.join("emulator"), Arc::clone(&requests.set))?;
    Client::new(ClientSettings {
        dialect: requests.dialect,
        base_url: Some(format!("http://127.0.0.1{}", requests.dialect.emulated_path)),
        key: Key::new("any-key")?,
        ca_cert: None,
        direct: Some(server.router()),
    })
}
