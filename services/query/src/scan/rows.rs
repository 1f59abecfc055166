//! Owns: reading the units of one partition, batch by batch.
//!
//! What must hold: small batches are put together, large ones are passed on in place; a page of a file that went bad is an
//! error of the next call.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::RecordBatchStream;
use datafusion::physical_plan::metrics::Count;
use futures::Stream;
use tapestore::sstable::{AHEAD_BLOCKS, Part};
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
    pub(super) ahead: Ahead,
    /// Whether the disk is asked for the rows of the units alone, and not for their blocks: there are few units.
    pub(super) is_exact: bool,
    pub(super) parts: Vec<Part>,
    pub(super) width: usize,
    pub(super) output: Count,
    pub(super) bytes_read: Count,
}

/// Units are asked for until so many blocks are: 64 MiB, if their CRCs have to be compared. A merge of more pieces asks for each when it comes to it.
const ASKED_MAX: u32 = 256;

/// The blocks of each piece of a merge of `pieces` that are asked for before it begins.
fn first_blocks(pieces: usize) -> u32 {
    (ASKED_MAX / pieces.max(1) as u32).min(AHEAD_BLOCKS)
}
/// For what the disk was asked.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The first so many of the units that are left.
    units: usize,
    /// The blocks of each file, by its number, for which it was asked last: those of an instrument are often those of the one
    /// before, and to look whether they are in memory costs as much as to read a hundred rows.
    last: HashMap<u64, Range<u32>>,
}

impl Ahead {
    /// Asks for `blocks` of `file`, unless it has just been done.
    fn ask(&mut self, file: &File, blocks: Range<u32>, parts: &[Part]) -> tapestore::Result<()> {
        let last = self.last.entry(file.meta().id).or_default();
        if last.contains(&blocks.start) && blocks.end <= last.end {
            return Ok(());
        }
        *last = blocks.clone();
        file.read_ahead(|ahead| ahead.read(blocks, parts))
    }
}

impl Rows {
    /// Asks the disk for the next units, before those that were asked for are done.
    fn read_ahead(&mut self) -> tapestore::Result<()> {
        let most = AHEAD_BLOCKS as usize;
        if self.few || self.ahead.units > most / 2 || self.ahead.units >= self.units.len() {
            return Ok(());
        }
        let mut next = self.units.iter().take(most).skip(self.ahead.units).peekable();
        let (mut units, mut blocks) = (self.ahead.units, 0);
        while blocks < ASKED_MAX
            && let Some(unit) = next.next()
        {
            units += 1;
            match unit {
                Unit::Block(rows) => {
                    // Blocks next to each other are asked for at once.
                    let mut end = rows.index + 1;
                    while let Some(Unit::Block(after)) = next.peek()
                        && after.file.path() == rows.file.path()
                        && (after.index == end || after.index + 1 == end)
                    {
                        end = after.index + 1;
                        units += 1;
                        next.next();
                    }
                    blocks += end - rows.index;
                    self.ahead.ask(&rows.file, rows.index..end, &self.parts)?;
                }
                Unit::Merged(pieces) => {
                    let first = first_blocks(pieces.len());
                    for piece in pieces {
                        let Some((file, slice, some)) = piece.first_blocks(first, self.backwards) else { continue };
                        blocks += some.len() as u32;
                        if self.is_exact {
                            let parts = self.shape.parts(!piece.is_alone);
                            file.read_ahead(|ahead| ahead.read_slice(slice, some, &parts))?;
                        } else {
                            self.ahead.ask(file, some, &self.parts)?;
                        }
                    }
                }
            }
        }
        self.ahead.units = units;
        Ok(())
    }

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
            self.read_ahead().map_err(external)?;
            let is_asked = self.ahead.units > 0;
            self.ahead.units = self.ahead.units.saturating_sub(1);
            match self.units.pop_front() {
                None => return Ok(None),
                Some(Unit::Block(rows)) => {
                    let batch = self.shape.in_file(&rows)?;
                    self.lent = Some(rows.file);
                    return Ok(Some(batch));
                }
                Some(Unit::Merged(pieces)) => {
                    let asked = if is_asked { first_blocks(pieces.len()) } else { 0 };
                    self.merge = Some(Merge::new(pieces, self.backwards, self.few, asked));
                }
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
