//! Owns: `twap(x)`: the average of a value weighted by how long it stood: from its row's time to that of the next one.
//!
//! The last row has no weight, because nothing says how long it stands. Of rows with equal times the one with the greatest LSN
//! stands. If no time passes between the first and the last row, the last value is the average. Rows that are null are passed over.
//! [`super::rewrite`] adds the columns `time` and `lsn`.
//!
//! What must hold: the result does not depend on the order in which rows arrive: they are kept, 24 bytes each, and sorted at the end.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

/// Its name.
pub const NAME: &str = "twap";

/// All aggregates of this file.
pub fn all() -> Vec<Arc<AggregateUDF>> {
    vec![Arc::new(AggregateUDF::from(Twap(Signature::variadic_any(Volatility::Immutable))))]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Twap(Signature);

const STATE: [DataType; 3] = [DataType::Int64, DataType::UInt64, DataType::Float64];

impl AggregateUDFImpl for Twap {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match args {
            [value, ..] if !value.is_numeric() => Err(DataFusionError::Plan(format!("twap is for numbers, not for {value}"))),
            _ => Ok(DataType::Float64),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let field = |(of, name): (DataType, &str)| {
            Arc::new(Field::new_list(format!("{}[{name}]", args.name), Field::new_list_field(of, true), true))
        };
        Ok(STATE.into_iter().zip(["times", "lsns", "values"]).map(field).collect())
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::<Rows>::default())
    }
}

/// Times, LSNs and values of rows.
#[derive(Debug, Default)]
struct Rows(Vec<(i64, u64, f64)>);

impl Rows {
    fn add(&mut self, times: &ArrayRef, lsns: &ArrayRef, values: &ArrayRef) -> Result<()> {
        let [times, lsns, values] =
            [(times, &STATE[0]), (lsns, &STATE[1]), (values, &STATE[2])].map(|(array, of)| cast(array, of));
        let (times, lsns, values) = (times?, lsns?, values?);
        let times = times.as_primitive::<Int64Type>();
        let lsns = lsns.as_primitive::<UInt64Type>();
        let values = values.as_primitive::<Float64Type>();
        let rows = times.iter().zip(lsns).zip(values);
        self.0.extend(rows.filter_map(|((time, lsn), value)| Some((time?, lsn.unwrap_or(0), value?))));
        Ok(())
    }
}

impl Accumulator for Rows {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        match values {
            [value, time, lsn] => self.add(time, lsn, value),
            _ => Err(DataFusionError::Plan("twap(x) needs the column time beside x".to_owned())),
        }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.sort_unstable_by_key(|(time, lsn, _)| (*time, *lsn));
        let (mut sum, mut span) = (0.0, 0.0);
        for pair in self.0.windows(2) {
            if let [(from, _, value), (to, ..)] = pair {
                let stood = (*to - *from) as f64;
                sum += value * stood;
                span += stood;
            }
        }
        let last = self.0.last().map(|(.., value)| *value);
        Ok(ScalarValue::Float64(if span > 0.0 { Some(sum / span) } else { last }))
    }

    fn size(&self) -> usize {
        size_of::<Rows>() + self.0.capacity() * size_of::<(i64, u64, f64)>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let list = |array: ArrayRef| SingleRowListArrayBuilder::new(array).build_list_scalar();
        Ok(vec![
            list(Arc::new(Int64Array::from_iter_values(self.0.iter().map(|row| row.0)))),
            list(Arc::new(UInt64Array::from_iter_values(self.0.iter().map(|row| row.1)))),
            list(Arc::new(Float64Array::from_iter_values(self.0.iter().map(|row| row.2)))),
        ])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [times, lsns, values] = states else {
            return Err(DataFusionError::Internal("a state of twap has three lists".to_owned()));
        };
        for row in 0..times.len() {
            let list = |of: &ArrayRef| of.as_list::<i32>().value(row);
            self.add(&list(times), &list(lsns), &list(values))?;
        }
        Ok(())
    }
}
