//! Owns: batches of rows, copied into a buffer.

use crate::lsn::Lsn;
use crate::record::{RecordRef, Row};
use crate::time::Ts;

/// Location of a row in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Head {
    pub(super) time: u64,
    pub(super) lsn: u64,
    pub(super) at: u32,
    pub(super) words: u32,
}

/// Rows copied from files and shared memory.
#[derive(Clone, Debug, Default)]
pub struct RowBatch {
    pub(super) heads: Vec<Head>,
    pub(super) words: Vec<u64>,
}

impl RowBatch {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Row number `index`.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Row<'_>> {
        let head = self.heads.get(index)?;
        let words = self.words.get(head.at as usize..head.at as usize + head.words as usize)?;
        Some(Row { lsn: Lsn(head.lsn), index_time: Ts(head.time), record: RecordRef::first(words).ok()? })
    }

    /// The rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.words.clear();
    }

    /// Extends the words to at least `end`.
    pub(super) fn reserve(&mut self, end: u32) {
        if self.words.len() < end as usize {
            self.words.resize(end as usize, 0);
        }
    }

    /// Stores the words of a record at `at`. The caller adds the head.
    #[inline]
    pub(super) fn put(&mut self, at: u32, words: &[u64]) {
        let at = at as usize;
        if self.words.len() < at + words.len() {
            self.words.resize(at + words.len(), 0);
        }
        if let Some(to) = self.words.get_mut(at..at + words.len()) {
            to.copy_from_slice(words);
        }
    }

    /// Appends a copy of `row`.
    #[inline]
    pub(super) fn push(&mut self, row: &Row<'_>) {
        let words = row.record.words();
        let at = self.words.len() as u32;
        self.words.extend_from_slice(words);
        self.heads.push(Head { time: row.index_time.0, lsn: row.lsn.0, at, words: words.len() as u32 });
    }
}
