//! JSON as text: what every stage that reads or writes a line needs to know about it. No value is parsed into a tree here;
//! pieces of a line are borrowed as they are written, and decoded only when their text is needed.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};

/// JSON's own white space; Unicode has more.
pub const JSON_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// A struct that is read from a JSON object and from nothing else. A struct that derives `Deserialize` also accepts an array of
/// its fields' values in their order, and `["3"]` is not `{"content":"3"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// A JSON string as it stands in the line, quotes included. It is decoded later, into a buffer that the caller uses again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonText<'a>(&'a str);

impl<'a> JsonText<'a> {
    /// `raw` as a string; `None` if it is another JSON value.
    pub fn new(raw: &'a str) -> Option<Self> {
        raw.starts_with('"').then_some(Self(raw))
    }

    /// The decoded text. A lone surrogate becomes U+FFFD and is counted; `buffer` is used only if there are escapes.
    pub fn decode<'b>(self, buffer: &'b mut String, surrogates: &mut u64) -> &'b str
    where
        'a: 'b,
    {
        let body = self.body();
        if memchr::memchr(b'\\', body.as_bytes()).is_none() {
            return body;
        }
        buffer.clear();
        decode_escapes(body, buffer, surrogates);
        buffer
    }

    /// The text between the quotes, as it is written.
    pub fn body(self) -> &'a str {
        self.0.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default()
    }

    /// The decoded text; borrowed if it has no escapes.
    pub fn to_cow(self) -> Cow<'a, str> {
        let body = self.body();
        if !body.contains('\\') {
            return Cow::Borrowed(body);
        }
        let mut text = String::new();
        decode_escapes(body, &mut text, &mut 0);
        Cow::Owned(text)
    }
}

/// The decoded text of a JSON string, or any other value as it is written.
pub fn word(raw: &str) -> Cow<'_, str> {
    JsonText::new(raw).map_or(Cow::Borrowed(raw), JsonText::to_cow)
}

/// Appends the text of a JSON string's body, in which serde_json found nothing wrong except lone surrogates. A lone surrogate
/// becomes U+FFFD and is counted.
pub fn decode_escapes(body: &str, out: &mut String, surrogates: &mut u64) {
    let mut rest = body;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        let (Some(before), Some(escape)) = (rest.get(..at), rest.get(at + 1..)) else { break };
        out.push_str(before);
        let mut chars = escape.chars();
        let plain = match chars.next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let (decoded, after) = unicode_escape(escape).unwrap_or((None, escape.get(5..).unwrap_or_default()));
                rest = after;
                *surrogates += u64::from(decoded.is_none());
                out.push(decoded.unwrap_or(char::REPLACEMENT_CHARACTER));
                continue;
            }
            Some(other) => other,
            None => break,
        };
        out.push(plain);
        rest = chars.as_str();
    }
    out.push_str(rest);
}

/// `\uXXXX` → UTF-8 in the body of a JSON string. A character that JSON must escape stays escaped; a lone surrogate becomes
/// U+FFFD and is counted.
pub fn decode_unicode_escapes(body: &str, surrogates: &mut u64) -> String {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some((before, escape)) = rest.split_once('\\') {
        out.push_str(before);
        let Some((decoded, after)) = unicode_escape(escape) else {
            // Another escape: it and the character after it go through.
            let mut chars = escape.chars();
            out.push('\\');
            out.extend(chars.next());
            rest = chars.as_str();
            continue;
        };
        rest = after;
        match decoded {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some(c) if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            Some(c) => out.push(c),
            None => {
                *surrogates += 1;
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }
    out.push_str(rest);
    out
}

/// The character of `uXXXX` or `uXXXX\uXXXX` at the start of the text behind a backslash, and the text after it. The character
/// is `None` for a lone surrogate; the whole is `None` if no `uXXXX` stands there.
fn unicode_escape(escape: &str) -> Option<(Option<char>, &str)> {
    let unit = |text: &str| text.strip_prefix('u')?.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let first = unit(escape)?;
    let after = escape.get(5..).unwrap_or_default();
    Some(match first {
        high @ 0xd800..=0xdbff => match after.strip_prefix('\\').and_then(unit) {
            Some(low @ 0xdc00..=0xdfff) => {
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                (char::from_u32(code), after.get(6..).unwrap_or_default())
            }
            _ => (None, after),
        },
        code => (char::from_u32(code), after),
    })
}

/// What serde_json found wrong, without the line and column that it appends.
pub fn complaint(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

/// Why a line is not JSON, with the place in it.
pub fn not_json(error: &serde_json::Error) -> String {
    format!("not JSON: {} at byte {}", complaint(error), error.column())
}

/// Text as it stands inside a JSON string of a request line, without the quotes.
pub fn escape_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    on_one_line(quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')).unwrap_or_default())
}

/// A request is one line for every reader: U+0085, U+2028 and U+2029 end one for Python's `splitlines`, and servers use that.
/// In JSON they only stand in strings, so that escaping them changes no value.
pub fn is_on_one_line(line: &[u8]) -> bool {
    memchr::memchr2_iter(0xc2, 0xe2, line).all(|at| !ends_a_line(line.get(at..).unwrap_or_default()))
}

pub fn ends_a_line(bytes: &[u8]) -> bool {
    matches!(bytes, [0xc2, 0x85, ..] | [0xe2, 0x80, 0xa8 | 0xa9, ..])
}

/// JSON with these characters escaped.
pub fn on_one_line(json: &str) -> String {
    if is_on_one_line(json.as_bytes()) {
        // A long text is not copied three times.
        return json.to_owned();
    }
    json.replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_is_what_serde_does(text: String) {
            let raw = serde_json::Value::from(text.as_str()).to_string();
            let mut lone = 0;
            let mut buffer = String::new();
            prop_assert_eq!(JsonText(&raw).decode(&mut buffer, &mut lone), text.as_str());
            let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            let escaped = format!("\"{escaped}\"");
            prop_assert_eq!(JsonText(&escaped).decode(&mut buffer, &mut lone), text.as_str());
            prop_assert_eq!(lone, 0);
        }
    }

    #[test]
    fn unicode_escapes_become_text_and_the_rest_stays() {
        let mut lone = 0;
        let decode = |body: &str, lone: &mut u64| decode_unicode_escapes(body, lone);
        assert_eq!(decode(r"\u597d\ud83d\ude00\n\\u0041\/", &mut lone), r"好😀\n\\u0041\/");
        assert_eq!(decode(r"\u0022\u005c\u0007\u0041", &mut lone), r#"\"\\\u0007A"#);
        assert_eq!(lone, 0);
        assert_eq!(decode(r"\ud800x\udc00\ud83d\u0041\uD800", &mut lone), "\u{fffd}x\u{fffd}\u{fffd}A\u{fffd}");
        assert_eq!(lone, 4);
    }
}
