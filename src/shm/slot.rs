//! Owns: the slots of the control page, one a granted publisher: how far its records have come.
//!
//! ```text
//! 256 B each   +0 grant u64 · 8 publisher u64 · 16 epoch u64 · 24 state u64    written by ingest
//!              +32 accepted pub_seq · 40 its LSN · 48 gap count · 56 gap expected · 64 duplicates
//!              +72 the unregistered instrument for which it is refused, + 1; 0: for something else
//!              +128 durable pub_seq · 136 its LSN                              written by sync
//!              +192 committed pub_seq · 200 its LSN                            rising, by sync alone or by ingest in a cluster
//! ```
//!
//! What must hold: a slot's numbers belong to its grant only if the grant reads the same before and after them;
//! acknowledgements are never early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Mapping;
use crate::lsn::{Epoch, InstrumentId, Level, Lsn, PubSeq, PublisherId};

/// Bytes of a slot.
pub(super) const SLOT_LEN: u64 = 256;

/// What a slot's publisher may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum SlotState {
    /// Not granted.
    Free = 0,
    /// Granted.
    Attached = 1,
    /// A newer epoch of the same publisher is attached.
    Fenced = 2,
    /// A batch was malformed; the grant is refused from then on.
    Refused = 3,
    /// Storage cannot receive what it sends, for want of descriptors, maps or memory; to go on it attaches again.
    Unreceived = 4,
}

/// What a publisher reads from its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// What it may do.
    pub state: SlotState,
    /// In the log file: everything up to here.
    pub accepted: PubSeq,
    /// LSN of `accepted`.
    pub accepted_lsn: Lsn,
    /// Durable: everything up to here.
    pub durable: PubSeq,
    /// LSN of `durable`.
    pub durable_lsn: Lsn,
    /// Committed: everything up to here.
    pub committed: PubSeq,
    /// LSN of `committed`.
    pub committed_lsn: Lsn,
    /// Rises whenever storage sees a jump; `gap_expected` then says what it waits for.
    pub gap_count: u64,
    /// What storage expects next, as of the newest gap.
    pub gap_expected: PubSeq,
    /// The instrument that was never registered and of which it sent a record: why it is refused, if it is for that.
    pub unregistered: Option<InstrumentId>,
}

impl SlotView {
    /// How far the publisher has come at `level`; [`Level::None`] promises nothing, and gives what is in the log.
    pub fn reached(&self, level: Level) -> PubSeq {
        match level {
            Level::None | Level::Os => self.accepted,
            Level::Fsync => self.durable,
            Level::Standby | Level::Quorum | Level::QuorumOs => self.committed,
        }
    }
}

/// One publisher's slot.
#[derive(Clone, Debug)]
pub struct Slot {
    pub(super) map: Arc<Mapping>,
    pub(super) base: u64,
}

impl Slot {
    #[inline]
    fn word(&self, offset: u64) -> &AtomicU64 {
        self.map.u64(self.base + offset)
    }

    /// Grants the slot: everything up to `accepted` of this epoch is durable.
    pub fn grant(&self, grant: u64, publisher: PublisherId, epoch: Epoch, accepted: PubSeq, lsn: Lsn) {
        self.free();
        // SYNC: orders "no grant" before the new numbers; pairs with the fence in `view`.
        fence(Ordering::Release);
        self.word(8).store(u64::from(publisher.0), Ordering::Relaxed);
        self.word(16).store(u64::from(epoch.0), Ordering::Relaxed);
        self.word(24).store(SlotState::Attached as u64, Ordering::Relaxed);
        self.word(48).store(0, Ordering::Relaxed);
        self.word(64).store(0, Ordering::Relaxed);
        self.word(72).store(0, Ordering::Relaxed);
        self.accept(accepted, lsn);
        self.ack_durable(accepted, lsn);
        self.word(192).store(accepted.0, Ordering::Relaxed);
        self.word(200).store(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with the first load in `view`.
        self.word(0).store(grant, Ordering::Release);
    }

    /// Takes the grant back.
    pub fn free(&self) {
        self.word(0).store(0, Ordering::Release);
        // SYNC: pairs with the load of the state in `view`: whoever sees it free finds the grant gone at its second look.
        self.word(24).store(SlotState::Free as u64, Ordering::Release);
    }

    /// Changes what the publisher may do.
    pub fn set_state(&self, state: SlotState) {
        // SYNC: pairs with `view`.
        self.word(24).store(state as u64, Ordering::Release);
    }

    /// Refuses its publisher for good: it sent a record of `instrument`, which was never registered.
    pub fn refuse_instrument(&self, instrument: InstrumentId) {
        self.word(72).store(u64::from(instrument.0) + 1, Ordering::Relaxed);
        self.set_state(SlotState::Refused);
    }

    /// Everything up to `pub_seq`, of LSN `lsn`, is in the log file.
    pub fn accept(&self, pub_seq: PubSeq, lsn: Lsn) {
        self.word(40).store(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(32).store(pub_seq.0, Ordering::Release);
    }

    /// Everything up to `pub_seq`, of LSN `lsn`, is durable.
    pub fn ack_durable(&self, pub_seq: PubSeq, lsn: Lsn) {
        self.word(136).store(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(128).store(pub_seq.0, Ordering::Release);
    }

    /// Everything up to `pub_seq`, of LSN `lsn`, is committed.
    pub fn ack_committed(&self, pub_seq: PubSeq, lsn: Lsn) {
        self.word(200).fetch_max(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(192).fetch_max(pub_seq.0, Ordering::Release);
    }

    /// Storage waits for `expected`.
    pub fn gap(&self, expected: PubSeq) {
        self.word(56).store(expected.0, Ordering::Relaxed);
        let count = self.word(48).load(Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(48).store(count + 1, Ordering::Release);
    }

    /// What the holder of `grant` is told; `None` if the grant has ended.
    #[inline]
    pub fn view(&self, grant: u64) -> Option<SlotView> {
        // SYNC: pairs with the last store in `grant`.
        if self.word(0).load(Ordering::Acquire) != grant {
            return None;
        }
        let gap_count = self.word(48).load(Ordering::Acquire);
        let view = SlotView {
            state: match self.word(24).load(Ordering::Acquire) {
                1 => SlotState::Attached,
                2 => SlotState::Fenced,
                3 => SlotState::Refused,
                4 => SlotState::Unreceived,
                _ => return None,
            },
            accepted: PubSeq(self.word(32).load(Ordering::Acquire)),
            accepted_lsn: Lsn(self.word(40).load(Ordering::Relaxed)),
            durable: PubSeq(self.word(128).load(Ordering::Acquire)),
            durable_lsn: Lsn(self.word(136).load(Ordering::Relaxed)),
            committed: PubSeq(self.word(192).load(Ordering::Acquire)),
            committed_lsn: Lsn(self.word(200).load(Ordering::Relaxed)),
            gap_count,
            gap_expected: PubSeq(self.word(56).load(Ordering::Relaxed)),
            unregistered: self.word(72).load(Ordering::Relaxed).checked_sub(1).map(|i| InstrumentId(i as u32)),
        };
        // SYNC: orders the numbers before the second look at the grant; pairs with the fence in `grant`.
        fence(Ordering::Acquire);
        (self.word(0).load(Ordering::Relaxed) == grant).then_some(view)
    }

    /// Who holds the slot: grant, publisher, epoch; `None` if nobody does.
    pub fn holder(&self) -> Option<(u64, PublisherId, Epoch)> {
        let grant = self.word(0).load(Ordering::Acquire);
        let publisher = PublisherId(self.word(8).load(Ordering::Relaxed) as u16);
        (grant != 0).then(|| (grant, publisher, Epoch(self.word(16).load(Ordering::Relaxed) as u32)))
    }
}
