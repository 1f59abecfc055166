//! Owns: MemTables, the newest records in shared memory: their bytes ([`format`]), filling
//! ([`Writer`]) and reading ([`Table`]), and the live ones together ([`Tables`]).
//!
//! What must hold: one writer, any number of readers that never wait and never make it wait; a reader
//! that has loaded `applied` sees every row up to it whole, in any process.

pub mod format;

mod reader;
mod tables;
mod writer;

#[cfg(test)]
mod tests;

use crate::lsn::{Epoch, Lsn, PubSeq, PublisherId};
use crate::record::RecordRef;
use crate::time::Ts;

pub use format::Series;
pub use reader::{Rows, Table};
pub use tables::{Tables, View};
pub use writer::Writer;

/// Where the records of a run come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who wrote them.
    pub publisher: PublisherId,
    /// In which epoch.
    pub epoch: Epoch,
    /// Number of the first.
    pub first_pub_seq: PubSeq,
}

/// A stored record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row<'a> {
    /// Its number in the store.
    pub lsn: Lsn,
    /// The time that sorts it.
    pub index_time: Ts,
    /// The record.
    pub record: RecordRef<'a>,
}

/// How a stored record came into the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its number in the store.
    pub lsn: Lsn,
    /// Who wrote it, in which epoch.
    pub publisher: PublisherId,
    /// The publisher's epoch.
    pub epoch: Epoch,
    /// Its number in the epoch.
    pub pub_seq: PubSeq,
    /// When storage took it in.
    pub ingest_ts: Ts,
}

/// A span of index time, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// First.
    pub from: Ts,
    /// Last.
    pub to: Ts,
}

impl TimeRange {
    /// All of time.
    pub const ALL: TimeRange = TimeRange { from: Ts(0), to: Ts(u64::MAX) };

    /// Whether `t` lies in it.
    #[inline]
    pub fn contains(&self, t: Ts) -> bool {
        self.from <= t && t <= self.to
    }
}
