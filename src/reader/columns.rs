//! Owns: batches of columns: borrowed in place from mapped files, transposed into a buffer for MemTables, whose records
//! are stored row by row.

use std::cell::OnceCell;

use crate::error::Result;
use crate::lsn::{InstrumentId, Lsn};
use crate::memtable::{Rows as TableRows, Table};
use crate::record::{Kind, Schema, Series, TimeRange, schema};
use crate::sstable::{BatchBuffer, BlockView, Slice};
use crate::version::{File, View};

/// Rows of a kind as columns. All rows of a batch lie in the range. A batch of a file is sorted by (instrument, index
/// time, LSN). Batches come file by file, earliest file first, MemTables last.
///
/// A batch of a file is borrowed in place. If a page of it goes bad meanwhile, in a process with
/// [`crate::guard_pages`], the next call of [`Columns::next`] is an error, also after the last batch: values read from
/// the previous batch must not be used then.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/columns.rs"), "\n```")]
pub struct Columns<'t> {
    range: TimeRange,
    instrument: Option<InstrumentId>,
    files: Vec<&'t File>,
    /// For the last of `files`: its remaining slices, and the next block.
    slices: Vec<Slice>,
    block: u32,
    rows: Vec<(&'t Table, TableRows<'t>)>,
    view: &'t View,
    /// The file of the batch that was returned last.
    lent: Option<&'t File>,
    buffer: BatchBuffer,
    arrivals: Arrivals<'t>,
}

/// Columns of some rows.
#[derive(Clone, Copy)]
pub struct ColumnBatch<'a>(Columnar<'a>);

#[derive(Clone, Copy)]
enum Columnar<'a> {
    /// The rows `from..to` of a block of a file.
    Block { block: BlockView<'a>, from: usize, to: usize },
    /// Rows of MemTables, copied.
    Rows(&'a BatchBuffer, &'a Arrivals<'a>),
}

/// The ingest times of MemTable rows, looked up on demand.
#[derive(Default)]
struct Arrivals<'t> {
    /// The tables, each with the number of the first row after its own.
    tables: Vec<(&'t Table, usize)>,
    times: OnceCell<Vec<u64>>,
}

impl Arrivals<'_> {
    fn times(&self, lsns: &[u64]) -> &[u64] {
        self.times.get_or_init(|| {
            let (mut times, mut known) = (Vec::with_capacity(lsns.len()), (0, 0, 0));
            for (table, end) in &self.tables {
                for &lsn in lsns.get(times.len()..*end).unwrap_or(&[]) {
                    // Rows of a series come in runs with one arrival.
                    if !(known.0..known.0 + known.1).contains(&lsn) {
                        known = table.run_of(Lsn(lsn)).map_or((0, 0, 0), |(f, n, a)| (f.0, n, a.ingest_ts.0));
                    }
                    times.push(known.2);
                }
            }
            times
        })
    }
}

impl<'a> ColumnBatch<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self.0 {
            Columnar::Block { from, to, .. } => to - from,
            Columnar::Rows(buffer, _) => buffer.lsns().len(),
        }
    }

    /// The LSNs.
    pub fn lsns(&self) -> &'a [u64] {
        match self.0 {
            Columnar::Block { block, from, to } => block.lsns().get(from..to).unwrap_or(&[]),
            Columnar::Rows(buffer, _) => buffer.lsns(),
        }
    }

    /// The ingest times.
    pub fn ingest_ts(&self) -> &'a [u64] {
        match self.0 {
            Columnar::Block { block, from, to } => block.ingest().get(from..to).unwrap_or(&[]),
            Columnar::Rows(buffer, arrivals) => arrivals.times(buffer.lsns()),
        }
    }

    /// The values of column `name`, as consecutive bytes; `None` if the kind has no such column, or if it is a reserved
    /// column of zeros.
    pub fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        match self.0 {
            Columnar::Block { block, from, to } => {
                let (column, size) = block.column_named(name)?;
                column.get(from * size..to * size)
            }
            Columnar::Rows(buffer, _) => buffer.column(name),
        }
    }

    /// The values of column `name` as `T`, which has the column's width: `u64` for times, sizes and ids, `i64` for
    /// prices.
    pub fn values<T: bytemuck::AnyBitPattern>(&self, name: &str) -> Option<&'a [T]> {
        bytemuck::try_cast_slice(self.bytes(name)?).ok()
    }
}

impl<'t> Columns<'t> {
    pub(super) fn new(view: &'t View, kind: Kind, instrument: Option<InstrumentId>, range: TimeRange) -> Option<Columns<'t>> {
        let schema: &'static Schema = schema(kind)?;
        let files = view.history.files_in(kind, range).collect();
        let mut rows = Vec::new();
        for table in view.tables.iter().rev() {
            let all = match instrument {
                Some(instrument) => vec![Series { instrument, kind }],
                None => table.series().into_iter().filter(|s| s.kind == kind).collect(),
            };
            rows.extend(all.into_iter().map(|s| (&**table, table.rows(s, range, view.upto))));
        }
        Some(Columns {
            range,
            instrument,
            files,
            slices: Vec::new(),
            block: 0,
            rows,
            view,
            lent: None,
            buffer: BatchBuffer::new(schema),
            arrivals: Arrivals::default(),
        })
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file; [`crate::error::Error::SnapshotTooOld`].
    #[expect(clippy::should_implement_trait, reason = "a batch is borrowed until the next call, and a call can fail")]
    pub fn next(&mut self) -> Result<Option<ColumnBatch<'_>>> {
        // First the batch that was lent: after the other error its values would be kept.
        if let Some(file) = self.lent.take() {
            file.check()?;
        }
        self.view.check_age()?;
        while let Some(&file) = self.files.last() {
            if let Some((index, from, to)) = self.next_of(file)? {
                self.lent = Some(file);
                return Ok(Some(ColumnBatch(Columnar::Block { block: file.block(index)?, from, to })));
            }
            file.check()?;
            self.files.pop();
            assert!(self.slices.is_empty(), "rows of one file are not looked up in the next");
            self.block = 0;
        }
        self.buffer.clear();
        self.arrivals = Arrivals::default();
        while let Some((table, rows)) = self.rows.last_mut()
            && !self.buffer.is_full()
        {
            match rows.next() {
                Some(row) => self.buffer.push(row.lsn, row.record.words()),
                None => {
                    self.arrivals.tables.push((*table, self.buffer.lsns().len()));
                    self.rows.pop();
                }
            }
        }
        if let Some((table, _)) = self.rows.last() {
            self.arrivals.tables.push((*table, self.buffer.lsns().len()));
        }
        self.view.check_tables()?;
        Ok((!self.buffer.is_empty()).then_some(ColumnBatch(Columnar::Rows(&self.buffer, &self.arrivals))))
    }

    /// Block and rows of the next batch of `file`.
    fn next_of(&mut self, file: &File) -> Result<Option<(u32, usize, usize)>> {
        loop {
            if let Some(slice) = self.slices.last_mut() {
                let (index, row) = slice.locate(slice.from);
                let n = slice.run(slice.from);
                slice.from += n as u32;
                if slice.from >= slice.to {
                    self.slices.pop();
                }
                return Ok(Some((index, row, row + n)));
            }
            let Some(entry) = file.blocks()?.get(self.block as usize).copied() else { return Ok(None) };
            let index = self.block;
            self.block += 1;
            let bounds = TimeRange { from: crate::time::Ts(entry.time.min), to: crate::time::Ts(entry.time.max) };
            if let Some(instrument) = self.instrument {
                // One series: its slice is complete, so the blocks are not walked.
                self.block = u32::MAX;
                self.slices.extend(file.slice(instrument, self.range)?);
            } else if self.range.contains(bounds.from) && self.range.contains(bounds.to) {
                return Ok(Some((index, 0, entry.rows as usize)));
            } else if self.range.meets(bounds.from, bounds.to) {
                self.slices = file.slices_of_block(index, self.range)?;
            }
        }
    }
}
