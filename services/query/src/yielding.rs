//! Owns: where a statement gives its thread back while it works.
//!
//! The planner lets the operators that read tables give the thread back. An operator that makes many rows of few, a join of two
//! tables without a condition, reads no table meanwhile: without this rule it kept a thread of the pool for as long as it had rows to
//! make, also after its statement had been ended by its limit or its client.
//!
//! What must hold: an operator that can make more rows than it reads gives the thread back between batches.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;

/// Operators that can make more rows than they read.
pub const MULTIPLYING: [&str; 9] = [
    "CrossJoinExec",
    "NestedLoopJoinExec",
    "PiecewiseMergeJoinExec",
    "HashJoinExec",
    "SortMergeJoinExec",
    "SymmetricHashJoinExec",
    "WindowJoinExec",
    "UnnestExec",
    "RecursiveQueryExec",
];

/// The rule. It is the last one, because others look for those operators.
#[derive(Debug)]
pub struct Yielding;

impl PhysicalOptimizerRule for Yielding {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            Ok(if MULTIPLYING.contains(&plan.name()) {
                Transformed::yes(Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>)
            } else {
                Transformed::no(plan)
            })
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "yield_between_batches_of_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
