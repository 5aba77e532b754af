//! A faithful local server of the Batch API (`docs/providers.md`): accountant and adversary of our tests, a way
//! to run without key and network, and with `--upstream` a Batch API in front of any chat server.
//!
//! In the middle is a pure machine ([`state`]) that is told the time; around it a log that makes each step durable
//! before its reply ([`log`]), result files that depend on seed and request lines only ([`results`]), a plan of what
//! goes wrong at which point ([`faults`]), and HTTP on top ([`http`]), over a socket or called in the same process.
//!
//! A state directory holds `state.jsonl` (see [`log`]) and `files/`; a server starts only in one that is new, empty, or made by an
//! emulator, and removes only files with names of its own. A killed server goes on where it was;
//! [`ledger::read`] tells from the directory alone what was paid for.

mod answers;
pub mod calls;
mod dialect;
pub mod faults;
mod guess;
mod http;
mod input;
pub mod ledger;
mod log;
mod results;
pub mod schedule;
pub mod state;
mod upstream;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::fs::FileType;
use tokio::sync::Semaphore;

pub use self::{dialect::Dialect, log::NAME as STATE_FILE, upstream::Upstream};
use self::{
    dialect::Refusal,
    faults::FaultPlan,
    log::Log,
    results::{Job, Model},
    schedule::Schedule,
    state::{Create, Event, Fate, Look, Metadata, Millis, State, Status, StoredFile, Work, is_file_id},
};
use crate::{
    analysis::AnalysisSet,
    blocking,
    cli::EmulatorArgs,
    drill,
    error::{Error, Result},
    folder::{Entry, Folder},
    units::count,
};

/// Batches whose result files are made at one time; each holds the places of its lines and one line.
const WORKERS: usize = 2;
/// Batch ids are 19 digits: milliseconds since this time, shifted, and a counter.
const ID_EPOCH: Millis = 1_288_834_974_657;
const ID_SHIFT: u32 = 22;

/// What time it is. A test, or a later simulator, sets it.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    Manual(Arc<AtomicU64>),
    /// The time of the async runtime, which may be virtual: what it was at an instant.
    Runtime(tokio::time::Instant, Millis),
}

impl Clock {
    pub fn now(&self) -> Millis {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
            }
            Self::Manual(now) => now.load(Ordering::Relaxed),
            Self::Runtime(since, then) => then + u64::try_from(since.elapsed().as_millis()).unwrap_or(Millis::MAX),
        }
    }
}

/// How the emulator behaves.
#[derive(Debug, Default)]
pub struct Settings {
    /// A batch takes at least this long.
    pub latency: Duration,
    pub seed: u64,
    pub faults: FaultPlan,
    pub upstream: Option<Upstream>,
    /// The hash of the key that clients must send; `None`: any key will do.
    pub token: Option<blake3::Hash>,
    pub limits: Limits,
    pub clock: Clock,
}

impl Settings {
    /// The settings that the flags ask for.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] for a fault that does not exist, or an upstream that is no URL.
    pub fn of(args: &EmulatorArgs) -> Result<Self> {
        Ok(Self {
            latency: args.latency.unwrap_or_default(),
            seed: args.seed.unwrap_or_default(),
            faults: FaultPlan::parse(&args.fault)?,
            upstream: args.upstream.as_deref().map(Upstream::resolve).transpose()?,
            ..Self::default()
        })
    }
}

/// What a server holds at most. An upload or a create beyond it is refused; what is there already goes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files that are not deleted.
    pub files: u64,
    pub bytes: u64,
    /// Bytes of the state log: a batch takes about 2 KiB, and as much memory.
    pub log: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { files: 20_000, bytes: 1 << 40, log: 256 << 20 }
    }
}

/// The server. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Emulator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    model: Model,
    files: Folder,
    core: Mutex<Core>,
    workers: Arc<Semaphore>,
    /// Uploads that may come in at one time.
    uploads: Semaphore,
}

#[derive(Debug)]
struct Core {
    state: State,
    log: Log,
    /// Batches whose result files are being made.
    working: HashMap<String, Arc<Progress>>,
    /// Why the result files of a batch could not be made; told to the next poll, then tried again.
    trouble: HashMap<String, Refusal>,
}

/// What a worker and the server tell each other.
#[derive(Debug, Default)]
pub struct Progress {
    pub done: AtomicU64,
    pub stop: AtomicBool,
}

impl Emulator {
    /// Opens a state directory, or starts a new one.
    ///
    /// # Errors
    /// [`crate::error::Kind::TryAgain`] if another emulator uses it, [`crate::error::Kind::Input`] if it is damaged, or holds files
    /// that no emulator made.
    pub fn open(settings: Settings, state_dir: &Path, analyses: Arc<AnalysisSet>) -> Result<Self> {
        let dir = Folder::make(state_dir)?;
        if !log::is_ours(&dir, &dir.list()?)? {
            return Err(Error::input(format!("{} holds files that no emulator made", state_dir.display()))
                .fix("name an empty directory, or one that is not there yet"));
        }
        let (log, mut state) = Log::open(&dir)?;
        let files = dir.make_folder(log::FILES)?;
        state.note_restart();
        sweep(&files, &state)?;
        let core = Core { state, log, working: HashMap::new(), trouble: HashMap::new() };
        let model = Model { analyses, seed: settings.seed, said_so: AtomicBool::new(false) };
        Ok(Self(Arc::new(Inner {
            settings,
            model,
            files,
            core: Mutex::new(core),
            workers: Arc::new(Semaphore::new(WORKERS)),
            uploads: Semaphore::new(UPLOADS),
        })))
    }

    /// The API, to be served on a socket or called in the same process.
    pub fn router(&self) -> axum::Router {
        http::router(self)
    }

    pub fn ledger(&self) -> ledger::Ledger {
        ledger::Ledger::of(&self.core().state)
    }

    /// What goes wrong by schedule, if anything does.
    pub fn schedule(&self) -> Option<&Schedule> {
        self.faults().schedule()
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // The state is changed in one step, after its checks: a panic elsewhere leaves it whole.
        self.0.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        self.0.settings.clock.now()
    }

    fn faults(&self) -> &FaultPlan {
        &self.0.settings.faults
    }

    /// Work runs while a batch is in progress.
    fn early(&self) -> bool {
        self.0.settings.upstream.is_some()
    }

    /// Runs a step of the machine where it may wait for the disk.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Self, &mut Core) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let server = self.clone();
        blocking::run(move || {
            let mut core = server.core();
            drill::spared(|| step(&server, &mut core))
        })
        .await
    }

    /// Takes a checked upload in, from its temporary place.
    async fn store(&self, part: Part, file: StoredFile) -> Result<StoredFile, Refusal> {
        self.step(move |server, core| {
            core.check_room(&server.0.settings.limits, file.bytes)?;
            let mut file = file;
            file.at = server.now();
            let mark = format!("{} {} {}", core.state.files().len(), file.at, file.blake3);
            let digest = blake3::hash(mark.as_bytes()).to_hex();
            file.id = format!("{}_{}", file.at / 1000, digest.get(..32).unwrap_or_default());
            let named = part.0.rename(file.id.as_ref()).and_then(|()| server.0.files.sync());
            named.map_err(|e| Refusal::of(&e))?;
            core.commit(Event::Stored { file: file.clone() })?;
            if server.faults().schedule().is_some_and(Schedule::drops_input) {
                core.commit(Event::Deleted { file: file.id.clone(), at: server.now(), asked: false })?;
            }
            Ok(file)
        })
        .await
    }

    /// Accepts a batch.
    async fn create(
        &self,
        file: String,
        endpoint: String,
        auto_delete: bool,
        metadata: Option<Metadata>,
    ) -> Result<String, Refusal> {
        let id = self
            .step(move |server, core| {
                let Some(input) = core.state.file(&file) else { return Err(Refusal::not_found("file", &file)) };
                core.check_room(&server.0.settings.limits, 0)?;
                if server.faults().is_full(core.state.running()) {
                    return Err(Refusal::new(429, "too_many_tasks", "too many batches of this account run"));
                }
                let fate = server.faults().fate(&input.blake3);
                let at = server.now();
                let count = core.state.batches().len() as u64;
                // The highest bit that still gives 19 digits is set whatever a test's clock says.
                let ticks = at.saturating_sub(ID_EPOCH).max(1 << 38) << ID_SHIFT;
                let batch = format!("batch_{}", ticks | (count & ((1 << ID_SHIFT) - 1)));
                let latency = Millis::try_from(server.0.settings.latency.as_millis()).unwrap_or(Millis::MAX);
                let due = at.saturating_add(latency);
                let create = Create { file, endpoint, auto_delete, metadata, due, fate };
                core.commit(Event::Created { batch: batch.clone(), at, create })?;
                Ok(batch)
            })
            .await?;
        self.work_on(std::slice::from_ref(&id));
        Ok(id)
    }

    /// Shows a batch to somebody, after the step that is due.
    async fn look(&self, id: &str, look: Look) -> Result<(), Refusal> {
        let id = id.to_owned();
        let shown = id.clone();
        self.step(move |server, core| {
            if core.state.batch(&id).is_none() {
                return Err(Refusal::not_found("batch", &id));
            }
            if let Some(trouble) = core.trouble.remove(&id) {
                return Err(trouble);
            }
            let now = server.now();
            if let Some(to) = core.state.next_status(&id, now, look, server.early()) {
                core.commit(Event::Moved { batch: id.clone(), at: now, to })?;
                server.end(core, &id)?;
            }
            core.state.note_look(&id, look);
            Ok(())
        })
        .await?;
        self.work_on(&[shown]);
        Ok(())
    }

    async fn cancel(&self, id: &str) -> Result<(), Refusal> {
        let id = id.to_owned();
        let cancelled = id.clone();
        self.step(move |server, core| {
            let Some(batch) = core.state.batch(&id) else { return Err(Refusal::not_found("batch", &id)) };
            if batch.status == Status::Cancelling {
                return Ok(());
            }
            if batch.status.is_terminal() {
                return Err(Refusal::parameter(format!("batch {id} has ended")));
            }
            core.commit(Event::Moved { batch: id.clone(), at: server.now(), to: Status::Cancelling })?;
            if let Some(progress) = core.working.get(&id) {
                progress.stop.store(true, Ordering::Relaxed);
            }
            Ok(())
        })
        .await?;
        self.work_on(&[cancelled]);
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<(), Refusal> {
        let id = id.to_owned();
        self.step(move |server, core| {
            if core.state.file(&id).is_none() {
                return Err(Refusal::not_found("file", &id));
            }
            core.commit(Event::Deleted { file: id.clone(), at: server.now(), asked: true })?;
            server.discard(core, &id);
            Ok(())
        })
        .await
    }

    /// With the end of a batch its input is deleted, unless it was asked to stay.
    fn end(&self, core: &mut Core, id: &str) -> Result<(), Refusal> {
        let Some(batch) = core.state.batch(id).filter(|batch| batch.status.is_terminal()) else { return Ok(()) };
        let (file, auto_delete) = (batch.create.file.clone(), batch.create.auto_delete);
        if auto_delete && core.state.file(&file).is_some() {
            core.commit(Event::Deleted { file: file.clone(), at: self.now(), asked: false })?;
        }
        self.discard(core, &file);
        Ok(())
    }

    /// Removes a deleted file's bytes once nothing reads them. What stays behind is swept at the next start.
    fn discard(&self, core: &Core, file: &str) {
        if !core.state.bytes_needed(file) {
            let _swept_later = self.0.files.file(file).remove();
        }
    }

    /// Starts making the result files of those batches whose time it is.
    fn work_on(&self, ids: &[String]) {
        for id in ids {
            let mut core = self.core();
            let now = self.now();
            if core.working.contains_key(id) || !core.state.needs_work(id, now, self.early()) {
                continue;
            }
            let Some(batch) = core.state.batch(id) else { continue };
            let job = Job {
                batch: id.clone(),
                at: batch.at,
                dialect: Dialect::of_endpoint(&batch.create.endpoint),
                input: self.0.files.file(&batch.create.file),
                input_blake3: batch.blake3.clone(),
                files: self.0.files.clone(),
                share: batch.share,
                all_fail: batch.create.fate == Fate::AllErrors,
                status: batch.status,
                now,
            };
            let progress = Arc::new(Progress::default());
            core.working.insert(id.clone(), Arc::clone(&progress));
            drop(core);
            tokio::spawn(self.clone().work(job, progress));
        }
    }

    async fn work(self, job: Job, progress: Arc<Progress>) {
        let id = job.batch.clone();
        // The semaphore is never closed.
        let _permit = Arc::clone(&self.0.workers).acquire_owned().await.ok();
        let worked: Result<Work, Refusal> = match &self.0.settings.upstream {
            Some(upstream) => {
                let made = upstream.produce(job, self.0.settings.seed, self.faults(), &progress).await;
                made.map_err(|e| Refusal::of(&e))
            }
            None => {
                let server = self.clone();
                let made = blocking::run(move || {
                    drill::spared(|| results::produce(&job, &server.0.model, &server.0.settings.faults))
                });
                made.await.map_err(|e| Refusal::of(&e))
            }
        };
        let told = self.step(move |server, core| {
            core.working.remove(&id);
            let done = worked.and_then(|work| core.commit(Event::Worked { batch: id.clone(), at: server.now(), work }));
            if let Err(trouble) = done {
                core.trouble.insert(id, trouble);
            }
            Ok(())
        });
        if let Err(refusal) = told.await {
            tracing::error!("emulator: {}", refusal.message);
        }
    }
}

/// An upload on its way; removed when it is dropped, unless it was renamed.
#[derive(Debug)]
struct Part(Entry);

impl Drop for Part {
    fn drop(&mut self) {
        let _renamed = self.0.remove();
    }
}

impl Core {
    /// Whether one more file of so many bytes, or one more batch, may come in.
    fn check_room(&self, limits: &Limits, bytes: u64) -> Result<(), Refusal> {
        let full = |what: String| Err(Refusal::disk(format!("the emulator is full: {what}")));
        if self.log.bytes >= limits.log {
            return full(format!("its state log has {} bytes; start one with an empty --state", self.log.bytes));
        }
        let (stored, held) = (self.state.stored, self.state.stored_bytes);
        if bytes > 0 && (stored >= limits.files || held.saturating_add(bytes) > limits.bytes) {
            let files = count(stored, "file");
            return full(format!("it holds {files} of {held} bytes; delete some, or start one with an empty --state"));
        }
        Ok(())
    }

    /// One step: possible, then on disk, then in force.
    fn commit(&mut self, event: Event) -> Result<(), Refusal> {
        self.state.check(&event).map_err(Refusal::internal)?;
        self.log.append(&event).map_err(|e| Refusal::of(&e))?;
        self.state.apply(event).map_err(Refusal::internal)
    }
}

/// Removes what a killed server left: uploads that were not accepted, results that were not announced.
fn sweep(files: &Folder, state: &State) -> Result<()> {
    let known: HashSet<&str> =
        state.files().iter().map(|held| held.file.id.as_str()).filter(|id| state.bytes_needed(id)).collect();
    for (name, kind) in files.list()? {
        let ours = |name: &&str| kind != FileType::Directory && is_own_name(name);
        if let Some(name) = name.to_str().filter(ours).filter(|name| !known.contains(name)) {
            files.file(name).remove()?;
        }
    }
    Ok(())
}

/// A file's id, or the temporary name of an upload or a result file, which begins with the id or a part of it.
fn is_own_name(name: &str) -> bool {
    let temporary = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part"));
    let Some((stem, _)) = temporary.and_then(|name| name.split_once(['.', '-'])) else { return is_file_id(name) };
    stem == UPLOAD
        || stem.split_once('_').is_some_and(|(seconds, digest)| {
            let is = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
            is(seconds, 10) && is(digest, 16)
        })
}

/// How long a client may take to send a request's head; a connection that is idle for as long is closed.
const HEAD: Duration = Duration::from_secs(20);
/// Connections at one time.
const CONNECTIONS: usize = 512;
/// The pause after the system had no connection to give, for want of file descriptors.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);
/// Uploads that come in at one time; each may have 100 MB.
const UPLOADS: usize = 64;
/// The name of an upload before it has an id.
const UPLOAD: &str = "upload";

/// Serves until the future is dropped. Every step is on disk before its reply, so there is nothing to finish.
pub async fn serve(emulator: &Emulator, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    let service = TowerToHyperService::new(http::for_sockets(emulator));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let rooms = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(NO_DESCRIPTOR).await;
            continue;
        };
        let Ok(room) = Arc::clone(&rooms).try_acquire_owned() else {
            // A client that does not read it sees the connection end.
            let _not_read = stream.try_write(http::TOO_MANY.as_bytes());
            continue;
        };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            // A connection that breaks is the client's business.
            let _broken = connection.await;
            drop(room);
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, Response, StatusCode},
    };
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{analysis::Sources, lines::output::write_whole};

    const START: Millis = 1_800_000_000_000;

    fn open(dir: &Path, faults: &str, latency: Duration) -> (Emulator, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(START));
        let settings = Settings {
            latency,
            faults: FaultPlan::parse(&[faults.to_owned()]).expect("a plan"),
            clock: Clock::Manual(Arc::clone(&now)),
            ..Settings::default()
        };
        let analyses = Arc::new(AnalysisSet::load(&Sources::default()).expect("embedded data"));
        (Emulator::open(settings, dir, analyses).expect("opens"), now)
    }

    async fn call(server: &Emulator, method: &str, path: &str, body: impl Into<Body>) -> Response<Body> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/paas/v4{path}"))
            .header("authorization", "Bearer k")
            .header("content-type", "multipart/form-data; boundary=xx")
            .body(body.into())
            .expect("a request");
        server.router().oneshot(request).await.expect("infallible")
    }

    async fn json(response: Response<Body>) -> Value {
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(status, StatusCode::OK, "{body:?}");
        serde_json::from_slice(&body).expect("JSON")
    }

    async fn upload(server: &Emulator, lines: &str) -> String {
        let parts = [
            "--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--xx\r\n",
            "Content-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n",
            lines,
            "\r\n--xx--\r\n",
        ];
        let parts = parts.map(|part| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(part.as_bytes())));
        let stored = json(call(server, "POST", "/files", Body::from_stream(futures::stream::iter(parts))).await).await;
        stored["id"].as_str().expect("an id").to_owned()
    }

    fn lines() -> String {
        let line = |n| {
            json!({"custom_id": format!("topic_analysis_{n}"), "method": "POST", "url": "/v4/chat/completions",
                "body": {"model": "glm-4-air", "messages": [{"role": "user", "content": format!("地铁{n}")}]}})
        };
        (0..20).map(|n| line(n).to_string() + "\n").collect()
    }

    fn create(file: &str) -> String {
        json!({"input_file_id": file, "endpoint": "/v4/chat/completions", "auto_delete_input_file": false}).to_string()
    }

    /// Polls to the end; the output's bytes.
    async fn finish(server: &Emulator, batch: &str) -> bytes::Bytes {
        for _ in 0..2000 {
            let shown = json(call(server, "GET", &format!("/batches/{batch}"), "").await).await;
            if shown["status"] == "completed" {
                let path = format!("/files/{}/content", shown["output_file_id"].as_str().expect("an id"));
                let response = call(server, "GET", &path, "").await;
                return response.into_body().collect().await.expect("a body").to_bytes();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("batch {batch} does not end")
    }

    #[tokio::test]
    async fn time_is_what_the_clock_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let (server, now) = open(dir.path(), "list_lag=10s", Duration::from_secs(60));
        let file = upload(&server, &lines()).await;
        let batch = json(call(&server, "POST", "/batches", create(&file)).await).await;
        assert_eq!(batch["created_at"], START);
        let path = format!("/batches/{}", batch["id"].as_str().expect("an id"));
        let status = async || json(call(&server, "GET", &path, "").await).await["status"].clone();
        assert_eq!([status().await, status().await, status().await], ["validating", "in_progress", "in_progress"]);
        assert_eq!(json(call(&server, "GET", "/batches", "").await).await["data"], json!([]));
        now.store(START + 10_000, Ordering::Relaxed);
        assert_eq!(json(call(&server, "GET", "/batches", "").await).await["data"][0]["id"], batch["id"]);
        assert_eq!(status().await, "in_progress");
        now.store(START + 60_000, Ordering::Relaxed);
        assert_eq!(status().await, "finalizing");
    }

    #[tokio::test]
    async fn a_lost_reply_is_an_io_error_in_one_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let (server, _) = open(dir.path(), "lose_create=1,drop_create=1", Duration::ZERO);
        let file = upload(&server, &lines()).await;
        for accepted in [0, 1, 2] {
            let reply = call(&server, "POST", "/batches", create(&file)).await.into_body().collect().await;
            assert_eq!(reply.is_ok(), accepted == 2);
            assert_eq!(server.ledger().creates.len(), accepted);
        }
        assert_eq!(server.ledger().by_content.values().collect::<Vec<_>>(), [&2], "both are paid for");
    }

    #[tokio::test]
    async fn r11_8_a_full_server_takes_no_more_and_ends_what_it_has() {
        let roomy = Limits::default();
        for (limits, says) in [
            (Limits { files: 1, ..roomy }, "it holds 1 file of "),
            (Limits { bytes: 4_000, ..roomy }, "delete some, or start one"),
            (Limits { log: 400, ..roomy }, "its state log has "),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let analyses = Arc::new(AnalysisSet::load(&Sources::default()).expect("embedded data"));
            let settings = Settings { limits, ..Settings::default() };
            let server = Emulator::open(settings, dir.path(), analyses).expect("opens");
            let file = upload(&server, &lines()).await;
            let batch = json(call(&server, "POST", "/batches", create(&file)).await).await;
            let form = format!(
                "--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--xx\r\n\
                 Content-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{}\r\n--xx--\r\n",
                lines()
            );
            let refused = call(&server, "POST", "/files", form).await;
            assert_eq!(refused.status(), StatusCode::INSUFFICIENT_STORAGE, "{limits:?}");
            let why = refused.into_body().collect().await.expect("a body").to_bytes();
            assert!(String::from_utf8_lossy(&why).contains(says), "{why:?}");
            assert!(!finish(&server, batch["id"].as_str().expect("an id")).await.is_empty());
            let left = std::fs::read_dir(dir.path().join("files")).expect("listed").count();
            assert_eq!(left, 2, "the upload that was refused is gone");
        }
    }

    #[test]
    fn r11_3_names_of_its_own() {
        let id = "1800000000_00112233445566778899aabbccddeeff";
        let part = format!(".{}.0011aabb.part", id.chars().take(40).collect::<String>());
        for own in [id, &part, ".upload.0011aabb.part", ".upload-7.part"] {
            assert!(is_own_name(own), "{own}");
        }
        let long = "1".repeat(21) + "_00112233445566778899aabbccddeeff";
        for other in [
            "",
            ".",
            "..",
            "a",
            "1_2",
            "_",
            "x.part",
            ".part",
            ".x.part",
            ".1_.x.part",
            ".1_g.x.part",
            &id.to_uppercase(),
            &long,
        ] {
            assert!(!is_own_name(other), "{other}");
        }
    }

    /// A 500 would be tried again, for minutes, on a disk that stays full.
    #[tokio::test]
    async fn s7_a_disk_that_fails_is_told_as_such() {
        let dir = tempfile::tempdir().expect("a directory");
        let (server, now) = open(dir.path(), "", Duration::from_secs(1));
        let file = upload(&server, &lines()).await;
        let batch = json(call(&server, "POST", "/batches", create(&file)).await).await;
        let path = format!("/batches/{}", batch["id"].as_str().expect("an id"));
        std::fs::remove_dir_all(dir.path().join("files")).expect("removed");
        now.store(START + 1_000, Ordering::Relaxed);
        let told = async |call: Response<Body>| {
            let status = call.status();
            (
                status,
                String::from_utf8_lossy(&call.into_body().collect().await.expect("a body").to_bytes()).into_owned(),
            )
        };
        let form =
            "--xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{}\r\n--xx--\r\n";
        let (status, why) = told(call(&server, "POST", "/files", form).await).await;
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{why}");
        assert!(why.contains("write ") && why.contains("upload: No such file"), "{why}");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let (status, why) = told(call(&server, "GET", &path, "").await).await;
            if status == StatusCode::INSUFFICIENT_STORAGE {
                assert!(why.contains("open ") && why.contains("No such file"), "{why}");
                break;
            }
            assert!(std::time::Instant::now() < deadline, "it is never told: {why}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Wherever a killed server left its log, the next one comes to the same end.
    #[tokio::test]
    async fn the_log_may_end_after_any_event() {
        let dir = tempfile::tempdir().expect("a directory");
        let (server, _) = open(dir.path(), "", Duration::ZERO);
        let file = upload(&server, &lines()).await;
        let batch = json(call(&server, "POST", "/batches", create(&file)).await).await;
        let id = batch["id"].as_str().expect("an id").to_owned();
        let golden = finish(&server, &id).await;
        let log = crate::lines::input::read_small(&dir.path().join(log::NAME), 1 << 20).expect("a log");
        let input = crate::lines::input::read_small(&dir.path().join("files").join(&file), 1 << 20).expect("input");
        let ends: Vec<usize> = log.match_indices('\n').map(|(at, _)| at + 1).collect();
        // opened, stored, created, in_progress, finalizing, worked, completed
        assert_eq!(ends.len(), 7);
        for cut in ends.iter().flat_map(|end| [*end, end - 5]).filter(|cut| *cut >= ends[2]) {
            let again = tempfile::tempdir().expect("a directory");
            std::fs::create_dir(again.path().join("files")).expect("made");
            write_whole(&again.path().join("files").join(&file), input.as_bytes()).expect("written");
            write_whole(&again.path().join("files/1_00112233445566778899aabbccddeeff"), b"x").expect("written");
            if cut >= ends[5] {
                let output = log::read(dir.path()).expect("a state");
                let output = &output.files().last().expect("an output").file.id;
                write_whole(&again.path().join("files").join(output), &golden).expect("written");
            }
            write_whole(&again.path().join(log::NAME), &log.as_bytes()[..cut]).expect("written");
            let (server, _) = open(again.path(), "", Duration::ZERO);
            assert_eq!(finish(&server, &id).await, golden, "cut at {cut}");
            let ledger = server.ledger();
            assert_eq!((ledger.creates.len(), ledger.requests_billed), (1, 20));
            assert_eq!(std::fs::read_dir(again.path().join("files")).expect("listed").count(), 2, "swept");
            let next = json(call(&server, "POST", "/batches", create(&file)).await).await;
            assert_ne!(next["id"], id.as_str(), "ids go on");
        }
    }
}
