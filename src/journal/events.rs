//! The lines of the journal. Their JSON is a format that stays (`docs/formats.md`): older directories are read for ever.

use serde::{Deserialize, Serialize};

use super::VERSION;
use crate::{
    cli::ImageUrls,
    flow::{
        ChunkId,
        chunks::{Chunk, InputMark},
        rows::RowBalance,
    },
    provider::{BatchId, FileId},
};

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
    /// The server behind the embedded emulator (`--upstream`). All answers of a directory are invented, or all come from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

impl Config {
    /// The first difference, in words: the journal's value and the value now.
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
        // A key that is absent indexes as null.
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
        /// Part of the mark that each batch carries, so that it can be recognised in a listing.
        run: String,
        /// The directory keeps a copy of the input, since the input cannot be read twice (stdin).
        #[serde(default)]
        spooled: bool,
        config: Config,
    },
    Origin {
        origin: String,
    },
    #[serde(rename = "place")]
    Location(Location),
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
        file_id: FileId,
    },
    Intent {
        chunk: ChunkId,
        file_id: FileId,
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
        batch_id: BatchId,
        /// Found in a listing.
        #[serde(default)]
        adopted: bool,
        /// Of an adopted batch: the input file that it names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file_id: Option<FileId>,
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
pub struct Location {
    pub host: String,
    pub device: u64,
    /// The number of the journal's file on its device.
    pub inode: u64,
    /// The number of the directory that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<u64>,
}

impl Location {
    /// The same file. A copy gets another number, and its directory too. The device's number changes at a reboot and from
    /// machine to machine that mounts the same disk, a container has a new host name each time: neither tells a copy.
    pub fn is_same_file(&self, other: &Self) -> bool {
        let same_folder = self.folder.zip(other.folder).is_none_or(|(one, other)| one == other);
        self.inode == other.inode && same_folder
    }
}

/// What the provider said of a terminal batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchEnd {
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_file_id: Option<FileId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_file_id: Option<FileId>,
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
    /// It counts neither a completed nor a failed request.
    pub fn counts_nothing(&self) -> bool {
        self.completed == 0 && self.failed == 0
    }

    /// The result files that it names: output, then error.
    pub fn files(&self) -> [Option<&FileId>; 2] {
        [self.output_file_id.as_ref(), self.error_file_id.as_ref()]
    }
}

/// A line of a chunk file for which the provider refused the whole batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedLine {
    /// From 1.
    pub line: u64,
    pub why: String,
}

pub fn start(run: String, spooled: bool, config: Config) -> Event {
    Event::Start { version: VERSION, run, spooled, config }
}

impl Event {
    /// The chunk that it is about, unless it is about the whole directory.
    pub fn chunk_id(&self) -> Option<&ChunkId> {
        match self {
            Self::Start { .. }
            | Self::Origin { .. }
            | Self::Location(_)
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

    /// Its value of `event` in the file.
    pub fn name(&self) -> String {
        let written = serde_json::to_value(self).unwrap_or_default();
        written.get("event").and_then(|name| name.as_str()).unwrap_or_default().to_owned()
    }
}
