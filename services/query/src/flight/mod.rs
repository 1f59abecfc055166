//! Owns: Arrow Flight SQL: a server for clients of ADBC, JDBC and ODBC, and for whoever reads Arrow over a network.
//!
//! | | |
//! |---|---|
//! | login | basic authentication in `Handshake`; its answer is a token, which every other call carries as `Bearer` |
//! | how far a statement reads | `SET at = 'appended'`, the session's option `at`, or the header `tapestore-at` of one call |
//! | which moment an answer is of | header `tapestore-lsn` of the answer of `DoGet`: the last LSN of its snapshot |
//! | parameters | `$1` or `?` in prepared statements, one row at a time |
//!
//! What must hold: connections, statements, messages and answers are bounded, whatever clients do. The session of a client with
//! a token is of the token; that of one without is of its connection. Clients change nothing else.

pub mod actions;
pub mod answers;
pub mod connection;
pub mod front;
pub mod parameters;
pub mod placeholders;
pub mod random;
pub mod service;
pub mod session_options;
pub mod statements;
pub mod status;
pub mod tables;
pub mod tokens;

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

use crate::access::Access;
use crate::engine::Engine;
use crate::failure::QueryError;

pub use front::{AS_KNOWN_AT, AT};
pub use service::LSN;

/// Most bytes of a message of a client: statements and rows of parameters.
const MESSAGE_MAX: usize = 4 << 20;
/// Most calls of a connection at a time.
const STREAMS_MAX: u32 = 64;
/// Most bytes of the headers of a call.
const HEADERS_MAX: u32 = 16 << 10;
/// Most streams that were reset and are still accounted: a flood of resets ends the connection.
const RESETS_MAX: usize = 20;
/// How often a silent client is asked whether it lives, and how long it may take to answer.
const ALIVE_EVERY: Duration = Duration::from_secs(20);
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

/// Limits of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at a time.
    pub connections: usize,
    /// Prepared statements and open tickets that are kept at a time.
    pub statements: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { connections: 64, statements: 1024 }
    }
}

/// Serves `engine` to the clients of `listener` until `stop` is true, or its sender is gone.
///
/// # Errors
/// The server cannot be made.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    access: Arc<Access>,
    options: Options,
    mut stop: watch::Receiver<bool>,
) -> Result<(), QueryError> {
    let internal = |error: &dyn std::error::Error| QueryError::Internal { reason: error.to_string() };
    let statistics = engine.statistics().clone();
    let connections = connection::accept(listener, access.clone(), (options.connections, statistics), stop.clone());
    let calls = service::Calls::new(engine, options.statements).map_err(|error| internal(&error))?;
    let service = FlightServiceServer::new(front::Front::new(calls, access)).max_decoding_message_size(MESSAGE_MAX);
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(ALIVE_EVERY))
        .http2_keepalive_timeout(Some(ALIVE_WITHIN))
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async move { connection::stopped(&mut stop).await })
        .await
        .map_err(|error| internal(&error))
}
