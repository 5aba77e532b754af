//! Numbers from outside, as large as they can be written: flags, the journal, the rows of a chunk, what a server says. Each is
//! refused or holds; none ends the program by a panic (exit 101), passes a cap, or is counted to.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zbatch::journal;

use crate::workdir::{Ran, WorkDir};

const ONE: &str = "--only=sentiment_polarity";
/// What a `u64` holds, what an `i64` and a `u32` hold, and what is one more.
const LARGE: [u64; 5] = [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, 1 << 32];
/// For what takes no time.
const SOON: Duration = Duration::from_secs(20);

fn posts() -> WorkDir {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n{\"content\":\"c\"}\n");
    dir
}

/// A job of three chunks in `w`, done.
fn done() -> WorkDir {
    let dir = posts();
    dir.run(&run_args("1", &[])).exits(0);
    dir
}

fn run_args<'a>(max_lines: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let job = ["run", "posts.jsonl", ONE, "-d", "w", "-o", "out.jsonl", "--emulate", "--max-lines", max_lines];
    [&job[..], more].concat()
}

#[track_caller]
fn is_sane(ran: &Ran, began: Instant, what: &str) {
    let codes = [0, 1, 64, 65, 69, 74, 75];
    let code = ran.code.unwrap_or(-1);
    assert!(codes.contains(&code) && !ran.stderr.contains("panicked"), "{what}: exit {code}\n{}", ran.stderr);
    assert!(began.elapsed() < SOON, "{what}: {:?}", began.elapsed());
}

#[test]
fn r11_7_no_flag_takes_a_number_that_overflows() {
    let words = ["18446744073709551615", "18446744073709551616", "9223372036854775807", "-1", "0", "1e308", "1e18"];
    let counts = [
        "--max-lines",
        "--max-bytes",
        "--max-line",
        "--memory",
        "--start-index",
        "--max-concurrent-tasks",
        "--max-batches",
        "--max-requests",
        "--max-faults",
        "--seed",
    ];
    let times = ["--timeout", "--settle", "--poll-interval", "--latency"];
    for flag in counts.into_iter().chain(times) {
        for word in words {
            let dir = posts();
            let given = format!("{flag}={word}");
            let mut args = run_args("2", &["--no-wait", &given]);
            if flag == "--max-lines" {
                args.drain(8..10);
            }
            let began = Instant::now();
            is_sane(&dir.run(&args), began, &given);
        }
    }
    for verb in [["gen", "posts.jsonl", ONE], ["merge", "posts.jsonl", ONE]] {
        for flag in ["--max-line", "--start-index"] {
            for word in words {
                let given = format!("{flag}={word}");
                let began = Instant::now();
                is_sane(&posts().run(&[&verb[..], &[&given]].concat()), began, &given);
            }
        }
    }
}

#[test]
fn r11_7_no_config_takes_a_number_that_overflows() {
    for key in ["max_lines", "max_bytes", "poll_interval", "max_concurrent_tasks", "max_file_size", "task_timeout"] {
        for number in LARGE {
            let dir = posts();
            let config = json!({"batch": {key: number}});
            dir.write("c.json", config.to_string());
            let job = ["run", "posts.jsonl", ONE, "-d", "w", "-o", "out.jsonl", "--emulate", "--no-wait"];
            let began = Instant::now();
            is_sane(&dir.run(&[&job[..], &["--config", "c.json"]].concat()), began, &config.to_string());
        }
    }
}

/// The number at each place of an event, in turn, by a larger one.
fn with_a_large_number(event: &Value, number: u64) -> Vec<Value> {
    let mut changed = Vec::new();
    let pointers = numbers_in(event, "");
    for pointer in pointers {
        let mut event = event.clone();
        *event.pointer_mut(&pointer).expect("there") = json!(number);
        changed.push(event);
    }
    changed
}

fn numbers_in(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::Number(_) => vec![at.to_owned()],
        Value::Object(map) => map.iter().flat_map(|(key, value)| numbers_in(value, &format!("{at}/{key}"))).collect(),
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(key, value)| numbers_in(value, &format!("{at}/{key}"))).collect()
        }
        _ => Vec::new(),
    }
}

fn events(dir: &WorkDir) -> Vec<Value> {
    dir.read("w/journal.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn write_journal(dir: &WorkDir, events: &[Value]) {
    dir.write_journal(&events.iter().map(|event| format!("{event}\n")).collect::<String>());
}

/// Each number of each event, alone; and the same number of every event at once, so that sums of them overflow.
#[test]
fn r11_7_a_journal_of_large_numbers_is_refused_or_folded() {
    let dir = done();
    let whole = events(&dir);
    let mut journals = Vec::new();
    for number in LARGE {
        for (at, event) in whole.iter().enumerate() {
            for event in with_a_large_number(event, number) {
                let mut events = whole.clone();
                events[at] = event;
                journals.push(events);
            }
        }
        let kinds = ["chunk", "intent", "ended", "fetched", "posts"];
        for kind in kinds {
            let first = whole.iter().find(|event| event["event"] == kind).expect("there");
            for pointer in numbers_in(first, "") {
                let mut events = whole.clone();
                for event in events.iter_mut().filter(|event| event["event"] == kind) {
                    event.pointer_mut(&pointer).into_iter().for_each(|there| *there = json!(number));
                }
                journals.push(events);
            }
        }
    }
    assert!(journals.len() > 300, "{}", journals.len());
    for (at, events) in journals.iter().enumerate() {
        write_journal(&dir, events);
        // A panic in the fold fails the test.
        let read = journal::read(&dir.join("w"));
        if at % 9 == 0 || read.is_ok() && at % 3 == 0 {
            let verbs = [vec!["status", "-d", "w"], vec!["verify", "-d", "w"], run_args("1", &["--no-wait"])];
            for args in verbs {
                let began = Instant::now();
                is_sane(&dir.run(&args), began, &format!("{args:?} of journal {at}"));
            }
        }
    }
}

/// A count of 2^64 - 1 wrapped to a small sum in the released program, and passed `--max-requests`.
#[test]
fn r11_7_a_count_of_the_journal_passes_no_cap() {
    for number in LARGE {
        let dir = posts();
        dir.run(&run_args("1", &["--no-wait", "--max-concurrent-tasks", "1", "--latency", "100h"])).exits(75);
        let mut events = events(&dir);
        let first = events.iter_mut().find(|event| event["event"] == "chunk").expect("a chunk");
        first["lines"] = json!(number);
        write_journal(&dir, &events);
        let ran = dir.run(&run_args("1", &["--no-wait", "--max-requests", "100", "--latency", "0"])).exits(65);
        assert!(ran.stderr.contains("journal.jsonl, line 3"), "{}", ran.stderr);
    }
}

/// An event that nothing was paid for, after one that counted nothing.
#[test]
fn r11_7_what_was_spent_does_not_go_below_nothing() {
    let dir = done();
    let whole = events(&dir);
    let chunk = whole.iter().find(|event| event["event"] == "chunk").expect("a chunk");
    let id = &chunk["chunk"];
    let mut journal = vec![whole[0].clone(), chunk.clone()];
    for _ in 0..2 {
        journal.push(json!({"event": "uploaded", "chunk": id, "file_id": "f"}));
        journal.push(json!({"event": "created", "chunk": id, "batch_id": "b", "adopted": true}));
        journal.push(json!({"event": "full", "chunk": id, "why": "full"}));
    }
    write_journal(&dir, &journal);
    let state = journal::read(&dir.join("w")).expect("it can be folded");
    assert_eq!(state.spent(), (0, 0));
}

/// Rows that nobody cut are not counted to: a range of 2^64 rows would never end.
#[test]
fn r11_7_rows_of_large_numbers_are_refused_at_once() {
    for rows in [
        "0-18446744073709551615\n",
        "18446744073709551615-18446744073709551615\n0-1\n",
        "0-0\n2-18446744073709551614\n",
        "0-9223372036854775807\n9223372036854775808-18446744073709551615\n",
        "0-4294967296\n",
        "0-18446744073709551616\n",
    ] {
        let dir = done();
        dir.write("w/rows/sentiment_polarity_batch_part1.txt", rows);
        let began = Instant::now();
        let ran = dir.run(&run_args("1", &[]));
        is_sane(&ran, began, rows);
        assert!(ran.code == Some(65) && ran.stderr.contains("part1.txt"), "{rows}: {:?} {}", ran.code, ran.stderr);
        let ran = dir.run(&["verify", "-d", "w"]);
        assert_eq!(ran.code, Some(65), "{rows}");
    }
}

/// Indexes and tokens of result lines and of answers.
#[test]
fn r11_7_results_of_large_numbers_are_faults_or_saturate() {
    let dir = posts();
    let line = |index: &str, tokens: &str| {
        format!(
            "{{\"custom_id\":\"sentiment_polarity_{index}\",\"response\":{{\"status_code\":200,\"body\":{{\"choices\":[{{\
             \"index\":0,\"finish_reason\":\"stop\",\"message\":{{\"role\":\"assistant\",\"content\":\"3\"}}}}],\
             \"usage\":{{\"prompt_tokens\":{tokens},\"completion_tokens\":{tokens},\"total_tokens\":{tokens}}}}}}}}}\n"
        )
    };
    let max = u64::MAX.to_string();
    let lines =
        [line("0", &max), line("1", &max), line("18446744073709551615", &max), line("18446744073709551616", "1")];
    let more = [line("9223372036854775808", "-1"), line("18446744073709551614", "1e308")];
    dir.write("results.jsonl", [lines.concat(), more.concat()].concat());
    let began = Instant::now();
    let ran = dir.run(&["parse", "results.jsonl", ONE, "-o", "answers.jsonl", "--report", "parsed.json"]);
    is_sane(&ran, began, "parse");
    for start in ["0", "999999999999999999", "1000000000000000000"] {
        let began = Instant::now();
        let merge = ["merge", "posts.jsonl", "answers.jsonl", ONE, "--start-index", start, "--memory", "1"];
        is_sane(&dir.run(&merge), began, start);
    }
    let began = Instant::now();
    let merge = dir.run(&["merge", "posts.jsonl", "answers.jsonl", ONE, "--report", "merged.json"]);
    is_sane(&merge, began, "merge");
    assert_eq!(merge.text().lines().count(), 3);
}
