//! A batch as a server describes it. The reading is tolerant because servers differ: only id and status are needed; null, `""`
//! and absent are alike; times come in seconds or milliseconds.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

use super::{
    BatchId, Dialect, FileId, Key,
    error::{harmless, harmless_message, says_full_queue},
    ids::parse_id,
};

/// The metadata key under which a batch carries the mark of the work directory and the chunk that it was made for.
pub const MARK: &str = "zbatch";
/// Above this a time is in milliseconds; in seconds it would be the year 5138.
const SECONDS_END: u64 = 100_000_000_000;
/// Errors of a batch that are kept.
const ERRORS_KEPT: usize = 20;
/// Errors that name a line and are kept; all of them go into one event of the journal.
const LINES_KEPT: usize = 1000;
const LINE_WHY_CHARS: usize = 120;
const STATUS_CHARS: usize = 40;
/// Metadata holds 16 pairs of at most 64 and 512 characters. Of larger metadata this many pairs and bytes are kept.
const MAX_PAIRS: usize = 64;
const MAX_PAIR_BYTES: usize = 4096;

/// A batch as the server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub id: BatchId,
    pub status: BatchStatus,
    pub input_file_id: Option<FileId>,
    pub output_file_id: Option<FileId>,
    pub error_file_id: Option<FileId>,
    /// Unix milliseconds.
    pub created_at: Option<u64>,
    /// Unix milliseconds.
    pub completed_at: Option<u64>,
    pub request_counts: RequestCounts,
    /// As the server gave it: compare it, do not show it.
    pub metadata: BTreeMap<String, String>,
    /// Why the input did not validate. These texts may be shown.
    pub errors: Vec<String>,
    /// Lines of the input, from 1, that did not validate, and why. These texts may be shown.
    pub refused_lines: Vec<(u64, String)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchStatus {
    Validating,
    InProgress,
    /// All requests are done and results are being written: the batch has not ended yet.
    Finalizing,
    Completed,
    /// The input did not validate.
    Failed,
    /// It did not end in time; the provider keeps the finished requests.
    Expired,
    Cancelling,
    Cancelled,
    /// A word that is not known: the batch counts as running. The word may be shown.
    Unknown(String),
}

impl BatchStatus {
    fn parse(word: &str, dialect: &Dialect, key: &Key) -> Self {
        let lower = word.trim().to_ascii_lowercase();
        match lower.as_str() {
            "validating" => Self::Validating,
            "in_progress" => Self::InProgress,
            "finalizing" => Self::Finalizing,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "expired" => Self::Expired,
            "cancelling" | "canceling" => Self::Cancelling,
            "cancelled" | "canceled" => Self::Cancelled,
            own if dialect.running_words.contains(&own) => Self::InProgress,
            _ => Self::Unknown(harmless(key, word, STATUS_CHARS)),
        }
    }

    /// The batch changes no more.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Validating => "validating",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Unknown(word) => word,
        }
    }
}

impl fmt::Display for BatchStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Batch {
    /// `None`: there is no readable id or status.
    pub(super) fn parse(body: &Value, dialect: &Dialect, key: &Key) -> Option<Self> {
        let body = unwrap_object(body);
        let file = |name: &str| parse_id(body.get(name), key);
        let time = |name: &str| body.get(name).and_then(number).map(|t| if t > SECONDS_END { t } else { t * 1000 });
        let counts = body.get("request_counts");
        let count = |name: &str| {
            // The documentation shows the counts at the top level.
            counts.and_then(|counts| counts.get(name)).or_else(|| body.get(name)).and_then(number).unwrap_or(0)
        };
        Some(Self {
            id: parse_id(body.get("id"), key)?,
            status: BatchStatus::parse(body.get("status")?.as_str()?, dialect, key),
            input_file_id: file("input_file_id"),
            output_file_id: file("output_file_id"),
            error_file_id: file("error_file_id"),
            created_at: time("created_at"),
            completed_at: time("completed_at"),
            request_counts: RequestCounts {
                total: count("total"),
                completed: count("completed"),
                failed: count("failed"),
            },
            metadata: metadata(body.get("metadata")),
            errors: errors(body.get("errors"), key),
            refused_lines: refused_lines(body.get("errors"), key),
        })
    }

    /// The batch ended before any of its requests ran, because the account's queue was full. The same file may be sent again.
    pub fn found_full_queue(&self) -> bool {
        let ran = self.request_counts.completed > 0 || self.request_counts.failed > 0;
        let has_files = self.output_file_id.is_some() || self.error_file_id.is_some();
        self.status == BatchStatus::Failed && !ran && !has_files && self.errors.iter().any(|why| says_full_queue(why))
    }
}

/// The object itself, where a server wraps it.
pub(super) fn unwrap_object(body: &Value) -> &Value {
    if body.get("id").is_some_and(Value::is_string) {
        return body;
    }
    ["data", "job"].iter().filter_map(|key| body.get(*key)).find(|inner| inner.is_object()).unwrap_or(body)
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn metadata(value: Option<&Value>) -> BTreeMap<String, String> {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .filter(|(name, value)| name.len() + value.len() <= MAX_PAIR_BYTES)
        .take(MAX_PAIRS)
        .collect()
}

/// `{"data":[{"code","line","message"}]}`, a bare list, or a text.
fn errors(value: Option<&Value>, key: &Key) -> Vec<String> {
    let Some(value) = value else { return Vec::new() };
    let list = value.get("data").unwrap_or(value);
    let one = |error: &Value| {
        let line = error.get("line").and_then(number).map(|line| format!("line {line}: ")).unwrap_or_default();
        harmless_message(key, &format!("{line}{}", code_and_message(error)))
    };
    match list {
        Value::Array(list) => list.iter().take(ERRORS_KEPT).map(one).filter(|text| !text.is_empty()).collect(),
        Value::Object(_) | Value::String(_) => Some(one(list)).filter(|text| !text.is_empty()).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The errors that name a line of the input.
fn refused_lines(value: Option<&Value>, key: &Key) -> Vec<(u64, String)> {
    let list = value.map(|value| value.get("data").unwrap_or(value)).and_then(Value::as_array);
    let named = list.into_iter().flatten().filter_map(|error| {
        let line = error.get("line").and_then(number).filter(|line| *line > 0)?;
        Some((line, harmless(key, &code_and_message(error), LINE_WHY_CHARS)))
    });
    named.take(LINES_KEPT).collect()
}

/// `code C: MESSAGE` of an error object, or of a text in its place.
fn code_and_message(error: &Value) -> String {
    let field = |name: &str| match error.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let code = field("code").map(|code| format!("code {code}: ")).unwrap_or_default();
    let message = field("message").unwrap_or_else(|| error.as_str().unwrap_or_default().to_owned());
    format!("{code}{message}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(provider: &str, body: &Value) -> Option<Batch> {
        let key = Key::new("some-long-secret-key").expect("a key");
        Batch::parse(body, Dialect::find(provider).expect("known"), &key)
    }

    #[test]
    fn null_empty_and_absent_are_alike() {
        let bare = parse("zhipu", &json!({"id": "b", "status": "validating"})).expect("a batch");
        let nulls = json!({
            "id": "b", "status": "VALIDATING", "output_file_id": null, "error_file_id": "", "input_file_id": null,
            "request_counts": {"total": null, "completed": null, "failed": null}, "metadata": null, "errors": null,
            "created_at": null, "completed_at": null, "news": [1, {"a": 2}],
        });
        assert_eq!(parse("zhipu", &nulls), Some(bare));
        assert_eq!(parse("zhipu", &json!({"id": "b"})), None);
        assert_eq!(parse("zhipu", &json!({"status": "completed"})), None);
        assert_eq!(parse("zhipu", &json!({"id": "", "status": "completed"})), None);
        assert_eq!(parse("zhipu", &json!({"id": 7, "status": "completed"})), None);
        assert_eq!(parse("zhipu", &json!("b")), None);
        assert_eq!(parse("zhipu", &json!({"id": "some-long-secret-key", "status": "completed"})), None);
    }

    #[test]
    fn everything_is_read_where_it_is() {
        let body = json!({"job": {
            "id": "b", "status": "in_queue", "input_file_id": "i", "output_file_id": "o", "error_file_id": "e",
            "created_at": 1_788_419_254, "completed_at": 1_788_419_254_671_u64,
            "request_counts": {"total": 3, "completed": "2", "failed": null},
            "metadata": {"job": "run-7", "part": 1, "none": null},
            "errors": {"object": "list", "data": [
                {"code": "1210", "line": 4, "message": "bad \u{1b} some-long-secret-key"}, {"message": null}]},
        }});
        let batch = parse("siliconflow", &body).expect("a batch");
        assert_eq!(batch.status, BatchStatus::InProgress);
        assert_eq!(batch.created_at, Some(1_788_419_254_000));
        assert_eq!(batch.completed_at, Some(1_788_419_254_671));
        assert_eq!(batch.request_counts, RequestCounts { total: 3, completed: 2, failed: 0 });
        assert_eq!(batch.metadata.get("part").map(String::as_str), Some("1"));
        assert_eq!(batch.metadata.len(), 2);
        let many: BTreeMap<String, String> = (0..1000).map(|n| (n.to_string(), "x".repeat(n * 10))).collect();
        let large = parse("zhipu", &json!({"id": "b", "status": "failed", "metadata": many})).expect("a batch");
        assert_eq!(large.metadata.len(), MAX_PAIRS);
        assert!(large.metadata.values().all(|value| value.len() <= MAX_PAIR_BYTES));
        assert_eq!(batch.errors, ["line 4: code 1210: bad \\u{1b} [key]"]);
        assert_eq!(batch.refused_lines, [(4, "code 1210: bad \\u{1b} [key]".to_owned())]);
        assert_eq!(batch.error_file_id.map(|id| id.to_string()).as_deref(), Some("e"));
    }

    /// Seen in reports of OpenAI's and Azure's batches.
    #[test]
    fn r10_2_a_full_queue_is_told_from_a_bad_input() {
        let failed = |errors: Value| {
            parse("openai", &json!({"id": "b", "status": "failed", "errors": {"object": "list", "data": [errors]}}))
                .expect("a batch")
        };
        for (code, message, full) in [
            (
                "token_limit_exceeded",
                "Enqueued token limit reached for gpt-4o in organization org-x. Limit: 90,000 enqueued tokens. Please try again once some in_progress batches have been completed.",
                true,
            ),
            ("x", "The number of enqueued tokens has surpassed the configured limit of 30K for the deployment", true),
            ("x", "Enqueued request limit reached for text-embedding-3-small", true),
            ("too_many_tasks", "", true),
            ("invalid_json_line", "This line is not parseable as valid JSON.", false),
            ("context_length_exceeded", "the token limit of a request", false),
        ] {
            let errors = json!({"code": code, "message": message, "line": null, "param": null});
            assert_eq!(failed(errors).found_full_queue(), full, "{code}: {message}");
        }
        let ran = json!({"id": "b", "status": "failed", "request_counts": {"completed": 1},
            "errors": {"data": [{"code": "token_limit_exceeded"}]}});
        assert!(!parse("openai", &ran).expect("a batch").found_full_queue(), "some of it ran, and is billed");
    }

    #[test]
    fn an_unknown_status_runs_on() {
        for (word, terminal) in [
            ("Completed", true),
            ("FAILED", true),
            ("expired", true),
            ("canceled", true),
            ("finalizing", false),
            ("cancelling", false),
            ("paused\u{7}", false),
            ("", false),
        ] {
            let batch = parse("zhipu", &json!({"id": "b", "status": word})).expect("a batch");
            assert_eq!(batch.status.is_terminal(), terminal, "{word}");
            assert!(!batch.status.as_str().contains('\u{7}'));
        }
    }
}
