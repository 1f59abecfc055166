//! Owns: [`Node`], the raft crate's state machine over the log's frames, with the term and vote in `raft.meta`.
//!
//! ```text
//! tick, step ──▶ raft ──▶ messages (those that promise something: once the log is durable as far as they say)
//!                 │  ├──▶ work: frames that raft has put in its log and the log's owner has to write
//!                 │  └──▶ committed: an index that only rises
//! written, proposed (frames in the log) ─┘ persisted (durable up to an index) ─┘
//! ```
//!
//! What must hold: term and vote are durable before a message of that term leaves; an acceptance of frames, or a request
//! for votes, leaves after every frame that it speaks of is durable (with `flush = "interval"`: after it is written, but for
//! changes of members and facts); frames are in the log before raft hears of them, but for those that raft itself begins; who may have
//! forgotten frames gives no vote.
//!
//! Sources: the raft paper and thesis (10.2.1 for sending before the own disk is done); the raft crate's documentation
//! of asynchronous readies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{Entry, EntryType, HardState, Message as RaftMessage, MessageType};
use raft::{RawNode, StateRole};

use super::format::{Change, Seat, VOTER};
use super::frames::Frames;
use super::introduction::{Meetings, greet};
use super::members::{conf_change, conf_state, seats};
use super::message::{Greeting, Member, Progress, Raft, Role, State, TERM_MAX};
use super::meta::{Meta, MetaFile};
use super::options::Options;
use super::progress::{Others, needed, standby_matched};
use super::wire::{check, from_wire, to_wire};
use super::work::{Unpersisted, Verdict, Work, is_promise};
use tapestore::error::{Error, Result};
use tapestore::lsn::{NodeId, Position};
use tapestore::wal::{FrameType, Header};

/// This host in its cluster.
pub struct Node {
    raw: RawNode<Frames>,
    meta: MetaFile,
    /// Changes of members in the log, above the one that `meta` is as of.
    changes: BTreeMap<u64, Change>,
    /// The change that is proposed and not written yet.
    proposed: Option<Change>,
    /// Frames of this leader that raft has not heard of: it hears of many at once.
    unheard: Vec<Header>,
    unpersisted: VecDeque<Unpersisted>,
    outbox: Vec<RaftMessage>,
    /// Durable up to this frame.
    durable: u64,
    /// Whether a frame counts once it is written: what is durable is then known only from `durable`.
    is_lossy: bool,
    /// Frames that count once they are durable in any case: changes of members, facts.
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

fn failed(what: &'static str) -> impl FnOnce(raft::Error) -> Error {
    move |cause| Error::Consensus { what, cause: cause.to_string() }
}

impl Node {
    /// The node of a recovered log: `frames` are in it and durable, `changes` are the membership frames among them.
    /// Everything up to `committed`, a checkpoint, is known to be committed.
    ///
    /// # Errors
    /// [`Error::Consensus`] if `meta` and the log contradict each other.
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
        // A change is begun only once the one before it has been carried out, so all but the last are committed, and a host
        // that has the last must know it: by members of two changes ago it would be elected by hosts that have nothing.
        let carried_out = changes.keys().rev().nth(1).copied().unwrap_or(0);
        let commit = m.commit.max(committed).max(applied).max(carried_out);
        if commit > last {
            let cause = format!("frame {commit} is committed, and the log ends with {last}");
            return Err(Error::Consensus { what: "the log is shorter than what is committed", cause });
        }
        let term = m.term.max(frames.term_of(last).unwrap_or(0));
        let vote = if term == m.term { m.vote } else { 0 };
        if term > m.term {
            // The log is ahead of it if the process died between the two: nothing is said in that term before it is there.
            meta.update(Meta { term, vote, ..m.clone() })?;
        }
        frames.hard_state = HardState { term, vote, commit, ..HardState::default() };
        frames.conf_state = conf_state(&m);
        let config = options.config(id, applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, frames, &logger).map_err(failed("start"))?;
        let changes = changes.into_iter().filter(|c| c.0 > applied).collect();
        let mut node = Node {
            raw,
            meta,
            changes,
            proposed: None,
            unheard: Vec::new(),
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

    /// Who this is.
    pub fn meta(&self) -> &Meta {
        self.meta.meta()
    }

    /// The frames.
    pub fn frames(&self) -> &Frames {
        self.raw.store()
    }

    /// Forgets frames before `position`, as far as raft is done with them.
    pub fn forget(&mut self, position: Position) {
        let next = self.raw.raft.raft_log.applied + 1;
        let done = self.frames().place(next).map_or(position, |p| p.position);
        self.raw.mut_store().forget(position.min(done));
    }

    /// How it stands.
    pub fn state(&self) -> State {
        let raft = &self.raw.raft;
        let learns = !raft.prs().conf().voters().contains(raft.id);
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if learns => Role::Learner,
            StateRole::Follower => Role::Follower,
        };
        let leader = (raft.leader_id != 0).then_some(NodeId(raft.leader_id));
        let last = self.frames().last() + self.unheard.len() as u64;
        let last_term = self.unheard.last().map(|h| u64::from(h.term.0)).or_else(|| self.frames().term_of(self.frames().last()));
        State { term: raft.term, role, leader, last, last_term: last_term.unwrap_or(0), committed: raft.raft_log.committed }
    }

    /// Index up to which frames are committed.
    #[inline]
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// Index up to which changes of members are carried out: committed, and in `raft.meta`.
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

    /// Whether nobody else is to hold the log: what is durable here is committed.
    pub fn is_alone(&self) -> bool {
        self.meta.meta().is_alone()
    }

    /// A tick of [`TICK_MS`] has passed.
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written.
    pub fn tick(&mut self) -> Result<()> {
        // The raft crate takes it that a winner's frames are durable; a sole voter wins without asking anybody.
        if !self.unpersisted.is_empty() && self.raw.raft.state != StateRole::Leader && self.votes_alone() {
            return Ok(());
        }
        // Frames have no room for a term behind the last one: who leads in it goes on, and nobody is elected any more.
        if self.is_mute() || (self.raw.raft.term >= TERM_MAX && self.raw.raft.state != StateRole::Leader) {
            return Ok(());
        }
        // Before raft may decide that this node leads no longer.
        self.propose()?;
        self.others.listen(&self.raw);
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

    /// Whether this node alone elects itself, and others hold its log: a pair. Nothing in raft keeps it from leading while
    /// another has been promoted by force.
    pub fn is_pair(&self) -> bool {
        self.votes_alone() && self.meta.meta().seats.len() > 1
    }

    /// Stands for election now.
    ///
    /// # Errors
    /// [`Error::Limit`]: there are no more terms; as [`Node::tick`].
    pub fn campaign(&mut self) -> Result<()> {
        if self.raw.raft.term >= TERM_MAX {
            return Err(Error::Limit { what: "the term", limit: TERM_MAX });
        }
        self.raw.campaign().map_err(failed("stand for election"))?;
        self.pump()
    }

    /// What to do with `message`, which came from another host.
    pub fn judge(&self, message: &Raft) -> Verdict {
        Verdict::of(&self.raw, message)
    }

    /// Takes in `message`. The frames that it carries and the log does not have are written next, and told of by
    /// [`Node::written`], if this says so: it gives how many raft took.
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written; [`Error::Consensus`]: the message makes no sense, and nothing was
    /// done.
    pub fn step(&mut self, message: &Raft) -> Result<u64> {
        let before = self.raw.raft.raft_log.last_index();
        check(message, &self.raw.raft)?;
        let is_ahead = message.kind == MessageType::MsgHeartbeat as u8 && message.commit > before;
        if is_ahead && !self.is_mute() && message.term >= self.raw.raft.term {
            self.meta.has_lost(message.commit, before)?;
        }
        let mut message = from_wire(message)?;
        if is_ahead {
            // The leader counts on frames that have been forgotten here; those before them it has found to be its own.
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
            Err(error) => return Err(failed("take in a message")(error)),
        }
        let took = self.raw.raft.raft_log.last_index().saturating_sub(before);
        self.pump()?;
        Ok(took)
    }

    /// What was sent to `node` may not have arrived.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn unreachable(&mut self, node: NodeId) -> Result<()> {
        self.propose()?;
        self.raw.report_unreachable(node.0);
        self.pump()
    }

    /// The frame that raft waits for, if there is one. Until it is written this node says nothing: it is written even if
    /// the node that has begun it leads no longer, in the term in which it did.
    pub fn work(&mut self) -> Option<Work> {
        Work::next(&self.raw, self.proposed.as_ref())
    }

    /// A frame that raft knows of, by [`Node::work`] or by [`Node::step`], has been written; `change` is what it says if
    /// it changes members.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn written(&mut self, header: &Header, change: Option<Change>) -> Result<()> {
        debug_assert!(self.unheard.is_empty(), "what raft begins comes behind what it has heard of");
        self.weigh(header);
        self.raw.mut_store().push(header);
        self.proposed = None;
        if let Some(change) = change {
            self.changes.insert(header.index.0, change);
        }
        self.pump()
    }

    /// A frame of this leader has been written; [`Node::leads`] has given its term. Raft and others hear of it by
    /// [`Node::pump`].
    ///
    /// # Panics
    /// If this node does not lead in the frame's term.
    #[inline]
    pub fn proposed(&mut self, header: &Header) {
        assert!(self.leads() == Some(u64::from(header.term.0)), "frame {} was not for this node to number", header.index);
        self.weigh(header);
        self.unheard.push(*header);
    }

    /// Notes a frame that is to be durable before this host says that it has it, however it is kept.
    fn weigh(&mut self, header: &Header) {
        if self.is_lossy && matches!(header.kind(), FrameType::Control | FrameType::Membership) {
            self.weighty.insert(header.index.0);
        }
    }

    /// Lets raft hear of the frames that have been written.
    fn propose(&mut self) -> Result<()> {
        if self.unheard.is_empty() {
            return Ok(());
        }
        let mut message = RaftMessage::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(vec![Entry::default(); self.unheard.len()].into());
        self.raw.raft.step(message).map_err(failed("propose frames"))?;
        for header in self.unheard.drain(..) {
            self.raw.mut_store().push(&header);
        }
        Ok(())
    }

    /// Frames up to `index` are durable.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn persisted(&mut self, index: u64) -> Result<()> {
        self.durable = self.durable.max(index);
        self.weighty = self.weighty.split_off(&(self.durable + 1));
        self.pump()
    }

    /// Changes the members.
    ///
    /// # Errors
    /// [`Error::Invalid`]: why not now; nothing has changed.
    pub fn change(&mut self, change: Change) -> Result<()> {
        let refused = |reason: &str| Err(Error::invalid("change of members", reason));
        if self.leads().is_none() {
            return refused("this node does not lead");
        }
        let own = self.meta.meta().node;
        if change.seats.iter().any(|s| s.node == own && s.part & VOTER == 0) {
            // Others might not learn that it has happened, and wait for the vote of a host that is gone.
            return refused("this node leads; hand the lead over first, and ask the next one");
        }
        self.propose()?;
        let raft = &self.raw.raft;
        if raft.pending_conf_index > raft.raft_log.applied || self.meta.meta().auto_leave {
            return refused("another change is not finished; try again in a second");
        }
        self.raw.propose_conf_change(Vec::new(), conf_change(&change)).map_err(failed("propose a change of members"))?;
        self.proposed = Some(change);
        Ok(())
    }

    /// Hands the lead over to `node`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: why not.
    pub fn transfer(&mut self, node: NodeId) -> Result<()> {
        let refused = |reason: String| Err(Error::invalid("transfer", reason));
        if self.raw.raft.state != StateRole::Leader {
            return refused("this node does not lead".to_owned());
        }
        if !self.raw.raft.prs().conf().voters().contains(node.0) {
            return refused(format!("node {node} does not vote"));
        }
        self.propose()?;
        if node != self.meta.meta().node {
            self.raw.transfer_leader(node.0);
        }
        self.pump()
    }

    /// Messages for other hosts, in order; of those that carry frames only the heads.
    pub fn take_messages(&mut self) -> Vec<Raft> {
        let messages = std::mem::take(&mut self.outbox);
        messages.into_iter().filter_map(|m| to_wire(&m, self.raw.store())).collect()
    }

    /// Whether there are messages to take.
    #[inline]
    pub fn has_messages(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The members, if they have changed since this was last asked.
    pub fn take_members(&mut self) -> Option<Vec<Member>> {
        std::mem::take(&mut self.members_changed).then(|| self.meta.meta().seats.iter().map(Seat::member).collect())
    }

    /// Writes down durably that frames up to here are committed, so that a start knows it.
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

    /// Sets after how many ticks without a leader it stands for election next: for simulations.
    pub fn set_election_ticks(&mut self, ticks: usize) {
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    /// Another host says who it is: it is noted, durably, before it is answered.
    ///
    /// # Errors
    /// [`Error::Invalid`]: why it is not heard; [`Error::Io`].
    pub fn greet(&mut self, other: &Greeting) -> Result<()> {
        let last = self.frames().last();
        greet(&mut self.meta, last, other)
    }

    /// The host `node`, which is of `epoch`, has answered; if it is of this host's epoch, it has noted this host.
    ///
    /// # Errors
    /// [`Error::Io`]: `raft.meta` cannot be written.
    pub fn met(&mut self, node: NodeId, epoch: u64) -> Result<()> {
        self.meetings.met(&mut self.meta, node, epoch)
    }

    /// The host `node` does not hear this one, for `reason`.
    pub fn refused(&mut self, node: NodeId, reason: String) {
        self.meetings.refused(node, reason);
    }

    /// Whether it may elect itself: nothing in raft keeps the old leader of a pair from leading while another has been
    /// promoted by force, so it has to hear first from each that can have been.
    pub fn may_elect_itself(&self) -> bool {
        self.state().role == Role::Leader || self.meetings.unasked(self.meta(), self.is_pair()).is_empty()
    }

    /// What keeps this host from voting or leading, and is for an operator to know.
    pub fn waits(&self) -> Option<String> {
        self.meetings.waits(self.meta(), self.is_pair(), self.state().role == Role::Leader)
    }

    /// Whether the host `node` has not been heard of for long, or is no member. A leader that has just begun has heard of nobody yet.
    pub fn is_away(&self, node: NodeId) -> bool {
        self.others.is_away(&self.raw, node)
    }

    /// Up to which frame the member that does not vote and has most has the log; `None` if there is no such member.
    pub fn standby_matched(&self) -> Option<u64> {
        standby_matched(&self.raw)
    }

    /// `node` has a log that ends with frame `last`, by its own word. If this leader's log does not reach back to what it
    /// takes that member to have, it goes on from there; whether the two logs are one is found out as ever.
    /// `lacks_copy`: it waits for a copy of the leader's store.
    pub fn reached(&mut self, node: NodeId, last: u64, lacks_copy: bool) {
        self.others.reached(&mut self.raw, node, last, lacks_copy);
    }

    /// How this leader sees the other members; of a node that does not lead, nothing.
    pub fn progress(&self) -> Vec<Progress> {
        self.others.progress(&self.raw)
    }

    /// Why `change` is not to be made by this leader: of the voters that there would be, fewer than a majority are there. Who
    /// does not lead does not know.
    pub fn would_stop(&self, change: &Change) -> Option<String> {
        self.others.would_stop(&self.raw, change)
    }

    /// The first frame that a member may still ask for; of a host that does not lead it is not known, and is the first
    /// that there is: should it lead, others may be far behind.
    pub fn needed(&self) -> u64 {
        needed(&self.raw)
    }

    /// Deals with whatever raft has ready.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub fn pump(&mut self) -> Result<()> {
        self.propose()?;
        loop {
            self.release();
            // What raft has begun itself must be in the log before raft may think so.
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

    /// Up to which frame this host says that it has them.
    fn counts(&self) -> u64 {
        if !self.is_lossy {
            return self.durable;
        }
        // Members are as of a frame that a start will find, `raft.meta` says so durably; and a number that has been given to a
        // name is not given to another.
        self.weighty.first().map_or(self.raw.store().last(), |index| index - 1)
    }

    /// Lets go what waited for frames that are durable now.
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

    /// Members change with the frame that says so, once it is committed.
    fn apply(&mut self, committed: &[Entry]) -> Result<()> {
        for entry in committed.iter().filter(|e| e.get_entry_type() != EntryType::EntryNormal) {
            let Some(change) = self.changes.remove(&entry.index) else { continue };
            let state = self.raw.apply_conf_change(&conf_change(&change)).map_err(failed("change the members"))?;
            let meta = self.meta.meta();
            let seats = seats(&state, &meta.seats, &change);
            let commit = meta.commit.max(entry.index);
            let (membership, auto_leave) = (entry.index, state.auto_leave);
            self.raw.mut_store().conf_state = state;
            // A number that is no member's any more may come back with another store.
            let mut met = meta.met.clone();
            met.retain(|node, _| seats.iter().any(|s| s.node == *node));
            self.meta.update(Meta { seats, met, commit, membership, auto_leave, ..self.meta.meta().clone() })?;
            self.members_changed = true;
            self.resign();
        }
        Ok(())
    }

    /// A leader that has lost its vote tells the others so and leads no longer: raft leaves that to its owner, and takes it
    /// that a leader is a member.
    fn resign(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.prs().conf().voters().contains(raft.id) {
            raft.bcast_append();
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }
}
