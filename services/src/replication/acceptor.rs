//! Owns: accepting connections of other hosts, from accept to authentication.
//!
//! What must hold: every connection is accepted at once, so that a silent one delays nobody; unauthenticated connections are
//! bounded, in total and per address, and one too many closes the oldest; authentication takes `DEADLINE` at most;
//! refusals are counted and logged every 10 s, not one by one.

use std::collections::VecDeque;
use std::io::Error;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Most unauthenticated connections, in total and of one address.
const PENDING_MAX: usize = 256;
const PENDING_PER_ADDRESS: usize = 32;
/// Time limit of an authentication.
const DEADLINE: Duration = Duration::from_secs(2);
/// Most authenticated connections that wait for the server.
const ACCEPTED_MAX: usize = 32;
/// Pause before the next accept when the process has no free descriptor.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);
/// Interval of log lines about refusals.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long, and how many bytes, a refused connection is read: unread data would reset it before the client has the answer.
const LINGER: Duration = Duration::from_millis(200);
const LINGER_BYTES: usize = 16 << 10;

/// An unauthenticated connection.
struct Pending {
    number: u64,
    from: IpAddr,
    task: AbortHandle,
}

/// The unauthenticated connections, oldest first.
#[derive(Default)]
struct Queue {
    next: u64,
    pending: VecDeque<Pending>,
    refused: u64,
    logged: Option<Instant>,
}

/// The address by which connections from `address` are counted: for IPv6 its /64 network, because a client has 2^64
/// addresses there.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Queue {
    fn count(&self, from: IpAddr) -> usize {
        self.pending.iter().filter(|p| p.from == from).count()
    }

    /// The connection to close for one more `from` this address: the oldest of the address if it has its share, else, if
    /// there are too many in total, the oldest of the address with the most.
    fn evicted(&self, from: IpAddr) -> Option<usize> {
        let of = if self.count(from) >= PENDING_PER_ADDRESS {
            from
        } else if self.pending.len() >= PENDING_MAX {
            // Among addresses with equally many, the one with the oldest connection.
            self.pending.iter().rev().max_by_key(|p| self.count(p.from))?.from
        } else {
            return None;
        };
        self.pending.iter().position(|p| p.from == of)
    }

    /// Adds a connection `from` this address; `begin` starts its authentication, under its number.
    fn admit(&mut self, from: IpAddr, begin: impl FnOnce(u64) -> AbortHandle) {
        if let Some(gone) = self.evicted(from).and_then(|at| self.pending.remove(at)) {
            gone.task.abort();
            self.refuse("too many unauthenticated connections; closed the oldest", gone.from);
        }
        let number = self.next;
        self.next += 1;
        self.pending.push_back(Pending { number, from, task: begin(number) });
    }

    fn remove(&mut self, number: u64) {
        self.pending.retain(|p| p.number != number);
    }

    fn refuse(&mut self, why: &str, from: IpAddr) {
        self.refused += 1;
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!(name: "replication.connection_refused", %from, why, refused = self.refused, "refused a connection");
            (self.logged, self.refused) = (Some(Instant::now()), 0);
        }
    }
}

/// The authenticated connections of `listener`; `authenticate` is called for each.
pub fn accept<S, F>(
    listener: TcpListener,
    mut authenticate: impl FnMut(TcpStream) -> F + Send + 'static,
) -> impl Stream<Item = Result<S, Error>>
where
    S: Send + 'static,
    F: Future<Output = Result<S, Error>> + Send + 'static,
{
    let (accepted, out) = mpsc::channel(ACCEPTED_MAX);
    let queue = Arc::new(Mutex::new(Queue::default()));
    tokio::spawn(async move {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok((stream, from)) => (stream, counted_as(from.ip())),
                Err(error) => {
                    tracing::debug!(name: "replication.connection_not_accepted", %error, "cannot accept a connection");
                    // Closing the oldest pending connection frees a descriptor.
                    if let Some(gone) = lock(&queue).pending.pop_front() {
                        gone.task.abort();
                    }
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                    continue;
                }
            };
            if accepted.is_closed() {
                return;
            }
            // On failure small messages take longer.
            stream.set_nodelay(true).ok();
            let (authentication, accepted, of_queue) = (authenticate(stream), accepted.clone(), queue.clone());
            lock(&queue).admit(from, |number| {
                let authenticating = async move {
                    let ended = tokio::time::timeout(DEADLINE, authentication).await;
                    lock(&of_queue).remove(number);
                    let why = match ended {
                        Ok(Ok(stream)) => return drop(accepted.send(Ok(stream)).await),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => format!("no authentication within {DEADLINE:?}"),
                    };
                    lock(&of_queue).refuse(&why, from);
                };
                tokio::spawn(authenticating).abort_handle()
            });
        }
    });
    ReceiverStream::new(out)
}

fn lock(queue: &Mutex<Queue>) -> std::sync::MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Protocol of a connection, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS handshake.
    Tls,
    /// The handshake of [`super::local`].
    Local,
    /// Plain HTTP/2, of another program.
    Http2,
    /// Something else.
    Other,
}

/// Peeks at the first byte of `stream`.
///
/// # Errors
/// The connection fails or is closed.
pub async fn protocol(stream: &TcpStream) -> Result<Protocol, Error> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(Error::new(std::io::ErrorKind::UnexpectedEof, "closed before the first byte"));
    }
    Ok(match first {
        [0x16] => Protocol::Tls,
        [b'T'] => Protocol::Local,
        [b'P'] => Protocol::Http2,
        _ => Protocol::Other,
    })
}

/// Refuses a client of plain HTTP/2 and sends `why`: SETTINGS, then GOAWAY.
///
/// # Errors
/// The connection fails.
pub async fn refuse_http2(stream: &mut TcpStream, why: &str) -> Result<(), Error> {
    const INADEQUATE_SECURITY: u8 = 0xc;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let len = (8 + why.len()).min(0xff) as u8;
    let mut bytes = settings.to_vec();
    bytes.extend([0, 0, len, 7, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY]);
    bytes.extend(why.bytes().take(usize::from(len) - 8));
    stream.write_all(&bytes).await
}

/// Closes `stream` after the other end had time to read the refusal.
pub async fn linger(mut stream: TcpStream) {
    stream.shutdown().await.ok();
    let drained = async {
        let (mut chunk, mut left) = ([0; 1024], LINGER_BYTES);
        while left > 0 {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    };
    // On timeout it is closed too.
    tokio::time::timeout(LINGER, drained).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[tokio::test]
    async fn a_silent_connection_evicts_one_of_its_own_address() {
        let mut queue = Queue::default();
        let idle = |_| tokio::spawn(std::future::pending::<()>()).abort_handle();
        queue.admit(address(1), idle);
        (0..10_000).for_each(|_| queue.admit(address(2), idle));
        assert_eq!((queue.count(address(1)), queue.count(address(2))), (1, PENDING_PER_ADDRESS));
        // The newest of an address stay.
        let numbers: Vec<u64> = queue.pending.iter().filter(|p| p.from == address(2)).map(|p| p.number).collect();
        assert_eq!(numbers, (10_001 - PENDING_PER_ADDRESS as u64..10_001).collect::<Vec<_>>());
        // Addresses with the most connections lose some, and a new address is admitted.
        (0..1_000).for_each(|n| queue.admit(address(2 + (n % 200) as u8), idle));
        assert!(queue.pending.len() <= PENDING_MAX, "{}", queue.pending.len());
        queue.admit(address(250), idle);
        assert_eq!((queue.count(address(1)), queue.count(address(250))), (1, 1));
        let newest = queue.next - 1;
        queue.remove(newest);
        assert_eq!(queue.count(address(250)), 0);
    }

    #[test]
    fn the_addresses_of_an_ipv6_network_count_as_one() {
        let counted = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(counted("2001:db8::1"), counted("2001:db8::ffff:1:2:3"));
        assert_ne!(counted("2001:db8::1"), counted("2001:db8:0:1::1"));
        assert_eq!(counted("::ffff:10.0.0.1"), counted("10.0.0.1"));
        assert_ne!(counted("10.0.0.2"), counted("10.0.0.1"));
    }
}
