use std::sync::Arc;

use axum::{
    Json, Router,
    extract::Path as Segment,
    http::StatusCode,
    routing::{delete, get, post},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    cli,
    console::Console,
    flow::chunks::InputMark,
    journal::{Config, start},
    lines::output::write_whole,
    provider::{ClientSettings, Dialect, Key},
};

/// What a server did: batches in the order of their creation, and calls by name.
#[derive(Clone, Default)]
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
fn directory(dir: &std::path::Path, chunks: u32) -> (WorkDir, Mutex<Journal>) {
    let work = WorkDir::create(dir).expect("a directory");
    let mut journal = work.journal().expect("a journal");
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
        upstream: None,
    };
    journal.append(&start("run".to_owned(), false, config)).expect("appended");
    for part in 1..=chunks {
        let id = crate::flow::ChunkId { analysis: "a".to_owned(), vision: false, part };
        let chunk = Chunk {
            path: format!("requests/{id}.jsonl"),
            analysis: "a".to_owned(),
            model: if part == chunks { "glm-4-air" } else { "glm-4v-plus" }.to_owned(),
            lines: 1,
            bytes: 3,
            first_index: 0,
            last_index: 0,
            blake3: blake3::hash(b"{}\n").to_hex().to_string(),
            id,
        };
        write_whole(&work.join(&chunk.path), b"{}\n").expect("written");
        write_whole(&work.rows(&chunk.id), b"0-0\n").expect("written");
        let input = InputMark { posts: 1, blake3: String::new() };
        journal.append(&Event::Chunk { chunk, input }).expect("appended");
    }
    (work, Mutex::new(journal))
}

async fn drive(router: Router, work: &WorkDir, journal: &Mutex<Journal>, goal: Goal) -> JobsEnd {
    let (_, none) = mpsc::channel(1);
    drive_with(router, work, journal, goal, none).await
}

async fn drive_with(
    router: Router,
    work: &WorkDir,
    journal: &Mutex<Journal>,
    goal: Goal,
    cut: mpsc::Receiver<usize>,
) -> JobsEnd {
    let client = Client::new(ClientSettings {
        dialect: Dialect::find("zhipu").expect("known"),
        base_url: Some("http://127.0.0.1/x".to_owned()),
        key: Key::new("some-key-of-a-test").expect("a key"),
        ca_cert: None,
        direct: Some(router),
    })
    .expect("a client");
    let progress = Progress::new(Console::new(true, 0, cli::Progress::None), None);
    let (_tell, stop) = watch::channel(None);
    let settings = JobSettings {
        goal,
        max_concurrent: 3,
        poll_interval: Duration::from_millis(1),
        settle: Duration::from_millis(2),
        on_ambiguous: OnAmbiguous::Recreate,
        max_batches: None,
        max_requests: None,
        no_wait: false,
        keep_requests: false,
        keep_remote: false,
    };
    let driver = Driver { client: &client, work, journal, settings, stop, progress: &progress, fetched: None };
    let driven = tokio::time::timeout(Duration::from_secs(20), driver.drive(cut)).await;
    driven.expect("it ends").expect("the disk holds")
}

fn job(journal: &Mutex<Journal>, at: usize) -> Job {
    journal.lock().expect("whole").state.jobs[at].clone()
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
    assert_eq!((job.step, job.batch_id.as_deref()), (Step::Fetched, Some("batch-1")));
    assert_eq!(job.rows.map(|rows| rows.absent), Some(1), "it has no files");
}

/// The cutting thread may be faster than the driver's first look at the journal.
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
    send.send(0).await.expect("taken");
    drop(send);
    let end = drive_with(router, &work, &journal, Goal::Done, cut).await;
    assert!(end.trouble.is_none(), "{end:?}");
    assert_eq!((seen.count("upload"), seen.batches().len(), job(&journal, 0).step), (1, 1, Step::Fetched));
}

#[tokio::test]
async fn s8_many_batches_are_looked_after_a_few_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let many = u32::try_from(3 * LOOKED_AFTER).expect("a small number");
    let (work, journal) = directory(dir.path(), many);
    for place in 0..many as usize {
        let chunk = job(&journal, place).chunk;
        let mut journal = journal.lock().expect("whole");
        let (id, file_id, blake3) = (chunk.id, "file".to_owned(), chunk.blake3);
        journal.append(&Event::Uploaded { chunk: id.clone(), file_id: file_id.clone() }).expect("appended");
        journal.append(&Event::Intent { chunk: id.clone(), file_id, attempt: 1, blake3 }).expect("appended");
        let created = Event::Created { chunk: id, batch_id: format!("batch-{place}"), adopted: false };
        journal.append(&created).expect("appended");
    }
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
    assert_eq!(journal.lock().expect("whole").state.at(Step::Fetched), u64::from(many));
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
    assert_eq!(job(&journal, 0).batch_id.as_deref(), Some("old"));
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
    assert_eq!(job(&journal, 0).step, Step::Uploaded);
    assert_eq!(journal.lock().expect("whole").state.spent(), (0, 0));
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
    assert_eq!(job(&journal, 8).step, Step::Fetched);
    assert!(seen.count("create") <= 4, "only those that were under way: {}", seen.count("create"));
}

#[test]
fn a_full_model_waits_and_others_go_on() {
    let gate = Gate {
        halted: Cell::new(false),
        halted_models: RefCell::default(),
        uploads: Semaphore::new(1),
        downloads: Semaphore::new(1),
    };
    let mut floor = Floor::default();
    let limited = |limit| Queue { limit, ..Queue::default() };
    floor.models = [("full", limited(Some(10))), ("free", limited(None))].map(|(m, q)| (m.to_owned(), q)).into();
    let queue = |floor: &mut Floor, model: &str, place, lines| {
        floor.models.get_mut(model).expect("known").waiting.push_back((place, lines));
    };
    for place in 0..3 {
        queue(&mut floor, "full", place, 6);
    }
    queue(&mut floor, "free", 3, 1_000_000);
    queue(&mut floor, "free", 4, 1_000_000);
    let started: Vec<usize> = std::iter::from_fn(|| floor.start(&gate, 9)).collect();
    assert_eq!(started, [0, 3, 4]);
    assert_eq!((floor.live, floor.waiting(&gate)), (3, 2));
    floor.live -= 1;
    floor.models.get_mut("full").expect("known").queued -= 6;
    assert_eq!((floor.start(&gate, 3), floor.start(&gate, 3)), (Some(1), None));
    gate.halted_models.borrow_mut().insert("full".to_owned());
    assert_eq!((floor.waiting(&gate), floor.start(&gate, 9)), (0, None));
}
