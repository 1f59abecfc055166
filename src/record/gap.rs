//! Owns: [`Gap`], the store's own record of records that were lost before they were stored.

use super::{ColumnType, record};
use crate::lsn::{Epoch, PubSeq, PublisherId};

record! {
    /// Records of a publisher that were never stored.
    Gap, kind 5, "gap", 40 bytes, index ts_event;
    /// Whose records.
    publisher: PublisherId as ColumnType::U16,
    /// Why: [`Gap::LEFT_RING`].
    reason: u16 as ColumnType::U16,
    /// The epoch the lost records were numbered in.
    epoch: Epoch as ColumnType::U32,
    /// First lost record.
    first_pub_seq: PubSeq as ColumnType::U64,
    /// Last lost record.
    last_pub_seq: PubSeq as ColumnType::U64,
}

impl Gap {
    /// The publisher's ring no longer held what storage expected.
    pub const LEFT_RING: u16 = 1;
}
