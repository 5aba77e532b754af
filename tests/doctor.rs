//! `doctor` against the emulator: what it finds of a service that is as assumed and of one that is not, and that nothing of it is
//! left there.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    server::Server,
    workdir::{Ran, WorkDir, hears_signals},
};

const ROOT: &str = "/api/paas/v4";
const KEY: &str = "idididididid.secretsecretsecret";

struct Clinic {
    work: WorkDir,
    server: Server,
}

impl Clinic {
    fn new(emulator: &[&str]) -> Self {
        let work = WorkDir::new();
        let server = Server::start(&work, &work.join("state"), emulator);
        Self { work, server }
    }

    fn command(&self, args: &[&str]) -> Command {
        let base = self.server.base.as_str();
        let mut command =
            self.work.command(&[&["doctor", "--base-url", base, "--poll-interval", "10ms"], args].concat());
        command.env("ZHIPUAI_API_KEY", KEY);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        let ran = Ran::of(self.command(args).output().expect("the program starts"));
        assert!(!ran.stderr.contains("secretsecret"), "{}", ran.stderr);
        ran
    }

    /// Every finding by name, and that there are all of them; nothing may be left behind.
    #[track_caller]
    fn findings(&self, args: &[&str], code: i32) -> BTreeMap<String, Value> {
        let ran = self.run(&[args, &["--json"]].concat()).exits(code);
        let told: BTreeMap<String, Value> =
            ran.json_lines().into_iter().map(|it| (it["finding"].as_str().expect("a name").to_owned(), it)).collect();
        assert_eq!(told.len(), 17, "{told:#?}");
        self.nothing_is_left();
        told
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        for purpose in ["batch", "batch_output"] {
            let files = self.server.get(&format!("{ROOT}/files?limit=100&purpose={purpose}"));
            assert_eq!(files["data"].as_array().map(Vec::len), Some(0), "{files}");
        }
        let batches = self.server.get(&format!("{ROOT}/batches?limit=100"));
        for batch in batches["data"].as_array().expect("a list") {
            let status = batch["status"].as_str().expect("a status");
            assert!(["completed", "failed", "expired", "cancelled"].contains(&status), "{batch}");
        }
    }
}

/// The findings with a verdict.
fn with<'a>(told: &'a BTreeMap<String, Value>, verdict: &str) -> Vec<&'a str> {
    told.iter().filter(|(_, it)| it["verdict"] == verdict).map(|(name, _)| name.as_str()).collect()
}

fn measured<'a>(told: &'a BTreeMap<String, Value>, name: &str) -> &'a str {
    told[name]["measured"].as_str().expect("a text")
}

#[test]
fn a_service_that_is_as_assumed() {
    let clinic = Clinic::new(&[]);
    let ran = clinic.run(&[]).exits(0);
    let lines: Vec<&str> = ran.text().lines().collect();
    assert_eq!(lines.len(), 17, "{}", ran.text());
    assert!(lines.iter().all(|line| line.starts_with("as assumed  ") || line.starts_with("noted  ")), "{}", ran.text());
    assert!(
        lines[0].starts_with("as assumed    key  ") && lines[0].ends_with(" (assumed: it is accepted)"),
        "{}",
        lines[0]
    );
    let (before, after) = (ran.stderr.lines().nth(1), ran.stderr.lines().last());
    let cost = format!(
        "zbatch: three batches of one request each at {}; glm-4-flash is free at zhipu; all is deleted at the end",
        clinic.server.base
    );
    assert_eq!(before, Some(cost.as_str()));
    assert_eq!(after, Some("zbatch: 15 as assumed, 0 differ, 2 noted, 0 not measured"));
    clinic.nothing_is_left();
    let creates = clinic.server.ledger()["creates"].as_array().map(Vec::len);
    assert_eq!(creates, Some(3), "what it said it would cost");
}

#[test]
fn what_is_found_as_json() {
    let clinic = Clinic::new(&[]);
    let told = clinic.findings(&["-q"], 0);
    assert_eq!(with(&told, "noted"), ["input_deleted_while_queued", "list_order"]);
    assert_eq!(measured(&told, "list_order"), "newest first");
    let ends = measured(&told, "input_deleted_while_queued");
    assert!(ends.starts_with("validating 0.0 s, in_progress ") && ends.ends_with("1 of 1 request done"), "{ends}");
    let statuses = measured(&told, "statuses");
    for word in ["validating ", "in_progress ", "finalizing ", "completed "] {
        assert!(statuses.contains(word), "{statuses}");
    }
    assert!(measured(&told, "cancel").contains("cancelled "));
    // Each is explained, and nothing else is.
    let page = crate::docs::text("docs/reliability.md");
    let table = page.split("| finding |").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("the table");
    let mut explained: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|names| names.split('`').filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())))
        .collect();
    explained.sort_unstable();
    assert_eq!(explained, told.keys().collect::<Vec<_>>());
    assert_eq!(measured(&told, "request_counts"), "total 1, completed 1, failed 0");
}

#[test]
fn a_listing_that_lags() {
    let clinic = Clinic::new(&["--fault", "list_lag=400ms"]);
    let told = clinic.findings(&["--settle", "20s"], 0);
    let lag = measured(&told, "list_lag");
    let seconds: f64 = lag.trim_start_matches("after ").trim_end_matches(" s").parse().expect(lag);
    assert!((0.4..10.0).contains(&seconds), "{lag}");
    // Longer than a job would wait: it would pay twice.
    let clinic = Clinic::new(&["--fault", "list_lag=20s"]);
    let told = clinic.findings(&["--settle", "300ms"], 1);
    assert_eq!(with(&told, "differs"), ["list_lag"]);
    assert!(measured(&told, "list_lag").starts_with("not listed after 0."), "{told:#?}");
    assert_eq!(with(&told, "not measured"), ["list_input", "list_metadata", "list_order"]);
}

#[test]
fn metadata_that_does_not_come_back() {
    let clinic = Clinic::new(&["--fault", "metadata_dropped"]);
    let told = clinic.findings(&[], 1);
    assert_eq!(with(&told, "differs"), ["create_metadata", "list_metadata", "poll_metadata"]);
    let ran = clinic.run(&[]).exits(1);
    assert!(ran.text().contains("differs       list_metadata               none of it; "), "{}", ran.text());
    assert!(ran.stderr.ends_with("12 as assumed, 3 differ, 2 noted, 0 not measured\n"), "{}", ran.stderr);
}

#[test]
fn other_ends_and_other_words() {
    let clinic = Clinic::new(&["--fault", "failed"]);
    let told = clinic.findings(&[], 1);
    assert_eq!(with(&told, "differs"), ["statuses"]);
    assert_eq!(with(&told, "not measured"), ["deletion", "download", "request_counts"]);
    let clinic = Clinic::new(&["--fault", "unknown_status=1"]);
    let told = clinic.findings(&[], 1);
    assert_eq!(with(&told, "differs"), ["statuses"]);
    let clinic = Clinic::new(&["--fault", "blocked=100%"]);
    let told = clinic.findings(&[], 1);
    assert_eq!(measured(&told, "download"), "an error file only");
}

/// A create without an answer: what it made is found in the listing, and cancelled.
#[test]
fn a_lost_answer_leaves_nothing_behind() {
    let clinic = Clinic::new(&["--fault", "drop_create=1", "--latency", "60s"]);
    // The first create is the one whose input is deleted: it is refused before the connection breaks.
    let ran = clinic.run(&["--json"]).exits(69);
    assert!(ran.stderr.contains("create a batch: "), "{}", ran.stderr);
    clinic.nothing_is_left();
    assert_eq!(clinic.server.ledger()["creates"].as_array().map(Vec::len), Some(1));
}

/// What is not listed yet cannot be cancelled, and is not passed over in silence.
#[test]
fn r3_a_lost_create_that_is_not_listed_is_named() {
    let clinic = Clinic::new(&["--fault", "drop_create=1,list_lag=60s", "--latency", "60s"]);
    let ran = clinic.run(&[]).exits(69);
    assert!(ran.stderr.contains("a create has no known answer: look for doctor-"), "{}", ran.stderr);
    // When it must have been listed, there is none.
    let clinic = Clinic::new(&["--fault", "lose_create=1"]);
    let ran = clinic.run(&["--settle", "1ms"]).exits(1);
    assert!(ran.text().contains("create_without_input        no clear answer"), "{}", ran.text());
    assert!(!ran.stderr.contains("no known answer"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_asked() {
    let clinic = Clinic::new(&[]);
    let ran = clinic.work.run(&["doctor", "--base-url", &clinic.server.base]).exits(77);
    assert!(ran.stderr.contains("export ZHIPUAI_API_KEY"), "{}", ran.stderr);
    let ran = clinic.run(&["--model", "glm-nonsense"]).exits(65);
    assert!(ran.stderr.contains("glm-nonsense bills some fifty tokens for each"), "{}", ran.stderr);
    assert!(ran.stderr.contains("upload a file: HTTP 400, code 1210"), "{}", ran.stderr);
    assert!(ran.text().contains("not measured  list_lag"), "{}", ran.text());
    let ran = clinic.run(&["--provider", "openai"]).exits(64);
    assert!(ran.stderr.contains("no free model of openai is known"), "{}", ran.stderr);
    clinic.nothing_is_left();
    let clinic = Clinic::new(&["--fault", "bad_key"]);
    let ran = clinic.run(&[]).exits(77);
    assert_eq!(ran.text(), "", "nothing was measured");
}

#[test]
fn another_dialect() {
    let clinic = Clinic::new(&[]);
    let base = format!("http://{}/v1", clinic.server.address);
    let args = ["doctor", "--provider", "openai", "--model", "m", "--base-url", &base, "--poll-interval", "10ms"];
    let mut command = clinic.work.command(&args);
    let ran = Ran::of(command.env("OPENAI_API_KEY", "sk-some-key").output().expect("the program starts")).exits(0);
    assert!(ran.stderr.ends_with("15 as assumed, 0 differ, 2 noted, 0 not measured\n"), "{}", ran.stderr);
    clinic.nothing_is_left();
}

#[test]
fn stopped_by_time_or_by_a_signal_it_cleans_up() {
    let clinic = Clinic::new(&["--latency", "60s"]);
    let told = clinic.findings(&["--timeout", "1s"], 75);
    assert!(with(&told, "not measured").contains(&"statuses"), "{told:#?}");
    assert!(with(&told, "as assumed").contains(&"list_lag"), "{told:#?}");

    let mut command = hears_signals(&clinic.command(&[]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let started = Instant::now();
    while clinic.server.ledger()["creates"].as_array().map(Vec::len) < Some(6) {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let ran = Ran::of(child.wait_with_output().expect("ended")).exits(130);
    assert!(ran.text().contains("not measured  statuses"), "{}", ran.text());
    assert!(!ran.stderr.contains("has not ended") && !ran.stderr.contains("not deleted"), "{}", ran.stderr);
    clinic.nothing_is_left();
}

/// A server that has no list of files answered it with 405, and `doctor` measured nothing more.
#[test]
fn r10_18_a_call_that_the_server_does_not_have_is_not_measured() {
    for (lacks, open) in [
        ("GET /api/paas/v4/files?", &["deletion", "file_listed", "input_kept"][..]),
        ("GET /api/paas/v4/batches?", &["key", "list_input", "list_lag", "list_metadata", "list_order"]),
    ] {
        let clinic = Clinic::new(&[]);
        let base = crate::scripts::without_call(&clinic.server, lacks) + ROOT;
        let mut command = clinic.work.command(&["doctor", "--base-url", &base, "--poll-interval", "10ms", "--json"]);
        command.env("ZHIPUAI_API_KEY", KEY);
        let ran = Ran::of(command.output().expect("the program starts")).exits(0);
        let told: BTreeMap<String, Value> =
            ran.json_lines().into_iter().map(|it| (it["finding"].as_str().expect("a name").to_owned(), it)).collect();
        assert_eq!(told.len(), 17, "{told:#?}");
        assert_eq!(with(&told, "not measured"), open, "{told:#?}");
        assert_eq!(with(&told, "differs"), [""; 0]);
        assert!(measured(&told, open[0]).starts_with("the server does not have this call: "), "{told:#?}");
        clinic.nothing_is_left();
    }
}

/// A work directory was lost with its batches running: nobody could say which of the account's were its.
#[test]
fn r10_5c_orphans_are_what_no_directory_given_knows() {
    let setup = crate::jobs::Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--max-concurrent-tasks", "9"]).exits(0);
    // Batches and files of others, which are not ours.
    let line = "{\"custom_id\":\"abcdef_1\",\"method\":\"POST\",\"url\":\"/v4/chat/completions\",\
                \"body\":{\"model\":\"glm-4-air\",\"messages\":[]}}\n";
    let theirs = setup.server.upload(ROOT, line);
    setup.server.create(ROOT, &theirs);
    let lost = setup.server.upload_named(ROOT, "mood_vision_batch_part3.jsonl", "batch", line).json(200);
    let before = (setup.files("batch"), setup.server.ledger());
    let orphans = |args: &[&str]| {
        let base = setup.server.base.as_str();
        let mut command = setup.work.command(&[&["doctor", "--orphans", "--base-url", base], args].concat());
        Ran::of(command.env("ZHIPUAI_API_KEY", KEY).output().expect("the program starts"))
    };
    let ran = orphans(&["--json"]).exits(0);
    let told = ran.json_lines();
    let batches: Vec<&Value> = told.iter().filter(|it| it["orphan"] == "batch").collect();
    assert_eq!(batches.len(), 6, "{}", ran.text());
    let status = setup.status();
    for chunk in status["chunks"].as_array().expect("chunks") {
        let batch = batches.iter().find(|it| it["id"] == chunk["batch_id"]).expect("listed");
        assert!(batch["mark"].as_str().is_some_and(|mark| mark.ends_with(chunk["chunk"].as_str().expect("a name"))));
        assert_eq!(batch["files"][0], chunk["file_id"]);
    }
    let files: Vec<&Value> = told.iter().filter(|it| it["orphan"] == "file").collect();
    assert_eq!((files.len(), &files[0]["id"]), (1, &lost["id"]), "{}", ran.text());
    for told in [
        "nothing was deleted",
        "zbatch fetch --batch ID --base-url http://127.0.0.1:",
        "DELETE http://127.0.0.1:",
        "$ZHIPUAI_API_KEY",
    ] {
        assert!(ran.stderr.contains(told), "{told}: {}", ran.stderr);
    }
    // The directory that has them is there after all.
    let ran = orphans(&["-d", "w"]).exits(0);
    assert_eq!(ran.text().lines().count(), 1, "{}", ran.text());
    assert!(
        ran.text().starts_with("file   ") && ran.text().contains("mood_vision_batch_part3.jsonl"),
        "{}",
        ran.text()
    );
    orphans(&["-d", "nowhere"]).exits(65);
    assert_eq!((setup.files("batch"), setup.server.ledger()), before, "nothing was changed");
}

/// Three files that were deleted were said not to be.
#[test]
fn r11_9b_a_deletion_that_finds_no_file_is_done() {
    let clinic = Clinic::new(&["--fault", "gone_delete"]);
    let ran = clinic.run(&[]).exits(0);
    assert!(!ran.stderr.contains("is not deleted"), "{}", ran.stderr);
    clinic.nothing_is_left();
}
