//! Owns: a window join that makes the aggregates of each left row's window itself, without a row for each pair.
//!
//! A window join whose pairs are grouped by the left row, with aggregates of the right side alone, needs no pairs: eight million of
//! them took ninety times as long as the aggregates of their 21,000 windows (`bench/FIGURES.md`).
//!
//! What must hold: the columns and their values are those that the aggregates of the pairs have, but for what `folds` says of numbers
//! that were calculated, and the rows keep the order of the left side. An aggregate that is not known here stays one of pairs. A batch
//! ends when many right rows have been added, so that first rows come early and the thread is given back.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::projection::{ProjectionMapping, update_expr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::buffer::BufferExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;

use super::Window;
use super::folds::{Extreme, Kind, Moving};
use super::rights::Rights;
use crate::functions::aggregates::Of;
use crate::functions::ordered::Which;
use crate::pieces::BATCH_ROWS;
use crate::scan::Scan;
use crate::side::{Loaded, Side};
use crate::sorted_join::SortedJoin;

type Expr = Arc<dyn PhysicalExpr>;

/// A column of the groups that is the same for all pairs of a left row.
#[derive(Clone, Debug)]
enum Key {
    /// The number of the left row.
    Row,
    /// Of the left row's columns.
    Left(Expr),
}

/// An aggregate of right rows.
#[derive(Clone, Debug)]
struct Aggregate {
    kind: Kind,
    /// Of the right row's columns, as is the condition.
    arguments: Vec<Expr>,
    condition: Option<Expr>,
}

/// What is made of each left row and its window.
#[derive(Clone, Debug)]
pub struct Groups {
    keys: Vec<Key>,
    aggregates: Vec<Aggregate>,
    /// The aggregates as a statement names them.
    pub names: Vec<String>,
    /// How the keys come of the join's columns.
    pub mapping: ProjectionMapping,
    /// The columns: the keys, then the aggregates.
    pub schema: SchemaRef,
}

/// The rule that puts aggregates into their window join.
#[derive(Debug)]
pub struct WindowGroups;

impl PhysicalOptimizerRule for WindowGroups {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let Some(groups) = node.downcast_ref::<AggregateExec>() else { return Ok(Transformed::no(node)) };
            let joined = joined(groups)?;
            Ok(joined.map_or_else(|| Transformed::no(node), Transformed::yes))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "groups_of_window_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The window joins that make what `groups` makes of their pairs.
fn joined(groups: &AggregateExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let is_whole = matches!(groups.mode(), AggregateMode::Single | AggregateMode::SinglePartitioned);
    if !is_whole || !groups.group_expr().is_single() {
        return Ok(None);
    }
    let mut exprs: Vec<Expr> = groups.group_expr().expr().iter().map(|(key, _)| key.clone()).collect();
    for (aggregate, condition) in groups.aggr_expr().iter().zip(groups.filter_expr()) {
        exprs.extend(aggregate.expressions());
        exprs.extend(condition.clone());
    }
    let (input, exprs) = below_projections(groups.input().clone(), exprs)?;
    let parts = if input.is::<UnionExec>() { input.children().into_iter().cloned().collect() } else { vec![input.clone()] };
    let mut joins: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(parts.len());
    // The parts of one join number their left rows in ranges of their own; two joins do not.
    let mut firsts = HashSet::new();
    for part in parts {
        let (part, exprs) = below_projections(part, exprs.clone())?;
        let Some(join) = part.downcast_ref::<SortedJoin>() else { return Ok(None) };
        let Some((row, first)) = join.left_row() else { return Ok(None) };
        if !firsts.insert(first) {
            return Ok(None);
        }
        let Some(groups) = Groups::of(groups, exprs, join, row)? else { return Ok(None) };
        joins.push(Arc::new(join.with_groups(groups)?));
    }
    // A union of one is that one.
    UnionExec::try_new(joins).map(Some)
}

/// The input of the projections that `plan` begins with, and what `exprs`, over its rows, are there.
fn below_projections(mut plan: Arc<dyn ExecutionPlan>, mut exprs: Vec<Expr>) -> Result<(Arc<dyn ExecutionPlan>, Vec<Expr>)> {
    loop {
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            let Some(below) =
                exprs.iter().map(|expr| update_expr(expr, projection.expr(), true)).collect::<Result<Option<Vec<_>>>>()?
            else {
                return Ok((plan, exprs));
            };
            (exprs, plan) = (below, projection.input().clone());
        } else if let Some(input) = plan.downcast_ref::<CooperativeExec>().map(CooperativeExec::input) {
            plan = input.clone();
        } else {
            return Ok((plan, exprs));
        }
    }
}

impl Groups {
    /// The groups `of` the pairs of `join`, whose column `row` is the left row's number. `exprs` are the keys, and the arguments and
    /// condition of each aggregate, over the join's columns.
    fn of(of: &AggregateExec, exprs: Vec<Expr>, join: &SortedJoin, row: usize) -> Result<Option<Groups>> {
        let [left, right] = join.sides();
        let first = left.schema().fields().len();
        let mut exprs = exprs.into_iter();
        let (mut keys, mut mapped) = (Vec::new(), Vec::new());
        for (_, name) in of.group_expr().expr() {
            let Some(expr) = exprs.next() else { return Ok(None) };
            mapped.push((expr.clone(), name.clone()));
            let is_row = expr.downcast_ref::<Column>().is_some_and(|column| column.index() == row);
            if is_row {
                keys.push(Key::Row);
            } else if is_of(&expr, |column| column < first)? {
                keys.push(Key::Left(expr));
            } else {
                return Ok(None);
            }
        }
        if !keys.iter().any(|key| matches!(key, Key::Row)) {
            return Ok(None);
        }
        let mut aggregates = Vec::new();
        for (aggregate, condition) in of.aggr_expr().iter().zip(of.filter_expr()) {
            let count = aggregate.expressions().len();
            let all: Vec<Expr> = exprs.by_ref().take(count + usize::from(condition.is_some())).collect();
            let schema = right.schema();
            let Some(all) =
                all.into_iter().map(|expr| of_right(expr, first..row, &schema)).collect::<Result<Option<Vec<_>>>>()?
            else {
                return Ok(None);
            };
            let (arguments, condition) = all.split_at(count);
            let Some(kind) = kind(aggregate, arguments, join, &schema)? else { return Ok(None) };
            aggregates.push(Aggregate { kind, arguments: arguments.to_vec(), condition: condition.first().cloned() });
        }
        Ok(Some(Groups {
            keys,
            aggregates,
            names: of.aggr_expr().iter().map(|aggregate| aggregate.name().to_owned()).collect(),
            mapping: ProjectionMapping::try_new(mapped, &join.schema())?,
            schema: of.schema(),
        }))
    }

    /// All that is calculated.
    pub fn exprs(&self) -> impl Iterator<Item = &Expr> {
        let keys = self.keys.iter().filter_map(|key| match key {
            Key::Row => None,
            Key::Left(expr) => Some(expr),
        });
        keys.chain(self.aggregates.iter().flat_map(|of| of.arguments.iter().chain(&of.condition)))
    }

    /// What is calculated of each right row.
    fn values(&self) -> Vec<Expr> {
        self.aggregates.iter().flat_map(|of| of.arguments.iter().chain(&of.condition).cloned()).collect()
    }
}

/// Whether `expr` has columns that `is_one` holds for alone, and one value for equal ones.
fn is_of(expr: &Expr, is_one: impl Fn(usize) -> bool) -> Result<bool> {
    let is_other = expr.exists(|expr| {
        let is_other = expr.downcast_ref::<Column>().is_some_and(|column| !is_one(column.index()));
        Ok(is_other || expr.is_volatile_node())
    });
    Ok(!is_other?)
}

/// `expr`, over a join's columns, over the right side's, which are `columns` of them. `None` if it has others, or may fail for a row
/// that is in no window: integers that are divided, text that is read as a number.
fn of_right(expr: Expr, columns: Range<usize>, schema: &SchemaRef) -> Result<Option<Expr>> {
    if !is_of(&expr, |column| columns.contains(&column))? {
        return Ok(None);
    }
    let expr = expr.transform_up(|expr| {
        let at = expr.downcast_ref::<Column>().map(|column| (column.name().to_owned(), column.index() - columns.start));
        Ok(at.map_or_else(|| Transformed::no(expr), |(name, at)| Transformed::yes(Arc::new(Column::new(&name, at)) as Expr)))
    });
    let expr = expr.data()?;
    let mut is_safe = true;
    expr.apply(|expr| {
        let of = expr.data_type(schema)?;
        let is_leaf = expr.is::<Column>() || expr.is::<Literal>();
        is_safe &= if is_leaf {
            of.is_primitive() || of == DataType::Boolean
        } else {
            matches!(of, DataType::Float64 | DataType::Boolean)
        };
        Ok(if is_safe { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_safe.then_some(expr))
}

/// Whether the rows of `plan` are some of a table's, each once, with its columns.
fn has_rows_of_a_table(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let passes = plan.is::<SortPreservingMergeExec>()
        || plan.is::<SortExec>()
        || plan.is::<BufferExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<RepartitionExec>()
        || plan.downcast_ref::<FilterExec>().is_some_and(|filter| filter.projection().is_none());
    plan.is::<Scan>() || passes && plan.children().into_iter().all(has_rows_of_a_table)
}

/// Which aggregate `of` the `arguments` is; `None` if none that is known here.
fn kind(of: &AggregateFunctionExpr, arguments: &[Expr], join: &SortedJoin, schema: &SchemaRef) -> Result<Option<Kind>> {
    if of.is_distinct() || of.ignore_nulls() || !of.order_bys().is_empty() {
        return Ok(None);
    }
    let types = arguments.iter().map(|argument| argument.data_type(schema)).collect::<Result<Vec<_>>>()?;
    let ns = |of: &DataType| matches!(of, DataType::Timestamp(TimeUnit::Nanosecond, _));
    let is_number = |of: &DataType| matches!(of, DataType::Int64 | DataType::UInt64 | DataType::Float64);
    let name = of.fun().name();
    let units = Of::named(name).filter(|_| types.iter().all(is_number));
    if let (Some(of), 1 | 2) = (units, types.len()) {
        return Ok(Some(Kind::Units(of)));
    }
    let is_at = |at: usize, is: &dyn Fn(usize) -> bool| {
        arguments.get(at).and_then(|of| of.downcast_ref::<Column>()).is_some_and(|column| is(column.index()))
    };
    Ok(match (name, types.as_slice()) {
        ("count", [_]) => Some(Kind::Count),
        ("avg" | "sum", [DataType::Float64]) => Some(Kind::Floats { is_mean: name == "avg" }),
        ("min" | "max", [of]) if is_number(of) || ns(of) => {
            let which = if name == "min" { Extreme::Least } else { Extreme::Greatest };
            Some(Kind::Extreme(which, of.clone()))
        }
        ("first_by" | "last_by", [of, ..]) if is_number(of) || ns(of) => {
            // The rows of a window come by these two. Only a table's have no two rows with equal ones.
            let is_order = has_rows_of_a_table(join.sides()[1])
                && is_at(1, &|at| join.is_right_time(at))
                && is_at(2, &|at| join.right_lsn() == Some(at));
            let which = if name == "first_by" { Which::First } else { Which::Last };
            is_order.then(|| Kind::Ordered(which, of.clone()))
        }
        _ => None,
    })
}

/// The merge that makes the groups.
pub struct Merge {
    groups: Groups,
    window: Window,
    left: Side,
    rights: Rights,
    aggregates: Vec<Box<dyn Moving>>,
    /// The left rows, and the run of them and the row that is next.
    now: Option<Arc<Loaded>>,
    run: usize,
    row: usize,
    /// The number of the first row of `now`.
    number: i64,
    /// The right rows of the key that have been added, and how many of all since the batch began.
    end: usize,
    added: usize,
}

/// Right rows that are added to the aggregates before a batch ends, or the thread is given back.
const ADDED_MAX: usize = 65_536;

impl Merge {
    /// The merge of `left` and `right`. `nothing` is a row of nulls of the right side, `number` the number of the first left row,
    /// `held` the memory that it takes.
    ///
    /// # Errors
    /// An aggregate cannot be calculated.
    pub fn new(
        (left, right): (Side, Side),
        nothing: &RecordBatch,
        (window, number): (Window, i64),
        groups: &Groups,
        held: &MemoryReservation,
    ) -> Result<Merge> {
        let values = groups.values();
        let nulls: Vec<ArrayRef> =
            values.iter().map(|value| value.evaluate(nothing)?.into_array(1)).collect::<Result<Vec<_>>>()?;
        let (mut aggregates, mut at) = (Vec::new(), 0);
        for Aggregate { kind, arguments, condition } in &groups.aggregates {
            let end = at + arguments.len();
            aggregates.push(kind.moving(at..end, condition.as_ref().map(|_| end), &nulls, held.new_empty()));
            at = end + usize::from(condition.is_some());
        }
        Ok(Merge {
            groups: groups.clone(),
            window,
            left,
            rights: Rights::new(right.with_values(values)),
            aggregates,
            now: None,
            run: 0,
            row: 0,
            number,
            end: 0,
            added: 0,
        })
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Those of the sides, and of the aggregates.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(left) = self.now.clone() else {
                let Some(next) = self.left.next().await? else { return Ok(None) };
                (self.now, self.run, self.row) = (Some(Arc::new(next)), 0, 0);
                continue;
            };
            let (rows, first) = (left.batch.num_rows(), self.row);
            if first == rows {
                self.number += rows as i64;
                self.now = None;
                continue;
            }
            let end = rows.min(first + BATCH_ROWS);
            self.added = 0;
            while self.row < end && self.added < ADDED_MAX {
                let Some((run, key)) = left.runs.get(self.run) else { break };
                if self.row >= run.end {
                    self.run += 1;
                    continue;
                }
                let is_nothing = self.rights.is_nothing(key) || left.times.is_null(self.row);
                if !is_nothing && self.rights.seek(key).await? {
                    self.aggregates.iter_mut().for_each(|aggregate| aggregate.begin());
                    self.end = 0;
                }
                let has_none = is_nothing || self.window(left.times.value(self.row)).await?;
                self.aggregates.iter_mut().try_for_each(|aggregate| aggregate.take(has_none))?;
                self.row += 1;
            }
            return self.batch(&left, first..self.row).map(Some);
        }
    }

    /// Moves the aggregates to the window of a left row of the time `time`. Returns whether no right row is in it.
    async fn window(&mut self, time: i64) -> Result<bool> {
        let window = (time.saturating_add(self.window.start), time.saturating_add(self.window.end));
        self.rights.load(window.1).await?;
        self.rights.advance(window.0);
        let rows = self.rights.range(self.window, window);
        if rows.is_empty() {
            return Ok(true);
        }
        self.aggregates.iter_mut().try_for_each(|aggregate| aggregate.start(&self.rights, rows.start))?;
        self.end = self.end.max(rows.start);
        while self.end < rows.end {
            let end = rows.end.min(self.end + ADDED_MAX);
            self.aggregates.iter_mut().try_for_each(|aggregate| aggregate.end(&self.rights, end))?;
            self.added += end - self.end;
            self.end = end;
            if end < rows.end {
                tokio::task::yield_now().await;
            }
        }
        Ok(false)
    }

    /// The groups of the left rows `rows`.
    fn batch(&mut self, left: &Loaded, rows: Range<usize>) -> Result<RecordBatch> {
        let some = left.batch.slice(rows.start, rows.len());
        let mut columns = Vec::with_capacity(self.groups.schema.fields().len());
        for key in &self.groups.keys {
            columns.push(match key {
                Key::Left(expr) => expr.evaluate(&some)?.into_array(rows.len())?,
                Key::Row => {
                    let first = self.number + rows.start as i64;
                    Arc::new(Int64Array::from_iter_values(first..first + rows.len() as i64)) as ArrayRef
                }
            });
        }
        for aggregate in &mut self.aggregates {
            columns.push(aggregate.taken()?);
        }
        let wrong = |error| DataFusionError::ArrowError(Box::new(error), None);
        RecordBatch::try_new(self.groups.schema.clone(), columns).map_err(wrong)
    }
}
