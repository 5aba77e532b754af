//! `doctor --orphans`: what a job left at the provider whose work directory is lost, or is not given. Nothing is deleted:
//! a job on another machine looks the same from here.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
};

use serde_json::{Value, json};

use super::is_lacking;
use crate::{
    cli::{DoctorArgs, RemoteArgs},
    cmd::{
        Ended,
        remote::{client, runtime},
    },
    console::Console,
    error::{Error, Kind, Result},
    flow::ChunkId,
    journal,
    lines::output::Output,
    provider::{Batch, Client, Dialect, FileId, MARK},
    settings::{Config, PROVIDER},
    shell,
    stop::{Stop, StopReason},
    text::escape_control,
    units::count,
};

/// What the directories given know.
#[derive(Default)]
struct Known {
    runs: HashSet<String>,
    batches: HashSet<String>,
    files: HashSet<String>,
}

/// What belongs to none of them.
#[derive(Default)]
struct Orphans {
    batches: Vec<Value>,
    /// Input files by name, until a batch names one.
    files: BTreeMap<FileId, String>,
}

pub fn run(args: &DoctorArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let (name, base_url) = config.provider(&args.provider)?;
    let dialect = Dialect::find(&name.value)?;
    let known = Known::read(args, &config, console)?;
    let remote = RemoteArgs { key_file: args.key_file.clone(), ca_cert: args.ca_cert.clone(), ..RemoteArgs::default() };
    let client = client(&config, &args.provider, &remote, console)?;
    let runtime = runtime()?;
    let stop = Stop::listen(&runtime, Some(args.timeout))?;
    let found = runtime.block_on(stop.run(list(&client, &known, console))).map_err(|reason| match reason {
        StopReason::Signal(number) => Error::new(Kind::Interrupted(number), "interrupted"),
        StopReason::TimedOut => Error::new(Kind::TryAgain, "the lists did not come to an end within --timeout"),
    })??;
    found.print(args.json)?;
    let base = base_url.as_ref().map_or(dialect.base_url, |url| url.value.trim_end_matches('/'));
    let provider = (dialect.name != PROVIDER).then(|| format!("--provider {} ", dialect.name));
    let url = base_url.as_ref().map(|url| format!("--base-url {} ", shell::word(&url.value)));
    let server = provider.unwrap_or_default() + &url.unwrap_or_default();
    found.say_what_to_do(base, &server, dialect, console);
    Ok(Ended::Finished)
}

async fn list(client: &Client, known: &Known, console: &Console) -> Result<Orphans> {
    let found = RefCell::new(Orphans::default());
    let keep_file = |id: &FileId, name: &str| {
        if is_our_name(name) && !known.files.contains(id.as_str()) {
            found.borrow_mut().files.insert(id.clone(), name.to_owned());
        }
        false
    };
    match client.find_files(keep_file).await {
        Ok(_) => {}
        Err(error) if is_lacking(&error) => {
            console.always(format_args!("the server does not list files, so that only batches are shown: {error}"));
        }
        Err(error) => return Err(error.into()),
    }
    let keep_batch = |batch: &Batch| {
        let mut found = found.borrow_mut();
        // A file that a listed batch names as its input belongs to that batch.
        batch.input_file_id.as_ref().map(|file| found.files.remove(file));
        if let Some(mark) = batch.metadata.get(MARK).filter(|mark| known.is_orphan(batch, mark)) {
            let files = [&batch.input_file_id, &batch.output_file_id, &batch.error_file_id];
            found.batches.push(json!({
                "orphan": "batch", "id": batch.id.as_str(), "status": batch.status.as_str(), "mark": mark,
                "created_at": batch.created_at, "files": files.into_iter().flatten().collect::<Vec<_>>(),
            }));
        }
        false
    };
    if !client.find_batches(keep_batch).await?.complete {
        console.always("the list of batches did not come to its end: there may be more");
    }
    Ok(found.into_inner())
}

impl Known {
    /// Without `-d`: the work directory that the other verbs would use, if there is one.
    fn read(args: &DoctorArgs, config: &Config, console: &Console) -> Result<Self> {
        let mut dirs = args.work_dirs.clone();
        if dirs.is_empty() {
            let dir = config.work_dir(None).value;
            if dir.join(journal::FILE).is_file() {
                console
                    .note(format_args!("what {} knows is left out (-d names other work directories)", dir.display()));
                dirs.push(dir);
            }
        }
        let mut known = Self::default();
        for dir in &dirs {
            let state = journal::read(dir)?;
            known.runs.insert(state.run);
            for job in state.jobs {
                known.batches.extend(job.batch().map(ToString::to_string));
                known.files.extend(job.file().map(ToString::to_string));
            }
        }
        Ok(known)
    }

    fn is_orphan(&self, batch: &Batch, mark: &str) -> bool {
        is_our_mark(mark).is_some_and(|run| !self.runs.contains(run)) && !self.batches.contains(batch.id.as_str())
    }
}

/// The run of a mark `{run}/{chunk}`, or of one of `doctor` itself.
fn is_our_mark(mark: &str) -> Option<&str> {
    let (run, chunk) = mark.split_once('/')?;
    let id = run.strip_prefix("doctor-").unwrap_or(run);
    let is_run = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    let is_chunk = match run.strip_prefix("doctor-") {
        Some(_) => chunk.len() <= 40 && chunk.bytes().all(|b| b.is_ascii_lowercase()),
        None => chunk.parse::<ChunkId>().is_ok(),
    };
    (is_run && is_chunk).then_some(run)
}

fn is_our_name(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".jsonl") else { return false };
    let of_doctor = stem.strip_prefix("zbatch_doctor_");
    of_doctor.is_some_and(|word| word.len() <= 40 && word.bytes().all(|b| b.is_ascii_lowercase()))
        || stem.parse::<ChunkId>().is_ok()
}

impl Orphans {
    fn print(&self, as_json: bool) -> Result<()> {
        let mut stdout = Output::create(None)?;
        let mut put = |line: String| stdout.put((if as_json { line } else { escape_control(&line) } + "\n").as_bytes());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for batch in &self.batches {
            let files: Vec<String> = batch["files"].as_array().into_iter().flatten().map(text).collect();
            let [id, status, mark] = ["id", "status", "mark"].map(|key| text(&batch[key]));
            put(match as_json {
                true => batch.to_string(),
                false => format!("batch  {id}  {status}  {mark}  files: {}", files.join(" ")),
            })?;
        }
        for (id, name) in &self.files {
            put(match as_json {
                true => json!({"orphan": "file", "id": id, "name": name}).to_string(),
                false => format!("file   {id}  {name}"),
            })?;
        }
        stdout.commit()
    }

    /// `server`: the flags that name it.
    fn say_what_to_do(&self, base: &str, server: &str, dialect: &Dialect, console: &Console) {
        let (batches, files) = (self.batches.len(), self.files.len());
        console.note(format_args!(
            "of no work directory given: {}, and {} without a batch; nothing was deleted",
            count(batches, "batch"),
            count(files, "file")
        ));
        if batches + files == 0 {
            return;
        }
        let key = dialect.key_variables.first().copied().unwrap_or("KEY");
        let curl = format!("curl -H \"Authorization: Bearer ${key}\" -X");
        let [cancel, delete] = ["batches/ID/cancel", "files/ID"].map(|path| shell::word(format!("{base}/{path}")));
        console.table(
            "a job that runs elsewhere looks the same: be sure before you delete",
            &format!(
                "  results of a batch:  zbatch fetch --batch ID {server}-o -\n  \
                 cancel a batch:      {curl} POST {cancel}\n  \
                 delete a file:       {curl} DELETE {delete}"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_5c_what_carries_our_mark() {
        for (mark, run) in [
            ("0123456789abcdef/topic_analysis_batch_part1", Some("0123456789abcdef")),
            ("0123456789abcdef/topic_analysis_vision_batch_part12", Some("0123456789abcdef")),
            ("doctor-0123456789abcdef/watched", Some("doctor-0123456789abcdef")),
            ("0123456789abcdef/part1", None),
            ("my-run/topic_analysis_batch_part1", None),
            ("/topic_analysis_batch_part1", None),
            ("0123456789abcdef", None),
            ("0123456789abcdef/\u{1b}[31m", None),
        ] {
            assert_eq!(is_our_mark(mark), run, "{mark}");
        }
        assert!(is_our_name("topic_analysis_batch_part1.jsonl") && is_our_name("zbatch_doctor_fence.jsonl"));
        assert!(!is_our_name("topic_analysis_batch_part1") && !is_our_name("other.jsonl") && !is_our_name(""));
    }
}
