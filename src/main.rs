//! The program: parse, run, exit code.

use std::{io::Write, process::ExitCode, sync::Arc};

use clap::{
    CommandFactory as _, FromArgMatches as _,
    error::{ContextKind, ContextValue},
};
use serde_json::json;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use zbatch::{
    cli::{Cli, Progress, Verbosity},
    cmd,
    console::Console,
    emulator::faults,
    error::{Error, Kind},
    text::{is_hostile, nearest},
};

fn main() -> ExitCode {
    hear_of_full_files();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            keep_near_hints(&mut error);
            // What clap repeats of the command line may be the name of a file that somebody else chose.
            let is_hostile = |arg: std::ffi::OsString| arg.to_string_lossy().chars().any(is_hostile);
            let progress = if json_was_typed() { Progress::Json } else { Progress::Plain };
            if error.use_stderr() && (progress == Progress::Json || std::env::args_os().any(is_hostile)) {
                return fail(&Error::usage(error.to_string().trim_end()), progress);
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
    let console = Console::new(false, 0, cli.output.progress);
    if console.is_json() {
        std::panic::set_hook(Box::new(move |panic| console.always(panic)));
    }
    match cmd::run(&cli) {
        Ok(ended) => {
            if console.is_json() {
                console.event("end", &json!({"exit_code": ended.exit_code()}));
            }
            ExitCode::from(ended.exit_code())
        }
        Err(error) => fail(&error, cli.output.progress),
    }
}

/// The command line. The help of `emulate` ends with the emulator's own list of its faults.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command().mut_subcommand("emulate", |emulate| emulate.after_long_help(faults::help()));
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut command))
}

/// Under `ulimit -f` a write that goes too far ends the process, unless it has a handler for the signal: then the write fails,
/// and the error names the file.
fn hear_of_full_files() {
    let signal = rustix::process::Signal::XFSZ.as_raw();
    // Nobody looks at the flag. Without the handler the process ends by the signal, as before.
    let _unheard = signal_hook::flag::register(signal, Arc::default());
}

/// Whether the command line asks for JSON lines, also where it is wrong otherwise.
fn json_was_typed() -> bool {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    words.iter().any(|word| word == "--progress=json")
        || words.windows(2).any(|pair| matches!(pair, [flag, value] if flag == "--progress" && value == "json"))
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
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).without_time();
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    let console = Console::new(false, 0, verbosity.progress);
    let lines = lines.with_writer(move || Events(console));
    tracing_subscriber::registry().with(ours).with(lines).init();
}

/// Takes events, each in one piece, and says them one a line: texts of servers are in them.
struct Events(Console);

impl Write for Events {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        self.0.log(String::from_utf8_lossy(event).trim_end());
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
