//! The files that a verb writes, held against each other and against what it reads, before any work is done.

use std::path::{Path, PathBuf};

use crate::{
    cli::FaultArgs,
    error::{Error, Result},
    flow::posts::PostCounts,
    lines::{
        input::{identity, stdout_identity},
        output::{Output, directory, follow, is_stdout, is_stream},
    },
};

/// `posts`, if the verb writes them again, are the one input that its output may replace. No other output may name a file
/// that is read, and no two outputs one file. Each must be writable: after the last batch it would be late to learn that one
/// is not.
///
/// `output` is where the verb's data goes; `None` and `-` are stdout.
pub fn check<'a>(
    posts: Option<&'a Path>,
    inputs: impl IntoIterator<Item = &'a Path>,
    output: Option<&Path>,
    faults: &FaultArgs,
) -> Result<()> {
    let others: Vec<&Path> = inputs.into_iter().collect();
    check_stdout(posts.into_iter().chain(others.iter().copied()), output)?;
    check_stdin(posts, &others, output, faults)?;
    let named = |path: &&Path| *path != Path::new("-");
    let (posts, others) = (posts.filter(named), others.into_iter().filter(named));
    let read = |path: &Path| Some((real(path)?, "is read".to_owned()));
    let mut taken: Vec<(PathBuf, String)> = others.filter_map(read).collect();
    let output = output.unwrap_or(Path::new("-"));
    let place = real(output);
    if let Some(place) = &place {
        refuse_taken(&taken, "-o", output, place)?;
    }
    taken.extend(posts.and_then(read));
    taken.extend(place.map(|place| (place, "takes the output".to_owned())));
    for (flag, path) in [("--faults", &faults.faults), ("--report", &faults.report)] {
        let Some(path) = path else { continue };
        if let Some(real) = real(path) {
            refuse_taken(&taken, flag, path, &real)?;
            taken.push((real, format!("takes {flag}")));
        }
        Output::probe(path)?;
    }
    Ok(())
}

/// A file may also be read by way of stdin (`< posts.jsonl`), where no name tells.
fn check_stdin(posts: Option<&Path>, others: &[&Path], output: Option<&Path>, faults: &FaultArgs) -> Result<()> {
    let is_stdin = |path: &Path| path == Path::new("-");
    let read = others.iter().any(|path| is_stdin(path));
    let outputs = [
        ("-o", output.filter(|_| read)),
        ("--faults", faults.faults.as_deref()),
        ("--report", faults.report.as_deref()),
    ];
    let Some(stdin) = identity(None).filter(|_| read || posts.is_some_and(is_stdin)) else { return Ok(()) };
    for (flag, path) in outputs {
        let Some(path) = path.filter(|path| !is_stream(path) && identity(Some(path)) == Some(stdin)) else { continue };
        return Err(Error::usage(format!("{flag} {}: it is read already, as stdin", path.display()))
            .fix(format!("give {flag} a file of its own")));
    }
    Ok(())
}

fn refuse_taken(taken: &[(PathBuf, String)], flag: &str, path: &Path, real: &Path) -> Result<()> {
    let Some((_, use_)) = taken.iter().find(|(known, _)| known == real) else { return Ok(()) };
    let name = if is_stdout(path) { "stdout".into() } else { path.display().to_string() };
    Err(Error::usage(format!("{flag} {}: {name} {use_} already", path.display()))
        .fix(format!("give {flag} a file of its own")))
}

/// What a shell writes into a file that is read (`>> posts.jsonl`) would be read again.
fn check_stdout<'a>(mut inputs: impl Iterator<Item = &'a Path>, output: Option<&Path>) -> Result<()> {
    let Some(stdout) = stdout_identity().filter(|_| output.is_none_or(is_stdout)) else { return Ok(()) };
    let Some(path) = inputs.find(|path| identity(Some(path)) == Some(stdout)) else { return Ok(()) };
    let path = if path == Path::new("-") { Path::new("stdin") } else { path };
    Err(Error::usage(format!("stdout is {}, which is read", path.display())).fix("write to another file: -o FILE"))
}

/// The output would take the place of the posts that are read, by whatever name. `None` and `-` are stdin.
pub fn replaces(posts: Option<&Path>, output: &Path) -> bool {
    let posts = identity(posts);
    !is_stream(output) && posts.is_some() && posts == identity(Some(output))
}

/// The same, or it may be so: posts that come through a pipe may come from the file that is there.
pub fn may_replace(posts: &Path, output: &Path) -> bool {
    let is_pipe = posts == Path::new("-") && identity(None).is_none() || is_stream(posts);
    replaces(Some(posts), output) || is_pipe && !is_stream(output) && identity(Some(output)).is_some()
}

/// The posts stay where they are, since some could not be read and are not in the output.
pub fn kept_posts(output: &Path, aside: &Path, counts: PostCounts, fix: &str) -> Error {
    let (output, aside, lines) = (output.display(), aside.display(), counts.bad_lines());
    Error::input(format!(
        "{output}: {lines} could not be read and would be lost, so {output} stays as it is; the output is in {aside}"
    ))
    .fix(fix)
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
