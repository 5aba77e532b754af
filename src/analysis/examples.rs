//! The examples that a prompt shows: `examples.jsonl` in the analysis' folder, one `{"post":{…},"answer":…}` a line. Each answer
//! is judged by the analysis' own rule, so that no example teaches the model what is refused later.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::AnswerRule;
use crate::{flow::answers::judge, text::short};

#[derive(Debug)]
pub struct Example {
    pub post: Map<String, Value>,
    /// As a model would write it: a string without its quotes, other values as the file has them.
    pub answer: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    post: Map<String, Value>,
    #[serde(borrow)]
    answer: &'a RawValue,
}

/// The examples whose answers the rule accepts, every label of them, and how many it does not.
///
/// # Errors
/// A line that is no example, or, unless `may_differ`, an answer that the rule does not accept; in words.
pub fn read(text: &str, rule: &AnswerRule, may_differ: bool) -> Result<(Vec<Example>, usize), String> {
    let (mut examples, mut left_out) = (Vec::new(), 0);
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = at + 1;
        let Line { post, answer } = serde_json::from_str(line)
            .map_err(|e| format!("line {number} is no `{{\"post\":{{…}},\"answer\":…}}`: {}", short(&e.to_string())))?;
        let answer = serde_json::from_str::<String>(answer.get()).unwrap_or_else(|_| answer.get().to_owned());
        let why = match judge(rule, &answer, &mut Vec::new()) {
            Ok(judged) if judged.unknown_labels == 0 => {
                examples.push(Example { post, answer });
                continue;
            }
            Ok(_) => "it has labels that are not in the list".to_owned(),
            Err(fault) => fault.detail,
        };
        if !may_differ {
            return Err(format!("line {number}: the analysis' own rule does not accept the answer: {why}"));
        }
        left_out += 1;
    }
    Ok((examples, left_out))
}

/// How `{{examples}}` shows one; a prompt that wants other words has a loop.
impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.post {
            match value {
                Value::String(text) => writeln!(f, "{name}: {text}")?,
                Value::Null => {}
                other => writeln!(f, "{name}: {other}")?,
            }
        }
        write!(f, "answer: {}", self.answer)
    }
}
