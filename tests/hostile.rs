//! Inputs that others wrote to break programs, in every role there is; names and texts that would talk to a terminal; image
//! paths that would leave the data dir.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

use serde_json::{Value, json};
use zbatch::journal;

use crate::{
    laws,
    workdir::{Ran, WorkDir, corpus, fixture},
};

/// A foreign text, and whether it is JSON; `None`: readers differ.
struct Foreign {
    name: String,
    bytes: Vec<u8>,
    is_json: Option<bool>,
}

#[expect(clippy::disallowed_methods, reason = "the files are small")]
fn corpora() -> Option<Vec<Foreign>> {
    let root = corpus("")?;
    let mut texts = Vec::new();
    for folder in ["JSONTestSuite/test_parsing", "JSONTestSuite/test_transform"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("listed") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let is_json = match name.get(..2) {
                Some("y_") => Some(true),
                Some("n_") => Some(false),
                _ => None,
            };
            texts.push(Foreign { name, bytes: std::fs::read(path).expect("read"), is_json });
        }
    }
    let naughty = std::fs::read(root.join("blns/blns.json")).expect("read");
    for (at, text) in serde_json::from_slice::<Vec<String>>(&naughty).expect("strings").into_iter().enumerate() {
        texts.push(Foreign { name: format!("blns {at}"), bytes: text.into_bytes(), is_json: None });
    }
    assert!(texts.len() >= 318 + 22 + 515);
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    Some(texts)
}

/// The texts that fit on one line: a line feed would make two of it.
fn on_one_line(texts: &[Foreign]) -> impl Iterator<Item = &Foreign> {
    texts.iter().filter(|text| !text.bytes.contains(&b'\n'))
}

#[test]
fn h1_foreign_texts_break_no_law_in_any_role() {
    let Some(texts) = corpora() else { return };
    let start = start_event();
    for Foreign { bytes, .. } in &texts {
        for piece in [0, 255] {
            laws::posts::check(&[&[piece, 0], bytes.as_slice()].concat());
            laws::posts::check(&[&[piece, 5], bytes.as_slice()].concat());
            laws::posts::check(&[&[piece, 0], b"[{\"content\":\"a\"},".as_slice(), bytes, b"]"].concat());
        }
        laws::result_lines::check(bytes);
        laws::answer_ladder::check(bytes);
        laws::custom_id::check(bytes);
        laws::config::check(bytes);
        for (before, after) in
            [("{\"batch\":{\"model\":", "}}"), ("{\"paths\":", "}"), ("{\"batch\":{\"poll_interval\":", "}}")]
        {
            laws::config::check(&[before.as_bytes(), bytes, after.as_bytes()].concat());
        }
        laws::journal_replay::check(bytes);
        laws::journal_replay::check(&[start.as_bytes(), bytes, b"\n"].concat());
        // As a body of 200 and of 400, whole and as the value of what is looked for.
        for (status, before, after) in [
            (0, "", ""),
            (5, "", ""),
            (0, "{\"id\":\"b\",\"status\":", "}"),
            (0, "{\"id\":", ",\"status\":\"completed\"}"),
            (0, "{\"data\":[{\"id\":\"b\",\"status\":\"completed\"}],\"has_more\":", "}"),
            (5, "{\"error\":{\"code\":\"1210\",\"message\":", "}}"),
        ] {
            laws::api_bodies::check(&[&[status, 0, 0], before.as_bytes(), bytes, after.as_bytes()].concat());
        }
    }
}

/// The first line of a journal.
fn start_event() -> String {
    fixture("journals/start.jsonl")
}

/// Spliced into a good line: a sound piece leaves it sound, and whatever comes of it belongs to the row that it names.
#[test]
fn h1_foreign_texts_as_a_piece_of_a_result_line() {
    let Some(texts) = corpora() else { return };
    let pieces: Vec<&Foreign> = on_one_line(&texts).filter(|text| text.is_json.is_some()).collect();
    for (role, before, after) in [
        (
            "a stranger",
            r#"{"custom_id":"sentiment_polarity_"#,
            r#"","x":?,"response":{"body":{"choices":[{"message":{"content":"3"}}]}}}"#,
        ),
        (
            "the content",
            r#"{"custom_id":"sentiment_polarity_"#,
            r#"","response":{"body":{"choices":[{"message":{"content":?}}]}}}"#,
        ),
        ("the response", r#"{"custom_id":"sentiment_polarity_"#, r#"","response":?}"#),
        (
            "the error",
            r#"{"custom_id":"sentiment_polarity_"#,
            r#"","error":?,"response":{"body":{"choices":[{"message":{"content":"3"}}]}}}"#,
        ),
        (
            "the usage",
            r#"{"custom_id":"sentiment_polarity_"#,
            r#"","response":{"body":{"usage":?,"choices":[{"message":{"content":"3"}}]}}}"#,
        ),
    ] {
        let (middle, end) = after.split_once('?').expect("a place");
        let mut input = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let before = format!("{before}{index}{middle}");
            input.extend([before.as_bytes(), &piece.bytes, end.as_bytes(), b"\n"].concat());
        }
        let ran = WorkDir::new().pipe(input, &["parse", "-q", "--only=sentiment_polarity"]).exits(1);
        let rows: Vec<(u64, bool)> = ran
            .json_lines()
            .iter()
            .map(|line| (line.get("index").and_then(Value::as_u64).expect("an index"), line.get("value").is_some()))
            .collect();
        for (index, piece) in (0..).zip(&pieces) {
            let row = rows.iter().find(|(row, _)| *row == index);
            // A line that is not quite JSON may be a fault of its row, or be repaired.
            let is_sound = piece.is_json == Some(true);
            assert!(row.is_some() || !is_sound, "{} as {role}", piece.name);
            if is_sound && (role == "a stranger" || role == "the usage") {
                assert!(row.is_none_or(|(_, has_value)| *has_value), "{} as {role}", piece.name);
            }
        }
    }
}

#[test]
fn h1_naughty_strings_come_back_verbatim() {
    let Some(texts) = corpora() else { return };
    let strings: Vec<&str> = texts
        .iter()
        .filter(|text| text.name.starts_with("blns"))
        .map(|text| std::str::from_utf8(&text.bytes).expect("a string"))
        .collect();
    let lines: String = strings
        .iter()
        .map(|text| json!({"content": text, *text: text, "user": {"name": [text]}}).to_string() + "\n")
        .collect();
    let dir = WorkDir::new();
    dir.write("posts.jsonl", &lines);
    let answers: String = (0..strings.len())
        .map(|index| format!("{{\"index\":{index},\"analysis\":\"publisher_decision\",\"value\":\"x\"}}\n"))
        .collect();
    dir.write("answers.jsonl", answers);
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--only=publisher_decision", "-q"]).exits(0);
    for (line, merged) in lines.lines().zip(ran.text().split('\n')) {
        let (own, _) = line.rsplit_once('}').expect("an object");
        assert_eq!(merged, format!("{own},\"publisher_decision\":\"x\"}}"), "its own bytes, and one field more");
    }
}

/// A journal of which one line is foreign is refused by that line's number; torn at the end it is passed over.
#[test]
fn s3_foreign_texts_as_a_journal_line() {
    let Some(texts) = corpora() else { return };
    let dir = WorkDir::new();
    let start = start_event();
    for text in on_one_line(&texts).filter(|text| !text.bytes.trim_ascii().is_empty()) {
        dir.write(journal::FILE, [start.as_bytes(), &text.bytes, b"\n", start.as_bytes()].concat());
        let error = journal::read(dir.path()).expect_err(&text.name).to_string();
        assert!(error.contains(&format!("line 2, byte {}:", start.len())), "{}: {error}", text.name);
        dir.write(journal::FILE, [start.as_bytes(), &text.bytes].concat());
        assert_eq!(journal::read(dir.path()).expect(&text.name).run, "r");
    }
}

#[track_caller]
fn is_harmless(ran: &Ran) {
    let hostile =
        |c: &char| *c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    assert_eq!(ran.stderr.chars().find(hostile), None, "{:?}", ran.stderr);
    assert!(!ran.stderr.is_empty());
}

/// A title, a colour, a bell, a backspace, C1's CSI, an override of direction.
const ESCAPES: &str = "\u{1b}]0;owned\u{7}\u{1b}[31m\u{8}\u{9b}2J\u{202e}\r\t";

#[test]
fn h3_post_texts_and_file_names_do_not_talk_to_the_terminal() {
    let dir = WorkDir::new();
    let name = format!("posts{ESCAPES}.jsonl");
    let post = json!({"content": "a", "image_urls": [format!("{ESCAPES}.png")]}).to_string();
    dir.write(&name, format!("{post}\n{ESCAPES}\n{{\"content\":7,\"{ESCAPES}\":1}}\n"));
    is_harmless(&dir.run(&["gen", &name, "--only=sentiment_polarity"]).exits(1));
    is_harmless(&dir.run(&["merge", &name, &name]));
    is_harmless(&dir.run(&["parse", &name]).exits(65));
    let none = format!("none{ESCAPES}");
    for args in [
        &["gen", &none][..],
        &["gen", &name, "-o", &format!("{none}/x")],
        &["gen", &name, "--faults", &format!("{none}/x")],
        &["gen", &name, "--data-dir", &none],
        &["gen", &name, "--analyses", &none],
        &["gen", &name, "--config", &none],
        &["gen", &name, "--only", &none],
        &["status", "-d", &none],
        &["submit", "-d", &none, "--emulate"],
        &[&none],
        &["gen", &format!("--{none}")],
        &["gen", &name, "--max-bytes", &none],
        &["run", &name, "-d", &none, "--provider", &none],
    ] {
        let ran = dir.run(args);
        assert!(!matches!(ran.code, Some(0) | None), "{args:?}");
        is_harmless(&ran);
    }
    for config in [
        json!({"batch": {ESCAPES: 1}}),
        json!({ESCAPES: {}}),
        json!({"batch": {"model": [ESCAPES]}}),
        json!({"batch": {"provider": ESCAPES}}),
    ] {
        dir.write("config.json", config.to_string());
        is_harmless(&dir.run(&["gen", &name, "--config", "config.json"]).exits(65));
    }
    dir.write("a/b/analysis.json", json!({"name": ESCAPES}).to_string()).write("a/b/prompt.txt", "x");
    is_harmless(&dir.run(&["gen", &name, "--analyses", "a"]).exits(65));
    dir.write("w/journal.jsonl", format!("{}{{\"event\":\"{ESCAPES}\"}}\n", start_event()));
    is_harmless(&dir.run(&["status", "-d", "w"]).exits(65));
    dir.write("w/journal.jsonl", start_event() + &json!({"event": ESCAPES}).to_string() + "\n");
    is_harmless(&dir.run(&["status", "-d", "w"]).exits(65));
}

/// Answers every request with the same bytes, and closes.
fn serve(reply: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    // It ends with the tests' process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 64 << 10];
            let _read = stream.read(&mut request);
            let _sent = stream.write_all(&reply);
        }
    });
    base
}

#[test]
fn h3_a_server_does_not_talk_to_the_terminal() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    let page = format!("<html>{ESCAPES}</html>");
    let told = json!({"error": {"code": ESCAPES, "message": format!("no{ESCAPES}")}}).to_string();
    for (at, reply) in [
        format!("HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{told}", told.len()),
        format!("HTTP/1.1 401 {ESCAPES}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{page}", page.len()),
        format!("HTTP/1.1 413 Large\r\nConnection: close\r\nX-{ESCAPES}: {ESCAPES}\r\n\r\n{page}"),
        format!("HTTP/1.1 404 {ESCAPES}\r\nContent-Encoding: {ESCAPES}\r\nConnection: close\r\n\r\n{page}"),
    ]
    .into_iter()
    .enumerate()
    {
        let base = serve(reply.into_bytes());
        let work = format!("w{at}");
        let args = ["run", "posts.jsonl", "-d", &work, "-o", "out.jsonl", "--base-url", &base, "-vv", "--timeout=1s"];
        let mut command = dir.command(&args);
        command.env("ZHIPUAI_API_KEY", "idididididid.secretsecretsecret");
        let ran = Ran::of(command.output().expect("the program starts"));
        assert!(!matches!(ran.code, Some(0) | None), "{at}");
        is_harmless(&ran);
        assert!(!dir.exists("out.jsonl"));
    }
}

#[test]
fn p3_no_image_path_leaves_the_data_dir_or_hangs() {
    let dir = WorkDir::new();
    let png = [b"\x89PNG\r\n\x1a\n".as_slice(), &[7; 20]].concat();
    dir.write("outside/secret.png", &png).write("data/in/a.png", &png).write("data/%2e%2e/b.png", &png);
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, dir.join(at)).expect("linked");
    link("../outside", "data/folder");
    link("../outside/secret.png", "data/file.png");
    link("in/a.png", "data/inner.png");
    link("in/../../outside/secret.png", "data/winding.png");
    link("/etc/hostname", "data/absolute.png");
    link("loop.png", "data/loop.png");
    link("/dev/zero", "data/zero.png");
    link("/proc/self/environ", "data/environ.png");
    let fifo = std::process::Command::new("mkfifo").arg(dir.join("data/fifo.png")).status().expect("mkfifo");
    assert!(fifo.success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("data/socket.png")).expect("a socket");
    let absolute = dir.join("outside/secret.png").display().to_string();
    let long_name = "x".repeat(300) + ".png";
    let long_path = "in/".repeat(100_000) + "a.png";
    let refused = [
        "../outside/secret.png",
        "in/../../outside/secret.png",
        "./../outside/secret.png",
        "..",
        "/",
        ".",
        "in",
        &absolute,
        "//etc/hostname",
        "folder/secret.png",
        "in/../folder/secret.png",
        "file.png",
        "winding.png",
        "absolute.png",
        "loop.png",
        "zero.png",
        "environ.png",
        "fifo.png",
        "socket.png",
        "in/a.png/",
        "in/a.png\0.jpg",
        "\0",
        "%2e%2e/outside/secret.png",
        "..\\outside\\secret.png",
        "..%2foutside%2fsecret.png",
        "file:///etc/hostname",
        "FILE:in/a.png",
        "~/secret.png",
        "$HOME/secret.png",
        &long_name,
        &long_path,
    ];
    let taken = ["in/a.png", "./in/a.png", "in/../in/a.png", "inner.png", "%2e%2e/b.png", "in/a.png ", "in\\a.png"];
    let post = |path: &str| json!({"content": "a", "image_urls": [path]}).to_string() + "\n";
    dir.write("posts.jsonl", refused.iter().chain(&taken).map(|path| post(path)).collect::<String>());
    for (list, prompt) in [
        ("topics.json", r#"[{"parent_topic":"a","sub_topics":["b"]}]"#),
        ("sentiment_attributes.json", r#"["a"]"#),
        ("publisher_objects.json", r#"["a"]"#),
    ] {
        dir.write(&format!("data/{list}"), prompt);
    }
    let only = "--only=sentiment_polarity";
    let ran = dir.run(&["gen", "posts.jsonl", "--data-dir=data", only, "--faults=f.jsonl"]).exits(1);
    let lines = ran.json_lines();
    assert_eq!(lines.len(), refused.len() + taken.len(), "every post is still asked about");
    for (line, path) in lines.iter().zip(refused.iter().chain(&taken)) {
        let has_image = line.to_string().contains("data:image/png;base64,");
        assert_eq!(has_image, taken.contains(path), "{path:.50}");
    }
    let faults = dir.read("f.jsonl");
    assert_eq!(faults.lines().count(), refused.len());
    assert!(faults.lines().all(|line| line.len() < 1000 && line.contains(r#""kind":"image""#)), "{faults}");
}

/// `image_urls` of millions of elements were once held as a list, and told one by one.
#[test]
fn s8_many_refused_images_are_not_all_told() {
    let dir = WorkDir::new();
    let posts = format!("{{\"content\":\"a\",\"image_urls\":[{}\"http://x/1.png\"]}}\n", "1,".repeat(100_000));
    let ran = dir.pipe(posts, &["gen", "--only=sentiment_polarity", "--faults=f.jsonl"]).exits(1);
    assert!(ran.text().contains("http://x/1.png"));
    let faults = dir.read("f.jsonl");
    assert_eq!(faults.lines().count(), 10);
    assert!(faults.lines().last().is_some_and(|line| line.contains("element 9 is not a string; others are not told")));
}

#[test]
fn h1_a_key_with_a_lone_surrogate_costs_no_post() {
    let dir = WorkDir::new();
    let post = r#"{"\ud800":1,"c\u006fntent":"a\udfffb","\"":"\ud83d"}"#;
    let ran = dir.pipe(post, &["gen", "--only=publisher_decision"]).exits(0);
    assert!(ran.text().contains("a\u{fffd}b"));
    dir.write("posts.jsonl", post);
    let ran = dir.run(&["merge", "posts.jsonl", "/dev/null", "--only=publisher_decision", "--max-faults=1"]);
    let own = post.strip_suffix('}').expect("an object");
    assert_eq!(ran.text(), format!("{own},\"publisher_decision\":null}}\n"));
}

/// Files from which settings are read: as deep, as long or as endless as they come.
#[test]
fn h1_deep_settings_are_refused() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n").write("deep.json", &deep);
    dir.write("object.json", format!("{{\"batch\":{deep}}}"));
    for args in [
        ["--config", "deep.json"],
        ["--config", "object.json"],
        ["--config", "/dev/zero"],
        ["--data-dir", "d"],
        ["--analyses", "a"],
        ["--skip", "deep.json"],
    ] {
        dir.write("d/sentiment_attributes.json", &deep).write("d/topics.json", &deep);
        dir.write("a/q/analysis.json", format!("{{\"name\":{deep}}}")).write("a/q/prompt.txt", "x");
        let ran = dir.run(&[&["gen", "posts.jsonl"], &args[..]].concat()).exits(65);
        assert!(ran.stdout.is_empty() && ran.stderr.len() < 2000, "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn h1_deep_posts_and_answers_are_copied() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let dir = WorkDir::new();
    let post = format!("{{\"content\":\"a\",\"x\":{deep}}}");
    dir.write("posts.jsonl", format!("{post}\n{{\"content\":{deep}}}\n"));
    let only = "--only=publisher_decision";
    let ran = dir.run(&["gen", "posts.jsonl", only]).exits(1);
    assert_eq!(ran.json_lines().len(), 1);
    dir.write("answers", format!("{{\"index\":0,\"analysis\":\"publisher_decision\",\"value\":{deep}}}\n"));
    let ran = dir.run(&["merge", "posts.jsonl", "answers", only, "--max-faults=2"]).exits(0);
    let merged = ran.text().lines().next().expect("a line");
    assert_eq!(merged, format!("{{\"content\":\"a\",\"x\":{deep},\"publisher_decision\":{deep}}}"));
    // Brackets alone are an array that does not end.
    for posts in [deep.as_str(), "[".repeat(100_000).as_str(), "{\"a\":".repeat(100_000).as_str()] {
        dir.pipe(posts, &["gen", only, "-q"]).exits(65);
    }
}

/// What serde derives for a struct takes an array of the fields' values too.
#[test]
fn h2_an_array_is_no_object_anywhere() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    dir.write(
        "answers",
        "[0,\"publisher_decision\",\"x\",null]\n{\"index\":0,\"analysis\":\"publisher_decision\",\"fault\":{}}\n",
    );
    let only = "--only=publisher_decision";
    let ran = dir.run(&["merge", "posts.jsonl", "answers", only, "--faults=f"]).exits(1);
    assert_eq!(ran.text(), "{\"content\":\"a\",\"publisher_decision\":null}\n");
    assert!(dir.read("f").contains(r#""line":1,"offset":0,"kind":"bad_line""#), "{}", dir.read("f"));
    dir.write("requests", "[\"publisher_decision_0\",\"POST\",\"/v4/chat/completions\",[\"m\"]]\n");
    dir.run(&["chunk", "requests", "-d", "w"]).exits(65);
    dir.write("skip", "[0,null,null,null,null,\"blocked\",\"d\",null]\n");
    dir.run(&["gen", "posts.jsonl", "--skip", "skip"]).exits(65);
    dir.write("journal.jsonl", start_event() + "[\"posts\",1,[1,\"00\"]]\n");
    assert!(journal::read(dir.path()).is_err());
}
