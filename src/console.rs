//! What is said on stderr; stdout carries data and nothing else.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
};

use crate::{
    cli::Progress,
    error::Error,
    flow::faults::{FaultLog, escape_control},
    units::count,
};

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
            self.always(text);
        }
    }

    /// Under `-v` only.
    pub fn detail(&self, text: impl fmt::Display) {
        if self.verbose > 0 {
            self.always(text);
        }
    }

    /// What went wrong.
    pub fn always(&self, text: impl fmt::Display) {
        self.put([format!("zbatch: {text}")]);
    }

    /// What stopped a verb, and below it how to mend it.
    pub fn error(&self, error: &Error) {
        self.put(format!("zbatch: {error}").split('\n'));
    }

    /// Lines below a first one; silent under `-q`.
    pub fn table(&self, head: impl fmt::Display, lines: &str) {
        if !self.quiet {
            let head = escape_control(&head.to_string());
            self.put(format!("zbatch: {head}\n{lines}").split('\n'));
        }
    }

    /// A line for a program that reads stderr (`--progress json`).
    pub fn raw(&self, line: impl fmt::Display) {
        self.put([line.to_string()]);
    }

    /// Names of files, and texts of posts and servers, are in these lines: none may talk to the terminal, or begin a line that
    /// seems to be from us.
    fn put(&self, lines: impl IntoIterator<Item = impl AsRef<str>>) {
        if self.silent {
            return;
        }
        let lines: String = lines.into_iter().map(|line| escape_control(line.as_ref()) + "\n").collect();
        // In one piece: in a pipe of several zbatch the others write there too.
        let _closed_stderr = std::io::stderr().lock().write_all(lines.as_bytes());
    }

    /// Bars are drawn.
    pub fn has_bars(&self) -> bool {
        !self.quiet && self.progress == Progress::Auto && std::io::stderr().is_terminal()
    }

    /// The first faults, when no faults file was asked for.
    pub fn show_faults(&self, log: &FaultLog) {
        if log.total() == 0 || self.quiet {
            return;
        }
        if let Some(path) = log.path() {
            self.note(format_args!("{}: {}", count(log.total(), "fault"), path.display()));
            return;
        }
        for fault in log.first() {
            self.note(fault.describe());
        }
        let shown = log.first().len() as u64;
        if log.total() > shown {
            self.note(format_args!("… and {}; --faults FILE keeps them all", count(log.total() - shown, "more fault")));
        }
    }
}
