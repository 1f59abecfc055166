//! Owns: in which order the words of a chunk are written and looked at, where one thread fills it while others read.
//!
//! What must hold: whoever has loaded `applied` finds exactly the rows up to it, on any architecture: a length is seen with
//! the LSN deltas of all rows that it counts, so that a row above the watermark is known as such.

use std::sync::atomic::Ordering;

use super::format::{BY_INGEST, CHUNK_DELTAS, CHUNK_LENGTH};
use crate::shm::words::Words;

/// Counts row `row` of the chunk at `chunk`, whose words are written, with its LSN delta.
#[inline]
pub(super) fn append_row(words: &impl Words, chunk: u64, row: u32, delta: u32) {
    // SYNC: pairs with the load in `delta`.
    words.store32(chunk + CHUNK_DELTAS + u64::from(row) * 4, delta, Ordering::Release);
    // SYNC: pairs with the load in `rows_until`: the delta is ordered before the length that counts it. The row itself is
    // ordered before `applied` (`Control::set_applied`).
    words.store32(chunk + CHUNK_LENGTH, row + 1, Ordering::Release);
}

/// The LSN delta of row `row` of the chunk at `chunk`, with its top bit.
#[inline]
fn delta(words: &impl Words, chunk: u64, row: u32) -> u32 {
    // SYNC: pairs with the first store in `append_row`.
    words.load32(chunk + CHUNK_DELTAS + u64::from(row) * 4, Ordering::Acquire)
}

/// How many rows of the chunk at `chunk`, which holds up to `capacity`, have an LSN delta of at most `limit`; none if that is
/// `None`. The caller knows that the deltas are within the table.
#[inline]
pub(super) fn rows_until(words: &impl Words, chunk: u64, capacity: u32, limit: Option<u64>) -> u32 {
    let Some(limit) = limit else { return 0 };
    // SYNC: pairs with the second store in `append_row`: the deltas of the rows that it counts are seen.
    let mut cut = words.load32(chunk + CHUNK_LENGTH, Ordering::Acquire).min(capacity);
    let visible = |row: u32| u64::from(delta(words, chunk, row) & !BY_INGEST) <= limit;
    // Usually everything is visible, or a few rows are not.
    for _ in 0..4 {
        match cut.checked_sub(1) {
            Some(last) if !visible(last) => cut = last,
            _ => return cut,
        }
    }
    if cut > 0 && !visible(cut - 1) {
        cut = partition_point(u64::from(cut), |row| visible(row as u32)) as u32;
    }
    cut
}

/// The first of `0..count` for which `before` is false, `before` being true up to it.
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
    /// Where the model has the record of a row.
    const RECORDS: u64 = 1 << 20;

    /// One thread fills a chunk, two rows a frame, and moves `applied`; the other cuts the chunk there.
    fn fill_and_cut(append: fn(&Modelled, u64, u32, u32)) {
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
    fn a_reader_that_cuts_a_chunk_at_applied_finds_exactly_the_rows_up_to_it_in_every_order_of_memory() {
        fill_and_cut(append_row);
    }

    #[test]
    #[should_panic(expected = "exactly the rows up to the watermark")]
    fn the_model_notices_a_length_that_is_not_ordered_behind_its_deltas() {
        fill_and_cut(|words, chunk, row, delta| {
            words.store32(chunk + CHUNK_DELTAS + u64::from(row) * 4, delta, Ordering::Relaxed);
            words.store32(chunk + CHUNK_LENGTH, row + 1, Ordering::Relaxed);
        });
    }
}
