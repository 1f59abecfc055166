//! SSTables are compacted and expired beside readers, by command and by storage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tapestore::error::Error;
use tapestore::lsn::{Durability, Lsn};
use tapestore::reader::At;
use tapestore::record::Trade;
use tapestore::shm::control::Statistic;
use tapestore::time::{Clock, HostClock, Ts};

use crate::fixture::{Store, eventually};
use crate::history::{compare, publish, record, watch};

fn number(json: &str, key: &str) -> u64 {
    let object: serde_json::Value = serde_json::from_str(json).unwrap();
    object[key].as_u64().unwrap_or_else(|| panic!("{key} in {json}"))
}

/// A store that flushes often and keeps two runs a window, with `more` in its configuration.
fn configured(more: &str) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("storage.toml");
    let text =
        format!("memtable-size = 16777216\nsegment-size = 1048576\n{more}\n[compaction]\nruns-max = 2\nrows-max = 100000\n");
    std::fs::write(&config, text).unwrap();
    let mut store = Store::new(&["--config", config.to_str().unwrap()]);
    store.start();
    (dir, store)
}

#[test]
fn compaction_beside_readers_changes_no_record() {
    let (_dir, mut store) = configured("");
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&mut publisher, 1, 200_000);
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(&store, stop.clone());
    let mut reader = store.reader();
    let covered = |store: &Store| store.reader().control().statistic(Statistic::Covered);
    eventually("a flush", || (covered(&store) > 0).then_some(()));
    let mut held = eventually("a snapshot", || reader.snapshot(At::Durable).ok().filter(|s| !s.history().files().is_empty()));
    let (held_last, held_files) = (held.last().0, held.history().files().len());
    publish(&mut publisher, 200_001, 900_000);
    assert!(publisher.close(std::time::Duration::from_secs(60)).is_ok());
    let plan = || store.tape_ok(&["compact", "--plan", "--json"]);
    eventually("the end of compaction", || {
        let merges = reader.control().statistic(Statistic::Merges);
        (merges >= 3 && plan().is_empty()).then_some(())
    });
    stop.store(true, Ordering::Release);
    assert!(watcher.join().unwrap() > 0);
    // The held snapshot is unchanged although its files are unlinked.
    compare(&mut held, held_last);
    let gone = held.history().files().iter().filter(|f| !f.path().exists()).count();
    assert!(gone > 0, "none of {held_files} files was merged");
    let status: serde_json::Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
    let mine = u64::from(std::process::id());
    assert!(status["pins"].as_array().unwrap().iter().any(|p| p["pid"] == mine && p["bytes"].as_u64() > Some(0)), "{status}");
    drop(held);
    let mut snapshot = reader.snapshot(At::Appended).unwrap();
    assert!(snapshot.history().files().iter().all(|f| f.path().exists()), "a new snapshot must use the merged files");
    compare(&mut snapshot, 900_000);
    drop(snapshot);
    store.tape_ok(&["verify"]);
    assert!(store.tape_ok(&["compact"]).contains("compacts by itself"));
    assert!(store.terminate().success());
    let before = number(&store.tape_ok(&["verify", "--json"]), "files");
    let done = store.tape_ok(&["compact", "--all", "--json"]);
    assert!(number(&done, "merges") > 0 && number(&done, "files") < before, "{done}");
    assert!(store.tape_ok(&["compact", "--plan", "--all", "--json"]).is_empty());
    store.tape_ok(&["verify"]);
    store.start();
    compare(&mut store.reader().snapshot(At::Appended).unwrap(), 900_000);
}

#[test]
fn records_past_retention_expire_and_are_reported_as_expired() {
    let (_dir, mut store) = configured("retention = [{ kind = \"trade\", bytes = 3000000 }]");
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&mut publisher, 1, 600_000);
    assert!(publisher.close(std::time::Duration::from_secs(60)).is_ok());
    let mut reader = store.reader();
    eventually("records that expire", || (reader.control().statistic(Statistic::Expired) > 0).then_some(()));
    eventually("the end of compaction", || store.tape_ok(&["compact", "--plan", "--json"]).is_empty().then_some(()));
    let mut snapshot = eventually("a snapshot of it", || {
        let snapshot = reader.snapshot(At::Appended).ok()?;
        snapshot.history().files().iter().all(|f| f.path().exists()).then_some(snapshot)
    });
    let mut kept = 0;
    for lsn in (1..=600_000).map(Lsn) {
        let (words, len) = record(lsn.0);
        match snapshot.get(lsn).unwrap() {
            Some(row) => assert_eq!(row.record.words(), &words[..len]),
            None => assert_eq!(words[0] as u16, 1, "{lsn} is no trade"),
        }
        kept += u64::from(snapshot.get(lsn).unwrap().is_some());
    }
    let mut follow = store.reader().follow(Lsn(1), At::Appended);
    let (mut read, mut gone) = (0, 0);
    while read + gone < 600_000 {
        match follow.poll() {
            Ok(Some(row)) => {
                assert_eq!(row.lsn.0, read + gone + 1);
                read += 1;
            }
            Err(Error::Expired { first, last }) => {
                assert_eq!(first.0, read + gone + 1);
                gone += last.0 + 1 - first.0;
            }
            other => panic!("{other:?}"),
        }
    }
    // More may have expired since the snapshot.
    assert!(gone > 0 && read > 0 && read <= kept, "{read} read, {kept} kept, {gone} gone");
    drop(snapshot);
    store.tape_ok(&["verify"]);
    let refused = store.tape(&["retention", "--kind", "quote", "--bytes", "1M"]);
    assert_eq!(refused.status.code(), Some(75), "a running storage applies its own rules");
    assert!(store.terminate().success());
    let quotes = ["retention", "--kind", "quote", "--bytes", "1M"];
    let dry = store.tape_ok(&[&quotes[..], &["--dry-run", "--json"]].concat());
    assert!(dry.lines().count() > 0 && dry.lines().all(|l| l.contains("quote-")), "{dry}");
    store.tape_ok(&["verify"]);
    assert_eq!(store.tape_ok(&[&quotes[..], &["--json"]].concat()), dry);
    assert!(store.tape_ok(&["verify", "--json"]).contains("\"expired\""));
    assert_eq!(store.tape(&["retention"]).status.code(), Some(2), "no rules");
}

#[test]
fn retention_of_some_instruments_takes_their_rows_out_of_files_that_no_merge_would_touch() {
    let (_dir, mut store) = configured("retention = [{ kind = \"trade\", instruments = \"X:OLD*\", keep = \"1d\" }]");
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    let [old, new] = ["X:OLD1", "X:NEW"].map(|name| publisher.instrument(&name.parse().unwrap()).unwrap());
    let now = HostClock.wall().0;
    let ten_days = 10 * 86_400_000_000_000;
    let mut put = |instrument, time: u64, count: u64| {
        for n in 0..count {
            let trade = Trade { instrument, ts_recv: Ts(time + n), ..Trade::default() };
            publisher.publish(&trade).unwrap();
        }
        publisher.flush(Durability::Fsync, std::time::Duration::from_secs(60)).unwrap();
    };
    // Three days, three files: one is written again at a time.
    for days in [10, 12, 14] {
        put(old, now - ten_days / 10 * days, 100);
        put(new, now - ten_days / 10 * days + 1000, 200);
    }
    // What is in the files of the old rows is kept but for them, and a file with none that is old stays as it is.
    put(old, now, 10);
    put(new, now, 500);
    store.tape_ok(&["flush"]);
    let expired = || store.reader().control().statistic(Statistic::Expired);
    // Nothing is flushed any more: each look comes by itself.
    eventually("rows that expire", || (expired() >= 300).then_some(()));
    assert_eq!(expired(), 300);
    let count = |instrument: &str| store.tape_ok(&["scan", instrument, "trade", "--json"]).lines().count();
    assert_eq!(count("X:OLD1"), 10, "the new ones");
    assert_eq!(count("X:NEW"), 1100);
    store.tape_ok(&["verify"]);
    assert!(store.terminate().success());
}
