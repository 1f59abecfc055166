//! Tables that functions make equal what the library, a slow reference or another reader of the same file says.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use tape_query::engine::{Engine, Options, Settings};
use tape_query::failure::QueryError;
use tapestore::bars::{Bar, Builder, Options as BarOptions, Rule};
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{BookOrder, Char, Price, Record, RecordRef, Size, Trade, action, flags, side, split};
use tapestore::time::Ts;
use tapestore_engine::Embedded;
use tapestore_formats::input::{self, Input, Message};

use crate::world::{START, ask, ask_of, next, plan, publish, try_ask, world};

/// The bars that the library makes of the trades of `symbol` in `range`, as SQL prints them.
fn bars(symbol: &str, rule: Rule, range: TimeRange) -> Vec<Vec<String>> {
    let mut reader = Reader::open(world().engine.store()).unwrap();
    let instrument = reader.instrument(&symbol.parse().unwrap()).unwrap();
    let snapshot = reader.snapshot(At::Committed).unwrap();
    let (mut builder, mut bars) = (Builder::new(BarOptions::new(rule)).unwrap(), Vec::new());
    let mut scan = snapshot.scan(Series { instrument, kind: Trade::KIND }, range);
    while let Some(row) = scan.next().unwrap() {
        builder.push(row.lsn, row.index_time, row.record.get::<Trade>().unwrap(), &mut |bar| bars.push(bar));
    }
    builder.finish(&mut |bar| bars.push(bar));
    let decimal = |price: Price| format!("{:?}", price.0 as f64 / 1e9);
    let texts = |bar: Bar| {
        let prices = [bar.open, bar.high, bar.low, bar.close].map(decimal);
        let mut texts = vec![symbol.to_owned(), bar.start.0.to_string(), bar.end.0.to_string()];
        texts.extend(prices);
        texts.push(format!("{:?}", bar.volume.units() as f64 / 1e9));
        texts.push(format!("{:?}", bar.value.0 as f64 / 1e9 / 1e9));
        texts.push(decimal(bar.vwap()));
        texts.extend([bar.trades, bar.first_lsn.0, bar.last_lsn.0].map(|n| n.to_string()));
        texts
    };
    bars.into_iter().map(texts).collect()
}

const BARS: &str = "symbol, cast(time as bigint), cast(end_time as bigint), open, high, low, close, volume, value, vwap, trades, \
                    first_lsn, last_lsn";

#[test]
fn bars_are_those_of_the_library_by_time_ticks_volume_and_value() {
    let rules = [
        ("7s", Rule::Time { interval: 7_000_000_000 }),
        ("100 ticks", Rule::Ticks(100)),
        ("50.5 volume", Rule::Volume("50.5".parse().unwrap())),
        ("100000 value", Rule::Value("100000".parse().unwrap())),
    ];
    for (text, rule) in rules {
        for symbol in ["B:ETH", "C:ONE", "A:NONE"] {
            let found = ask(&format!("select {BARS} from bars('{symbol}', '{text}')"));
            let expected = bars(symbol, rule, TimeRange::ALL);
            assert_eq!(found.is_empty(), symbol == "A:NONE");
            assert!(found == expected, "{text} of {symbol}: {} and {} bars", found.len(), expected.len());
        }
    }
}

#[test]
fn a_condition_on_time_takes_whole_bars_and_from_begins_to_count() {
    let (from, to) = (START as i64 + 33_333_333_333, START as i64 + 99_999_999_999);
    let all = bars("B:BTC", Rule::Time { interval: 7_000_000_000 }, TimeRange::ALL);
    let within: Vec<Vec<String>> = all.into_iter().filter(|bar| (from..=to).contains(&bar[1].parse::<i64>().unwrap())).collect();
    assert!(within.len() > 5);
    let condition = format!("cast(time as bigint) between {from} and {to}");
    assert_eq!(ask(&format!("select {BARS} from bars('B:BTC', '7s') where {condition}")), within);
    let time = |ns: i64| format!("to_timestamp_nanos({ns})");
    let condition = format!("time >= {} and time <= {}", time(from), time(to));
    assert_eq!(ask(&format!("select {BARS} from bars('B:BTC', '7s') where {condition}")), within);
    let counted = bars("B:BTC", Rule::Ticks(100), TimeRange { from: Ts(from as u64), to: Ts(to as u64) });
    assert_eq!(ask(&format!("select {BARS} from bars('B:BTC', '100 ticks', {}, {})", time(from), time(to))), counted);
    let first = ask("select count(*) from bars('B:BTC', '100 ticks') where trades = 100");
    let later =
        ask(&format!("select count(*) from bars('B:BTC', '100 ticks') where trades = 100 and time >= {}", time(START as i64)));
    assert_eq!(first, later, "a condition does not move the bars of ticks");
}

#[test]
fn bars_of_a_pattern_are_those_of_its_instruments_and_a_condition_on_symbol_reads_fewer() {
    let mut expected = Vec::new();
    for symbol in ["B:BTC", "B:ETH"] {
        expected.extend(bars(symbol, Rule::Time { interval: 60_000_000_000 }, TimeRange::ALL));
    }
    assert_eq!(ask(&format!("select {BARS} from bars('B:*', '1m') order by symbol, time")), expected);
    let one = bars("A:AAPL", Rule::Time { interval: 60_000_000_000 }, TimeRange::ALL);
    assert_eq!(ask(&format!("select {BARS} from bars('*', '1m') where symbol = 'A:AAPL'")), one);
    assert_eq!(ask("select count(*) from bars('no*', '1m')"), [["0"]]);
    let sql = "select b.symbol, b.time, q.bid_px from bars('B:BTC', '1m') b asof join quote q match_condition (b.end_time > q.time) \
               on b.symbol = q.symbol";
    assert_eq!(ask(sql).len(), bars("B:BTC", Rule::Time { interval: 60_000_000_000 }, TimeRange::ALL).len());
}

#[test]
fn a_wrong_call_says_how_the_function_is_called() {
    for (sql, says) in [
        ("select * from bars('B:BTC')", "it has 1 arguments"),
        ("select * from bars('no', '1m')", "no instrument 'no'"),
        ("select * from bars('B:BTC', '0 ticks')", "above zero"),
        ("select * from bars('B:BTC', '5 lots')", "none of: ticks, volume, value"),
        ("select * from bars('B:BTC', '1m', 'noon')", "is called like bars('B:BTC', '1m')"),
        ("select * from book('B:BTC', 5.5)", "not a time"),
        ("select * from book('B:BTC', now(), -1)", "not a number"),
        ("select * from replay('trade', 'no')", "no kind 'no'"),
        ("select * from replay('trade', 'trade')", "named twice"),
        ("select * from read_csv('/etc/passwd')", "--read-files"),
        ("select * from read_parquet('x')", "--read-files"),
        ("select * from read_dbn('x')", "--read-files"),
    ] {
        let error = try_ask(sql).unwrap_err().to_string();
        assert!(error.contains(says), "{sql}: {error}");
    }
}

#[test]
fn a_replay_merges_the_records_of_its_kinds_without_a_sort_and_is_null_where_a_kind_has_no_such_column() {
    let mut expected: Vec<(i64, u64, &str)> = world().trades.iter().map(|row| (row.time, row.lsn, "trade")).collect();
    expected.extend(world().quotes.iter().map(|row| (row.time, row.lsn, "quote")));
    expected.sort_unstable();
    let found = ask("select cast(time as bigint), lsn, kind from replay('trade', 'quote') order by time, lsn");
    let expected: Vec<Vec<String>> =
        expected.into_iter().map(|(time, lsn, kind)| vec![time.to_string(), lsn.to_string(), kind.to_owned()]).collect();
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert!(found == expected, "row {differs:?} differs");
    let nulls = ask(
        "select kind, count(trade_id), count(bid_px), count(*) from replay('quote', 'trade', 'status') group by kind order by 1",
    );
    let counts = |sql: &str| ask(sql).remove(0);
    let [quotes, trades] =
        [counts("select count(bid_px), count(*) from quote"), counts("select count(trade_id), count(*) from trade")];
    assert_eq!(
        nulls,
        [["quote", "0", quotes[0].as_str(), quotes[1].as_str()], ["trade", trades[0].as_str(), "0", trades[1].as_str()]]
    );
    let types = ask("select arrow_typeof(action), arrow_typeof(status_action) from replay('trade', 'status') limit 1");
    assert_eq!(types, [["Dictionary(UInt8, Utf8)", "UInt16"]], "a name with two types is two columns");
    let sql = "select time, lsn, kind, price, bid_px from replay('trade', 'quote') where symbol = 'A:MSFT' and time >= \
               to_timestamp_nanos(1723100100000000000) order by time, lsn";
    assert!(!plan(sql).contains("SortExec"), "{}", plan(sql));
    assert!(plan(sql).contains("symbols=1 of"), "conditions restrict the scans: {}", plan(sql));
    let count = |kind: &str| {
        let rows = if kind == "trade" { &world().trades } else { &world().quotes };
        rows.iter().filter(|row| row.symbol == "A:MSFT" && row.time >= 1_723_100_100_000_000_000).count()
    };
    assert_eq!(ask(sql).len(), count("trade") + count("quote"));
}

/// The size of each level: whether it is a bid, and its price.
type Book = BTreeMap<(bool, i64), u64>;

#[test]
fn a_book_has_the_levels_that_the_changes_up_to_the_time_leave() {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(7))).unwrap();
    let instrument = publisher.instrument(&"B:BTC".parse().unwrap()).unwrap();
    let mut seed = 20_261_130;
    let mut books: Vec<(u64, Book)> = Vec::new();
    let mut levels = Book::new();
    for i in 0..3000u64 {
        let ts_recv = Ts(START + i * 1_000_000);
        let is_bid = next(&mut seed).is_multiple_of(2);
        let step = (next(&mut seed) % 20) as i64 * 1_000_000_000;
        let price = if is_bid { 100_000_000_000 - step } else { 101_000_000_000 + step };
        let size = if next(&mut seed).is_multiple_of(3) { 0 } else { next(&mut seed) % 9_000_000_000 };
        let what = if size == 0 { action::CANCEL } else { action::MODIFY };
        let of = if is_bid { side::BID } else { side::ASK };
        let change = BookOrder {
            instrument,
            ts_recv,
            ts_event: ts_recv,
            price: Price(price),
            size: Size(size),
            side: of,
            action: what,
            flags: flags::MBP,
            sequence: i as u32,
            ..BookOrder::default()
        };
        publish(&mut publisher, RecordRef::of(&change));
        if size == 0 {
            levels.remove(&(is_bid, price))
        } else {
            levels.insert((is_bid, price), size)
        };
        books.push((ts_recv.0, levels.clone()));
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    let engine = Engine::open(store.path(), Options { threads: 2, ..Options::default() }).unwrap();
    for at in [0usize, 1, 17, 500, 1999, 2999] {
        let (time, levels) = &books[at];
        let of = |is_bid: bool| -> Vec<String> {
            let mut side: Vec<(i64, u64)> =
                levels.iter().filter(|((bid, _), _)| *bid == is_bid).map(|((_, p), s)| (*p, *s)).collect();
            if is_bid {
                side.reverse();
            }
            side.into_iter().take(5).map(|(price, size)| format!("{:?} {:?}", price as f64 / 1e9, size as f64 / 1e9)).collect()
        };
        let sql = format!("select level, bid_px, bid_sz, ask_px, ask_sz from book('B:BTC', to_timestamp_nanos({time}), 5)");
        let found = ask_of(&engine, &sql, &Settings::default()).unwrap();
        let side = |px: usize| -> Vec<String> {
            found.iter().filter(|row| row[px] != "null").map(|row| format!("{} {}", row[px], row[px + 1])).collect()
        };
        assert_eq!((side(1), side(3)), (of(true), of(false)), "after {at} changes");
        assert_eq!(found.len(), of(true).len().max(of(false).len()));
        // The same by the LSN: later changes are not there.
        let until = Settings { until: Some(tapestore::lsn::Lsn(at as u64 + 1)), ..Settings::default() };
        assert_eq!(
            ask_of(&engine, "select level, bid_px, bid_sz, ask_px, ask_sz from book('B:BTC', now(), 5)", &until).unwrap(),
            found
        );
    }
    assert!(ask_of(&engine, "select * from book('B:BTC', '1990-01-01')", &Settings::default()).unwrap().is_empty());
}

/// An engine over the world's store that may read files.
fn reading(sql: &str) -> Result<Vec<Vec<String>>, QueryError> {
    let engine = Engine::open(world().engine.store(), Options { threads: 2, files: true, ..Options::default() })?;
    ask_of(&engine, sql, &Settings::default())
}

#[test]
fn the_rows_of_a_users_file_are_joined_with_the_stores() {
    let dir = tempfile::tempdir().unwrap();
    let trades: Vec<_> = world().trades.iter().filter(|t| t.symbol == "B:ETH").step_by(1000).collect();
    let symbols: ArrayRef = Arc::new(StringArray::from_iter_values(trades.iter().map(|t| t.symbol.as_str())));
    let times: ArrayRef = Arc::new(TimestampNanosecondArray::from_iter_values(trades.iter().map(|t| t.time)));
    let fees: ArrayRef = Arc::new(trades.iter().map(|t| t.price.map(|p| p / 1024.0)).collect::<Float64Array>());
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..trades.len() as i64));
    let batch = RecordBatch::try_from_iter([("id", ids), ("symbol", symbols), ("time", times), ("fee", fees)]).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut parquet =
        parquet::arrow::ArrowWriter::try_new(File::create(path("f.parquet")).unwrap(), batch.schema(), None).unwrap();
    parquet.write(&batch).unwrap();
    parquet.close().unwrap();
    let mut arrow = arrow::ipc::writer::FileWriter::try_new(File::create(path("f.arrow")).unwrap(), &batch.schema()).unwrap();
    arrow.write(&batch).unwrap();
    arrow.finish().unwrap();
    let mut csv = arrow::csv::Writer::new(File::create(path("f.csv")).unwrap());
    csv.write(&batch).unwrap();
    drop(csv);
    let expected: Vec<Vec<String>> = trades
        .iter()
        .map(|t| {
            // The newest quote at or before the time: of equal times the one with the greatest LSN.
            let quotes = world().quotes.iter().filter(|q| q.symbol == t.symbol && q.time <= t.time);
            let quote = quotes.max_by_key(|q| (q.time, q.lsn));
            vec![
                quote.map_or("null".to_owned(), |q| q.lsn.to_string()),
                t.price.map_or("null".to_owned(), |p| format!("{:?}", p / 1024.0)),
            ]
        })
        .collect();
    for (function, file) in [("read_parquet", "f.parquet"), ("read_arrow", "f.arrow"), ("read_csv", "f.csv")] {
        let sql = format!("select q.lsn, f.fee from {function}('{}') f asof join quote q on (symbol) order by f.id", path(file));
        assert_eq!(reading(&sql).unwrap(), expected, "{function}");
        let swapped = reading(&format!("select fee, id from {function}('{}') where id = 1", path(file))).unwrap();
        assert_eq!(swapped, [[expected[1][1].clone(), "1".to_owned()]], "columns in another order");
        let limited = reading(&format!("select id from {function}('{}') where id > 3 limit 2", path(file))).unwrap();
        assert_eq!(limited, [["4"], ["5"]]);
        let error = reading(&format!("select * from {function}('{}')", path("none"))).unwrap_err().to_string();
        assert!(error.contains("none cannot be read"), "{error}");
        std::fs::write(path("torn"), &std::fs::read(path(file)).unwrap()[..20]).unwrap();
        let torn = reading(&format!("select * from {function}('{}')", path("torn")));
        assert!(function == "read_csv" || torn.is_err_and(|e| e.to_string().contains("torn cannot be read")));
    }
}

#[test]
fn a_dbn_file_has_the_records_that_an_import_stores() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/dbn_conformance");
    let path = std::path::Path::new(data).join("test_data.trades.v3.dbn.zst");
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return;
    }
    let (mut file, mut message) = (input::Dbn::open(&path, &input::Options::default()).unwrap(), Message::default());
    let mut expected = Vec::new();
    while file.next(&mut message).unwrap() {
        for record in split(&message.words) {
            if let Some(trade) = record.unwrap().get::<Trade>() {
                let name = file.names()[trade.instrument.0 as usize].as_str().to_owned();
                let side = if trade.side == Char(0) { "null".to_owned() } else { char::from(trade.side.0).to_string() };
                expected.push(vec![name, trade.ts_recv.0.to_string(), trade.price.0.to_string(), trade.size.0.to_string(), side]);
            }
        }
    }
    assert!(!expected.is_empty());
    let sql = format!("select symbol, cast(time as bigint), price_raw, size_raw, side from read_dbn('{}')", path.display());
    assert_eq!(reading(&sql).unwrap(), expected);
    let torn = tempfile::NamedTempFile::new().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(torn.path(), &bytes[..bytes.len() / 2]).unwrap();
    assert!(reading(&format!("select * from read_dbn('{}')", torn.path().display())).is_err());
}
