//! Owns: sums of prices and sizes in 128 bits: `exact_sum`, `notional`, `vwap`.
//!
//! Arguments are the stored integers, units of 1e-9: [`super::rewrite`] takes the `_raw` column of a price or size. A value
//! that was calculated (`DOUBLE`) is rounded to such a unit.
//!
//! What must hold: a sum that 128 bits cannot hold is an error, never another number.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float64Type, Int64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use crate::schema::UNITS;

/// Which sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// `exact_sum`.
    Exact,
    /// `notional`.
    Notional,
    /// `vwap`.
    Vwap,
    /// `sum` of a price or size, as `DOUBLE`.
    Sum,
    /// `avg` of a price or size.
    Mean,
}

/// The sum of a price or size as a `DOUBLE`, of which only the result is rounded. `sum` becomes this.
pub const SUM: &str = "sum_of_units";
/// The mean of a price or size. `avg` becomes this.
pub const MEAN: &str = "mean_of_units";

const NAMES: [(&str, Of); 5] =
    [("exact_sum", Of::Exact), ("notional", Of::Notional), ("vwap", Of::Vwap), (SUM, Of::Sum), (MEAN, Of::Mean)];

/// All aggregates of this file.
pub fn all() -> Vec<Arc<AggregateUDF>> {
    NAMES
        .into_iter()
        .map(|(name, of)| {
            let arguments = if matches!(of, Of::Notional | Of::Vwap) { 2 } else { 1 };
            let signature = Signature::any(arguments, Volatility::Immutable);
            Arc::new(AggregateUDF::from(Sum { name, of, signature }))
        })
        .collect()
}

impl Of {
    /// The sum that the aggregate `name` is.
    pub fn named(name: &str) -> Option<Of> {
        NAMES.iter().find(|(of, _)| *of == name).map(|(_, of)| *of)
    }

    /// The results of groups with these sums and weights; `has`: whether the group has a value.
    ///
    /// # Errors
    /// The result does not fit its type.
    pub fn result(self, sums: &[i128], weights: &[i128], has: &[bool]) -> Result<ArrayRef> {
        let decimal = |scale| {
            let values = sums.iter().zip(has).map(|(sum, has)| has.then_some(*sum));
            let array: Decimal128Array = values.collect();
            if sums.iter().any(|sum| sum.unsigned_abs() >= 10u128.pow(38)) {
                return Err(too_large());
            }
            Ok(Arc::new(array.with_precision_and_scale(38, scale)?) as ArrayRef)
        };
        match self {
            Of::Exact => decimal(9),
            Of::Notional => decimal(18),
            Of::Sum => {
                let values = sums.iter().zip(has).map(|(sum, has)| has.then_some(*sum as f64 / UNITS));
                Ok(Arc::new(values.collect::<Float64Array>()))
            }
            Of::Vwap | Of::Mean => {
                let values = sums.iter().zip(weights).zip(has);
                let ratio = |((sum, weight), has): ((&i128, &i128), &bool)| {
                    (*has && *weight != 0).then(|| *sum as f64 / *weight as f64 / UNITS)
                };
                Ok(Arc::new(values.map(ratio).collect::<Float64Array>()))
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum {
    name: &'static str,
    of: Of,
    signature: Signature,
}

const STATE: DataType = DataType::Decimal128(38, 0);

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        if let Some(of) = args.iter().find(|of| !matches!(of, DataType::Int64 | DataType::UInt64) && !of.is_numeric()) {
            return Err(DataFusionError::Plan(format!("{} is for prices and sizes, not for {of}", self.name)));
        }
        Ok(match self.of {
            Of::Exact => DataType::Decimal128(38, 9),
            Of::Notional => DataType::Decimal128(38, 18),
            Of::Vwap | Of::Sum | Of::Mean => DataType::Float64,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let name = args.name;
        Ok(vec![
            Arc::new(Field::new(format!("{name}[sum]"), STATE, true)),
            Arc::new(Field::new(format!("{name}[weight]"), STATE, true)),
        ])
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(Sums::new(self.of))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Sums::new(self.of)))
    }
}

/// The sums of each group.
#[derive(Debug)]
struct Sums {
    of: Of,
    /// Price × size, or the value itself.
    sums: Vec<i128>,
    /// The sizes; the number of values, if there are no sizes.
    weights: Vec<i128>,
    /// Whether the group has a value.
    has: Vec<bool>,
}

/// The error of a sum.
pub fn too_large() -> DataFusionError {
    DataFusionError::Execution("a sum of prices or sizes does not fit 128 bits".to_owned())
}

/// A calculated price or size as units of 1e-9.
///
/// # Errors
/// 128 bits cannot hold it.
pub fn scaled(value: f64) -> Result<i128> {
    let units = (value * UNITS).round();
    if units.abs() < 1e36 { Ok(units as i128) } else { Err(too_large()) }
}

/// The values as units of 1e-9.
fn units(array: &ArrayRef) -> Result<Vec<Option<i128>>> {
    match array.data_type() {
        DataType::Int64 => Ok(array.as_primitive::<Int64Type>().iter().map(|v| v.map(i128::from)).collect()),
        DataType::UInt64 => Ok(array.as_primitive::<UInt64Type>().iter().map(|v| v.map(i128::from)).collect()),
        _ => {
            let values = arrow::compute::cast(array, &DataType::Float64)?;
            values.as_primitive::<Float64Type>().iter().map(|v| v.map(scaled).transpose()).collect()
        }
    }
}

impl Sums {
    fn new(of: Of) -> Sums {
        Sums { of, sums: Vec::new(), weights: Vec::new(), has: Vec::new() }
    }

    fn grow(&mut self, groups: usize) {
        if groups > self.sums.len() {
            self.sums.resize(groups, 0);
            self.weights.resize(groups, 0);
            self.has.resize(groups, false);
        }
    }

    fn add(&mut self, group: usize, sum: i128, weight: i128) -> Result<()> {
        let (Some(to), Some(of), Some(has)) = (self.sums.get_mut(group), self.weights.get_mut(group), self.has.get_mut(group))
        else {
            return Err(DataFusionError::Internal("a group that was not announced".to_owned()));
        };
        *to = to.checked_add(sum).ok_or_else(too_large)?;
        *of = of.checked_add(weight).ok_or_else(too_large)?;
        *has = true;
        Ok(())
    }

    /// Adds the rows of `values`; `group` is the group of each.
    fn update(&mut self, values: &[ArrayRef], group: impl Fn(usize) -> Option<usize>) -> Result<()> {
        let Some(first) = values.first() else { return Ok(()) };
        // The columns of a table: no copies.
        if let (Of::Vwap | Of::Notional, Some(prices), Some(sizes)) = (
            self.of,
            first.as_primitive_opt::<Int64Type>().filter(|a| a.null_count() == 0),
            values.get(1).and_then(|a| a.as_primitive_opt::<UInt64Type>()).filter(|a| a.null_count() == 0),
        ) {
            for (row, (price, size)) in prices.values().iter().zip(sizes.values().iter()).enumerate() {
                if let Some(group) = group(row) {
                    let (price, size) = (i128::from(*price), i128::from(*size));
                    self.add(group, price * size, size)?;
                }
            }
            return Ok(());
        }
        if let (None, Some(values)) = (values.get(1), first.as_primitive_opt::<UInt64Type>().filter(|a| a.null_count() == 0)) {
            for (row, value) in values.values().iter().enumerate() {
                if let Some(group) = group(row) {
                    self.add(group, i128::from(*value), 1)?;
                }
            }
            return Ok(());
        }
        let firsts = units(first)?;
        let seconds = values.get(1).map(units).transpose()?;
        for (row, first) in firsts.into_iter().enumerate() {
            let (Some(first), Some(group)) = (first, group(row)) else { continue };
            match &seconds {
                None => self.add(group, first, 1)?,
                Some(seconds) => {
                    let Some(second) = seconds.get(row).copied().flatten() else { continue };
                    self.add(group, first.checked_mul(second).ok_or_else(too_large)?, second)?;
                }
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], group: impl Fn(usize) -> usize) -> Result<()> {
        let [sums, weights] = states else { return Err(DataFusionError::Internal("a state of two sums".to_owned())) };
        let (sums, weights) = (sums.as_primitive::<Decimal128Type>(), weights.as_primitive::<Decimal128Type>());
        for row in 0..sums.len() {
            if sums.is_valid(row) {
                self.add(group(row), sums.value(row), weights.value(row))?;
            }
        }
        Ok(())
    }

    fn taken(&mut self, emit: EmitTo) -> (Vec<i128>, Vec<i128>, Vec<bool>) {
        (emit.take_needed(&mut self.sums), emit.take_needed(&mut self.weights), emit.take_needed(&mut self.has))
    }

    fn states(sums: &[i128], weights: &[i128], has: &[bool]) -> Result<Vec<ArrayRef>> {
        let column = |values: &[i128]| -> Result<ArrayRef> {
            let values = values.iter().zip(has).map(|(value, has)| has.then_some(*value));
            Ok(Arc::new(values.collect::<Decimal128Array>().with_data_type(STATE)))
        };
        Ok(vec![column(sums)?, column(weights)?])
    }
}

impl GroupsAccumulator for Sums {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.grow(total);
        self.update(values, |row| {
            let passes = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            groups.get(row).copied().filter(|_| passes)
        })
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        self.merge(values, |row| groups.get(row).copied().unwrap_or(0))
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let (sums, weights, has) = self.taken(emit);
        self.of.result(&sums, &weights, &has)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, weights, has) = self.taken(emit);
        Sums::states(&sums, &weights, &has)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |array| array.len());
        let mut each = Sums::new(self.of);
        each.grow(rows);
        each.update(values, |row| Some(row).filter(|_| filter.is_none_or(|f| f.is_valid(row) && f.value(row))))?;
        Sums::states(&each.sums, &each.weights, &each.has)
    }

    fn size(&self) -> usize {
        self.sums.capacity() * 32 + self.has.capacity()
    }
}

/// The sums of one group.
#[derive(Debug)]
struct One(Sums);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.grow(1);
        self.0.update(values, |_| Some(0))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.grow(1);
        self.0.merge(states, |_| 0)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.grow(1);
        ScalarValue::try_from_array(&self.0.of.result(&self.0.sums, &self.0.weights, &self.0.has)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.grow(1);
        let states = Sums::states(&self.0.sums, &self.0.weights, &self.0.has)?;
        states.iter().map(|state| ScalarValue::try_from_array(state, 0)).collect()
    }

    fn size(&self) -> usize {
        size_of::<One>() + 33
    }
}
