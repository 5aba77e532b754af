//! Issue 10, the network: downloads that are kept elsewhere, what is waited for, what is refused before the first call, rows
//! that are pending. Each test runs the program against a small provider that is told where to behave badly.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::workdir::{Ran, WorkDir};

const KEY: &str = "idididididid.secretsecretsecret";
const ONE: &str = "--only=sentiment_polarity";

/// A request as it came.
#[derive(Clone, Debug)]
struct Call {
    /// `GET /v4/batches/batch-1`, without its query.
    what: String,
    /// As sent, lower case names.
    headers: Vec<(String, String)>,
    body: String,
    /// Calls that began like this one, before it.
    before: usize,
    at: Instant,
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

struct Said {
    status: u16,
    headers: String,
    body: String,
}

impl Said {
    fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: String::new(), body: body.into() }
    }

    fn json(body: &Value) -> Self {
        Self::new(200, body.to_string())
    }

    fn with(self, header: &str) -> Self {
        Self { headers: format!("{}{header}\r\n", self.headers), ..self }
    }
}

/// A provider that works, but for what the test says.
struct Provider {
    /// `127.0.0.1:PORT`
    address: String,
    base: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

#[derive(Default)]
struct Held {
    /// Rows of the file `file-N`, by N.
    files: BTreeMap<usize, Vec<String>>,
    /// Input file of the batch `batch-N`, by N.
    batches: BTreeMap<usize, usize>,
}

impl Provider {
    /// `differ` answers what the provider would not answer so; it is given the calls in order.
    fn start(differ: impl Fn(&Call) -> Option<Said> + Send + Sync + 'static) -> Self {
        Self::start_with(|_| {}, differ)
    }

    /// `pause` is called when the head of a call has come, and before its body is read.
    fn start_with(
        pause: impl Fn(&str) + Send + Sync + 'static,
        differ: impl Fn(&Call) -> Option<Said> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let provider = Self { base: format!("http://{address}/v4"), address, calls: Arc::clone(&calls) };
        let (held, differ, pause) = (Arc::new(Mutex::new(Held::default())), Arc::new(differ), Arc::new(pause));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (calls, held, differ, pause) =
                    (Arc::clone(&calls), Arc::clone(&held), Arc::clone(&differ), Arc::clone(&pause));
                std::thread::spawn(move || {
                    let mut socket = socket.expect("a connection");
                    let Some(call) = read_call(&socket, &calls, &*pause) else { return };
                    let said = differ(&call).unwrap_or_else(|| held.lock().expect("whole").answer(&call));
                    let head = format!(
                        "HTTP/1.1 {} X\r\n{}Connection: close\r\nContent-Length: {}\r\n\r\n",
                        said.status,
                        said.headers,
                        said.body.len()
                    );
                    // Whoever had enough may leave.
                    let _gone = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(said.body.as_bytes()));
                });
            }
        });
        provider
    }

    fn calls(&self, beginning: &str) -> Vec<Call> {
        let calls = self.calls.lock().expect("whole");
        calls.iter().filter(|call| call.what.starts_with(beginning)).cloned().collect()
    }
}

fn read_call(socket: &TcpStream, calls: &Mutex<Vec<Call>>, pause: &dyn Fn(&str)) -> Option<Call> {
    let mut from = BufReader::new(socket.try_clone().ok()?);
    let (mut what, mut length, mut line, mut headers) = (String::new(), 0, String::new(), Vec::new());
    while from.read_line(&mut line).ok()? > 2 {
        match line.split_once(": ") {
            _ if what.is_empty() => what = line.rsplit_once(' ')?.0.split('?').next()?.to_owned(),
            Some((name, value)) => {
                let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
                if name == "content-length" {
                    length = value.parse().ok()?;
                }
                headers.push((name, value));
            }
            None => {}
        }
        line.clear();
    }
    let at = Instant::now();
    pause(&what);
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    let mut calls = calls.lock().expect("whole");
    let before = calls.iter().filter(|call| call.what == what).count();
    let call = Call { what, headers, body: String::from_utf8_lossy(&body).into_owned(), before, at };
    calls.push(call.clone());
    Some(call)
}

impl Held {
    fn answer(&mut self, call: &Call) -> Said {
        let number =
            |prefix: &str| call.what.strip_prefix(prefix).and_then(|rest| rest.split('/').next()?.parse().ok());
        if call.what == "POST /v4/files" {
            let id = self.files.len() + 1;
            let rows = call.body.lines().filter(|line| line.starts_with("{\"custom_id\"")).map(str::to_owned);
            self.files.insert(id, rows.collect());
            return Said::json(&json!({"id": format!("file-{id}")}));
        }
        if call.what == "POST /v4/batches" {
            let asked: Value = serde_json::from_str(&call.body).expect("JSON");
            let file = asked["input_file_id"].as_str().and_then(|id| id.strip_prefix("file-")).expect("ours");
            let id = self.batches.len() + 1;
            self.batches.insert(id, file.parse().expect("a number"));
            return Said::json(&self.batch(id));
        }
        if call.what == "GET /v4/batches" {
            let list: Vec<Value> = self.batches.keys().map(|id| self.batch(*id)).collect();
            return Said::json(&json!({"object": "list", "data": list, "has_more": false}));
        }
        if let Some(id) = number("GET /v4/batches/batch-").or_else(|| number("POST /v4/batches/batch-")) {
            return Said::json(&self.batch(id));
        }
        if let Some(id) = number("GET /v4/files/out-") {
            return Said::new(200, self.results(id));
        }
        Said::json(&json!({"deleted": true}))
    }

    fn batch(&self, id: usize) -> Value {
        let file = self.batches[&id];
        let rows = self.files[&file].len();
        json!({
            "id": format!("batch-{id}"), "status": "completed", "input_file_id": format!("file-{file}"),
            "output_file_id": format!("out-{id}"), "request_counts": {"total": rows, "completed": rows, "failed": 0},
        })
    }

    fn results(&self, id: usize) -> String {
        let rows = &self.files[&self.batches[&id]];
        let line = |row: &String| {
            let row: Value = serde_json::from_str(row).expect("JSON");
            let choice = json!({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "3"}});
            let response = json!({"status_code": 200, "body": {"choices": [choice]}});
            json!({"custom_id": row["custom_id"], "response": response}).to_string() + "\n"
        };
        rows.iter().map(line).collect()
    }
}

/// A directory with so many posts.
fn with_posts(count: usize) -> WorkDir {
    let dir = WorkDir::new();
    let posts: String = (0..count).map(|n| json!({"content": format!("post {n}")}).to_string() + "\n").collect();
    dir.write("posts.jsonl", posts);
    dir
}

fn ran(dir: &WorkDir, base: &str, args: &[&str]) -> Ran {
    let mut command = dir.command(args);
    command.args(["--base-url", base, "--poll-interval", "10ms"]).env("ZHIPUAI_API_KEY", KEY);
    Ran::of(command.output().expect("the program starts"))
}

const RUN: [&str; 7] = ["run", "posts.jsonl", ONE, "-d", "w", "-o", "out.jsonl"];

fn run(dir: &WorkDir, base: &str, more: &[&str]) -> Ran {
    ran(dir, base, &[&RUN[..], more].concat())
}

/// Every one of `count` posts has its answer.
#[track_caller]
fn is_filled(dir: &WorkDir, count: usize) {
    let out = dir.read("out.jsonl");
    assert_eq!((out.lines().count(), out.matches("\"sentiment_polarity\":3").count()), (count, count), "{out}");
}

// ---- 4: downloads that are redirected

/// A provider that hands results out from storage of another origin: seen in a trial with OpenAI-shaped gateways.
#[test]
fn r10_4_a_redirected_download_is_followed_without_the_key() {
    for status in [301, 302, 303, 307, 308] {
        let dir = with_posts(2);
        let rows: Arc<Mutex<String>> = Arc::default();
        let kept = Arc::clone(&rows);
        let storage = Provider::start(move |call| match call.what.as_str() {
            // A relative one, then one that says no scheme.
            "GET /kept/first" => Some(Said::new(302, "").with("Location: second")),
            "GET /kept/second" => {
                Some(Said::new(307, "").with(&format!("Location: //{}/kept/third?sig=a%2Fb", call.header("host")?)))
            }
            _ => Some(Said::new(200, kept.lock().expect("whole").clone())),
        });
        let address = storage.address.clone();
        let held = Arc::clone(&rows);
        let provider = Provider::start(move |call| {
            if call.what == "POST /v4/files" {
                let ids = call.body.lines().filter(|line| line.starts_with("{\"custom_id\"")).map(str::to_owned);
                let one = Held { files: [(1, ids.collect())].into(), batches: [(1, 1)].into() };
                *held.lock().expect("whole") = one.results(1);
            }
            (call.what == "GET /v4/files/out-1/content").then(|| {
                let to = format!("Location: http://{address}/kept/first");
                Said::new(status, "moved").with(&to).with("Set-Cookie: session=1; Path=/")
            })
        });
        let ran = run(&dir, &provider.base, &["--timeout", "20s"]).exits(0);
        is_filled(&dir, 2);
        let there = storage.calls("");
        assert_eq!(there.len(), 3, "{status}: {there:?}\n{}", ran.stderr);
        for call in there {
            for secret in ["authorization", "cookie", "referer", "proxy-authorization"] {
                assert_eq!(call.header(secret), None, "{status}: {call:?}");
            }
        }
        assert!(provider.calls("").iter().all(|call| call.header("authorization").is_some()));
    }
}

/// What is not followed, and what the message names.
#[test]
fn r10_4_a_redirect_that_is_refused_stops_creates_and_names_the_host() {
    for (location, named) in [
        ("Location: http://storage.example/x", "storage.example"),
        ("Location: ftp://storage.example/x", "storage.example"),
        ("Location: https://user:hunter2@storage.example/x", "storage.example"),
        ("Location: /v4/files/out-1/content", "after 5 redirects"),
        ("Location: http://[bad", "cannot be read"),
        ("X-Location: none", "does not say where"),
    ] {
        let dir = with_posts(6);
        let provider = Provider::start(move |call| {
            call.what.starts_with("GET /v4/files/out-").then(|| Said::new(302, "").with(location))
        });
        let settings = ["--max-lines", "1", "--max-concurrent-tasks", "1", "--timeout", "20s"];
        let ran = run(&dir, &provider.base, &settings).exits(69);
        assert!(ran.stderr.contains(named), "{location}: {}", ran.stderr);
        assert!(ran.stderr.contains("127.0.0.1") || named.contains("storage"), "{location}: {}", ran.stderr);
        assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
        let creates = provider.calls("POST /v4/batches").len();
        assert!(creates < 6, "{location}: {creates} creates\n{}", ran.stderr);
    }
}

/// Links of storage expire: the provider is asked for a fresh one, and the storage's 403 is no word on the key.
#[test]
fn r10_4_a_link_that_has_expired_is_asked_for_again() {
    let dir = with_posts(1);
    let provider = Provider::start(|call| match (call.what.as_str(), call.before) {
        ("GET /v4/files/out-1/content", 0) => Some(Said::new(302, "").with("Location: /kept")),
        ("GET /kept", _) => Some(Said::new(403, "<Error><Code>AccessDenied</Code></Error>")),
        _ => None,
    });
    run(&dir, &provider.base, &["--timeout", "30s"]).exits(0);
    is_filled(&dir, 1);
    assert_eq!(provider.calls("GET /v4/files/out-1/content").len(), 2);
}

/// The emulator's links refuse a key: it would be seen here if one was sent.
#[test]
fn r10_4_a_run_whose_downloads_are_all_redirected_ends_as_any_other() {
    let dir = with_posts(9);
    let run = |out: &str, more: &[&str]| {
        let args = ["run", "posts.jsonl", ONE, "--max-lines", "2", "--emulate", "-d", out, "-o"];
        dir.run(&[&args[..], &[&format!("{out}.jsonl")], more].concat()).exits(0);
        dir.read(&format!("{out}.jsonl"))
    };
    assert_eq!(run("elsewhere", &["--fault", "redirect"]), run("here", &[]));
}

// ---- 16: what is said

/// 429 on every create, seen in a trial that waited for an hour without a word.
#[test]
fn r10_16_a_create_that_is_refused_for_now_is_said_at_the_end() {
    let dir = with_posts(1);
    let provider = Provider::start(|call| {
        let slow = json!({"error": {"code": "1302", "message": "too many requests at once"}}).to_string();
        (call.what == "POST /v4/batches").then(|| Said::new(429, slow))
    });
    let ran = run(&dir, &provider.base, &["--timeout", "3s"]).exits(75);
    let said = ran.stderr.lines().filter(|line| line.contains("HTTP 429, code 1302: too many requests at once"));
    assert_eq!(said.count(), 1, "{}", ran.stderr);
}

/// The same after the first minute.
#[test]
fn r10_16_what_is_waited_for_is_said_after_a_minute() {
    let dir = with_posts(1);
    let provider = Provider::start(|call| {
        let slow = json!({"error": {"code": "1302", "message": "too many requests at once"}}).to_string();
        (call.what == "POST /v4/batches").then(|| Said::new(429, slow))
    });
    let ran = run(&dir, &provider.base, &["--timeout", "70s"]).exits(75);
    let said = ran.stderr.lines().filter(|line| line.contains("HTTP 429, code 1302: too many requests at once"));
    assert_eq!(said.count(), 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("still waiting after 1 minute"), "{}", ran.stderr);
}

/// A server that is gone: which one it is, and once.
#[test]
fn r10_16_a_network_error_names_the_host_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let dir = with_posts(1);
    dir.run(&["gen", "-d", "w", "posts.jsonl", ONE]).exits(0);
    let ran = ran(&dir, &format!("http://{address}/v4"), &["submit", "-d", "w"]).exits(69);
    let error = ran.stderr.lines().last().and_then(|_| ran.stderr.lines().find(|line| line.contains("refused")));
    let error = error.unwrap_or_else(|| panic!("{}", ran.stderr));
    assert_eq!(error.matches(&address).count(), 1, "{error}");
    assert!(!error.contains("client error (Connect)"), "{error}");
}

/// One is one, whatever it is.
#[test]
fn r10_16_one_thing_is_not_said_in_the_plural() {
    let dir = with_posts(1);
    let provider = Provider::start(|_| None);
    let mut said = dir.run(&["gen", "-d", "s", "posts.jsonl", ONE]).exits(0).stderr;
    for verb in ["submit", "cancel", "fetch"] {
        said += &ran(&dir, &provider.base, &[verb, "-d", "s"]).exits(0).stderr;
    }
    for verb in [&["status", "-d", "s"][..], &["verify", "-d", "s"]] {
        let ran = dir.run(verb).exits(0);
        said += &format!("{}{}", ran.text(), ran.stderr);
    }
    said += &run(&dir, &provider.base, &[]).exits(0).stderr;
    said += &run(&dir, &provider.base, &[]).exits(0).stderr;
    dir.write("bad.jsonl", "{\"content\":7}\n{\"content\":\"x\"}\n");
    said += &dir.run(&["gen", "bad.jsonl", ONE, "--faults", "faults.jsonl"]).exits(1).stderr;
    let words: Vec<&str> = said.split_whitespace().collect();
    let plural = words.windows(2).find(|pair| {
        let noun = pair[1].trim_end_matches(|c: char| !c.is_alphanumeric());
        pair[0].trim_start_matches('(') == "1" && noun.len() > 2 && noun.ends_with('s') && !noun.ends_with("ss")
    });
    assert_eq!(plural, None, "{said}");
}

// ---- 17: what is refused, and how it is mended

/// A gateway with a small body limit, as nginx has by default.
#[test]
fn r10_17_a_file_that_is_too_large_is_cut_smaller_without_new() {
    let dir = with_posts(40);
    let provider = Provider::start(|call| {
        let page = "<html><h1>413 Request Entity Too Large</h1></html>";
        (call.what == "POST /v4/files" && call.body.len() > 20_000).then(|| Said::new(413, page))
    });
    let ran = run(&dir, &provider.base, &["--timeout", "20s"]).exits(65);
    assert!(ran.stderr.contains("--max-bytes"), "{}", ran.stderr);
    assert_eq!(provider.calls("POST /v4/batches").len(), 0);
    let ran = run(&dir, &provider.base, &["--max-bytes", "10kB", "--timeout", "20s"]).exits(0);
    assert!(ran.stderr.contains("no batch was created"), "{}", ran.stderr);
    is_filled(&dir, 40);
    // A directory with a batch keeps its settings.
    run(&dir, &provider.base, &["--max-bytes", "9kB"]).exits(65);
}

/// Uploads that never became a batch stay where they are, and are named.
#[test]
fn r10_17_uploaded_files_of_settings_that_were_left_are_named() {
    let dir = with_posts(3);
    let provider = Provider::start(|call| {
        (call.what == "POST /v4/files" && call.before == 1).then(|| Said::new(400, "{\"error\":{\"code\":\"1210\"}}"))
    });
    dir.run(&["gen", "-d", "w", "posts.jsonl", ONE, "--max-lines", "1"]).exits(0);
    let mut command = dir.command(&["submit", "-d", "w", "--base-url", &provider.base, "--max-batches", "3"]);
    command.env("ZHIPUAI_API_KEY", KEY).env("ZBATCH_KILL", "before:create a batch");
    // Without the feature `drill` it is not killed; then there are batches, and nothing to see here.
    let killed = command.output().expect("the program starts").status.code().is_none();
    if killed {
        // An intent is a create that may have been sent.
        dir.run(&["gen", "-d", "w", "posts.jsonl", ONE, "--max-lines", "2"]).exits(65);
    }
    dir.run(&["gen", "-d", "v", "posts.jsonl", ONE, "--max-lines", "1"]).exits(0);
    let journal = dir.read("v/journal.jsonl");
    let uploaded = json!({"event": "uploaded", "chunk": "sentiment_polarity_batch_part1", "file_id": "file-of-ours"});
    dir.write("v/journal.jsonl", format!("{journal}{uploaded}\n"));
    let ran = dir.run(&["gen", "-d", "v", "posts.jsonl", ONE, "--max-lines", "2"]).exits(0);
    assert!(ran.stderr.contains("file-of-ours"), "{}", ran.stderr);
    assert!(dir.exists("v/requests/sentiment_polarity_batch_part2.jsonl"));
    assert!(!dir.exists("v/requests/sentiment_polarity_batch_part3.jsonl"));
    assert!(!dir.exists("v/rows/sentiment_polarity_batch_part3.txt"));
}

/// Words of gateways and providers in public bug reports: DeepSeek, SiliconFlow, one-api, new-api, AiHubMix, sub2api.
#[test]
fn r10_17_an_empty_wallet_is_no_wrong_key() {
    for (status, body, code) in [
        (403, json!({"error": {"message": "Insufficient Balance", "type": "unknown_error"}}), 69),
        (403, json!({"code": 30011, "message": "Your paid balance is insufficient. Please top up.", "data": null}), 69),
        (403, json!({"error": {"message": "user quota is not enough", "code": "insufficient_user_quota"}}), 69),
        (403, json!({"error": {"message": "用户额度不足, 剩余额度: -0.000002"}}), 69),
        (401, json!({"error": {"message": "该令牌额度已用尽"}}), 69),
        (401, json!({"error": {"message": "您的账户已欠费，请充值后重试。"}}), 69),
        (403, json!({"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"}), 69),
        (402, json!({"error": {"message": "pay"}}), 69),
        (403, json!({"error": {"message": "Forbidden by the load balancer"}}), 77),
        (401, json!({"error": {"message": "bad credentials"}}), 77),
    ] {
        let dir = with_posts(1);
        let said = body.to_string();
        let provider =
            Provider::start(move |call| (call.what == "POST /v4/files").then(|| Said::new(status, said.clone())));
        let ran = run(&dir, &provider.base, &[]);
        assert_eq!(ran.code, Some(code), "{body}: {}", ran.stderr);
    }
}

/// Copied from a `.env`, from a web page, from a header.
#[test]
fn r10_17_a_key_that_was_copied_badly_is_refused_before_the_first_call() {
    for (key, named) in [
        (format!("\"{KEY}\""), "quotes"),
        (format!("'{KEY}'"), "quotes"),
        (format!("“{KEY}”"), "quotes"),
        (format!("ZHIPUAI_API_KEY={KEY}"), "ZHIPUAI_API_KEY="),
        (format!("api_key={KEY}"), "api_key="),
        (format!("export ZHIPUAI_API_KEY={KEY}"), "export"),
        (format!("Bearer {KEY}"), "Bearer"),
        (format!("{KEY}\nsecond-line"), "line break"),
        (format!("id {KEY}"), "blank"),
        (format!("{KEY}…"), "character"),
    ] {
        let dir = with_posts(1);
        dir.write("key", &key);
        std::fs::set_permissions(dir.join("key"), Permissions::from_mode(0o600)).expect("set");
        let provider = Provider::start(|_| None);
        let ran = run(&dir, &provider.base, &["--key-file", "key"]).exits(77);
        assert!(ran.stderr.contains(named), "{key}: {}", ran.stderr);
        assert!(!ran.stderr.contains("ididid") && !ran.stderr.contains("secretsecret"), "{}", ran.stderr);
        assert_eq!(provider.calls("").len(), 0);
    }
}

/// This build speaks to http and https proxies only; it used to talk HTTP to a socks port.
#[test]
fn r10_17_a_proxy_that_cannot_be_used_is_refused_before_the_first_call() {
    let dir = with_posts(1);
    dir.run(&["gen", "-d", "w", "posts.jsonl", ONE]).exits(0);
    for (name, value) in [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("https_proxy", "socks5h://user:password@127.0.0.1:1080"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:1080"),
        ("HTTPS_PROXY", "not a proxy:password"),
        ("all_proxy", "ftp://user:password@127.0.0.1"),
    ] {
        let mut command = dir.command(&["submit", "-d", "w", "--base-url", "https://provider.example/v4"]);
        for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(proxy);
        }
        let ran = Ran::of(command.env(name, value).env("ZHIPUAI_API_KEY", KEY).output().expect("it starts")).exits(64);
        assert!(ran.stderr.contains(name), "{value}: {}", ran.stderr);
        assert!(!ran.stderr.contains("password"), "{}", ran.stderr);
    }
}

/// A proxy that wants a password.
#[test]
fn r10_17_a_proxy_that_refuses_is_asked_once() {
    let dir = with_posts(1);
    dir.run(&["gen", "-d", "w", "posts.jsonl", ONE]).exits(0);
    let proxy = Provider::start(|_| Some(Said::new(407, "").with("Proxy-Authenticate: Basic realm=\"x\"")));
    let mut command = dir.command(&["submit", "-d", "w", "--base-url", "https://provider.example/v4"]);
    for name in ["ALL_PROXY", "all_proxy", "https_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command.env("HTTPS_PROXY", format!("http://{}", proxy.address)).env("ZHIPUAI_API_KEY", KEY);
    let ran = Ran::of(command.output().expect("it starts")).exits(69);
    assert_eq!(proxy.calls("CONNECT").len(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("407") && ran.stderr.contains(&proxy.address), "{}", ran.stderr);
    assert!(ran.stderr.contains("provider.example") && ran.stderr.contains("HTTPS_PROXY"), "{}", ran.stderr);
}

#[test]
fn r10_17_help_names_the_proxy_variables() {
    for verb in ["run", "submit", "fetch", "cancel", "doctor"] {
        let ran = WorkDir::new().run(&[verb, "--help"]).exits(0);
        for name in ["HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            assert!(ran.text().contains(name), "{verb}: {name}");
        }
    }
}

// ---- 19: pending rows, cancelling, batches that failed

/// `run --no-wait` counted every row whose batch still ran as an `absent` fault.
#[test]
fn r10_19_a_row_that_is_pending_is_no_fault() {
    let dir = with_posts(4);
    let provider = Provider::start(|call| {
        let running = json!({"id": "batch-2", "status": "in_progress", "input_file_id": "file-2"});
        (call.what == "GET /v4/batches/batch-2" && call.before == 0).then(|| Said::json(&running))
    });
    let settings = ["--max-lines", "2", "--faults", "faults.jsonl"];
    let ran = run(&dir, &provider.base, &[&settings[..], &["--no-wait"]].concat()).exits(75);
    let report: Value = serde_json::from_str(&dir.read("w/integration_report.json")).expect("JSON");
    let counts = &report["integration_stats"]["analyses"]["sentiment_polarity"];
    assert_eq!((&counts["pending"], &counts["faults"]), (&json!(2), &json!({})), "{report}");
    assert_eq!(dir.read("faults.jsonl"), "");
    assert!(ran.stderr.contains("pending: 2 rows"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("absent"), "{}", ran.stderr);
    run(&dir, &provider.base, &settings).exits(0);
    is_filled(&dir, 4);
}

#[test]
fn r10_19_status_says_cancelling_after_cancel() {
    let dir = with_posts(2);
    let provider = Provider::start(|call| {
        let status = if call.what.starts_with("POST") { "cancelling" } else { "in_progress" };
        let shown = json!({"id": "batch-1", "status": status, "input_file_id": "file-1"});
        call.what.contains("/v4/batches/batch-1").then(|| Said::json(&shown))
    });
    dir.run(&["gen", "-d", "w", "posts.jsonl", ONE]).exits(0);
    ran(&dir, &provider.base, &["submit", "-d", "w"]).exits(0);
    assert!(dir.run(&["status", "-d", "w"]).exits(0).text().contains("1 running"));
    ran(&dir, &provider.base, &["cancel", "-d", "w"]).exits(0);
    let text = dir.run(&["status", "-d", "w"]).exits(0).text().to_owned();
    assert!(text.contains(" cancelling ") && text.contains("1 cancelling") && text.contains("0 running"), "{text}");
    let shown: Value = serde_json::from_str(dir.run(&["status", "-d", "w", "--json"]).text()).expect("JSON");
    assert_eq!((&shown["chunks"][0]["step"], &shown["counts"]["cancelling"]), (&json!("cancelling"), &json!(1)));
    // Once more does no harm.
    ran(&dir, &provider.base, &["cancel", "-d", "w"]).exits(0);
}

/// All rows of a batch that failed or expired stood in its error file: nothing named it.
#[test]
fn r10_19_a_batch_that_failed_is_named_with_its_reason_wherever_its_rows_are() {
    for status in ["failed", "expired", "cancelled"] {
        let dir = with_posts(1);
        let provider = Provider::start(move |call| {
            if call.what == "GET /v4/files/err-1/content" {
                let error = json!({"code": "1301", "message": "blocked"});
                let line = json!({"custom_id": "sentiment_polarity_0000", "response": null, "error": error});
                return Some(Said::new(200, line.to_string() + "\n"));
            }
            let reason = json!({"data": [{"code": "x", "message": "the reason of the provider"}]});
            let shown = json!({
                "id": "batch-1", "status": status, "input_file_id": "file-1", "error_file_id": "err-1",
                "request_counts": {"total": 1, "completed": 0, "failed": 1}, "errors": reason,
            });
            (call.what == "GET /v4/batches/batch-1").then(|| Said::json(&shown))
        });
        let ran = run(&dir, &provider.base, &["-q"]).exits(1);
        let named = ran.stderr.lines().filter(|line| line.contains("the reason of the provider"));
        assert_eq!(named.clone().count(), 1, "{status}: {}", ran.stderr);
        assert!(named.clone().all(|line| line.contains("batch-1") && line.contains(status)), "{}", ran.stderr);
    }
}

// ---- 20: Retry-After

/// 153 of 243 calls came too early in a trial.
#[test]
fn r10_20_retry_after_pauses_every_call_to_the_provider() {
    let dir = with_posts(40);
    let provider = Provider::start(|call| {
        let slow = json!({"error": {"code": "1302", "message": "slow"}}).to_string();
        (call.what == "GET /v4/batches/batch-1" && call.before == 0)
            .then(|| Said::new(429, slow).with("Retry-After: 2"))
    });
    run(&dir, &provider.base, &["--max-lines", "1", "--max-concurrent-tasks", "2", "--timeout", "30s"]).exits(0);
    is_filled(&dir, 40);
    let told = provider.calls("GET /v4/batches/batch-1")[0].at;
    let after = |call: &Call| call.at.saturating_duration_since(told);
    // What was on its way when the answer went out may still come.
    let on_its_way = Duration::from_millis(100);
    let early: Vec<Call> = provider.calls("");
    let early = early.iter().filter(|call| after(call) > on_its_way && after(call) < Duration::from_secs(2));
    assert_eq!(early.clone().count(), 0, "{:?}", early.map(|call| (&call.what, after(call))).collect::<Vec<_>>());
}

// ---- issue 11

/// Counts, times and lines of a batch, and what a server asks to wait, as large as they can be written.
#[test]
fn r11_7_a_server_of_large_numbers_ends_as_another() {
    let large = ["18446744073709551615", "18446744073709551616", "-1", "1e308"];
    for (number, status) in large.iter().flat_map(|number| [(*number, "completed"), (*number, "failed")]) {
        let dir = with_posts(2);
        let provider = Provider::start(move |call| {
            let batch = format!(
                "{{\"id\":\"batch-1\",\"status\":\"{status}\",\"input_file_id\":\"file-1\",\"created_at\":{number},\
                 \"completed_at\":{number},\"output_file_id\":\"out-1\",\"request_counts\":{{\"total\":{number},\
                 \"completed\":{number},\"failed\":{number}}},\"errors\":[{{\"line\":{number},\"message\":\"bad\"}}]}}"
            );
            let header = format!("Retry-After: {number}");
            match call.what.as_str() {
                "GET /v4/batches/batch-1" => Some(Said::new(200, batch).with(&header)),
                _ => None,
            }
        });
        let began = Instant::now();
        let ran = run(&dir, &provider.base, &["--timeout", "20s"]);
        assert!(matches!(ran.code, Some(0 | 1 | 69 | 75)), "{number} {status}: {:?} {}", ran.code, ran.stderr);
        assert!(!ran.stderr.contains("panicked") && began.elapsed() < Duration::from_secs(20), "{}", ran.stderr);
        let shown = dir.run(&["status", "-d", "w"]);
        assert!(matches!(shown.code, Some(0 | 1)), "{number} {status}: {}", shown.stderr);
    }
}

/// The client library cut it after 30 s (`TCP_USER_TIMEOUT`), and sent all of it again.
#[test]
fn r11_9f_an_upload_whose_peer_pauses_40_seconds_goes_on() {
    let dir = WorkDir::new();
    // More than the buffers of both sides hold.
    dir.write("posts.jsonl", json!({"content": "x".repeat(24 << 20)}).to_string() + "\n");
    let uploads = Arc::new(Mutex::new(0));
    let begun = Arc::clone(&uploads);
    let pause = move |what: &str| {
        if what == "POST /v4/files" {
            *begun.lock().expect("whole") += 1;
            std::thread::sleep(Duration::from_secs(40));
        }
    };
    let provider = Provider::start_with(pause, |_| None);
    let began = Instant::now();
    let ran = run(&dir, &provider.base, &["--timeout", "110s"]);
    assert_eq!(*uploads.lock().expect("whole"), 1, "{}", ran.stderr);
    ran.exits(0);
    assert!(began.elapsed() >= Duration::from_secs(40), "{:?}", began.elapsed());
    is_filled(&dir, 1);
}

/// It said `--new`, which pays for the finished rows again.
#[test]
fn r11_9e_a_model_that_is_retired_in_the_middle_is_told_with_the_command_for_the_rest() {
    let dir = with_posts(4);
    let retired = Arc::new(Mutex::new(true));
    let is_retired = Arc::clone(&retired);
    let provider = Provider::start(move |call| {
        let gone = json!({"error": {"code": "1211", "message": "模型不存在，请检查模型代码。"}}).to_string();
        let is_create = call.what == "POST /v4/batches" && call.before > 1;
        (is_create && *is_retired.lock().expect("whole")).then(|| Said::new(400, gone))
    });
    let job =
        ["run", "posts.jsonl", ONE, "-d", "it's w", "-o", "out.jsonl", "--max-lines", "1", "--model", "glm-4-air"];
    let ran = ran(&dir, &provider.base, &[&job[..], &["--max-concurrent-tasks", "1", "--max-faults", "9"]].concat())
        .exits(69);
    assert!(!ran.stderr.contains("--new"), "{}", ran.stderr);
    let advice = ran.stderr.lines().find_map(|line| line.split_once("fix: ask another model for the rest: "));
    let (_, command) = advice.unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(command.starts_with("zbatch run --missing ") && command.contains("'it'\\''s w-round2'"), "{command}");
    assert!(command.contains("--model ANOTHER_MODEL") && !command.contains("glm-4-air"), "{command}");
    let uploads = || provider.calls("POST /v4/files").len();
    let before = uploads();
    // As it is pasted, with a model.
    *retired.lock().expect("whole") = false;
    let command = command.replace("ANOTHER_MODEL", "glm-4-flash");
    let command = command.replacen("zbatch", &format!("'{}'", env!("CARGO_BIN_EXE_zbatch")), 1);
    let mut shell = std::process::Command::new("sh");
    let next = shell.args(["-c", &command]).current_dir(dir.path()).env("ZHIPUAI_API_KEY", KEY).output();
    let next = Ran::of(next.expect("sh starts")).exits(0);
    let rows = uploads() - before;
    assert_eq!(rows, 2, "the finished rows are not asked again: {}", next.stderr);
    let out = dir.path().read_dir().expect("listed").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let out = out.into_iter().find(|name| name.contains("round2") && name.contains("out")).expect("an output");
    assert_eq!(dir.read(&out).matches("\"sentiment_polarity\":3").count(), 4, "{}", dir.read(&out));
}
