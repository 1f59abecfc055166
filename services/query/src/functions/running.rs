//! Owns: functions of a row and the rows before it, used with `OVER (PARTITION BY symbol ORDER BY time)`: `ema` and `returns`.
//!
//! `ema(x, n)` is the exponential moving average with the weight 2 / (n + 1) of the newest row, or the weight `n` itself if it is
//! below 1; it begins with the first value. `returns(x)` is `x / previous x - 1`. Rows that are null are passed over: `ema` keeps
//! its value, `returns` is null there.
//!
//! What must hold: rows are passed once, in order, and nothing but the last value is kept.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{PartitionEvaluator, Signature, TypeSignature, Volatility, WindowUDF, WindowUDFImpl};

/// All functions of this file.
pub fn all() -> Vec<Arc<WindowUDF>> {
    let one = TypeSignature::Exact(vec![DataType::Float64]);
    let two = TypeSignature::Exact(vec![DataType::Float64, DataType::Float64]);
    [("ema", Of::Ema, two), ("returns", Of::Returns, one)]
        .into_iter()
        .map(|(name, of, signature)| {
            Arc::new(WindowUDF::from(Running { name, of, signature: Signature::new(signature, Volatility::Immutable) }))
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Of {
    Ema,
    Returns,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Running {
    name: &'static str,
    of: Of,
    signature: Signature,
}

impl WindowUDFImpl for Running {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn partition_evaluator(&self, _: PartitionEvaluatorArgs<'_>) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Passed { of: self.of, last: None }))
    }

    fn field(&self, args: WindowUDFFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(args.name(), DataType::Float64, true)))
    }
}

/// What is known after the rows that were passed.
#[derive(Debug)]
struct Passed {
    of: Of,
    last: Option<f64>,
}

impl PartitionEvaluator for Passed {
    fn is_causal(&self) -> bool {
        true
    }

    fn supports_bounded_execution(&self) -> bool {
        true
    }

    fn evaluate(&mut self, values: &[ArrayRef], range: &Range<usize>) -> Result<ScalarValue> {
        let value = |at: usize| {
            let array = values.get(at)?.as_primitive_opt::<Float64Type>()?;
            (range.start < array.len() && array.is_valid(range.start)).then(|| array.value(range.start))
        };
        let (now, before) = (value(0), self.last);
        let result = match self.of {
            Of::Returns => {
                self.last = now.or(before);
                now.zip(before).map(|(now, before)| now / before - 1.0)
            }
            Of::Ema => {
                let n = value(1).filter(|n| *n > 0.0).ok_or_else(|| {
                    DataFusionError::Execution("ema(x, n) needs a number of rows, or a weight between 0 and 1".to_owned())
                })?;
                let weight = if n < 1.0 { n } else { 2.0 / (n + 1.0) };
                self.last = match (now, before) {
                    (Some(now), Some(before)) => Some(before + weight * (now - before)),
                    (now, before) => now.or(before),
                };
                self.last
            }
        };
        Ok(ScalarValue::Float64(result))
    }
}
