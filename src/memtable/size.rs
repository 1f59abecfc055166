//! Owns: how many records a MemTable will hold, before there is one, by the rules of its writer.
//!
//! What must hold: a test compares it with MemTables that are filled.

use super::format::{CHUNK_MAX, CHUNK_MIN, ChunkLayout, FRAME_ROWS_MAX, Layout, RUN_ENTRY_LEN};

/// Records of one kind among those that fill a MemTable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Words of a record.
    pub words: u32,
    /// Its part of all records.
    pub part: f64,
    /// Series, with the same number of records each.
    pub series: u64,
}

/// Bytes of the chunks of a series with `rows` records of `words` words.
fn series_bytes(rows: u64, words: u32) -> u64 {
    let (mut size, mut held, mut bytes) = (CHUNK_MIN, 0, 0);
    while held < rows {
        let chunk = ChunkLayout::within(size, words);
        // Once chunks do not grow any more, all are alike.
        let times = if size == CHUNK_MAX { (rows - held).div_ceil(u64::from(chunk.capacity)) } else { 1 };
        held += times * u64::from(chunk.capacity);
        bytes += times * chunk.len;
        size = (size * 2).min(CHUNK_MAX);
    }
    bytes
}

/// Bytes used in a MemTable of `len` bytes that holds `rows` records of `shares` in `runs` runs.
fn used(len: u64, shares: &[Share], rows: u64, runs: u64) -> u64 {
    let layout = Layout::new(len);
    let arrivals = rows.div_ceil(layout.arrival_block_rows) * layout.arrival_block_rows * 4;
    let runs = runs.div_ceil(layout.run_block_runs) * layout.run_block_runs * RUN_ENTRY_LEN;
    let series = shares.iter().map(|share| {
        let each = (rows as f64 * share.part / share.series.max(1) as f64).ceil() as u64;
        share.series * series_bytes(each, share.words)
    });
    layout.arena + arrivals + runs + series.sum::<u64>()
}

/// Records of `shares` that a MemTable of `len` bytes holds before it is sealed, if each run has `run` of them.
pub fn rows_max(len: u64, shares: &[Share], run: u64) -> u64 {
    let full = len.saturating_sub(Layout::new(len).need(0, 0, FRAME_ROWS_MAX));
    let fits = |rows: u64| used(len, shares, rows, rows.div_ceil(run.max(1))) <= full;
    let (mut low, mut high) = (0, len / 16);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}
