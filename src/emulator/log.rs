//! The state log: `state.jsonl`, one [`Event`] a line, only ever appended to, each synced before the reply that it
//! stands for. A torn last line is dropped at open; a bad line elsewhere is refused with its number and offset.

use std::{
    fs::{File, TryLockError},
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::state::{Event, State, VERSION};
use crate::{
    error::{Error, Kind, Result},
    lines::output::sync_directory,
};

pub const NAME: &str = "state.jsonl";
/// An event is small: metadata of 16 pairs and some ids.
const MAX_EVENT: u64 = 1 << 20;

#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// A write or sync failed: what is on disk is not known, so nothing more is accepted.
    broken: bool,
}

impl Log {
    /// Opens the log of a state directory, alone, and folds what is in it.
    ///
    /// # Errors
    /// [`Kind::TryAgain`] if another process has it, [`Kind::Input`] for a log that is damaged.
    pub fn open(dir: &Path) -> Result<(Self, State)> {
        let path = dir.join(NAME);
        let failed = |what: &str, e: &std::io::Error| Error::io(what, &path, e);
        let mut file =
            File::options().read(true).append(true).create(true).open(&path).map_err(|e| failed("open", &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Kind::TryAgain, format!("another emulator uses {}", dir.display()))
                    .fix("stop it, or name another --state"));
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock", &e)),
        }
        let (mut state, good) = fold(&file, &path)?;
        if file.metadata().map_err(|e| failed("look at", &e))?.len() > good {
            file.set_len(good).map_err(|e| failed("cut", &e))?;
            file.seek(std::io::SeekFrom::End(0)).map_err(|e| failed("seek in", &e))?;
        }
        let mut log = Self { file, path, broken: false };
        if state.is_new() {
            log.append(&Event::Opened { version: VERSION })?;
            sync_directory(dir)?;
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
        let done = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        self.broken = done.is_err();
        done.map_err(|e| Error::io("append to", &self.path, &e))
    }
}

/// Reads a log without taking it: for an accountant, while the server runs or after it was killed.
pub fn read(dir: &Path) -> Result<State> {
    let path = dir.join(NAME);
    let file = File::open(&path).map_err(|e| Error::io("open", &path, &e))?;
    Ok(fold(&file, &path)?.0)
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
        serde_json::from_slice(&line).map_err(|e| e.to_string()).and_then(|event| state.apply(event)).map_err(
            |what| {
                Error::input(format!("{} line {number}, offset {good}: {what}", path.display()))
                    .fix("the state is damaged; start with an empty --state")
            },
        )?;
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
        drop(Log::open(dir.path()).expect("opens"));
        let path = dir.path().join(NAME);
        let add = |text: &str| {
            let mut file = File::options().append(true).open(&path).expect("opens");
            file.write_all(text.as_bytes()).expect("written");
        };
        add(r#"{"event":"mov"#);
        let (mut log, _) = Log::open(dir.path()).expect("opens");
        log.append(&Event::Deleted { file: "f".to_owned(), at: 0, asked: true }).expect("appended");
        drop(log);
        let refused = Log::open(dir.path()).expect_err("no such file");
        assert_eq!(refused.kind(), Kind::Input);
        assert!(refused.to_string().contains("line 2, offset 31: there is no file f"), "{refused}");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = Log::open(dir.path()).expect("opens");
        assert_eq!(Log::open(dir.path()).expect_err("held").kind(), Kind::TryAgain);
        assert!(!read(dir.path()).expect("reads").is_new());
        drop(held);
    }
}
