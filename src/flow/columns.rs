//! What the prompts ask about, held against what the posts have. A field that no post has is told once, not row by row:
//! as an error where its prompt would ask about nothing, or where it looks like a slip of the pen, and else as a note.
//!
//! In constant memory: a mark for each field, the names of the first columns, and the form of the first post.

use std::{collections::BTreeSet, sync::Arc};

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use super::posts::Place;
use crate::{
    analysis::{Analysis, AnalysisSet, Slot},
    error::{Error, Result},
    lines::{
        blocks::jq_command,
        form::{Form, LOOK_BYTES, jq_path},
    },
    text::short,
};

/// Posts after which a filter says what none of them has. Only their columns are named.
pub const FIRST_POSTS: u64 = 1000;
/// Columns that are kept, and shown.
const MOST_COLUMNS: usize = 200;
const SHOWN_COLUMNS: usize = 20;

/// The best that any post had of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Nothing,
    /// Null, or an empty text, list or object.
    Empty,
    /// Not a text.
    Other,
    Text,
}

impl Seen {
    fn of(raw: Option<&str>) -> Self {
        match raw {
            None => Self::Nothing,
            Some(raw) if is_empty(raw) => Self::Empty,
            Some(raw) if raw.starts_with('"') => Self::Text,
            Some(_) => Self::Other,
        }
    }
}

/// A value that leaves its place in a prompt empty.
pub fn is_empty(raw: &str) -> bool {
    matches!(raw, "null" | "\"\"" | "[]" | "{}")
}

#[derive(Debug)]
pub struct Columns {
    set: Arc<AnalysisSet>,
    fields: Vec<(Slot, Seen)>,
    /// Fields that may turn out better than they are.
    open: bool,
    posts: u64,
    in_array: bool,
    names: Vec<String>,
    form: Option<Form>,
}

/// Fields that are lacking, and the analyses that ask about them.
#[derive(Debug, PartialEq, Eq)]
pub struct Lack {
    fields: Vec<String>,
    analyses: Vec<String>,
    /// A column of nearly the same name as the first of the fields.
    near: Option<String>,
    /// The posts have the field, and nothing in it.
    is_empty: bool,
}

impl Columns {
    pub fn new(set: Arc<AnalysisSet>) -> Self {
        let mut fields: Vec<(Slot, Seen)> = set
            .list
            .iter()
            .flat_map(|analysis| placed(analysis).chain(required(analysis)).chain(image(analysis, &set)))
            .map(|slot| (slot, Seen::Nothing))
            .collect();
        fields.sort();
        fields.dedup();
        Self { set, open: !fields.is_empty(), fields, posts: 0, in_array: false, names: Vec::new(), form: None }
    }

    /// Takes note of what a post has.
    pub fn note(&mut self, place: &Place<'_>) {
        let Ok(post) = &place.post else { return };
        self.posts += 1;
        self.in_array = place.in_array;
        if !self.open {
            return;
        }
        let (mut open, mut is_absent) = (false, false);
        for (slot, seen) in &mut self.fields {
            if *seen < Seen::Text {
                *seen = Seen::of(post.raw(*slot)).max(*seen);
                open |= *seen < Seen::Text;
                is_absent |= *seen == Seen::Nothing;
            }
        }
        self.open = open;
        if is_absent && self.posts <= FIRST_POSTS {
            self.note_columns(post.line);
        }
    }

    /// Cold: at most once for each of the first posts.
    fn note_columns(&mut self, line: &str) {
        if self.form.is_none() {
            self.form = Some(Form::read(line.as_bytes().get(..LOOK_BYTES).unwrap_or(line.as_bytes())).0);
        }
        let mut json = serde_json::Deserializer::from_str(line);
        // A key that is no string has no name to show.
        let _odd_key = json.deserialize_map(Names(&mut self.names));
    }

    pub fn posts(&self) -> u64 {
        self.posts
    }

    /// What would stop the verb if this were the end of the input.
    pub fn lack(&self) -> Option<Lack> {
        if !self.open {
            return None;
        }
        // The worst first: what nobody can be asked about.
        let needed = |analysis: &Analysis| {
            let needed: Vec<Slot> = required(analysis).filter(|slot| self.seen(*slot) < Seen::Text).collect();
            let mut all = placed(analysis).chain(image(analysis, &self.set));
            match needed.is_empty() && all.all(|slot| self.seen(slot) <= Seen::Empty) {
                true => placed(analysis).collect(),
                false => needed,
            }
        };
        let slips = |analysis: &Analysis| {
            let is_slip = |slot: &Slot| self.seen(*slot) == Seen::Nothing && self.near(*slot, analysis).is_some();
            placed(analysis).filter(is_slip).take(1).collect()
        };
        self.group(needed).or_else(|| self.group(slips))
    }

    /// The first analysis that lacks something, with all others that lack the same.
    fn group(&self, of: impl Fn(&Analysis) -> Vec<Slot>) -> Option<Lack> {
        let one = self.set.list.iter().find(|analysis| !of(analysis).is_empty())?;
        let mut slots = of(one);
        let analyses = self.set.list.iter().filter(|analysis| of(analysis) == slots);
        let analyses = analyses.map(|analysis| analysis.name.clone()).collect();
        // What is not there at all comes first, and before it what was meant for a column.
        slots.sort_by_key(|slot| (self.near(*slot, one).is_none(), self.seen(*slot), self.name(*slot)));
        slots.dedup();
        let first = slots.first()?;
        let near = if self.seen(*first) == Seen::Nothing { self.near(*first, one) } else { None };
        Some(Lack {
            near: near.map(str::to_owned),
            is_empty: self.seen(*first) > Seen::Nothing,
            fields: slots.iter().map(|slot| self.name(*slot).to_owned()).collect(),
            analyses,
        })
    }

    /// A warning, when the first posts give reason for one.
    pub fn warning(&self) -> Option<String> {
        let lack = self.lack()?;
        let (fields, analyses) = (quoted(&lack.fields), lack.analyses.join(", "));
        let has = if lack.is_empty { "has a text in" } else { "has" };
        Some(format!("none of the first 1,000 posts {has} {fields} ({analyses}); going on, since a later one may"))
    }

    /// The verdict at the end of the input; a note on fields that were left empty throughout.
    ///
    /// # Errors
    /// No post has what a prompt asks about.
    pub fn judge(&self, input: &str) -> Result<Option<String>> {
        if self.posts == 0 {
            return Ok(None);
        }
        match self.lack() {
            Some(lack) => Err(self.refuse(&lack, input)),
            None => Ok(self.left_empty(input)),
        }
    }

    fn refuse(&self, lack: &Lack, input: &str) -> Error {
        let (fields, analyses) = (quoted(&lack.fields), lack.analyses.join(", "));
        let first = lack.fields.first().map_or("", String::as_str);
        let what = if lack.is_empty {
            format!("in every post {fields} is empty or not a text")
        } else {
            format!("no post has {fields}")
        };
        let error =
            Error::input(format!("{input}: {what}; asked about by {analyses}. The posts have: {}", self.shown()));
        if lack.is_empty {
            return error.fix(format!("fill `{first}`, or name another field in the prompt"));
        }
        let wrapping = self.form.as_ref().and_then(|form| form.wrapping(&lack.fields));
        // A post may hold objects of its own: without the field that is looked for, only one alone is taken for a wrapping.
        if let Some(wrapping) = wrapping.filter(|wrapping| wrapping.is_sure || self.posts == 1) {
            let inner: Vec<String> = wrapping.keys.iter().map(|key| short(key)).collect();
            return error.fix(format!(
                "it is {} (with {}); give zbatch what this prints: {}",
                wrapping.what,
                inner.join(", "),
                self.jq(&wrapping.jq, input)
            ));
        }
        let key = |name: &str| jq_path(std::slice::from_ref(&name.to_owned()));
        match &lack.near {
            Some(near) if OF_OURS.contains(&near.as_str()) => {
                error.fix(format!("did you mean `{{{{{near}}}}}`? Mend it in the prompt"))
            }
            Some(near) => error.fix(format!(
                "did you mean `{near}`? Name it in the prompt, or in the posts: {}",
                self.jq(&format!("{} = {}", key(first), key(near)), input)
            )),
            None => error.fix(format!(
                "name one of these in the prompt, or give its text that name in the posts: {}",
                self.jq(&format!("{} = .COLUMN", key(first)), input)
            )),
        }
    }

    /// The command that does this with each post.
    fn jq(&self, program: &str, input: &str) -> String {
        let each = if self.in_array { ".[] | " } else { "" };
        jq_command(&format!("{each}{program}"), input)
    }

    fn left_empty(&self, input: &str) -> Option<String> {
        let mut fields = BTreeSet::new();
        let mut analyses = Vec::new();
        for analysis in &self.set.list {
            let absent: Vec<Slot> = placed(analysis).filter(|slot| self.seen(*slot) == Seen::Nothing).collect();
            if !absent.is_empty() {
                analyses.push(analysis.name.as_str());
            }
            fields.extend(absent.into_iter().map(|slot| self.name(slot).to_owned()));
        }
        let (fields, analyses) = (quoted(&Vec::from_iter(fields)), analyses.join(", "));
        (!analyses.is_empty())
            .then(|| format!("{input}: no post has {fields}; left empty in the prompts of {analyses}"))
    }

    fn seen(&self, slot: Slot) -> Seen {
        self.fields.iter().find_map(|(known, seen)| (*known == slot).then_some(*seen)).unwrap_or(Seen::Nothing)
    }

    fn name(&self, slot: Slot) -> &str {
        self.set.fields.name(slot)
    }

    /// The column that was meant, if one has nearly this name. One that the same prompt names as well was not.
    fn near(&self, slot: Slot, analysis: &Analysis) -> Option<&str> {
        let name = self.name(slot);
        let is_named = |column: &str| placed(analysis).any(|slot| self.name(slot) == column);
        let columns = self.names.iter().map(String::as_str).filter(|column| !is_named(column));
        let of_ours = OF_OURS.into_iter().filter(|known| !analysis.template.uses.contains(known));
        let near = of_ours.chain(columns).filter(|column| is_near(name, column));
        near.min_by_key(|column| strsim::osa_distance(name, column))
    }

    fn shown(&self) -> String {
        let names: Vec<String> = self.names.iter().take(SHOWN_COLUMNS).map(|name| short(name)).collect();
        match self.names.len().saturating_sub(SHOWN_COLUMNS) {
            0 if names.is_empty() => "no fields".to_owned(),
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }
}

fn placed(analysis: &Analysis) -> impl Iterator<Item = Slot> {
    analysis.template.pieces.iter().filter_map(|piece| piece.slot)
}

fn required(analysis: &Analysis) -> impl Iterator<Item = Slot> {
    analysis.requires.iter().flatten().map(|(_, slot)| *slot)
}

/// Where its images are: they are something to ask about.
fn image(analysis: &Analysis, set: &AnalysisSet) -> Option<Slot> {
    set.image_slot.filter(|_| analysis.images)
}

/// What a prompt can place beside fields of a post.
const OF_OURS: [&str; 2] = ["labels", "examples"];

/// The same letters in another spelling, or a slip of the pen: one letter in five.
fn is_near(name: &str, column: &str) -> bool {
    let plain =
        |text: &str| -> String { text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect() };
    let (name, column) = (plain(name), plain(column));
    let letters = name.chars().count();
    let slips = if letters < 4 { 0 } else { (letters / 5).max(1) };
    !name.is_empty() && strsim::osa_distance(&name, &column) <= slips
}

/// `` `a`, `b` ``
fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Collects the keys of an object.
struct Names<'n>(&'n mut Vec<String>);

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if self.0.len() < MOST_COLUMNS && !self.0.iter().any(|known| *known == key) {
                self.0.push(short(&key));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_13_near_names_are_slips_and_spellings() {
        for (name, column) in [
            ("boddy", "body"),
            ("Body", "body"),
            ("contnet", "content"),
            ("username", "user_name"),
            ("userName", "user-name"),
            ("location", "locations"),
            ("id", "ID"),
        ] {
            assert!(is_near(name, column), "{name} {column}");
        }
        for (name, column) in [
            ("username", "user_id"),
            ("username", "user"),
            ("text", "title"),
            ("content", "comment"),
            ("publish_time", "publish_date"),
            ("正文", "正题"),
            ("id", "uid"),
            ("body", "id"),
        ] {
            assert!(!is_near(name, column), "{name} {column}");
        }
    }
}
