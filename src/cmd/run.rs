//! The whole job, overlapped.

use super::{Console, Ended};
use crate::{
    cli::RunArgs,
    error::{Error, Result},
};

pub fn run(_args: &RunArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`run` is not built yet"))
}
