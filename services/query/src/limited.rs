//! Owns: the end of a statement's rows: its limit of time, the age of its snapshot, the check of the pages that it has read, and how it
//! is counted.
//!
//! What must hold: rows of a bad page are never the end of an answer: an error is.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use futures::Stream;
use tapestore::reader::Snapshot;
use tapestore::version::File;
use tokio::time::MissedTickBehavior;

use crate::failure::{QueryError, external};
use crate::scan::Scan;
use crate::statistics::{Outcome, Running};

/// Time between two looks at the age of the snapshot.
const LOOK: Duration = Duration::from_secs(1);

/// The files that `operators` read.
fn files_of(operators: &Arc<dyn ExecutionPlan>, snapshot: &Snapshot) -> Result<Vec<File>, DataFusionError> {
    let mut files: BTreeMap<u64, File> = BTreeMap::new();
    let mut is_known = true;
    operators.apply(|node| {
        if let Some(scan) = node.downcast_ref::<Scan>() {
            scan.files().for_each(|file| {
                files.entry(file.meta().id).or_insert_with(|| file.clone());
            });
        }
        is_known &= !node.children().is_empty() || node.is::<Scan>() || node.is::<PlaceholderRowExec>() || node.is::<EmptyExec>();
        Ok(TreeNodeRecursion::Continue)
    })?;
    // Other operators without an input may read any file.
    Ok(if is_known { files.into_values().collect() } else { snapshot.history().files().to_vec() })
}

/// The rows of a statement: they end at its limit of time, and with an error if a page that was read is bad.
pub(crate) struct Limited {
    rows: SendableRecordBatchStream,
    snapshot: Snapshot,
    /// The files that the statement reads: to look at others would be a read of the disk for each.
    files: Vec<File>,
    limit: Duration,
    ends: Pin<Box<tokio::time::Sleep>>,
    /// When to look whether storage needs the room of what the snapshot keeps: a statement may work for long before its first row.
    looks: tokio::time::Interval,
    is_over: bool,
    running: Running,
}

impl Limited {
    /// The rows that `operators` make of `snapshot`, for at most `limit`.
    pub(crate) fn new(
        rows: SendableRecordBatchStream,
        operators: &Arc<dyn ExecutionPlan>,
        snapshot: &Snapshot,
        limit: Duration,
        running: Running,
    ) -> Result<Limited, DataFusionError> {
        let (files, snapshot) = (files_of(operators, snapshot)?, snapshot.clone());
        let (ends, mut looks) = (Box::pin(tokio::time::sleep(limit)), tokio::time::interval(LOOK));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Limited { rows, files, snapshot, limit, ends, looks, is_over: false, running })
    }

    /// Whether every page of the files was good when it was read.
    fn check(&self) -> Result<(), DataFusionError> {
        let files = self.files.iter().try_for_each(|file| file.check());
        files.and_then(|()| self.snapshot.tables().iter().try_for_each(|table| table.check())).map_err(external)
    }
}

impl Stream for Limited {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.ends.as_mut().poll(context).is_ready() {
            self.is_over = true;
            self.running.end(Outcome::TooLong);
            let limit = self.limit;
            return Poll::Ready(Some(Err(DataFusionError::External(Box::new(QueryError::TooLong { limit })))));
        }
        // Until it is pending: only then this is woken at the next one, although no row comes.
        while self.looks.poll_tick(context).is_ready() {
            if let Err(error) = self.snapshot.check_age() {
                self.is_over = true;
                self.running.end(Outcome::Failed);
                return Poll::Ready(Some(Err(external(error))));
            }
        }
        let next = std::task::ready!(self.rows.as_mut().poll_next(context));
        match &next {
            Some(Ok(batch)) => {
                let rows = batch.num_rows();
                self.running.count(rows);
            }
            Some(Err(error)) => {
                let outcome = Outcome::of_rows(error);
                self.is_over = true;
                self.running.end(outcome);
            }
            None => {
                self.is_over = true;
                let checked = self.check();
                self.running.end(if checked.is_ok() { Outcome::Answered } else { Outcome::Failed });
                return Poll::Ready(checked.err().map(Err));
            }
        }
        Poll::Ready(next)
    }
}

impl datafusion::execution::RecordBatchStream for Limited {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
}
