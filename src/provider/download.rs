//! Downloads a file of the provider to a file that appears whole (`docs/reliability.md` N5).
//!
//! A download may be redirected to storage; only the provider itself is sent the key. A download that is cut short is tried
//! again; after [`CUT_TRIES`] cuts the longest one is kept and said to be short.

use std::io::Write as _;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use serde_json::Value;

use super::{
    ApiError, Class, Client, FileId, Transport,
    address::{host, percent_escape, redirected},
    body::BodyError,
    client::{Payload, location},
    error::{self, DOWNLOAD},
    redact::Redactor,
    transport::{Reply, Sending},
};
use crate::{
    blocking,
    error::{Error, Result},
    folder::Entry,
    lines::output::AtomicFile,
    units::count,
};

/// Largest file that is downloaded: 50,000 long answers are a tenth of it.
const MAX_DOWNLOAD: u64 = 8 << 30;
/// A download of at most this many bytes that is one error object is an error.
const ERROR_HEAD: usize = 64 << 10;
/// How often a download may be cut short before the longest one is kept.
const CUT_TRIES: u32 = 3;
/// Redirects of one download, one after the other (`docs/reliability.md` N1).
const MAX_REDIRECTS: u32 = 5;
/// Bytes that are written at a time.
const PIECE: usize = 256 << 10;

/// A file that was downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    pub bytes: u64,
    /// False: every try was cut short, and the longest was kept.
    pub complete: bool,
}

/// A download that failed, and the bytes that came, where they are of use.
struct Cut {
    error: ApiError,
    part: Option<Partial>,
}

impl From<ApiError> for Cut {
    fn from(error: ApiError) -> Self {
        Self { error, part: None }
    }
}

impl Client {
    /// Streams a file of the provider to `to`.
    pub async fn download(&self, file: &FileId, to: &Entry) -> Result<Download, ApiError> {
        let mut tries = self.0.retries.start();
        let mut longest: Option<Partial> = None;
        let mut cuts = 0;
        loop {
            let Cut { error, part } = match self.download_once(file, to).await {
                Ok(whole) => {
                    self.0.waits.note(DOWNLOAD, &Ok(()));
                    return whole.commit(true).await;
                }
                Err(cut) => cut,
            };
            self.0.waits.note(DOWNLOAD, &Err::<(), _>(error.clone()));
            if let Some(part) = part.filter(|part| part.bytes > 0) {
                cuts += 1;
                let longer = match longest.take() {
                    Some(before) if before.bytes >= part.bytes => before,
                    _ => part,
                };
                if cuts >= CUT_TRIES {
                    return longer.commit(false).await;
                }
                longest = Some(longer);
            }
            tries.pause(error).await?;
        }
    }

    async fn download_once(&self, file: &FileId, to: &Entry) -> Result<Partial, Cut> {
        let reply = self.open_download(file).await?;
        let is_page =
            reply.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        if reply.status != StatusCode::OK || is_page {
            return Err(self.read_refusal(DOWNLOAD, reply).await.into());
        }
        let (headers, elsewhere) = (reply.headers.clone(), reply.elsewhere.clone());
        let redactor = match self.0.transport {
            Transport::Http(_) => self.0.key.redactor(),
            // A server in this process was sent nothing that is secret.
            Transport::Direct { .. } => None,
        };
        let mut body = self.open_body(DOWNLOAD, reply, MAX_DOWNLOAD)?;
        let mut part = Partial::create(to.clone(), redactor).await?;
        let end = loop {
            match body.next(PIECE).await {
                Ok(Some(piece)) => part = part.put(piece).await?,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match end {
            Ok(()) => match part.error_object() {
                Some(object) => Err(self.error_in_body(DOWNLOAD, object, &headers, elsewhere.as_deref()).into()),
                None => Ok(part),
            },
            Err(BodyError::Broken(broken)) => {
                let error = self.broken(DOWNLOAD, &broken, elsewhere.as_deref());
                // Half a compressed file is of no use.
                Err(Cut { error, part: body.is_plain().then_some(part) })
            }
            Err(BodyError::Damaged(why)) => {
                let why = format!("the compressed reply is damaged: {why}");
                Err(ApiError::new(DOWNLOAD, Class::Transient, why).into())
            }
            Err(BodyError::TooLarge) => {
                let why = format!("the file is larger than {MAX_DOWNLOAD} bytes, or explodes");
                Err(ApiError::new(DOWNLOAD, Class::Reply, why).into())
            }
        }
    }

    /// The reply to a download, after all redirects.
    async fn open_download(&self, file: &FileId) -> Result<Reply, ApiError> {
        let path = format!("files/{}/content", percent_escape(file.as_str()));
        let mut reply = self.send(DOWNLOAD, Method::GET, &path, Payload::None).await?;
        let mut at = self.0.base.url().clone();
        at.set_path(&format!("{}/{path}", at.path().trim_end_matches('/')));
        let mut redirects = 0;
        while matches!(reply.status.as_u16(), 301..=303 | 307 | 308) {
            at = match location(&reply.headers) {
                Some(location) => redirected(&at, location),
                None => Err(format!("{} sends us elsewhere and does not say where", host(&at))),
            }
            .and_then(|to| match redirects {
                MAX_REDIRECTS => Err(format!("after {MAX_REDIRECTS} redirects we are sent on, to {}", host(&to))),
                _ => Ok(to),
            })
            .map_err(|why| {
                let why = error::harmless_message(&self.0.key, &why);
                ApiError { status: Some(reply.status.as_u16()), ..ApiError::new(DOWNLOAD, Class::Redirect, why) }
            })?;
            redirects += 1;
            let request = self.0.transport.request(Method::GET, at.as_str());
            let place = self.place(&at);
            reply = self.deliver(DOWNLOAD, request, &Sending::within(self.0.timeouts.first_byte), &place).await?;
            reply.elsewhere = Some(place);
        }
        Ok(reply)
    }
}

/// The bytes of a download so far, in a file that has not appeared yet.
struct Partial {
    file: AtomicFile,
    /// A server may echo the key anywhere, and results travel further than messages.
    redactor: Option<Redactor>,
    /// Bytes that came, before the key was taken out.
    bytes: u64,
    /// The beginning, before the key was taken out, while all of it may be one error object.
    head: Vec<u8>,
}

impl Partial {
    async fn create(to: Entry, redactor: Option<Redactor>) -> Result<Self, ApiError> {
        let file = blocking::run(move || AtomicFile::within(&to)).await.map_err(|e| local(&e))?;
        Ok(Self { file, redactor, bytes: 0, head: Vec::new() })
    }

    async fn put(mut self, piece: Bytes) -> Result<Self, ApiError> {
        blocking::run(move || {
            let clean = self.redactor.as_mut().map_or(&piece[..], |redactor| redactor.put(&piece));
            self.file.write_all(clean).map_err(|e| ApiError::new(DOWNLOAD, Class::Io, e.to_string()))?;
            self.bytes += piece.len() as u64;
            if self.bytes <= ERROR_HEAD as u64 {
                self.head.extend_from_slice(&piece);
            }
            Ok(self)
        })
        .await
    }

    /// The error object that the whole file is; a result line always has a `custom_id`.
    fn error_object(&self) -> Option<error::ErrorObject> {
        if self.bytes > ERROR_HEAD as u64 {
            return None;
        }
        let body: Value = serde_json::from_slice(&self.head).ok()?;
        if body.get("custom_id").is_some() || body.get("response").is_some() {
            return None;
        }
        error::find_error(&body)
    }

    async fn commit(self, complete: bool) -> Result<Download, ApiError> {
        let Self { mut file, redactor, bytes, .. } = self;
        blocking::run(move || {
            if let Some(mut redactor) = redactor {
                let rest = redactor.finish();
                file.write_all(rest).map_err(|e| local(&Error::io("write", file.path(), &e)))?;
                if redactor.found > 0 {
                    let name = file.path().display();
                    tracing::warn!(
                        "{name}: the server put the key into it {}; [key] stands there",
                        count(redactor.found, "time")
                    );
                }
            }
            file.commit().map_err(|e| local(&e))?;
            Ok(Download { bytes, complete })
        })
        .await
    }
}

/// The error of a file on this machine.
fn local(error: &Error) -> ApiError {
    ApiError::new(DOWNLOAD, Class::Io, error.to_string())
}
