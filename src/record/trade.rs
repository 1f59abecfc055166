//! Owns: [`Trade`], one execution. DBN's `TradeMsg` with a 64-bit size and the venue's trade id.

use super::{Char, ColumnType, Price, Size, record};
use crate::time::Ts;

record! {
    /// One execution.
    Trade, kind 1, "trade", 64 bytes, index ts_recv, find trade_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// Price.
    price: Price as ColumnType::Price,
    /// Size.
    size: Size as ColumnType::Size,
    /// The venue's id of the trade; the maximum is null.
    trade_id: u64 as ColumnType::U64,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// `ts_recv` less the venue's send time, in ns; the maximum is null.
    ts_in_delta: i32 as ColumnType::I32,
    /// Always [`super::action::TRADE`].
    action: Char as ColumnType::Char,
    /// The aggressor's side.
    side: Char as ColumnType::Char,
    /// Bits of [`super::flags`].
    flags: u8 as ColumnType::U8,
    /// Book level of the change.
    depth: u8 as ColumnType::U8,
    /// Zero.
    reserved: [u8; 4] as ColumnType::Reserved(4),
}
