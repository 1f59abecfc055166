//! Owns: the one Arrow schema of Parquet and Arrow files, and records as batches of it; [`crate::scatter`] is the way back.
//!
//! | field | Arrow type | null stands for |
//! |---|---|---|
//! | integers | the same width and sign | |
//! | prices, sizes | Int64, UInt64 in 1e-9 with field metadata `scale = 9`; or Decimal128(20, 9) | the maximum |
//! | volumes | Decimal128(38, 9) | the maximum |
//! | times | Timestamp(ns, UTC) | the maximum |
//! | characters | Utf8 | 0 |
//! | text | Utf8 without the zeros at its end | |
//! | reserved | not there | |
//!
//! `instrument` is the name, null for records of no instrument. `lsn` and `index_time` come first, for people; an import
//! ignores them. A byte of a character or text is the code point of the same number, so that any bytes come back.
//!
//! What must hold: a record that is written in this schema comes back bit for bit, except its reserved bytes, which are
//! zero in a record that follows its layout.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampNanosecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{ArrayRef, PrimitiveArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{ArrowError, DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use tapestore::lsn::InstrumentId;
use tapestore::reader::Row;
use tapestore::record::{Column, ColumnType, Schema};

/// Keys of a file's metadata: the kind's name, its number, the hash of its layout, how many records the file has,
/// and their [`crate::checksum::Checksum`].
pub const KIND: &str = "tapestore.kind";
/// See [`KIND`].
pub const NUMBER: &str = "tapestore.kind_number";
/// See [`KIND`].
pub const LAYOUT: &str = "tapestore.layout";
/// See [`KIND`].
pub const RECORDS: &str = "tapestore.records";
/// See [`KIND`].
pub const CHECKSUM: &str = "tapestore.checksum";
/// Decimal places of prices, sizes and volumes.
pub(crate) const SCALE: i8 = 9;
/// Rows of a batch.
pub const BATCH_ROWS: usize = 8192;
/// The column with the instrument's name.
pub const INSTRUMENT: &str = "instrument";

fn utc_ns() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

fn field(column: &Column, decimal: bool) -> Option<Field> {
    let fixed = |of: DataType| {
        if decimal {
            return Field::new(column.name, DataType::Decimal128(20, SCALE), true);
        }
        Field::new(column.name, of, true).with_metadata(HashMap::from([("scale".to_owned(), SCALE.to_string())]))
    };
    let plain = |of: DataType| Field::new(column.name, of, false);
    Some(match column.of {
        ColumnType::U8 => plain(DataType::UInt8),
        ColumnType::I8 => plain(DataType::Int8),
        ColumnType::U16 => plain(DataType::UInt16),
        ColumnType::I16 => plain(DataType::Int16),
        ColumnType::U32 => plain(DataType::UInt32),
        ColumnType::I32 => plain(DataType::Int32),
        ColumnType::U64 => plain(DataType::UInt64),
        ColumnType::I64 => plain(DataType::Int64),
        ColumnType::Price => fixed(DataType::Int64),
        ColumnType::Size => fixed(DataType::UInt64),
        ColumnType::Volume => Field::new(column.name, DataType::Decimal128(38, SCALE), true),
        ColumnType::Ts => Field::new(column.name, utc_ns(), true),
        ColumnType::Char => Field::new(column.name, DataType::Utf8, true),
        ColumnType::Text(_) => plain(DataType::Utf8),
        ColumnType::Reserved(_) => return None,
    })
}

/// What a file's metadata says of its kind, before the rows.
pub fn metadata(kind: &Schema) -> [(&'static str, String); 3] {
    [(KIND, kind.name.to_owned()), (NUMBER, kind.kind.0.to_string()), (LAYOUT, format!("{:016x}", kind.hash))]
}

/// The Arrow schema of `kind`; prices and sizes as decimals if `decimal`.
pub fn arrow_schema(kind: &Schema, decimal: bool) -> SchemaRef {
    let mut fields = vec![Field::new("lsn", DataType::UInt64, false), Field::new("index_time", utc_ns(), false)];
    for column in kind.columns {
        if column.name == INSTRUMENT {
            fields.push(Field::new(INSTRUMENT, DataType::Utf8, true));
        } else {
            fields.extend(field(column, decimal));
        }
    }
    let metadata = metadata(kind).into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Arc::new(ArrowSchema::new_with_metadata(fields, metadata))
}

/// Collects rows of one kind into batches.
pub struct Batcher {
    kind: &'static Schema,
    arrow: SchemaRef,
    decimal: bool,
    lsns: Vec<u64>,
    times: Vec<i64>,
    names: StringBuilder,
    /// The records, one after the other.
    words: Vec<u64>,
}

impl Batcher {
    /// An empty one.
    pub fn new(kind: &'static Schema, decimal: bool) -> Batcher {
        let arrow = arrow_schema(kind, decimal);
        Batcher { kind, arrow, decimal, lsns: Vec::new(), times: Vec::new(), names: StringBuilder::new(), words: Vec::new() }
    }

    /// The schema of its batches.
    pub fn schema(&self) -> SchemaRef {
        self.arrow.clone()
    }

    /// Adds a row; whether it is time to [`Batcher::take`].
    pub fn push(&mut self, row: &Row<'_>, name: &str) -> bool {
        self.lsns.push(row.lsn.0);
        self.times.push(row.index_time.0 as i64);
        if row.record.instrument() == InstrumentId::NULL {
            self.names.append_null();
        } else {
            self.names.append_value(name);
        }
        self.words.extend_from_slice(row.record.words());
        self.lsns.len() >= BATCH_ROWS
    }

    /// The rows so far as a batch; `None` if there are none.
    ///
    /// # Errors
    /// Arrow's, if the columns contradict their schema: a fault of this file.
    pub fn take(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        if self.lsns.is_empty() {
            return Ok(None);
        }
        let lsns = PrimitiveArray::<UInt64Type>::from_iter_values(std::mem::take(&mut self.lsns));
        let times = PrimitiveArray::<TimestampNanosecondType>::from_iter_values(std::mem::take(&mut self.times));
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(lsns), Arc::new(times.with_timezone("UTC"))];
        let rows = Rows { bytes: bytemuck::cast_slice(&self.words), stride: self.kind.words * 8 };
        for column in self.kind.columns {
            if column.name == INSTRUMENT {
                arrays.push(Arc::new(self.names.finish()));
            } else if !column.is_reserved() {
                arrays.push(rows.array(column, self.decimal)?);
            }
        }
        self.words.clear();
        RecordBatch::try_new(self.arrow.clone(), arrays).map(Some)
    }
}

/// Records of one length, one after the other.
struct Rows<'a> {
    bytes: &'a [u8],
    stride: usize,
}

impl Rows<'_> {
    fn raw(&self, column: &Column) -> impl Iterator<Item = &[u8]> {
        let field = column.offset..column.offset + column.of.size();
        self.bytes.chunks_exact(self.stride).map(move |row| row.get(field.clone()).unwrap_or(&[]))
    }

    fn values<T: bytemuck::Pod>(&self, column: &Column) -> Vec<T> {
        let read = |raw: &[u8]| bytemuck::try_pod_read_unaligned(raw).unwrap_or_else(|_| T::zeroed());
        self.raw(column).map(read).collect()
    }

    fn plain<T: ArrowPrimitiveType<Native: bytemuck::Pod>>(&self, column: &Column) -> ArrayRef {
        Arc::new(PrimitiveArray::<T>::from_iter_values(self.values::<T::Native>(column)))
    }

    fn array(&self, column: &Column, decimal: bool) -> Result<ArrayRef, ArrowError> {
        Ok(match column.of {
            ColumnType::U8 => self.plain::<UInt8Type>(column),
            ColumnType::I8 => self.plain::<Int8Type>(column),
            ColumnType::U16 => self.plain::<UInt16Type>(column),
            ColumnType::I16 => self.plain::<Int16Type>(column),
            ColumnType::U32 => self.plain::<UInt32Type>(column),
            ColumnType::I32 => self.plain::<Int32Type>(column),
            ColumnType::U64 => self.plain::<UInt64Type>(column),
            ColumnType::I64 => self.plain::<Int64Type>(column),
            ColumnType::Price if decimal => decimals(self.values::<i64>(column), i64::MAX, 20)?,
            ColumnType::Size if decimal => decimals(self.values::<u64>(column), u64::MAX, 20)?,
            ColumnType::Price => Arc::new(nullable::<Int64Type>(self.values(column), i64::MAX)),
            ColumnType::Size => Arc::new(nullable::<UInt64Type>(self.values(column), u64::MAX)),
            ColumnType::Volume => decimals(self.values::<u128>(column).into_iter().map(|v| v as i128).collect(), -1i128, 38)?,
            // Times of the last third of the range wrap round; they wrap back on the way in.
            ColumnType::Ts => Arc::new(nullable::<TimestampNanosecondType>(self.values(column), -1).with_timezone("UTC")),
            ColumnType::Char => {
                let char = |raw: &[u8]| raw.first().filter(|b| **b != 0).map(|b| char::from(*b).to_string());
                Arc::new(StringArray::from_iter(self.raw(column).map(char)))
            }
            ColumnType::Text(_) | ColumnType::Reserved(_) => {
                let text = |raw: &[u8]| {
                    let len = raw.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
                    raw.iter().take(len).map(|b| char::from(*b)).collect::<String>()
                };
                Arc::new(StringArray::from_iter_values(self.raw(column).map(text)))
            }
        })
    }
}

fn nullable<T: ArrowPrimitiveType<Native: PartialEq>>(values: Vec<T::Native>, null: T::Native) -> PrimitiveArray<T> {
    let nulls = values.contains(&null).then(|| NullBuffer::from_iter(values.iter().map(|v| *v != null)));
    PrimitiveArray::new(values.into(), nulls)
}

fn decimals<T: Copy + PartialEq + Into<i128>>(values: Vec<T>, null: T, precision: u8) -> Result<ArrayRef, ArrowError> {
    let values = nullable::<Decimal128Type>(values.into_iter().map(Into::into).collect(), null.into());
    Ok(Arc::new(values.with_precision_and_scale(precision, SCALE)?))
}
