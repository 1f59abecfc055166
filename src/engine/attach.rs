//! Owns: the attach agent: the socket on which publishers send requests, the bus services granted to them, and the janitor
//! that cleans up after dead processes.
//!
//! What must hold: a connection lives as long as its publisher. When the kernel closes it, the publisher has ended, and
//! ingest is notified after every request that came before. A grant's service exists before the publisher receives the
//! grant. Malformed input ends its own connection and nothing else. Only processes of storage's own user attach: storage
//! could not read what other users put on the bus.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver as Queue, Sender as Post};
use rustix::event::{PollFd, PollFlags, poll};

use super::budget::Budget;
use super::requests::{Attach, Request};
use super::sync::Answer;
use super::waker::Waker;
use tapestore::agent::Stop;
use tapestore::bus::attach::{MESSAGE_MAX, Message, Mode};
use tapestore::bus::{Bus, Receiver};
use tapestore::error::{Error, Result};
use tapestore::lsn::Epoch;
use tapestore::shm::bell::{Bell, Bells};
use tapestore::shm::control::{Control, Statistic};
use tapestore::shm::user;
use tapestore::time::Clock;

/// A request that the attach agent posts to ingest.
pub(super) struct Posted {
    pub(super) request: Request,
    /// For an attach request: the receiver of the publisher's batches.
    pub(super) receiver: Option<Receiver>,
}

struct Connection {
    stream: UnixStream,
    /// The publisher's process; 0: unknown.
    pid: u32,
    received: Vec<u8>,
    attached: bool,
    /// Whether it has posted a request to ingest, which is then notified when the connection ends.
    has_asked: bool,
    /// Why its requests are refused: the process is another user's.
    refused: Option<Error>,
}

/// Most requests that wait for ingest.
pub(super) const REQUESTS_MAX: usize = 2048;
/// Most connections open at once.
const CONNECTIONS_MAX: usize = 512;
/// Interval between checks of the stop flag.
const TURN: Duration = Duration::from_millis(100);
/// Pause after a failed accept: the listener stays ready until an accept succeeds.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);
/// Interval between runs of the janitor.
const SWEEP_NS: u64 = 1_000_000_000;

/// The attach agent.
pub(super) struct AttachAgent {
    pub(super) store: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) socket: PathBuf,
    pub(super) bus: Bus,
    pub(super) instance: u64,
    pub(super) requests: Post<Posted>,
    pub(super) answers: Queue<Answer>,
    pub(super) waker: Waker,
    pub(super) bells: Bells,
    pub(super) control: Control,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stop: Stop,
}

/// Opens the socket at `path`, in place of one that a dead process left.
///
/// # Errors
/// [`Error::Io`] if the old socket cannot be removed or the new one cannot be opened.
pub(super) fn listen(path: &std::path::Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path, e)),
        _ => {}
    }
    user::listen(path)
}

impl AttachAgent {
    /// Runs until it is stopped.
    pub(super) fn run(self) {
        let mut connections: HashMap<u64, Connection> = HashMap::new();
        let mut next = 0u64;
        let mut grants = 0u64;
        let mut budget = Budget::default();
        let mut swept = self.clock.monotonic();
        while !self.stop.is_stopped() {
            for ready in self.wait(&connections) {
                match ready {
                    Ready::Listener => self.accept(&mut connections, &mut next),
                    Ready::Answers => self.waker.drain(),
                    Ready::Connection(id) => self.read(id, &mut connections, &mut grants, &mut budget),
                }
            }
            self.answer(&mut connections);
            let now = self.clock.monotonic();
            if now.saturating_sub(swept) >= SWEEP_NS {
                swept = now;
                self.sweep();
            }
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::warn!(name: "attach.socket_not_removed", %error, "cannot remove the attach socket");
        }
    }

    fn wait(&self, connections: &HashMap<u64, Connection>) -> Vec<Ready> {
        let mut sources = vec![Ready::Listener, Ready::Answers];
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::from_borrowed_fd(self.waker.fd(), PollFlags::IN)];
        for (&id, connection) in connections {
            sources.push(Ready::Connection(id));
            fds.push(PollFd::new(&connection.stream, PollFlags::IN));
        }
        let limit = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(TURN.subsec_nanos()) };
        match poll(&mut fds, Some(&limit)) {
            Ok(0) | Err(_) => Vec::new(),
            Ok(_) => sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(s, _)| s).collect(),
        }
    }

    fn accept(&self, connections: &mut HashMap<u64, Connection>, next: &mut u64) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(
                        name: "attach.connection_not_accepted", %error,
                        "cannot accept a publisher's connection; trying again"
                    );
                    return std::thread::sleep(ACCEPT_RETRY);
                }
            };
            if connections.len() >= CONNECTIONS_MAX {
                tracing::warn!(
                    name: "attach.too_many_connections",
                    limit = CONNECTIONS_MAX,
                    "refused a publisher's connection: too many are open; to see the attached publishers, run: tape status"
                );
                continue;
            }
            if let Err(error) = stream.set_nonblocking(true) {
                tracing::warn!(
                    name: "attach.connection_not_set_up", %error,
                    "cannot set up a publisher's connection; it is closed"
                );
                continue;
            }
            *next += 1;
            let (pid, refused) = match user::check_peer(&stream, &self.store) {
                Ok(pid) => (pid, None),
                Err(error) => (0, Some(error)),
            };
            let received = Vec::new();
            connections.insert(*next, Connection { stream, pid, received, attached: false, has_asked: false, refused });
        }
    }

    fn read(&self, id: u64, connections: &mut HashMap<u64, Connection>, grants: &mut u64, budget: &mut Budget) {
        let (attached, all) = (connections.values().filter(|c| c.attached).count() as u64, connections.len() as u64);
        let Some(connection) = connections.get_mut(&id) else { return };
        let mut chunk = [0u8; 64 << 10];
        let open = loop {
            if connection.received.len() > MESSAGE_MAX {
                // A whole message has arrived; the rest is read in the next turn.
                break true;
            }
            match connection.stream.read(&mut chunk) {
                Ok(0) => break false,
                Ok(n) => connection.received.extend(chunk.get(..n).unwrap_or(&[])),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        let served = self.serve(id, connection, grants, || budget.refusal(attached, all));
        if let Err(error) = &served {
            tracing::warn!(name: "attach.connection_closed", %error, "a publisher's connection is closed");
            send(connection, &Message::Refused(error.to_string()));
        }
        if !open || served.is_err() {
            let has_asked = connection.has_asked;
            connections.remove(&id);
            if has_asked {
                self.post(Request::Gone { connection: id }, None);
            }
        }
    }

    /// Serves the messages that have arrived whole.
    fn serve(
        &self,
        id: u64,
        connection: &mut Connection,
        grants: &mut u64,
        mut refusal: impl FnMut() -> Option<String>,
    ) -> Result<()> {
        while let Some((message, len)) = Message::decode(&connection.received)? {
            connection.received.drain(..len);
            if let Some(error) = connection.refused.take() {
                return Err(error);
            }
            match message {
                Message::Attach { mode: Mode::Resume(Epoch(0)), .. } => {
                    return Err(Error::invalid("request", "there is no epoch 0"));
                }
                Message::Attach { publisher, mode, level, incarnation } if !connection.attached => {
                    if let Some(reason) = refusal() {
                        tracing::error!(name: "attach.refused", publisher = publisher.0, reason, "a publisher is not attached");
                        send(connection, &Message::Refused(reason));
                        continue;
                    }
                    *grants += 1;
                    // Differs from the grants of every other instance, so that a stale one is recognised.
                    let grant = self.instance << 32 | *grants;
                    let receiver = self.bus.receive_ingest(grant)?;
                    (connection.attached, connection.has_asked) = (true, true);
                    let attach = Attach { connection: id, publisher, pid: connection.pid, mode, level, incarnation, grant };
                    self.ask(Request::Attach(attach), Some(receiver))?;
                }
                Message::Symbols(names) => {
                    connection.has_asked = true;
                    self.ask(Request::Symbols { connection: id, names }, None)?;
                }
                Message::Kind(layout) => {
                    connection.has_asked = true;
                    self.ask(Request::Kind { connection: id, layout }, None)?;
                }
                other => return Err(Error::invalid("request", format!("a publisher may not send {other:?} here"))),
            }
        }
        Ok(())
    }

    /// Passes a publisher's request to ingest, unless too many wait.
    fn ask(&self, request: Request, receiver: Option<Receiver>) -> Result<()> {
        // The other half of the queue is for requests that must not be refused.
        if self.requests.len() >= REQUESTS_MAX / 2 {
            return Err(Error::Limit { what: "the number of waiting requests", limit: REQUESTS_MAX as u64 / 2 });
        }
        self.post(request, receiver);
        Ok(())
    }

    fn post(&self, request: Request, receiver: Option<Receiver>) {
        // Ingest receives requests whenever it can append. When ingest has ended, this agent ends too.
        if self.requests.send(Posted { request, receiver }).is_err() {
            tracing::debug!(name: "attach.ingest_ended", "ingest has ended");
        }
        self.bells.ring(Bell::Ingest);
    }

    fn answer(&self, connections: &mut HashMap<u64, Connection>) {
        while let Ok(answer) = self.answers.try_recv() {
            match answer {
                Answer::Retired(receiver) => drop(receiver),
                Answer::Say { connection: id, message } => {
                    if let Some(connection) = connections.get_mut(&id) {
                        send(connection, &message);
                    }
                }
            }
        }
    }

    fn sweep(&self) {
        let swept = self.bus.sweep();
        if swept.removed > 0 {
            self.control.add(Statistic::Swept, swept.removed);
            tracing::info!(name: "bus.swept", removed = swept.removed, "cleaned up after dead processes");
        }
    }
}

/// Writes `message`. Shuts down a connection that does not accept it at once: its end is then noticed like any other.
fn send(connection: &mut Connection, message: &Message) {
    if let Err(error) = connection.stream.write_all(&message.encode()) {
        tracing::warn!(name: "attach.answer_not_read", %error, "a publisher does not read its answer; its connection is closed");
        match connection.stream.shutdown(std::net::Shutdown::Both) {
            Ok(()) | Err(_) => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Ready {
    Listener,
    Answers,
    Connection(u64),
}
