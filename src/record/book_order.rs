//! Owns: [`BookOrder`], one change of a book: an order (DBN's `MboMsg`), or, with
//! [`super::flags::MBP`], a price level.

use super::{Char, ColumnType, Price, Size, record};
use crate::time::Ts;

record! {
    /// One change of an order book.
    BookOrder, kind 3, "book", 64 bytes, index ts_recv, find order_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The venue's order id; the maximum is null (price levels have none).
    order_id: u64 as ColumnType::U64,
    /// Price of the order or level.
    price: Price as ColumnType::Price,
    /// Size of the order or level.
    size: Size as ColumnType::Size,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// `ts_recv` less the venue's send time, in ns; the maximum is null.
    ts_in_delta: i32 as ColumnType::I32,
    /// Bits of [`super::flags`].
    flags: u8 as ColumnType::U8,
    /// The venue's channel.
    channel_id: u8 as ColumnType::U8,
    /// The action.
    action: Char as ColumnType::Char,
    /// Side of the order or level.
    side: Char as ColumnType::Char,
    /// Zero.
    reserved: [u8; 4] as ColumnType::Reserved(4),
}
