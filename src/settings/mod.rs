//! What is in force: flags over environment over config file over defaults, checked once, at start.
//! Every value remembers where it came from, for `zbatch config` and for messages.

mod file;
mod found;

use std::{
    fmt,
    num::NonZeroU32,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use crate::{
    analysis::{AnalysisSet, Sources},
    cli::{ModelArgs, ProviderArgs, SourceArgs},
    console::{Console, works_in},
    error::{Error, Kind, Result},
    flow::requests::RequestModels,
    provider::Dialect,
};

const MODEL: &str = "glm-4-air";
const MULTIMODAL_MODEL: &str = "glm-4v-plus";
/// The provider whose models are the default ones.
pub const PROVIDER: &str = "zhipu";
const TEMPERATURE: f64 = 0.7;
const MAX_CONCURRENT_TASKS: NonZeroU32 = NonZeroU32::new(3).expect("3 is not 0");
const POLL_INTERVAL: Duration = Duration::from_secs(60);
const MAX_LINES: u64 = 10_000;
const MAX_BYTES: u64 = 500_000_000;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag(&'static str),
    Environment(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Environment(variable) => write!(f, "${variable}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced<T> {
    pub value: T,
    pub origin: Origin,
}

/// The config file in force, if there is one, and the rules that put flags and environment above it.
#[derive(Debug, Default)]
pub struct Config {
    /// The file that was found.
    path: Option<PathBuf>,
    file: file::ConfigFile,
}

/// Whom to ask, and under which models.
#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    pub model: Sourced<String>,
    pub multimodal_model: Sourced<String>,
    pub provider: Sourced<String>,
    /// `None`: the provider's own.
    pub base_url: Option<Sourced<String>>,
    pub temperature: Sourced<serde_json::Number>,
}

impl Models {
    pub fn of_requests(&self) -> RequestModels<'_> {
        let Self { model, multimodal_model, temperature, .. } = self;
        RequestModels { text: &model.value, vision: &multimodal_model.value, temperature: &temperature.value }
    }
}

impl Config {
    /// The first of `--config`, `$ZBATCH_CONFIG`, `./batch/config.json`, `./config.json`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] for a named file that is missing, for one that is wrong, and for one that was found and
    /// may not do what it says.
    pub fn load(flag: Option<&Path>, console: &Console) -> Result<Self> {
        let found = Self::find(flag)?;
        let file = found.as_ref().map(|(path, _)| file::ConfigFile::read(path)).transpose()?.unwrap_or_default();
        if let Some((path, false)) = &found {
            found::check(path, &file)?;
        }
        let config = Self { file, path: found.map(|(path, _)| path) };
        works_in(Some(&config.work_dir(None).value));
        config.file.notes.iter().for_each(|note| console.note(note));
        Ok(config)
    }

    /// The file, and whether the user named it.
    fn find(flag: Option<&Path>) -> Result<Option<(PathBuf, bool)>> {
        let variable = std::env::var_os("ZBATCH_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = flag.map(Path::to_owned).or(variable) {
            return Ok(Some((path, true)));
        }
        for path in ["batch/config.json", "config.json"].map(PathBuf::from) {
            if path.is_file() && (path.starts_with("batch") || file::looks_like_ours(&path)?) {
                return Ok(Some((path, false)));
            }
        }
        Ok(None)
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub fn models(&self, flags: &ModelArgs) -> Result<Models> {
        let batch = &self.file.batch;
        let temperature = match &batch.temperature {
            Some(temperature) => self.in_file(temperature.clone()),
            None => default(serde_json::Number::from_f64(TEMPERATURE).unwrap_or_else(|| 0.into())),
        };
        let (provider, base_url) = self.provider(&flags.provider)?;
        for (flag, model) in [("--model", &flags.model), ("--multimodal-model", &flags.multimodal_model)] {
            if model.as_ref().is_some_and(|model| model.trim().is_empty()) {
                return Err(
                    Error::usage(format!("{flag} is empty")).fix("name a model, or leave it out for the default")
                );
            }
        }
        let model = self.text("--model", flags.model.as_ref(), batch.model.as_ref(), MODEL);
        let mut multimodal_model = self.text(
            "--multimodal-model",
            flags.multimodal_model.as_ref(),
            batch.multimodal_model.as_ref(),
            MULTIMODAL_MODEL,
        );
        // Both defaults are Zhipu's: elsewhere the one model that was named looks at images too.
        if provider.value != PROVIDER && multimodal_model.origin == Origin::Default {
            multimodal_model = model.clone();
        }
        Ok(Models { model, multimodal_model, provider, base_url, temperature })
    }

    /// The provider's name and, if it is not the provider's own, the base URL.
    pub fn provider(&self, flags: &ProviderArgs) -> Result<(Sourced<String>, Option<Sourced<String>>)> {
        let batch = &self.file.batch;
        let provider = self.text("--provider", flags.provider.as_ref(), batch.provider.as_ref(), PROVIDER);
        let variable = || {
            let name = Dialect::find(&provider.value).ok()?.base_url_variable?;
            let url = std::env::var(name).ok().filter(|url| !url.is_empty())?;
            Some(Sourced { value: url, origin: Origin::Environment(name) })
        };
        let base_url = match (&flags.base_url, &batch.base_url) {
            (Some(url), _) => Some(Sourced { value: url.clone(), origin: Origin::Flag("--base-url") }),
            (None, filed) => match (variable(), filed) {
                (Some(url), _) => Some(url),
                (None, Some(url)) => {
                    self.check_whose_url(url, &provider)?;
                    Some(self.in_file(url.clone()))
                }
                (None, None) => None,
            },
        };
        if base_url.as_ref().is_some_and(|url| url.value.trim().is_empty()) {
            return Err(Error::usage("the base URL is empty").fix("leave --base-url out for the provider's own"));
        }
        Ok((provider, base_url))
    }

    /// A base URL in the file is meant for the provider of the file: the key of another one does not go there.
    fn check_whose_url(&self, url: &str, provider: &Sourced<String>) -> Result<()> {
        let filed = self.file.batch.provider.as_deref().unwrap_or(PROVIDER);
        if provider.value == filed || Dialect::find(&provider.value).is_ok_and(|dialect| dialect.owns(url)) {
            return Ok(());
        }
        let what = format!(
            "the base URL in {} is for {filed}, and {} is {}: the key of {} would go there",
            self.in_file(()).origin,
            provider.origin,
            provider.value,
            provider.value
        );
        Err(Error::usage(what).fix("give the address with --base-url, or leave --provider out"))
    }

    pub fn work_dir(&self, flag: Option<&Path>) -> Sourced<PathBuf> {
        match (flag, &self.file.paths.work_dir, &self.path) {
            (Some(dir), ..) => Sourced { value: dir.to_owned(), origin: Origin::Flag("-d") },
            (None, Some(dir), _) => self.in_file(self.beside(dir)),
            (None, None, Some(_)) => self.in_file(self.beside(Path::new("temp"))),
            (None, None, None) => default(PathBuf::from("batch/temp")),
        }
    }

    /// `None`: there is none, the embedded files are used.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] for one that was named and is not a directory.
    pub fn data_dir(&self, flag: Option<&Path>) -> Result<Option<Sourced<PathBuf>>> {
        let named = match (flag, &self.file.paths.data_dir) {
            (Some(dir), _) => Sourced { value: dir.to_owned(), origin: Origin::Flag("--data-dir") },
            (None, Some(dir)) => self.in_file(self.beside(dir)),
            (None, None) => {
                let here = PathBuf::from("data");
                return Ok(here.is_dir().then(|| default(here)));
            }
        };
        if named.value.is_dir() {
            return Ok(Some(named));
        }
        Err(Error::input(format!("the data dir {} ({}) is not a directory", named.value.display(), named.origin))
            .fix("name an existing one with --data-dir"))
    }

    pub fn enhanced_output(&self) -> Sourced<PathBuf> {
        match &self.file.paths.enhanced_output {
            Some(path) => self.in_file(self.beside(path)),
            None => default(PathBuf::from("enhanced_blogs.json")),
        }
    }

    /// Posts, where none are named: what the config says, else `posts.json` in the data dir. `None`: there is no data dir.
    pub fn posts(&self, data_dir: Option<&Path>) -> Result<Option<Sourced<PathBuf>>> {
        if let Some(named) = self.file.paths.posts.as_ref().filter(|_| data_dir.is_none()) {
            return Ok(Some(self.in_file(self.in_data_dir(named)?)));
        }
        Ok(self.data_dir(data_dir)?.map(|dir| Sourced { value: dir.value.join("posts.json"), origin: dir.origin }))
    }

    /// How long is waited for batches; `None`: until they end.
    pub fn timeout(&self, flag: Option<Duration>) -> Option<Sourced<Duration>> {
        let filed = self.file.batch.timeout.map(|timeout| self.in_file(timeout));
        flag.map(|value| Sourced { value, origin: Origin::Flag("--timeout") }).or(filed)
    }

    pub fn keep_remote(&self, flag: bool) -> Sourced<bool> {
        self.pick("--keep-remote", flag.then_some(true), self.file.batch.keep_remote, false)
    }

    pub fn max_concurrent(&self, flag: Option<NonZeroU32>) -> Sourced<NonZeroU32> {
        self.pick("--max-concurrent-tasks", flag, self.file.batch.max_concurrent_tasks, MAX_CONCURRENT_TASKS)
    }

    pub fn poll_interval(&self, flag: Option<Duration>) -> Sourced<Duration> {
        self.pick("--poll-interval", flag, self.file.batch.poll_interval, POLL_INTERVAL)
    }

    pub fn max_lines(&self, flag: Option<NonZeroU32>) -> Sourced<u64> {
        self.pick("--max-lines", flag.map(|n| u64::from(n.get())), self.file.batch.max_lines, MAX_LINES)
    }

    pub fn max_bytes(&self, flag: Option<u64>) -> Sourced<u64> {
        self.pick("--max-bytes", flag, self.file.batch.max_bytes, MAX_BYTES)
    }

    /// The analyses in force; all verbs resolve the same set by this rule.
    pub fn analyses(&self, flags: &SourceArgs) -> Result<AnalysisSet> {
        let filed = flags.only.is_empty() && !self.file.only.is_empty();
        let labels = self.file.paths.labels.iter().filter(|_| flags.data_dir.is_none());
        let sources = Sources {
            data_dir: self.data_dir(flags.data_dir.as_deref())?.map(|dir| dir.value),
            analyses_dir: flags.analyses.clone(),
            only: if filed { self.file.only.clone() } else { flags.only.clone() },
            files: labels.map(|(name, path)| self.label_file(name, path)).collect::<Result<_>>()?,
        };
        AnalysisSet::load(&sources).map_err(|error| match (error.kind(), &self.path) {
            // The only usage that can be wrong is a name.
            (Kind::Usage, Some(path)) if filed => {
                Error::input(format!("config {}: `analysis_types`: {}", path.display(), error.line()))
            }
            _ => error,
        })
    }

    fn label_file(&self, name: &'static str, named: &Path) -> Result<(&'static str, PathBuf)> {
        let path = self.in_data_dir(named)?;
        let config = self.path.as_deref().unwrap_or(Path::new("config.json")).display();
        if !path.is_file() {
            return Err(Error::input(format!("config {config}: `files` names {}, which is not there", path.display()))
                .fix("mend the path, which is relative to the config file, or leave the key out"));
        }
        Ok((name, path))
    }

    /// A file that the config names: beside it, or in the data dir if it is there.
    fn in_data_dir(&self, named: &Path) -> Result<PathBuf> {
        let beside = self.beside(named);
        let within = self.data_dir(None)?.map(|dir| dir.value.join(named));
        Ok(within.filter(|within| !beside.exists() && within.exists()).unwrap_or(beside))
    }

    /// Paths in a config file are relative to it.
    fn beside(&self, path: &Path) -> PathBuf {
        let path = self.path.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).join(path);
        // `./` is only what people write: batch/./out.json is batch/out.json.
        path.components().filter(|part| *part != Component::CurDir).collect()
    }

    fn in_file<T>(&self, value: T) -> Sourced<T> {
        Sourced { value, origin: self.path.clone().map_or(Origin::Default, Origin::File) }
    }

    fn pick<T>(&self, flag: &'static str, typed: Option<T>, filed: Option<T>, otherwise: T) -> Sourced<T> {
        match (typed, filed) {
            (Some(value), _) => Sourced { value, origin: Origin::Flag(flag) },
            (None, Some(value)) => self.in_file(value),
            (None, None) => default(otherwise),
        }
    }

    fn text(
        &self,
        flag: &'static str,
        typed: Option<&String>,
        filed: Option<&String>,
        otherwise: &str,
    ) -> Sourced<String> {
        self.pick(flag, typed.cloned(), filed.cloned(), otherwise.to_owned())
    }
}

fn default<T>(value: T) -> Sourced<T> {
    Sourced { value, origin: Origin::Default }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_beat_the_file_which_beats_defaults() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        crate::lines::output::write_whole(
            &path,
            br#"{"batch":{"model":"m1","poll_interval":"2m"},"paths":{"work_dir":"w"}}"#,
        )
        .expect("written");
        let config = Config::load(Some(&path), &Console::silent()).expect("a config");
        let flags = ModelArgs { model: Some("m2".to_owned()), ..Default::default() };
        let models = config.models(&flags).expect("models");
        assert_eq!(models.model, Sourced { value: "m2".to_owned(), origin: Origin::Flag("--model") });
        assert_eq!(models.multimodal_model.origin, Origin::Default);
        assert_eq!(config.models(&ModelArgs::default()).expect("models").model.value, "m1");
        assert_eq!(config.work_dir(None).value, dir.path().join("w"));
        assert_eq!(config.poll_interval(None).value, Duration::from_secs(120));
    }
}
