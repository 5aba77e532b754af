//! K1: the key is sent to the provider and is nowhere else, whatever the provider does with it: not in a file or its name,
//! not on stdout or stderr, not in an argument list, not at another origin.

use std::{
    fs::Permissions,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;
use serde_json::json;

use crate::workdir::{Ran, WorkDir};

/// Every kind of character that some encoder changes.
const KEY: &str = r#"Kq7+/="\%'&<Zx93hVbTnM_wE5rTy8u.Io2pAs4dFg6-hJk0~{}"#;
const ONE: &str = "--only=topic_analysis";
/// A part of this length is telling: of the key, of its base64, of its hex.
const PART: usize = 12;
const PART_BASE64: usize = 16;
const PART_HEX: usize = 24;

fn every(spell: impl Fn(u8) -> String) -> String {
    KEY.bytes().map(spell).collect()
}

fn beginning(length: usize) -> &'static str {
    KEY.get(..length).expect("ASCII")
}

/// What a server may make of the key before it says it.
fn spellings() -> Vec<String> {
    let [standard, url] = [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::URL_SAFE];
    let json = json!(KEY).to_string();
    let json = json.trim_matches('"').to_owned();
    let percent =
        every(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") });
    let mut spellings = vec![
        KEY.to_owned(),
        format!("Bearer {KEY}"),
        json.replace('/', "\\/"),
        json.replace('\\', "\\\\"),
        json,
        percent.to_lowercase(),
        percent,
        every(|byte| format!("%{byte:02x}")),
        every(|byte| format!("\\u{byte:04x}")),
        every(|byte| format!("\\u{byte:04X}")),
        every(|byte| if byte % 3 == 0 { format!("\\u{byte:04x}") } else { char::from(byte).into() }),
        every(|byte| format!("&#{byte};")),
        KEY.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;").replace('\'', "&#x27;"),
        every(|byte| format!("{byte:02x}")),
        every(|byte| format!("{byte:02X}")),
    ];
    for length in [PART, PART + 1, 20, KEY.len() - 1] {
        spellings.push(beginning(length).to_owned());
        spellings.push(KEY.get(KEY.len() - length..).expect("ASCII").to_owned());
    }
    for around in ["", "u:", "user:", "api:user:"] {
        for engine in [&standard, &url] {
            let encoded = engine.encode(format!("{around}{KEY}"));
            spellings.push(encoded.trim_end_matches('=').to_owned());
            spellings.push(encoded);
        }
    }
    spellings
}

/// Parts of the key that nobody may see.
struct Search {
    parts: Vec<String>,
}

impl Search {
    fn new() -> Self {
        let mut parts = Vec::new();
        let mut add = |text: &str, length: usize| {
            parts.extend(text.as_bytes().windows(length).map(|part| String::from_utf8_lossy(part).to_lowercase()));
        };
        for spelled in spellings().iter().take(8) {
            add(spelled.trim_start_matches("Bearer "), PART);
        }
        add(&every(|byte| format!("{byte:02x}")), PART_HEX);
        for engine in
            [base64::engine::general_purpose::STANDARD_NO_PAD, base64::engine::general_purpose::URL_SAFE_NO_PAD]
        {
            for around in ["", "u", "us"] {
                let encoded = engine.encode(format!("{around}{KEY}"));
                // The ends also tell what stood around it.
                add(encoded.get(4..encoded.len() - 4).expect("ASCII"), PART_BASE64);
            }
        }
        parts.sort();
        parts.dedup();
        Self { parts }
    }

    #[track_caller]
    fn none_in(&self, what: &str, text: &[u8]) {
        let text = String::from_utf8_lossy(text).to_lowercase();
        for part in &self.parts {
            assert!(!text.contains(part.as_str()), "{what} shows {part:?}:\n{text}");
        }
    }

    #[track_caller]
    fn none_below(&self, dir: &Path) {
        for entry in std::fs::read_dir(dir).expect("listed") {
            let path = entry.expect("an entry").path();
            let name = path.display().to_string();
            self.none_in("a name", name.as_bytes());
            if path.is_dir() {
                self.none_below(&path);
            } else if path.file_name().is_some_and(|name| name != "key") {
                self.none_in(&name, zbatch::lines::input::read_small(&path, 1 << 24).expect("text").as_bytes());
            }
        }
    }

    #[track_caller]
    fn none_said(&self, ran: &Ran) {
        self.none_in("stdout", &ran.stdout);
        self.none_in("stderr", ran.stderr.as_bytes());
    }
}

/// A server that has only one thing to say. What it says, and how often it was called, is up to the test.
struct Parrot {
    base: String,
    calls: Arc<AtomicUsize>,
    /// The bearer tokens that came.
    keys: Arc<Mutex<Vec<String>>>,
}

struct Call {
    /// `GET /x`
    what: String,
    body: String,
    number: usize,
}

struct Said {
    status: u16,
    headers: String,
    body: String,
}

impl Said {
    fn json(body: &serde_json::Value) -> Self {
        Self { status: 200, headers: "Content-Type: application/json\r\n".to_owned(), body: body.to_string() }
    }
}

impl Parrot {
    fn start(say: impl Fn(&Call) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}/v4", listener.local_addr().expect("an address"));
        let (calls, keys, say) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::default()), Arc::new(say));
        let parrot = Self { base, calls: Arc::clone(&calls), keys: Arc::clone(&keys) };
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (calls, keys, say) = (Arc::clone(&calls), Arc::clone(&keys), Arc::clone(&say));
                std::thread::spawn(move || answer(socket.expect("a connection"), &calls, &keys, &*say));
            }
        });
        parrot
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// One call, one reply.
fn answer(mut socket: TcpStream, calls: &AtomicUsize, keys: &Mutex<Vec<String>>, say: &dyn Fn(&Call) -> Said) {
    let mut from = BufReader::new(socket.try_clone().expect("cloned"));
    let (mut what, mut length, mut line) = (String::new(), 0, String::new());
    while from.read_line(&mut line).expect("read") > 2 {
        if what.is_empty() {
            what = line.rsplit_once(' ').expect("a request line").0.to_owned();
        }
        if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().expect("a length"),
                "authorization" => keys.lock().expect("whole").push(value.trim().to_owned()),
                _ => {}
            }
        }
        line.clear();
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).expect("read");
    let number = calls.fetch_add(1, Ordering::SeqCst);
    let Said { status, headers, body } = say(&Call { what, body: String::from_utf8_lossy(&body).into_owned(), number });
    let head =
        format!("HTTP/1.1 {status} {KEY}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    // Whoever had enough may leave.
    let _gone = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body.as_bytes()));
}

/// A directory with two posts, cut into one chunk, and the key in a file.
fn setup() -> WorkDir {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n").write("key", KEY);
    std::fs::set_permissions(dir.join("key"), Permissions::from_mode(0o600)).expect("set");
    dir.run(&["gen", "-d", "w", "posts.jsonl", ONE]).exits(0);
    dir
}

/// As verbose as it gets; `from_file`: the key comes from a file, else from the environment. Its arguments are looked at
/// while it runs.
#[track_caller]
fn run(dir: &WorkDir, search: &Search, args: &[&str], base: &str, from_file: bool) -> Ran {
    let mut command = dir.command(args);
    if !base.is_empty() {
        command.args(["--base-url", base, "--poll-interval", "10ms", "--timeout", "10s"]);
        if from_file {
            command.args(["--key-file", "key"]);
        }
    }
    command.args(["-vv", "--progress", "json"]).envs([("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full")]);
    if !from_file {
        command.env("ZHIPUAI_API_KEY", KEY);
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let process = Path::new("/proc").join(child.id().to_string());
    // A few looks, at its children too; it may have ended by then.
    for _ in 0..3 {
        let list = |path: std::path::PathBuf| zbatch::lines::input::read_small(&path, 1 << 20).unwrap_or_default();
        let children = list(process.join(format!("task/{}/children", child.id())));
        search.none_in("an argument list", list(process.join("cmdline")).as_bytes());
        for pid in children.split_whitespace() {
            search.none_in("an argument list", list(Path::new("/proc").join(pid).join("cmdline")).as_bytes());
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    let ran = Ran::of(child.wait_with_output().expect("it ends"));
    search.none_said(&ran);
    ran
}

/// Each spelling under each kind of refusal, in bodies and headers; where it is told to go instead, it does not go.
#[test]
fn k1_what_a_refusal_says_of_the_key_is_not_said_again() {
    let (dir, search) = (setup(), Search::new());
    let elsewhere = Parrot::start(|_| Said::json(&json!({"id": "file-of-a-thief"})));
    let statuses = [200, 400, 401, 403, 404, 408, 409, 413, 429, 434, 435, 500, 502, 503, 504, 301, 302, 303, 307, 308];
    let said: Vec<(u16, String)> =
        spellings().into_iter().zip(statuses.into_iter().cycle()).map(|(a, b)| (b, a)).collect();
    let (count, other) = (said.len(), elsewhere.base.clone());
    let parrot = Parrot::start(move |call| {
        let (status, spelled) = said.get(call.number % said.len()).expect("within");
        let header = if spelled.starts_with('\\') { "x" } else { spelled };
        let body = match call.number / said.len() {
            0 => json!({"error": {"code": spelled, "message": format!("bad key {spelled}, says {KEY}")}}).to_string(),
            1 => format!("<html><p title=\"{spelled}\">bad key {spelled}</p>"),
            _ => json!({"code": "x", "msg": json!({"detail": spelled}).to_string()}).to_string(),
        };
        let kind = if call.number % 2 == 0 { "application/json" } else { "text/plain" };
        Said {
            status: *status,
            headers: format!(
                "x-should-retry: false\r\nLocation: {other}/files?key={header}\r\nRetry-After: {header}\r\n\
                 WWW-Authenticate: Bearer realm=\"{header}\"\r\nSet-Cookie: key={header}\r\nX-Request-Id: {header}\r\n\
                 Content-Type: {kind}; charset={header}\r\n"
            ),
            body,
        }
    });
    for round in 0..3 * count {
        let before = parrot.calls();
        let ran = run(&dir, &search, &["submit", "-d", "w", "--no-wait"], &parrot.base, round % 2 == 0);
        assert!([65, 69, 75, 77].contains(&ran.code.expect("ended")), "{}", ran.stderr);
        // The list, and the upload where the list is not there.
        assert!((1..=2).contains(&(parrot.calls() - before)), "{}", ran.stderr);
    }
    search.none_below(dir.path());
    assert_eq!(elsewhere.calls(), 0, "nobody went there");
    assert!(parrot.keys.lock().expect("whole").iter().all(|key| *key == format!("Bearer {KEY}")));
}

/// A provider that works, and puts the key wherever it can: into ids (which are not taken), words, metadata, counts,
/// errors, file names and the rows themselves.
#[test]
fn k1_a_provider_that_puts_the_key_everywhere() {
    let search = Search::new();
    for from_file in [false, true] {
        let dir = setup();
        let parrot = Parrot::start(|call| {
            let row = |index: usize, text: &str| {
                let content = json!([{"parent_topic": text, "sub_topic": KEY}]).to_string();
                let choice = json!({"index": 0, "finish_reason": KEY, "message": {"content": content, "role": KEY}});
                let body = json!({"choices": [choice], "id": KEY, "model": KEY, KEY: KEY});
                let error = json!({"code": KEY, "message": text});
                let response = json!({"status_code": 400 + index, "request_id": KEY, "body": body});
                json!({"id": KEY, "custom_id": format!("topic_analysis_{index:04}"), "response": response, "error": error})
                    .to_string()
                    + "\n"
            };
            let batch = |status: &str| {
                json!({
                    "id": "batch-1", "status": status, "input_file_id": KEY, "output_file_id": "out-1",
                    "error_file_id": "err-1", "object": KEY, "request_counts": {"total": 2, KEY: 2},
                    "metadata": {KEY: KEY, "zbatch": KEY}, "errors": {"data": [{"code": KEY, "message": KEY, "line": 1}]},
                })
            };
            match call.what.split('?').next().unwrap_or_default() {
                "POST /v4/files" => {
                    // An echo of the key for an id is no id: it is asked once more.
                    let id = ["file-1", KEY, beginning(20)][(call.number + 1) % 3];
                    assert!(call.body.contains("filename=\"topic_analysis_batch_part1.jsonl\""), "{}", call.body);
                    Said::json(&json!({"id": id, "filename": KEY, "purpose": KEY}))
                }
                "GET /v4/batches" => Said::json(&json!({"object": KEY, "data": [], "has_more": false, KEY: KEY})),
                "POST /v4/batches" => Said::json(&batch("validating")),
                "GET /v4/batches/batch-1" if call.number < 7 => Said::json(&batch(KEY)),
                "GET /v4/batches/batch-1" | "POST /v4/batches/batch-1/cancel" => Said::json(&batch("expired")),
                "GET /v4/files/out-1/content" => {
                    let body = row(0, &format!("prefix {}", beginning(PART))) + KEY + "\n" + KEY;
                    Said { status: 200, headers: format!("Content-Disposition: {KEY}\r\n"), body }
                }
                "GET /v4/files/err-1/content" => {
                    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("user:{KEY}"));
                    Said { body: row(1, &format!("bad key {KEY} {encoded}")), ..Said::json(&json!(null)) }
                }
                _ => Said::json(&json!({"id": KEY, "deleted": KEY})),
            }
        });
        let base = parrot.base.as_str();
        let run = |args: &[&str], base: &str| run(&dir, &search, args, base, from_file);
        let ran = run(&["submit", "-d", "w"], base).exits(0);
        assert!(
            ran.stderr.contains("\"batch_id\"") || ran.stderr.contains("create a batch"),
            "-vv shows calls: {}",
            ran.stderr
        );
        let ran = run(&["fetch", "-d", "w", "-o", "results.jsonl"], base).exits(1);
        assert!(ran.stderr.contains("the server put the key into it"), "{}", ran.stderr);
        let whole = run(&["run", "posts.jsonl", ONE, "-d", "r", "-o", "out.json", "--faults", "faults.jsonl"], base);
        assert!(whole.code == Some(1) || whole.code == Some(65), "{}", whole.stderr);
        run(&["cancel", "-d", "w"], base);
        for args in [
            &["gen", "posts.jsonl", ONE, "-o", "requests.jsonl"][..],
            &["chunk", "requests.jsonl", ONE, "-d", "c"],
            &["parse", "results.jsonl", ONE, "-o", "answers.jsonl", "--report", "parse.json"],
            &["merge", "posts.jsonl", "answers.jsonl", ONE, "-o", "enhanced.json", "--faults", "merge.jsonl"],
            &["status", "-d", "w"],
            &["status", "-d", "w", "--json"],
            &["config"],
        ] {
            let ran = run(args, "");
            assert!(ran.code == Some(0) || ran.code == Some(1), "{args:?}: {}", ran.stderr);
        }
        search.none_below(dir.path());
        assert!(dir.read("w/results/topic_analysis_batch_part1.error.jsonl").contains("bad key [key] dXNlc"));
        assert!(dir.read("faults.jsonl").contains("[key]"), "{}", dir.read("faults.jsonl"));
        assert!(parrot.calls() > 12);
    }
}

/// The same for the key of a chat server behind the emulator.
#[test]
fn k1_the_key_of_an_upstream_server() {
    let (dir, search) = (setup(), Search::new());
    let parrot = Parrot::start(|call| Said {
        status: if call.number % 2 == 0 { 400 } else { 200 },
        ..Said::json(&json!({"choices": [{"message": {"content": KEY}}], "error": {"code": KEY, "message": KEY}}))
    });
    let mut command = dir.command(&["run", "posts.jsonl", ONE, "-d", "u", "-o", "out.json", "--emulate", "-vv"]);
    command.args(["--upstream", &parrot.base, "--faults", "faults.jsonl"]).env("ZBATCH_UPSTREAM_KEY", KEY);
    let ran = Ran::of(command.output().expect("it starts")).exits(1);
    search.none_said(&ran);
    search.none_below(dir.path());
    assert_eq!(*parrot.keys.lock().expect("whole"), [format!("Bearer {KEY}"), format!("Bearer {KEY}")]);
    assert!(dir.read("faults.jsonl").contains("[key]"));
}

#[test]
fn k1_a_key_file_that_others_can_read_is_refused_before_any_call() {
    let (dir, search) = (setup(), Search::new());
    let parrot = Parrot::start(|_| Said::json(&json!({"id": "file-1"})));
    for mode in [0o604, 0o640, 0o620, 0o666] {
        std::fs::set_permissions(dir.join("key"), Permissions::from_mode(mode)).expect("set");
        let ran = run(&dir, &search, &["submit", "-d", "w"], &parrot.base, true).exits(77);
        assert!(ran.stderr.contains("chmod 600 key"), "{}", ran.stderr);
    }
    for (bad, why) in
        [("", "it is empty"), (&*format!("{KEY}\n{KEY}\n"), "line break"), (&*format!("{KEY}é"), "no key has")]
    {
        dir.write("key", bad);
        std::fs::set_permissions(dir.join("key"), Permissions::from_mode(0o600)).expect("set");
        let ran = run(&dir, &search, &["submit", "-d", "w"], &parrot.base, true).exits(77);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
    assert_eq!(parrot.calls(), 0);
}

/// The search itself: it finds what it should.
#[test]
fn k1_the_search_finds_every_spelling() {
    let search = Search::new();
    let shown = |text: &str| std::panic::catch_unwind(|| search.none_in("it", text.as_bytes())).is_err();
    let escaped = |text: &str| text.contains("\\u00") || text.contains("&") && !text.contains("&<");
    for spelled in spellings().iter().filter(|spelled| !escaped(spelled)) {
        assert!(shown(&format!("x{spelled}x")), "{spelled}");
    }
    assert!(!shown("ordinary text, [key], and Kq7+/=\"\\%'"));
}
