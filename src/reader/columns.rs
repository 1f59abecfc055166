//! Owns: columns, a batch of rows at a time: borrowed from the mapped files as they are; of MemTables,
//! whose records lie row by row, turned into a buffer.

use crate::error::Result;
use crate::lsn::InstrumentId;
use crate::memtable::{Rows as TableRows, Table};
use crate::record::{Kind, Schema, Series, TimeRange, schema};
use crate::sstable::{BatchBuffer, Body, Plan, Slice};
use crate::version::{File, View};

/// Rows of a kind as columns. All rows of a batch lie in the range; a batch of a file is sorted by
/// (instrument, index time, LSN). Batches come file by file, the earliest file first, MemTables last.
pub struct Columns<'t> {
    range: TimeRange,
    instrument: Option<InstrumentId>,
    files: Vec<&'t File>,
    /// Of the last of `files`: what is left, as series and block numbers.
    slices: Vec<Slice>,
    block: u32,
    rows: Vec<(&'t Table, TableRows<'t>)>,
    buffer: BatchBuffer,
}

/// Columns of some rows.
#[derive(Clone, Copy)]
pub struct ColumnBatch<'a> {
    body: Body<'a>,
    plan: &'a Plan,
    from: usize,
    to: usize,
}

impl<'a> ColumnBatch<'a> {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.to - self.from
    }

    /// The LSNs.
    pub fn lsns(&self) -> &'a [u64] {
        self.body.u64s(0).get(self.from..self.to).unwrap_or(&[])
    }

    /// The ingest times.
    pub fn ingest_ts(&self) -> &'a [u64] {
        self.body.u64s(self.plan.offset(1, self.body.rows)).get(self.from..self.to).unwrap_or(&[])
    }

    /// The values of column `name`, their bytes one after the other; `None` if the kind has no such
    /// column or it carries no meaning and is zero.
    pub fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        let index = self.plan.columns.iter().position(|c| c.name == name)?;
        let size = self.plan.columns.get(index)?.of.size();
        let column = self.body.column(self.plan.offset(index, self.body.rows), size);
        column.get(self.from * size..self.to * size)
    }

    /// The values of column `name` as `T`, which is as wide as they are: `u64` for times, sizes and ids,
    /// `i64` for prices.
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
        Some(Columns { range, instrument, files, slices: Vec::new(), block: 0, rows, buffer: BatchBuffer::new(schema) })
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file.
    #[expect(clippy::should_implement_trait, reason = "a batch is lent until the next call, and a call can fail")]
    pub fn next(&mut self) -> Result<Option<ColumnBatch<'_>>> {
        while let Some(&file) = self.files.last() {
            if let Some((index, from, to)) = self.next_of(file)? {
                let block = file.block(index)?;
                return Ok(Some(ColumnBatch { body: block.body, plan: file.plan()?, from, to }));
            }
            self.files.pop();
            self.block = 0;
        }
        self.buffer.clear();
        while let Some((table, rows)) = self.rows.last_mut()
            && !self.buffer.is_full()
        {
            match rows.next() {
                Some(row) => {
                    let ingest_ts = table.arrival(row.lsn).map_or(row.index_time, |a| a.ingest_ts);
                    self.buffer.push(row.lsn, ingest_ts, row.record.words());
                }
                None => drop(self.rows.pop()),
            }
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let (body, plan) = self.buffer.turn();
        Ok(Some(ColumnBatch { body, plan, from: 0, to: body.rows }))
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
                // One series: its slice says all, and the blocks are not walked.
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
