//! A prompt, compiled: constant text that is already JSON-escaped, and slots for the post's fields.
//!
//! The template logic runs once, here, with every post field bound to a marker that no text contains.
//! What a post holds is spliced between the constants later and is never looked at as a template, so it
//! cannot break out (`promises.md` P2).

use std::collections::BTreeMap;

use minijinja::{Environment, UndefinedBehavior, Value};

use crate::flow::{
    posts::{Fields, Slot},
    requests::on_one_line,
};

/// The markers are noncharacters-by-agreement: private use, so that filters such as `upper` leave them alone.
const OPEN: char = '\u{f8f0}';
const CLOSE: char = '\u{f8f1}';
/// A slot's number is written in these ten.
const DIGITS: u32 = 0xf8e0;

/// Constant text followed by a field of the post; the last piece of a template has no field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// JSON-escaped, without quotes.
    pub constant: String,
    pub slot: Option<Slot>,
}

#[derive(Debug)]
pub struct Template {
    pub pieces: Vec<Piece>,
}

impl Template {
    /// Renders `prompt` once. Every variable other than `labels` is a field of the post.
    pub fn compile(prompt: &str, labels: &str, fields: &mut Fields) -> Result<Self, String> {
        if prompt.chars().any(is_marker) {
            return Err("private-use characters U+F8E0 to U+F8F1 are reserved".to_owned());
        }
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let template = env.template_from_str(prompt).map_err(|e| describe(&e))?;
        let mut names: Vec<String> = template.undeclared_variables(false).into_iter().collect();
        names.retain(|name| name != "labels" && env.globals().all(|(global, _)| global != name));
        names.sort();
        let render = |value: &dyn Fn(usize) -> String| {
            let bound = names.iter().enumerate().map(|(at, name)| (name.clone(), Value::from(value(at))));
            let context: BTreeMap<String, Value> = bound.chain([("labels".to_owned(), Value::from(labels))]).collect();
            template.render(context).map_err(|e| describe(&e))
        };
        let marked = render(&marker)?;
        let empty = render(&|_| String::new())?;

        let mut pieces = Vec::new();
        let mut seen = vec![false; names.len()];
        let mut rest = marked.as_str();
        while let Some((constant, after)) = rest.split_once(OPEN) {
            let broken = || "a post field can only be placed, `{{content}}`, not cut or computed with".to_owned();
            let (number, after) = after.split_once(CLOSE).ok_or_else(broken)?;
            let at = number
                .chars()
                .try_fold(0usize, |n, c| Some(n * 10 + (c as u32).checked_sub(DIGITS).filter(|d| *d < 10)? as usize));
            let (name, seen) = at.and_then(|at| Some((names.get(at)?, seen.get_mut(at)?))).ok_or_else(broken)?;
            *seen = true;
            pieces.push(Piece { constant: escape_json(constant), slot: Some(fields.slot(name)) });
            rest = after;
        }
        pieces.push(Piece { constant: escape_json(rest), slot: None });

        let constants: String = pieces.iter().map(|piece| piece.constant.as_str()).collect();
        if constants != escape_json(&empty) {
            return Err("its logic depends on a post field; template logic runs once, before any post".to_owned());
        }
        if let Some(unplaced) = names.iter().zip(seen).find_map(|(name, seen)| (!seen).then_some(name)) {
            return Err(format!("`{unplaced}` is used but never placed; a post field can only be placed"));
        }
        if pieces.len() == 1 {
            return Err("it names no field of the post; did you mean to write {{content}}?".to_owned());
        }
        Ok(Self { pieces })
    }
}

fn marker(at: usize) -> String {
    let digits =
        at.to_string().bytes().filter_map(|b| char::from_u32(DIGITS + u32::from(b - b'0'))).collect::<String>();
    format!("{OPEN}{digits}{CLOSE}")
}

fn is_marker(c: char) -> bool {
    matches!(c, '\u{f8e0}'..='\u{f8f1}')
}

/// Text as it stands inside a JSON string of a request line, without the quotes.
pub fn escape_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    on_one_line(quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')).unwrap_or_default())
}

fn describe(error: &minijinja::Error) -> String {
    match error.line() {
        Some(line) => format!("line {line}: {error}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(prompt: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let mut fields = Fields::default();
        let template = Template::compile(prompt, "- 甲\n- \"乙\"", &mut fields)?;
        Ok(template
            .pieces
            .into_iter()
            .map(|piece| (piece.constant, piece.slot.map(|slot| fields.name(slot).to_owned())))
            .collect())
    }

    #[test]
    fn constants_are_escaped_and_fields_are_slots() {
        assert_eq!(
            compile("a\n{{labels}}|{{content}}|{{ username }}{{content}}"),
            Ok(vec![
                ("a\\n- 甲\\n- \\\"乙\\\"|".to_owned(), Some("content".to_owned())),
                ("|".to_owned(), Some("username".to_owned())),
                (String::new(), Some("content".to_owned())),
                (String::new(), None),
            ])
        );
    }

    #[test]
    fn logic_runs_at_start_on_constants_only() {
        assert!(compile("{% for i in range(3) %}{{i}}{% endfor %}{{content}}").is_ok());
        for bad in [
            "no field",
            "{{content",
            "{{content[:3]}}",
            "{{content|length}} {{content}}",
            "{% if location %}x{% endif %}{{content}}",
            "{{ nosuch(1) }}{{content}}",
            "\u{f8f0}{{content}}",
        ] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
