//! Owns: one side of a join by keys and time: its sorted batches, with times as integers and runs of equal keys.
//!
//! What must hold: keys are compared once for each run of rows with equal keys.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use arrow::row::OwnedRow;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::PhysicalExpr;
use futures::StreamExt;

use crate::runs::Runs;

type Expr = Arc<dyn PhysicalExpr>;

/// Rows of a side.
pub struct Loaded {
    /// The rows.
    pub batch: RecordBatch,
    /// The times; one that is null is null.
    pub times: Int64Array,
    /// Rows with equal keys, with the keys; `None`: a key is null, and equal to nothing.
    pub runs: Vec<(Range<usize>, Option<OwnedRow>)>,
    /// What [`Side::with_values`] asked for.
    pub values: Vec<ArrayRef>,
}

/// One side of the join.
pub struct Side {
    rows: SendableRecordBatchStream,
    keys: Vec<Expr>,
    time: Expr,
    runs: Runs,
    values: Vec<Expr>,
}

impl Side {
    /// The side of `rows`, which are sorted by `keys` and `time`.
    pub fn new(rows: SendableRecordBatchStream, keys: Vec<Expr>, time: Expr) -> Side {
        Side { rows, keys, time, runs: Runs::default(), values: Vec::new() }
    }

    /// The side, which calculates `values` of its rows too.
    pub fn with_values(self, values: Vec<Expr>) -> Side {
        Side { values, ..self }
    }

    /// Whether it has keys.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The next rows, at least one; `None` at the end.
    ///
    /// # Errors
    /// Those of the rows; keys that cannot be compared.
    pub async fn next(&mut self) -> Result<Option<Loaded>> {
        while let Some(batch) = self.rows.next().await.transpose()? {
            if batch.num_rows() > 0 {
                return self.load(batch).map(Some);
            }
        }
        Ok(None)
    }

    fn load(&mut self, batch: RecordBatch) -> Result<Loaded> {
        let rows = batch.num_rows();
        let array = |expr: &Expr| -> Result<ArrayRef> { expr.evaluate(&batch)?.into_array(rows) };
        let times = times(&array(&self.time)?)?;
        let keys = self.keys.iter().map(array).collect::<Result<Vec<_>>>()?;
        let runs = if keys.is_empty() {
            vec![(0..rows, None)]
        } else {
            let runs = self.runs.of(&keys)?;
            runs.into_iter().map(|run| (run.rows, (!run.has_null).then_some(run.key))).collect()
        };
        let values = self.values.iter().map(array).collect::<Result<Vec<_>>>()?;
        Ok(Loaded { batch, times, runs, values })
    }
}

/// `array` as signed numbers.
fn times(array: &ArrayRef) -> Result<Int64Array> {
    let of = array.data_type();
    let as_ns = match of {
        DataType::Timestamp(_, _) => {
            arrow::compute::cast(array, &DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None))?
        }
        of if of.is_integer() => array.clone(),
        of => return Err(DataFusionError::Plan(format!("a join by time compares times, not {of}"))),
    };
    Ok(arrow::compute::cast(&as_ns, &DataType::Int64)?.as_primitive().clone())
}
