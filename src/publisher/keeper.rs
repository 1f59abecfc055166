//! Owns: attaching, and the keeper thread, which serves a publisher between its owner's calls.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::link::{self, Link, connect, register};
use super::options::Options;
use super::state::{Fatal, KEEPER_BATCHES, STORAGE_DOWN, State, lock};
use super::unanswered::unanswered;
use crate::agent::Stop;
use crate::bus::attach::{Grant, Message, Mode, ask};
use crate::error::{Error, Result};
use crate::lsn::{Durability, Epoch, NO_SUCH_EPOCH, NO_SUCH_LEVEL, NodeId, PubSeq};
use crate::shm::control::Control;
use crate::shm::run_dir::RunDir;

/// Interval of the keeper's turns, with and without outstanding records.
const BUSY: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(10);
/// Pause after a refusal whose reason may pass.
const REFUSED: Duration = Duration::from_millis(200);
/// Without progress for this long, outstanding records are sent again.
const SILENCE: Duration = Duration::from_millis(500);
/// Timeout of a request to storage.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Attaches to storage.
pub(super) fn attach(options: &Options, incarnation: u32, run_dir: &RunDir, mode: Mode) -> Result<(UnixStream, Link, Grant)> {
    const REQUEST: &str = "to attach a publisher";
    let control = Control::open(&run_dir.control())?;
    if control.instance() % 2 == 1 {
        return Err(Error::StorageDown { dir: options.store.clone(), why: "it is recovering" });
    }
    let mut stream = connect(run_dir, &options.store, ANSWER_TIMEOUT)?;
    let request = Message::Attach { publisher: options.publisher, mode, level: options.durability, incarnation };
    match ask(&mut stream, &request).map_err(|_| unanswered(&options.store))? {
        Message::Attached(grant) => {
            let link = Link::open(run_dir, control, &grant, options.live)?;
            Ok((stream, link, grant))
        }
        Message::Refused(reason) => Err(Error::Refused { request: REQUEST, reason }),
        Message::NotLeader(node) => {
            Err(Error::NotLeader { dir: options.store.clone(), leader: (node != 0).then_some(NodeId(node)) })
        }
        Message::Taken => Err(Error::Taken { dir: options.store.clone(), publisher: options.publisher }),
        Message::Fenced(_) => Err(Error::Fenced { publisher: options.publisher }),
        _ => Err(Error::MalformedAnswer { dir: options.store.clone(), request: REQUEST }),
    }
}

/// The thread that serves a publisher between its owner's calls.
pub(super) struct Keeper {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) options: Options,
    pub(super) incarnation: u32,
    /// An abandoned epoch, and the last number of it that storage has accepted.
    pub(super) stored: Option<(Epoch, PubSeq)>,
    pub(super) stop: Stop,
    pub(super) stream: Option<UnixStream>,
}

impl Keeper {
    pub(super) fn run(mut self) {
        while !self.stop.is_stopped() {
            let pause = self.turn();
            std::thread::sleep(pause);
        }
        // Shuts the socket down, so that storage sees the end at once, even if a child process being started has
        // inherited the socket.
        if let Some(Err(error)) = self.stream.map(|s| s.shutdown(std::net::Shutdown::Both)) {
            tracing::debug!(name: "publisher.already_closed", %error, "the connection to storage was already closed");
        }
    }

    fn turn(&mut self) -> Duration {
        let alive = self.stream.as_ref().is_some_and(link::is_open);
        let mut state = lock(&self.state);
        if !alive {
            state.link = None;
        }
        if state.fatal.is_some() {
            return IDLE;
        }
        if state.link.is_none() {
            self.stream = None;
            let epoch = state.epoch;
            drop(state);
            return self.reattach(epoch);
        }
        state.reap();
        let (accepted, since) = state.moved;
        if state.ring.sent() > accepted && since.elapsed() > SILENCE && state.back_pressure == 0 && state.level > Durability::None
        {
            state.moved.1 = Instant::now();
            state.rewind(PubSeq(accepted.0 + 1));
        }
        state.pump(KEEPER_BATCHES);
        if state.ring.is_empty() { IDLE } else { BUSY }
    }

    fn reattach(&mut self, epoch: Epoch) -> Duration {
        let attempt = RunDir::find(&self.options.store).and_then(|run_dir| {
            let kinds = lock(&self.state).kinds.clone();
            let ask = |mode| {
                let (mut stream, link, grant) = attach(&self.options, self.incarnation, &run_dir, mode)?;
                // Registers the kinds again, since a truncated log tail may have contained them and records in the
                // ring are of these kinds.
                kinds.iter().try_for_each(|k| register(&mut stream, &self.options.store, &k.1))?;
                Ok((stream, link, grant))
            };
            let (stream, link, grant) = ask(Mode::Resume(epoch))?;
            if !lock(&self.state).misses(&grant) {
                return Ok((stream, link, grant));
            }
            // Storage expects records that have left the ring: attach with a new epoch, and publish a gap record up to
            // the oldest in the ring. If the answer is lost, a resume of the old epoch finds the new one.
            self.stored = Some((epoch, grant.pub_seq));
            drop((stream, link));
            ask(Mode::New)
        });
        if let Err(error) = &attempt {
            lock(&self.state).away = match error {
                Error::Unanswered { why, .. } => why,
                Error::Refused { .. } => "storage refuses to attach this publisher for now (its log has the reason)",
                Error::MalformedAnswer { .. } => {
                    "storage sends malformed answers; run this program and tape-storage from one release"
                }
                Error::NotLeader { .. } => "this host does not lead the cluster, and forwarding is off",
                _ => STORAGE_DOWN,
            };
        }
        match attempt {
            Ok((stream, link, grant)) => {
                let stored = self.stored.take().filter(|(of, _)| *of == epoch).map(|(_, pub_seq)| pub_seq);
                let mut state = lock(&self.state);
                state.relink(link, &grant, stored);
                state.pump(KEEPER_BATCHES);
                self.stream = Some(stream);
                Duration::ZERO
            }
            Err(Error::Fenced { .. }) => {
                lock(&self.state).fatal = Some(Fatal::Fenced);
                IDLE
            }
            Err(Error::Refused { reason, .. }) if reason == NO_SUCH_LEVEL || reason.ends_with(NO_SUCH_EPOCH) => {
                // The level is refused until the store's configuration changes and storage restarts; the epoch is
                // refused for good.
                lock(&self.state).fatal = Some(Fatal::Refused(reason));
                IDLE
            }
            Err(error @ (Error::Refused { .. } | Error::NotLeader { .. } | Error::NoSharedMemory { .. })) => {
                lock(&self.state).no_memory = matches!(error, Error::NoSharedMemory { .. });
                tracing::warn!(
                    name: "publisher.attach_refused", %error,
                    "storage refuses to attach this publisher; trying again"
                );
                lock(&self.state).is_refused = true;
                REFUSED
            }
            Err(error) => {
                tracing::debug!(
                    name: "publisher.storage_unreachable", %error,
                    "cannot reach storage to attach again; trying again"
                );
                lock(&self.state).is_refused = false;
                IDLE
            }
        }
    }
}

/// Draws a number by which storage recognises this process when it attaches again.
pub(super) fn incarnation() -> std::io::Result<u32> {
    let mut bytes = [0u8; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_le_bytes(bytes))
}
