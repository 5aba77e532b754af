//! Where in a model's text its answer stands: it is the whole text, a block of its own at the end, or what a sentence of
//! known words introduces. Linear in the text but for a bounded number of tries.

use super::{
    Asked, Fault, FaultKind, Judge, Judged, Rung,
    mend::mended,
    values::{Verdict, balanced_end, judge_digits, quoted},
    words::{Before, ends_sentence, words},
    wrapping::{LAYERS, closes, trim, unwrapped, without_thinking},
};
use crate::analysis::{AnswerRule, LabelSet, fold};

/// Longest text that is searched for an answer, in bytes: an answer is small.
const LONGEST: usize = 64 << 10;
/// Lines and sentences that are looked at; a text with more of them is no answer.
const PIECES: usize = 1024;
/// A list on lines of its own is not longer, in bytes.
const LONGEST_LIST: usize = 4 << 10;
/// Tags without an end that are searched for one.
const UNENDED: usize = 64;
/// Strings that hold JSON that holds strings that hold JSON.
const DEPTH: usize = 4;
/// Longest text that is searched for labels when none was given, in bytes.
const LONGEST_PROSE: usize = 4 << 10;
/// Longest answer that is taken for one wrong label rather than for prose, in characters.
const LABEL_CHARS: usize = 16;

/// One text being read.
pub(super) struct Reading<'j> {
    pub judge: &'j mut Judge,
    pub asked: Asked<'j>,
    pub out: &'j mut Vec<u8>,
}

/// A line, a sentence of a line, or a fence; JSON stays whole.
struct Piece<'t> {
    start: usize,
    text: &'t str,
    /// It begins its line.
    alone: bool,
}

/// A reason is passed over: its line, or all that follows the heading that announces it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    None,
    Line,
    Rest,
}

/// The last answer that was found in a text of several pieces.
struct Found {
    /// Where its text begins and ends.
    text: (usize, usize),
    verdict: Verdict,
    rung: Rung,
    /// What precedes it lets it be an answer.
    stands: bool,
    introduced: bool,
    /// Its text is a list of several lines, which is read when all of them are known.
    is_list: bool,
}

impl Reading<'_> {
    pub fn read(mut self, text: &str) -> Result<Judged, Fault> {
        let text = trim(text);
        if text.is_empty() {
            return Err(Fault::new(FaultKind::Empty, "the answer is empty"));
        }
        if let Some(verdict) = self.strict(text, DEPTH) {
            return decide(verdict, Rung::Strict);
        }
        let text = without_thinking(text);
        let text = trim(&text);
        if text.is_empty() {
            return Err(Fault::new(FaultKind::Empty, "nothing follows the thinking"));
        }
        if text.len() > LONGEST {
            return Err(Fault::new(
                FaultKind::Unreadable,
                format!("the text is too long for an answer: {}", quoted(text)),
            ));
        }
        match self.whole(text, DEPTH) {
            Some((verdict, rung)) => decide(verdict, rung),
            None => self.in_pieces(text),
        }
    }

    /// The text is a value as it was asked for.
    fn strict(&mut self, text: &str, depth: usize) -> Option<Verdict> {
        let bare = match self.asked.rule {
            AnswerRule::Integer { min, max, .. } => judge_digits(text, (*min, *max), self.out),
            rule => self.judge.judge_label(text, rule, self.out),
        };
        if bare.is_some() {
            return bare;
        }
        // Most texts that are no JSON say so in their first byte.
        let first = *text.as_bytes().first()?;
        if !matches!(first, b'[' | b'{' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') || !self.judge.tape.read(text)
        {
            return None;
        }
        let verdict = self.judge.judge_tape(self.asked, self.out);
        let inside = Some(self.judge.tape.text(0)).filter(|inside| !inside.is_empty() && depth > 0);
        match (&verdict, inside) {
            (Verdict::Refused(_) | Verdict::Foreign(_), Some(inside)) => {
                let inside = inside.to_owned();
                Some(self.whole(trim(&inside), depth - 1).map_or(verdict, |(verdict, _)| verdict))
            }
            _ => Some(verdict),
        }
    }

    /// The text is a value and its wrapping, and nothing else. Each way of reading is tried on the text, and on what is left
    /// of it when its wrapping is taken off layer by layer.
    fn whole(&mut self, text: &str, depth: usize) -> Option<(Verdict, Rung)> {
        if text.is_empty() {
            return None;
        }
        let mut layers = [text; LAYERS];
        let mut count = 0;
        // What was asked for within a fence is the usual case.
        let mut inner = Some(text);
        for layer in &mut layers {
            let Some(text) = inner else { break };
            if let Some(verdict) = self.strict(text, depth) {
                return Some((verdict, Rung::Wrapped));
            }
            (*layer, count) = (text, count + 1);
            inner = unwrapped(text, self.asked);
        }
        let layers = || layers.iter().take(count);
        let bare = layers().find_map(|text| self.judge.judge_bare(text, self.asked, self.out));
        if let Some(verdict) = bare {
            return Some((verdict, Rung::Wrapped));
        }
        layers().find_map(|text| self.mended(text)).map(|verdict| (verdict, Rung::Mended))
    }

    fn mended(&mut self, text: &str) -> Option<Verdict> {
        if !text.starts_with(['[', '{', '［', '｛', '【']) {
            return None;
        }
        let mended = mended(text);
        if self.judge.tape.read(&mended) {
            return Some(self.judge.judge_tape(self.asked, self.out));
        }
        if mended.starts_with('{') { self.judge.judge_bare(&mended, self.asked, self.out) } else { None }
    }

    /// The answer among other lines and sentences.
    fn in_pieces(&mut self, text: &str) -> Result<Judged, Fault> {
        let start = self.out.len();
        let mut found: Option<Found> = None;
        let mut before = Before::End;
        let (mut others, mut goes_on, mut differs) = (false, false, false);
        let mut reason = Reason::None;
        for (number, piece) in pieces(text).enumerate() {
            if number > PIECES {
                return Err(Fault::new(FaultKind::Unreadable, "the answer has too many lines"));
            }
            let end = self.out.len();
            let value = self.in_piece(&piece, before);
            if reason == Reason::Line && piece.alone {
                reason = Reason::None;
            }
            let Some(mut new) = value else {
                before = words().context(piece.text, self.asked, before);
                if reason == Reason::None && found.is_some() && words().is_reason(piece.text) {
                    reason = if before == Before::End { Reason::Line } else { Reason::Rest };
                }
                let is_farewell = found.is_some() && words().is_farewell(piece.text);
                others |= !is_farewell;
                goes_on |= found.is_some() && reason == Reason::None && !is_farewell;
                continue;
            };
            // What does not stand leaves the next one no better.
            if new.stands {
                before = Before::End;
            }
            match &mut found {
                Some(found) if self.is_list(text, found, &new) => {
                    self.out.truncate(end);
                    (found.is_list, found.text.1) = (true, new.text.1);
                }
                Some(first) => {
                    let end = self.end_list(text, first, start, end)?;
                    let same = first.verdict == new.verdict && self.out.get(start..end) == self.out.get(end..);
                    differs |= !same;
                    self.out.truncate(end);
                    // What a reason mentions is held against the answer, and is none itself.
                    if reason != Reason::None {
                        continue;
                    }
                    new.introduced |= first.introduced && first.stands;
                    goes_on = false;
                    found = Some(new);
                }
                None => found = Some(new),
            }
        }
        let Some(mut found) = found else { return Err(self.nothing_given(text)) };
        self.end_list(text, &mut found, start, self.out.len())?;
        if differs {
            return Err(more_than_one());
        }
        // An empty list beside other words is as likely a refusal.
        let is_vague = others && !found.introduced && self.out.get(start..) == Some(b"[]");
        let judged = decide(found.verdict, found.rung)?;
        if goes_on || is_vague || !found.stands {
            let value = text.get(found.text.0..found.text.1).unwrap_or_default();
            let what = format!("{} is there, but nothing says that it is the answer: {}", quoted(value), quoted(text));
            return Err(Fault::new(FaultKind::NotAccepted, what));
        }
        Ok(judged)
    }

    /// The value that a piece is, or introduces.
    fn in_piece(&mut self, piece: &Piece<'_>, before: Before) -> Option<Found> {
        let start = self.out.len();
        let found = |verdict, rung, stands, introduced| {
            let text = (piece.start, piece.start + piece.text.len());
            Some(Found { text, verdict, rung, stands, introduced, is_list: false })
        };
        let is_value = |verdict: &Verdict| !matches!(verdict, Verdict::Foreign(_));
        if piece.alone
            && let Some((verdict, _)) = self.whole(piece.text, DEPTH).filter(|(verdict, _)| is_value(verdict))
        {
            let is_introduced = before == Before::Introduction;
            return found(verdict, Rung::Block, is_introduced || before == Before::End, is_introduced);
        }
        let asked = self.asked;
        // 没有合适的主题，输出 []
        let nothing = piece.text.split_once(['，', ',']).filter(|(nothing, _)| words().says_nothing(nothing, asked));
        let sentence = nothing.map_or(piece.text, |(_, sentence)| sentence);
        let read = &mut |value: &str| self.whole(value, DEPTH).filter(|(verdict, _)| is_value(verdict));
        let (verdict, _) = words().introduced(sentence, asked, read)?;
        if nothing.is_some() && self.out.get(start..) != Some(b"[]") {
            self.out.truncate(start);
            return None;
        }
        found(verdict, Rung::Introduced, matches!(before, Before::End | Before::Introduction), true)
    }

    /// Values on lines that follow each other are one list, where the rule wants a list.
    fn is_list(&self, text: &str, found: &Found, new: &Found) -> bool {
        let between = text.get(found.text.1..new.text.0).unwrap_or("?");
        matches!(self.asked.rule, AnswerRule::Labels { .. } | AnswerRule::Pairs { .. })
            && new.rung == Rung::Block
            && found.rung == Rung::Block
            && new.text.1 - found.text.0 <= LONGEST_LIST
            && between.trim().is_empty()
            && !text.get(found.text.0..new.text.1).unwrap_or_default().contains(['[', '`'])
    }

    /// Reads a list of lines in the place of its first line, whose value stands from `start` to `end`. Gives where its value
    /// ends; what follows stays.
    fn end_list(&mut self, text: &str, found: &mut Found, start: usize, end: usize) -> Result<usize, Fault> {
        if !std::mem::take(&mut found.is_list) {
            return Ok(end);
        }
        let after = self.out.split_off(end);
        self.out.truncate(start);
        let list = text.get(found.text.0..found.text.1).and_then(|list| self.whole(list, DEPTH));
        found.verdict = list.ok_or_else(more_than_one)?.0;
        let end = self.out.len();
        self.out.extend(after);
        Ok(end)
    }

    /// What a text without an answer holds of the kind that was asked for.
    fn nothing_given(&mut self, text: &str) -> Fault {
        let refused = |detail: String| Fault::new(FaultKind::NotAccepted, detail);
        let mentioned = match self.asked.rule {
            AnswerRule::Integer { .. } => numbers_in(text),
            AnswerRule::Label { labels } | AnswerRule::Labels { labels, .. } => labels_in(text, labels),
            AnswerRule::Pairs { .. } => self.pairs_in(text),
        };
        let has_labels = matches!(self.asked.rule, AnswerRule::Label { .. } | AnswerRule::Labels { .. });
        match mentioned.as_slice() {
            [] if has_labels && is_word(text) => refused(format!("not in the list: {}", quoted(text))),
            [] => Fault::new(FaultKind::Unreadable, format!("no answer in {}", quoted(text))),
            [one] => refused(format!("{} is mentioned, not given as the answer: {}", quoted(one), quoted(text))),
            _ => more_than_one(),
        }
    }

    fn pairs_in(&mut self, text: &str) -> Vec<String> {
        let start = self.out.len();
        let mut found = Vec::new();
        for piece in json_in(text).take(PIECES) {
            if self.judge.tape.read(piece)
                && !matches!(self.judge.judge_tape(self.asked, self.out), Verdict::Foreign(_))
            {
                found.push(piece.to_owned());
            }
            self.out.truncate(start);
        }
        found.dedup();
        found
    }
}

fn decide(verdict: Verdict, rung: Rung) -> Result<Judged, Fault> {
    match verdict {
        Verdict::Accepted { unknown_labels } => Ok(Judged { rung, unknown_labels }),
        Verdict::Refused(detail) | Verdict::Foreign(detail) => Err(Fault::new(FaultKind::NotAccepted, detail)),
    }
}

fn more_than_one() -> Fault {
    Fault::new(FaultKind::NotAccepted, "more than one answer")
}

/// One word, that might be meant for a label.
fn is_word(text: &str) -> bool {
    text.chars().count() <= LABEL_CHARS && !text.contains(['\n', '，', ',', '：', ':', '[', '{'])
}

/// The different numbers in a text, as they are written.
fn numbers_in(text: &str) -> Vec<String> {
    let digits = text.split(|c: char| !c.is_numeric()).filter(|digits| !digits.is_empty());
    let mut found: Vec<String> = digits.take(PIECES).map(str::to_owned).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The labels that occur in a text, but for those that are part of another one that does.
fn labels_in(text: &str, labels: &LabelSet) -> Vec<String> {
    if text.len() > LONGEST_PROSE {
        return Vec::new();
    }
    let text = fold(text);
    let found: Vec<&str> = labels.folded().map(|(name, _)| name).filter(|name| text.contains(name)).collect();
    let is_part = |name: &str| found.iter().any(|other| *other != name && other.contains(name));
    found.iter().filter(|name| !is_part(name)).map(|name| (*name).to_owned()).collect()
}

/// Each outermost JSON value in brackets or braces.
fn json_in(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let from = rest.find(['[', '{']).and_then(|open| rest.get(open..))?;
        let (value, after) = from.split_at_checked(balanced_end(from)?)?;
        rest = after;
        Some(value)
    })
}

/// The lines of a text, each in its sentences; a fence, JSON within a line, and what stands in a tag stay whole.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut at = 0;
    let mut alone = true;
    let mut unended = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let rest = text.get(at..).unwrap_or_default();
            let begins_line = std::mem::take(&mut alone);
            let (length, ends_line) = piece_length(rest, &mut unended);
            let piece = rest.get(..length).unwrap_or(rest);
            at += piece.len().max(1);
            alone = ends_line;
            let inside = trim(piece);
            // A rule across the page says nothing, nor does a full stop.
            if !inside.trim_matches(|c| closes(c) || "-*_=#".contains(c)).is_empty() {
                let start = at - piece.len() + piece.find(inside).unwrap_or_default();
                return Some(Piece { start, text: inside, alone: begins_line });
            }
            alone |= begins_line;
        }
        None
    })
}

/// How far the first piece of a text goes, and whether its line ends there. `unended` counts the tags without an end, for
/// which the whole rest was searched.
fn piece_length(text: &str, unended: &mut usize) -> (usize, bool) {
    if let Some(fenced) = text.strip_prefix("```") {
        return (fenced.find("```").map_or(text.len(), |end| end + 6), true);
    }
    let mut at = 0;
    while let Some((rest, c)) = text.get(at..).and_then(|rest| Some((rest, rest.chars().next()?))) {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        if rest.starts_with("```") {
            return (at, true);
        }
        match c {
            '\n' => return (at + 1, true),
            '<' => {
                let end = if *unended < UNENDED { tagged_end(rest) } else { None };
                *unended += usize::from(end.is_none());
                at += end.unwrap_or(1);
            }
            '[' | '{' => match balanced_end(rest) {
                Some(end) => at += end,
                // A value that does not end takes all that follows with it.
                None => return (text.len(), true),
            },
            _ => {
                at += c.len_utf8();
                let is_marker = || {
                    let marker = text.get(..at).unwrap_or_default().trim();
                    marker.trim_end_matches('.').bytes().all(|b| b.is_ascii_digit())
                };
                let is_stop = c == '.' && after.starts_with(|c: char| c.is_whitespace() || "*\"'”)".contains(c));
                if ends_sentence(c) || is_stop && !is_marker() {
                    let closers = |c: char| ends_sentence(c) || ".*_`\"'”’」』】）)》$}]>".contains(c);
                    let end = text.len() - after.trim_start_matches(closers).len();
                    return (end, false);
                }
            }
        }
    }
    (text.len(), true)
}

/// Where the tag ends that begins the text.
fn tagged_end(text: &str) -> Option<usize> {
    const LONGEST_NAME: usize = 32;
    const BOX_END: &str = "<|end_of_box|>";
    if text.starts_with("<|begin_of_box|>") {
        return text.find(BOX_END).map(|end| end + BOX_END.len());
    }
    let name = text.strip_prefix('<')?;
    let name =
        name.get(..name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|end| *end <= LONGEST_NAME)?)?;
    let close = format!("</{name}>");
    text.find(&close).map(|end| end + close.len())
}
