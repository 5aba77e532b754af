//! The state of a work directory on disk: `journal.jsonl`, one event a line, appended and synced before the call
//! that it announces, never re-written. Everything else that is known of the directory is the fold of it.
//!
//! | event | says | then |
//! |---|---|---|
//! | `start` | version, run id, [`Config`]: what decides the requests | always the first line |
//! | `origin` | the server that the batches are at: scheme, host and port; none for the embedded emulator | the same until a create is billed |
//! | `place` | where the journal lies: a copy of it is not gone on with by mistake | |
//! | `chunk` | a [`Chunk`] is on disk, whole and synced, and how far the input had been read | [`Step::Cut`] |
//! | `posts` | the input has ended: how many places, how many good posts, hash of all | |
//! | `uploaded` | the provider keeps the chunk's file | [`Step::Uploaded`] |
//! | `intent` | a create will now be sent, once | [`Step::Intended`] |
//! | `refused` | that create was refused for certain: nothing is billed | [`Step::Uploaded`] |
//! | `unclear` | that create was answered with neither yes nor no; `made`: with a yes that does not name the batch | |
//! | `held` | no listing settles whether that create made a batch, or the results of an adopted batch are gone: the chunk is not created again unless the user says so | |
//! | `lost` | that create never happened: no listing shows it and its file is deleted; or the upload is gone; or the user gives a held batch up | [`Step::Cut`] |
//! | `created` | the batch exists; `adopted`: it was found in a listing, also without an intent, if another copy of the directory made it | [`Step::Created`] |
//! | `cancelling` | the provider was asked to cancel the batch, and took it | |
//! | `full` | the batch failed before any of its requests ran, since the account's queue was full: nothing is billed | [`Step::Cut`] |
//! | `ended` | the batch is terminal; its result files (a second one: where they are after all) | [`Step::Ended`] |
//! | `fetched` | its results are on disk, verified and synced; how its rows balance, length and hash of each file | [`Step::Fetched`] |
//! | `missing` | the batch, or a results file, is not at the provider, or not yet | |
//! | `again` | its results are to be downloaded once more | [`Step::Ended`] |
//! | `cleaned` | its files at the provider are deleted | |
//! | `cancelled` | `zbatch cancel` was here: no batch is created any more | |
//! | `resumed` | the user said `--resume`: batches are created again | |
//! | `repaired` | what followed was damaged and is aside: a batch is looked for in the provider's list before one is created | |
//!
//! A last line without its line feed was torn by a crash and is dropped, with a notice. Anything else that is not
//! an event, or an event that cannot follow, is refused with its line number and offset (`docs/reliability.md` S3); [`repair`] puts it
//! aside, with all that follows it.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

use crate::{
    cli::ImageUrls,
    drill::{self, Guard},
    error::{Error, Kind, Result},
    flow::{
        ChunkId,
        chunks::{Chunk, Cutter, InputMark, Kept, Limits, request_file, rows_file},
        rows::RowBalance,
    },
    folder::Folder,
    json::Object,
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
        output::AtomicFile,
    },
    shell,
    text::short,
    units::{count, sum},
};

pub const FILE: &str = "journal.jsonl";
/// What the damaged end of a journal is called, with a number.
pub const BAD: &str = ".bad-";
const VERSION: u32 = 1;
/// An event is a line of a few hundred bytes; a longer one is damage.
const LONGEST_EVENT: u64 = 1 << 20;
/// What the fold keeps is bounded, also of a journal that somebody else wrote: chunks, bytes of an id, characters of a reason, reasons of
/// one batch, and lines that a provider refused, of all batches. At 10,000 lines a chunk these are two thousand million requests.
const MOST_CHUNKS: usize = 200_000;
/// Batches of one chunk whose results were given up: each was a command of the user.
const MOST_GIVEN_UP: usize = 1000;
const LONGEST_ID: usize = 1 << 10;
const LONGEST_WHY: usize = 2000;
const MOST_ERRORS: usize = 20;
const MOST_REFUSED: usize = 1 << 20;

/// What decides the requests: a work directory belongs to one of these (`docs/reliability.md` S5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `posts` or `requests`.
    pub input: String,
    /// Name and fingerprint of each analysis, in order.
    #[serde(default)]
    pub analyses: Vec<(String, String)>,
    pub model: String,
    pub multimodal_model: String,
    pub temperature: String,
    pub provider: String,
    /// Answers come from the embedded emulator.
    pub emulate: bool,
    pub max_lines: u64,
    pub max_bytes: u64,
    pub start_index: u64,
    pub missing: bool,
    /// Hash of the rows that `--skip` leaves out, and of those that it asks without images.
    pub skip: Option<String>,
    #[serde(default)]
    pub image_urls: ImageUrls,
    /// The server behind the embedded one (`--upstream`): a directory's answers are all invented, or all its.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

impl Config {
    /// The first difference, in words: what is there and what is wanted now.
    pub fn difference(&self, now: &Self) -> Option<String> {
        if self.input != now.input {
            return Some(format!("it was cut from {}; now {} are given", self.input, now.input));
        }
        if self.analyses != now.analyses {
            let names = |list: &[(String, String)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            let changed = self.analyses.iter().find(|old| !now.analyses.contains(old));
            return Some(match changed {
                Some((name, _)) if names(&now.analyses).contains(name) => {
                    format!("the prompt, rule or reference data of `{name}` has changed")
                }
                _ => format!(
                    "its analyses are {}; now they are {}",
                    names(&self.analyses).join(", "),
                    names(&now.analyses).join(", ")
                ),
            });
        }
        let (there, now) = (serde_json::to_value(self).ok()?, serde_json::to_value(now).ok()?);
        // A value that is not there indexes as null.
        there.as_object()?.keys().chain(now.as_object()?.keys()).find_map(|key| {
            let (there, now) = (there.get(key).unwrap_or_default(), now.get(key).unwrap_or_default());
            (there != now).then(|| format!("its `{key}` is {there}; now it is {now}"))
        })
    }
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Start {
        version: u32,
        /// Part of the mark that a batch carries, so that it can be recognised in a listing.
        run: String,
        /// The input is kept in the work directory, since it cannot be read again where it came from.
        #[serde(default)]
        spooled: bool,
        config: Config,
    },
    Origin {
        origin: String,
    },
    Place(Place),
    Chunk {
        #[serde(flatten)]
        chunk: Chunk,
        input: InputMark,
    },
    Posts {
        good: u64,
        input: InputMark,
    },
    Uploaded {
        chunk: ChunkId,
        file_id: String,
    },
    Intent {
        chunk: ChunkId,
        file_id: String,
        /// From 1.
        attempt: u32,
        blake3: String,
    },
    Refused {
        chunk: ChunkId,
        why: String,
    },
    Unclear {
        chunk: ChunkId,
        why: String,
        /// HTTP status of the answer, if one came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        #[serde(default)]
        made: bool,
    },
    Held {
        chunk: ChunkId,
        why: String,
    },
    Lost {
        chunk: ChunkId,
        why: String,
    },
    Full {
        chunk: ChunkId,
        why: String,
    },
    Created {
        chunk: ChunkId,
        batch_id: String,
        /// Found in a listing.
        #[serde(default)]
        adopted: bool,
        /// Of an adopted batch: the input file that it names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file_id: Option<String>,
    },
    Cancelling {
        chunk: ChunkId,
    },
    Ended {
        chunk: ChunkId,
        #[serde(flatten)]
        end: BatchEnd,
    },
    Fetched {
        chunk: ChunkId,
        #[serde(flatten)]
        rows: RowBalance,
    },
    Missing {
        chunk: ChunkId,
        why: String,
        /// Seconds since 1970.
        #[serde(default)]
        at: u64,
    },
    Again {
        chunk: ChunkId,
    },
    Cleaned {
        chunk: ChunkId,
    },
    Cancelled {},
    Resumed {},
    Repaired {},
}

/// Where a journal lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub host: String,
    pub device: u64,
    /// The number of the journal's file on its device.
    pub inode: u64,
    /// The number of the directory that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<u64>,
}

impl Place {
    /// The same file. A copy gets another number, and its directory too. The device's number changes at a reboot and from
    /// machine to machine that mounts the same disk, a container has a new host name each time: neither tells a copy.
    pub fn is_same_file(&self, other: &Self) -> bool {
        let same_folder = self.folder.zip(other.folder).is_none_or(|(one, other)| one == other);
        self.inode == other.inode && same_folder
    }
}

/// What a terminal batch said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchEnd {
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_file_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_file_id: Option<String>,
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<u64>,
    /// Why the provider refused the batch's input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Those of them that name a line: each is a fault of its row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_lines: Vec<RefusedLine>,
}

impl BatchEnd {
    /// It says of no request what became of it.
    pub fn counts_nothing(&self) -> bool {
        self.completed == 0 && self.failed == 0
    }

    /// What the fold keeps of it.
    fn kept(&self) -> std::result::Result<Self, String> {
        check_lengths([&self.status].into_iter().chain(&self.output_file_id).chain(&self.error_file_id))?;
        let errors = self.errors.iter().take(MOST_ERRORS).map(|why| kept(why)).collect();
        let refused = |refused: &RefusedLine| RefusedLine { line: refused.line, why: kept(&refused.why) };
        let refused_lines = self.refused_lines.iter().map(refused).collect();
        Ok(Self { errors, refused_lines, ..self.clone() })
    }
}

fn check_lengths<'a>(ids: impl IntoIterator<Item = &'a String>) -> std::result::Result<(), String> {
    match ids.into_iter().find(|id| id.len() > LONGEST_ID) {
        Some(id) => Err(format!("an id or name of {} bytes; the longest has {LONGEST_ID}", id.len())),
        None => Ok(()),
    }
}

/// The beginning of a reason.
fn kept(why: &str) -> String {
    let end = why.char_indices().nth(LONGEST_WHY).map_or(why.len(), |(end, _)| end);
    why.get(..end).unwrap_or(why).to_owned()
}

/// A line of a chunk file for which the provider refused the whole batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedLine {
    /// From 1.
    pub line: u64,
    pub why: String,
}

/// Where a chunk stands.
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

/// A chunk and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub chunk: Chunk,
    pub input: InputMark,
    pub step: Step,
    pub file_id: Option<String>,
    pub attempt: u32,
    pub batch_id: Option<String>,
    /// The provider was asked to cancel the batch.
    pub cancelling: bool,
    /// In a box, as `rows`: most chunks of a job that has begun have neither.
    pub end: Option<Box<BatchEnd>>,
    pub rows: Option<Box<RowBalance>>,
    pub cleaned: bool,
    /// The last thing that went wrong with it.
    pub trouble: Option<String>,
    /// Creates that were given up as lost: each may have made a batch that no listing shows.
    pub lost: u32,
    /// What came instead of an answer to the last create, if anything came.
    pub unclear: Option<Unclear>,
    /// When a results file was first asked for in vain by a command that does not wait, in seconds since 1970.
    pub missing: Option<u64>,
    /// Its create is not sent again unless the user says so.
    pub held: bool,
    /// Its batch was found in a listing.
    pub adopted: bool,
    /// Adopted batches whose results were gone, and that the user gave up.
    pub given_up: Vec<String>,
}

/// An answer to a create that says neither yes nor no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclear {
    pub why: String,
    pub status: Option<u16>,
    /// It said yes, without the batch's id.
    pub made: bool,
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
    pub place: Option<Place>,
    /// The end of the input: good posts, and the mark.
    pub posts: Option<(u64, InputMark)>,
    /// In the order in which they were cut.
    pub jobs: Vec<Job>,
    places: HashMap<ChunkId, usize>,
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
        self.jobs.get(*self.places.get(id)?)
    }

    /// The chunks, in order, and where the input ended: what a [`Cutter`] goes on from.
    pub fn cutter(&self, dir: &Folder, limits: Limits) -> Result<Cutter> {
        let mut cut = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            cut.push((&job.chunk, &job.input, job.kept(dir)?));
        }
        Ok(Cutter::new(dir.clone(), limits, cut, self.posts.as_ref().map(|(_, mark)| mark)))
    }

    /// The input was read to its end, and nothing was in it.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.posts.as_ref().is_some_and(|(_, mark)| mark.posts == 0)
    }

    /// Place of a chunk among all, from 0.
    pub fn place(&self, id: &ChunkId) -> Option<usize> {
        self.places.get(id).copied()
    }

    /// Batches and requests that were paid for, or may have been: what the caps count.
    pub fn spent(&self) -> (u64, u64) {
        self.spent
    }

    /// `zbatch cancel` holds: something has no batch, and is given none.
    pub fn stays_cancelled(&self) -> bool {
        self.cancelled && (self.posts.is_none() || self.below(Step::Created) > 0)
    }

    /// Batches that run, may run, or whose results are not here; and rows whose results are.
    pub fn at_stake(&self) -> (u64, u64) {
        let fetched = self.jobs.iter().filter(|job| job.step == Step::Fetched).filter_map(|job| job.rows.as_ref());
        (self.at(Step::Intended) + self.at(Step::Created) + self.at(Step::Ended), sum(fetched.map(|rows| rows.output)))
    }

    /// Another chunk than this one waits for the user's word on its create.
    pub fn holds_another(&self, id: &ChunkId) -> bool {
        self.jobs.iter().any(|job| job.held && job.chunk.id != *id)
    }

    /// Chunks at a step.
    pub fn at(&self, step: Step) -> u64 {
        self.counts.get(step as usize).copied().unwrap_or_default()
    }

    /// Chunks that have not come as far.
    pub fn below(&self, step: Step) -> u64 {
        self.counts.iter().take(step as usize).sum()
    }

    /// `counted`: a create of it that counted as lost is among those that were sent.
    fn move_one(&mut self, from: Option<Step>, to: Step, lines: u64, event: &Event, counted: bool) {
        for (step, up) in from.map(|step| (step, false)).into_iter().chain([(to, true)]) {
            if let Some(count) = self.counts.get_mut(step as usize) {
                *count = if up { *count + 1 } else { *count - 1 };
            }
        }
        let paid = |step: Step| step >= Step::Intended;
        match (from.is_some_and(paid), paid(to)) {
            // The lost create that it came of was counted.
            (false, true) if counted && matches!(event, Event::Created { .. }) => {}
            (false, true) => self.spent = (self.spent.0.saturating_add(1), self.spent.1.saturating_add(lines)),
            // A create that no listing shows may have been paid for all the same.
            (true, false) if !matches!(event, Event::Lost { .. }) => {
                self.spent = (self.spent.0.saturating_sub(1), self.spent.1.saturating_sub(lines))
            }
            _ => {}
        }
    }

    /// A chunk is where its id says, is new, and the fold has room for it.
    fn check_new(&self, chunk: &Chunk, input: &InputMark) -> std::result::Result<(), String> {
        if chunk.path != chunk.id.path() || chunk.analysis != chunk.id.analysis {
            let (path, analysis) = (short(&chunk.path), short(&chunk.analysis));
            return Err(format!("path {path} and analysis {analysis} are not those of {}", chunk.id));
        }
        if self.jobs.len() >= MOST_CHUNKS {
            return Err(format!("a work directory holds at most {MOST_CHUNKS} chunks"));
        }
        check_lengths([&chunk.model, &chunk.blake3, &input.blake3])?;
        match self.places.contains_key(&chunk.id) {
            true => Err(format!("{} was cut before", chunk.id)),
            false => Ok(()),
        }
    }

    fn apply(&mut self, event: &Event) -> std::result::Result<(), String> {
        match event {
            Event::Start { version, run, spooled, config } => {
                if *version != VERSION {
                    return Err(format!("version {version}; this zbatch reads version {VERSION}"));
                }
                if self.config.is_some() {
                    return Err("a second start".to_owned());
                }
                run.clone_into(&mut self.run);
                self.spooled = *spooled;
                self.config = Some(config.clone());
                return Ok(());
            }
            _ if self.config.is_none() => return Err("the first event must be `start`".to_owned()),
            Event::Cancelled {} | Event::Resumed {} => {
                self.cancelled = matches!(event, Event::Cancelled {});
                return Ok(());
            }
            Event::Repaired {} => {
                self.repaired = true;
                return Ok(());
            }
            Event::Origin { origin } => {
                if let Some(there) = self.origin.as_ref().filter(|there| *there != origin && self.spent.0 > 0) {
                    return Err(format!("the server is {origin}, and batches were created at {there}"));
                }
                self.origin = Some(origin.clone());
                return Ok(());
            }
            Event::Place(place) => {
                self.place = Some(place.clone());
                return Ok(());
            }
            Event::Chunk { chunk, input } => {
                self.check_new(chunk, input)?;
                chunk.check()?;
                self.places.insert(chunk.id.clone(), self.jobs.len());
                self.jobs.push(Job {
                    chunk: chunk.clone(),
                    input: input.clone(),
                    step: Step::Cut,
                    file_id: None,
                    attempt: 0,
                    batch_id: None,
                    cancelling: false,
                    end: None,
                    rows: None,
                    cleaned: false,
                    trouble: None,
                    lost: 0,
                    unclear: None,
                    held: false,
                    missing: None,
                    adopted: false,
                    given_up: Vec::new(),
                });
                self.move_one(None, Step::Cut, chunk.lines, event, false);
                return Ok(());
            }
            Event::Posts { good, input } => {
                if self.posts.is_some() {
                    return Err("the input ended before".to_owned());
                }
                self.posts = Some((*good, input.clone()));
                return Ok(());
            }
            _ => {}
        }
        let id = event.chunk_id().ok_or("an event without a chunk")?;
        let at = *self.places.get(id).ok_or_else(|| format!("{id} was never cut"))?;
        let job = self.jobs.get_mut(at).ok_or("a chunk without a place")?;
        let (from, lines, counted) = (job.step, job.chunk.lines, job.lost > 0);
        job.follow(event)?;
        if let (Event::Ended { .. }, Some(end)) = (event, &mut job.end) {
            // The rows of those that are left out are absent, and the batch still says why it failed.
            end.refused_lines.truncate(MOST_REFUSED.saturating_sub(self.refused));
            self.refused += end.refused_lines.len();
        }
        let to = job.step;
        self.was_listed |= matches!(event, Event::Created { adopted: true, .. });
        self.move_one(Some(from), to, lines, event, counted);
        Ok(())
    }
}

/// The rows of all chunks together.
pub fn totals(jobs: &[Job]) -> RowBalance {
    let mut sum = RowBalance::default();
    for rows in jobs.iter().filter_map(|job| job.rows.as_ref()) {
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

impl Job {
    /// Its download was cut short or failed, and the provider's copy was kept for another one.
    pub fn came_short(&self) -> bool {
        self.rows.as_ref().is_some_and(|rows| rows.short) && !self.cleaned
    }

    /// Whether its files are there, as far as they are needed: the requests until there is a batch.
    pub fn kept(&self, dir: &Folder) -> Result<Kept> {
        let requests = self.step < Step::Created && !request_file(dir, &self.chunk.id).exists()?;
        let is_gone = requests || !rows_file(dir, &self.chunk.id).exists()?;
        Ok(if is_gone { Kept::Gone { requests } } else { Kept::Whole })
    }

    fn follow(&mut self, event: &Event) -> std::result::Result<(), String> {
        let wrong = |step: Step| format!("{} cannot follow {step:?} of {}", event.name(), self.chunk.id);
        match (self.step, event) {
            (Step::Cut, Event::Uploaded { file_id, .. }) => {
                check_lengths([file_id])?;
                self.file_id = Some(file_id.clone());
                self.step = Step::Uploaded;
            }
            (Step::Uploaded, Event::Intent { attempt, .. }) => {
                self.attempt = *attempt;
                self.step = Step::Intended;
            }
            (Step::Intended, Event::Refused { why, .. }) => {
                self.trouble = Some(kept(why));
                self.settle(Step::Uploaded);
            }
            (Step::Intended, Event::Unclear { why, status, made, .. }) => {
                self.trouble = Some(kept(why));
                self.unclear = Some(Unclear { why: kept(why), status: *status, made: *made });
            }
            (Step::Intended | Step::Ended, Event::Held { why, .. }) => {
                self.trouble = Some(kept(why));
                self.held = true;
            }
            (Step::Uploaded | Step::Intended, Event::Lost { why, .. }) => {
                self.trouble = Some(kept(why));
                self.lost += u32::from(self.step == Step::Intended);
                self.file_id = None;
                self.settle(Step::Cut);
            }
            (Step::Ended, Event::Lost { why, .. }) if self.held => {
                self.trouble = Some(kept(why));
                if self.given_up.len() >= MOST_GIVEN_UP {
                    return Err(format!("its results were given up {MOST_GIVEN_UP} times"));
                }
                self.given_up.extend(self.batch_id.take());
                (self.file_id, self.end, self.missing) = (None, None, None);
                self.settle(Step::Cut);
            }
            // A batch of an earlier create that counted as lost, or of another copy of the directory, may be listed before
            // the next one is sent.
            (Step::Intended, Event::Created { batch_id, adopted, file_id, .. })
            | (Step::Cut | Step::Uploaded, Event::Created { batch_id, adopted: adopted @ true, file_id, .. }) => {
                check_lengths([batch_id].into_iter().chain(file_id))?;
                self.batch_id = Some(batch_id.clone());
                self.file_id = file_id.clone().or(self.file_id.take());
                self.adopted = *adopted;
                self.cancelling = false;
                self.trouble = None;
                self.settle(Step::Created);
            }
            (Step::Created, Event::Full { why, .. }) => {
                self.trouble = Some(kept(why));
                (self.batch_id, self.file_id) = (None, None);
                self.step = Step::Cut;
            }
            (Step::Created, Event::Cancelling { .. }) => self.cancelling = true,
            // Once more, when it had not said where its results are.
            (Step::Created | Step::Ended, Event::Ended { end, .. }) => {
                if self.step == Step::Created {
                    self.missing = None;
                }
                self.end = Some(Box::new(end.kept()?));
                self.step = Step::Ended;
            }
            (Step::Ended, Event::Fetched { rows, .. }) => {
                self.rows = Some(Box::new(rows.clone()));
                self.settle(Step::Fetched);
            }
            (Step::Created | Step::Ended, Event::Missing { why, at, .. }) => {
                self.trouble = Some(kept(why));
                self.missing = self.missing.or(Some(*at));
            }
            (Step::Fetched, Event::Again { .. }) => {
                self.rows = None;
                self.step = Step::Ended;
            }
            (Step::Fetched, Event::Cleaned { .. }) => self.cleaned = true,
            (step, _) => return Err(wrong(step)),
        }
        Ok(())
    }

    /// What became of its create is known now.
    fn settle(&mut self, step: Step) {
        (self.unclear, self.held) = (None, false);
        self.step = step;
    }
}

impl Event {
    fn chunk_id(&self) -> Option<&ChunkId> {
        match self {
            Self::Start { .. }
            | Self::Origin { .. }
            | Self::Place(_)
            | Self::Posts { .. }
            | Self::Cancelled {}
            | Self::Resumed {}
            | Self::Repaired {} => None,
            Self::Chunk { chunk, .. } => Some(&chunk.id),
            Self::Uploaded { chunk, .. }
            | Self::Intent { chunk, .. }
            | Self::Refused { chunk, .. }
            | Self::Unclear { chunk, .. }
            | Self::Held { chunk, .. }
            | Self::Lost { chunk, .. }
            | Self::Full { chunk, .. }
            | Self::Created { chunk, .. }
            | Self::Cancelling { chunk }
            | Self::Ended { chunk, .. }
            | Self::Fetched { chunk, .. }
            | Self::Missing { chunk, .. }
            | Self::Again { chunk }
            | Self::Cleaned { chunk } => Some(chunk),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Origin { .. } => "origin",
            Self::Place(_) => "place",
            Self::Chunk { .. } => "chunk",
            Self::Posts { .. } => "posts",
            Self::Uploaded { .. } => "uploaded",
            Self::Intent { .. } => "intent",
            Self::Refused { .. } => "refused",
            Self::Unclear { .. } => "unclear",
            Self::Held { .. } => "held",
            Self::Lost { .. } => "lost",
            Self::Full { .. } => "full",
            Self::Created { .. } => "created",
            Self::Cancelling { .. } => "cancelling",
            Self::Ended { .. } => "ended",
            Self::Fetched { .. } => "fetched",
            Self::Missing { .. } => "missing",
            Self::Again { .. } => "again",
            Self::Cleaned { .. } => "cleaned",
            Self::Cancelled {} => "cancelled",
            Self::Resumed {} => "resumed",
            Self::Repaired {} => "repaired",
        }
    }
}

/// The journal, open for appending, and its fold.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    pub state: State,
    /// Bytes of a torn last line that were dropped at opening.
    pub torn: u64,
    /// It had begun before it was opened.
    pub resumed: bool,
    /// Why a write or a sync failed. What the file ends with is not known then, and nothing may follow it.
    failed: Option<String>,
}

impl Journal {
    /// For tests, without a lock.
    #[cfg(test)]
    pub fn open(dir: &Path) -> Result<Self> {
        let entry = Folder::open(dir)?.file(FILE);
        Self::of(entry.append()?, entry.path())
    }

    /// Reads what an open file holds, which the caller has locked. `path` is for messages.
    pub fn of(file: File, path: PathBuf) -> Result<Self> {
        let Replay { state, whole, torn, .. } = replay(&file, &path)?.sound()?;
        if torn > 0 && !drill::without(Guard::TornTail) {
            file.set_len(whole)
                .and_then(|()| file.sync_all())
                .map_err(|e| Error::io("cut the torn end of", &path, &e))?;
        }
        let resumed = state.config.is_some();
        Ok(Self { file, path, state, torn, resumed, failed: None })
    }

    /// Writes an event down and syncs it; it is true only when this returns.
    ///
    /// # Errors
    /// An event that cannot follow (a bug), or a disk that refuses.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        if let Some(why) = &self.failed {
            return Err(Error::new(Kind::Io, why));
        }
        self.state.apply(event).map_err(|what| Error::input(format!("{}: {what}", self.path.display())))?;
        let mut line = serde_json::to_vec(event).map_err(|e| Error::io("write", &self.path, &e.into()))?;
        line.push(b'\n');
        let written = self.write(&line, event.name());
        self.failed = written.as_ref().err().map(|error| error.parts().0);
        written
    }

    fn write(&mut self, line: &[u8], event: &str) -> Result<()> {
        drill::step("before", event);
        if drill::tears("within", event) {
            let half = line.get(..line.len() / 2).unwrap_or_default();
            self.file.write_all(half).map_err(|e| Error::io("append to", &self.path, &e))?;
            drill::die();
        }
        self.file.write_all(line).map_err(|e| Error::io("append to", &self.path, &e))?;
        if !drill::without(Guard::JournalSync) {
            self.file.sync_data().map_err(|e| Error::io("sync", &self.path, &e))?;
        }
        drill::step("after", event);
        Ok(())
    }
}

/// The journal, shared by the thread that cuts and the tasks that submit.
///
/// # Errors
/// Another thread died while it held the journal: what it wrote last is not known here.
pub fn locked(journal: &Mutex<Journal>) -> Result<MutexGuard<'_, Journal>> {
    journal.lock().map_err(|_| Error::input("a thread died while it held the journal; run the same command again"))
}

pub fn start(run: String, spooled: bool, config: Config) -> Event {
    Event::Start { version: VERSION, run, spooled, config }
}

/// The directory is a work directory: it has a journal.
pub fn is_in(dir: &Path) -> bool {
    const BEGIN: &[u8] = br#"{"event":"start""#;

    let mut head = [0; BEGIN.len()];
    let path = dir.join(FILE);
    path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == BEGIN
}

/// Reads a journal without touching it; for verbs that take no lock. A torn last line is passed over.
pub fn read(dir: &Path) -> Result<State> {
    examine(dir)?.sound().map(|read| read.state)
}

/// Bytes of the whole lines that a journal has now.
pub fn whole(dir: &Path) -> Result<u64> {
    let entry = Folder::open(dir)?.file(FILE);
    let file = entry.open()?;
    let length = || end_of_last_line(&file, file.metadata()?.len());
    length().map_err(|e| Error::io("read", entry.path(), &e))
}

/// The same, and what is wrong with it.
pub fn examine(dir: &Path) -> Result<Replay> {
    let none = |why: &dyn std::fmt::Display| {
        Error::input(format!("{} is not a work directory: {why}", dir.display()))
            .fix("name one with -d; `zbatch gen -d DIR posts.jsonl` makes one")
    };
    let entry = Folder::open(dir).map_err(|e| none(&e))?.file(FILE);
    let file = entry.find()?.ok_or_else(|| none(&format_args!("it has no {FILE}")))?;
    replay(&file, &entry.path())
}

/// A journal as it was read.
#[derive(Debug)]
pub struct Replay {
    /// The fold of all events, or of those before the damage.
    pub state: State,
    /// Bytes of whole lines.
    pub whole: u64,
    /// Bytes of a torn last line.
    pub torn: u64,
    /// Names the first line that is not an event, or cannot follow.
    pub damage: Option<Error>,
    /// Bytes of the lines before that one.
    sound: u64,
    /// Where the line of each chunk begins.
    chunks: Vec<u64>,
}

impl Replay {
    fn sound(self) -> Result<Self> {
        match self.damage {
            Some(damage) => Err(damage),
            None => Ok(self),
        }
    }
}

/// Folds the whole lines of a journal.
fn replay(file: &File, path: &Path) -> Result<Replay> {
    let all = file.metadata().map_err(|e| Error::io("look at", path, &e))?.len();
    replay_part(file, path, all)
}

/// The same of its first bytes.
fn replay_part(file: &File, path: &Path, all: u64) -> Result<Replay> {
    let whole = end_of_last_line(file, all).map_err(|e| Error::io("read", path, &e))?;
    let mut reader = file.try_clone().map_err(|e| Error::io("open", path, &e))?;
    reader.seek(SeekFrom::Start(0)).map_err(|e| Error::io("seek in", path, &e))?;
    let input = Input { reader: Box::new(reader.take(whole)), name: path.display().to_string() };
    let mut lines = LineReader::new(input, Shape::Own, LONGEST_EVENT, 0);
    let mut block = Block::default();
    let mut read =
        Replay { state: State::default(), whole, torn: all - whole, damage: None, sound: whole, chunks: Vec::new() };
    // What is wrong, and all that can be read in spite of it.
    let mut damaged: Option<(String, State)> = None;
    while lines.fill(&mut block)? {
        for line in block.lines() {
            let event = serde_json::from_slice(line.bytes).map_err(|e| unreadable(&e));
            let state = damaged.as_mut().map_or(&mut read.state, |(_, beyond)| beyond);
            let followed = event.and_then(|Object(event): Object<Event>| state.apply(&event));
            if let Err(what) = followed
                && damaged.is_none()
            {
                let what = format!("{}, line {}, byte {}: {what}", path.display(), line.number, line.offset);
                read.sound = line.offset;
                damaged = Some((what, read.state.clone()));
            }
            if damaged.is_none() && read.state.jobs.len() > read.chunks.len() {
                read.chunks.push(line.offset);
            }
        }
    }
    read.damage = damaged.map(|(what, beyond)| Error::input(what).fix(way_out(path, &read.state, &beyond)));
    Ok(read)
}

/// Without the list of all events there are.
fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(", expected one of") {
        Some((what, _)) => format!("{what}: this version knows no such event"),
        None => text,
    }
}

/// What can be done about a damaged journal, and what beginning again would cost. `beyond`: with what follows the damage.
fn way_out(path: &Path, sound: &State, beyond: &State) -> String {
    if sound.config.is_none() {
        return "this line names the job, or is of another version of zbatch: put the journal back from a backup"
            .to_owned();
    }
    let paid = beyond.jobs.iter().filter(|job| job.step >= Step::Intended);
    let (batches, rows) = (paid.clone().count(), sum(paid.map(|job| job.chunk.lines)));
    let dir = shell::path(path.parent().unwrap_or(path));
    format!(
        "the journal is damaged, or of another version of zbatch. To go on: zbatch verify --repair -d {dir}, then the same \
         command, which finds the batches in the provider's list. To begin again, in this directory or another, would pay \
         for {} of {} again, or more",
        count(rows, "row"),
        count(batches, "batch")
    )
}

/// Where the line of the first chunk begins that has no batch and whose request file is gone.
fn first_without_requests(dir: &Path, read: &Replay) -> Option<u64> {
    let is_gone = |job: &Job| job.step < Step::Created && !dir.join(&job.chunk.path).exists();
    read.state.jobs.iter().zip(&read.chunks).find(|(job, _)| is_gone(job)).map(|(_, at)| *at)
}

/// Puts the first line that cannot be read, and all that follow, aside as `journal.jsonl.bad-N`; the caller holds the
/// directory's lock. `None`: there is no such line. What follows is known to others: the provider lists the batches,
/// results that are here are taken, and what was cut is cut again.
///
/// # Errors
/// The first line is damaged: nobody knows the job's name any more.
pub fn repair(dir: &Path) -> Result<Option<PathBuf>> {
    let path = dir.join(FILE);
    let file = File::options().read(true).write(true).open(&path).map_err(|e| Error::io("open", &path, &e))?;
    let mut read = replay(&file, &path)?;
    let Some(damage) = read.damage.take() else { return Ok(None) };
    if read.state.config.is_none() {
        return Err(damage);
    }
    let mut sound = read.sound;
    // A chunk is cut again whose request file was not needed any more when the journal had all of its events.
    while let Some(at) = first_without_requests(dir, &read) {
        sound = at;
        read = replay_part(&file, &path, sound)?;
    }
    let free = (1_u32..).map(|n| dir.join(format!("{FILE}{BAD}{n}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| dir.join(format!("{FILE}{BAD}0")));
    let mut copy = AtomicFile::create_private(&aside)?;
    let mut rest = file.try_clone().map_err(|e| Error::io("open", &path, &e))?;
    let copied = rest.seek(SeekFrom::Start(sound)).and_then(|_| std::io::copy(&mut rest, &mut copy));
    copied.map_err(|e| Error::io("write", &aside, &e))?;
    // Before the journal forgets it.
    copy.commit()?;
    // Whatever ends this process, the journal is damaged still, or says that it was repaired.
    let mut line = serde_json::to_vec(&Event::Repaired {}).map_err(|e| Error::io("write", &path, &e.into()))?;
    line.push(b'\n');
    let end = sound + line.len() as u64;
    let written = file.write_all_at(&line, sound).and_then(|()| file.sync_all());
    let cut = written.and_then(|()| file.set_len(end)).and_then(|()| file.sync_all());
    cut.map_err(|e| Error::io("cut the damaged end of", &path, &e))?;
    Ok(Some(aside))
}

fn end_of_last_line(mut file: &File, len: u64) -> std::io::Result<u64> {
    let start = len.saturating_sub(LONGEST_EVENT);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    // No more than that: somebody may be appending.
    #[expect(clippy::disallowed_methods, reason = "at most LONGEST_EVENT bytes")]
    file.take(len - start).read_to_end(&mut tail)?;
    Ok(memchr::memrchr(b'\n', &tail).map_or(if start == 0 { 0 } else { len }, |at| start + at as u64 + 1))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn config() -> Config {
        Config {
            input: "posts".to_owned(),
            analyses: vec![("a".to_owned(), "f".to_owned())],
            model: "m".to_owned(),
            multimodal_model: "v".to_owned(),
            temperature: "0.7".to_owned(),
            provider: "zhipu".to_owned(),
            emulate: false,
            max_lines: 10,
            max_bytes: 1000,
            start_index: 0,
            missing: false,
            skip: None,
            image_urls: ImageUrls::All,
            upstream: None,
        }
    }

    #[test]
    fn r11_8_the_server_may_change_until_a_create_is_billed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(dir.path()).expect("opened");
        let at = |origin: &str| Event::Origin { origin: origin.to_owned() };
        let is_intent = |event: &Event| matches!(event, Event::Intent { .. });
        let intent = events().iter().position(is_intent).expect("an intent");
        journal.append(&events()[0]).expect("follows");
        for origin in ["https://a", "https://b"] {
            journal.append(&at(origin)).expect("nothing was created");
        }
        events()[1..=intent].iter().for_each(|event| journal.append(event).expect("follows"));
        assert!(journal.append(&at("https://a")).is_err(), "the batch is at b");
        journal.append(&at("https://b")).expect("the same");
        assert_eq!(read(dir.path()).expect("read").origin.as_deref(), Some("https://b"));
    }

    fn events() -> Vec<Event> {
        let id: ChunkId = "a_batch_part1".parse().expect("a chunk");
        let chunk = Chunk {
            id: id.clone(),
            path: "requests/a_batch_part1.jsonl".to_owned(),
            analysis: "a".to_owned(),
            model: "m".to_owned(),
            lines: 2,
            bytes: 20,
            first_index: 0,
            last_index: 1,
            blake3: "00".to_owned(),
        };
        let input = InputMark { posts: 2, blake3: "11".to_owned() };
        let chunk_id = || id.clone();
        vec![
            start("r".to_owned(), false, config()),
            Event::Chunk { chunk, input: input.clone() },
            Event::Posts { good: 2, input },
            Event::Uploaded { chunk: chunk_id(), file_id: "f1".to_owned() },
            Event::Intent { chunk: chunk_id(), file_id: "f1".to_owned(), attempt: 1, blake3: "00".to_owned() },
            Event::Lost { chunk: chunk_id(), why: "reset".to_owned() },
            Event::Uploaded { chunk: chunk_id(), file_id: "f2".to_owned() },
            Event::Intent { chunk: chunk_id(), file_id: "f2".to_owned(), attempt: 2, blake3: "00".to_owned() },
            Event::Created { chunk: chunk_id(), batch_id: "b".to_owned(), adopted: true, file_id: None },
            Event::Ended { chunk: chunk_id(), end: BatchEnd { status: "completed".to_owned(), ..Default::default() } },
            Event::Fetched { chunk: chunk_id(), rows: RowBalance { output: 2, ..Default::default() } },
            Event::Cleaned { chunk: chunk_id() },
        ]
    }

    #[test]
    fn s3_a_journal_cut_anywhere_opens_as_its_whole_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(dir.path()).expect("new");
        for event in events() {
            journal.append(&event).expect("follows");
        }
        let text = crate::lines::input::read_small(&dir.path().join(FILE), 1 << 20).expect("small");
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        // Around each line's end, and here and there within: every case costs a dozen syncs.
        for cut in (0..=text.len()).filter(|cut| cut % 37 == 0 || ends.iter().any(|end| cut.abs_diff(*end) <= 1)) {
            let dir = tempfile::tempdir().expect("a directory");
            crate::lines::output::write_whole(&dir.path().join(FILE), &text.as_bytes()[..cut]).expect("written");
            let whole = text.as_bytes()[..cut].iter().filter(|b| **b == b'\n').count();
            let mut journal = Journal::open(dir.path()).expect("opens");
            assert_eq!(journal.torn > 0, cut > 0 && text.as_bytes()[cut - 1] != b'\n', "{cut}");
            for event in events().iter().skip(whole) {
                journal.append(event).expect("goes on where it stopped");
            }
            let job = &journal.state.jobs[0];
            assert_eq!((job.step, job.batch_id.as_deref(), job.attempt), (Step::Fetched, Some("b"), 2));
        }
    }

    /// `status` and `verify` read while somebody appends: more may be there than the length that was asked for.
    #[test]
    fn r3_the_last_line_is_looked_for_in_what_was_there() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"{}\n{\n{}\n").expect("written");
        for (length, end) in [(0, 0), (1, 0), (3, 3), (4, 3), (5, 5), (8, 8)] {
            assert_eq!(end_of_last_line(&file, length).expect("read"), end, "{length}");
        }
    }

    #[test]
    fn s3_damage_elsewhere_is_refused_by_line_and_offset() {
        for bad in ["nonsense", "{\"event\":\"dance\"}", "{\"event\":\"cleaned\",\"chunk\":\"a_batch_part9\"}"] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut journal = Journal::open(dir.path()).expect("new");
            journal.append(&events()[0]).expect("follows");
            let first = crate::lines::input::read_small(&dir.path().join(FILE), 1 << 20).expect("small");
            crate::lines::output::write_whole(&dir.path().join(FILE), format!("{first}{bad}\n").as_bytes())
                .expect("ok");
            let error = Journal::open(dir.path()).expect_err("refused").to_string();
            assert!(error.contains(&format!("line 2, byte {}", first.len())), "{error}");
        }
    }

    #[test]
    fn s2_nothing_follows_a_failed_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(dir.path()).expect("new");
        let good = std::mem::replace(&mut journal.file, File::open(dir.path().join(FILE)).expect("to read"));
        assert_eq!(journal.append(&events()[0]).expect_err("not to write").kind(), Kind::Io);
        journal.file = good;
        assert_eq!(journal.append(&events()[1]).expect_err("not any more").kind(), Kind::Io);
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).expect("there").len(), 0);
    }

    #[test]
    fn a_step_that_cannot_follow_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(dir.path()).expect("new");
        let events = events();
        journal.append(&events[0]).expect("follows");
        journal.append(&events[1]).expect("follows");
        assert!(journal.append(&events[4]).is_err(), "an intent without an upload");
        let batch = |adopted| Event::Created {
            chunk: "a_batch_part1".parse().expect("a chunk"),
            batch_id: "b".to_owned(),
            adopted,
            file_id: None,
        };
        assert!(journal.append(&batch(false)).is_err(), "a batch without an intent");
        assert!(journal.append(&events[1]).is_err(), "the same chunk twice");
        assert_eq!(journal.state.spent(), (0, 0));
        journal.append(&batch(true)).expect("another copy of the directory made it");
        assert_eq!(journal.state.spent(), (1, 2), "caps count it all the same");
    }

    #[test]
    fn differences_are_named() {
        let there = config();
        assert_eq!(there.difference(&there), None);
        let now = Config { max_lines: 11, ..config() };
        assert_eq!(there.difference(&now).as_deref(), Some("its `max_lines` is 10; now it is 11"));
        let now = Config { analyses: vec![("a".to_owned(), "g".to_owned())], ..config() };
        assert!(there.difference(&now).expect("one").contains("`a` has changed"));
        let now = Config { input: "requests".to_owned(), analyses: Vec::new(), ..config() };
        assert_eq!(there.difference(&now).as_deref(), Some("it was cut from posts; now requests are given"));
    }
}
