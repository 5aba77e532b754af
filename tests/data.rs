//! What ships in `data/` is sound: the posts of the demo, the reference files, and the examples in the prompts,
//! which must not teach a model a label that its own rule refuses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::workdir::repository;

#[expect(clippy::disallowed_methods, reason = "the repository's own small files")]
fn text(name: &str) -> String {
    let path = repository().join("data").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn array(name: &str) -> Vec<Value> {
    serde_json::from_str(&text(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The labels of a flat reference file; each is there once.
fn labels(name: &str, key: Option<&str>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for entry in array(name) {
        let label = key
            .map_or(Some(&entry), |key| entry.get(key))
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("{name}: {entry}"));
        assert!(seen.insert(label.to_owned()), "{name}: {label} is there twice");
    }
    seen
}

/// The labels of a two-level reference file; a child's name is unique in the whole file.
fn tree(name: &str, parent: &str, children: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut tree = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for entry in array(name) {
        let under: BTreeSet<String> = strings(entry.get(children).unwrap_or(&Value::Null))
            .into_iter()
            .inspect(|c| assert!(seen.insert(c.clone()), "{name}: {c}"))
            .collect();
        assert!(!under.is_empty(), "{name}: {entry}");
        let parent = entry.get(parent).and_then(Value::as_str).unwrap_or_else(|| panic!("{name}: {entry}"));
        assert!(tree.insert(parent.to_owned(), under).is_none(), "{name}: {parent} is there twice");
    }
    tree
}

fn strings(array: &Value) -> Vec<String> {
    let array = array.as_array().unwrap_or_else(|| panic!("{array} is not an array"));
    array.iter().map(|s| s.as_str().unwrap_or_else(|| panic!("{s} is not a string")).to_owned()).collect()
}

fn topics() -> BTreeMap<String, BTreeSet<String>> {
    tree("topics.json", "parent_topic", "sub_topics")
}

fn beliefs() -> BTreeMap<String, BTreeSet<String>> {
    tree("believe_system_common.json", "category", "subcategories")
}

/// What the examples of a built-in analysis answer, as a prompt shows it.
fn examples(analysis: &str) -> Vec<String> {
    let lines = text(&format!("analyses/{analysis}/examples.jsonl"));
    let answers: Vec<String> = lines
        .lines()
        .map(|line| {
            let example = json(analysis, line);
            assert!(example.pointer("/post/content").is_some_and(Value::is_string), "{line}");
            let answer = example.get("answer").unwrap_or_else(|| panic!("{line}"));
            answer.as_str().map_or_else(|| answer.to_string(), str::to_owned)
        })
        .collect();
    assert!(answers.len() >= 3, "{analysis}: {} examples", answers.len());
    answers
}

fn json(analysis: &str, answer: &str) -> Value {
    serde_json::from_str(answer).unwrap_or_else(|e| panic!("{analysis}: {answer}: {e}"))
}

#[test]
fn the_sample_posts_are_whole() {
    let posts = array("posts.json");
    assert!(posts.len() >= 200, "{} posts", posts.len());
    let mut local_images = BTreeSet::new();
    let mut lengths = Vec::new();
    for (index, post) in posts.iter().enumerate() {
        for field in ["username", "user_id", "content", "publish_time"] {
            assert!(post[field].as_str().is_some_and(|text| !text.is_empty()), "post {index}: {field}");
        }
        assert!(post["user_id"].as_str().is_some_and(|id| id.bytes().all(|b| b.is_ascii_digit())), "post {index}");
        assert!(post["location"].is_null() || post["location"].is_string(), "post {index}: location");
        for field in ["repost_count", "comment_count", "like_count"] {
            assert!(post[field].is_u64(), "post {index}: {field}");
        }
        for image in strings(&post["image_urls"]) {
            if !image.starts_with("http://") && !image.starts_with("https://") {
                assert!(repository().join("data").join(&image).is_file(), "post {index}: {image}");
                local_images.insert(image);
            }
        }
        lengths.push(post["content"].as_str().map_or(0, |text| text.chars().count()));
    }
    assert!(local_images.len() >= 5, "all the images are shown: {local_images:?}");
    assert!(lengths.contains(&1) && lengths.iter().any(|n| *n > 600), "short and long ones");
}

#[test]
fn the_sample_posts_are_one_a_line() {
    let posts = text("posts.json");
    let lines: Vec<&str> = posts.lines().collect();
    assert_eq!((lines[0], lines[lines.len() - 1]), ("[", "]"));
    assert_eq!(lines.len() - 2, array("posts.json").len());
    assert!(!posts.contains("\\u"), "non-ASCII is written as it is");
}

#[test]
fn the_reference_files_have_their_sizes() {
    let topics = topics();
    assert_eq!(topics.len(), 10);
    assert_eq!(topics.values().map(BTreeSet::len).sum::<usize>(), 100);
    assert_eq!(labels("sentiment_attributes.json", None).len(), 40);
    assert_eq!(labels("publisher_objects.json", None).len(), 31);
    assert_eq!(labels("publisher_decision.json", Some("category")).len(), 14);
    assert_eq!(beliefs().len(), 9);
}

#[test]
fn examples_in_prompts_use_known_labels_only() {
    for answer in examples("sentiment_polarity") {
        assert!((1..=5).contains(&json("sentiment_polarity", &answer).as_i64().expect("an integer")), "{answer}");
    }

    let attributes = labels("sentiment_attributes.json", None);
    for answer in examples("sentiment_attribute") {
        let chosen = strings(&json("sentiment_attribute", &answer));
        assert!((1..=3).contains(&chosen.len()) && chosen.iter().all(|label| attributes.contains(label)), "{answer}");
    }

    for (analysis, file, key) in [
        ("publisher_analysis", "publisher_objects.json", None),
        ("publisher_decision", "publisher_decision.json", Some("category")),
    ] {
        let known = labels(file, key);
        for answer in examples(analysis) {
            assert!(known.contains(&answer), "{analysis}: {answer}");
        }
    }
}

#[test]
fn examples_in_prompts_pair_children_with_their_parents() {
    let topics = topics();
    for answer in examples("topic_analysis") {
        let pairs = json("topic_analysis", &answer);
        let pairs = pairs.as_array().expect("an array");
        assert!(pairs.len() <= 2, "{answer}");
        for pair in pairs {
            let under = pair["parent_topic"].as_str().and_then(|parent| topics.get(parent));
            let sub = pair["sub_topic"].as_str().expect("a string");
            assert!(under.is_some_and(|under| under.contains(sub)), "{pair}");
        }
    }

    let beliefs = beliefs();
    for answer in examples("belief_system") {
        let signals = json("belief_system", &answer);
        let signals = signals.as_array().expect("an array");
        assert!(signals.len() <= 3, "{answer}");
        for signal in signals {
            let under = signal["category"].as_str().and_then(|parent| beliefs.get(parent)).expect("a known category");
            let chosen = strings(&signal["subcategories"]);
            assert!(!chosen.is_empty() && chosen.iter().all(|sub| under.contains(sub)), "{signal}");
        }
    }
}

#[test]
fn the_example_analysis_joins_the_built_in_ones() {
    let sources = zbatch::analysis::Sources {
        data_dir: Some(repository().join("data")),
        analyses_dir: Some(repository().join("examples/analyses")),
        only: Vec::new(),
        files: Vec::new(),
    };
    let set = zbatch::analysis::AnalysisSet::load(&sources).expect("the example is sound");
    assert_eq!(set.names().len(), 7);
    assert_eq!(set.names().last(), Some(&"urgency"), "after the built-in ones");
    assert!(set.notes.is_empty(), "{:?}", set.notes);
}
