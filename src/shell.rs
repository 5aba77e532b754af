//! Commands that are offered for pasting. Each value in one is a single word to the shell, whatever it holds: spaces, quotes,
//! `$`, line feeds, bytes that are no UTF-8. Nothing that a terminal would act on is left in it.
//!
//! The crates for this (`shlex`, `shell-words`) put control characters into the quotes as they are, which a terminal obeys.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::text::is_hostile;

/// A value as one word: bare if it is plain, in single quotes, or as `$'…'` where single quotes could not show it.
pub fn word(value: impl AsRef<OsStr>) -> String {
    let bytes = value.as_ref().as_bytes();
    let is_plain = |c: char| c.is_alphanumeric() || "._-/+=:,@%".contains(c);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.starts_with('=') && text.chars().all(is_plain) => text.to_owned(),
        Ok(text) if !text.chars().any(is_hostile) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => escaped(bytes),
    }
}

/// A path as one word that is no flag.
pub fn path(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let is_flag = path.as_os_str().as_bytes().starts_with(b"-") && path != Path::new("-");
    if is_flag { word(Path::new(".").join(path)) } else { word(path) }
}

/// The path with `end` after the last byte of its name.
pub fn path_with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

/// `$'…'`, as bash, zsh, ksh and busybox read it. Bytes are octal: `\x` has no end that all of them agree on.
fn escaped(bytes: &[u8]) -> String {
    let octal = |out: &mut String, bytes: &[u8]| {
        for byte in bytes {
            let _infallible = write!(out, "\\{byte:03o}");
        }
    };
    let mut out = "$'".to_owned();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                '\'' | '\\' => out.extend(['\\', c]),
                c if is_hostile(c) => octal(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        octal(&mut out, chunk.invalid());
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_6_a_word_is_one_word() {
        for (value, as_shell) in [
            (&b"out.jsonl"[..], "out.jsonl"),
            ("输出.jsonl".as_bytes(), "输出.jsonl"),
            (b"", "''"),
            (b"=x", "'=x'"),
            (b"o'ut $x.jsonl", r"'o'\''ut $x.jsonl'"),
            (b"a\\b", r"'a\b'"),
            (b"a\nnext: 'b\\", r"$'a\nnext: \'b\\'"),
            (b"\x1b[31m", r"$'\033[31m'"),
            ("a\u{202e}1".as_bytes(), r"$'a\342\200\2561'"),
            (b"caf\xe9 1", r"$'caf\351 1'"),
        ] {
            assert_eq!(word(OsStr::from_bytes(value)), as_shell);
        }
        for (value, as_shell) in [("-x", "./-x"), ("-", "-"), ("a/-x", "a/-x"), ("- x", "'./- x'")] {
            assert_eq!(path(value), as_shell);
        }
    }

    /// A shell that knows `$'…'` reads back what went in.
    #[test]
    fn r11_6_a_shell_reads_a_word_back() {
        for value in [&b"a b"[..], b"$(x) `x` \"", b"'", b"\n\t\r\\'\x1b\x7f", b"\xff1\xc3", "\u{202e}77".as_bytes()] {
            let ran = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {}", word(OsStr::from_bytes(value)))])
                .output();
            match ran {
                Ok(ran) => assert_eq!(ran.stdout, value),
                Err(e) => eprintln!("skipped: bash: {e}"),
            }
        }
    }
}
