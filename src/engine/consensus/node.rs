//! Owns: [`Node`], the raft crate's state machine over the log's frames, with the term and vote in `raft.meta`.
//!
//! ```text
//! tick, step ──▶ raft ──▶ messages (acknowledgements and vote requests: once the frames they name are durable)
//!                 │  ├──▶ work: frames that raft has created and the log's owner must write
//!                 │  └──▶ committed: an index that only rises
//! written, proposed (frames in the log) ─┘ persisted (durable up to an index) ─┘
//! ```
//!
//! What must hold: term and vote are durable before a message of that term leaves. An acknowledgement of frames or a request
//! for votes leaves after every frame that it names is durable (with `flush = "interval"`: after it is written, but membership
//! frames and control entries must still be durable). Frames are in the log before raft counts them, except those that raft
//! creates. A host that may have lost frames gives no vote.
//!
//! Sources: the raft paper and thesis (10.2.1 for sending before the own disk is done); the raft crate's documentation
//! of asynchronous readies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{Entry, EntryType, HardState, Message as RaftMessage, MessageType};
use raft::{RawNode, StateRole};

use super::format::{Change, MemberEntry, VOTER};
use super::frames::Frames;
use super::introduction::{Meetings, greet};
use super::members::{conf_change, conf_state, members};
use super::message::{Greeting, Member, Progress, Raft, Role, State, TERM_MAX};
use super::meta::{Meta, MetaFile};
use super::options::Options;
use super::progress::{Others, needed, standby_matched};
use super::wire::{check, from_wire, to_wire};
use super::work::{Unpersisted, Verdict, Work, is_promise};
use tapestore::error::{Error, Result};
use tapestore::lsn::{NodeId, Position};
use tapestore::wal::{FrameType, Header};

/// This host as a node of its cluster.
pub struct Node {
    raw: RawNode<Frames>,
    meta: MetaFile,
    /// Membership frames in the log, above the one that `meta` has applied.
    changes: BTreeMap<u64, Change>,
    /// A proposed change of members that is not yet written.
    proposed: Option<Change>,
    /// Frames of this leader that raft has not received yet; they are proposed in groups.
    unproposed: Vec<Header>,
    unpersisted: VecDeque<Unpersisted>,
    outbox: Vec<RaftMessage>,
    /// Durable up to this frame.
    durable: u64,
    /// Whether a written frame counts before it is durable; `durable` alone then gives the last durable frame.
    is_lossy: bool,
    /// Frames that must be durable to count in any case: membership frames, control entries.
    weighty: BTreeSet<u64>,
    others: Others,
    meetings: Meetings,
    /// Whether members have changed since [`Node::take_members`].
    members_changed: bool,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("state", &self.state()).field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// A learner that has received nothing from its leader for so many election timeouts has none.
const SILENT_MAX: usize = 4;

fn failed(what: &'static str) -> impl FnOnce(raft::Error) -> Error {
    move |cause| Error::Consensus { what, cause: format!("{cause}. To compare the hosts, run on each: tape cluster status") }
}

impl Node {
    /// Creates the node of a recovered log. `frames` are in it and durable, `changes` are its membership frames, and a
    /// checkpoint proves everything up to `committed` to be committed.
    ///
    /// # Errors
    /// [`Error::Consensus`] if `meta` and the log contradict each other, or raft cannot start; [`Error::Io`].
    pub fn new(
        options: &Options,
        mut meta: MetaFile,
        mut frames: Frames,
        changes: BTreeMap<u64, Change>,
        committed: u64,
    ) -> Result<Node> {
        let m = meta.meta().clone();
        let (id, last) = (m.node, frames.last());
        let applied = m.membership.max(committed).max(frames.first() - 1);
        // A change begins only after the one before it is applied, so all but the last are committed. A host whose log holds the
        // last must assume that: with the members of two changes ago, hosts without the frames could elect it.
        let carried_out = changes.keys().rev().nth(1).copied().unwrap_or(0);
        let commit = m.commit.max(committed).max(applied).max(carried_out);
        if commit > last {
            let remedy = match m.is_alone() {
                true => "restore a backup: tape restore BACKUP --store DIRECTORY",
                false => "replace this store by the leader's: tape cluster install-snapshot --from HOST:PORT",
            };
            let cause = format!("frames {} to {commit} are committed and missing from it; {remedy}", last + 1);
            return Err(Error::Consensus { what: "use its log", cause });
        }
        let term = m.term.max(frames.term_of(last).unwrap_or(0));
        let vote = if term == m.term { m.vote } else { 0 };
        if term > m.term {
            // The process died between the two writes. No message of that term leaves before it is stored.
            meta.update(Meta { term, vote, ..m.clone() })?;
        }
        frames.hard_state = HardState { term, vote, commit, ..HardState::default() };
        frames.conf_state = conf_state(&m);
        let config = options.config(id, applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, frames, &logger).map_err(failed("start consensus"))?;
        let changes = changes.into_iter().filter(|c| c.0 > applied).collect();
        let mut node = Node {
            raw,
            meta,
            changes,
            proposed: None,
            unproposed: Vec::new(),
            unpersisted: VecDeque::new(),
            outbox: Vec::new(),
            durable: last,
            is_lossy: options.is_lossy(),
            weighty: BTreeSet::new(),
            others: Others::default(),
            meetings: Meetings::default(),
            members_changed: true,
        };
        node.pump()?;
        Ok(node)
    }

    /// State of consensus of this host.
    pub fn meta(&self) -> &Meta {
        self.meta.meta()
    }

    /// The frames.
    pub fn frames(&self) -> &Frames {
        self.raw.store()
    }

    /// Drops the frames before `position`, as far as raft has applied them.
    pub fn forget(&mut self, position: Position) {
        let next = self.raw.raft.raft_log.applied + 1;
        let done = self.frames().place(next).map_or(position, |p| p.position);
        self.raw.mut_store().forget(position.min(done));
    }

    /// State of this node.
    pub fn state(&self) -> State {
        let raft = &self.raw.raft;
        let learns = !raft.prs().conf().voters().contains(raft.id);
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if learns => Role::Learner,
            StateRole::Follower => Role::Follower,
        };
        // It does not vote, so raft keeps the number of a leader that is gone.
        let is_without = learns && raft.election_elapsed > SILENT_MAX * raft.election_timeout();
        let leader = (raft.leader_id != 0 && !is_without).then_some(NodeId(raft.leader_id));
        let last = self.frames().last() + self.unproposed.len() as u64;
        let last_term =
            self.unproposed.last().map(|h| u64::from(h.term.0)).or_else(|| self.frames().term_of(self.frames().last()));
        State { term: raft.term, role, leader, last, last_term: last_term.unwrap_or(0), committed: raft.raft_log.committed }
    }

    /// Index up to which frames are committed.
    #[inline]
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// Index up to which changes of members are applied: committed, and in `raft.meta`.
    #[inline]
    pub fn applied(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// The term, if this node may number records in it now.
    #[inline]
    pub fn leads(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        let opened = raft.raft_log.last_index() == self.raw.store().last();
        (raft.state == StateRole::Leader && raft.lead_transferee.is_none() && opened).then_some(raft.term)
    }

    /// Whether no other host holds the log, so that durable frames are committed.
    pub fn is_alone(&self) -> bool {
        self.meta.meta().is_alone()
    }

    /// Advances time by one tick of [`super::options::TICK_MS`].
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written; [`Error::Consensus`]: raft fails.
    pub fn tick(&mut self) -> Result<()> {
        // The raft crate assumes that a winner's frames are durable; a sole voter wins without asking anybody.
        if !self.unpersisted.is_empty() && self.raw.raft.state != StateRole::Leader && self.votes_alone() {
            return Ok(());
        }
        // Frames have no room for a term above the last one: its leader goes on, but nobody campaigns any more.
        if self.is_mute() || (self.raw.raft.term >= TERM_MAX && self.raw.raft.state != StateRole::Leader) {
            return Ok(());
        }
        // Before raft may decide that this node no longer leads.
        self.propose()?;
        self.others.count_silence(&self.raw);
        self.raw.tick();
        self.pump()
    }

    fn is_mute(&self) -> bool {
        self.meta.meta().is_mute()
    }

    fn votes_alone(&self) -> bool {
        let voters = self.raw.raft.prs().conf().voters();
        voters.ids().iter().all(|id| id == self.raw.raft.id)
    }

    /// Whether this is the old leader of a pair: it elects itself, and others hold its log. Raft does not stop it from leading
    /// while another host has been promoted by force.
    pub fn is_pair(&self) -> bool {
        self.votes_alone() && self.meta.meta().members.len() > 1
    }

    /// Campaigns now.
    ///
    /// # Errors
    /// [`Error::Limit`]: there are no more terms; else as [`Node::tick`].
    pub fn campaign(&mut self) -> Result<()> {
        if self.raw.raft.term >= TERM_MAX {
            return Err(Error::Limit { what: "the term", limit: TERM_MAX });
        }
        self.raw.campaign().map_err(failed("campaign for the lead"))?;
        self.pump()
    }

    /// Decides what to do with `message` from another host.
    pub fn judge(&self, message: &Raft) -> Verdict {
        Verdict::of(&self.raw, message)
    }

    /// Processes `message`. Returns how many of its frames raft has accepted: they are not in the log yet, and the owner
    /// writes them next and reports them by [`Node::written`].
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written; [`Error::Consensus`]: the message is invalid and was not processed.
    pub fn step(&mut self, message: &Raft) -> Result<u64> {
        let before = self.raw.raft.raft_log.last_index();
        check(message, &self.raw.raft)?;
        let is_ahead = message.kind == MessageType::MsgHeartbeat as u8 && message.commit > before;
        if is_ahead && !self.is_mute() && message.term >= self.raw.raft.term {
            self.meta.has_lost(message.commit, before)?;
        }
        let mut message = from_wire(message)?;
        if is_ahead {
            // The leader counts on frames that are lost here. It has found those before them to match its own.
            message.commit = before;
        }
        let is_of_election = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote | MessageType::MsgTimeoutNow
        );
        if is_of_election && self.is_mute() {
            return Ok(0);
        }
        self.propose()?;
        let before = self.raw.raft.raft_log.last_index();
        match self.raw.step(message) {
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => {}
            Err(error) => return Err(Error::Consensus { what: "accept a message", cause: error.to_string() }),
        }
        let took = self.raw.raft.raft_log.last_index().saturating_sub(before);
        self.pump()?;
        Ok(took)
    }

    /// Reports that messages to `node` may be lost.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn unreachable(&mut self, node: NodeId) -> Result<()> {
        self.propose()?;
        self.raw.report_unreachable(node.0);
        self.pump()
    }

    /// The next frame that raft waits for, if there is one. Until it is written this node sends nothing. It is written, in the
    /// term in which it was created, even if this node no longer leads.
    pub fn work(&mut self) -> Option<Work> {
        Work::next(&self.raw, self.proposed.as_ref())
    }

    /// Reports that a frame of [`Node::work`] or [`Node::step`] has been written; `change` is its payload if it is a membership
    /// frame.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn written(&mut self, header: &Header, change: Option<Change>) -> Result<()> {
        debug_assert!(self.unproposed.is_empty(), "raft creates frames only after those proposed to it");
        self.weigh(header);
        self.raw.mut_store().push(header);
        self.proposed = None;
        if let Some(change) = change {
            self.changes.insert(header.index.0, change);
        }
        self.pump()
    }

    /// Reports that a frame of this leader has been written, in the term of [`Node::leads`]. [`Node::pump`] proposes it to raft.
    ///
    /// # Panics
    /// If this node does not lead in the frame's term.
    #[inline]
    pub fn proposed(&mut self, header: &Header) {
        assert!(self.leads() == Some(u64::from(header.term.0)), "this node does not lead in the term of frame {}", header.index);
        self.weigh(header);
        self.unproposed.push(*header);
    }

    /// Notes a frame that must be durable before this host acknowledges it, with every `flush` option.
    fn weigh(&mut self, header: &Header) {
        if self.is_lossy && matches!(header.kind(), FrameType::Control | FrameType::Membership) {
            self.weighty.insert(header.index.0);
        }
    }

    /// Proposes the written frames to raft.
    fn propose(&mut self) -> Result<()> {
        if self.unproposed.is_empty() {
            return Ok(());
        }
        let mut message = RaftMessage::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(vec![Entry::default(); self.unproposed.len()].into());
        self.raw.raft.step(message).map_err(failed("propose frames"))?;
        for header in self.unproposed.drain(..) {
            self.raw.mut_store().push(&header);
        }
        Ok(())
    }

    /// Reports that frames up to `index` are durable.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn persisted(&mut self, index: u64) -> Result<()> {
        self.durable = self.durable.max(index);
        self.weighty = self.weighty.split_off(&(self.durable + 1));
        self.pump()
    }

    /// Proposes a change of members.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the reason; nothing has changed. [`Error::Consensus`]: raft fails.
    pub fn change(&mut self, change: Change) -> Result<()> {
        let refused = |reason: &str| Err(Error::invalid("change of members", reason));
        if self.leads().is_none() {
            return refused("this node does not lead; ask the leader (tape cluster status names it)");
        }
        let own = self.meta.meta().node;
        if change.members.iter().any(|s| s.node == own && s.roles & VOTER == 0) {
            // The others might not learn of it and wait for the vote of a host that is gone.
            return refused("this node leads; hand the lead over first (tape cluster transfer), then ask the new leader");
        }
        self.propose()?;
        let raft = &self.raw.raft;
        if raft.pending_conf_index > raft.raft_log.applied || self.meta.meta().auto_leave {
            return refused("another change is in progress; try again in a second");
        }
        self.raw.propose_conf_change(Vec::new(), conf_change(&change)).map_err(failed("propose a change of members"))?;
        self.proposed = Some(change);
        Ok(())
    }

    /// Hands the lead over to `node`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the reason.
    pub fn transfer(&mut self, node: NodeId) -> Result<()> {
        let refused = |reason: String| Err(Error::invalid("transfer", reason));
        if self.raw.raft.state != StateRole::Leader {
            return refused("this node does not lead; ask the leader (tape cluster status names it)".to_owned());
        }
        if !self.raw.raft.prs().conf().voters().contains(node.0) {
            return refused(format!("node {node} is no voter; promote it first"));
        }
        self.propose()?;
        if node != self.meta.meta().node {
            self.raw.transfer_leader(node.0);
        }
        self.pump()
    }

    /// Takes the messages for other hosts, in order; frames are named by their heads only.
    pub fn take_messages(&mut self) -> Vec<Raft> {
        let messages = std::mem::take(&mut self.outbox);
        messages.into_iter().filter_map(|m| to_wire(&m, self.raw.store())).collect()
    }

    /// Whether there are messages to take.
    #[inline]
    pub fn has_messages(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The members, if they have changed since the last call.
    pub fn take_members(&mut self) -> Option<Vec<Member>> {
        std::mem::take(&mut self.members_changed).then(|| self.meta.meta().members.iter().map(MemberEntry::member).collect())
    }

    /// Stores durably up to which frame the log is committed, for the next start.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn record(&mut self) -> Result<()> {
        let commit = self.committed().min(self.durable);
        if commit <= self.meta.meta().commit {
            return Ok(());
        }
        self.meta.update(Meta { commit, ..self.meta.meta().clone() })
    }

    /// Sets the number of ticks without a leader after which it campaigns next: for simulations.
    pub fn set_election_ticks(&mut self, ticks: usize) {
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    /// Handles the greeting of another host: records it durably, before it is answered.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the host is rejected, with the reason; [`Error::Io`].
    pub fn greet(&mut self, other: &Greeting) -> Result<()> {
        let last = self.frames().last();
        greet(&mut self.meta, last, other)
    }

    /// Notes that the host `node` of generation `generation` has answered. In the same generation, it has recorded this host.
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written.
    pub fn met(&mut self, node: NodeId, generation: u64) -> Result<()> {
        self.meetings.met(&mut self.meta, node, generation)
    }

    /// Notes that the host `node` rejects this one, for `reason`.
    pub fn refused(&mut self, node: NodeId, reason: String) {
        self.meetings.refused(node, reason);
    }

    /// Whether it may elect itself. Raft does not stop the old leader of a pair from leading while another host has been
    /// promoted by force, so each host that may have been promoted must answer first.
    pub fn may_elect_itself(&self) -> bool {
        self.state().role == Role::Leader || self.meetings.unasked(self.meta(), self.is_pair()).is_empty()
    }

    /// Reason why this host does not vote or lead, for an operator.
    pub fn waits(&self) -> Option<String> {
        self.meetings.waits(self.meta(), self.is_pair(), self.state().role == Role::Leader)
    }

    /// Whether the host `node` has long been silent, or is no member. A leader of a new term counts nobody as away yet.
    pub fn is_away(&self, node: NodeId) -> bool {
        self.others.is_away(&self.raw, node)
    }

    /// Index up to which the most advanced learner has the log; `None` if there is no learner.
    pub fn standby_matched(&self) -> Option<u64> {
        standby_matched(&self.raw)
    }

    /// Handles a report that the log of `node` ends with frame `last`. If this leader's log no longer holds the frames that it
    /// would send next, it probes that member from `last` on; raft checks as usual that the logs match.
    /// `needs_snapshot`: the member needs a snapshot of the leader's store.
    pub fn reached(&mut self, node: NodeId, last: u64, needs_snapshot: bool) {
        self.others.reached(&mut self.raw, node, last, needs_snapshot);
    }

    /// The other members as this leader sees them; empty if it does not lead.
    pub fn progress(&self) -> Vec<Progress> {
        self.others.progress(&self.raw)
    }

    /// Reason why `change` would stop the cluster: fewer than a majority of the voters after it are up. `None` on a host that
    /// does not lead.
    pub fn would_stop(&self, change: &Change) -> Option<String> {
        self.others.would_stop(&self.raw, change)
    }

    /// The first frame that a member may still need. Only a leader has the members' progress. Another host returns its first
    /// frame: if it is elected, others may be far behind.
    pub fn needed(&self) -> u64 {
        needed(&self.raw)
    }

    /// Processes everything that raft has ready.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn pump(&mut self) -> Result<()> {
        self.propose()?;
        loop {
            self.release();
            // Frames that raft has created must be in the log before raft may count them.
            if self.raw.raft.raft_log.last_index() > self.raw.store().last() || !self.raw.has_ready() {
                return Ok(());
            }
            let mut ready = self.raw.ready();
            if let Some(hard) = ready.hs() {
                self.save(&hard.clone())?;
            }
            self.outbox.append(&mut ready.take_messages());
            let index = ready.entries().last().map_or(0, |e| e.index);
            let (promises, others) = ready.take_persisted_messages().into_iter().partition(is_promise);
            self.outbox.extend::<Vec<_>>(others);
            let committed = ready.take_committed_entries();
            let number = ready.number();
            self.raw.advance_append_async(ready);
            self.unpersisted.push_back(Unpersisted { number, index, messages: promises });
            if let Some(last) = committed.last().map(|e| e.index) {
                self.apply(&committed)?;
                self.raw.advance_apply_to(last);
            }
        }
    }

    /// Index up to which this host acknowledges frames.
    fn counts(&self) -> u64 {
        if !self.is_lossy {
            return self.durable;
        }
        // `raft.meta` durably names the frame of the members, so a start must find it; and an instrument's number must never be
        // given to another name.
        self.weighty.first().map_or(self.raw.store().last(), |index| index - 1)
    }

    /// Releases the messages that waited for frames that are durable now.
    fn release(&mut self) {
        let counts = self.counts();
        while let Some(first) = self.unpersisted.pop_front_if(|u| u.index <= counts) {
            self.raw.on_persist_ready(first.number);
            self.outbox.extend(first.messages);
        }
    }

    fn save(&mut self, hard: &HardState) -> Result<()> {
        self.raw.mut_store().hard_state = hard.clone();
        let meta = self.meta.meta();
        if (hard.term, hard.vote) == (meta.term, meta.vote) {
            return Ok(());
        }
        let commit = meta.commit.max(hard.commit.min(self.durable));
        self.meta.update(Meta { term: hard.term, vote: hard.vote, commit, ..meta.clone() })
    }

    /// Applies committed membership frames.
    fn apply(&mut self, committed: &[Entry]) -> Result<()> {
        for entry in committed.iter().filter(|e| e.get_entry_type() != EntryType::EntryNormal) {
            let Some(change) = self.changes.remove(&entry.index) else { continue };
            let state = self.raw.apply_conf_change(&conf_change(&change)).map_err(failed("change the members"))?;
            let meta = self.meta.meta();
            let members = members(&state, &meta.members, &change);
            let commit = meta.commit.max(entry.index);
            let (membership, auto_leave) = (entry.index, state.auto_leave);
            self.raw.mut_store().conf_state = state;
            // A removed member's number may come back with another store.
            let mut met = meta.met.clone();
            met.retain(|node, _| members.iter().any(|s| s.node == *node));
            self.meta.update(Meta { members, met, commit, membership, auto_leave, ..self.meta.meta().clone() })?;
            self.members_changed = true;
            self.resign();
        }
        Ok(())
    }

    /// Makes a leader that is no longer a voter notify the others and step down. Raft leaves that to its owner and assumes that
    /// a leader is a member.
    fn resign(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.prs().conf().voters().contains(raft.id) {
            raft.bcast_append();
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }
}
