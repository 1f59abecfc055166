//! Owns: [`Bust`] and [`Correct`], which void or change a trade. Both are records of their own: the stored
//! trade stays, and readers apply them on request.

use super::{ColumnType, Price, Size, record};
use crate::lsn::Lsn;
use crate::time::Ts;

record! {
    /// Declares a trade void, or withdraws a bust or correction.
    Bust, kind 14, "bust", 48 bytes, index ts_recv, find trade_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The venue's id of the trade.
    trade_id: u64 as ColumnType::U64,
    /// The LSN in this store of the trade, or of the withdrawn bust or correction; 0 if only the trade's id is given.
    trade_lsn: Lsn as ColumnType::U64,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// Reason, a venue's code.
    reason: u16 as ColumnType::U16,
    /// Zero.
    reserved: [u8; 2] as ColumnType::Reserved(2),
}

record! {
    /// Corrects the price or size of a trade.
    Correct, kind 15, "correct", 64 bytes, index ts_recv, find trade_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The venue's id of the trade.
    trade_id: u64 as ColumnType::U64,
    /// The LSN in this store of the trade, or of an earlier correction of it; 0 if only the trade's id is given.
    trade_lsn: Lsn as ColumnType::U64,
    /// The corrected price.
    price: Price as ColumnType::Price,
    /// The corrected size.
    size: Size as ColumnType::Size,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// Reason, a venue's code.
    reason: u16 as ColumnType::U16,
    /// Zero.
    reserved: [u8; 2] as ColumnType::Reserved(2),
}
