//! Owns: [`Depth10`], the ten best levels of both sides: DBN's `Mbp10Msg` with 64-bit sizes.

use super::{Char, Column, ColumnType, Kind, Price, Record, Schema, Size, Source, WORDS_MAX};
use crate::lsn::InstrumentId;
use crate::time::Ts;

/// Levels of a [`Depth10`].
pub const LEVELS: usize = 10;

/// One level of both sides of a book. A missing level has null prices.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(repr(C)))]
#[repr(C)]
pub struct Level {
    /// Bid.
    pub bid_px: Price,
    /// Offer.
    pub ask_px: Price,
    /// Size bid.
    pub bid_sz: Size,
    /// Size offered.
    pub ask_sz: Size,
    /// Orders bid; 0 if unknown.
    pub bid_ct: u32,
    /// Orders offered; 0 if unknown.
    pub ask_ct: u32,
}

/// The ten best levels of both sides after an event, with the event's own price and size.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(repr(C)))]
#[repr(C)]
pub struct Depth10 {
    /// The kind: [`Record::KIND`].
    pub kind: Kind,
    /// The venue feed.
    pub source: Source,
    /// The instrument.
    pub instrument: InstrumentId,
    /// Time of the event, by the venue's clock.
    pub ts_event: Ts,
    /// When it was received, by the capturing host's clock.
    pub ts_recv: Ts,
    /// Price of the event.
    pub price: Price,
    /// Size of the event.
    pub size: Size,
    /// The levels, the best first.
    pub levels: [Level; LEVELS],
    /// The venue's message sequence, its low 32 bits.
    pub sequence: u32,
    /// `ts_recv` less the venue's send time, in ns; the maximum is null.
    pub ts_in_delta: i32,
    /// The event's action.
    pub action: Char,
    /// The event's side.
    pub side: Char,
    /// Bits of [`super::flags`].
    pub flags: u8,
    /// Book level of the change.
    pub depth: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

const BYTES: usize = 456;

const _: () = {
    assert!(size_of::<Depth10>() == BYTES && align_of::<Depth10>() == 8 && BYTES / 8 <= WORDS_MAX);
    assert!(size_of::<rkyv::Archived<Depth10>>() == BYTES && size_of::<Level>() == 40);
    assert!(std::mem::offset_of!(Depth10, levels) == std::mem::offset_of!(rkyv::Archived<Depth10>, levels));
    assert!(std::mem::offset_of!(Depth10, sequence) == std::mem::offset_of!(rkyv::Archived<Depth10>, sequence));
};

impl Default for Depth10 {
    /// Null in each field that has a null, zero in the others; the kind is set.
    fn default() -> Self {
        const ABSENT: [u64; BYTES / 8] = Depth10::SCHEMA.absent();
        bytemuck::cast(ABSENT)
    }
}

macro_rules! column {
    ($name:literal, $offset:expr, $of:expr) => {
        Column { name: $name, offset: $offset, of: $of }
    };
}

macro_rules! columns {
    ($($index:literal $suffix:literal),*) => {
        &[
            column!("source", 2, ColumnType::U16),
            column!("instrument", 4, ColumnType::U32),
            column!("ts_event", 8, ColumnType::Ts),
            column!("ts_recv", 16, ColumnType::Ts),
            column!("price", 24, ColumnType::Price),
            column!("size", 32, ColumnType::Size),
            $(
                Column { name: concat!("bid_px_", $suffix), offset: 40 + $index * 40, of: ColumnType::Price },
                Column { name: concat!("ask_px_", $suffix), offset: 48 + $index * 40, of: ColumnType::Price },
                Column { name: concat!("bid_sz_", $suffix), offset: 56 + $index * 40, of: ColumnType::Size },
                Column { name: concat!("ask_sz_", $suffix), offset: 64 + $index * 40, of: ColumnType::Size },
                Column { name: concat!("bid_ct_", $suffix), offset: 72 + $index * 40, of: ColumnType::U32 },
                Column { name: concat!("ask_ct_", $suffix), offset: 76 + $index * 40, of: ColumnType::U32 },
            )*
            column!("sequence", 440, ColumnType::U32),
            column!("ts_in_delta", 444, ColumnType::I32),
            column!("action", 448, ColumnType::Char),
            column!("side", 449, ColumnType::Char),
            column!("flags", 450, ColumnType::U8),
            column!("depth", 451, ColumnType::U8),
            column!("reserved", 452, ColumnType::Reserved(4)),
        ]
    };
}

impl Record for Depth10 {
    const SCHEMA: Schema = Schema::new(
        Kind(6),
        "depth10",
        BYTES / 8,
        2,
        columns!(0 "00", 1 "01", 2 "02", 3 "03", 4 "04", 5 "05", 6 "06", 7 "07", 8 "08", 9 "09"),
        &[],
    );
}
