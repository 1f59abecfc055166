//! Owns: the columns of a kind's table in SQL, and what each is made of.
//!
//! | column | Arrow type | made of |
//! |---|---|---|
//! | `symbol` | Dictionary(UInt32, Utf8) | the record's instrument; null for records of no instrument |
//! | `time` | Timestamp(ns), UTC by contract | the index time |
//! | `ts_event`, `ts_recv`, `ingested` | Timestamp(ns) | the record's times, the time of ingest |
//! | `lsn`, `source`, `publisher` | UInt64, UInt16, UInt16 | the LSN, the venue feed, the publisher |
//! | prices, sizes, volumes | Float64 | units of 1e-9 |
//! | the same with `_raw` | Int64, UInt64, Decimal128(38, 0) | the integers that are stored |
//! | characters | Dictionary(UInt8, Utf8) | null for 0 |
//! | text | Utf8 | without the zeros at its end |
//! | other numbers | their own type | |
//!
//! What must hold: what is null in the library, in JSON and in CSV is null here: the maximum of prices, sizes, volumes and
//! times, of lookup columns, and of the built-in kinds' `u64` and `i32` ([`Schema::absent`]).

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use tapestore::record::{Column, ColumnType, Schema};

/// The decimal places of prices, sizes and volumes.
pub const UNITS: f64 = 1e9;

/// What a column of a table is made of.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// The instrument, by its name.
    Symbol,
    /// The index time.
    Time,
    /// The time of ingest.
    Ingested,
    /// The LSN.
    Lsn,
    /// The publisher.
    Publisher,
    /// A field of the record.
    Field {
        /// The field.
        column: Column,
        /// Whether a price, size or volume is a number of 1e-9 units instead of a decimal number.
        is_raw: bool,
        /// Whether the greatest value is null.
        has_null: bool,
    },
}

/// The table of a kind.
#[derive(Debug)]
pub struct KindTable {
    /// The kind.
    pub kind: &'static Schema,
    /// The columns.
    pub arrow: SchemaRef,
    /// What each is made of.
    pub origins: Vec<Origin>,
}

/// The type of all times.
pub const fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, None)
}

/// The type of symbols.
pub fn symbol() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8))
}

/// The type of characters.
pub fn character() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Utf8))
}

/// Whether the greatest value of `column` is null.
fn has_null(kind: &Schema, column: &Column) -> bool {
    match column.of {
        ColumnType::Price | ColumnType::Size | ColumnType::Volume | ColumnType::Ts => true,
        ColumnType::U64 => !kind.kind.is_user() || kind.find.contains(&column.name),
        ColumnType::I32 => !kind.kind.is_user(),
        _ => false,
    }
}

impl KindTable {
    /// The table of `kind`.
    pub fn new(kind: &'static Schema) -> KindTable {
        let mut fields = vec![Field::new("symbol", symbol(), true), Field::new("time", time(), false)];
        let mut origins = vec![Origin::Symbol, Origin::Time];
        let field = |column: &Column, is_raw: bool| {
            let has_null = has_null(kind, column);
            Some((field(column, is_raw, has_null)?, Origin::Field { column: *column, is_raw, has_null }))
        };
        let is_shared = |name: &str| ["ts_event", "ts_recv", "source"].contains(&name);
        let shared = |name: &str| kind.columns.iter().find(|c| c.name == name).and_then(|c| field(c, false));
        for (field, origin) in ["ts_event", "ts_recv"].into_iter().filter_map(shared) {
            fields.push(field);
            origins.push(origin);
        }
        fields.push(Field::new("ingested", time(), false));
        origins.push(Origin::Ingested);
        fields.push(Field::new("lsn", DataType::UInt64, false));
        origins.push(Origin::Lsn);
        if let Some((field, origin)) = shared("source") {
            fields.push(field);
            origins.push(origin);
        }
        fields.push(Field::new("publisher", DataType::UInt16, false));
        origins.push(Origin::Publisher);
        let own = |c: &&Column| !is_shared(c.name) && !["kind", "instrument"].contains(&c.name) && !c.is_reserved();
        for column in kind.columns.iter().filter(own) {
            let is_decimal = matches!(column.of, ColumnType::Price | ColumnType::Size | ColumnType::Volume);
            for is_raw in [false, true].into_iter().take(1 + usize::from(is_decimal)) {
                if let Some((field, origin)) = field(column, is_raw) {
                    fields.push(field);
                    origins.push(origin);
                }
            }
        }
        KindTable { kind, arrow: Arc::new(ArrowSchema::new(fields)), origins }
    }

    /// The table's name among `all` tables: the kind's, with its number if several kinds have one name.
    pub fn name(&self, all: &[Arc<KindTable>]) -> String {
        let name = self.kind.name.replace('-', "_");
        let is_one = all.iter().filter(|other| other.kind.name == self.kind.name).count() <= 1;
        if is_one { name } else { format!("{name}_{:x}", self.kind.kind.0) }
    }
}

fn field(column: &Column, is_raw: bool, has_null: bool) -> Option<Field> {
    let name = if is_raw { format!("{}_raw", column.name) } else { column.name.to_owned() };
    let of = match column.of {
        ColumnType::U8 => DataType::UInt8,
        ColumnType::I8 => DataType::Int8,
        ColumnType::U16 => DataType::UInt16,
        ColumnType::I16 => DataType::Int16,
        ColumnType::U32 => DataType::UInt32,
        ColumnType::I32 => DataType::Int32,
        ColumnType::U64 => DataType::UInt64,
        ColumnType::I64 => DataType::Int64,
        ColumnType::Price if is_raw => DataType::Int64,
        ColumnType::Size if is_raw => DataType::UInt64,
        ColumnType::Volume if is_raw => DataType::Decimal128(38, 0),
        ColumnType::Price | ColumnType::Size | ColumnType::Volume => DataType::Float64,
        ColumnType::Ts => time(),
        ColumnType::Char => return Some(Field::new(name, character(), true)),
        ColumnType::Text(_) => DataType::Utf8,
        ColumnType::Reserved(_) => return None,
    };
    Some(Field::new(name, of, has_null))
}

#[cfg(test)]
mod tests {
    use tapestore::record::SCHEMAS;

    use super::*;

    #[test]
    fn what_the_library_sets_as_absent_is_null_in_sql() {
        for kind in &SCHEMAS {
            let absent: [u64; 128] = kind.absent();
            let bytes: Vec<u8> = absent.iter().flat_map(|word| word.to_le_bytes()).collect();
            for column in kind.columns.iter().filter(|c| c.of.size() >= 4 && !["ts_event", "instrument"].contains(&c.name)) {
                let raw = &bytes[column.offset..column.offset + column.of.size()];
                let (last, rest) = raw.split_last().unwrap();
                let is_greatest = rest.iter().all(|b| *b == 0xff) && (*last == 0xff || *last == 0x7f);
                assert_eq!(has_null(kind, column), is_greatest, "{} {}", kind.name, column.name);
            }
        }
    }

    #[test]
    fn a_table_has_the_columns_of_every_record_and_then_its_own() {
        let trade = KindTable::new(&SCHEMAS[0]);
        let names: Vec<&str> = trade.arrow.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(
            names,
            [
                "symbol",
                "time",
                "ts_event",
                "ts_recv",
                "ingested",
                "lsn",
                "source",
                "publisher",
                "price",
                "price_raw",
                "size",
                "size_raw",
                "trade_id",
                "sequence",
                "ts_in_delta",
                "action",
                "side",
                "flags",
                "depth"
            ]
        );
        assert_eq!(trade.origins.len(), names.len());
    }
}
