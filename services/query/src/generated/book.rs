//! Owns: `book(symbol [, time [, levels]])`: the levels of an order book as of a time, as `tape book` prints them.
//!
//! What must hold: the changes that make the book are counted in the memory of statements.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryConsumer;
use tape_services::book::book_at;
use tapestore::book::PriceLevel;
use tapestore::lsn::{InstrumentId, Lsn};
use tapestore::record::Price;
use tapestore::time::{Clock, HostClock, Ts};

use super::{Call, Generated, Out, Rows};
use crate::engine::Moment;
use crate::failure::external;
use crate::schema::UNITS;

/// Levels, unless a call says how many.
const LEVELS: usize = 10;

#[derive(Debug)]
struct Levels {
    moment: Moment,
    instrument: u32,
    time: Ts,
    levels: usize,
    schema: SchemaRef,
}

/// The table.
pub(super) fn table(call: &Call<'_>) -> Result<Arc<dyn TableProvider>> {
    let (instrument, moment) = (call.instrument(0)?, call.moment().clone());
    let time = call.time(1)?.unwrap_or_else(|| HostClock.wall());
    let levels = call.number(2)?.unwrap_or(LEVELS);
    let mut fields = vec![Field::new("level", DataType::UInt32, false)];
    for side in ["bid", "ask"] {
        fields.push(Field::new(format!("{side}_px"), DataType::Float64, true));
        fields.push(Field::new(format!("{side}_sz"), DataType::Float64, true));
        fields.push(Field::new(format!("{side}_ct"), DataType::UInt32, true));
    }
    let rows = Levels { moment, instrument, time, levels, schema: Arc::new(ArrowSchema::new(fields)) };
    Ok(Arc::new(Generated { rows: Arc::new(rows), names: None }))
}

/// An error of the store, or of the engine.
struct Failed(DataFusionError);

impl From<tapestore::Error> for Failed {
    fn from(error: tapestore::Error) -> Failed {
        Failed(external(error))
    }
}

impl Rows for Levels {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn write(&self, out: &Out<'_>) -> Result<()> {
        let held = MemoryConsumer::new("book").register(out.context.memory_pool());
        let mut snapshot = self.moment.snapshot.clone();
        let until = self.moment.known.or(self.moment.until).unwrap_or(Lsn(u64::MAX));
        let book = book_at(&mut snapshot, InstrumentId(self.instrument), (self.time, until), &mut |bytes| {
            if bytes > held.size() {
                held.try_resize(bytes).map_err(Failed)?;
            }
            if out.is_wanted() { Ok(()) } else { Err(Failed(DataFusionError::Execution("nobody reads the rows".to_owned()))) }
        });
        let book = match book {
            Ok(book) => book.unwrap_or_default(),
            Err(_) if !out.is_wanted() => return Ok(()),
            Err(Failed(error)) => return Err(error),
        };
        let bids: Vec<(Price, PriceLevel)> = book.bids().take(self.levels).collect();
        let asks: Vec<(Price, PriceLevel)> = book.asks().take(self.levels).collect();
        let rows = bids.len().max(asks.len());
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from_iter_values(0..rows as u32))];
        for side in [&bids, &asks] {
            let levels = || (0..rows).map(|at| side.get(at));
            columns.push(Arc::new(levels().map(|l| l.map(|(price, _)| price.0 as f64 / UNITS)).collect::<Float64Array>()));
            columns.push(Arc::new(levels().map(|l| l.map(|(_, level)| level.size as f64 / UNITS)).collect::<Float64Array>()));
            columns.push(Arc::new(levels().map(|l| l.map(|(_, level)| level.count)).collect::<UInt32Array>()));
        }
        out.send_all(&RecordBatch::try_new(self.schema.clone(), columns)?).map(|_| ())
    }
}
