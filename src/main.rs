//! The program: parse, run, exit code.

use std::{process::ExitCode, sync::Arc};

use clap::{
    CommandFactory as _, Parser as _,
    error::{ContextKind, ContextValue},
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use zbatch::{
    cli::{Cli, Progress, Verbosity},
    cmd,
    console::Console,
    error::{Error, Kind},
    flow::faults::{escape_control, is_hostile},
    units::nearest,
};

fn main() -> ExitCode {
    hear_of_full_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            keep_near_hints(&mut error);
            // What clap repeats of the command line may be the name of a file that somebody else chose.
            let is_hostile = |arg: std::ffi::OsString| arg.to_string_lossy().chars().any(is_hostile);
            if error.use_stderr() && std::env::args_os().any(is_hostile) {
                Console::new(false, 0, Progress::Plain).always(error.to_string().trim_end());
                return ExitCode::from(Kind::Usage.exit_code());
            }
            // clap writes help to stdout and complaints to stderr; a closed one is a quiet end.
            let printed = error.print();
            if error.use_stderr() {
                return ExitCode::from(Kind::Usage.exit_code());
            }
            return printed
                .map_or_else(|e| fail(&Error::io("write", "stdout", &e), Progress::Auto), |()| ExitCode::SUCCESS);
        }
    };
    show_events(&cli.output);
    match cmd::run(&cli) {
        Ok(ended) => ExitCode::from(ended.exit_code()),
        Err(error) => fail(&error, cli.output.progress),
    }
}

/// Under `ulimit -f` a write that goes too far ends the process, unless it has a handler for the signal: then the write fails,
/// and the error names the file.
fn hear_of_full_files() {
    let signal = rustix::process::Signal::XFSZ.as_raw();
    // Nobody looks at the flag. Without the handler the process ends by the signal, as before.
    let _unheard = signal_hook::flag::register(signal, Arc::default());
}

/// clap suggests words that only look a little like what was typed, and for a short word that is misspelt none.
fn keep_near_hints(error: &mut clap::Error) {
    let cli = Cli::command();
    let verbs: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
    let typed = |kind| match error.get(kind) {
        Some(ContextValue::String(typed)) => Some(typed.clone()),
        _ => None,
    };
    if let Some(typed) = typed(ContextKind::InvalidSubcommand) {
        error.remove(ContextKind::SuggestedSubcommand);
        if let Some(meant) = nearest(&typed, &verbs) {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![meant.to_owned()]));
        }
    } else if let (Some(typed), Some(meant)) = (typed(ContextKind::InvalidArg), typed(ContextKind::SuggestedArg))
        && nearest(&typed, &[&meant]).is_none()
    {
        error.remove(ContextKind::SuggestedArg);
    }
}

fn fail(error: &Error, progress: Progress) -> ExitCode {
    if error.kind() != Kind::ClosedPipe {
        Console::new(false, 0, progress).error(error);
    }
    ExitCode::from(error.kind().exit_code())
}

/// Our own events go to stderr: trouble of the emulator always, calls to the provider under `-vv`. No dependency's do:
/// what those would say of a request is not known.
fn show_events(verbosity: &Verbosity) {
    let level = match (verbosity.quiet, verbosity.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    let lines =
        tracing_subscriber::fmt::layer().with_writer(|| OneLine(std::io::stderr())).with_ansi(false).without_time();
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    tracing_subscriber::registry().with(ours).with(lines).init();
}

/// An event is written in one piece, and stays one line: texts of servers are in it.
struct OneLine(std::io::Stderr);

impl std::io::Write for OneLine {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        self.0.write_all((escape_control(text.trim_end_matches('\n')) + "\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
