//! The key: from the provider's own environment variable or a private file, never printed (`docs/reliability.md` K1).
//!
//! A server may echo what it was sent, whole or in part, as it is or encoded. So [`Key::redact`] runs over every text of
//! a server before that text becomes part of a message, and [`Redactor`] over every file that is downloaded.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use base64::Engine as _;
use memchr::memmem;
use rustix::process::DumpableBehavior;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Dialect, percent_escape};
use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
    shell,
};

/// A longer file is not a key file.
const MAX_FILE: u64 = 64 << 10;
/// A message shows no longer run of the key than this; a shorter one may be chance, or a common word.
const SHOWN: usize = 7;
/// Ids and results are wanted as they are: they must have this much of the key in them to be touched. A key that is not
/// even as long (`any`, `EMPTY`) is what a server on this machine takes from everybody.
const TELLING: usize = 12;
/// Base64 makes four characters of three, hex two of one.
const TELLING_ENCODED: usize = 16;
/// Beyond this a text is cut before anything else: only its beginning is shown.
const MAX_TEXT: usize = 16 << 10;
/// Escaped text within escaped text within …
const MAX_NESTING: usize = 3;
const REDACTED: &str = "[key]";

/// Sent to the provider's origin, shown nowhere.
#[derive(Clone)]
pub struct Key {
    key: SecretString,
    /// The key itself, then what encoders make of it; lower case.
    forms: Vec<Form>,
    /// The variable or the file that it came from.
    source: String,
}

/// A text of which no part may be shown that is as long as this run, or longer.
#[derive(Clone)]
struct Form {
    text: SecretString,
    run: usize,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key([redacted])")
    }
}

impl Key {
    /// From `key_file` if there is one, else from the first of the provider's variables that is set.
    ///
    /// # Errors
    /// [`Kind::Key`] if there is none, if others can read the file, or if it cannot be a key.
    pub fn load(dialect: &Dialect, key_file: Option<&Path>) -> Result<Self> {
        keep_memory_private();
        Self::load_from(dialect, key_file, |variable| std::env::var_os(variable).map(|v| v.to_string_lossy().into()))
    }

    fn load_from(
        dialect: &Dialect,
        key_file: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        if let Some(path) = key_file {
            return Self::parse(&read_private(path)?, &path.display().to_string());
        }
        for name in dialect.key_variables {
            if let Some(value) = variable(name).filter(|value| !value.trim().is_empty()) {
                return Self::parse(&value, &format!("${name}"));
            }
        }
        let first = dialect.key_variables.first().copied().unwrap_or_default();
        Err(Error::new(Kind::Key, format!("no key for {}", dialect.name)).fix(format!(
            "export {first}=… or name a file of mode 0600 with --key-file; `zbatch run --emulate` needs none"
        )))
    }

    /// A key that is at hand, e.g. the emulator's.
    pub fn new(key: &str) -> Result<Self> {
        Self::parse(key, "the key")
    }

    /// The variable or the file that it came from, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// `origin` says where it stood, for messages.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let key = text.trim();
        match flaw_of(key) {
            Some(why) => {
                let what = format!("{origin}: {why}");
                Err(Error::new(Kind::Key, what).fix("put the key alone there, on one line, as the provider shows it"))
            }
            None => Ok(Self { key: SecretString::from(key), forms: forms(key), source: origin.to_owned() }),
        }
    }

    /// The value of the `Authorization` header.
    pub fn header(&self) -> Option<http::HeaderValue> {
        let mut value = http::HeaderValue::from_str(&format!("Bearer {}", self.key.expose_secret())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// So much of the key is in `id` that it is not one.
    pub(super) fn is_in(&self, id: &str) -> bool {
        id.len() >= TELLING && self.find(id, TELLING).contains(&true)
    }

    /// The beginning of `text` without the key, and without any longer part of it, however it is spelled there.
    pub fn redact(&self, text: &str) -> String {
        let text: String = text.chars().take(MAX_TEXT).collect();
        let hidden = self.find(&text, 0);
        let mut shown = String::with_capacity(text.len());
        let mut within = false;
        for (at, c) in text.char_indices() {
            let hide = hidden.get(at).copied().unwrap_or_default();
            match (hide, within) {
                (true, false) => shown.push_str(REDACTED),
                (true, true) => {}
                (false, _) => shown.push(c),
            }
            within = hide;
        }
        shown
    }

    /// Takes the key out of bytes that are there whole.
    pub fn redact_bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(mut redactor) = Redactor::new(self) else { return bytes };
        let mut clean = redactor.put(&bytes).to_vec();
        clean.extend_from_slice(redactor.finish());
        clean
    }

    /// Which bytes of `text` belong to a run of the key of at least `least`.
    fn find(&self, text: &str, least: usize) -> Vec<bool> {
        let mut hidden = vec![false; text.len()];
        if drill::without(Guard::Redaction) {
            return hidden;
        }
        let mut reading = Reading::of(text);
        for _ in 0..=MAX_NESTING {
            for form in &self.forms {
                let form_text = form.text.expose_secret().as_bytes();
                for window in form_text.windows(form.run.max(least)) {
                    for at in occurrences(&reading.bytes, window) {
                        // What is shorter than any key is hidden only where it stands alone.
                        if form_text.len() > SHOWN || reading.stands_alone(at, window.len()) {
                            reading.mark(at, window.len(), &mut hidden);
                        }
                    }
                }
            }
            match reading.unescaped() {
                Some(deeper) => reading = deeper,
                None => break,
            }
        }
        hidden
    }
}

/// What shows that a key was copied with something around it; never any of the key itself.
fn flaw_of(key: &str) -> Option<String> {
    const QUOTES: [char; 8] = ['"', '\'', '`', '“', '”', '‘', '’', '«'];
    if key.is_empty() {
        return Some("it is empty".to_owned());
    }
    if let Some(prefix) = prefix_of(key) {
        return Some(format!("it begins with `{prefix}`"));
    }
    if key.contains(['\n', '\r']) {
        return Some("there is a line break in it".to_owned());
    }
    if key.starts_with(QUOTES) || key.ends_with(QUOTES) {
        return Some("it is in quotes".to_owned());
    }
    if key.contains(char::is_whitespace) {
        return Some("there is a blank in it".to_owned());
    }
    // What a header can carry.
    let fits = key.bytes().all(|byte| byte.is_ascii_graphic());
    (!fits).then(|| "there is a character in it that no key has".to_owned())
}

/// Of a line of a shell or a `.env` file, or of a header: what stands before the key.
fn prefix_of(key: &str) -> Option<String> {
    let (first, rest) = key.split_once(char::is_whitespace).unwrap_or((key, ""));
    if !rest.is_empty() && ["export", "set", "bearer", "authorization:"].contains(&first.to_ascii_lowercase().as_str())
    {
        return Some(first.to_owned());
    }
    let (name, _) = key.split_once('=')?;
    let name = name.trim_end();
    let of = |is_letter: fn(&u8) -> bool| name.bytes().all(|byte| is_letter(&byte) || byte == b'_');
    let is_name = of(u8::is_ascii_uppercase) || of(u8::is_ascii_lowercase);
    // Anything else may be the beginning of a key that has `=` in it, and is not shown.
    let is_ours = ["key", "token", "secret"].iter().any(|end| name.to_ascii_lowercase().ends_with(end));
    (is_name && is_ours && name.len() <= LONGEST_NAME).then(|| format!("{name}="))
}

/// Of a variable that holds a key.
const LONGEST_NAME: usize = 40;

/// Where it is, overlapping ones too.
fn occurrences(text: &[u8], of: &[u8]) -> impl Iterator<Item = usize> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + memmem::find(text.get(from..)?, of)?;
        from = at + 1;
        Some(at)
    })
}

/// A text as it reads with so many layers of escapes taken off, in lower case.
struct Reading {
    bytes: Vec<u8>,
    /// Where each byte begins and ends in the text itself.
    places: Vec<(usize, usize)>,
}

impl Reading {
    fn of(text: &str) -> Self {
        Self { bytes: text.to_ascii_lowercase().into_bytes(), places: (0..text.len()).map(|at| (at, at + 1)).collect() }
    }

    /// `None`: nothing is escaped.
    fn unescaped(&self) -> Option<Self> {
        let mut deeper = Self { bytes: Vec::new(), places: Vec::new() };
        let mut rest = self.bytes.as_slice();
        let mut places = self.places.as_slice();
        while let Some(first) = rest.first() {
            let (byte, length) = unescape(rest).unwrap_or((*first, 1));
            let (Some(begin), Some(end)) = (places.first(), places.get(length - 1)) else { break };
            deeper.bytes.push(byte.to_ascii_lowercase());
            deeper.places.push((begin.0, end.1));
            (rest, places) = (rest.get(length..)?, places.get(length..)?);
        }
        (deeper.bytes.len() < self.bytes.len()).then_some(deeper)
    }

    fn stands_alone(&self, at: usize, length: usize) -> bool {
        let is_word = |at: Option<usize>| at.and_then(|at| self.bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
        !is_word(at.checked_sub(1)) && !is_word(Some(at + length))
    }

    fn mark(&self, at: usize, length: usize, hidden: &mut [bool]) {
        let (Some(first), Some(last)) = (self.places.get(at), self.places.get(at + length - 1)) else { return };
        if let Some(hidden) = hidden.get_mut(first.0..last.1) {
            hidden.fill(true);
        }
    }
}

/// The character that an escape of JSON, a URL or HTML stands for, and the length of the escape. Only what can be in a key
/// is asked for.
fn unescape(text: &[u8]) -> Option<(u8, usize)> {
    let hex = |from: usize, to: usize| u8::from_str_radix(std::str::from_utf8(text.get(from..to)?).ok()?, 16).ok();
    match text {
        [b'\\', b'u', b'0', b'0', ..] => Some((hex(4, 6)?, 6)),
        [b'\\', b'x', ..] => Some((hex(2, 4)?, 4)),
        [b'\\', byte @ (b'\\' | b'/' | b'"' | b'\''), ..] => Some((*byte, 2)),
        [b'%', ..] => Some((hex(1, 3)?, 3)),
        [b'&', ..] => {
            let end = text.iter().take(8).position(|byte| *byte == b';')?;
            let name = std::str::from_utf8(text.get(1..end)?).ok()?;
            let byte = match name {
                "amp" => b'&',
                "lt" => b'<',
                "gt" => b'>',
                "quot" => b'"',
                "apos" => b'\'',
                _ => match name.strip_prefix("#x") {
                    Some(digits) => u8::from_str_radix(digits, 16).ok()?,
                    None => name.strip_prefix('#')?.parse().ok()?,
                },
            };
            Some((byte, end + 1))
        }
        _ => None,
    }
}

/// The key, in hex, and in base64 at each of the three alignments it can have inside a longer encoded text.
fn forms(key: &str) -> Vec<Form> {
    let mut forms = vec![(key.to_ascii_lowercase(), key.len().min(SHOWN + 1))];
    if key.len() >= TELLING {
        let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        let encoded = base64_cores(key).into_iter().map(|core| core.to_ascii_lowercase()).chain([hex]);
        forms.extend(encoded.map(|text| (text, TELLING_ENCODED)));
    }
    forms.into_iter().map(|(text, run)| Form { text: text.into(), run }).collect()
}

/// What is always the same of the key's base64, whatever stands before and after it.
fn base64_cores(key: &str) -> Vec<String> {
    let mut cores = Vec::new();
    for engine in [base64::engine::general_purpose::STANDARD_NO_PAD, base64::engine::general_purpose::URL_SAFE_NO_PAD] {
        for shift in 0..3_usize {
            let mut bytes = vec![0; shift];
            bytes.extend_from_slice(key.as_bytes());
            let whole = bytes.len() / 3 * 3;
            // The first four characters also depend on what stood before, the last ones on what follows.
            let encoded = engine.encode(bytes.get(..whole).unwrap_or_default());
            cores.push(encoded.chars().skip(if shift == 0 { 0 } else { 4 }).collect());
        }
    }
    cores.sort_unstable();
    cores.dedup();
    cores
}

/// Takes the key out of bytes that come piece by piece: the whole of it, its long parts, and what begins like these.
#[derive(Debug)]
pub struct Redactor {
    needles: Vec<Needle>,
    /// What may be the beginning of a match is held back.
    longest: usize,
    held: Vec<u8>,
    clean: Vec<u8>,
    /// How often it was there.
    pub found: u64,
}

struct Needle {
    text: SecretString,
    beginning: memmem::Finder<'static>,
}

impl std::fmt::Debug for Needle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Needle([redacted])")
    }
}

impl Redactor {
    /// `None` for a key that is no secret.
    pub fn new(key: &Key) -> Option<Self> {
        if drill::without(Guard::Redaction) {
            return None;
        }
        let key = key.key.expose_secret();
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let escaped = escape(key);
        let percent = percent_escape(key);
        let mut texts = vec![
            key.to_owned(),
            escaped.replace('/', "\\/"),
            // A text of JSON within JSON.
            escape(&escaped),
            escaped,
            percent.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d"),
            percent,
        ];
        // Half of a two-part key is as good as the key to whoever reads it.
        texts.extend(key.split('.').map(str::to_owned));
        if key.len() >= TELLING {
            texts.extend(base64_cores(key).into_iter().filter(|core| core.len() >= TELLING_ENCODED));
        }
        texts.retain(|text| text.len() >= TELLING);
        texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        texts.dedup();
        let longest = texts.first()?.len();
        let needle = |text: String| {
            let beginning = memmem::Finder::new(text.as_bytes().get(..TELLING)?).into_owned();
            Some(Needle { text: text.into(), beginning })
        };
        let needles = texts.into_iter().filter_map(needle).collect();
        Some(Self { needles, longest, held: Vec::new(), clean: Vec::new(), found: 0 })
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
        let mut matches: Vec<(usize, usize)> = Vec::new();
        for needle in &self.needles {
            let text = needle.text.expose_secret().as_bytes();
            // Overlapping ones too: the key may begin within what only looks like its beginning.
            let mut from = 0;
            while let Some(found) = self.held.get(from..).and_then(|held| needle.beginning.find(held)) {
                let at = from + found;
                if at >= limit {
                    break;
                }
                from = at + 1;
                let there = self.held.get(at..).unwrap_or_default();
                matches.push((at, at + text.iter().zip(there).take_while(|(a, b)| a == b).count()));
            }
        }
        matches.sort_unstable();
        let mut done = 0;
        for (begin, end) in matches {
            if begin >= done {
                self.clean.extend_from_slice(self.held.get(done..begin).unwrap_or_default());
                self.clean.extend_from_slice(REDACTED.as_bytes());
                self.found += 1;
            }
            done = done.max(end);
        }
        self.clean.extend_from_slice(self.held.get(done..limit).unwrap_or_default());
        self.held.drain(..done.max(limit));
        &self.clean
    }
}

/// From now on this process writes no core dump, and other processes of the user cannot read its memory or its environment.
/// A kernel that knows no such setting is no reason to stop.
fn keep_memory_private() {
    let _unknown_here = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn read_private(path: &Path) -> Result<String> {
    let refuse = |why: String| Error::new(Kind::Key, format!("key file {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| refuse(e.to_string()).fix("check --key-file"))?;
    // Of the open file, so that it cannot be swapped between the look and the reading.
    let meta = file.metadata().map_err(|e| refuse(e.to_string()))?;
    if !meta.is_file() {
        return Err(refuse("it is not a regular file".to_owned()).fix("name a file of mode 0600"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(refuse(format!("others can read it (mode {:04o})", meta.mode() & 0o7777))
            .fix(format!("chmod 600 {}", shell::path(path))));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| refuse(e.to_string()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

    use super::*;

    const KEY: &str = "0123456789abcdef0123.S3cretS3cretS3+/";

    fn zhipu() -> &'static Dialect {
        Dialect::find("zhipu").expect("known")
    }

    #[test]
    fn only_the_providers_own_variables_are_read() {
        let set = |name: &str| (name == "OPENAI_API_KEY" || name == "ZHIPU_API_KEY").then(|| format!(" {name}\n"));
        let key = Key::load_from(zhipu(), None, set).expect("a key");
        assert_eq!(key.key.expose_secret(), "ZHIPU_API_KEY");
        let groq = Dialect::find("groq").expect("known");
        let error = Key::load_from(groq, None, set).expect_err("none");
        assert_eq!(error.kind(), Kind::Key);
        assert!(error.to_string().contains("export GROQ_API_KEY=…"), "{error}");
        for bad in ["a b", "schlüssel", "a\u{7}b", "a\nb"] {
            assert_eq!(Key::new(bad).expect_err(bad).kind(), Kind::Key);
        }
        assert_eq!(Key::new(" \n").expect_err("empty").kind(), Kind::Key);
    }

    #[test]
    fn a_key_file_is_private_or_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        let mut file = crate::lines::output::AtomicFile::create_private(&path).expect("created");
        file.write_all(b"id.secret\n").expect("written");
        file.commit().expect("committed");
        let key = Key::load(zhipu(), Some(&path)).expect("a key");
        assert_eq!(key.key.expose_secret(), "id.secret");
        assert_eq!(key.source(), path.display().to_string());
        let dumpable = rustix::process::dumpable_behavior().expect("told");
        assert_eq!(dumpable, DumpableBehavior::NotDumpable, "r11_9g: no core dump holds the key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Key::load(zhipu(), Some(&path)).expect_err("refused");
        assert_eq!(error.kind(), Kind::Key);
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert_eq!(Key::load(zhipu(), Some(dir.path())).expect_err("a directory").kind(), Kind::Key);
    }

    const B64: [base64::engine::GeneralPurpose; 2] =
        [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::URL_SAFE];

    #[test]
    fn no_form_of_the_key_is_shown() {
        let key = Key::new(KEY).expect("a key");
        assert_eq!(format!("{key:?}"), "Key([redacted])");
        assert_eq!(format!("{:?}", key.header().expect("a header")), "Sensitive");
        assert_eq!(format!("{:?}", Redactor::new(&key)).matches("Needle([redacted])").count(), 9);
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
        assert!(!key.is_in("batch_many") && Redactor::new(&key).is_none());
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
            let mut redactor = Redactor::new(&key).expect("a secret");
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
