//! The one complete command to run next, as a POSIX shell reads it.

use std::path::{Path, PathBuf};

use crate::{cli::SourceArgs, units::shell_word};

#[derive(Debug)]
pub struct NextCommand(String);

impl NextCommand {
    /// `verb`: the program's name, the verb and flags without values.
    pub fn new(verb: &str) -> Self {
        Self(verb.to_owned())
    }

    pub fn word(mut self, word: &str) -> Self {
        self.0.push(' ');
        self.0 += &shell_word(word);
        self
    }

    /// A flag and its value, if it has one.
    pub fn flag(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.word(name).word(value),
            None => self,
        }
    }

    pub fn path(self, name: &str, path: Option<&Path>) -> Self {
        self.flag(name, path.map(|path| path.display().to_string()).as_deref())
    }

    /// A flag that is given once for each value.
    pub fn paths<'a>(self, name: &str, paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        paths.into_iter().fold(self, |command, path| command.path(name, Some(path)))
    }

    /// The same analyses, from the same places, for the same indexes.
    pub fn source(self, source: &SourceArgs, start_index: u64) -> Self {
        let only = (!source.only.is_empty()).then(|| source.only.join(","));
        let start_index = (start_index > 0).then(|| start_index.to_string());
        self.path("--config", source.config.as_deref())
            .path("--data-dir", source.data_dir.as_deref())
            .path("--analyses", source.analyses.as_deref())
            .flag("--only", only.as_deref())
            .flag("--start-index", start_index.as_deref())
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_more_into_them() {
        let command = NextCommand::new("zbatch gen").word("o'ut $x.jsonl").flag("--only", Some("a,b")).flag("-x", None);
        assert_eq!(command.into_text(), r"zbatch gen 'o'\''ut $x.jsonl' --only a,b");
    }
}
