//! Tries out what zbatch assumes of a provider and cannot know: how long a new batch is not listed, whether marks come back,
//! what becomes of a batch whose input is deleted. Three batches of one request each; all goes through
//! [`Client`], as in a job.
//!
//! Whatever ends it, the batches are cancelled and their files deleted; what could not be is named.

mod findings;
mod orphans;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::{sleep, timeout};

use self::findings::{Check, Findings, Verdict};
use super::{
    Ended,
    remote::{SETTLE, client, runtime},
};
use crate::{
    cli::{DoctorArgs, RemoteArgs},
    console::Console,
    error::{Error, Kind, Result},
    flow::results::parse_result,
    folder::Entry,
    lines::{input::read_small, output::write_private},
    provider::{ApiError, Batch, BatchId, BatchStatus, Class, Client, CreateError, Dialect, FileId, MARK},
    settings::Config,
    stop::{Stop, StopReason},
    units::count,
    workdir::claim::run_id,
};

/// What cleaning up may take.
const CLEAN_UP: Duration = Duration::from_secs(60);
/// A results file of one line.
const LARGEST: u64 = 1 << 20;

/// Why the examination ended early.
enum Halt {
    Stopped(StopReason),
    Failed(Error),
}

impl From<StopReason> for Halt {
    fn from(reason: StopReason) -> Self {
        Self::Stopped(reason)
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<ApiError> for Halt {
    fn from(error: ApiError) -> Self {
        Self::Failed(error.into())
    }
}

pub fn run(args: &DoctorArgs, console: &Console) -> Result<Ended> {
    if args.orphans {
        return orphans::run(args, console);
    }
    let config = Config::load(args.source.config.as_deref(), console)?;
    let (name, base_url) = config.provider(&args.provider)?;
    let dialect = Dialect::find(&name.value)?;
    let Some(model) = args.model.as_deref().or(dialect.free_model) else {
        return Err(Error::usage(format!("no free model of {} is known", dialect.name))
            .fix("name a model with --model; three requests of a few words are billed"));
    };
    let remote = RemoteArgs { key_file: args.key_file.clone(), ca_cert: args.ca_cert.clone(), ..RemoteArgs::default() };
    let client = client(&config, &args.provider, &remote, console)?;
    let price = if dialect.free_model == Some(model) {
        format!("{model} is free at {}", dialect.name)
    } else {
        format!("{model} bills some fifty tokens for each")
    };
    console.note(format_args!(
        "three batches of one request each at {}; {price}; all is deleted at the end",
        base_url.as_ref().map_or(dialect.base_url, |url| url.value.as_str())
    ));
    let runtime = runtime()?;
    let findings = Findings::to_stdout(args.json)?;
    let mut doctor = Doctor {
        client: &client,
        model,
        poll_interval: args.poll_interval,
        settle: args.settle.unwrap_or(SETTLE),
        stop: Stop::listen(&runtime, Some(args.timeout))?,
        findings,
        dir: tempfile::tempdir().map_err(|e| Error::io("create", "a temporary directory", &e))?,
        run: run_id(),
        files: BTreeSet::new(),
        batches: BTreeSet::new(),
        unclear: None,
    };
    let examined = runtime.block_on(doctor.examine());
    let cleaned = runtime.block_on(async { timeout(CLEAN_UP, doctor.clean_up()).await });
    doctor.say_what_is_left(cleaned.is_err(), console);
    doctor.conclude(examined, console)
}

struct Doctor<'a> {
    client: &'a Client,
    model: &'a str,
    poll_interval: Duration,
    settle: Duration,
    stop: Stop,
    findings: Findings,
    dir: tempfile::TempDir,
    run: String,
    /// What there is of us at the provider.
    files: BTreeSet<FileId>,
    batches: BTreeSet<BatchId>,
    /// A create was sent at this time, and whether it made a batch is not known.
    unclear: Option<Instant>,
}

/// A batch of ours.
struct Trial {
    file: FileId,
    batch: Batch,
    metadata: [(&'static str, String); 2],
    created: Instant,
    /// Each status, and when it was first seen.
    seen: Vec<(BatchStatus, Duration)>,
    listed: bool,
}

impl Trial {
    fn look(&mut self, batch: Batch) {
        if self.seen.last().is_none_or(|(status, _)| *status != batch.status) {
            self.seen.push((batch.status.clone(), self.created.elapsed()));
        }
        self.batch = batch;
    }

    fn history(&self) -> String {
        let seen = self.seen.iter().map(|(status, at)| format!("{status} {}", seconds(*at)));
        seen.collect::<Vec<_>>().join(", ")
    }

    fn metadata_in(&self, batch: &Batch) -> (Verdict, &'static str) {
        let shown = self.metadata.iter().filter(|(key, value)| batch.metadata.get(*key) == Some(value)).count();
        let what = match shown {
            0 => "none of it; batches are recognised by their input file",
            2 => "all of it",
            _ => "a part of it; batches are recognised by their input file",
        };
        (Verdict::of(shown == self.metadata.len()), what)
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl Doctor<'_> {
    async fn examine(&mut self) -> Result<(), Halt> {
        let client = self.client;
        let began = Instant::now();
        if self.ask(&[Check::Key], client.find_batches(|_| false)).await?.is_some() {
            self.findings.tell(Check::Key, Verdict::AsAssumed, &format!("accepted in {}", seconds(began.elapsed())))?;
        }
        let file = self.upload("watched").await?;
        self.wait_for_listing(&file).await?;
        self.create_without_input().await?;

        let mut trials = vec![self.create("watched", file).await?];
        if let [watched] = trials.as_slice() {
            self.tell_of_create(watched)?;
        }
        self.look_at_list(&mut trials).await?;
        let file = self.upload("queued").await?;
        let queued = self.create("queued", file).await?;
        let deleted = self.call(client.delete(&queued.file)).await?;
        trials.push(queued);
        let file = self.upload("cancelled").await?;
        let mut cancelled = self.create("cancelled", file).await?;
        let asked = self.call(client.cancel(&cancelled.batch.id)).await?;
        if let Ok(batch) = &asked {
            cancelled.look(batch.clone());
        }
        trials.push(cancelled);
        self.wait_for_ends(&mut trials).await?;

        if let [watched, queued, cancelled] = trials.as_slice() {
            self.tell_of_deleted_input(queued, deleted.err())?;
            self.tell_of_cancel(cancelled, asked.err())?;
            self.tell_of_end(watched).await?;
        }
        Ok(())
    }

    async fn wait_for_listing(&mut self, file: &FileId) -> Result<(), Halt> {
        let began = Instant::now();
        loop {
            match self.ask(&[Check::FileListed], self.client.lists_file(file)).await? {
                None => return Ok(()),
                Some(true) => break,
                Some(false) => {}
            }
            if began.elapsed() >= self.settle {
                let measured = format!("not after {}", seconds(began.elapsed()));
                return Ok(self.findings.tell(Check::FileListed, Verdict::Differs, &measured)?);
            }
            self.pause().await?;
        }
        let measured = format!("after {}", seconds(began.elapsed()));
        Ok(self.findings.tell(Check::FileListed, Verdict::AsAssumed, &measured)?)
    }

    /// The fence before a chunk is paid for anew (`docs/reliability.md` M1).
    async fn create_without_input(&mut self) -> Result<(), Halt> {
        let file = self.upload("fence").await?;
        if self.ask(&[Check::CreateWithoutInput], self.client.delete(&file)).await?.is_none() {
            return Ok(());
        }
        let metadata = self.metadata("fence");
        let (verdict, measured) = match self.send_create(&file, &metadata).await? {
            Err(CreateError::Refused(error)) => (Verdict::AsAssumed, error.to_string()),
            Ok(batch) => (Verdict::Differs, format!("it made batch {}", batch.id)),
            Err(error) => (Verdict::Differs, format!("no clear answer: {error}")),
        };
        Ok(self.findings.tell(Check::CreateWithoutInput, verdict, &measured)?)
    }

    fn tell_of_create(&mut self, trial: &Trial) -> Result<()> {
        let batch = &trial.batch;
        let (names, known) = (batch.input_file_id.as_ref() == Some(&trial.file), is_known(&batch.status));
        let input = if names { "names the input file" } else { "does not name the input file" };
        let measured = format!("{input}, status {}", batch.status);
        self.findings.tell(Check::CreateReply, Verdict::of(names && known), &measured)?;
        let (verdict, measured) = trial.metadata_in(batch);
        self.findings.tell(Check::CreateMetadata, verdict, measured)
    }

    /// Looks for our batches in a complete listing, as is done for a create without an answer.
    async fn look_at_list(&mut self, trials: &mut [Trial]) -> Result<(), Halt> {
        let ids: Vec<BatchId> = trials.iter().map(|trial| trial.batch.id.clone()).collect();
        const CHECKS: [Check; 4] = [Check::ListLag, Check::ListInput, Check::ListMetadata, Check::ListOrder];
        let Some(shown) = self.ask(&CHECKS, self.client.find_batches(|batch| ids.contains(&batch.id))).await? else {
            // Nothing is waited for in a list that there is not.
            trials.iter_mut().for_each(|trial| trial.listed = true);
            return Ok(());
        };
        let shown = shown.found;
        for batch in &shown {
            let Some(trial) = trials.iter_mut().find(|trial| trial.batch.id == batch.id) else { continue };
            trial.listed = true;
            let lag = trial.created.elapsed();
            let (verdict, mut measured) = (Verdict::of(lag <= self.settle), format!("after {}", seconds(lag)));
            if verdict == Verdict::Differs {
                measured += "; give --settle more than that";
            }
            // The first to be created is the first to be told of.
            self.findings.tell(Check::ListLag, verdict, &measured)?;
            let named = batch.input_file_id.as_ref() == Some(&trial.file);
            let measured = if named { "named" } else { "not named; batches are recognised by their metadata" };
            self.findings.tell(Check::ListInput, Verdict::of(named), measured)?;
            let (verdict, measured) = trial.metadata_in(batch);
            self.findings.tell(Check::ListMetadata, verdict, measured)?;
        }
        if shown.len() > 1 && shown.len() == ids.len() {
            let order = |shown: &mut dyn Iterator<Item = &Batch>| shown.map(|batch| &batch.id).eq(ids.iter());
            let measured = if order(&mut shown.iter()) {
                "oldest first"
            } else if order(&mut shown.iter().rev()) {
                "newest first"
            } else {
                "neither oldest nor newest first"
            };
            self.findings.tell(Check::ListOrder, Verdict::Noted, measured)?;
        }
        Ok(())
    }

    /// Until all are terminal, and listed or overdue.
    async fn wait_for_ends(&mut self, trials: &mut [Trial]) -> Result<(), Halt> {
        loop {
            for trial in trials.iter_mut().filter(|trial| !trial.batch.status.is_terminal()) {
                let batch = self.call(self.client.batch(&trial.batch.id)).await??;
                let (verdict, measured) = trial.metadata_in(&batch);
                self.findings.tell(Check::PollMetadata, verdict, measured)?;
                trial.look(batch);
            }
            let mut overdue = trials.iter().filter(|trial| !trial.listed && trial.created.elapsed() > self.settle);
            if let Some(trial) = overdue.next() {
                let measured = format!("not listed after {}; give --settle more", seconds(trial.created.elapsed()));
                self.findings.tell(Check::ListLag, Verdict::Differs, &measured)?;
            } else if trials.iter().any(|trial| !trial.listed) {
                self.look_at_list(trials).await?;
            }
            let is_done = |trial: &Trial| {
                trial.batch.status.is_terminal() && (trial.listed || trial.created.elapsed() > self.settle)
            };
            if trials.iter().all(is_done) {
                return Ok(());
            }
            self.pause().await?;
        }
    }

    fn tell_of_deleted_input(&mut self, trial: &Trial, refused: Option<ApiError>) -> Result<()> {
        let counts = trial.batch.request_counts;
        let measured = match refused {
            Some(error) => format!("the deletion is refused: {error}"),
            None => format!("{}; {} of {} done", trial.history(), counts.completed, count(counts.total, "request")),
        };
        self.findings.tell(Check::InputDeletedWhileQueued, Verdict::Noted, &measured)
    }

    fn tell_of_cancel(&mut self, trial: &Trial, refused: Option<ApiError>) -> Result<()> {
        let (verdict, measured) = match refused {
            // It was faster than we.
            Some(error) if trial.batch.status == BatchStatus::Completed => (Verdict::Noted, error.to_string()),
            Some(error) if is_lacking(&error) => {
                (Verdict::NotMeasured, format!("the server does not have this call: {error}"))
            }
            Some(error) => (Verdict::Differs, error.to_string()),
            None => (Verdict::of(trial.batch.status == BatchStatus::Cancelled), trial.history()),
        };
        self.findings.tell(Check::Cancel, verdict, &measured)
    }

    /// Of a batch that was left alone.
    async fn tell_of_end(&mut self, trial: &Trial) -> Result<(), Halt> {
        let (client, batch) = (self.client, &trial.batch);
        let holds = trial.seen.iter().all(|(status, _)| is_known(status)) && batch.status == BatchStatus::Completed;
        let why = if batch.errors.is_empty() { String::new() } else { format!(": {}", batch.errors.join("; ")) };
        self.findings.tell(Check::Statuses, Verdict::of(holds), &format!("{}{why}", trial.history()))?;
        if let Some(kept) = self.ask(&[Check::InputKept], client.lists_file(&trial.file)).await? {
            let measured = if kept { "it is listed after the end" } else { "it is not listed after the end" };
            self.findings.tell(Check::InputKept, Verdict::of(kept), measured)?;
        }
        // Of a batch that did not run nothing more is promised.
        if batch.status != BatchStatus::Completed {
            return Ok(());
        }
        let counts = batch.request_counts;
        let measured = format!("total {}, completed {}, failed {}", counts.total, counts.completed, counts.failed);
        let holds = counts.total == 1 && counts.completed.saturating_add(counts.failed) == 1;
        self.findings.tell(Check::RequestCounts, Verdict::of(holds), &measured)?;
        let Some(output) = &batch.output_file_id else {
            let measured = if batch.error_file_id.is_some() { "an error file only" } else { "no file at all" };
            return Ok(self.findings.tell(Check::Download, Verdict::Differs, measured)?);
        };
        let path = self.path("output");
        let download = self.call(client.download(output, &Entry::of(&path)?)).await??;
        let text = read_small(&path, LARGEST)?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let read = lines.iter().filter_map(|line| parse_result(line.as_bytes()).ok());
        let ours: Vec<_> = read.filter(|line| line.custom_id == custom_id("watched")).collect();
        let answered = ours.iter().filter(|line| line.content.is_ok()).count();
        let feed = if text.ends_with('\n') { "with" } else { "without" };
        let measured = format!(
            "{} bytes, {}, {} of them ours, {answered} with an answer, {feed} a last line feed",
            download.bytes,
            count(lines.len(), "line"),
            ours.len()
        );
        let holds = (lines.len(), ours.len(), answered) == (1, 1, 1);
        self.findings.tell(Check::Download, Verdict::of(holds), &measured)?;
        self.delete(trial, output).await
    }

    async fn delete(&mut self, trial: &Trial, output: &FileId) -> Result<(), Halt> {
        let (client, path) = (self.client, self.path("deleted"));
        for file in [&trial.file, output] {
            if self.ask(&[Check::Deletion], client.delete(file)).await?.is_none() {
                return Ok(());
            }
            self.files.remove(file);
        }
        let Some(listed) = self.ask(&[Check::Deletion], client.lists_file(&trial.file)).await? else { return Ok(()) };
        let given = self.call(client.download(output, &Entry::of(&path)?)).await?.err();
        let is_gone = given.as_ref().is_some_and(|error| error.class == Class::NotFound);
        let measured = format!(
            "{}; {}",
            if listed { "the input is still listed" } else { "the input is not listed" },
            given.map_or_else(|| "the results are still given out".to_owned(), |error| error.to_string())
        );
        Ok(self.findings.tell(Check::Deletion, Verdict::of(!listed && is_gone), &measured)?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.jsonl"))
    }

    fn metadata(&self, name: &str) -> [(&'static str, String); 2] {
        [(MARK, format!("{}{name}", self.mark())), ("attempt", "1".to_owned())]
    }

    /// What the marks of all our batches begin with.
    fn mark(&self) -> String {
        format!("doctor-{}/", self.run)
    }

    async fn upload(&mut self, name: &str) -> Result<FileId, Halt> {
        let line = json!({
            "custom_id": custom_id(name), "method": "POST", "url": self.client.dialect().line_url,
            "body": {
                "model": self.model, "messages": [{"role": "user", "content": "Answer with one word: yes"}],
                "temperature": 0.1, "max_tokens": 16,
            },
        });
        let path = self.path(name);
        write_private(&path, format!("{line}\n").as_bytes())?;
        let file = self.call(self.client.upload(&Entry::of(&path)?, &format!("zbatch_doctor_{name}.jsonl"))).await??;
        self.files.insert(file.clone());
        Ok(file)
    }

    async fn create(&mut self, name: &str, file: FileId) -> Result<Trial, Halt> {
        let metadata = self.metadata(name);
        let batch = self.send_create(&file, &metadata).await?.map_err(|error| error.error().clone())?;
        let (created, status) = (Instant::now(), batch.status.clone());
        Ok(Trial { file, batch, metadata, created, seen: vec![(status, Duration::ZERO)], listed: false })
    }

    /// Sends a create, whose answer is waited for: it may have made something that is to be cleaned up.
    async fn send_create(
        &mut self,
        file: &FileId,
        metadata: &[(&str, String)],
    ) -> Result<Result<Batch, CreateError>, Halt> {
        let before = self.unclear.replace(Instant::now());
        let answer = self.stop.run_last_call(self.client.create(file, metadata)).await?;
        if !matches!(answer, Err(CreateError::Ambiguous(_))) {
            // Of an earlier one nothing more is known than before.
            self.unclear = before;
        }
        if let Ok(batch) = &answer {
            self.batches.insert(batch.id.clone());
        }
        Ok(answer)
    }

    async fn pause(&self) -> Result<(), Halt> {
        self.call(sleep(self.poll_interval)).await
    }

    /// Gives a call up when we are told to stop.
    async fn call<T>(&self, call: impl Future<Output = T>) -> Result<T, Halt> {
        Ok(self.stop.run(call).await?)
    }

    /// A call, or `None` where the server does not have it: then these are not measured, and the others go on.
    async fn ask<T>(
        &mut self,
        checks: &[Check],
        call: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<Option<T>, Halt> {
        match self.call(call).await? {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_lacking(&error) => {
                let measured = format!("the server does not have this call: {error}");
                checks.iter().try_for_each(|check| self.findings.tell(*check, Verdict::NotMeasured, &measured))?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What could not be cancelled or deleted stays in `batches` and `files`.
    async fn clean_up(&mut self) {
        let client = self.client;
        if let Some(sent) = self.unclear {
            let mark = self.mark();
            let ours = |batch: &Batch| {
                batch.metadata.get(MARK).is_some_and(|it| it.starts_with(&mark))
                    || batch.input_file_id.as_ref().is_some_and(|file| self.files.contains(file))
            };
            if let Ok(found) = client.find_batches(ours).await {
                let known = self.batches.len();
                self.batches.extend(found.found.into_iter().map(|batch| batch.id));
                // One that is not listed yet may be later.
                if self.batches.len() > known || sent.elapsed() > self.settle {
                    self.unclear = None;
                }
            }
        }
        let batches: Vec<BatchId> = self.batches.iter().cloned().collect();
        for id in &batches {
            if client.batch(id).await.is_ok_and(|batch| !batch.status.is_terminal()) {
                // It may have ended meanwhile: the look that follows tells.
                let _refused = client.cancel(id).await;
            }
        }
        // The ends may be waited for in vain.
        self.delete_files().await;
        for id in &batches {
            while let Ok(batch) = client.batch(id).await {
                if batch.status.is_terminal() {
                    self.files.extend([batch.output_file_id, batch.error_file_id].into_iter().flatten());
                    self.batches.remove(id);
                    break;
                }
                sleep(self.poll_interval).await;
            }
        }
        self.delete_files().await;
    }

    async fn delete_files(&mut self) {
        let files: Vec<FileId> = self.files.iter().cloned().collect();
        for file in files {
            if self.client.delete(&file).await.is_ok() {
                self.files.remove(&file);
            }
        }
    }

    fn say_what_is_left(&self, late: bool, console: &Console) {
        if self.unclear.is_some() {
            let mark = self.mark();
            console.always(format_args!("a create has no known answer: look for {mark} among the account's batches"));
        }
        for id in &self.batches {
            console.always(format_args!("batch {id} has not ended: cancel it, and delete its files"));
        }
        for id in &self.files {
            console.always(format_args!("file {id} is not deleted"));
        }
        if late {
            console.note(format_args!("cleaning up took longer than {CLEAN_UP:?} and was given up"));
        }
    }

    fn conclude(mut self, examined: Result<(), Halt>, console: &Console) -> Result<Ended> {
        // A key that is refused needs no list of what it could not measure.
        let begun = !self.findings.is_empty() || !matches!(examined, Err(Halt::Failed(_)));
        if begun {
            self.findings.finish()?;
        }
        let count = |verdict| self.findings.count(verdict);
        let (differ, open) = (count(Verdict::Differs), count(Verdict::NotMeasured));
        if begun {
            console.note(format_args!(
                "{} as assumed, {differ} differ, {} noted, {open} not measured",
                count(Verdict::AsAssumed),
                count(Verdict::Noted)
            ));
        }
        match examined {
            Err(Halt::Failed(error)) => Err(error),
            Err(Halt::Stopped(StopReason::Signal(number))) => Err(Error::new(Kind::Interrupted(number), "interrupted")),
            Err(Halt::Stopped(StopReason::TimedOut)) => Ok(Ended::Remains),
            Ok(()) if differ > 0 => Ok(Ended::WithFaults),
            Ok(()) => Ok(Ended::Finished),
        }
    }
}

/// At least six characters, and an analysis that nobody has.
fn custom_id(name: &str) -> String {
    format!("doctor_{name}_0000")
}

/// The server does not have the call that failed so.
fn is_lacking(error: &ApiError) -> bool {
    matches!(error.status, Some(404 | 405 | 501))
}

fn is_known(status: &BatchStatus) -> bool {
    !matches!(status, BatchStatus::Unknown(_))
}
