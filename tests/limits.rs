//! A small machine: files that may not grow, few open files, no more threads. Each is one line and exit 74, no panic and no
//! signal, and the same command finishes once the limit is lifted.

use std::{ffi::OsString, os::unix::fs::PermissionsExt as _, process::Command};

use crate::{
    jobs::Setup,
    workdir::{Ran, WorkDir, skipped},
};

const POLARITY: &str = "--only=sentiment_polarity";
const POSTS: usize = 600;

fn setup() -> WorkDir {
    let dir = WorkDir::new();
    let posts: String = (0..POSTS).map(|n| format!("{{\"content\":\"第{n}条：地铁又停了\"}}\n")).collect();
    dir.write("posts.jsonl", &posts);
    dir
}

/// The program under a limit of `prlimit`.
fn under(dir: &WorkDir, limit: &str, args: &[&str]) -> Ran {
    let inner = dir.command(args);
    let mut command = Command::new("prlimit");
    command.arg(limit).arg(inner.get_program()).args(inner.get_args()).current_dir(dir.path());
    Ran::of(command.env_remove("ZHIPUAI_API_KEY").output().expect("prlimit starts"))
}

/// One line that says what stopped it, and how to mend it at most.
#[track_caller]
fn is_told(ran: &Ran, args: &[&str], told: &str) {
    assert_eq!(ran.code, Some(74), "{args:?}: {}", ran.stderr);
    assert!(ran.stderr.contains(told) && !ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
}

/// The verbs that write: a filter, one that compresses, one that cuts chunks, the whole job.
fn jobs() -> [Vec<&'static str>; 4] {
    [
        vec!["gen", "posts.jsonl", POLARITY, "-o", "o.jsonl"],
        vec!["gen", "posts.jsonl", "-o", "o.jsonl.zst", "--on-bad-post", "stop"],
        vec!["gen", "-d", "wg", "posts.jsonl", POLARITY],
        vec!["run", "posts.jsonl", "-o", "out.jsonl", "-d", "wr", "--emulate", POLARITY],
    ]
}

#[test]
fn r11_9g_a_file_that_may_not_grow_is_an_error_and_not_a_signal() {
    let dir = setup();
    for args in jobs() {
        // Compressed, six questions need no more than this.
        let limit = if args.contains(&"o.jsonl.zst") { "--fsize=4096" } else { "--fsize=100000" };
        is_told(&under(&dir, limit, &args), &args, "File too large");
        assert!(
            !["o.jsonl", "o.jsonl.zst", "out.jsonl"].iter().any(|out| args.contains(out) && dir.exists(out)),
            "{args:?}"
        );
        dir.run(&args).exits(0);
    }
    assert_eq!(dir.read("out.jsonl").lines().count(), POSTS);
    dir.run(&["verify", "-d", "wr"]).exits(0);
}

#[test]
fn r11_9g_few_open_files_are_told() {
    let dir = setup();
    for args in jobs() {
        for files in 4..16 {
            let ran = under(&dir, &format!("--nofile={files}"), &args);
            if ran.code != Some(0) {
                is_told(&ran, &args, "Too many open files");
            }
        }
        dir.run(&args).exits(0);
    }
    assert_eq!(dir.read("out.jsonl").lines().count(), POSTS);
    // Eight are not enough for an async runtime, which would panic.
    let ran = under(&dir, "--nofile=8", &["run", "posts.jsonl", "-o", "o8", "-d", "w8", "--emulate", POLARITY]);
    is_told(&ran, &[], "fix: raise the limit on open files");
    assert!(!dir.exists("w8"), "nothing was begun");
}

/// The same against a server: a create is never sent twice for want of a file.
#[test]
fn r11_9g_few_open_files_cost_nothing() {
    let setup = Setup::new(&[]);
    for files in (6..34).step_by(2) {
        let inner = setup.command(&["submit", "--settle", "100ms"]);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}")).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(setup.work.path()).env("ZHIPUAI_API_KEY", "idididididid.secretsecretsecret");
        let ran = Ran::of(command.output().expect("prlimit starts"));
        assert!(matches!(ran.code, Some(0 | 74)) && !ran.stderr.contains("panicked"), "{files}: {}", ran.stderr);
    }
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    setup.paid_once();
}

/// Of a user of its own, so that its processes can be counted. Only root can start those.
fn with_threads(dir: &WorkDir, program: &OsString, threads: usize, args: &[&str]) -> Option<Ran> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=54329", "--regid=54329", "--clear-groups", "timeout", "60", "prlimit"]);
    // `timeout` is a process of that user too.
    command.arg(format!("--nproc={}", threads + 1)).arg(program).args(args).current_dir(dir.path());
    command.env("HOME", "/").env("TMPDIR", dir.path()).env_remove("ZHIPUAI_API_KEY");
    command.output().ok().map(Ran::of)
}

#[test]
fn r11_9g_threads_that_cannot_be_had_are_told() {
    let dir = setup();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("chmod");
    // Where the repository is, that user may not look.
    let program = dir.join("program");
    std::fs::copy(env!("CARGO_BIN_EXE_zbatch"), &program).expect("copied");
    let program = program.into_os_string();
    match with_threads(&dir, &program, 8, &["--version"]) {
        Some(ran) if ran.code == Some(0) => {}
        _ => return skipped("no root, or no setpriv: threads are not limited"),
    }
    for args in jobs() {
        for threads in 1..6 {
            let ran = with_threads(&dir, &program, threads, &args).expect("starts");
            if ran.code != Some(0) {
                is_told(&ran, &args, "the system gives no more threads");
            }
        }
        with_threads(&dir, &program, 50, &args).expect("starts").exits(0);
    }
    assert_eq!(dir.read("out.jsonl").lines().count(), POSTS);
    let ran = with_threads(&dir, &program, 1, &["emulate"]).expect("starts");
    is_told(&ran, &["emulate"], "the system gives no more threads");
}
