//! A long job as its operator meets it: a model that is retired, `--new` and `cancel` while batches live, a byte of the journal
//! that was flipped, a server that is gone, and what a program that reads stderr is told. The emulator is the accountant.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    jobs::Setup,
    server::Server,
    workdir::{Ran, WorkDir, hears_signals},
};

const ONE: &str = "--only=sentiment_polarity";
const KEY: &str = "idididididid.secretsecretsecret";

fn creates(server: &Server) -> usize {
    server.ledger()["creates"].as_array().expect("a list").len()
}

/// A directory with `count` posts, what must come of them in `golden.jsonl`, and a server.
struct Job {
    dir: WorkDir,
    server: Server,
}

impl Job {
    fn new(count: usize, emulator: &[&str]) -> Self {
        let dir = WorkDir::new();
        let posts: String = (0..count).map(|n| json!({"content": format!("post {n}")}).to_string() + "\n").collect();
        dir.write("posts.jsonl", posts);
        dir.run(&["run", "posts.jsonl", ONE, "-o", "golden.jsonl", "-d", "g", "--emulate"]).exits(0);
        let server = Server::start(&dir, &dir.join("state"), emulator);
        Self { dir, server }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.dir.command(args);
        command.args(["--base-url", &self.server.base, "--poll-interval", "10ms"]).env("ZHIPUAI_API_KEY", KEY);
        command
    }

    fn call(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the program starts"))
    }

    /// Two rows a chunk.
    fn run(&self, more: &[&str]) -> Ran {
        let job = ["run", "posts.jsonl", ONE, "-o", "out.jsonl", "-d", "w", "--max-lines", "2", "--settle", "100ms"];
        self.call(&[&job[..], more].concat())
    }

    #[track_caller]
    fn paid_once(&self, batches: usize) {
        let ledger = self.server.ledger();
        let by_content = ledger["by_content"].as_object().expect("an object");
        assert!(by_content.values().all(|count| *count == 1), "{ledger}");
        assert_eq!(by_content.len(), batches, "{ledger}");
    }
}

// ---- 9e

/// It went with a message that named the file, and `--new`, which left two batches and paid for all again.
#[test]
fn r11_9e_new_refuses_while_batches_live_and_says_what_it_costs() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--no-wait"]).exits(75);
    assert_eq!(creates(&setup.server), 3);
    let journal = setup.work.read("w/journal.jsonl");
    let again = ["gen", "-d", "w", "posts.jsonl", ONE, "--max-lines", "4", "--new"];
    let ran = setup.work.run(&again).exits(75);
    assert!(ran.stderr.contains("3 batches would run on"), "{}", ran.stderr);
    assert!(ran.stderr.contains("zbatch cancel -d w") && ran.stderr.contains("mv w w.left"), "{}", ran.stderr);
    assert!(!setup.work.exists("w.old-1") && setup.work.read("w/journal.jsonl") == journal);
    // As it says.
    setup.run(&["cancel"]).exits(0);
    setup.run(&["fetch"]).exits(75);
    setup.work.run(&again).exits(0);
    assert!(setup.work.exists("w.old-1"));
}

/// What was fetched is paid for too: it is said, and the user's to decide.
#[test]
fn r11_9e_new_says_what_it_pays_again() {
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    let ran = setup.work.run(&["gen", "-d", "w", "posts.jsonl", ONE, "--max-lines", "4", "--new"]).exits(0);
    assert!(ran.stderr.contains("24 fetched rows of w will be paid for again"), "{}", ran.stderr);
    assert!(setup.work.exists("w.old-1"));
}

/// With `-d .` the old contents were gone on with, under their new name.
#[test]
fn r11_9e_new_does_not_move_the_current_directory_away() {
    let setup = Setup::new(&[]);
    let mut command = setup.work.command(&["gen", "-d", ".", "../posts.jsonl", ONE, "--max-lines", "4", "--new"]);
    command.current_dir(setup.work.join("w"));
    let ran = Ran::of(command.output().expect("it starts")).exits(64);
    assert!(ran.stderr.contains("it is the current directory"), "{}", ran.stderr);
    assert!(setup.work.exists("w/journal.jsonl") && !setup.work.exists("w.old-1"));
}

/// `cancel`, and the next `submit` of a cron job made all batches anew.
#[test]
fn r11_9e_cancel_holds_until_resume() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--no-wait"]).exits(75);
    let ran = setup.run(&["cancel"]).exits(0);
    assert!(ran.stderr.contains("asked to cancel: 3 batches") && ran.stderr.contains("--resume"), "{}", ran.stderr);
    let setup = setup.restart(&[]);
    setup.run(&["fetch", "--timeout", "5s"]).exits(75);
    for _ in 0..2 {
        let ran = setup.run(&["submit"]).exits(75);
        assert!(ran.stderr.contains("the job was cancelled") && ran.stderr.contains("--resume"), "{}", ran.stderr);
    }
    let shown = setup.work.run(&["status", "-d", "w"]);
    assert!(shown.text().contains("cancelled: no batch is created"), "{}", shown.text());
    assert_eq!(creates(&setup.server), 3);
    setup.run(&["submit", "--resume"]).exits(0);
    setup.paid_once();
    // It is over: nothing more to be said.
    setup.run(&["submit"]).exits(0);
    assert!(setup.run(&["cancel"]).exits(0).stderr.contains("asked to cancel"));
}

#[test]
fn r11_9e_a_cancelled_run_gives_what_was_finished_and_creates_nothing() {
    let job = Job::new(8, &[]);
    let mut creates_before = 0;
    // One batch at a time: some are done, others not yet made.
    for _ in 0..3 {
        job.run(&["--no-wait", "--max-concurrent-tasks", "1"]).exits(75);
        creates_before = creates(&job.server);
    }
    assert!((1..4).contains(&creates_before), "{creates_before}");
    job.call(&["cancel", "-d", "w"]).exits(0);
    for _ in 0..2 {
        let ran = job.run(&[]).exits(75);
        assert!(ran.stderr.contains("the same command with --resume"), "{}", ran.stderr);
        assert_eq!(creates(&job.server), creates_before);
    }
    job.run(&["--resume"]);
    job.run(&[]);
    assert!(creates(&job.server) >= 4);
    job.paid_once(4);
}

/// An older version kept no faults of the cut. Then the posts are rendered once more, and nothing else is different.
#[test]
fn a_cancelled_job_without_the_faults_of_its_cut_gives_the_same() {
    let job = Job::new(8, &[]);
    let bad = "{\"content\":5}\nnonsense\n{\"other\":1}\n";
    job.dir.write("posts.jsonl", job.dir.read("posts.jsonl") + bad);
    for _ in 0..3 {
        job.run(&["--no-wait", "--max-concurrent-tasks", "1"]).exits(75);
    }
    job.call(&["cancel", "-d", "w"]).exits(0);
    assert!(job.dir.read("w/journal.jsonl").contains("\"event\":\"posts\""), "the cut came to its end");
    let join = || {
        job.run(&["--faults", "f.jsonl", "--report", "r.json"]).exits(75);
        let mut report: Value = serde_json::from_str(&job.dir.read("r.json")).expect("JSON");
        report.as_object_mut().expect("an object").remove("times");
        (job.dir.read("f.jsonl"), report, job.dir.read("w/faults.jsonl"))
    };
    let before = join();
    assert_eq!(before.0.lines().count(), 3, "{}", before.0);
    std::fs::remove_file(job.dir.join("w/faults.jsonl")).expect("removed");
    assert_eq!(join(), before);
    // Lines that zbatch did not write are refused; what remains of the batches has the last word.
    job.dir.write("w/faults.jsonl", "nonsense\n");
    let ran = job.run(&[]).exits(75);
    assert!(ran.stderr.contains("faults.jsonl: line 1"), "{}", ran.stderr);
}

/// Each line in turn, of a job that is half done: what follows is known to the provider and to the directory.
#[test]
fn r11_9e_a_flipped_byte_is_repaired_from_the_providers_list() {
    for (nth, of) in [(1, 8), (2, 8), (4, 8), (6, 8), (8, 8)] {
        let job = Job::new(8, &[]);
        while !job.dir.exists("w/journal.jsonl") || !job.dir.read("w/journal.jsonl").contains("\"cleaned\"") {
            job.run(&["--no-wait", "--max-concurrent-tasks", "2"]);
        }
        let journal = job.dir.read("w/journal.jsonl");
        let lines: Vec<&str> = journal.lines().collect();
        // Never the first, which names the job.
        let at = ((lines.len() - 1) * nth / of).max(1);
        let flipped: String = lines
            .iter()
            .enumerate()
            .map(|(line, text)| if line == at { text.replacen("\"event\"", "\"evenu\"", 1) } else { (*text).to_owned() } + "\n")
            .collect();
        job.dir.write("w/journal.jsonl", &flipped);
        for more in [&[][..], &["--new"]] {
            let ran = job.run(more).exits(65);
            let line = format!("journal.jsonl, line {}, byte ", at + 1);
            assert!(ran.stderr.contains(&line), "{}", ran.stderr);
            assert!(
                ran.stderr.contains("zbatch verify --repair -d w") && ran.stderr.contains("would pay for"),
                "{}",
                ran.stderr
            );
            assert_eq!(job.dir.read("w/journal.jsonl"), flipped, "nothing was touched");
        }
        let seen = job.dir.run(&["verify", "-d", "w"]).exits(65);
        let told = String::from_utf8_lossy(&seen.stdout);
        assert_eq!(told.lines().count(), 1, "no file is blamed for lines that were not read: {told}");
        let ran = job.dir.run(&["verify", "-d", "w", "--repair"]);
        assert!(ran.stderr.contains("journal.jsonl.bad-1"), "{}", ran.stderr);
        let now = job.dir.read("w/journal.jsonl");
        let (sound, repaired) =
            now.trim_end().rsplit_once('\n').map(|(sound, last)| (format!("{sound}\n"), last)).expect("lines");
        assert!(repaired.starts_with("{\"event\":\"repaired\""), "it says so: {repaired}");
        assert_eq!(format!("{sound}{}", job.dir.read("w/journal.jsonl.bad-1")), flipped, "nothing is lost");
        let began = Instant::now();
        job.run(&[]).exits(0);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert_eq!(job.dir.read("out.jsonl"), job.dir.read("golden.jsonl"), "line {at}");
        job.paid_once(4);
        job.dir.run(&["verify", "-d", "w"]).exits(0);
        assert!(job.dir.run(&["verify", "-d", "w", "--repair"]).exits(0).stderr.contains("nothing was changed"));
    }
}

/// Of 43 single bytes that were changed, 16 were not noticed: they stood inside a value.
#[test]
fn r11_9e_a_byte_that_is_changed_inside_a_value_is_noticed() {
    let job = Job::new(2, &[]);
    job.run(&[]).exits(0);
    let journal = job.dir.read("w/journal.jsonl");
    for (at, line) in journal.lines().enumerate() {
        // The first digit of the line: of an id, a hash, a count.
        let digit = line.chars().find(char::is_ascii_digit).expect("each line has its sum, at least");
        let other = if digit == '7' { "3" } else { "7" };
        let changed = line.replacen(digit, other, 1);
        job.dir.write("w/journal.jsonl", journal.replacen(line, &changed, 1));
        let ran = job.dir.run(&["verify", "-d", "w"]).exits(65);
        let told = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(told.contains(&format!("journal.jsonl, line {}, byte ", at + 1)), "{changed}: {told}");
    }
    // Earlier versions wrote no sums.
    let old: String =
        journal.lines().map(|line| line.rsplit_once(",\"sum\"").expect("a sum").0.to_owned() + "}\n").collect();
    job.dir.write("w/journal.jsonl", old);
    job.dir.run(&["verify", "-d", "w"]).exits(0);
    job.run(&[]).exits(0);
}

#[test]
fn r11_9e_a_first_line_that_is_damaged_is_no_case_for_repair() {
    let job = Job::new(4, &[]);
    job.run(&[]).exits(0);
    let journal = job.dir.read("w/journal.jsonl").replacen("\"event\"", "\"evenu\"", 1);
    job.dir.write("w/journal.jsonl", &journal);
    let ran = job.dir.run(&["verify", "-d", "w", "--repair"]).exits(65);
    assert!(ran.stderr.contains("line 1, byte 0") && ran.stderr.contains("backup"), "{}", ran.stderr);
    assert!(job.dir.read("w/journal.jsonl") == journal && !job.dir.exists("w/journal.jsonl.bad-1"));
}

// ---- 9f

#[test]
fn r11_9f_patience_ends_a_wait_for_a_server_that_is_gone() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--no-wait"]).exits(75);
    let Setup { work, server } = setup;
    let base = server.base.clone();
    server.kill();
    let began = Instant::now();
    let mut command = work.command(&["fetch", "-d", "w", "--base-url", &base, "--poll-interval", "10ms"]);
    let ran = Ran::of(command.args(["--patience", "1s"]).env("ZHIPUAI_API_KEY", KEY).output().expect("it starts"));
    assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
    let ran = ran.exits(69);
    assert!(ran.stderr.contains("these batches run on"), "{}", ran.stderr);
}

/// None in 130 s.
#[cfg(feature = "drill")]
#[test]
fn r11_9f_a_job_that_waits_says_that_it_goes_on() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--no-wait"]).exits(75);
    for (shown, said) in [("plain", "0 of 24 rows done"), ("json", "\"event\":\"heartbeat\""), ("none", "")] {
        let mut command = setup.command(&["fetch", "--timeout", "1500ms", "--progress", shown]);
        let ran = Ran::of(command.env("ZBATCH_HEARTBEAT", "300ms").output().expect("it starts")).exits(75);
        let beats: Vec<&str> = ran.stderr.lines().filter(|line| !said.is_empty() && line.contains(said)).collect();
        assert_eq!(beats.len() >= 2, shown != "none", "{shown}: {}", ran.stderr);
        match shown {
            "plain" => {
                let whole = "6 chunks: 3 waiting, 3 running, 0 ended, 0 fetched; nothing has changed for ";
                assert!(beats[0].contains(whole) && beats[0].contains("next look in "), "{}", beats[0]);
            }
            "json" => {
                let beat: Value = serde_json::from_str(beats[0]).expect("JSON");
                let told = [&beat["rows"], &beat["rows_done"], &beat["running"], &beat["waiting"], &beat["chunks"]];
                assert_eq!(told, [&json!(24), &json!(0), &json!(3), &json!(3), &json!(6)], "{beat}");
                assert!(beat["next_poll_seconds"].is_u64() && beat["unchanged_seconds"].is_u64(), "{beat}");
                assert_eq!(beat["waits"], json!([]));
            }
            _ => assert!(!ran.stderr.contains("rows done"), "{}", ran.stderr),
        }
    }
}

/// Every line of stderr, with its time and directory; the last one has the exit code.
#[track_caller]
fn is_json_only(ran: &Ran, dir: Option<&WorkDir>) {
    let dir = dir.map(|dir| json!(dir.join("w").display().to_string())).unwrap_or_default();
    let mut last = Value::Null;
    for line in ran.stderr.lines() {
        last = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}\n{}", ran.stderr));
        let time = last["time"].as_str().unwrap_or_default();
        assert!(time.len() >= 20 && time.ends_with('Z'), "{line}");
        assert_eq!(last["dir"], dir, "{line}");
        assert!(last["event"].is_string(), "{line}");
    }
    assert_eq!(last["exit_code"], json!(ran.code), "{}", ran.stderr);
}

/// Announcements, notes, the table at the end and errors were plain text between the JSON.
#[test]
fn r11_9f_progress_json_is_json_only() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\\u001b[31m\"}\nno post\n");
    dir.write("old.json", "{\"batch\":{\"model\":\"glm-4-air\",\"task_timeout\":3600}}");
    let run = ["run", "posts.jsonl", ONE, "-d", "w", "-o", "out.jsonl", "--emulate", "--progress", "json"];
    let with = |more: &[&str]| dir.run(&[&run[..], more].concat());
    // The way through, with a fault; the second has nothing to do.
    for more in [&[][..], &["-vv"], &["-q"], &["--report", "r.json", "--faults", "f.jsonl"]] {
        let ran = with(more).exits(1);
        is_json_only(&ran, Some(&dir));
        assert!(more.contains(&"-q") || ran.stderr.contains("integration_report") || ran.stderr.contains("r.json"));
    }
    // What stops it: a flag alone, a file that is not there, another configuration, a config that is wrong.
    is_json_only(&with(&["--max-lines", "7"]).exits(65), Some(&dir));
    is_json_only(&with(&["--upstream", "nonsense"]).exits(64), Some(&dir));
    is_json_only(&with(&["--data-dir", "nowhere"]).exits(65), Some(&dir));
    is_json_only(&with(&["--config", "none.json"]).exits(65), Some(&dir));
    let args = ["run", "none.jsonl", ONE, "-d", "w", "-o", "out.jsonl", "--latency", "1s", "--progress=json"];
    is_json_only(&dir.run(&args).exits(64), Some(&dir));
    // Before the command line is understood there is no directory.
    is_json_only(&with(&["--nonsense"]).exits(64), None);
    is_json_only(&dir.run(&["--progress", "json"]).exits(64), None);
    is_json_only(&dir.run(&["gen", "none.jsonl", "--progress", "json"]).exits(65), None);
    for verb in ["status", "verify", "submit", "fetch", "cancel"] {
        is_json_only(&dir.run(&[verb, "-d", "w", "--progress", "json"]), Some(&dir));
    }
    let from_config = ["submit", "--config", "old.json", "--progress", "json"];
    let ran = dir.run(&from_config);
    for line in ran.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(line["dir"].as_str().is_some_and(|there| there.starts_with('/')), "{line}");
    }
}

#[test]
fn r11_9f_progress_json_tells_of_a_signal_and_of_a_server_that_refuses() {
    let setup = Setup::new(&["--latency", "60s", "--fault", "rate_limit=2"]);
    is_json_only(&setup.run(&["submit", "--no-wait", "--progress", "json", "-vv"]).exits(75), Some(&setup.work));
    let mut command = hears_signals(&setup.command(&["fetch", "--progress", "json"]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(700));
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not 0");
    kill_process(pid, Signal::TERM).expect("sent");
    let ran = Ran::of(child.wait_with_output().expect("ended")).exits(143);
    is_json_only(&ran, Some(&setup.work));
    assert!(ran.stderr.contains("these batches run on"), "{}", ran.stderr);
}
