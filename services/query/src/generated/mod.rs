//! Owns: tables that a function makes: what they are called with, and how their rows come into a plan.
//!
//! | function | rows |
//! |---|---|
//! | `book(symbol [, time [, levels]])` | the levels of the order book as of the time |
//! | `bars(symbol, '1m' [, from, to])` | bars of trades; also `'100 ticks'`, `'5.5 volume'`, `'1000000 value'` |
//! | `replay(kind, ...)` | records of several kinds |
//! | `read_parquet(path)`, `read_arrow(path)`, `read_csv(path)`, `read_dbn(path)` | the rows of a file |
//!
//! What must hold: rows are made while they are read, in a thread that may wait for a disk; it ends when nobody reads them any more. A
//! file is read only where the engine's options allow it.

mod bars;
mod book;
mod dbn;
mod files;
mod replay;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use tape_services::query::time;
use tapestore::reader::TimeRange;
use tapestore::record::{Record, Trade};
use tapestore::time::Ts;
use tokio::sync::mpsc::Sender;

use crate::engine::Moment;
use crate::filter::Selection;
use crate::names::Names;

/// Batches that wait to be read.
const WAITING: usize = 2;

/// What a statement wants of the rows.
#[derive(Clone, Debug)]
struct Wanted {
    /// Their times.
    time: TimeRange,
    /// Their instruments; `None`: all.
    instruments: Option<BTreeSet<u32>>,
    /// The columns.
    columns: Vec<usize>,
}

/// Where rows go.
struct Out<'o> {
    sender: &'o Sender<Result<RecordBatch>>,
    wanted: &'o Wanted,
    context: &'o TaskContext,
}

impl Out<'_> {
    /// Sends a batch of all columns; `Break`: nobody wants more.
    fn send_all(&self, batch: &RecordBatch) -> Result<ControlFlow<()>> {
        Ok(self.send(batch.project(&self.wanted.columns)?))
    }

    /// Sends a batch of the columns that are wanted.
    fn send(&self, batch: RecordBatch) -> ControlFlow<()> {
        if self.sender.blocking_send(Ok(batch)).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Whether somebody reads the rows.
    fn is_wanted(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// Makes the rows of a table.
trait Rows: fmt::Debug + Send + Sync {
    /// The columns.
    fn schema(&self) -> SchemaRef;

    /// Makes the rows, in a thread of its own.
    fn write(&self, out: &Out<'_>) -> Result<()>;
}

/// A table whose rows are made.
#[derive(Debug)]
struct Generated {
    rows: Arc<dyn Rows>,
    /// For rows of the store's instruments: conditions on `symbol` and `time` restrict what is made.
    names: Option<Arc<Names>>,
}

#[async_trait]
impl TableProvider for Generated {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let of =
            if self.names.is_some() { TableProviderFilterPushDown::Inexact } else { TableProviderFilterPushDown::Unsupported };
        Ok(vec![of; filters.len()])
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.rows.schema();
        let columns = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
        let (mut time, mut instruments) = (TimeRange::ALL, None);
        if let Some(names) = &self.names {
            match Selection::new(&Trade::SCHEMA, filters, names)? {
                Some(selection) => (time, instruments) = (selection.time, selection.instruments),
                None => instruments = Some(BTreeSet::new()),
            }
        }
        let projected = Arc::new(schema.project(&columns)?);
        let wanted = Wanted { time, instruments, columns };
        let part = Part { rows: self.rows.clone(), schema: projected.clone(), wanted };
        // Conditions are applied again, so a limit counts only without any.
        let limit = limit.filter(|_| filters.is_empty());
        Ok(Arc::new(StreamingTableExec::try_new(projected, vec![Arc::new(part)], None, [], false, limit)?))
    }
}

/// The rows in a plan.
#[derive(Debug)]
struct Part {
    rows: Arc<dyn Rows>,
    schema: SchemaRef,
    wanted: Wanted,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStream::builder(self.schema.clone(), WAITING);
        let (sender, rows, wanted) = (stream.tx(), self.rows.clone(), self.wanted.clone());
        stream.spawn_blocking(move || rows.write(&Out { sender: &sender, wanted: &wanted, context: &context }));
        stream.build()
    }
}

/// A function that makes a table.
struct Function {
    name: &'static str,
    /// How it is called.
    usage: &'static str,
    /// Its least and most arguments.
    count: (usize, usize),
    moment: Moment,
    make: fn(&Call<'_>) -> Result<Arc<dyn TableProvider>>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl TableFunctionImpl for Function {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let call = Call { function: self, arguments: args.exprs() };
        let (least, most) = self.count;
        if !(least..=most).contains(&call.arguments.len()) {
            return Err(call.wrong(&format!("it has {} arguments", call.arguments.len())));
        }
        (self.make)(&call)
    }
}

/// A call of a function.
struct Call<'c> {
    function: &'c Function,
    arguments: &'c [Expr],
}

impl Call<'_> {
    fn moment(&self) -> &Moment {
        &self.function.moment
    }

    /// The call cannot be answered, because of `why`.
    fn wrong(&self, why: &str) -> DataFusionError {
        DataFusionError::Plan(format!("{}: {why}; it is called like {}", self.function.name, self.function.usage))
    }

    fn constant(&self, at: usize) -> Result<Option<&ScalarValue>> {
        match self.arguments.get(at) {
            None => Ok(None),
            Some(Expr::Literal(value, _)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(&format!("argument {} is not a constant", at + 1))),
        }
    }

    /// The text at `at`.
    fn text(&self, at: usize) -> Result<&str> {
        let text = self.constant(at)?.and_then(|value| value.try_as_str().flatten());
        text.ok_or_else(|| self.wrong(&format!("argument {} is not a text", at + 1)))
    }

    /// The time at `at`: a timestamp, or a text as the commands take it.
    fn time(&self, at: usize) -> Result<Option<Ts>> {
        let Some(value) = self.constant(at)? else { return Ok(None) };
        if let Some(Some(text)) = value.try_as_str() {
            return time(text).map(Some).map_err(|why| self.wrong(&why));
        }
        let cast = value.cast_to(&crate::schema::time()).ok();
        match cast {
            Some(ScalarValue::TimestampNanosecond(Some(ns), _)) if value.data_type().is_temporal() => {
                u64::try_from(ns).map(|ns| Some(Ts(ns))).map_err(|_| self.wrong("the time is before the year 1970"))
            }
            _ => Err(self.wrong(&format!("argument {} is not a time", at + 1))),
        }
    }

    /// The number at `at`.
    fn number(&self, at: usize) -> Result<Option<usize>> {
        let Some(value) = self.constant(at)? else { return Ok(None) };
        let number = match value {
            ScalarValue::Int64(Some(n)) => usize::try_from(*n).ok(),
            ScalarValue::UInt64(Some(n)) => usize::try_from(*n).ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(&format!("argument {} is not a number of 0 or more", at + 1)))
    }

    /// The instrument called as the text at `at` says.
    fn instrument(&self, at: usize) -> Result<u32> {
        let name = self.text(at)?;
        let known = self.moment().names.id(name);
        known.ok_or_else(|| self.wrong(&format!("the store has no instrument '{name}'; the table instruments lists them")))
    }
}

/// The functions of `moment`; `files`: those that read files may be called.
pub fn functions(moment: &Moment, files: bool) -> Vec<(&'static str, Arc<dyn TableFunctionImpl>)> {
    type Make = fn(&Call<'_>) -> Result<Arc<dyn TableProvider>>;
    let function = |name: &'static str, usage: &'static str, count: (usize, usize), make: Make| {
        let function: Arc<dyn TableFunctionImpl> = Arc::new(Function { name, usage, count, moment: moment.clone(), make });
        (name, function)
    };
    let file = |name: &'static str, usage: &'static str, make: Make| {
        function(name, usage, (1, 1), if files { make } else { files::refuse })
    };
    vec![
        function("book", "book('B:BTC', '2024-08-08 23:55', 10)", (1, 3), book::table),
        function("bars", "bars('B:BTC', '1m') or bars('B:*', '100 ticks', '2024-08-08', '2024-08-09')", (2, 4), bars::table),
        function("replay", "replay('trade', 'quote')", (1, 64), replay::table),
        file("read_parquet", "read_parquet('fills.parquet')", files::parquet),
        file("read_arrow", "read_arrow('fills.arrow')", files::arrow),
        file("read_csv", "read_csv('fills.csv')", files::csv),
        file("read_dbn", "read_dbn('trades.dbn.zst')", dbn::table),
    ]
}
