//! What counts as an answer (`zbatch parse`): forms that are read, and texts that hold a value and do not give it.
//! Each table grows by a row with every answer that is found to be read wrongly.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::workdir::WorkDir;

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

const PAIR: &str = r#"[{"parent_topic":"教育","sub_topic":"校园管理"}]"#;

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

/// Every text gives this value of this analysis.
fn given<'t>(analysis: &'t str, value: &'t str, texts: &[&'t str]) -> Vec<(&'t str, &'t str, &'t str)> {
    texts.iter().map(|text| (analysis, *text, value)).collect()
}

/// The table of the contract, row by row, and more of each kind.
#[test]
fn r10_6_these_are_answers() {
    let both = r#"["支持","愤怒"]"#;
    let quoted_pair = json!(PAIR).to_string();
    let one = "校园管理";
    let pair = |text: &str| text.replace("PAIR", PAIR);
    let (own_line, empty_first) = (pair("该博文谈的是学校。\n\nPAIR"), "没有合适的主题，输出 []。");
    let mixed = format!(r#"[{{"parent_topic": "教育”, "sub_topic": "{one}"}}]"#);
    let comment = format!(r#"[{{"parent_topic":"教育","sub_topic":"{one}"}} // 主要{}]"#, "\n");
    let cut = PAIR.strip_suffix(']').unwrap_or_default();
    let rows = [
        given(
            INTEGER,
            "3",
            &[
                "3",
                "\"3\"",
                "３分",
                "**3**",
                "\\boxed{3}",
                "三",
                "3/5",
                "答案：3",
                "情感极性为 3。",
                "我认为是3分",
                "The answer is 3.",
                "Rating: 3",
                r#"{"sentiment_polarity": 3}"#,
                r#"[{"sentiment_polarity": 3}]"#,
                r#"{"result":{"sentiment_polarity":3}}"#,
                "文中有 2 处抱怨。\n\n答案：**3**",
                "3\n理由：提到了 2 次等待。",
                "<think>1? 2?</think>3",
            ],
        ),
        given(
            INTEGER,
            "3",
            &[
                "３",
                "Three",
                "3 out of 5",
                "3 points",
                "评分：三分。",
                "**评分：** 3",
                "**评分**：3",
                "【评分】3",
                "$3$",
                "$\\boxed{3}$",
                "```\n3\n```",
                "```json\n{\"sentiment_polarity\": 3}\n```",
                "<answer>3</answer>",
                "He waits twice. So it is bad.\n<answer>\n3\n</answer>",
                "答案：<answer>\n3\n</answer>",
                "<|begin_of_box|>3<|end_of_box|>",
                "- 3",
                "3.0",
                "{\"answer\": 3}",
                "{\"score\": 1, \"sentiment_polarity\": 3}",
                "{\"answer\": 3, \"reason\": \"2 complaints\"}",
                "{\"答案\": \"3\"}",
                "sentiment_polarity = 3",
                "Sentiment polarity: 3",
                "综上所述，情感极性为：3",
                "好的，结果如下：\n\n```json\n3\n```",
                "### 结论\n3",
                "The post complains twice.\n\n3",
                "So the final rating is 3.",
                "3。因为提到了 2 次等待。",
                "{'sentiment_polarity': 3,}",
                "{sentiment_polarity: 3}",
                "\"{\\\"sentiment_polarity\\\": 3}\"",
                "3\n\n**Reasoning**: it waits 2 hours.",
                "（3）",
                "“３”",
                "  3 \u{200b}\n",
            ],
        ),
        given(
            LABEL,
            "\"家长\"",
            &[
                "家长",
                "“家长”",
                "答案：家长",
                "【答案】家长",
                "我认为发布者是家长。",
                r#"{"publisher":"家长"}"#,
                "用户提到学生和教师。\n\n家长",
                "家长\n\n理由：孩子不在学校吃饭。",
                "1. 家长",
            ],
        ),
        given(
            LABEL,
            "\"家长\"",
            &[
                "「家长」",
                "《家长》。",
                "[家长]",
                "['家长',]",
                "［“家长”］",
                "发布者类型：{\"publisher\": \"家长\"}",
                "publisher: 家长",
                "输出: `家长`。",
                "该账号属于“家长”。",
                "{\"publisher\":\"家长\",\"reason\":\"他说\"没吃饱\"了\"}",
                "{\"publisher_analysis\":\"家长\"}",
                "应为：家长",
                "发布者：家长",
                "根据博文内容，结果如下：\n```json\n\"家长\"\n```",
                "<publisher>家长</publisher>",
                "家长\n因为孩子在校。",
                "{\"publisher\":\n\"家长\"}",
            ],
        ),
        given(
            ENGLISH,
            "\"positive\"",
            &["Positive", "POSITIVE.", "Sentiment: positive", "Answer: **Positive**", r#"{"sentiment":"Positive"}"#],
        ),
        given(
            ENGLISH,
            "\"positive\"",
            &[
                "Ｐositive",
                "«Positive»",
                "The sentiment is positive.",
                "Overall, the sentiment of this review is positive.",
                "Label = Positive",
                "Here is the answer:\n\npositive",
                "The guest liked the staff. The room was clean.\n\n**Positive**",
                "positive\n\nReason: the guest liked it.",
                "Sure! The label is:\npositive",
                "<sentiment>positive</sentiment>",
                "Final answer: \\boxed{\\text{Positive}}",
                "{\"Answer\": \"POSITIVE\"}",
                "I would choose: positive",
            ],
        ),
        given(
            LABELS,
            both,
            &[
                r#"["支持","愤怒"]"#,
                "支持、愤怒",
                "- 支持\n- 愤怒",
                "1. 支持\n2. 愤怒",
                "标签：支持、愤怒。",
                "好的，结果如下：\n[\"支持\",\"愤怒\"]",
                r#"[{"label":"支持"},{"label":"愤怒"}]"#,
            ],
        ),
        given(
            LABELS,
            both,
            &[
                "支持，愤怒",
                "支持\n愤怒",
                "1、支持\n2、愤怒",
                "标签如下：\n- 支持\n- 愤怒",
                "标签：\n\n1. **支持**\n2. **愤怒**",
                "支持和愤怒",
                "[支持、愤怒]",
                "［\"支持\"，\"愤怒\"］",
                "[“支持”，“愤怒”]",
                "{\"labels\":[\"支持\",\"愤怒\"]}",
                "{\"sentiment_attribute\":[\"支持\",\"愤怒\"]}",
                "[\"支持、愤怒\"]",
                "[\"支持\",\"愤怒\"",
                "[\"支持\",\"愤怒\",\"火星\"]",
                "情感属性是“支持”、“愤怒”。",
                "```json\n[\"支持\",\n\"愤怒\"]\n```\n\n理由：语气激烈。",
                "用户表达了不满。最终标签：[\"支持\",\"愤怒\"]",
            ],
        ),
        given(
            NONE,
            "[]",
            &[
                "[]",
                "none",
                "无",
                "No complaints",
                "None.",
                "\"none\"",
                "[\"None\"]",
                "没有",
                "答案：无",
                "Labels: []",
                "no relevant complaints",
                "{\"complaints\": []}",
            ],
        ),
        given(
            NONE,
            r#"["late delivery","Price"]"#,
            &[
                "late delivery, price",
                "Late delivery and price",
                "- Late Delivery\n- PRICE",
                "Complaints: late delivery, price.",
                "[\"LATE DELIVERY\", \"ｐrice\"]",
            ],
        ),
        given(PAIRS, PAIR, &[PAIR, &quoted_pair, &mixed, &comment, &own_line]),
        given(
            PAIRS,
            PAIR,
            &[
                cut,
                "[{parent_topic: 教育, sub_topic: 校园管理}]",
                "{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\"}",
                "主题：{\"topics\":[{\"parent_topic\":\"教育\",\"sub_topic\":[\"校园管理\"]}]}",
                "[{\"parent_topic\":\"教育\",\"sub_topic\":\"校园管理\",\"why\":\"他说\"管得严\"\n吧\"}]",
                "[{“parent_topic”：“教育”，“sub_topic”：“校园管理”}]",
            ],
        ),
        given(PAIRS, "[]", &["[]", empty_first, "没有合适的主题。", "无", "答案：[]", "输出：\n```json\n[]\n```"]),
        given(
            BOOLEAN,
            "true",
            &[
                "true",
                "True",
                "是",
                "Yes.",
                r#"{"mentions_refund": true}"#,
                "\"yes\"",
                "1",
                "Answer: yes",
                "{\"mentions_refund\": True}",
            ],
        ),
        given(BOOLEAN, "false", &["答案：否", "No", "{\"answer\": false}", "没有", "答案是否"]),
    ];
    check(&rows.concat());
}

/// Every text holds a value of its kind, or several, and gives none.
fn refused<'t>(analysis: &'t str, texts: &[&'t str]) -> Vec<(&'t str, &'t str)> {
    texts.iter().map(|text| (analysis, *text)).collect()
}

/// The table of the contract, all of which an earlier version accepted, and more of each kind.
#[test]
fn r10_6_these_are_not() {
    let pair = |text: &str| text.replace("PAIR", PAIR);
    let pairs = [
        "不属于 PAIR",
        "候选：PAIR",
        "例如：\nPAIR",
        "{\"error\":PAIR}",
        "{\"example\":PAIR}",
        "PAIR 不合适",
        "不应输出：\n\nPAIR",
        "If it were about school: PAIR",
        "PAIR\n[]",
        "没有合适的主题，输出 PAIR。",
        "PAIR\n\n以上只是例子。",
    ]
    .map(pair);
    let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
    let rows = [
        refused(
            INTEGER,
            &[
                "无法评分。错误码：4",
                "Error: 4",
                "N/A (4)",
                "5分制",
                "评分标准：5",
                "我拒绝评价（规则3）",
                "低于3分",
                ">3",
                "共4条评论",
                "步骤3",
                "默认值为3，但无法判断",
            ],
        ),
        refused(
            INTEGER,
            &[
                "3级",
                "3 stars",
                "3%",
                "3-5",
                "3~5",
                "3 或 4",
                "3、4",
                "3 4",
                "≥3",
                "3+",
                "至少3",
                "不超过3分",
                "第3条",
                "v3",
                "3/10",
                "4/3",
                "百分之三",
                "3.5",
                "三人",
                "满分5",
                "Max rating: 5",
                "Rating scale: 5",
                "评分：3，但不确定",
                "评分：3？",
                "如果必须评分，答案是3。",
                "I would refuse, but the answer is 3.",
                "Not 3.",
                "The answer is not 3.",
                "评分不是3",
                "例：3",
                "例如：\n3",
                "错误示范：\n\n3",
                "错误示范：\n答案：\n3",
                "3\n这个评分不对。",
                "答案：3。不对，应该更低。",
                "答案：3\n答案：4",
                "3\n理由：不好说。\n答案：4",
                "{\"error\": 3}",
                "{\"max\": 5}",
                "{\"answer\": 3, \"score\": 4}",
                "{\"sentiment_polarity\": 3, \"sentiment_polarity\": 4}",
                "[3, 4]",
                "Confidence: 3",
                "HTTP 4",
                "见第 3 段",
                "Step 3: think",
                "Page 3 of 5",
                "1. 抱怨\n2. 讽刺\n3",
                "rating between 1 and 5",
                "It is 3 o'clock.",
                "他说，答案是3。",
                "<error>3</error>",
                "```\n3\n```\n或\n```\n4\n```",
                "评分规则如下：\n1\n2\n3",
                "I can't rate this: 3",
                "{\"sentiment_polarity\":",
                "3 is too high",
                "a rating of 3 would be wrong",
            ],
        ),
        refused(
            LABEL,
            &[
                "不符合[\"学生\"]",
                "[\"学生\"]不合适",
                r#"{"error":"学生"}"#,
                r#"{"not":"学生"}"#,
                "该博文的读者是学生。",
                "假如是学生。",
            ],
        ),
        refused(
            LABEL,
            &[
                "不是学生",
                "并非学生。",
                "可能是学生。",
                "学生？",
                "学生或家长",
                "学生\n家长",
                "[\"学生\",\"家长\"]",
                "除了学生",
                "排除：学生",
                "候选：学生",
                "答案可能是：学生",
                "答案：学生或家长",
                "答案：学生。也可能是家长。",
                "博文提到了学生",
                "用户说“学生”。",
                "如果他是学生，答案就是学生。",
                "我不能回答：学生",
                "学生太多了。",
                "学生，但不能确定",
                "{\"rejected\":\"学生\"}",
                "{\"publisher\":\"学生\",\"publisher_analysis\":\"家长\"}",
                "{\"label\":\"学生\",\"error\":\"x\"}",
                "为学生。",
                "不要回答\n学生",
                "以下答案是错误的：\n学生",
                "错误答案\n\n学生",
                "学生\n\n以上为错误示范。",
                "<rejected>学生</rejected>",
                "\"学生\"不合适",
            ],
        ),
        refused(
            ENGLISH,
            &[
                "not positive",
                "The answer is not positive.",
                "Positive?",
                "positive or negative",
                "I cannot say positive.",
                "If I had to guess: positive",
                "It may be positive.",
                "positive\nnegative",
                "{\"not\": \"positive\"}",
                "Possible labels: positive",
                "Sentiment: positive?",
                "Sentiment: not positive",
                "Neither is the sentiment positive.",
                "The reader is positive.",
                "A wrong answer would be:\n\npositive",
                "positive\n\nThis is wrong.",
                "I can't label this as positive.",
                "Example answer: positive",
                "e.g. positive",
                "positive feedback is missing",
                "Rejected: positive",
                "Without context, the sentiment is positive.",
            ],
        ),
        refused(
            LABELS,
            &[
                "不应选择[\"不满\"]",
                "抱歉，我不能输出[\"不满\"]",
                "I cannot choose [\"不满\"].",
                "例如[\"不满\"]",
                r#"{"rejected":["不满"]}"#,
                r#"{"candidates":["不满","讽刺","愤怒"]}"#,
            ],
        ),
        refused(
            LABELS,
            &[
                "不选：不满",
                "不是支持、愤怒",
                "非不满",
                "可选标签：支持、愤怒",
                "支持、火星",
                "排除的标签：\n- 不满",
                "排除的标签\n\n- 不满",
                "- 不是支持\n- 愤怒",
                "我无法支持这种要求。",
                "支持\n其实是\n愤怒",
                "[\"支持\"]\n[\"愤怒\"]",
                "[\"支持\"] 或 [\"愤怒\"]",
                "[\"支持\"]\n这个标签不合适。",
                "标签：[\"支持\"]吗？",
                "[\"支持\", \"愤",
                "{\"example\":[\"不满\"]}",
                "作者用“支持”讽刺了对方。",
                "不满，讽刺，都不合适",
                "{\"labels\":[\"支持\"],\"candidates\":[\"愤怒\"]}",
                "[\"支持\",",
                "以下标签都不合适：\n[\"不满\"]",
                "```json\n[\"不满\"]\n```\n不合适",
            ],
        ),
        refused(
            NONE,
            &[
                "No late delivery",
                "No answer",
                "没有答案",
                "no idea",
                "Not late delivery",
                "none of them fit, maybe price",
                "I cannot answer.\n\n[]",
                "抱歉，无法判断。\n[]",
                "{\"error\": []}",
                "[]\n原因：抱歉，我无法回答。",
                "There is no price.",
                "I have no complaints about answering, but I will not.",
                "No complaints? late delivery",
            ],
        ),
        refused(
            PAIRS,
            &[
                "抱歉，我无法回答。[]",
                r#"{"error":[]}"#,
                "抱歉，我无法回答。\n\n[]",
                "{\"topics\":null}",
                "没有答案",
                "无法识别。",
                "教育：校园管理",
            ],
        ),
        refused(PAIRS, &pairs),
        refused(
            BOOLEAN,
            &[
                "not true",
                "是吗？",
                "是否",
                "是不是",
                "yes or no",
                "可能是",
                "{\"error\": true}",
                "true?",
                "I cannot say yes.",
                "不是",
                "没有提到退款",
            ],
        ),
    ]
    .concat();
    assert!(rows.len() > 150);
    none_is_accepted(&rows);
}

#[track_caller]
fn none_is_accepted(rows: &[(&str, &str)]) {
    let accepted: Vec<String> = rows
        .iter()
        .zip(read(rows))
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

/// Found by a reviewer who wrote some 800 texts that give no answer: outlines, comments that take a value back, headings,
/// quotations, half sentences, questions, and the names of things.
#[test]
fn r10_6_what_a_reviewer_found_is_no_answer() {
    let integers = [
        "1. Analysis: The guest is upset. I cannot give a rating.",
        "1. 情绪激烈。\n2. 语气不满。\n3. 分析：综合来看无法判断。",
        "2. 理由：无法判断",
        "5. Because of the wait, I cannot say.",
        "[3] // 不合适",
        "[3] # wrong",
        "[3]\n// no, it should be 4",
        "{\"answer\":3}\n# 这个答案是错的",
        "{\"answer\": /* not */ 3}",
        "3\n依据不足，无法评分。",
        "3。依据不足，仅供参考。",
        "3\n理由不充分，我收回这个评分。",
        "3\n说明：以上为错误示例。",
        "错误示例\n答案：3",
        "## Wrong example\nAnswer: 3",
        "If I had to guess\nAnswer: 3",
        "The guest wrote\n> Rating: 3",
        "用户原文如下。\n> 评分：3",
        "例如：\n3\n3",
        "错误示范：\n答案：3\n答案：3",
        "不能说…答案是3",
        "Do not answer; rating: 3",
        "Wrong, e.g. Answer: 3",
        "Is the answer 3",
        "主题3",
        "Topic 3",
        "Class 3",
        "立场 2",
        "选择3",
    ];
    let labels = [
        "[\"学生\"] // 不是",
        "学生\n解释不通，应该不是学生",
        "学生\n分析后认为不是",
        "学生\n分析：其实更像家长",
        "不应选择\n答案：学生",
        "以下答案有误\n答案：学生",
        "如果必须选一个\n答案：学生",
        "例如：\n学生\n学生",
        "假如必须选；答案是学生",
        "回答学生",
        "判断学生",
        "情绪：\n\n> 学生",
    ];
    let english = [
        "{\"sentiment\":\"positive\" // or negative\n}",
        "{\"sentiment\": /* not */ \"positive\"}",
        "positive\nAnalysis not possible",
        "positive\nReason unclear",
        "Not this\nSentiment: positive",
        "> Sentiment: positive",
        "If forced; answer: positive",
        "Is this positive",
    ];
    let lists = ["不满\n说明这个标签不对", "可选\n标签：支持、愤怒"];
    let booleans = ["否\n依据不足", "1. Reason: bla", "0. Analysis: x", "Is the answer no"];
    let rows = [
        refused(INTEGER, &integers),
        refused(LABEL, &labels),
        refused(ENGLISH, &english),
        refused(LABELS, &lists),
        refused(BOOLEAN, &booleans),
    ];
    none_is_accepted(&rows.concat());
}
