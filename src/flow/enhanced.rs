//! Posts ⋈ answers → enhanced posts: the post's own bytes, with the analyses' fields replaced where they stand or
//! added at the end, in the order of the table. The merge rule of `README.md` is [`write_enhanced`].

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Fault, FaultKind, PostIndex, posts::Post};
use crate::{
    analysis::AnalysisSet,
    json::{Object, complaint},
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
        flow::posts::PostParser,
        lines::spill::{AnswerStore, Joined},
    };
    use proptest::prelude::*;

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

    fn joined(answers: &[Answer<'_>]) -> Joined {
        let mut store = AnswerStore::new(6, 1 << 20, &std::env::temp_dir()).expect("a store");
        for (rank, (analysis, value)) in (0..).zip(answers) {
            match value {
                Some(value) => store.push_value(0, *analysis, rank, value.as_bytes()).expect("pushed"),
                None => store.push_fault(0, *analysis, rank, b"").expect("pushed"),
            }
        }
        store.join()
    }

    fn merge(set: &AnalysisSet, post: &str, answers: &[Answer<'_>]) -> (String, Vec<bool>) {
        let mut parser = PostParser::default();
        let post = parser.parse(&set.fields, PostIndex(0), post.as_bytes()).expect("a post");
        let (mut out, mut filled) = (Vec::new(), Vec::new());
        write_enhanced(&post, set, joined(answers).row(0).expect("a row"), &mut out, &mut filled);
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

    proptest! {
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
