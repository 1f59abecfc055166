//! Unreadable pages, full shared memory, and unlinked but mapped files: errors, and no signals.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::{At, Reader, Snapshot, TimeRange};
use tapestore::record::Trade;
use tapestore::subscriber::{Event, Subscriber};

use crate::fixture::{PATIENCE, Store, eventually, finish, is_down, register, role, signal};
use crate::history::{publish, record, small};

fn trade(id: u64) -> Trade {
    Trade { trade_id: id, instrument: InstrumentId(1), ..Trade::default() }
}

fn wait_for(path: &Path) {
    eventually("the other side", || path.exists().then_some(()));
}

/// Whether `error` reports an unreadable page or damage.
fn is_bad(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::Corrupt { .. })
}

#[test]
fn files_truncated_under_a_reader_are_errors_and_not_signals() {
    let mut store = small();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&mut publisher, 1, 300_000);
    publisher.close(PATIENCE).unwrap();
    assert!(store.terminate().success());
    let (ready, go) = (store.path.with_file_name("ready"), store.path.with_file_name("go"));
    let paths = [("TAPE_ROLE_READY", ready.display().to_string()), ("TAPE_ROLE_GO", go.display().to_string())];
    let child = role("truncated-files", &store.path, &paths);
    wait_for(&ready);
    for entry in std::fs::read_dir(store.path.join("sst")).unwrap().flatten() {
        let file = std::fs::File::options().write(true).open(entry.path()).unwrap();
        file.set_len(entry.metadata().unwrap().len() / 2).unwrap();
    }
    std::fs::write(&go, "").unwrap();
    finish(child);
}

/// Reads the columns of every kind; returns the errors that ended a read.
fn column_errors(snapshot: &Snapshot) -> Vec<Error> {
    let mut errors = Vec::new();
    for kind in snapshot.history().kinds() {
        let mut columns = snapshot.columns(kind, None, TimeRange::ALL).unwrap();
        loop {
            match columns.next() {
                Ok(Some(batch)) => assert!(batch.lsns().len() == batch.rows()),
                Ok(None) => break,
                Err(e) => {
                    errors.push(e);
                    break;
                }
            }
        }
    }
    errors
}

/// Reads everything, waits until the files are truncated and reads again: each row is right or an error.
pub(crate) fn read_truncated_files(store: &Path) {
    tapestore::guard_pages().unwrap();
    let mut reader = Reader::open(store).unwrap();
    let mut snapshot = reader.snapshot(At::Flushed).unwrap();
    let last = snapshot.history().covered().0;
    let all = snapshot.series().unwrap();
    let check = |lsn: Lsn, words: &[u64]| {
        let (expected, len) = record(lsn.0);
        assert_eq!(words, &expected[..len], "record {lsn}");
    };
    let mut round = |is_truncated: bool| {
        let (mut errors, mut rows) = (0, 0);
        let mut note = |e: Error| {
            assert!(is_truncated && is_bad(&e), "{e}");
            errors += 1;
        };
        for lsn in (1..=last).step_by(if is_truncated { 1009 } else { 7 }) {
            match snapshot.get(Lsn(lsn)) {
                Ok(Some(row)) => check(row.lsn, row.record.words()),
                Ok(None) => panic!("record {lsn} is missing without an error"),
                Err(e) => note(e),
            }
        }
        let mut replay = snapshot.replay(&all, TimeRange::ALL);
        loop {
            match replay.next() {
                Ok(Some(row)) => {
                    check(row.lsn, row.record.words());
                    rows += 1;
                }
                Ok(None) => break,
                Err(e) => {
                    note(e);
                    break;
                }
            }
        }
        column_errors(&snapshot).into_iter().for_each(&mut note);
        snapshot.release();
        (errors, rows)
    };
    let (errors, rows) = round(false);
    assert!(errors == 0 && rows > 0 && rows == last);
    let mut follow = Reader::open(store).unwrap().follow(Lsn(1), At::Flushed);
    assert!(follow.poll().unwrap().is_some());
    std::fs::write(std::env::var("TAPE_ROLE_READY").unwrap(), "").unwrap();
    wait_for(Path::new(&std::env::var("TAPE_ROLE_GO").unwrap()));
    let (errors, _) = round(true);
    assert!(errors > 10, "{errors} errors");
    // A follow returns the rows that it had read before, then the error.
    let error = loop {
        match follow.poll() {
            Ok(Some(row)) => check(row.lsn, row.record.words()),
            Ok(None) => panic!("the follow waits for rows that it cannot read"),
            Err(e) => break e,
        }
    };
    assert!(is_bad(&error) || is_down(&error), "{error}");
    let opened = reader.snapshot(At::Committed).map(drop);
    assert!(opened.as_ref().is_err_and(is_bad), "truncated files must not open again: {opened:?}");
}

/// Starts this program in the role "small-memory" with its own `/dev/shm` of `mebibytes` MiB; prints why and returns `None` if
/// it cannot be mounted.
fn with_memory(mebibytes: u64, publishers: u64) -> Option<(Child, tempfile::TempDir)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small /dev/shm is a mount, which needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={mebibytes}m tapetest /dev/shm");
    let can = Command::new("unshare").args(["-m", "sh", "-c", &mount]).stderr(Stdio::null()).status();
    if !can.is_ok_and(|s| s.success()) {
        eprintln!("skipped: nothing can be mounted here");
        return None;
    }
    let line = format!("{mount} && exec \"$0\" roles::play --exact --nocapture");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &line]).arg(std::env::current_exe().unwrap());
    command.env("TAPE_ROLE", "small-memory").env("TAPE_ROLE_STORE", dir.path().join("store"));
    command.env("TAPE_ROLE_PUBLISHERS", publishers.to_string()).stdin(Stdio::null());
    Some((command.spawn().unwrap(), dir))
}

fn ends_well(mut child: Child) {
    let status = eventually("the end of the process with little memory", || child.try_wait().unwrap());
    assert_eq!(status.signal(), None, "it ended by a signal");
    assert!(status.success(), "{status}");
}

#[test]
fn a_publisher_in_64_mib_of_shared_memory_publishes_while_it_is_full() {
    let Some((child, _dir)) = with_memory(64, 1) else { return };
    ends_well(child);
}

#[test]
fn four_publishers_in_256_mib_of_shared_memory_publish_while_it_is_full() {
    let Some((child, _dir)) = with_memory(256, 4) else { return };
    ends_well(child);
}

/// Fills the rest of shared memory; returns the file that holds it.
fn fill() -> &'static Path {
    use std::io::Write;
    let path = Path::new("/dev/shm/filler");
    let mut file = std::fs::File::create(path).unwrap();
    for len in [1 << 16, 4096] {
        while file.write_all(&vec![1; len]).is_ok() {}
    }
    path
}

fn receive(subscriber: &mut Subscriber, upto: u64, publishers: u64) {
    let (mut seen, deadline) = (0, Instant::now() + PATIENCE);
    while seen < publishers {
        match subscriber.poll().unwrap() {
            Some(Event::Record { pub_seq, .. }) => seen += u64::from(pub_seq.0 == upto),
            Some(other) => panic!("{other:?}"),
            None => {
                assert!(Instant::now() < deadline, "record {upto} arrives live from only {seen} publishers");
                subscriber.wait(Duration::from_millis(20));
            }
        }
    }
}

/// Publishes with free memory, with none left, and with memory free again.
pub(crate) fn small_memory(dir: &Path) {
    tapestore::guard_pages().unwrap();
    let publishers: u64 = std::env::var("TAPE_ROLE_PUBLISHERS").unwrap().parse().unwrap();
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    assert!(!dir.exists());
    store.start();
    let mut subscriber = Subscriber::open(&store.path).unwrap();
    let open = |id: u16| {
        let timeout = Duration::from_millis(500);
        let options = Options { durability: Durability::Os, open_timeout: timeout, ..Options::new(&store.path, PublisherId(id)) };
        Publisher::open(options).inspect(register)
    };
    let mut all: Vec<Publisher> = (1..=publishers).map(|id| open(id as u16).unwrap()).collect();
    let publish = |all: &mut [Publisher], from: u64, to: u64| {
        for id in from..=to {
            all.iter_mut().for_each(|p| assert_eq!(p.publish(&trade(id)).unwrap().0, id));
        }
    };
    publish(&mut all, 1, 100);
    receive(&mut subscriber, 100, publishers);
    let filler = fill();
    // As many batches wait as the ring holds: each uses memory that was not used before.
    signal(store.pid(), rustix::process::Signal::STOP);
    publish(&mut all, 101, 2_100);
    signal(store.pid(), rustix::process::Signal::CONT);
    publish(&mut all, 2_101, 4_000);
    for publisher in &mut all {
        assert_eq!(publisher.flush(Durability::Os, PATIENCE).unwrap().accepted.0, 4_000);
    }
    receive(&mut subscriber, 4_000, publishers);
    // A new publisher gets an error.
    let refused = open(99).err().unwrap();
    let why = refused.to_string();
    // From storage, which checks first, or from the publisher's own attempt.
    assert!(why.contains("0 bytes free") && (why.contains("df -h /dev/shm") || why.contains("free some there")), "{why}");
    std::fs::remove_file(filler).unwrap();
    let mut late = open(99).unwrap();
    late.publish(&trade(1)).unwrap();
    assert_eq!(late.flush(Durability::Os, PATIENCE).unwrap().accepted.0, 1);
    assert!(store.terminate().success());
}

/// Unlinked files of `store` that this process still maps.
fn gone(store: &Store) -> Vec<String> {
    let dirs = [store.path.display().to_string(), store.run_dir().path().display().to_string()];
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_gone = |line: &&str| line.ends_with(" (deleted)") && dirs.iter().any(|d| line.contains(d.as_str()));
    maps.lines().filter(is_gone).map(str::to_owned).collect()
}

#[test]
fn a_waiting_follow_unmaps_what_storage_unlinked() {
    let mut store = small();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&mut publisher, 1, 20_000);
    publisher.close(PATIENCE).unwrap();
    let mut follow = store.reader().follow(Lsn(1), At::Appended);
    for lsn in 1..=20_000 {
        let found = eventually("the record", || follow.poll().unwrap().map(|row| row.lsn));
        assert_eq!(found, Lsn(lsn));
    }
    assert!(follow.poll().unwrap().is_none());
    // The end of the instance unlinks the MemTable that was read.
    assert!(store.terminate().success());
    store.start();
    eventually("the unmap of unlinked files", || {
        match follow.poll() {
            Ok(row) => assert!(row.is_none()),
            Err(e) => assert!(is_down(&e), "{e}"),
        }
        gone(&store).is_empty().then_some(())
    });
    let mut publisher = store.numbered_publisher(2, Durability::Os);
    publish(&mut publisher, 1, 1);
    assert_eq!(eventually("the next record", || follow.poll().unwrap().map(|row| row.lsn)), Lsn(20_001));
}

#[test]
fn a_subscriber_unmaps_the_store_after_healing() {
    let mut store = small();
    let mut subscriber = Subscriber::open(&store.path).unwrap();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    let mut receive = |upto: u64| {
        eventually("the record", || match subscriber.poll().unwrap() {
            Some(Event::Record { pub_seq, .. }) => (pub_seq.0 == upto).then_some(()),
            Some(other) => panic!("{other:?}"),
            None => None,
        });
    };
    publisher.publish(&trade(1)).unwrap();
    receive(1);
    // More batches than the bus buffers for a subscriber that does not poll.
    for id in 2..=5_000 {
        publisher.publish(&trade(id)).unwrap();
    }
    publisher.close(PATIENCE).unwrap();
    receive(5_000);
    assert!(subscriber.healed() > 0);
    assert!(store.terminate().success());
    store.start();
    eventually("the unmap of unlinked files", || {
        assert!(subscriber.poll().unwrap().is_none());
        gone(&store).is_empty().then_some(())
    });
}
