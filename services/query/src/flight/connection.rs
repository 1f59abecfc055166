//! Owns: connections, from accept to close.
//!
//! What must hold: connections are bounded. One that does nothing, or does not log in where it must, is closed after
//! `FIRST_CALL`. When the server stops, the calls that run have `GRACE` to end.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::access::{Access, Rules};
use crate::engine::Settings;
use crate::statistics::{Client, Protocol, Statistics};

/// Time from accept to the first call, or to the end of the login.
const FIRST_CALL: Duration = Duration::from_secs(10);
/// Time of running calls when the server stops.
pub const GRACE: Duration = Duration::from_secs(5);
/// Pause before the next accept when the process has no free descriptor.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);
/// Most connections that wait for the server.
const ACCEPTED_MAX: usize = 32;
/// Length of what every HTTP/2 client sends first.
const PREFACE: usize = 24;

/// What calls share of their connection.
#[derive(Debug, Default)]
pub struct Peer {
    /// The settings of calls without a token.
    pub settings: Arc<Mutex<Settings>>,
    admitted: Notify,
    closed: Notify,
}

impl Peer {
    /// The connection stays: its client has logged in, or need not.
    pub fn admit(&self) {
        self.admitted.notify_one();
    }

    /// Closes the connection.
    pub fn close(&self) {
        self.closed.notify_one();
    }
}

/// Waits until a connection has to be closed; returns why.
async fn ends(peer: Arc<Peer>, mut stop: watch::Receiver<bool>) -> &'static str {
    let is_admitted = async {
        peer.admitted.notified().await;
    };
    if tokio::time::timeout(FIRST_CALL, is_admitted).await.is_err() {
        return "no call and no login in time";
    }
    tokio::select! {
        () = peer.closed.notified() => "the client reads no answers",
        () = stopped(&mut stop) => {
            tokio::time::sleep(GRACE).await;
            "the server stops"
        }
    }
}

/// Waits until the server stops.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error is that nobody can stop it any more, so it stops.
    let _is_stopped = stop.wait_for(|is_stopped| *is_stopped).await.is_ok();
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection.
pub struct Connection {
    transport: Transport,
    peer: Arc<Peer>,
    /// Whether its first bytes admit it.
    is_open: bool,
    read: usize,
    ends: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    why_ended: Option<&'static str>,
    _permit: OwnedSemaphorePermit,
    _connected: Client,
}

impl Connection {
    /// Whether the connection may go on.
    fn check(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        if self.why_ended.is_none()
            && let Poll::Ready(why) = self.ends.as_mut().poll(context)
        {
            self.why_ended = Some(why);
        }
        self.why_ended.map_or(Ok(()), |why| Err(Error::new(ErrorKind::TimedOut, why)))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        self.check(context)?;
        let before = buffer.filled().len();
        let read = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if self.is_open && self.read < PREFACE {
            self.read += buffer.filled().len() - before;
            if self.read >= PREFACE {
                self.peer.admit();
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize, Error>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

/// TLS as `rules` say, for HTTP/2.
fn acceptor(rules: &Rules) -> Option<TlsAcceptor> {
    rules.tls.as_ref().map(|config| {
        let mut config = ServerConfig::clone(config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    })
}

/// The connections of `listener` as `access` has them, `most` at a time, counted in `statistics`. Without passwords a client need not
/// log in.
pub fn accept(
    listener: TcpListener,
    access: Arc<Access>,
    (most, statistics): (usize, Statistics),
    mut stop: watch::Receiver<bool>,
) -> impl Stream<Item = Result<Connection, Error>> + use<> {
    let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    let (accepted, out) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = stopped(&mut stop) => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(name: "flight.connection_not_accepted", %error, "cannot accept a connection");
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                tracing::debug!(name: "flight.too_many_connections", most, "refused a connection: there are too many");
                continue;
            };
            // On failure small messages take longer.
            stream.set_nodelay(true).ok();
            let rules = access.now();
            let (acceptor, is_open) = (acceptor(&rules), rules.passwords.is_none());
            let (accepted, stop) = (accepted.clone(), stop.clone());
            let connected = statistics.connect(Protocol::Flight);
            tokio::spawn(async move {
                let transport = match acceptor {
                    None => Transport::Plain(stream),
                    Some(acceptor) => match tokio::time::timeout(FIRST_CALL, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
                        Ok(Err(error)) => return tracing::debug!(name: "flight.tls_failed", %error, "refused a connection"),
                        Err(_) => {
                            return tracing::debug!(
                                name: "flight.tls_late",
                                "refused a connection: no TLS handshake in time"
                            );
                        }
                    },
                };
                let peer = Arc::new(Peer::default());
                let ends = Box::pin(ends(peer.clone(), stop));
                let (_permit, _connected) = (permit, connected);
                let connection = Connection { transport, peer, is_open, read: 0, ends, why_ended: None, _permit, _connected };
                // Nobody takes it once the server stops: it is closed.
                accepted.send(Ok(connection)).await.ok();
            });
        }
    });
    ReceiverStream::new(out)
}
