//! An analysis is one question put to the model about every post. It is data: a folder with `analysis.json`
//! and `prompt.txt`, for some `examples.jsonl`, and for most a reference file with the labels that may be answered.
//!
//! This module finds and checks them, once, at start; everything it yields is immutable afterwards.

mod bound;
mod builtin;
mod examples;
mod fields;
mod rule;
mod template;
mod texts;

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, value::RawValue};

pub use fields::{Fields, Slot};
pub use rule::{AnswerRule, LabelSet, LabelTree, fold};
pub use template::{Piece, Template};
use texts::Root;

use crate::{
    error::{Error, Result},
    text::{did_you_mean, short},
};

/// Analyses that may be in force at one time; each is asked about every post.
const MOST_ANALYSES: usize = 100;
/// Labels of all analyses in force; each has about 250 bytes of memory.
const MOST_LABELS: usize = 500_000;

/// The post field that lists images.
pub const IMAGE_FIELD: &str = "image_urls";

/// One question: its prompt, where its answer goes, and when the answer counts.
#[derive(Debug)]
pub struct Analysis {
    pub name: String,
    /// The top-level key of the post that the answer is written to.
    pub field: String,
    pub field_slot: Slot,
    /// The key as it is written into a post: `"field":`, with its quotes and colon.
    pub field_json: String,
    pub rule: AnswerRule,
    pub template: Template,
    /// Looks at the post's images, with the multimodal model.
    pub images: bool,
    /// Fields that must be texts with something in them, or the post is a fault for this analysis; `None`: any field of the
    /// prompt is enough.
    pub requires: Option<Vec<(String, Slot)>>,
    /// Compact JSON written when an answer was a fault and the post has no value of its own.
    pub fallback: Option<String>,
    /// As written in `analysis.json`.
    pub temperature: Option<serde_json::Number>,
    pub max_tokens: Option<u64>,
    /// Hash of everything above as it was read: `analysis.json`, prompt and reference bytes.
    fingerprint: blake3::Hash,
}

/// The analyses in force, in the order of the table: built-in ones first, then added ones by name.
#[derive(Debug, Default)]
pub struct AnalysisSet {
    pub list: Vec<Analysis>,
    /// Every post field that some prompt, image list or answer names.
    pub fields: Fields,
    /// Where `image_urls` is, if any analysis looks at images.
    pub image_slot: Option<Slot>,
    /// What the user should know: embedded data in use, an optional analysis left out.
    pub notes: Vec<String>,
    /// The same, for the verbs that render prompts: examples or labels that are not shown.
    pub prompt_notes: Vec<String>,
    /// Analyses whose built-in examples are not all shown.
    fewer_examples: Vec<String>,
    /// How many labels all rules have.
    labels: usize,
}

/// Where analyses and their reference data are looked for.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `None`: the embedded reference files.
    pub data_dir: Option<PathBuf>,
    /// `--analyses`.
    pub analyses_dir: Option<PathBuf>,
    /// `--only`; empty means all.
    pub only: Vec<String>,
    /// Reference files that lie elsewhere than in the data dir: the name that an analysis knows, and the path.
    pub files: Vec<(&'static str, PathBuf)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    name: String,
    field: String,
    #[serde(deserialize_with = "named_rule")]
    rule: rule::RuleDefinition,
    reference: Option<Reference>,
    #[serde(default)]
    images: bool,
    requires: Option<Vec<String>>,
    fallback: Option<Box<RawValue>>,
    temperature: Option<serde_json::Number>,
    max_tokens: Option<u64>,
}

/// Of a rule's errors the parser does not know the place.
fn named_rule<'d, D: Deserializer<'d>>(from: D) -> Result<rule::RuleDefinition, D::Error> {
    rule::RuleDefinition::deserialize(from).map_err(|e| D::Error::custom(format_args!("`rule`: {e}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    file: String,
    #[serde(default)]
    optional: bool,
}

/// The folders that the user named, opened once.
struct Roots<'s> {
    analyses: Option<Root>,
    data: Option<Root>,
    sources: &'s Sources,
}

/// The texts of an analysis folder and where they came from.
struct Folder {
    /// `None`: embedded.
    path: Option<PathBuf>,
    name: String,
    json: String,
    prompt: String,
    /// `examples.jsonl`, if it has one.
    examples: Option<String>,
}

/// `[a-z][a-z0-9_]*`, at most 40 bytes, not ending in `_vision` or `_<digits>`: then a chunk name and a
/// custom_id can be read in one way only.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let tail = name.rsplit_once('_').map_or("", |(_, tail)| tail);
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name.len() <= 40
        && tail != "vision"
        && (tail.is_empty() || !tail.bytes().all(|b| b.is_ascii_digit()))
}

impl AnalysisSet {
    /// # Errors
    /// [`crate::error::Kind::Input`] for a folder or reference file that is missing or wrong,
    /// [`crate::error::Kind::Usage`] for a name in `--only` that does not exist.
    pub fn load(sources: &Sources) -> Result<Self> {
        let mut folders: Vec<Folder> = builtin::ANALYSES
            .iter()
            .map(|&(name, json, prompt, examples)| Folder {
                path: None,
                name: name.to_owned(),
                json: json.to_owned(),
                prompt: prompt.to_owned(),
                examples: Some(examples.to_owned()),
            })
            .collect();
        let roots = Roots::open(sources)?;
        if let Some(root) = &roots.analyses {
            for folder in read_folders(root)? {
                match folders.iter_mut().find(|known| known.name == folder.name) {
                    Some(known) => *known = folder,
                    None => folders.push(folder),
                }
            }
        }
        if let Some(unknown) = sources.only.iter().find(|name| !folders.iter().any(|f| f.name == **name)) {
            let names: Vec<&str> = folders.iter().map(|f| f.name.as_str()).collect();
            return Err(Error::usage(format!("there is no analysis `{unknown}` (--only)")).fix(format!(
                "{}There are: {}",
                did_you_mean(unknown, &names),
                names.join(", ")
            )));
        }
        let wanted = |name: &str| sources.only.is_empty() || sources.only.iter().any(|only| only == name);
        let mut set = Self::default();
        if sources.data_dir.is_none() {
            set.notes.push("no data dir: using the embedded reference data (--data-dir to use yours)".to_owned());
        }
        for folder in folders.iter().filter(|folder| wanted(&folder.name)) {
            set.add(folder, &roots)?;
        }
        if !set.fewer_examples.is_empty() {
            set.prompt_notes.push(format!(
                "built-in examples left out of the prompts, since their labels are not in your lists: {}",
                set.fewer_examples.join(", ")
            ));
        }
        if set.list.is_empty() {
            return Err(Error::input("no analysis is left to run")
                .fix("put the missing reference files into the data dir, or name other analyses with --only"));
        }
        Ok(set)
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|analysis| analysis.name == name)
    }

    pub fn names(&self) -> Vec<&str> {
        self.list.iter().map(|analysis| analysis.name.as_str()).collect()
    }

    /// Name and fingerprint of each: all that decides a rendered request or a judged answer.
    pub fn fingerprints(&self) -> Vec<(String, String)> {
        self.list.iter().map(|a| (a.name.clone(), a.fingerprint.to_hex().chars().take(32).collect())).collect()
    }

    fn add(&mut self, folder: &Folder, roots: &Roots<'_>) -> Result<()> {
        let here = folder.describe();
        let file = folder.definition();
        let definition: Definition = serde_json::from_str(&folder.json).map_err(|e| {
            let key = key_at(&folder.json, &e).map(|key| format!("`{key}`: "));
            let key = key.filter(|key| !e.to_string().starts_with(key)).unwrap_or_default();
            Error::input(format!("{file}: {key}{}", short(&e.to_string())))
                .fix("the README lists the keys of analysis.json")
        })?;
        if !is_name(&definition.name) {
            return Err(Error::input(format!(
                "{file}: `name`: `{}` cannot be an analysis' name",
                short(&definition.name)
            ))
            .fix("[a-z][a-z0-9_]*, at most 40 bytes, not ending in _vision or _<digits>"));
        }
        if definition.name != folder.name {
            return Err(Error::input(format!(
                "{file}: the folder is `{}` but `name` is `{}`",
                folder.name, definition.name
            ))
            .fix("give both the same name"));
        }
        if let Some(other) = self.list.iter().find(|other| other.field == definition.field) {
            return Err(Error::input(format!("{file}: `{}` already writes the `field` `{}`", other.name, other.field))
                .fix("choose another `field`"));
        }
        definition.check().map_err(|(what, fix)| Error::input(format!("{file}: {what}")).fix(fix))?;
        let Some((rule, fingerprint)) = self.resolve(folder, definition.rule, definition.reference.as_ref(), roots)?
        else {
            return Ok(());
        };
        let template = self.compile(folder, &rule)?;
        let slots = |name: &String| (name.clone(), self.fields.slot(name));
        let requires: Option<Vec<_>> = definition.requires.as_ref().map(|names| names.iter().map(slots).collect());
        let asked: Vec<Slot> = match &requires {
            Some(requires) => requires.iter().map(|(_, slot)| *slot).collect(),
            None => template.pieces.iter().filter_map(|piece| piece.slot).collect(),
        };
        if asked.iter().any(|slot| self.fields.name(*slot) == definition.field) {
            let (what, fix) = would_replace(&definition.field);
            return Err(Error::input(format!("{here}: {what}")).fix(fix));
        }
        asked.into_iter().for_each(|slot| self.fields.ask(slot));
        if definition.images {
            self.image_slot = Some(self.fields.slot(IMAGE_FIELD));
        }
        let field_json = serde_json::to_string(&definition.field).unwrap_or_default() + ":";
        self.list.push(Analysis {
            field_slot: self.fields.slot(&definition.field),
            field_json,
            name: definition.name,
            field: definition.field,
            rule,
            template,
            images: definition.images,
            requires,
            // It goes into one line. Within strings JSON has no raw line breaks, so these are between tokens.
            fallback: definition
                .fallback
                .map(|raw| raw.get().replace(['\n', '\r'], ""))
                .filter(|fallback| fallback != "null"),
            temperature: definition.temperature,
            max_tokens: definition.max_tokens,
            fingerprint,
        });
        Ok(())
    }

    /// The rule with its labels, and the hash of all that was read; `None` for an analysis that is left out, with a note.
    fn resolve(
        &mut self,
        folder: &Folder,
        rule: rule::RuleDefinition,
        reference: Option<&Reference>,
        roots: &Roots<'_>,
    ) -> Result<Option<(AnswerRule, blake3::Hash)>> {
        let file = folder.definition();
        let reference = match reference {
            None => None,
            Some(reference) => match read_reference(&reference.file, folder, roots)? {
                Some(found) => Some(found),
                None if reference.optional => {
                    self.notes.push(format!("{}: left out, {} is not in the data dir", folder.name, reference.file));
                    return Ok(None);
                }
                None => {
                    let dir = roots.sources.data_dir.as_deref().unwrap_or(Path::new("."));
                    return Err(Error::input(format!(
                        "{file}: its `reference` {} is missing",
                        dir.join(&reference.file).display()
                    ))
                    .fix("add the file, or leave the analysis out with --only"));
                }
            },
        };
        let mut hasher = blake3::Hasher::new();
        let reference_text = reference.as_ref().map_or("", |(_, text)| text.as_str());
        let texts = [folder.json.as_str(), &folder.prompt, reference_text];
        // A folder without examples keeps the fingerprint that it had before there were any.
        for text in texts.into_iter().chain(folder.examples.as_deref()) {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        let rule =
            rule.resolve(reference.as_ref().map(|(path, text)| (path.as_str(), text.as_str()))).map_err(|what| {
                Error::input(format!("{file}: `rule`: {what}"))
                    .fix("mend its `rule` or its labels; the README says what both hold")
            })?;
        self.labels += rule.label_count();
        if self.labels > MOST_LABELS {
            return Err(Error::input(format!("{file}: the analyses in force have more than {MOST_LABELS} labels"))
                .fix("run fewer analyses at a time, or shorten their lists"));
        }
        Ok(Some((rule, hasher.finalize())))
    }

    /// The prompt with its labels and examples, and notes on what it leaves out.
    fn compile(&mut self, folder: &Folder, rule: &AnswerRule) -> Result<Template> {
        let (here, name) = (folder.describe(), &folder.name);
        let text = folder.examples.as_deref().unwrap_or_default();
        // The built-in examples have the built-in labels, and the user's own data dir may have others.
        let (examples, left_out) = examples::read(text, rule, folder.path.is_none()).map_err(|what| {
            Error::input(format!("{here}, examples.jsonl: {what}")).fix("mend the example, or take its line out")
        })?;
        let bound = bound::bound(rule, &examples);
        let template = Template::compile(&folder.prompt, &bound, &mut self.fields)?.map_err(|what| {
            Error::input(format!("{here}, prompt.txt: {what}")).fix(
                "mend the prompt; in it `{{name}}` is a field of the post, `{{labels}}` the labels and `{{examples}}` the examples",
            )
        })?;
        let uses = |name: &str| template.uses.contains(&name);
        if left_out > 0 {
            self.fewer_examples.push(format!("{name} {left_out} of {}", examples.len() + left_out));
        }
        if !uses("labels") && !matches!(rule, AnswerRule::Integer { .. }) {
            self.prompt_notes
                .push(format!("{name}: its prompt has no {{{{labels}}}}, so it must name the labels itself"));
        }
        if uses("examples") && folder.examples.is_none() {
            return Err(Error::input(format!(
                "{here}, prompt.txt: it has {{{{examples}}}}, and there is no examples.jsonl"
            ))
            .fix(r#"write the file, one {"post":{…},"answer":…} a line, or take {{examples}} out"#));
        }
        if !uses("examples") && folder.examples.is_some() {
            self.prompt_notes
                .push(format!("{name}: its prompt has no {{{{examples}}}}, so examples.jsonl is not shown"));
        }
        Ok(template)
    }
}

impl Definition {
    /// What is wrong with it by itself, and how to mend it.
    fn check(&self) -> Result<(), (String, &'static str)> {
        if self.field.is_empty() {
            return Err(("`field` is empty".to_owned(), "name the key of the post that the answer is written to"));
        }
        if self.field.chars().any(char::is_control) {
            return Err((
                format!("`field` `{}` has a control character", short(&self.field)),
                "choose another `field`",
            ));
        }
        if self.field == IMAGE_FIELD {
            return Err(would_replace(IMAGE_FIELD));
        }
        // The readers of posts, like ours, end at some depth.
        if let Some(e) = self.fallback.as_ref().and_then(|fallback| serde_json::from_str::<Value>(fallback.get()).err())
        {
            return Err((format!("`fallback`: {e}"), "write a value that nests less deep"));
        }
        if let Some(temperature) = &self.temperature
            && !temperature.as_f64().is_some_and(|t| (0.0..=2.0).contains(&t))
        {
            return Err((format!("`temperature` is {temperature}"), "write a number from 0 to 2"));
        }
        if self.max_tokens == Some(0) {
            return Err(("`max_tokens` is 0".to_owned(), "write a whole number from 1"));
        }
        Ok(())
    }
}

fn would_replace(field: &str) -> (String, &'static str) {
    (format!("the answer would replace `{field}`, which is asked about"), "choose another `field`")
}

impl Folder {
    /// Where its `analysis.json` is.
    fn definition(&self) -> String {
        self.path.as_ref().map_or(self.describe(), |path| path.join("analysis.json").display().to_string())
    }

    fn describe(&self) -> String {
        match &self.path {
            Some(path) => format!("analysis {}", path.display()),
            None => format!("built-in analysis {}", self.name),
        }
    }
}

impl<'s> Roots<'s> {
    fn open(sources: &'s Sources) -> Result<Self> {
        let data = |dir: &PathBuf| {
            Root::open(dir).map_err(|e| {
                Error::input(format!("cannot open the data dir {}: {e}", dir.display()))
                    .fix("name a directory (--data-dir)")
            })
        };
        let analyses = |dir: &PathBuf| Root::open(dir).map_err(|e| unlisted(dir, &e));
        Ok(Self {
            analyses: sources.analyses_dir.as_ref().map(analyses).transpose()?,
            data: sources.data_dir.as_ref().map(data).transpose()?,
            sources,
        })
    }
}

fn unlisted(dir: &Path, e: &std::io::Error) -> Error {
    Error::input(format!("--analyses {}: {e}", dir.display())).fix("name a directory of analysis folders")
}

fn read_folders(root: &Root) -> Result<Vec<Folder>> {
    let dir = root.join("");
    let mut folders = Vec::new();
    for name in root.names().map_err(|e| unlisted(&dir, &e))? {
        let name = PathBuf::from(name.map_err(|e| Error::io("list", &dir, &e))?);
        let Some(json) = root.read(&name.join("analysis.json"), texts::DEFINITION)? else { continue };
        let path = root.join(&name);
        let Some(name_text) = name.to_str().map(str::to_owned) else {
            return Err(Error::input(format!("analysis {}: its name is not UTF-8", path.display())));
        };
        if folders.len() == MOST_ANALYSES {
            return Err(Error::input(format!(
                "--analyses {}: it has more than {MOST_ANALYSES} analyses",
                dir.display()
            ))
            .fix("each is asked about every post; move those that you need into a folder of their own"));
        }
        let prompt = root.read(&name.join("prompt.txt"), texts::PROMPT)?.ok_or_else(|| {
            Error::input(format!("analysis {}: it has no prompt.txt", path.display())).fix("write the file")
        })?;
        let examples = root.read(&name.join("examples.jsonl"), texts::EXAMPLES)?;
        folders.push(Folder { name: name_text, examples, json, prompt, path: Some(path) });
    }
    if folders.is_empty() {
        return Err(Error::input(format!("--analyses {}: no folder in it has an analysis.json", dir.display())));
    }
    folders.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(folders)
}

/// The key of an object in whose value a parser found an error.
fn key_at(json: &str, error: &serde_json::Error) -> Option<String> {
    let keys: std::collections::HashMap<String, &RawValue> = serde_json::from_str(json).ok()?;
    let line_start: usize = json.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    let place = json.as_ptr() as usize + line_start + error.column();
    let holds = |value: &RawValue| {
        let start = value.get().as_ptr() as usize;
        start < place && place <= start + value.get().len()
    };
    keys.into_iter().find(|(_, value)| holds(value)).map(|(key, _)| key)
}

/// The path and the text of a reference file. It is looked for beside the analysis, then where the config says, then in the data
/// dir, then (without a data dir) among the embedded files.
fn read_reference(file: &str, folder: &Folder, roots: &Roots<'_>) -> Result<Option<(String, String)>> {
    let mut parts = Path::new(file).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        let file = short(file);
        return Err(Error::input(format!("{}: the reference file `{file}` must be a plain name", folder.describe())));
    }
    let below = |root: Option<&Root>, name: &Path| -> Result<Option<(String, String)>> {
        let Some(root) = root else { return Ok(None) };
        Ok(root.read(name, texts::LABELS)?.map(|text| (root.join(name).display().to_string(), text)))
    };
    let beside = roots.analyses.as_ref().filter(|_| folder.path.is_some());
    if let Some(found) = below(beside, &Path::new(&folder.name).join(file))? {
        return Ok(Some(found));
    }
    if let Some((_, path)) = roots.sources.files.iter().find(|(name, _)| *name == file) {
        return Ok(Some((path.display().to_string(), texts::read(path, texts::LABELS)?)));
    }
    let embedded = || {
        builtin::REFERENCES
            .iter()
            .find(|(name, _)| *name == file)
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
    };
    Ok(if roots.data.is_none() { embedded() } else { below(roots.data.as_ref(), Path::new(file))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "topic_analysis", "t5", "vision", "a_vision_x"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "A", "5t", "_a", "a_vision", "a_5", "a_55", "a-b", "é", &"a".repeat(41)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_built_in_set_is_the_table_of_the_contract() {
        let set = AnalysisSet::load(&Sources::default()).expect("embedded data is sound");
        let table: Vec<(&str, &str)> = set.list.iter().map(|a| (a.name.as_str(), a.field.as_str())).collect();
        assert_eq!(
            table,
            [
                ("sentiment_polarity", "sentiment_polarity"),
                ("sentiment_attribute", "sentiment_attribute"),
                ("topic_analysis", "topics"),
                ("publisher_analysis", "publisher"),
                ("belief_system", "belief_signals"),
                ("publisher_decision", "publisher_decision"),
            ]
        );
    }
}
