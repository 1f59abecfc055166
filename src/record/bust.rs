//! Owns: [`Bust`] and [`Correct`], which take back or change a trade. Both are records of their own: what
//! was stored stays, and readers apply them when they are asked to.

use super::{ColumnType, Price, Size, record};
use crate::lsn::Lsn;
use crate::time::Ts;

record! {
    /// A trade that is declared void, or a bust or correction that is taken back.
    Bust, kind 14, "bust", 48 bytes, index ts_recv, find trade_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The venue's id of the trade.
    trade_id: u64 as ColumnType::U64,
    /// The LSN in this store of the trade, or of the bust or correction that is taken back; 0 if the trade is known by its
    /// id alone.
    trade_lsn: Lsn as ColumnType::U64,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// Why, a venue's code.
    reason: u16 as ColumnType::U16,
    /// Zero.
    reserved: [u8; 2] as ColumnType::Reserved(2),
}

record! {
    /// A trade whose price or size is declared to have been another.
    Correct, kind 15, "correct", 64 bytes, index ts_recv, find trade_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The venue's id of the trade.
    trade_id: u64 as ColumnType::U64,
    /// The LSN in this store of the trade, or of an earlier correction of it; 0 if it is known by its id alone.
    trade_lsn: Lsn as ColumnType::U64,
    /// Its price from now on.
    price: Price as ColumnType::Price,
    /// Its size from now on.
    size: Size as ColumnType::Size,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// Why, a venue's code.
    reason: u16 as ColumnType::U16,
    /// Zero.
    reserved: [u8; 2] as ColumnType::Reserved(2),
}
