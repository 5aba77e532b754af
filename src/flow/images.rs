//! The images of a post: URLs are passed on, local files are found below the data dir and streamed into the
//! request as base64, never held whole (`promises.md` P3).

use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    io::{Read, Write},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cap_std::fs::OpenOptionsExt as _;
use cap_std::{ambient_authority, fs::Dir};
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Fault, FaultKind, faults::short};
use crate::{
    analysis::escape_json,
    error::{Error, Kind, Result},
};

/// Zhipu's limits (`zhipu-batch-api.md` §2): images in one request, and bytes of one image.
pub const MAX_IMAGES: usize = 5;
pub const MAX_IMAGE_BYTES: u64 = 5_000_000;
/// Of the images of one post that are refused, so many are told.
const MAX_FAULTS: u64 = 10;

/// An image that a request will hold.
#[derive(Debug)]
pub enum Image {
    /// JSON-escaped.
    Url(String),
    File(ImageFile),
}

#[derive(Debug)]
pub struct ImageFile {
    file: cap_std::fs::File,
    name: String,
    /// Everything before the base64 text: `data:image/png;base64,`.
    head: &'static str,
    bytes: u64,
}

impl Image {
    /// Bytes in the request, exactly.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Url(url) => url.len() as u64,
            Self::File(file) => file.head.len() as u64 + file.bytes.div_ceil(3) * 4,
        }
    }

    /// Writes the URL, or the file as a data URL. May be called again: the file is read from its start.
    pub fn write_to(&self, out: &mut (impl Write + ?Sized)) -> Result<()> {
        let failed = |e: &std::io::Error| Error::io("write", "the request", e);
        match self {
            Self::Url(url) => out.write_all(url.as_bytes()).map_err(|e| failed(&e)),
            Self::File(image) => {
                out.write_all(image.head.as_bytes()).map_err(|e| failed(&e))?;
                image.encode(out)
            }
        }
    }
}

/// Bytes that are read and encoded at a time: a multiple of three, so that only the end of the file is padded.
const PIECE: usize = 24 << 10;

impl ImageFile {
    fn encode(&self, out: &mut (impl Write + ?Sized)) -> Result<()> {
        use std::io::{ErrorKind, Seek as _, SeekFrom};

        let mut file = &self.file;
        let unreadable = |e: std::io::Error| match e.kind() {
            // The line's length was promised when the chunk was chosen.
            ErrorKind::UnexpectedEof => Error::new(Kind::Io, format!("image {} changed while it was read", self.name))
                .fix("run the same command again when nobody writes to the data dir"),
            _ => Error::io("read image", &self.name, &e),
        };
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
            let text = text.get(..encoded).unwrap_or_default();
            out.write_all(text).map_err(|e| Error::io("write", "the request", &e))?;
            left -= most as u64;
        }
        Ok(())
    }
}

/// Finds images below one directory. Without one, local paths are faults.
#[derive(Debug)]
pub struct ImageFinder {
    dir: Option<Dir>,
}

/// The images of one post, and what was wrong with others of them.
#[derive(Debug, Default)]
pub struct Images {
    pub found: Vec<Image>,
    pub faults: Vec<Fault>,
    /// More than a request may hold.
    pub dropped: u64,
}

impl ImageFinder {
    pub fn new(data_dir: Option<&Path>) -> Result<Self> {
        let open = |dir: &Path| {
            Dir::open_ambient_dir(dir, ambient_authority()).map_err(|e| Error::io("open data dir", dir, &e))
        };
        Ok(Self { dir: data_dir.map(open).transpose()? })
    }

    /// `raw` is the JSON value of `image_urls`: an array of strings, a string, or null.
    pub fn find(&self, raw: &str) -> Images {
        let mut elements = Elements { finder: self, images: Images::default(), refused: 0 };
        if raw.starts_with('[') {
            // The post was read before: its array is whole.
            let _whole = serde_json::Deserializer::from_str(raw).deserialize_seq(&mut elements);
        } else if raw != "null" {
            elements.add(0, raw);
        }
        elements.images
    }

    fn image(&self, url: &str) -> Result<Image, String> {
        let is_url = ["http://", "https://", "data:image/"]
            .iter()
            .any(|scheme| url.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme)));
        if is_url { Ok(Image::Url(escape_json(url))) } else { self.local(url).map(Image::File) }
    }

    fn local(&self, path: &str) -> Result<ImageFile, String> {
        let dir = self.dir.as_ref().ok_or("a local path, and there is no data dir")?;
        if path.contains('\0') {
            return Err("no file has such a name".to_owned());
        }
        let mut options = cap_std::fs::OpenOptions::new();
        // A FIFO in the data dir must not hang us.
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let mut file = dir.open_with(path, &options).map_err(|e| match e.raw_os_error() {
            // Only the confinement fails without a system call.
            None => "it leads out of the data dir".to_owned(),
            Some(_) => e.to_string(),
        })?;
        let meta = file.metadata().map_err(|e| e.to_string())?;
        if !meta.is_file() {
            return Err("not a regular file".to_owned());
        }
        if meta.len() == 0 {
            return Err("it is empty".to_owned());
        }
        if meta.len() > MAX_IMAGE_BYTES {
            return Err(format!("{} bytes; the limit is {MAX_IMAGE_BYTES}", meta.len()));
        }
        let mut magic = Vec::new();
        #[expect(clippy::disallowed_methods, reason = "at most four bytes")]
        (&mut file).take(4).read_to_end(&mut magic).map_err(|e| e.to_string())?;
        let head = match magic.as_slice() {
            [0xff, 0xd8, 0xff, _] => "data:image/jpeg;base64,",
            [0x89, b'P', b'N', b'G'] => "data:image/png;base64,",
            _ => return Err("neither a JPEG nor a PNG file".to_owned()),
        };
        Ok(ImageFile { file, name: path.to_owned(), head, bytes: meta.len() })
    }
}

/// The elements of `image_urls`, looked at one after another: there may be millions.
struct Elements<'f> {
    finder: &'f ImageFinder,
    images: Images,
    refused: u64,
}

impl Elements<'_> {
    fn add(&mut self, at: usize, raw: &str) {
        let url = match serde_json::from_str::<Cow<'_, str>>(raw) {
            Ok(url) if url.trim().is_empty() => return,
            Ok(_) if self.images.found.len() == MAX_IMAGES => {
                self.images.dropped += 1;
                return;
            }
            Ok(url) => Some(url),
            Err(_) => None,
        };
        let why = match url.map(|url| (self.finder.image(&url), url)) {
            Some((Ok(image), _)) => return self.images.found.push(image),
            Some((Err(why), url)) => format!("{}: {why}", short(&url)),
            None => format!("image_urls, element {at} is not a string"),
        };
        self.refused += 1;
        match self.refused.cmp(&MAX_FAULTS) {
            Ordering::Less => self.images.faults.push(Fault::new(FaultKind::Image, why)),
            Ordering::Equal => {
                self.images.faults.push(Fault::new(FaultKind::Image, format!("{why}; others are not told")))
            }
            Ordering::Greater => {}
        }
    }
}

impl<'de> Visitor<'de> for &mut Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut at = 0;
        while let Some(raw) = elements.next_element::<&'de RawValue>()? {
            self.add(at, raw.get());
            at += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::output::write_whole;

    #[test]
    fn local_images_stay_below_the_data_dir() {
        let outside = tempfile::tempdir().expect("a directory");
        let dir = outside.path().join("data");
        std::fs::create_dir(&dir).expect("created");
        let png = [b"\x89PNG\r\n\x1a\n".as_slice(), &[7; 100]].concat();
        write_whole(&dir.join("in.png"), &png).expect("written");
        write_whole(&outside.path().join("out.png"), &png).expect("written");
        write_whole(&dir.join("text.png"), b"hello").expect("written");
        write_whole(&dir.join("large.png"), &[&png[..], &vec![0; 5_000_000]].concat()).expect("written");
        std::os::unix::fs::symlink("../out.png", dir.join("link.png")).expect("linked");
        let finder = ImageFinder::new(Some(&dir)).expect("a finder");
        let absolute = outside.path().join("out.png").display().to_string();
        let list = serde_json::json!([
            "in.png",
            "../out.png",
            absolute,
            "link.png",
            "text.png",
            "large.png",
            "none.png",
            ".",
            "https://x/1.jpg",
            " "
        ]);
        let images = finder.find(&list.to_string());
        assert_eq!((images.found.len(), images.faults.len()), (2, 7), "{:?}", images.faults);
        let mut out = Vec::new();
        images.found[0].write_to(&mut out).expect("streamed");
        assert_eq!(out.len() as u64, images.found[0].bytes());
        assert!(out.starts_with(b"data:image/png;base64,iVBORw0KGg"));
    }

    #[test]
    fn more_than_five_are_dropped_and_odd_lists_are_faults() {
        let finder = ImageFinder::new(None).expect("a finder");
        let images = finder.find(r#"["http://1","http://2","http://3","http://4","http://5","http://6","http://7"]"#);
        assert_eq!((images.found.len(), images.dropped), (5, 2));
        assert_eq!(finder.find(r#""http://1""#).found.len(), 1);
        assert_eq!(finder.find("null").found.len(), 0);
        assert_eq!(finder.find(r#"{"a":1}"#).faults.len(), 1);
        assert_eq!(finder.find(r#"["a.png"]"#).faults.len(), 1);
    }
}
