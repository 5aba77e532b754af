//! The two shapes of the API that are served: Zhipu's under `/api/paas/v4`, OpenAI's under `/v1`. One store of
//! files and batches is behind both; a dialect says what is accepted and how it is shown.

use serde_json::{Map, Value, json};

use super::{
    faults::FaultPlan,
    state::{Batch, Fate, Millis, Purpose, Status, StoredFile},
};
use crate::error::{Error, Kind};

/// Models that Zhipu takes in batches.
const ZHIPU_MODELS: [&str; 24] = [
    "glm-5.1",
    "glm-5-turbo",
    "glm-4",
    "glm-4-0520",
    "glm-4-plus",
    "glm-4-plus-0111",
    "glm-4-long",
    "glm-4-air",
    "glm-4-air-0111",
    "glm-4-air-250414",
    "glm-4-flash",
    "glm-4-flashx-250414",
    "glm-3-turbo",
    "glm-4v",
    "glm-4v-plus",
    "glm-4v-plus-0111",
    "glm-5v-turbo",
    "cogview-3",
    "cogview-3-plus",
    "cogview-4-250304",
    "embedding-2",
    "embedding-3",
    "cogvideox",
    "cogvideox-2",
];
const MB: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Zhipu,
    OpenAi,
}

/// A refusal: HTTP status, business code, message.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// A parameter is wrong.
    pub fn parameter(message: impl Into<String>) -> Self {
        Self::new(400, "1210", message)
    }

    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(404, "1210", format!("there is no {what} `{id}`"))
    }

    /// The server itself is in trouble.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "500", message)
    }

    /// For an error of our own.
    pub fn of(error: &Error) -> Self {
        if error.kind() == Kind::Io { Self::disk(error.line()) } else { Self::internal(error.line()) }
    }

    /// The server's disk is full or broken. The client need not try again: of the embedded server it is the same disk.
    pub fn disk(message: impl Into<String>) -> Self {
        Self::new(507, "507", message)
    }
}

impl Dialect {
    pub fn base(self) -> &'static str {
        match self {
            Self::Zhipu => "/api/paas/v4",
            Self::OpenAi => "/v1",
        }
    }

    /// The endpoint of a batch and the url of its lines.
    pub fn endpoint(self) -> &'static str {
        match self {
            Self::Zhipu => "/v4/chat/completions",
            Self::OpenAi => "/v1/chat/completions",
        }
    }

    pub fn of_endpoint(endpoint: &str) -> Self {
        if endpoint == Self::OpenAi.endpoint() { Self::OpenAi } else { Self::Zhipu }
    }

    pub fn max_bytes(self) -> u64 {
        match self {
            Self::Zhipu => 100 * MB,
            Self::OpenAi => 200 * MB,
        }
    }

    pub fn max_lines(self) -> u64 {
        50_000
    }

    pub fn shortest_id(self) -> usize {
        match self {
            Self::Zhipu => 6,
            Self::OpenAi => 1,
        }
    }

    pub fn allows_model(self, name: &str) -> bool {
        self == Self::OpenAi || ZHIPU_MODELS.contains(&name)
    }

    /// The models that are listed; OpenAI's dialect takes any other too.
    pub fn model_names() -> &'static [&'static str] {
        &ZHIPU_MODELS
    }

    /// OpenAI counts seconds.
    pub fn time(self, at: Millis) -> u64 {
        match self {
            Self::Zhipu => at,
            Self::OpenAi => at / 1000,
        }
    }

    pub fn error(self, refusal: &Refusal, faults: &FaultPlan) -> Value {
        let mut error = match self {
            Self::Zhipu => json!({"code": refusal.code, "message": refusal.message}),
            Self::OpenAi => {
                let (kind, code) = match (refusal.status, refusal.code) {
                    (_, "1113") => ("insufficient_quota", Some("insufficient_quota")),
                    (401, _) => ("invalid_request_error", Some("invalid_api_key")),
                    (429, _) => ("requests", Some("rate_limit_exceeded")),
                    (500.., _) => ("server_error", None),
                    _ => ("invalid_request_error", None),
                };
                json!({"message": refusal.message, "type": kind, "param": null, "code": code})
            }
        };
        if faults.numbers_codes()
            && let Ok(number) = refusal.code.parse::<u32>()
            && let Some(code) = error.get_mut("code")
        {
            *code = json!(number);
        }
        json!({ "error": error })
    }

    pub fn file(self, file: &StoredFile, faults: &FaultPlan) -> Value {
        let purpose = match file.purpose {
            Purpose::Batch => "batch",
            Purpose::BatchOutput => "batch_output",
        };
        let mut object = json!({
            "id": file.id,
            "object": "file",
            "bytes": file.bytes,
            // Files are dated in seconds by both.
            "created_at": file.at / 1000,
            "filename": file.name,
            "purpose": purpose,
        });
        if self == Self::OpenAi
            && let Some(object) = object.as_object_mut()
        {
            object.insert("status".to_owned(), json!("processed"));
        }
        extend(&mut object, faults);
        object
    }

    pub fn batch(self, batch: &Batch, status: &str, done: Option<u64>, faults: &FaultPlan) -> Value {
        let at = |status| json!(batch.moved_at(status).map(|at| self.time(at)));
        let ended = batch.status.is_terminal();
        // Results are announced when they are ready.
        let work = batch.work.as_ref().filter(|_| ended);
        let id = |file: Option<&StoredFile>| json!(file.map(|file| &file.id));
        let counted =
            matches!(batch.status, Status::Finalizing | Status::Completed | Status::Expired | Status::Cancelled);
        let counts = batch.work.as_ref().filter(|_| counted).map(|work| (work.completed, work.failed));
        let (completed, failed) = match (self, counts, done) {
            (_, Some((completed, failed)), _) => (json!(completed), json!(failed)),
            (_, None, Some(done)) => (json!(done), json!(0)),
            (Self::Zhipu, None, None) => (Value::Null, Value::Null),
            (Self::OpenAi, None, None) => (json!(0), json!(0)),
        };
        let mut errors = Value::Null;
        if batch.status == Status::Failed && batch.create.fate == Fate::Full {
            let words =
                "Enqueued token limit reached. Please try again once some in_progress batches have been completed.";
            errors = json!({"object": "list", "data": [
                {"code": "token_limit_exceeded", "line": null, "message": words, "param": null},
            ]});
        } else if batch.status == Status::Failed {
            errors = json!({"object": "list", "data": [
                {"code": "invalid_input", "line": 1, "message": "the input did not validate", "param": null},
            ]});
        }
        let window = match self {
            Self::Zhipu => Value::Null,
            Self::OpenAi => json!("24h"),
        };
        let expires = match self {
            Self::Zhipu => Value::Null,
            Self::OpenAi => json!(self.time(batch.at) + 86_400),
        };
        let mut object = json!({
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.create.endpoint,
            "input_file_id": batch.create.file,
            "completion_window": window,
            "status": status,
            "output_file_id": id(work.and_then(|work| work.output.as_ref())),
            "error_file_id": id(work.and_then(|work| work.errors.as_ref())),
            "errors": errors,
            "created_at": self.time(batch.at),
            "in_progress_at": at(Status::InProgress),
            "expires_at": expires,
            "finalizing_at": at(Status::Finalizing),
            "completed_at": at(Status::Completed),
            "failed_at": at(Status::Failed),
            "expired_at": at(Status::Expired),
            "cancelling_at": at(Status::Cancelling),
            "cancelled_at": at(Status::Cancelled),
            "request_counts": {"total": batch.lines, "completed": completed, "failed": failed},
            "metadata": batch.create.metadata.as_ref().filter(|_| !faults.drops_metadata(&batch.id)),
        });
        extend(&mut object, faults);
        object
    }
}

fn extend(object: &mut Value, faults: &FaultPlan) {
    if let Some(object) = object.as_object_mut().filter(|_| faults.adds_fields()) {
        let new = json!({"trace": {"id": 17, "tags": [null, "x"]}, "x_reserved": null});
        object.extend(new.as_object().cloned().unwrap_or_else(Map::new));
    }
}
