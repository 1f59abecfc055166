//! Owns: rows of an answer as the tool prints rows everywhere: a table that fits the terminal, JSON lines, CSV.
//!
//! What must hold: a number is a number in JSON, null is null; times are printed as by every command.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema,
    TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::Value as Json;
use tape_services::exit::Outcome;
use tape_services::grid::{Cell, Grid, Heading};
use tapestore::time::Ts;

/// The headings of rows with `schema`. Names that occur twice get a number.
pub fn headings(schema: &Schema) -> Vec<Heading> {
    let mut names: Vec<String> = Vec::new();
    for field in schema.fields() {
        let mut name = field.name().clone();
        let mut number = 1;
        while names.contains(&name) {
            number += 1;
            name = format!("{}_{number}", field.name());
        }
        names.push(name);
    }
    let is_left = |of: &DataType| !of.is_numeric();
    let fields = schema.fields().iter();
    names.into_iter().zip(fields).map(|(name, field)| Heading::new(name, is_left(field.data_type()))).collect()
}

/// Prints the rows of `batch`.
///
/// # Errors
/// The output cannot be written.
pub fn print(grid: &mut Grid, batch: &RecordBatch) -> Outcome {
    rows(batch).try_for_each(|cells| grid.push(cells))
}

/// The cells of each row of `batch`.
pub fn rows(batch: &RecordBatch) -> impl Iterator<Item = Vec<Cell>> + '_ {
    let options = FormatOptions::new().with_null("null");
    let columns: Vec<Printed<'_>> = batch.columns().iter().map(|array| Printed::new(array, &options)).collect();
    (0..batch.num_rows()).map(move |row| columns.iter().map(|column| column.cell(row)).collect())
}

/// A column that is printed.
struct Printed<'a> {
    array: &'a ArrayRef,
    /// Of a type that has no rule here.
    formatter: Option<ArrayFormatter<'a>>,
    /// The values of a dictionary.
    values: Option<Box<Printed<'a>>>,
}

impl<'a> Printed<'a> {
    fn new(array: &'a ArrayRef, options: &FormatOptions<'a>) -> Printed<'a> {
        let values = array.as_any_dictionary_opt().map(|d| Box::new(Printed::new(d.values(), options)));
        Printed { array, formatter: ArrayFormatter::try_new(array.as_ref(), options).ok(), values }
    }

    fn number<T: ArrowPrimitiveType>(&self, row: usize) -> Cell
    where
        T::Native: std::fmt::Display + Into<Json>,
    {
        let value = self.array.as_primitive::<T>().value(row);
        Cell::new(value, value.into())
    }

    fn cell(&self, row: usize) -> Cell {
        if self.array.is_null(row) {
            return Cell::new("null", Json::Null);
        }
        if let (Some(values), Some(dictionary)) = (&self.values, self.array.as_any_dictionary_opt()) {
            let key = dictionary.normalized_keys().get(row).copied().unwrap_or(0);
            return values.cell(key);
        }
        match self.array.data_type() {
            DataType::Int8 => self.number::<Int8Type>(row),
            DataType::Int16 => self.number::<Int16Type>(row),
            DataType::Int32 => self.number::<Int32Type>(row),
            DataType::Int64 => self.number::<Int64Type>(row),
            DataType::UInt8 => self.number::<UInt8Type>(row),
            DataType::UInt16 => self.number::<UInt16Type>(row),
            DataType::UInt32 => self.number::<UInt32Type>(row),
            DataType::UInt64 => self.number::<UInt64Type>(row),
            DataType::Float32 => self.number::<Float32Type>(row),
            DataType::Float64 => self.number::<Float64Type>(row),
            DataType::Boolean => {
                let value = self.array.as_boolean().value(row);
                Cell::new(value, value.into())
            }
            DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None) => {
                let ns = self.array.as_primitive::<TimestampNanosecondType>().value(row);
                match u64::try_from(ns) {
                    Ok(ns) => Cell::text(Ts(ns)),
                    Err(_) => self.formatted(row),
                }
            }
            _ => self.formatted(row),
        }
    }

    fn formatted(&self, row: usize) -> Cell {
        Cell::text(self.formatter.as_ref().map(|f| f.value(row).to_string()).unwrap_or_default())
    }
}
