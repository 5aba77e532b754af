//! The server's state as a pure machine: a fold of [`Event`]s. It does no I/O and reads no clock; time comes in
//! as a value, so that a test (or a later simulator) decides what time it is.
//!
//! An event that cannot follow from what came before is an error, in a replayed log as in a running server.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::text::short;

/// Version of the state log.
pub const VERSION: u32 = 1;
/// A whole, in parts per million.
pub const WHOLE: u32 = 1_000_000;
/// A client that only lists batches, and never polls one by id, sees a stage for at least this long.
const LINGER_MS: u64 = 1_000;

/// Milliseconds since the epoch.
pub type Millis = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Validating,
    InProgress,
    Finalizing,
    Completed,
    Failed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }

    fn may_become(self, next: Self) -> bool {
        use Status::{Cancelled, Cancelling, Completed, Expired, Failed, Finalizing, InProgress, Validating};
        matches!(
            (self, next),
            (Validating, InProgress | Failed | Cancelling)
                | (InProgress, Finalizing | Expired | Cancelling)
                | (Finalizing, Completed | Cancelling)
                | (Cancelling, Cancelled)
        )
    }
}

/// How a batch ends if nobody cancels it; settled when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    #[default]
    Completed,
    Failed,
    /// It fails before anything runs, since the account's queue is full.
    Full,
    /// This share of the lines is done, in parts per million.
    Expired(u32),
    /// The same, and the server cancels it.
    Cancelled(u32),
    /// Every line fails: there is an error file only.
    AllErrors,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Batch,
    BatchOutput,
}

/// A file the server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    pub id: String,
    pub at: Millis,
    pub name: String,
    pub purpose: Purpose,
    pub bytes: u64,
    pub lines: u64,
    pub blake3: String,
    /// The analysis that the first line's custom_id names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<String>,
}

pub type Metadata = BTreeMap<String, String>;

/// What a create asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    pub file: String,
    pub endpoint: String,
    pub auto_delete: bool,
    pub metadata: Option<Metadata>,
    /// Not finished before this time.
    pub due: Millis,
    pub fate: Fate,
}

/// What was made of the lines of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub output: Option<StoredFile>,
    pub errors: Option<StoredFile>,
    pub completed: u64,
    pub failed: u64,
}

/// One record of the state log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first record.
    Opened { version: u32 },
    /// An upload was accepted.
    Stored { file: StoredFile },
    /// A batch was accepted: from here on it is paid for.
    Created { batch: String, at: Millis, create: Create },
    /// A batch changed its status.
    Moved { batch: String, at: Millis, to: Status },
    /// A batch's result files are on disk.
    Worked { batch: String, at: Millis, work: Work },
    /// A file is gone: asked for, or with the end of its batch.
    Deleted { file: String, at: Millis, asked: bool },
}

#[derive(Clone, Debug)]
pub struct Held {
    pub file: StoredFile,
    pub deleted: bool,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub id: String,
    pub at: Millis,
    pub create: Create,
    /// Of the input, which may be deleted by now.
    pub blake3: String,
    pub lines: u64,
    pub analysis: Option<String>,
    pub status: Status,
    /// When it entered each status but the first.
    pub moves: Vec<(Status, Millis)>,
    pub work: Option<Work>,
    /// Share of the lines that is done in the end, in parts per million.
    pub share: u32,
    /// The present status was shown to a poll.
    seen: bool,
    /// Somebody polls it by id.
    polled: bool,
}

impl Batch {
    pub fn moved_at(&self, status: Status) -> Option<Millis> {
        self.moves.iter().find(|(to, _)| *to == status).map(|(_, at)| *at)
    }

    fn entered(&self) -> Millis {
        self.moves.last().map_or(self.at, |(_, at)| *at)
    }
}

/// Who looks at a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Poll,
    List,
}

#[derive(Debug, Default)]
pub struct State {
    opened: bool,
    /// In the order of their arrival.
    files: Vec<Held>,
    batches: Vec<Batch>,
    file_places: HashMap<String, usize>,
    batch_places: HashMap<String, usize>,
    pub uploads: u64,
    pub deletes: u64,
    /// Files that are not deleted, and their bytes.
    pub stored: u64,
    pub stored_bytes: u64,
}

/// `{seconds}_{32 hexadecimal digits}`, as [`super::Emulator`] makes them: it becomes the name of a file.
pub fn is_file_id(id: &str) -> bool {
    id.split_once('_').is_some_and(|(seconds, digest)| {
        is_number(seconds) && digest.len() == 32 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_number(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

impl Event {
    /// Whether the ids that it brings in are of our own shape. Others must be known already.
    pub fn check_ids(&self) -> Result<(), String> {
        let files: Vec<&StoredFile> = match self {
            Self::Stored { file } => vec![file],
            Self::Worked { work, .. } => work.output.iter().chain(&work.errors).collect(),
            Self::Created { batch, .. } if !batch.strip_prefix("batch_").is_some_and(is_number) => {
                return Err(format!("`{}` is no id of a batch", short(batch)));
            }
            _ => Vec::new(),
        };
        match files.iter().find(|file| !is_file_id(&file.id)) {
            Some(file) => Err(format!("`{}` is no id of a file", short(&file.id))),
            None => Ok(()),
        }
    }
}

impl State {
    pub fn is_new(&self) -> bool {
        !self.opened
    }

    pub fn files(&self) -> &[Held] {
        &self.files
    }

    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Batches that have not ended.
    pub fn running(&self) -> usize {
        self.batches.iter().filter(|batch| !batch.status.is_terminal()).count()
    }

    /// A file that is there, not deleted.
    pub fn file(&self, id: &str) -> Option<&StoredFile> {
        self.held(id).filter(|held| !held.deleted).map(|held| &held.file)
    }

    fn held(&self, id: &str) -> Option<&Held> {
        self.file_places.get(id).and_then(|at| self.files.get(*at))
    }

    pub fn batch(&self, id: &str) -> Option<&Batch> {
        self.batch_places.get(id).and_then(|at| self.batches.get(*at))
    }

    fn batch_mut(&mut self, id: &str) -> Option<&mut Batch> {
        self.batch_places.get(id).and_then(|at| self.batches.get_mut(*at))
    }

    /// A deleted file's bytes are kept while a batch still reads them.
    pub fn bytes_needed(&self, file: &str) -> bool {
        self.file(file).is_some()
            || self.batches.iter().any(|batch| batch.create.file == file && !batch.status.is_terminal())
    }

    /// Whether an event may follow.
    pub fn check(&self, event: &Event) -> Result<(), String> {
        if self.is_new() != matches!(event, Event::Opened { .. }) {
            return Err("the log begins with one `opened` event".to_owned());
        }
        match event {
            Event::Opened { version: VERSION } => Ok(()),
            Event::Opened { version } => Err(format!("version {version}; this program writes {VERSION}")),
            Event::Stored { file } if self.held(&file.id).is_some() => Err(format!("file {} is there", file.id)),
            Event::Stored { .. } => Ok(()),
            Event::Created { batch, create, .. } => {
                if self.batch(batch).is_some() {
                    return Err(format!("batch {batch} is there"));
                }
                self.file(&create.file).map(|_| ()).ok_or_else(|| format!("there is no file {}", create.file))
            }
            Event::Moved { batch, to, .. } => {
                let from = self.batch(batch).ok_or_else(|| format!("there is no batch {batch}"))?.status;
                if from.may_become(*to) { Ok(()) } else { Err(format!("batch {batch} goes from {from:?} to {to:?}")) }
            }
            Event::Worked { batch, .. } => {
                let known = self.batch(batch).ok_or_else(|| format!("there is no batch {batch}"))?;
                let again = known.work.is_some() || known.status.is_terminal();
                if again { Err(format!("batch {batch} is worked twice")) } else { Ok(()) }
            }
            Event::Deleted { file, .. } => {
                self.file(file).map(|_| ()).ok_or_else(|| format!("there is no file {file}"))
            }
        }
    }

    /// Takes an event in; nothing changes if it is an error.
    pub fn apply(&mut self, event: Event) -> Result<(), String> {
        self.check(&event)?;
        match event {
            Event::Opened { .. } => self.opened = true,
            Event::Stored { file } => {
                self.uploads += 1;
                self.hold(file);
            }
            Event::Created { batch, at, create } => {
                let Some(input) = self.file(&create.file) else { return Ok(()) };
                let share = match create.fate {
                    Fate::Expired(share) | Fate::Cancelled(share) => share,
                    Fate::Completed | Fate::Failed | Fate::Full | Fate::AllErrors => WHOLE,
                };
                let new = Batch {
                    id: batch.clone(),
                    at,
                    blake3: input.blake3.clone(),
                    lines: input.lines,
                    analysis: input.analysis.clone(),
                    create,
                    status: Status::Validating,
                    moves: Vec::new(),
                    work: None,
                    share,
                    seen: false,
                    polled: false,
                };
                self.batch_places.insert(batch, self.batches.len());
                self.batches.push(new);
            }
            Event::Moved { batch, at, to } => {
                if let Some(batch) = self.batch_mut(&batch) {
                    if to == Status::Cancelling && !matches!(batch.create.fate, Fate::Cancelled(_)) {
                        batch.share = batch.share.min(share_done(batch, at));
                    }
                    batch.status = to;
                    batch.moves.push((to, at));
                    batch.seen = false;
                }
            }
            Event::Worked { batch, work, .. } => {
                for file in work.output.iter().chain(&work.errors) {
                    self.hold(file.clone());
                }
                if let Some(batch) = self.batch_mut(&batch) {
                    batch.work = Some(work);
                }
            }
            Event::Deleted { file, asked, .. } => {
                self.deletes += u64::from(asked);
                if let Some(held) = self.file_places.get(&file).and_then(|at| self.files.get_mut(*at)) {
                    held.deleted = true;
                    self.stored = self.stored.saturating_sub(1);
                    self.stored_bytes = self.stored_bytes.saturating_sub(held.file.bytes);
                }
            }
        }
        Ok(())
    }

    fn hold(&mut self, file: StoredFile) {
        self.stored += 1;
        self.stored_bytes = self.stored_bytes.saturating_add(file.bytes);
        self.file_places.insert(file.id.clone(), self.files.len());
        self.files.push(Held { file, deleted: false });
    }

    /// The status a batch takes now that somebody looks; at most one step, so that each is seen.
    /// `early`: its work runs while it is in progress (a real model answers), not while it is finalized.
    pub fn next_status(&self, id: &str, now: Millis, look: Look, early: bool) -> Option<Status> {
        let batch = self.batch(id)?;
        let shown = match look {
            Look::Poll => batch.seen,
            Look::List => !batch.polled && now >= batch.entered() + LINGER_MS,
        };
        let worked = batch.work.is_some();
        let due = now >= batch.create.due;
        match (batch.status, batch.create.fate) {
            _ if !shown => None,
            (Status::Validating, Fate::Failed | Fate::Full) => Some(Status::Failed),
            (Status::Validating, _) => Some(Status::InProgress),
            (Status::InProgress, Fate::Expired(_)) => (due && worked).then_some(Status::Expired),
            (Status::InProgress, Fate::Cancelled(_)) => due.then_some(Status::Cancelling),
            (Status::InProgress, _) => (due && (worked || !early)).then_some(Status::Finalizing),
            (Status::Finalizing, _) => worked.then_some(Status::Completed),
            (Status::Cancelling, _) => worked.then_some(Status::Cancelled),
            (Status::Completed | Status::Failed | Status::Expired | Status::Cancelled, _) => None,
        }
    }

    /// Somebody was shown the present status.
    pub fn note_look(&mut self, id: &str, look: Look) {
        if let Some(batch) = self.batch_mut(id)
            && look == Look::Poll
        {
            (batch.seen, batch.polled) = (true, true);
        }
    }

    /// The server starts again: whoever polled before it stopped has seen the statuses that the log holds. Without this a
    /// client that starts it anew for every poll would see one status for ever.
    pub fn note_restart(&mut self) {
        self.batches.iter_mut().for_each(|batch| batch.seen = true);
    }

    /// It is time to make the result files of a batch.
    pub fn needs_work(&self, id: &str, now: Millis, early: bool) -> bool {
        let Some(batch) = self.batch(id).filter(|batch| batch.work.is_none()) else { return false };
        match batch.status {
            Status::Finalizing | Status::Cancelling => true,
            Status::Validating => early && !matches!(batch.create.fate, Fate::Failed | Fate::Full),
            Status::InProgress => early || (matches!(batch.create.fate, Fate::Expired(_)) && now >= batch.create.due),
            Status::Completed | Status::Failed | Status::Expired | Status::Cancelled => false,
        }
    }
}

/// How much of a batch is done when it is cancelled, in parts per million.
fn share_done(batch: &Batch, now: Millis) -> u32 {
    match batch.status {
        Status::Validating => 0,
        Status::InProgress => {
            let (passed, whole) = (now.saturating_sub(batch.at), batch.create.due.saturating_sub(batch.at));
            // A batch that takes no time is caught half-way.
            let ppm = (passed.min(whole) * u64::from(WHOLE)).checked_div(whole);
            ppm.and_then(|ppm| u32::try_from(ppm).ok()).unwrap_or(WHOLE / 2)
        }
        _ => WHOLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: &str) -> StoredFile {
        StoredFile {
            id: id.to_owned(),
            at: 0,
            name: "a.jsonl".to_owned(),
            purpose: Purpose::Batch,
            bytes: 1,
            lines: 10,
            blake3: String::new(),
            analysis: None,
        }
    }

    fn created(fate: Fate, due: Millis) -> State {
        let mut state = State::default();
        let create = Create {
            file: "f".to_owned(),
            endpoint: "/v4/chat/completions".to_owned(),
            auto_delete: true,
            metadata: None,
            due,
            fate,
        };
        for event in [
            Event::Opened { version: VERSION },
            Event::Stored { file: stored("f") },
            Event::Created { batch: "b".to_owned(), at: 0, create },
        ] {
            state.apply(event).expect("possible");
        }
        state
    }

    /// Polls at a time, as the server does: move, show.
    fn poll(state: &mut State, now: Millis) -> Status {
        if let Some(to) = state.next_status("b", now, Look::Poll, false) {
            state.apply(Event::Moved { batch: "b".to_owned(), at: now, to }).expect("possible");
        }
        state.note_look("b", Look::Poll);
        if state.needs_work("b", now, false) {
            let work = Work::default();
            state.apply(Event::Worked { batch: "b".to_owned(), at: now, work }).expect("possible");
        }
        state.batch("b").expect("there").status
    }

    #[test]
    fn each_stage_is_seen_once_and_the_end_waits_for_its_time() {
        use Status::{Completed, Finalizing, InProgress, Validating};
        let mut state = created(Fate::Completed, 0);
        let seen: Vec<Status> = (0..5).map(|now| poll(&mut state, now)).collect();
        assert_eq!(seen, [Validating, InProgress, Finalizing, Completed, Completed]);
        let mut state = created(Fate::Completed, 100);
        let seen: Vec<Status> = [0, 1, 99, 100, 101].map(|now| poll(&mut state, now)).to_vec();
        assert_eq!(seen, [Validating, InProgress, InProgress, Finalizing, Completed]);
    }

    #[test]
    fn other_ends() {
        use Status::{Expired, Failed, InProgress, Validating};
        let mut state = created(Fate::Failed, 0);
        assert_eq!([0, 1, 2].map(|now| poll(&mut state, now)), [Validating, Failed, Failed]);
        let mut state = created(Fate::Expired(WHOLE / 4), 0);
        assert_eq!([0, 1, 2, 3].map(|now| poll(&mut state, now)), [Validating, InProgress, Expired, Expired]);
        assert_eq!(state.batch("b").expect("there").share, WHOLE / 4);
    }

    #[test]
    fn a_cancelled_batch_keeps_the_share_of_its_time() {
        let mut state = created(Fate::Completed, 100);
        poll(&mut state, 0);
        poll(&mut state, 1);
        state.apply(Event::Moved { batch: "b".to_owned(), at: 25, to: Status::Cancelling }).expect("possible");
        assert_eq!(state.batch("b").expect("there").share, WHOLE / 4);
        assert_eq!([26, 27].map(|now| poll(&mut state, now)), [Status::Cancelling, Status::Cancelled]);
    }

    #[test]
    fn who_only_lists_sees_the_end_too() {
        let mut state = created(Fate::Completed, 0);
        assert_eq!(state.next_status("b", 10, Look::List, false), None);
        assert_eq!(state.next_status("b", 1_000, Look::List, false), Some(Status::InProgress));
        state.note_look("b", Look::Poll);
        assert_eq!(state.next_status("b", 1_000, Look::List, false), None, "somebody polls by id");
    }

    #[test]
    fn impossible_steps_are_errors() {
        let mut state = created(Fate::Completed, 0);
        let moved = |to| Event::Moved { batch: "b".to_owned(), at: 0, to };
        assert!(state.apply(moved(Status::Completed)).is_err());
        assert!(state.apply(Event::Opened { version: VERSION }).is_err());
        assert!(state.apply(Event::Stored { file: stored("f") }).is_err());
        assert!(state.apply(Event::Deleted { file: "g".to_owned(), at: 0, asked: true }).is_err());
        let deleted = Event::Deleted { file: "f".to_owned(), at: 0, asked: true };
        state.apply(deleted.clone()).expect("possible");
        assert!(state.apply(deleted).is_err());
        assert!(state.file("f").is_none() && state.bytes_needed("f"), "the batch still reads it");
        assert!(State::default().apply(Event::Opened { version: VERSION + 1 }).is_err());
    }
}
