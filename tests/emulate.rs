//! `zbatch emulate`, driven over its socket.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use std::{collections::HashSet, net::TcpListener, path::Path};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::{
    server::{Server, create_body, text},
    workdir::WorkDir,
};

const ZHIPU: &str = "/api/paas/v4";
const OPENAI: &str = "/v1";

fn request(root: &str, id: &str, post: &str) -> Value {
    let url = if root == OPENAI { "/v1/chat/completions" } else { "/v4/chat/completions" };
    json!({"custom_id": id, "method": "POST", "url": url, "body": {
        "model": "glm-4-air",
        "messages": [{"role": "user", "content": format!("判断：\n<博文>\n{post}\n</博文>")}],
    }})
}

/// `count` request lines of one analysis.
fn requests(root: &str, count: usize) -> String {
    (0..count)
        .map(|n| request(root, &format!("sentiment_polarity_{n:04}"), &format!("第{n}条")).to_string() + "\n")
        .collect()
}

fn server(work: &WorkDir, args: &[&str]) -> Server {
    Server::start(work, &work.join("state"), args)
}

fn ids(lines: &[Value]) -> Vec<String> {
    lines.iter().map(|line| text(&line["custom_id"])).collect()
}

#[test]
fn a_whole_cycle_in_zhipus_dialect() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    assert!(server.base.ends_with(ZHIPU));
    let stored = server.upload_named(ZHIPU, "a.jsonl", "batch", &requests(ZHIPU, 50)).json(200);
    let file = text(&stored["id"]);
    let (seconds, hex) = file.split_once('_').expect("<seconds>_<hex>");
    assert!(seconds.parse::<u64>().is_ok() && hex.len() == 32, "{file}");
    assert_eq!(stored["filename"], "a.jsonl");
    let mut body: Value = serde_json::from_str(&create_body(ZHIPU, &file)).expect("JSON");
    body["metadata"] = json!({"job": "run-7"});
    let created = server.call("POST", "/api/paas/v4/batches", body.to_string().as_bytes()).json(200);
    let batch = text(&created["id"]);
    assert!(batch.strip_prefix("batch_").is_some_and(|digits| digits.len() == 19), "{batch}");
    assert_eq!(created["request_counts"], json!({"total": 50, "completed": null, "failed": null}));
    assert_eq!(created["completion_window"], Value::Null);
    assert!(created["created_at"].as_u64().is_some_and(|at| at > 100_000_000_000), "milliseconds");
    let (seen, ended) = server.wait(ZHIPU, &batch);
    assert_eq!(seen, ["validating", "in_progress", "finalizing", "completed"]);
    assert_eq!(ended["request_counts"], json!({"total": 50, "completed": 50, "failed": 0}));
    assert_eq!(ended["metadata"], json!({"job": "run-7"}));
    assert_eq!(ended["error_file_id"], Value::Null);
    let lines = server.lines(ZHIPU, &ended["output_file_id"]);
    let order = ids(&lines);
    assert_ne!(order, ids_in_order(50), "shuffled");
    assert_eq!(order.iter().collect::<HashSet<_>>().len(), 50);
    assert!(lines.iter().all(|line| line["id"] == batch.as_str() && line.get("error").is_none()));
    assert_eq!(lines[0]["response"]["body"]["choices"][0]["finish_reason"], "stop");
    // The input goes with the end of its batch.
    let gone = server.call("GET", &format!("{ZHIPU}/files/{file}/content"), b"");
    assert_eq!(gone.json(404)["error"]["code"], "1210");
    let output = text(&ended["output_file_id"]);
    let deleted = server.call("DELETE", &format!("{ZHIPU}/files/{output}"), b"").json(200);
    assert_eq!(deleted, json!({"id": output, "object": "file", "deleted": true}));
    server.call("DELETE", &format!("{ZHIPU}/files/{output}"), b"").json(404);
    let ledger = server.ledger();
    assert_eq!(ledger["creates"][0]["analysis"], "sentiment_polarity");
    assert_eq!(ledger["creates"][0]["metadata"], json!({"job": "run-7"}));
    assert_eq!(
        (&ledger["requests_billed"], &ledger["uploads"], &ledger["deletes"]),
        (&json!(50), &json!(1), &json!(1))
    );
}

fn ids_in_order(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("sentiment_polarity_{n:04}")).collect()
}

#[test]
fn a_whole_cycle_in_openais_dialect() {
    let work = WorkDir::new();
    let server = server(&work, &["--fault", "blocked=20%"]);
    let stored = server.upload_named(OPENAI, "any name", "batch", &requests(OPENAI, 40)).json(200);
    let file = text(&stored["id"]);
    let no_window = json!({"input_file_id": file, "endpoint": "/v1/chat/completions"}).to_string();
    let refused = server.call("POST", "/v1/batches", no_window.as_bytes()).json(400);
    assert_eq!(refused["error"]["type"], "invalid_request_error");
    let batch = server.create(OPENAI, &file);
    let (seen, ended) = server.wait(OPENAI, &batch);
    assert_eq!(seen, ["validating", "in_progress", "finalizing", "completed"]);
    assert_eq!(ended["completion_window"], "24h");
    assert!(ended["created_at"].as_u64().is_some_and(|at| at < 100_000_000_000), "seconds");
    let good = server.lines(OPENAI, &ended["output_file_id"]);
    let bad = server.lines(OPENAI, &ended["error_file_id"]);
    assert_eq!(good.len() + bad.len(), 40);
    assert_eq!(ended["request_counts"], json!({"total": 40, "completed": good.len(), "failed": bad.len()}));
    assert_eq!(good.iter().map(|line| text(&line["id"])).collect::<HashSet<_>>().len(), good.len(), "unique ids");
    assert!(good.iter().all(|line| line["error"].is_null() && line.get("error").is_some()));
    assert!(good.iter().all(|line| line["response"]["request_id"].is_string()));
    assert_eq!(bad[0]["error"]["code"], "1301");
    assert_eq!(bad[0]["response"]["status_code"], 400);
    // Asked for or not, OpenAI's inputs stay.
    assert_eq!(server.call("GET", &format!("/v1/files/{file}/content"), b"").status, 200);
}

#[test]
fn what_an_upload_refuses() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    let good = request(ZHIPU, "abcdef_1", "x").to_string();
    for (name, purpose, lines, says) in [
        ("a.jsonl", "fine-tune", good.clone(), "purpose must be `batch`"),
        ("a.txt", "batch", good.clone(), "must end in .jsonl"),
        ("a.jsonl", "batch", String::new(), "the file is empty"),
        ("a.jsonl", "batch", format!("{good}\n\n"), "line 2: it is blank"),
        ("a.jsonl", "batch", good.replace("abcdef_1", "abc_1"), "line 1: custom_id must have at least 6"),
        ("a.jsonl", "batch", format!("{good}\n{good}\n"), "line 2: custom_id is in the file twice"),
        ("a.jsonl", "batch", good.replace("glm-4-air", "glm-4.5-air"), "glm-4-air-250414"),
        ("a.jsonl", "batch", good.replace("/v4/", "/v1/"), "url must be"),
        ("a.jsonl", "batch", format!("{good}\n{{\"custom_id\":"), "line 2: EOF"),
    ] {
        let error = server.upload_named(ZHIPU, name, purpose, &lines).json(400);
        assert_eq!(error["error"]["code"], "1210");
        assert!(text(&error["error"]["message"]).contains(says), "{error}");
    }
    let many: String = (0..50_001).map(|n| good.replace("abcdef_1", &format!("abcdef_{n}")) + "\n").collect();
    let error = server.upload_named(ZHIPU, "a.jsonl", "batch", &many).json(400);
    assert!(text(&error["error"]["message"]).contains("more than 50000 lines"), "{error}");
    assert_eq!(server.get(&format!("{ZHIPU}/files?purpose=batch"))["data"], json!([]));
    assert_eq!(work.path().join("state/files").read_dir().expect("listed").count(), 0, "nothing is left behind");
}

#[test]
fn a_file_may_have_a_hundred_megabytes_and_the_server_little_memory() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    // Four lines with five images of 4.8 MB each: each line is longer than anything that is held.
    let image_text = format!("/9j/{}", "A".repeat(4_799_996));
    let line = |n: usize| {
        let mut line = request(ZHIPU, &format!("abcdef_{n}"), "x");
        let image = json!({"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,#"}});
        let text = json!({"type": "text", "text": "<博文>谢谢</博文>"});
        line["body"]["messages"][0]["content"] = [vec![text], vec![image; 5]].concat().into();
        line.to_string().replace('#', &image_text) + "\n"
    };
    let mut lines: String = (0..4).map(line).collect();
    let file = server.upload(ZHIPU, &lines);
    let batch = server.create(ZHIPU, &file);
    let (_, ended) = server.wait(ZHIPU, &batch);
    assert_eq!(server.lines(ZHIPU, &ended["output_file_id"]).len(), 4);
    lines.push_str(&line(4));
    let error = server.upload_named(ZHIPU, "a.jsonl", "batch", &lines);
    error.json(435);
    let peak = work.read(&format!("/proc/{}/status", server.pid()));
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux").trim();
    let kib: u64 = peak.split(' ').next().expect("a number").parse().expect("a number");
    assert!(kib < 64 << 10, "{peak}");
}

#[test]
fn other_refusals() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    for headers in [&[][..], &[("Authorization", "Bearer ")], &[("Authorization", "Basic eA==")]] {
        let reply = server.request("GET", "/api/paas/v4/batches", headers, b"").expect("a reply");
        assert_eq!(reply.json(401)["error"]["code"], "1001");
    }
    for (method, path) in [
        ("GET", "/api/paas/v4/batches/batch_1"),
        ("POST", "/api/paas/v4/batches/batch_1/cancel"),
        ("GET", "/api/paas/v4/files/..%2F..%2Fstate.jsonl/content"),
        ("DELETE", "/api/paas/v4/files/1_2"),
        ("GET", "/api/paas/v4/batches?after=batch_1"),
        ("GET", "/api/paas/v4/files/1_2"),
        ("GET", "/api/paas/v4/nothing"),
    ] {
        server.call(method, path, b"").json(404);
    }
    for path in ["/batches?limit=0", "/batches?limit=101", "/batches?limit=x", "/files?purpose=none", "/files"] {
        server.call("GET", &format!("{ZHIPU}{path}"), b"").json(400);
    }
    let file = server.upload(ZHIPU, &requests(ZHIPU, 1));
    let with = |change: fn(&mut Value)| {
        let mut body = json!({"input_file_id": file, "endpoint": "/v4/chat/completions"});
        change(&mut body);
        server.call("POST", &format!("{ZHIPU}/batches"), body.to_string().as_bytes()).status
    };
    assert_eq!(with(|body| body["endpoint"] = json!("/v1/chat/completions")), 400);
    assert_eq!(with(|body| body["input_file_id"] = json!("1_2")), 404);
    assert_eq!(with(|body| body["metadata"] = json!({"n": 1})), 400);
    assert_eq!(with(|body| body["metadata"] = json!({"n": "x".repeat(513)})), 400);
    assert_eq!(with(|body| body["metadata"] = (0..17).map(|n| (n.to_string(), json!(""))).collect()), 400);
    assert_eq!(server.ledger()["creates"], json!([]), "nothing was accepted");
    let refused = work.run(&["emulate", "--fault", "rate_limits=2"]).exits(64);
    assert!(refused.stderr.contains("did you mean `rate_limit`?"), "{}", refused.stderr);
    let help = work.run(&["emulate", "--help"]).exits(0);
    assert!(help.text().contains("drop_create[=N]"), "{}", help.text());
}

#[test]
fn a_killed_server_goes_on() {
    let work = WorkDir::new();
    let first = server(&work, &[]);
    let file = first.upload(ZHIPU, &requests(ZHIPU, 20));
    let batch = first.create(ZHIPU, &file);
    first.get(&format!("{ZHIPU}/batches/{batch}"));
    first.get(&format!("{ZHIPU}/batches/{batch}"));
    let before = first.get(&format!("{ZHIPU}/batches/{batch}"));
    assert_eq!(before["status"], "finalizing");
    first.kill();
    let again = server(&work, &[]);
    let (seen, ended) = again.wait(ZHIPU, &batch);
    // Its results may have been ready when it was killed.
    assert!(seen == ["finalizing", "completed"] || seen == ["completed"], "{seen:?}");
    assert_eq!(ended["created_at"], before["created_at"]);
    let lines = again.lines(ZHIPU, &ended["output_file_id"]);
    assert_eq!(lines.len(), 20);
    assert_eq!(again.ledger()["uploads"], 1);
    // The same lines give the same answers in the same order, whatever the batch.
    let file = again.upload(ZHIPU, &requests(ZHIPU, 20));
    let (_, other) = again.wait(ZHIPU, &again.create(ZHIPU, &file));
    let answers = |lines: &[Value]| -> Vec<String> {
        lines.iter().map(|l| l["custom_id"].to_string() + &l["response"]["body"]["choices"].to_string()).collect()
    };
    assert_eq!(answers(&again.lines(ZHIPU, &other["output_file_id"])), answers(&lines));
    let ledger = again.ledger();
    assert_eq!(ledger["by_content"].as_object().expect("counts").values().collect::<Vec<_>>(), [&json!(2)]);
    assert_eq!(zbatch::emulator::ledger::read(&work.join("state")).expect("read").by_content.len(), 1);
    let second = work.run(&["emulate", "--state", "state"]).exits(75);
    assert!(second.stderr.contains("another emulator uses"), "{}", second.stderr);
    assert_eq!(again.terminate(), Some(143));
}

#[test]
fn a_cancelled_batch_keeps_what_was_done() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    for (root, not_run) in [(ZHIPU, false), (OPENAI, true)] {
        let batch = server.create(root, &server.upload(root, &requests(root, 40)));
        server.get(&format!("{root}/batches/{batch}"));
        server.get(&format!("{root}/batches/{batch}"));
        let cancelling = server.call("POST", &format!("{root}/batches/{batch}/cancel"), b"").json(200);
        assert_eq!(cancelling["status"], "cancelling");
        let (seen, ended) = server.wait(root, &batch);
        assert_eq!(seen, ["cancelling", "cancelled"]);
        let done = server.lines(root, &ended["output_file_id"]);
        assert!((5..35).contains(&done.len()), "{}", done.len());
        let rest = server.lines(root, &ended["error_file_id"]);
        assert_eq!(rest.len(), if not_run { 40 - done.len() } else { 0 });
        assert!(rest.iter().all(|line| line["response"].is_null() && line["error"]["code"] == "batch_cancelled"));
        server.call("POST", &format!("{root}/batches/{batch}/cancel"), b"").json(400);
    }
    // Nothing was done yet.
    let batch = server.create(ZHIPU, &server.upload(ZHIPU, &requests(ZHIPU, 3)));
    server.call("POST", &format!("{ZHIPU}/batches/{batch}/cancel"), b"").json(200);
    let (_, ended) = server.wait(ZHIPU, &batch);
    assert_eq!((&ended["output_file_id"], &ended["error_file_id"]), (&Value::Null, &Value::Null));
}

#[test]
fn pages_of_lists() {
    let work = WorkDir::new();
    let server = server(&work, &["--latency", "1h"]);
    let file = server.upload(ZHIPU, &requests(ZHIPU, 1));
    let made: Vec<String> = (0..4).map(|_| server.create(ZHIPU, &file)).collect();
    for (root, empty_pages) in [(ZHIPU, 0), (OPENAI, 1)] {
        let (mut found, mut empty, mut after) = (Vec::new(), 0, String::new());
        loop {
            let page = server.get(&format!("{root}/batches?limit=2&after={after}"));
            let data = page["data"].as_array().expect("an array");
            empty += usize::from(data.is_empty());
            found.extend(data.iter().map(|batch| text(&batch["id"])));
            if page["has_more"] == false {
                break;
            }
            assert_eq!(page["first_id"], data[0]["id"]);
            after = text(&page["last_id"]);
        }
        assert_eq!(found, made.iter().rev().cloned().collect::<Vec<_>>(), "newest first");
        assert_eq!(empty, empty_pages, "{root}");
    }
    assert_eq!(server.get(&format!("{ZHIPU}/files?purpose=batch"))["data"][0]["id"], file.as_str());
    for _ in 0..3 {
        assert_ne!(server.get(&format!("{ZHIPU}/batches/{}", made[0]))["status"], "finalizing", "not before its time");
    }
}

#[test]
fn faults_of_lines() {
    let work = WorkDir::new();
    let faults = "invalid=10%,blocked=10%,length=10%,null=10%,sensitive=10%,missing=10%,duplicate=10%,foreign=10%";
    let server = server(&work, &["--fault", faults, "--fault", "torn=5%,extra_fields,code_number", "--seed", "3"]);
    let (_, ended) = server.wait(ZHIPU, &server.create(ZHIPU, &server.upload(ZHIPU, &requests(ZHIPU, 400))));
    let output = text(&ended["output_file_id"]);
    let output = server.call("GET", &format!("{ZHIPU}/files/{output}/content"), b"");
    let output = String::from_utf8(output.body).expect("UTF-8");
    let (whole, torn): (Vec<_>, Vec<_>) = output.lines().map(serde_json::from_str::<Value>).partition(Result::is_ok);
    assert!((5..50).contains(&torn.len()), "{}", torn.len());
    let whole: Vec<Value> = whole.into_iter().flatten().collect();
    let count = |test: &dyn Fn(&Value) -> bool| whole.iter().filter(|line| test(line)).count();
    let choice = |line: &Value| line["response"]["body"]["choices"][0].clone();
    for (what, found) in [
        ("length", count(&|line| choice(line)["finish_reason"] == "length")),
        ("sensitive", count(&|line| choice(line)["finish_reason"] == "sensitive")),
        ("null", count(&|line| choice(line)["message"]["content"].is_null())),
        ("foreign", count(&|line| text(&line["custom_id"]).contains("_4000"))),
        ("duplicate", whole.len() - whole.iter().map(|l| text(&l["custom_id"])).collect::<HashSet<_>>().len()),
        ("blocked", server.lines(ZHIPU, &ended["error_file_id"]).len()),
        (
            "invalid",
            count(&|line| {
                choice(line)["message"]["content"] == "9"
                    || choice(line)["message"]["content"].to_string().contains("抱歉")
            }),
        ),
    ] {
        assert!((15..75).contains(&found), "{what}: {found}");
    }
    let counts = &ended["request_counts"];
    let told = counts["completed"].as_u64().expect("a count") + counts["failed"].as_u64().expect("a count");
    assert!((330..390).contains(&told), "missing lines are in neither: {told}");
    assert_eq!(server.lines(ZHIPU, &ended["error_file_id"])[0]["error"]["code"], 1301);
    assert!(ended["trace"].is_object());
}

#[test]
fn faults_of_calls() {
    let work = WorkDir::new();
    let server = server(
        &work,
        &[
            "--fault",
            "rate_limit=1,server_error=1,html_error=1,no_balance=1,lose_create=1,drop_create=1,truncate=2,unknown_status=1",
        ],
    );
    let list = format!("{ZHIPU}/batches");
    assert_eq!(server.call("GET", &list, b"").status, 502);
    assert_eq!(server.call("GET", &list, b"").json(429)["error"]["code"], "1302");
    assert_eq!(server.call("GET", &list, b"").json(500)["error"]["code"], "1234");
    let file = server.upload(ZHIPU, &requests(ZHIPU, 30));
    let body = create_body(ZHIPU, &file);
    assert_eq!(server.call("POST", &list, body.as_bytes()).json(429)["error"]["code"], "1113");
    assert!(server.try_call("POST", &list, body.as_bytes()).is_none(), "lost before it was done");
    assert_eq!(server.ledger()["creates"], json!([]));
    assert!(server.try_call("POST", &list, body.as_bytes()).is_none(), "lost after it was done");
    let batch = text(&server.ledger()["creates"][0]["batch_id"]);
    assert_eq!(server.get(&list)["data"][0]["id"], batch.as_str());
    assert_eq!(server.get(&format!("{list}/{batch}"))["status"], "awaiting_capacity");
    let (_, ended) = server.wait(ZHIPU, &batch);
    let content = format!("{ZHIPU}/files/{}/content", text(&ended["output_file_id"]));
    let [within, after, whole] = [(); 3].map(|()| server.call("GET", &content, b"").body);
    assert!(whole.starts_with(&within) && within.len() == whole.len() / 2 && !within.ends_with(b"\n"));
    assert!(whole.starts_with(&after) && after.len() < whole.len() && after.ends_with(b"\n"));
}

#[test]
fn faults_of_batches() {
    let work = WorkDir::new();
    let faulty = server(&work, &["--fault", "failed=1,expired=25%,list_lag=1h,metadata_dropped"]);
    let file = faulty.upload(ZHIPU, &requests(ZHIPU, 100));
    let mut body: Value = serde_json::from_str(&create_body(ZHIPU, &file)).expect("JSON");
    (body["metadata"], body["auto_delete_input_file"]) = (json!({"a": "b"}), json!(false));
    let failed = faulty.call("POST", &format!("{ZHIPU}/batches"), body.to_string().as_bytes()).json(200);
    assert_eq!(failed["metadata"], Value::Null);
    let (seen, failed) = faulty.wait(ZHIPU, &text(&failed["id"]));
    assert_eq!(seen, ["validating", "failed"]);
    assert_eq!(failed["errors"]["data"][0]["line"], 1);
    assert_eq!(faulty.get(&format!("{ZHIPU}/batches"))["data"], json!([]), "the list lags");
    let (seen, expired) = faulty.wait(ZHIPU, &faulty.create(ZHIPU, &file));
    assert_eq!(seen, ["validating", "in_progress", "expired"]);
    let done = faulty.lines(ZHIPU, &expired["output_file_id"]).len();
    assert!((10..45).contains(&done), "{done}");
    drop(faulty);
    let slow = server(&work, &["--fault", "slow=300ms,bad_key"]);
    let started = std::time::Instant::now();
    assert_eq!(slow.call("GET", &format!("{ZHIPU}/batches"), b"").json(401)["error"]["code"], "1001");
    assert!(started.elapsed().as_millis() >= 300);
}

/// A chat server that misbehaves: what a line gets depends on its text, and on how often it asked.
fn upstream() -> String {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1/", listener.local_addr().expect("an address"));
    let asked = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashMap::<String, u32>::new()));
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, asked) = (socket.expect("a connection"), std::sync::Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut from = BufReader::new(socket.try_clone().expect("cloned"));
                let (mut length, mut line) = (0, String::new());
                while from.read_line(&mut line).expect("read") > 2 {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a length");
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                from.read_exact(&mut body).expect("read");
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                let word = text(&body["messages"][0]["content"]);
                let times = {
                    let mut asked = asked.lock().expect("whole");
                    let times = asked.entry(word.clone()).or_default();
                    *times += 1;
                    *times
                };
                let good = format!("{{\n  \"model\": \"real\",\n  \"n\": 1.50,\n  \"word\": {}\n}}", json!(word));
                let (head, body) = match (word.as_str(), times) {
                    ("busy", 1) => ("429 Too Many Requests\r\nRetry-After: 0", "wait".to_owned()),
                    ("broken", 1 | 2) => ("500 Internal Server Error", "oops".to_owned()),
                    ("gone", 1) => return,
                    ("slow", _) => {
                        std::thread::sleep(std::time::Duration::from_millis(500));
                        ("200 OK", good)
                    }
                    ("page", _) => ("200 OK", "<html>hello</html>".to_owned()),
                    ("wrong", _) => ("400 Bad Request", r#"{"error":{"code":"ctx","message":"too long"}}"#.to_owned()),
                    _ => ("200 OK", good),
                };
                let reply =
                    format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                socket.write_all(reply.as_bytes()).expect("sent");
            });
        }
    });
    url
}

#[test]
fn a_real_server_answers_each_line() {
    let work = WorkDir::new();
    let upstream = upstream();
    let first = server(&work, &["--upstream", &upstream]);
    let words = ["good", "busy", "broken", "gone", "slow", "page", "wrong"];
    let lines: String = words
        .iter()
        .chain(&["w0", "w1", "w2", "w3", "w4", "w5", "w6"])
        .map(|word| {
            let line = json!({"custom_id": format!("word_of_{word}"), "method": "POST", "url": "/v4/chat/completions",
                "body": {"model": "any-model", "messages": [{"role": "user", "content": word}]}});
            line.to_string() + "\n"
        })
        .collect();
    let batch = first.create(ZHIPU, &first.upload(ZHIPU, &lines));
    // Killed in the middle of its work, it does it again.
    first.kill();
    let server = server(&work, &["--upstream", &upstream]);
    let (seen, ended) = server.wait(ZHIPU, &batch);
    // What was the status before a restart counts as seen.
    assert_eq!(seen, ["in_progress", "finalizing", "completed"]);
    assert_eq!(ended["request_counts"], json!({"total": 14, "completed": 12, "failed": 2}));
    let good = server.call("GET", &format!("{ZHIPU}/files/{}/content", text(&ended["output_file_id"])), b"");
    let good = String::from_utf8(good.body).expect("UTF-8");
    for word in ["good", "busy", "broken", "gone", "slow", "w0", "w6"] {
        // Copied as it was: the number keeps its zero.
        let body = format!(r#""status_code":200,"body":{{   "model": "real",   "n": 1.50,   "word": "{word}" }}"#);
        let id = format!(r#""custom_id":"word_of_{word}""#);
        assert_eq!(good.lines().filter(|line| line.contains(&id)).count(), 1, "{word}");
        assert!(good.lines().any(|line| line.contains(&id) && line.contains(&body)), "{word}: {good}");
    }
    let mut bad = server.lines(ZHIPU, &ended["error_file_id"]);
    bad.sort_by_key(|line| line["custom_id"].to_string());
    assert_eq!(ids(&bad), ["word_of_page", "word_of_wrong"]);
    assert_eq!((&bad[0]["response"]["status_code"], &bad[0]["error"]["code"]), (&json!(502), &json!("bad_reply")));
    assert_eq!((&bad[1]["response"]["status_code"], &bad[1]["error"]["code"]), (&json!(400), &json!("ctx")));
    assert_eq!(bad[1]["response"]["body"]["error"]["message"], "too long");
}

#[test]
fn without_a_state_directory_nothing_stays() {
    let work = WorkDir::new();
    let mut command = work.command(&["emulate"]);
    command.env("TMPDIR", work.path());
    let server = Server::spawn(command);
    server.upload(ZHIPU, &requests(ZHIPU, 1));
    let left = |dir: &Path| dir.read_dir().expect("listed").count();
    assert_eq!(left(work.path()), 1);
    server.terminate();
    assert_eq!(left(work.path()), 0);
}

/// A row is refused for its image as the provider does it: what we send is held against its limits, not only believed.
#[test]
fn r10_0_images_are_held_against_the_providers_limits() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let jpeg = |bytes: usize| base64(&[&[0xff, 0xd8, 0xff, 0xe0][..], &vec![7; bytes - 4]].concat());
    let data = |kind: &str, text: &str| format!("data:image/{kind};base64,{text}");
    let good = data("jpeg", &jpeg(5_000_000));
    let cases: [(Vec<String>, Option<&str>); 9] = [
        (vec![good.clone()], None),
        (vec![data("png", &base64(b"\x89PNG\r\n\x1a\n"))], None),
        (vec![jpeg(70_001)], None),
        (vec!["https://x/1.gif".to_owned(); 5], None),
        (vec!["https://x/1.gif".to_owned(); 6], Some("more images than a request may hold")),
        (vec![data("jpeg", &jpeg(5_000_004))], Some("an image is larger than 5 MB")),
        (vec![data("gif", &base64(b"GIF89a\x01\0"))], Some("an image is neither a JPEG nor a PNG file")),
        (vec![good.clone() + "A"], Some("an image is no Base64")),
        (vec![data("jpeg", "")], Some("an image is neither a JPEG nor a PNG file")),
    ];
    let line = |(n, (urls, _)): (usize, &(Vec<String>, Option<&str>))| {
        let image = |url: &String| json!({"type": "image_url", "image_url": {"url": url}});
        let mut line = request(ZHIPU, &format!("abcdef_{n}"), "x");
        let text = json!({"type": "text", "text": "x"});
        line["body"]["messages"][0]["content"] = std::iter::once(text).chain(urls.iter().map(image)).collect();
        line.to_string() + "\n"
    };
    let file = server.upload(ZHIPU, &cases.iter().enumerate().map(line).collect::<String>());
    let (_, ended) = server.wait(ZHIPU, &server.create(ZHIPU, &file));
    let mut refused = std::collections::BTreeMap::new();
    for line in server.lines(ZHIPU, &ended["error_file_id"]) {
        let response = &line["response"];
        assert_eq!(
            (&response["status_code"], &response["body"]["error"]["code"]),
            (&json!(400), &json!("1210")),
            "{line}"
        );
        refused.insert(text(&line["custom_id"]), text(&response["body"]["detail"]));
    }
    let wanted = cases.iter().enumerate().filter_map(|(n, (_, why))| Some((format!("abcdef_{n}"), (*why)?.to_owned())));
    assert_eq!(refused, wanted.collect());
    assert_eq!(server.lines(ZHIPU, &ended["output_file_id"]).len(), 4);
}

/// Clients look at a file and at the list of models before they begin.
#[test]
fn r10_21_a_file_and_the_models_are_shown() {
    let work = WorkDir::new();
    let server = server(&work, &[]);
    for root in [ZHIPU, OPENAI] {
        let file = server.upload(root, &requests(root, 3));
        let shown = server.get(&format!("{root}/files/{file}"));
        assert_eq!(
            (&shown["id"], &shown["object"], &shown["purpose"]),
            (&json!(file), &json!("file"), &json!("batch"))
        );
        let listed = server.get(&format!("{root}/files?purpose=batch"));
        assert_eq!(listed["data"][0], shown);
        let models = server.get(&format!("{root}/models"));
        assert_eq!(models["object"], "list");
        let names: Vec<&str> =
            models["data"].as_array().expect("models").iter().filter_map(|m| m["id"].as_str()).collect();
        assert!(names.contains(&"glm-4-air") && models["data"][0]["object"] == "model", "{models}");
        server.call("DELETE", &format!("{root}/files/{file}"), b"").json(200);
        server.call("GET", &format!("{root}/files/{file}"), b"").json(404);
        let reply = server.request("GET", &format!("{root}/models"), &[], b"").expect("a reply");
        reply.json(401);
    }
}

/// A trial's own analysis, with `zbatch emulate` that did not know of it: every answer was an echo, all of it faults.
#[test]
fn r10_21_prompts_of_unknown_analyses_are_answered_by_what_they_list() {
    let work = WorkDir::new();
    let mut command = work.command(&["emulate", "--port", "0", "--state", "state"]);
    work.write("log", "");
    let log = std::fs::File::options().append(true).open(work.join("log")).expect("opened");
    command.stderr(log);
    let server = Server::spawn_with_stderr(command);
    let line = |id: &str, prompt: &str| {
        let line = json!({"custom_id": id, "method": "POST", "url": "/v4/chat/completions",
            "body": {"model": "glm-4-air", "messages": [{"role": "user", "content": prompt}]}});
        line.to_string() + "\n"
    };
    let lines = [
        line("urgency_0001", "候选级别：\n- 危急求救\n- 无需处置\n\n只选一个。\n<博文>\n晚霞真好看\n</博文>"),
        line(
            "mood_0002",
            "Rate the mood of this review from 1 to 5. Answer with the number only.\n\nI love it, great!",
        ),
        line(
            "tags_0003",
            "Choose labels:\n- food\n- staff\n\nAnswer with a JSON array of strings.\n\nReview: the staff was kind",
        ),
        line("open_0004", "What is this review about?\n\nReview: soup"),
        line("open_0005", "What is this review about?\n\nReview: bread"),
    ];
    let batch = server.create(ZHIPU, &server.upload(ZHIPU, &lines.concat()));
    let (_, ended) = server.wait(ZHIPU, &batch);
    let mut answers: Vec<(String, String)> = server
        .lines(ZHIPU, &ended["output_file_id"])
        .iter()
        .map(|line| (text(&line["custom_id"]), text(&line["response"]["body"]["choices"][0]["message"]["content"])))
        .collect();
    answers.sort();
    let answer = |at: usize| answers[at].1.as_str();
    assert_eq!(answer(0), "5", "{answers:?}");
    assert!(["危急求救", "无需处置"].contains(&answer(4)), "{answers:?}");
    assert_eq!(answer(3), "[\"staff\"]");
    server.terminate();
    let said = work.read("log");
    assert_eq!(said.matches("cannot be told from its prompt").count(), 1, "{said}");
    assert!(said.contains("--analyses"), "{said}");
}
