//! Owns: scanning and replaying: many sorted streams of rows, of files and MemTables, as one, in (index
//! time, LSN) order.
//!
//! Rows are taken a stripe of time at a time: from every stream what lies in the stripe, copied together
//! into one batch and sorted there. So a merge of thousands of series costs a sort of some ten thousand
//! rows in the cache, and no row is looked at by a heap. Files are opened up when the stripe reaches
//! them.

use super::batch::{Head, RowBatch};
use crate::error::Result;
use crate::lsn::{InstrumentId, Lsn};
use crate::memtable::Rows as TableRows;
use crate::record::{Kind, Row, Series, TimeRange};
use crate::sstable::Slice;
use crate::time::Ts;
use crate::version::{File, View};

/// Rows of a stripe that are aimed at, and at most.
const STRIPE_ROWS: u32 = 32 << 10;
const STRIPE_MAX: u64 = 4 * STRIPE_ROWS as u64;
/// Rows that are taken of the only stream at a time.
const ALONE_ROWS: u32 = 1024;
/// The first stripe's length, ns.
const WIDTH_FIRST: u64 = 1_000_000;

/// (index time, LSN): what sorts.
type Key = (u64, u64);

enum Source<'t> {
    File { file: &'t File, slice: Slice },
    Table { rows: TableRows<'t>, head: Row<'t> },
}

struct Stream<'t> {
    next: Key,
    source: Source<'t>,
}

/// Which series are wanted, by kind; instruments sorted.
#[derive(Default)]
struct Wanted(Vec<(Kind, Vec<InstrumentId>)>);

impl Wanted {
    fn new(series: &[Series]) -> Wanted {
        let mut all: Vec<(Kind, InstrumentId)> = series.iter().map(|s| (s.kind, s.instrument)).collect();
        all.sort_unstable();
        all.dedup();
        let mut wanted = Wanted::default();
        for (kind, instrument) in all {
            match wanted.0.last_mut() {
                Some((k, instruments)) if *k == kind => instruments.push(instrument),
                _ => wanted.0.push((kind, vec![instrument])),
            }
        }
        wanted
    }

    fn of(&self, kind: Kind) -> &[InstrumentId] {
        self.0.iter().find(|(k, _)| *k == kind).map_or(&[], |(_, i)| i)
    }
}

/// Rows in (index time, LSN) order.
pub struct Scan<'t> {
    range: TimeRange,
    wanted: Wanted,
    /// Files that have not been reached, the next one last.
    ahead: Vec<(u64, &'t File)>,
    streams: Vec<Stream<'t>>,
    batch: RowBatch,
    at: usize,
    width: u64,
}

impl<'t> Scan<'t> {
    pub(super) fn new(view: &'t View, series: &[Series], range: TimeRange) -> Scan<'t> {
        let wanted = Wanted::new(series);
        let mut ahead: Vec<(u64, &File)> = Vec::new();
        for (kind, _) in &wanted.0 {
            ahead.extend(view.history.files_in(*kind, range).map(|f| (f.meta().time.0.0, f)));
        }
        ahead.sort_unstable_by_key(|(from, file)| std::cmp::Reverse((*from, file.meta().id)));
        let mut streams = Vec::new();
        for table in &view.tables {
            for &series in series {
                let mut rows = table.rows(series, range, view.upto);
                if let Some(head) = rows.next() {
                    streams.push(Stream { next: (head.index_time.0, head.lsn.0), source: Source::Table { rows, head } });
                }
            }
        }
        Scan { range, wanted, ahead, streams, batch: RowBatch::default(), at: 0, width: WIDTH_FIRST }
    }

    /// The next row.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "a row is lent until the next call, and a call can fail")]
    pub fn next(&mut self) -> Result<Option<Row<'_>>> {
        if self.at >= self.batch.len() && !self.fill()? {
            return Ok(None);
        }
        self.at += 1;
        Ok(self.batch.get(self.at - 1))
    }

    /// The next rows together; what [`Scan::next`] has given already is not among them.
    ///
    /// # Errors
    /// As [`Scan::next`].
    pub fn next_batch(&mut self) -> Result<Option<&RowBatch>> {
        if self.at > 0 && self.at < self.batch.len() {
            self.batch.heads.drain(..self.at);
        } else if !self.fill()? {
            return Ok(None);
        }
        self.at = self.batch.len();
        Ok(Some(&self.batch))
    }

    /// Counts the rows that are left.
    ///
    /// # Errors
    /// As [`Scan::next`].
    pub fn count(mut self) -> Result<u64> {
        let mut count = 0;
        while let Some(batch) = self.next_batch()? {
            count += batch.len() as u64;
        }
        Ok(count)
    }

    /// Puts the next stripe into the batch. `false`: there is none.
    fn fill(&mut self) -> Result<bool> {
        self.batch.clear();
        self.at = 0;
        while self.batch.is_empty() {
            let first = self.streams.iter().map(|s| s.next).min();
            let ahead = self.ahead.last().map(|(from, _)| *from);
            let start = match (first, ahead) {
                (None, None) => return Ok(false),
                (Some(key), Some(from)) if from <= key.0 => return self.reach(from).and_then(|()| self.fill()),
                (None, Some(from)) => return self.reach(from).and_then(|()| self.fill()),
                (Some(key), _) => key,
            };
            if let [stream] = self.streams.as_mut_slice() {
                let end = ahead.map_or((u64::MAX, u64::MAX), |from| (from.saturating_sub(1), u64::MAX));
                if !take(stream, end, ALONE_ROWS, &mut self.batch)? {
                    self.streams.clear();
                }
                continue;
            }
            self.stripe(start)?;
        }
        Ok(true)
    }

    /// Takes the stripe that begins at `start` from all streams.
    fn stripe(&mut self, start: Key) -> Result<()> {
        loop {
            let last = start.0.saturating_add(self.width);
            // Files that begin inside the stripe are part of it.
            self.reach(last)?;
            // At one moment LSNs bound the rows: they are dense.
            let end = if self.width == 0 { (start.0, start.1.saturating_add(STRIPE_MAX)) } else { (last, u64::MAX) };
            let mut rows = 0u64;
            for stream in self.streams.iter().filter(|s| s.next <= end) {
                rows += u64::from(stream.count(end)?);
                if rows > STRIPE_MAX {
                    break;
                }
            }
            if rows > STRIPE_MAX && self.width > 0 {
                self.width /= 4;
                continue;
            }
            let mut ended = false;
            for stream in self.streams.iter_mut().filter(|s| s.next <= end) {
                ended |= !take(stream, end, u32::MAX, &mut self.batch)?;
            }
            if ended {
                self.streams.retain(|s| s.next.0 != u64::MAX || s.next.1 != u64::MAX);
            }
            self.batch.heads.sort_unstable_by_key(|h| (h.time, h.lsn));
            if rows < u64::from(STRIPE_ROWS) {
                self.width = (self.width * 2).max(1);
            }
            return Ok(());
        }
    }

    /// Opens up the files whose first row is not after `time`.
    fn reach(&mut self, time: u64) -> Result<()> {
        while self.ahead.last().is_some_and(|(from, _)| *from <= time) {
            let Some((_, file)) = self.ahead.pop() else { break };
            let wanted = self.wanted.of(file.meta().kind);
            let here = file.series()?;
            let range = self.range;
            let mut open = |instrument| -> Result<()> {
                let Some(slice) = file.slice(instrument, range)? else { return Ok(()) };
                self.streams.push(Stream { next: key_at(file, &slice)?, source: Source::File { file, slice } });
                Ok(())
            };
            if wanted.len() < here.len() / 8 {
                wanted.iter().copied().try_for_each(&mut open)?;
            } else {
                here.iter().map(|s| s.instrument).filter(|i| wanted.binary_search(i).is_ok()).try_for_each(&mut open)?;
            }
        }
        Ok(())
    }
}

/// The key of the first row of `slice`.
fn key_at(file: &File, slice: &Slice) -> Result<Key> {
    let (index, row) = slice.locate(slice.from);
    let block = file.block(index)?;
    Ok((block.times().get(row).0, block.lsns().get(row).copied().unwrap_or(u64::MAX)))
}

impl Stream<'_> {
    /// Rows up to `end`, at least: of a MemTable they are only known when they are taken.
    fn count(&self, end: Key) -> Result<u32> {
        match &self.source {
            Source::Table { .. } => Ok(1),
            Source::File { file, slice } => file.count_until(slice, Ts(end.0), Lsn(end.1)),
        }
    }
}

/// Takes rows up to `end`, and at most about `limit`, of `stream`. `false`: it has ended.
fn take(stream: &mut Stream<'_>, end: Key, limit: u32, batch: &mut RowBatch) -> Result<bool> {
    let next = match &mut stream.source {
        Source::Table { rows, head } => {
            let mut left = limit;
            loop {
                if (head.index_time.0, head.lsn.0) > end || left == 0 {
                    break Some((head.index_time.0, head.lsn.0));
                }
                batch.push(head);
                left -= 1;
                match rows.next() {
                    Some(row) => *head = row,
                    None => break None,
                }
            }
        }
        Source::File { file, slice } => {
            let count = file.count_until(slice, Ts(end.0), Lsn(end.1))?.min(limit);
            let to = slice.from + count;
            while slice.from < to {
                let (index, row) = slice.locate(slice.from);
                let block = file.block(index)?;
                let n = slice.run(slice.from).min((to - slice.from) as usize);
                let (times, lsns, words) = (block.times(), block.lsns(), file.schema()?.words);
                let at = batch.words.len();
                block.rows(row, row + n, &mut batch.words);
                batch.heads.extend(lsns.iter().enumerate().skip(row).take(n).map(|(i, &lsn)| Head {
                    time: times.get(i).0,
                    lsn,
                    at: (at + (i - row) * words) as u32,
                    words: words as u32,
                }));
                slice.from += n as u32;
            }
            if slice.from < slice.to { Some(key_at(file, slice)?) } else { None }
        }
    };
    stream.next = next.unwrap_or((u64::MAX, u64::MAX));
    Ok(next.is_some())
}
