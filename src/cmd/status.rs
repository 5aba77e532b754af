//! Where a work directory stands.

use super::{Console, Ended};
use crate::{
    cli::StatusArgs,
    error::{Error, Result},
};

pub fn run(_args: &StatusArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`status` is not built yet"))
}
