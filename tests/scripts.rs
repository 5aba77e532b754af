//! Coming from the old scripts, and what a command says to run next. Their files are composed here from the keys that the
//! old project published.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use serde_json::{Value, json};

use crate::{
    jobs::Setup,
    server::Server,
    workdir::{Ran, WorkDir},
};

const POLARITY: &str = "--only=sentiment_polarity";
/// Of a [`Setup`].
const CHUNKS: usize = 6;
const KEY: &str = "idididididid.secretsecretsecret";

/// Reads one request from a socket: its first line, its head and its body.
fn read_request(socket: &TcpStream) -> Option<(String, String, Vec<u8>)> {
    let mut from = BufReader::new(socket.try_clone().ok()?);
    let (mut first, mut head, mut length) = (String::new(), String::new(), 0);
    from.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|read| *read > 2)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head += &line;
        if from.buffer().starts_with(b"\r\n") {
            from.read_line(&mut line).ok()?;
            break;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some((first, head, body))
}

/// Answers each connection's first request; the server's URL.
pub fn serve(answer: impl Fn(&str, &str, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, answer) = (socket.expect("a connection"), std::sync::Arc::clone(&answer));
            std::thread::spawn(move || {
                if let Some((first, head, body)) = read_request(&socket) {
                    // Who asked may be gone.
                    let _gone = socket.write_all(&answer(&first, &head, &body));
                }
            });
        }
    });
    url
}

pub fn reply(status: &str, body: &str) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body.as_bytes()].concat()
}

/// A chat server that says 4 to everything.
fn chat_server() -> String {
    serve(|_, _, _| {
        let answer = json!({"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "4"}}]});
        reply("200 OK", &answer.to_string())
    }) + "/v1"
}

/// Stands before an emulator and refuses what begins so, as a server does that lacks the call.
pub fn without_call(server: &Server, lacks: &'static str) -> String {
    let address = server.address.clone();
    serve(move |first, head, body| {
        if first.starts_with(lacks) {
            return reply("405 Method Not Allowed", "");
        }
        let head = head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let head = head.map(|line| format!("{}\r\n", line.trim_end())).collect::<String>();
        let mut to = TcpStream::connect(&address).expect("connects");
        to.write_all(format!("{first}{head}Connection: close\r\n\r\n").as_bytes()).expect("sent");
        to.write_all(body).expect("sent");
        let mut answer = Vec::new();
        #[expect(clippy::disallowed_methods, reason = "a test's reply is small")]
        to.read_to_end(&mut answer).expect("read");
        answer
    })
}

fn report(dir: &WorkDir, name: &str) -> Value {
    serde_json::from_str(&dir.read(name)).expect("JSON")
}

/// A trial put the flags of the emulator behind `run` and forgot --emulate: the job went to the paid provider.
#[test]
fn r10_5_flags_of_the_emulator_without_it_are_wrong_usage() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    for flag in ["--upstream=http://127.0.0.1:1/v1", "--fault=invalid=1%", "--latency=1s", "--seed=0"] {
        // With a key, and a server that nobody may reach.
        let mut command = dir.command(&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", flag]);
        command.args(["--base-url", "http://127.0.0.1:1/", "--timeout", "1s"]).env("ZHIPUAI_API_KEY", KEY);
        let ran = Ran::of(command.output().expect("the program starts")).exits(64);
        let name = flag.split('=').next().expect("a flag");
        assert!(ran.stderr.contains(name) && ran.stderr.contains("add --emulate"), "{}", ran.stderr);
        assert!(!dir.exists("w"), "nothing was made");
    }
}

/// A trial with a model behind --upstream: its answers were called invented, and `next:` asked the emulator instead.
#[test]
fn r10_5_answers_of_an_upstream_server_are_not_called_invented() {
    let dir = WorkDir::new();
    let upstream = chat_server();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n{\"content\":7}\n");
    let mut args = vec!["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", POLARITY];
    args.extend(["--upstream", &upstream, "--max-requests", "9", "--max-faults", "100%", "--seed", "3"]);
    let ran = dir.run(&args).exits(0);
    assert!(!ran.stderr.contains("invented"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("answers come from {upstream}")), "{}", ran.stderr);
    assert_eq!(dir.read("out.jsonl").matches("\"sentiment_polarity\":4").count(), 2);
    let report = report(&dir, "w/integration_report.json");
    assert_eq!((&report["batches"]["emulated"], &report["batches"]["upstream"]), (&json!(false), &json!(upstream)));
    // The directory's answers are all of one kind.
    let ran = dir.run(&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", POLARITY]).exits(65);
    assert!(ran.stderr.contains("its `upstream` is \"http://127.0.0.1:"), "{}", ran.stderr);
    let ran = dir.run(&["run", "posts.jsonl", "-o", "x", "--emulate", "--upstream", "http://me:word@127.0.0.1/v1"]);
    let ran = ran.exits(64);
    assert!(ran.stderr.contains("ZBATCH_UPSTREAM_KEY") && !ran.stderr.contains("word@"), "{}", ran.stderr);
}

/// The same trial: the command to run next, run as it is, must do what the first one did.
#[test]
fn r10_5_next_repeats_what_changes_meaning_or_money() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n");
    dir.write("c.json", r#"{"batch":{"max_concurrent_tasks":2}}"#);
    let flags = [
        "--config c.json",
        "--only sentiment_polarity,topic_analysis",
        "--model glm-4-plus",
        "--multimodal-model glm-4v",
        "--poll-interval 20ms",
        "--keep-remote",
        "--max-concurrent-tasks 2",
        "--settle 5s",
        "--on-ambiguous hold",
        "--max-batches 7",
        "--max-requests 70",
        "--max-lines 10",
        "--max-faults 90%",
        "--on-bad-post stop",
        "--emulate",
        "--seed 3",
    ];
    let mut args = vec!["run", "posts.jsonl", "-o", "o'ut.jsonl", "-d", "w", "--fault", "invalid=100%", "--new"];
    args.extend(["--faults", "f.jsonl", "--report", "r.json"]);
    args.extend(flags.iter().flat_map(|flag| flag.split(' ')));
    dir.run(&args).exits(1);
    let next = report(&dir, "r.json")["next_command"].as_str().expect("a command").to_owned();
    for flag in flags {
        assert!(format!("{next} ").contains(&format!(" {flag} ")), "{flag}: {next}");
    }
    assert!(!next.contains("--new") && !next.contains("--fault "), "{next}");
    assert!(next.starts_with(r"zbatch run --missing 'o'\''ut.jsonl' -o 'o'\''ut.round2.jsonl' -d w-round2"), "{next}");
    assert!(next.contains(" --skip f.jsonl --faults f.round2.jsonl --report r.round2.json "), "{next}");
    // As a shell reads it.
    let program = env!("CARGO_BIN_EXE_zbatch");
    let mut shell = std::process::Command::new("sh");
    shell.current_dir(dir.path()).arg("-c").arg(next.replacen("zbatch", program, 1));
    Ran::of(shell.output().expect("a shell")).exits(0);
    assert_eq!(dir.read("o'ut.round2.jsonl").lines().count(), 2);
}

/// The same for the verbs that go on with a directory.
#[test]
fn r10_5_next_of_submit_and_fetch() {
    let setup = Setup::new(&["--latency", "60s"]);
    let ran = setup.run(&["submit", "--no-wait", "--max-batches", "9", "--keep-remote"]).exits(75);
    for flag in ["zbatch submit -d w ", " --no-wait", " --max-batches 9", " --keep-remote", " --poll-interval 10ms"] {
        assert!(ran.stderr.contains(flag), "{flag}: {}", ran.stderr);
    }
    let ran = setup.run(&["fetch", "--no-wait", "-o", "all.jsonl", "--keep-remote"]).exits(75);
    assert!(ran.stderr.contains("zbatch fetch -d w --output all.jsonl "), "{}", ran.stderr);
}

/// Composed from the keys that the old project's config.json has.
fn old_config() -> Value {
    json!({
        "api": {"base_url": "https://open.bigmodel.cn/api/paas/v4/", "api_key": "", "timeout": 300},
        "batch": {
            "model": "glm-4-air", "multimodal_model": "glm-4v-plus", "max_file_size": 90, "max_requests_per_file": 40000,
            "poll_interval": 60, "task_timeout": 86400, "max_retries": 3, "retry_delay": 5, "max_concurrent_tasks": 4,
        },
        "paths": {
            "data_dir": "../data", "batch_dir": ".", "temp_dir": "./temp", "results_dir": "./results", "utils_dir": "./utils",
        },
        "files": {
            "blog_data": "posts.json", "topics": "../data/topics.json", "sentiment_attributes": "moods.json",
            "publisher_objects": "publisher_objects.json", "enhanced_output": "enhanced_blogs.json",
            "workflow_status": "workflow_status.json", "downloaded_results": "downloaded_results.json",
        },
        "analysis_types": ["sentiment_polarity", "sentiment_attribute", "topic_analysis", "publisher_analysis"],
    })
}

fn old_project() -> WorkDir {
    let dir = WorkDir::new();
    dir.write("batch/config.json", old_config().to_string());
    dir.write("data/posts.json", r#"[{"content":"谢谢"},{"content":"又停电"}]"#);
    dir.write("data/topics.json", r#"[{"parent_topic":"民生","sub_topics":["停电"]}]"#);
    dir.write("data/moods.json", r#"["感激","烦躁"]"#);
    dir.write("data/publisher_objects.json", r#"["居民"]"#);
    dir
}

/// The old project's config.json was refused, one unknown key a run.
#[test]
fn r10_5a_the_old_config_is_taken_as_it_is() {
    let dir = old_project();
    let ran = dir.run(&["config"]).exits(0);
    let table = ran.text();
    for (key, value) in [
        ("batch.base_url", "https://open.bigmodel.cn/api/paas/v4/"),
        ("batch.max_bytes", "90000000"),
        ("batch.max_lines", "40000"),
        ("batch.max_concurrent_tasks", "4"),
        ("batch.task_timeout", "86400s"),
        ("posts", "batch/../data/posts.json"),
        ("paths.work_dir", "batch/temp"),
        ("paths.enhanced_output", "batch/enhanced_blogs.json"),
        ("analyses", "sentiment_polarity, sentiment_attribute, topic_analysis, publisher_analysis"),
    ] {
        let row =
            table.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap_or_else(|| panic!("{key}: {table}"));
        assert!(row.contains(&format!(" {value}")), "{row}");
    }
    let notes: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(notes.len(), 2, "{}", ran.stderr);
    assert!(notes[0].contains("batch.max_file_size as 90000000 bytes (10^6 in a MB)"), "{}", ran.stderr);
    assert!(notes[0].contains("batch.task_timeout as --timeout 86400s"), "{}", ran.stderr);
    for key in [
        "api.timeout",
        "batch.max_retries",
        "batch.retry_delay",
        "paths.batch_dir",
        "paths.results_dir",
        "paths.utils_dir",
        "files.workflow_status",
        "files.downloaded_results",
    ] {
        assert!(notes[1].contains(key), "{key}: {}", notes[1]);
    }
    // Without a name of its own the posts, the labels and the output are those of the config.
    dir.run(&["run", "--emulate"]).exits(0);
    let enhanced: Value = serde_json::from_str(&dir.read("batch/enhanced_blogs.json")).expect("JSON");
    assert_eq!(enhanced.as_array().map(Vec::len), Some(2));
    assert!(["感激", "烦躁"].contains(&enhanced[0]["sentiment_attribute"][0].as_str().expect("a label")));
    assert!(enhanced[0].get("publisher_decision").is_none(), "only the types it lists");
    assert!(dir.exists("batch/temp/journal.jsonl"));
}

/// The same: what has to be mended is said at once, and the key that it holds is not shown.
#[test]
fn r10_5a_all_that_is_wrong_with_a_config_is_told_at_once() {
    let dir = old_project();
    let mut config = old_config();
    config["api"]["api_key"] = json!(KEY);
    config["batch"]["modle"] = json!("m");
    config["batch"]["frobnicate"] = json!(1);
    config["batch"]["poll_interval"] = json!("soon");
    config["batch"]["max_file_size"] = json!(200_000);
    config["batch"]["task_timeout"] = json!(24);
    dir.write("batch/config.json", config.to_string());
    let ran = dir.run(&["config"]).exits(65);
    for told in [
        "6 things to mend",
        "`api.api_key` holds a key: take it out of the file and set it with `export ZHIPUAI_API_KEY=…`",
        "unknown key `batch.modle`: did you mean `batch.model`?",
        "unknown key `batch.frobnicate`: there are batch.model, ",
        "`batch.poll_interval` is \"soon\": write ",
        "`batch.max_file_size` is 200000: write it with its unit, e.g. \"100MB\"",
        "`batch.task_timeout` is 24: write it with its unit, e.g. \"24h\"",
    ] {
        assert!(ran.stderr.contains(told), "{told}:\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
    for (size, bytes) in [(json!(104_857_600), "104857600"), (json!("64MiB"), "67108864"), (json!("50MB"), "50000000")]
    {
        let mut config = old_config();
        config["batch"]["max_file_size"] = size;
        dir.write("batch/config.json", config.to_string());
        assert!(dir.run(&["config"]).exits(0).text().contains(bytes), "{bytes}");
    }
    for (section, key, value, told) in [
        ("batch", "max_bytes", json!(5), "`batch.max_bytes` and `batch.max_file_size` say the same"),
        ("files", "topics", json!("gone.json"), "`files` names batch/gone.json, which is not there"),
    ] {
        let mut config = old_config();
        config[section][key] = value;
        dir.write("batch/config.json", config.to_string());
        let ran = dir.run(&["config"]).exits(65);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    let mut config = old_config();
    config["analysis_types"] = json!(["topic_anlysis"]);
    dir.write("batch/config.json", config.to_string());
    let ran = dir.run(&["config"]).exits(65);
    assert!(
        ran.stderr.contains("batch/config.json: `analysis_types`: ") && ran.stderr.contains("topic_analysis"),
        "{}",
        ran.stderr
    );
}

/// A reader of the old files joins `path` to its temp folder, divides by 1024², and looks for `TYPE_TYPE analysis`.
#[test]
fn r10_5b_snapshots_are_as_the_old_readers_read_them() {
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch", "--keep-requests"]).exits(0);
    let read = |name: &str| report(&setup.work, &format!("w/{name}"));
    let info = read("jsonl_files_info.json");
    assert!(info["generation_time"].is_u64());
    let mut total = 0.0;
    for file in info["analysis_types"]["topic_analysis"]["files"].as_array().expect("files") {
        let path = format!("w/{}", file["path"].as_str().expect("a path"));
        let bytes = setup.work.read(&path).len();
        assert_eq!(file["size_bytes"], bytes, "{path}");
        let megabytes = file["size_mb"].as_f64().expect("a number");
        assert!((megabytes - bytes as f64 / 1_048_576.0).abs() < 1e-9, "{file}");
        total += megabytes;
    }
    assert!(info["total_size_mb"].as_f64().expect("a number") > total);
    let one = &read("batch_results.json")["topic_analysis"];
    assert_eq!(one["status"], "batches_created");
    let described: Vec<&str> =
        one["batch_results"].as_array().expect("batches").iter().filter_map(|it| it["description"].as_str()).collect();
    assert_eq!(described, [1, 2, 3].map(|n| format!("topic_analysis analysis (Part {n})")));
    for entry in one["successful_batches"].as_array().expect("batches") {
        let path = std::path::Path::new(entry["file_path"].as_str().expect("a path"));
        assert!(path.is_absolute() && path.exists(), "{}", path.display());
        assert_eq!(entry["status"], "success");
    }
    let downloads = read("download_info.json");
    for n in 1..=3 {
        let key = format!("topic_analysis_topic_analysis analysis (Part {n})");
        assert!(downloads["completed_tasks"][&key]["created_at"].as_u64() > Some(100_000_000_000), "milliseconds");
        let paths = downloads["downloaded_files"][&key].as_array().expect("paths");
        assert!(
            !paths.is_empty() && paths.iter().all(|path| std::path::Path::new(path.as_str().expect("a path")).exists())
        );
    }
    let time = downloads["download_time"].as_str().expect("a time");
    assert!(time.len() == 19 && time.as_bytes()[10] == b' ', "{time}");
    // One file of a type has no part.
    let setup = Setup::cut(&[], &["--max-lines", "100"]);
    setup.submit();
    let batches = report(&setup.work, "w/batch_results.json");
    assert_eq!(batches["topic_analysis"]["batch_results"][0]["description"], "topic_analysis analysis");
}

/// The old project published its batch_results.json: a job in the same folder replaced it.
#[test]
fn r10_5b_a_snapshot_of_the_scripts_is_moved_aside() {
    let setup = Setup::new(&[]);
    let theirs = r#"{"topic_analysis":{"status":"batches_created","successful_batches":[{"batch_id":"batch_1"}]}}"#;
    setup.work.write("w/batch_results.json", theirs).write("w/download_info.json", "{\"completed_tasks\":{}}");
    let ran = setup.run(&["submit", "--settle", "100ms"]).exits(0);
    assert!(
        ran.stderr.contains("w/batch_results.json was not written by zbatch: it is now w/batch_results.json.old-1"),
        "{}",
        ran.stderr
    );
    assert_eq!(setup.work.read("w/batch_results.json.old-1"), theirs);
    assert!(report(&setup.work, "w/batch_results.json")["topic_analysis"]["status"].is_string());
    // Our own is replaced.
    let ran = setup.run(&["submit"]).exits(0);
    assert!(!ran.stderr.contains("not written by zbatch"), "{}", ran.stderr);
    let ran = setup.run(&["fetch"]).exits(0);
    assert!(ran.stderr.contains("w/download_info.json.old-1"), "{}", ran.stderr);
    assert!(!setup.work.exists("w/batch_results.json.old-2") && !setup.work.exists("w/download_info.json.old-2"));
}

/// Somebody had batches of the old scripts, and no work directory.
#[test]
fn r10_5c_results_of_batches_made_elsewhere() {
    let setup = Setup::new(&["--fault", "blocked=30%"]);
    setup.submit();
    let status = setup.status();
    let chunks = status["chunks"].as_array().expect("chunks");
    let ids: Vec<&str> = chunks.iter().map(|chunk| chunk["batch_id"].as_str().expect("an id")).collect();
    let there = WorkDir::new();
    let fetch = |args: &[&str]| {
        let base = setup.server.base.as_str();
        let mut command = there.command(&[&["fetch", "--base-url", base, "--poll-interval", "10ms"], args].concat());
        Ran::of(command.env("ZHIPUAI_API_KEY", KEY).output().expect("the program starts"))
    };
    let all = ids.join(",");
    let ran = fetch(&["--batch", &all, "-o", "-"]).exits(0);
    let lines = ran.json_lines();
    assert_eq!(lines.len(), 24, "{}", ran.stderr);
    assert!(lines.iter().any(|line| line["response"]["status_code"] == 400), "error files too");
    assert!(ran.stderr.contains(&format!("{}: completed, 4 lines, 0 absent", ids[0])), "{}", ran.stderr);
    fetch(&["--batch", ids[0], "--batch", ids[1], "-o", "two.jsonl"]).exits(0);
    assert_eq!(there.read("two.jsonl").lines().count(), 8);
    assert_eq!(std::fs::read_dir(there.path()).expect("listed").count(), 1, "no work directory, nothing left");
    // Nothing is deleted there: the work directory still has all.
    setup.run(&["fetch"]).exits(0);
    assert_eq!(setup.rows()["absent"], 0);
    let ran = fetch(&["--batch", "batch_17"]).exits(69);
    assert!(ran.stderr.contains("batch_17"), "{}", ran.stderr);
    fetch(&["--batch", ids[0], "-d", "w"]).exits(64);
}

#[test]
fn r10_5c_batches_made_elsewhere_that_have_not_ended() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--max-concurrent-tasks", "9"]).exits(0);
    let id = setup.status()["chunks"][0]["batch_id"].as_str().expect("an id").to_owned();
    let fetch = |args: &[&str]| {
        let base = setup.server.base.as_str();
        let mut command = setup.work.command(&[&["fetch", "--base-url", base, "--batch", &id], args].concat());
        Ran::of(command.env("ZHIPUAI_API_KEY", KEY).output().expect("the program starts"))
    };
    let ran = fetch(&["-o", "-", "--no-wait"]).exits(75);
    assert!(ran.text().is_empty() && ran.stderr.contains(&format!("not ended yet: {id}")), "{}", ran.stderr);
    fetch(&["-o", "one.jsonl", "--timeout", "300ms", "--poll-interval", "50ms"]).exits(75);
    assert!(!setup.work.exists("one.jsonl"));
}

/// A results file was removed by hand after the provider's copy was deleted: fetch and status ended with 0.
#[test]
fn r10_5d_results_that_are_gone_are_told_and_are_not_success() {
    const FILE: &str = "w/results/topic_analysis_batch_part1.output.jsonl";
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    std::fs::remove_file(setup.work.join(FILE)).expect("removed");
    let ran = setup.run(&["fetch"]).exits(1);
    assert!(ran.stderr.contains(&format!("{FILE} is gone, and the provider's copy is deleted")), "{}", ran.stderr);
    let ran = setup.run(&["fetch", "-o", "-"]).exits(1);
    assert_eq!(ran.json_lines().len(), 20);
    let ran = setup.work.run(&["status", "-d", "w"]).exits(1);
    assert!(ran.stderr.contains(&format!("{FILE} is gone; the provider's copy is deleted")), "{}", ran.stderr);
    // What the provider still has is downloaded again.
    let setup = Setup::new(&[]);
    setup.work.write("c.json", r#"{"batch":{"keep_remote":true}}"#);
    setup.submit();
    setup.run(&["fetch", "--config", "c.json"]).exits(0);
    assert_eq!(setup.files("batch_output"), CHUNKS, "`batch.keep_remote` keeps them");
    std::fs::remove_file(setup.work.join(FILE)).expect("removed");
    let ran = setup.work.run(&["status", "-d", "w"]).exits(1);
    assert!(ran.stderr.contains("`zbatch fetch -d w` downloads it again"), "{}", ran.stderr);
    setup.run(&["fetch", "--config", "c.json"]).exits(0);
    setup.work.run(&["status", "-d", "w"]).exits(0);
}

/// The old generate_jsonl.py took the posts of the data dir; `gen -d` waited for stdin.
#[test]
fn r10_5d_gen_into_a_directory_reads_the_posts_of_the_data_dir() {
    let dir = WorkDir::new();
    let data = old_project();
    dir.write("data/posts.json", data.read("data/posts.json")).write("data/topics.json", data.read("data/topics.json"));
    let ran = dir.run(&["gen", "-d", "w", "--only=topic_analysis"]).exits(0);
    assert!(ran.stderr.contains("posts: data/posts.json (`-` reads stdin)"), "{}", ran.stderr);
    assert_eq!(ran.json_lines()[0]["lines"], 2);
    let piped = dir.pipe("{\"content\":\"a\"}\n", &["gen", "-", "-d", "v", "--only=topic_analysis"]).exits(0);
    assert_eq!(piped.json_lines()[0]["lines"], 1);
    let filter = dir.pipe("{\"content\":\"a\"}\n", &["gen", "--only=topic_analysis"]).exits(0);
    assert_eq!(filter.json_lines().len(), 1, "the filter reads stdin");
}

/// An empty file was cut into a job that looked finished, and kept the right posts out.
#[test]
fn r10_5d_an_empty_input_makes_no_job() {
    let dir = WorkDir::new();
    dir.write("none.jsonl", "\n").write("none.json", "[]").write("posts.jsonl", "{\"content\":\"a\"}\n");
    for args in [
        &["gen", "none.jsonl", "-d"][..],
        &["gen", "none.json", "-d"],
        &["chunk", "none.jsonl", "-d"],
        &["run", "none.json", "-o", "out.json", "--emulate", "-d"],
    ] {
        let ran = dir.run(&[args, &["w"]].concat()).exits(0);
        assert!(ran.stderr.contains("the input is empty: there is no job in w"), "{args:?}: {}", ran.stderr);
        assert!(!dir.exists("w/journal.jsonl") && !dir.exists("w/jsonl_files_info.json"), "{args:?}");
        let ran = dir.run(&["status", "-d", "w"]).exits(65);
        assert!(ran.stderr.contains("is not a work directory"), "{}", ran.stderr);
    }
    assert_eq!(dir.read("out.json").trim().replace('\n', ""), "[]");
    dir.run(&["gen", "posts.jsonl", "-d", "w"]).exits(0);
}
