//! Owns: what C asks a snapshot.
//!
//! What must hold: rows and columns get a snapshot of their own, so they outlive this one. A question about a kind that
//! neither the library nor the store has is refused.

use tapestore::record::schema;
use tapestore::{InstrumentId, Kind, Lsn, TimeRange, Ts};

use crate::borrowing::{Batches, Scanning};
use crate::columns::Columns;
use crate::pointers::{Array, Count, Out, Text, given, made};
use crate::rows::{Row, Rows, put};
use crate::status::{Failure, Status, call};

/// A store as of one moment. It never changes. Made by `tapestore_reader_snapshot`, ended by `tapestore_snapshot_close`; it
/// outlives its reader.
pub struct Snapshot(pub(crate) tapestore::Snapshot);

/// One instrument's records of one kind.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Series {
    /// The instrument.
    pub instrument: u32,
    /// The kind.
    pub kind: u16,
}

impl Series {
    /// The series of the library, if its kind is known.
    fn known(self) -> Result<tapestore::Series, Failure> {
        Ok(tapestore::Series { instrument: InstrumentId(self.instrument), kind: known(self.kind)? })
    }
}

/// The kind `number`, if the library or the store has it.
fn known(number: u16) -> Result<Kind, Failure> {
    schema(Kind(number)).map(|schema| schema.kind).ok_or_else(|| Failure::no_kind(number))
}

fn range(from: u64, to: u64) -> TimeRange {
    TimeRange { from: Ts(from), to: Ts(to) }
}

/// The number (LSN) of the first record; 1 if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_first(snapshot: Option<&Snapshot>, lsn: Out<'_, u64>) -> Status {
    call(|| {
        given(lsn, "lsn")?.write(given(snapshot, "snapshot")?.0.first().0);
        Ok(Status::Ok)
    })
}

/// The number (LSN) of the last record; 0 if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_last(snapshot: Option<&Snapshot>, lsn: Out<'_, u64>) -> Status {
    call(|| {
        given(lsn, "lsn")?.write(given(snapshot, "snapshot")?.0.last().0);
        Ok(Status::Ok)
    })
}

/// The record with the number `lsn`, or `TAPESTORE_END`. The row's record is valid until the next call with this snapshot, or
/// its close.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_get(snapshot: Option<&mut Snapshot>, lsn: u64, row: Out<'_, Row>) -> Status {
    call(|| {
        let (snapshot, row) = (given(snapshot, "snapshot")?, given(row, "row")?);
        Ok(put(snapshot.0.get(Lsn(lsn))?, row))
    })
}

/// The newest record of the series that is not after `time`, or `TAPESTORE_END`: the one with the greatest index time, and of
/// several the one with the greatest LSN. `UINT64_MAX` is the newest of all. The row's record is valid until the next call
/// with this snapshot, or its close.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_as_of(
    snapshot: Option<&mut Snapshot>,
    instrument: u32,
    kind: u16,
    time: u64,
    row: Out<'_, Row>,
) -> Status {
    call(|| {
        let (snapshot, row) = (given(snapshot, "snapshot")?, given(row, "row")?);
        Ok(put(snapshot.0.as_of(Series { instrument, kind }.known()?, Ts(time))?, row))
    })
}

/// The newest record of each instrument that has records of `kind`, in the order of instruments.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_latest(
    snapshot: Option<&mut Snapshot>,
    kind: u16,
    rows: Out<'_, Option<Box<Rows>>>,
) -> Status {
    call(|| {
        made(rows, "rows", || {
            let snapshot = given(snapshot, "snapshot")?;
            Ok(snapshot.0.latest(known(kind)?)?.into())
        })
    })
}

/// The records of the series whose lookup column `column` (such as `order_id`) is `id`, in (index time, LSN) order.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_find(
    snapshot: Option<&Snapshot>,
    instrument: u32,
    kind: u16,
    column: Text<'_>,
    id: u64,
    rows: Out<'_, Option<Box<Rows>>>,
) -> Status {
    call(|| {
        made(rows, "rows", || {
            let snapshot = given(snapshot, "snapshot")?;
            Ok(snapshot.0.find(Series { instrument, kind }.known()?, column.get("column")?, id)?.into())
        })
    })
}

/// The records of the series with an index time from `from` to `to`, both included, in (index time, LSN) order. Use 0 and
/// `UINT64_MAX` for all.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_scan(
    snapshot: Option<&Snapshot>,
    instrument: u32,
    kind: u16,
    from: u64,
    to: u64,
    rows: Out<'_, Option<Box<Rows>>>,
) -> Status {
    call(|| {
        made(rows, "rows", || {
            let snapshot = given(snapshot, "snapshot")?;
            let series = Series { instrument, kind }.known()?;
            Ok(Scanning::new(snapshot.0.clone(), &[series], range(from, to))?.into())
        })
    })
}

/// The records of several series, merged in (index time, LSN) order. A `count` of 0 is all series of the store.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_replay(
    snapshot: Option<&Snapshot>,
    series: Array<'_, Series>,
    count: Count,
    from: u64,
    to: u64,
    rows: Out<'_, Option<Box<Rows>>>,
) -> Status {
    call(|| {
        made(rows, "rows", || {
            let (snapshot, some) = (given(snapshot, "snapshot")?, series.get(count, "series")?);
            let all = match some {
                [] => snapshot.0.series()?,
                some => some.iter().map(|series| series.known()).collect::<Result<_, _>>()?,
            };
            Ok(Scanning::new(snapshot.0.clone(), &all, range(from, to))?.into())
        })
    })
}

/// The records of `kind` as columns, of `instrument` or of `TAPESTORE_ALL_INSTRUMENTS`, with an index time from `from` to `to`,
/// both included.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_columns(
    snapshot: Option<&Snapshot>,
    kind: u16,
    instrument: u32,
    from: u64,
    to: u64,
    columns: Out<'_, Option<Box<Columns>>>,
) -> Status {
    call(|| {
        made(columns, "columns", || {
            let (snapshot, kind) = (given(snapshot, "snapshot")?, Kind(kind));
            let of = (instrument != ALL_INSTRUMENTS).then_some(InstrumentId(instrument));
            Ok(Columns::new(kind, Batches::new(snapshot.0.clone(), kind, of, range(from, to))?))
        })
    })
}

/// Every instrument, for columns. The number of no instrument: those begin with 1.
pub const ALL_INSTRUMENTS: u32 = 0;

/// Ends a snapshot. Its rows and columns stay valid. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_snapshot_close(snapshot: Option<Box<Snapshot>>) {
    call(|| {
        drop(snapshot);
        Ok(Status::Ok)
    });
}
