//! Batches → results files.

use super::{Console, Ended};
use crate::{
    cli::FetchArgs,
    error::{Error, Result},
};

pub fn run(_args: &FetchArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`fetch` is not built yet"))
}
