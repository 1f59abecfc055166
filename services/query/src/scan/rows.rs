//! Owns: reading the units of one partition, batch by batch.
//!
//! What must hold: small batches are put together, large ones are passed on in place; a page of a file that went bad is an
//! error of the next call.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::RecordBatchStream;
use datafusion::physical_plan::metrics::Count;
use futures::Stream;
use tapestore::version::File;

use super::units::Unit;
use crate::failure::external;
use crate::pieces::{Merge, Shape};

/// The rows of one partition.
pub(super) struct Rows {
    pub(super) shape: Shape,
    pub(super) units: VecDeque<Unit>,
    pub(super) merge: Option<Merge>,
    pub(super) small: BatchCoalescer,
    /// Rows that the caller still takes.
    pub(super) left: usize,
    pub(super) few: bool,
    pub(super) first_only: bool,
    pub(super) backwards: bool,
    /// The file of the batch that was returned last.
    pub(super) lent: Option<File>,
    pub(super) width: usize,
    pub(super) output: Count,
    pub(super) bytes_read: Count,
}

impl Rows {
    /// The next batch of the units, as it is.
    fn read(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(merge) = &mut self.merge {
                if let Some(batch) = merge.next(&self.shape)? {
                    if self.first_only {
                        self.merge = None;
                        return Ok(Some(batch.slice(0, 1)));
                    }
                    return Ok(Some(batch));
                }
                self.merge = None;
            }
            match self.units.pop_front() {
                None => return Ok(None),
                Some(Unit::Block(rows)) => {
                    let batch = self.shape.in_file(&rows)?;
                    self.lent = Some(rows.file);
                    return Ok(Some(batch));
                }
                Some(Unit::Merged(pieces)) => self.merge = Some(Merge::new(pieces, self.backwards, self.few)),
            }
        }
    }

    fn next(&mut self) -> Result<Option<RecordBatch>> {
        // A page of the file that was lent may have gone bad meanwhile.
        if let Some(file) = self.lent.take() {
            file.check().map_err(external)?;
        }
        loop {
            if let Some(batch) = self.small.next_completed_batch() {
                return Ok(Some(batch));
            }
            if self.left == 0 {
                return Ok(None);
            }
            match self.read()? {
                Some(batch) => {
                    let batch = if batch.num_rows() > self.left { batch.slice(0, self.left) } else { batch };
                    self.left -= batch.num_rows();
                    self.bytes_read.add(batch.num_rows() * self.width);
                    if self.shape.schema.fields().is_empty() {
                        return Ok(Some(batch));
                    }
                    self.small.push_batch(batch)?;
                    if self.left == 0 {
                        self.small.finish_buffered_batch()?;
                    }
                }
                None => {
                    self.left = 0;
                    self.small.finish_buffered_batch()?;
                }
            }
        }
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        let next = self.next().transpose();
        if let Some(Ok(batch)) = &next {
            self.output.add(batch.num_rows());
        }
        Poll::Ready(next)
    }
}

impl RecordBatchStream for Rows {
    fn schema(&self) -> SchemaRef {
        self.shape.schema.clone()
    }
}
