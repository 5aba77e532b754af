//! A fresh directory and the program run in it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Removed, with all in it, when it is dropped.
#[derive(Debug)]
pub struct WorkDir {
    dir: tempfile::TempDir,
}

/// What a run left on its streams.
#[derive(Debug)]
pub struct Ran {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl WorkDir {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a fresh directory") }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the directories it needs.
    #[expect(clippy::disallowed_methods, reason = "a test's input may be torn by nobody")]
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.join(name);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("directories");
        std::fs::write(&path, contents).expect("written");
        self
    }

    /// The journal as a person changes it: its lines have no sums then.
    pub fn write_journal(&self, text: &str) {
        const SUM: &str = ",\"sum\":\"";
        let without = |line: &str| match line.split_once(SUM) {
            Some((before, after)) => format!("{before}{}\n", after.split_once('"').map_or("", |(_, rest)| rest)),
            None => format!("{line}\n"),
        };
        self.write("w/journal.jsonl", text.lines().map(without).collect::<String>());
    }

    #[expect(clippy::disallowed_methods, reason = "a test's output is small")]
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn exists(&self, name: &str) -> bool {
        self.join(name).exists()
    }

    /// The program, in this directory, without the caller's keys and settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zbatch"));
        command.current_dir(self.path()).args(args).stdin(Stdio::null());
        for name in [
            "ZHIPUAI_API_KEY",
            "ZAI_API_KEY",
            "ZHIPU_API_KEY",
            "OPENAI_API_KEY",
            "DASHSCOPE_API_KEY",
            "ZHIPUAI_BASE_URL",
            "ZBATCH_CONFIG",
            "ZBATCH_UPSTREAM_KEY",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the program starts"))
    }

    /// Runs with these bytes on stdin.
    pub fn pipe(&self, input: impl AsRef<[u8]>, args: &[&str]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.as_ref().to_vec();
        // A program that stops early closes the pipe: that is its right.
        let feeder = std::thread::spawn(move || stdin.write_all(&input).ok());
        let output = child.wait_with_output().expect("the program ends");
        feeder.join().expect("fed");
        Ran::of(output)
    }
}

impl Ran {
    pub fn of(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }

    /// Checks the exit code, with all that was said when it is another one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stderr:\n{}\nstdout:\n{}",
            self.stderr,
            String::from_utf8_lossy(&self.stdout)
        );
        self
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8")
    }

    /// Every line of stdout as a JSON value.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }
}

/// The same command with signals as a terminal gives them: whoever started the tests may have had some ignored (`nohup`, a
/// background job of a script), and the program rightly leaves those alone.
pub fn hears_signals(command: &Command) -> Command {
    let mut through = Command::new("env");
    through.arg("--default-signal").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(dir) = command.get_current_dir() {
        through.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => through.env(name, value),
            None => through.env_remove(name),
        };
    }
    through
}

/// The repository's own folder, for `data` and `fixtures`.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file in `fixtures`.
#[expect(clippy::disallowed_methods, reason = "the repository's own small files")]
pub fn fixture(name: &str) -> String {
    let path = repository().join("fixtures").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A file or folder of the foreign corpora: below `$ZBATCH_CORPORA`, else below `../shared/corpora`.
///
/// `None`, and a line on stderr, if it is not there. If `ZBATCH_CORPORA` is set, as in CI, it must be there.
pub fn corpus(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("ZBATCH_CORPORA").map(PathBuf::from);
    let is_required = named.is_some();
    let path = named.unwrap_or_else(|| repository().join("../shared/corpora")).join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(!is_required, "ZBATCH_CORPORA is set, and {} is not there", path.display());
    skipped(format_args!("{} is not here; ZBATCH_CORPORA names the folder of the corpora", path.display()));
    None
}

/// Says aloud that something is not tested here.
pub fn skipped(why: impl std::fmt::Display) {
    let _closed_stderr = writeln!(std::io::stderr(), "skipped: {why}");
}
