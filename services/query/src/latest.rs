//! Owns: `LATEST ON time PARTITION BY symbol`: the newest row of each key, of equal times the one with the greatest LSN.
//!
//! Of a table by symbol the newest rows are read from the end of each series. Otherwise the rows are sorted by the keys and
//! backwards by time, and the first of each run of keys is kept.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{SortOptions, take_record_batch};
use arrow::row::OwnedRow;
use datafusion::common::DFSchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use futures::{StreamExt, stream};

use crate::asof::node::lsn_of;
use crate::one_input::{OneInput, Step};
use crate::runs::Runs;
use crate::scan::Scan;

/// The newest row of each key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Latest {
    /// The rows.
    pub input: LogicalPlan,
    /// The time.
    pub time: Expr,
    /// The keys.
    pub keys: Vec<Expr>,
}

impl PartialOrd for Latest {
    fn partial_cmp(&self, other: &Latest) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for Latest {
    fn name(&self) -> &'static str {
        "Latest"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        std::iter::once(&self.time).chain(&self.keys).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        write!(f, "Latest: on {} by {}", self.time, keys.join(", "))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Latest> {
        let wrong = || DataFusionError::Internal("the newest rows have one input, a time and keys".to_owned());
        let [input] = <[LogicalPlan; 1]>::try_from(inputs).map_err(|_| wrong())?;
        let mut exprs = exprs.into_iter();
        Ok(Latest { input, time: exprs.next().ok_or_else(wrong)?, keys: exprs.collect() })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let schema = self.input.schema();
        let mut needed = output_columns.to_vec();
        for expr in std::iter::once(&self.time).chain(&self.keys) {
            for column in expr.column_refs() {
                needed.push(schema.maybe_index_of_column(column)?);
            }
        }
        needed.extend(lsn_of(schema));
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Makes an expression of a plan one that runs.
type Physical<'a> = dyn Fn(&Expr, &LogicalPlan) -> Result<Arc<dyn PhysicalExpr>> + 'a;

/// Plans `node`.
///
/// # Errors
/// A key cannot be planned.
pub fn plan(node: &Latest, input: &Arc<dyn ExecutionPlan>, physical: &Physical<'_>) -> Result<Arc<dyn ExecutionPlan>> {
    let time = physical(&node.time, &node.input)?;
    let keys = node.keys.iter().map(|key| physical(key, &node.input)).collect::<Result<Vec<_>>>()?;
    if let (Some(scan), [key]) = (input.downcast_ref::<Scan>(), keys.as_slice())
        && let Some(newest) = scan.newest(key, &time)?
    {
        return Ok(Arc::new(newest));
    }
    let lsn = lsn_of(node.input.schema());
    let lsn = lsn.map(|at| Arc::new(Column::new(input.schema().field(at).name(), at)) as Arc<dyn PhysicalExpr>);
    Ok(Arc::new(OneInput::new(Arc::new(FirstOfKeys { time, keys, lsn }), input.clone())))
}

/// Keeps the first row of each run of keys.
#[derive(Debug)]
struct FirstOfKeys {
    time: Arc<dyn PhysicalExpr>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    lsn: Option<Arc<dyn PhysicalExpr>>,
}

impl Step for FirstOfKeys {
    const NAME: &'static str = "LatestExec";
    const KEEPS_ORDER: bool = true;

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        write!(f, "on {} by {}", self.time, keys.join(", "))
    }

    fn order(&self) -> Vec<PhysicalSortExpr> {
        let sorted = |expr: &Arc<dyn PhysicalExpr>, descending| {
            PhysicalSortExpr::new(expr.clone(), SortOptions { descending, nulls_first: false })
        };
        let newest_first = std::iter::once(&self.time).chain(&self.lsn).map(|expr| sorted(expr, true));
        self.keys.iter().map(|key| sorted(key, false)).chain(newest_first).collect()
    }

    fn run(&self, rows: SendableRecordBatchStream, _: &TaskContext) -> Result<SendableRecordBatchStream> {
        let schema = rows.schema();
        let state = (rows, self.keys.clone(), Runs::default(), None::<OwnedRow>);
        let newest = stream::try_unfold(state, |(mut rows, keys, mut runs, mut last)| async move {
            while let Some(batch) = rows.next().await.transpose()? {
                let kept = first_of_runs(&batch, &keys, &mut runs, &mut last)?;
                if kept.num_rows() > 0 {
                    return Ok(Some((kept, (rows, keys, runs, last))));
                }
            }
            Ok::<_, DataFusionError>(None)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, newest)))
    }
}

/// The first row of each run of `batch`, but for a run that `last` has begun.
fn first_of_runs(
    batch: &RecordBatch,
    keys: &[Arc<dyn PhysicalExpr>],
    runs: &mut Runs,
    last: &mut Option<OwnedRow>,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    if rows == 0 {
        return Ok(batch.clone());
    }
    let keys = keys.iter().map(|key| key.evaluate(batch)?.into_array(rows)).collect::<Result<Vec<_>>>()?;
    let mut kept = Vec::new();
    for run in runs.of(&keys)? {
        if last.as_ref() != Some(&run.key) {
            kept.push(run.rows.start as u32);
            *last = Some(run.key);
        }
    }
    Ok(take_record_batch(batch, &UInt32Array::from(kept))?)
}
