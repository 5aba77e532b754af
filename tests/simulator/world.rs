//! One seed: a directory with posts, a server, a program that is started again and again.

use std::{
    collections::HashMap,
    future::Future,
    ops::ControlFlow,
    os::unix::fs::MetadataExt as _,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use clap::Parser as _;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::mpsc};
use zbatch::{
    analysis::{AnalysisSet, Sources},
    cli::{Cli, Progress, RunArgs, Verb},
    cmd::{
        Ended,
        run::{Run, finish},
    },
    console::Console,
    drill::{self, Drill, Killed},
    emulator::{Clock, Emulator, Settings, calls::Lot, faults::FaultPlan, ledger::Ledger, schedule::Schedule},
    error::{Error, Result},
    flow::rows::FileMark,
    folder::Entry,
    journal::{self, Step},
    provider::{Client, ClientSettings, Dialect, Key},
    stop::{Stop, StopReason},
};

/// Virtual time at the start, in milliseconds since the epoch.
const START: u64 = 1_800_000_000_000;
/// The longest that a fault takes: longer than any of the client's time-outs.
const LONGEST_FAULT: Duration = Duration::from_secs(400);
/// Without faults a job is done after one start, or two if a batch was still waited for.
const CALM_STARTS: usize = 6;

/// What was done, over all seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub starts: u64,
    pub kills: u64,
    pub faults: u64,
    pub creates: u64,
    /// Seeds in which an older copy of the directory was put back, or results vanished.
    pub hardships: u64,
    /// Copies of the directory in which a job went on, and those that were refused first.
    pub copies: u64,
    pub refused: u64,
    /// Times that files of chunks, or `lock`, were removed.
    pub removals: u64,
    pub calls: Calls,
}

/// Calls on the wire by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub uploads: u64,
    pub creates: u64,
    pub polls: u64,
    pub lists: u64,
    pub downloads: u64,
    pub deletes: u64,
}

impl Calls {
    fn note(&mut self, method: &str, path: &str) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let count = match (method, name) {
            ("POST", "files") => &mut self.uploads,
            ("POST", "batches") => &mut self.creates,
            ("GET", "batches") => &mut self.lists,
            ("GET", "content") => &mut self.downloads,
            ("DELETE", _) => &mut self.deletes,
            ("GET", _) if path.contains("/batches/") => &mut self.polls,
            _ => return,
        };
        *count += 1;
    }

    pub fn add(&mut self, more: Self) {
        self.uploads += more.uploads;
        self.creates += more.creates;
        self.polls += more.polls;
        self.lists += more.lists;
        self.downloads += more.downloads;
        self.deletes += more.deletes;
    }

    /// By name, in the order of a chunk's way.
    pub fn by_name(&self) -> [(&'static str, u64); 6] {
        [
            ("uploads", self.uploads),
            ("creates", self.creates),
            ("polls", self.polls),
            ("lists", self.lists),
            ("downloads", self.downloads),
            ("deletes", self.deletes),
        ]
    }
}

static TOTAL: Mutex<Option<Count>> = Mutex::new(None);

pub fn count() -> Count {
    TOTAL.lock().expect("no panic").unwrap_or_default()
}

impl Count {
    pub fn add(more: Self) {
        let mut total = TOTAL.lock().expect("no panic");
        let total = total.get_or_insert_default();
        total.starts += more.starts;
        total.kills += more.kills;
        total.faults += more.faults;
        total.creates += more.creates;
        total.hardships += more.hardships;
        total.copies += more.copies;
        total.refused += more.refused;
        total.removals += more.removals;
        total.calls.add(more.calls);
    }
}

/// What decides the result lines, and so the bytes at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Decides the posts and the faults of lines.
    pub number: u64,
    /// Without the faults.
    plain: bool,
}

/// Faults of lines, and of batches as their content decides: the same in every run of a job.
const LINE_FAULTS: [&str; 4] = [
    "",
    "fates",
    "invalid=10%,blocked=5%,length=5%,null=5%,sensitive=5%",
    "missing=10%,duplicate=20%,foreign=10%,stray=30%,torn=10%,fates",
];

impl Job {
    pub fn new(number: u64) -> Self {
        Self { number: number % 64, plain: false }
    }

    fn posts(self) -> String {
        let mut lot = Lot::new(self.number);
        let count = 1 + lot.turn() % 14;
        let mut posts = String::new();
        for index in 0..count {
            let post = match lot.turn() % 12 {
                // One is good, whatever the others are.
                _ if index == 0 => json!({"content": "first"}).to_string(),
                0 => "{\"content\": \"half a line".to_owned(),
                1 => json!({"content": null, "index": index}).to_string(),
                2 => json!({"content": "第二条 \"x\" {{labels}}\n\u{2028}", "mood": 9}).to_string(),
                _ => json!({"content": format!("post {index} 你好"), "n": index}).to_string(),
            };
            posts += &post;
            posts.push('\n');
        }
        posts
    }

    pub fn line_faults(self) -> &'static str {
        if self.plain { "" } else { LINE_FAULTS[(self.number % 4) as usize] }
    }

    /// Its result files hold lines that are nobody's.
    pub fn has_extra_lines(self) -> bool {
        self.line_faults().contains("foreign")
    }

    fn is_openai(self) -> bool {
        self.number / 4 % 2 == 1
    }

    fn flags(self) -> Vec<String> {
        let mut flags = vec!["--max-lines".to_owned(), (1 + self.number / 8 % 4).to_string()];
        if self.is_openai() {
            flags.extend(["--provider".to_owned(), "openai".to_owned(), "--model".to_owned(), "gpt-x".to_owned()]);
        }
        if self.number / 32 == 1 {
            // Answers wait in the temp file, all of them.
            flags.extend(["--memory".to_owned(), "1".to_owned()]);
        }
        flags
    }
}

/// What a run leaves, as far as it must be the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    pub enhanced: String,
    pub faults: Vec<Value>,
    pub report: Value,
    pub exit: u8,
    pub creates: usize,
    /// Result files still at the provider: of batches that came short.
    pub remote: usize,
}

/// What happens to one start of the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    /// Killed at this durable step.
    pub step: Option<u64>,
    /// Killed when its future is polled this often.
    pub poll: Option<u64>,
    /// Told to stop after this time.
    pub stop: Option<(Duration, bool)>,
}

/// How a start ended.
#[derive(Debug)]
pub enum Outcome {
    Ended(Ended),
    Failed(Error),
    Killed,
}

/// A directory with the inputs of a job, and what its runs leave.
pub struct Place {
    dir: tempfile::TempDir,
    job: Job,
    /// The work directory. Another path once the job goes on in a copy.
    work: PathBuf,
}

/// A place, a server and their time.
pub struct World {
    place: Place,
    args: Cli,
    /// The same, from a user who has looked at the provider's console and found no batch of a held chunk.
    again: Cli,
    /// They are used for the next start.
    has_looked: bool,
    runtime: Runtime,
    server: Emulator,
    dialect: &'static Dialect,
    console: Console,
    pub steps: u64,
    pub names: Vec<String>,
    calls: Arc<Mutex<Calls>>,
}

/// Memory, if there is a file system of it: thousands of syncs a second.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a fresh directory")
}

#[expect(clippy::disallowed_methods, reason = "an input of a test")]
fn write(path: PathBuf, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
    std::fs::write(path, text).expect("written");
}

#[expect(clippy::disallowed_methods, reason = "an output of a test")]
fn read(path: &Path) -> Option<String> {
    std::fs::read(path).ok().map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
}

impl Place {
    pub fn new(job: Job) -> Self {
        let dir = scratch();
        let at = |name: &str| dir.path().join(name);
        write(at("posts.jsonl"), &job.posts());
        write(
            at("analyses/mood/analysis.json"),
            r#"{"name": "mood", "field": "mood", "rule": {"type": "integer", "min": 1, "max": 5}}"#,
        );
        write(at("analyses/mood/prompt.txt"), "1 to 5: {{content}}");
        write(
            at("analyses/kind/analysis.json"),
            r#"{"name": "kind", "field": "kind", "rule": {"type": "label", "reference_key": "k"},
                "reference": {"file": "kinds.json", "optional": false}}"#,
        );
        write(at("analyses/kind/prompt.txt"), "{{labels}}: {{content}}");
        write(at("analyses/kind/kinds.json"), r#"[{"k": "新闻"}, {"k": "story"}]"#);
        write(at("config.json"), "{}");
        let work = dir.path().join("work");
        Self { dir, job, work }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What follows `zbatch`.
    pub fn words(&self, concurrent: u64) -> Vec<String> {
        let path = |name: &str| self.path().join(name).display().to_string();
        [
            vec![
                "run".to_owned(),
                path("posts.jsonl"),
                "-o".to_owned(),
                path("out.jsonl"),
                "-d".to_owned(),
                path("work"),
            ],
            vec!["--config".to_owned(), path("config.json"), "--faults".to_owned(), path("faults.jsonl")],
            self.analyses(),
            vec!["--max-concurrent-tasks".to_owned(), concurrent.to_string(), "-q".to_owned()],
            self.job.flags(),
        ]
        .concat()
    }

    pub fn analyses(&self) -> Vec<String> {
        let analyses = self.path().join("analyses").display().to_string();
        vec!["--analyses".to_owned(), analyses, "--only".to_owned(), "mood,kind".to_owned()]
    }

    pub fn base(&self) -> &'static str {
        if self.job.is_openai() { "/v1" } else { "/api/paas/v4" }
    }

    /// What must hold at any time, whatever happened.
    /// `most`: how often a content may have been created.
    pub fn check(&self, ledger: &Ledger, golden: &Left, most: u64) -> std::result::Result<(), String> {
        if let Some((content, count)) = ledger.by_content.iter().find(|(_, count)| **count > most) {
            return Err(format!("paid {count} times for the content {content}"));
        }
        let work = &self.work;
        for path in ["requests", "rows"].iter().flat_map(|folder| files(&work.join(folder))) {
            if !read(&path).unwrap_or_default().ends_with('\n') {
                return Err(format!("{} is torn", path.display()));
            }
        }
        // Downloads may end anywhere, as the provider wrote them: the journal says how long they are, and their hash.
        let fetched = journal::read(work).map(|state| state.jobs).unwrap_or_default();
        for job in fetched.iter().filter(|job| job.step() == Step::Fetched) {
            let marks = job.rows().and_then(|rows| rows.files.as_ref()).ok_or("fetched, and no marks of it")?;
            for (mark, which) in marks.iter().zip(["output", "error"]) {
                let path = work.join(format!("results/{}.{which}.jsonl", job.chunk.id));
                if *mark != path.exists().then(|| FileMark::of(&Entry::of(&path).expect("opened")).expect("readable")) {
                    return Err(format!("{} is not what was fetched", path.display()));
                }
            }
        }
        self.check_values(golden)
    }

    /// A chunk waits for the user's word on its create.
    pub fn holds_any(&self) -> bool {
        journal::read(&self.work).is_ok_and(|state| state.jobs.iter().any(|job| job.is_held()))
    }

    /// No post has another one's answer.
    fn check_values(&self, golden: &Left) -> std::result::Result<(), String> {
        // The output may be one with rows that are still absent, never one with wrong rows.
        let Some(text) = read(&self.dir.path().join("out.jsonl")) else { return Ok(()) };
        let posts = |text: &str| -> std::result::Result<Vec<Value>, String> {
            text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("out.jsonl: {e}"))).collect()
        };
        let (here, there) = (posts(&text)?, posts(&golden.enhanced)?);
        if here.len() != there.len() || !text.ends_with('\n') {
            return Err(format!("out.jsonl is torn: {} of {} posts", here.len(), there.len()));
        }
        for (index, (here, there)) in here.iter().zip(&there).enumerate() {
            for field in ["mood", "kind"] {
                let (value, golden) = (&here[field], &there[field]);
                let unasked = value.is_null() || index_holds(&self.job.posts(), index, field, value);
                if value != golden && !unasked {
                    return Err(format!("post {index} has {field} {value}; it should be {golden}"));
                }
            }
        }
        Ok(())
    }

    /// What the last start left.
    pub fn left(&self, exit: u8, creates: usize, remote: usize) -> Left {
        let at = |name: &str| read(&self.dir.path().join(name)).unwrap_or_default();
        let faults = at("faults.jsonl");
        let faults = faults.lines().map(|line| {
            let mut fault: Value = serde_json::from_str(line).expect("a fault");
            self.strip(&mut fault);
            fault
        });
        let faults = faults.collect();
        let report = read(&self.work.join("integration_report.json")).unwrap_or_default();
        let mut report: Value = serde_json::from_str(&report).unwrap_or_default();
        self.strip(&mut report);
        Left { enhanced: at("out.jsonl"), faults, report, exit, creates, remote }
    }

    /// Removes what differs from run to run, and the paths of this place.
    fn strip(&self, value: &mut Value) {
        strip(value, &[(&self.work.display().to_string(), "WORK"), (&self.path().display().to_string(), "DIR")]);
    }
}

impl World {
    /// `seed`: how the world around the job goes; nothing of it may show in the end.
    pub fn new(job: Job, seed: u64, schedule: Option<Schedule>, loud: bool) -> Self {
        let mut lot = Lot::new(seed);
        fastrand::seed(seed);
        let place = Place::new(job);
        let at = |name: &str| place.path().join(name);
        let words = ["zbatch".to_owned()].into_iter().chain(place.words(1 + lot.turn() % 4));
        let words: Vec<String> = words.collect();
        let args = Cli::try_parse_from(&words).expect("arguments");
        let again = ["--on-ambiguous", "again"].map(str::to_owned);
        let again = Cli::try_parse_from(words.into_iter().chain(again)).expect("arguments");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let sources = Sources {
            data_dir: None,
            analyses_dir: Some(at("analyses")),
            only: vec!["mood".to_owned(), "kind".to_owned()],
            files: Vec::new(),
        };
        let plan = FaultPlan::parse(&[job.line_faults().to_owned()]).expect("a plan");
        let settings = Settings {
            latency: Duration::from_secs(lot.turn() % 3000),
            seed: job.number,
            faults: match schedule {
                Some(schedule) => plan.with_schedule(schedule),
                None => plan,
            },
            upstream: None,
            clock: runtime.block_on(async { Clock::Runtime(tokio::time::Instant::now(), START) }),
            ..Settings::default()
        };
        let analyses = Arc::new(AnalysisSet::load(&sources).expect("analyses"));
        std::fs::create_dir_all(at("server")).expect("a directory");
        let server = Emulator::open(settings, &at("server"), analyses).expect("a server");
        let dialect = Dialect::find(if job.is_openai() { "openai" } else { "zhipu" }).expect("known");
        let console = if loud { Console::new(false, 1, Progress::Plain) } else { Console::silent() };
        Self {
            place,
            args,
            again,
            has_looked: false,
            runtime,
            server,
            dialect,
            console,
            steps: 0,
            names: Vec::new(),
            calls: Arc::default(),
        }
    }

    /// The flags of the next start.
    fn flags(&mut self) -> [&mut RunArgs; 2] {
        [&mut self.args, &mut self.again].map(|cli| match &mut cli.verb {
            Verb::Run(args) => &mut **args,
            _ => unreachable!("it is a run"),
        })
    }

    /// Copies the work directory to a new path, and removes the original.
    fn copy_away(&mut self, number: u64) {
        let copy = self.place.path().join(format!("copy-{number}"));
        copy_all(&self.place.work, &copy);
        std::fs::remove_dir_all(&self.place.work).expect("removed");
        for args in self.flags() {
            args.work.work_dir = Some(copy.clone());
        }
        self.place.work = copy;
    }

    /// Whether the program is told that the directory was moved: it is until its journal knows where it lies.
    fn say_moved(&mut self, moved: bool) {
        self.flags().into_iter().for_each(|args| args.work.moved = moved);
    }

    fn run_args(&self) -> &RunArgs {
        match if self.has_looked { &self.again.verb } else { &self.args.verb } {
            Verb::Run(args) => args,
            _ => unreachable!("it is a run"),
        }
    }

    /// The names of all durable steps of a job, as often as they are taken.
    pub fn step_names(job: Job) -> Vec<String> {
        let mut world = Self::new(job, 1, None, false);
        world.start(Fate::default());
        world.names
    }

    /// Time in which nobody runs.
    pub fn pause(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// From here on nothing goes wrong any more.
    pub fn calm(&self) {
        if let Some(schedule) = self.server.schedule() {
            schedule.calm();
        }
    }

    /// Starts the program, which meets its fate.
    pub fn start(&mut self, fate: Fate) -> Outcome {
        if self.run_args().work.moved {
            let here = std::fs::metadata(self.place.work.join(journal::FILE)).map(|journal| journal.ino()).ok();
            let place = journal::read(&self.place.work).ok().and_then(|state| state.location);
            self.say_moved(place.is_none_or(|place| Some(place.inode) != here));
        }
        let names = fate.step.is_none().then(Vec::new);
        drill::set(Some(Drill { kill_at: fate.step, names, ..Drill::default() }));
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.run(fate)));
        let drilled = drill::set(None).unwrap_or_default();
        (self.steps, self.names) = (drilled.taken, drilled.names.unwrap_or_default());
        match ended {
            Ok(Ok(Some(ended))) => Outcome::Ended(ended),
            Ok(Ok(None)) => Outcome::Killed,
            Ok(Err(error)) => {
                self.console.note(&error);
                Outcome::Failed(error)
            }
            Err(panic) if panic.is::<Killed>() => Outcome::Killed,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// What `zbatch run` does: cutting and driving overlapped, then the other stages in turn. `None` if it was killed.
    fn run(&self, fate: Fate) -> Result<Option<Ended>> {
        let client = Client::new(ClientSettings {
            dialect: self.dialect,
            base_url: Some(format!("http://127.0.0.1{}", self.place.base())),
            key: Key::new("any-key-will-do")?,
            ca_cert: None,
            direct: Some(self.counted()),
        })?;
        let run = Run::begin(self.run_args(), Some(client), &self.console)?;
        let stop = Stop::default();
        let driven = self.runtime.block_on(async {
            let stopper = async {
                if let Some((after, is_signal)) = fate.stop {
                    tokio::time::sleep(after).await;
                    stop.ask(if is_signal { StopReason::Signal(15) } else { StopReason::TimedOut });
                    stop.end_last_call().await;
                }
                std::future::pending::<()>().await;
            };
            let driven = async {
                let drive = run.drive(&stop, |_| ControlFlow::Continue(()));
                tokio::select! { biased; end = drive => end, () = stopper => unreachable!("it never ends") }
            };
            KilledAt { polls: fate.poll, driven: Box::pin(driven) }.await
        });
        let Some(end) = driven else { return Ok(None) };
        let end = end?;
        let (no_more, fetched) = mpsc::channel(1);
        drop(no_more);
        let gathered = run.gather(run.store()?, fetched)?;
        run.write_snapshots()?;
        let ended = run.join(&end, gathered, &stop)?;
        finish(end, ended, &run.journal, &self.console).map(Some)
    }

    /// The server, behind a counter of calls.
    fn counted(&self) -> axum::Router {
        let calls = Arc::clone(&self.calls);
        self.server.router().layer(axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                calls.lock().expect("no panic").note(request.method().as_str(), request.uri().path());
                next.run(request)
            },
        ))
    }

    /// All results files that are at the provider are deleted there.
    fn lose_results(&self) {
        for id in self.listed_files() {
            self.ask("DELETE", &format!("/v1/files/{id}"));
        }
    }

    /// What must hold at any time, whatever happened.
    pub fn check(&self, golden: &Left) -> std::result::Result<(), String> {
        self.place.check(&self.server.ledger(), golden, if self.is_blind() { 2 } else { 1 })
    }

    /// Where no listing shows a batch, a create without an answer is sent once more, and then held.
    fn is_blind(&self) -> bool {
        self.server.schedule().is_some_and(Schedule::is_blind)
    }

    /// What the last start left.
    pub fn left(&self, exit: u8) -> Left {
        self.place.left(exit, self.server.ledger().creates.len(), self.remote_files())
    }

    fn remote_files(&self) -> usize {
        self.listed_files().len()
    }

    fn listed_files(&self) -> Vec<String> {
        let listed = self.ask("GET", "/v1/files?purpose=batch_output&limit=100");
        let files = listed["data"].as_array().into_iter().flatten();
        files.filter_map(|file| file["id"].as_str().map(str::to_owned)).collect()
    }

    /// A call of somebody else's.
    fn ask(&self, method: &str, path: &str) -> Value {
        use tower::ServiceExt as _;
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", "Bearer x")
            .body(axum::body::Body::empty())
            .expect("a request");
        let body = self.runtime.block_on(async {
            let response = self.server.router().oneshot(request).await.expect("infallible");
            axum::body::to_bytes(response.into_body(), 1 << 20).await
        });
        body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default()
    }
}

/// The files of a work directory at some moment.
struct Backup(Vec<(PathBuf, Vec<u8>)>);

impl Backup {
    #[expect(clippy::disallowed_methods, reason = "small files of a test")]
    fn of(work: &Path) -> Self {
        let all = std::iter::once(work.to_owned()).chain(["requests", "rows", "results"].map(|name| work.join(name)));
        let paths = all.flat_map(|dir| files(&dir)).filter(|path| path.is_file());
        let name = |path: &Path| path.strip_prefix(work).expect("within").to_owned();
        Self(paths.map(|path| (name(&path), std::fs::read(&path).expect("read"))).collect())
    }

    /// Puts them back, each into the file that is there; what was not there then goes.
    #[expect(clippy::disallowed_methods, reason = "a user does it, not the program")]
    fn restore(&self, work: &Path) {
        for (path, _) in Self::of(work).0 {
            if !self.0.iter().any(|(kept, _)| *kept == path) {
                std::fs::remove_file(work.join(path)).expect("removed");
            }
        }
        for (path, bytes) in &self.0 {
            let path = work.join(path);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, bytes).expect("written");
        }
    }
}

/// What a user, or the provider, does to a job between two starts.
struct Hardships {
    lot: Lot,
    backup: Option<Backup>,
    /// Rows may be gone for good: it need not end as an undisturbed run does.
    pub hurt: bool,
}

impl Hardships {
    /// A mark must be shown, and what does not run must not be in the accounts: who looks at both is tested elsewhere.
    fn of(seed: u64, job: Job, world: &World) -> Option<Self> {
        let fits = world.server.schedule().is_some_and(Schedule::keeps_marks) && !job.line_faults().contains("fates");
        let lot = Lot::new(seed ^ 0x0b5c);
        fits.then_some(Self { lot, backup: None, hurt: false })
    }

    fn strike(&mut self, world: &mut World) {
        let work = &world.place.work;
        match self.lot.turn() % 6 {
            // Without its first line it is a copy of no job, and tells nobody what was made.
            0 | 1 if self.backup.is_none() => {
                let is_job = journal::read(work).is_ok_and(|state| state.config.is_some());
                self.backup = is_job.then(|| Backup::of(work));
            }
            0..=2 => {
                let Some(backup) = self.backup.take() else { return };
                if backup.0.is_empty() {
                    return;
                }
                backup.restore(work);
                self.hurt = true;
                // What was under way then has come to its end, and is listed.
                world.pause(LONGEST_FAULT * 2);
                // Its journal may be of before a copy.
                world.say_moved(true);
            }
            3 => {
                world.lose_results();
                self.hurt = true;
            }
            4 => std::fs::remove_file(work.join("lock")).unwrap_or_default(),
            _ => {}
        }
    }
}

/// What a user does to a work directory between two starts, and takes nothing away for good.
struct Moves {
    lot: Lot,
    copies: u64,
    refused: u64,
    removals: u64,
}

impl Moves {
    fn of(seed: u64) -> Self {
        Self { lot: Lot::new(seed ^ 0x90_7e5), copies: 0, refused: 0, removals: 0 }
    }

    fn make(&mut self, world: &mut World, golden: &Left) -> std::result::Result<(), String> {
        let known = journal::read(&world.place.work).ok();
        let work = world.place.work.clone();
        match self.lot.turn() % 6 {
            0 if work.exists() => {
                self.copies += 1;
                world.copy_away(self.copies);
                let is_noticed = known.is_some_and(|state| state.location.is_some() && !state.jobs.is_empty());
                if is_noticed && self.lot.turn().is_multiple_of(3) {
                    self.refused += 1;
                    refuse(world)?;
                }
                world.say_moved(true);
            }
            1 => self.remove_some(&work, "requests"),
            2 => self.remove_some(&work, "rows"),
            3 if self.lot.turn().is_multiple_of(2) => {
                self.remove_some(&work, "requests");
                self.remove_some(&work, "rows");
            }
            3 => self.removals += u64::from(std::fs::remove_file(work.join("lock")).is_ok()),
            _ => {}
        }
        world.check(golden)
    }

    /// Some files of chunks, or their whole folder.
    fn remove_some(&mut self, work: &Path, folder: &str) {
        let folder = work.join(folder);
        if self.lot.turn().is_multiple_of(3) {
            self.removals += u64::from(std::fs::remove_dir_all(folder).is_ok());
            return;
        }
        let mut all = files(&folder);
        all.sort();
        for file in all {
            if self.lot.turn().is_multiple_of(2) {
                std::fs::remove_file(file).expect("removed");
                self.removals += 1;
            }
        }
    }
}

/// A copy in which nobody says that it is one.
fn refuse(world: &mut World) -> std::result::Result<(), String> {
    world.say_moved(false);
    let before = *world.calls.lock().expect("no panic");
    match world.start(Fate::default()) {
        Outcome::Failed(error) if error.kind().exit_code() == 65 => {}
        other => return Err(format!("a copy was gone on with, and nobody said --moved: {other:?}")),
    }
    let after = *world.calls.lock().expect("no panic");
    if after.by_name() != before.by_name() {
        return Err(format!("calls were sent from a copy that was refused: {before:?}, {after:?}"));
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("an entry");
        if path.is_dir() {
            copy_all(&path, &to);
        } else {
            std::fs::copy(path, to).expect("copied");
        }
    }
}

/// The post came with this value of its own.
fn index_holds(posts: &str, index: usize, field: &str, value: &Value) -> bool {
    let post = posts.lines().nth(index).and_then(|line| serde_json::from_str::<Value>(line).ok());
    post.is_some_and(|post| post[field] == *value)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))).collect()
}

/// Flags that not every run of a job has, or not with the same value.
const GIVEN_TO_SOME: [&str; 5] =
    [" --base-url ", " --max-concurrent-tasks ", " --poll-interval ", " --settle ", " --on-ambiguous "];

/// Removes what differs from run to run: times, the directory, excerpts (which show ids and times of the server).
fn strip(value: &mut Value, paths: &[(&str, &str)]) {
    match value {
        Value::Object(map) => {
            map.remove("times");
            map.remove("excerpt");
            map.values_mut().for_each(|value| strip(value, paths));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| strip(value, paths)),
        Value::String(text) => {
            paths.iter().for_each(|(path, name)| *text = text.replace(path, name));
            // The next command names the server, over a socket its port, and repeats what only this run was given.
            for flag in GIVEN_TO_SOME {
                if let Some((before, after)) = text.split_once(flag) {
                    let after = after.split_once(char::is_whitespace).map_or("", |(_, after)| after);
                    *text = format!("{before} {after}").trim_end().to_owned();
                }
            }
        }
        _ => {}
    }
}

/// A process that is killed at an await.
struct KilledAt<F> {
    polls: Option<u64>,
    driven: Pin<Box<F>>,
}

impl<F: Future> Future for KilledAt<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(left) = &mut self.polls {
            if *left == 0 {
                return Poll::Ready(None);
            }
            *left -= 1;
        }
        self.driven.as_mut().poll(context).map(Some)
    }
}

/// What an undisturbed run of a job leaves; each is run once.
pub fn golden(job: Job) -> Left {
    static GOLDEN: OnceLock<Mutex<HashMap<Job, Left>>> = OnceLock::new();
    let known = GOLDEN.get_or_init(Mutex::default);
    if let Some(left) = known.lock().expect("no panic").get(&job) {
        return left.clone();
    }
    let mut world = World::new(job, 0, None, false);
    let exit = match world.start(Fate::default()) {
        Outcome::Ended(ended) => ended.exit_code(),
        other => panic!("{job:?}: the undisturbed run: {other:?}"),
    };
    let left = world.left(exit);
    if !job.plain {
        let plain = golden(Job { plain: true, ..job });
        world.place.check_values(&plain).unwrap_or_else(|wrong| panic!("{job:?}: the undisturbed run: {wrong}"));
    }
    known.lock().expect("no panic").insert(job, left.clone());
    left
}

/// Runs a seed.
pub fn simulate(seed: u64, loud: bool) -> std::result::Result<Count, String> {
    static PRINTED: AtomicU64 = AtomicU64::new(0);
    let job = Job::new(seed);
    let golden = golden(job);
    let mut lot = Lot::new(seed ^ 0x5eed);
    let schedule = Schedule::new(seed, LONGEST_FAULT);
    let schedule = if job.has_extra_lines() { schedule.that_announces() } else { schedule };
    let mut world = World::new(job, seed, Some(schedule), loud);
    let mut count = Count::default();
    let mut hardships = Hardships::of(seed, job, &world);
    let mut moves = Moves::of(seed);
    // Any number of faults: safety.
    for _ in 0..(lot.turn() % 8).max(1) {
        let fate = draw(&mut lot);
        if loud {
            eprintln!("--- {}: {fate:?}", PRINTED.fetch_add(1, Ordering::Relaxed));
        }
        let outcome = world.start(fate);
        if loud {
            eprintln!("    {outcome:?} after {} steps", world.steps);
        }
        count.starts += 1;
        count.kills += u64::from(matches!(outcome, Outcome::Killed));
        world.check(&golden)?;
        world.pause(Duration::from_millis(lot.turn() % 300_000));
        if let Some(hardships) = &mut hardships {
            hardships.strike(&mut world);
        }
        moves.make(&mut world, &golden)?;
        if loud {
            eprintln!("    copies {}, refused {}, removals {}", moves.copies, moves.refused, moves.removals);
        }
    }
    (count.copies, count.refused, count.removals) = (moves.copies, moves.refused, moves.removals);
    let is_hurt = hardships.is_some_and(|hardships| hardships.hurt);
    count.hardships = u64::from(is_hurt);
    // Faults that stop: liveness.
    world.calm();
    for start in 0.. {
        if loud {
            eprintln!("--- calm");
        }
        let outcome = world.start(Fate::default());
        count.starts += 1;
        world.check(&golden)?;
        world.pause(Duration::from_secs(600));
        match outcome {
            // What is gone is told: rows that are absent, or chunks that wait for the user's word.
            Outcome::Ended(Ended::WithFaults) if is_hurt => break,
            Outcome::Failed(error) if is_hurt && world.place.holds_any() => {
                let code = error.kind().exit_code();
                // 69: the provider's own words refused it time and again.
                if !matches!(code, 69 | 75) {
                    return Err(format!("chunks are held, and the exit code is {code}: {error}"));
                }
                break;
            }
            Outcome::Ended(ended @ (Ended::Finished | Ended::WithFaults)) => {
                let mut left = world.left(ended.exit_code());
                if world.is_blind() {
                    // A second batch of a chunk leaves its files behind; that there is no third was checked.
                    (left.creates, left.remote) = (golden.creates, golden.remote);
                }
                if left != golden {
                    return Err(difference(&left, &golden));
                }
                break;
            }
            // Listings are honest now: the user can rely on them too.
            _ if world.place.holds_any() && start < CALM_STARTS => world.has_looked = true,
            other if start >= CALM_STARTS => return Err(format!("it does not end without faults: {other:?}")),
            _ => {}
        }
    }
    count.creates = world.server.ledger().creates.len() as u64;
    count.faults = world.server.schedule().map_or(0, Schedule::met);
    count.calls = *world.calls.lock().expect("no panic");
    Ok(count)
}

fn draw(lot: &mut Lot) -> Fate {
    let mut fate = Fate::default();
    match lot.turn() % 8 {
        0..3 => fate.step = Some(1 + lot.turn() % (1 << (lot.turn() % 10))),
        3..5 => fate.poll = Some(lot.turn() % (1 << (lot.turn() % 10))),
        5 => fate.stop = Some((Duration::from_millis(lot.turn() % 2_000_000), lot.turn().is_multiple_of(2))),
        _ => {}
    }
    fate
}

pub fn difference(left: &Left, golden: &Left) -> String {
    let of = |what: &str, left: &dyn std::fmt::Debug, golden: &dyn std::fmt::Debug| {
        format!("{what} differs.\n  it is:     {left:?}\n  should be: {golden:?}")
    };
    if left.enhanced != golden.enhanced {
        of("the output", &left.enhanced, &golden.enhanced)
    } else if left.faults != golden.faults {
        let at = left.faults.iter().zip(&golden.faults).position(|(left, golden)| left != golden);
        let at = at.unwrap_or(left.faults.len().min(golden.faults.len()));
        of(&format!("line {at} of the faults file"), &left.faults.get(at), &golden.faults.get(at))
    } else if left.report != golden.report {
        format!("the report differs.\n  it is:     {}\n  should be: {}", left.report, golden.report)
    } else {
        let rest = |left: &Left| (left.exit, left.creates, left.remote);
        of("exit code, creates or result files at the provider", &rest(left), &rest(golden))
    }
}
