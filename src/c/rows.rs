//! Owns: rows, as C has them, and the handle that yields them one by one.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use crate::borrowing::Scanning;
use crate::pointers::{Out, given};
use crate::status::{Status, call};
use tapestore::reader::RowBatch;

/// A stored record.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Row {
    /// Its number in the store.
    pub lsn: u64,
    /// The time that sorts it.
    pub index_time: u64,
    /// The record, a struct of `kind`, aligned to 8 bytes. It is the library's and must not be changed.
    pub record: *const c_void,
    /// Bytes of the record.
    pub bytes: usize,
    /// Its instrument.
    pub instrument: u32,
    /// Its kind.
    pub kind: u16,
}

impl From<tapestore::Row<'_>> for Row {
    fn from(row: tapestore::Row<'_>) -> Row {
        Row {
            lsn: row.lsn.0,
            index_time: row.index_time.0,
            record: row.record.bytes().as_ptr().cast(),
            bytes: row.record.bytes().len(),
            instrument: row.record.instrument().0,
            kind: row.record.kind().0,
        }
    }
}

/// Puts `found` into `row`, if there is one.
pub(crate) fn put(found: Option<tapestore::Row<'_>>, row: &mut MaybeUninit<Row>) -> Status {
    let Some(found) = found else { return Status::End };
    row.write(found.into());
    Status::Ok
}

/// Rows of a snapshot, one after another, ended by `tapestore_rows_close`. They keep what they read, also after the snapshot is
/// closed.
pub struct Rows(Source);

enum Source {
    Scan(Scanning),
    /// Copied rows, and the number of the next one.
    Batch(RowBatch, usize),
}

impl From<Scanning> for Rows {
    fn from(scan: Scanning) -> Rows {
        Rows(Source::Scan(scan))
    }
}

impl From<RowBatch> for Rows {
    fn from(batch: RowBatch) -> Rows {
        Rows(Source::Batch(batch, 0))
    }
}

/// The next row; `TAPESTORE_END` after the last. The row's record is valid until the next call with these rows, or their
/// close. After a failure the rows end, although some are left.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_rows_next(rows: Option<&mut Rows>, row: Out<'_, Row>) -> Status {
    call(|| {
        let (rows, row) = (given(rows, "rows")?, given(row, "row")?);
        let next = match &mut rows.0 {
            Source::Scan(scan) => scan.next()?,
            Source::Batch(batch, at) => {
                *at += 1;
                batch.get(*at - 1)
            }
        };
        Ok(put(next, row))
    })
}

/// Ends the rows. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_rows_close(rows: Option<Box<Rows>>) {
    call(|| {
        drop(rows);
        Ok(Status::Ok)
    });
}
