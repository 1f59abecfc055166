//! Owns: [`Definition`], an instrument's properties: DBN's `InstrumentDefMsg` (version 3) byte for byte
//! after the shared header, and the store's own two 64-bit sizes at its end.

use super::{Char, ColumnType, Price, Size, record};
use crate::time::Ts;

record! {
    /// An instrument's properties. Fields not described here have DBN's meaning, unit and null.
    Definition, kind 4, "definition", 536 bytes, index ts_recv, find raw_instrument_id;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// Tick size.
    min_price_increment: Price as ColumnType::Price,
    /// DBN's `display_factor`.
    display_factor: Price as ColumnType::Price,
    /// DBN's `expiration`.
    expiration: Ts as ColumnType::Ts,
    /// DBN's `activation`.
    activation: Ts as ColumnType::Ts,
    /// DBN's `high_limit_price`.
    high_limit_price: Price as ColumnType::Price,
    /// DBN's `low_limit_price`.
    low_limit_price: Price as ColumnType::Price,
    /// DBN's `max_price_variation`.
    max_price_variation: Price as ColumnType::Price,
    /// DBN's `unit_of_measure_qty`.
    unit_of_measure_qty: Price as ColumnType::Price,
    /// DBN's `min_price_increment_amount`.
    min_price_increment_amount: Price as ColumnType::Price,
    /// DBN's `price_ratio`.
    price_ratio: Price as ColumnType::Price,
    /// DBN's `strike_price`.
    strike_price: Price as ColumnType::Price,
    /// The venue's own id.
    raw_instrument_id: u64 as ColumnType::U64,
    /// DBN's `leg_price`.
    leg_price: Price as ColumnType::Price,
    /// DBN's `leg_delta`.
    leg_delta: Price as ColumnType::Price,
    /// DBN's `inst_attrib_value`.
    inst_attrib_value: i32 as ColumnType::I32,
    /// DBN's `underlying_id`.
    underlying_id: u32 as ColumnType::U32,
    /// DBN's `market_depth_implied`.
    market_depth_implied: i32 as ColumnType::I32,
    /// DBN's `market_depth`.
    market_depth: i32 as ColumnType::I32,
    /// DBN's `market_segment_id`.
    market_segment_id: u32 as ColumnType::U32,
    /// DBN's `max_trade_vol`.
    max_trade_vol: u32 as ColumnType::U32,
    /// DBN's `min_lot_size`.
    min_lot_size: i32 as ColumnType::I32,
    /// DBN's `min_lot_size_block`.
    min_lot_size_block: i32 as ColumnType::I32,
    /// DBN's `min_lot_size_round_lot`.
    min_lot_size_round_lot: i32 as ColumnType::I32,
    /// DBN's `min_trade_vol`.
    min_trade_vol: u32 as ColumnType::U32,
    /// DBN's `contract_multiplier`.
    contract_multiplier: i32 as ColumnType::I32,
    /// DBN's `decay_quantity`.
    decay_quantity: i32 as ColumnType::I32,
    /// DBN's `original_contract_size`.
    original_contract_size: i32 as ColumnType::I32,
    /// DBN's `leg_instrument_id`.
    leg_instrument_id: u32 as ColumnType::U32,
    /// DBN's `leg_ratio_price_numerator`.
    leg_ratio_price_numerator: i32 as ColumnType::I32,
    /// DBN's `leg_ratio_price_denominator`.
    leg_ratio_price_denominator: i32 as ColumnType::I32,
    /// DBN's `leg_ratio_qty_numerator`.
    leg_ratio_qty_numerator: i32 as ColumnType::I32,
    /// DBN's `leg_ratio_qty_denominator`.
    leg_ratio_qty_denominator: i32 as ColumnType::I32,
    /// DBN's `leg_underlying_id`.
    leg_underlying_id: u32 as ColumnType::U32,
    /// DBN's `appl_id`.
    appl_id: i16 as ColumnType::I16,
    /// DBN's `maturity_year`.
    maturity_year: u16 as ColumnType::U16,
    /// DBN's `decay_start_date`.
    decay_start_date: u16 as ColumnType::U16,
    /// DBN's `channel_id`.
    channel_id: u16 as ColumnType::U16,
    /// DBN's `leg_count`.
    leg_count: u16 as ColumnType::U16,
    /// DBN's `leg_index`.
    leg_index: u16 as ColumnType::U16,
    /// DBN's `currency`.
    currency: [u8; 4] as ColumnType::Text(4),
    /// DBN's `settl_currency`.
    settl_currency: [u8; 4] as ColumnType::Text(4),
    /// DBN's `secsubtype`.
    secsubtype: [u8; 6] as ColumnType::Text(6),
    /// The venue's symbol.
    raw_symbol: [u8; 71] as ColumnType::Text(71),
    /// DBN's `group`.
    group: [u8; 21] as ColumnType::Text(21),
    /// DBN's `exchange`.
    exchange: [u8; 5] as ColumnType::Text(5),
    /// DBN's `asset`.
    asset: [u8; 11] as ColumnType::Text(11),
    /// DBN's `cfi`.
    cfi: [u8; 7] as ColumnType::Text(7),
    /// DBN's `security_type`.
    security_type: [u8; 7] as ColumnType::Text(7),
    /// DBN's `unit_of_measure`.
    unit_of_measure: [u8; 31] as ColumnType::Text(31),
    /// DBN's `underlying`.
    underlying: [u8; 21] as ColumnType::Text(21),
    /// DBN's `strike_price_currency`.
    strike_price_currency: [u8; 4] as ColumnType::Text(4),
    /// DBN's `leg_raw_symbol`.
    leg_raw_symbol: [u8; 71] as ColumnType::Text(71),
    /// DBN's `instrument_class`.
    instrument_class: Char as ColumnType::Char,
    /// DBN's `match_algorithm`.
    match_algorithm: Char as ColumnType::Char,
    /// DBN's `main_fraction`.
    main_fraction: u8 as ColumnType::U8,
    /// DBN's `price_display_format`.
    price_display_format: u8 as ColumnType::U8,
    /// DBN's `sub_fraction`.
    sub_fraction: u8 as ColumnType::U8,
    /// DBN's `underlying_product`.
    underlying_product: u8 as ColumnType::U8,
    /// DBN's `security_update_action`.
    security_update_action: Char as ColumnType::Char,
    /// DBN's `maturity_month`.
    maturity_month: u8 as ColumnType::U8,
    /// DBN's `maturity_day`.
    maturity_day: u8 as ColumnType::U8,
    /// DBN's `maturity_week`.
    maturity_week: u8 as ColumnType::U8,
    /// DBN's `user_defined_instrument`.
    user_defined_instrument: Char as ColumnType::Char,
    /// DBN's `contract_multiplier_unit`.
    contract_multiplier_unit: i8 as ColumnType::I8,
    /// DBN's `flow_schedule_type`.
    flow_schedule_type: i8 as ColumnType::I8,
    /// DBN's `tick_rule`.
    tick_rule: u8 as ColumnType::U8,
    /// DBN's `leg_instrument_class`.
    leg_instrument_class: Char as ColumnType::Char,
    /// DBN's `leg_side`.
    leg_side: Char as ColumnType::Char,
    /// Zero.
    reserved: [u8; 17] as ColumnType::Reserved(17),
    /// Smallest step of a size (the store's own field; null if unknown).
    min_size_increment: Size as ColumnType::Size,
    /// Smallest size of an order (the store's own field; null if unknown).
    min_size: Size as ColumnType::Size,
}
