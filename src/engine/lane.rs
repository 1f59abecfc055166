//! Owns: a lane, what the ingest agent knows of one attached publisher.
//!
//! What must hold: a batch is taken from the publisher's queue once; what does not fit in a frame waits here, before
//! what came after it.

use std::collections::VecDeque;

use super::core::{Core, Offer};
use super::forward::Passed;
use crate::bus::{Batch, Receiver};
use crate::lsn::{Epoch, Level, Lsn, PubSeq, PublisherId};
use crate::shm::control::{Control, Slot, SlotState, Statistic};

/// An attached publisher.
pub(super) struct Lane {
    pub(super) connection: u64,
    pub(super) publisher: PublisherId,
    pub(super) epoch: Epoch,
    pub(super) level: Level,
    pub(super) slot_index: usize,
    pub(super) slot: Slot,
    pub(super) receiver: Receiver,
    /// What is in the log and not committed.
    pub(super) uncommitted: VecDeque<(Lsn, PubSeq)>,
    /// What of it has been passed on to the leader.
    pub(super) passed: Passed,
    /// Taken from the queue, but did not fit in the frame.
    pub(super) pending: Option<Batch>,
    /// Whether the publisher has been told of the gap that it is in.
    pub(super) in_gap: bool,
    pub(super) fenced: bool,
    pub(super) gone: bool,
    /// Its queue cannot be read any more.
    pub(super) failed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Done,
    FrameFull,
}

impl Lane {
    /// The next batch that its publisher has sent.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        if let Some(batch) = self.pending.take() {
            return Some(batch);
        }
        match self.receiver.receive() {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(%error, publisher = self.publisher.0, "a publisher's service fails; it is let go");
                self.slot.set_state(SlotState::Refused);
                (self.gone, self.failed) = (true, true);
                None
            }
        }
    }

    /// Records up to `lsn` are committed.
    pub(super) fn committed(&mut self, lsn: Lsn) {
        while let Some((lsn, pub_seq)) = self.uncommitted.pop_front_if(|u| u.0 <= lsn) {
            self.slot.ack_committed(pub_seq, lsn);
        }
    }

    /// Offers `batch` to the frame that is being filled.
    pub(super) fn take(&mut self, batch: Batch, core: &mut Core, control: &Control) -> Taken {
        let header = batch.header();
        if header.publisher() != self.publisher {
            control.add(Statistic::Malformed, 1);
            self.slot.set_state(SlotState::Refused);
            return Taken::Done;
        }
        match core.offer(header, batch.words()) {
            Offer::Accepted => self.in_gap = false,
            Offer::Duplicate => {}
            Offer::Gap(expected) => {
                control.add(Statistic::Gaps, 1);
                if !std::mem::replace(&mut self.in_gap, true) {
                    self.slot.gap(expected);
                }
            }
            Offer::Fenced => {
                control.add(Statistic::Fenced, 1);
                self.slot.set_state(SlotState::Fenced);
            }
            Offer::Malformed => {
                control.add(Statistic::Malformed, 1);
                self.slot.set_state(SlotState::Refused);
                tracing::error!(publisher = self.publisher.0, ?header, "a publisher sent a malformed batch; it is refused");
            }
            Offer::FrameFull => {
                self.pending = Some(batch);
                return Taken::FrameFull;
            }
        }
        Taken::Done
    }
}
