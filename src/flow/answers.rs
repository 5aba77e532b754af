//! Result lines → answers. A model's text is read leniently and judged strictly.
//!
//! A text counts only if it *is* the answer, or says in known words (`data/answers.json`) that what follows is the
//! answer; never because a label, a number or a list occurs in it. The steps: which text ([`results`]); wrapping is taken
//! off ([`wrapping`]); the whole is a value ([`values`]), after small damage was mended ([`mend`]); else a block of its own
//! at the end, or what a sentence of known words introduces ([`steps`]). Anything else is a fault.
//!
//! The usual text (`3`, `["支持"]`, a label) is read without an allocation: values go into a [`Tape`] that is used
//! again for the next line.
//!
//! [`results`]: super::results

mod mend;
mod steps;
mod tape;
mod values;
mod words;
mod wrapping;

use std::borrow::Cow;

use steps::Reading;
use tape::Tape;
use values::quoted;

use super::{
    CustomId, Fault, FaultKind, PostIndex,
    results::{Usage, find_custom_id, parse_result},
};
use crate::analysis::{Analysis, AnalysisSet, AnswerRule};

/// How an answer had to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// As asked for: nothing but the value.
    Strict,
    /// Within thinking, a fence, quotes, punctuation and the like.
    Wrapped,
    /// A block of its own at the end of a text, or before a reason.
    Block,
    /// After known words that say that it is the answer.
    Introduced,
    /// The whole text, after small damage to its JSON was mended.
    Mended,
}

impl Rung {
    pub const ALL: [Self; 5] = [Self::Strict, Self::Wrapped, Self::Block, Self::Introduced, Self::Mended];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Wrapped => "wrapped",
            Self::Block => "block",
            Self::Introduced => "introduced",
            Self::Mended => "mended",
        }
    }
}

/// How an answer was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub rung: Rung,
    /// Labels that were left out since no list knows them.
    pub unknown_labels: u32,
}

/// What is asked: the rule of the answer, and what the answer may be called.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'r> {
    rule: &'r AnswerRule,
    /// The name of the analysis and its field.
    names: [&'r str; 2],
}

impl<'r> From<&'r Analysis> for Asked<'r> {
    fn from(analysis: &'r Analysis) -> Self {
        Self { rule: &analysis.rule, names: [&analysis.name, &analysis.field] }
    }
}

impl<'r> From<&'r AnswerRule> for Asked<'r> {
    fn from(rule: &'r AnswerRule) -> Self {
        Self { rule, names: [""; 2] }
    }
}

/// Judges one text of a model that had finished: the accepted value is appended to `out` as compact JSON; of a fault
/// nothing is.
///
/// # Errors
/// `empty`, `unreadable` or `not_accepted`.
pub fn judge<'r>(asked: impl Into<Asked<'r>>, text: &str, out: &mut Vec<u8>) -> Result<Judged, Fault> {
    Judge::default().judge(asked.into(), text, out)
}

/// Judges texts one after another, reusing its buffers.
#[derive(Debug, Default)]
pub struct Judge {
    tape: Tape,
    /// Labels accepted so far, by number: (label, 0) or (parent, child).
    picked: Vec<(u32, u32)>,
}

impl Judge {
    /// See [`judge`].
    ///
    /// # Errors
    /// `empty`, `unreadable` or `not_accepted`.
    pub fn judge(&mut self, asked: Asked<'_>, text: &str, out: &mut Vec<u8>) -> Result<Judged, Fault> {
        let start = out.len();
        let judged = Reading { judge: self, asked, out }.read(text);
        if judged.is_err() {
            out.truncate(start);
        }
        judged
    }
}

/// A line of a results file as [`AnswerReader::read`] found it.
#[derive(Debug, PartialEq)]
pub enum Outcome<'a> {
    Answer {
        index: PostIndex,
        /// Place in the set.
        analysis: usize,
        /// Compact JSON.
        value: &'a [u8],
        judged: Judged,
        usage: Option<Usage>,
        /// Lone surrogates in the text that became U+FFFD.
        surrogates: u64,
    },
    Fault {
        /// `None`: the row is not known.
        index: Option<PostIndex>,
        /// Place in the set, if the name is in it.
        analysis: Option<usize>,
        /// The name in the custom_id, known or not.
        name: Option<Cow<'a, str>>,
        fault: Fault,
        /// The model's text, if it can be read.
        text: Option<&'a str>,
        /// Tokens that the row was billed for; `None` also if the analysis is not known.
        usage: Option<Usage>,
        surrogates: u64,
    },
}

impl Outcome<'_> {
    /// A fault of a line that belongs to no row.
    pub fn unplaced(fault: Fault) -> Self {
        Self::Fault { index: None, analysis: None, name: None, fault, text: None, usage: None, surrogates: 0 }
    }
}

/// Reads result lines one after another, reusing its buffers; each thread has its own.
#[derive(Debug)]
pub struct AnswerReader<'s> {
    set: &'s AnalysisSet,
    judge: Judge,
    text: String,
    value: Vec<u8>,
}

/// A name beyond this is no analysis of anybody: it would only grow what tells of it.
const LONGEST_NAME: usize = 256;
/// Buffers larger than this are given back after the line that needed them.
const KEPT_BUFFER: usize = 1 << 20;

impl<'s> AnswerReader<'s> {
    pub fn new(set: &'s AnalysisSet) -> Self {
        Self { set, judge: Judge::default(), text: String::new(), value: Vec::new() }
    }

    /// Reads one line. It counts nothing: the caller does, with [`Tally::count`](super::tally::Tally::count).
    pub fn read<'a>(&'a mut self, line: &'a [u8]) -> Outcome<'a> {
        let read = parse_result(line);
        let custom_id = match &read {
            Ok(line) => Some(line.custom_id.as_ref()),
            Err(_) => find_custom_id(line),
        };
        let unknown = |why: &str| {
            Fault::new(FaultKind::UnknownId, format!("custom_id {}: {why}", quoted(custom_id.unwrap_or_default())))
        };
        let id = custom_id.and_then(CustomId::parse).filter(|id| id.analysis.len() <= LONGEST_NAME);
        let analysis = id.and_then(|id| self.set.find(id.analysis));
        let known = analysis.and_then(|at| Some((at, self.set.list.get(at)?)));
        let (Some(id), Some((analysis, known))) = (id, known) else {
            let form = custom_id.is_some_and(|id| CustomId::parse(id).is_none());
            let why = if form { "not of the form ANALYSIS_INDEX" } else { "no such analysis in force" };
            let fault = read.as_ref().map_or_else(Clone::clone, |_| unknown(why));
            // An id in a line that cannot be read is not worth much: only one of a row that may be ours is.
            let id = id.filter(|_| read.is_ok());
            return Outcome::Fault {
                index: id.map(|id| id.index),
                analysis: None,
                name: id.map(|id| Cow::Owned(id.analysis.to_owned())),
                fault,
                text: None,
                usage: None,
                surrogates: 0,
            };
        };
        let index = id.index;
        if self.text.capacity() > KEPT_BUFFER {
            self.text = String::new();
        }
        self.value.clear();
        let mut surrogates = 0;
        let (judged, text, usage) = match read {
            Err(fault) => (Err(fault), None, None),
            Ok(line) => match line.content {
                Ok(content) => {
                    let text = content.decode(&mut self.text, &mut surrogates);
                    (self.judge.judge(known.into(), text, &mut self.value), Some(text), line.usage)
                }
                Err(fault) => {
                    let text = line.shown.map(|shown| shown.decode(&mut self.text, &mut surrogates));
                    (Err(fault), text, line.usage)
                }
            },
        };
        match judged {
            Ok(judged) => Outcome::Answer { index, analysis, value: &self.value, judged, usage, surrogates },
            Err(fault) => {
                let name = Some(Cow::Borrowed(known.name.as_str()));
                Outcome::Fault { index: Some(index), analysis: Some(analysis), name, fault, text, usage, surrogates }
            }
        }
    }
}

#[cfg(test)]
mod tests;
