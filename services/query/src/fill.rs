//! Owns: `SAMPLE BY ... FILL (...)`: a row for every bucket between the first and the last one of the answer, for each key.
//!
//! | fill | value of a bucket without rows |
//! |---|---|
//! | `NULL` | null |
//! | `PREV` | that of the bucket before; null before the first row of the key |
//! | `LINEAR` | on the line between the buckets before and after; null outside |
//! | a number | that |
//!
//! One fill is for all aggregates; several are for one each, in their order.
//!
//! What must hold: rows that are there are not changed. Rows are made as they are read, so their number needs no memory.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, TimestampNanosecondArray, UInt32Array, new_null_array};
use arrow::compute::{SortOptions, cast, concat_batches, take};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimestampNanosecondType};
use datafusion::common::{DFSchema, DFSchemaRef, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt, stream};
use jiff::tz::TimeZone;

use crate::interval::Interval;
use crate::one_input::{OneInput, Step};
use crate::pieces::BATCH_ROWS;
use crate::runs::Runs;

/// The value of an aggregate in a bucket without rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum With {
    /// Null.
    Null,
    /// That of the bucket before.
    Previous,
    /// On the line between its neighbours.
    Linear,
    /// A number.
    Constant(String),
}

/// What a column of the answer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The start of the bucket.
    Time,
    /// A key.
    Key,
    /// An aggregate, and what it is filled with.
    Value(With),
}

/// A row for every bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    /// The rows: one for each key and bucket that has rows.
    pub input: LogicalPlan,
    /// What the columns are.
    pub roles: Vec<Role>,
    /// The length of the buckets.
    pub interval: Interval,
    /// The zone of their calendar; empty is UTC.
    pub zone: String,
    schema: DFSchemaRef,
}

impl PartialOrd for Fill {
    fn partial_cmp(&self, other: &Fill) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

fn wrong(reason: String) -> DataFusionError {
    DataFusionError::Plan(reason)
}

impl Fill {
    /// Fills `input`. `texts` are the length of a bucket, the fills, the zone, and what each column is.
    ///
    /// # Errors
    /// A fill is none, or their number is not that of the aggregates.
    pub fn new(input: LogicalPlan, texts: &[String]) -> Result<Fill> {
        let [interval, fills, zone, roles] = texts else { return Err(wrong("FILL needs its values".to_owned())) };
        let interval = interval.parse().map_err(wrong)?;
        let fills: Vec<With> = fills.split(',').map(|fill| with(fill.trim())).collect::<Result<_>>()?;
        let values = roles.split(',').filter(|role| *role == "value").count();
        if fills.len() != 1 && fills.len() != values {
            return Err(wrong(format!("FILL has {} values for {values} aggregates: give one, or one for each", fills.len())));
        }
        let mut fills = fills.iter().cycle();
        let role = |role: &str| match role {
            "time" => Role::Time,
            "key" => Role::Key,
            _ => Role::Value(fills.next().cloned().unwrap_or(With::Null)),
        };
        let roles: Vec<Role> = roles.split(',').map(role).collect();
        if roles.len() != input.schema().fields().len() {
            return Err(wrong("FILL needs columns and aggregates, not *".to_owned()));
        }
        zone_of(zone)?;
        Fill::of(input, roles, interval, zone.clone())
    }

    fn of(input: LogicalPlan, roles: Vec<Role>, interval: Interval, zone: String) -> Result<Fill> {
        let qualified =
            input.schema().iter().map(|(table, field)| (table.cloned(), Arc::new(field.as_ref().clone().with_nullable(true))));
        let schema = DFSchema::new_with_metadata(qualified.collect(), input.schema().metadata().clone())?;
        Ok(Fill { input, roles, interval, zone, schema: Arc::new(schema) })
    }
}

fn with(text: &str) -> Result<With> {
    Ok(match text.to_ascii_uppercase().as_str() {
        "NULL" => With::Null,
        "PREV" => With::Previous,
        "LINEAR" => With::Linear,
        _ if text.parse::<f64>().is_ok() => With::Constant(text.to_owned()),
        _ => return Err(wrong(format!("FILL ({text}) is none of NULL, PREV, LINEAR and a number"))),
    })
}

/// The time zone `name`; empty is UTC.
///
/// # Errors
/// There is no such zone.
pub fn zone_of(name: &str) -> Result<TimeZone> {
    if name.is_empty() {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| wrong(format!("there is no time zone '{name}'; write one like 'America/New_York'")))
}

impl UserDefinedLogicalNodeCore for Fill {
    fn name(&self) -> &'static str {
        "Fill"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fill: {:?} {:?}", self.interval, self.roles)
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Fill> {
        let [input] =
            <[LogicalPlan; 1]>::try_from(inputs).map_err(|_| DataFusionError::Internal("a fill has one input".to_owned()))?;
        Fill::of(input, self.roles.clone(), self.interval, self.zone.clone())
    }
}

/// Plans `node`.
///
/// # Errors
/// There is no such time zone.
pub fn plan(node: &Fill, input: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let zone = zone_of(&node.zone)?;
    let (roles, interval) = (node.roles.clone(), node.interval);
    Ok(Arc::new(OneInput::new(Arc::new(Filling { roles, interval, zone, columns: input.schema() }), input.clone())))
}

/// Makes the rows.
#[derive(Debug)]
struct Filling {
    roles: Vec<Role>,
    interval: Interval,
    zone: TimeZone,
    /// Those of the input.
    columns: SchemaRef,
}

impl Filling {
    /// Columns of a role.
    fn of(&self, wanted: impl Fn(&Role) -> bool) -> Vec<usize> {
        self.roles.iter().enumerate().filter(|(_, role)| wanted(role)).map(|(at, _)| at).collect()
    }

    /// The columns of the rows that are made: any may be null.
    fn schema(&self) -> SchemaRef {
        let fields: Vec<_> = self.columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        Arc::new(arrow::datatypes::Schema::new(fields))
    }
}

impl Step for Filling {
    const NAME: &'static str = "FillExec";
    const KEEPS_ORDER: bool = false;

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.interval)
    }

    fn order(&self) -> Vec<PhysicalSortExpr> {
        let options = SortOptions { descending: false, nulls_first: false };
        let mut columns = self.of(|role| *role == Role::Key);
        columns.extend(self.of(|role| *role == Role::Time).first());
        let sorted = columns.into_iter().map(|at| {
            let column = Column::new(self.columns.field(at).name(), at);
            PhysicalSortExpr::new(Arc::new(column) as Arc<dyn PhysicalExpr>, options)
        });
        sorted.collect()
    }

    fn properties(&self, _: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties> {
        Arc::new(PlanProperties::new(
            EquivalenceProperties::new(self.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ))
    }

    fn run(&self, mut rows: SendableRecordBatchStream, context: &TaskContext) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let made = schema.clone();
        let (roles, interval, zone) = (self.roles.clone(), self.interval, self.zone.clone());
        let keys = self.of(|role| *role == Role::Key);
        let time = self.of(|role| *role == Role::Time).first().copied().unwrap_or(0);
        let reservation = MemoryConsumer::new("FillExec").register(context.memory_pool());
        let all = async move {
            let mut batches = Vec::new();
            while let Some(batch) = rows.next().await.transpose()? {
                reservation.try_grow(batch.get_array_memory_size())?;
                batches.push(batch);
            }
            let batch = concat_batches(&rows.schema(), &batches)?;
            drop(batches);
            Filler::new(batch, made, roles, (interval, zone), &keys, time).map(|filler| (filler, reservation))
        };
        let filled = stream::once(all).flat_map(|made| match made {
            Ok(made) => stream::try_unfold(made, |(mut filler, reservation)| async move {
                // Other statements get a turn.
                tokio::task::yield_now().await;
                Ok(filler.next()?.map(|batch| (batch, (filler, reservation))))
            })
            .boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, filled)))
    }
}

/// Rows with equal keys, and the one that comes next.
struct Group {
    from: usize,
    to: usize,
}

/// One row of the answer.
#[derive(Clone, Copy)]
struct Made {
    time: i64,
    /// The row that is there.
    row: Option<usize>,
    /// A row of the key, and those before and after.
    any: usize,
    before: Option<usize>,
    after: Option<usize>,
}

struct Filler {
    batch: RecordBatch,
    schema: arrow::datatypes::SchemaRef,
    roles: Vec<Role>,
    interval: Interval,
    zone: TimeZone,
    times: TimestampNanosecondArray,
    groups: Vec<Group>,
    first: i64,
    last: i64,
    /// The group, the next bucket, and the next row of it.
    group: usize,
    bucket: i64,
    row: usize,
}

impl Filler {
    fn new(
        batch: RecordBatch,
        schema: arrow::datatypes::SchemaRef,
        roles: Vec<Role>,
        (interval, zone): (Interval, TimeZone),
        keys: &[usize],
        time: usize,
    ) -> Result<Filler> {
        let of = DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None);
        let times = cast(batch.column(time), &of)?.as_primitive::<TimestampNanosecondType>().clone();
        let rows = batch.num_rows();
        let mut groups: Vec<Group> = Vec::new();
        if keys.is_empty() {
            groups.extend((rows > 0).then_some(Group { from: 0, to: rows }));
        } else if rows > 0 {
            let keys: Vec<ArrayRef> = keys.iter().map(|at| batch.column(*at).clone()).collect();
            let mut last = None;
            for run in Runs::default().of(&keys)? {
                match groups.last_mut() {
                    Some(group) if last.as_ref() == Some(&run.key) => group.to = run.rows.end,
                    _ => groups.push(Group { from: run.rows.start, to: run.rows.end }),
                }
                last = Some(run.key);
            }
        }
        let known = || times.iter().flatten();
        let (first, last) = (known().min().unwrap_or(0), known().max().unwrap_or(-1));
        let row = groups.first().map_or(0, |group| group.from);
        Ok(Filler { batch, schema, roles, interval, zone, times, groups, first, last, group: 0, bucket: first, row })
    }

    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut made = Vec::new();
        while made.len() < BATCH_ROWS
            && let Some(group) = self.groups.get(self.group)
        {
            let here = (self.row < group.to).then(|| self.times.value(self.row));
            // A row may lie between two buckets where clocks are changed: it comes in its place.
            let is_row = here.is_some_and(|time| time <= self.bucket);
            let time = if is_row { here.unwrap_or(self.bucket) } else { self.bucket };
            made.push(Made {
                time,
                row: is_row.then_some(self.row),
                any: group.from,
                before: self.row.checked_sub(1).filter(|row| *row >= group.from),
                after: (self.row < group.to).then_some(self.row),
            });
            let is_bucket = time == self.bucket;
            self.row += usize::from(is_row);
            if is_bucket {
                let next = self.interval.next(self.bucket, &self.zone).filter(|next| *next <= self.last);
                match next {
                    Some(next) => self.bucket = next,
                    None if self.row < group.to => self.bucket = self.times.value(self.row),
                    None => {
                        self.group += 1;
                        self.bucket = self.first;
                        self.row = self.groups.get(self.group).map_or(0, |group| group.from);
                    }
                }
            }
        }
        if made.is_empty() {
            return Ok(None);
        }
        let columns = (0..self.roles.len()).map(|at| self.column(at, &made)).collect::<Result<Vec<_>>>()?;
        Ok(Some(RecordBatch::try_new(self.schema.clone(), columns)?))
    }

    fn column(&self, at: usize, made: &[Made]) -> Result<ArrayRef> {
        let column = self.batch.column(at);
        let rows = |of: &dyn Fn(&Made) -> Option<usize>| -> Result<ArrayRef> {
            let rows: UInt32Array = made.iter().map(|made| of(made).map(|row| row as u32)).collect();
            Ok(take(column.as_ref(), &rows, None)?)
        };
        match self.roles.get(at) {
            Some(Role::Time) => {
                let times = TimestampNanosecondArray::from_iter_values(made.iter().map(|made| made.time));
                Ok(cast(&times, column.data_type())?)
            }
            Some(Role::Key) => rows(&|made| Some(made.any)),
            Some(Role::Value(With::Previous)) => rows(&|made| made.row.or(made.before)),
            Some(Role::Value(With::Constant(text))) => {
                let value = ScalarValue::try_from_string(text.clone(), column.data_type())?;
                let constant = value.to_array_of_size(1)?;
                let chosen: Vec<(usize, usize)> = made.iter().map(|made| made.row.map_or((1, 0), |row| (0, row))).collect();
                Ok(arrow::compute::interleave(&[column.as_ref(), constant.as_ref()], &chosen)?)
            }
            Some(Role::Value(With::Linear)) => self.linear(column, made),
            Some(Role::Value(With::Null)) => rows(&|made| made.row),
            None => Ok(new_null_array(column.data_type(), made.len())),
        }
    }

    fn linear(&self, column: &ArrayRef, made: &[Made]) -> Result<ArrayRef> {
        if !column.data_type().is_numeric() {
            return Err(wrong(format!("FILL (LINEAR) is for numbers, not for {}", column.data_type())));
        }
        let numbers = cast(column, &DataType::Float64)?;
        let numbers = numbers.as_primitive::<Float64Type>();
        let value = |row: Option<usize>| row.filter(|row| numbers.is_valid(*row)).map(|row| numbers.value(row));
        let of = |made: &Made| {
            if made.row.is_some() {
                return value(made.row);
            }
            let (a, b) = (value(made.before)?, value(made.after)?);
            let (from, to) = (self.times.value(made.before?), self.times.value(made.after?));
            Some(a + (b - a) * ((made.time - from) as f64 / (to - from) as f64))
        };
        Ok(cast(&made.iter().map(of).collect::<Float64Array>(), column.data_type())?)
    }
}
