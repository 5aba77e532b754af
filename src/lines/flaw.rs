//! Why a text is not JSON, in words for whoever wrote the file, and where: line and column as an editor counts them.

use crate::json::complaint;
use serde_json::error::Category;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub what: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Flaw {
    /// `error` is what serde_json said of `text`.
    pub fn of(text: &[u8], error: &serde_json::Error) -> Self {
        let row = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        // Of a text that is cut short the end is its place; else serde_json has read the byte that it complains of.
        let is_short = error.classify() == Category::Eof;
        let at = if is_short { row.len() } else { error.column().saturating_sub(1).min(row.len()) };
        let said = complaint(error);
        let (what, at) = cause(row, at, &said).unwrap_or((said, at));
        let column = String::from_utf8_lossy(row.get(..at).unwrap_or(row)).chars().count() + 1;
        Self { what, line: error.line(), column }
    }
}

/// What people write that is not JSON, told from what stands around the place, and where it begins. `None`: serde_json's own
/// words say it as well.
fn cause(row: &[u8], at: usize, said: &str) -> Option<(String, usize)> {
    let (before, rest) = row.split_at(at);
    let is_letter = |byte: &&u8| byte.is_ascii_alphabetic();
    // A word that begins like `null` was read a little before it was refused.
    let begin = at - before.iter().rev().take_while(is_letter).count();
    let end = at + rest.iter().take_while(is_letter).count();
    let word = std::str::from_utf8(row.get(begin..end).unwrap_or_default()).unwrap_or_default();
    let tail = before.trim_ascii_end();
    let what = match (word, rest) {
        ("NaN" | "nan" | "Infinity" | "inf", _) => {
            return Some((format!("`{word}` is no number in JSON; write null instead"), begin));
        }
        ("None" | "True" | "False", _) => {
            format!("`{word}` is Python's word; JSON has null, true and false: write with json.dumps, not with str")
        }
        (_, [b'\'', ..]) => {
            "single quotes are Python's; JSON has double ones: write with json.dumps, not with str".to_owned()
        }
        (_, [b'}' | b']', ..]) if tail.ends_with(b",") => "a comma before the closing bracket".to_owned(),
        (_, [b'{' | b'[', ..]) if tail.ends_with(b"}") => {
            "a second object on the same line; `jq -c .` puts each on a line of its own".to_owned()
        }
        (_, [b',', ..]) if tail.ends_with(b"}") => {
            "a comma after the object; JSON Lines have none between the posts".to_owned()
        }
        (_, [0, ..]) => "a NUL byte; was the file written to its end?".to_owned(),
        _ if said.starts_with("control character") => {
            let further = rest.iter().position(|byte| *byte < 0x20)?;
            return Some(("a raw tab or other control character in a text; JSON writes \\t".to_owned(), at + further));
        }
        _ => return None,
    };
    Some((what, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_11_the_cause_and_its_column() {
        for (text, what, column) in [
            (r#"{"a":NaN}"#, "`NaN`", 6),
            (r#"{"a":[1,nan]}"#, "`nan`", 9),
            (r#"{"中":-Infinity}"#, "`Infinity`", 7),
            (r#"{"中文":None}"#, "`None`", 7),
            (r#"{"a":True, "b":1}"#, "`True`", 6),
            ("{'a':1}", "single quotes", 2),
            (r#"{"a": 'x'}"#, "single quotes", 7),
            (r#"{"a":1, }"#, "a comma before", 9),
            (r#"{"a":[1,]}"#, "a comma before", 9),
            (r#"{"a":1}{"b":2}"#, "a second object", 8),
            (r#"{"a":"中"}  {"b":2}"#, "a second object", 12),
            (r#"{"a":1},"#, "a comma after", 8),
            ("{\"a\":\"x\ty\"}", "a raw tab", 8),
            ("\0\0", "NUL", 1),
            (r#"{"a":1 "b":2}"#, "expected `,` or `}`", 8),
            (r#"{"a":1"#, "EOF", 7),
            ("", "EOF", 1),
        ] {
            let error = serde_json::from_str::<serde::de::IgnoredAny>(text).expect_err("no JSON");
            let flaw = Flaw::of(text.as_bytes(), &error);
            assert!(flaw.what.contains(what), "{text}: {}", flaw.what);
            assert_eq!((flaw.line, flaw.column), (1, column), "{text}: {}", flaw.what);
        }
        let text = "{\n \"a\": 1,\n \"b\": None\n}";
        let error = serde_json::from_str::<serde::de::IgnoredAny>(text).expect_err("no JSON");
        let flaw = Flaw::of(text.as_bytes(), &error);
        assert_eq!((flaw.line, flaw.column), (3, 7));
    }
}
