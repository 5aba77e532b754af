//! Posts → request lines, as a filter or into chunk files.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Ended,
    cutting::{Noted, Watch, chunks, close},
    outputs,
    records::ChunkRecords,
    request_settings::RequestSettings,
};
use crate::{
    cli::GenArgs,
    console::Console,
    error::Result,
    flow::{
        faults::FaultLog,
        posts::{PostCounts, Posts},
        requests::RenderTally,
    },
    lines::output::Output,
    report,
    settings::Config,
    snapshots,
    workdir::claim::{claim, forget_empty},
};

pub fn run(args: &GenArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let settings =
        RequestSettings::resolve(&config, &args.source, &args.model, &args.rows, &args.limits, &args.input, console)?;
    let settings = Arc::new(settings);
    let path = posts_path(args, &config, console)?;
    outputs::check(
        None,
        [path.as_deref().unwrap_or(Path::new("-"))],
        args.output.as_deref(),
        &args.faults,
        args.work_dir.as_deref(),
    )?;
    let posts = settings.posts(path.as_deref(), None)?;
    let name = posts.name().to_owned();
    let log = FaultLog::create(args.faults.faults.as_deref())?;
    let noted = Noted::new(&settings, log, Some(Watch::new(&settings, console)));
    let (counts, tally, mut noted) = match &args.work_dir {
        None => filter(posts, &settings, args.output.as_deref(), noted)?,
        Some(dir) => cut(posts, &settings, (dir, args.new, args.moved), noted, console)?,
    };
    noted.log.commit()?;
    if let Some(path) = &args.faults.report {
        report::write_filter_report(path, &settings.set, &noted.tally)?;
    }
    noted.say(&tally, console);
    noted.log.show(console);
    counts.check(&name, console)?;
    Ok(Ended::judge(args.faults.max_faults, noted.log.total(), tally.requests + noted.log.total()))
}

/// A job without POSTS reads the file that `run` would read, if it is there; the filter reads stdin.
fn posts_path(args: &GenArgs, config: &Config, console: &Console) -> Result<Option<PathBuf>> {
    if args.posts.is_some() || args.work_dir.is_none() {
        return Ok(args.posts.clone());
    }
    let found = config.posts(args.source.data_dir.as_deref())?.map(|posts| posts.value).filter(|path| path.exists());
    if let Some(path) = &found {
        console.note(format_args!("posts: {} (`-` reads stdin)", path.display()));
    }
    Ok(found)
}

/// Writes the request lines to the output.
fn filter(
    mut posts: Posts,
    settings: &RequestSettings,
    output: Option<&Path>,
    mut noted: Noted,
) -> Result<(PostCounts, RenderTally, Noted)> {
    let mut output = HeldOutput { output: Output::create(output)?, held: Some(Vec::new()) };
    let mut requests = settings.requests()?;
    while let Some(place) = posts.next()? {
        noted.note(&place);
        if output.held.is_some() && !noted.is_in_doubt() {
            output.release()?;
        }
        for request in requests.of(&place.post) {
            match request {
                Ok(request) => {
                    noted.count(request.analysis);
                    request.write_to(output.room_for(request.bytes)?)?;
                }
                Err(fault) => noted.add(&fault)?,
            }
        }
    }
    if !posts.counts().are_all_bad() {
        noted.judge(&posts)?;
        output.release()?;
        output.output.commit()?;
    }
    Ok((posts.counts(), requests.tally, noted))
}

/// An output that holds rows back as long as it may turn out that no post has what they ask about: then none is written. Rows
/// that grow too large are let go, since a filter streams.
struct HeldOutput {
    output: Output,
    /// `None`: rows are written as they come.
    held: Option<Vec<u8>>,
}

const HELD_BYTES: u64 = 1 << 20;

impl HeldOutput {
    fn room_for(&mut self, bytes: u64) -> Result<&mut dyn Write> {
        if self.held.as_ref().is_some_and(|held| held.len() as u64 + bytes > HELD_BYTES) {
            self.release()?;
        }
        Ok(match &mut self.held {
            Some(held) => held,
            None => &mut self.output,
        })
    }

    fn release(&mut self) -> Result<()> {
        self.held.take().map_or(Ok(()), |held| self.output.put(&held))
    }
}

/// Writes the request lines into the chunk files of a work directory, and prints a record of each chunk.
fn cut(
    posts: Posts,
    settings: &Arc<RequestSettings>,
    (dir, new, moved): (&Path, bool, bool),
    noted: Noted,
    console: &Console,
) -> Result<(PostCounts, RenderTally, Noted)> {
    let (work, journal) = claim(dir, (new, moved), settings.record(false), false, console)?;
    let mut records = ChunkRecords::create()?;
    let mut chunks = chunks(posts, noted, settings, &work, &journal)?;
    let cut = records.print_all(&mut chunks);
    let (counts, tally, noted) = close(chunks);
    // Chunks of another input than was meant must not be paid for by a later `submit`.
    if noted.is_another && !journal.resumed {
        work.forget(false)?;
    }
    cut?;
    if !forget_empty(&work, &journal, console)? {
        journal.read(|state| snapshots::write_files_info(&work, state, console))??;
    }
    Ok((counts, tally, noted))
}
