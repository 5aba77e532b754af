//! The one complete command to run next, as a POSIX shell reads it.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;

use crate::{
    cli::{Cli, Typed},
    shell,
};

#[derive(Debug)]
pub struct NextCommand(String);

impl NextCommand {
    /// `verb`: the program's name, the verb and flags without values.
    pub fn new(verb: &str) -> Self {
        Self(verb.to_owned())
    }

    pub fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.0.push(' ');
        self.0 += &shell::word(word);
        self
    }

    /// A file or directory that stands alone.
    pub fn operand(mut self, path: &Path) -> Self {
        self.0.push(' ');
        self.0 += &shell::path(path);
        self
    }

    /// A flag and its value, if it has one.
    pub fn flag(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.word(name).word(value),
            None => self,
        }
    }

    /// A flag and its file or directory, if it has one.
    pub fn path(self, name: &str, path: Option<&Path>) -> Self {
        match path {
            Some(path) => self.word(name).operand(path),
            None => self,
        }
    }

    /// A flag that is given once for each value.
    pub fn paths<'a>(self, name: &str, paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        paths.into_iter().fold(self, |command, path| command.path(name, Some(path)))
    }

    /// All flags of `verb` that were typed, but for `others`, which the caller gives or leaves out for a reason. So a flag
    /// that is new is repeated until somebody decides otherwise.
    pub fn typed(mut self, verb: &str, typed: &Typed, others: &[&str]) -> Self {
        let cli = Cli::command();
        for arg in cli.find_subcommand(verb).into_iter().flat_map(clap::Command::get_arguments) {
            let id = arg.get_id().as_str();
            let values = typed.0.iter().find(|(typed, _)| typed == id).map(|(_, values)| values.as_slice());
            let (Some(long), Some(values)) = (arg.get_long(), values.filter(|_| !others.contains(&id))) else {
                continue;
            };
            // The user had looked at the provider's console then; each use of it may pay once more.
            if id == "on_ambiguous" && values.iter().any(|value| value == "again") {
                continue;
            }
            let flag = format!("--{long}");
            self = match arg.get_value_delimiter() {
                _ if !arg.get_action().takes_values() => self.word(&flag),
                Some(delimiter) => self.word(&flag).word(values.join(OsStr::new(delimiter.encode_utf8(&mut [0; 4])))),
                None => values.iter().fold(self, |command, value| match value.as_bytes() {
                    [b'-', _, ..] => command.word([OsStr::new(&flag), value].join(OsStr::new("="))),
                    _ => command.word(&flag).word(value),
                }),
            };
        }
        self
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{cli::Verb, cmd::run::OF_A_ROUND};

    #[test]
    fn words_are_quoted_where_a_shell_would_read_more_into_them() {
        let command = NextCommand::new("zbatch gen")
            .operand(Path::new("-o'ut $x"))
            .path("-d", Some(Path::new("-d")))
            .path("-x", None);
        assert_eq!(command.into_text(), r"zbatch gen './-o'\''ut $x' -d ./-d");
    }

    /// Every flag of `run`, each with a value that it takes.
    fn every_flag() -> Vec<(String, Vec<String>)> {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").expect("a verb");
        let flags = run.get_arguments().filter_map(|arg| Some((arg, arg.get_long()?)));
        flags
            .map(|(arg, long)| {
                let flag = format!("--{long}");
                if !arg.get_action().takes_values() {
                    return (arg.get_id().to_string(), vec![flag]);
                }
                let words = arg.get_possible_values().into_iter().map(|value| value.get_name().to_owned());
                let value = words
                    .chain(["1", "1s", "x"].map(str::to_owned))
                    .find(|value| Cli::try_parse_from(["zbatch", "run", "posts", &flag, value]).is_ok());
                (arg.get_id().to_string(), vec![flag, value.expect("a value that it takes")])
            })
            .collect()
    }

    /// A trial ran the `next:` of a job with --upstream, and invented answers took the place of real ones.
    #[test]
    fn r10_5_every_flag_of_run_is_repeated_or_listed() {
        let flags = every_flag();
        assert!(flags.len() > 35, "{flags:?}");
        let words = flags.iter().flat_map(|(_, words)| words.iter().map(String::as_str));
        let cli = Cli::try_parse_from(["zbatch", "run", "posts"].into_iter().chain(words)).expect("parsed");
        let Verb::Run(args) = cli.verb else { panic!("it is a run") };
        let text = NextCommand::new("zbatch run").typed("run", &args.typed, &OF_A_ROUND).into_text() + " ";
        for (id, words) in &flags {
            let repeated = text.contains(&format!(" {} ", words.join(" ")));
            assert_ne!(repeated, OF_A_ROUND.contains(&id.as_str()), "{id}: {text}");
        }
    }
}
