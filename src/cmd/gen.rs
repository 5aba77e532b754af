//! Posts → request lines, as a filter or into chunk files.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{
    Ended, outputs,
    setup::{ChunkRecords, Rendering, Step, claim, forget_empty},
};
use crate::{
    cli::GenArgs,
    console::Console,
    error::Result,
    flow::{
        chunks::{Chunk, Group, write_behind},
        faults::FaultLog,
        posts::{PostCounts, PostReader},
        requests::RenderTally,
        tally::Tally,
    },
    journal::{Event, Journal, locked},
    lines::output::Output,
    report,
    settings::Config,
    snapshots,
    workdir::WorkDir,
};

pub fn run(args: &GenArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let rendering =
        Rendering::resolve(&config, &args.source, &args.model, &args.rows, &args.limits, &args.input, console)?;
    let posts = posts(args, &config, console)?;
    outputs::check(posts.as_deref(), args.output.as_deref(), &args.faults)?;
    let mut seen = Seen::new(&rendering, FaultLog::create(args.faults.faults.as_deref())?);
    let posts = rendering.posts(posts.as_deref())?;
    let name = posts.name().to_owned();
    let (counts, tally) = match &args.work_dir {
        None => filter(posts, &rendering, args.output.as_deref(), &mut seen)?,
        Some(dir) => {
            let (work, journal) = claim(dir, args.new, rendering.record(false), false, console)?;
            let journal = Mutex::new(journal);
            let mut records = ChunkRecords::create()?;
            let done = cut(posts, &rendering, &work, &journal, &mut seen, &mut |chunk: Chunk| records.print(&chunk))?;
            if !forget_empty(&work, &journal, console)? {
                snapshots::write_files_info(&work, &locked(&journal)?.state, console)?;
            }
            done
        }
    };
    seen.log.commit()?;
    if let Some(path) = &args.faults.report {
        report::write_filter_report(path, &rendering.set, &seen.tally)?;
    }
    seen.tell(&tally, console);
    console.show_faults(&seen.log);
    counts.check(&name)?;
    Ok(Ended::judge(args.faults.max_faults, seen.log.total(), tally.requests + seen.log.total()))
}

/// A job without POSTS reads the file that `run` would read, if it is there; the filter reads stdin.
fn posts(args: &GenArgs, config: &Config, console: &Console) -> Result<Option<PathBuf>> {
    if args.posts.is_some() || args.work_dir.is_none() {
        return Ok(args.posts.clone());
    }
    let found = config.posts(args.source.data_dir.as_deref())?.map(|posts| posts.value).filter(|path| path.exists());
    if let Some(path) = &found {
        console.note(format_args!("posts: {} (`-` reads stdin)", path.display()));
    }
    Ok(found)
}

/// Faults on their way to the log and the report.
#[derive(Debug)]
pub struct Seen<'s> {
    rendering: &'s Rendering,
    pub log: FaultLog,
    pub tally: Tally,
    /// A chunk ended since the next line's bytes did not fit.
    bytes_bind: bool,
}

impl<'s> Seen<'s> {
    pub fn new(rendering: &'s Rendering, log: FaultLog) -> Self {
        Self { rendering, log, tally: Tally::new(rendering.set.list.len()), bytes_bind: false }
    }

    /// What was changed or left out without being a fault.
    pub fn tell(&self, tally: &RenderTally, console: &Console) {
        for (count, noun, rest) in [
            (tally.images_dropped, "image", "left out: a request holds at most 5"),
            (tally.urls_withheld, "image URL", "left out by --image-urls"),
            (tally.surrogates, "lone surrogate", "became U+FFFD"),
            (tally.skipped, "row", "left out by --skip"),
            (tally.without_images, "row", "asked without images, which the provider refused (--skip)"),
        ] {
            if count > 0 {
                console.note(format_args!("{count} {noun}{} {rest}", if count == 1 { "" } else { "s" }));
            }
        }
        if let Some(cap) = self.rendering.cap.as_ref().filter(|_| self.bytes_bind) {
            console.note(cap);
        }
    }

    fn add(&mut self, fault: &crate::flow::FaultLine) -> Result<()> {
        let analysis = fault.analysis.as_deref().and_then(|name| self.rendering.set.find(name));
        self.tally.add_fault(analysis, fault);
        self.log.add(fault)
    }

    fn count(&mut self, analysis: usize) {
        if let Some(tally) = self.tally.analyses.get_mut(analysis) {
            tally.rows += 1;
        }
    }
}

fn filter(
    posts: PostReader<'_>,
    rendering: &Rendering,
    output: Option<&Path>,
    seen: &mut Seen<'_>,
) -> Result<(PostCounts, RenderTally)> {
    let mut output = Output::create(output)?;
    let mut renderer = rendering.renderer()?;
    let counts = rendering.render(posts, &mut renderer, |step| match step {
        Step::Place(_) => Ok(()),
        Step::Request(request) => {
            seen.count(request.analysis);
            request.write_to(&mut output)
        }
        Step::Fault(fault) => seen.add(&fault),
    })?;
    if !counts.are_all_bad() {
        output.commit()?;
    }
    Ok((counts, renderer.tally))
}

/// Renders into chunk files. Each is in the journal before `yield_chunk` gets it; chunks that the journal holds
/// already are neither written nor yielded again, but their part of the input is compared.
pub fn cut(
    posts: PostReader<'_>,
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Mutex<Journal>,
    seen: &mut Seen<'_>,
    yield_chunk: &mut (dyn FnMut(Chunk) -> Result<()> + Send),
) -> Result<(PostCounts, RenderTally)> {
    let mut cutter = locked(journal)?.state.cutter(work.path(), rendering.limits);
    let (text, vision) = (&rendering.models.model.value, &rendering.models.multimodal_model.value);
    let groups: Vec<[Group; 2]> = rendering
        .set
        .list
        .iter()
        .map(|analysis| [cutter.group(&analysis.name, false, text), cutter.group(&analysis.name, true, vision)])
        .collect();
    let record = |chunk: Chunk, input| {
        locked(journal)?.append(&Event::Chunk { chunk: chunk.clone(), input })?;
        yield_chunk(chunk)
    };
    let mut renderer = rendering.renderer()?;
    let (counts, input) = write_behind(work.path(), record, |writer| {
        let counts = rendering.render(posts, &mut renderer, |step| match step {
            Step::Place(place) => cutter.read_place(place.bytes),
            Step::Request(request) => {
                seen.count(request.analysis);
                let Some(group) = groups.get(request.analysis).and_then(|pair| pair.get(usize::from(request.vision)))
                else {
                    return Ok(());
                };
                let write = |out: &mut dyn std::io::Write| request.write_to(out);
                cutter.push(*group, request.index.0, request.bytes, write, writer).map(|_| ())
            }
            Step::Fault(fault) => seen.add(&fault),
        })?;
        Ok((counts, cutter.finish(writer)?))
    })?;
    seen.bytes_bind = cutter.bytes_bind();
    let mut journal = locked(journal)?;
    // The wrong input must not keep the right one out.
    if journal.state.posts.is_none() && !counts.are_all_bad() {
        journal.append(&Event::Posts { good: counts.posts, input })?;
    }
    Ok((counts, renderer.tally))
}
