//! When an answer counts. A rule is made once from `analysis.json` and the reference file; judging
//! (`flow/answers.rs`) only looks things up in it.

use std::fmt::Write as _;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::text::short;

/// Labels of one list; a parent's children are a list.
const MOST_LABELS: usize = 100_000;

/// The accepted answers of an analysis.
#[derive(Debug)]
pub enum AnswerRule {
    /// A number from `min` to `max`; also as the value of one of `keys` in an object.
    Integer { min: i64, max: i64, keys: Vec<String> },
    /// Exactly one of the labels.
    Label { labels: LabelSet },
    /// `min` to `max` different labels.
    Labels { labels: LabelSet, min: usize, max: usize },
    /// `min` to `max` objects `{parent: .., child: ..}`; with `child_list` the child is an array of labels.
    Pairs { parent: String, child: String, child_list: bool, tree: LabelTree, min: usize, max: usize },
}

/// Labels by name and by number, in the order of the reference file.
#[derive(Debug, Default)]
pub struct LabelSet {
    names: Vec<String>,
    /// What is written for each: its name as a JSON string, quotes included; `true` or `false` of a boolean rule.
    json: Vec<String>,
    /// A plain hash will do: the labels are the user's own, and only they are stored.
    ids: FxHashMap<String, u32>,
    /// By the folded name; `None` where several labels share it.
    folded: FxHashMap<String, Option<u32>>,
}

/// A name without its width and case: NFKC, then lower case.
pub fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    icu_normalizer::ComposingNormalizerBorrowed::new_nfkc().normalize(name).to_lowercase()
}

impl LabelSet {
    pub fn find(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// As [`LabelSet::find`]; else the one label that differs only in width or case.
    pub fn find_like(&self, name: &str) -> Option<u32> {
        self.find(name).or_else(|| self.folded.get(&fold(name)).copied().flatten())
    }

    /// Folded names, with the number of each label that has it alone.
    pub fn folded(&self) -> impl Iterator<Item = (&str, u32)> {
        self.folded.iter().filter_map(|(name, id)| Some((name.as_str(), (*id)?)))
    }

    /// `true` and `false`, each by several words.
    fn boolean(words: [&[String]; 2]) -> Result<Self, String> {
        const WORDS: [&[&str]; 2] = [&["yes", "是", "有", "1"], &["no", "否", "没有", "0"]];
        let mut labels = Self::default();
        for ((name, words), usual) in ["true", "false"].into_iter().zip(words).zip(WORDS) {
            let id = labels.push(name)?;
            if let Some(json) = labels.json.get_mut(id as usize) {
                *json = name.to_owned();
            }
            let usual = usual.iter().copied().filter(|_| words.is_empty());
            for word in words.iter().map(String::as_str).chain(usual).filter(|word| *word != name) {
                labels.add(word, id)?;
            }
        }
        Ok(labels)
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A label as a JSON string.
    pub fn json(&self, id: u32) -> &str {
        self.json.get(id as usize).map_or("\"\"", String::as_str)
    }

    fn push(&mut self, name: &str) -> Result<u32, String> {
        let id = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        if self.names.len() == MOST_LABELS {
            return Err(format!("it has more than {MOST_LABELS} labels"));
        }
        self.add(name, id)?;
        self.names.push(name.to_owned());
        self.json.push(Value::from(name).to_string());
        Ok(id)
    }

    /// One more way of writing label `id`.
    fn add(&mut self, name: &str, id: u32) -> Result<(), String> {
        if name.trim().is_empty() || name.trim() != name {
            return Err(format!("the label `{}` is empty or has white space around it", short(name)));
        }
        if name.chars().any(char::is_control) {
            return Err(format!("the label `{}` has a control character", short(name)));
        }
        if self.ids.insert(name.to_owned(), id).is_some() {
            return Err(format!("the label `{}` is there twice", short(name)));
        }
        let other = |known: &mut Option<u32>| *known = known.filter(|known| *known == id);
        self.folded.entry(fold(name)).and_modify(other).or_insert(Some(id));
        Ok(())
    }
}

/// Labels in two levels: the children of parent `p` are `children[p]`.
#[derive(Debug, Default)]
pub struct LabelTree {
    pub parents: LabelSet,
    pub children: Vec<LabelSet>,
}

impl LabelTree {
    /// The children that belong to a parent.
    pub fn children_of(&self, parent: &str) -> Option<&LabelSet> {
        self.parents.find(parent).and_then(|id| self.children.get(id as usize))
    }
}

/// `rule` in `analysis.json`.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RuleDefinition {
    Integer {
        min: i64,
        max: i64,
        #[serde(default)]
        keys: Vec<String>,
    },
    /// A label rule over `true` and `false`; the words that stand for each may be given.
    Boolean {
        #[serde(default, rename = "true")]
        yes: Vec<String>,
        #[serde(default, rename = "false")]
        no: Vec<String>,
    },
    Label {
        reference_key: Option<String>,
    },
    Labels {
        min: usize,
        max: usize,
        reference_key: Option<String>,
    },
    Pairs {
        parent: String,
        child: String,
        #[serde(default)]
        child_list: bool,
        min: usize,
        max: usize,
        reference_parent: Option<String>,
        reference_children: Option<String>,
    },
}

impl RuleDefinition {
    /// Fills the rule with the labels of the reference file, given as (name, text).
    pub fn resolve(self, reference: Option<(&str, &str)>) -> Result<AnswerRule, String> {
        let labels = |key: Option<&str>| {
            let (file, text) = reference.ok_or("this rule needs a `reference` file with its labels")?;
            parse_labels(text, key).map_err(|what| format!("{file}: {what}"))
        };
        match self {
            Self::Integer { min, max, .. } if min > max => Err(format!("min {min} is above max {max}")),
            Self::Labels { min, max, .. } | Self::Pairs { min, max, .. } if min > max || max == 0 => {
                Err(format!("min {min}, max {max}: no answer fits"))
            }
            Self::Integer { min, max, keys } => Ok(AnswerRule::Integer { min, max, keys }),
            Self::Boolean { yes, no } => Ok(AnswerRule::Label { labels: LabelSet::boolean([&yes, &no])? }),
            Self::Label { reference_key } => Ok(AnswerRule::Label { labels: labels(reference_key.as_deref())? }),
            Self::Labels { min, max, reference_key } => {
                Ok(AnswerRule::Labels { labels: labels(reference_key.as_deref())?, min, max })
            }
            Self::Pairs { parent, child, child_list, min, max, reference_parent, reference_children } => {
                let (file, text) = reference.ok_or("this rule needs a `reference` file with its labels")?;
                let parent_key = reference_parent.as_deref().unwrap_or(&parent);
                let children_key = reference_children.as_deref().unwrap_or(&child);
                let tree = parse_tree(text, parent_key, children_key).map_err(|what| format!("{file}: {what}"))?;
                Ok(AnswerRule::Pairs { parent, child, child_list, tree, min, max })
            }
        }
    }
}

impl AnswerRule {
    pub fn label_count(&self) -> usize {
        match self {
            Self::Integer { .. } => 0,
            Self::Label { labels } | Self::Labels { labels, .. } => labels.names.len(),
            Self::Pairs { tree, .. } => tree.children.iter().map(|children| 1 + children.names.len()).sum(),
        }
    }

    /// What `{{labels}}` stands for in a prompt: one line a label, or a parent with its children.
    pub fn labels_text(&self) -> String {
        let mut text = String::new();
        let mut line = |args: std::fmt::Arguments<'_>| {
            let sep = if text.is_empty() { "" } else { "\n" };
            let _infallible = write!(text, "{sep}{args}");
        };
        match self {
            Self::Integer { min, max, .. } => line(format_args!("{min}–{max}")),
            Self::Label { labels } | Self::Labels { labels, .. } => {
                labels.names.iter().for_each(|name| line(format_args!("- {name}")));
            }
            Self::Pairs { tree, .. } => {
                for (parent, children) in tree.parents.names.iter().zip(&tree.children) {
                    line(format_args!("- {parent}：{}", children.names.join("、")));
                }
            }
        }
        text
    }
}

/// The elements of an array, as they are written: one at a time is made a [`Value`], which is larger than its text.
fn entries(text: &str) -> Result<Vec<&RawValue>, String> {
    serde_json::from_str(text).map_err(|e| format!("not a JSON array: {}", short(&e.to_string())))
}

fn element(place: usize, text: &RawValue) -> Result<Value, String> {
    serde_json::from_str(text.get()).map_err(|e| format!("element {place}: {e}"))
}

/// An array of strings, or of objects whose `key` is the label.
fn parse_labels(text: &str, key: Option<&str>) -> Result<LabelSet, String> {
    let mut labels = LabelSet::default();
    for (place, entry) in entries(text)?.into_iter().enumerate() {
        let entry = element(place, entry)?;
        let label = match key {
            None => entry.as_str(),
            Some(key) => entry.get(key).and_then(Value::as_str),
        };
        let shape = key.map_or("a string".to_owned(), |key| format!("an object with a string `{key}`"));
        labels.push(label.ok_or_else(|| format!("element {place} is not {shape}"))?)?;
    }
    if labels.names.is_empty() { Err("it holds no label".to_owned()) } else { Ok(labels) }
}

fn parse_tree(text: &str, parent_key: &str, children_key: &str) -> Result<LabelTree, String> {
    let mut tree = LabelTree::default();
    for (place, entry) in entries(text)?.into_iter().enumerate() {
        let entry = element(place, entry)?;
        let shape = || format!("element {place} is not an object with `{parent_key}` and an array `{children_key}`");
        tree.parents.push(entry.get(parent_key).and_then(Value::as_str).ok_or_else(shape)?)?;
        let mut children = LabelSet::default();
        for child in entry.get(children_key).and_then(Value::as_array).ok_or_else(shape)? {
            children.push(child.as_str().ok_or_else(shape)?)?;
        }
        tree.children.push(children);
    }
    if tree.children.is_empty() { Err("it holds no label".to_owned()) } else { Ok(tree) }
}
