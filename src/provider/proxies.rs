//! Proxies: from `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in lower case, as `curl` reads them. The HTTP client
//! reads them too, by the same [`Matcher`]; here they are looked at before the first call, and named in messages.

use std::env;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::address::host;
use crate::error::{Error, Result};

const VARIABLES: [[&str; 2]; 2] = [["HTTPS_PROXY", "https_proxy"], ["ALL_PROXY", "all_proxy"]];
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Refuses a proxy that would be used for `base` and cannot be used.
///
/// # Errors
/// [`crate::error::Kind::Usage`], naming the variable and not its value, which may hold a password.
pub(super) fn check(base: &Url) -> Result<()> {
    check_with(base, |name| env::var(name).ok())
}

fn check_with(base: &Url, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
    let Ok(uri) = base.as_str().parse::<http::Uri>() else { return Ok(()) };
    let exceptions = first(EXCEPTIONS).map(|(_, value)| value).unwrap_or_default();
    let is_direct = Matcher::builder().all("http://any").no(exceptions).build().intercept(&uri).is_none();
    // In a CGI program `HTTP_PROXY` is a header of a visitor: no proxy is used there.
    if is_direct || variable("REQUEST_METHOD").is_some() {
        return Ok(());
    }
    let Some((name, value)) = VARIABLES.into_iter().filter_map(first).find(|(_, value)| !value.is_empty()) else {
        return Ok(());
    };
    let fix = format!("write http://HOST:PORT into {name}, or put {} into NO_PROXY", host(base));
    match Matcher::builder().all(value).build().intercept(&uri) {
        None => Err(Error::usage(format!("{name} does not hold the address of a proxy")).fix(fix)),
        Some(proxy) => match proxy.uri().scheme_str() {
            Some("http" | "https") | None => Ok(()),
            Some(scheme) => Err(Error::usage(format!(
                "{name} names a {scheme} proxy, and zbatch can use http and https proxies only"
            ))
            .fix(fix)),
        },
    }
}

/// The host of a URL for a message, with the proxy on the way there.
pub(super) fn host_and_proxy(url: &Url) -> String {
    let proxy = url.as_str().parse().ok().and_then(|uri| Matcher::from_env().intercept(&uri));
    match proxy.as_ref().and_then(|proxy| proxy.uri().authority()) {
        Some(proxy) => format!("{}, through the proxy {proxy}", host(url)),
        None => host(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_17_a_proxy_is_refused_only_where_it_would_be_used() {
        let base = Url::parse("https://open.bigmodel.cn/api/paas/v4").expect("a URL");
        for (variables, bad) in [
            (&[][..], None),
            (&[("HTTPS_PROXY", "http://127.0.0.1:3128")], None),
            (&[("https_proxy", "127.0.0.1:3128")], None),
            (&[("HTTPS_PROXY", "https://user:password@proxy.example")], None),
            (&[("ALL_PROXY", "socks5://127.0.0.1:1080")], Some("ALL_PROXY")),
            // The more special one is used.
            (&[("HTTPS_PROXY", "http://127.0.0.1:3128"), ("ALL_PROXY", "socks5://127.0.0.1:1080")], None),
            (&[("HTTPS_PROXY", ""), ("ALL_PROXY", "socks5://127.0.0.1:1080")], Some("ALL_PROXY")),
            (&[("all_proxy", "socks5h://127.0.0.1:1080"), ("NO_PROXY", "localhost, bigmodel.cn")], None),
            (&[("all_proxy", "socks5h://127.0.0.1:1080"), ("no_proxy", "*")], None),
            (&[("all_proxy", "socks5h://127.0.0.1:1080"), ("no_proxy", "other.cn")], Some("all_proxy")),
            (&[("HTTP_PROXY", "socks5://127.0.0.1:1080")], None),
            (&[("HTTPS_PROXY", "http://")], Some("HTTPS_PROXY")),
            (&[("HTTPS_PROXY", "proxy with blanks")], Some("HTTPS_PROXY")),
        ] {
            let variable =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            match (check_with(&base, variable), bad) {
                (Ok(()), None) => {}
                (Err(error), Some(bad)) => assert!(error.to_string().starts_with(bad), "{error}"),
                (checked, _) => panic!("{variables:?}: {checked:?}"),
            }
        }
    }
}
