//! Kinds that a program defines; this program is the one.

use serde_json::Value;
use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::publisher::PublishError;
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{Kind, Price, Record, RecordRef, Size, Trade};
use tapestore::subscriber::{Event, Subscriber};
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually};

#[derive(Clone, Copy, Debug, PartialEq, Record)]
#[repr(C)]
#[record(kind = 0x8001, name = "signal", index = ts_recv, find(order_id))]
struct Signal {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    order_id: u64,
    fair: [Price; 2],
    depth: [u32; 3],
    model: [u8; 9],
    side: tapestore::record::Char,
    score: i16,
}

/// The same kind after a change: another id under the same name.
#[derive(Clone, Copy, Debug, PartialEq, Record)]
#[repr(C)]
#[record(kind = 0x8002, name = "signal", index = ts_recv, find(order_id))]
struct Signal2 {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    order_id: u64,
    size: Size,
}

/// A kind that claims the id of another.
#[derive(Clone, Copy, Debug, Record)]
#[repr(C)]
#[record(kind = 0x8001, name = "impostor")]
struct Impostor {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
}

/// The first kind with another layout under its old id.
#[derive(Clone, Copy, Debug, PartialEq, Record)]
#[repr(C)]
#[record(kind = 0x8001, name = "signal", index = ts_recv, find(order_id))]
struct Changed {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    order_id: u64,
    depth: [u32; 3],
    model: [u8; 9],
    side: tapestore::record::Char,
    score: i16,
    fair: [Price; 2],
}

fn signal(instrument: InstrumentId, i: u64) -> Signal {
    Signal {
        instrument,
        ts_event: Ts(i),
        ts_recv: Ts(1_700_000_000_000_000_000 + i * 1000),
        order_id: i / 2,
        fair: [Price(i as i64), Price::NULL],
        depth: [i as u32, u32::MAX, 3],
        model: *b"momentum\0",
        side: tapestore::record::side::BID,
        score: -(i as i16 % 100),
        ..Signal::default()
    }
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Checks every signal of `instrument` with a new reader.
fn check(store: &Store, instrument: InstrumentId, count: u64) {
    let mut reader: Reader = store.reader();
    let mut snapshot = reader.snapshot(At::Durable).unwrap();
    let series = Series { instrument, kind: Signal::KIND };
    let (mut scan, mut n) = (snapshot.scan(series, TimeRange::ALL), 0);
    while let Some(row) = scan.next().unwrap() {
        assert_eq!(row.record.get::<Signal>(), Some(&signal(instrument, n)));
        n += 1;
    }
    assert_eq!(n, count);
    let found = snapshot.find(series, "order_id", 77).unwrap();
    assert_eq!(found.iter().map(|r| r.record.get::<Signal>().unwrap().ts_event.0).collect::<Vec<_>>(), [154, 155]);
    let newest = snapshot.as_of(series, Ts(u64::MAX)).unwrap().unwrap();
    assert_eq!(newest.record.get::<Signal>(), Some(&signal(instrument, count - 1)));
}

#[test]
fn a_user_kind_survives_restarts_and_is_scanned_found_exported_and_imported() {
    let mut store = Store::new(&["--memtable-size", "16M", "--memtables-max", "2", "--segment-size", "1M"]);
    store.start();
    let mut publisher = store.publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"X:Y".parse().unwrap()).unwrap();
    let early = publisher.publish(&signal(instrument, 0)).unwrap_err();
    assert!(matches!(&early, PublishError::Record(e) if e.to_string().contains("define it in the store first")), "{early}");
    // A subscriber that opened before the kind was registered receives it.
    let mut subscriber = Subscriber::open(&store.path).unwrap();
    publisher.kind::<Signal>().unwrap();
    let impostor = publisher.kind::<Impostor>().unwrap_err();
    assert!(impostor.to_string().contains("a number of its own"), "{impostor}");
    publisher.publish(&signal(instrument, 0)).unwrap();
    let live = eventually("the live record", || match subscriber.poll().unwrap() {
        Some(Event::Record { record, .. }) => Some(*record.get::<Signal>().unwrap()),
        _ => None,
    });
    assert_eq!(live, signal(instrument, 0));
    // So many that most are flushed and the log after them is recycled.
    let count = 200_000;
    for i in 1..count {
        let signal = signal(instrument, i);
        while let Err(e) = publisher.stage(RecordRef::of(&signal)) {
            assert!(matches!(e, PublishError::Full { .. }), "{e}");
        }
    }
    publisher.publish(&Trade { instrument, ts_recv: Ts(1), ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    check(&store, instrument, count);
    let covered = || store.reader().snapshot(At::Durable).unwrap().history().covered();
    eventually("a flush", || (covered() > Lsn(50_000)).then_some(()));
    check(&store, instrument, count);
    // The publisher survives storage, which recovers the kind from its log and manifest.
    store.kill();
    store.start();
    publisher.publish(&Trade { instrument, ts_recv: Ts(2), ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    check(&store, instrument, count);
    // A changed layout under the same name: the name reads both.
    publisher.kind::<Signal2>().unwrap();
    let changed = Signal2 { instrument, order_id: 77, size: Size(5), ts_recv: Ts(9), ..Signal2::default() };
    publisher.publish(&changed).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    let found = json(&store.tape_ok(&["find", "X:Y", "signal", "77", "--json"]));
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(
        (&found[0]["fair_0"], &found[0]["model"], &found[2]["size"]),
        (&"0.000000154".into(), &"momentum".into(), &"0.000000005".into())
    );
    assert_eq!(
        json(&store.tape_ok(&["scan", "X:Y", "signal", "--limit", "1", "--json"]))[0]["size"],
        "0.000000005",
        "sorted by time"
    );
    let one = ["follow", "--once", "--kind", "signal-8002", "--json"];
    assert_eq!(json(&store.tape_ok(&one)).len(), 1, "one layout, by its number");
    assert_eq!(json(&store.tape_ok(&["scan", "X:Y", "signal-8002", "--json"])).len(), 1);
    let kinds = json(&store.tape_ok(&["kinds", "--json"]));
    assert_eq!(kinds.iter().filter(|k| k["kind"] == "signal").count(), 2);
    assert_eq!(store.tape(&["scan", "X:Y", "whale"]).status.code(), Some(2));
    // Export, and import into another store.
    let dir = tempfile::tempdir().unwrap();
    export(&store, dir.path(), count + 1);
    store.tape_ok(&["verify"]);
    assert!(store.terminate().success());
    // The second kind is in the log alone.
    let kinds = json(&store.tape_ok(&["kinds", "--json"]));
    assert_eq!(kinds.iter().filter(|k| k["kind"] == "signal").count(), 2);
    drop(publisher);
    import(&dir.path().join("parquet/signal-8001.parquet"), count);
}

/// Exports the two layouts of the kind `signal`, of `count` records together, as Parquet and as CSV.
fn export(store: &Store, dir: &std::path::Path, count: u64) {
    for format in ["parquet", "csv"] {
        let out = dir.join(format);
        let exported = json(&store.tape_ok(&["export", out.to_str().unwrap(), "--format", format, "--kind", "signal", "--json"]));
        assert_eq!(exported.len(), 2, "a file for each layout: {exported:?}");
        assert_eq!(exported.iter().map(|e| e["records"].as_u64().unwrap()).sum::<u64>(), count);
    }
}

/// Imports `file` into another store that does not have the kind.
fn import(file: &std::path::Path, count: u64) {
    let other = Store::serve();
    let refused = other.tape(&["import", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(65), "a kind that the store does not have is named");
    let mut publisher = other.publisher(2, Durability::Fsync);
    publisher.kind::<Signal>().unwrap();
    other.tape_ok(&["import", file.to_str().unwrap()]);
    let instrument = other.reader().instrument(&"X:Y".parse().unwrap()).unwrap();
    check(&other, instrument, count);
}

#[test]
fn another_layout_under_a_used_kind_id_is_rejected() {
    // Another process: the registry of kinds is per process.
    let store = Store::serve();
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    publisher.kind::<Signal>().unwrap();
    assert!(matches!(publisher.kind::<Impostor>(), Err(Error::Invalid { .. })));
    // A changed struct is neither published nor read under the old id.
    let changed = publisher.publish(&Changed { instrument: InstrumentId(1), ..Changed::default() }).unwrap_err();
    assert!(matches!(&changed, PublishError::Record(e) if e.to_string().contains("as this program lays it out")), "{changed}");
    publisher.publish(&signal(InstrumentId(1), 1)).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    let mut reader = store.reader();
    let mut snapshot = reader.snapshot(At::Durable).unwrap();
    let row = snapshot.get(Lsn(1)).unwrap().unwrap();
    assert!(row.record.get::<Changed>().is_none() && row.record.get::<Signal>().is_some());
    reader.kind::<Signal>().unwrap();
    assert!(reader.kind::<Changed>().unwrap_err().to_string().contains("a number of its own"));
    // Storage refuses it too.
    let layout = tapestore::record::Layout::of(&Impostor::SCHEMA).unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(store.run_dir().attach_socket()).unwrap();
    let answer = tapestore::bus::attach::ask(&mut stream, &tapestore::bus::attach::Message::Kind(Box::new(layout))).unwrap();
    assert!(matches!(&answer, tapestore::bus::attach::Message::Refused(why) if why.contains("'signal'")), "{answer:?}");
}
