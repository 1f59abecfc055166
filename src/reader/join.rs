//! Owns: the as-of join of two series: each record of the left one with the newest record of the right one at its time.
//!
//! What must hold: each pair is what [`super::Snapshot::as_of`] returns for the left record's index time. Both series are read
//! once, in order, so memory is that of two scans.

use super::Scan;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::record::{RecordRef, Row};
use crate::time::Ts;

/// A copy of a row of the right series.
#[derive(Debug, Default)]
struct Copied {
    lsn: Lsn,
    index_time: Ts,
    words: Vec<u64>,
    is_some: bool,
}

impl Copied {
    fn set(&mut self, row: &Row<'_>) {
        self.words.clear();
        self.words.extend_from_slice(row.record.words());
        (self.lsn, self.index_time, self.is_some) = (row.lsn, row.index_time, true);
    }

    fn row(&self) -> Result<Option<Row<'_>>> {
        if !self.is_some {
            return Ok(None);
        }
        Ok(Some(Row { lsn: self.lsn, index_time: self.index_time, record: RecordRef::first(&self.words)? }))
    }
}

/// The pairs of an as-of join, in the order of the left series; see [`super::Snapshot::join`].
pub struct Join<'s> {
    left: Scan<'s>,
    right: Scan<'s>,
    /// The newest right row up to the last left row, and the one after it.
    newest: Copied,
    next: Copied,
}

impl std::fmt::Debug for Join<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("newest", &self.newest.lsn).finish_non_exhaustive()
    }
}

impl<'s> Join<'s> {
    /// Joins the rows of `left` to those of `right`, which begins where `left` does; `before` is the newest right row before
    /// that.
    pub(super) fn new(left: Scan<'s>, right: Scan<'s>, before: Option<Row<'_>>) -> Join<'s> {
        let mut join = Join { left, right, newest: Copied::default(), next: Copied::default() };
        if let Some(row) = before {
            join.newest.set(&row);
        }
        join
    }

    /// The next left row, with the right row of the greatest (index time, LSN) that is not after its index time; `None` in its
    /// place if there is none.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend its rows")]
    pub fn next(&mut self) -> Result<Option<(Row<'_>, Option<Row<'_>>)>> {
        let Some(left) = self.left.next()? else { return Ok(None) };
        loop {
            if self.next.is_some {
                if self.next.index_time > left.index_time {
                    break;
                }
                std::mem::swap(&mut self.newest, &mut self.next);
                self.next.is_some = false;
            }
            match self.right.next()? {
                Some(row) => self.next.set(&row),
                None => break,
            }
        }
        Ok(Some((left, self.newest.row()?)))
    }
}
