//! Owns: the roles of this program when a test starts it as another process.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::{At, Reader};
use tapestore::record::Trade;
use tapestore::subscriber::{Event, Subscriber};
use tapestore::time::{Clock, HostClock};

use crate::fixture::{PATIENCE, register};

/// Records of one publisher that a following reader received.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) count: u64,
    pub(crate) checksum: u32,
    /// Switches from another publisher to this one.
    pub(crate) turns: u64,
}

/// The report of a reader or subscriber.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) publishers: HashMap<u16, Seen>,
    pub(crate) healed: u64,
    pub(crate) gaps: u64,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn number(name: &str) -> u64 {
    variable(name).parse().unwrap()
}

fn write(report: &Report) {
    let mut file = std::fs::File::create(variable("TAPE_ROLE_OUT")).unwrap();
    file.write_all(serde_json::to_string(report).unwrap().as_bytes()).unwrap();
}

pub(crate) fn read(path: &std::path::Path) -> Report {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Entry point of the tests' other processes; no test by itself.
#[test]
fn play() {
    let Ok(role) = std::env::var("TAPE_ROLE") else { return };
    let store = PathBuf::from(variable("TAPE_ROLE_STORE"));
    match role.as_str() {
        "reader" => reader(&store),
        "subscriber" => subscriber(&store),
        "publisher" => publisher(&store),
        "wanderer" => wanderer(&store),
        "forker" => forker(&store),
        "crowded" => crate::maps::crowded(&store),
        "panics" => crate::logs::panic_in_json(),
        "holder" => crate::small_shm::hold(&store),
        "truncated-files" => crate::pages::read_truncated_files(&store),
        "small-memory" => crate::pages::small_memory(&store),
        other => panic!("{other}"),
    }
}

/// Follows from the first record up to the target count and checks the order.
fn reader(store: &std::path::Path) {
    let target = number("TAPE_ROLE_COUNT");
    let mut follow = Reader::open(store).unwrap().follow(Lsn(1), At::Appended);
    let mut report = Report::default();
    let (mut next, mut expected, mut last) = (1u64, HashMap::<u16, u64>::new(), 0u16);
    let deadline = Instant::now() + PATIENCE;
    while next <= target {
        let (lsn, words) = match follow.poll().unwrap() {
            Some(row) => (row.lsn, row.record.words().to_vec()),
            None => {
                assert!(Instant::now() < deadline, "record {next} of {target} does not arrive");
                follow.wait(Duration::from_millis(20));
                continue;
            }
        };
        assert_eq!(lsn, Lsn(next), "LSNs are dense");
        next += 1;
        let arrival = follow.arrival().unwrap().unwrap();
        assert_eq!(arrival.lsn, lsn);
        let publisher = arrival.publisher.0;
        let due = expected.entry(publisher).or_insert(1);
        assert_eq!(arrival.pub_seq.0, *due, "a publisher's order is kept across kinds");
        *due += 1;
        let seen = report.publishers.entry(publisher).or_default();
        seen.count += 1;
        for word in words {
            seen.checksum = crc32c::crc32c_append(seen.checksum, &word.to_le_bytes());
        }
        seen.turns += u64::from(last != publisher);
        last = publisher;
    }
    write(&report);
}

/// Receives live up to the target count, with a pause in which the bus overflows.
fn subscriber(store: &std::path::Path) {
    let (target, pause_at) = (number("TAPE_ROLE_COUNT"), number("TAPE_ROLE_PAUSE_AT"));
    let mut subscriber = Subscriber::open(store).unwrap();
    std::fs::write(variable("TAPE_ROLE_READY"), "").unwrap();
    let (mut report, mut next, mut total) = (Report::default(), HashMap::<u16, u64>::new(), 0u64);
    let deadline = Instant::now() + PATIENCE;
    while total < target {
        match subscriber.poll().unwrap() {
            Some(Event::Record { publisher, pub_seq, record, healed, .. }) => {
                let due = next.entry(publisher.0).or_insert(pub_seq.0);
                assert_eq!(pub_seq.0, *due, "in order, each once");
                *due += 1;
                total += 1;
                report.healed += u64::from(healed);
                assert_eq!(record.get::<Trade>().unwrap().trade_id, pub_seq.0);
                report.publishers.entry(publisher.0).or_default().count += 1;
                if total == pause_at {
                    std::thread::sleep(Duration::from_millis(400));
                }
            }
            Some(Event::Gap { .. } | Event::Reopened { .. }) => report.gaps += 1,
            None => {
                assert!(Instant::now() < deadline, "{total} of {target} arrived");
                subscriber.wait(Duration::from_millis(20));
            }
        }
    }
    write(&report);
}

/// Publishes until it is killed.
fn publisher(store: &std::path::Path) {
    let id = number("TAPE_ROLE_PUBLISHER") as u16;
    let mut publisher = Publisher::open(Options { durability: Durability::Os, ..Options::new(store, PublisherId(id)) }).unwrap();
    register(&publisher);
    let mut seq = 0u64;
    loop {
        seq += 1;
        let trade = Trade { trade_id: seq, instrument: InstrumentId(1), ts_recv: HostClock.wall(), ..Trade::default() };
        match publisher.publish(&trade) {
            Ok(_) => {}
            Err(tapestore::publisher::PublishError::Full { .. }) => seq -= 1,
            Err(e) => panic!("{e}"),
        }
        if seq.is_multiple_of(100) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn trade(trade_id: u64) -> Trade {
    Trade { trade_id, instrument: InstrumentId(1), ts_recv: HostClock.wall(), ..Trade::default() }
}

fn publish(publisher: &mut Publisher, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        publisher.publish(&trade(id)).unwrap();
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

/// Opens the store by a relative path, changes the directory, and continues while storage is killed and restarted.
fn wanderer(store: &std::path::Path) {
    std::env::set_current_dir(store.parent().unwrap()).unwrap();
    let relative = PathBuf::from(store.file_name().unwrap());
    let mut publisher = Publisher::open(Options::new(&relative, PublisherId(20))).unwrap();
    register(&publisher);
    let mut reader = Reader::open(&relative).unwrap();
    let mut subscriber = Subscriber::open(&relative).unwrap();
    std::env::set_current_dir("/").unwrap();
    publish(&mut publisher, 1..=100);
    assert_eq!(reader.snapshot(At::Durable).unwrap().last(), Lsn(100));
    std::fs::write(variable("TAPE_ROLE_READY"), "").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while publisher.progress().reattached == 0 {
        assert!(Instant::now() < deadline, "the publisher does not reattach");
        std::thread::sleep(Duration::from_millis(5));
    }
    publish(&mut publisher, 101..=200);
    publisher.instrument(&"A".parse().unwrap()).unwrap();
    // After a rejoin of the bus, the subscriber detects missed records by the next one that arrives.
    let (mut arrived, mut last) = (0, 200);
    while arrived < last {
        assert!(Instant::now() < deadline, "{arrived} of {last} arrived");
        match subscriber.poll().unwrap() {
            Some(Event::Record { .. }) => arrived += 1,
            Some(other) => panic!("{other:?}"),
            None if arrived <= 200 && last < 300 => {
                std::thread::sleep(Duration::from_millis(50));
                last += 1;
                publish(&mut publisher, last..=last);
            }
            None => std::thread::yield_now(),
        }
    }
    loop {
        match reader.snapshot(At::Durable) {
            Ok(snapshot) if snapshot.last() == Lsn(last) => break,
            Ok(_) | Err(tapestore::error::Error::StorageDown { .. }) => assert!(Instant::now() < deadline),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Forks while it publishes: inherited handles are refused in the child, except a reader; the child opens its own.
fn forker(store: &std::path::Path) {
    let mut publisher = Publisher::open(Options::new(store, PublisherId(21))).unwrap();
    register(&publisher);
    let mut subscriber = Subscriber::open(store).unwrap();
    let mut reader = Reader::open(store).unwrap();
    publish(&mut publisher, 1..=100);
    // SAFETY: the child continues with one thread, which holds no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forked(store, publisher, subscriber, reader)));
        // SAFETY: the process ends here, without the parent's exit handlers.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    publish(&mut publisher, 101..=200);
    let mut status = 0;
    // SAFETY: `child` is this process's child; `status` is a local of this function.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
    // The child's drops released nothing of the parent.
    publish(&mut publisher, 201..=300);
    assert_eq!(publisher.progress().reattached, 0);
    let (deadline, mut arrived) = (Instant::now() + PATIENCE, 0);
    while arrived < 300 {
        assert!(Instant::now() < deadline, "{arrived} of 300 arrived");
        match subscriber.poll().unwrap() {
            Some(Event::Record { publisher, .. }) => arrived += u64::from(publisher.0 == 21),
            Some(other) => panic!("{other:?}"),
            None => std::thread::yield_now(),
        }
    }
    assert!(reader.snapshot(At::Durable).unwrap().last() >= Lsn(400));
}

fn forked(store: &std::path::Path, mut publisher: Publisher, mut subscriber: Subscriber, mut reader: Reader) {
    use tapestore::error::Error;
    use tapestore::publisher::PublishError;

    let parent = std::os::unix::process::parent_id();
    let is_forked = |e: &Error| matches!(e, Error::Forked { pid, .. } if *pid == parent);
    for _ in 0..10 {
        assert!(matches!(publisher.publish(&trade(101)), Err(PublishError::Forked { pid, .. }) if pid == parent));
    }
    assert!(matches!(publisher.flush(Durability::Fsync, PATIENCE), Err(PublishError::Forked { .. })));
    assert!(is_forked(&publisher.instrument(&"B".parse().unwrap()).unwrap_err()));
    publisher.send();
    assert_eq!((publisher.progress(), publisher.outstanding(), publisher.take_lost()), Default::default());
    assert!(is_forked(&subscriber.poll().unwrap_err()));
    subscriber.wait(Duration::from_millis(1));
    assert!(reader.snapshot(At::Durable).unwrap().last() >= Lsn(100), "it only reads");
    let mut own = Publisher::open(Options::new(store, PublisherId(22))).unwrap();
    publish(&mut own, 1..=100);
    assert!(matches!(publisher.close(PATIENCE), Err(PublishError::Forked { .. })));
    drop((subscriber, reader));
    own.close(PATIENCE).unwrap();
}
