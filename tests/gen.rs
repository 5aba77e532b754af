//! `zbatch gen`: posts → request lines.
#![expect(clippy::indexing_slicing, reason = "a test may panic, and so may what it calls")]

use std::{collections::BTreeMap, io::Write as _, process::Stdio};

use base64::Engine as _;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};

use crate::workdir::{Ran, WorkDir, corpus, repository};

/// One request a post.
const ONE: &str = "--only=sentiment_polarity";

fn repository_data() -> String {
    format!("--data-dir={}", repository().join("data").display())
}

impl Ran {
    /// The index of every request line.
    fn indexes(&self) -> Vec<u64> {
        let ids = self.json_lines().into_iter().map(|line| line["custom_id"].as_str().expect("an id").to_owned());
        ids.map(|id| id.rsplit_once('_').expect("an index").1.parse().expect("a number")).collect()
    }

    /// The prompt of every request line.
    fn prompts(&self) -> Vec<String> {
        let contents = self.json_lines().into_iter().map(|line| line["body"]["messages"][0]["content"].clone());
        contents.map(|c| c.as_str().or_else(|| c[0]["text"].as_str()).expect("a prompt").to_owned()).collect()
    }
}

fn faults(dir: &WorkDir, name: &str) -> Vec<Value> {
    dir.read(name).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Request lines as values, with what an image's data URL holds replaced by its length.
#[expect(clippy::disallowed_methods, reason = "the repository's own small files")]
fn golden(name: &str, seen: &[Value]) {
    let path = repository().join("fixtures/golden").join(name);
    if std::env::var_os("ZBATCH_BLESS").is_some() {
        let text: String = seen.iter().map(|value| format!("{value}\n")).collect();
        std::fs::write(&path, text).expect("written");
    }
    let text = std::fs::read_to_string(&path).expect("a golden file; ZBATCH_BLESS=1 writes it");
    let wanted: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(seen.len(), wanted.len());
    for (seen, wanted) in seen.iter().zip(&wanted) {
        assert_eq!(seen, wanted, "ZBATCH_BLESS=1 accepts what is written now");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the repository's own small files")]
fn requests_are_those_of_the_golden_file() {
    let dir = WorkDir::new();
    let posts = repository().join("fixtures/posts/small.jsonl").display().to_string();
    let ran = dir.run(&["gen", &posts, &repository_data(), "--faults", "f.jsonl"]).exits(1);
    let mut lines = ran.json_lines();
    let image = std::fs::read(repository().join("data/images/flood_1.png")).expect("an image");
    let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(image));
    let mut images = 0;
    for line in &mut lines {
        if let Some(part) = line["body"]["messages"][0]["content"].get_mut(2) {
            assert_eq!(part["image_url"]["url"], url.as_str(), "the real file, as a data URL");
            part["image_url"]["url"] = "data:image/png;base64,…".into();
            images += 1;
        }
    }
    assert_eq!(images, 2, "sentiment_polarity and topic_analysis look at images");
    golden("requests.jsonl", &lines);
    assert_eq!(faults(&dir, "f.jsonl").len(), 1, "{}", dir.read("f.jsonl"));
    assert_eq!(faults(&dir, "f.jsonl")[0]["kind"], "image");
    assert!(ran.text().contains('县') && !ran.text().contains("\\u7"), "Chinese is never escaped");
}

/// Name, input, indexes asked for, indexes of bad posts.
type Case = (&'static str, &'static [u8], &'static [u64], &'static [u64]);

#[test]
fn inputs_good_and_bad() {
    let cases: &[Case] = &[
        ("empty", b"", &[], &[]),
        ("blank lines only", b"\n \n\t\r\n", &[], &[]),
        ("an empty array", b" [ ] \n", &[], &[]),
        ("lines", b"{\"content\":\"a\"}\n{\"content\":\"b\"}\n", &[0, 1], &[]),
        ("no last line feed", b"{\"content\":\"a\"}\n{\"content\":\"b\"}", &[0, 1], &[]),
        ("CRLF", b"{\"content\":\"a\"}\r\n{\"content\":\"b\"}\r\n", &[0, 1], &[]),
        ("a byte order mark", b"\xef\xbb\xbf{\"content\":\"a\"}\n{\"content\":\"b\"}\n", &[0, 1], &[]),
        ("blank lines take no index", b"\n\n{\"content\":\"a\"}\n \n\r\n{\"content\":\"b\"}\n\n", &[0, 1], &[]),
        ("an array on one line", b"[{\"content\":\"a\"},{\"content\":\"b\"}]", &[0, 1], &[]),
        ("an array over lines", b"\xef\xbb\xbf[\r\n  {\n\"content\":\n\"a\"},\n{\"content\":\"b\"}\n]\n", &[0, 1], &[]),
        (
            "an array with bad posts",
            b"[{\"content\":\"a\"}, 1, null, [2], {}, {\"content\":\"b\"}]",
            &[0, 5],
            &[1, 2, 3, 4],
        ),
        ("not an object", b"1\n{\"content\":\"a\"}\n\"x\"\nnull\n[]\n", &[1], &[0, 2, 3, 4]),
        ("torn", b"{\"content\":\"a\"}\n{\"content\":\n\"b\"}\n{\"content\":\"c\"}\n", &[0, 3], &[1, 2]),
        ("two on a line", b"{\"content\":\"a\"}{\"content\":\"b\"}\n{\"content\":\"c\"}\n", &[1], &[0]),
        ("bad UTF-8", b"{\"content\":\"\xff\"}\n{\"content\":\"a\"}\n", &[1], &[0]),
        (
            "content of other kinds",
            b"{\"content\":null}\n{\"content\":5}\n{}\n{\"content\":\" \"}\n{\"content\":\"\"}\n",
            &[3],
            &[0, 1, 2, 4],
        ),
        ("control characters", b"{\"content\":\"a\x01\"}\n{\"content\":\"b\"}\n", &[1], &[0]),
    ];
    let dir = WorkDir::new();
    for (name, input, asked, bad) in cases {
        let ran = dir.pipe(input, &["gen", ONE, "--faults", "f.jsonl"]).exits(i32::from(!bad.is_empty()));
        assert_eq!(ran.indexes(), *asked, "{name}");
        let seen = faults(&dir, "f.jsonl");
        let indexes: Vec<u64> = seen.iter().map(|fault| fault["index"].as_u64().expect("an index")).collect();
        assert_eq!(indexes, *bad, "{name}");
        assert!(seen.iter().all(|fault| fault["kind"] == "bad_post"), "{name}");
    }
}

#[test]
fn a_broken_line_is_named_and_the_others_are_asked() {
    let dir = WorkDir::new();
    // Line 17 is blank, so the broken line 18 has index 16, and the one before the end index 17.
    let mut lines: Vec<String> = (0..20).map(|n| format!("{{\"content\":\"第{n}\"}}")).collect();
    lines[16] = " ".to_owned();
    lines[17] = "{\"content\":\"第\u{1b}[31m".to_owned();
    dir.write("posts.jsonl", lines.join("\n") + "\n");
    let ran = dir.run(&["gen", "posts.jsonl", ONE, "--faults", "f.jsonl"]).exits(1);
    assert_eq!(ran.indexes(), (0..19).filter(|index| *index != 16).collect::<Vec<_>>());
    let offset: usize = lines[..17].iter().map(|line| line.len() + 1).sum();
    let fault = &faults(&dir, "f.jsonl")[0];
    assert_eq!(fault["excerpt"], "{\"content\":\"第\\u{1b}[31m");
    for (key, value) in
        [("index", json!(16)), ("line", json!(18)), ("offset", json!(offset)), ("file", json!("posts.jsonl"))]
    {
        assert_eq!(fault[key], value, "{fault}");
    }
    let ran = dir.run(&["gen", "posts.jsonl", ONE]).exits(1);
    assert!(ran.stderr.contains("posts.jsonl line 18 index 16: bad_post: not JSON"), "{}", ran.stderr);
    assert!(!ran.stderr.contains('\u{1b}'));
    dir.run(&["gen", "posts.jsonl", ONE, "-q", "--max-faults", "1"]).exits(0);
    dir.run(&["gen", "posts.jsonl", ONE, "-q", "--max-faults", "6%"]).exits(0);
    dir.run(&["gen", "posts.jsonl", ONE, "-q", "--max-faults", "5%"]).exits(1);
}

#[test]
fn what_cannot_be_read_stops_with_advice_and_leaves_no_output() {
    let dir = WorkDir::new();
    for (input, told) in [
        ("[{\"content\":\"a\"},\n {\"content\":\"b\" \"x\":1}]", "index 1, line 2, byte 19: not JSON"),
        ("[{\"content\":\"a\"},", "index 1, line 1, byte 17: it ends without `]`"),
        ("[{\"content\":\"a\"} {\"content\":\"b\"}]", "index 1, line 1, byte 17: `,` or `]` is missing"),
        ("[{\"content\":\"a\"},]", "index 1, line 1, byte 17: a comma, and then no post"),
        (
            "[{\"content\":\"a\"}]\n{\"content\":\"b\"}",
            "index 1, line 2, byte 18: something follows the end of the array",
        ),
        ("{\n  \"content\": \"a\"\n}\n", "jq -c"),
        ("\u{feff}\r\n{\r\n  \"content\": \"a\"\r\n}\r\n", "jq -c"),
        ("1\n2\n", "none of its 2 lines is a post"),
        ("content\na\n", "none of its 2 lines is a post"),
    ] {
        let ran = dir.pipe(input, &["gen", ONE, "-o", "out.jsonl"]).exits(65);
        assert!(ran.stderr.contains(told), "{input:?}: {}", ran.stderr);
        assert!(!dir.exists("out.jsonl"), "{input:?}");
    }
    let ran = dir.pipe("1\n2\n", &["gen", ONE]).exits(65);
    assert!(ran.stderr.contains("stdin line 1 index 0: bad_post: not a JSON object | 1"), "{}", ran.stderr);
    assert!(dir.run(&["gen", "nosuch.jsonl"]).exits(65).stderr.contains("nosuch.jsonl"));
    assert!(dir.run(&["gen", "."]).exits(65).stderr.contains("is a directory"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0, "nothing is left behind");
}

#[test]
fn packed_posts_are_told_by_their_first_bytes() {
    type Packer = fn(&[u8]) -> Vec<u8>;
    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("packed");
        encoder.finish().expect("packed")
    }
    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).expect("packed");
        encoder.finish().expect("packed")
    }
    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).expect("packed");
        encoder.finish().expect("packed")
    }
    let dir = WorkDir::new();
    let parts = ["{\"content\":\"一\"}\n{\"conte", "nt\":\"二\"}\n", "{\"content\":\"三\"}"];
    let plain = dir.pipe(parts.concat(), &["gen", ONE]).exits(0);
    let packers: [(&str, Packer); 4] =
        [("gz", gzip), ("bz2", bzip2), ("xz", xz), ("zst", |bytes| zstd::encode_all(bytes, 1).expect("packed"))];
    for (name, pack) in packers {
        let members: Vec<Vec<u8>> = parts.iter().map(|part| pack(part.as_bytes())).collect();
        for packed in [pack(parts.concat().as_bytes()), members.concat()] {
            // The name says nothing: some people's files have none.
            let ran = dir.write("posts", &packed).run(&["gen", "posts", ONE]).exits(0);
            assert_eq!(ran.text(), plain.text(), "{name}");
            let torn = dir.pipe(&packed[..packed.len() - 3], &["gen", ONE, "-o", "out.jsonl"]);
            assert!(matches!(torn.code, Some(65 | 74)), "{name}: {torn:?}");
            assert!(!dir.exists("out.jsonl"), "{name}");
        }
    }
    dir.pipe(parts.concat(), &["gen", ONE, "-o", "out.jsonl.gz"]).exits(0);
    let output = std::process::Command::new("gzip").args(["-dc", "out.jsonl.gz"]).current_dir(dir.path()).output();
    assert_eq!(output.expect("gzip runs").stdout, plain.stdout);
}

#[test]
fn s8_a_line_that_is_too_long_is_a_fault() {
    let dir = WorkDir::new();
    let long = format!("{{\"content\":\"{}\"}}", "长".repeat(3000));
    for input in [
        format!("{{\"content\":\"a\"}}\n{long}\n{{\"content\":\"b\"}}\n"),
        format!("[{{\"content\":\"a\"}},{long},{{\"content\":\"b\"}}]"),
    ] {
        let ran = dir.pipe(input, &["gen", ONE, "--max-line", "4KiB", "--faults", "f.jsonl"]).exits(1);
        assert_eq!(ran.indexes(), [0, 2]);
        let fault = &faults(&dir, "f.jsonl")[0];
        assert_eq!((&fault["index"], &fault["kind"]), (&json!(1), &json!("bad_post")));
        assert!(fault["excerpt"].as_str().is_some_and(|text| text.chars().count() == 121));
    }
    let at_limit = format!("{}\n", json!({ "content": "x".repeat(100) }));
    for (limit, code) in [(at_limit.len() - 2, 65), (at_limit.len() - 1, 0), (at_limit.len(), 0)] {
        dir.pipe(&at_limit, &["gen", ONE, "--max-line", &limit.to_string()]).exits(code);
    }
}

#[test]
fn p2_post_text_is_data_and_nothing_else() {
    let dir = WorkDir::new();
    let hostile = "{{content}} {{labels}} {% raw %} $1 ${1} \\1 \"}]}\n\u{0}\u{2028}😭 &amp; '";
    let post = json!({"content": hostile, "username": hostile}).to_string();
    for prompt in dir.pipe(post, &["gen"]).exits(0).prompts() {
        assert!(prompt.contains(hostile), "{prompt}");
    }
    let ran = dir.pipe(r#"{"content":"a\ud800b\udc00\ud83d\ude2d"}"#, &["gen", ONE]).exits(0);
    assert!(ran.prompts()[0].contains("a\u{fffd}b\u{fffd}😭"));
    assert!(ran.stderr.contains("2 lone surrogates became U+FFFD"), "{}", ran.stderr);
}

#[test]
fn models_temperature_and_max_tokens() {
    let dir = WorkDir::new();
    let post = r#"{"content":"a","image_urls":["https://x/1.jpg"]}"#;
    let bodies = |args: &[&str]| -> BTreeMap<String, (Value, Value, Value)> {
        let lines = dir.pipe(post, &[&["gen"], args].concat()).exits(0).json_lines();
        let parts = |line: Value| {
            let body = &line["body"];
            let id = line["custom_id"].as_str().expect("an id").to_owned();
            (id, (body["model"].clone(), body["temperature"].clone(), body["max_tokens"].clone()))
        };
        lines.into_iter().map(parts).collect()
    };
    let plain = bodies(&["--only=sentiment_attribute,topic_analysis"]);
    assert_eq!(plain["sentiment_attribute_0000"], (json!("glm-4-air"), json!(0.7), Value::Null));
    assert_eq!(plain["topic_analysis_0000"].0, "glm-4v-plus");
    let named = bodies(&["--only=topic_analysis,sentiment_attribute", "--model=a", "--multimodal-model=b"]);
    assert_eq!((&named["sentiment_attribute_0000"].0, &named["topic_analysis_0000"].0), (&json!("a"), &json!("b")));

    // The analysis' own temperature comes first, then the file's, as written.
    dir.write("config.json", r#"{"batch":{"temperature":0.10}}"#);
    let examples = format!("--analyses={}", repository().join("examples/analyses").display());
    let both = bodies(&[&examples, "--only=urgency,sentiment_attribute"]);
    assert_eq!(both["urgency_0000"], (json!("glm-4-air"), json!(0.1), json!(16)));
    dir.write("config.json", r#"{"batch":{"temperature":1}}"#);
    let both = bodies(&[&examples, "--only=urgency,sentiment_attribute"]);
    assert_eq!((&both["urgency_0000"].1, &both["sentiment_attribute_0000"].1), (&json!(0.1), &json!(1)));

    let url =
        dir.pipe(post, &["gen", ONE, "--provider", "openai", "--model", "m"]).exits(0).json_lines()[0]["url"].clone();
    assert_eq!(url, "/v1/chat/completions");
}

#[test]
fn rows_that_are_asked_for() {
    let dir = WorkDir::new();
    let posts = r#"{"content":"a","sentiment_polarity":3,"topics":null}
{"content":"b","topics":[],"x":{"sentiment_polarity":1}}
{"content":"c"}
"#;
    let two = "--only=topic_analysis,sentiment_polarity";
    let ids = |ran: Ran| -> Vec<String> {
        ran.json_lines().iter().map(|line| line["custom_id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(
        ids(dir.pipe(posts, &["gen", two, "--missing"]).exits(0)),
        ["topic_analysis_0000", "sentiment_polarity_0001", "sentiment_polarity_0002", "topic_analysis_0002"]
    );
    dir.write(
        "f.jsonl",
        r#"{"index":2,"analysis":"topic_analysis","kind":"blocked","detail":""}
{"index":1,"analysis":"sentiment_polarity","kind":"not_accepted","detail":""}
{"index":0,"kind":"bad_post","detail":""}
"#,
    );
    let ran = dir.pipe(posts, &["gen", two, "--skip", "f.jsonl"]).exits(0);
    assert!(ran.stderr.contains("3 rows left out by --skip"), "{}", ran.stderr);
    assert_eq!(ids(ran), ["sentiment_polarity_0001", "topic_analysis_0001", "sentiment_polarity_0002"]);
    let ran = dir.pipe(posts, &["gen", ONE, "--start-index", "9999"]).exits(0);
    assert_eq!(ids(ran), ["sentiment_polarity_9999", "sentiment_polarity_10000", "sentiment_polarity_10001"]);
    dir.write("bad.jsonl", "{\"content\":\"a\"}\n");
    assert!(dir.pipe(posts, &["gen", two, "--skip", "bad.jsonl"]).exits(65).stderr.contains("bad.jsonl"));
    assert!(dir.pipe(posts, &["gen", two, "--skip", "nosuch"]).exits(65).stderr.contains("nosuch"));
}

#[test]
fn analyses_that_are_wrong_are_refused_by_name() {
    let dir = WorkDir::new();
    let post = r#"{"content":"a"}"#;
    let ran = dir.pipe(post, &["gen", "--only", "topic_analysys"]).exits(64);
    assert!(ran.stderr.contains("did you mean `topic_analysis`?"), "{}", ran.stderr);
    let good = r#"{"name":"mood","field":"mood","rule":{"type":"integer","min":0,"max":9}}"#;
    dir.write("a/mood/analysis.json", good).write("a/mood/prompt.txt", "心情？{{content}}");
    let ran = dir.pipe(post, &["gen", "--analyses", "a", "--only", "mood"]).exits(0);
    assert_eq!((ran.indexes(), ran.prompts()), (vec![0], vec!["心情？a".to_owned()]));
    for (json, told) in [
        (good.replace("\"field\"", "\"feild\""), "feild"),
        (good.replace("\"mood\",\"field\"", "\"Mood\",\"field\""), "Mood"),
        (good.replace("\"mood\",\"field\"", "\"mood_vision\",\"field\""), "mood_vision"),
        (good.replace("\"mood\",\"field\"", "\"mood_2\",\"field\""), "mood_2"),
        (good.replace("integer", "number"), "number"),
        ("{".to_owned(), "mood"),
    ] {
        dir.write("a/mood/analysis.json", &json);
        let ran = dir.pipe(post, &["gen", "--analyses", "a"]).exits(65);
        assert!(ran.stderr.contains(told), "{json}: {}", ran.stderr);
        assert_eq!(ran.text(), "");
    }
}

#[test]
fn a_bad_post_may_stop_it() {
    let dir = WorkDir::new();
    let input = "{\"content\":\"a\"}\n{\"content\":7}\n{\"content\":\"b\"}\n";
    let ran = dir.pipe(input, &["gen", ONE, "--on-bad-post", "stop", "-o", "out.jsonl"]).exits(65);
    assert!(ran.stderr.contains("index 1"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
    // Chunks that were cut before it stay, and the mended input goes on after them.
    dir.pipe(input, &["gen", ONE, "--on-bad-post", "stop", "-d", "w", "--max-lines", "1"]).exits(65);
    let mended = input.replace('7', "\"c\"");
    let ran = dir.pipe(mended, &["gen", ONE, "--on-bad-post", "stop", "-d", "w", "--max-lines", "1"]).exits(0);
    assert_eq!(ran.json_lines().len(), 2);
}

#[test]
fn a_line_over_the_limit_is_a_fault_of_that_row() {
    let dir = WorkDir::new();
    let input = "{\"content\":\"a\"}\n{\"content\":\"aa\"}\n{\"content\":\"a\"}\n";
    let whole = dir.pipe(input, &["gen", ONE]).exits(0);
    let least = whole.text().lines().next().expect("a line").len() + 1;
    for (limit, indexes) in [(least, vec![0, 2]), (least + 1, vec![0, 1, 2])] {
        let ran = dir.pipe(input, &["gen", ONE, "--max-bytes", &limit.to_string(), "--faults", "f.jsonl"]);
        assert_eq!(ran.indexes(), indexes);
        assert_eq!(faults(&dir, "f.jsonl").len() + indexes.len(), 3);
    }
    let ran = dir.pipe(input, &["gen", ONE, "--max-bytes", &(least - 1).to_string(), "--faults", "f.jsonl"]).exits(1);
    assert_eq!(ran.indexes(), [0; 0]);
    assert!(faults(&dir, "f.jsonl").iter().all(|fault| fault["kind"] == "too_large"));
}

#[test]
fn the_report_says_what_was_rendered() {
    let dir = WorkDir::new();
    dir.pipe("{\"content\":\"a\"}\n{}\n", &["gen", "--only=sentiment_polarity,topic_analysis", "--report", "r.json"])
        .exits(1);
    let report: Value = serde_json::from_str(&dir.read("r.json")).expect("JSON");
    let topic = &report["integration_stats"]["analyses"]["topic_analysis"];
    assert_eq!((&topic["rows"], &topic["faults"]["bad_post"]["count"]), (&json!(1), &json!(1)));
    assert_eq!(topic["faults"]["bad_post"]["samples"][0]["detail"], "`content` is absent");
}

#[test]
fn a_closed_stdout_is_a_quiet_end_and_a_full_disk_is_not() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n".repeat(20_000));
    let mut command = dir.command(&["gen", "posts.jsonl", "-q"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));

    let full = || std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
    for args in [&["gen", "posts.jsonl", "-q", ONE][..], &["gen", "posts.jsonl", "-q", ONE, "-d", "w"]] {
        let output = dir.command(args).stdout(full()).output().expect("the program starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(74), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    dir.run(&["gen", "posts.jsonl", "-q", ONE, "-o", "/dev/full"]).exits(74);
    dir.run(&["gen", "posts.jsonl", "-q", ONE, "-o", "nosuch/out.jsonl"]).exits(74);
}

#[test]
fn stdin_that_is_a_terminal_is_refused_with_an_example() {
    let dir = WorkDir::new();
    let program = format!("{} gen", env!("CARGO_BIN_EXE_zbatch"));
    let ran = std::process::Command::new("script")
        .args(["-qec", &program, "/dev/null"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output();
    let Ok(output) = ran else {
        let _closed_stderr = writeln!(std::io::stderr(), "skipped: `script` is not here");
        return;
    };
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(64), "{shown}");
    assert!(shown.contains("stdin is a terminal") && shown.contains("cat posts.jsonl | zbatch gen"), "{shown}");
}

/// Posts: some with images, some bad, in any order.
fn posts() -> impl Strategy<Value = Vec<String>> {
    let post = prop_oneof![
        6 => "[a-z\"\\\\\u{4e00}-\u{4e20}\u{1f600}]{0,40}".prop_map(|text| json!({ "content": text }).to_string()),
        2 => "[a-z]{0,9}".prop_map(|text| json!({ "content": text, "image_urls": ["https://x/1.jpg"] }).to_string()),
        1 => Just("{\"content\":".to_owned()),
        1 => Just("{\"content\":null}".to_owned()),
        1 => Just(" ".to_owned()),
    ];
    proptest::collection::vec(post, 1..25)
}

/// The chunk files of a directory in the order of their parts, by analysis and model.
fn chunk_lines(dir: &WorkDir, work: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut lines: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for event in dir.read(&format!("{work}/journal.jsonl")).lines() {
        let event: Value = serde_json::from_str(event).expect("JSON");
        if event["event"] == "chunk" {
            let text = dir.read(&format!("{work}/{}", event["path"].as_str().expect("a path")));
            let key = ["analysis", "model"].map(|key| event[key].as_str().expect("a name").to_owned());
            lines.entry(key.into()).or_default().extend(text.lines().map(str::to_owned));
        }
    }
    lines
}

#[test]
fn splitting_and_joining_changes_nothing() {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() };
    let limits = (1u32..9, prop_oneof![Just(3000u32), Just(5000), 8000u32..40_000]);
    TestRunner::new(config)
        .run(&(posts(), limits), |(posts, (lines, bytes))| {
            let dir = WorkDir::new();
            // One at least can be asked about.
            dir.write("posts.jsonl", format!("{{\"content\":\"x\"}}\n{}\n", posts.join("\n")));
            let (lines, bytes) = (lines.to_string(), bytes.to_string());
            let filter = dir.run(&["gen", "posts.jsonl", "-q", "--max-bytes", &bytes, "--faults", "f1"]);
            let cut = dir.run(&[
                "gen",
                "posts.jsonl",
                "-q",
                "--max-bytes",
                &bytes,
                "--max-lines",
                &lines,
                "-d",
                "w",
                "--faults",
                "f2",
            ]);
            prop_assert_eq!(filter.code, cut.code);
            prop_assert_eq!(dir.read("f1"), dir.read("f2"));
            let mut wanted: BTreeMap<_, Vec<String>> = BTreeMap::new();
            for line in filter.text().lines() {
                let value: Value = serde_json::from_str(line).expect("JSON");
                let id = value["custom_id"].as_str().expect("an id").rsplit_once('_').expect("an index").0.to_owned();
                let model = value["body"]["model"].as_str().expect("a model").to_owned();
                wanted.entry((id, model)).or_default().push(line.to_owned());
            }
            prop_assert_eq!(chunk_lines(&dir, "w"), wanted.clone());
            for chunk in cut.json_lines() {
                prop_assert!(chunk["lines"].as_u64() <= lines.parse().ok());
                prop_assert!(chunk["bytes"].as_u64() <= bytes.parse().ok());
            }
            // What other means bring to `chunk` is cut the same way.
            if !filter.text().is_empty() {
                dir.pipe(filter.text(), &["chunk", "-q", "--max-bytes", &bytes, "--max-lines", &lines, "-d", "c"])
                    .exits(0);
                prop_assert_eq!(chunk_lines(&dir, "c"), wanted);
            }
            Ok(())
        })
        .expect("splitting is lossless");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the files are small")]
fn h1_foreign_corpora_as_posts() {
    let (Some(parsing), Some(blns)) = (corpus("JSONTestSuite/test_parsing"), corpus("blns/blns.json")) else {
        return;
    };
    let dir = WorkDir::new();
    let mut names: Vec<_> = std::fs::read_dir(parsing).expect("listed").map(|e| e.expect("an entry").path()).collect();
    names.sort();
    assert!(names.len() > 300);
    // Each file as the value of a field that a prompt names: valid where the file is.
    let mut lines: Vec<(String, Vec<u8>)> = Vec::new();
    for path in &names {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let file = std::fs::read(path).expect("read");
        // Whole, as an input of its own.
        let ran = dir.pipe(&file, &["gen", ONE, "-q"]);
        assert!(matches!(ran.code, Some(0 | 1 | 65)), "{name}: {ran:?}");
        dir.write("one", &file);
        let joined = dir.pipe(&b""[..], &["merge", "one", "-q", ONE]);
        assert!(matches!(joined.code, Some(0 | 1 | 65)), "{name}: {joined:?}");
        if !file.contains(&b'\n') && !file.contains(&b'\r') {
            lines.push((name, [&b"{\"content\":\"x\",\"location\":"[..], &file, b"}"].concat()));
        }
    }
    let input = lines.iter().map(|(_, line)| line.as_slice()).collect::<Vec<_>>().join(&b'\n');
    dir.write("posts.jsonl", &input);
    let ran = dir.run(&["gen", "posts.jsonl", "-q", "--only=publisher_decision", "--faults", "f.jsonl"]).exits(1);
    let asked = ran.indexes();
    for (index, (name, _)) in lines.iter().enumerate() {
        let is_asked = asked.contains(&(index as u64));
        match name.as_bytes()[0] {
            b'y' => assert!(is_asked, "{name} is JSON"),
            b'n' => assert!(!is_asked, "{name} is not JSON"),
            _ => {}
        }
    }
    assert_eq!(asked.len() + faults(&dir, "f.jsonl").len(), lines.len());
    let merged = dir.run(&["merge", "posts.jsonl", "/dev/null", "-q", ONE]);
    assert!(matches!(merged.code, Some(0 | 1)), "{}", merged.stderr);
    let count = merged.stdout.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(count, lines.len(), "as many posts out as in");

    let strings: Vec<String> = serde_json::from_slice(&std::fs::read(blns).expect("read")).expect("strings");
    let posts: Vec<String> =
        strings.iter().map(|text| json!({ "content": text, "username": text }).to_string()).collect();
    let ran = dir.pipe(posts.join("\n"), &["gen", ONE, "-q", "--max-faults=1"]).exits(0);
    // One of them is empty: nothing to ask about.
    let strings: Vec<&String> = strings.iter().filter(|text| !text.is_empty()).collect();
    for (prompt, text) in ran.prompts().iter().zip(&strings) {
        assert!(prompt.contains(text.as_str()), "{text:?}");
    }
    assert_eq!(ran.indexes().len(), strings.len());
}

#[test]
fn faults_and_report_replace_no_other_file() {
    let dir = WorkDir::new();
    let posts = "{\"content\":\"a\"}\n";
    dir.write("posts.jsonl", posts);
    for args in [
        &["--faults=posts.jsonl"][..],
        &["--report=./posts.jsonl"],
        &["-o", "x", "--faults=x"],
        &["-o", "x", "--report", "./x"],
        &["--faults=x", "--report=x"],
        &["--faults=-"],
        &["--report=-"],
    ] {
        let ran = dir.run(&[&["gen", "posts.jsonl"], args].concat()).exits(64);
        assert!(ran.stderr.contains("a file of its own"), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty() && !dir.exists("x"), "{args:?}");
        assert_eq!(dir.read("posts.jsonl"), posts, "{args:?}");
    }
    dir.run(&["gen", "posts.jsonl", "--faults=/dev/null", "--report=/dev/null"]).exits(0);
    let report = dir.run(&["gen", "posts.jsonl", "-o", "x", "--report=-"]).exits(0);
    assert!(report.text().contains("\"integration_stats\""));
}

#[test]
fn an_output_without_its_directory_is_told_before_the_work() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    for flag in ["-o", "--faults", "--report"] {
        let ran = dir.run(&["gen", "posts.jsonl", flag, "none/x"]).exits(74);
        assert!(ran.stderr.contains("there is no directory none\n  fix: mkdir -p none"), "{flag}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{flag}");
    }
}

#[test]
fn an_index_cannot_overflow() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n");
    dir.run(&["gen", "posts.jsonl", "--start-index=18446744073709551615"]).exits(64);
    let ran = dir.run(&["gen", "posts.jsonl", "--start-index=1000000000000000000", "--only=belief_system"]).exits(0);
    assert!(ran.text().contains("belief_system_1000000000000000001"));
}

#[test]
fn damaged_compression_is_bad_input() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n".repeat(100));
    dir.run(&["gen", "posts.jsonl", "-o", "requests.gz"]).exits(0);
    #[expect(clippy::disallowed_methods, reason = "a test's file is small")]
    let whole = std::fs::read(dir.join("requests.gz")).expect("read");
    dir.write("cut.gz", &whole[..whole.len() / 2]);
    let ran = dir.run(&["gen", "cut.gz"]).exits(65);
    assert!(ran.stderr.contains("cut.gz: its compressed data is damaged or cut short"), "{}", ran.stderr);
}

#[test]
fn one_bad_element_of_image_urls_leaves_the_others() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\",\"image_urls\":[\"http://x/1.png\",null,5,\"http://x/2.png\"]}\n");
    let ran = dir.run(&["gen", "posts.jsonl", "--only=sentiment_polarity", "--faults=f"]).exits(1);
    let content = &ran.json_lines()[0]["body"]["messages"][0]["content"];
    assert_eq!(
        (&content[1]["image_url"]["url"], &content[2]["image_url"]["url"]),
        (&"http://x/1.png".into(), &"http://x/2.png".into())
    );
    assert_eq!(dir.read("f").lines().count(), 2);
}
