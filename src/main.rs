//! The program: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use zbatch::{
    cli::Cli,
    cmd::{self, Console},
    error::Kind,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap writes help to stdout and complaints to stderr; a closed one is a quiet end.
            let _closed = error.print();
            return ExitCode::from(if error.use_stderr() { Kind::Usage.exit_code() } else { 0 });
        }
    };
    match cmd::run(&cli) {
        Ok(ended) => ExitCode::from(ended.exit_code()),
        Err(error) => {
            if error.kind() != Kind::ClosedPipe {
                Console::new(false, 0, cli.output.progress).always(&error);
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}
