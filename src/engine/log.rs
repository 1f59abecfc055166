//! Owns: the log as a host's state machine uses it: the store's state, raft's node over its frames, frames that the sync agent
//! was not notified of, answers that wait for a commit, and the effects to carry out.
//!
//! What must hold: a frame is in the log before raft, the sync agent or a publisher is notified of it. An answer is sent after
//! the very frame that it rests on is committed, not another frame of the same index. After a failed sync nothing more is
//! acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Effect, Moment};
use super::flush::{FlushItem, FlushNotice};
use super::sessions::Sessions;
use super::space::Room;
use super::state::{AppliedFrame, Readiness, StoreState};
use super::sync::{Answer, SYNC_QUEUE, SyncItem};
use super::traces::Traces;
use super::watermarks::Watermarks;
use crate::consensus::Node;
use crate::consensus::message::{Message, Role};
use tapestore::agent::Stop;
use tapestore::bus::attach::Message as Reply;
use tapestore::error::{Error, Result};
use tapestore::lsn::{Lsn, Position, PubSeq};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::bell::Bell;
use tapestore::shm::control::{BackPressure, Control, NO_SPACE, Statistic};
use tapestore::wal::{Appended, DurableMark, FrameType};

/// Items that wait for the sync agent before publishers are put under back-pressure.
const SYNC_ITEMS_MAX: usize = SYNC_QUEUE / 2;
/// The sync agent is notified after this long at the latest, or after this many bytes.
pub(super) const NOTIFY_AFTER: Duration = Duration::from_millis(2);
const NOTIFY_BYTES: u64 = 1 << 20;

/// Frames of which the sync agent is notified together, so that it is not woken for each.
#[derive(Default)]
struct Unsent {
    end: Option<DurableMark>,
    since: u64,
    is_urgent: bool,
    acks: Vec<(usize, PubSeq, Lsn)>,
}

impl Unsent {
    fn is_due(&self, now: u64, durable: Position) -> bool {
        let Some(end) = self.end else { return false };
        now.saturating_sub(self.since) > NOTIFY_AFTER.as_nanos() as u64 || end.position.0.saturating_sub(durable.0) > NOTIFY_BYTES
    }

    /// Adds an acknowledgement, which covers the slot's earlier ones.
    fn ack(&mut self, slot: usize, pub_seq: PubSeq, lsn: Lsn) {
        match self.acks.iter_mut().find(|a| a.0 == slot) {
            Some(earlier) => *earlier = (slot, pub_seq, lsn),
            None => self.acks.push((slot, pub_seq, lsn)),
        }
    }
}

/// Identifies a frame in a cluster's log: two logs that both have it are identical up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// Its index.
    pub(super) index: u64,
    /// Its term.
    pub(super) term: u64,
}

/// State of a frame that something waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is not committed here yet.
    Open,
    /// It is in this log, and committed.
    Committed,
    /// Another frame has its index, or the term of that index is no longer known.
    Lost,
}

/// Parts of a log.
pub(super) struct LogParts {
    pub(super) state: StoreState,
    pub(super) node: Node,
    pub(super) watermarks: Arc<Watermarks>,
    pub(super) control: Control,
    pub(super) room: Arc<Room>,
    pub(super) halted: Stop,
    pub(super) unsynced_max: u64,
    pub(super) is_lossy: bool,
}

/// The log of a host.
pub(super) struct Log {
    parts: LogParts,
    unsent: Unsent,
    /// Answers that wait until a frame is committed.
    held: VecDeque<(At, u64, Reply)>,
    /// Since when back-pressure is on.
    held_since: Option<u64>,
    /// Whether an operator wants a flush that has not begun.
    wants_flush: bool,
    effects: Vec<Effect>,
}

impl Log {
    pub(super) fn new(parts: LogParts) -> Log {
        Log { parts, unsent: Unsent::default(), held: VecDeque::new(), held_since: None, wants_flush: false, effects: Vec::new() }
    }

    /// Exchanges `effects`, which is empty, for the effects to carry out, in order.
    pub(super) fn swap_effects(&mut self, effects: &mut Vec<Effect>) {
        debug_assert!(effects.is_empty(), "earlier effects are carried out first");
        std::mem::swap(&mut self.effects, effects);
    }

    /// Whether there are effects to carry out.
    #[inline]
    pub(super) fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Adds `effect` to the effects to carry out.
    pub(super) fn ask(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Sends `message` to the replication process.
    pub(super) fn notify(&mut self, message: Message) {
        self.effects.push(Effect::Notify(message));
    }

    /// The store's state.
    pub(super) fn state(&mut self) -> &mut StoreState {
        &mut self.parts.state
    }

    /// Raft's node.
    pub(super) fn node(&self) -> &Node {
        &self.parts.node
    }

    /// Raft's node, to step it.
    pub(super) fn node_mut(&mut self) -> &mut Node {
        &mut self.parts.node
    }

    /// Where the moments of sampled frames go.
    pub(super) fn traces(&self) -> &Traces {
        self.parts.state.traces()
    }

    /// The control page.
    pub(super) fn control(&self) -> &Control {
        &self.parts.control
    }

    /// The numbers that the agents share.
    pub(super) fn covered(&self) -> &Watermarks {
        &self.parts.watermarks
    }

    /// Whether this host is the only one of its cluster.
    pub(super) fn is_alone(&self) -> bool {
        self.parts.watermarks.is_alone()
    }

    /// Whether other hosts receive acknowledgements of frames before they are durable here.
    pub(super) fn is_lossy(&self) -> bool {
        self.parts.is_lossy
    }

    /// Whether this host numbers records now.
    pub(super) fn numbers(&self) -> bool {
        self.parts.node.leads().is_some()
    }

    /// Whether this host leads other hosts.
    pub(super) fn leads_others(&self) -> bool {
        self.parts.node.state().role == Role::Leader && !self.is_alone()
    }

    /// The log's end.
    pub(super) fn end(&self) -> Position {
        self.parts.state.writer.chain().position
    }

    /// The last frame.
    pub(super) fn last(&self) -> At {
        let frames = self.parts.node.frames();
        let index = frames.last();
        At { index, term: frames.term_of(index).unwrap_or(0) }
    }

    /// The state of the frame `at`.
    pub(super) fn fate(&self, at: At) -> Fate {
        let (frames, node) = (self.parts.node.frames(), &self.parts.node);
        if at.index > node.committed().min(frames.last()) {
            return Fate::Open;
        }
        let is_same = frames.term_of(at.index) == Some(at.term) || sabotage::is(Sabotage::AnswerByIndex);
        if is_same { Fate::Committed } else { Fate::Lost }
    }

    /// Whether the log has room for a frame, regardless of the MemTables.
    ///
    /// # Errors
    /// [`Error::Halted`] if a write has failed.
    pub(super) fn is_writable(&mut self) -> Result<bool> {
        self.parts.state.writer.ready()
    }

    /// Whether the disk is short of space, so that it may be long before the log can be written.
    pub(super) fn has_no_space(&self) -> bool {
        self.parts.room.is_low() || self.parts.room.is_refused()
    }

    /// Whether the disk is so nearly full that no records are accepted.
    pub(super) fn is_low(&self) -> bool {
        self.parts.room.is_low()
    }

    /// Whether back-pressure is on; `Some(true)` if it may last.
    pub(super) fn back_pressure(&self) -> Option<bool> {
        self.held_since.map(|_| self.parts.control.statistic(Statistic::BackPressure) == NO_SPACE)
    }

    /// Returns an error after a failed sync: nothing goes on then.
    fn check_halted(&self) -> Result<()> {
        if self.parts.halted.is_stopped() {
            return Err(Error::Halted { op: "sync of the log", cause: "the sync agent has logged the cause".to_owned() });
        }
        Ok(())
    }

    /// Whether a frame can be accepted while `backlog` items wait for the sync agent. Sets back-pressure, and counts its time.
    ///
    /// # Errors
    /// [`Error::Halted`] if a write or a sync has failed.
    pub(super) fn has_room(&mut self, now: u64, backlog: usize) -> Result<bool> {
        self.check_halted()?;
        let LogParts { state, room, control, unsynced_max, .. } = &mut self.parts;
        let unsynced = state.writer.chain().position.0.saturating_sub(control.durable_position().0);
        let ready = state.is_ready()?;
        if let Some(stuck) = state.take_stuck() {
            self.effects.push(Effect::Flush(FlushItem::Sealed(stuck)));
        }
        let why = match ready {
            _ if room.is_low() => NO_SPACE,
            Readiness::MemTableFull | Readiness::NoSegment if room.is_refused() => NO_SPACE,
            Readiness::MemTableFull => 1,
            Readiness::NoSegment => 2,
            Readiness::Ready if unsynced > *unsynced_max || backlog > SYNC_ITEMS_MAX => 2,
            Readiness::Ready => 0,
        };
        if why == NO_SPACE && control.statistic(Statistic::BackPressure) != NO_SPACE {
            control.add(Statistic::NoSpace, 1);
        }
        match (why, self.held_since) {
            (0, None) => {}
            (0, Some(since)) => {
                self.held_since = None;
                control.add(Statistic::BackPressureNs, now.saturating_sub(since));
                control.set_back_pressure(None, now);
            }
            (why, None) => {
                self.held_since = Some(now);
                control.set_back_pressure(BackPressure::from_raw(why), now);
                if why == 1 {
                    let full = state.memtables.full();
                    tracing::warn!(name: "storage.back_pressure", %full, "publishers are under back-pressure");
                }
            }
            (why, Some(since)) => {
                // Counted while it lasts, so that a look from outside finds it.
                self.held_since = Some(now);
                control.add(Statistic::BackPressureNs, now.saturating_sub(since));
                control.set_statistic(Statistic::BackPressure, why);
            }
        }
        Ok(why == 0)
    }

    /// Appends the frame that has been filled, if it holds anything, applies it and notifies all that wait for it.
    ///
    /// # Errors
    /// [`Error::Halted`] if a write or a sync has failed.
    pub(super) fn append(&mut self, at: Moment, sessions: &mut Sessions) -> Result<()> {
        let Some(applied) = self.parts.state.append(at.wall)? else { return Ok(()) };
        self.propose(&applied.appended)?;
        self.note(applied, at.now, sessions)
    }

    /// Notifies all that wait for a frame, which was appended and applied.
    ///
    /// # Errors
    /// [`Error::Halted`] if a sync has failed meanwhile.
    pub(super) fn note(&mut self, applied: AppliedFrame, now: u64, sessions: &mut Sessions) -> Result<()> {
        if let Some(sealed) = applied.sealed {
            self.effects.push(Effect::Flush(FlushItem::Sealed(sealed)));
        }
        self.effects.push(Effect::Ring(Bell::Applied));
        // After a failed sync, a frame in the page cache may never reach the disk.
        self.check_halted()?;
        let Appended { end, opened, .. } = applied.appended;
        if let Some(opened) = opened {
            self.notify_sync();
            self.effects.push(Effect::Sync(SyncItem::Opened(opened)));
        }
        let alone = self.is_alone();
        for (publisher, pub_seq, lsn) in applied.accepted {
            if let Some((slot, level)) = sessions.accepted(publisher, pub_seq, lsn, alone) {
                self.unsent.is_urgent |= level.waits_for_disk();
                self.unsent.ack(slot, pub_seq, lsn);
            }
        }
        self.effects.push(Effect::Ring(Bell::Ack));
        // Other hosts wait for this one, or it waits for them.
        self.unsent.is_urgent |= !alone && !self.parts.is_lossy;
        if self.unsent.end.replace(end).is_none() {
            self.unsent.since = now;
        }
        if self.unsent.is_urgent {
            self.notify_sync();
        }
        Ok(())
    }

    /// Seals the active MemTable if it holds records: they are flushed to SSTables once they are durable and committed.
    pub(super) fn seal(&mut self) {
        if let Some(sealed) = self.parts.state.seal_if_used() {
            self.effects.push(Effect::Flush(FlushItem::Sealed(sealed)));
        }
    }

    /// Notes that an operator wants the records in MemTables flushed.
    pub(super) fn want_flush(&mut self) {
        self.wants_flush = true;
    }

    /// Whether a flush is wanted and has not begun.
    pub(super) fn wants_flush(&self) -> bool {
        self.wants_flush
    }

    /// Begins a wanted flush once the next MemTable is ready, so that publishers do not wait for it.
    pub(super) fn flush_if_wanted(&mut self) {
        if self.wants_flush && (!self.parts.state.memtables.holds_records() || self.parts.state.memtables.is_next_ready()) {
            self.wants_flush = false;
            self.seal();
        }
    }

    /// Makes the frame appended last urgent: it counts once it is durable, regardless of the sync interval.
    pub(super) fn hurry(&mut self) {
        self.unsent.is_urgent = true;
    }

    /// Notifies the sync agent of the frames appended since the last notice.
    pub(super) fn notify_sync(&mut self) {
        let Some(end) = self.unsent.end.take() else { return };
        let urgent = std::mem::take(&mut self.unsent.is_urgent);
        self.effects.push(Effect::Sync(SyncItem::Appended { end, urgent, since: self.unsent.since }));
        for (slot, pub_seq, lsn) in std::mem::take(&mut self.unsent.acks) {
            self.effects.push(Effect::Sync(SyncItem::Ack { slot, pub_seq, lsn }));
        }
    }

    /// The same, if it is time.
    pub(super) fn notify_sync_if_due(&mut self, now: u64) {
        if self.unsent.is_due(now, self.parts.control.durable_position()) {
            self.notify_sync();
        }
    }

    /// Proposes a control entry that this leader has appended.
    ///
    /// # Errors
    /// As [`Node::tick`].
    pub(super) fn appended(&mut self, appended: Appended) -> Result<()> {
        self.propose(&appended)?;
        self.pass_to_sync(appended);
        Ok(())
    }

    /// Notifies the sync agent of a frame that somebody waits for.
    pub(super) fn pass_to_sync(&mut self, appended: Appended) {
        self.notify_sync();
        if let Some(opened) = appended.opened {
            self.effects.push(Effect::Sync(SyncItem::Opened(opened)));
        }
        self.effects.push(Effect::Sync(SyncItem::Appended { end: appended.end, urgent: true, since: 0 }));
    }

    /// Proposes a frame that this leader has appended to raft, and sends it to the other hosts, if there are any.
    fn propose(&mut self, appended: &Appended) -> Result<()> {
        debug_assert!(appended.header.kind() != FrameType::Pad);
        self.parts.node.proposed(&appended.header);
        if self.is_alone() {
            return Ok(());
        }
        self.parts.node.pump()?;
        self.send();
        Ok(())
    }

    /// Sends raft's pending messages.
    pub(super) fn send(&mut self) {
        if self.parts.node.has_messages() {
            let messages = self.parts.node.take_messages();
            self.effects.extend(messages.into_iter().map(|m| Effect::Notify(Message::Raft(m))));
        }
    }

    /// Answers on `connection` once everything up to now is durable, and in a cluster committed.
    pub(super) fn answer(&mut self, connection: u64, message: Reply) {
        let last = self.last();
        if self.is_alone() || sabotage::is(Sabotage::AnswerEarly) || (self.held.is_empty() && self.fate(last) == Fate::Committed)
        {
            return self.answer_now(connection, message);
        }
        self.held.push_back((last, connection, message));
    }

    /// Answers on `connection` at once: the answer rests on no frame that other hosts must have.
    pub(super) fn answer_now(&mut self, connection: u64, message: Reply) {
        self.notify_sync();
        self.effects.push(Effect::Sync(SyncItem::Answer(Answer::Say { connection, message })));
    }

    /// Sends the answers whose frames are committed.
    pub(super) fn release(&mut self) {
        let alone = self.is_alone();
        while let Some((at, ..)) = self.held.front() {
            let fate = if alone { Fate::Committed } else { self.fate(*at) };
            if fate == Fate::Open {
                return;
            }
            let Some((_, connection, message)) = self.held.pop_front() else { return };
            // When the frame is lost, the log is truncated and this process restarts: no answer is sent for it.
            if fate == Fate::Committed {
                self.answer_now(connection, message);
            }
        }
    }

    /// Handles a notice of the flush agent.
    pub(super) fn flushed(&mut self, notice: FlushNotice) {
        match notice {
            FlushNotice::Flushed(done) => {
                self.parts.state.memtables.flushed(done.table, done.seq);
                self.effects.push(Effect::Flush(FlushItem::Retired(done.table)));
            }
            FlushNotice::Edited(seq) => self.parts.state.memtables.edited(seq),
        }
    }
}
