//! Input file → result files. Lines are answered in a shuffled order that the seed and the content decide; what is
//! held is their places, never the lines. The files appear whole, under ids that are given when they do.

use std::{
    io::{BufWriter, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    answers,
    dialect::Dialect,
    faults::{FaultPlan, LineFault, LineKey},
    input::{self, LineFile, Question, Span},
    state::{Millis, Purpose, Status, StoredFile, WHOLE, Work},
};
use crate::{
    analysis::AnalysisSet,
    error::{Error, Result},
    folder::{Entry, Folder},
    lines::output::AtomicFile,
    text::escape_control,
};

/// What there is to do for a batch.
#[derive(Clone, Debug)]
pub struct Job {
    pub batch: String,
    pub at: Millis,
    pub dialect: Dialect,
    pub input: Entry,
    pub input_blake3: String,
    /// Directory of the server's files.
    pub files: Folder,
    /// Share of the lines that gets done, in parts per million.
    pub share: u32,
    pub all_fail: bool,
    /// Cancelled or about to be.
    pub status: Status,
    pub now: Millis,
}

/// One line of a result file.
#[derive(Serialize)]
struct ResultLine<'a> {
    response: Option<Response<'a>>,
    custom_id: &'a str,
    id: &'a str,
    /// Zhipu leaves it out on success; OpenAI writes null.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Built(Value),
    Copied(&'a RawValue),
}

/// How one line ended.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// A chat completion, as built here.
    Built(Value),
    /// A chat completion, as a real server wrote it.
    Copied(&'a RawValue),
    /// Status, code, message and the body that carries them.
    Failed { status: u16, code: &'a str, message: &'a str, body: Value },
    /// Never ran; only OpenAI says so.
    NotRun,
}

/// The places of a file's lines, shuffled.
pub fn shuffled(input: &Entry, seed: u64, content: &str) -> Result<Vec<Span>> {
    let mut spans = input::spans(input.open()?).map_err(|e| Error::io("read", input.path(), &e))?;
    let key = LineKey::finish(LineKey::hasher(seed).update(content.as_bytes()));
    let mut lot = key.lot();
    for left in (1..spans.len()).rev() {
        let other = lot.turn() % (left as u64 + 1);
        spans.swap(left, usize::try_from(other).unwrap_or(left));
    }
    Ok(spans)
}

/// The result files of a job while they are written.
#[derive(Debug)]
pub struct Results<'j> {
    job: &'j Job,
    output: Side,
    errors: Side,
    line: Vec<u8>,
    completed: u64,
    failed: u64,
    code_numbers: bool,
    extra_fields: bool,
}

#[derive(Debug)]
struct Side {
    file: BufWriter<AtomicFile>,
    path: PathBuf,
    name: &'static str,
    hasher: blake3::Hasher,
    bytes: u64,
    lines: u64,
}

impl<'j> Results<'j> {
    pub fn create(job: &'j Job, faults: &FaultPlan) -> Result<Self> {
        Ok(Self {
            output: Side::create(job, "output")?,
            errors: Side::create(job, "error")?,
            job,
            line: Vec::new(),
            completed: 0,
            failed: 0,
            code_numbers: faults.numbers_codes(),
            extra_fields: faults.adds_fields(),
        })
    }

    /// Writes how a line ended, spoiled by the faults that it has.
    pub fn put(&mut self, custom_id: &str, outcome: Outcome<'_>, key: &LineKey, faults: &FaultPlan) -> Result<()> {
        let has = |fault| faults.strikes(fault, key);
        let good = matches!(outcome, Outcome::Built(_) | Outcome::Copied(_));
        if matches!(outcome, Outcome::NotRun) && self.job.dialect == Dialect::Zhipu {
            return Ok(());
        }
        if good && has(LineFault::Missing) {
            return Ok(());
        }
        self.encode(custom_id, outcome, key)?;
        if !good {
            self.failed += 1;
            return self.errors.put(&self.line);
        }
        self.completed += 1;
        if has(LineFault::Torn) {
            self.line.truncate(self.line.len() / 2);
            // A cut within a character would be another fault: invalid UTF-8.
            while self.line.last().is_some_and(|byte| !byte.is_ascii()) {
                self.line.pop();
            }
            self.line.push(b'\n');
        }
        self.output.put(&self.line)?;
        if has(LineFault::Duplicate) {
            self.output.put(&self.line)?;
        }
        let (name, index) = custom_id.rsplit_once('_').unwrap_or((custom_id, ""));
        let foreign = has(LineFault::Foreign).then(|| 4_000_000_000 + key.draw("foreign") % 1_000_000);
        let stray = index.parse::<u64>().ok().filter(|_| has(LineFault::Stray)).map(|index| index.saturating_add(4));
        for index in foreign.into_iter().chain(stray) {
            let stranger = format!("{name}_{index:04}");
            let body = json!({"model": "x", "choices": [
                {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "3"}},
            ]});
            self.encode(&stranger, Outcome::Built(body), key)?;
            self.output.put(&self.line)?;
        }
        Ok(())
    }

    fn encode(&mut self, custom_id: &str, outcome: Outcome<'_>, key: &LineKey) -> Result<()> {
        let dialect = self.job.dialect;
        let unique = (dialect == Dialect::OpenAi).then(|| format!("{:016x}", key.draw(custom_id)));
        let request_id = unique.as_ref().map(|unique| format!("req_{unique}"));
        let line_id = unique.as_ref().map(|unique| format!("batch_req_{unique}"));
        let code = |text: &str| match text.parse::<u32>() {
            Ok(number) if self.code_numbers => json!(number),
            _ => json!(text),
        };
        let response = |status_code, body| Some(Response { status_code, request_id: request_id.as_deref(), body });
        let fine = (dialect == Dialect::OpenAi).then_some(Value::Null);
        let (response, error) = match outcome {
            Outcome::Built(mut body) => {
                if let Some(body) = body.as_object_mut().filter(|_| self.extra_fields) {
                    body.insert("x_safety".to_owned(), json!([{"level": 3, "role": null}]));
                }
                (response(200, Body::Built(body)), fine)
            }
            Outcome::Copied(body) => (response(200, Body::Copied(body)), fine),
            Outcome::Failed { status, code: text, message, mut body } => {
                let error = json!({"code": code(text), "message": message});
                if let Some(body) = body.as_object_mut() {
                    body.entry("error").or_insert_with(|| error.clone());
                }
                (response(status, Body::Built(body)), Some(error))
            }
            Outcome::NotRun => {
                let (text, message) = match self.job.status {
                    Status::Cancelling => ("batch_cancelled", "the batch was cancelled before this request ran"),
                    _ => ("batch_expired", "the batch expired before this request ran"),
                };
                (None, Some(json!({"code": text, "message": message})))
            }
        };
        let id = line_id.as_deref().unwrap_or(&self.job.batch);
        self.line.clear();
        serde_json::to_writer(&mut self.line, &ResultLine { response, custom_id, id, error })
            .map_err(|e| Error::io("encode a result for", self.job.input.path(), &e.into()))?;
        self.line.push(b'\n');
        Ok(())
    }

    /// The files appear; one that would be empty does not.
    pub fn finish(self) -> Result<Work> {
        let (completed, failed) = (self.completed, self.failed);
        let output = self.output.finish(self.job)?;
        let errors = self.errors.finish(self.job)?;
        Ok(Work { output, errors, completed, failed })
    }
}

impl Side {
    fn create(job: &Job, name: &'static str) -> Result<Self> {
        // The id is decided by the batch, so that work done twice (killed in between) leaves one file.
        let digest = blake3::hash(format!("{} {name}", job.batch).as_bytes()).to_hex();
        let entry = job.files.file(format!("{}_{}", job.now / 1000, digest.get(..32).unwrap_or_default()));
        let file = BufWriter::new(AtomicFile::within(&entry)?);
        Ok(Self { file, path: entry.path(), name, hasher: blake3::Hasher::new(), bytes: 0, lines: 0 })
    }

    fn put(&mut self, line: &[u8]) -> Result<()> {
        self.hasher.update(line);
        self.bytes += line.len() as u64;
        self.lines += 1;
        self.file.write_all(line).map_err(|e| Error::io("write", &self.path, &e))
    }

    fn finish(self, job: &Job) -> Result<Option<StoredFile>> {
        if self.bytes == 0 {
            return Ok(None);
        }
        let file = self.file.into_inner().map_err(|e| Error::io("write", &self.path, e.error()))?;
        file.commit()?;
        Ok(Some(StoredFile {
            id: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            at: job.now,
            name: format!("{}_{}.jsonl", job.batch, self.name),
            purpose: Purpose::BatchOutput,
            bytes: self.bytes,
            lines: self.lines,
            blake3: self.hasher.finalize().to_hex().to_string(),
            analysis: None,
        }))
    }
}

/// The emulated model.
#[derive(Debug)]
pub struct Model {
    pub analyses: Arc<AnalysisSet>,
    pub seed: u64,
    /// That it does not know what some prompt wants was said.
    pub said_so: AtomicBool,
}

impl Model {
    fn say(&self, id: &str, text: &str, key: &LineKey) -> String {
        answers::answer(&self.analyses, id, text, key).unwrap_or_else(|| {
            if !self.said_so.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "emulator: what {} wants cannot be told from its prompt: the answers to such requests are only an \
                     echo; --analyses DIR names the folders of your analyses",
                    escape_control(id)
                );
            }
            answers::echo(text)
        })
    }
}

/// Answers every line of a job with the emulated model. Blocks.
pub fn produce(job: &Job, model: &Model, faults: &FaultPlan) -> Result<Work> {
    let seed = model.seed;
    let failed = |e: std::io::Error| Error::io("read", job.input.path(), &e);
    let order = shuffled(&job.input, seed, &job.input_blake3)?;
    let mut lines = LineFile::new(job.input.open()?);
    let mut results = Results::create(job, faults)?;
    for span in order {
        let (question, key) = lines.at::<Question>(span, seed).map_err(failed)?;
        let question = match question {
            Ok(question) => question,
            Err(_) => {
                // What the upload accepted but no model can read, e.g. `"messages":17`.
                let (id, _) = lines.at::<OnlyId>(span, seed).map_err(failed)?;
                let id = id.map(|line| line.custom_id).unwrap_or_default();
                let (code, message) = ("1214", "the messages cannot be read");
                let outcome = Outcome::Failed { status: 400, code, message, body: json!({}) };
                results.put(&id, outcome, &key, faults)?;
                continue;
            }
        };
        let outcome = if job.share < WHOLE && !key.within("share", job.share) {
            Outcome::NotRun
        } else {
            ask(&question, job, model, &key, faults)
        };
        results.put(&question.custom_id, outcome, &key, faults)?;
    }
    results.finish()
}

#[derive(serde::Deserialize)]
struct OnlyId {
    custom_id: String,
}

fn ask<'a>(question: &Question, job: &Job, speaker: &Model, key: &LineKey, faults: &FaultPlan) -> Outcome<'a> {
    let has = |fault| faults.strikes(fault, key);
    let (id, model, message) = (&question.custom_id, &question.body.model, &question.body.messages);
    let text = &message.text;
    if job.all_fail || has(LineFault::Blocked) {
        let (code, message) = ("1301", "unsafe or sensitive content detected");
        return Outcome::Failed { status: 400, code, message, body: json!({ "model": model }) };
    }
    if let Some(why) = message.bad_image {
        // As Zhipu words it; the body says which of our checks it was.
        let (code, message) = ("1210", "图片输入格式/解析错误");
        return Outcome::Failed { status: 400, code, message, body: json!({ "model": model, "detail": why }) };
    }
    let mut content = if has(LineFault::Invalid) {
        answers::unacceptable(&speaker.analyses, id, key)
    } else {
        speaker.say(id, text, key)
    };
    let mut finish = "stop";
    if has(LineFault::Length) {
        let half = content.chars().count().div_ceil(2);
        content = content.chars().take(half).collect();
        finish = "length";
    }
    if has(LineFault::Sensitive) {
        content.clear();
        finish = "sensitive";
    }
    let prompt_tokens = text.chars().count() * 5 / 8 + 8;
    let completion_tokens = content.chars().count() * 5 / 8 + 1;
    let content = if has(LineFault::Null) { Value::Null } else { json!(content) };
    let mut body = json!({
        "created": job.at / 1000,
        "usage": {
            "completion_tokens": completion_tokens,
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "model": model,
        "id": format!("{}", key.draw("id")),
        "choices": [{"finish_reason": finish, "index": 0, "message": {"role": "assistant", "content": content}}],
    });
    if let Some(body) = body.as_object_mut() {
        let (name, value) = match job.dialect {
            Dialect::Zhipu => ("request_id", json!(format!("{}-{id}", key.draw("request") % 100))),
            Dialect::OpenAi => ("object", json!("chat.completion")),
        };
        body.insert(name.to_owned(), value);
    }
    Outcome::Built(body)
}
