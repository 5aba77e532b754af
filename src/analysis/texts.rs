//! The small texts that make an analysis: `analysis.json`, prompt, examples, labels. Somebody else may have written the folder
//! that they are in, so they are read below the folder that the user named and nowhere else, they are regular files, and
//! each has a largest size.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use cap_std::{
    ambient_authority,
    fs::{Dir, OpenOptions, OpenOptionsExt as _},
};

use crate::{
    error::{Error, Result},
    lines::input::{read_text, unreadable},
};

/// The largest size of a file, and the name of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Cap {
    kib: u64,
    of: &'static str,
}

/// The built-in one has 402 bytes.
pub const DEFINITION: Cap = Cap { kib: 64, of: "an analysis.json" };
/// The built-in ones have up to 1,385 bytes, and every request repeats the prompt.
pub const PROMPT: Cap = Cap { kib: 64, of: "a prompt" };
/// The built-in ones have up to 693 bytes, and every request repeats the examples.
pub const EXAMPLES: Cap = Cap { kib: 1 << 10, of: "an examples.jsonl" };
/// The built-in ones have up to 2,288 bytes; 100,000 labels of 40 bytes have 4 MiB.
pub const LABELS: Cap = Cap { kib: 4 << 10, of: "a file of labels" };

/// A folder that the user named. It may be a symbolic link; a link below it may lead to another place below it.
#[derive(Debug)]
pub struct Root {
    dir: Dir,
    path: PathBuf,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { dir: Dir::open_ambient_dir(path, ambient_authority())?, path: path.to_owned() })
    }

    /// The names in it.
    pub fn names(&self) -> io::Result<impl Iterator<Item = io::Result<OsString>>> {
        Ok(self.dir.entries()?.map(|entry| Ok(entry?.file_name())))
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The text of a file below it; `None` if there is no such file.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] for a link that leads out, for anything but a regular file, and for a file that is larger than `cap`.
    pub fn read(&self, name: &Path, cap: Cap) -> Result<Option<String>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(NEVER_WAIT);
        let path = self.path.join(name);
        match self.dir.open_with(name, &options) {
            Ok(file) => text(file.into_std(), &path, cap).map(Some),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            // Only the confinement fails without a system call.
            Err(e) if e.raw_os_error().is_none() => Err(Error::input(format!(
                "{}: it leads out of {}, and files outside of that folder are not read",
                path.display(),
                self.path.display()
            ))
            .fix("put a copy of the file in the place of the link")),
            Err(e) => Err(unreadable(&path, &e)),
        }
    }
}

/// The text of a file that the user named.
pub fn read(path: &Path, cap: Cap) -> Result<String> {
    let file = File::options().read(true).custom_flags(NEVER_WAIT).open(path).map_err(|e| unreadable(path, &e))?;
    text(file, path, cap)
}

/// A FIFO without a writer is opened at once, and then refused.
const NEVER_WAIT: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

fn text(file: File, path: &Path, cap: Cap) -> Result<String> {
    let meta = file.metadata().map_err(|e| unreadable(path, &e))?;
    if !meta.is_file() {
        return Err(Error::input(format!("{} is not a regular file", path.display()))
            .fix("put a file there, and not a directory, a pipe or a device"));
    }
    if meta.len() > cap.kib << 10 {
        let (bytes, Cap { kib, of }) = (meta.len(), cap);
        return Err(Error::input(format!("{} has {bytes} bytes; {of} has at most {kib} KiB", path.display()))
            .fix("check that it is the right file, and make it smaller"));
    }
    read_text(file, path, cap.kib << 10)
}
