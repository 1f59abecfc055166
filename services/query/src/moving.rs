//! Owns: averages, sums and counts of the last rows: `avg(x) OVER (... ROWS n PRECEDING)`.
//!
//! The planner's library adds and subtracts one value for each row, through arrays of one row: half a microsecond a row. What it
//! subtracts leaves its rounding behind, and after an infinity or a NaN no later row has a value. Here nothing is subtracted. The rows
//! of a partition are divided into blocks as long as the window; a window is the end of one block and the begin of the next, and the
//! sums of both are known (van Herk, "A fast algorithm for local minimum and maximum filters", 1992).
//!
//! What must hold: the columns, the order and the partitions are those of the library's operator, whose place it takes. A value
//! depends on the rows of its window and their place in the partition alone, and not on how they come in batches. Of a partition
//! no more rows are held than two windows have.

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
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
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

/// The longest window.
const ROWS_MAX: u64 = 1 << 16;

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

    fn run(&self, rows: SendableRecordBatchStream, context: &TaskContext) -> Result<SendableRecordBatchStream> {
        let reservation = MemoryConsumer::new(Self::NAME).register(context.memory_pool());
        let held = self.windows.iter().map(|window| 2 * window.rows * size_of::<Value>()).sum();
        reservation.try_grow(held)?;
        let state = State {
            held: self.windows.iter().map(|window| Held::new(window.rows)).collect(),
            windows: self.windows.clone(),
            keys: self.keys.clone(),
            key: None,
            schema: self.schema.clone(),
            _reservation: reservation,
        };
        let rows = stream::unfold((rows, state), |(mut rows, mut state)| async move {
            let batch = rows.next().await?;
            let made = batch.and_then(|batch| state.batch(&batch));
            Some((made, (rows, state)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }
}

struct State {
    windows: Vec<Window>,
    held: Vec<Held>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The keys of the last row.
    key: Option<Vec<ScalarValue>>,
    schema: SchemaRef,
    _reservation: MemoryReservation,
}

impl State {
    fn batch(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let count = batch.num_rows();
        let keys = self.keys.iter().map(|key| key.evaluate(batch)?.into_array(count)).collect::<Result<Vec<_>>>()?;
        let ranges = if keys.is_empty() { std::iter::once(0..count).collect() } else { partition(&keys)?.ranges() };
        let key_at = |row: usize| keys.iter().map(|key| ScalarValue::try_from_array(key, row)).collect::<Result<Vec<_>>>();
        if count > 0 && self.key.replace(key_at(count - 1)?) != Some(key_at(0)?) {
            self.held.iter_mut().for_each(Held::begin);
        }
        let mut columns = batch.columns().to_vec();
        for (window, held) in self.windows.iter().zip(&mut self.held) {
            let values = window.of.evaluate(batch)?.into_array(count)?;
            let nulls = values.logical_nulls().filter(|nulls| nulls.null_count() > 0);
            let numbers = values.as_primitive_opt::<Float64Type>().map(|numbers| numbers.values());
            let (mut sums, mut counts) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for (part, range) in ranges.iter().enumerate() {
                if part > 0 {
                    held.begin();
                }
                for row in range.clone() {
                    let is_valid = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
                    let number = numbers.and_then(|numbers| numbers.get(row)).copied().unwrap_or(0.0);
                    let Value { sum, count } =
                        held.push(if is_valid { Value { sum: number, count: 1 } } else { Value::default() });
                    sums.push(sum);
                    counts.push(count);
                }
            }
            columns.push(column(window.function, sums, counts));
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// The sum and the number of some values.
#[derive(Clone, Copy, Debug, Default)]
struct Value {
    sum: f64,
    count: i64,
}

impl Value {
    fn and(self, other: Value) -> Value {
        Value { sum: self.sum + other.sum, count: self.count + other.count }
    }
}

/// The last rows of a partition.
#[derive(Debug)]
struct Held {
    /// Rows of a block.
    rows: usize,
    /// The rows of the present block, and what they are together.
    block: Vec<Value>,
    begun: Value,
    /// What the rows of the block before are together, from each row to its end; empty in the first block.
    ends: Vec<Value>,
}

impl Held {
    fn new(rows: usize) -> Held {
        Held { rows, block: Vec::new(), begun: Value::default(), ends: Vec::new() }
    }

    /// Begins a partition.
    fn begin(&mut self) {
        *self = Held::new(self.rows);
    }

    /// Adds a row; what the window that it ends is together.
    fn push(&mut self, row: Value) -> Value {
        self.block.push(row);
        self.begun = self.begun.and(row);
        let ended = self.ends.get(self.block.len()).copied().unwrap_or_default();
        let window = ended.and(self.begun);
        if self.block.len() == self.rows {
            let mut end = Value::default();
            for value in self.block.iter_mut().rev() {
                end = value.and(end);
                *value = end;
            }
            std::mem::swap(&mut self.block, &mut self.ends);
            self.block.clear();
            self.begun = Value::default();
        }
        window
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
