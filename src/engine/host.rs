//! Owns: the state machine of one host: publisher sessions, requests, forwards and relays, the log, its role in the cluster.
//! Events come in by the functions below; the work to do comes out as [`Effect`]s, in order.
//!
//! ```text
//! requests, batches ─▶ ┌──────────────────── Host ────────────────────┐ ─▶ sync agent   (appended, acknowledgements, answers)
//! messages of hosts ─▶ │ sessions · requests · forwards · relays       │ ─▶ flush agent  (sealed MemTables)
//! durable, flushed  ─▶ │      └── log (store, raft, answers held) ──┘  │ ─▶ replication  (messages, relays)
//! a moment          ─▶ └───────────────────────────────────────────────┘ ─▶ bells, connections
//! ```
//!
//! What must hold: the host has no thread, clock or socket, and never waits. Work that cannot be done now continues in a later
//! turn, so that no request of a publisher delays ticks, votes and acknowledgements. This host numbers records only while it
//! leads. A thread drives it ([`super::ingest`]), and so does the simulation of whole hosts.

use super::effect::{Effect, Moment};
use super::ended::Ended;
use super::flush::FlushNotice;
use super::forward::{Forwards, Relays};
use super::log::{Log, LogParts};
use super::members;
use super::replica::{Replica, Shown};
use super::requests::{DurabilityPolicy, Request, Requests};
use super::sessions::{Sessions, Taken};
use crate::consensus::Options;
use crate::consensus::message::{Command, Identity, Message, Refusal};
use tapestore::bus::BatchHeader;
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;
use tapestore::sabotage::{self, Sabotage};
use tapestore::time::Ts;

/// Parts of a host.
pub(super) struct HostParts {
    pub(super) log: LogParts,
    pub(super) options: Options,
    pub(super) identity: Identity,
    pub(super) levels: DurabilityPolicy,
    /// Number of this start of storage.
    pub(super) instance: u64,
    /// For a pair: whether this host leads before it was in touch with the other.
    pub(super) may_lead: bool,
    /// First ticket of this process: random, so that an answer to an earlier process is not taken for one to this.
    pub(super) first_ticket: u64,
}

/// Where batches go in this turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// They stay in their queues.
    Hold,
    /// This host numbers them.
    Number,
    /// They are forwarded to the leader.
    PassOn(NodeId),
}

/// One host.
pub(super) struct Host {
    log: Log,
    replica: Replica,
    sessions: Sessions,
    requests: Requests,
    forwards: Forwards,
    relays: Relays,
    flow: Flow,
}

impl Host {
    pub(super) fn new(parts: HostParts) -> Host {
        let HostParts { log, options, identity, levels, instance, may_lead, first_ticket } = parts;
        let own = identity.node;
        let sessions = Sessions::new(log.control.clone());
        let durable = log.watermarks.durable();
        let forwards = Forwards::new(own, options.forward, first_ticket);
        Host {
            log: Log::new(log),
            replica: Replica::new(options, identity, durable, may_lead),
            sessions,
            requests: Requests::new(instance, levels),
            forwards,
            relays: Relays::new(own),
            flow: Flow::Hold,
        }
    }

    /// Exchanges `effects`, which is empty, for the effects to carry out, in order.
    pub(super) fn swap_effects(&mut self, effects: &mut Vec<Effect>) {
        self.log.swap_effects(effects);
    }

    /// Whether there are effects to carry out.
    #[inline]
    pub(super) fn has_effects(&self) -> bool {
        self.log.has_effects()
    }

    /// Why storage is to end.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.replica.ended()
    }

    /// Whether a tick is due.
    pub(super) fn is_tick_due(&self, now: u64) -> bool {
        self.replica.is_tick_due(now)
    }

    /// Whether the sync agent has made more durable since the last turn.
    pub(super) fn is_due(&self) -> bool {
        self.log.covered().durable() != self.replica.durable() || self.log.wants_flush()
    }

    /// Whether this host is the only one of its cluster.
    pub(super) fn is_alone(&self) -> bool {
        self.log.is_alone()
    }

    /// Whether this host leads other hosts.
    pub(super) fn leads_others(&self) -> bool {
        self.log.leads_others()
    }

    /// Whether the store is under back-pressure; `Some(true)` if that may last.
    pub(super) fn back_pressure(&self) -> Option<bool> {
        self.log.back_pressure()
    }

    /// A publisher of this host sends a request, or has ended.
    pub(super) fn request(&mut self, request: Request) {
        if let Request::Gone { connection } = request {
            self.forwards.drop_of(connection, &mut self.log);
        }
        self.requests.push(request, &mut self.log, &mut self.sessions);
    }

    /// Number of requests that wait and were not begun.
    pub(super) fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// No agent writes to slot `slot` any more.
    pub(super) fn freed(&mut self, slot: usize) {
        self.sessions.freed(slot);
    }

    /// The flush agent has finished something.
    pub(super) fn flushed(&mut self, notice: FlushNotice) {
        self.log.flushed(notice);
    }

    /// The replication process has ended.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn replication_gone(&mut self) -> Result<()> {
        self.replica.replication_gone(&mut self.log)
    }

    /// Handles a message on connection `link`; `is_replication`: the connection is the replication process's.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`]; [`tapestore::error::Error::Consensus`] if this host leads and another was promoted
    /// in its place.
    pub(super) fn message(&mut self, link: u64, is_replication: bool, message: Message, wall: Ts) -> Result<()> {
        let for_replication = matches!(
            message,
            Message::Raft(_)
                | Message::Unreachable(_)
                | Message::Relay { .. }
                | Message::Reached { .. }
                | Message::Rejected { .. }
                | Message::SnapshotFetched
                | Message::Command { command: Command::Greet(_), .. }
        );
        if for_replication && !is_replication {
            tracing::warn!(
                name: "cluster.wrong_sender",
                "a process that is not the replication process sends for other hosts; its message is dropped"
            );
            return Ok(());
        }
        let log = &mut self.log;
        match message {
            Message::Hello { version, pid } => self.replica.greet(link, version, pid, log),
            Message::Raft(raft) => self.replica.receive(raft, log)?,
            Message::Unreachable(node) => log.node_mut().unreachable(node)?,
            Message::Command { id, command } => {
                let is_greeting = matches!(command, Command::Greet(_));
                let result = members::command(log, command, wall).map_err(|error| match error {
                    Error::Invalid { reason, .. } if is_greeting => Refusal::Host(reason),
                    error => Refusal::Command(error.to_string()),
                });
                log.ask(Effect::Say(link, Message::Answer { id, result }));
            }
            Message::Relay { from, bytes, .. } => self.relays.received(from, &bytes, &mut self.forwards, &mut self.sessions),
            Message::Reached { node, generation, last, needs_snapshot } => {
                log.node_mut().reached(node, last, needs_snapshot);
                self.replica.reached(node, generation, log)?;
            }
            Message::Rejected { node, reason } => log.node_mut().refused(node, reason),
            Message::SnapshotFetched => self.replica.filled(log),
            Message::Welcome(_)
            | Message::Refused(_)
            | Message::Members(_)
            | Message::State(_)
            | Message::SnapshotNeeded { .. }
            | Message::FetchSnapshot { .. }
            | Message::Answer { .. } => {
                tracing::warn!(
                    name: "cluster.reserved_message", ?message,
                    "a process sends a message that only storage may send; it is dropped"
                );
            }
        }
        Ok(())
    }

    /// Runs one turn. The caller then offers batches and ends the turn with [`Host::commit`]. `backlog` items wait for the
    /// sync agent. Returns whether there was something to do.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if the log has failed; as [`crate::consensus::Node::tick`].
    pub(super) fn turn(&mut self, at: Moment, backlog: usize) -> Result<bool> {
        self.flow = Flow::Hold;
        self.log.notify_sync_if_due(at.now);
        self.log.flush_if_wanted();
        let mut worked = self.take_part(at, backlog)?;
        if self.ended().is_some() {
            return Ok(true);
        }
        if !self.log.numbers() {
            let leader = self.replica.leader();
            let Host { log, sessions, requests, forwards, .. } = self;
            let (more, to) = forwards.turn(requests, log, sessions, leader, at)?;
            self.flow = to.map_or(Flow::Hold, Flow::PassOn);
            return Ok(worked | more);
        }
        if !self.forwards.is_empty() {
            self.forwards.take_back(&mut self.requests, &mut self.log, &mut self.sessions);
        }
        let mut room = self.log.has_room(at.now, backlog)?;
        let Host { log, sessions, requests, relays, .. } = self;
        // Control entries need room in the log alone: they are accepted while the MemTables are full.
        if requests.is_busy() || requests.len() > 0 {
            let (did, done) = requests.turn(log, sessions, at, room)?;
            if let Some(done) = done {
                relays.answer(done, log);
            }
            worked |= did;
            room = log.has_room(at.now, backlog)?;
        }
        if room && !relays.is_empty() {
            worked |= relays.turn(requests, log, sessions, at)?;
            room = log.has_room(at.now, backlog)?;
        }
        if room {
            self.flow = Flow::Number;
        }
        Ok(worked)
    }

    /// Does all that the cluster needs of this host. Returns whether there was something to do.
    fn take_part(&mut self, at: Moment, backlog: usize) -> Result<bool> {
        let Host { log, sessions, replica, .. } = self;
        let durable = log.covered().durable();
        let mut worked = replica.persisted(durable, log)?;
        worked |= replica.take_frames(log, sessions, at, backlog)?;
        let is_kept_waiting = sabotage::is(Sabotage::TickLate) && (self.requests.is_busy() || !self.forwards.is_empty());
        if replica.is_tick_due(at.now) && !is_kept_waiting {
            replica.tick(log, at.now)?;
        }
        replica.do_work(log, at)?;
        // Those who wait for a commit are notified before the other hosts are.
        if let Shown::Role { leads } = replica.show(log, sessions, at.now) {
            sessions.forget_passed();
            self.relays.forget_gaps();
            if !leads {
                self.relays.clear();
                self.forwards.ask_again();
            }
        }
        if !self.forwards.is_empty() {
            self.forwards.arrive(&mut self.requests, &mut self.log, &mut self.sessions);
        }
        self.log.release();
        self.log.send();
        Ok(worked)
    }

    /// Whether a batch of the session in `slot` is accepted now.
    #[inline]
    pub(super) fn wants(&mut self, slot: usize, now: u64) -> bool {
        match self.flow {
            Flow::Number => true,
            Flow::Hold => false,
            Flow::PassOn(_) => {
                let core = self.log.state();
                self.sessions.has_window(slot, |publisher| core.publisher(publisher).last, now)
            }
        }
    }

    /// Whether batches are accepted in this turn.
    #[inline]
    pub(super) fn accepts(&self) -> bool {
        self.flow != Flow::Hold
    }

    /// Accepts a batch of the session in `slot`. `words` may change meanwhile: they are copied before they are checked.
    #[inline]
    pub(super) fn batch(&mut self, slot: usize, header: BatchHeader, words: &[u64], now: u64) -> Taken {
        match self.flow {
            Flow::PassOn(leader) => {
                let Host { log, sessions, forwards, .. } = self;
                forwards.pass_on((slot, header, words), leader, log, sessions, now);
                Taken::Done
            }
            Flow::Number => self.sessions.take(slot, header, words, self.log.state()),
            Flow::Hold => Taken::FrameFull,
        }
    }

    /// The queue of `slot` is empty.
    #[inline]
    pub(super) fn is_empty(&mut self, slot: usize) {
        self.sessions.is_empty(slot);
    }

    /// The queue of `slot` cannot be read any more.
    pub(super) fn has_failed(&mut self, slot: usize) {
        self.sessions.unreceived(slot);
    }

    /// Ends the session in `slot`: its publisher has ended, and nothing of it is left to accept.
    pub(super) fn detach(&mut self, slot: usize) {
        self.log.notify_sync();
        let Some(connection) = self.sessions.close(slot) else { return };
        self.log.ask(Effect::Sync(super::sync::SyncItem::Freed(slot)));
        self.log.ask(Effect::Detached { connection });
    }

    /// Ends the turn: appends the accepted records as one frame.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Halted`] if the log has failed; as [`crate::consensus::Node::tick`].
    pub(super) fn append(&mut self, at: Moment) -> Result<()> {
        if self.flow == Flow::Number { self.log.append(at, &mut self.sessions) } else { Ok(()) }
    }

    /// Notifies the sync agent of everything appended: the turn was quiet, or storage ends.
    pub(super) fn notify_sync(&mut self) {
        self.log.notify_sync();
    }

    /// Records durably which frames are committed, for the next start.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`] if `raft.meta` cannot be written.
    pub(super) fn record(&mut self) -> Result<()> {
        self.log.node_mut().record()
    }

    /// Whether every frame of the log is committed, and the other agents have that.
    pub(super) fn is_settled(&self) -> bool {
        self.log.covered().committed() >= self.log.node().state().last
    }

    /// Storage ends: what the MemTables hold is flushed, so that the next start and readers of the store at rest need not read
    /// it from the log.
    pub(super) fn seal(&mut self) {
        self.log.seal();
    }

    /// Storage ends: asks another host to lead.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn hand_over(&mut self) -> Result<()> {
        self.replica.hand_over(&mut self.log)
    }

    /// Sends raft's pending messages.
    pub(super) fn send(&mut self) {
        self.log.send();
    }
}

/// Views for the simulation.
#[cfg(test)]
impl Host {
    pub(super) fn node(&self) -> &crate::consensus::Node {
        self.log.node()
    }

    pub(super) fn node_mut(&mut self) -> &mut crate::consensus::Node {
        self.log.node_mut()
    }

    pub(super) fn state(&mut self) -> &mut super::state::StoreState {
        self.log.state()
    }

    /// Describes what waits, for a failure's message.
    pub(super) fn stands(&self) -> String {
        let (waiting, is_busy, flow) = (self.requests.len(), self.requests.is_busy(), self.flow);
        format!("{flow:?}, {waiting} requests wait, busy: {is_busy}; forwarded: {}", self.forwards.stands())
    }

    /// Number of uncommitted records that sessions keep, and number of free slots.
    pub(super) fn kept(&self) -> (usize, usize) {
        self.sessions.kept()
    }
}
