//! Owns: the ring that keeps a publisher's records until they are acknowledged.
//!
//! What must hold: a record is contiguous. Numbers are dense from `first`. A released record is never
//! sent again; every other record can be.

use std::collections::VecDeque;

use crate::lsn::PubSeq;

/// Offset that marks an entry whose words are in `fronts`, at the index in the entry's length.
const FRONT: u32 = u32::MAX;

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    words: Vec<u64>,
    entries: VecDeque<(u32, u32)>,
    fronts: Vec<Vec<u64>>,
    head: usize,
    first: PubSeq,
    sent: PubSeq,
}

/// Contiguous records, sent as one batch.
pub(super) struct Chunk<'a> {
    pub(super) first: PubSeq,
    pub(super) count: u32,
    pub(super) words: &'a [u64],
}

impl Ring {
    /// An empty ring of `bytes` bytes; the next record is number `first`.
    pub(super) fn new(bytes: usize, first: PubSeq) -> Ring {
        let words = vec![0; (bytes / 8).clamp(crate::record::WORDS_MAX * 4, FRONT as usize - 1)];
        Ring { words, entries: VecDeque::new(), fronts: Vec::new(), head: 0, first, sent: PubSeq(first.0 - 1) }
    }

    /// Number of the oldest record in the ring, or of the next one if it is empty.
    pub(super) fn first(&self) -> PubSeq {
        self.first
    }

    /// Number of the next record.
    pub(super) fn next(&self) -> PubSeq {
        PubSeq(self.first.0 + self.entries.len() as u64)
    }

    /// The last record sent.
    pub(super) fn sent(&self) -> PubSeq {
        self.sent
    }

    /// Whether it is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the oldest record is a gap record.
    pub(super) fn begins_with_gap(&self) -> bool {
        self.entries.front().is_some_and(|e| e.0 == FRONT)
    }

    /// Number of gap records above number `seq`.
    pub(super) fn gaps_above(&self, seq: PubSeq) -> u64 {
        let upto = (seq.0 + 1).saturating_sub(self.first.0) as usize;
        self.entries.iter().skip(upto).filter(|e| e.0 == FRONT).count() as u64
    }

    /// Offset for a record of `len` words; `None` if there is no room.
    fn place(&self, len: usize) -> Option<usize> {
        let Some(tail) = self.entries.iter().find(|e| e.0 != FRONT).map(|e| e.0 as usize) else {
            // Empty: restart at the beginning, so that a publisher without backlog stays in cache.
            return (len <= self.words.len()).then_some(0);
        };
        if self.head > tail {
            if self.head + len <= self.words.len() {
                return Some(self.head);
            }
            return (len < tail).then_some(0);
        }
        (self.head + len < tail).then_some(self.head)
    }

    /// Appends a record; `false` if there is no room.
    #[must_use]
    pub(super) fn push(&mut self, record: &[u64]) -> bool {
        let Some(at) = self.place(record.len()) else { return false };
        let Some(place) = self.words.get_mut(at..at + record.len()) else { return false };
        place.copy_from_slice(record);
        self.entries.push_back((at as u32, record.len() as u32));
        self.head = at + record.len();
        true
    }

    /// The next unsent records, at most `words_max` words and `count_max` records.
    pub(super) fn unsent(&self, words_max: usize, count_max: u32) -> Option<Chunk<'_>> {
        let from = (self.sent.0 + 1 - self.first.0) as usize;
        let &(at, len) = self.entries.get(from)?;
        let first = PubSeq(self.sent.0 + 1);
        if at == FRONT {
            return Some(Chunk { first, count: 1, words: self.fronts.get(len as usize)? });
        }
        let (mut end, mut count) = (at + len, 1);
        for &(next, len) in self.entries.range(from + 1..) {
            if next != end || (end + len - at) as usize > words_max || count == count_max {
                break;
            }
            end += len;
            count += 1;
        }
        Some(Chunk { first, count, words: self.words.get(at as usize..end as usize)? })
    }

    /// Marks the next `count` records as sent.
    pub(super) fn mark_sent(&mut self, count: u32) {
        self.sent.0 += u64::from(count);
        debug_assert!(self.sent < self.next());
    }

    /// Marks the records from `next` on as unsent, as far as they are in the ring.
    pub(super) fn rewind(&mut self, next: PubSeq) {
        self.sent = PubSeq(next.0.clamp(self.first.0, self.next().0) - 1);
    }

    /// Releases the records up to `upto`.
    pub(super) fn release(&mut self, upto: PubSeq) {
        while self.first <= upto && self.entries.pop_front().is_some() {
            self.first.0 += 1;
        }
        self.sent = self.sent.max(PubSeq(self.first.0 - 1));
    }

    /// Renumbers the ring: `front` becomes record 1, the other records follow, all unsent.
    pub(super) fn renumber(&mut self, front: Option<&[u64]>) {
        if let Some(words) = front {
            self.entries.push_front((FRONT, self.fronts.len() as u32));
            self.fronts.push(words.to_vec());
        }
        self.first = PubSeq(1);
        self.sent = PubSeq(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimRng;

    #[test]
    fn in_any_order_of_sends_rewinds_and_releases_the_records_sent_are_those_pushed() {
        for seed in 0..50 {
            let mut rng = SimRng::new(seed);
            let mut ring = Ring::new(0, PubSeq(1));
            let (mut put, mut refused) = (0u64, 0);
            for _ in 0..5000 {
                match rng.below(6) {
                    0..=2 => {
                        let len = 2 + rng.below(40) as usize;
                        if ring.push(&vec![put + 1; len]) {
                            put += 1;
                        } else {
                            refused += 1;
                        }
                    }
                    3 => {
                        if let Some(chunk) = ring.unsent(100, 5) {
                            assert!(chunk.words.len() <= 100 && chunk.count <= 5);
                            let mut seen = chunk.words.to_vec();
                            seen.dedup();
                            let expected: Vec<u64> = (0..u64::from(chunk.count)).map(|i| chunk.first.0 + i).collect();
                            assert_eq!(seen, expected, "seed {seed}");
                            let count = chunk.count;
                            ring.mark_sent(count);
                        }
                    }
                    4 => ring.rewind(PubSeq(ring.first().0 + rng.below(ring.next().0 - ring.first().0 + 1))),
                    _ => ring.release(PubSeq(ring.first().0 - 1 + rng.below(ring.sent().0 + 2 - ring.first().0))),
                }
                assert_eq!(ring.next(), PubSeq(put + 1));
            }
            assert!(refused > 0 && put > 500, "{refused} refused, {put} pushed");
        }
    }

    #[test]
    fn renumbering_puts_the_gap_record_first() {
        let mut ring = Ring::new(4096, PubSeq(1));
        (1..=5u64).for_each(|i| assert!(ring.push(&[i; 8])));
        ring.release(PubSeq(2));
        ring.renumber(Some(&[99; 5]));
        let chunk = ring.unsent(100, 10).unwrap();
        assert_eq!((chunk.first, chunk.count, chunk.words), (PubSeq(1), 1, &[99; 5][..]));
        ring.mark_sent(1);
        let chunk = ring.unsent(100, 10).unwrap();
        assert_eq!((chunk.first, chunk.count, chunk.words[0]), (PubSeq(2), 3, 3));
        assert!(ring.push(&[6; 8]));
        assert_eq!(ring.next(), PubSeq(6));
        // Renumbered before the first gap record was acknowledged: neither is lost.
        ring.renumber(Some(&[98; 5]));
        let mut seen = Vec::new();
        while let Some(chunk) = ring.unsent(100, 1) {
            seen.push(chunk.words[0]);
            ring.mark_sent(1);
        }
        assert_eq!(seen, [98, 99, 3, 4, 5, 6]);
    }
}
