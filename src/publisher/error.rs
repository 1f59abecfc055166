//! Owns: why a publisher does not accept a record.

use crate::error::Error;
use crate::lsn::{Epoch, PublisherId};

/// Why a record was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The ring stayed full for `send_timeout` and the record was not accepted, or a flush reached its limit. Try again
    /// later.
    #[error("{unacknowledged} unacknowledged records wait in the publisher's ring: {why}")]
    Full {
        /// Records in the ring.
        unacknowledged: u64,
        /// The reason of the wait.
        why: &'static str,
    },
    /// Like `Full`, with a full disk of storage as the reason. The ring keeps its records and sends them when there is
    /// space again.
    #[error(
        "storage's disk is full (NoSpace): {unacknowledged} unacknowledged records wait in the publisher's ring; free space on \
         the disk"
    )]
    NoSpace {
        /// Records in the ring.
        unacknowledged: u64,
    },
    /// A newer process publishes as this publisher. This one cannot continue.
    #[error(
        "publisher {publisher} epoch {epoch} is fenced: a newer process publishes as it; stop that process or use another \
         publisher number"
    )]
    Fenced {
        /// The publisher.
        publisher: PublisherId,
        /// The epoch of this process.
        epoch: Epoch,
    },
    /// Storage refuses this publisher for good.
    #[error("storage refuses the publisher: {0}")]
    Refused(String),
    /// This process was forked from process `pid`, which publishes as `publisher`; it would give the same numbers to
    /// other records. Open a publisher with another number in this process.
    #[error(
        "publisher {publisher} belongs to process {pid}, from which this one was forked; in this process, open one with another \
         number"
    )]
    Forked {
        /// The publisher.
        publisher: PublisherId,
        /// The process that opened it.
        pid: u32,
    },
    /// The record itself is invalid.
    #[error(transparent)]
    Record(#[from] Error),
}
