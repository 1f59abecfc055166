//! Owns: scan and replay: a merge of sorted streams of rows, from files and MemTables, in (index time, LSN)
//! order.
//!
//! Rows are taken one stripe of time at a time: the rows of every stream that lie in the stripe, sorted by
//! key, are rebuilt into one batch in that order. So no row passes through a heap, and reading the batch reads
//! memory sequentially. A stream with many rows before the next stream's first row is read alone. A file is
//! opened when a stripe reaches it. Memory: about 25 MiB for a scan of records of many series, at most twice
//! that.

use super::batch::{Head, RowBatch};
use crate::error::Result;
use crate::lsn::{InstrumentId, Lsn};
use crate::memtable::{Rows as TableRows, Table};
use crate::record::{Kind, Row, Series, TimeRange};
use crate::sstable::{BlockView, Plan, Run, Slice};
use crate::time::Ts;
use crate::version::{File, View};

/// Target rows of a stripe: this many per stream in it, so that a stream's rows in a file fill many adjacent
/// cache lines. The range keeps stripes of few streams within the caches.
const STREAM_ROWS: u64 = 64;
const STRIPE_ROWS: std::ops::RangeInclusive<u64> = 16 << 10..=256 << 10;
/// Maximum rows of a stripe.
const STRIPE_MAX: u64 = 512 << 10;
/// A stream with this many rows before the next row of the others is read alone,
const ALONE_MIN: usize = 64;
/// up to this many at a time.
const ALONE_MAX: usize = 1024;
/// Length of the first stripe, ns.
const WIDTH_FIRST: u64 = 1_000_000;

/// (index time, LSN): the sort key.
type Key = (u64, u64);
/// Sorts after every row.
const NEVER: Key = (u64::MAX, u64::MAX);

/// Rows of one series in a file, starting with the current one.
struct FileRows<'t> {
    file: &'t File,
    slice: Slice,
    block: BlockView<'t>,
    /// The current row in the block, and the number of rows of the slice from it on in this block.
    row: usize,
    run: usize,
}

enum Source<'t> {
    File(FileRows<'t>),
    /// The remaining rows of a MemTable, the next row, and the table.
    Table(TableRows<'t>, Row<'t>, &'t Table),
}

struct Stream<'t> {
    next: Key,
    source: Source<'t>,
}

impl<'t> FileRows<'t> {
    fn new(file: &'t File, slice: Slice) -> Result<FileRows<'t>> {
        let (index, row) = slice.locate(slice.from);
        Ok(FileRows { file, slice, block: file.block(index)?, row, run: slice.run(slice.from) })
    }

    fn key(&self) -> Key {
        (self.block.times().get(self.row).0, self.block.lsns().get(self.row).copied().unwrap_or(u64::MAX))
    }

    /// Number of rows of the current run up to and including `end`, at most `limit`. Probes in doubling steps,
    /// since they are usually few.
    fn ahead(&self, end: Key, limit: usize) -> usize {
        let (times, lsns) = (self.block.times(), self.block.lsns());
        let run = self.run.min(limit);
        let is_in = |i: usize| {
            let time = times.get(self.row + i).0;
            time < end.0 || (time == end.0 && lsns.get(self.row + i).is_some_and(|l| *l <= end.1))
        };
        let (mut low, mut step) = (0, 1);
        while low + step <= run && is_in(low + step - 1) {
            low += step;
            step *= 2;
        }
        let mut high = run.min(low + step - 1).max(low);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_in(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Records the next `n` rows of the run in `taken`. `false`: there are no more.
    fn take(&mut self, n: usize, taken: &mut Taken<'t>) -> Result<bool> {
        let to = self.row + n;
        taken.push(self.file, &self.block, self.row, to);
        self.slice.from += n as u32;
        (self.row, self.run) = (to, self.run - n);
        if self.run > 0 {
            return Ok(true);
        }
        if self.slice.from >= self.slice.to {
            return Ok(false);
        }
        *self = FileRows::new(self.file, self.slice)?;
        Ok(true)
    }
}

/// The rows of a stripe before they are put into a batch in order. A head's `at` is the row's number among
/// file rows, or, with [`LOOSE`], among MemTable rows.
#[derive(Default)]
struct Taken<'t> {
    heads: Vec<Head>,
    runs: Vec<(&'t Plan, Run<'t>)>,
    /// The files of the runs.
    files: Vec<&'t File>,
    rows: u32,
    loose: Vec<Row<'t>>,
    /// For sorting, and the offset of each file row in the batch.
    spare: Vec<Head>,
    places: Vec<u32>,
}

/// Flag in a head's `at`: the row is a MemTable's.
const LOOSE: u32 = 1 << 31;

impl<'t> Taken<'t> {
    /// Adds the rows `from..to` of `block` of `file`.
    fn push(&mut self, file: &'t File, block: &BlockView<'t>, from: usize, to: usize) {
        if self.files.last().is_none_or(|last| !std::ptr::eq(*last, file)) {
            self.files.push(file);
        }
        let (words, at) = (block.plan().words as u32, self.rows);
        let lsns = block.lsns().get(from..to).unwrap_or(&[]);
        let head = |i: usize, time: u64, lsn: u64| Head { time, lsn, at: at + i as u32, words };
        let times = block.times();
        match times.plain() {
            Some(times) => {
                let times = times.get(from..to).unwrap_or(&[]);
                self.heads.extend(times.iter().zip(lsns).enumerate().map(|(i, (&t, &l))| head(i, t, l)));
            }
            None => self.heads.extend(lsns.iter().enumerate().map(|(i, &l)| head(i, times.get(from + i).0, l))),
        }
        self.rows += (to - from) as u32;
        match self.runs.last_mut() {
            // Continues where the previous series ended: the same run.
            Some((_, run)) if std::ptr::eq(run.body.bytes, block.body.bytes) && run.from + run.rows == from => {
                run.rows += to - from
            }
            _ => self.runs.push((block.plan(), Run { body: block.body, from, rows: to - from })),
        }
    }

    /// Adds a row of a MemTable.
    fn push_loose(&mut self, row: Row<'t>) {
        let (at, words) = (LOOSE | self.loose.len() as u32, row.record.words().len() as u32);
        self.heads.push(Head { time: row.index_time.0, lsn: row.lsn.0, at, words });
        self.loose.push(row);
    }

    /// Sorts all rows and moves them into `batch` in that order, so that a reader of the batch reads memory
    /// sequentially. No row's time is before `first`.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] if a page of a file went bad meanwhile.
    fn give(&mut self, first: u64, batch: &mut RowBatch) -> Result<()> {
        sort(&mut self.heads, &mut self.spare, first);
        self.places.resize(self.rows as usize, 0);
        let mut end = 0;
        for head in &mut self.heads {
            // MemTable rows are not copied here.
            if head.at & LOOSE != 0 {
                continue;
            }
            if let Some(place) = self.places.get_mut(std::mem::replace(&mut head.at, end) as usize) {
                *place = end;
            }
            end += head.words;
        }
        let mut places = self.places.as_slice();
        for same in self.runs.chunk_by(|a, b| std::ptr::eq(a.0, b.0)) {
            let Some((plan, _)) = same.first() else { continue };
            let runs: Vec<Run<'t>> = same.iter().map(|(_, run)| *run).collect();
            let (mine, after) = places.split_at_checked(runs.iter().map(|r| r.rows).sum()).unwrap_or((places, &[]));
            places = after;
            batch.reserve(end);
            plan.gather(&runs, |i, record| {
                if let Some(&place) = mine.get(i) {
                    batch.put(place, record);
                }
            });
        }
        std::mem::swap(&mut batch.heads, &mut self.heads);
        self.heads.clear();
        self.runs.clear();
        self.rows = 0;
        self.files.drain(..).try_for_each(|file| file.check())
    }

    /// Copies the MemTable rows that `batch` refers to into it.
    fn settle(&mut self, batch: &mut RowBatch) {
        let mut end = batch.heads.iter().filter(|h| h.at & LOOSE == 0).map(|h| h.at + h.words).max().unwrap_or(0);
        for i in 0..batch.heads.len() {
            let Some(head) = batch.heads.get_mut(i) else { break };
            let Some(row) = (head.at & LOOSE != 0).then(|| self.loose.get((head.at & !LOOSE) as usize)).flatten() else {
                continue;
            };
            head.at = end;
            end += head.words;
            batch.put(end - row.record.words().len() as u32, row.record.words());
        }
    }
}

impl<'t> Stream<'t> {
    /// Takes the rows up to and including `end`, at most `limit`.
    fn take(&mut self, end: Key, limit: usize, taken: &mut Taken<'t>) -> Result<()> {
        let mut left = limit;
        while self.next <= end && self.next != NEVER && left > 0 {
            self.next = match &mut self.source {
                Source::File(rows) => {
                    let n = rows.ahead(end, left);
                    left -= n;
                    if rows.take(n, taken)? { rows.key() } else { NEVER }
                }
                Source::Table(rows, head, _) => {
                    taken.push_loose(*head);
                    left -= 1;
                    match rows.next() {
                        Some(row) => {
                            *head = row;
                            (row.index_time.0, row.lsn.0)
                        }
                        None => NEVER,
                    }
                }
            };
        }
        Ok(())
    }
}

/// The requested series, by kind; instruments sorted.
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
    view: &'t View,
    range: TimeRange,
    wanted: Wanted,
    /// Files that have not been reached, the next one last.
    ahead: Vec<(u64, &'t File)>,
    streams: Vec<Stream<'t>>,
    batch: RowBatch,
    taken: Taken<'t>,
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
            for (kind, instruments) in &wanted.0 {
                for &instrument in instruments {
                    let mut rows = table.rows(Series { instrument, kind: *kind }, range, view.upto);
                    if let Some(head) = rows.next() {
                        let source = Source::Table(rows, head, table);
                        streams.push(Stream { next: (head.index_time.0, head.lsn.0), source });
                    }
                }
            }
        }
        Scan {
            view,
            range,
            wanted,
            ahead,
            streams,
            batch: RowBatch::default(),
            taken: Taken::default(),
            at: 0,
            width: WIDTH_FIRST,
        }
    }

    /// The next row.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] or [`crate::error::Error::Io`] of a file, [`crate::error::Error::SnapshotTooOld`]. The scan
    /// then ends, although rows are left.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "a row is borrowed until the next call, and a call can fail")]
    pub fn next(&mut self) -> Result<Option<Row<'_>>> {
        if self.at >= self.batch.len() {
            // One series of one MemTable is left: no batch is needed.
            if let ([Stream { next: next_key, source: Source::Table(rows, head, table) }], true) =
                (self.streams.as_mut_slice(), self.ahead.is_empty())
            {
                let (row, next) = (*head, rows.next());
                // Some of the rows are enough.
                let age = if row.lsn.0.is_multiple_of(1024) { self.view.check_age() } else { Ok(()) };
                if let Err(error) = age.and_then(|()| table.check()) {
                    self.streams.clear();
                    return Err(error);
                }
                match next {
                    Some(next) => (*next_key, *head) = ((next.index_time.0, next.lsn.0), next),
                    None => self.streams.clear(),
                }
                return Ok(Some(row));
            }
            if !self.refill()? {
                return Ok(None);
            }
        }
        debug_assert!(self.at < self.batch.len(), "a scan ends only when no row is left");
        let at = self.at;
        self.at += 1;
        match self.batch.heads.get(at) {
            Some(head) if head.at & LOOSE != 0 => Ok(self.taken.loose.get((head.at & !LOOSE) as usize).copied()),
            _ => Ok(self.batch.get(at)),
        }
    }

    /// The next rows, as a batch, without those that [`Scan::next`] has returned.
    ///
    /// # Errors
    /// Those of [`Scan::next`].
    pub fn next_batch(&mut self) -> Result<Option<&RowBatch>> {
        if self.at > 0 && self.at < self.batch.len() {
            self.batch.heads.drain(..self.at);
        } else if !self.refill()? {
            return Ok(None);
        }
        self.taken.settle(&mut self.batch);
        self.at = self.batch.len();
        Ok(Some(&self.batch))
    }

    /// Counts the remaining rows.
    ///
    /// # Errors
    /// Those of [`Scan::next`].
    pub fn count(mut self) -> Result<u64> {
        let mut count = 0;
        while let Some(batch) = self.next_batch()? {
            count += batch.len() as u64;
        }
        Ok(count)
    }

    /// The stream with the next row, that row's key, and the least key of the other streams.
    fn first(&self) -> Option<(usize, Key, Key)> {
        let (mut first, mut second, mut index) = (NEVER, NEVER, None);
        for (i, stream) in self.streams.iter().enumerate() {
            if stream.next < first {
                (first, second, index) = (stream.next, first, Some(i));
            } else if stream.next < second {
                second = stream.next;
            }
        }
        index.map(|i| (i, first, second))
    }

    /// Fills the batch with the next rows. `false`: there are none. After an error the scan ends: continuing
    /// would leave rows out.
    fn refill(&mut self) -> Result<bool> {
        let filled = self.fill();
        if filled.is_err() {
            self.streams.clear();
            self.ahead.clear();
            self.batch.heads.clear();
            self.taken = Taken::default();
        }
        filled
    }

    fn fill(&mut self) -> Result<bool> {
        self.view.check_age()?;
        // Its words are overwritten.
        self.batch.heads.clear();
        self.taken.loose.clear();
        self.at = 0;
        while self.batch.is_empty() {
            let ahead = self.ahead.last().map(|(from, _)| *from);
            let (index, start, second) = match (self.first(), ahead) {
                (None, None) => return Ok(false),
                (None, Some(from)) => {
                    self.reach(from)?;
                    continue;
                }
                (Some((_, start, _)), Some(from)) if from <= start.0 => {
                    self.reach(from)?;
                    continue;
                }
                (Some(first), _) => first,
            };
            // Up to the first row of the next stream or file, excluded: keys are unique.
            let second = second.min(ahead.map_or(NEVER, |from| (from, 0)));
            let end = if second.1 > 0 { (second.0, second.1 - 1) } else { (second.0 - 1, u64::MAX) };
            if let Some(Stream { source: Source::File(rows), .. }) = self.streams.get(index)
                && (self.streams.len() == 1 || rows.ahead(end, ALONE_MIN) == ALONE_MIN)
                && let Some(stream) = self.streams.get_mut(index)
            {
                stream.take(end, ALONE_MAX, &mut self.taken)?;
            } else if let ([stream], true) = (self.streams.as_mut_slice(), ahead.is_none()) {
                stream.take(end, ALONE_MAX, &mut self.taken)?;
            } else {
                self.stripe(start)?;
            }
            self.taken.give(start.0, &mut self.batch)?;
            self.view.check_tables()?;
            self.streams.retain(|s| s.next != NEVER);
        }
        Ok(true)
    }

    /// Takes the stripe that begins at `start` from all streams.
    fn stripe(&mut self, start: Key) -> Result<()> {
        loop {
            // A file that is not reached ends the stripe: the stripe's width does not decide which files are
            // opened.
            let limit = self.ahead.last().map_or(u64::MAX, |(from, _)| from.saturating_sub(1));
            let last = start.0.saturating_add(self.width).min(limit);
            // Within one moment LSNs bound the rows, since they are dense.
            let end = if self.width == 0 { (start.0, start.1.saturating_add(STRIPE_MAX)) } else { (last, u64::MAX) };
            if self.width > 0 && self.expected(end)? > STRIPE_MAX {
                self.width /= 4;
                continue;
            }
            let mut streams = 0;
            for stream in self.streams.iter_mut().filter(|s| s.next <= end) {
                stream.take(end, usize::MAX, &mut self.taken)?;
                streams += 1;
            }
            let aim = (streams * STREAM_ROWS).clamp(*STRIPE_ROWS.start(), *STRIPE_ROWS.end());
            self.width = match self.taken.heads.len() as u64 {
                // Stripes that end at the next file stay small, even if many follow each other.
                n if n < aim / 2 => self.width.saturating_mul(2).max(1),
                n if n > aim * 2 => self.width / 2,
                _ => self.width,
            };
            return Ok(());
        }
    }

    /// Number of rows up to `end`; stops counting above [`STRIPE_MAX`].
    fn expected(&self, end: Key) -> Result<u64> {
        let mut rows = 0;
        for stream in self.streams.iter().filter(|s| s.next <= end) {
            rows += match &stream.source {
                Source::Table(table, ..) => 1 + table.count_until(Ts(end.0)),
                Source::File(file) => match file.ahead(end, file.run) {
                    n if n < file.run => n as u64,
                    _ => u64::from(file.file.count_until(&file.slice, Ts(end.0), Lsn(end.1))?),
                },
            };
            if rows > STRIPE_MAX {
                break;
            }
        }
        Ok(rows)
    }

    /// Opens the files whose first row is not after `time`.
    fn reach(&mut self, time: u64) -> Result<()> {
        while self.ahead.last().is_some_and(|(from, _)| *from <= time) {
            let Some((_, file)) = self.ahead.pop() else { break };
            let wanted = self.wanted.of(file.meta().kind);
            let (here, range) = (file.series()?, self.range);
            let mut open = |instrument| -> Result<()> {
                let Some(slice) = file.slice(instrument, range)? else { return Ok(()) };
                let rows = FileRows::new(file, slice)?;
                self.streams.push(Stream { next: rows.key(), source: Source::File(rows) });
                Ok(())
            };
            if wanted.len() < here.len() / 8 {
                wanted.iter().copied().try_for_each(&mut open)?;
            } else {
                here.iter().map(|s| s.instrument).filter(|i| wanted.binary_search(i).is_ok()).try_for_each(&mut open)?;
            }
            file.check()?;
        }
        Ok(())
    }
}

/// Maximum number of buckets for a stripe; about one per row.
const BUCKETS_MAX: usize = 1 << 15;
/// Minimum number of rows for which buckets are faster.
const BUCKETS_MIN: usize = 1 << 11;

/// Sorts `heads` by (time, LSN). No time is before `first`. The times of a stripe are spread over it, so one
/// pass distributes the heads to buckets of equal time spans, and each bucket is sorted on its own.
fn sort(heads: &mut Vec<Head>, spare: &mut Vec<Head>, first: u64) {
    let last = heads.iter().fold(first, |max, h| max.max(h.time));
    if heads.len() < BUCKETS_MIN || last == first {
        // The rows of one stream are already sorted; the sort detects this in one pass.
        return heads.sort_unstable_by_key(|h| (h.time, h.lsn));
    }
    let buckets = heads.len().next_power_of_two().min(BUCKETS_MAX);
    let shift = (u64::BITS - (last - first).leading_zeros()).saturating_sub(buckets.trailing_zeros());
    let bucket = |h: &Head| ((h.time - first) >> shift) as usize;
    let mut ends = vec![0u32; buckets];
    for head in heads.iter() {
        if let Some(end) = ends.get_mut(bucket(head)) {
            *end += 1;
        }
    }
    let mut sum = 0;
    for place in &mut ends {
        sum += std::mem::replace(place, sum);
    }
    spare.resize(heads.len(), Head { time: 0, lsn: 0, at: 0, words: 0 });
    for head in heads.iter() {
        let Some(place) = ends.get_mut(bucket(head)) else { continue };
        if let Some(to) = spare.get_mut(*place as usize) {
            *to = *head;
        }
        *place += 1;
    }
    // Each bucket begins where the previous one ends.
    let mut from = 0;
    for &to in &ends {
        if to - from > 1
            && let Some(bucket) = spare.get_mut(from as usize..to as usize)
        {
            bucket.sort_unstable_by_key(|h| (h.time, h.lsn));
        }
        from = to;
    }
    std::mem::swap(heads, spare);
}
