//! Owns: the rows of an answer as messages of PostgreSQL's protocol.
//!
//! | Arrow | PostgreSQL |
//! |---|---|
//! | Boolean | `bool` |
//! | Int8, Int16, UInt8 | `int2` |
//! | Int32, UInt16 | `int4` |
//! | Int64, UInt32 | `int8` |
//! | UInt64, Decimal | `numeric`: an `int8` would not hold every LSN |
//! | Float32, Float64 | `float4`, `float8` |
//! | texts, Dictionary of texts | `text` |
//! | Timestamp without a zone, with a zone | `timestamp`, `timestamptz`, UTC |
//! | Date | `date` |
//! | Binary | `bytea` |
//! | Struct, List | `json` |
//! | others | `text` |
//!
//! PostgreSQL's times have microseconds: the last three digits of a time are not sent. `cast(time as bigint)` sends all the
//! nanoseconds, as an `int8`.
//!
//! What must hold: rows are encoded as the client reads them: at most a chunk of rows and bytes before.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema,
    TimeUnit, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::{BufMut, BytesMut};
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use serde_json::Value as Json;

use crate::postgres::codes;

/// Bytes of encoded rows that wait for a client.
const CHUNK_BYTES: usize = 1 << 20;
/// Days and microseconds from 1970 to 2000, where PostgreSQL's binary times begin.
const DAYS_TO_2000: i32 = 10_957;
const MICROS_TO_2000: i64 = 946_684_800_000_000;

static ENCODED: AtomicU64 = AtomicU64::new(0);

/// How many rows this process has encoded for clients.
pub fn encoded() -> u64 {
    ENCODED.load(Ordering::Relaxed)
}

/// The type that a client gets for values of the type `of`.
pub(super) fn type_of(of: &DataType) -> Type {
    match of {
        DataType::Boolean => Type::BOOL,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Type::INT2,
        DataType::Int32 | DataType::UInt16 => Type::INT4,
        DataType::Int64 | DataType::UInt32 => Type::INT8,
        DataType::UInt64 | DataType::Decimal32(..) | DataType::Decimal64(..) => Type::NUMERIC,
        DataType::Decimal128(..) | DataType::Decimal256(..) => Type::NUMERIC,
        DataType::Float32 => Type::FLOAT4,
        DataType::Float64 => Type::FLOAT8,
        DataType::Timestamp(_, None) => Type::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => Type::TIMESTAMPTZ,
        DataType::Date32 | DataType::Date64 => Type::DATE,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Type::BYTEA,
        DataType::Struct(_) | DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => Type::JSON,
        DataType::Dictionary(_, value) => type_of(value),
        _ => Type::TEXT,
    }
}

/// The bytes of a type's values, -1 if they differ.
fn size_of(of: &Type) -> i16 {
    match *of {
        Type::BOOL => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ => 8,
        _ => -1,
    }
}

/// The columns of `schema` for a client that wants them in `format`.
pub(super) fn fields(schema: &Schema, format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    if let Format::Individual(formats) = format
        && formats.len() != schema.fields().len()
    {
        let message = format!("there are {} formats for {} columns", formats.len(), schema.fields().len());
        return Err(codes::error("08P01", message));
    }
    let field = |(at, field): (usize, &Arc<arrow::datatypes::Field>)| {
        let of = type_of(field.data_type());
        let size = size_of(&of);
        FieldInfo::new(field.name().clone(), None, None, of, format.format_for(at)).with_type_size(size)
    };
    Ok(schema.fields().iter().enumerate().map(field).collect())
}

/// The rows of `answer` as messages; at most `ahead` are encoded before they are asked for. Columns are cast to `types`.
pub(super) fn rows(
    answer: SendableRecordBatchStream,
    types: Arc<Schema>,
    fields: &[FieldInfo],
    ahead: usize,
) -> impl Stream<Item = PgWireResult<DataRow>> + Send + 'static {
    let formats = fields.iter().map(FieldInfo::format).collect();
    let state = Encoding { answer, types, formats, ahead: ahead.max(1), batch: None, waiting: VecDeque::new() };
    futures::stream::try_unfold(state, |mut state| async move {
        loop {
            if let Some(row) = state.waiting.pop_front() {
                return Ok(Some((row, state)));
            }
            if !state.chunk()? {
                match state.answer.next().await {
                    Some(batch) => state.take(batch.map_err(codes::of_rows)?)?,
                    None => return Ok(None),
                }
            }
        }
    })
}

struct Encoding {
    answer: SendableRecordBatchStream,
    types: Arc<Schema>,
    formats: Vec<FieldFormat>,
    ahead: usize,
    /// A batch and its next row.
    batch: Option<(RecordBatch, usize)>,
    waiting: VecDeque<DataRow>,
}

impl Encoding {
    fn take(&mut self, batch: RecordBatch) -> PgWireResult<()> {
        let columns = batch.columns().iter().zip(self.types.fields()).map(|(array, field)| {
            if type_of(array.data_type()) == type_of(field.data_type()) {
                return Ok(array.clone());
            }
            let of = if *field.data_type() == DataType::Null { &DataType::Utf8 } else { field.data_type() };
            arrow::compute::cast(array, of)
        });
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(|error| codes::of_rows(error.into()))?;
        let fields: Vec<_> = columns
            .iter()
            .zip(self.types.fields())
            .map(|(array, field)| arrow::datatypes::Field::new(field.name(), array.data_type().clone(), true))
            .collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options);
        self.batch = Some((batch.map_err(|error| codes::of_rows(error.into()))?, 0));
        Ok(())
    }

    /// Encodes the next rows of the batch; returns whether there was any.
    fn chunk(&mut self) -> PgWireResult<bool> {
        let Some((batch, first)) = self.batch.take() else { return Ok(false) };
        let options = FormatOptions::new();
        let columns = batch.columns().iter().map(|array| Cells::new(array, &options)).collect::<PgWireResult<Vec<_>>>()?;
        let (mut buffer, mut bytes, mut row) = (BytesMut::with_capacity(8 << 10), 0, first);
        let count = i16::try_from(columns.len()).map_err(|_| codes::error("54011", "there are too many columns"))?;
        while row < batch.num_rows() && self.waiting.len() < self.ahead && bytes < CHUNK_BYTES {
            for (column, format) in columns.iter().zip(&self.formats) {
                column.encode(row, *format, &mut buffer)?;
            }
            bytes += buffer.len();
            self.waiting.push_back(DataRow::new(buffer.split(), count));
            row += 1;
        }
        ENCODED.fetch_add((row - first) as u64, Ordering::Relaxed);
        let is_any = row > first;
        drop(columns);
        if row < batch.num_rows() {
            self.batch = Some((batch, row));
        }
        Ok(is_any)
    }
}

/// A column of a batch.
enum Cells<'a> {
    Bool(&'a ArrayRef),
    Number(&'a ArrayRef),
    Numeric(&'a ArrayRef, ArrayFormatter<'a>),
    /// Microseconds.
    Time(ArrayRef, bool),
    Date(ArrayRef),
    Bytes(ArrayRef),
    Text(&'a ArrayRef),
    Dictionary(&'a ArrayRef, Vec<usize>, Box<Cells<'a>>),
    Json(&'a ArrayRef),
    Other(&'a ArrayRef, ArrayFormatter<'a>),
}

impl<'a> Cells<'a> {
    fn new(array: &'a ArrayRef, options: &FormatOptions<'a>) -> PgWireResult<Cells<'a>> {
        let cast = |of: &DataType| arrow::compute::cast(array, of).map_err(|error| codes::of_rows(error.into()));
        let formatter = || ArrayFormatter::try_new(array.as_ref(), options).map_err(|error| codes::of_rows(error.into()));
        if let Some(dictionary) = array.as_any_dictionary_opt() {
            let keys = if dictionary.values().is_empty() { Vec::new() } else { dictionary.normalized_keys() };
            return Ok(Cells::Dictionary(array, keys, Box::new(Cells::new(dictionary.values(), options)?)));
        }
        Ok(match array.data_type() {
            DataType::Boolean => Cells::Bool(array),
            of if of.is_integer() || matches!(of, DataType::Float32 | DataType::Float64) => {
                if *of == DataType::UInt64 {
                    Cells::Numeric(array, formatter()?)
                } else {
                    Cells::Number(array)
                }
            }
            of if of.is_decimal() => Cells::Numeric(array, formatter()?),
            DataType::Timestamp(_, zone) => Cells::Time(micros(array)?, zone.is_some()),
            DataType::Date32 | DataType::Date64 => Cells::Date(cast(&DataType::Date32)?),
            of if type_of(of) == Type::BYTEA => Cells::Bytes(cast(&DataType::Binary)?),
            of if type_of(of) == Type::JSON => Cells::Json(array),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Cells::Text(array),
            _ => Cells::Other(array, formatter()?),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Cells::Bool(array) | Cells::Number(array) | Cells::Numeric(array, _) | Cells::Text(array) => array.is_null(row),
            Cells::Json(array) => array.is_null(row),
            Cells::Time(array, _) | Cells::Date(array) | Cells::Bytes(array) => array.is_null(row),
            Cells::Other(array, _) => *array.data_type() == DataType::Null || array.is_null(row),
            Cells::Dictionary(array, keys, values) => array.is_null(row) || keys.get(row).is_none_or(|key| values.is_null(*key)),
        }
    }

    /// Writes the length and the bytes of a value.
    fn encode(&self, row: usize, format: FieldFormat, out: &mut BytesMut) -> PgWireResult<()> {
        if self.is_null(row) {
            out.put_i32(-1);
            return Ok(());
        }
        let at = out.len();
        out.put_i32(0);
        match format {
            FieldFormat::Text => self.text(row, out)?,
            FieldFormat::Binary => self.binary(row, out)?,
        }
        let len = i32::try_from(out.len() - at - 4).map_err(|_| codes::error("54000", "a value is too long"))?;
        if let Some(mut place) = out.get_mut(at..at + 4) {
            place.put_i32(len);
        }
        Ok(())
    }

    fn text(&self, row: usize, out: &mut BytesMut) -> PgWireResult<()> {
        let written = match self {
            Cells::Bool(array) => out.write_str(if array.as_boolean().value(row) { "t" } else { "f" }),
            Cells::Number(array) => number(array, row, out),
            Cells::Numeric(_, formatter) | Cells::Other(_, formatter) => write!(out, "{}", formatter.value(row)),
            Cells::Time(array, is_zoned) => time(array.as_primitive::<TimestampMicrosecondType>().value(row), *is_zoned, out),
            Cells::Date(array) => {
                let days = array.as_primitive::<Date32Type>().value(row);
                date(i64::from(days), out)
            }
            Cells::Bytes(array) => {
                let bytes = array.as_binary::<i32>().value(row);
                out.write_str("\\x").and_then(|()| bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")))
            }
            Cells::Text(array) => out.write_str(text(array, row)),
            Cells::Dictionary(_, keys, values) => return values.text(keys.get(row).copied().unwrap_or(0), out),
            Cells::Json(array) => write!(out, "{}", json(array, row)),
        };
        written.map_err(|_| codes::error("XX000", "a value cannot be written"))
    }

    fn binary(&self, row: usize, out: &mut BytesMut) -> PgWireResult<()> {
        match self {
            Cells::Bool(array) => out.put_u8(u8::from(array.as_boolean().value(row))),
            Cells::Number(array) => put_number(array, row, out),
            Cells::Numeric(_, formatter) => {
                return numeric(&formatter.value(row).to_string(), out)
                    .ok_or_else(|| codes::error("22003", "a number has too many digits"));
            }
            Cells::Time(array, _) => {
                let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
                out.put_i64(micros.saturating_sub(MICROS_TO_2000));
            }
            Cells::Date(array) => out.put_i32(array.as_primitive::<Date32Type>().value(row).saturating_sub(DAYS_TO_2000)),
            Cells::Bytes(array) => out.put_slice(array.as_binary::<i32>().value(row)),
            Cells::Dictionary(_, keys, values) => return values.binary(keys.get(row).copied().unwrap_or(0), out),
            // Binary texts are texts.
            Cells::Text(_) | Cells::Json(_) | Cells::Other(..) => return self.text(row, out),
        }
        Ok(())
    }
}

/// The times of `array` in microseconds; what is less is left off, toward the past.
fn micros(array: &ArrayRef) -> PgWireResult<ArrayRef> {
    use arrow::datatypes::{TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType};
    let overflow = || codes::error("22008", "a time is out of range");
    let times: Result<arrow::array::PrimitiveArray<TimestampMicrosecondType>, _> = match array.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Ok(array.as_primitive::<TimestampNanosecondType>().unary(|ns| ns.div_euclid(1000)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => Ok(array.as_primitive::<TimestampMicrosecondType>().unary(|us| us)),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            array.as_primitive::<TimestampMillisecondType>().try_unary(|ms| ms.checked_mul(1000).ok_or_else(overflow))
        }
        _ => array.as_primitive::<TimestampSecondType>().try_unary(|s| s.checked_mul(1_000_000).ok_or_else(overflow)),
    };
    Ok(Arc::new(times?))
}

fn text(array: &ArrayRef, row: usize) -> &str {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row),
        _ => array.as_string_view().value(row),
    }
}

fn value<T: ArrowPrimitiveType>(array: &ArrayRef, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

fn number(array: &ArrayRef, row: usize, out: &mut BytesMut) -> std::fmt::Result {
    match array.data_type() {
        DataType::Int8 => write!(out, "{}", value::<Int8Type>(array, row)),
        DataType::Int16 => write!(out, "{}", value::<Int16Type>(array, row)),
        DataType::Int32 => write!(out, "{}", value::<Int32Type>(array, row)),
        DataType::Int64 => write!(out, "{}", value::<Int64Type>(array, row)),
        DataType::UInt8 => write!(out, "{}", value::<UInt8Type>(array, row)),
        DataType::UInt16 => write!(out, "{}", value::<UInt16Type>(array, row)),
        DataType::UInt32 => write!(out, "{}", value::<UInt32Type>(array, row)),
        DataType::Float32 => {
            let number = value::<Float32Type>(array, row);
            float(f64::from(number), &number.to_string(), out)
        }
        _ => {
            let number = value::<Float64Type>(array, row);
            float(number, &number.to_string(), out)
        }
    }
}

fn float(number: f64, shortest: &str, out: &mut BytesMut) -> std::fmt::Result {
    match number {
        n if n.is_nan() => out.write_str("NaN"),
        n if n.is_infinite() => out.write_str(if n > 0.0 { "Infinity" } else { "-Infinity" }),
        _ => out.write_str(shortest),
    }
}

fn put_number(array: &ArrayRef, row: usize, out: &mut BytesMut) {
    match array.data_type() {
        DataType::Int8 => out.put_i16(i16::from(value::<Int8Type>(array, row))),
        DataType::Int16 => out.put_i16(value::<Int16Type>(array, row)),
        DataType::Int32 => out.put_i32(value::<Int32Type>(array, row)),
        DataType::Int64 => out.put_i64(value::<Int64Type>(array, row)),
        DataType::UInt8 => out.put_i16(i16::from(value::<UInt8Type>(array, row))),
        DataType::UInt16 => out.put_i32(i32::from(value::<UInt16Type>(array, row))),
        DataType::UInt32 => out.put_i64(i64::from(value::<UInt32Type>(array, row))),
        DataType::Float32 => out.put_f32(value::<Float32Type>(array, row)),
        _ => out.put_f64(value::<Float64Type>(array, row)),
    }
}

/// A time like `2024-08-08 07:00:00.000001`.
fn time(micros: i64, is_zoned: bool, out: &mut BytesMut) -> std::fmt::Result {
    const DAY: i64 = 86_400_000_000;
    date(micros.div_euclid(DAY), out)?;
    let of_day = micros.rem_euclid(DAY);
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    write!(out, " {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        write!(out, ".{}", digits.trim_end_matches('0'))?;
    }
    if is_zoned { out.write_str("+00") } else { Ok(()) }
}

/// A day like `2024-08-08`, from its number since 1970.
fn date(days: i64, out: &mut BytesMut) -> std::fmt::Result {
    // Years begin in March: the day that a leap year has more is the last of its year.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    write!(out, "{year:04}-{month:02}-{day:02}")
}

/// Writes the decimal number `digits` as PostgreSQL's binary `numeric`: digits of base 10,000.
fn numeric(digits: &str, out: &mut BytesMut) -> Option<()> {
    let (is_negative, digits) = digits.strip_prefix('-').map_or((false, digits), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let padded = format!("{whole}{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let groups: Vec<i16> =
        padded.as_bytes().chunks(4).map(|four| std::str::from_utf8(four).ok()?.parse().ok()).collect::<Option<_>>()?;
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let weight = i16::try_from(whole.len() / 4).ok()? - 1 - i16::try_from(leading).ok()?;
    let trailing = groups.iter().rev().take_while(|group| **group == 0).count();
    let groups = groups.get(leading..groups.len() - trailing).unwrap_or(&[]);
    out.put_i16(i16::try_from(groups.len()).ok()?);
    out.put_i16(if groups.is_empty() { 0 } else { weight });
    out.put_u16(if is_negative && !groups.is_empty() { 0x4000 } else { 0 });
    out.put_i16(i16::try_from(fraction.len()).ok()?);
    groups.iter().for_each(|group| out.put_i16(*group));
    Some(())
}

/// A value as JSON.
fn json(array: &ArrayRef, row: usize) -> Json {
    if array.is_null(row) {
        return Json::Null;
    }
    let list = |items: ArrayRef| Json::Array((0..items.len()).map(|at| json(&items, at)).collect());
    match array.data_type() {
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            let fields = fields.iter().zip(columns.columns());
            Json::Object(fields.map(|(field, column)| (field.name().clone(), json(column, row))).collect())
        }
        DataType::List(_) => list(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row)),
        DataType::Boolean => Json::Bool(array.as_boolean().value(row)),
        _ => {
            let options = FormatOptions::new();
            let mut out = BytesMut::new();
            let written = Cells::new(array, &options).and_then(|cells| cells.text(row, &mut out));
            let text = String::from_utf8_lossy(&out).into_owned();
            if written.is_err() {
                return Json::Null;
            }
            // Decimal numbers of many digits stay texts: a number of JSON would lose some.
            let is_number = array.data_type().is_integer() || array.data_type().is_floating();
            let number = is_number.then(|| serde_json::from_str(&text).ok()).flatten();
            number.unwrap_or(Json::String(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::big_endian_bytes, reason = "PostgreSQL's protocol is big-endian")]
    fn numbers_have_the_digits_of_base_10000_that_postgresql_expects() {
        let of = |digits: &str| {
            let mut out = BytesMut::new();
            numeric(digits, &mut out).unwrap();
            out.chunks(2).map(|two| i16::from_be_bytes([two[0], two[1]])).collect::<Vec<_>>()
        };
        assert_eq!(of("0"), [0, 0, 0, 0]);
        assert_eq!(of("12345"), [2, 1, 0, 0, 1, 2345]);
        assert_eq!(of("-0.00012"), [2, -1, 0x4000, 5, 1, 2000]);
        assert_eq!(of("18446744073709551615"), [5, 4, 0, 0, 1844, 6744, 737, 955, 1615]);
        assert_eq!(of("10000"), [1, 1, 0, 0, 1]);
    }

    #[test]
    fn times_are_written_with_what_they_have_of_microseconds() {
        let of = |micros: i64| {
            let mut out = BytesMut::new();
            time(micros, false, &mut out).unwrap();
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(of(0), "1970-01-01 00:00:00");
        assert_eq!(of(-1), "1969-12-31 23:59:59.999999");
        assert_eq!(of(951_782_400_500_000), "2000-02-29 00:00:00.5");
        assert_eq!(of(1_723_100_000_123_456), "2024-08-08 06:53:20.123456");
    }
}
