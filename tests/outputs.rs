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

pub fn fifo(dir: &WorkDir, name: &str) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, dir.join(name), rustix::fs::FileType::Fifo, mode, 0).expect("made");
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
    fifo(&dir, "fifo");
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

/// `-o work/journal.jsonl` put posts in the place of the journal: all would have been paid again.
#[test]
fn r11_4_an_output_inside_the_work_directory_is_refused() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(2)).write("far/x", "");
    let only = "--only=topic_analysis";
    dir.run(&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", only]).exits(0);
    dir.run(&["gen", "posts.jsonl", only, "-o", "requests.jsonl"]).exits(0);
    symlink("w", dir.join("by-link")).expect("linked");
    symlink("../w/new", dir.join("far/dangling")).expect("linked");
    let journal = dir.read("w/journal.jsonl");
    for inside in
        ["w/journal.jsonl", "w/x.jsonl", "w/results/x", "by-link/x", "far/../w/x", "far/dangling", "./w//./lock"]
    {
        for (args, flag) in [
            (&["run", "posts.jsonl", "-d", "w", "--emulate", only][..], "-o"),
            (&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", only], "--faults"),
            (&["run", "posts.jsonl", "-o", "out.jsonl", "-d", "w", "--emulate", only], "--report"),
            (&["gen", "posts.jsonl", "-d", "w", only], "--faults"),
            (&["chunk", "requests.jsonl", "-d", "w"], "--report"),
            // A filter has no directory, and may not write into one either.
            (&["gen", "posts.jsonl", only], "-o"),
            (&["parse", "w/results/topic_analysis_batch_part1.output.jsonl", only], "-o"),
            (&["merge", "posts.jsonl", "requests.jsonl", only], "--faults"),
        ] {
            let ran = dir.run(&[args, &[flag, inside]].concat()).exits(64);
            let told = format!("{flag} {inside}: it is inside the work directory ");
            assert!(ran.stderr.contains(&told), "{args:?}: {}", ran.stderr);
        }
    }
    assert_eq!(dir.read("w/journal.jsonl"), journal);
    dir.run(&["gen", "posts.jsonl", only, "-d", "v"]).exits(0);
    dir.run(&["fetch", "-d", "v", "-o", "v/x"]).exits(64);
    // Also one that is not there yet.
    dir.run(&["run", "posts.jsonl", "-o", "new/x", "-d", "new", "--emulate", only]).exits(64);
    assert!(!dir.exists("new"));
    dir.run(&["run", "posts.jsonl", "-o", "w.jsonl", "--faults", "wf", "-d", "w", "--emulate", only]).exits(0);
    assert!(dir.exists("w/integration_report.json"), "the report has its place there");
}

/// What the kernel refuses where `fs.protected_symlinks`, `_fifos` and `_regular` are on.
#[test]
fn r11_4_what_others_left_in_a_shared_directory_is_refused() {
    const OTHER: u32 = 65_534;
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(1)).write("mine", "mine").write("shared/file", "theirs").write("shared/own", "old");
    let only = "--only=topic_analysis";
    std::fs::create_dir(dir.join("folder")).expect("made");
    symlink("../mine", dir.join("shared/link")).expect("linked");
    symlink("../folder", dir.join("shared/folder")).expect("linked");
    symlink("own", dir.join("shared/own-link")).expect("linked");
    fifo(&dir, "shared/pipe");
    std::fs::set_permissions(dir.join("shared"), Permissions::from_mode(0o1777)).expect("set");
    for name in ["file", "link", "folder", "pipe"] {
        if std::os::unix::fs::lchown(dir.join("shared").join(name), Some(OTHER), Some(OTHER)).is_err() {
            skipped("only root can make files of another user");
            return;
        }
    }
    for (name, what) in [("file", "a file"), ("link", "a link"), ("folder/new", "a link"), ("pipe", "a pipe")] {
        for flag in ["-o", "--faults", "--report"] {
            let path = format!("shared/{name}");
            let ran = dir.run(&["gen", "posts.jsonl", only, flag, &path]).exits(74);
            assert!(ran.stderr.contains(&format!("cannot write {path}: ")), "{}", ran.stderr);
            assert!(ran.stderr.contains(&format!("is {what} of another user (number {OTHER})")), "{}", ran.stderr);
        }
    }
    assert_eq!((dir.read("mine").as_str(), dir.read("shared/file").as_str()), ("mine", "theirs"));
    for own in ["own", "own-link", "new"] {
        dir.run(&["gen", "posts.jsonl", only, "-o", &format!("shared/{own}")]).exits(0);
    }
    // Nobody but its owner can write to a directory of one's own, and links there are one's own business.
    std::fs::set_permissions(dir.join("shared"), Permissions::from_mode(0o755)).expect("set");
    dir.run(&["gen", "posts.jsonl", only, "-o", "shared/link"]).exits(0);
    assert!(dir.read("mine").contains("custom_id"));
}

/// They hold personal data, and every user of the machine could read them.
#[test]
fn r11_4_new_outputs_are_readable_by_their_owner_alone() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(3) + "[]\n").write("answers.jsonl", "").write("old", "");
    std::fs::set_permissions(dir.join("old"), Permissions::from_mode(0o644)).expect("set");
    let only = "--only=topic_analysis";
    for args in [
        &["gen", "posts.jsonl", "-o", "o1", "--faults", "f1", "--report", "r1", "--max-faults=9", only][..],
        &["parse", "answers.jsonl", "-o", "o2.gz", "--faults", "f2", "--report", "r2", only],
        &[
            "merge",
            "posts.jsonl",
            "answers.jsonl",
            "-o",
            "o3.json",
            "--faults",
            "f3",
            "--report",
            "r3",
            "--max-faults=9",
            only,
        ],
        &[
            "run",
            "posts.jsonl",
            "-o",
            "o4",
            "--faults",
            "f4",
            "--report",
            "r4",
            "-d",
            "w",
            "--emulate",
            "--max-faults=9",
            only,
        ],
        &["gen", "posts.jsonl", "-o", "old", "--max-faults=9", only],
    ] {
        let program = dir.command(args);
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(program.get_program()).args(program.get_args());
        Ran::of(command.current_dir(dir.path()).output().expect("it starts")).exits(0);
    }
    let mode = |name: &str| std::fs::metadata(dir.join(name)).expect(name).permissions().mode() & 0o7777;
    for name in ["o1", "f1", "r1", "o2.gz", "f2", "r2", "o3.json", "f3", "r3", "o4", "f4", "r4"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    assert_eq!(mode("old"), 0o644, "what is replaced keeps its mode");
}
