//! Owns: the rows of the sorted right side of a window join that have the keys of the present left row, as far as they are needed.
//!
//! What must hold: batches are held in which rows of the present window lie, and the row before it. Rows of a key are numbered from
//! zero, in their order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::Array;
use arrow::row::OwnedRow;
use datafusion::error::Result;

use super::Window;
use crate::side::{Loaded, Side};

/// Right rows of the present key within one batch.
pub(super) struct Piece {
    pub(super) read: Arc<Loaded>,
    /// The rows within the batch.
    pub(super) rows: Range<usize>,
    /// The number of the first of them.
    pub(super) first: usize,
    /// What the pairs call the batch.
    pub(super) slot: Option<usize>,
}

impl Piece {
    /// The place of the first row from `from` whose time `is_before` does not hold for, counted from the piece's first.
    pub(super) fn place(&self, from: usize, is_before: impl Fn(i64) -> bool) -> usize {
        let times = self.read.times.values().get(self.rows.start + from..self.rows.end).unwrap_or(&[]);
        // The place is mostly near: rows are skipped in steps that double.
        let (mut known, mut step) = (0, 1);
        while times.get(known + step - 1).is_some_and(|time| is_before(*time)) {
            known += step;
            step *= 2;
        }
        let near = times.get(known..times.len().min(known + step)).unwrap_or(&[]);
        from + known + near.partition_point(|time| is_before(*time))
    }
}

/// A place among the pieces: the piece, and the row counted from its first.
pub(super) type Place = (usize, usize);

/// The right rows.
pub(super) struct Rights {
    side: Side,
    has_keys: bool,
    /// The right rows of the key `key`.
    pub(super) pieces: VecDeque<Piece>,
    key: Option<Option<OwnedRow>>,
    /// Whether `pieces` has the last rows of `key`.
    is_whole: bool,
    /// The first right row in the window of the last left row, and the one before it.
    pub(super) start: Place,
    pub(super) before: Option<Place>,
    /// The first right row after that window; used by [`Rights::range`] alone.
    end: Place,
    /// Right rows that were read, and the run of them that is next.
    read: Option<Arc<Loaded>>,
    read_run: usize,
    is_over: bool,
}

impl Rights {
    /// The rows of `side`.
    pub(super) fn new(side: Side) -> Rights {
        Rights {
            has_keys: side.has_keys(),
            side,
            pieces: VecDeque::new(),
            key: None,
            is_whole: false,
            start: (0, 0),
            before: None,
            end: (0, 0),
            read: None,
            read_run: 0,
            is_over: false,
        }
    }

    /// Whether a left row whose keys are `key` has no right rows because one of them is null.
    pub(super) fn is_nothing(&self, key: &Option<OwnedRow>) -> bool {
        self.has_keys && key.is_none()
    }

    /// Goes to the right rows of `key`: those of lesser keys have no left row any more. Returns whether it is another key.
    pub(super) async fn seek(&mut self, key: &Option<OwnedRow>) -> Result<bool> {
        if self.key.as_ref() == Some(key) {
            return Ok(false);
        }
        self.pieces.clear();
        (self.start, self.before, self.end, self.is_whole) = ((0, 0), None, (0, 0), false);
        self.key = Some(key.clone());
        while self.has_keys && self.read().await? {
            let of = self.read.as_ref().and_then(|read| read.runs.get(self.read_run));
            if of.is_none_or(|(_, of)| of.is_none() || of >= key) {
                break;
            }
            self.read_run += 1;
        }
        Ok(true)
    }

    /// Reads right rows until there is a run of them; `false` if none are left.
    async fn read(&mut self) -> Result<bool> {
        while !self.is_over && self.read.as_ref().is_none_or(|read| self.read_run >= read.runs.len()) {
            self.read = self.side.next().await?.map(Arc::new);
            (self.read_run, self.is_over) = (0, self.read.is_none());
        }
        Ok(!self.is_over)
    }

    /// Whether a right row after `to` has been read, or the last one of the key.
    fn has(&self, to: i64) -> bool {
        let last = |piece: &Piece| piece.read.times.values().get(piece.rows.end.saturating_sub(1)).copied();
        self.is_whole || self.pieces.back().and_then(last).is_some_and(|time| time > to)
    }

    /// Reads right rows of the present key until one is after `to`.
    pub(super) async fn load(&mut self, to: i64) -> Result<()> {
        while !self.has(to) {
            if !self.read().await? {
                self.is_whole = true;
                break;
            }
            let Some(read) = &self.read else { break };
            let Some((rows, of)) = read.runs.get(self.read_run) else { break };
            if self.key.as_ref() != Some(of) {
                self.is_whole = true;
                break;
            }
            // Rows whose time is null are the last ones, and in no window.
            let valid = rows.clone().rev().find(|row| read.times.is_valid(*row)).map_or(rows.start, |row| row + 1);
            if valid > rows.start {
                let first = self.pieces.back().map_or(0, |piece| piece.first + piece.rows.len());
                self.pieces.push_back(Piece { read: read.clone(), rows: rows.start..valid, first, slot: None });
            }
            self.read_run += 1;
        }
        Ok(())
    }

    /// Moves the start of the window to `from`, and forgets pieces before the row before it.
    pub(super) fn advance(&mut self, from: i64) {
        while let Some(piece) = self.pieces.get(self.start.0) {
            let place = piece.place(self.start.1, |time| time < from);
            if let Some(before) = place.checked_sub(1).filter(|_| place > self.start.1) {
                self.before = Some((self.start.0, before));
            }
            self.start.1 = place;
            if place < piece.rows.len() {
                break;
            }
            self.start = (self.start.0 + 1, 0);
        }
        let unused = self.before.map_or(self.start.0, |before| before.0.min(self.start.0));
        self.pieces.drain(..unused.min(self.pieces.len()));
        self.start.0 -= unused;
        self.end = self.end.0.checked_sub(unused).map_or((0, 0), |piece| (piece, self.end.1));
        self.before = self.before.map(|(piece, row)| (piece - unused, row));
    }

    /// Whether the row before the window that begins at `from` and ends at `to` counts.
    pub(super) fn is_prevailing(&self, window: Window, (from, to): (i64, i64)) -> bool {
        let start = self.pieces.get(self.start.0);
        let first = start.and_then(|piece| piece.read.times.values().get(piece.rows.start + self.start.1));
        window.prevailing && from <= to && first != Some(&from)
    }

    /// The numbers of the right rows of the window from `from` to `to`, whose start is known.
    pub(super) fn range(&mut self, window: Window, (from, to): (i64, i64)) -> Range<usize> {
        self.end = self.end.max(self.start);
        while let Some(piece) = self.pieces.get(self.end.0) {
            self.end.1 = piece.place(self.end.1, |time| time <= to);
            if self.end.1 < piece.rows.len() {
                break;
            }
            self.end = (self.end.0 + 1, 0);
        }
        let start = self.number(self.start);
        let prevailing = self.before.is_some() && self.is_prevailing(window, (from, to));
        start - usize::from(prevailing)..self.number(self.end)
    }

    /// The number of the row at `place`.
    fn number(&self, place: Place) -> usize {
        let end = || self.pieces.back().map_or(0, |piece| piece.first + piece.rows.len());
        self.pieces.get(place.0).map_or_else(end, |piece| piece.first + place.1)
    }

    /// The batches of the rows with these numbers, and where in them they are; all are held.
    pub(super) fn batches(&self, rows: Range<usize>) -> impl DoubleEndedIterator<Item = (&Loaded, Range<usize>)> {
        let first = self.pieces.partition_point(|piece| piece.first + piece.rows.len() <= rows.start);
        let last = self.pieces.partition_point(|piece| piece.first < rows.end).max(first);
        self.pieces.range(first..last).map(move |piece| {
            let from = rows.start.saturating_sub(piece.first);
            let to = (rows.end - piece.first).min(piece.rows.len());
            (piece.read.as_ref(), piece.rows.start + from..piece.rows.start + to)
        })
    }
}
