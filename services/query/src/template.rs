//! Owns: plans of operators that were made before. To make one takes a millisecond, longer than to read a few thousand rows.
//!
//! What must hold: a template has no snapshot. The planner made it without knowing the rows: it leaves out an operator that
//! would change nothing for the rows that it knows (a sort of rows with one time, a limit above none). It is kept only of
//! operators that hold nothing of the moment: no rows, no bound that grows while they run. It is used only with the names of
//! instruments that it was made with, since its scans know instruments by their numbers.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::DynamicFilterPhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::sorts::sort::SortExec;
use tapestore::reader::Snapshot;

use crate::names::Names;
use crate::scan::{Scan, ScanPlace};

/// The operators that hold nothing of the moment, by name.
const LASTING: [&str; 17] = [
    "AggregateExec",
    "BoundedWindowAggExec",
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "FilterExec",
    "GlobalLimitExec",
    "LocalLimitExec",
    "ProjectionExec",
    "SortExec",
    "SortPreservingMergeExec",
    "WindowAggExec",
    "AsOfJoinExec",
    "FillExec",
    "LatestExec",
    "MovingExec",
    "WindowJoinExec",
];

/// A plan of operators with a place for each scan.
#[derive(Clone, Debug)]
pub struct Template {
    plan: Arc<dyn ExecutionPlan>,
    names: Arc<Names>,
}

/// Whether `expr` has a bound that grows while the plan runs.
fn has_bound(expr: &Arc<dyn PhysicalExpr>) -> Result<bool> {
    expr.exists(|expr| Ok(expr.downcast_ref::<DynamicFilterPhysicalExpr>().is_some()))
}

fn is_lasting(node: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    // A sort of the first few rows compares with a bound that grows.
    let is_top = node.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_some());
    if is_top || !LASTING.contains(&node.name()) {
        return Ok(false);
    }
    let mut has = false;
    node.apply_expressions(&mut |expr| {
        has |= has_bound(expr)?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(!has)
}

impl Template {
    /// Whether it was made with `names`.
    pub fn is_of(&self, names: &Arc<Names>) -> bool {
        Arc::ptr_eq(&self.names, names)
    }

    /// The template of `plan`, whose instruments are `names`; `None` if it may not be kept.
    ///
    /// # Errors
    /// None that a statement can cause.
    pub fn of(plan: &Arc<dyn ExecutionPlan>, names: &Arc<Names>) -> Result<Option<Template>> {
        let mut is_whole = true;
        let plan = plan.clone().transform_up(|node| {
            if let Some(scan) = node.downcast_ref::<Scan>() {
                let Some(place) = scan.place() else {
                    is_whole = false;
                    return Ok(Transformed::new(node, false, TreeNodeRecursion::Stop));
                };
                return Ok(Transformed::yes(Arc::new(place) as Arc<dyn ExecutionPlan>));
            }
            // An operator without an input would not be made again: its metrics would be those of all statements.
            let keeps = node.downcast_ref::<ScanPlace>().is_some() || !node.children().is_empty() && is_lasting(&node)?;
            is_whole &= keeps;
            Ok(Transformed::new(node, false, if keeps { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop }))
        });
        let plan = plan.data()?;
        Ok(is_whole.then(|| Template { plan, names: names.clone() }))
    }

    /// The plan over the rows of `snapshot`, whose instruments are `names`; `None` if another plan may be better for these.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn at(&self, snapshot: &Snapshot, names: &Arc<Names>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if !self.is_of(names) {
            return Ok(None);
        }
        let mut is_whole = true;
        let plan = self.plan.clone().transform_up(|node| {
            if let Some(sort) = node.downcast_ref::<SortExec>() {
                // A copy of a sort shares its metrics, which grow with each run.
                let new = SortExec::new(sort.expr().clone(), sort.input().clone());
                let new = new.with_preserve_partitioning(sort.preserve_partitioning());
                return Ok(Transformed::yes(Arc::new(new) as Arc<dyn ExecutionPlan>));
            }
            let Some(place) = node.downcast_ref::<ScanPlace>() else { return Ok(Transformed::no(node)) };
            match place.at(snapshot)? {
                Some(scan) => Ok(Transformed::yes(Arc::new(scan) as Arc<dyn ExecutionPlan>)),
                None => {
                    is_whole = false;
                    Ok(Transformed::new(node, false, TreeNodeRecursion::Stop))
                }
            }
        });
        let plan = plan.data()?;
        Ok(is_whole.then_some(plan))
    }
}
