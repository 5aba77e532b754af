//! Outputs. A file appears whole, or not at all: temp file in the same directory, write, fsync, rename,
//! fsync of the directory (`promises.md` S2). A failed fsync ends the step and is never tried again.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::ahead::WriteBehind;
use crate::{
    drill::{self, Guard},
    error::{Error, Result},
};

/// Buffer before a file or stdout.
const BUFFER: usize = 256 << 10;
/// Characters of a file's name in the name of its temp file.
const TEMP_CHARS: usize = 40;

/// A file that will appear under its name when [`AtomicFile::commit`] returns, and not before.
#[derive(Debug)]
pub struct AtomicFile {
    temp: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Readable as the user's umask says.
    pub fn create(path: &Path) -> Result<Self> {
        Self::with_mode(path, 0o666)
    }

    /// Readable by the user alone.
    pub fn create_private(path: &Path) -> Result<Self> {
        Self::with_mode(path, 0o600)
    }

    fn with_mode(path: &Path, mode: u32) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;

        if path.is_dir() {
            return Err(Error::new(
                crate::error::Kind::Io,
                format!("cannot write {}: it is a directory", path.display()),
            ));
        }
        let dir = directory(path);
        if !dir.is_dir() {
            return Err(Error::new(
                crate::error::Kind::Io,
                format!("cannot write {}: there is no directory {}", path.display(), dir.display()),
            )
            .fix(format!("mkdir -p {}", dir.display())));
        }
        // The temp file's name is longer than the file's, and must not be too long because of that.
        let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(TEMP_CHARS).collect();
        let temp = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".part")
            .permissions(std::fs::Permissions::from_mode(mode))
            .tempfile_in(dir)
            .map_err(|e| {
                // The name of the temp file tells the user nothing.
                let why = e.to_string();
                let why = why.split_once(" at path ").map_or(why.as_str(), |(why, _)| why);
                Error::new(crate::error::Kind::Io, format!("cannot write {}: {why}", path.display()))
                    .fix(format!("make {} writable, or name another place", dir.display()))
            })?;
        Ok(Self { temp, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&mut self) -> &mut File {
        self.temp.as_file_mut()
    }

    /// Appears under another name in the same directory: for a name that is known only at the end.
    pub fn commit_as(mut self, path: &Path) -> Result<()> {
        path.clone_into(&mut self.path);
        self.commit()
    }

    pub fn commit(self) -> Result<()> {
        let path = self.path;
        let what = kind_of(&path);
        drill::step("sync", what);
        if !drill::without(Guard::FileSync) {
            self.temp.as_file().sync_all().map_err(|e| Error::io("sync", &path, &e))?;
        }
        drill::step("rename", what);
        self.temp.persist(&path).map_err(|e| Error::io("rename to", &path, &e.error))?;
        drill::step("sync directory", what);
        sync_directory(directory(&path))?;
        drill::step("there", what);
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if drill::without(Guard::Rename) {
            let mut torn = File::options().create(true).append(true).open(&self.path)?;
            torn.write_all(bytes)?;
        }
        drill::step("write", kind_of(&self.path));
        #[expect(clippy::disallowed_methods, reason = "this is an implementation of write")]
        match self.temp.as_file_mut().write(bytes) {
            // Whoever writes here may not know which file it is.
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(Error::io("write", &self.path, &e).into()),
            done => done,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The directory a path is in.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// What a file is called in a drill: the directory it is in, within a work directory, or its ending.
fn kind_of(path: &Path) -> &str {
    match directory(path).file_name().and_then(|name| name.to_str()) {
        Some(kind @ ("requests" | "rows" | "results")) => kind,
        _ => path.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
    }
}

/// Makes renames in a directory durable.
pub fn sync_directory(dir: &Path) -> Result<()> {
    if drill::without(Guard::DirectorySync) {
        return Ok(());
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("sync directory", dir, &e))
}

/// Writes a small file whole.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, &e))?;
    file.commit()
}

/// The same, readable by the user alone.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create_private(path)?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, &e))?;
    file.commit()
}

/// How a name says its contents are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// The name says a JSON array: `x.json`, `x.json.gz`, `x.json.zst`.
pub fn is_array_name(path: &Path) -> bool {
    let stem = match Packing::of(path) {
        Packing::Plain => path.as_os_str(),
        Packing::Gzip | Packing::Zstd => path.file_stem().unwrap_or_default(),
    };
    Path::new(stem).extension().is_some_and(|ext| ext == "json")
}

enum Target {
    /// Stdout, or a device, pipe or socket that is already there: written in place, since it cannot be replaced.
    Stream(File),
    Whole(AtomicFile),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[expect(clippy::disallowed_methods, reason = "this is an implementation of write")]
        match self {
            Self::Stream(out) => out.write(bytes),
            Self::Whole(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(out) => out.flush(),
            Self::Whole(_) => Ok(()),
        }
    }
}

enum Encoder {
    Plain(BufWriter<Target>),
    /// Gzip or zstd, on a thread of its own.
    Packed(WriteBehind<BufWriter<Target>>),
}

/// A device, pipe or socket.
pub fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// Where a verb's data goes: stdout, or a file that appears on [`Output::commit`].
pub struct Output {
    encoder: Encoder,
    /// For messages.
    name: PathBuf,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Output {
    /// `None` and `-` are stdout; a name in `.gz` or `.zst` compresses.
    pub fn create(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            // Not `io::stdout()`: its line buffer costs a search and a copy of everything.
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|e| Error::io("open", "stdout", &e))?;
            let target = BufWriter::with_capacity(BUFFER, Target::Stream(File::from(stdout)));
            return Ok(Self { encoder: Encoder::Plain(target), name: PathBuf::from("stdout") });
        };
        let target = if is_stream(path) {
            let file = File::options().write(true).open(path).map_err(|e| Error::io("open", path, &e))?;
            Target::Stream(file)
        } else {
            // Through a symbolic link the file it points to is replaced, not the link.
            Target::Whole(AtomicFile::create(&std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()))?)
        };
        let target = BufWriter::with_capacity(BUFFER, target);
        let encoder = match Packing::of(path) {
            Packing::Plain => Encoder::Plain(target),
            Packing::Gzip => {
                let encoder = flate2::write::GzEncoder::new(target, flate2::Compression::default());
                Encoder::Packed(WriteBehind::new(encoder, flate2::write::GzEncoder::finish))
            }
            Packing::Zstd => {
                let encoder = zstd::Encoder::new(target, zstd::DEFAULT_COMPRESSION_LEVEL)
                    .map_err(|e| Error::io("compress", path, &e))?;
                Encoder::Packed(WriteBehind::new(encoder, zstd::Encoder::finish))
            }
        };
        Ok(Self { encoder, name: path.to_owned() })
    }

    /// Whether [`Output::create`] would work, without touching anything. A pipe is not opened: its reader would take that
    /// for the end.
    pub fn probe(path: &Path) -> Result<()> {
        if path == Path::new("-") || is_stream(path) {
            return Ok(());
        }
        Self::create(Some(path)).map(drop)
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let done = match &mut self.encoder {
            Encoder::Plain(out) => out.write_all(bytes),
            Encoder::Packed(out) => out.put(bytes),
        };
        done.map_err(|e| Error::io("write", &self.name, &e))
    }

    /// Hands what was put so far to the reader of a pipe.
    pub fn flush(&mut self) -> Result<()> {
        let done = match &mut self.encoder {
            Encoder::Plain(out) => out.flush(),
            // No one can read a compressed file before its end.
            Encoder::Packed(_) => Ok(()),
        };
        done.map_err(|e| Error::io("write", &self.name, &e))
    }

    /// Ends the output; only now does a file appear.
    pub fn commit(self) -> Result<()> {
        let fail = |e: &io::Error| Error::io("write", &self.name, e);
        let buffered = match self.encoder {
            Encoder::Plain(out) => out,
            Encoder::Packed(out) => out.finish().map_err(|e| fail(&e))?,
        };
        match buffered.into_inner().map_err(|e| fail(e.error()))? {
            Target::Stream(mut out) => out.flush().map_err(|e| fail(&e)),
            Target::Whole(file) => file.commit(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::flush(self).map_err(Into::into)
    }
}

/// JSON values on their way out: a line each, in one array or not.
#[derive(Debug)]
pub struct JsonWriter {
    output: Output,
    as_array: bool,
    began: bool,
}

impl JsonWriter {
    pub fn new(output: Output, as_array: bool) -> Self {
        Self { output, as_array, began: false }
    }

    pub fn put(&mut self, value: &[u8]) -> Result<()> {
        let before: &[u8] = match (self.as_array, self.began) {
            (true, false) => b"[\n",
            (true, true) => b",\n",
            (false, false) => b"",
            (false, true) => b"\n",
        };
        self.began = true;
        self.output.put(before)?;
        self.output.put(value)
    }

    pub fn commit(mut self) -> Result<()> {
        self.output.put(match (self.as_array, self.began) {
            (true, false) => b"[\n]\n",
            (true, true) => b"\n]\n",
            (false, false) => b"",
            (false, true) => b"\n",
        })?;
        self.output.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_format() {
        for (name, array) in [
            ("a.json", true),
            ("a.json.gz", true),
            ("a.json.zst", true),
            ("a.jsonl", false),
            ("a.gz", false),
            ("a", false),
        ] {
            assert_eq!(is_array_name(Path::new(name)), array, "{name}");
        }
    }

    #[test]
    fn a_file_appears_on_commit_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out.jsonl.gz");
        let mut output = Output::create(Some(&path)).expect("created");
        output.put(b"{}\n").expect("put");
        assert!(!path.exists());
        output.commit().expect("committed");
        assert!(path.exists());
        drop(Output::create(Some(&dir.path().join("never"))).expect("created"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "no leftovers");
    }
}
