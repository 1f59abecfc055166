//! Owns: reading a MemTable that another process may be filling.
//!
//! Every read is bounded by a watermark (`upto`) that the caller loaded with acquire; rows above it are not
//! read. Offsets read from the table are checked against the mapping, so no contents lead outside it. An
//! invalid chunk link ends the walk.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::format::{
    BASE, BY_INGEST, CHUNK_DELTAS, ChunkLayout, ID, Layout, MAGIC, RUN_ENTRY_LEN, RUN_ENTRY_WORDS, RUNS, SERIES, SERIES_SLOT_LEN,
    STORE_ID, USED, VERSION, ZONE_ROWS, home,
};
use super::order::{partition_point, rows_until};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, Lsn, PubSeq, PublisherId};
use crate::record::{Arrival, RecordRef, Row, Series, TimeRange, schema};
use crate::shm::Mapping;
use crate::time::Ts;

/// A MemTable, mapped for reading.
#[derive(Debug)]
pub struct Table {
    map: Mapping,
    layout: Layout,
    id: u64,
    base: Lsn,
}

/// A chunk of one series, limited to the rows up to a watermark.
#[derive(Clone, Copy)]
struct Chunk<'t> {
    table: &'t Table,
    at: u64,
    layout: ChunkLayout,
    words: u32,
    len: u32,
    index_word: u64,
}

/// Rows of one series in one table, in (index time, LSN) order.
pub struct Rows<'t> {
    chunks: Vec<Chunk<'t>>,
    sorted: Vec<(Ts, Lsn, u64)>,
    in_place: bool,
    range: TimeRange,
    chunk: usize,
    row: u32,
}

impl Table {
    /// Maps the table in the file `path` for reading.
    ///
    /// # Errors
    /// [`Error::Foreign`] or [`Error::Version`] if it is not a MemTable of the store `store_id`;
    /// [`Error::Io`].
    pub fn open(path: &Path, store_id: u128) -> Result<Table> {
        let map = Mapping::open(path, false)?;
        let foreign = |found| Error::Foreign { path: path.to_path_buf(), what: "MemTable of this store", found };
        let len = map.len();
        if !(super::format::LEN_MIN..=super::format::LEN_MAX).contains(&len) || !len.is_multiple_of(4096) {
            return Err(foreign(len));
        }
        // SYNC: pairs with the store in `Writer::begin`.
        let magic = map.u64(0).load(Ordering::Acquire);
        let word = |at: u64| map.u64(at).load(Ordering::Relaxed);
        let id_halves = u128::from(word(STORE_ID)) | u128::from(word(STORE_ID + 8)) << 64;
        if magic != MAGIC || id_halves != store_id {
            return Err(foreign(magic));
        }
        if word(8) != VERSION {
            return Err(Error::Version { path: path.to_path_buf(), found: word(8) as u32, supported: VERSION as u32 });
        }
        let (id, base) = (word(ID), Lsn(word(BASE)));
        // The length alone determines the layout; the header's copy is for other readers.
        Ok(Table { layout: Layout::new(len), map, id, base })
    }

    /// The table in `map`, which its writer has finished.
    pub(super) fn finished(map: Mapping, id: u64, base: Lsn) -> Table {
        Table { layout: Layout::new(map.len()), map, id, base }
    }

    /// Removes its pages from this process's memory; see [`Mapping::release`].
    pub fn release(&self) {
        self.map.release();
    }

    /// Checks that everything read so far is what the writer wrote; see [`Mapping::check`].
    ///
    /// # Errors
    /// [`Error::Io`] if it is not.
    #[inline]
    pub fn check(&self) -> Result<()> {
        self.map.check()
    }

    /// The table's number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// LSN of the first record.
    pub fn base(&self) -> Lsn {
        self.base
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.map.u64(USED).load(Ordering::Relaxed)
    }

    #[inline]
    fn load32(&self, at: u64) -> Option<u32> {
        (at + 4 <= self.map.len() && at.is_multiple_of(4)).then(|| self.map.u32(at).load(Ordering::Relaxed))
    }

    #[inline]
    fn load64(&self, at: u64) -> Option<u64> {
        (at + 8 <= self.map.len() && at.is_multiple_of(8)).then(|| self.map.u64(at).load(Ordering::Relaxed))
    }

    fn entry(&self, directory: u64, index: u64, per_block: u64, entry: u64) -> Option<u64> {
        let block = u64::from(self.load32(directory + index / per_block * 4)?) * 64;
        (block != 0).then_some(block + index % per_block * entry)
    }

    #[inline]
    fn record_at(&self, at: u64) -> Option<RecordRef<'_>> {
        let head = *self.map.words(at, 1)?.first()?;
        let words = schema(crate::record::Kind((head & 0xffff) as u16))?.words;
        RecordRef::first(self.map.words(at, words)?).ok()
    }

    /// The arrival entry of `lsn`: the offset of its record, and whether the record sorts by ingest time.
    #[inline]
    fn address(&self, lsn: Lsn) -> Option<(u64, bool)> {
        let index = lsn.0.checked_sub(self.base.0)?;
        let at = self.entry(self.layout.arrival_dir, index, self.layout.arrival_block_rows, 4)?;
        let entry = self.load32(at)?;
        (entry != 0).then_some((u64::from(entry & !BY_INGEST) * 8, entry & BY_INGEST != 0))
    }

    /// The record at `lsn`, which the caller has found to be applied; `None` if it is not in this table.
    #[inline]
    pub fn get(&self, lsn: Lsn) -> Option<RecordRef<'_>> {
        self.record_at(self.address(lsn)?.0)
    }

    fn runs(&self) -> u64 {
        // SYNC: pairs with the store in `Writer::push_run`.
        self.map.u64(RUNS).load(Ordering::Acquire)
    }

    /// How record `lsn` arrived. The record is applied and in this table.
    pub fn arrival(&self, lsn: Lsn) -> Option<Arrival> {
        let (first, _, mut arrival) = self.run_of(lsn)?;
        arrival.lsn = lsn;
        arrival.pub_seq.0 += lsn.0 - first.0;
        Some(arrival)
    }

    /// The run of record `lsn`, which is applied and in this table: first LSN, number of records, arrival of
    /// the first.
    pub fn run_of(&self, lsn: Lsn) -> Option<(Lsn, u64, Arrival)> {
        let after = partition_point(self.runs(), |i| self.run(i).is_some_and(|(first, ..)| first <= lsn));
        let run = self.run(after.checked_sub(1)?)?;
        (lsn.0 - run.0.0 < run.1).then_some(run)
    }

    /// Run `index`: first LSN, number of records, arrival of the first.
    fn run(&self, index: u64) -> Option<(Lsn, u64, Arrival)> {
        let at = self.entry(self.layout.run_dir, index, self.layout.run_block_runs, RUN_ENTRY_LEN)?;
        let &[first, counted, epoch, pub_seq, ingest] = self.map.words(at, RUN_ENTRY_WORDS)? else { return None };
        let arrival = Arrival {
            lsn: Lsn(first),
            publisher: PublisherId((counted >> 32) as u16),
            epoch: Epoch(epoch as u32),
            pub_seq: PubSeq(pub_seq),
            ingest_ts: Ts(ingest),
        };
        Some((Lsn(first), counted & 0xffff_ffff, arrival))
    }

    /// Calls `visit` for each run up to `upto`, in order, with its first LSN, number of records and arrival
    /// of the first.
    pub fn each_run(&self, upto: Lsn, mut visit: impl FnMut(Lsn, u64, Arrival)) {
        let runs = (0..self.runs()).map_while(|i| self.run(i));
        runs.take_while(|(first, ..)| *first <= upto).for_each(|(first, count, arrival)| visit(first, count, arrival));
    }

    /// The record that `publisher` numbered `pub_seq` in `epoch`, if it lies above `after` and up to `upto`
    /// in this table. Searches forward from `after`, or back from the newest if `after` is [`Lsn::NONE`].
    pub fn find_published(
        &self,
        publisher: PublisherId,
        epoch: Epoch,
        pub_seq: PubSeq,
        after: Lsn,
        upto: Lsn,
    ) -> Option<Row<'_>> {
        let runs = self.runs();
        let matches = |i: u64| {
            let (first, count, arrival) = self.run(i)?;
            let offset = pub_seq.0.checked_sub(arrival.pub_seq.0)?;
            let lsn = first.plus(offset);
            let hit = arrival.publisher == publisher && arrival.epoch == epoch && offset < count && lsn <= upto;
            if hit { self.row(lsn) } else { None }
        };
        if after == Lsn::NONE {
            return (0..runs).rev().find_map(matches);
        }
        let from = partition_point(runs, |i| self.run(i).is_some_and(|(first, ..)| first <= after)).saturating_sub(1);
        (from..runs).find_map(matches)
    }

    /// The row at `lsn`, which is applied; `None` if it is not in this table.
    #[inline]
    pub fn row(&self, lsn: Lsn) -> Option<Row<'_>> {
        let (address, by_ingest) = self.address(lsn)?;
        let record = self.record_at(address)?;
        let index_time = if by_ingest { self.arrival(lsn)?.ingest_ts } else { record.own_index_time() };
        Some(Row { lsn, index_time, record })
    }

    /// All series of the table.
    pub fn series(&self) -> Vec<Series> {
        let mut all = Vec::with_capacity(self.load64(SERIES).unwrap_or(0).min(1 << 20) as usize);
        for slot in 0..self.layout.series_capacity {
            // SYNC: pairs with the last store in `Writer::add_chunk`.
            let key = self.map.u64(self.layout.series_dir + slot * SERIES_SLOT_LEN).load(Ordering::Acquire);
            if key != 0 {
                all.push(Series::from_key(key));
            }
        }
        all
    }

    /// Offset of the newest chunk of `series`.
    fn tail(&self, series: Series) -> Option<u64> {
        let (key, capacity) = (series.key(), self.layout.series_capacity);
        let mut slot = home(key, capacity);
        for _ in 0..capacity {
            let at = self.layout.series_dir + slot * SERIES_SLOT_LEN;
            // SYNC: pairs with the last store in `Writer::add_chunk`.
            match self.map.u64(at).load(Ordering::Acquire) {
                0 => return None,
                // SYNC: pairs with the store of the tail in `Writer::add_chunk`.
                found if found == key => return Some(u64::from(self.map.u32(at + 8).load(Ordering::Acquire)) * 64),
                _ => slot = (slot + 1) & (capacity - 1),
            }
        }
        None
    }

    /// The chunk at `at`, limited to the rows up to `upto`; `None` if there is no valid chunk.
    fn chunk(&self, at: u64, upto: Lsn, index_word: u64) -> Option<Chunk<'_>> {
        if at == 0 {
            return None;
        }
        let (capacity, words) = (self.load32(at + 12)?, self.load32(at + 24)?);
        if capacity == 0 || words == 0 || u64::from(capacity) * u64::from(words) > self.map.len() / 8 {
            return None;
        }
        let layout = ChunkLayout::of(capacity, words);
        if at + layout.len > self.map.len() {
            return None;
        }
        let len = rows_until(&self.map, at, capacity, upto.0.checked_sub(self.base.0));
        Some(Chunk { table: self, at, layout, words, len, index_word })
    }

    /// The row of `series` with the greatest (index time, LSN) not after `time`, up to `upto`.
    pub fn as_of(&self, series: Series, time: Ts, upto: Lsn) -> Option<Row<'_>> {
        let index_word = schema(series.kind)?.index_word as u64;
        let mut at = self.tail(series)?;
        let mut best: Option<(Ts, Lsn, u64)> = None;
        while let Some(chunk) = self.chunk(at, upto, index_word) {
            if chunk.len > 0 && chunk.min() <= time {
                best = best.max(chunk.last_until(time));
            }
            if best.is_some_and(|(t, ..)| t >= chunk.prefix_max()) {
                break;
            }
            at = if best.is_none() && chunk.jump_min() > time && chunk.min() > time { chunk.jump() } else { chunk.prev() };
        }
        let (index_time, lsn, address) = best?;
        Some(Row { lsn, index_time, record: self.record_at(address)? })
    }

    /// Least and greatest index time of the rows of `series`, in a sealed table.
    pub fn span(&self, series: Series) -> Option<(Ts, Ts)> {
        let index_word = schema(series.kind)?.index_word as u64;
        let mut span: Option<(Ts, Ts)> = None;
        let mut at = self.tail(series)?;
        while let Some(chunk) = self.chunk(at, Lsn(u64::MAX), index_word) {
            let (min, max) = span.unwrap_or((chunk.min(), chunk.max()));
            span = Some((min.min(chunk.min()), max.max(chunk.max())));
            at = chunk.prev();
        }
        span
    }

    /// The rows of `series` whose word `word` is `value`, up to `upto`, in no particular order.
    pub fn rows_with<'t>(&'t self, series: Series, word: usize, value: u64, upto: Lsn) -> Vec<Row<'t>> {
        let mut found = Vec::new();
        let Some(index_word) = schema(series.kind).map(|s| s.index_word as u64) else { return found };
        let mut at = self.tail(series).unwrap_or(0);
        while let Some(chunk) = self.chunk(at, upto, index_word) {
            let stride = chunk.words as usize;
            let records = self.map.words(chunk.address(0), chunk.len as usize * stride).unwrap_or(&[]);
            let values = records.iter().skip(word).step_by(stride);
            found.extend(values.enumerate().filter(|(_, v)| **v == value).filter_map(|(row, _)| chunk.row(row as u32)));
            at = chunk.prev();
        }
        found
    }

    /// The rows of `series` in `range`, up to `upto`, in (index time, LSN) order.
    pub fn rows(&self, series: Series, range: TimeRange, upto: Lsn) -> Rows<'_> {
        let mut rows = Rows { chunks: Vec::new(), sorted: Vec::new(), in_place: true, range, chunk: 0, row: 0 };
        let Some(index_word) = schema(series.kind).map(|s| s.index_word as u64) else { return rows };
        let mut at = self.tail(series).unwrap_or(0);
        while let Some(chunk) = self.chunk(at, upto, index_word) {
            if chunk.len > 0 {
                if chunk.min() <= range.to && chunk.max() >= range.from {
                    rows.in_place &= chunk.is_sorted() && chunk.min() >= chunk.prefix_max();
                    rows.chunks.push(chunk);
                }
                if chunk.prefix_max() < range.from {
                    break;
                }
            }
            let skip = chunk.jump_min() > range.to && chunk.min() > range.to;
            at = if skip { chunk.jump() } else { chunk.prev() };
        }
        rows.chunks.reverse();
        rows.start();
        rows
    }
}

impl<'t> Chunk<'t> {
    #[inline]
    fn delta(&self, row: u32) -> u32 {
        self.table.load32(self.at + CHUNK_DELTAS + u64::from(row) * 4).unwrap_or(u32::MAX)
    }

    #[inline]
    fn lsn(&self, row: u32) -> Lsn {
        self.table.base.plus(u64::from(self.delta(row) & !BY_INGEST))
    }

    #[inline]
    fn address(&self, row: u32) -> u64 {
        self.at + self.layout.rows + u64::from(row) * u64::from(self.words) * 8
    }

    #[inline]
    fn time(&self, row: u32) -> Ts {
        if self.delta(row) & BY_INGEST != 0 {
            return self.table.arrival(self.lsn(row)).map_or(Ts::NULL, |a| a.ingest_ts);
        }
        Ts(self.table.load64(self.address(row) + self.index_word * 8).unwrap_or(u64::MAX))
    }

    fn row(&self, row: u32) -> Option<Row<'t>> {
        Some(Row { lsn: self.lsn(row), index_time: self.time(row), record: self.table.record_at(self.address(row))? })
    }

    fn field(&self, offset: u64) -> u64 {
        self.table.load64(self.at + offset).unwrap_or(0)
    }

    fn min(&self) -> Ts {
        Ts(self.field(32))
    }

    fn max(&self) -> Ts {
        Ts(self.field(40))
    }

    fn prefix_max(&self) -> Ts {
        Ts(self.field(48))
    }

    fn jump_min(&self) -> Ts {
        Ts(self.field(56))
    }

    fn prev(&self) -> u64 {
        (self.field(0) & 0xffff_ffff) * 64
    }

    fn jump(&self) -> u64 {
        (self.field(0) >> 32) * 64
    }

    fn is_sorted(&self) -> bool {
        self.field(16) >> 32 != 0
    }

    fn zones(&self) -> u32 {
        if self.layout.capacity > ZONE_ROWS { self.len.div_ceil(ZONE_ROWS) } else { 0 }
    }

    fn zone(&self, zone: u32) -> (Ts, Ts) {
        let at = self.layout.zones + u64::from(zone) * 16;
        (Ts(self.field(at)), Ts(self.field(at + 8)))
    }

    /// Number of rows, in a sorted chunk, for which `before` holds.
    fn sorted_until(&self, before: impl Fn(Ts) -> bool) -> u32 {
        let zones = self.zones();
        let (from, to) = if zones > 1 {
            // The boundary lies in the last zone whose first row is before it. This reads the rows, not the
            // zones' bounds: the bounds may already include a row above the watermark.
            let first = |zone: u64| self.time(zone as u32 * ZONE_ROWS);
            let zone = (partition_point(u64::from(zones), |z| before(first(z))) as u32).saturating_sub(1);
            (zone * ZONE_ROWS, ((zone + 1) * ZONE_ROWS).min(self.len))
        } else {
            (0, self.len)
        };
        from + partition_point(u64::from(to - from), |row| before(self.time(from + row as u32))) as u32
    }

    /// (index time, LSN, address) of the chunk's greatest row not after `time`.
    fn last_until(&self, time: Ts) -> Option<(Ts, Lsn, u64)> {
        let candidate = |row: u32| (self.time(row), self.lsn(row), self.address(row));
        if self.is_sorted() {
            return self.sorted_until(|t| t <= time).checked_sub(1).map(candidate);
        }
        let mut best = None;
        self.each_row(TimeRange { from: Ts(0), to: time }, |row| best = best.max(Some(candidate(row))));
        best
    }

    /// Calls `visit` for each row in `range`, in LSN order, skipping zones without such rows.
    fn each_row(&self, range: TimeRange, mut visit: impl FnMut(u32)) {
        let mut row = 0;
        while row < self.len {
            let end = (row + ZONE_ROWS).min(self.len);
            let skip = self.zones() > 0 && {
                let (min, max) = self.zone(row / ZONE_ROWS);
                max < range.from || min > range.to
            };
            if !skip {
                (row..end).filter(|&r| range.contains(self.time(r))).for_each(&mut visit);
            }
            row = end;
        }
    }
}

impl<'t> Rows<'t> {
    fn start(&mut self) {
        if self.in_place {
            if let Some(first) = self.chunks.first() {
                let from = self.range.from;
                self.row = if first.min() >= from { 0 } else { first.sorted_until(|t| t < from) };
            }
            return;
        }
        for chunk in &self.chunks {
            let sorted = &mut self.sorted;
            chunk.each_row(self.range, |row| sorted.push((chunk.time(row), chunk.lsn(row), chunk.address(row))));
        }
        self.sorted.sort_unstable();
    }

    /// Number of remaining rows whose index time is not after `time`.
    pub fn count_until(&self, time: Ts) -> u64 {
        if !self.in_place {
            let rest = self.sorted.get(self.chunk..).unwrap_or(&[]);
            return rest.partition_point(|(t, ..)| *t <= time) as u64;
        }
        let (mut count, mut row) = (0, self.row);
        for chunk in self.chunks.get(self.chunk..).unwrap_or(&[]) {
            let until = if chunk.max() <= time { chunk.len } else { chunk.sorted_until(|t| t <= time) };
            count += u64::from(until.saturating_sub(row));
            if until < chunk.len {
                break;
            }
            row = 0;
        }
        count
    }

    fn next_in_place(&mut self) -> Option<Row<'t>> {
        loop {
            let chunk = self.chunks.get(self.chunk)?;
            if self.row < chunk.len {
                let row = chunk.row(self.row)?;
                self.row += 1;
                return if row.index_time > self.range.to { None } else { Some(row) };
            }
            self.chunk += 1;
            self.row = 0;
        }
    }
}

impl<'t> Iterator for Rows<'t> {
    type Item = Row<'t>;

    fn next(&mut self) -> Option<Row<'t>> {
        if self.in_place {
            return self.next_in_place();
        }
        let &(index_time, lsn, address) = self.sorted.get(self.chunk)?;
        self.chunk += 1;
        let table = self.chunks.first()?.table;
        Some(Row { lsn, index_time, record: table.record_at(address)? })
    }
}
