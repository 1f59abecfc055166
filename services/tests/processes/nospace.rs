//! A disk with less free space than the configured minimum.

use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::At;
use tapestore::record::{Name, Trade};
use tapestore::shm::control::{NO_SPACE, Statistic};

use crate::fixture::{PATIENCE, Store, eventually, register};

const SMALL: [&str; 4] = ["--memtable-size", "64M", "--segment-size", "4M"];

fn trade(id: u64) -> Trade {
    Trade { trade_id: id, instrument: InstrumentId(1), ..Trade::default() }
}

#[test]
fn below_the_space_watermark_writes_are_refused_and_resume_by_themselves() {
    let mut store = Store::new(&SMALL);
    store.start();
    let ring_bytes = 1 << 20;
    let options = Options { durability: Durability::Fsync, ring_bytes, ..Options::new(&store.path, PublisherId(1)) };
    let mut publisher = Publisher::open(options).unwrap();
    register(&publisher);
    for id in 1..=100 {
        publisher.publish(&trade(id)).unwrap();
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert!(store.terminate().success());
    // More space than any disk has.
    let more = [&SMALL[..], &["--space-min", "1000000G"]].concat();
    store.set_arguments(&more);
    store.start();
    let mut published = 100;
    let refused = eventually("a refusal", || {
        loop {
            match publisher.publish(&trade(published + 1)) {
                Ok(_) => published += 1,
                Err(PublishError::NoSpace { unacknowledged }) => break Some(unacknowledged),
                // The publisher has not attached yet, or has not read the state yet.
                Err(PublishError::Full { .. }) => break None,
                Err(e) => panic!("{e}"),
            }
        }
    });
    assert_eq!(refused, published - 100);
    let early = publisher.flush(Durability::Os, std::time::Duration::from_millis(20)).unwrap_err();
    assert!(matches!(early, PublishError::NoSpace { .. }), "{early}");
    let names = publisher.instruments(&[Name::new(b"NEW").unwrap()]).unwrap_err().to_string();
    assert!(names.contains("NoSpace"), "{names}");
    let mut reader = store.reader();
    let control = reader.control();
    assert_eq!((control.statistic(Statistic::BackPressure), control.statistic(Statistic::NoSpace)), (NO_SPACE, 1));
    let mut snapshot = reader.snapshot(At::Committed).unwrap();
    assert_eq!(snapshot.last(), Lsn(100));
    assert_eq!(snapshot.get(Lsn(100)).unwrap().unwrap().record.get::<Trade>().unwrap().trade_id, 100);
    assert!(store.tape_ok(&["status"]).contains("NoSpace"));
    // The space is back, here by another start; the publisher resumes without a call.
    store.kill();
    store.set_arguments(&SMALL);
    store.start();
    let progress = publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!(progress.durable.0, published);
    assert_eq!(publisher.take_lost(), []);
}
