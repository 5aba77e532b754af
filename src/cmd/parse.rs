//! Result lines → answers, one for one.

use super::{Console, Ended};
use crate::{
    cli::ParseArgs,
    error::{Error, Result},
};

pub fn run(_args: &ParseArgs, _console: &Console) -> Result<Ended> {
    Err(Error::usage("`parse` is not built yet"))
}
