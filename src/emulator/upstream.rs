//! Answers from a real chat server: each line's body is posted to `{URL}/chat/completions`, a few at a time, with
//! retries; what comes back is copied into the result line as it is. The rows of a batch that was killed are asked
//! again: progress is kept batch by batch.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::Semaphore;

use super::{
    Progress,
    dialect::Dialect,
    faults::{FaultPlan, LineKey},
    input::{LineFile, Span},
    results::{Job, Outcome, Results, shuffled},
    state::{WHOLE, Work},
};
use crate::{
    blocking,
    error::{Error, Kind, Result},
    provider::Key,
    units::count,
};

/// Requests under way at one time.
const CONCURRENCY: usize = 8;
/// Lines under way together hold at most this much, or one line.
const HELD_KIB: u32 = 16 << 10;
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Also the most that a `Retry-After` is honoured for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(8);
/// A local model may take its time over one answer.
const TIMEOUT: Duration = Duration::from_secs(600);
/// A longer reply is an error of its row.
const MAX_REPLY: usize = 4 << 20;
const KEY_VARIABLE: &str = "ZBATCH_UPSTREAM_KEY";

/// A chat server.
#[derive(Debug)]
pub struct Upstream {
    client: reqwest::Client,
    name: String,
    url: String,
    key: Option<Key>,
}

/// What became of a row.
enum Replied {
    Chat(Box<RawValue>),
    Refused { status: u16, code: String, message: String, body: Value },
}

/// Why an attempt gave no reply, and when to try again.
struct Hiccup {
    status: u16,
    what: String,
    retry_after: Option<Duration>,
}

#[derive(Deserialize)]
struct Row<'a> {
    custom_id: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl Upstream {
    /// Takes the base URL of the server; the key, if it needs one, is in the environment.
    pub fn resolve(base: &str) -> Result<Self> {
        let bad = |what: String| Error::usage(format!("--upstream {base}: {what}"));
        let url = reqwest::Url::parse(base).map_err(|e| bad(e.to_string()).fix("e.g. http://127.0.0.1:8080/v1"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(bad("not an http URL".to_owned()).fix("e.g. http://127.0.0.1:8080/v1"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            // It is named in messages and in the report.
            return Err(Error::usage("--upstream: the URL holds a user name, a password or a query")
                .fix(format!("put the key into {KEY_VARIABLE}")));
        }
        let key = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.trim().is_empty());
        let loopback = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if key.is_some() && url.scheme() == "http" && !loopback {
            return Err(
                bad("the key would travel in the clear".to_owned()).fix(format!("use https, or unset {KEY_VARIABLE}"))
            );
        }
        // Whoever is first installs it; it is the same one everywhere in this program.
        let _installed_already = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if loopback {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|e| Error::new(Kind::Unavailable, format!("no HTTP client: {e}")))?;
        let name = base.trim_end_matches('/').to_owned();
        let url = format!("{name}/chat/completions");
        Ok(Self { client, name, url, key: key.map(|key| Key::parse(&key, &format!("${KEY_VARIABLE}"))).transpose()? })
    }

    /// Its base URL, which holds no secret.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Answers the lines of a job until they are done or the job is stopped.
    pub async fn produce(&self, job: Job, seed: u64, faults: &FaultPlan, progress: &Progress) -> Result<Work> {
        let (input, content) = (job.input.clone(), job.input_blake3.clone());
        let read = move || shuffled(&input, seed, &content);
        let order = blocking::run(read).await?;
        let held = Arc::new(Semaphore::new(HELD_KIB as usize));
        let mut results = Results::create(&job, faults)?;
        let rows = order.into_iter().map(|span| self.row(&job, span, seed, Arc::clone(&held), progress));
        let mut rows = futures::stream::iter(rows).buffer_unordered(CONCURRENCY);
        while let Some(row) = rows.next().await {
            let (custom_id, key, replied) = row?;
            let outcome = match &replied {
                None => Outcome::NotRun,
                Some(Replied::Chat(body)) => Outcome::Copied(body),
                Some(Replied::Refused { status, code, message, body }) => {
                    Outcome::Failed { status: *status, code, message, body: body.clone() }
                }
            };
            results.put(&custom_id, outcome, &key, faults)?;
        }
        drop(rows);
        results.finish()
    }

    /// One row; `None` if it was not asked.
    async fn row(
        &self,
        job: &Job,
        span: Span,
        seed: u64,
        held: Arc<Semaphore>,
        progress: &Progress,
    ) -> Result<(String, LineKey, Option<Replied>)> {
        let room = (span.bytes / 1024 + 1).min(HELD_KIB);
        let _room = held.acquire_many_owned(room).await.ok();
        let input = job.input.clone();
        let failed = |e: std::io::Error| Error::io("read", job.input.path(), &e);
        let line = blocking::run(move || LineFile::new(input.open()?).bytes_at(span)).await;
        let line = Bytes::from(line.map_err(failed)?);
        let key = LineKey::finish(LineKey::hasher(seed).update(&line));
        let row: Row<'_> = serde_json::from_slice(&line).map_err(|e| Error::input(format!("{}: {e}", job.input)))?;
        if progress.stop.load(Ordering::Relaxed) || (job.share < WHOLE && !key.within("share", job.share)) {
            return Ok((row.custom_id, key, None));
        }
        // A part of the line's own memory, not a copy.
        let body = line.slice_ref(row.body.get().as_bytes());
        let replied = self.ask(body, job.dialect, progress).await;
        progress.done.fetch_add(1, Ordering::Relaxed);
        Ok((row.custom_id, key, Some(replied)))
    }

    /// Asks until there is an answer, a refusal, or no try left.
    async fn ask(&self, body: Bytes, dialect: Dialect, progress: &Progress) -> Replied {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let hiccup = match self.attempt(body.clone()).await {
                Ok(replied) => return replied,
                Err(hiccup) => hiccup,
            };
            if tries == TRIES || progress.stop.load(Ordering::Relaxed) {
                let code = if dialect == Dialect::OpenAi { "request_timeout" } else { "1234" };
                return refused(hiccup.status, code, format!("{} (tried {})", hiccup.what, count(tries, "time")));
            }
            tokio::time::sleep(hiccup.retry_after.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            tries += 1;
        }
    }

    async fn attempt(&self, body: Bytes) -> Result<Replied, Hiccup> {
        // The URL of the server stands in reqwest's messages and says nothing new.
        let unreachable =
            |e: reqwest::Error| Hiccup { status: 503, what: e.without_url().to_string(), retry_after: None };
        let mut request = self.client.post(&self.url).header(header::CONTENT_TYPE, "application/json").body(body);
        if let Some(header) = self.key.as_ref().and_then(Key::header) {
            request = request.header(header::AUTHORIZATION, header);
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let mut reply = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if reply.len() + chunk.len() > MAX_REPLY {
                return Ok(refused(502, "bad_reply", format!("the reply is larger than {MAX_REPLY} bytes")));
            }
            reply.extend_from_slice(&chunk);
        }
        if let Some(key) = &self.key {
            reply = key.redact_bytes(reply);
        }
        let transient = matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
        if transient || status.is_server_error() {
            let what = format!("the upstream server says {status}");
            return Err(Hiccup { status: status.as_u16(), what, retry_after });
        }
        if !status.is_success() {
            return Ok(told(status, &reply));
        }
        Ok(match chat(reply) {
            Some(body) => Replied::Chat(body),
            None => refused(502, "bad_reply", "the upstream server's reply is not a JSON object".to_owned()),
        })
    }
}

fn refused(status: u16, code: &str, message: String) -> Replied {
    Replied::Refused { status, code: code.to_owned(), message, body: json!({}) }
}

/// A refusal in the server's own words.
fn told(status: StatusCode, reply: &[u8]) -> Replied {
    let body: Value = serde_json::from_slice(reply).ok().filter(Value::is_object).unwrap_or_else(|| json!({}));
    let error = body.get("error");
    let word = |name| error.and_then(|error| error.get(name)).filter(|value| !value.is_null());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let code = word("code").map_or_else(|| status.as_u16().to_string(), text);
    let message = word("message").or(error).map_or_else(|| format!("the upstream server says {status}"), text);
    Replied::Refused { status: status.as_u16(), code, message, body }
}

/// A reply as it stands, on one line: a line break can only be between its tokens.
fn chat(mut reply: Vec<u8>) -> Option<Box<RawValue>> {
    for byte in &mut reply {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    let text = String::from_utf8(reply).ok()?;
    let body: Box<RawValue> = serde_json::from_str(&text).ok()?;
    body.get().starts_with('{').then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_copied_on_one_line() {
        let body = chat(b" {\r\n \"a\": 1.50,\n \"b\": \"x\\ny\" }\n".to_vec()).expect("an object");
        assert_eq!(body.get(), "{   \"a\": 1.50,  \"b\": \"x\\ny\" }");
        assert!(chat(b"<html>".to_vec()).is_none());
        assert!(chat(b"[1]".to_vec()).is_none());
        // A raw line break within a string is not JSON, and stays so.
        assert!(chat(b"{\"a\":\"x\xff\"}".to_vec()).is_none());
    }

    #[test]
    fn a_refusal_keeps_the_servers_words() {
        let Replied::Refused { status, code, message, .. } =
            told(StatusCode::BAD_REQUEST, br#"{"error":{"code":"ctx","message":"too long"}}"#)
        else {
            panic!("refused")
        };
        assert_eq!((status, code.as_str(), message.as_str()), (400, "ctx", "too long"));
        let Replied::Refused { code, message, .. } = told(StatusCode::NOT_FOUND, b"<html>") else { panic!("refused") };
        assert_eq!((code.as_str(), message.as_str()), ("404", "the upstream server says 404 Not Found"));
    }

    #[test]
    fn urls_that_are_none() {
        for bad in ["", "127.0.0.1:8080", "ftp://x/v1"] {
            assert_eq!(Upstream::resolve(bad).expect_err(bad).kind(), Kind::Usage);
        }
    }
}
