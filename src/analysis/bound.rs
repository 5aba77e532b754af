//! What `{{labels}}` and `{{examples}}` stand for in a prompt: a list that prints as a text of its own. The text is placed where
//! the prompt names it; filters and loops see the list.

use std::{collections::BTreeMap, fmt, sync::Arc};

use minijinja::value::{Enumerator, Object, ObjectRepr, Serde, Value};

use super::{AnswerRule, examples::Example};

/// An integer rule with more values than this is no list that anybody loops over.
const MOST_INTEGERS: u64 = 1000;

/// The names that are no field of a post.
pub fn bound(rule: &AnswerRule, examples: &[Example]) -> BTreeMap<&'static str, Value> {
    [("labels", labels(rule)), ("examples", self::examples(examples))].into()
}

fn labels(rule: &AnswerRule) -> Value {
    let items = match rule {
        AnswerRule::Integer { min, max, .. } => {
            (max.abs_diff(*min) < MOST_INTEGERS).then(|| (*min..=*max).map(Value::from).collect())
        }
        AnswerRule::Label { labels } | AnswerRule::Labels { labels, .. } => {
            Some(labels.names().iter().map(Value::from).collect())
        }
        AnswerRule::Pairs { parent, child, tree, .. } => {
            let entry = |(name, children): (&String, &super::LabelSet)| {
                let children = children.names();
                Value::from_object(Entry {
                    text: format!("{name}：{}", children.join("、")),
                    keys: [(parent.clone(), Value::from(name)), (child.clone(), Value::from(children.to_vec()))],
                })
            };
            Some(tree.parents.names().iter().zip(&tree.children).map(entry).collect())
        }
    };
    Value::from_object(TextList { text: rule.labels_text(), items })
}

fn examples(examples: &[Example]) -> Value {
    let text: Vec<String> = examples.iter().map(ToString::to_string).collect();
    let item = |example: &Example| {
        let keys = [("post", Value::from(Serde(&example.post))), ("answer", Value::from(&example.answer))];
        Value::from(BTreeMap::from(keys))
    };
    Value::from_object(TextList { text: text.join("\n\n"), items: Some(examples.iter().map(item).collect()) })
}

#[derive(Debug)]
struct TextList {
    text: String,
    /// `None`: too many.
    items: Option<Vec<Value>>,
}

impl Object for TextList {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.as_ref()?.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.items.as_ref().map_or(Enumerator::NonEnumerable, |items| Enumerator::Seq(items.len()))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A parent and its children, under the names that an answer gives them.
#[derive(Debug)]
struct Entry {
    text: String,
    keys: [(String, Value); 2],
}

impl Object for Entry {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.keys.iter().find_map(|(name, value)| (name == key).then(|| value.clone()))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.keys.iter().map(|(name, _)| Value::from(name)).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
