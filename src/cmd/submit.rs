//! Chunks → batches.

use super::{Console, Ended};
use crate::{
    cli::SubmitArgs,
    error::{Error, Result},
};

pub fn run(_args: &SubmitArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`submit` is not built yet"))
}
