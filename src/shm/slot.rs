//! Owns: the slots of the control page, one per publisher session: acknowledged sequence numbers and session state.
//!
//! ```text
//! 256 B each, words of u64; storage writes all of them, other processes only read
//!                                                          written by          used by
//! +0    grant; 0: free                                     ingest, start       the publisher, `tape`
//! +8    publisher                                          ingest              `tape`
//! +16   epoch                                              ingest              `tape`
//! +24   state                                              ingest, start       the publisher, `tape`
//! +32   accepted pub_seq                                   ingest              the publisher, `tape`
//! +40   its LSN                                            ingest              the publisher
//! +48   gap count                                          ingest              the publisher, `tape`
//! +56   gap expected                                       ingest              the publisher
//! +64   reserved, zero                                     ingest              nobody
//! +72   the unregistered instrument for which the session
//!       is refused, + 1; 0: another reason                 ingest              the publisher
//! +80   process id of the publisher; 0: unknown            ingest              `tape`
//! +88   unused, to +127
//! +128  durable pub_seq                                    sync                the publisher, `tape`
//! +136  its LSN                                            sync                nobody
//! +144  unused, to +191
//! +192  committed pub_seq; rises during a grant            sync or ingest      the publisher
//! +200  its LSN                                            sync or ingest      nobody
//! +208  unused, to +255
//! ```
//!
//! - `ingest` and `sync` are the agents of storage. `start` is the thread that starts storage: it frees all slots before
//!   the agents run.
//! - At a grant ingest writes the durable and committed words too. Sync writes nothing to the slot at that time: it has
//!   handled all acknowledgements of the previous session before the slot is granted again.
//! - Committed: sync writes it while this host is alone, since a record that is durable here is committed then. In a
//!   cluster ingest writes it.
//! - `tape` is `tape status`, and the commands that choose a free publisher number. [`Slot::view`] loads every word
//!   except +8, +16 and +64.
//!
//! What must hold: a slot's numbers belong to a grant only if the grant reads the same before and after them.
//! Acknowledgements are never early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Mapping;
use crate::lsn::{Durability, Epoch, InstrumentId, Lsn, PubSeq, PublisherId};

/// Bytes of a slot.
pub(super) const SLOT_LEN: u64 = 256;

/// State of a slot's publisher session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum SlotState {
    /// Not granted.
    Free = 0,
    /// Granted.
    Attached = 1,
    /// A newer epoch of the same publisher is attached.
    Fenced = 2,
    /// A batch was malformed; storage refuses all later ones of this grant.
    Refused = 3,
    /// Storage lacks descriptors, maps or memory to receive from it; the publisher must attach again.
    Unreceived = 4,
}

impl SlotState {
    /// Name for programs.
    pub fn name(self) -> &'static str {
        match self {
            SlotState::Free => "free",
            SlotState::Attached => "attached",
            SlotState::Fenced => "fenced",
            SlotState::Refused => "refused",
            SlotState::Unreceived => "unreceived",
        }
    }
}

/// A publisher's consistent read of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// State of the session.
    pub state: SlotState,
    /// Last sequence number in the log.
    pub accepted: PubSeq,
    /// LSN of `accepted`.
    pub accepted_lsn: Lsn,
    /// Last durable sequence number.
    pub durable: PubSeq,
    /// LSN of `durable`.
    pub durable_lsn: Lsn,
    /// Last committed sequence number.
    pub committed: PubSeq,
    /// LSN of `committed`.
    pub committed_lsn: Lsn,
    /// Rises at every gap in the sequence numbers that storage finds; `gap_expected` then is the number that it waits for.
    pub gap_count: u64,
    /// Sequence number that storage expects, as of the newest gap.
    pub gap_expected: PubSeq,
    /// Set if the session is refused for a record of this unregistered instrument.
    pub unregistered: Option<InstrumentId>,
    /// The publisher's process; `None` if the system does not say, as in another container.
    pub pid: Option<u32>,
}

impl SlotView {
    /// Last sequence number acknowledged at `level`; [`Durability::None`] guarantees nothing and returns `accepted`.
    pub fn reached(&self, level: Durability) -> PubSeq {
        match level {
            Durability::None | Durability::Os => self.accepted,
            Durability::Fsync => self.durable,
            Durability::Standby | Durability::Quorum | Durability::QuorumOs => self.committed,
        }
    }
}

/// Slot of one publisher session.
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

    /// Grants the slot to a session of `publisher`, which is the process `pid` (0: unknown); everything up to `accepted` of this
    /// epoch is durable.
    pub fn grant(&self, grant: u64, (publisher, pid): (PublisherId, u32), epoch: Epoch, accepted: PubSeq, lsn: Lsn) {
        self.free();
        // SYNC: orders "no grant" before the new numbers; pairs with the fence in `view`.
        fence(Ordering::Release);
        self.word(8).store(u64::from(publisher.0), Ordering::Relaxed);
        self.word(16).store(u64::from(epoch.0), Ordering::Relaxed);
        self.word(24).store(SlotState::Attached as u64, Ordering::Relaxed);
        self.word(48).store(0, Ordering::Relaxed);
        // Reserved.
        self.word(64).store(0, Ordering::Relaxed);
        self.word(72).store(0, Ordering::Relaxed);
        self.word(80).store(u64::from(pid), Ordering::Relaxed);
        self.accept(accepted, lsn);
        self.ack_durable(accepted, lsn);
        self.word(192).store(accepted.0, Ordering::Relaxed);
        self.word(200).store(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with the first load in `view`.
        self.word(0).store(grant, Ordering::Release);
    }

    /// Revokes the grant.
    pub fn free(&self) {
        self.word(0).store(0, Ordering::Release);
        // SYNC: pairs with the load of the state in `view`: a reader of this state finds the grant gone at its second load.
        self.word(24).store(SlotState::Free as u64, Ordering::Release);
    }

    /// Sets the state of the session.
    pub fn set_state(&self, state: SlotState) {
        // SYNC: pairs with `view`.
        self.word(24).store(state as u64, Ordering::Release);
    }

    /// Refuses the session for good, because it sent a record of the unregistered `instrument`.
    pub fn refuse_instrument(&self, instrument: InstrumentId) {
        self.word(72).store(u64::from(instrument.0) + 1, Ordering::Relaxed);
        self.set_state(SlotState::Refused);
    }

    /// Records that everything up to `pub_seq`, of LSN `lsn`, is in the log.
    pub fn accept(&self, pub_seq: PubSeq, lsn: Lsn) {
        self.word(40).store(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(32).store(pub_seq.0, Ordering::Release);
    }

    /// Acknowledges everything up to `pub_seq`, of LSN `lsn`, as durable.
    pub fn ack_durable(&self, pub_seq: PubSeq, lsn: Lsn) {
        self.word(136).store(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(128).store(pub_seq.0, Ordering::Release);
    }

    /// Acknowledges everything up to `pub_seq`, of LSN `lsn`, as committed.
    pub fn ack_committed(&self, pub_seq: PubSeq, lsn: Lsn) {
        self.word(200).fetch_max(lsn.0, Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(192).fetch_max(pub_seq.0, Ordering::Release);
    }

    /// Reports a gap: storage waits for `expected`.
    pub fn gap(&self, expected: PubSeq) {
        self.word(56).store(expected.0, Ordering::Relaxed);
        let count = self.word(48).load(Ordering::Relaxed);
        // SYNC: pairs with `view`.
        self.word(48).store(count + 1, Ordering::Release);
    }

    /// Reads the slot for the holder of `grant`; `None` if the grant has ended.
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
            pid: Some(self.word(80).load(Ordering::Relaxed) as u32).filter(|pid| *pid != 0),
        };
        // SYNC: orders the numbers before the second load of the grant; pairs with the fence in `grant`.
        fence(Ordering::Acquire);
        (self.word(0).load(Ordering::Relaxed) == grant).then_some(view)
    }

    /// Holder of the slot: grant, publisher, epoch; `None` if the slot is free.
    pub fn holder(&self) -> Option<(u64, PublisherId, Epoch)> {
        let grant = self.word(0).load(Ordering::Acquire);
        let publisher = PublisherId(self.word(8).load(Ordering::Relaxed) as u16);
        (grant != 0).then(|| (grant, publisher, Epoch(self.word(16).load(Ordering::Relaxed) as u32)))
    }
}
