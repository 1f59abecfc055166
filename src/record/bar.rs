//! Owns: bars, the prices and volume of an interval: DBN's `OhlcvMsg` with a 128-bit volume. Each
//! interval is a kind of its own, so that the bars of a series are of one length.

use super::{ColumnType, Price, Volume, record};

macro_rules! bar {
    ($name:ident, $kind:literal, $text:literal, $doc:literal) => {
        record! {
            #[doc = $doc]
            /// `ts_event` is when the interval begins, and sorts.
            $name, kind $kind, $text, 64 bytes, index ts_event;
            /// First price.
            open: Price as ColumnType::Price,
            /// Highest price.
            high: Price as ColumnType::Price,
            /// Lowest price.
            low: Price as ColumnType::Price,
            /// Last price.
            close: Price as ColumnType::Price,
            /// Size traded.
            volume: Volume as ColumnType::Volume,
        }
    };
}

bar!(Bar1s, 7, "bar-1s", "Prices and volume of a second.");
bar!(Bar1m, 8, "bar-1m", "Prices and volume of a minute.");
bar!(Bar1h, 9, "bar-1h", "Prices and volume of an hour.");
bar!(Bar1d, 10, "bar-1d", "Prices and volume of a day.");
