//! The provider: upload a chunk, create its batch, look at it, download what it made.
//!
//! A [`Client`] streams both ways, reopens the file on each try, bounds every body, and keeps the key out of every
//! text. Calls that may be repeated are repeated here ([`retry`]); a create is sent once, and its failure says
//! whether there may be a batch ([`CreateError`]). What differs between providers is a [`Dialect`].

mod batch;
mod body;
mod certificates;
mod class;
mod dialect;
mod error;
mod key;
mod proxies;
mod retry;
mod transport;
mod waits;

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Write},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, header};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

pub use batch::{Batch, BatchId, BatchStatus, FileId, MARK, RequestCounts};
pub use class::Class;
pub use dialect::Dialect;
pub use error::{ApiError, CreateError};
pub use key::{Key, Redactor};
pub use transport::{Transport, host_of, is_same_server};

use crate::{
    blocking,
    drill::{self, Guard},
    error::{Error, Result},
    folder::Entry,
    lines::output::AtomicFile,
    progress::Waiting,
    units::count,
};
use body::Decoder;
use error::DOWNLOAD;
use proxies::host;
use retry::{Policy, Retries};
use transport::{BaseUrl, Broken, Moved, Patience, Reply, redirected};
use waits::Waits;

/// Largest JSON body that is read.
const MAX_JSON: u64 = 4 << 20;
/// Largest file that is downloaded: 50,000 long answers are a tenth of it.
const MAX_DOWNLOAD: u64 = 8 << 30;
/// A download that begins with this much and is one error object is an error.
const ERROR_HEAD: usize = 64 << 10;
/// How often a download may be cut short before what came is kept (`docs/reliability.md` N5).
const CUT_TRIES: u32 = 3;
/// Of one download, one after the other (`docs/reliability.md` N1).
const MAX_REDIRECTS: u32 = 5;
/// How much of a file is read, or written, at a time.
const PIECE: usize = 256 << 10;
/// The most a listing gives at once.
const PAGE: usize = 100;
/// Accounts hold 1,000 files; a listing longer than a million batches does not end.
const MAX_PAGES: usize = 10_000;
/// One create makes one batch; a server that shows so many for it makes them up.
const MAX_FOUND: usize = 1000;

/// Everything a client is made of.
#[derive(Debug)]
pub struct ClientSettings {
    pub dialect: &'static Dialect,
    /// `None`: the provider's own.
    pub base_url: Option<String>,
    pub key: Key,
    /// One more root certificate to trust.
    pub ca_cert: Option<PathBuf>,
    /// Serve the calls in this process instead of sending them.
    pub direct: Option<axum::Router>,
}

/// Talks to one provider under one key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dialect: &'static Dialect,
    base: BaseUrl,
    key: Key,
    transport: Transport,
    retries: Retries,
    waits: Waits,
    patience: Patience,
}

/// A file that was downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    pub bytes: u64,
    pub blake3: blake3::Hash,
    /// False: every try was cut short, and the longest was kept.
    pub complete: bool,
}

/// What was looked for in a listing.
#[derive(Clone, Debug)]
pub struct Listing<T> {
    pub found: Vec<T>,
    /// It was read to its end: what is not in it is not there, if it shows what is there at all.
    pub complete: bool,
}

/// Objects with their ids, and what the server says of further pages.
type Page<T> = (Vec<(String, T)>, Option<bool>);

/// What is sent with a request.
enum Payload<'a> {
    None,
    Json(&'a Value),
    Multipart { file: &'a Entry, file_name: &'a str },
}

impl Client {
    /// # Errors
    /// [`crate::error::Kind::Usage`] for a base URL that is not https, or http on loopback;
    /// [`crate::error::Kind::Input`] for a certificate that cannot be read.
    pub fn new(settings: ClientSettings) -> Result<Self> {
        Self::with(settings, Policy::STANDARD, Patience::STANDARD)
    }

    /// For tests: no call is repeated.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn tried_once(settings: ClientSettings) -> Result<Self> {
        Self::with(settings, Policy { tries: 1, ..Policy::STANDARD }, Patience::STANDARD)
    }

    fn with(settings: ClientSettings, policy: Policy, patience: Patience) -> Result<Self> {
        let ClientSettings { dialect, base_url, key, ca_cert, direct } = settings;
        let base = BaseUrl::parse(base_url.as_deref().unwrap_or(dialect.base_url))?;
        let transport = match direct {
            Some(router) => Transport::Direct(router),
            None => Transport::http(&base, ca_cert.as_deref(), patience)?,
        };
        let (retries, waits) = (Retries::new(policy), Waits::default());
        Ok(Self(Arc::new(Inner { dialect, base, key, transport, retries, waits, patience })))
    }

    pub fn dialect(&self) -> &'static Dialect {
        self.0.dialect
    }

    /// Scheme, host and port of the server; `None` for one in this process.
    pub fn origin(&self) -> Option<String> {
        matches!(self.0.transport, Transport::Http(_)).then(|| self.0.base.url().origin().ascii_serialization())
    }

    /// Which server gets the posts, and which key with them.
    pub fn describe(&self) -> String {
        format!("sending to {} with {}", host(self.0.base.url()), self.0.key.source())
    }

    /// What calls wait for now: the last error of each kind of call that has not succeeded since.
    pub fn waits(&self) -> Vec<Waiting> {
        self.0.waits.list()
    }

    /// What has been waited for a minute or longer; each wait is given once.
    pub fn long_waits(&self) -> Vec<Waiting> {
        self.0.waits.long()
    }

    /// Streams a file of request lines to the provider; `file_name` ends in `.jsonl`.
    pub async fn upload(&self, file: &Entry, file_name: &str) -> Result<FileId, ApiError> {
        const CALL: &str = error::UPLOAD;
        let mut tries = self.0.retries.start();
        loop {
            let sent = self.ask(CALL, Method::POST, "files", Payload::Multipart { file, file_name }).await;
            let error = match sent {
                Ok(body) => match batch::parse_id(batch::unwrap_object(&body).get("id"), &self.0.key) {
                    Some(id) => return Ok(id),
                    None => unreadable(CALL, "no file id in the answer"),
                },
                Err(error) => error,
            };
            tries.pause(error).await?;
        }
    }

    /// Creates a batch of an uploaded file. Sent once, whatever happens.
    pub async fn create(&self, file: &FileId, metadata: &[(&str, String)]) -> Result<Batch, CreateError> {
        const CALL: &str = error::CREATE;
        let dialect = self.0.dialect;
        let metadata: serde_json::Map<String, Value> =
            metadata.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let mut body = json!({"input_file_id": file.as_str(), "endpoint": dialect.line_url});
        if let Some(fields) = body.as_object_mut() {
            if let Some(window) = dialect.completion_window {
                fields.insert("completion_window".to_owned(), json!(window));
            }
            if dialect.sends_auto_delete {
                fields.insert("auto_delete_input_file".to_owned(), json!(false));
            }
            if !metadata.is_empty() {
                fields.insert("metadata".to_owned(), Value::Object(metadata));
            }
        }
        let mut answer = self.ask(CALL, Method::POST, "batches", Payload::Json(&body)).await;
        if drill::without(Guard::CreateOnce) && answer.as_ref().is_err_and(ApiError::is_retryable) {
            answer = self.ask(CALL, Method::POST, "batches", Payload::Json(&body)).await;
        }
        answer
            .and_then(|body| self.read_batch(CALL, &body).map_err(|error| ApiError { made: body.is_object(), ..error }))
            .map_err(|error| self.classify_create(error))
    }

    /// What a create without a batch in its answer came to.
    fn classify_create(&self, error: ApiError) -> CreateError {
        let is_known = error.code.as_deref().is_some_and(|code| self.0.dialect.class_of(code).is_some());
        match error.status {
            _ if !error.sent => CreateError::NotSent(error),
            // "Elsewhere" is a no: the call is not repeated there.
            Some(300..=399) => CreateError::Refused(error),
            _ if error.made => CreateError::Made(error),
            // The server's own trouble may have come after the deed, whatever the status.
            _ if error.class == Class::Transient => CreateError::Ambiguous(error),
            Some(400..=499) if error.readable => CreateError::Refused(error),
            Some(400..=499) => CreateError::Denied(error),
            Some(200..=299) if is_known => CreateError::Refused(error),
            _ => CreateError::Ambiguous(error),
        }
    }

    pub async fn batch(&self, id: &BatchId) -> Result<Batch, ApiError> {
        const CALL: &str = "look at a batch";
        self.ask_batch(CALL, Method::GET, &format!("batches/{}", percent_escape(id.as_str()))).await
    }

    /// Asks for the end of a batch. It ends later, as `cancelled`.
    pub async fn cancel(&self, id: &BatchId) -> Result<Batch, ApiError> {
        self.ask_batch(error::CANCEL, Method::POST, &format!("batches/{}/cancel", percent_escape(id.as_str()))).await
    }

    /// The batches of the account that are wanted, found by paging to the end of the listing.
    pub async fn find_batches(&self, wanted: impl Fn(&Batch) -> bool) -> Result<Listing<Batch>, ApiError> {
        let read = |batch: &Value| {
            let batch = Batch::parse(batch, self.0.dialect, &self.0.key)?;
            Some((batch.id.to_string(), batch))
        };
        self.find("list the batches", "batches?", read, wanted).await
    }

    /// Whether the listing of the account's input files shows a file.
    pub async fn lists_file(&self, file: &FileId) -> Result<bool, ApiError> {
        Ok(!self.find_files(|id, _| id == file).await?.is_empty())
    }

    /// The account's input files that are wanted, by id and name. A name is as it came: to be compared, not to be shown.
    pub async fn find_files(&self, wanted: impl Fn(&FileId, &str) -> bool) -> Result<Vec<(FileId, String)>, ApiError> {
        let read = |file: &Value| {
            let id: FileId = batch::parse_id(file.get("id"), &self.0.key)?;
            let name = file.get("filename").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some((id.to_string(), (id, name)))
        };
        self.find("list the files", "files?purpose=batch&", read, |(id, name)| wanted(id, name))
            .await
            .map(|listing| listing.found)
    }

    /// Pages to the end of a listing. `read` gives an object with its id.
    async fn find<T>(
        &self,
        call: &'static str,
        listing: &str,
        read: impl Fn(&Value) -> Option<(String, T)>,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<Listing<T>, ApiError> {
        let endless = |what: String| ApiError::new(call, Class::Reply, what);
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut path = format!("{listing}limit={PAGE}");
        for _ in 0..MAX_PAGES {
            let (page, more) = self.page(call, &path, &read).await?;
            let is_full = page.len() >= PAGE;
            let last = page.last().map(|(id, _)| id.clone());
            let mut news = false;
            for (id, object) in page {
                if seen.insert(digest(&id)) {
                    news = true;
                    if wanted(&object) {
                        found.push(object);
                    }
                }
            }
            if seen.len() > MAX_PAGES * PAGE || found.len() > MAX_FOUND {
                return Err(endless(format!(
                    "the listing has {} objects, {} of them this one",
                    seen.len(),
                    found.len()
                )));
            }
            match last {
                Some(last) if more != Some(false) && news && !drill::without(Guard::Paging) => {
                    path = format!("{listing}limit={PAGE}&after={}", percent_escape(&last));
                }
                // A page that is shown again is no end if the server says, or may mean, that there is more.
                Some(_) => return Ok(Listing { found, complete: more == Some(false) || more.is_none() && !is_full }),
                None => return Ok(Listing { found, complete: true }),
            }
        }
        Err(endless(format!("the listing does not end after {MAX_PAGES} pages")))
    }

    /// One page, and whether the server says that more follow; where it does not say, one more is asked for.
    async fn page<T>(
        &self,
        call: &'static str,
        path: &str,
        read: &impl Fn(&Value) -> Option<(String, T)>,
    ) -> Result<Page<T>, ApiError> {
        let mut tries = self.0.retries.start();
        loop {
            let error = match self.ask(call, Method::GET, path, Payload::None).await {
                Ok(body) => match read_page(&body, read) {
                    Some(page) => return Ok(page),
                    // A batch that is overlooked here may be paid for twice.
                    None => unreadable(call, "the listing cannot be read"),
                },
                Err(error) => error,
            };
            tries.pause(error).await?;
        }
    }

    /// Streams a file of the provider to `to`, which appears whole.
    pub async fn download(&self, file: &FileId, to: &Entry) -> Result<Download, ApiError> {
        let mut tries = self.0.retries.start();
        let mut longest: Option<Landing> = None;
        let mut cuts = 0;
        loop {
            let cut = match self.download_once(file, to).await {
                Ok(landing) => {
                    self.0.waits.note(DOWNLOAD, &Ok(()));
                    return landing.commit(true).await;
                }
                Err(cut) => cut,
            };
            self.0.waits.note(DOWNLOAD, &Err::<(), _>(cut.error.clone()));
            if let Some(landing) = cut.landing.filter(|landing| landing.bytes > 0) {
                cuts += 1;
                if longest.as_ref().is_none_or(|longest| longest.bytes < landing.bytes) {
                    longest = Some(landing);
                }
                if cuts >= CUT_TRIES
                    && let Some(landing) = longest.take()
                {
                    return landing.commit(false).await;
                }
            }
            tries.pause(cut.error).await?;
        }
    }

    /// The reply to a download, from wherever the provider keeps the file. Only the provider itself is sent the key.
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
            let request = bare_request(Method::GET, at.as_str()).body(reqwest::Body::default());
            let request = request.map_err(|e| ApiError::new(DOWNLOAD, Class::Redirect, e.to_string()))?;
            let place = self.place(&at);
            reply = self.deliver(DOWNLOAD, request, &Moved::whole(), &place).await?;
            reply.elsewhere = Some(place);
        }
        Ok(reply)
    }

    async fn download_once(&self, file: &FileId, to: &Entry) -> Result<Landing, Cut> {
        const CALL: &str = DOWNLOAD;
        let mut reply = self.open_download(file).await?;
        let is_page =
            reply.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        if reply.status != http::StatusCode::OK || is_page {
            return Err(self.read_refusal(CALL, reply).await.into());
        }
        let expected = content_length(&reply.headers);
        let redactor = match self.0.transport {
            Transport::Http(_) => Redactor::new(&self.0.key),
            // What is in this process was sent nothing that is secret.
            Transport::Direct(_) => None,
        };
        let landing = Landing::create(to.clone(), redactor).await?;
        let mut decoder = Decoder::new(&reply.headers, landing, MAX_DOWNLOAD).map_err(|encoding| {
            let encoding = error::harmless(&self.0.key, &encoding, 40);
            ApiError::new(CALL, Class::Reply, format!("the reply has the unknown encoding {encoding}"))
        })?;
        let mut piece = BytesMut::with_capacity(PIECE);
        let broken = loop {
            match reply.body.next(self.0.patience).await {
                Ok(Some(bytes)) => {
                    piece.extend_from_slice(&bytes);
                    if piece.len() >= PIECE {
                        decoder = put(CALL, decoder, piece.split().freeze()).await?;
                    }
                }
                Ok(None) => break None,
                Err(broken) => break Some(broken),
            }
        };
        decoder = put(CALL, decoder, piece.freeze()).await?;
        let cut = match (broken, expected) {
            (Some(broken), _) => Some(self.broken(CALL, &broken, reply.elsewhere.as_deref())),
            (None, Some(expected)) if decoder.wire != expected => {
                let why = format!("it is cut short: {} of {expected} bytes came", decoder.wire);
                Some(self.broken(CALL, &Broken::new(why), reply.elsewhere.as_deref()))
            }
            _ => None,
        };
        if let Some(error) = cut {
            // Half a compressed file is of no use.
            let landing = decoder.is_plain().then(|| decoder.into_inner()).flatten();
            return Err(Cut { error, landing });
        }
        let landing = finish(CALL, decoder).await?;
        if let Some(told) = landing.error_object() {
            let status = http::StatusCode::OK;
            let mut error = error::from_reply(CALL, self.0.dialect, &self.0.key, status, Some(told), &[]);
            self.note_retry(&mut error, &reply.headers, reply.elsewhere.as_deref());
            return Err(error.into());
        }
        Ok(landing)
    }

    /// Deletes a file at the provider; one that is not there is as good as deleted.
    pub async fn delete(&self, file: &FileId) -> Result<(), ApiError> {
        const CALL: &str = "delete a file";
        let path = format!("files/{}", percent_escape(file.as_str()));
        let mut tries = self.0.retries.start();
        loop {
            match self.ask(CALL, Method::DELETE, &path, Payload::None).await {
                Ok(_) => return Ok(()),
                Err(error) if error.class == Class::NotFound => return Ok(()),
                Err(error) => tries.pause(error).await?,
            }
        }
    }

    async fn ask_batch(&self, call: &'static str, method: Method, path: &str) -> Result<Batch, ApiError> {
        let mut tries = self.0.retries.start();
        loop {
            let answer = self.ask(call, method.clone(), path, Payload::None).await;
            match answer.and_then(|body| self.read_batch(call, &body)) {
                Ok(batch) => return Ok(batch),
                Err(error) => tries.pause(error).await?,
            }
        }
    }

    fn read_batch(&self, call: &'static str, body: &Value) -> Result<Batch, ApiError> {
        Batch::parse(body, self.0.dialect, &self.0.key).ok_or_else(|| unreadable(call, "no batch in the answer"))
    }

    /// One call, tried once; the JSON it answers.
    async fn ask(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        payload: Payload<'_>,
    ) -> Result<Value, ApiError> {
        let answer = self.ask_json(call, method, path, payload).await;
        self.0.waits.note(call, &answer);
        answer
    }

    async fn ask_json(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        payload: Payload<'_>,
    ) -> Result<Value, ApiError> {
        let reply = self.send(call, method, path, payload).await?;
        if !reply.status.is_success() {
            return Err(self.read_refusal(call, reply).await);
        }
        let (status, headers) = (reply.status, reply.headers.clone());
        let (body, broken) = self.collect(call, reply).await?;
        if let Some(broken) = broken {
            return Err(ApiError { status: Some(status.as_u16()), ..self.broken(call, &broken, None) });
        }
        let mut error = match parse_json(&body) {
            Some(value) => match error::find_error(&value) {
                None => return Ok(value),
                told => error::from_reply(call, self.0.dialect, &self.0.key, status, told, &[]),
            },
            // A DELETE may answer with nothing at all.
            None if body.is_empty() => return Ok(Value::Null),
            None => error::from_reply(call, self.0.dialect, &self.0.key, status, None, &body),
        };
        self.note_retry(&mut error, &headers, None);
        Err(error)
    }

    /// Makes an error of a reply that is one by its status, or by being a page.
    async fn read_refusal(&self, call: &'static str, reply: Reply) -> ApiError {
        let (status, headers, elsewhere) = (reply.status, reply.headers.clone(), reply.elsewhere.clone());
        // A refusal whose words cannot be read still has its status.
        let (body, broken) = self.collect(call, reply).await.unwrap_or_default();
        let parsed = parse_json(&body).filter(|_| broken.is_none());
        let told = parsed.as_ref().and_then(error::find_error);
        let mut error = error::from_reply(call, self.0.dialect, &self.0.key, status, told, &body);
        if status.is_redirection() {
            let base = self.0.base.url();
            let why = match location(&headers).and_then(|location| base.join(location).ok()) {
                Some(to) => {
                    format!("{} sends us to {}://{}, where the key must not go", host(base), to.scheme(), host(&to))
                }
                None => format!("{} sends us elsewhere, where the key must not go", host(base)),
            };
            error.message = error::harmless_message(&self.0.key, &why);
        }
        // The disk is ours where the server is in this process; that of another one is its own trouble.
        if error.class == Class::Io && matches!(self.0.transport, Transport::Http(_)) {
            error.class = Class::Transient;
        }
        self.note_retry(&mut error, &headers, elsewhere.as_deref());
        error
    }

    /// Reads what the server says of another try. Of a reply from `elsewhere` only the status counts: a link there that has
    /// expired is no word on the key, and what that host asks to wait does not concern the provider.
    fn note_retry(&self, error: &mut ApiError, headers: &HeaderMap, elsewhere: Option<&str>) {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        error.retry_after =
            text(header::RETRY_AFTER).and_then(|value| retry::parse_retry_after(value, SystemTime::now()));
        error.should_retry =
            text(HeaderName::from_static("x-should-retry")).and_then(|value| value.trim().parse().ok());
        match (elsewhere, error.retry_after) {
            (Some(place), _) => {
                if matches!(error.class, Class::Key | Class::Account | Class::Model | Class::BadRequest) {
                    error.class = Class::Transient;
                }
                error.message = format!("{}: {}", error::harmless_message(&self.0.key, place), error.message);
            }
            (None, Some(asked)) => self.0.retries.hold_all(asked),
            (None, None) => {}
        }
    }

    /// Reads a body that should be small; the second part tells how it broke off.
    async fn collect(&self, call: &'static str, mut reply: Reply) -> Result<(Vec<u8>, Option<Broken>), ApiError> {
        let refuse = |why: String| ApiError::new(call, Class::Reply, why);
        let mut decoder = Decoder::new(&reply.headers, Vec::new(), MAX_JSON).map_err(|encoding| {
            let encoding = error::harmless(&self.0.key, &encoding, 40);
            refuse(format!("the reply has the unknown encoding {encoding}"))
        })?;
        let read = async {
            loop {
                match reply.body.next(self.0.patience).await {
                    Ok(Some(bytes)) => {
                        if let Err(e) = decoder.put(&bytes) {
                            break if decoder.is_over() {
                                Err(refuse(format!("the reply is larger than {MAX_JSON} bytes")))
                            } else {
                                Ok(Some(Broken::new(e.to_string())))
                            };
                        }
                    }
                    Ok(None) => break Ok(decoder.finish().err().map(|e| Broken::new(e.to_string()))),
                    Err(broken) => break Ok(Some(broken)),
                }
            }
        };
        let small = self.0.patience.small;
        let broken = match timeout(small, read).await {
            Ok(broken) => broken?,
            Err(_) => Some(Broken::new(format!("the reply drips: it did not end within {} s", small.as_secs()))),
        };
        Ok((std::mem::take(&mut decoder.capped_mut().inner), broken))
    }

    /// Waits while the provider asks all calls to wait (`Retry-After`). Every call does so before it is sent; whoever writes
    /// down that a call will now be sent waits before that.
    pub async fn turn(&self) {
        self.0.retries.turn().await;
    }

    /// One request to the provider, sent once, when it takes requests; the head of its reply.
    async fn send(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        payload: Payload<'_>,
    ) -> Result<Reply, ApiError> {
        // Before anything is opened, and before the time for the answer begins.
        self.turn().await;
        let cannot = |e: http::Error| ApiError { sent: false, ..ApiError::new(call, Class::BadRequest, e.to_string()) };
        let mut request = bare_request(method.clone(), &self.0.base.join(path));
        if let Some(key) = self.0.key.header() {
            request = request.header(header::AUTHORIZATION, key);
        }
        let (request, moved) = match payload {
            Payload::None => {
                // A POST without a body says so; some gateways answer 411 otherwise.
                if method == Method::POST {
                    request = request.header(header::CONTENT_LENGTH, 0);
                }
                (request.body(reqwest::Body::default()), Arc::new(Moved::whole()))
            }
            Payload::Json(body) => {
                let request = request.header(header::CONTENT_TYPE, "application/json");
                (request.body(reqwest::Body::from(body.to_string())), Arc::new(Moved::whole()))
            }
            Payload::Multipart { file, file_name } => {
                let form = Form::open(call, file, file_name).await?;
                let request = request
                    .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={}", form.boundary))
                    .header(header::CONTENT_LENGTH, form.bytes);
                let moved = Arc::clone(&form.moved);
                (request.body(form.into_body()), moved)
            }
        };
        let request = request.map_err(cannot)?;
        self.deliver(call, request, &moved, &self.place(self.0.base.url())).await
    }

    /// Sends a request once to wherever it is addressed; `place` names that.
    async fn deliver(
        &self,
        call: &'static str,
        request: http::Request<reqwest::Body>,
        moved: &Moved,
        place: &str,
    ) -> Result<Reply, ApiError> {
        // Queries hold only ids, but a habit of logging them would hold secrets one day. A link to storage is one.
        let is_ours = request.headers().contains_key(header::AUTHORIZATION);
        let path = if is_ours { request.uri().path().to_owned() } else { place.to_owned() };
        let method = request.method().clone();
        drill::step("before", call);
        let start = Instant::now();
        let reply = self.0.transport.send(request, moved, self.0.patience).await;
        drill::step("after", call);
        let ms = start.elapsed().as_millis();
        match &reply {
            Ok(reply) => tracing::debug!(%method, path, status = reply.status.as_u16(), ms, "{call}"),
            Err(broken) => tracing::debug!(%method, path, sent = broken.sent, ms, "{call}: no reply"),
        }
        match moved.failed() {
            // Whatever the server makes of half a file.
            Some(why) => Err(ApiError::new(call, Class::Io, why)),
            None => reply.map_err(|broken| self.broken(call, &broken, Some(place))),
        }
    }

    /// An error of the network, with the host that it is about; `None`: the provider.
    fn broken(&self, call: &'static str, broken: &Broken, place: Option<&str>) -> ApiError {
        let place = place.map_or_else(|| self.place(self.0.base.url()), str::to_owned);
        // A certificate's error names it already.
        let name = place.split(", ").next().map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
        let why = if name.is_some_and(|name| broken.why.contains(name)) {
            broken.why.clone()
        } else {
            format!("{place}: {}", broken.why)
        };
        let why = error::harmless_message(&self.0.key, &why);
        ApiError { sent: broken.sent, ..ApiError::new(call, broken.class, why) }
    }

    /// The host of a URL as messages name it.
    fn place(&self, url: &reqwest::Url) -> String {
        match &self.0.transport {
            Transport::Http(network) => network.place(url),
            Transport::Direct(_) => host(url),
        }
    }
}

/// What every request has, and nothing that is secret.
fn bare_request(method: Method, url: &str) -> http::request::Builder {
    http::Request::builder()
        .method(method)
        .uri(url)
        .header(header::ACCEPT, "*/*")
        // Lengths can be checked, and what is not compressed cannot explode.
        .header(header::ACCEPT_ENCODING, "identity")
}

fn location(headers: &HeaderMap) -> Option<&str> {
    std::str::from_utf8(headers.get(header::LOCATION)?.as_bytes()).ok()
}

/// The objects of a page, all of which must be readable, and whether more may follow.
fn read_page<T>(body: &Value, read: &impl Fn(&Value) -> Option<(String, T)>) -> Option<Page<T>> {
    // Some wrap the list in `data` once more.
    let body = body.get("data").filter(|inner| inner.is_object()).unwrap_or(body);
    let objects = match body.get("data")? {
        Value::Array(list) => list.iter().map(read).collect::<Option<Vec<_>>>()?,
        Value::Null => Vec::new(),
        _ => return None,
    };
    Some((objects, body.get("has_more").and_then(Value::as_bool)))
}

/// A 200 that does not say what it should; the server may do better the next time.
fn unreadable(call: &'static str, why: &str) -> ApiError {
    ApiError { status: Some(200), ..ApiError::new(call, Class::Transient, why) }
}

/// What is kept of an id that was seen: a million of them must fit.
fn digest(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    hash.as_bytes().iter().take(8).fold(0, |digest, byte| (digest << 8) | u64::from(*byte))
}

/// Some gateways put a byte order mark before their JSON.
fn parse_json(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)).ok()
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Escapes everything that is not unreserved in a URL.
fn percent_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A multipart form whose file is read as it is sent, with a length that is known before.
struct Form {
    boundary: String,
    bytes: u64,
    moved: Arc<Moved>,
    head: Bytes,
    file: Arc<File>,
    path: PathBuf,
    /// Of the file, not yet sent.
    left: u64,
    tail: Bytes,
}

impl Form {
    /// A fresh handle each time, so that a retry begins at the beginning.
    async fn open(call: &'static str, entry: &Entry, file_name: &str) -> Result<Self, ApiError> {
        let fail = |e: Error| ApiError { sent: false, ..ApiError::new(call, Class::Io, e.to_string()) };
        let (opening, path) = (entry.clone(), entry.path());
        let open = move || {
            let file = opening.open()?;
            let bytes = file.metadata().map_err(|e| Error::io("look at", opening.path(), &e))?.len();
            Ok::<_, Error>((file, bytes))
        };
        let (file, left) = blocking::run(open).await.map_err(fail)?;
        let boundary = format!("zbatch-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let name: String = file_name.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect();
        let head = Bytes::from(format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        ));
        let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let bytes = head.len() as u64 + left + tail.len() as u64;
        let moved = Arc::new(Moved::streamed());
        Ok(Self { boundary, bytes, moved, head, file: Arc::new(file), path, left, tail })
    }

    fn into_body(self) -> reqwest::Body {
        reqwest::Body::wrap_stream(futures::stream::try_unfold(self, async |mut form| {
            let piece = form.next().await?;
            Ok::<_, io::Error>((!piece.is_empty()).then_some((piece, form)))
        }))
    }

    /// The next piece; an empty one at the end.
    async fn next(&mut self) -> io::Result<Bytes> {
        let head = std::mem::take(&mut self.head);
        if !head.is_empty() {
            self.moved.touch(false);
            return Ok(head);
        }
        if self.left > 0 {
            let most = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
            let file = Arc::clone(&self.file);
            let read = blocking::run(move || {
                let mut piece = vec![0; most];
                file.as_ref().read_exact(&mut piece).map(|()| Bytes::from(piece))
            });
            return match read.await {
                Ok(piece) => {
                    self.left -= most as u64;
                    self.moved.touch(false);
                    Ok(piece)
                }
                Err(e) => {
                    let short = e.kind() == io::ErrorKind::UnexpectedEof;
                    let why = if short { "it became shorter".to_owned() } else { e.to_string() };
                    self.moved.fail(format!("read {}: {why}", self.path.display()));
                    Err(e)
                }
            };
        }
        self.moved.touch(true);
        Ok(std::mem::take(&mut self.tail))
    }
}

/// A download that failed, and what came of it.
struct Cut {
    error: ApiError,
    landing: Option<Landing>,
}

impl From<ApiError> for Cut {
    fn from(error: ApiError) -> Self {
        Self { error, landing: None }
    }
}

/// Where a download goes: a file that has not appeared yet.
struct Landing {
    file: AtomicFile,
    hasher: blake3::Hasher,
    /// A server may echo the key anywhere, and results travel further than messages.
    redactor: Option<Redactor>,
    /// As they came.
    bytes: u64,
    /// The beginning, as it came, as long as all of it may be one error object.
    head: Vec<u8>,
    /// Why our own file could not be written.
    failed: Option<String>,
}

impl Write for Landing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let clean = self.redactor.as_mut().map_or(bytes, |redactor| redactor.put(bytes));
        if let Err(e) = self.file.write_all(clean) {
            self.failed = Some(e.to_string());
            return Err(e);
        }
        self.hasher.update(clean);
        self.bytes += bytes.len() as u64;
        if self.bytes <= ERROR_HEAD as u64 {
            self.head.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Landing {
    async fn create(to: Entry, redactor: Option<Redactor>) -> Result<Self, ApiError> {
        let file = blocking::run(move || AtomicFile::within(&to).map_err(|e| local(&e))).await?;
        Ok(Self { file, hasher: blake3::Hasher::new(), redactor, bytes: 0, head: Vec::new(), failed: None })
    }

    /// The error that the whole file tells of; a result line always has a `custom_id`.
    fn error_object(&self) -> Option<error::Told> {
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
        let Self { mut file, mut hasher, redactor, bytes, .. } = self;
        blocking::run(move || {
            if let Some(mut redactor) = redactor {
                let rest = redactor.finish();
                hasher.update(rest);
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
            Ok(Download { bytes, blake3: hasher.finalize(), complete })
        })
        .await
    }
}

/// Hands bytes to the file, away from the async threads.
async fn put(call: &'static str, mut decoder: Decoder<Landing>, bytes: Bytes) -> Result<Decoder<Landing>, ApiError> {
    blocking::run(move || match decoder.put(&bytes) {
        Ok(()) => Ok(decoder),
        Err(e) => Err(not_put(call, &mut decoder, &e)),
    })
    .await
}

async fn finish(call: &'static str, mut decoder: Decoder<Landing>) -> Result<Landing, ApiError> {
    blocking::run(move || match decoder.finish() {
        Ok(()) => decoder.into_inner().ok_or_else(|| ApiError::new(call, Class::Unreachable, "it is cut short")),
        Err(e) => Err(not_put(call, &mut decoder, &e)),
    })
    .await
}

fn not_put(call: &'static str, decoder: &mut Decoder<Landing>, error: &io::Error) -> ApiError {
    if let Some(why) = decoder.capped_mut().inner.failed.take() {
        return ApiError::new(call, Class::Io, why);
    }
    if decoder.is_over() {
        return ApiError::new(call, Class::Reply, format!("the file is larger than {MAX_DOWNLOAD} bytes, or explodes"));
    }
    ApiError::new(call, Class::Transient, format!("the compressed reply is damaged: {error}"))
}

fn local(error: &Error) -> ApiError {
    ApiError::new("download a file", Class::Io, error.to_string())
}

#[cfg(test)]
mod tests;
