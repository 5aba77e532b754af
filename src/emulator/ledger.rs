//! The accountant: every accepted create, by the content of its input. Read from a running server at
//! `GET /__emulator/ledger`, or from its state directory, where it is a fold of the state log.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    log,
    state::{Fate, Metadata, Millis, State},
};
use crate::error::Result;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// In the order in which they were accepted.
    pub creates: Vec<Entry>,
    /// Creates by the hash of their input: more than one is money spent twice.
    pub by_content: BTreeMap<String, u64>,
    /// Rows that a model answered.
    pub requests_billed: u64,
    pub uploads: u64,
    /// Files that a client deleted.
    pub deletes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub batch_id: String,
    pub input_blake3: String,
    pub lines: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<String>,
    pub metadata: Option<Metadata>,
    /// Milliseconds.
    pub created_at: Millis,
}

impl Ledger {
    pub fn of(state: &State) -> Self {
        let mut ledger = Self { uploads: state.uploads, deletes: state.deletes, ..Self::default() };
        // A batch that found the queue full ran nothing and cost nothing.
        for batch in state.batches().iter().filter(|batch| batch.create.fate != Fate::Full) {
            *ledger.by_content.entry(batch.blake3.clone()).or_default() += 1;
            ledger.requests_billed += batch.work.as_ref().map_or(0, |work| work.completed);
            ledger.creates.push(Entry {
                batch_id: batch.id.clone(),
                input_blake3: batch.blake3.clone(),
                lines: batch.lines,
                analysis: batch.analysis.clone(),
                metadata: batch.create.metadata.clone(),
                created_at: batch.at,
            });
        }
        ledger
    }
}

/// The ledger of a state directory, whether its server runs or not.
pub fn read(state_dir: &Path) -> Result<Ledger> {
    log::read(state_dir).map(|state| Ledger::of(&state))
}
