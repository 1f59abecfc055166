//! Owns: averages, sums and counts of the last rows: `avg(x) OVER (... ROWS n PRECEDING)`.
//!
//! The planner's library adds and subtracts one value for each row, through arrays of one row: half a microsecond a row. What it
//! subtracts leaves its rounding behind, and after an infinity or a NaN no later row has a value. Here a batch is done at once, and
//! a sum begins again every window.
//!
//! What must hold: the columns, the order and the partitions are those of the library's operator, whose place it takes. A value
//! depends on the rows of its window alone: in a window without an infinity or a NaN it is finite. Of a partition no more rows
//! are held than the window has.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::compute::partition;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{WindowFrameBound, WindowFrameUnits};
use datafusion::physical_expr::window::{SlidingAggregateWindowExpr, WindowExpr};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::BoundedWindowAggExec;
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode, PlanProperties};
use futures::{StreamExt, stream};

use crate::one_input::{OneInput, Step};

/// The longest window: its values are held, 9 bytes a row.
const ROWS_MAX: u64 = 1 << 20;

/// The rule that puts the operator in the place of the library's.
#[derive(Debug)]
pub struct Moving;

impl PhysicalOptimizerRule for Moving {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let Some(windows) = node.downcast_ref::<BoundedWindowAggExec>() else { return Ok(Transformed::no(node)) };
            let Some(step) = MovingStep::of(windows, &node)? else { return Ok(Transformed::no(node)) };
            let new = OneInput::new(Arc::new(step), windows.input().clone());
            Ok(Transformed::yes(Arc::new(new) as Arc<dyn ExecutionPlan>))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "moving_windows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What is made of the values of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Average,
    Sum,
    Count,
}

/// A column of the operator.
#[derive(Clone, Debug)]
struct Window {
    function: Function,
    of: Arc<dyn PhysicalExpr>,
    /// Rows of the window.
    rows: usize,
}

impl Window {
    /// The column of `expr` over rows of `schema`; `None` if it is another one.
    fn of(expr: &Arc<dyn WindowExpr>, schema: &SchemaRef) -> Result<Option<Window>> {
        let Some(sliding) = expr.as_any().downcast_ref::<SlidingAggregateWindowExpr>() else { return Ok(None) };
        let aggregate = sliding.get_aggregate_expr();
        let function = match aggregate.fun().name() {
            "avg" => Function::Average,
            "sum" => Function::Sum,
            "count" => Function::Count,
            _ => return Ok(None),
        };
        let frame = sliding.get_window_frame();
        let before = match (&frame.start_bound, &frame.end_bound) {
            (WindowFrameBound::Preceding(ScalarValue::UInt64(Some(before))), WindowFrameBound::CurrentRow) => *before,
            _ => return Ok(None),
        };
        let arguments = aggregate.expressions();
        let [of] = arguments.as_slice() else { return Ok(None) };
        let is_number = function == Function::Count || of.data_type(schema)? == DataType::Float64;
        // The library has no function that says whether there is a FILTER.
        let is_filtered = format!("{sliding:?}").contains("filter: Some(");
        let is_plain = !aggregate.is_distinct() && !aggregate.ignore_nulls() && aggregate.order_bys().is_empty();
        if frame.units != WindowFrameUnits::Rows || before >= ROWS_MAX || !is_number || is_filtered || !is_plain {
            return Ok(None);
        }
        Ok(Some(Window { function, of: of.clone(), rows: before as usize + 1 }))
    }
}

/// The operator.
#[derive(Debug)]
struct MovingStep {
    windows: Vec<Window>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl MovingStep {
    /// The step that does what `windows`, which is `node`, does; `None` if it does something else too.
    fn of(windows: &BoundedWindowAggExec, node: &Arc<dyn ExecutionPlan>) -> Result<Option<MovingStep>> {
        if windows.input_order_mode != InputOrderMode::Sorted {
            return Ok(None);
        }
        let input = windows.input().schema();
        let mut all = Vec::new();
        for expr in windows.window_expr() {
            let Some(window) = Window::of(expr, &input)? else { return Ok(None) };
            all.push(window);
        }
        let Some(first) = windows.window_expr().first() else { return Ok(None) };
        let mut order = windows.partition_by_sort_keys()?;
        order.extend(first.order_by().iter().cloned());
        let (keys, schema, properties) = (first.partition_by().to_vec(), node.schema(), node.properties().clone());
        Ok(Some(MovingStep { windows: all, keys, order, schema, properties }))
    }
}

impl Step for MovingStep {
    const NAME: &'static str = "MovingExec";
    const KEEPS_ORDER: bool = true;

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Window { function, of, rows }) in self.windows.iter().enumerate() {
            write!(f, "{}{function:?} of {of} in {rows} rows", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }

    fn order(&self) -> Vec<PhysicalSortExpr> {
        self.order.clone()
    }

    fn properties(&self, _: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties> {
        self.properties.clone()
    }

    fn run(&self, rows: SendableRecordBatchStream, _: &TaskContext) -> Result<SendableRecordBatchStream> {
        let state = State {
            held: self.windows.iter().map(|_| Held::default()).collect(),
            windows: self.windows.clone(),
            keys: self.keys.clone(),
            key: None,
            schema: self.schema.clone(),
        };
        let rows = stream::unfold((rows, state), |(mut rows, mut state)| async move {
            let batch = rows.next().await?;
            let made = batch.and_then(|batch| state.batch(&batch));
            Some((made, (rows, state)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }
}

/// The last values of a partition, one less than the window has; a null is 0 and has no `true`.
#[derive(Debug, Default)]
struct Held {
    values: Vec<f64>,
    valid: Vec<bool>,
}

struct State {
    windows: Vec<Window>,
    held: Vec<Held>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The keys of the last row.
    key: Option<Vec<ScalarValue>>,
    schema: SchemaRef,
}

impl State {
    fn batch(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let count = batch.num_rows();
        let keys = self.keys.iter().map(|key| key.evaluate(batch)?.into_array(count)).collect::<Result<Vec<_>>>()?;
        let ranges = if keys.is_empty() { std::iter::once(0..count).collect() } else { partition(&keys)?.ranges() };
        let key_at = |row: usize| keys.iter().map(|key| ScalarValue::try_from_array(key, row)).collect::<Result<Vec<_>>>();
        if count > 0 && self.key.replace(key_at(count - 1)?) != Some(key_at(0)?) {
            self.held.iter_mut().for_each(|held| *held = Held::default());
        }
        let mut columns = batch.columns().to_vec();
        for (window, held) in self.windows.iter().zip(&mut self.held) {
            let values = window.of.evaluate(batch)?.into_array(count)?;
            let (mut sums, mut counts) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for (part, range) in ranges.iter().enumerate() {
                if part > 0 {
                    *held = Held::default();
                }
                let before = held.values.len();
                held.push(&values.slice(range.start, range.len()), window.function == Function::Count);
                held.windows(window.rows, before, &mut sums, &mut counts);
                held.forget(window.rows - 1);
            }
            columns.push(column(window.function, sums, counts));
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

impl Held {
    /// Adds `values`; if they are only `counted`, their values do not matter.
    fn push(&mut self, values: &ArrayRef, counted: bool) {
        let nulls = values.logical_nulls();
        match nulls.filter(|nulls| nulls.null_count() > 0) {
            Some(nulls) => self.valid.extend(nulls.iter()),
            None => self.valid.resize(self.valid.len() + values.len(), true),
        }
        let valid = self.valid.get(self.values.len()..).unwrap_or(&[]);
        match values.as_primitive_opt::<Float64Type>().filter(|_| !counted) {
            Some(numbers) => {
                let or_zero = numbers.values().iter().zip(valid).map(|(value, is_valid)| if *is_valid { *value } else { 0.0 });
                self.values.extend(or_zero);
            }
            None => self.values.resize(self.valid.len(), 0.0),
        }
    }

    /// Adds sum and count of the window of each row from `first` on.
    fn windows(&self, rows: usize, first: usize, sums: &mut Vec<f64>, counts: &mut Vec<i64>) {
        let value = |at: usize| self.values.get(at).copied().unwrap_or(0.0);
        let is = |at: usize| i64::from(self.valid.get(at).copied().unwrap_or(false));
        let (mut sum, mut count, mut since) = (Sum::default(), 0i64, rows);
        for end in first..self.values.len() {
            let from = (end + 1).saturating_sub(rows);
            let window = self.values.get(from..=end).unwrap_or(&[]);
            count = if end == first {
                (from..=end).map(is).sum()
            } else {
                count + is(end) - if end >= rows { is(end - rows) } else { 0 }
            };
            counts.push(count);
            if rows <= SHORT {
                sums.push(window.iter().sum());
                continue;
            }
            since += 1;
            if since > rows {
                sum = Sum::default();
                window.iter().for_each(|value| sum.change(*value, 1));
                since = 0;
            } else {
                sum.change(value(end), 1);
                if end >= rows {
                    sum.change(value(end - rows), -1);
                }
            }
            sums.push(sum.value());
        }
    }

    /// Forgets all but the last `rows` values.
    fn forget(&mut self, rows: usize) {
        let old = self.values.len().saturating_sub(rows);
        self.values.drain(..old);
        self.valid.drain(..old);
    }
}

/// Rows of a window that are added for each row. Of a longer one a sum goes on for as many rows as the window has.
const SHORT: usize = 32;

/// A sum of which values are taken away again.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    finite: f64,
    nans: i64,
    infinities: i64,
    negative_infinities: i64,
}

impl Sum {
    /// Adds `value`, or takes it away if `by` is -1.
    fn change(&mut self, value: f64, by: i32) {
        if value.is_finite() {
            self.finite += value * f64::from(by);
        } else if value.is_nan() {
            self.nans += i64::from(by);
        } else if value > 0.0 {
            self.infinities += i64::from(by);
        } else {
            self.negative_infinities += i64::from(by);
        }
    }

    fn value(&self) -> f64 {
        match (self.infinities > 0, self.negative_infinities > 0) {
            _ if self.nans > 0 => f64::NAN,
            (true, true) => f64::NAN,
            (true, false) => f64::INFINITY,
            (false, true) => f64::NEG_INFINITY,
            (false, false) => self.finite,
        }
    }
}

fn column(function: Function, sums: Vec<f64>, counts: Vec<i64>) -> ArrayRef {
    if function == Function::Count {
        return Arc::new(Int64Array::from(counts));
    }
    let has_null = counts.contains(&0);
    let nulls = has_null.then(|| counts.iter().map(|count| *count > 0).collect::<NullBuffer>());
    let value = |(sum, count): (f64, &i64)| if function == Function::Average && *count > 0 { sum / *count as f64 } else { sum };
    let values: Vec<f64> = sums.into_iter().zip(&counts).map(value).collect();
    Arc::new(Float64Array::new(values.into(), nulls))
}
