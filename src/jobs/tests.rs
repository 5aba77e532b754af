use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    extract::Path as Segment,
    http::StatusCode,
    response::IntoResponse as _,
    routing::{delete, get, post},
};
use serde_json::{Value, json};

use tokio::sync::mpsc;

use super::*;
use crate::{
    cli,
    console::Console,
    flow::chunks::{Chunk, InputMark},
    journal::{Config, State, start},
    provider::{BatchId, ClientSettings, Dialect, FileId, Key},
};

/// What a server did: batches in the order of their creation, and calls by name.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<(Vec<Value>, Vec<String>)>>);

impl Seen {
    fn call(&self, name: impl Into<String>) {
        self.0.lock().expect("whole").1.push(name.into());
    }

    fn add(&self, batch: Value) {
        self.0.lock().expect("whole").0.push(batch);
    }

    fn batches(&self) -> Vec<Value> {
        self.0.lock().expect("whole").0.clone()
    }

    fn calls(&self) -> Vec<String> {
        self.0.lock().expect("whole").1.clone()
    }

    fn count(&self, name: &str) -> usize {
        self.0.lock().expect("whole").1.iter().filter(|call| call.starts_with(name)).count()
    }
}

/// A server that takes files, and lists and shows the batches it has; creates are up to the test.
fn server(seen: &Seen) -> Router {
    let (uploads, lists, shown, cancels, deletes) =
        (seen.clone(), seen.clone(), seen.clone(), seen.clone(), seen.clone());
    Router::new()
        .route(
            "/x/files",
            post(async move || {
                uploads.call("upload");
                Json(json!({"id": format!("file-{}", uploads.count("upload"))}))
            }),
        )
        .route(
            "/x/files/{id}",
            delete(async move |Segment(id): Segment<String>| {
                deletes.call(format!("delete {id}"));
                Json(json!({"deleted": true}))
            }),
        )
        .route(
            "/x/batches/{id}",
            get(async move |Segment(id): Segment<String>| {
                let found = shown.batches().into_iter().find(|batch| batch["id"] == id.as_str());
                found.map(Json).ok_or(StatusCode::NOT_FOUND)
            }),
        )
        .route(
            "/x/batches/{id}/cancel",
            post(async move |Segment(id): Segment<String>| {
                cancels.call(format!("cancel {id}"));
                Json(json!({"id": id, "status": "cancelling"}))
            }),
        )
        .route(
            "/x/batches",
            get(async move || {
                lists.call("list");
                // It always says that there is more.
                Json(json!({"data": lists.batches(), "has_more": true}))
            }),
        )
}

/// A work directory of `chunks` chunks of one row each, and one of another model.
fn directory(dir: &std::path::Path, chunks: u32) -> (WorkDir, Journal) {
    let mut work = WorkDir::create(dir).expect("a directory");
    let journal = work.journal().expect("a journal");
    let config = Config {
        input: "posts".to_owned(),
        analyses: Vec::new(),
        model: "m".to_owned(),
        multimodal_model: "v".to_owned(),
        temperature: String::new(),
        provider: "zhipu".to_owned(),
        emulate: false,
        max_lines: 1,
        max_bytes: 1,
        start_index: 0,
        missing: false,
        skip: None,
        image_urls: cli::ImageUrls::All,
        upstream: None,
    };
    journal.append(&start("run".to_owned(), false, config)).expect("appended");
    for part in 1..=chunks {
        cut(&work, &journal, part, if part == chunks { "glm-4-air" } else { "glm-4v-plus" });
    }
    (work, journal)
}

/// A chunk of one row, in the journal.
fn cut(work: &WorkDir, journal: &Journal, part: u32, model: &str) {
    let id = crate::flow::ChunkId { analysis: "a".to_owned(), vision: false, part };
    let chunk = Chunk {
        path: format!("requests/{id}.jsonl"),
        analysis: "a".to_owned(),
        model: model.to_owned(),
        lines: 1,
        bytes: 3,
        first_index: 0,
        last_index: 0,
        blake3: blake3::hash(b"{}\n").to_hex().to_string(),
        id,
    };
    work.request(&chunk.id).write(b"{}\n").expect("written");
    work.rows(&chunk.id).write(b"0-0\n").expect("written");
    let input = InputMark { posts: 1, blake3: String::new() };
    journal.append(&Event::Chunk { chunk, input }).expect("appended");
}

async fn drive(router: Router, work: &WorkDir, journal: &Journal, goal: Goal) -> JobsEnd {
    let (_, none) = mpsc::channel(1);
    drive_with(router, work, journal, goal, none).await
}

async fn drive_with(
    router: Router,
    work: &WorkDir,
    journal: &Journal,
    goal: Goal,
    cut: mpsc::Receiver<ChunkPlace>,
) -> JobsEnd {
    drive_as(router, work, journal, cut, |settings| JobSettings { goal, ..settings }).await
}

/// Drives with settings that `change` makes of the usual ones.
async fn drive_as(
    router: Router,
    work: &WorkDir,
    journal: &Journal,
    cut: mpsc::Receiver<ChunkPlace>,
    change: impl FnOnce(JobSettings) -> JobSettings,
) -> JobsEnd {
    drive_for(Duration::from_secs(3600), router, work, journal, cut, change).await
}

/// The same for a job that may take longer.
async fn drive_for(
    most: Duration,
    router: Router,
    work: &WorkDir,
    journal: &Journal,
    mut cut: mpsc::Receiver<ChunkPlace>,
    change: impl FnOnce(JobSettings) -> JobSettings,
) -> JobsEnd {
    let chunks = stream::poll_fn(move |context| cut.poll_recv(context)).map(Ok);
    let driven = drive_stream(most, router, work, journal, chunks, change, hand_over(None)).await;
    driven.expect("it ends").expect("the disk holds")
}

async fn drive_stream(
    most: Duration,
    router: Router,
    work: &WorkDir,
    journal: &Journal,
    chunks: impl Stream<Item = Result<ChunkPlace>>,
    change: impl FnOnce(JobSettings) -> JobSettings,
    take: impl FnMut(Fetched) -> ControlFlow<()>,
) -> std::result::Result<Result<JobsEnd>, tokio::time::error::Elapsed> {
    let client = Client::new(ClientSettings {
        dialect: Dialect::find("zhipu").expect("known"),
        base_url: Some("http://127.0.0.1/x".to_owned()),
        key: Key::new("some-key-of-a-test").expect("a key"),
        ca_cert: None,
        direct: Some(router),
    })
    .expect("a client");
    let progress = Progress::new(Console::new(true, 0, cli::Progress::None), None);
    let stop = Stop::default();
    let settings = change(JobSettings {
        goal: Goal::Done,
        max_concurrent: 3,
        poll_interval: Duration::from_millis(1),
        settle: Duration::from_millis(2),
        on_ambiguous: OnAmbiguous::Recreate,
        max_batches: None,
        max_requests: None,
        patience: Duration::ZERO,
        no_wait: false,
        spreads_polls: false,
        keep_requests: false,
        keep_remote: false,
    });
    let jobs = Jobs::new((&client, work, journal), settings, &stop, &progress);
    tokio::time::timeout(most, super::drive(&jobs, chunks, take)).await
}

/// The results are kept unread by a reader that is slow: the provider is not, and its batches are made all the same.
#[tokio::test(start_paused = true)]
async fn unread_results_hold_downloads_and_no_creates() {
    let dir = tempfile::tempdir().expect("a directory");
    let many = u32::try_from(UNREAD + 5).expect("small");
    let (work, journal) = directory(dir.path(), many);
    let seen = Seen::default();
    let router = finished(&seen, get(async || "{\"custom_id\":\"a_0000\",\"response\":{}}\n"));
    let mut unread = Vec::new();
    let keep = |fetched| {
        unread.push(fetched);
        ControlFlow::Continue(())
    };
    let hour = Duration::from_secs(3600);
    let waits = drive_stream(hour, router.clone(), &work, &journal, stream::empty(), |settings| settings, keep).await;
    assert!(waits.is_err(), "it waits for the reader");
    let fetched = at(&journal, Step::Fetched);
    assert_eq!((unread.len(), fetched, seen.count("create")), (UNREAD, UNREAD as u64, many as usize));
    drop(unread);
    assert!(drive(router, &work, &journal, Goal::Done).await.trouble.is_none());
    assert_eq!(at(&journal, Step::Fetched), u64::from(many));
}

/// Chunks are cut as they are needed, and no more once nothing can be created.
#[tokio::test(start_paused = true)]
async fn no_more_chunks_are_taken_than_may_be_created() {
    for (is_refused, most) in [(true, 3 + WAITING), (false, 50)] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 0);
        let seen = Seen::default();
        let router = creating(&seen, move |seen, asked| {
            if is_refused {
                return StatusCode::UNAUTHORIZED.into_response();
            }
            let id = format!("batch-{}", seen.batches().len());
            let batch = json!({"id": id, "status": "completed", "input_file_id": asked["input_file_id"]});
            seen.add(batch.clone());
            Json(batch).into_response()
        });
        let chunks = stream::iter(0..50).map(|at| {
            cut(&work, &journal, at + 1, "glm-4v-plus");
            ChunkPlace::new(at as usize).ok_or_else(|| Error::input("too many"))
        });
        let hour = Duration::from_secs(3600);
        let ended = drive_stream(hour, router, &work, &journal, chunks, |settings| settings, hand_over(None)).await;
        let end = ended.expect("it ends").expect("the disk holds");
        let taken = journal.read(|state| state.jobs.len()).expect("whole");
        assert_eq!((taken <= most, end.trouble.is_some()), (true, is_refused), "{taken}: {end:?}");
        assert_eq!(at(&journal, Step::Fetched), if is_refused { 0 } else { 50 });
    }
}

fn job(journal: &Journal, at: usize) -> Job {
    journal.job(ChunkPlace::new(at).expect("small")).expect("there")
}

fn at(journal: &Journal, step: Step) -> u64 {
    journal.read(|state| state.at(step)).expect("whole")
}

fn spent(journal: &Journal) -> (u64, u64) {
    journal.read(State::spent).expect("whole")
}

fn id<T: std::str::FromStr<Err = Error>>(text: impl AsRef<str>) -> T {
    text.as_ref().parse().expect("an id")
}

#[tokio::test]
async fn m1_an_error_after_the_deed_is_looked_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let creates = seen.clone();
    let router = server(&seen).route(
        "/x/batches",
        post(async move |Json(asked): Json<Value>| {
            let file = &asked["input_file_id"];
            creates.add(json!({"id": "batch-1", "status": "completed", "input_file_id": file}));
            (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": {"code": "1234", "message": "oh"}})))
        }),
    );
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!((seen.batches().len(), seen.count("list")), (1, 2), "a page that brings nothing new is the last");
    let job = job(&journal, 0);
    assert_eq!((job.step(), job.batch().map(BatchId::as_str)), (Step::Fetched, Some("batch-1")));
    assert_eq!(job.rows().map(|rows| rows.absent), Some(1), "it has no files");
}

/// A chunk may be cut before the jobs first read the journal: it is in the journal, and it is announced, too.
#[tokio::test]
async fn m1_a_chunk_that_is_known_and_announced_has_one_job() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let creates = seen.clone();
    let router = server(&seen).route(
        "/x/batches",
        post(async move |Json(asked): Json<Value>| {
            let batch = json!({"id": "batch-1", "status": "completed", "input_file_id": asked["input_file_id"]});
            creates.add(batch.clone());
            Json(batch)
        }),
    );
    let (send, cut) = mpsc::channel(1);
    send.send(ChunkPlace::default()).await.expect("taken");
    drop(send);
    let end = drive_with(router, &work, &journal, Goal::Done, cut).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!((seen.count("upload"), seen.batches().len(), job(&journal, 0).step()), (1, 1, Step::Fetched));
}

#[tokio::test]
async fn s8_many_batches_are_looked_after_a_few_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let many = u32::try_from(3 * LOOKED_AFTER).expect("a small number");
    let (work, journal) = directory(dir.path(), many);
    (0..many as usize).for_each(|place| made_before(&journal, place));
    let now = Arc::new(Mutex::new((0_usize, 0_usize)));
    let polled = Arc::clone(&now);
    let router = Router::new().route(
        "/x/batches/{id}",
        get(async move |Segment(id): Segment<String>| {
            {
                let mut at_once = polled.lock().expect("whole");
                at_once.0 += 1;
                at_once.1 = at_once.1.max(at_once.0);
            }
            sleep(Duration::from_millis(20)).await;
            polled.lock().expect("whole").0 -= 1;
            Json(json!({"id": id, "status": "completed"}))
        }),
    );
    let end = drive(router, &work, &journal, Goal::Fetched).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!(at(&journal, Step::Fetched), u64::from(many));
    assert!((2..=LOOKED_AFTER + 3).contains(&now.lock().expect("whole").1), "{:?}", now.lock());
}

#[tokio::test]
async fn m1_of_two_batches_the_oldest_that_lives_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let creates = seen.clone();
    let router = server(&seen).route("/x/batches", post(async move |Json(asked): Json<Value>| {
        let batch = |id: &str, status: &str, file: &str, at: u64| {
            json!({"id": id, "status": status, "input_file_id": file, "created_at": at, "metadata": asked["metadata"]})
        };
        // The first is an attempt that found its input deleted.
        creates.add(batch("dead", "failed", "file-0", 1_700_000_000_001));
        creates.add(batch("young", "in_progress", "file-1", 1_700_000_000_003));
        creates.add(batch("old", "in_progress", "file-0", 1_700_000_000_002));
        StatusCode::GATEWAY_TIMEOUT
    }));
    drive(router, &work, &journal, Goal::Submitted).await;
    assert_eq!((seen.count("cancel"), seen.count("cancel young")), (1, 1));
    assert_eq!(job(&journal, 0).batch().map(BatchId::as_str), Some("old"));
}

#[tokio::test]
async fn m1_a_refused_file_is_uploaded_once_more_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let creates = seen.clone();
    let router = server(&seen).route(
        "/x/batches",
        post(async move || {
            creates.call("create");
            (StatusCode::NOT_FOUND, Json(json!({"error": {"code": "1210", "message": "no such file"}})))
        }),
    );
    let end = drive(router, &work, &journal, Goal::Submitted).await;
    assert_eq!(end.trouble.map(|error| error.kind()), Some(Kind::Unavailable));
    assert_eq!((seen.count("create"), seen.count("upload"), seen.count("delete file-1")), (2, 2, 1));
    assert_eq!(job(&journal, 0).step(), Step::Uploaded);
    assert_eq!(spent(&journal), (0, 0));
}

#[tokio::test]
async fn a_refused_model_does_not_stop_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 9);
    let seen = Seen::default();
    let creates = seen.clone();
    let router = server(&seen).route(
        "/x/batches",
        post(async move |Json(asked): Json<Value>| {
            creates.call("create");
            if asked["metadata"]["chunk"] == "a_batch_part9" {
                let batch = json!({"id": "batch", "status": "completed"});
                creates.add(batch.clone());
                return (StatusCode::OK, Json(batch));
            }
            (StatusCode::BAD_REQUEST, Json(json!({"error": {"code": "1211", "message": "no such model"}})))
        }),
    );
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert_eq!(end.trouble.map(|error| error.kind()), Some(Kind::Unavailable));
    assert_eq!(job(&journal, 8).step(), Step::Fetched);
    assert!(seen.count("create") <= 4, "only those that were under way: {}", seen.count("create"));
}

fn none() -> mpsc::Receiver<ChunkPlace> {
    mpsc::channel(1).1
}

/// A reply whose body breaks off, as when a connection is reset.
fn reset() -> axum::response::Response {
    let lost = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
    axum::body::Body::from_stream(futures::stream::iter([Err::<bytes::Bytes, _>(lost)])).into_response()
}

/// A server with the creates of a test, which are counted as `create CHUNK`.
fn creating<R: axum::response::IntoResponse + 'static>(
    seen: &Seen,
    answer: impl Fn(&Seen, &Value) -> R + Clone + Send + Sync + 'static,
) -> Router {
    let seen_here = seen.clone();
    server(seen).route(
        "/x/batches",
        post(async move |Json(asked): Json<Value>| {
            let create = format!("create {}", asked["metadata"]["chunk"].as_str().unwrap_or_default());
            seen_here.call(create.clone());
            // A guard that is taken away must fail its test at once, not go round until the time is up.
            let times = seen_here.calls().iter().filter(|call| **call == create).count();
            assert!(times <= 30, "{create} without end");
            answer(&seen_here, &asked)
        }),
    )
}

/// A server that shows no batch answered `{"status":"validating"}`: seven batches were made in 14 seconds.
#[tokio::test]
async fn r10_1_a_create_that_was_answered_without_an_id_is_never_sent_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let router = creating(&seen, |_, _| Json(json!({"object": "batch", "status": "validating"})));
    for _ in 0..3 {
        let end = drive(router.clone(), &work, &journal, Goal::Done).await;
        let error = end.trouble.expect("held");
        assert_eq!((error.kind(), seen.count("create")), (Kind::TryAgain, 1), "{error}");
        assert!(error.to_string().contains("zbatch: run/a_batch_part1"), "{error}");
    }
    assert_eq!(spent(&journal), (1, 1));
    // The list shows it one day.
    seen.add(json!({"id": "batch-1", "status": "completed", "input_file_id": "file-1"}));
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!((job(&journal, 0).step(), seen.count("create"), seen.count("upload")), (Step::Fetched, 1, 1));
}

/// The same server reset connections: a chunk was created for as long as one waited.
#[tokio::test]
async fn r10_1_a_create_without_an_answer_is_sent_once_more_and_then_held() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let router = creating(&seen, |_, _| reset());
    for _ in 0..3 {
        let end = drive(router.clone(), &work, &journal, Goal::Done).await;
        let error = end.trouble.expect("held");
        assert_eq!((error.kind(), seen.count("create")), (Kind::TryAgain, 2), "{error}");
        assert!(error.to_string().contains("--on-ambiguous again"), "{error}");
    }
    assert_eq!(spent(&journal), (2, 2), "each may have been paid for");
    // The user has looked, and says so: once more, and held again.
    let again = |settings| JobSettings { on_ambiguous: OnAmbiguous::Again, ..settings };
    let end = drive_as(router, &work, &journal, none(), again).await;
    assert_eq!((end.trouble.map(|error| error.kind()), seen.count("create")), (Some(Kind::TryAgain), 3));
    assert!(job(&journal, 0).is_held());
}

/// A server whose list is always empty, or shows batches without their input and metadata.
#[tokio::test]
async fn r10_1_a_list_that_cannot_show_our_batches_proves_nothing() {
    for shown in [json!([]), json!([{"id": "batch-1", "status": "in_progress"}, {"id": "other", "status": "failed"}])] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 3);
        let seen = Seen::default();
        let router = creating(&seen, |seen, asked| {
            if asked["metadata"]["chunk"] != "a_batch_part1" {
                return reset();
            }
            let batch = json!({"id": "batch-1", "status": "completed", "input_file_id": asked["input_file_id"]});
            seen.call("made");
            Json(batch).into_response()
        });
        let listed = shown.clone();
        let hidden = Router::new().route(
            "/x/batches/{id}",
            get(async || Json(json!({"id": "batch-1", "status": "completed", "request_counts": {"total": 0}}))),
        );
        // The first batch is known before the others are sent.
        let hidden = hidden.route(
            "/x/batches",
            get(async move || Json(json!({"data": listed, "has_more": false}))).post(async || StatusCode::NOT_FOUND),
        );
        let one = |settings| JobSettings { max_concurrent: 1, ..settings };
        let router = hide(router, hidden);
        let end = drive_as(router.clone(), &work, &journal, none(), one).await;
        assert_eq!(end.trouble.map(|error| error.kind()), Some(Kind::TryAgain));
        assert_eq!((seen.count("create a_batch_part2"), job(&journal, 1).is_held()), (1, true), "{shown}");
        assert_eq!(seen.count("create a_batch_part3"), 0, "no more creates once one is held");
        // The next command sends the third, once, and holds it at once.
        drive_as(router, &work, &journal, none(), one).await;
        assert_eq!((seen.count("create a_batch_part2"), seen.count("create a_batch_part3")), (1, 1), "{shown}");
    }
}

/// Sends reads of batches to `shown`, all else to `router`.
fn hide(router: Router, shown: Router) -> Router {
    use tower::ServiceExt as _;
    Router::new().fallback(async move |request: axum::extract::Request| {
        let reads = request.method() == "GET" && request.uri().path().starts_with("/x/batches");
        let to = if reads { shown } else { router };
        let Ok(response) = to.oneshot(request).await;
        response
    })
}

/// Gateways answer with pages: a chunk was uploaded 45 times in 30 seconds, and a 401 page never became 77.
#[tokio::test]
async fn r10_1_a_refusal_that_cannot_be_read_ends_with_its_class() {
    const PAGE: &str = "<html><body>no</body></html>";
    for (status, body, kind) in [
        (400, PAGE, Kind::Input),
        (400, "", Kind::Input),
        (401, PAGE, Kind::Key),
        (403, "", Kind::Key),
        (404, PAGE, Kind::Unavailable),
        (413, PAGE, Kind::Input),
        (302, "", Kind::Unavailable),
        (307, PAGE, Kind::Unavailable),
        (500, r#"{"error":{"code":"9999","message":"internal"}}"#, Kind::Unavailable),
        (502, PAGE, Kind::Unavailable),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 9);
        let seen = Seen::default();
        let answer = move |_: &Seen, _: &Value| (StatusCode::from_u16(status).expect("a status"), body).into_response();
        let router = creating(&seen, answer);
        let end = drive(router, &work, &journal, Goal::Done).await;
        let error = end.trouble.expect("refused");
        assert_eq!(error.kind(), kind, "{status} {body}: {error}");
        assert!(error.to_string().contains(&format!("HTTP {status}")), "{error}");
        // Three chunks at once, each at most twice, and the others not at all.
        assert!(seen.count("create") <= 6 && seen.count("upload") <= 6, "{status} {body}: {seen:?}");
        assert!((1..=9).all(|part| seen.count(&format!("create a_batch_part{part}")) <= 2), "{seen:?}");
    }
}

/// `--max-batches 1`, and seven batches.
#[tokio::test]
async fn r10_1_caps_count_every_create_that_was_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let router = creating(&seen, |_, _| reset());
    let capped = |settings| JobSettings { max_batches: Some(1), ..settings };
    let end = drive_as(router, &work, &journal, none(), capped).await;
    let error = end.trouble.expect("capped");
    assert_eq!((error.kind(), seen.count("create")), (Kind::Unavailable, 1), "{error}");
    assert!(error.to_string().contains("--max-batches"), "{error}");
}

/// OpenAI: a batch over the enqueued token limit ends as `failed`, and its rows were given up.
#[tokio::test(start_paused = true)]
async fn r10_2_a_batch_that_found_the_queue_full_is_created_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 2);
    let seen = Seen::default();
    let router = creating(&seen, |seen, asked| {
        let number = seen.batches().len() + 1;
        let full = asked["metadata"]["chunk"] == "a_batch_part2" && number < 4;
        let batch = if full {
            json!({"id": format!("batch-{number}"), "status": "failed", "input_file_id": asked["input_file_id"],
                "errors": {"data": [{"code": "token_limit_exceeded", "line": null,
                    "message": "Enqueued token limit reached for gpt-4o in organization org-x."}]}})
        } else {
            json!({"id": format!("batch-{number}"), "status": "completed", "input_file_id": asked["input_file_id"]})
        };
        seen.add(batch.clone());
        Json(batch)
    });
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!((job(&journal, 0).step(), job(&journal, 1).step()), (Step::Fetched, Step::Fetched));
    assert!(seen.count("create a_batch_part2") >= 2, "{seen:?}");
    assert_eq!(spent(&journal), (2, 2), "nothing ran of the others");
}

/// Other servers refuse the create for the same reason. It does not go on for ever.
#[tokio::test(start_paused = true)]
async fn r10_2_a_create_that_is_refused_for_a_full_queue_is_sent_later() {
    for answers_at in [3, usize::MAX] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 1);
        let seen = Seen::default();
        let router = creating(&seen, move |seen, asked| {
            if seen.count("create") < answers_at {
                let words = "Please try again once some in_progress batches have been completed.";
                let error = json!({"error": {"code": "token_limit_exceeded", "message": words}});
                return (StatusCode::BAD_REQUEST, Json(error));
            }
            let batch = json!({"id": "batch-1", "status": "completed", "input_file_id": asked["input_file_id"]});
            seen.add(batch.clone());
            (StatusCode::OK, Json(batch))
        });
        let end = drive(router, &work, &journal, Goal::Submitted).await;
        if answers_at == 3 {
            assert!(end.trouble.is_none(), "{end:?}");
            assert_eq!((seen.count("create"), seen.count("upload")), (3, 1));
        } else {
            assert_eq!(end.trouble.map(|error| error.kind()), Some(Kind::Unavailable));
            assert_eq!(seen.count("create"), life::FULL_QUEUES as usize + 1);
        }
    }
}

/// A server with one finished batch a chunk, whose output files `content` serves.
fn finished(seen: &Seen, content: axum::routing::MethodRouter) -> Router {
    let router = creating(seen, |seen, asked| {
        let number = seen.batches().len() + 1;
        let batch = json!({"id": format!("batch-{number}"), "status": "completed",
            "input_file_id": asked["input_file_id"], "output_file_id": format!("output-{number}"),
            "request_counts": {"total": 1, "completed": 1, "failed": 0}});
        seen.add(batch.clone());
        Json(batch)
    });
    router.route("/x/files/{id}/content", content)
}

/// A server that shows files a while after the end: all creates stopped with "choose a model that the provider takes".
#[tokio::test(start_paused = true)]
async fn r10_3_a_file_that_is_late_is_asked_for_again_and_stops_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 5);
    let seen = Seen::default();
    let reads = seen.clone();
    let content = get(async move |Segment(id): Segment<String>| {
        reads.call(format!("read {id}"));
        if reads.count(&format!("read {id}")) < 5 {
            let error = json!({"error": {"code": "1211", "message": "no such file yet"}});
            return (StatusCode::NOT_FOUND, error.to_string());
        }
        (StatusCode::OK, "{\"custom_id\":\"a_0000\",\"response\":{}}\n".to_owned())
    });
    let router = finished(&seen, content);
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert!(end.trouble.is_none(), "{end:?}");
    for place in 0..5 {
        let job = job(&journal, place);
        let rows = job.rows().expect("fetched");
        assert_eq!((rows.output, rows.absent, rows.short), (1, 0, false));
    }
}

/// Deleted at the provider, or kept there for 30 days only: exit 69 each time, and "the same command" for ever.
#[tokio::test(start_paused = true)]
async fn r10_3_a_file_that_never_comes_leaves_absent_rows_and_no_trouble() {
    for status in [StatusCode::NOT_FOUND, StatusCode::GONE] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 2);
        let seen = Seen::default();
        let router = finished(&seen, get(async move || status));
        // A command that does not wait leaves it for later, a few times.
        let no_wait = |settings| JobSettings { no_wait: true, ..settings };
        let end = drive_as(router.clone(), &work, &journal, none(), no_wait).await;
        assert!(end.trouble.is_none() && job(&journal, 0).step() < Step::Fetched, "{end:?}");
        let end = drive(router, &work, &journal, Goal::Done).await;
        assert!(end.trouble.is_none(), "{end:?}");
        for place in 0..2 {
            let job = job(&journal, place);
            let rows = job.rows().expect("fetched");
            // What the provider may still have is left there.
            assert_eq!((rows.output, rows.absent, rows.short, job.is_cleaned()), (0, 1, false, false));
            assert_eq!(seen.count("delete"), 0);
        }
    }
}

/// A download that was refused ended all creates, and what they would have paid for was never made.
#[tokio::test(start_paused = true)]
async fn r10_20_a_refused_download_halts_no_create() {
    for status in [401, 403, 429, 500] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 6);
        let seen = Seen::default();
        let router = finished(&seen, get(async move || StatusCode::from_u16(status).expect("a status")));
        let end = drive(router, &work, &journal, Goal::Done).await;
        assert!(end.trouble.is_some(), "{status}");
        assert_eq!((seen.count("create"), at(&journal, Step::Ended)), (6, 6), "{status}");
    }
}

/// A list that shows a batch only after its create had counted as lost: the second create was sent all the same.
#[tokio::test]
async fn r10_1_a_lost_create_is_looked_for_once_more_before_the_next_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 1);
    let seen = Seen::default();
    let router = creating(&seen, |_, _| reset());
    let late = seen.clone();
    // The second upload comes when the batch of the first create is listed.
    let upload = post(async move || {
        late.call("upload");
        let number = late.count("upload");
        if number == 2 {
            let metadata = json!({"zbatch": "run/a_batch_part1"});
            late.add(json!({"id": "batch-1", "status": "completed", "metadata": metadata}));
        }
        Json(json!({"id": format!("file-{number}")}))
    });
    let uploads = Router::new().route("/x/files", upload);
    let router = Router::new().fallback(async move |request: axum::extract::Request| {
        use tower::ServiceExt as _;
        let to = if request.uri().path() == "/x/files" { uploads } else { router };
        let Ok(response) = to.oneshot(request).await;
        response
    });
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!((seen.count("create"), job(&journal, 0).batch().map(BatchId::as_str)), (1, Some("batch-1")));
    assert_eq!(spent(&journal), (1, 1));
}

/// Forty chunks and a queue for two: every chunk was uploaded again and again, and all of them were in the way of each other.
#[tokio::test(start_paused = true)]
async fn r10_2_while_the_queue_is_full_no_other_chunk_tries() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 40);
    let seen = Seen::default();
    let router = creating(&seen, |seen, asked| {
        let number = seen.batches().len() + 1;
        let batch = json!({"id": format!("batch-{number}"), "status": "failed", "input_file_id": asked["input_file_id"],
            "errors": {"data": [{"code": "token_limit_exceeded"}]}});
        seen.add(batch.clone());
        Json(batch)
    });
    let end = drive(router, &work, &journal, Goal::Done).await;
    assert_eq!(end.trouble.map(|error| error.kind()), Some(Kind::Unavailable));
    // All but the last chunk are of one model; three at once.
    let tried = (1..=40).filter(|part| seen.calls().contains(&format!("create a_batch_part{part}"))).count();
    assert!(tried <= 10, "{tried} of 40 chunks were sent to a full queue");
}

/// A batch that is done after `out`, from a server that is in trouble until then.
fn troubled(seen: &Seen, out: Duration) -> Router {
    let until = Instant::now() + out;
    let content = get(async move || "{\"custom_id\":\"a_0000\",\"response\":{}}\n");
    let router = finished(seen, content);
    Router::new().fallback(async move |request: axum::extract::Request| {
        use tower::ServiceExt as _;
        let is_poll = request.uri().path().starts_with("/x/batches/");
        if is_poll && Instant::now() < until {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let Ok(response) = router.clone().oneshot(request).await;
        response
    })
}

/// Eleven failed polls in a row ended the job, and batches that were paid for ran on unseen.
#[tokio::test(start_paused = true)]
async fn r11_9f_a_server_in_trouble_is_waited_for_while_batches_run() {
    const HOUR: Duration = Duration::from_secs(3600);
    for (out, patience, comes) in [(6 * HOUR, 24 * HOUR, true), (6 * HOUR, HOUR, false), (HOUR, 6 * HOUR, true)] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = directory(dir.path(), 2);
        let seen = Seen::default();
        let router = troubled(&seen, out);
        let poll_interval = Duration::from_secs(60);
        let settings = |settings| JobSettings { patience, poll_interval, ..settings };
        let end = drive_for(40 * HOUR, router, &work, &journal, none(), settings).await;
        let fetched = at(&journal, Step::Fetched);
        assert_eq!(
            (end.trouble.is_none(), fetched),
            (comes, if comes { 2 } else { 0 }),
            "{out:?} {patience:?}: {end:?}"
        );
        let kind = end.trouble.map(|error| error.kind());
        assert_eq!(kind, (!comes).then_some(Kind::Unavailable));
    }
}

/// Before the first batch nothing is lost: the user should hear of a wrong address at once.
#[tokio::test(start_paused = true)]
async fn r11_9f_before_the_first_batch_a_server_that_is_gone_ends_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 2);
    let gone = Router::new().fallback(async || {
        let broken = futures::stream::iter([Err::<axum::body::Bytes, _>(std::io::Error::other("reset"))]);
        axum::body::Body::from_stream(broken).into_response()
    });
    let began = Instant::now();
    let patient = |settings| JobSettings { patience: Duration::from_secs(86_400), ..settings };
    let end = drive_as(gone, &work, &journal, none(), patient).await;
    assert_eq!(end.trouble.map(|error| error.kind()), Some(Kind::Unavailable));
    assert!(began.elapsed() < Duration::from_secs(600), "{:?}", began.elapsed());
}

/// Events of a chunk whose batch an earlier process made.
fn made_before(journal: &Journal, place: usize) {
    let chunk = job(journal, place).chunk;
    let (name, file_id, blake3): (_, FileId, _) = (chunk.id, id(format!("file-{place}")), chunk.blake3);
    journal.append(&Event::Uploaded { chunk: name.clone(), file_id: file_id.clone() }).expect("appended");
    journal.append(&Event::Intent { chunk: name.clone(), file_id, attempt: 1, blake3 }).expect("appended");
    let batch_id = id(format!("batch-{place}"));
    let created = Event::Created { chunk: name, batch_id, adopted: false, file_id: None };
    journal.append(&created).expect("appended");
}

#[tokio::test(start_paused = true)]
async fn r11_9b_a_batch_that_vanishes_stops_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = directory(dir.path(), 4);
    made_before(&journal, 0);
    made_before(&journal, 1);
    let seen = Seen::default();
    // The second is there: it is the right account.
    seen.add(json!({"id": "batch-1", "status": "completed", "request_counts": {"total": 1, "completed": 1},
        "output_file_id": "output-1"}));
    let router = finished(&seen, get(async || "{\"custom_id\":\"a_0000\",\"response\":{}}\n"));
    let one = |settings| JobSettings { max_concurrent: 2, ..settings };
    let end = drive_as(router, &work, &journal, none(), one).await;
    assert!(end.trouble.is_none(), "{end:?}");
    let job = job(&journal, 0);
    let rows = job.rows().expect("fetched");
    assert_eq!((job.end().expect("an end").status.as_str(), rows.absent, rows.missing), ("vanished", 1, true));
    assert_eq!((seen.count("create"), job.is_cleaned()), (2, false));
}

/// A directory with a history, as a process finds it that goes on with it.
fn resumed(dir: &std::path::Path, chunks: u32) -> (WorkDir, Journal) {
    let (mut work, journal) = directory(dir, chunks);
    drop(journal);
    let journal = work.journal().expect("a journal");
    assert!(journal.resumed);
    (work, journal)
}

/// What the list of another copy's account shows, and how many creates follow.
#[tokio::test(start_paused = true)]
async fn r11_9a_what_a_listing_shows_is_adopted_or_created() {
    let content = blake3::hash(b"{}\n").to_hex().to_string();
    let other = blake3::hash(b"other posts").to_hex().to_string();
    let ours = |status: &str, more: Value| {
        let mut batch = json!({"id": "batch-7", "status": status, "input_file_id": "file-7", "created_at": 1_700_000_000_007_u64,
            "metadata": {"zbatch": "run/a_batch_part1", "blake3": content}});
        for (key, value) in more.as_object().expect("an object") {
            batch[key] = value.clone();
        }
        batch
    };
    for (name, batch, adopted) in [
        ("it runs", ours("in_progress", json!({})), true),
        ("it is done", ours("completed", json!({})), true),
        ("some of it ran", ours("expired", json!({})), true),
        ("it was cancelled there", ours("cancelled", json!({})), true),
        ("of an earlier version", ours("completed", json!({"metadata": {"zbatch": "run/a_batch_part1"}})), true),
        (
            "of an earlier version, of other size",
            ours(
                "completed",
                json!({"metadata": {"zbatch": "run/a_batch_part1"},
            "request_counts": {"total": 2}}),
            ),
            false,
        ),
        ("nothing of it ran", ours("failed", json!({})), false),
        (
            "other posts",
            ours("completed", json!({"metadata": {"zbatch": "run/a_batch_part1", "blake3": other}})),
            false,
        ),
        (
            "another run",
            ours("completed", json!({"metadata": {"zbatch": "run2/a_batch_part1", "blake3": content}})),
            false,
        ),
        (
            "another chunk",
            ours("completed", json!({"metadata": {"zbatch": "run/a_batch_part11", "blake3": content}})),
            false,
        ),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = resumed(dir.path(), 1);
        let seen = Seen::default();
        seen.add(batch);
        let router = creating(&seen, |seen, asked| {
            let batch = json!({"id": "batch-1", "status": "completed", "input_file_id": asked["input_file_id"]});
            seen.add(batch.clone());
            Json(batch)
        });
        let end = drive(router, &work, &journal, Goal::Submitted).await;
        assert!(end.trouble.is_none(), "{name}: {end:?}");
        let id = if adopted { "batch-7" } else { "batch-1" };
        assert_eq!(job(&journal, 0).batch().map(BatchId::as_str), Some(id), "{name}");
        assert_eq!((seen.count("create"), seen.count("upload")), if adopted { (0, 0) } else { (1, 1) }, "{name}");
        assert_eq!(spent(&journal), (1, 1), "{name}: it is paid for either way");
    }
}

/// One call per hundred batches of the account, for all chunks together.
#[tokio::test(start_paused = true)]
async fn r11_9a_all_chunks_share_one_listing_and_the_oldest_batch_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let (work, journal) = resumed(dir.path(), 20);
    let seen = Seen::default();
    for (id, status, part, at) in [
        ("young", "in_progress", 1, 3),
        ("cancelled", "cancelled", 1, 1),
        ("old", "in_progress", 1, 2),
        ("two", "completed", 2, 4),
    ] {
        seen.add(json!({"id": id, "status": status, "created_at": 1_700_000_000_000_u64 + at,
            "metadata": {"zbatch": format!("run/a_batch_part{part}")}}));
    }
    let router = creating(&seen, |seen, _| {
        let batch = json!({"id": format!("batch-{}", seen.batches().len()), "status": "completed"});
        seen.add(batch.clone());
        Json(batch)
    });
    let end = drive(router, &work, &journal, Goal::Submitted).await;
    assert!(end.trouble.is_none(), "{end:?}");
    // This server shows its only page again when it is asked for the next.
    assert_eq!((seen.count("list"), seen.count("create")), (2, 18));
    assert_eq!(
        (job(&journal, 0).batch().map(BatchId::as_str), job(&journal, 1).batch().map(BatchId::as_str)),
        (Some("old"), Some("two"))
    );
    assert_eq!((seen.count("cancel"), seen.count("cancel young")), (1, 1));
}

/// No list at all, and a list that fails for now.
#[tokio::test(start_paused = true)]
async fn r11_9a_a_list_that_fails_holds_creates_and_one_that_is_not_there_does_not() {
    for (status, creates, kind) in [
        (StatusCode::NOT_FOUND, 1, None),
        (StatusCode::METHOD_NOT_ALLOWED, 1, None),
        (StatusCode::BAD_REQUEST, 1, None),
        (StatusCode::SERVICE_UNAVAILABLE, 0, Some(Kind::Unavailable)),
        (StatusCode::UNAUTHORIZED, 0, Some(Kind::Key)),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let (work, journal) = resumed(dir.path(), 1);
        let seen = Seen::default();
        let router = creating(&seen, |_, _| Json(json!({"id": "batch-1", "status": "completed"})));
        let router = hide(router, Router::new().route("/x/batches", get(async move || status)));
        let end = drive(router.clone(), &work, &journal, Goal::Submitted).await;
        assert_eq!(end.trouble.map(|error| error.kind()), kind, "{status}");
        assert_eq!((seen.count("create"), seen.count("upload")), (creates, creates), "{status}");
        // It is not held for good: who knows that there is no other copy says so.
        let again = |settings| JobSettings { on_ambiguous: OnAmbiguous::Again, goal: Goal::Submitted, ..settings };
        drive_as(router, &work, &journal, none(), again).await;
        assert_eq!(seen.count("create"), 1, "{status}");
    }
}

/// Three hundred batches were asked for 85 times a second.
#[tokio::test(start_paused = true)]
async fn r11_9d_polls_are_spread_over_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let many = 60;
    let (work, journal) = directory(dir.path(), many);
    (0..many as usize).for_each(|place| made_before(&journal, place));
    let began = Instant::now();
    let polls = Arc::new(Mutex::new(Vec::new()));
    let polled = Arc::clone(&polls);
    let router = Router::new().route(
        "/x/batches/{id}",
        get(async move |Segment(id): Segment<String>| {
            polled.lock().expect("whole").push(began.elapsed());
            let status = if began.elapsed() > Duration::from_secs(60) { "completed" } else { "in_progress" };
            Json(json!({"id": id, "status": status}))
        }),
    );
    let spread = |settings| JobSettings {
        goal: Goal::Fetched,
        spreads_polls: true,
        poll_interval: Duration::from_secs(1),
        max_concurrent: many as usize,
        ..settings
    };
    drive_as(router, &work, &journal, none(), spread).await;
    let polls = polls.lock().expect("whole");
    // In any second, and in all: ten a second, and ten that may come at once.
    let busiest =
        polls.iter().map(|from| polls.iter().filter(|at| *at >= from && **at < *from + Duration::from_secs(1)).count());
    assert!(busiest.max() <= Some(21), "too many polls in one second");
    let first_minute = polls.iter().filter(|at| **at < Duration::from_secs(60)).count();
    assert!((500..=610).contains(&first_minute), "{first_minute} polls in a minute");
}
