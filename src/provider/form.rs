//! The multipart form of an upload. The file is read while it is sent, with a length that is known before.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use futures::stream::try_unfold;
use reqwest::multipart::{Form, Part};

use super::{
    ApiError, Class,
    error::UPLOAD,
    transport::{Sending, Timeouts},
};
use crate::{
    blocking,
    error::{Error, Result},
    folder::Entry,
};

/// Bytes of the file that are read at a time.
pub(super) const PIECE: usize = 256 << 10;

/// The form with the file, which is opened anew for each try. Each piece that is sent moves the deadline of `sending`.
pub(super) async fn open(
    entry: &Entry,
    file_name: &str,
    timeouts: Timeouts,
    sending: &Arc<Sending>,
) -> Result<Form, ApiError> {
    let opening = entry.clone();
    let open = move || {
        let file = opening.open()?;
        let bytes = file.metadata().map_err(|e| Error::io("look at", opening.path(), &e))?.len();
        Ok::<_, Error>((file, bytes))
    };
    let fail = |e: String| ApiError { sent: false, ..ApiError::new(UPLOAD, Class::Io, e) };
    let (file, bytes) = blocking::run(open).await.map_err(|e| fail(e.to_string()))?;
    let pieces =
        Pieces { file: Arc::new(file), path: entry.path(), left: bytes, timeouts, sending: Arc::clone(sending) };
    let body = reqwest::Body::wrap_stream(try_unfold(pieces, async |mut pieces| {
        Ok::<_, io::Error>(pieces.next().await?.map(|piece| (piece, pieces)))
    }));
    let name: String = file_name.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect();
    let part = Part::stream_with_length(body, bytes).file_name(name).mime_str("application/octet-stream");
    Ok(Form::new().text("purpose", "batch").part("file", part.map_err(|e| fail(e.to_string()))?))
}

/// A file, piece by piece.
struct Pieces {
    file: Arc<File>,
    path: PathBuf,
    /// Bytes that are still to be read.
    left: u64,
    timeouts: Timeouts,
    sending: Arc<Sending>,
}

impl Pieces {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            self.sending.moved(self.timeouts.first_byte_upload);
            return Ok(None);
        }
        let most = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let file = Arc::clone(&self.file);
        let read = blocking::run(move || {
            let mut piece = vec![0; most];
            file.as_ref().read_exact(&mut piece).map(|()| Bytes::from(piece))
        });
        let piece = read.await.inspect_err(|e| {
            let is_short = e.kind() == io::ErrorKind::UnexpectedEof;
            let why = if is_short { "it became shorter".to_owned() } else { e.to_string() };
            self.sending.fail(format!("read {}: {why}", self.path.display()));
        })?;
        self.left -= most as u64;
        self.sending.moved(self.timeouts.idle);
        Ok(Some(piece))
    }
}
