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
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Distribution, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{StreamExt, stream};

use crate::asof::node::lsn_of;
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
    Ok(Arc::new(LatestExec::new(input.clone(), time, keys, lsn_of(node.input.schema()))))
}

/// Keeps the first row of each run of keys.
#[derive(Debug)]
struct LatestExec {
    input: Arc<dyn ExecutionPlan>,
    time: Arc<dyn PhysicalExpr>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    lsn: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl LatestExec {
    fn new(
        input: Arc<dyn ExecutionPlan>,
        time: Arc<dyn PhysicalExpr>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        lsn: Option<usize>,
    ) -> LatestExec {
        let properties = input.properties().clone();
        LatestExec { input, time, keys, lsn, properties }
    }
}

impl DisplayAs for LatestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        write!(f, "LatestExec: on {} by {}", self.time, keys.join(", "))
    }
}

impl ExecutionPlan for LatestExec {
    fn name(&self) -> &'static str {
        "LatestExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let ascending = SortOptions { descending: false, nulls_first: false };
        let descending = SortOptions { descending: true, nulls_first: false };
        let mut sorted: Vec<PhysicalSortExpr> =
            self.keys.iter().map(|key| PhysicalSortExpr::new(key.clone(), ascending)).collect();
        sorted.push(PhysicalSortExpr::new(self.time.clone(), descending));
        if let Some(at) = self.lsn {
            let name = self.input.schema().field(at).name().clone();
            sorted.push(PhysicalSortExpr::new(Arc::new(Column::new(&name, at)), descending));
        }
        vec![LexOrdering::new(sorted).map(OrderingRequirements::from)]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for expr in std::iter::once(&self.time).chain(&self.keys) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[Arc<dyn ExecutionPlan>; 1]>::try_from(children)
            .map_err(|_| DataFusionError::Internal("the newest rows have one input".to_owned()))?;
        Ok(Arc::new(LatestExec::new(input, self.time.clone(), self.keys.clone(), self.lsn)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
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
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), newest)))
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
