//! Owns: [`Imbalance`], the indicative state of an auction: DBN's `ImbalanceMsg` with 64-bit sizes.

use super::{Char, ColumnType, Price, Size, record};
use crate::time::Ts;

record! {
    /// The state of an auction. Fields have DBN's meanings.
    Imbalance, kind 12, "imbalance", 128 bytes, index ts_recv;
    /// When it was received, by the capturing host's clock.
    ts_recv: Ts as ColumnType::Ts,
    /// The price that the sizes below are for.
    ref_price: Price as ColumnType::Price,
    /// Time of the auction.
    auction_time: Ts as ColumnType::Ts,
    /// The price at which auction and continuous interest would cross.
    cont_book_clr_price: Price as ColumnType::Price,
    /// The price at which auction interest alone would cross.
    auct_interest_clr_price: Price as ColumnType::Price,
    /// The price at which sell short interest would be filled.
    ssr_filling_price: Price as ColumnType::Price,
    /// The price at which most shares would trade.
    ind_match_price: Price as ColumnType::Price,
    /// Upper bound of the auction's price.
    upper_collar: Price as ColumnType::Price,
    /// Lower bound of the auction's price.
    lower_collar: Price as ColumnType::Price,
    /// Size matched at the reference price.
    paired_qty: Size as ColumnType::Size,
    /// Size not matched at the reference price.
    total_imbalance_qty: Size as ColumnType::Size,
    /// Size of market orders not matched.
    market_imbalance_qty: Size as ColumnType::Size,
    /// Size not matched at all.
    unpaired_qty: Size as ColumnType::Size,
    /// Kind of auction, a venue's code.
    auction_type: Char as ColumnType::Char,
    /// Side of the imbalance.
    side: Char as ColumnType::Char,
    /// State of the auction, a venue's code.
    auction_status: u8 as ColumnType::U8,
    /// Whether it is frozen.
    freeze_status: u8 as ColumnType::U8,
    /// Number of extensions.
    num_extensions: u8 as ColumnType::U8,
    /// Side of the size not matched at all.
    unpaired_side: Char as ColumnType::Char,
    /// Whether the imbalance is large, a venue's code.
    significant_imbalance: Char as ColumnType::Char,
    /// Zero.
    reserved: [u8; 1] as ColumnType::Reserved(1),
}
