//! Posts ⋈ answers → enhanced posts: the post's own bytes, with the analyses' fields replaced where they stand or
//! added at the end, in the order of the table. The merge rule of `design.md` §2 is [`write_enhanced`].

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Fault, FaultKind, PostIndex, posts::Post};
use crate::{
    analysis::AnalysisSet,
    lines::spill::{Cell, Row},
};

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
    let bad = |detail: String| Fault::new(FaultKind::BadLine, detail);
    let text =
        std::str::from_utf8(line).map_err(|e| bad(format!("not an answer: not UTF-8 at byte {}", e.valid_up_to())))?;
    let raw: RawAnswer<'_> = serde_json::from_str(text).map_err(|e| {
        let text = e.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        bad(format!("not an answer: {what} at byte {}", e.column()))
    })?;
    let value = match (raw.value, raw.fault) {
        (Some(value), None) => Some(value.get()),
        (None, Some(fault)) if fault.get().starts_with('{') => None,
        _ => return Err(bad("not an answer: it needs a `value` that is not null, or a `fault` object".to_owned())),
    };
    Ok(AnswerLine { index: PostIndex(raw.index), analysis: raw.analysis, value })
}

/// Appends the enhanced post, without a line break, and says per analysis whether it has a value now.
///
/// Where a key occurs twice an answer replaces both, so that all JSON readers see the same.
pub fn write_enhanced(
    post: &Post<'_>,
    set: &AnalysisSet,
    row: Row<'_>,
    out: &mut Vec<u8>,
    filled: &mut Vec<bool>,
) {
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
