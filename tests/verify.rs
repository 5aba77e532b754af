//! `verify`: one line for each thing that is not as the journal says, and none when all is.

use std::process::Child;

use crate::{jobs::Setup, workdir::WorkDir};

const ONE: &str = "w/requests/topic_analysis_batch_part1.jsonl";
const ROWS: &str = "w/rows/topic_analysis_batch_part1.txt";
const OUTPUT: &str = "w/results/topic_analysis_batch_part1.output.jsonl";
const ERRORS: &str = "w/results/topic_analysis_batch_part1.error.jsonl";

/// Nothing is wrong, nothing is noted, and stdout is empty.
#[track_caller]
fn is_sound(work: &WorkDir, says: &str) {
    let ran = work.run(&["verify", "-d", "w"]).exits(0);
    assert_eq!((ran.text(), ran.stderr.lines().count()), ("", 1), "{}", ran.stderr);
    assert!(ran.stderr.contains(says) && ran.stderr.contains("all is as the journal says"), "{}", ran.stderr);
}

/// With `name` changed to `contents` (`None`: gone) this one line is told; then it is put back.
#[track_caller]
fn finds(work: &WorkDir, name: &str, contents: Option<&str>, line: &str) {
    let was = work.exists(name).then(|| work.read(name));
    let remove = || std::fs::remove_file(work.join(name)).expect("removed");
    match contents {
        Some(contents) => drop(work.write(name, contents)),
        None => remove(),
    }
    let before = work.read("w/journal.jsonl");
    let ran = work.run(&["verify", "-d", "w"]).exits(65);
    assert_eq!(ran.text().lines().count(), 1, "{}", ran.text());
    assert!(ran.text().starts_with(line), "{}\nnot {line}", ran.text());
    assert!(ran.stderr.ends_with("1 problem\n"), "{}", ran.stderr);
    assert_eq!(work.read("w/journal.jsonl"), before, "nothing is written");
    match was {
        Some(was) => drop(work.write(name, was)),
        None => remove(),
    }
}

/// The text with its tenth byte from the end changed, and no other.
fn flip(text: &str) -> String {
    let (head, tail) = text.split_at(text.len() - 10);
    let (one, tail) = tail.split_at(1);
    format!("{head}{}{tail}", if one == "x" { "y" } else { "x" })
}

#[test]
fn a_sound_directory_at_each_step() {
    let setup = Setup::new(&["--fault", "blocked=20%"]);
    is_sound(&setup.work, "w: 6 chunks, 0 of them fetched: 0 results, 0 errors, 0 absent rows; 6 files, ");
    setup.submit();
    is_sound(&setup.work, "6 chunks, 0 of them fetched");
    setup.run(&["fetch", "--keep-requests"]).exits(0);
    is_sound(&setup.work, "6 chunks, 6 of them fetched: ");
    let ran = setup.work.run(&["verify", "-d", "w", "-q"]).exits(0);
    assert_eq!((ran.text(), ran.stderr.as_str()), ("", ""));
    setup.work.run(&["verify", "-d", "nowhere"]).exits(65);
}

#[test]
fn a_sound_directory_of_run_holds_nothing_foreign() {
    let work = WorkDir::new();
    let posts: String = (0..9).map(|n| format!("{{\"content\":\"第{n}条\"}}\n")).collect();
    let args = ["run", "-", "-o", "out.jsonl", "-d", "w", "--emulate", "--max-lines", "4"];
    work.pipe(posts, &args).exits(0);
    is_sound(&work, "18 chunks, 18 of them fetched: 54 results, 0 errors, 0 absent rows");
    // The kept posts.
    finds(&work, "w/input.blake3", Some("0000\n"), "w/input.zst: its posts are not those that were kept: ");
    finds(&work, "w/input.blake3", None, "w/input.blake3: it is gone: give the same posts");
    work.write("w/input.zst", "no zstd at all");
    let ran = work.run(&["verify", "-d", "w"]).exits(65);
    assert!(ran.text().starts_with("w/input.zst: its posts are not those that were kept: "), "{}", ran.text());
    std::fs::remove_file(work.join("w/input.zst")).expect("removed");
    let ran = work.run(&["verify", "-d", "w"]).exits(65);
    assert!(ran.text().starts_with("w/input.zst: it is gone: give the same posts"), "{}", ran.text());
}

#[test]
fn what_is_wrong_with_chunks_that_wait() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    let (request, rows) = (work.read(ONE), work.read(ROWS));
    finds(work, ONE, None, &format!("{ONE}: it is gone: the command that cut the chunk"));
    finds(work, ONE, Some(&flip(&request)), &format!("{ONE}: its {} bytes are not those", request.len()));
    let bytes = request.len();
    finds(work, ONE, Some(&(request + "\n")), &format!("{ONE}: it has {} bytes; {bytes} were written", bytes + 1));
    assert_eq!(rows, "0-3\n");
    finds(work, ROWS, None, &format!("{ROWS}: it is gone"));
    finds(work, ROWS, Some("0-4\n"), &format!("{ROWS}: 5 rows, 0 to 4; 4 were cut, 0 to 3"));
    finds(work, ROWS, Some("0-2\n5-5\n"), &format!("{ROWS}: 4 rows, 0 to 5; 4 were cut, 0 to 3"));
    finds(work, ROWS, Some("0-3\n2-9\n"), &format!("{ROWS}: line 2 is not a range of indexes"));
}

/// No advice to begin again, and so to pay again, over a file that nothing needs.
#[test]
fn r3_a_chunk_that_has_a_batch_needs_its_file_no_more() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.submit();
    let request = work.read(ONE);
    let bytes = request.len();
    let line =
        format!("{ONE}: its {bytes} bytes are not those that were written: the hash differs: the chunk has its batch");
    finds(work, ONE, Some(&flip(&request)), &line);
    std::fs::remove_file(work.join(ONE)).expect("removed");
    is_sound(work, "6 chunks, 0 of them fetched");
    setup.run(&["fetch"]).exits(0);
    is_sound(work, "6 chunks, 6 of them fetched");
}

#[test]
fn what_is_wrong_with_results() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.submit();
    setup.run(&["fetch", "--keep-remote"]).exits(0);
    let output = work.read(OUTPUT);
    let (first, less) = output.split_once('\n').expect("lines");
    let again = "`zbatch fetch -d w --again topic_analysis_batch_part1` downloads it again";
    let bytes = output.len();
    finds(work, OUTPUT, None, &format!("{OUTPUT}: it is gone: {again}"));
    finds(work, OUTPUT, Some(less), &format!("{OUTPUT}: it has {} bytes; {bytes} were written: {again}", less.len()));
    finds(work, OUTPUT, Some(&flip(&output)), &format!("{OUTPUT}: its {bytes} bytes are not those"));
    finds(work, ERRORS, Some(first), &format!("{ERRORS}: it has {} bytes, and was not there", first.len()));
    // Another's rows file gives another count of the same results.
    let ran = {
        work.write(ROWS, "4-7\n");
        let ran = work.run(&["verify", "-d", "w"]).exits(65);
        work.write(ROWS, "0-3\n");
        ran
    };
    assert!(ran.text().starts_with(&format!("{ROWS}: 4 rows, 4 to 7; 4 were cut, 0 to 3")), "{}", ran.text());
    // What the advice says does mend it.
    work.write(OUTPUT, flip(&output));
    setup.run(&["fetch", "--again", "topic_analysis_batch_part1"]).exits(0);
    assert_eq!(work.read(OUTPUT), output);
    is_sound(work, "24 results");
    // Now the provider has no copy.
    finds(work, OUTPUT, None, &format!("{OUTPUT}: it is gone: the provider's copy is deleted"));
}

/// Journals of before 0.1.0 have no length and no hash of the results: the rows are still counted.
#[test]
fn a_journal_without_marks_of_results() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    let journal = work.read("w/journal.jsonl");
    let old: String = journal
        .lines()
        .map(|line| {
            let mut event: serde_json::Value = serde_json::from_str(line).expect("an event");
            let marks = event.as_object_mut().and_then(|event| event.remove("files"));
            assert_eq!(marks.is_some(), line.contains(r#""event":"fetched""#), "{line}");
            event.to_string() + "\n"
        })
        .collect();
    work.write_journal(&old);
    is_sound(work, "24 results");
    let what = "topic_analysis_batch_part1: its rows do not balance: 0 results, 0 errors, 4 absent, 0 foreign, \
                0 unreadable; 4 results, 0 errors, 0 absent, 0 foreign, 0 unreadable when it was fetched: ";
    finds(work, OUTPUT, None, what);
    let ran = setup.work.run(&["fetch", "-d", "w"]).exits(0);
    assert!(!ran.stderr.contains("gone"), "{}", ran.stderr);
}

#[test]
fn s3_what_is_wrong_with_the_journal() {
    let setup = Setup::new(&[]);
    let work = &setup.work;
    setup.submit();
    let journal = work.read("w/journal.jsonl");
    let at = journal.match_indices('\n').nth(2).expect("lines").0 + 1;
    let (head, tail) = journal.split_at(at);
    let path = "w/journal.jsonl";
    finds(
        work,
        path,
        Some(&format!("{head}{{}}\n{tail}")),
        &format!("{path}, line 4, byte {at}: missing field `event`"),
    );
    let twice = format!("{journal}{}\n", journal.lines().last().expect("lines"));
    let last = journal.lines().count() + 1;
    finds(work, path, Some(&twice), &format!("{path}, line {last}, byte {}: created cannot follow", journal.len()));
    finds(work, path, Some(""), &format!("{path}: it is empty, and chunks were cut here"));
    // A torn end is no problem: the next command drops it.
    work.write(path, format!("{journal}{{\"event\":\"end"));
    let ran = work.run(&["verify", "-d", "w"]).exits(0);
    assert!(ran.stderr.contains("w/journal.jsonl: the last line is torn, 13 bytes"), "{}", ran.stderr);
    assert!(ran.stderr.contains("all is as the journal says"), "{}", ran.stderr);
}

#[test]
fn what_is_noted() {
    let setup = Setup::new(&["--fault", "truncate"]);
    let work = &setup.work;
    setup.submit();
    setup.run(&["fetch"]).exits(1);
    work.write("w/mine.txt", "").write("w/results/x_batch_part9.output.jsonl", "").write("w/rows/.a.x.part", "");
    let ran = work.run(&["verify", "-d", "w"]).exits(0);
    assert!(
        ran.stderr.contains("topic_analysis_batch_part1: its results came short; the next fetch"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("1 half-written files"), "{}", ran.stderr);
    let foreign = "2 files are not this job's: w/mine.txt, w/results/x_batch_part9.output.jsonl";
    assert!(ran.stderr.contains(foreign), "{}", ran.stderr);
}

/// Whoever closes the pipe early still gets the exit code.
#[test]
fn a_closed_stdout_keeps_the_exit_code() {
    let setup = Setup::new(&[]);
    std::fs::remove_file(setup.work.join(ONE)).expect("removed");
    let script = format!("'{}' verify -d w | :; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_zbatch"));
    let status = std::process::Command::new("bash").current_dir(setup.work.path()).args(["-c", &script]).status();
    assert_eq!(status.expect("bash runs").code(), Some(65));
}

/// What a process that works there does meanwhile is never a problem.
#[test]
fn a_directory_that_is_worked_in() {
    let setup = Setup::cut(&["--latency", "20ms"], &["--max-lines", "1"]);
    let watch = |child: &mut Child| {
        let mut looks = 0;
        while child.try_wait().expect("waited").is_none() {
            let ran = setup.work.run(&["verify", "-d", "w"]);
            assert_eq!((ran.code, ran.text()), (Some(0), ""), "{}", ran.stderr);
            looks += 1;
        }
        looks
    };
    let mut looks = 0;
    looks += watch(&mut setup.spawn(&["submit", "--max-concurrent-tasks", "24"]));
    looks += watch(&mut setup.spawn(&["fetch", "--keep-remote"]));
    for _ in 0..3 {
        let mut again: Vec<String> = ["fetch", "--keep-remote", "--again"].map(str::to_owned).into();
        again.extend((1..=12).map(|part| format!("topic_analysis_batch_part{part}")));
        looks += watch(&mut setup.spawn(&again.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    assert!(looks > 10, "{looks} looks");
    is_sound(&setup.work, "24 of them fetched");
}
