//! The state log: `state.jsonl`, one [`Event`] a line, only ever appended to, each synced before the reply that it
//! stands for. A torn last line is dropped at open; a bad line elsewhere is refused with its number and offset.

use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::FileType;

use super::state::{Event, State, VERSION};
use crate::{
    error::{Error, Kind, Result},
    folder::Folder,
};

pub const NAME: &str = "state.jsonl";
/// Beside it: the directory of the server's files.
pub const FILES: &str = "files";
/// An event is small: metadata of 16 pairs and some ids.
const MAX_EVENT: u64 = 1 << 20;

#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    pub bytes: u64,
    /// A write or sync failed: what is on disk is not known, so nothing more is accepted.
    broken: bool,
}

impl Log {
    /// Opens the log of a state directory, alone, and folds what is in it.
    ///
    /// # Errors
    /// [`Kind::TryAgain`] if another process has it, [`Kind::Input`] for a log that is damaged.
    pub fn open(dir: &Folder) -> Result<(Self, State)> {
        let entry = dir.file(NAME);
        let path = entry.path();
        let failed = |what: &str, e: &std::io::Error| Error::io(what, &path, e);
        let mut file = entry.append()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::TryAgain, format!("another emulator uses {}", dir.path().display()))
                    .fix("stop it, or name another --state"));
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock", &e)),
        }
        let (mut state, good) = fold(&file, &path)?;
        if file.metadata().map_err(|e| failed("look at", &e))?.len() > good {
            file.set_len(good).map_err(|e| failed("cut", &e))?;
            file.seek(std::io::SeekFrom::End(0)).map_err(|e| failed("seek in", &e))?;
        }
        let mut log = Self { file, path, bytes: good, broken: false };
        if state.is_new() {
            log.append(&Event::Opened { version: VERSION })?;
            dir.sync()?;
            state.apply(Event::Opened { version: VERSION }).map_err(Error::input)?;
        }
        Ok((log, state))
    }

    /// On disk when it returns.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        if self.broken {
            return Err(Error::new(Kind::Io, format!("{}: an earlier write failed", self.path.display()))
                .fix("make room and start the emulator again"));
        }
        let mut line = serde_json::to_vec(event).map_err(|e| Error::io("encode", &self.path, &e.into()))?;
        line.push(b'\n');
        if line.len() as u64 >= MAX_EVENT {
            return Err(Error::input(format!("an event of {} bytes is not stored", line.len())));
        }
        let done = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        self.broken = done.is_err();
        self.bytes += line.len() as u64;
        done.map_err(|e| Error::io("append to", &self.path, &e))
    }
}

/// Reads a log without taking it: for an accountant, while the server runs or after it was killed.
pub fn read(dir: &Path) -> Result<State> {
    let entry = Folder::open(dir)?.file(NAME);
    Ok(fold(&entry.open()?, &entry.path())?.0)
}

/// Whether an emulator made what is in a directory, or nothing is in it. One that was killed at its first step left an empty
/// [`FILES`], or a part of its first line.
pub fn is_ours(dir: &Folder, names: &[(OsString, FileType)]) -> Result<bool> {
    let entry = dir.file(NAME);
    if names.iter().any(|(name, kind)| name == NAME && *kind != FileType::RegularFile && *kind != FileType::Unknown) {
        return Ok(false);
    }
    let mut first = Vec::new();
    if let Some(file) = entry.find()? {
        let read = BufReader::new(file).take(MAX_EVENT).read_until(b'\n', &mut first);
        read.map_err(|e| Error::io("read", entry.path(), &e))?;
    }
    if first.ends_with(b"\n") {
        return Ok(matches!(serde_json::from_slice(&first), Ok(Event::Opened { .. })));
    }
    let opened = serde_json::to_vec(&Event::Opened { version: VERSION }).unwrap_or_default();
    let only = names.iter().all(|(name, _)| name == NAME || name == FILES);
    if !only || !opened.starts_with(&first) {
        return Ok(false);
    }
    Ok(!dir.file(FILES).exists()? || dir.folder(FILES)?.list()?.is_empty())
}

/// The state, and the length of the log up to its last whole line.
fn fold(file: &File, path: &Path) -> Result<(State, u64)> {
    let mut reader = BufReader::new(file);
    let (mut state, mut good, mut line) = (State::default(), 0_u64, Vec::new());
    for number in 1_u64.. {
        line.clear();
        let got = reader.by_ref().take(MAX_EVENT).read_until(b'\n', &mut line);
        let got = got.map_err(|e| Error::io("read", path, &e))? as u64;
        if got == 0 || (line.last() != Some(&b'\n') && got < MAX_EVENT) {
            break;
        }
        serde_json::from_slice(&line)
            .map_err(|e| e.to_string())
            .and_then(|event: Event| event.check_ids().and_then(|()| state.apply(event)))
            .map_err(|what| {
                Error::input(format!("{} line {number}, offset {good}: {what}", path.display()))
                    .fix("the state is damaged; start with an empty --state")
            })?;
        good += got;
    }
    Ok((state, good))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_is_dropped_and_a_bad_line_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Log::open(&Folder::open(dir.path()).expect("there")).expect("opens"));
        let path = dir.path().join(NAME);
        let add = |text: &str| {
            let mut file = File::options().append(true).open(&path).expect("opens");
            file.write_all(text.as_bytes()).expect("written");
        };
        add(r#"{"event":"mov"#);
        let (mut log, _) = Log::open(&Folder::open(dir.path()).expect("there")).expect("opens");
        log.append(&Event::Deleted { file: "f".to_owned(), at: 0, asked: true }).expect("appended");
        drop(log);
        let refused = Log::open(&Folder::open(dir.path()).expect("there")).expect_err("no such file");
        assert_eq!(refused.kind(), Kind::Input);
        assert!(refused.to_string().contains("line 2, offset 31: there is no file f"), "{refused}");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = Log::open(&Folder::open(dir.path()).expect("there")).expect("opens");
        assert_eq!(Log::open(&Folder::open(dir.path()).expect("there")).expect_err("held").kind(), Kind::TryAgain);
        assert!(!read(dir.path()).expect("reads").is_new());
        drop(held);
    }
}
