//! Posts → request lines, as a filter or into chunk files.

use super::{Console, Ended};
use crate::{
    cli::GenArgs,
    error::{Error, Result},
};

pub fn run(_args: &GenArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`gen` is not built yet"))
}
