//! One seed: a directory with posts, a server, a program that is started again and again.

use std::{
    collections::HashMap,
    future::Future,
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
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
};
use zbatch::{
    analysis::{AnalysisSet, Sources},
    cli::{Cli, Progress, RunArgs, Verb},
    cmd::{Ended, run::Run, run::finish},
    console::Console,
    drill::{self, Drill, Killed},
    emulator::{
        Clock, Emulator, Settings,
        faults::{FaultPlan, Lot},
        ledger::Ledger,
        schedule::Schedule,
    },
    error::{Error, Result},
    flow::{jobs::Stop, rows::FileMark},
    folder::Entry,
    journal::{self, Step},
    provider::{Client, ClientSettings, Dialect, Key},
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
}

static TOTAL: Mutex<Count> = Mutex::new(Count { starts: 0, kills: 0, faults: 0, creates: 0 });

pub fn count() -> Count {
    *TOTAL.lock().expect("no panic")
}

impl Count {
    pub fn add(more: Self) {
        let mut total = TOTAL.lock().expect("no panic");
        total.starts += more.starts;
        total.kills += more.kills;
        total.faults += more.faults;
        total.creates += more.creates;
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
    /// It is shown in what fails.
    #[expect(dead_code, reason = "shown by Debug")]
    Failed(Error),
    Killed,
}

/// A directory with the inputs of a job, and what its runs leave.
pub struct Place {
    dir: tempfile::TempDir,
    job: Job,
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
        Self { dir, job }
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
        let work = self.dir.path().join("work");
        for path in ["requests", "rows"].iter().flat_map(|folder| files(&work.join(folder))) {
            if !read(&path).unwrap_or_default().ends_with('\n') {
                return Err(format!("{} is torn", path.display()));
            }
        }
        // Downloads may end anywhere, as the provider wrote them: the journal says how long they are, and their hash.
        let fetched = journal::read(&work).map(|state| state.jobs).unwrap_or_default();
        for job in fetched.iter().filter(|job| job.step == Step::Fetched) {
            let marks = job.rows.as_ref().and_then(|rows| rows.files.as_ref()).ok_or("fetched, and no marks of it")?;
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
        journal::read(&self.path().join("work")).is_ok_and(|state| state.jobs.iter().any(|job| job.held))
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
            strip(&mut fault, &self.dir.path().display().to_string());
            fault
        });
        let faults = faults.collect();
        let mut report: Value = serde_json::from_str(&at("work/integration_report.json")).unwrap_or_default();
        strip(&mut report, &self.dir.path().display().to_string());
        Left { enhanced: at("out.jsonl"), faults, report, exit, creates, remote }
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
        };
        let analyses = Arc::new(AnalysisSet::load(&sources).expect("analyses"));
        std::fs::create_dir_all(at("server")).expect("a directory");
        let server = Emulator::open(settings, &at("server"), analyses).expect("a server");
        let dialect = Dialect::find(if job.is_openai() { "openai" } else { "zhipu" }).expect("known");
        let console = if loud { Console::new(false, 1, Progress::Plain) } else { Console::silent() };
        Self { place, args, again, has_looked: false, runtime, server, dialect, console, steps: 0, names: Vec::new() }
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

    /// What `zbatch run` does, one stage after the other; `None` if it was killed.
    fn run(&self, fate: Fate) -> Result<Option<Ended>> {
        let client = Client::new(ClientSettings {
            dialect: self.dialect,
            base_url: Some(format!("http://127.0.0.1{}", self.place.base())),
            key: Key::new("any-key-will-do")?,
            ca_cert: None,
            direct: Some(self.server.router()),
        })?;
        let run = Run::begin(self.run_args(), Some(client), &self.console)?;
        // Places that nobody takes: the driver finds the chunks in the journal.
        let (places, nobody) = mpsc::channel(1 << 10);
        run.cut(places)?;
        drop(nobody);
        let (tell, stop) = watch::channel(None);
        let driven = self.runtime.block_on(async {
            let driver = run.driver(&stop, None);
            let (no_more, cut) = mpsc::channel(1);
            drop(no_more);
            let stopper = async {
                if let Some((after, is_signal)) = fate.stop {
                    tokio::time::sleep(after).await;
                    tell.send_replace(Some(if is_signal { Stop::Signal(15) } else { Stop::TimedOut }));
                }
                std::future::pending::<()>().await;
            };
            let driven = async {
                tokio::select! { biased; end = driver.drive(cut) => end, () = stopper => unreachable!("it never ends") }
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
        use tower::ServiceExt as _;
        let request = axum::http::Request::get("/v1/files?purpose=batch_output&limit=100")
            .header("authorization", "Bearer x")
            .body(axum::body::Body::empty())
            .expect("a request");
        let body = self.runtime.block_on(async {
            let response = self.server.router().oneshot(request).await.expect("infallible");
            axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body")
        });
        let listed: Value = serde_json::from_slice(&body).expect("JSON");
        listed["data"].as_array().map_or(0, Vec::len)
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
fn strip(value: &mut Value, dir: &str) {
    match value {
        Value::Object(map) => {
            map.remove("times");
            map.remove("excerpt");
            map.values_mut().for_each(|value| strip(value, dir));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| strip(value, dir)),
        Value::String(text) => {
            *text = text.replace(dir, "DIR");
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
    }
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
