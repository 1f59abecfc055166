//! Owns: the byte layout of a MemTable in shared memory, with every offset.
//!
//! ```text
//! 0    magic u64 · version u64 · store id u128 · id u64 · base LSN u64 · length u64
//! 64   series capacity u64 · rows per arrival block u64 · runs per run block u64
//! 88   arrival directory · 96 run directory · 104 series directory · 112 arena: offsets, u64
//! 128  runs u64 · rows u64 · series u64 · used u64      written as it fills
//! 256  arrival directory: u32 a block (offset / 64)
//!      run directory:     u32 a block (offset / 64)
//!      series directory:  16 B a slot, open addressing
//!      arena:             blocks and chunks, bump-allocated, 64-byte aligned
//!
//! series slot   key u64 (kind << 32 | instrument; stored last) · tail chunk u32 · chunks u32
//! arrival block u32 a row: offset / 8 of its record, by LSN - base; its top bit as in an LSN delta
//! run block     40 B a run: first LSN u64 · count u32 · publisher u16 · 0 u16 · epoch u32 · 0 u32 · pub_seq u64 · ingest_ts u64
//! chunk         header 64 B · LSN deltas u32 a row · zones 16 B a 64 rows (min, max index time) · rows
//! chunk header  prev u32 · jump u32 (offset / 64) · first delta u32 · capacity u32 · length u32 · sorted u32
//!               words a row u32 · ordinal u32 · min u64 · max u64 · prefix max u64 · jump min u64
//! ```
//!
//! An LSN delta is LSN - base; its top bit is set if the row's index time is its ingest time. `prefix max` is the
//! greatest index time of all earlier chunks of the series. `jump` links to an earlier chunk (Myers 1983: O(log n) to
//! any chunk), and `jump min` is the least index time of the chunks it skips.
//!
//! What must hold: there is one writer. Everything a reader may read for rows up to `applied` is written before
//! `applied` is stored. A chunk's first delta, capacity, prev, jump, prefix max and jump min never change once the
//! chunk is linked.

use crate::record::WORDS_MAX;

/// The first eight bytes of a table.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TAPEMEM\0");
/// Format version.
pub const VERSION: u64 = 1;

/// Bytes of the smallest table. The largest frame takes a third of it: `Layout::frame_max`.
pub const LEN_MIN: u64 = 16 << 20;
/// Bytes of the largest table: a row address is 31 bits, in units of 8 bytes.
pub const LEN_MAX: u64 = 16 << 30;
/// Maximum rows of a frame.
pub const FRAME_ROWS_MAX: u64 = 4096;

pub(super) const STORE_ID: u64 = 16;
pub(super) const ID: u64 = 32;
pub(super) const BASE: u64 = 40;
pub(super) const LENGTH: u64 = 48;
pub(super) const SERIES_CAPACITY: u64 = 64;
pub(super) const ARRIVAL_BLOCK_ROWS: u64 = 72;
pub(super) const RUN_BLOCK_RUNS: u64 = 80;
pub(super) const ARRIVAL_DIR: u64 = 88;
pub(super) const RUN_DIR: u64 = 96;
pub(super) const SERIES_DIR: u64 = 104;
pub(super) const ARENA: u64 = 112;
pub(super) const RUNS: u64 = 128;
pub(super) const ROWS: u64 = 136;
pub(super) const SERIES: u64 = 144;
pub(super) const USED: u64 = 152;
pub(super) const HEAD_LEN: u64 = 256;

pub(super) const SERIES_SLOT_LEN: u64 = 16;
pub(super) const RUN_ENTRY_WORDS: usize = 5;
pub(super) const RUN_ENTRY_LEN: u64 = RUN_ENTRY_WORDS as u64 * 8;
pub(super) const CHUNK_HEAD_LEN: u64 = 64;
pub(super) const CHUNK_LENGTH: u64 = 16;
pub(super) const CHUNK_DELTAS: u64 = CHUNK_HEAD_LEN;
pub(super) const CHUNK_MIN: u64 = 1 << 10;
/// Bytes of the largest chunk of a series.
pub const CHUNK_MAX: u64 = 256 << 10;
/// Maximum bytes of one row while chunks do not grow: a chunk of its own.
pub(super) const ROW_LEN_MAX: u64 = ChunkLayout::of(1, WORDS_MAX as u32).len;
pub(super) const ZONE_ROWS: u32 = 64;
/// Flag in an LSN delta or an arrival entry: the index time is the ingest time.
pub(super) const BY_INGEST: u32 = 1 << 31;

// A chunk laid out within `CHUNK_MIN` fits in it, or holds one row.
const _: () = assert!(ROW_LEN_MAX >= CHUNK_MIN);

/// First slot to probe for `key` among `capacity` slots (a power of two).
pub(super) fn home(key: u64, capacity: u64) -> u64 {
    // Fibonacci hashing (Knuth, TAOCP 6.4): the high bits of a product with 2^64 / golden ratio.
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - capacity.trailing_zeros())
}

/// Offsets of the parts of a table of `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) len: u64,
    pub(super) series_capacity: u64,
    pub(super) arrival_block_rows: u64,
    pub(super) run_block_runs: u64,
    pub(super) arrival_dir: u64,
    pub(super) run_dir: u64,
    pub(super) series_dir: u64,
    pub(super) arena: u64,
}

impl Layout {
    pub(super) fn new(len: u64) -> Layout {
        assert!((LEN_MIN..=LEN_MAX).contains(&len) && len.is_multiple_of(4096), "{len}");
        let scale = (len / 4096).next_power_of_two();
        let arrival_block_rows = scale.clamp(1024, 65_536);
        let run_block_runs = arrival_block_rows / 8;
        // At most as many rows as fit in `len` (a row is at least 2 words), and at most as many runs (40 B each).
        let arrival_blocks = len / 16 / arrival_block_rows + 1;
        let run_blocks = len / 40 / run_block_runs + 1;
        let series_capacity = (len / 2048).next_power_of_two().max(16_384);
        let arrival_dir = HEAD_LEN;
        let run_dir = (arrival_dir + arrival_blocks * 4).next_multiple_of(64);
        let series_dir = (run_dir + run_blocks * 4).next_multiple_of(64);
        let arena = (series_dir + series_capacity * SERIES_SLOT_LEN).next_multiple_of(64);
        let this = Layout { len, series_capacity, arrival_block_rows, run_block_runs, arrival_dir, run_dir, series_dir, arena };
        assert!(arena < len / 4 && arena + this.frame_max() <= len && FRAME_ROWS_MAX < this.series_max());
        this
    }

    /// Maximum number of series: the directory stays sparse.
    pub(super) fn series_max(&self) -> u64 {
        self.series_capacity / 8 * 7
    }

    /// Maximum bytes of `rows` more rows after `filled` rows and `runs` runs, while chunks do not grow: each row begins
    /// a chunk and a run. Two batches in sequence need at most what they need together.
    pub(super) fn need(&self, filled: u64, runs: u64, rows: u64) -> u64 {
        let blocks = |filled: u64, per: u64| (filled + rows).div_ceil(per) - filled.div_ceil(per);
        let arrivals = blocks(filled, self.arrival_block_rows) * self.arrival_block_rows * 4;
        rows * ROW_LEN_MAX + arrivals + blocks(runs, self.run_block_runs) * self.run_block_runs * RUN_ENTRY_LEN
    }

    /// Maximum bytes of a frame, at any start, while chunks do not grow.
    pub(super) fn frame_max(&self) -> u64 {
        let blocks = |per: u64| FRAME_ROWS_MAX.div_ceil(per) + 1;
        let runs = blocks(self.run_block_runs) * self.run_block_runs * RUN_ENTRY_LEN;
        FRAME_ROWS_MAX * ROW_LEN_MAX + blocks(self.arrival_block_rows) * self.arrival_block_rows * 4 + runs
    }
}

/// Offsets of the parts of a chunk from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkLayout {
    pub(super) capacity: u32,
    pub(super) zones: u64,
    pub(super) rows: u64,
    pub(super) len: u64,
}

impl ChunkLayout {
    /// The layout of a chunk for `capacity` rows of `words` words.
    pub(super) const fn of(capacity: u32, words: u32) -> ChunkLayout {
        let zones = (CHUNK_HEAD_LEN + capacity as u64 * 4).next_multiple_of(8);
        let rows = zones + if capacity > ZONE_ROWS { capacity.div_ceil(ZONE_ROWS) as u64 * 16 } else { 0 };
        let len = (rows + capacity as u64 * words as u64 * 8).next_multiple_of(64);
        ChunkLayout { capacity, zones, rows, len }
    }

    /// The largest chunk of at most `size` bytes, or a chunk of one row if none fits.
    pub(super) fn within(size: u64, words: u32) -> ChunkLayout {
        let row = 4 * 64 + 16 + 64 * 8 * u64::from(words);
        // 64 rows need `row` bytes. Rounding may need more: the capacity is then lowered row by row.
        let mut capacity = (((size - CHUNK_HEAD_LEN) * 64 / row) as u32).max(1) + 1;
        while capacity > 1 && ChunkLayout::of(capacity, words).len > size {
            capacity -= 1;
        }
        ChunkLayout::of(capacity, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::WORDS_MIN;

    #[test]
    fn an_empty_table_of_any_length_holds_the_largest_frame() {
        for len in (LEN_MIN..=64 << 20).step_by(1 << 20).chain((26..=34).map(|bits| 1 << bits)) {
            let layout = Layout::new(len);
            for (filled, runs) in [(0, 0), (1, 1), (layout.arrival_block_rows - 1, layout.run_block_runs - 1)] {
                assert!(layout.need(filled, runs, FRAME_ROWS_MAX) <= layout.frame_max());
            }
        }
    }

    #[test]
    fn chunks_fill_their_size_and_hold_at_least_a_row() {
        for words in WORDS_MIN as u32..=WORDS_MAX as u32 {
            for shift in 10..=18 {
                let size = 1u64 << shift;
                let chunk = ChunkLayout::within(size, words);
                assert!(chunk.capacity == 1 || chunk.len <= size);
                assert!(chunk.capacity == 1 || ChunkLayout::of(chunk.capacity + 1, words).len > size, "{words} {size}");
                assert!(chunk.len <= size.max(ROW_LEN_MAX));
            }
        }
    }
}
