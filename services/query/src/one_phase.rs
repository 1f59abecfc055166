//! Owns: where groups are made in one phase: each symbol's rows are in one partition, and symbol is one of the keys.
//!
//! The planner's library makes groups in two phases: in each partition, then of all, distributed by a hash of the keys. Where a group
//! cannot be in two partitions the second phase is work for nothing: a third of the time of the bars of all symbols.
//!
//! What must hold: no operator above relies on the distribution by the hash. That is so up to an operator that distributes the rows
//! anew, or puts the partitions together.

use std::sync::Arc;

use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ExecutionPlan, replace_children_if_necessary};

use crate::scan::Scan;

/// The rule.
#[derive(Debug)]
pub struct OnePhase;

impl PhysicalOptimizerRule for OnePhase {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        changed(plan, true)
    }

    fn name(&self) -> &'static str {
        "groups_in_one_phase"
    }

    fn schema_check(&self) -> bool {
        true
    }
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
    let Some(last) = plan.downcast_ref::<AggregateExec>() else { return Ok(None) };
    if *last.mode() != AggregateMode::FinalPartitioned {
        return Ok(None);
    }
    let Some(distribution) = last.input().downcast_ref::<RepartitionExec>() else { return Ok(None) };
    let Some(first) = distribution.input().downcast_ref::<AggregateExec>() else { return Ok(None) };
    if *first.mode() != AggregateMode::Partial || !first.group_expr().is_single() {
        return Ok(None);
    }
    for (key, _) in first.group_expr().expr() {
        let Some(input) = by_symbol(first.input(), key)? else { continue };
        let one = AggregateExec::try_new(
            AggregateMode::SinglePartitioned,
            first.group_expr().clone(),
            first.aggr_expr().to_vec(),
            first.filter_expr().to_vec(),
            input,
            first.input_schema(),
        )?;
        return Ok(Some(Arc::new(one.with_limit_options(last.limit_options()))));
    }
    Ok(None)
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
    let below: Option<Arc<dyn PhysicalExpr>> = if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        projection.expr().get(column.index()).map(|of| of.expr.clone())
    } else if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        let at = match filter.projection() {
            Some(columns) => columns.get(column.index()).copied(),
            None => Some(column.index()),
        };
        at.map(|at| Arc::new(Column::new(column.name(), at)) as Arc<dyn PhysicalExpr>)
    } else if plan.is::<CooperativeExec>() {
        Some(key.clone())
    } else {
        None
    };
    let children = plan.children();
    let (Some(below), [input]) = (below, children.as_slice()) else { return Ok(None) };
    let input = by_symbol(input, &below)?;
    input.map(|input| replace_children_if_necessary(plan.clone(), vec![input])).transpose()
}
