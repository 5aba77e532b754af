//! What `doctor` finds out: each thing once, with what is assumed of it.

use serde::Serialize;
use serde_json::json;

use crate::{error::Result, lines::output::Output, text::escape_control};

/// What is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Key,
    FileListed,
    CreateWithoutInput,
    CreateReply,
    CreateMetadata,
    ListLag,
    ListInput,
    ListMetadata,
    PollMetadata,
    ListOrder,
    Statuses,
    RequestCounts,
    Download,
    InputKept,
    InputDeletedWhileQueued,
    Cancel,
    Deletion,
}

/// In the order in which they are told if nothing is slow; what is assumed, and therefore built on.
const CHECKS: [(Check, &str, &str); 17] = [
    (Check::Key, "key", "it is accepted"),
    (Check::FileListed, "file_listed", "an uploaded file is listed"),
    (Check::CreateWithoutInput, "create_without_input", "a create is refused after its input was deleted"),
    (Check::CreateReply, "create_reply", "it names the input file and a known status"),
    (Check::CreateMetadata, "create_metadata", "the reply to a create shows the metadata"),
    (Check::ListLag, "list_lag", "a new batch is listed within --settle"),
    (Check::ListInput, "list_input", "the listing names the input file of a batch"),
    (Check::ListMetadata, "list_metadata", "the listing shows the metadata"),
    (Check::PollMetadata, "poll_metadata", "a look at a batch shows the metadata"),
    (Check::ListOrder, "list_order", "nothing"),
    (Check::Statuses, "statuses", "known words, `completed` at the end"),
    (Check::RequestCounts, "request_counts", "they say how many requests were done"),
    (Check::Download, "download", "one line with our custom_id and an answer"),
    (Check::InputKept, "input_kept", "the input is kept until we delete it"),
    (Check::InputDeletedWhileQueued, "input_deleted_while_queued", "nothing"),
    (Check::Cancel, "cancel", "a batch that is cancelled at once ends as `cancelled`"),
    (Check::Deletion, "deletion", "deleted files are neither listed nor given out"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    #[serde(rename = "as assumed")]
    AsAssumed,
    #[serde(rename = "differs")]
    Differs,
    /// Nothing is built on it.
    #[serde(rename = "noted")]
    Noted,
    #[serde(rename = "not measured")]
    NotMeasured,
}

impl Verdict {
    pub fn of(holds: bool) -> Self {
        if holds { Self::AsAssumed } else { Self::Differs }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::AsAssumed => "as assumed",
            Self::Differs => "differs",
            Self::Noted => "noted",
            Self::NotMeasured => "not measured",
        }
    }
}

/// Findings go to stdout as they are made: some take hours.
pub struct Findings {
    stdout: Output,
    json: bool,
    told: Vec<(Check, Verdict)>,
}

impl Findings {
    pub fn to_stdout(json: bool) -> Result<Self> {
        Ok(Self { stdout: Output::create(None)?, json, told: Vec::new() })
    }

    /// Nothing was told yet.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Tells it, the first time.
    pub fn tell(&mut self, check: Check, verdict: Verdict, measured: &str) -> Result<()> {
        if self.has(check) {
            return Ok(());
        }
        self.told.push((check, verdict));
        let Some((_, name, assumed)) = CHECKS.iter().find(|(known, ..)| *known == check) else { return Ok(()) };
        let line = if self.json {
            json!({"finding": name, "verdict": verdict, "measured": measured, "assumed": assumed}).to_string()
        } else {
            escape_control(&format!("{:12}  {name:26}  {measured} (assumed: {assumed})", verdict.as_str()))
        };
        self.stdout.put(line.as_bytes())?;
        self.stdout.put(b"\n")?;
        self.stdout.flush()
    }

    fn has(&self, check: Check) -> bool {
        self.told.iter().any(|(told, _)| *told == check)
    }

    /// Names what was not come to.
    pub fn finish(&mut self) -> Result<()> {
        CHECKS.into_iter().try_for_each(|(check, ..)| self.tell(check, Verdict::NotMeasured, "-"))
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        self.told.iter().filter(|(_, told)| *told == verdict).count()
    }
}
