//! Owns: the operator that has one input, in an order and in one partition: the newest row of each key, the newest revision of each row,
//! buckets that are filled.
//!
//! What must hold: rows come in the order that the operator asks for. Unless it says otherwise it keeps that order and the columns.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// What an operator with one input does.
pub trait Step: fmt::Debug + Send + Sync + 'static {
    /// The operator's name.
    const NAME: &'static str;
    /// Whether rows leave in the order in which they come.
    const KEEPS_ORDER: bool;

    /// What `EXPLAIN` prints behind the name.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// The order in which rows have to come.
    fn order(&self) -> Vec<PhysicalSortExpr>;

    /// The columns and the order of its rows.
    fn properties(&self, input: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties> {
        input.properties().clone()
    }

    /// Makes the operator's rows of `rows`.
    ///
    /// # Errors
    /// Memory that it needs from the beginning is not there.
    fn run(&self, rows: SendableRecordBatchStream, context: &TaskContext) -> Result<SendableRecordBatchStream>;
}

/// The operator.
#[derive(Debug)]
pub struct OneInput<S> {
    step: Arc<S>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl<S: Step> OneInput<S> {
    /// The operator that does `step` with the rows of `input`.
    pub fn new(step: Arc<S>, input: Arc<dyn ExecutionPlan>) -> OneInput<S> {
        let properties = step.properties(&input);
        OneInput { step, input, properties }
    }
}

impl<S: Step> DisplayAs for OneInput<S> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", S::NAME)?;
        self.step.describe(f)
    }
}

impl<S: Step> ExecutionPlan for OneInput<S> {
    fn name(&self) -> &'static str {
        S::NAME
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
        vec![LexOrdering::new(self.step.order()).map(OrderingRequirements::from)]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![S::KEEPS_ORDER]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for sorted in self.step.order() {
            if f(&sorted.expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[Arc<dyn ExecutionPlan>; 1]>::try_from(children)
            .map_err(|_| DataFusionError::Internal(format!("{} has one input", S::NAME)))?;
        Ok(Arc::new(OneInput::new(self.step.clone(), input)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context.clone())?;
        self.step.run(rows, &context)
    }
}
