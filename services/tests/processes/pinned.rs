//! Removed SSTables that readers' snapshots keep: they are counted, and beyond `pinned-max` readers are asked to release them.

use std::time::Duration;

use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::publisher::Publisher;
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{Kind, Record, Trade};
use tapestore::shm::control::Statistic;
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually};
use crate::history;

/// A store that flushes and merges often and lets removed files keep `pinned_max` bytes.
fn store_with(pinned_max: u64) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("storage.toml");
    let text = format!(
        "memtable-size = 16777216\nsegment-size = 1048576\npinned-max = {pinned_max}\n[compaction]\nruns-max = 2\nrows-max = 100000\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut store = Store::new(&["--config", config.to_str().unwrap()]);
    store.start();
    (dir, store)
}

/// Publishes the records `from` to `to` and waits until SSTables hold them.
fn publish(store: &Store, publisher: &mut Publisher, from: u64, to: u64) {
    history::publish(publisher, from, to);
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    store.tape_ok(&["flush"]);
}

fn of(reader: &Reader, which: Statistic) -> u64 {
    reader.control().statistic(which)
}

/// Waits until no merge is due.
fn settle(store: &Store) {
    eventually("the end of compaction", || store.tape_ok(&["compact", "--plan", "--json"]).is_empty().then_some(()));
}

/// Publishes records after `last` until a merge has removed files that a snapshot maps; returns the last record, and the snapshots that
/// were taken meanwhile.
fn merge(store: &Store, publisher: &mut Publisher, mut last: u64) -> (u64, Vec<Snapshot>) {
    let (mut reader, mut held) = (store.reader(), Vec::new());
    for _ in 0..30 {
        publish(store, publisher, last + 1, last + 20_000);
        last += 20_000;
        held.push(reader.snapshot(At::Durable).unwrap());
        settle(store);
        // It is looked for once a second.
        std::thread::sleep(Duration::from_millis(1300));
        if of(&reader, Statistic::PinnedBytes) > 4096 {
            return (last, held);
        }
    }
    panic!("no file of a snapshot was merged");
}

#[test]
fn snapshots_that_keep_more_than_pinned_max_are_asked_for_and_a_new_one_reads_on() {
    let (_dir, mut store) = store_with(4096);
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&store, &mut publisher, 1, 20_000);
    settle(&store);
    let mut reader = store.reader();
    let mut held = reader.snapshot(At::Durable).unwrap();
    let mut follow = store.reader().follow(Lsn(1), At::Durable);
    eventually("its first record", || follow.poll().unwrap().map(drop));
    let (edit, series) = (held.history().edit().1, Series { instrument: InstrumentId(1), kind: Trade::KIND });
    held.get(Lsn(1)).unwrap();
    let mut scan = held.scan(series, TimeRange::ALL);
    scan.next().unwrap();
    let (last, others) = merge(&store, &mut publisher, 20_000);
    assert!(publisher.close(Duration::from_secs(60)).is_ok());
    let oldest = eventually("readers that are asked", || {
        let oldest = reader.control().oldest_snapshot();
        (oldest > edit).then_some(oldest)
    });
    assert!(of(&reader, Statistic::PinnedBytes) > 4096 && of(&reader, Statistic::PinnedSince) > 0);
    let status = store.tape_ok(&["status"]);
    assert!(status.contains("readers keep") && status.contains("pinned-max"), "{status}");
    // A scan ends with the error, and not as if it had no more rows.
    let error = loop {
        match scan.next() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a scan of a snapshot that is too old has ended without an error"),
            Err(error) => break error,
        }
    };
    drop(scan);
    let is_too_old = |error: &Error| matches!(error, Error::SnapshotTooOld { edit: of, .. } if *of == edit);
    assert!(is_too_old(&error), "{error}");
    let column = held.columns(Trade::KIND, None, TimeRange::ALL).unwrap().next().map(drop);
    for error in [
        held.check_age().unwrap_err(),
        held.get(Lsn(1)).map(drop).unwrap_err(),
        held.as_of(series, Ts(u64::MAX)).map(drop).unwrap_err(),
        held.series().map(drop).unwrap_err(),
        held.latest(Kind(1)).map(drop).unwrap_err(),
        held.find(series, "trade_id", 1).map(drop).unwrap_err(),
        held.arrival(Lsn(1)).map(drop).unwrap_err(),
        column.unwrap_err(),
    ] {
        assert!(is_too_old(&error), "{error}");
    }
    // A new one has the newer files and all records; a follower takes one by itself.
    let mut fresh = reader.snapshot(At::Durable).unwrap();
    assert!(fresh.history().edit().1 >= oldest && fresh.get(Lsn(last)).unwrap().is_some());
    drop(fresh);
    drop((held, others));
    // It is asked once a record, in the midst of what it has mapped.
    eventually("room", || {
        follow.poll().unwrap();
        reader.let_go();
        (of(&reader, Statistic::PinnedBytes) == 0 && of(&reader, Statistic::PinnedSince) == 0).then_some(())
    });
    assert!(follow.position().0 < 20_000, "it has read all that it had mapped, and released it without being asked");
    while follow.position().0 <= last {
        follow.poll().unwrap();
    }
    assert!(store.terminate().success());
}

#[test]
fn snapshots_that_keep_less_than_pinned_max_stay_readable() {
    let (_dir, store) = store_with(0);
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&store, &mut publisher, 1, 20_000);
    settle(&store);
    let mut reader = store.reader();
    let mut held = reader.snapshot(At::Durable).unwrap();
    let _others = merge(&store, &mut publisher, 20_000);
    eventually("removed files that are counted", || (of(&reader, Statistic::PinnedBytes) > 0).then_some(()));
    assert_eq!((reader.control().oldest_snapshot(), of(&reader, Statistic::SnapshotsReleased)), (0, 0));
    assert!(held.get(Lsn(1)).unwrap().is_some());
    let status: serde_json::Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
    assert!(status["space"]["removed_mapped_bytes"].as_u64() > Some(0) && status["space"]["over_since"].is_null(), "{status}");
}
