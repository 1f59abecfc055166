//! Owns: the part of `tapestore.h` that the library makes: constants, and a struct for each built-in kind with assertions of
//! its layout.

use tapestore::record::{self, Column, ColumnType, SCHEMAS, Schema, Volume, action, flags, side};
use tapestore::{InstrumentId, Price, Size, Ts};

/// The constants.
pub(crate) fn constants() -> String {
    // The limits below are written by name.
    assert_eq!((Price::NULL.0, Size::NULL.0, Ts::NULL.0), (i64::MAX, u64::MAX, u64::MAX));
    assert_eq!((InstrumentId::NULL.0, Volume::NULL), (u32::MAX, Volume([u64::MAX; 2])));
    let nulls = [
        ("PRICE", "INT64_MAX", "The null of a price."),
        ("SIZE", "UINT64_MAX", "The null of a size."),
        ("TS", "UINT64_MAX", "The null of a time."),
        ("ID", "UINT64_MAX", "The null of an order's or a trade's id."),
        ("VOLUME", "UINT64_MAX", "The null of a volume: both of its halves are this."),
        ("INSTRUMENT", "UINT32_MAX", "The instrument of records that concern no single one."),
        ("DELTA", "INT32_MAX", "The null of ts_in_delta."),
    ];
    let name_bytes = record::name::NAME_LEN_MAX + 1;
    let mut text = format!(
        "\n/** The version of this header: that of the library with which it is used, see tapestore_version. */\n\
         #define TAPESTORE_HEADER_VERSION \"{}\"\n\
         \n/** Units of a price or a size in one. */\n#define TAPESTORE_ONE 1000000000\n\
         \n/** Bytes of the longest name of an instrument, with its zero. */\n#define TAPESTORE_NAME_BYTES {name_bytes}\n\
         \n/** Every instrument, for tapestore_snapshot_columns. */\n#define TAPESTORE_ALL_INSTRUMENTS {}\n",
        env!("CARGO_PKG_VERSION"),
        tapestore_c::snapshot::ALL_INSTRUMENTS
    );
    for (name, value, comment) in nulls {
        text += &format!("\n/** {comment} */\n#define TAPESTORE_NULL_{name} {value}\n");
    }
    text += "\n/* Sides: of an order, and for trades the aggressor's. */\n";
    for (name, side) in [("ASK", side::ASK), ("BID", side::BID), ("NONE", side::NONE)] {
        text += &format!("#define TAPESTORE_SIDE_{name} '{}'\n", char::from(side.0));
    }
    text += "\n/* Actions of a change of an order or a level. */\n";
    let actions = [
        ("ADD", action::ADD),
        ("MODIFY", action::MODIFY),
        ("CANCEL", action::CANCEL),
        ("CLEAR", action::CLEAR),
        ("TRADE", action::TRADE),
        ("FILL", action::FILL),
        ("NONE", action::NONE),
    ];
    for (name, action) in actions {
        text += &format!("#define TAPESTORE_ACTION_{name} '{}'\n", char::from(action.0));
    }
    text += "\n/* Bits of the field flags, as in DBN. */\n";
    let bits = [
        ("LAST", flags::LAST),
        ("TOB", flags::TOB),
        ("SNAPSHOT", flags::SNAPSHOT),
        ("MBP", flags::MBP),
        ("BAD_TS_RECV", flags::BAD_TS_RECV),
        ("MAYBE_BAD_BOOK", flags::MAYBE_BAD_BOOK),
    ];
    for (name, bit) in bits {
        text += &format!("#define TAPESTORE_FLAG_{name} {bit:#04x}\n");
    }
    text += "\n/* Numbers of the built-in kinds. Programs define kinds from 0x8000 on. */\n";
    for schema in &SCHEMAS {
        text += &format!("#define TAPESTORE_KIND_{} {}\n", name_of(schema).to_uppercase(), schema.kind.0);
    }
    text
}

/// The structs of the kinds.
pub(crate) fn structs() -> String {
    let mut text = "
/** A price in units of 1e-9: 189.98 is 189980000000. Null is TAPESTORE_NULL_PRICE. */
typedef int64_t tapestore_price;

/** A size in units of 1e-9: 100 is 100000000000. Null is TAPESTORE_NULL_SIZE. */
typedef uint64_t tapestore_size;

/** A time: nanoseconds since 1970-01-01T00:00:00Z. Null is TAPESTORE_NULL_TS. */
typedef uint64_t tapestore_ts;

/** A sum of sizes, 128 bits in units of 1e-9. */
typedef struct tapestore_volume {
    uint64_t low;
    uint64_t high;
} tapestore_volume;

/** The first 16 bytes of every record. */
typedef struct tapestore_head {
    uint16_t kind;
    uint16_t source;
    uint32_t instrument;
    tapestore_ts ts_event;
} tapestore_head;

/*
 * The built-in kinds. tapestore_record_init sets a record's kind, its nulls and its reserved bytes, which are zero; then set
 * the fields that it has. memset does not do that: zero is a value, so fields of zero are no nulls. source is the venue feed,
 * ts_event the time by the venue's clock, ts_recv the time of receipt. Records are sorted by ts_recv, or by ts_event where a
 * kind has no ts_recv. Fields have the meanings of DBN; the documentation of the library's record module describes them.
 */
"
    .to_owned();
    for schema in &SCHEMAS {
        text += &structure(schema);
    }
    text
}

fn name_of(schema: &Schema) -> String {
    schema.name.replace('-', "_")
}

/// A column as a field.
fn field(of: ColumnType, name: &str) -> String {
    let simple = match of {
        ColumnType::U8 => "uint8_t",
        ColumnType::I8 => "int8_t",
        ColumnType::U16 => "uint16_t",
        ColumnType::I16 => "int16_t",
        ColumnType::U32 => "uint32_t",
        ColumnType::I32 => "int32_t",
        ColumnType::U64 => "uint64_t",
        ColumnType::I64 => "int64_t",
        ColumnType::Price => "tapestore_price",
        ColumnType::Size => "tapestore_size",
        ColumnType::Volume => "tapestore_volume",
        ColumnType::Ts => "tapestore_ts",
        ColumnType::Char => "char",
        ColumnType::Text(bytes) => return format!("char {name}[{bytes}]"),
        ColumnType::Reserved(bytes) => return format!("uint8_t {name}[{bytes}]"),
    };
    format!("{simple} {name}")
}

/// The name and the index of a column of a level, like `bid_px_03`.
fn level(column: &Column) -> Option<(&'static str, usize)> {
    let (name, index) = column.name.rsplit_once('_')?;
    Some((name, (index.len() == 2).then(|| index.parse().ok())??))
}

/// The name of a kind's struct, after `tapestore_`: the kind's, or that of its type where the kind's is not clear in C.
fn struct_of(schema: &Schema) -> String {
    match schema.name {
        "book" => "book_order".to_owned(),
        // `tapestore_status` is the code of a call.
        "status" => "trading_status".to_owned(),
        _ => name_of(schema),
    }
}

fn structure(schema: &Schema) -> String {
    let name = struct_of(schema);
    let (mut text, mut fields) = (String::new(), "    uint16_t kind;\n".to_owned());
    let mut asserts = format!(
        "static_assert(sizeof(tapestore_{name}) == {}, \"size of {name}\");\n\
         static_assert(offsetof(tapestore_{name}, kind) == 0, \"{name}.kind\");\n",
        schema.words * 8
    );
    let mut assert = |path: &str, offset: usize| {
        asserts += &format!("static_assert(offsetof(tapestore_{name}, {path}) == {offset}, \"{name}.{path}\");\n");
    };
    let levels = schema.columns.iter().filter_map(level).map(|(_, index)| index + 1).max().unwrap_or(0);
    let first: Vec<_> = schema.columns.iter().filter_map(|c| Some((level(c).filter(|l| l.1 == 0)?.0, c.of))).collect();
    for column in schema.columns {
        match level(column) {
            None => {
                fields += &format!("    {};\n", field(column.of, column.name));
                assert(column.name, column.offset);
            }
            Some((of, index)) => {
                if index == 0 && first.first().is_some_and(|(name, _)| *name == of) {
                    fields += &format!("    tapestore_{name}_level levels[{levels}];\n");
                }
                // `offsetof` of a field in an element is no standard C++: the first field of an element is its offset.
                if first.first().is_some_and(|(name, _)| *name == of) {
                    assert(&format!("levels[{index}]"), column.offset);
                }
            }
        }
    }
    if levels > 0 {
        let inner: String = first.iter().map(|(name, of)| format!("    {};\n", field(*of, name))).collect();
        text += &format!(
            "\n/** One level of both sides; the best one is the first. */\ntypedef struct tapestore_{name}_level {{\n{inner}}} tapestore_{name}_level;\n"
        );
        let start = schema.columns.iter().find_map(|c| level(c).map(|_| c.offset)).unwrap_or(0);
        for column in schema.columns {
            if let Some((of, 0)) = level(column) {
                text += &format!(
                    "static_assert(offsetof(tapestore_{name}_level, {of}) == {}, \"{name}_level.{of}\");\n",
                    column.offset - start
                );
            }
        }
    }
    let number = schema.kind.0;
    format!(
        "{text}\n/** Kind {number}, {}. */\ntypedef struct tapestore_{name} {{\n{fields}}} tapestore_{name};\n{asserts}",
        schema.name
    )
}
