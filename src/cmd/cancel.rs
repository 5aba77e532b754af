//! Cancels what runs.

use super::{Console, Ended};
use crate::{
    cli::CancelArgs,
    error::{Error, Result},
};

pub fn run(_args: &CancelArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`cancel` is not built yet"))
}
