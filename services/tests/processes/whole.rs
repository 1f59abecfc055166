//! An answer is complete or an error: records in the log alone are never left out silently.

use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::reader::{At, Reader};
use tapestore::record::{Kind, Record, user_kinds};
use tapestore::shm::control::{Control, Statistic};
use tapestore::subscriber::Subscriber;
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually};

#[derive(Clone, Copy, Debug, Record)]
#[repr(C)]
#[record(kind = 0x80f1, name = "late")]
struct Late {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
}

const RECORDS: u64 = 250_000;

/// A store with some records flushed; the newest ones, an instrument and a kind are in the log alone once it stops.
fn partly_flushed() -> Store {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M"]);
    store.start();
    let records = RECORDS.to_string();
    store.tape_ok(&["publish", "--sim", "--records", &records, "--instruments", "20", "--durability", "os"]);
    let flushed = |c: &Control| c.tables().is_some_and(|t| t.count == 1) && c.statistic(Statistic::Flushes) > 0;
    eventually("the end of flushing", || flushed(store.reader().control()).then_some(()));
    let mut publisher = store.publisher(1, Durability::Fsync);
    publisher.instrument(&"LATE".parse().unwrap()).unwrap();
    publisher.kind::<Late>().unwrap();
    publisher.close(PATIENCE).unwrap();
    store
}

/// Whether `error` reports that `of` up to `upto` is in the log alone.
fn is_in_log(error: &Error, of: &str, upto: u64) -> bool {
    matches!(error, Error::InLogAlone { what, first, last, .. } if *what == of && *last == upto && *first <= upto)
}

#[test]
fn every_command_refuses_a_stopped_store_whose_newest_records_are_in_the_log_alone() {
    let mut store = partly_flushed();
    let first = store.tape_ok(&["get", "1", "--json"]);
    let time = serde_json::from_str::<serde_json::Value>(&first).unwrap()["index_time"].as_str().unwrap().to_owned();
    let out = store.path.with_file_name("exported");
    let out = out.to_str().unwrap();
    let last = RECORDS.to_string();
    let commands: [&[&str]; 24] = [
        &["bars", "SIM:00000"],
        &["bars", "SIM:00000", "--follow"],
        &["asof", "SIM:00000", "trade"],
        &["asof", "SIM:00000", "trade", &time],
        &["get", "1"],
        &["get", &last],
        &["get", "SIM:00000", "definition", &time],
        &["scan", "SIM:00000", "trade"],
        &["scan", "SIM:00000", "trade", "--to", &time],
        &["scan", "SIM:00000", "trade", "--as-known-at", "1000"],
        &["replay"],
        &["find", "SIM:00000", "trade", "1"],
        &["book", "SIM:00000"],
        &["follow", "--once"],
        &["follow", "--once", "--tally"],
        &["tail", "-n", "1", "--limit", "1"],
        &["tail", "--live", "--limit", "1"],
        &["symbols"],
        &["symbols", "--at", "now"],
        &["kinds"],
        &["export", out],
        &["export", out, "--to", &time],
        &["retention", "--kind", "trade", "--keep", "1d", "--dry-run"],
        &["inspect", "memtable"],
    ];
    assert!(store.terminate().success());
    for command in commands.into_iter().chain([&["retention", "--kind", "trade", "--keep", "1d"][..]]) {
        let output = store.tape(command);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(69) && output.stdout.is_empty(), "{command:?}: {} {why}", output.status);
        assert!(why.contains("tape-storage --store"), "{command:?} names the next command: {why}");
        assert!(command.contains(&"--live") || why.contains("only in the log"), "{command:?}: {why}");
    }
    assert!(!std::path::Path::new(out).exists());
    // The flushed part is readable on request.
    let flushed = store.tape_ok(&["follow", "--once", "--tally", "--at", "flushed"]);
    let flushed = serde_json::from_str::<serde_json::Value>(&flushed).unwrap()["last"].as_u64().unwrap();
    assert!(0 < flushed && flushed < RECORDS, "{flushed}");
    store.tape_ok(&["scan", "SIM:00000", "trade", "--limit", "1", "--at", "flushed"]);
    // Commands that need no storage process work.
    store.tape_ok(&["verify"]);
    store.tape_ok(&["inspect", "wal"]);
    store.tape_ok(&["retention", "--kind", "trade", "--bytes", "1G", "--dry-run"]);
}

#[test]
fn every_call_of_a_reader_refuses_a_stopped_store_whose_newest_records_are_in_the_log_alone() {
    let mut store = partly_flushed();
    let mut long = store.reader();
    let held = long.snapshot(At::Committed).unwrap();
    assert!(store.terminate().success());
    for reader in [&mut long, &mut store.reader()] {
        let covered = reader.snapshot(At::Flushed).unwrap().last();
        for at in [At::Appended, At::Durable, At::Committed] {
            let error = reader.snapshot(at).unwrap_err();
            assert!(matches!(error, Error::InLogAlone { what: "records", first, last: RECORDS, .. } if first == covered.0 + 1));
        }
    }
    let mut reader = store.reader();
    assert!(is_in_log(&reader.kinds().unwrap_err(), "kinds", 1));
    assert!(is_in_log(&reader.kind::<Late>().unwrap_err(), "kinds", 1));
    assert!(is_in_log(&reader.symbols().unwrap_err(), "instruments", 21));
    assert!(is_in_log(&reader.instrument(&"SIM:00000".parse().unwrap()).unwrap_err(), "instruments", 21));
    let mut follow = store.reader().follow(Lsn(1), At::Committed);
    let error = follow.poll().unwrap_err();
    assert!(is_in_log(&error, "records", RECORDS) && error.is_down());
    assert!(Subscriber::open(&store.path).unwrap_err().is_down());
    assert_eq!(held.last(), Lsn(RECORDS), "an open snapshot stays valid");
    // The readers recover by themselves.
    store.start();
    assert_eq!(reader.snapshot(At::Committed).unwrap().last(), Lsn(RECORDS));
    assert_eq!(reader.symbols().unwrap().id(&"LATE".parse().unwrap()), Some(InstrumentId(21)));
    reader.kinds().unwrap();
    assert!(user_kinds().any(|s| s.name == "late"));
    assert_eq!(follow.poll().unwrap().unwrap().lsn, Lsn(1));
}

#[test]
fn a_killed_store_is_read_from_shared_memory_only_if_all_records_are_there() {
    let mut store = partly_flushed();
    store.kill();
    let whole = store.tape_ok(&["follow", "--once", "--tally", "--at", "committed"]);
    assert!(whole.contains(&format!("\"count\":{RECORDS}")), "{whole}");
    assert!(store.tape_ok(&["symbols"]).contains("LATE"));
    // The state after a kill between the append of a frame and its records in shared memory.
    let store_id = store.reader().control().store_id();
    let control = Control::open_or_create(&store.run_dir().control(), store_id).unwrap();
    control.set_appended(Lsn(RECORDS + 3), control.appended_position());
    eventually("the end of the heartbeat", || (!store.reader().is_storage_alive()).then_some(()));
    let error = store.reader().snapshot(At::Appended).unwrap_err();
    assert!(matches!(error, Error::InLogAlone { what: "records", .. }) && is_in_log(&error, "records", RECORDS + 3), "{error}");
    let output = store.tape(&["scan", "SIM:00000", "trade", "--at", "appended"]);
    assert!(output.status.code() == Some(69) && output.stdout.is_empty());
    // All committed records are there.
    assert_eq!(Reader::open(&store.path).unwrap().snapshot(At::Committed).unwrap().last(), Lsn(RECORDS));
}
