//! Owns: who comes in at the port for other hosts: connections from the moment that they are accepted until they have
//! proved who they are.
//!
//! What must hold: every connection is accepted at once, so that one that says nothing keeps nobody waiting; those that
//! have not proved who they are are bounded, all of them and each address's share, and the oldest goes when there is one
//! too many; nobody may take longer than [`DEADLINE`] over it; what is refused is counted and said now and then, not each
//! time.

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

/// Connections that have not proved who they are, of all addresses and of one, at most.
const UNPROVED_MAX: usize = 256;
const UNPROVED_OF_ONE: usize = 32;
/// How long a proof may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// Proved connections that wait for the server.
const PROVED_MAX: usize = 32;
/// Without descriptors nobody can be accepted: how long until the next try.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);
/// How often it is said what has been refused.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// How long, and how many bytes, a connection is read that is refused: what it has sent would otherwise take the answer with it.
const LINGER: Duration = Duration::from_millis(200);
const LINGER_BYTES: usize = 16 << 10;

/// A connection that has not proved who it is.
struct Unproved {
    number: u64,
    from: IpAddr,
    task: AbortHandle,
}

/// Those that there are, in the order in which they came.
#[derive(Default)]
struct Room {
    next: u64,
    unproved: VecDeque<Unproved>,
    refused: u64,
    said: Option<Instant>,
}

/// Whose share a connection from `address` is part of: whoever has an IPv6 address has 2^64 of them.
fn share_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Room {
    fn count(&self, from: IpAddr) -> usize {
        self.unproved.iter().filter(|u| u.from == from).count()
    }

    /// Which connection goes when one more comes `from` there: the oldest of that address if it has its share, or of the
    /// address that has most if there are too many in all.
    fn goes(&self, from: IpAddr) -> Option<usize> {
        let of = if self.count(from) >= UNPROVED_OF_ONE {
            from
        } else if self.unproved.len() >= UNPROVED_MAX {
            // Of those that have as many the one that came first.
            self.unproved.iter().rev().max_by_key(|u| self.count(u.from))?.from
        } else {
            return None;
        };
        self.unproved.iter().position(|u| u.from == of)
    }

    /// Takes in a connection that comes `from` there; `begin` begins its proof, under its number.
    fn admit(&mut self, from: IpAddr, begin: impl FnOnce(u64) -> AbortHandle) {
        if let Some(gone) = self.goes(from).and_then(|at| self.unproved.remove(at)) {
            gone.task.abort();
            self.refuse("more connections than may come in have not proved who they are; the oldest is closed", gone.from);
        }
        let number = self.next;
        self.next += 1;
        self.unproved.push_back(Unproved { number, from, task: begin(number) });
    }

    fn is_over(&mut self, number: u64) {
        self.unproved.retain(|u| u.number != number);
    }

    fn refuse(&mut self, why: &str, from: IpAddr) {
        self.refused += 1;
        if self.said.is_none_or(|s| s.elapsed() >= SAID_EVERY) {
            tracing::warn!(%from, why, refused = self.refused, "a connection is refused");
            (self.said, self.refused) = (Some(Instant::now()), 0);
        }
    }
}

/// The connections at `listener` that have proved who they are, each by a `proof` of its own.
pub fn accept<S, F>(
    listener: TcpListener,
    mut proof: impl FnMut(TcpStream) -> F + Send + 'static,
) -> impl Stream<Item = Result<S, Error>>
where
    S: Send + 'static,
    F: Future<Output = Result<S, Error>> + Send + 'static,
{
    let (proved, out) = mpsc::channel(PROVED_MAX);
    let room = Arc::new(Mutex::new(Room::default()));
    tokio::spawn(async move {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok((stream, from)) => (stream, share_of(from.ip())),
                Err(error) => {
                    tracing::debug!(%error, "no connection can be accepted");
                    // The oldest that has proved nothing gives up its descriptor.
                    if let Some(gone) = lock(&room).unproved.pop_front() {
                        gone.task.abort();
                    }
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                    continue;
                }
            };
            if proved.is_closed() {
                return;
            }
            // Without it small messages only take longer.
            stream.set_nodelay(true).ok();
            let (proof, proved, of_room) = (proof(stream), proved.clone(), room.clone());
            lock(&room).admit(from, |number| {
                let proving = async move {
                    let ended = tokio::time::timeout(DEADLINE, proof).await;
                    lock(&of_room).is_over(number);
                    let why = match ended {
                        Ok(Ok(stream)) => return drop(proved.send(Ok(stream)).await),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => format!("it has not proved who it is within {DEADLINE:?}"),
                    };
                    lock(&of_room).refuse(&why, from);
                };
                tokio::spawn(proving).abort_handle()
            });
        }
    });
    ReceiverStream::new(out)
}

fn lock(room: &Mutex<Room>) -> std::sync::MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// A handshake of TLS.
    Tls,
    /// A proof of [`super::local`].
    Local,
    /// HTTP/2 in the clear: another program's.
    Http2,
    /// Something else.
    Other,
}

/// What `stream` begins with; nothing of it is taken.
///
/// # Errors
/// The connection's; it has closed.
pub async fn begins(stream: &TcpStream) -> Result<Begins, Error> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(Error::new(std::io::ErrorKind::UnexpectedEof, "it closes without a word"));
    }
    Ok(match first {
        [0x16] => Begins::Tls,
        [b'T'] => Begins::Local,
        [b'P'] => Begins::Http2,
        _ => Begins::Other,
    })
}

/// Tells a client that speaks HTTP/2 in the clear `why` it is refused: settings, then the end.
///
/// # Errors
/// The connection's.
pub async fn turn_away(stream: &mut TcpStream, why: &str) -> Result<(), Error> {
    const INADEQUATE_SECURITY: u8 = 0xc;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let len = (8 + why.len()).min(0xff) as u8;
    let mut bytes = settings.to_vec();
    bytes.extend([0, 0, len, 7, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY]);
    bytes.extend(why.bytes().take(usize::from(len) - 8));
    stream.write_all(&bytes).await
}

/// Closes `stream` once the other end has had time to read why.
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
    // It closes in any case.
    tokio::time::timeout(LINGER, drained).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[tokio::test]
    async fn who_says_nothing_takes_the_place_of_its_own_address_and_not_of_others() {
        let mut room = Room::default();
        let idle = |_| tokio::spawn(std::future::pending::<()>()).abort_handle();
        room.admit(address(1), idle);
        (0..10_000).for_each(|_| room.admit(address(2), idle));
        assert_eq!((room.count(address(1)), room.count(address(2))), (1, UNPROVED_OF_ONE));
        // Of one address the newest stay.
        let numbers: Vec<u64> = room.unproved.iter().filter(|u| u.from == address(2)).map(|u| u.number).collect();
        assert_eq!(numbers, (10_001 - UNPROVED_OF_ONE as u64..10_001).collect::<Vec<_>>());
        // Of many addresses those that have most give way, and one that comes anew has its place.
        (0..1_000).for_each(|n| room.admit(address(2 + (n % 200) as u8), idle));
        assert!(room.unproved.len() <= UNPROVED_MAX, "{}", room.unproved.len());
        room.admit(address(250), idle);
        assert_eq!((room.count(address(1)), room.count(address(250))), (1, 1));
        let newest = room.next - 1;
        room.is_over(newest);
        assert_eq!(room.count(address(250)), 0);
    }

    #[test]
    fn a_network_of_ipv6_addresses_has_the_share_of_one() {
        let share = |text: &str| share_of(text.parse().unwrap());
        assert_eq!(share("2001:db8::1"), share("2001:db8::ffff:1:2:3"));
        assert_ne!(share("2001:db8::1"), share("2001:db8:0:1::1"));
        assert_eq!(share("::ffff:10.0.0.1"), share("10.0.0.1"));
        assert_ne!(share("10.0.0.2"), share("10.0.0.1"));
    }
}
