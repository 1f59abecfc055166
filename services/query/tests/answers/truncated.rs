//! A file that is truncated while it is mapped.

use std::time::{Duration, Instant};

use futures::StreamExt;
use tape_query::engine::{Engine, Options, Settings};
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Price, Quote, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

use crate::world::{START, ask_of, publish};

/// A store whose records are in SSTables, a file of trades and one of quotes at least.
fn store(path: &std::path::Path) {
    let defaults = tapestore_engine::Options::default();
    let options = tapestore_engine::Options { store: path.to_owned(), memtable_size: 16 << 20, ..defaults };
    let store = Embedded::with(options).unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(path, PublisherId(7))).unwrap();
    let names = ["A:A", "A:B"].map(|name| name.parse().unwrap());
    let ids = publisher.instruments(&names).unwrap();
    for i in 0..200_000u64 {
        let (instrument, ts_recv) = (ids[(i % 2) as usize], Ts(START + i * 1_000));
        let (price, size) = (Price((i % 900) as i64 * 10_000_000 + 10_000_000), Size(1_000_000_000));
        if i % 4 < 2 {
            publish(&mut publisher, RecordRef::of(&Trade { instrument, price, size, ts_recv, ..Trade::default() }));
        } else {
            let quote =
                Quote { instrument, bid_px: price, ask_px: price, bid_sz: size, ask_sz: size, ts_recv, ..Quote::default() };
            publish(&mut publisher, RecordRef::of(&quote));
        }
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    drop(publisher);
    store.stop().unwrap();
}

#[test]
fn a_file_that_is_truncated_is_an_error_of_the_statements_that_read_it_and_never_another_answer() {
    tapestore::guard_pages().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    store(&path);
    // The MemTables of the end are flushed at the next start.
    let _store = Embedded::open(&path).unwrap();
    let files = || -> Vec<std::path::PathBuf> {
        let all = std::fs::read_dir(path.join(tapestore::sstable::DIR)).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("trade")).collect()
    };
    let until = Instant::now() + Duration::from_secs(60);
    while files().is_empty() {
        assert!(Instant::now() < until, "no file of trades");
        std::thread::sleep(Duration::from_millis(20));
    }
    let engine = Engine::open(&path, Options { threads: 2, ..Options::default() }).unwrap();
    let settings = Settings::default();
    let of_trades = [
        "select symbol, min(price), max(price), count(price) from trade group by symbol order by symbol",
        "select lsn, price from trade where symbol = 'A:A' order by time",
        "select vwap(price, size) from trade",
        "select t.lsn, avg(q.bid_px) from trade t window join quote q on t.symbol = q.symbol range between 1ms preceding and current row",
        "select count(*) from quote where bid_px > (select avg(price) from trade)",
    ];
    let of_quotes = "select symbol, min(bid_px), max(bid_px), count(*) from quote group by symbol order by symbol";
    let before = of_trades.map(|sql| ask_of(&engine, sql, &settings).unwrap());
    let quotes = ask_of(&engine, of_quotes, &settings).unwrap();
    // An answer of one batch, which is on its way when the file is truncated: its rows may be those of a page that has gone.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut begun, first) = runtime.block_on(async {
        let mut answer = engine.query("select price from trade limit 5", &settings).await.unwrap();
        let first = answer.rows.next().await.unwrap().unwrap();
        (answer.rows, first)
    });
    assert_eq!(first.num_rows(), 5);
    for file in files() {
        // Within the last page, which then still exists and ends in zeros.
        let file = std::fs::File::options().write(true).open(file).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len - 40).unwrap();
    }
    let end = runtime.block_on(begun.next());
    assert!(end.unwrap().unwrap_err().to_string().contains("read a page of"), "the end of an answer says whether it was right");
    let mut errors = 0;
    for (sql, before) in of_trades.iter().zip(&before) {
        match ask_of(&engine, sql, &settings) {
            Ok(rows) => assert!(rows == *before, "{sql}"),
            Err(error) => {
                errors += 1;
                assert!(error.to_string().contains("read a page of"), "{error}");
            }
        }
    }
    // Each reads trades of a file, but for what a plan knows without them.
    assert!(errors >= 4, "{errors}");
    assert_eq!(ask_of(&engine, of_quotes, &settings).unwrap(), quotes, "no other file is concerned");
}
