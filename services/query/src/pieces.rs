//! Owns: the parts of a store that a scan reads, and reading them batch by batch in (index time, LSN) order or backwards.
//!
//! A piece is the rows of one instrument in one SSTable or one MemTable. Pieces whose times do not meet are read one after
//! the other, in place; those that overlap are merged row by row.
//!
//! What must hold: a piece gives each of its rows once, in order. A merge looks at a piece only when the rows before it are
//! done, so the newest rows of a store are read without a look at the rest.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use tapestore::lsn::Lsn;
use tapestore::memtable;
use tapestore::record::{Series, TimeRange};
use tapestore::sstable::{AHEAD_BLOCKS, Part, Slice};
use tapestore::time::Ts;
use tapestore::version::File;

use crate::columns::{BlockRows, Copied};
use crate::failure::external;
use crate::names::Names;
use crate::schema::Origin;

/// Rows of a batch that is copied.
pub const BATCH_ROWS: usize = 8192;
/// A run of at least so many rows is lent in place, also between others.
const RUN_ROWS: usize = 512;
/// Rows of a MemTable that are copied together.
const COPY_ROWS: u64 = 65_536;

/// Which columns are read, and how.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The columns' types.
    pub schema: SchemaRef,
    /// What they are made of.
    pub origins: Arc<[Origin]>,
    /// The instruments.
    pub names: Arc<Names>,
}

impl Shape {
    fn batch(&self, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?)
    }

    /// The rows of a block.
    pub fn in_file(&self, rows: &BlockRows) -> Result<RecordBatch> {
        let arrays = self.origins.iter().map(|origin| rows.array(origin, &self.names)).collect::<tapestore::Result<Vec<_>>>();
        self.batch(arrays.map_err(external)?, rows.rows())
    }

    /// The parts of a block that its columns are made of; those of rows that are merged are `ordered`, by time and LSN.
    pub fn parts(&self, ordered: bool) -> Vec<Part> {
        let mut parts = if ordered { vec![Part::Times, Part::Lsns] } else { Vec::new() };
        for origin in self.origins.iter() {
            let part = match origin {
                Origin::Symbol => Part::Field(4),
                Origin::Time => Part::Times,
                Origin::Ingested => Part::Ingest,
                Origin::Lsn | Origin::Publisher => Part::Lsns,
                Origin::Field { column, .. } => Part::Field(column.offset),
            };
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts
    }

    fn copied(&self, rows: Copied, table: &memtable::Table) -> Result<RecordBatch> {
        let count = rows.rows();
        self.batch(rows.arrays(&self.origins, table, &self.names), count)
    }
}

/// The rows of one instrument in one place.
#[derive(Clone, Debug)]
pub enum Place {
    /// Rows of an SSTable.
    File(File, Slice),
    /// Rows of a MemTable, up to an LSN.
    Table(Arc<memtable::Table>, Series, TimeRange, Lsn),
}

/// The rows of one instrument in one place, and their bounds.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The place.
    pub place: Place,
    /// Index times of the first and the last row.
    pub time: (Ts, Ts),
    /// Number of rows.
    pub rows: u64,
    /// Whether it is known that no other piece of the scan has rows between its first and its last one.
    pub is_alone: bool,
}

/// Notes which of `pieces`, all that are merged, need no merge: their times do not meet those of others.
pub fn note_alone(pieces: &mut [Piece]) {
    pieces.sort_by_key(|piece| piece.time.0);
    let mut latest: Option<Ts> = None;
    for at in 0..pieces.len() {
        let next = pieces.get(at + 1).map(|piece| piece.time.0);
        let Some(piece) = pieces.get_mut(at) else { return };
        let is_after = latest.is_none_or(|latest| latest < piece.time.0);
        piece.is_alone = is_after && next.is_none_or(|next| piece.time.1 < next);
        latest = latest.max(Some(piece.time.1));
    }
}

impl Piece {
    /// The rows of `slice`.
    pub fn of_file(file: &File, slice: Slice) -> tapestore::Result<Piece> {
        let time = |at: u32| -> tapestore::Result<Ts> {
            let (index, row) = slice.locate(at);
            Ok(file.block(index)?.times().get(row))
        };
        let whole = slice.from == 0 && slice.to == slice.series.rows;
        let bounds = if whole {
            (Ts(slice.series.time.min), Ts(slice.series.time.max))
        } else {
            (time(slice.from)?, time(slice.to.saturating_sub(1))?)
        };
        let rows = u64::from(slice.to - slice.from);
        Ok(Piece { place: Place::File(file.clone(), slice), time: bounds, rows, is_alone: false })
    }

    /// The file; `None` of a MemTable.
    pub fn file(&self) -> Option<&File> {
        match &self.place {
            Place::File(file, _) => Some(file),
            Place::Table(..) => None,
        }
    }

    /// The file, the rows, and the blocks that are read first of it, `most` at most; `None` of a MemTable, or if `most` is 0.
    pub fn first_blocks(&self, most: u32, backwards: bool) -> Option<(&File, &Slice, Range<u32>)> {
        let Place::File(file, slice) = &self.place else { return None };
        let (first, last) = (slice.locate(slice.from).0, slice.locate(slice.to.saturating_sub(1)).0);
        let blocks =
            if backwards { first.max((last + 1).saturating_sub(most))..last + 1 } else { first..(last + 1).min(first + most) };
        Some((file, slice, blocks)).filter(|(.., blocks)| !blocks.is_empty())
    }

    /// The rows of `series` in `table` up to `upto`; `None` if there is none.
    pub fn of_table(table: &Arc<memtable::Table>, series: Series, range: TimeRange, upto: Lsn) -> Option<Piece> {
        let first = table.rows(series, range, upto).next()?.index_time;
        let rows = table.rows(series, range, upto).count_until(range.to);
        let last = table.as_of(series, range.to, upto)?.index_time;
        let range = TimeRange { from: first, to: last };
        Some(Piece { place: Place::Table(table.clone(), series, range, upto), time: (first, last), rows, is_alone: false })
    }
}

/// Rows of a piece that are read, in the order of the scan.
struct Loaded {
    batch: RecordBatch,
    /// Index time and LSN of each row.
    times: Vec<u64>,
    lsns: Vec<u64>,
    /// The rows before it are done.
    at: usize,
}

impl Loaded {
    fn key(&self, at: usize) -> (u64, u64) {
        (self.times.get(at).copied().unwrap_or(0), self.lsns.get(at).copied().unwrap_or(0))
    }

    /// The end of the rows from the next one on that `is_before` holds for: at least the next one, which is the least of all.
    fn until(&self, is_before: impl Fn((u64, u64)) -> bool) -> usize {
        let (rows, first) = (self.batch.num_rows(), self.at);
        let is_before = |at: usize| is_before(self.key(at));
        if is_before(rows - 1) {
            return rows;
        }
        let mut end = first + 1;
        while end < rows && end < first + RUN_ROWS && is_before(end) {
            end += 1;
        }
        if end == first + RUN_ROWS {
            let (mut low, mut high) = (end, rows);
            while low < high {
                let middle = low + (high - low) / 2;
                if is_before(middle) { low = middle + 1 } else { high = middle }
            }
            end = low;
        }
        end
    }

    fn reversed(self) -> Result<Loaded> {
        let batch = reversed(&self.batch)?;
        let (mut times, mut lsns) = (self.times, self.lsns);
        times.reverse();
        lsns.reverse();
        Ok(Loaded { batch, times, lsns, at: 0 })
    }
}

/// The rows of `batch`, the last first.
fn reversed(batch: &RecordBatch) -> Result<RecordBatch> {
    let rows = batch.num_rows() as u32;
    let indices = UInt32Array::from_iter_values((0..rows).rev());
    Ok(take_record_batch(batch, &indices)?)
}

/// Reads a piece batch by batch.
struct Cursor {
    piece: Piece,
    /// Of a file: the rows of the slice that are left. Of a MemTable: the times that are left, and how long a step is.
    left: Left,
    /// Of a file: the disk was asked for the blocks up to here, in the direction of the scan.
    asked: Option<u32>,
}

enum Left {
    Rows(u32, u32),
    Times(TimeRange, u64),
    Nothing,
}

impl Cursor {
    /// The cursor of `piece`, for whose first `asked` blocks the disk was asked.
    fn new(piece: Piece, asked: u32, backwards: bool) -> Cursor {
        let left = match &piece.place {
            Place::File(_, slice) => Left::Rows(slice.from, slice.to),
            Place::Table(_, _, range, _) => {
                let span = range.to.0 - range.from.0;
                let steps = piece.rows / COPY_ROWS + 1;
                Left::Times(*range, if steps == 1 { u64::MAX } else { (span / steps).max(1) })
            }
        };
        let asked = piece.first_blocks(asked, backwards);
        let asked = asked.map(|(.., blocks)| if backwards { blocks.start } else { blocks.end });
        Cursor { piece, left, asked }
    }

    /// Asks the disk for the blocks that follow, before those that were asked for are done.
    fn read_ahead(&mut self, shape: &Shape, backwards: bool, few: bool) -> tapestore::Result<()> {
        let (Place::File(file, slice), Left::Rows(from, to)) = (&self.piece.place, &self.left) else { return Ok(()) };
        if from >= to {
            return Ok(());
        }
        let (first, last) = (slice.locate(*from).0, slice.locate(*to - 1).0);
        let ahead = if few { 1 } else { AHEAD_BLOCKS };
        let near = ahead / 2;
        let blocks = match (backwards, self.asked) {
            (false, Some(asked)) if asked > last.min(first + near) => return Ok(()),
            (true, Some(asked)) if asked <= first.max(last.saturating_sub(near)) => return Ok(()),
            (false, asked) => asked.unwrap_or(first).max(first)..(last + 1).min(first + ahead),
            (true, asked) => first.max((last + 1).saturating_sub(ahead))..asked.unwrap_or(last + 1).min(last + 1),
        };
        self.asked = Some(if backwards { blocks.start } else { blocks.end });
        file.read_ahead(|ahead| ahead.read_slice(slice, blocks, &shape.parts(!self.piece.is_alone)))
    }

    /// The next rows as they are, for a piece that needs no merge; `None` at the end.
    fn batch(&mut self, shape: &Shape, backwards: bool, few: bool) -> Result<Option<RecordBatch>> {
        let Place::File(file, _) = &self.piece.place else {
            return Ok(self.next(shape, backwards, few)?.map(|loaded| loaded.batch));
        };
        let file = file.clone();
        self.read_ahead(shape, backwards, few).map_err(external)?;
        let Some(rows) = self.rows_of_file(backwards, few) else { return Ok(None) };
        let batch = shape.in_file(&rows)?;
        file.check().map_err(external)?;
        Ok(Some(if backwards { reversed(&batch)? } else { batch }))
    }

    /// The next rows of a file.
    fn rows_of_file(&mut self, backwards: bool, few: bool) -> Option<BlockRows> {
        let (Place::File(file, slice), Left::Rows(from, to)) = (&self.piece.place, &mut self.left) else { return None };
        if from >= to {
            return None;
        }
        let (index, first, count) = if backwards {
            let (index, last) = slice.locate(*to - 1);
            let count = (last + 1).min((*to - *from) as usize);
            let count = if few { count.min(RUN_ROWS) } else { count };
            *to -= count as u32;
            (index, last + 1 - count, count)
        } else {
            let (index, first) = slice.locate(*from);
            let count = slice.run(*from).min((*to - *from) as usize);
            let count = if few { count.min(RUN_ROWS) } else { count };
            *from += count as u32;
            (index, first, count)
        };
        Some(BlockRows { file: file.clone(), index, from: first, to: first + count })
    }

    /// The next rows, forwards or backwards; `None` at the end. `few`: the caller needs few rows.
    fn next(&mut self, shape: &Shape, backwards: bool, few: bool) -> Result<Option<Loaded>> {
        self.read_ahead(shape, backwards, few).map_err(external)?;
        if let Some(rows) = self.rows_of_file(backwards, few) {
            let batch = shape.in_file(&rows)?;
            let times = rows.times().map_err(external)?.to_vec();
            let lsns = rows.lsns().map_err(external)?.to_vec();
            let loaded = Loaded { batch, times, lsns, at: 0 };
            rows.file.check().map_err(external)?;
            return Ok(Some(if backwards { loaded.reversed()? } else { loaded }));
        }
        match (&self.piece.place, &mut self.left) {
            (Place::Table(table, series, _, upto), Left::Times(..)) => {
                let (table, series, upto) = (table.clone(), *series, *upto);
                loop {
                    let Some(range) = self.left.step(backwards, few) else { return Ok(None) };
                    let rows = Copied::new(table.rows(series, range, upto), &shape.origins);
                    table.check().map_err(external)?;
                    if rows.rows() == 0 {
                        self.left.skip(&table, series, upto, backwards);
                        continue;
                    }
                    let (times, lsns) = (rows.times.clone(), rows.lsns.clone());
                    let loaded = Loaded { batch: shape.copied(rows, &table)?, times, lsns, at: 0 };
                    return Ok(Some(if backwards { loaded.reversed()? } else { loaded }));
                }
            }
            _ => Ok(None),
        }
    }
}

impl Left {
    /// The next times of a MemTable to read.
    fn step(&mut self, backwards: bool, few: bool) -> Option<TimeRange> {
        let Left::Times(range, step) = self else { return None };
        let (all, step) = (*range, if few { (*step).min(1_000_000_000) } else { *step });
        let is_last = all.to.0 - all.from.0 <= step;
        if is_last {
            *self = Left::Nothing;
            return Some(all);
        }
        let part = if backwards {
            let from = Ts(all.to.0 - step);
            range.to = Ts(from.0 - 1);
            TimeRange { from, to: all.to }
        } else {
            let to = Ts(all.from.0 + step);
            range.from = Ts(to.0 + 1);
            TimeRange { from: all.from, to }
        };
        Some(part)
    }

    /// Skips times without rows: a step had none.
    fn skip(&mut self, table: &memtable::Table, series: Series, upto: Lsn, backwards: bool) {
        let Left::Times(range, _) = self else { return };
        let next = if backwards {
            table.as_of(series, range.to, upto).map(|row| row.index_time)
        } else {
            table.rows(series, *range, upto).next().map(|row| row.index_time)
        };
        match next {
            Some(time) if range.contains(time) && backwards => range.to = time,
            Some(time) if range.contains(time) => range.from = time,
            _ => *self = Left::Nothing,
        }
    }
}

/// A piece that is being read, ordered by its next row.
struct Active {
    key: (u64, u64),
    backwards: bool,
    loaded: Loaded,
    cursor: Cursor,
}

/// The order of two keys in a scan, of which the first in the scan is the less.
fn in_scan(a: (u64, u64), b: (u64, u64), backwards: bool) -> Ordering {
    if backwards { b.cmp(&a) } else { a.cmp(&b) }
}

impl PartialEq for Active {
    fn eq(&self, other: &Active) -> bool {
        self.key == other.key
    }
}
impl Eq for Active {}
impl PartialOrd for Active {
    fn partial_cmp(&self, other: &Active) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Active {
    /// The next of the scan is the greatest: a heap gives its greatest.
    fn cmp(&self, other: &Active) -> Ordering {
        in_scan(other.key, self.key, self.backwards)
    }
}

/// Merges pieces into one order by (index time, LSN).
pub struct Merge {
    /// Pieces that are not open yet; the next one is the last.
    pending: Vec<Piece>,
    /// A piece that is read as it is.
    alone: Option<Cursor>,
    active: BinaryHeap<Active>,
    backwards: bool,
    /// Rows that were chosen: each by its batch and its place there.
    batches: Vec<RecordBatch>,
    chosen: Vec<(usize, usize)>,
    /// A run that follows the chosen rows.
    lent: Option<RecordBatch>,
    few: bool,
    /// Blocks of each piece for which the disk was asked.
    asked: u32,
}

impl std::fmt::Debug for Merge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merge").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Merge {
    /// Merges `pieces`. `few`: the caller will take few rows, so each piece is read in small steps. The disk was asked for
    /// the first `asked` blocks of each.
    pub fn new(mut pieces: Vec<Piece>, backwards: bool, few: bool, asked: u32) -> Merge {
        if backwards {
            pieces.sort_by_key(|piece| piece.time.1);
        } else {
            pieces.sort_by_key(|piece| std::cmp::Reverse(piece.time.0));
        }
        Merge {
            pending: pieces,
            alone: None,
            active: BinaryHeap::new(),
            backwards,
            batches: Vec::new(),
            chosen: Vec::new(),
            lent: None,
            few,
            asked,
        }
    }

    /// The first key that a piece may have, in the order of the scan.
    fn start(&self, piece: &Piece) -> (u64, u64) {
        if self.backwards { (piece.time.1.0, u64::MAX) } else { (piece.time.0.0, 0) }
    }

    fn open(&mut self, mut cursor: Cursor, shape: &Shape) -> Result<()> {
        if let Some(loaded) = cursor.next(shape, self.backwards, self.few)? {
            self.active.push(Active { key: loaded.key(0), backwards: self.backwards, loaded, cursor });
        }
        Ok(())
    }

    fn emit(&mut self, shape: &Shape) -> Result<RecordBatch> {
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let merged = if shape.schema.fields().is_empty() {
            shape.batch(Vec::new(), self.chosen.len())?
        } else {
            interleave_record_batch(&batches, &self.chosen)?
        };
        self.batches.clear();
        self.chosen.clear();
        Ok(merged)
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn next(&mut self, shape: &Shape) -> Result<Option<RecordBatch>> {
        if let Some(lent) = self.lent.take() {
            return Ok(Some(lent));
        }
        loop {
            if let Some(cursor) = &mut self.alone {
                if let Some(batch) = cursor.batch(shape, self.backwards, self.few)? {
                    return Ok(Some(batch));
                }
                self.alone = None;
            }
            if self.active.is_empty() && self.pending.last().is_some_and(|piece| piece.is_alone) {
                if !self.chosen.is_empty() {
                    return self.emit(shape).map(Some);
                }
                self.alone = self.pending.pop().map(|piece| Cursor::new(piece, self.asked, self.backwards));
                continue;
            }
            // Opens every piece that may have the next row.
            while let Some(piece) = self.pending.last() {
                let start = self.start(piece);
                let is_next = self.active.peek().is_none_or(|a| in_scan(start, a.key, self.backwards) != Ordering::Greater);
                if !is_next {
                    break;
                }
                if let Some(piece) = self.pending.pop() {
                    self.open(Cursor::new(piece, self.asked, self.backwards), shape)?;
                }
            }
            let Some(Active { mut loaded, cursor, .. }) = self.active.pop() else {
                return if self.chosen.is_empty() { Ok(None) } else { self.emit(shape).map(Some) };
            };
            let others = self.active.peek().map(|other| other.key);
            let bound = match (others, self.pending.last().map(|piece| self.start(piece))) {
                (Some(a), Some(b)) => Some(if in_scan(a, b, self.backwards) == Ordering::Less { a } else { b }),
                (a, b) => a.or(b),
            };
            let rows = loaded.batch.num_rows();
            let first = loaded.at;
            let end = loaded.until(|key| bound.is_none_or(|b| in_scan(key, b, self.backwards) == Ordering::Less));
            loaded.at = end;
            let run = end - first;
            let lent = (run >= RUN_ROWS || run == rows).then(|| loaded.batch.slice(first, run));
            if lent.is_none() {
                let is_same = self.batches.last().is_some_and(|last| is_same_batch(last, &loaded.batch));
                if !is_same {
                    self.batches.push(loaded.batch.clone());
                }
                let batch = self.batches.len() - 1;
                self.chosen.extend((first..end).map(|row| (batch, row)));
            }
            let before = if lent.is_some() && !self.chosen.is_empty() { Some(self.emit(shape)?) } else { None };
            if end < rows {
                let key = loaded.key(end);
                self.active.push(Active { key, backwards: self.backwards, loaded, cursor });
            } else {
                self.open(cursor, shape)?;
            }
            match (before, lent) {
                (Some(before), lent) => {
                    self.lent = lent;
                    return Ok(Some(before));
                }
                (None, Some(lent)) => return Ok(Some(lent)),
                _ if self.chosen.len() >= BATCH_ROWS => return self.emit(shape).map(Some),
                _ => {}
            }
        }
    }
}

/// Whether `a` is a clone of `b`.
fn is_same_batch(a: &RecordBatch, b: &RecordBatch) -> bool {
    a.num_rows() == b.num_rows() && a.columns().iter().zip(b.columns()).all(|(a, b)| Arc::ptr_eq(a, b)) && a.num_columns() > 0
}
