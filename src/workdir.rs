//! A work directory: the place of each file in it, whether it may be trusted, and the locks that keep a second process out
//! (`docs/reliability.md` S6, K2).
//!
//! ```text
//! DIR/journal.jsonl                 the state (see `journal`); locked by the process that works here
//! DIR/lock                          names that process, and is locked by it too: older versions look here only
//! DIR/requests/{chunk}.jsonl        while the chunk's batch needs it
//! DIR/rows/{chunk}.txt              the indexes of the chunk, as ranges
//! DIR/results/{chunk}.output.jsonl  and .error.jsonl, as the provider wrote them
//! DIR/input.zst                     the posts, if they came from stdin; DIR/input.blake3 is their hash
//! DIR/faults.jsonl                faults of posts and requests, found when chunks were cut
//! DIR/emulator/                     the embedded server's state
//! ```
//!
//! A directory is refused before anything in it is touched if it belongs to another user, if group or others may write to it, or
//! if one of these names is a symbolic link. What lies in it decides which batches are polled, cancelled and deleted with the
//! user's key, so it must come from the user.

pub mod check;
pub mod claim;
pub mod results;

use std::{
    ffi::OsStr,
    fs::{File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Stat, fstat};

use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
    flow::{
        ChunkId,
        chunks::{request_file, rows_file},
    },
    folder::{Entry, Folder, Owner, directory, is_same, is_shared},
    journal::{self, Journal, Location},
    shell,
};

/// A work directory that this process holds.
#[derive(Debug)]
pub struct WorkDir {
    folder: Folder,
    /// The journal. Its lock, and that of `lock`, end with the process, however it ends.
    journal: File,
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
/// All results in one file: what `clean --compress` leaves.
pub const ALL_RESULTS: &str = "results.jsonl.zst";
/// The posts, where they cannot be read again from where they came, and the hash of what the spool holds.
pub const SPOOL: &str = "input.zst";
pub const SPOOL_HASH: &str = "input.blake3";
/// Hashes of the outputs that took the place of the posts: the last one, and the one before.
pub const OUTPUT_HASHES: &str = "output.blake3";
/// Which file the last run wrote beside its output, since rows remained.
pub const PARTIAL_OUTPUT: &str = "output.partial";
/// Faults of posts and requests, found when chunks were cut.
pub const CUT_FAULTS: &str = "faults.jsonl";
pub const REPORT: &str = "integration_report.json";
/// All names that zbatch gives in a work directory.
pub const NAMES: [&str; 15] = [
    journal::FILE,
    LOCK,
    "requests",
    "rows",
    "results",
    SPOOL,
    SPOOL_HASH,
    OUTPUT_HASHES,
    PARTIAL_OUTPUT,
    CUT_FAULTS,
    "emulator",
    REPORT,
    "jsonl_files_info.json",
    "batch_results.json",
    "download_info.json",
];

/// A chunk's results.
pub fn results_file(dir: &Folder, chunk: &ChunkId, file: ResultFile) -> Entry {
    let which = match file {
        ResultFile::Output => "output",
        ResultFile::Error => "error",
    };
    dir.file(format!("results/{chunk}.{which}.jsonl"))
}

/// What a killed process leaves of a file that was to appear.
pub fn is_part(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".part"))
}

/// What is in one of the [`FOLDERS`]; nothing if it is not there.
pub fn list(dir: &Folder, folder: &str) -> Result<Vec<Entry>> {
    if !dir.file(folder).exists()? {
        return Ok(Vec::new());
    }
    let names = dir.folder(folder)?.list()?;
    Ok(names.into_iter().map(|(name, _)| dir.file(Path::new(folder).join(name))).collect())
}

impl WorkDir {
    /// Makes the directory if it is not there, and takes its locks.
    ///
    /// # Errors
    /// [`Kind::Input`] if it is not to be trusted; [`Kind::TryAgain`] when another process holds it.
    pub fn create(dir: &Path) -> Result<Self> {
        // `w/.` is `w`, and can only be made under that name.
        let dir = &dir.components().collect::<PathBuf>();
        let (folder, mut lock) = loop {
            let folder = Folder::make(dir)?;
            check(&folder)?;
            let lock = hold(&folder, LOCK)?;
            // Between the two steps another process may have moved the directory away, and begun a new one.
            if folder.is_at_its_path()? {
                break (folder, lock);
            }
        };
        let journal = hold(&folder, journal::FILE)?;
        sign(&mut lock).map_err(|e| Error::io("write", folder.file(LOCK).path(), &e))?;
        for name in FOLDERS {
            folder.make_folder(name)?;
        }
        let work = Self { folder, journal, _lock: lock };
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
        self.check_place()?;
        // A link that leads to the directory stays, and leads to the new one.
        let real = std::fs::canonicalize(self.path()).map_err(|e| Error::io("look for", self.path(), &e))?;
        // What is named by where this process is would follow the old contents.
        if std::env::current_dir().is_ok_and(|here| here.starts_with(&real)) {
            return Err(Error::usage(format!("--new moves {} away, and it is the current directory", real.display()))
                .fix(format!("cd {}, and name it with -d", shell::path(directory(&real)))));
        }
        let name = real.file_name().unwrap_or_default();
        let parent = Folder::open(directory(&real))?;
        let mut old = name.to_owned();
        for number in 1u32.. {
            name.clone_into(&mut old);
            old.push(format!(".old-{number}"));
            if !parent.file(&old).exists()? {
                break;
            }
        }
        parent.rename(name, &old).map_err(|e| e.fix("name another directory with -d"))?;
        let dir = self.path().to_owned();
        drop(self);
        drop(Folder::make(&real)?);
        Self::create(&dir)
    }

    /// Forgets a job for which no batch was created. `keeps_posts`: they were piped in, and this may be the only copy.
    pub fn forget(&self, keeps_posts: bool) -> Result<()> {
        let mut files = list(&self.folder, "requests")?;
        files.extend(list(&self.folder, "rows")?);
        files.retain(is_of_a_chunk);
        files.push(self.file(CUT_FAULTS));
        if !keeps_posts {
            files.extend([self.spool(), self.spool_hash()]);
        }
        // The journal last: without one, files of chunks mean that it was lost.
        files.push(self.file(journal::FILE));
        files.iter().try_for_each(Entry::remove)
    }

    /// Chunks were cut here: a file of one is in any of the [`FOLDERS`]. Files of the user's own may lie there too.
    pub fn has_chunks(&self) -> Result<bool> {
        for folder in FOLDERS {
            for file in list(&self.folder, folder)?.iter().filter(|file| is_of_a_chunk(file)) {
                if file.stat()?.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it, for messages and for files that are no part of the job's state.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    pub fn file(&self, name: impl AsRef<Path>) -> Entry {
        self.folder.file(name)
    }

    /// Reads the journal; one that was forgotten begins anew.
    pub fn journal(&mut self) -> Result<Journal> {
        if !self.is_journal(self.file(journal::FILE).stat()?)? {
            self.journal = hold(&self.folder, journal::FILE)?;
        }
        let entry = self.file(journal::FILE);
        let file = self.journal.try_clone().map_err(|e| Error::io("open", entry.path(), &e))?;
        Journal::of(file, entry.path())
    }

    fn is_journal(&self, there: Option<Stat>) -> Result<bool> {
        let held = fstat(&self.journal).map_err(|e| Error::io("look at", self.join(journal::FILE), &e.into()))?;
        Ok(there.is_some_and(|there| is_same(&there, &held)))
    }

    /// Before a create: the journal that this process writes is still the one that another process would find here.
    ///
    /// # Errors
    /// [`Kind::TryAgain`] when the directory was moved or replaced, or its journal removed.
    pub fn check_place(&self) -> Result<()> {
        let within = self.file(journal::FILE).stat()?;
        if drill::without(Guard::Place) || self.is_journal(within)? && self.folder.is_at_its_path()? {
            return Ok(());
        }
        Err(Error::new(
            Kind::TryAgain,
            format!(
                "{} was moved, replaced or its journal removed while this process worked in it",
                self.path().display()
            ),
        )
        .fix("put it back as it was, then run the same command again; nothing was created since"))
    }

    /// Where the journal lies now.
    pub fn location(&self) -> Result<Location> {
        let journal = fstat(&self.journal).map_err(|e| Error::io("look at", self.join(journal::FILE), &e.into()))?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let folder = Some(self.folder.stat()?.st_ino);
        Ok(Location { host, device: journal.st_dev, inode: journal.st_ino, folder })
    }

    pub fn request(&self, chunk: &ChunkId) -> Entry {
        request_file(&self.folder, chunk)
    }

    pub fn rows(&self, chunk: &ChunkId) -> Entry {
        rows_file(&self.folder, chunk)
    }

    pub fn results(&self, chunk: &ChunkId, file: ResultFile) -> Entry {
        results_file(&self.folder, chunk, file)
    }

    pub fn spool(&self) -> Entry {
        self.file(SPOOL)
    }

    /// The hash of what the spool holds.
    pub fn spool_hash(&self) -> Entry {
        self.file(SPOOL_HASH)
    }

    /// Removes what a killed process left half-written.
    fn sweep(&self) -> Result<()> {
        let names = self.folder.list()?.into_iter().map(|(name, _)| self.file(name));
        let mut files: Vec<Entry> = names.collect();
        for folder in FOLDERS {
            files.extend(list(&self.folder, folder)?);
        }
        files.retain(|file| is_part(file.name().file_name().unwrap_or_default()));
        files.iter().try_for_each(Entry::remove)
    }
}

/// Its name is a chunk's, or that of a half-written file.
fn is_of_a_chunk(file: &Entry) -> bool {
    let name = file.name().file_name().unwrap_or_default();
    let stem = [".output.jsonl", ".error.jsonl", ".jsonl", ".txt"]
        .iter()
        .find_map(|suffix| name.to_str()?.strip_suffix(suffix));
    is_part(name) || stem.is_some_and(|stem| stem.parse::<ChunkId>().is_ok())
}

/// Refuses a directory that others could have prepared, and changes nothing in it. An empty one is only closed to the group: a
/// plain `mkdir` leaves the right to write to the group where the umask is 0002.
fn check(folder: &Folder) -> Result<()> {
    let names = folder.list()?;
    let us = rustix::process::geteuid();
    if names.is_empty() && (us.is_root() || folder.stat()?.st_uid == us.as_raw()) {
        folder.close_to_group()?;
    }
    let stat = folder.stat()?;
    let is_open_to_others = stat.st_mode & 0o011 != 0;
    let owner = match folder.check_owner()? {
        Owner::We => stat.st_uid,
        Owner::RootsGuest => 0,
    };
    for (name, _) in names.iter().filter(|(name, _)| NAMES.iter().any(|known| name == known)) {
        let entry = folder.file(name);
        let Some(stat) = entry.stat()? else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return Err(entry.is_a_link());
        }
        if stat.st_uid != owner {
            return Err(entry.belongs_to(stat.st_uid));
        }
        if is_open_to_others && is_shared(&stat) && folder.keeps_modes() {
            return Err(Error::input(format!("{entry} may be changed by other users, so they could have prepared it"))
                .fix(format!("chmod -R go-w {}", shell::path(folder.path()))));
        }
    }
    for name in FOLDERS.iter().filter(|folder| names.iter().any(|(name, _)| name == *folder)) {
        for (file, kind) in folder.folder(name)?.list()? {
            let entry = folder.file(Path::new(name).join(file));
            let is_link = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
            if kind == FileType::Symlink || kind == FileType::Unknown && entry.stat()?.is_some_and(is_link) {
                return Err(entry.is_a_link());
            }
        }
    }
    Ok(())
}

/// Opens a file of the directory and locks it.
fn hold(folder: &Folder, name: &str) -> Result<File> {
    let entry = folder.file(name);
    loop {
        let is_new = !entry.exists()?;
        let file = entry.append()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(_) if drill::without(Guard::Lock) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(folder)),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", entry.path(), &e)),
        }
        let held = fstat(&file).map_err(|e| Error::io("look at", entry.path(), &e.into()))?;
        // Between the two steps another process may have removed it.
        if entry.stat()?.is_some_and(|there| is_same(&there, &held)) {
            if is_new {
                folder.sync()?;
            }
            return Ok(file);
        }
    }
}

/// Writes the name of this process, for the message that another one gives.
fn sign(lock: &mut File) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(format!("process {}\n", std::process::id()).as_bytes())
}

fn in_use(folder: &Folder) -> Error {
    let mut holder = String::new();
    // Only to name it, and it may be about to write its name: whatever can be read is good enough.
    if let Ok(lock) = folder.file(LOCK).open() {
        let _unreadable = lock.take(200).read_to_string(&mut holder);
    }
    let holder = match holder.trim() {
        "" => "another process".to_owned(),
        holder => crate::text::escape_control(holder),
    };
    Error::new(Kind::TryAgain, format!("{} is in use by {holder}", folder.path().display()))
        .fix("wait for it to end; another work directory (-d) would pay for the same posts once more")
}

/// Refuses to go on with a journal that is not where it was: a copy of it does not know what the other one pays for.
/// `moved`: the user says that there is no other copy. Remembers where the journal is now.
pub fn settle_place(work: &WorkDir, journal: &Journal, moved: bool) -> Result<()> {
    let here = work.location()?;
    let (there, is_begun, has_chunks) =
        journal.read(|state| (state.location.clone(), state.config.is_some(), !state.jobs.is_empty()))?;
    if !is_begun || there.as_ref() == Some(&here) {
        return Ok(());
    }
    if let Some(there) = there
        && !there.is_same_file(&here)
        && has_chunks
        && !moved
    {
        let dir = work.path().display();
        return Err(Error::input(format!(
            "{dir} was copied, restored or moved: its journal was file {} on {}, and is file {} on {} now. \
             If another copy of it is used too, both may pay for the same requests",
            there.inode,
            crate::text::escape_control(&there.host),
            here.inode,
            crate::text::escape_control(&here.host),
        ))
        .fix(format!(
            "make sure that no other copy of {} is used any more, then add --moved to this command, once",
            shell::path(work.path())
        )));
    }
    journal.append(&journal::Event::Location(here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_a_lock_of_a_directory_that_was_moved_away_is_not_of_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let work = WorkDir::create(&dir.path().join("w")).expect("free");
        let early = Folder::open(work.path()).expect("there");
        assert!(early.is_at_its_path().expect("looked"));
        let work = work.renew().expect("renewed");
        hold(&early, LOCK).expect("the old one is free");
        assert!(!early.is_at_its_path().expect("looked") && WorkDir::create(work.path()).is_err());
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

    /// Whichever of the two files is removed, the other one keeps a second process out, and it has touched nothing.
    #[test]
    fn r11_9a_without_its_lock_file_the_journal_keeps_a_second_process_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("w");
        let work = WorkDir::create(&path).expect("free");
        work.file("rows/.x.part").write(b"").expect("as if it were being written");
        work.file(LOCK).remove().expect("removed");
        for _ in 0..2 {
            assert_eq!(WorkDir::create(&path).expect_err("held").kind(), Kind::TryAgain);
        }
        assert!(work.file("rows/.x.part").exists().expect("looked"), "nothing was swept");
        work.check_place().expect("it is where it was");
        work.file(journal::FILE).remove().expect("removed");
        assert_eq!(work.check_place().expect_err("another process would not find it").kind(), Kind::TryAgain);
    }

    #[test]
    fn r11_9a_a_directory_that_was_moved_is_noticed_before_a_create() {
        let dir = tempfile::tempdir().expect("a directory");
        let (here, there) = (dir.path().join("w"), dir.path().join("v"));
        let work = WorkDir::create(&here).expect("free");
        work.check_place().expect("it is where it was");
        std::fs::rename(&here, &there).expect("moved");
        assert_eq!(work.check_place().expect_err("gone").kind(), Kind::TryAgain);
        assert_eq!(WorkDir::create(&there).expect_err("it goes with its locks").kind(), Kind::TryAgain);
        std::fs::create_dir(&here).expect("another");
        assert_eq!(work.check_place().expect_err("another").kind(), Kind::TryAgain);
    }

    #[test]
    fn k2_a_link_to_the_directory_stays_and_leads_to_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("disk")).expect("made");
        std::os::unix::fs::symlink("disk/w", dir.path().join("w")).expect("linked");
        std::fs::create_dir(dir.path().join("disk/w")).expect("made");
        let work = WorkDir::create(&dir.path().join("w")).expect("free").renew().expect("renewed");
        assert!(dir.path().join("w").is_symlink() && dir.path().join("disk/w.old-1/lock").exists());
        work.check_place().expect("it is there");
    }
}
