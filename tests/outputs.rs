//! What becomes of an output when we are killed while we write it, when the disk is full, and when something is there
//! already.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use zbatch::emulator::ledger;

use crate::workdir::{Ran, WorkDir, skipped};

fn posts(count: usize) -> String {
    (0..count).map(|n| format!("{{\"content\":\"第{n}条：地铁又停了，等了{n}分钟\"}}\n")).collect()
}

/// All names in the directory, but for these.
fn others(dir: &WorkDir, but: &[&str]) -> Vec<String> {
    let names = std::fs::read_dir(dir.path()).expect("listed");
    let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| !but.contains(&name.as_str())).collect()
}

/// Whether this file system has files without a name, as most have.
fn has_nameless_files(dir: &WorkDir) -> bool {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::WRONLY;
    let has = rustix::fs::open(dir.path(), flags, rustix::fs::Mode::RUSR).is_ok();
    if !has {
        skipped(format_args!("{} has no nameless files", dir.path().display()));
    }
    has
}

#[test]
fn s2_killed_while_it_writes_a_filter_leaves_nothing() {
    let dir = WorkDir::new();
    if !has_nameless_files(&dir) {
        return;
    }
    dir.write("posts.jsonl", posts(1)).write("results.jsonl", "");
    for args in [
        &["gen", "-", "-o", "out.jsonl", "--faults", "faults.jsonl"][..],
        &["parse", "-", "-o", "out.jsonl.gz", "--faults", "faults.jsonl"],
        &["merge", "-", "results.jsonl", "-o", "out.json", "--faults", "faults.jsonl"],
    ] {
        let mut child = dir.command(args).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // More than all buffers on the way hold: much of it is written when this returns.
        stdin.write_all(posts(20_000).as_bytes()).expect("it reads");
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert_eq!(others(&dir, &["posts.jsonl", "results.jsonl"]), [""; 0], "{args:?}");
    }
}

#[test]
fn an_output_keeps_the_mode_of_what_it_replaces() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(2)).write("out.jsonl", "old");
    let mode = |mode| std::fs::set_permissions(dir.join("out.jsonl"), Permissions::from_mode(mode)).expect("set");
    for private in [0o600, 0o640] {
        mode(private);
        dir.run(&["gen", "posts.jsonl", "-o", "out.jsonl"]).exits(0);
        let meta = std::fs::metadata(dir.join("out.jsonl")).expect("there");
        assert_eq!(meta.permissions().mode() & 0o7777, private);
        assert!(meta.len() > 100);
    }
}

#[test]
fn links_are_followed_and_hard_links_part() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(2)).write("far/there.jsonl", "old").write("one.jsonl", "old");
    symlink("far/there.jsonl", dir.join("link")).expect("linked");
    symlink("far/new.jsonl", dir.join("dangling")).expect("linked");
    std::fs::hard_link(dir.join("one.jsonl"), dir.join("two.jsonl")).expect("linked");
    for (output, file) in [("link", "far/there.jsonl"), ("dangling", "far/new.jsonl"), ("one.jsonl", "one.jsonl")] {
        dir.run(&["gen", "posts.jsonl", "-o", output]).exits(0);
        assert!(dir.read(file).starts_with("{\"custom_id\":"), "{file}");
        assert_eq!(dir.join(output).is_symlink(), output != file, "{output}");
    }
    // A file appears whole because it is a new one: its other name keeps the old.
    assert_eq!(dir.read("two.jsonl"), "old");
}

/// `zbatch gen -o /dev/stdout >> log`: what is in the log stays there.
#[test]
fn our_own_streams_by_name_are_written_as_they_are_open() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{}\n");
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        dir.write("log", "before\n");
        let log = std::fs::File::options().append(true).open(dir.join("log")).expect("there");
        let mut command = dir.command(&["gen", "posts.jsonl", "--only", "topic_analysis", "-o", name, "--report"]);
        command.args([&dir.join("report").display().to_string(), "--faults", "/dev/stderr", "--max-faults", "9"]);
        let ran = Ran::of(command.stdout(log).output().expect("it starts")).exits(0);
        let log = dir.read("log");
        assert!(log.starts_with("before\n{\"custom_id\":") && log.lines().count() == 2, "{log}");
        assert!(ran.stderr.contains("\"kind\":\"bad_post\""), "{}", ran.stderr);
    }
}

#[test]
fn one_file_by_two_names_is_one_file() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(2));
    symlink("new.jsonl", dir.join("dangling")).expect("linked");
    for (output, faults) in [("dangling", "new.jsonl"), ("new.jsonl", "./dangling"), ("/dev/stdout", "-")] {
        let ran = dir.run(&["gen", "posts.jsonl", "-o", output, "--faults", faults]).exits(64);
        assert!(ran.stderr.contains("takes the output already"), "{}", ran.stderr);
    }
}

#[test]
fn a_fifo_is_written_in_place() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(2));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .expect("made");
    let reader = Command::new("cat").arg(dir.join("fifo")).stdout(Stdio::piped()).spawn().expect("cat starts");
    dir.run(&["gen", "posts.jsonl", "-o", "fifo", "--only", "topic_analysis"]).exits(0);
    let read = reader.wait_with_output().expect("it ends").stdout;
    assert_eq!(String::from_utf8_lossy(&read).lines().count(), 2);
    assert_eq!(others(&dir, &["posts.jsonl", "fifo"]), [""; 0]);
}

/// Whatever is full first, it is told at once: the embedded emulator keeps its files on the same disk, and its client
/// used to try again, for minutes or without an end.
#[test]
fn s7_a_full_disk_under_the_embedded_emulator_is_told_at_once() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(400));
    std::fs::create_dir(dir.join("disk")).expect("made");
    let run = |work: &str, out: &str| {
        ["run", "posts.jsonl", "-o", out, "-d", work, "--emulate", "--max-lines", "100"].map(str::to_owned)
    };
    dir.run(&run("w", "golden.jsonl").each_ref().map(String::as_str)).exits(0);
    // A disk of our own, in a namespace of our own: it ends with its shell.
    let script = r#"
        mount -t tmpfs -o size="$1" none disk && shift || exit 99
        "$@"; first=$?
        mount -o remount,size=64m none disk
        "$@" 2>/dev/null && cp -r disk/w/emulator after || exit 98
        exit $first"#;
    let args = run("disk/w", "out.jsonl");
    // From the first chunk file to the last result.
    for size in ["300k", "700k", "1000k", "1300k", "1600k", "1900k"] {
        let program = dir.command(&args.each_ref().map(String::as_str));
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh", size]).arg(program.get_program()).args(program.get_args());
        let began = Instant::now();
        let ran = Ran::of(command.current_dir(dir.path()).output().expect("unshare is here"));
        if ran.code == Some(99) || ran.stderr.starts_with("unshare:") {
            skipped(format_args!("no mount of our own here: {}", ran.stderr));
            return;
        }
        let ran = ran.exits(74);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}: {}", began.elapsed(), ran.stderr);
        let last = ran.stderr.lines().last().expect("it says why");
        assert!(last.contains("No space left on device") && last.contains("disk/w/"), "{size}: {}", ran.stderr);
        assert_eq!(dir.read("out.jsonl"), dir.read("golden.jsonl"), "{size}: the same command finishes");
        let ledger = ledger::read(&dir.join("after")).expect("a ledger");
        assert!(ledger.by_content.values().all(|count| *count == 1), "{size}: {:?}", ledger.by_content);
        for name in ["out.jsonl", "after"] {
            let _file = std::fs::remove_file(dir.join(name)).or_else(|_| std::fs::remove_dir_all(dir.join(name)));
        }
    }
}
