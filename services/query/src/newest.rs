//! Owns: the newest revision of each row: of rows with equal keys the one with the greatest LSN.
//!
//! The rows are sorted by the keys and the LSN, which a table's scan by symbol and time is already, and the last of each run of
//! keys is kept.
//!
//! What must hold: a condition on keys alone is applied below: it leaves all revisions of a row or none. No other one is.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{SortOptions, take_record_batch};
use arrow::row::OwnedRow;
use datafusion::common::DFSchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::expressions::Column as ColumnExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};

use crate::one_input::{OneInput, Step};
use crate::runs::Runs;

/// The keys of a row.
const KEYS: [&str; 2] = ["symbol", "time"];
/// What orders its revisions.
const REVISION: &str = "lsn";

/// The newest revision of each row of a kind's table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Newest {
    /// The revisions.
    pub input: LogicalPlan,
}

impl PartialOrd for Newest {
    fn partial_cmp(&self, other: &Newest) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

fn wrong() -> DataFusionError {
    DataFusionError::Internal("the newest revisions have one input, with symbol, time and lsn".to_owned())
}

impl UserDefinedLogicalNodeCore for Newest {
    fn name(&self) -> &'static str {
        "Newest"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let names = self.schema().fields().iter().map(|field| field.name().clone());
        names.filter(|name| !KEYS.contains(&name.as_str())).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Newest: by {}", KEYS.join(", "))
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Newest> {
        let [input] = <[LogicalPlan; 1]>::try_from(inputs).map_err(|_| wrong())?;
        Ok(Newest { input })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let schema = self.input.schema();
        let mut needed = output_columns.to_vec();
        for name in KEYS.into_iter().chain([REVISION]) {
            needed.push(schema.index_of_column_by_name(None, name)?);
        }
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Plans the newest revisions of the rows of `input`.
///
/// # Errors
/// It has no symbol, time or LSN.
pub fn plan(input: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let column =
        |name: &str| -> Result<Arc<dyn PhysicalExpr>> { Ok(Arc::new(ColumnExpr::new(name, input.schema().index_of(name)?))) };
    let keys = KEYS.iter().map(|name| column(name)).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(OneInput::new(Arc::new(LastOfKeys { keys, lsn: column(REVISION)? }), input.clone())))
}

/// Keeps the last row of each run of keys.
#[derive(Debug)]
struct LastOfKeys {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    lsn: Arc<dyn PhysicalExpr>,
}

impl Step for LastOfKeys {
    const NAME: &'static str = "NewestExec";
    const KEEPS_ORDER: bool = true;

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by {}", KEYS.join(", "))
    }

    fn order(&self) -> Vec<PhysicalSortExpr> {
        let options = SortOptions { descending: false, nulls_first: false };
        self.keys.iter().chain([&self.lsn]).map(|expr| PhysicalSortExpr::new(expr.clone(), options)).collect()
    }

    fn run(&self, rows: SendableRecordBatchStream, _: &TaskContext) -> Result<SendableRecordBatchStream> {
        let schema = rows.schema();
        // The last row of a batch may have a newer revision in the next one.
        let state = (rows.fuse(), self.keys.clone(), Runs::default(), None::<(OwnedRow, RecordBatch)>);
        let newest = stream::try_unfold(state, |(mut rows, keys, mut runs, mut open)| async move {
            loop {
                let Some(batch) = rows.next().await.transpose()? else {
                    return Ok::<_, DataFusionError>(open.take().map(|(_, row)| (row, (rows, keys, runs, None))));
                };
                if let Some(kept) = last_of_runs(&batch, &keys, &mut runs, &mut open)? {
                    return Ok(Some((kept, (rows, keys, runs, open))));
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, newest)))
    }
}

/// The last rows of the runs that end in `batch`; that of the last one is kept in `open`, with its key.
fn last_of_runs(
    batch: &RecordBatch,
    keys: &[Arc<dyn PhysicalExpr>],
    runs: &mut Runs,
    open: &mut Option<(OwnedRow, RecordBatch)>,
) -> Result<Option<RecordBatch>> {
    let rows = batch.num_rows();
    if rows == 0 {
        return Ok(None);
    }
    let keys = keys.iter().map(|key| key.evaluate(batch)?.into_array(rows)).collect::<Result<Vec<_>>>()?;
    let mut runs = runs.of(&keys)?;
    let before = open.take();
    let ended = before.filter(|(key, _)| runs.first().is_some_and(|first| first.key != *key)).map(|(_, row)| row);
    // A run may end before its keys change.
    let is_last = |at: usize| runs.get(at + 1).zip(runs.get(at)).is_some_and(|(next, run)| next.key != run.key);
    let kept = UInt32Array::from_iter_values(
        (0..runs.len()).filter(|at| is_last(*at)).filter_map(|at| Some((runs.get(at)?.rows.end - 1) as u32)),
    );
    let Some(last) = runs.pop() else { return Ok(ended) };
    // Not a slice: it would keep the whole batch.
    let row = take_record_batch(batch, &UInt32Array::from(vec![(rows - 1) as u32]))?;
    *open = Some((last.key, row));
    let kept = take_record_batch(batch, &kept)?;
    match ended {
        None if kept.num_rows() == 0 => Ok(None),
        None => Ok(Some(kept)),
        Some(ended) => Ok(Some(arrow::compute::concat_batches(&batch.schema(), [&ended, &kept])?)),
    }
}
