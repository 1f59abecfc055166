//! Owns: what is said of records that a publisher has lost, to its program and in the store.

use crate::lsn::{Epoch, InstrumentId, PubSeq, PublisherId};
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
