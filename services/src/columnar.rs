//! Owns: records as Arrow record batches, and back: the one schema in which Parquet and Arrow files
//! leave and come.
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
//! `instrument` is the name, null for records of no instrument. `lsn` and `index_time` come first, for people; on the way in they are passed
//! over. A byte of a character or text is the code point of the same number, so that any bytes come back.
//!
//! What must hold: a record that leaves by this schema comes back bit for bit, its reserved bytes aside,
//! which are zero in a record that follows its layout.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampNanosecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, PrimitiveArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{ArrowError, DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use tapestore::lsn::InstrumentId;
use tapestore::reader::Row;
use tapestore::record::{ADDED_COLUMNS, Column, ColumnType, Schema};

use crate::input::Units;

/// Keys of a file's metadata: the kind's name, its number, the hash of its layout, how many records the file has,
/// and their [`crate::tally::Tally`].
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
const SCALE: i8 = 9;
const UNITS: i128 = 1_000_000_000;
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

/// What a file says of its kind, before its rows are known.
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

    /// Takes a row in; whether it is time to [`Batcher::take`].
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

/// How the columns of a batch go into records of a kind.
pub struct Scatter {
    kind: &'static Schema,
    /// For each column of the batch, the kind's; `None`: passed over.
    columns: Vec<Option<&'static Column>>,
    instrument: usize,
    /// Whether the file says that it is of this schema: then what wrapped round wraps back.
    is_ours: bool,
    /// What integers are in columns of prices and sizes whose metadata says nothing.
    units: Option<Units>,
}

impl Scatter {
    /// Finds the columns called `names` in `kind`; `is_ours` if the file says that it is of this schema.
    ///
    /// # Errors
    /// Which is unknown or there twice, or that none names the instrument.
    pub fn new(kind: &'static Schema, names: &[String], is_ours: bool, units: Option<Units>) -> Result<Scatter, String> {
        let mut columns = Vec::new();
        for (i, name) in names.iter().enumerate() {
            if !name.is_empty() && names.iter().take(i).any(|n| n == name) {
                return Err(format!("two columns are called '{name}'"));
            }
            let passed = ADDED_COLUMNS.contains(&name.as_str()) || name == INSTRUMENT || name.is_empty();
            let known = kind.column(name).filter(|c| !c.is_reserved());
            if !passed && known.is_none() {
                return Err(unknown_column(kind, name));
            }
            columns.push(known.filter(|_| !passed));
        }
        let instrument = names.iter().position(|n| n == INSTRUMENT).ok_or("there is no column 'instrument' with names")?;
        // A file that another program made of ours may have lost what its integers are.
        let looks_ours = !is_ours && ["lsn", "index_time"].iter().all(|added| names.iter().any(|n| n == added));
        let units = units.or(if looks_ours { None } else { Some(Units::Whole) });
        Ok(Scatter { kind, columns, instrument, is_ours, units })
    }

    /// Puts `batch` into the empty `words`, records one after the other whose instrument is 0, and gives the
    /// instruments' names.
    ///
    /// # Errors
    /// Which column cannot be represented, and why.
    pub fn records(&self, batch: &RecordBatch, words: &mut Vec<u64>) -> Result<StringArray, String> {
        words.clear();
        words.resize(batch.num_rows() * self.kind.words, 0);
        words.chunks_exact_mut(self.kind.words).filter_map(|r| r.first_mut()).for_each(|w| *w = u64::from(self.kind.kind.0));
        let stride = self.kind.words * 8;
        let bytes = bytemuck::cast_slice_mut::<u64, u8>(words);
        let is_given = |c: &Column| self.columns.iter().flatten().any(|known| known.name == c.name);
        for column in self.kind.columns.iter().filter(|c| c.of == ColumnType::Ts && !is_given(c)) {
            each(bytes, stride, column, |raw, _| raw.fill(0xff));
        }
        for ((column, array), theirs) in self.columns.iter().zip(batch.columns()).zip(batch.schema_ref().fields()) {
            let Some(column) = column else { continue };
            let says = theirs.metadata().get("scale").is_some_and(|s| *s == SCALE.to_string());
            let is_fixed = matches!(column.of, ColumnType::Price | ColumnType::Size | ColumnType::Volume);
            if is_fixed && !says && self.units.is_none() && array.data_type().is_integer() {
                return Err(format!(
                    "column '{}': its integers have lost the metadata that says what they are; say --units nano or --units whole",
                    column.name
                ));
            }
            let is_raw = says || self.units == Some(Units::Nano);
            put(column, array, Form { is_raw, is_ours: self.is_ours }, bytes, stride)
                .map_err(|e| format!("column '{}': {e}", column.name))?;
        }
        let names = batch.columns().get(self.instrument).ok_or("the batch has no column of names")?;
        if !is_text(names.data_type()) {
            let what = "it holds the names of instruments (files of a store's history have numbers; tape export names them)";
            return Err(format!("column 'instrument': {} is no text; {what}", names.data_type()));
        }
        strings(names)
    }
}

/// That a kind has no such column.
pub fn unknown_column(kind: &Schema, name: &str) -> String {
    let known: Vec<&str> = kind.columns.iter().filter(|c| !c.is_reserved()).map(|c| c.name).collect();
    format!(
        "a {} has no column '{name}'; it has {}. Rename it with --column {name}=OURS, or leave it out with --column {name}=",
        kind.name,
        known.join(", ")
    )
}

/// How a file writes numbers.
#[derive(Clone, Copy)]
struct Form {
    /// Prices and sizes are whole numbers of 1e-9.
    is_raw: bool,
    /// Negative times and volumes have wrapped round.
    is_ours: bool,
}

fn is_text(of: &DataType) -> bool {
    matches!(of, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..))
}

fn each(bytes: &mut [u8], stride: usize, column: &Column, mut with: impl FnMut(&mut [u8], usize)) {
    let field = column.offset..column.offset + column.of.size();
    for (i, row) in bytes.chunks_exact_mut(stride).enumerate() {
        if let Some(raw) = row.get_mut(field.clone()) {
            with(raw, i);
        }
    }
}

fn cast(array: &dyn Array, to: &DataType) -> Result<ArrayRef, String> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, to, &options).map_err(|e| e.to_string())
}

fn strings(array: &dyn Array) -> Result<StringArray, String> {
    let array = cast(array, &DataType::Utf8)?;
    array.as_any().downcast_ref::<StringArray>().cloned().ok_or_else(|| "it is not text".to_owned())
}

/// The values of `array` as `T`.
fn options<T: ArrowPrimitiveType>(array: &dyn Array, of: &DataType) -> Result<Vec<Option<T::Native>>, String> {
    let array = cast(array, of)?;
    let array = array.as_any().downcast_ref::<PrimitiveArray<T>>().ok_or("it is of another type")?;
    Ok(array.iter().collect())
}

/// The values of `array` as `T`; a null is `null`, if it may be one.
fn numbers<T: ArrowPrimitiveType>(array: &dyn Array, of: &DataType, null: Option<T::Native>) -> Result<Vec<T::Native>, String> {
    if null.is_none() && array.null_count() > 0 {
        return Err("it has nulls, and no number that stands for one".to_owned());
    }
    Ok(options::<T>(array, of)?.into_iter().map(|v| v.or(null).unwrap_or_default()).collect())
}

/// Whole numbers of 1e-9: `None` is null.
fn fixed(array: &dyn Array, is_raw: bool) -> Result<Vec<Option<i128>>, String> {
    let too_fine = "it has more than nine decimal places";
    let too_large = "a value is too large";
    match array.data_type() {
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            let scale = match array.data_type() {
                DataType::Decimal32(_, s)
                | DataType::Decimal64(_, s)
                | DataType::Decimal128(_, s)
                | DataType::Decimal256(_, s) => *s,
                _ => 0,
            };
            let array = cast(array, &DataType::Decimal128(38, scale))?;
            let array = array.as_any().downcast_ref::<PrimitiveArray<Decimal128Type>>().ok_or("it is of another type")?;
            let power = u32::from(scale.abs_diff(SCALE));
            let unit = 10i128.checked_pow(power).ok_or(too_large)?;
            let value = |v: i128| match scale <= SCALE {
                true => v.checked_mul(unit).ok_or(too_large),
                false if v % unit == 0 => Ok(v / unit),
                false => Err(too_fine),
            };
            array.iter().map(|v| v.map(value).transpose().map_err(str::to_owned)).collect()
        }
        // The nearest 1e-9: a decimal of at most fifteen digits comes back as it was written.
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let array = cast(array, &DataType::Float64)?;
            let array = array.as_any().downcast_ref::<arrow_array::Float64Array>().ok_or("it is of another type")?;
            let value = |v: f64| {
                let units = (v * UNITS as f64).round();
                if v.is_nan() {
                    Ok(None)
                } else if units.abs() < 1e37 {
                    Ok(Some(units as i128))
                } else {
                    Err(too_large.to_owned())
                }
            };
            array.iter().map(|v| v.map_or(Ok(None), value)).collect()
        }
        of if of.is_integer() => {
            let array = cast(array, &DataType::Decimal128(38, 0))?;
            let array = array.as_any().downcast_ref::<PrimitiveArray<Decimal128Type>>().ok_or("it is of another type")?;
            let unit = if is_raw { 1 } else { UNITS };
            array.iter().map(|v| v.map(|v| v.checked_mul(unit).ok_or(too_large.to_owned())).transpose()).collect()
        }
        of => Err(format!("{of} is no number")),
    }
}

/// Puts the values of `array` where `column` lies in each record.
fn put(column: &Column, array: &ArrayRef, form: Form, bytes: &mut [u8], stride: usize) -> Result<(), String> {
    macro_rules! integers {
        ($t:ty, $of:expr) => {{
            let values = numbers::<$t>(array, &$of, None)?;
            each(bytes, stride, column, |raw, i| raw.copy_from_slice(&values.get(i).copied().unwrap_or(0).to_le_bytes()));
            return Ok(());
        }};
    }
    if is_text(array.data_type()) && !matches!(column.of, ColumnType::Char | ColumnType::Text(_)) {
        let (values, mut bad) = (strings(array)?, None);
        for (row, value) in bytes.chunks_exact_mut(stride).zip(values.iter()) {
            bad = bad.or(column.parse(value.unwrap_or("null"), row).err());
        }
        return bad.map_or(Ok(()), |e| Err(e.to_string()));
    }
    match column.of {
        ColumnType::U8 => integers!(UInt8Type, DataType::UInt8),
        ColumnType::I8 => integers!(Int8Type, DataType::Int8),
        ColumnType::U16 => integers!(UInt16Type, DataType::UInt16),
        ColumnType::I16 => integers!(Int16Type, DataType::Int16),
        ColumnType::U32 => integers!(UInt32Type, DataType::UInt32),
        ColumnType::I32 => integers!(Int32Type, DataType::Int32),
        ColumnType::U64 => integers!(UInt64Type, DataType::UInt64),
        ColumnType::I64 => integers!(Int64Type, DataType::Int64),
        ColumnType::Ts => {
            let values = match array.data_type() {
                DataType::UInt64 => numbers::<UInt64Type>(array, &DataType::UInt64, Some(u64::MAX))?,
                of if of.is_integer() => as_times(options::<Int64Type>(array, &DataType::Int64)?, form)?,
                _ => {
                    as_times(options::<TimestampNanosecondType>(array, &DataType::Timestamp(TimeUnit::Nanosecond, None))?, form)?
                }
            };
            each(bytes, stride, column, |raw, i| raw.copy_from_slice(&values.get(i).copied().unwrap_or(u64::MAX).to_le_bytes()));
        }
        ColumnType::Price | ColumnType::Size | ColumnType::Volume => {
            let mut bad = false;
            let values = fixed(array, form.is_raw)?;
            each(bytes, stride, column, |raw, i| {
                let value = values.get(i).copied().flatten();
                let (min, max) = match column.of {
                    ColumnType::Price => (i128::from(i64::MIN), i128::from(i64::MAX)),
                    ColumnType::Size => (0, i128::from(u64::MAX)),
                    _ if form.is_ours => (i128::MIN, i128::MAX),
                    _ => (0, i128::MAX),
                };
                bad |= value.is_some_and(|v| v < min || v > max);
                let null = if column.of == ColumnType::Price { max } else { -1 };
                raw.iter_mut().zip(value.unwrap_or(null).to_le_bytes()).for_each(|(to, from)| *to = from);
            });
            if bad {
                return Err("a value is out of range; integers without the field metadata scale = 9 are whole units".to_owned());
            }
        }
        ColumnType::Char | ColumnType::Text(_) => return put_text(column, array, bytes, stride),
        ColumnType::Reserved(_) => {}
    }
    Ok(())
}

fn as_times(values: Vec<Option<i64>>, form: Form) -> Result<Vec<u64>, String> {
    let time = |v: Option<i64>| match v {
        None => Ok(u64::MAX),
        Some(v) if v < 0 && !form.is_ours => Err("a time is before 1970".to_owned()),
        Some(v) => Ok(v as u64),
    };
    values.into_iter().map(time).collect()
}

fn put_text(column: &Column, array: &ArrayRef, bytes: &mut [u8], stride: usize) -> Result<(), String> {
    if array.data_type().is_integer() && column.of == ColumnType::Char {
        let values = numbers::<UInt8Type>(array, &DataType::UInt8, Some(0))?;
        each(bytes, stride, column, |raw, i| raw.fill(values.get(i).copied().unwrap_or(0)));
        return Ok(());
    }
    let (values, mut bad) = (strings(array)?, None);
    let mut values = values.iter();
    each(bytes, stride, column, |raw, _| {
        let text = values.next().flatten().unwrap_or("");
        let mut to = raw.iter_mut();
        for c in text.chars() {
            match (u8::try_from(u32::from(c)), to.next()) {
                (Ok(byte), Some(to)) => *to = byte,
                _ => bad = Some(format!("'{}' does not fit into {} bytes", text.escape_debug(), column.of.size())),
            }
        }
    });
    bad.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tapestore::lsn::Lsn;
    use tapestore::record::{RecordRef, SCHEMAS};
    use tapestore::time::Ts;

    use super::*;

    proptest! {
        #[test]
        fn any_record_of_any_kind_comes_back_from_its_columns(
            words in proptest::collection::vec(prop_oneof![any::<u64>(), Just(u64::MAX), Just(i64::MAX as u64), Just(0)], 128 * 3),
            kind in 0..SCHEMAS.len(), decimal: bool,
        ) {
            let kind = &SCHEMAS[kind];
            let mut records: Vec<Vec<u64>> = words.chunks_exact(128).map(|w| w[..kind.words].to_vec()).collect();
            let mut batcher = Batcher::new(kind, decimal);
            for record in &mut records {
                record[0] = record[0] & 0xffff_0000 | u64::from(kind.kind.0);
                for column in kind.reserved() {
                    bytemuck::cast_slice_mut::<u64, u8>(record)[column.offset..column.offset + column.of.size()].fill(0);
                }
                batcher.push(&Row { lsn: Lsn(1), index_time: Ts(5), record: RecordRef::first(record).unwrap() }, "A:B");
            }
            let batch = batcher.take().unwrap().unwrap();
            let names: Vec<String> = batch.schema_ref().fields().iter().map(|f| f.name().clone()).collect();
            let mut back = Vec::new();
            let instruments = Scatter::new(kind, &names, true, None).unwrap().records(&batch, &mut back).unwrap();
            prop_assert_eq!(instruments.value(2), "A:B");
            prop_assert_eq!(back, records.concat());
        }
    }

    #[test]
    fn other_programs_types_are_taken_where_they_are_exact_and_refused_where_not() {
        let kind = &SCHEMAS[0];
        let price = |array: ArrayRef| -> Result<i64, String> {
            let schema = ArrowSchema::new(vec![
                Field::new("price", array.data_type().clone(), true),
                Field::new("instrument", DataType::Utf8, false),
            ]);
            let batch = RecordBatch::try_new(Arc::new(schema), vec![array, Arc::new(StringArray::from(vec!["A"]))]).unwrap();
            let mut words = Vec::new();
            Scatter::new(kind, &["price".to_owned(), "instrument".to_owned()], false, None)?.records(&batch, &mut words)?;
            assert_eq!(words[1], u64::MAX, "a time that is absent is null");
            Ok(RecordRef::first(&words).unwrap().get::<tapestore::record::Trade>().unwrap().price.0)
        };
        assert_eq!(price(Arc::new(arrow_array::Float64Array::from(vec![0.1]))), Ok(100_000_000));
        assert_eq!(price(Arc::new(arrow_array::Float32Array::from(vec![None]))), Ok(i64::MAX));
        assert_eq!(price(Arc::new(arrow_array::Int32Array::from(vec![-7]))), Ok(-7_000_000_000));
        assert_eq!(price(Arc::new(StringArray::from(vec!["-1.5"]))), Ok(-1_500_000_000));
        let decimal =
            |v: i128, scale| Arc::new(arrow_array::Decimal128Array::from(vec![v]).with_precision_and_scale(38, scale).unwrap());
        assert_eq!(price(decimal(15, 1)), Ok(1_500_000_000));
        assert_eq!(price(decimal(15_000, 12)), Ok(15));
        assert!(price(decimal(1, 12)).unwrap_err().contains("nine decimal places"));
        assert!(price(Arc::new(arrow_array::Int64Array::from(vec![61_800_200_000_000]))).unwrap_err().contains("whole units"));
        assert!(price(Arc::new(StringArray::from(vec!["x"]))).is_err());
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(
            Scatter::new(kind, &names(&["price", "instrument", "price"]), false, None).is_err_and(|e| e.contains("two columns"))
        );
        let lost = Scatter::new(kind, &names(&["lsn", "index_time", "price", "instrument"]), false, None).unwrap();
        assert!(lost.units.is_none(), "a file of ours that has lost its metadata has to be asked about");
        assert_eq!(as_times(vec![None, Some(5)], Form { is_raw: false, is_ours: false }), Ok(vec![u64::MAX, 5]));
        assert!(as_times(vec![Some(-1)], Form { is_raw: false, is_ours: false }).is_err(), "no time is before 1970");
    }
}
