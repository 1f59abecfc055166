//! Owns: a publisher's progress, and the report of lost records to its program and the store.

use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Gap, Kind, Record};
use crate::time::{Clock, HostClock};

/// Records that are neither in the ring nor in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Their epoch.
    pub epoch: Epoch,
    /// The first.
    pub first: PubSeq,
    /// The last.
    pub last: PubSeq,
}

/// The record that reports in the store that `publisher` lost records.
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

/// A publisher's progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Its epoch.
    pub epoch: Epoch,
    /// The last record accepted into the ring.
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
    /// Number of rewinds, after which records are sent again.
    pub rewinds: u64,
    /// Number of times that it attached again.
    pub reattached: u64,
    /// Records lost since it was opened; see [`Lost`].
    pub lost: u64,
}
