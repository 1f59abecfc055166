//! Owns: the byte layout of an SSTable, with every offset, magic and version.
//!
//! The file is an Arrow IPC file (uncompressed, one record batch per block). Our own sections lie in the
//! gap before Arrow's footer, which Arrow readers skip:
//!
//! ```text
//! 0    "ARROW1\0\0" · schema message                                   head
//!      block 0: record batch message, columns                          64-byte aligned, each column too
//!      block 1 ..
//!      end-of-stream mark
//!      sections, each 64-byte aligned:
//!        schema       rkyv archive of `FileSchema`
//!        blocks       160 B a block: `Block`
//!        series       32 B a series, sorted by instrument: `SeriesEntry`
//!        runs         40 B a run of LSNs of one publisher, sorted: `RunEntry`
//!        lsns         `LSNS_DENSE`: 64 B a 448 LSNs: rank u64 · bits; else the LSNs, u64 each, sorted
//!        places       u32 a row in LSN order: block << 12 | row
//!        file bloom   32 B blocks
//!        block blooms 32 B blocks, block after block
//!      trailer 512 B: `Trailer`: magic, version, CRC, ...
//!      Arrow footer · its length u32 · "ARROW1"
//! ```
//!
//! Rows are sorted by (instrument, index time, LSN). A block holds at most 4,096 rows. A series of 4,096
//! rows or more begins a new block; nothing else ends a block early. So row `p` of a series lies `p`
//! rows after its first, counted in full blocks.
//!
//! What must hold: the manifest holds the file's length and its trailer's CRC. The trailer's CRC covers
//! the trailer and everything after it. The trailer holds the CRCs of the head and of each section. The
//! block directory holds the CRC of each block. So every byte is covered, except padding between
//! sections and Arrow's mark of the end of the stream.

use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Column, ColumnType, FIND_MAX, Kind, Schema};
use crate::time::Ts;

/// First and last bytes of an Arrow IPC file.
pub const ARROW_MAGIC: &[u8; 6] = b"ARROW1";
const TRAILER_MAGIC: u64 = u64::from_le_bytes(*b"TAPESST\0");
/// Format version.
pub const VERSION: u32 = 1;
/// Maximum rows of a block.
pub const BLOCK_ROWS: usize = 4096;
/// Alignment of blocks, columns and sections.
pub const ALIGN: u64 = 64;
/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 512;
/// Bytes after Arrow's footer: its length and magic.
pub const TAIL_LEN: u64 = 10;
/// Bits of a Bloom filter per key.
pub const BLOOM_BITS: u64 = 12;
/// LSNs in a line of the dense LSN index: eight words, the first of which is the rank.
pub const LINE_LSNS: u64 = 448;
/// Number of sections.
pub const SECTIONS: usize = 8;
/// Extension of the files, which data tools recognise.
pub const EXTENSION: &str = "arrow";

/// Columns before the record's own: LSN and ingest time.
pub const OWN_COLUMNS: [(&str, ColumnType); 2] = [("lsn", ColumnType::U64), ("ingest_ts", ColumnType::Ts)];

/// Trailer flag: the kind's reserved bytes are not all zero, so they are stored.
pub const STORES_RESERVED: u32 = 1;
/// Trailer flag: the LSN index is dense.
pub const LSNS_DENSE: u32 = 2;
/// Block flag: some row sorts by its ingest time.
pub const BY_INGEST: u32 = 1;

/// A section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    /// The kind's layout at the time of writing.
    Schema = 0,
    /// The block directory.
    Blocks = 1,
    /// The series index.
    Series = 2,
    /// The run table.
    Runs = 3,
    /// The LSN index.
    Lsns = 4,
    /// The place of each row, in LSN order.
    Places = 5,
    /// The file's Bloom filter.
    FileBloom = 6,
    /// The blocks' Bloom filters.
    BlockBlooms = 7,
}

/// Location of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// CRC of those bytes.
    pub crc: u32,
    /// Zero.
    pub reserved: u32,
}

/// Minimum and maximum of some values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Bounds {
    /// The minimum.
    pub min: u64,
    /// The maximum.
    pub max: u64,
}

impl Bounds {
    /// The bounds of no values.
    pub const NONE: Bounds = Bounds { min: u64::MAX, max: 0 };

    /// Extends the bounds to `value`.
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Extends the bounds to those of `other`.
    pub fn merge(&mut self, other: Bounds) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Whether `value` lies within the bounds.
    #[inline]
    pub fn contains(&self, value: u64) -> bool {
        self.min <= value && value <= self.max
    }
}

/// Describes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Trailer {
    magic: u64,
    version: u32,
    crc: u32,
    /// The store, low half first.
    pub store_id: [u64; 2],
    /// Number of the file in its store.
    pub id: u64,
    /// [`STORES_RESERVED`], [`LSNS_DENSE`].
    pub flags: u32,
    /// The kind of all records.
    pub kind: Kind,
    reserved: u16,
    /// First index time of its window.
    pub window_from: u64,
    /// Length of its window, ns.
    pub window_len: u64,
    /// Rows.
    pub rows: u64,
    /// Index times.
    pub time: Bounds,
    /// Event times.
    pub event: Bounds,
    /// LSNs.
    pub lsn: Bounds,
    /// The head: from the start of the file to the first block.
    pub head: Extent,
    /// The sections.
    pub sections: [Extent; SECTIONS],
    zero: [u64; 22],
}

/// A block's entry in the block directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Block {
    /// Offset of the message in the file.
    pub offset: u64,
    /// Bytes of the columns.
    pub body_len: u64,
    /// Bytes of the message before the columns.
    pub meta_len: u32,
    /// Rows.
    pub rows: u32,
    /// CRC of message and columns.
    pub crc: u32,
    /// [`BY_INGEST`].
    pub flags: u32,
    /// First 32-byte line of its Bloom filter.
    pub bloom: u32,
    /// Number of 32-byte lines of its Bloom filter.
    pub bloom_len: u32,
    /// Index times.
    pub time: Bounds,
    /// Event times.
    pub event: Bounds,
    /// LSNs.
    pub lsn: Bounds,
    /// Values of the lookup columns, without nulls.
    pub find: [Bounds; FIND_MAX],
    /// Number of rows in the blocks before it.
    pub first_row: u64,
}

/// A series' entry in the series index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SeriesEntry {
    /// The instrument.
    pub instrument: InstrumentId,
    /// Rows.
    pub rows: u32,
    /// Block of the first row.
    pub block: u32,
    /// The first row within that block.
    pub row: u32,
    /// Index times.
    pub time: Bounds,
}

/// Rows of one publisher. Every row of the file whose LSN lies in the run is from this publisher, with
/// the number `first_pub_seq + (LSN - first)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RunEntry {
    /// LSN of its first row.
    pub first: Lsn,
    /// LSN of its last row.
    pub last: Lsn,
    /// The publisher's number of the first row.
    pub first_pub_seq: PubSeq,
    /// The publisher's epoch.
    pub epoch: Epoch,
    /// The publisher.
    pub publisher: PublisherId,
    reserved: u16,
    zero: u64,
}

impl RunEntry {
    /// A run of one row.
    pub fn new(lsn: Lsn, publisher: PublisherId, epoch: Epoch, pub_seq: PubSeq) -> RunEntry {
        RunEntry { first: lsn, last: lsn, first_pub_seq: pub_seq, epoch, publisher, reserved: 0, zero: 0 }
    }
}

/// A kind's layout at the time of writing.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct FileSchema {
    /// The kind.
    pub kind: u16,
    /// Words of a record.
    pub words: u32,
    /// Word of the index time.
    pub index_word: u32,
    /// The kind's name.
    pub name: String,
    /// Name, offset in the record, type code and bytes of each column.
    pub columns: Vec<(String, u32, u32, u32)>,
    /// Names of the lookup columns.
    pub find: Vec<String>,
}

const _: () = {
    assert!(size_of::<Trailer>() == TRAILER_LEN && size_of::<Block>() == 160);
    assert!(size_of::<SeriesEntry>() == 32 && size_of::<RunEntry>() == 40 && size_of::<Extent>() == 24);
    assert!(BLOCK_ROWS == 1 << PLACE_ROW_BITS);
};

impl FileSchema {
    /// The layout of `schema`.
    pub fn of(schema: &Schema) -> FileSchema {
        let column = |c: &Column| (c.name.to_owned(), c.offset as u32, u32::from(c.of.code()), c.of.size() as u32);
        FileSchema {
            kind: schema.kind.0,
            words: schema.words as u32,
            index_word: schema.index_word as u32,
            name: schema.name.to_owned(),
            columns: schema.columns.iter().map(column).collect(),
            find: schema.find.iter().map(|n| (*n).to_owned()).collect(),
        }
    }
}

/// A column of a file and the bytes of the record it holds. LSN and ingest time are not part of the
/// record.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub of: ColumnType,
    /// Byte offset in the record, if it is part of the record.
    pub offset: Option<usize>,
}

/// The columns of a file of `schema`, in order.
pub fn stored_columns(schema: &'static Schema, stores_reserved: bool) -> Vec<Stored> {
    let own = OWN_COLUMNS.iter().map(|&(name, of)| Stored { name, of, offset: None });
    let kept = schema.columns.iter().filter(|c| stores_reserved || !c.is_reserved());
    own.chain(kept.map(|c| Stored { name: c.name, of: c.of, offset: Some(c.offset) })).collect()
}

/// Offsets of the columns in the body of a block of `rows` rows, and the body's length.
pub fn column_offsets(columns: &[Stored], rows: usize) -> (Vec<u64>, u64) {
    let mut at = 0;
    let offsets = columns.iter().map(|c| {
        let here = at;
        at += ((rows * c.of.size()) as u64).next_multiple_of(ALIGN);
        here
    });
    (offsets.collect(), at)
}

const PLACE_ROW_BITS: u32 = 12;

/// The place of row `row` in block `block`.
pub fn place(block: u32, row: u32) -> u32 {
    debug_assert!(row < BLOCK_ROWS as u32 && block < 1 << (32 - PLACE_ROW_BITS));
    block << PLACE_ROW_BITS | row
}

/// Block and row of a place.
pub fn unplace(place: u32) -> (u32, u32) {
    (place >> PLACE_ROW_BITS, place & (BLOCK_ROWS as u32 - 1))
}

/// Maximum blocks of a file. The highest place is reserved as "none".
pub const BLOCKS_MAX: usize = (1 << (32 - PLACE_ROW_BITS)) - 1;

/// Why a trailer is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTrailer {
    /// The magic is this instead.
    Foreign(u64),
    /// The version is not supported.
    Version(u32),
    /// A CRC or a field is wrong.
    Bad {
        /// The field.
        what: &'static str,
        /// The expected value.
        expected: u64,
        /// The value found.
        found: u64,
    },
}

impl Trailer {
    /// A trailer without sections.
    pub fn new(store_id: u128, id: u64, kind: Kind, window_from: Ts, window_len: u64) -> Trailer {
        Trailer {
            magic: TRAILER_MAGIC,
            version: VERSION,
            store_id: [store_id as u64, (store_id >> 64) as u64],
            id,
            kind,
            window_from: window_from.0,
            window_len,
            time: Bounds::NONE,
            event: Bounds::NONE,
            lsn: Bounds::NONE,
            ..bytemuck::Zeroable::zeroed()
        }
    }

    /// Sets the CRC over the trailer and `rest`, the bytes after it in the file; returns it.
    pub fn seal(&mut self, rest: &[u8]) -> u32 {
        self.crc = 0;
        self.crc = crc32c::crc32c_append(crc32c::crc32c(bytemuck::bytes_of(self)), rest);
        self.crc
    }

    /// Parses the trailer at the start of `bytes`, which extend to the end of the file and are not
    /// trusted.
    ///
    /// # Errors
    /// The first mismatch.
    pub fn parse(bytes: &[u8]) -> Result<Trailer, BadTrailer> {
        let (raw, rest) = bytes.split_at_checked(TRAILER_LEN).ok_or(BadTrailer::Foreign(0))?;
        let trailer: Trailer = bytemuck::pod_read_unaligned(raw);
        if trailer.magic != TRAILER_MAGIC {
            return Err(BadTrailer::Foreign(trailer.magic));
        }
        let mut sealed = trailer;
        if sealed.seal(rest) != trailer.crc {
            return Err(BadTrailer::Bad { what: "trailer CRC", expected: u64::from(sealed.crc), found: u64::from(trailer.crc) });
        }
        if trailer.version != VERSION {
            return Err(BadTrailer::Version(trailer.version));
        }
        Ok(trailer)
    }

    /// The trailer's CRC.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// The location of section `which`.
    pub fn section(&self, which: Section) -> Extent {
        self.sections.get(which as usize).copied().unwrap_or_default()
    }
}

/// The hash of an id in a Bloom filter: XXH3-64 over instrument u32, column u32 (its index among the
/// lookup columns), id u64. Part of the format.
#[inline]
pub fn find_hash(instrument: InstrumentId, column: u32, id: u64) -> u64 {
    let head = u64::from(instrument.0) | u64::from(column) << 32;
    xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&[head, id]))
}

/// The null id, which is in no filter.
pub const ID_NULL: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, SCHEMAS, Trade};

    #[test]
    fn every_flipped_bit_of_a_trailer_and_of_the_bytes_after_it_is_detected() {
        let mut trailer = Trailer::new(7, 3, Trade::KIND, Ts(5), 10);
        let rest = [9u8; 30];
        trailer.seal(&rest);
        let mut bytes = bytemuck::bytes_of(&trailer).to_vec();
        bytes.extend(rest);
        assert_eq!(Trailer::parse(&bytes), Ok(trailer));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::parse(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Trailer::parse(&bytes[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn the_hash_of_the_format_is_unchanged() {
        // If these numbers change, the format changes.
        assert_eq!(find_hash(InstrumentId(1), 0, 1), 7829500774778939558);
        assert_eq!(find_hash(InstrumentId(7), 1, u64::MAX - 1), 943748129443241023);
    }

    #[test]
    fn columns_are_aligned_and_do_not_overlap() {
        for schema in &SCHEMAS {
            let columns = stored_columns(schema, true);
            let (offsets, len) = column_offsets(&columns, 100);
            for (i, column) in columns.iter().enumerate() {
                let end = offsets.get(i + 1).copied().unwrap_or(len);
                assert!(offsets[i].is_multiple_of(ALIGN) && offsets[i] + 100 * column.of.size() as u64 <= end);
            }
            let bytes: usize = columns.iter().filter(|c| c.offset.is_some()).map(|c| c.of.size()).sum();
            assert_eq!(bytes + 2, schema.words * 8, "all but the kind");
        }
    }
}
