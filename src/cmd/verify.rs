//! `verify` holds a work directory against its journal, offline. It writes nothing and takes no lock, except under `--repair`.

use std::path::Path;

use super::Ended;
use crate::{
    cli::VerifyArgs,
    console::Console,
    error::Result,
    journal,
    settings::Config,
    workdir::{WorkDir, check::check},
};

pub fn run(args: &VerifyArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let dir = config.work_dir(args.work.work_dir.as_deref()).value;
    if args.repair {
        repair(&dir, console)?;
    }
    check(&dir, console)?;
    Ok(Ended::Finished)
}

/// Puts the damaged end of the journal aside. Nobody may work there meanwhile.
fn repair(dir: &Path, console: &Console) -> Result<()> {
    let _held = WorkDir::open(dir)?;
    match journal::repair(dir)? {
        Some(aside) => console.always(format_args!(
            "the journal's end, from its damaged line on, is in {} now. The same command as before goes on: it finds the batches \
             in the provider's list before it creates any",
            aside.display()
        )),
        None => console.note("no line of the journal is damaged: nothing was changed"),
    }
    Ok(())
}
