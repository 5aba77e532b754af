//! Tables of good and bad answers, a rule each; the labels are those of the embedded reference files.

use proptest::prelude::*;

use super::*;
use crate::analysis::Sources;

fn set() -> AnalysisSet {
    AnalysisSet::load(&Sources::default()).expect("a set")
}

fn judge_by(set: &AnalysisSet, analysis: &str, text: &str) -> Result<(String, Judged), Fault> {
    let rule = &set.list[set.find(analysis).expect("a built-in analysis")].rule;
    let mut out = b"before".to_vec();
    let judged = judge(rule, text, &mut out);
    let value = out.strip_prefix(b"before").expect("only appended to").to_vec();
    let value = String::from_utf8(value).expect("UTF-8");
    assert!(judged.is_ok() || value.is_empty(), "a fault leaves nothing behind: {value}");
    judged.map(|judged| (value, judged))
}

/// (text, value, rung, unknown labels)
type Good<'a> = (&'a str, &'a str, Rung, u32);

#[track_caller]
fn check(analysis: &str, good: &[Good<'_>], bad: &[(&str, FaultKind)]) {
    let set = set();
    for (text, value, rung, unknown_labels) in good {
        let judged = Judged { rung: *rung, unknown_labels: *unknown_labels };
        assert_eq!(judge_by(&set, analysis, text), Ok(((*value).to_owned(), judged)), "{text}");
        let again = Judged { rung: Rung::Strict, unknown_labels: 0 };
        assert_eq!(judge_by(&set, analysis, value), Ok(((*value).to_owned(), again)), "{value} again");
    }
    for (text, kind) in bad {
        let fault = judge_by(&set, analysis, text).expect_err(text);
        assert_eq!(fault.kind, *kind, "{text}: {}", fault.detail);
        assert!(fault.detail.chars().count() < 400 && !fault.detail.contains('\n'), "{}", fault.detail);
    }
}

use FaultKind::{Empty, NotAccepted, Unreadable};
use Rung::{Embedded, Fenced, Mended, Strict, Thinking};

#[test]
fn integers() {
    check(
        "sentiment_polarity",
        &[
            ("3", "3", Strict, 0),
            (" 5\n", "5", Strict, 0),
            ("\u{feff}3", "3", Strict, 0),
            ("\"3\"", "3", Strict, 0),
            ("3.0", "3", Strict, 0),
            ("[3]", "3", Strict, 0),
            ("03", "3", Strict, 0),
            (r#"{"sentiment_polarity":3}"#, "3", Strict, 0),
            (r#"{"sentiment_polarity":"3","why":[1,2]}"#, "3", Strict, 0),
            ("<think>1? 2? 我选 4</think>\n\n4", "4", Thinking, 0),
            ("先看 2 处。</think>4", "4", Thinking, 0),
            ("4<think>1 2</think>", "4", Thinking, 0),
            ("```json\n3\n```", "3", Fenced, 0),
            ("```\n3\n```", "3", Fenced, 0),
            ("```3```", "3", Fenced, 0),
            ("``` 3 ```", "3", Fenced, 0),
            ("```json\n{\"sentiment_polarity\": 2}", "2", Fenced, 0),
            ("<think>嗯</think>```json\n3\n```", "3", Fenced, 0),
            ("<|begin_of_box|>3<|end_of_box|>", "3", Fenced, 0),
            ("```\n3\n```\n即\n```\n3\n```", "3", Fenced, 0),
            ("3。", "3", Embedded, 0),
            ("3分", "3", Embedded, 0),
            ("3 分。", "3", Embedded, 0),
            ("**3**", "3", Embedded, 0),
            ("答案：3", "3", Embedded, 0),
            ("情感极性为 2。", "2", Embedded, 0),
            ("我认为是4分", "4", Embedded, 0),
            ("The answer is 3.", "3", Embedded, 0),
            ("博主不满，但总体非常平静，给 3", "3", Embedded, 0),
            ("文中有 2 处抱怨，1 处感谢。\n\n答案：**2**", "2", Embedded, 0),
            ("2\n理由：提到了 3 次等待。", "2", Embedded, 0),
            ("结果是 {\"sentiment_polarity\": 5}，满分 5。", "5", Embedded, 0),
            ("３", "3", Mended, 0),
            ("评分：３分", "3", Mended, 0),
            ("{'sentiment_polarity': 3,}", "3", Mended, 0),
            ("｛“sentiment_polarity”：３｝", "3", Mended, 0),
            ("{sentiment_polarity: 3}", "3", Mended, 0),
        ],
        &[
            ("", Empty),
            (" \n\t\u{3000}", Empty),
            ("<think>3</think>", Empty),
            ("<think>3 还是 4", Empty),
            ("0", NotAccepted),
            ("6", NotAccepted),
            ("-3", NotAccepted),
            ("我选 -3", NotAccepted),
            ("3.5", NotAccepted),
            ("评分 3.5", NotAccepted),
            ("33", NotAccepted),
            ("99999999999999999999", NotAccepted),
            ("1e3", NotAccepted),
            ("3 或 4", NotAccepted),
            ("3-4", NotAccepted),
            ("3/5", NotAccepted),
            ("1\n2\n3", NotAccepted),
            ("[3,4]", NotAccepted),
            ("[]", NotAccepted),
            ("[1] 这是脚注，答案未知", Unreadable),
            ("不是 3", NotAccepted),
            ("可能是 3。", NotAccepted),
            ("3 不对", NotAccepted),
            ("30%", NotAccepted),
            ("3万", NotAccepted),
            ("v3", NotAccepted),
            ("null", NotAccepted),
            ("true", NotAccepted),
            ("{}", NotAccepted),
            (r#"{"score":3}"#, NotAccepted),
            (r#"{"sentiment_polarity":3,"sentiment_polarity":4}"#, NotAccepted),
            (r#"{"sentiment_polarity":null}"#, NotAccepted),
            (r#"{"sentiment_polarity":3"#, Unreadable),
            ("```\n3\n```\n或\n```\n4\n```", NotAccepted),
            ("中性", Unreadable),
            ("三", Unreadable),
            ("<html>", Unreadable),
        ],
    );
}

#[test]
fn one_label() {
    check(
        "publisher_analysis",
        &[
            ("家长", "\"家长\"", Strict, 0),
            ("  家长\n", "\"家长\"", Strict, 0),
            ("\"家长\"", "\"家长\"", Strict, 0),
            ("\"\\u5bb6\\u957f\"", "\"家长\"", Strict, 0),
            ("\" 家长。\"", "\"家长\"", Strict, 0),
            ("[\"家长\"]", "\"家长\"", Strict, 0),
            ("{\"publisher\": \"家长\"}", "\"家长\"", Strict, 0),
            ("<think>学生？</think>家长", "\"家长\"", Thinking, 0),
            ("```\n家长\n```", "\"家长\"", Fenced, 0),
            ("```家长```", "\"家长\"", Fenced, 0),
            ("```json\n\"家长\"\n```", "\"家长\"", Fenced, 0),
            ("家长。", "\"家长\"", Embedded, 0),
            ("“家长”", "\"家长\"", Mended, 0),
            ("「家长」", "\"家长\"", Mended, 0),
            ("**家长**", "\"家长\"", Embedded, 0),
            ("答案：家长", "\"家长\"", Embedded, 0),
            ("输出: `家长`。", "\"家长\"", Embedded, 0),
            ("【答案】家长", "\"家长\"", Embedded, 0),
            ("用户提到学生和教师。\n\n家长", "\"家长\"", Embedded, 0),
            ("家长\n\n理由：孩子不在学校吃饭，像家长。", "\"家长\"", Embedded, 0),
            ("我认为发布者是家长。", "\"家长\"", Embedded, 0),
            ("他对食堂非常不满，属于“家长”，因为孩子在校。", "\"家长\"", Embedded, 0),
            ("该账号属于“自媒体博主”。", "\"自媒体博主\"", Embedded, 0),
            ("发布者类型：{\"publisher\": \"家长\"}", "\"家长\"", Embedded, 0),
            ("['家长',]", "\"家长\"", Mended, 0),
            ("［“家长”］", "\"家长\"", Mended, 0),
        ],
        &[
            ("", Empty),
            ("火星人", NotAccepted),
            ("“火星人”", NotAccepted),
            ("家", NotAccepted),
            ("家长家长", NotAccepted),
            ("家长、学生", NotAccepted),
            ("家长或学生", NotAccepted),
            ("[\"家长\",\"学生\"]", NotAccepted),
            ("[\"家长\",\"火星人\"]", NotAccepted),
            ("[]", NotAccepted),
            ("\"\"", NotAccepted),
            ("3", NotAccepted),
            ("null", NotAccepted),
            ("{\"a\":\"家长\",\"b\":\"学生\"}", NotAccepted),
            ("不是家长", NotAccepted),
            ("我认为不是家长。", NotAccepted),
            ("这条博文里家长在发言，但身份不明。", Unreadable),
            ("用户说“家长”都来了，别的什么也没有说。", Unreadable),
            ("候选：家长", Unreadable),
            ("应该是家长，但不能确定。", Unreadable),
            ("答案可能是：家长", Unreadable),
            ("家长\n学生", NotAccepted),
            ("答案：家长\n答案：学生", NotAccepted),
            ("[\"家长\"] 或者 [\"学生\"]", NotAccepted),
            ("[\"家长\"", Unreadable),
            ("[\n  \"家长\",\n  \"学", Unreadable),
            ("```\n家长\n```\n```\n学生\n```", NotAccepted),
            ("\u{1b}[31m家长", Unreadable),
        ],
    );
}

#[test]
fn several_labels() {
    check(
        "sentiment_attribute",
        &[
            ("[\"支持\"]", "[\"支持\"]", Strict, 0),
            ("支持", "[\"支持\"]", Strict, 0),
            ("\"支持\"", "[\"支持\"]", Strict, 0),
            ("[\"愤怒\", \"支持\", \"愤怒\"]", "[\"愤怒\",\"支持\"]", Strict, 0),
            ("[\"支持\",\"火星\"]", "[\"支持\"]", Strict, 1),
            ("[\"火星\",\"支持\",null,7]", "[\"支持\"]", Strict, 3),
            ("[\"支持、愤怒\"]", "[\"支持\",\"愤怒\"]", Strict, 0),
            ("{\"labels\":[\"支持\"]}", "[\"支持\"]", Strict, 0),
            ("[\" 支持 \"]", "[\"支持\"]", Strict, 0),
            ("```json\n[\"支持\", \"愤怒\"]\n```", "[\"支持\",\"愤怒\"]", Fenced, 0),
            ("好的，结果如下：\n```json\n[\"支持\"]\n```\n希望有帮助！", "[\"支持\"]", Fenced, 0),
            ("结果：[\"支持\"]。", "[\"支持\"]", Embedded, 0),
            ("支持、愤怒", "[\"支持\",\"愤怒\"]", Embedded, 0),
            ("支持，愤怒", "[\"支持\",\"愤怒\"]", Embedded, 0),
            ("支持, 愤怒", "[\"支持\",\"愤怒\"]", Embedded, 0),
            ("支持、火星、木星", "[\"支持\"]", Embedded, 2),
            ("标签：支持、愤怒。", "[\"支持\",\"愤怒\"]", Embedded, 0),
            ("情感属性是“支持”。", "[\"支持\"]", Embedded, 0),
            ("- 支持\n- 愤怒\n- 支持", "[\"支持\",\"愤怒\"]", Embedded, 0),
            ("[\"支持\",]", "[\"支持\"]", Mended, 0),
            ("[“支持”，“愤怒”]", "[\"支持\",\"愤怒\"]", Mended, 0),
            ("['支持', '愤怒']", "[\"支持\",\"愤怒\"]", Mended, 0),
            ("［\"支持\"，\"愤怒\"］", "[\"支持\",\"愤怒\"]", Mended, 0),
            ("【“支持”】", "[\"支持\"]", Mended, 0),
            ("[支持、愤怒]", "[\"支持\",\"愤怒\"]", Mended, 0),
            ("```json\n['支持',]\n```", "[\"支持\"]", Mended, 0),
            ("答：['支持']", "[\"支持\"]", Mended, 0),
        ],
        &[
            ("[]", NotAccepted),
            ("[\"火星\"]", NotAccepted),
            ("[\"支持\",\"愤怒\",\"不满\",\"讽刺\"]", NotAccepted),
            ("[\"支持\",\"愤怒\",\"不满\",\"讽刺\",\"火星\"]", NotAccepted),
            ("[[\"支持\"]]", NotAccepted),
            ("[1,2]", NotAccepted),
            ("例如 [\"喜悦\"]，但答案是 [\"愤怒\"]", NotAccepted),
            ("[\"支持\", \"愤", Unreadable),
            ("我无法支持这种要求。", NotAccepted),
            ("作者用“支持”讽刺了对方，语气愤怒，最后又说了几句。", Unreadable),
            ("我觉得，支持，这个，说法", Unreadable),
            ("作者说“支持”，其实是讽刺", Unreadable),
            ("抱歉，我不能回答这个问题。", Unreadable),
            ("无", NotAccepted),
            ("可选标签：支持、愤怒", Unreadable),
            ("支持\n其实是\n愤怒", NotAccepted),
            ("支持\n愤怒\n不满\n讽刺", NotAccepted),
        ],
    );
}

#[test]
fn pairs_of_one_child() {
    let one = r#"[{"parent_topic":"教育","sub_topic":"校园管理"}]"#;
    let two = r#"[{"parent_topic":"教育","sub_topic":"校园管理"},{"parent_topic":"教育","sub_topic":"课业负担"}]"#;
    check(
        "topic_analysis",
        &[
            ("[]", "[]", Strict, 0),
            ("[ ]", "[]", Strict, 0),
            (one, one, Strict, 0),
            (r#"{"parent_topic":"教育","sub_topic":"校园管理"}"#, one, Strict, 0),
            (r#"{"topics":[{"parent_topic":"教育","sub_topic":"校园管理"}]}"#, one, Strict, 0),
            (r#"[{"sub_topic":" 校园管理 ","why":{"a":[1]},"parent_topic":"教育"}]"#, one, Strict, 0),
            (r#"[{"parent_topic":"教育","sub_topic":["校园管理","课业负担"]}]"#, two, Strict, 0),
            (
                r#"[{"parent_topic":"教育","sub_topic":"校园管理"},{"parent_topic":"教育","sub_topic":"校园管理"}]"#,
                one,
                Strict,
                0,
            ),
            (
                r#"[{"parent_topic":"教育","sub_topic":"校园管理"},{"parent_topic":"教育","sub_topic":"地震灾害"}]"#,
                one,
                Strict,
                1,
            ),
            (r#"[{"parent_topic":"教育","sub_topic":"校园管理"},7,{"a":1},null]"#, one, Strict, 3),
            ("```json\n[]\n```", "[]", Fenced, 0),
            (
                "```json\n[\n  {\n    \"parent_topic\": \"教育\",\n    \"sub_topic\": \"校园管理\"\n  }\n]\n```",
                one,
                Fenced,
                0,
            ),
            ("没有合适的主题，输出 []。", "[]", Embedded, 0),
            ("见[注]，主题是 [{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\"}] 谢谢", one, Embedded, 0),
            (
                "{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\"}\n{\"parent_topic\":\"教育\",\"sub_topic\":\"课业负担\"}",
                two,
                Embedded,
                0,
            ),
            ("[{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\",},]", one, Mended, 0),
            ("[{“parent_topic”：“教育”，“sub_topic”：“校园管理”}]", one, Mended, 0),
            ("[{'parent_topic': '教育', 'sub_topic': '校园管理'}]", one, Mended, 0),
            ("[{parent_topic: 教育, sub_topic: 校园管理}]", one, Mended, 0),
            ("[{\"parent_topic\":\"教育\n\",\"sub_topic\":\"校园管理\"}]", one, Mended, 0),
        ],
        &[
            (r#"[{"parent_topic":"教育","sub_topic":"地震灾害"}]"#, NotAccepted),
            (r#"[{"parent_topic":"火星","sub_topic":"校园管理"}]"#, NotAccepted),
            (r#"[{"parent_topic":"教育","sub_topic":null}]"#, NotAccepted),
            (r#"[{"parent_topic":"教育"}]"#, NotAccepted),
            (r#"[{"category":"教育","subcategories":["校园管理"]}]"#, NotAccepted),
            (r#"[["教育","校园管理"]]"#, NotAccepted),
            (r#"[{"parent_topic":"教育","sub_topic":["校园管理","课业负担","师德师风"]}]"#, NotAccepted),
            ("null", NotAccepted),
            ("{}", NotAccepted),
            ("[\"教育\"]", NotAccepted),
            ("教育：校园管理", Unreadable),
            ("无", Unreadable),
            (r#"[{"parent_topic":"教育","sub_topic":"校园管理"},{"parent"#, Unreadable),
            ("没有则输出 []，但这里是 [{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\"}]", NotAccepted),
        ],
    );
}

#[test]
fn pairs_of_many_children() {
    let one = r#"[{"category":"科学理性","subcategories":["尊重证据","质疑与求证"]}]"#;
    check(
        "belief_system",
        &[
            ("[]", "[]", Strict, 0),
            (one, one, Strict, 0),
            (
                r#"{"category":"科学理性","subcategories":"尊重证据"}"#,
                r#"[{"category":"科学理性","subcategories":["尊重证据"]}]"#,
                Strict,
                0,
            ),
            (r#"[{"category":"科学理性","subcategories":["尊重证据","质疑与求证","火星"]}]"#, one, Strict, 1),
            (
                r#"[{"category":"科学理性","subcategories":["尊重证据"]},{"category":"科学理性","subcategories":["质疑与求证","尊重证据"]}]"#,
                one,
                Strict,
                0,
            ),
            (
                r#"[{"category":"公平正义","subcategories":["火星"]},{"category":"科学理性","subcategories":["尊重证据","质疑与求证"]}]"#,
                one,
                Strict,
                1,
            ),
        ],
        &[
            (r#"[{"category":"公平正义","subcategories":["尊重证据"]}]"#, NotAccepted),
            (r#"[{"category":"公平正义","subcategories":[]}]"#, NotAccepted),
            (
                r#"[{"category":"公平正义","subcategories":["程序公正"]},{"category":"科学理性","subcategories":["尊重证据"]},
                {"category":"个人权利","subcategories":["知情权"]},{"category":"人生态度","subcategories":["乐观进取"]}]"#,
                NotAccepted,
            ),
        ],
    );
}

#[test]
fn a_refused_answer_names_its_labels_and_is_bounded() {
    let set = set();
    let fault = judge_by(&set, "sentiment_attribute", r#"["火星","木星\u001b[31m"]"#).expect_err("refused");
    assert_eq!(fault.detail, "not in the list: `火星`, `木星\\u{1b}[31m`");
    let many = serde_json::Value::from((0..300).map(|n| format!("{n}x").repeat(20)).collect::<Vec<_>>()).to_string();
    let fault = judge_by(&set, "sentiment_attribute", &many).expect_err("refused");
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
    ] {
        let text = piece.repeat(100_000);
        for analysis in &set.list {
            let started = std::time::Instant::now();
            let _either = judge(&analysis.rule, &text, &mut Vec::new());
            assert!(started.elapsed().as_secs() < 5, "{piece} for {}", analysis.name);
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_and_what_is_accepted_is_accepted_again(
        text in prop_oneof![
            "\\PC{0,60}",
            "[\\[\\]{}\",:：，“”'`\n0-9支持愤怒家长a-z_<>/ \\\\]{0,40}",
            "(答案|是|为|不|：|支持|愤怒|家长|学生|[0-9]|[。，、“”\"\\[\\]{}\n]|```|<think>|</think>){0,12}",
        ]
    ) {
        let set = set();
        let mut judging = Judge::default();
        for analysis in &set.list {
            let mut first = Vec::new();
            if judging.judge(&analysis.rule, &text, &mut first).is_err() {
                prop_assert!(first.is_empty());
                continue;
            }
            let mut again = Vec::new();
            let value = std::str::from_utf8(&first).expect("UTF-8");
            prop_assert!(serde_json::from_str::<serde_json::Value>(value).is_ok());
            let judged = judging.judge(&analysis.rule, value, &mut again);
            prop_assert_eq!(judged, Ok(Judged { rung: Strict, unknown_labels: 0 }));
            prop_assert_eq!(&first, &again);
        }
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
    assert_eq!(
        reader.read(line("sentiment_polarity_007", "3").as_bytes(), &mut tally),
        Outcome::Answer { index: PostIndex(7), analysis: 0, value: b"3", usage }
    );
    let bad = line("sentiment_polarity_8", r"\ud800");
    let outcome = reader.read(bad.as_bytes(), &mut tally);
    assert!(
        matches!(&outcome, Outcome::Fault { index: Some(PostIndex(8)), analysis: Some(0), fault, .. }
            if fault.kind == Unreadable && fault.detail == "no answer in `\u{fffd}`"),
        "{outcome:?}"
    );
    for id in ["nonsense_5", "sentiment_polarity", "sentiment_polarity_-1", "sentiment_polarity_99999999999999999999"] {
        let line = line(id, "3");
        let outcome = reader.read(line.as_bytes(), &mut tally);
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
