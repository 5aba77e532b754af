//! The images of a post: URLs are passed on, local files are found below the data dir and streamed into the
//! request as base64, never held whole (`docs/reliability.md`, P3).

mod data_dir;

use std::{borrow::Cow, cmp::Ordering, fmt, io::Write, path::Path};

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use self::data_dir::{DataDir, ImageFile};
use super::{Fault, FaultKind};
use crate::{
    cli::ImageUrls,
    error::{Error, Result},
    json::escape_json,
    text::short,
};

/// Zhipu's limits (`docs/providers.md`, Images): images in one request, and bytes of one image.
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

impl Image {
    /// Bytes in the request, exactly.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Url(url) => url.len() as u64,
            Self::File(file) => file.data_url_bytes(),
        }
    }

    /// Writes the URL, or the file as a data URL. May be called again: the file is read from its start.
    pub fn write_to(&self, out: &mut (impl Write + ?Sized)) -> Result<()> {
        match self {
            Self::Url(url) => out.write_all(url.as_bytes()).map_err(|e| Error::io("write", "the request", &e)),
            Self::File(file) => file.write_data_url(out),
        }
    }
}

/// Finds images below one directory. Without one, local paths are faults.
#[derive(Debug)]
pub struct ImageFinder {
    dir: Option<DataDir>,
    urls: ImageUrls,
}

/// The images of one post, and what was wrong with others of them.
#[derive(Debug, Default)]
pub struct Images {
    pub found: Vec<Image>,
    pub faults: Vec<Fault>,
    /// More than a request may hold.
    pub dropped: u64,
    /// URLs that [`ImageUrls`] does not pass on.
    pub withheld: u64,
}

impl ImageFinder {
    pub fn new(data_dir: Option<&Path>, urls: ImageUrls) -> Result<Self> {
        Ok(Self { dir: data_dir.map(DataDir::open).transpose()?, urls })
    }

    /// `raw` is the JSON value of `image_urls`: an array of strings, a string that is one image or lists several, or null.
    pub fn find(&self, raw: &str) -> Images {
        let mut elements = Elements { finder: self, images: Images::default(), refused: 0 };
        if raw.starts_with('[') {
            // The post was read before: its array is whole.
            let _whole = elements.add_array(raw);
        } else if raw != "null" {
            match serde_json::from_str::<Cow<'_, str>>(raw) {
                Ok(text) => elements.add_text(text.trim()),
                Err(_) => elements.refuse("image_urls is neither an array nor a string".to_owned()),
            }
        }
        elements.images
    }

    /// An image that is to be sent, `None` for a URL that is not to be passed on, or why there is none.
    fn image(&self, name: &str) -> Result<Option<Image>, String> {
        let trimmed = name.trim();
        let passed_on = |wanted: bool, url: &str| Ok(wanted.then(|| Image::Url(escape_json(url))));
        match scheme_of(trimmed) {
            https if https.eq_ignore_ascii_case("https") => passed_on(self.urls != ImageUrls::None, trimmed),
            http if http.eq_ignore_ascii_case("http") => passed_on(self.urls == ImageUrls::All, trimmed),
            "" if is_data_url(trimmed) => passed_on(true, trimmed),
            "" if is_host_and_path(trimmed) => passed_on(self.urls != ImageUrls::None, &format!("https:{trimmed}")),
            "" => match &self.dir {
                Some(dir) => dir.find(name).map(Image::File).map(Some),
                None => Err("a local path, and there is no data dir".to_owned()),
            },
            other => Err(format!("{other} URLs are not fetched; give an http(s) URL, or a path below the data dir")),
        }
    }
}

/// The scheme of `scheme://…`, or nothing.
fn scheme_of(text: &str) -> &str {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.len() <= 20
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if is_scheme { scheme } else { "" }
}

fn is_data_url(text: &str) -> bool {
    const HEAD: &str = "data:image/";
    text.get(..HEAD.len()).is_some_and(|head| head.eq_ignore_ascii_case(HEAD))
}

/// `//host.name/path`, as a page names an image on another host. Without a dot it may as well be an absolute path.
fn is_host_and_path(text: &str) -> bool {
    let host = text.strip_prefix("//").and_then(|rest| rest.split_once('/')).map_or("", |(host, _)| host);
    host.contains('.')
        && !host.starts_with('.')
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b))
}

fn is_url(text: &str) -> bool {
    ["http", "https"].iter().any(|scheme| scheme_of(text).eq_ignore_ascii_case(scheme)) || is_host_and_path(text)
}

fn has_image_ending(path: &str) -> bool {
    let ending = Path::new(path).extension().unwrap_or_default();
    ["jpg", "jpeg", "png", "gif", "webp"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// The pieces of a text that may list images. A URL holds no blanks; a file's name may.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let begins_as_url = is_url(text);
    let separates = move |c: char| matches!(c, ',' | ';' | '\n') || begins_as_url && c.is_whitespace();
    text.split(separates).map(str::trim).filter(|piece| !piece.is_empty())
}

/// The pieces of the text are several images, each of them by itself; or the text is one image; `None`: it may be either.
fn lists_images(text: &str) -> Option<bool> {
    let is_image = |piece: &str| is_url(piece) || has_image_ending(piece);
    // What follows a URL may be the rest of that URL, unless it is a URL too.
    if pieces(text).all(is_image) && pieces(text).is_sorted_by_key(is_url) {
        return Some(true);
    }
    (!pieces(text).skip(1).any(is_image)).then_some(false)
}

/// The elements of `image_urls`, looked at one after another: there may be millions.
struct Elements<'f> {
    finder: &'f ImageFinder,
    images: Images,
    refused: u64,
}

impl Elements<'_> {
    fn add_array(&mut self, raw: &str) -> serde_json::Result<()> {
        let mut json = serde_json::Deserializer::from_str(raw);
        json.deserialize_seq(&mut *self)?;
        json.end()
    }

    /// A string in the place of an array, trimmed: an array in it, a list, or one image.
    fn add_text(&mut self, text: &str) {
        if text.starts_with('[') {
            if self.add_array(text).is_err() {
                (self.images, self.refused) = (Images::default(), 0);
                self.refuse(format!("{}: it begins like a list, and is no JSON array", short(text)));
            }
        } else if !is_url(text)
            && let Ok(Some(image @ Image::File(_))) = self.finder.image(text)
        {
            // A file's name may hold any separator.
            self.images.found.push(image);
        } else {
            match lists_images(text) {
                Some(true) => pieces(text).for_each(|piece| self.add(piece)),
                Some(false) => self.add(text),
                None => self.refuse(format!("{}: it may be one image or several; write a JSON array", short(text))),
            }
        }
    }

    fn add_element(&mut self, at: usize, raw: &str) {
        match serde_json::from_str::<Cow<'_, str>>(raw) {
            Ok(url) => self.add(&url),
            Err(_) => self.refuse(format!("image_urls, element {at} is not a string")),
        }
    }

    fn add(&mut self, url: &str) {
        if url.trim().is_empty() {
            return;
        }
        if self.images.found.len() == MAX_IMAGES {
            self.images.dropped += 1;
            return;
        }
        match self.finder.image(url) {
            Ok(Some(image)) => self.images.found.push(image),
            Ok(None) => self.images.withheld += 1,
            Err(why) => self.refuse(format!("{}: {why}", short(url))),
        }
    }

    fn refuse(&mut self, why: String) {
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
            self.add_element(at, raw.get());
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
        let finder = ImageFinder::new(Some(&dir), ImageUrls::All).expect("a finder");
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
        let finder = ImageFinder::new(None, ImageUrls::All).expect("a finder");
        let images = finder.find(r#"["http://1","http://2","http://3","http://4","http://5","http://6","http://7"]"#);
        assert_eq!((images.found.len(), images.dropped), (5, 2));
        assert_eq!(finder.find(r#""http://1""#).found.len(), 1);
        assert_eq!(finder.find("null").found.len(), 0);
        assert_eq!(finder.find(r#"{"a":1}"#).faults.len(), 1);
        assert_eq!(finder.find(r#"["a.png"]"#).faults.len(), 1);
    }

    #[test]
    fn a_text_is_one_image_or_a_list_of_them() {
        for (text, list) in [
            ("", Some(&[][..])),
            ("a.jpg", Some(&["a.jpg"])),
            ("a.jpg,", Some(&["a.jpg"])),
            ("a.jpg, b b.PNG ;c.gif\nd.webp", Some(&["a.jpg", "b b.PNG", "c.gif", "d.webp"])),
            ("https://x/1,HTTP://x/2 //img.x/3", Some(&["https://x/1", "HTTP://x/2", "//img.x/3"])),
            ("a.jpg,https://x/1", Some(&["a.jpg", "https://x/1"])),
            ("https://x/1.jpg?resize,w_100", Some(&["https://x/1.jpg?resize,w_100"])),
            ("a,b", Some(&["a,b"])),
            ("https://x/a,b.jpg", None),
            ("a,b.jpg", None),
        ] {
            let read = lists_images(text).map(|several| if several { pieces(text).collect() } else { vec![text] });
            assert_eq!(read.as_deref(), list, "{text}");
        }
    }
}
