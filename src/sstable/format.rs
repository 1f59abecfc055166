//! Owns: the bytes of an SSTable. Every offset, magic and version of the file is here.
//!
//! The file is an Arrow IPC file (uncompressed, one record batch a block) with our own sections in the
//! gap before Arrow's footer, which Arrow readers do not look at:
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
//!      trailer 512 B
//!      Arrow footer · its length u32 · "ARROW1"
//! ```
//!
//! Rows are sorted by (instrument, index time, LSN). A block holds at most 4,096 rows; a series of 4,096
//! rows or more begins a block of its own, and only such a beginning ends a block early: so row `p` of
//! a series lies `p` rows after its first, counted in full blocks.
//!
//! What must hold: the manifest knows the file's length and its trailer's CRC; the trailer's CRC covers
//! itself and all that follows it; the trailer has the CRC of the head and of each section; the block
//! directory has the CRC of each block. So every byte but padding between sections is covered.

use crate::lsn::{Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use crate::record::{Column, ColumnType, FIND_MAX, Kind, Schema};
use crate::time::Ts;

/// First and last bytes of an Arrow IPC file.
pub const ARROW_MAGIC: &[u8; 6] = b"ARROW1";
const TRAILER_MAGIC: u64 = u64::from_le_bytes(*b"TAPESST\0");
/// Version of the format.
pub const VERSION: u32 = 1;
/// Rows of a block at most.
pub const BLOCK_ROWS: usize = 4096;
/// Alignment of blocks, columns and sections.
pub const ALIGN: u64 = 64;
/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 512;
/// Bytes after Arrow's footer: its length and the magic.
pub const TAIL_LEN: u64 = 10;
/// Bits of a Bloom filter for a key.
pub const BLOOM_BITS: u64 = 12;
/// LSNs in a line of the dense LSN index: eight words, of which the first is the rank.
pub const LINE_LSNS: u64 = 448;
/// Sections.
pub const SECTIONS: usize = 8;
/// Extension of the files: data tools know it.
pub const EXTENSION: &str = "arrow";

/// Columns that stand before the record's own: LSN and ingest time.
pub const OWN_COLUMNS: [(&str, ColumnType); 2] = [("lsn", ColumnType::U64), ("ingest_ts", ColumnType::Ts)];

/// Flag of a trailer: bytes that should be zero are not, so they are stored.
pub const STORES_RESERVED: u32 = 1;
/// Flag of a trailer: the LSN index is dense.
pub const LSNS_DENSE: u32 = 2;
/// Flag of a block: some row sorts by its ingest time.
pub const BY_INGEST: u32 = 1;

/// Which section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    /// The kind's layout when the file was written.
    Schema = 0,
    /// The block directory.
    Blocks = 1,
    /// The series index.
    Series = 2,
    /// The run table.
    Runs = 3,
    /// The LSN index.
    Lsns = 4,
    /// Rows in LSN order.
    Places = 5,
    /// The file's Bloom filter.
    FileBloom = 6,
    /// The blocks' Bloom filters.
    BlockBlooms = 7,
}

/// Where a section lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// CRC of them.
    pub crc: u32,
    /// Zero.
    pub reserved: u32,
}

/// The least and the greatest of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Bounds {
    /// The least.
    pub min: u64,
    /// The greatest.
    pub max: u64,
}

impl Bounds {
    /// Of nothing.
    pub const NONE: Bounds = Bounds { min: u64::MAX, max: 0 };

    /// Takes in `value`.
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Takes in everything of `other`.
    pub fn merge(&mut self, other: Bounds) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Whether `value` lies between.
    #[inline]
    pub fn contains(&self, value: u64) -> bool {
        self.min <= value && value <= self.max
    }
}

/// The file's own description of itself.
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
    /// The kind of all its records.
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
    /// The head: from the beginning to the first block.
    pub head: Extent,
    /// The sections.
    pub sections: [Extent; SECTIONS],
    zero: [u64; 22],
}

/// A block, as the directory has it.
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
    /// First 32-byte block of its Bloom filter.
    pub bloom: u32,
    /// 32-byte blocks of its Bloom filter.
    pub bloom_len: u32,
    /// Index times.
    pub time: Bounds,
    /// Event times.
    pub event: Bounds,
    /// LSNs.
    pub lsn: Bounds,
    /// Values of the columns to find by, nulls aside.
    pub find: [Bounds; FIND_MAX],
    /// Rows of the blocks before.
    pub first_row: u64,
}

/// A series, as the index has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SeriesEntry {
    /// The instrument.
    pub instrument: InstrumentId,
    /// Rows.
    pub rows: u32,
    /// Block of the first row.
    pub block: u32,
    /// Its row there.
    pub row: u32,
    /// Index times.
    pub time: Bounds,
}

/// Rows of one publisher: each row of the file whose LSN lies in the run came from it, with the number
/// `first_pub_seq + (LSN - first)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RunEntry {
    /// LSN of its first row.
    pub first: Lsn,
    /// LSN of its last row.
    pub last: Lsn,
    /// Number of the first row.
    pub first_pub_seq: PubSeq,
    /// The publisher's epoch.
    pub epoch: Epoch,
    /// Who.
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

/// A kind's layout as it was when the file was written.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct FileSchema {
    /// The kind.
    pub kind: u16,
    /// Words of a record.
    pub words: u32,
    /// Word of the time that sorts.
    pub index_word: u32,
    /// The kind's name.
    pub name: String,
    /// Name, offset in the record, type code and bytes of each column.
    pub columns: Vec<(String, u32, u32, u32)>,
    /// Names of the columns to find by.
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

/// A column in a file: which of the record's bytes it holds. LSN and ingest time hold none.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub of: ColumnType,
    /// Byte offset in the record.
    pub offset: Option<usize>,
}

/// The columns of a file of `schema`, in their order.
pub fn stored_columns(schema: &'static Schema, stores_reserved: bool) -> Vec<Stored> {
    let own = OWN_COLUMNS.iter().map(|&(name, of)| Stored { name, of, offset: None });
    let kept = schema.columns.iter().filter(|c| stores_reserved || !c.is_reserved());
    own.chain(kept.map(|c| Stored { name: c.name, of: c.of, offset: Some(c.offset) })).collect()
}

/// Where the columns of a block of `rows` rows begin in its body, and its length.
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

/// The place of row `row` of block `block`.
pub fn place(block: u32, row: u32) -> u32 {
    debug_assert!(row < BLOCK_ROWS as u32 && block < 1 << (32 - PLACE_ROW_BITS));
    block << PLACE_ROW_BITS | row
}

/// Block and row of a place.
pub fn unplace(place: u32) -> (u32, u32) {
    (place >> PLACE_ROW_BITS, place & (BLOCK_ROWS as u32 - 1))
}

/// Blocks of a file at most: the last place of all is none.
pub const BLOCKS_MAX: usize = (1 << (32 - PLACE_ROW_BITS)) - 1;

/// What is asked of a trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTrailer {
    /// It begins with this.
    Foreign(u64),
    /// Of this version.
    Version(u32),
    /// A CRC or a field is wrong.
    Bad {
        /// Which.
        what: &'static str,
        /// What it demands.
        expected: u64,
        /// What is there.
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

    /// Sets the CRC, over the trailer and `rest`, what follows it in the file; gives it.
    pub fn seal(&mut self, rest: &[u8]) -> u32 {
        self.crc = 0;
        self.crc = crc32c::crc32c_append(crc32c::crc32c(bytemuck::bytes_of(self)), rest);
        self.crc
    }

    /// The trailer in `bytes`, which go on to the end of the file and are not trusted.
    ///
    /// # Errors
    /// What does not fit.
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

    /// Its CRC.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Where section `which` lies.
    pub fn section(&self, which: Section) -> Extent {
        self.sections.get(which as usize).copied().unwrap_or_default()
    }
}

/// The hash of an id in a Bloom filter: XXH3-64 over instrument u32, column u32 (its place among the
/// columns to find by), id u64. Part of the format.
#[inline]
pub fn find_hash(instrument: InstrumentId, column: u32, id: u64) -> u64 {
    let head = u64::from(instrument.0) | u64::from(column) << 32;
    xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&[head, id]))
}

/// An id that is null is in no filter.
pub const ID_NULL: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, SCHEMAS, Trade};

    #[test]
    fn every_flipped_bit_of_a_trailer_and_of_what_follows_it_is_detected() {
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
    fn the_hash_of_the_format_is_what_it_was() {
        // A change of these numbers is a change of the format.
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
