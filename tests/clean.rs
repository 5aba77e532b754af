//! `clean`, and `status` of several directories: what is left after jobs, and where they stand.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use serde_json::{Value, json};

use crate::{
    jobs::Setup,
    workdir::{Ran, WorkDir},
};

const KEY: &str = "idididididid.secretsecretsecret";
const POLARITY: &str = "--only=sentiment_polarity";

fn clean(setup: &Setup, args: &[&str]) -> Ran {
    let all = [&["clean", "-d", "w", "--base-url", &setup.server.base], args].concat();
    let mut command = setup.work.command(&all);
    Ran::of(command.env("ZHIPUAI_API_KEY", KEY).output().expect("the program starts"))
}

/// Files that the provider keeps.
fn remote_files(setup: &Setup) -> usize {
    let listed = setup.server.get("/api/paas/v4/files?purpose=batch&limit=100");
    listed["data"].as_array().map_or(0, Vec::len)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn r11_9h_clean_refuses_while_something_may_come() {
    let setup = Setup::new(&["--latency", "60s"]);
    let ran = clean(&setup, &[]).exits(75);
    assert!(ran.stderr.contains("without a batch yet: 6 chunks; nothing is deleted"), "{}", ran.stderr);
    setup.run(&["submit", "--settle", "100ms", "--no-wait"]).exits(75);
    let ran = clean(&setup, &["--all"]).exits(75);
    assert!(ran.stderr.contains("3 batches may still run; nothing is deleted"), "{}", ran.stderr);
    assert!(setup.work.exists("w/journal.jsonl") && setup.work.exists("w/requests/topic_analysis_batch_part1.jsonl"));
}

/// Chunks that were cancelled before they had a batch hold nothing up.
#[test]
fn r11_9h_clean_after_cancel() {
    let setup = Setup::new(&["--latency", "60s"]);
    setup.run(&["submit", "--settle", "100ms", "--no-wait"]).exits(75);
    setup.run(&["cancel"]).exits(0);
    clean(&setup, &[]).exits(75);
    setup.run(&["fetch", "--timeout", "5s"]);
    // What `--resume` would create stays, so that the directory is still whole.
    clean(&setup, &[]).exits(0);
    setup.work.run(&["verify", "-d", "w"]).exits(0);
    clean(&setup, &["--all"]).exits(0);
    assert!(remote_files(&setup) == 0 && !setup.work.exists("w"));
}

#[test]
fn r11_9h_clean_removes_what_the_job_left_and_nothing_else() {
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch", "--keep-remote", "--keep-requests", "-o", "all.jsonl"]).exits(0);
    let all = setup.work.read("all.jsonl");
    setup.work.write("w/mine.txt", "mine").write("w/results/notes.txt", "mine").write("outside.jsonl", "mine");
    let before = remote_files(&setup);
    assert!(before >= 6, "{before} inputs are there");

    let ran = clean(&setup, &["--dry-run"]).exits(0);
    assert!(
        ran.text().contains("would delete at the provider: file ") && ran.text().contains("would remove w/requests/")
    );
    assert!(ran.stderr.contains("2 files are not this job's: w/mine.txt, w/results/notes.txt"), "{}", ran.stderr);
    assert!(setup.work.exists("w/requests/topic_analysis_batch_part1.jsonl"));
    assert_eq!(remote_files(&setup), before);

    // A directory that is not as it was written is left alone.
    let output = "w/results/topic_analysis_batch_part1.output.jsonl";
    let was = setup.work.read(output);
    setup.work.write(output, "other\n");
    clean(&setup, &[]).exits(65);
    assert_eq!(remote_files(&setup), before);
    setup.work.write(output, &was);

    clean(&setup, &[]).exits(0);
    assert_eq!(remote_files(&setup), 0);
    assert!(!setup.work.exists("w/requests/topic_analysis_batch_part1.jsonl"));
    assert!(clean(&setup, &[]).exits(0).text().is_empty(), "all is done");
    // The results are still there.
    setup.work.run(&["verify", "-d", "w"]).exits(0);
    setup.run(&["fetch", "-o", "again.jsonl"]).exits(0);
    assert!(sorted(&setup.work.read("again.jsonl")) == sorted(&all), "in the order of the chunks");

    clean(&setup, &["--compress"]).exits(0);
    assert!(!setup.work.exists("w/journal.jsonl") && !setup.work.exists("w/rows"));
    let parse = |file: &str| setup.work.run(&["parse", file]).exits(0).text().to_owned();
    assert!(sorted(&parse("w/results.jsonl.zst")) == sorted(&parse("all.jsonl")));
    for mine in ["w/mine.txt", "w/results/notes.txt", "outside.jsonl"] {
        assert_eq!(setup.work.read(mine), "mine");
    }
}

/// The same command after `clean --compress` paid for all of it again, without a word.
#[test]
fn r11_9h_what_was_cleaned_is_not_paid_again() {
    let work = WorkDir::new();
    work.write("posts.jsonl", "{\"content\":\"one\"}\n{\"content\":\"two\"}\n");
    let run =
        |more: &[&str]| work.run(&[&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate"], more].concat());
    run(&[]).exits(0);
    let paid = work.read("out.jsonl");
    work.run(&["clean", "-d", "w", "--compress"]).exits(0);
    let again = run(&[]).exits(65);
    assert!(again.stderr.contains("zbatch parse w/results.jsonl.zst | zbatch merge POSTS -"), "{}", again.stderr);
    let answers = work.run(&["parse", "w/results.jsonl.zst"]).exits(0).text().to_owned();
    work.write("answers.jsonl", answers);
    assert!(work.run(&["merge", "posts.jsonl", "answers.jsonl"]).exits(0).text() == paid, "the way that it names");
    run(&["--new"]).exits(0);
    assert!(work.exists("w.old-1/results.jsonl.zst"));
}

/// A batch that a copy of the directory made carries its mark, and no journal here names it.
#[test]
fn r11_9h_clean_deletes_what_carries_the_mark() {
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch", "--keep-remote"]).exits(0);
    let known = setup.work.read("w/journal.jsonl");
    // Forget one of the six: as if the journal came from a backup.
    let last = "topic_analysis_batch_part3";
    let rest: String = known.lines().filter(|line| !line.contains(last)).map(|line| format!("{line}\n")).collect();
    setup.work.write("w/journal.jsonl", rest);
    let ran = clean(&setup, &["--dry-run"]).exits(0);
    assert_eq!(ran.text().matches(" of batch batch_").count(), 2, "its input and its output: {}", ran.text());
    clean(&setup, &[]).exits(0);
    assert_eq!(remote_files(&setup), 0);
}

#[test]
fn r11_9h_clean_of_an_emulated_job_needs_no_key() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    let job = ["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", POLARITY];
    dir.run(&job).exits(0);
    let out = dir.read("out.jsonl");
    dir.run(&["clean", "-d", "w"]).exits(0);
    assert!(!dir.exists("w/emulator"));
    std::fs::remove_file(dir.join("out.jsonl")).expect("removed");
    dir.run(&job).exits(0);
    assert_eq!(dir.read("out.jsonl"), out, "the answers are still there");
    dir.run(&["clean", "-d", "w", "--all"]).exits(0);
    assert!(!dir.exists("w") && dir.exists("posts.jsonl") && dir.exists("out.jsonl"));
    dir.run(&["clean", "-d", "w"]).exits(65);
    dir.run(&["clean"]).exits(64);
}

#[test]
fn r11_9h_status_of_several_directories() {
    let setup = Setup::new(&["--fault", "blocked=20%"]);
    let dir = &setup.work;
    dir.run(&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "e", "--emulate", POLARITY]).exits(0);
    let ran = dir.run(&["status", "e", "-d", "w"]).exits(0);
    let lines: Vec<&str> = ran.text().lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.text());
    assert!(lines[0].starts_with("w: waiting, 0 of 6 chunks fetched, 0 of 24 rows; "), "{}", lines[0]);
    assert!(lines[1].starts_with("e: finished, 1 of 1 chunk fetched, 12 of 12 rows; "), "{}", lines[1]);
    assert!(lines.iter().all(|line| line.contains("last event ")) && !ran.text().contains("deletes"), "{}", ran.text());
    for (code, dirs) in [(0, vec!["e"]), (75, vec!["w"]), (75, vec!["e", "w"]), (65, vec!["w", "nowhere", "e"])] {
        dir.run(&[&["status", "--exit-code"], dirs.as_slice()].concat()).exits(code);
    }
    // One that cannot be read hides no other.
    let ran = dir.run(&["status", "--json", "e", "nowhere", "w"]).exits(65);
    let told = ran.json_lines();
    let names: Vec<&Value> = told.iter().map(|line| &line["work_dir"]).collect();
    assert_eq!(names, [&json!("e"), &json!("nowhere"), &json!("w")]);
    assert!(told[0]["chunks"].is_array() && told[1]["error"].is_string());
    assert_eq!((&told[0]["state"], &told[2]["state"]), (&json!("finished"), &json!("waiting")));
    assert!(told[2]["last_event_at"].as_u64() > Some(1_700_000_000));

    setup.submit();
    setup.run(&["fetch", "--keep-remote"]).exits(0);
    let ran = dir.run(&["status", "e", "w", "--exit-code"]).exits(1);
    assert!(
        ["29", "30"].iter().any(|days| ran.text().contains(&format!("deletes results in {days} days"))),
        "{}",
        ran.text()
    );
    dir.run(&["status", "-d", "w"]).exits(0);
    let until = setup.status()["results_kept_until"].as_u64();
    assert!(until > told[2]["last_event_at"].as_u64(), "{until:?}");
}

/// The fold of 20,000 chunks takes some 25 MiB; all of them as one JSON value took five times that.
#[test]
fn r11_9g_status_as_json_is_written_chunk_by_chunk() {
    const CHUNKS: usize = 20_000;
    let setup = Setup::new(&[]);
    let journal = setup.work.read("w/journal.jsonl");
    let start = journal.lines().next().expect("a start");
    let chunk = journal.lines().find(|line| line.contains("\"event\":\"chunk\"")).expect("a chunk");
    let mut chunk: Value = serde_json::from_str(chunk).expect("JSON");
    chunk.as_object_mut().expect("an object").remove("sum");
    let mut many = format!("{start}\n");
    for n in 1..=CHUNKS {
        let mut chunk = chunk.clone();
        let id = format!("sentiment_polarity_batch_part{n}");
        (chunk["path"], chunk["chunk"]) = (json!(format!("requests/{id}.jsonl")), json!(id));
        many += &format!("{chunk}\n");
    }
    setup.work.write("many/journal.jsonl", many);
    let inner = setup.work.command(&["status", "-d", "many", "--json"]);
    let mut command = std::process::Command::new("prlimit");
    command.arg("--data=67108864").arg(inner.get_program()).args(inner.get_args()).current_dir(setup.work.path());
    let ran = Ran::of(command.output().expect("prlimit starts")).exits(0);
    let status = &ran.json_lines()[0];
    assert_eq!(status["chunks"].as_array().map(Vec::len), Some(CHUNKS));
    assert_eq!(status["counts"]["cut"], json!(CHUNKS));
}
