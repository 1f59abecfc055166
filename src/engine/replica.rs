//! Owns: this host's role in the cluster: messages of other hosts, the leader's frames on their way into a follower's log,
//! ticks, and publishing the role and the commit index.
//!
//! What must hold: a frame of another host is in the log byte for byte or not at all. The published commit index is the one
//! of consensus. A checkpoint waits until membership changes are applied, not only committed. Votes and heartbeats never wait
//! behind frames for which there is no room.

use std::collections::VecDeque;

use super::effect::{Effect, Moment};
use super::ended::Ended;
use super::log::Log;
use super::members::{self, Needs};
use super::sessions::Sessions;
use super::state::term_of;
use crate::consensus::message::{FrameHead, GENERATION_MAX, Identity, Message, Raft, Role, State, VERSION};
use crate::consensus::options::TICK_MS;
use crate::consensus::{Change, MemberEntry, Options, Verdict, Work};
use tapestore::error::{Bad, Error, Result};
use tapestore::lsn::{Lsn, NodeId};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::bell::Bell;
use tapestore::shm::control::Control;
use tapestore::shm::histogram::Histogram;
use tapestore::wal::{self, Body, ControlEntry, Frame};

/// Most frames of one message that are accepted before other work gets its turn.
const FRAMES_A_TURN: usize = 64;
/// Most bytes of frames that wait to be accepted; a frame beyond that is dropped, and sent again.
const WAITING_MAX: u64 = 64 << 20;
/// Words of a frame's header.
const HEADER_WORDS: usize = 8;
/// Most bytes of frames that are accepted at once: the room that [`wal::Writer::ready`] guarantees.
const PART_BYTES: u64 = 2 * (wal::format::FRAME_PAYLOAD_MAX as u64 + wal::format::HEADER_LEN);
/// Bytes of a pad's header.
const PAD: u64 = wal::format::HEADER_LEN;

const _: () = assert!(HEADER_WORDS as u64 * 8 == wal::format::HEADER_LEN);

/// This host's role in the cluster.
pub(super) struct Replica {
    options: Options,
    identity: Identity,
    /// When the last tick was, ns of the monotonic clock.
    ticked: u64,
    /// Messages that carry frames. Of the first, some frames may be in the log already.
    waiting: VecDeque<Raft>,
    waiting_bytes: u64,
    /// The state as last published.
    shown: Option<State>,
    committed: u64,
    durable: u64,
    /// Whether this host of a pair leads before it was in touch with the other, by an operator's option.
    may_lead: bool,
    /// Whether it has been logged that another host was promoted.
    is_fenced: bool,
    needs: Needs,
    /// The standby's last frame, as last seen.
    standby: Option<u64>,
    /// The host and the committed frame that it rejects, as last logged.
    denied: Option<(NodeId, u64)>,
    /// Why storage is to end.
    ended: Option<Ended>,
    /// A record that was durable here before it was committed, and when that was seen: its way to the commit is measured.
    measured: Option<(Lsn, u64)>,
    /// The newest durable record at the last look.
    last_durable: Lsn,
}

/// What has changed for those that depend on the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nothing, or the commit index alone.
    Same,
    /// The term, the role or the leader.
    Role {
        /// Whether this host leads and numbers records.
        leads: bool,
    },
}

impl Replica {
    pub(super) fn new(options: Options, identity: Identity, durable: u64, may_lead: bool) -> Replica {
        Replica {
            options,
            identity,
            ticked: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            shown: None,
            committed: 0,
            durable,
            may_lead,
            is_fenced: false,
            needs: Needs::default(),
            standby: None,
            denied: None,
            ended: None,
            measured: None,
            last_durable: Lsn::NONE,
        }
    }

    /// The leader, if one is known.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.shown.as_ref().and_then(|s| s.leader)
    }

    /// Why storage is to end.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Up to which frame the log was durable at the last look.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether a tick is due.
    pub(super) fn is_tick_due(&self, now: u64) -> bool {
        now.saturating_sub(self.ticked) >= TICK_MS * 1_000_000
    }

    /// Notes that frames up to `index` are durable; returns whether that is new.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn persisted(&mut self, index: u64, log: &mut Log) -> Result<bool> {
        if index == self.durable {
            return Ok(false);
        }
        self.durable = index;
        log.node_mut().persisted(index)?;
        Ok(true)
    }

    /// Runs a tick of [`TICK_MS`].
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn tick(&mut self, log: &mut Log, now: u64) -> Result<()> {
        // One tick, however long the time since the last: after a pause no timer has expired.
        self.ticked = now;
        // A host that elects itself asks no other: it waits until no other can have been promoted in its place.
        if self.may_lead || log.node().may_elect_itself() {
            log.node_mut().tick()?;
        }
        members::show_needed(log, self.options.retain_bytes);
        self.needs.say(log, self.leader(), now);
        Ok(())
    }

    /// Handles the greeting of the replication process, or of an operator's tool, on connection `link`.
    pub(super) fn greet(&mut self, link: u64, version: u32, pid: u32, log: &mut Log) {
        if version != VERSION {
            let refusal =
                format!("storage uses version {VERSION} of this protocol, not {version}; install both from one release");
            return log.ask(Effect::Say(link, Message::Refused(refusal)));
        }
        tracing::info!(name: "cluster.replication_connected", pid, "the replication process is connected");
        log.ask(Effect::Replication(link));
        log.ask(Effect::Say(link, Message::Welcome(self.identity.clone())));
        let members = log.node().meta().members.iter().map(MemberEntry::member).collect();
        log.ask(Effect::Say(link, Message::Members(members)));
        let state = log.node().state();
        log.ask(Effect::Say(link, Message::State(state)));
    }

    /// Handles the end of the replication process: messages on their way may be lost.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn replication_gone(&mut self, log: &mut Log) -> Result<()> {
        tracing::warn!(
            name: "cluster.replication_ended",
            "the replication process has ended: no other host can be reached until it is back"
        );
        let own = log.node().meta().node;
        let others: Vec<_> = log.node().meta().members.iter().map(|s| s.node).filter(|n| *n != own).collect();
        others.into_iter().try_for_each(|node| log.node_mut().unreachable(node))
    }

    /// Notes that the replication process is in touch with `node`, of generation `generation`.
    ///
    /// # Errors
    /// [`Error::Consensus`] if this host leads and another was promoted in its place.
    pub(super) fn reached(&mut self, node: NodeId, generation: u64, log: &mut Log) -> Result<()> {
        if generation > GENERATION_MAX {
            tracing::warn!(
                name: "raft.impossible_generation", node = node.0, generation,
                "another host reports an impossible generation; it is ignored"
            );
            return Ok(());
        }
        log.node_mut().met(node, generation)?;
        let own = log.node().meta().generation;
        if generation <= own {
            return Ok(());
        }
        self.may_lead = false;
        let cause = format!(
            "node {node} was promoted by force: generation {generation}, and this host is of generation {own}; records that only \
             this host has accepted since are not part of the store. Stop it, and let it rejoin: \
             tape cluster rejoin --generation {generation} --leader {node}=HOST:PORT"
        );
        if log.node().state().role == Role::Leader {
            return Err(Error::Consensus { what: "lead", cause });
        }
        if !std::mem::replace(&mut self.is_fenced, true) {
            tracing::error!(name: "raft.does_not_lead", %cause, "this host does not lead");
        }
        Ok(())
    }

    /// Ends storage to install a snapshot of another host's store, which has been fetched and checked.
    pub(super) fn filled(&mut self, log: &Log) {
        if log.node().state().role == Role::Leader {
            tracing::warn!(
                name: "raft.leader_keeps_store",
                "a snapshot of another host's store is not installed: this host leads"
            );
        } else {
            self.ended = Some(Ended::Fill);
        }
    }

    /// Handles a message of another host.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn receive(&mut self, raft: Raft, log: &mut Log) -> Result<()> {
        if let Err(error) = raft.check() {
            tracing::warn!(
                name: "raft.message_dropped",
                %error, from = raft.from.0,
                "dropped a message of another host; to compare the hosts, run on each: tape cluster status"
            );
            return Ok(());
        }
        let own = log.node().meta().node;
        if raft.to != own {
            tracing::warn!(
                name: "raft.message_for_other_host",
                from = raft.from.0,
                to = raft.to.0,
                own = own.0,
                "dropped a message: it is for another host. Compare the member lists of the hosts: tape cluster status on each"
            );
            return Ok(());
        }
        if raft.heads.is_empty() {
            return step(log, &raft).map(drop);
        }
        if log.node().meta().is_mute() {
            // A mute host accepts no frames: it is new or has lost some, so their predecessors may be missing from its log.
            return Ok(());
        }
        let bytes = raft.frames.len() as u64;
        if self.waiting_bytes + bytes <= WAITING_MAX {
            self.waiting_bytes += bytes;
            self.waiting.push_back(raft);
        }
        Ok(())
    }

    /// Accepts frames of the leader, as far as there is room. Returns whether there was something to do.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`]; [`Error::Halted`] if the log has failed.
    pub(super) fn take_frames(&mut self, log: &mut Log, sessions: &mut Sessions, at: Moment, backlog: usize) -> Result<bool> {
        let mut worked = false;
        while let Some(raft) = self.waiting.pop_front() {
            let bytes = raft.frames.len() as u64;
            match log.node().judge(&raft) {
                Verdict::Pass => drop(step(log, &Raft { frames: Vec::new(), ..raft })?),
                Verdict::Append(known) => {
                    if let Some(rest) = take_message(raft, known, log, sessions, (at, backlog))? {
                        self.waiting.push_front(rest);
                        return Ok(worked);
                    }
                }
                Verdict::Truncate(index) => {
                    log.state().forget_behind(index);
                    self.ended = Some(Ended::Truncate(index));
                    return Ok(true);
                }
                Verdict::Denies(index) if self.denied == Some((raft.from, index)) => {}
                Verdict::Denies(index) => {
                    self.denied = Some((raft.from, index));
                    tracing::error!(
                        name: "raft.committed_frame_rejected",
                        index,
                        from = raft.from.0,
                        "another host rejects a frame that is committed here: one of the two has lost acknowledged frames. The message is dropped; compare the hosts with `tape cluster scrub`, and check each with `tape verify`"
                    );
                }
            }
            self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
            worked = true;
        }
        Ok(worked)
    }

    /// Appends the frames that raft itself has begun.
    ///
    /// # Errors
    /// [`Error::Halted`] if the log has failed; as [`crate::consensus::Node::tick`].
    pub(super) fn do_work(&mut self, log: &mut Log, at: Moment) -> Result<()> {
        while let Some(work) = log.node_mut().work() {
            if log.is_low() || !log.is_writable()? {
                return Ok(());
            }
            let (appended, change) = match work {
                Work::Open { term } => (log.state().open_term(term_of(term)?, at.wall)?, None),
                Work::Change { change, .. } => (log.state().change_members(&change, at.wall)?, Some(change)),
            };
            let header = appended.header;
            log.pass_to_sync(appended);
            log.node_mut().written(&header, change)?;
        }
        Ok(())
    }

    /// Publishes the state: on the control page, to the replication process, to those who wait for a commit.
    pub(super) fn show(&mut self, log: &mut Log, sessions: &mut Sessions, now: u64) -> Shown {
        if let Some(members) = log.node_mut().take_members() {
            let alone = log.node().is_alone();
            log.covered().set_alone(alone);
            log.notify(Message::Members(members));
        }
        let state = log.node().state();
        let mut shown = Shown::Same;
        let changed = |s: &State| (s.term, s.role, s.leader) != (state.term, state.role, state.leader);
        if self.shown.as_ref().is_none_or(changed) {
            tracing::info!(
                name: "raft.state_changed", term = state.term, role = ?state.role, leader = state.leader.map(|l| l.0),
                "term, role or leader changed"
            );
            log.control().set_role(state.term, state.role as u64, state.leader.map_or(0, |l| l.0), now);
            log.notify(Message::State(state));
            shown = Shown::Role { leads: state.role == Role::Leader && log.numbers() };
            self.shown = Some(state);
        }
        let standby = if sessions.wait_for_standby() { log.node().standby_matched() } else { None };
        // The other agents read the number: a write in every turn would take its cache line away from them.
        let checkpointed = self.may_be_checkpointed(log);
        if checkpointed != log.covered().committed() {
            log.covered().set_committed(checkpointed);
        }
        if state.committed != self.committed || standby != self.standby {
            self.standby = standby;
            self.committed = state.committed;
            self.publish_committed(log, sessions);
        }
        if log.is_alone() {
            self.measured = None;
        } else {
            self.measure(log.control(), now);
        }
        shown
    }

    /// Measures how long a durable record waits for its commit, one at a time.
    fn measure(&mut self, control: &Control, now: u64) {
        let durable = control.durable();
        let has_risen = std::mem::replace(&mut self.last_durable, durable) < durable;
        match self.measured {
            // One that has been durable for a while would be measured too short.
            None => self.measured = (has_risen && durable > control.committed()).then_some((durable, now)),
            Some((lsn, since)) if control.committed() >= lsn => {
                control.observe(Histogram::DurableToCommitted, now.saturating_sub(since));
                self.measured = None;
            }
            Some(_) => {}
        }
    }

    /// Up to which frame a checkpoint may go: a membership change that is committed and not applied is in the log alone,
    /// which a start reads from the checkpoint on.
    fn may_be_checkpointed(&self, log: &Log) -> u64 {
        let node = log.node();
        if sabotage::is(Sabotage::CheckpointEarly) { node.committed() } else { node.applied() }
    }

    /// Publishes a commit index that has risen.
    fn publish_committed(&self, log: &mut Log, sessions: &mut Sessions) {
        if log.is_alone() {
            // The sync agent publishes it, as the durable one.
            return;
        }
        let frames = log.node().frames();
        let lsn = frames.lsn(self.committed);
        let at_standby = self.standby.map_or(lsn, |matched| frames.lsn(matched).min(lsn));
        if lsn > log.control().committed() {
            log.control().set_committed(lsn);
            log.traces().committed(lsn);
            log.ask(Effect::Ring(Bell::Applied));
        }
        sessions.committed(lsn, at_standby);
        log.ask(Effect::Ring(Bell::Ack));
    }

    /// Storage ends: asks another host to lead, so that nobody waits for an election.
    ///
    /// # Errors
    /// As [`crate::consensus::Node::tick`].
    pub(super) fn hand_over(&mut self, log: &mut Log) -> Result<()> {
        let mut others: Vec<_> = log.node().progress().into_iter().filter(|p| p.is_active && !p.needs_snapshot).collect();
        others.sort_by_key(|p| std::cmp::Reverse(p.matched));
        for other in others {
            match log.node_mut().transfer(other.node) {
                Ok(()) => {
                    tracing::info!(name: "raft.leadership_handed_over", to = other.node.0, "handing leadership over");
                    log.send();
                    return Ok(());
                }
                // It is a learner.
                Err(Error::Invalid { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Steps `raft`; a message that is not valid is logged and changes nothing.
fn step(log: &mut Log, raft: &Raft) -> Result<u64> {
    match log.node_mut().step(raft) {
        Err(error @ Error::Consensus { .. }) => {
            tracing::warn!(
                name: "raft.message_dropped",
                %error, from = raft.from.0,
                "dropped a message of another host; to compare the hosts, run on each: tape cluster status"
            );
            Ok(0)
        }
        other => other,
    }
}

/// The first frames of `part`, whose bytes are `words`: as many as are sound, are the ones that `from` names, and fit in one
/// part. A frame that defines a kind is the last.
fn sound_frames<'a>(part: &[FrameHead], words: &'a [u64], from: NodeId) -> Vec<(FrameHead, &'a [u64], Frame<'a>)> {
    let mut good = Vec::new();
    let mut rest = words;
    let (mut bytes, mut records) = (0, 0);
    for head in part {
        let Some((mine, after)) = rest.split_at_checked(head.len as usize / 8) else { break };
        let parsed = wal::parse(mine);
        let is_named = |f: &Frame<'_>| {
            (f.header.header_crc, f.header.index.0, f.header.position.0) == (head.header_crc, head.index, head.position)
                && u64::from(f.header.term.0) == head.term
                && f.header.total_len() <= PART_BYTES
                && f.header.records() <= u64::from(wal::format::FRAME_RECORDS_MAX)
        };
        let Some(frame) = parsed.ok().filter(is_named) else {
            tracing::warn!(
                name: "raft.damaged_frame", index = head.index, from = from.0,
                "a damaged frame was received and is dropped"
            );
            break;
        };
        let (more, count) = (frame.header.total_len(), frame.header.records());
        let fits = bytes + more <= PART_BYTES && records + count <= u64::from(wal::format::FRAME_RECORDS_MAX);
        if !fits && !good.is_empty() {
            break;
        }
        (bytes, records, rest) = (bytes + more, records + count, after);
        // Records of a kind can be read once the frame that defines it is in the log.
        let defines = matches!(&frame.body, Body::Control(entries) if entries.iter().any(|f| matches!(f, ControlEntry::Kind(_))));
        good.push((*head, mine, frame));
        if defines {
            break;
        }
    }
    good
}

/// Accepts the frames of `raft` after the first `known`, a part at a time; returns the message if there is no room for the
/// rest now.
fn take_message(
    raft: Raft,
    known: usize,
    log: &mut Log,
    sessions: &mut Sessions,
    (at, backlog): (Moment, usize),
) -> Result<Option<Raft>> {
    let mut offset: usize = raft.heads.iter().take(known).map(|h| h.len as usize).sum();
    let mut next = known;
    while next < raft.heads.len() {
        let part: Vec<_> = raft.heads.iter().skip(next).take(FRAMES_A_TURN).copied().collect();
        let words: Vec<u64> = words_of(&raft.frames, offset, part.iter().map(|h| h.len as usize).sum());
        let good = sound_frames(&part, &words, raft.from);
        if good.is_empty() {
            return Ok(None);
        }
        let bytes: u64 = good.iter().map(|(_, _, frame)| frame.header.total_len()).sum();
        let records: u64 = good.iter().map(|(_, _, frame)| frame.header.records()).sum();
        let has_room = log.has_room(at.now, backlog)?
            && log.state().writer.ready_for(bytes + 2 * PAD)?
            && log.state().memtables.has_room(records)?;
        if !has_room {
            return Ok(Some(raft));
        }
        let (index, log_term) = match next.checked_sub(1).and_then(|i| raft.heads.get(i)) {
            Some(before) => (before.index, before.term),
            None => (raft.index, raft.log_term),
        };
        let heads = good.iter().map(|g| g.0).collect();
        let sub = Raft { index, log_term, heads, frames: Vec::new(), context: raft.context.clone(), ..raft };
        let frames: Vec<_> = good.iter().map(|(head, _, frame)| (*head, frame)).collect();
        if let Err(Bad { what, expected, found }) = log.state().vet(&frames) {
            let (first, from) = (sub.index + 1, raft.from.0);
            tracing::error!(
                name: "raft.frames_do_not_continue", what, expected, found, first, from,
                "frames of the leader do not continue the log; they are dropped"
            );
            return Ok(None);
        }
        if step(log, &sub)? != good.len() as u64 {
            return Ok(None);
        }
        for (_, words, frame) in &good {
            take_frame(frame, words, log, sessions, at.now)?;
        }
        next += good.len();
        offset += bytes as usize;
    }
    Ok(None)
}

/// Appends a frame of the leader that raft has accepted.
fn take_frame(frame: &Frame<'_>, words: &[u64], log: &mut Log, sessions: &mut Sessions, now: u64) -> Result<()> {
    let committed = log.state().take(frame, words)?;
    let change = match &frame.body {
        Body::Membership(words) => Some(Change::parse(words).map_err(|bad| {
            Error::invalid("membership frame", format!("{}: {} where {} is due", bad.what, bad.found, bad.expected))
        })?),
        _ => None,
    };
    if let Body::Control(entries) = &frame.body {
        for entry in entries {
            let &ControlEntry::Attach { publisher, epoch, .. } = entry else { continue };
            sessions.fence(publisher, Some(epoch));
        }
    }
    if matches!(frame.body, Body::Membership(_) | Body::Control(_)) {
        log.hurry();
    }
    let header = committed.appended.header;
    log.note(committed, now, sessions)?;
    log.node_mut().written(&header, change)
}

/// `len` bytes of `bytes` from `offset` on, as words; fewer if `bytes` is shorter.
fn words_of(bytes: &[u8], offset: usize, len: usize) -> Vec<u64> {
    let part = bytes.get(offset..).unwrap_or(&[]);
    let part = part.get(..len).unwrap_or(part);
    part.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect()
}
