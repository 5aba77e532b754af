//! Addresses: where the API is, which addresses are on this machine, and where a redirect may lead.
//!
//! https only, except to a loopback address (`127.0.0.0/8`, `::1`) and to the name `localhost`. That name is never looked up:
//! it always means those two (`docs/reliability.md` N1).

use std::{fmt::Write as _, net::IpAddr};

use reqwest::Url;

use crate::error::{Error, Result};

/// The address of the API, checked, without a trailing slash.
#[derive(Clone, Debug)]
pub(super) struct BaseUrl(Url);

impl BaseUrl {
    /// # Errors
    /// [`crate::error::Kind::Usage`] for anything but https, or http on loopback.
    pub fn parse(text: &str) -> Result<Self> {
        // No message shows the text: people put keys into URLs.
        let refuse = |why: &str| Error::usage(format!("the base URL {why}"));
        let mut url = Url::parse(text.trim())
            .map_err(|e| refuse(&format!("is wrong: {e}")).fix("e.g. --base-url https://api.z.ai/api/paas/v4"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("holds a user name or password").fix("put the key into the environment instead"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("has a query or fragment").fix("end it before the ? or #"));
        }
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            scheme => {
                return Err(refuse(&format!("begins with {scheme}:// and would send the key in the open"))
                    .fix("https://…; plain http is for 127.0.0.1, [::1] and localhost"));
            }
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }

    /// The URL of `path`, which is relative to the base and already escaped.
    pub fn join(&self, path: &str) -> String {
        format!("{}/{path}", self.0.as_str().trim_end_matches('/'))
    }

    pub fn url(&self) -> &Url {
        &self.0
    }
}

/// The host of `url` is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
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

/// Both origins are one server. Two origins on this machine count as one: a local server gets another port at each start.
pub fn is_same_server(one: &str, other: &str) -> bool {
    let is_local = |origin: &str| Url::parse(origin).is_ok_and(|url| is_loopback(&url));
    one == other || is_local(one) && is_local(other)
}

/// Host and port of a URL, as a message names them.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The URL that a download follows when the server at `from` redirects it to `location`: https to any host, http only from
/// this machine to this machine.
///
/// # Errors
/// Why the redirect is not followed. The text names the host.
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

/// Escapes every byte that is not unreserved in a URL.
pub(super) fn percent_escape(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

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
