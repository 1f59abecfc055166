//! Owns: records, the fixed layouts of market events, and their checked access.
//!
//! What must hold: every record is `repr(C)`, 8-byte aligned, little-endian and without padding,
//! begins with the same 16 bytes (kind, source, instrument, `ts_event`), and its rkyv archive has the
//! size of its memory. A kind id names one layout for ever. Fields and meanings follow Databento's
//! DBN version 3 (crate `dbn`), with 64-bit sizes. The page `contributing` lists what a new kind needs: a file
//! with a `record!` block, lines here and in `user`, the help, the pages. Programs define their own kinds by a
//! derive.

pub mod fixed;
pub mod name;
mod near;

mod bar;
mod book_order;
mod bust;
mod column;
mod definition;
mod depth10;
mod gap;
mod imbalance;
mod mapping;
mod quote;
mod statistic;
mod status;
mod stored;
mod trade;
mod user;

use crate::error::{Error, Result};
use crate::lsn::InstrumentId;
use crate::time::Ts;

pub use bar::{Bar1d, Bar1h, Bar1m, Bar1s};
pub use book_order::BookOrder;
pub use bust::{Bust, Correct};
pub use column::{Column, ColumnType, Field, Value};
pub use definition::Definition;
pub use depth10::{Depth10, LEVELS, Level};
pub use fixed::{Price, Size, Volume};
pub use gap::Gap;
pub use imbalance::Imbalance;
pub use mapping::Mapping;
pub use name::Name;
pub use near::near_kind;
pub use quote::Quote;
pub use statistic::Statistic;
pub use status::Status;
pub use stored::{Arrival, Row, Series, TimeRange};
pub use tapestore_derive::Record;
pub use trade::Trade;
pub use user::forget;
pub use user::{COLUMNS_MAX, KIND_NAME_MAX, LAYOUT_WORDS_MAX, Layout, USER_FIRST, USER_MAX, assert_layout, user_kinds};
#[cfg(test)]
pub(crate) use user::{example_layout, plain};

/// The id of a record's layout.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bytemuck::Pod,
    bytemuck::Zeroable,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[repr(transparent)]
pub struct Kind(pub u16);

/// Words (8 bytes) of the shortest record: the shared header.
#[doc(hidden)]
pub const WORDS_MIN: usize = 2;

/// Words of the longest record that a store accepts.
#[doc(hidden)]
pub const WORDS_MAX: usize = 128;

/// A venue feed (DBN's `publisher_id`).
pub type Source = u16;

/// One character of DBN's char enums (side, action); `0` is none.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    bytemuck::Pod,
    bytemuck::Zeroable,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[repr(transparent)]
pub struct Char(pub u8);

/// Side of an order; for trades, the aggressor's.
pub mod side {
    use super::Char;
    /// Sell, or the ask side of the book.
    pub const ASK: Char = Char(b'A');
    /// Buy, or the bid side of the book.
    pub const BID: Char = Char(b'B');
    /// Neither or unknown.
    pub const NONE: Char = Char(b'N');
}

/// The action of a change of an order or a level.
pub mod action {
    use super::Char;
    /// A new order or level.
    pub const ADD: Char = Char(b'A');
    /// The order or level has this new size.
    pub const MODIFY: Char = Char(b'M');
    /// The order or level is removed; an order may also be reduced by this size.
    pub const CANCEL: Char = Char(b'C');
    /// The whole book is cleared.
    pub const CLEAR: Char = Char(b'R');
    /// A trade; the book is unaffected.
    pub const TRADE: Char = Char(b'T');
    /// An order was filled; the book is unaffected.
    pub const FILL: Char = Char(b'F');
    /// None.
    pub const NONE: Char = Char(b'N');
}

/// Bits of the `flags` column, as in DBN.
pub mod flags {
    /// Last record of an event for its instrument.
    pub const LAST: u8 = 0x80;
    /// Top of book only.
    pub const TOB: u8 = 0x40;
    /// From a snapshot or a replay of the venue.
    pub const SNAPSHOT: u8 = 0x20;
    /// An aggregated price level, not an order.
    pub const MBP: u8 = 0x10;
    /// `ts_recv` is unreliable.
    pub const BAD_TS_RECV: u8 = 0x08;
    /// The book may be wrong after an unrecovered gap.
    pub const MAYBE_BAD_BOOK: u8 = 0x04;
}

/// The first 16 bytes of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[doc(hidden)]
pub struct Header {
    /// The record's layout.
    pub kind: Kind,
    /// The venue feed.
    pub source: Source,
    /// The instrument.
    pub instrument: InstrumentId,
    /// Time of the event, by the venue's clock.
    pub ts_event: Ts,
}

const _: () = assert!(size_of::<Header>() == 16 && align_of::<Header>() == 8);

/// A kind's layout, for programs that do not have the kind's type.
#[derive(Debug)]
pub struct Schema {
    /// The kind.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// Length of a record in words of 8 bytes.
    pub words: usize,
    /// Word of the time that sorts records of this kind: `ts_recv` if the kind has it, else `ts_event`.
    pub index_word: usize,
    /// The fields, in layout order.
    pub columns: &'static [Column],
    /// Names of the 64-bit id columns for lookups.
    pub find: &'static [&'static str],
    /// A hash of the fields above: two layouts with the same hash are the same.
    pub hash: u64,
}

/// Columns that tables of rows add to a kind's own; no column of a kind may have these names.
#[doc(hidden)]
pub const ADDED_COLUMNS: [&str; 3] = ["lsn", "index_time", "kind"];

/// Most id columns of a kind.
#[doc(hidden)]
pub const FIND_MAX: usize = 4;

/// FNV-1a, computable at compile time.
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        rest = tail;
    }
    // A terminator that is no byte, so that adjacent names stay distinct.
    (hash ^ 0x100).wrapping_mul(0x0000_0100_0000_01b3)
}

impl Schema {
    /// The words of a record of which only the kind is set: the default of its struct. A price, size, volume or time is null; so
    /// is an id, and in built-in kinds every `u64` and `i32`. So a field that a program forgets to set never reads as something
    /// measured. The instrument is 0, which no instrument has.
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
                ColumnType::U64 if !self.kind.is_user() || user::is_one_of(column.name, self.find) => words[at] = u64::MAX,
                ColumnType::I32 if !self.kind.is_user() => words[at] |= (i32::MAX as u64) << (column.offset % 8 * 8),
                _ => {}
            }
            rest = tail;
        }
        words
    }

    /// The layout of `kind`, called `name`, of `words` words, sorted by word `index_word`.
    pub const fn new(
        kind: Kind,
        name: &'static str,
        words: usize,
        index_word: usize,
        columns: &'static [Column],
        find: &'static [&'static str],
    ) -> Schema {
        let mut hash = fnv(0xcbf2_9ce4_8422_2325, name.as_bytes());
        hash = fnv(hash, &kind.0.to_le_bytes());
        hash = fnv(hash, &(words as u64).to_le_bytes());
        hash = fnv(hash, &(index_word as u64).to_le_bytes());
        let mut rest = columns;
        while let Some((column, tail)) = rest.split_first() {
            hash = fnv(hash, column.name.as_bytes());
            hash = fnv(hash, &(column.offset as u64).to_le_bytes());
            hash = fnv(hash, &[column.of.code()]);
            hash = fnv(hash, &(column.of.size() as u64).to_le_bytes());
            rest = tail;
        }
        let mut rest = find;
        while let Some((name, tail)) = rest.split_first() {
            hash = fnv(hash, name.as_bytes());
            rest = tail;
        }
        Schema { kind, name, words, index_word, columns, find, hash }
    }

    /// Columns without meaning, which should be zero.
    #[doc(hidden)]
    pub fn reserved(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| c.is_reserved())
    }

    /// The id columns for lookups, in the order of [`Schema::find`].
    pub fn find_columns(&self) -> impl Iterator<Item = &Column> {
        self.find.iter().filter_map(|name| self.column(name))
    }

    /// The column called `name`.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}

/// A record type: `repr(C)`, no padding, beginning with the [`Header`]. Programs define their own by
/// `#[derive(Record)]`; see the [crate's documentation](crate).
pub trait Record: bytemuck::Pod {
    /// The kind's layout.
    const SCHEMA: Schema;
    /// The same, as a static reference.
    const SCHEMA_REF: &'static Schema = &Self::SCHEMA;
    /// The kind.
    const KIND: Kind = Self::SCHEMA.kind;

    /// The record as words.
    fn words(&self) -> &[u64] {
        bytemuck::cast_slice(std::slice::from_ref(self))
    }
}

/// Declares a record: the struct, its layout assertions and its schema.
macro_rules! record {
    (
        $(#[$doc:meta])*
        $name:ident, kind $kind:literal, $text:literal, $size:literal bytes, index $index:ident $(, find $find:ident)*;
        $( $(#[$field_doc:meta])* $field:ident: $type:ty as $column:expr, )*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        #[rkyv(attr(repr(C)))]
        #[repr(C)]
        pub struct $name {
            /// The kind: [`Record::KIND`](crate::record::Record::KIND).
            pub kind: $crate::record::Kind,
            /// The venue feed.
            pub source: $crate::record::Source,
            /// The instrument.
            pub instrument: $crate::lsn::InstrumentId,
            /// Time of the event, by the venue's clock.
            pub ts_event: $crate::time::Ts,
            $( $(#[$field_doc])* pub $field: $type, )*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size && align_of::<$name>() == 8);
            assert!(size_of::<rkyv::Archived<$name>>() == $size);
            assert!($size / 8 <= $crate::record::WORDS_MAX);
            assert!(std::mem::offset_of!($name, $index) % 8 == 0);
            $( assert!(std::mem::offset_of!($name, $find) % 8 == 0); )*
            assert!(<[&str]>::len(&[$(stringify!($find)),*]) <= $crate::record::FIND_MAX);
            $( assert!(std::mem::offset_of!($name, $field) == std::mem::offset_of!(rkyv::Archived<$name>, $field)); )*
        };

        impl Default for $name {
            /// Null in each field that has a null, zero in the others; the kind is set.
            fn default() -> Self {
                const ABSENT: [u64; $size / 8] = <$name as $crate::record::Record>::SCHEMA.absent();
                bytemuck::cast(ABSENT)
            }
        }

        impl $crate::record::Record for $name {
            const SCHEMA: $crate::record::Schema = $crate::record::Schema::new(
                $crate::record::Kind($kind),
                $text,
                $size / 8,
                std::mem::offset_of!($name, $index) / 8,
                &[
                    $crate::record::Column { name: "source", offset: 2, of: $crate::record::ColumnType::U16 },
                    $crate::record::Column { name: "instrument", offset: 4, of: $crate::record::ColumnType::U32 },
                    $crate::record::Column { name: "ts_event", offset: 8, of: $crate::record::ColumnType::Ts },
                    $( $crate::record::Column {
                        name: stringify!($field),
                        offset: std::mem::offset_of!($name, $field),
                        of: $column,
                    }, )*
                ],
                &[$(stringify!($find)),*],
            );
        }
    };
}
pub(crate) use record;

/// The built-in kinds.
pub static SCHEMAS: [Schema; 16] = [
    Trade::SCHEMA,
    Quote::SCHEMA,
    BookOrder::SCHEMA,
    Definition::SCHEMA,
    Gap::SCHEMA,
    Depth10::SCHEMA,
    Bar1s::SCHEMA,
    Bar1m::SCHEMA,
    Bar1h::SCHEMA,
    Bar1d::SCHEMA,
    Status::SCHEMA,
    Imbalance::SCHEMA,
    Statistic::SCHEMA,
    Bust::SCHEMA,
    Correct::SCHEMA,
    Mapping::SCHEMA,
];

/// The schema of `kind`, if it is built in or registered in this process.
pub fn schema(kind: Kind) -> Option<&'static Schema> {
    // Kinds are dense from 1 and sorted; a test checks it.
    match SCHEMAS.get(usize::from(kind.0).wrapping_sub(1)) {
        Some(schema) => Some(schema),
        None => user::known(kind),
    }
}

/// Every kind called `name`: a changed layout is another kind of the same name.
pub fn schemas_by_name(name: &str) -> impl Iterator<Item = &'static Schema> {
    SCHEMAS.iter().chain(user_kinds()).filter(move |s| s.name == name)
}

/// Every kind called `name`, or, for a name with a number like `signal-8001`, the kind with both.
pub fn schemas_named(name: &str) -> Vec<&'static Schema> {
    let found: Vec<&Schema> = schemas_by_name(name).collect();
    if !found.is_empty() {
        return found;
    }
    let Some((name, number)) = name.rsplit_once('-') else { return found };
    let number = u16::from_str_radix(number, 16).ok();
    schemas_by_name(name).filter(|s| s.kind.is_user() && Some(s.kind.0) == number).collect()
}

/// A checked view of one record: its kind has a schema, and its length is that of the kind.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    schema: &'static Schema,
    words: &'a [u64],
}

impl PartialEq for RecordRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl<'a> RecordRef<'a> {
    /// The record at the beginning of `words`; more words may follow it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the kind is unknown or `words` is shorter than the record.
    #[doc(hidden)]
    pub fn first(words: &'a [u64]) -> Result<RecordRef<'a>> {
        let Some(&head) = words.first() else {
            return Err(Error::invalid("record", "it has no bytes"));
        };
        let kind = Kind((head & 0xffff) as u16);
        let schema = schema(kind).ok_or_else(|| Error::invalid("record", format!("kind {} is unknown", kind.0)))?;
        match words.get(..schema.words) {
            Some(words) => Ok(RecordRef { schema, words }),
            None => Err(Error::invalid(
                "record",
                format!("a {} has {} bytes, {} are left", schema.name, schema.words * 8, words.len() * 8),
            )),
        }
    }

    /// The view of `record`.
    pub fn of<R: Record>(record: &'a R) -> RecordRef<'a> {
        let words = record.words();
        let head = words.first().copied().unwrap_or(0);
        // A `kind` field that contradicts the type is a bug of the caller.
        assert!(head as u16 == R::KIND.0, "a {} whose kind field is {}", R::SCHEMA.name, head as u16);
        RecordRef { schema: R::SCHEMA_REF, words }
    }

    /// The kind's layout.
    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.schema.kind
    }

    /// The header.
    #[doc(hidden)]
    pub fn header(&self) -> &'a Header {
        let head = self.words.get(..WORDS_MIN).unwrap_or(&[0; WORDS_MIN]);
        bytemuck::from_bytes(bytemuck::cast_slice(head))
    }

    /// The instrument.
    pub fn instrument(&self) -> InstrumentId {
        self.header().instrument
    }

    /// The record's words.
    #[doc(hidden)]
    pub fn words(&self) -> &'a [u64] {
        self.words
    }

    /// The record's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        bytemuck::cast_slice(self.words)
    }

    /// The record as an `R`, if its kind and its layout are those of `R`.
    pub fn get<R: Record>(&self) -> Option<&'a R> {
        if self.schema.hash != R::SCHEMA_REF.hash {
            return None;
        }
        bytemuck::try_from_bytes(self.bytes()).ok()
    }

    /// The record's own time for sorting; may be null.
    #[doc(hidden)]
    pub fn own_index_time(&self) -> Ts {
        Ts(self.words.get(self.schema.index_word).copied().unwrap_or(u64::MAX))
    }

    /// The columns with their values, in layout order.
    pub fn values(&self) -> impl Iterator<Item = (&'static Column, Value<'a>)> + use<'a> {
        let bytes = self.bytes();
        self.schema.columns.iter().map(move |c| (c, c.value(bytes)))
    }
}

/// How far a record's own time may be ahead of ingest.
#[doc(hidden)]
pub const INDEX_TIME_AHEAD_MAX_NS: u64 = 24 * 3600 * crate::time::NANOS_PER_SECOND;

/// The index time of a record, and whether it is the ingest time because the record's own is null or
/// more than 24 h ahead.
#[inline]
#[doc(hidden)]
pub fn index_time(own: Ts, ingest: Ts) -> (Ts, bool) {
    if own.is_null() || own.0 > ingest.0.saturating_add(INDEX_TIME_AHEAD_MAX_NS) { (ingest, true) } else { (own, false) }
}

/// The records of `words`, which must consist of whole records; stops at the first error.
#[doc(hidden)]
pub fn split(words: &[u64]) -> impl Iterator<Item = Result<RecordRef<'_>>> {
    let mut rest = words;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let first = RecordRef::first(rest);
        rest = match &first {
            Ok(record) => rest.get(record.words.len()..).unwrap_or(&[]),
            Err(_) => &[],
        };
        Some(first)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_are_dense_from_one_and_found_by_id_and_name() {
        for (i, s) in SCHEMAS.iter().enumerate() {
            assert_eq!(usize::from(s.kind.0), i + 1);
            assert!(std::ptr::eq(schema(s.kind).unwrap(), s));
            assert!(schemas_by_name(s.name).map(|s| s.kind).eq([s.kind]));
        }
        assert!(schema(Kind(0)).is_none() && schema(Kind(999)).is_none());
    }

    #[test]
    fn the_columns_of_every_kind_cover_its_bytes_without_overlap() {
        for s in &SCHEMAS {
            let mut at = 2;
            for c in s.columns {
                assert_eq!(c.offset, at, "{}.{}", s.name, c.name);
                at += c.of.size();
            }
            assert_eq!(at, s.words * 8, "{}", s.name);
        }
    }

    #[test]
    fn no_column_has_a_name_that_tables_of_rows_add() {
        for s in &SCHEMAS {
            assert!(s.columns.iter().all(|c| !ADDED_COLUMNS.contains(&c.name)), "{}", s.name);
        }
    }

    #[test]
    fn the_columns_to_find_by_are_64_bit_ids() {
        for s in &SCHEMAS {
            assert_eq!(s.find_columns().count(), s.find.len());
            assert!(s.find_columns().all(|c| c.of == ColumnType::U64), "{}", s.name);
        }
    }

    #[test]
    fn a_records_rkyv_archive_is_its_memory() {
        let trade = Trade { price: Price(5), size: Size(7), trade_id: 9, ..Trade::default() };
        let archive = rkyv::to_bytes::<rkyv::rancor::Error>(&trade).unwrap();
        assert_eq!(&archive[..], bytemuck::bytes_of(&trade));
    }

    proptest! {
        #[test]
        fn split_is_total_on_any_words(mut words in proptest::collection::vec(any::<u64>(), 0..64), kinds in proptest::collection::vec(0u64..20, 64)) {
            for (w, k) in words.iter_mut().zip(kinds) { *w = (*w & !0xffff) | k; }
            let mut seen = 0;
            for r in split(&words) {
                match r { Ok(r) => seen += r.words().len(), Err(_) => return Ok(()) }
            }
            prop_assert_eq!(seen, words.len());
        }

        #[test]
        fn every_value_of_every_column_prints_and_parses_to_itself(bytes in proptest::collection::vec(any::<u8>(), 1024), kind in 1u16..=16) {
            let schema = schema(Kind(kind)).unwrap();
            let mut copy = vec![0u8; schema.words * 8];
            for c in schema.columns {
                let text = c.value(&bytes).to_string();
                // Text columns keep only printable ASCII; the others are exact for any bits.
                if matches!(c.of, ColumnType::Text(_) | ColumnType::Char) { continue; }
                c.parse(&text, &mut copy).unwrap();
                prop_assert_eq!(c.value(&copy).to_string(), text, "{}.{}", schema.name, c.name);
            }
        }
    }

    #[test]
    fn a_time_that_is_null_or_a_day_ahead_is_replaced_by_the_ingest_time() {
        let now = Ts(1_000);
        assert_eq!(index_time(Ts(5), now), (Ts(5), false));
        assert_eq!(index_time(Ts::NULL, now), (now, true));
        assert_eq!(index_time(Ts(1_001 + INDEX_TIME_AHEAD_MAX_NS), now), (now, true));
        assert_eq!(index_time(Ts(1_000 + INDEX_TIME_AHEAD_MAX_NS), now), (Ts(1_000 + INDEX_TIME_AHEAD_MAX_NS), false));
    }

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
            let words: [u64; WORDS_MAX] = schema.absent();
            for column in schema.columns.iter().filter(|c| c.is_reserved()) {
                let bytes: &[u8] = bytemuck::cast_slice(&words);
                assert!(bytes[column.offset..column.offset + column.of.size()].iter().all(|b| *b == 0), "{}", schema.name);
            }
        }
    }
}
