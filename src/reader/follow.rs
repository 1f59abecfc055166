//! Owns: following a store in LSN order, from any record on: through SSTables and MemTables, then as records arrive.
//!
//! SSTables are sorted by series, so their rows are put back into LSN order, one stripe of LSNs at a time: each row of
//! the stripe goes to the slot of its LSN. An empty slot is an expired record.

use std::time::Duration;

use super::batch::{Head, RowBatch};
use super::{At, Reader, watermark};
use crate::error::{Error, Result};
use crate::lsn::{Lsn, Timeline};
use crate::record::{Arrival, Row};
use crate::sstable::Run;
use crate::sstable::format::unplace;
use crate::version::{File, View};

/// Summary of the records read, to compare two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(hidden)]
pub struct Tally {
    /// The first LSN.
    pub first: Lsn,
    /// The last LSN.
    pub last: Lsn,
    /// Number of records.
    pub count: u64,
    /// CRC-32C over the records' bytes, in order.
    pub checksum: u32,
}

impl Tally {
    /// Counts one more record, with the words `words`.
    #[inline]
    #[doc(hidden)]
    pub fn add(&mut self, lsn: Lsn, words: &[u64]) {
        if self.count == 0 {
            self.first = lsn;
        }
        self.last = lsn;
        self.count += 1;
        self.checksum = crc32c::crc32c_append(self.checksum, bytemuck::cast_slice(words));
    }
}

/// Maximum LSNs of a stripe.
const STRIPE_LSNS: u64 = 256 << 10;
/// Maximum bytes of a stripe's records, unless a single LSN's record is longer.
const STRIPE_BYTES: u64 = 32 << 20;
/// With more rows than this in the blocks per row of the stripe, rows are looked up by place instead of searched.
const SPARSE: u64 = 3;

/// Records of SSTables in LSN order.
#[derive(Debug, Default)]
struct Stripe {
    first: u64,
    batch: RowBatch,
}

const EMPTY: Head = Head { time: 0, lsn: 0, at: 0, words: 0 };

impl Stripe {
    /// The LSN after the last; 0 if it is empty.
    fn end(&self) -> u64 {
        self.first + self.batch.len() as u64
    }

    fn holds(&self, lsn: Lsn) -> bool {
        self.first <= lsn.0 && lsn.0 < self.end()
    }

    /// Fills the stripe with the records from `first` on, up to `last` at most.
    fn fill(&mut self, view: &View, first: Lsn, last: Lsn) -> Result<()> {
        self.batch.clear();
        self.first = first.0;
        let mut to = Lsn(last.0.min(first.0 + STRIPE_LSNS - 1));
        let files: Vec<&File> = view.history.files_between(first, to).collect();
        loop {
            let mut bytes = 0;
            for file in &files {
                bytes += file.places(first, to)?.len() as u64 * file.schema()?.words as u64 * 8;
            }
            if bytes <= STRIPE_BYTES || to == first {
                break;
            }
            to = Lsn(first.0 + (to.0 - first.0) / 2);
        }
        self.batch.heads.resize((to.0 - first.0 + 1) as usize, EMPTY);
        let mut taken = Vec::with_capacity(files.len());
        for &file in &files {
            taken.push((file.plan()?, self.take(file, first.0, to.0)?));
        }
        // The lengths of the records before it give each record's offset.
        let mut end = 0;
        for head in &mut self.batch.heads {
            head.at = end;
            end += head.words;
        }
        self.batch.reserve(end);
        for (plan, (runs, slots)) in taken {
            let RowBatch { heads, words } = &mut self.batch;
            plan.gather(&runs, |i, record| {
                let at = slots.get(i).and_then(|s| heads.get(*s as usize)).map_or(usize::MAX, |h| h.at as usize);
                if let Some(to) = words.get_mut(at..at.saturating_add(record.len())) {
                    to.copy_from_slice(record);
                }
            });
        }
        files.iter().try_for_each(|file| file.check())
    }

    /// Like [`Stripe::take`], for rows that lie far apart: those of a compacted file, whose blocks hold few rows of any
    /// stripe.
    fn take_places<'f>(&mut self, file: &'f File, places: &[u32], first: u64) -> Result<(Vec<Run<'f>>, Vec<u32>)> {
        let words = file.schema()?.words as u32;
        let (mut runs, mut slots): (Vec<Run<'f>>, Vec<u32>) = (Vec::new(), Vec::with_capacity(places.len()));
        let mut places = places.to_vec();
        places.sort_unstable();
        for mine in places.chunk_by(|a, b| unplace(*a).0 == unplace(*b).0) {
            let block = file.block(mine.first().map_or(0, |p| unplace(*p).0))?;
            let (lsns, times) = (block.lsns(), block.times());
            for run in mine.chunk_by(|a, b| a + 1 == *b) {
                let from = run.first().map_or(0, |p| unplace(*p).1 as usize);
                let rows = run.len().min(lsns.len().saturating_sub(from));
                for (&lsn, row) in lsns.iter().skip(from).take(rows).zip(from..) {
                    let slot = lsn.wrapping_sub(first) as u32;
                    slots.push(slot);
                    if let Some(head) = self.batch.heads.get_mut(slot as usize) {
                        *head = Head { time: times.get(row).0, lsn, at: 0, words };
                    }
                }
                runs.push(Run { body: block.body, from, rows });
            }
        }
        Ok((runs, slots))
    }

    /// Records the rows from `first` to `last` of `file` in their slots; returns their runs, and the slot of each row.
    fn take<'f>(&mut self, file: &'f File, first: u64, last: u64) -> Result<(Vec<Run<'f>>, Vec<u32>)> {
        let spanned = file.blocks()?.iter().filter(|e| e.lsn.max >= first && e.lsn.min <= last).map(|e| u64::from(e.rows));
        let places = file.places(Lsn(first), Lsn(last))?;
        if spanned.sum::<u64>() > SPARSE * places.len() as u64 {
            return self.take_places(file, places, first);
        }
        let words = file.schema()?.words as u32;
        let (mut runs, mut slots) = (Vec::new(), Vec::new());
        for (index, entry) in (0u32..).zip(file.blocks()?) {
            if entry.lsn.max < first || entry.lsn.min > last {
                continue;
            }
            let block = file.block(index)?;
            let (lsns, times) = (block.lsns(), block.times());
            let inside = |lsn: &u64| first <= *lsn && *lsn <= last;
            let mut row = 0;
            // Rows of a series ascend by time and mostly by LSN too, so those inside are adjacent.
            while row < lsns.len() {
                let rest = lsns.get(row..).unwrap_or(&[]);
                let skip = rest.iter().position(inside).unwrap_or(rest.len());
                let n = rest.iter().skip(skip).position(|l| !inside(l)).unwrap_or(rest.len() - skip);
                let from = row + skip;
                for (i, &lsn) in lsns.iter().enumerate().skip(from).take(n) {
                    let slot = (lsn - first) as u32;
                    slots.push(slot);
                    if let Some(head) = self.batch.heads.get_mut(slot as usize) {
                        *head = Head { time: times.get(i).0, lsn, at: 0, words };
                    }
                }
                if n > 0 {
                    runs.push(Run { body: block.body, from, rows: n });
                }
                row = from + n;
            }
        }
        Ok((runs, slots))
    }
}

/// A position in the store that advances.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/replay.rs"), "\n```")]
#[derive(Debug)]
pub struct Follow {
    reader: Reader,
    at: At,
    next: Lsn,
    timeline: Timeline,
    view: Option<View>,
    table: usize,
    stripe: Stripe,
    tally: Tally,
}

impl Follow {
    pub(super) fn new(reader: Reader, next: Lsn, at: At) -> Follow {
        let timeline = reader.control.timeline();
        let next = Lsn(next.0.max(1));
        Follow { reader, at, next, timeline, view: None, table: 0, stripe: Stripe::default(), tally: Tally::default() }
    }

    /// The next LSN.
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// Summary of the records read so far.
    #[doc(hidden)]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The underlying reader.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// The next record, if it is visible. An idle call costs one load.
    ///
    /// # Errors
    /// [`Error::Withdrawn`] once, if records already read, from `first` on, were withdrawn: it continues from there.
    /// [`Error::Expired`] if the next records have expired: it continues after them. [`Error::StorageDown`] while
    /// storage recovers, or once everything in the files of a store at rest has been read. [`Error::Corrupt`] and
    /// [`Error::Io`] of a file.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Row<'_>>> {
        if self.view.as_ref().is_some_and(|v| v.check_age().is_err()) {
            self.renew();
        }
        if self.view.as_ref().is_none_or(|v| v.upto < self.next) && !self.refresh()? {
            return Ok(None);
        }
        debug_assert!(self.view.as_ref().is_some_and(|v| self.next <= v.upto), "no record above the watermark is read");
        if self.view.as_ref().is_some_and(|v| self.next <= v.history.covered()) {
            return self.next_flushed();
        }
        let Some(view) = &self.view else { return Ok(None) };
        while view.tables.get(self.table + 1).is_some_and(|t| t.base() <= self.next) {
            self.table += 1;
        }
        let Some(table) = view.tables.get(self.table) else { return Ok(None) };
        let row = table.row(self.next);
        table.check()?;
        let Some(row) = row else { return Ok(None) };
        self.next = row.lsn.next();
        self.tally.add(row.lsn, row.record.words());
        Ok(Some(row))
    }

    /// The next record, which is in SSTables.
    fn next_flushed(&mut self) -> Result<Option<Row<'_>>> {
        let Some(view) = &self.view else { return Ok(None) };
        if !self.stripe.holds(self.next) {
            // A half-filled stripe would look like one with expired records.
            if let Err(error) = self.stripe.fill(view, self.next, view.history.covered()) {
                // The next call takes a new snapshot: by then the unreadable records may be in another file.
                (self.stripe, self.view) = (Stripe::default(), None);
                return Err(error);
            }
        }
        let slot = (self.next.0 - self.stripe.first) as usize;
        let heads = &self.stripe.batch.heads;
        if heads.get(slot).is_none_or(|h| h.words == 0) {
            let gone = heads.iter().skip(slot).take_while(|h| h.words == 0).count().max(1) as u64;
            assert!(slot as u64 + gone <= heads.len() as u64, "a record that was not looked for is not reported as expired");
            let expired = Error::Expired { first: self.next, last: Lsn(self.next.0 + gone - 1) };
            self.next = self.next.plus(gone);
            return Err(expired);
        }
        let Some(row) = self.stripe.batch.get(slot) else { return Ok(None) };
        self.next = row.lsn.next();
        self.tally.add(row.lsn, row.record.words());
        Ok(Some(row))
    }

    /// How the last record arrived.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    pub fn arrival(&self) -> Result<Option<Arrival>> {
        let (Some(view), Some(lsn)) = (&self.view, self.next.0.checked_sub(1)) else { return Ok(None) };
        view.arrival(Lsn(lsn))
    }

    fn refresh(&mut self) -> Result<bool> {
        self.reader.reopen_if_silent()?;
        let control = &self.reader.control;
        let (timeline, withdrawn_from) = loop {
            let (timeline, withdrawn_from) = (control.timeline(), control.first_withdrawn());
            if control.timeline() == timeline {
                break (timeline, withdrawn_from);
            }
        };
        if timeline != self.timeline {
            // The control page has only the newest truncation: after several, everything may have changed.
            let first = if timeline.0 == self.timeline.0 + 1 { withdrawn_from } else { Lsn(1) };
            self.timeline = timeline;
            self.view = None;
            self.stripe = Stripe::default();
            if first < self.next {
                self.next = first;
                return Err(Error::Withdrawn { first });
            }
        }
        // The watermark alone does not show whether storage still serves. An odd instance means that it is recovering.
        let control = &self.reader.control;
        if watermark(control, self.at).min(control.applied()) < self.next
            && control.instance().is_multiple_of(2)
            && control.server().is_some()
        {
            if self.view.is_some() && !self.reader.versions.is_current(control) {
                self.renew();
            }
            return Ok(false);
        }
        let snapshot = self.reader.snapshot(self.at)?;
        let has_stopped = self.reader.is_at_rest();
        let upto = snapshot.last();
        self.view = Some(snapshot.view);
        self.table = 0;
        if self.next > upto && has_stopped {
            return Err(Error::StorageDown { dir: self.reader.store.clone(), why: "it has stopped" });
        }
        Ok(self.next <= upto)
    }

    /// Takes a newer snapshot although the current one is not read to its end, or there are no new records: files and MemTables of
    /// it are replaced and unlinked, and it may be hours until a new record releases them.
    #[cold]
    fn renew(&mut self) {
        self.stripe = Stripe::default();
        match self.reader.snapshot(self.at) {
            Ok(snapshot) => (self.view, self.table) = (Some(snapshot.view), 0),
            Err(error) => {
                tracing::debug!(
                    name: "reader.snapshot_released", %error,
                    "a follower cannot take a newer snapshot and releases the one it has read"
                );
                self.view = None;
                self.reader.let_go();
            }
        }
    }

    /// Sleeps until there may be a record to read, or for `limit`.
    pub fn wait(&self, limit: Duration) {
        match self.at {
            At::Appended => self.reader.wait_beyond(Lsn(self.next.0 - 1), limit),
            // No bell is rung for the other watermarks: they advance when the disk completes a sync.
            At::Durable | At::Committed | At::Flushed => std::thread::sleep(limit.min(Duration::from_millis(1))),
        }
    }
}
