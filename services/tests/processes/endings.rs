//! Ends of publishing commands: their counts are exact, and each kind of end has its own exit code.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tapestore::lsn::{Lsn, PublisherId};
use tapestore::reader::At;
use tapestore::shm::control::{SLOTS_MAX, Statistic};

use crate::fixture::{Store, eventually, signal};

/// A guard against a command that waits forever: none should take a tenth of it.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

fn publish(store: &Store, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    command.args(["publish", "--sim", "--json", "--records", "9000000"]).args(arguments).arg("--store").arg(&store.path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end of `child`; returns exit code, JSON report and standard error.
fn end(mut child: Child) -> (i32, Value, String) {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > ENDS_WITHIN {
            child.kill().ok();
            panic!("the command does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let report = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    (status.code().unwrap(), report, String::from_utf8_lossy(&stderr).into_owned())
}

/// The counts of a report, which must add up.
fn numbers(report: &Value) -> [u64; 4] {
    let of = |name: &str| report[name].as_u64().unwrap();
    let numbers = ["stored", "in_log", "unacknowledged", "lost"].map(of);
    assert_eq!(numbers.iter().sum::<u64>(), of("records"), "{report}");
    numbers
}

/// Waits until `publishers` have records in the log.
fn wait_for_records(store: &Store, publishers: usize) {
    let reader = store.reader();
    let control = reader.control();
    let has_records = |slot: usize| {
        let slot = control.slot(slot);
        slot.holder().is_some_and(|(grant, ..)| slot.view(grant).is_some_and(|v| v.accepted.0 > 0))
    };
    eventually("records of each publisher", || ((0..SLOTS_MAX).filter(|i| has_records(*i)).count() >= publishers).then_some(()));
}

#[test]
fn an_interrupted_publish_has_stored_what_it_reports_and_exits_as_interrupted() {
    let store = Store::serve();
    for by in [Signal::INT, Signal::TERM] {
        let before = store.reader().control().durable();
        let child = publish(&store, &["--rate", "realtime"]);
        wait_for_records(&store, 1);
        signal(child.id(), by);
        let (code, report, why) = end(child);
        assert!(code == 4 && why.contains("are stored at level fsync"), "{code}: {why}");
        let [stored, in_log, unacknowledged, lost] = numbers(&report);
        assert!(stored > 0 && [in_log, unacknowledged, lost] == [0; 3] && report["is_whole"] == false, "{report}");
        assert_eq!(store.reader().snapshot(At::Durable).unwrap().last(), Lsn(before.0 + stored));
        eventually("its end", || (store.reader().control().statistic(Statistic::Publishers) == 0).then_some(()));
    }
    let whole = store.tape_ok(&["publish", "--sim", "--records", "100", "--json"]);
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!((whole["is_whole"].as_bool(), numbers(&whole)), (Some(true), [100, 0, 0, 0]));
}

#[test]
fn an_unacknowledged_publish_ends_on_request_and_counts_its_lost_records() {
    let mut store = Store::serve();
    let levels = ["none", "os", "fsync", "quorum"];
    let children = levels.map(|level| publish(&store, &["--durability", level]));
    wait_for_records(&store, levels.len());
    // Storage hangs: nothing is acknowledged any more.
    let pid = store.reader().control().server().unwrap() as u32;
    signal(pid, Signal::STOP);
    eventually("the end of the heartbeat", || (!store.reader().is_storage_alive()).then_some(()));
    children.iter().for_each(|child| signal(child.id(), Signal::TERM));
    let mut sums = [0; 3];
    for (child, level) in children.into_iter().zip(levels) {
        let (code, report, why) = end(child);
        let [stored, in_log, unacknowledged, lost] = numbers(&report);
        assert!(code == 5 && unacknowledged > 0 && lost == 0, "{level}: {code} {report} {why}");
        assert!(why.contains("lost with it") && why.contains(&format!("at level {level}")), "{why}");
        for (sum, n) in sums.iter_mut().zip([stored, in_log, unacknowledged]) {
            *sum += n;
        }
    }
    // Records reported as stored or in the log are there, and no more than were sent.
    store.kill();
    store.start();
    let last = store.reader().snapshot(At::Durable).unwrap().last().0;
    assert!(sums[0] + sums[1] <= last && last <= sums.iter().sum(), "{last} of {sums:?}");
}

#[test]
fn a_fenced_publish_counts_its_stored_records() {
    let store = Store::serve();
    let child = publish(&store, &["--rate", "realtime", "--publisher", "7"]);
    wait_for_records(&store, 1);
    // An attach without --take-over is refused and fences no publisher.
    let refused = store.tape(&["publish", "--sim", "--records", "10", "--publisher", "7"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(75) && why.contains("a live process publishes as it") && why.contains("--take-over"),
        "{why}"
    );
    // A command without --publisher fences no publisher either.
    let file = store.path.with_extension("csv");
    std::fs::write(&file, store.tape_ok(&["scan", "SIM:00000", "quote", "--csv", "--limit", "1"])).unwrap();
    store.tape_ok(&["import", file.to_str().unwrap()]);
    store.tape_ok(&["publish", "--sim", "--records", "10"]);
    store.tape_ok(&["publish", "--sim", "--records", "10", "--publisher", "7", "--take-over"]);
    let (code, report, why) = end(child);
    let [stored, ..] = numbers(&report);
    assert!(matches!(code, 5 | 75) && why.contains("is fenced"), "{code}: {why}");
    let snapshot = store.reader().snapshot(At::Durable).unwrap();
    let arrivals = (1..=snapshot.last().0).filter_map(|lsn| snapshot.arrival(Lsn(lsn)).unwrap());
    let own = arrivals.filter(|a| a.publisher == PublisherId(7) && a.epoch.0 == 1).count() as u64;
    assert!(own == stored || (code == 5 && own > stored), "{own} are in the store: {report} {why}");
}

#[test]
fn an_interrupted_import_counts_the_stored_records_of_the_file() {
    let store = Store::serve();
    let file = store.path.with_extension("txt");
    let line = r#"1 {"stream":"x@trade","data":{"e":"trade","E":1,"T":1,"s":"X","t":1,"p":"1","q":"1","m":true}}"#;
    std::fs::write(&file, format!("{line}\n").repeat(400_000)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    command.args(["import", "--json"]).arg(&file).arg(&file).arg("--store").arg(&store.path);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_records(&store, 1);
    signal(child.id(), Signal::TERM);
    let output = child.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(4) && why.contains("interrupted"), "{}: {why}", output.status);
    let reports = String::from_utf8(output.stdout).unwrap();
    let stored: u64 = reports.lines().map(|l| numbers(&serde_json::from_str(l).unwrap())[0]).sum();
    assert_eq!(store.reader().snapshot(At::Durable).unwrap().last(), Lsn(stored));
    // Input that is not a regular file is refused.
    let pipe = store.tape(&["publish", "--from", "/dev/stdin"]);
    assert!(pipe.status.code() == Some(66), "{}", String::from_utf8_lossy(&pipe.stderr));
}

#[test]
fn a_store_that_is_stopped_while_a_publisher_sends_has_all_its_records_in_sstables() {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M"]);
    store.start();
    for _ in 0..2 {
        let mut publisher = publish(&store, &["--rate", "max", "--publisher", "7", "--take-over"]);
        let control = store.reader().control().clone();
        let before = control.committed();
        eventually("records", || (control.committed() > before.plus(1000)).then_some(()));
        assert!(store.terminate().success());
        publisher.kill().unwrap();
        publisher.wait().unwrap();
        let mut reader = store.reader();
        let at_rest = reader.snapshot(At::Appended).unwrap();
        assert!(reader.is_at_rest());
        assert_eq!(at_rest.history().covered(), at_rest.last(), "records in the log alone");
        store.start();
    }
}
