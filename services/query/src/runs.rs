//! Owns: runs of rows with equal keys in sorted batches.
//!
//! What must hold: keys of two batches compare as their values do, also where dictionaries differ. A run may end before its
//! keys change; the next one then has the same key.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::{cast, partition, take};
use arrow::datatypes::{DataType, UInt32Type};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::Result;

/// Rows with equal keys.
#[derive(Clone, Debug)]
pub struct Run {
    /// The rows.
    pub rows: Range<usize>,
    /// The keys, in a form that is compared.
    pub key: OwnedRow,
    /// Whether a key is null.
    pub has_null: bool,
}

/// Finds runs.
#[derive(Debug, Default)]
pub struct Runs {
    /// Made for the types of the first keys.
    converter: Option<RowConverter>,
}

impl Runs {
    /// The runs of `keys`, at least one column.
    ///
    /// # Errors
    /// A type cannot be compared.
    pub fn of(&mut self, keys: &[ArrayRef]) -> Result<Vec<Run>> {
        let ranges = ranges(keys)?;
        let starts = UInt32Array::from_iter_values(ranges.iter().map(|range| range.start as u32));
        let mut firsts = Vec::with_capacity(keys.len());
        for key in keys {
            firsts.push(cast(&take(key.as_ref(), &starts, None)?, &plain(key.data_type()))?);
        }
        let converter = match &mut self.converter {
            Some(converter) => converter,
            None => {
                let fields = firsts.iter().map(|key| SortField::new(key.data_type().clone())).collect();
                self.converter.insert(RowConverter::new(fields)?)
            }
        };
        let converted = converter.convert_columns(&firsts)?;
        let run = |(at, rows)| Run {
            rows,
            key: converted.row(at).owned(),
            has_null: firsts.iter().any(|key: &ArrayRef| key.is_null(at)),
        };
        Ok(ranges.into_iter().enumerate().map(run).collect())
    }
}

/// The type as which a key of type `of` is compared.
fn plain(of: &DataType) -> DataType {
    match of {
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        of => of.clone(),
    }
}

/// The rows with equal keys. Dictionary keys that differ end a run, whatever their values.
fn ranges(keys: &[ArrayRef]) -> Result<Vec<Range<usize>>> {
    if let [key] = keys
        && let Some(dictionary) = key.as_dictionary_opt::<UInt32Type>()
        && dictionary.keys().null_count() == 0
    {
        let keys: &[u32] = dictionary.keys().values();
        let (mut ranges, mut start) = (Vec::new(), 0);
        while let Some(rest) = keys.get(start..).filter(|rest| !rest.is_empty()) {
            let len = match (rest.first(), rest.last()) {
                // Sorted rows with equal first and last keys are all equal.
                (Some(first), Some(last)) if first == last => rest.len(),
                (Some(first), _) => rest.iter().take_while(|key| *key == first).count(),
                _ => break,
            };
            ranges.push(start..start + len);
            start += len;
        }
        return Ok(ranges);
    }
    Ok(partition(keys)?.ranges())
}
