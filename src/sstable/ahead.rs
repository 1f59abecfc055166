//! Owns: which parts of an SSTable the disk is asked for before they are touched.
//!
//! A page that is touched and is not in memory is read by the kernel with all pages around it: megabytes on a disk with a
//! long read-ahead, for one instrument's column of 32 KiB. So a part is asked for by its exact bytes. A disk answers many
//! questions at once faster than one after the other, so a scan asks for blocks ahead of the one that it reads.
//!
//! What must hold: asking changes no byte and waits for no disk. A part that was not asked for is read when it is touched.

use std::ops::Range;

use super::block::{Slice, locate};
use super::checked::Checked;
use super::format::{BLOCK_ROWS, BY_INGEST, Block, SeriesEntry};
use super::transpose::Plan;
use crate::disk::Mapped;
use crate::lsn::InstrumentId;
use crate::record::TimeRange;
use crate::time::Ts;

/// Blocks that a scan asks for ahead of the one that it reads.
pub const AHEAD_BLOCKS: u32 = 32;
/// Blocks that are asked for when blocks are read one after the other by a caller that does not ask.
const FOLLOWING_BLOCKS: u32 = 8;
/// Parts with fewer bytes between them are asked for together: this costs less than another question to the disk.
const GAP: u64 = 16 << 10;

/// Where the series of `instrument` is if the file has all instruments, which are numbered from one.
#[inline]
pub(super) fn likely(instrument: InstrumentId) -> Option<usize> {
    (instrument.0 as usize).checked_sub(1)
}

/// Whether all `instruments` are where [`Ahead::series`] asks for them in the index `all`.
pub fn has_likely_series(all: &[SeriesEntry], instruments: &[u32]) -> bool {
    let is_at = |id: &u32| likely(InstrumentId(*id)).and_then(|at| all.get(at)).is_some_and(|of| of.instrument.0 == *id);
    instruments.iter().all(is_at)
}

/// A column of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The LSNs.
    Lsns,
    /// The ingest times.
    Ingest,
    /// The index times.
    Times,
    /// The field at this byte of the record.
    Field(usize),
}

/// Bytes of a file that are asked for together.
#[derive(Debug, Default)]
struct Extents {
    all: Vec<Range<u64>>,
}

impl Extents {
    /// Adds the `len` bytes from `offset` on, which lie after all parts before.
    fn add(&mut self, offset: u64, len: u64) {
        match self.all.last_mut() {
            Some(last) if offset <= last.end + GAP => last.end = last.end.max(offset + len),
            _ => self.all.push(offset..offset + len),
        }
    }
}

/// What of an SSTable the disk can be asked for, without waiting for it.
pub struct Ahead<'t> {
    pub(super) map: &'t Mapped,
    pub(super) plan: &'t Plan,
    /// The block directory, and where it begins.
    pub(super) blocks: &'t [Block],
    pub(super) directory: u64,
    /// Where the series index is, and its length.
    pub(super) series: (u64, u64),
    pub(super) checked: &'t Checked,
}

impl Ahead<'_> {
    /// Asks for what a read of `columns` in the blocks `blocks` will touch, unless it is in memory. A block whose CRC has not
    /// been compared yet is read whole, since the CRC is that of the whole block.
    pub fn read(&self, blocks: Range<u32>, columns: &[Part]) {
        self.read_rows(blocks, columns, |_| 0..BLOCK_ROWS);
    }

    /// As [`Ahead::read`], of the rows of `slice` alone.
    pub fn read_slice(&self, slice: &Slice, blocks: Range<u32>, columns: &[Part]) {
        let (first, from) = slice.locate(slice.from);
        let (last, to) = slice.locate(slice.to.saturating_sub(1));
        self.read_rows(blocks, columns, |index| {
            let from = if index == first { from } else { 0 };
            from..if index == last { to + 1 } else { BLOCK_ROWS }
        });
    }

    /// As [`Ahead::read`], of the rows `rows_of` each block alone.
    fn read_rows(&self, blocks: Range<u32>, columns: &[Part], rows_of: impl Fn(u32) -> Range<usize>) {
        let last = blocks.end.min(self.blocks.len() as u32).saturating_sub(1);
        // The first and the last one stand for all: to look at each costs a tenth of what reading a column costs.
        let is_here = |index: u32| self.has_parts(index, columns, rows_of(index));
        if columns.is_empty() || blocks.is_empty() || is_here(blocks.start) && (last <= blocks.start || is_here(last)) {
            return;
        }
        let mut extents = Extents::default();
        for (index, entry) in blocks.clone().zip(self.blocks.get(blocks.start as usize..).unwrap_or(&[])) {
            if self.checked.has(index) {
                self.parts_of(entry, columns, rows_of(index)).iter().for_each(|(offset, len)| extents.add(*offset, *len));
            } else {
                extents.add(entry.offset, u64::from(entry.meta_len) + entry.body_len);
            }
        }
        extents.all.iter().for_each(|part| self.map.read_ahead(part.start, part.end - part.start));
    }

    /// Whether what a read of `columns` in the rows `rows` of block `index` will touch is in memory.
    fn has_parts(&self, index: u32, columns: &[Part], rows: Range<usize>) -> bool {
        let Some(entry) = self.blocks.get(index as usize) else { return true };
        if !self.checked.has(index) {
            return false;
        }
        let parts = self.parts_of(entry, columns, rows);
        let from = parts.iter().map(|(offset, _)| *offset).min().unwrap_or(0);
        let to = parts.iter().map(|(offset, len)| offset + len).max().unwrap_or(0);
        // Most often all columns are: one call is enough.
        let is_here = |(offset, len): &(u64, u64)| self.map.is_in_memory(*offset, *len);
        is_here(&(from, to.saturating_sub(from))) || parts.iter().all(is_here)
    }

    /// Offset and length of what a read of `columns` in the rows `rows` of the block of `entry` touches, in the order of the file.
    fn parts_of(&self, entry: &Block, columns: &[Part], rows: Range<usize>) -> Vec<(u64, u64)> {
        let rows = rows.start.min(entry.rows as usize)..rows.end.min(entry.rows as usize);
        let part = |column| self.part(entry, column).map(|(at, size)| (at + size * rows.start as u64, size * rows.len() as u64));
        let mut parts = Vec::with_capacity(columns.len() + 1);
        for column in columns {
            parts.extend(part(*column));
            if *column == Part::Times && entry.flags & BY_INGEST != 0 {
                parts.extend(part(Part::Ingest));
            }
        }
        parts.sort_unstable();
        parts
    }

    /// Offset in the file of a column of the block of `entry`, and the length of one value.
    pub(super) fn part(&self, entry: &Block, column: Part) -> Option<(u64, u64)> {
        let plan = self.plan;
        let index = match column {
            Part::Lsns => 0,
            Part::Ingest => 1,
            Part::Times => plan.index,
            Part::Field(offset) => plan.columns.iter().position(|stored| stored.offset == Some(offset))?,
        };
        let at = entry.offset + u64::from(entry.meta_len) + plan.offset(index, entry.rows as usize);
        Some((at, plan.columns.get(index)?.of.size() as u64))
    }

    /// Asks for the places in the series index where `instruments` most likely are, and for the end of the file, at which
    /// [`super::Table::check`] looks.
    pub fn series(&self, instruments: &[u32]) {
        let ((offset, len), size) = (self.series, size_of::<SeriesEntry>() as u64);
        self.map.read_ahead(self.map.bytes().len().saturating_sub(1) as u64, 1);
        for id in instruments {
            if let Some(at) = likely(InstrumentId(*id)).map(|at| at as u64 * size).filter(|at| *at < len) {
                self.map.read_ahead(offset + at, size);
            }
        }
    }

    /// Asks for the whole series index.
    pub fn all_series(&self) {
        self.map.read_ahead(self.series.0, self.series.1);
    }

    /// Asks for the entries of the blocks of `series` in the block directory.
    pub fn entries(&self, series: &SeriesEntry) {
        let (first, last) = (u64::from(series.block), u64::from(locate(series, series.rows.saturating_sub(1)).0));
        let entry = size_of::<Block>() as u64;
        self.map.read_ahead(self.directory.saturating_add(first * entry), (last + 1).saturating_sub(first) * entry);
    }

    /// Asks for what [`super::Table::slice`] of `series` in `range` touches first: the times of the blocks in which the search
    /// for the first and the last row begins.
    pub fn bounds(&self, series: &SeriesEntry, range: TimeRange) {
        let (min, max) = (Ts(series.time.min), Ts(series.time.max));
        if !range.meets(min, max) {
            return;
        }
        let last = locate(series, series.rows.saturating_sub(1)).0;
        // The bounds of the first and the last block are those of other series too.
        let inner = self.blocks.get(series.block as usize + 1..last as usize).unwrap_or(&[]);
        // Of so many inner blocks all rows are passed; with none the search is in the first block and the one after it.
        let search = |passed: usize| match passed as u32 {
            0 => series.block..(series.block + 2).min(last + 1),
            passed => series.block + 1 + passed..series.block + 2 + passed,
        };
        if range.from > min {
            self.read(search(inner.partition_point(|block| Ts(block.time.max) < range.from)), &[Part::Times]);
        }
        if range.to < max {
            self.read(search(inner.partition_point(|block| Ts(block.time.max) <= range.to)), &[Part::Times]);
        }
    }

    /// Block `index` is about to be read for the first time: asks for the blocks after it if the two before it were read.
    pub(super) fn follow(&self, index: u32) {
        let was_read = |back: u32| index.checked_sub(back).is_some_and(|before| self.checked.has(before));
        if !was_read(1) || !was_read(2) {
            return;
        }
        let until = index + 1 + FOLLOWING_BLOCKS;
        // A run that goes on has asked for all but the last.
        let from = if was_read(3) { until - 1 } else { index + 1 };
        let Some(entries) = self.blocks.get(from as usize..self.blocks.len().min(until as usize)) else { return };
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            let end = last.offset + u64::from(last.meta_len) + last.body_len;
            self.map.read_ahead(first.offset, end - first.offset);
        }
    }
}
