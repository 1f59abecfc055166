//! Owns: [`FrameBuilder`], a frame as it is being filled, in one buffer that is written as it is.
//!
//! Header and run table stand directly before the records, so their place is fixed only when the
//! frame is finished and no record is ever moved:
//!
//! ```text
//! | free .. | header 64 B | runs | records .. | zeros |
//!                                ^ fixed
//! ```

use super::format::{
    CLOCK_SET_BACK, Chain, FRAME_MAGIC, FRAME_PAYLOAD_MAX, FRAME_RECORDS_MAX, FRAME_VERSION, FrameType, HEADER_LEN, Header,
    RUN_LEN, Run,
};
use crate::lsn::{Epoch, PubSeq, PublisherId, Term};
use crate::record::RecordRef;
use crate::time::Ts;

const RUN_WORDS: usize = RUN_LEN / 8;
const HEADER_WORDS: usize = HEADER_LEN as usize / 8;
/// Most runs in a frame.
const RUNS_MAX: usize = 1024;
/// Word at which records begin.
const RECORDS_AT: usize = HEADER_WORDS + RUNS_MAX * RUN_WORDS;

/// A frame being filled.
#[derive(Debug)]
pub struct FrameBuilder {
    words: Vec<u64>,
    runs: Vec<Run>,
    count: u32,
}

/// How far a frame was filled at one moment.
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

    /// Forgets everything put in.
    pub fn clear(&mut self) {
        self.words.truncate(RECORDS_AT);
        self.runs.clear();
        self.count = 0;
    }

    /// Whether nothing has been put in.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Records, or facts, put in.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The runs put in.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The records put in.
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

    /// Whether `count` more records of `words` words fit, in a run of their own. An empty frame takes
    /// anything that a batch may hold.
    pub fn fits(&self, words: usize, count: u32) -> bool {
        let payload = (self.words.len() - RECORDS_AT + words) * 8 + (self.runs.len() + 1) * RUN_LEN;
        payload <= FRAME_PAYLOAD_MAX && self.count + count <= FRAME_RECORDS_MAX && self.runs.len() < RUNS_MAX
    }

    /// Puts in `count` records of `words`, the first of them `first_pub_seq`.
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

    /// A place to return to.
    pub fn mark(&self) -> Mark {
        Mark { words: self.words.len(), runs: self.runs.len(), last_run: self.runs.last().copied(), count: self.count }
    }

    /// The records put in since `mark`.
    pub fn records_since(&self, mark: &Mark) -> &[u64] {
        self.words.get(mark.words..).unwrap_or(&[])
    }

    /// Forgets what was put in since `mark`.
    pub fn rollback(&mut self, mark: Mark) {
        self.words.truncate(mark.words);
        self.runs.truncate(mark.runs);
        if let (Some(last), Some(run)) = (self.runs.last_mut(), mark.last_run) {
            *last = run;
        }
        self.count = mark.count;
    }

    /// Puts in one fact; `encode` appends its words.
    pub fn push_fact(&mut self, encode: impl FnOnce(&mut Vec<u64>)) {
        encode(&mut self.words);
        self.count += 1;
    }

    /// Bytes of the frame, once finished.
    pub(super) fn total_len(&self) -> u64 {
        let payload = (self.words.len() - RECORDS_AT) * 8 + self.runs.len() * RUN_LEN;
        (HEADER_LEN + payload as u64).next_multiple_of(HEADER_LEN)
    }

    /// The finished frame: its header and all its bytes.
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

    /// Words of the records, once sealed: the zeros that align the next frame are cut off again.
    pub(super) fn unpad(&mut self, header: &Header) {
        let payload_words = header.len as usize / 8;
        self.words.truncate(RECORDS_AT - self.runs.len() * RUN_WORDS + payload_words);
    }
}
