//! Request lines → chunks.

use serde::{Deserialize, Serialize};

use super::ChunkId;

/// A chunk file that is on disk, whole and synced. Printed as one line by `gen -d`, kept in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    #[serde(rename = "chunk")]
    pub id: ChunkId,
    /// Relative to the work directory.
    pub path: String,
    pub analysis: String,
    pub model: String,
    pub lines: u64,
    pub bytes: u64,
    pub first_index: u64,
    pub last_index: u64,
    /// Hash of the file's bytes, in hexadecimal.
    pub blake3: String,
}

/// How far the input had been read when something was written down: a resumed run reads that far again
/// and compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputMark {
    /// Places in the input, faults included.
    pub posts: u64,
    /// Hash of all lines up to there, each with a line feed, in hexadecimal.
    pub blake3: String,
}
