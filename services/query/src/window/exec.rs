//! Owns: the merge that pairs each row of a sorted left side with the rows of a sorted right side in its window.
//!
//! What must hold: of the right side the batches are held in which rows of one window lie. Pairs of a left row come together,
//! and left rows in their order; one without a right row is paired with a row of nulls.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::row::OwnedRow;
use datafusion::error::Result;

use super::Window;
use crate::pieces::BATCH_ROWS;
use crate::side::{Loaded, Side};

/// Right rows of the present key within one batch.
struct Piece {
    batch: RecordBatch,
    times: Int64Array,
    rows: Range<usize>,
    /// Place of the batch in [`Merge::slots`], once a row of it has been paired.
    slot: Option<usize>,
}

impl Piece {
    /// The place of the first row whose time `is_before` does not hold for, counted from the piece's first.
    fn place(&self, from: usize, is_before: impl Fn(i64) -> bool) -> usize {
        let times = self.times.values().get(self.rows.start + from..self.rows.end).unwrap_or(&[]);
        from + times.partition_point(|time| is_before(*time))
    }
}

/// A place among the pieces: the piece, and the row counted from its first.
type Place = (usize, usize);

/// The merge.
pub struct Merge {
    schema: SchemaRef,
    window: Window,
    has_keys: bool,
    left: Side,
    right: Side,
    /// The left rows, the run of them and the row that is paired next.
    now: Option<Arc<Loaded>>,
    run: usize,
    row: usize,
    /// The number of the first row of `now`.
    number: i64,
    /// The next right row of the window of `row`, once it has been paired with one.
    within: Option<Place>,
    /// The right rows of the key `key`.
    pieces: VecDeque<Piece>,
    key: Option<Option<OwnedRow>>,
    /// Whether `pieces` has the last rows of `key`.
    is_whole: bool,
    /// The first right row in the window of the last left row, and the one before it.
    start: Place,
    before: Option<Place>,
    /// Right rows that were read, and the run of them that is next.
    read: Option<Loaded>,
    read_run: usize,
    is_over: bool,
    /// Right batches of the pairs; the first is a row of nulls.
    slots: Vec<RecordBatch>,
    pairs: Vec<(u32, (usize, usize))>,
}

/// Right batches of one batch of pairs, besides the last left row's: where left rows are rare, each has a batch of its own.
const SLOTS_MAX: usize = 64;
/// A pair with no row: the row of nulls.
const NOTHING: (usize, usize) = (0, 0);

impl Merge {
    /// The merge of `left` and `right` to rows of `schema`. `nothing` is a row of nulls of the right side, `number` the number of
    /// the first left row.
    pub fn new((left, right): (Side, Side), nothing: RecordBatch, (window, number): (Window, i64), schema: SchemaRef) -> Merge {
        Merge {
            schema,
            window,
            has_keys: left.has_keys(),
            left,
            right,
            now: None,
            run: 0,
            row: 0,
            number,
            within: None,
            pieces: VecDeque::new(),
            key: None,
            is_whole: false,
            start: (0, 0),
            before: None,
            read: None,
            read_run: 0,
            is_over: false,
            slots: vec![nothing],
            pairs: Vec::with_capacity(BATCH_ROWS),
        }
    }

    /// The next rows of the join; `None` at the end.
    ///
    /// # Errors
    /// Those of the sides.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(left) = self.now.clone() else {
                let Some(next) = self.left.next().await? else { return Ok(None) };
                (self.now, self.run, self.row) = (Some(Arc::new(next)), 0, 0);
                continue;
            };
            while let Some((rows, key)) = left.runs.get(self.run) {
                while self.row < rows.end {
                    if self.pairs.len() >= BATCH_ROWS || self.slots.len() > SLOTS_MAX {
                        return self.batch(&left).map(Some);
                    }
                    self.pair(&left, key).await?;
                }
                self.run += 1;
            }
            let batch = (!self.pairs.is_empty()).then(|| self.batch(&left)).transpose()?;
            self.number += left.batch.num_rows() as i64;
            self.now = None;
            if batch.is_some() {
                return Ok(batch);
            }
        }
    }

    /// Pairs the left row `self.row`, whose keys are `key`, with right rows: all, or as many as a batch takes.
    async fn pair(&mut self, left: &Loaded, key: &Option<OwnedRow>) -> Result<()> {
        let number = self.row as u32;
        if left.times.is_null(self.row) || (self.has_keys && key.is_none()) {
            self.pairs.push((number, NOTHING));
            self.row += 1;
            return Ok(());
        }
        let time = left.times.value(self.row);
        let (from, to) = (time.saturating_add(self.window.start), time.saturating_add(self.window.end));
        if self.within.is_none() {
            self.seek(key).await?;
            self.load(to).await?;
            self.advance(from);
        }
        let mut place = match self.within {
            Some(place) => place,
            None => self.first(from, number, to),
        };
        let mut room = BATCH_ROWS.saturating_sub(self.pairs.len());
        while let Some(piece) = self.pieces.get(place.0) {
            let end = piece.place(place.1, |time| time <= to);
            let some = place.1..end.min(place.1 + room);
            room -= some.len();
            place.1 = some.end;
            let (start, rows) = (piece.rows.start, piece.rows.len());
            if !some.is_empty() {
                let slot = self.slot(place.0);
                self.pairs.extend(some.map(|row| (number, (slot, start + row))));
            }
            if place.1 < end {
                // The batch is full.
                self.within = Some(place);
                return Ok(());
            }
            if end < rows {
                break;
            }
            place = (place.0 + 1, 0);
        }
        let is_paired = self.within.take().is_some() || self.pairs.last().is_some_and(|(last, _)| *last == number);
        if !is_paired {
            self.pairs.push((number, NOTHING));
        }
        self.row += 1;
        Ok(())
    }

    /// The first place in the window that begins at `from`, after the prevailing row has been paired, if it counts.
    fn first(&mut self, from: i64, number: u32, to: i64) -> Place {
        let row = |place: Place| self.pieces.get(place.0).map(|piece| (piece, piece.rows.start + place.1));
        let first = row(self.start).and_then(|(piece, row)| piece.times.values().get(row).copied());
        let is_needed = self.window.prevailing && from <= to && first != Some(from);
        if let Some(place) = self.before.filter(|_| is_needed)
            && let Some((_, row)) = row(place)
        {
            let slot = self.slot(place.0);
            self.pairs.push((number, (slot, row)));
        }
        self.start
    }

    /// The place of the piece's batch among the slots.
    fn slot(&mut self, piece: usize) -> usize {
        let slots = &mut self.slots;
        self.pieces.get_mut(piece).map_or(0, |piece| {
            *piece.slot.get_or_insert_with(|| {
                slots.push(piece.batch.clone());
                slots.len() - 1
            })
        })
    }

    /// Goes to the right rows of `key`: those of lesser keys have no left row any more.
    async fn seek(&mut self, key: &Option<OwnedRow>) -> Result<()> {
        if self.key.as_ref() == Some(key) {
            return Ok(());
        }
        self.pieces.clear();
        (self.start, self.before, self.is_whole) = ((0, 0), None, false);
        self.key = Some(key.clone());
        while self.has_keys && self.read().await? {
            let of = self.read.as_ref().and_then(|read| read.runs.get(self.read_run));
            if of.is_none_or(|(_, of)| of.is_none() || of >= key) {
                break;
            }
            self.read_run += 1;
        }
        Ok(())
    }

    /// Reads right rows until there is a run of them; `false` if none are left.
    async fn read(&mut self) -> Result<bool> {
        while !self.is_over && self.read.as_ref().is_none_or(|read| self.read_run >= read.runs.len()) {
            self.read = self.right.next().await?;
            (self.read_run, self.is_over) = (0, self.read.is_none());
        }
        Ok(!self.is_over)
    }

    /// Reads right rows of the present key until one is after `to`.
    async fn load(&mut self, to: i64) -> Result<()> {
        let last = |piece: &Piece| piece.times.values().get(piece.rows.end.saturating_sub(1)).copied();
        while !self.is_whole && self.pieces.back().and_then(last).is_none_or(|time| time <= to) {
            if !self.read().await? {
                self.is_whole = true;
                break;
            }
            let Some(read) = &self.read else { break };
            let Some((rows, of)) = read.runs.get(self.read_run) else { break };
            if self.key.as_ref() != Some(of) {
                self.is_whole = true;
                break;
            }
            // Rows whose time is null are the last ones, and in no window.
            let valid = rows.clone().rev().find(|row| read.times.is_valid(*row)).map_or(rows.start, |row| row + 1);
            if valid > rows.start {
                let rows = rows.start..valid;
                let piece = Piece { batch: read.batch.clone(), times: read.times.clone(), rows, slot: None };
                self.pieces.push_back(piece);
            }
            self.read_run += 1;
        }
        Ok(())
    }

    /// Moves the start of the window to `from`, and forgets pieces before the row before it.
    fn advance(&mut self, from: i64) {
        while let Some(piece) = self.pieces.get(self.start.0) {
            let place = piece.place(self.start.1, |time| time < from);
            if let Some(before) = place.checked_sub(1).filter(|_| place > self.start.1) {
                self.before = Some((self.start.0, before));
            }
            self.start.1 = place;
            if place < piece.rows.len() {
                break;
            }
            self.start = (self.start.0 + 1, 0);
        }
        let unused = self.before.map_or(self.start.0, |before| before.0.min(self.start.0));
        self.pieces.drain(..unused.min(self.pieces.len()));
        self.start.0 -= unused;
        self.before = self.before.map(|(piece, row)| (piece - unused, row));
    }

    /// The pairs as rows.
    fn batch(&mut self, left: &Loaded) -> Result<RecordBatch> {
        let pairs = std::mem::take(&mut self.pairs);
        let lefts = UInt32Array::from_iter_values(pairs.iter().map(|(row, _)| *row));
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for column in left.batch.columns() {
            columns.push(take(column.as_ref(), &lefts, None)?);
        }
        let places: Vec<(usize, usize)> = pairs.iter().map(|(_, place)| *place).collect();
        let count = self.slots.first().map_or(0, RecordBatch::num_columns);
        let first = places.first().map_or(0, |place| place.0);
        if let Some(one) = self.slots.get(first).filter(|_| first != 0 && places.iter().all(|place| place.0 == first)) {
            let rows = UInt32Array::from_iter_values(places.iter().map(|(_, row)| *row as u32));
            for column in one.columns() {
                columns.push(take(column.as_ref(), &rows, None)?);
            }
        } else {
            for column in 0..count {
                let arrays: Vec<&dyn Array> = self.slots.iter().map(|batch| batch.column(column).as_ref()).collect();
                columns.push(interleave(&arrays, &places)?);
            }
        }
        let number = self.number;
        let numbers: Int64Array = pairs.iter().map(|(row, _)| number + i64::from(*row)).collect();
        columns.push(Arc::new(numbers) as ArrayRef);
        self.slots.truncate(1);
        self.pieces.iter_mut().for_each(|piece| piece.slot = None);
        self.pairs = pairs;
        self.pairs.clear();
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}
