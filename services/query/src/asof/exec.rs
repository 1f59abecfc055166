//! Owns: the merge of two sides that are sorted by keys and time.
//!
//! What must hold: memory is constant: one batch of the left side, and of the right side those in which matches of that batch
//! lie. Keys are compared once for each run of rows with equal keys, times once for each row.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::compute::{SortOptions, interleave, take};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::OwnedRow;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinSide, JoinType};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::equivalence::join_equivalence_properties;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Distribution, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt, stream};

use super::Direction;
use super::node::{AsOf, lsn_of};
use crate::runs::Runs;
use crate::scan::Scan;

/// Plans `node`.
///
/// # Errors
/// A key cannot be planned.
pub fn plan(
    node: &AsOf,
    [left_plan, right_plan]: [&LogicalPlan; 2],
    [left, right]: [&Arc<dyn ExecutionPlan>; 2],
    physical: &dyn Fn(&datafusion::logical_expr::Expr, &LogicalPlan) -> Result<Expr>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut on = Vec::new();
    for (a, b) in &node.on {
        on.push((physical(a, left_plan)?, physical(b, right_plan)?));
    }
    let times = (physical(&node.times.0, left_plan)?, physical(&node.times.1, right_plan)?);
    let right = match (left.downcast_ref::<Scan>(), right.downcast_ref::<Scan>(), on.as_slice()) {
        // The left side begins at a time: of the right side one row before it is enough.
        (Some(from), Some(scan), [(_, key)]) if node.direction.backwards => match from.first_time(&times.0) {
            Some(time) => scan.since_before(key, &times.1, time)?.map_or_else(|| right.clone(), |scan| Arc::new(scan)),
            None => right.clone(),
        },
        _ => right.clone(),
    };
    let lsn = lsn_of(right_plan.schema());
    let schema = Arc::new(node.schema().as_arrow().clone());
    let join = Join { on, times, lsn, direction: node.direction, tolerance: node.tolerance, schema };
    Ok(Arc::new(AsOfExec::new(left.clone(), right, join)?))
}

type Expr = Arc<dyn PhysicalExpr>;

/// What is joined, and how.
#[derive(Clone, Debug)]
struct Join {
    on: Vec<(Expr, Expr)>,
    times: (Expr, Expr),
    /// The LSN of the right side: it orders rows of one time.
    lsn: Option<usize>,
    direction: Direction,
    tolerance: Option<u64>,
    schema: SchemaRef,
}

/// The join of two sorted sides.
#[derive(Debug)]
pub struct AsOfExec {
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    join: Join,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl AsOfExec {
    fn new(left: Arc<dyn ExecutionPlan>, right: Arc<dyn ExecutionPlan>, join: Join) -> Result<AsOfExec> {
        let equivalences = join_equivalence_properties(
            left.properties().equivalence_properties().clone(),
            right.properties().equivalence_properties().clone(),
            &JoinType::Left,
            join.schema.clone(),
            &[true, false],
            Some(JoinSide::Left),
            &[],
        )?;
        let partitioning = Partitioning::UnknownPartitioning(1);
        let properties = PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, Boundedness::Bounded);
        Ok(AsOfExec { left, right, join, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() })
    }

    /// The order in which a side must come.
    fn ordering(&self, is_left: bool) -> Option<OrderingRequirements> {
        let ascending = SortOptions { descending: false, nulls_first: false };
        let keys = self.join.on.iter().map(|(left, right)| if is_left { left } else { right });
        let time = if is_left { &self.join.times.0 } else { &self.join.times.1 };
        let mut sorted: Vec<PhysicalSortExpr> =
            keys.chain([time]).map(|expr| PhysicalSortExpr::new(expr.clone(), ascending)).collect();
        if let (false, Some(at)) = (is_left, self.join.lsn) {
            let name = self.right.schema().field(at).name().clone();
            sorted.push(PhysicalSortExpr::new(Arc::new(Column::new(&name, at)), ascending));
        }
        LexOrdering::new(sorted).map(OrderingRequirements::from)
    }
}

impl DisplayAs for AsOfExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Join { on, times, direction, tolerance, .. } = &self.join;
        write!(f, "AsOfJoinExec: {} {} {}", times.0, direction.operator(), times.1)?;
        for (left, right) in on {
            write!(f, ", {left} = {right}")?;
        }
        tolerance.map_or(Ok(()), |ns| write!(f, ", tolerance={ns} ns"))
    }
}

impl ExecutionPlan for AsOfExec {
    fn name(&self) -> &'static str {
        "AsOfJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition; 2]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![self.ordering(true), self.ordering(false)]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true, false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; 2]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let keys = self.join.on.iter().flat_map(|(left, right)| [left, right]);
        for expr in keys.chain([&self.join.times.0, &self.join.times.1]) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let sides = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children);
        let [left, right] = sides.map_err(|_| DataFusionError::Internal("an as-of join has two sides".to_owned()))?;
        Ok(Arc::new(AsOfExec::new(left, right, self.join.clone())?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let left = self.left.execute(0, context.clone())?;
        let right = self.right.execute(0, context)?;
        let nulls = right.schema().fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let nullable = right.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>();
        let nothing = RecordBatch::try_new_with_options(
            Arc::new(arrow::datatypes::Schema::new(nullable)),
            nulls,
            &RecordBatchOptions::new().with_row_count(Some(1)),
        )?;
        let (lefts, rights): (Vec<Expr>, Vec<Expr>) = self.join.on.iter().cloned().unzip();
        let merge = Merge {
            join: self.join.clone(),
            left: Side { rows: left, keys: lefts, time: self.join.times.0.clone(), runs: Runs::default() },
            right: Side { rows: right, keys: rights, time: self.join.times.1.clone(), runs: Runs::default() },
            held: vec![nothing],
            now: None,
            run: 0,
            at: 0,
            is_over: false,
            last: None,
        };
        let rows = stream::try_unfold((merge, metrics), |(mut merge, metrics)| async move {
            let next = merge.next().await?;
            Ok(next.map(|batch| {
                metrics.record_output(batch.num_rows());
                (batch, (merge, metrics))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.join.schema.clone(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Rows of a side.
struct Loaded {
    batch: RecordBatch,
    /// The times; one that is null is null.
    times: Int64Array,
    /// Rows with equal keys, with the keys; `None`: a key is null, and equal to nothing.
    runs: Vec<(Range<usize>, Option<OwnedRow>)>,
}

/// One side of the join.
struct Side {
    rows: SendableRecordBatchStream,
    keys: Vec<Expr>,
    time: Expr,
    runs: Runs,
}

impl Side {
    async fn next(&mut self) -> Result<Option<Loaded>> {
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
        Ok(Loaded { batch, times, runs })
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
        of => return Err(DataFusionError::Plan(format!("the MATCH_CONDITION of an ASOF JOIN compares times, not {of}"))),
    };
    Ok(arrow::compute::cast(&as_ns, &DataType::Int64)?.as_primitive().clone())
}

/// The merge.
struct Merge {
    join: Join,
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
}

struct Passed {
    key: Option<OwnedRow>,
    batch: usize,
    row: usize,
    time: i64,
}

/// A match of no row: the row of nulls.
const NOTHING: (usize, usize) = (0, 0);

impl Merge {
    /// Reads right rows until there are some, or none are left.
    async fn fill(&mut self) -> Result<()> {
        while !self.is_over && self.now.as_ref().is_none_or(|now| self.run >= now.runs.len()) {
            match self.right.next().await? {
                Some(loaded) => {
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
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(left) = self.left.next().await? else { return Ok(None) };
        self.forget();
        let mut matches: Vec<(usize, usize)> = Vec::with_capacity(left.batch.num_rows());
        let has_keys = !self.join.on.is_empty();
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
        let Direction { backwards, inclusive } = self.join.direction;
        let tolerance = self.join.tolerance;
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
            let time = times.value(row);
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
            matches.push(near.map_or(NOTHING, |(batch, row, _)| (batch, row)));
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
        let count = self.held.first().map_or(0, RecordBatch::num_columns);
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
            for column in 0..count {
                let arrays: Vec<&dyn Array> = self.held.iter().map(|batch| batch.column(column).as_ref()).collect();
                columns.push(interleave(&arrays, matches)?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(left.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.join.schema.clone(), columns, &options)?)
    }
}
