//! Owns: a store with trades and quotes, what the library reads of it, and how it is asked in SQL.

use std::sync::OnceLock;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::StreamExt;
use tape_query::engine::{Engine, Options, Settings};
use tape_query::failure::QueryError;
use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{self, PublishError, Publisher};
use tapestore::reader::{At, Reader, TimeRange};
use tapestore::record::{Name, Price, Quote, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

/// A trade or a quote as the library reads it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    pub(crate) symbol: String,
    pub(crate) time: i64,
    pub(crate) lsn: u64,
    pub(crate) price: Option<f64>,
    pub(crate) price_raw: Option<i64>,
    pub(crate) size_raw: Option<u64>,
    pub(crate) id: Option<u64>,
}

pub(crate) struct World {
    _store: Embedded,
    pub(crate) engine: Engine,
    pub(crate) trades: Vec<Known>,
    pub(crate) quotes: Vec<Known>,
    pub(crate) runtime: tokio::runtime::Runtime,
}

pub(crate) const START: u64 = 1_723_100_000_000_000_000;

pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

pub(crate) fn publish(publisher: &mut Publisher, record: RecordRef<'_>) {
    loop {
        match publisher.stage(record) {
            Ok(_) => return,
            Err(PublishError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Publishes trades and quotes of some instruments; returns their names.
fn fill(path: &std::path::Path) -> Vec<Name> {
    let mut publisher = Publisher::open(publisher::Options::new(path, PublisherId(7))).unwrap();
    let symbols = ["B:BTC", "B:ETH", "A:MSFT", "A:AAPL", "C:ONE", "A:NONE"];
    let names: Vec<Name> = symbols.iter().map(|name| name.parse().unwrap()).collect();
    let ids = publisher.instruments(&names).unwrap();
    let mut seed = 20_260_830;
    // One record, and the first: its series has one row.
    let one = Trade { instrument: ids[4], price: Price(5_000_000_000), size: Size(1), ts_recv: Ts(START), ..Trade::default() };
    publish(&mut publisher, RecordRef::of(&one));
    let mut time = START;
    for i in 0..400_000u64 {
        // Equal times, small steps, and now and then a step back.
        time += next(&mut seed) % 4 * 3_000_000;
        let late = if next(&mut seed).is_multiple_of(50) { next(&mut seed) % 5_000_000_000 } else { 0 };
        let ts_recv = Ts(time - late.min(time - START));
        let instrument = ids[(next(&mut seed) % 4) as usize];
        let is_null = next(&mut seed).is_multiple_of(97);
        let price = if is_null { Price::NULL } else { Price((100_000 + next(&mut seed) % 1000) as i64 * 10_000_000) };
        if next(&mut seed).is_multiple_of(3) {
            let size = Size(next(&mut seed) % 5_000_000_000);
            let trade_id = if i % 101 == 0 { u64::MAX } else { i };
            let trade = Trade { instrument, price, size, ts_recv, ts_event: ts_recv, trade_id, ..Trade::default() };
            publish(&mut publisher, RecordRef::of(&trade));
        } else {
            // Spreads of both signs, sizes of zero, and some without a value.
            let spread = (next(&mut seed) % 7) as i64 * 10_000_000 - 10_000_000;
            let ask_px = if is_null { Price::NULL } else { Price(price.0 + spread) };
            let size = |n: u64| if n.is_multiple_of(53) { Size::NULL } else { Size(n % 5 * 250_000_000) };
            let (bid_sz, ask_sz) = (size(next(&mut seed)), size(next(&mut seed)));
            let quote = Quote { instrument, bid_px: price, ask_px, bid_sz, ask_sz, ts_recv, ..Quote::default() };
            publish(&mut publisher, RecordRef::of(&quote));
        }
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    names
}

/// Trades and quotes of some instruments, in SSTables and MemTables.
pub(crate) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let path = tempfile::tempdir().unwrap().keep().join("store");
        let defaults = tapestore_engine::Options::default();
        let options =
            tapestore_engine::Options { store: path.clone(), memtable_size: 16 << 20, segment_size: 8 << 20, ..defaults };
        let store = Embedded::with(options).unwrap();
        let names = fill(&path);
        let mut reader = Reader::open(&path).unwrap();
        let snapshot = loop {
            let snapshot = reader.snapshot(At::Committed).unwrap();
            // Storage flushes the first MemTables by itself.
            if snapshot.history().files().len() > 2 {
                break snapshot;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(!snapshot.tables().is_empty(), "rows lie in SSTables and MemTables");
        let name = |id: InstrumentId| names[id.0 as usize - 1].as_str().to_owned();
        let (mut trades, mut quotes) = (Vec::new(), Vec::new());
        let mut rows = snapshot.replay(&snapshot.series().unwrap(), TimeRange::ALL);
        while let Some(row) = rows.next().unwrap() {
            let price = row.record.get::<Trade>().map(|t| t.price).or(row.record.get::<Quote>().map(|q| q.bid_px)).unwrap();
            let raw = (price != Price::NULL).then_some(price.0);
            let known = Known {
                symbol: name(row.record.instrument()),
                time: row.index_time.0 as i64,
                lsn: row.lsn.0,
                price: raw.map(|p| p as f64 / 1e9),
                price_raw: raw,
                size_raw: row.record.get::<Trade>().filter(|t| t.size != Size::NULL).map(|t| t.size.0),
                id: row.record.get::<Trade>().filter(|t| t.trade_id != u64::MAX).map(|t| t.trade_id),
            };
            if row.record.get::<Trade>().is_some() { trades.push(known) } else { quotes.push(known) }
        }
        let engine = Engine::open(&path, Options { threads: 2, ..Options::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        World { _store: store, engine, trades, quotes, runtime }
    })
}

pub(crate) fn try_ask(sql: &str) -> Result<Vec<Vec<String>>, QueryError> {
    ask_of(&world().engine, sql, &Settings::default())
}

/// The answer of `engine`.
pub(crate) fn ask_of(engine: &Engine, sql: &str, settings: &Settings) -> Result<Vec<Vec<String>>, QueryError> {
    world().runtime.block_on(async {
        let mut answer = engine.query(sql, settings).await?;
        let mut rows = Vec::new();
        while let Some(batch) = answer.rows.next().await {
            rows.extend(texts(&batch?));
        }
        Ok(rows)
    })
}

pub(crate) fn ask(sql: &str) -> Vec<Vec<String>> {
    try_ask(sql).unwrap_or_else(|error| panic!("{sql}\n{error}"))
}

pub(crate) fn texts(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("null");
    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|c| c.value(row).to_string()).collect()).collect()
}

pub(crate) fn plan(sql: &str) -> String {
    ask(&format!("explain {sql}")).iter().map(|row| row.join(" ")).collect::<Vec<_>>().join("\n")
}

/// As Arrow prints it.
pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("{value:?}"))
}

pub(crate) fn integer(value: Option<u64>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

/// The rows as [`KEYS`] asks for them.
pub(crate) fn keys<'a>(rows: impl IntoIterator<Item = &'a Known>) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| vec![row.symbol.clone(), row.time.to_string(), row.lsn.to_string()]).collect()
}

pub(crate) const KEYS: &str = "symbol, cast(time as bigint) as t, lsn";
