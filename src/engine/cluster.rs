//! Owns: the ingest agent's part in the cluster: it drives the node of consensus, hears the replication process and
//! operators, writes the leader's frames into the log of a follower, and says what is committed.
//!
//! What must hold: this host numbers records only while it leads; a frame of another host is in the log byte for byte or
//! not at all; what is told as committed is what consensus says is; votes and heartbeats never wait behind frames for
//! which there is no room.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Ended;
use super::attach::Answer;
use super::covered::Covered;
use super::ingest::IngestAgent;
use super::links::Links;
use super::sync::SyncItem;
use crate::bus::attach::Message as Said;
use crate::consensus::message::{Identity, Message, Raft, Role, State, VERSION};
use crate::consensus::options::TICK_MS;
use crate::consensus::{Change, Node, Options, Seat, Verdict, Work};
use crate::error::{Error, Result};
use crate::lsn::{Level, NodeId};
use crate::shm::bell::Bell;
use crate::wal::{self, Appended, Body, FrameType};

/// Frames of one message that are taken in before others get their turn.
const FRAMES_A_TURN: usize = 64;
/// Bytes of frames that wait to be taken in, at most; what comes on top is dropped, and sent again.
const WAITING_MAX: u64 = 64 << 20;
/// Words of a frame's header.
const HEADER_WORDS: usize = 8;

/// The ingest agent's part in the cluster.
pub(super) struct Cluster {
    pub(super) node: Node,
    pub(super) options: Options,
    pub(super) links: Links,
    pub(super) covered: Arc<Covered>,
    pub(super) identity: Identity,
    /// As of the last look at the socket.
    mail: u32,
    /// When the last tick was, ns of the monotonic clock.
    ticked: u64,
    /// Messages that carry frames, and the frames of the first that are in the log.
    waiting: VecDeque<Raft>,
    waiting_bytes: u64,
    /// Answers that hold once the frame of an index is committed.
    held: VecDeque<(u64, u64, Said)>,
    /// As last shown.
    shown: Option<State>,
    committed: u64,
    durable: u64,
    /// Whether this host, of a pair, has heard of the other, and that nobody was promoted by force.
    pub(super) may_lead: bool,
    /// Whether it has been said that another was.
    is_fenced: bool,
    /// Members that need more log than there is, and when they were last told.
    pub(super) stranded: Vec<NodeId>,
    pub(super) said_stranded: u64,
    /// The last frame that a standby has, as last seen.
    standby: Option<u64>,
    /// Who has denied which committed frame, as last said.
    denied: Option<(NodeId, u64)>,
    /// Storage ends, for this.
    pub(super) ended: Option<Ended>,
}

impl Cluster {
    pub(super) fn new(node: Node, options: Options, links: Links, covered: Arc<Covered>, identity: Identity) -> Cluster {
        let durable = covered.durable();
        Cluster {
            node,
            options,
            links,
            covered,
            identity,
            mail: u32::MAX,
            ticked: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            held: VecDeque::new(),
            shown: None,
            committed: 0,
            durable,
            may_lead: false,
            is_fenced: false,
            stranded: Vec::new(),
            said_stranded: 0,
            standby: None,
            denied: None,
            ended: None,
        }
    }

    /// Whether there is something to do without anybody having rung.
    pub(super) fn is_due(&self, mail: u32) -> bool {
        mail != self.mail || self.covered.durable() != self.durable
    }

    /// Who leads, if this host knows.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.shown.as_ref().and_then(|s| s.leader)
    }
}

impl IngestAgent {
    /// One look at everything that the cluster asks; whether there was something to do.
    pub(super) fn take_part(&mut self, now: u64) -> Result<bool> {
        let mut worked = false;
        let durable = self.cluster.covered.durable();
        if durable != self.cluster.durable {
            self.cluster.durable = durable;
            self.cluster.node.persisted(durable)?;
            worked = true;
        }
        let mail = self.bells.mail();
        let is_tick = now.saturating_sub(self.cluster.ticked) >= TICK_MS * 1_000_000;
        // Who writes more than the socket holds rings when all is written.
        let in_part = self.cluster.links.has_part() || (is_tick && !self.cluster.covered.is_alone());
        if mail != self.cluster.mail || in_part {
            self.cluster.mail = mail;
            worked |= self.hear()?;
        }
        worked |= self.take_frames()?;
        if is_tick {
            // One tick however long it was: after a pause nothing is overdue.
            self.cluster.ticked = now;
            // One that elects itself asks nobody: it waits until it knows that nobody was promoted in its place.
            let leads = self.cluster.node.state().role == Role::Leader;
            if leads || self.cluster.may_lead || !self.cluster.node.is_pair() {
                self.cluster.node.tick()?;
            }
            if self.cluster.links.flush() {
                self.replication_gone()?;
            }
            self.show_needed();
            self.say_stranded(now);
            self.say_lacks(now);
        }
        self.do_work()?;
        // Who waits for a commit hears of it before the other hosts do.
        self.show()?;
        self.speak()?;
        Ok(worked)
    }

    /// Takes in what has come over the sockets, but for frames.
    fn hear(&mut self) -> Result<bool> {
        let (messages, gone) = self.cluster.links.look();
        let heard = !messages.is_empty();
        for (link, message) in messages {
            let for_replication = matches!(
                message,
                Message::Raft(_) | Message::Unreachable(_) | Message::Relay { .. } | Message::Reached { .. } | Message::Filled
            );
            if for_replication && !self.cluster.links.is_from_replication(link) {
                tracing::warn!("a process that is not the replication process speaks for other hosts; it is not heard");
                continue;
            }
            match message {
                Message::Hello { version, pid } => self.greet(link, version, pid),
                Message::Raft(raft) => self.hear_raft(raft)?,
                Message::Unreachable(node) => self.cluster.node.unreachable(node)?,
                Message::Command { id, command } => {
                    let result = self.command(command).map_err(|e| e.to_string());
                    self.cluster.links.say(link, &Message::Answer { id, result });
                }
                Message::Relay { from, bytes, .. } => self.relayed(from, &bytes)?,
                Message::Reached { node, epoch, last, lacks_copy } => {
                    self.cluster.node.reached(node, last, lacks_copy);
                    self.reached(node, epoch)?;
                }
                Message::Filled => self.filled(),
                Message::Welcome(_)
                | Message::Refused(_)
                | Message::Members(_)
                | Message::State(_)
                | Message::Stranded { .. }
                | Message::Lacks { .. }
                | Message::Answer { .. } => {
                    tracing::warn!(?message, "a process says to storage what only storage says");
                }
            }
        }
        if gone {
            self.replication_gone()?;
        }
        Ok(heard)
    }

    fn greet(&mut self, link: u64, version: u32, pid: u32) {
        let cluster = &mut self.cluster;
        if version != VERSION {
            let refusal =
                format!("storage speaks version {VERSION} of this protocol, not {version}; install both from one release");
            return cluster.links.say(link, &Message::Refused(refusal));
        }
        tracing::info!(pid, "the replication process is there");
        cluster.links.is_replication(link);
        cluster.links.say(link, &Message::Welcome(cluster.identity.clone()));
        let seats = cluster.node.meta().seats.iter().map(Seat::member).collect();
        cluster.links.say(link, &Message::Members(seats));
        cluster.links.say(link, &Message::State(cluster.node.state()));
    }

    /// What was sent by way of it may be lost.
    fn replication_gone(&mut self) -> Result<()> {
        tracing::warn!("the replication process is gone: no other host is heard until it is back");
        let own = self.cluster.node.meta().node;
        let others: Vec<_> = self.cluster.node.meta().seats.iter().map(|s| s.node).filter(|n| *n != own).collect();
        others.into_iter().try_for_each(|node| self.cluster.node.unreachable(node))
    }

    /// The replication process has spoken to `node`, of `epoch`.
    fn reached(&mut self, node: NodeId, epoch: u64) -> Result<()> {
        let own = self.cluster.node.meta().epoch;
        self.cluster.may_lead |= epoch <= own;
        if epoch <= own {
            return Ok(());
        }
        self.cluster.may_lead = false;
        let cause = format!(
            "node {node} was promoted by force: epoch {epoch}, and this host is of epoch {own}; what only this host has taken in \
             since is not part of the store. Stop it, and let it rejoin: tape cluster rejoin --epoch {epoch} --leader {node}=HOST:PORT"
        );
        if self.cluster.node.state().role == Role::Leader {
            return Err(Error::Consensus { what: "go on here", cause });
        }
        if !std::mem::replace(&mut self.cluster.is_fenced, true) {
            tracing::error!(%cause, "this host does not lead");
        }
        Ok(())
    }

    /// A copy of another host's store is there, and has been read: it is put in the place of this one while nobody serves it.
    fn filled(&mut self) {
        if self.cluster.node.state().role == Role::Leader {
            tracing::warn!("a host that leads is not filled from another one");
        } else {
            self.cluster.ended = Some(Ended::Fill);
        }
    }

    fn hear_raft(&mut self, raft: Raft) -> Result<()> {
        if raft.to != self.cluster.node.meta().node {
            tracing::warn!(to = raft.to.0, "a message for another host is dropped");
            return Ok(());
        }
        if raft.heads.is_empty() {
            return self.step(&raft).map(drop);
        }
        if self.cluster.node.meta().lacks_copy() {
            // It does not know yet what they follow.
            return Ok(());
        }
        let bytes = raft.frames.len() as u64;
        if self.cluster.waiting_bytes + bytes <= WAITING_MAX {
            self.cluster.waiting_bytes += bytes;
            self.cluster.waiting.push_back(raft);
        }
        Ok(())
    }

    /// Steps `raft`; a message that makes no sense is reported and changes nothing.
    fn step(&mut self, raft: &Raft) -> Result<u64> {
        match self.cluster.node.step(raft) {
            Err(error @ Error::Consensus { .. }) => {
                tracing::warn!(%error, from = raft.from.0, "a message of another host is dropped");
                Ok(0)
            }
            other => other,
        }
    }

    /// Storage ends: another host is asked to lead, so that nobody waits for an election.
    pub(super) fn hand_over(&mut self) -> Result<()> {
        let node = &mut self.cluster.node;
        let mut others: Vec<_> = node.progress().into_iter().filter(|p| p.is_active && !p.lacks_copy).collect();
        others.sort_by_key(|p| std::cmp::Reverse(p.matched));
        for other in others {
            match node.transfer(other.node) {
                Ok(()) => {
                    tracing::info!(to = other.node.0, "handing the lead over");
                    return self.speak();
                }
                // It does not vote.
                Err(Error::Invalid { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether this host still leads others.
    pub(super) fn leads_others(&self) -> bool {
        self.cluster.node.state().role == Role::Leader && !self.cluster.covered.is_alone()
    }

    /// Takes in frames of the leader, for which there is room.
    fn take_frames(&mut self) -> Result<bool> {
        let mut worked = false;
        while let Some(raft) = self.cluster.waiting.pop_front() {
            let bytes = raft.frames.len() as u64;
            match self.cluster.node.judge(&raft) {
                Verdict::Pass => drop(self.step(&Raft { frames: Vec::new(), ..raft })?),
                Verdict::Append(known) => {
                    if let Some(rest) = self.take_message(raft, known)? {
                        self.cluster.waiting.push_front(rest);
                        return Ok(worked);
                    }
                }
                Verdict::Cut(index) => {
                    self.cluster.ended = Some(Ended::Cut(index));
                    return Ok(true);
                }
                Verdict::Denies(index) if self.cluster.denied == Some((raft.from, index)) => {}
                Verdict::Denies(index) => {
                    self.cluster.denied = Some((raft.from, index));
                    tracing::error!(
                        index,
                        from = raft.from.0,
                        "another host denies a frame that is committed here: one of the two has lost what it promised to keep. The message is dropped; compare the hosts by `tape verify` and `tape log`"
                    );
                }
            }
            self.cluster.waiting_bytes -= bytes;
            worked = true;
        }
        Ok(worked)
    }

    /// Takes in the frames of `raft` but for the first `known`, a part at a time; gives it back if there is no room for
    /// the rest now.
    fn take_message(&mut self, raft: Raft, known: usize) -> Result<Option<Raft>> {
        let mut offset: usize = raft.heads.iter().take(known).map(|h| h.len as usize).sum();
        let mut at = known;
        while at < raft.heads.len() {
            let part: Vec<_> = raft.heads.iter().skip(at).take(FRAMES_A_TURN).copied().collect();
            let words: Vec<u64> = words_of(&raft.frames, offset, part.iter().map(|h| h.len as usize).sum());
            let mut good = Vec::new();
            let mut rest = &words[..];
            let (mut bytes, mut records) = (0, 0);
            for head in &part {
                let Some((mine, after)) = rest.split_at_checked(head.len as usize / 8) else { break };
                let parsed = wal::parse(mine);
                let is_named = |f: &wal::Frame<'_>| {
                    (f.header.header_crc, f.header.index.0, f.header.position.0) == (head.header_crc, head.index, head.position)
                        && u64::from(f.header.term.0) == head.term
                        && f.header.total_len() <= PART_BYTES
                        && f.header.records() <= u64::from(wal::format::FRAME_RECORDS_MAX)
                };
                let Some(frame) = parsed.ok().filter(is_named) else {
                    tracing::warn!(index = head.index, from = raft.from.0, "a frame came damaged and is dropped");
                    break;
                };
                let (more, count) = (frame.header.total_len(), frame.header.records());
                let fits = bytes + more <= PART_BYTES && records + count <= u64::from(wal::format::FRAME_RECORDS_MAX);
                if !fits && !good.is_empty() {
                    break;
                }
                (bytes, records, rest) = (bytes + more, records + count, after);
                good.push((*head, mine, frame));
            }
            if good.is_empty() {
                return Ok(None);
            }
            if !self.has_room_for(bytes, records)? {
                return Ok(Some(raft));
            }
            let (index, log_term) = match at.checked_sub(1).and_then(|i| raft.heads.get(i)) {
                Some(before) => (before.index, before.term),
                None => (raft.index, raft.log_term),
            };
            let heads = good.iter().map(|g| g.0).collect();
            let sub = Raft { index, log_term, heads, frames: Vec::new(), context: raft.context.clone(), ..raft };
            if good.first().is_some_and(|(_, _, f)| self.core.writer.check(&f.header).is_err()) {
                tracing::error!(
                    index = sub.index + 1,
                    from = raft.from.0,
                    "a frame of the leader does not continue the log, and is dropped"
                );
                return Ok(None);
            }
            if self.step(&sub)? != good.len() as u64 {
                return Ok(None);
            }
            for (_, words, frame) in &good {
                self.take_frame(frame, words)?;
            }
            at += good.len();
            offset += bytes as usize;
        }
        Ok(None)
    }

    fn has_room_for(&mut self, bytes: u64, records: u64) -> Result<bool> {
        let now = self.clock.monotonic();
        Ok(self.has_room(now)? && self.core.writer.ready_for(bytes + 2 * PAD)? && self.core.memtables.has_room(records)?)
    }

    /// Writes a frame of the leader that raft has taken.
    fn take_frame(&mut self, frame: &wal::Frame<'_>, words: &[u64]) -> Result<()> {
        let committed = self.core.take(frame, words)?;
        let change = match &frame.body {
            Body::Membership(words) => Some(Change::parse(words).map_err(|bad| {
                Error::invalid("membership frame", format!("{}: {} where {} is due", bad.what, bad.found, bad.expected))
            })?),
            _ => None,
        };
        self.fence_by(frame);
        // These count once they are durable, however the log is kept.
        self.untold.urgent |= matches!(frame.body, Body::Membership(_) | Body::Control(_));
        let header = committed.appended.header;
        self.told_of(committed)?;
        self.cluster.node.written(&header, change)
    }

    /// Writes the frames that raft itself has begun.
    fn do_work(&mut self) -> Result<()> {
        while let Some(work) = self.cluster.node.work() {
            if self.room.is_low() || !self.core.writer.ready()? {
                return Ok(());
            }
            let now = self.clock.wall();
            let (appended, change) = match work {
                Work::Open { term } => (self.core.open_term(term_of(term)?, now)?, None),
                Work::Change { change, .. } => (self.core.change_members(&change, now)?, Some(change)),
            };
            let header = appended.header;
            self.pass_to_sync(appended)?;
            self.cluster.node.written(&header, change)?;
        }
        Ok(())
    }

    /// Tells raft of a frame that this leader has written, and if there are others, them.
    pub(super) fn propose(&mut self, appended: &Appended) -> Result<()> {
        debug_assert!(appended.header.kind() != FrameType::Pad);
        self.cluster.node.proposed(&appended.header);
        if self.cluster.covered.is_alone() {
            return Ok(());
        }
        self.cluster.node.pump()?;
        self.speak()
    }

    /// Sends what raft has to say.
    pub(super) fn speak(&mut self) -> Result<()> {
        if self.cluster.node.has_messages() {
            let messages: Vec<_> = self.cluster.node.take_messages().into_iter().map(Message::Raft).collect();
            self.cluster.links.tell_all(&messages);
        }
        Ok(())
    }

    /// Says how it stands: on the control page, to the replication process, to those who wait for a commit.
    fn show(&mut self) -> Result<()> {
        if let Some(members) = self.cluster.node.take_members() {
            let alone = self.cluster.node.is_alone();
            self.cluster.covered.set_alone(alone);
            self.cluster.links.tell(&Message::Members(members));
        }
        let state = self.cluster.node.state();
        let changed = |s: &State| (s.term, s.role, s.leader) != (state.term, state.role, state.leader);
        if self.cluster.shown.as_ref().is_none_or(changed) {
            tracing::info!(term = state.term, role = ?state.role, leader = state.leader.map(|l| l.0), "the cluster stands so");
            let role = if state.role == Role::Leader && self.cluster.node.leads().is_none() { None } else { Some(state.role) };
            self.control.set_role(state.term, state.role as u64, state.leader.map_or(0, |l| l.0));
            self.cluster.links.tell(&Message::State(state));
            self.role_changed(role)?;
            self.cluster.shown = Some(state);
        }
        let standby =
            if self.lanes.iter().any(|l| l.level == Level::Standby) { self.cluster.node.standby_matched() } else { None };
        if state.committed != self.cluster.committed || standby != self.cluster.standby {
            self.cluster.standby = standby;
            self.cluster.committed = state.committed;
            self.cluster.covered.set_committed(state.committed);
            self.committed()?;
        }
        Ok(())
    }

    /// What consensus says is committed has risen.
    fn committed(&mut self) -> Result<()> {
        let index = self.cluster.committed;
        if self.cluster.covered.is_alone() {
            // The sync agent has said so already.
            return self.release(index);
        }
        let lsn = self.cluster.node.frames().lsn(index);
        if lsn > self.control.committed() {
            self.control.set_committed(lsn);
            self.bells.ring(Bell::Applied);
        }
        let at_standby = self.cluster.standby.map_or(lsn, |matched| self.cluster.node.frames().lsn(matched).min(lsn));
        for lane in &mut self.lanes {
            lane.committed(if lane.level == Level::Standby { at_standby } else { lsn });
        }
        self.bells.ring(Bell::Ack);
        self.release(index)
    }

    /// Gives the answers that hold now that frames up to `index` are committed.
    fn release(&mut self, index: u64) -> Result<()> {
        self.arrive()?;
        while let Some((_, connection, message)) = self.cluster.held.pop_front_if(|h| h.0 <= index) {
            self.tell()?;
            self.send(SyncItem::Answer(Answer::Say { connection, message }))?;
        }
        Ok(())
    }

    /// Answers once every frame up to now is committed.
    pub(super) fn say_committed(&mut self, connection: u64, message: Said) -> Result<()> {
        let last = self.cluster.node.frames().last();
        if self.cluster.covered.is_alone() || (last <= self.cluster.committed && self.cluster.held.is_empty()) {
            self.tell()?;
            return self.send(SyncItem::Answer(Answer::Say { connection, message }));
        }
        self.cluster.held.push_back((last, connection, message));
        Ok(())
    }
}

/// Bytes of frames that are taken in at once: what [`wal::Writer::ready`] vouches for.
const PART_BYTES: u64 = 2 * (wal::format::FRAME_PAYLOAD_MAX as u64 + wal::format::HEADER_LEN);
/// A pad's header.
const PAD: u64 = wal::format::HEADER_LEN;

const _: () = assert!(HEADER_WORDS as u64 * 8 == wal::format::HEADER_LEN);

/// `len` bytes of `bytes` from `offset` on, as words: fewer if there are not so many.
fn words_of(bytes: &[u8], offset: usize, len: usize) -> Vec<u64> {
    let part = bytes.get(offset..).unwrap_or(&[]);
    let part = part.get(..len).unwrap_or(part);
    part.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect()
}

/// The term of consensus as frames carry it.
pub(super) fn term_of(term: u64) -> Result<crate::lsn::Term> {
    let fits = u32::try_from(term).map(crate::lsn::Term);
    fits.map_err(|_| Error::Limit { what: "the term", limit: u64::from(u32::MAX) })
}
