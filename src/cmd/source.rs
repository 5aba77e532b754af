//! Where the posts of a `run` come from. They are read three times (to plan, to cut, to join), and again after a crash; what
//! cannot be read again is kept in the work directory first.

use std::{
    io::{IsTerminal as _, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::outputs::replaces;
use crate::{
    cli::RunArgs,
    console::Console,
    error::{Error, Result},
    folder::Entry,
    journal::Journal,
    lines::{
        input::{Input, exists, open_error, read_error},
        output::{AtomicFile, aside, is_stream},
    },
    settings::Config,
    workdir::{OUTPUT_HASHES, PARTIAL_OUTPUT, WorkDir},
};

/// The spool's compression: fast, and enough for text.
const LEVEL: i32 = 1;
const BUFFER: usize = 256 << 10;

/// The file that posts are read from.
#[derive(Debug)]
pub struct PostsFile {
    pub path: PathBuf,
    /// What the user calls them; `path` may be our copy.
    pub name: String,
    /// The output is to take the place of the file that they came from.
    pub is_output: bool,
}

/// The input as the user named it.
#[derive(Debug)]
pub enum Source {
    /// A file that stays as it is.
    File(PathBuf),
    /// `None`: stdin. A pipe, or a file that the output will replace, has a path.
    Spooled(Option<PathBuf>),
}

impl Source {
    pub fn find(args: &RunArgs, config: &Config, output: &Path) -> Result<Self> {
        let path = match &args.posts {
            Some(path) if path == Path::new("-") => return Ok(Self::Spooled(None)),
            Some(path) => path.clone(),
            None => {
                let posts = config.posts(args.source.data_dir.as_deref())?;
                let no_dir = || {
                    Error::usage("no posts: there is no data dir with a posts.json")
                        .fix("name a file: zbatch run posts.jsonl -o enhanced.jsonl")
                };
                posts.ok_or_else(no_dir)?.value
            }
        };
        let meta = std::fs::metadata(&path).map_err(|e| open_error(&path, &e))?;
        if meta.is_dir() {
            return Err(Error::input(format!("{} is a directory", path.display())).fix("name a file"));
        }
        let is_kept = meta.is_file() && !replaces(Some(&path), output);
        Ok(if is_kept { Self::File(path) } else { Self::Spooled(Some(path)) })
    }

    pub fn is_spooled(&self) -> bool {
        matches!(self, Self::Spooled(_))
    }

    /// The file to read posts from, from now on.
    ///
    /// # Errors
    /// The directory holds other posts than those that are piped in now.
    pub fn settle(&self, work: &WorkDir, journal: &Journal, console: &Console) -> Result<PostsFile> {
        let (path, from) = match self {
            Self::File(from) => (self.settle_file(from, work, journal)?, Some(from)),
            Self::Spooled(from) => (self.settle_copy(from.as_deref(), work, journal, console)?, from.as_ref()),
        };
        let name = from.map_or("stdin".to_owned(), |from| from.display().to_string());
        let is_output = self.is_spooled() && from.is_some_and(|from| from.is_file());
        Ok(PostsFile { path, name, is_output })
    }

    fn settle_file(&self, from: &Path, work: &WorkDir, journal: &Journal) -> Result<PathBuf> {
        if !journal.read(|state| state.spooled)? || !work.spool().exists()? {
            return Ok(from.to_owned());
        }
        if !nothing_is_cut(journal)? {
            // The output may have replaced its input since: the directory keeps what it began with.
            return Ok(work.spool().path());
        }
        // Kept, and then refused: the copy must not come back when this file is gone.
        work.spool().remove()?;
        work.spool_hash().remove()?;
        Ok(from.to_owned())
    }

    fn settle_copy(
        &self,
        from: Option<&Path>,
        work: &WorkDir,
        journal: &Journal,
        console: &Console,
    ) -> Result<PathBuf> {
        let (spool, sum) = (work.spool(), work.spool_hash());
        let others = || {
            Error::input(format!("{} was made from other posts", work.path().display()))
                .fix("pipe in the same ones, or nothing, to go on; other posts need another directory (-d), or --new")
        };
        let is_kept = spool.exists()?;
        let go_on = || {
            console.note(format_args!("going on with the posts kept in {spool}"));
            Ok(spool.path())
        };
        let nothing_comes = from.is_none() && std::io::stdin().is_terminal();
        if is_kept && (nothing_comes || !nothing_is_cut(journal)?) {
            let replaced = from.is_some_and(Path::is_file);
            if let Some(file) = from.filter(|_| replaced)
                && !holds_the_posts(file, work)?
                && !is_own_output(file, work)?
            {
                let file = file.display();
                let what = format!(
                    "{file} has changed: it holds neither the posts of {} nor its output",
                    work.path().display()
                );
                return Err(Error::input(what)
                    .fix("name another output with -o, another directory with -d, or begin again with --new"));
            }
            if !replaced && !nothing_comes {
                // Without a hash nothing is piped in.
                let hash = copy(Input::open(from, "")?, &mut std::io::sink())?;
                if hash.is_some_and(|hash| !is_the_kept(&hash, work).unwrap_or_default()) {
                    return Err(others());
                }
            }
            return go_on();
        }
        let failed = |e: std::io::Error| Error::io("write", spool.path(), &e);
        let input = Input::open(from, "cat posts.jsonl | zbatch run - -o enhanced.jsonl")?;
        let mut encoder = zstd::Encoder::new(AtomicFile::within(&spool)?, LEVEL).map_err(failed)?;
        let hash = copy(input, &mut encoder)?;
        if hash.is_none() && is_kept {
            return go_on();
        }
        if hash.is_none() && journal.resumed {
            return Err(Error::input("it was stopped before all posts were kept, and none are piped in now")
                .fix("pipe in the posts once more"));
        }
        let hash = hash.unwrap_or_default();
        // The kept posts are gone: only the same may take their place.
        if !journal.read(|state| state.jobs.is_empty())? && sum.exists()? && !has_sum(&sum, &hash) {
            return Err(others());
        }
        let file = encoder.finish().map_err(failed)?;
        sum.write(format!("{hash}\n").as_bytes())?;
        file.commit()?;
        Ok(spool.path())
    }
}

/// Whatever was kept was refused, or not looked at: other posts may take its place.
fn nothing_is_cut(journal: &Journal) -> Result<bool> {
    journal.read(|state| state.jobs.is_empty() && state.posts.is_none())
}

fn has_sum(sum: &Entry, hash: &str) -> bool {
    sum.read_small(BUFFER as u64).is_ok_and(|sum| sum.trim() == hash)
}

/// The kept posts have this hash.
fn is_the_kept(hash: &str, work: &WorkDir) -> Result<bool> {
    // A sum that is damaged says nothing: the posts themselves do.
    Ok(has_sum(&work.spool_hash(), hash)
        || copy(Input::open(Some(&work.spool().path()), "")?, &mut std::io::sink())?.as_deref() == Some(hash))
}

/// What the last run, or the one before, put in the place of the posts.
fn is_own_output(file: &Path, work: &WorkDir) -> Result<bool> {
    let hash = copy(Input::open(Some(file), "")?, &mut std::io::sink())?;
    let known = work.file(OUTPUT_HASHES).read_small(BUFFER as u64).unwrap_or_default();
    Ok(hash.is_some_and(|hash| known.lines().any(|known| known == hash)))
}

/// Before an output takes the place of the posts: a later run must know it from a file that the user has changed.
pub fn remember_output(hash: &str, work: &WorkDir) -> Result<()> {
    let file = work.file(OUTPUT_HASHES);
    let known = file.read_small(BUFFER as u64).unwrap_or_default();
    let last = known.lines().next().unwrap_or_default();
    file.write(format!("{hash}\n{last}\n").as_bytes())
}

/// The file beside an output that holds what is there while rows remain. A later run removes it, but no other file of that
/// name: the work directory remembers which one it made.
#[derive(Debug)]
pub struct PartialOutput {
    path: PathBuf,
    mark: Entry,
}

impl PartialOutput {
    pub fn of(output: &Path, work: &WorkDir) -> Result<Self> {
        let path = if is_stream(output) { PathBuf::new() } else { aside(output)? };
        Ok(Self { path, mark: work.file(PARTIAL_OUTPUT) })
    }

    /// The file as it is now: any later change to it changes this.
    fn identity(&self) -> Option<String> {
        let meta = std::fs::symlink_metadata(&self.path).ok()?;
        Some(format!("{} {} {} {}.{:09}", meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    pub fn remember(&self) -> Result<()> {
        self.identity().map_or(Ok(()), |identity| self.mark.write(format!("{identity}\n").as_bytes()))
    }

    pub fn remove(&self) -> Result<()> {
        if !self.mark.exists()? {
            return Ok(());
        }
        let mark = self.mark.read_small(BUFFER as u64).unwrap_or_default();
        if self.identity().is_some_and(|identity| identity == mark.trim()) {
            std::fs::remove_file(&self.path).map_err(|e| Error::io("remove", &self.path, &e))?;
        }
        self.mark.remove()
    }
}

/// A file holds what the posts were kept from: then it is the only other place where those that cannot be read stand as
/// they were.
pub fn holds_the_posts(file: &Path, work: &WorkDir) -> Result<bool> {
    if is_stream(file) || !exists(file)? || !work.spool().exists()? {
        return Ok(false);
    }
    let hash = copy(Input::open(Some(file), "")?, &mut std::io::sink())?;
    hash.map_or(Ok(false), |hash| is_the_kept(&hash, work))
}

/// Copies all, and gives the hash of it, if it was anything.
fn copy(mut input: Input, to: &mut impl std::io::Write) -> Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut any = false;
    loop {
        let read = match input.reader.read(&mut buffer) {
            Ok(0) => return Ok(any.then(|| hasher.finalize().to_hex().to_string())),
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read_error(&input.name, &e)),
        };
        any = true;
        let bytes = buffer.get(..read).unwrap_or_default();
        hasher.update(bytes);
        to.write_all(bytes).map_err(|e| Error::io("write", "the kept posts", &e))?;
    }
}
