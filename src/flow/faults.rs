//! Faults: rows that went wrong, as data. A fault names its row and its reason, is counted, and goes to
//! the faults file (`--faults`); the stream goes on.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{console::Console, error::Result, lines::output::Output, text::escape_control, units::count};

/// The stable kinds of `docs/formats.md`. Scripts match on them: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    BadPost,
    TooLarge,
    Image,
    BadRequest,
    BadLine,
    Foreign,
    UnknownId,
    Conflict,
    Provider,
    Blocked,
    PromptTooLong,
    Truncated,
    Empty,
    Unreadable,
    NotAccepted,
    Absent,
}

impl FaultKind {
    pub const ALL: [Self; 16] = [
        Self::BadPost,
        Self::TooLarge,
        Self::Image,
        Self::BadRequest,
        Self::BadLine,
        Self::Foreign,
        Self::UnknownId,
        Self::Conflict,
        Self::Provider,
        Self::Blocked,
        Self::PromptTooLong,
        Self::Truncated,
        Self::Empty,
        Self::Unreadable,
        Self::NotAccepted,
        Self::Absent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadPost => "bad_post",
            Self::TooLarge => "too_large",
            Self::Image => "image",
            Self::BadRequest => "bad_request",
            Self::BadLine => "bad_line",
            Self::Foreign => "foreign",
            Self::UnknownId => "unknown_id",
            Self::Conflict => "conflict",
            Self::Provider => "provider",
            Self::Blocked => "blocked",
            Self::PromptTooLong => "prompt_too_long",
            Self::Truncated => "truncated",
            Self::Empty => "empty",
            Self::Unreadable => "unreadable",
            Self::NotAccepted => "not_accepted",
            Self::Absent => "absent",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Asking again would give the same fault, so `--skip` leaves such rows out.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Blocked | Self::PromptTooLong | Self::TooLarge | Self::BadPost | Self::BadRequest)
    }
}

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub detail: String,
}

impl Fault {
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// One line of the faults file: a fault and where it was found. Fields that are not known are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultLine {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub analysis: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// 1-based.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u64>,
    /// Bytes from the start of the (decompressed) file to the line.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<u64>,
    pub kind: FaultKind,
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub excerpt: Option<String>,
}

impl FaultLine {
    pub fn new(fault: Fault) -> Self {
        Self {
            index: None,
            analysis: None,
            file: None,
            line: None,
            offset: None,
            kind: fault.kind,
            detail: fault.detail,
            excerpt: None,
        }
    }

    pub fn write_to(&self, out: &mut Vec<u8>) {
        // Serialising strings and integers into a Vec cannot fail.
        if serde_json::to_writer(&mut *out, self).is_ok() {
            out.push(b'\n');
        }
    }

    /// The line as people read it on stderr.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut sep = "";
        let mut part = |text: &mut String, piece: std::fmt::Arguments<'_>| {
            let _infallible = write!(text, "{sep}{piece}");
            sep = " ";
        };
        if let Some(file) = &self.file {
            part(&mut text, format_args!("{}", escape_control(file)));
        }
        if let Some(line) = self.line {
            part(&mut text, format_args!("line {line}"));
        }
        if let Some(index) = self.index {
            part(&mut text, format_args!("index {index}"));
        }
        if let Some(analysis) = &self.analysis {
            part(&mut text, format_args!("{}", escape_control(analysis)));
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        let _infallible = write!(text, "{}: {}", self.kind.as_str(), escape_control(&self.detail));
        if let Some(excerpt) = &self.excerpt {
            let _infallible = write!(text, " | {}", escape_control(excerpt));
        }
        text
    }
}

/// Faults shown on stderr when no faults file was asked for.
const SHOWN: usize = 5;

/// Where a verb's faults go: to the faults file if one was asked for; counted, and the first kept, in any case.
#[derive(Debug)]
pub struct FaultLog {
    output: Option<Output>,
    path: Option<PathBuf>,
    first: Vec<FaultLine>,
    total: u64,
    line: Vec<u8>,
}

impl FaultLog {
    pub fn create(path: Option<&Path>) -> Result<Self> {
        let output = path.map(|path| Output::create(Some(path))).transpose()?;
        Ok(Self { output, path: path.map(Path::to_owned), first: Vec::new(), total: 0, line: Vec::new() })
    }

    pub fn add(&mut self, fault: &FaultLine) -> Result<()> {
        self.total += 1;
        if self.first.len() < SHOWN {
            self.first.push(fault.clone());
        }
        if let Some(output) = &mut self.output {
            self.line.clear();
            fault.write_to(&mut self.line);
            output.put(&self.line)?;
        }
        Ok(())
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// Makes the faults file appear. The counts stay readable.
    pub fn commit(&mut self) -> Result<()> {
        self.output.take().map_or(Ok(()), Output::commit)
    }

    /// The first fault, if there is one.
    pub fn first(&self) -> Option<&FaultLine> {
        self.first.first()
    }

    /// Notes on stderr where the faults are: the name of the faults file, or the first faults if no file was asked for.
    pub fn show(&self, console: &Console) {
        if self.total == 0 {
            return;
        }
        if let Some(path) = &self.path {
            console.note(format_args!("{}: {}", count(self.total, "fault"), path.display()));
            return;
        }
        for fault in &self.first {
            console.note(fault.describe());
        }
        let shown = self.first.len() as u64;
        if self.total > shown {
            console
                .note(format_args!("… and {}; --faults FILE keeps them all", count(self.total - shown, "more fault")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_round_trip_through_their_names() {
        for kind in FaultKind::ALL {
            assert_eq!(FaultKind::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_string(&kind).ok(), Some(format!("\"{}\"", kind.as_str())));
        }
    }
}
