//! Posts ⋈ answers → enhanced posts.

use super::{Console, Ended};
use crate::{
    cli::MergeArgs,
    error::{Error, Result},
};

pub fn run(_args: &MergeArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`merge` is not built yet"))
}
