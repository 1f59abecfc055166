//! A store that a program serves itself, with publishers and subscribers in the same process.

use std::time::{Duration, Instant};

use super::*;
use crate::Embedded;
use rustix::event::{PollFd, PollFlags, poll};
use tapestore::publisher::{self, Publisher};
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{Kind, Price, Quote, RecordRef, Size};
use tapestore::subscriber::{self, Event, Subscriber, Wait};

const PATIENCE: Duration = Duration::from_secs(60);

fn publisher(store: &Embedded, id: u16) -> Publisher {
    Publisher::open(publisher::Options::new(store.path(), PublisherId(id))).unwrap()
}

fn trade(instrument: InstrumentId, trade_id: u64) -> Trade {
    Trade { instrument, trade_id, ts_recv: Ts(trade_id), ..Trade::default() }
}

/// The next record that the subscriber delivers: its instrument, kind and number.
fn next(subscriber: &mut Subscriber) -> (InstrumentId, Kind, PubSeq) {
    let until = Instant::now() + PATIENCE;
    loop {
        match subscriber.poll().unwrap() {
            Some(Event::Record { record, pub_seq, .. }) => return (record.instrument(), record.kind(), pub_seq),
            Some(other) => panic!("{other:?}"),
            None => subscriber.wait(Duration::from_millis(20)),
        }
        assert!(Instant::now() < until, "no record arrives");
    }
}

#[test]
fn an_embedded_store_is_used_as_any_other_and_leaves_nothing() {
    let store = Embedded::temporary().unwrap();
    let path = store.path().to_path_buf();
    let run_dir = RunDir::find(&path).unwrap().path().to_path_buf();
    assert!(matches!(Embedded::open(&path), Err(Error::Locked { .. })), "one process serves a store");
    let mut writer = publisher(&store, 1);
    let instrument = writer.instrument(&"X:1".parse().unwrap()).unwrap();
    for id in 1..=1000 {
        writer.publish(&trade(instrument, id)).unwrap();
    }
    writer.close(PATIENCE).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.snapshot(At::Committed).unwrap().last(), Lsn(1000));
    let kept = tempfile::tempdir().unwrap();
    let other = Embedded::open(kept.path().join("kept")).unwrap();
    drop(publisher(&other, 1));
    let kept = other.path().to_path_buf();
    drop(other);
    store.stop().unwrap();
    assert!(!path.exists() && !run_dir.exists(), "a temporary store is removed");
    let again = Embedded::open(&kept).unwrap();
    assert!(!again.has_failed());
    let run_dir = RunDir::find(&kept).unwrap().path().to_path_buf();
    again.stop().unwrap();
    std::fs::remove_dir_all(run_dir).unwrap();
}

#[test]
fn a_subscriber_delivers_the_instruments_and_kinds_that_it_names_and_no_gap_for_the_others() {
    let store = Embedded::temporary().unwrap();
    let mut writer = publisher(&store, 1);
    let names = ["X:1", "X:2", "X:3"].map(|name| name.parse().unwrap());
    let first = writer.instruments(&names[..2]).unwrap();
    let mut options = subscriber::Options::new(store.path());
    options.instruments = vec![names[1], names[2]];
    options.kinds = vec![Trade::KIND];
    options.wait = Wait::Adaptive;
    let mut some = Subscriber::open_with(options).unwrap();
    let mut all = Subscriber::open(store.path()).unwrap();
    let late = writer.instrument(&names[2]).unwrap();
    let quote = |instrument| Quote { instrument, ts_recv: Ts(5), ..Quote::default() };
    for round in 0..500 {
        for instrument in [first[0], first[1], late] {
            writer.stage(RecordRef::of(&trade(instrument, round))).unwrap();
            writer.stage(RecordRef::of(&quote(instrument))).unwrap();
        }
        writer.send();
    }
    for round in 0..500 {
        // Six records a round; those of the second and third instrument that are trades are its third and fifth.
        for (instrument, place) in [(first[1], 3), (late, 5)] {
            assert_eq!(next(&mut some), (instrument, Trade::KIND, PubSeq(6 * round + place)));
        }
        for place in 1..=6 {
            assert_eq!(next(&mut all).2, PubSeq(6 * round + place));
        }
    }
    drop(writer);
}

#[test]
fn every_wait_of_a_subscriber_ends_when_nothing_arrives_and_when_a_record_does() {
    let store = Embedded::temporary().unwrap();
    let mut writer = publisher(&store, 1);
    let instrument = writer.instrument(&"X:1".parse().unwrap()).unwrap();
    for (wait, id) in [(Wait::Busy, 1), (Wait::Adaptive, 2), (Wait::Blocking, 3)] {
        let mut subscriber =
            Subscriber::open_with(subscriber::Options { wait, ..subscriber::Options::new(store.path()) }).unwrap();
        for limit in [Duration::ZERO, Duration::from_millis(10), Duration::MAX] {
            assert_eq!(subscriber.poll().unwrap(), None);
            // The claim is that it returns: nothing is published.
            subscriber.wait(limit);
        }
        writer.publish(&trade(instrument, id)).unwrap();
        let until = Instant::now() + PATIENCE;
        while subscriber.poll().unwrap().is_none() {
            subscriber.wait(Duration::MAX);
            assert!(Instant::now() < until, "no record arrives");
        }
    }
}

#[test]
fn a_descriptor_becomes_readable_for_every_event() {
    let store = Embedded::temporary().unwrap();
    let mut subscriber = Subscriber::open(store.path()).unwrap();
    let (path, (answer, answers)) = (store.path().to_path_buf(), crossbeam_channel::bounded(1));
    const ROUNDS: u64 = 5_000;
    let feed = std::thread::spawn(move || {
        let mut writer = Publisher::open(publisher::Options::new(path, PublisherId(1))).unwrap();
        let instrument = writer.instrument(&"X:1".parse().unwrap()).unwrap();
        for id in 1..=ROUNDS {
            writer.publish(&trade(instrument, id)).unwrap();
            // The next one is sent when the subscriber is about to wait again, or already waits.
            assert_eq!(answers.recv_timeout(PATIENCE), Ok(id));
        }
    });
    let (mut received, mut waits, began) = (0, 0, Instant::now());
    while received < ROUNDS {
        if let Some(event) = subscriber.poll().unwrap() {
            let Event::Record { pub_seq, .. } = event else { panic!("{event:?}") };
            received += 1;
            assert_eq!(pub_seq, PubSeq(received));
            answer.send(received).unwrap();
            continue;
        }
        let fd = subscriber.descriptor().unwrap();
        let limit = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap(), 1, "no event after {received}");
        waits += 1;
        // A missed wakeup is answered by the next of ten a second: with one in each round all would take 500 s.
        assert!(began.elapsed() < PATIENCE, "{waits} waits took {:?}", began.elapsed());
    }
    assert!(waits > 0);
    feed.join().unwrap();
}

#[test]
fn a_join_pairs_each_trade_with_the_quote_that_as_of_finds_and_latest_has_one_record_an_instrument() {
    let store = Embedded::temporary().unwrap();
    let mut writer = publisher(&store, 1);
    let instruments = writer.instruments(&["X:1", "X:2"].map(|name| name.parse().unwrap())).unwrap();
    let mut rng = SimRng::new(5);
    for round in 0..4_000u64 {
        let instrument = instruments[rng.below(2) as usize];
        let time = Ts(1_000 + rng.below(3_000));
        let price = Price(round as i64);
        if rng.below(3) == 0 {
            writer.publish(&Quote { instrument, ts_recv: time, price, ..Quote::default() }).unwrap();
        } else {
            writer.publish(&Trade { instrument, ts_recv: time, price, size: Size(1), ..Trade::default() }).unwrap();
        }
    }
    writer.close(PATIENCE).unwrap();
    let mut reader = Reader::open(store.path()).unwrap();
    let mut now = reader.snapshot(At::Committed).unwrap();
    let mut asked = now.clone();
    let (trades, quotes) =
        (Series { instrument: instruments[0], kind: Trade::KIND }, Series { instrument: instruments[0], kind: Quote::KIND });
    for range in [TimeRange::ALL, TimeRange { from: Ts(2_000), to: Ts(2_500) }, TimeRange { from: Ts(0), to: Ts(1_000) }] {
        let (mut pairs, mut scanned) = (now.join(trades, quotes, range).unwrap(), asked.clone());
        let expected = asked.clone();
        let mut left = expected.scan(trades, range);
        while let Some((trade, quote)) = pairs.next().unwrap() {
            let row = left.next().unwrap().unwrap();
            assert_eq!((trade.lsn, trade.record.words()), (row.lsn, row.record.words()));
            let wanted = scanned.as_of(quotes, trade.index_time).unwrap();
            assert_eq!(quote.map(|q| (q.lsn, q.record.words())), wanted.map(|q| (q.lsn, q.record.words())));
        }
        assert!(left.next().unwrap().is_none());
    }
    let latest = now.latest(Trade::KIND).unwrap();
    assert_eq!(latest.len(), 2);
    for (row, instrument) in latest.iter().zip(&instruments) {
        let wanted = asked.as_of(Series { instrument: *instrument, kind: Trade::KIND }, Ts(u64::MAX)).unwrap();
        assert_eq!(Some(row.lsn), wanted.map(|row| row.lsn));
    }
    assert!(now.latest(Kind(4)).unwrap().is_empty());
}
