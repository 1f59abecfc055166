//! Owns: the identity of a stored record: its series, its row, its arrival; and ranges of index time.

use super::{Kind, RecordRef};
use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::time::Ts;

/// One (instrument, kind).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// The instrument.
    pub instrument: InstrumentId,
    /// The kind.
    pub kind: Kind,
}

impl Series {
    /// The series as one number, never 0.
    #[doc(hidden)]
    pub fn key(self) -> u64 {
        u64::from(self.kind.0) << 32 | u64::from(self.instrument.0)
    }

    /// The series of the number `key`.
    #[doc(hidden)]
    pub fn from_key(key: u64) -> Series {
        Series { instrument: InstrumentId(key as u32), kind: Kind((key >> 32) as u16) }
    }
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

/// The arrival of a stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its number in the store.
    pub lsn: Lsn,
    /// Its publisher.
    pub publisher: PublisherId,
    /// The publisher's epoch.
    pub epoch: Epoch,
    /// Its number in the epoch.
    pub pub_seq: PubSeq,
    /// When storage accepted it.
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

    /// Whether any moment from `min` to `max` lies in it.
    #[inline]
    #[doc(hidden)]
    pub fn meets(&self, min: Ts, max: Ts) -> bool {
        min <= self.to && max >= self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_its_key() {
        let series = Series { instrument: InstrumentId(u32::MAX), kind: Kind(0x8001) };
        assert_eq!(Series::from_key(series.key()), series);
        assert_ne!(Series { instrument: InstrumentId(0), kind: Kind(1) }.key(), 0);
    }
}
