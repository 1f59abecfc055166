//! Owns: [`FrameBuilder`], which builds a frame in one buffer that is written to the log without a copy.
//!
//! Header and run table end directly before the records. Their place is fixed only when the frame is sealed, and no record is
//! ever moved:
//!
//! ```text
//! | free .. | header 64 B | runs | records .. | zeros |
//!                                ^ fixed
//! ```
//!
//! What must hold: a frame has at most [`FRAME_RECORDS_MAX`] records and [`FRAME_PAYLOAD_MAX`] bytes of payload.

use super::format::{
    CLOCK_SET_BACK, Chain, FRAME_MAGIC, FRAME_PAYLOAD_MAX, FRAME_RECORDS_MAX, FRAME_VERSION, FrameType, HEADER_LEN, Header,
    RUN_LEN, Run,
};
use crate::lsn::{Epoch, PubSeq, PublisherId, Term};
use crate::record::RecordRef;
use crate::time::Ts;

const RUN_WORDS: usize = RUN_LEN / 8;
const HEADER_WORDS: usize = HEADER_LEN as usize / 8;
/// Largest number of runs in a frame.
const RUNS_MAX: usize = 1024;
/// Word of the buffer at which the records begin.
const RECORDS_AT: usize = HEADER_WORDS + RUNS_MAX * RUN_WORDS;

/// Builder of a frame.
#[derive(Debug)]
pub struct FrameBuilder {
    words: Vec<u64>,
    runs: Vec<Run>,
    count: u32,
}

/// State of a frame to roll back to.
#[derive(Debug)]
pub struct Mark {
    words: usize,
    runs: usize,
    last_run: Option<Run>,
    count: u32,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        FrameBuilder::new()
    }
}

impl FrameBuilder {
    /// An empty frame.
    pub fn new() -> Self {
        let mut words = Vec::with_capacity(RECORDS_AT + FRAME_PAYLOAD_MAX / 8 + HEADER_WORDS);
        words.resize(RECORDS_AT, 0);
        FrameBuilder { words, runs: Vec::with_capacity(RUNS_MAX), count: 0 }
    }

    /// Removes the whole content.
    pub fn clear(&mut self) {
        self.words.truncate(RECORDS_AT);
        self.runs.clear();
        self.count = 0;
    }

    /// Whether the frame has no content.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of records or control entries.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The runs so far.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The records so far.
    pub fn records(&self) -> &[u64] {
        self.words.get(RECORDS_AT..).unwrap_or(&[])
    }

    /// The first record of each run.
    pub fn firsts(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut rest = self.records();
        self.runs.iter().map_while(move |run| {
            let (mine, after) = rest.split_at_checked(run.bytes as usize / 8)?;
            rest = after;
            RecordRef::first(mine).ok()
        })
    }

    /// Whether `count` more records of `words` words fit, in a run of their own. Every batch fits in an empty frame.
    pub fn fits(&self, words: usize, count: u32) -> bool {
        let payload = (self.words.len() - RECORDS_AT + words) * 8 + (self.runs.len() + 1) * RUN_LEN;
        payload <= FRAME_PAYLOAD_MAX && self.count + count <= FRAME_RECORDS_MAX && self.runs.len() < RUNS_MAX
    }

    /// Appends the `count` records `words`; the first has the sequence number `first_pub_seq`.
    pub fn push_records(&mut self, publisher: PublisherId, epoch: Epoch, first_pub_seq: PubSeq, count: u32, words: &[u64]) {
        debug_assert!(self.is_empty() || self.fits(words.len(), count));
        let bytes = words.len() as u32 * 8;
        match self.runs.last_mut() {
            Some(run)
                if run.publisher == publisher
                    && run.epoch == epoch
                    && run.first_pub_seq.0 + u64::from(run.count) == first_pub_seq.0 =>
            {
                run.count += count;
                run.bytes += bytes;
            }
            _ => self.runs.push(Run { publisher, reserved: 0, epoch, count, bytes, first_pub_seq }),
        }
        self.words.extend_from_slice(words);
        self.count += count;
    }

    /// The present state, for [`FrameBuilder::rollback`].
    pub fn mark(&self) -> Mark {
        Mark { words: self.words.len(), runs: self.runs.len(), last_run: self.runs.last().copied(), count: self.count }
    }

    /// The records appended since `mark`.
    pub fn records_since(&self, mark: &Mark) -> &[u64] {
        self.words.get(mark.words..).unwrap_or(&[])
    }

    /// Removes everything appended since `mark`.
    pub fn rollback(&mut self, mark: Mark) {
        self.words.truncate(mark.words);
        self.runs.truncate(mark.runs);
        if let (Some(last), Some(run)) = (self.runs.last_mut(), mark.last_run) {
            *last = run;
        }
        self.count = mark.count;
    }

    /// Appends one control entry; `encode` appends its words.
    pub fn push_entry(&mut self, encode: impl FnOnce(&mut Vec<u64>)) {
        encode(&mut self.words);
        self.count += 1;
    }

    /// Bytes of the sealed frame.
    pub(super) fn total_len(&self) -> u64 {
        let payload = (self.words.len() - RECORDS_AT) * 8 + self.runs.len() * RUN_LEN;
        (HEADER_LEN + payload as u64).next_multiple_of(HEADER_LEN)
    }

    /// Seals the frame: returns its header and all its words.
    pub(super) fn seal(&mut self, kind: FrameType, chain: &Chain, term: Term, ingest_ts: Ts) -> (Header, &[u64]) {
        let start = RECORDS_AT - self.runs.len() * RUN_WORDS - HEADER_WORDS;
        let payload_words = self.words.len() - start - HEADER_WORDS;
        let padded = (payload_words * 8).next_multiple_of(HEADER_LEN as usize) / 8;
        self.words.resize(start + HEADER_WORDS + padded, 0);
        let frame = self.words.get_mut(start..).unwrap_or(&mut []);
        let (head, payload) = frame.split_at_mut(HEADER_WORDS);
        let table: &[u64] = bytemuck::cast_slice(&self.runs);
        for (to, from) in payload.iter_mut().zip(table) {
            *to = *from;
        }
        let mut header = Header {
            magic: FRAME_MAGIC,
            version: FRAME_VERSION,
            frame_type: kind as u8,
            flags: if ingest_ts < chain.ingest_ts { CLOCK_SET_BACK } else { 0 },
            header_crc: 0,
            prev_crc: chain.prev_crc,
            payload_crc: crc32c::crc32c(bytemuck::cast_slice(payload.get(..payload_words).unwrap_or(&[]))),
            len: payload_words as u32 * 8,
            term,
            count: self.count,
            index: chain.index,
            first_lsn: chain.lsn,
            position: chain.position,
            ingest_ts,
        };
        header.seal();
        head.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&header)));
        (header, self.words.get(start..).unwrap_or(&[]))
    }

    /// Removes the zeros that [`FrameBuilder::seal`] appended to align the next frame.
    pub(super) fn unpad(&mut self, header: &Header) {
        let payload_words = header.len as usize / 8;
        self.words.truncate(RECORDS_AT - self.runs.len() * RUN_WORDS + payload_words);
    }
}
