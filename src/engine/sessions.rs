//! Owns: the publisher sessions of this host: the publisher and epoch in each slot, its records that are in the log and not
//! committed, and its batches that were forwarded to the leader.
//!
//! What must hold: a slot has one session. A session that was fenced is never acknowledged again. The state of a session is
//! bounded: by the uncommitted records, and by the window of forwarded batches.

use std::collections::VecDeque;

use super::state::{BatchOutcome, StoreState};
use tapestore::bus::BatchHeader;
use tapestore::lsn::{Durability, Epoch, Lsn, PubSeq, PublisherId};
use tapestore::manifest::PublisherState;
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::control::{Control, SLOTS_MAX, Slot, SlotState, Statistic};

/// Most bytes of a publisher's batches that are forwarded and not back in the log.
const WINDOW: u64 = 4 << 20;
/// A publisher's window is opened again if its records do not come back for this long.
const STALLED_NS: u64 = 500_000_000;
/// Most batches of an earlier session that a successor waits for: more than the bus holds.
const LAST_CALL: u32 = 1024;

/// One attached publisher.
struct Session {
    connection: u64,
    publisher: PublisherId,
    epoch: Epoch,
    level: Durability,
    slot: Slot,
    /// Records that are in the log and not committed.
    uncommitted: VecDeque<(Lsn, PubSeq)>,
    passed: Passed,
    /// Whether the publisher was notified of its gap.
    in_gap: bool,
    fenced: bool,
    /// Whether its process has ended: only the batches left in its queue are still accepted.
    gone: bool,
    /// Batches that a successor still waits for; `None` if no successor waits, or all have come.
    last_call: Option<u32>,
}

/// Batches of a session that were forwarded to the leader.
#[derive(Default)]
struct Passed {
    batches: VecDeque<(PubSeq, u64)>,
    bytes: u64,
    since: u64,
}

/// Outcome of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was handled.
    Done,
    /// It must be offered again, for the next frame.
    FrameFull,
}

/// A session to open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub(super) connection: u64,
    pub(super) publisher: PublisherId,
    /// The publisher's process; 0: unknown.
    pub(super) pid: u32,
    pub(super) level: Durability,
    pub(super) grant: u64,
    pub(super) state: PublisherState,
}

/// The sessions of a host.
pub(super) struct Sessions {
    control: Control,
    /// As long as the highest slot that was ever used: it is walked at every commit.
    by_slot: Vec<Option<Session>>,
    /// Number of sessions that wait for a standby.
    at_standby: usize,
    /// Slots with a session, in the order of their attach.
    order: Vec<usize>,
    /// Slots without a session.
    free: Vec<usize>,
}

impl Passed {
    /// Removes the batches up to `pub_seq`: the log holds them.
    fn arrived(&mut self, pub_seq: PubSeq, now: u64) {
        while let Some((_, bytes)) = self.batches.pop_front_if(|b| b.0 <= pub_seq) {
            self.bytes -= bytes;
            self.since = now;
        }
    }

    /// Forgets all batches: any may be lost.
    fn forget(&mut self) {
        *self = Passed::default();
    }
}

impl Session {
    fn end(&mut self, state: SlotState) {
        self.fenced |= state == SlotState::Fenced;
        self.slot.set_state(state);
    }
}

impl Sessions {
    /// No session.
    pub(super) fn new(control: Control) -> Sessions {
        // The lowest slots are used first.
        Sessions { control, by_slot: Vec::new(), at_standby: 0, order: Vec::new(), free: (0..SLOTS_MAX).rev().collect() }
    }

    /// Whether one more session can be opened.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Opens a session and fences the earlier ones of its publisher; returns its slot, or `None` if no slot is free.
    pub(super) fn open(&mut self, opening: Opening) -> Option<usize> {
        let Opening { connection, publisher, pid, level, grant, state } = opening;
        let index = self.free.pop()?;
        self.fence(publisher, None);
        let slot = self.control.slot(index);
        slot.grant(grant, (publisher, pid), state.epoch, state.last, state.lsn);
        let session = Session {
            connection,
            publisher,
            epoch: state.epoch,
            level,
            slot,
            uncommitted: VecDeque::new(),
            passed: Passed::default(),
            in_gap: false,
            fenced: false,
            gone: false,
            last_call: None,
        };
        if index >= self.by_slot.len() {
            self.by_slot.resize_with(index + 1, || None);
        }
        *self.by_slot.get_mut(index)? = Some(session);
        self.at_standby += usize::from(level == Durability::Standby);
        self.order.push(index);
        self.control.set_statistic(Statistic::Publishers, self.order.len() as u64);
        Some(index)
    }

    /// Whether a live process of this host publishes as `publisher`.
    pub(super) fn is_live(&self, publisher: PublisherId) -> bool {
        self.by_slot.iter().flatten().any(|s| s.publisher == publisher && !s.fenced && !s.gone)
    }

    /// Notes that the process of the session in `slot` has ended.
    pub(super) fn gone(&mut self, slot: usize) {
        if let Some(session) = self.by_slot.get_mut(slot).and_then(Option::as_mut) {
            session.gone = true;
        }
    }

    /// The session on `connection`, if there is one.
    pub(super) fn of(&self, connection: u64) -> Option<usize> {
        self.order.iter().copied().find(|s| self.session(*s).is_some_and(|s| s.connection == connection))
    }

    fn session(&self, slot: usize) -> Option<&Session> {
        self.by_slot.get(slot)?.as_ref()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Session> {
        self.by_slot.iter_mut().flatten()
    }

    /// Ends the session in `slot`; returns its connection. The slot can be used again after [`Sessions::freed`].
    pub(super) fn close(&mut self, slot: usize) -> Option<u64> {
        let session = self.by_slot.get_mut(slot)?.take()?;
        self.order.retain(|s| *s != slot);
        self.at_standby -= usize::from(session.level == Durability::Standby);
        session.slot.free();
        self.control.set_statistic(Statistic::Publishers, self.order.len() as u64);
        tracing::info!(name: "session.detached", publisher = session.publisher.0, "publisher detached");
        Some(session.connection)
    }

    /// Frees `slot`: no agent writes to it any more.
    pub(super) fn freed(&mut self, slot: usize) {
        if !sabotage::is(Sabotage::KeepSlot) {
            self.free.push(slot);
        }
    }

    /// Fences the sessions of `publisher` in epochs below `epoch`, or all of them: another epoch has begun.
    pub(super) fn fence(&mut self, publisher: PublisherId, below: Option<Epoch>) {
        let of = |s: &&mut Session| s.publisher == publisher && below.is_none_or(|epoch| s.epoch < epoch);
        self.all().filter(of).for_each(|s| s.end(SlotState::Fenced));
    }

    /// Ends the session in `slot`, whose batches can no longer be received: its publisher must attach again.
    pub(super) fn unreceived(&mut self, slot: usize) {
        if let Some(session) = self.by_slot.get_mut(slot).and_then(Option::as_mut) {
            session.end(SlotState::Unreceived);
        }
    }

    /// Ends the sessions of `publisher` in `epoch`, which the leader no longer accepts.
    pub(super) fn closed(&mut self, publisher: PublisherId, epoch: Epoch, is_fenced: bool) {
        let state = if is_fenced { SlotState::Fenced } else { SlotState::Refused };
        self.all().filter(|s| s.publisher == publisher && s.epoch == epoch).for_each(|s| s.end(state));
    }

    /// Notifies `publisher` of a gap: the leader expects an earlier record than those it received.
    pub(super) fn gap(&mut self, publisher: PublisherId, epoch: Epoch, expected: PubSeq) {
        for session in self.all().filter(|s| s.publisher == publisher && s.epoch == epoch && !s.fenced) {
            session.passed.forget();
            session.slot.gap(expected);
        }
    }

    /// Starts waiting for the batches of earlier sessions of `publisher`, for a successor.
    pub(super) fn call_last(&mut self, publisher: PublisherId) {
        self.all().filter(|s| s.publisher == publisher).for_each(|s| s.last_call = Some(LAST_CALL));
    }

    /// Whether a successor of `publisher` still waits for batches of earlier sessions.
    pub(super) fn is_called(&self, publisher: PublisherId) -> bool {
        let is_open = |s: &Session| s.last_call.is_some() && s.passed.bytes < WINDOW;
        self.by_slot.iter().flatten().any(|s| s.publisher == publisher && is_open(s))
    }

    /// Notes that the queue of `slot` is empty.
    pub(super) fn is_empty(&mut self, slot: usize) {
        if let Some(session) = self.by_slot.get_mut(slot).and_then(Option::as_mut) {
            session.last_call = None;
        }
    }

    /// Notes that the log holds records of `publisher` up to `pub_seq`, and remembers them until they are committed. Returns
    /// the slot and the level.
    pub(super) fn accepted(
        &mut self,
        publisher: PublisherId,
        pub_seq: PubSeq,
        lsn: Lsn,
        alone: bool,
    ) -> Option<(usize, Durability)> {
        let slots = self.order.iter().rev().copied();
        let slot = slots.into_iter().find(|s| self.session(*s).is_some_and(|s| s.publisher == publisher && !s.fenced))?;
        let session = self.by_slot.get_mut(slot)?.as_mut()?;
        session.slot.accept(pub_seq, lsn);
        // On a host that is alone the sync agent acknowledges: no other host could truncate the record.
        if !alone || sabotage::is(Sabotage::KeepUncommitted) {
            session.uncommitted.push_back((lsn, pub_seq));
        }
        if sabotage::is(Sabotage::AckEarly) {
            session.slot.ack_durable(pub_seq, lsn);
            session.slot.ack_committed(pub_seq, lsn);
        }
        Some((slot, session.level))
    }

    /// Acknowledges committed records: up to `lsn`, or up to `at_standby` for sessions of level `standby`.
    pub(super) fn committed(&mut self, lsn: Lsn, at_standby: Lsn) {
        for session in self.all() {
            let upto = if session.level == Durability::Standby { at_standby } else { lsn };
            while let Some((lsn, pub_seq)) = session.uncommitted.pop_front_if(|u| u.0 <= upto) {
                session.slot.ack_committed(pub_seq, lsn);
            }
        }
    }

    /// Whether any session needs a standby's acknowledgement.
    pub(super) fn wait_for_standby(&self) -> bool {
        self.at_standby > 0
    }

    /// Forgets the forwarded batches of all sessions: any may be lost.
    pub(super) fn forget_passed(&mut self) {
        self.all().for_each(|s| s.passed.forget());
    }

    /// Offers a batch of `slot` to the frame that is being filled.
    pub(super) fn take(&mut self, slot: usize, header: BatchHeader, words: &[u64], core: &mut StoreState) -> Taken {
        let control = &self.control;
        let Some(session) = self.by_slot.get_mut(slot).and_then(Option::as_mut) else { return Taken::Done };
        if header.publisher() != session.publisher {
            control.add(Statistic::Malformed, 1);
            session.end(SlotState::Refused);
            return Taken::Done;
        }
        match core.accept(header, words) {
            BatchOutcome::Accepted => session.in_gap = false,
            BatchOutcome::Duplicate => {}
            BatchOutcome::Gap(expected) => {
                control.add(Statistic::Gaps, 1);
                if !std::mem::replace(&mut session.in_gap, true) {
                    session.slot.gap(expected);
                }
            }
            BatchOutcome::Fenced => {
                control.add(Statistic::Fenced, 1);
                session.end(SlotState::Fenced);
            }
            BatchOutcome::Malformed => {
                control.add(Statistic::Malformed, 1);
                session.end(SlotState::Refused);
                tracing::error!(
                    name: "session.malformed_batch",
                    publisher = session.publisher.0,
                    ?header,
                    "refused a publisher: it sent a malformed batch. Build its program with the release that serves \
                     the store, then start it again"
                );
            }
            BatchOutcome::Unregistered(instrument) => {
                control.add(Statistic::Malformed, 1);
                session.slot.refuse_instrument(instrument);
                let publisher = session.publisher.0;
                tracing::error!(
                    name: "session.unregistered_instrument", publisher, %instrument,
                    "a publisher sent a record of no registered instrument; it is refused"
                );
            }
            BatchOutcome::FrameFull => return Taken::FrameFull,
        }
        session.count_last();
        Taken::Done
    }

    /// Whether the window of `slot` has room to forward one more batch. `last` returns up to where the log holds a
    /// publisher's records.
    pub(super) fn has_window(&mut self, slot: usize, last: impl FnOnce(PublisherId) -> PubSeq, now: u64) -> bool {
        let Some(session) = self.by_slot.get_mut(slot).and_then(Option::as_mut) else { return false };
        if session.passed.bytes == 0 {
            return true;
        }
        session.passed.arrived(last(session.publisher), now);
        if session.passed.bytes >= WINDOW && now.saturating_sub(session.passed.since) > STALLED_NS {
            session.passed.forget();
        }
        session.passed.bytes < WINDOW
    }

    /// Whether a batch of `slot` with this header and this many bytes must be forwarded to the leader; it then counts as
    /// forwarded. The log holds its publisher's records up to `last`.
    pub(super) fn pass_on(&mut self, slot: usize, header: BatchHeader, bytes: u64, last: PubSeq, now: u64) -> bool {
        let Some(session) = self.by_slot.get_mut(slot).and_then(Option::as_mut) else { return false };
        session.count_last();
        if header.publisher() != session.publisher {
            self.control.add(Statistic::Malformed, 1);
            session.end(SlotState::Refused);
            return false;
        }
        let end = PubSeq(header.first_pub_seq().0.saturating_add(u64::from(header.count())).saturating_sub(1));
        if header.epoch() == session.epoch && end <= last {
            self.control.add(Statistic::Duplicates, u64::from(header.count()));
            return false;
        }
        if session.passed.bytes == 0 {
            session.passed.since = now;
        }
        session.passed.bytes += bytes;
        session.passed.batches.push_back((end, bytes));
        true
    }
}

#[cfg(test)]
impl Sessions {
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.by_slot.iter().flatten().map(|s| s.uncommitted.len()).sum(), self.free.len())
    }
}

impl Session {
    /// Counts a batch of those that a successor waits for.
    fn count_last(&mut self) {
        self.last_call = self.last_call.and_then(|left| left.checked_sub(1)).filter(|left| *left > 0);
    }
}
