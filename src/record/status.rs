//! Owns: [`Status`], the trading status of an instrument: DBN's `StatusMsg`.

use super::{Char, ColumnType, record};
use crate::time::Ts;

record! {
    /// A change of an instrument's trading status. Codes have DBN's meanings.
    Status, kind 11, "status", 40 bytes, index ts_recv;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The change: 7 trading, 8 halt, 9 pause, 12 close, ...
    action: u16 as ColumnType::U16,
    /// Reason.
    reason: u16 as ColumnType::U16,
    /// Further effect on trading.
    trading_event: u16 as ColumnType::U16,
    /// Whether it trades: `Y`, `N`, or `~` for unknown.
    is_trading: Char as ColumnType::Char,
    /// Whether it is quoted: `Y`, `N`, or `~` for unknown.
    is_quoting: Char as ColumnType::Char,
    /// Whether short sales are restricted: `Y`, `N`, or `~` for unknown.
    is_short_sell_restricted: Char as ColumnType::Char,
    /// Zero.
    reserved: [u8; 7] as ColumnType::Reserved(7),
}
