//! What the object at the beginning of an input is: a post, or something around posts (an API's answer, a map of ids, a
//! table of pandas), and the `jq` program that takes the posts out of it. The input is looked at once, at its beginning,
//! and no more than the first [`LOOK_BYTES`] of it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What is looked at of an input.
pub const LOOK_BYTES: usize = 1 << 20;
/// Objects within objects that are looked into: `{"data":{"list":[…]}}` has two.
const DEEPEST: usize = 3;
/// Members of one object, and places in all, that are remembered.
const MOST_KEYS: usize = 24;
const MOST_PLACES: usize = 500;

/// An object's members, as far as they were seen.
#[derive(Debug, Default)]
pub struct Form {
    top: Vec<(String, Kind)>,
    /// Deeper arrays of objects: the keys that lead to them, and the keys of their first object.
    deep: Vec<(Vec<String>, Vec<String>)>,
    places: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    Array(Element),
    Object {
        keys: Vec<String>,
        /// No member of it is an object or an array.
        is_flat: bool,
    },
}

/// The first element of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Element {
    None,
    Scalar,
    Array,
    Object(Vec<String>),
}

/// How the posts come out of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapping {
    pub jq: String,
    /// The first keys of the posts in it.
    pub keys: Vec<String>,
    /// What the object is, for a message.
    pub what: &'static str,
    /// A table, or posts with a field that was looked for.
    pub is_sure: bool,
}

impl Form {
    /// Reads the object that `text` begins with. The error says where it ended or broke; what came before it is known.
    pub fn read(text: &[u8]) -> (Self, Option<serde_json::Error>) {
        let mut form = Self::default();
        let mut json = serde_json::Deserializer::from_slice(text);
        let error = Walk { form: &mut form, path: Vec::new(), depth: 0 }.deserialize(&mut json).err();
        (form, error)
    }

    /// The first keys of the object.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.top.iter().map(|(key, _)| key.as_str())
    }

    /// One of the fields stands in the object itself, as a text or a number: it is a post.
    pub fn is_post(&self, fields: &[String]) -> bool {
        self.top.iter().any(|(key, kind)| fields.contains(key) && *kind == Kind::Scalar)
    }

    /// `fields` are those that a post has.
    pub fn wrapping(&self, fields: &[String]) -> Option<Wrapping> {
        let table = self.split_table().or_else(|| self.list_table(fields));
        table.or_else(|| self.array(fields)).or_else(|| self.objects(fields)).or_else(|| {
            let deep = self.deep.iter().map(|(path, keys)| (path.as_slice(), keys));
            Self::array_in(deep, fields)
        })
    }

    fn kind(&self, key: &str) -> Option<&Kind> {
        self.top.iter().find_map(|(known, kind)| (known == key).then_some(kind))
    }

    /// pandas' `to_json(orient="split")`.
    fn split_table(&self) -> Option<Wrapping> {
        let is_split = matches!(self.kind("columns"), Some(Kind::Array(Element::Scalar)))
            && matches!(self.kind("data"), Some(Kind::Array(Element::Array)));
        is_split.then(|| Wrapping {
            jq: ".columns as $c | .data[] | [$c, .] | transpose | map({(.[0] | tostring): .[1]}) | add".to_owned(),
            keys: Vec::new(),
            what: "a table in pandas' split form",
            is_sure: true,
        })
    }

    /// pandas' `to_dict("list")`: an array for each column.
    fn list_table(&self, fields: &[String]) -> Option<Wrapping> {
        let is_table = self.top.iter().all(|(_, kind)| matches!(kind, Kind::Array(Element::Scalar)))
            && self.top.iter().any(|(key, _)| fields.contains(key));
        is_table.then(|| Wrapping {
            jq: ". as $t | range($t | map(length) | max) as $row | $t | map_values(.[$row])".to_owned(),
            keys: self.keys().map(str::to_owned).collect(),
            what: "a table with an array for each column",
            is_sure: true,
        })
    }

    fn array(&self, fields: &[String]) -> Option<Wrapping> {
        let arrays = self.top.iter().filter_map(|(key, kind)| match kind {
            Kind::Array(Element::Object(keys)) => Some((std::slice::from_ref(key), keys)),
            _ => None,
        });
        Self::array_in(arrays, fields)
    }

    /// The array whose posts have a field that is looked for, or else the first.
    fn array_in<'a>(
        arrays: impl Iterator<Item = (&'a [String], &'a Vec<String>)> + Clone,
        fields: &[String],
    ) -> Option<Wrapping> {
        let has_fields = |keys: &[String]| keys.iter().any(|key| fields.contains(key));
        let (path, keys) = arrays.clone().find(|(_, keys)| has_fields(keys)).or_else(|| arrays.clone().next())?;
        Some(Wrapping {
            jq: jq_path(path) + "[]",
            keys: keys.clone(),
            what: "one object around an array",
            is_sure: has_fields(keys),
        })
    }

    /// Objects only: a map of ids to posts, or pandas' `to_json()`, a map of columns to maps of rows.
    fn objects(&self, fields: &[String]) -> Option<Wrapping> {
        let mut inner = Vec::new();
        for (_, kind) in &self.top {
            let Kind::Object { keys, is_flat } = kind else { return None };
            inner.push((keys, *is_flat));
        }
        let (first, _) = inner.first()?;
        let is_number = |key: &String| key.bytes().all(|byte| byte.is_ascii_digit());
        let is_rows = |keys: &[String]| !keys.is_empty() && keys.iter().all(is_number);
        let is_table = inner.iter().all(|(keys, is_flat)| *is_flat && is_rows(keys) && keys.first() == first.first());
        if is_table && !self.top.iter().all(|(key, _)| is_number(key)) {
            return Some(Wrapping {
                jq: ". as $t | (first(.[]) | keys_unsorted[]) as $row | $t | map_values(.[$row])".to_owned(),
                keys: self.keys().map(str::to_owned).collect(),
                what: "a table in pandas' columns form",
                is_sure: true,
            });
        }
        let is_sure = first.iter().any(|key| fields.contains(key));
        let is_map = is_sure || self.top.iter().all(|(key, _)| key.bytes().any(|byte| byte.is_ascii_digit()));
        is_map.then(|| Wrapping {
            jq: ".[]".to_owned(),
            keys: (*first).clone(),
            what: "a map of ids to posts",
            is_sure,
        })
    }
}

/// `.data.list`; a key that jq would read as something else stands in brackets.
pub fn jq_path(keys: &[String]) -> String {
    const WORDS: [&str; 21] = [
        "def", "if", "then", "elif", "else", "end", "as", "reduce", "foreach", "try", "catch", "label", "import",
        "include", "and", "or", "not", "null", "true", "false", "__loc__",
    ];
    let mut path = String::new();
    for key in keys {
        let is_plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && key.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
            && !WORDS.contains(&key.as_str());
        if is_plain {
            path = path + "." + key;
        } else {
            let dot = if path.is_empty() { "." } else { "" };
            path = format!("{path}{dot}[{}]", serde_json::Value::from(key.as_str()));
        }
    }
    path
}

/// Looks into one value.
struct Walk<'f> {
    form: &'f mut Form,
    /// The keys that lead to it; of what stands in an array, those from there on.
    path: Vec<String>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        if self.depth > DEEPEST {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(|_| Kind::Array(Element::None));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Kind, E> {
        Ok(Kind::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Kind, E> {
        Ok(Kind::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Kind, E> {
        Ok(Kind::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Scalar)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let Self { form, path, depth } = self;
        let mut first = Form::default();
        let seen = seq.next_element_seed(Walk { form: &mut first, path: Vec::new(), depth: depth + 1 });
        let element = match &seen {
            Ok(None) => Element::None,
            Ok(Some(Kind::Scalar)) => Element::Scalar,
            Ok(Some(Kind::Array(_))) => Element::Array,
            Ok(Some(Kind::Object { .. })) => Element::Object(first.into_keys()),
            // The text ends within the first element: what that began with is known.
            Err(_) if !first.top.is_empty() => Element::Object(first.into_keys()),
            Err(_) => Element::None,
        };
        let kind = Kind::Array(element);
        form.note(&path, &kind);
        seen?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(kind)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let Self { form, path, depth } = self;
        let (mut keys, mut is_flat) = (Vec::new(), true);
        let most = if path.is_empty() { MOST_PLACES } else { MOST_KEYS };
        while let Some(key) = map.next_key::<String>()? {
            if keys.len() >= most || form.places >= MOST_PLACES {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            form.places += 1;
            keys.push(key.clone());
            // Each is noted before it is looked into: the text may end there.
            match path.is_empty() {
                true => form.top.push((key.clone(), Kind::Scalar)),
                false => form.note(&path, &Kind::Object { keys: keys.clone(), is_flat }),
            }
            let path = path.iter().cloned().chain([key]).collect();
            is_flat &= map.next_value_seed(Walk { form, path, depth: depth + 1 })? == Kind::Scalar;
        }
        let kind = Kind::Object { keys, is_flat };
        form.note(&path, &kind);
        Ok(kind)
    }
}

impl Form {
    fn note(&mut self, path: &[String], kind: &Kind) {
        match (path, kind) {
            ([], _) => {}
            // Members are looked into one after another: this is the last.
            ([_], kind) => {
                if let Some((_, known)) = self.top.last_mut() {
                    known.clone_from(kind);
                }
            }
            (path, Kind::Array(Element::Object(keys))) => self.deep.push((path.to_vec(), keys.clone())),
            _ => {}
        }
    }

    fn into_keys(self) -> Vec<String> {
        self.top.into_iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jq(text: &str) -> Option<String> {
        let fields = ["content".to_owned(), "username".to_owned()];
        Form::read(text.as_bytes()).0.wrapping(&fields).map(|wrapping| wrapping.jq)
    }

    #[test]
    fn r10_12_the_program_is_the_one_for_the_form() {
        const SPLIT: &str = ".columns as $c | .data[] | [$c, .] | transpose | map({(.[0] | tostring): .[1]}) | add";
        const LISTS: &str = ". as $t | range($t | map(length) | max) as $row | $t | map_values(.[$row])";
        const COLUMNS: &str = ". as $t | (first(.[]) | keys_unsorted[]) as $row | $t | map_values(.[$row])";
        for (text, program) in [
            (r#"{"user":{"id":1},"weibo":[{"content":"a"}]}"#, Some(".weibo[]")),
            (r#"{"data":[{"x":1}]}"#, Some(".data[]")),
            // The text may end anywhere.
            (r#"{"user":{"id":1},"weibo":[{"content":"a"#, Some(".weibo[]")),
            (r#"{"user":{"id":1},"weibo":[{"co"#, None),
            (r#"{"ads":[{"x":1}],"posts":[{"username":1}]}"#, Some(".posts[]")),
            (r#"{"ok":1,"data":{"next":2,"list":[{"content":"a"}]}}"#, Some(".data.list[]")),
            (r#"{"end":[{"content":"a"}]}"#, Some(r#".["end"][]"#)),
            (r#"{"微博":{"a b":[{"content":"a"}]}}"#, Some(r#".["微博"]["a b"][]"#)),
            (r#"{"columns":["content"],"index":[0],"data":[["a"]]}"#, Some(SPLIT)),
            (r#"{"content":{"0":"a","1":"b"},"n":{"0":1,"1":2}}"#, Some(COLUMNS)),
            (r#"{"id":[1,2],"content":["x","y"]}"#, Some(LISTS)),
            (r#"{"id":[1,2],"tags":["x","y"]}"#, None),
            (r#"{"4901":{"content":"a"},"4902":{"content":"b"}}"#, Some(".[]")),
            (r#"{"a":{"content":"a"},"b":{"content":"b"}}"#, Some(".[]")),
            (r#"{"0":{"0":"a"},"1":{"0":"b"}}"#, Some(".[]")),
            (r#"{"content":{"zh":"a","en":"b"},"title":{"zh":"a","en":"b"}}"#, None),
            (r#"{"user":{"id":1},"place":{"id":2}}"#, None),
            (r#"{"content":"a","tags":["x"]}"#, None),
            ("{}", None),
        ] {
            assert_eq!(jq(text).as_deref(), program, "{text}");
        }
    }

    #[test]
    fn no_object_is_too_deep_or_too_wide() {
        let deep = format!("{{\"a\":{}", "[{\"b\":".repeat(100_000));
        let (_, error) = Form::read(deep.as_bytes());
        assert!(error.is_some_and(|error| error.is_eof()));
        let wide: Vec<String> = (0..50_000).map(|n| format!("\"{n}\":{{\"content\":[{{\"a\":1}}]}}")).collect();
        let (form, error) = Form::read(format!("{{{}}}", wide.join(",")).as_bytes());
        assert!(error.is_none() && form.top.len() + form.deep.len() <= 2 * MOST_PLACES);
    }
}
