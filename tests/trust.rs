//! Work directories that somebody else may have prepared, and those that were copied, moved or half removed: nothing in them is
//! obeyed, nothing outside of them is touched, and nothing is paid twice.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    jobs::Setup,
    workdir::{Ran, WorkDir},
};

/// All that is below a directory: names, and what files hold.
fn contents(dir: &Path) -> Vec<String> {
    let listed = Command::new("find").arg(dir).args(["-printf", "%P %y %m %l\n"]).output().expect("find runs");
    let sums = Command::new("find").arg(dir).args(["-type", "f", "-exec", "cksum", "{}", "+"]).output().expect("runs");
    let text = String::from_utf8([listed.stdout, sums.stdout].concat()).expect("UTF-8");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
}

fn shell(dir: &WorkDir, script: &str) {
    let status = Command::new("sh").current_dir(dir.path()).args(["-ec", script]).status();
    assert!(status.expect("sh runs").success(), "{script}");
}

/// The verbs that go on with a directory.
fn go_on(setup: &Setup) -> Vec<Ran> {
    let verbs = [&["submit"][..], &["fetch"], &["cancel"]];
    let mut ran: Vec<Ran> = verbs.iter().map(|args| setup.run(args)).collect();
    ran.push(setup.work.run(&["gen", "-d", "w", "posts.jsonl", "--max-lines", "4"]));
    ran.push(setup.work.run(&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate"]));
    ran
}

#[test]
fn r11_2_a_link_in_the_place_of_an_entry_is_refused() {
    let entries = [
        "requests",
        "rows",
        "results",
        "lock",
        "journal.jsonl",
        "input.zst",
        "input.blake3",
        "output.blake3",
        "emulator",
        "integration_report.json",
        "batch_results.json",
        "rows/topic_analysis_batch_part1.txt",
        "requests/topic_analysis_batch_part1.jsonl",
        "results/x",
    ];
    let setup = Setup::new(&[]);
    let work = &setup.work;
    for entry in entries {
        shell(work, "rm -rf elsewhere; cp -a w kept; mkdir elsewhere");
        let (from, to) = (work.join("w").join(entry), work.join("elsewhere/it"));
        if from.exists() {
            std::fs::rename(&from, &to).expect("moved");
        } else {
            work.write("elsewhere/it", "precious");
        }
        work.write("elsewhere/.x.part", "precious");
        symlink(&to, &from).expect("linked");
        let before = (contents(&work.join("elsewhere")), contents(&work.join("w")));
        for ran in go_on(&setup) {
            let ran = ran.exits(65);
            assert!(ran.stderr.contains(&format!("w/{entry} is a symbolic link")), "{entry}: {}", ran.stderr);
        }
        assert_eq!((contents(&work.join("elsewhere")), contents(&work.join("w"))), before, "{entry}");
        // These read, and follow no link either.
        for verb in ["status", "verify"] {
            work.run(&[verb, "-d", "w"]);
        }
        assert_eq!((contents(&work.join("elsewhere")), contents(&work.join("w"))), before, "{entry}");
        shell(work, "rm -rf w; mv kept w");
    }
    assert_eq!(setup.server.ledger()["by_content"], json!({}));
}

/// A link of the user's own that zbatch never touches is no danger, and neither is a link to the directory itself.
#[test]
fn r11_2_a_link_that_the_user_made_is_left_alone() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    shell(work, "mkdir disk; mv w disk/w; ln -s disk/w w; ln -s ../../posts.jsonl w/mine");
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    assert!(work.join("w").is_symlink() && work.join("w/mine").is_symlink());
    setup.paid_once();
}

#[test]
fn r11_2_a_directory_that_others_may_change_is_refused() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    for shared in [0o770, 0o702, 0o1777] {
        set_mode(&work.join("w"), shared);
        let before = contents(&work.join("w"));
        for ran in go_on(&setup) {
            let ran = ran.exits(65);
            assert!(ran.stderr.contains("fix: chmod go-w w\n"), "{}", ran.stderr);
        }
        assert_eq!(contents(&work.join("w")), before);
        // It may be looked at.
        work.run(&["status", "-d", "w"]).exits(0);
        work.run(&["verify", "-d", "w"]).exits(0);
    }
    shell(work, "chmod go-w w");
    setup.submit();
    setup.paid_once();
}

/// Somebody whose umask is 0002 has done nothing wrong.
#[test]
fn r11_2_an_empty_directory_of_a_group_is_closed_and_a_new_one_is_private() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"x\"}\n");
    shell(&dir, "umask 0002; mkdir shared");
    assert_eq!(mode(&dir.join("shared")), 0o775);
    for (name, then) in [("shared", 0o755), ("new/below", 0o700)] {
        dir.run(&["gen", "-d", name, "posts.jsonl"]).exits(0);
        assert_eq!(mode(&dir.join(name)), then);
        assert_eq!(mode(&dir.join(&format!("{name}/rows"))), 0o700);
        assert_eq!(mode(&dir.join(&format!("{name}/journal.jsonl"))), 0o600);
        dir.run(&["gen", "-d", name, "posts.jsonl"]).exits(0);
    }
}

/// Also where the directory itself was closed since.
#[test]
fn r11_2_an_entry_that_others_may_change_is_refused() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    for (entry, mode) in [("rows", 0o775), ("journal.jsonl", 0o664), ("requests", 0o702)] {
        shell(work, "chmod 755 w");
        set_mode(&work.join("w").join(entry), mode);
        for ran in go_on(&setup) {
            let ran = ran.exits(65);
            assert!(ran.stderr.contains(&format!("w/{entry} may be changed by other users")), "{}", ran.stderr);
            assert!(ran.stderr.contains("fix: chmod -R go-w w\n"), "{}", ran.stderr);
        }
        // Nobody else comes as far as that in a directory of 0700.
        shell(work, "chmod 700 w");
        setup.run(&["cancel"]).exits(0);
        shell(work, "chmod -R go-w w");
    }
}

/// Root may use a directory that another user made for it (a bind mount), and obeys nothing that this user put in it.
#[test]
fn r11_2_root_obeys_no_other_user() {
    let dir = WorkDir::new();
    if !rustix::process::geteuid().is_root() {
        crate::workdir::skipped("only root can give a directory away");
        return;
    }
    dir.write("posts.jsonl", "{\"content\":\"x\"}\n");
    shell(&dir, "umask 0002; mkdir w; chown 12345 w");
    dir.run(&["gen", "-d", "w", "posts.jsonl"]).exits(0);
    dir.run(&["gen", "-d", "w", "posts.jsonl"]).exits(0);
    shell(&dir, "chown -R 12345 w");
    let before = contents(&dir.join("w"));
    let ran = dir.run(&["gen", "-d", "w", "posts.jsonl"]).exits(65);
    assert!(ran.stderr.contains("belongs to another user (number 12345"), "{}", ran.stderr);
    assert!(ran.stderr.contains("sudo chown -R 0 w\n"), "{}", ran.stderr);
    assert_eq!(contents(&dir.join("w")), before);
    dir.run(&["status", "-d", "w"]).exits(0);
}

#[test]
fn r11_2_a_chunk_is_where_its_id_says() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    work.write("precious.jsonl", "mine");
    let journal = work.read("w/journal.jsonl");
    let lines: Vec<&str> = journal.lines().collect();
    let at = lines.iter().position(|line| line.contains(r#""event":"chunk""#)).expect("a chunk");
    for (key, bad) in [
        ("path", json!("../precious.jsonl")),
        ("path", json!("/etc/passwd")),
        ("path", json!("requests/../../precious.jsonl")),
        ("chunk", json!("../precious_batch_part1")),
        ("chunk", json!("a/b_batch_part1")),
        ("analysis", json!("other")),
    ] {
        let mut event: Value = serde_json::from_str(lines[at]).expect("an event");
        event[key] = bad;
        let hostile: String = lines
            .iter()
            .enumerate()
            .map(|(n, line)| if n == at { format!("{event}\n") } else { format!("{line}\n") })
            .collect();
        work.write_journal(&hostile);
        let told = format!("w/journal.jsonl, line {}, byte ", at + 1);
        for verb in [&["submit"][..], &["fetch"], &["cancel"]] {
            let ran = setup.run(verb).exits(65);
            assert!(ran.stderr.contains(&told), "{}", ran.stderr);
        }
        assert!(work.run(&["verify", "-d", "w"]).exits(65).text().contains(&told));
        assert!(work.run(&["status", "-d", "w"]).exits(65).stderr.contains(&told));
    }
    assert_eq!((work.read("precious.jsonl").as_str(), setup.files("batch")), ("mine", 0));
}

#[test]
fn r11_2_verify_advises_to_remove_nothing_and_quotes_what_it_advises() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.submit();
    setup.run(&["fetch", "--keep-remote", "--keep-requests"]).exits(0);
    shell(work, "mv w 'my $work'");
    work.write("my $work/requests/topic_analysis_batch_part1.jsonl", "mine now\n");
    std::fs::remove_file(work.join("my $work/results/topic_analysis_batch_part2.output.jsonl")).expect("removed");
    let ran = work.run(&["verify", "-d", "my $work"]).exits(65);
    assert!(!ran.text().contains("remove"), "{}", ran.text());
    let advice = "`zbatch fetch -d 'my $work' --again topic_analysis_batch_part2` downloads it again";
    assert!(ran.text().contains(advice), "{}", ran.text());
}

#[test]
fn r11_9a_a_copy_is_gone_on_with_only_when_the_user_says_so() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.run(&["submit", "--max-batches", "6", "--max-concurrent-tasks", "2", "--no-wait"]);
    let places = |journal: &str| journal.matches(r#"{"event":"place""#).count();
    assert_eq!(places(&work.read("w/journal.jsonl")), 1);
    shell(work, "cp -a w kept; mv w w.old; mv kept w");
    let journal = work.read("w/journal.jsonl");
    for verb in [&["submit"][..], &["fetch"], &["cancel"]] {
        let ran = setup.run(verb).exits(65);
        assert!(ran.stderr.contains("w was copied, restored or moved: its journal was file "), "{}", ran.stderr);
        assert!(ran.stderr.contains("add --moved to this command, once"), "{}", ran.stderr);
    }
    let ran =
        work.run(&["gen", "-d", "w", "posts.jsonl", "--only=sentiment_polarity,topic_analysis", "--max-lines", "4"]);
    assert!(ran.exits(65).stderr.contains("add --moved"));
    assert_eq!(work.read("w/journal.jsonl"), journal, "nothing is written");
    work.run(&["status", "-d", "w"]).exits(0);
    work.run(&["verify", "-d", "w"]).exits(0);
    let ran = setup.run(&["submit", "--moved"]).exits(0);
    assert!(ran.stderr.contains("next: zbatch fetch -d w ") && !ran.stderr.contains("--moved"), "{}", ran.stderr);
    assert_eq!(places(&work.read("w/journal.jsonl")), 2);
    setup.run(&["fetch"]).exits(0);
    setup.paid_once();
}

/// A container has another host name each time, and a device another number after a reboot: no copy, nothing is asked.
#[test]
fn r11_9a_another_host_or_device_alone_is_no_copy() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    for (key, value) in [("host", json!("a1b2c3")), ("device", json!(7)), ("folder", Value::Null)] {
        let change = |line: &str| {
            let mut event: Value = serde_json::from_str(line).expect("an event");
            if event["event"] == "place" {
                event[key] = value.clone();
            }
            event.to_string() + "\n"
        };
        let journal: String = work.read("w/journal.jsonl").lines().map(change).collect();
        work.write_journal(&journal);
        setup.run(&["fetch", "--no-wait"]).exits(75);
    }
    // A directory that keeps its files is moved without a word, too.
    shell(work, "mv w v; mkdir x; mv v x/w; mv x/w w");
    setup.submit();
    setup.paid_once();
    // A journal of before has no place; it gets one.
    let journal = work.read("w/journal.jsonl");
    let old: String = journal.lines().filter(|line| !line.contains("place")).map(|line| format!("{line}\n")).collect();
    work.write_journal(&old);
    setup.run(&["fetch"]).exits(0);
    assert!(work.read("w/journal.jsonl").contains(r#"{"event":"place""#));
}

#[test]
fn r11_9a_a_second_process_stays_out_though_the_lock_file_is_removed() {
    let setup = Setup::new(&["--latency", "3s"]);
    let work = &setup.work;
    setup.submit();
    let mut first = setup.spawn(&["fetch"]);
    wait_for(work, "w/lock", &format!("process {}\n", first.id()));
    let ran = setup.run(&["fetch"]).exits(75);
    assert!(ran.stderr.contains(&format!("w is in use by process {}", first.id())), "{}", ran.stderr);
    std::fs::remove_file(work.join("w/lock")).expect("removed");
    for _ in 0..2 {
        let ran = setup.run(&["fetch"]).exits(75);
        assert!(ran.stderr.contains("w is in use by another process"), "{}", ran.stderr);
    }
    assert!(first.wait().expect("it ends").success());
    setup.run(&["fetch"]).exits(0);
    setup.paid_once();
}

#[track_caller]
fn wait_for(work: &WorkDir, name: &str, text: &str) {
    let started = Instant::now();
    while !work.exists(name) || !work.read(name).contains(text) {
        assert!(started.elapsed() < Duration::from_secs(20), "{name} without {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is done to the directory of a process that is about to create more batches, and what that process says.
#[test]
fn r11_9a_nothing_is_created_in_a_directory_that_was_moved_or_lost_its_journal() {
    for script in
        ["mv w gone", "mv w gone; cp -a gone w", "rm w/journal.jsonl", "cp w/journal.jsonl j; mv j w/journal.jsonl"]
    {
        let setup = Setup::new(&["--latency", "1s"]);
        let work = &setup.work;
        let first = setup.spawn(&["submit", "--max-concurrent-tasks", "1"]);
        wait_for(work, "w/journal.jsonl", r#""event":"created""#);
        shell(work, script);
        let ran = Ran::of(first.wait_with_output().expect("it ends")).exits(75);
        assert!(
            ran.stderr.contains("w was moved, replaced or its journal removed while this process worked in it"),
            "{script}: {}",
            ran.stderr
        );
        let created = setup.server.ledger()["by_content"].as_object().expect("an object").len();
        assert!(created <= 2, "{script}: {created}");
    }
}

/// A journal of somebody else may be of any length, and hold anything: what is kept of it is bounded.
#[test]
fn r11_2_status_and_verify_take_little_memory_for_a_foreign_journal() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    let journal = work.read("w/journal.jsonl");
    let start = journal.lines().next().expect("a start");
    let line = journal.lines().find(|line| line.contains(r#""event":"chunk""#)).expect("a chunk");
    let line = line.split_once(",\"sum\"").expect("a sum").0.to_owned() + "}";
    let id = "sentiment_polarity_batch_part1";
    let chunk = |part: u32| line.replace(id, &format!("sentiment_polarity_batch_part{part}")) + "\n";
    assert_ne!(chunk(7), line.clone() + "\n");
    let mut many = format!("{start}\n");
    (1..200_002).for_each(|part| many += &chunk(part));
    work.write("many/journal.jsonl", many);
    // Two folds: that of the sound part, and what follows the damage.
    let ran = limited(work, 450, &["status", "-d", "many"]).exits(65);
    assert!(
        ran.stderr.contains("line 200002, byte ") && ran.stderr.contains("at most 200000 chunks"),
        "{}",
        ran.stderr
    );
    limited(work, 450, &["verify", "-d", "many"]).exits(65);
    // Sixty chunks whose batches give 70,000 reasons each.
    let mut wordy = format!("{start}\n");
    for part in 1..=60 {
        let id = format!("sentiment_polarity_batch_part{part}");
        wordy += &chunk(part);
        for event in [
            json!({"event": "uploaded", "chunk": id, "file_id": "f"}),
            json!({"event": "intent", "chunk": id, "file_id": "f", "attempt": 1, "blake3": ""}),
            json!({"event": "created", "chunk": id, "batch_id": "b"}),
            json!({"event": "ended", "chunk": id, "status": "failed", "total": 1, "completed": 1, "failed": 0,
                "errors": vec!["\u{1b}[31m why"; 55_000]}),
        ] {
            wordy += &(event.to_string() + "\n");
        }
    }
    assert!(wordy.len() > 50 << 20);
    work.write("wordy/journal.jsonl", wordy);
    let ran = limited(work, 60, &["status", "-d", "wordy"]).exits(0);
    assert!(ran.text().len() < 100_000 && !ran.text().contains('\u{1b}'));
    limited(work, 60, &["verify", "-d", "wordy"]).exits(65);
}

/// Runs with so many MiB of memory beside what the program takes to start.
fn limited(work: &WorkDir, mebibytes: u64, args: &[&str]) -> Ran {
    let program = work.command(args);
    let mut command = Command::new("sh");
    let script = format!("ulimit -d {}; exec \"$0\" \"$@\"", mebibytes << 10);
    command.current_dir(work.path()).args(["-c", &script]).arg(program.get_program()).args(args);
    Ran::of(command.output().expect("sh runs"))
}

const CUT: [&str; 7] =
    ["gen", "-d", "w", "posts.jsonl", "--only=sentiment_polarity,topic_analysis", "--max-lines", "4"];

/// Files of chunks, by name and sum.
fn files(work: &WorkDir) -> Vec<String> {
    ["requests", "rows"].into_iter().flat_map(|folder| contents(&work.join("w").join(folder))).collect()
}

#[test]
fn r11_9g_requests_that_were_removed_are_made_again() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    let (before, journal) = (files(work), work.read("w/journal.jsonl"));
    for script in ["rm -r w/requests", "rm -r w/requests w/rows", "rm w/requests/topic_analysis_batch_part2.jsonl"] {
        shell(work, script);
        let ran = setup.run(&["submit", "--no-wait", "--max-batches", "0"]);
        assert_ne!(ran.code, Some(0));
        let ran = work.run(&["verify", "-d", "w"]).exits(65);
        assert!(ran.text().contains("it is gone: the command that cut the chunk"), "{}", ran.text());
        let ran = work.run(&CUT).exits(0);
        assert!(ran.stderr.contains("were gone; they are made again from the input"), "{}", ran.stderr);
        assert_eq!(ran.text(), "", "nothing is cut anew");
        assert_eq!(files(work), before, "{script}");
        let now = work.read("w/journal.jsonl");
        let more = now.strip_prefix(&journal).expect("what it said before");
        assert!(more.starts_with("{\"event\":\"origin\",") && more.lines().count() == 1, "{more}");
    }
    // Where they cannot be made, the rest goes on, and the way is said.
    shell(work, "rm w/requests/topic_analysis_batch_part2.jsonl");
    let ran = setup.run(&["submit"]).exits(65);
    assert!(ran.stderr.contains("w/requests/topic_analysis_batch_part2.jsonl: it is gone"), "{}", ran.stderr);
    assert!(ran.stderr.contains("again with the same input"), "{}", ran.stderr);
    let posts = work.read("posts.jsonl");
    work.write("posts.jsonl", posts.replace("第9条", "第八条"));
    let ran = work.run(&CUT).exits(65);
    assert!(ran.stderr.contains("the input is not the one this work directory was made from"), "{}", ran.stderr);
    work.write("posts.jsonl", posts);
    work.run(&CUT).exits(0);
    setup.submit();
    // Once there are batches, only the rows are needed.
    shell(work, "rm -r w/requests w/rows");
    work.run(&CUT).exits(0);
    assert_eq!(contents(&work.join("w/requests")).iter().filter(|line| line.contains(".jsonl")).count(), 0);
    setup.run(&["fetch"]).exits(0);
    setup.paid_once();
    work.run(&["verify", "-d", "w"]).exits(0);
}

#[test]
fn r11_9g_a_chunk_that_is_not_made_again_as_it_was_is_refused() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    let hash = {
        let event = work.read("w/journal.jsonl");
        let event = event.lines().find(|line| line.contains("topic_analysis_batch_part2")).expect("a chunk").to_owned();
        serde_json::from_str::<Value>(&event).expect("JSON")["blake3"].as_str().expect("a hash").to_owned()
    };
    work.write_journal(&work.read("w/journal.jsonl").replace(&hash, &"0".repeat(64)));
    let journal = work.read("w/journal.jsonl");
    shell(work, "rm w/requests/topic_analysis_batch_part2.jsonl");
    let ran = work.run(&CUT).exits(65);
    assert!(ran.stderr.contains("no longer give the requests of topic_analysis_batch_part2"), "{}", ran.stderr);
    assert!(!work.exists("w/requests/topic_analysis_batch_part2.jsonl"));
    assert_eq!(work.read("w/journal.jsonl"), journal);
}

/// Two posts of twelve are bad, so that a chunk's rows have gaps and its first and last index do not tell them.
#[test]
fn r11_9g_rows_that_were_removed_are_made_again_and_running_batches_are_fetched() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    shell(work, "rm -r w; sed -i '3s/.*/5/; 10s/.*/6/' posts.jsonl");
    work.run(&CUT).exits(1);
    let before = files(work);
    assert!(work.read("w/rows/topic_analysis_batch_part1.txt").lines().count() > 1);
    setup.submit();
    // The requests tell.
    shell(work, "rm -r w/rows");
    setup.submit();
    let with_rows = |lines: &[String]| lines.iter().filter(|line| line.contains(".txt")).cloned().collect::<Vec<_>>();
    assert_eq!(with_rows(&files(work)), with_rows(&before));
    // Nothing here tells: the others are fetched, and the posts make them again.
    shell(work, "rm w/rows/topic_analysis_batch_part1.txt w/requests/topic_analysis_batch_part1.jsonl");
    let ran = setup.run(&["fetch", "--keep-requests"]).exits(65);
    assert!(ran.stderr.contains("w/rows/topic_analysis_batch_part1.txt: it is gone"), "{}", ran.stderr);
    let status = setup.status();
    assert!(status["counts"]["fetched"].as_u64() >= Some(4), "{status}");
    work.run(&CUT).exits(1);
    assert_eq!(with_rows(&files(work)), with_rows(&before));
    setup.run(&["fetch"]).exits(0);
    setup.server.ledger()["by_content"].as_object().expect("an object").values().for_each(|n| assert_eq!(*n, json!(1)));
}

#[test]
fn r11_9g_a_run_makes_again_what_was_removed_and_gives_the_same_output() {
    let setup = Setup::new(&["--latency", "200ms"]);
    let work = &setup.work;
    shell(work, "rm -r w");
    let run = ["run", "posts.jsonl", "-o", "out.jsonl", "--only=sentiment_polarity,topic_analysis", "--max-lines", "1"];
    setup.run(&[&run[..], &["--no-wait", "--settle", "1ms"]].concat()).exits(75);
    let counts = |status: Value| status["counts"].clone();
    assert!(counts(setup.status())["running"].as_u64() > Some(0), "{}", setup.status());
    shell(work, "rm -r w/requests w/rows");
    let ran = setup.run(&run).exits(0);
    assert!(ran.stderr.contains("were gone"), "{}", ran.stderr);
    assert_eq!(counts(setup.status())["fetched"], json!(24));
    // All rows are removed after the end, too.
    let output = work.read("out.jsonl");
    shell(work, "rm -r w/rows out.jsonl");
    setup.run(&run).exits(0);
    assert_eq!(work.read("out.jsonl"), output);
    let ledger = setup.server.ledger();
    assert_eq!(ledger["by_content"].as_object().expect("an object").len(), 24);
    ledger["by_content"].as_object().expect("an object").values().for_each(|n| assert_eq!(*n, json!(1)));
}

#[test]
fn r11_9g_without_the_posts_it_is_said_what_can_still_be_done() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.submit();
    std::fs::remove_file(work.join("posts.jsonl")).expect("removed");
    let ran = setup.run(&["run", "posts.jsonl", "-o", "out.jsonl"]).exits(65);
    assert!(ran.stderr.contains("cannot open posts.jsonl"), "{}", ran.stderr);
    assert!(ran.stderr.contains("`zbatch fetch -d w -o results.jsonl` still fetches"), "{}", ran.stderr);
    setup.run(&["fetch", "-o", "results.jsonl"]).exits(0);
    assert_eq!(work.read("results.jsonl").lines().count(), 24);
}
