//! Posts ⋈ answers → enhanced posts: the post's own bytes, with the analyses' fields replaced where they stand or
//! added at the end, in the order of the table. The merge rule of `README.md` is [`write_enhanced`].
//!
//! [`Enhanced`] is the one join of `merge` and `run`. The faults of a row differ: `merge` has lines of answers, `run` also knows
//! which rows were asked for ([`Job`]).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Fault, FaultKind, FaultLine, PostIndex,
    chunks::{InputHash, InputMark},
    faults::FaultLog,
    kept_faults::KeptFaultsReader,
    posts::{Place, Post, PostCounts, Posts},
    shards::{Key, Sorted, field},
    tally::Tally,
};
use crate::{
    analysis::AnalysisSet,
    error::{self, Error, Kind},
    json::{Object, complaint},
};

/// Faults that went by, counted and written down.
#[derive(Debug)]
pub struct Seen {
    pub tally: Tally,
    pub log: FaultLog,
}

impl Seen {
    pub fn add(&mut self, analysis: Option<usize>, fault: &FaultLine) -> error::Result<()> {
        self.tally.add_fault(analysis, fault);
        self.log.add(fault)
    }
}

/// Posts with their fields, in order.
#[derive(Debug)]
pub struct Enhanced<'a> {
    set: &'a AnalysisSet,
    posts: Posts,
    answers: Answers,
    /// `None`: the answers come from lines of `parse`.
    job: Option<Job>,
    seen: Seen,
    /// The present post with its fields, and the place of an unreadable one.
    line: Vec<u8>,
    unreadable: Vec<u8>,
    filled: Vec<bool>,
    faults: Vec<(Option<usize>, FaultLine)>,
    /// A post was readable. Until then its unreadable places are only counted: without any post, nothing is written.
    began: bool,
    held: u64,
    is_ready: bool,
    /// Below it no post has its index.
    end: u64,
}

impl<'a> Enhanced<'a> {
    /// The first post has the index `start_index`; `sorted` has the answers, one field an analysis.
    pub fn new(
        set: &'a AnalysisSet,
        posts: Posts,
        start_index: u64,
        sorted: Sorted,
        job: Option<Job>,
        seen: Seen,
    ) -> Self {
        let mut unreadable = Vec::new();
        write_unreadable(set, &mut unreadable);
        Self {
            set,
            posts,
            answers: Answers::new(sorted, set.list.len()),
            job,
            seen,
            line: Vec::new(),
            unreadable,
            filled: Vec::new(),
            faults: Vec::new(),
            began: false,
            held: 0,
            is_ready: false,
            end: start_index,
        }
    }

    /// The next post with its fields, without a line break. After the last one, the answers and faults of indexes that have
    /// no post were added to the faults.
    #[expect(clippy::should_implement_trait, reason = "a line borrows from the join, and reading may fail")]
    pub fn next(&mut self) -> error::Result<Option<&[u8]>> {
        loop {
            if self.began && self.held > 0 {
                self.held -= 1;
                return Ok(Some(&self.unreadable));
            }
            if std::mem::take(&mut self.is_ready) {
                return Ok(Some(&self.line));
            }
            if !self.read()? {
                self.add_rest()?;
                return Ok(None);
            }
        }
    }

    /// What was seen, how many posts there were, and what `run` knows.
    pub fn finish(self) -> (Seen, PostCounts, Option<Job>) {
        (self.seen, self.posts.counts(), self.job)
    }

    /// Reads one place of the input.
    fn read(&mut self) -> error::Result<bool> {
        let Self { set, seen, line, filled, faults, .. } = self;
        let Some(place) = self.posts.next()? else { return Ok(false) };
        let index = place.index.0;
        self.end = index.saturating_add(1);
        let row = self.answers.row(index)?;
        line.clear();
        faults.clear();
        match &place.post {
            Ok(post) => write_enhanced(post, set, row, line, filled),
            Err(_) => {
                line.extend_from_slice(&self.unreadable);
                filled.clear();
                filled.resize(set.list.len(), false);
            }
        }
        match &mut self.job {
            None => add_answer_faults(set, &place, row, filled, faults),
            Some(job) => job.add_faults(set, &place, row, filled, &mut seen.tally, faults)?,
        }
        for (at, fault) in &*faults {
            seen.add(*at, fault)?;
        }
        for (tally, &filled) in seen.tally.analyses.iter_mut().zip(&*filled) {
            tally.note_post(index, filled);
        }
        self.began |= place.post.is_ok();
        self.is_ready = self.began;
        self.held += u64::from(!self.began);
        Ok(true)
    }

    fn add_rest(&mut self) -> error::Result<()> {
        let Self { set, answers, job, seen, end, .. } = self;
        match job {
            None => answers.rest(*end, |index, at, _| {
                let why = "the input has no such post";
                seen.add(Some(at), &row_fault(set, index, at, FaultKind::UnknownId, why))
            }),
            Some(job) => {
                answers.rest(*end, |_, at, cell| match cell {
                    Cell::Fault(payload) if ![ABSENT, PENDING].contains(&payload) => {
                        seen.add(Some(at), &read_back(payload)?)
                    }
                    _ => Ok(()),
                })?;
                while let Some((at, fault)) = job.stray_up_to(u64::MAX)? {
                    seen.add(at, &fault)?;
                }
                Ok(())
            }
        }
    }
}

/// A fault of one row of the join.
fn row_fault(set: &AnalysisSet, index: u64, at: usize, kind: FaultKind, detail: &str) -> FaultLine {
    FaultLine {
        index: Some(index),
        analysis: set.list.get(at).map(|analysis| analysis.name.clone()),
        ..FaultLine::new(Fault::new(kind, detail))
    }
}

const CONFLICT: &str = "different answers; the first of them is kept";

/// The faults of a place, where lines of answers are all that is known.
fn add_answer_faults(
    set: &AnalysisSet,
    place: &Place<'_>,
    row: Row<'_>,
    filled: &[bool],
    faults: &mut Vec<(Option<usize>, FaultLine)>,
) {
    let index = place.index.0;
    let mut add = |at: usize, kind: FaultKind, detail: &str| {
        faults.push((Some(at), row_fault(set, index, at, kind, detail)));
    };
    match &place.post {
        Ok(_) => {
            for (at, &filled) in filled.iter().enumerate() {
                if row.conflict(at) {
                    add(at, FaultKind::Conflict, CONFLICT);
                }
                if !filled && row.cell(at) == Cell::Absent {
                    add(at, FaultKind::Absent, "no answer, and no value in the post");
                }
            }
        }
        Err(bad) => {
            faults.push((None, bad.clone()));
            for at in (0..set.list.len()).filter(|at| row.cell(*at) != Cell::Absent) {
                let fault = row_fault(set, index, at, FaultKind::UnknownId, "an answer for a post that cannot be read");
                faults.push((Some(at), fault));
            }
        }
    }
}

/// The payload of a row whose batch is not done.
pub const PENDING: &[u8] = b"";
/// The payload of a row that was asked for and is in no results file. Other faults have their [`FaultLine`] as payload.
pub const ABSENT: &[u8] = b"-";

/// What a job knows beside the posts and the answers. Each row that was asked for has an answer, a fault, [`ABSENT`] or
/// [`PENDING`].
#[derive(Debug)]
pub struct Job {
    /// Faults of posts and requests, found when chunks were cut.
    cut: KeptFaultsReader,
    /// Lines of results files that are no row of their chunk, with their faults as payload.
    strays: Sorted,
    /// The last stray fault that was given. Of one index and field only the first is told.
    given: Option<(u64, u16)>,
    /// The job was cancelled while it was cut: rows without an answer may be in no chunk.
    is_uncut: bool,
    /// `--faults` is given, so that the next round leaves out rows with a final fault.
    skips_final: bool,
    input: InputHash,
    /// A field is missing that another round would ask for.
    is_askable: bool,
}

impl Job {
    pub fn new(cut: KeptFaultsReader, strays: Sorted, is_uncut: bool, skips_final: bool) -> Self {
        let (given, input) = (None, InputHash::default());
        Self { cut, strays, given, is_uncut, skips_final, input, is_askable: false }
    }

    /// The mark of the posts that were read.
    pub fn mark(&mut self) -> InputMark {
        self.input.mark()
    }

    pub fn is_askable(&self) -> bool {
        self.is_askable
    }

    /// The faults of a place, sorted by analysis; of one analysis, those of rendering come first, those of strays last.
    fn add_faults(
        &mut self,
        set: &AnalysisSet,
        place: &Place<'_>,
        row: Row<'_>,
        filled: &[bool],
        tally: &mut Tally,
        faults: &mut Vec<(Option<usize>, FaultLine)>,
    ) -> error::Result<()> {
        let index = place.index.0;
        self.input.add(place.bytes);
        faults.extend(place.post.as_ref().err().map(|bad| (None, bad.clone())));
        while let Some(fault) = self.cut.up_to(index)? {
            // The fault of a place that is no post is known from the place.
            if fault.index == Some(index) && place.post.is_ok() {
                faults.push((fault.analysis.as_deref().and_then(|name| set.find(name)), fault));
            }
        }
        for (at, (&filled, tally)) in filled.iter().zip(&mut tally.analyses).enumerate() {
            let mut here = |kind, detail| faults.push((Some(at), row_fault(set, index, at, kind, detail)));
            if row.conflict(at) {
                here(FaultKind::Conflict, CONFLICT);
            }
            let cell = row.cell(at);
            let (mut is_final, mut is_pending) = (false, false);
            match cell {
                Cell::Absent => continue,
                Cell::Value(_) => tally.answers += 1,
                Cell::Fault(PENDING) => is_pending = true,
                Cell::Fault(ABSENT) if self.is_uncut => is_pending = true,
                Cell::Fault(ABSENT) => here(FaultKind::Absent, "asked for, and in no results file"),
                Cell::Fault(payload) => {
                    let fault = read_back(payload)?;
                    is_final = fault.kind.is_final();
                    faults.push((Some(at), fault));
                }
            }
            tally.rows += 1;
            tally.pending += u64::from(is_pending);
            // The next round does not ask for a row that this one did not ask for, nor for one that it leaves out.
            let is_skipped = is_final && self.skips_final;
            self.is_askable |= !(filled || is_pending || is_skipped);
        }
        while let Some((at, fault)) = self.stray_up_to(index)? {
            faults.push((at, fault));
        }
        faults.sort_by_key(|(at, _)| *at);
        Ok(())
    }

    /// The next fault of a stray line, and its analysis, if its index is `last` or lower.
    fn stray_up_to(&mut self, last: u64) -> error::Result<Option<(Option<usize>, FaultLine)>> {
        while let Some((key, payload)) = self.strays.up_to(last)? {
            let place = (key.index, key.field);
            if key.field == NO_FIELD {
                return Ok(Some((None, read_back(payload)?)));
            }
            if self.given.replace(place) != Some(place) {
                return Ok(Some((Some(usize::from(key.field)), read_back(payload)?)));
            }
        }
        Ok(None)
    }
}

/// The field of strays that have no index or no analysis; they come behind all others.
const NO_FIELD: u16 = u16::MAX;

/// The key of a stray line's fault.
pub fn stray_key(index: Option<u64>, analysis: Option<usize>, rank: u64) -> Key {
    let (index, field) = match (index, analysis) {
        (Some(index), Some(at)) => (index, field(at)),
        _ => (u64::MAX, NO_FIELD),
    };
    Key { index, field, is_fault: true, rank }
}

/// A fault that waited in the temp file.
fn read_back(payload: &[u8]) -> error::Result<FaultLine> {
    serde_json::from_slice(payload)
        .map_err(|e| Error::new(Kind::Io, format!("read a fault back from the temp file: {e}")))
}

/// The sorted answers, folded into one row for each post.
#[derive(Debug)]
pub struct Answers {
    sorted: Sorted,
    row: Folded,
}

impl Answers {
    /// `fields` is how many fields a row has.
    pub fn new(sorted: Sorted, fields: usize) -> Self {
        Self { sorted, row: Folded { cells: vec![Kept::default(); fields], payloads: Vec::new() } }
    }

    /// The answers for one post. Indexes must ascend; gaps are allowed.
    pub fn row(&mut self, index: u64) -> error::Result<Row<'_>> {
        self.row.clear();
        while let Some((key, payload)) = self.sorted.up_to(index)? {
            if key.index == index {
                self.row.fold(key, payload);
            }
        }
        Ok(Row { cells: &self.row.cells, payloads: &self.row.payloads })
    }

    /// Calls `each` with index, field and cell of every answer from `index` on, in order; nothing is left then.
    pub fn rest(
        &mut self,
        index: u64,
        mut each: impl FnMut(u64, usize, Cell<'_>) -> error::Result<()>,
    ) -> error::Result<()> {
        while let Some(next) = self.sorted.index()? {
            let row = self.row(next)?;
            for (field, kept) in row.cells.iter().enumerate() {
                if kept.state != State::Absent && next >= index {
                    each(next, field, row.cell(field))?;
                }
            }
        }
        Ok(())
    }
}

/// One row, while its answers come: a value beats any fault, equal values count once, and of different values the one of the
/// lowest rank is kept.
#[derive(Debug)]
struct Folded {
    cells: Vec<Kept>,
    payloads: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    state: State,
    conflict: bool,
    rank: u64,
    start: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Absent,
    Fault,
    Value,
}

impl Kept {
    fn payload<'a>(&self, payloads: &'a [u8]) -> &'a [u8] {
        payloads.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl Folded {
    fn clear(&mut self) {
        self.cells.fill(Kept::default());
        self.payloads.clear();
        self.payloads.shrink_to(KEPT_BYTES);
    }

    /// Entries come in the order of their keys, so that only one of the same rank may still take the place of the first.
    fn fold(&mut self, key: Key, payload: &[u8]) {
        let Some(kept) = self.cells.get_mut(usize::from(key.field)) else { return };
        let old = kept.payload(&self.payloads);
        match kept.state {
            State::Absent => {}
            State::Value if key.is_fault || old == payload => return,
            State::Value | State::Fault => {
                kept.conflict |= kept.state == State::Value;
                if (kept.rank, old) <= (key.rank, payload) {
                    return;
                }
                // It is the last one: fields come in order.
                self.payloads.truncate(kept.start);
            }
        }
        kept.state = if key.is_fault { State::Fault } else { State::Value };
        (kept.start, kept.len, kept.rank) = (self.payloads.len(), payload.len(), key.rank);
        self.payloads.extend_from_slice(payload);
    }
}

/// Bytes of payloads that a row keeps room for.
const KEPT_BYTES: usize = 1 << 20;

/// The answers for one post.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    cells: &'a [Kept],
    payloads: &'a [u8],
}

/// What is known for one post and field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    Absent,
    Value(&'a [u8]),
    Fault(&'a [u8]),
}

impl<'a> Row<'a> {
    pub fn cell(&self, field: usize) -> Cell<'a> {
        let Some(kept) = self.cells.get(field) else { return Cell::Absent };
        match kept.state {
            State::Absent => Cell::Absent,
            State::Fault => Cell::Fault(kept.payload(self.payloads)),
            State::Value => Cell::Value(kept.payload(self.payloads)),
        }
    }

    /// There were different values; the one of the lowest rank is in the cell.
    pub fn conflict(&self, field: usize) -> bool {
        self.cells.get(field).is_some_and(|kept| kept.conflict)
    }
}

/// A line that `parse` wrote: what was answered for one post and analysis.
#[derive(Debug)]
pub struct AnswerLine<'a> {
    pub index: PostIndex,
    pub analysis: Cow<'a, str>,
    /// JSON as it was written; `None`: the answer was a fault.
    pub value: Option<&'a str>,
}

/// Keys that are not needed here are passed over.
#[derive(Deserialize)]
struct RawAnswer<'a> {
    index: u64,
    #[serde(borrow)]
    analysis: Cow<'a, str>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    fault: Option<&'a RawValue>,
}

/// # Errors
/// A line that is not one answer; an answer is never null.
pub fn parse_answer(line: &[u8]) -> Result<AnswerLine<'_>, Fault> {
    if let Some(answer) = parse_own(line) {
        return Ok(answer);
    }
    let bad = |detail: String| Fault::new(FaultKind::BadLine, detail);
    let text =
        std::str::from_utf8(line).map_err(|e| bad(format!("not an answer: not UTF-8 at byte {}", e.valid_up_to())))?;
    let Object(raw): Object<RawAnswer<'_>> = serde_json::from_str(text)
        .map_err(|e| bad(format!("not an answer: {} at byte {}", complaint(&e), e.column())))?;
    let value = match (raw.value, raw.fault) {
        (Some(value), None) => Some(value.get()),
        (None, Some(fault)) if fault.get().starts_with('{') => None,
        _ => return Err(bad("not an answer: it needs a `value` that is not null, or a `fault` object".to_owned())),
    };
    Ok(AnswerLine { index: PostIndex(raw.index), analysis: raw.analysis, value })
}

/// A line just as `parse` writes it, in half the time. Whatever is not quite so is left to [`parse_answer`]: the value is
/// read by serde here, too, and of the rest every byte is looked at.
fn parse_own(line: &[u8]) -> Option<AnswerLine<'_>> {
    let text = std::str::from_utf8(line).ok()?;
    let (index, rest) = digits(text.strip_prefix(r#"{"index":"#)?)?;
    let (analysis, rest) = rest.strip_prefix(r#","analysis":""#)?.split_once('"')?;
    let rest = rest.strip_prefix(r#","value":"#)?;
    if analysis.contains('\\') || rest.starts_with("null") {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
    let value = values.next()?.ok()?.get();
    let mut rest = rest.get(values.byte_offset()..)?;
    if let Some(usage) = rest.strip_prefix(r#","usage":{"prompt_tokens":"#) {
        let (_, usage) = digits(usage)?;
        let (_, usage) = digits(usage.strip_prefix(r#","completion_tokens":"#)?)?;
        let (_, usage) = digits(usage.strip_prefix(r#","total_tokens":"#)?)?;
        rest = usage.strip_prefix('}')?;
    }
    (rest == "}").then_some(AnswerLine {
        index: PostIndex(index),
        analysis: Cow::Borrowed(analysis),
        value: Some(value),
    })
}

/// A number as JSON has it, without sign or leading zero, and what follows it.
fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit())?;
    let (number, rest) = text.split_at_checked(end)?;
    if number.len() > 1 && number.starts_with('0') {
        return None;
    }
    Some((number.parse().ok()?, rest))
}

/// Appends the enhanced post, without a line break, and says per analysis whether it has a value now.
///
/// Where a key occurs twice an answer replaces both, so that all JSON readers see the same.
pub fn write_enhanced(post: &Post<'_>, set: &AnalysisSet, row: Row<'_>, out: &mut Vec<u8>, filled: &mut Vec<bool>) {
    let line = post.line.as_bytes();
    let mut copied = 0;
    for value in post.values() {
        let analysis = set.list.iter().position(|analysis| analysis.field_slot == value.slot);
        if let Some(Cell::Value(answer)) = analysis.map(|at| row.cell(at)) {
            out.extend_from_slice(line.get(copied..value.start).unwrap_or_default());
            out.extend_from_slice(answer);
            copied = value.end;
        }
    }
    let (end, mut comma) = post.end();
    out.extend_from_slice(line.get(copied..end).unwrap_or_default());
    filled.clear();
    for (at, analysis) in set.list.iter().enumerate() {
        let added: &[u8] = match (row.cell(at), post.raw(analysis.field_slot), &analysis.fallback) {
            (Cell::Value(_), Some(_), _) => {
                filled.push(true);
                continue;
            }
            (Cell::Absent | Cell::Fault(_), Some(own), _) => {
                filled.push(own != "null");
                continue;
            }
            (Cell::Value(answer), None, _) => answer,
            (Cell::Fault(_), None, Some(fallback)) => fallback.as_bytes(),
            (Cell::Absent | Cell::Fault(_), None, _) => b"null",
        };
        filled.push(added != b"null");
        write_field(&analysis.field_json, added, &mut comma, out);
    }
    out.extend_from_slice(line.get(end..).unwrap_or_default());
}

/// Appends what stands for a post that cannot be read: the analyses' fields alone, all null.
pub fn write_unreadable(set: &AnalysisSet, out: &mut Vec<u8>) {
    let mut comma = false;
    out.push(b'{');
    for analysis in &set.list {
        write_field(&analysis.field_json, b"null", &mut comma, out);
    }
    out.push(b'}');
}

fn write_field(field_json: &str, value: &[u8], comma: &mut bool, out: &mut Vec<u8>) {
    if *comma {
        out.push(b',');
    }
    *comma = true;
    out.extend_from_slice(field_json.as_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::Sources,
        flow::{posts::PostParser, shards::Shards},
    };
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Analysis, and its value or, if it was a fault, nothing.
    type Answer<'a> = (usize, Option<&'a str>);

    fn built_in() -> AnalysisSet {
        AnalysisSet::load(&Sources::default()).expect("embedded data is sound")
    }

    /// Two analyses, the second with a fallback.
    fn two() -> AnalysisSet {
        let only = vec!["sentiment_polarity".to_owned(), "topic_analysis".to_owned()];
        let mut set = AnalysisSet::load(&Sources { only, ..Sources::default() }).expect("embedded data is sound");
        set.list[1].fallback = Some("[]".to_owned());
        set
    }

    fn sorted(answers: &[Answer<'_>]) -> Answers {
        let mut shards = Shards::new(6, 1 << 20, &std::env::temp_dir()).expect("shards");
        for (rank, (analysis, value)) in (0..).zip(answers) {
            let field = u16::try_from(*analysis).expect("few");
            let key = Key { index: 0, field, is_fault: value.is_none(), rank };
            shards.push(key, value.unwrap_or_default().as_bytes()).expect("pushed");
        }
        Answers::new(shards.sorted(), 6)
    }

    fn merge(set: &AnalysisSet, post: &str, answers: &[Answer<'_>]) -> (String, Vec<bool>) {
        let mut parser = PostParser::default();
        let post = parser.parse(&set.fields, PostIndex(0), post.as_bytes()).expect("a post");
        let (mut out, mut filled) = (Vec::new(), Vec::new());
        write_enhanced(&post, set, sorted(answers).row(0).expect("a row"), &mut out, &mut filled);
        (String::from_utf8(out).expect("UTF-8"), filled)
    }

    /// The short way may only give what the long way gives.
    #[test]
    fn own_lines_are_read_as_serde_reads_them() {
        let value = r#"[{"a":"b\"}",  "c":[1e9]}]"#;
        for (line, is_own) in [
            (format!(r#"{{"index":17,"analysis":"a","value":{value}}}"#), true),
            (r#"{"index":0,"analysis":"a","value":"中","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#.to_owned(), true),
            (r#"{"index":18446744073709551616,"analysis":"a","value":1}"#.to_owned(), false),
            (r#"{"index":01,"analysis":"a","value":1}"#.to_owned(), false),
            (r#"{"index":-1,"analysis":"a","value":1}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":null}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":nul}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"\u0061","value":1}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":1,"value":2}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":1}}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":1"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":1,"usage":{"prompt_tokens":1}}"#.to_owned(), false),
            (r#"{"index":1,"analysis":"a","value":"\ud800"}"#.to_owned(), true),
        ] {
            let own = parse_own(line.as_bytes());
            assert_eq!(own.is_some(), is_own, "{line}");
            if let Some(own) = own {
                let slow = serde_json::from_str::<RawAnswer<'_>>(&line).expect("an answer");
                let same = (slow.index, &*slow.analysis, slow.value.map(RawValue::get));
                assert_eq!((own.index.0, &*own.analysis, own.value), same, "{line}");
            }
        }
    }

    #[test]
    fn the_merge_rule() {
        let set = two();
        let (own, null, none) = (r#"{"topics":[1]}"#, r#"{"topics":null}"#, "{}");
        for (post, answer, topics, has_value) in [
            (own, Some(Some("[2]")), "[2]", true),
            (own, Some(None), "[1]", true),
            (own, None, "[1]", true),
            (null, Some(Some("[2]")), "[2]", true),
            (null, Some(None), "null", false),
            (null, None, "null", false),
            (none, Some(Some("[2]")), "[2]", true),
            (none, Some(None), "[]", true),
            (none, None, "null", false),
        ] {
            let answers: Vec<Answer<'_>> = answer.into_iter().map(|value| (1, value)).collect();
            let (out, filled) = merge(&set, post, &answers);
            let expected = match post {
                "{}" => format!(r#"{{"sentiment_polarity":null,"topics":{topics}}}"#),
                _ => format!(r#"{{"topics":{topics},"sentiment_polarity":null}}"#),
            };
            assert_eq!((out, filled), (expected, vec![false, has_value]), "{post} {answer:?}");
        }
    }

    #[test]
    fn own_bytes_stay_as_they_are() {
        let set = two();
        let answers = [(0, Some("4")), (1, Some(r#"[{"parent_topic":"a", "sub_topic":"b"}]"#))];
        let topics = answers[1].1.expect("a value");
        for (post, expected) in [
            (
                r#" { "n" : 1e999, "topics" :null , "u":"\u00e9\ud83d", "x":{"topics":[7]} } "#,
                format!(
                    r#" {{ "n" : 1e999, "topics" :{topics} , "u":"\u00e9\ud83d", "x":{{"topics":[7]}} ,"sentiment_polarity":4}} "#
                ),
            ),
            ("{ }", format!(r#"{{ "sentiment_polarity":4,"topics":{topics}}}"#)),
            (
                r#"{"topics":1,"a":2,"a":3,"topic\u0073":4}"#,
                format!(r#"{{"topics":{topics},"a":2,"a":3,"topic\u0073":{topics},"sentiment_polarity":4}}"#),
            ),
        ] {
            assert_eq!(merge(&set, post, &answers).0, expected);
        }
    }

    #[test]
    fn a_post_that_cannot_be_read_keeps_its_place() {
        let mut out = Vec::new();
        write_unreadable(&two(), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), r#"{"sentiment_polarity":null,"topics":null}"#);
    }

    #[test]
    fn answers_are_read_and_judged_as_lines() {
        let answer = parse_answer(br#"{"usage":{"index":9},"index":1,"analysis":"a\u0062","value":{"x": [1e999]}}"#);
        let answer = answer.expect("an answer");
        assert_eq!((answer.index.0, &*answer.analysis, answer.value), (1, "ab", Some(r#"{"x": [1e999]}"#)));
        let fault = parse_answer(br#"{"index":1,"analysis":"a","fault":{"kind":"empty","detail":""}}"#);
        assert_eq!(fault.expect("an answer").value, None);
        for line in [
            &b""[..],
            b"17",
            b"[1]",
            b"{}",
            br#"{"index":-1,"analysis":"a","value":1}"#,
            br#"{"index":1.0,"analysis":"a","value":1}"#,
            br#"{"index":"1","analysis":"a","value":1}"#,
            br#"{"index":18446744073709551616,"analysis":"a","value":1}"#,
            br#"{"index":1,"index":2,"analysis":"a","value":1}"#,
            br#"{"index":1,"analysis":null,"value":1}"#,
            br#"{"index":1,"analysis":"a","value":null}"#,
            br#"{"index":1,"analysis":"a"}"#,
            br#"{"index":1,"analysis":"a","value":1,"fault":{}}"#,
            br#"{"index":1,"analysis":"a","fault":"x"}"#,
            br#"{"index":1,"analysis":"a","value":[1}"#,
            br#"{"index":1,"analysis":"a","value":1} {}"#,
            b"{\"index\":1,\"analysis\":\"a\",\"value\":\"\xff\"}",
        ] {
            let fault = parse_answer(line).expect_err("a fault");
            assert_eq!(fault.kind, FaultKind::BadLine, "{}", String::from_utf8_lossy(line));
        }
    }

    /// A post with some of the fields, in any place, and own keys between them.
    fn posts() -> impl Strategy<Value = String> {
        let key = prop_oneof![
            Just("sentiment_polarity".to_owned()),
            Just("topics".to_owned()),
            Just("publisher".to_owned()),
            "[a-z\u{4e2d}\"\\\\]{0,4}"
        ];
        let value =
            prop_oneof![Just("null"), Just("1e999"), Just("\"\\u4e2d\""), Just("{ \"topics\" : 1}"), Just("[]")];
        let space = prop_oneof![Just(""), Just(" "), Just("\t")];
        proptest::collection::vec((key, value, space), 0..6).prop_map(|members| {
            let member = |(key, value, space): &(String, &str, &str)| {
                format!("{space}{}{space}:{space}{value}{space}", serde_json::to_string(key).expect("a string"))
            };
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        })
    }

    /// index, field, rank, a value or a fault, its payload.
    type Pushed = (u64, u16, u64, bool, Vec<u8>);
    /// A value or a fault, its payload, and whether there was a conflict.
    type Cells = BTreeMap<(u64, usize), (bool, Vec<u8>, bool)>;

    fn pushed() -> impl Strategy<Value = Vec<Pushed>> {
        let index = prop_oneof![0u64..30, 0u64..300, (1u64 << 40)..(1 << 40) + 20, u64::MAX - 3..=u64::MAX];
        let payload = proptest::collection::vec(b'a'..b'c', 0..3);
        proptest::collection::vec((index, 0u16..3, 0u64..6, any::<bool>(), payload), 0..200)
    }

    /// The rule of `docs/formats.md`, in its words.
    fn naive(answers: &[Pushed]) -> Cells {
        let mut places: BTreeMap<(u64, usize), Vec<&Pushed>> = BTreeMap::new();
        for answer in answers {
            places.entry((answer.0, usize::from(answer.1))).or_default().push(answer);
        }
        let cell = |all: Vec<&Pushed>| {
            let values: Vec<_> = all.iter().filter(|a| a.3).copied().collect();
            let of = if values.is_empty() { all } else { values };
            let first = of.iter().min_by_key(|a| (a.2, &a.4)).expect("one at least");
            (first.3, first.4.clone(), first.3 && of.iter().any(|a| a.4 != first.4))
        };
        places.into_iter().map(|(place, all)| (place, cell(all))).collect()
    }

    fn folded(answers: &[Pushed]) -> Answers {
        let mut shards = Shards::new(3, 256, &std::env::temp_dir()).expect("shards");
        for (index, field, rank, is_value, payload) in answers {
            let key = Key { index: *index, field: *field, is_fault: !is_value, rank: *rank };
            shards.push(key, payload).expect("pushed");
        }
        Answers::new(shards.sorted(), 3)
    }

    fn take(answers: &mut Answers, index: u64, cells: &mut Cells) {
        let row = answers.row(index).expect("a row");
        for field in 0..3 {
            let (is_value, payload) = match row.cell(field) {
                Cell::Absent => continue,
                Cell::Value(payload) => (true, payload.to_vec()),
                Cell::Fault(payload) => (false, payload.to_vec()),
            };
            cells.insert((index, field), (is_value, payload, row.conflict(field)));
        }
    }

    proptest! {
        #[test]
        fn answers_are_folded_whatever_their_order(answers in pushed(), posts in 0u64..400, step in 1usize..4) {
            let mut expected = naive(&answers);
            let (mut folded, mut cells) = (folded(&answers), Cells::new());
            for index in (0..posts).step_by(step) {
                take(&mut folded, index, &mut cells);
            }
            let mut rest = Vec::new();
            folded.rest(posts, |index, field, _| { rest.push((index, field)); Ok(()) }).expect("the rest");
            let after = expected.split_off(&(posts, 0));
            expected.retain(|(index, _), _| index % step as u64 == 0);
            prop_assert_eq!(cells, expected);
            prop_assert_eq!(rest, after.into_keys().collect::<Vec<_>>());
        }

        #[test]
        fn rounds_give_what_one_merge_gives(
            post in posts(),
            answers in proptest::collection::vec((0usize..6, proptest::option::of(Just(())), any::<bool>()), 0..10),
        ) {
            let set = built_in();
            let values = ["4", r#"["喜悦"]"#, "[]", "\"p\"", "[ 1 ]", "\"d\""];
            let all: Vec<Answer<'_>> = answers.iter().map(|(at, value, _)| (*at, value.map(|()| values[*at]))).collect();
            let (mut first, mut second) = (Vec::new(), Vec::new());
            for (answer, (.., early)) in all.iter().zip(&answers) {
                if *early { first.push(*answer) } else { second.push(*answer) }
            }
            let (once, filled) = merge(&set, &post, &all);
            let (round, _) = merge(&set, &post, &first);
            prop_assert_eq!(&merge(&set, &round, &second).0, &once, "in rounds");
            prop_assert_eq!(&merge(&set, &once, &all).0, &once, "the same answers twice");
            prop_assert_eq!(&merge(&set, &once, &[]).0, &once, "no answers");
            let value: serde_json::Value = serde_json::from_str(&once.replace("1e999", "1")).expect("JSON");
            for ((analysis, filled), at) in set.list.iter().zip(filled).zip(0..) {
                let field = value.get(&analysis.field).expect("every field is there");
                prop_assert_eq!(!field.is_null(), filled);
                if all.contains(&(at, Some(values[at]))) {
                    prop_assert_eq!(field, &serde_json::from_str::<serde_json::Value>(values[at]).expect("JSON"));
                }
            }
        }
    }
}
