//! The key: from the provider's own environment variable or a private file, never printed (`promises.md` K1).
//!
//! A server may echo what it was sent, as it is or encoded, so [`Key::redact`] runs over every text of a server
//! before that text becomes part of a message.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use base64::Engine as _;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Dialect, percent_escape};
use crate::{
    drill::{self, Guard},
    error::{Error, Kind, Result},
};

/// A longer file is not a key file.
const MAX_FILE: u64 = 64 << 10;
/// Half of a two-part key is as good as the key to whoever reads a log; shorter parts would blot out common words.
const MIN_PART: usize = 12;
const REDACTED: &str = "[key]";

/// Sent to the provider's origin, shown nowhere.
#[derive(Clone)]
pub struct Key {
    key: SecretString,
    /// Every form in which it must not be shown, longest first.
    forms: Vec<SecretString>,
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

    fn parse(text: &str, origin: &str) -> Result<Self> {
        let key = text.trim();
        let refuse = |why: &str| {
            Err(Error::new(Kind::Key, format!("{origin}: {why}")).fix("put the key alone there, on one line"))
        };
        if key.is_empty() {
            return refuse("it is empty");
        }
        // What a header can carry; anything else is a mistake of copying.
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("it holds blanks or characters no key has");
        }
        Ok(Self { key: SecretString::from(key), forms: forms(key) })
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> Option<http::HeaderValue> {
        let mut value = http::HeaderValue::from_str(&format!("Bearer {}", self.key.expose_secret())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The key is in `text`, in some form.
    pub(super) fn is_in(&self, text: &str) -> bool {
        self.forms.iter().any(|form| text.contains(form.expose_secret()))
    }

    /// `text` without the key, in whatever form it is there.
    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if drill::without(Guard::Redaction) {
            return text;
        }
        for form in &self.forms {
            if text.contains(form.expose_secret()) {
                text = text.replace(form.expose_secret(), REDACTED);
            }
        }
        text
    }
}

/// The key, its long parts, percent-encoded, and in base64 at each of the three alignments it can have inside a
/// longer encoded text.
fn forms(key: &str) -> Vec<SecretString> {
    let mut forms =
        vec![key.to_owned(), percent_escape(key), percent_escape(key).replace("%2B", "%2b").replace("%2F", "%2f")];
    forms.extend(key.split('.').filter(|part| part.len() >= MIN_PART).map(str::to_owned));
    for engine in [base64::engine::general_purpose::STANDARD_NO_PAD, base64::engine::general_purpose::URL_SAFE_NO_PAD] {
        for shift in 0..3_usize {
            let mut bytes = vec![0; shift];
            bytes.extend_from_slice(key.as_bytes());
            let whole = bytes.len() / 3 * 3;
            // The first four characters also depend on what stood before, the last ones on what follows.
            let encoded = engine.encode(bytes.get(..whole).unwrap_or_default());
            let core: String = encoded.chars().skip(if shift == 0 { 0 } else { 4 }).collect();
            if core.len() >= MIN_PART {
                forms.push(core);
            }
        }
    }
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms.dedup();
    forms.into_iter().map(SecretString::from).collect()
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
            .fix(format!("chmod 600 {}", path.display())));
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
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Key::load(zhipu(), Some(&path)).expect_err("refused");
        assert_eq!(error.kind(), Kind::Key);
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert_eq!(Key::load(zhipu(), Some(dir.path())).expect_err("a directory").kind(), Kind::Key);
    }

    #[test]
    fn no_form_of_the_key_is_shown() {
        let key = Key::new(KEY).expect("a key");
        assert_eq!(format!("{key:?}"), "Key([redacted])");
        assert_eq!(format!("{:?}", key.header().expect("a header")), "Sensitive");
        assert_eq!(key.redact(&format!("bad token {KEY}!")), "bad token [key]!");
        assert_eq!(key.redact("id 0123456789abcdef0123"), "id [key]");
        assert_eq!(key.redact(&format!("?k={}", percent_escape(KEY))), "?k=[key]");
        for around in ["", "B", "Be", "Bearer ", "xyz "] {
            for engine in [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::URL_SAFE] {
                let shown = key.redact(&engine.encode(format!("{around}{KEY} and more")));
                assert!(shown.contains(REDACTED), "{around:?}: {shown}");
            }
        }
        assert_eq!(key.redact("nothing here"), "nothing here");
    }
}
