//! Owns: `first` and `last`: the value of the first or last row by time and LSN.
//!
//! [`super::rewrite`] adds the columns `time` and `lsn`: `first_by` and `last_by` are the aggregates of three columns. A column whose
//! values do not have 64 bits, and an order that the statement names, are left to `first_value` and `last_value` of the planner's
//! library, which keep a row of each group as values on the heap: for the bars of all instruments they took four times as long.
//!
//! What must hold: the result does not depend on the order in which rows arrive. A row without a time is after all others; a null
//! value is a value.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt64Array, make_array};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

/// The names in statements.
pub const NAMES: [&str; 2] = ["first", "last"];

/// All aggregates of this file that statements name.
pub fn all() -> Vec<Arc<AggregateUDF>> {
    let signature = Signature::any(1, Volatility::Immutable);
    NAMES.iter().map(|name| Arc::new(AggregateUDF::from(Ordered { name, signature: signature.clone() }))).collect()
}

/// `first` or `last` of a value, its time and its LSN; `None` if the values do not have 64 bits.
pub fn of_time(which: Which, values: &DataType) -> Option<Arc<AggregateUDF>> {
    let signature = Signature::any(3, Volatility::Immutable);
    has_64_bits(values).then(|| Arc::new(AggregateUDF::from(OfTime { which, signature })))
}

/// Which row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// The first.
    First,
    /// The last.
    Last,
}

fn has_64_bits(of: &DataType) -> bool {
    matches!(of, DataType::Float64 | DataType::Int64 | DataType::UInt64 | DataType::Timestamp(..))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ordered {
    name: &'static str,
    signature: Signature,
}

impl AggregateUDFImpl for Ordered {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        args.first().cloned().ok_or_else(|| DataFusionError::Plan(format!("{} needs a column", self.name)))
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let name = self.name;
        let sql = format!("write {name}_value(x ORDER BY y)");
        Err(DataFusionError::Plan(format!("{name}(x) needs the column time beside x, by which rows are ordered; {sql}")))
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct OfTime {
    which: Which,
    signature: Signature,
}

impl AggregateUDFImpl for OfTime {
    fn name(&self) -> &'static str {
        match self.which {
            Which::First => "first_by",
            Which::Last => "last_by",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        args.first().cloned().ok_or_else(|| DataFusionError::Plan(format!("{} needs a column", self.name())))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let field = |name: &str, of: DataType| Arc::new(Field::new(format!("{}[{name}]", args.name), of, true));
        let value = args.return_field.data_type().clone();
        Ok(vec![field("value", value), field("time", DataType::UInt64), field("lsn", DataType::UInt64)])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(Rows::new(self.which, args.return_field.data_type()))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Rows::new(self.which, args.return_field.data_type())))
    }
}

/// A row of a group. Rows of equal times and LSNs, which a join can make, have an order too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    /// Time and LSN: greater is later.
    at: (u64, u64),
    /// The bits of the value.
    bits: u64,
    is_valid: bool,
}

/// The row of each group.
#[derive(Debug)]
struct Rows {
    which: Which,
    /// The type of the values.
    of: DataType,
    /// None: the group has no row.
    rows: Vec<Option<Row>>,
}

/// A time as a number that is greater if it is later.
fn sortable(time: i64) -> u64 {
    time.cast_unsigned() ^ (1 << 63)
}

/// The times of rows as numbers.
fn times(array: &ArrayRef) -> Result<UInt64Array> {
    let array = cast(array, &DataType::Int64)?;
    Ok(array.as_primitive::<Int64Type>().unary(sortable))
}

/// Columns of rows.
struct Columns<'a> {
    bits: &'a [u64],
    nulls: Option<&'a NullBuffer>,
    times: &'a UInt64Array,
    lsns: &'a UInt64Array,
}

impl Columns<'_> {
    fn row(&self, row: usize) -> Option<Row> {
        let number = |array: &UInt64Array| if array.is_valid(row) { array.value(row) } else { u64::MAX };
        let is_valid = self.nulls.is_none_or(|nulls| nulls.is_valid(row));
        Some(Row { at: (number(self.times), number(self.lsns)), bits: *self.bits.get(row)?, is_valid })
    }
}

impl Rows {
    fn new(which: Which, of: &DataType) -> Rows {
        Rows { which, of: of.clone(), rows: Vec::new() }
    }

    fn grow(&mut self, groups: usize) {
        if groups > self.rows.len() {
            self.rows.resize(groups, None);
        }
    }

    /// Takes the rows of `values` with `times` and `lsns`; `group` is the group of each.
    fn take(
        &mut self,
        values: &ArrayRef,
        [times, lsns]: [&UInt64Array; 2],
        group: impl Fn(usize) -> Option<usize>,
    ) -> Result<()> {
        if values.data_type() != &self.of {
            return Err(DataFusionError::Internal(format!("values of {}, not of {}", values.data_type(), self.of)));
        }
        let data = values.to_data();
        let columns = Columns { bits: data.buffer::<u64>(0), nulls: values.nulls(), times, lsns };
        for row in 0..values.len() {
            let Some(group) = group(row) else { continue };
            let (Some(new), Some(held)) = (columns.row(row), self.rows.get_mut(group)) else {
                return Err(DataFusionError::Internal("a group that was not announced".to_owned()));
            };
            let is_better = held.is_none_or(|held| match self.which {
                Which::First => new < held,
                Which::Last => new > held,
            });
            if is_better {
                *held = Some(new);
            }
        }
        Ok(())
    }

    fn update(&mut self, values: &[ArrayRef], group: impl Fn(usize) -> Option<usize>) -> Result<()> {
        let [values, at, lsns] = values else { return Err(DataFusionError::Internal("a value, a time and an LSN".to_owned())) };
        let lsns = cast(lsns, &DataType::UInt64)?;
        self.take(values, [&times(at)?, lsns.as_primitive::<UInt64Type>()], group)
    }

    fn merge(&mut self, states: &[ArrayRef], group: impl Fn(usize) -> Option<usize>) -> Result<()> {
        let [values, times, lsns] = states else { return Err(DataFusionError::Internal("a state of three columns".to_owned())) };
        let (times, lsns) = (times.as_primitive::<UInt64Type>(), lsns.as_primitive::<UInt64Type>());
        // A state without a time is that of a group without a row.
        self.take(values, [times, lsns], |row| group(row).filter(|_| times.is_valid(row)))
    }

    /// The values of `rows`.
    fn values(&self, rows: &[Option<Row>]) -> Result<ArrayRef> {
        let bits: Vec<u64> = rows.iter().map(|row| row.map_or(0, |row| row.bits)).collect();
        let nulls: NullBuffer = rows.iter().map(|row| row.is_some_and(|row| row.is_valid)).collect();
        let data = arrow::array::ArrayData::builder(self.of.clone()).len(rows.len()).add_buffer(Buffer::from_vec(bits));
        Ok(make_array(data.nulls(Some(nulls)).build()?))
    }

    fn states(&self, rows: &[Option<Row>]) -> Result<Vec<ArrayRef>> {
        let column = |of: fn(&Row) -> u64| Arc::new(rows.iter().map(|row| row.as_ref().map(of)).collect::<UInt64Array>());
        Ok(vec![self.values(rows)?, column(|row| row.at.0), column(|row| row.at.1)])
    }
}

fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

impl GroupsAccumulator for Rows {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.grow(total);
        self.update(values, |row| groups.get(row).copied().filter(|_| passes(filter, row)))
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        self.merge(states, |row| groups.get(row).copied())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let rows = emit.take_needed(&mut self.rows);
        self.values(&rows)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let rows = emit.take_needed(&mut self.rows);
        self.states(&rows)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut each = Rows::new(self.which, &self.of);
        each.grow(values.first().map_or(0, |array| array.len()));
        each.update(values, |row| Some(row).filter(|row| passes(filter, *row)))?;
        each.states(&each.rows)
    }

    fn size(&self) -> usize {
        self.rows.capacity() * size_of::<Option<Row>>()
    }
}

/// The row of one group.
#[derive(Debug)]
struct One(Rows);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.grow(1);
        self.0.update(values, |_| Some(0))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.grow(1);
        self.0.merge(states, |_| Some(0))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.grow(1);
        ScalarValue::try_from_array(&self.0.values(&self.0.rows)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.grow(1);
        self.0.states(&self.0.rows)?.iter().map(|state| ScalarValue::try_from_array(state, 0)).collect()
    }

    fn size(&self) -> usize {
        size_of::<One>() + size_of::<Option<Row>>()
    }
}
