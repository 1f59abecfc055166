//! Owns: [`Statistic`], a figure that a venue publishes: DBN's `StatMsg`, version 3.

use super::{ColumnType, Price, record};
use crate::time::Ts;

record! {
    /// A figure of an instrument: settlement, open interest, limits, ... Codes have DBN's meanings.
    Statistic, kind 13, "statistic", 64 bytes, index ts_recv;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The time of the figure; may be null.
    ts_ref: Ts as ColumnType::Ts,
    /// Its price; null if it is not a price.
    price: Price as ColumnType::Price,
    /// Its quantity, in units; the maximum is null.
    quantity: i64 as ColumnType::I64,
    /// The venue's message sequence, its low 32 bits.
    sequence: u32 as ColumnType::U32,
    /// `ts_recv` less the venue's send time, in ns; the maximum is null.
    ts_in_delta: i32 as ColumnType::I32,
    /// Which figure: 1 open, 3 settlement, 9 open interest, ...
    stat_type: u16 as ColumnType::U16,
    /// The venue's channel.
    channel_id: u16 as ColumnType::U16,
    /// 1 new, 2 deleted.
    update_action: u8 as ColumnType::U8,
    /// Further flags of some figures.
    stat_flags: u8 as ColumnType::U8,
    /// Zero.
    reserved: [u8; 2] as ColumnType::Reserved(2),
}
