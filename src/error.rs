//! `Error`: what stops the program, as opposed to [`crate::flow::Fault`], which is one bad row.
//!
//! An error says what was tried, on which path or id, and how to mend it; its [`Kind`] alone decides
//! the exit code (`README.md`, Exit codes). Text that came from a server or a post is escaped before it is shown.

use std::{fmt, io, path::Path};

use crate::text::escape_control;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The classes a script can tell apart, by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wrong flags or arguments.
    Usage,
    /// Bad input, configuration or state.
    Input,
    /// The provider cannot be reached, or refuses for account, quota or model.
    Unavailable,
    /// The file system refused.
    Io,
    /// Something remains to be done: the same command, later, goes on.
    TryAgain,
    /// No key, a wrong key, or no permission.
    Key,
    /// Ended by a signal.
    Interrupted(i32),
    /// The reader of our output went away: a quiet end.
    ClosedPipe,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Input => 65,
            Self::Unavailable => 69,
            Self::Io => 74,
            Self::TryAgain => 75,
            Self::Key => 77,
            Self::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(130),
            Self::ClosedPipe => 0,
        }
    }
}

/// What stopped the program. Boxed, so that `Result<T>` stays small on the hot paths.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: Kind,
    what: String,
    /// Further lines below it.
    more: Vec<String>,
    fix: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, what: what.into(), more: Vec::new(), fix: None }))
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Kind::Input, what)
    }

    /// An operation on a path that the system refused; a broken pipe becomes [`Kind::ClosedPipe`].
    pub fn io(operation: &str, path: impl AsRef<Path>, source: &io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Kind::ClosedPipe, "the output was closed");
        }
        // An error of ours that travelled through `Read` or `Write` comes out as it went in.
        if let Some(inner) = source.get_ref().and_then(|e| e.downcast_ref::<Self>()) {
            return Self(inner.0.clone());
        }
        Self::new(Kind::Io, format!("{operation} {}: {source}", path.as_ref().display()))
    }

    /// Adds the sentence that tells the user what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.0.fix = Some(fix.into());
        self
    }

    /// Adds lines below the first.
    #[must_use]
    pub fn lines(mut self, more: Vec<String>) -> Self {
        self.0.more = more;
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened, and how to mend it; each harmless on one line.
    pub fn parts(&self) -> (String, Option<String>) {
        let what: Vec<&str> = [&self.0.what].into_iter().chain(&self.0.more).map(String::as_str).collect();
        (escape_control(&what.join(": ")), self.0.fix.as_deref().map(escape_control))
    }

    /// All of it in one line, for a list of them.
    pub fn line(&self) -> String {
        match self.parts() {
            (what, Some(fix)) => format!("{what}: {fix}"),
            (what, None) => what,
        }
    }
}

/// Whatever a name or a text holds, it begins no line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_control(&self.0.what))?;
        self.0.more.iter().try_for_each(|line| write!(f, "\n  {}", escape_control(line)))?;
        match &self.0.fix {
            Some(fix) => write!(f, "\n  fix: {}", escape_control(fix)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Lets an [`Error`] travel through `Read` and `Write`; [`Error::io`] takes it out again.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let codes =
            [Kind::Usage, Kind::Input, Kind::Unavailable, Kind::Io, Kind::TryAgain, Kind::Key].map(Kind::exit_code);
        assert_eq!(codes, [64, 65, 69, 74, 75, 77]);
        assert_eq!(Kind::Interrupted(2).exit_code(), 130);
        assert_eq!(Kind::Interrupted(15).exit_code(), 143);
    }

    #[test]
    fn an_error_survives_the_trip_through_io() {
        let error: io::Error = Error::input("element 3").fix("mend it").into();
        let back = Error::io("read", "posts.json", &error);
        assert_eq!((back.kind(), back.to_string().as_str()), (Kind::Input, "element 3\n  fix: mend it"));
    }
}
