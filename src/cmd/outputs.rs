//! The files that a verb writes, held against each other and against what it reads, before any work is done.

use std::path::{Path, PathBuf};

use crate::{
    cli::FaultArgs,
    error::{Error, Result},
    lines::output::{Output, directory, follow, is_stdout, is_stream},
};

/// Only the posts' own output may replace an input; `--faults` and `--report` may name no file that is read, and no two
/// outputs may be one file. Each must be writable: after the last batch it would be late to learn that one is not.
///
/// `output` is where the verb's data goes; `None` and `-` are stdout.
pub fn check<'a>(inputs: impl IntoIterator<Item = &'a Path>, output: Option<&Path>, faults: &FaultArgs) -> Result<()> {
    let mut taken: Vec<(PathBuf, String)> = inputs
        .into_iter()
        .filter(|path| *path != Path::new("-"))
        .filter_map(|path| Some((real(path)?, "is read".to_owned())))
        .collect();
    let output = output.unwrap_or(Path::new("-"));
    taken.extend(real(output).map(|path| (path, "takes the output".to_owned())));
    for (flag, path) in [("--faults", &faults.faults), ("--report", &faults.report)] {
        let Some(path) = path else { continue };
        if let Some(real) = real(path) {
            if let Some((_, use_)) = taken.iter().find(|(known, _)| *known == real) {
                let name = if is_stdout(path) { "stdout".into() } else { path.display().to_string() };
                return Err(Error::usage(format!("{flag} {}: {name} {use_} already", path.display()))
                    .fix(format!("give {flag} a file of its own")));
            }
            taken.push((real, format!("takes {flag}")));
        }
        Output::probe(path)?;
    }
    Ok(())
}

/// One name for each file, there or not; `None` for a device or pipe, which many may write to.
fn real(path: &Path) -> Option<PathBuf> {
    if is_stdout(path) {
        return Some("-".into());
    }
    if is_stream(path) {
        return None;
    }
    let path = follow(path).ok()?;
    Some(std::fs::canonicalize(directory(&path)).ok()?.join(path.file_name()?))
}
