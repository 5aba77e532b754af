//! The config file: `{"batch": {…}, "paths": {…}}`. A key that we do not know is refused by name, since a
//! misspelt limit that is silently ignored costs money.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Number, Value};

use crate::{
    error::{Error, Result},
    lines::input::read_small,
    provider::Dialect,
    units::{nearest, parse_bytes, parse_duration},
};

const LARGEST: u64 = 1 << 20;

const BATCH_KEYS: [&str; 9] = [
    "model",
    "multimodal_model",
    "max_concurrent_tasks",
    "poll_interval",
    "temperature",
    "provider",
    "base_url",
    "max_lines",
    "max_bytes",
];
const PATHS_KEYS: [&str; 3] = ["data_dir", "enhanced_output", "work_dir"];

#[derive(Debug, Default)]
pub struct ConfigFile {
    pub batch: Batch,
    pub paths: Paths,
}

#[derive(Debug, Default)]
pub struct Batch {
    pub model: Option<String>,
    pub multimodal_model: Option<String>,
    pub max_concurrent_tasks: Option<NonZeroU32>,
    pub poll_interval: Option<Duration>,
    pub temperature: Option<Number>,
    pub provider: Option<String>,
    pub base_url: Option<String>,
    pub max_lines: Option<u64>,
    pub max_bytes: Option<u64>,
}

/// As written, relative to the file.
#[derive(Debug, Default)]
pub struct Paths {
    pub data_dir: Option<PathBuf>,
    pub enhanced_output: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
}

/// A `config.json` in the current directory may belong to something else.
pub fn looks_like_ours(path: &Path) -> Result<bool> {
    let text = read_small(path, LARGEST)?;
    let value: Option<Value> = serde_json::from_str(&text).ok();
    Ok(value.is_some_and(|value| ["batch", "paths"].iter().any(|key| value.get(key).is_some_and(Value::is_object))))
}

impl ConfigFile {
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_small(path, LARGEST)?;
        let here = path.display();
        let top: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| Error::input(format!("config {here}: {e}")))?;
        let section = |name: &str, keys: &[&'static str]| -> Result<Section> {
            let map = match top.get(name) {
                None => Map::new(),
                Some(Value::Object(map)) => map.clone(),
                Some(_) => return Err(Error::input(format!("config {here}: `{name}` is not an object"))),
            };
            if let Some(unknown) = map.keys().find(|key| !keys.contains(&key.as_str())) {
                return Err(Error::input(format!("config {here}: unknown key `{name}.{unknown}`"))
                    .fix(format!("did you mean `{name}.{}`?", nearest(unknown, keys))));
            }
            Ok(Section { here: here.to_string(), name: name.to_owned(), map })
        };
        if let Some(unknown) = top.keys().find(|key| !["batch", "paths"].contains(&key.as_str())) {
            return Err(Error::input(format!("config {here}: unknown key `{unknown}`")).fix(format!(
                "did you mean `{}`? The file holds `batch` and `paths`",
                nearest(unknown, &["batch", "paths"])
            )));
        }
        let batch = section("batch", &BATCH_KEYS)?;
        let paths = section("paths", &PATHS_KEYS)?;
        let provider = batch.text("provider")?;
        if let Some(name) = &provider {
            Dialect::find(name).map_err(|e| Error::input(format!("config {here}: {e}")))?;
        }
        Ok(Self {
            batch: Batch {
                model: batch.text("model")?,
                multimodal_model: batch.text("multimodal_model")?,
                max_concurrent_tasks: batch.read("max_concurrent_tasks", "a whole number from 1", |value| {
                    value.as_u64().and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new)
                })?,
                poll_interval: batch.read(
                    "poll_interval",
                    "seconds, or a time such as \"60s\"",
                    |value| match value {
                        Value::Number(n) => n.as_f64().and_then(|n| Duration::try_from_secs_f64(n).ok()),
                        value => value.as_str().and_then(|text| parse_duration(text).ok()),
                    },
                )?,
                temperature: batch.read("temperature", "a number from 0 to 2", |value| match value {
                    Value::Number(n) if n.as_f64().is_some_and(|t| (0.0..=2.0).contains(&t)) => Some(n.clone()),
                    _ => None,
                })?,
                provider,
                base_url: batch.text("base_url")?,
                max_lines: batch.read("max_lines", "a whole number from 1", |value| {
                    value.as_u64().filter(|n| (1..=u64::from(u32::MAX)).contains(n))
                })?,
                max_bytes: batch.read("max_bytes", "bytes, or a size such as \"100MB\"", |value| match value {
                    Value::Number(n) => n.as_u64().filter(|n| *n > 0),
                    value => value.as_str().and_then(|text| parse_bytes(text).ok()),
                })?,
            },
            paths: Paths {
                data_dir: paths.text("data_dir")?.map(PathBuf::from),
                enhanced_output: paths.text("enhanced_output")?.map(PathBuf::from),
                work_dir: paths.text("work_dir")?.map(PathBuf::from),
            },
        })
    }
}

struct Section {
    here: String,
    name: String,
    map: Map<String, Value>,
}

impl Section {
    fn read<T>(&self, key: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            Error::input(format!("config {}: `{}.{key}` is {value}", self.here, self.name))
                .fix(format!("write {wanted}"))
        })
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        self.read(key, "a non-empty string", |value| {
            value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)
        })
    }
}
