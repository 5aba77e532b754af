//! What the events of a journal add up to: a [`Job`] for each chunk, and counts over all of them.

use std::collections::HashMap;

use super::{
    VERSION,
    events::{BatchEnd, Config, Event, Location, RefusedLine},
};
use crate::{
    flow::{
        ChunkId,
        chunks::{Chunk, InputMark},
        rows::RowBalance,
    },
    provider::{BatchId, FileId},
    text::short,
    units::sum,
};

/// The fold is bounded, also that of a journal that somebody else wrote: chunks, bytes of a name, characters of a reason,
/// reasons of one batch, and lines that a provider refused, of all batches. At 10,000 lines a chunk these are two thousand
/// million requests.
const MOST_CHUNKS: usize = 200_000;
/// Batches of one chunk whose results were given up. Each took a command of the user.
const MOST_GIVEN_UP: usize = 1000;
const LONGEST_NAME: usize = 1 << 10;
const LONGEST_WHY: usize = 2000;
const MOST_ERRORS: usize = 20;
const MOST_REFUSED: usize = 1 << 20;

/// The name of a [`JobStatus`], in the order of a chunk's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Cut,
    Uploaded,
    /// A create was sent and no answer is known.
    Intended,
    Created,
    Ended,
    Fetched,
}

impl Step {
    pub const ALL: [Self; 6] = [Self::Cut, Self::Uploaded, Self::Intended, Self::Created, Self::Ended, Self::Fetched];
}

/// A batch at the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub batch: BatchId,
    /// Its input file, as far as it is known.
    pub file: Option<FileId>,
    /// The batch was found in a listing.
    pub adopted: bool,
}

/// An answer to a create that says neither yes nor no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclear {
    pub why: String,
    pub status: Option<u16>,
    /// It said yes, without the batch's id.
    pub made: bool,
}

/// Where a chunk stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobStatus {
    Cut,
    Uploaded {
        file: FileId,
    },
    /// A create was sent and no answer is known.
    Intended {
        file: FileId,
        /// What came instead of an answer, if anything came.
        unclear: Option<Unclear>,
        /// The create is not sent again unless the user says so.
        held: bool,
    },
    Created {
        made: Made,
        /// The provider was asked to cancel the batch.
        cancelling: bool,
    },
    Ended {
        made: Made,
        /// In a box, as the rows: a [`Job`] is small until its batch has ended.
        end: Box<BatchEnd>,
        /// The results are gone, and the batch is not created again unless the user says so.
        held: bool,
    },
    Fetched {
        made: Made,
        end: Box<BatchEnd>,
        rows: Box<RowBalance>,
        /// The files at the provider are deleted.
        cleaned: bool,
    },
}

impl JobStatus {
    pub fn step(&self) -> Step {
        match self {
            Self::Cut => Step::Cut,
            Self::Uploaded { .. } => Step::Uploaded,
            Self::Intended { .. } => Step::Intended,
            Self::Created { .. } => Step::Created,
            Self::Ended { .. } => Step::Ended,
            Self::Fetched { .. } => Step::Fetched,
        }
    }

    /// The status after an event; `None` if the event cannot follow.
    fn next(&self, event: &Event) -> Option<Self> {
        let held = |held: bool, file: &FileId, unclear: &Option<Unclear>| Self::Intended {
            file: file.clone(),
            unclear: unclear.clone(),
            held,
        };
        Some(match (self, event) {
            (Self::Cut, Event::Uploaded { file_id, .. }) => Self::Uploaded { file: file_id.clone() },
            (Self::Uploaded { file }, Event::Intent { .. }) => held(false, file, &None),
            (Self::Intended { file, .. }, Event::Refused { .. }) => Self::Uploaded { file: file.clone() },
            (Self::Intended { file, held: is_held, .. }, Event::Unclear { why, status, made, .. }) => {
                held(*is_held, file, &Some(Unclear { why: shortened(why), status: *status, made: *made }))
            }
            (Self::Intended { file, unclear, .. }, Event::Held { .. }) => held(true, file, unclear),
            (Self::Uploaded { .. } | Self::Intended { .. } | Self::Ended { held: true, .. }, Event::Lost { .. }) => {
                Self::Cut
            }
            (Self::Intended { file, .. }, Event::Created { batch_id, adopted, file_id, .. }) => {
                Self::created(batch_id, *adopted, file_id.as_ref().or(Some(file)))
            }
            // A listing may show the batch of an earlier create that counted as lost, or of another copy of the directory,
            // before the next create is sent.
            (Self::Uploaded { file }, Event::Created { batch_id, adopted: true, file_id, .. }) => {
                Self::created(batch_id, true, file_id.as_ref().or(Some(file)))
            }
            (Self::Cut, Event::Created { batch_id, adopted: true, file_id, .. }) => {
                Self::created(batch_id, true, file_id.as_ref())
            }
            (Self::Created { .. }, Event::Full { .. }) => Self::Cut,
            (Self::Created { made, .. }, Event::Cancelling { .. }) => {
                Self::Created { made: made.clone(), cancelling: true }
            }
            (Self::Created { made, .. }, Event::Ended { end, .. }) => Self::ended(made, end, false),
            // A second one: the first did not say where the results are.
            (Self::Ended { made, held, .. }, Event::Ended { end, .. }) => Self::ended(made, end, *held),
            (Self::Ended { made, end, .. }, Event::Held { .. }) => {
                Self::Ended { made: made.clone(), end: end.clone(), held: true }
            }
            (Self::Created { .. } | Self::Ended { .. }, Event::Missing { .. }) => self.clone(),
            (Self::Ended { made, end, .. }, Event::Fetched { rows, .. }) => {
                Self::Fetched { made: made.clone(), end: end.clone(), rows: Box::new(rows.clone()), cleaned: false }
            }
            (Self::Fetched { made, end, .. }, Event::Again { .. }) => {
                Self::Ended { made: made.clone(), end: end.clone(), held: false }
            }
            (Self::Fetched { made, end, rows, .. }, Event::Cleaned { .. }) => {
                Self::Fetched { made: made.clone(), end: end.clone(), rows: rows.clone(), cleaned: true }
            }
            _ => return None,
        })
    }

    fn created(batch: &BatchId, adopted: bool, file: Option<&FileId>) -> Self {
        Self::Created { made: Made { batch: batch.clone(), file: file.cloned(), adopted }, cancelling: false }
    }

    fn ended(made: &Made, end: &BatchEnd, held: bool) -> Self {
        Self::Ended { made: made.clone(), end: Box::new(bounded(end)), held }
    }
}

/// The beginning of a reason.
fn shortened(why: &str) -> String {
    let end = why.char_indices().nth(LONGEST_WHY).map_or(why.len(), |(end, _)| end);
    why.get(..end).unwrap_or(why).to_owned()
}

/// An end with as many and as long reasons as the fold keeps.
fn bounded(end: &BatchEnd) -> BatchEnd {
    let refused = |refused: &RefusedLine| RefusedLine { line: refused.line, why: shortened(&refused.why) };
    BatchEnd {
        errors: end.errors.iter().take(MOST_ERRORS).map(|why| shortened(why)).collect(),
        refused_lines: end.refused_lines.iter().map(refused).collect(),
        ..end.clone()
    }
}

fn check_lengths<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), String> {
    match names.into_iter().find(|name| name.len() > LONGEST_NAME) {
        Some(name) => Err(format!("a name of {} bytes; the longest has {LONGEST_NAME}", name.len())),
        None => Ok(()),
    }
}

/// A chunk and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub chunk: Chunk,
    pub input: InputMark,
    pub status: JobStatus,
    /// Creates that were announced, those of earlier uploads included.
    pub attempt: u32,
    /// The last thing that went wrong with it.
    pub trouble: Option<String>,
    /// Creates that were given up as lost: each may have made a batch that no listing shows.
    pub lost: u32,
    /// When a command that does not wait first asked in vain for the batch or a results file, in seconds since 1970.
    pub missing: Option<u64>,
    /// Adopted batches whose results were gone, and that the user gave up.
    pub given_up: Vec<BatchId>,
}

impl Job {
    fn new(chunk: &Chunk, input: &InputMark) -> Self {
        Self {
            chunk: chunk.clone(),
            input: input.clone(),
            status: JobStatus::Cut,
            attempt: 0,
            trouble: None,
            lost: 0,
            missing: None,
            given_up: Vec::new(),
        }
    }

    pub fn step(&self) -> Step {
        self.status.step()
    }

    /// The batch, once one is known.
    pub fn made(&self) -> Option<&Made> {
        match &self.status {
            JobStatus::Cut | JobStatus::Uploaded { .. } | JobStatus::Intended { .. } => None,
            JobStatus::Created { made, .. } | JobStatus::Ended { made, .. } | JobStatus::Fetched { made, .. } => {
                Some(made)
            }
        }
    }

    pub fn batch(&self) -> Option<&BatchId> {
        self.made().map(|made| &made.batch)
    }

    /// The uploaded file.
    pub fn file(&self) -> Option<&FileId> {
        match &self.status {
            JobStatus::Cut => None,
            JobStatus::Uploaded { file } | JobStatus::Intended { file, .. } => Some(file),
            JobStatus::Created { made, .. } | JobStatus::Ended { made, .. } | JobStatus::Fetched { made, .. } => {
                made.file.as_ref()
            }
        }
    }

    /// The files that it has at the provider: output, error, input.
    pub fn remote_files(&self) -> impl Iterator<Item = &FileId> {
        self.end().map(BatchEnd::files).into_iter().flatten().flatten().chain(self.file())
    }

    pub fn end(&self) -> Option<&BatchEnd> {
        match &self.status {
            JobStatus::Ended { end, .. } | JobStatus::Fetched { end, .. } => Some(end),
            _ => None,
        }
    }

    pub fn rows(&self) -> Option<&RowBalance> {
        match &self.status {
            JobStatus::Fetched { rows, .. } => Some(rows),
            _ => None,
        }
    }

    /// The files at the provider are deleted.
    pub fn is_cleaned(&self) -> bool {
        matches!(self.status, JobStatus::Fetched { cleaned: true, .. })
    }

    /// No batch of it is created unless the user says so.
    pub fn is_held(&self) -> bool {
        matches!(self.status, JobStatus::Intended { held: true, .. } | JobStatus::Ended { held: true, .. })
    }

    /// Its download was cut short or failed, and the provider's copy was kept for another one.
    pub fn came_short(&self) -> bool {
        self.rows().is_some_and(|rows| rows.short) && !self.is_cleaned()
    }

    pub fn is_cancelling(&self) -> bool {
        matches!(self.status, JobStatus::Created { cancelling: true, .. })
    }

    /// What came instead of an answer to its create.
    pub fn unclear(&self) -> Option<&Unclear> {
        match &self.status {
            JobStatus::Intended { unclear, .. } => unclear.as_ref(),
            _ => None,
        }
    }

    fn follow(&mut self, event: &Event) -> Result<(), String> {
        if let Event::Ended { end, .. } = event {
            check_lengths([&end.status])?;
        }
        let next = self.status.next(event);
        let next =
            next.ok_or_else(|| format!("{} cannot follow {:?} of {}", event.name(), self.step(), self.chunk.id))?;
        match event {
            Event::Intent { attempt, .. } => self.attempt = *attempt,
            Event::Created { .. } => self.trouble = None,
            Event::Ended { .. } if self.step() == Step::Created => self.missing = None,
            Event::Missing { at, .. } => self.missing = self.missing.or(Some(*at)),
            Event::Lost { .. } => self.lose()?,
            _ => {}
        }
        self.status = next;
        match event {
            Event::Refused { why, .. }
            | Event::Unclear { why, .. }
            | Event::Held { why, .. }
            | Event::Lost { why, .. }
            | Event::Full { why, .. }
            | Event::Missing { why, .. } => self.trouble = Some(shortened(why)),
            _ => {}
        }
        Ok(())
    }

    /// Counts what is given up: an upload is nothing, a create may have made a batch, an adopted batch is named.
    fn lose(&mut self) -> Result<(), String> {
        match &self.status {
            JobStatus::Intended { .. } => self.lost += 1,
            JobStatus::Ended { .. } if self.given_up.len() >= MOST_GIVEN_UP => {
                return Err(format!("its results were given up {MOST_GIVEN_UP} times"));
            }
            JobStatus::Ended { made, .. } => {
                self.given_up.push(made.batch.clone());
                self.missing = None;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The rows of all chunks together.
pub fn totals(jobs: &[Job]) -> RowBalance {
    let mut sum = RowBalance::default();
    for rows in jobs.iter().filter_map(Job::rows) {
        let counts = [
            (&mut sum.output, rows.output),
            (&mut sum.error, rows.error),
            (&mut sum.absent, rows.absent),
            (&mut sum.foreign, rows.foreign),
            (&mut sum.bad, rows.bad),
        ];
        counts.into_iter().for_each(|(sum, count)| *sum = sum.saturating_add(count));
        sum.short |= rows.short;
    }
    sum
}

/// The number of a chunk in the journal, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkPlace(u32);

impl ChunkPlace {
    /// `None` beyond the chunks that a journal may hold.
    pub fn new(at: usize) -> Option<Self> {
        u32::try_from(at).ok().map(Self)
    }

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The fold. Its size grows with the number of chunks, a ten-thousandth of that of the requests.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub run: String,
    pub config: Option<Config>,
    /// Scheme, host and port of the server that the batches are at; `None` in journals of older versions.
    pub origin: Option<String>,
    pub spooled: bool,
    /// Where the journal was when it was last gone on with.
    pub location: Option<Location>,
    /// The end of the input: good posts, and the mark.
    pub posts: Option<(u64, InputMark)>,
    /// In the order in which they were cut.
    pub jobs: Vec<Job>,
    places: HashMap<ChunkId, ChunkPlace>,
    /// Lines that the provider refused.
    refused: usize,
    /// Chunks at each step.
    counts: [u64; Step::ALL.len()],
    /// Batches and requests of all creates that were sent, but for those that were refused or found the queue full.
    spent: (u64, u64),
    /// A listing has shown a batch of this directory.
    pub was_listed: bool,
    /// `zbatch cancel` was here, and `--resume` was not.
    pub cancelled: bool,
    /// Events were lost, and with them perhaps batches.
    pub repaired: bool,
}

impl State {
    pub fn job(&self, id: &ChunkId) -> Option<&Job> {
        self.jobs.get(self.place(id)?.index())
    }

    pub fn place(&self, id: &ChunkId) -> Option<ChunkPlace> {
        self.places.get(id).copied()
    }

    /// The chunks with their places, in order.
    pub fn placed(&self) -> impl Iterator<Item = (ChunkPlace, &Job)> {
        self.jobs.iter().enumerate().filter_map(|(at, job)| Some((ChunkPlace::new(at)?, job)))
    }

    /// The chunks whose results are here.
    pub fn fetched(&self) -> Vec<ChunkPlace> {
        let fetched = self.placed().filter(|(_, job)| job.step() == Step::Fetched);
        fetched.map(|(place, _)| place).collect()
    }

    /// The input was read to its end, and nothing was in it.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.posts.as_ref().is_some_and(|(_, mark)| mark.posts == 0)
    }

    /// Batches and requests that were paid for, or may have been. The caps count these.
    pub fn spent(&self) -> (u64, u64) {
        self.spent
    }

    /// `zbatch cancel` holds: some chunk has no batch, and is given none.
    pub fn stays_cancelled(&self) -> bool {
        self.cancelled && (self.posts.is_none() || self.below(Step::Created) > 0)
    }

    /// Batches that run, may run, or whose results are not here; and rows whose results are.
    pub fn at_stake(&self) -> (u64, u64) {
        let fetched = self.jobs.iter().filter_map(Job::rows);
        (self.at(Step::Intended) + self.at(Step::Created) + self.at(Step::Ended), sum(fetched.map(|rows| rows.output)))
    }

    /// Another chunk than this one waits for the user's word on its create.
    pub fn holds_another(&self, id: &ChunkId) -> bool {
        self.jobs.iter().any(|job| job.is_held() && job.chunk.id != *id)
    }

    /// Chunks at a step.
    pub fn at(&self, step: Step) -> u64 {
        self.counts.get(step as usize).copied().unwrap_or_default()
    }

    /// Chunks that have not come as far.
    pub fn below(&self, step: Step) -> u64 {
        self.counts.iter().take(step as usize).sum()
    }

    /// `counted`: a create of the chunk that counted as lost is among those that were sent.
    fn move_one(&mut self, from: Option<Step>, to: Step, lines: u64, event: &Event, counted: bool) {
        for (step, up) in from.map(|step| (step, false)).into_iter().chain([(to, true)]) {
            if let Some(count) = self.counts.get_mut(step as usize) {
                *count = if up { *count + 1 } else { *count - 1 };
            }
        }
        let paid = |step: Step| step >= Step::Intended;
        match (from.is_some_and(paid), paid(to)) {
            // The lost create that made this batch was counted.
            (false, true) if counted && matches!(event, Event::Created { .. }) => {}
            (false, true) => self.spent = (self.spent.0.saturating_add(1), self.spent.1.saturating_add(lines)),
            // A create that no listing shows may have been paid for all the same.
            (true, false) if !matches!(event, Event::Lost { .. }) => {
                self.spent = (self.spent.0.saturating_sub(1), self.spent.1.saturating_sub(lines))
            }
            _ => {}
        }
    }

    /// Adds an event.
    ///
    /// # Errors
    /// The event cannot follow, or the fold has no room for it. Nothing is changed then.
    pub fn apply(&mut self, event: &Event) -> Result<(), String> {
        if self.config.is_none() && !matches!(event, Event::Start { .. }) {
            return Err("the first event must be `start`".to_owned());
        }
        match event {
            Event::Start { version, run, spooled, config } => return self.start(*version, run, *spooled, config),
            Event::Cancelled {} | Event::Resumed {} => self.cancelled = matches!(event, Event::Cancelled {}),
            Event::Repaired {} => self.repaired = true,
            Event::Origin { origin } => {
                if let Some(there) = self.origin.as_ref().filter(|there| *there != origin && self.spent.0 > 0) {
                    return Err(format!("the server is {origin}, and batches were created at {there}"));
                }
                self.origin = Some(origin.clone());
            }
            Event::Location(location) => self.location = Some(location.clone()),
            Event::Chunk { chunk, input } => {
                let place = self.check_new(chunk, input)?;
                self.places.insert(chunk.id.clone(), place);
                self.jobs.push(Job::new(chunk, input));
                self.move_one(None, Step::Cut, chunk.lines, event, false);
            }
            Event::Posts { .. } if self.posts.is_some() => return Err("the input ended before".to_owned()),
            Event::Posts { good, input } => self.posts = Some((*good, input.clone())),
            _ => return self.apply_to_job(event),
        }
        Ok(())
    }

    fn start(&mut self, version: u32, run: &str, spooled: bool, config: &Config) -> Result<(), String> {
        if version != VERSION {
            return Err(format!("version {version}; this zbatch reads version {VERSION}"));
        }
        if self.config.is_some() {
            return Err("a second start".to_owned());
        }
        run.clone_into(&mut self.run);
        self.spooled = spooled;
        self.config = Some(config.clone());
        Ok(())
    }

    /// The place of a new chunk, whose file is where its id says, and for which the fold has room.
    fn check_new(&self, chunk: &Chunk, input: &InputMark) -> Result<ChunkPlace, String> {
        if chunk.path != chunk.id.path() || chunk.analysis != chunk.id.analysis {
            let (path, analysis) = (short(&chunk.path), short(&chunk.analysis));
            return Err(format!("path {path} and analysis {analysis} are not those of {}", chunk.id));
        }
        let place = ChunkPlace::new(self.jobs.len()).filter(|place| place.index() < MOST_CHUNKS);
        let place = place.ok_or_else(|| format!("a work directory holds at most {MOST_CHUNKS} chunks"))?;
        check_lengths([&chunk.model, &chunk.blake3, &input.blake3])?;
        if self.places.contains_key(&chunk.id) {
            return Err(format!("{} was cut before", chunk.id));
        }
        chunk.check()?;
        Ok(place)
    }

    fn apply_to_job(&mut self, event: &Event) -> Result<(), String> {
        let id = event.chunk_id().ok_or("an event without a chunk")?;
        let place = self.place(id).ok_or_else(|| format!("{id} was never cut"))?;
        let job = self.jobs.get_mut(place.index()).ok_or("a chunk without a place")?;
        let (from, lines, counted) = (job.step(), job.chunk.lines, job.lost > 0);
        job.follow(event)?;
        if let (Event::Ended { .. }, JobStatus::Ended { end, .. }) = (event, &mut job.status) {
            // The rows of the lines that are left out are absent, and the batch still says why it failed.
            end.refused_lines.truncate(MOST_REFUSED.saturating_sub(self.refused));
            self.refused += end.refused_lines.len();
        }
        let to = job.step();
        self.was_listed |= matches!(event, Event::Created { adopted: true, .. });
        self.move_one(Some(from), to, lines, event, counted);
        Ok(())
    }
}
