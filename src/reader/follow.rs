//! Owns: following a store in LSN order, from any record on and then as they come.

use std::time::Duration;

use super::{At, Reader, Row, watermark};
use crate::error::{Error, Result};
use crate::lsn::{Lsn, Timeline};
use crate::memtable::{Arrival, View};

/// What has been read: for comparing two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The first LSN.
    pub first: Lsn,
    /// The last.
    pub last: Lsn,
    /// Records.
    pub count: u64,
    /// CRC-32C over the records' bytes in their order.
    pub checksum: u32,
}

impl Tally {
    /// Counts one more record, of the words `words`.
    #[inline]
    pub fn add(&mut self, lsn: Lsn, words: &[u64]) {
        if self.count == 0 {
            self.first = lsn;
        }
        self.last = lsn;
        self.count += 1;
        self.checksum = crc32c::crc32c_append(self.checksum, bytemuck::cast_slice(words));
    }
}

/// A position in the store that moves on.
#[derive(Debug)]
pub struct Follow {
    reader: Reader,
    at: At,
    next: Lsn,
    timeline: Timeline,
    view: Option<View>,
    table: usize,
    tally: Tally,
}

impl Follow {
    pub(super) fn new(reader: Reader, next: Lsn, at: At) -> Follow {
        let timeline = reader.control.timeline();
        let next = Lsn(next.0.max(1));
        Follow { reader, at, next, timeline, view: None, table: 0, tally: Tally::default() }
    }

    /// The LSN that comes next.
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// What has been read so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The reader it follows with.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// The next record, if it is visible yet. An idle call is a load.
    ///
    /// # Errors
    /// [`Error::Withdrawn`] once, if records from `first` on have been withdrawn that this had read: it
    /// then goes on from there; [`Error::Expired`] if the next records are no longer held: it then
    /// goes on after them; [`Error::StorageDown`] while storage recovers or after it has stopped.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Row<'_>>> {
        if self.view.as_ref().is_none_or(|v| v.upto < self.next) && !self.refresh()? {
            return Ok(None);
        }
        let Some(view) = &self.view else { return Ok(None) };
        while view.tables.get(self.table + 1).is_some_and(|t| t.base() <= self.next) {
            self.table += 1;
        }
        let Some(row) = view.tables.get(self.table).and_then(|t| t.row(self.next)) else { return Ok(None) };
        self.next = row.lsn.next();
        self.tally.add(row.lsn, row.record.words());
        Ok(Some(row))
    }

    /// How the record that was read last came into the store.
    pub fn arrival(&self) -> Option<Arrival> {
        let view = self.view.as_ref()?;
        view.tables.get(self.table)?.arrival(Lsn(self.next.0.checked_sub(1)?))
    }

    fn refresh(&mut self) -> Result<bool> {
        let control = &self.reader.control;
        let (timeline, cut) = loop {
            let (timeline, cut) = (control.timeline(), control.cut());
            if control.timeline() == timeline {
                break (timeline, cut);
            }
        };
        if timeline != self.timeline {
            // Of several cuts only the newest is known; then everything is suspect.
            let first = if timeline.0 == self.timeline.0 + 1 { cut } else { Lsn(1) };
            self.timeline = timeline;
            self.view = None;
            if first < self.next {
                self.next = first;
                return Err(Error::Withdrawn { first });
            }
        }
        // The watermark alone does not say that storage still serves; an odd instance says that it
        // does not yet.
        let control = &self.reader.control;
        if watermark(control, self.at) < self.next && control.instance().is_multiple_of(2) && control.server().is_some() {
            return Ok(false);
        }
        let snapshot = self.reader.snapshot(self.at)?;
        let (first, upto) = (snapshot.first(), snapshot.last());
        self.view = Some(snapshot.view);
        self.table = 0;
        if self.next < first {
            let gone = Error::Expired { first: self.next, last: Lsn(first.0 - 1) };
            self.next = first;
            return Err(gone);
        }
        Ok(self.next <= upto)
    }

    /// Sleeps until there may be something to read, or `limit` has passed.
    pub fn wait(&self, limit: Duration) {
        match self.at {
            At::Appended => self.reader.wait_beyond(Lsn(self.next.0 - 1), limit),
            // No bell is rung for the other watermarks: they move when the disk answers.
            At::Durable | At::Committed => std::thread::sleep(limit.min(Duration::from_millis(1))),
        }
    }
}
