//! Owns: how a follower serves its own publishers: it forwards their requests and batches to the leader, whose log accepts
//! each once; and how the leader's host handles them.
//!
//! ```text
//! follower: request ─ Ask(ticket) ─▶ leader: in the log, frame (i, t) ─ Answer(ticket, i, t) ─▶ held until it is committed here
//! follower: batch ──── Batch ──────▶ leader: accepted into a frame ─(replication)─▶ the frame is in this log: acknowledged
//! ```
//!
//! What must hold: this host acknowledges or answers only when its own log holds the very frame that the leader named: a
//! frame of that index may be another leader's. A request that was forwarded and lost is asked again, a batch is sent again
//! by its publisher, and each is in the log once. Requests of a publisher that has ended are dropped. Memory is bounded by a
//! window a publisher, and by a number of requests.

use std::collections::{BTreeMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::effect::{Effect, Moment};
use super::log::{At, Fate, Log};
use super::requests::{Ask, Done, Outcome, Request, Requests};
use super::sessions::Sessions;
use super::state::BatchOutcome;
use crate::consensus::message::Message;
use tapestore::bus::BatchHeader;
use tapestore::error::Result;
use tapestore::lsn::{Epoch, NodeId, PubSeq, PublisherId};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::control::Statistic;

/// Messages between storage processes, which their replication processes carry.
#[derive(Debug, Serialize, Deserialize)]
enum Relay {
    /// From a follower: carry this out, and answer under this ticket.
    Ask(u64, Ask),
    /// From the leader: the outcome of this ticket, which rests on the frame of this index and this term.
    Answer(u64, u64, u64, Outcome),
    /// From a follower: accept these records.
    Batch {
        publisher: u16,
        epoch: u32,
        first: u64,
        count: u32,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// From the leader: records before these are missing; it expects this one.
    Gap { publisher: u16, epoch: u32, expected: u64 },
    /// From the leader: records of this epoch are not accepted, because it is over or they were malformed.
    Closed { publisher: u16, epoch: u32, fenced: bool },
}

/// Most requests that wait for the leader.
const PENDING_MAX: usize = 2048;
/// Most bytes of other hosts' batches that wait to be accepted; a batch beyond that is dropped, and its publisher sends it
/// again.
const WAITING_MAX: u64 = 64 << 20;
/// A request that the leader has not answered is sent again after this long.
const ASK_AGAIN_NS: u64 = 500_000_000;
/// Most messages of other hosts that are handled in one turn.
const QUOTA: usize = 256;

/// Refusal of a host that needs a snapshot.
const NEEDS_SNAPSHOT: &str = "this host waits for a snapshot of the leader's store (`tape cluster status`), and accepts nothing until it is installed; attach on another host, or later";

/// A request of this host's that is forwarded to the leader.
struct Pending {
    request: Request,
    ask: Ask,
    /// When it was last sent; `None` if never, or if it was lost.
    asked: Option<u64>,
    /// Whether earlier sessions of the publisher were called to send what they still have.
    has_called: bool,
    /// The leader's answer, and the frame on which it rests.
    arriving: Option<(At, Outcome)>,
}

/// The requests that a follower forwards.
pub(super) struct Forwards {
    own: NodeId,
    /// Whether publishers are served at all while another host leads.
    is_on: bool,
    /// The next ticket. Two processes of a host never use the same: each begins at random.
    next: u64,
    pending: BTreeMap<u64, Pending>,
}

impl Forwards {
    /// Nothing is forwarded yet; tickets begin with `first_ticket`.
    pub(super) fn new(own: NodeId, is_on: bool, first_ticket: u64) -> Forwards {
        Forwards { own, is_on, next: first_ticket, pending: BTreeMap::new() }
    }

    /// A follower's turn: forwards its publishers' requests to the leader. Returns whether there was something to do, and the
    /// leader to which batches are forwarded.
    pub(super) fn turn(
        &mut self,
        requests: &mut Requests,
        log: &mut Log,
        sessions: &mut Sessions,
        leader: Option<NodeId>,
        at: Moment,
    ) -> Result<(bool, Option<NodeId>)> {
        let mut worked = false;
        let needs_snapshot = log.node().meta().needs_snapshot();
        let elsewhere = leader.filter(|l| *l != self.own);
        for request in requests.interrupt().into_iter().chain(requests.take_waiting()) {
            worked = true;
            if needs_snapshot {
                Requests::refuse(request, Outcome::Refused(NEEDS_SNAPSHOT.to_owned()), log);
            } else if !self.is_on && leader != Some(self.own) {
                Requests::refuse(request, Outcome::NotLeader(elsewhere.map_or(0, |l| l.0)), log);
            } else {
                self.push(request, log);
            }
        }
        let Some(leader) = elsewhere.filter(|_| self.is_on && !needs_snapshot) else { return Ok((worked, None)) };
        for (ticket, pending) in &mut self.pending {
            let again = |asked| at.now.saturating_sub(asked) > ASK_AGAIN_NS && !sabotage::is(Sabotage::AskOnce);
            let is_due = pending.asked.is_none_or(again);
            if pending.arriving.is_some() || !is_due {
                continue;
            }
            // Batches of the publisher's earlier process count: they go first.
            if let Ask::Attach { publisher, .. } = pending.ask {
                let publisher = PublisherId(publisher);
                if !std::mem::replace(&mut pending.has_called, true) {
                    sessions.call_last(publisher);
                }
                if !log.is_low() && sessions.is_called(publisher) {
                    continue;
                }
            }
            pending.asked = Some(at.now);
            worked = true;
            relay(log, self.own, leader, &Relay::Ask(*ticket, pending.ask.clone()));
        }
        Ok((worked, (!log.is_low()).then_some(leader)))
    }

    /// Queues `request` for the leader.
    fn push(&mut self, request: Request, log: &mut Log) {
        if self.pending.len() >= PENDING_MAX {
            let reason = format!("{PENDING_MAX} requests wait for the leader already; try again later");
            return Requests::refuse(request, Outcome::Refused(reason), log);
        }
        let Some(ask) = Ask::of(&request) else { return };
        let ticket = self.next;
        self.next = self.next.wrapping_add(1);
        self.pending.insert(ticket, Pending { request, ask, asked: None, has_called: false, arriving: None });
    }

    /// Drops the requests of `connection`: its publisher has ended.
    pub(super) fn drop_of(&mut self, connection: u64, log: &mut Log) {
        if sabotage::is(Sabotage::ServeTheDead) {
            return;
        }
        for (_, pending) in self.pending.extract_if(.., |_, p| p.request.connection() == connection) {
            if let Request::Attach(attach) = pending.request {
                log.ask(Effect::Detached { connection: attach.connection });
            }
        }
    }

    /// Takes back the forwarded requests, in order: this host leads now and carries them out itself.
    pub(super) fn take_back(&mut self, requests: &mut Requests, log: &mut Log, sessions: &mut Sessions) {
        if sabotage::is(Sabotage::HoldRequests) {
            return;
        }
        for (_, pending) in std::mem::take(&mut self.pending) {
            requests.push(pending.request, log, sessions);
        }
    }

    /// Whether no request waits for a leader.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends every request again that no leader has answered: the leader has changed or is unknown.
    pub(super) fn ask_again(&mut self) {
        if !sabotage::is(Sabotage::AskOnce) {
            self.pending.values_mut().for_each(|p| p.asked = None);
        }
    }

    /// Notes the leader's answer under `ticket`.
    fn answered(&mut self, ticket: u64, at: At, outcome: Outcome) {
        if let Some(pending) = self.pending.get_mut(&ticket) {
            pending.arriving = Some((at, outcome));
        }
    }

    /// Answers requests whose frames are committed here; sends those again whose frames are lost.
    pub(super) fn arrive(&mut self, requests: &mut Requests, log: &mut Log, sessions: &mut Sessions) {
        let fate = |p: &Pending| p.arriving.as_ref().map_or(Fate::Open, |(at, _)| log.fate(*at));
        let fates: Vec<(u64, Fate)> = self.pending.iter().map(|(t, p)| (*t, fate(p))).filter(|(_, f)| *f != Fate::Open).collect();
        for (ticket, fate) in fates {
            if fate == Fate::Lost {
                if let Some(pending) = self.pending.get_mut(&ticket) {
                    (pending.arriving, pending.asked) = (None, None);
                }
                continue;
            }
            let Some(Pending { request, arriving: Some((_, outcome)), .. }) = self.pending.remove(&ticket) else { continue };
            requests.arrived(request, outcome, log, sessions);
        }
    }

    /// Forwards a batch to `leader`, unless this log has it already.
    pub(super) fn pass_on(
        &self,
        (slot, header, words): (usize, BatchHeader, &[u64]),
        leader: NodeId,
        log: &mut Log,
        sessions: &mut Sessions,
        now: u64,
    ) {
        let last = log.state().publisher(header.publisher()).last;
        if !sessions.pass_on(slot, header, words.len() as u64 * 8, last, now) {
            return;
        }
        // The publisher can still change the words: the leader checks its own copy.
        let bytes = bytemuck::cast_slice(words).to_vec();
        let (publisher, epoch, first) = (header.publisher().0, header.epoch().0, header.first_pub_seq().0);
        relay(log, self.own, leader, &Relay::Batch { publisher, epoch, first, count: header.count(), bytes });
    }
}

#[cfg(test)]
impl Forwards {
    pub(super) fn stands(&self) -> String {
        let of =
            |(t, p): (&u64, &Pending)| format!("{t}: {:?} asked {:?} called {} {:?}", p.ask, p.asked, p.has_called, p.arriving);
        self.pending.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

fn relay(log: &mut Log, from: NodeId, to: NodeId, relay: &Relay) {
    match postcard::to_allocvec(relay) {
        Ok(bytes) => log.notify(Message::Relay { to, from, bytes }),
        Err(error) => tracing::error!(
            name: "forward.message_not_encoded", %error,
            "a message to another host's storage cannot be encoded and is not sent"
        ),
    }
}

/// The messages that other hosts have forwarded to this one.
pub(super) struct Relays {
    own: NodeId,
    waiting: VecDeque<(NodeId, Relay, u64)>,
    waiting_bytes: u64,
    /// Publishers of other hosts that were notified of their gap.
    in_gap: HashSet<(NodeId, PublisherId)>,
}

impl Relays {
    pub(super) fn new(own: NodeId) -> Relays {
        Relays { own, waiting: VecDeque::new(), waiting_bytes: 0, in_gap: HashSet::new() }
    }

    /// Handles a message of another host's storage: requests and batches wait, answers go to `forwards`.
    pub(super) fn received(&mut self, from: NodeId, bytes: &[u8], forwards: &mut Forwards, sessions: &mut Sessions) {
        let relay: Relay = match postcard::from_bytes(bytes) {
            Ok(relay) => relay,
            Err(error) => {
                return tracing::warn!(
                    name: "forward.message_not_decoded", %error, from = from.0,
                    "a message of another host's storage cannot be decoded and is dropped"
                );
            }
        };
        match relay {
            Relay::Ask(..) | Relay::Batch { .. } => {
                let more = bytes.len() as u64;
                if self.waiting_bytes + more <= WAITING_MAX {
                    self.waiting_bytes += more;
                    self.waiting.push_back((from, relay, more));
                }
            }
            Relay::Answer(ticket, index, term, outcome) => forwards.answered(ticket, At { index, term }, outcome),
            Relay::Gap { publisher, epoch, expected } => sessions.gap(PublisherId(publisher), Epoch(epoch), PubSeq(expected)),
            Relay::Closed { publisher, epoch, fenced } => sessions.closed(PublisherId(publisher), Epoch(epoch), fenced),
        }
    }

    /// Whether nothing of other hosts waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drops what waits: this host no longer leads, and the other hosts send it to the next leader.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    /// Forgets which gaps were notified: the leader has changed.
    pub(super) fn forget_gaps(&mut self) {
        self.in_gap.clear();
    }

    /// The leader's turn: accepts what other hosts have forwarded; there is room for a frame. Returns whether there was
    /// something to do.
    ///
    /// # Errors
    /// As [`Requests::turn`].
    pub(super) fn turn(&mut self, requests: &mut Requests, log: &mut Log, sessions: &mut Sessions, at: Moment) -> Result<bool> {
        let mut worked = false;
        for _ in 0..QUOTA {
            if requests.is_busy() && self.waiting.front().is_some_and(|(_, relay, _)| matches!(relay, Relay::Ask(..))) {
                break;
            }
            let Some((from, relay, bytes)) = self.waiting.pop_front() else { break };
            worked = true;
            match relay {
                Relay::Ask(ticket, ask) => {
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
                    log.append(at, sessions)?;
                    if let Some(done) = requests.ask((from, ticket, ask), log, sessions, at)? {
                        self.answer(done, log);
                    }
                }
                Relay::Batch { publisher, epoch, first, count, bytes: records } => {
                    let words: Vec<u64> = records.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
                    let (publisher, epoch) = (PublisherId(publisher), Epoch(epoch));
                    let header = BatchHeader::new(publisher, epoch, PubSeq(first), count);
                    let is_whole = words.len() * 8 == records.len();
                    let offer = if is_whole { log.state().accept(header, &words) } else { BatchOutcome::Malformed };
                    if offer == BatchOutcome::FrameFull {
                        let (publisher, epoch) = (publisher.0, epoch.0);
                        let again = Relay::Batch { publisher, epoch, first, count, bytes: records };
                        self.waiting.push_front((from, again, bytes));
                        break;
                    }
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
                    self.offered(from, header, offer, log);
                }
                Relay::Answer(..) | Relay::Gap { .. } | Relay::Closed { .. } => {}
            }
        }
        log.append(at, sessions)?;
        Ok(worked)
    }

    /// Sends the outcome to the host that asked; it rests on the last frame of this log.
    pub(super) fn answer(&self, done: Done, log: &mut Log) {
        let at = log.last();
        relay(log, self.own, done.to, &Relay::Answer(done.ticket, at.index, at.term, done.outcome));
    }

    /// Notifies `from` of the outcome of a batch, if its log will not show it.
    fn offered(&mut self, from: NodeId, header: BatchHeader, offer: BatchOutcome, log: &mut Log) {
        let (publisher, epoch) = (header.publisher(), header.epoch());
        match offer {
            BatchOutcome::Accepted => drop(self.in_gap.remove(&(from, publisher))),
            BatchOutcome::Duplicate | BatchOutcome::FrameFull => {}
            BatchOutcome::Gap(expected) => {
                log.control().add(Statistic::Gaps, 1);
                if self.in_gap.insert((from, publisher)) {
                    let gap = Relay::Gap { publisher: publisher.0, epoch: epoch.0, expected: expected.0 };
                    relay(log, self.own, from, &gap);
                }
            }
            BatchOutcome::Fenced => {
                log.control().add(Statistic::Fenced, 1);
                relay(log, self.own, from, &Relay::Closed { publisher: publisher.0, epoch: epoch.0, fenced: true });
            }
            BatchOutcome::Malformed | BatchOutcome::Unregistered(_) => {
                log.control().add(Statistic::Malformed, 1);
                tracing::error!(
                    name: "forward.batch_refused", publisher = publisher.0, from = from.0, ?offer,
                    "a batch of another host's publisher is refused"
                );
                relay(log, self.own, from, &Relay::Closed { publisher: publisher.0, epoch: epoch.0, fenced: false });
            }
        }
    }
}
