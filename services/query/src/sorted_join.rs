//! Owns: the operator of joins whose sides are sorted by keys and time: as-of joins and window joins.
//!
//! A join of two tables of the store by the symbol is one of several parts, by groups of instruments, which run beside each other. A
//! window join makes pairs, or the aggregates of each left row's window.
//!
//! What must hold: both sides come sorted, nulls last, in one partition each. The rows keep the order of the left side.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinSide, JoinType};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr as LogicalExpr, LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_expr::equivalence::join_equivalence_properties;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{Distribution, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::stream;
use tapestore::time::Ts;

use crate::asof::node::{AsOf, lsn_of};
use crate::asof::{self, Direction};
use crate::scan::Scan;
use crate::side::Side;
use crate::window::groups::Groups;
use crate::window::node::WindowJoin;
use crate::window::{self, ROW, Window};

type Expr = Arc<dyn PhysicalExpr>;

/// Which right rows belong to a left row.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// One: as-of the left time.
    AsOf {
        direction: Direction,
        /// The greatest distance in time, ns.
        tolerance: Option<u64>,
        /// Added to left times, ns.
        shift: i64,
    },
    /// All of a window.
    Window(Window),
}

impl Rule {
    /// The first right row's time that belongs to a left row of the time `from` or later, if earlier ones are known not to, but
    /// for the newest before it.
    fn starts(self, from: Ts) -> Option<Ts> {
        match self {
            Rule::AsOf { direction: Direction { backwards: true, .. }, shift, .. } => {
                Some(Ts(from.0.saturating_add_signed(shift)))
            }
            Rule::AsOf { .. } => None,
            Rule::Window(window) => Some(Ts(from.0.saturating_add_signed(window.start))),
        }
    }
}

/// What is joined, and how.
#[derive(Clone, Debug)]
struct Join {
    on: Vec<(Expr, Expr)>,
    times: (Expr, Expr),
    /// The LSN of the right side: it orders rows of one time.
    lsn: Option<usize>,
    rule: Rule,
    /// The number of the first left row.
    first_row: i64,
    schema: SchemaRef,
    /// What is made of the pairs of a window join, if these are not its rows.
    groups: Option<Arc<Groups>>,
}

/// Plans `node`, if it is such a join.
///
/// # Errors
/// A key cannot be planned.
pub fn plan(
    node: &dyn UserDefinedLogicalNode,
    [left_plan, right_plan]: [&LogicalPlan; 2],
    [left, right]: [&Arc<dyn ExecutionPlan>; 2],
    physical: &dyn Fn(&LogicalExpr, &LogicalPlan) -> Result<Expr>,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let schema = Arc::new(node.schema().as_arrow().clone());
    let node = node.as_any();
    let (on, times, rule) = if let Some(node) = node.downcast_ref::<AsOf>() {
        let AsOf { direction, tolerance, shift, .. } = *node;
        (&node.on, &node.times, Rule::AsOf { direction, tolerance, shift })
    } else if let Some(node) = node.downcast_ref::<WindowJoin>() {
        (&node.on, &node.times, Rule::Window(node.window))
    } else {
        return Ok(None);
    };
    let pair = |(a, b): &(LogicalExpr, LogicalExpr)| Ok((physical(a, left_plan)?, physical(b, right_plan)?));
    let on = on.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let times = pair(times)?;
    let lsn = lsn_of(right_plan.schema());
    let join = Join { on, times, lsn, rule, first_row: 0, schema, groups: None };
    let (Some(from), Some(scan), [(left_key, key)]) =
        (left.downcast_ref::<Scan>(), right.downcast_ref::<Scan>(), join.on.as_slice())
    else {
        return Ok(Some(Arc::new(SortedJoin::new(left.clone(), right.clone(), join)?)));
    };
    // The left side begins at a time: of the right side one row before it is enough.
    let start = from.first_time(&join.times.0).and_then(|time| rule.starts(time));
    let since = start.map(|time| scan.since_before(key, &join.times.1, time)).transpose()?.flatten();
    let scan = since.as_ref().unwrap_or(scan);
    let groups = if from.is_symbol(left_key) && scan.is_symbol(key) { from.groups()? } else { Vec::new() };
    if groups.len() < 2 {
        let right = since.map_or_else(|| right.clone(), |scan| Arc::new(scan));
        return Ok(Some(Arc::new(SortedJoin::new(left.clone(), right, join)?)));
    }
    let mut parts: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(groups.len());
    for (part, group) in (0i64..).zip(&groups) {
        let (left, right) = (Arc::new(from.of_group(group)?), Arc::new(scan.of_group(group)?));
        let join = Join { first_row: part << PART_BITS, ..join.clone() };
        parts.push(Arc::new(SortedJoin::new(left, right, join)?));
    }
    UnionExec::try_new(parts).map(Some)
}

/// Left rows of a part of a join are numbered in a range of their own.
const PART_BITS: u32 = 48;

/// The join of two sorted sides.
#[derive(Debug)]
pub struct SortedJoin {
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    join: Join,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SortedJoin {
    fn new(left: Arc<dyn ExecutionPlan>, right: Arc<dyn ExecutionPlan>, join: Join) -> Result<SortedJoin> {
        let mut equivalences = join_equivalence_properties(
            left.properties().equivalence_properties().clone(),
            right.properties().equivalence_properties().clone(),
            &JoinType::Left,
            join.schema.clone(),
            &[true, false],
            Some(JoinSide::Left),
            &[],
        )?;
        if matches!(join.rule, Rule::Window(_)) {
            let at = join.schema.fields().len() - 1;
            let ascending = SortOptions { descending: false, nulls_first: false };
            equivalences.add_ordering([PhysicalSortExpr::new(Arc::new(Column::new(ROW, at)), ascending)]);
        }
        if let Some(groups) = &join.groups {
            equivalences = equivalences.project(&groups.mapping, groups.schema.clone());
        }
        let partitioning = Partitioning::UnknownPartitioning(1);
        let properties = PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, Boundedness::Bounded);
        Ok(SortedJoin { left, right, join, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() })
    }

    /// The column of the number of the left row, and the number of the first one, if it is a window join.
    pub fn left_row(&self) -> Option<(usize, i64)> {
        let has_pairs = matches!(self.join.rule, Rule::Window(_)) && self.join.groups.is_none();
        has_pairs.then(|| (self.join.schema.fields().len() - 1, self.join.first_row))
    }

    /// The sides.
    pub fn sides(&self) -> [&Arc<dyn ExecutionPlan>; 2] {
        [&self.left, &self.right]
    }

    /// Whether column `at` of the right side is its time.
    pub fn is_right_time(&self, at: usize) -> bool {
        self.join.times.1.downcast_ref::<Column>().is_some_and(|time| time.index() == at)
    }

    /// The column of the right side's LSN.
    pub fn right_lsn(&self) -> Option<usize> {
        self.join.lsn
    }

    /// The window join with `groups` in the place of its pairs.
    ///
    /// # Errors
    /// The groups are not of its columns.
    pub fn with_groups(&self, groups: Groups) -> Result<SortedJoin> {
        let join = Join { groups: Some(Arc::new(groups)), ..self.join.clone() };
        SortedJoin::new(self.left.clone(), self.right.clone(), join)
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

impl DisplayAs for SortedJoin {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Join { on, times, rule, .. } = &self.join;
        match rule {
            Rule::AsOf { direction, tolerance, shift } => {
                write!(f, "AsOfJoinExec: {} {} {}", times.0, direction.operator(), times.1)?;
                tolerance.map_or(Ok(()), |ns| write!(f, ", tolerance={ns} ns"))?;
                if *shift != 0 {
                    write!(f, ", shift={shift} ns")?;
                }
            }
            Rule::Window(Window { start, end, prevailing }) => {
                write!(f, "WindowJoinExec: {} in {} + [{start}, {end}] ns, prevailing={prevailing}", times.1, times.0)?;
            }
        }
        self.join.groups.iter().try_for_each(|groups| write!(f, ", aggr=[{}]", groups.names.join(", ")))?;
        on.iter().try_for_each(|(left, right)| write!(f, ", {left} = {right}"))
    }
}

impl ExecutionPlan for SortedJoin {
    fn name(&self) -> &'static str {
        match self.join.rule {
            Rule::AsOf { .. } => "AsOfJoinExec",
            Rule::Window(_) => "WindowJoinExec",
        }
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
        let groups = self.join.groups.iter().flat_map(|groups| groups.exprs());
        for expr in keys.chain([&self.join.times.0, &self.join.times.1]).chain(groups) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let sides = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children);
        let [left, right] = sides.map_err(|_| DataFusionError::Internal("a join has two sides".to_owned()))?;
        Ok(Arc::new(SortedJoin::new(left, right, self.join.clone())?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let left = self.left.execute(0, context.clone())?;
        let right = self.right.execute(0, context.clone())?;
        let nulls = right.schema().fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let nullable = right.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>();
        let one = RecordBatchOptions::new().with_row_count(Some(1));
        let nothing = RecordBatch::try_new_with_options(Arc::new(Schema::new(nullable)), nulls, &one)?;
        let (lefts, rights): (Vec<Expr>, Vec<Expr>) = self.join.on.iter().cloned().unzip();
        let (left_time, right_time) = self.join.times.clone();
        let sides = (Side::new(left, lefts, left_time), Side::new(right, rights, right_time));
        let groups = self.join.groups.clone();
        let schema = groups.as_ref().map_or_else(|| self.join.schema.clone(), |groups| groups.schema.clone());
        let merge = match self.join.rule {
            Rule::AsOf { direction, tolerance, shift } => {
                Merge::AsOf(asof::exec::Merge::new(sides, nothing, (direction, tolerance, shift), schema.clone()))
            }
            Rule::Window(window) => {
                let of = (window, self.join.first_row);
                match &groups {
                    None => Merge::Window(window::exec::Merge::new(sides, nothing, of, schema.clone())),
                    Some(groups) => {
                        let held = MemoryConsumer::new(self.name()).register(context.memory_pool());
                        Merge::Groups(window::groups::Merge::new(sides, &nothing, of, groups, &held)?)
                    }
                }
            }
        };
        let rows = stream::try_unfold((merge, metrics), |(mut merge, metrics)| async move {
            let next = match &mut merge {
                Merge::AsOf(merge) => merge.next().await?,
                Merge::Window(merge) => merge.next().await?,
                Merge::Groups(merge) => merge.next().await?,
            };
            Ok(next.map(|batch| {
                metrics.record_output(batch.num_rows());
                (batch, (merge, metrics))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The merge of a rule.
enum Merge {
    AsOf(asof::exec::Merge),
    Window(window::exec::Merge),
    Groups(window::groups::Merge),
}
