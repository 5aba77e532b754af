//! Result lines → answers. A model's text is read leniently and judged strictly.
//!
//! Reading climbs a ladder: the text as it is; without its thinking; what stands in a code fence; the one value or
//! label among other words; the same with light fixes. The first rung that yields something readable decides, and
//! what it read must then be acceptable to the analysis' rule in full. Nothing is guessed: two different answers,
//! a label that is only mentioned, a value that was cut off are faults (`design.md` §2).
//!
//! The usual text (`3`, `["支持"]`, a label) is read without an allocation: values go into a [`Tape`] that is used
//! again for the next line.

mod ladder;
mod tape;

use std::borrow::Cow;

use ladder::Judging;
use tape::{Node, Number, Tape};

use super::{
    CustomId, Fault, FaultKind, PostIndex,
    results::{Usage, parse_result},
};
use crate::{
    analysis::{AnalysisSet, AnswerRule, LabelSet, LabelTree},
    flow::tally::Tally,
};

/// The rung of the ladder that read an answer: how much had to be taken away before it was JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// As asked for: nothing but the value.
    Strict,
    /// After taking away `<think>…</think>`.
    Thinking,
    /// In a code fence.
    Fenced,
    /// The first balanced value, or the one label, among other words.
    Embedded,
    /// After light fixes: trailing comma, quotes, full-width signs, raw line breaks.
    Mended,
}

impl Rung {
    pub const ALL: [Self; 5] = [Self::Strict, Self::Thinking, Self::Fenced, Self::Embedded, Self::Mended];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Thinking => "thinking",
            Self::Fenced => "fenced",
            Self::Embedded => "embedded",
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

/// Judges one text: the accepted value is appended to `out` as compact JSON; of a fault nothing is.
///
/// # Errors
/// `empty`, `unreadable` or `not_accepted`.
pub fn judge(rule: &AnswerRule, text: &str, out: &mut Vec<u8>) -> Result<Judged, Fault> {
    Judge::default().judge(rule, text, out)
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
    pub fn judge(&mut self, rule: &AnswerRule, text: &str, out: &mut Vec<u8>) -> Result<Judged, Fault> {
        let start = out.len();
        let judged = Judging { judge: self, rule, out, start }.climb(text);
        if judged.is_err() {
            out.truncate(start);
        }
        judged
    }
}

/// What the rule says about something that could be read.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Its value was appended to the output.
    Accepted { unknown_labels: u32 },
    /// Of the right shape, but not acceptable.
    Refused(String),
    /// Something else altogether.
    Foreign(String),
}

/// Labels in a text of which none is known are named in the fault; so many, and each so long, at most.
const NAMED: usize = 5;
const NAMED_CHARS: usize = 40;

/// Labels that no list knows, counted; the first are kept for the fault.
#[derive(Default)]
struct Unknown {
    count: u32,
    names: String,
}

impl Unknown {
    fn add(&mut self, name: &str) {
        if (self.count as usize) < NAMED {
            if !self.names.is_empty() {
                self.names.push_str(", ");
            }
            self.names += &quoted(name);
        }
        self.count = self.count.saturating_add(1);
    }

    fn describe(&self) -> String {
        let more = if self.count as usize > NAMED { ", …" } else { "" };
        format!("not in the list: {}{more}", self.names)
    }
}

/// A piece of the model's text, bounded and safe to show.
fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(NAMED_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", super::faults::escape_control(&short))
}

impl Judge {
    /// Judges what is on the tape.
    fn judge_tape(&mut self, rule: &AnswerRule, out: &mut Vec<u8>) -> Verdict {
        self.picked.clear();
        match rule {
            AnswerRule::Integer { min, max, keys } => self.judge_integer((*min, *max), keys, out),
            AnswerRule::Label { labels } => self.judge_labels(labels, 1, 1, true, out),
            AnswerRule::Labels { labels, min, max } => self.judge_labels(labels, *min, *max, false, out),
            AnswerRule::Pairs { parent, child, child_list, tree, min, max } => {
                let pairs = Pairs { parent, child, child_list: *child_list, tree, min: *min, max: *max };
                pairs.judge(&self.tape, &mut self.picked, out)
            }
        }
    }

    /// A number, one in quotes, one in an array of its own, or the value of one of the keys.
    fn judge_integer(&self, range: (i64, i64), keys: &[String], out: &mut Vec<u8>) -> Verdict {
        let mut at = 0;
        if self.tape.is_map(at) {
            let mut values = self.tape.entries(at).filter(|(key, _)| keys.iter().any(|known| known == key));
            let Some((_, value)) = values.next() else {
                return Verdict::Foreign("an object without the key of this answer".to_owned());
            };
            if values.next().is_some() {
                return Verdict::Refused("an object with more than one answer".to_owned());
            }
            at = value;
        }
        if self.tape.is_list(at) {
            let mut elements = self.tape.elements(at);
            match (elements.next(), elements.next()) {
                (Some(only), None) => at = only,
                _ => return Verdict::Foreign("an array, not one number".to_owned()),
            }
        }
        match self.tape.node(at) {
            Some(Node::Number(Number::Whole(number))) => accept_integer(number, range, out),
            Some(Node::Number(Number::Other)) => Verdict::Refused("not a whole number".to_owned()),
            Some(Node::Text { .. }) => {
                let text = self.tape.text(at).trim();
                match ladder::whole_integer(text) {
                    Some(number) => accept_integer(number, range, out),
                    None => Verdict::Refused(format!("{} is not a whole number", quoted(text))),
                }
            }
            _ => Verdict::Foreign("not a number".to_owned()),
        }
    }

    /// `single`: the value is one string, not an array.
    fn judge_labels(&mut self, labels: &LabelSet, min: usize, max: usize, single: bool, out: &mut Vec<u8>) -> Verdict {
        let tape = &self.tape;
        let mut unknown = Unknown::default();
        let at = tape.unwrap(0, None);
        let mut add = |at: usize, unknown: &mut Unknown| {
            let is_text = matches!(tape.node(at), Some(Node::Text { .. }));
            if is_text {
                add_labels(tape.text(at), labels, single, &mut self.picked, unknown);
            }
            is_text
        };
        if !each(tape, at, &mut unknown, &mut add) {
            return Verdict::Foreign("not a label, nor an array of labels".to_owned());
        }
        accept_labels(&self.picked, &unknown, labels, (min, max), single, out)
    }
}

/// Adds a value, or each element of an array. An element of the wrong shape is left out like an unknown label;
/// `false` if there is nothing else.
fn each(tape: &Tape, at: usize, unknown: &mut Unknown, add: &mut dyn FnMut(usize, &mut Unknown) -> bool) -> bool {
    if !tape.is_list(at) {
        return add(at, unknown);
    }
    let (mut fits, mut strangers) = (0_u32, 0_u32);
    for element in tape.elements(at) {
        if add(element, unknown) {
            fits += 1;
        } else {
            strangers += 1;
        }
    }
    for _ in 0..strangers {
        unknown.add("a value of another shape");
    }
    fits > 0 || strangers == 0
}

fn accept_integer(number: i64, (min, max): (i64, i64), out: &mut Vec<u8>) -> Verdict {
    if !(min..=max).contains(&number) {
        return Verdict::Refused(format!("{number} is not from {min} to {max}"));
    }
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    Verdict::Accepted { unknown_labels: 0 }
}

/// A label, or several in one string; each counts once.
fn add_labels(text: &str, labels: &LabelSet, single: bool, picked: &mut Vec<(u32, u32)>, unknown: &mut Unknown) {
    let find = |text: &str| labels.find(text).or_else(|| labels.find(ladder::strip_marks(text)));
    let mut pick = |id: u32| {
        if !picked.contains(&(id, 0)) {
            picked.push((id, 0));
        }
    };
    let text = text.trim();
    if let Some(id) = find(text) {
        return pick(id);
    }
    if single || !text.split(ladder::SEPARATORS).any(|piece| find(piece.trim()).is_some()) {
        return unknown.add(text);
    }
    for piece in text.split(ladder::SEPARATORS).map(str::trim).filter(|piece| !piece.is_empty()) {
        match find(piece) {
            Some(id) => pick(id),
            None => unknown.add(piece),
        }
    }
}

fn accept_labels(
    picked: &[(u32, u32)],
    unknown: &Unknown,
    labels: &LabelSet,
    (min, max): (usize, usize),
    single: bool,
    out: &mut Vec<u8>,
) -> Verdict {
    if let Some(refused) = refuse_count(picked.len(), unknown, (min, max)) {
        return refused;
    }
    // One label beside unknown ones is a list, and no list was asked for.
    if single && unknown.count > 0 {
        return Verdict::Refused(unknown.describe());
    }
    let names = picked.iter().map(|(id, _)| labels.json(*id));
    if single {
        names.for_each(|name| out.extend_from_slice(name.as_bytes()));
    } else {
        push_list(out, names);
    }
    Verdict::Accepted { unknown_labels: unknown.count }
}

fn refuse_count(count: usize, unknown: &Unknown, (min, max): (usize, usize)) -> Option<Verdict> {
    if count == 0 && unknown.count > 0 {
        return Some(Verdict::Refused(unknown.describe()));
    }
    if count > max {
        return Some(Verdict::Refused(format!("{count} labels; at most {max} may be given")));
    }
    (count < min).then(|| Verdict::Refused(format!("{count} labels; at least {min} must be given")))
}

fn push_json(out: &mut Vec<u8>, text: &str) {
    // Serialising a string into a Vec cannot fail.
    let _infallible = serde_json::to_writer(&mut *out, text);
}

/// `names` are JSON already.
fn push_list<'a>(out: &mut Vec<u8>, names: impl Iterator<Item = &'a str>) {
    out.push(b'[');
    for (place, name) in names.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
    }
    out.push(b']');
}

/// `AnswerRule::Pairs`, taken apart.
struct Pairs<'r> {
    parent: &'r str,
    child: &'r str,
    child_list: bool,
    tree: &'r LabelTree,
    min: usize,
    max: usize,
}

impl Pairs<'_> {
    fn judge(&self, tape: &Tape, picked: &mut Vec<(u32, u32)>, out: &mut Vec<u8>) -> Verdict {
        let mut unknown = Unknown::default();
        let at = tape.unwrap(0, Some(self.parent));
        let mut add = |at: usize, unknown: &mut Unknown| self.add(tape, at, picked, unknown);
        if !each(tape, at, &mut unknown, &mut add) {
            return Verdict::Foreign(format!("not objects with `{}` and `{}`", self.parent, self.child));
        }
        // A parent with several children is one object if its children are a list.
        let is_first = |place: usize, parent: u32| !picked.iter().take(place).any(|(known, _)| *known == parent);
        let heads =
            || picked.iter().enumerate().filter(|(place, (parent, _))| !self.child_list || is_first(*place, *parent));
        if let Some(refused) = refuse_count(heads().count(), &unknown, (self.min, self.max)) {
            return refused;
        }
        out.push(b'[');
        for (place, (_, (parent, child))) in heads().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            out.push(b'{');
            push_json(out, self.parent);
            out.push(b':');
            out.extend_from_slice(self.tree.parents.json(*parent).as_bytes());
            out.push(b',');
            push_json(out, self.child);
            out.push(b':');
            let Some(names) = self.tree.children.get(*parent as usize) else { continue };
            if self.child_list {
                let children = picked.iter().filter(|(other, _)| other == parent);
                push_list(out, children.map(|(_, child)| names.json(*child)));
            } else {
                out.extend_from_slice(names.json(*child).as_bytes());
            }
            out.push(b'}');
        }
        out.push(b']');
        Verdict::Accepted { unknown_labels: unknown.count }
    }

    /// One object; `false` if it is none with the two keys.
    fn add(&self, tape: &Tape, at: usize, picked: &mut Vec<(u32, u32)>, unknown: &mut Unknown) -> bool {
        if !tape.is_map(at) {
            return false;
        }
        // Of a key that occurs twice the last counts, as everywhere.
        let value = |name: &str| tape.entries(at).filter(|(key, _)| *key == name).last().map(|(_, value)| value);
        let (Some(parent), Some(child)) = (value(self.parent), value(self.child)) else { return false };
        let parent_name = tape.text(parent).trim();
        let Some(id) = self.tree.parents.find(parent_name) else {
            unknown.add(parent_name);
            return true;
        };
        let children = self.tree.children.get(id as usize);
        let mut add = |at: usize| {
            let name = tape.text(at).trim();
            match children.and_then(|children| children.find(name)) {
                Some(child) if picked.contains(&(id, child)) => {}
                Some(child) => picked.push((id, child)),
                None => unknown.add(&format!("{parent_name}/{name}")),
            }
        };
        match tape.node(child) {
            // A parent alone says nothing.
            Some(Node::List { .. }) if tape.elements(child).next().is_none() => unknown.add(parent_name),
            Some(Node::List { .. }) => tape.elements(child).for_each(add),
            _ => add(child),
        }
        true
    }
}

/// What one line of a results file came to.
#[derive(Debug, PartialEq)]
pub enum Outcome<'a> {
    Answer {
        index: PostIndex,
        /// Place in the set.
        analysis: usize,
        /// Compact JSON.
        value: &'a [u8],
        usage: Option<Usage>,
    },
    Fault {
        /// `None`: the row is not known.
        index: Option<PostIndex>,
        /// Place in the set, if the name is in it.
        analysis: Option<usize>,
        /// The name in the custom_id, known or not.
        name: Option<Cow<'a, str>>,
        fault: Fault,
    },
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

    /// Counts rows, answers and tokens into `tally`; a fault is for the caller to count, who knows its place.
    pub fn read<'a>(&'a mut self, line: &'a [u8], tally: &mut Tally) -> Outcome<'a> {
        let unplaced = |fault| Outcome::Fault { index: None, analysis: None, name: None, fault };
        let line = match parse_result(line) {
            Ok(line) => line,
            Err(fault) => return unplaced(fault),
        };
        let unknown =
            |why: &str| Fault::new(FaultKind::UnknownId, format!("custom_id {}: {why}", quoted(&line.custom_id)));
        let Some(id) = CustomId::parse(&line.custom_id) else {
            return unplaced(unknown("not of the form ANALYSIS_INDEX"));
        };
        let index = id.index;
        if id.analysis.len() > LONGEST_NAME {
            return unplaced(unknown("no such analysis in force"));
        }
        let Some(analysis) = self.set.find(id.analysis) else {
            let fault = unknown("no such analysis in force");
            return Outcome::Fault {
                index: Some(index),
                analysis: None,
                name: Some(id.analysis.to_owned().into()),
                fault,
            };
        };
        let (Some(known), Some(counts)) = (self.set.list.get(analysis), tally.analyses.get_mut(analysis)) else {
            return unplaced(unknown("no such analysis in force"));
        };
        counts.rows += 1;
        // What went wrong was billed, too.
        if let Some(usage) = line.usage {
            counts.usage.add(usage);
        }
        if self.text.capacity() > KEPT_BUFFER {
            self.text = String::new();
        }
        self.value.clear();
        let judged = match line.content {
            Ok(content) => {
                let text = content.decode(&mut self.text, &mut tally.surrogates);
                self.judge.judge(&known.rule, text, &mut self.value)
            }
            Err(fault) => Err(fault),
        };
        match judged {
            Ok(judged) => {
                counts.answers += 1;
                if let Some(count) = counts.rungs.get_mut(judged.rung as usize) {
                    *count += 1;
                }
                counts.unknown_labels += u64::from(judged.unknown_labels);
                Outcome::Answer { index, analysis, value: &self.value, usage: line.usage }
            }
            Err(fault) => Outcome::Fault {
                index: Some(index),
                analysis: Some(analysis),
                name: Some(Cow::Borrowed(self.set.list.get(analysis).map_or("", |known| &known.name))),
                fault,
            },
        }
    }
}

#[cfg(test)]
mod tests;
