//! What messages say of names and texts that others chose: nothing in them acts on a terminal, none begins a line, and a
//! command that is offered for pasting does what it says.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    process::Command,
};

use serde_json::json;

use crate::{
    jobs::Setup,
    scripts::{reply, serve},
    workdir::{Ran, WorkDir},
};

/// A line of its own, colours, and a change of direction.
const FORGED: &str = "a\nnext: zbatch evil\r\u{1b}[31m\u{202e}\u{200f}z";
const POLARITY: &str = "--only=sentiment_polarity";

/// The streams of a run hold no line that the name forges, and nothing that a terminal acts on.
#[track_caller]
fn is_harmless(ran: &Ran) {
    for text in [ran.stderr.as_str(), ran.text()] {
        let hostile = |c: char| c.is_control() && c != '\n' || ('\u{200e}'..='\u{202e}').contains(&c);
        assert!(!text.contains(hostile), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("next:")), "{text}");
    }
}

#[test]
fn r11_6_names_of_files_forge_no_line() {
    let dir = WorkDir::new();
    let (posts, bad) = (format!("{FORGED}.jsonl"), format!("{FORGED}.csv"));
    dir.write(&posts, "{\"content\":\"a\"}\n7\n").write(&bad, "x\n").write("posts.jsonl", "{\"content\":\"a\"}\n");
    dir.write(&format!("{FORGED}.key"), "k");
    let (gone, out) = (format!("{FORGED}/gone"), format!("{FORGED}.out"));
    dir.write("sets/ok/analysis.json", "{\"rule\":7}").write(&format!("evil/{FORGED}/analysis.json"), "{}");
    for (code, args) in [
        (1, vec!["gen", &posts, POLARITY, "-o", &out]),
        (1, vec!["gen", &posts, POLARITY, "-o", "o", "--faults", &out]),
        (65, vec!["gen", &bad]),
        (65, vec!["gen", &gone]),
        (65, vec!["gen", "posts.jsonl", "--data-dir", &gone]),
        (65, vec!["gen", "posts.jsonl", "--config", &gone]),
        (65, vec!["gen", "posts.jsonl", "--analyses", &gone]),
        (65, vec!["gen", "posts.jsonl", "--analyses", "evil"]),
        (64, vec!["gen", "posts.jsonl", "--only", FORGED]),
        (64, vec!["gen", "posts.jsonl", FORGED]),
        (64, vec!["gen", "posts.jsonl", "--model", "m", "--provider", FORGED]),
        (64, vec!["gen", "posts.jsonl", "--\u{202e}flag"]),
        (74, vec!["gen", "posts.jsonl", "-o", &gone]),
        (1, vec!["run", &posts, POLARITY, "-o", &out, "-d", FORGED, "--emulate"]),
        (65, vec!["status", "-d", &gone]),
        (0, vec!["status", "-d", FORGED]),
        (0, vec!["verify", "-d", FORGED]),
        (65, vec!["verify", "-d", &gone]),
        (65, vec!["merge", &posts, &gone]),
        (65, vec!["parse", &gone]),
        (77, vec!["run", "posts.jsonl", "-o", "o", "-d", "x", "--key-file", &gone]),
        (0, vec!["config", "-d", FORGED, "--model", FORGED]),
    ] {
        let ran = dir.run(&args);
        assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.stderr);
        is_harmless(&ran);
    }
}

#[test]
fn r11_6_values_of_a_config_forge_no_line() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    for (code, config) in [
        (0, json!({"batch": {"model": FORGED}, "paths": {"work_dir": FORGED, "enhanced_output": FORGED}})),
        (65, json!({"batch": {"provider": FORGED}})),
        (65, json!({"batch": {FORGED: 1}})),
        (65, json!({"batch": {FORGED: 1, "poll_interval": FORGED}})),
        (65, json!({"paths": {"data_dir": FORGED}})),
        (65, json!({"analysis_types": [FORGED]})),
    ] {
        dir.write("c.json", config.to_string());
        let ran = dir.run(&["config", "--config", "c.json"]);
        assert_eq!(ran.code, Some(code), "{config}: {}", ran.stderr);
        is_harmless(&ran);
        is_harmless(&dir.run(&["gen", "posts.jsonl", "--config", "c.json", "-o", "/dev/null"]));
    }
}

/// A journal may come from somebody else.
#[test]
fn r11_6_texts_of_a_journal_forge_no_line() {
    let setup = Setup::new(&[]);
    setup.submit();
    let journal = setup.work.read("w/journal.jsonl");
    let first = journal.lines().find(|line| line.contains("\"created\"")).expect("a batch").to_owned();
    let mut event: serde_json::Value = serde_json::from_str(&first).expect("JSON");
    event["batch_id"] = json!(FORGED);
    let ended = json!({
        "event": "ended", "chunk": event["chunk"], "status": FORGED, "total": 4, "completed": 0, "failed": 4,
        "errors": [FORGED],
    });
    // What cannot be an id is damage, and told as such.
    for (hostile, code) in [(journal.replace(&first, &event.to_string()), 65), (format!("{journal}{ended}\n"), 0)] {
        setup.work.write_journal(&hostile);
        for args in [["status"], ["verify"], ["fetch"]] {
            let ran = Ran::of(setup.command(&args).arg("--config").arg("none.json").output().expect("starts"));
            assert_ne!(ran.code, Some(101), "{}", ran.stderr);
            is_harmless(&ran);
        }
        is_harmless(&setup.work.run(&["status", "-d", "w"]).exits(code));
    }
    let ran = setup.work.run(&["status", "-d", "w"]).exits(0);
    assert!(ran.text().contains("a\\nnext: zbatch evil\\r\\u{1b}[31m\\u{202e}\\u{200f}z"), "{}", ran.text());
    is_harmless(&ran);
    // As JSON it is what it is.
    let ran = setup.work.run(&["status", "-d", "w", "--json"]).exits(0);
    assert!(ran.text().contains("\\nnext: zbatch evil\\r\\u001b[31m"), "{}", ran.text());
}

/// A server may say what it likes, in each reply.
#[test]
fn r11_6_texts_of_a_server_forge_no_line() {
    for (status, body) in [
        ("400 Bad Request", json!({"error": {"code": "1210", "message": FORGED}})),
        ("400 Bad Request", json!({"error": {"code": FORGED, "message": FORGED}})),
        ("403 Forbidden", json!({"error": FORGED})),
        ("200 OK", json!({"id": FORGED, "status": FORGED, "data": [{"id": FORGED, "status": FORGED}]})),
        ("200 OK", json!({"id": "f1", "status": FORGED, "errors": {"data": [{"message": FORGED, "line": 1}]}})),
    ] {
        let base = serve(move |_, _, _| reply(status, &body.to_string()));
        let dir = WorkDir::new();
        dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
        dir.run(&["gen", "-d", "w", "posts.jsonl", POLARITY]).exits(0);
        for args in [
            vec!["submit", "-d", "w", "-vv", "--no-wait", "--settle", "0s"],
            vec!["fetch", "-d", "w", "-vv", "--no-wait"],
            vec!["fetch", "--batch", "b1", "-vv", "--no-wait"],
            vec!["doctor", "--timeout", "1s", "--settle", "0s"],
            vec!["doctor", "--orphans", "--timeout", "1s"],
        ] {
            let mut command = dir.command(&[args.as_slice(), &["--base-url", &base]].concat());
            let ran = Ran::of(command.env("ZHIPUAI_API_KEY", "idididididid.secretsecret").output().expect("starts"));
            assert!(ran.code.is_some_and(|code| code != 101), "{args:?}: {}", ran.stderr);
            is_harmless(&ran);
        }
    }
}

/// `next:` of a run, run by a shell.
#[track_caller]
fn follows_next(dir: &WorkDir, output: &OsStr, work: &OsStr) {
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n");
    let mut command = dir.command(&["run", "posts.jsonl", POLARITY, "--emulate", "--fault", "invalid=100%"]);
    command.args([OsStr::new("-o"), output, OsStr::new("-d"), work]);
    let ran = Ran::of(command.output().expect("starts")).exits(1);
    let next = ran.stderr.lines().find_map(|line| line.strip_prefix("next: ")).expect("a next command").to_owned();
    let ran = bash(dir, &next).exits(0);
    let there = dir.path().join(named(output, ".round2"));
    assert!(there.is_file(), "{next}: {}: {}", there.display(), ran.stderr);
    assert!(dir.path().join(named(work, "-round2")).join("journal.jsonl").is_file(), "{next}");
}

/// A name with an end.
fn named(name: &OsStr, end: &str) -> OsString {
    [name, OsStr::new(end)].join(OsStr::new(""))
}

fn bash(dir: &WorkDir, line: &str) -> Ran {
    let mut shell = Command::new("bash");
    shell.current_dir(dir.path()).arg("-c").arg(line.replacen("zbatch", env!("CARGO_BIN_EXE_zbatch"), 1));
    Ran::of(shell.output().expect("a shell"))
}

#[test]
fn r11_6_the_next_command_names_any_file() {
    for (output, work) in [
        (&b"out put$HOME"[..], &b"it's \"w\""[..]),
        (b"caf\xe9", b"w\xff"),
        (b"a\nnext: x", b"w\t\x1b[31m"),
        ("\u{202e}ab".as_bytes(), "输出".as_bytes()),
    ] {
        follows_next(&WorkDir::new(), OsStr::from_bytes(output), OsStr::from_bytes(work));
    }
    // A name that looks like a flag is written as a path.
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    let args = ["run", "posts.jsonl", POLARITY, "--emulate", "--fault", "invalid=100%", "--output=-o", "--work-dir=-w"];
    let ran = dir.run(&args).exits(1);
    let next = ran.stderr.lines().find_map(|line| line.strip_prefix("next: ")).expect("a next command").to_owned();
    bash(&dir, &next).exits(0);
    assert!(dir.exists("-o.round2") && dir.exists("-w-round2/journal.jsonl"), "{next}");
}

#[test]
fn r11_6_commands_that_mend_are_quoted() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n").write("my key's", "k");
    std::fs::set_permissions(dir.join("my key's"), std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let ran = dir.run(&["run", "posts.jsonl", "-o", "o", "-d", "w", "--key-file", "my key's"]).exits(77);
    assert!(ran.stderr.contains("fix: chmod 600 'my key'\\''s'\n"), "{}", ran.stderr);
    let ran = dir.run(&["gen", "posts.jsonl", "-o", "no $dir/o"]).exits(74);
    assert!(ran.stderr.contains("fix: mkdir -p 'no $dir'\n"), "{}", ran.stderr);
    dir.write("a b.json", "{\n \"content\": \"a\"\n}\n");
    let ran = dir.run(&["gen", "a b.json"]).exits(65);
    assert!(ran.stderr.contains("jq -c . 'a b.json'"), "{}", ran.stderr);

    // `verify` and `status` offer the command that downloads again.
    let setup = Setup::new(&[]);
    setup.submit();
    setup.run(&["fetch", "--keep-remote"]).exits(0);
    std::fs::rename(setup.work.join("w"), setup.work.join("-w 1")).expect("moved");
    std::fs::remove_file(setup.work.join("-w 1/results/topic_analysis_batch_part1.output.jsonl")).expect("removed");
    let ran = setup.work.run(&["verify", "--work-dir=-w 1"]).exits(65);
    assert!(ran.text().contains("`zbatch fetch -d './-w 1' --again topic_analysis_batch_part1`"), "{}", ran.text());
    let ran = setup.work.run(&["status", "--work-dir=-w 1"]).exits(1);
    assert!(ran.stderr.contains("`zbatch fetch -d './-w 1'` downloads it again"), "{}", ran.stderr);
}
