//! One verb, one file. A verb opens its inputs, runs the stages of [`crate::flow`] and says how it ended.

mod cancel;
mod chunk;
mod config;
mod emulate;
mod fetch;
mod r#gen;
mod merge;
mod next;
mod parse;
mod remote;
mod run;
mod setup;
mod source;
mod status;
mod submit;

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
};

use crate::{
    cli::{Cli, Progress, Verb},
    error::Result,
    flow::faults::FaultLog,
    settings::MaxFaults,
};

/// How a verb ended when nothing stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Finished,
    /// Output is written, but more rows went wrong than `--max-faults` allows.
    WithFaults,
    /// Something remains: the same command goes on.
    Remains,
}

impl Ended {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::WithFaults => 1,
            Self::Remains => 75,
        }
    }

    /// `faults` of `rows` went wrong.
    pub fn judge(max_faults: MaxFaults, faults: u64, rows: u64) -> Self {
        if max_faults.exceeded(faults, rows) { Self::WithFaults } else { Self::Finished }
    }
}

/// What is said on stderr. A stderr that is closed is not worth stopping for.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    quiet: bool,
    pub verbose: u8,
    pub progress: Progress,
}

impl Console {
    pub fn new(quiet: bool, verbose: u8, progress: Progress) -> Self {
        Self { quiet, verbose, progress }
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
        self.raw(format_args!("zbatch: {text}"));
    }

    /// A line for a program that reads stderr (`--progress json`).
    pub fn raw(&self, line: impl fmt::Display) {
        // In one piece: in a pipe of several zbatch the others write there too.
        let _closed_stderr = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet
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
            self.note(format_args!("{} faults: {}", log.total(), path.display()));
            return;
        }
        for fault in log.first() {
            self.note(fault.describe());
        }
        let shown = log.first().len() as u64;
        if log.total() > shown {
            self.note(format_args!("… and {} more faults; --faults FILE keeps them all", log.total() - shown));
        }
    }
}

/// Runs the verb that was typed.
pub fn run(cli: &Cli) -> Result<Ended> {
    let console = Console::new(cli.output.quiet, cli.output.verbose, cli.output.progress);
    match &cli.verb {
        Verb::Gen(args) => r#gen::run(args, &console),
        Verb::Chunk(args) => chunk::run(args, &console),
        Verb::Parse(args) => parse::run(args, &console),
        Verb::Merge(args) => merge::run(args, &console),
        Verb::Submit(args) => submit::run(args, &console),
        Verb::Fetch(args) => fetch::run(args, &console),
        Verb::Run(args) => run::run(args, &console),
        Verb::Status(args) => status::run(args, &console),
        Verb::Cancel(args) => cancel::run(args, &console),
        Verb::Emulate(args) => emulate::run(args, &console),
        Verb::Config(args) => config::run(args, &console),
    }
}
