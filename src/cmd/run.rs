//! The whole job, overlapped: one thread cuts chunks, one task drives the jobs, one thread reads results as they come;
//! then the posts stream past the answers. Between them are bounded channels, so that the slowest sets the pace.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Instant,
};

use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Console, Ended,
    fetch::totals,
    r#gen::{Seen, cut},
    merge::{PostWriter, shell_word},
    remote::{announce, client, conclude, job_settings, runtime, watch_for_stops},
    setup::{Rendering, Step as Rendered, claim},
    source::Source,
};
use crate::{
    cli::RunArgs,
    emulator::{self, Emulator},
    error::{Error, Kind, Result},
    flow::{
        Fault, FaultKind, FaultLine,
        answers::{AnswerReader, Outcome},
        chunks::{Chunk, Limits},
        enhanced::{write_enhanced, write_unreadable},
        faults::{FaultLog, excerpt},
        jobs::{Driver, Goal, JobsEnd, Stop, check_caps},
        posts::{PostCounts, PostReader},
        requests::Rendered as FromPost,
        rows::{LONGEST_RESULT, RowSet},
    },
    journal::{Job, Journal, Step, locked},
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
        output::{Output, is_array_name},
        spill::{AnswerStore, Cell, Joined},
    },
    progress::Progress,
    provider::{Client, ClientSettings, Dialect, Key},
    report::{Report, Tally},
    settings::Config,
    snapshots,
    workdir::{ResultFile, WorkDir},
};

/// Chunks that are cut and that the driver has not taken.
const CUT_AHEAD: usize = 1;
/// Places of fetched chunks whose results nobody has read.
const FETCHED_AHEAD: usize = 16;
/// Faults that belong to no row stand behind all posts, in the order of their files and lines.
const UNPLACED: u64 = 1 << 62;

pub fn run(args: &RunArgs, console: &Console) -> Result<Ended> {
    let (began, began_at) = (Instant::now(), snapshots::now());
    let config = Config::load(args.source.config.as_deref())?;
    let rendering =
        Rendering::resolve(&config, &args.source, &args.model, &args.rows, &args.limits, &args.input, console)?;
    let dir = config.work_dir(args.work.work_dir.as_deref()).value;
    let output = args.output.output.clone().unwrap_or_else(|| config.enhanced_output().value);
    let settings = job_settings(&config, Goal::Done, &args.remote, Some(&args.spend), args.emulate);
    // What can be refused is refused before anything is read or paid.
    drop(Output::create(Some(&output))?);
    let source = Source::find(args, &config, &output)?;
    let remote = if args.emulate { None } else { Some(client(&config, &args.model.provider, &args.remote)?) };

    let (work, journal) = claim(&dir, args.new, rendering.record(args.emulate), source.is_spooled(), console)?;
    let posts = source.settle(&work, journal.state.spooled, console)?;
    let client = match remote {
        Some(client) => client,
        None => emulated(args, &work, &rendering, console)?,
    };
    let journal = Mutex::new(journal);
    let chunks = plan(&posts, &rendering, &journal, &settings, console)?;
    let progress = Progress::new(*console, chunks);
    let runtime = runtime()?;
    let stop = watch_for_stops(&runtime, args.remote.timeout)?;

    let tmp_dir = args.memory.tmp_dir.clone().unwrap_or_else(|| work.path().to_owned());
    let store = AnswerStore::new(rendering.set.list.len() * 2, args.memory.memory, &tmp_dir)?;
    let (end, parsed, store) = std::thread::scope(|scope| {
        let (cut_send, cut_receive) = mpsc::channel(CUT_AHEAD);
        let (fetched_send, fetched_receive) = mpsc::channel(FETCHED_AHEAD);
        let cutter = scope.spawn(|| cut_all(&posts, &rendering, &work, &journal, cut_send, console));
        let reader = scope.spawn(|| read_results(&rendering, &work, &journal, store, fetched_receive));
        let driver = Driver {
            client: &client,
            work: &work,
            journal: &journal,
            settings: settings.clone(),
            stop,
            progress: &progress,
            fetched: Some(fetched_send),
        };
        let end = runtime.block_on(driver.drive(cut_receive));
        drop(driver);
        let cut = cutter.join().unwrap_or_else(|_| Err(died("cuts chunks")));
        let read = reader.join().unwrap_or_else(|_| Err(died("reads results")));
        let end = end?;
        cut?;
        let (store, parsed) = read?;
        Ok::<_, Error>((end, parsed, store))
    })?;
    {
        let state = &locked(&journal)?.state;
        snapshots::write_files_info(&work, state)?;
        snapshots::write_batch_results(&work, state)?;
        snapshots::write_download_info(&work, state)?;
    }
    let nothing_yet = {
        let state = &locked(&journal)?.state;
        state.posts.is_none() || state.at(Step::Fetched) == 0 && !state.jobs.is_empty()
    };
    let mut ended = Ended::Finished;
    if !nothing_yet && !matches!(end.stopped, Some(Stop::Signal(_))) {
        let join = Join { args, rendering: &rendering, output: &output, console };
        let times = || {
            json!({
                "started": began_at, "ended": snapshots::now(),
                "seconds": (began.elapsed().as_secs_f64() * 100.0).round() / 100.0,
            })
        };
        ended = join.write(rendering.posts(Some(&posts))?, store.join(), parsed, &work, &journal, &times)?;
    }
    finish(end, ended, &journal, console)
}

fn finish(end: JobsEnd, joined: Ended, journal: &Mutex<Journal>, console: &Console) -> Result<Ended> {
    match conclude(end, journal, Goal::Done, "the same command", console)? {
        Ended::Finished => Ok(joined),
        ended => Ok(ended),
    }
}

fn died(what: &str) -> Error {
    Error::input(format!("the thread that {what} died; run the same command again"))
}

/// A client that calls the emulator in this process.
fn emulated(args: &RunArgs, work: &WorkDir, rendering: &Rendering, console: &Console) -> Result<Client> {
    console.note("answers come from the embedded emulator: they are invented");
    let settings = emulator::Settings::resolve(&args.emulator)?;
    let server = Emulator::open(settings, &work.join("emulator"), Arc::clone(&rendering.set))?;
    Client::new(ClientSettings {
        dialect: rendering.dialect,
        base_url: Some(format!("http://127.0.0.1{}", emulated_path(rendering.dialect))),
        key: Key::new("the-emulator-takes-any-key")?,
        ca_cert: None,
        direct: Some(server.router()),
    })
}

fn emulated_path(dialect: &Dialect) -> &'static str {
    if dialect.sends_auto_delete { "/api/paas/v4" } else { "/v1" }
}

/// Before the first create: counts what the whole input will take, says it, and holds it against the caps. A broken input
/// is found here, before it costs anything.
fn plan(
    posts: &Path,
    rendering: &Rendering,
    journal: &Mutex<Journal>,
    settings: &crate::flow::jobs::JobSettings,
    console: &Console,
) -> Result<Option<u64>> {
    let (spent, known) = {
        let state = &locked(journal)?.state;
        (state.spent().0, state.posts.as_ref().map(|_| state.jobs.len() as u64))
    };
    if spent > 0 {
        return Ok(known);
    }
    let mut groups = vec![[Planned::default(); 2]; rendering.set.list.len()];
    let mut renderer = rendering.renderer()?;
    let reader = rendering.posts(Some(posts))?;
    let name = reader.name().to_owned();
    let counts = rendering.render(reader, &mut renderer, |step| {
        if let Rendered::Request(request) = step
            && let Some(group) = groups.get_mut(request.analysis)
            && let Some(planned) = group.get_mut(usize::from(request.vision))
        {
            planned.add(request.bytes, rendering.limits);
        }
        Ok(())
    })?;
    counts.check(&name)?;
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
    posts: &Path,
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Mutex<Journal>,
    cut_send: mpsc::Sender<usize>,
    console: &Console,
) -> Result<()> {
    // What is wrong with a post is told at the end, when its row is written.
    let mut seen = Seen::new(rendering, FaultLog::create(None)?);
    let mut send = |chunk: Chunk| {
        let place = locked(journal)?.state.place(&chunk.id).unwrap_or_default();
        // The driver takes no more: it was told to stop, or cannot go on. Its own end says why.
        cut_send.blocking_send(place).map_err(|_| Error::new(Kind::ClosedPipe, "no more chunks are taken"))
    };
    match cut(rendering.posts(Some(posts))?, rendering, work, journal, &mut seen, &mut send) {
        Ok((_, tally)) => {
            seen.tell(&tally, console);
            Ok(())
        }
        Err(error) if error.kind() == Kind::ClosedPipe => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads the results of every fetched chunk into the store: those that are here first, then the others as they come.
fn read_results(
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Mutex<Journal>,
    mut store: AnswerStore,
    mut fetched: mpsc::Receiver<usize>,
) -> Result<(AnswerStore, Tally)> {
    let mut tally = Tally::new(rendering.set.list.len());
    let mut reader = AnswerReader::new(&rendering.set);
    let here: Vec<usize> = {
        let jobs = &locked(journal)?.state.jobs;
        let fetched = jobs.iter().enumerate().filter(|(_, job)| job.step == Step::Fetched);
        fetched.map(|(place, _)| place).collect()
    };
    for place in &here {
        read_chunk(*place, rendering, work, journal, &mut reader, &mut store, &mut tally)?;
    }
    while let Some(place) = fetched.blocking_recv() {
        if here.binary_search(&place).is_err() {
            read_chunk(place, rendering, work, journal, &mut reader, &mut store, &mut tally)?;
        }
    }
    Ok((store, tally))
}

/// Precedence among answers for one row: chunk order, then output before error file, then line.
fn rank(place: usize, file: ResultFile, line: u64) -> u64 {
    const LINE_BITS: u32 = 27;
    let line = line.min((1 << LINE_BITS) - 1);
    ((place as u64) << (LINE_BITS + 1)) | (u64::from(file == ResultFile::Error) << LINE_BITS) | line
}

fn read_chunk(
    place: usize,
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Mutex<Journal>,
    reader: &mut AnswerReader<'_>,
    store: &mut AnswerStore,
    tally: &mut Tally,
) -> Result<()> {
    let Some(job) = locked(journal)?.state.jobs.get(place).cloned() else { return Ok(()) };
    let chunk = &job.chunk;
    let rows = RowSet::read(&work.rows(&chunk.id))?;
    let analyses = rendering.set.list.len();
    let mut block = Block::default();
    let mut payload = Vec::new();
    for file in ResultFile::BOTH {
        let path = work.results(&chunk.id, file);
        if !path.exists() {
            continue;
        }
        // The name within the directory: the same wherever that lies.
        let name = path.strip_prefix(work.path()).unwrap_or(&path).display().to_string();
        let mut lines = LineReader::new(Input::open(Some(&path), "")?, Shape::Lines, LONGEST_RESULT, 0);
        while lines.fill(&mut block)? {
            for line in block.lines() {
                let rank = rank(place, file, line.number);
                let outcome = if line.too_long {
                    let fault = Fault::new(FaultKind::BadLine, "the line is longer than a result can be");
                    Outcome::Fault { index: None, analysis: None, name: None, fault }
                } else {
                    reader.read(line.bytes, tally)
                };
                let own = |index: u64, at: usize| {
                    rendering.set.list.get(at).is_some_and(|a| a.name == chunk.analysis) && rows.contains(index)
                };
                let (index, analysis, fault) = match outcome {
                    Outcome::Answer { index, analysis, value, .. } if own(index.0, analysis) => {
                        store.push_value(index.0, analysis, rank, value)?;
                        continue;
                    }
                    Outcome::Answer { index, analysis, .. } => (Some(index.0), Some(analysis), foreign(chunk)),
                    Outcome::Fault { index: Some(index), analysis: Some(analysis), fault, .. }
                        if own(index.0, analysis) =>
                    {
                        (Some(index.0), Some(analysis), fault)
                    }
                    Outcome::Fault { index: Some(index), analysis: Some(analysis), .. } => {
                        (Some(index.0), Some(analysis), foreign(chunk))
                    }
                    Outcome::Fault { index, fault, .. } => (index.map(|index| index.0), None, fault),
                };
                let is_foreign = fault.kind == FaultKind::Foreign;
                let fault = FaultLine {
                    index,
                    analysis: analysis.and_then(|at| rendering.set.list.get(at)).map(|a| a.name.clone()),
                    file: Some(name.clone()),
                    line: Some(line.number),
                    offset: Some(line.offset),
                    excerpt: Some(excerpt(line.bytes)),
                    ..FaultLine::new(fault)
                };
                payload.clear();
                fault.write_to(&mut payload);
                match (index, analysis) {
                    (Some(index), Some(at)) if !is_foreign => store.push_fault(index, at, rank, &payload)?,
                    // Beside the row, not in it: it says nothing about the row's own answer.
                    (Some(index), Some(at)) if index < UNPLACED => {
                        store.push_fault(index, analyses + at, rank, &payload)?;
                    }
                    _ => store.push_fault(UNPLACED + rank, 0, rank, &payload)?,
                }
            }
        }
    }
    Ok(())
}

fn foreign(chunk: &Chunk) -> Fault {
    Fault::new(FaultKind::Foreign, format!("{} has no such row", chunk.id))
}

/// The last pass: the posts, each with its answers, its faults and its share of the report.
struct Join<'a> {
    args: &'a RunArgs,
    rendering: &'a Rendering,
    output: &'a Path,
    console: &'a Console,
}

impl Join<'_> {
    fn write(
        &self,
        posts: PostReader<'_>,
        mut joined: Joined,
        parsed: Tally,
        work: &WorkDir,
        journal: &Mutex<Journal>,
        times: &dyn Fn() -> serde_json::Value,
    ) -> Result<Ended> {
        let set = &self.rendering.set;
        let analyses = set.list.len();
        let as_array = match self.args.output.format {
            Some(format) => format == crate::cli::Format::Json,
            None => is_array_name(self.output),
        };
        let mut writer = PostWriter::new(Output::create(Some(self.output))?, as_array);
        let mut log = FaultLog::create(self.args.faults.faults.as_deref())?;
        let mut tally = Tally { surrogates: parsed.surrogates, ..Tally::new(analyses) };
        let mut renderer = self.rendering.renderer()?;
        let (mut enhanced, mut filled, mut asked) = (Vec::new(), Vec::new(), vec![false; analyses]);
        let mut faults: Vec<(Option<usize>, FaultLine)> = Vec::new();
        let find = |fault: &FaultLine| fault.analysis.as_deref().and_then(|name| set.find(name));
        let counts = posts.for_each(|place| {
            let index = place.index.0;
            enhanced.clear();
            faults.clear();
            asked.fill(false);
            let row = joined.row(index)?;
            match &place.post {
                Ok(post) => {
                    renderer.render(post, &mut |from| {
                        match from {
                            FromPost::Request(request) => {
                                if let Some(asked) = asked.get_mut(request.analysis) {
                                    *asked = true;
                                }
                            }
                            FromPost::Fault(fault) => faults.push((find(&fault), fault)),
                        }
                        Ok(())
                    })?;
                    write_enhanced(post, set, row, &mut enhanced, &mut filled);
                }
                Err(bad) => {
                    faults.push((None, bad.clone()));
                    write_unreadable(set, &mut enhanced);
                    filled.clear();
                    filled.resize(analyses, false);
                }
            }
            for (at, analysis) in set.list.iter().enumerate() {
                let mut here = |kind, detail: &str| {
                    let fault = Fault::new(kind, detail);
                    let (index, analysis) = (Some(index), Some(analysis.name.clone()));
                    faults.push((Some(at), FaultLine { index, analysis, ..FaultLine::new(fault) }));
                };
                let was_asked = asked.get(at).copied().unwrap_or_default();
                if row.conflict(at) {
                    here(FaultKind::Conflict, "different answers; the first of them is kept");
                }
                let counted = tally.analyses.get_mut(at);
                match row.cell(at) {
                    Cell::Value(_) => counted.into_iter().for_each(|tally| tally.answers += 1),
                    Cell::Absent if was_asked => here(FaultKind::Absent, "asked for, and in no results file"),
                    Cell::Absent => {}
                    Cell::Fault(payload) => faults.push((Some(at), read_back(payload)?)),
                }
                if let Cell::Fault(payload) = row.cell(analyses + at) {
                    faults.push((Some(at), read_back(payload)?));
                }
                if let Some(tally) = tally.analyses.get_mut(at) {
                    tally.rows += u64::from(was_asked);
                    tally.note_post(index, filled.get(at).copied().unwrap_or_default());
                }
            }
            faults.sort_by_key(|(at, _)| *at);
            for (at, fault) in &faults {
                tally.add_fault(*at, fault);
                log.add(fault)?;
            }
            writer.put(&enhanced)
        })?;
        let end = self.args.input.start_index.saturating_add(counts.places);
        joined.beyond(end, |_, at, cell| {
            if let Cell::Fault(payload) = cell {
                let fault = read_back(payload)?;
                tally.add_fault(fault.index.and(Some(at % analyses)).filter(|_| fault.analysis.is_some()), &fault);
                log.add(&fault)?;
            }
            Ok(())
        })?;
        for (tally, parsed) in tally.analyses.iter_mut().zip(&parsed.analyses) {
            tally.rungs = parsed.rungs;
            tally.unknown_labels = parsed.unknown_labels;
            tally.usage = parsed.usage;
        }
        writer.commit()?;
        log.commit()?;
        self.tell(&tally, counts, &log, work, journal, times)
    }

    fn tell(
        &self,
        tally: &Tally,
        counts: PostCounts,
        log: &FaultLog,
        work: &WorkDir,
        journal: &Mutex<Journal>,
        times: &dyn Fn() -> serde_json::Value,
    ) -> Result<Ended> {
        let state = &locked(journal)?.state;
        let missing = tally.analyses.iter().any(|tally| tally.missing > 0);
        let remains = state.below(Step::Fetched) > 0;
        let report = Report {
            analyses: self.rendering.set.list.iter().map(|a| (a.name.as_str(), a.field.as_str())).collect(),
            tally,
            posts: Some((counts.places, counts.posts)),
            batches: Some(batches(&state.jobs, self.args.emulate)),
            times: Some(times()),
            next: match (remains, missing) {
                (true, _) => Some("the same command; batches are not done yet".to_owned()),
                (false, true) => Some(self.next_command(work)),
                (false, false) => None,
            },
        };
        let path = self.args.faults.report.clone().unwrap_or_else(|| work.join("integration_report.json"));
        report.write(&path)?;
        self.console.note(format_args!("{}\n{}", self.output.display(), report.table()));
        self.console.note(format_args!("report: {}", path.display()));
        self.console.show_faults(log);
        let rows = tally.analyses.iter().map(|tally| tally.rows).sum::<u64>() + (counts.places - counts.posts);
        Ok(Ended::judge(self.args.faults.max_faults, log.total(), rows))
    }

    /// Asks for what is missing in the output, in a directory of its own.
    fn next_command(&self, work: &WorkDir) -> String {
        let word = |path: &Path| shell_word(&path.display().to_string());
        let (stem, ending) = split_name(self.output);
        let mut command =
            format!(
                "zbatch run --missing {} -o {} -d {}",
                word(self.output),
                word(&self.output.with_file_name(format!("{stem}.round2{ending}"))),
                word(&work.path().with_file_name(format!(
                    "{}-round2",
                    work.path().file_name().unwrap_or_default().to_string_lossy()
                ))),
            );
        let source = &self.args.source;
        let model = &self.args.model;
        let text = |value: &Option<String>| value.clone().map(PathBuf::from);
        for (flag, value) in [
            ("--skip", self.args.faults.faults.clone()),
            ("--config", source.config.clone()),
            ("--data-dir", source.data_dir.clone()),
            ("--analyses", source.analyses.clone()),
            ("--model", text(&model.model)),
            ("--multimodal-model", text(&model.multimodal_model)),
            ("--provider", text(&model.provider.provider)),
            ("--base-url", text(&model.provider.base_url)),
            ("--key-file", self.args.remote.key_file.clone()),
        ] {
            if let Some(value) = value {
                command += &format!(" {flag} {}", word(&value));
            }
        }
        if !source.only.is_empty() {
            command += &format!(" --only {}", source.only.join(","));
        }
        if self.args.input.start_index > 0 {
            command += &format!(" --start-index {}", self.args.input.start_index);
        }
        if self.args.emulate {
            command += " --emulate";
        }
        command
    }
}

/// `enhanced.json.gz` → `enhanced`, `.json.gz`.
fn split_name(path: &Path) -> (String, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.char_indices().skip(1).find(|(_, c)| *c == '.').and_then(|(at, _)| name.split_at_checked(at)) {
        Some((stem, ending)) => (stem.to_owned(), ending.to_owned()),
        None => (name, String::new()),
    }
}

/// A fault that waited in the store.
fn read_back(payload: &[u8]) -> Result<FaultLine> {
    serde_json::from_slice(payload)
        .map_err(|e| Error::new(Kind::Io, format!("read a fault back from the temp file: {e}")))
}

/// What became of the batches, without anything that differs from run to run.
fn batches(jobs: &[Job], emulated: bool) -> serde_json::Value {
    let mut by_status = std::collections::BTreeMap::<&str, u64>::new();
    for job in jobs {
        let status = job.end.as_ref().map_or("unfinished", |end| end.status.as_str());
        *by_status.entry(status).or_default() += 1;
    }
    let rows = totals(jobs);
    json!({
        "chunks": jobs.len(), "by_status": by_status,
        "requests": jobs.iter().map(|job| job.chunk.lines).sum::<u64>(),
        "results": rows.output, "errors": rows.error, "absent": rows.absent, "foreign": rows.foreign,
        "unreadable": rows.bad, "emulated": emulated,
    })
}
