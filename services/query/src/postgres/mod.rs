//! Owns: a server that answers SQL by PostgreSQL's wire protocol: for psql, Grafana, DBeaver, drivers of every language.
//!
//! | file | owns |
//! |---|---|
//! | `login` | the begin of a connection: TLS, passwords, how many clients there may be |
//! | `scram` | the proof of a password |
//! | `client` | a connection: its messages, and how it ends |
//! | `statements` | its statements, portals |
//! | `commands` | settings, transactions, several statements in one text |
//! | `rows`, `parameters` | values, out and in |
//! | `rewrite`, `catalog` | what clients ask about the tables: `pg_catalog`, `information_schema` |
//! | `codes` | errors with their SQLSTATE |
//! | `socket` | limits of a connection's bytes |
//!
//! Absent: COPY, cursors of SQL, PREPARE of SQL, LISTEN. Each statement reads a snapshot of its own; transactions change nothing.
//!
//! What must hold: what one client does ends at most its own connection. Clients, messages, statements that are kept and rows
//! that wait have limits. A statement ends when its client cancels it, goes away, or leaves its rows unread for too long.

pub mod catalog;
mod client;
mod codes;
mod commands;
mod login;
mod parameters;
mod rewrite;
mod rows;
mod scram;
mod socket;
mod statements;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pgwire::api::RandomPidSecretKeyGenerator;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};

use crate::access::Access;
use crate::clients;
use crate::engine::Engine;
use crate::failure::QueryError;

pub use rows::encoded as rows_encoded;

/// How long a client may take to log in.
const LOGIN: Duration = Duration::from_secs(10);
/// How long a client may leave rows unread; also how long one that says nothing keeps its portals.
const UNREAD: Duration = Duration::from_secs(300);
/// How long connections may take to end when the server ends.
const ENDING: Duration = Duration::from_secs(5);

/// Limits of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Clients at once.
    pub connections: usize,
    /// Rows of an answer that are encoded before a client reads them.
    pub rows_in_flight: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { connections: 64, rows_in_flight: 8192 }
    }
}

/// What connections share.
struct Server {
    engine: Arc<Engine>,
    access: Arc<Access>,
    options: Options,
    /// Places of clients.
    places: Arc<Semaphore>,
    ids: RandomPidSecretKeyGenerator,
    /// The channels by which a statement is cancelled, by the number and the secret of its connection.
    running: Mutex<HashMap<(i32, Bytes), Arc<Notify>>>,
}

impl Server {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<(i32, Bytes), Arc<Notify>>> {
        // A panic leaves nothing of it half changed.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the connections of `listener` until `stop` is true.
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
    // Clients that log in, and those that are refused because there are too many.
    let doors = Arc::new(Semaphore::new(options.connections.saturating_add(32).min(Semaphore::MAX_PERMITS)));
    let ids = RandomPidSecretKeyGenerator::default();
    let server = Arc::new(Server { engine, access, options, places, ids, running: Mutex::default() });
    let clients = stop.clone();
    let client = |socket, door| client::serve(socket, server.clone(), door, clients.clone());
    clients::serve(listener, "PostgreSQL's protocol", doors, stop, ENDING, client).await;
    Ok(())
}
