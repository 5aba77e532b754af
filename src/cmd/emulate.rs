//! Serves the Batch API on a loopback port.

use super::{Console, Ended};
use crate::{
    cli::EmulateArgs,
    error::{Error, Result},
};

pub fn run(_args: &EmulateArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`emulate` is not built yet"))
}
