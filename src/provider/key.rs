//! The key: from the provider's own environment variable or a private file, never printed (`docs/reliability.md` K1).
//! `redact.rs` takes it out of what a server says.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use rustix::process::DumpableBehavior;
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Dialect,
    redact::{Finder, Redactor},
};
use crate::{
    error::{Error, Kind, Result},
    shell,
};

/// A longer file is not a key file.
const MAX_FILE: u64 = 64 << 10;
/// Longest name of a variable that holds a key.
const LONGEST_NAME: usize = 40;

/// Sent to the provider's origin, shown nowhere.
#[derive(Clone)]
pub struct Key {
    key: SecretString,
    finder: Finder,
    /// The variable or the file that it came from.
    source: String,
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

    /// A key that the caller holds, e.g. the emulator's.
    pub fn new(key: &str) -> Result<Self> {
        Self::parse(key, "the key")
    }

    /// The variable or the file that it came from, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// `origin` names the place of `text` in messages.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let key = text.trim();
        match flaw_of(key) {
            Some(why) => {
                let what = format!("{origin}: {why}");
                Err(Error::new(Kind::Key, what).fix("put the key alone there, on one line, as the provider shows it"))
            }
            None => Ok(Self { key: SecretString::from(key), finder: Finder::new(key), source: origin.to_owned() }),
        }
    }

    /// The value of the `Authorization` header.
    pub fn header(&self) -> Option<http::HeaderValue> {
        let mut value = http::HeaderValue::from_str(&format!("Bearer {}", self.key.expose_secret())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// `id` holds a telling part of the key, so it is no id.
    pub(super) fn is_in(&self, id: &str) -> bool {
        self.finder.is_in(id)
    }

    /// The beginning of `text` without the key, and without any longer part of it, also where it is escaped or encoded.
    pub fn redact(&self, text: &str) -> String {
        self.finder.redact(text)
    }

    /// Takes the key out of a file; `None` for a key that is no secret.
    pub(super) fn redactor(&self) -> Option<Redactor> {
        Redactor::new(self.key.expose_secret())
    }

    /// Takes the key out of bytes that are all at hand.
    pub fn redact_bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(mut redactor) = self.redactor() else { return bytes };
        let mut clean = redactor.put(&bytes).to_vec();
        clean.extend_from_slice(redactor.finish());
        clean
    }
}

/// The reason why `key` was copied with something around it. The reason holds no part of the key.
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
    // An HTTP header can carry these characters.
    let fits = key.bytes().all(|byte| byte.is_ascii_graphic());
    (!fits).then(|| "there is a character in it that no key has".to_owned())
}

/// The words before the key in a line of a shell, a `.env` file or a header.
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
    // Other words may be the beginning of a key that has `=` in it; no message shows them.
    let is_ours = ["key", "token", "secret"].iter().any(|end| name.to_ascii_lowercase().ends_with(end));
    (is_name && is_ours && name.len() <= LONGEST_NAME).then(|| format!("{name}="))
}

/// From now on this process writes no core dump, and other processes of the user cannot read its memory or its environment.
/// A kernel without this setting is no reason to stop.
fn keep_memory_private() {
    let _unknown_here = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn read_private(path: &Path) -> Result<String> {
    let refuse = |why: String| Error::new(Kind::Key, format!("key file {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| refuse(e.to_string()).fix("check --key-file"))?;
    // The mode is that of the open file: nobody can swap the file between this check and the reading.
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
}
