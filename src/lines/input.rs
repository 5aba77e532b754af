//! Inputs: a file or stdin, plain or compressed (gz, zst, bz2, xz, told by their magic bytes, several members
//! one after another too, and zeros after or between them in gz, bz2 and xz), as a plain `Read`. Decoding is streamed, on a
//! thread of its own; nothing is held but the decoder's window and a few pieces.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Chain, Cursor, IsTerminal as _, Read},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::ahead::ReadAhead;
use crate::error::{Error, Result};

/// Window of an xz or zstd frame that we are willing to hold, as a power of two: 128 MiB, zstd's own limit.
const ZSTD_WINDOW_LOG: u32 = 27;
const XZ_MEMORY: u64 = 128 << 20;

/// A decompressed input and the name that messages use for it.
pub struct Input {
    pub reader: Box<dyn Read + Send>,
    /// As the user typed it; `stdin` for stdin.
    pub name: String,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What reading an input came to: its device failed, or what it holds is no sound archive.
pub fn read_error(name: &str, e: &io::Error) -> Error {
    let error = Error::io("read", name, e);
    if error.kind() != crate::error::Kind::Io || e.raw_os_error().is_some() {
        return error;
    }
    // No system call failed: the decoder did.
    Error::input(format!("{name}: its compressed data is damaged or cut short: {e}"))
        .fix("fetch or compress the file again; `gzip -t`, `zstd -t`, `bzip2 -t` and `xz -t` check one")
}

/// Why a file could not be opened: the name is the user's to mend, the system's trouble is not.
pub fn open_error(path: &Path, e: &io::Error) -> Error {
    if is_the_systems(e) {
        return Error::io("open", path, e);
    }
    Error::input(format!("cannot open {}: {e}", path.display())).fix("check the path; `-` is stdin")
}

/// Another path, or another content, would not help: the device, or a limit of the system.
fn is_the_systems(e: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    !matches!(e.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory | InvalidFilename | InvalidData)
        && e.raw_os_error() != Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Whether a file is there; a device that cannot tell is no answer.
pub fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|e| Error::io("look for", path, &e))
}

impl Input {
    /// `None` and `-` are stdin.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`], with `example`, when stdin is a terminal;
    /// [`crate::error::Kind::Input`] when the file cannot be opened.
    pub fn open(path: Option<&Path>, example: &str) -> Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            if io::stdin().is_terminal() {
                return Err(Error::usage("no input: stdin is a terminal").fix(format!("e.g. {example}")));
            }
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|e| Error::io("open", "stdin", &e))?;
            return Self::decode(File::from(stdin), "stdin".to_owned());
        };
        let file = File::open(path).map_err(|e| open_error(path, &e))?;
        if file.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(Error::input(format!("{} is a directory", path.display())).fix("name a file"));
        }
        Self::decode(file, path.display().to_string())
    }

    /// A file that is open already; `name` is for messages.
    pub fn of(file: File, name: String) -> Result<Self> {
        Self::decode(file, name)
    }

    fn decode(mut file: File, name: String) -> Result<Self> {
        let mut magic = [0; MAGIC_BYTES];
        let have = read_magic(&mut file, &mut magic).map_err(|e| Error::io("read", &name, &e))?;
        let head = magic.get(..have).unwrap_or_default().to_vec();
        let whole = |head: Vec<u8>, file: File| -> Chain<Cursor<Vec<u8>>, File> { Cursor::new(head).chain(file) };
        let failed = |e: io::Error| Error::io("decompress", &name, &e);
        let reader: Box<dyn Read + Send> = match Packing::of(&magic) {
            Some(Packing::Gzip) => {
                use flate2::bufread::GzDecoder;
                Box::new(ReadAhead::new(Members::new(whole(head, file), GzDecoder::new, GzDecoder::into_inner)))
            }
            Some(Packing::Zstd) => {
                let mut decoder = zstd::Decoder::new(whole(head, file)).map_err(failed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
                Box::new(ReadAhead::new(decoder))
            }
            Some(Packing::Bzip2) => {
                use bzip2::bufread::BzDecoder;
                Box::new(ReadAhead::new(Members::new(whole(head, file), BzDecoder::new, BzDecoder::into_inner)))
            }
            Some(Packing::Xz) => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                    .map_err(|e| failed(e.into()))?;
                Box::new(ReadAhead::new(liblzma::read::XzDecoder::new_stream(whole(head, file), stream)))
            }
            None if have < magic.len() => Box::new(Cursor::new(head)),
            None => Box::new(whole(head, file)),
        };
        Ok(Self { reader, name })
    }
}

/// As many first bytes as tell every packing.
const MAGIC_BYTES: usize = 6;

/// The bytes that are there.
fn read_magic(file: &mut File, magic: &mut [u8; MAGIC_BYTES]) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = magic.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// How an input is compressed, as its first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Packing {
    fn of(magic: &[u8; MAGIC_BYTES]) -> Option<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Self::Xz),
            _ => None,
        }
    }
}

/// The program that unpacks a file, for a command in a message; `None` if it is plain, or no file that can be read again.
pub fn unpacker(path: &Path) -> Option<&'static str> {
    if !path.is_file() {
        return None;
    }
    let mut magic = [0; MAGIC_BYTES];
    read_magic(&mut File::open(path).ok()?, &mut magic).ok()?;
    Packing::of(&magic).map(|packing| match packing {
        Packing::Gzip => "gzip -dc",
        Packing::Zstd => "zstd -dc",
        Packing::Bzip2 => "bzip2 -dc",
        Packing::Xz => "xz -dc",
    })
}

/// A file, whatever its names are: its device and its number there.
pub type Identity = (u64, u64);

/// The file that is read; `None` if it is a pipe or a device, or not there. `None` and `-` are stdin.
pub fn identity(path: Option<&Path>) -> Option<Identity> {
    match path.filter(|path| *path != Path::new("-")) {
        Some(path) => identify(std::fs::metadata(path)),
        None => identify(io::stdin().as_fd().try_clone_to_owned().and_then(|file| File::from(file).metadata())),
    }
}

/// The file that stdout writes to.
pub fn stdout_identity() -> Option<Identity> {
    identify(io::stdout().as_fd().try_clone_to_owned().and_then(|file| File::from(file).metadata()))
}

fn identify(meta: io::Result<std::fs::Metadata>) -> Option<Identity> {
    meta.ok().filter(std::fs::Metadata::is_file).map(|meta| (meta.dev(), meta.ino()))
}

/// Compressed members one after another. Zeros after a member are padding, as on a tape or a block device.
struct Members<R, D> {
    /// `None`: all is read.
    decoder: Option<D>,
    open: fn(BufReader<R>) -> D,
    close: fn(D) -> BufReader<R>,
}

impl<R: Read, D: Read> Members<R, D> {
    fn new(reader: R, open: fn(BufReader<R>) -> D, close: fn(D) -> BufReader<R>) -> Self {
        Self { decoder: Some(open(BufReader::with_capacity(PACKED_BUFFER, reader))), open, close }
    }
}

/// Compressed bytes that are read at a time.
const PACKED_BUFFER: usize = 64 << 10;

impl<R: Read, D: Read> Read for Members<R, D> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let read = decoder.read(to)?;
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            let Some(mut rest) = self.decoder.take().map(self.close) else { break };
            if skip_zeros(&mut rest)? {
                self.decoder = Some((self.open)(rest));
            }
        }
        Ok(0)
    }
}

/// Whether anything follows them.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let here = match reader.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            here => here?,
        };
        let zeros = here.iter().take_while(|byte| **byte == 0).count();
        if zeros < here.len() {
            reader.consume(zeros);
            return Ok(true);
        }
        if zeros == 0 {
            return Ok(false);
        }
        reader.consume(zeros);
    }
}

/// The same place on disk under two names: an output may name its input, but two inputs may not both be stdin.
pub fn is_stdin(path: Option<&PathBuf>) -> bool {
    path.is_none_or(|path| path == Path::new("-"))
}

/// A file that is small by nature (configuration, prompt, reference data), as text.
///
/// # Errors
/// Missing, not allowed, not UTF-8, or larger than `limit` bytes: each is the user's input to mend. A device that fails
/// is not.
pub fn read_small(path: &Path, limit: u64) -> Result<String> {
    let unreadable = |e: io::Error| {
        if is_the_systems(&e) {
            return Error::io("read", path, &e);
        }
        Error::input(format!("cannot read {}: {e}", path.display()))
            .fix("check the path; it is one small file of UTF-8 text")
    };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limit {
        return Err(Error::input(format!("{} is larger than {limit} bytes; is it the right file?", path.display())));
    }
    // Editors on Windows begin a file with a byte order mark.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn s7_a_device_that_fails_is_not_the_users_input() {
        // EIO, EMFILE; ENOENT, EACCES, ELOOP.
        for (number, kind) in [(5, Kind::Io), (24, Kind::Io), (2, Kind::Input), (13, Kind::Input), (40, Kind::Input)] {
            let error = open_error(Path::new("posts.jsonl"), &io::Error::from_raw_os_error(number));
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("open posts.jsonl: "), "{error}");
        }
        // Address 0 of our own memory cannot be read: EIO.
        let error = read_small(Path::new("/proc/self/mem"), 100).expect_err("unreadable");
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (Kind::Io, "read /proc/self/mem: Input/output error (os error 5)")
        );
        assert_eq!(read_small(Path::new("/proc/self"), 100).expect_err("a directory").kind(), Kind::Input);
    }
}
