//! Owns: the byte layout of the manifest.
//!
//! ```text
//! STORE/CURRENT            "manifest-<number, 12 hex> <CRC of that name, 8 hex>\n"
//! STORE/manifest-<number>  frames, one after the other, each padded with zeros to 64 B:
//!
//! 0   magic u32 · version u8 · type u8 · 0 u16 · header_crc u32 · payload_crc u32
//! 16  len u32 · prev_crc u32 · seq u64
//! 32  store id u128
//! 48  next file number u64 · 0 u64
//! 64  rkyv archive of `Record`
//! version 1 records no user kinds, version 2 no count of expired records; both are read, version 3 is written
//! types  1 snapshot (the first frame of a file, and only that) · 2 edit
//! ```
//!
//! What must hold: the CRCs and the store id match, `seq` is the previous `seq` + 1, and `prev_crc` is the
//! previous header's CRC. CRC is CRC-32C, over the header with its own field zero, and over `len` bytes of
//! payload.

use super::{Edit, PublisherState};
pub use crate::error::Bad;
use crate::error::demand;
use crate::lsn::{Epoch, FrameIndex, Lsn, Position, PubSeq, PublisherId, Term};
use crate::record::{Kind, Layout, Name};
use crate::sabotage::{self, Sabotage};
use crate::sstable::{FileMeta, Window};
use crate::time::Ts;
use crate::wal::Chain;
use crate::wal::control_entry::{NAME_WORDS, name_words, parse_name};

/// The file that names the current manifest.
pub const CURRENT: &str = "CURRENT";
const PREFIX: &str = "manifest-";
const MAGIC: u32 = u32::from_le_bytes(*b"tman");
/// Version of the format that is written; versions from `VERSION_FIRST` on are read.
pub const VERSION: u8 = 3;
const VERSION_FIRST: u8 = 1;
const VERSION_KINDS: u8 = 2;
/// Bytes of a header, and alignment of frames.
pub const HEADER_LEN: usize = 64;
/// Maximum bytes of a payload. Four million names and a million files take half of it.
pub const PAYLOAD_MAX: u32 = 1 << 30;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Header {
    magic: u32,
    version: u8,
    frame_type: u8,
    reserved: u16,
    /// CRC of the header with this field zero.
    pub header_crc: u32,
    /// CRC of the payload.
    pub payload_crc: u32,
    /// Bytes of payload.
    pub len: u32,
    /// `header_crc` of the previous frame; 0 for a snapshot.
    pub prev_crc: u32,
    /// Sequence number of the edit.
    pub seq: u64,
    store_id: [u64; 2],
    /// The first unused file number: no file has ever had it or a higher one.
    pub next_id: u64,
    zero: u64,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// The type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// The whole state.
    Snapshot = 1,
    /// One change.
    Edit = 2,
}

/// The payload of a frame. Names are stored as length and bytes; times are ns.
#[derive(Clone, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Record {
    added: Vec<FileRecord>,
    removed: Vec<u64>,
    checkpoint: Option<ChainRecord>,
    publishers: Vec<PublisherRecord>,
    names: Vec<[u64; NAME_WORDS]>,
    kinds: Vec<Vec<u64>>,
    expired: u64,
}

/// The payload of a version 2 frame.
#[derive(Clone, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RecordV2 {
    added: Vec<FileRecord>,
    removed: Vec<u64>,
    checkpoint: Option<ChainRecord>,
    publishers: Vec<PublisherRecord>,
    names: Vec<[u64; NAME_WORDS]>,
    kinds: Vec<Vec<u64>>,
}

impl From<RecordV2> for Record {
    fn from(record: RecordV2) -> Record {
        let RecordV2 { added, removed, checkpoint, publishers, names, kinds } = record;
        Record { added, removed, checkpoint, publishers, names, kinds, expired: 0 }
    }
}

/// The payload of a version 1 frame.
#[derive(Clone, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RecordV1 {
    added: Vec<FileRecord>,
    removed: Vec<u64>,
    checkpoint: Option<ChainRecord>,
    publishers: Vec<PublisherRecord>,
    names: Vec<[u64; NAME_WORDS]>,
}

impl From<RecordV1> for Record {
    fn from(record: RecordV1) -> Record {
        let RecordV1 { added, removed, checkpoint, publishers, names } = record;
        Record { added, removed, checkpoint, publishers, names, kinds: Vec::new(), expired: 0 }
    }
}

#[derive(Clone, Copy, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct FileRecord {
    id: u64,
    kind: Kind,
    window: (Ts, u64),
    rows: u64,
    len: u64,
    crc: u32,
    time: (Ts, Ts),
    lsn: (Lsn, Lsn),
}

#[derive(Clone, Copy, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct ChainRecord {
    position: Position,
    index: FrameIndex,
    lsn: Lsn,
    prev_crc: u32,
    term: Term,
    ingest_ts: Ts,
}

#[derive(Clone, Copy, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct PublisherRecord {
    publisher: PublisherId,
    epoch: Epoch,
    last: PubSeq,
    lsn: Lsn,
    incarnation: u32,
}

/// Expected values in the next frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The store id.
    pub store_id: u128,
    /// Sequence number and CRC of the previous frame; `None` at the start of a file.
    pub previous: Option<(u64, u32)>,
}

impl Header {
    /// Sets the CRC.
    fn seal(&mut self) {
        self.header_crc = 0;
        self.header_crc = crc32c::crc32c(bytemuck::bytes_of(self));
    }

    /// Bytes of the whole frame.
    pub fn total_len(&self) -> u64 {
        (HEADER_LEN as u64 + u64::from(self.len)).next_multiple_of(HEADER_LEN as u64)
    }

    /// Parses the header in `bytes`, which are not trusted.
    ///
    /// # Errors
    /// The first mismatch.
    pub fn parse(bytes: &[u8], expected: Expected) -> Result<Header, Bad> {
        let raw = bytes.get(..HEADER_LEN);
        let raw = raw.ok_or(Bad { what: "manifest frame bytes", expected: HEADER_LEN as u64, found: bytes.len() as u64 })?;
        let header: Header = bytemuck::pod_read_unaligned(raw);
        demand("manifest frame magic", u64::from(MAGIC), u64::from(header.magic))?;
        let mut sealed = header;
        sealed.seal();
        demand("manifest frame header CRC", u64::from(sealed.header_crc), u64::from(header.header_crc))?;
        if !(VERSION_FIRST..=VERSION).contains(&header.version) {
            return Err(Bad { what: "manifest version", expected: u64::from(VERSION), found: u64::from(header.version) });
        }
        let store = expected.store_id as u64 ^ (expected.store_id >> 64) as u64;
        demand("store id", store, header.store_id.iter().fold(0, |a, b| a ^ b))?;
        let (kind, prev_crc) = match expected.previous {
            None => (FrameType::Snapshot, 0),
            Some((seq, crc)) => {
                demand("manifest edit number", seq.wrapping_add(1), header.seq)?;
                (FrameType::Edit, crc)
            }
        };
        demand("manifest frame type", kind as u64, u64::from(header.frame_type))?;
        demand("previous manifest frame's CRC", u64::from(prev_crc), u64::from(header.prev_crc))?;
        if header.len > PAYLOAD_MAX {
            return Err(Bad { what: "manifest frame length", expected: u64::from(PAYLOAD_MAX), found: u64::from(header.len) });
        }
        Ok(header)
    }
}

impl Header {
    /// The sequence number of the header at the start of `bytes`, if it is a valid header of store `store_id`.
    pub fn seq_of(bytes: &[u8], store_id: u128) -> Option<u64> {
        let header: Header = bytemuck::try_pod_read_unaligned(bytes.get(..HEADER_LEN)?).ok()?;
        let mut sealed = header;
        sealed.seal();
        let is_ours = header.magic == MAGIC && header.store_id == [store_id as u64, (store_id >> 64) as u64];
        (is_ours && sealed.header_crc == header.header_crc).then_some(header.seq)
    }
}

/// Encodes `edit` as the frame of number `seq`; returns the header too.
pub fn encode(kind: FrameType, seq: u64, next_id: u64, expected: Expected, edit: &Edit) -> (Header, Vec<u8>) {
    let record = Record {
        added: edit.added.iter().map(FileRecord::of).collect(),
        removed: edit.removed.clone(),
        checkpoint: edit.checkpoint.map(|c| ChainRecord {
            position: c.position,
            index: c.index,
            lsn: c.lsn,
            prev_crc: c.prev_crc,
            term: c.term,
            ingest_ts: c.ingest_ts,
        }),
        publishers: edit
            .publishers
            .iter()
            .map(|&(publisher, PublisherState { epoch, last, lsn, incarnation })| PublisherRecord {
                publisher,
                epoch,
                last,
                lsn,
                incarnation,
            })
            .collect(),
        names: edit.names.iter().map(name_words).collect(),
        kinds: edit.kinds.iter().map(Layout::encode).collect(),
        expired: edit.expired,
    };
    let payload = match rkyv::to_bytes::<rkyv::rancor::Error>(&record) {
        Ok(payload) => payload,
        // Serialization into memory fails only if an allocation fails.
        Err(e) => panic!("a manifest edit cannot be written to memory: {e}"),
    };
    assert!(payload.len() <= PAYLOAD_MAX as usize, "a manifest edit of {} bytes", payload.len());
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        frame_type: kind as u8,
        reserved: 0,
        header_crc: 0,
        payload_crc: crc32c::crc32c(&payload),
        len: payload.len() as u32,
        prev_crc: expected.previous.map_or(0, |(_, crc)| crc),
        seq,
        store_id: [expected.store_id as u64, (expected.store_id >> 64) as u64],
        next_id,
        zero: 0,
    };
    header.seal();
    let mut bytes = bytemuck::bytes_of(&header).to_vec();
    bytes.extend_from_slice(&payload);
    bytes.resize(header.total_len() as usize, 0);
    (header, bytes)
}

/// Decodes the edit in `payload`, the `len` bytes after the checked `header`.
///
/// # Errors
/// The first mismatch.
pub fn decode(header: &Header, payload: &[u8]) -> Result<Edit, Bad> {
    let crc = crc32c::crc32c(payload);
    if !sabotage::is(Sabotage::SkipEditCrc) {
        demand("manifest payload CRC", u64::from(header.payload_crc), u64::from(crc))?;
    }
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    let bad = Bad { what: "manifest payload", expected: u64::from(header.len), found: payload.len() as u64 };
    let record = match header.version {
        VERSION_FIRST => rkyv::from_bytes::<RecordV1, rkyv::rancor::Error>(&aligned).map(Record::from),
        VERSION_KINDS => rkyv::from_bytes::<RecordV2, rkyv::rancor::Error>(&aligned).map(Record::from),
        _ => rkyv::from_bytes::<Record, rkyv::rancor::Error>(&aligned),
    };
    let record = record.map_err(|_| bad)?;
    let kinds: Option<Vec<Layout>> = record.kinds.iter().map(|words| Layout::parse(words)).collect();
    let names: Option<Vec<Name>> = record.names.iter().map(|words| parse_name(words)).collect();
    Ok(Edit {
        added: record.added.iter().map(FileRecord::meta).collect::<Option<_>>().ok_or(bad)?,
        removed: record.removed,
        checkpoint: record.checkpoint.map(|c| Chain {
            position: c.position,
            index: c.index,
            lsn: c.lsn,
            prev_crc: c.prev_crc,
            term: c.term,
            ingest_ts: c.ingest_ts,
        }),
        publishers: record
            .publishers
            .iter()
            .map(|&PublisherRecord { publisher, epoch, last, lsn, incarnation }| {
                (publisher, PublisherState { epoch, last, lsn, incarnation })
            })
            .collect(),
        names: names.ok_or(bad)?,
        kinds: kinds.ok_or(bad)?,
        expired: record.expired,
    })
}

impl FileRecord {
    fn of(meta: &FileMeta) -> FileRecord {
        let FileMeta { id, kind, window, rows, len, crc, time, lsn } = *meta;
        FileRecord { id, kind, window: (window.from, window.len), rows, len, crc, time, lsn }
    }

    fn meta(&self) -> Option<FileMeta> {
        let FileRecord { id, kind, window: (from, length), rows, len, crc, time, lsn } = *self;
        let window = Window { from, len: length };
        (length > 0 && id < u64::MAX && rows > 0).then_some(FileMeta { id, kind, window, rows, len, crc, time, lsn })
    }
}

/// Name of manifest `number`.
pub fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:012x}")
}

/// The number of the manifest called `name`; `None` if that is not a manifest's name.
pub fn file_number(name: &str) -> Option<u64> {
    let hex = name.strip_prefix(PREFIX)?;
    u64::from_str_radix(hex, 16).ok().filter(|n| file_name(*n) == name)
}

/// The contents of `CURRENT` that name manifest `number`.
pub fn current(number: u64) -> String {
    let name = file_name(number);
    format!("{name} {:08x}\n", crc32c::crc32c(name.as_bytes()))
}

/// The number of the manifest that the `contents` of `CURRENT` name; `None` if they are invalid.
pub fn parse_current(contents: &[u8]) -> Option<u64> {
    let name = std::str::from_utf8(contents).ok()?.split(' ').next()?;
    let number = file_number(name)?;
    (current(number).as_bytes() == contents).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_earlier_versions_are_read() {
        let name: Name = "A:B".parse().unwrap();
        let record = RecordV1 { names: vec![name_words(&name)], removed: vec![7], ..RecordV1::default() };
        let payload = rkyv::to_bytes::<rkyv::rancor::Error>(&record).unwrap();
        let expected = Expected { store_id: 9, previous: None };
        let (mut header, _) = encode(FrameType::Snapshot, 1, 1, expected, &Edit::default());
        (header.version, header.len, header.payload_crc) = (1, payload.len() as u32, crc32c::crc32c(&payload));
        header.seal();
        let header = Header::parse(bytemuck::bytes_of(&header), expected).unwrap();
        let edit = decode(&header, &payload).unwrap();
        assert_eq!(edit, Edit { names: vec![name], removed: vec![7], ..Edit::default() });
        let record = RecordV2 { names: vec![name_words(&name)], removed: vec![8], ..RecordV2::default() };
        let payload = rkyv::to_bytes::<rkyv::rancor::Error>(&record).unwrap();
        let mut second = header;
        (second.version, second.len, second.payload_crc) = (2, payload.len() as u32, crc32c::crc32c(&payload));
        second.seal();
        assert_eq!(decode(&second, &payload).unwrap(), Edit { names: vec![name], removed: vec![8], ..Edit::default() });
        let mut later = header;
        later.version = VERSION + 1;
        later.seal();
        assert_eq!(Header::parse(bytemuck::bytes_of(&later), expected).unwrap_err().what, "manifest version");
    }
}
