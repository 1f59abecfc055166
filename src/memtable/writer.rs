//! Owns: writing a MemTable. One thread writes; nothing is visible before the caller advances `applied`.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::Origin;
use super::format::{
    ARENA, ARRIVAL_BLOCK_ROWS, ARRIVAL_DIR, BASE, BY_INGEST, CHUNK_MAX, CHUNK_MIN, ChunkLayout, ID, LENGTH, Layout, MAGIC,
    ROW_LEN_MAX, ROWS, RUN_BLOCK_RUNS, RUN_DIR, RUN_ENTRY_LEN, RUNS, SERIES, SERIES_CAPACITY, SERIES_DIR, SERIES_SLOT_LEN,
    STORE_ID, USED, VERSION, ZONE_ROWS, home,
};
use super::order::append_row;
use super::reader::Table;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::record::{Kind, RecordRef, Series, index_time, split};
use crate::shm::Mapping;
use crate::shm::control::KINDS_COUNTED;
use crate::time::Ts;

/// The writer's own state of a series, kept so that it need not be read back from shared memory.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    key: u64,
    chunk: u64,
    layout: Option<ChunkLayout>,
    len: u32,
    words: u32,
    size: u64,
    chunks: u32,
    min: u64,
    max: u64,
    prefix_max: u64,
    last: u64,
    sorted: bool,
}

/// A MemTable that is being written.
#[derive(Debug)]
pub struct Writer {
    map: Mapping,
    layout: Layout,
    id: u64,
    base: Lsn,
    next: Lsn,
    used: u64,
    runs: u64,
    /// Per slot of the series directory: the index of its tail in `tails`, plus one; 0 if the slot is free.
    slots: Vec<u32>,
    /// Dense: inside the sparse slots, each tail would occupy a page of its own.
    tails: Vec<Tail>,
    series: u64,
    /// Applied records by kind, since they were last taken.
    by_kind: [u32; KINDS_COUNTED],
}

/// The counter of `kind`.
#[inline]
fn counter(kind: Kind) -> usize {
    Some(usize::from(kind.0)).filter(|at| *at < KINDS_COUNTED).unwrap_or(0)
}

impl Writer {
    /// Creates table `id` of `len` bytes in the file `path`. [`Writer::begin`] sets its first LSN.
    ///
    /// # Errors
    /// [`crate::error::Error::NoSharedMemory`] if shared memory is short; [`crate::error::Error::Io`].
    pub fn create(path: &Path, store_id: u128, id: u64, len: u64) -> Result<Writer> {
        Ok(Writer::new(Mapping::create(path, len)?, store_id, id))
    }

    /// Like [`Writer::create`], in the store's directory; see [`Mapping::create_spilled`].
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub fn create_spilled(path: &Path, store_id: u128, id: u64, len: u64) -> Result<Writer> {
        Ok(Writer::new(Mapping::create_spilled(path, len)?, store_id, id))
    }

    /// Like [`Writer::create`], allocated as it fills; see [`Mapping::create_sparse`].
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub fn create_sparse(path: &Path, store_id: u128, id: u64, len: u64) -> Result<Writer> {
        Ok(Writer::new(Mapping::create_sparse(path, len)?, store_id, id))
    }

    /// Like [`Writer::create`], in this process's own memory; see [`Mapping::private`].
    ///
    /// # Errors
    /// As [`Mapping::private`].
    pub fn private(store_id: u128, id: u64, len: u64) -> Result<Writer> {
        Ok(Writer::new(Mapping::private(len)?, store_id, id))
    }

    /// The table, for reading in this process; nothing is written to it from here on.
    pub fn finish(self) -> Table {
        Table::finished(self.map, self.id, self.base)
    }

    fn new(map: Mapping, store_id: u128, id: u64) -> Writer {
        let len = map.len();
        let layout = Layout::new(len);
        let put = |at: u64, value: u64| map.u64(at).store(value, Ordering::Relaxed);
        put(8, VERSION);
        put(STORE_ID, store_id as u64);
        put(STORE_ID + 8, (store_id >> 64) as u64);
        put(ID, id);
        put(LENGTH, len);
        put(SERIES_CAPACITY, layout.series_capacity);
        put(ARRIVAL_BLOCK_ROWS, layout.arrival_block_rows);
        put(RUN_BLOCK_RUNS, layout.run_block_runs);
        put(ARRIVAL_DIR, layout.arrival_dir);
        put(RUN_DIR, layout.run_dir);
        put(SERIES_DIR, layout.series_dir);
        put(ARENA, layout.arena);
        let slots = vec![0; layout.series_capacity as usize];
        let (used, base) = (layout.arena, Lsn(1));
        Writer {
            map,
            layout,
            id,
            base,
            next: base,
            used,
            runs: 0,
            slots,
            tails: Vec::new(),
            series: 0,
            by_kind: [0; KINDS_COUNTED],
        }
    }

    /// Sets the LSN of the first record. Called once, before a version names the table to readers.
    pub fn begin(&mut self, base: Lsn) {
        assert!(self.next == self.base, "begin is called once per table");
        self.base = base;
        self.next = base;
        self.map.u64(BASE).store(base.0, Ordering::Relaxed);
        // SYNC: pairs with the load in `Table::open`.
        self.map.u64(0).store(MAGIC, Ordering::Release);
    }

    /// The table's number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// LSN of the first record.
    pub fn base(&self) -> Lsn {
        self.base
    }

    /// LSN of the next record.
    pub fn next(&self) -> Lsn {
        self.next
    }

    /// Bytes used.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Size of the table in bytes.
    pub fn len(&self) -> u64 {
        self.layout.len
    }

    /// Whether the table has no records.
    pub fn is_empty(&self) -> bool {
        self.next == self.base
    }

    /// Whether frames of `records` records in total certainly fit, for any kinds and series: even if each record begins
    /// a run and a series or chunk. `records` is at most [`super::format::FRAME_ROWS_MAX`].
    pub fn has_room(&self, records: u64) -> bool {
        let need = self.layout.need(self.next.0 - self.base.0, self.runs, records);
        self.used + need <= self.layout.len && self.series + records < self.layout.series_max()
    }

    /// Free rows in the newest chunk of the first series, and the chunk's size.
    #[doc(hidden)]
    pub fn first_tail(&self) -> (u32, u64) {
        let tail = self.tails.first().copied().unwrap_or_default();
        (tail.layout.map_or(0, |l| l.capacity) - tail.len, tail.size)
    }

    fn allocate(&mut self, len: u64) -> Option<u64> {
        let at = self.used;
        let end = at + len.next_multiple_of(64);
        (end <= self.layout.len).then(|| {
            self.used = end;
            self.map.u64(USED).store(end, Ordering::Relaxed);
            at
        })
    }

    /// Offset of entry `index` in blocks of `per_block` entries of `entry` bytes, listed in `directory`.
    fn entry(&mut self, directory: u64, index: u64, per_block: u64, entry: u64) -> Option<u64> {
        let slot = directory + index / per_block * 4;
        let mut block = u64::from(self.map.u32(slot).load(Ordering::Relaxed)) * 64;
        if block == 0 {
            block = self.allocate(per_block * entry)?;
            self.map.u32(slot).store((block / 64) as u32, Ordering::Relaxed);
        }
        Some(block + index % per_block * entry)
    }

    /// Reserves room for the next run. `false`: the table is full.
    #[must_use]
    pub fn reserve_run(&mut self) -> bool {
        self.entry(self.layout.run_dir, self.runs, self.layout.run_block_runs, RUN_ENTRY_LEN).is_some()
    }

    /// Records that the last `count` records arrived as `origin`. [`Writer::reserve_run`] has reserved the room.
    pub fn push_run(&mut self, origin: Origin, count: u32, ingest_ts: Ts) {
        if count == 0 {
            return;
        }
        let at = self.entry(self.layout.run_dir, self.runs, self.layout.run_block_runs, RUN_ENTRY_LEN);
        let Some(at) = at else { panic!("the room for a run was not reserved") };
        let words = [
            self.next.0 - u64::from(count),
            u64::from(count) | u64::from(origin.publisher.0) << 32,
            u64::from(origin.epoch.0),
            origin.first_pub_seq.0,
            ingest_ts.0,
        ];
        self.map.write_words(at, &words);
        self.runs += 1;
        // SYNC: pairs with the load in `Table::runs`. The count may be ahead of `applied`.
        self.map.u64(RUNS).store(self.runs, Ordering::Release);
    }

    /// Appends the `records` of one run, which arrived as `origin`.
    ///
    /// # Panics
    /// If [`Writer::has_room`] does not hold for the frame that they belong to, or they are not whole records.
    pub fn apply(&mut self, origin: Origin, count: u32, records: &[u64], ingest_ts: Ts) {
        assert!(self.reserve_run(), "a table with room has room for a run");
        for record in split(records) {
            let Ok(record) = record else { panic!("a checked frame holds whole records") };
            assert!(self.push(record, ingest_ts), "a table with room has room for a record");
            if let Some(count) = self.by_kind.get_mut(counter(record.kind())) {
                *count += 1;
            }
        }
        self.push_run(origin, count, ingest_ts);
    }

    /// The records that were applied since the last call, by kind, as [`crate::shm::control::Control::add_by_kind`] takes them.
    pub fn take_by_kind(&mut self) -> [u32; KINDS_COUNTED] {
        std::mem::take(&mut self.by_kind)
    }

    /// Appends the record with LSN [`Writer::next`]. `false`: the table is full and unchanged.
    #[must_use]
    pub fn push(&mut self, record: RecordRef<'_>, ingest_ts: Ts) -> bool {
        let lsn = self.next;
        let index = lsn.0 - self.base.0;
        let words = record.words().len() as u32;
        let Some(arrival) = self.entry(self.layout.arrival_dir, index, self.layout.arrival_block_rows, 4) else { return false };
        let series = Series { instrument: record.instrument(), kind: record.kind() };
        let Some((slot, at)) = self.find(series.key()) else { return false };
        let (time, by_ingest) = index_time(record.own_index_time(), ingest_ts);
        let delta = index as u32 | if by_ingest { BY_INGEST } else { 0 };
        if !self.tail_has_room(at) && !self.add_chunk(slot, at, series.key(), words, index as u32) {
            return false;
        }
        let Some(address) = self.put_row(at, record.words(), delta, time.0) else { return false };
        self.map.u32(arrival).store((address / 8) as u32 | delta & BY_INGEST, Ordering::Relaxed);
        self.next = lsn.next();
        self.map.u64(ROWS).store(index + 1, Ordering::Relaxed);
        true
    }

    /// The slot of `key` in the series directory and the index of its tail, which for a new series is the next one;
    /// `None` if the series is new and no more fit.
    fn find(&self, key: u64) -> Option<(u64, usize)> {
        let capacity = self.layout.series_capacity;
        let mut slot = home(key, capacity);
        loop {
            match *self.slots.get(slot as usize)? {
                0 if self.series >= self.layout.series_max() => return None,
                0 => return Some((slot, self.tails.len())),
                number if self.tails.get(number as usize - 1)?.key == key => return Some((slot, number as usize - 1)),
                _ => slot = (slot + 1) & (capacity - 1),
            }
        }
    }

    fn tail_has_room(&self, at: usize) -> bool {
        self.tails.get(at).is_some_and(|t| t.layout.is_some_and(|l| t.len < l.capacity))
    }

    fn chunk_u32(&self, chunk: u64, offset: u64) -> u32 {
        self.map.u32(chunk + offset).load(Ordering::Relaxed)
    }

    /// The jump link of a chunk that follows `prev`, by the skew-binary rule, and the least index time of the chunks it
    /// skips.
    fn jump_after(&self, prev: u64) -> (u64, u64) {
        let jump_of = |c: u64| u64::from(self.chunk_u32(c, 4)) * 64;
        let ordinal = |c: u64| if c == 0 { 0 } else { self.chunk_u32(c, 28) };
        let min = |c: u64| self.map.u64(c + 32).load(Ordering::Relaxed);
        let jump_min = |c: u64| self.map.u64(c + 56).load(Ordering::Relaxed);
        if prev == 0 {
            return (0, u64::MAX);
        }
        let first = jump_of(prev);
        let second = if first == 0 { 0 } else { jump_of(first) };
        if first != 0 && ordinal(prev) - ordinal(first) == ordinal(first) - ordinal(second) {
            (second, min(prev).min(jump_min(prev)).min(min(first)).min(jump_min(first)))
        } else {
            (prev, u64::MAX)
        }
    }

    /// Links a new tail chunk to the series in `slot`, whose tail has index `number`. `false`: no memory.
    fn add_chunk(&mut self, slot: u64, number: usize, key: u64, words: u32, first_delta: u32) -> bool {
        let tail = self.tails.get(number).copied().unwrap_or_default();
        let grown = if tail.chunk == 0 { CHUNK_MIN } else { (tail.size * 2).min(CHUNK_MAX) };
        // A chunk grows only where the largest frame still fits after it. So `has_room` holds while chunks are small,
        // and a frame during which the last chunk grew has room for its remaining records.
        let fits = self.used + grown.max(ROW_LEN_MAX) + self.layout.frame_max() <= self.layout.len;
        let size = if fits { grown } else { CHUNK_MIN };
        let layout = ChunkLayout::within(size, words);
        let Some(chunk) = self.allocate(layout.len) else { return false };
        let (jump, jump_min) = self.jump_after(tail.chunk);
        let prefix_max = tail.prefix_max.max(tail.max);
        let pair = |low: u64, high: u32| low | u64::from(high) << 32;
        let head = [
            pair(tail.chunk / 64, (jump / 64) as u32),
            pair(u64::from(first_delta), layout.capacity),
            pair(0, 1),
            pair(u64::from(words), tail.chunks + 1),
            u64::MAX,
            0,
            prefix_max,
            jump_min,
        ];
        self.map.write_words(chunk, &head);
        let at = self.layout.series_dir + slot * SERIES_SLOT_LEN;
        self.map.u32(at + 8).store((chunk / 64) as u32, Ordering::Release);
        self.map.u32(at + 12).store(tail.chunks + 1, Ordering::Relaxed);
        if tail.key == 0 {
            self.series += 1;
            self.map.u64(SERIES).store(self.series, Ordering::Relaxed);
            // SYNC: the key is stored last, so a reader that sees the key sees the chunk; pairs with `Table::tail`.
            self.map.u64(at).store(key, Ordering::Release);
        }
        let (chunks, last) = (tail.chunks + 1, tail.last);
        let layout = Some(layout);
        let fresh =
            Tail { key, chunk, layout, len: 0, words, size, chunks, min: u64::MAX, max: 0, prefix_max, last, sorted: true };
        match (self.tails.get_mut(number), self.slots.get_mut(slot as usize)) {
            (Some(tail), _) => *tail = fresh,
            (None, Some(slot)) => {
                self.tails.push(fresh);
                *slot = self.tails.len() as u32;
            }
            (None, None) => {}
        }
        true
    }

    /// Appends a row to the tail chunk of tail `at`; returns the row's offset.
    fn put_row(&mut self, at: usize, words: &[u64], delta: u32, time: u64) -> Option<u64> {
        let tail = self.tails.get_mut(at)?;
        let layout = tail.layout?;
        let (chunk, row) = (tail.chunk, tail.len);
        let address = chunk + layout.rows + u64::from(row) * u64::from(tail.words) * 8;
        self.map.write_words(address, words);
        if row > 0 && time < tail.last && tail.sorted {
            tail.sorted = false;
            self.map.u32(chunk + 20).store(0, Ordering::Relaxed);
        }
        if time < tail.min {
            tail.min = time;
            self.map.u64(chunk + 32).store(time, Ordering::Relaxed);
        }
        if time > tail.max || row == 0 {
            tail.max = time;
            self.map.u64(chunk + 40).store(time, Ordering::Relaxed);
        }
        if layout.capacity > ZONE_ROWS {
            let zone = chunk + layout.zones + u64::from(row / ZONE_ROWS) * 16;
            let fresh = row % ZONE_ROWS == 0;
            if fresh || time < self.map.u64(zone).load(Ordering::Relaxed) {
                self.map.u64(zone).store(time, Ordering::Relaxed);
            }
            if fresh || time > self.map.u64(zone + 8).load(Ordering::Relaxed) {
                self.map.u64(zone + 8).store(time, Ordering::Relaxed);
            }
        }
        tail.last = time;
        tail.len = row + 1;
        append_row(&self.map, chunk, row, delta);
        Some(address)
    }
}
