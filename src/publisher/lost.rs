//! Owns: how far a publisher has come, and what is said of records that it has lost, to its program and in the store.

use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Gap, Kind, Record};
use crate::time::{Clock, HostClock};

/// Records that are neither in the ring nor in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// In which epoch they were numbered.
    pub epoch: Epoch,
    /// The first.
    pub first: PubSeq,
    /// The last.
    pub last: PubSeq,
}

/// The record that says in the store what `publisher` has lost.
pub(super) fn gap_record(publisher: PublisherId, lost: &Lost) -> Gap {
    Gap {
        kind: Kind(Gap::KIND.0),
        instrument: InstrumentId::NULL,
        ts_event: HostClock.wall(),
        publisher,
        reason: Gap::LEFT_RING,
        epoch: lost.epoch,
        first_pub_seq: lost.first,
        last_pub_seq: lost.last,
        ..Gap::default()
    }
}

/// How far a publisher has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Its epoch.
    pub epoch: Epoch,
    /// The last record taken.
    pub published: PubSeq,
    /// The last record in the log file.
    pub accepted: PubSeq,
    /// The last durable record.
    pub durable: PubSeq,
    /// The last committed record.
    pub committed: PubSeq,
    /// LSN of the last record in the log file.
    pub accepted_lsn: Lsn,
    /// Batches sent.
    pub batches: u64,
    /// Times that it had to go back and send again.
    pub rewinds: u64,
    /// Times that it attached again.
    pub reattached: u64,
}
