//! Outputs. A file appears whole, or not at all: temp file in the same directory, write, fsync, rename,
//! fsync of the directory (`docs/reliability.md` S2). A failed fsync ends the step and is never tried again.
//!
//! An output of the user's is written without a name where the file system can do that, so that nothing stays beside it
//! when we are killed. It replaces a file as an editor would: mode and owner stay.

use std::{
    fs::{File, Permissions},
    io::{self, BufWriter, Write},
    os::{
        fd::{AsFd as _, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use flate2::write::GzEncoder;
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use tempfile::NamedTempFile;

use super::{
    ahead::WriteBehind,
    place::{MAX_LINKS, refuse_planted},
};
use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
    folder::{Entry, directory},
    shell,
};

/// Buffer before a file or stdout.
const BUFFER: usize = 256 << 10;
/// Characters of a file's name in the name of its temp file.
const TEMP_CHARS: usize = 40;

/// Posts and answers are personal data: a new file is readable by the user alone.
const NEW_FILE: u32 = 0o600;
/// Time between two tries to open a pipe that nobody reads.
const PIPE_RETRY: Duration = Duration::from_millis(50);

/// A file that will appear under its name when [`AtomicFile::commit`] returns, and not before.
#[derive(Debug)]
pub struct AtomicFile {
    temp: Temp,
    path: PathBuf,
}

#[derive(Debug)]
enum Temp {
    /// The kernel forgets it when the process ends.
    Unnamed(File),
    Named(NamedTempFile),
    Private(File, PrivateTemp),
}

/// A temp file in a [`crate::folder::Folder`], and the name that it will have.
#[derive(Debug)]
struct PrivateTemp {
    /// `None`: it has its name, or never had another.
    temp: Option<Entry>,
    to: Entry,
}

impl Drop for PrivateTemp {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            // The next process sweeps it.
            let _left_there = temp.remove();
        }
    }
}

impl AtomicFile {
    /// Readable as the file is that it replaces, else by the user alone.
    pub fn create(path: &Path) -> Result<Self> {
        check_place(path)?;
        let file = match unnamed(directory(path)) {
            Some(file) => Self { temp: Temp::Unnamed(file), path: path.to_owned() },
            None => Self::named(path, NEW_FILE)?,
        };
        if let Ok(there) = std::fs::metadata(path) {
            file.resemble(&there).map_err(|e| Error::io("set the mode of", path, &e))?;
        }
        Ok(file)
    }

    /// Readable by the user alone.
    pub fn create_private(path: &Path) -> Result<Self> {
        check_place(path)?;
        Self::within(&Entry::of(path)?)
    }

    /// The same in a directory that is held open; a work directory is swept of what a killed process leaves.
    pub fn within(to: &Entry) -> Result<Self> {
        let (file, temp) = to.make_temp()?;
        let temp = PrivateTemp { temp: Some(to.sibling(&temp)), to: to.clone() };
        Ok(Self { temp: Temp::Private(file, temp), path: to.path() })
    }

    fn named(path: &Path, mode: u32) -> Result<Self> {
        let dir = directory(path);
        let temp = named_like(path, |builder| builder.permissions(Permissions::from_mode(mode)).tempfile_in(dir));
        let temp = temp.map_err(|e| {
            // The name of the temp file tells the user nothing.
            let why = e.to_string();
            let why = why.split_once(" at path ").map_or(why.as_str(), |(why, _)| why);
            Error::new(Kind::Io, format!("cannot write {}: {why}", path.display()))
                .fix(format!("make {} writable, or name another place", dir.display()))
        })?;
        Ok(Self { temp: Temp::Named(temp), path: path.to_owned() })
    }

    /// Only root can give a file away; whose group we cannot give keeps what was for it to himself.
    fn resemble(&self, there: &std::fs::Metadata) -> io::Result<()> {
        let (owner, group) = (Uid::from_raw(there.uid()), Gid::from_raw(there.gid()));
        let _not_root = rustix::fs::fchown(self.file(), Some(owner), None);
        let for_group = rustix::fs::fchown(self.file(), None, Some(group)).is_ok();
        let mode = there.mode() & if for_group { 0o777 } else { 0o707 };
        self.file().set_permissions(Permissions::from_mode(mode))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self) -> &File {
        match &self.temp {
            Temp::Unnamed(file) | Temp::Private(file, _) => file,
            Temp::Named(temp) => temp.as_file(),
        }
    }

    /// Appears under another name in the same directory: for a name that is known only at the end.
    pub fn commit_as(mut self, path: &Path) -> Result<()> {
        path.clone_into(&mut self.path);
        self.commit()
    }

    pub fn commit(self) -> Result<()> {
        let path = self.path;
        let what = kind_of(&path);
        let sync = |file: &File| match drill::without(Guard::FileSync) {
            true => Ok(()),
            false => file.sync_all().map_err(|e| Error::io("sync", &path, &e)),
        };
        drill::step("sync", what);
        let temp = match self.temp {
            Temp::Named(temp) => temp,
            Temp::Private(file, mut temp) => {
                sync(&file)?;
                drill::step("rename", what);
                let name = path.file_name().unwrap_or_default();
                temp.temp.as_ref().map_or(Ok(()), |temp| temp.rename(name))?;
                temp.temp = None;
                drill::step("sync directory", what);
                temp.to.sync_directory()?;
                drill::step("there", what);
                return Ok(());
            }
            Temp::Unnamed(file) => {
                // Its bytes first, so that it has a name for as short a time as can be.
                sync(&file)?;
                named_like(&path, |builder| {
                    builder.make_in(directory(&path), |name| {
                        link(&file, name)?;
                        file.try_clone()
                    })
                })
                .map_err(|e| Error::io("name", &path, &e).fix("name a place on another file system, or use `-o - >`"))?
            }
        };
        sync(temp.as_file())?;
        drill::step("rename", what);
        temp.persist(&path).map_err(|e| Error::io("rename to", &path, &e.error))?;
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
        self.file().write(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => e,
            // Whoever writes through layers that know no file still says which.
            _ => Error::io("write", &self.path, &e).into(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn check_place(path: &Path) -> Result<()> {
    let dir = directory(path);
    if path.is_dir() {
        return Err(Error::new(Kind::Io, format!("cannot write {}: it is a directory", path.display())));
    }
    if !dir.is_dir() {
        return Err(Error::new(
            Kind::Io,
            format!("cannot write {}: there is no directory {}", path.display(), dir.display()),
        )
        .fix(format!("mkdir -p {}", shell::path(dir))));
    }
    Ok(())
}

/// A file in this directory that has no name yet; `None` where the file system has no such thing, or would not let us name
/// it later.
fn unnamed(dir: &Path) -> Option<File> {
    let mode = Mode::from_raw_mode(NEW_FILE);
    let file = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode).ok()?;
    std::fs::metadata(by_number(&file)).is_ok().then(|| file.into())
}

/// How the system calls an open file.
fn by_number(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn link(file: &File, name: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, by_number(file), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Makes a temp file that says what it will be: `.NAME.….part`.
fn named_like<R>(
    path: &Path,
    make: impl FnOnce(&mut tempfile::Builder<'_, '_>) -> io::Result<NamedTempFile<R>>,
) -> io::Result<NamedTempFile<R>> {
    // Its name is longer than the file's, and must not be too long because of that.
    let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(TEMP_CHARS).collect();
    make(tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".part"))
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

impl Entry {
    /// Writes a small file whole, readable by the user alone.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut file = AtomicFile::within(self)?;
        file.write_all(bytes).map_err(|e| Error::io("write", self.path(), &e))?;
        file.commit()
    }
}

/// The same, readable by the user alone.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    check_place(path)?;
    Entry::of(path)?.write(bytes)
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
    /// On threads of their own.
    Gzip(WriteBehind<GzEncoder<BufWriter<Target>>>),
    Zstd(WriteBehind<zstd::Encoder<'static, BufWriter<Target>>>),
}

/// A device, pipe or socket, or a stream that is open already.
pub fn is_stream(path: &Path) -> bool {
    standard(path).is_some() || std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

pub fn is_stdout(path: &Path) -> bool {
    matches!(path.to_str(), Some("-" | "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1"))
}

/// Our own stdout or stderr, if that is what is named. What a shell opened for these may be a file to which something is appended: it is
/// written to as it is open.
fn standard(path: &Path) -> Option<io::Result<OwnedFd>> {
    match path.to_str()? {
        _ if is_stdout(path) => Some(io::stdout().as_fd().try_clone_to_owned()),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(io::stderr().as_fd().try_clone_to_owned()),
        _ => None,
    }
}

/// The signal that asked this process to stop, or 0. A thread that waits for the reader of a pipe looks at it, since no
/// channel reaches that thread.
static STOPPED_BY: AtomicI32 = AtomicI32::new(0);

/// Ends every wait for the reader of a pipe.
pub fn stop_waiting(signal: i32) {
    STOPPED_BY.store(signal, Ordering::Relaxed);
}

/// Opens a device or pipe. The system would wait for the reader of a pipe, and no signal that has a handler would end that.
fn open_stream(path: &Path) -> Result<File> {
    let fail = |e: Errno| Error::io("open", path, &e.into());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(opened) => {
                let flags = rustix::fs::fcntl_getfl(&opened).map_err(fail)?;
                rustix::fs::fcntl_setfl(&opened, flags - OFlags::NONBLOCK).map_err(fail)?;
                return Ok(opened.into());
            }
            Err(Errno::NXIO) if std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()) => {
                match STOPPED_BY.load(Ordering::Relaxed) {
                    0 => std::thread::sleep(PIPE_RETRY),
                    signal => {
                        let what = format!("interrupted; no program reads {}", path.display());
                        return Err(Error::new(Kind::Interrupted(signal), what));
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(fail(e)),
        }
    }
}

/// The file that a symbolic link leads to, there or not: that one is replaced, not the link.
pub fn follow(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::read_link(&path) {
            Ok(to) => path = directory(&path).join(to),
            Err(_) => return Ok(path),
        }
    }
    Err(Error::new(Kind::Io, format!("cannot write {}: too many symbolic links", path.display())))
}

/// Where what cannot take the place of an output goes: beside it.
pub fn aside(path: &Path) -> Result<PathBuf> {
    let path = follow(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    Ok(path.with_file_name(name))
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
        let path = path.unwrap_or(Path::new("-"));
        // Not `io::stdout()`: its line buffer costs a search and a copy of everything.
        let target = if let Some(stream) = standard(path) {
            Target::Stream(stream.map_err(|e| Error::io("open", path, &e))?.into())
        } else {
            refuse_planted(path)?;
            match is_stream(path) {
                true => Target::Stream(open_stream(path)?),
                false => Target::Whole(AtomicFile::create(&follow(path)?)?),
            }
        };
        let target = BufWriter::with_capacity(BUFFER, target);
        let encoder = match Packing::of(path) {
            Packing::Plain => Encoder::Plain(target),
            Packing::Gzip => Encoder::Gzip(WriteBehind::new(GzEncoder::new(target, flate2::Compression::default()))?),
            Packing::Zstd => {
                let encoder = zstd::Encoder::new(target, zstd::DEFAULT_COMPRESSION_LEVEL)
                    .map_err(|e| Error::io("compress", path, &e))?;
                Encoder::Zstd(WriteBehind::new(encoder)?)
            }
        };
        let name = if path == Path::new("-") { Path::new("stdout") } else { path };
        Ok(Self { encoder, name: name.to_owned() })
    }

    /// Whether [`Output::create`] would work, without touching anything. A pipe is not opened: its reader would take that
    /// for the end.
    pub fn probe(path: &Path) -> Result<()> {
        if is_stream(path) {
            return if standard(path).is_some() { Ok(()) } else { refuse_planted(path) };
        }
        Self::create(Some(path)).map(drop)
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let done = match &mut self.encoder {
            Encoder::Plain(out) => out.write_all(bytes),
            Encoder::Gzip(out) => out.put(bytes),
            Encoder::Zstd(out) => out.put(bytes),
        };
        done.map_err(|e| Error::io("write", &self.name, &e))
    }

    /// Hands what was put so far to the reader of a pipe.
    pub fn flush(&mut self) -> Result<()> {
        let done = match &mut self.encoder {
            Encoder::Plain(out) => out.flush(),
            // No one can read a compressed file before its end.
            Encoder::Gzip(_) | Encoder::Zstd(_) => Ok(()),
        };
        done.map_err(|e| Error::io("write", &self.name, &e))
    }

    /// Ends the output; only now does a file appear.
    pub fn commit(self) -> Result<()> {
        self.commit_under(None)
    }

    /// Ends the output, and lets it appear beside the file that it would have replaced, under the name that is returned: that
    /// file and `.partial`.
    pub fn commit_aside(self) -> Result<PathBuf> {
        let aside = aside(&self.name)?;
        self.commit_under(Some(&aside))?;
        Ok(aside)
    }

    fn commit_under(self, name: Option<&Path>) -> Result<()> {
        let fail = |e: &io::Error| Error::io("write", &self.name, e);
        let buffered = match self.encoder {
            Encoder::Plain(out) => out,
            Encoder::Gzip(out) => out.finish().and_then(GzEncoder::finish).map_err(|e| fail(&e))?,
            Encoder::Zstd(out) => out.finish().and_then(zstd::Encoder::finish).map_err(|e| fail(&e))?,
        };
        match buffered.into_inner().map_err(|e| fail(e.error()))? {
            Target::Stream(mut out) => out.flush().map_err(|e| fail(&e)),
            Target::Whole(file) => match name {
                Some(name) => file.commit_as(name),
                None => file.commit(),
            },
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
    ended: bool,
    hasher: Option<blake3::Hasher>,
}

impl JsonWriter {
    pub fn new(output: Output, as_array: bool) -> Self {
        Self { output, as_array, began: false, ended: false, hasher: None }
    }

    /// The same, and [`JsonWriter::end`] gives the hash of all that was written, before it is compressed.
    #[must_use]
    pub fn hashed(self) -> Self {
        Self { hasher: Some(blake3::Hasher::new()), ..self }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.output.put(bytes)
    }

    pub fn put(&mut self, value: &[u8]) -> Result<()> {
        let before: &[u8] = match (self.as_array, self.began) {
            (true, false) => b"[\n",
            (true, true) => b",\n",
            (false, false) => b"",
            (false, true) => b"\n",
        };
        self.began = true;
        self.write(before)?;
        self.write(value)
    }

    pub fn commit(mut self) -> Result<()> {
        self.end()?;
        self.output.commit()
    }

    /// [`Output::commit_aside`]
    pub fn commit_aside(mut self) -> Result<PathBuf> {
        self.end()?;
        self.output.commit_aside()
    }

    /// Writes the end, once. The hash is there if it was asked for.
    pub fn end(&mut self) -> Result<Option<String>> {
        let end: &[u8] = match (self.as_array, self.began) {
            _ if self.ended => b"",
            (true, false) => b"[\n]\n",
            (true, true) => b"\n]\n",
            (false, false) => b"",
            (false, true) => b"\n",
        };
        self.ended = true;
        self.write(end)?;
        Ok(self.hasher.as_ref().map(|hasher| hasher.finalize().to_hex().to_string()))
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

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn s2_a_file_appears_on_commit_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        // With a name too, as on a file system that has no nameless files.
        let ways: [fn(&Path) -> Result<AtomicFile>; 2] = [AtomicFile::create, |path| AtomicFile::named(path, NEW_FILE)];
        for (round, create) in ways.iter().cycle().take(4).enumerate() {
            let mut file = create(&path).expect("created");
            file.write_all(&[b'0' + round as u8]).expect("written");
            file.commit().expect("committed");
            assert_eq!(super::super::input::read_small(&path, 9).expect("read"), round.to_string());
            assert_eq!(names(dir.path()), ["out"]);
        }
    }

    #[test]
    fn without_a_name_nothing_stays_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        if unnamed(dir.path()).is_none() {
            eprintln!("skipped: {} has no nameless files", dir.path().display());
            return;
        }
        let output = Output::create(Some(&dir.path().join("out.jsonl.gz"))).expect("created");
        assert!(names(dir.path()).is_empty());
        // As when we are killed: nobody tidies up.
        std::mem::forget(output);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        let mode = || std::fs::metadata(&path).expect("there").mode() & 0o7777;
        write_whole(&path, b"").expect("written");
        for kept in [0o600, 0o640, 0o666, 0o400] {
            std::fs::set_permissions(&path, Permissions::from_mode(kept)).expect("set");
            write_whole(&path, b"").expect("written");
            assert_eq!(mode(), kept);
        }
    }

    #[test]
    fn a_link_is_followed_to_a_file_that_is_not_there_yet() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("far")).expect("created");
        std::os::unix::fs::symlink("far/middle", at("link")).expect("linked");
        std::os::unix::fs::symlink("end", at("far/middle")).expect("linked");
        for _ in 0..2 {
            Output::create(Some(&at("link"))).expect("created").commit().expect("committed");
            assert!(at("link").is_symlink() && at("far/middle").is_symlink() && at("far/end").is_file());
        }
        std::os::unix::fs::symlink("b", at("a")).expect("linked");
        std::os::unix::fs::symlink("a", at("b")).expect("linked");
        let error = Output::create(Some(&at("a"))).expect_err("it leads nowhere");
        assert!(error.to_string().contains("too many symbolic links"), "{error}");
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
