//! What is in force and where it came from.

use super::{Console, Ended};
use crate::{
    cli::ConfigArgs,
    error::{Error, Result},
};

pub fn run(_args: &ConfigArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`config` is not built yet"))
}
