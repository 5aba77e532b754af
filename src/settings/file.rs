//! The config file: `{"batch": {…}, "paths": {…}}`, and the `config.json` of the old scripts as it was published. A key
//! that we do not know is refused by name, since a misspelt limit that is silently ignored costs money; all that is wrong
//! is told at once.

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
    text::did_you_mean,
    units::{parse_bytes, parse_duration, parse_interval},
};

const LARGEST: u64 = 1 << 20;
const SHAPE: &str = r#"write one object, {"batch": {…}, "paths": {…}}; the README has an example"#;

const SECTIONS: [&str; 4] = ["batch", "paths", "api", "files"];
/// The keys that a config file of ours holds.
const KEYS: [&str; 13] = [
    "batch.model",
    "batch.multimodal_model",
    "batch.max_concurrent_tasks",
    "batch.poll_interval",
    "batch.temperature",
    "batch.provider",
    "batch.base_url",
    "batch.max_lines",
    "batch.max_bytes",
    "batch.keep_remote",
    "paths.data_dir",
    "paths.enhanced_output",
    "paths.work_dir",
];
/// Keys of the old scripts that mean something here too.
const OLD_KEYS: [&str; 11] = [
    "api.base_url",
    "api.api_key",
    "batch.max_file_size",
    "batch.max_requests_per_file",
    "batch.task_timeout",
    "paths.temp_dir",
    "files.blog_data",
    "files.topics",
    "files.sentiment_attributes",
    "files.publisher_objects",
    "files.enhanced_output",
];
/// Keys of the old scripts that nothing here depends on: calls are repeated by rules of their own, and state is elsewhere.
const IGNORED_KEYS: [&str; 8] = [
    "api.timeout",
    "batch.max_retries",
    "batch.retry_delay",
    "paths.batch_dir",
    "paths.results_dir",
    "paths.utils_dir",
    "files.workflow_status",
    "files.downloaded_results",
];
const OLD_LIST: &str = "analysis_types";

/// A bare `max_file_size` below this is megabytes: a file of so few bytes holds no request.
const FEWEST_BYTES: u64 = 10_000;
/// And from here on it is bytes: so many megabytes are a terabyte.
const MOST_MEGABYTES: u64 = 1_000_000;
/// A bare `task_timeout` between these is seconds; a shorter one may be minutes or hours, a longer one milliseconds.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 86_400;

#[derive(Debug, Default)]
pub struct ConfigFile {
    pub batch: Batch,
    pub paths: Paths,
    /// The analyses in force; empty: nothing is said of them.
    pub only: Vec<String>,
    /// What the user should know of it.
    pub notes: Vec<String>,
    /// Every text of it by its key, as written: [`super::found`] looks for paths and addresses among them.
    pub texts: Vec<(&'static str, String)>,
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
    pub keep_remote: Option<bool>,
    pub timeout: Option<Duration>,
}

/// As written, relative to the file.
#[derive(Debug, Default)]
pub struct Paths {
    pub data_dir: Option<PathBuf>,
    pub enhanced_output: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub posts: Option<PathBuf>,
    /// Reference files: the name that an analysis knows, and the path.
    pub labels: Vec<(&'static str, PathBuf)>,
}

/// A `config.json` in the current directory may belong to something else. One that is not JSON is ours if it names a section
/// of ours: [`ConfigFile::read`] then says what is wrong with it.
pub fn looks_like_ours(path: &Path) -> Result<bool> {
    let text = read_small(path, LARGEST)?;
    Ok(match serde_json::from_str::<Value>(&text) {
        Ok(value) => ["batch", "paths"].iter().any(|key| value.get(key).is_some_and(Value::is_object)),
        Err(_) => ["\"batch\"", "\"paths\""].iter().any(|key| text.contains(key)),
    })
}

impl ConfigFile {
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_small(path, LARGEST)?;
        let here = path.display().to_string();
        let top: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| Error::input(format!("config {here}: {e}")).fix(SHAPE))?;
        let mut keys = Keys::flatten(top);
        let batch = keys.batch();
        let paths = keys.paths();
        let only = keys.take(OLD_LIST, "an array of names", |value| {
            value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
        });
        let texts = std::mem::take(&mut keys.texts);
        let notes = keys.finish(&here)?;
        Ok(Self { batch, paths, only: only.unwrap_or_default(), notes, texts })
    }
}

/// The values of a file by `section.key`, taken out one by one, and what is wrong with them.
#[derive(Default)]
struct Keys {
    map: Map<String, Value>,
    /// What is wrong, and how to mend it.
    wrong: Vec<(String, String)>,
    /// What is taken in another form than it was written.
    taken: Vec<String>,
    texts: Vec<(&'static str, String)>,
}

impl Keys {
    fn flatten(top: Map<String, Value>) -> Self {
        let mut keys = Self::default();
        for (name, value) in top {
            match value {
                Value::Object(section) if SECTIONS.contains(&name.as_str()) => {
                    keys.map.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
                }
                _ if SECTIONS.contains(&name.as_str()) => {
                    keys.wrong.push((format!("`{name}` is not an object"), SHAPE.to_owned()));
                }
                value => drop(keys.map.insert(name, value)),
            }
        }
        // A key without a value says nothing.
        keys.map.retain(|_, value| !value.is_null());
        keys
    }

    fn take<T>(&mut self, key: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.map.remove(key)?;
        let taken = read(&value);
        if taken.is_none() {
            self.wrong.push((format!("`{key}` is {value}"), format!("write {wanted}")));
        }
        taken
    }

    fn text(&mut self, key: &'static str) -> Option<String> {
        let text = self.take(key, "a non-empty string", |value| {
            value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)
        })?;
        self.texts.push((key, text.clone()));
        Some(text)
    }

    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// The value of a key, or of the old one that means the same.
    fn either<T>(&mut self, key: &str, new: Option<T>, old_key: &str, old: Option<T>) -> Option<T> {
        if new.is_some() && old.is_some() {
            self.wrong.push((format!("`{key}` and `{old_key}` say the same"), format!("keep `{key}`")));
        }
        new.or(old)
    }

    fn batch(&mut self) -> Batch {
        const COUNT: &str = "a whole number from 1";
        let count = |value: &Value| value.as_u64().filter(|n| (1..=u64::from(u32::MAX)).contains(n));
        let provider = self.text("batch.provider");
        if let Some(Err(error)) = provider.as_deref().map(Dialect::find) {
            self.wrong.push((format!("`batch.provider`: {}", error.line()), "name one of these".to_owned()));
        }
        self.refuse_key();
        let base_url = (self.text("batch.base_url"), self.text("api.base_url"));
        let max_lines =
            (self.take("batch.max_lines", COUNT, count), self.take("batch.max_requests_per_file", COUNT, count));
        let max_bytes = self.take("batch.max_bytes", "bytes, or a size such as \"100MB\"", |value| match value {
            Value::Number(n) => n.as_u64().filter(|n| *n > 0),
            value => value.as_str().and_then(|text| parse_bytes(text).ok()),
        });
        let max_bytes = (max_bytes, self.old_size());
        Batch {
            model: self.text("batch.model"),
            multimodal_model: self.text("batch.multimodal_model"),
            max_concurrent_tasks: self.take("batch.max_concurrent_tasks", COUNT, |value| {
                count(value).and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new)
            }),
            poll_interval: self.take(
                "batch.poll_interval",
                "seconds, or a time such as \"60s\"",
                |value| match value {
                    Value::Number(n) => {
                        n.as_f64().and_then(|n| Duration::try_from_secs_f64(n).ok()).filter(|n| !n.is_zero())
                    }
                    value => value.as_str().and_then(|text| parse_interval(text).ok()),
                },
            ),
            temperature: self.take("batch.temperature", "a number from 0 to 2", |value| match value {
                Value::Number(n) if n.as_f64().is_some_and(|t| (0.0..=2.0).contains(&t)) => Some(n.clone()),
                _ => None,
            }),
            provider,
            base_url: self.either("batch.base_url", base_url.0, "api.base_url", base_url.1),
            max_lines: self.either("batch.max_lines", max_lines.0, "batch.max_requests_per_file", max_lines.1),
            max_bytes: self.either("batch.max_bytes", max_bytes.0, "batch.max_file_size", max_bytes.1),
            keep_remote: self.take("batch.keep_remote", "true or false", Value::as_bool),
            timeout: self.old_timeout(),
        }
    }

    fn paths(&mut self) -> Paths {
        let output = (self.path("paths.enhanced_output"), self.path("files.enhanced_output"));
        let work_dir = (self.path("paths.work_dir"), self.path("paths.temp_dir"));
        let labels = [
            ("topics.json", "files.topics"),
            ("sentiment_attributes.json", "files.sentiment_attributes"),
            ("publisher_objects.json", "files.publisher_objects"),
        ];
        Paths {
            data_dir: self.path("paths.data_dir"),
            enhanced_output: self.either("paths.enhanced_output", output.0, "files.enhanced_output", output.1),
            work_dir: self.either("paths.work_dir", work_dir.0, "paths.temp_dir", work_dir.1),
            posts: self.path("files.blog_data"),
            labels: labels.into_iter().filter_map(|(name, key)| Some((name, self.path(key)?))).collect(),
        }
    }

    /// A key to an account does not belong in a file that is passed around. It is not shown either.
    fn refuse_key(&mut self) {
        let is_set =
            self.map.remove("api.api_key").is_some_and(|key| key.as_str().is_none_or(|key| !key.trim().is_empty()));
        if is_set {
            let fix = "take it out of the file and set it with `export ZHIPUAI_API_KEY=…` (other providers: \
                       OPENAI_API_KEY, …), or put it into a file of its own for --key-file";
            self.wrong.push(("`api.api_key` holds a key".to_owned(), fix.to_owned()));
        }
    }

    /// `batch.max_file_size`. Its unit is not known: a bare number is taken only where one unit makes sense.
    fn old_size(&mut self) -> Option<u64> {
        let key = "batch.max_file_size";
        let bare = self.map.get(key).and_then(Value::as_u64).is_some_and(|n| n < FEWEST_BYTES);
        let bytes = self.take(key, "it with its unit, e.g. \"100MB\", as `batch.max_bytes`", |value| match value {
            Value::Number(n) => match n.as_u64()? {
                0 => None,
                n if n < FEWEST_BYTES => Some(n * 1_000_000),
                n if n >= MOST_MEGABYTES => Some(n),
                _ => None,
            },
            value => value.as_str().filter(|text| text.ends_with(['B', 'b'])).and_then(|text| parse_bytes(text).ok()),
        })?;
        self.taken.push(format!("{key} as {bytes} bytes{}", if bare { " (10^6 in a MB)" } else { "" }));
        Some(bytes)
    }

    /// `batch.task_timeout`, in seconds as `poll_interval` beside it.
    fn old_timeout(&mut self) -> Option<Duration> {
        let key = "batch.task_timeout";
        let time = self.take(key, "it with its unit, e.g. \"24h\"", |value| match value {
            Value::Number(n) => n.as_u64().filter(|n| TIMEOUT_SECONDS.contains(n)).map(Duration::from_secs),
            value => {
                value.as_str().filter(|text| text.parse::<f64>().is_err()).and_then(|text| parse_duration(text).ok())
            }
        })?;
        self.taken.push(format!("{key} as --timeout {}s", time.as_secs_f64()));
        Some(time)
    }

    /// The notes, or all that is wrong in one message.
    fn finish(mut self, here: &str) -> Result<Vec<String>> {
        let ignored: Vec<&str> = IGNORED_KEYS.into_iter().filter(|key| self.map.remove(*key).is_some()).collect();
        for key in self.map.keys() {
            let section = key.split_once('.').map_or(key.as_str(), |(section, _)| section);
            let all: Vec<&str> = [&KEYS[..], &OLD_KEYS, &["batch", "paths", OLD_LIST]].concat();
            let ours: Vec<&str> = KEYS.into_iter().filter(|key| key.starts_with(&format!("{section}."))).collect();
            let there_are = match ours.as_slice() {
                [] => "the file holds `batch` and `paths`".to_owned(),
                ours => format!("there are {}", ours.join(", ")),
            };
            self.wrong.push((format!("unknown key `{key}`"), format!("{}{there_are}", did_you_mean(key, &all))));
        }
        match self.wrong.as_slice() {
            [] => {}
            [(what, fix)] => return Err(Error::input(format!("config {here}: {what}")).fix(fix)),
            many => {
                let lines = many.iter().map(|(what, fix)| format!("{what}: {fix}")).collect();
                return Err(Error::input(format!("config {here}: {} things to mend", many.len())).lines(lines));
            }
        }
        let mut notes = Vec::new();
        if !self.taken.is_empty() {
            notes.push(format!("config {here}: taken: {}", self.taken.join(", ")));
        }
        if !ignored.is_empty() {
            notes.push(format!("config {here}: ignored, nothing here depends on them: {}", ignored.join(", ")));
        }
        Ok(notes)
    }
}
