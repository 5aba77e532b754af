//! Bytes → posts. A post is one JSON object on one line; only the fields that something asks for are
//! looked at, and they are remembered as places in the line, so nothing is copied or re-serialised.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Fault, FaultKind, PostIndex};

/// The field names that matter, each with its [`Slot`].
#[derive(Debug, Default)]
pub struct Fields {
    names: Vec<String>,
}

/// A field's number in [`Fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Fields {
    /// The slot of a name, made if it is new.
    pub fn slot(&mut self, name: &str) -> Slot {
        let at = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        // 65,536 different fields in prompts that a person wrote do not occur; the last slot is shared then.
        Slot(u16::try_from(at).unwrap_or(u16::MAX))
    }

    pub fn name(&self, slot: Slot) -> &str {
        self.names.get(usize::from(slot.0)).map_or("", String::as_str)
    }

    fn find(&self, name: &str) -> Option<Slot> {
        let at = self.names.iter().position(|known| known == name)?;
        u16::try_from(at).ok().map(Slot)
    }
}

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

/// JSON's own white space; Unicode has more.
pub const JSON_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Parses posts one after another, reusing its buffer.
#[derive(Debug)]
pub struct PostParser<'f> {
    fields: &'f Fields,
    values: Vec<FieldValue>,
}

impl<'f> PostParser<'f> {
    pub fn new(fields: &'f Fields) -> Self {
        Self { fields, values: Vec::new() }
    }

    /// # Errors
    /// A `bad_post` fault for bytes that are not one UTF-8 JSON object.
    pub fn parse<'a>(&'a mut self, index: PostIndex, line: &'a [u8]) -> Result<Post<'a>, Fault> {
        let bad = |detail: String| Fault::new(FaultKind::BadPost, detail);
        let line = std::str::from_utf8(line)
            .map_err(|e| bad(format!("not UTF-8 at byte {}; convert the input, e.g. with iconv", e.valid_up_to())))?;
        if !line.trim_start_matches(JSON_SPACE).starts_with('{') {
            return Err(bad(match serde_json::from_str::<IgnoredAny>(line) {
                Ok(_) => "not a JSON object".to_owned(),
                Err(e) => not_json(&e),
            }));
        }
        self.values.clear();
        let mut json = serde_json::Deserializer::from_str(line);
        let seed = ObjectSeed { fields: self.fields, line, values: &mut self.values };
        let has_keys = seed.deserialize(&mut json).map_err(|e| bad(not_json(&e)))?;
        json.end().map_err(|e| bad(not_json(&e)))?;
        Ok(Post { index, line, values: &self.values, has_keys })
    }
}

/// serde_json counts lines and columns; our posts are one line, and the column is what helps.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("not JSON: {what} at byte {}", error.column())
}

struct ObjectSeed<'s, 'de> {
    fields: &'s Fields,
    line: &'de str,
    values: &'s mut Vec<FieldValue>,
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
        while let Some(slot) = map.next_key_seed(KeySeed(self.fields))? {
            has_keys = true;
            let Some(slot) = slot else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&'de RawValue>()?.get();
            let start = raw.as_ptr() as usize - self.line.as_ptr() as usize;
            self.values.push(FieldValue { slot, start, end: start + raw.len() });
        }
        Ok(has_keys)
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
        let mut parser = PostParser::new(&fields);
        let line = r#" {"x":{"content":1},"content" : "旧","cont\u0065nt":"\ud800新", "n":1e999} "#;
        let post = parser.parse(PostIndex(7), line.as_bytes()).expect("a post");
        assert_eq!(post.raw(content), Some(r#""\ud800新""#), "the last of two, nested ones do not count");
        assert_eq!(post.values().len(), 2);
        assert_eq!(post.raw(topics), None);
        assert_eq!(post.end(), (line.len() - 2, true));
    }

    #[test]
    fn an_empty_object_needs_no_comma() {
        let (fields, ..) = fields();
        let mut parser = PostParser::new(&fields);
        assert_eq!(parser.parse(PostIndex(0), b"{ }").expect("a post").end(), (2, false));
    }

    #[test]
    fn what_is_no_post() {
        let (fields, ..) = fields();
        let mut parser = PostParser::new(&fields);
        for (line, why) in [
            (&b"17"[..], "not a JSON object"),
            (b"[{}]", "not a JSON object"),
            (b"{\"a\":1", "EOF"),
            (b"{} {}", "trailing characters"),
            (b"{\"a\":\"\xff\"}", "not UTF-8 at byte 6"),
            (b"nonsense", "not JSON"),
        ] {
            let fault = parser.parse(PostIndex(0), line).map(|_| ()).expect_err("a fault");
            assert_eq!(fault.kind, FaultKind::BadPost);
            assert!(fault.detail.contains(why), "{} for {why}", fault.detail);
        }
    }

    #[test]
    fn depth_does_not_matter() {
        let (fields, content, _) = fields();
        let mut parser = PostParser::new(&fields);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let line = format!(r#"{{"a":{deep},"content":{deep}}}"#);
        assert_eq!(parser.parse(PostIndex(0), line.as_bytes()).expect("a post").raw(content), Some(deep.as_str()));
    }
}
