//! Owns: the records by which a store has what was derived in it: the table, its publisher and how far its bars are made.
//!
//! They are a kind of their own, `derive-progress`, so that no file beside the store can differ from it: whoever makes the bars
//! continues from the newest one, and `tape sql` finds the tables by them.
//!
//! What must hold: a mark is published after the bars that it covers, by their publisher, so it is never in the store without them.

use std::collections::BTreeMap;

use tapestore::error::Result;
use tapestore::lsn::{InstrumentId, Lsn, PublisherId};
use tapestore::reader::{Series, Snapshot, TimeRange};
use tapestore::record::{Kind, Record};
use tapestore::time::Ts;

/// Most bytes of a table's name.
pub const NAME_MAX: usize = 32;

/// How far the bars of a publisher are made.
#[derive(Clone, Copy, Debug, Record)]
#[repr(C)]
#[record(kind = 0x80ff, name = "derive-progress", index = ts_event)]
pub struct Progress {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    /// The bars before it are published.
    ts_event: Ts,
    /// With all trades up to this LSN.
    read_to: u64,
    /// Stands for the kinds and the instruments.
    rule: u64,
    /// The kind of the bars.
    bar_kind: u16,
    reserved: [u8; 6],
    /// The table in SQL.
    table_name: [u8; NAME_MAX],
}

/// The newest mark of a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bars before it are published.
    pub done: Ts,
    /// With all trades up to this LSN.
    pub read_to: Lsn,
    /// Stands for the kinds and the instruments.
    pub rule: u64,
    /// The kind of the bars.
    pub bars: Kind,
    /// The table in SQL.
    pub table: String,
}

impl Mark {
    /// The record of the mark.
    pub fn record(&self) -> Progress {
        let mut table_name = [0; NAME_MAX];
        table_name.iter_mut().zip(self.table.bytes()).for_each(|(to, byte)| *to = byte);
        Progress {
            instrument: InstrumentId::NULL,
            ts_event: self.done,
            read_to: self.read_to.0,
            rule: self.rule,
            bar_kind: self.bars.0,
            table_name,
            ..Progress::default()
        }
    }

    fn of(record: &Progress) -> Mark {
        let name: Vec<u8> = record.table_name.iter().copied().take_while(|byte| *byte != 0).collect();
        Mark {
            done: record.ts_event,
            read_to: Lsn(record.read_to),
            rule: record.rule,
            bars: Kind(record.bar_kind),
            table: String::from_utf8_lossy(&name).into_owned(),
        }
    }
}

/// The newest mark of each publisher in `snapshot`, with its LSN.
///
/// # Errors
/// Those of reading a file.
pub fn marks(snapshot: &Snapshot) -> Result<BTreeMap<PublisherId, (Lsn, Mark)>> {
    let mut newest: BTreeMap<PublisherId, (Lsn, Mark)> = BTreeMap::new();
    let series = Series { instrument: InstrumentId::NULL, kind: Progress::KIND };
    let mut rows = snapshot.scan(series, TimeRange::ALL);
    while let Some(row) = rows.next()? {
        // Another program may have a kind of this number.
        let Some(record) = row.record.get::<Progress>() else { continue };
        let Some(arrival) = snapshot.arrival(row.lsn)? else { continue };
        if newest.get(&arrival.publisher).is_none_or(|(lsn, _)| *lsn < row.lsn) {
            newest.insert(arrival.publisher, (row.lsn, Mark::of(record)));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_the_same_after_it_was_a_record() {
        let table = "a".repeat(NAME_MAX);
        let mark = Mark { done: Ts(60), read_to: Lsn(7), rule: u64::MAX, bars: Kind(8), table };
        assert_eq!(Mark::of(&mark.record()), mark);
    }
}
