//! Owns: where rows are not distributed over threads, or not once more, and how many an ordered scan reads below a limit.
//!
//! The planner's library makes groups in two phases: in each partition, then of all, distributed by a hash of the keys. Where a group
//! cannot be in two partitions the second phase is work for nothing: a third of the time of the bars of all symbols. So groups are made
//! in one phase where each symbol's rows are in one partition, and symbol is one of the keys. A statement that reads few rows has one
//! partition: to wake another thread takes longer than its part of the work. The pairs of a window join are grouped by the left row, and
//! come row by row (most window joins make no pairs: `window::groups`, which looks for groups in one phase).
//!
//! What must hold: no operator above groups in one phase relies on the distribution by the hash. That is so up to an operator that
//! distributes the rows again, or puts the partitions together. A plan in one partition has no operator that distributes rows.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::buffer::BufferExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::{ExecutionPlan, replace_children_if_necessary};

use crate::scan::{FEW_ROWS, Scan};
use crate::sorted_join::SortedJoin;
use crate::yielding::MULTIPLYING;

/// The rule.
#[derive(Debug)]
pub struct Distribution;

impl PhysicalOptimizerRule for Distribution {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = limited(plan, None)?;
        if is_small(&plan)? { in_one_partition(plan) } else { changed(plan, true) }
    }

    fn name(&self) -> &'static str {
        "distribution_of_rows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// `plan` with scans that end after as many rows as an operator above takes; `fetch`: rows of which all others are dropped.
///
/// The planner's library stops to push a limit down where it has distributed the rows of an ordered scan.
fn limited(plan: Arc<dyn ExecutionPlan>, fetch: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<Scan>() {
        let fetch = fetch.filter(|fetch| scan.fetch().is_none_or(|now| *fetch < now));
        return Ok(fetch.and_then(|fetch| scan.with_fetch(Some(fetch))).unwrap_or(plan));
    }
    let gathers = plan.is::<SortPreservingMergeExec>() || plan.is::<CoalescePartitionsExec>();
    let global = plan.downcast_ref::<GlobalLimitExec>();
    let own = if gathers || global.is_some() { plan.fetch() } else { None };
    // A limit of each partition is one of all only below another.
    let is_one = |plan: &Arc<dyn ExecutionPlan>| plan.properties().partitioning.partition_count() == 1;
    let passes = gathers
        || global.is_some()
        || plan.is::<LocalLimitExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<BufferExec>()
        || plan.downcast_ref::<RepartitionExec>().is_some_and(|distribution| is_one(distribution.input()));
    // The rows that are skipped are read too.
    let skip = global.map_or(0, GlobalLimitExec::skip);
    let fetch = fetch.filter(|_| passes).into_iter().chain(own).min().map(|fetch| fetch.saturating_add(skip));
    let children = plan.children().into_iter().map(|child| limited(child.clone(), fetch)).collect::<Result<Vec<_>>>()?;
    replace_children_if_necessary(plan, children)
}

/// Whether `plan` reads few rows, and makes no more of them.
fn is_small(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut rows = 0;
    let is_other = plan.exists(|node| {
        if let Some(scan) = node.downcast_ref::<Scan>() {
            rows += scan.rows();
            return Ok(scan.properties().partitioning.partition_count() != 1);
        }
        let is_leaf = node.children().is_empty() && !node.is::<PlaceholderRowExec>() && !node.is::<EmptyExec>();
        Ok(is_leaf || node.is::<UnionExec>() || node.is::<InterleaveExec>() || MULTIPLYING.contains(&node.name()))
    })?;
    Ok(!is_other && rows < FEW_ROWS)
}

/// `plan`, whose leaves have one partition each, without operators that distribute rows.
fn in_one_partition(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|plan| {
        if let Some(distribution) = plan.downcast_ref::<RepartitionExec>() {
            return Ok(Transformed::yes(distribution.input().clone()));
        }
        if let Some(buffer) = plan.downcast_ref::<BufferExec>() {
            return Ok(Transformed::yes(buffer.input().clone()));
        }
        let Some((first, last)) = phases(&plan) else { return Ok(Transformed::no(plan)) };
        one(first, last, AggregateMode::Single, first.input().clone()).map(Transformed::yes)
    })
    .data()
}

/// The first and the last phase of groups in two phases.
fn phases(plan: &Arc<dyn ExecutionPlan>) -> Option<(&AggregateExec, &AggregateExec)> {
    let last = plan.downcast_ref::<AggregateExec>()?;
    let mut below = last.input();
    while let Some(input) = distributed(below) {
        below = input;
    }
    let first = below.downcast_ref::<AggregateExec>()?;
    let is_last = matches!(last.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned);
    (is_last && *first.mode() == AggregateMode::Partial).then_some((first, last))
}

/// The input of `plan`, if that distributes rows or puts partitions together, and leaves out none.
fn distributed(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    if plan.fetch().is_some() {
        return None;
    }
    let distribution = plan.downcast_ref::<RepartitionExec>().map(RepartitionExec::input);
    let merge = plan.downcast_ref::<SortPreservingMergeExec>().map(SortPreservingMergeExec::input);
    distribution.or(merge).or_else(|| plan.downcast_ref::<CoalescePartitionsExec>().map(CoalescePartitionsExec::input))
}

/// The groups of `first` and `last` of the rows of `input`, in one phase.
fn one(
    first: &AggregateExec,
    last: &AggregateExec,
    mode: AggregateMode,
    input: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let groups = AggregateExec::try_new(
        mode,
        first.group_expr().clone(),
        first.aggr_expr().to_vec(),
        first.filter_expr().to_vec(),
        input,
        first.input_schema(),
    )?;
    Ok(Arc::new(groups.with_limit_options(last.limit_options())))
}

/// `plan` with its groups in one phase; `is_free`: nothing above it relies on its distribution.
fn changed(plan: Arc<dyn ExecutionPlan>, is_free: bool) -> Result<Arc<dyn ExecutionPlan>> {
    if is_free && let Some(new) = in_one_phase(&plan)? {
        return Ok(new);
    }
    let gathers = plan.is::<CoalescePartitionsExec>() || plan.is::<SortPreservingMergeExec>() || plan.is::<RepartitionExec>();
    let passes = plan.is::<ProjectionExec>()
        || plan.is::<FilterExec>()
        || plan.is::<SortExec>()
        || plan.is::<LocalLimitExec>()
        || plan.is::<CooperativeExec>();
    let is_free = gathers || is_free && passes;
    let children = plan.children().into_iter().map(|child| changed(child.clone(), is_free)).collect::<Result<Vec<_>>>()?;
    replace_children_if_necessary(plan, children)
}

/// `plan`, groups in two phases, in one; `None` if it is something else, or a group may be in two partitions.
fn in_one_phase(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some((first, last)) = phases(plan) else { return Ok(None) };
    if *last.mode() != AggregateMode::FinalPartitioned || !first.group_expr().is_single() {
        return Ok(None);
    }
    for (key, _) in first.group_expr().expr() {
        if let Some(input) = by_symbol(first.input(), key)? {
            return one(first, last, AggregateMode::SinglePartitioned, input).map(Some);
        }
        if let Some(input) = by_left_row(first.input(), key) {
            return one(first, last, AggregateMode::SinglePartitioned, input).map(Some);
        }
    }
    Ok(None)
}

/// `plan` without operators that distribute its rows, if `key` is the number of a window join's left row: all pairs of a left row are
/// in one partition.
fn by_left_row(plan: &Arc<dyn ExecutionPlan>, key: &Arc<dyn PhysicalExpr>) -> Option<Arc<dyn ExecutionPlan>> {
    if first_left_row(plan, key).is_some() {
        return Some(plan.clone());
    }
    if plan.is::<UnionExec>() {
        // The parts of one join number their left rows in ranges of their own; two joins do not.
        let parts = plan.children().into_iter().map(|part| first_left_row(part, key)).collect::<Option<Vec<i64>>>()?;
        return (parts.iter().collect::<HashSet<_>>().len() == parts.len()).then(|| plan.clone());
    }
    if let Some(distribution) = plan.downcast_ref::<RepartitionExec>() {
        return by_left_row(distribution.input(), key);
    }
    let input = by_left_row(plan.children().first()?, &below(plan, key)?)?;
    replace_children_if_necessary(plan.clone(), vec![input]).ok()
}

/// The number of the first left row of the window join that makes the rows of `plan`, if `key` is the left row's number.
fn first_left_row(plan: &Arc<dyn ExecutionPlan>, key: &Arc<dyn PhysicalExpr>) -> Option<i64> {
    if let Some(join) = plan.downcast_ref::<SortedJoin>() {
        let (column, first) = join.left_row()?;
        return (key.downcast_ref::<Column>()?.index() == column).then_some(first);
    }
    first_left_row(plan.children().first()?, &below(plan, key)?)
}

/// What `key` is in the input of `plan`, which makes a row of each; `None` if `plan` is another operator, or `key` is calculated there.
fn below(plan: &Arc<dyn ExecutionPlan>, key: &Arc<dyn PhysicalExpr>) -> Option<Arc<dyn PhysicalExpr>> {
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return projection.expr().get(key.downcast_ref::<Column>()?.index()).map(|of| of.expr.clone());
    }
    plan.is::<CooperativeExec>().then(|| key.clone())
}

/// `plan` with each symbol in one partition, if `key` is a table's symbol.
fn by_symbol(plan: &Arc<dyn ExecutionPlan>, key: &Arc<dyn PhysicalExpr>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(scan) = plan.downcast_ref::<Scan>() {
        return if scan.is_symbol(key) {
            Ok(scan.by_symbol()?.map(|scan| Arc::new(scan) as Arc<dyn ExecutionPlan>))
        } else {
            Ok(None)
        };
    }
    let Some(column) = key.downcast_ref::<Column>() else { return Ok(None) };
    let below = if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        let at = match filter.projection() {
            Some(columns) => columns.get(column.index()).copied(),
            None => Some(column.index()),
        };
        at.map(|at| Arc::new(Column::new(column.name(), at)) as Arc<dyn PhysicalExpr>)
    } else {
        below(plan, key)
    };
    let children = plan.children();
    let (Some(below), [input]) = (below, children.as_slice()) else { return Ok(None) };
    let input = by_symbol(input, &below)?;
    input.map(|input| replace_children_if_necessary(plan.clone(), vec![input])).transpose()
}
