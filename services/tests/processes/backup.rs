//! Backup, restore and repair with real processes, real files and real kills.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tapestore::disk::sim::SimRng;
use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn, PubSeq};
use tapestore::publisher::{PublishError, Publisher};
use tapestore::reader::At;
use tapestore::record::{Gap, Trade};
use tapestore::shm::run_dir::RunDir;
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually, tape};
use crate::kills::{count, seed};

fn trade(id: u64) -> Trade {
    Trade { trade_id: id, instrument: InstrumentId(1), ts_recv: Ts(id), ..Trade::default() }
}

/// Publishes trades `first` to `last`.
fn publish(publisher: &mut Publisher, first: u64, last: u64) {
    for id in first..=last {
        while let Err(e) = publisher.publish(&trade(id)) {
            assert!(matches!(e, PublishError::Full { .. }), "{e}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

/// Checks every record of a served store: LSN, trade id and pub_seq of the one publisher are equal. Returns the last LSN.
fn verify_all(store: &Store) -> u64 {
    let mut snapshot = store.reader().snapshot(At::Durable).unwrap();
    for lsn in 1..=snapshot.last().0 {
        let row = snapshot.get(Lsn(lsn)).unwrap().unwrap_or_else(|| panic!("record {lsn} is missing"));
        assert_eq!(row.record.get::<Trade>().unwrap().trade_id, lsn);
        let arrival = snapshot.arrival(Lsn(lsn)).unwrap().unwrap();
        assert_eq!((arrival.pub_seq, arrival.epoch.0), (PubSeq(lsn), 1));
    }
    snapshot.last().0
}

fn json(output: &str) -> Value {
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

/// Runs `tape` on the store `path`; returns exit code, standard output and standard error.
fn code(path: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = tape(path, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Publishes on a thread until `stop`; counts in `sent`. The thread returns how many.
fn publish_until(stop: &Arc<AtomicBool>, sent: &Arc<AtomicU64>, mut publisher: Publisher) -> std::thread::JoinHandle<u64> {
    let (stop, sent) = (stop.clone(), sent.clone());
    std::thread::spawn(move || {
        let mut id = 0u64;
        while !stop.load(Ordering::Acquire) {
            match publisher.publish(&trade(id + 1)) {
                Ok(_) => id += 1,
                Err(PublishError::Full { .. }) => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => panic!("{e}"),
            }
            if id.is_multiple_of(256) {
                sent.store(id, Ordering::Release);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        publisher.flush(Durability::Fsync, PATIENCE).unwrap();
        id
    })
}

/// Begins backups of `store` to `backup` and kills them at random moments: what is there after each is whole, and never has
/// fewer records than the one before. Returns the kills, the records of the last whole backup, and the rounds with one.
fn kill_backups(store: &Store, dir: &Path, backup: &Path, rng: &mut SimRng) -> (u64, u64, u64) {
    let (mut killed, mut last, mut whole) = (0, 0, 0);
    for round in 0..count("TAPE_BACKUP_KILLS", 24) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.arg("backup").arg(backup).arg("--store").arg(&store.path).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(250_000)));
        let over = child.try_wait().unwrap().is_some();
        child.kill().ok();
        child.wait().unwrap();
        killed += u64::from(!over);
        if backup.join("BACKUP").exists() {
            whole += 1;
            let (ended, out, error) = code(backup, &["verify", "--json"]);
            assert_eq!(ended, 0, "round {round}: {error}");
            let found = json(&out);
            let records = found["flushed_records"].as_u64().unwrap() + found["records"].as_u64().unwrap();
            assert!(records >= last, "round {round}: a backup of {last} records became one of {records}");
            last = records;
        } else {
            let (ended, _, error) = code(&dir.join("r0"), &["restore", text(backup)]);
            assert!(ended == 2 && error.contains("backup"), "round {round}: {ended} {error}");
        }
    }
    (killed, last, whole)
}

#[test]
fn a_killed_backup_is_the_old_or_the_new_one_and_restores_every_record() {
    let mut rng = SimRng::new(seed());
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    store.start();
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("b");
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let thread = publish_until(&stop, &sent, store.numbered_publisher(1, Durability::Os));
    eventually("some records", || (sent.load(Ordering::Acquire) > 20_000).then_some(()));
    let (killed, mut last, whole) = kill_backups(&store, dir.path(), &backup, &mut rng);
    assert!(killed > 0);
    // Several complete backups: each reuses the files of the one before.
    let mut reused = 0;
    for _ in 0..3 {
        let least = sent.load(Ordering::Acquire).saturating_sub(200_000);
        let summary = json(&store.tape_ok(&["backup", text(&backup), "--json"]));
        let made = summary["last_lsn"].as_u64().unwrap();
        assert!(made >= last && made >= least.min(made), "{summary}");
        (last, reused) = (made, reused.max(summary["reused"].as_u64().unwrap()));
    }
    stop.store(true, Ordering::Release);
    let all = thread.join().unwrap();
    let summary = json(&store.tape_ok(&["backup", text(&backup), "--json"]));
    assert_eq!(summary["last_lsn"].as_u64(), Some(all), "every durable record");
    assert!(summary["reused"].as_u64().unwrap() > 0 || reused > 0 || all < 150_000, "{summary}");
    println!("{killed} kills, {whole} rounds with a complete backup; {all} records, {summary}");
    assert!(!dir.path().join("b.unfinished").exists());
    // The store and its copy run at the same time.
    let mut copy = Store::new(&["--memtable-size", "16M"]);
    copy.tape_ok(&["restore", text(&backup)]);
    copy.start();
    assert_eq!((verify_all(&copy), verify_all(&store)), (all, all));
    assert_ne!(copy.run_dir().path(), store.run_dir().path());
    assert!(copy.reader().control().timeline() > store.reader().control().timeline());
    let mut publisher = copy.numbered_publisher(1, Durability::Fsync);
    publish(&mut publisher, 1, 10);
    assert_eq!(copy.reader().snapshot(At::Durable).unwrap().last(), Lsn(all + 10));
    assert_eq!(store.reader().snapshot(At::Durable).unwrap().last(), Lsn(all));
    copy.tape_ok(&["verify"]);
    // A backup of a stopped store works; a restore never overwrites.
    assert!(store.terminate().success());
    assert_eq!(json(&store.tape_ok(&["backup", text(&backup), "--json"]))["last_lsn"].as_u64(), Some(all));
    let (ended, _, error) = code(&copy.path, &["restore", text(&backup)]);
    assert!(ended == 2 && error.contains("not empty"), "{ended} {error}");
    let (ended, _, error) = code(&copy.path, &["backup", text(&backup)]);
    assert_eq!(ended, 0, "the restored store continues its backup: {error}");
    let (ended, _, error) = code(&store.path, &["backup", text(&backup)]);
    assert!(ended == 2 && error.contains("timeline"), "the original store cannot continue it: {ended} {error}");
}

#[test]
fn a_publisher_and_a_reader_ahead_of_a_restored_store_are_notified() {
    let mut store = Store::serve();
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("b");
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    publish(&mut publisher, 1, 1000);
    store.tape_ok(&["backup", text(&backup)]);
    publish(&mut publisher, 1001, 1500);
    let mut follow = store.reader().follow(Lsn(1), At::Appended);
    for _ in 0..1500 {
        eventually("a record", || follow.poll().unwrap().map(|r| r.lsn));
    }
    store.kill();
    std::fs::remove_dir_all(&store.path).unwrap();
    store.tape_ok(&["restore", text(&backup)]);
    store.start();
    publish(&mut publisher, 1501, 1600);
    let lost = publisher.take_lost();
    assert_eq!(lost.iter().map(|l| (l.epoch.0, l.first.0, l.last.0)).collect::<Vec<_>>(), [(1, 1001, 1500)]);
    let mut snapshot = store.reader().snapshot(At::Durable).unwrap();
    let (mut ids, mut gaps) = (Vec::new(), 0);
    for lsn in 1..=snapshot.last().0 {
        let row = snapshot.get(Lsn(lsn)).unwrap().unwrap();
        match (row.record.get::<Trade>(), row.record.get::<Gap>()) {
            (Some(trade), _) => ids.push(trade.trade_id),
            (None, Some(gap)) => {
                assert_eq!((gap.first_pub_seq, gap.last_pub_seq), (PubSeq(1001), PubSeq(1500)));
                gaps += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(ids.iter().copied().eq((1..=1000).chain(1501..=1600)) && gaps == 1, "{} records, {gaps} gaps", ids.len());
    // `Withdrawn` is reported once; the reader continues from there.
    let first = eventually("the withdrawal", || match follow.poll() {
        Err(Error::Withdrawn { first }) => Some(first),
        Err(e) => {
            assert!(crate::fixture::is_down(&e), "{e}");
            None
        }
        Ok(row) => {
            assert!(row.is_none(), "a record of the new timeline comes before the withdrawal of the old ones");
            None
        }
    });
    assert!(first <= Lsn(1001), "{first}");
}

/// Flips a bit in the log's frame whose first record is `lsn`, at the position from `tape inspect wal`.
fn damage_log(store: &Store, lsn: u64) -> PathBuf {
    let frames = store.tape_ok(&["inspect", "wal", "--frames", "--json"]);
    let frame = frames.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let frame = frame.into_iter().find(|f| f["type"] == "Data" && f["first_lsn"] == lsn).unwrap();
    let (position, size) = (frame["position"].as_u64().unwrap(), 1u64 << 20);
    let path = store.path.join("wal").join(format!("{:016x}.wal", position / size * size));
    flip(&path, position % size + 120);
    path
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    // Writes a new file: a backup's hard link keeps the old one.
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_below_the_durable_mark_is_refused_and_the_repair_loses_what_it_named() {
    let mut store = Store::new(&["--memtable-size", "64M", "--segment-size", "1M"]);
    store.start();
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    for batch in 0..40u64 {
        publish(&mut publisher, batch * 1000 + 1, batch * 1000 + 1000);
    }
    drop(publisher);
    store.kill();
    damage_log(&store, 20_001);
    let start = Command::new(env!("CARGO_BIN_EXE_tape-storage")).arg("--store").arg(&store.path).output().unwrap();
    let message = String::from_utf8_lossy(&start.stderr).into_owned();
    assert_eq!(start.status.code(), Some(65), "{message}");
    assert!(message.trim_end().ends_with(&format!("tape repair --store {}", text(&store.path))), "{message}");
    let (ended, out, error) = code(&store.path, &["repair"]);
    assert!(ended == 65 && out.contains("20001 to 40000"), "{ended} {out} {error}");
    assert!(error.contains("tape repair --truncate-at 20001 --i-accept-loss"), "{error}");
    let (ended, out, error) = code(&store.path, &["repair", "--truncate-at", "20001", "--json"]);
    assert!(ended == 2 && error.contains("nothing was changed"), "{ended} {error}");
    let loss = json(&out)["loss"].clone();
    assert_eq!((loss["first_lsn"].as_u64(), loss["last_lsn"].as_u64()), (Some(20_001), Some(40_000)));
    let start = Command::new(env!("CARGO_BIN_EXE_tape-storage")).arg("--store").arg(&store.path).output().unwrap();
    assert_eq!(start.status.code(), Some(65), "nothing was changed");
    let (ended, out, error) = code(&store.path, &["repair", "--truncate-at", "20001", "--i-accept-loss", "--json"]);
    assert_eq!(ended, 0, "{error}");
    let done = json(&out);
    assert_eq!(done["loss"], loss);
    let publishers = done["loss"]["publishers"].as_array().unwrap();
    assert_eq!((publishers.len(), publishers[0]["last"].as_u64()), (1, Some(40_000)));
    assert!(Path::new(done["kept_in"].as_str().unwrap()).join("what.txt").exists());
    store.start();
    assert_eq!(verify_all(&store), 20_000);
    let (ended, _, error) = code(&store.path, &["repair", "--truncate-at", "10001", "--i-accept-loss"]);
    assert!(ended == 75 && error.contains("served"), "a served store is not repaired: {ended} {error}");
    assert_eq!(code(&store.path, &["repair"]).0, 0, "no damage is left");
    // The store accepts records; those after the truncation have a new epoch.
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    publish(&mut publisher, 1, 100);
    assert_eq!(store.reader().snapshot(At::Durable).unwrap().last(), Lsn(20_100));
    store.tape_ok(&["verify"]);
}

#[test]
fn sstables_are_repaired_from_a_backup_while_storage_serves() {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    store.start();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    let files = store.path.join("sst");
    let mut last = 0;
    while std::fs::read_dir(&files).unwrap().count() < 2 {
        publish(&mut publisher, last + 1, last + 20_000);
        last += 20_000;
    }
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("b");
    let summary = json(&store.tape_ok(&["backup", text(&backup), "--copy", "--json"]));
    assert!(summary["copied"].as_u64().unwrap() >= 2 && summary["linked"] == 0, "{summary}");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(backup.join("sst")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let ours = |path: &PathBuf| files.join(path.file_name().unwrap());
    flip(&ours(&paths[0]), 5000);
    std::fs::remove_file(ours(&paths[1])).unwrap();
    let (ended, out, error) = code(&store.path, &["repair"]);
    assert!(ended == 65 && error.contains("tape repair --from BACKUP"), "{ended} {out} {error}");
    let healed = json(&store.tape_ok(&["repair", "--from", text(&backup), "--json"]));
    assert_eq!((healed["healed"].as_array().unwrap().len(), healed["left"].as_array().unwrap().len()), (2, 0));
    assert_eq!(code(&store.path, &["repair"]).0, 0);
    assert_eq!(std::fs::read_dir(store.path.join("lost")).unwrap().count(), 1);
    assert_eq!(verify_all(&store), last);
    assert!(store.terminate().success());
    store.start();
    assert_eq!(verify_all(&store), last);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "moves a directory, publishes no file")]
fn a_start_frees_shared_memory_of_deleted_stores_and_keeps_that_of_live_ones() {
    let mut gone = Store::serve();
    publish(&mut gone.numbered_publisher(1, Durability::Fsync), 1, 100);
    let run = gone.run_dir();
    assert!(gone.terminate().success());
    // Two running stores: one intact, one whose directory is moved away.
    let live = Store::serve();
    publish(&mut live.numbered_publisher(1, Durability::Fsync), 1, 100);
    let mut headless = Store::serve();
    let theirs = headless.run_dir();
    let stopped = {
        let mut stopped = Store::serve();
        publish(&mut stopped.numbered_publisher(1, Durability::Fsync), 1, 100);
        stopped.kill();
        stopped
    };
    std::fs::remove_dir_all(&gone.path).unwrap();
    std::fs::rename(&headless.path, headless.path.with_extension("moved")).unwrap();
    assert!(run.path().exists());
    let mut next = Store::serve();
    assert!(!run.path().exists(), "{} outlives its store", run.path().display());
    assert_eq!(run.bus_segments().unwrap(), Vec::<String>::new());
    assert!(theirs.path().join("control").exists(), "the memory of a live store stays");
    assert_eq!(verify_all(&live), 100);
    publish(&mut live.numbered_publisher(2, Durability::Fsync), 1, 5);
    assert!(stopped.run_dir().path().exists(), "a killed store whose directory exists keeps its control page");
    std::fs::rename(headless.path.with_extension("moved"), &headless.path).unwrap();
    headless.kill();
    next.kill();
    assert_eq!(RunDir::find(&headless.path).unwrap(), theirs);
}

#[test]
fn an_epoch_from_before_a_restore_is_fenced_by_the_same_epoch_after_it() {
    let mut store = Store::serve();
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("b");
    store.tape_ok(&["backup", text(&backup)]);
    let mut before = crate::fixture::role("publisher", &store.path, &[("TAPE_ROLE_PUBLISHER", "1".to_owned())]);
    eventually("its records", || {
        let found = store.reader().snapshot(At::Appended).ok()?;
        (found.last().0 > 10).then_some(())
    });
    crate::fixture::signal(before.id(), rustix::process::Signal::STOP);
    store.kill();
    std::fs::remove_dir_all(&store.path).unwrap();
    store.tape_ok(&["restore", text(&backup)]);
    store.start();
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    assert_eq!(publisher.progress().epoch.0, 1, "the restored store has no epoch of the other process");
    publish(&mut publisher, 1, 100);
    crate::fixture::signal(before.id(), rustix::process::Signal::CONT);
    assert!(!before.wait().unwrap().success(), "the earlier process is not fenced");
    publish(&mut publisher, 101, 200);
    assert_eq!(verify_all(&store), 200);
}
