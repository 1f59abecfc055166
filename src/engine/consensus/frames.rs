//! Owns: the place of each frame in the log, from the checkpoint on; the raft crate reads it as its log.
//!
//! What must hold: places are dense by index and end with the last frame written; terms never fall.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::message::FrameHead;
use tapestore::lsn::{Lsn, Position};
use tapestore::time::Ts;
use tapestore::wal::{Chain, FrameType, Header};

/// Place of a frame, and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its position.
    pub position: Position,
    /// The last record up to its end.
    pub lsn: Lsn,
    /// Its ingest time.
    pub ingest_ts: Ts,
    /// Its length in bytes, with header and padding.
    pub len: u32,
    /// CRC of its header.
    pub header_crc: u32,
}

impl Place {
    /// Position of the next frame, unless a segment ends there.
    pub fn end(&self) -> Position {
        Position(self.position.0 + u64::from(self.len))
    }
}

/// The frames of the log.
#[derive(Debug)]
pub struct Frames {
    /// Index of the first place.
    first: u64,
    /// Term of the frame before the first, and the last LSN up to it.
    before: (u64, Lsn),
    places: VecDeque<Place>,
    /// First index and term of each run of frames of one term; both rise.
    terms: VecDeque<(u64, u64)>,
    /// Indexes of membership frames, rising.
    memberships: VecDeque<u64>,
    /// Start state of the raft crate.
    pub(super) hard_state: HardState,
    pub(super) conf_state: ConfState,
}

impl Frames {
    /// Starts with no frame after `from`, a checkpoint or the log's beginning.
    pub fn new(from: &Chain) -> Frames {
        Frames {
            first: from.index.0,
            before: (u64::from(from.term.0), Lsn(from.lsn.0 - 1)),
            places: VecDeque::new(),
            terms: VecDeque::new(),
            memberships: VecDeque::new(),
            hard_state: HardState::default(),
            conf_state: ConfState::default(),
        }
    }

    /// Adds the next frame.
    ///
    /// # Panics
    /// If it is not the next one.
    pub fn push(&mut self, header: &Header) {
        let (index, term) = (header.index.0, u64::from(header.term.0));
        assert!(index == self.last() + 1 && term >= self.term_of(index - 1).unwrap_or(0), "frame {index} of term {term}");
        if self.terms.back().map_or(self.before.0, |t| t.1) != term || self.terms.is_empty() {
            self.terms.push_back((index, term));
        }
        if header.kind() == FrameType::Membership {
            self.memberships.push_back(index);
        }
        let lsn = Lsn(header.first_lsn.0 + header.records() - 1);
        let (position, ingest_ts) = (header.position, header.ingest_ts);
        self.places.push_back(Place { position, lsn, ingest_ts, len: header.total_len() as u32, header_crc: header.header_crc });
    }

    /// Index of the first frame that has a place.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Index of the last frame.
    pub fn last(&self) -> u64 {
        self.first + self.places.len() as u64 - 1
    }

    /// The place of frame `index`.
    pub fn place(&self, index: u64) -> Option<&Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// The last LSN up to the end of frame `index`; for dropped frames, the last LSN of them all.
    pub fn lsn(&self, index: u64) -> Lsn {
        self.place(index.min(self.last())).map_or(self.before.1, |p| p.lsn)
    }

    /// Term of frame `index`, or of the one before the first.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.first - 1 {
            return Some(self.before.0);
        }
        self.place(index)?;
        let after = self.terms.partition_point(|t| t.0 <= index);
        self.terms.get(after.checked_sub(1)?).map(|t| t.1)
    }

    /// The head that names frame `index` in messages.
    pub fn head(&self, index: u64) -> Option<FrameHead> {
        let place = self.place(index)?;
        let kind = if self.is_membership(index) { EntryType::EntryConfChangeV2 as u8 } else { 0 };
        let (position, len, header_crc) = (place.position.0, place.len, place.header_crc);
        Some(FrameHead { kind, term: self.term_of(index)?, index, position, len, header_crc })
    }

    fn is_membership(&self, index: u64) -> bool {
        self.memberships.binary_search(&index).is_ok()
    }

    /// Drops the frames before `position`, but never the last frame.
    pub fn forget(&mut self, position: Position) {
        while self.places.len() > 1 && self.places.front().is_some_and(|p| p.end() <= position) {
            self.before = (self.term_of(self.first).unwrap_or(self.before.0), self.lsn(self.first));
            self.places.pop_front();
            self.first += 1;
            if self.terms.get(1).is_some_and(|t| t.0 <= self.first) {
                self.terms.pop_front();
            }
            if self.memberships.front().is_some_and(|m| *m < self.first) {
                self.memberships.pop_front();
            }
        }
    }

    fn entry(&self, index: u64) -> Option<Entry> {
        let mut entry = Entry { index, term: self.term_of(index)?, ..Entry::default() };
        if self.is_membership(index) {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        Some(entry)
    }
}

/// Bytes that the raft crate counts for an entry, approximately.
const ENTRY_BYTES: u64 = 12;

impl Storage for Frames {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low < self.first {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let most = max_size.into().map_or(u64::MAX, |bytes| (bytes / ENTRY_BYTES).max(1));
        let high = high.min(low.saturating_add(most));
        let entries: Option<Vec<Entry>> = (low..high).map(|index| self.entry(index)).collect();
        entries.ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.first { StorageError::Compacted } else { StorageError::Unavailable };
        self.term_of(index).ok_or(raft::Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapestore::lsn::{FrameIndex, Term};

    fn header(index: u64, term: u32, kind: FrameType) -> Header {
        let mut header: Header = bytemuck::Zeroable::zeroed();
        (header.frame_type, header.index, header.term) = (kind as u8, FrameIndex(index), Term(term));
        (header.first_lsn, header.count, header.position) = (Lsn(index * 10), 10, Position(4096 + index * 64));
        header
    }

    #[test]
    fn frames_are_found_by_index_with_their_terms_and_are_dropped_from_the_front() {
        let mut frames = Frames::new(&Chain::begin(1));
        assert_eq!((frames.first(), frames.last(), frames.term_of(0), frames.lsn(0)), (1, 0, Some(0), Lsn(0)));
        for (index, term) in (1..).zip([1, 1, 2, 2, 5]) {
            let kind = if index == 3 { FrameType::Membership } else { FrameType::Data };
            frames.push(&header(index, term, kind));
        }
        assert_eq!((1..=5).map(|i| frames.term_of(i).unwrap()).collect::<Vec<_>>(), [1, 1, 2, 2, 5]);
        let context = || GetEntriesContext::empty(false);
        assert_eq!(frames.entries(2, 6, None, context()).unwrap().len(), 4);
        assert_eq!(frames.entries(2, 6, 1, context()).unwrap().len(), 1);
        assert_eq!(frames.head(3).unwrap().kind, EntryType::EntryConfChangeV2 as u8);
        assert!(matches!(frames.entries(5, 7, None, context()), Err(raft::Error::Store(StorageError::Unavailable))));
        frames.forget(frames.place(4).unwrap().position);
        assert_eq!((frames.first(), frames.term_of(2), frames.term_of(3), frames.term_of(4)), (4, None, Some(2), Some(2)));
        assert!(matches!(frames.entries(3, 5, None, context()), Err(raft::Error::Store(StorageError::Compacted))));
        frames.forget(Position(u64::MAX));
        assert_eq!((frames.first(), frames.last(), frames.term_of(4), frames.term_of(5)), (5, 5, Some(2), Some(5)));
    }
}
