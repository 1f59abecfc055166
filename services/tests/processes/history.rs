//! Records that do not fit in memory: flushed, and read back by every path, across kills.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Durability, InstrumentId, Lsn, PubSeq};
use tapestore::publisher::{PublishError, Publisher};
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{BookOrder, Quote, Record, RecordRef, Trade};
use tapestore::shm::control::{Control, Statistic};
use tapestore::time::Ts;

use crate::fixture::{INSTRUMENTS, PATIENCE, Store, eventually, is_down};
use crate::kills::{count, seed};

const BASE: u64 = 1_700_000_000_000_000_000;

/// Record number `seq` of the test's feed, derived from the number alone.
pub(crate) fn record(seq: u64) -> ([u64; 12], usize) {
    let r = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    // A few busy instruments, many quiet ones; some records are late.
    let instrument =
        InstrumentId(1 + (r % INSTRUMENTS * (r >> 10) % INSTRUMENTS / if r.is_multiple_of(3) { 1 } else { 40 }) as u32);
    let late = if r.is_multiple_of(50) { r % 5_000_000 } else { 0 };
    let (ts_recv, sequence) = (Ts(BASE + seq * 2000 - late), seq as u32);
    let mut words = [0u64; 12];
    let mut put = |from: &[u64]| {
        words[..from.len()].copy_from_slice(from);
        from.len()
    };
    let len = match r % 10 {
        0..4 => put(Trade { instrument, ts_recv, sequence, trade_id: seq, ..Trade::default() }.words()),
        4..7 => put(Quote { instrument, ts_recv, sequence, ts_event: Ts(seq), ..Quote::default() }.words()),
        _ => put(BookOrder { instrument, ts_recv, sequence, order_id: seq / 4 * 4, ..BookOrder::default() }.words()),
    };
    (words, len)
}

pub(crate) fn small() -> Store {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    store.start();
    store
}

pub(crate) fn publish(publisher: &mut Publisher, from: u64, to: u64) {
    let deadline = Instant::now() + PATIENCE * 4;
    for seq in from..=to {
        let (words, len) = record(seq);
        let record = RecordRef::first(&words[..len]).unwrap();
        while let Err(e) = publisher.stage(record) {
            assert!(matches!(e, PublishError::Full { .. }) && Instant::now() < deadline, "{e}");
        }
        if seq.is_multiple_of(256) {
            publisher.send();
        }
    }
    publisher.send();
}

/// Starts a reader that checks records while the test runs; returns how many it read.
pub(crate) fn watch(store: &Store, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let path = store.path.clone();
    std::thread::spawn(move || {
        let mut reader = Reader::open(&path).unwrap();
        let (mut rng, mut looks) = (SimRng::new(7), 0);
        while !stop.load(Ordering::Acquire) {
            let mut snapshot = match reader.snapshot(At::Appended) {
                Ok(snapshot) => snapshot,
                Err(e) if is_down(&e) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(e) => panic!("{e}"),
            };
            let last = snapshot.last().0;
            for _ in 0..200.min(last) {
                let lsn = 1 + rng.below(last);
                let (words, len) = record(lsn);
                let row = snapshot.get(Lsn(lsn)).unwrap().unwrap_or_else(|| panic!("record {lsn} of {last} is missing"));
                assert_eq!(row.record.words(), &words[..len]);
                looks += 1;
            }
            let series = Series { instrument: InstrumentId(1 + rng.below(INSTRUMENTS) as u32), kind: Trade::KIND };
            let (mut before, mut scan) = ((Ts(0), Lsn(0)), snapshot.scan(series, TimeRange::ALL));
            while let Some(row) = scan.next().unwrap() {
                assert!((row.index_time, row.lsn) > before && row.record.instrument() == series.instrument);
                before = (row.index_time, row.lsn);
            }
        }
        looks
    })
}

/// Checks every access path of `snapshot` against [`record`].
pub(crate) fn compare(snapshot: &mut Snapshot, last: u64) {
    assert_eq!(snapshot.last(), Lsn(last));
    let mut by_series: HashMap<Series, Vec<(Ts, Lsn)>> = HashMap::new();
    for seq in 1..=last {
        let (words, len) = record(seq);
        let record = RecordRef::first(&words[..len]).unwrap();
        let series = Series { instrument: record.instrument(), kind: record.kind() };
        by_series.entry(series).or_default().push((record.own_index_time(), Lsn(seq)));
    }
    by_series.values_mut().for_each(|rows| rows.sort_unstable());
    let all = snapshot.series().unwrap();
    assert_eq!(all.len(), by_series.len());
    let mut rng = SimRng::new(last);
    for &series in &all {
        let rows = &by_series[&series];
        let (mut scan, mut n) = (snapshot.scan(series, TimeRange::ALL), 0);
        while let Some(row) = scan.next().unwrap() {
            assert_eq!((row.index_time, row.lsn), rows[n]);
            n += 1;
        }
        assert_eq!(n, rows.len());
    }
    let (mut replay, mut n, mut before) = (snapshot.replay(&all, TimeRange::ALL), 0, (Ts(0), Lsn(0)));
    while let Some(row) = replay.next().unwrap() {
        let (words, len) = record(row.lsn.0);
        assert!((row.index_time, row.lsn) > before && row.record.words() == &words[..len]);
        before = (row.index_time, row.lsn);
        n += 1;
        if n % 300_000 == 0 {
            // Releases the pages read so far; the replay goes on.
            snapshot.release();
        }
    }
    assert_eq!(n, last);
    for _ in 0..5000 {
        let series = all[rng.below(all.len() as u64) as usize];
        let rows = &by_series[&series];
        let time = Ts(BASE + rng.below(last * 2000));
        let expected = rows[..rows.partition_point(|r| r.0 <= time)].last().copied();
        assert_eq!(snapshot.as_of(series, time).unwrap().map(|r| (r.index_time, r.lsn)), expected);
        let (_, lsn) = rows[rng.below(rows.len() as u64) as usize];
        if series.kind == Trade::KIND {
            let found = snapshot.find(series, "trade_id", lsn.0).unwrap();
            assert_eq!(found.iter().map(|r| r.lsn).collect::<Vec<_>>(), [lsn]);
            assert!(snapshot.find(series, "trade_id", last + lsn.0).unwrap().is_empty());
        }
    }
}

/// Follows from `from` to `last`: every record once, whole, in order.
fn follow(store: &Store, from: u64, last: u64) {
    let mut follow = store.reader().follow(Lsn(from), At::Appended);
    for lsn in from..=last {
        let row = eventually("the record", || follow.poll().unwrap().map(|r| (r.lsn, r.record.words().to_vec())));
        let (words, len) = record(lsn);
        assert_eq!(row, (Lsn(lsn), words[..len].to_vec()));
    }
}

#[test]
fn records_that_exceed_memory_are_flushed_and_read_back_by_every_path() {
    let mut store = small();
    // `close` waits for the sync of the last record: the snapshots below end there.
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(&store, stop.clone());
    let last = count("TAPE_HISTORY", 1_200_000);
    publish(&mut publisher, 1, last);
    publisher.close(PATIENCE).unwrap();
    let mut snapshot = store.reader().snapshot(At::Durable).unwrap();
    assert!(snapshot.history().covered().0 > last / 2, "too little is in SSTables: {}", snapshot.history().covered());
    compare(&mut snapshot, last);
    follow(&store, 1, last);
    follow(&store, last - 300_000, last);
    stop.store(true, Ordering::Release);
    assert!(watcher.join().unwrap() > 1000);
    let control = store.reader().control().clone();
    assert!(control.statistic(Statistic::Flushes) > 4 && control.statistic(Statistic::FlushFailures) == 0);
    let log: u64 = std::fs::read_dir(store.path.join("wal")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(log < 80 << 20, "the flushed log is not recycled: {log} bytes");
    store.tape_ok(&["verify"]);
    // The same after a restart, which reads only the log after the checkpoint, and while stopped.
    assert!(store.terminate().success());
    let read = store.tape_ok(&["follow", "--once", "--tally", "--at", "flushed"]);
    assert!(read.contains("\"first\":1,"), "SSTables are read without a storage process: {read}");
    compare(&mut store.reader().snapshot(At::Durable).unwrap(), last);
    store.start();
    let mut again = store.reader().snapshot(At::Durable).unwrap();
    compare(&mut again, last);
    compare(&mut snapshot, last);
    store.tape_ok(&["verify"]);
}

#[test]
fn storage_killed_during_a_flush_loses_and_duplicates_nothing() {
    let mut rng = SimRng::new(seed());
    let mut store = small();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let theirs = (stop.clone(), published.clone());
    let feed = std::thread::spawn(move || {
        let mut seq = 0;
        while !theirs.0.load(Ordering::Acquire) {
            let (words, len) = record(seq + 1);
            match publisher.stage(RecordRef::first(&words[..len]).unwrap()) {
                Ok(number) => {
                    seq += 1;
                    assert_eq!(number, PubSeq(seq), "one epoch, one numbering");
                }
                Err(PublishError::Full { .. }) => {}
                Err(e) => panic!("the publisher cannot continue: {e}"),
            }
            if seq.is_multiple_of(256) {
                publisher.send();
                theirs.1.store(seq, Ordering::Release);
            }
        }
        publisher.send();
        (publisher, seq)
    });
    let watcher_stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(&store, watcher_stop.clone());
    let kills = count("TAPE_FLUSH_KILLS", 12);
    let (mut files, mut covered) = (0, 0);
    for kill in 0..kills {
        let flushes = store.reader().control().statistic(Statistic::Flushes);
        // Waits for a flush, then kills within the next one.
        eventually("a flush", || (store.reader().control().statistic(Statistic::Flushes) > flushes).then_some(()));
        std::thread::sleep(Duration::from_micros(rng.below(120_000)));
        store.kill();
        store.start();
        let snapshot = eventually("a snapshot", || store.reader().snapshot(At::Appended).ok());
        let now = snapshot.history().files().len();
        assert!(now >= files && snapshot.history().covered().0 >= covered, "kill {kill}: SSTables are gone");
        (files, covered) = (now, snapshot.history().covered().0);
    }
    stop.store(true, Ordering::Release);
    let (mut publisher, seq) = feed.join().unwrap();
    let progress = publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!((progress.durable, publisher.take_lost().len()), (PubSeq(seq), 0));
    watcher_stop.store(true, Ordering::Release);
    let looks = watcher.join().unwrap();
    store.tape_ok(&["verify"]);
    follow(&store, 1, seq);
    let snapshot = store.reader().snapshot(At::Appended).unwrap();
    println!(
        "{kills} kills during flushes: {seq} records, 0 lost, 0 duplicated; {} SSTables, {} reattaches, {looks} concurrent reads",
        snapshot.history().files().len(),
        progress.reattached
    );
    assert_eq!(published.load(Ordering::Acquire) / 256, seq / 256);
    assert!(store.terminate().success());
}

#[test]
fn the_tool_inspects_flushed_records() {
    let mut store = small();
    let mut publisher = store.publisher(1, Durability::Os);
    for i in 0..INSTRUMENTS {
        publisher.instrument(&format!("T:{i}").parse().unwrap()).unwrap();
    }
    publish(&mut publisher, 1, 400_000);
    publisher.close(PATIENCE).unwrap();
    // No flush runs any more: the outputs of two commands are comparable.
    let is_flushed = |control: &Control| {
        let covered = store.reader().snapshot(At::Appended).unwrap().history().covered();
        control.tables().is_some_and(|t| t.count == 1) && control.statistic(Statistic::Covered) == covered.0
    };
    eventually("the end of the flushes", || is_flushed(store.reader().control()).then_some(()));
    let json = |arguments: &[&str]| -> serde_json::Value { serde_json::from_str(&store.tape_ok(arguments)).unwrap() };
    let manifest = json(&["inspect", "manifest", "--json"]);
    let files = manifest["files"].as_array().unwrap();
    assert!(files.len() >= 6 && manifest["covered"].as_u64().unwrap() > 100_000);
    assert_eq!(manifest["records"], manifest["covered"]);
    assert!(store.tape_ok(&["inspect", "manifest", "--edits"]).contains("checkpoint at LSN"));
    let first = files[0]["file"].as_str().unwrap();
    let file = json(&["inspect", "sst", first, "--json"]);
    assert_eq!(file["rows"], files[0]["rows"]);
    assert!(store.tape_ok(&["inspect", "sst", first, "--blocks", "--series"]).contains("bytes a row"));
    assert_eq!(store.tape_ok(&["inspect", "sst", "--json"]).lines().count(), files.len());
    assert_eq!(store.tape(&["inspect", "sst", "nothing"]).status.code(), Some(2));
    assert!(!store.tape_ok(&["inspect", "memtable", "--json"]).is_empty());
    let status = json(&["status", "--json"]);
    assert_eq!(status["history"]["files"].as_u64(), Some(files.len() as u64));
    // A trade in an SSTable is found by its id and by its LSN.
    let seq = (1..).find(|s| record(*s).0[0] & 0xffff == u64::from(Trade::KIND.0)).unwrap();
    let (words, _) = record(seq);
    let name = format!("T:{}", (words[0] >> 32) - 1);
    let found = json(&["find", &name, "trade", &seq.to_string(), "--json"]);
    assert_eq!((found["lsn"].as_u64(), found["trade_id"].as_u64()), (Some(seq), Some(seq)));
    assert_eq!(json(&["get", &seq.to_string(), "--json"]), found);
    assert_eq!(store.tape(&["find", &name, "trade", "999999999"]).status.code(), Some(3));
    assert_eq!(store.tape(&["find", &name, "quote", "1"]).status.code(), Some(2));
    let tally = json(&["follow", "--from-lsn", "1001", "--once", "--tally"]);
    assert_eq!((tally["count"].as_u64(), tally["last"].as_u64()), (Some(399_000), Some(400_000)));
    let verified = json(&["verify", "--json"]);
    assert_eq!(verified["flushed_records"], manifest["records"]);
    // Damage in an SSTable is named, and nothing is changed.
    assert!(store.terminate().success());
    let path = store.path.join("sst").join(first);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let output = store.tape(&["verify"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(65) && text.contains(first) && text.contains("offset"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    // Without the manifest storage refuses to start: the log alone is not the whole store.
    std::fs::remove_file(store.path.join("CURRENT")).unwrap();
    let refused =
        std::process::Command::new(env!("CARGO_BIN_EXE_tape-storage")).arg("--store").arg(&store.path).output().unwrap();
    assert_eq!(refused.status.code(), Some(65), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(path.exists(), "a refused start must not remove files");
}
