//! What several verbs need before they begin: how posts become requests, and the work directory they work in.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    analysis::AnalysisSet,
    cli::{ImageUrls, InputArgs, LimitArgs, ModelArgs, OnBadPost, RowArgs, SourceArgs},
    console::Console,
    error::{Error, Kind, Result},
    flow::{
        FaultKind, FaultLine,
        chunks::{Chunk, Cutter, Kept, Limits, request_file, rows_file},
        posts::{Place, PostCounts, PostReader},
        requests::{Rendered, Renderer, Rows, Skip, read_skip},
    },
    folder::Folder,
    journal::{self, Event, Job, Journal, State},
    lines::output::Output,
    provider::{Dialect, FileId},
    settings::{Config, Models, Origin, PROVIDER},
    shell,
    units::count,
    workdir::{ALL_RESULTS, WorkDir, settle_place},
};

/// All that decides the requests of a post.
#[derive(Debug)]
pub struct Rendering {
    pub set: Arc<AnalysisSet>,
    pub models: Models,
    pub dialect: &'static Dialect,
    pub limits: Limits,
    /// What to say if a chunk ends at the provider's cap on bytes.
    pub cap: Option<String>,
    rows: Rows,
    data_dir: Option<PathBuf>,
    on_bad_post: OnBadPost,
    /// `--expect-posts`.
    pub expected: Option<u64>,
    input: InputArgs,
}

impl Rendering {
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
        for model in [&models.model.value, &models.multimodal_model.value] {
            if !dialect.lists_model(model) {
                console.note(format_args!(
                    "{model} is not on the list of batch models of {} that we know; the upload will tell",
                    dialect.name
                ));
            }
        }
        Ok(Self {
            limits: resolve_limits(config, limits, dialect),
            cap: cap_note(config, limits, dialect),
            rows: Rows { missing: rows.missing, skip: read_skip(&rows.skip, &set)?, image_urls: rows.image_urls },
            data_dir: config.data_dir(source.data_dir.as_deref())?.map(|dir| dir.value),
            on_bad_post: rows.on_bad_post,
            expected: rows.expect_posts,
            input: input.clone(),
            set: Arc::new(set),
            models,
            dialect,
        })
    }

    /// `name`: what messages call the posts, if the file is a copy.
    pub fn posts(&self, path: Option<&Path>, name: Option<&str>) -> Result<PostReader<'_>> {
        PostReader::open(path, name, &self.set.fields, self.input.max_line, self.input.start_index)
    }

    pub fn renderer(&self) -> Result<Renderer<'_>> {
        let data_dir = self.data_dir.as_deref();
        Renderer::new(
            &self.set,
            self.models.of_requests(),
            self.dialect.line_url,
            data_dir,
            &self.rows,
            self.limits.bytes,
        )
    }

    /// Reads every post and renders it: for each place of the input first the place, then what comes of it.
    pub fn render(
        &self,
        posts: PostReader<'_>,
        renderer: &mut Renderer<'_>,
        mut each: impl FnMut(Step<'_>) -> Result<()>,
    ) -> Result<PostCounts> {
        posts.for_each(|place| {
            each(Step::Place(&place))?;
            match &place.post {
                Ok(post) => renderer.render(post, &mut |rendered| match rendered {
                    Rendered::Request(request) => each(Step::Request(request)),
                    Rendered::Fault(fault) => {
                        self.bear(&fault)?;
                        each(Step::Fault(fault))
                    }
                }),
                Err(fault) => {
                    self.bear(fault)?;
                    each(Step::Fault(fault.clone()))
                }
            }
        })
    }

    /// Under `--on-bad-post stop` a bad post ends the verb.
    fn bear(&self, fault: &FaultLine) -> Result<()> {
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

/// What comes of reading and rendering, in order.
#[derive(Debug)]
pub enum Step<'a> {
    Place(&'a Place<'a>),
    Request(&'a crate::flow::requests::Request<'a>),
    Fault(FaultLine),
}

/// The smaller of what was asked for and what the provider takes.
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

/// Chunk records on stdout. They only tell of the job, which goes on when nobody reads them any more.
#[derive(Debug)]
pub struct ChunkRecords(Option<Output>);

impl ChunkRecords {
    pub fn create() -> Result<Self> {
        Output::create(None).map(|stdout| Self(Some(stdout)))
    }

    pub fn print(&mut self, chunk: &Chunk) -> Result<()> {
        let Some(stdout) = &mut self.0 else { return Ok(()) };
        let mut line = serde_json::to_vec(chunk).unwrap_or_default();
        line.push(b'\n');
        match stdout.put(&line).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == Kind::ClosedPipe => {
                self.0 = None;
                Ok(())
            }
            done => done,
        }
    }
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

/// Opens the work directory that belongs to this configuration, or makes it.
///
/// # Errors
/// [`crate::error::Kind::Input`] naming the difference if it belongs to another one.
pub fn claim(
    dir: &Path,
    (new, moved): (bool, bool),
    record: journal::Config,
    spooled: bool,
    console: &Console,
) -> Result<(WorkDir, Journal)> {
    let mut work = WorkDir::create(dir)?;
    let mut journal = open_journal(&mut work, console)?;
    // Files of chunks are written after the journal's first line: without it nobody knows what was paid for.
    let lost_journal = !journal.resumed && work.has_chunks()?;
    if lost_journal && !new {
        return Err(Error::input(format!(
            "the journal of {} is gone or empty, and chunks were cut there",
            dir.display()
        ))
        .fix("put journal.jsonl back: without it all would be paid for again; --new does begin again"));
    }
    let was_cleaned = !journal.resumed && work.file(ALL_RESULTS).exists()?;
    if was_cleaned && !new {
        let results = shell::path(work.join(ALL_RESULTS));
        return Err(Error::input(format!("{} was cleaned: of its job only the results are left", dir.display())).fix(format!(
            "zbatch parse {results} | zbatch merge POSTS - gives its output again; --new begins again and pays again"
        )));
    }
    if new && (journal.resumed || lost_journal || was_cleaned || work.spool().exists()?) {
        journal.read(|state| check_stake(state, dir, console))??;
        drop(journal);
        work = work.renew()?;
        journal = work.journal()?;
    }
    settle_place(&work, &journal, moved)?;
    // An empty input made no job.
    if journal.read(|state| state.is_empty() && state.config.is_some())? {
        drop(journal);
        work.forget(false)?;
        journal = work.journal()?;
    }
    if let Some(was_cut) = journal.read(|state| unpaid_of_other_settings(state, &record, dir, console))? {
        drop(journal);
        work.forget(was_cut)?;
        journal = work.journal()?;
    }
    if journal.read(|state| state.config.is_none())? {
        journal.append(&journal::start(run_id(), spooled, record))?;
        settle_place(&work, &journal, moved)?;
    } else {
        journal.read(|state| go_on(&work, state, &record, console))??;
    }
    Ok((work, journal))
}

/// Whether the directory is of other settings and nothing was paid for: a first try that was refused does not tie it to its
/// flags. `Some`: whether it holds chunks.
fn unpaid_of_other_settings(state: &State, record: &journal::Config, dir: &Path, console: &Console) -> Option<bool> {
    let there = state.config.as_ref().filter(|there| there.input == record.input)?;
    let difference = there.difference(record)?;
    if state.spent().0 > 0 || state.repaired {
        return None;
    }
    say_what_is_left(state, dir, &difference, console);
    Some(!state.jobs.is_empty())
}

/// Goes on with a directory that holds a job.
fn go_on(work: &WorkDir, state: &State, record: &journal::Config, console: &Console) -> Result<()> {
    let dir = work.path().display();
    if let Some(difference) = state.config.as_ref().and_then(|there| there.difference(record)) {
        let (_, rows) = state.at_stake();
        return Err(Error::input(format!("{dir} belongs to another job: {difference}")).fix(format!(
            "use another directory (-d); with --missing and the output so far as its input, finished rows are not \
             asked again. --new begins again (the old contents are kept in DIR.old-N) and would pay for {} again",
            count(rows, "fetched row")
        )));
    }
    recover_rows(work, state, console)?;
    let chunks = state.jobs.len();
    if chunks > 0 {
        console.note(format_args!("{dir} holds {} already", count(chunks, "chunk")));
    }
    Ok(())
}

/// What `--new` leaves behind may run on, and is paid for again.
fn check_stake(state: &State, dir: &Path, console: &Console) -> Result<()> {
    let is_invented = state.config.as_ref().is_some_and(|config| config.emulate && config.upstream.is_none());
    let (batches, rows) = state.at_stake();
    if is_invented || batches == 0 && rows == 0 {
        return Ok(());
    }
    let (here, rows) = (dir.display(), count(rows, "fetched row"));
    if batches == 0 {
        console.note(format_args!("--new: {rows} of {here} will be paid for again, if these are the same posts"));
        return Ok(());
    }
    let word = shell::path(dir);
    let what = format!("{here}: {} would run on, and {rows} would be paid for again", count(batches, "batch"));
    Err(Error::new(Kind::TryAgain, format!("--new is refused. {what}")).fix(format!(
        "go on with the same command without --new; or end the batches (zbatch cancel -d {word}, then zbatch fetch -d {word}) and \
         give --new again; or leave them all the same: mv {word} {word}.left"
    )))
}

/// Whether `zbatch cancel` holds for this job; `resume` ends that.
pub fn stays_cancelled(journal: &Journal, resume: bool, dir: &Path, console: &Console) -> Result<bool> {
    if resume && journal.read(|state| state.cancelled)? {
        journal.append(&Event::Resumed {})?;
    }
    let stays = journal.read(State::stays_cancelled)?;
    if stays {
        console.always(format_args!(
            "{}: the job was cancelled: no batch is created until --resume is given; what was finished is fetched",
            dir.display()
        ));
    }
    Ok(stays)
}

/// Before chunks are cut anew with other settings.
fn say_what_is_left(state: &State, dir: &Path, difference: &str, console: &Console) {
    if !state.jobs.is_empty() {
        console.note(format_args!(
            "{}: {difference}; no batch was created yet, so {} cut anew",
            dir.display(),
            if state.jobs.len() == 1 { "its chunk is" } else { "its chunks are" }
        ));
    }
    let uploaded: Vec<&str> = state.jobs.iter().filter_map(|job| job.file().map(FileId::as_str)).collect();
    if !uploaded.is_empty() {
        console.note(format_args!("files that were uploaded stay at the provider: {}", uploaded.join(", ")));
    }
}

/// An empty input makes no job: afterwards its directory is no work directory. Whether that is so.
pub fn forget_empty(work: &WorkDir, journal: &Journal, console: &Console) -> Result<bool> {
    let is_empty = journal.read(State::is_empty)?;
    if is_empty {
        console.note(format_args!("the input is empty: there is no job in {}", work.path().display()));
        work.forget(false)?;
    }
    Ok(is_empty)
}

pub fn open_journal(work: &mut WorkDir, console: &Console) -> Result<Journal> {
    let journal = work.journal()?;
    if journal.torn > 0 {
        console
            .note(format_args!("the journal's last line was torn by a crash; its {} bytes are dropped", journal.torn));
    }
    Ok(journal)
}

/// Whether the files of a chunk are there, as far as they are needed: the requests until there is a batch.
fn kept(job: &Job, dir: &Folder) -> Result<Kept> {
    let requests = job.step() < journal::Step::Created && !request_file(dir, &job.chunk.id).exists()?;
    let is_gone = requests || !rows_file(dir, &job.chunk.id).exists()?;
    Ok(if is_gone { Kept::Gone { requests } } else { Kept::Whole })
}

/// A [`Cutter`] that goes on after the chunks of the journal.
pub fn cutter(journal: &Journal, dir: &Folder, limits: Limits) -> Result<Cutter> {
    journal.read(|state| {
        let mut cut = Vec::with_capacity(state.jobs.len());
        for job in &state.jobs {
            cut.push((&job.chunk, &job.input, kept(job, dir)?));
        }
        Ok(Cutter::new(dir.clone(), limits, cut, state.posts.as_ref().map(|(_, mark)| mark)))
    })?
}

/// Writes the rows of chunks again whose files are gone, as far as the directory itself tells them.
pub fn recover_rows(work: &WorkDir, state: &State, console: &Console) -> Result<()> {
    let mut made: u64 = 0;
    for Job { chunk, .. } in &state.jobs {
        let file = work.rows(&chunk.id);
        if !file.exists()?
            && let Some(rows) = chunk.recover_rows(&work.request(&chunk.id))?
        {
            file.write(rows.to_text().as_bytes())?;
            made += 1;
        }
    }
    if made > 0 {
        console.note(format_args!("the rows of {} were gone; they are written again", count(made, "chunk")));
    }
    Ok(())
}

/// Notes that the cutter wrote request files again.
pub fn say_remade(chunks: u64, console: &Console) {
    if chunks > 0 {
        console.note(format_args!("files of {} were gone; they are made again from the input", count(chunks, "chunk")));
    }
}

/// Tells apart the batches of different directories in one account.
pub fn run_id() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = format!("{} {}", now.as_nanos(), std::process::id());
    blake3::hash(seed.as_bytes()).to_hex().chars().take(16).collect()
}
