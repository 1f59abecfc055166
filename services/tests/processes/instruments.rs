//! Records of unregistered instruments: refused by the publisher's library and by storage.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use tapestore::bus::attach::{Message, Mode, ask};
use tapestore::bus::{BatchHeader, Bus};
use tapestore::lsn::{Durability, Epoch, InstrumentId, Lsn, PubSeq, PublisherId};
use tapestore::publisher::PublishError;
use tapestore::record::{Record, Trade};
use tapestore::shm::bell::{Bell, Bells};
use tapestore::shm::control::{SlotState, Statistic};

use crate::fixture::{PATIENCE, Store, eventually};

fn of(instrument: InstrumentId) -> Trade {
    Trade { instrument, ..Trade::default() }
}

#[test]
fn a_record_of_an_unregistered_instrument_is_refused_and_the_publisher_continues() {
    let store = Store::serve();
    let mut publisher = store.publisher(1, Durability::Fsync);
    for never in [InstrumentId(0), InstrumentId(1), InstrumentId(7)] {
        let refused = publisher.publish(&of(never)).unwrap_err();
        assert!(matches!(&refused, PublishError::Record(e) if e.to_string().contains("not registered")), "{refused}");
    }
    let instrument = publisher.instrument(&"X:A".parse().unwrap()).unwrap();
    publisher.publish(&of(instrument)).unwrap();
    publisher.publish(&of(InstrumentId::NULL)).unwrap();
    // Another publisher registers; the id reaches this one outside the store.
    let other = store.publisher(2, Durability::Fsync).instrument(&"X:B".parse().unwrap()).unwrap();
    publisher.publish(&of(other)).unwrap();
    assert_eq!(publisher.close(PATIENCE).unwrap().durable, PubSeq(3));
    assert_eq!(store.reader().control().committed(), Lsn(3));
}

#[test]
fn storage_refuses_a_batch_with_an_unregistered_instrument_and_names_it() {
    let store = Store::serve();
    let (run_dir, reader) = (store.run_dir(), store.reader());
    let mut stream = UnixStream::connect(run_dir.attach_socket()).unwrap();
    let (publisher, level, incarnation) = (PublisherId(5), Durability::Os, 3);
    let answer = ask(&mut stream, &Message::Attach { publisher, mode: Mode::New, level, incarnation }).unwrap();
    let Message::Attached(grant) = answer else { panic!("{answer:?}") };
    let bus = Bus::join(&run_dir.bus_root(grant.instance), &run_dir.bus_prefix(grant.instance), "test").unwrap();
    let sender = bus.send_ingest(grant.grant).unwrap();
    let bells = Bells::open_or_create(&run_dir.bells()).unwrap();
    eventually("the batch to be sent", || {
        let header = BatchHeader::new(publisher, Epoch(1), PubSeq(1), 1);
        sender.send(header, of(InstrumentId(9)).words()).unwrap().then_some(())
    });
    let view = eventually("the refusal", || {
        bells.ring(Bell::Ingest);
        std::thread::sleep(Duration::from_millis(1));
        reader.control().slot(grant.slot).view(grant.grant).filter(|view| view.state != SlotState::Attached)
    });
    assert_eq!((view.state, view.unregistered), (SlotState::Refused, Some(InstrumentId(9))));
    assert_eq!(reader.control().statistic(Statistic::Malformed), 1);
    assert_eq!(reader.control().statistic(Statistic::Records), 0);
}
