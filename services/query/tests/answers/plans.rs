//! A plan that is kept gives the answer of the moment at which it is used.

use std::time::Duration;

use tape_query::engine::{Engine, Options, Settings};
use tapestore::lsn::{Durability, Lsn, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::reader::At;
use tapestore::record::{Price, RecordRef, Size, Trade};
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
