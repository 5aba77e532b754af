//! What a provider can do to a user's money, seen from the command line: creates that are answered badly, queues that are
//! full, results that come late or never. The emulator is the accountant.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use serde_json::Value;
use zbatch::emulator::ledger;

use crate::{
    server::Server,
    workdir::{Ran, WorkDir},
};

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
    assert!(ran.stderr.contains("the provider's queue for glm-4-air is full"), "{}", ran.stderr);
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
    pass_ten_minutes(&dir);
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

/// A server of its own, so that a copy of the work directory is no copy of the server.
struct Remote {
    dir: WorkDir,
    server: Server,
}

impl Remote {
    fn new(faults: &[&str]) -> Self {
        let dir = posts();
        let server = Server::start(&dir, &dir.join("server"), faults);
        Self { dir, server }
    }

    /// Runs a verb against the server.
    fn run(&self, args: &[&str]) -> Ran {
        let remote = ["--base-url", &self.server.base, "--poll-interval", "20ms", "-d", "w"];
        let mut command = self.dir.command(&[args, &remote].concat());
        command.env("ZHIPUAI_API_KEY", "some-key-of-a-test");
        Ran::of(command.output().expect("the program starts"))
    }

    /// Two requests a chunk, two chunks, nothing sent.
    fn cut(&self) -> &Self {
        self.dir.run(&["gen", "posts.jsonl", "-d", "w", "--only", "sentiment_polarity", "--max-lines", "2"]).exits(0);
        self
    }

    /// How often each content was created.
    fn creates(&self) -> Vec<u64> {
        let by_content = self.server.ledger()["by_content"].clone();
        by_content.as_object().expect("a map").values().map(|count| count.as_u64().expect("a count")).collect()
    }
}

/// Puts the files of `from` back into `to`: their contents, in the same files.
fn restore(dir: &WorkDir, from: &str, to: &str) {
    for entry in std::fs::read_dir(dir.join(from)).expect("a backup") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        let path = dir.join(&format!("{from}/{name}"));
        if path.is_dir() {
            restore(dir, &format!("{from}/{name}"), &format!("{to}/{name}"));
        } else {
            std::fs::create_dir_all(dir.join(to)).expect("a directory");
            dir.write(&format!("{to}/{name}"), dir.read(&format!("{from}/{name}")));
        }
    }
}

/// A backup of two seconds ago: 120 of 200 rows were paid twice, with exit 0 and no word.
#[test]
fn r11_9a_a_restored_directory_adopts_the_batches_that_its_journal_lacks() {
    let remote = Remote::new(&[]);
    restore(&remote.cut().dir, "w", "backup");
    remote.run(&["submit"]).exits(0);
    restore(&remote.dir, "backup", "w");
    let again = remote.run(&["submit"]).exits(0);
    assert_eq!(remote.creates(), [1, 1], "{}", again.stderr);
    assert!(again.stderr.contains("its batch was created before"), "{}", again.stderr);
    let fetched = remote.run(&["fetch", "-o", "-"]).exits(0);
    assert_eq!(fetched.json_lines().len(), 4);
    assert_eq!(remote.server.ledger()["deletes"], 4, "its input files and its results are cleaned up");
}

/// The other copy has fetched the results, and deleted them at the provider.
#[test]
fn r11_9a_results_that_another_copy_took_are_held_until_the_user_gives_them_up() {
    let remote = Remote::new(&[]);
    restore(&remote.cut().dir, "w", "backup");
    remote.run(&["submit"]).exits(0);
    remote.run(&["fetch"]).exits(0);
    restore(&remote.dir, "backup", "w");
    // The backup had none yet; results that are here are taken.
    std::fs::remove_dir_all(remote.dir.join("w/results")).expect("removed");
    remote.run(&["submit"]).exits(0);
    remote.run(&["fetch", "--no-wait"]).exits(75);
    pass_ten_minutes(&remote.dir);
    for _ in 0..2 {
        let ran = remote.run(&["fetch"]).exits(75);
        assert!(ran.stderr.contains("its results are gone from the provider"), "{}", ran.stderr);
        assert!(ran.stderr.contains("another copy of this directory"), "{}", ran.stderr);
        assert!(ran.stderr.contains("--on-ambiguous again"), "{}", ran.stderr);
        remote.run(&["submit"]).exits(0);
    }
    assert_eq!(remote.creates(), [1, 1]);
    // The user gives them up: each chunk is created once more, and no more.
    remote.run(&["submit", "--on-ambiguous", "again"]).exits(0);
    assert_eq!(remote.creates(), [2, 2]);
    assert_eq!(remote.run(&["fetch", "-o", "-"]).exits(0).json_lines().len(), 4);
    assert_eq!(remote.creates(), [2, 2]);
}

/// A restored directory told one cause of eighteen chunks in eighteen paragraphs.
#[test]
fn r11_9a_one_cause_is_told_of_three_chunks_and_counted() {
    let remote = Remote::new(&[]);
    let posts: String = (0..6).map(|n| format!("{{\"content\":\"post {n}\"}}\n")).collect();
    remote.dir.write("posts.jsonl", posts);
    remote.dir.run(&["gen", "posts.jsonl", "-d", "w", "--only", "sentiment_polarity", "--max-lines", "1"]).exits(0);
    restore(&remote.dir, "w", "backup");
    remote.run(&["submit"]).exits(0);
    remote.run(&["fetch"]).exits(0);
    restore(&remote.dir, "backup", "w");
    std::fs::remove_dir_all(remote.dir.join("w/results")).expect("removed");
    remote.run(&["submit"]).exits(0);
    let ran = remote.run(&["fetch", "--no-wait"]).exits(75);
    assert_eq!(ran.stderr.matches("asked for again next time").count(), 3, "{}", ran.stderr);
    pass_ten_minutes(&remote.dir);
    let ran = remote.run(&["fetch"]).exits(75);
    assert_eq!(
        ran.stderr.matches("its results are gone from the provider").count(),
        4,
        "three, and the end: {}",
        ran.stderr
    );
    assert_eq!(ran.stderr.matches("in other copies of this directory").count(), 2, "its advice: {}", ran.stderr);
    assert!(ran.stderr.contains("3 more chunks were left in the same way"), "{}", ran.stderr);
    assert_eq!(remote.run(&["fetch", "-v"]).exits(75).stderr.matches("its results are gone").count(), 7);
}

/// A batch that is gone at the provider: exit 69 each time, no more creates, and no way out.
#[test]
fn r11_9b_a_batch_that_is_gone_leaves_absent_rows_and_the_others_go_on() {
    let dir = posts();
    let ran = run(&dir, &["--max-concurrent-tasks", "1", "--fault", "gone_batch=5"]).exits(1);
    assert_eq!(creates(&dir), [1, 1], "creates go on");
    assert!(ran.stderr.contains("the provider does not have its batch"), "{}", ran.stderr);
    assert!(ran.stderr.contains("zbatch run --missing out.jsonl"), "{}", ran.stderr);
    assert_eq!(faults(&dir), [(0, "absent".to_owned()), (1, "absent".to_owned())]);
    // It is told once, and is not asked for again.
    let again = run(&dir, &["--max-concurrent-tasks", "1"]).exits(1);
    assert!(!again.stderr.contains("look at a batch"), "{}", again.stderr);
    assert_eq!(creates(&dir), [1, 1]);
}

/// An account that is not the one with the batches has none of them either.
#[test]
fn r11_9b_a_batch_of_another_account_has_not_vanished() {
    let remote = Remote::new(&[]);
    remote.cut().run(&["submit"]).exits(0);
    let other = Server::start(&remote.dir, &remote.dir.join("other"), &[]);
    let fetch = |base: &str| {
        let mut command = remote.dir.command(&["fetch", "-d", "w", "--poll-interval", "20ms", "--base-url", base]);
        command.env("ZHIPUAI_API_KEY", "some-key-of-a-test");
        Ran::of(command.output().expect("the program starts"))
    };
    let ran = fetch(&other.base).exits(69);
    assert!(ran.stderr.contains("no batch of this directory is known under this key"), "{}", ran.stderr);
    assert!(!remote.dir.read("w/journal.jsonl").contains("\"event\":\"ended\""));
    fetch(&remote.server.base).exits(0);
}

/// 500 slots against a limit of 3: 3,979 creates in 150 s.
#[test]
fn r11_9d_a_full_account_is_asked_by_one_probe_at_a_time() {
    let remote = Remote::new(&["--fault", "queue=3"]);
    let posts: String = (0..60).map(|n| format!("{{\"content\":\"post {n}\"}}\n")).collect();
    remote.dir.write("posts.jsonl", posts);
    remote.dir.run(&["gen", "posts.jsonl", "-d", "w", "--only", "sentiment_polarity", "--max-lines", "2"]).exits(0);
    let ran = remote.run(&["submit", "--max-concurrent-tasks", "500"]).exits(0);
    assert_eq!(remote.creates(), [1; 30]);
    let journal = remote.dir.read("w/journal.jsonl");
    let count = |event: &str| journal.matches(&format!("\"event\":\"{event}\"")).count();
    assert_eq!(count("uploaded"), 30, "one upload a chunk");
    assert!(count("refused") <= 30, "{} refusals of 30 creates: {}", count("refused"), ran.stderr);
    let told = ran.stderr.matches("is full, with").count();
    assert!((1..=2).contains(&told), "{}", ran.stderr);
}

/// As if the first look at results that are not there were ten minutes ago.
fn pass_ten_minutes(dir: &WorkDir) {
    let earlier = |line: &str| match line.split_once(",\"at\":") {
        Some((before, _)) => format!("{before},\"at\":1700000000}}\n"),
        None => format!("{line}\n"),
    };
    let journal: String = dir.read("w/journal.jsonl").lines().map(earlier).collect();
    assert!(journal.contains("\"event\":\"missing\""), "{journal}");
    dir.write_journal(&journal);
}
