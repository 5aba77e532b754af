//! `submit`, `fetch`, `status`, `cancel` against the emulator over its socket. The emulator is the accountant: whatever
//! goes wrong, one create per chunk, and every row answered, faulted or absent.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    server::Server,
    workdir::{Ran, WorkDir, hears_signals},
};

const ROOT: &str = "/api/paas/v4";
const KEY: &str = "idididididid.secretsecretsecret";
const POSTS: usize = 12;
const TWO: &str = "--only=sentiment_polarity,topic_analysis";
/// Twelve posts, two questions, four lines a chunk.
const CHUNKS: usize = 6;

/// A directory with a work directory `w` of six chunks, and an emulator.
pub struct Setup {
    pub work: WorkDir,
    pub server: Server,
}

impl Setup {
    pub fn new(emulator: &[&str]) -> Self {
        Self::cut(emulator, &["--max-lines", "4"])
    }

    pub fn cut(emulator: &[&str], r#gen: &[&str]) -> Self {
        let work = WorkDir::new();
        let posts: String = (0..POSTS)
            .map(|n| json!({"content": format!("第{n}条：地铁又停了，等了{n}分钟")}).to_string() + "\n")
            .collect();
        work.write("posts.jsonl", posts);
        let args = [&["gen", "-d", "w", "posts.jsonl", TWO], r#gen].concat();
        work.run(&args).exits(0);
        let server = Server::start(&work, &work.join("state"), emulator);
        Self { work, server }
    }

    /// The emulator goes on with other faults.
    pub fn restart(self, emulator: &[&str]) -> Self {
        let Self { work, server } = self;
        server.kill();
        let server = Server::start(&work, &work.join("state"), emulator);
        Self { work, server }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let base = self.server.base.as_str();
        let more = ["-d", "w", "--base-url", base, "--poll-interval", "10ms"];
        let mut command = self.work.command(&[args, &more].concat());
        command.env("ZHIPUAI_API_KEY", self.server.shown_key.as_deref().unwrap_or(KEY));
        command
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        let ran = Ran::of(self.command(args).output().expect("the program starts"));
        assert!(!ran.stderr.contains("secretsecret"), "{}", ran.stderr);
        ran
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        let mut command = hears_signals(&self.command(args));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    #[track_caller]
    pub fn submit(&self) {
        self.run(&["submit", "--settle", "100ms"]).exits(0);
    }

    pub fn status(&self) -> Value {
        let ran = self.work.run(&["status", "-d", "w", "--json"]).exits(0);
        serde_json::from_str(ran.text()).expect("JSON")
    }

    /// One create per chunk, and none of any content twice.
    #[track_caller]
    pub fn paid_once(&self) {
        let ledger = self.server.ledger();
        let by_content = ledger["by_content"].as_object().expect("an object");
        assert!(by_content.values().all(|count| *count == 1), "{ledger}");
        assert_eq!(by_content.len(), CHUNKS, "{ledger}");
    }

    /// The rows of all chunks, which must balance.
    #[track_caller]
    pub fn rows(&self) -> Value {
        let status = self.status();
        let rows = &status["rows"];
        let count = |name: &str| rows[name].as_u64().expect("a count");
        assert_eq!(count("output") + count("error") + count("absent"), 2 * POSTS as u64, "{status}");
        rows.clone()
    }

    /// What `fetch -o -` gives, judged and in a fixed order.
    pub fn answers(&self) -> Vec<String> {
        let lines = self.run(&["fetch", "-o", "-"]).exits(0).stdout;
        let mut answers: Vec<_> =
            self.work.pipe(lines, &["parse", TWO]).exits(0).text().lines().map(str::to_owned).collect();
        answers.sort_unstable();
        answers
    }

    /// Until this process holds the work directory.
    fn await_lock(&self, child: &Child) {
        let started = Instant::now();
        while self.work.read("w/lock") != format!("process {}\n", child.id()) {
            assert!(started.elapsed() < Duration::from_secs(10));
        }
    }

    pub fn files(&self, purpose: &str) -> usize {
        let listed = self.server.get(&format!("{ROOT}/files?limit=100&purpose={purpose}"));
        listed["data"].as_array().expect("a list").len()
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn the_whole_way_in_three_commands() {
    let setup = Setup::new(&[]);
    let ran = setup.run(&["submit"]).exits(0);
    assert!(ran.stderr.contains("6 chunks, 24 requests"), "{}", ran.stderr);
    assert!(ran.stderr.contains("next: zbatch fetch -d w --base-url http://127.0.0.1:"), "{}", ran.stderr);
    setup.paid_once();
    setup.run(&["fetch"]).exits(0);
    assert_eq!(setup.rows()["output"], 24);
    assert_eq!((setup.files("batch"), setup.files("batch_output")), (0, 0), "nothing stays at the provider");
    assert_eq!(setup.work.join("w/requests").read_dir().expect("listed").count(), 0);
    // Nothing is left to do: no call needs to succeed.
    let answers = setup.answers();
    assert_eq!(answers.len(), 24);
    setup.run(&["submit"]).exits(0);
    setup.paid_once();
    let text = setup.work.run(&["status", "-d", "w"]).exits(0);
    assert!(text.text().contains("12 posts read, 12 good, all cut"), "{}", text.text());
    assert!(text.text().contains("fetched       4 rows  completed  batch_"), "{}", text.text());
    setup.work.run(&["status", "-d", "w", "--watch"]).exits(0);

    let batches: Value = serde_json::from_str(&setup.work.read("w/batch_results.json")).expect("JSON");
    let one = &batches["topic_analysis"];
    assert_eq!(
        (&one["status"], one["successful_batches"].as_array().map(Vec::len)),
        (&json!("batches_created"), Some(3))
    );
    assert_eq!(one["batch_results"][0]["description"], "topic_analysis analysis (Part 1)");
    let downloads: Value = serde_json::from_str(&setup.work.read("w/download_info.json")).expect("JSON");
    let task = &downloads["completed_tasks"]["topic_analysis_topic_analysis analysis (Part 1)"];
    assert_eq!(task["request_counts"], json!({"total": 4, "completed": 4, "failed": 0}));
    assert_eq!(downloads["downloaded_files"].as_object().map(serde_json::Map::len), Some(CHUNKS));
    assert_eq!(downloads["failed_tasks"], json!({}));
}

#[test]
fn results_do_not_depend_on_how_they_came() {
    let smooth = Setup::cut(&[], &["--max-lines", "100"]);
    smooth.submit();
    let rough =
        Setup::new(&["--fault", "drop_create=1,lose_create=1,truncate=2,unknown_status=5,extra_fields,code_number"]);
    rough.submit();
    rough.paid_once();
    let lines = rough.run(&["fetch", "-o", "-"]).exits(0).stdout;
    let answers = rough.work.pipe(lines, &["parse", TWO]).exits(0);
    let merged = rough.work.pipe(&answers.stdout, &["merge", "posts.jsonl", "-", TWO]).exits(0);
    let golden = smooth.run(&["fetch", "-o", "-"]).exits(0).stdout;
    let golden = smooth.work.pipe(golden, &["parse", TWO]).exits(0);
    let golden = smooth.work.pipe(&golden.stdout, &["merge", "posts.jsonl", "-", TWO]).exits(0);
    assert_eq!(merged.text(), golden.text());
    assert!(merged.text().lines().all(|line| line.contains("\"sentiment_polarity\":") && line.contains("\"topics\":")));
}

#[test]
fn m1_a_create_without_an_answer_is_adopted() {
    for faults in ["drop_create=2", "drop_create=2,metadata_dropped", "drop_create=2,list_lag=150ms"] {
        let setup = Setup::new(&["--fault", faults]);
        let ran = setup.run(&["submit", "--settle", "600ms"]).exits(0);
        assert_eq!(ran.stderr.matches("was created after all").count(), 2, "{faults}: {}", ran.stderr);
        setup.paid_once();
        assert_eq!(setup.server.ledger()["uploads"], CHUNKS, "{faults}");
        setup.run(&["fetch"]).exits(0);
        assert_eq!(setup.rows()["output"], 24, "{faults}");
    }
}

#[test]
fn m1_a_lost_create_is_made_anew_after_the_settle_time() {
    let setup = Setup::new(&["--fault", "lose_create=1"]);
    let ran = setup.run(&["submit", "--settle", "100ms"]).exits(0);
    assert!(ran.stderr.contains("3 listings do not show its batch"), "{}", ran.stderr);
    setup.paid_once();
    assert_eq!(setup.server.ledger()["uploads"], CHUNKS + 1);
}

#[test]
fn m1_hold_leaves_the_chunk_alone_and_fetch_never_creates() {
    let setup = Setup::new(&["--fault", "lose_create=1"]);
    let ran = setup.run(&["submit", "--settle", "50ms", "--on-ambiguous", "hold"]).exits(75);
    assert!(ran.stderr.contains("whether its batch was created is not known"), "{}", ran.stderr);
    let creates = || setup.server.ledger()["creates"].as_array().map(Vec::len);
    assert_eq!(creates(), Some(CHUNKS - 1), "the others go on");
    let ran = setup.run(&["fetch"]).exits(75);
    assert!(ran.stderr.contains("no answer is known to 1 create;"), "{}", ran.stderr);
    assert!(ran.stderr.contains("to go on: zbatch submit -d w"), "{}", ran.stderr);
    assert_eq!(creates(), Some(CHUNKS - 1));
    assert_eq!(
        setup.status()["counts"],
        json!({"cut": 0, "uploaded": 0, "unclear": 1, "running": 0, "cancelling": 0, "ended": 0, "fetched": 5})
    );
    setup.submit();
    setup.paid_once();
}

#[test]
fn n3_rate_limits_and_server_errors_are_ridden_out() {
    let setup = Setup::new(&["--fault", "rate_limit=2,server_error=2,html_error=1"]);
    setup.submit();
    setup.paid_once();
    setup.run(&["fetch"]).exits(0);
    assert_eq!(setup.rows()["output"], 24);
}

#[test]
fn m4_an_empty_wallet_stops_creates_and_not_the_rest() {
    let setup = Setup::new(&[]);
    setup.run(&["submit", "--no-wait", "--max-concurrent-tasks", "2"]).exits(75);
    let setup = setup.restart(&["--fault", "no_balance"]);
    let ran = setup.run(&["submit", "--max-concurrent-tasks", "3"]).exits(69);
    assert!(ran.stderr.contains("code 1113") && ran.stderr.contains("fix: mend the account"), "{}", ran.stderr);
    assert!(setup.work.exists("w/batch_results.json"));
    let paid = setup.server.ledger()["creates"].as_array().map(Vec::len).expect("creates");
    assert!((2..CHUNKS).contains(&paid), "{paid}");
    let ran = setup.run(&["fetch"]).exits(75);
    assert!(ran.stderr.contains("without a batch yet: 4 chunks"), "{}", ran.stderr);
    assert_eq!(setup.status()["counts"]["fetched"], paid);
    let setup = setup.restart(&[]);
    setup.submit();
    setup.paid_once();
    setup.run(&["fetch"]).exits(0);
    assert_eq!(setup.rows()["output"], 24);
}

#[test]
fn keys_missing_and_wrong() {
    let setup = Setup::new(&["--fault", "bad_key"]);
    for verb in ["submit", "fetch", "cancel"] {
        let ran = setup.work.run(&[verb, "-d", "w", "--base-url", &setup.server.base]).exits(77);
        assert!(ran.stderr.contains("ZHIPUAI_API_KEY"), "{}", ran.stderr);
    }
    let ran = setup.run(&["submit"]).exits(77);
    assert!(ran.stderr.contains("code 1001") && ran.stderr.contains("fix: check the key"), "{}", ran.stderr);
    assert_eq!(setup.server.ledger()["uploads"], 0);
    let journal = setup.work.read("w/journal.jsonl");
    assert!(!journal.contains("secret") && !journal.contains("intent"), "{journal}");
}

/// What is here already needs no provider, and so no key.
#[test]
fn what_is_fetched_is_emitted_without_a_key() {
    let setup = Setup::new(&[]);
    setup.run(&["submit"]).exits(0);
    let first = setup.run(&["fetch", "-o", "-"]).exits(0);
    let again = setup.work.run(&["fetch", "-d", "w", "-o", "-"]).exits(0);
    let lines = |ran: &Ran| {
        let mut lines: Vec<String> = ran.text().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&again), lines(&first));
    assert_eq!(lines(&again).len(), 2 * POSTS);
}

#[test]
fn n5_what_came_short_is_fetched_again() {
    let setup = Setup::new(&["--fault", "truncate=4"]);
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    assert_eq!(setup.rows()["output"], 24);
}

#[test]
fn n5_what_stays_short_is_kept_and_named() {
    let setup = Setup::new(&["--fault", "truncate"]);
    setup.submit();
    let ran = setup.run(&["fetch"]).exits(1);
    assert!(ran.stderr.contains(" absent: "), "{}", ran.stderr);
    let rows = setup.rows();
    assert!(rows["output"].as_u64() > Some(0) && rows["absent"].as_u64() > Some(0), "{rows}");
    assert_eq!(setup.files("batch_output"), CHUNKS, "what is short is not deleted");
    let setup = setup.restart(&[]);
    let ran = setup.run(&["fetch", "--again", "failed", "topic_analysis_batch_part1"]).exits(0);
    assert!(ran.stderr.contains("downloading again: 6 chunks"), "{}", ran.stderr);
    assert_eq!(setup.rows()["output"], 24);
    assert_eq!(setup.files("batch_output"), 0);
    setup.run(&["fetch", "--again", "topic_analysis_batch_part1"]).exits(65);
    setup.run(&["fetch", "--again", "topic_analysis_batch_part9"]).exits(64);
}

/// Its files at the provider were kept for this, and nobody had to ask.
#[test]
fn n5_what_came_short_is_fetched_again_by_the_next_command() {
    let setup = Setup::new(&["--fault", "truncate"]);
    setup.submit();
    setup.run(&["fetch"]).exits(1);
    // Without a key nothing is forgotten of what is here.
    let rows = setup.rows();
    setup.work.run(&["fetch", "-d", "w"]).exits(77);
    assert_eq!(setup.rows(), rows);
    let setup = setup.restart(&[]);
    let ran = setup.run(&["fetch"]).exits(0);
    assert!(ran.stderr.contains("its results came short; they are downloaded again"), "{}", ran.stderr);
    assert_eq!((setup.rows()["output"].clone(), setup.files("batch_output")), (json!(24), 0));
    setup.paid_once();
    assert_eq!(setup.answers().len(), 24);
}

/// A line more or less would give absent or other rows, and nobody would hear of it.
#[test]
fn r3_results_that_were_changed_here_are_downloaded_again_or_told() {
    const FILE: &str = "w/results/topic_analysis_batch_part1.output.jsonl";
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch", "--keep-remote"]).exits(0);
    let lines = || setup.run(&["fetch", "--keep-remote", "-o", "-"]).exits(0).stdout;
    let (all, whole) = (lines(), setup.work.read(FILE));
    let (_, less) = whole.split_once('\n').expect("lines");
    setup.work.write(FILE, less);
    let ran = setup.run(&["fetch", "--keep-remote"]).exits(0);
    let expected =
        format!("{FILE} has {} bytes, and {} were downloaded; it is downloaded again", less.len(), whole.len());
    assert!(ran.stderr.contains(&expected), "{}", ran.stderr);
    assert_eq!(setup.work.read(FILE), whole);
    // Lines in a file that was not there when the rows were counted.
    let stray = "w/results/topic_analysis_batch_part1.error.jsonl";
    setup.work.write(stray, &whole);
    let ran = setup.run(&["fetch"]).exits(0);
    assert!(ran.stderr.contains("there was no such file; it is downloaded again"), "{}", ran.stderr);
    assert!(!setup.work.exists(stray));
    // The provider has nothing any more.
    assert_eq!(setup.files("batch_output"), 0);
    setup.work.write(FILE, less);
    let ran = setup.run(&["fetch"]);
    let expected = "were downloaded, and the provider's copy is deleted: rows that are not in it will be absent";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    setup.work.write(FILE, &whole);
    assert_eq!(lines(), all);
    setup.paid_once();
}

#[test]
fn m2_partial_results_are_kept() {
    let setup = Setup::new(&["--fault", "expired=50%"]);
    setup.submit();
    let ran = setup.run(&["fetch", "-o", "all.jsonl"]).exits(1);
    assert!(ran.stderr.contains("its batch is expired"), "{}", ran.stderr);
    let rows = setup.rows();
    assert!(rows["output"].as_u64() > Some(0) && rows["absent"].as_u64() > Some(0), "{rows}");
    assert_eq!(setup.work.read("all.jsonl").lines().count() as u64, rows["output"].as_u64().expect("a count"));
    let downloads: Value = serde_json::from_str(&setup.work.read("w/download_info.json")).expect("JSON");
    assert_eq!(downloads["failed_tasks"].as_object().map(serde_json::Map::len), Some(CHUNKS));
}

#[test]
fn a_failed_batch_leaves_its_rows_absent() {
    let setup = Setup::new(&["--fault", "failed=1"]);
    setup.submit();
    let ran = setup.run(&["fetch"]).exits(1);
    assert!(ran.stderr.contains("its batch is failed: "), "{}", ran.stderr);
    assert_eq!((&setup.rows()["output"], &setup.rows()["absent"]), (&json!(20), &json!(4)));
}

#[test]
fn cancel_and_fetch_what_was_done() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--max-concurrent-tasks", "9"]).exits(0);
    let ran = setup.run(&["cancel"]).exits(0);
    assert!(ran.stderr.contains("asked to cancel: 6 batches"), "{}", ran.stderr);
    let ran = setup.run(&["fetch"]).exits(1);
    assert!(ran.stderr.contains("its batch is cancelled"), "{}", ran.stderr);
    setup.rows();
    // Nothing runs any more.
    assert!(setup.run(&["cancel"]).exits(0).stderr.contains("asked to cancel: 0 batches"));
}

#[test]
fn cancel_of_what_has_ended() {
    let setup = Setup::new(&[]);
    setup.run(&["submit", "--max-concurrent-tasks", "9"]).exits(0);
    for chunk in setup.status()["chunks"].as_array().expect("chunks") {
        setup.server.wait(ROOT, chunk["batch_id"].as_str().expect("an id"));
    }
    let ran = setup.run(&["cancel"]).exits(0);
    assert_eq!(ran.stderr.matches("is completed already").count(), CHUNKS, "{}", ran.stderr);
    setup.run(&["fetch"]).exits(0);
}

#[test]
fn s9_lines_that_go_wrong_balance() {
    let faults = "blocked=20%,missing=10%,duplicate=20%,foreign=20%,torn=10%";
    let setup = Setup::new(&["--seed", "3", "--fault", faults]);
    setup.submit();
    setup.run(&["fetch"]).exits(1);
    let rows = setup.rows();
    for name in ["output", "error", "absent", "foreign", "bad"] {
        assert!(rows[name].as_u64() > Some(0), "{name}: {rows}");
    }
    assert!(
        setup
            .work
            .join("w/results")
            .read_dir()
            .expect("listed")
            .any(|entry| { entry.expect("an entry").file_name().to_string_lossy().ends_with(".error.jsonl") })
    );
}

#[test]
fn m3_caps_refuse_before_the_first_call_and_hold_after_a_restart() {
    let setup = Setup::new(&[]);
    let ran = setup.run(&["submit", "--max-batches", "5"]).exits(69);
    assert!(ran.stderr.contains("this takes 6 batches; --max-batches allows 5"), "{}", ran.stderr);
    setup.run(&["submit", "--max-requests", "23"]).exits(69);
    assert_eq!(setup.server.ledger()["uploads"], 0);
    setup.run(&["submit", "--max-batches", "6", "--no-wait"]).exits(75);
    let before = setup.server.ledger()["creates"].clone();
    setup.run(&["submit", "--max-batches", "5"]).exits(69);
    assert_eq!(setup.server.ledger()["creates"], before);
    setup.run(&["submit", "--max-batches", "6", "--max-requests", "24"]).exits(0);
    setup.paid_once();
}

#[test]
fn no_wait_is_for_cron() {
    let setup = Setup::new(&[]);
    let started = Instant::now();
    let mut rounds = 0;
    loop {
        let submitted = setup.run(&["submit", "--no-wait"]).code;
        let fetched = setup.run(&["fetch", "--no-wait", "-o", "all.jsonl"]).code;
        rounds += 1;
        if submitted == Some(0) && fetched == Some(0) {
            break;
        }
        assert!([Some(0), Some(75)].contains(&submitted) && fetched == Some(75), "{submitted:?} {fetched:?}");
        assert!(!setup.work.exists("all.jsonl"), "an output appears whole");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    assert!(rounds > 2, "{rounds}");
    setup.paid_once();
    assert_eq!(setup.work.read("all.jsonl").lines().count(), 24);
}

#[test]
fn m5_the_first_signal_says_what_runs_and_a_lock_keeps_others_out() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--timeout", "300ms"]).exits(75);
    setup.run(&["fetch", "--timeout", "300ms"]).exits(75);
    for (name, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let child = setup.spawn(&["fetch"]);
        let started = Instant::now();
        setup.await_lock(&child);
        let ran = setup.run(&["cancel"]).exits(75);
        assert!(ran.stderr.contains(&format!("w is in use by process {}", child.id())), "{}", ran.stderr);
        // It holds the lock a little before it hears signals.
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, name);
        let ran = Ran::of(child.wait_with_output().expect("ended")).exits(code);
        assert!(ran.stderr.contains("these batches run on: batch_"), "{}", ran.stderr);
        assert!(ran.stderr.contains("to go on: zbatch "), "{}", ran.stderr);
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--no-wait"]).exits(75);
    let fetch = setup.command(&["fetch", "--timeout", "1s"]);
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(fetch.get_program()).args(fetch.get_args());
    let mut child = nohup.current_dir(setup.work.path()).env("ZHIPUAI_API_KEY", KEY).spawn().expect("sh starts");
    setup.await_lock(&child);
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "-HUP");
    assert_eq!(child.wait().expect("ended").code(), Some(75), "it went on to its deadline");
}

#[test]
fn a_chunk_that_was_changed_does_not_stop_the_others() {
    let setup = Setup::new(&[]);
    setup.work.write("w/requests/topic_analysis_batch_part2.jsonl", "{}\n");
    let ran = setup.run(&["submit"]).exits(65);
    assert!(ran.stderr.contains("topic_analysis_batch_part2.jsonl is not the file that was cut"), "{}", ran.stderr);
    assert_eq!(setup.server.ledger()["creates"].as_array().map(Vec::len), Some(CHUNKS - 1));
    setup.run(&["fetch"]).exits(75);
}

#[test]
fn a_model_that_is_refused_at_upload_is_told() {
    let setup = Setup::cut(&[], &["--max-lines", "4", "--model", "glm-nonsense"]);
    let ran = setup.run(&["submit"]).exits(65);
    assert!(ran.stderr.contains("upload a file: HTTP 400, code 1210"), "{}", ran.stderr);
    assert!(ran.stderr.contains("without a batch yet: 6 chunks"), "{}", ran.stderr);
}

#[test]
fn keep_remote_and_keep_requests() {
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch", "--keep-remote", "--keep-requests"]).exits(0);
    assert_eq!((setup.files("batch"), setup.files("batch_output")), (CHUNKS, CHUNKS));
    assert_eq!(setup.work.join("w/requests").read_dir().expect("listed").count(), CHUNKS);
    setup.run(&["fetch", "--keep-remote", "--again", "topic_analysis_batch_part1"]).exits(0);
    setup.run(&["fetch"]).exits(0);
    assert_eq!((setup.files("batch"), setup.files("batch_output")), (0, 0));
    assert_eq!(setup.work.join("w/requests").read_dir().expect("listed").count(), 0);
}

#[test]
fn another_provider() {
    let openai = ["--max-lines", "4", "--provider", "openai", "--model", "m"];
    let setup = Setup::cut(&["--fault", "drop_create=1,truncate=1,blocked=20%"], &openai);
    let base = format!("http://{}/v1", setup.server.address);
    let run = |args: &[&str]| {
        let more = ["-d", "w", "--provider", "openai", "--base-url", &base, "--poll-interval", "10ms"];
        let mut command = setup.work.command(&[args, &more].concat());
        Ran::of(command.env("OPENAI_API_KEY", "sk-some-key").output().expect("the program starts"))
    };
    let ran = setup.run(&["submit"]).exits(65);
    assert!(ran.stderr.contains("belongs to openai") && ran.stderr.contains("--provider openai"), "{}", ran.stderr);
    let ran = run(&["submit", "--settle", "100ms"]).exits(0);
    assert!(ran.stderr.contains("fetch -d w --provider openai --base-url http://"), "{}", ran.stderr);
    setup.paid_once();
    run(&["fetch"]).exits(0);
    let rows = setup.rows();
    assert!(rows["error"].as_u64() > Some(0) && rows["absent"] == 0, "{rows}");
    assert_eq!(setup.server.get("/v1/files")["data"], json!([]));
}

#[test]
fn a_closed_reader_ends_it_quietly() {
    let setup = Setup::new(&["--latency", "60s"]);
    let setup = {
        setup.run(&["submit", "--max-concurrent-tasks", "9", "--timeout", "5s"]).exits(0);
        setup.restart(&[])
    };
    let ran = setup.work.run(&["status", "-d", "nowhere"]).exits(65);
    assert!(ran.stderr.contains("is not a work directory"), "{}", ran.stderr);
    let mut child = setup.spawn(&["fetch", "-o", "-", "--timeout", "200ms"]);
    drop(child.stdout.take());
    // Nothing has come yet, so that nobody has noticed.
    assert_eq!(child.wait().expect("ended").code(), Some(75));
}

#[test]
fn an_output_of_fetch_that_cannot_be_written_is_told_before_the_wait() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    dir.run(&["gen", "posts.jsonl", "-d", "w"]).exits(0);
    // Without a key: no call was near.
    let ran = dir.run(&["fetch", "-d", "w", "-o", "none/x"]).exits(74);
    assert!(ran.stderr.contains("mkdir -p none"), "{}", ran.stderr);
}

/// Nobody knew where the key and the posts went.
#[test]
fn r11_1_each_verb_says_once_which_server_gets_which_key() {
    let setup = Setup::new(&[]);
    let host = setup.server.address.clone();
    let said = |stderr: &str| {
        stderr.lines().filter(|line| line.contains("sending to ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = format!("zbatch: sending to {host} with $ZHIPUAI_API_KEY");
    for verb in [&["submit"][..], &["fetch"], &["fetch", "--again", "failed"], &["cancel"]] {
        assert_eq!(said(&setup.run(verb).exits(0).stderr), [plain.as_str()], "{verb:?}");
    }
    assert_eq!(said(&setup.run(&["cancel", "-q"]).exits(0).stderr), [""; 0]);
    setup.work.write("config.json", r#"{"batch":{"temperature":0.7}}"#).write("key", KEY);
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(setup.work.join("key"), private).expect("set");
    let ran = setup.run(&["cancel", "--key-file", "key"]).exits(0);
    assert_eq!(said(&ran.stderr), [format!("zbatch: sending to {host} with key (config: config.json)")]);
    let emulated = setup.work.run(&["run", "posts.jsonl", TWO, "-o", "o", "-d", "e", "--emulate"]).exits(0);
    assert_eq!(said(&emulated.stderr), [""; 0]);
}

/// Going on against another host sent it the key, the posts and the ids of batches that it does not have.
#[test]
fn r11_8_a_directory_goes_on_with_the_server_that_it_began_with() {
    let setup = Setup::new(&[]);
    setup.submit();
    let origin = format!("http://{}", setup.server.address);
    let event = format!("{{\"event\":\"origin\",\"origin\":\"{origin}\"");
    let journal = setup.work.read("w/journal.jsonl");
    let lines: Vec<&str> = journal.split_inclusive('\n').filter(|line| line.starts_with(&event)).collect();
    let [line] = lines[..] else { panic!("{lines:?}") };
    for verb in ["submit", "fetch", "cancel"] {
        let args = [verb, "-d", "w", "--base-url", "https://other.example:8443/v4"];
        let mut command = setup.work.command(&args);
        let ran = Ran::of(command.env("ZHIPUAI_API_KEY", KEY).output().expect("it starts")).exits(65);
        for told in [origin.as_str(), "https://other.example:8443", "--base-url", "-d"] {
            assert!(ran.stderr.contains(told), "{verb}: {}", ran.stderr);
        }
    }
    // A local server has another port when it is started again; a journal of an older version learns where its batches are.
    let setup = setup.restart(&[]);
    setup.submit();
    let old = setup.work.read("w/journal.jsonl").replace(line, "");
    assert!(!old.contains("\"origin\""), "{old}");
    setup.work.write("w/journal.jsonl", old);
    setup.run(&["fetch"]).exits(0);
    let now = format!("\"origin\":\"http://{}\"", setup.server.address);
    assert_eq!(setup.work.read("w/journal.jsonl").matches(&now).count(), 1);
    setup.paid_once();
}
