//! Owns: the scans and columns of a snapshot, kept together with the snapshot that they borrow, for handles of C.
//!
//! What must hold: each has a snapshot of its own behind an `Arc` that nobody else holds. So it stays where it is, nothing
//! changes it, and it outlives what borrows it. The lifetime `'static` does not leave this file.

use std::ptr::NonNull;
use std::sync::Arc;

use tapestore::reader::{ColumnBatch, Columns, Scan};
use tapestore::record::Row;
use tapestore::{Error, InstrumentId, Kind, Series, Snapshot, TimeRange};

use crate::status::Failure;

/// A value that borrows a snapshot. It lies in a box that only its pointer reaches: what it lends stays valid when this moves.
struct Borrowing<T> {
    value: NonNull<T>,
    /// Dropped after the value, see `drop`.
    _snapshot: Arc<Snapshot>,
}

impl<T> Borrowing<T> {
    /// What `make` makes of `snapshot`. Nothing else keeps the reference that it gets.
    fn new(snapshot: Snapshot, make: impl FnOnce(&'static Snapshot) -> Result<T, Failure>) -> Result<Borrowing<T>, Failure> {
        let snapshot = Arc::new(snapshot);
        // SAFETY: the snapshot is not moved or changed, and it is dropped after the value, which alone keeps the reference.
        let lasting: &'static Snapshot = unsafe { &*Arc::as_ptr(&snapshot) };
        let value = NonNull::from(Box::leak(Box::new(make(lasting)?)));
        Ok(Borrowing { value, _snapshot: snapshot })
    }

    fn value(&mut self) -> &mut T {
        // SAFETY: `new` made it, `drop` ends it, and `self` is borrowed as long as the result.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Borrowing<T> {
    fn drop(&mut self) {
        // SAFETY: `new` took it out of a box. The snapshot is a field of this value, so it is dropped later.
        drop(unsafe { Box::from_raw(self.value.as_ptr()) });
    }
}

// SAFETY: it owns the value as a box does, and the snapshot, which nobody else holds: both move together.
unsafe impl<T: Send> Send for Borrowing<T> where Snapshot: Send {}

/// Rows of a snapshot in (index time, LSN) order.
pub(crate) struct Scanning(Borrowing<Scan<'static>>);

impl Scanning {
    /// The records of `series` in `range`.
    pub(crate) fn new(snapshot: Snapshot, series: &[Series], range: TimeRange) -> Result<Scanning, Failure> {
        Borrowing::new(snapshot, |snapshot| Ok(snapshot.replay(series, range))).map(Scanning)
    }

    /// The next row.
    pub(crate) fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        self.0.value().next()
    }
}

/// Columns of a snapshot, and the batch that was read last.
pub(crate) struct Batches {
    batch: Option<ColumnBatch<'static>>,
    columns: Borrowing<Columns<'static>>,
}

// SAFETY: the batch borrows from the columns, which are `Send` and belong to this value alone: both move together.
unsafe impl Send for Batches where Columns<'static>: Send {}

impl Batches {
    /// The records of `kind` in `range`, of one instrument or of all.
    pub(crate) fn new(snapshot: Snapshot, kind: Kind, of: Option<InstrumentId>, range: TimeRange) -> Result<Batches, Failure> {
        let of_kind = |snapshot: &'static Snapshot| snapshot.columns(kind, of, range).ok_or_else(|| Failure::no_kind(kind.0));
        let columns = Borrowing::new(snapshot, of_kind)?;
        Ok(Batches { batch: None, columns })
    }

    /// Reads the next batch. `false`: there is none.
    pub(crate) fn next(&mut self) -> Result<bool, Error> {
        self.batch = None;
        // SAFETY: as in `Borrowing::value`; the batch that keeps the borrow is dropped before the next one and before the value.
        let columns: &'static mut Columns<'static> = unsafe { self.columns.value.as_mut() };
        self.batch = columns.next()?;
        Ok(self.batch.is_some())
    }

    /// The batch that was read last.
    pub(crate) fn batch(&self) -> Option<ColumnBatch<'_>> {
        self.batch
    }
}
