//! Owns: views of rows in a file: a series' rows in a range, a block's columns, a block's times.

use super::format::{BLOCK_ROWS, BY_INGEST, Block, SeriesEntry};
use super::transpose::{Body, Plan};
use crate::record::index_time;
use crate::time::Ts;

/// Rows `from..to` of a series, counted from its first row.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// The series.
    pub series: SeriesEntry,
    /// The first row.
    pub from: u32,
    /// One past the last row.
    pub to: u32,
}

impl Slice {
    /// Block and row in it of row `at` of the series.
    #[inline]
    pub fn locate(&self, at: u32) -> (u32, usize) {
        locate(&self.series, at)
    }

    /// Number of rows from `at` on that lie in the same block.
    pub fn run(&self, at: u32) -> usize {
        let (_, row) = self.locate(at);
        (self.to.saturating_sub(at) as usize).min(BLOCK_ROWS - row)
    }
}

#[inline]
pub(super) fn locate(series: &SeriesEntry, at: u32) -> (u32, usize) {
    let row = series.row as usize + at as usize;
    (series.block + (row / BLOCK_ROWS) as u32, row % BLOCK_ROWS)
}

/// The index times of a block.
#[derive(Clone, Copy)]
pub struct Times<'a> {
    own: &'a [u64],
    ingest: &'a [u64],
    by_ingest: bool,
}

impl<'a> Times<'a> {
    /// The stored times, unless some row sorts by its ingest time.
    #[inline]
    pub fn plain(&self) -> Option<&'a [u64]> {
        (!self.by_ingest).then_some(self.own)
    }

    /// The index time of row `row`.
    #[inline]
    pub fn get(&self, row: usize) -> Ts {
        let own = Ts(self.own.get(row).copied().unwrap_or(u64::MAX));
        if self.by_ingest {
            return index_time(own, Ts(self.ingest.get(row).copied().unwrap_or(u64::MAX))).0;
        }
        own
    }
}

/// The columns of a checked block.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    /// Its entry in the block directory.
    pub entry: &'a Block,
    /// The columns.
    pub body: Body<'a>,
    pub(super) plan: &'a Plan,
}

impl<'a> BlockView<'a> {
    /// The LSNs.
    #[inline]
    pub fn lsns(&self) -> &'a [u64] {
        self.body.u64s(0)
    }

    /// The ingest times.
    #[inline]
    pub fn ingest(&self) -> &'a [u64] {
        self.body.u64s(self.plan.offset(1, self.body.rows))
    }

    /// The index times.
    #[inline]
    pub fn times(&self) -> Times<'a> {
        let own = self.body.u64s(self.plan.offset(self.plan.index, self.body.rows));
        Times { own, ingest: self.ingest(), by_ingest: self.entry.flags & BY_INGEST != 0 }
    }

    /// Bytes of the column stored from byte `offset` of the record.
    pub fn column(&self, offset: usize) -> Option<&'a [u8]> {
        let index = self.plan.columns.iter().position(|c| c.offset == Some(offset))?;
        let size = self.plan.columns.get(index)?.of.size();
        Some(self.body.column(self.plan.offset(index, self.body.rows), size))
    }

    /// Bytes of the column `name`, and the size of one value.
    pub fn column_named(&self, name: &str) -> Option<(&'a [u8], usize)> {
        let index = self.plan.columns.iter().position(|c| c.name == name)?;
        let size = self.plan.columns.get(index)?.of.size();
        Some((self.body.column(self.plan.offset(index, self.body.rows), size), size))
    }

    /// The plan by which records are rebuilt.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// Appends the records of the rows `from..to` to `out`.
    pub fn rows(&self, from: usize, to: usize, out: &mut Vec<u64>) {
        self.plan.rows(self.body, from, to, out);
    }
}

/// The first index in `0..count` for which `before` is false; `before` is true for every index below
/// it.
#[inline]
pub(super) fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
