//! `tape plan`: what it computes is what a store takes; what does not fit is named with what to change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use procfs::process::Process;
use serde_json::Value;
use tapestore::lsn::{Durability, InstrumentId};
use tapestore::publisher::Publisher;
use tapestore::record::{Quote, RecordRef, Trade};
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually, register};

/// Seconds of the hour in which the records of a test lie, and when it begins.
const HOUR: u64 = 3600;
const FROM: u64 = 1_700_002_800;

fn plan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tape")).arg("plan").args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Bytes that the files take whose paths have `part`, in and below `dir`.
fn bytes_of(dir: &Path, part: &str) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, found) = (entry.path(), entry.path().symlink_metadata().unwrap());
        if found.is_dir() {
            sum += bytes_of(&path, part);
        } else if path.to_str().unwrap().contains(part) {
            sum += found.blocks() * 512;
        }
    }
    sum
}

/// Checks that `computed` is within `percent` of what `real` is.
fn is_near(what: &str, computed: f64, real: u64, percent: f64) {
    let real = real as f64;
    println!("{what}: {computed:.0} computed, {real:.0} real, {:+.1} %", (computed / real - 1.0) * 100.0);
    assert!((computed - real).abs() * 100.0 <= real * percent, "{what}: {computed} computed, {real} real");
}

/// One load: records a second for an hour, from publishers in batches of trades, or of three quotes for each trade.
struct Case {
    rate: u64,
    instruments: u64,
    publishers: u64,
    batch: u64,
    has_quotes: bool,
}

impl Case {
    fn publish_one(&self, publisher: &mut Publisher, n: u64) {
        let instrument = InstrumentId((1 + n / 4 % self.instruments) as u32);
        let ts = Ts((FROM * 1_000_000_000) + n * (HOUR * 1_000_000_000) / (self.rate * HOUR));
        if self.has_quotes && n % 4 < 3 {
            let quote = Quote { instrument, ts_recv: ts, ts_event: ts, sequence: n as u32, ..Quote::default() };
            publisher.stage(RecordRef::of(&quote)).unwrap();
        } else {
            let trade = Trade { instrument, ts_recv: ts, ts_event: ts, trade_id: n, ..Trade::default() };
            publisher.stage(RecordRef::of(&trade)).unwrap();
        }
    }

    /// Publishes all records: each batch is in a frame of its own.
    fn publish(&self, publishers: &mut [Publisher]) {
        for first in (0..self.rate * HOUR).step_by(self.batch as usize) {
            let turn = (first / self.batch % self.publishers) as usize;
            let publisher = &mut publishers[turn];
            (first..first + self.batch).for_each(|n| self.publish_one(publisher, n));
            publisher.flush(Durability::Os, PATIENCE).unwrap();
        }
    }

    fn plan(&self) -> Value {
        // As the fixture's store is served.
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("storage.toml");
        std::fs::write(&config, "segment-size = 4194304\nmemtable-size = 67108864\n").unwrap();
        let numbers = [self.rate, self.instruments, self.publishers, self.batch].map(|n| n.to_string());
        let kind = if self.has_quotes { "quote=3,trade=1" } else { "trade" };
        let [rate, instruments, publishers, batch] = numbers.each_ref().map(String::as_str);
        let load = ["--rate", rate, "--instruments", instruments, "--publishers", publishers, "--batch", batch, "--kind", kind];
        let more = ["--hours", "1", "--days", "1", "--level", "os", "--json", "--config", config.to_str().unwrap()];
        json(&plan(&[&load[..], &more].concat()))
    }
}

#[test]
fn a_store_takes_the_bytes_that_were_computed() {
    for case in [
        Case { rate: 30, instruments: 60, publishers: 1, batch: 20, has_quotes: false },
        Case { rate: 20, instruments: 300, publishers: 3, batch: 5, has_quotes: true },
    ] {
        let plan = case.plan();
        let number = |path: &str| plan.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {plan}"));
        let store = Store::serve();
        let mut publishers: Vec<Publisher> = (1..=case.publishers).map(|n| store.publisher(n as u16, Durability::Os)).collect();
        register(&publishers[0]);
        case.publish(&mut publishers);
        let records = case.rate * HOUR;
        assert_eq!(number("/records"), records as f64);
        let status = || serde_json::from_str::<Value>(&store.tape_ok(&["status", "--json"])).unwrap();
        let now = status();
        let log = now["watermarks"]["appended_position"].as_u64().unwrap();
        is_near("log", number("/disk/log_bytes_a_record") * records as f64, log, 5.0);
        // The segments of these records, and those beside them.
        let (wal, segment) = (bytes_of(&store.path.join("wal"), ""), 4 << 20);
        let computed = number("/disk/log") as u64;
        println!("log with its segments: {computed} computed, {wal} real");
        assert!(wal <= computed && computed <= wal + 4 * segment, "{wal} bytes of log, {computed} computed");

        let run_dir = store.run_dir();
        let tag = run_dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches("tapestore-");
        let memtables = bytes_of(run_dir.path(), "/memtable-");
        let others = bytes_of(run_dir.path(), "") - memtables;
        let segments = bytes_of(Path::new("/dev/shm"), &format!("/tape{tag}i"));
        // No subscriber listens; and not all MemTables are there.
        let shared = number("/shared_memory/total")
            - number("/shared_memory/live_queues")
            - number("/shared_memory/memtable") * number("/shared_memory/memtables_max");
        is_near("shared memory without MemTables", shared, others + segments, 15.0);
        is_near(
            "MemTable",
            number("/shared_memory/memtable"),
            memtables / now["memory"]["memtables"].as_u64().unwrap().max(1),
            100.0,
        );
        assert_eq!(memtables as f64 % number("/shared_memory/memtable"), 0.0);

        let process = Process::new(store.pid().cast_signed()).unwrap();
        let (files, maps) = (process.fd_count().unwrap() as f64, process.maps().unwrap().len() as f64);
        let planned = number("/limits/storage_descriptors");
        println!("descriptors: {files} of {planned} planned; maps: {maps} of {}", number("/limits/storage_maps"));
        // What is planned has 16 for storage's own files, which are used one time or another.
        assert!(files <= planned && planned <= files + 40.0, "{files} open files, {planned} are planned");
        assert!(maps <= number("/limits/storage_maps"));

        drop(publishers);
        store.tape_ok(&["flush"]);
        let flushed = eventually("SSTables of all records", || {
            let status = status();
            (status["watermarks"]["flushed"].as_u64()? == records).then_some(status)
        });
        is_near("SSTables", number("/disk/sstables"), flushed["history"]["bytes"].as_u64().unwrap(), 10.0);
        let on_disk = bytes_of(&store.path.join("sst"), "");
        is_near("SSTables with the blocks of the disk", number("/disk/sstables"), on_disk, 10.0);
    }
}

#[test]
fn what_does_not_fit_is_named_with_what_to_change() {
    let huge = ["--rate", "1000000", "--instruments", "5000000", "--days", "100000", "--kind", "depth10", "--hosts", "3"];
    let report = json(&plan(&[&huge[..], &["--json"]].concat()));
    assert_eq!(report["fits"], false);
    let fit = |name: &str| report["host"].as_array().unwrap().iter().find(|fit| fit["name"] == name).unwrap();
    for (name, change) in [("disk", "--days"), ("instruments", "instruments-max"), ("rate", "several stores")] {
        assert!(fit(name)["fits"] == false && fit(name)["change"].as_str().unwrap().contains(change), "{report}");
    }
    let sum: f64 = ["sstables", "log", "log_for_members", "compaction", "ballast", "kept_free"]
        .map(|key| report["disk"][key].as_f64().unwrap())
        .iter()
        .sum();
    assert_eq!(report["disk"]["total"].as_f64(), Some(sum));
    // Two others get each frame.
    assert_eq!(report["network"]["from_leader"].as_u64(), report["network"]["to_each"].as_u64().map(|each| 2 * each));
    let text = String::from_utf8(plan(&huge).stdout).unwrap();
    assert!(text.starts_with("DOES NOT FIT: rate, instruments, disk") && text.contains("DOES NOT FIT: fewer --days"), "{text}");
    let small = plan(&["--rate", "10", "--instruments", "5", "--days", "1", "--memtable-size", "16M"]);
    assert!(String::from_utf8_lossy(&small.stdout).starts_with("FITS:"), "{}", String::from_utf8_lossy(&small.stdout));
}

#[test]
fn a_plan_needs_a_sound_load_and_measures_on_request() {
    let base = ["--rate", "1000", "--instruments", "10", "--days", "1"];
    for wrong in [
        &["--rate", "0"][..],
        &["--rate", "x"],
        &["--days", "0"],
        &["--publishers", "257"],
        &["--batch", "5000"],
        &["--hours", "25"],
        &["--kind", "trades"],
        &["--record-size", "20"],
        &["--record-size", "64", "--kind", "trade"],
    ] {
        // The later one of two equal options is refused by itself, so the wrong ones come alone.
        let kept: Vec<&str> = base.chunks(2).filter(|pair| pair[0] != wrong[0]).flatten().copied().collect();
        let output = plan(&[&kept[..], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store").display().to_string();
    let measured = json(&plan(&[&base[..], &["--measure", "--json", "--store", &store]].concat()));
    let cost = &measured["sync_cost"];
    assert!(cost["count"].as_u64() > Some(0) && cost["p50_ns"].as_u64() <= cost["p99_ns"].as_u64(), "{measured}");
    let syncs = 1_000_000_000 / cost["p50_ns"].as_u64().unwrap().max(1);
    assert_eq!(measured["syncs"]["disk_a_second"].as_u64(), Some(syncs));
    let plain = json(&plan(&[&base[..], &["--json", "--record-size", "128"]].concat()));
    assert!(plain["sync_cost"].is_null() && plain["syncs"]["disk_a_second"].is_null() && plain["network"].is_null(), "{plain}");
    assert_eq!(plain["kinds"][0]["record_bytes"], 128);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
