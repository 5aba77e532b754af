//! How a request reaches a server: over the network, or the emulator in this process. The only seam for tests;
//! dialect, retries and the reading of errors run above it.
//!
//! https only, except to a loopback address (`127.0.0.0/8`, `::1`) and the name `localhost`, which is never looked
//! up but always means those two. Certificates are always checked, redirects never followed, nothing is sent twice
//! (`promises.md` N1, N2).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::Either;
use http_body_util::BodyExt as _;
use reqwest::Url;
use tokio::time::Instant;
use tower::ServiceExt as _;

use crate::error::{Error, Kind, Result};

const CONNECT: Duration = Duration::from_secs(8);
/// A PEM file larger than this is a mistake.
const MAX_CA: u64 = 1 << 20;

/// How long a server may be silent. There is no limit on a transfer that moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the end of the request to the first byte of the reply.
    pub first_byte: Duration,
    /// The same for an upload: 100 MB are validated in between.
    pub first_byte_upload: Duration,
    /// Between two pieces of a body, in either direction.
    pub idle: Duration,
}

impl Patience {
    pub const STANDARD: Self = Self {
        first_byte: Duration::from_secs(120),
        first_byte_upload: Duration::from_secs(300),
        idle: Duration::from_secs(90),
    };
}

pub enum Transport {
    Http(reqwest::Client),
    /// A server in this process.
    Direct(axum::Router),
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http(_) => "Http",
            Self::Direct(_) => "Direct",
        })
    }
}

/// Where the API is; checked, without a trailing slash.
#[derive(Clone, Debug)]
pub(super) struct BaseUrl(Url);

impl BaseUrl {
    /// # Errors
    /// [`Kind::Usage`] for anything but https, or http on loopback.
    pub fn parse(text: &str) -> Result<Self> {
        // The text is not shown: people put keys into URLs.
        let refuse = |why: &str| Error::usage(format!("the base URL {why}"));
        let mut url = Url::parse(text.trim())
            .map_err(|e| refuse(&format!("is wrong: {e}")).fix("e.g. --base-url https://api.z.ai/api/paas/v4"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("holds a user name or password").fix("put the key into the environment instead"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("has a query or fragment").fix("end it before the ? or #"));
        }
        let base = Self(url.clone());
        match url.scheme() {
            "https" => {}
            "http" if base.is_loopback() => {}
            scheme => {
                return Err(refuse(&format!("begins with {scheme}:// and would send the key in the open"))
                    .fix("https://…; plain http is for 127.0.0.1, [::1] and localhost"));
            }
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }

    /// `path` is below the base and escaped already.
    pub fn join(&self, path: &str) -> String {
        format!("{}/{path}", self.0.as_str().trim_end_matches('/'))
    }

    fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl Transport {
    /// The one place where a network client is made.
    pub(super) fn http(base: &BaseUrl, ca_cert: Option<&Path>) -> Result<Self> {
        // Fails only if there is one already, which is then as good.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("zbatch/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // A call we give up takes its connection with it; on a shared one the next would hang where it hung.
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false);
        if base.is_loopback() {
            let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let addresses = loopback.map(|ip| SocketAddr::new(ip, 0));
            builder = builder.no_proxy().resolve_to_addrs("localhost", &addresses);
        }
        if let Some(path) = ca_cert {
            builder = builder.tls_certs_merge(read_ca(path)?);
        } else if base.0.scheme() == "http" {
            // A machine without certificates can still talk to itself.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|e| {
            Error::new(Kind::Unavailable, format!("cannot set up TLS: {}", chain(&e)))
                .fix("install the system's CA certificates (package ca-certificates), or name one with --ca-cert")
        })?;
        Ok(Self::Http(client))
    }

    /// Sends a request once and waits for the head of the reply.
    pub(super) async fn send(
        &self,
        request: http::Request<reqwest::Body>,
        moved: &Moved,
        patience: Patience,
    ) -> Result<Reply, Broken> {
        let answer = match self {
            Self::Http(client) => {
                let request = reqwest::Request::try_from(request)
                    .map_err(|e| Broken { sent: false, why: chain(&e.without_url()) })?;
                Either::Left(async {
                    let answer = client.execute(request).await;
                    let answer = answer.map_err(|e| Broken { sent: !e.is_connect(), why: chain(&e.without_url()) })?;
                    Ok(Reply {
                        status: answer.status(),
                        headers: answer.headers().clone(),
                        body: ReplyBody::Http(Box::new(answer)),
                    })
                })
            }
            Self::Direct(router) => {
                let answer = router.clone().oneshot(request.map(axum::body::Body::new));
                Either::Right(async {
                    let Ok(answer) = answer.await;
                    let (head, body) = answer.into_parts();
                    Ok(Reply { status: head.status, headers: head.headers, body: ReplyBody::Direct(body) })
                })
            }
        };
        tokio::pin!(answer);
        loop {
            let limit = moved.limit(patience);
            match tokio::time::timeout_at(limit, &mut answer).await {
                Ok(reply) => return reply,
                // The request's body moved in the meantime.
                Err(_) if moved.limit(patience) > limit => {}
                Err(_) => return Err(Broken { sent: true, why: "no answer in time".to_owned() }),
            }
        }
    }
}

fn read_ca(path: &Path) -> Result<Vec<reqwest::Certificate>> {
    use std::io::Read as _;

    let fail = |why: String| Error::input(format!("--ca-cert {}: {why}", path.display()));
    let mut pem = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_CA).read_to_string(&mut pem))
        .map_err(|e| fail(e.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|e| fail(chain(&e)))?;
    if certificates.is_empty() {
        return Err(
            fail("there is no certificate in it".to_owned()).fix("it should be PEM: -----BEGIN CERTIFICATE-----")
        );
    }
    Ok(certificates)
}

/// A call that has no whole reply.
#[derive(Debug)]
pub(super) struct Broken {
    /// Something may have reached the server.
    pub sent: bool,
    pub why: String,
}

/// When the body of a request last moved, shared by the body and by who waits for the reply.
#[derive(Debug)]
pub(super) struct Moved(Mutex<Motion>);

#[derive(Debug)]
struct Motion {
    last: Instant,
    streamed: bool,
    ended: bool,
    /// Why our own file could not be read.
    failed: Option<String>,
}

impl Moved {
    /// For a body that is there whole.
    pub fn whole() -> Self {
        Self(Mutex::new(Motion { last: Instant::now(), streamed: false, ended: true, failed: None }))
    }

    /// For a body that will move.
    pub fn streamed() -> Self {
        Self(Mutex::new(Motion { last: Instant::now(), streamed: true, ended: false, failed: None }))
    }

    pub fn touch(&self, ended: bool) {
        let mut motion = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        motion.last = Instant::now();
        motion.ended = ended;
    }

    pub fn fail(&self, why: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed = Some(why);
    }

    pub fn failed(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed.clone()
    }

    fn limit(&self, patience: Patience) -> Instant {
        let motion = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = match (motion.ended, motion.streamed) {
            (false, _) => patience.idle,
            (true, true) => patience.first_byte_upload,
            (true, false) => patience.first_byte,
        };
        motion.last + silence
    }
}

/// The head of a reply, and its body to come.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: http::StatusCode,
    pub headers: http::HeaderMap,
    pub body: ReplyBody,
}

#[derive(Debug)]
pub(super) enum ReplyBody {
    Http(Box<reqwest::Response>),
    Direct(axum::body::Body),
}

impl ReplyBody {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self, patience: Patience) -> Result<Option<Bytes>, Broken> {
        let lost = |why| Broken { sent: true, why };
        let next = async {
            match self {
                Self::Http(response) => response.chunk().await.map_err(|e| lost(chain(&e.without_url()))),
                Self::Direct(body) => loop {
                    match body.frame().await {
                        None => break Ok(None),
                        Some(Err(e)) => break Err(lost(chain(&e))),
                        Some(Ok(frame)) => {
                            // Trailers are of no interest.
                            if let Ok(data) = frame.into_data() {
                                break Ok(Some(data));
                            }
                        }
                    }
                },
            }
        };
        tokio::time::timeout(patience.idle, next)
            .await
            .unwrap_or_else(|_| Err(lost("the reply stopped half way".to_owned())))
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback() {
        for good in [
            "https://open.bigmodel.cn/api/paas/v4/",
            "http://127.0.0.1:8080/v1",
            "http://127.8.9.10",
            "http://[::1]:1/v4//",
            "http://localhost:8080",
        ] {
            let base = BaseUrl::parse(good).expect(good);
            assert_eq!(base.join("files"), format!("{}/files", good.trim_end_matches('/')));
        }
        for bad in [
            "http://open.bigmodel.cn/v4",
            "http://127.0.0.1.evil.example/",
            "http://localhost.evil.example/",
            "http://10.0.0.1/",
            "http://0.0.0.0/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "https://user:secretsecret@host/",
            "https://host/?key=secretsecret",
            "https://host/#x",
            "open.bigmodel.cn/api",
            "",
        ] {
            let error = BaseUrl::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), Kind::Usage, "{bad}");
            assert!(!error.to_string().contains("secretsecret"), "{error}");
        }
    }
}
