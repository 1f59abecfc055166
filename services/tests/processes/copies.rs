//! Copied and moved store directories: each has its own run directory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tapestore::error::Error;
use tapestore::lsn::{Durability, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::{At, Reader};
use tapestore::record::Trade;
use tapestore::shm::run_dir::RunDir;
use tapestore::subscriber::{Event, Subscriber};

use crate::fixture::{PATIENCE, Store, eventually, finish, is_down, role, tape};

fn publish(publisher: &mut Publisher, count: u64) {
    let instrument = publisher.instrument(&"X:1".parse().unwrap()).unwrap();
    for trade_id in 1..=count {
        publisher.publish(&Trade { trade_id, instrument, ..Trade::default() }).unwrap();
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

fn stored(store: &Path) -> u64 {
    Reader::open(store).unwrap().snapshot(At::Durable).unwrap().last().0
}

/// Copies the directory as an operator would: with links, times and owner.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Checks that every way into the store at `path` reports a missing storage process.
fn assert_not_served(path: &Path) {
    let options = Options { open_timeout: Duration::ZERO, ..Options::new(path, PublisherId(7)) };
    for error in [
        Publisher::open(options).map(|_| ()).unwrap_err(),
        Subscriber::open(path).map(|_| ()).unwrap_err(),
        RunDir::find(path).map(|_| ()).unwrap_err(),
    ] {
        assert!(is_down(&error) && error.to_string().contains("another directory"), "{error}");
    }
    assert!(Reader::open(path).unwrap().is_at_rest());
    for arguments in [&["status"][..], &["tail", "--idle-ms", "10000"], &["publish", "--sim", "--records", "777"]] {
        let output = tape(path, arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(69) && message.contains("no storage process serves"), "{arguments:?}: {message}");
    }
}

#[test]
fn a_copy_of_a_store_is_no_alias_of_it_and_is_served_beside_it() {
    let original = Store::serve();
    let mut publisher = original.publisher(1, Durability::Fsync);
    publish(&mut publisher, 100);
    let mut second = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    copy(&original.path, &second.path);
    assert_not_served(&second.path);
    let verified = second.tape_ok(&["verify"]);
    assert!(verified.contains("no storage process serves the store"), "{verified}");
    assert_eq!(stored(&original.path), 100, "records published to the copy are in the original");
    second.start();
    assert_ne!(second.run_dir().path(), original.run_dir().path());
    publish(&mut second.publisher(1, Durability::Fsync), 11);
    publish(&mut publisher, 5);
    assert_eq!((stored(&original.path), stored(&second.path)), (105, 111));
    second.tape_ok(&["verify"]);
    original.tape_ok(&["verify"]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "directories are moved, not files published")]
fn a_moved_or_copied_back_store_is_served_once_storage_has_started_there() {
    let mut store = Store::serve();
    publish(&mut store.publisher(1, Durability::Fsync), 100);
    assert!(store.terminate().success());
    let run_dir = store.run_dir();
    // Renamed: the same directory, with the same run directory.
    let elsewhere = store.path.with_extension("moved");
    std::fs::rename(&store.path, &elsewhere).unwrap();
    assert_eq!(RunDir::find(&elsewhere).unwrap(), run_dir);
    // Moved to another file system or copied back: another directory.
    copy(&elsewhere, &store.path);
    std::fs::remove_dir_all(&elsewhere).unwrap();
    assert_not_served(&store.path);
    store.start();
    assert_ne!(store.run_dir(), run_dir);
    assert_eq!(stored(&store.path), 100);
    publish(&mut store.publisher(2, Durability::Fsync), 10);
    assert_eq!(store.reader().snapshot(At::Durable).unwrap().last(), Lsn(110));
    assert!(!run_dir.path().exists(), "the old run directory is left behind");
}

#[test]
fn an_unreadable_path_is_an_io_error_and_not_a_missing_store() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Reader::open(&file.path().join("store")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_backup_is_never_written_to_and_every_command_names_the_restore() {
    let mut store = Store::serve();
    publish(&mut store.publisher(1, Durability::Fsync), 100);
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("b");
    let name = backup.to_str().unwrap();
    store.tape_ok(&["backup", name]);
    for arguments in [
        &["publish", "--sim", "--records", "1"][..],
        &["compact"],
        &["retention", "--kind", "trade", "--keep", "1d"],
        &["repair", "--from", name],
        &["repair", "--truncate-at", "50", "--i-accept-loss"],
        &["cluster", "init", "--cluster", "c", "--node", "1", "--members", "1=127.0.0.1:1"],
        &["cluster", "status"],
        &["storage"],
    ] {
        let output = tape(&backup, arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        let is_right = message.contains(&format!("tape restore {name} --store")) && !message.contains("tape-storage");
        assert!(is_right, "{arguments:?}: {message}");
    }
    let status = tape(&backup, &["status"]);
    let message = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(status.status.code() == Some(69) && message.contains(&format!("tape restore {name} --store")), "{message}");
    // Reading commands work, and the next backup still succeeds.
    let read = [&["symbols"][..], &["kinds"], &["follow", "--once"], &["get", "1"], &["asof", "X:1", "trade"]];
    for arguments in read.into_iter().chain([&["verify"][..], &["repair"], &["inspect", "wal"], &["inspect", "manifest"]]) {
        let output = tape(&backup, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    publish(&mut store.publisher(1, Durability::Fsync), 10);
    store.tape_ok(&["backup", name]);
    // A damaged backup is not repaired in place.
    let segment = std::fs::read_dir(backup.join("wal")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let message = String::from_utf8_lossy(&tape(&backup, &["repair"]).stderr).into_owned();
    assert!(message.contains("tape backup DIRECTORY") && message.contains("rm COPY/BACKUP"), "{message}");
    assert!(store.terminate().success());
}

#[test]
fn a_subscriber_and_a_publisher_move_to_where_the_store_is_served_now() {
    let mut store = Store::serve();
    let mut publisher = store.publisher(1, Durability::Fsync);
    let mut subscriber = Subscriber::open(&store.path).unwrap();
    publish(&mut publisher, 100);
    records(&mut subscriber, 100);
    let dir = tempfile::tempdir().unwrap();
    let (backup, aside) = (dir.path().join("b"), dir.path().join("aside"));
    store.tape_ok(&["backup", backup.to_str().unwrap()]);
    // Moved: the same records on the same timeline.
    assert!(store.terminate().success());
    copy(&store.path, &aside);
    std::fs::remove_dir_all(&store.path).unwrap();
    copy(&aside, &store.path);
    store.start();
    // Publishes before the subscriber polls, and after.
    publish(&mut publisher, 25);
    assert!(reopened(&mut subscriber), "it continues where it was");
    publish(&mut publisher, 25);
    assert!(records(&mut subscriber, 50) >= 25, "missed records are fetched");
    assert!(subscriber.is_storage_alive());
    assert!(publisher.instruments(&["A".parse().unwrap()]).is_ok(), "it finds the new run directory");
    // Restored: fewer records, on another timeline.
    store.kill();
    std::fs::remove_dir_all(&store.path).unwrap();
    store.tape_ok(&["restore", backup.to_str().unwrap()]);
    store.start();
    assert!(!reopened(&mut subscriber), "it is another copy of the store");
    publish(&mut publisher, 20);
    assert_eq!(records(&mut subscriber, 20), 0);
}

/// Polls until `Event::Reopened`; returns whether the subscription continues where it was.
fn reopened(subscriber: &mut Subscriber) -> bool {
    eventually("the reopen event", || match subscriber.poll().unwrap() {
        Some(Event::Reopened { continues, .. }) => Some(continues),
        Some(other) => panic!("{other:?}"),
        None => None,
    })
}

/// Polls until `count` records arrived; returns how many were fetched from the store.
fn records(subscriber: &mut Subscriber, count: u64) -> u64 {
    let mut fetched = 0;
    for _ in 0..count {
        fetched += eventually("a record", || match subscriber.poll().unwrap() {
            Some(Event::Record { healed, .. }) => Some(u64::from(healed)),
            Some(other) => panic!("{other:?}"),
            None => None,
        });
    }
    fetched
}

#[test]
fn a_program_keeps_its_store_across_chdir_and_a_forked_child_is_refused() {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    store.start();
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let wanderer = role("wanderer", &store.path, &[("TAPE_ROLE_READY", ready.to_str().unwrap().to_owned())]);
    eventually("its first records", || ready.exists().then_some(()));
    store.kill();
    store.start();
    finish(wanderer);
    let forker = role("forker", &store.path, &[]);
    finish(forker);
    // Each record of the parent and of the child's own publisher is stored once.
    let mut snapshot = store.reader().snapshot(At::Durable).unwrap();
    let mut seen = std::collections::BTreeMap::<u16, Vec<u64>>::new();
    for lsn in 1..=snapshot.last().0 {
        let publisher = snapshot.arrival(Lsn(lsn)).unwrap().unwrap().publisher.0;
        let id = snapshot.get(Lsn(lsn)).unwrap().unwrap().record.get::<Trade>().unwrap().trade_id;
        seen.entry(publisher).or_default().push(id);
    }
    assert_eq!(seen[&21], (1..=300).collect::<Vec<_>>(), "the parent's");
    assert_eq!(seen[&22], (1..=100).collect::<Vec<_>>(), "the child's own");
}
