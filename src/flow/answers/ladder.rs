//! The ladder: where in a model's text its answer stands. Linear in the text but for a bounded number of tries.

use std::ops::Range;

use super::{Fault, FaultKind, Judge, Judged, Rung, Verdict, accept_integer, accept_labels, quoted};
use crate::analysis::{AnswerRule, LabelSet};

/// What separates labels in a list that is no JSON.
pub(super) const SEPARATORS: [char; 5] = ['、', ',', '，', ';', '；'];

/// A text with more values, or openings of values, is not searched on: that is not how an answer looks.
const MAX_TRIES: usize = 32;
/// Longest text that is mended or searched for labels among words, in bytes.
const MAX_SEARCHED: usize = 64 << 10;
/// Longest text that is searched for a label in a sentence.
const MAX_PROSE: usize = 4 << 10;
/// Longest answer that is taken for one wrong label rather than for prose, in characters.
const LABEL_CHARS: usize = 16;

/// One text being judged.
pub(super) struct Judging<'j> {
    pub judge: &'j mut Judge,
    pub rule: &'j AnswerRule,
    pub out: &'j mut Vec<u8>,
    /// Where in `out` the value goes.
    pub start: usize,
}

/// The answers found at one rung: they must be one and the same.
#[derive(Default)]
struct Poll {
    accepted: Option<u32>,
    /// End of the accepted value in `out`.
    end: usize,
    refused: Option<String>,
    foreign: Option<String>,
    split: bool,
    /// The accepted one needed light fixes.
    is_mended: bool,
    /// A value begins and does not end.
    is_cut: bool,
}

impl Judging<'_> {
    pub fn climb(mut self, text: &str) -> Result<Judged, Fault> {
        let text = trim(text);
        if text.is_empty() {
            return Err(Fault::new(FaultKind::Empty, "the answer is empty"));
        }
        if let Some(verdict) = self.judge_whole(text) {
            return decide(verdict, Rung::Strict);
        }
        let body = trim(strip_thinking(text));
        if body.len() < text.len() {
            if body.is_empty() {
                return Err(Fault::new(FaultKind::Empty, "nothing follows the thinking"));
            }
            if let Some(verdict) = self.judge_whole(body) {
                return decide(verdict, Rung::Thinking);
            }
        }
        let mut poll = Poll::default();
        for fence in fences(body) {
            if let Some(verdict) = self.judge_whole(trim(fence)) {
                self.count(&mut poll, verdict);
            }
        }
        if let Some(judged) = poll.result(Rung::Fenced) {
            return judged;
        }
        let mut soft = poll.foreign.take();

        // The rest is tried inside the fences and, if that yields nothing, on the whole.
        for region in fences(body).chain(std::iter::once(body)) {
            let region = trim(region);
            let mut poll = Poll::default();
            self.find_values(region, &mut poll)?;
            let is_cut = poll.is_cut;
            if let Some(judged) = poll.result(if poll.is_mended { Rung::Mended } else { Rung::Embedded }) {
                return judged.and_then(|judged| if is_cut { Err(cut_off()) } else { Ok(judged) });
            }
            soft = soft.or(poll.foreign.take());
            if let Some(verdict) = self.mend(region) {
                match verdict {
                    Verdict::Accepted { .. } => return decide(verdict, Rung::Mended),
                    Verdict::Refused(detail) | Verdict::Foreign(detail) => soft = soft.or(Some(detail)),
                }
            }
        }
        if let Some(judged) = self.find_bare(body) {
            return judged;
        }
        Err(match soft {
            Some(detail) => Fault::new(FaultKind::NotAccepted, detail),
            None => Fault::new(FaultKind::Unreadable, format!("no answer in {}", quoted(body))),
        })
    }

    /// The text is a value and nothing else; `None` if it is not.
    fn judge_whole(&mut self, text: &str) -> Option<Verdict> {
        let rule = self.rule;
        match rule {
            AnswerRule::Integer { min, max, .. } if text.len() < 4 && text.bytes().all(|b| b.is_ascii_digit()) => {
                // Leading zeros are no JSON, but no riddle either.
                return Some(accept_integer(text.parse().ok()?, (*min, *max), self.out));
            }
            AnswerRule::Label { labels } | AnswerRule::Labels { labels, .. } => {
                if let Some(verdict) = self.judge_label(text, labels) {
                    return Some(verdict);
                }
            }
            _ => {}
        }
        self.judge_json(text)
    }

    fn judge_json(&mut self, text: &str) -> Option<Verdict> {
        // Most texts that are no JSON say so in their first byte.
        let first = *text.as_bytes().first()?;
        if !matches!(first, b'[' | b'{' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') || !self.judge.tape.read(text)
        {
            return None;
        }
        Some(self.judge.judge_tape(self.rule, self.out))
    }

    /// The text is one label as it is.
    fn judge_label(&mut self, text: &str, labels: &LabelSet) -> Option<Verdict> {
        let id = labels.find(text)?;
        self.judge.picked.clear();
        self.judge.picked.push((id, 0));
        Some(self.accept_picked(labels, &super::Unknown::default()))
    }

    fn accept_picked(&mut self, labels: &LabelSet, unknown: &super::Unknown) -> Verdict {
        let (range, single) = match self.rule {
            AnswerRule::Labels { min, max, .. } => ((*min, *max), false),
            _ => ((1, 1), true),
        };
        accept_labels(&self.judge.picked, unknown, labels, range, single, self.out)
    }

    /// Notes one of several answers; only the first accepted one stays in `out`.
    fn count(&mut self, poll: &mut Poll, verdict: Verdict) {
        match verdict {
            Verdict::Accepted { unknown_labels } => {
                if poll.accepted.is_none() {
                    poll.accepted = Some(unknown_labels);
                    poll.end = self.out.len();
                } else {
                    poll.split |= self.out.get(self.start..poll.end) != self.out.get(poll.end..);
                    self.out.truncate(poll.end);
                }
            }
            Verdict::Refused(detail) => poll.refused = poll.refused.take().or(Some(detail)),
            Verdict::Foreign(detail) => poll.foreign = poll.foreign.take().or(Some(detail)),
        }
    }

    /// Every balanced JSON value among other words.
    fn find_values(&mut self, region: &str, poll: &mut Poll) -> Result<(), Fault> {
        if matches!(self.rule, AnswerRule::Pairs { .. }) && self.judge.tape.read_run(Objects(region)) {
            let verdict = self.judge.judge_tape(self.rule, self.out);
            self.count(poll, verdict);
            return Ok(());
        }
        // `[1]` in prose is a footnote, not an answer.
        let openers: &[char] = if matches!(self.rule, AnswerRule::Integer { .. }) { &['{'] } else { &['[', '{'] };
        let mut rest = region;
        let mut tries = 0;
        while let Some((_, from)) = rest.find(openers).and_then(|open| rest.split_at_checked(open)) {
            tries += 1;
            if tries > MAX_TRIES {
                return Err(Fault::new(FaultKind::Unreadable, "too many values in the answer"));
            }
            let Some((value, after)) = balanced_end(from).and_then(|end| from.split_at_checked(end)) else {
                // What stands in a value that was cut off is a part of an answer, and no answer.
                poll.is_cut = true;
                break;
            };
            let verdict = self.judge_json(value).or_else(|| {
                // Without quotes or colons it is a remark in brackets.
                let is_value = value.contains(|c: char| is_quote(c) || matches!(c, ':' | '：'));
                let verdict = if is_value { self.judge_mended(value) } else { None };
                poll.is_mended |= poll.accepted.is_none() && matches!(verdict, Some(Verdict::Accepted { .. }));
                verdict
            });
            if let Some(verdict) = verdict {
                self.count(poll, verdict);
            }
            rest = after;
        }
        Ok(())
    }

    /// The region, from the first bracket to the last if it does not begin with one, after light fixes.
    fn mend(&mut self, region: &str) -> Option<Verdict> {
        if region.len() > MAX_SEARCHED {
            return None;
        }
        let begins = region.chars().next().is_some_and(|c| is_opener(c) || is_quote(c));
        let value = if begins {
            region
        } else {
            let (_, from) = region.split_at_checked(region.find(is_opener)?)?;
            let last = from.rfind(is_closer)?;
            let (value, after) = from.split_at_checked(last + from.get(last..)?.chars().next()?.len_utf8())?;
            if after.contains(is_opener) {
                return None;
            }
            value
        };
        if matches!(self.rule, AnswerRule::Integer { .. }) && !begins && !value.starts_with(['{', '｛']) {
            return None;
        }
        self.judge_mended(value)
    }

    fn judge_mended(&mut self, value: &str) -> Option<Verdict> {
        if value.len() > MAX_SEARCHED {
            return None;
        }
        let mended = mended(value);
        if self.judge.tape.read(&mended)
            || matches!(self.rule, AnswerRule::Pairs { .. }) && self.judge.tape.read_run(Objects(&mended))
        {
            return Some(self.judge.judge_tape(self.rule, self.out));
        }
        None
    }

    /// An answer that is no JSON: a line of its own, after `答案：`, or the only number or label of the text.
    fn find_bare(&mut self, text: &str) -> Option<Result<Judged, Fault>> {
        // An open bracket is a value that was cut off, or could not be read: a part of it is no answer.
        if text.len() > MAX_SEARCHED || text.contains(['[', '{', '［', '｛']) {
            return None;
        }
        match self.rule {
            AnswerRule::Integer { min, max, .. } => self.find_integer(text, (*min, *max)),
            AnswerRule::Label { labels } | AnswerRule::Labels { labels, .. } => self.find_labels(text, labels),
            AnswerRule::Pairs { .. } => None,
        }
    }

    fn find_integer(&mut self, text: &str, range: (i64, i64)) -> Option<Result<Judged, Fault>> {
        let rung = if text.contains(|c| ('０'..='９').contains(&c)) { Rung::Mended } else { Rung::Embedded };
        let mut poll = Poll::default();
        for line in text.lines() {
            if let Some(number) = answer_on(line, &mut whole_integer) {
                let verdict = accept_integer(number, range, self.out);
                self.count(&mut poll, verdict);
            }
        }
        if let Some(judged) = poll.result(rung) {
            return Some(judged);
        }
        let refuse = |detail: &str| Some(Err(Fault::new(FaultKind::NotAccepted, detail)));
        let mut found = numbers(text);
        let (mut first, mut tries) = (None, 0);
        while let Some(number) = found.next() {
            tries += 1;
            if number.is_none() || tries > MAX_TRIES {
                return refuse("not one whole number");
            }
            if first.is_some_and(|first| first != number) {
                return refuse("more than one number");
            }
            first = Some(number);
            let before = text.strip_suffix(found.rest).unwrap_or_default();
            if is_hedged(last_clause(before)) || is_hedged(first_clause(found.rest)) {
                return refuse("a number is mentioned, not given");
            }
        }
        first.flatten().map(|number| decide(accept_integer(number, range, self.out), rung))
    }

    fn find_labels(&mut self, text: &str, labels: &LabelSet) -> Option<Result<Judged, Fault>> {
        let mut poll = Poll::default();
        let is_list = matches!(self.rule, AnswerRule::Labels { .. });
        for line in text.lines() {
            let judge = &mut *self.judge;
            let mut unknown = super::Unknown::default();
            let found = answer_on(line, &mut |piece: &str| {
                judge.picked.clear();
                unknown = super::Unknown::default();
                read_labels(piece, labels, is_list, &mut judge.picked, &mut unknown).then_some(())
            });
            if found.is_some() {
                let verdict = self.accept_picked(labels, &unknown);
                self.count(&mut poll, verdict);
            }
        }
        // Labels on lines of their own are a list.
        if is_list && poll.split && self.read_lines(text, labels) {
            self.out.truncate(self.start);
            return Some(decide(self.accept_picked(labels, &super::Unknown::default()), Rung::Embedded));
        }
        if let Some(judged) = poll.result(Rung::Embedded) {
            return Some(judged);
        }
        if text.len() > MAX_PROSE {
            return None;
        }
        if let Some(id) = the_only_mention(text, labels) {
            self.judge.picked.clear();
            self.judge.picked.push((id, 0));
            return Some(decide(self.accept_picked(labels, &super::Unknown::default()), Rung::Embedded));
        }
        let piece = strip_marks(text);
        let is_word =
            piece.chars().count() <= LABEL_CHARS && !piece.contains(['\n', '，', '。', '：', ':', '！', '？']);
        is_word.then(|| Err(Fault::new(FaultKind::NotAccepted, format!("not in the list: {}", quoted(piece)))))
    }
}

impl Judging<'_> {
    /// Picks the labels of a text that has one on each of its lines, and nothing else.
    fn read_lines(&mut self, text: &str, labels: &LabelSet) -> bool {
        let picked = &mut self.judge.picked;
        picked.clear();
        text.lines().map(strip_marks).filter(|line| !line.is_empty()).all(|line| {
            let id = labels.find(line);
            picked.extend(id.map(|id| (id, 0)).filter(|known| !picked.contains(known)));
            id.is_some()
        })
    }
}

impl Poll {
    /// `None`: nothing of the right shape was found.
    fn result(&mut self, rung: Rung) -> Option<Result<Judged, Fault>> {
        let refuse = |detail: String| Some(Err(Fault::new(FaultKind::NotAccepted, detail)));
        match (self.accepted, self.refused.take()) {
            (Some(_), _) if self.split => refuse("more than one answer".to_owned()),
            (Some(_), Some(detail)) => refuse(format!("more than one answer; of one, {detail}")),
            (Some(unknown_labels), None) => Some(Ok(Judged { rung, unknown_labels })),
            (None, Some(detail)) => refuse(detail),
            (None, None) => None,
        }
    }
}

fn cut_off() -> Fault {
    Fault::new(FaultKind::Unreadable, "the answer holds a value that does not end")
}

fn decide(verdict: Verdict, rung: Rung) -> Result<Judged, Fault> {
    match verdict {
        Verdict::Accepted { unknown_labels } => Ok(Judged { rung, unknown_labels }),
        Verdict::Refused(detail) | Verdict::Foreign(detail) => Err(Fault::new(FaultKind::NotAccepted, detail)),
    }
}

fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200d}' | '\0'))
}

/// What follows the thinking; or, if nothing does, what precedes it. Thinking that does not end hides all after it.
fn strip_thinking(text: &str) -> &str {
    const TAGS: [(&str, &str); 2] = [("<think>", "</think>"), ("<thinking>", "</thinking>")];
    // Nearly no answer has a tag, and one byte is found faster than four words.
    if memchr::memchr(b'<', text.as_bytes()).is_none() {
        return text;
    }
    for (open, close) in TAGS {
        let before = text.split_once(open).map(|(before, _)| before);
        if let Some((_, after)) = text.rsplit_once(close) {
            return if trim(after).is_empty() { before.unwrap_or_default() } else { after };
        }
        if let Some(before) = before {
            return before;
        }
    }
    text
}

/// What stands in code fences, the last of which may lack its end, and in the boxes that some GLM models draw.
fn fences(text: &str) -> impl Iterator<Item = &str> {
    const BOX: (&str, &str) = ("<|begin_of_box|>", "<|end_of_box|>");
    let has_box = memchr::memchr(b'<', text.as_bytes()).is_some();
    let mut boxed = has_box
        .then(|| text.split_once(BOX.0))
        .flatten()
        .map(|(_, rest)| rest.split_once(BOX.1).map_or(rest, |(inside, _)| inside));
    let mut rest = text;
    let mut left = MAX_TRIES;
    std::iter::from_fn(move || {
        if let Some(inside) = boxed.take() {
            return Some(inside);
        }
        left = left.checked_sub(1)?;
        let (_, from) = split_fence(rest)?;
        let (inside, after) = split_fence(from).unwrap_or((from, ""));
        rest = after;
        Some(strip_language(inside))
    })
}

fn split_fence(text: &str) -> Option<(&str, &str)> {
    let at = memchr::memmem::find(text.as_bytes(), b"```")?;
    Some((text.get(..at)?, text.get(at + 3..)?))
}

/// Takes `json` away from the beginning of a fence.
fn strip_language(inside: &str) -> &str {
    let word = inside.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '+'));
    let Some((language, rest)) = word.and_then(|end| inside.split_at_checked(end)) else { return inside };
    let is_known = ["json", "jsonc", "json5", "jsonl", "text", "txt", "plaintext"]
        .iter()
        .any(|known| language.eq_ignore_ascii_case(known));
    // A line that is only a word names a language, a digit is an answer.
    let is_line = language.starts_with(|c: char| c.is_ascii_alphabetic()) && rest.starts_with(['\n', '\r']);
    if is_known || is_line { rest } else { inside }
}

/// Where the value that begins the text ends.
fn balanced_end(text: &str) -> Option<usize> {
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

fn is_opener(c: char) -> bool {
    matches!(c, '[' | '{' | '［' | '｛' | '【')
}

fn is_closer(c: char) -> bool {
    matches!(c, ']' | '}' | '］' | '｝' | '】')
}

fn is_quote(c: char) -> bool {
    !closing_quotes(c).is_empty()
}

/// What may end a string that begins so.
fn closing_quotes(open: char) -> &'static [char] {
    match open {
        '"' => &['"'],
        '\'' => &['\''],
        '“' | '”' => &['”', '“', '"'],
        '‘' | '’' => &['’', '‘', '\''],
        '「' => &['」'],
        '『' => &['』'],
        '＂' => &['＂', '"'],
        _ => &[],
    }
}

/// JSON out of almost-JSON: quotes, full-width signs, trailing commas, raw line breaks, words without quotes.
/// Whether the outcome is JSON is for the parser to say.
fn mended(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text.chars();
    while let Some(c) = rest.clone().next() {
        let closing = closing_quotes(c);
        if !closing.is_empty() {
            rest.next();
            mend_string(&mut rest, closing, &mut out);
            continue;
        }
        match structural(c) {
            Some(sign) => {
                rest.next();
                if matches!(sign, ']' | '}') && out.trim_end().ends_with(',') {
                    out.truncate(out.trim_end().len() - 1);
                }
                out.push(sign);
            }
            None => mend_word(&mut rest, &mut out),
        }
    }
    out
}

fn mend_string(rest: &mut std::str::Chars<'_>, closing: &[char], out: &mut String) {
    out.push('"');
    while let Some(c) = rest.next() {
        match c {
            c if closing.contains(&c) => break,
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => match rest.next() {
                Some(c @ ('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' | 'u')) => out.extend(['\\', c]),
                Some(c) => out.push(c),
                None => break,
            },
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A number or literal as it is, in narrow digits; other words in quotes.
fn mend_word(rest: &mut std::str::Chars<'_>, out: &mut String) {
    let mut word = String::new();
    while let Some(c) = rest.clone().next().filter(|c| structural(*c).is_none() && !is_quote(*c)) {
        rest.next();
        word.push(narrow_digit(c));
    }
    let word = word.trim();
    if serde_json::from_str::<serde::de::IgnoredAny>(word).is_ok() {
        out.push_str(word);
    } else {
        out.push_str(&serde_json::Value::from(word).to_string());
    }
}

/// The JSON sign that a character stands for, white space included.
fn structural(c: char) -> Option<char> {
    Some(match c {
        '[' | '［' | '【' => '[',
        ']' | '］' | '】' => ']',
        '{' | '｛' => '{',
        '}' | '｝' => '}',
        ',' | '，' | '、' => ',',
        ':' | '：' => ':',
        c if c.is_whitespace() => ' ',
        _ => return None,
    })
}

fn narrow_digit(c: char) -> char {
    match c {
        '０'..='９' => char::from_u32(c as u32 - '０' as u32 + '0' as u32).unwrap_or(c),
        '－' | '−' => '-',
        c => c,
    }
}

/// A whole number and nothing else but a unit of points and marks around it.
pub(super) fn whole_integer(text: &str) -> Option<i64> {
    let text = strip_marks(text);
    let text = strip_marks(text.strip_suffix(['分', '星', '级']).unwrap_or(text));
    let mut numbers = numbers(text);
    let is_bare = text.chars().map(narrow_digit).all(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    match (numbers.next(), numbers.next()) {
        (Some(Some(number)), None) if is_bare => Some(number),
        _ => None,
    }
}

/// Takes away what is put around an answer: quotes, brackets, emphasis, a list's dash, a full stop.
pub(super) fn strip_marks(text: &str) -> &str {
    const PAIRS: [(&str, &str); 14] = [
        ("\"", "\""),
        ("“", "”"),
        ("‘", "’"),
        ("'", "'"),
        ("「", "」"),
        ("『", "』"),
        ("《", "》"),
        ("【", "】"),
        ("（", "）"),
        ("(", ")"),
        ("**", "**"),
        ("__", "__"),
        ("`", "`"),
        ("*", "*"),
    ];
    let mut text = trim(text);
    let dash = text.strip_prefix(['-', '*', '•', '·']).filter(|rest| rest.starts_with(char::is_whitespace));
    text = trim(dash.unwrap_or(text));
    loop {
        let before = text.len();
        text = trim(text.trim_end_matches(['。', '.', '！', '!', '，', ',', '；', ';', '、']));
        for (open, close) in PAIRS {
            if let Some(inside) = text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)) {
                text = trim(inside);
            }
        }
        if text.len() == before {
            return text;
        }
    }
}

/// Numbers in a text; one that is not whole, or is part of a word or a larger quantity, is `None`.
struct Numbers<'t> {
    rest: &'t str,
    /// A number stands right before `rest`.
    follows: bool,
}

fn numbers(text: &str) -> Numbers<'_> {
    Numbers { rest: text, follows: false }
}

impl Iterator for Numbers<'_> {
    type Item = Option<i64>;

    fn next(&mut self) -> Option<Option<i64>> {
        let is_digit = |c: char| narrow_digit(c).is_ascii_digit();
        let is_word = |c: char| c.is_ascii_alphabetic() || c == '_';
        let (before, from) = self.rest.split_at_checked(self.rest.find(is_digit)?)?;
        let mut ahead = before.chars().rev();
        // `-5` is a number, `1-5` a range.
        let is_signed = ahead.next().is_some_and(|c| narrow_digit(c) == '-');
        let is_negative = is_signed && (ahead.next().is_some() || !self.follows);
        let mut is_plain = !before.ends_with(is_word);
        let end = from.find(|c| !is_digit(c)).unwrap_or(from.len());
        let (digits, mut rest) = from.split_at_checked(end)?;
        if let Some(fraction) = rest.strip_prefix(['.', '．']).filter(|rest| rest.starts_with(is_digit)) {
            rest = fraction.trim_start_matches(|c| narrow_digit(c) == '0');
            is_plain &= !rest.starts_with(is_digit);
            rest = rest.trim_start_matches(is_digit);
        }
        is_plain &= !rest.starts_with(|c| is_word(c) || "%％‰万亿千百十几".contains(c));
        (self.rest, self.follows) = (rest, true);
        let digits: String = digits.chars().map(narrow_digit).collect();
        let number = digits.parse::<i64>().ok().filter(|_| is_plain);
        Some(number.map(|number| if is_negative { -number } else { number }))
    }
}

/// The answer that a line is, or that it gives after a word like `答案：`.
fn answer_on<T>(line: &str, read: &mut dyn FnMut(&str) -> Option<T>) -> Option<T> {
    const GIVES: [&str; 26] = [
        "答案", "输出", "结果", "结论", "标签", "类型", "类别", "分类", "属性", "判断", "判定", "选择", "极性", "情感",
        "情绪", "得分", "评分", "分数", "位置", "身份", "answer", "output", "result", "label", "score", "category",
    ];
    const WITHHOLDS: [&str; 20] = [
        "不", "非", "否", "没", "无", "候选", "备选", "例", "可能", "或", "排除", "错", "可选", "包括", "列表", "以下",
        "所有", "其他", "其它", "not",
    ];
    if let Some(answer) = read(line) {
        return Some(answer);
    }
    let (at, colon) = line.char_indices().rev().find(|(_, c)| matches!(c, ':' | '：' | '】' | '为' | '是'))?;
    let (before, value) = line.split_at_checked(at)?;
    let value = value.strip_prefix(colon)?;
    let before = last_clause(before).to_ascii_lowercase();
    let gives = GIVES.iter().any(|word| before.contains(word)) && !WITHHOLDS.iter().any(|word| before.contains(word));
    if !gives {
        return None;
    }
    // `**答案：** 3`: the emphasis ends behind the colon.
    read(value).or_else(|| read(value.trim_start_matches(['：', ':', '*'])))
}

/// Reads a piece of text that is one label or, if `is_list`, several with separators; `false` if it is neither.
fn read_labels(
    piece: &str,
    labels: &LabelSet,
    is_list: bool,
    picked: &mut Vec<(u32, u32)>,
    unknown: &mut super::Unknown,
) -> bool {
    let piece = strip_marks(piece);
    if let Some(id) = labels.find(piece) {
        picked.push((id, 0));
        return true;
    }
    if !is_list || !piece.contains(SEPARATORS) {
        return false;
    }
    for label in piece.split(SEPARATORS).map(strip_marks).filter(|label| !label.is_empty()) {
        match labels.find(label) {
            Some(id) if picked.contains(&(id, 0)) => {}
            Some(id) => picked.push((id, 0)),
            None => unknown.add(label),
        }
    }
    // `、` only ever lists; a comma may just as well be one of a sentence.
    let is_sentence = !piece.contains('、') && unknown.count as usize > picked.len();
    !picked.is_empty() && !is_sentence && !piece.contains(['。', '！', '？', '：', ':'])
}

/// The one label that the text mentions, if a sentence says that this is it. One that merely occurs, even in
/// quotes, may well be the post's own word.
fn the_only_mention(text: &str, labels: &LabelSet) -> Option<u32> {
    let mut found: Vec<(Range<usize>, u32)> = Vec::new();
    for (id, name) in (0..).zip(labels.names()) {
        for (start, _) in text.match_indices(name.as_str()) {
            found.push((start..start + name.len(), id));
            if found.len() > MAX_TRIES {
                return None;
            }
        }
    }
    let inside = |small: &Range<usize>, large: &Range<usize>| {
        large.start <= small.start && small.end <= large.end && small.len() < large.len()
    };
    let mut mentions = found.iter().filter(|(span, _)| !found.iter().any(|(other, _)| inside(span, other)));
    let (first, id) = mentions.next()?;
    let mut spans = vec![first];
    for (span, other) in mentions {
        if other != id {
            return None;
        }
        spans.push(span);
    }
    let is_given = |span: &&Range<usize>| {
        let (before, after) = (text.get(..span.start).unwrap_or_default(), text.get(span.end..).unwrap_or_default());
        let says = trim(before.trim_end_matches(['“', '"', '「', '『', '‘', '`', '*', '【', '《']));
        let goes_on = trim(after.trim_start_matches(['”', '"', '」', '』', '’', '`', '*', '】', '》']));
        let said = ["是", "为", "属于", "选", "选择", " is"].iter().any(|word| says.ends_with(word))
            && (goes_on.is_empty() || goes_on.starts_with(['。', '.', '！', '!', '，', ',']));
        let sentence = after.split(SENTENCE_ENDS).next().unwrap_or_default();
        said && !is_hedged(last_clause(before)) && !is_hedged(sentence)
    };
    spans.iter().all(is_given).then_some(*id)
}

const SENTENCE_ENDS: [char; 6] = ['。', '！', '!', '？', '；', '\n'];

fn last_clause(before: &str) -> &str {
    before.rsplit(SENTENCE_ENDS).next().and_then(|sentence| sentence.rsplit(['，', ',']).next()).unwrap_or_default()
}

fn first_clause(after: &str) -> &str {
    after.split(SENTENCE_ENDS).next().and_then(|sentence| sentence.split(['，', ',']).next()).unwrap_or_default()
}

/// Words beside which a mention is no answer.
fn is_hedged(clause: &str) -> bool {
    const HEDGES: [&str; 13] =
        ["不", "非", "没", "无法", "否", "排除", "可能", "也许", "或", "除了", "not", "n't", "maybe"];
    let clause = clause.to_ascii_lowercase().replace("非常", "");
    HEDGES.iter().any(|word| clause.contains(word))
}
