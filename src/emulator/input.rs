//! The lines of an uploaded file: found, checked and read again in bounded memory. A line that is larger than
//! [`HELD`] is never held whole; it is parsed as a stream, and of its images one at a time is.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{dialect::Dialect, faults::LineKey};
use crate::analysis::is_name;

/// The longest line that is held in memory.
const HELD: u64 = 4 << 20;
const BUFFER: usize = 256 << 10;

/// Where a line is, without its line feed.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub offset: u64,
    pub bytes: u32,
}

/// What an accepted file holds.
#[derive(Clone, Debug)]
pub struct Checked {
    pub lines: u64,
    pub analysis: Option<String>,
}

/// Why a file was not accepted.
#[derive(Debug)]
pub enum Refused {
    /// The content is wrong; no retry will cure it.
    Content(String),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Which lines are accepted.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub dialect: Dialect,
    /// A real model answers: its name is its own.
    pub any_model: bool,
}

#[derive(Deserialize)]
struct Line {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    body: Option<Body>,
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
}

/// What a model sees of a line.
#[derive(Debug, Deserialize)]
pub struct Question {
    pub custom_id: String,
    pub body: Asked,
}

#[derive(Debug, Deserialize)]
pub struct Asked {
    pub model: String,
    #[serde(default)]
    pub messages: LastMessage,
}

/// What is looked at of the last message.
#[derive(Debug, Default)]
pub struct LastMessage {
    pub text: String,
    /// Why one of its images is refused.
    pub bad_image: Option<&'static str>,
}

/// Checks a file line by line.
pub fn check(file: File, rules: Rules) -> Result<Checked, Refused> {
    let mut seen: HashSet<[u8; 16]> = HashSet::new();
    let mut model: Option<String> = None;
    let mut analysis = None;
    let mut lines = 0_u64;
    let limit = rules.dialect.max_lines();
    let mut reader = LineFile::new(file);
    while let Some((line, _)) = reader.next::<Line>(None)? {
        lines += 1;
        let refuse = |what: String| Err(Refused::Content(format!("line {lines}: {what}")));
        if lines > limit {
            return Err(Refused::Content(format!("the file has more than {limit} lines")));
        }
        let line = match line {
            Ok(line) => line,
            Err(what) => return refuse(what),
        };
        let Some(id) = line.custom_id else { return refuse("custom_id is missing".to_owned()) };
        let shortest = rules.dialect.shortest_id();
        if id.chars().count() < shortest {
            return refuse(format!("custom_id must have at least {shortest} characters"));
        }
        let hash = blake3::hash(id.as_bytes());
        if !seen.insert(hash.as_bytes().first_chunk().copied().unwrap_or_default()) {
            return refuse("custom_id is in the file twice".to_owned());
        }
        if line.method.as_deref() != Some("POST") {
            return refuse("method must be POST".to_owned());
        }
        let url = rules.dialect.endpoint();
        if line.url.as_deref() != Some(url) {
            return refuse(format!("url must be {url}"));
        }
        let Some(name) = line.body.and_then(|body| body.model) else {
            return refuse("body.model is missing".to_owned());
        };
        if !rules.any_model && !rules.dialect.allows_model(&name) {
            return refuse(format!(
                "the model `{name}` is not supported in batches; {}",
                Dialect::model_names().join(", ")
            ));
        }
        if model.as_ref().is_some_and(|model| *model != name) {
            return refuse("all lines of a file must name the same model".to_owned());
        }
        model.get_or_insert(name);
        if lines == 1 {
            analysis = crate::flow::CustomId::parse(&id).map(|id| id.analysis.to_owned()).filter(|name| is_name(name));
        }
    }
    if lines == 0 { Err(Refused::Content("the file is empty".to_owned())) } else { Ok(Checked { lines, analysis }) }
}

/// The place of every line.
pub fn spans(file: File) -> io::Result<Vec<Span>> {
    let mut reader = BufReader::with_capacity(BUFFER, file);
    let (mut spans, mut offset, mut bytes) = (Vec::new(), 0_u64, 0_u32);
    loop {
        let (used, ended) = {
            let buffer = reader.fill_buf()?;
            match memchr::memchr(b'\n', buffer) {
                Some(at) => (at + 1, true),
                None => (buffer.len(), false),
            }
        };
        reader.consume(used);
        let part = u32::try_from(used - usize::from(ended)).unwrap_or(u32::MAX);
        bytes = bytes.saturating_add(part);
        if used == 0 && bytes == 0 {
            return Ok(spans);
        }
        if ended || used == 0 {
            spans.push(Span { offset, bytes });
            offset += u64::from(bytes) + 1;
            bytes = 0;
        }
    }
}

/// A file of lines that are parsed one by one, in order or by their place.
#[derive(Debug)]
pub struct LineFile {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl LineFile {
    pub fn new(file: File) -> Self {
        Self { reader: BufReader::with_capacity(BUFFER, file), line: Vec::new() }
    }

    /// The line at a place, and its key under a seed.
    pub fn at<T: DeserializeOwned>(&mut self, span: Span, seed: u64) -> io::Result<(Result<T, String>, LineKey)> {
        self.reader.seek(SeekFrom::Start(span.offset))?;
        let mut hasher = LineKey::hasher(seed);
        let parsed = self.next(Some(&mut hasher))?.map_or_else(|| Err("the line is gone".to_owned()), |(line, _)| line);
        Ok((parsed, LineKey::finish(&hasher)))
    }

    /// The bytes of the line at a place.
    pub fn bytes_at(&mut self, span: Span) -> io::Result<Vec<u8>> {
        self.reader.seek(SeekFrom::Start(span.offset))?;
        let mut line = vec![0; span.bytes as usize];
        self.reader.read_exact(&mut line)?;
        Ok(line)
    }

    /// The next line and its length; the hasher is fed its bytes.
    fn next<T: DeserializeOwned>(
        &mut self,
        hasher: Option<&mut blake3::Hasher>,
    ) -> io::Result<Option<(Result<T, String>, u64)>> {
        self.line.clear();
        self.reader.by_ref().take(HELD).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') || (self.line.len() as u64) < HELD {
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if let Some(hasher) = hasher {
                hasher.update(line);
            }
            return Ok(Some((parse(line), line.len() as u64)));
        }
        let mut rest =
            LongLine { head: io::Cursor::new(&self.line), tail: &mut self.reader, hasher, bytes: 0, over: false };
        let parsed = if is_object(&self.line) {
            // One byte at a time is slow unless it comes from a buffer.
            let mut buffered = BufReader::with_capacity(BUFFER, WithoutImages::new(&mut rest));
            serde_json::from_reader(&mut buffered).map_err(|e| e.to_string())
        } else {
            Err("not a JSON object".to_owned())
        };
        io::copy(&mut rest, &mut io::sink())?;
        let bytes = rest.bytes;
        self.line.shrink_to(BUFFER);
        Ok(Some((parsed, bytes)))
    }
}

fn is_object(line: &[u8]) -> bool {
    line.trim_ascii_start().first() == Some(&b'{')
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    if line.trim_ascii().is_empty() {
        return Err("it is blank".to_owned());
    }
    if !is_object(line) {
        return Err("not a JSON object".to_owned());
    }
    serde_json::from_slice(line).map_err(|e| e.to_string())
}

/// A line too long to hold: what was read of it, then the file up to the line feed, which is left out.
struct LongLine<'a> {
    head: io::Cursor<&'a Vec<u8>>,
    tail: &'a mut BufReader<File>,
    hasher: Option<&'a mut blake3::Hasher>,
    bytes: u64,
    over: bool,
}

impl Read for LongLine<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut used = self.head.read(out)?;
        if used == 0 && !self.over && !out.is_empty() {
            let buffer = self.tail.fill_buf()?;
            let line = match memchr::memchr(b'\n', buffer) {
                Some(end) => buffer.get(..end).unwrap_or_default(),
                None => buffer,
            };
            used = line.len().min(out.len());
            if let (Some(from), Some(to)) = (line.get(..used), out.get_mut(..used)) {
                to.copy_from_slice(from);
            }
            let feed = used == line.len() && line.len() < buffer.len();
            self.over = feed || buffer.is_empty();
            self.tail.consume(used + usize::from(feed));
        }
        if let (Some(hasher), Some(bytes)) = (&mut self.hasher, out.get(..used)) {
            hasher.update(bytes);
        }
        self.bytes += used as u64;
        Ok(used)
    }
}

/// JSON whose long data URLs of images are cut: the parser would hold each whole. What is cut is looked at as it goes by, and
/// the string ends in [`CUT`] and the number of characters, or nothing if they are no Base64.
struct WithoutImages<R> {
    inner: R,
    bytes: Vec<u8>,
    /// What can be read, from `at` on.
    ready: Vec<u8>,
    at: usize,
    place: Place,
}

/// Where in the JSON the next byte is.
enum Place {
    Outside,
    /// In a string: its beginning, as long as it may be that of an image, and its length.
    Head(Vec<u8>),
    /// In a string that is passed on.
    Inside,
    /// After a backslash in a string that is passed on.
    Escape,
    /// In an image: characters that were cut, and whether all are Base64.
    Image(u64, bool),
}

const CUT: char = '#';
const IMAGE_HEAD: &[u8] = b"data:image/";
/// Characters of an image that are passed on, a multiple of four after any head: enough to tell its format.
const KEPT: usize = 4096;

impl<R: Read> WithoutImages<R> {
    fn new(inner: R) -> Self {
        Self { inner, bytes: vec![0; BUFFER], ready: Vec::with_capacity(BUFFER), at: 0, place: Place::Outside }
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.place {
                Place::Image(count, good) => {
                    let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                    let (image, after) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
                    *count += image.len() as u64;
                    *good &= image.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(b));
                    match after.split_first() {
                        Some((b'"', after)) => {
                            let said = if *good { count.to_string() } else { String::new() };
                            self.ready.extend_from_slice(format!("{CUT}{said}\"").as_bytes());
                            (self.place, bytes) = (Place::Outside, after);
                        }
                        Some((_, after)) => {
                            // Of all escapes only `\/` is Base64.
                            (*count, *good) = (*count + 1, *good && after.first() == Some(&b'/'));
                            bytes = after.get(1..).unwrap_or_default();
                        }
                        None => bytes = after,
                    }
                    continue;
                }
                Place::Outside | Place::Inside => {
                    let outside = matches!(self.place, Place::Outside);
                    let end = memchr::memchr2(b'"', if outside { b'"' } else { b'\\' }, bytes)
                        .map_or(bytes.len(), |at| at + 1);
                    let (passed, after) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
                    self.ready.extend_from_slice(passed);
                    self.place = match (passed.last(), outside) {
                        (Some(b'"'), true) => Place::Head(Vec::new()),
                        (Some(b'"'), false) => Place::Outside,
                        (Some(b'\\'), false) => Place::Escape,
                        _ => continue_in(outside),
                    };
                    bytes = after;
                    continue;
                }
                Place::Escape => self.place = Place::Inside,
                Place::Head(head) => {
                    head.push(byte);
                    self.place = match byte {
                        b'"' => Place::Outside,
                        b'\\' => Place::Escape,
                        _ if head.len() <= IMAGE_HEAD.len() && !IMAGE_HEAD.starts_with(head) => Place::Inside,
                        _ if head.len() == KEPT => Place::Image(0, true),
                        _ => Place::Head(std::mem::take(head)),
                    };
                }
            }
            self.ready.push(byte);
            bytes = rest;
        }
    }
}

fn continue_in(outside: bool) -> Place {
    if outside { Place::Outside } else { Place::Inside }
}

impl<R: Read> Read for WithoutImages<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.ready.len() {
            self.at = 0;
            self.ready.clear();
            let mut bytes = std::mem::take(&mut self.bytes);
            let read = self.inner.read(&mut bytes)?;
            self.pass(bytes.get(..read).unwrap_or_default());
            self.bytes = bytes;
            if read == 0 {
                return Ok(0);
            }
        }
        let ready = self.ready.get(self.at..).unwrap_or_default();
        let most = ready.len().min(out.len());
        if let (Some(from), Some(to)) = (ready.get(..most), out.get_mut(..most)) {
            to.copy_from_slice(from);
        }
        self.at += most;
        Ok(most)
    }
}

impl<'de> Deserialize<'de> for LastMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Message {
            #[serde(default)]
            content: Content,
        }

        struct Messages;

        impl<'de> Visitor<'de> for Messages {
            type Value = LastMessage;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LastMessage, A::Error> {
                let mut last = LastMessage::default();
                while let Some(message) = seq.next_element::<Message>()? {
                    last = message.content.0;
                }
                Ok(last)
            }
        }

        deserializer.deserialize_seq(Messages)
    }
}

/// A text, or parts of which some are text and some are images.
#[derive(Default)]
struct Content(LastMessage);

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    image_url: Option<ImageUrl>,
}

#[derive(Deserialize)]
struct ImageUrl {
    url: Verdict,
}

/// An image that was looked at as it went by: it is not kept.
struct Verdict(Option<&'static str>);

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Url;

        impl Visitor<'_> for Url {
            type Value = Verdict;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a URL")
            }

            fn visit_str<E>(self, url: &str) -> Result<Verdict, E> {
                Ok(Verdict(check_image(url).err()))
            }
        }

        deserializer.deserialize_str(Url)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;

        impl<'de> Visitor<'de> for Parts {
            type Value = Content;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or an array of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content(LastMessage { text: text.to_owned(), bad_image: None }))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content(LastMessage { text, bad_image: None }))
            }

            fn visit_unit<E>(self) -> Result<Content, E> {
                Ok(Content::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let (mut all, mut images) = (LastMessage::default(), 0);
                while let Some(part) = seq.next_element::<Part>()? {
                    all.text.push_str(part.text.as_deref().unwrap_or_default());
                    if let Some(ImageUrl { url: Verdict(bad) }) = part.image_url {
                        images += 1;
                        let too_many = (images > MAX_IMAGES).then_some("more images than a request may hold");
                        all.bad_image = all.bad_image.or(bad).or(too_many);
                    }
                }
                Ok(Content(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Content::default())
            }
        }

        deserializer.deserialize_any(Parts)
    }
}

/// The provider's limits: images of a request, bytes of each.
const MAX_IMAGES: usize = 5;
const MAX_IMAGE_BYTES: usize = 5_000_000;
/// Characters of base64 that are decoded at a time.
const PIECE: usize = 32 << 10;

/// A URL is believed; Base64, with or without a data URL's head, must be a JPEG or PNG file of 5 MB at most.
fn check_image(url: &str) -> Result<(), &'static str> {
    if ["http://", "https://"]
        .iter()
        .any(|scheme| url.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme)))
    {
        return Ok(());
    }
    let text = url.split_once(";base64,").map_or(url, |(_, text)| text);
    let (text, cut) = text.split_once(CUT).map_or((text, Some(0)), |(text, cut)| (text, cut.parse::<usize>().ok()));
    let cut = cut.ok_or("an image is no Base64")?;
    // What is left of a cut text need not end where four characters do.
    let whole = if cut > 0 { text.len() / 4 * 4 } else { text.len() };
    let mut bytes = [0; PIECE / 4 * 3];
    let (mut sum, mut is_image) = ((text.len() - whole + cut).div_ceil(4) * 3, false);
    for (at, piece) in text.as_bytes().get(..whole).unwrap_or_default().chunks(PIECE).enumerate() {
        let decoded = STANDARD.decode_slice(piece, &mut bytes).map_err(|_| "an image is no Base64")?;
        is_image |= at == 0 && (bytes.starts_with(&[0xff, 0xd8, 0xff]) || bytes.starts_with(b"\x89PNG"));
        sum += decoded;
    }
    if !(text.len() + cut).is_multiple_of(4) {
        return Err("an image is no Base64");
    }
    // The padding of a cut text was not seen: two bytes more at most.
    match (is_image, sum <= MAX_IMAGE_BYTES + 2) {
        (false, _) => Err("an image is neither a JPEG nor a PNG file"),
        (_, false) => Err("an image is larger than 5 MB"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { dialect: Dialect::Zhipu, any_model: false };

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, text.as_bytes()).expect("written");
        file.seek(SeekFrom::Start(0)).expect("rewound");
        file
    }

    fn line(id: &str, content: &str) -> String {
        format!(
            r#"{{"custom_id":"{id}","method":"POST","url":"/v4/chat/completions","body":{{"model":"glm-4-air","messages":[{{"role":"system","content":"s"}},{{"role":"user","content":{content}}}]}}}}"#
        )
    }

    #[test]
    fn what_is_refused() {
        let good = line("abc_0001", r#""hi""#);
        for (text, says) in [
            (String::new(), "empty"),
            ("\n".to_owned(), "line 1: it is blank"),
            (format!("{good}\n\n"), "line 2: it is blank"),
            (format!("{good}\nnot json"), "line 2: not a JSON object"),
            (format!("{good}\n[\"a\",\"b\"]"), "line 2: not a JSON object"),
            (format!("{good}\n{good}"), "line 2: custom_id is in the file twice"),
            (good.replace("abc_0001", "abcde"), "at least 6"),
            (good.replace(r#""custom_id":"abc_0001","#, ""), "custom_id is missing"),
            (good.replace(r#""abc_0001""#, "17"), "invalid type"),
            (good.replace("POST", "GET"), "method must be POST"),
            (good.replace("/v4/", "/v1/"), "url must be /v4/chat/completions"),
            (good.replace("glm-4-air", "glm-5.2"), "the model `glm-5.2` is not supported in batches; glm-5.1, "),
            (
                format!("{good}\n{}", good.replace("0001", "0002").replace("glm-4-air", "glm-4v")),
                "line 2: all lines of a file must name the same model",
            ),
        ] {
            match check(file(&text), RULES) {
                Err(Refused::Content(what)) => assert!(what.contains(says), "{what}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let checked = check(file(&format!("{good}\r\n")), RULES).expect("good");
        assert_eq!((checked.lines, checked.analysis.as_deref()), (1, Some("abc")));
        let other = good.replace("/v4/", "/v1/").replace("abc_0001", "a").replace("glm-4-air", "x");
        let rules = Rules { dialect: Dialect::OpenAi, any_model: false };
        assert_eq!(check(file(&other), rules).expect("good").lines, 1);
    }

    #[test]
    fn long_and_short_lines_are_read_alike() {
        let image = "A".repeat(usize::try_from(HELD).expect("fits") + 300_000);
        let parts =
            format!(r#"[{{"type":"text","text":"看图"}},{{"type":"image_url","image_url":{{"url":"{image}"}}}}]"#);
        let lines = [line("first_1", r#""一""#), line("long_01", &parts), line("last_01", r#""末""#)];
        for end in ["", "\n"] {
            let text = lines.join("\n") + end;
            assert_eq!(check(file(&text), RULES).expect("good").lines, 3);
            let spans = spans(file(&text)).expect("spans");
            let sizes: Vec<usize> = spans.iter().map(|span| span.bytes as usize).collect();
            assert_eq!(sizes, lines.each_ref().map(String::len));
            let mut reader = LineFile::new(file(&text));
            for (place, text) in [(2, "末"), (1, "看图"), (0, "一")] {
                let (question, key) = reader.at::<Question>(spans[place], 3).expect("reads");
                assert_eq!(question.expect("parses").body.messages.text, text);
                assert_eq!(key, LineKey::finish(LineKey::hasher(3).update(lines[place].as_bytes())), "{place}");
                assert_eq!(reader.bytes_at(spans[place]).expect("reads"), lines[place].as_bytes());
            }
        }
    }

    /// Wherever a read ends: all else comes through as it is, and an image is judged as if it were held.
    #[test]
    fn an_image_of_a_long_line_is_looked_at_and_not_held() {
        let jpeg = |bytes: usize| STANDARD.encode([&[0xff, 0xd8, 0xff, 0xe0][..], &vec![7; bytes - 4]].concat());
        let line = |image: &str| {
            format!(r#"{{"a\"\\":"data:imag","b":["看\"图",""],"url":"data:image/jpeg;base64,{image}","c":1}}"#)
        };
        for (image, good) in
            [(jpeg(9_000), true), (jpeg(9_001), true), (jpeg(9_000) + "=", false), (jpeg(9_000) + "看", false)]
        {
            let line = line(&image);
            for step in [1, 7, 4096, 1 << 20] {
                let mut cut = WithoutImages::new(io::empty());
                line.as_bytes().chunks(step).for_each(|piece| cut.pass(piece));
                let text = String::from_utf8(cut.ready).expect("UTF-8");
                let url: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                let url = url.get("url").and_then(serde_json::Value::as_str).expect("a URL");
                assert!(url.len() < KEPT + 10 && text.len() + image.len() < line.len() + url.len());
                assert_eq!(check_image(url).is_ok(), good, "{step}: {url:.60}");
                let ends = line.split_once(&image).expect("the image is in it");
                let before = ends.0.strip_suffix("base64,").expect("its head");
                assert!(text.starts_with(before) && text.ends_with(ends.1), "{text}");
            }
        }
    }
}
