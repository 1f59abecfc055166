//! Busted and corrected trades: as known at each LSN, from memory and from SSTables.

use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::publisher::Publisher;
use tapestore::reader::{At, Snapshot, Standing, TimeRange};
use tapestore::record::{Bust, Correct, Price, Record, Size, Trade};
use tapestore::shm::control::Statistic;
use tapestore::time::Ts;

use crate::fixture::{Store, eventually};

/// (trade id, price, whether corrected) of the trades known at `at`, and the number of unmatched busts and corrections.
fn known(snapshot: &Snapshot, at: u64) -> (Vec<(u64, i64, bool)>, u64) {
    let instrument = snapshot.series().unwrap()[0].instrument;
    let mut trades = snapshot.as_known_at(Lsn(at)).trades(instrument, TimeRange::ALL).unwrap();
    let mut all = Vec::new();
    while let Some(known) = trades.next().unwrap() {
        all.push((known.trade.trade_id, known.trade.price.0, known.standing != Standing::AsReported));
    }
    (all, trades.unmatched())
}

/// Publishes trades, busts and corrections, numbered as the comments say.
fn publish(publisher: &mut Publisher, instrument: InstrumentId, elsewhere: InstrumentId) {
    let trade = |id: u64, price| Trade {
        instrument,
        source: 3,
        ts_recv: Ts(1_000 + id),
        trade_id: id,
        price: Price(price),
        size: Size(5),
        ..Trade::default()
    };
    let correct = |trade_lsn, trade_id, price| Correct {
        instrument,
        source: 3,
        ts_recv: Ts(5_000),
        trade_lsn: Lsn(trade_lsn),
        trade_id,
        price: Price(price),
        size: Size(7),
        ..Correct::default()
    };
    let bust = |trade_lsn, trade_id, source| Bust {
        instrument,
        source,
        ts_recv: Ts(5_000),
        trade_lsn: Lsn(trade_lsn),
        trade_id,
        ..Bust::default()
    };
    // 1 to 3: trades; 4: a trade that reuses an id.
    for (id, price) in [(7, 10), (8, 20), (9, 30), (7, 40)] {
        publisher.publish(&trade(id, price)).unwrap();
    }
    publisher.publish(&bust(0, 7, 3)).unwrap();
    publisher.publish(&correct(2, 0, 21)).unwrap();
    publisher.publish(&correct(0, 8, 22)).unwrap();
    publisher.publish(&bust(0, 9, 4)).unwrap();
    publisher.publish(&bust(3, 0, 3)).unwrap();
    publisher.publish(&correct(3, 0, 33)).unwrap();
    // 11: busts the bust of 9, which does not affect the later correction; 12: busts that correction.
    publisher.publish(&bust(9, 0, 3)).unwrap();
    publisher.publish(&bust(10, 0, 3)).unwrap();
    // 13: busts the bust of 5; 14: busts 13.
    publisher.publish(&bust(5, 0, 3)).unwrap();
    publisher.publish(&bust(13, 0, 3)).unwrap();
    // 15: corrects the correction of 7; 16: busts 15.
    publisher.publish(&correct(7, 0, 23)).unwrap();
    publisher.publish(&bust(15, 0, 3)).unwrap();
    // 17 to 20, without effect: a correction of a bust, of itself, of a future record, of another instrument's trade.
    publisher.publish(&correct(5, 0, 99)).unwrap();
    publisher.publish(&bust(18, 0, 3)).unwrap();
    publisher.publish(&bust(1_000, 0, 3)).unwrap();
    publisher.publish(&correct(21, 0, 99)).unwrap();
    publisher.publish(&Trade { instrument: elsewhere, ..trade(7, 1) }).unwrap();
    publisher.publish(&bust(21, 0, 3)).unwrap();
}

/// Checks the trades known after each record of [`publish`].
fn check(snapshot: &Snapshot) {
    let first = [(7, 10, false), (7, 40, false), (8, 20, false), (9, 30, false)];
    assert_eq!(known(snapshot, 4), (first.to_vec(), 0));
    assert_eq!(known(snapshot, 2).0, vec![(7, 10, false), (8, 20, false)]);
    // The newest trade with the id is void, not the earlier one.
    assert_eq!(known(snapshot, 5).0, vec![(7, 10, false), (8, 20, false), (9, 30, false)]);
    assert_eq!(known(snapshot, 6).0[1], (8, 21, true));
    assert_eq!(known(snapshot, 7).0[1], (8, 22, true), "the newer of two corrections counts");
    assert_eq!(known(snapshot, 8), (vec![(7, 10, false), (8, 22, true), (9, 30, false)], 1), "another source's id");
    assert_eq!(known(snapshot, 9).0, vec![(7, 10, false), (8, 22, true)]);
    assert_eq!(known(snapshot, 10).0, vec![(7, 10, false), (8, 22, true), (9, 33, true)]);
    assert_eq!(known(snapshot, 11), (vec![(7, 10, false), (8, 22, true), (9, 33, true)], 1));
    assert_eq!(known(snapshot, 12).0[2], (9, 30, false), "no bust or correction of it stands");
    let stands_again = vec![(7, 10, false), (7, 40, false), (8, 22, true), (9, 30, false)];
    assert_eq!(known(snapshot, 13), (stands_again, 1), "a busted bust has no effect");
    assert_eq!(known(snapshot, 14).0, vec![(7, 10, false), (8, 22, true), (9, 30, false)]);
    assert_eq!(known(snapshot, 15).0[1], (8, 23, true));
    assert_eq!(known(snapshot, 16), (vec![(7, 10, false), (8, 22, true), (9, 30, false)], 1));
    for lsn in 17..=20 {
        assert_eq!(known(snapshot, lsn), (known(snapshot, 16).0, lsn - 15), "unmatched ones are counted");
    }
    assert_eq!(known(snapshot, 22), (known(snapshot, 16).0, 6), "so are those of another instrument");
    assert_eq!(known(snapshot, u64::MAX), known(snapshot, 22));
}

#[test]
fn busts_and_corrections_apply_as_known_at_each_lsn_and_stored_trades_stay() {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    store.start();
    let mut publisher = store.publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"X:A".parse().unwrap()).unwrap();
    let elsewhere = publisher.instrument(&"X:B".parse().unwrap()).unwrap();
    publish(&mut publisher, instrument, elsewhere);
    publisher.flush(Durability::Fsync, std::time::Duration::from_secs(20)).unwrap();
    let mut reader = store.reader();
    check(&reader.snapshot(At::Durable).unwrap());
    let shown = store.tape_ok(&["scan", "X:A", "trade", "--as-known-at", "9", "--json"]);
    assert_eq!(shown.lines().count(), 2, "{shown}");
    let bars = |more: &[&str]| {
        let shown = store.tape_ok(&[&["bars", "X:A", "--ticks", "10", "--json"], more].concat());
        let bar: serde_json::Value = serde_json::from_str(shown.lines().next().unwrap()).unwrap();
        (bar["trades"].as_u64().unwrap(), bar["volume"].as_str().unwrap().to_owned())
    };
    assert_eq!(bars(&["--as-known-at", "13"]).0, 4);
    assert_eq!(bars(&["--as-known-at", "14"]).0, 3, "without the trade that is void");
    assert_ne!(bars(&["--as-known-at", "14"]).1, bars(&[]).1, "with sizes as corrected");
    assert_eq!(store.tape_ok(&["scan", "X:A", "trade", "--json"]).lines().count(), 4);
    assert_eq!(store.tape(&["scan", "X:A", "quote", "--as-known-at", "9"]).status.code(), Some(2));
    // The same from SSTables.
    let mut id = 1_000;
    eventually("a flush", || {
        for _ in 0..20_000 {
            id += 1;
            let other = Trade { instrument: elsewhere, ts_recv: Ts(id), ..Trade::default() };
            while publisher.publish(&other).is_err() {}
        }
        (reader.control().statistic(Statistic::Covered) > 30).then_some(())
    });
    let snapshot =
        eventually("a snapshot with SSTables", || reader.snapshot(At::Appended).ok().filter(|s| s.history().covered() > Lsn(30)));
    check(&snapshot);
    assert_eq!(Trade::KIND, snapshot.series().unwrap()[0].kind);
}
