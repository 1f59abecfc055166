//! Owns: many sorted streams of rows as one, in (index time, LSN) order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Row;
use crate::lsn::Lsn;
use crate::memtable::Rows;
use crate::time::Ts;

/// Rows in (index time, LSN) order.
pub struct Merge<'t> {
    sources: Vec<(Rows<'t>, Row<'t>)>,
    heap: BinaryHeap<Reverse<(Ts, Lsn, usize)>>,
    only: Option<Rows<'t>>,
}

impl<'t> Merge<'t> {
    pub(super) fn new(sources: impl Iterator<Item = Rows<'t>>) -> Merge<'t> {
        let mut merge = Merge { sources: Vec::new(), heap: BinaryHeap::new(), only: None };
        for mut rows in sources {
            if let Some(row) = rows.next() {
                merge.heap.push(Reverse((row.index_time, row.lsn, merge.sources.len())));
                merge.sources.push((rows, row));
            }
        }
        merge
    }
}

impl<'t> Iterator for Merge<'t> {
    type Item = Row<'t>;

    #[inline]
    fn next(&mut self) -> Option<Row<'t>> {
        if let Some(rows) = &mut self.only {
            return rows.next();
        }
        let Reverse((_, _, index)) = self.heap.pop()?;
        let (rows, head) = self.sources.get_mut(index)?;
        let row = *head;
        if self.heap.is_empty() {
            // The last source needs no comparing any more.
            self.only = Some(self.sources.swap_remove(index).0);
            return Some(row);
        }
        if let Some(next) = rows.next() {
            *head = next;
            self.heap.push(Reverse((next.index_time, next.lsn, index)));
        }
        Some(row)
    }
}
