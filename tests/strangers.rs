//! The emulator and those it does not serve: directories that are not its own, ids that somebody wrote into its state, web pages,
//! other names, other keys, and clients that send anything but a request.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, symlink},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    server::{Server, text},
    workdir::WorkDir,
};

const ZHIPU: &str = "/api/paas/v4";
const BATCHES: &str = "/api/paas/v4/batches";
const KEY: (&str, &str) = ("Authorization", "Bearer some.key");

fn line(n: usize) -> String {
    let line = json!({"custom_id": format!("sentiment_polarity_{n:04}"), "method": "POST", "url": "/v4/chat/completions",
        "body": {"model": "glm-4-air", "messages": [{"role": "user", "content": "x"}]}});
    line.to_string() + "\n"
}

fn start(work: &WorkDir, args: &[&str]) -> Server {
    Server::start(work, &work.join("state"), args)
}

/// Of a write only the file counts.
fn put(_: &WorkDir) {}

/// What a directory holds, by path: a mode, and the bytes of a file.
fn tree(work: &WorkDir) -> Vec<(String, u32, String)> {
    let (mut found, mut left) = (Vec::new(), vec![work.path().to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).expect("listed") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(work.path()).expect("below").to_string_lossy().into_owned();
            let meta = path.symlink_metadata().expect("there");
            let held = if meta.is_file() { work.read(&name) } else { String::new() };
            found.push((name, meta.permissions().mode(), held));
            if meta.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Starts an emulator on `state`. One that serves is ended, by its own process id.
fn start_for_a_moment(work: &WorkDir) -> std::process::Output {
    let mut command = work.command(&["emulate", "--state", "state"]);
    let mut child =
        command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().expect("starts");
    std::thread::sleep(Duration::from_millis(700));
    let _ended = child.kill();
    child.wait_with_output().expect("ended")
}

/// Seen with `--state ~/project`: every file of `~/project/files` was deleted.
#[test]
fn r11_3_a_directory_that_no_emulator_made_is_not_touched() {
    type Prepare = fn(&WorkDir);
    let prepared: [(&str, Prepare); 7] = [
        ("files", |work| put(work.write("state/files/thesis.txt", "years"))),
        ("anything", |work| put(work.write("state/notes.txt", "x"))),
        ("an empty state and files", |work| {
            work.write("state/state.jsonl", "").write("state/files/thesis.txt", "years");
        }),
        ("another state.jsonl", |work| put(work.write("state/state.jsonl", "{\"state\":\"running\"}\n"))),
        ("a state elsewhere", |work| {
            work.write("state/files/x", "x").write("precious", "kept");
            symlink(work.join("precious"), work.join("state/state.jsonl")).expect("linked");
        }),
        ("files elsewhere", |work| {
            work.write("state/state.jsonl", "{\"event\":\"opened\",\"version\":1}\n").write("mine/thesis.txt", "years");
            symlink(work.join("mine"), work.join("state/files")).expect("linked");
        }),
        ("a directory as the state", |work| put(work.write("state/state.jsonl/x", "x"))),
    ];
    for (name, prepare) in prepared {
        let work = WorkDir::new();
        prepare(&work);
        let before = tree(&work);
        let output = start_for_a_moment(&work);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(tree(&work), before, "{name}: {said}");
        assert_eq!(output.status.code(), Some(65), "{name}: {said}");
        assert!(said.contains("fix: "), "{name}: {said}");
    }
}

#[test]
fn r11_3_only_names_of_its_own_are_swept_and_files_are_private() {
    let work = WorkDir::new();
    let server = start(&work, &[]);
    let file = server.upload(ZHIPU, &line(1));
    server.terminate();
    let mode = |name: &str| std::fs::metadata(work.join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/files")), (0o700, 0o700));
    assert_eq!((mode("state/state.jsonl"), mode(&format!("state/files/{file}"))), (0o600, 0o600));
    let own = [
        "1_00112233445566778899aabbccddeeff",
        ".upload.0011aabb.part",
        ".1_00112233445566778899aabbccddee.01234567.part",
    ];
    let others = ["thesis.txt", ".hidden.part", "1_left", "1_00112233445566778899AABBCCDDEEFF"];
    for name in own.iter().chain(&others) {
        work.write(&format!("state/files/{name}"), "x");
    }
    std::fs::create_dir(work.join("state/files/2_00112233445566778899aabbccddeeff")).expect("made");
    start(&work, &[]).terminate();
    for (name, stays) in own.map(|name| (name, false)).into_iter().chain(others.map(|name| (name, true))) {
        assert_eq!(work.exists(&format!("state/files/{name}")), stays, "{name}");
    }
    assert!(
        work.exists(&format!("state/files/{file}")) && work.exists("state/files/2_00112233445566778899aabbccddeeff")
    );
}

/// An id of a state file becomes a path: `../../thesis.txt` was served, and deleted at the end of its batch.
#[test]
fn r11_3_an_id_of_another_shape_is_refused() {
    let opened = "{\"event\":\"opened\",\"version\":1}\n";
    let file = |id: &str| json!({"id": id, "at": 0, "name": "a.jsonl", "purpose": "batch", "bytes": 1, "lines": 1, "blake3": ""});
    let good = "1_00112233445566778899aabbccddeeff";
    let stored = |id: &str| json!({"event": "stored", "file": file(id)});
    let created = |batch: &str| {
        let create = json!({"file": good, "endpoint": "/v4/chat/completions", "auto_delete": true, "metadata": null,
            "due": 0, "fate": "completed"});
        json!({"event": "created", "batch": batch, "at": 0, "create": create})
    };
    let worked = json!({"event": "worked", "batch": "batch_1", "at": 0,
        "work": {"output": file("../../thesis.txt"), "errors": null, "completed": 1, "failed": 0}});
    for (events, says) in [
        (vec![stored("../../thesis.txt")], "line 2"),
        (vec![stored("/etc/hostname")], "`/etc/hostname` is no id of a file"),
        (vec![stored("")], "is no id of a file"),
        (vec![stored("1_..")], "is no id of a file"),
        (vec![stored(good), created("../x")], "line 3"),
        (vec![stored(good), created("batch_1"), worked], "line 4"),
    ] {
        let work = WorkDir::new();
        let lines: String = events.iter().map(|event: &Value| event.to_string() + "\n").collect();
        work.write("state/state.jsonl", opened.to_owned() + &lines).write("thesis.txt", "years");
        let output = start_for_a_moment(&work);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(65) && said.contains(says), "{lines}: {said}");
        assert_eq!(work.read("thesis.txt"), "years");
    }
}

/// Sends bytes as they are; what comes back until the connection ends.
fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(&server.address).expect("connects");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    // A server may close before it has read all.
    let _closed = socket.write_all(bytes);
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut piece) {
        reply.extend_from_slice(piece.get(..n).unwrap_or_default());
    }
    String::from_utf8_lossy(&reply).into_owned()
}

fn get(host: &str, more: &str) -> String {
    format!("GET {BATCHES} HTTP/1.1\r\n{host}Authorization: Bearer k\r\nConnection: close\r\n{more}\r\n")
}

#[test]
fn r11_8_only_loopback_names_are_answered_and_no_web_page() {
    let work = WorkDir::new();
    let server = start(&work, &[]);
    for host in ["127.0.0.1", "127.0.0.1:1", "localhost", "LocalHost:8900", "[::1]", "[::1]:80"] {
        let reply = raw(&server, get(&format!("Host: {host}\r\n"), "").as_bytes());
        assert!(reply.starts_with("HTTP/1.1 200 "), "{host}: {reply}");
    }
    let two = "Host: 127.0.0.1\r\nHost: evil.example\r\n";
    for host in [
        "",
        "Host: \r\n",
        "Host: evil.example\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
        "Host: localhost.evil.example:80\r\n",
        "Host: user@127.0.0.1\r\n",
        "Host: 127.0.0.1@evil.example\r\n",
        "Host: 0.0.0.0\r\n",
        "Host: 192.168.0.1\r\n",
        "Host: [::1].evil.example\r\n",
        "Host: 127.0.0.1/evil\r\n",
        two,
    ] {
        let reply = raw(&server, get(host, "").as_bytes());
        assert!(reply.starts_with("HTTP/1.1 421 ") || reply.starts_with("HTTP/1.1 400 "), "{host:?}: {reply}");
        assert!(!reply.contains("\"data\""), "{reply}");
    }
    let absolute = get("Host: 127.0.0.1\r\n", "").replace(BATCHES, &format!("http://evil.example{BATCHES}"));
    assert!(raw(&server, absolute.as_bytes()).starts_with("HTTP/1.1 421 "));
    let here = "Host: 127.0.0.1\r\n";
    for more in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://127.0.0.1\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        let reply = raw(&server, get(here, more).as_bytes());
        assert!(reply.starts_with("HTTP/1.1 403 ") && reply.contains("\"error\""), "{more}: {reply}");
        let ledger = get(here, more).replace(BATCHES, "/__emulator/ledger");
        assert!(raw(&server, ledger.as_bytes()).starts_with("HTTP/1.1 403 "), "{more}");
    }
    // Somebody types the address of the ledger.
    assert!(raw(&server, get(here, "Sec-Fetch-Site: none\r\n").as_bytes()).starts_with("HTTP/1.1 200 "));
}

#[test]
fn r11_8_with_upstream_only_the_key_that_was_shown_is_answered() {
    let work = WorkDir::new();
    let mut command = work.command(&["emulate", "--state", "state", "--upstream", "http://127.0.0.1:9/v1"]);
    work.write("log", "");
    command.stderr(std::fs::File::options().append(true).open(work.join("log")).expect("opened"));
    let server = Server::spawn_with_stderr(command);
    let said = work.read("log");
    let key = said.lines().find_map(|line| line.strip_prefix("export ZHIPUAI_API_KEY=")).expect("a key").to_owned();
    assert!(key.len() > 30 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{said}");
    let bearer = format!("Bearer {key}");
    let ask = |path: &str, headers: &[(&str, &str)]| server.request("GET", path, headers, b"").expect("a reply").status;
    let shorter = bearer.get(..bearer.len() - 1).expect("ASCII");
    for path in [BATCHES, "/v1/batches", "/__emulator/ledger", "/api/paas/v4/models"] {
        assert_eq!(ask(path, &[("Authorization", &bearer)]), 200, "{path}");
        for wrong in [&[][..], &[KEY], &[("Authorization", shorter)], &[("Authorization", &key)]] {
            assert_eq!(ask(path, wrong), 401, "{path} {wrong:?}");
        }
    }
    let refused = server.upload_named(ZHIPU, "a.jsonl", "batch", &line(1)).json(401);
    assert!(text(&refused["error"]["message"]).contains("on stderr"), "{refused}");
    assert!(!tree(&work).iter().any(|(name, _, held)| name != "log" && held.contains(&key)), "it is in no file");
    // Another start, another key.
    server.terminate();
    let again = start(&work, &["--upstream", "http://127.0.0.1:9/v1"]);
    assert_eq!(again.request("GET", BATCHES, &[("Authorization", &bearer)], b"").expect("a reply").status, 401);
}

/// A head that drips holds its connection for twenty seconds, and connections that do nothing keep nobody out for longer.
#[test]
fn r11_8_slow_heads_end_and_many_connections_are_refused_in_words() {
    let work = WorkDir::new();
    let server = start(&work, &[]);
    let started = Instant::now();
    let mut slow = TcpStream::connect(&server.address).expect("connects");
    slow.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ").expect("sent");
    let idle: Vec<TcpStream> = (0..520).filter_map(|_| TcpStream::connect(&server.address).ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    let refused = raw(&server, b"");
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("too many connections\"}}"), "{refused}");
    slow.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    while started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(500));
        if slow.write_all(b"a").is_err()
            || matches!(slow.set_nonblocking(true).and_then(|()| slow.peek(&mut [0])), Ok(0))
        {
            break;
        }
    }
    assert!(started.elapsed() < Duration::from_secs(40), "it drips on");
    drop(idle);
    let mut tries = 0..40;
    while server.request("GET", BATCHES, &[KEY], b"").is_none_or(|reply| reply.status != 200) {
        assert!(tries.next().is_some(), "nobody is served");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// They stand in the state log: a name of megabytes made it unreadable for the next start.
#[test]
fn r11_8_long_names_do_not_spoil_the_state() {
    let work = WorkDir::new();
    let server = start(&work, &[]);
    let long = "x".repeat(2 << 20);
    let file =
        server.upload("/v1", &line(1).replace("sentiment_polarity_0001", &format!("{long}_1")).replace("/v4/", "/v1/"));
    server.create("/v1", &file);
    let error = server.upload_named("/v1", &long, "batch", &line(1).replace("/v4/", "/v1/")).json(400);
    assert!(text(&error["error"]["message"]).contains("more than 255 bytes"), "{error:.200}");
    assert_eq!(server.terminate(), Some(143));
    assert_eq!(start(&work, &[]).ledger()["creates"][0]["lines"], json!(1));
}

/// Whatever is sent, something is said, nothing outside is touched, and the next client is served.
#[test]
fn r11_8_hostile_requests_are_answered() {
    let work = WorkDir::new();
    work.write("thesis.txt", "years");
    let server = start(&work, &[]);
    let head = |request: &str| {
        format!("{request} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\r\nConnection: close\r\n")
    };
    let form = |body: &str, more: &str| {
        let kind = "Content-Type: multipart/form-data; boundary=xx\r\n";
        format!("{}{kind}Content-Length: {}\r\n{more}\r\n{body}", head("POST /api/paas/v4/files"), body.len())
    };
    let part = |head: &str| format!("--xx\r\n{head}\r\n\r\n");
    let file = part("Content-Disposition: form-data; name=\"file\"; filename=\"../../a.jsonl\"");
    let create =
        |body: &str| format!("{}Content-Length: {}\r\n\r\n{body}", head("POST /api/paas/v4/batches"), body.len());
    let chunked = "Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n";
    let requests = [
        ("nothing of HTTP", "\u{0}\u{1}\u{2}\r\n\r\n".to_owned()),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}".to_owned() + "\r\n\r\n"),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("a large head", head("GET /v1/batches") + "X: " + &"y".repeat(2 << 20) + "\r\n\r\n"),
        ("many headers", head("GET /v1/batches") + &"X: y\r\n".repeat(20_000) + "\r\n"),
        ("a long path", head(&format!("GET /{}", "a/".repeat(40_000))) + "\r\n"),
        ("a path above", head("DELETE /api/paas/v4/files/../../thesis.txt") + "\r\n"),
        ("a path above, escaped", head("DELETE /api/paas/v4/files/..%2F..%2F..%2Fthesis.txt") + "\r\n"),
        ("a path with NUL", head("GET /api/paas/v4/files/%00/content") + "\r\n"),
        ("a path that is no UTF-8", head("GET /api/paas/v4/files/%ff%fe/content") + "\r\n"),
        ("two lengths", head("POST /api/paas/v4/batches") + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("a length and chunks", head("POST /api/paas/v4/batches") + "Content-Length: 4\r\n" + chunked + "0\r\n\r\n"),
        ("a negative length", head("POST /api/paas/v4/batches") + "Content-Length: -1\r\n\r\n"),
        ("a length beyond numbers", head("POST /api/paas/v4/batches") + "Content-Length: 99999999999999999999\r\n\r\n"),
        (
            "a chunk beyond numbers",
            head("POST /api/paas/v4/batches") + chunked + "fffffffffffffffff\r\nab\r\n0\r\n\r\n",
        ),
        ("chunks that are none", head("POST /api/paas/v4/batches") + chunked + "zz\r\n\r\n"),
        ("a deep create", create(&"[".repeat(1 << 19))),
        ("a deep create in the metadata", create(&format!("{{\"metadata\":{{\"a\":{}", "[".repeat(1 << 19)))),
        ("a large create", create(&format!("{{\"input_file_id\":\"{}\"}}", "x".repeat(2 << 20)))),
        ("a create of a path", create(r#"{"input_file_id":"../../thesis.txt","endpoint":"/v4/chat/completions"}"#)),
        ("a form without a boundary", form("", "").replace("; boundary=xx", "")),
        ("a form that ends early", form(&(file.clone() + "{}"), "")),
        ("a form of many parts", form(&part("Content-Disposition: form-data; name=\"x\"").repeat(20_000), "")),
        ("a form with a large head", form(&part(&format!("X: {}", "y".repeat(1 << 20))), "")),
        ("a form of deep lines", form(&(file.clone() + &"[".repeat(6 << 20) + "\r\n--xx--\r\n"), "")),
        (
            "a form of a deep body",
            form(
                &(file.clone()
                    + r#"{"custom_id":"abcdef_1","body":{"model":"#
                    + &"[".repeat(6 << 20)
                    + "\r\n--xx--\r\n"),
                "",
            ),
        ),
        ("a list beyond numbers", head("GET /v1/batches?limit=99999999999999999999999") + "\r\n"),
        ("a method of its own", head("BREW /v1/batches") + "\r\n"),
    ];
    for (name, request) in requests {
        let reply = raw(&server, request.as_bytes());
        assert!(reply.starts_with("HTTP/1.1 4") || reply.is_empty(), "{name}: {reply:.300}");
        assert_eq!(server.request("GET", BATCHES, &[KEY], b"").expect("alive").status, 200, "{name}");
    }
    assert_eq!(work.read("thesis.txt"), "years");
    assert_eq!(std::fs::read_dir(work.join("state/files")).expect("listed").count(), 0, "nothing is left behind");
    assert_eq!(server.ledger()["creates"], json!([]));
}
