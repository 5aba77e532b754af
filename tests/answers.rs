//! Which texts `zbatch parse` takes for an answer, and which texts hold a value without giving it.
//! The tables are in `fixtures/answers`. An answer that is found to be read wrongly becomes a row there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::workdir::{WorkDir, fixture};

const INTEGER: &str = "sentiment_polarity";
const LABEL: &str = "publisher_analysis";
const LABELS: &str = "sentiment_attribute";
const PAIRS: &str = "topic_analysis";
/// A label rule of `positive` and `negative`; labels of complaints, at least none; a boolean rule.
const ENGLISH: &str = "sentiment";
const NONE: &str = "complaints";
const BOOLEAN: &str = "mentions_refund";
const ADDED: [(&str, &str, &str); 3] = [
    (ENGLISH, r#"{"type":"label"}"#, r#"["positive","negative"]"#),
    (NONE, r#"{"type":"labels","min":0,"max":2}"#, r#"["late delivery","rude staff","Price"]"#),
    (BOOLEAN, r#"{"type":"boolean"}"#, "[]"),
];

/// What each text comes to: its value as compact JSON, or the kind of its fault.
pub fn read(rows: &[(&str, &str)]) -> Vec<String> {
    let dir = WorkDir::new();
    for (name, rule, labels) in ADDED {
        let reference = if name == BOOLEAN { "" } else { r#","reference":{"file":"labels.json"}"# };
        let analysis = format!(r#"{{"name":"{name}","field":"{name}","rule":{rule}{reference}}}"#);
        dir.write(&format!("asked/{name}/analysis.json"), analysis)
            .write(&format!("asked/{name}/prompt.txt"), "{{labels}} {{content}}")
            .write(&format!("asked/{name}/labels.json"), labels);
    }
    let line = |(index, (analysis, text)): (usize, &(&str, &str))| {
        let choice = json!({"finish_reason": "stop", "message": {"content": text}});
        let id = format!("{analysis}_{index:04}");
        json!({"custom_id": id, "response": {"status_code": 200, "body": {"choices": [choice]}}}).to_string() + "\n"
    };
    let input: String = rows.iter().enumerate().map(line).collect();
    let ran = dir.pipe(input, &["parse", "--analyses", "asked", "--max-faults", "100%", "-q"]).exits(0);
    let word = |answer: &Value| answer.pointer("/fault/kind").and_then(Value::as_str).map(str::to_owned);
    ran.json_lines()
        .iter()
        .map(|answer| word(answer).unwrap_or_else(|| answer.get("value").cloned().unwrap_or_default().to_string()))
        .collect()
}

#[track_caller]
fn check(rows: &[(&str, &str, &str)]) {
    let texts: Vec<(&str, &str)> = rows.iter().map(|(analysis, text, _)| (*analysis, *text)).collect();
    let wrong: Vec<String> = rows
        .iter()
        .zip(read(&texts))
        .filter(|((.., wanted), seen)| wanted != seen)
        .map(|((analysis, text, wanted), seen)| format!("{analysis} {text:?}: {seen}, not {wanted}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// The rows of a table in `fixtures/answers`: analysis, text, and the value as compact JSON (`null`: none is given).
fn table(name: &str) -> Vec<(String, String, String)> {
    let lines = fixture(&format!("answers/{name}"));
    let text = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).expect(key).to_owned();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {line}: {e}"));
        (text(&row, "analysis"), text(&row, "text"), row.get("value").cloned().unwrap_or_default().to_string())
    };
    lines.lines().map(row).collect()
}

fn borrowed(rows: &[(String, String, String)]) -> Vec<(&str, &str, &str)> {
    rows.iter().map(|(analysis, text, value)| (analysis.as_str(), text.as_str(), value.as_str())).collect()
}

/// Every text is the answer, or says in known words that the answer follows.
#[test]
fn r10_6_these_are_answers() {
    let rows = table("given.jsonl");
    assert!(rows.len() > 150, "{} rows", rows.len());
    check(&borrowed(&rows));
}

/// Every text holds a value of its kind, or several, and gives none. An earlier version accepted many of them.
#[test]
fn r10_6_these_are_not() {
    let rows = table("not_given.jsonl");
    assert!(rows.len() > 150, "{} rows", rows.len());
    none_is_accepted(&rows);
}

#[track_caller]
fn none_is_accepted(rows: &[(String, String, String)]) {
    let texts: Vec<(&str, &str)> = borrowed(rows).into_iter().map(|(analysis, text, _)| (analysis, text)).collect();
    let accepted: Vec<String> = texts
        .iter()
        .zip(read(&texts))
        .filter(|(_, seen)| !["not_accepted", "unreadable", "empty"].contains(&seen.as_str()))
        .map(|((analysis, text), seen)| format!("{analysis} {text:?}: {seen}"))
        .collect();
    assert!(accepted.is_empty(), "{} of {}:\n{}", accepted.len(), rows.len(), accepted.join("\n"));
}

/// One value of the kind is `not_accepted`, none is `unreadable`, several are `not_accepted`.
#[test]
fn r10_6_a_fault_tells_one_value_from_none() {
    check(&[
        (INTEGER, "我想说的是 3 吧", "not_accepted"),
        (INTEGER, "3 吧，或者 4", "not_accepted"),
        (INTEGER, "中性", "unreadable"),
        (INTEGER, "6", "not_accepted"),
        (LABEL, "文中提到了学生", "not_accepted"),
        (LABEL, "火星人", "not_accepted"),
        (LABEL, "抱歉，这条内容我不便判断，请换一条。", "unreadable"),
        (LABELS, "抱歉，我不能回答这个问题。", "unreadable"),
        (ENGLISH, "The mood is not POSITIVE at all.", "not_accepted"),
        (PAIRS, "抱歉，我无法回答。[]", "not_accepted"),
        (PAIRS, "教育，校园管理，都谈到了", "unreadable"),
        (INTEGER, "", "empty"),
        (INTEGER, "<think>3</think>", "empty"),
    ]);
}

/// The forms of the demo in both languages stay apart: nothing is accepted in one that is refused in the other.
#[test]
fn r10_6_english_is_an_equal_citizen() {
    let texts = |positive: &str, label: &str| -> Vec<(String, bool)> {
        let rows: BTreeMap<&str, bool> = [
            ("LABEL", true),
            ("“LABEL”", true),
            ("**LABEL**", true),
            ("LABEL.", true),
            ("NAME: LABEL", true),
            ("NAME = LABEL", true),
            ("{\"answer\": \"LABEL\"}", true),
            ("{\"wrong\": \"LABEL\"}", false),
            ("LABEL?", false),
            ("? NAME LABEL x", false),
        ]
        .into();
        rows.into_iter().map(|(text, good)| (text.replace("LABEL", positive).replace("NAME", label), good)).collect()
    };
    for (analysis, label, name) in [(ENGLISH, "positive", "Sentiment"), (LABEL, "家长", "发布者")] {
        let rows = texts(label, name);
        let asked: Vec<(&str, &str)> = rows.iter().map(|(text, _)| (analysis, text.as_str())).collect();
        for ((text, good), seen) in rows.iter().zip(read(&asked)) {
            assert_eq!(seen == format!("\"{label}\""), *good, "{text}: {seen}");
        }
    }
}

/// Texts of a reviewer that give no answer: outlines, comments that take a value back, headings, quotations, half sentences,
/// questions, and the names of things.
#[test]
fn r10_6_what_a_reviewer_found_is_no_answer() {
    none_is_accepted(&table("not_given_by_outlines_and_quotations.jsonl"));
}
