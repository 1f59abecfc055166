//! Owns: columns of a snapshot, as C has them.

use std::ffi::c_void;

use tapestore::Kind;
use tapestore::reader::ColumnBatch;
use tapestore::record::schema;

use crate::borrowing::Batches;
use crate::pointers::{Out, Text, given};
use crate::status::{Failure, Status, call};

/// Columns of a snapshot, a batch of rows at a time, ended by `tapestore_columns_close`. They keep what they read, also after
/// the snapshot is closed.
pub struct Columns {
    kind: Kind,
    batches: Batches,
}

impl Columns {
    /// The columns of `kind` in `batches`.
    pub(crate) fn new(kind: Kind, batches: Batches) -> Columns {
        Columns { kind, batches }
    }

    fn batch(&self) -> Result<ColumnBatch<'_>, Failure> {
        let none = || Failure::new(Status::Invalid, "there is no batch: tapestore_columns_next has returned none");
        self.batches.batch().ok_or_else(none)
    }
}

/// Reads the next batch and returns its number of rows; `TAPESTORE_END` after the last.
///
/// The values of a batch lie in the mapped file, or for the newest records in a buffer. They are valid until the next call
/// of this function, or the close. A batch of a file is sorted by instrument, index time and LSN; batches are not sorted.
/// In a process with `tapestore_guard_pages` a page of the last batch that went bad is a failure of the next call: use what
/// was computed of a batch when that call has succeeded.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_columns_next(columns: Option<&mut Columns>, rows: Out<'_, usize>) -> Status {
    call(|| {
        let (columns, rows) = (given(columns, "columns")?, given(rows, "rows")?);
        if !columns.batches.next()? {
            return Ok(Status::End);
        }
        rows.write(columns.batch()?.rows());
        Ok(Status::Ok)
    })
}

/// The numbers in the store (LSN) of the rows of the batch.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_columns_lsns(columns: Option<&Columns>, lsns: Out<'_, *const u64>) -> Status {
    call(|| {
        let (columns, lsns) = (given(columns, "columns")?, given(lsns, "lsns")?);
        lsns.write(columns.batch()?.lsns().as_ptr());
        Ok(Status::Ok)
    })
}

/// The times when storage accepted the rows of the batch.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_columns_ingest_times(columns: Option<&Columns>, times: Out<'_, *const u64>) -> Status {
    call(|| {
        let (columns, times) = (given(columns, "columns")?, given(times, "times")?);
        times.write(columns.batch()?.ingest_ts().as_ptr());
        Ok(Status::Ok)
    })
}

/// The values of the column `name`, a field of the kind's struct, for the rows of the batch; a level of `depth10` is named
/// like `bid_px_00`. `element_bytes` may be NULL: the size of a value. `TAPESTORE_NO_COLUMN` also for reserved fields.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_columns_column(
    columns: Option<&Columns>,
    name: Text<'_>,
    values: Out<'_, *const c_void>,
    element_bytes: Out<'_, usize>,
) -> Status {
    call(|| {
        let (columns, values) = (given(columns, "columns")?, given(values, "values")?);
        let (name, batch) = (name.get("name")?, columns.batch()?);
        let size = schema(columns.kind).and_then(|schema| schema.column(name)).map(|column| column.of.size());
        let (Some(size), Some(bytes)) = (size, batch.bytes(name)) else {
            return Err(Failure::new(Status::NoColumn, format!("kind {} has no column '{name}'", columns.kind.0)));
        };
        values.write(bytes.as_ptr().cast());
        if let Some(element_bytes) = element_bytes {
            element_bytes.write(size);
        }
        Ok(Status::Ok)
    })
}

/// Ends the columns. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_columns_close(columns: Option<Box<Columns>>) {
    call(|| {
        drop(columns);
        Ok(Status::Ok)
    });
}
