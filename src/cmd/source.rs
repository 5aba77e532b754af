//! Where the posts of a `run` come from. They are read three times (to plan, to cut, to join), and again after a crash; what
//! cannot be read again is kept in the work directory first.

use std::{
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
};

use crate::{
    cli::RunArgs,
    console::Console,
    error::{Error, Result},
    journal::Journal,
    lines::{
        input::{Input, exists, open_error, read_error, read_small},
        output::{AtomicFile, write_private},
    },
    settings::Config,
    workdir::WorkDir,
};

/// The spool's compression: fast, and enough for text.
const LEVEL: i32 = 1;
const BUFFER: usize = 256 << 10;

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
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        let is_output = real(output).is_some_and(|output| Some(output) == real(&path));
        Ok(if meta.is_file() && !is_output { Self::File(path) } else { Self::Spooled(Some(path)) })
    }

    pub fn is_spooled(&self) -> bool {
        matches!(self, Self::Spooled(_))
    }

    /// The file to read posts from, from now on.
    ///
    /// # Errors
    /// The directory holds other posts than those that are piped in now.
    pub fn settle(&self, work: &WorkDir, journal: &Journal, console: &Console) -> Result<PathBuf> {
        let was_spooled = journal.state.spooled;
        let from = match self {
            // The output may have replaced its input since: the directory keeps what it began with.
            Self::File(_) if was_spooled && exists(&work.spool())? => return Ok(work.spool()),
            Self::File(path) => return Ok(path.clone()),
            Self::Spooled(from) => from.as_deref(),
        };
        let spool = work.spool();
        let sum = work.spool_hash();
        let has_sum = |hash: &str| read_small(&sum, BUFFER as u64).is_ok_and(|sum| sum.trim() == hash);
        let others = || {
            Error::input(format!("{} was made from other posts", work.path().display()))
                .fix("pipe in the same ones (or nothing, to go on), use another directory (-d), or --new")
        };
        if exists(&spool)? {
            let replaced = from.is_some_and(Path::is_file);
            if !replaced && (from.is_some() || !std::io::stdin().is_terminal()) {
                let hash = copy(Input::open(from, "")?, &mut std::io::sink())?;
                // A sum that is damaged says nothing: the posts themselves do.
                if let Some(hash) = hash
                    && !has_sum(&hash)
                    && copy(Input::open(Some(&spool), "")?, &mut std::io::sink())?.as_ref() != Some(&hash)
                {
                    return Err(others());
                }
            }
            console.note(format_args!("going on with the posts kept in {}", spool.display()));
            return Ok(spool);
        }
        let failed = |e: std::io::Error| Error::io("write", &spool, &e);
        let input = Input::open(from, "cat posts.jsonl | zbatch run - -o enhanced.jsonl")?;
        let mut encoder = zstd::Encoder::new(AtomicFile::create_private(&spool)?, LEVEL).map_err(failed)?;
        let hash = copy(input, &mut encoder)?;
        if hash.is_none() && journal.resumed {
            return Err(Error::input("it was stopped before all posts were kept, and none are piped in now")
                .fix("pipe in the posts once more"));
        }
        let hash = hash.unwrap_or_default();
        // The kept posts are gone: only the same may take their place.
        if !journal.state.jobs.is_empty() && exists(&sum)? && !has_sum(&hash) {
            return Err(others());
        }
        let file = encoder.finish().map_err(failed)?;
        write_private(&sum, format!("{hash}\n").as_bytes())?;
        file.commit()?;
        Ok(spool)
    }
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
