//! A directory that is held open, and the files below it.
//!
//! Everything goes through the open handle: a directory that is renamed or replaced meanwhile is never followed to. Below it no
//! symbolic link is followed and nothing but a regular file is opened, so that a prepared directory cannot send a read or a
//! write elsewhere (`docs/reliability.md` K2). New files are 0600, new directories 0700.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, renameat, statat, unlinkat},
    io::Errno,
    process::geteuid,
};

use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
    shell,
};

const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Group and others may change it.
const SHARED: u32 = 0o022;
const HANDLE: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A pipe in the place of a file does not block; it is refused a moment later.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
/// Tries to find a name that is free.
const NAMES: u32 = 100;

/// An open directory. A clone is the same handle.
#[derive(Clone, Debug)]
pub struct Folder(Arc<Open>);

#[derive(Debug)]
struct Open {
    handle: OwnedFd,
    /// For messages, and for the one check that a name still leads here.
    path: PathBuf,
}

/// Who may use a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It belongs to the user that runs this process, and nobody else may write to it.
    We,
    /// This process is root's and the directory is another user's, as with a bind mount: what lies in it must be root's.
    RootsGuest,
}

impl Folder {
    /// Opens a directory. A symbolic link to the directory itself is followed: the user named it.
    pub fn open(path: &Path) -> Result<Self> {
        let handle = rustix::fs::open(path, HANDLE, Mode::empty()).map_err(|e| Error::io("open", path, &e.into()))?;
        Ok(Self(Arc::new(Open { handle, path: path.to_owned() })))
    }

    /// Opens a directory, and makes it first, with its parents, if it is not there.
    pub fn make(path: &Path) -> Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(|e| Error::io("create directory", path, &e))?;
        Self::open(path)
    }

    /// Opens a directory below, by one name.
    pub fn folder(&self, name: &str) -> Result<Self> {
        let entry = self.file(name);
        let handle = entry.at(|dir, name| openat(dir, name, HANDLE | OFlags::NOFOLLOW, Mode::empty()));
        let handle = handle.map_err(|e| entry.failed("open", e))?;
        Ok(Self(Arc::new(Open { handle, path: entry.path() })))
    }

    /// Opens a directory below, and makes it first if it is not there.
    pub fn make_folder(&self, name: &str) -> Result<Self> {
        let entry = self.file(name);
        match entry.at(|dir, name| mkdirat(dir, name, Mode::RWXU)) {
            Ok(()) | Err(Errno::EXIST) => self.folder(name),
            Err(e) => Err(entry.failed("create directory", e)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A file below, there or not. `name` has one part for each directory on the way; each is opened without following links.
    pub fn file(&self, name: impl AsRef<Path>) -> Entry {
        Entry { folder: self.clone(), name: name.as_ref().to_owned() }
    }

    pub fn stat(&self) -> Result<Stat> {
        fstat(&self.0.handle).map_err(|e| Error::io("look at", self.path(), &e.into()))
    }

    /// What is in it, with its kind where the file system tells; `.` and `..` are left out.
    pub fn list(&self) -> Result<Vec<(OsString, FileType)>> {
        let listed = Dir::read_from(&self.0.handle).and_then(|entries| {
            let named = entries.map(|entry| {
                entry.map(|entry| (OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(), entry.file_type()))
            });
            named.collect::<std::result::Result<Vec<_>, Errno>>()
        });
        let mut names = listed.map_err(|e| Error::io("list", self.path(), &e.into()))?;
        names.retain(|(name, _)| name != "." && name != "..");
        Ok(names)
    }

    /// Makes renames and removals in it durable.
    pub fn sync(&self) -> Result<()> {
        if drill::without(Guard::DirectorySync) {
            return Ok(());
        }
        rustix::fs::fsync(&self.0.handle).map_err(|e| Error::io("sync directory", self.path(), &e.into()))
    }

    /// Renames a directory or file in it, whatever its kind.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        renameat(&self.0.handle, from, &self.0.handle, to)
            .map_err(|e| Error::io("rename", self.path().join(from), &e.into()))?;
        self.sync()
    }

    /// Whether this process may trust the directory: it belongs to the effective user, and neither group nor others may write.
    ///
    /// A file that is made in it and removed again settles the doubtful cases: file systems without owners or modes (a USB
    /// stick, a Windows drive under WSL, some network mounts) show the same owner and mode for every file.
    ///
    /// # Errors
    /// [`Kind::Input`], with the command that mends it.
    pub fn check_owner(&self) -> Result<Owner> {
        let (here, us) = (self.stat()?, geteuid().as_raw());
        if here.st_uid == us && !is_shared(&here) {
            return Ok(Owner::We);
        }
        let probe = if here.st_uid == us || !is_shared(&here) { self.probe() } else { None };
        let same_owner = here.st_uid == us || probe.is_some_and(|probe| probe.st_uid == here.st_uid);
        if !same_owner && us != 0 {
            return Err(belongs_to(self.path(), self.path(), here.st_uid));
        }
        if is_shared(&here) && !probe.is_some_and(|probe| is_shared(&probe)) {
            return Err(Error::input(format!(
                "{} may be changed by other users (its mode is {:03o}), so they could have prepared what lies in it",
                self.path().display(),
                here.st_mode & 0o777
            ))
            .fix(format!("chmod go-w {}", shell::path(self.path()))));
        }
        Ok(if same_owner { Owner::We } else { Owner::RootsGuest })
    }

    /// Takes the right to write from a group. A directory for everybody, as `/tmp` is, stays as it is.
    pub fn close_to_group(&self) -> Result<()> {
        const STICKY: u32 = 0o1000;

        let mode = self.stat()?.st_mode & 0o7777;
        if mode & (STICKY | SHARED) != 0o020 {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(mode & !SHARED);
        rustix::fs::fchmod(&self.0.handle, mode).map_err(|e| Error::io("set the mode of", self.path(), &e.into()))
    }

    /// A file that is made private here stays so. File systems without modes show the same one for every file.
    pub fn keeps_modes(&self) -> bool {
        self.probe().is_none_or(|probe| !is_shared(&probe))
    }

    /// How a private file that is made here looks; `None` if none can be made.
    fn probe(&self) -> Option<Stat> {
        let (file, name) = self.file("probe").make_temp().ok()?;
        let stat = fstat(&file).ok();
        let removed = unlinkat(&self.0.handle, &name, AtFlags::empty());
        stat.filter(|_| removed.is_ok())
    }

    /// The name that led here still does: the directory was not moved or replaced.
    pub fn is_at_its_path(&self) -> Result<bool> {
        let here = self.stat()?;
        match rustix::fs::stat(self.path()) {
            Ok(there) => Ok(is_same(&here, &there)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(e) => Err(Error::io("look at", self.path(), &e.into())),
        }
    }
}

fn belongs_to(path: &Path, dir: &Path, owner: u32) -> Error {
    let (path, us) = (path.display(), geteuid().as_raw());
    Error::input(format!("{path} belongs to another user (number {owner}; this process is user {us})")).fix(format!(
        "run as that user, or name a directory of your own with -d; if you trust all that is in it: sudo chown -R {us} {}",
        shell::path(dir)
    ))
}

/// Group or others may change it.
pub fn is_shared(stat: &Stat) -> bool {
    stat.st_mode & SHARED != 0
}

pub fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// A file in a [`Folder`], there or not.
#[derive(Clone, Debug)]
pub struct Entry {
    folder: Folder,
    name: PathBuf,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

impl Entry {
    /// The file of this path, in a directory that the user named.
    pub fn of(path: &Path) -> Result<Self> {
        Ok(Folder::open(directory(path))?.file(path.file_name().unwrap_or_default()))
    }

    /// For messages.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Its path within its [`Folder`].
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Another file in the same directory.
    #[must_use]
    pub fn sibling(&self, name: &OsStr) -> Self {
        Self { folder: self.folder.clone(), name: self.name.with_file_name(name) }
    }

    /// Calls the system with the directory that the file is in, and its name there.
    fn at<T>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> std::result::Result<T, Errno> {
        let mut held: Option<OwnedFd> = None;
        let mut parts = self.name.components().peekable();
        while let Some(part) = parts.next() {
            let Component::Normal(part) = part else { break };
            let dir = held.as_ref().map_or(self.folder.0.handle.as_fd(), |fd| fd.as_fd());
            if parts.peek().is_none() {
                return call(dir, part);
            }
            held = Some(openat(dir, part, HANDLE | OFlags::NOFOLLOW, Mode::empty())?);
        }
        Err(Errno::INVAL)
    }

    /// What a call failed with. A link on the way is named: the system's own words for it do not help.
    fn failed(&self, operation: &str, e: Errno) -> Error {
        let mut so_far = PathBuf::new();
        for part in &self.name {
            so_far.push(part);
            let part = self.folder.file(&so_far);
            let stat = part.at(|dir, name| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
            if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink) {
                return part.is_a_link();
            }
        }
        Error::io(operation, self.path(), &e.into())
    }

    pub fn belongs_to(&self, owner: u32) -> Error {
        belongs_to(&self.path(), self.folder.path(), owner)
    }

    pub fn is_a_link(&self) -> Error {
        let dir = self.folder.path().display();
        Error::input(format!("{self} is a symbolic link, and zbatch follows none below {dir}"))
            .fix("put the file or folder itself there; another directory (-d) would begin, and pay, from the start")
    }

    /// What it is, a link itself included; `None` if it is not there.
    pub fn stat(&self) -> Result<Option<Stat>> {
        match self.at(|dir, name| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("look at", e)),
        }
    }

    pub fn exists(&self) -> Result<bool> {
        Ok(self.stat()?.is_some())
    }

    /// Bytes of the file; `None` if it is not there.
    pub fn len(&self) -> Result<Option<u64>> {
        Ok(self.stat()?.map(|stat| u64::try_from(stat.st_size).unwrap_or_default()))
    }

    /// Opens it for reading.
    pub fn open(&self) -> Result<File> {
        self.open_as(OFlags::RDONLY)
    }

    /// Opens it for reading, if it is there.
    pub fn find(&self) -> Result<Option<File>> {
        if self.exists()? { self.open().map(Some) } else { Ok(None) }
    }

    /// Opens it for reading and appending, and makes it first if it is not there.
    pub fn append(&self) -> Result<File> {
        self.open_as(OFlags::RDWR | OFlags::APPEND | OFlags::CREATE)
    }

    fn open_as(&self, flags: OFlags) -> Result<File> {
        let file = self.at(|dir, name| openat(dir, name, FILE | flags, PRIVATE_FILE));
        let file = File::from(file.map_err(|e| self.failed("open", e))?);
        let stat = fstat(&file).map_err(|e| Error::io("look at", self.path(), &e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::input(format!("{self} is not a regular file"))
                .fix("put the file itself there; another directory (-d) would begin, and pay, from the start"));
        }
        Ok(file)
    }

    /// A text of at most `limit` bytes.
    pub fn read_small(&self, limit: u64) -> Result<String> {
        let mut text = String::new();
        let file = self.find()?.ok_or_else(|| Error::input(format!("cannot read {self}: it is not there")))?;
        file.take(limit + 1).read_to_string(&mut text).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => Error::input(format!("{self}: it is not UTF-8 text")),
            _ => Error::io("read", self.path(), &e),
        })?;
        match text.len() as u64 > limit {
            true => Err(Error::input(format!("{self} is larger than {limit} bytes"))),
            false => Ok(text),
        }
    }

    /// Removes it, if it is there. A link is removed, not where it leads.
    pub fn remove(&self) -> Result<()> {
        match self.at(|dir, name| unlinkat(dir, name, AtFlags::empty())) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed("remove", e)),
        }
    }

    /// Makes an empty file beside it that is called `.NAME.….part`.
    pub fn make_temp(&self) -> Result<(File, OsString)> {
        /// Characters of the name: the temp file's name must not be too long because of it.
        const CHARS: usize = 40;

        let name: String = self.name.file_name().unwrap_or_default().to_string_lossy().chars().take(CHARS).collect();
        let mut taken = Errno::EXIST;
        for _ in 0..NAMES {
            let chance: String = std::iter::repeat_with(fastrand::alphanumeric).take(6).collect();
            let temp = OsString::from(format!(".{name}.{chance}.part"));
            let flags = FILE | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let made = self.sibling(&temp).at(|dir, name| openat(dir, name, flags, PRIVATE_FILE));
            match made {
                Ok(file) => return Ok((file.into(), temp)),
                Err(Errno::EXIST) => {}
                Err(e) => {
                    taken = e;
                    break;
                }
            }
        }
        let dir = self.path();
        let error = Error::new(Kind::Io, format!("cannot write {self}: {}", io::Error::from(taken)));
        Err(error.fix(format!("make {} writable, or name another place", directory(&dir).display())))
    }

    /// Takes another name in the same directory, over what is there.
    pub fn rename(&self, to: &OsStr) -> Result<()> {
        self.at(|dir, name| renameat(dir, name, dir, to))
            .map_err(|e| Error::io("rename to", self.sibling(to).path(), &e.into()))
    }

    /// Makes what happened to its name durable.
    pub fn sync_directory(&self) -> Result<()> {
        if drill::without(Guard::DirectorySync) {
            return Ok(());
        }
        self.at(|dir, _| rustix::fs::fsync(dir)).map_err(|e| Error::io("sync the directory of", self.path(), &e.into()))
    }
}

/// The directory a path is in.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;
    use crate::lines::output::AtomicFile;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    }

    #[test]
    fn r11_2_no_link_below_a_folder_is_followed() {
        let (dir, outside) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let precious = outside.path().join("precious");
        crate::lines::output::write_whole(&precious, b"kept").expect("written");
        symlink(outside.path(), dir.path().join("rows")).expect("linked");
        symlink(&precious, dir.path().join("file")).expect("linked");
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("made");
        let folder = Folder::open(dir.path()).expect("opened");
        for name in ["rows/precious", "rows/new", "file"] {
            let entry = folder.file(name);
            for error in [entry.open().expect_err(name), entry.append().expect_err(name)] {
                assert_eq!(error.kind(), Kind::Input);
                assert!(error.to_string().contains("is a symbolic link"), "{error}");
            }
        }
        assert!(folder.file("rows/new").write(b"x").is_err() && folder.file("rows/precious").remove().is_err());
        assert!(folder.folder("rows").is_err() && folder.make_folder("rows").is_err());
        let error = folder.file("pipe").open().expect_err("a pipe").to_string();
        assert!(error.contains("is not a regular file"), "{error}");
        for name in ["", "..", "../x", "/etc/passwd", "a/../../x"] {
            assert!(folder.file(name).open().is_err(), "{name}");
        }
        // The name itself may be taken over.
        folder.file("file").write(b"mine").expect("written");
        assert_eq!(folder.file("file").read_small(9).expect("read"), "mine");
        assert_eq!(crate::lines::input::read_small(&precious, 9).expect("read"), "kept");
    }

    #[test]
    fn k2_files_are_private_and_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = Folder::make(&dir.path().join("a/b")).expect("made");
        let rows = folder.make_folder("rows").expect("made");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").mode() & 0o777;
        let file = folder.file("rows/x.txt");
        file.write(b"1").expect("written");
        file.write(b"2").expect("written again");
        drop(AtomicFile::within(&file).expect("begun"));
        let names: Vec<OsString> = rows.list().expect("listed").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["x.txt"]);
        assert_eq!((mode(folder.path()), mode(rows.path()), mode(&file.path())), (0o700, 0o700, 0o600));
        let mut named_late = AtomicFile::within(&folder.file("rows/chunk")).expect("begun");
        named_late.write_all(b"3").expect("written");
        named_late.commit_as(&rows.path().join("y.txt")).expect("committed");
        assert_eq!(folder.file("rows/y.txt").len().expect("looked"), Some(1));
    }

    #[test]
    fn r11_2_a_folder_that_others_may_change_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("w $x");
        let folder = Folder::make(&path).expect("made");
        assert_eq!(folder.check_owner().expect("ours"), Owner::We);
        for mode in [0o770, 0o775, 0o757, 0o1777] {
            set_mode(&path, mode);
            let error = folder.check_owner().expect_err("shared").line();
            assert!(error.ends_with(&format!("chmod go-w '{}'", path.display())), "{error}");
        }
        assert_eq!(folder.list().expect("listed"), [], "the probe is gone");
        folder.close_to_group().expect("left alone");
        assert!(folder.check_owner().is_err());
        set_mode(&path, 0o2775);
        folder.close_to_group().expect("closed");
        assert_eq!(folder.check_owner().expect("ours"), Owner::We);
        if !geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(&path, Some(12345), None).expect("given away");
        assert_eq!(folder.check_owner().expect("root may"), Owner::RootsGuest);
    }

    #[test]
    fn a_folder_that_was_moved_is_not_at_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let (here, there) = (dir.path().join("w"), dir.path().join("other"));
        let folder = Folder::make(&here).expect("made");
        assert!(folder.is_at_its_path().expect("looked"));
        std::fs::rename(&here, &there).expect("moved");
        assert!(!folder.is_at_its_path().expect("looked"));
        folder.file("x").write(b"").expect("it goes with the directory");
        assert!(there.join("x").exists());
        std::fs::create_dir(&here).expect("another");
        assert!(!folder.is_at_its_path().expect("looked"));
    }
}
