//! Owns: [`Mapping`], a source's number and symbol of an instrument: DBN's `SymbolMappingMsg`, with the
//! number and the data set that DBN keeps elsewhere.

use super::{ColumnType, record};
use crate::time::Ts;

record! {
    /// A source's number and symbol of the instrument, and their validity. `ts_event` is when the mapping
    /// was published, at the latest when it becomes valid, and sorts.
    Mapping, kind 16, "mapping", 200 bytes, index ts_event, find raw_id;
    /// Start of its validity.
    start_ts: Ts as ColumnType::Ts,
    /// End of its validity, exclusive.
    end_ts: Ts as ColumnType::Ts,
    /// The source's number of the instrument (DBN's `instrument_id`).
    raw_id: u64 as ColumnType::U64,
    /// DBN's `stype_in`; 255 is none.
    stype_in: u8 as ColumnType::U8,
    /// DBN's `stype_out`; 255 is none.
    stype_out: u8 as ColumnType::U8,
    /// DBN's code of the data set.
    dataset: [u8; 16] as ColumnType::Text(16),
    /// DBN's `stype_in_symbol`.
    stype_in_symbol: [u8; 71] as ColumnType::Text(71),
    /// DBN's `stype_out_symbol`.
    stype_out_symbol: [u8; 71] as ColumnType::Text(71),
}
