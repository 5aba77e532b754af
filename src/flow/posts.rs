//! Bytes → posts. A post is one JSON object on one line; only the fields that something asks for are
//! looked at, and they are remembered as places in the line, so nothing is copied or re-serialised.

use std::{path::Path, sync::Arc};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Fault, FaultKind, FaultLine, PostIndex};
use crate::{
    analysis::{AnalysisSet, Fields, Slot},
    console::Console,
    error::{Error, Result as Outcome},
    json::{JSON_SPACE, word},
    lines::{
        blocks::{Block, Line, LineReader, Shape},
        flaw::Flaw,
        input::Input,
    },
    text::{escape_control, excerpt},
    units::count,
};

/// Where a field's value stands in the line. A key that occurs twice has two.
#[derive(Clone, Copy, Debug)]
pub struct FieldValue {
    pub slot: Slot,
    pub start: usize,
    pub end: usize,
}

/// One post: its line (no line break) and the places of the fields that matter.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    pub index: PostIndex,
    pub line: &'a str,
    values: &'a [FieldValue],
    /// The object has at least one key.
    has_keys: bool,
}

impl<'a> Post<'a> {
    /// The raw JSON value of a field; of a key that occurs twice the last one, as JSON parsers have it.
    pub fn raw(&self, slot: Slot) -> Option<&'a str> {
        let value = self.values.iter().rev().find(|value| value.slot == slot)?;
        self.line.get(value.start..value.end)
    }

    /// The field is there and not null.
    pub fn has_value(&self, slot: Slot) -> bool {
        self.raw(slot).is_some_and(|raw| raw != "null")
    }

    /// Every occurrence of a field that matters, in the order of the line.
    pub fn values(&self) -> &'a [FieldValue] {
        self.values
    }

    /// The place of the closing brace, and whether a comma is needed before something added there.
    pub fn end(&self) -> (usize, bool) {
        (self.line.trim_end_matches(JSON_SPACE).len().saturating_sub(1), self.has_keys)
    }
}

/// Why a line is no post.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPost {
    pub detail: String,
    /// Where in it, in characters from 1, if that can be said.
    pub column: Option<usize>,
    /// It is JSON, only not a post; one that is not JSON cannot be passed over in an array.
    pub is_json: bool,
}

impl From<BadPost> for Fault {
    fn from(bad: BadPost) -> Self {
        let column = bad.column.map(|column| format!(" (column {column})")).unwrap_or_default();
        Self::new(FaultKind::BadPost, bad.detail + &column)
    }
}

/// A place in the input: its bytes (the beginning only, if the line is too long) and the post, if it is one.
#[derive(Debug)]
pub struct Place<'a> {
    pub index: PostIndex,
    pub bytes: &'a [u8],
    pub post: Result<Post<'a>, FaultLine>,
    /// The input is one array.
    pub in_array: bool,
}

/// How many places an input had, and how many of them were posts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PostCounts {
    pub places: u64,
    pub posts: u64,
    /// Line numbers of the first places that are no posts; 0: there is no such place.
    first_bad: [u64; 5],
}

impl PostCounts {
    /// It holds something, but no post at all: the wrong input.
    pub fn are_all_bad(self) -> bool {
        self.places > 0 && self.posts == 0
    }

    /// The lines that are no posts, in words.
    pub fn bad_lines(self) -> String {
        let bad = self.places - self.posts;
        let first: Vec<String> = self.first_bad.iter().filter(|line| **line > 0).map(u64::to_string).collect();
        let more = bad.saturating_sub(first.len() as u64);
        match (bad, more) {
            (1, _) => format!("line {}", first.concat()),
            (_, 0) => format!("lines {}", first.join(", ")),
            _ => format!("lines {} and {more} more", first.join(", ")),
        }
    }

    fn add(&mut self, line: u64, is_post: bool) {
        let bad = usize::try_from(self.places - self.posts).unwrap_or(usize::MAX);
        if let Some(first) = self.first_bad.get_mut(bad).filter(|_| !is_post) {
            *first = line;
        }
        self.places += 1;
        self.posts += u64::from(is_post);
    }

    /// # Errors
    /// `--expect-posts` names another number.
    pub fn check_number(self, expected: Option<u64>, name: &str) -> Outcome<()> {
        match expected.filter(|expected| *expected != self.places) {
            None => Ok(()),
            Some(expected) => Err(Error::input(format!(
                "{name}: it has {}, and --expect-posts says {expected}",
                count(self.places, "post")
            ))
            .fix("is the file whole? Run the same command when it is, or mend --expect-posts")),
        }
    }

    /// Says so if there is nothing.
    ///
    /// # Errors
    /// [`PostCounts::are_all_bad`].
    pub fn check(self, name: &str, console: &Console) -> Outcome<()> {
        if self.are_all_bad() {
            let what = match self.places {
                1 => "its one line is no post".to_owned(),
                places => format!("none of its {places} lines is a post"),
            };
            return Err(Error::input(format!("{name}: {what}"))
                .fix("a post is one JSON object on one line, or an element of one JSON array"));
        }
        if self.places == 0 {
            console.note(format_args!("{name} holds no posts"));
        }
        Ok(())
    }
}

/// Reads posts from a file or stdin, one place of the input at a time. Each place gets its index here.
#[derive(Debug)]
pub struct Posts {
    set: Arc<AnalysisSet>,
    lines: LineReader,
    parser: PostParser,
    block: Block,
    /// The next line of `block`.
    next: usize,
    counts: PostCounts,
}

impl Posts {
    /// `name`: the input's name in messages, if `path` is a copy of it.
    pub fn open(
        path: Option<&Path>,
        name: Option<&str>,
        set: Arc<AnalysisSet>,
        max_line: u64,
        start_index: u64,
    ) -> Outcome<Self> {
        let input = Input::open(path, "cat posts.jsonl | zbatch gen, or zbatch gen posts.jsonl")?;
        let lines = LineReader::new(input, Shape::LinesOrArray, max_line, start_index);
        Ok(Self {
            lines: lines.of_posts(name, set.fields.asked().to_vec()),
            set,
            parser: PostParser::default(),
            block: Block::default(),
            next: 0,
            counts: PostCounts::default(),
        })
    }

    pub fn name(&self) -> &str {
        self.lines.name()
    }

    /// The places and posts that [`Posts::next`] has yielded.
    pub fn counts(&self) -> PostCounts {
        self.counts
    }

    /// The next place of the input; `None` at its end.
    ///
    /// # Errors
    /// The input cannot be read, its last line is cut off, or an element of its array is not JSON.
    #[expect(clippy::should_implement_trait, reason = "a place borrows from the reader, so this is no iterator")]
    pub fn next(&mut self) -> Outcome<Option<Place<'_>>> {
        while self.next == self.block.len() {
            if !self.lines.fill(&mut self.block)? {
                return Ok(None);
            }
            self.next = 0;
        }
        let Some(line) = self.block.line(self.next) else { return Ok(None) };
        self.next += 1;
        let (index, name) = (PostIndex(line.index), self.lines.name());
        let post = if line.too_long {
            let detail = "the line is longer than --max-line".to_owned();
            Err(BadPost { detail, column: None, is_json: true })
        } else {
            self.parser.parse(&self.set.fields, index, line.bytes)
        };
        self.counts.add(line.number, post.is_ok());
        let in_array = self.lines.is_array();
        if let Err(bad) = &post {
            line.check_end(name)?;
            if in_array && !bad.is_json {
                return Err(broken_element(name, &line, bad));
            }
        }
        let post = post.map_err(|bad| fault_line(name, &line, bad));
        Ok(Some(Place { index, bytes: line.bytes, post, in_array }))
    }
}

/// Line breaks are no longer in an element: where it begins can be said, and what stands around the place.
fn broken_element(name: &str, line: &Line<'_>, bad: &BadPost) -> Error {
    const AROUND: usize = 20;
    let Line { index, number, offset, .. } = line;
    let near = bad.column.zip(std::str::from_utf8(line.bytes).ok()).map(|(column, text)| {
        let near: String = text.chars().skip(column.saturating_sub(AROUND)).take(2 * AROUND).collect();
        format!(", near `{}` (character {column} of the post)", escape_control(near.trim()))
    });
    Error::input(format!(
        "{name}: broken JSON array at index {index}, line {number}, byte {offset}: {}{}",
        bad.detail,
        near.unwrap_or_default()
    ))
    .fix("mend the array there; to skip single bad posts, give one post a line instead")
}

fn fault_line(name: &str, line: &Line<'_>, bad: BadPost) -> FaultLine {
    FaultLine {
        index: Some(line.index),
        file: Some(name.to_owned()),
        line: Some(line.number),
        offset: Some(line.offset),
        excerpt: Some(excerpt(line.bytes)),
        ..FaultLine::new(bad.into())
    }
}

/// Parses posts one after another, reusing its buffer.
#[derive(Debug, Default)]
pub struct PostParser {
    values: Vec<FieldValue>,
}

impl PostParser {
    /// # Errors
    /// Bytes that are not one UTF-8 JSON object.
    pub fn parse<'a>(&'a mut self, fields: &Fields, index: PostIndex, line: &'a [u8]) -> Result<Post<'a>, BadPost> {
        let bad = |detail: String| BadPost { detail, column: None, is_json: true };
        let broken = |e: &serde_json::Error| {
            let Flaw { what, column, .. } = Flaw::of(line, e);
            BadPost { detail: format!("not JSON: {what}"), column: Some(column), is_json: false }
        };
        let line = std::str::from_utf8(line)
            .map_err(|e| bad(format!("not UTF-8 at byte {}; convert the input, e.g. with iconv", e.valid_up_to())))?;
        if !line.trim_start_matches(JSON_SPACE).starts_with('{') {
            return Err(match serde_json::from_str::<IgnoredAny>(line) {
                Ok(_) => bad("not a JSON object".to_owned()),
                Err(e) => broken(&e),
            });
        }
        let has_keys = match self.read_object(fields, line, false) {
            Ok(has_keys) => has_keys,
            // A key with a lone surrogate is no string to serde, and no reason to lose a post.
            Err(e) => self.read_object(fields, line, true).map_err(|_| broken(&e))?,
        };
        Ok(Post { index, line, values: &self.values, has_keys })
    }

    /// Notes where the values stand, and says whether there is any key. `raw_keys`: keys are taken as they are written.
    fn read_object(&mut self, fields: &Fields, line: &str, raw_keys: bool) -> serde_json::Result<bool> {
        self.values.clear();
        let mut json = serde_json::Deserializer::from_str(line);
        let seed = ObjectSeed { fields, line, values: &mut self.values, raw_keys };
        let has_keys = seed.deserialize(&mut json)?;
        json.end()?;
        Ok(has_keys)
    }
}

struct ObjectSeed<'s, 'de> {
    fields: &'s Fields,
    line: &'de str,
    values: &'s mut Vec<FieldValue>,
    raw_keys: bool,
}

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_, 'de> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_, 'de> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut has_keys = false;
        loop {
            let slot = if self.raw_keys {
                map.next_key::<&'de RawValue>()?.map(|key| self.fields.find(&word(key.get())))
            } else {
                map.next_key_seed(KeySeed(self.fields))?
            };
            let Some(slot) = slot else { return Ok(has_keys) };
            has_keys = true;
            let Some(slot) = slot else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&'de RawValue>()?.get();
            let start = raw.as_ptr() as usize - self.line.as_ptr() as usize;
            self.values.push(FieldValue { slot, start, end: start + raw.len() });
        }
    }
}

struct KeySeed<'s>(&'s Fields);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<Slot>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Option<Slot>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.find(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> (Fields, Slot, Slot) {
        let mut fields = Fields::default();
        let (content, topics) = (fields.slot("content"), fields.slot("topics"));
        (fields, content, topics)
    }

    #[test]
    fn fields_are_places_in_the_line() {
        let (fields, content, topics) = fields();
        let mut parser = PostParser::default();
        let line = r#" {"x":{"content":1},"content" : "旧","cont\u0065nt":"\ud800新", "n":1e999} "#;
        let post = parser.parse(&fields, PostIndex(7), line.as_bytes()).expect("a post");
        assert_eq!(post.raw(content), Some(r#""\ud800新""#), "the last of two, nested ones do not count");
        assert_eq!(post.values().len(), 2);
        assert_eq!(post.raw(topics), None);
        assert_eq!(post.end(), (line.len() - 2, true));
    }

    #[test]
    fn an_empty_object_needs_no_comma() {
        let (fields, ..) = fields();
        let mut parser = PostParser::default();
        assert_eq!(parser.parse(&fields, PostIndex(0), b"{ }").expect("a post").end(), (2, false));
    }

    #[test]
    fn what_is_no_post() {
        let (fields, ..) = fields();
        let mut parser = PostParser::default();
        for (line, why) in [
            (&b"17"[..], "not a JSON object"),
            (b"[{}]", "not a JSON object"),
            (b"{\"a\":1", "EOF"),
            (b"{} {}", "a second object on the same line"),
            (b"{\"a\":\"\xff\"}", "not UTF-8 at byte 6"),
            (b"nonsense", "not JSON"),
        ] {
            let fault = parser.parse(&fields, PostIndex(0), line).map(|_| ()).expect_err("a fault");
            assert!(fault.detail.contains(why), "{} for {why}", fault.detail);
        }
    }

    #[test]
    fn depth_does_not_matter() {
        let (fields, content, _) = fields();
        let mut parser = PostParser::default();
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let line = format!(r#"{{"a":{deep},"content":{deep}}}"#);
        assert_eq!(
            parser.parse(&fields, PostIndex(0), line.as_bytes()).expect("a post").raw(content),
            Some(deep.as_str())
        );
    }
}
