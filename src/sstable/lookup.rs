//! Owns: both forms of the LSN index: from an LSN to the rank of its row in LSN order.

use super::format::LINE_LSNS;

/// The checked LSN index of a file.
#[derive(Clone, Copy, Debug)]
pub(super) enum LsnIndex<'a> {
    /// Lines of a rank and 448 bits, starting at the file's least LSN.
    Dense {
        /// Eight words per line.
        words: &'a [u64],
        /// The least LSN.
        first: u64,
    },
    /// The LSNs in ascending order.
    Sparse(&'a [u64]),
}

impl LsnIndex<'_> {
    /// Number of rows with an LSN below `lsn`, and whether a row has `lsn` itself.
    #[inline]
    pub(super) fn rank(&self, lsn: u64) -> (u64, bool) {
        match self {
            LsnIndex::Sparse(lsns) => {
                let rank = lsns.partition_point(|&l| l < lsn);
                (rank as u64, lsns.get(rank) == Some(&lsn))
            }
            LsnIndex::Dense { words, first } => {
                let Some(offset) = lsn.checked_sub(*first) else { return (0, false) };
                let (line, bit) = (offset / LINE_LSNS, (offset % LINE_LSNS) as usize);
                let (at, end) = (line as usize * 8, words.len() / 8);
                if line as usize >= end {
                    return (total(words), false);
                }
                let Some([rank, bits @ ..]) = words.get(at..at + 8) else { return (0, false) };
                let (word, shift) = (bit / 64, bit % 64);
                let before: u64 = bits.iter().take(word).map(|w| u64::from(w.count_ones())).sum();
                let current = bits.get(word).copied().unwrap_or(0);
                let below = u64::from((current & ((1 << shift) - 1)).count_ones());
                (rank + before + below, current >> shift & 1 == 1)
            }
        }
    }

    /// Whether ranks and order are valid for `rows` rows.
    pub(super) fn is_sound(&self, rows: u64) -> bool {
        match self {
            LsnIndex::Sparse(lsns) => lsns.len() as u64 == rows && lsns.is_sorted_by(|a, b| a < b),
            LsnIndex::Dense { words, .. } => {
                let mut rank = 0;
                let ranks = words.chunks_exact(8).all(|line| {
                    let [first, bits @ ..] = line else { return false };
                    let here = rank;
                    rank += bits.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
                    *first == here
                });
                ranks && rank == rows && words.len().is_multiple_of(8)
            }
        }
    }
}

fn total(words: &[u64]) -> u64 {
    let Some([rank, bits @ ..]) = words.rchunks_exact(8).next() else { return 0 };
    rank + bits.iter().map(|w| u64::from(w.count_ones())).sum::<u64>()
}
