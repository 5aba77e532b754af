//! A work directory: what lies where in it, and the lock that keeps a second process out (`promises.md` S6, K2).
//!
//! ```text
//! DIR/journal.jsonl                 the state (see `journal`)
//! DIR/lock                          held by the process that works here
//! DIR/requests/{chunk}.jsonl        while the chunk's batch needs it
//! DIR/rows/{chunk}.txt              the indexes of the chunk, as ranges
//! DIR/results/{chunk}.output.jsonl  and .error.jsonl, as the provider wrote them
//! DIR/input.zst                     the posts, if they came from stdin; DIR/input.blake3 is their hash
//! DIR/emulator/                     the embedded server's state
//! ```

use std::{
    fs::{DirBuilder, File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
    flow::ChunkId,
    journal::{self, Journal},
};

/// A work directory that this process holds.
#[derive(Debug)]
pub struct WorkDir {
    dir: PathBuf,
    /// The kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

/// Which of a batch's two result files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultFile {
    Output,
    Error,
}

impl ResultFile {
    pub const BOTH: [Self; 2] = [Self::Output, Self::Error];
}

pub const FOLDERS: [&str; 3] = ["requests", "rows", "results"];
pub const LOCK: &str = "lock";
/// The posts, where they cannot be read again from where they came, and the hash of what the spool holds.
pub const SPOOL: &str = "input.zst";
pub const SPOOL_HASH: &str = "input.blake3";
/// Hashes of the outputs that took the place of the posts: the last one, and the one before.
pub const OUTPUT_HASHES: &str = "output.blake3";
/// Which file the last run wrote beside its output, since rows remained.
pub const PARTIAL_OUTPUT: &str = "output.partial";
/// All that is ours in a work directory.
pub const NAMES: [&str; 14] = [
    journal::FILE,
    LOCK,
    "requests",
    "rows",
    "results",
    SPOOL,
    SPOOL_HASH,
    OUTPUT_HASHES,
    PARTIAL_OUTPUT,
    "emulator",
    "integration_report.json",
    "jsonl_files_info.json",
    "batch_results.json",
    "download_info.json",
];

/// Where a chunk's rows are in a work directory.
pub fn rows_path(dir: &Path, chunk: &ChunkId) -> PathBuf {
    dir.join("rows").join(format!("{chunk}.txt"))
}

/// Where a chunk's results are.
pub fn results_path(dir: &Path, chunk: &ChunkId, file: ResultFile) -> PathBuf {
    let which = match file {
        ResultFile::Output => "output",
        ResultFile::Error => "error",
    };
    dir.join("results").join(format!("{chunk}.{which}.jsonl"))
}

/// What a killed process leaves of a file that was to appear.
pub fn is_part(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".part")
}

impl WorkDir {
    /// Makes the directory if it is not there, and takes its lock.
    ///
    /// # Errors
    /// [`Kind::TryAgain`] when another process holds it.
    pub fn create(dir: &Path) -> Result<Self> {
        // `w/.` is `w`, and can only be made under that name.
        let dir = &dir.components().collect::<PathBuf>();
        make(dir)?;
        for folder in FOLDERS {
            make(&dir.join(folder))?;
        }
        let lock = lock(dir)?;
        let work = Self { dir: dir.to_owned(), _lock: lock };
        work.sweep()?;
        Ok(work)
    }

    /// The same for a verb that needs a journal to be there.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.join(journal::FILE).is_file() {
            return Err(Error::input(format!(
                "{} is not a work directory: it has no {}",
                dir.display(),
                journal::FILE
            ))
            .fix("name one with -d; `zbatch gen -d DIR posts.jsonl` makes one"));
        }
        Self::create(dir)
    }

    /// Moves everything away to `DIR.old-N` and begins an empty directory.
    pub fn renew(self) -> Result<Self> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let old = (1u32..)
            .map(|n| self.dir.with_file_name(format!("{name}.old-{n}")))
            .find(|path| !path.exists())
            .unwrap_or_else(|| self.dir.with_extension("old"));
        std::fs::rename(&self.dir, &old).map_err(|e| Error::io("move away", &self.dir, &e))?;
        let dir = self.dir.clone();
        drop(self);
        Self::create(&dir)
    }

    /// Forgets a job for which no batch was created. `keeps_posts`: they were piped in, and this may be the only copy.
    pub fn forget(&self, keeps_posts: bool) -> Result<()> {
        let mut paths = list(&self.join("requests"))?;
        paths.extend(list(&self.join("rows"))?);
        if !keeps_posts {
            paths.extend([self.spool(), self.spool_hash()]);
        }
        // The journal last: without one, rows mean that it was lost.
        paths.push(self.join(journal::FILE));
        for path in paths {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Chunks were cut here.
    pub fn has_rows(&self) -> Result<bool> {
        Ok(!list(&self.join("rows"))?.is_empty())
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    pub fn journal(&self) -> Result<Journal> {
        Journal::open(&self.dir)
    }

    pub fn rows(&self, chunk: &ChunkId) -> PathBuf {
        rows_path(&self.dir, chunk)
    }

    pub fn results(&self, chunk: &ChunkId, file: ResultFile) -> PathBuf {
        results_path(&self.dir, chunk, file)
    }

    pub fn spool(&self) -> PathBuf {
        self.dir.join(SPOOL)
    }

    /// The hash of what the spool holds.
    pub fn spool_hash(&self) -> PathBuf {
        self.dir.join(SPOOL_HASH)
    }

    /// Removes what a killed process left half-written.
    fn sweep(&self) -> Result<()> {
        for folder in FOLDERS.iter().map(|name| self.dir.join(name)).chain([self.dir.clone()]) {
            for path in list(&folder)? {
                if is_part(&path.file_name().unwrap_or_default().to_string_lossy()) {
                    std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, &e))?;
                }
            }
        }
        Ok(())
    }
}

pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    entries.map_err(|e| Error::io("list", dir, &e))
}

fn make(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| Error::io("create directory", dir, &e))
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let mut file = loop {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("open", &path, &e))?;
        match file.try_lock() {
            // Between the two steps another process may have moved the directory away, and begun a new one.
            Ok(()) if !is_at(&file, &path) => {}
            Ok(()) => break file,
            Err(_) if drill::without(Guard::Lock) => break file,
            Err(TryLockError::WouldBlock) => return Err(in_use(dir, file)),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, &e)),
        }
    };
    let holder = format!("process {}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(holder.as_bytes()))
        .map_err(|e| Error::io("write", &path, &e))?;
    Ok(file)
}

/// The open file is still the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |open: std::fs::Metadata, there: std::fs::Metadata| (open.dev(), open.ino()) == (there.dev(), there.ino());
    file.metadata().and_then(|open| Ok(same(open, std::fs::metadata(path)?))).unwrap_or_default()
}

fn in_use(dir: &Path, lock: File) -> Error {
    let mut holder = String::new();
    // Only to name it, and it may be about to write its name: whatever can be read is good enough.
    let _unreadable = lock.take(200).read_to_string(&mut holder);
    let holder = match holder.trim() {
        "" => "another process".to_owned(),
        holder => crate::flow::faults::escape_control(holder),
    };
    Error::new(Kind::TryAgain, format!("{} is in use by {holder}", dir.display()))
        .fix("wait for it to end, or use another work directory (-d)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_a_lock_of_a_directory_that_was_moved_away_is_not_of_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("w/lock");
        let work = WorkDir::create(&dir.path().join("w")).expect("free");
        let early = File::open(&path).expect("there");
        assert!(is_at(&early, &path));
        let work = work.renew().expect("renewed");
        early.try_lock().expect("the old one is free");
        assert!(!is_at(&early, &path) && WorkDir::create(work.path()).is_err());
    }

    #[test]
    fn s6_a_second_holder_is_told_who_holds_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let work = WorkDir::create(&dir.path().join("w")).expect("free");
        let error = WorkDir::create(work.path()).expect_err("held");
        assert_eq!(error.kind(), Kind::TryAgain);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        let again = work.renew().expect("renewed");
        assert!(dir.path().join("w.old-1/lock").exists());
        drop(again);
        WorkDir::create(&dir.path().join("w")).expect("free again");
    }
}
