//! Owns: the default of a record: null in each field that has a null, zero in the others.
//!
//! What must hold: a field that a program forgets to set never reads as a price, a size or a time that somebody measured.

use super::user::is_one_of;
use super::{ColumnType, Schema};

impl Schema {
    /// The words of a record of this kind, of which only the kind is set. A price, size, volume or time is null; so is an id, and
    /// in built-in kinds every `u64` and `i32`. The instrument is 0, which no instrument has.
    #[doc(hidden)]
    #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler: an index out of bounds does not compile")]
    pub const fn absent<const WORDS: usize>(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = self.kind.0 as u64;
        let mut rest = self.columns;
        while let Some((column, tail)) = rest.split_first() {
            let at = column.offset / 8;
            match column.of {
                ColumnType::Price => words[at] = i64::MAX as u64,
                ColumnType::Size | ColumnType::Ts => words[at] = u64::MAX,
                ColumnType::Volume => (words[at], words[at + 1]) = (u64::MAX, u64::MAX),
                ColumnType::U64 if !self.kind.is_user() || is_one_of(column.name, self.find) => words[at] = u64::MAX,
                ColumnType::I32 if !self.kind.is_user() => words[at] |= (i32::MAX as u64) << (column.offset % 8 * 8),
                _ => {}
            }
            rest = tail;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use crate::record::{Definition, Depth10, Kind, Price, Quote, Record, RecordRef, SCHEMAS, Size, Trade, Value};
    use crate::time::Ts;

    #[test]
    fn a_default_is_null_in_every_field_that_has_a_null() {
        let trade = Trade::default();
        assert_eq!((trade.kind, trade.instrument.0, trade.source, trade.sequence), (Trade::KIND, 0, 0, 0));
        assert_eq!((trade.price, trade.size, trade.ts_event, trade.ts_recv), (Price::NULL, Size::NULL, Ts::NULL, Ts::NULL));
        assert_eq!((trade.trade_id, trade.ts_in_delta), (u64::MAX, i32::MAX));
        assert!(Depth10::default().levels.iter().all(|l| (l.bid_px, l.ask_px) == (Price::NULL, Price::NULL)));
        let (quote, definition) = (Quote::default(), Definition::default());
        for record in [RecordRef::of(&trade), RecordRef::of(&quote), RecordRef::of(&definition)] {
            for (column, value) in record.values() {
                let is_null = match value {
                    Value::Price(v) => v == Price::NULL,
                    Value::Size(v) => v == Size::NULL,
                    Value::Ts(v) => v == Ts::NULL,
                    _ => true,
                };
                assert!(is_null, "{} of {:?}", column.name, record.kind());
            }
        }
    }

    #[test]
    fn the_default_of_a_program_s_own_kind_is_null_in_prices_times_and_ids_and_zero_in_numbers() {
        #[derive(Clone, Copy, Debug, Record)]
        #[repr(C)]
        #[record(kind = 0x80f7, name = "absent", find(order_id))]
        struct Own {
            kind: Kind,
            source: u16,
            instrument: crate::lsn::InstrumentId,
            ts_event: Ts,
            order_id: u64,
            count: u64,
            fair: [Price; 2],
            change: i32,
            model: [u8; 4],
        }
        let own = Own::default();
        assert_eq!((own.kind, own.order_id, own.count, own.change), (Own::KIND, u64::MAX, 0, 0));
        assert_eq!((own.fair, own.ts_event, own.model), ([Price::NULL; 2], Ts::NULL, [0; 4]));
        assert_eq!((own.source, own.instrument.0), (0, 0));
    }

    #[test]
    fn every_built_in_kind_has_reserved_bytes_of_zero_in_its_default() {
        for schema in &SCHEMAS {
            let words: [u64; crate::record::WORDS_MAX] = schema.absent();
            for column in schema.columns.iter().filter(|c| c.is_reserved()) {
                let bytes: &[u8] = bytemuck::cast_slice(&words);
                assert!(bytes[column.offset..column.offset + column.of.size()].iter().all(|b| *b == 0), "{}", schema.name);
            }
        }
    }
}
