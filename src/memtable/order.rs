//! Owns: the memory order in which one thread writes the words of a chunk and others read them.
//!
//! What must hold: a reader that has loaded `applied` finds exactly the rows up to it, on any architecture. A reader
//! that sees a length also sees the LSN deltas of all rows it counts, so it can distinguish the rows above the
//! watermark.

use std::sync::atomic::Ordering;

use super::format::{BY_INGEST, CHUNK_DELTAS, CHUNK_LENGTH};
use crate::shm::words::Words;

/// Stores the LSN delta of row `row` of the chunk at `chunk` and counts the row. The row's words are already written.
#[inline]
pub(super) fn append_row(words: &impl Words, chunk: u64, row: u32, delta: u32) {
    // SYNC: pairs with the load in `delta`.
    words.store32(chunk + CHUNK_DELTAS + u64::from(row) * 4, delta, Ordering::Release);
    // SYNC: pairs with the load in `rows_until`: the delta is ordered before the length that counts it. The row itself
    // is ordered before `applied` (`Control::set_applied`).
    words.store32(chunk + CHUNK_LENGTH, row + 1, Ordering::Release);
}

/// The LSN delta of row `row` of the chunk at `chunk`, including its top bit.
#[inline]
fn delta(words: &impl Words, chunk: u64, row: u32) -> u32 {
    // SYNC: pairs with the first store in `append_row`.
    words.load32(chunk + CHUNK_DELTAS + u64::from(row) * 4, Ordering::Acquire)
}

/// Number of rows in the chunk at `chunk`, of capacity `capacity`, whose LSN delta is at most `limit`; 0 for `None`.
/// The caller has checked that the deltas lie within the table.
#[inline]
pub(super) fn rows_until(words: &impl Words, chunk: u64, capacity: u32, limit: Option<u64>) -> u32 {
    let Some(limit) = limit else { return 0 };
    // SYNC: pairs with the second store in `append_row`: the deltas of all counted rows are visible.
    let mut len = words.load32(chunk + CHUNK_LENGTH, Ordering::Acquire).min(capacity);
    let visible = |row: u32| u64::from(delta(words, chunk, row) & !BY_INGEST) <= limit;
    // Usually all rows are visible, or all but a few.
    for _ in 0..4 {
        match len.checked_sub(1) {
            Some(last) if !visible(last) => len = last,
            _ => return len,
        }
    }
    if len > 0 && !visible(len - 1) {
        len = partition_point(u64::from(len), |row| visible(row as u32)) as u32;
    }
    len
}

/// The first index in `0..count` for which `before` is false; `before` is true for every index below it.
#[inline]
pub(super) fn partition_point(count: u64, before: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::thread;

    use super::*;
    use crate::shm::words::model::Modelled;

    const ROWS: u32 = 4;
    /// Offset of the first record in the model.
    const RECORDS: u64 = 1 << 20;

    /// One thread fills a chunk, two rows a frame, and advances `applied`; the other reads the chunk up to it.
    fn fill_and_read(append: fn(&Modelled, u64, u32, u32)) {
        loom::model(move || {
            let deltas = (0..u64::from(ROWS)).map(|row| CHUNK_DELTAS + row * 4);
            let records: Vec<u64> = (0..u64::from(ROWS)).map(|row| RECORDS + row * 8).collect();
            let chunk = Arc::new(Modelled::new(&deltas.chain([CHUNK_LENGTH]).collect::<Vec<_>>(), &records));
            let applied = Arc::new(AtomicU64::new(0));
            let (theirs, moved) = (chunk.clone(), applied.clone());
            let writer = thread::spawn(move || {
                for row in 0..ROWS {
                    theirs.store64(RECORDS + u64::from(row) * 8, 100 + u64::from(row), Ordering::Relaxed);
                    append(&theirs, 0, row, row);
                    if row % 2 == 1 {
                        moved.store(u64::from(row) + 1, Ordering::Release);
                    }
                }
            });
            let upto = applied.load(Ordering::Acquire);
            let rows = rows_until(&*chunk, 0, ROWS, upto.checked_sub(1));
            assert_eq!(u64::from(rows), upto, "exactly the rows up to the watermark");
            for row in 0..u64::from(rows) {
                assert_eq!(chunk.load64(RECORDS + row * 8, Ordering::Relaxed), 100 + row, "each of them whole");
            }
            writer.join().unwrap();
        });
    }

    #[test]
    fn a_reader_finds_exactly_the_rows_up_to_applied_in_every_memory_order() {
        fill_and_read(append_row);
    }

    #[test]
    #[should_panic(expected = "exactly the rows up to the watermark")]
    fn the_model_detects_a_length_that_is_not_ordered_after_its_deltas() {
        fill_and_read(|words, chunk, row, delta| {
            words.store32(chunk + CHUNK_DELTAS + u64::from(row) * 4, delta, Ordering::Relaxed);
            words.store32(chunk + CHUNK_LENGTH, row + 1, Ordering::Relaxed);
        });
    }
}
