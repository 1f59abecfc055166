//! Owns: the place of a scan in a plan that is kept: which rows it reads, of whichever moment.
//!
//! What must hold: a place has no snapshot, which would keep files and MemTables in memory. It is made of a scan of which the
//! planner knew no number of rows and no bounds, so that the operators above rely on its columns, its order and its one
//! partition alone. The scan that takes its place has the same.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use tapestore::reader::Snapshot;
use tapestore::time::Ts;

use super::units::{FEW_ROWS, Order, Request};
use super::{Scan, starts_before};
use crate::filter::Selection;
use crate::pieces::Shape;
use crate::schema::KindTable;

/// The place of a scan of few rows in one partition.
#[derive(Debug)]
pub struct ScanPlace {
    table: Arc<KindTable>,
    selection: Selection,
    shape: Shape,
    order: Option<Order>,
    fetch: Option<usize>,
    first_only: bool,
    target: usize,
    since: Option<Ts>,
    properties: Arc<PlanProperties>,
}

impl Scan {
    fn is_small(&self) -> bool {
        self.partitions.len() == 1 && self.rows() < FEW_ROWS
    }

    /// Its place in a plan that is kept; `None` if the planner knew its rows, or it reads many, for which another plan may be
    /// better.
    pub fn place(&self) -> Option<ScanPlace> {
        (self.is_blind && self.is_small()).then(|| ScanPlace {
            table: self.table.clone(),
            selection: self.selection.clone(),
            shape: self.shape.clone(),
            order: self.order,
            fetch: self.fetch,
            first_only: self.first_only,
            target: self.target,
            since: self.since,
            properties: self.properties.clone(),
        })
    }
}

impl ScanPlace {
    /// The scan of the rows of `snapshot`; `None` if it reads many of that.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn at(&self, snapshot: &Snapshot) -> Result<Option<Scan>> {
        let mut request = Request {
            table: self.table.clone(),
            snapshot: snapshot.clone(),
            selection: self.selection.clone(),
            shape: self.shape.clone(),
            fetch: self.fetch,
            target: self.target,
            starts: None,
            is_blind: true,
        };
        if let Some(from) = self.since {
            request.starts = Some(Arc::new(starts_before(&request, from)?));
        }
        let scan = Scan::new(request, self.order)?;
        let scan = Scan { since: self.since, ..if self.first_only { scan.first_of_each() } else { scan } };
        Ok(Some(scan).filter(Scan::is_small))
    }
}

impl DisplayAs for ScanPlace {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScanPlace: table={}", self.table.kind.name)
    }
}

impl ExecutionPlan for ScanPlace {
    fn name(&self) -> &'static str {
        "ScanPlace"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Err(DataFusionError::Internal(format!("a kept plan was not given the rows of {}", self.table.kind.name)))
    }
}
