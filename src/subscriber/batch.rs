//! Owns: a live batch in this process: the records that pass the filter, and the place in the batch.
//!
//! What must hold: the publisher may write to the shared words meanwhile, so only the copy is parsed and delivered.

use super::options::Filter;
use crate::error::{Error, Result};
use crate::lsn::{Epoch, PubSeq, PublisherId};
use crate::record::{Kind, RecordRef, schema};

/// The records of a batch that pass the filter, copied out of shared memory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) publisher: PublisherId,
    pub(super) epoch: Epoch,
    /// Number of the batch's first record.
    pub(super) first: PubSeq,
    /// Number of the next record of the batch, whether it passes or not.
    pub(super) next: PubSeq,
    /// Records of the batch from that one on.
    pub(super) left: u32,
    pub(super) words: Vec<u64>,
    /// The records that pass: how many of the batch precede each, and where its words begin.
    pub(super) passing: Vec<(u32, u32)>,
    /// The next of them.
    pub(super) at: usize,
}

impl Batch {
    /// Leaves out the next `count` records.
    pub(super) fn skip(&mut self, count: u32) {
        self.next.0 += u64::from(count);
        self.left -= count;
        let place = (self.next.0 - self.first.0) as u32;
        while self.passing.get(self.at).is_some_and(|(before, _)| *before < place) {
            self.at += 1;
        }
    }

    /// Number of records before the next one that passes: all that are left, if none does.
    pub(super) fn to_skip(&self) -> u32 {
        let place = (self.next.0 - self.first.0) as u32;
        self.passing.get(self.at).map_or(self.left, |(before, _)| before - place)
    }

    /// Copies the records of `words` that `filter` passes; returns the number of all.
    ///
    /// # Errors
    /// As [`crate::record::split`]: the words are not whole records of known kinds.
    pub(super) fn fill(&mut self, words: &[u64], filter: &Filter) -> Result<u32> {
        self.words.clear();
        self.passing.clear();
        self.at = 0;
        if filter.is_all() {
            self.words.extend_from_slice(words);
        }
        let (mut count, mut at) = (0, 0);
        while at < words.len() {
            if filter.is_all() {
                let record = RecordRef::first(self.words.get(at..).unwrap_or(&[]))?;
                self.passing.push((count, at as u32));
                at += record.words().len();
            } else {
                at += self.copy_one(words.get(at..).unwrap_or(&[]), count, filter)?;
            }
            count += 1;
        }
        Ok(count)
    }

    /// Copies the first record of `words` if it passes; returns its length. The publisher may write to `words` meanwhile, so
    /// the copy is what counts.
    fn copy_one(&mut self, words: &[u64], before: u32, filter: &Filter) -> Result<usize> {
        let head = [words.first().copied().unwrap_or(0)];
        let malformed = || Error::invalid("live batch", "its records are not whole");
        let len = schema(Kind(head[0] as u16)).ok_or_else(malformed)?.words;
        let record = words.get(..len).ok_or_else(malformed)?;
        if filter.passes(head[0]) {
            let at = self.words.len();
            self.words.extend_from_slice(record);
            let copied = RecordRef::first(self.words.get(at..).unwrap_or(&[]))?;
            if copied.words().len() != len || self.words.get(at) != Some(&head[0]) {
                return Err(malformed());
            }
            self.passing.push((before, at as u32));
        }
        Ok(len)
    }
}
