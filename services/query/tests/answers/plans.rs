//! A plan that is kept gives the answer of the moment at which it is used.

use std::time::Duration;

use tape_query::engine::{Engine, Options, Settings};
use tapestore::lsn::{Durability, Lsn, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::reader::At;
use tapestore::record::{Price, Quote, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

use crate::world::{START, ask, ask_of, publish, world};

/// Publishes a trade of `symbol` at `price`.
fn trade(publisher: &mut Publisher, symbol: &str, at: u64, price: i64) {
    let instrument = publisher.instrument(&symbol.parse().unwrap()).unwrap();
    let price = Price(price * 1_000_000_000);
    let trade = Trade { instrument, price, size: Size(1_000_000_000), ts_recv: Ts(START + at), ..Trade::default() };
    publish(publisher, RecordRef::of(&trade));
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
}

#[test]
fn a_statement_that_is_asked_again_has_the_records_and_instruments_that_came_since() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Embedded::open(&path).unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(7))).unwrap();
    trade(&mut publisher, "B:BTC", 0, 10);
    let engine = Engine::open(store.path(), Options { threads: 2, ..Options::default() }).unwrap();
    let settings = Settings::default();
    let statements = [
        "select symbol, price from trade where symbol like 'B:%' order by symbol, time",
        "select symbol, last(price) from trade where price > (select min(price) from trade) - 1 group by symbol order by 1",
        "select t.price, p.price from trade t asof join trade p match_condition (t.time > p.time) on t.symbol = p.symbol order by t.lsn",
        "select count(*), max(time) from trade",
    ];
    let mut before = Vec::new();
    for sql in statements {
        before.push(ask_of(&engine, sql, &settings).unwrap());
    }
    assert_eq!(engine.plans().len(), statements.len(), "each is kept");
    assert_eq!(before[0], [["B:BTC", "10.0"]]);
    trade(&mut publisher, "B:BTC", 5, 11);
    trade(&mut publisher, "B:NEW", 7, 12);
    // Another storage process: tables and files are other ones than those of the first answer.
    drop(publisher);
    store.stop().unwrap();
    let _store = Embedded::open(&path).unwrap();
    let fresh = Engine::open(&path, Options { threads: 2, ..Options::default() }).unwrap();
    for (sql, before) in statements.iter().zip(before) {
        let again = ask_of(&engine, sql, &settings).unwrap();
        assert_ne!(again, before, "{sql}");
        assert_eq!(again, ask_of(&fresh, sql, &settings).unwrap(), "{sql}");
    }
    assert_eq!(ask_of(&engine, statements[0], &settings).unwrap(), [["B:BTC", "10.0"], ["B:BTC", "11.0"], ["B:NEW", "12.0"]]);
    // The same text under other settings is another statement.
    let until = Settings { until: Some(Lsn(2)), ..settings };
    assert_eq!(ask_of(&engine, statements[0], &until).unwrap(), [["B:BTC", "10.0"], ["B:BTC", "11.0"]]);
    let appended = Settings { at: At::Appended, ..settings };
    assert_eq!(ask_of(&engine, statements[0], &appended).unwrap().len(), 3);
    assert_eq!(ask_of(&engine, statements[0], &settings).unwrap().len(), 3);
}

#[test]
fn no_plan_is_kept_that_depends_on_the_time_on_chance_on_a_system_table_or_a_file() {
    let engine = Engine::open(world().engine.store(), Options { threads: 2, files: true, ..Options::default() }).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a,b\n1,2\n").unwrap();
    for sql in [
        "select now()".to_owned(),
        "select count(*) from trade where time > now() - interval '1 day'".to_owned(),
        "select random() from trade limit 1".to_owned(),
        "select * from (select current_date) as d".to_owned(),
        "select lsn from trade where lsn in (select lsn from quote where time < now()) limit 1".to_owned(),
        "select * from watermarks".to_owned(),
        "select count(*) from information_schema.tables".to_owned(),
        "select count(*) from bars('B:BTC', '1h')".to_owned(),
        "select count(*) from trade t join instruments i on t.symbol = i.symbol".to_owned(),
        "explain select 1".to_owned(),
        "explain analyze select 1".to_owned(),
        format!("select * from read_csv('{}')", file.path().display()),
    ] {
        ask_of(&engine, &sql, &Settings::default()).unwrap();
        assert!(engine.plans().is_empty(), "{sql}");
    }
    let first = ask("select now()");
    std::thread::sleep(Duration::from_millis(2));
    assert_ne!(ask("select now()"), first);
}

#[test]
fn plans_that_are_kept_are_bounded_in_number_and_length() {
    let engine = Engine::open(world().engine.store(), Options { threads: 2, ..Options::default() }).unwrap();
    let long = format!("select count(*) from trade where symbol <> '{}'", "x".repeat(10_000));
    ask_of(&engine, &long, &Settings::default()).unwrap();
    assert!(engine.plans().is_empty(), "a long statement is not kept");
    for number in 0..300 {
        ask_of(&engine, &format!("select {number}"), &Settings::default()).unwrap();
    }
    assert_eq!(engine.plans().len(), 256);
    let after = Settings { after: Some(Lsn(5)), ..Settings::default() };
    ask_of(&engine, "select count(*) from trade where 5 = 5", &after).unwrap();
    let found = engine.described("select count(*) from trade where 5 = 5", &after).unwrap();
    assert!(found.is_none(), "what is followed has another setting each time");
}

/// Publishes a trade and a quote of each of three symbols for each of `seconds`, some of them without a price.
fn second_by_second(publisher: &mut Publisher, seconds: std::ops::Range<u64>) {
    for second in seconds {
        for (place, symbol) in (0u64..).zip(["B:BTC", "B:ETH", "B:SOL"]) {
            let instrument = publisher.instrument(&symbol.parse().unwrap()).unwrap();
            let price = Price((100 + (second * 7 + place * 3) % 11) as i64 * 1_000_000_000);
            let price = if second % 10 == 3 { Price::NULL } else { price };
            let time = Ts(START + second * 1_000_000_000 + place);
            let size = Size((1 + second % 5) * 1_000_000_000);
            let quote = Quote { instrument, ts_recv: time, bid_px: price, ask_px: price, ..Quote::default() };
            publish(publisher, RecordRef::of(&quote));
            let trade = Trade { instrument, price, size, ts_recv: Ts(time.0 + 500_000_000), ..Trade::default() };
            publish(publisher, RecordRef::of(&trade));
        }
        publisher.send();
    }
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
}

/// Statements whose operators may be kept.
fn statements() -> Vec<String> {
    let start = Ts(START + 20_000_000_000);
    let from = format!("time >= to_timestamp_nanos({})", start.0);
    vec![
        "select time, price, size from trade where symbol = 'B:BTC' order by time".to_owned(),
        "select * from trade where symbol = 'B:ETH' and price > 105 order by time desc, lsn desc".to_owned(),
        "select time, price * 2 from trade where symbol = 'B:BTC' order by time desc limit 5".to_owned(),
        "select symbol, count(*), sum(size), avg(price), min(price), max(time) from trade group by symbol order by symbol"
            .to_owned(),
        "select min(price), max(price), count(*) from trade where symbol = 'B:SOL' and size > 2".to_owned(),
        format!("select symbol, first(price), last(price), vwap(price, size) from trade where {from} sample by 7s order by 1, 2"),
        format!(
            "select time, ohlc(price, size) from trade where symbol = 'B:BTC' and {from} sample by 10s fill (prev) order by 1"
        ),
        "select * from trade latest on time partition by symbol order by symbol".to_owned(),
        "select distinct price from trade order by price offset 2".to_owned(),
        format!(
            "select t.time, t.price, q.bid_px, q.lsn from trade t asof join quote q match_condition (t.time >= q.time) \
             on t.symbol = q.symbol where t.symbol = 'B:ETH' and t.{from} order by t.time"
        ),
        "select time, avg(price) over (partition by symbol order by time rows between 4 preceding and current row) from trade \
         where symbol = 'B:BTC' order by time"
            .to_owned(),
        "select lag(price) over (order by time, lsn), row_number() over (order by time, lsn) from trade where symbol = 'B:SOL' \
         order by 2"
            .to_owned(),
        "select count(*), max(time) from trade".to_owned(),
        "select lsn from trade where symbol = 'B:NONE'".to_owned(),
        // When they were first asked, a sort or a limit would have changed nothing: one row, equal times, no row.
        format!(
            "select * from (select time, price, price - lag(price) over (order by time, lsn) as d from trade where symbol = 'B:BTC') \
             where time >= to_timestamp_nanos({}) order by time desc",
            START + 99_500_000_000
        ),
        "select lsn, row_number() over (order by time, lsn) from \
         (select * from trade where symbol = 'B:ETH' order by time, lsn offset 99) limit 5"
            .to_owned(),
        "select lsn, row_number() over (order by time, lsn) from \
         (select * from trade where symbol = 'B:ETH' order by time, lsn offset 100) limit 5"
            .to_owned(),
    ]
}

#[test]
fn operators_that_are_kept_answer_as_new_ones_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path().join("store")).unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(7))).unwrap();
    second_by_second(&mut publisher, 0..100);
    let open = || Engine::open(store.path(), Options { threads: 2, ..Options::default() }).unwrap();
    let (engine, settings) = (open(), Settings::default());
    let kept = statements();
    let others = [
        // The bound of such a sort grows while it runs.
        "select price, lsn from trade where size > 1 order by price, lsn limit 3",
        "select t.lsn from trade t join quote q on t.price = q.bid_px and t.symbol = q.symbol order by 1 limit 10",
    ];
    let all = || kept.iter().map(String::as_str).chain(others);
    // The first time a statement is planned with what is known of its rows.
    for sql in all().chain(all()) {
        ask_of(&engine, sql, &settings).unwrap();
    }
    let is_kept = |sql: &str| engine.plans().operators(sql, &settings, &engine.moment(&settings).unwrap()).unwrap().is_some();
    for (sql, expected) in kept.iter().map(|sql| (sql.as_str(), true)).chain(others.map(|sql| (sql, false))) {
        assert_eq!(is_kept(sql), expected, "{sql}");
    }
    // Each is asked twice: operators must not remember what they ran before.
    for seconds in [100..150, 150..200] {
        second_by_second(&mut publisher, seconds);
        for sql in all() {
            let expected = ask_of(&open(), sql, &settings).unwrap();
            assert_eq!(ask_of(&engine, sql, &settings).unwrap(), expected, "{sql}");
            assert_eq!(ask_of(&engine, sql, &settings).unwrap(), expected, "{sql}");
        }
    }
    // Scans know instruments by their numbers: those of a pattern may be more now.
    let like = "select symbol, price from trade where symbol like 'B:%' and price is not null order by symbol, time";
    for _ in 0..2 {
        ask_of(&engine, like, &settings).unwrap();
    }
    assert!(is_kept(like));
    trade(&mut publisher, "B:ADA", 0, 10);
    assert!(!is_kept(like));
    assert_eq!(ask_of(&engine, like, &settings).unwrap()[0], ["B:ADA", "10.0"]);
}

#[test]
fn operators_made_for_few_rows_do_not_read_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path().join("store")).unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(7))).unwrap();
    second_by_second(&mut publisher, 0..100);
    let engine = Engine::open(store.path(), Options { threads: 2, ..Options::default() }).unwrap();
    let settings = Settings::default();
    let sql = "select symbol, count(*), sum(size) from trade where size > 0 group by symbol order by symbol";
    for _ in 0..2 {
        assert_eq!(ask_of(&engine, sql, &settings).unwrap()[0][..2], ["B:BTC", "100"]);
    }
    let is_kept = || engine.plans().operators(sql, &settings, &engine.moment(&settings).unwrap()).unwrap().is_some();
    assert!(is_kept());
    second_by_second(&mut publisher, 100..34_000);
    assert!(!is_kept(), "102,000 rows are read in more than one partition");
    assert_eq!(ask_of(&engine, sql, &settings).unwrap()[2][..2], ["B:SOL", "34000"]);
}
