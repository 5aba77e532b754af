//! The files that a verb writes, held against each other and against what it reads, before any work is done.

use std::{
    collections::HashMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;

use crate::{
    analysis::AnalysisSet,
    cli::FaultArgs,
    error::{Error, Result},
    flow::posts::PostCounts,
    journal,
    lines::{
        input::{Input, exists, identity, stdout_identity},
        output::{Output, is_stdout, is_stream},
        place::resolve,
    },
};

/// `posts`, if the verb writes them again, are the one input that its output may replace. No other output may name a file
/// that is read, and no two outputs one file. Each must be writable: after the last batch it would be late to learn that one
/// is not.
///
/// `output` is where the verb's data goes; `None` and `-` are stdout. `work` is the work directory in force.
pub fn check<'a>(
    posts: Option<&'a Path>,
    inputs: impl IntoIterator<Item = &'a Path>,
    output: Option<&Path>,
    faults: &FaultArgs,
    work: Option<&Path>,
) -> Result<()> {
    let others: Vec<&Path> = inputs.into_iter().collect();
    check_stdout(posts.into_iter().chain(others.iter().copied()), output)?;
    check_stdin(posts, &others, output, faults)?;
    let named = |path: &&Path| *path != Path::new("-");
    let (posts, others) = (posts.filter(named), others.into_iter().filter(named));
    let read = |path: &Path| Some((real(path)?, "is read".to_owned()));
    let mut taken: Vec<(PathBuf, String)> = others.filter_map(read).collect();
    let output = output.unwrap_or(Path::new("-"));
    refuse_in_work_dir("-o", output, work)?;
    let place = real(output);
    if let Some(place) = &place {
        refuse_taken(&taken, "-o", output, place)?;
    }
    taken.extend(posts.and_then(read));
    taken.extend(place.map(|place| (place, "takes the output".to_owned())));
    for (flag, path) in [("--faults", &faults.faults), ("--report", &faults.report)] {
        let Some(path) = path else { continue };
        refuse_in_work_dir(flag, path, work)?;
        if let Some(real) = real(path) {
            refuse_taken(&taken, flag, path, &real)?;
            taken.push((real, format!("takes {flag}")));
        }
        Output::probe(path)?;
    }
    Ok(())
}

/// All in a work directory is zbatch's own: an output there would take the place of the journal or of paid results, or would
/// be moved away with them. `work` is the one in force, which may not be there yet.
pub fn refuse_in_work_dir(flag: &str, path: &Path, work: Option<&Path>) -> Result<()> {
    if is_stdout(path) {
        return Ok(());
    }
    let place = resolve(path)?;
    let work = work.map(resolve).transpose()?;
    let is_work = |dir: &&Path| Some(*dir) == work.as_deref() || journal::is_in(dir);
    let Some(dir) = place.ancestors().skip(1).find(is_work) else { return Ok(()) };
    Err(Error::usage(format!("{flag} {}: it is inside the work directory {}", path.display(), dir.display()))
        .fix(format!("give {flag} a file outside of it")))
}

/// A file that an output would replace.
pub fn is_there(output: &Path) -> Result<bool> {
    Ok(!is_stream(output) && exists(output)?)
}

/// Of an output that the user did not type: a file that is there is replaced only if it looks like posts, as ours does.
pub fn check_replaces_posts(output: &Path, set: &AnalysisSet) -> Result<()> {
    if !is_there(output)? || looks_like_posts(output, set)? {
        return Ok(());
    }
    let what = format!("{} is there and holds no posts, and no -o names it", output.display());
    Err(Error::input(what).fix("name the output with -o; or add --force to replace that file"))
}

/// An empty file or array, or JSON Lines or an array whose first object has a field that some analysis reads or writes.
fn looks_like_posts(path: &Path, set: &AnalysisSet) -> Result<bool> {
    /// Posts are shorter. Of a longer one the beginning is looked at.
    const HEAD: u64 = 1 << 20;

    let input = Input::open(Some(path), "")?;
    let mut head = Vec::new();
    #[expect(clippy::disallowed_methods, reason = "at most HEAD bytes")]
    let read = input.reader.take(HEAD).read_to_end(&mut head);
    if read.is_err() {
        return Ok(false);
    }
    let text = head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&head).trim_ascii_start();
    let (is_array, text) = match text.strip_prefix(b"[") {
        Some(rest) => (true, rest.trim_ascii_start()),
        None => (false, text),
    };
    if text.is_empty() || is_array && text.starts_with(b"]") {
        return Ok(!is_array || !text.is_empty());
    }
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<HashMap<String, IgnoredAny>>();
    let is_known = |name: &str| {
        set.fields.asked().iter().any(|asked| asked == name) || set.list.iter().any(|analysis| analysis.field == name)
    };
    Ok(match objects.next() {
        Some(Ok(object)) => {
            let first = text.get(..objects.byte_offset()).unwrap_or_default();
            object.keys().any(|name| is_known(name)) && (is_array || !first.contains(&b'\n'))
        }
        Some(Err(error)) => error.is_eof() && head.len() as u64 == HEAD && text.starts_with(b"{\""),
        None => false,
    })
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
    resolve(path).ok()
}
