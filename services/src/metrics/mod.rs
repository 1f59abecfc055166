//! Owns: what a process says of itself over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever supervises it.
//!
//! | file | owns |
//! |---|---|
//! | `words` | writing metrics of one name, in the text format of OpenMetrics |
//! | `storage` | what storage says, from the control page alone |
//! | `replication` | what replication says: this host in its cluster, the other hosts, its certificates |
//! | `publisher`, `reader` | what a command says that publishes or follows, on request |
//! | `process` | memory, threads, open files and processor time of this process |
//!
//! What must hold: a scrape only reads, on a thread of its own, and takes nothing from the threads that work. Clients, requests and
//! their time are bounded. Labels have few values: a name that comes from records is never one.

pub mod process;
pub mod publisher;
pub mod reader;
pub mod replication;
pub mod storage;
mod words;

use std::convert::Infallible;
use std::fmt;
use std::net::ToSocketAddrs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, oneshot};

use crate::exit::{Failure, Outcome, UNAVAILABLE, USAGE};
use crate::terminal::yield_to_work;

/// Clients at once.
const CLIENTS_MAX: usize = 16;
/// How long a client may be without a request, and a request's head may take.
const IDLE: Duration = Duration::from_secs(5);
/// How long a client may be connected, also one that does not read: Prometheus connects again.
const CONNECTED: Duration = Duration::from_secs(30);
/// Pause after a client could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request.
const REQUEST_MAX: usize = 16 << 10;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a process says of itself.
pub trait Source: Send + Sync + 'static {
    /// The metrics of now. Their names get the prefix `tapestore_`.
    fn metrics(&self) -> Box<dyn Collector>;

    /// Whether the process works; otherwise why not. Where it does not for long, a restart may help.
    ///
    /// # Errors
    /// Why not.
    fn health(&self) -> Result<(), String>;

    /// Whether the process does what it is there for; otherwise why not.
    ///
    /// # Errors
    /// Why not.
    fn readiness(&self) -> Result<(), String>;
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let port = text.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        match port {
            Some(_) => Ok(Address::Tcp(text.to_owned())),
            None => Err(format!("{text} is no address: write host:port, like 127.0.0.1:9101, or unix:/path/of/socket")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "http://{address}/metrics"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Serves metrics until it is dropped.
pub struct Endpoint {
    /// The socket's path, which is removed at the end.
    path: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Endpoint {
    /// Serves what `source` makes at the address that the option `metrics` names, if it names one.
    ///
    /// # Errors
    /// It is no address, or nothing can listen there.
    pub fn of<S: Source>(metrics: &str, source: impl FnOnce() -> S) -> Outcome<Option<Endpoint>> {
        if metrics.is_empty() {
            return Ok(None);
        }
        let address = metrics.parse::<Address>().map_err(|why| Failure::new(USAGE, format!("metrics: {why}")))?;
        Endpoint::start(&address, Arc::new(source())).map(Some)
    }

    /// Serves what `source` says at `address`.
    ///
    /// # Errors
    /// Nothing can listen there.
    pub fn start(address: &Address, source: Arc<dyn Source>) -> Outcome<Endpoint> {
        let cannot = |error: std::io::Error| {
            let next = "choose another one with --metrics, or stop what uses it";
            Failure::new(UNAVAILABLE, format!("cannot serve metrics at {address}: {error}; {next}"))
        };
        let (listener, place) = listen(address).map_err(cannot)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            yield_to_work();
            let ended = runtime.block_on(async {
                tokio::select! {
                    ended = serve(listener, source) => ended,
                    _ = stopped => Ok(()),
                }
            });
            if let Err(error) = ended {
                tracing::error!(
                    name: "metrics.ended", %error,
                    "metrics are no longer served; start the process again to serve them"
                );
            }
        };
        let thread = std::thread::Builder::new().name("tape-metrics".to_owned()).spawn(serve).map_err(cannot)?;
        tracing::info!(
            name: "metrics.serving", at = %place,
            "serving metrics; /healthz and /readyz say whether the process works"
        );
        let path = match address {
            Address::Tcp(_) => None,
            Address::Unix(path) => Some(path.clone()),
        };
        Ok(Endpoint { path, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.stop.take().is_some_and(|stop| stop.send(()).is_err()) {
            tracing::debug!(name: "metrics.thread_gone", "the thread of metrics has ended before");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(name: "metrics.thread_panicked", "the thread of metrics has panicked");
        }
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(
                name: "metrics.socket_not_removed", %error, path = %path.display(),
                "cannot remove the socket of metrics"
            );
        }
    }
}

/// Listens at `address`; returns where, with the port that the system chose for 0.
fn listen(address: &Address) -> std::io::Result<(Listener, Address)> {
    match address {
        Address::Tcp(text) => {
            let addresses: Vec<_> = text.to_socket_addrs()?.collect();
            let listener = std::net::TcpListener::bind(&addresses[..])?;
            listener.set_nonblocking(true)?;
            let place = Address::Tcp(listener.local_addr()?.to_string());
            Ok((Listener::Tcp(listener), place))
        }
        Address::Unix(path) => {
            remove_stale(path)?;
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok((Listener::Unix(listener), address.clone()))
        }
    }
}

/// Removes the socket at `path` of a process that has ended.
fn remove_stale(path: &Path) -> std::io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    match std::os::unix::net::UnixStream::connect(path) {
        // Nobody listens. Any other error says nothing about that.
        Err(error) if is_socket && error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

async fn serve(listener: Listener, source: Arc<dyn Source>) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    match listener {
        Listener::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            accept(|| async { listener.accept().await.map(|(socket, _)| socket) }, places, source).await
        }
        Listener::Unix(listener) => {
            let listener = UnixListener::from_std(listener)?;
            accept(|| async { listener.accept().await.map(|(socket, _)| socket) }, places, source).await
        }
    }
}

async fn accept<S, F>(next: impl Fn() -> F, places: Arc<Semaphore>, source: Arc<dyn Source>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = std::io::Result<S>>,
{
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        match next().await {
            Ok(socket) => {
                let source = source.clone();
                tokio::spawn(async move {
                    connection(socket, source).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(name: "metrics.client_not_accepted", %error, "cannot accept a client of metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(socket: S, source: Arc<dyn Source>) {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, source.as_ref())) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(REQUEST_MAX);
    let ended = tokio::time::timeout(CONNECTED, server.serve_connection(TokioIo::new(socket), service)).await;
    tracing::trace!(name: "metrics.client_gone", ?ended, "a client of metrics has gone");
}

fn answer(request: &Request<Incoming>, source: &dyn Source) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let said = |is: Result<(), String>| match is {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    match request.uri().path() {
        "/metrics" => match metrics(source) {
            Ok(body) => {
                let mut answer = text(StatusCode::OK, body);
                answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(OPENMETRICS));
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/healthz" => said(source.health()),
        "/readyz" => said(source.readiness()),
        _ => text(StatusCode::NOT_FOUND, "metrics are at /metrics; also /healthz, /readyz\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

/// The metrics of `source` and of this process, as text.
fn metrics(source: &dyn Source) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(process::Process::now()));
    registry.sub_registry_with_prefix("tapestore").register_collector(source.metrics());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_socket_and_anything_else_says_how_to_write_one() {
        assert_eq!("127.0.0.1:9101".parse(), Ok(Address::Tcp("127.0.0.1:9101".into())));
        assert_eq!("[::1]:0".parse(), Ok(Address::Tcp("[::1]:0".into())));
        assert_eq!("unix:/run/tape.sock".parse(), Ok(Address::Unix("/run/tape.sock".into())));
        assert_eq!("/run/tape.sock".parse(), Ok(Address::Unix("/run/tape.sock".into())));
        for wrong in ["", "9101", ":9101", "localhost", "localhost:99999", "localhost:x"] {
            assert!(wrong.parse::<Address>().unwrap_err().contains("write host:port"), "{wrong}");
        }
    }
}
