//! Owns: the addresses of the console, and the headers of every answer.
//!
//! What must hold: every answer, a refusal too, carries all of `HEADERS`. A request's body is bounded.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};

use super::guard::{self, Refused};
use super::{Console, catalog, events, health, query};
use crate::failure::QueryError;

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Bytes of a request's body.
const REQUEST_MAX: usize = 1 << 20;
/// How long a request's body may take.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Time that a wrong password costs.
const REFUSAL: Duration = Duration::from_millis(500);

/// What a browser may do with an answer: show it as this page, run this page's scripts, and send requests to this server.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        hyper::header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (hyper::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (hyper::header::CACHE_CONTROL, "no-store"),
    (hyper::header::REFERRER_POLICY, "no-referrer"),
    (hyper::header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files of the page: the path, the type, the text.
const PAGE: [(&str, &str, &str); 9] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/console.css", "text/css; charset=utf-8", include_str!("page/console.css")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/console.js", SCRIPT, include_str!("page/console.js")),
    ("/editor.js", SCRIPT, include_str!("page/editor.js")),
    ("/grid.js", SCRIPT, include_str!("page/grid.js")),
    ("/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/live.js", SCRIPT, include_str!("page/live.js")),
    ("/store.js", SCRIPT, include_str!("page/store.js")),
];

/// The body `bytes`.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer of the type `of`.
pub(super) fn reply(status: StatusCode, of: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(of));
    response
}

/// An answer of JSON.
pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    reply(status, "application/json", whole(value.to_string()))
}

/// The answer that says what is wrong.
pub(super) fn wrong(status: StatusCode, reason: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "error": reason }))
}

/// The status of `error`.
pub(super) fn status_of(error: &QueryError) -> StatusCode {
    match error {
        QueryError::Statement { .. } => StatusCode::BAD_REQUEST,
        QueryError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The answer that says that `error` has occurred.
pub(super) fn failed(error: &QueryError) -> Response<Body> {
    wrong(status_of(error), &error.to_string())
}

/// The value of the parameter `name` in the query of an address.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let text = query?.split('&').filter_map(|pair| pair.split_once('=')).find(|(of, _)| *of == name)?.1;
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(bytes.next())? << 4 | digit(bytes.next())?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// Answers `request`.
pub(super) async fn answer(console: &Console, is_tls: bool, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut response = match guard::check(&parts, is_tls, &console.access) {
        Ok(()) => route(console, &parts, body).await,
        Err(refused) => refusal(&refused).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn refusal(refused: &Refused) -> Response<Body> {
    if refused.is_guess {
        tokio::time::sleep(REFUSAL).await;
    }
    let mut response = wrong(refused.status, refused.reason);
    if refused.status == StatusCode::UNAUTHORIZED {
        let basic = HeaderValue::from_static("Basic realm=\"tapestore\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, basic);
    }
    response
}

async fn route(console: &Console, parts: &hyper::http::request::Parts, body: Incoming) -> Response<Body> {
    let (path, of) = (parts.uri.path(), parts.uri.query());
    let is_query = path == "/api/query";
    if parts.method != if is_query { Method::POST } else { Method::GET } {
        let mut response = wrong(StatusCode::METHOD_NOT_ALLOWED, "this address has another method");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(if is_query { "POST" } else { "GET" }));
        return response;
    }
    if let Some((_, of, text)) = PAGE.iter().find(|(of, ..)| *of == path) {
        return reply(StatusCode::OK, of, whole(*text));
    }
    let answered = match path {
        "/api/query" => match body_of(body).await {
            Ok(body) => query::answer(console, &body).await,
            Err(response) => return response,
        },
        "/api/words" => catalog::words(console),
        "/api/tables" => catalog::tables(console).await,
        "/api/symbols" => catalog::symbols(console, of),
        "/api/health" => health::health(console),
        "/api/live" => events::live(console, of),
        _ => return wrong(StatusCode::NOT_FOUND, "there is nothing at this address"),
    };
    answered.unwrap_or_else(|error| failed(&error))
}

/// The body of a request.
async fn body_of(body: Incoming) -> Result<Bytes, Response<Body>> {
    let late = |_| wrong(StatusCode::REQUEST_TIMEOUT, "the request did not come in time");
    let collected = tokio::time::timeout(REQUEST_WITHIN, Limited::new(body, REQUEST_MAX).collect()).await.map_err(late)?;
    let long = |_| wrong(StatusCode::PAYLOAD_TOO_LARGE, "a request has at most 1 MiB");
    Ok(collected.map_err(long)?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_an_address_are_decoded_or_absent() {
        let of = |query: &str| parameter(Some(query), "symbol");
        assert_eq!(of("a=1&symbol=X%3AY%2fZ"), Some("X:Y/Z".to_owned()));
        assert_eq!(of("symbol=a+b"), Some("a b".to_owned()));
        for wrong in ["", "symbol", "symbol=%", "symbol=%4", "symbol=%zz", "symbol=%ff", "other=x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_page_has_no_script_or_style_of_its_own_and_no_asset_from_elsewhere() {
        for (path, _, text) in PAGE {
            assert!(text.is_ascii(), "{path}");
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http:") && !outside.contains("https:") && !outside.contains("src=\"//"), "{path}");
            for markup in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "setAttribute(\"on"]
            {
                assert!(!text.contains(markup), "{path}: {markup}");
            }
        }
        let html = PAGE[0].2;
        let is_event = |part: &str| part.trim_start_matches(|c: char| c.is_ascii_lowercase()).starts_with('=');
        assert!(!html.contains("<style") && !html.contains("style=") && !html.split(" on").skip(1).any(is_event));
        assert_eq!(html.matches("<script").count(), html.matches("<script type=\"module\" src=\"/").count());
    }
}
