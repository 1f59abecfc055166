//! Owns: the merge that pairs each row of a sorted left side with the rows of a sorted right side in its window.
//!
//! What must hold: pairs of a left row come together, and left rows in their order; one without a right row is paired with a row of
//! nulls.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::row::OwnedRow;
use datafusion::error::Result;

use super::Window;
use super::rights::{Place, Rights};
use crate::pieces::BATCH_ROWS;
use crate::side::{Loaded, Side};

/// The merge.
pub struct Merge {
    schema: SchemaRef,
    window: Window,
    left: Side,
    rights: Rights,
    /// The left rows, the run of them and the row that is paired next.
    now: Option<Arc<Loaded>>,
    run: usize,
    row: usize,
    /// The number of the first row of `now`.
    number: i64,
    /// The next right row of the window of `row`, once it has been paired with one.
    within: Option<Place>,
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
            left,
            rights: Rights::new(right),
            now: None,
            run: 0,
            row: 0,
            number,
            within: None,
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
        if left.times.is_null(self.row) || self.rights.is_nothing(key) {
            self.pairs.push((number, NOTHING));
            self.row += 1;
            return Ok(());
        }
        let time = left.times.value(self.row);
        let (from, to) = (time.saturating_add(self.window.start), time.saturating_add(self.window.end));
        if self.within.is_none() {
            self.rights.seek(key).await?;
            self.rights.load(to).await?;
            self.rights.advance(from);
        }
        let mut place = match self.within {
            Some(place) => place,
            None => self.first(from, number, to),
        };
        let mut room = BATCH_ROWS.saturating_sub(self.pairs.len());
        while let Some(piece) = self.rights.pieces.get(place.0) {
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
        let is_needed = self.rights.is_prevailing(self.window, (from, to));
        if let Some(place) = self.rights.before.filter(|_| is_needed)
            && let Some(piece) = self.rights.pieces.get(place.0)
        {
            let row = piece.rows.start + place.1;
            let slot = self.slot(place.0);
            self.pairs.push((number, (slot, row)));
        }
        self.rights.start
    }

    /// The place of the piece's batch among the slots.
    fn slot(&mut self, piece: usize) -> usize {
        let slots = &mut self.slots;
        self.rights.pieces.get_mut(piece).map_or(0, |piece| {
            *piece.slot.get_or_insert_with(|| {
                slots.push(piece.read.batch.clone());
                slots.len() - 1
            })
        })
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
        self.rights.pieces.iter_mut().for_each(|piece| piece.slot = None);
        self.pairs = pairs;
        self.pairs.clear();
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}
