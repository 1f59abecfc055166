//! Owns: what the ingest agent of a follower does for the publishers of its own host: it passes on what they ask and send
//! to the leader, whose log takes it in once; and what the leader's does with that.
//!
//! ```text
//! follower: request ─ Ask(ticket) ─▶ leader: the log says so, frame i ─ Told(ticket, i) ─▶ held until i is committed here
//! follower: batch ──── Batch ──────▶ leader: offered to a frame ──(replication)──▶ the frame is in this log: acknowledged
//! ```
//!
//! What must hold: an acknowledgement or an answer is given here only when this host's own log holds what it says; what
//! was passed on and lost is asked again, or sent again by its publisher, and is in the log once; memory is bounded by a
//! window a publisher.

use std::collections::{BTreeMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::attach::{Answer, Request};
use super::core::Offer;
use super::ingest::IngestAgent;
use super::sync::SyncItem;
use crate::bus::BatchHeader;
use crate::bus::attach::{Message as Said, Mode};
use crate::consensus::message::{Message, Role};
use crate::error::Result;
use crate::lsn::{Epoch, InstrumentId, NodeId, PubSeq, PublisherId};
use crate::record::{Layout, Name};
use crate::shm::control::{SLOTS_MAX, SlotState, Statistic};

/// What one storage process says to another by way of their replication processes.
#[derive(Debug, Serialize, Deserialize)]
enum Relay {
    /// A follower: do this, and say so under this ticket.
    Ask(u64, Ask),
    /// The leader: it is done with the frame of this index, with this outcome.
    Told(u64, u64, Outcome),
    /// A follower: take these records in.
    Batch {
        publisher: u16,
        epoch: u32,
        first: u64,
        count: u32,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The leader: records before these are missing; it expects this one.
    Gap { publisher: u16, epoch: u32, expected: u64 },
    /// The leader: records of this epoch are not taken in, because it is over or they made no sense.
    Closed { publisher: u16, epoch: u32, fenced: bool },
}

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Attach { publisher: u16, resume: Option<u32>, incarnation: u32 },
    Symbols(Vec<String>),
    Kind(Vec<u64>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Attached,
    Ids(Vec<u32>),
    Known,
    Fenced(u32),
    Refused(String),
    NotLeader(u64),
}

/// Bytes of a publisher's batches that are passed on and not back in the log, at most.
const WINDOW: u64 = 4 << 20;
/// Batches of other hosts that wait to be taken in, bytes at most; what comes on top is sent again by its publisher.
const WAITING_MAX: u64 = 64 << 20;
/// A request that the leader has not answered is asked again after this long.
const ASK_AGAIN_NS: u64 = 500_000_000;
/// A publisher whose records do not come back for so long has its window opened again.
const STALLED_NS: u64 = 500_000_000;
/// Batches of other hosts in one turn.
const QUOTA: usize = 256;
/// Batches of one publisher in one turn.
const LANE_QUOTA: usize = 64;

/// A request of this host's that the leader is asked.
struct Pending {
    request: Request,
    /// When it was last asked; 0: never.
    asked: u64,
}

/// What is passed on, and what others pass on to this host.
#[derive(Default)]
pub(super) struct Forwarding {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    /// Outcomes that hold here once the frame of an index is committed.
    arriving: Vec<(u64, u64, Outcome)>,
    /// Requests that this host serves itself, because it leads now.
    pub(super) own: VecDeque<Request>,
    waiting: VecDeque<(NodeId, Relay)>,
    waiting_bytes: u64,
    /// Publishers of other hosts that have been told of the gap they are in.
    in_gap: HashSet<(NodeId, PublisherId)>,
}

/// What a lane has passed on.
#[derive(Default)]
pub(super) struct Passed {
    batches: VecDeque<(PubSeq, u64)>,
    bytes: u64,
    since: u64,
}

impl Passed {
    /// The log holds records up to `pub_seq`.
    pub(super) fn arrived(&mut self, pub_seq: PubSeq, now: u64) {
        while let Some((_, bytes)) = self.batches.pop_front_if(|b| b.0 <= pub_seq) {
            self.bytes -= bytes;
            self.since = now;
        }
    }

    /// Whatever was passed on may be lost.
    pub(super) fn forget(&mut self) {
        *self = Passed::default();
    }
}

/// Why a host takes in nothing.
const LACKS_COPY: &str = "this host waits for a copy of the leader's store (`tape cluster status`), and takes nothing in before it has it; attach on another host, or later";

impl IngestAgent {
    /// A follower's turn: passes on what its publishers ask and send. Whether there was something.
    pub(super) fn forward(&mut self, now: u64) -> Result<bool> {
        let mut worked = false;
        while let Ok(request) = self.requests.try_recv() {
            worked = true;
            match request {
                Request::Gone { .. } => self.serve(request)?,
                Request::Attach { connection, level, receiver, .. } if self.level_for(level).is_none() => {
                    self.refuse_level(connection, receiver)?;
                }
                request if self.cluster.node.meta().lacks_copy() => {
                    self.answer(request, Outcome::Refused(LACKS_COPY.to_owned()))?;
                }
                request if !self.cluster.options.forward => {
                    let leader = self.cluster.leader().map_or(0, |l| l.0);
                    self.answer(request, Outcome::NotLeader(leader))?;
                }
                request => {
                    let ticket = self.forwarding.next;
                    self.forwarding.next += 1;
                    self.forwarding.pending.insert(ticket, Pending { request, asked: 0 });
                }
            }
        }
        if self.cluster.node.meta().lacks_copy() {
            // What it passed on would be stored, and not come back before there is a copy.
            return Ok(worked);
        }
        let leads_elsewhere = |l: &NodeId| *l != self.cluster.identity.node && self.cluster.options.forward;
        let Some(leader) = self.cluster.leader().filter(leads_elsewhere) else { return Ok(worked) };
        for (publisher, ticket) in self.forwarding.unasked(now) {
            // What the publisher's earlier self has sent counts: it goes first.
            if publisher.is_some() {
                self.forward_lanes(now, leader, publisher);
            }
            let Some(pending) = self.forwarding.pending.get_mut(&ticket) else { continue };
            pending.asked = now;
            let ask = Relay::Ask(ticket, ask(&pending.request));
            self.relay(leader, &ask);
        }
        let is_low = self.room.is_low();
        Ok(worked | (!is_low && self.forward_lanes(now, leader, None)))
    }

    /// Passes on batches of all publishers, or of one.
    fn forward_lanes(&mut self, now: u64, leader: NodeId, of: Option<PublisherId>) -> bool {
        let mut worked = false;
        let mut relays = Vec::new();
        for lane in self.lanes.iter_mut().filter(|l| of.is_none_or(|p| p == l.publisher)) {
            let last = self.core.publisher(lane.publisher).last;
            lane.passed.arrived(last, now);
            if lane.passed.bytes >= WINDOW && now.saturating_sub(lane.passed.since) > STALLED_NS {
                lane.passed.forget();
            }
            for _ in 0..LANE_QUOTA {
                if lane.passed.bytes >= WINDOW {
                    break;
                }
                let Some(batch) = lane.next_batch() else { break };
                worked = true;
                let header = batch.header();
                let end = PubSeq(header.first_pub_seq().0.saturating_add(u64::from(header.count())).saturating_sub(1));
                if header.publisher() != lane.publisher {
                    lane.slot.set_state(SlotState::Refused);
                    continue;
                }
                if header.epoch() == lane.epoch && end <= last {
                    self.control.add(Statistic::Duplicates, u64::from(header.count()));
                    continue;
                }
                let bytes: Vec<u8> = bytemuck::cast_slice(batch.words()).to_vec();
                if lane.passed.bytes == 0 {
                    lane.passed.since = now;
                }
                lane.passed.bytes += bytes.len() as u64;
                lane.passed.batches.push_back((end, bytes.len() as u64));
                let (publisher, epoch, first) = (header.publisher().0, header.epoch().0, header.first_pub_seq().0);
                relays.push(Relay::Batch { publisher, epoch, first, count: header.count(), bytes });
            }
        }
        relays.iter().for_each(|relay| self.relay(leader, relay));
        worked
    }

    fn relay(&mut self, to: NodeId, relay: &Relay) {
        match postcard::to_allocvec(relay) {
            Ok(bytes) => self.cluster.links.tell(&Message::Relay { to, from: self.cluster.identity.node, bytes }),
            Err(error) => tracing::error!(%error, "a message to another host's storage stays unsaid"),
        }
    }

    /// Another host's storage has said `bytes`.
    pub(super) fn relayed(&mut self, from: NodeId, bytes: &[u8]) -> Result<()> {
        let relay: Relay = match postcard::from_bytes(bytes) {
            Ok(relay) => relay,
            Err(error) => {
                tracing::warn!(%error, from = from.0, "another host's storage said what is no message; it is dropped");
                return Ok(());
            }
        };
        match relay {
            Relay::Ask(..) | Relay::Batch { .. } => {
                let more = bytes.len() as u64;
                if self.forwarding.waiting_bytes + more <= WAITING_MAX {
                    self.forwarding.waiting_bytes += more;
                    self.forwarding.waiting.push_back((from, relay));
                }
            }
            Relay::Told(ticket, index, outcome) => {
                if self.forwarding.pending.contains_key(&ticket) {
                    self.forwarding.arriving.push((index, ticket, outcome));
                    return self.arrive();
                }
            }
            Relay::Gap { publisher, epoch, expected } => {
                let of = |l: &&mut super::lane::Lane| l.publisher.0 == publisher && l.epoch.0 == epoch && !l.fenced;
                for lane in self.lanes.iter_mut().filter(of) {
                    lane.passed.forget();
                    lane.slot.gap(PubSeq(expected));
                }
            }
            Relay::Closed { publisher, epoch, fenced } => {
                let state = if fenced { SlotState::Fenced } else { SlotState::Refused };
                for lane in self.lanes.iter_mut().filter(|l| l.publisher.0 == publisher && l.epoch.0 == epoch) {
                    lane.fenced |= fenced;
                    lane.slot.set_state(state);
                }
            }
        }
        Ok(())
    }

    /// Whether other hosts have passed something on.
    pub(super) fn has_relays(&self) -> bool {
        !self.forwarding.waiting.is_empty()
    }

    /// The leader's turn: takes in what other hosts have passed on. There is room for a frame.
    pub(super) fn take_relays(&mut self) -> Result<bool> {
        let mut worked = false;
        for _ in 0..QUOTA {
            let Some((from, relay)) = self.forwarding.waiting.pop_front() else {
                self.forwarding.waiting_bytes = 0;
                break;
            };
            worked = true;
            match relay {
                Relay::Ask(ticket, ask) => {
                    self.commit()?;
                    if !self.core.writer.ready()? {
                        self.forwarding.waiting.push_front((from, Relay::Ask(ticket, ask)));
                        break;
                    }
                    let outcome = self.serve_ask(ask)?;
                    let index = self.cluster.node.frames().last();
                    self.relay(from, &Relay::Told(ticket, index, outcome));
                }
                Relay::Batch { publisher, epoch, first, count, bytes } => {
                    let more = bytes.len() as u64;
                    let words: Vec<u64> = bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
                    let (publisher, epoch) = (PublisherId(publisher), Epoch(epoch));
                    let header = BatchHeader::new(publisher, epoch, PubSeq(first), count);
                    let offer = if words.len() * 8 == bytes.len() { self.core.offer(header, &words) } else { Offer::Malformed };
                    if offer == Offer::FrameFull {
                        let (publisher, epoch) = (publisher.0, epoch.0);
                        self.forwarding.waiting.push_front((from, Relay::Batch { publisher, epoch, first, count, bytes }));
                        break;
                    }
                    self.forwarding.waiting_bytes = self.forwarding.waiting_bytes.saturating_sub(more);
                    self.offered(from, publisher, epoch, offer);
                }
                Relay::Told(..) | Relay::Gap { .. } | Relay::Closed { .. } => {}
            }
        }
        self.commit()?;
        Ok(worked)
    }

    /// Tells `from` what became of a batch, if that is not what its log will say.
    fn offered(&mut self, from: NodeId, publisher: PublisherId, epoch: Epoch, offer: Offer) {
        match offer {
            Offer::Accepted => drop(self.forwarding.in_gap.remove(&(from, publisher))),
            Offer::Duplicate | Offer::FrameFull => {}
            Offer::Gap(expected) => {
                self.control.add(Statistic::Gaps, 1);
                if self.forwarding.in_gap.insert((from, publisher)) {
                    self.relay(from, &Relay::Gap { publisher: publisher.0, epoch: epoch.0, expected: expected.0 });
                }
            }
            Offer::Fenced => {
                self.control.add(Statistic::Fenced, 1);
                self.relay(from, &Relay::Closed { publisher: publisher.0, epoch: epoch.0, fenced: true });
            }
            Offer::Malformed => {
                self.control.add(Statistic::Malformed, 1);
                tracing::error!(publisher = publisher.0, from = from.0, "a publisher of another host sent a malformed batch");
                self.relay(from, &Relay::Closed { publisher: publisher.0, epoch: epoch.0, fenced: false });
            }
        }
    }

    fn serve_ask(&mut self, ask: Ask) -> Result<Outcome> {
        let refusal = |said: Said| match said {
            Said::Fenced(epoch) => Outcome::Fenced(epoch.0),
            Said::Refused(reason) => Outcome::Refused(reason),
            other => Outcome::Refused(format!("{other:?}")),
        };
        match ask {
            Ask::Attach { publisher, resume, incarnation } => {
                let mode = resume.map_or(Mode::New, |epoch| Mode::Resume(Epoch(epoch)));
                let publisher = PublisherId(publisher);
                let known = self.core.publisher(publisher);
                if known.incarnation == incarnation && known.epoch > Epoch(0) && known.last == PubSeq(0) {
                    // Asked a second time, because the answer was lost: in its epoch nothing has been written.
                    return Ok(Outcome::Attached);
                }
                Ok(match self.epoch_for(publisher, mode, incarnation)? {
                    Ok(state) => {
                        for lane in self.lanes.iter_mut().filter(|l| l.publisher == publisher && l.epoch < state.epoch) {
                            lane.fenced = true;
                            lane.slot.set_state(SlotState::Fenced);
                        }
                        Outcome::Attached
                    }
                    Err(said) => refusal(said),
                })
            }
            Ask::Symbols(names) => {
                let names: Option<Vec<Name>> = names.iter().map(|n| Name::new(n.as_bytes()).ok()).collect();
                let Some(names) = names else { return Ok(Outcome::Refused("a name is none".to_owned())) };
                let ids = self.symbols(&names)?;
                Ok(ids.map_or_else(refusal, |ids| Outcome::Ids(ids.iter().map(|i| i.0).collect())))
            }
            Ask::Kind(words) => {
                let Some(layout) = Layout::parse(&words) else { return Ok(Outcome::Refused("a layout is none".to_owned())) };
                Ok(self.kind(&layout)?.map_or_else(refusal, |()| Outcome::Known))
            }
        }
    }

    /// Deals with the outcomes that hold here now.
    pub(super) fn arrive(&mut self) -> Result<()> {
        let committed = self.cluster.node.committed().min(self.cluster.node.frames().last());
        let ready: Vec<_> = self.forwarding.arriving.extract_if(.., |a| a.0 <= committed).collect();
        for (_, ticket, outcome) in ready {
            let Some(Pending { request, .. }) = self.forwarding.pending.remove(&ticket) else { continue };
            self.answer(request, outcome)?;
        }
        Ok(())
    }

    fn answer(&mut self, request: Request, outcome: Outcome) -> Result<()> {
        let message = match outcome {
            Outcome::Attached | Outcome::Known => Said::Known,
            Outcome::Ids(ids) => Said::Ids(ids.into_iter().map(InstrumentId).collect()),
            Outcome::Fenced(epoch) => Said::Fenced(Epoch(epoch)),
            Outcome::Refused(reason) => Said::Refused(reason),
            Outcome::NotLeader(leader) => Said::NotLeader(leader),
        };
        match request {
            Request::Attach { connection, publisher, level, grant, receiver, .. } => {
                let slot = if message == Said::Known { self.slots.pop() } else { None };
                match slot {
                    Some(slot) => {
                        let state = self.core.publisher(publisher);
                        let level = self.level_for(level).unwrap_or(level);
                        self.let_in(connection, publisher, level, grant, receiver, slot, state)
                    }
                    None => {
                        let limit = || Said::Refused(format!("{SLOTS_MAX} publishers are attached; that is the limit"));
                        let refusal = if message == Said::Known { limit() } else { message };
                        self.say(connection, refusal)?;
                        self.send(SyncItem::Answer(Answer::Retired(receiver)))
                    }
                }
            }
            Request::Symbols { connection, .. } | Request::Kind { connection, .. } => self.say(connection, message),
            Request::Gone { .. } => Ok(()),
        }
    }

    /// This host leads from now on, or another one does, or it is not known who.
    pub(super) fn role_changed(&mut self, role: Option<Role>) -> Result<()> {
        for lane in &mut self.lanes {
            lane.passed.forget();
        }
        self.forwarding.in_gap.clear();
        if role == Some(Role::Leader) {
            // What the leader before was asked, this one serves; an outcome that is on its way counts.
            for (_, pending) in std::mem::take(&mut self.forwarding.pending) {
                self.forwarding.own.push_back(pending.request);
            }
            self.forwarding.arriving.clear();
        } else {
            self.forwarding.waiting.clear();
            self.forwarding.waiting_bytes = 0;
            self.forwarding.pending.values_mut().for_each(|p| p.asked = 0);
        }
        Ok(())
    }
}

impl Forwarding {
    /// Tickets that are to be asked, or asked again, and whose attaching they are.
    fn unasked(&self, now: u64) -> Vec<(Option<PublisherId>, u64)> {
        let arriving = |ticket: &u64| self.arriving.iter().any(|a| a.1 == *ticket);
        let is_due = |p: &Pending| p.asked == 0 || now.saturating_sub(p.asked) > ASK_AGAIN_NS;
        let due = self.pending.iter().filter(|(ticket, p)| is_due(p) && !arriving(ticket));
        let of = |request: &Request| match request {
            Request::Attach { publisher, .. } => Some(*publisher),
            _ => None,
        };
        due.map(|(ticket, p)| (of(&p.request), *ticket)).collect()
    }
}

fn ask(request: &Request) -> Ask {
    match request {
        Request::Attach { publisher, mode, incarnation, .. } => {
            let resume = if let Mode::Resume(epoch) = mode { Some(epoch.0) } else { None };
            Ask::Attach { publisher: publisher.0, resume, incarnation: *incarnation }
        }
        Request::Symbols { names, .. } => Ask::Symbols(names.iter().map(|n| n.as_str().to_owned()).collect()),
        Request::Kind { layout, .. } => Ask::Kind(layout.encode()),
        Request::Gone { .. } => Ask::Symbols(Vec::new()),
    }
}
