//! `zbatch parse`: result lines → answers.

use serde_json::{Value, json};

use crate::workdir::{WorkDir, corpus, fixture, repository};

/// A result line as Zhipu writes it.
fn good(custom_id: &str, content: &str) -> String {
    json!({
        "response": {"status_code": 200, "body": {
            "usage": {"completion_tokens": 2, "prompt_tokens": 40, "total_tokens": 42},
            "choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": content}}],
        }},
        "custom_id": custom_id,
        "id": "batch_1",
    })
    .to_string()
        + "\n"
}

fn data_dir() -> String {
    repository().join("data").display().to_string()
}

#[test]
fn results_become_answers_one_for_one_in_order() {
    let dir = WorkDir::new();
    let results = fixture("golden/results.jsonl");
    let ran = dir.pipe(results, &["parse", "--faults", "faults.jsonl", "--report", "report.json"]).exits(1);
    assert_eq!(ran.text(), fixture("golden/answers.jsonl"));
    let faults: Vec<Value> =
        dir.read("faults.jsonl").lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert_eq!(faults.len(), 2);
    assert_eq!(faults[0]["kind"], "blocked");
    assert_eq!(faults[1]["line"], 5);
    assert_eq!(faults[1]["file"], "stdin");
    assert_eq!(faults[1]["index"], 12345);
    let report: Value = serde_json::from_str(&dir.read("report.json")).expect("JSON");
    let polarity = &report["integration_stats"]["analyses"]["sentiment_polarity"];
    assert_eq!(polarity["rows"], 2);
    assert_eq!(polarity["answers"], 1);
    assert_eq!(polarity["tokens"]["total_tokens"], 42);
    assert_eq!(polarity["faults"]["blocked"]["count"], 1);
    assert_eq!(report["integration_stats"]["analyses"]["topic_analysis"]["rungs"]["wrapped"], 1);
}

#[test]
fn files_are_read_in_order_plain_or_compressed_and_the_output_appears_whole() {
    let dir = WorkDir::new();
    dir.write("b.jsonl", good("sentiment_polarity_1", "1")).write("a.jsonl", good("sentiment_polarity_2", "2"));
    dir.run(&["parse", "b.jsonl", "-o", "answers.jsonl.gz", "-q"]).exits(0);
    let ran = dir.pipe(good("sentiment_polarity_3", "3"), &["parse", "b.jsonl", "-", "a.jsonl"]).exits(0);
    let values: Vec<Value> = ran.json_lines().iter().map(|line| line["value"].clone()).collect();
    assert_eq!(values, [1, 3, 2]);
    assert!(dir.exists("answers.jsonl.gz"));

    let ran = dir.run(&["parse", "b.jsonl", "nosuch.jsonl", "-o", "out.jsonl"]).exits(65);
    assert!(ran.stderr.contains("nosuch.jsonl"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
    dir.run(&["parse", "-", "-"]).exits(64);
}

#[test]
fn nothing_in_nothing_out() {
    let dir = WorkDir::new();
    for input in ["", "\n", " \n\r\n"] {
        assert_eq!(dir.pipe(input, &["parse", "-q"]).exits(0).text(), "");
    }
}

#[test]
fn s8_a_long_line_is_a_fault_and_the_next_one_is_read() {
    let dir = WorkDir::new();
    let input = good("sentiment_polarity_1", &"长".repeat(5000)) + &good("sentiment_polarity_2", "2");
    let ran = dir.pipe(input, &["parse", "--max-line", "4KiB", "--faults", "f.jsonl"]).exits(1);
    assert_eq!(ran.json_lines().len(), 1);
    assert_eq!(ran.json_lines()[0]["index"], 2);
    assert!(dir.read("f.jsonl").contains(r#""line":1,"offset":0,"kind":"bad_line""#), "{}", dir.read("f.jsonl"));
}

#[test]
fn h1_bad_lines_are_counted_and_shown_and_touch_no_row() {
    let dir = WorkDir::new();
    let input = "nonsense \u{1b}[31m\n{\"custom_id\":7}\n".to_owned()
        + &good("sentiment_polarity_x", "2")
        + &good("old_analysis_0003", "2")
        + &good("sentiment_polarity_0001", "2");
    let ran = dir.pipe(&input, &["parse", "--max-faults", "3"]).exits(1);
    assert_eq!(
        ran.json_lines()[0],
        json!({"index": 3, "analysis": "old_analysis", "fault": {"kind": "unknown_id",
            "detail": "custom_id `old_analysis_0003`: no such analysis in force"}})
    );
    assert_eq!(ran.json_lines()[1]["value"], 2);
    assert_eq!(ran.json_lines().len(), 2);
    assert!(ran.stderr.contains("stdin line 1: bad_line: not JSON"), "{}", ran.stderr);
    assert!(!ran.stderr.contains('\u{1b}'));
    dir.pipe(&input, &["parse", "--max-faults", "4"]).exits(0);
}

#[test]
fn an_analysis_that_is_not_in_force_is_an_unknown_id() {
    let dir = WorkDir::new();
    let input = good("topic_analysis_1", "[]") + &good("sentiment_polarity_1", "2");
    let ran = dir.pipe(input, &["parse", "--only", "sentiment_polarity"]).exits(1);
    assert_eq!(ran.json_lines()[0]["fault"]["kind"], "unknown_id");
    assert_eq!(ran.json_lines()[1]["value"], 2);
}

#[test]
fn what_is_no_results_file_is_refused_with_advice() {
    let dir = WorkDir::new();
    let ran = dir.pipe("{\"content\":\"好\"}\n[1]\n", &["parse", "-o", "out.jsonl"]).exits(65);
    assert!(ran.stderr.contains("are these result files?"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
}

#[test]
fn a_closed_stdout_is_a_quiet_end() {
    let dir = WorkDir::new();
    dir.write("r.jsonl", good("sentiment_polarity_1", "1").repeat(20_000));
    let mut command = dir.command(&["parse", "r.jsonl", "-q"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// Foreign inputs, each as a result line of its own and as an answer's text.
#[test]
#[expect(clippy::disallowed_methods, reason = "the files are small")]
fn h1_foreign_corpora_are_read_or_refused() {
    let (Some(parsing), Some(blns)) = (corpus("JSONTestSuite/test_parsing"), corpus("blns/blns.json")) else {
        return;
    };
    let mut texts: Vec<Vec<u8>> = std::fs::read_dir(parsing)
        .expect("listed")
        .map(|entry| std::fs::read(entry.expect("an entry").path()).expect("read"))
        .collect();
    texts.sort();
    let strings: Vec<String> = serde_json::from_slice(&std::fs::read(blns).expect("read")).expect("strings");
    texts.extend(strings.into_iter().map(String::into_bytes));
    assert!(texts.len() > 800);

    let analyses =
        ["sentiment_polarity", "sentiment_attribute", "topic_analysis", "publisher_analysis", "belief_system"];
    let (mut raw, mut wrapped) = (Vec::new(), String::new());
    let mut rows = 0_u64;
    for (index, text) in texts.iter().enumerate() {
        raw.extend_from_slice(text);
        raw.push(b'\n');
        for analysis in analyses {
            wrapped += &good(&format!("{analysis}_{index}"), &String::from_utf8_lossy(text));
            rows += 1;
        }
    }
    let good_line = good("sentiment_polarity_1", "3");
    let dir = WorkDir::new();
    let data = data_dir();
    raw.extend_from_slice(good_line.as_bytes());
    let ran = dir.pipe(&raw, &["parse", "--data-dir", &data, "--faults", "f.jsonl"]).exits(1);
    assert_eq!(ran.json_lines().len(), 1, "only the good line has an id");
    for line in dir.read("f.jsonl").lines() {
        let fault: Value = serde_json::from_str(line).expect("a JSON line");
        assert_eq!(fault["kind"], "bad_line");
    }

    let ran = dir.pipe(&wrapped, &["parse", "--data-dir", &data, "-q"]).exits(1);
    let answers = ran.json_lines();
    assert_eq!(answers.len() as u64, rows);
    for answer in answers.iter().filter(|answer| answer.get("value").is_some()) {
        let (value, analysis) = (&answer["value"], answer["analysis"].as_str().expect("a name"));
        let fits = match analysis {
            "sentiment_polarity" => value.as_i64().is_some_and(|n| (1..=5).contains(&n)),
            "sentiment_attribute" => value.as_array().is_some_and(|labels| (1..=3).contains(&labels.len())),
            "publisher_analysis" => value.is_string(),
            _ => value.is_array(),
        };
        assert!(fits, "{answer}");
    }
}
