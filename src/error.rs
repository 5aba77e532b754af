//! `Error`: what stops the program, as opposed to [`crate::flow::Fault`], which is one bad row.
//!
//! An error says what was tried, on which path or id, and how to mend it; its [`Kind`] alone decides
//! the exit code (`design.md` §4). Text that came from a server or a post is escaped before it is shown.

use std::{fmt, io, path::Path};

use crate::flow::faults::escape_control;

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

#[derive(Debug)]
struct Inner {
    kind: Kind,
    what: String,
    fix: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, what: what.into(), fix: None }))
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
            return Self(Box::new(Inner { kind: inner.0.kind, what: inner.0.what.clone(), fix: inner.0.fix.clone() }));
        }
        Self::new(Kind::Io, format!("{operation} {}: {source}", path.as_ref().display()))
    }

    /// Adds the sentence that tells the user what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.0.fix = Some(fix.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened, and how to mend it.
    pub fn parts(&self) -> (&str, Option<&str>) {
        (&self.0.what, self.0.fix.as_deref())
    }

    /// All of it in one line, for a list of them.
    pub fn line(&self) -> String {
        let fix = self.0.fix.as_ref().map(|fix| format!(": {fix}")).unwrap_or_default();
        escape_control(&format!("{}{fix}", self.0.what))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        match &self.0.fix {
            Some(fix) => write!(f, "\n  fix: {fix}"),
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
