//! Owns: where the rows of a statement are made: on the threads that clients are served on, or, of one that reads many rows, on
//! threads of a lower priority.
//!
//! Why: a question for the newest record takes a millisecond, and has to be answered while records come at a high rate. A statement
//! that reads a year takes all threads for as long as it runs: where cores are short, storage, publishers and short statements go first.
//!
//! What must hold: a statement that is dropped ends in the background too, and at most two batches of it wait for its client.

use std::sync::Arc;

use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use tokio::runtime::Handle;

use crate::scan::{FEW_ROWS, Scan};

/// Batches that wait for the client.
const WAITING: usize = 2;
/// Operators that make many rows of few, or of none.
const LONG: [&str; 6] =
    ["CrossJoinExec", "NestedLoopJoinExec", "PiecewiseMergeJoinExec", "UnnestExec", "RecursiveQueryExec", "LazyMemoryExec"];

/// Whether `plan` reads many rows, or makes many.
fn is_long(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut rows = 0;
    let makes_many = plan.exists(|node| {
        rows += node.downcast_ref::<Scan>().map_or(0, Scan::rows);
        Ok(LONG.contains(&node.name()))
    })?;
    Ok(makes_many || rows >= FEW_ROWS)
}

/// The rows of `plan`; if it is a long one, they are made on the threads of `background`.
///
/// # Errors
/// Those of the operators' start.
pub fn rows(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    background: Option<&Handle>,
) -> Result<SendableRecordBatchStream> {
    let Some(background) = background else { return execute_stream(plan, context) };
    if !is_long(&plan)? {
        return execute_stream(plan, context);
    }
    let mut builder = RecordBatchReceiverStreamBuilder::new(plan.schema(), WAITING);
    let client = builder.tx();
    let made = async move {
        let mut rows = execute_stream(plan, context)?;
        while let Some(batch) = rows.next().await {
            // Nobody takes them any more.
            if client.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    builder.spawn_on(made, background);
    Ok(builder.build())
}
