//! Where work directories stand.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::Ended;
use crate::{
    cli::StatusArgs,
    console::Console,
    error::{Error, Result},
    folder::Folder,
    journal::{self, FILE, Job, State, Step, totals},
    lines::output::Output,
    provider::{BatchId, Dialect},
    settings::Config,
    shell,
    text::escape_control,
    units::count,
    workdir::results::{NO_COPY, what_is_lost},
};

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(args: &StatusArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let dirs: Vec<PathBuf> = args.work_dirs.iter().chain(&args.dirs).cloned().collect();
    match dirs.as_slice() {
        [] => one(&config.work_dir(None).value, args, console),
        [dir] => one(dir, args, console),
        _ if args.watch => Err(Error::usage("--watch shows one work directory").fix("name one")),
        dirs => many(dirs, args, console),
    }
}

fn one(dir: &Path, args: &StatusArgs, console: &Console) -> Result<Ended> {
    let mut shown = 0;
    loop {
        let length = std::fs::metadata(dir.join(FILE)).map_or(0, |meta| meta.len());
        if length != shown || !args.watch {
            shown = length;
            let state = journal::read(dir)?;
            let ages = Ages::of(dir, &state);
            let mut stdout = Output::create(None)?;
            match args.json {
                true => write_json(dir, &state, &ages, &mut stdout),
                false => write_text(dir, &state, &ages, &mut stdout),
            }?;
            stdout.commit()?;
            if !args.watch || is_done(&state) {
                let lost = tell_what_is_lost(dir, &state, console)?;
                return Ok(match args.exit_code {
                    true => verdict(&state, lost),
                    false if lost => Ended::WithFaults,
                    false => Ended::Finished,
                });
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Prints one line a directory. It goes on after a directory that cannot be read, and names that one at the end too.
fn many(dirs: &[PathBuf], args: &StatusArgs, console: &Console) -> Result<Ended> {
    let mut stdout = Output::create(None)?;
    let (mut worst, mut unreadable) = (Ended::Finished, 0_u64);
    for dir in dirs {
        let state = match journal::read(dir) {
            Ok(state) => state,
            Err(error) => {
                unreadable += 1;
                console.error(&error);
                if args.json {
                    let line = json!({"work_dir": dir.display().to_string(), "error": error.line()});
                    stdout.put(format!("{line}\n").as_bytes())?;
                }
                continue;
            }
        };
        let ages = Ages::of(dir, &state);
        match args.json {
            true => write_json(dir, &state, &ages, &mut stdout)?,
            false => stdout.put((escape_control(&line(dir, &state, &ages)) + "\n").as_bytes())?,
        }
        let ended = verdict(&state, tell_what_is_lost(dir, &state, console)?);
        // 75 beats 1 beats 0.
        worst = if ended.exit_code() > worst.exit_code() { ended } else { worst };
    }
    stdout.commit()?;
    match unreadable {
        0 if args.exit_code => Ok(worst),
        0 => Ok(Ended::Finished),
        _ => Err(Error::input(format!("{} of {} cannot be read", unreadable, count(dirs.len(), "directory")))),
    }
}

fn is_done(state: &State) -> bool {
    state.posts.is_some() && state.below(Step::Fetched) == 0
}

/// For `--exit-code`.
fn verdict(state: &State, lost: bool) -> Ended {
    let rows = totals(&state.jobs);
    let went_wrong = rows.error + rows.absent + rows.foreign + rows.bad;
    match is_done(state) && !rows.short {
        false => Ended::Remains,
        true if went_wrong > 0 || lost => Ended::WithFaults,
        true => Ended::Finished,
    }
}

/// Results that were fetched and are not here any more are what no step of a chunk shows.
fn tell_what_is_lost(dir: &Path, state: &State, console: &Console) -> Result<bool> {
    let folder = Folder::open(dir)?;
    let mut lost = false;
    for job in &state.jobs {
        if let Some(what) = what_is_lost(job, &folder) {
            let fetch = || format!("`zbatch fetch -d {}` downloads it again", shell::path(dir));
            let way = if job.is_cleaned() { NO_COPY.to_owned() } else { fetch() };
            console.always(format_args!("{what}; {way}"));
            lost = true;
        }
    }
    Ok(lost)
}

/// In the order of a chunk's way.
const NAMES: [&str; 7] = ["cut", "uploaded", "unclear", "running", "cancelling", "ended", "fetched"];

fn name(job: &Job) -> &'static str {
    match job.step() {
        Step::Cut => "cut",
        Step::Uploaded => "uploaded",
        Step::Intended => "unclear",
        Step::Created if job.is_cancelling() => "cancelling",
        Step::Created => "running",
        Step::Ended => "ended",
        Step::Fetched => "fetched",
    }
}

/// The whole directory in a word.
fn standing(state: &State) -> &'static str {
    match () {
        () if is_done(state) => "finished",
        () if state.stays_cancelled() => "cancelled",
        () if state.posts.is_none() => "preparing",
        () if state.jobs.iter().any(Job::is_held) => "held",
        () if state.at(Step::Created) > 0 => "running",
        () if state.at(Step::Ended) > 0 => "ended",
        () => "waiting",
    }
}

/// Seconds since 1970, as far as they are known.
#[derive(Debug, Default)]
struct Ages {
    now: u64,
    created: Option<u64>,
    last_event: Option<u64>,
    /// When the provider deletes the first results that are still there.
    kept_until: Option<u64>,
}

impl Ages {
    fn of(dir: &Path, state: &State) -> Self {
        let seconds = |time: SystemTime| Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs());
        let meta = std::fs::metadata(dir.join(FILE)).ok();
        let ends = || state.jobs.iter().filter_map(|job| Some((job, job.end()?)));
        let first = ends().filter_map(|(_, end)| end.created_at).min().map(|ms| ms / 1000);
        // A file system may not keep the time at which a file was made, and a copy is younger than its job.
        let made = meta.as_ref().and_then(|meta| meta.created().ok()).and_then(seconds);
        let is_real = state.config.as_ref().filter(|config| !config.emulate);
        let dialect = is_real.and_then(|config| Dialect::find(&config.provider).ok());
        let kept = dialect.and_then(|dialect| dialect.kept_days).map(|days| days * 24 * 3600);
        let there = ends().filter(|(job, _)| !job.is_cleaned()).filter_map(|(_, end)| end.completed_at);
        Self {
            now: seconds(SystemTime::now()).unwrap_or_default(),
            created: [made, first].into_iter().flatten().min(),
            last_event: meta.and_then(|meta| meta.modified().ok()).and_then(seconds),
            kept_until: there.min().zip(kept).map(|(ms, kept)| (ms / 1000).saturating_add(kept)),
        }
    }

    /// `; created 3 days ago, last event 2 hours ago; …`
    fn in_words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.created.map(|at| format!("created {} ago", span(self.now.saturating_sub(at)))));
        words.extend(self.last_event.map(|at| format!("last event {} ago", span(self.now.saturating_sub(at)))));
        words.extend(self.kept_until.map(|at| match at.checked_sub(self.now) {
            Some(left) => format!("the provider deletes results in {}", span(left)),
            None => "the provider may have deleted results".to_owned(),
        }));
        words.join(", ")
    }
}

/// `3 days`, `5 hours`, `12 minutes`, `40 seconds`.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => count(seconds, "second"),
        120..7_200 => count(seconds / 60, "minute"),
        7_200..172_800 => count(seconds / 3_600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}

fn counts(state: &State) -> [(&'static str, usize); NAMES.len()] {
    NAMES.map(|known| (known, state.jobs.iter().filter(|job| name(job) == known).count()))
}

/// What was cut: posts, or request lines that came from elsewhere.
fn input_name(state: &State) -> &'static str {
    match &state.config {
        Some(config) if config.input == "requests" => "request",
        _ => "post",
    }
}

fn line(dir: &Path, state: &State, ages: &Ages) -> String {
    let rows = totals(&state.jobs);
    let all = state.jobs.iter().fold(0_u64, |sum, job| sum.saturating_add(job.chunk.lines));
    format!(
        "{}: {}, {} of {} fetched, {} of {}; {}",
        dir.display(),
        standing(state),
        state.at(Step::Fetched),
        count(state.jobs.len(), "chunk"),
        rows.output.saturating_add(rows.error),
        count(all, "row"),
        ages.in_words()
    )
}

fn write_text(dir: &Path, state: &State, ages: &Ages, stdout: &mut Output) -> Result<()> {
    let mut put = |line: &str| stdout.put((escape_control(line) + "\n").as_bytes());
    let begun = match &state.posts {
        Some((good, input)) => format!("{} read, {good} good, all cut", count(input.posts, input_name(state))),
        None => "cutting".to_owned(),
    };
    put(&format!("{}: {begun}", dir.display()))?;
    if state.stays_cancelled() {
        put("cancelled: no batch is created until submit or run is given --resume")?;
    }
    let width = state.jobs.iter().map(|job| job.chunk.id.to_string().len()).max().unwrap_or_default();
    for job in &state.jobs {
        let id = job.chunk.id.to_string();
        let end = job.end().map_or("", |end| end.status.as_str());
        let batch = job.batch().map(BatchId::as_str).unwrap_or_default();
        let errors = job.end().map(|end| end.errors.join("; ")).unwrap_or_default();
        let trouble = job.trouble.as_deref().unwrap_or(&errors);
        let lines = count(job.chunk.lines, "row");
        put(format!("{id:width$}  {:>10}  {lines:>11}  {end:10} {batch} {trouble}", name(job)).trim_end())?;
    }
    let counts: Vec<String> = counts(state).iter().map(|(name, count)| format!("{count} {name}")).collect();
    put(&format!("{}: {}", count(state.jobs.len(), "chunk"), counts.join(", ")))?;
    let rows = totals(&state.jobs);
    put(&format!(
        "rows: {}, {}, {} absent, {} foreign, {} unreadable",
        count(rows.output, "result"),
        count(rows.error, "error"),
        rows.absent,
        rows.foreign,
        rows.bad
    ))?;
    put(&ages.in_words())
}

/// One object on one line, chunk by chunk: there may be ten thousand of them.
fn write_json(dir: &Path, state: &State, ages: &Ages, stdout: &mut Output) -> Result<()> {
    let counts: serde_json::Map<_, _> =
        counts(state).into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
    let (batches, requests) = state.spent();
    let head = json!({
        "work_dir": dir.display().to_string(), "state": standing(state), "config": state.config,
        "posts": state.posts.as_ref().map(|(_, mark)| mark.posts),
        "good_posts": state.posts.as_ref().map(|(good, _)| good), "counts": counts, "rows": totals(&state.jobs),
        "batches_created": batches, "requests_submitted": requests,
        "created_at": ages.created, "last_event_at": ages.last_event, "results_kept_until": ages.kept_until,
    });
    let head = head.to_string();
    stdout.put(head.strip_suffix('}').unwrap_or(&head).as_bytes())?;
    stdout.put(b",\"chunks\":[")?;
    for (at, job) in state.jobs.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        stdout.put(format!("{comma}{}", chunk_json(job)).as_bytes())?;
    }
    stdout.put(b"]}\n")
}

fn chunk_json(job: &Job) -> Value {
    json!({
        "chunk": job.chunk.id, "step": name(job), "analysis": job.chunk.analysis, "model": job.chunk.model,
        "lines": job.chunk.lines, "bytes": job.chunk.bytes, "file_id": job.file(), "batch_id": job.batch(),
        "attempt": job.attempt, "batch": job.end(), "rows": job.rows(), "cleaned": job.is_cleaned(), "trouble": job.trouble,
    })
}
