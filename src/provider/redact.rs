//! The key is taken out of everything that a server says (`docs/reliability.md` K1).
//!
//! A server may echo the key whole or in part, as it is or encoded. [`Finder::redact`] runs over every text of a server before
//! that text becomes part of a message, and [`Redactor`] over every file that is downloaded. The two differ in what is worth
//! hiding: a message may lose a common word, but a result must come as it is unless it tells a long part of the key.

use std::fmt;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use base64::{Engine as _, engine::general_purpose};
use rustc_hash::FxHashSet;
use secrecy::{ExposeSecret as _, SecretString};

use super::address::percent_escape;
use crate::drill::{self, Guard};

/// A message shows at most this many characters of the key in a row. So short a run may be chance, or a common word.
const SHOWN: usize = 7;
/// Ids and results are changed only for a run of the key of this length. A key that is shorter (`any`, `EMPTY`) is one that a
/// server on this machine takes from everybody.
const TELLING: usize = 12;
/// The same in base64, where three characters become four, and in hex, where one becomes two.
const TELLING_ENCODED: usize = 16;
/// Characters of a text that are looked at. A message shows only the first few hundred.
const MAX_TEXT: usize = 16 << 10;
/// Layers of escapes that are taken off a text.
const MAX_NESTING: usize = 3;
const REDACTED: &str = "[key]";

/// Finds runs of the key in a text, in any case: of the key itself more than [`SHOWN`] characters, of its hex and base64
/// [`TELLING_ENCODED`].
#[derive(Clone)]
pub(super) struct Finder {
    /// Runs by their length.
    runs: Vec<(usize, FxHashSet<u128>)>,
    /// The key is as short as a word: it is hidden only where it stands alone.
    is_word: bool,
}

impl Finder {
    pub fn new(key: &str) -> Self {
        let length = key.len().min(SHOWN + 1);
        let mut runs = vec![(length, key.as_bytes().windows(length).map(number).collect())];
        if key.len() >= TELLING {
            let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
            let mut encoded = FxHashSet::default();
            for text in base64_cores(key).iter().chain([&hex]) {
                encoded.extend(text.as_bytes().windows(TELLING_ENCODED).map(number));
            }
            runs.push((TELLING_ENCODED, encoded));
        }
        Self { runs, is_word: key.len() <= SHOWN }
    }

    /// Where the key is in `text`: ranges in order, none of which overlap.
    fn find(&self, text: &[u8]) -> Vec<(usize, usize)> {
        let is_letter = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_alphanumeric);
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (length, runs) in &self.runs {
            let places = text.windows(*length).enumerate().filter(|(_, run)| runs.contains(&number(run)));
            found.extend(places.map(|(at, _)| (at, at + length)));
        }
        found.retain(|(from, to)| !self.is_word || !is_letter(from.checked_sub(1)) && !is_letter(Some(*to)));
        found.sort_unstable();
        found.dedup_by(|next, last| {
            let overlaps = next.0 < last.1;
            if overlaps {
                last.1 = last.1.max(next.1);
            }
            overlaps
        });
        found
    }
}

/// A run of at most 16 bytes as a number, in lower case.
fn number(run: &[u8]) -> u128 {
    run.iter().fold(0, |number, byte| (number << 8) | u128::from(byte.to_ascii_lowercase()))
}

impl Finder {
    /// `id` holds a telling part of the key, so it is no id.
    pub fn is_in(&self, id: &str) -> bool {
        let tells = |layer: &Unescaped| self.find(&layer.bytes).iter().any(|(from, to)| to - from >= TELLING);
        !drill::without(Guard::Redaction) && layers(id).any(|layer| tells(&layer))
    }

    /// The beginning of `text` without the key, and without any longer part of it, also where it is escaped or encoded.
    pub fn redact(&self, text: &str) -> String {
        let text: String = text.chars().take(MAX_TEXT).collect();
        if drill::without(Guard::Redaction) {
            return text;
        }
        let mut hidden = vec![false; text.len()];
        for layer in layers(&text) {
            for (from, to) in self.find(&layer.bytes) {
                if let Some(hidden) = layer.place(from, to).and_then(|place| hidden.get_mut(place)) {
                    hidden.fill(true);
                }
            }
        }
        let mut shown = String::with_capacity(text.len());
        let mut was_hidden = false;
        for (at, c) in text.char_indices() {
            let hide = hidden.get(at) == Some(&true);
            match (hide, was_hidden) {
                (true, false) => shown.push_str(REDACTED),
                (true, true) => {}
                (false, _) => shown.push(c),
            }
            was_hidden = hide;
        }
        shown
    }
}

/// A text with some layers of escapes taken off.
struct Unescaped {
    bytes: Vec<u8>,
    /// Where each byte begins in the text itself, and where the last one ends.
    begins: Vec<usize>,
}

/// The text as it is, then with one layer of escapes taken off, two, …
fn layers(text: &str) -> impl Iterator<Item = Unescaped> {
    let whole = Unescaped { bytes: text.as_bytes().to_vec(), begins: (0..=text.len()).collect() };
    let mut next = Some(whole);
    std::iter::from_fn(move || {
        let layer = next.take()?;
        next = layer.unescaped();
        Some(layer)
    })
    .take(MAX_NESTING + 1)
}

impl Unescaped {
    /// `None`: nothing is escaped.
    fn unescaped(&self) -> Option<Self> {
        let mut deeper = Self { bytes: Vec::new(), begins: Vec::new() };
        let mut at = 0;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (byte, length) = unescape(rest).unwrap_or((*rest.first()?, 1));
            deeper.bytes.push(byte);
            deeper.begins.push(*self.begins.get(at)?);
            at += length;
        }
        deeper.begins.push(*self.begins.last()?);
        (deeper.bytes.len() < self.bytes.len()).then_some(deeper)
    }

    /// The range in the text itself.
    fn place(&self, from: usize, to: usize) -> Option<std::ops::Range<usize>> {
        Some(*self.begins.get(from)?..*self.begins.get(to)?)
    }
}

/// The character that an escape of JSON, a URL or HTML stands for, and the length of the escape. Only characters that a key can
/// hold matter.
fn unescape(text: &[u8]) -> Option<(u8, usize)> {
    let hex = |from: usize, to: usize| u8::from_str_radix(std::str::from_utf8(text.get(from..to)?).ok()?, 16).ok();
    match text {
        [b'\\', b'u' | b'U', b'0', b'0', ..] => Some((hex(4, 6)?, 6)),
        [b'\\', b'x' | b'X', ..] => Some((hex(2, 4)?, 4)),
        [b'\\', byte @ (b'\\' | b'/' | b'"' | b'\''), ..] => Some((*byte, 2)),
        [b'%', ..] => Some((hex(1, 3)?, 3)),
        [b'&', ..] => {
            let end = text.iter().take(8).position(|byte| *byte == b';')?;
            let name = std::str::from_utf8(text.get(1..end)?).ok()?.to_ascii_lowercase();
            let byte = match name.as_str() {
                "amp" => b'&',
                "lt" => b'<',
                "gt" => b'>',
                "quot" => b'"',
                "apos" => b'\'',
                name => match name.strip_prefix("#x") {
                    Some(digits) => u8::from_str_radix(digits, 16).ok()?,
                    None => name.strip_prefix('#')?.parse().ok()?,
                },
            };
            Some((byte, end + 1))
        }
        _ => None,
    }
}

/// The part of the key's base64 that is the same whatever stands before and after the key, for each of the three alignments
/// and both alphabets.
fn base64_cores(key: &str) -> Vec<String> {
    let mut cores = Vec::new();
    for engine in [general_purpose::STANDARD_NO_PAD, general_purpose::URL_SAFE_NO_PAD] {
        for shift in 0..3_usize {
            let mut bytes = vec![0; shift];
            bytes.extend_from_slice(key.as_bytes());
            let whole = bytes.len() / 3 * 3;
            // The first four characters also depend on what stands before the key, the last ones on what follows it.
            let encoded = engine.encode(bytes.get(..whole).unwrap_or_default());
            cores.push(encoded.chars().skip(if shift == 0 { 0 } else { 4 }).collect());
        }
    }
    cores.sort_unstable();
    cores.dedup();
    cores
}

/// Takes the key out of bytes that come piece by piece: the whole key, its parts between dots, their JSON and URL escapes and
/// the key's base64; and the beginning of each of these, from [`TELLING`] bytes on.
pub(super) struct Redactor {
    beginnings: AhoCorasick,
    texts: Vec<SecretString>,
    /// Bytes of the longest text. The end of what came may be the beginning of a match and is held back.
    longest: usize,
    held: Vec<u8>,
    clean: Vec<u8>,
    /// How often the key was there.
    pub found: u64,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} texts)", self.texts.len())
    }
}

impl Redactor {
    /// `None` for a key that is no secret.
    pub fn new(key: &str) -> Option<Self> {
        if drill::without(Guard::Redaction) {
            return None;
        }
        let texts = spellings(key);
        let longest = texts.iter().map(String::len).max()?;
        let mut beginnings: Vec<&[u8]> = texts.iter().filter_map(|text| text.as_bytes().get(..TELLING)).collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        let beginnings = AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(beginnings).ok()?;
        let texts = texts.into_iter().map(SecretString::from).collect();
        Some(Self { beginnings, texts, longest, held: Vec::new(), clean: Vec::new(), found: 0 })
    }

    /// What is clean so far.
    pub fn put(&mut self, bytes: &[u8]) -> &[u8] {
        self.held.extend_from_slice(bytes);
        self.clean_up_to(self.held.len().saturating_sub(self.longest - 1))
    }

    /// The rest.
    pub fn finish(&mut self) -> &[u8] {
        self.clean_up_to(self.held.len())
    }

    /// Matches that begin before `limit` are whole.
    fn clean_up_to(&mut self, limit: usize) -> &[u8] {
        self.clean.clear();
        // What was passed on or hidden, and where the next match may begin: within the last one too, since the key may begin
        // within what only looks like its beginning.
        let (mut done, mut from) = (0, 0);
        while let Some(found) = self.beginnings.find(Input::new(&self.held).range(from..)) {
            let begin = found.start();
            if begin >= limit {
                break;
            }
            if begin >= done {
                self.clean.extend_from_slice(self.held.get(done..begin).unwrap_or_default());
                self.clean.extend_from_slice(REDACTED.as_bytes());
                self.found += 1;
            }
            let there = self.held.get(begin..).unwrap_or_default();
            let longest = self.texts.iter().map(|text| common_beginning(text.expose_secret().as_bytes(), there)).max();
            done = done.max(begin + longest.unwrap_or_default());
            from = begin + 1;
        }
        self.clean.extend_from_slice(self.held.get(done..limit).unwrap_or_default());
        self.held.drain(..done.max(limit));
        &self.clean
    }
}

fn common_beginning(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// How a server may write the key: as it is, escaped, in base64, or a part of it. Shorter texts tell too little.
fn spellings(key: &str) -> Vec<String> {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let json = escape(key);
    let percent = percent_escape(key);
    let mut texts = vec![
        key.to_owned(),
        json.replace('/', "\\/"),
        // A text of JSON within JSON.
        escape(&json),
        json,
        percent.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d"),
        percent,
    ];
    // Half of a two-part key is as good as the key to a reader.
    texts.extend(key.split('.').map(str::to_owned));
    if key.len() >= TELLING {
        texts.extend(base64_cores(key).into_iter().filter(|core| core.len() >= TELLING_ENCODED));
    }
    texts.retain(|text| text.len() >= TELLING);
    texts.sort_unstable();
    texts.dedup();
    texts
}

#[cfg(test)]
mod tests {
    use super::{super::Key, *};

    const KEY: &str = "0123456789abcdef0123.S3cretS3cretS3+/";

    const B64: [base64::engine::GeneralPurpose; 2] =
        [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::URL_SAFE];

    #[test]
    fn no_form_of_the_key_is_shown() {
        let key = Key::new(KEY).expect("a key");
        assert_eq!(format!("{key:?}"), "Key([redacted])");
        assert_eq!(format!("{:?}", key.header().expect("a header")), "Sensitive");
        assert_eq!(format!("{:?}", key.redactor()), "Some(Redactor(9 texts))");
        assert_eq!(key.redact(&format!("bad token {KEY}!")), "bad token [key]!");
        assert_eq!(key.redact("id 0123456789abcdef0123"), "id [key]");
        for around in ["", "B", "Be", "Bearer ", "xyz "] {
            for engine in B64 {
                let shown = key.redact(&engine.encode(format!("{around}{KEY} and more")));
                assert!(shown.contains(REDACTED), "{around:?}: {shown}");
                assert!(!shown.contains("VjcmV0"), "{around:?}: {shown}");
            }
        }
        let hex: String = KEY.bytes().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(key.redact(&format!("0x{hex}.")), "0x[key].");
        assert_eq!(key.redact("nothing here"), "nothing here");
    }

    #[test]
    fn however_the_key_is_spelled() {
        let key = Key::new(KEY).expect("a key");
        let every = |spell: &dyn Fn(char) -> String| KEY.chars().map(spell).collect::<String>();
        let json = every(&|c| format!("\\u{:04x}", u32::from(c)));
        for spelled in [
            percent_escape(KEY),
            percent_escape(KEY).to_lowercase(),
            every(&|c| format!("%{:02X}", u32::from(c))),
            every(&|c| if c == '3' { "%33".to_owned() } else { c.to_string() }),
            json.replace('\\', "\\\\"),
            json,
            every(&|c| if c == 'S' { "\\u0053".to_owned() } else { c.to_string() }),
            every(&|c| if c == 'c' { "\\x63".to_owned() } else { c.to_string() }),
            KEY.replace('/', "\\/"),
            KEY.replace('/', "\\\\\\/"),
            every(&|c| format!("&#{};", u32::from(c))),
            KEY.replace('/', "&#x2F;"),
            KEY.to_uppercase(),
        ] {
            assert_eq!(key.redact(&format!("字 {spelled} 字")), "字 [key] 字", "{spelled}");
        }
    }

    #[test]
    fn parts_of_the_key_are_not_shown_either() {
        let key = Key::new(KEY).expect("a key");
        for from in 0..KEY.len() {
            for to in from..=KEY.len() {
                let part = KEY.get(from..to).expect("ASCII");
                let shown = key.redact(&format!("it begins with {part}…"));
                let hidden = shown == "it begins with [key]…";
                assert_eq!(hidden, part.len() > SHOWN, "{part}: {shown}");
                assert_eq!(key.is_in(&format!("file-{part}")), part.len() >= TELLING, "{part}");
            }
        }
    }

    #[test]
    fn ordinary_words_stay() {
        let page = "The quick brown fox: 0123-456 \\u5b57 100% &amp; more; file_0123456 任何 secret";
        for key in [KEY, "sk-proj-abcdefghijkl", "EMPTY", "x"] {
            assert_eq!(Key::new(key).expect("a key").redact(page), page, "{key}");
        }
        // Short keys are words: only they themselves are hidden.
        let key = Key::new("any").expect("a key");
        assert_eq!(key.redact("any company takes `ANY`, anyhow"), "[key] company takes `[key]`, anyhow");
        assert!(!key.is_in("batch_many") && key.redactor().is_none());
    }

    #[test]
    fn r3_a_key_that_begins_within_its_own_beginning_is_taken_out() {
        let secret = "--------------S3cretS3cretS3";
        let key = Key::new(secret).expect("a key");
        assert_eq!(key.redact_bytes(format!("x -{secret} y").into_bytes()), b"x [key] y");
    }

    #[test]
    fn results_come_without_the_key_wherever_they_are_cut() {
        let key = Key::new(KEY).expect("a key");
        let b64 = B64[0].encode(format!("user:{KEY}"));
        let text = format!("a{KEY}b{}c0123456789abcd{KEY}{KEY}S3cretS3cretX {b64} {{}}\n", KEY.replace('/', "\\/"));
        let clean_in = |size: usize| {
            let mut redactor = key.redactor().expect("a secret");
            let mut clean = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                clean.extend_from_slice(redactor.put(piece));
            }
            clean.extend_from_slice(redactor.finish());
            assert_eq!(redactor.found, 7, "{size}");
            String::from_utf8(clean).expect("UTF-8")
        };
        let clean = clean_in(text.len());
        assert!(clean.starts_with("a[key]b[key]c[key][key][key][key]X ") && clean.ends_with(" {}\n"), "{clean}");
        assert!(!clean.contains(b64.get(12..b64.len() - 12).expect("ASCII")), "{clean}");
        for size in [1, 2, 7, 13, 64, 100] {
            assert_eq!(clean_in(size), clean, "{size}");
        }
        let plain = "0123456789a S3cretS3cre".repeat(9);
        assert_eq!(key.redact_bytes(plain.clone().into_bytes()), plain.as_bytes());
    }
}
