//! How a request reaches a server: over the network, or in this process to the emulator. This is the only seam for tests;
//! dialect, retries and the reading of errors run above it.
//!
//! Certificates are always checked and nothing is sent twice. No redirect is followed here: `download.rs` decides where a
//! download goes next (`docs/reliability.md` N1, N2).

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    future::Either,
    stream::{BoxStream, StreamExt as _, TryStreamExt as _},
};
use http::Method;
use reqwest::{RequestBuilder, Url};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt as _;

use super::{
    Class,
    address::{BaseUrl, host, is_loopback},
    certificates, proxies,
};
use crate::{
    error::{Error, Kind, Result},
    text::chain,
};

const CONNECT: Duration = Duration::from_secs(8);

/// How long a server may be silent. A transfer that moves has no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the end of the request to the first byte of the reply.
    pub first_byte: Duration,
    /// The same for an upload: the server checks 100 MB in between.
    pub first_byte_upload: Duration,
    /// Between two pieces of a body, in either direction.
    pub idle: Duration,
    /// For the whole of a reply that should be small. A server could keep one open for ever with a byte now and then.
    pub small: Duration,
}

impl Timeouts {
    pub const STANDARD: Self = Self {
        first_byte: Duration::from_secs(120),
        first_byte_upload: Duration::from_secs(300),
        idle: Duration::from_secs(120),
        small: Duration::from_secs(180),
    };
}

pub enum Transport {
    Http(Network),
    /// A server in this process. `requests` builds requests and sends none.
    Direct {
        router: axum::Router,
        requests: reqwest::Client,
    },
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http(_) => "Http",
            Self::Direct { .. } => "Direct",
        })
    }
}

/// Sockets.
#[derive(Debug)]
pub struct Network {
    client: reqwest::Client,
    /// The API is on this machine: `client` uses no proxies, and knows no certificates where the API needs none.
    is_local: bool,
    /// For a download that is redirected from this machine to another.
    beyond: OnceLock<Result<reqwest::Client>>,
    certificates: Vec<CertificateDer<'static>>,
    timeouts: Timeouts,
}

impl Transport {
    pub(super) fn http(base: &BaseUrl, ca_cert: Option<&Path>, timeouts: Timeouts) -> Result<Self> {
        let is_local = is_loopback(base.url());
        if !is_local {
            proxies::check(base.url())?;
        }
        let certificates = ca_cert.map(certificates::read).transpose()?.unwrap_or_default();
        let client = new_client(&certificates, is_local, base.url().scheme() == "http", timeouts)?;
        Ok(Self::Http(Network { client, is_local, beyond: OnceLock::new(), certificates, timeouts }))
    }

    pub(super) fn direct(router: axum::Router, timeouts: Timeouts) -> Result<Self> {
        Ok(Self::Direct { router, requests: new_client(&[], true, true, timeouts)? })
    }

    /// Begins a request. It holds nothing secret yet.
    pub(super) fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let (Self::Http(Network { client, .. }) | Self::Direct { requests: client, .. }) = self;
        client.request(method, url)
    }

    /// Sends a request once and waits for the head of the reply.
    pub(super) async fn send(&self, request: reqwest::Request, sending: &Sending) -> Result<Reply, Broken> {
        let reply = match self {
            Self::Http(network) => {
                let client = network.client_for(request.url())?;
                Either::Left(async move {
                    let response = client.execute(request).await.map_err(Broken::by)?;
                    let (status, headers) = (response.status(), response.headers().clone());
                    let pieces = response.bytes_stream().map_err(|e| Broken::new(chain(&e.without_url())));
                    Ok(Reply { status, headers, pieces: pieces.boxed(), elsewhere: None })
                })
            }
            Self::Direct { router, .. } => {
                let request: http::Request<reqwest::Body> =
                    request.try_into().map_err(|e: reqwest::Error| Broken::not_sent(chain(&e.without_url())))?;
                let response = router.clone().oneshot(request.map(axum::body::Body::new));
                Either::Right(async {
                    let Ok(response) = response.await;
                    let (head, body) = response.into_parts();
                    let pieces = body.into_data_stream().map_err(|e| Broken::new(chain(&e)));
                    Ok(Reply { status: head.status, headers: head.headers, pieces: pieces.boxed(), elsewhere: None })
                })
            }
        };
        tokio::pin!(reply);
        loop {
            let deadline = sending.deadline();
            match timeout_at(deadline, &mut reply).await {
                Ok(reply) => return reply,
                Err(_) if sending.deadline() > deadline => {}
                Err(_) => return Err(Broken::new("no answer in time".to_owned())),
            }
        }
    }
}

impl Network {
    /// The host of a URL, and the proxy on the way there.
    pub(super) fn place(&self, url: &Url) -> String {
        if self.is_local && is_loopback(url) { host(url) } else { proxies::host_and_proxy(url) }
    }

    /// The client that may go to `url`.
    fn client_for(&self, url: &Url) -> std::result::Result<&reqwest::Client, Broken> {
        if !self.is_local || is_loopback(url) {
            return Ok(&self.client);
        }
        let beyond = self.beyond.get_or_init(|| {
            proxies::check(url)?;
            new_client(&self.certificates, false, false, self.timeouts)
        });
        beyond.as_ref().map_err(|e| Broken::not_sent(e.line()))
    }
}

/// The one place where a network client is made.
fn new_client(
    given: &[CertificateDer<'static>],
    is_local: bool,
    is_plain: bool,
    timeouts: Timeouts,
) -> Result<reqwest::Client> {
    // Fails only if a provider is installed already, and that one is as good.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("zbatch/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        // A call that is given up takes its connection with it. On a shared connection the next call would hang as well.
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false);
    #[cfg(target_os = "linux")]
    {
        // The default of reqwest, 30 s, ended an upload whose peer had stopped reading for a while.
        builder = builder.tcp_user_timeout(timeouts.idle);
    }
    if is_local {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let addresses = loopback.map(|ip| SocketAddr::new(ip, 0));
        builder = builder.no_proxy().resolve_to_addrs("localhost", &addresses);
    }
    if !given.is_empty() {
        builder = builder.tls_backend_preconfigured(certificates::believing(given.to_vec())?);
    } else if is_plain {
        // A machine without certificates can still talk to itself.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|e| {
        Error::new(Kind::Unavailable, format!("cannot set up TLS: {}", chain(&e)))
            .fix("install the system's CA certificates (package ca-certificates), or name one with --ca-cert")
    })
}

/// A call that has no whole reply.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    /// Something may have reached the server.
    pub sent: bool,
    pub why: String,
    pub class: Class,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Broken {}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        Self::other(broken)
    }
}

impl Broken {
    /// The network failed after the request was sent, or while it was sent.
    pub fn new(why: String) -> Self {
        Self { sent: true, why, class: Class::Unreachable }
    }

    fn not_sent(why: String) -> Self {
        Self { sent: false, ..Self::new(why) }
    }

    fn by(error: reqwest::Error) -> Self {
        let sent = !error.is_connect();
        let class = match () {
            () if is_about_a_certificate(&error) => Class::Certificate,
            () if lacks_files(&error) => Class::Io,
            () => Class::Unreachable,
        };
        let why = chain(&error.without_url());
        // These words name layers of the HTTP client and tell the user nothing.
        let layers = ["error sending request: ", "client error (Connect): ", "client error (SendRequest): "];
        let why = layers.into_iter().fold(why.as_str(), |why, layer| why.strip_prefix(layer).unwrap_or(why));
        match why.strip_prefix("tunnel error: ") {
            Some("proxy authorization required") => {
                let why = "the proxy answers with HTTP 407: it wants a user name and a password".to_owned();
                Self { sent, why, class: Class::Proxy }
            }
            Some("unsuccessful") => Self { sent, why: "the proxy refuses to connect".to_owned(), class },
            Some(why) => Self { sent, why: format!("the proxy: {why}"), class },
            None => Self { sent, why: why.to_owned(), class },
        }
    }
}

fn is_about_a_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) = error.downcast_ref() {
        return true;
    }
    // An error inside an `io::Error` is not its source.
    let within = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
    within.is_some_and(|within| is_about_a_certificate(within)) || error.source().is_some_and(is_about_a_certificate)
}

/// This process, or the machine, has as many files open as it may: the network is not to blame.
fn lacks_files(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustix::io::Errno;

    let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    code.is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
        || error.source().is_some_and(lacks_files)
}

/// The one timer of a call without a reply. The body of an upload moves the deadline with each piece that it gives.
#[derive(Debug)]
pub(super) struct Sending {
    deadline: Mutex<Instant>,
    /// Why the file that is uploaded cannot be read.
    unreadable: OnceLock<String>,
}

impl Sending {
    /// The next sign of life must come within this time.
    pub fn within(time: Duration) -> Self {
        Self { deadline: Mutex::new(Instant::now() + time), unreadable: OnceLock::new() }
    }

    /// The body moved: the next sign of life must come within this time from now.
    pub fn moved(&self, time: Duration) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + time;
    }

    pub fn fail(&self, why: String) {
        self.unreadable.get_or_init(|| why);
    }

    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.get().map(String::as_str)
    }

    fn deadline(&self) -> Instant {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of a reply, and its body to come.
pub(super) struct Reply {
    pub status: http::StatusCode,
    pub headers: http::HeaderMap,
    pub pieces: BoxStream<'static, Result<Bytes, Broken>>,
    /// The host that sent the reply, where that is not the provider.
    pub elsewhere: Option<String>,
}
