//! The image files below the data dir: found under the names that people's posts hold, opened only inside it
//! (`docs/reliability.md`, P3), and streamed out as data URLs.

use std::{
    ffi::OsStr,
    io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write},
    path::{Component, Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cap_std::{
    ambient_authority,
    fs::{Dir, File, OpenOptions, OpenOptionsExt as _},
};

use super::MAX_IMAGE_BYTES;
use crate::error::{Error, Kind, Result};

/// Bytes that are read and encoded at a time: a multiple of three, so that only the end of the file is padded.
const PIECE: usize = 24 << 10;

/// What Linux opens at most; a longer one is not copied to be read in other ways.
const LONGEST_NAME: usize = 4096;

#[derive(Debug)]
pub struct DataDir {
    dir: Dir,
    /// Its absolute path, as it was named and with its links followed.
    places: [PathBuf; 2],
}

#[derive(Debug)]
pub struct ImageFile {
    file: File,
    name: String,
    /// Everything before the base64 text: `data:image/png;base64,`.
    head: &'static str,
    bytes: u64,
}

impl DataDir {
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("open data dir", path, &e);
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(failed)?;
        let places = [std::path::absolute(path).map_err(failed)?, path.canonicalize().map_err(failed)?];
        Ok(Self { dir, places })
    }

    /// The image of a name, read as it is written or, if there is no such file, as one of [`DataDir::other_readings`].
    ///
    /// # Errors
    /// Why there is no image, in words.
    pub fn find(&self, name: &str) -> Result<ImageFile, String> {
        if name.contains('\0') || name.len() > LONGEST_NAME {
            return Err("no file has such a name".to_owned());
        }
        let mut opened = self.open_inside(Path::new(name));
        if opened.is_err() {
            for path in self.other_readings(name) {
                opened = self.open_inside(&path);
                if opened.is_ok() {
                    break;
                }
            }
        }
        ImageFile::new(opened?, name)
    }

    /// Without blanks around it and with the slashes of a path that was saved on Windows; and of that, what follows the data
    /// dir's own name or absolute path.
    fn other_readings(&self, name: &str) -> Vec<PathBuf> {
        let slashed = name.trim().replace('\\', "/");
        let path = Path::new(&slashed);
        if path.is_absolute() {
            return self.places.iter().filter_map(|place| path.strip_prefix(place).ok()).map(Path::to_owned).collect();
        }
        let mut parts = path.components().filter(|part| *part != Component::CurDir);
        let own_name = |first: &OsStr| self.places.iter().any(|place| place.file_name() == Some(first));
        let below = match parts.next() {
            Some(Component::Normal(first)) if own_name(first) => Some(parts.collect()),
            _ => None,
        };
        let changed = (slashed != name).then(|| path.to_owned());
        changed.into_iter().chain(below).collect()
    }

    /// Opens nothing outside, whatever the path and its links say.
    fn open_inside(&self, path: &Path) -> Result<File, String> {
        let mut options = OpenOptions::new();
        // A FIFO in the data dir must not hang us.
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        self.dir.open_with(path, &options).map_err(|e| match e.raw_os_error() {
            // Only the confinement fails without a system call.
            None => "it leads out of the data dir".to_owned(),
            Some(_) if e.kind() == ErrorKind::NotFound => "there is no such file below the data dir".to_owned(),
            Some(_) => e.to_string(),
        })
    }
}

impl ImageFile {
    fn new(mut file: File, name: &str) -> Result<Self, String> {
        let meta = file.metadata().map_err(|e| e.to_string())?;
        if !meta.is_file() {
            return Err("not a regular file".to_owned());
        }
        if meta.len() > MAX_IMAGE_BYTES {
            return Err(format!("{} bytes; the limit is {MAX_IMAGE_BYTES}", meta.len()));
        }
        let mut first = Vec::new();
        #[expect(clippy::disallowed_methods, reason = "at most twelve bytes")]
        (&mut file).take(12).read_to_end(&mut first).map_err(|e| e.to_string())?;
        let head = match first.as_slice() {
            [0xff, 0xd8, 0xff, _, ..] => "data:image/jpeg;base64,",
            [0x89, b'P', b'N', b'G', ..] => "data:image/png;base64,",
            other => return Err(format!("{}; only JPEG and PNG images are sent", describe(other))),
        };
        Ok(Self { file, name: name.to_owned(), head, bytes: meta.len() })
    }

    /// Of the file as a data URL, exactly.
    pub fn data_url_bytes(&self) -> u64 {
        self.head.len() as u64 + self.bytes.div_ceil(3) * 4
    }

    /// Streams the file as a data URL. May be called again: the file is read from its start.
    pub fn write_data_url(&self, out: &mut (impl Write + ?Sized)) -> Result<()> {
        let unwritten = |e: std::io::Error| Error::io("write", "the request", &e);
        let unreadable = |e: std::io::Error| match e.kind() {
            // The line's length was promised when the chunk was chosen.
            ErrorKind::UnexpectedEof => Error::new(Kind::Io, format!("image {} changed while it was read", self.name))
                .fix("run the same command again when nobody writes to the data dir"),
            _ => Error::io("read image", &self.name, &e),
        };
        out.write_all(self.head.as_bytes()).map_err(unwritten)?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let (mut bytes, mut text) = ([0; PIECE], [0; PIECE / 3 * 4]);
        let mut left = self.bytes;
        while left > 0 {
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let piece = bytes.get_mut(..most).unwrap_or_default();
            file.read_exact(piece).map_err(unreadable)?;
            let encoded = STANDARD
                .encode_slice(piece, &mut text)
                .map_err(|e| Error::new(Kind::Io, format!("encode image {}: {e}", self.name)))?;
            out.write_all(text.get(..encoded).unwrap_or_default()).map_err(unwritten)?;
            left -= most as u64;
        }
        Ok(())
    }
}

/// What a file that is no image for us is, as far as its first bytes tell.
fn describe(first: &[u8]) -> &'static str {
    match first {
        [] => "it is empty",
        [b'G', b'I', b'F', b'8', ..] => "it is a GIF file",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => "it is a WebP file",
        [b'B', b'M', ..] => "it is a BMP file",
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => "it is a TIFF file",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', _] => "it is an AVIF file",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "it is a HEIF file",
        [b'<', ..] => "it is a page of HTML or XML",
        _ => "it is neither a JPEG nor a PNG file",
    }
}
