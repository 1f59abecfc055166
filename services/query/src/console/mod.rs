//! Owns: the console: a page in the browser with an editor of SQL, the rows of an answer as a grid and as charts, the tables
//! and instruments, an instrument's newest quotes and trades, and the store's watermarks.
//!
//! | file | owns |
//! |---|---|
//! | `guard` | which requests are refused: of other sites, for other hosts, of nobody's password |
//! | `routes` | the addresses, and the headers of every answer |
//! | `query`, `values` | a statement, its rows as JSON |
//! | `live`, `events` | new trades and quotes of an instrument, as server-sent events |
//! | `catalog` | tables, columns, functions, instruments |
//! | `health` | watermarks, publishers, what is wrong |
//! | `page/` | the page: HTML, CSS, JavaScript; nothing is built, and nothing comes from elsewhere |
//!
//! What must hold: what one client does ends at most its own connection. Connections, requests, rows, events that wait and
//! clients of events are bounded. Nothing changes the store. Every answer forbids the browser everything but this page.

mod catalog;
mod events;
pub mod guard;
mod health;
mod live;
mod query;
mod routes;
mod values;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use self::catalog::Lists;
use self::live::Live;
use crate::access::Access;
use crate::clients::{self, stopped};
use crate::engine::Engine;
use crate::failure::QueryError;
use crate::statistics::Protocol;
use crate::unread::Unread;

/// How long TLS may take to begin.
const LOGIN: Duration = Duration::from_secs(10);
/// How long a connection may be without a request, and a request's headers may take. The page asks every second.
const IDLE: Duration = Duration::from_secs(15);
/// How long requests may take to end when the server ends.
const ENDING: Duration = Duration::from_secs(2);
/// Bytes of a connection that wait in this process, in each direction.
const BUFFER: usize = 64 << 10;
/// Bytes of a connection that wait in the kernel.
const SEND_BUFFER: usize = 256 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Limits of a console.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at once.
    pub connections: usize,
    /// Clients of events at once.
    pub live: usize,
    /// Rows of an answer.
    pub rows: usize,
    /// Bytes of an answer.
    pub bytes: usize,
    /// How long a client may leave what is sent unread.
    pub unread: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { connections: 64, live: 16, rows: 10_000, bytes: 16 << 20, unread: Duration::from_secs(30) }
    }
}

/// What connections share.
struct Console {
    engine: Arc<Engine>,
    access: Arc<Access>,
    options: Options,
    lists: Lists,
    live: Arc<Live>,
    stop: watch::Receiver<bool>,
}

/// Serves the page and its requests to the clients of `listener` until `stop` is true.
///
/// The runtime's threads need a stack of [`STACK`](crate::nesting::STACK): a deep statement would end the process.
///
/// # Errors
/// None now: a connection that fails ends alone.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    access: Arc<Access>,
    options: Options,
    stop: watch::Receiver<bool>,
) -> Result<(), QueryError> {
    let places = Arc::new(Semaphore::new(options.connections.min(Semaphore::MAX_PERMITS)));
    let live = Arc::new(Live::new(engine.clone(), options.live));
    let console = Arc::new(Console { engine, access, options, lists: Lists::default(), live, stop: stop.clone() });
    clients::serve(listener, "the console", places, stop, ENDING, |socket, place| connection(socket, console.clone(), place))
        .await;
    Ok(())
}

async fn connection(socket: TcpStream, console: Arc<Console>, _place: OwnedSemaphorePermit) {
    // A socket that cannot be set works as it is.
    let is_set = socket.set_nodelay(true).is_ok() && socket2::SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER).is_ok();
    tracing::trace!(name: "console.client_accepted", is_set, "a client of the console");
    let _connected = console.engine.statistics().connect(Protocol::Console);
    let unread = console.options.unread;
    let rules = console.access.now();
    let Some(tls) = &rules.tls else {
        return requests(Unread::new(socket, unread), console, false).await;
    };
    match tokio::time::timeout(LOGIN, TlsAcceptor::from(tls.clone()).accept(socket)).await {
        Ok(Ok(socket)) => requests(Unread::new(socket, unread), console, true).await,
        Ok(Err(error)) => tracing::debug!(
            name: "console.tls_failed", %error,
            "a client of the console does not use TLS, or another one"
        ),
        Err(_) => tracing::debug!(name: "console.tls_late", "a client of the console has not begun TLS in time"),
    }
}

/// Answers the requests of a connection.
async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send>(socket: S, console: Arc<Console>, is_tls: bool) {
    let mut stop = console.stop.clone();
    let service = service_fn(move |request| {
        let console = console.clone();
        async move { Ok::<_, Infallible>(routes::answer(&console, is_tls, request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE).max_headers(HEADERS_MAX).max_buf_size(BUFFER);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(ENDING, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(name: "console.connection_ended", %error, "a connection of the console has ended");
    }
}
