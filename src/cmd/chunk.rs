//! Request lines → chunk files.

use super::{Console, Ended};
use crate::{
    cli::ChunkArgs,
    error::{Error, Result},
};

pub fn run(_args: &ChunkArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`chunk` is not built yet"))
}
