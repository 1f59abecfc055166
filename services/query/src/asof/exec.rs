//! Owns: the merge of two sides that are sorted by keys and time.
//!
//! What must hold: memory is constant: one batch of the left side, and of the right side a number of batches in which matches of
//! that batch lie; if there are more, the matched rows are copied. Keys are compared once for each run of rows with equal keys,
//! times once for each row.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::row::OwnedRow;
use datafusion::error::Result;

use super::Direction;
use crate::side::{Loaded, Side};

/// The merge.
pub struct Merge {
    schema: SchemaRef,
    direction: Direction,
    /// The greatest distance in time, ns.
    tolerance: Option<u64>,
    /// Added to left times, ns.
    shift: i64,
    has_keys: bool,
    left: Side,
    right: Side,
    /// Batches of the right side in which matches lie; the first is a row of nulls.
    held: Vec<RecordBatch>,
    /// The right rows that are looked at: the last of `held`.
    now: Option<Loaded>,
    /// The run of `now`, and the next row of it.
    run: usize,
    at: usize,
    is_over: bool,
    /// The last right row that was passed, of these keys.
    last: Option<Passed>,
    /// The last of `held` in which a match of the present left rows lies.
    used: usize,
}

struct Passed {
    key: Option<OwnedRow>,
    batch: usize,
    row: usize,
    time: i64,
}

/// The most right batches that are held, besides those of the row of nulls, of the last row and the present ones.
const HELD_MAX: usize = 64;
/// A match of no row: the row of nulls.
const NOTHING: (usize, usize) = (0, 0);

impl Merge {
    /// The merge of `left` and `right` to rows of `schema`. `nothing` is a row of nulls of the right side.
    pub fn new(
        (left, right): (Side, Side),
        nothing: RecordBatch,
        (direction, tolerance, shift): (Direction, Option<u64>, i64),
        schema: SchemaRef,
    ) -> Merge {
        let has_keys = left.has_keys();
        let held = vec![nothing];
        Merge {
            schema,
            direction,
            tolerance,
            shift,
            has_keys,
            left,
            right,
            held,
            now: None,
            run: 0,
            at: 0,
            is_over: false,
            last: None,
            used: 0,
        }
    }

    /// Reads right rows until there are some, or none are left.
    async fn fill(&mut self) -> Result<()> {
        while !self.is_over && self.now.as_ref().is_none_or(|now| self.run >= now.runs.len()) {
            match self.right.next().await? {
                Some(loaded) => {
                    let last = self.last.as_ref().map_or(0, |last| last.batch);
                    // No match lies in the batch that was looked at until now.
                    self.held.truncate(self.used.max(last).max(self.held.len().saturating_sub(2)) + 1);
                    self.held.push(loaded.batch.clone());
                    (self.run, self.at) = (0, loaded.runs.first().map_or(0, |(range, _)| range.start));
                    self.now = Some(loaded);
                }
                None => (self.now, self.is_over) = (None, true),
            }
        }
        Ok(())
    }

    fn next_run(&mut self) {
        self.run += 1;
        self.at = self.now.as_ref().and_then(|now| now.runs.get(self.run)).map_or(0, |(range, _)| range.start);
    }

    /// Forgets right batches in which no match can lie any more.
    fn forget(&mut self) {
        let now = self.now.is_some().then(|| self.held.len() - 1);
        let mut kept: Vec<RecordBatch> = self.held.first().cloned().into_iter().collect();
        if let Some(last) = &mut self.last
            && Some(last.batch) != now
        {
            kept.extend(self.held.get(last.batch).cloned());
            last.batch = 1;
        }
        if let Some(now) = now {
            kept.extend(self.held.get(now).cloned());
            if let Some(last) = self.last.as_mut().filter(|last| last.batch == now) {
                last.batch = kept.len() - 1;
            }
        }
        self.held = kept;
        self.used = 0;
    }

    /// Copies the rows of `matches` to one batch, and forgets the others.
    fn gather(&mut self, matches: &mut [(usize, usize)]) -> Result<()> {
        let Some(nothing) = self.held.first() else { return Ok(()) };
        let options = RecordBatchOptions::new().with_row_count(Some(matches.len()));
        let gathered = RecordBatch::try_new_with_options(nothing.schema(), self.interleaved(matches)?, &options)?;
        self.forget();
        self.held.insert(1, gathered);
        if let Some(last) = &mut self.last {
            last.batch += 1;
        }
        self.used = 1;
        for (row, of) in matches.iter_mut().enumerate().filter(|(_, of)| **of != NOTHING) {
            *of = (1, row);
        }
        Ok(())
    }

    /// The columns of the right side's rows `matches`.
    fn interleaved(&self, matches: &[(usize, usize)]) -> Result<Vec<ArrayRef>> {
        let count = self.held.first().map_or(0, RecordBatch::num_columns);
        let mut columns = Vec::with_capacity(count);
        for column in 0..count {
            let arrays: Vec<&dyn Array> = self.held.iter().map(|batch| batch.column(column).as_ref()).collect();
            columns.push(interleave(&arrays, matches)?);
        }
        Ok(columns)
    }

    /// The next rows of the join; `None` at the end.
    ///
    /// # Errors
    /// Those of the sides.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(left) = self.left.next().await? else { return Ok(None) };
        self.forget();
        let mut matches: Vec<(usize, usize)> = Vec::with_capacity(left.batch.num_rows());
        let has_keys = self.has_keys;
        for (range, key) in &left.runs {
            if has_keys && key.is_none() {
                matches.resize(range.end, NOTHING);
                continue;
            }
            // Right rows of lesser keys have no left row any more.
            loop {
                self.fill().await?;
                let Some((_, of)) = self.now.as_ref().and_then(|now| now.runs.get(self.run)) else { break };
                let is_before = has_keys && of.as_ref().is_some_and(|of| Some(of) < key.as_ref());
                if !is_before {
                    break;
                }
                self.next_run();
            }
            if self.last.as_ref().is_some_and(|last| last.key != *key) {
                self.last = None;
            }
            let mut row = range.start;
            while row < range.end {
                self.fill().await?;
                row = self.advance(&left.times, row..range.end, key, &mut matches);
                if self.held.len() > HELD_MAX + 2 {
                    self.gather(&mut matches)?;
                }
            }
        }
        self.batch(&left.batch, &matches).map(Some)
    }

    /// Finds matches of the left rows `rows`, whose keys are `key`, in the run of right rows that is looked at; returns the
    /// first row for which further right rows are needed.
    fn advance(
        &mut self,
        times: &Int64Array,
        rows: Range<usize>,
        key: &Option<OwnedRow>,
        matches: &mut Vec<(usize, usize)>,
    ) -> usize {
        let Direction { backwards, inclusive } = self.direction;
        let (tolerance, shift) = (self.tolerance, self.shift);
        let is_near = |a: i64, b: i64| tolerance.is_none_or(|tolerance| a.abs_diff(b) <= tolerance);
        let batch = self.held.len() - 1;
        let run = self.now.as_ref().and_then(|now| now.runs.get(self.run).map(|run| (now, run)));
        let (right, end) = match run {
            // Rows whose time is null are the last ones, and match nothing.
            Some((now, (range, of))) if of == key => (Some(&now.times), range.end),
            _ => (None, 0),
        };
        let values: &[i64] = right.map_or(&[], |right| right.values());
        let end = end.min(values.len());
        let is_valid = |at: usize| right.is_some_and(|right| right.is_valid(at));
        let mut at = self.at;
        let mut passed = None;
        for row in rows.clone() {
            if times.is_null(row) {
                matches.push(NOTHING);
                continue;
            }
            let time = times.value(row).saturating_add(shift);
            // Backwards: passes right rows that are not after the left row. Otherwise: those that are before it.
            let is_passed = |right: i64| if backwards == inclusive { right <= time } else { right < time };
            while at < end && values.get(at).is_some_and(|right| is_passed(*right)) && is_valid(at) {
                passed = Some(at);
                at += 1;
            }
            if right.is_some() && at >= end {
                // The run goes on in the next batch, perhaps.
                self.pass(passed, batch, key);
                self.next_run();
                return row;
            }
            let found = if backwards {
                match passed {
                    Some(at) => values.get(at).map(|time| (batch, at, *time)),
                    None => self.last.as_ref().map(|last| (last.batch, last.row, last.time)),
                }
            } else if is_valid(at) {
                values.get(at).map(|time| (batch, at, *time))
            } else {
                None
            };
            let near = found.filter(|(.., of)| is_near(*of, time));
            let place = near.map_or(NOTHING, |(batch, row, _)| (batch, row));
            self.used = self.used.max(place.0);
            matches.push(place);
        }
        self.at = at;
        self.pass(passed, batch, key);
        rows.end
    }

    fn pass(&mut self, row: Option<usize>, batch: usize, key: &Option<OwnedRow>) {
        let time = row.and_then(|row| Some((row, *self.now.as_ref()?.times.values().get(row)?)));
        if let Some((row, time)) = time {
            self.last = Some(Passed { key: key.clone(), batch, row, time });
        }
    }

    fn batch(&self, left: &RecordBatch, matches: &[(usize, usize)]) -> Result<RecordBatch> {
        let mut columns = left.columns().to_vec();
        // Most left batches have their matches in one right batch.
        let used = matches.iter().map(|(batch, _)| *batch).filter(|batch| *batch != 0);
        let (least, most) = used.fold((usize::MAX, 0), |(least, most), batch| (least.min(batch), most.max(batch)));
        if least == most
            && let Some(one) = self.held.get(least)
        {
            let rows: UInt32Array = matches.iter().map(|(batch, row)| (*batch != 0).then_some(*row as u32)).collect();
            for column in one.columns() {
                columns.push(take(column.as_ref(), &rows, None)?);
            }
        } else {
            columns.extend(self.interleaved(matches)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(left.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::physical_expr::expressions::Column;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::stream;

    use super::*;

    /// A side with the column of times `name`, in batches of `rows` rows.
    fn side(name: &str, times: &[i64], rows: usize) -> (Side, Arc<Schema>) {
        let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]));
        let array = |times: &[i64]| Arc::new(Int64Array::from(times.to_vec())) as ArrayRef;
        let batches: Vec<_> =
            times.chunks(rows).map(|part| Ok(RecordBatch::try_new(schema.clone(), vec![array(part)])?)).collect();
        let rows = Box::pin(RecordBatchStreamAdapter::new(schema.clone(), stream::iter(batches)));
        (Side::new(rows, Vec::new(), Arc::new(Column::new(name, 0))), schema)
    }

    #[test]
    fn a_left_batch_whose_matches_lie_in_many_right_batches_holds_few_of_them() {
        let lefts: Vec<i64> = (0..2_000).map(|at| at * 30 + 1).collect();
        let rights: Vec<i64> = (0..20_000).map(|at| at * 3).collect();
        let ((left, left_schema), (right, right_schema)) = (side("a", &lefts, 2_000), side("b", &rights, 3));
        let fields = vec![left_schema.field(0).clone(), right_schema.field(0).clone()];
        let null = RecordBatch::try_new(right_schema, vec![arrow::array::new_null_array(&DataType::Int64, 1)]).unwrap();
        let rule = (Direction { backwards: true, inclusive: true }, None, 0);
        let mut merge = Merge::new((left, right), null, rule, Arc::new(Schema::new(fields)));
        let joined = futures::executor::block_on(merge.next()).unwrap().unwrap();
        let found: Vec<Option<i64>> = joined.column(1).as_primitive::<Int64Type>().iter().collect();
        let expected: Vec<Option<i64>> = lefts.iter().map(|time| Some(time / 3 * 3)).collect();
        assert_eq!(found, expected);
        assert!(merge.held.len() <= HELD_MAX + 3, "{} batches are held", merge.held.len());
    }
}
