//! Laws of reading an answer. The tables of forms are in `tests/answers.rs`, where the program reads them.

use proptest::prelude::*;

use super::*;
use crate::analysis::Sources;
use crate::flow::tally::Tally;

fn set() -> AnalysisSet {
    AnalysisSet::load(&Sources::default()).expect("a set")
}

/// The value as compact JSON, and how it was read.
fn read(set: &AnalysisSet, analysis: &str, text: &str) -> Result<(String, Judged), Fault> {
    let asked = set.list.get(set.find(analysis).expect("a built-in analysis")).expect("it is in the set");
    let mut out = b"before".to_vec();
    let judged = judge(asked, text, &mut out);
    let value = String::from_utf8(out.strip_prefix(b"before").expect("only appended to").to_vec()).expect("UTF-8");
    assert!(judged.is_ok() || value.is_empty(), "a fault leaves nothing behind: {value}");
    judged.map(|judged| (value, judged))
}

#[test]
fn the_report_tells_how_answers_were_read() {
    let set = set();
    for (text, rung, unknown_labels) in [
        ("[\"支持\"]", Rung::Strict, 0),
        ("支持", Rung::Strict, 0),
        ("[\"支持\",\"火星\",null]", Rung::Strict, 2),
        ("```json\n[\"支持\"]\n```", Rung::Wrapped, 0),
        ("<think>愤怒？</think>“支持”。", Rung::Wrapped, 0),
        ("他很高兴。\n\n[\"支持\"]", Rung::Block, 0),
        ("[\"支持\"]\n理由：他很高兴。", Rung::Block, 0),
        ("所以，标签是：支持", Rung::Introduced, 0),
        ("{'labels': [\"支持\",]}", Rung::Mended, 0),
    ] {
        let judged = Judged { rung, unknown_labels };
        assert_eq!(read(&set, "sentiment_attribute", text), Ok(("[\"支持\"]".to_owned(), judged)), "{text}");
    }
}

#[test]
fn a_refused_answer_names_its_labels_and_is_bounded() {
    let set = set();
    let fault = read(&set, "sentiment_attribute", r#"["火星","木星\u001b[31m"]"#).expect_err("refused");
    assert_eq!(fault.detail, "not in the list: `火星`, `木星\\u{1b}[31m`");
    let many = serde_json::Value::from((0..300).map(|n| format!("{n}x").repeat(20)).collect::<Vec<_>>()).to_string();
    let fault = read(&set, "sentiment_attribute", &many).expect_err("refused");
    assert!(fault.detail.ends_with('…') && fault.detail.chars().count() < 300, "{}", fault.detail);
}

#[test]
fn hostile_texts_end_soon() {
    let set = set();
    for piece in [
        "[",
        "{",
        "[[]",
        "```",
        "\"",
        "\\",
        "{\"a\":",
        "支持",
        "（",
        "**",
        "<think>",
        "</think>",
        "3",
        "3 ",
        "-",
        "、",
        "支持\n",
        "是支持 ",
        "答案",
        "是",
        "3\n",
        "3。",
        "[]\n",
        "“",
        "\\boxed{",
        "支持、",
        " and ",
        "不",
        ". ",
        "'a",
        "//",
        "无 ",
    ] {
        for times in [1_000, 20_000, 100_000] {
            let text = piece.repeat(times);
            for analysis in &set.list {
                let started = std::time::Instant::now();
                let _either = judge(analysis, &text, &mut Vec::new());
                assert!(started.elapsed().as_secs() < 5, "{piece} {times} times for {}", analysis.name);
            }
        }
    }
}

/// Seen with models that fall into a loop: the time grew with the square of the text. Ten times the text takes some ten
/// times as long, not a hundred times; both are measured here, and a moment stands for what is too short to measure. A busy
/// machine spoils single rounds; a reader that is not linear fails all of them.
#[test]
fn r10_6_reading_is_linear() {
    const ROUNDS: usize = 20;
    let set = set();
    let took = |analysis: &Analysis, text: &str| {
        let started = std::time::Instant::now();
        let _either = judge(analysis, text, &mut Vec::new());
        started.elapsed()
    };
    let lines = [("- 支持\n", 1_000), ("支持\n", 1_000), ("支持\n\n", 1_000)];
    let line = [("<a>", 20_000), ("<answer>", 8_000), ("<|begin_of_box|>", 4_000), ("3", 65_000), ("。\n ", 1_000)];
    for (piece, times) in lines.into_iter().chain(line) {
        let (long, short) = (piece.repeat(times), piece.repeat(times / 10));
        for analysis in &set.list {
            let is_linear = || {
                let short = took(analysis, &short).max(std::time::Duration::from_micros(200));
                took(analysis, &long) < 40 * short
            };
            assert!((0..ROUNDS).any(|_| is_linear()), "{piece} {times} times for {}", analysis.name);
        }
    }
}

/// Seen with a list of labels after prose: its lines are one answer, read together.
#[test]
fn r10_6_a_list_of_lines_is_one_answer() {
    let set = set();
    for (text, expected) in [
        ("他来了。\n\n- 支持\n- 愤怒", Some("[\"支持\",\"愤怒\"]")),
        ("他来了。\n\n支持\n愤怒\n\n理由：他来了。", Some("[\"支持\",\"愤怒\"]")),
        ("他来了。\n\n支持\n愤怒\n\n答案：支持、愤怒", Some("[\"支持\",\"愤怒\"]")),
        ("他来了。\n\n支持\n愤怒\n\n答案：支持", None),
        ("他来了。\n\n支持\n愤怒\n\n答案：愤怒\n支持\n愤怒", None),
    ] {
        let read = read(&set, "sentiment_attribute", text).ok().map(|(value, _)| value);
        assert_eq!(read.as_deref(), expected, "{text}");
    }
}

/// Answers as they were asked for, with their analysis.
const STRICT: [(&str, &str); 6] = [
    ("sentiment_polarity", "3"),
    ("publisher_analysis", "家长"),
    ("sentiment_attribute", "[\"支持\",\"愤怒\"]"),
    ("topic_analysis", "[{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\"}]"),
    ("topic_analysis", "[]"),
    ("belief_system", "[{\"category\":\"科学理性\",\"subcategories\":[\"尊重证据\"]}]"),
];

/// Wrapping of one line, then of several.
const INNER: [(&str, &str); 11] = [
    ("《", "》"),
    ("**", "**"),
    ("“", "”"),
    ("「", "」"),
    ("（", "）"),
    ("(", ")"),
    ("$", "$"),
    ("\\boxed{", "}"),
    ("- ", ""),
    ("", "。"),
    ("", "."),
];
const OUTER: [(&str, &str); 4] = [
    ("```json\n", "\n```"),
    ("<answer>\n", "\n</answer>"),
    ("<think>2? [\"不满\"]</think>\n", ""),
    ("<|begin_of_box|>", "<|end_of_box|>"),
];
const INTRODUCED: [(&str, &str); 8] = [
    ("", ""),
    ("答案：", ""),
    ("好的，结果如下：\n", ""),
    ("The answer is ", "."),
    ("他来了。\n\n", ""),
    ("", "\n理由：他来了。"),
    ("### 结论\n", ""),
    ("Here is the answer:\n\n", "\n\nBecause it is so."),
];

/// Clauses with a word that nobody knows; each makes an answer that follows it none.
const STRANGE: [&str; 16] = [
    "不是",
    "不选",
    "我不确定",
    "候选",
    "例如",
    "如果要选",
    "据说",
    "别人会说答案",
    "错误",
    "除了",
    "not",
    "maybe",
    "I cannot say",
    "Rejected",
    "Example",
    "Unless the answer",
];

proptest! {
    #[test]
    fn any_text_is_judged_and_what_is_accepted_is_accepted_again(
        text in prop_oneof![
            "\\PC{0,60}",
            "[\\[\\]{}\",:：，“”'`\n0-9支持愤怒家长a-z_<>/ \\\\]{0,40}",
            "(答案|是|为|不|：|支持|愤怒|家长|学生|[0-9]|[。，、“”\"\\[\\]{}\n]|```|<think>|</think>|理由|answer| is |无){0,12}",
        ]
    ) {
        let set = set();
        let mut judging = Judge::default();
        for analysis in &set.list {
            let mut first = Vec::new();
            if judging.judge(analysis.into(), &text, &mut first).is_err() {
                prop_assert!(first.is_empty());
                continue;
            }
            let mut again = Vec::new();
            let value = std::str::from_utf8(&first).expect("UTF-8");
            prop_assert!(serde_json::from_str::<serde_json::Value>(value).is_ok());
            let judged = judging.judge(analysis.into(), value, &mut again);
            prop_assert_eq!(judged, Ok(Judged { rung: Rung::Strict, unknown_labels: 0 }));
            prop_assert_eq!(&first, &again);
        }
    }

    #[test]
    fn wrapping_changes_no_answer(
        (analysis, answer) in proptest::sample::select(STRICT.to_vec()),
        inner in proptest::sample::subsequence(INNER.to_vec(), 0..5).prop_shuffle(),
        outer in proptest::sample::subsequence(OUTER.to_vec(), 0..4).prop_shuffle(),
        (before, after) in proptest::sample::select(INTRODUCED.to_vec()),
    ) {
        let set = set();
        let wrap = |text: String, (open, close): (&str, &str)| format!("{open}{text}{close}");
        let text = inner.into_iter().chain(outer).fold(answer.to_owned(), wrap);
        // Thinking comes first, and an empty list among words needs an introduction.
        let needs_introduction = answer == "[]" && (before.is_empty() || before.contains('。'));
        let is_free = !text.contains("<think>") && !needs_introduction;
        let text = if is_free { format!("{before}{text}{after}") } else { text };
        let (value, _) = read(&set, analysis, answer).expect("accepted as it is");
        let wrapped = read(&set, analysis, &text).map(|(value, _)| value);
        prop_assert_eq!(wrapped, Ok(value), "{}", text);
    }

    #[test]
    fn a_clause_with_an_unknown_word_gives_no_answer(
        (analysis, answer) in proptest::sample::select(STRICT.to_vec()),
        strange in proptest::sample::select(STRANGE.to_vec()),
        joiner in proptest::sample::select(vec!["", "：", ":", "，", " ", "是", " is ", "：\n", ":\n\n", "，答案是", ", the answer is ", "\n"]),
        (open, close) in proptest::sample::select(INNER.to_vec()),
    ) {
        let set = set();
        let text = format!("{strange}{joiner}{open}{answer}{close}");
        let read = read(&set, analysis, &text);
        prop_assert!(read.is_err(), "{}: {:?}", text, read);
    }
}

#[test]
fn a_line_is_counted_where_it_belongs() {
    let set = set();
    let mut reader = AnswerReader::new(&set);
    let mut tally = Tally::new(set.list.len());
    let line = |id: &str, content: &str| {
        format!(
            r#"{{"custom_id":"{id}","response":{{"status_code":200,"body":{{"usage":{{"prompt_tokens":5,"completion_tokens":2}},
            "choices":[{{"finish_reason":"stop","message":{{"content":"{content}"}}}}]}}}}}}"#
        )
    };
    let usage = Some(Usage { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 });
    let good = line("sentiment_polarity_007", "3");
    let outcome = reader.read(good.as_bytes());
    let judged = Judged { rung: Rung::Strict, unknown_labels: 0 };
    assert_eq!(
        outcome,
        Outcome::Answer { index: PostIndex(7), analysis: 0, value: b"3", judged, usage, surrogates: 0 }
    );
    tally.count(&outcome);
    let bad = line("sentiment_polarity_8", r"\ud800");
    let outcome = reader.read(bad.as_bytes());
    tally.count(&outcome);
    assert!(
        matches!(&outcome, Outcome::Fault { index: Some(PostIndex(8)), analysis: Some(0), fault, text: Some("\u{fffd}"), .. }
            if fault.kind == FaultKind::Unreadable && fault.detail == "no answer in `\u{fffd}`"),
        "{outcome:?}"
    );
    for id in ["nonsense_5", "sentiment_polarity", "sentiment_polarity_-1", "sentiment_polarity_99999999999999999999"] {
        let line = line(id, "3");
        let outcome = reader.read(line.as_bytes());
        tally.count(&outcome);
        assert!(
            matches!(&outcome, Outcome::Fault { analysis: None, fault, .. } if fault.kind == FaultKind::UnknownId),
            "{outcome:?}"
        );
    }
    let counts = &tally.analyses[0];
    assert_eq!((counts.rows, counts.answers, counts.rungs), (2, 1, [1, 0, 0, 0, 0]));
    assert_eq!(counts.usage.total_tokens, 14, "a fault was billed, too");
    assert_eq!(tally.surrogates, 1);
}
