//! Inputs.

use std::{fs::File, io::Read, path::Path};

use crate::error::{Error, Result};

/// A file that is small by nature (configuration, prompt, reference data), as text.
///
/// # Errors
/// Missing, unreadable, not UTF-8, or larger than `limit` bytes: each is the user's input to mend.
pub fn read_small(path: &Path, limit: u64) -> Result<String> {
    let unreadable = |e: std::io::Error| Error::input(format!("cannot read {}: {e}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limit {
        return Err(Error::input(format!("{} is larger than {limit} bytes; is it the right file?", path.display())));
    }
    Ok(text)
}
