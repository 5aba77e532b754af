//! The client against small servers of its own: in this process where that is enough, over sockets where the
//! network itself is the matter.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, StatusCode},
};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    form::PIECE,
    listing::{MAX_FOUND, MAX_PAGES},
    retry::Policy,
    transport::Timeouts,
    *,
};

const KEY: &str = "idididididididid.secretsecretsecret";
const BATCH: &str = r#"{"id":"batch_1","status":"validating","input_file_id":"file_1"}"#;

fn policy() -> Policy {
    let short = Duration::from_millis(2);
    Policy { first: short, first_limited: short, longest_asked: short, ..Policy::STANDARD }
}

fn timeouts() -> Timeouts {
    let short = Duration::from_millis(600);
    Timeouts { first_byte: short, first_byte_upload: short, idle: short, small: 2 * short }
}

fn settings(provider: &str, base_url: Option<String>, direct: Option<Router>) -> ClientSettings {
    let dialect = Dialect::find(provider).expect("known");
    ClientSettings { dialect, base_url, key: Key::new(KEY).expect("a key"), ca_cert: None, direct }
}

fn direct(provider: &str, router: Router) -> Client {
    Client::with(settings(provider, None, Some(router)), policy(), timeouts()).expect("a client")
}

fn over_http(base_url: String) -> Client {
    Client::with(settings("zhipu", Some(base_url), None), policy(), timeouts()).expect("a client")
}

/// What a server was asked, and answers from a list whose last one is repeated.
#[derive(Clone)]
struct Script(Arc<Played>);

struct Played {
    asked: Mutex<Vec<(http::request::Parts, Bytes)>>,
    answers: Vec<(u16, &'static str)>,
}

impl Script {
    fn new(answers: &[(u16, &'static str)]) -> Self {
        Self(Arc::new(Played { asked: Mutex::default(), answers: answers.to_vec() }))
    }

    fn router(&self) -> Router {
        let played = Arc::clone(&self.0);
        Router::new().fallback(async move |request: Request| {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let mut asked = played.asked.lock().expect("unpoisoned");
            let (status, answer) = played.answers.get(asked.len()).or(played.answers.last()).expect("an answer");
            asked.push((head, body));
            let status = StatusCode::from_u16(*status).expect("a status");
            Response::builder().status(status).body(Body::from(*answer)).expect("a response")
        })
    }

    fn asked(&self) -> Vec<(http::request::Parts, Bytes)> {
        self.0.asked.lock().expect("unpoisoned").clone()
    }
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/v4/")
}

/// A server that counts connections, reads what comes first and lets `answer` end it.
async fn serve_raw(answer: &'static [u8], read_first: bool) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            if read_first {
                let mut buffer = vec![0; 64 << 10];
                let _read = socket.read(&mut buffer).await;
            }
            let _sent = socket.write_all(answer).await;
        }
    });
    (format!("http://{address}/v4"), connections)
}

fn entry(path: &std::path::Path) -> crate::folder::Entry {
    crate::folder::Entry::of(path).expect("its directory is there")
}

fn file_id() -> FileId {
    "file_1".parse().expect("an id")
}

fn batch_id() -> BatchId {
    "batch_1".parse().expect("an id")
}

#[derive(Debug, PartialEq)]
enum Ending {
    Created,
    Refused,
    NotSent,
    Denied,
    Made,
    Ambiguous,
}

async fn create(client: &Client) -> Ending {
    match client.create(&file_id(), &[("mark", "m".to_owned())]).await {
        Ok(_) => Ending::Created,
        Err(CreateError::Refused(_)) => Ending::Refused,
        Err(CreateError::NotSent(_)) => Ending::NotSent,
        Err(CreateError::Denied(_)) => Ending::Denied,
        Err(CreateError::Made(_)) => Ending::Made,
        Err(CreateError::Ambiguous(_)) => Ending::Ambiguous,
    }
}

#[tokio::test]
async fn a_create_is_sent_once_whatever_the_answer() {
    for (status, answer, ending) in [
        (200, BATCH, Ending::Created),
        (200, r#"{"job":{"id":"batch_1","status":"VALIDATING"}}"#, Ending::Created),
        (400, r#"{"error":{"code":"1210","message":"no"}}"#, Ending::Refused),
        (401, r#"{"error":{"code":"1001","message":"no"}}"#, Ending::Refused),
        (404, r#"{"error":"Not Found"}"#, Ending::Refused),
        (429, r#"{"error":{"code":"1302","message":"slow"}}"#, Ending::Refused),
        (429, r#"{"error":{"code":"1113","message":"arrears"}}"#, Ending::Refused),
        (200, r#"{"error":{"code":"1113","message":"arrears"}}"#, Ending::Refused),
        (200, r#"{"code":1001,"msg":"no key"}"#, Ending::Refused),
        (200, r#"{"code":1231,"msg":"duplicate"}"#, Ending::Ambiguous),
        (400, r#"{"error":{"code":"1231","message":"duplicate"}}"#, Ending::Ambiguous),
        (400, r#"{"error":{"code":"1234","message":"network"}}"#, Ending::Ambiguous),
        (200, r#"{"error":{"code":"9999","message":"new"}}"#, Ending::Ambiguous),
        (409, r#"{"error":{"message":"conflict"}}"#, Ending::Ambiguous),
        (408, "", Ending::Ambiguous),
        (404, "<html>gateway</html>", Ending::Denied),
        (400, "", Ending::Denied),
        (401, "<html>login</html>", Ending::Denied),
        (413, "<html>too large</html>", Ending::Denied),
        (429, "", Ending::Denied),
        (500, r#"{"error":{"code":"500","message":"internal"}}"#, Ending::Ambiguous),
        (503, r#"{"error":{"code":"1113","message":"arrears"}}"#, Ending::Ambiguous),
        (502, "<html>Bad Gateway</html>", Ending::Ambiguous),
        (200, "", Ending::Ambiguous),
        (200, "{\"id\":\"batch_1\"", Ending::Ambiguous),
        (200, "{}", Ending::Made),
        (200, r#"{"status":"validating"}"#, Ending::Made),
        (201, r#"{"batch_id":"b"}"#, Ending::Made),
        (200, "<html>ok</html>", Ending::Ambiguous),
        (302, "", Ending::Refused),
        (307, "<html>moved</html>", Ending::Refused),
    ] {
        let script = Script::new(&[(status, answer)]);
        assert_eq!(create(&direct("zhipu", script.router())).await, ending, "{status} {answer}");
        assert_eq!(script.asked().len(), 1, "{status} {answer}");
    }
}

#[tokio::test]
async fn a_create_says_what_the_dialect_says() {
    let script = Script::new(&[(200, BATCH)]);
    create(&direct("zhipu", script.router())).await;
    create(&direct("openai", script.router())).await;
    let bodies: Vec<Value> =
        script.asked().iter().map(|(_, body)| serde_json::from_slice(body).expect("JSON")).collect();
    assert_eq!(
        bodies,
        [
            json!({"input_file_id": "file_1", "endpoint": "/v4/chat/completions", "auto_delete_input_file": false,
                   "metadata": {"mark": "m"}}),
            json!({"input_file_id": "file_1", "endpoint": "/v1/chat/completions", "completion_window": "24h",
                   "metadata": {"mark": "m"}}),
        ]
    );
    let (head, _) = &script.asked()[0];
    assert_eq!(head.uri.path(), "/api/paas/v4/batches");
    assert_eq!(head.headers["authorization"], format!("Bearer {KEY}"));
}

#[tokio::test]
async fn a_create_over_a_bad_connection_is_sent_once() {
    // Closed as soon as it is accepted, after the request was read, and in the middle of the answer.
    for (answer, read_first, ending) in [
        (&b""[..], false, Ending::Ambiguous),
        (&b""[..], true, Ending::Ambiguous),
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"id\":"[..], true, Ending::Ambiguous),
        (&b"HTTP/1.1 401 No\r\nContent-Length: 500\r\n\r\n{\"error\":"[..], true, Ending::Denied),
        (&b"garbage\r\n\r\n"[..], true, Ending::Ambiguous),
    ] {
        let (base, connections) = serve_raw(answer, read_first).await;
        assert_eq!(create(&over_http(base)).await, ending, "{answer:?}");
        // A second one would come at once.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(connections.load(Ordering::SeqCst), 1, "{answer:?}");
    }
    // Nobody listens: the port was ours a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    assert_eq!(create(&over_http(base)).await, Ending::NotSent);
}

#[tokio::test]
async fn a_create_on_a_connection_that_dies_is_sent_once() {
    // One answer on a kept connection; the next request there is read and never answered.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let creates = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&creates);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                if buffer[..n].starts_with(b"POST") {
                    count.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BATCH}", BATCH.len());
                let _sent = socket.write_all(head.as_bytes()).await;
            }
        }
    });
    let client = over_http(base);
    client.batch(&batch_id()).await.expect("a batch");
    assert_eq!(create(&client).await, Ending::Ambiguous);
    assert_eq!(creates.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn silence_ends_a_create_as_ambiguous() {
    let router = Router::new().fallback(async || std::future::pending::<StatusCode>().await);
    assert_eq!(create(&direct("zhipu", router)).await, Ending::Ambiguous);
}

#[tokio::test]
async fn r3_a_full_disk_of_a_server_is_not_ours() {
    let full = || Script::new(&[(507, r#"{"error":{"code":"507","message":"no space"}}"#), (200, BATCH)]);
    let script = full();
    let client = over_http(serve(script.router()).await);
    assert_eq!(client.batch(&batch_id()).await.expect("asked again").status, BatchStatus::Validating);
    assert_eq!(script.asked().len(), 2);
    let error = direct("zhipu", full().router()).batch(&batch_id()).await.expect_err("the emulator's disk is ours");
    assert_eq!(error.class, Class::Io);
}

#[tokio::test]
async fn a_look_is_tried_again_within_reason() {
    let script = Script::new(&[
        (429, r#"{"error":{"code":"1302","message":"slow"}}"#),
        (503, "<html>"),
        (200, "not JSON"),
        (200, r#"{"code":1234,"msg":"network"}"#),
        (200, BATCH),
    ]);
    let batch = direct("zhipu", script.router()).batch(&batch_id()).await.expect("a batch");
    assert_eq!(batch.status, BatchStatus::Validating);
    assert_eq!(script.asked().len(), 5);

    let script = Script::new(&[(500, "")]);
    let error = direct("zhipu", script.router()).batch(&batch_id()).await.expect_err("no batch");
    assert_eq!((error.class, script.asked().len()), (Class::Transient, 6));

    let script = Script::new(&[(429, r#"{"error":{"code":"1113","message":"arrears"}}"#)]);
    let error = direct("zhipu", script.router()).batch(&batch_id()).await.expect_err("no batch");
    assert_eq!((error.class, script.asked().len()), (Class::Account, 1));
    assert_eq!(error.to_string(), "look at a batch: HTTP 429, code 1113: arrears");
}

#[tokio::test]
async fn headers_of_the_server_decide_about_trying_again() {
    for (should, asked) in [("true", 6), ("false", 1)] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let router = Router::new().fallback(async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let status = if should == "true" { 400 } else { 500 };
            Response::builder()
                .status(status)
                .header("x-should-retry", should)
                .header("retry-after", "3600")
                .body(Body::empty())
                .expect("a response")
        });
        let error = direct("zhipu", router).batch(&batch_id()).await.expect_err("refused");
        assert_eq!(count.load(Ordering::SeqCst), asked, "{should}");
        assert_eq!(error.retry_after, Some(Duration::from_secs(3600)));
    }
}

#[tokio::test]
async fn r10_20_the_time_for_an_answer_begins_after_the_pause() {
    let script = Script::new(&[(200, BATCH)]);
    let policy = Policy { longest_asked: 2 * timeouts().idle, ..policy() };
    let client = Client::with(settings("zhipu", None, Some(script.router())), policy, timeouts()).expect("a client");
    client.0.retries.hold_all(Duration::MAX);
    client.batch(&batch_id()).await.expect("a batch");
    assert_eq!(script.asked().len(), 1);
}

#[tokio::test]
async fn the_key_is_not_in_what_an_error_says() {
    let router = Router::new().fallback(async |request: Request| {
        let echo = format!("{:?}", request.headers()["authorization"].to_str().expect("text"));
        Response::builder()
            .status(401)
            .body(Body::from(json!({"error": {"code": KEY, "message": echo}}).to_string()))
            .expect("a response")
    });
    let client = direct("zhipu", router);
    let error = client.batch(&batch_id()).await.expect_err("refused");
    assert_eq!((error.class, error.status), (Class::Key, Some(401)));
    assert_eq!(error.message, "\"Bearer [key]\"");
    for shown in
        [error.to_string(), format!("{error:?}"), format!("{client:?}"), crate::error::Error::from(error).to_string()]
    {
        assert!(!shown.contains("secretsecret") && !shown.contains("ididid"), "{shown}");
    }
}

#[tokio::test]
async fn ids_are_escaped_in_urls() {
    let script = Script::new(&[(200, BATCH)]);
    let id = "a/../b?c#d é".parse().expect("an id");
    direct("zhipu", script.router()).cancel(&id).await.expect("a batch");
    let (head, _) = &script.asked()[0];
    assert_eq!(head.uri.to_string(), "https://open.bigmodel.cn/api/paas/v4/batches/a%2F..%2Fb%3Fc%23d%20%C3%A9/cancel");
}

/// Pages of `size` out of `total`; `end` makes the rest of the answer.
fn listing(total: usize, size: usize, end: fn(bool) -> &'static str) -> (Router, Arc<AtomicUsize>) {
    let pages = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pages);
    let router = Router::new().fallback(async move |request: Request| {
        count.fetch_add(1, Ordering::SeqCst);
        let query = request.uri().query().unwrap_or_default().to_owned();
        let after =
            query.split('&').find_map(|pair| pair.strip_prefix("after=b")).map(|n| n.parse::<usize>().expect("n") + 1);
        let from = after.unwrap_or(0);
        let until = (from + size).min(total);
        let data: Vec<String> =
            (from..until).map(|n| format!(r#"{{"id":"b{n}","status":"completed","metadata":null}}"#)).collect();
        format!(r#"{{"object":"list","data":[{}]{}}}"#, data.join(","), end(until < total))
    });
    (router, pages)
}

#[tokio::test]
async fn a_listing_is_read_to_its_end() {
    type Case = (usize, fn(bool) -> &'static str, usize);
    let cases: [Case; 5] = [
        (250, |more| if more { r#","has_more":true"# } else { r#","has_more":false"# }, 3),
        (200, |_| r#","has_more":true"#, 3),
        (200, |_| "", 3),
        (0, |_| r#","has_more":true"#, 1),
        (50, |_| r#","has_more":null"#, 2),
    ];
    for (total, end, pages) in cases {
        let (router, asked) = listing(total, 100, end);
        let found = direct("zhipu", router).find_batches(|_| true).await.expect("a listing");
        assert_eq!((found.found.len(), asked.load(Ordering::SeqCst)), (total, pages));
    }
    let (router, _) = listing(250, 100, |_| r#","has_more":true"#);
    let found = direct("zhipu", router).find_batches(|batch| batch.id.as_str() == "b249").await.expect("a listing");
    assert_eq!(found.found.len(), 1);
}

#[tokio::test]
async fn a_listing_that_goes_round_ends() {
    // The server that does not know `after`.
    let same = r#"{"data":[{"id":"b1","status":"failed"},{"id":"b2","status":"failed"}],"has_more":true}"#;
    let other = r#"{"data":[{"id":"b3","status":"failed"}],"has_more":true}"#;
    for answers in [vec![(200, same)], vec![(200, same), (200, other), (200, same)]] {
        let script = Script::new(&answers);
        let listing = direct("zhipu", script.router()).find_batches(|_| true).await.expect("a listing");
        assert!(!listing.complete, "the server says that there is more");
        assert!(script.asked().len() <= answers.len() + 1);
    }
    let script = Script::new(&[(200, r#"{"data":null,"has_more":false}"#)]);
    assert_eq!(direct("zhipu", script.router()).find_batches(|_| true).await.expect("a listing").found, []);
    // One that cannot be read is not an empty one.
    for bad in [r"{}", r#"{"data":[{"id":"b1"}]}"#, r#"{"data":{}}"#] {
        let script = Script::new(&[(200, bad)]);
        let error = direct("zhipu", script.router()).find_batches(|_| true).await.expect_err(bad);
        assert_eq!(error.class, Class::Transient, "{bad}");
    }
    // One that never ends.
    let (router, asked) = listing(usize::MAX, 1, |_| r#","has_more":true"#);
    let error = direct("zhipu", router).find_batches(|_| false).await.expect_err("endless");
    assert_eq!((error.class, asked.load(Ordering::SeqCst)), (Class::Reply, MAX_PAGES));
}

fn chunk_file(dir: &tempfile::TempDir, bytes: usize) -> (PathBuf, Vec<u8>) {
    let content: Vec<u8> = (0..bytes).map(|n| b"0123456789abcdef\n"[n % 17]).collect();
    let path = dir.path().join("chunk.jsonl");
    crate::lines::output::write_whole(&path, &content).expect("written");
    (path, content)
}

#[tokio::test]
async fn an_upload_is_the_file_and_starts_anew_on_each_try() {
    let dir = tempfile::tempdir().expect("a directory");
    for bytes in [0, 1, PIECE, 3 * PIECE + 5] {
        let (path, content) = chunk_file(&dir, bytes);
        let script = Script::new(&[(503, ""), (200, r#"{"code":20000,"data":{"id":"file_9"}}"#)]);
        let router = script.router().layer(axum::extract::DefaultBodyLimit::disable());
        let base = serve(router).await;
        let id = over_http(base).upload(&entry(&path), "topic\"\r\n_part1.jsonl").await.expect("uploaded");
        assert_eq!(id.as_str(), "file_9");
        let asked = script.asked();
        assert_eq!(asked.len(), 2);
        for (head, body) in asked {
            assert_eq!(head.headers["content-length"], body.len().to_string());
            assert!(!head.headers.contains_key("transfer-encoding"));
            let kind = head.headers["content-type"].to_str().expect("text");
            let boundary = kind.strip_prefix("multipart/form-data; boundary=").expect("a boundary");
            let mut expected = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
                 Content-Disposition: form-data; name=\"file\"; filename=\"topic_part1.jsonl\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            )
            .into_bytes();
            expected.extend_from_slice(&content);
            expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
            assert!(body == expected, "{bytes} bytes");
        }
    }
}

#[tokio::test]
async fn an_upload_fails_for_good_reasons_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = chunk_file(&dir, 100);
    let script = Script::new(&[(400, r#"{"error":{"code":"1210","message":"model not on the list"}}"#)]);
    let client = direct("zhipu", script.router());
    let error = client.upload(&entry(&path), "a.jsonl").await.expect_err("refused");
    assert_eq!((error.class, script.asked().len()), (Class::BadRequest, 1));
    let error = client.upload(&entry(&dir.path().join("none")), "a.jsonl").await.expect_err("no file");
    assert_eq!((error.class, script.asked().len()), (Class::Io, 1));
    assert_eq!(crate::error::Error::from(error).kind(), crate::error::Kind::Io);
}

/// A file of the kernel that says that it is longer than it is: the server sees half a form, and its complaint is not the reason.
#[tokio::test]
async fn s7_a_file_that_cannot_be_read_is_our_trouble_whatever_the_server_says_of_it() {
    let path = std::path::Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return;
    }
    let refuses = Router::new().fallback(async |_: axum::body::Bytes| "{}");
    let error = direct("zhipu", refuses).upload(&entry(path), "a.jsonl").await.expect_err("no file");
    assert_eq!(error.class, Class::Io, "{error}");
    assert!(error.message.contains(&format!("read {}", path.display())), "{error}");
}

#[tokio::test]
async fn a_transfer_that_moves_has_no_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = chunk_file(&dir, 20 * PIECE);
    let router = Router::new().fallback(async |request: Request| {
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.frame().await {
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        r#"{"id":"file_1"}"#
    });
    let start = Instant::now();
    direct("zhipu", router).upload(&entry(&path), "a.jsonl").await.expect("uploaded");
    assert!(start.elapsed() > 2 * timeouts().first_byte);
}

/// A download whose body is given in pieces, with a length that is said.
fn content(said: usize, pieces: &'static [&'static str]) -> Response<Body> {
    let stream = futures::stream::iter(pieces).map(|piece| Ok::<_, io::Error>(Bytes::from(*piece)));
    Response::builder().header("content-length", said).body(Body::from_stream(stream)).expect("a response")
}

fn content_of(path: &std::path::Path) -> Vec<u8> {
    crate::lines::input::read_small(path, 1 << 20).expect("read").into_bytes()
}

#[tokio::test]
async fn a_short_download_is_noticed_and_fetched_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.jsonl");
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let router = Router::new().fallback(async move || match count.fetch_add(1, Ordering::SeqCst) {
        0 => content(8, &["abc\n"]),
        1 => content(8, &["abc\n", "d"]),
        _ => content(8, &["abc\n", "def\n"]),
    });
    let download = direct("zhipu", router).download(&file_id(), &entry(&path)).await.expect("downloaded");
    assert_eq!((download, tries.load(Ordering::SeqCst)), (Download { bytes: 8, complete: true }, 3));
    assert_eq!(content_of(&path), b"abc\ndef\n");

    // Always short: the longest is kept, and said to be short.
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let router = Router::new().fallback(async move || match count.fetch_add(1, Ordering::SeqCst) {
        1 => content(8, &["abc\n", "d"]),
        _ => content(8, &["abc\n"]),
    });
    let download = direct("zhipu", router).download(&file_id(), &entry(&path)).await.expect("downloaded");
    assert_eq!((download, tries.load(Ordering::SeqCst)), (Download { bytes: 5, complete: false }, 3));
    assert_eq!(content_of(&path), b"abc\nd");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "no leftovers");
}

#[tokio::test]
async fn a_download_cut_by_the_network_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.jsonl");
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nabc\n"[..],
        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc\n\r\n"[..],
    ] {
        let (base, connections) = serve_raw(answer, true).await;
        let download = over_http(base).download(&file_id(), &entry(&path)).await.expect("downloaded");
        assert_eq!((download.bytes, download.complete), (4, false));
        assert_eq!(connections.load(Ordering::SeqCst), 3);
    }
}

#[tokio::test]
async fn a_download_that_is_an_error_is_not_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.jsonl");
    for (status, answer, class) in [
        (200, r#"{"error":{"code":"1113","message":"arrears"}}"#, Class::Account),
        (200, r#"{"code":1001,"msg":"no key"}"#, Class::Key),
        (404, r#"{"error":"Not Found"}"#, Class::NotFound),
        (204, "", Class::Transient),
    ] {
        let script = Script::new(&[(status, answer)]);
        let error = direct("zhipu", script.router()).download(&file_id(), &entry(&path)).await.expect_err(answer);
        assert_eq!(error.class, class, "{answer}");
        assert!(!path.exists());
    }
    // One error line of one request is a file.
    let line = r#"{"custom_id":"a_1","response":null,"error":{"code":"1301","message":"blocked"}}"#;
    let script = Script::new(&[(200, line)]);
    let download = direct("zhipu", script.router()).download(&file_id(), &entry(&path)).await.expect("downloaded");
    assert_eq!((download.bytes, download.complete), (line.len() as u64, true));
    // A page is never a file.
    let router = Router::new().fallback(async || axum::response::Html("<html>busy</html>"));
    let error = direct("zhipu", router).download(&file_id(), &entry(&path)).await.expect_err("a page");
    assert_eq!((error.class, error.message.as_str()), (Class::Transient, "busy"));
    // Our own trouble is said as such, and not tried again.
    let script = Script::new(&[(200, "x")]);
    let nowhere = crate::folder::Folder::open(dir.path()).expect("opened").file("none/out.jsonl");
    let error = direct("zhipu", script.router()).download(&file_id(), &nowhere).await.expect_err("no directory");
    assert_eq!((error.class, script.asked().len()), (Class::Io, 1));
}

#[tokio::test]
async fn a_compressed_download_is_decoded() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.jsonl");
    let text = b"one line\n".repeat(100_000);
    let packed = Bytes::from(zstd::encode_all(text.as_slice(), 1).expect("compressed"));
    let router = Router::new().fallback(async move || {
        Response::builder().header("content-encoding", "zstd").body(Body::from(packed.clone())).expect("a response")
    });
    let download = direct("zhipu", router).download(&file_id(), &entry(&path)).await.expect("downloaded");
    assert_eq!(download, Download { bytes: 900_000, complete: true });
    assert!(content_of(&path) == text);
}

#[tokio::test]
async fn a_file_that_is_gone_is_deleted() {
    for (status, answer) in [(200, r#"{"id":"file_1","deleted":true}"#), (200, ""), (404, ""), (404, "{}")] {
        let script = Script::new(&[(status, answer)]);
        direct("zhipu", script.router()).delete(&file_id()).await.expect("deleted");
    }
    let script = Script::new(&[(401, "")]);
    let error = direct("zhipu", script.router()).delete(&file_id()).await.expect_err("refused");
    assert_eq!(error.class, Class::Key);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Script::new(&[(200, BATCH)]);
    let target = serve(elsewhere.router()).await;
    let router = Router::new().fallback(async move || {
        Response::builder().status(307).header("location", target.clone()).body(Body::empty()).expect("a response")
    });
    let client = over_http(serve(router).await);
    let error = client.batch(&batch_id()).await.expect_err("a redirect");
    assert_eq!((error.class, error.status), (Class::Redirect, Some(307)));
    assert!(error.message.contains("sends us to http://127.0.0.1:"), "{error}");
    assert_eq!(create(&client).await, Ending::Refused);
    assert_eq!(elsewhere.asked().len(), 0);
}

#[tokio::test]
async fn a_body_without_end_is_left() {
    let router = Router::new().fallback(async || {
        let endless = futures::stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[b' '; 64 << 10])));
        Body::from_stream(endless)
    });
    let error = direct("zhipu", router).batch(&batch_id()).await.expect_err("too large");
    assert_eq!(error.class, Class::Reply);
}

#[tokio::test]
async fn localhost_is_loopback_and_futures_can_move() {
    let script = Script::new(&[(200, BATCH)]);
    let base = serve(script.router()).await.replace("127.0.0.1", "localhost");
    let client = over_http(base);
    // `run` works on many threads.
    tokio::spawn(async move { client.batch(&batch_id()).await }).await.expect("ended").expect("a batch");
    assert_eq!(script.asked().len(), 1);
}

/// `openssl s_server`, ended with the test.
struct TlsServer(std::process::Child);

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A server with a certificate of its own for `localhost`, and its port; `None` where `openssl` is not.
fn tls_server(dir: &tempfile::TempDir, name: &str, constraints: &str) -> Option<(TlsServer, String)> {
    use std::{
        io::BufRead as _,
        process::{Command, Stdio},
    };

    let [cert, key] = ["cert", "key"].map(|what| format!("{name}.{what}.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &cert, "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", &format!("basicConstraints=critical,{constraints}")])
        .current_dir(dir)
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        say("skipped: openssl is not here");
        return None;
    }
    let mut child = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-cert", &cert, "-key", &key, "-www"])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let stdout = child.stdout.take().expect("a pipe");
    let server = TlsServer(child);
    let accept = io::BufReader::new(stdout).lines().map_while(io::Result::ok).find(|line| line.starts_with("ACCEPT "));
    let port = accept.expect("a port").rsplit_once(':').expect("a port").1.to_owned();
    Some((server, port))
}

async fn ask_tls(host: &str, port: &str, ca_cert: Option<PathBuf>) -> ApiError {
    let settings = ClientSettings { ca_cert, ..settings("zhipu", Some(format!("https://{host}:{port}/v4")), None) };
    let client = Client::with(settings, policy(), timeouts()).expect("a client");
    client.batch(&batch_id()).await.expect_err("no API")
}

#[tokio::test]
async fn certificates_are_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((_server, port)) = tls_server(&dir, "server", "CA:FALSE") else { return };
    let ours = Some(dir.path().join("server.cert.pem"));
    // A page of the server's own comes back: the connection stood.
    assert_eq!(ask_tls("localhost", &port, ours).await.class, Class::Transient);
    // With no system certificates a client cannot even be made; here there are some, or the test would fail loudly.
    if std::path::Path::new("/etc/ssl/certs").exists() {
        assert_eq!(ask_tls("localhost", &port, None).await.class, Class::Certificate, "a stranger's certificate");
    }
    let bad = ClientSettings { ca_cert: Some(dir.path().join("server.key.pem")), ..settings("zhipu", None, None) };
    assert_eq!(Client::new(bad).expect_err("no certificate").kind(), crate::error::Kind::Input);
}

/// `openssl req -x509` without more makes a CA's certificate: seen with local model servers, and refused even when it was
/// named with `--ca-cert`.
#[tokio::test]
async fn r10_17_a_self_signed_certificate_that_is_the_given_one_is_accepted() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((_server, port)) = tls_server(&dir, "server", "CA:TRUE") else { return };
    let Some((_other, other_port)) = tls_server(&dir, "other", "CA:TRUE") else { return };
    let ours = Some(dir.path().join("server.cert.pem"));
    assert_eq!(ask_tls("localhost", &port, ours.clone()).await.class, Class::Transient);
    assert_eq!(ask_tls("127.0.0.1", &port, ours.clone()).await.class, Class::Transient, "whatever its name");
    let error = ask_tls("localhost", &other_port, ours).await;
    assert_eq!(error.class, Class::Certificate, "{error}");
    assert!(!error.is_retryable());
    assert!(error.message.starts_with(&format!("localhost:{other_port}: ")), "{error}");
    assert!(crate::error::Error::from(error).to_string().contains("--ca-cert"));
}

#[tokio::test]
async fn all_calls_can_move_between_threads() {
    fn movable<T: Send>(call: T) -> T {
        call
    }
    let script = Script::new(&[(200, BATCH)]);
    let client = direct("zhipu", script.router());
    let dir = tempfile::tempdir().expect("a directory");
    let (path, _) = chunk_file(&dir, 10);
    movable(client.upload(&entry(&path), "a.jsonl")).await.expect("uploaded");
    movable(client.create(&file_id(), &[])).await.expect("created");
    movable(client.cancel(&batch_id())).await.expect("cancelled");
    movable(client.download(&file_id(), &entry(&dir.path().join("out")))).await.expect("downloaded");
    movable(client.delete(&file_id())).await.expect("deleted");
    movable(client.find_batches(|_| true)).await.expect_err("no listing");
}

#[tokio::test]
async fn m1_a_listing_that_makes_batches_up_is_refused() {
    let page = |first: usize, count: usize| {
        let batches: Vec<Value> = (first..first + count)
            .map(|n| json!({"id": format!("b{n}"), "status": "failed", "input_file_id": "file_1"}))
            .collect();
        json!({"data": batches, "has_more": true}).to_string()
    };
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let router = Router::new().fallback(async move || page(60 * count.fetch_add(1, Ordering::SeqCst), 60));
    let ours = |batch: &Batch| batch.input_file_id == Some(file_id());
    let error = direct("zhipu", router).find_batches(ours).await.expect_err("made up");
    assert_eq!((error.class, asked.load(Ordering::SeqCst)), (Class::Reply, MAX_FOUND / 60 + 1), "{error}");
}

#[tokio::test]
async fn n6_a_compressed_reply_that_explodes_is_refused() {
    use std::io::Read as _;

    let bomb = zstd::encode_all(io::repeat(b' ').take(1 << 30), 1).expect("compressed");
    assert!(bomb.len() < 1 << 20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::copy(&mut io::repeat(b' ').take(64 << 20), &mut gzip).expect("compressed");
    let dir = tempfile::tempdir().expect("a directory");
    for (encoding, bomb) in [("zstd", bomb), ("gzip", gzip.finish().expect("compressed"))] {
        let router = Router::new().fallback(async move || ([("Content-Encoding", encoding)], bomb.clone()));
        let client = Client::with(settings("zhipu", None, Some(router)), Policy { tries: 1, ..policy() }, timeouts())
            .expect("a client");
        assert_eq!(client.batch(&batch_id()).await.expect_err("refused").class, Class::Reply, "{encoding}");
        assert_eq!(create(&client).await, Ending::Ambiguous, "{encoding}");
        if encoding == "zstd" {
            let to = dir.path().join("results");
            assert_eq!(client.download(&file_id(), &entry(&to)).await.expect_err("refused").class, Class::Reply);
            assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0, "nothing is left");
        }
    }
}

/// Aloud: unlike what `eprintln!` writes, the test harness does not keep it to itself.
fn say(text: &str) {
    use std::io::Write as _;
    let _closed_stderr = writeln!(std::io::stderr(), "{text}");
}

/// Bad inputs that others wrote; not part of the project, read where they are.
fn corpora() -> Option<PathBuf> {
    let named = std::env::var_os("ZBATCH_CORPORA").map(PathBuf::from);
    let is_required = named.is_some();
    let dir = named.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/corpora")));
    if !dir.is_dir() {
        assert!(!is_required, "ZBATCH_CORPORA is set, and {} is not there", dir.display());
        say(&format!("skipped: no corpora at {}; ZBATCH_CORPORA names another place", dir.display()));
        return None;
    }
    Some(dir)
}

#[tokio::test]
async fn no_body_is_too_strange() {
    use std::io::Read as _;

    let Some(corpora) = corpora() else { return };
    let body = Arc::new(Mutex::new((200, Vec::new())));
    let served = Arc::clone(&body);
    let router = Router::new().fallback(async move || {
        let (status, body) = served.lock().expect("unpoisoned").clone();
        (StatusCode::from_u16(status).expect("a status"), body)
    });
    let once = Policy { tries: 1, ..policy() };
    let client = Client::with(settings("zhipu", None, Some(router)), once, timeouts()).expect("a client");
    let mut files = 0;
    for folder in ["test_parsing", "test_transform"] {
        for entry in std::fs::read_dir(corpora.join("JSONTestSuite").join(folder)).expect("listed") {
            let path = entry.expect("an entry").path();
            let mut text = Vec::new();
            let file = std::fs::File::open(&path).expect("opened");
            #[expect(clippy::disallowed_methods, reason = "not UTF-8, and the limit is there")]
            file.take(4 << 20).read_to_end(&mut text).expect("read");
            files += 1;
            for status in [200, 400] {
                *body.lock().expect("unpoisoned") = (status, text.clone());
                let error = client.batch(&batch_id()).await.expect_err("no batch").to_string();
                assert_eq!(crate::text::escape_control(&error), error, "{}", path.display());
                let listing = client.find_batches(|_| true).await;
                assert!(listing.is_err(), "{}", path.display());
            }
        }
    }
    let naughty = crate::lines::input::read_small(&corpora.join("blns/blns.json"), 4 << 20).expect("read");
    let naughty: Vec<String> = serde_json::from_str(&naughty).expect("JSON");
    for text in &naughty {
        let answer = json!({"error": {"code": text, "message": text}, "id": text, "status": text, "metadata": text});
        *body.lock().expect("unpoisoned") = (400, answer.to_string().into_bytes());
        let error = client.batch(&batch_id()).await.expect_err("refused").to_string();
        assert_eq!(crate::text::escape_control(&error), error);
        let answer =
            json!({"id": "b", "status": text, "metadata": {text: text}, "errors": [text], "output_file_id": text});
        *body.lock().expect("unpoisoned") = (200, answer.to_string().into_bytes());
        let batch = client.batch(&batch_id()).await.expect("a batch");
        assert_eq!(crate::text::escape_control(batch.status.as_str()), batch.status.as_str());
    }
    assert!(files >= 300 && naughty.len() >= 500, "{files} files, {} strings", naughty.len());
}

#[tokio::test]
async fn a_reply_that_stops_half_way_is_left() {
    let router = Router::new().fallback(async || {
        let begun = futures::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"{\"id\":"))]);
        Body::from_stream(begun.chain(futures::stream::pending()))
    });
    let once = Policy { tries: 1, ..policy() };
    let client = Client::with(settings("zhipu", None, Some(router)), once, timeouts()).expect("a client");
    let error = client.batch(&batch_id()).await.expect_err("half an answer");
    assert_eq!(error.class, Class::Unreachable);
    assert_eq!(create(&client).await, Ending::Ambiguous);
}

/// A byte every three seconds: no pause is long, and 4 MiB of it would last for five months.
fn dripping(status: u16, text: &'static str) -> Router {
    Router::new().fallback(async move || {
        let bytes = text.as_bytes().iter().map(|byte| Bytes::copy_from_slice(std::slice::from_ref(byte)));
        let drips = futures::stream::iter(bytes).then(async |byte| {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok::<_, io::Error>(byte)
        });
        (StatusCode::from_u16(status).expect("a status"), Body::from_stream(drips))
    })
}

#[tokio::test(start_paused = true)]
async fn r11_9_a_small_reply_that_drips_is_cut_after_minutes() {
    // Whatever it says in the end, it says it after half an hour.
    let batch = format!("{BATCH}{:600}", "").leak();
    let list = format!("{{\"data\":[],\"has_more\":false}}{:600}", "").leak();
    let refusal = format!("{{\"error\":{{\"code\":\"1211\",\"message\":\"no\"}}}}{:600}", "").leak();
    let client = |status, text| {
        let once = Policy { tries: 1, ..Policy::STANDARD };
        let settings = settings("zhipu", None, Some(dripping(status, text)));
        Client::with(settings, once, Timeouts::STANDARD).expect("a client")
    };
    let minutes = Duration::from_secs(60)..Duration::from_secs(300);
    let mut began = Instant::now();
    let mut is_cut = |what: &str, class: Option<Class>| {
        assert!(minutes.contains(&began.elapsed()), "{what}: {:?}", began.elapsed());
        assert_eq!(class, Some(Class::Unreachable), "{what}");
        began = Instant::now();
    };
    is_cut("a batch", client(200, batch).batch(&batch_id()).await.err().map(|e| e.class));
    is_cut("a cancel", client(200, batch).cancel(&batch_id()).await.err().map(|e| e.class));
    is_cut("a list", client(200, list).find_batches(|_| true).await.err().map(|e| e.class));
    is_cut("a deletion", client(200, batch).delete(&file_id()).await.err().map(|e| e.class));
    let error = client(200, batch).create(&file_id(), &[]).await.expect_err("it drips");
    assert!(matches!(error, CreateError::Ambiguous(_)), "there may be a batch: {error:?}");
    is_cut("a create", Some(error.error().class));
    // A refusal whose words do not come still has its status.
    let began = Instant::now();
    let error = client(500, refusal).batch(&batch_id()).await.expect_err("refused");
    assert!(minutes.contains(&began.elapsed()) && error.status == Some(500), "{error:?} {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn r11_9_a_file_that_drips_is_a_transfer_that_moves() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = format!("{{\"custom_id\":\"a_1\"}}{:600}", "").leak();
    let settings = settings("zhipu", None, Some(dripping(200, text)));
    let client = Client::with(settings, Policy::STANDARD, Timeouts::STANDARD).expect("a client");
    let download = client.download(&file_id(), &entry(&dir.path().join("out"))).await.expect("it comes");
    assert!(download.complete && download.bytes == text.len() as u64, "{download:?}");
}
