//! What a prompt says: the labels that are in force and no others, examples that its own rule accepts, and template logic that
//! does what it says or is refused.
#![expect(clippy::indexing_slicing, reason = "a test may panic, and so may what it calls")]

use serde_json::{Value, json};

use crate::workdir::{Ran, WorkDir, repository};

const POST: &str = r#"{"content":"正文","username":"张三","body":"Text"}"#;

/// The prompts of one post, by analysis.
fn prompts(ran: &Ran) -> Vec<(String, String)> {
    let prompt = |line: Value| {
        let content = &line["body"]["messages"][0]["content"];
        let id = line["custom_id"].as_str().expect("an id").trim_end_matches("_0000").to_owned();
        (id, content.as_str().or_else(|| content[0]["text"].as_str()).expect("a prompt").to_owned())
    };
    ran.json_lines().into_iter().map(prompt).collect()
}

/// An analysis `q` with this rule and prompt, asked about [`POST`].
fn ask(dir: &WorkDir, rule: &Value, prompt: &str, more: &[&str]) -> Ran {
    let json = json!({
        "name": "q", "field": "q", "rule": rule, "reference": {"file": "labels.json"}, "requires": []
    });
    dir.write("an/q/analysis.json", json.to_string()).write("an/q/prompt.txt", prompt);
    dir.pipe(POST, &[&["gen", "--analyses=an", "--only=q"], more].concat())
}

fn labels() -> Value {
    json!({"type": "labels", "min": 0, "max": 2})
}

/// Seen with `{{body|upper}}` in an English prompt: the filter ran on nothing, and the text came as it was.
#[test]
fn r10_13_template_logic_on_a_field_of_the_post_is_refused() {
    let dir = WorkDir::new();
    dir.write("an/q/labels.json", r#"["Yes","No"]"#);
    for prompt in [
        "{{labels}} {{body|upper}}",
        "{{labels}} {{ body | trim }}",
        "{{labels}} {{body|default('nothing')}}",
        "{{labels}} {% if body == 'x' %}short{% endif %}{{body}}",
        "{{labels}} {% if body is defined %}there{% endif %}{{body}}",
        "{{labels}} {% if 'x' in body %}there{% endif %}{{body}}",
        "{{labels}} {% for word in body %}{{word}}{% endfor %}",
        "{{labels}} {{body ~ '!'}}",
        "{{labels}} {% set short = body %}{{short}}",
        "{{labels}} {% filter upper %}{{body}}{% endfilter %}",
    ] {
        let ran = ask(&dir, &labels(), prompt, &["-o", "out.jsonl"]).exits(65);
        for says in [
            "analysis an/q, prompt.txt: `body` is used in a filter, a test",
            "can only be placed, as `{{content}}` is",
            "fix: ",
        ] {
            assert!(ran.stderr.contains(says), "{prompt}: {}", ran.stderr);
        }
        assert!(!dir.exists("out.jsonl"));
    }
    let ran = ask(&dir, &labels(), "{{labels}} {{body}} {{body[:100]}}", &[]).exits(65);
    assert!(ran.stderr.contains("`body` is undefined") && ran.stderr.contains("can only be placed"), "{}", ran.stderr);
    let ran = ask(&dir, &labels(), "{{labels}}\n{%- if true %} {{- body -}} {% endif %}\n", &[]).exits(0);
    assert_eq!(prompts(&ran), [("q".to_owned(), "- Yes\n- NoText".to_owned())]);
}

/// Seen with `{{labels|join(", ")}}`: `-,  , Y, e, s` and so on, character by character.
#[test]
fn r10_13_filters_and_loops_over_labels_see_the_labels() {
    let dir = WorkDir::new();
    dir.write("an/q/labels.json", r#"["Yes","No"]"#);
    let prompt = |prompt: &str| prompts(&ask(&dir, &labels(), prompt, &[]).exits(0)).remove(0).1;
    assert_eq!(prompt("{{labels|join(', ')}}: {{body}}"), "Yes, No: Text");
    assert_eq!(prompt("{% for l in labels %}<{{l}}>{% endfor %}{{body}}"), "<Yes><No>Text");
    assert_eq!(prompt("{{labels|length}} {{labels|first|upper}} {{labels[1]}} {{body}}"), "2 YES No Text");
    assert_eq!(prompt("{{labels|upper}} {{labels ~ '!'}} {{body}}"), "- YES\n- NO - Yes\n- No! Text");
    dir.write("an/q/labels.json", r#"[{"topic":"A","subs":["a","b"]},{"topic":"B","subs":["c"]}]"#);
    let pairs =
        json!({"type": "pairs", "parent": "topic", "child": "sub", "reference_children": "subs", "min": 1, "max": 2});
    let prompt = |prompt: &str| prompts(&ask(&dir, &pairs, prompt, &[]).exits(0)).remove(0).1;
    assert_eq!(prompt("{{labels}}{{body}}"), "- A：a、b\n- B：cText");
    assert_eq!(prompt("{{labels|join('; ')}}{{body}}"), "A：a、b; B：cText");
    assert_eq!(prompt("{% for l in labels %}{{l.topic}}={{l.sub|join('+')}} {% endfor %}{{body}}"), "A=a+b B=c Text");
    let integer = json!({"type": "integer", "min": 1, "max": 3});
    let prompt = |prompt: &str| prompts(&ask(&dir, &integer, prompt, &[]).exits(0)).remove(0).1;
    assert_eq!(prompt("{{labels}}: {{labels|join('/')}} {{body}}"), "1–3: 1/2/3 Text");
    let wide = json!({"type": "integer", "min": 0, "max": 1_000_000_000_000_u64});
    assert!(ask(&dir, &wide, "{{labels|join}} {{body}}", &[]).exits(65).stderr.contains("cannot join"));
}

/// Seen with a prompt that named other labels than its list.
#[test]
fn r10_13_a_label_rule_whose_prompt_has_no_labels_is_noted() {
    let dir = WorkDir::new();
    dir.write("an/q/labels.json", r#"["Yes","No"]"#);
    let noted = "q: its prompt has no {{labels}}";
    let said = |rule: Value, prompt: &str| ask(&dir, &rule, prompt, &[]).exits(0).stderr;
    assert_eq!(said(labels(), "Positive or negative? {{body}}").matches(noted).count(), 1);
    assert!(said(json!({"type": "label"}), "{# {{labels}} #}{{body}}").contains(noted));
    assert!(!said(labels(), "{% for l in labels %}{{l}}{% endfor %}{{body}}").contains(noted));
    assert!(!said(json!({"type": "integer", "min": 0, "max": 9}), "{{body}}").contains(noted));
}

/// Every string of a reference file.
fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| strings(value, into)),
        Value::Object(map) => map.values().for_each(|value| strings(value, into)),
        _ => {}
    }
}

const LISTS: [(&str, &str, &str); 5] = [
    ("sentiment_attribute", "sentiment_attributes.json", r#"["甲","乙"]"#),
    ("topic_analysis", "topics.json", r#"[{"parent_topic":"甲","sub_topics":["乙"]}]"#),
    ("publisher_analysis", "publisher_objects.json", r#"["甲","乙"]"#),
    ("belief_system", "believe_system_common.json", r#"[{"category":"甲","subcategories":["乙"]}]"#),
    ("publisher_decision", "publisher_decision.json", r#"[{"category":"甲"}]"#),
];

/// Seen with a user's own publishers: the list had no 普通网民, and the prompt went on to say that it be chosen.
#[test]
fn r10_5e_with_a_list_of_ones_own_no_label_of_the_built_in_list_is_in_the_prompt() {
    let dir = WorkDir::new();
    for (_, file, own) in LISTS {
        dir.write(&format!("data/{file}"), own);
    }
    let ran = dir.pipe(POST, &["gen", "--data-dir=data"]).exits(0);
    let own = prompts(&ran);
    assert_eq!(own.len(), 6);
    for (name, file, _) in LISTS {
        let (_, prompt) = own.iter().find(|(id, _)| id == name).expect("asked");
        let text = zbatch::lines::input::read_small(&repository().join("data").join(file), 1 << 20).expect("ours");
        let mut labels = Vec::new();
        strings(&serde_json::from_str(&text).expect("JSON"), &mut labels);
        let named: Vec<&String> = labels.iter().filter(|label| prompt.contains(*label)).collect();
        assert!(labels.len() >= 14 && named.is_empty(), "{name} names {named:?}:\n{prompt}");
        assert!(prompt.contains("- 甲") && !prompt.contains("{{") && !prompt.contains("\n\n\n"), "{prompt}");
    }
    let noted = "zbatch: built-in examples left out of the prompts, since their labels are not in your lists: \
                 sentiment_attribute 4 of 4, topic_analysis 3 of 4, publisher_analysis 4 of 4, belief_system 3 of 4, \
                 publisher_decision 4 of 4\n";
    // Beside it stands only what the post does not have.
    let others = ran.stderr.replace(noted, "");
    assert!(ran.stderr.starts_with(noted) && others.lines().all(|line| line.contains("no post has")), "{}", ran.stderr);
    // With the built-in lists all of them are there.
    let shipped = format!("--data-dir={}", repository().join("data").display());
    let ran = dir.pipe(POST, &["gen", &shipped]).exits(0);
    assert!(!ran.stderr.contains("left out"), "{}", ran.stderr);
    for (name, prompt) in prompts(&ran) {
        assert_eq!(prompt.matches("\n\n示例 ").count(), 4, "{name}:\n{prompt}");
        assert!(prompt.contains("\n\n示例 4\n") && prompt.contains("\n\n输出要求"), "{prompt}");
    }
}

/// One label of the list is in an example: that example stays, and is the first.
#[test]
fn r10_5e_an_example_stays_when_all_its_labels_are_in_force() {
    let dir = WorkDir::new();
    for (_, file, own) in LISTS {
        dir.write(&format!("data/{file}"), own);
    }
    dir.write("data/publisher_objects.json", r#"["路人","家长"]"#)
        .write("data/sentiment_attributes.json", r#"["焦虑","客观"]"#);
    let ran = dir.pipe(POST, &["gen", "--data-dir=data", "--only=publisher_analysis,sentiment_attribute"]).exits(0);
    let prompts: Vec<String> = prompts(&ran).into_iter().map(|(_, prompt)| prompt).collect();
    let publisher = prompts.iter().find(|prompt| prompt.contains("路人")).expect("asked");
    assert!(publisher.contains("\n\n示例 1\n用户名：豆豆他爹\n博文：接孩子"), "{publisher}");
    assert!(publisher.contains("\n输出：家长\n\n输出要求"), "{publisher}");
    let attribute = prompts.iter().find(|prompt| prompt.contains("焦虑")).expect("asked");
    // 焦虑 is in force and 恐惧 is not: half an answer is no example.
    assert!(attribute.contains("输出：[\"客观\"]\n\n输出要求") && !attribute.contains("恐惧"), "{attribute}");
    assert!(ran.stderr.contains("lists: sentiment_attribute 3 of 4, publisher_analysis 3 of 4\n"), "{}", ran.stderr);
}

/// The same for an analysis of one's own, where an example that the rule refuses is a mistake.
#[test]
fn r10_5e_examples_of_ones_own_are_placed_and_judged() {
    let dir = WorkDir::new();
    dir.write("an/q/labels.json", r#"["Yes","No"]"#);
    dir.write(
        "an/q/examples.jsonl",
        "{\"post\":{\"body\":\"It {{works}}\",\"stars\":5},\"answer\":[\"Yes\"]}\n\n{\"post\":{\"body\":\"Hm\",\"stars\":null},\"answer\":[]}\n",
    );
    let prompt = |prompt: &str| prompts(&ask(&dir, &labels(), prompt, &[]).exits(0)).remove(0).1;
    assert_eq!(
        prompt("{{labels}}\n\n{{examples}}\n\n{{body}}"),
        "- Yes\n- No\n\nbody: It {{works}}\nstars: 5\nanswer: [\"Yes\"]\n\nbody: Hm\nanswer: []\n\nText"
    );
    assert_eq!(
        prompt("{{labels}}{% for e in examples %}|{{loop.index}} {{e.post.body}} → {{e.answer}}{% endfor %}|{{body}}"),
        "- Yes\n- No|1 It {{works}} → [\"Yes\"]|2 Hm → []|Text"
    );
    let said = ask(&dir, &labels(), "{{labels}} {{body}}", &[]).exits(0).stderr;
    assert!(said.contains("q: its prompt has no {{examples}}"), "{said}");
    for (line, told) in [
        (r#"{"post":{"body":"a"},"answer":["Maybe"]}"#, "line 1: the analysis' own rule does not accept the answer"),
        (
            r#"{"post":{"body":"a"},"answer":["Yes","Maybe"]}"#,
            "line 1: the analysis' own rule does not accept the answer",
        ),
        (r#"{"post":"a","answer":["Yes"]}"#, "line 1 is no"),
        (r#"{"post":{"body":"a"},"anwser":["Yes"]}"#, "anwser"),
        ("{", "line 1 is no"),
    ] {
        dir.write("an/q/examples.jsonl", line);
        let ran = ask(&dir, &labels(), "{{labels}} {{examples}} {{body}}", &[]).exits(65);
        assert!(ran.stderr.contains("analysis an/q, examples.jsonl: ") && ran.stderr.contains(told), "{}", ran.stderr);
    }
    std::fs::remove_file(dir.join("an/q/examples.jsonl")).expect("removed");
    let ran = ask(&dir, &labels(), "{{labels}} {{examples}} {{body}}", &[]).exits(65);
    assert!(ran.stderr.contains("there is no examples.jsonl"), "{}", ran.stderr);
}
