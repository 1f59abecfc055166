//! Owns: the rows of an answer as JSON.
//!
//! What must hold: a number that JavaScript would change is a text: integers above 2^53 and decimals keep all their digits.
//! Times are printed as by every command. A value longer than `VALUE_MAX` is shortened, and counted.

use std::fmt::Write as _;
use std::io::Write as _;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, TimeUnit,
    TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Value as Json, json};
use tapestore::time::Ts;

/// Bytes of a value.
const VALUE_MAX: usize = 64 << 10;
/// The greatest integer up to which JavaScript has all.
const EXACT_MAX: i128 = (1 << 53) - 1;

/// The columns of `schema`: name, type, and what a page may do with it: `time`, `number`, `text`.
pub(super) fn columns(schema: &Schema) -> Json {
    let column = |field: &arrow::datatypes::FieldRef| {
        let of = match field.data_type() {
            DataType::Dictionary(_, values) => values.as_ref(),
            of => of,
        };
        let class = match of {
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => "time",
            of if of.is_numeric() => "number",
            _ => "text",
        };
        json!({ "name": field.name(), "type": type_name(of), "class": class })
    };
    schema.fields().iter().map(column).collect()
}

/// What a type is called.
pub(super) fn type_name(of: &DataType) -> String {
    match of {
        DataType::Dictionary(_, values) => type_name(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::Float64 => "double".to_owned(),
        of => of.to_string().to_lowercase(),
    }
}

/// The columns of a batch.
pub(super) struct Cells<'a>(Vec<Column<'a>>);

struct Column<'a> {
    array: &'a ArrayRef,
    /// Of a type that has no rule here.
    formatter: Option<ArrayFormatter<'a>>,
    /// The keys and the values of a dictionary.
    dictionary: Option<(Vec<usize>, Box<Column<'a>>)>,
}

/// A text that takes no more than a value may have.
#[derive(Default)]
struct Short {
    text: String,
    is_shortened: bool,
}

impl std::fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = VALUE_MAX.saturating_sub(self.text.len());
        if text.len() <= room {
            self.text.push_str(text);
            return Ok(());
        }
        let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.text.push_str(text.get(..end).unwrap_or(""));
        self.is_shortened = true;
        // What writes stops.
        Err(std::fmt::Error)
    }
}

impl<'a> Cells<'a> {
    /// The columns of `batch`.
    pub(super) fn new(batch: &'a RecordBatch, options: &FormatOptions<'a>) -> Cells<'a> {
        Cells(batch.columns().iter().map(|array| Column::new(array, options)).collect())
    }

    /// Appends row `row` to `to`, an array; returns how many of its values are shortened.
    pub(super) fn write(&self, row: usize, to: &mut Vec<u8>) -> usize {
        let mut shortened = 0;
        to.push(b'[');
        for (index, column) in self.0.iter().enumerate() {
            if index > 0 {
                to.push(b',');
            }
            shortened += usize::from(column.write(row, to));
        }
        to.push(b']');
        shortened
    }
}

/// Appends what writing to memory cannot refuse.
fn put(to: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _is_written = to.write_fmt(text).is_ok();
}

fn quoted(to: &mut Vec<u8>, text: &str) {
    let _is_written = serde_json::to_writer(to, text).is_ok();
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef, options: &FormatOptions<'a>) -> Column<'a> {
        let dictionary =
            array.as_any_dictionary_opt().map(|of| (of.normalized_keys(), Box::new(Column::new(of.values(), options))));
        Column { array, formatter: ArrayFormatter::try_new(array.as_ref(), options).ok(), dictionary }
    }

    fn integer<T: ArrowPrimitiveType>(&self, row: usize, to: &mut Vec<u8>) -> bool
    where
        T::Native: Into<i128>,
    {
        let value: i128 = self.array.as_primitive::<T>().value(row).into();
        if value.abs() <= EXACT_MAX {
            put(to, format_args!("{value}"))
        } else {
            put(to, format_args!("\"{value}\""))
        }
        false
    }

    fn float(value: f64, to: &mut Vec<u8>) -> bool {
        if value.is_finite() {
            put(to, format_args!("{}", Json::from(value)))
        } else {
            put(to, format_args!("\"{value}\""))
        }
        false
    }

    /// Appends the value of `row`; returns whether it is shortened.
    fn write(&self, row: usize, to: &mut Vec<u8>) -> bool {
        if self.array.is_null(row) || *self.array.data_type() == DataType::Null {
            put(to, format_args!("null"));
            return false;
        }
        if let Some((keys, values)) = &self.dictionary {
            return values.write(keys.get(row).copied().unwrap_or(0), to);
        }
        match self.array.data_type() {
            DataType::Int8 => self.integer::<Int8Type>(row, to),
            DataType::Int16 => self.integer::<Int16Type>(row, to),
            DataType::Int32 => self.integer::<Int32Type>(row, to),
            DataType::Int64 => self.integer::<Int64Type>(row, to),
            DataType::UInt8 => self.integer::<UInt8Type>(row, to),
            DataType::UInt16 => self.integer::<UInt16Type>(row, to),
            DataType::UInt32 => self.integer::<UInt32Type>(row, to),
            DataType::UInt64 => self.integer::<UInt64Type>(row, to),
            DataType::Float32 => {
                let value = self.array.as_primitive::<Float32Type>().value(row);
                // Its own digits: 0.1 and not 0.10000000149011612.
                Column::float(value.to_string().parse().unwrap_or(f64::NAN), to)
            }
            DataType::Float64 => Column::float(self.array.as_primitive::<Float64Type>().value(row), to),
            DataType::Boolean => {
                put(to, format_args!("{}", self.array.as_boolean().value(row)));
                false
            }
            DataType::Timestamp(TimeUnit::Nanosecond, None) => {
                match u64::try_from(self.array.as_primitive::<TimestampNanosecondType>().value(row)) {
                    Ok(ns) => {
                        put(to, format_args!("\"{}\"", Ts(ns)));
                        false
                    }
                    Err(_) => self.formatted(row, to),
                }
            }
            _ => self.formatted(row, to),
        }
    }

    fn formatted(&self, row: usize, to: &mut Vec<u8>) -> bool {
        let mut short = Short::default();
        if let Some(formatter) = &self.formatter {
            // A text that is too long is an error of the writer, too.
            let _is_whole = write!(short, "{}", formatter.value(row)).is_ok();
        }
        if short.is_shortened {
            short.text.push_str(" ...");
        }
        quoted(to, &short.text);
        short.is_shortened
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BooleanArray, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int64Array, StringArray,
        TimestampNanosecondArray, UInt64Array,
    };

    use super::*;

    fn of(array: ArrayRef) -> (String, usize) {
        let field = arrow::datatypes::Field::new("x", array.data_type().clone(), true);
        let rows = array.len();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![array]).unwrap();
        let options = FormatOptions::new();
        let (cells, mut bytes) = (Cells::new(&batch, &options), Vec::new());
        let shortened = (0..rows).map(|row| cells.write(row, &mut bytes)).sum();
        (String::from_utf8(bytes).unwrap(), shortened)
    }

    #[test]
    fn values_keep_their_digits_and_texts_are_quoted() {
        let text = |array: ArrayRef| of(array).0;
        let big = (1i64 << 53) - 1;
        assert_eq!(
            text(Arc::new(Int64Array::from(vec![Some(-5), None, Some(big), Some(big + 1), Some(i64::MIN)]))),
            "[-5][null][9007199254740991][\"9007199254740992\"][\"-9223372036854775808\"]"
        );
        assert_eq!(text(Arc::new(UInt64Array::from(vec![7, u64::MAX]))), "[7][\"18446744073709551615\"]");
        assert_eq!(text(Arc::new(Float64Array::from(vec![1.5, f64::NAN, f64::INFINITY]))), "[1.5][\"NaN\"][\"inf\"]");
        assert_eq!(text(Arc::new(Float32Array::from(vec![0.1]))), "[0.1]");
        assert_eq!(text(Arc::new(BooleanArray::from(vec![true]))), "[true]");
        assert_eq!(text(Arc::new(Decimal128Array::from(vec![12345]).with_precision_and_scale(38, 2).unwrap())), "[\"123.45\"]");
        assert_eq!(text(Arc::new(arrow::array::NullArray::new(2))), "[null][null]");
        let markup = "<img src=x onerror=\"alert(1)\">\u{2028}\n";
        let written = text(Arc::new(StringArray::from(vec![markup])));
        assert_eq!(serde_json::from_str::<Vec<String>>(&written).unwrap(), [markup]);
        let times = TimestampNanosecondArray::from(vec![1_723_100_000_000_000_001, -1]);
        assert!(text(Arc::new(times)).starts_with("[\"2024-08-08T06:53:20.000000001Z\"][\"1969"));
        let symbols: DictionaryArray<arrow::datatypes::UInt32Type> =
            vec![Some("a"), None, Some("b"), Some("a")].into_iter().collect();
        assert_eq!(text(Arc::new(symbols)), "[\"a\"][null][\"b\"][\"a\"]");
    }

    #[test]
    fn a_long_text_is_shortened_at_a_character() {
        let (text, shortened) = of(Arc::new(StringArray::from(vec!["\u{e9}".repeat(VALUE_MAX)])));
        assert!(shortened == 1 && text.len() < VALUE_MAX + 16 && text.ends_with(" ...\"]"), "{}", text.len());
        assert_eq!(of(Arc::new(StringArray::from(vec!["x".repeat(VALUE_MAX)]))).1, 0);
    }
}
