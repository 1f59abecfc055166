//! Owns: [`Quote`], the best bid and offer. Covers DBN's `Mbp1Msg`, `BboMsg` and `Cmbp1Msg`.

use super::{Char, ColumnType, Price, Size, record};
use crate::time::Ts;

record! {
    /// The best bid and offer after an event, with the event's own price and size if it has them.
    Quote, kind 2, "quote", 96 bytes, index ts_recv;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// Best bid.
    bid_px: Price as ColumnType::Price,
    /// Best offer.
    ask_px: Price as ColumnType::Price,
    /// Size at the best bid.
    bid_sz: Size as ColumnType::Size,
    /// Size at the best offer.
    ask_sz: Size as ColumnType::Size,
    /// Orders at the best bid; 0 if unknown.
    bid_ct: u32 as ColumnType::U32,
    /// Orders at the best offer; 0 if unknown.
    ask_ct: u32 as ColumnType::U32,
    /// Price of the event; null if the event is the quote itself.
    price: Price as ColumnType::Price,
    /// Size of the event; null if the event is the quote itself.
    size: Size as ColumnType::Size,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// `ts_recv` less the venue's send time, in ns; the maximum is null.
    ts_in_delta: i32 as ColumnType::I32,
    /// The event's action.
    action: Char as ColumnType::Char,
    /// The event's side.
    side: Char as ColumnType::Char,
    /// Bits of [`super::flags`].
    flags: u8 as ColumnType::U8,
    /// Book level of the change.
    depth: u8 as ColumnType::U8,
    /// The DBN schema it was imported from; 0 for a quote of a feed.
    variant: u8 as ColumnType::U8,
    /// Zero.
    reserved: [u8; 3] as ColumnType::Reserved(3),
}
