//! What the account's list of batches shows of this work directory: the mark by which a batch is recognised, whether a
//! listing can prove that there is none, and the batches that the journal lacks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use crate::{
    flow::chunks::Chunk,
    journal::State,
    provider::{Batch, BatchId, BatchStatus, FileId, MARK},
};

/// Key of the hash of the chunk's content: another copy of the directory may have cut the same chunk from other posts.
pub(super) const CONTENT: &str = "blake3";
/// Batches of one directory that its journal lacks. A server that shows more makes them up.
const MOST_STRAYS: usize = 100_000;

/// What all attempts of a chunk carry in their metadata, and no other directory's chunk.
pub(super) fn mark(state: &State, chunk: &Chunk) -> String {
    format!("{}{}", mark_prefix(state), chunk.id)
}

fn mark_prefix(state: &State) -> String {
    format!("{}/", state.run)
}

/// A batch in a listing, as far as it matters to the chunk that it may be of.
#[derive(Clone, Debug)]
pub(super) struct Sighted {
    pub id: BatchId,
    pub file: Option<FileId>,
    /// Requests, if the list says how many.
    lines: u64,
    content: Option<blake3::Hash>,
    created_at: Option<u64>,
    /// It did not validate, and nothing of it ran.
    pub failed: bool,
    cancelled: bool,
    /// It can be cancelled.
    pub is_live: bool,
}

impl Sighted {
    pub fn of(batch: &Batch) -> Self {
        let cancelled = matches!(batch.status, BatchStatus::Cancelling | BatchStatus::Cancelled);
        Self {
            id: batch.id.clone(),
            file: batch.input_file_id.clone(),
            lines: batch.request_counts.total,
            content: batch.metadata.get(CONTENT).and_then(|hash| blake3::Hash::from_hex(hash).ok()),
            created_at: batch.created_at,
            failed: batch.status == BatchStatus::Failed,
            cancelled,
            is_live: !cancelled && !batch.status.is_terminal(),
        }
    }

    /// Its input may be this chunk's. Batches of earlier versions do not carry the hash.
    pub fn may_hold(&self, chunk: &Chunk) -> bool {
        match self.content {
            Some(content) => blake3::Hash::from_hex(&chunk.blake3).is_ok_and(|of_chunk| of_chunk == content),
            None => self.lines == 0 || self.lines == chunk.lines,
        }
    }
}

/// The batch to keep first: one that ran, or may still run, before one that was cancelled, and the oldest of those.
pub(super) fn best_first(found: &mut [Sighted]) {
    found.sort_by_key(|batch| (batch.failed, batch.cancelled, batch.created_at, batch.id.to_string()));
}

/// Whether a listing can show our batches: it does if it shows one that we know of with its input file or mark. Where we
/// know of none yet, objects that have such fields are enough, and so is an empty listing.
#[derive(Debug)]
pub(super) struct Evidence {
    /// Input file and mark of each batch that we know of.
    known: HashMap<BatchId, (Option<FileId>, String)>,
    /// A batch of this directory was found in a listing before.
    proven: Cell<bool>,
    any: Cell<bool>,
    traceable: Cell<bool>,
}

impl Evidence {
    pub fn of(state: &State) -> Self {
        let known = state
            .jobs
            .iter()
            .filter_map(|job| Some((job.batch()?.clone(), (job.file().cloned(), mark(state, &job.chunk)))));
        let (any, traceable) = (Cell::new(false), Cell::new(false));
        Self { known: known.collect(), proven: Cell::new(state.was_listed), any, traceable }
    }

    pub fn look_at(&self, batch: &Batch) {
        let (file, mark) = (batch.input_file_id.as_ref(), batch.metadata.get(MARK));
        self.any.set(true);
        self.traceable.set(self.traceable.get() || file.is_some() || mark.is_some());
        if let Some((known_file, known_mark)) = self.known.get(&batch.id) {
            let same = file.is_some() && file == known_file.as_ref() || mark == Some(known_mark);
            self.proven.set(self.proven.get() || same);
        }
    }

    pub fn shows_ours(&self) -> bool {
        self.proven.get() || self.known.is_empty() && (!self.any.get() || self.traceable.get())
    }

    /// The listing did not show one of the batches that the journal knows.
    pub fn hides_ours(&self) -> bool {
        !self.known.is_empty() && !self.shows_ours()
    }
}

/// Batches that were made of this directory's chunks and are not in its journal: the directory was copied, or an older copy
/// of it was put back.
#[derive(Debug, Default)]
pub(super) struct Strays(HashMap<String, Vec<Sighted>>);

impl Strays {
    /// Those of a chunk, the one to keep first.
    pub fn of(&self, chunk: &Chunk) -> Vec<Sighted> {
        let of_chunk = self.0.get(&chunk.id.to_string()).into_iter().flatten();
        let mut found: Vec<Sighted> = of_chunk.filter(|batch| batch.may_hold(chunk)).cloned().collect();
        best_first(&mut found);
        found
    }
}

/// Gathers [`Strays`] from a listing, page by page.
#[derive(Debug)]
pub(super) struct StraySearch {
    pub evidence: Evidence,
    /// What the marks of this directory's batches begin with.
    prefix: String,
    /// Chunks by the uploaded file that no create of this journal has used.
    uploaded: HashMap<FileId, String>,
    given_up: Vec<BatchId>,
    found: RefCell<Strays>,
    count: Cell<usize>,
}

impl StraySearch {
    pub fn of(state: &State) -> Self {
        let uploaded = state.jobs.iter().filter(|job| job.batch().is_none());
        let given_up = state.jobs.iter().flat_map(|job| job.given_up.iter().cloned());
        Self {
            evidence: Evidence::of(state),
            prefix: mark_prefix(state),
            uploaded: uploaded.filter_map(|job| Some((job.file()?.clone(), job.chunk.id.to_string()))).collect(),
            given_up: given_up.collect(),
            found: RefCell::default(),
            count: Cell::new(0),
        }
    }

    pub fn look_at(&self, batch: &Batch) {
        self.evidence.look_at(batch);
        let by_mark = batch.metadata.get(MARK).and_then(|mark| mark.strip_prefix(&self.prefix));
        let by_file = || Some(self.uploaded.get(batch.input_file_id.as_ref()?)?.as_str());
        let Some(chunk) = by_mark.or_else(by_file) else { return };
        let sighted = Sighted::of(batch);
        let is_known = self.evidence.known.contains_key(&batch.id) || self.given_up.contains(&batch.id);
        // A failed batch did nothing and cost nothing.
        if is_known || sighted.failed || self.is_full() {
            return;
        }
        self.count.set(self.count.get() + 1);
        self.found.borrow_mut().0.entry(chunk.to_owned()).or_default().push(sighted);
    }

    /// The list shows more of them than one directory can have.
    pub fn is_full(&self) -> bool {
        self.count.get() >= MOST_STRAYS
    }

    pub fn into_found(self) -> Strays {
        self.found.into_inner()
    }
}
