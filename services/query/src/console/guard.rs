//! Owns: which requests are refused before anything is done for them.
//!
//! A page of another site can make a browser send requests to a loopback address. It cannot read the answers, unless its own
//! name is made to mean that address (DNS rebinding). So a request without TLS must name a loopback host, and one with TLS
//! any: there the browser has checked the name by the certificate. A request that a browser sends for another site's page is
//! refused, but for the page itself, to which sites may link.
//!
//! What must hold: where there are passwords, nothing passes without one. A statement passes only with a header that forms and
//! links of other sites cannot set.

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use crate::access::Access;

/// The header that a statement carries.
pub const CONSOLE: HeaderName = HeaderName::from_static("x-tape-console");

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status of the answer.
    pub status: StatusCode,
    /// The reason, for people.
    pub reason: &'static str,
    /// Whether a password was tried: the answer comes late.
    pub is_guess: bool,
}

const fn refused(status: StatusCode, reason: &'static str) -> Refused {
    Refused { status, reason, is_guess: false }
}

/// The one value of `name`.
fn value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refused> {
    const ODD: Refused = refused(StatusCode::BAD_REQUEST, "a header occurs twice or is no text");
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ODD),
        _ => Err(ODD),
    }
}

/// Whether `host` is this host to itself.
fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Checks a request, of a connection with TLS or without.
///
/// # Errors
/// [`Refused`].
pub fn check(request: &Parts, is_tls: bool, access: &Access) -> Result<(), Refused> {
    let headers = &request.headers;
    let host = value(headers, &HOST)?.unwrap_or("");
    let authority = host.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@'));
    let is_ours = authority.is_some_and(|authority| is_tls || is_loopback(authority.host()));
    if !is_ours || request.uri.authority().is_some() {
        return Err(refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this host name is not the console's: use http://127.0.0.1 or http://localhost with its port",
        ));
    }
    const FOREIGN: Refused = refused(StatusCode::FORBIDDEN, "this request is of a page of another site");
    if let Some(origin) = value(headers, &ORIGIN)? {
        let of = origin.strip_prefix(if is_tls { "https://" } else { "http://" });
        if !of.is_some_and(|of| of.eq_ignore_ascii_case(host)) {
            return Err(FOREIGN);
        }
    }
    let fetched = |name: &'static str| value(headers, &HeaderName::from_static(name));
    let is_link = request.uri.path() == "/" && request.method == Method::GET && fetched("sec-fetch-mode")? == Some("navigate");
    let is_framed = fetched("sec-fetch-dest")?.is_some_and(|dest| dest.ends_with("frame"));
    match fetched("sec-fetch-site")? {
        None | Some("same-origin" | "none") => {}
        Some(_) if is_link && !is_framed => {}
        Some(_) => return Err(FOREIGN),
    }
    if request.method == Method::POST {
        let is_json = value(headers, &CONTENT_TYPE)?.is_some_and(|of| of.starts_with("application/json"));
        if !headers.contains_key(&CONSOLE) || !is_json {
            return Err(refused(StatusCode::FORBIDDEN, "a statement needs the header x-tape-console: 1, and a body of JSON"));
        }
    }
    let login = value(headers, &AUTHORIZATION)?;
    match access.admits(login) {
        Ok(()) => Ok(()),
        Err(reason) => Err(Refused { status: StatusCode::UNAUTHORIZED, reason, is_guess: login.is_some() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use hyper::Request;

    use super::*;

    fn with(method: &str, path: &str, is_tls: bool, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check(&parts, is_tls, &Access::open()).err().map(|refused| refused.status.as_u16())
    }

    #[test]
    fn a_request_names_a_loopback_host_unless_a_certificate_proves_the_name() {
        for host in ["127.0.0.1:8120", "localhost:8120", "LOCALHOST", "[::1]:8120", "127.9.9.9"] {
            assert_eq!(with("GET", "/", false, &[("host", host)]), None, "{host}");
        }
        for host in ["evil.example:8120", "", "localhost.evil.example", "u@localhost", "10.0.0.1", "127.0.0.1.evil.example"] {
            assert_eq!(with("GET", "/", false, &[("host", host)]), Some(421), "{host}");
        }
        assert_eq!(with("GET", "/", false, &[]), Some(421));
        assert_eq!(with("GET", "/", false, &[("host", "localhost"), ("host", "evil.example")]), Some(400));
        assert_eq!(with("GET", "http://evil.example/", false, &[("host", "localhost")]), Some(421));
        assert_eq!(with("GET", "/", true, &[("host", "query.example:8120")]), None);
    }

    #[test]
    fn a_request_of_another_site_is_refused_and_a_link_is_not() {
        let get =
            |path: &str, more: &[(&str, &str)]| with("GET", path, false, &[&[("host", "localhost:8120")][..], more].concat());
        assert_eq!(get("/api/health", &[("origin", "http://localhost:8120")]), None);
        for origin in ["http://evil.example", "https://localhost:8120", "http://localhost", "null", "http://localhost:81200"] {
            assert_eq!(get("/api/health", &[("origin", origin)]), Some(403), "{origin}");
        }
        assert_eq!(get("/api/live", &[("sec-fetch-site", "cross-site")]), Some(403));
        assert_eq!(get("/api/live", &[("sec-fetch-site", "same-site")]), Some(403));
        assert_eq!(get("/api/live", &[("sec-fetch-site", "same-origin")]), None);
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert_eq!(get("/", &link), None);
        assert_eq!(get("/api/health", &link), Some(403));
        let frame = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert_eq!(get("/", &frame), Some(403));
    }

    #[test]
    fn a_statement_needs_what_a_form_cannot_send() {
        let post = |more: &[(&str, &str)]| with("POST", "/api/query", false, &[&[("host", "localhost")][..], more].concat());
        assert_eq!(post(&[]), Some(403));
        assert_eq!(post(&[("content-type", "application/json")]), Some(403));
        assert_eq!(post(&[("x-tape-console", "1"), ("content-type", "text/plain")]), Some(403));
        assert_eq!(post(&[("x-tape-console", "1"), ("content-type", "application/json")]), None);
    }

    #[test]
    fn where_there_are_users_a_request_carries_a_password() {
        let access = Access::with(BTreeMap::from([("ann".to_owned(), "se:cret".to_owned())]), None).unwrap();
        let of = |login: Option<&str>| {
            let mut request = Request::builder().uri("/").header("host", "localhost");
            if let Some(login) = login {
                request = request.header("authorization", login);
            }
            check(&request.body(()).unwrap().into_parts().0, false, &access)
                .map_err(|refused| (refused.status.as_u16(), refused.is_guess))
        };
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert_eq!(of(Some(&basic("ann:se:cret"))), Ok(()));
        assert_eq!(of(None), Err((401, false)));
        for wrong in ["ann:se", "ann:", "bob:se:cret", ":", "ann"] {
            assert_eq!(of(Some(&basic(wrong))), Err((401, true)), "{wrong}");
        }
        assert_eq!(of(Some("Bearer x")), Err((401, true)));
    }
}
