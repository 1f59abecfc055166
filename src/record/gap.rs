//! Owns: [`Gap`], the store's own record of records lost before they were stored.

use super::{ColumnType, record};
use crate::lsn::{Epoch, PubSeq, PublisherId};

record! {
    /// Records of a publisher that were never stored.
    Gap, kind 5, "gap", 40 bytes, index ts_event;
    /// Their publisher.
    publisher: PublisherId as ColumnType::U16,
    /// Reason: [`Gap::LEFT_RING`].
    reason: u16 as ColumnType::U16,
    /// The epoch of the lost records.
    epoch: Epoch as ColumnType::U32,
    /// First lost record.
    first_pub_seq: PubSeq as ColumnType::U64,
    /// Last lost record.
    last_pub_seq: PubSeq as ColumnType::U64,
}

impl Gap {
    /// The publisher's ring no longer held the record that storage expected.
    pub const LEFT_RING: u16 = 1;
}
