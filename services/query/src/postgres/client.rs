//! Owns: a connection: its messages one by one, its statements, and how they end.
//!
//! What must hold: an error ends its statement; the connection goes on, unless the client has not kept to the protocol. A
//! statement that is cancelled is dropped at once, and its snapshot with it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::StreamExt;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, DefaultClient, NoopHandler, PgWireConnectionState};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireFrontendMessage;
use pgwire::tokio::server::{PgWireMessageServerCodec, process_error, process_message};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::codec::{Framed, FramedParts};

use crate::clients::stopped;
use crate::postgres::codes;
use crate::postgres::login::{self, Identity, Login, Wire};
use crate::postgres::socket::Guarded;
use crate::postgres::statements::{Prepared, Statements};
use crate::postgres::{LOGIN, Server, UNREAD};
use crate::statistics::Protocol;

type Socket = Framed<Guarded<Box<dyn Wire>>, PgWireMessageServerCodec<Arc<Prepared>>>;

/// Serves one connection. `door` is its place among those that log in.
pub(super) async fn serve(socket: TcpStream, server: Arc<Server>, door: OwnedSemaphorePermit, stop: watch::Receiver<bool>) {
    if let Err(error) = connection(socket, server, door, stop).await {
        tracing::debug!(name: "postgres.connection_ended", %error, "a connection of PostgreSQL's protocol has ended");
    }
}

async fn connection(
    socket: TcpStream,
    server: Arc<Server>,
    door: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    // A second descriptor is readable when the client has gone while its statement runs.
    let socket = socket.into_std()?;
    let watched = TcpStream::from_std(socket.try_clone()?)?;
    let socket = TcpStream::from_std(socket)?;
    let _connected = server.engine.statistics().connect(Protocol::Postgres);
    let ends = Instant::now() + LOGIN;
    let from = socket.peer_addr()?;
    let Ok(opened) = tokio::time::timeout_at(ends, login::open(socket, &server.access)).await else { return Ok(()) };
    let opened = opened?;
    let codec = PgWireMessageServerCodec::new(DefaultClient::new(from, opened.is_secure));
    let mut parts = FramedParts::new(Guarded::new(opened.wire, UNREAD), codec);
    parts.read_buf = opened.read;
    let mut socket: Socket = Framed::from_parts(parts);
    socket.set_state(PgWireConnectionState::AwaitingStartup);
    let identity = Arc::new(Identity::new(server.clone()));
    let client = Arc::new(Statements::new(server.clone()));
    let handlers = Handlers { login: Arc::new(Login::new(server, identity.clone())), identity, client };
    let login = tokio::time::timeout_at(ends, async {
        while !matches!(socket.state(), PgWireConnectionState::ReadyForQuery) {
            socket.get_mut().begin(false);
            let Some(message) = socket.next().await else { return Ok(ControlFlow::Break(())) };
            if handlers.step(&mut socket, message, &watched, &mut stop).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        io::Result::Ok(ControlFlow::Continue(()))
    });
    let Ok(login) = login.await else { return Ok(()) };
    if login?.is_break() {
        return Ok(());
    }
    drop(door);
    loop {
        socket.get_mut().begin(true);
        let message = tokio::select! {
            message = tokio::time::timeout(UNREAD, socket.next()) => message,
            () = stopped(&mut stop) => Ok(Some(Err(codes::fatal("57P01", "the server ends")))),
        };
        let Ok(message) = message else {
            // A portal that is left open holds a snapshot.
            socket.portal_store().clear_portals();
            handlers.client.forget_portals();
            continue;
        };
        let Some(message) = message else { return Ok(()) };
        if handlers.step(&mut socket, message, &watched, &mut stop).await?.is_break() {
            return Ok(());
        }
    }
}

/// Returns when the client has closed its side of the connection.
async fn gone(socket: &TcpStream) {
    loop {
        match socket.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
            _ => return,
        }
    }
}

/// What messages are given to.
struct Handlers {
    login: Arc<Login>,
    identity: Arc<Identity>,
    client: Arc<Statements>,
}

impl Handlers {
    /// Answers one message; breaks if the connection ends.
    async fn step(
        &self,
        socket: &mut Socket,
        message: PgWireResult<PgWireFrontendMessage>,
        watched: &TcpStream,
        stop: &mut watch::Receiver<bool>,
    ) -> io::Result<ControlFlow<()>> {
        let message = match message {
            Ok(PgWireFrontendMessage::Terminate(_)) => return Ok(ControlFlow::Break(())),
            Ok(message) => message,
            Err(PgWireError::IoError(error)) => return Err(error),
            // What is no message has no end: there is no way to go on.
            Err(error) => {
                let error = if is_fatal(&error) { error } else { codes::fatal("08P01", error.to_string()) };
                process_error(socket, error, false).await?;
                return Ok(ControlFlow::Break(()));
            }
        };
        let is_cancel = matches!(message, PgWireFrontendMessage::CancelRequest(_));
        let is_extended = message.is_extended_query();
        let login_is_over = matches!(
            socket.state(),
            PgWireConnectionState::ReadyForQuery | PgWireConnectionState::QueryInProgress | PgWireConnectionState::AwaitingSync
        );
        let copy = Arc::new(NoopHandler);
        let client = &self.client;
        let done = tokio::select! {
            done = process_message(message, socket, self.login.clone(), client.clone(), client.clone(), copy, client.clone()) => done,
            () = self.identity.cancelled.notified() => Err(PgWireError::QueryCanceled),
            () = gone(watched), if login_is_over => return Ok(ControlFlow::Break(())),
            () = stopped(stop) => Err(codes::fatal("57P01", "the server ends")),
        };
        if is_cancel {
            return Ok(ControlFlow::Break(()));
        }
        let Err(error) = done else { return Ok(ControlFlow::Continue(())) };
        if let PgWireError::IoError(error) = error {
            return Err(error);
        }
        // Before a client has logged in, every error is the end.
        let ends = is_fatal(&error) || !login_is_over;
        process_error(socket, error, is_extended).await?;
        Ok(if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

fn is_fatal(error: &PgWireError) -> bool {
    match error {
        PgWireError::UserError(info) => info.is_fatal(),
        PgWireError::PortalNotFound(_)
        | PgWireError::StatementNotFound(_)
        | PgWireError::QueryCanceled
        | PgWireError::ParameterIndexOutOfBound(_)
        | PgWireError::InvalidRustTypeForParameter(_)
        | PgWireError::FailedToParseParameter(_)
        | PgWireError::InvalidOptionValue(_)
        | PgWireError::ApiError(_) => false,
        _ => true,
    }
}
