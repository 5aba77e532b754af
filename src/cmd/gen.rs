//! Posts → request lines, as a filter or into chunk files.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::{
    Ended, outputs,
    setup::{ChunkRecords, Rendering, Step, claim, cutter, forget_empty, say_remade},
};
use crate::{
    analysis::Analysis,
    cli::GenArgs,
    console::Console,
    error::{Error, Kind, Result},
    flow::{
        chunks::{Chunk, ChunkWriter, Cutter, Group, write_behind},
        columns::{Columns, FIRST_POSTS},
        faults::FaultLog,
        posts::{Place, PostCounts, PostReader},
        requests::{RenderTally, Request},
        tally::Tally,
    },
    journal::{Event, Journal},
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
    outputs::check(
        None,
        [posts.as_deref().unwrap_or(Path::new("-"))],
        args.output.as_deref(),
        &args.faults,
        args.work_dir.as_deref(),
    )?;
    let posts = rendering.posts(posts.as_deref(), None)?;
    let watch = Watch { columns: Columns::new(&rendering.set), input: posts.name().to_owned(), console };
    let mut seen = Seen::new(&rendering, FaultLog::create(args.faults.faults.as_deref())?, Some(watch));
    let name = posts.name().to_owned();
    let (counts, tally) = match &args.work_dir {
        None => filter(posts, &rendering, args.output.as_deref(), &mut seen)?,
        Some(dir) => {
            let (work, journal) = claim(dir, (args.new, args.moved), rendering.record(false), false, console)?;
            let mut records = ChunkRecords::create()?;
            let done = cut(posts, &rendering, &work, &journal, &mut seen, &mut |chunk: Chunk| records.print(&chunk));
            // Chunks of another input than was meant must not be paid for by a later `submit`.
            if seen.is_another && !journal.resumed {
                work.forget(false)?;
            }
            let done = done?;
            if !forget_empty(&work, &journal, console)? {
                journal.read(|state| snapshots::write_files_info(&work, state, console))??;
            }
            done
        }
    };
    seen.log.commit()?;
    if let Some(path) = &args.faults.report {
        report::write_filter_report(path, &rendering.set, &seen.tally)?;
    }
    seen.tell(&tally, console);
    seen.log.show(console);
    counts.check(&name, console)?;
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
    /// The input has not as many posts as --expect-posts says.
    is_another: bool,
    /// Chunks whose files were made again.
    remade: u64,
    /// `None`: the fields of the posts were looked at before.
    watch: Option<Watch<'s>>,
}

/// Looks whether the posts have what the prompts ask about.
#[derive(Debug)]
pub struct Watch<'s> {
    columns: Columns<'s>,
    /// Its name.
    input: String,
    console: &'s Console,
}

impl Watch<'_> {
    fn note(&mut self, place: &Place<'_>) {
        self.columns.note(place);
        if place.post.is_ok()
            && self.columns.posts() == FIRST_POSTS
            && let Some(warning) = self.columns.warning()
        {
            self.console.note(warning);
        }
    }

    /// The next rows may yet be refused, together with those before them.
    fn is_in_doubt(&self) -> bool {
        self.columns.posts() < FIRST_POSTS && self.columns.lack().is_some()
    }

    fn judge(&self) -> Result<()> {
        if let Some(note) = self.columns.judge(&self.input)? {
            self.console.note(note);
        }
        Ok(())
    }
}

impl<'s> Seen<'s> {
    pub fn new(rendering: &'s Rendering, log: FaultLog, watch: Option<Watch<'s>>) -> Self {
        Self {
            rendering,
            log,
            tally: Tally::new(rendering.set.list.len()),
            bytes_bind: false,
            is_another: false,
            remade: 0,
            watch,
        }
    }

    fn note(&mut self, place: &Place<'_>) {
        if let Some(watch) = &mut self.watch {
            watch.note(place);
        }
    }

    /// # Errors
    /// No post has what a prompt asks about.
    fn judge(&self) -> Result<()> {
        self.watch.as_ref().map_or(Ok(()), Watch::judge)
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
        say_remade(self.remade, console);
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
    let name = &posts.name().to_owned();
    let mut output = Held { output: Output::create(output)?, held: Some(Vec::new()) };
    let mut renderer = rendering.renderer()?;
    let counts = rendering.render(posts, &mut renderer, |step| match step {
        Step::Place(place) => {
            seen.note(place);
            match output.held.is_none() || seen.watch.as_ref().is_some_and(Watch::is_in_doubt) {
                true => Ok(()),
                false => output.release(),
            }
        }
        Step::Request(request) => {
            seen.count(request.analysis);
            request.write_to(output.room_for(request.bytes)?)
        }
        Step::Fault(fault) => seen.add(&fault),
    })?;
    if !counts.are_all_bad() {
        seen.judge()?;
        counts.check_number(rendering.expected, name)?;
        output.release()?;
        output.output.commit()?;
    }
    Ok((counts, renderer.tally))
}

/// Rows are held back as long as it may turn out that no post has what they ask about: then none was written. What grows too
/// large is let go: a filter streams.
struct Held {
    output: Output,
    /// `None`: all is written as it comes.
    held: Option<Vec<u8>>,
}

const HELD_BYTES: u64 = 1 << 20;

impl Held {
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

/// Renders into chunk files. Each is in the journal before `yield_chunk` gets it; chunks that the journal holds
/// already are neither written nor yielded again, but their part of the input is compared.
pub fn cut(
    posts: PostReader<'_>,
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Journal,
    seen: &mut Seen<'_>,
    yield_chunk: &mut (dyn FnMut(Chunk) -> Result<()> + Send),
) -> Result<(PostCounts, RenderTally)> {
    let name = &posts.name().to_owned();
    let mut cutter = cutter(journal, work.folder(), rendering.limits)?;
    let groups = groups(&mut cutter, rendering);
    let record = |chunk: Chunk, input| {
        journal.append(&Event::Chunk { chunk: chunk.clone(), input })?;
        yield_chunk(chunk)
    };
    let mut renderer = rendering.renderer()?;
    let (counts, input) = write_behind(work.folder(), record, |writer| {
        let counts = rendering.render(posts, &mut renderer, |step| match step {
            Step::Place(place) => {
                seen.note(place);
                cutter.read_place(place.bytes)
            }
            Step::Request(request) => {
                seen.count(request.analysis);
                push(&mut cutter, &groups, request, writer)
            }
            Step::Fault(fault) => seen.add(&fault),
        })?;
        // Before the last chunks are made durable, which are all of them unless the input is large.
        seen.judge()?;
        counts.check_number(rendering.expected, name).inspect_err(|_| seen.is_another = true)?;
        Ok((counts, cutter.finish(writer)?))
    })?;
    (seen.bytes_bind, seen.remade) = (cutter.bytes_bind(), cutter.remade());
    // The user named the wrong input if every line was bad, and will name another one: its end is not recorded.
    if journal.read(|state| state.posts.is_none())? && !counts.are_all_bad() {
        journal.append(&Event::Posts { good: counts.posts, input })?;
    }
    Ok((counts, renderer.tally))
}

/// The groups of each analysis, text and multimodal.
fn groups(cutter: &mut Cutter, rendering: &Rendering) -> Vec<[Group; 2]> {
    let (text, vision) = (&rendering.models.model.value, &rendering.models.multimodal_model.value);
    let pair =
        |analysis: &Analysis| [cutter.group(&analysis.name, false, text), cutter.group(&analysis.name, true, vision)];
    rendering.set.list.iter().map(pair).collect()
}

fn push(cutter: &mut Cutter, groups: &[[Group; 2]], request: &Request<'_>, writer: &mut ChunkWriter<'_>) -> Result<()> {
    let group = groups.get(request.analysis).and_then(|pair| pair.get(usize::from(request.vision)));
    let Some(group) = group else { return Ok(()) };
    let write = |out: &mut dyn Write| request.write_to(out);
    cutter.push(*group, request.index.0, request.bytes, write, writer).map(|_| ())
}

/// Makes the files of chunks again that were removed by hand, before anybody reads them. Nothing is read if none are gone.
///
/// # Errors
/// The posts no longer give what was cut.
pub fn remake<'r>(
    open: &dyn Fn() -> Result<PostReader<'r>>,
    rendering: &'r Rendering,
    work: &WorkDir,
    journal: &Journal,
    console: &Console,
) -> Result<()> {
    let mut cutter = cutter(journal, work.folder(), rendering.limits)?.of_held_chunks();
    if cutter.gone() == 0 {
        return Ok(());
    }
    let groups = groups(&mut cutter, rendering);
    let mut renderer = rendering.renderer()?;
    write_behind(
        work.folder(),
        |_, _| Ok(()),
        |writer| {
            let rendered = rendering.render(open()?, &mut renderer, |step| match step {
                Step::Place(_) if cutter.gone() == 0 => Err(Error::new(Kind::ClosedPipe, "the rest is not needed")),
                Step::Place(place) => cutter.read_place(place.bytes),
                Step::Request(request) => push(&mut cutter, &groups, request, writer),
                Step::Fault(_) => Ok(()),
            });
            match rendered {
                Err(error) if error.kind() == Kind::ClosedPipe => Ok(()),
                Err(error) => Err(error),
                Ok(_) => cutter.finish(writer).map(|_| ()),
            }
        },
    )?;
    say_remade(cutter.remade(), console);
    Ok(())
}
