//! Trades as known at a record, and instruments with their definitions, equal the library's answers and those of a slow
//! reference, over SSTables and MemTables.

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;
use std::time::Duration;

use futures::StreamExt;
use tape_query::engine::{Engine, Options, Settings};
use tape_query::failure::QueryError;
use tape_query::known::AsKnown;
use tapestore::bars::{Builder, Options as BarOptions, Rule};
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{self, PublishError, Publisher};
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{Bust, Char, Correct, Definition, Name, Price, Quote, Record, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

use crate::world::{START, integer, next, number, texts};

const SYMBOLS: [&str; 5] = ["B:BTC", "B:ETH", "A:MSFT", "A:AAPL", "A:NONE"];
/// Records of each half of the store.
const RECORDS: u64 = 12_000;

struct World {
    _store: Embedded,
    engine: Engine,
    snapshot: Snapshot,
    ids: Vec<InstrumentId>,
    runtime: tokio::runtime::Runtime,
}

/// A record as the reference reads it.
enum Stored {
    Trade(Trade),
    Bust(Bust),
    Correct(Correct),
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    symbol: &'static str,
    time: u64,
    lsn: u64,
    price: i64,
    size: u64,
    id: u64,
}

fn publish(publisher: &mut Publisher, record: RecordRef<'_>) {
    while let Err(error) = publisher.stage(record) {
        assert!(matches!(error, PublishError::Full { .. }), "{error}");
    }
}

fn price(seed: &mut u64) -> Price {
    if next(seed).is_multiple_of(50) { Price::NULL } else { Price((100_000 + next(seed) % 1000) as i64 * 10_000_000) }
}

fn definition(instrument: InstrumentId, seed: &mut u64, ts_recv: Ts) -> Definition {
    let mut raw_symbol = [0; 71];
    let text = format!("RAW{}", next(seed) % 1000);
    raw_symbol[..text.len()].copy_from_slice(text.as_bytes());
    let min_price_increment = price(seed);
    Definition { instrument, ts_recv, raw_symbol, min_price_increment, instrument_class: Char(b'K'), ..Definition::default() }
}

/// Publishes trades, busts and corrections by LSN and by id, of trades, of each other, of nothing; quotes and definitions.
fn fill(path: &std::path::Path, number: u16, first: u64, seed: &mut u64) -> Vec<InstrumentId> {
    let mut publisher = Publisher::open(publisher::Options::new(path, PublisherId(number))).unwrap();
    let names: Vec<Name> = SYMBOLS.iter().map(|name| name.parse().unwrap()).collect();
    let ids = publisher.instruments(&names).unwrap();
    for lsn in first..first + RECORDS {
        let instrument = ids[(next(seed) % 4) as usize];
        let late = next(seed) % 20 * 1_000_000;
        let ts_recv = Ts(START + lsn / 3 * 1_000_000 - late.min(lsn / 3 * 1_000_000));
        let (source, trade_id) = ((next(seed) % 2) as u16, next(seed) % 3000);
        // A recent record, one of long ago, one that comes later, or the id alone.
        let trade_lsn = Lsn(match next(seed) % 8 {
            0..4 => lsn.saturating_sub(next(seed) % 20),
            4 | 5 => next(seed) % lsn,
            6 => lsn + next(seed) % 10,
            _ => 0,
        });
        match next(seed) % 20 {
            0..12 => {
                let (price, size) = (price(seed), Size(next(seed) % 5_000_000_000));
                publish(
                    &mut publisher,
                    RecordRef::of(&Trade { instrument, source, ts_recv, trade_id, price, size, ..Trade::default() }),
                );
            }
            12..14 => publish(
                &mut publisher,
                RecordRef::of(&Bust { instrument, source, ts_recv, trade_id, trade_lsn, ..Bust::default() }),
            ),
            14..16 => {
                let (price, size) = (price(seed), Size(next(seed) % 5_000_000_000));
                let correct = Correct { instrument, source, ts_recv, trade_id, trade_lsn, price, size, ..Correct::default() };
                publish(&mut publisher, RecordRef::of(&correct));
            }
            16 => publish(&mut publisher, RecordRef::of(&definition(instrument, seed, ts_recv))),
            _ => {
                let (bid_px, ask_px) = (price(seed), price(seed));
                publish(&mut publisher, RecordRef::of(&Quote { instrument, ts_recv, bid_px, ask_px, ..Quote::default() }));
            }
        }
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    ids
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let path = tempfile::tempdir().unwrap().keep().join("store");
        let mut seed = 20_261_130;
        // Storage that stops flushes what it has: the first half lies in SSTables.
        let store = Embedded::open(&path).unwrap();
        fill(&path, 1, 1, &mut seed);
        store.stop().unwrap();
        let store = Embedded::open(&path).unwrap();
        let ids = fill(&path, 2, RECORDS + 1, &mut seed);
        let snapshot = Reader::open(&path).unwrap().snapshot(At::Committed).unwrap();
        assert_eq!(snapshot.last(), Lsn(2 * RECORDS));
        assert!(!snapshot.history().files().is_empty() && !snapshot.tables().is_empty(), "rows lie in SSTables and MemTables");
        let engine = Engine::open(&path, Options { threads: 2, ..Options::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        World { _store: store, engine, snapshot, ids, runtime }
    })
}

fn try_ask(sql: &str, settings: Settings) -> Result<Vec<Vec<String>>, QueryError> {
    world().runtime.block_on(async {
        let mut answer = world().engine.query(sql, &settings).await?;
        let mut rows = Vec::new();
        while let Some(batch) = answer.rows.next().await {
            rows.extend(texts(&batch?));
        }
        Ok(rows)
    })
}

fn at(lsn: u64) -> Settings {
    Settings { known: AsKnown::Lsn(Lsn(lsn)), ..Settings::default() }
}

fn ask(sql: &str, lsn: u64) -> Vec<Vec<String>> {
    try_ask(sql, at(lsn)).unwrap_or_else(|error| panic!("{sql}\n{error}"))
}

/// LSNs in SSTables, in MemTables, at their border, and beyond both.
fn moments() -> Vec<u64> {
    vec![0, 1, 2, 50, 1_000, 7_777, RECORDS - 1, RECORDS, RECORDS + 1, RECORDS + 500, 2 * RECORDS - 1, 2 * RECORDS, u64::MAX]
}

/// The trades at `lsn`, by symbol, time and LSN, as the library has them.
fn of_library(lsn: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for (symbol, id) in SYMBOLS.iter().zip(&world().ids) {
        let mut trades = world().snapshot.as_known_at(Lsn(lsn)).trades(*id, TimeRange::ALL).unwrap();
        while let Some(known) = trades.next().unwrap() {
            let Trade { price, size, trade_id, .. } = known.trade;
            let (time, lsn) = (known.index_time.0, known.lsn.0);
            rows.push(Row { symbol, time, lsn, price: price.0, size: size.0, id: trade_id });
        }
    }
    rows.sort_by_key(|row| (row.symbol, row.time, row.lsn));
    rows
}

/// All records of the reference, by their LSNs, with their index times.
fn stored() -> &'static BTreeMap<u64, (u64, Stored)> {
    static STORED: OnceLock<BTreeMap<u64, (u64, Stored)>> = OnceLock::new();
    STORED.get_or_init(|| {
        let series = world().snapshot.series().unwrap();
        let mut rows = world().snapshot.replay(&series, TimeRange::ALL);
        let mut all = BTreeMap::new();
        while let Some(row) = rows.next().unwrap() {
            let trade = row.record.get::<Trade>().map(|trade| Stored::Trade(*trade));
            let bust = row.record.get::<Bust>().map(|bust| Stored::Bust(*bust));
            let correct = row.record.get::<Correct>().map(|correct| Stored::Correct(*correct));
            if let Some(record) = trade.or(bust).or(correct) {
                all.insert(row.lsn.0, (row.index_time.0, record));
            }
        }
        all
    })
}

/// The same, by looking at each record for each statement.
fn of_reference(at: u64) -> Vec<Row> {
    let records: Vec<(u64, u64, &Stored)> = stored().range(..=at).map(|(lsn, (time, record))| (*lsn, *time, record)).collect();
    let known = |lsn: u64| stored().get(&lsn).map(|(_, record)| record);
    let of = |record: &Stored| match record {
        Stored::Trade(t) => t.instrument,
        Stored::Bust(b) => b.instrument,
        Stored::Correct(c) => c.instrument,
    };
    // What a statement names: an earlier record of its instrument.
    let named = |lsn: u64, record: &Stored| {
        let (named, id, source) = match record {
            Stored::Bust(b) => (b.trade_lsn.0, b.trade_id, b.source),
            Stored::Correct(c) => (c.trade_lsn.0, c.trade_id, c.source),
            Stored::Trade(_) => return None,
        };
        let is_same = |trade: &Trade| trade.trade_id == id && trade.source == source && trade.instrument == of(record);
        let newest = || {
            let earlier = records.iter().rev().filter(|(other, ..)| *other < lsn);
            earlier.filter(|(.., other)| matches!(other, Stored::Trade(trade) if is_same(trade))).map(|(other, ..)| *other).next()
        };
        let target = if named > 0 { Some(named) } else { newest() };
        target.filter(|target| *target < lsn && known(*target).is_some_and(|other| of(other) == of(record)))
    };
    let (mut revoked, mut effects) = (HashSet::new(), BTreeMap::new());
    for (lsn, _, record) in records.iter().rev() {
        let Some(mut target) = named(*lsn, record).filter(|_| !revoked.contains(lsn)) else { continue };
        if let (Stored::Bust(_), Some(Stored::Bust(_) | Stored::Correct(_))) = (record, known(target)) {
            revoked.insert(target);
            continue;
        }
        while let Some(earlier @ Stored::Correct(_)) = known(target) {
            let Some(further) = named(target, earlier) else { break };
            target = further;
        }
        if matches!(known(target), Some(Stored::Trade(_))) {
            effects.entry(target).or_insert(*record);
        }
    }
    let mut rows = Vec::new();
    for (lsn, time, record) in &records {
        let Stored::Trade(trade) = record else { continue };
        let (price, size) = match effects.get(lsn) {
            Some(Stored::Bust(_)) => continue,
            Some(Stored::Correct(correct)) => (correct.price.0, correct.size.0),
            _ => (trade.price.0, trade.size.0),
        };
        let symbol = SYMBOLS[trade.instrument.0 as usize - 1];
        rows.push(Row { symbol, time: *time, lsn: *lsn, price, size, id: trade.trade_id });
    }
    rows.sort_by_key(|row| (row.symbol, row.time, row.lsn));
    rows
}

const COLUMNS: &str = "symbol, cast(time as bigint), lsn, price, price_raw, size, size_raw, trade_id";

fn shown(rows: &[Row]) -> Vec<Vec<String>> {
    let row = |row: &Row| {
        let price = (row.price != i64::MAX).then_some(row.price);
        let raw = price.map_or_else(|| "null".to_owned(), |price| price.to_string());
        let decimal = number(price.map(|price| price as f64 / 1e9));
        let size = number(Some(row.size as f64 / 1e9));
        let (time, lsn, id) = (row.time.to_string(), row.lsn.to_string(), integer(Some(row.id)));
        vec![row.symbol.to_owned(), time, lsn, decimal, raw, size, row.size.to_string(), id]
    };
    rows.iter().map(row).collect()
}

#[test]
fn trades_as_known_at_each_record_equal_the_librarys_and_a_slow_reference() {
    for lsn in moments() {
        let library = of_library(lsn);
        assert!(of_reference(lsn) == library, "the reference at {lsn}");
        let found = ask(&format!("select {COLUMNS} from trade order by symbol, time, lsn"), lsn);
        assert!(found == shown(&library), "{lsn}: {} and {} rows", found.len(), library.len());
        let mut unordered = ask(&format!("select {COLUMNS} from trade"), lsn);
        unordered.sort();
        let mut expected = shown(&library);
        expected.sort();
        assert!(unordered == expected, "{lsn}: without an order");
    }
    let before = of_library(RECORDS);
    let changed = of_library(u64::MAX).iter().filter(|row| row.lsn <= RECORDS && !before.contains(row)).count();
    assert!(changed > 20, "statements in MemTables correct trades in SSTables: {changed}");
}

#[test]
fn conditions_orders_limits_and_joins_hold_for_trades_as_known() {
    let middle = START + 3_000_000_000;
    for lsn in [50, 7_777, RECORDS + 500, u64::MAX] {
        let all = of_library(lsn);
        let check = |condition: &str, holds: &dyn Fn(&Row) -> bool| {
            let rows: Vec<Row> = all.iter().filter(|row| holds(row)).cloned().collect();
            let found = ask(&format!("select {COLUMNS} from trade where {condition} order by symbol, time, lsn"), lsn);
            assert!(found == shown(&rows), "{condition} at {lsn}: {} and {}", found.len(), rows.len());
            let counted = ask(&format!("select count(*) from trade where {condition}"), lsn);
            assert_eq!(counted, [[rows.len().to_string()]], "{condition} at {lsn}");
        };
        check("symbol = 'B:ETH'", &|row| row.symbol == "B:ETH");
        check("symbol in ('A:AAPL', 'A:NONE')", &|row| row.symbol == "A:AAPL");
        check("symbol = 'X:X'", &|_| false);
        check(&format!("time >= to_timestamp_nanos({middle})"), &|row| row.time >= middle);
        check(&format!("time < to_timestamp_nanos({middle}) and symbol like 'B:%'"), &|row| {
            row.time < middle && row.symbol.starts_with("B:")
        });
        // As corrected.
        check("price > 1005", &|row| row.price != i64::MAX && row.price > 1_005_000_000_000);
        check("size_raw < 1000000000 and symbol = 'A:MSFT'", &|row| row.size < 1_000_000_000 && row.symbol == "A:MSFT");
        check("trade_id = 17", &|row| row.id == 17);
        check("lsn between 40 and 900", &|row| (40..=900).contains(&row.lsn));
        let mut by_time = all.clone();
        by_time.sort_by_key(|row| std::cmp::Reverse((row.time, row.lsn)));
        by_time.truncate(7);
        assert_eq!(ask(&format!("select {COLUMNS} from trade order by time desc, lsn desc limit 7"), lsn), shown(&by_time));
        assert_eq!(ask("select lsn from trade limit 3", lsn).len(), 3);
        let bounds = ask("select count(*), cast(min(time) as bigint), cast(max(time) as bigint), sum(size_raw) from trade", lsn);
        let times = || all.iter().map(|row| row.time);
        let sum: u64 = all.iter().map(|row| row.size).sum();
        assert_eq!(bounds[0][..3], [all.len() as u64, times().min().unwrap(), times().max().unwrap()].map(|n| n.to_string()));
        assert_eq!(bounds[0][3].trim_end_matches(".0"), sum.to_string());
        let mut newest: BTreeMap<&str, Row> = BTreeMap::new();
        newest.extend(all.iter().map(|row| (row.symbol, row.clone())));
        let newest: Vec<Row> = newest.into_values().collect();
        let found = ask(&format!("select {COLUMNS} from trade latest on time partition by symbol order by symbol"), lsn);
        assert_eq!(found, shown(&newest));
    }
}

#[test]
fn bars_as_known_at_a_record_are_of_the_trades_that_were_valid() {
    for lsn in [7_777, RECORDS + 500] {
        for (symbol, id) in SYMBOLS.iter().zip(&world().ids) {
            let (mut builder, mut bars) = (Builder::new(BarOptions::new(Rule::Ticks(50))).unwrap(), Vec::new());
            let mut trades = world().snapshot.as_known_at(Lsn(lsn)).trades(*id, TimeRange::ALL).unwrap();
            while let Some(known) = trades.next().unwrap() {
                builder.push(known.lsn, known.index_time, &known.trade, &mut |bar| bars.push(bar));
            }
            builder.finish(&mut |bar| bars.push(bar));
            let shown = bars.iter().map(|bar| [bar.start.0, bar.trades, bar.first_lsn.0, bar.last_lsn.0].map(|n| n.to_string()));
            let sql = format!("select cast(time as bigint), trades, first_lsn, last_lsn from bars('{symbol}', '50 ticks')");
            assert_eq!(ask(&sql, lsn), shown.collect::<Vec<_>>(), "{symbol} at {lsn}");
        }
    }
}

#[test]
fn a_join_by_time_takes_the_newest_trade_that_was_valid_and_quotes_up_to_the_record() {
    for lsn in [7_777, RECORDS + 500] {
        let trades = of_library(lsn);
        let mut quotes = Vec::new();
        for (symbol, id) in SYMBOLS.iter().zip(&world().ids) {
            let mut rows = world().snapshot.scan(Series { instrument: *id, kind: Quote::KIND }, TimeRange::ALL);
            while let Some(row) = rows.next().unwrap() {
                if row.lsn.0 <= lsn {
                    quotes.push((*symbol, row.index_time.0, row.lsn.0));
                }
            }
        }
        quotes.sort_unstable();
        let newest = |(symbol, time, quote): &(&str, u64, u64)| {
            let trade = trades.iter().rev().find(|row| row.symbol == *symbol && row.time <= *time);
            vec![quote.to_string(), integer(trade.map(|row| row.lsn)), integer(trade.map(|row| row.size))]
        };
        let expected: Vec<Vec<String>> = quotes.iter().map(newest).collect();
        let sql = "select q.lsn, t.lsn, t.size_raw from quote q asof join trade t match_condition (q.time >= t.time) \
                   on q.symbol = t.symbol order by q.symbol, q.time, q.lsn";
        let found = ask(sql, lsn);
        assert!(found == expected, "{lsn}: {} and {} rows", found.len(), expected.len());
        let late = format!(
            "select q.lsn, t.lsn, t.size_raw from quote q asof join trade t match_condition (q.time >= t.time) \
                   on q.symbol = t.symbol where q.time >= to_timestamp_nanos({}) order by q.symbol, q.time, q.lsn",
            START + 2_000_000_000
        );
        let some: Vec<Vec<String>> = quotes.iter().filter(|quote| quote.1 >= START + 2_000_000_000).map(newest).collect();
        assert!(ask(&late, lsn) == some, "{lsn}: from a time on");
    }
}

#[test]
fn other_tables_end_at_the_record_and_without_the_setting_trades_are_as_stored() {
    let stored_up_to = |kind, lsn: u64| {
        let rows = world().ids.iter().map(|id| {
            let (mut scan, mut count) = (world().snapshot.scan(Series { instrument: *id, kind }, TimeRange::ALL), 0);
            while let Some(row) = scan.next().unwrap() {
                count += u64::from(row.lsn.0 <= lsn);
            }
            count
        });
        rows.sum::<u64>().to_string()
    };
    for (table, kind) in [("quote", Quote::KIND), ("bust", Bust::KIND), ("correct", Correct::KIND)] {
        for lsn in [0, 7_777, RECORDS + 500] {
            assert_eq!(ask(&format!("select count(*) from {table}"), lsn), [[stored_up_to(kind, lsn)]], "{table} {lsn}");
        }
    }
    let off = try_ask("select count(*) from trade", Settings::default()).unwrap();
    assert_eq!(off, [[stored_up_to(Trade::KIND, u64::MAX)]]);
    // Now is the last record that the session reads.
    let now = |until| Settings { known: AsKnown::Now, until, ..Settings::default() };
    for (settings, lsn) in [(now(None), u64::MAX), (now(Some(Lsn(7_777))), 7_777)] {
        let found = try_ask(&format!("select {COLUMNS} from trade order by symbol, time, lsn"), settings).unwrap();
        assert!(found == shown(&of_library(lsn)), "{settings:?}");
    }
    let both = Settings { until: Some(Lsn(1_000)), ..at(7_777) };
    let found = try_ask(&format!("select {COLUMNS} from trade order by symbol, time, lsn"), both).unwrap();
    assert!(found == shown(&of_library(1_000)), "no record after the last one that the session reads counts");
}

#[test]
fn conditions_restrict_what_is_read_and_an_order_needs_no_sort() {
    let plan = |sql: &str| ask(&format!("explain {sql}"), 7_777).iter().map(|row| row.join(" ")).collect::<Vec<_>>().join("\n");
    let one = plan(
        "select time, price from trade where symbol = 'B:ETH' and time < to_timestamp_nanos(1723100001000000000) order by time",
    );
    assert!(one.contains("KnownExec: busts and corrections up to LSN 7777"), "{one}");
    assert!(one.contains("symbols=1 of 5") && one.contains("to=2024-08-08") && !one.contains("SortExec"), "{one}");
    for sql in [
        "select symbol, time, lsn from trade order by symbol, time, lsn",
        "select time, size from trade order by time desc limit 5",
    ] {
        let plan = plan(sql);
        assert!(!plan.contains("SortExec") && plan.contains("KnownExec"), "{plan}");
    }
    let off = try_ask("explain select time from trade", Settings::default()).unwrap();
    assert!(!off.iter().flatten().any(|text| text.contains("KnownExec")));
    // They count as memory of statements.
    let small = Engine::open(world().engine.store(), Options { memory: 10_000, ..Options::default() }).unwrap();
    let failed = world().runtime.block_on(async {
        let mut answer = small.query("select lsn from trade", &at(u64::MAX)).await?;
        while let Some(batch) = answer.rows.next().await {
            batch?;
        }
        Ok::<_, QueryError>(())
    });
    assert!(matches!(failed, Err(QueryError::Memory { .. })), "{failed:?}");
}

/// The newest definition of each instrument not after `time` and of a record up to `lsn`: symbol, number, LSN, increment, symbol.
fn defined(time: u64, lsn: u64) -> Vec<Vec<String>> {
    let row = |(symbol, id): (&&str, &InstrumentId)| {
        let mut rows = world().snapshot.scan(Series { instrument: *id, kind: Definition::KIND }, TimeRange::ALL);
        let mut newest = None;
        while let Some(row) = rows.next().unwrap() {
            if row.lsn.0 <= lsn && row.index_time.0 <= time {
                newest = Some((row.index_time, row.lsn, *row.record.get::<Definition>().unwrap()));
            }
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.iter().copied().take_while(|b| *b > 0).collect()).unwrap();
        let increment =
            newest.filter(|(.., d)| d.min_price_increment != Price::NULL).map(|(.., d)| d.min_price_increment.0 as f64 / 1e9);
        vec![
            (*symbol).to_owned(),
            id.to_string(),
            integer(newest.map(|(time, ..)| time.0)),
            integer(newest.map(|(_, lsn, _)| lsn.0)),
            number(increment),
            newest.map_or("null".to_owned(), |(.., d)| text(&d.raw_symbol)),
            newest.map_or("null".to_owned(), |_| "K".to_owned()),
        ]
    };
    SYMBOLS.iter().zip(&world().ids).map(row).collect()
}

const DEFINED: &str =
    "symbol, number, cast(defined as bigint), definition_lsn, min_price_increment, raw_symbol, instrument_class";

#[test]
fn an_instrument_has_its_newest_definition_as_of_a_time_and_a_record() {
    let now = Settings::default();
    let of = |from: &str, settings| try_ask(&format!("select {DEFINED} from {from} order by number"), settings).unwrap();
    assert_eq!(of("instruments", now), defined(u64::MAX, u64::MAX));
    for lsn in [0, 50, 7_777, RECORDS, RECORDS + 500] {
        assert_eq!(of("instruments", at(lsn)), defined(u64::MAX, lsn), "{lsn}");
        assert_eq!(of("instruments", Settings { until: Some(Lsn(lsn)), ..now }), defined(u64::MAX, lsn), "{lsn}");
    }
    for time in [START - 1, START, START + 1_000_000_000, START + 4_000_000_000, START + 4_000_000_001, u64::MAX >> 1] {
        for lsn in [300, 7_777, u64::MAX] {
            let found = of(&format!("instruments(to_timestamp_nanos({time}))"), at(lsn));
            assert_eq!(found, defined(time, lsn), "{time} {lsn}");
        }
    }
    assert_eq!(of("instruments('2024-08-08T06:53:21Z')", now), defined(START + 1_000_000_000, u64::MAX));
    assert_eq!(of("instruments(now() - interval '100000 days')", now), defined(0, 0), "before 1970 nothing is defined");
    assert_eq!(of("instruments(timestamp '2024-08-08T06:53:21Z' - interval '1 second')", now), defined(START, u64::MAX));
    for wrong in ["instruments('soon')", "instruments(1, 2)", "instruments()", "instruments(7)"] {
        let error = try_ask(&format!("select * from {wrong}"), now).unwrap_err();
        assert!(error.to_string().contains("2024-08-08"), "{wrong}: {error}");
    }
}

#[test]
fn instruments_are_chosen_and_counted_without_their_definitions_and_join_other_tables() {
    let now = |sql: &str| try_ask(sql, Settings::default()).unwrap();
    assert_eq!(now("select count(*) from instruments"), [["5"]]);
    assert_eq!(now("select number from instruments where symbol = 'A:MSFT'"), [["3"]]);
    assert_eq!(now("select symbol from instruments where symbol like 'A:%' and number > 3 order by 1"), [["A:AAPL"], ["A:NONE"]]);
    assert_eq!(now("select symbol from instruments where defined is null"), [["A:NONE"]]);
    assert_eq!(now("select symbol from instruments limit 2").len(), 2);
    let joined = "select count(*) from trade t join instruments i on t.symbol = i.symbol where i.instrument_class = 'K'";
    assert_eq!(now(joined), now("select count(*) from trade"));
    let plan = now("explain select * from instruments where symbol = 'A:MSFT'").concat().join("\n");
    assert!(!plan.contains("FilterExec"), "{plan}");
}
