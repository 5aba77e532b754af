//! `zbatch merge`: posts ⋈ answers.

use std::{
    collections::BTreeMap,
    io::Read,
    process::{Command, Stdio},
};

use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::json;

use crate::workdir::{Ran, WorkDir};

const TWO: &str = "--only=sentiment_polarity,topic_analysis";

const POSTS: &str = r#"{"content":"一"}
 { "content" : "二", "topics":null, "n":1e999 }

{"content":"\u4e09\ud83d","topics":[{"x":1}],"x":{"topics":0},"a":1,"a":2}
"#;

const ANSWERS: &str = r#"{"index":2,"analysis":"sentiment_polarity","value":5,"usage":{"total_tokens":9}}
{"index":1,"analysis":"topic_analysis","value":[]}
{"index":0,"analysis":"topic_analysis","value":[{"parent_topic":"图书", "sub_topic":"内容"}]}
{"index":1,"analysis":"sentiment_polarity","value":3}
{"index":2,"analysis":"topic_analysis","fault":{"kind":"empty","detail":"nothing"}}
{"index":0,"analysis":"sentiment_polarity","value":1}
"#;

const ENHANCED: &str = r#"{"content":"一","sentiment_polarity":1,"topics":[{"parent_topic":"图书", "sub_topic":"内容"}]}
 { "content" : "二", "topics":[], "n":1e999 ,"sentiment_polarity":3}
{"content":"\u4e09\ud83d","topics":[{"x":1}],"x":{"topics":0},"a":1,"a":2,"sentiment_polarity":5}
"#;

fn dir(posts: &str, answers: &str) -> WorkDir {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts).write("answers.jsonl", answers);
    dir
}

fn faults(dir: &WorkDir, name: &str) -> Vec<serde_json::Value> {
    dir.read(name).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn posts_take_their_answers() {
    let dir = dir(POSTS, ANSWERS);
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO]).exits(0);
    assert_eq!(ran.text(), ENHANCED);
    assert!(ran.stderr.contains("3 posts, all 2 fields filled"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("next:"), "{}", ran.stderr);
}

#[test]
fn answers_may_come_from_stdin_or_several_files() {
    let dir = dir(POSTS, ANSWERS);
    let (first, second) = ANSWERS.split_at(ANSWERS.match_indices('\n').nth(2).expect("lines").0 + 1);
    dir.write("1.jsonl", first).write("2.jsonl", second);
    assert_eq!(dir.pipe(ANSWERS, &["merge", "posts.jsonl", TWO]).exits(0).text(), ENHANCED);
    assert_eq!(dir.pipe(second, &["merge", "posts.jsonl", "1.jsonl", "-", TWO]).exits(0).text(), ENHANCED);
    assert_eq!(dir.pipe(POSTS, &["merge", "-", "2.jsonl", "1.jsonl", TWO]).exits(0).text(), ENHANCED);
    for args in [&["merge", "-"][..], &["merge", "-", "-"], &["merge", "posts.jsonl", "-", "-"]] {
        let ran = dir.pipe(POSTS, args).exits(64);
        assert!(ran.stderr.contains("only one of its inputs can be stdin"), "{}", ran.stderr);
    }
}

#[test]
fn arrays_in_and_out() {
    let dir = dir(POSTS, ANSWERS);
    dir.write("posts.json", "[{\"content\":\n \"一\"},{\"content\":\"二\"}\n]");
    dir.write(
        "answers.jsonl",
        ANSWERS.lines().filter(|line| !line.contains("\"index\":2")).fold(String::new(), |a, l| a + l + "\n"),
    );
    let array = r#"[
{"content": "一","sentiment_polarity":1,"topics":[{"parent_topic":"图书", "sub_topic":"内容"}]},
{"content":"二","sentiment_polarity":3,"topics":[]}
]
"#;
    dir.run(&["merge", "posts.json", "answers.jsonl", TWO, "-o", "out.json"]).exits(0);
    assert_eq!(dir.read("out.json"), array);
    let lines = dir.run(&["merge", "posts.json", "answers.jsonl", TWO]).exits(0);
    assert_eq!(lines.text().lines().count(), 2);
    dir.run(&["merge", "posts.json", "answers.jsonl", TWO, "-o", "out.json", "--format", "jsonl"]).exits(0);
    assert_eq!(dir.read("out.json"), lines.text());
    let again = dir.run(&["merge", "posts.json", "answers.jsonl", TWO, "--format", "json"]).exits(0);
    assert_eq!(again.text(), array);
}

#[test]
fn no_posts_no_output() {
    let dir = dir("", "");
    assert_eq!(dir.run(&["merge", "posts.jsonl", "answers.jsonl"]).exits(0).text(), "");
    assert_eq!(dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--format", "json"]).exits(0).text(), "[\n]\n");
    dir.write("posts.json", "[]");
    dir.run(&["merge", "posts.json", "answers.jsonl", "-o", "out.json"]).exits(0);
    assert_eq!(dir.read("out.json"), "[\n]\n");
}

#[test]
fn packed_outputs_hold_the_same() {
    let dir = dir(POSTS, ANSWERS);
    for name in ["out.jsonl.gz", "out.jsonl.zst"] {
        dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO, "-o", name]).exits(0);
        // Read back as posts: no answers change nothing.
        assert_eq!(dir.run(&["merge", name, "/dev/null", TWO]).exits(0).text(), ENHANCED, "{name}");
    }
}

#[test]
fn the_output_may_be_the_input() {
    let dir = dir(POSTS, ANSWERS);
    for _ in 0..2 {
        dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO, "-o", "posts.jsonl"]).exits(0);
        assert_eq!(dir.read("posts.jsonl"), ENHANCED);
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 2, "nothing is left behind");
}

#[test]
fn a_partition_begins_at_its_own_index() {
    let dir = dir(
        "{\"content\":\"一\"}\n",
        r#"{"index":7,"analysis":"sentiment_polarity","value":2}
{"index":6,"analysis":"sentiment_polarity","value":1}
{"index":8,"analysis":"sentiment_polarity","value":1}
"#,
    );
    let args = ["merge", "posts.jsonl", "answers.jsonl", "--only=sentiment_polarity", "--start-index=7", "--faults=f"];
    let ran = dir.run(&args).exits(1);
    assert_eq!(ran.text(), "{\"content\":\"一\",\"sentiment_polarity\":2}\n");
    let faults = faults(&dir, "f");
    let of = |n: usize| (faults[n]["index"].as_u64(), faults[n]["kind"].as_str(), faults[n]["detail"].as_str());
    assert_eq!(of(0), (Some(6), Some("unknown_id"), Some("the index is before --start-index")));
    assert_eq!(of(1), (Some(8), Some("unknown_id"), Some("the input has no such post")));
    assert_eq!(faults.len(), 2);
}

#[test]
fn what_is_missing_is_named_and_asked_for_again() {
    let dir = dir(
        POSTS,
        r#"{"index":0,"analysis":"sentiment_polarity","fault":{"kind":"empty","detail":""}}
{"index":1,"analysis":"sentiment_polarity","value":4}
"#,
    );
    let args = ["merge", "posts.jsonl", "answers.jsonl", TWO, "--faults=f s", "-o", "o'ut.jsonl", "--report=r.json"];
    let ran = dir.run(&args).exits(1);
    assert_eq!(
        faults(&dir, "f s"),
        [
            json!({"index":0,"analysis":"topic_analysis","kind":"absent","detail":"no answer, and no value in the post"}),
            json!({"index":1,"analysis":"topic_analysis","kind":"absent","detail":"no answer, and no value in the post"}),
            json!({"index":2,"analysis":"sentiment_polarity","kind":"absent","detail":"no answer, and no value in the post"}),
        ]
    );
    for text in [
        "3 posts, 4 fields missing",
        "sentiment_polarity: 1 filled, 2 missing (1 absent, 1 fault)",
        "topic_analysis: 1 filled, 2 missing (2 absent)",
        r"next: zbatch gen --missing 'o'\''ut.jsonl' --skip 'f s' --only sentiment_polarity,topic_analysis",
        "3 faults: f s",
    ] {
        assert!(ran.stderr.contains(text), "{text}\n{}", ran.stderr);
    }
    let report: serde_json::Value = serde_json::from_str(&dir.read("r.json")).expect("JSON");
    let stats = &report["integration_stats"];
    assert_eq!(stats["total_posts"], 3);
    for (name, missing) in [("sentiment_polarity", [0, 2]), ("topic_analysis", [0, 1])] {
        let of = &stats["analyses"][name];
        let said = json!([of["processed_posts"], of["missing_posts"], of["completeness_rate"], of["status"]]);
        assert_eq!(said, json!([1, 2, 33.33, "incomplete"]), "{name}");
        assert_eq!(of["missing_indices"], json!(missing), "{name}");
    }
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO, "--max-faults=3"]).exits(0);
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO, "--max-faults=49%"]).exits(1);
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO, "--max-faults=50%"]).exits(0);
    let quiet = dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO, "-q"]).exits(1);
    assert_eq!(quiet.stderr, "");
}

#[test]
fn a_broken_line_keeps_its_index() {
    let mut posts: Vec<String> = (0..20).map(|n| format!("{{\"content\":\"{n}\"}}")).collect();
    posts[16] = "{\"content\":\u{1b}".to_owned();
    let mut answers: String = (0..20)
        .map(|n| format!("{{\"index\":{n},\"analysis\":\"sentiment_polarity\",\"value\":{}}}\n", n % 5 + 1))
        .collect();
    answers.push_str("{\"index\":3,\"analysis\":\n");
    let dir = dir(&posts.join("\n"), &answers);
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--only=sentiment_polarity", "--faults=f"]).exits(1);
    let lines: Vec<&str> = ran.text().lines().collect();
    assert_eq!(lines.len(), 20);
    assert_eq!(lines[16], "{\"sentiment_polarity\":null}");
    assert_eq!(lines[17], "{\"content\":\"17\",\"sentiment_polarity\":3}");
    let faults = faults(&dir, "f");
    assert_eq!(faults.len(), 3);
    assert_eq!((faults[0]["kind"].as_str(), faults[0]["line"].as_u64()), (Some("bad_line"), Some(21)));
    assert_eq!(faults[0]["file"].as_str(), Some("answers.jsonl"));
    assert_eq!(faults[0]["offset"].as_u64(), Some(answers.len() as u64 - 23));
    let bad = &faults[1];
    assert_eq!(
        (bad["kind"].as_str(), bad["line"].as_u64(), bad["index"].as_u64()),
        (Some("bad_post"), Some(17), Some(16))
    );
    assert_eq!(bad["excerpt"].as_str(), Some("{\"content\":\\u{1b}"));
    assert_eq!((faults[2]["kind"].as_str(), faults[2]["index"].as_u64()), (Some("unknown_id"), Some(16)));
}

#[test]
fn an_input_without_posts_leaves_no_output() {
    let dir = dir("x\n[]\n", "");
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "out.jsonl"]).exits(65);
    dir.write("posts.json", "[{\"content\":\"\"}, {\"content\": x}]");
    let ran = dir.run(&["merge", "posts.json", "answers.jsonl", "-o", "out.jsonl"]).exits(65);
    assert!(ran.stderr.contains("index 1"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
}

#[test]
fn different_answers_are_a_conflict_and_equal_ones_are_not() {
    let answer = |value: &str| format!("{{\"index\":0,\"analysis\":\"sentiment_polarity\",{value}}}\n");
    let dir = dir("{\"content\":\"\"}\n", "");
    dir.write("a", answer("\"fault\":{}") + &answer("\"value\":2") + &answer("\"value\":2"));
    dir.write("b", answer("\"value\":3") + &answer("\"fault\":{}"));
    let merge = |files: [&str; 2]| {
        dir.run(&["merge", "posts.jsonl", files[0], files[1], "--only=sentiment_polarity", "--faults=f"])
    };
    assert_eq!(merge(["a", "a"]).exits(0).text(), "{\"content\":\"\",\"sentiment_polarity\":2}\n");
    assert_eq!(merge(["a", "b"]).exits(1).text(), "{\"content\":\"\",\"sentiment_polarity\":2}\n");
    let conflict = json!({"index":0,"analysis":"sentiment_polarity","kind":"conflict",
        "detail":"different answers; the first of them is kept"});
    assert_eq!(faults(&dir, "f"), [conflict]);
    assert_eq!(merge(["b", "a"]).exits(1).text(), "{\"content\":\"\",\"sentiment_polarity\":3}\n");
}

#[test]
fn hostile_answers_are_faults() {
    let mut answers = [
        r#"{"index":-1,"analysis":"sentiment_polarity","value":1}"#,
        r#"{"index":99999999999999999999,"analysis":"sentiment_polarity","value":1}"#,
        r#"{"index":18446744073709551615,"analysis":"sentiment_polarity","value":1}"#,
        r#"{"index":0,"analysis":"no\u001bsuch","value":1}"#,
        r#"{"index":0,"analysis":"sentiment_polarity","value":null}"#,
        r#"{"index":0,"analysis":"sentiment_polarity","value":3}"#,
    ]
    .join("\n")
    .into_bytes();
    answers.extend_from_slice(b"\n\xff\xfe\n");
    let dir = dir("{\"content\":\"\"}\n", "");
    dir.write("answers.jsonl", answers);
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--only=sentiment_polarity", "--faults=f"]).exits(1);
    assert_eq!(ran.text(), "{\"content\":\"\",\"sentiment_polarity\":3}\n");
    let kinds: Vec<(String, Option<u64>)> = faults(&dir, "f")
        .iter()
        .map(|f| (f["kind"].as_str().unwrap_or_default().to_owned(), f["line"].as_u64()))
        .collect();
    let expected = [
        ("bad_line", Some(1)),
        ("bad_line", Some(2)),
        ("unknown_id", Some(4)),
        ("bad_line", Some(5)),
        ("bad_line", Some(7)),
        ("unknown_id", None),
    ];
    assert_eq!(kinds, expected.map(|(kind, line)| (kind.to_owned(), line)));
    let shown = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--only=sentiment_polarity"]).exits(1);
    assert!(!shown.stderr.contains('\u{1b}'), "{}", shown.stderr);
}

#[test]
fn a_full_disk_is_said_and_a_closed_pipe_is_not() {
    let posts: String = (0..20_000).map(|n| format!("{{\"content\":\"{n} {}\"}}\n", "长".repeat(40))).collect();
    let dir = dir(&posts, "");
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "/dev/full"]).exits(74);
    assert!(ran.stderr.contains("/dev/full"), "{}", ran.stderr);
    let mut child = dir
        .command(&["merge", "posts.jsonl", "answers.jsonl", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut head = [0; 100];
    child.stdout.take().expect("a pipe").read_exact(&mut head).expect("some output");
    let ran = Ran::of(child.wait_with_output().expect("the program ends")).exits(0);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_full_temp_directory_is_named() {
    let dir = dir(POSTS, ANSWERS);
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--tmp-dir=none", "-o", "out.jsonl"]).exits(74);
    assert!(ran.stderr.contains("none") && ran.stderr.contains("--tmp-dir"), "{}", ran.stderr);
    // A file-size limit stops the spill file: no space looks the same to the program.
    let mut limited = Command::new("sh");
    let line = format!(
        "trap '' XFSZ; ulimit -f 1; exec {} merge posts.jsonl answers.jsonl {TWO} --memory=1 > /dev/null",
        env!("CARGO_BIN_EXE_zbatch")
    );
    let many: String = (0..40).map(|_| ANSWERS).collect();
    dir.write("answers.jsonl", many);
    let ran = Ran::of(limited.current_dir(dir.path()).args(["-c", &line]).output().expect("sh starts")).exits(74);
    assert!(ran.stderr.contains("spill answers to"), "{}", ran.stderr);
}

/// The join as anyone would write it with all in memory.
fn naive(posts: usize, own: &BTreeMap<usize, u64>, answers: &[(usize, Option<u64>)]) -> String {
    let mut best: BTreeMap<usize, Option<u64>> = BTreeMap::new();
    for (index, value) in answers {
        let best = best.entry(*index).or_default();
        *best = best.or(*value);
    }
    (0..posts)
        .map(|index| match (best.get(&index).copied().flatten(), own.get(&index)) {
            (Some(value), Some(_)) => format!("{{\"sentiment_polarity\":{value},\"n\":{index}}}\n"),
            (Some(value), None) => format!("{{\"n\":{index},\"sentiment_polarity\":{value}}}\n"),
            (None, Some(own)) => format!("{{\"sentiment_polarity\":{own},\"n\":{index}}}\n"),
            (None, None) => format!("{{\"n\":{index},\"sentiment_polarity\":null}}\n"),
        })
        .collect()
}

#[test]
fn the_program_is_the_naive_join_in_any_memory() {
    let dir = WorkDir::new();
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20) });
    let own = proptest::collection::btree_map(0usize..3000, 1u64..6, 0..20);
    let answer = (0usize..3000, proptest::option::weighted(0.8, 1u64..6));
    let strategy = (0usize..3000, own, proptest::collection::vec(answer, 0..4000), 1u32..20);
    runner
        .run(&strategy, |(posts, own, answers, memory)| {
            let own: BTreeMap<usize, u64> = own.into_iter().filter(|(index, _)| *index < posts).collect();
            let text = (0..posts).map(|index| match own.get(&index) {
                Some(own) => format!("{{\"sentiment_polarity\":{own},\"n\":{index}}}\n"),
                None => format!("{{\"n\":{index}}}\n"),
            });
            dir.write("posts.jsonl", text.collect::<String>());
            let text = answers.iter().map(|(index, value)| match value {
                Some(value) => format!("{{\"index\":{index},\"analysis\":\"sentiment_polarity\",\"value\":{value}}}\n"),
                None => format!("{{\"index\":{index},\"analysis\":\"sentiment_polarity\",\"fault\":{{}}}}\n"),
            });
            dir.write("answers.jsonl", text.collect::<String>());
            let memory = format!("--memory={}", 1u32 << memory);
            let args =
                ["merge", "posts.jsonl", "answers.jsonl", "--only=sentiment_polarity", "--max-faults=100%", &memory];
            let ran = dir.run(&args);
            prop_assert_eq!(String::from_utf8_lossy(&ran.stdout), naive(posts, &own, &answers));
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_fallback_over_several_lines_is_written_on_one() {
    let dir = dir("{\"content\":\"一\"}\n", r#"{"index":0,"analysis":"q","fault":{"kind":"empty","detail":""}}"#);
    let analysis = "{\"name\":\"q\",\"field\":\"f\",\"rule\":{\"type\":\"integer\",\"min\":0,\"max\":9},\n\"fallback\":[\r\n 1,\n 2\n]}";
    dir.write("an/q/analysis.json", analysis).write("an/q/prompt.txt", "{{content}}");
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "--analyses=an", "--only=q"]).exits(0);
    assert_eq!(ran.text(), "{\"content\":\"一\",\"f\":[ 1, 2]}\n");
}

#[test]
fn results_instead_of_answers_are_refused_and_nothing_is_written() {
    let dir = dir(POSTS, "{\"custom_id\":\"topic_analysis_0000\",\"response\":null}\n");
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "posts.jsonl"]).exits(65);
    assert!(ran.stderr.contains("zbatch parse"), "{}", ran.stderr);
    assert_eq!(dir.read("posts.jsonl"), POSTS);
    // One good answer among bad lines is another matter.
    dir.write("answers.jsonl", format!("junk\n{ANSWERS}"));
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", TWO]).exits(1);
}
