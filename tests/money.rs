//! What a provider can do to a user's money, seen from the command line: creates that are answered badly, queues that are
//! full, results that come late or never. The emulator is the accountant.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use serde_json::Value;
use zbatch::emulator::ledger;

use crate::workdir::{Ran, WorkDir};

const POSTS: &str = "{\"content\":\"a\"}\n{\"content\":\"b\"}\n{\"content\":\"c\"}\n{\"content\":\"d\"}\n";

/// A directory with four posts.
fn posts() -> WorkDir {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", POSTS);
    dir
}

/// One question, two requests a chunk.
fn run(dir: &WorkDir, more: &[&str]) -> Ran {
    run_with(dir, &[&["--max-lines", "2"], more].concat())
}

fn run_with(dir: &WorkDir, more: &[&str]) -> Ran {
    let job = ["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", "--faults", "faults.jsonl"];
    let question = ["--only", "sentiment_polarity"];
    dir.run(&[&job[..], &question, more].concat())
}

fn creates(dir: &WorkDir) -> Vec<u64> {
    let ledger = ledger::read(&dir.join("w/emulator")).expect("a ledger");
    ledger.by_content.into_values().collect()
}

/// Index and kind of each line of the faults file.
fn faults(dir: &WorkDir) -> Vec<(u64, String)> {
    let lines = dir.read("faults.jsonl");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .map(|fault| (fault["index"].as_u64().expect("an index"), fault["kind"].as_str().expect("a kind").to_owned()))
        .collect()
}

/// A server answered creates with 200 and no id, and its list showed no batch.
#[test]
fn r10_1_a_batch_that_cannot_be_found_is_paid_once_and_held_until_it_can() {
    let dir = posts();
    let blind = ["--max-concurrent-tasks", "1", "--fault", "no_id,blind_list"];
    for _ in 0..3 {
        let ran = run(&dir, &blind).exits(75);
        assert!(ran.stderr.contains("it is not created again"), "{}", ran.stderr);
        assert!(ran.stderr.contains("--on-ambiguous again"), "{}", ran.stderr);
        assert!(creates(&dir).iter().all(|count| *count == 1), "{:?}", creates(&dir));
    }
    // The list shows it after all: it is found, and nothing is paid twice.
    run(&dir, &[]).exits(0);
    assert_eq!(creates(&dir), [1, 1]);
    assert_eq!(dir.read("out.jsonl").lines().count(), 4);
}

/// `--max-batches 1`, and seven batches in 14 seconds.
#[test]
fn r10_1_a_cap_of_batches_counts_those_that_cannot_be_found() {
    let dir = posts();
    let capped = ["--max-batches", "1", "--fault", "drop_create,blind_list"];
    let ran = run_with(&dir, &capped).exits(69);
    assert!(ran.stderr.contains("this takes 2 batches; --max-batches allows 1"), "{}", ran.stderr);
    run_with(&dir, &capped).exits(69);
    assert_eq!(creates(&dir), [1]);
}

/// A gateway's page on every create: uploads without end, and never the exit code of a wrong key.
#[test]
fn r10_1_a_page_that_says_no_is_a_refusal() {
    let dir = posts();
    let ran = run(&dir, &["--fault", "deny_create"]).exits(77);
    assert!(ran.stderr.contains("create a batch: HTTP 403: this gateway says no"), "{}", ran.stderr);
    assert!(ledger::read(&dir.join("w/emulator")).expect("a ledger").uploads <= 2);
    assert!(creates(&dir).is_empty());
    // The key is good again.
    run(&dir, &[]).exits(0);
    assert_eq!(creates(&dir), [1, 1]);
}

/// Batches over the enqueued token limit end as `failed`; their rows were given up, and never asked again.
#[test]
fn r10_2_a_batch_that_found_the_queue_full_is_made_again() {
    let dir = posts();
    let ran = run(&dir, &["--fault", "full_queue=3"]).exits(0);
    assert!(ran.stderr.contains("the provider's queue was full, and nothing of batch"), "{}", ran.stderr);
    assert!(ran.stderr.contains("token_limit_exceeded"), "{}", ran.stderr);
    assert_eq!(creates(&dir), [1, 1], "what found the queue full was not paid for");
    assert_eq!(faults(&dir), []);
    assert!(dir.read("out.jsonl").lines().all(|post| !post.contains("null")), "{}", dir.read("out.jsonl"));
}

/// Results that are gone at the provider: exit 69 each time, and "the same command" for ever.
#[test]
fn r10_3_results_that_never_come_are_absent_rows_and_another_round() {
    let dir = posts();
    let gone = ["--fault", "late_file=100h", "--no-wait"];
    for _ in 0..12 {
        run(&dir, &gone).exits(75);
    }
    // Ten minutes later.
    let earlier = |line: &str| match line.split_once(",\"at\":") {
        Some((before, _)) => format!("{before},\"at\":1700000000}}\n"),
        None => format!("{line}\n"),
    };
    let journal: String = dir.read("w/journal.jsonl").lines().map(earlier).collect();
    assert!(journal.contains("\"event\":\"missing\""), "{journal}");
    dir.write("w/journal.jsonl", journal);
    let ran = run(&dir, &gone).exits(1);
    assert!(ran.stderr.contains("the provider does not have its file: download a file: HTTP 404"), "{}", ran.stderr);
    assert!(ran.stderr.contains("zbatch run --missing out.jsonl"), "{}", ran.stderr);
    assert_eq!(faults(&dir), [0, 1, 2, 3].map(|index| (index, "absent".to_owned())));
    run(&dir, &[&gone[..], &["--max-faults", "4"]].concat()).exits(0);
    assert_eq!(creates(&dir), [1, 1]);
}

/// Results that come a moment after the end of their batch.
#[test]
fn r10_3_results_that_come_late_are_waited_for() {
    let dir = posts();
    run(&dir, &["--fault", "late_file=1s"]).exits(0);
    assert_eq!(faults(&dir), []);
}

/// A provider that refuses a whole batch for one line says which: the row is left out of the next round, the others are not.
#[test]
fn r10_8_the_line_for_which_a_batch_failed_is_a_fault_of_its_row() {
    let dir = posts();
    let ran = run(&dir, &["--fault", "failed=1", "--max-concurrent-tasks", "1"]).exits(1);
    assert_eq!(faults(&dir), [(0, "bad_request".to_owned()), (1, "absent".to_owned())]);
    let faults = dir.read("faults.jsonl");
    assert!(faults.contains("line 1 of sentiment_polarity_batch_part1: code invalid_input"), "{faults}");
    assert!(ran.stderr.contains("--skip faults.jsonl"), "{}", ran.stderr);
    let next = ["gen", "--missing", "out.jsonl", "--skip", "faults.jsonl", "--only", "sentiment_polarity"];
    let asked = dir.run(&next).exits(0).json_lines();
    assert_eq!(
        asked.iter().map(|line| line["custom_id"].as_str()).collect::<Vec<_>>(),
        [Some("sentiment_polarity_0001")]
    );
}
