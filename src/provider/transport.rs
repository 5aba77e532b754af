//! How a request reaches a server: over the network, or the emulator in this process. The only seam for tests;
//! dialect, retries and the reading of errors run above it.
//!
//! https only, except to a loopback address (`127.0.0.0/8`, `::1`) and the name `localhost`, which is never looked
//! up but always means those two. Certificates are always checked, nothing is sent twice, and no redirect is followed
//! here: where a download goes next is decided by [`redirected`] (`docs/reliability.md` N1, N2).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::Either;
use http_body_util::BodyExt as _;
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::{
    Class, certificates,
    proxies::{self, host},
};
use crate::{
    error::{Error, Kind, Result},
    text::chain,
};

const CONNECT: Duration = Duration::from_secs(8);

/// How long a server may be silent. There is no limit on a transfer that moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the end of the request to the first byte of the reply.
    pub first_byte: Duration,
    /// The same for an upload: 100 MB are validated in between.
    pub first_byte_upload: Duration,
    /// Between two pieces of a body, in either direction.
    pub idle: Duration,
    /// For the whole of a reply that should be small: one that drips is no transfer that moves.
    pub small: Duration,
}

impl Patience {
    pub const STANDARD: Self = Self {
        first_byte: Duration::from_secs(120),
        first_byte_upload: Duration::from_secs(300),
        idle: Duration::from_secs(120),
        small: Duration::from_secs(180),
    };
}

pub enum Transport {
    Http(Network),
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

/// Sockets.
#[derive(Debug)]
pub struct Network {
    client: reqwest::Client,
    /// The API is on this machine: `client` uses no proxies, and knows no certificates where the API needs none.
    is_local: bool,
    /// For a download that is redirected from this machine to another.
    beyond: OnceLock<Result<reqwest::Client>>,
    certificates: Vec<CertificateDer<'static>>,
    patience: Patience,
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
        is_loopback(&self.0)
    }

    pub fn url(&self) -> &Url {
        &self.0
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Scheme, host and port of an address.
pub fn origin_of(url: &str) -> Option<String> {
    let origin = Url::parse(url.trim()).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

/// Host and port of an address.
pub fn host_of(url: &str) -> Option<String> {
    Url::parse(url.trim()).ok().filter(Url::has_host).map(|url| host(&url))
}

/// Two origins are one server, or both are on this machine: a local server has another port each time it is started.
pub fn is_same_server(one: &str, other: &str) -> bool {
    let is_local = |origin: &str| Url::parse(origin).is_ok_and(|url| is_loopback(&url));
    one == other || is_local(one) && is_local(other)
}

/// Where a download goes that is sent from `from` to `location`: over https to anywhere, without it within this machine.
///
/// # Errors
/// Why it does not go there, naming the host.
pub(super) fn redirected(from: &Url, location: &str) -> std::result::Result<Url, String> {
    let mut to =
        from.join(location).map_err(|_| format!("{} sends us to an address that cannot be read", host(from)))?;
    let refuse = |why: &str| Err(format!("{} sends us to {}://{}, {why}", host(from), to.scheme(), host(&to)));
    match to.scheme() {
        "https" => {}
        "http" if is_loopback(from) && is_loopback(&to) => {}
        _ => return refuse("and only https is followed"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return refuse("with a user name or password in the address");
    }
    to.set_fragment(None);
    Ok(to)
}

impl Transport {
    pub(super) fn http(base: &BaseUrl, ca_cert: Option<&Path>, patience: Patience) -> Result<Self> {
        // Fails only if there is one already, which is then as good.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let is_local = base.is_loopback();
        if !is_local {
            proxies::check(base.url())?;
        }
        let certificates = ca_cert.map(certificates::read).transpose()?.unwrap_or_default();
        let client = new_client(&certificates, is_local, base.0.scheme() == "http", patience)?;
        Ok(Self::Http(Network { client, is_local, beyond: OnceLock::new(), certificates, patience }))
    }

    /// Sends a request once and waits for the head of the reply.
    pub(super) async fn send(
        &self,
        request: http::Request<reqwest::Body>,
        moved: &Moved,
        patience: Patience,
    ) -> Result<Reply, Broken> {
        let answer = match self {
            Self::Http(network) => {
                let request = reqwest::Request::try_from(request)
                    .map_err(|e| Broken { sent: false, ..Broken::new(chain(&e.without_url())) })?;
                let client = network.client_for(request.url())?;
                Either::Left(async move {
                    let answer = client.execute(request).await.map_err(Broken::by)?;
                    Ok(Reply {
                        status: answer.status(),
                        headers: answer.headers().clone(),
                        body: ReplyBody::Http(Box::new(answer)),
                        elsewhere: None,
                    })
                })
            }
            Self::Direct(router) => {
                let answer = router.clone().oneshot(request.map(axum::body::Body::new));
                Either::Right(async {
                    let Ok(answer) = answer.await;
                    let (head, body) = answer.into_parts();
                    let body = ReplyBody::Direct(body);
                    Ok(Reply { status: head.status, headers: head.headers, body, elsewhere: None })
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
            new_client(&self.certificates, false, false, self.patience)
        });
        beyond.as_ref().map_err(|e| Broken { sent: false, ..Broken::new(e.line()) })
    }
}

/// The one place where a network client is made.
fn new_client(
    given: &[CertificateDer<'static>],
    is_local: bool,
    is_plain: bool,
    patience: Patience,
) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("zbatch/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        // A call we give up takes its connection with it; on a shared one the next would hang where it hung.
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false);
    #[cfg(target_os = "linux")]
    {
        // The library's own 30 s cut an upload whose peer stops reading for a while.
        builder = builder.tcp_user_timeout(patience.idle);
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
#[derive(Debug)]
pub(super) struct Broken {
    /// Something may have reached the server.
    pub sent: bool,
    pub why: String,
    /// Whether another try may help.
    pub class: Class,
}

impl Broken {
    /// By the network, half way.
    pub fn new(why: String) -> Self {
        Self { sent: true, why, class: Class::Unreachable }
    }

    fn by(error: reqwest::Error) -> Self {
        let sent = !error.is_connect();
        let class = match () {
            () if is_about_a_certificate(&error) => Class::Certificate,
            () if lacks_files(&error) => Class::Io,
            () => Class::Unreachable,
        };
        let why = chain(&error.without_url());
        // The client's own layers say nothing to whoever reads it.
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
    // An error within an `io::Error` is not its source.
    let within = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    within.is_some_and(|within| is_about_a_certificate(within)) || error.source().is_some_and(is_about_a_certificate)
}

/// This process, or the machine, has as many files open as it may: the network is not to blame.
fn lacks_files(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustix::io::Errno;

    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
        || error.source().is_some_and(lacks_files)
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
    /// The host that sent it, where that is not the provider.
    pub elsewhere: Option<String>,
}

#[derive(Debug)]
pub(super) enum ReplyBody {
    Http(Box<reqwest::Response>),
    Direct(axum::body::Body),
}

impl ReplyBody {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self, patience: Patience) -> Result<Option<Bytes>, Broken> {
        let lost = Broken::new;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_4_a_redirect_goes_over_https_or_stays_on_this_machine() {
        let provider = "https://api.example/v1/files/f/content";
        let local = "http://127.0.0.1:8080/v1/files/f/content";
        for (from, location, to) in [
            (provider, "https://storage.example/x?sig=1#part", Ok("https://storage.example/x?sig=1")),
            (provider, "//storage.example/x", Ok("https://storage.example/x")),
            (provider, "/kept/x", Ok("https://api.example/kept/x")),
            (provider, "other", Ok("https://api.example/v1/files/f/other")),
            (provider, "https://127.0.0.1:8443/x", Ok("https://127.0.0.1:8443/x")),
            (provider, "http://storage.example/x", Err("http://storage.example")),
            (provider, "http://127.0.0.1/x", Err("http://127.0.0.1")),
            (provider, "http://api.example/v1/files/f/content", Err("http://api.example")),
            (provider, "ftp://storage.example/x", Err("ftp://storage.example")),
            (provider, "file:///etc/passwd", Err("file://")),
            (provider, "https://user:hunter2@storage.example/x", Err("https://storage.example")),
            (provider, "https://[bad", Err("cannot be read")),
            (local, "https://storage.example/x", Ok("https://storage.example/x")),
            (local, "http://127.0.0.1:9000/x", Ok("http://127.0.0.1:9000/x")),
            (local, "http://localhost:9000/x", Ok("http://localhost:9000/x")),
            (local, "http://[::1]:9000/x", Ok("http://[::1]:9000/x")),
            (local, "http://localhost.example/x", Err("http://localhost.example")),
            (local, "http://10.0.0.1/x", Err("http://10.0.0.1")),
            (local, "http://storage.example:8080/x", Err("http://storage.example:8080")),
        ] {
            match (redirected(&Url::parse(from).expect("a URL"), location), to) {
                (Ok(url), Ok(to)) => assert_eq!(url.as_str(), to),
                (Err(why), Err(named)) => assert!(why.contains(named) && !why.contains("hunter2"), "{location}: {why}"),
                (other, _) => panic!("{location}: {other:?}"),
            }
        }
    }

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
