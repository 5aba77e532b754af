//! Where a work directory stands.

use std::{path::Path, time::Duration};

use serde_json::json;

use super::{
    Ended,
    fetch::{NO_COPY, totals, what_is_lost},
};
use crate::{
    cli::StatusArgs,
    console::Console,
    error::Result,
    flow::faults::escape_control,
    folder::Folder,
    journal::{self, FILE, Job, State, Step},
    lines::output::Output,
    settings::Config,
    units::count,
};

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(args: &StatusArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let dir = config.work_dir(args.work.work_dir.as_deref()).value;
    let mut shown = 0;
    loop {
        let length = std::fs::metadata(dir.join(FILE)).map_or(0, |meta| meta.len());
        if length != shown || !args.watch {
            shown = length;
            let state = journal::read(&dir)?;
            let mut stdout = Output::create(None)?;
            stdout.put(if args.json { as_json(&dir, &state) } else { as_text(&dir, &state) }.as_bytes())?;
            stdout.commit()?;
            let done = state.posts.is_some() && state.below(Step::Fetched) == 0;
            if !args.watch || done {
                return Ok(if tell_what_is_lost(&dir, &state, console)? { Ended::WithFaults } else { Ended::Finished });
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Results that were fetched and are not here any more are what no step of a chunk shows.
fn tell_what_is_lost(dir: &Path, state: &State, console: &Console) -> Result<bool> {
    let folder = Folder::open(dir)?;
    let mut lost = false;
    for job in &state.jobs {
        if let Some(what) = what_is_lost(job, &folder) {
            let way = if job.cleaned { NO_COPY } else { "`zbatch fetch` downloads it again" };
            console.always(format_args!("{what}; {way}"));
            lost = true;
        }
    }
    Ok(lost)
}

/// In the order of a chunk's way.
const NAMES: [&str; 7] = ["cut", "uploaded", "unclear", "running", "cancelling", "ended", "fetched"];

fn name(job: &Job) -> &'static str {
    match job.step {
        Step::Cut => "cut",
        Step::Uploaded => "uploaded",
        Step::Intended => "unclear",
        Step::Created if job.cancelling => "cancelling",
        Step::Created => "running",
        Step::Ended => "ended",
        Step::Fetched => "fetched",
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

fn as_text(dir: &Path, state: &State) -> String {
    let rows = totals(&state.jobs);
    let mut text = format!("{}: ", dir.display());
    match &state.posts {
        Some((good, input)) => {
            text += &format!("{} read, {good} good, all cut\n", count(input.posts, input_name(state)))
        }
        None => text += "cutting\n",
    }
    let width = state.jobs.iter().map(|job| job.chunk.id.to_string().len()).max().unwrap_or_default();
    for job in &state.jobs {
        let id = job.chunk.id.to_string();
        let end = job.end.as_ref().map_or("", |end| end.status.as_str());
        let batch = job.batch_id.as_deref().unwrap_or_default();
        let errors = job.end.as_ref().map(|end| end.errors.join("; ")).unwrap_or_default();
        let trouble = job.trouble.as_deref().unwrap_or(&errors);
        let line = format!(
            "{id:width$}  {:>10}  {:>11}  {end:10} {batch} {trouble}",
            name(job),
            count(job.chunk.lines, "row")
        );
        text += &escape_control(line.trim_end());
        text.push('\n');
    }
    let counts: Vec<String> = counts(state).iter().map(|(name, count)| format!("{count} {name}")).collect();
    text += &format!("{}: {}\n", count(state.jobs.len(), "chunk"), counts.join(", "));
    text += &format!(
        "rows: {}, {}, {} absent, {} foreign, {} unreadable\n",
        count(rows.output, "result"),
        count(rows.error, "error"),
        rows.absent,
        rows.foreign,
        rows.bad
    );
    text
}

fn as_json(dir: &Path, state: &State) -> String {
    let rows = totals(&state.jobs);
    let chunks: Vec<_> = state
        .jobs
        .iter()
        .map(|job| {
            json!({
                "chunk": job.chunk.id, "step": name(job), "analysis": job.chunk.analysis, "model": job.chunk.model,
                "lines": job.chunk.lines, "bytes": job.chunk.bytes, "file_id": job.file_id, "batch_id": job.batch_id,
                "attempt": job.attempt, "batch": job.end, "rows": job.rows, "cleaned": job.cleaned,
                "trouble": job.trouble,
            })
        })
        .collect();
    let counts: serde_json::Map<_, _> =
        counts(state).into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
    let (batches, requests) = state.spent();
    let value = json!({
        "work_dir": dir.display().to_string(), "config": state.config, "posts": state.posts.as_ref().map(|(_, m)| m.posts),
        "good_posts": state.posts.as_ref().map(|(good, _)| good), "counts": counts, "rows": rows,
        "batches_created": batches, "requests_submitted": requests, "chunks": chunks,
    });
    format!("{value}\n")
}
