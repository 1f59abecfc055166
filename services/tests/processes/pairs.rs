//! Several publishers and readers at the same time.

use std::time::{Duration, Instant};

use tape_services::processes::Process;
use tapestore::bus::attach::{self, Message, Mode};
use tapestore::error::Error;
use tapestore::lsn::{Durability, Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Series, Snapshot, TimeRange};
use tapestore::record::{Quote, Record, Trade};
use tapestore::shm::control::Statistic;
use tapestore::subscriber::{Event, Subscriber};
use tapestore::time::Ts;
use tapestore_formats::input::{Input, Market, Sim};

use crate::fixture::{PATIENCE, Store, eventually, finish, register, role, signal};
use crate::roles;

fn trade(id: u64) -> Trade {
    Trade { trade_id: id, instrument: InstrumentId(1), ts_recv: Ts(1_000 + id), ..Trade::default() }
}

/// Publishes `count` trades numbered from `first`; retries while the ring is full.
fn publish(publisher: &mut Publisher, first: u64, count: u64) {
    let deadline = Instant::now() + PATIENCE;
    for id in first..first + count {
        while let Err(e) = publisher.publish(&trade(id)) {
            assert!(matches!(e, PublishError::Full { .. }) && Instant::now() < deadline, "{e}");
        }
    }
}

/// The checksum of the records of `tape publish --sim`, with the store's instrument ids.
fn expected_checksum(store: &Store, seed: u64, records: u64) -> u32 {
    let mut sim = Sim::new(Market { seed, records, instruments: 50 }).unwrap();
    let mut reader = store.reader();
    let symbols = reader.symbols().unwrap();
    let ids: Vec<u32> = sim.names().iter().map(|n| symbols.id(n).unwrap().0).collect();
    let (mut message, mut crc) = (tapestore_formats::input::Message::default(), 0);
    while sim.next(&mut message).unwrap() {
        for record in tapestore::record::split(&message.words).flatten() {
            let mut words = record.words().to_vec();
            words[0] = (words[0] & 0xffff_ffff) | u64::from(ids[record.instrument().0 as usize]) << 32;
            for word in words {
                crc = crc32c::crc32c_append(crc, &word.to_le_bytes());
            }
        }
    }
    crc
}

#[test]
fn two_publishers_and_three_readers_see_every_record_once_and_in_order() {
    let store = Store::serve();
    let records = 120_000u64;
    let out: Vec<_> = (0..3).map(|i| store.path.with_extension(format!("out{i}"))).collect();
    let readers: Vec<_> = out
        .iter()
        .map(|o| {
            let out = ("TAPE_ROLE_OUT", o.to_string_lossy().into_owned());
            role("reader", &store.path, &[("TAPE_ROLE_COUNT", (records * 2).to_string()), out])
        })
        .collect();
    let publishers: Vec<_> = [("1", "11"), ("2", "22")]
        .map(|(id, seed)| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tape"));
            command.args(["publish", "--sim", "--records", &records.to_string(), "--instruments", "50", "--seed", seed]);
            command.args(["--publisher", id, "--durability", "os", "--rate", "x2", "--store"]).arg(&store.path);
            command.stdout(std::process::Stdio::null());
            Process::start("publisher", &mut command).unwrap()
        })
        .into_iter()
        .collect();
    publishers.into_iter().for_each(finish);
    readers.into_iter().for_each(finish);
    let reports: Vec<_> = out.iter().map(|o| roles::read(o)).collect();
    for report in &reports {
        assert_eq!(report, &reports[0], "every reader sees the same");
        for (publisher, seed) in [(1, 11), (2, 22)] {
            let seen = &report.publishers[&publisher];
            assert_eq!((seen.count, seen.checksum), (records, expected_checksum(&store, seed, records)));
            assert!(seen.turns > 10, "the records of publisher {publisher} interleave only {} times", seen.turns);
        }
    }
    let control = store.reader().control().clone();
    assert_eq!(control.appended(), Lsn(records * 2));
    assert_eq!((control.statistic(Statistic::Gaps), control.statistic(Statistic::Malformed)), (0, 0));
    store.tape_ok(&["verify"]);
}

#[test]
fn a_live_subscriber_that_falls_behind_is_healed_from_the_store_in_order() {
    let store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    let count = 60_000u64;
    let (out, ready) = (store.path.with_extension("out"), store.path.with_extension("ready"));
    let subscriber = role(
        "subscriber",
        &store.path,
        &[
            ("TAPE_ROLE_COUNT", count.to_string()),
            ("TAPE_ROLE_PAUSE_AT", "1000".to_owned()),
            ("TAPE_ROLE_OUT", out.to_string_lossy().into_owned()),
            ("TAPE_ROLE_READY", ready.to_string_lossy().into_owned()),
        ],
    );
    eventually("the subscription", || ready.exists().then_some(()));
    for first in (0..count).step_by(100) {
        publish(&mut publisher, first + 1, 100);
        std::thread::sleep(Duration::from_micros(300));
    }
    // A drop at the very end of the live service is detected by a later record.
    let over = std::thread::spawn(move || finish(subscriber));
    let mut next = count + 1;
    while !over.is_finished() {
        publish(&mut publisher, next, 1);
        next += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    over.join().unwrap();
    let report = roles::read(&out);
    assert_eq!((report.publishers[&1].count, report.gaps), (count, 0));
    assert!(report.healed > 1000, "{} records were healed", report.healed);
}

#[test]
fn a_stopped_subscriber_and_a_stopped_reader_do_not_block_publishers() {
    let store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    let path = |s: &str| store.path.with_extension(s).to_string_lossy().into_owned();
    let ready = store.path.with_extension("ready");
    let more = [
        ("TAPE_ROLE_COUNT", "100000000".to_owned()),
        ("TAPE_ROLE_PAUSE_AT", "0".to_owned()),
        ("TAPE_ROLE_OUT", path("out")),
        ("TAPE_ROLE_READY", path("ready")),
    ];
    let mut stopped = [role("subscriber", &store.path, &more), role("reader", &store.path, &more)];
    eventually("the subscription", || ready.exists().then_some(()));
    stopped.iter().for_each(|c| signal(c.id(), rustix::process::Signal::STOP));
    publish(&mut publisher, 1, 50_000);
    let progress = publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!(progress.durable, PubSeq(50_000));
    stopped.iter_mut().for_each(Process::kill);
}

#[test]
fn a_takeover_fences_a_live_publisher_and_an_attach_without_takeover_is_refused() {
    let store = Store::serve();
    let mut old = store.numbered_publisher(5, Durability::Fsync);
    publish(&mut old, 1, 10);
    old.flush(Durability::Fsync, PATIENCE).unwrap();
    let refused = Publisher::open(Options::new(&store.path, PublisherId(5))).err().unwrap();
    assert!(matches!(refused, Error::Taken { publisher: PublisherId(5), .. }), "{refused}");
    publish(&mut old, 11, 20);
    old.flush(Durability::Fsync, PATIENCE).unwrap();
    let mut new = Publisher::open(Options { take_over: true, ..Options::new(&store.path, PublisherId(5)) }).unwrap();
    publish(&mut new, 1, 3);
    let progress = new.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!((progress.epoch.0, progress.durable), (2, PubSeq(3)));
    eventually("the fence", || match old.publish(&trade(99)) {
        Ok(_) | Err(PublishError::Full { .. }) => None,
        Err(PublishError::Fenced { publisher: PublisherId(5), .. }) => Some(()),
        Err(other) => panic!("{other}"),
    });
    new.flush(Durability::Fsync, PATIENCE).unwrap();
    let snapshot = store.reader().snapshot(At::Durable).unwrap();
    let epochs: Vec<u32> = (1..=snapshot.last().0).map(|l| snapshot.arrival(Lsn(l)).unwrap().unwrap().epoch.0).collect();
    assert!(epochs.is_sorted() && epochs.iter().filter(|e| **e == 2).count() == 3, "{epochs:?}");
    // A publisher that has closed needs no takeover.
    new.close(PATIENCE).unwrap();
    store.publisher(5, Durability::Fsync).close(PATIENCE).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "moves a directory that storage uses")]
fn move_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::rename(from, to).unwrap();
}

#[test]
fn a_failing_flush_causes_back_pressure_and_publishers_resume_when_it_succeeds() {
    let mut store = Store::new(&["--memtable-size", "16M", "--memtables-max", "2", "--segment-size", "4M"]);
    store.start();
    let options = Options { ring_bytes: 1 << 20, durability: Durability::Os, ..Options::new(&store.path, PublisherId(1)) };
    let mut publisher = Publisher::open(options).unwrap();
    register(&publisher);
    let (files, away) = (store.path.join("sst"), store.path.join("away"));
    move_dir(&files, &away);
    let mut published = 0u64;
    let deadline = Instant::now() + PATIENCE;
    let why = loop {
        assert!(Instant::now() < deadline);
        match publisher.publish(&trade(published + 1)) {
            Ok(_) => published += 1,
            Err(PublishError::Full { why, .. }) if why.contains("MemTable") => break why,
            Err(PublishError::Full { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    };
    assert!(why.contains("tape status"), "{why}");
    assert!(store.tape_ok(&["status"]).contains("MemTables are full"));
    // Readers are not affected.
    let last = store.reader().snapshot(At::Appended).unwrap().last();
    assert!(last.0 > 50_000 && last.0 < published, "{last} of {published}");
    eventually("a failure", || (store.reader().control().statistic(Statistic::FlushFailures) > 0).then_some(()));
    move_dir(&away, &files);
    let progress = publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!(progress.durable, PubSeq(published), "without a restart");
    let snapshot = store.reader().snapshot(At::Durable).unwrap();
    assert_eq!(snapshot.last(), Lsn(published));
    assert_eq!(ids(&snapshot), (1..=published).collect::<Vec<_>>());
    store.tape_ok(&["verify"]);
}

/// The ids of all trades of instrument 1, in (index time, LSN) order.
fn ids(snapshot: &Snapshot) -> Vec<u64> {
    let series = Series { instrument: InstrumentId(1), kind: Trade::KIND };
    let (mut scan, mut ids) = (snapshot.scan(series, TimeRange::ALL), Vec::new());
    while let Some(row) = scan.next().unwrap() {
        ids.push(row.record.get::<Trade>().unwrap().trade_id);
    }
    ids
}

#[test]
fn a_log_larger_than_the_memtables_is_flushed_at_start() {
    let mut store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::Os);
    publish(&mut publisher, 1, 600_000);
    publisher.close(PATIENCE).unwrap();
    assert!(store.terminate().success());
    store.set_arguments(&["--memtable-size", "16M", "--memtables-max", "2", "--segment-size", "4M"]);
    store.start();
    let flushed = || Some(store.reader().snapshot(At::Durable).unwrap()).filter(|s| s.history().covered().0 > 100_000);
    let mut snapshot = eventually("a flush", flushed);
    assert_eq!(snapshot.last(), Lsn(600_000));
    assert_eq!(ids(&snapshot), (1..=600_000).collect::<Vec<_>>());
    assert!((1..=600_000).step_by(1000).all(|l| snapshot.get(Lsn(l)).unwrap().is_some_and(|r| r.lsn == Lsn(l))));
}

#[test]
fn kinds_of_one_publisher_keep_the_order_in_which_they_were_sent() {
    let store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"X:Y".parse().unwrap()).unwrap();
    assert_eq!(publisher.instrument(&"X:Y".parse().unwrap()).unwrap(), instrument, "a name is one instrument");
    for i in 0..1000u64 {
        if i % 3 == 0 {
            publisher.publish(&Quote { instrument, sequence: i as u32, ts_recv: Ts(i), ..Quote::default() }).unwrap();
        } else {
            publisher.publish(&Trade { instrument, trade_id: i, ts_recv: Ts(i), ..Trade::default() }).unwrap();
        }
    }
    publisher.close(PATIENCE).unwrap();
    let mut snapshot = store.reader().snapshot(At::Committed).unwrap();
    for i in 0..1000u64 {
        let row = snapshot.get(Lsn(i + 1)).unwrap().unwrap();
        let id = row.record.get::<Trade>().map_or_else(|| u64::from(row.record.get::<Quote>().unwrap().sequence), |t| t.trade_id);
        assert_eq!(id, i);
    }
    let both = [Quote::KIND, Trade::KIND].map(|kind| Series { instrument, kind });
    let mut replay = snapshot.replay(&both, TimeRange::ALL);
    for lsn in 1..=1000 {
        assert_eq!(replay.next().unwrap().unwrap().lsn, Lsn(lsn));
    }
    assert!(replay.next().unwrap().is_none());
    let as_of = snapshot.as_of(both[0], Ts(500)).unwrap().unwrap();
    assert_eq!(as_of.lsn, Lsn(499), "record 498 is the newest quote");
}

#[test]
fn a_subscriber_gets_the_end_of_an_epoch_before_the_next_one() {
    let store = Store::serve();
    let mut subscriber = Subscriber::open(&store.path).unwrap();
    let mut first = store.numbered_publisher(1, Durability::Os);
    publish(&mut first, 1, 10);
    let deadline = Instant::now() + PATIENCE;
    let mut next = |epoch: u32, from: u64, to: u64| {
        for seq in from..=to {
            loop {
                assert!(Instant::now() < deadline, "record {seq} of epoch {epoch} does not arrive");
                match subscriber.poll().unwrap() {
                    Some(Event::Record { epoch: e, pub_seq, .. }) => {
                        assert_eq!((e.0, pub_seq), (epoch, PubSeq(seq)));
                        break;
                    }
                    Some(gap) => panic!("{gap:?}"),
                    None => std::thread::yield_now(),
                }
            }
        }
    };
    next(1, 1, 10);
    // More than the live service buffers: nothing of epoch 1 is left in it.
    publish(&mut first, 11, 3000);
    first.close(PATIENCE).unwrap();
    let mut second = store.numbered_publisher(1, Durability::Os);
    publish(&mut second, 1, 3000);
    second.flush(Durability::Os, PATIENCE).unwrap();
    next(1, 11, 3010);
    next(2, 1, 3000);
}

#[test]
fn an_epoch_is_resumed_by_the_process_that_missed_the_answer_and_by_no_other() {
    let store = Store::serve();
    let ask = |mode, incarnation| {
        let mut stream = std::os::unix::net::UnixStream::connect(store.run_dir().attach_socket()).unwrap();
        attach::ask(&mut stream, &Message::Attach { publisher: PublisherId(4), mode, level: Durability::Os, incarnation })
            .unwrap()
    };
    let epoch = |message| if let Message::Attached(grant) = message { grant.epoch.0 } else { panic!("{message:?}") };
    assert_eq!(epoch(ask(Mode::New, 5)), 1);
    assert_eq!(epoch(ask(Mode::New, 5)), 2);
    assert_eq!(epoch(ask(Mode::Resume(Epoch(1)), 5)), 2, "a retry of the same process");
    assert_eq!(ask(Mode::Resume(Epoch(1)), 6), Message::Fenced(Epoch(2)), "another process");
    assert_eq!(epoch(ask(Mode::Resume(Epoch(9)), 6)), 10, "an epoch that the log does not have");
    for bad in [0, u32::MAX, u32::MAX - 1] {
        let answer = ask(Mode::Resume(Epoch(bad)), 6);
        assert!(matches!(answer, Message::Refused(_) | Message::Fenced(_)), "{answer:?}");
    }
    assert_eq!(epoch(ask(Mode::New, 6)), 11);
}

#[test]
fn every_wait_mode_and_pinned_cores_accept_records() {
    for wait in ["busy", "adaptive", "blocking"] {
        let arguments =
            ["--memtable-size", "16M", "--segment-size", "4M", "--wait", wait, "--ingest-core", "0", "--sync-core", "1"];
        let mut store = Store::new(&arguments);
        store.start();
        let mut publisher = store.numbered_publisher(1, Durability::Fsync);
        let mut follow = store.reader().follow(Lsn(1), At::Appended);
        for i in 1..=50u64 {
            publish(&mut publisher, i, 1);
            assert_eq!(publisher.flush(Durability::Fsync, PATIENCE).unwrap().durable, PubSeq(i));
            // Long enough that every loop parks now and then.
            std::thread::sleep(Duration::from_millis(i % 3));
            let seen = eventually("the record", || follow.poll().unwrap().map(|row| row.lsn));
            assert_eq!(seen, Lsn(i), "wait mode {wait}");
        }
        assert!(store.terminate().success());
    }
}
