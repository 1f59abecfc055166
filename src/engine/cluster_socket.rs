//! Owns: the socket on which the replication process and operators' tools connect to storage, and its connections.
//!
//! What must hold: nothing here waits: what cannot be read or written now is left for the next look. A connection is closed
//! if its other end does not read, or sends bytes that are no message. Its memory is bounded.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use crate::consensus::message::{MESSAGE_MAX, Message};

/// Most connections open at once.
const LINKS_MAX: usize = 16;
/// Most bytes that wait to be written to one connection.
const UNSENT_MAX: usize = 32 << 20;
/// Most bytes read from one connection in one look.
const LOOK_BYTES: usize = 8 << 20;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// One connection.
struct Link {
    number: u64,
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    is_replication: bool,
    is_over: bool,
}

/// The connections.
pub(super) struct ClusterSocket {
    listener: UnixListener,
    path: PathBuf,
    cluster_socket: Vec<Link>,
    next: u64,
    /// Buffer that reads fill first.
    chunk: Box<[u8]>,
}

impl ClusterSocket {
    pub(super) fn new(listener: UnixListener, path: PathBuf) -> ClusterSocket {
        ClusterSocket { listener, path, cluster_socket: Vec::new(), next: 1, chunk: vec![0; CHUNK].into_boxed_slice() }
    }

    /// Accepts new connections and returns all messages that have arrived, each with the number of its connection, and
    /// whether the replication process has gone.
    pub(super) fn look(&mut self) -> (Vec<(u64, Message)>, bool) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.cluster_socket.len() >= LINKS_MAX {
                tracing::warn!(
                    name: "cluster.too_many_connections",
                    path = %self.path.display(), limit = LINKS_MAX,
                    "refused a connection of tape-replication or tape cluster: too many are open; stop tape cluster commands \
                     that hang"
                );
                continue;
            }
            if let Err(error) = stream.set_nonblocking(true) {
                tracing::warn!(
                    name: "cluster.connection_not_set_up", %error, path = %self.path.display(),
                    "cannot set up a connection; it is closed"
                );
                continue;
            }
            if !is_trusted(&stream) {
                tracing::warn!(
                    name: "cluster.foreign_user_refused", path = %self.path.display(),
                    "a connection of another user's process is refused; only this user's and root's are accepted"
                );
                continue;
            }
            let number = self.next;
            self.next += 1;
            let (received, unsent) = (Vec::new(), Vec::new());
            self.cluster_socket.push(Link { number, stream, received, unsent, is_replication: false, is_over: false });
        }
        let mut messages = Vec::new();
        for link in &mut self.cluster_socket {
            link.read(&mut self.chunk, &mut messages);
        }
        (messages, self.drop_over())
    }

    /// Removes closed connections; returns whether the replication process has gone.
    fn drop_over(&mut self) -> bool {
        let over = self.cluster_socket.extract_if(.., |l| l.is_over).filter(|l| l.is_replication);
        let gone = over.count() > 0;
        gone && !self.cluster_socket.iter().any(|l| l.is_replication)
    }

    /// Marks connection `number` as the replication process; an earlier one is closed.
    pub(super) fn is_replication(&mut self, number: u64) {
        for link in &mut self.cluster_socket {
            link.is_over |= link.is_replication && link.number != number;
            link.is_replication = link.number == number;
        }
    }

    /// Whether a message has arrived in part: the rest is on its way, and no bell rings for it.
    pub(super) fn has_part(&self) -> bool {
        self.cluster_socket.iter().any(|l| !l.received.is_empty())
    }

    /// Whether connection `number` is the replication process.
    pub(super) fn is_from_replication(&self, number: u64) -> bool {
        self.cluster_socket.iter().any(|l| l.number == number && l.is_replication)
    }

    /// Sends `message` on connection `number`, if it is still open.
    pub(super) fn say(&mut self, number: u64, message: &Message) {
        self.cluster_socket.iter_mut().filter(|l| l.number == number).for_each(|l| l.write(message));
    }

    /// Sends all `messages` to the replication process at once, if it is connected.
    pub(super) fn notify_all(&mut self, messages: &[Message]) {
        for link in self.cluster_socket.iter_mut().filter(|l| l.is_replication) {
            messages.iter().for_each(|m| link.add(m));
            link.flush();
        }
    }

    /// Writes what could not be written before; returns whether the replication process has gone.
    pub(super) fn flush(&mut self) -> bool {
        self.cluster_socket.iter_mut().filter(|l| !l.unsent.is_empty()).for_each(Link::flush);
        self.drop_over()
    }
}

/// Whether the process at the other end runs as storage's user or as root: it sends for other hosts and for operators.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    tapestore::shm::user::of_peer(stream).is_some_and(|uid| may_send(rustix::process::Uid::from_raw(uid), own))
}

fn may_send(of: rustix::process::Uid, own: rustix::process::Uid) -> bool {
    of == own || of.is_root()
}

impl Drop for ClusterSocket {
    fn drop(&mut self) {
        // The path is another process's by now only if somebody removed the directory.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(
                name: "cluster.socket_already_removed", path = %self.path.display(), %error,
                "the socket was removed already"
            );
        }
    }
}

impl Link {
    fn read(&mut self, chunk: &mut [u8], messages: &mut Vec<(u64, Message)>) {
        let mut budget = LOOK_BYTES;
        while budget > 0 && !self.is_over {
            match self.stream.read(chunk) {
                Ok(0) => self.is_over = true,
                Ok(n) => {
                    self.received.extend_from_slice(chunk.get(..n).unwrap_or(&[]));
                    budget = budget.saturating_sub(n);
                    if n < chunk.len() {
                        // That was all; a process that writes more rings again.
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.is_over = true,
            }
        }
        let mut at = 0;
        loop {
            match Message::decode(self.received.get(at..).unwrap_or(&[])) {
                Ok(Some((message, len))) => {
                    messages.push((self.number, message));
                    at += len;
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(
                        name: "cluster.malformed_message", %error,
                        "a connection to storage sent a malformed message; it is closed"
                    );
                    self.is_over = true;
                    break;
                }
            }
        }
        self.received.drain(..at);
        debug_assert!(self.received.len() <= MESSAGE_MAX + LOOK_BYTES + CHUNK);
    }

    fn write(&mut self, message: &Message) {
        self.add(message);
        self.flush();
    }

    /// Appends `message` to the bytes that wait to be written.
    fn add(&mut self, message: &Message) {
        match message.encode() {
            Ok(bytes) if self.unsent.len() + bytes.len() <= UNSENT_MAX => self.unsent.extend(bytes),
            Ok(_) => {
                tracing::warn!(
                    name: "cluster.messages_not_read",
                    "a process does not read what storage sends to it; its connection is closed"
                );
                self.is_over = true;
            }
            Err(error) => tracing::error!(
                name: "cluster.message_not_encoded", %error,
                "a message cannot be encoded and is not sent"
            ),
        }
    }

    fn flush(&mut self) {
        let mut sent = 0;
        while let Some(rest) = self.unsent.get(sent..).filter(|r| !r.is_empty() && !self.is_over) {
            match self.stream.write(rest) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.is_over = true,
            }
        }
        self.unsent.drain(..sent);
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Uid;

    use super::*;

    #[test]
    fn only_storages_user_and_root_send_for_other_hosts_and_operators() {
        let of = Uid::from_raw;
        for (other, own, may) in [(7, 7, true), (0, 7, true), (8, 7, false), (0, 0, true), (7, 0, false)] {
            assert_eq!(may_send(of(other), of(own)), may, "{other} to {own}");
        }
        let (here, _there) = UnixStream::pair().unwrap();
        assert!(is_trusted(&here), "a process of this user");
    }
}
