//! What is said on stderr; stdout carries data and nothing else. Under `--progress json` each line is a JSON object with
//! the time, the work directory and the name of an event.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
    path::Path,
    sync::OnceLock,
};

use serde_json::{Value, json};

use crate::{cli::Progress, error::Error, text::escape_control, units::now};

/// Where this process works, as JSON lines tell it: set once. `None`: its verb has no work directory.
static DIR: OnceLock<Option<String>> = OnceLock::new();

/// Says, once and for all, where this process works. The first word counts.
pub fn works_in(dir: Option<&Path>) {
    let whole = |dir: &Path| std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()).display().to_string();
    let _known = DIR.set(dir.map(whole));
}

/// What is said on stderr. A stderr that is closed is not worth stopping for.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    quiet: bool,
    silent: bool,
    pub verbose: u8,
    pub progress: Progress,
}

impl Console {
    pub fn new(quiet: bool, verbose: u8, progress: Progress) -> Self {
        Self { quiet, silent: false, verbose, progress }
    }

    /// Says nothing at all.
    pub fn silent() -> Self {
        Self { silent: true, ..Self::new(true, 0, Progress::Plain) }
    }

    /// What a user wants to know but need not act on; silent under `-q`.
    pub fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.say("note", text);
        }
    }

    /// Under `-v` only.
    pub fn detail(&self, text: impl fmt::Display) {
        if self.verbose > 0 {
            self.say("detail", text);
        }
    }

    /// What went wrong.
    pub fn always(&self, text: impl fmt::Display) {
        self.say("trouble", text);
    }

    /// What ends the program, and below it how to mend it.
    pub fn error(&self, error: &Error) {
        if self.is_json() {
            let (what, fix) = error.parts();
            self.event("error", &json!({"text": what, "fix": fix, "exit_code": error.kind().exit_code()}));
        } else {
            // Its parts are harmless, each on a line of its own.
            self.write(&format!("zbatch: {error}"));
        }
    }

    /// Lines below a first one; silent under `-q`.
    pub fn table(&self, head: impl fmt::Display, lines: &str) {
        let lines: String = lines.split('\n').map(|line| format!("\n{}", escape_control(line))).collect();
        let text = escape_control(&head.to_string()) + &lines;
        match self.is_json() {
            _ if self.quiet => {}
            true => self.event("note", &json!({"text": text})),
            false => self.write(&format!("zbatch: {text}")),
        }
    }

    /// A line to copy into a shell, as it is.
    pub fn shell_line(&self, line: &str) {
        if self.is_json() { self.event("shell", &json!({"text": line})) } else { self.write(line) }
    }

    pub fn is_json(&self) -> bool {
        self.progress == Progress::Json
    }

    /// A line for a program that reads stderr (`--progress json`), with the fields that `more` holds.
    pub fn event(&self, name: &str, more: &Value) {
        let dir = DIR.get().cloned().flatten();
        let mut line = json!({"time": now(), "dir": dir, "event": name});
        if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
            line.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        self.write(&line.to_string());
    }

    /// What a module says while it works (`-vv`).
    pub fn log(&self, text: &str) {
        let text = escape_control(text);
        if self.is_json() { self.event("log", &json!({"text": text})) } else { self.write(&text) }
    }

    /// Names of files, and texts of posts and servers, are in it: none may talk to the terminal, or begin a line that seems to be
    /// from us.
    fn say(&self, name: &str, text: impl fmt::Display) {
        let text = escape_control(&text.to_string());
        if self.is_json() {
            self.event(name, &json!({"text": text}));
        } else {
            self.write(&format!("zbatch: {text}"));
        }
    }

    fn write(&self, text: &str) {
        if !self.silent {
            // In one piece: in a pipe of several zbatch the others write there too.
            let _closed_stderr = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
        }
    }

    /// Bars are drawn.
    pub fn has_bars(&self) -> bool {
        !self.quiet && self.progress == Progress::Auto && std::io::stderr().is_terminal()
    }
}
