//! JSON with small damage, made whole: other quotes, full-width signs, trailing commas, raw line breaks and bare quotes in
//! strings, words without quotes, comments, a last bracket that is missing.

use super::words::words;

/// JSON out of almost-JSON. Whether the outcome is JSON is for the parser to say. The last bracket may be missing: of a
/// model that had not finished there is no answer.
pub(super) fn mended(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text.trim();
    let (mut open, mut is_cut) = (Vec::new(), false);
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        let closing = closing_quotes(c);
        if let Some((said, after)) = comment(rest) {
            // Beside an element, never after all of it, nor before a value.
            if open.is_empty() || out.trim_end().ends_with(':') || !words().is_comment(said) {
                return String::new();
            }
            rest = after;
        } else if !closing.is_empty() {
            (rest, is_cut) = mend_string(after, c, closing, &mut out);
        } else if let Some(sign) = structural(c) {
            rest = after;
            if matches!(sign, ']' | '}') {
                open.pop();
                if out.trim_end().ends_with(',') {
                    out.truncate(out.trim_end().len() - 1);
                }
            } else if matches!(sign, '[' | '{') {
                open.push(if sign == '[' { ']' } else { '}' });
            }
            out.push(sign);
        } else {
            rest = mend_word(rest, &mut out);
        }
    }
    let is_cut = is_cut || out.trim_end().ends_with([',', ':']);
    if let ([last], false) = (open.as_slice(), is_cut) {
        out.push(*last);
    }
    out
}

/// Splits a text into the comment that it begins with and the rest.
fn comment(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix("/*") {
        return Some(rest.split_once("*/").unwrap_or((rest, "")));
    }
    let rest = text.strip_prefix("//").or_else(|| text.strip_prefix('#'))?;
    Some(rest.split_at_checked(rest.find('\n').unwrap_or(rest.len())).unwrap_or((rest, "")))
}

/// What may end a string that begins so.
fn closing_quotes(open: char) -> &'static [char] {
    match open {
        '"' => &['"', '”'],
        '\'' => &['\'', '’'],
        '“' | '”' => &['”', '“', '"'],
        '‘' | '’' => &['’', '‘', '\''],
        '「' => &['」'],
        '『' => &['』'],
        '＂' => &['＂', '"'],
        _ => &[],
    }
}

fn structural(c: char) -> Option<char> {
    Some(match c {
        '[' | '［' | '【' => '[',
        ']' | '］' | '】' => ']',
        '{' | '｛' => '{',
        '}' | '｝' => '}',
        ',' | '，' | '、' => ',',
        ':' | '：' => ':',
        _ if c.is_whitespace() => ' ',
        _ => return None,
    })
}

/// Copies a string whose quote has been read, and gives what follows it, and whether it had no end. A quote ends it only
/// where a value may end.
fn mend_string<'t>(text: &'t str, open: char, closing: &[char], out: &mut String) -> (&'t str, bool) {
    out.push('"');
    let mut rest = text.chars();
    let (mut quoted, mut is_cut) = (0_u32, true);
    while let Some(c) = rest.next() {
        let ends = || {
            rest.as_str().trim_start().chars().next().is_none_or(|next| {
                structural(next).is_some_and(|sign| !matches!(sign, '[' | '{')) || matches!(next, '/' | '#')
            })
        };
        match c {
            '“' if open == '"' => quoted += 1,
            '”' if quoted > 0 => quoted -= 1,
            c if closing.contains(&c) && ends() => {
                is_cut = false;
                break;
            }
            _ => {}
        }
        match c {
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => match rest.next() {
                Some(c @ ('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' | 'u')) => out.extend(['\\', c]),
                Some(c) => out.push(c),
                None => break,
            },
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    (rest.as_str(), is_cut)
}

/// A number or literal as it is, in narrow digits; other words in quotes. Gives what follows.
fn mend_word<'t>(text: &'t str, out: &mut String) -> &'t str {
    let ends = |c: char| {
        !c.is_whitespace() && structural(c).is_some() || !closing_quotes(c).is_empty() || matches!(c, '\n' | '#')
    };
    let end = text.find(ends).unwrap_or(text.len());
    let end = text.get(..end).and_then(|word| word.find("//")).unwrap_or(end);
    let (word, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    let word: String = word.trim().chars().map(super::values::narrow).collect();
    match word.as_str() {
        "True" => out.push_str("true"),
        "False" => out.push_str("false"),
        "None" => out.push_str("null"),
        word if serde_json::from_str::<serde::de::IgnoredAny>(word).is_ok() => out.push_str(word),
        word => out.push_str(&serde_json::Value::from(word).to_string()),
    }
    rest
}
