//! A client of one provider under one key, and what all of its calls share: the request, the deadline, the reading of the
//! reply, and the making of an error from it.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{
    ApiError, Class, Dialect, FileId, Key, Transport,
    address::{BaseUrl, host, percent_escape},
    body::{Body, BodyError},
    error, form,
    retry::{self, Policy, Retries},
    transport::{Broken, Reply, Sending, Timeouts},
    waits::Waits,
};
use crate::{drill, error::Result, folder::Entry, progress::Waiting};

/// Largest JSON body that is read.
const MAX_JSON: u64 = 4 << 20;
/// Characters of an unknown `Content-Encoding` that a message shows.
const ENCODING_CHARS: usize = 40;

/// Everything a client is made of.
#[derive(Debug)]
pub struct ClientSettings {
    pub dialect: &'static Dialect,
    /// `None`: the provider's own.
    pub base_url: Option<String>,
    pub key: Key,
    /// One more root certificate to trust.
    pub ca_cert: Option<PathBuf>,
    /// Serves the calls in this process instead of sending them.
    pub direct: Option<axum::Router>,
}

/// Talks to one provider under one key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub dialect: &'static Dialect,
    pub base: BaseUrl,
    pub key: Key,
    pub transport: Transport,
    pub retries: Retries,
    pub waits: Waits,
    pub timeouts: Timeouts,
}

/// What is sent with a request.
pub(super) enum Payload<'a> {
    None,
    Json(&'a Value),
    /// A file of request lines and the name that the provider gets for it.
    File(&'a Entry, &'a str),
}

impl Client {
    /// # Errors
    /// [`crate::error::Kind::Usage`] for a base URL that is not https, or http on loopback;
    /// [`crate::error::Kind::Input`] for a certificate that cannot be read.
    pub fn new(settings: ClientSettings) -> Result<Self> {
        Self::with(settings, Policy::STANDARD, Timeouts::STANDARD)
    }

    /// For tests: no call is repeated.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn tried_once(settings: ClientSettings) -> Result<Self> {
        Self::with(settings, Policy { tries: 1, ..Policy::STANDARD }, Timeouts::STANDARD)
    }

    pub(super) fn with(settings: ClientSettings, policy: Policy, timeouts: Timeouts) -> Result<Self> {
        let ClientSettings { dialect, base_url, key, ca_cert, direct } = settings;
        let base = BaseUrl::parse(base_url.as_deref().unwrap_or(dialect.base_url))?;
        let transport = match direct {
            Some(router) => Transport::direct(router, timeouts)?,
            None => Transport::http(&base, ca_cert.as_deref(), timeouts)?,
        };
        let (retries, waits) = (Retries::new(policy), Waits::default());
        Ok(Self(Arc::new(Inner { dialect, base, key, transport, retries, waits, timeouts })))
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

    /// The last error of each kind of call that has not succeeded since.
    pub fn waits(&self) -> Vec<Waiting> {
        self.0.waits.list()
    }

    /// The waits that last a minute or longer; each wait is given once.
    pub fn long_waits(&self) -> Vec<Waiting> {
        self.0.waits.long()
    }

    /// Waits while the provider asks all calls to wait (`Retry-After`). Every call waits before it is sent. A caller that
    /// writes to the journal that a call follows waits before that.
    pub async fn turn(&self) {
        self.0.retries.turn().await;
    }

    /// Deletes a file at the provider; one that is not there is as good as deleted.
    pub async fn delete(&self, file: &FileId) -> Result<(), ApiError> {
        let path = format!("files/{}", percent_escape(file.as_str()));
        let deleted = self.repeat(|| self.ask("delete a file", Method::DELETE, &path, Payload::None)).await;
        match deleted {
            Err(error) if error.class != Class::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes a call again until it succeeds, its error is final, or the retries are used up.
    pub(super) async fn repeat<T, F>(&self, call: impl Fn() -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let mut tries = self.0.retries.start();
        loop {
            match call().await {
                Ok(done) => return Ok(done),
                Err(error) => tries.pause(error).await?,
            }
        }
    }

    /// One call, tried once; the JSON of its reply.
    pub(super) async fn ask(
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
                object => error::from_reply(call, self.0.dialect, &self.0.key, status, object, &[]),
            },
            // The reply to a DELETE may be empty.
            None if body.is_empty() => return Ok(Value::Null),
            None => error::from_reply(call, self.0.dialect, &self.0.key, status, None, &body),
        };
        self.note_retry(&mut error, &headers, None);
        Err(error)
    }

    /// One request to the provider, sent once, when it takes requests; the head of its reply.
    pub(super) async fn send(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        payload: Payload<'_>,
    ) -> Result<Reply, ApiError> {
        // Before anything is opened, and before the time for the reply begins.
        self.turn().await;
        let timeouts = self.0.timeouts;
        let is_bare_post = method == Method::POST && matches!(payload, Payload::None);
        let mut request = self.0.transport.request(method, &self.0.base.join(path));
        if let Some(key) = self.0.key.header() {
            request = request.header(header::AUTHORIZATION, key);
        }
        if is_bare_post {
            // Some gateways answer 411 to a POST without a body that does not say so.
            request = request.header(header::CONTENT_LENGTH, 0);
        }
        let mut sending = Arc::new(Sending::within(timeouts.first_byte));
        match payload {
            Payload::None => {}
            Payload::Json(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
            }
            Payload::File(file, name) => {
                sending = Arc::new(Sending::within(timeouts.idle));
                request = request.multipart(form::open(file, name, timeouts, &sending).await?);
            }
        }
        self.deliver(call, request, &sending, &self.place(self.0.base.url())).await
    }

    /// Sends a request once to its URL; `place` names the server.
    pub(super) async fn deliver(
        &self,
        call: &'static str,
        request: reqwest::RequestBuilder,
        sending: &Sending,
        place: &str,
    ) -> Result<Reply, ApiError> {
        // Without compression lengths can be checked, and nothing can explode.
        let request = request.header(header::ACCEPT_ENCODING, "identity").build().map_err(|e| {
            let why = e.without_url().to_string();
            ApiError { sent: false, ..ApiError::new(call, Class::BadRequest, why) }
        })?;
        // Queries hold only ids, but a habit of logging them would log secrets one day: a link to storage is a secret.
        let is_ours = request.headers().contains_key(header::AUTHORIZATION);
        let path = if is_ours { request.url().path().to_owned() } else { place.to_owned() };
        let method = request.method().clone();
        drill::step("before", call);
        let start = Instant::now();
        let reply = self.0.transport.send(request, sending).await;
        drill::step("after", call);
        let ms = start.elapsed().as_millis();
        match &reply {
            Ok(reply) => tracing::debug!(%method, path, status = reply.status.as_u16(), ms, "{call}"),
            Err(broken) => tracing::debug!(%method, path, sent = broken.sent, ms, "{call}: no reply"),
        }
        match sending.unreadable() {
            // The server saw half a file: its reply does not matter.
            Some(why) => Err(ApiError::new(call, Class::Io, why)),
            None => reply.map_err(|broken| self.broken(call, &broken, Some(place))),
        }
    }

    /// The body of a reply, of at most `most` bytes.
    pub(super) fn open_body(&self, call: &'static str, reply: Reply, most: u64) -> Result<Body, ApiError> {
        Body::new(&reply.headers, reply.pieces, self.0.timeouts.idle, most).map_err(|encoding| {
            let encoding = error::harmless(&self.0.key, &encoding, ENCODING_CHARS);
            ApiError::new(call, Class::Reply, format!("the reply has the unknown encoding {encoding}"))
        })
    }

    /// Reads a body that should be small. The second value is the reason why it is not whole.
    async fn collect(&self, call: &'static str, reply: Reply) -> Result<(BytesMut, Option<Broken>), ApiError> {
        let mut whole = BytesMut::new();
        let mut body = self.open_body(call, reply, MAX_JSON)?;
        let small = self.0.timeouts.small;
        let broken = match timeout(small, body.read_to_end(&mut whole)).await {
            Ok(Ok(())) => None,
            Ok(Err(BodyError::Broken(broken))) => Some(broken),
            Ok(Err(BodyError::Damaged(why))) => Some(Broken::new(format!("the compressed reply is damaged: {why}"))),
            Ok(Err(BodyError::TooLarge)) => {
                let why = format!("the reply is larger than {MAX_JSON} bytes");
                return Err(ApiError::new(call, Class::Reply, why));
            }
            Err(_) => Some(Broken::new(format!("the reply drips: it did not end within {} s", small.as_secs()))),
        };
        Ok((whole, broken))
    }

    /// Makes an error of a reply that is one by its status, or by being a page.
    pub(super) async fn read_refusal(&self, call: &'static str, reply: Reply) -> ApiError {
        let (status, headers, elsewhere) = (reply.status, reply.headers.clone(), reply.elsewhere.clone());
        // A refusal whose words cannot be read still has its status.
        let (body, broken) = self.collect(call, reply).await.unwrap_or_default();
        let parsed = parse_json(&body).filter(|_| broken.is_none());
        let object = parsed.as_ref().and_then(error::find_error);
        let mut error = error::from_reply(call, self.0.dialect, &self.0.key, status, object, &body);
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
        // A full disk is ours where the server is in this process. The disk of another server is not ours.
        if error.class == Class::Io && matches!(self.0.transport, Transport::Http(_)) {
            error.class = Class::Transient;
        }
        self.note_retry(&mut error, &headers, elsewhere.as_deref());
        error
    }

    /// Makes an error of a JSON body that came with a 200.
    pub(super) fn error_in_body(
        &self,
        call: &'static str,
        object: error::ErrorObject,
        headers: &HeaderMap,
        elsewhere: Option<&str>,
    ) -> ApiError {
        let mut error = error::from_reply(call, self.0.dialect, &self.0.key, StatusCode::OK, Some(object), &[]);
        self.note_retry(&mut error, headers, elsewhere);
        error
    }

    /// Reads what the server says about another try. Of a reply from `elsewhere` only the status counts: a link that has expired
    /// there says nothing about the key, and a wait that another host asks for does not concern the provider.
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

    /// An error of the network, with the host that it is about; `None`: the provider.
    pub(super) fn broken(&self, call: &'static str, broken: &Broken, place: Option<&str>) -> ApiError {
        let place = place.map_or_else(|| self.place(self.0.base.url()), str::to_owned);
        // The error of a certificate names the host already.
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
    pub(super) fn place(&self, url: &reqwest::Url) -> String {
        match &self.0.transport {
            Transport::Http(network) => network.place(url),
            Transport::Direct { .. } => host(url),
        }
    }
}

/// The target of a redirect.
pub(super) fn location(headers: &HeaderMap) -> Option<&str> {
    std::str::from_utf8(headers.get(header::LOCATION)?.as_bytes()).ok()
}

/// A 200 without what it should hold; the server may do better the next time.
pub(super) fn unreadable(call: &'static str, why: &str) -> ApiError {
    ApiError { status: Some(200), ..ApiError::new(call, Class::Transient, why) }
}

/// Some gateways put a byte order mark before their JSON.
fn parse_json(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)).ok()
}
