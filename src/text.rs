//! Foreign text made safe to show (the bytes of a post, the message of a server, the name of a file), and the word that a
//! misspelt one was meant to be. Nothing here imports from the crate.

/// Longest excerpt of a bad row that is kept, in characters.
pub const EXCERPT_CHARS: usize = 120;
/// Longest piece of foreign text that goes into a fault's detail, in characters.
const DETAIL_CHARS: usize = 200;

/// The beginning of a bad row, at most [`EXCERPT_CHARS`] long, as text that is safe to show: invalid UTF-8 replaced, control
/// characters escaped.
pub fn excerpt(bytes: &[u8]) -> String {
    let end = bytes.len().min(EXCERPT_CHARS * 4);
    let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes));
    let mut short: String = text.chars().take(EXCERPT_CHARS).collect();
    if text.chars().count() > EXCERPT_CHARS || end < bytes.len() {
        short.push('…');
    }
    escape_control(&short)
}

/// A piece of foreign text (a post, a server's message) for a fault's detail: safe to show, and at most [`DETAIL_CHARS`] long.
pub fn short(text: &str) -> String {
    match text.char_indices().nth(DETAIL_CHARS) {
        None => escape_control(text),
        Some((end, _)) => escape_control(text.get(..end).unwrap_or_default()) + "…",
    }
}

/// A terminal acts on this character instead of showing it: control characters (C0, C1), line separators, and characters that
/// change the direction of text.
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Makes text safe for a terminal, and one line: each character that [`is_hostile`] becomes `\n`, `\u{..}` or the like.
pub fn escape_control(text: &str) -> String {
    if !text.chars().any(is_hostile) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_hostile(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// `did you mean …? ` for the candidate that `word` is a misspelling of; nothing if it is none of them.
pub fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    nearest(word, candidates).map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default()
}

/// The candidate that `word` is a misspelling of: of three letters one may differ, and neither case nor `-` for `_` counts.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    let far = |candidate: &str| strsim::damerau_levenshtein(&word, &plain(candidate));
    let (best, edits) = candidates.iter().map(|candidate| (*candidate, far(candidate))).min_by_key(|(_, far)| *far)?;
    (edits * 3 <= word.chars().count().max(best.chars().count())).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_18_only_a_misspelling_is_near() {
        let verbs = ["gen", "submit", "cancel", "config"];
        for (word, meant) in [
            ("gne", Some("gen")),
            ("Submitt", Some("submit")),
            ("conifg", Some("config")),
            ("label", None),
            ("export", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &verbs), meant, "{word}");
        }
        assert_eq!(nearest("batch.max-lines", &["batch.max_lines"]), Some("batch.max_lines"));
    }

    #[test]
    fn an_excerpt_is_short_and_harmless() {
        assert_eq!(excerpt(b"a\x1b[31mred\n"), "a\\u{1b}[31mred\\n");
        assert_eq!(excerpt(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(excerpt("长".repeat(500).as_bytes()).chars().count(), EXCERPT_CHARS + 1);
    }
}
