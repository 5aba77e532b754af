//! A prompt, compiled: constant text that is already JSON-escaped, and slots for the post's fields.
//!
//! The template logic runs once, here, with a marker that no text contains in the place of every `{{field}}`. What a post
//! holds is spliced between the constants later and is never looked at as a template, so it cannot break out
//! (`docs/reliability.md`, P2). A post's field can only be placed: a filter, a test or a loop on it would run before there
//! is a post, so the prompt is refused.

use std::{collections::BTreeMap, sync::mpsc, time::Duration};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

use super::fields::{Fields, Slot};
use crate::{error::Error, json::escape_json, text::short, threads};

/// The markers are private-use characters, so no text has them.
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
    /// Which of the names that are no field of a post the prompt uses.
    pub uses: Vec<&'static str>,
}

/// What minijinja may spend on one prompt: an instruction, or 64 bytes of a value, costs 1.
const FUEL: u64 = 500_000;
/// Every request repeats it, and no model reads more.
const LARGEST: usize = 1 << 20;
/// Fields of the post that one prompt may name.
const MOST_FIELDS: usize = 1_000;
/// The stack for minijinja, whose parser goes as deep as an expression of 64 KiB can: the deepest took less than 24 MiB. Memory
/// that is not used is not taken.
const STACK: usize = 64 << 20;
/// FUEL does not count the work of minijinja's compiler, which grows with the square of an expression. A usual prompt takes a
/// thousandth of this time.
const LONGEST: Duration = Duration::from_secs(10);

const ONLY_PLACED: &str = "that would run once, before there is a post. A field of the post can only be placed, as \
                           `{{content}}` is, with nothing else between the braces";

impl Template {
    /// Renders `prompt` once. `bound` are the names that are no field of a post, with what they stand for.
    ///
    /// # Errors
    /// Outer: the system gives no thread. Inner: what is wrong with the prompt.
    pub fn compile(
        prompt: &str,
        bound: &BTreeMap<&'static str, Value>,
        fields: &mut Fields,
    ) -> Result<Result<Self, String>, Error> {
        let (tell, told) = mpsc::sync_channel(1);
        let (prompt, bound) = (prompt.to_owned(), bound.clone());
        // After LONGEST nobody listens; the error ends the program, and the thread with it.
        let compiling = move || tell.send(Compiled::of(&prompt, &bound)).unwrap_or_default();
        let _ends_alone = threads::spawn_with_stack(STACK, compiling)?;
        let compiled = told.recv_timeout(LONGEST).unwrap_or_else(|_| {
            Err(format!("reading it takes more than {} seconds; shorten its expressions", LONGEST.as_secs()))
        });
        Ok(compiled.map(|Compiled { pieces, uses }| {
            let placed = |(constant, name): (String, Option<String>)| Piece {
                constant,
                slot: name.map(|name| fields.slot(&name)),
            };
            Self { pieces: pieces.into_iter().map(placed).collect(), uses }
        }))
    }
}

/// A template whose fields have no slots yet.
struct Compiled {
    /// JSON-escaped text, and the name of the field that follows.
    pieces: Vec<(String, Option<String>)>,
    uses: Vec<&'static str>,
}

impl Compiled {
    fn of(prompt: &str, bound: &BTreeMap<&'static str, Value>) -> Result<Self, String> {
        if prompt.chars().any(is_marker) {
            return Err("private-use characters U+F8E0 to U+F8F1 are reserved".to_owned());
        }
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_fuel(Some(FUEL));
        // It could hold itself, and minijinja would print it without end.
        env.remove_global("namespace");
        let as_written = env.template_from_str(prompt).map_err(|e| describe(&e))?;
        let mut names: Vec<String> = as_written.undeclared_variables(false).into_iter().collect();
        let uses = bound.keys().copied().filter(|bound| names.iter().any(|name| name == bound)).collect();
        names.retain(|name| !bound.contains_key(name.as_str()) && env.globals().all(|(global, _)| global != name));
        names.sort();
        if names.len() > MOST_FIELDS {
            return Err(format!("it names more than {MOST_FIELDS} fields of the post"));
        }

        let marked = mark_places(prompt, &names);
        let template = env.template_from_str(&marked).map_err(|e| describe(&e))?;
        let left = template.undeclared_variables(false);
        if let Some(name) = names.iter().find(|name| left.contains(*name)) {
            return Err(format!("`{}` is used in a filter, a test, a loop or the like; {ONLY_PLACED}", short(name)));
        }
        let text = template.render(bound).map_err(|e| match e.kind() {
            // minijinja does not see the name in `name[:3]`; nothing but a field of the post is unbound here.
            ErrorKind::UndefinedError => format!("{}; {ONLY_PLACED}", describe(&e)),
            _ => describe(&e),
        })?;
        if text.len() > LARGEST {
            return Err(format!("with its labels and examples it has {} bytes; {LARGEST} are the most", text.len()));
        }
        let mut all: BTreeMap<&str, Value> = bound.clone();
        all.extend(names.iter().enumerate().map(|(at, name)| (name.as_str(), Value::from(marker(at)))));
        if as_written.render(all).map_err(|e| describe(&e))? != text {
            return Err(
                "a loop or `set` gives the name of a post field another meaning; choose another name".to_owned()
            );
        }
        let pieces = cut(&text, &names)?;
        if pieces.len() == 1 {
            return Err("it names no field of the post; did you mean to write {{content}}?".to_owned());
        }
        Ok(Self { pieces, uses })
    }
}

/// Cuts the rendered prompt at its markers.
fn cut(text: &str, names: &[String]) -> Result<Vec<(String, Option<String>)>, String> {
    let mut pieces = Vec::new();
    let mut seen = vec![false; names.len()];
    let mut rest = text;
    while let Some((constant, after)) = rest.split_once(OPEN) {
        let broken = || format!("a field of the post is cut or computed with; {ONLY_PLACED}");
        let (number, after) = after.split_once(CLOSE).ok_or_else(broken)?;
        let at = number
            .chars()
            .try_fold(0usize, |n, c| Some(n * 10 + (c as u32).checked_sub(DIGITS).filter(|d| *d < 10)? as usize));
        let (name, seen) = at.and_then(|at| Some((names.get(at)?, seen.get_mut(at)?))).ok_or_else(broken)?;
        *seen = true;
        pieces.push((escape_json(constant), Some(name.clone())));
        rest = after;
    }
    pieces.push((escape_json(rest), None));
    match names.iter().zip(seen).find_map(|(name, seen)| (!seen).then_some(name)) {
        Some(unplaced) => {
            Err(format!("`{}` is used but never placed; a post field can only be placed", short(unplaced)))
        }
        None => Ok(pieces),
    }
}

/// The prompt with a marker, as a constant, in every `{{name}}`. Where a block catches what it holds (`filter`, `macro`, `call`,
/// `set` without a value) names stay: who knows what becomes of it. Comments and `raw` stay as they are.
fn mark_places(prompt: &str, names: &[String]) -> String {
    let mut out = String::with_capacity(prompt.len());
    let (mut rest, mut caught) = (prompt, 0usize);
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at_checked(at).unwrap_or((rest, ""));
        out.push_str(before);
        let close = match tag.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => "#}",
            _ => {
                out.push('{');
                rest = tag.get(1..).unwrap_or_default();
                continue;
            }
        };
        let end = tag.find(close).map_or(tag.len(), |end| end + close.len());
        let (tag, after) = tag.split_at_checked(end).unwrap_or((tag, ""));
        rest = after;
        let inner = tag.get(2..).and_then(|tag| tag.strip_suffix(close)).unwrap_or_default();
        let word = inner.trim_matches(['-', '+']).trim();
        match close {
            "}}" => match names.iter().position(|name| name == word).filter(|_| caught == 0) {
                Some(place) => out.push_str(&tag.replacen(word, &format!("'{}'", marker(place)), 1)),
                None => out.push_str(tag),
            },
            "%}" => {
                let verb = word.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
                match verb {
                    "filter" | "macro" | "call" => caught += 1,
                    "set" if !word.contains('=') => caught += 1,
                    "endfilter" | "endmacro" | "endcall" | "endset" => caught = caught.saturating_sub(1),
                    _ => {}
                }
                out.push_str(tag);
                if verb == "raw" {
                    let (raw, after) =
                        rest.split_at_checked(rest.find("endraw").unwrap_or(rest.len())).unwrap_or((rest, ""));
                    out.push_str(raw);
                    rest = after;
                }
            }
            _ => out.push_str(tag),
        }
    }
    out + rest
}

fn marker(at: usize) -> String {
    let digits =
        at.to_string().bytes().filter_map(|b| char::from_u32(DIGITS + u32::from(b - b'0'))).collect::<String>();
    format!("{OPEN}{digits}{CLOSE}")
}

fn is_marker(c: char) -> bool {
    matches!(c, '\u{f8e0}'..='\u{f8f1}')
}

fn describe(error: &minijinja::Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it computes too much; a prompt needs no long loop".to_owned(),
        _ => short(&error.to_string()),
    };
    error.line().map_or(what.clone(), |line| format!("line {line}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(prompt: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let mut fields = Fields::default();
        let bound = [("labels", Value::from("- 甲\n- \"乙\""))].into();
        let template = Template::compile(prompt, &bound, &mut fields).expect("a thread")?;
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
        for good in [
            "{% for i in range(3) %}{{i}}{% endfor %}{{content}}",
            "{% if 1 %}{{- content -}}{% endif %}",
            "{# {{nothing|upper}} #}{% raw %}{{content|upper}} {% {% endraw %}{{content}}",
            "{ {{content}} }{",
            "{% set x = 'y' %}{{x|upper}}{{content}}{{ '{{content}}' }}",
        ] {
            compile(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for bad in [
            "no field",
            "{{content",
            "{{content[:3]}}",
            "{{content|length}} {{content}}",
            "{% if location %}x{% endif %}{{content}}",
            "{{ nosuch(1) }}{{content}}",
            "\u{f8f0}{{content}}",
            "{{content|upper}}",
            "{{content|default('x')}}",
            "{% if content == 'x' %}a{% endif %}{{content}}",
            "{% if content is defined %}a{% endif %}{{content}}",
            "{{ 'x' if 'a' in content else 'y' }}{{content}}",
            "{% for c in content %}{{c}}{% endfor %}",
            "{% filter upper %}{{content}}{% endfilter %}",
            "{% set x %}{{content}}{% endset %}{{x|upper}}",
            "{% macro m(x) %}{{content}}{% endmacro %}{{m(1)|upper}}",
            "{% for content in ['a'] %}{{content}}{% endfor %}{{content}}",
        ] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
