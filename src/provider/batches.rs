//! Creates, looks at and cancels a batch. A create costs money: it is sent once, and its failure says whether there may be a
//! batch ([`CreateError`], `docs/reliability.md` M1).

use http::Method;
use serde_json::{Map, Value, json};

use super::{
    ApiError, Batch, BatchId, Class, Client, CreateError, FileId,
    address::percent_escape,
    client::{Payload, unreadable},
    error,
};
use crate::drill::{self, Guard};

impl Client {
    /// Creates a batch of an uploaded file. The request is sent once, whatever happens.
    pub async fn create(&self, file: &FileId, metadata: &[(&str, String)]) -> Result<Batch, CreateError> {
        const CALL: &str = error::CREATE;
        let body = self.create_body(file, metadata);
        let mut answer = self.ask(CALL, Method::POST, "batches", Payload::Json(&body)).await;
        if drill::without(Guard::CreateOnce) && answer.as_ref().is_err_and(ApiError::is_retryable) {
            answer = self.ask(CALL, Method::POST, "batches", Payload::Json(&body)).await;
        }
        answer
            .and_then(|body| self.read_batch(CALL, &body).map_err(|error| ApiError { made: body.is_object(), ..error }))
            .map_err(|error| self.classify_create(error))
    }

    fn create_body(&self, file: &FileId, metadata: &[(&str, String)]) -> Value {
        let dialect = self.0.dialect;
        let mut body = Map::new();
        body.insert("input_file_id".to_owned(), json!(file.as_str()));
        body.insert("endpoint".to_owned(), json!(dialect.line_url));
        if let Some(window) = dialect.completion_window {
            body.insert("completion_window".to_owned(), json!(window));
        }
        if dialect.sends_auto_delete {
            body.insert("auto_delete_input_file".to_owned(), json!(false));
        }
        if !metadata.is_empty() {
            let metadata: Map<_, _> = metadata.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            body.insert("metadata".to_owned(), Value::Object(metadata));
        }
        Value::Object(body)
    }

    /// Decides whether a create whose reply holds no batch may have made one.
    fn classify_create(&self, error: ApiError) -> CreateError {
        let is_known = error.code.as_deref().is_some_and(|code| self.0.dialect.class_of(code).is_some());
        match error.status {
            _ if !error.sent => CreateError::NotSent(error),
            // A redirect is a no: the call is not repeated at its target.
            Some(300..=399) => CreateError::Refused(error),
            _ if error.made => CreateError::Made(error),
            // The server may have failed after it made the batch, whatever the status.
            _ if error.class == Class::Transient => CreateError::Ambiguous(error),
            Some(400..=499) if error.readable => CreateError::Refused(error),
            Some(400..=499) => CreateError::Denied(error),
            Some(200..=299) if is_known => CreateError::Refused(error),
            _ => CreateError::Ambiguous(error),
        }
    }

    pub async fn batch(&self, id: &BatchId) -> Result<Batch, ApiError> {
        self.ask_batch("look at a batch", Method::GET, &format!("batches/{}", percent_escape(id.as_str()))).await
    }

    /// Asks for the end of a batch. The batch ends later, as `cancelled`.
    pub async fn cancel(&self, id: &BatchId) -> Result<Batch, ApiError> {
        self.ask_batch(error::CANCEL, Method::POST, &format!("batches/{}/cancel", percent_escape(id.as_str()))).await
    }

    async fn ask_batch(&self, call: &'static str, method: Method, path: &str) -> Result<Batch, ApiError> {
        self.repeat(|| async {
            let body = self.ask(call, method.clone(), path, Payload::None).await?;
            self.read_batch(call, &body)
        })
        .await
    }

    fn read_batch(&self, call: &'static str, body: &Value) -> Result<Batch, ApiError> {
        Batch::parse(body, self.0.dialect, &self.0.key).ok_or_else(|| unreadable(call, "no batch in the answer"))
    }
}
