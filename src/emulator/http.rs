//! HTTP on top of the machine: routes of both dialects, bodies streamed both ways. An upload is written to disk as
//! it comes and checked from there; a download is read as it goes.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{DefaultBodyLimit, FromRequest as _, Multipart, Path as Segment, Query, Request, State as Handle},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Emulator, Part, UPLOAD,
    calls::{Call, Effect, Point},
    dialect::{Dialect, Refusal},
    input::{self, Refused, Rules},
    schedule::{Mirage, Schedule, Spoiled},
    state::{Look, Metadata, Purpose, StoredFile},
};
use crate::{blocking, error::Error};

/// A create or another small body.
const MAX_JSON: usize = 1 << 20;
/// What a client sends after its call was refused is read up to here, so that it sees the refusal and not a reset.
const MAX_DRAIN: u64 = 1 << 30;
const BUFFER: usize = 128 << 10;
/// A body that pauses for longer is given up.
const IDLE: Duration = Duration::from_secs(60);
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;
/// Of a file.
const MAX_NAME: usize = 255;
const MAX_PAIRS: usize = 16;
const MAX_PAIR_KEY: usize = 64;
const MAX_PAIR_VALUE: usize = 512;
/// A status of the fault `unknown_status`.
const UNKNOWN_STATUS: &str = "awaiting_capacity";

#[derive(Clone, Debug)]
struct Api {
    server: Emulator,
    dialect: Dialect,
}

type Reply = Result<Response, Refusal>;

pub fn router(server: &Emulator) -> Router {
    let routes = |dialect| {
        Router::new()
            .route("/files", post(upload).get(list_files))
            .route("/files/{id}", get(show_file).delete(delete_file))
            .route("/files/{id}/content", get(download))
            .route("/links/{id}", get(link))
            .route("/batches", post(create).get(list_batches))
            .route("/batches/{id}", get(poll))
            .route("/batches/{id}/cancel", post(cancel))
            .route("/models", get(list_models))
            .with_state(Api { server: server.clone(), dialect })
    };
    Router::new()
        .nest(Dialect::Zhipu.base(), routes(Dialect::Zhipu))
        .nest(Dialect::OpenAi.base(), routes(Dialect::OpenAi))
        .route("/__emulator/ledger", get(ledger))
        .with_state(server.clone())
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({"error": "Not Found"}))) })
        .layer(DefaultBodyLimit::disable())
}

/// The same for sockets, where every process of this machine can call, and with it every web page in a browser.
pub fn for_sockets(server: &Emulator) -> Router {
    router(server).layer(middleware::from_fn(guard))
}

async fn guard(request: Request, next: Next) -> Response {
    match stranger(&request) {
        Some((status, code, message)) => {
            let error = Json(json!({"error": {"code": code, "message": message}}));
            (status, [(header::CONNECTION, "close")], error).into_response()
        }
        None => next.run(request.map(patient)).await,
    }
}

/// Why a request does not come from a program of this machine that means this server.
fn stranger(request: &Request) -> Option<(StatusCode, &'static str, &'static str)> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next());
    let is_here = matches!(host, (Some(host), None) if is_loopback(host));
    if !is_here || request.uri().authority().is_some_and(|authority| !is_loopback(authority.as_str())) {
        // A page whose name was made to lead to this machine (DNS rebinding) still says its own name.
        let why = "the emulator answers under 127.0.0.1, [::1] and localhost only; call it by one of these names";
        return Some((StatusCode::MISDIRECTED_REQUEST, "421", why));
    }
    let site = headers.get("sec-fetch-site");
    if headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != "none") {
        return Some((StatusCode::FORBIDDEN, "403", "the emulator does not answer web pages"));
    }
    None
}

fn is_loopback(authority: &str) -> bool {
    let is_port = |port: &str| port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    ["127.0.0.1", "[::1]", "localhost"].iter().any(|here| {
        authority
            .split_at_checked(here.len())
            .is_some_and(|(name, port)| name.eq_ignore_ascii_case(here) && (port.is_empty() || is_port(port)))
    })
}

/// A body that must go on: its connection does not wait for ever.
fn patient(body: Body) -> Body {
    let stream = futures::stream::unfold(Some(body.into_data_stream()), async |stream| {
        let mut stream = stream?;
        match tokio::time::timeout(IDLE, stream.next()).await {
            Ok(piece) => piece.map(|piece| (piece.map_err(io::Error::other), Some(stream))),
            Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "the body has paused for too long")), None)),
        }
    });
    Body::from_stream(stream)
}

/// The reply to a connection that there is no room for.
pub const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 75\r\n\
    Retry-After: 1\r\nConnection: close\r\n\r\n\
    {\"error\":{\"code\":\"503\",\"message\":\"the emulator has too many connections\"}}\n";

async fn ledger(Handle(server): Handle<Emulator>, headers: HeaderMap) -> Response {
    if let Err(refusal) = server.check_key(&headers, false) {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": refusal.message}))).into_response();
    }
    match server.step(|_, core| Ok(super::ledger::Ledger::of(&core.state))).await {
        Ok(ledger) => Json(ledger).into_response(),
        Err(refusal) => (StatusCode::INTERNAL_SERVER_ERROR, refusal.message).into_response(),
    }
}

impl Emulator {
    /// Whether a call has a key, where it `must`, and the right one, where only one is.
    fn check_key(&self, headers: &HeaderMap, must: bool) -> Result<(), Refusal> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|value| value.strip_prefix("Bearer ")).map_or("", str::trim);
        match self.0.settings.token {
            None if must && key.is_empty() => Err(Refusal::new(401, "1001", "no API key in the Authorization header")),
            // Hashes are compared in constant time.
            Some(token) if blake3::hash(key.as_bytes()) != token => Err(Refusal::new(
                401,
                "1002",
                "the key is not the one that the emulator showed on stderr when it started",
            )),
            _ => Ok(()),
        }
    }
}

impl Api {
    /// What stands in the way of a call: no key, or a fault.
    async fn before(&self, call: Call, headers: &HeaderMap) -> Option<Response> {
        let slow = self.server.faults().slow();
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        if let Err(refusal) = self.server.check_key(headers, true) {
            return Some(self.refuse(&refusal));
        }
        match self.server.faults().call(call, Point::Before)? {
            Effect::Stall(time) => {
                tokio::time::sleep(time).await;
                None
            }
            effect => Some(self.strike(effect)),
        }
    }

    /// The reply to a call that was done or refused, unless a fault takes it.
    async fn after(&self, call: Call, done: Reply) -> Response {
        let response = match done {
            Err(refusal) => return self.refuse(&refusal),
            Ok(response) => response,
        };
        match self.server.faults().call(call, Point::After) {
            None => response,
            Some(Effect::Stall(time)) => {
                tokio::time::sleep(time).await;
                response
            }
            Some(Effect::CutReply) if call != Call::Download => match to_bytes(response.into_body(), MAX_JSON).await {
                Ok(body) => body.slice(..body.len() / 2).into_response(),
                Err(_) => self.strike(Effect::Break),
            },
            Some(effect) => self.strike(effect),
        }
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.dialect.error(refusal, self.server.faults()))).into_response()
    }

    fn strike(&self, effect: Effect) -> Response {
        match effect {
            Effect::Refuse { status, code, message, after } => {
                let mut response = self.refuse(&Refusal::new(status, code, message));
                if let Some(seconds) = after {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
                response
            }
            Effect::Nonsense => "<!-- ok -->".into_response(),
            Effect::Empty => StatusCode::OK.into_response(),
            Effect::ErrorIn200 => Json(json!({"error": {"code": "1234", "message": "network error"}})).into_response(),
            Effect::NoId => Json(json!({"object": "batch", "status": "validating"})).into_response(),
            Effect::Deny { status, page } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
                let page = if page { "<html><body>this gateway says no</body></html>" } else { "" };
                (status, [(header::CONTENT_TYPE, "text/html"), (header::LOCATION, "/elsewhere")], page).into_response()
            }
            Effect::Html => {
                let page = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>";
                (StatusCode::BAD_GATEWAY, [(header::CONTENT_TYPE, "text/html")], page).into_response()
            }
            // hyper has not sent the head when the body fails: the client sees the connection end.
            Effect::Break | Effect::CutReply | Effect::Stall(_) => {
                let lost = io::Error::new(io::ErrorKind::ConnectionReset, "the emulator broke the connection");
                Body::from_stream(futures::stream::iter([Err::<bytes::Bytes, _>(lost)])).into_response()
            }
        }
    }

    /// The batch as it is now, shown in this dialect.
    async fn show(&self, id: String, poll: bool) -> Result<Value, Refusal> {
        let dialect = self.dialect;
        self.server
            .step(move |server, core| {
                let Some(batch) = core.state.batch(&id) else { return Err(Refusal::not_found("batch", &id)) };
                let running = core.working.get(&id).filter(|_| server.early());
                let done = running.map(|progress| progress.done.load(Ordering::Relaxed));
                let strange = poll && !batch.status.is_terminal() && server.faults().unknown_status();
                let status = serde_json::to_value(batch.status).unwrap_or_default();
                let status = if strange { UNKNOWN_STATUS } else { status.as_str().unwrap_or_default() };
                let mut shown = dialect.batch(batch, status, done, server.faults());
                if let Some(mirage) = server
                    .faults()
                    .schedule()
                    .filter(|_| poll)
                    .and_then(|schedule| schedule.mirage(batch.status.is_terminal()))
                {
                    blur(&mut shown, mirage);
                }
                Ok(shown)
            })
            .await
    }
}

/// Shows a batch as it is not.
fn blur(shown: &mut Value, mirage: Mirage) {
    let Some(shown) = shown.as_object_mut() else { return };
    let mut put = |name: &str, value: Option<Value>| match value {
        Some(value) => drop(shown.insert(name.to_owned(), value)),
        None => drop(shown.remove(name)),
    };
    match mirage {
        Mirage::Unknown => put("status", Some(json!(UNKNOWN_STATUS))),
        Mirage::Backwards => put("status", Some(json!("validating"))),
        Mirage::NoFiles(how) => {
            let nothing = [Some(Value::Null), Some(json!("")), None];
            for name in ["output_file_id", "error_file_id"] {
                put(name, nothing.get(usize::from(how)).cloned().flatten());
            }
        }
        Mirage::NoCounts(null) => put("request_counts", null.then_some(Value::Null)),
    }
}

async fn upload(Handle(api): Handle<Api>, request: Request) -> Response {
    if let Some(refused) = api.before(Call::Upload, request.headers()).await {
        drain(request.into_body()).await;
        return refused;
    }
    let done = match Multipart::from_request(request, &()).await {
        Ok(mut form) => {
            let received = receive(&api, &mut form).await;
            if received.is_err() {
                drain_form(&mut form).await;
            }
            received
        }
        Err(e) => Err(Refusal::parameter(e.to_string())),
    };
    let done = done.map(|file| Json(api.dialect.file(&file, api.server.faults())).into_response());
    api.after(Call::Upload, done).await
}

async fn receive(api: &Api, form: &mut Multipart) -> Result<StoredFile, Refusal> {
    let bad_form = |e: axum::extract::multipart::MultipartError| Refusal::parameter(e.to_string());
    let server = &api.server;
    let Ok(_room) = server.0.uploads.try_acquire() else {
        return Err(Refusal::new(429, "1302", "too many uploads at one time"));
    };
    let upload = server.0.files.file(UPLOAD);
    // The guard is made with the file: a runtime that ends between the two would leave the file behind.
    let made = blocking::run(move || upload.make_temp().map(|(disk, name)| (disk, Part(upload.sibling(&name))))).await;
    let (mut disk, part) = made.map_err(|e| Refusal::disk(format!("write {e}")))?;
    let mut purpose = None;
    let mut file = None;
    while let Some(mut field) = form.next_field().await.map_err(bad_form)? {
        match field.name() {
            Some("purpose") => {
                let mut text = Vec::new();
                while let Some(chunk) = field.chunk().await.map_err(bad_form)? {
                    if text.len() < MAX_PAIR_KEY {
                        text.extend_from_slice(&chunk);
                    }
                }
                purpose = Some(String::from_utf8_lossy(&text).trim().to_owned());
            }
            Some("file") if file.is_none() => {
                let name = field.file_name().unwrap_or_default().to_owned();
                if name.len() > MAX_NAME {
                    return Err(Refusal::parameter(format!("the file's name has more than {MAX_NAME} bytes")));
                }
                if api.dialect == Dialect::Zhipu && !name.ends_with(".jsonl") {
                    return Err(Refusal::parameter("the file's name must end in .jsonl"));
                }
                let (bytes, hash) = save(&disk, &part.0.path(), &mut field, api.dialect.max_bytes()).await?;
                file = Some((name, bytes, hash));
            }
            _ => while field.chunk().await.map_err(bad_form)?.is_some() {},
        }
    }
    if purpose.as_deref() != Some("batch") {
        return Err(Refusal::parameter("purpose must be `batch`"));
    }
    let (name, bytes, hash) = file.ok_or_else(|| Refusal::parameter("there is no part `file`"))?;
    let rules = Rules { dialect: api.dialect, any_model: server.early() };
    let checked = match blocking::run(move || {
        disk.rewind().map_err(Refused::Io).and_then(|()| input::check(disk, rules))
    })
    .await
    {
        Ok(checked) => checked,
        Err(Refused::Content(what)) => return Err(Refusal::parameter(what)),
        Err(Refused::Io(e)) => return Err(Refusal::of(&Error::io("read", part.0.path(), &e))),
    };
    let file = StoredFile {
        id: String::new(),
        at: 0,
        name,
        purpose: Purpose::Batch,
        bytes,
        lines: checked.lines,
        blake3: hash.to_hex().to_string(),
        analysis: checked.analysis,
    };
    server.store(part, file).await
}

/// Writes a field to disk as it comes.
async fn save(
    file: &File,
    path: &Path,
    field: &mut axum::extract::multipart::Field<'_>,
    most: u64,
) -> Result<(u64, blake3::Hash), Refusal> {
    let failed = |e: io::Error| Refusal::of(&Error::io("write", path, &e));
    let file = Arc::new(file.try_clone().map_err(failed)?);
    let (mut bytes, mut hasher, mut pending) = (0, blake3::Hasher::new(), BytesMut::new());
    let write = async |piece: Bytes| {
        let file = Arc::clone(&file);
        blocking::run(move || file.as_ref().write_all(&piece)).await.map_err(failed)
    };
    while let Some(chunk) = field.chunk().await.map_err(|e| Refusal::parameter(e.to_string()))? {
        bytes += chunk.len() as u64;
        if bytes > most {
            return Err(Refusal::new(435, "1210", format!("the file is larger than {} MB", most / 1_000_000)));
        }
        hasher.update(&chunk);
        pending.extend_from_slice(&chunk);
        if pending.len() >= BUFFER {
            write(pending.split().freeze()).await?;
        }
    }
    write(pending.freeze()).await?;
    blocking::run(move || file.sync_all()).await.map_err(failed)?;
    Ok((bytes, hasher.finalize()))
}

async fn drain(body: Body) {
    let mut stream = body.into_data_stream();
    let mut left = MAX_DRAIN;
    while let Some(Ok(chunk)) = stream.next().await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            return;
        }
    }
}

async fn drain_form(form: &mut Multipart) {
    let mut left = MAX_DRAIN;
    while let Ok(Some(mut field)) = form.next_field().await {
        while let Ok(Some(chunk)) = field.chunk().await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                return;
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct Page {
    after: Option<String>,
    limit: Option<String>,
    purpose: Option<String>,
}

impl Page {
    fn limit(&self) -> Result<usize, Refusal> {
        match self.limit.as_deref() {
            None | Some("") => Ok(PAGE),
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
                .ok_or_else(|| Refusal::parameter(format!("limit must be from 1 to {MAX_PAGE}"))),
        }
    }

    /// The ids of a page, newest first, and whether there are more. `again`: so many of the last page are shown once more.
    fn cut<'a>(
        &self,
        dialect: Dialect,
        newest_first: impl Iterator<Item = &'a str> + Clone,
        again: usize,
    ) -> Result<(Vec<String>, bool), Refusal> {
        let limit = self.limit()?;
        let mut skipped = 0;
        if let Some(after) = self.after.as_deref().filter(|after| !after.is_empty()) {
            let Some(at) = newest_first.clone().position(|id| id == after) else {
                return Err(Refusal::not_found("element", after));
            };
            skipped = (at + 1).saturating_sub(again);
        }
        let mut ids = newest_first.skip(skipped).peekable();
        let page: Vec<String> = ids.by_ref().take(limit).map(str::to_owned).collect();
        // OpenAI-style servers may say there is more and then show an empty page.
        let more = match dialect {
            Dialect::Zhipu => ids.peek().is_some(),
            Dialect::OpenAi => page.len() == limit,
        };
        Ok((page, more))
    }
}

/// A page of a list, as both dialects write it.
fn list(data: Vec<Value>, ids: &[String], more: bool) -> Response {
    Json(json!({
        "object": "list",
        "data": data,
        "first_id": ids.first(),
        "last_id": ids.last(),
        "has_more": more,
    }))
    .into_response()
}

async fn list_files(Handle(api): Handle<Api>, Query(page): Query<Page>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::ListFiles, &headers).await {
        return refused;
    }
    let dialect = api.dialect;
    let listed = api.server.step(move |server, core| {
        let purpose = match (page.purpose.as_deref(), dialect) {
            (Some("batch"), _) => Some(Purpose::Batch),
            (Some("batch_output"), _) => Some(Purpose::BatchOutput),
            (None, Dialect::OpenAi) => None,
            _ => return Err(Refusal::parameter("purpose must be `batch`")),
        };
        let files = core.state.files().iter().rev().filter(|held| !held.deleted).map(|held| &held.file);
        let files = files.filter(|file| purpose.is_none_or(|purpose| file.purpose == purpose));
        let (ids, more) = page.cut(dialect, files.map(|file| file.id.as_str()), 0)?;
        let shown = ids.iter().filter_map(|id| core.state.file(id)).map(|file| dialect.file(file, server.faults()));
        Ok((shown.collect(), ids, more))
    });
    let done = listed.await.map(|(data, ids, more): (Vec<Value>, Vec<String>, bool)| list(data, &ids, more));
    api.after(Call::ListFiles, done).await
}

async fn show_file(Handle(api): Handle<Api>, Segment(id): Segment<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::ListFiles, &headers).await {
        return refused;
    }
    let dialect = api.dialect;
    let shown = api.server.step(move |server, core| match core.state.file(&id) {
        Some(file) => Ok(Json(dialect.file(file, server.faults())).into_response()),
        None => Err(Refusal::not_found("file", &id)),
    });
    api.after(Call::ListFiles, shown.await).await
}

/// Clients ask it to see whether the server is there.
async fn list_models(Handle(api): Handle<Api>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::ListFiles, &headers).await {
        return refused;
    }
    let names = Dialect::model_names();
    let data = names.iter().map(|name| json!({"id": name, "object": "model", "created": 0, "owned_by": "zbatch"}));
    let data: Vec<Value> = data.collect();
    api.after(Call::ListFiles, Ok(Json(json!({"object": "list", "data": data})).into_response())).await
}

async fn download(Handle(api): Handle<Api>, Segment(id): Segment<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::Download, &headers).await {
        return refused;
    }
    if api.server.faults().redirects() {
        let to = format!("{}/links/{id}", api.dialect.base());
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
    }
    let done = content(&api, id).await;
    api.after(Call::Download, done).await
}

/// A file as storage hands it out: to whoever has the link, and to nobody who sends a key along.
async fn link(Handle(api): Handle<Api>, Segment(id): Segment<String>, headers: HeaderMap) -> Response {
    if headers.contains_key(header::AUTHORIZATION) {
        return api.refuse(&Refusal::parameter("a key was sent to a link"));
    }
    content(&api, id).await.unwrap_or_else(|refusal| api.refuse(&refusal))
}

async fn content(api: &Api, id: String) -> Reply {
    let (file, announced, bytes, until, pause) = api
        .server
        .step(move |server, core| {
            let late = |file: &&StoredFile| {
                let late = u64::try_from(server.faults().late_file(&file.id).as_millis()).unwrap_or(u64::MAX);
                file.purpose == Purpose::BatchOutput && server.now() < file.at.saturating_add(late)
            };
            let Some(stored) = core.state.file(&id).filter(|file| !late(file)) else {
                return Err(Refusal::not_found("file", &id));
            };
            let entry = server.0.files.file(&stored.id);
            let opened = entry.open().map_err(io::Error::from).and_then(|mut file| {
                let spoiled = server.faults().schedule().and_then(Schedule::spoil);
                let (pause, announced, cut) = match spoiled {
                    None => (Duration::ZERO, false, server.faults().cut()),
                    Some(Spoiled::Slow(pause)) => (pause, false, None),
                    Some(Spoiled::Cut { between_lines, announced }) => (Duration::ZERO, announced, Some(between_lines)),
                };
                let until = match cut {
                    None => stored.bytes,
                    Some(between_lines) => cut_at(&mut file, stored.bytes, between_lines)?,
                };
                Ok((file, announced.then_some(stored.bytes), stored.bytes, until, pause))
            });
            opened.map_err(|e| Refusal::of(&Error::io("open", entry.path(), &e)))
        })
        .await?;
    let mut response = Body::from_stream(read_until(file, until, pause)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if api.dialect == Dialect::OpenAi || announced.is_some() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    Ok(response)
}

/// A file's bytes up to a place, piece by piece, after a pause.
fn read_until(file: File, until: u64, pause: Duration) -> impl Stream<Item = io::Result<Bytes>> {
    futures::stream::try_unfold((Arc::new(file), until, pause), async |(file, left, pause)| {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        if most == 0 {
            return Ok(None);
        }
        let from = Arc::clone(&file);
        let piece = blocking::run(move || {
            let mut piece = vec![0; most];
            from.as_ref().read_exact(&mut piece).map(|()| Bytes::from(piece))
        });
        Ok(Some((piece.await?, (file, left - most as u64, Duration::ZERO))))
    })
}

/// Where a download that comes short ends: about half-way, within a line or after one.
fn cut_at(file: &mut File, bytes: u64, between_lines: bool) -> io::Result<u64> {
    let half = bytes / 2;
    if !between_lines {
        return Ok(half);
    }
    let start = half.saturating_sub(BUFFER as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut window = vec![0; usize::try_from(half - start).unwrap_or(0)];
    file.read_exact(&mut window)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(memchr::memrchr(b'\n', &window).map_or(0, |at| start + at as u64 + 1))
}

async fn delete_file(Handle(api): Handle<Api>, Segment(id): Segment<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::DeleteFile, &headers).await {
        return refused;
    }
    let done = api.server.delete(&id).await;
    let done = done.map(|()| Json(json!({"id": id, "object": "file", "deleted": true})).into_response());
    api.after(Call::DeleteFile, done).await
}

#[derive(Debug, Deserialize)]
struct CreateBody {
    input_file_id: Option<String>,
    endpoint: Option<String>,
    completion_window: Option<String>,
    auto_delete_input_file: Option<bool>,
    metadata: Option<Map<String, Value>>,
}

async fn create(Handle(api): Handle<Api>, request: Request) -> Response {
    if let Some(refused) = api.before(Call::Create, request.headers()).await {
        return refused;
    }
    let done = match to_bytes(request.into_body(), MAX_JSON).await {
        Err(e) => Err(Refusal::parameter(e.to_string())),
        Ok(body) => match api.server.faults().schedule().and_then(Schedule::late) {
            None => accept(&api, &body).await,
            Some(time) => {
                let later = api.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    // Nobody hears of it.
                    let _accepted = accept(&later, &body).await;
                });
                return api.strike(Effect::Break);
            }
        },
    };
    api.after(Call::Create, done).await
}

async fn accept(api: &Api, body: &[u8]) -> Reply {
    let body: CreateBody = serde_json::from_slice(body).map_err(|e| Refusal::parameter(e.to_string()))?;
    let file = body.input_file_id.ok_or_else(|| Refusal::parameter("input_file_id is missing"))?;
    let endpoint = body.endpoint.ok_or_else(|| Refusal::parameter("endpoint is missing"))?;
    if endpoint != api.dialect.endpoint() {
        return Err(Refusal::parameter(format!("endpoint must be {}", api.dialect.endpoint())));
    }
    if api.dialect == Dialect::OpenAi && body.completion_window.as_deref() != Some("24h") {
        return Err(Refusal::parameter("completion_window must be `24h`"));
    }
    let metadata = body.metadata.map(check_metadata).transpose()?;
    let auto_delete = body.auto_delete_input_file.unwrap_or(api.dialect == Dialect::Zhipu);
    let id = api.server.create(file, endpoint, auto_delete, metadata).await?;
    api.show(id, false).await.map(|batch| Json(batch).into_response())
}

fn check_metadata(pairs: Map<String, Value>) -> Result<Metadata, Refusal> {
    if pairs.len() > MAX_PAIRS {
        return Err(Refusal::parameter(format!("metadata has more than {MAX_PAIRS} pairs")));
    }
    let mut metadata = Metadata::new();
    for (key, value) in pairs {
        let Value::String(value) = value else {
            return Err(Refusal::parameter(format!("metadata `{key}` is not a string")));
        };
        if key.chars().count() > MAX_PAIR_KEY || value.chars().count() > MAX_PAIR_VALUE {
            return Err(Refusal::parameter(format!("metadata `{key}` is too long")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

async fn poll(Handle(api): Handle<Api>, Segment(id): Segment<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::Poll, &headers).await {
        return refused;
    }
    let done = match api.server.look(&id, Look::Poll).await {
        Ok(()) => api.show(id, true).await.map(|batch| Json(batch).into_response()),
        Err(refusal) => Err(refusal),
    };
    api.after(Call::Poll, done).await
}

async fn list_batches(Handle(api): Handle<Api>, Query(page): Query<Page>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::ListBatches, &headers).await {
        return refused;
    }
    let done = page_of_batches(&api, page).await;
    api.after(Call::ListBatches, done).await
}

async fn page_of_batches(api: &Api, page: Page) -> Reply {
    let dialect = api.dialect;
    let (ids, more) = api
        .server
        .step(move |server, core| {
            let now = server.now();
            let lag = |id: &str| u64::try_from(server.faults().list_lag(id).as_millis()).unwrap_or(u64::MAX);
            let hidden = server.faults().hides_batches();
            let listed = core.state.batches().iter().rev().filter(|_| !hidden);
            let listed = listed.filter(|batch| now >= batch.at.saturating_add(lag(&batch.id)));
            let mut ids: Vec<&str> = listed.map(|batch| batch.id.as_str()).collect();
            let Some(schedule) = server.faults().schedule() else { return page.cut(dialect, ids.into_iter(), 0) };
            ids.sort_by_key(|id| schedule.order(id));
            let (most, again) = schedule.page(page.limit()?);
            let page = Page { limit: Some(most.to_string()), ..page };
            page.cut(dialect, ids.into_iter(), again)
        })
        .await?;
    let mut data = Vec::new();
    for id in &ids {
        // Trouble with the work of a batch is told to who polls it.
        if let Err(refusal) = api.server.look(id, Look::List).await {
            tracing::warn!("emulator: {id}: {}", refusal.message);
        }
        data.push(api.show(id.clone(), false).await?);
    }
    Ok(list(data, &ids, more))
}

async fn cancel(Handle(api): Handle<Api>, Segment(id): Segment<String>, headers: HeaderMap) -> Response {
    if let Some(refused) = api.before(Call::Cancel, &headers).await {
        return refused;
    }
    let done = match api.server.cancel(&id).await {
        Ok(()) => api.show(id, false).await.map(|batch| Json(batch).into_response()),
        Err(refusal) => Err(refusal),
    };
    api.after(Call::Cancel, done).await
}
