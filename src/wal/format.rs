//! Owns: the byte format of the log: every offset, magic and version of frames and segments.
//!
//! A segment is a file of fixed size, named by its first position in 16 hex digits:
//!
//! ```text
//! 0     segment header 64 B   magic u64 · version u32 · crc u32 · store id u128 · first position u64 · size u64 · 0
//! 512   durable mark A 64 B   magic u32 · crc u32 · seq u64 · position u64 · index u64 · lsn u64 · 0
//! 1024  durable mark B 64 B
//! 4096  frames, to the end
//! ```
//!
//! A frame is the unit of checksums, of syncs and of replication:
//!
//! ```text
//! 0   magic u32 · version u8 · type u8 · flags u16 · header_crc u32 · prev_crc u32
//! 16  payload_crc u32 · len u32 · term u32 · count u32
//! 32  index u64 · first_lsn u64
//! 48  position u64 · ingest_ts u64
//! 64  run table, 24 B per run: publisher u16 · 0 u16 · epoch u32 · count u32 · bytes u32 · first_pub_seq u64
//!     records, each a multiple of 8 bytes; then zeros to a multiple of 64
//! ```
//!
//! What must hold for a frame to be accepted: its CRCs match; `position` is its own place; `index` is the previous one + 1;
//! `first_lsn` continues; `prev_crc` is the previous header's CRC; `term` does not fall; `ingest_ts` falls only if `flags` has
//! [`CLOCK_SET_BACK`]. Pads fill a segment to its end and are not part of the chain. A CRC is CRC-32C, over the header with its
//! own field zero, or over `len` bytes of payload.

pub use crate::error::Bad;
use crate::error::demand;
use crate::lsn::{Epoch, FrameIndex, Lsn, Position, PubSeq, PublisherId, Term};
use crate::record::{self, WORDS_MAX};
use crate::sabotage::{self, Sabotage};
use crate::time::Ts;

/// First four bytes of a frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"tfrm");
/// Version of the frame format.
pub const FRAME_VERSION: u8 = 1;
/// Bytes of a frame's header, and its alignment.
pub const HEADER_LEN: u64 = 64;
/// Bytes of an entry of the run table.
pub const RUN_LEN: usize = 24;
/// Flag of a frame whose ingest time is before that of the previous frame, because the clock was set back. In all other frames
/// the ingest time does not fall.
pub const CLOCK_SET_BACK: u16 = 1;
/// Largest number of records in a frame.
pub const FRAME_RECORDS_MAX: u32 = 4096;
/// Largest payload in bytes that a writer puts in a frame.
pub const FRAME_PAYLOAD_MAX: usize = 64 << 10;
/// Largest payload in bytes that a reader accepts.
pub const FRAME_PAYLOAD_LIMIT: u32 = 1 << 20;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"TAPEWAL\0");
const SEGMENT_VERSION: u32 = 1;
/// Bytes before the first frame of a segment.
pub const SEGMENT_HEAD_LEN: u64 = 4096;
/// Offsets of the two durable marks: in different sectors, so that one torn write cannot hit both.
pub const MARK_OFFSETS: [u64; 2] = [512, 1024];
/// Bytes of a durable mark.
pub const MARK_LEN: usize = 64;
const MARK_MAGIC: u32 = u32::from_le_bytes(*b"tevd");
/// Smallest segment: the head and two of the largest frames.
pub const SEGMENT_SIZE_MIN: u64 = 256 << 10;
/// Largest segment.
pub const SEGMENT_SIZE_MAX: u64 = 4 << 30;

const _: () = {
    assert!(size_of::<Header>() as u64 == HEADER_LEN && size_of::<Run>() == RUN_LEN);
    assert!(size_of::<SegmentHeader>() == 64 && size_of::<MarkSlot>() == MARK_LEN);
    assert!(FRAME_PAYLOAD_MAX as u64 + HEADER_LEN < (SEGMENT_SIZE_MIN - SEGMENT_HEAD_LEN) / 2);
    assert!(FRAME_PAYLOAD_MAX >= WORDS_MAX * 8 + RUN_LEN);
};

/// Type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Records.
    Data = 1,
    /// Control entries: attached publishers, instrument names, layouts of kinds. No LSN.
    Control = 2,
    /// No payload: opens a term.
    NoOp = 3,
    /// A change of the cluster's membership (`consensus::format`). No LSN.
    Membership = 4,
    /// Fills a segment to its end; no index.
    Pad = 5,
}

impl FrameType {
    fn parse(raw: u8) -> Result<FrameType, Bad> {
        match raw {
            1 => Ok(FrameType::Data),
            2 => Ok(FrameType::Control),
            3 => Ok(FrameType::NoOp),
            4 => Ok(FrameType::Membership),
            5 => Ok(FrameType::Pad),
            other => Err(Bad { what: "frame type", expected: 1, found: u64::from(other) }),
        }
    }
}

/// Header of a frame, as in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Header {
    /// [`FRAME_MAGIC`].
    pub magic: u32,
    /// [`FRAME_VERSION`].
    pub version: u8,
    /// A [`FrameType`].
    pub frame_type: u8,
    /// [`CLOCK_SET_BACK`], or zero.
    pub flags: u16,
    /// CRC of the header with this field zero.
    pub header_crc: u32,
    /// `header_crc` of the previous frame that is no pad.
    pub prev_crc: u32,
    /// CRC of the payload; zero in pads.
    pub payload_crc: u32,
    /// Bytes of payload, without the zeros that align the next frame.
    pub len: u32,
    /// Term in which the frame was written.
    pub term: Term,
    /// Number of records or control entries.
    pub count: u32,
    /// Index of the frame.
    pub index: FrameIndex,
    /// LSN of its first record; without records, of the next record of the log.
    pub first_lsn: Lsn,
    /// Position of the frame.
    pub position: Position,
    /// Ingest time, by the leader's clock.
    pub ingest_ts: Ts,
}

impl Header {
    /// Sets `header_crc`.
    pub fn seal(&mut self) {
        self.header_crc = 0;
        self.header_crc = crc32c::crc32c(bytemuck::bytes_of(self));
    }

    /// Parses the untrusted header `bytes`.
    ///
    /// # Errors
    /// The first check that fails: magic, CRC, version, type, length.
    pub fn parse(bytes: &[u8]) -> Result<Header, Bad> {
        let raw = bytes.get(..HEADER_LEN as usize);
        let raw = raw.ok_or(Bad { what: "frame header bytes", expected: HEADER_LEN, found: bytes.len() as u64 })?;
        let header: Header = bytemuck::pod_read_unaligned(raw);
        demand("frame magic", u64::from(FRAME_MAGIC), u64::from(header.magic))?;
        let mut sealed = header;
        sealed.seal();
        demand("frame header CRC", u64::from(sealed.header_crc), u64::from(header.header_crc))?;
        demand("frame version", u64::from(FRAME_VERSION), u64::from(header.version))?;
        let frame_type = FrameType::parse(header.frame_type)?;
        if frame_type != FrameType::Pad && header.len > FRAME_PAYLOAD_LIMIT {
            return Err(Bad { what: "frame length", expected: u64::from(FRAME_PAYLOAD_LIMIT), found: u64::from(header.len) });
        }
        Ok(header)
    }

    /// Type of the frame.
    pub fn kind(&self) -> FrameType {
        FrameType::parse(self.frame_type).unwrap_or(FrameType::NoOp)
    }

    /// Bytes of the whole frame, with its zeros.
    pub fn total_len(&self) -> u64 {
        (HEADER_LEN + u64::from(self.len)).next_multiple_of(HEADER_LEN)
    }

    /// The chain just before the frame.
    pub fn place(&self) -> Chain {
        let Header { position, index, first_lsn: lsn, prev_crc, term, ingest_ts, .. } = *self;
        Chain { position, index, lsn, prev_crc, term, ingest_ts }
    }

    /// Number of records; 0 unless this is a data frame.
    pub fn records(&self) -> u64 {
        if self.kind() == FrameType::Data { u64::from(self.count) } else { 0 }
    }
}

/// Entry of the run table: consecutive records of one publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Run {
    /// Publisher of the records.
    pub publisher: PublisherId,
    /// Zero.
    pub reserved: u16,
    /// Epoch of the publisher.
    pub epoch: Epoch,
    /// Number of records.
    pub count: u32,
    /// Bytes of the records.
    pub bytes: u32,
    /// Sequence number of the first record; those of the others follow without a gap.
    pub first_pub_seq: PubSeq,
}

/// State of the log at a place: what the next frame's header must contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Position of the next frame.
    pub position: Position,
    /// Index of the next frame.
    pub index: FrameIndex,
    /// First LSN of the next frame.
    pub lsn: Lsn,
    /// `prev_crc` of the next frame.
    pub prev_crc: u32,
    /// Least term of the next frame.
    pub term: Term,
    /// Ingest time of the previous frame: the next one's is less only with [`CLOCK_SET_BACK`].
    pub ingest_ts: Ts,
}

impl Chain {
    /// The chain at the beginning of the log of the store `store_id`.
    pub fn begin(store_id: u128) -> Chain {
        Chain {
            position: Position(SEGMENT_HEAD_LEN),
            index: FrameIndex(1),
            lsn: Lsn(1),
            prev_crc: crc32c::crc32c(&store_id.to_le_bytes()),
            term: Term(0),
            ingest_ts: Ts(0),
        }
    }

    /// Checks that `header` is the next frame.
    ///
    /// # Errors
    /// The first field that does not continue the chain.
    pub fn check(&self, header: &Header) -> Result<(), Bad> {
        demand("frame position", self.position.0, header.position.0)?;
        demand("frame index", self.index.0, header.index.0)?;
        demand("first LSN", self.lsn.0, header.first_lsn.0)?;
        if sabotage::is(Sabotage::AcceptUnchained) {
            return Ok(());
        }
        demand("previous frame's CRC", u64::from(self.prev_crc), u64::from(header.prev_crc))?;
        if header.term < self.term {
            return Err(Bad { what: "term", expected: u64::from(self.term.0), found: u64::from(header.term.0) });
        }
        if header.ingest_ts < self.ingest_ts && header.flags & CLOCK_SET_BACK == 0 {
            return Err(Bad { what: "ingest time", expected: self.ingest_ts.0, found: header.ingest_ts.0 });
        }
        Ok(())
    }

    /// Advances past the checked `header`, in segments of `segment_size`.
    pub fn advance(&mut self, header: &Header, segment_size: u64) {
        let end = header.position.0 + header.total_len();
        self.position = Position(if end.is_multiple_of(segment_size) { end + SEGMENT_HEAD_LEN } else { end });
        if header.kind() != FrameType::Pad {
            self.index = FrameIndex(self.index.0 + 1);
            self.lsn = self.lsn.plus(header.records());
            self.prev_crc = header.header_crc;
            self.term = header.term;
            self.ingest_ts = header.ingest_ts;
        }
    }
}

/// The checked payload of a data frame.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// The runs, in the order of the records.
    pub runs: &'a [Run],
    /// The records.
    pub records: &'a [u64],
}

impl<'a> Data<'a> {
    /// Parses the payload `words` of the data frame `header`, whose CRC has been checked.
    ///
    /// # Errors
    /// The first contradiction: counts, lengths, kinds.
    pub fn parse(header: &Header, words: &'a [u64]) -> Result<Data<'a>, Bad> {
        // Writers make no longer one, and a MemTable has room for no more.
        if header.count > FRAME_RECORDS_MAX {
            return Err(Bad { what: "records of a frame", expected: FRAME_RECORDS_MAX.into(), found: header.count.into() });
        }
        let mut counted = 0u64;
        let mut bytes = 0u64;
        let mut runs = 0usize;
        const RUN_WORDS: usize = RUN_LEN / 8;
        while counted < u64::from(header.count) {
            let at = words.get(runs * RUN_WORDS..(runs + 1) * RUN_WORDS);
            let at = at.ok_or(Bad { what: "run table", expected: u64::from(header.count), found: counted })?;
            let run: &Run = bytemuck::from_bytes(bytemuck::cast_slice(at));
            if run.count == 0 {
                return Err(Bad { what: "records of a run", expected: 1, found: 0 });
            }
            if run.first_pub_seq.0.checked_add(u64::from(run.count)).is_none() {
                return Err(Bad { what: "sequence number of a run's first record", expected: 1, found: run.first_pub_seq.0 });
            }
            counted += u64::from(run.count);
            bytes += u64::from(run.bytes);
            runs += 1;
        }
        demand("records by the run table", u64::from(header.count), counted)?;
        let (table, records) = words.split_at_checked(runs * RUN_WORDS).unwrap_or((&[], &[]));
        demand("record bytes by the run table", bytes, records.len() as u64 * 8)?;
        let data = Data { runs: bytemuck::cast_slice(table), records };
        data.check_records()?;
        Ok(data)
    }

    fn check_records(&self) -> Result<(), Bad> {
        let mut rest = self.records;
        for run in self.runs {
            let (mine, after) = rest.split_at_checked(run.bytes as usize / 8).unwrap_or((&[], &[]));
            let mut count = 0u64;
            for record in record::split(mine) {
                record.map_err(|_| Bad { what: "record in a frame", expected: u64::from(run.count), found: count })?;
                count += 1;
            }
            demand("records of a run", u64::from(run.count), count)?;
            rest = after;
        }
        Ok(())
    }
}

/// Header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SegmentHeader {
    magic: u64,
    version: u32,
    crc: u32,
    store_id: [u64; 2],
    /// Position of the segment's first byte.
    pub first: Position,
    /// Bytes of the segment.
    pub size: u64,
    reserved: [u64; 2],
}

/// Reason why a segment's header is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSegment {
    /// Not a segment; the value is its first eight bytes.
    Foreign(u64),
    /// Another format version.
    Version(u32),
    /// A field or the CRC is wrong.
    Bad(Bad),
}

impl SegmentHeader {
    /// The header of the segment that begins at `first`.
    pub fn new(store_id: u128, first: Position, size: u64) -> SegmentHeader {
        let mut header = SegmentHeader {
            magic: SEGMENT_MAGIC,
            version: SEGMENT_VERSION,
            crc: 0,
            store_id: [store_id as u64, (store_id >> 64) as u64],
            first,
            size,
            reserved: [0; 2],
        };
        header.crc = crc32c::crc32c(bytemuck::bytes_of(&header));
        header
    }

    /// Checks that the header in `bytes` equals `self`.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, bytes: &[u8]) -> Result<(), BadSegment> {
        let raw = bytes.get(..64).unwrap_or(&[0; 64]);
        let found: SegmentHeader = bytemuck::pod_read_unaligned(raw);
        if found.magic != SEGMENT_MAGIC {
            return Err(BadSegment::Foreign(found.magic));
        }
        let mut sealed = SegmentHeader { crc: 0, ..found };
        sealed.crc = crc32c::crc32c(bytemuck::bytes_of(&sealed));
        demand("segment header CRC", u64::from(sealed.crc), u64::from(found.crc)).map_err(BadSegment::Bad)?;
        if found.version != SEGMENT_VERSION {
            return Err(BadSegment::Version(found.version));
        }
        let [expected, actual] = [self.store_id, found.store_id];
        demand("store id", expected[0] ^ expected[1], actual[0] ^ actual[1]).map_err(BadSegment::Bad)?;
        demand("segment position", self.first.0, found.first.0).map_err(BadSegment::Bad)?;
        demand("segment size", self.size, found.size).map_err(BadSegment::Bad)
    }
}

/// Durable mark: how much of the log is certainly durable on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurableMark {
    /// Sequence number; rises with every write of a mark.
    pub seq: u64,
    /// All bytes before it are durable.
    pub position: Position,
    /// Index of the last durable frame.
    pub index: FrameIndex,
    /// LSN of the last durable record.
    pub lsn: Lsn,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct MarkSlot {
    magic: u32,
    crc: u32,
    seq: u64,
    position: u64,
    index: u64,
    lsn: u64,
    reserved: [u64; 3],
}

impl DurableMark {
    /// Mark that everything before `chain` is durable.
    pub fn of(chain: &Chain) -> DurableMark {
        let (index, lsn) = (FrameIndex(chain.index.0.saturating_sub(1)), Lsn(chain.lsn.0.saturating_sub(1)));
        DurableMark { seq: 0, position: chain.position, index, lsn }
    }

    /// The higher one of this mark and the mark at `chain`.
    #[must_use]
    pub fn max_with(self, chain: Chain) -> DurableMark {
        if chain.position > self.position { DurableMark { seq: self.seq, ..DurableMark::of(&chain) } } else { self }
    }

    /// Encodes the mark.
    pub fn to_bytes(self) -> [u8; MARK_LEN] {
        let mut slot = MarkSlot {
            magic: MARK_MAGIC,
            crc: 0,
            seq: self.seq,
            position: self.position.0,
            index: self.index.0,
            lsn: self.lsn.0,
            reserved: [0; 3],
        };
        slot.crc = crc32c::crc32c(bytemuck::bytes_of(&slot));
        bytemuck::cast(slot)
    }

    /// Parses the mark in `bytes`; `None` if there is none or it is damaged.
    pub fn parse(bytes: &[u8]) -> Option<DurableMark> {
        let mut slot: MarkSlot = bytemuck::try_pod_read_unaligned(bytes.get(..MARK_LEN)?).ok()?;
        let crc = std::mem::take(&mut slot.crc);
        if slot.magic != MARK_MAGIC || crc32c::crc32c(bytemuck::bytes_of(&slot)) != crc {
            return None;
        }
        let (position, index, lsn) = (Position(slot.position), FrameIndex(slot.index), Lsn(slot.lsn));
        Some(DurableMark { seq: slot.seq, position, index, lsn })
    }
}

/// File name of the segment that begins at `first`.
pub fn segment_name(first: Position) -> String {
    format!("{:016x}.wal", first.0)
}

/// First position of the segment named `name`; `None` if `name` is no segment's name.
pub fn segment_first(name: &str) -> Option<Position> {
    let hex = name.strip_suffix(".wal").filter(|h| h.len() == 16)?;
    u64::from_str_radix(hex, 16).ok().map(Position).filter(|p| segment_name(*p) == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Record, Trade};

    fn data_frame(records: usize) -> (Header, Vec<u64>) {
        let run = Run {
            publisher: PublisherId(1),
            reserved: 0,
            epoch: Epoch(1),
            count: records as u32,
            bytes: records as u32 * 64,
            first_pub_seq: PubSeq(1),
        };
        let mut words: Vec<u64> = bytemuck::cast_slice(&[run]).to_vec();
        for i in 0..records {
            words.extend_from_slice(Trade { trade_id: i as u64, ..Trade::default() }.words());
        }
        let mut header = Header {
            magic: FRAME_MAGIC,
            version: FRAME_VERSION,
            frame_type: 1,
            count: records as u32,
            len: words.len() as u32 * 8,
            ..bytemuck::Zeroable::zeroed()
        };
        header.payload_crc = crc32c::crc32c(bytemuck::cast_slice(&words));
        header.seal();
        (header, words)
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_detected() {
        let (header, _) = data_frame(3);
        let bytes: [u8; 64] = bytemuck::cast(header);
        assert_eq!(Header::parse(&bytes).unwrap(), header);
        for bit in 0..512 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&flipped).is_err(), "bit {bit}");
        }
        assert!(Header::parse(&bytes[..63]).is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_durable_mark_is_detected() {
        let mark = DurableMark { seq: 3, position: Position(9), index: FrameIndex(2), lsn: Lsn(7) };
        let bytes = mark.to_bytes();
        assert_eq!(DurableMark::parse(&bytes), Some(mark));
        for bit in 0..512 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(DurableMark::parse(&flipped), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn a_payload_parses_or_is_refused_but_never_panics(mut words in proptest::collection::vec(any::<u64>(), 0..40), count in 0u32..20, runs in 0u64..3) {
            if let Some(w) = words.get_mut(1) { *w = (u64::from(count)) | runs << 32; }
            let (mut header, _) = data_frame(1);
            header.count = count;
            let parsed = Data::parse(&header, &words);
            prop_assert!(parsed.is_err() || count > 0 || words.is_empty());
        }
    }

    #[test]
    fn a_payload_that_contradicts_its_header_is_refused() {
        let (header, words) = data_frame(3);
        assert_eq!(Data::parse(&header, &words).unwrap().runs.len(), 1);
        assert!(Data::parse(&Header { count: 4, ..header }, &words).is_err());
        assert!(Data::parse(&Header { count: 2, ..header }, &words).is_err());
        assert!(Data::parse(&header, &words[..words.len() - 1]).is_err());
        assert!(Data::parse(&header, &[]).is_err());
    }

    #[test]
    fn a_segments_name_is_its_position_and_other_names_are_rejected() {
        assert_eq!(segment_first(&segment_name(Position(0x4000000))), Some(Position(0x4000000)));
        for bad in ["", "x.wal", "00000000000000AB.wal", "0000.wal", "0000000000000000.tmp", "+000000000000000.wal"] {
            assert_eq!(segment_first(bad), None, "{bad}");
        }
    }
}
