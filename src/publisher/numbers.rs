//! Owns: a publisher's numbers at one moment, for the metrics of its program.

use super::lost::Progress;
use super::outstanding::Outstanding;
use crate::lsn::{Durability, PublisherId};

/// A publisher's numbers at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Its number.
    pub publisher: PublisherId,
    /// The level in force.
    pub level: Durability,
    /// Its progress.
    pub progress: Progress,
    /// Accepted records that have not reached its level.
    pub outstanding: Outstanding,
    /// Whether it is attached to a storage process.
    pub is_attached: bool,
    /// Records in the ring: those that are not acknowledged.
    pub ring_records: u64,
}
