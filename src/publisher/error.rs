//! Owns: why a publisher did not take a record.

use crate::error::Error;
use crate::lsn::{Epoch, PublisherId};

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The ring stayed full for `send_timeout`; nothing was taken. Try again later.
    #[error("{unacknowledged} records wait in the publisher's ring and are not acknowledged: {why}")]
    Full {
        /// Records in the ring.
        unacknowledged: u64,
        /// What they wait for.
        why: &'static str,
    },
    /// The same, because storage takes nothing in: its disk is full. What is in the ring is kept, and sent when there
    /// is room again.
    #[error("storage's disk is full (NoSpace): {unacknowledged} records wait in the publisher's ring and are not acknowledged")]
    NoSpace {
        /// Records in the ring.
        unacknowledged: u64,
    },
    /// A newer process writes as this publisher. This one cannot go on.
    #[error("publisher {publisher} epoch {epoch} is fenced: a newer process writes as it")]
    Fenced {
        /// Who.
        publisher: PublisherId,
        /// In which epoch this one wrote.
        epoch: Epoch,
    },
    /// Storage refuses this publisher for good.
    #[error("storage refuses the publisher: {0}")]
    Refused(String),
    /// This process was forked from process `pid`, which publishes as `publisher`: here it would give the same numbers to
    /// other records. Open a publisher of this process's own, with another number.
    #[error("publisher {publisher} is process {pid}'s, from which this one was forked; open one of its own, with another number")]
    Forked {
        /// Who.
        publisher: PublisherId,
        /// Who opened it.
        pid: u32,
    },
    /// The record itself cannot be.
    #[error(transparent)]
    Record(#[from] Error),
}
