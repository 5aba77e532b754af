//! One verb, one file. A verb opens its inputs, runs the stages of [`crate::flow`] and says how it ended.

mod cancel;
mod chunk;
mod clean;
mod config;
mod cutting;
mod doctor;
mod emulate;
mod fetch;
mod r#gen;
mod merge;
mod next;
mod outputs;
mod parse;
mod records;
mod remote;
mod request_settings;
pub mod run;
mod source;
mod status;
mod submit;
mod verify;

use std::path::Path;

use crate::{
    cli::{Cli, Verb},
    console::{Console, works_in},
    error::Result,
    units::MaxFaults,
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

/// The work directory that was typed; `None` where the verb has one and takes it from the config.
fn typed_dir(verb: &Verb) -> Option<Option<&Path>> {
    let work = match verb {
        Verb::Gen(args) => return Some(args.work_dir.as_deref()),
        Verb::Parse(_) | Verb::Merge(_) | Verb::Doctor(_) | Verb::Emulate(_) | Verb::Config(_) => return Some(None),
        Verb::Chunk(args) => &args.work,
        Verb::Submit(args) => &args.work,
        Verb::Fetch(args) => &args.work,
        Verb::Run(args) => &args.work,
        // One of them; of several each line names its own.
        Verb::Status(args) => return args.work_dirs.iter().chain(&args.dirs).next().map(|dir| Some(dir.as_path())),
        Verb::Clean(args) => return args.work_dirs.first().map(|dir| Some(dir.as_path())),
        Verb::Verify(args) => return args.work.work_dir.as_deref().map(Some),
        Verb::Cancel(args) => &args.work,
    };
    work.work_dir.as_deref().map(Some)
}

/// Runs the verb that was typed.
pub fn run(cli: &Cli) -> Result<Ended> {
    typed_dir(&cli.verb).into_iter().for_each(works_in);
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
        Verb::Verify(args) => verify::run(args, &console),
        Verb::Cancel(args) => cancel::run(args, &console),
        Verb::Clean(args) => clean::run(args, &console),
        Verb::Doctor(args) => doctor::run(args, &console),
        Verb::Emulate(args) => emulate::run(args, &console),
        Verb::Config(args) => config::run(args, &console),
    }
}
