//! What is only wrapping around an answer, and is taken off: thinking, fences, tags, boxes, quotes, brackets, emphasis, a
//! list's marker, closing punctuation.

use std::borrow::Cow;

use super::{
    Asked,
    words::{own_names, words},
};
use crate::analysis::AnswerRule;

/// An answer has at most so many layers around it.
pub(super) const LAYERS: usize = 32;

const THINKING: [(&str, &str); 5] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
];

/// Around a whole, and nowhere within.
const TOKENS: [(&str, &str); 8] = [
    ("<|begin_of_box|>", "<|end_of_box|>"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("$$", "$$"),
    ("$", "$"),
    ("**", "**"),
    ("__", "__"),
    ("~~~", "~~~"),
];

const PAIRS: [(char, char); 29] = [
    ('"', '"'),
    ('\'', '\''),
    ('`', '`'),
    ('*', '*'),
    ('_', '_'),
    ('“', '”'),
    ('‘', '’'),
    ('„', '“'),
    ('„', '”'),
    ('«', '»'),
    ('‹', '›'),
    ('「', '」'),
    ('『', '』'),
    ('｢', '｣'),
    ('〝', '〞'),
    ('＂', '＂'),
    ('＇', '＇'),
    ('"', '”'),
    ('“', '"'),
    ('《', '》'),
    ('〈', '〉'),
    ('【', '】'),
    ('〔', '〕'),
    ('〖', '〗'),
    ('（', '）'),
    ('(', ')'),
    ('［', '］'),
    ('[', ']'),
    ('<', '>'),
];

pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200d}' | '\0'))
}

/// Closing punctuation.
pub(super) fn closes(c: char) -> bool {
    matches!(c, '。' | '．' | '.' | '！' | '!' | '，' | ',' | '；' | ';' | '、')
}

/// The text without its thinking. One that does not end hides all after it, one that does not begin all before.
pub(super) fn without_thinking(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    // Nearly no answer has a tag, and a byte is found faster than ten words: 0xe2 is the first one of `◁`.
    if memchr::memchr2(b'<', 0xe2, text.as_bytes()).is_none() && !text.starts_with("[THINK]") {
        return text;
    }
    for (open, close) in THINKING {
        for _ in 0..LAYERS {
            let Some((before, thinking)) = text.split_once(open) else { break };
            let after = thinking.split_once(close).map_or("", |(_, after)| after);
            text = Cow::Owned(format!("{before}\n{after}"));
        }
        if let Some((_, after)) = text.rsplit_once(close) {
            text = Cow::Owned(after.to_owned());
        }
    }
    text
}

/// The text without one layer of wrapping, if it has one.
pub(super) fn unwrapped<'t>(text: &'t str, asked: Asked<'_>) -> Option<&'t str> {
    // Where numbers may be negative, `- 1` is one.
    if matches!(asked.rule, AnswerRule::Integer { min, .. } if *min < 0) && text.starts_with('-') {
        return None;
    }
    let inside = fence(text).or_else(|| tag(text, asked)).map(trim).filter(|inside| !inside.is_empty());
    inside.or_else(|| unmarked(text))
}

/// As [`unwrapped`], but for what only goes around a whole answer.
pub(super) fn unmarked(text: &str) -> Option<&str> {
    let unended = || {
        let inside = text.trim_end_matches(closes);
        // `["a",` is no list that ends.
        let is_cut = text.starts_with(['[', '{']) && !inside.ends_with([']', '}']);
        (inside.len() < text.len() && !is_cut).then_some(inside)
    };
    let inside = token(text).or_else(|| pair(text)).or_else(unended).or_else(|| item(text));
    inside.map(trim).filter(|inside| !inside.is_empty())
}

fn fence(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("```")?;
    // The end may be missing.
    let inside = rest.strip_suffix("```").unwrap_or(rest);
    memchr::memmem::find(inside.as_bytes(), b"```").is_none().then(|| without_language(inside))
}

/// Takes `json` away from the beginning of a fence.
fn without_language(inside: &str) -> &str {
    let word = inside.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '+'));
    let Some((language, rest)) = word.and_then(|end| inside.split_at_checked(end)) else { return inside };
    let is_known = ["json", "jsonc", "json5", "jsonl", "text", "txt", "plaintext"]
        .iter()
        .any(|known| language.eq_ignore_ascii_case(known));
    // A line that is only a word names a language, a digit is an answer.
    let is_line = language.starts_with(|c: char| c.is_ascii_alphabetic()) && rest.starts_with(['\n', '\r']);
    if is_known || is_line { rest } else { inside }
}

/// `<answer>…</answer>`: a tag whose name is one of an answer.
fn tag<'t>(text: &'t str, asked: Asked<'_>) -> Option<&'t str> {
    let (name, rest) = text.strip_prefix('<')?.split_once('>')?;
    let inside = rest.strip_suffix('>')?.strip_suffix(name)?.strip_suffix("</")?;
    let is_known = words().is_tag(name) || own_names(asked).any(|own| own.eq_ignore_ascii_case(name));
    (is_known && !inside.contains("</")).then_some(inside)
}

fn token(text: &str) -> Option<&str> {
    // All begin with one of these.
    if !matches!(text.as_bytes().first(), Some(b'<' | b'\\' | b'$' | b'*' | b'_' | b'~')) {
        return None;
    }
    let around = TOKENS.iter().find_map(|(open, close)| {
        let inside = text.strip_prefix(open)?.strip_suffix(close)?;
        (!inside.contains(open) && !inside.contains(close)).then_some(inside)
    });
    let braced = || {
        let rest = ["\\boxed", "\\text", "\\textbf", "\\mathrm"]
            .iter()
            .find_map(|command| text.strip_prefix(command).map(str::trim_start).filter(|rest| rest.starts_with('{')))?;
        enclosed(rest, '{', '}')
    };
    around.or_else(braced)
}

fn pair(text: &str) -> Option<&str> {
    let (first, last) = (text.chars().next()?, text.chars().next_back()?);
    let mut around = PAIRS.iter().filter(|(open, close)| (first, last) == (*open, *close));
    around.find_map(|(open, close)| enclosed(text, *open, *close))
}

/// What stands between two signs that belong to each other.
fn enclosed(text: &str, open: char, close: char) -> Option<&str> {
    let inside = text.strip_prefix(open)?.strip_suffix(close)?;
    let mut depth = 0_usize;
    for c in inside.chars() {
        if c == close {
            depth = depth.checked_sub(1)?;
        } else if c == open {
            depth += 1;
        }
    }
    (depth == 0).then_some(inside)
}

/// The only item of a list. `3、4` is no list of one.
fn item(text: &str) -> Option<&str> {
    let rest = match text.strip_prefix(['-', '*', '+', '•', '·', '–', '—']) {
        Some(rest) => rest.strip_prefix(char::is_whitespace)?,
        None => {
            let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
            rest.strip_prefix(['.', '、', ')', '）', '．']).filter(|_| rest.len() < text.len())?
        }
    };
    let rest = Some(rest.trim_start()).filter(|rest| !rest.is_empty() && !text.contains('\n'))?;
    let is_number =
        rest.starts_with(|c: char| c.is_numeric()) || words().number(rest.trim_end_matches(closes)).is_some();
    (!is_number || text.starts_with(['-', '*', '•', '·'])).then_some(rest)
}
