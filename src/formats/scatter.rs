//! Owns: Arrow record batches as records, for the schema of [`crate::schema`] and for what other programs write.
//!
//! What must hold: a value that no record can hold exactly ends the import with its column and the reason; it is never
//! rounded or truncated, except that a floating-point number becomes the nearest multiple of 1e-9.

use std::str::FromStr;

use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampNanosecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, PrimitiveArray, RecordBatch, StringArray};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, TimeUnit};
use tapestore::record::{ADDED_COLUMNS, Column, ColumnType, Schema};

use crate::error::{Error, Fault};
use crate::schema::{INSTRUMENT, SCALE};

/// Multiples of 1e-9 that are one.
const UNITS: i128 = 1_000_000_000;

/// What integers are in columns of prices and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Whole units.
    Whole,
    /// Billionths, as exports write them.
    Nano,
}

impl Units {
    /// All of them.
    pub const ALL: [Units; 2] = [Units::Whole, Units::Nano];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Units::Whole => "whole",
            Units::Nano => "nano",
        }
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Units::Whole => "Whole units",
            Units::Nano => "Billionths, as tape export writes them",
        }
    }
}

impl FromStr for Units {
    type Err = Error;

    fn from_str(text: &str) -> Result<Units, Error> {
        let units = Units::ALL.into_iter().find(|units| units.name() == text);
        units.ok_or_else(|| Error::Usage(format!("'{text}' is none of: {}", Units::ALL.map(Units::name).join(", "))))
    }
}

/// How the columns of a batch go into records of a kind.
pub struct Scatter {
    kind: &'static Schema,
    /// For each column of the batch, the kind's; `None` if it is ignored.
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
    /// Which column the kind does not have or the file has twice, or that none names the instrument.
    pub fn new(kind: &'static Schema, names: &[String], is_ours: bool, units: Option<Units>) -> Result<Scatter, Fault> {
        let mut columns = Vec::new();
        for (i, name) in names.iter().enumerate() {
            if !name.is_empty() && names.iter().take(i).any(|n| n == name) {
                return Err(twice(name));
            }
            columns.push(place_of(kind, name)?);
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
    pub fn records(&self, batch: &RecordBatch, words: &mut Vec<u64>) -> Result<StringArray, Fault> {
        words.clear();
        words.resize(batch.num_rows() * self.kind.words, 0);
        words.chunks_exact_mut(self.kind.words).filter_map(|r| r.first_mut()).for_each(|w| *w = u64::from(self.kind.kind.0));
        let stride = self.kind.words * 8;
        let bytes = bytemuck::cast_slice_mut::<u64, u8>(words);
        let is_given = |c: &Column| self.columns.iter().flatten().any(|given| given.name == c.name);
        for column in self.kind.columns.iter().filter(|c| c.of == ColumnType::Ts && !is_given(c)) {
            each(bytes, stride, column, |raw, _| raw.fill(0xff));
        }
        for ((column, array), theirs) in self.columns.iter().zip(batch.columns()).zip(batch.schema_ref().fields()) {
            let Some(column) = column else { continue };
            let says = theirs.metadata().get("scale").is_some_and(|s| *s == SCALE.to_string());
            let is_fixed = matches!(column.of, ColumnType::Price | ColumnType::Size | ColumnType::Volume);
            if is_fixed && !says && self.units.is_none() && array.data_type().is_integer() {
                let lost = "its integers have lost the metadata that says what they are; say --units nano or --units whole";
                return Err(Fault::new(lost).column(column.name));
            }
            let is_raw = says || self.units == Some(Units::Nano);
            put(column, array, Form { is_raw, is_ours: self.is_ours }, bytes, stride).map_err(|e| e.column(column.name))?;
        }
        let names = batch.columns().get(self.instrument).ok_or("the batch has no column of names")?;
        if !is_text(names.data_type()) {
            let what = "it holds the names of instruments (files of a store's history have numbers; tape export names them)";
            let fault = Fault::new(format!("{} is no text; {what}", names.data_type()));
            return Err(fault.column(INSTRUMENT).values("text", names.data_type()));
        }
        strings(names).map_err(|e| e.column(INSTRUMENT))
    }
}

/// The column of `kind` that a file's column `name` is; `None` if the file's is ignored.
///
/// # Errors
/// That the kind has no such column.
pub(crate) fn place_of(kind: &'static Schema, name: &str) -> Result<Option<&'static Column>, Fault> {
    if ADDED_COLUMNS.contains(&name) || name == INSTRUMENT || name.is_empty() {
        return Ok(None);
    }
    let column = kind.column(name).filter(|c| !c.is_reserved());
    column.map(Some).ok_or_else(|| {
        let columns: Vec<&str> = kind.columns.iter().filter(|c| !c.is_reserved()).map(|c| c.name).collect();
        let columns = columns.join(", ");
        let reason = format!(
            "a {} has no column of this name; it has {columns}. Rename it with --column {name}=OURS, or leave it out with \
             --column {name}=",
            kind.name
        );
        Fault::new(reason).column(name).values(columns, name)
    })
}

/// That two columns of a file are called `name`.
pub(crate) fn twice(name: &str) -> Fault {
    let reason = "two columns of the file have this name; rename one with --column THEIRS=OURS, or drop it with --column THEIRS=";
    Fault::new(reason).column(name)
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

fn cast(array: &dyn Array, to: &DataType) -> Result<ArrayRef, Fault> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, to, &options).map_err(|e| Fault::new(e.to_string()))
}

fn strings(array: &dyn Array) -> Result<StringArray, Fault> {
    let array = cast(array, &DataType::Utf8)?;
    array.as_any().downcast_ref::<StringArray>().cloned().ok_or_else(|| Fault::new("it is not text"))
}

/// `values`, which `array` was cast to, as the type that `of` means.
fn typed<'a, A: 'static>(values: &'a ArrayRef, of: &DataType, array: &dyn Array) -> Result<&'a A, Fault> {
    let found = array.data_type();
    values.as_any().downcast_ref::<A>().ok_or_else(|| {
        let reason = format!("its type is {found}, and {of} is needed; convert it, or leave it out with --column THEIRS=");
        Fault::new(reason).values(of, found)
    })
}

/// The values of `array` as `T`.
fn options<T: ArrowPrimitiveType>(array: &dyn Array, of: &DataType) -> Result<Vec<Option<T::Native>>, Fault> {
    let values = cast(array, of)?;
    Ok(typed::<PrimitiveArray<T>>(&values, of, array)?.iter().collect())
}

/// The values of `array` as `T`; a null is `null`, if it may be one.
fn numbers<T: ArrowPrimitiveType>(array: &dyn Array, of: &DataType, null: Option<T::Native>) -> Result<Vec<T::Native>, Fault> {
    if null.is_none() && array.null_count() > 0 {
        return Err(Fault::new("it has nulls, and no number that stands for one"));
    }
    Ok(options::<T>(array, of)?.into_iter().map(|v| v.or(null).unwrap_or_default()).collect())
}

/// Whole numbers of 1e-9: `None` is null.
fn fixed(array: &dyn Array, is_raw: bool) -> Result<Vec<Option<i128>>, Fault> {
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
            let of = DataType::Decimal128(38, scale);
            let values = cast(array, &of)?;
            let values = typed::<PrimitiveArray<Decimal128Type>>(&values, &of, array)?;
            let power = u32::from(scale.abs_diff(SCALE));
            let unit = 10i128.checked_pow(power).ok_or(too_large)?;
            let value = |v: i128| match scale <= SCALE {
                true => v.checked_mul(unit).ok_or(too_large),
                false if v % unit == 0 => Ok(v / unit),
                false => Err(too_fine),
            };
            values.iter().map(|v| v.map(value).transpose().map_err(Fault::from)).collect()
        }
        // The nearest 1e-9: a decimal of at most fifteen digits comes back as it was written.
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let values = cast(array, &DataType::Float64)?;
            let values = typed::<arrow_array::Float64Array>(&values, &DataType::Float64, array)?;
            let value = |v: f64| {
                let units = (v * UNITS as f64).round();
                if v.is_nan() {
                    Ok(None)
                } else if units.abs() < 1e37 {
                    Ok(Some(units as i128))
                } else {
                    Err(Fault::new(too_large))
                }
            };
            values.iter().map(|v| v.map_or(Ok(None), value)).collect()
        }
        of if of.is_integer() => {
            let decimal = DataType::Decimal128(38, 0);
            let values = cast(array, &decimal)?;
            let values = typed::<PrimitiveArray<Decimal128Type>>(&values, &decimal, array)?;
            let unit = if is_raw { 1 } else { UNITS };
            values.iter().map(|v| v.map(|v| v.checked_mul(unit).ok_or_else(|| Fault::new(too_large))).transpose()).collect()
        }
        of => Err(Fault::new(format!("{of} is no number")).values("a number", of)),
    }
}

/// Puts the values of `array` where `column` lies in each record.
fn put(column: &Column, array: &ArrayRef, form: Form, bytes: &mut [u8], stride: usize) -> Result<(), Fault> {
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
        return bad.map_or(Ok(()), |e| Err(e.into()));
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
                return Err(Fault::new("a value is out of range; integers without the field metadata scale = 9 are whole units"));
            }
        }
        ColumnType::Char | ColumnType::Text(_) => return put_text(column, array, bytes, stride),
        ColumnType::Reserved(_) => {}
    }
    Ok(())
}

fn as_times(values: Vec<Option<i64>>, form: Form) -> Result<Vec<u64>, Fault> {
    let time = |v: Option<i64>| match v {
        None => Ok(u64::MAX),
        Some(v) if v < 0 && !form.is_ours => Err(Fault::new("a time is before 1970")),
        Some(v) => Ok(v as u64),
    };
    values.into_iter().map(time).collect()
}

fn put_text(column: &Column, array: &ArrayRef, bytes: &mut [u8], stride: usize) -> Result<(), Fault> {
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
                _ => {
                    let what = text.escape_debug();
                    let fault = Fault::new(format!("'{what}' does not fit into {} bytes", column.of.size()));
                    bad = Some(fault.values(column.of.size(), what));
                }
            }
        }
    });
    bad.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{Field, Schema as ArrowSchema};
    use proptest::prelude::*;
    use tapestore::lsn::Lsn;
    use tapestore::reader::Row;
    use tapestore::record::{RecordRef, SCHEMAS};
    use tapestore::time::Ts;

    use super::*;
    use crate::schema::Batcher;

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
        let price = |array: ArrayRef| -> Result<i64, Fault> {
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
        assert!(price(decimal(1, 12)).unwrap_err().reason.contains("nine decimal places"));
        assert!(
            price(Arc::new(arrow_array::Int64Array::from(vec![61_800_200_000_000]))).unwrap_err().reason.contains("whole units")
        );
        assert!(price(Arc::new(StringArray::from(vec!["x"]))).is_err());
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(
            Scatter::new(kind, &names(&["price", "instrument", "price"]), false, None)
                .is_err_and(|e| e.reason.contains("two columns"))
        );
        let lost = Scatter::new(kind, &names(&["lsn", "index_time", "price", "instrument"]), false, None).unwrap();
        assert!(lost.units.is_none(), "a file of ours that has lost its metadata has to be asked about");
        assert_eq!(as_times(vec![None, Some(5)], Form { is_raw: false, is_ours: false }), Ok(vec![u64::MAX, 5]));
        assert!(as_times(vec![Some(-1)], Form { is_raw: false, is_ours: false }).is_err(), "no time is before 1970");
    }
}
