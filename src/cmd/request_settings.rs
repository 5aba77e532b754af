//! The settings that decide the requests: which posts are read, what each is asked, and how large a chunk may be.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    analysis::AnalysisSet,
    cli::{ImageUrls, InputArgs, LimitArgs, ModelArgs, OnBadPost, RowArgs, SourceArgs},
    console::Console,
    error::{Error, Result},
    flow::{
        FaultKind, FaultLine,
        chunks::Limits,
        posts::Posts,
        requests::{Requests, Rows, Skip, read_skip},
    },
    journal,
    provider::Dialect,
    settings::{Config, Models, Origin, PROVIDER},
};

/// All that decides the requests of a job's posts.
#[derive(Debug)]
pub struct RequestSettings {
    pub set: Arc<AnalysisSet>,
    pub models: Models,
    pub dialect: &'static Dialect,
    pub limits: Limits,
    /// What to say if a chunk ends at the provider's cap on bytes.
    pub cap: Option<String>,
    rows: Arc<Rows>,
    data_dir: Option<PathBuf>,
    on_bad_post: OnBadPost,
    /// `--expect-posts`.
    pub expected: Option<u64>,
    input: InputArgs,
}

impl RequestSettings {
    pub fn resolve(
        config: &Config,
        source: &SourceArgs,
        model: &ModelArgs,
        rows: &RowArgs,
        limits: &LimitArgs,
        input: &InputArgs,
        console: &Console,
    ) -> Result<Self> {
        let set = config.analyses(source)?;
        for note in set.notes.iter().chain(&set.prompt_notes) {
            console.note(note);
        }
        let models = config.models(model)?;
        let dialect = Dialect::find(&models.provider.value)?;
        if models.model.origin == Origin::Default && dialect.name != PROVIDER {
            return Err(Error::usage(format!("no model of {} is named", dialect.name))
                .fix("name one with --model, or as `batch.model` in the config"));
        }
        note_unlisted(&models, dialect, console);
        Ok(Self {
            limits: resolve_limits(config, limits, dialect),
            cap: cap_note(config, limits, dialect),
            rows: Arc::new(Rows {
                missing: rows.missing,
                skip: read_skip(&rows.skip, &set)?,
                image_urls: rows.image_urls,
            }),
            data_dir: config.data_dir(source.data_dir.as_deref())?.map(|dir| dir.value),
            on_bad_post: rows.on_bad_post,
            expected: rows.expect_posts,
            input: input.clone(),
            set: Arc::new(set),
            models,
            dialect,
        })
    }

    /// `name`: the posts' name in messages, if `path` is a copy of them.
    pub fn posts(&self, path: Option<&Path>, name: Option<&str>) -> Result<Posts> {
        Posts::open(path, name, Arc::clone(&self.set), self.input.max_line, self.input.start_index)
    }

    pub fn requests(&self) -> Result<Requests> {
        let (set, rows, data_dir) = (Arc::clone(&self.set), Arc::clone(&self.rows), self.data_dir.as_deref());
        Requests::new(set, self.models.of_requests(), self.dialect.line_url, data_dir, rows, self.limits.bytes)
    }

    /// # Errors
    /// `fault` is a bad post, and `--on-bad-post stop` is given.
    pub fn stop_at(&self, fault: &FaultLine) -> Result<()> {
        if self.on_bad_post == OnBadPost::Stop && fault.kind == FaultKind::BadPost {
            return Err(Error::input(fault.describe())
                .fix("mend the post, or leave --on-bad-post stop out to pass over such posts"));
        }
        Ok(())
    }

    pub fn record(&self, emulate: bool) -> journal::Config {
        let Skip { rows, images } = &self.rows.skip;
        let skip = (!rows.is_empty() || !images.is_empty()).then(|| {
            let mut hasher = blake3::Hasher::new();
            let mut add = |list: &[(u64, usize)]| {
                for (index, at) in list {
                    hasher.update(&index.to_le_bytes()).update(&(*at as u64).to_le_bytes());
                }
            };
            add(rows);
            if !images.is_empty() {
                // Between the lists stands what no row has as its index.
                add(&[(u64::MAX, 0)]);
                add(images);
            }
            hasher.finalize().to_hex().to_string()
        });
        journal::Config {
            input: "posts".to_owned(),
            analyses: self.set.fingerprints(),
            temperature: self.models.temperature.value.to_string(),
            start_index: self.input.start_index,
            missing: self.rows.missing,
            skip,
            image_urls: self.rows.image_urls,
            ..record_models(&self.models, self.limits, emulate)
        }
    }
}

fn note_unlisted(models: &Models, dialect: &Dialect, console: &Console) {
    for model in [&models.model.value, &models.multimodal_model.value] {
        if !dialect.lists_model(model) {
            console.note(format_args!(
                "{model} is not on the list of batch models of {} that we know; the upload will tell",
                dialect.name
            ));
        }
    }
}

/// The limits of a chunk: `--max-lines` and `--max-bytes`, but never more than the provider takes.
pub fn resolve_limits(config: &Config, flags: &LimitArgs, dialect: &Dialect) -> Limits {
    Limits {
        lines: config.max_lines(flags.max_lines).value.min(dialect.max_lines),
        bytes: config.max_bytes(flags.max_bytes).value.min(dialect.max_bytes),
    }
}

/// What to say if a chunk ends at the provider's cap on bytes, and would not have ended at the limit asked for.
pub fn cap_note(config: &Config, flags: &LimitArgs, dialect: &Dialect) -> Option<String> {
    let asked = config.max_bytes(flags.max_bytes);
    (asked.value > dialect.max_bytes).then(|| {
        format!(
            "chunk files end at {} bytes, the most that {} takes, and not at {} ({})",
            dialect.max_bytes, dialect.name, asked.value, asked.origin
        )
    })
}

/// The part of a directory's configuration that every verb which cuts has.
pub fn record_models(models: &Models, limits: Limits, emulate: bool) -> journal::Config {
    journal::Config {
        input: "requests".to_owned(),
        analyses: Vec::new(),
        model: models.model.value.clone(),
        multimodal_model: models.multimodal_model.value.clone(),
        temperature: String::new(),
        provider: models.provider.value.clone(),
        emulate,
        max_lines: limits.lines,
        max_bytes: limits.bytes,
        start_index: 0,
        missing: false,
        skip: None,
        image_urls: ImageUrls::All,
        upstream: None,
    }
}
