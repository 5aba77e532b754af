//! The posts of a job on their way into chunks, as `gen -d` and `run` cut them.

use std::sync::Arc;

use futures::stream::{self, Stream};

use super::request_settings::RequestSettings;
use crate::{
    blocking,
    console::Console,
    error::Result,
    flow::{
        FaultLine,
        chunks::{Chunk, Chunks, Cut, Group, Source},
        columns::{Columns, FIRST_POSTS},
        faults::FaultLog,
        kept_faults::KeptFaults,
        posts::{Place, PostCounts, Posts},
        requests::{RenderTally, Request, Requests},
        tally::Tally,
    },
    journal::Journal,
    units::count,
    workdir::{
        CUT_FAULTS, WorkDir,
        claim::{recorder, resume},
    },
};

/// Opens the chunks of a job where the journal ends.
pub fn chunks(
    posts: Posts,
    noted: Noted,
    settings: &Arc<RequestSettings>,
    work: &WorkDir,
    journal: &Journal,
) -> Result<Chunks<PostRequests>> {
    let (input, cutter) = resume(work, journal, settings.limits)?;
    let kept = KeptFaults::create(&work.file(CUT_FAULTS))?;
    open(posts, noted, settings, Cut::new(work.folder().clone(), input, cutter)?, journal, Some(kept))
}

fn open(
    posts: Posts,
    noted: Noted,
    settings: &RequestSettings,
    mut cut: Cut,
    journal: &Journal,
    kept: Option<KeptFaults>,
) -> Result<Chunks<PostRequests>> {
    let groups = Groups::new(settings, |analysis, vision, model| cut.group(analysis, vision, model));
    let source = PostRequests { posts, requests: settings.requests()?, groups, noted, kept };
    Ok(Chunks::new(source, cut, recorder(journal)))
}

/// The chunks as a stream. The next one is cut, away from the threads of the async runtime, when it is asked for.
pub fn stream(chunks: Chunks<PostRequests>, console: Console) -> impl Stream<Item = Result<Chunk>> {
    stream::try_unfold(chunks, move |mut chunks| async move {
        let (chunk, chunks) = blocking::run(move || (chunks.next(), chunks)).await;
        if let Some(chunk) = chunk? {
            return Ok(Some((chunk, chunks)));
        }
        let (_, tally, noted) = close(chunks);
        noted.say(&tally, &console);
        Ok(None)
    })
}

/// Writes the files of chunks again that were removed by hand, before anybody reads them. Nothing is read if none are lost.
///
/// # Errors
/// The posts no longer give the same chunks.
pub fn remake(
    posts: impl FnOnce() -> Result<Posts>,
    settings: &Arc<RequestSettings>,
    work: &WorkDir,
    journal: &Journal,
    console: &Console,
) -> Result<()> {
    let (input, cutter) = resume(work, journal, settings.limits)?;
    if cutter.gone() == 0 {
        return Ok(());
    }
    let cut = Cut::new(work.folder().clone(), input, cutter.of_held_chunks())?;
    let noted = Noted::new(settings, FaultLog::create(None)?, None);
    let mut chunks = open(posts()?, noted, settings, cut, journal, None)?;
    chunks.remake()?;
    note_remade(chunks.cutter().remade(), console);
    Ok(())
}

/// Says how many chunks were written again.
pub fn note_remade(chunks: u64, console: &Console) {
    if chunks > 0 {
        console.note(format_args!("files of {} were gone; they are made again from the input", count(chunks, "chunk")));
    }
}

/// Of each analysis, the groups of the text model and of the multimodal one.
#[derive(Debug)]
pub struct Groups(Vec<[Group; 2]>);

impl Groups {
    /// `group` gives the group of an analysis and a model; `true` for the multimodal one.
    pub fn new(settings: &RequestSettings, mut group: impl FnMut(&str, bool, &str) -> Group) -> Self {
        let (text, vision) = (&settings.models.model.value, &settings.models.multimodal_model.value);
        let names = settings.set.list.iter().map(|analysis| &analysis.name);
        Self(names.map(|name| [group(name, false, text), group(name, true, vision)]).collect())
    }

    pub fn of(&self, request: &Request<'_>) -> Option<Group> {
        self.0.get(request.analysis)?.get(usize::from(request.vision)).copied()
    }
}

/// Posts as a source of requests.
#[derive(Debug)]
pub struct PostRequests {
    posts: Posts,
    requests: Requests,
    groups: Groups,
    noted: Noted,
    /// `None`: only files of chunks are made again.
    kept: Option<KeptFaults>,
}

/// Ends the cutting. Returns the counts of posts and of requests, and the notes that were taken while the posts were read.
pub fn close(chunks: Chunks<PostRequests>) -> (PostCounts, RenderTally, Noted) {
    let (remade, bytes_bind) = (chunks.cutter().remade(), chunks.cutter().bytes_bind());
    let PostRequests { posts, requests, noted, .. } = chunks.into_source();
    (posts.counts(), requests.tally, Noted { remade, bytes_bind, ..noted })
}

impl Source for PostRequests {
    fn read(&mut self, cut: &mut Cut) -> Result<bool> {
        let Some(place) = self.posts.next()? else {
            // Before the last chunks are made durable, which are all of them unless the input is large.
            self.noted.judge(&self.posts)?;
            return Ok(false);
        };
        self.noted.note(&place);
        cut.place(place.bytes)?;
        for request in self.requests.of(&place.post) {
            match request {
                Ok(request) => {
                    self.noted.count(request.analysis);
                    let Some(group) = self.groups.of(&request) else { continue };
                    cut.push(group, request.index.0, request.bytes, |out| request.write_to(out))?;
                }
                Err(fault) => {
                    self.kept.as_mut().map_or(Ok(()), |kept| kept.add(&fault))?;
                    self.noted.add(&fault)?;
                }
            }
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<Option<u64>> {
        let counts = self.posts.counts();
        if counts.are_all_bad() {
            return Ok(None);
        }
        self.kept.take().map_or(Ok(()), KeptFaults::commit)?;
        Ok(Some(counts.posts))
    }
}

/// What is noted of the posts on their way: faults, rows by analysis, and fields that no post has.
#[derive(Debug)]
pub struct Noted {
    settings: Arc<RequestSettings>,
    pub log: FaultLog,
    pub tally: Tally,
    /// The input has not the number of posts that --expect-posts says.
    pub is_another: bool,
    /// Chunks whose files were written again, and whether a chunk ended because the bytes of the next line did not fit.
    remade: u64,
    bytes_bind: bool,
    /// `None`: the fields of the posts were looked at before.
    watch: Option<Watch>,
}

/// Looks whether the posts have what the prompts ask about.
#[derive(Debug)]
pub struct Watch {
    columns: Columns,
    console: Console,
}

impl Watch {
    pub fn new(settings: &RequestSettings, console: &Console) -> Self {
        Self { columns: Columns::new(Arc::clone(&settings.set)), console: *console }
    }
}

impl Noted {
    pub fn new(settings: &Arc<RequestSettings>, log: FaultLog, watch: Option<Watch>) -> Self {
        let tally = Tally::new(settings.set.list.len());
        Self { settings: Arc::clone(settings), log, tally, is_another: false, remade: 0, bytes_bind: false, watch }
    }

    pub fn note(&mut self, place: &Place<'_>) {
        let Some(Watch { columns, console }) = &mut self.watch else { return };
        columns.note(place);
        if place.post.is_ok()
            && columns.posts() == FIRST_POSTS
            && let Some(warning) = columns.warning()
        {
            console.note(warning);
        }
    }

    /// Counts a request.
    pub fn count(&mut self, analysis: usize) {
        if let Some(tally) = self.tally.analyses.get_mut(analysis) {
            tally.rows += 1;
        }
    }

    /// # Errors
    /// The fault is a bad post, and `--on-bad-post stop` is given.
    pub fn add(&mut self, fault: &FaultLine) -> Result<()> {
        self.settings.stop_at(fault)?;
        let analysis = fault.analysis.as_deref().and_then(|name| self.settings.set.find(name));
        self.tally.add_fault(analysis, fault);
        self.log.add(fault)
    }

    /// The next rows may still be refused, together with those before them.
    pub fn is_in_doubt(&self) -> bool {
        self.watch
            .as_ref()
            .is_some_and(|Watch { columns, .. }| columns.posts() < FIRST_POSTS && columns.lack().is_some())
    }

    /// Judges the whole input.
    ///
    /// # Errors
    /// No post has a field that a prompt asks about, or `--expect-posts` names another number of posts.
    pub fn judge(&mut self, posts: &Posts) -> Result<()> {
        if let Some(Watch { columns, console }) = &self.watch
            && let Some(note) = columns.judge(posts.name())?
        {
            console.note(note);
        }
        let checked = posts.counts().check_number(self.settings.expected, posts.name());
        self.is_another = checked.is_err();
        checked
    }

    /// Says what was changed or left out without being a fault.
    pub fn say(&self, tally: &RenderTally, console: &Console) {
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
        note_remade(self.remade, console);
        if let Some(cap) = self.settings.cap.as_ref().filter(|_| self.bytes_bind) {
            console.note(cap);
        }
    }
}
