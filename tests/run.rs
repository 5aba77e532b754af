//! `zbatch run`: the whole job against the embedded emulator, as a user runs it, killed, repeated and given bad input.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use zbatch::emulator::ledger;

use crate::{
    server::Server,
    workdir::{Ran, WorkDir, hears_signals, repository},
};

const FIELDS: [&str; 6] =
    ["sentiment_polarity", "sentiment_attribute", "topics", "publisher", "belief_signals", "publisher_decision"];

/// `count` posts of our own, one a line; some with images (by URL: there is no data dir here) and without places.
fn posts(count: usize) -> String {
    let text = zbatch::lines::input::read_small(&repository().join("data/posts.json"), 1 << 24).expect("our posts");
    let mut posts: Vec<Value> = serde_json::from_str(&text).expect("an array");
    for urls in posts.iter_mut().filter_map(|post| post["image_urls"].as_array_mut()) {
        urls.retain(|url| url.as_str().is_some_and(|url| url.starts_with("http")));
    }
    posts.iter().cycle().take(count).map(|post| format!("{post}\n")).collect()
}

/// The arguments of most runs here.
fn job<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", "--faults", "faults.jsonl"];
    args.extend(more);
    args
}

fn report(dir: &WorkDir, name: &str) -> Value {
    let mut report: Value = serde_json::from_str(&dir.read(name)).expect("JSON");
    report.as_object_mut().expect("an object").remove("times");
    report
}

/// One create for each content, and how many there were.
fn creates(dir: &WorkDir, work: &str) -> usize {
    let ledger = ledger::read(&dir.join(work).join("emulator")).expect("a ledger");
    for (content, count) in &ledger.by_content {
        assert_eq!(*count, 1, "{content} was paid for {count} times");
    }
    ledger.creates.len()
}

#[test]
fn posts_come_out_in_order_with_six_more_fields_and_their_own_bytes() {
    let dir = WorkDir::new();
    let odd = "{ \"id\" : 1e999,  \"content\":\"\\u597d\\n\\ud83d\\ude00 \\\"x\\\"\" , \"a\":{\"topics\":1} }\n";
    let input = format!("{odd}\r\n{}{{\"content\":\"last\",\"topics\":[]}}", posts(20));
    dir.write("posts.jsonl", &input);
    let ran = dir.run(&job(&[])).exits(0);
    assert_eq!(ran.text(), "", "stdout carries data only, and it went to a file");
    let out = dir.read("out.jsonl");
    let (inputs, outputs): (Vec<&str>, Vec<&str>) =
        (input.lines().filter(|line| !line.trim().is_empty()).collect(), out.lines().collect());
    assert_eq!((inputs.len(), outputs.len()), (22, 22));
    for (before, after) in inputs.iter().zip(&outputs).take(21) {
        let own = before.trim_end().strip_suffix('}').expect("an object");
        let added = after.strip_prefix(own).unwrap_or_else(|| panic!("{after}\nis not\n{own}\nand more"));
        assert!(
            added.starts_with(",\"sentiment_polarity\":") && added.contains(",\"publisher_decision\":\""),
            "{added}"
        );
    }
    let last: Value = serde_json::from_str(outputs[21]).expect("JSON");
    assert_eq!(last["content"], "last");
    for line in &outputs {
        // 1e999 is beyond serde_json's numbers: the fields are looked for as text.
        assert!(FIELDS.iter().all(|field| line.contains(&format!("\"{field}\":"))), "{line}");
    }
    let report = report(&dir, "w/integration_report.json");
    assert_eq!(report["integration_stats"]["total_posts"], 22);
    assert_eq!(report["batches"]["emulated"], true);
    for (_, of) in report["integration_stats"]["analyses"].as_object().expect("six") {
        assert_eq!(json!([of["rows"], of["answers"], of["processed_posts"]]), json!([22, 22, 22]));
    }
    assert_eq!(dir.read("faults.jsonl"), "");
    assert!(ran.stderr.contains("emulator"), "{}", ran.stderr);
    for snapshot in ["jsonl_files_info.json", "batch_results.json", "download_info.json"] {
        assert!(dir.exists(&format!("w/{snapshot}")), "{snapshot}");
    }
    assert_eq!(std::fs::read_dir(dir.join("w/requests")).expect("listed").count(), 0, "request files are gone");
}

#[test]
fn s1_a_second_run_does_nothing_new_and_writes_the_same() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(30));
    dir.run(&job(&["--max-lines", "7"])).exits(0);
    let (out, first, paid) = (dir.read("out.jsonl"), report(&dir, "w/integration_report.json"), creates(&dir, "w"));
    dir.run(&job(&["--max-lines", "7"])).exits(0);
    assert_eq!((dir.read("out.jsonl"), report(&dir, "w/integration_report.json")), (out, first));
    assert_eq!(creates(&dir, "w"), paid);
}

/// A write comes short and the next one is refused: one line, nothing half-visible, and then the same command finishes.
#[test]
fn s7_a_journal_that_may_not_grow_is_told_and_the_same_command_finishes() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(60));
    let more = ["--only", "sentiment_polarity", "--max-lines", "3", "--poll-interval", "20ms"];
    // No file grows over 9 KiB; the journal comes there first.
    let limited = "trap '' XFSZ; ulimit -f 18; exec \"$@\"";
    let program = dir.command(&job(&more));
    let mut through = Command::new("sh");
    through.args(["-c", limited, "sh"]).arg(program.get_program()).args(program.get_args());
    let ran = Ran::of(through.current_dir(dir.path()).output().expect("it starts")).exits(74);
    assert!(
        ran.stderr.ends_with("zbatch: append to w/journal.jsonl: File too large (os error 27)\n"),
        "{}",
        ran.stderr
    );
    assert!(!dir.exists("out.jsonl"), "nothing is half-visible");
    dir.run(&job(&more)).exits(0);
    assert_eq!(creates(&dir, "w"), 21);
    let golden = ["run", "posts.jsonl", "-o", "golden.jsonl", "-d", "g", "--emulate", "--only", "sentiment_polarity"];
    dir.run(&golden).exits(0);
    assert_eq!(dir.read("out.jsonl"), dir.read("golden.jsonl"));
}

/// What failed is asked for again; two rounds are one.
#[test]
fn a_second_round_asks_for_what_is_missing_and_equals_one_round_without_failures() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(200));
    let ran = dir.run(&job(&["--fault", "invalid=5%"])).exits(1);
    let first = report(&dir, "w/integration_report.json");
    let missing: u64 = first["integration_stats"]["analyses"]
        .as_object()
        .expect("six")
        .values()
        .map(|of| of["missing_posts"].as_u64().expect("a count"))
        .sum();
    assert!((20..120).contains(&missing), "about 5 % of 1200: {missing}");
    assert_eq!(dir.read("faults.jsonl").lines().count() as u64, missing);

    // The report ends with the one command to run next.
    let next = first["next_command"].as_str().expect("a command");
    assert!(ran.stderr.contains(next), "{}", ran.stderr);
    let words: Vec<&str> = next.split(' ').skip(1).collect();
    dir.run(&words).exits(0);
    let second: Value = serde_json::from_str(&dir.read("w-round2/integration_report.json")).expect("JSON");
    assert_eq!(second["batches"]["requests"], missing, "only what was missing is asked for");

    dir.run(&["run", "posts.jsonl", "-o", "one.jsonl", "-d", "one", "--emulate"]).exits(0);
    assert_eq!(dir.read("out.round2.jsonl"), dir.read("one.jsonl"));
}

/// The same through the filters and a pipe: the same posts, byte for byte.
#[test]
fn filters_and_jobs_give_what_run_gives() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(60));
    dir.run(&job(&[])).exits(0);
    let server = Server::start(&dir, &dir.join("server"), &[]);
    let remote = ["--base-url", &server.base, "--poll-interval", "20ms"];
    let run = |args: &[&str]| {
        let mut command = dir.command(args);
        if matches!(args[0], "submit" | "fetch") {
            command.args(remote).env("ZHIPUAI_API_KEY", "some.key");
        }
        Ran::of(command.output().expect("it starts")).exits(0)
    };
    run(&["gen", "-d", "work", "posts.jsonl", "--max-lines", "11"]);
    run(&["submit", "-d", "work"]);
    let results = run(&["fetch", "-d", "work", "-o", "-"]);
    let answers = dir.pipe(results.stdout, &["parse"]).exits(0);
    let enhanced = dir.pipe(answers.stdout, &["merge", "posts.jsonl", "-"]).exits(0);
    assert_eq!(enhanced.text(), dir.read("out.jsonl"));
    // Results in any order, from files: the same again.
    let mut files: Vec<String> = std::fs::read_dir(dir.join("work/results"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").path().display().to_string())
        .collect();
    files.sort_by_key(|name| name.len().wrapping_mul(name.bytes().map(usize::from).sum()) % 17);
    let names: Vec<&str> =
        ["parse", "-o", "answers.jsonl"].into_iter().chain(files.iter().map(String::as_str)).collect();
    dir.run(&names).exits(0);
    let enhanced = dir.run(&["merge", "posts.jsonl", "answers.jsonl"]).exits(0);
    assert_eq!(enhanced.text(), dir.read("out.jsonl"));
}

#[test]
fn stdin_is_kept_so_that_the_same_command_resumes_without_it() {
    let dir = WorkDir::new();
    let args = ["run", "-", "-o", "out.json", "-d", "w", "--emulate"];
    dir.pipe(posts(10), &args).exits(0);
    let out = dir.read("out.json");
    assert_eq!(serde_json::from_str::<Vec<Value>>(&out).expect("one array").len(), 10);
    dir.pipe("", &args).exits(0);
    dir.pipe(posts(10), &args).exits(0);
    assert_eq!((dir.read("out.json"), creates(&dir, "w")), (out, 6));
    let ran = dir.pipe(posts(9), &args).exits(65);
    assert!(ran.stderr.contains("other posts") && ran.stderr.contains("--new"), "{}", ran.stderr);
}

#[test]
fn the_output_may_name_the_input() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(10));
    let args = ["run", "posts.jsonl", "-o", "posts.jsonl", "-d", "w", "--emulate"];
    dir.run(&args).exits(0);
    let out = dir.read("posts.jsonl");
    assert_eq!(out.matches("\"publisher_decision\":").count(), 10);
    dir.run(&args).exits(0);
    assert_eq!(dir.read("posts.jsonl"), out);
}

#[test]
fn posts_and_output_have_the_old_defaults() {
    let dir = WorkDir::new();
    for file in ["topics.json", "sentiment_attributes.json", "publisher_objects.json"] {
        let text = zbatch::lines::input::read_small(&repository().join("data").join(file), 1 << 20).expect("ours");
        dir.write(&format!("data/{file}"), text);
    }
    let lines = posts(3);
    dir.write("data/posts.json", format!("[{}]", lines.trim_end().replace('\n', ",\n")));
    let ran = dir.run(&["run", "--emulate", "-d", "w"]).exits(0);
    let out: Vec<Value> = serde_json::from_str(&dir.read("enhanced_blogs.json")).expect("one array");
    assert!(out.iter().all(|post| post.get("publisher").is_some() && post.get("belief_signals").is_none()));
    assert!(ran.stderr.contains("believe_system_common.json"), "an optional file that is not there is named");
}

#[test]
fn s9_rows_balance_and_faults_are_sorted() {
    let dir = WorkDir::new();
    let input = format!("{}{{\"content\":null}}\nbroken{{\n{}", posts(60), posts(5));
    dir.write("posts.jsonl", input);
    let faults =
        ["blocked=4%", "missing=3%", "invalid=3%", "foreign=3%", "duplicate=3%", "length=2%", "null=2%", "torn=2%"];
    let more: Vec<&str> = faults.iter().flat_map(|fault| ["--fault", fault]).chain(["--max-lines", "50"]).collect();
    dir.run(&job(&more)).exits(1);
    let report = report(&dir, "w/integration_report.json");
    let mut asked = 0;
    for (name, of) in report["integration_stats"]["analyses"].as_object().expect("six") {
        let count = |kind: &str| of["faults"][kind]["count"].as_u64().unwrap_or_default();
        let rows = of["rows"].as_u64().expect("a count");
        asked += rows;
        let wrong: u64 =
            ["blocked", "absent", "not_accepted", "unreadable", "truncated", "empty"].map(count).iter().sum();
        assert_eq!(rows, of["answers"].as_u64().expect("a count") + wrong, "{name}: {of}");
        assert_eq!(count("bad_post"), 1, "the post without a text");
    }
    assert_eq!(asked, report["batches"]["requests"].as_u64().expect("a count"));
    let lines: Vec<Value> =
        dir.read("faults.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let indexes: Vec<u64> = lines.iter().filter_map(|line| line["index"].as_u64()).filter(|at| *at < 67).collect();
    assert!(indexes.is_sorted() && indexes.len() > 20, "{indexes:?}");
    let broken =
        lines.iter().find(|line| line["index"] == 61 && line.get("analysis").is_none()).expect("the broken line");
    assert_eq!((&broken["kind"], &broken["line"]), (&json!("bad_post"), &json!(62)));
    assert_eq!(dir.read("out.jsonl").lines().count(), 67);
}

#[test]
fn h1_a_foreign_row_touches_nobody() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(40));
    dir.run(&["run", "posts.jsonl", "-o", "clean.jsonl", "-d", "clean", "--emulate"]).exits(0);
    dir.run(&job(&["--fault", "foreign=20%", "--max-lines", "9"])).exits(1);
    assert_eq!(dir.read("out.jsonl"), dir.read("clean.jsonl"));
    assert!(dir.read("faults.jsonl").contains("\"kind\":\"foreign\""));
}

#[test]
fn m2_paid_rows_of_expired_batches_are_kept() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(40));
    let ran = dir.run(&job(&["--fault", "expired=50%", "--only", "sentiment_attribute"])).exits(1);
    let report = report(&dir, "w/integration_report.json");
    let of = &report["integration_stats"]["analyses"]["sentiment_attribute"];
    let (kept, absent) = (of["processed_posts"].as_u64(), of["faults"]["absent"]["count"].as_u64());
    assert!(kept > Some(5) && absent > Some(5) && kept.zip(absent).map(|(a, b)| a + b) == Some(40), "{of}");
    assert!(ran.stderr.contains("next: zbatch run --missing out.jsonl"), "{}", ran.stderr);
}

/// Another round would pay once more for rows that the provider still has.
#[test]
fn r3_what_came_short_is_not_asked_for_anew_before_it_is_fetched_again() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(40));
    let args = ["--only", "sentiment_attribute"];
    let ran = dir.run(&job(&[&args[..], &["--fault", "truncate"]].concat())).exits(1);
    let next =
        "next: the same command, which downloads again what came short; if rows stay absent: zbatch run --missing";
    assert!(ran.stderr.contains(next), "{}", ran.stderr);
    let ran = dir.run(&job(&args)).exits(0);
    assert!(!ran.stderr.contains("next: "), "{}", ran.stderr);
    assert_eq!(creates(&dir, "w"), 1);
}

#[test]
fn a_broken_array_costs_nothing_and_leaves_no_output() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "[{\"content\":\"a\"},\n{\"content\":\"b\"},\n{\"content\" \"c\"}]");
    let ran = dir.run(&job(&[])).exits(65);
    assert!(ran.stderr.contains("index 2, line 3, byte 35"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
    assert_eq!(creates(&dir, "w"), 0);
}

#[test]
fn s5_a_directory_belongs_to_one_input_and_configuration() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(10));
    dir.run(&job(&["--max-lines", "4"])).exits(0);
    let ran = dir.run(&job(&["--max-lines", "5"])).exits(65);
    assert!(ran.stderr.contains("`max_lines` is 4; now it is 5") && ran.stderr.contains("--new"), "{}", ran.stderr);
    let ran = dir.run(&job(&["--max-lines", "4", "--only", "topic_analysis"])).exits(65);
    assert!(ran.stderr.contains("analyses"), "{}", ran.stderr);
    let changed = dir.read("posts.jsonl").replacen("\"content\":\"", "\"content\":\"!", 1);
    dir.write("posts.jsonl", changed);
    let ran = dir.run(&job(&["--max-lines", "4"])).exits(65);
    assert!(ran.stderr.contains("_batch_part1") && ran.stderr.contains("not the one"), "{}", ran.stderr);
    dir.run(&job(&["--max-lines", "5", "--new"])).exits(0);
    assert!(dir.exists("w.old-1/journal.jsonl"));
}

#[test]
fn m3_a_cap_refuses_before_the_first_create() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(30));
    for cap in [["--max-batches", "7"], ["--max-requests", "179"]] {
        let ran = dir.run(&job(&cap)).exits(69);
        assert!(ran.stderr.contains(cap[0]), "{}", ran.stderr);
        assert_eq!(creates(&dir, "w"), 0);
    }
    dir.run(&job(&["--max-batches", "8", "--max-requests", "180"])).exits(0);
}

#[test]
fn a_refused_first_try_does_not_tie_the_directory_to_its_flags() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(10));
    dir.run(&job(&["--max-batches", "2"])).exits(69);
    dir.run(&job(&["--max-lines", "5"])).exits(0);
    assert!(!dir.exists("w.old-1"));
}

#[test]
fn no_wait_does_what_can_be_done_now_until_all_is_done() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(12));
    let mut rounds = 0;
    loop {
        let ran = dir.run(&job(&["--no-wait", "--max-lines", "6"]));
        rounds += 1;
        match ran.code {
            Some(75) => assert!(rounds < 100, "{}", ran.stderr),
            _ => break drop(ran.exits(0)),
        }
    }
    assert!(rounds > 3, "{rounds}");
    assert_eq!(dir.read("out.jsonl").matches("\"publisher_decision\":\"").count(), 12);
    creates(&dir, "w");
}

#[test]
fn a_timeout_leaves_the_batches_running_and_the_same_command_goes_on() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(5));
    let slow = |timeout| job(&["--fault", "slow=1ms", "--latency", "700ms", "--timeout", timeout]);
    let began = Instant::now();
    let ran = dir.run(&slow("300ms")).exits(75);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(ran.stderr.contains("run on: batch_") && ran.stderr.contains("to go on"), "{}", ran.stderr);
    dir.run(&slow("60s")).exits(0);
    creates(&dir, "w");
}

#[test]
fn m5_ctrl_c_names_the_batches_that_run_on() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let dir = WorkDir::new();
        dir.write("posts.jsonl", posts(5));
        let mut command = hears_signals(&dir.command(&job(&["--latency", "1500ms"])));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        wait_for(&dir.join("w/journal.jsonl"), "\"created\"");
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        let ran = Ran::of(child.wait_with_output().expect("it ends")).exits(code);
        assert!(ran.stderr.contains("run on: batch_") && ran.stderr.contains("to go on"), "{}", ran.stderr);
        assert!(!dir.exists("out.jsonl"));
        dir.run(&job(&["--latency", "1500ms"])).exits(0);
        creates(&dir, "w");
    }
}

fn wait_for(path: &Path, text: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if zbatch::lines::input::read_small(path, 1 << 24).is_ok_and(|journal| journal.contains(text)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} never held {text}", path.display());
}

#[test]
fn k1_without_a_key_it_says_how_to_set_one() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(1));
    let ran = dir.run(&["run", "posts.jsonl", "-o", "out.jsonl"]).exits(77);
    assert!(ran.stderr.contains("ZHIPUAI_API_KEY") && ran.stderr.contains("--key-file"), "{}", ran.stderr);
    assert!(!dir.exists("batch"), "nothing was begun");
}

#[test]
fn an_output_that_cannot_be_written_is_known_before_anything_is_paid() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(1));
    let ran = dir.run(&["run", "posts.jsonl", "-o", "nosuch/out.jsonl", "-d", "w", "--emulate"]).exits(74);
    assert!(ran.stderr.contains("nosuch/out.jsonl"), "{}", ran.stderr);
    assert!(!dir.exists("w"));
}

#[test]
fn compressed_in_and_out() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(6));
    dir.write("posts.zst", zstd::encode_all(posts(6).as_bytes(), 1).expect("packed"));
    dir.run(&job(&[])).exits(0);
    dir.run(&["run", "posts.zst", "-o", "out.jsonl.gz", "-d", "z", "--emulate"]).exits(0);
    let mut plain = String::new();
    let packed = std::fs::File::open(dir.join("out.jsonl.gz")).expect("it is there");
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut plain).expect("unpacked");
    assert_eq!(plain, dir.read("out.jsonl"));
}

#[test]
fn an_empty_input_gives_an_empty_output() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "\n \n");
    dir.run(&job(&[])).exits(0);
    assert_eq!((dir.read("out.jsonl").as_str(), creates(&dir, "w")), ("", 0));
}

#[test]
fn rows_that_will_not_get_better_are_left_out_of_the_next_round() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(60));
    let first = job(&["--fault", "blocked=10%", "--fault", "invalid=30%", "--only", "topic_analysis"]);
    dir.run(&first).exits(1);
    let faults = dir.read("faults.jsonl");
    let blocked = faults.lines().filter(|line| line.contains("\"blocked\"")).count();
    assert!(blocked > 0);
    let next = |path: &str| report(&dir, path)["next_command"].as_str().map(str::to_owned);
    let second = next("w/integration_report.json").expect("a command");
    let words: Vec<&str> = second.split(' ').skip(1).collect();

    // A round that fails in part again: the next one leaves out the rows of both.
    let again = [&words[..], &["--fault", "invalid=50%"]].concat();
    let ran = dir.run(&again).exits(1);
    assert!(ran.stderr.contains(&format!("{blocked} rows left out by --skip")), "{}", ran.stderr);
    let third = next("w-round2/integration_report.json").expect("a command");
    assert!(third.contains(" --skip faults.jsonl --skip faults.round2.jsonl "), "{third}");
    let words: Vec<&str> = third.split(' ').skip(1).collect();
    let ran = dir.run(&words).exits(0);
    assert!(ran.stderr.contains(&format!("{blocked} rows left out by --skip")), "{}", ran.stderr);

    // Only rows that will not get better are missing now: there is nothing to run next.
    let last = report(&dir, "w-round2-round2/integration_report.json");
    assert_eq!(last["integration_stats"]["analyses"]["topic_analysis"]["missing_posts"], blocked);
    assert_eq!(last.get("next_command"), None);
}

#[test]
fn what_went_down_a_pipe_has_a_name_that_the_next_command_leaves_open() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(20));
    let ran = dir.run(&["run", "posts.jsonl", "-o", "-", "-d", "w", "--emulate", "--fault", "invalid=50%"]).exits(1);
    assert_eq!(ran.text().lines().count(), 20);
    assert!(ran.stderr.contains("--missing ENHANCED -o ENHANCED.round2 -d w-round2"), "{}", ran.stderr);
}

#[test]
fn a_report_or_faults_file_that_cannot_be_written_is_told_before_anything_is_paid() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    for flag in ["--faults", "--report"] {
        let ran = dir.run(&["run", "posts.jsonl", "-o", "out", "-d", "work", "--emulate", flag, "none/x"]).exits(74);
        assert!(ran.stderr.contains("mkdir -p none"), "{flag}: {}", ran.stderr);
        assert!(!dir.exists("work"), "{flag}");
        dir.run(&["run", "posts.jsonl", "-o", "out", "-d", "work", "--emulate", flag, "posts.jsonl"]).exits(64);
        assert!(!dir.exists("work"), "{flag}");
    }
}

#[test]
fn a_work_directory_may_be_written_with_a_dot_or_a_slash() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(1));
    for name in ["w/.", "w/", "./w", "w"] {
        dir.run(&["run", "posts.jsonl", "-o", "out", "-d", name, "--emulate"]).exits(0);
    }
    assert_eq!(creates(&dir, "w"), dir.read("w/journal.jsonl").matches("\"event\":\"chunk\"").count());
}

/// Hours lie between the cutting and the writing.
#[test]
fn s5_posts_that_change_while_batches_run_get_no_answers_of_others() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(20));
    let slow = ["--only", "topic_analysis", "--fault", "slow=300ms"];
    let child = dir.command(&job(&slow)).stderr(Stdio::piped()).spawn().expect("it starts");
    wait_for(&dir.join("w/journal.jsonl"), "\"event\":\"intent\"");
    let before = posts(20);
    let mut lines: Vec<&str> = before.lines().collect();
    lines.swap(0, 1);
    dir.write("posts.jsonl", lines.join("\n"));
    let ran = Ran::of(child.wait_with_output().expect("it ends")).exits(65);
    assert!(ran.stderr.contains("posts have changed"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
    dir.write("posts.jsonl", before);
    dir.run(&job(&["--only", "topic_analysis"])).exits(0);
    assert_eq!(creates(&dir, "w"), 2, "nothing is paid for again");
}

/// The wrong posts are told at once, before anything more is paid for or waited for.
#[test]
fn s5_other_posts_cost_nothing_more() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(20));
    let more = ["--max-lines", "4", "--latency", "1h"];
    let first: Vec<&str> = job(&more).into_iter().chain(["--no-wait"]).collect();
    dir.run(&first).exits(75);
    let paid = creates(&dir, "w");
    for wrong in [posts(20).replacen("\"content\":\"", "\"content\":\"!", 1), String::new()] {
        dir.write("posts.jsonl", wrong);
        let ran = dir.run(&job(&more)).exits(65);
        assert!(ran.stderr.contains("not the one"), "{}", ran.stderr);
        assert_eq!(creates(&dir, "w"), paid);
    }
}

#[test]
fn s1_killed_while_the_posts_are_kept_it_asks_for_them_again() {
    let dir = WorkDir::new();
    let args = ["run", "-", "-o", "out.jsonl", "-d", "w", "--emulate"];
    let mut child = dir.command(&args).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for(&dir.join("w/journal.jsonl"), "start");
    child.kill().expect("killed");
    child.wait().expect("gone");
    let ran = dir.pipe("", &args).exits(65);
    assert!(ran.stderr.contains("pipe in the posts once more"), "{}", ran.stderr);
    assert!(!dir.exists("out.jsonl"));
    dir.pipe(posts(3), &args).exits(0);
    // The kept posts are lost: others do not take their place, the same do.
    std::fs::remove_file(dir.join("w/input.zst")).expect("removed");
    dir.pipe("", &args).exits(65);
    dir.pipe(posts(2), &args).exits(65);
    dir.pipe(posts(3), &args).exits(0);
    // So with their hash.
    std::fs::remove_file(dir.join("w/input.blake3")).expect("removed");
    dir.pipe(posts(2), &args).exits(65);
    dir.pipe(posts(3), &args).exits(0);
}

#[test]
fn m1_a_lost_journal_is_not_paid_for_again() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(5));
    dir.run(&job(&[])).exits(0);
    let paid = creates(&dir, "w");
    dir.write("w/journal.jsonl", "");
    for _ in 0..2 {
        let ran = dir.run(&job(&[])).exits(65);
        assert!(ran.stderr.contains("journal of w is gone"), "{}", ran.stderr);
        assert_eq!(creates(&dir, "w"), paid);
        std::fs::remove_file(dir.join("w/journal.jsonl")).expect("removed");
    }
    dir.run(&job(&["--new"])).exits(0);
    assert_eq!(creates(&dir, "w.old-1"), paid);
}

/// `rows/` was removed too: all was paid for again, without a word, beside the results that were there.
#[test]
fn r11_9a_a_lost_journal_is_noticed_by_any_file_of_a_chunk() {
    for gone in [&["rows"][..], &["rows", "requests"], &["rows", "results"], &["results", "requests"]] {
        let dir = WorkDir::new();
        dir.write("posts.jsonl", posts(5));
        dir.run(&job(&["--keep-remote"])).exits(0);
        dir.write("w/requests/publisher_decision_batch_part1.jsonl", "{}\n");
        let paid = creates(&dir, "w");
        std::fs::remove_file(dir.join("w/journal.jsonl")).expect("removed");
        gone.iter().for_each(|folder| std::fs::remove_dir_all(dir.join("w").join(folder)).expect("removed"));
        let ran = dir.run(&job(&[])).exits(65);
        assert!(ran.stderr.contains("journal of w is gone"), "without {gone:?}: {}", ran.stderr);
        assert_eq!(creates(&dir, "w"), paid);
    }
    // A folder of the user's own is no loss.
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(5)).write("w/results/mine.jsonl", "mine");
    dir.run(&job(&[])).exits(0);
}

#[test]
fn results_that_are_gone_are_downloaded_again_or_told() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(5));
    let result = "w/results/publisher_decision_batch_part1.output.jsonl";
    dir.run(&job(&["--keep-remote"])).exits(0);
    let (out, paid) = (dir.read("out.jsonl"), creates(&dir, "w"));
    std::fs::remove_file(dir.join(result)).expect("removed");
    dir.run(&job(&[])).exits(0);
    assert_eq!((dir.read("out.jsonl"), creates(&dir, "w")), (out, paid));
    // Now the provider's files are deleted.
    std::fs::remove_file(dir.join(result)).expect("removed");
    let ran = dir.run(&job(&["-q"])).exits(1);
    assert!(ran.stderr.contains(result) && ran.stderr.contains("is gone"), "{}", ran.stderr);
}

/// A full output was replaced by one with 120 nulls of 200 when the money ran out.
#[test]
fn r11_9c_an_output_is_never_replaced_while_rows_remain() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(20)).write("mine.jsonl.partial", "mine");
    let only = "--only=topic_analysis";
    dir.run(&["run", "posts.jsonl", "-o", "good.jsonl", "-d", "g", "--emulate", only]).exits(0);
    let good = dir.read("good.jsonl");
    for (round, (faults, flags, code)) in [
        (&["--latency", "10s"][..], &["--timeout", "4s"][..], 75),
        (&["--fault", "no_balance"], &[], 69),
        (&["--fault", "deny_create"], &[], 77),
    ]
    .into_iter()
    .enumerate()
    {
        let (work, state) = (format!("w{round}"), dir.join(&format!("state{round}")));
        let run = |server: &Server, out: &str, more: &[&str]| {
            let args =
                ["run", "posts.jsonl", "-o", out, "-d", &work, only, "--max-lines", "10", "--poll-interval", "10ms"];
            let mut command = dir.command(&[&args, more, &["--base-url", &server.base]].concat());
            Ran::of(command.env("ZHIPUAI_API_KEY", "some.key").output().expect("it starts"))
        };
        let server = Server::start(&dir, &state, &[]);
        run(&server, "good.jsonl", &["--no-wait", "--max-concurrent-tasks", "1"]).exits(75);
        server.kill();
        let server = Server::start(&dir, &state, faults);
        let ran = run(&server, "good.jsonl", &[flags, &["--max-concurrent-tasks", "1"]].concat()).exits(code);
        assert_eq!(dir.read("good.jsonl"), good, "{code}");
        let partial = dir.read("good.jsonl.partial");
        assert_eq!(partial.lines().count(), 20, "{code}");
        assert!(partial.contains("\"topics\":null") && partial.contains("\"topics\":["), "{code}: {partial}");
        let told =
            "rows remain: good.jsonl stays as it is until all are there; what is there now is in good.jsonl.partial";
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
        // Nothing pretends to be whole either.
        let ran = run(&server, "new.jsonl", &[flags, &["--max-concurrent-tasks", "1"]].concat());
        if ran.code == Some(code) {
            assert!(!dir.exists("new.jsonl") && dir.exists("new.jsonl.partial"), "{code}");
            assert!(ran.stderr.contains("new.jsonl appears when all are there"), "{}", ran.stderr);
        }
        server.kill();
        let server = Server::start(&dir, &state, &[]);
        for out in ["new.jsonl", "mine.jsonl"] {
            run(&server, out, &[]).exits(0);
            assert_eq!(dir.read(out), good, "{code}");
            std::fs::remove_file(dir.join(out)).expect("removed");
        }
        assert!(!dir.exists("new.jsonl.partial"), "{code}: it is of no use any more");
        assert_eq!(dir.read("mine.jsonl.partial"), "mine");
        server.kill();
        std::fs::remove_file(dir.join("good.jsonl.partial")).expect("removed");
    }
}

/// A results file was deleted by hand, and the next `run` wrote nulls over the answers that the output held.
#[test]
fn r11_9c_lost_results_do_not_empty_an_output_that_holds_them() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(20));
    let args = job(&["--only=topic_analysis", "--max-lines", "4"]);
    dir.run(&args).exits(0);
    let good = dir.read("out.jsonl");
    std::fs::remove_file(dir.join("w/results/topic_analysis_batch_part1.output.jsonl")).expect("removed");
    for _ in 0..2 {
        let ran = dir.run(&args).exits(1);
        assert_eq!(dir.read("out.jsonl"), good);
        assert_eq!(dir.read("out.jsonl.partial").matches("\"topics\":null").count(), 4);
        let told = "out.jsonl stays as it is, since it may hold rows whose results are lost now";
        assert!(ran.stderr.contains(told) && ran.stderr.contains("is in out.jsonl.partial"), "{}", ran.stderr);
    }
    // Who has moved it away wants the new one.
    std::fs::remove_file(dir.join("out.jsonl")).expect("removed");
    dir.run(&args).exits(1);
    assert_eq!(dir.read("out.jsonl"), dir.read("out.jsonl.partial"));
}
