//! Answers of SQL equal what a slow reference makes of the library's rows: over SSTables, MemTables, rows out of order, equal
//! times, nulls, empty sets and series of one row.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

use std::collections::BTreeMap;
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
struct Known {
    symbol: String,
    time: i64,
    lsn: u64,
    price: Option<f64>,
    price_raw: Option<i64>,
    size_raw: Option<u64>,
    id: Option<u64>,
}

struct World {
    _store: Embedded,
    engine: Engine,
    trades: Vec<Known>,
    quotes: Vec<Known>,
    runtime: tokio::runtime::Runtime,
}

const START: u64 = 1_723_100_000_000_000_000;

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn publish(publisher: &mut Publisher, record: RecordRef<'_>) {
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
            let quote = Quote { instrument, bid_px: price, ask_px: price, ts_recv, ..Quote::default() };
            publish(&mut publisher, RecordRef::of(&quote));
        }
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    names
}

/// Trades and quotes of some instruments, in SSTables and MemTables.
fn world() -> &'static World {
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

fn try_ask(sql: &str) -> Result<Vec<Vec<String>>, QueryError> {
    let world = world();
    world.runtime.block_on(async {
        let mut answer = world.engine.query(sql, &Settings::default()).await?;
        let mut rows = Vec::new();
        while let Some(batch) = answer.rows.next().await {
            rows.extend(texts(&batch?));
        }
        Ok(rows)
    })
}

fn ask(sql: &str) -> Vec<Vec<String>> {
    try_ask(sql).unwrap_or_else(|error| panic!("{sql}\n{error}"))
}

fn texts(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("null");
    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|c| c.value(row).to_string()).collect()).collect()
}

fn plan(sql: &str) -> String {
    ask(&format!("explain {sql}")).iter().map(|row| row.join(" ")).collect::<Vec<_>>().join("\n")
}

/// As Arrow prints it.
fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("{value:?}"))
}

fn integer(value: Option<u64>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

/// The rows as [`KEYS`] asks for them.
fn keys<'a>(rows: impl IntoIterator<Item = &'a Known>) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| vec![row.symbol.clone(), row.time.to_string(), row.lsn.to_string()]).collect()
}

const KEYS: &str = "symbol, cast(time as bigint) as t, lsn";

#[test]
fn conditions_leave_the_rows_that_they_leave_in_the_library() {
    let trades = &world().trades;
    let middle = trades[trades.len() / 2].time;
    // Times that rows have: a bound that is moved by one leaves another row.
    let (early, late) = (trades[trades.len() * 2 / 5].time, trades[trades.len() * 3 / 5].time);
    let time = |ns: i64| format!("to_timestamp_nanos({ns})");
    type Passes<'a> = Box<dyn Fn(&Known) -> bool + 'a>;
    let cases: Vec<(String, Passes<'_>)> = vec![
        ("true".into(), Box::new(|_| true)),
        ("symbol = 'B:ETH'".into(), Box::new(|t| t.symbol == "B:ETH")),
        ("symbol in ('A:AAPL', 'C:ONE', 'X:X')".into(), Box::new(|t| ["A:AAPL", "C:ONE"].contains(&&*t.symbol))),
        ("symbol like 'A:%'".into(), Box::new(|t| t.symbol.starts_with("A:"))),
        ("symbol not like 'A:%' and symbol <> 'B:BTC'".into(), Box::new(|t| !t.symbol.starts_with("A:") && t.symbol != "B:BTC")),
        ("symbol = 'A:NONE'".into(), Box::new(|_| false)),
        ("symbol is null".into(), Box::new(|_| false)),
        (format!("time >= {} and time < {}", time(early), time(late)), Box::new(|t| (early..late).contains(&t.time))),
        (format!("time between {} and {}", time(early), time(late)), Box::new(|t| (early..=late).contains(&t.time))),
        (format!("time = {}", time(middle)), Box::new(|t| t.time == middle)),
        (format!("time > {} and time <= {}", time(early), time(late)), Box::new(|t| t.time > early && t.time <= late)),
        (format!("symbol = 'B:BTC' and {} < time", time(late)), Box::new(|t| t.symbol == "B:BTC" && t.time > late)),
        ("time < '1980-01-01'".into(), Box::new(|_| false)),
        ("lsn > 50000 and lsn <= 60000".into(), Box::new(|t| t.lsn > 50_000 && t.lsn <= 60_000)),
        ("lsn = 77777 or symbol = 'C:ONE'".into(), Box::new(|t| t.lsn == 77_777 || t.symbol == "C:ONE")),
        ("trade_id = 4242".into(), Box::new(|t| t.id == Some(4242))),
        ("symbol = 'A:MSFT' and trade_id < 900".into(), Box::new(|t| t.symbol == "A:MSFT" && t.id.is_some_and(|id| id < 900))),
        ("trade_id is null".into(), Box::new(|t| t.id.is_none())),
        ("price is null and symbol = 'B:ETH'".into(), Box::new(|t| t.price.is_none() && t.symbol == "B:ETH")),
        ("price > 1005.5".into(), Box::new(|t| t.price.is_some_and(|price| price > 1005.5))),
        (
            format!("symbol = 'B:BTC' and lsn > 90000 and time < {}", time(late)),
            Box::new(|t| t.symbol == "B:BTC" && t.lsn > 90_000 && t.time < late),
        ),
    ];
    for (condition, passes) in cases {
        let mut expected = keys(trades.iter().filter(|trade| passes(trade)));
        let mut found = ask(&format!("select {KEYS} from trade where {condition}"));
        expected.sort();
        found.sort();
        assert!(found == expected, "{condition}: {} rows, expected {}", found.len(), expected.len());
        let count = ask(&format!("select count(*) from trade where {condition}"));
        assert_eq!(count, [[expected.len().to_string()]], "{condition}");
    }
}

#[test]
fn rows_come_in_the_order_that_is_asked_for_with_and_without_a_limit() {
    let trades = &world().trades;
    type Key = fn(&Known) -> (String, i64, i64);
    let orders: [(&str, Key); 6] = [
        ("time, lsn", |t| (String::new(), t.time, t.lsn as i64)),
        ("time desc, lsn desc", |t| (String::new(), -t.time, -(t.lsn as i64))),
        ("symbol, time, lsn", |t| (t.symbol.clone(), t.time, t.lsn as i64)),
        ("symbol, time desc, lsn desc", |t| (t.symbol.clone(), -t.time, -(t.lsn as i64))),
        ("lsn", |t| (String::new(), t.lsn as i64, 0)),
        ("lsn desc", |t| (String::new(), -(t.lsn as i64), 0)),
    ];
    for (order, key) in orders {
        let mut sorted: Vec<&Known> = trades.iter().collect();
        sorted.sort_by_key(|row| key(row));
        let expected = keys(sorted);
        assert!(ask(&format!("select {KEYS} from trade order by {order}")) == expected, "{order}");
        for limit in [1, 7, 1000, 20_000] {
            let found = ask(&format!("select {KEYS} from trade order by {order} limit {limit}"));
            assert!(found == expected[..limit.min(expected.len())], "{order} limit {limit}");
        }
        let one: Vec<_> = expected.iter().filter(|row| row[0] == "B:ETH").cloned().collect();
        let found = ask(&format!("select {KEYS} from trade where symbol = 'B:ETH' order by {order}"));
        assert!(found == one, "{order} of one symbol");
        let found = ask(&format!("select {KEYS} from trade where symbol = 'B:ETH' order by {order} limit 5 offset 3"));
        assert!(found == one[3..8], "{order} of one symbol with an offset");
    }
    assert_eq!(ask("select lsn from trade limit 5").len(), 5);
    assert_eq!(ask("select 1 from trade where symbol = 'C:ONE' limit 5").len(), 1);
}

#[test]
fn an_order_by_symbol_and_time_needs_no_sort_and_the_newest_rows_little_reading() {
    for sql in [
        "select symbol, time, price from trade order by symbol, time",
        "select symbol, time, lsn from trade order by symbol desc, time desc, lsn desc",
        "select time, price from trade order by time desc limit 5",
        "select time, price from trade where symbol = 'B:ETH' order by time desc limit 5",
    ] {
        let plan = plan(sql);
        assert!(!plan.contains("SortExec"), "{sql}\n{plan}");
    }
    let plan = plan("select time, price from trade where symbol = 'B:ETH' and time > now() - interval '1 hour'");
    assert!(plan.contains("symbols=1 of 6") && !plan.contains("FilterExec"), "{plan}");
    let analyzed = ask("explain analyze select time, price from trade order by time desc limit 5").concat().join(" ");
    let bytes: u64 = analyzed.split("bytes_read=").nth(1).unwrap().split([',', ']']).next().unwrap().trim().parse().unwrap();
    assert!(bytes < 1_000, "{analyzed}");
}

#[test]
fn sums_are_exact() {
    let trades = &world().trades;
    let mut of: BTreeMap<&str, (i128, i128, i128, u64)> = BTreeMap::new();
    for trade in trades {
        let sums = of.entry(&trade.symbol).or_default();
        sums.0 += i128::from(trade.price_raw.unwrap_or(0));
        if let (Some(price), Some(size)) = (trade.price_raw, trade.size_raw) {
            sums.1 += i128::from(price) * i128::from(size);
            sums.2 += i128::from(size);
        }
        sums.3 += trade.size_raw.unwrap_or(0);
    }
    let decimal = |units: i128, places: u32| {
        let scale = 10i128.pow(places);
        format!("{}.{:0width$}", units / scale, units % scale, width = places as usize)
    };
    let expected: Vec<Vec<String>> = of
        .iter()
        .map(|(symbol, (price, notional, size, volume))| {
            let vwap = number(Some(*notional as f64 / *size as f64 / 1e9));
            vec![(*symbol).to_owned(), decimal(*price, 9), decimal(*notional, 18), vwap, volume.to_string()]
        })
        .collect();
    let sql = "select symbol, exact_sum(price), notional(price, size), vwap(price, size), sum(size_raw) from trade";
    assert_eq!(ask(&format!("{sql} group by symbol order by symbol")), expected);
    let sql = "select symbol, sum(price), avg(price) from trade group by symbol order by symbol";
    let rounded: Vec<Vec<String>> = of
        .iter()
        .map(|(symbol, (price, ..))| {
            let count = trades.iter().filter(|t| t.symbol == **symbol && t.price.is_some()).count();
            let (sum, mean) = (*price as f64 / 1e9, *price as f64 / count as f64 / 1e9);
            vec![(*symbol).to_owned(), number(Some(sum)), number(Some(mean))]
        })
        .collect();
    assert_eq!(ask(sql), rounded, "a sum of decimals is rounded once");
    // 2^63 is passed many times over.
    let total: i128 = trades.iter().map(|t| i128::from(t.price_raw.unwrap_or(0))).sum::<i128>() * 1000;
    let sql = "select sum(price_raw) from trade, (select unnest(generate_series(1, 1000)))";
    assert_eq!(ask(sql), [[total.to_string()]]);
    assert!(try_ask("select exact_sum(lsn) from trade").unwrap_err().to_string().contains("use sum"));
}

#[test]
fn first_and_last_are_by_time_and_lsn_and_ohlc_is_made_of_them() {
    let mut of: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for trade in world().trades.iter().filter(|trade| trade.price.is_some()) {
        of.entry(&trade.symbol).or_default().push(trade);
    }
    let expected: Vec<Vec<String>> = of
        .iter()
        .map(|(symbol, rows)| {
            let price = |row: Option<&&Known>| number(row.and_then(|row| row.price));
            let prices = || rows.iter().filter_map(|row| row.price);
            let (high, low) = (prices().fold(f64::MIN, f64::max), prices().fold(f64::MAX, f64::min));
            let (high, low) = (number(Some(high)), number(Some(low)));
            vec![(*symbol).to_owned(), price(rows.first()), price(rows.last()), high, low, rows.len().to_string()]
        })
        .collect();
    let sql = "select symbol, first(price), last(price), max(price), min(price), count(price) from trade where price is not null";
    assert_eq!(ask(&format!("{sql} group by symbol order by symbol")), expected);
    let sql = "select s, o['open'], o['close'], o['high'], o['low'], o['trades'] from
        (select symbol as s, ohlc(price, size) as o from trade where price is not null group by symbol) order by s";
    assert_eq!(ask(sql), expected);
}

/// The place of the row of `right` that belongs to a row of time `time`.
fn matched(right: &[&Known], time: i64, operator: &str, tolerance: Option<i64>) -> Option<usize> {
    let found = match operator {
        ">=" => right.partition_point(|row| row.time <= time).checked_sub(1),
        ">" => right.partition_point(|row| row.time < time).checked_sub(1),
        "<=" => Some(right.partition_point(|row| row.time < time)),
        _ => Some(right.partition_point(|row| row.time <= time)),
    };
    found.filter(|at| right.get(*at).is_some_and(|row| tolerance.is_none_or(|t| (row.time - time).abs() <= t)))
}

#[test]
fn as_of_joins_equal_a_search_for_each_row() {
    let world = world();
    let mut of: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for quote in &world.quotes {
        of.entry(&quote.symbol).or_default().push(quote);
    }
    let all: Vec<&Known> = world.quotes.iter().collect();
    let mut trades: Vec<&Known> = world.trades.iter().collect();
    trades.sort_by(|a, b| (&a.symbol, a.time, a.lsn).cmp(&(&b.symbol, b.time, b.lsn)));
    for operator in [">=", ">", "<=", "<"] {
        for (text, tolerance) in [("", None), ("tolerance 5ms", Some(5_000_000))] {
            for keyed in [true, false] {
                let expected: Vec<Vec<String>> = trades
                    .iter()
                    .map(|trade| {
                        let right = if keyed { of.get(&*trade.symbol).map_or(&[][..], |all| all) } else { &all[..] };
                        let quote = matched(right, trade.time, operator, tolerance).map(|at| right[at]);
                        vec![trade.lsn.to_string(), integer(quote.map(|q| q.lsn)), number(quote.and_then(|q| q.price))]
                    })
                    .collect();
                let on = if keyed { "on t.symbol = q.symbol" } else { "" };
                let sql = format!(
                    "select t.lsn, q.lsn, q.bid_px from trade t asof join quote q match_condition (t.time {operator} q.time) \
                     {on} {text} order by t.symbol, t.time, t.lsn"
                );
                let found = ask(&sql);
                let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
                assert!(found == expected, "{sql}: {} and {} rows, {wrong:?}", found.len(), expected.len());
            }
        }
    }
}

#[test]
fn conditions_on_the_left_side_of_an_as_of_join_restrict_both_sides_and_change_no_row() {
    let join = "trade t asof join quote q match_condition (t.time >= q.time) on t.symbol = q.symbol";
    let middle = world().trades[world().trades.len() / 2].time;
    let sql = format!("select t.lsn, q.lsn from {join} where t.symbol = 'B:ETH' and t.time < to_timestamp_nanos({middle})");
    let mut found = ask(&sql);
    let mut all = ask(&format!(
        "select a, b from (select t.symbol s, t.time tt, t.lsn a, q.lsn b from {join} limit 10000000) \
         where s = 'B:ETH' and tt < to_timestamp_nanos({middle})"
    ));
    found.sort();
    all.sort();
    assert!(!found.is_empty() && found == all);
    let plan = plan(&sql);
    assert_eq!(plan.matches("symbols=1 of 6").count(), 2, "{plan}");
    let late = format!("select t.lsn, q.lsn from {join} where t.time >= to_timestamp_nanos({middle})");
    let mut found = ask(&late);
    let mut all = ask(&format!(
        "select a, b from (select t.time tt, t.lsn a, q.lsn b from {join} limit 10000000) where tt >= to_timestamp_nanos({middle})"
    ));
    found.sort();
    all.sort();
    assert!(!found.is_empty() && found == all);
    let plan = self::plan(&late);
    assert!(plan.contains("from the newest row before the left side"), "{plan}");
    let sql = "select t.lsn, q.lsn, q.bid_px from trade t asof join quote q match_condition (q.time <= t.time) using (symbol)
        where q.bid_px is null and t.symbol = 'A:AAPL'";
    let nulls = ask(sql);
    assert!(nulls.iter().all(|row| row[2] == "null") && !nulls.is_empty(), "a condition on the right side is applied after it");
}

#[test]
fn the_newest_row_of_each_symbol_is_that_of_the_library() {
    let mut newest: BTreeMap<&str, &Known> = BTreeMap::new();
    for trade in &world().trades {
        newest.insert(&trade.symbol, trade);
    }
    let expected = keys(newest.values().copied());
    assert_eq!(ask(&format!("select {KEYS} from trade latest on time partition by symbol order by symbol")), expected);
    let plan = plan("select symbol, price from trade latest on time partition by symbol");
    assert!(plan.contains("first row of each symbol"), "{plan}");
    // With a condition that the indexes cannot answer.
    let mut newest: BTreeMap<&str, &Known> = BTreeMap::new();
    for trade in world().trades.iter().filter(|trade| trade.price.is_some_and(|price| price > 1009.0)) {
        newest.insert(&trade.symbol, trade);
    }
    let sql = format!("select {KEYS} from trade where price > 1009 latest on time partition by symbol order by symbol");
    assert_eq!(ask(&sql), keys(newest.values().copied()));
    let sql = "select symbol, depth from trade where symbol like 'A:%' latest on time partition by symbol, depth order by 1";
    assert_eq!(ask(sql).len(), 2);
}

#[test]
fn sampled_rows_are_those_of_their_buckets_and_gaps_are_filled() {
    let trades: Vec<&Known> = world().trades.iter().filter(|t| t.symbol == "B:ETH" || t.symbol == "C:ONE").collect();
    let bucket = |time: i64, len: i64| time.div_euclid(len) * len;
    for (text, len) in [("7s", 7_000_000_000), ("1m", 60_000_000_000), ("250ms", 250_000_000)] {
        let mut of: BTreeMap<(&str, i64), (u64, Option<f64>)> = BTreeMap::new();
        for trade in &trades {
            let sums = of.entry((&trade.symbol, bucket(trade.time, len))).or_insert((0, None));
            sums.0 += 1;
            sums.1 = trade.price;
        }
        let row = |symbol: &str, time: i64, count: u64, last: String| {
            vec![symbol.to_owned(), time.to_string(), count.to_string(), last]
        };
        let expected: Vec<_> = of.iter().map(|((symbol, time), (n, last))| row(symbol, *time, *n, number(*last))).collect();
        let sql = format!(
            "select symbol, time, count(*) as n, last(price) as p from trade where symbol in ('B:ETH', 'C:ONE') sample by {text}"
        );
        let found = ask(&format!("select symbol, cast(time as bigint), n, p from ({sql}) order by 1, 2"));
        assert!(found == expected, "{text}: {} and {} rows", found.len(), expected.len());
        let first = of.keys().map(|(_, time)| *time).min().unwrap();
        let last = of.keys().map(|(_, time)| *time).max().unwrap();
        let mut filled = Vec::new();
        for symbol in ["B:ETH", "C:ONE"] {
            let mut before = None;
            for time in (first..=last).step_by(len as usize) {
                let there = of.get(&(symbol, time));
                before = there.map_or(before, |(_, price)| *price);
                filled.push(row(symbol, time, there.map_or(0, |(n, _)| *n), number(before)));
            }
        }
        let found = ask(&format!("select symbol, cast(time as bigint), n, p from ({sql} fill (0, prev)) order by 1, 2"));
        let wrong = found.iter().zip(&filled).find(|(a, b)| a != b);
        assert!(found == filled, "{text}: {} and {} rows, {wrong:?}", found.len(), filled.len());
    }
    let times: Vec<String> = ask("select time, count(*) from trade sample by 1s").into_iter().map(|row| row[0].clone()).collect();
    assert!(times.is_sorted() && times.len() > 100, "sampled rows come by time");
    assert!(ask("select time, last(price) from trade where symbol = 'A:NONE' sample by 1m fill (null)").is_empty());
    let error = try_ask("select time, last(price) from trade sample by 1m fill (null, prev)").unwrap_err().to_string();
    assert!(error.contains("2 values for 1 aggregates"), "{error}");
}

#[test]
fn a_statement_only_reads() {
    for sql in [
        "drop table trade",
        "create table x as select 1",
        "insert into trade select * from trade",
        "delete from trade",
        "copy (select 1) to '/tmp/x.csv'",
        "create external table x stored as csv location '/etc/passwd'",
        "set datafusion.execution.batch_size = 1",
    ] {
        let refused = try_ask(sql);
        assert!(matches!(refused, Err(QueryError::Statement { .. })), "{sql}: {refused:?}");
    }
}

#[test]
fn system_tables_have_what_the_store_has() {
    assert_eq!(ask("select symbol from instruments order by number limit 2"), [["B:BTC"], ["B:ETH"]]);
    let files = ask("select sum(rows) from files where kind = 'trade'");
    let blocks = ask("select sum(rows) from blocks where kind = 'trade'");
    assert_eq!(files, blocks);
    let committed: u64 = ask("select lsn from watermarks where name = 'committed'")[0][0].parse().unwrap();
    assert_eq!(committed, 400_001);
    assert!(ask("select table_name from information_schema.tables").contains(&vec!["trade".to_owned()]));
    assert!(try_ask("select * from trades").unwrap_err().to_string().contains("trades"));
}
