//! A value, as JSON or as bare text, held against the rule of its analysis.

use super::{
    Asked, Judge,
    tape::{Node, Number, Tape},
    words::{own_names, words},
    wrapping::unmarked,
};
use crate::{
    analysis::{AnswerRule, LabelSet, LabelTree},
    text::escape_control,
};

/// What the rule says about something that could be read.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Its value was appended to the output.
    Accepted { unknown_labels: u32 },
    /// Of the right shape, but not acceptable.
    Refused(String),
    /// Something else altogether.
    Foreign(String),
}

/// Labels in a text of which none is known are named in the fault: the first five, each cut to 40 characters.
const NAMED: usize = 5;
const NAMED_CHARS: usize = 40;
/// A longer text is no list of labels, in bytes.
const LONGEST_LIST: usize = 4 << 10;
/// What separates labels in a list that is no JSON, the outermost first.
const JOINERS: [&str; 11] = ["\n", " and ", "、", ",", "，", ";", "；", "以及", "和", "与", "&"];

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
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(NAMED_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", escape_control(&short))
}

pub(super) fn narrow(c: char) -> char {
    match c {
        '０'..='９' => char::from_u32(c as u32 - '０' as u32 + '0' as u32).unwrap_or(c),
        '－' | '−' => '-',
        '．' => '.',
        '／' => '/',
        c => c,
    }
}

impl Judge {
    /// Judges what is on the tape.
    pub(super) fn judge_tape(&mut self, asked: Asked<'_>, out: &mut Vec<u8>) -> Verdict {
        self.picked.clear();
        let Self { tape, picked } = self;
        let judged = match asked.rule {
            AnswerRule::Integer { min, max, .. } => judge_integer(tape, asked, (*min, *max), out),
            AnswerRule::Label { labels } => judge_labels(tape, picked, asked, &Count::one(labels), out),
            AnswerRule::Labels { labels, min, max } => {
                judge_labels(tape, picked, asked, &Count { labels, min: *min, max: *max, single: false }, out)
            }
            AnswerRule::Pairs { parent, child, child_list, tree, min, max } => {
                let pairs = Pairs { parent, child, child_list: *child_list, tree, min: *min, max: *max };
                pairs.judge(tape, asked, picked, out)
            }
        };
        judged.unwrap_or_else(|refused| refused)
    }

    /// A text that is no JSON and nothing but a value; `None` if it is not.
    pub(super) fn judge_bare(&mut self, text: &str, asked: Asked<'_>, out: &mut Vec<u8>) -> Option<Verdict> {
        self.picked.clear();
        let (labels, min) = match asked.rule {
            AnswerRule::Integer { min, max, .. } => {
                return whole_number(text, *max).map(|number| accept_integer(number, (*min, *max), out));
            }
            AnswerRule::Pairs { min, .. } => {
                if text.starts_with('{') && self.tape.read_run(Objects(text)) {
                    return Some(self.judge_tape(asked, out));
                }
                return (*min == 0 && words().says_nothing(text, asked)).then(|| {
                    out.extend_from_slice(b"[]");
                    Verdict::Accepted { unknown_labels: 0 }
                });
            }
            AnswerRule::Label { labels } => {
                self.picked.push((labels.find_like(text)?, 0));
                return Some(accept_labels(&self.picked, &Unknown::default(), &Count::one(labels), out));
            }
            AnswerRule::Labels { labels, min, max } => (Count { labels, min: *min, max: *max, single: false }, *min),
        };
        let is_list = text.len() <= LONGEST_LIST && pick_all(text, labels.labels, &JOINERS, &mut self.picked);
        let is_list = is_list && !self.picked.is_empty() || min == 0 && words().says_nothing(text, asked);
        is_list.then(|| accept_labels(&self.picked, &Unknown::default(), &labels, out))
    }

    /// The text is one label as the list writes it.
    pub(super) fn judge_label(&mut self, text: &str, rule: &AnswerRule, out: &mut Vec<u8>) -> Option<Verdict> {
        let count = match rule {
            AnswerRule::Label { labels } => Count::one(labels),
            AnswerRule::Labels { labels, min, max } => Count { labels, min: *min, max: *max, single: false },
            _ => return None,
        };
        self.picked.clear();
        self.picked.push((count.labels.find(text)?, 0));
        Some(accept_labels(&self.picked, &Unknown::default(), &count, out))
    }
}

/// The labels of a rule and how many of them make an answer; `single`: the value is one string, not an array.
struct Count<'r> {
    labels: &'r LabelSet,
    min: usize,
    max: usize,
    single: bool,
}

impl<'r> Count<'r> {
    fn one(labels: &'r LabelSet) -> Self {
        Self { labels, min: 1, max: 1, single: true }
    }
}

/// Goes into objects by the answer's own key, or by the only key if that is a neutral one; a reason may stand beside it.
fn within(tape: &Tape, mut at: usize, asked: Asked<'_>) -> Result<usize, Verdict> {
    while tape.is_map(at) && !is_pair(tape, at, asked.rule) {
        let is_own = |key: &str| own_names(asked).any(|own| own.eq_ignore_ascii_case(key));
        let mut own = tape.entries(at).filter(|(key, _)| is_own(key));
        let mut others = tape.entries(at).filter(|(key, _)| !words().is_reason_key(key));
        at = match (own.next(), own.next(), others.next(), others.next()) {
            (Some((_, value)), None, ..) => value,
            (Some(_), ..) => return Err(Verdict::Refused("an object with more than one answer".to_owned())),
            (None, None, Some((key, value)), None) if words().is_key(key) => value,
            _ => return Err(Verdict::Foreign("an object without the key of this answer".to_owned())),
        };
    }
    Ok(at)
}

fn is_pair(tape: &Tape, at: usize, rule: &AnswerRule) -> bool {
    let AnswerRule::Pairs { parent, child, .. } = rule else { return false };
    [parent, child].into_iter().all(|name| tape.entries(at).any(|(key, _)| key == name))
}

/// A number, one in quotes, or one in an array of its own.
fn judge_integer(tape: &Tape, asked: Asked<'_>, range: (i64, i64), out: &mut Vec<u8>) -> Result<Verdict, Verdict> {
    let mut at = within(tape, 0, asked)?;
    if tape.is_list(at) {
        let mut elements = tape.elements(at);
        match (elements.next(), elements.next()) {
            (Some(only), None) => at = within(tape, only, asked)?,
            _ => return Err(Verdict::Foreign("an array, not one number".to_owned())),
        }
    }
    match tape.node(at) {
        Some(Node::Number(Number::Whole(number))) => Ok(accept_integer(number, range, out)),
        Some(Node::Number(Number::Other)) => Err(Verdict::Refused("not a whole number".to_owned())),
        Some(Node::Text { .. }) => {
            let text = tape.text(at).trim();
            match bare(text, |text| whole_number(text, range.1)) {
                Some(number) => Ok(accept_integer(number, range, out)),
                None => Err(Verdict::Refused(format!("{} is not a whole number", quoted(text)))),
            }
        }
        _ => Err(Verdict::Foreign("not a number".to_owned())),
    }
}

fn judge_labels(
    tape: &Tape,
    picked: &mut Vec<(u32, u32)>,
    asked: Asked<'_>,
    count: &Count<'_>,
    out: &mut Vec<u8>,
) -> Result<Verdict, Verdict> {
    let (mut unknown, mut nothing) = (Unknown::default(), 0);
    let at = within(tape, 0, asked)?;
    let mut add = |at: usize, unknown: &mut Unknown| {
        let at = within(tape, at, asked)?;
        let mut number = itoa::Buffer::new();
        let text = match tape.node(at) {
            Some(Node::Text { .. }) => tape.text(at).trim(),
            Some(Node::Number(Number::Whole(whole))) if count.labels.find(number.format(whole)).is_some() => {
                number.format(whole)
            }
            _ => return Err(Verdict::Foreign("not a label, nor an array of labels".to_owned())),
        };
        let is_known = add_labels(text, count, picked);
        let is_nothing = !is_known && count.min == 0 && words().says_nothing(text, asked);
        nothing += u32::from(is_nothing);
        if !is_known && !is_nothing {
            unknown.add(text);
        }
        Ok(())
    };
    each(tape, at, &mut unknown, &mut add)?;
    if !picked.is_empty() {
        unknown.count += nothing;
    }
    Ok(accept_labels(picked, &unknown, count, out))
}

/// Adds a value, or each element of an array. An element of the wrong shape is left out like an unknown label.
fn each(
    tape: &Tape,
    at: usize,
    unknown: &mut Unknown,
    add: &mut dyn FnMut(usize, &mut Unknown) -> Result<(), Verdict>,
) -> Result<(), Verdict> {
    if !tape.is_list(at) {
        return add(at, unknown);
    }
    let (mut fits, mut strangers) = (0_u32, None);
    for element in tape.elements(at) {
        match add(element, unknown) {
            Ok(()) => fits += 1,
            Err(verdict) => {
                unknown.add("a value of another shape");
                strangers = Some(verdict);
            }
        }
    }
    strangers.filter(|_| fits == 0).map_or(Ok(()), Err)
}

/// What `find` finds in the text, or within the quotes, brackets and signs around it.
fn bare<T>(text: &str, find: impl Fn(&str) -> Option<T>) -> Option<T> {
    let mut text = text;
    loop {
        if let Some(found) = find(text) {
            return Some(found);
        }
        text = unmarked(text)?;
    }
}

/// A label, or several in one string; each counts once. `false`: one of them is not known.
fn add_labels(text: &str, count: &Count<'_>, picked: &mut Vec<(u32, u32)>) -> bool {
    let before = picked.len();
    let joiners: &[&str] = if count.single { &[] } else { &JOINERS };
    let is_known = text.len() <= LONGEST_LIST && !text.is_empty() && pick_all(text, count.labels, joiners, picked);
    if !is_known {
        picked.truncate(before);
    }
    is_known
}

fn pick_all(text: &str, labels: &LabelSet, joiners: &[&str], picked: &mut Vec<(u32, u32)>) -> bool {
    if let Some(id) = bare(text, |text| labels.find_like(text)) {
        if !picked.contains(&(id, 0)) {
            picked.push((id, 0));
        }
        return true;
    }
    let Some((at, joiner)) = joiners.iter().enumerate().find(|(_, joiner)| text.contains(**joiner)) else {
        return false;
    };
    // Lists one after another are several answers.
    if text.contains('[') {
        return false;
    }
    let joiners = joiners.get(at + 1..).unwrap_or_default();
    let mut pieces = text.split(joiner).map(str::trim).filter(|piece| !piece.is_empty());
    pieces.all(|piece| pick_all(piece, labels, joiners, picked))
}

fn accept_integer(number: i64, (min, max): (i64, i64), out: &mut Vec<u8>) -> Verdict {
    if !(min..=max).contains(&number) {
        return Verdict::Refused(format!("{number} is not from {min} to {max}"));
    }
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    Verdict::Accepted { unknown_labels: 0 }
}

/// As [`Judge::judge_bare`] does, for the digits that nearly every answer is.
pub(super) fn judge_digits(text: &str, range: (i64, i64), out: &mut Vec<u8>) -> Option<Verdict> {
    let is_short = text.len() < 4 && text.bytes().all(|b| b.is_ascii_digit());
    // Leading zeros are no JSON, but no riddle either.
    is_short.then(|| text.parse().ok()).flatten().map(|number| accept_integer(number, range, out))
}

/// A whole number and nothing else but points, or the rule's `max` after a stroke.
fn whole_number(text: &str, max: i64) -> Option<i64> {
    let ends_with = |unit: &String| {
        let (number, end) = text.split_at_checked(text.len().checked_sub(unit.len())?)?;
        end.eq_ignore_ascii_case(unit).then(|| number.trim_end())
    };
    let text = words().points.iter().find_map(ends_with).unwrap_or(text);
    let share = text.split_once(['/', '／']).or_else(|| text.split_once(" out of "));
    match share {
        Some((number, of)) => plain_number(number.trim()).filter(|_| plain_number(of.trim()) == Some(max)),
        None => plain_number(text),
    }
}

fn plain_number(text: &str) -> Option<i64> {
    /// An `i64` and some zeros.
    const LONGEST: usize = 96;
    if text.len() > LONGEST {
        return None;
    }
    let digits: String = text.chars().map(narrow).collect();
    let whole = match digits.split_once('.') {
        Some((whole, zeros)) => Some(whole).filter(|_| !zeros.is_empty() && zeros.bytes().all(|b| b == b'0')),
        None => Some(digits.as_str()),
    };
    whole.and_then(|whole| whole.parse().ok()).or_else(|| words().number(text))
}

fn accept_labels(picked: &[(u32, u32)], unknown: &Unknown, count: &Count<'_>, out: &mut Vec<u8>) -> Verdict {
    if let Some(refused) = refuse_count(picked.len(), unknown, (count.min, count.max)) {
        return refused;
    }
    // One label beside unknown ones is a list, and no list was asked for.
    if count.single && unknown.count > 0 {
        return Verdict::Refused(unknown.describe());
    }
    let names = picked.iter().map(|(id, _)| count.labels.json(*id));
    if count.single {
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
    let limit = if count > max { format!("at most {max}") } else { format!("at least {min}") };
    let labels = if count == 1 { "label" } else { "labels" };
    (!(min..=max).contains(&count)).then(|| Verdict::Refused(format!("{count} {labels}; {limit} must be given")))
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
    fn judge(
        &self,
        tape: &Tape,
        asked: Asked<'_>,
        picked: &mut Vec<(u32, u32)>,
        out: &mut Vec<u8>,
    ) -> Result<Verdict, Verdict> {
        let mut unknown = Unknown::default();
        let at = within(tape, 0, asked)?;
        each(tape, at, &mut unknown, &mut |at, unknown| self.add(tape, at, picked, unknown))?;
        // A parent with several children is one object if its children are a list.
        let is_first = |place: usize, parent: u32| !picked.iter().take(place).any(|(known, _)| *known == parent);
        let heads =
            || picked.iter().enumerate().filter(|(place, (parent, _))| !self.child_list || is_first(*place, *parent));
        if let Some(refused) = refuse_count(heads().count(), &unknown, (self.min, self.max)) {
            return Err(refused);
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
        Ok(Verdict::Accepted { unknown_labels: unknown.count })
    }

    fn add(&self, tape: &Tape, at: usize, picked: &mut Vec<(u32, u32)>, unknown: &mut Unknown) -> Result<(), Verdict> {
        // Of a key that occurs twice the last counts, as everywhere.
        let value = |name: &str| tape.entries(at).filter(|(key, _)| *key == name).last().map(|(_, value)| value);
        let (true, Some(parent), Some(child)) = (tape.is_map(at), value(self.parent), value(self.child)) else {
            return Err(Verdict::Foreign(format!("not objects with `{}` and `{}`", self.parent, self.child)));
        };
        let parent_name = tape.text(parent).trim();
        let Some(id) = self.tree.parents.find_like(parent_name) else {
            unknown.add(parent_name);
            return Ok(());
        };
        let children = self.tree.children.get(id as usize);
        let mut add = |at: usize| {
            let name = tape.text(at).trim();
            match children.and_then(|children| children.find_like(name)) {
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
        Ok(())
    }
}

/// Where the value that begins the text ends.
pub(super) fn balanced_end(text: &str) -> Option<usize> {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Objects one after another, with or without commas; ends with a text that is none if something else follows.
struct Objects<'t>(&'t str);

impl<'t> Iterator for Objects<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        if self.0.is_empty() {
            return None;
        }
        let cut = balanced_end(self.0).filter(|_| self.0.starts_with('{')).and_then(|end| self.0.split_at_checked(end));
        let (object, rest) = cut.unwrap_or((self.0, ""));
        self.0 = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | '，'));
        Some(object)
    }
}
