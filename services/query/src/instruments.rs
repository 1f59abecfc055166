//! Owns: the table `instruments`, and as of a time the table function `instruments(TIME)`: each instrument with its newest
//! definition.
//!
//! What must hold: an instrument is one row, with or without a definition. The definition is the newest one by index time and
//! LSN, not after the time and of a record that statements read. Definitions are read only if a column needs them, and of the
//! symbols alone that conditions leave.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, TimestampNanosecondArray, UInt32Array, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::ExecutionProps;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream;
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::reader::Snapshot;
use tapestore::record::{Definition, Record, Row, Series};
use tapestore::time::Ts;

use crate::columns;
use crate::engine::Moment;
use crate::failure::external;
use crate::filter;
use crate::names::Names;
use crate::schema::{KindTable, Origin, time};

/// The name of the table and of the function.
pub const NAME: &str = "instruments";
/// Instruments of a batch.
const BATCH_ROWS: usize = 4096;

/// Fields of a definition that are columns: what most questions about an instrument ask for. The table `definition` has all.
const FIELDS: [&str; 35] = [
    "raw_symbol",
    "raw_instrument_id",
    "source",
    "security_type",
    "instrument_class",
    "cfi",
    "exchange",
    "asset",
    "group",
    "underlying",
    "underlying_id",
    "currency",
    "settl_currency",
    "min_price_increment",
    "min_price_increment_amount",
    "display_factor",
    "min_size_increment",
    "min_size",
    "min_lot_size",
    "min_trade_vol",
    "max_trade_vol",
    "unit_of_measure",
    "unit_of_measure_qty",
    "contract_multiplier",
    "original_contract_size",
    "strike_price",
    "strike_price_currency",
    "activation",
    "expiration",
    "maturity_year",
    "maturity_month",
    "maturity_day",
    "high_limit_price",
    "low_limit_price",
    "security_update_action",
];

/// What a column is made of.
#[derive(Clone, Copy, Debug)]
enum Made {
    Symbol,
    Number,
    /// The index time of the definition.
    Defined,
    /// The LSN of the definition.
    Lsn,
    /// A field of the definition.
    Field(Origin),
}

/// The columns, and what each is made of.
static COLUMNS: LazyLock<Vec<(Field, Made)>> = LazyLock::new(|| {
    let definition = KindTable::new(&Definition::SCHEMA);
    let mut columns = vec![
        (Field::new("symbol", DataType::Utf8, true), Made::Symbol),
        (Field::new("number", DataType::UInt32, true), Made::Number),
        (Field::new("defined", time(), true), Made::Defined),
        (Field::new("definition_lsn", DataType::UInt64, true), Made::Lsn),
    ];
    let field = |name: &&str| {
        let (at, field) = definition.arrow.column_with_name(name)?;
        let origin = definition.origins.get(at)?;
        Some((field.clone().with_nullable(true), Made::Field(*origin)))
    };
    columns.extend(FIELDS.iter().filter_map(field));
    columns
});

/// The names and the types of the columns.
pub fn columns() -> impl Iterator<Item = (&'static str, DataType)> {
    COLUMNS.iter().map(|(field, _)| (field.name().as_str(), field.data_type().clone()))
}

/// The columns of the table.
fn schema() -> SchemaRef {
    Arc::new(ArrowSchema::new(COLUMNS.iter().map(|(field, _)| field.clone()).collect::<Vec<_>>()))
}

/// The instruments, with their definitions as of one time.
#[derive(Clone, Debug)]
pub struct Instruments {
    snapshot: Snapshot,
    names: Arc<Names>,
    /// The last record that statements read.
    last: Lsn,
    /// The time; `None`: before all times that there are.
    until: Option<Ts>,
}

impl Instruments {
    /// With their newest definitions.
    pub fn new(moment: &Moment) -> Instruments {
        let last = moment.known.or(moment.until).unwrap_or(moment.snapshot.last());
        Instruments { snapshot: moment.snapshot.clone(), names: moment.names.clone(), last, until: Some(Ts(u64::MAX)) }
    }
}

#[async_trait]
impl TableProvider for Instruments {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |expr: &&Expr| match filter::is_of_symbol(expr) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut ids: BTreeSet<u32> = (1..=self.names.len() as u32).collect();
        for filter in filters {
            let found = filter::matching(filter, self.names.values.clone())?;
            ids.retain(|id| found.contains(id));
        }
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..COLUMNS.len()).collect());
        let schema = Arc::new(schema().project(&columns)?);
        let made = columns.iter().filter_map(|at| COLUMNS.get(*at).map(|(_, made)| *made)).collect();
        let rows = Rows { of: self.clone(), ids: ids.into_iter().collect(), schema: schema.clone(), made };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(rows)], None, None, false, limit)?))
    }
}

/// The rows of a statement.
#[derive(Clone, Debug)]
struct Rows {
    of: Instruments,
    ids: Arc<[u32]>,
    schema: SchemaRef,
    made: Vec<Made>,
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = stream::unfold((self.clone(), 0), |(rows, at)| async move {
            let ids = rows.ids.get(at..).and_then(|left| left.chunks(BATCH_ROWS).next())?;
            let (next, batch) = (at + ids.len(), rows.batch(ids));
            Some((batch, (rows, next)))
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches))
    }
}

impl Rows {
    fn batch(&self, ids: &[u32]) -> Result<RecordBatch> {
        let mut definitions = Definitions { fields: vec![Vec::new(); self.made.len()], ..Definitions::default() };
        if self.made.iter().any(|made| !matches!(made, Made::Symbol | Made::Number)) {
            let mut snapshot = self.of.snapshot.clone();
            for id in ids {
                let series = Series { instrument: InstrumentId(*id), kind: Definition::KIND };
                let is_found = self.find(&mut snapshot, series, &mut definitions).map_err(external)?;
                definitions.places.push(is_found.then(|| definitions.lsns.len() as u32 - 1));
            }
        }
        let columns = self.made.iter().zip(std::mem::take(&mut definitions.fields));
        let columns = columns.map(|(made, bytes)| self.column(*made, bytes, ids, &definitions)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(ids.len()));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }

    fn column(&self, made: Made, bytes: Vec<u8>, ids: &[u32], definitions: &Definitions) -> Result<ArrayRef> {
        let places = UInt32Array::from(definitions.places.clone());
        Ok(match made {
            Made::Symbol => take(&self.of.names.values, &UInt32Array::from(ids.to_vec()), None)?,
            Made::Number => Arc::new(UInt32Array::from(ids.to_vec())),
            Made::Lsn => take(&UInt64Array::from(definitions.lsns.clone()), &places, None)?,
            Made::Defined => {
                let times = definitions.times.iter().map(|ns| i64::try_from(*ns).ok()).collect::<TimestampNanosecondArray>();
                take(&times, &places, None)?
            }
            Made::Field(origin) => {
                let values = columns::of_field(&origin, bytes, definitions.lsns.len());
                let values = values.ok_or_else(|| DataFusionError::Internal("a definition has no such field".to_owned()))?;
                take(&values, &places, None)?
            }
        })
    }

    /// Adds the newest definition of `series`; whether there is one.
    fn find(&self, snapshot: &mut Snapshot, series: Series, definitions: &mut Definitions) -> tapestore::Result<bool> {
        let mut until = self.of.until;
        while let Some(time) = until {
            let Some(row) = snapshot.as_of(series, time)? else { return Ok(false) };
            if row.lsn <= self.of.last {
                definitions.push(&row, &self.made);
                return Ok(true);
            }
            // It came later than the statement reads: others of the same time may not have, and earlier ones.
            let newest = row.index_time;
            let mut earlier = None;
            let mut same = snapshot.get_at(series, newest);
            while let Some(row) = same.next()? {
                earlier = Some(row.lsn).filter(|lsn| *lsn <= self.of.last).or(earlier);
            }
            drop(same);
            if let Some(lsn) = earlier
                && let Some(row) = snapshot.get(lsn)?
            {
                definitions.push(&row, &self.made);
                return Ok(true);
            }
            until = newest.0.checked_sub(1).map(Ts);
        }
        Ok(false)
    }
}

/// Definitions, column by column.
#[derive(Default)]
struct Definitions {
    /// The place of each instrument's definition; `None`: it has none.
    places: Vec<Option<u32>>,
    times: Vec<u64>,
    lsns: Vec<u64>,
    /// The bytes of each column that is a field; empty for the others.
    fields: Vec<Vec<u8>>,
}

impl Definitions {
    fn push(&mut self, row: &Row<'_>, made: &[Made]) {
        self.times.push(row.index_time.0);
        self.lsns.push(row.lsn.0);
        let bytes = row.record.bytes();
        for (field, made) in self.fields.iter_mut().zip(made) {
            if let Made::Field(Origin::Field { column, .. }) = made {
                field.extend_from_slice(bytes.get(column.offset..column.offset + column.of.size()).unwrap_or(&[]));
            }
        }
    }
}

/// The table function.
#[derive(Debug)]
pub struct InstrumentsAt(pub Instruments);

impl TableFunctionImpl for InstrumentsAt {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let wrong = || DataFusionError::Plan(format!("{NAME} takes one time that is constant, like {NAME}('2024-08-08')"));
        let [time] = args.exprs() else { return Err(wrong()) };
        // What it is given does not know the time: now() is still a call.
        let options = args.session().config().options();
        let mut started = ExecutionProps::new();
        started.mark_start_execution(options.clone());
        let context = SimplifyContext::builder()
            .with_config_options(options.clone())
            .with_query_execution_start_time(started.query_execution_start_time)
            .build();
        let Expr::Literal(value, _) = ExprSimplifier::new(context).simplify(time.clone())? else { return Err(wrong()) };
        let ns = nanoseconds(&value)?;
        Ok(Arc::new(Instruments { until: u64::try_from(ns).ok().map(Ts), ..self.0.clone() }))
    }
}

/// The time `value`, ns since 1970.
fn nanoseconds(value: &ScalarValue) -> Result<i64> {
    let wrong = || DataFusionError::Plan(format!("'{value}' is not a time like '2024-08-08' or '2024-08-08T09:30:00Z'"));
    let of = match value.data_type() {
        // A time of a zone is the same time in UTC.
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Nanosecond, zone),
        DataType::Date32 | DataType::Date64 | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => time(),
        _ => return Err(wrong()),
    };
    match value.cast_to(&of) {
        Ok(ScalarValue::TimestampNanosecond(Some(ns), _)) => Ok(ns),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_is_named_is_a_column() {
        assert_eq!(COLUMNS.len(), 4 + FIELDS.len());
        let schema = schema();
        assert!(FIELDS.iter().all(|name| schema.column_with_name(name).is_some()));
    }

    #[test]
    fn a_time_is_a_text_a_date_or_a_timestamp_and_nothing_else() {
        let day = 1_723_075_200_000_000_000;
        assert_eq!(nanoseconds(&ScalarValue::from("2024-08-08")).unwrap(), day);
        assert_eq!(nanoseconds(&ScalarValue::from("2024-08-08T02:00:00+02:00")).unwrap(), day);
        assert_eq!(nanoseconds(&ScalarValue::Date32(Some(19_943))).unwrap(), day);
        let zoned = ScalarValue::TimestampSecond(Some(day / 1_000_000_000), Some("+02:00".into()));
        assert_eq!(nanoseconds(&zoned).unwrap(), day);
        for bad in [ScalarValue::from("yesterday"), ScalarValue::from(7i64), ScalarValue::Null, ScalarValue::Utf8(None)] {
            assert!(nanoseconds(&bad).unwrap_err().to_string().contains("2024-08-08"), "{bad:?}");
        }
    }
}
