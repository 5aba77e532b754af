//! Uploads a file of request lines.

use http::Method;

use super::{
    ApiError, Client, FileId,
    batch::unwrap_object,
    client::{Payload, unreadable},
    error::UPLOAD,
    ids::parse_id,
};
use crate::folder::Entry;

impl Client {
    /// Streams a file of request lines to the provider; `file_name` ends in `.jsonl`.
    pub async fn upload(&self, file: &Entry, file_name: &str) -> Result<FileId, ApiError> {
        self.repeat(|| async {
            let body = self.ask(UPLOAD, Method::POST, "files", Payload::File(file, file_name)).await?;
            let id = parse_id(unwrap_object(&body).get("id"), &self.0.key);
            id.ok_or_else(|| unreadable(UPLOAD, "no file id in the answer"))
        })
        .await
    }
}
