//! Defines a kind of record, publishes it, and finds it by time and by its id.
//!
//! ```sh
//! cargo run --release --example own_kind [STORE]
//! ```

use std::path::PathBuf;
use std::time::Duration;

use tapestore::publisher::Options;
use tapestore::time::{Clock, HostClock};
use tapestore::{At, InstrumentId, Kind, Price, Publisher, PublisherId, Reader, Record, Series, TimeRange, Ts};

/// A kind's number (from 0x8000 on) stands for one layout for ever: if the struct changes, the number must too.
#[derive(Clone, Copy, Debug, Record)]
#[repr(C)]
#[record(kind = 0x8011, name = "fair-value", index = ts_recv, find(order_id))]
struct FairValue {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    ts_recv: Ts,
    order_id: u64,
    fair: Price,
    edge: Price,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = PathBuf::from(std::env::args().nth(1).unwrap_or("tapestore-data".to_owned()));
    let mut publisher = Publisher::open(Options::new(&store, PublisherId(8)))?;
    publisher.kind::<FairValue>()?;
    let instrument = publisher.instrument(&"XNAS:AAPL".parse()?)?;
    let now = HostClock.wall();
    for order_id in 1..=10 {
        let (fair, edge) = ("190.015".parse()?, "0.0025".parse()?);
        publisher.publish(&FairValue {
            instrument,
            order_id,
            fair,
            edge,
            ts_event: now,
            ts_recv: now,
            ..FairValue::default()
        })?;
    }
    publisher.close(Duration::from_secs(10))?;

    let mut reader = Reader::open(&store)?;
    let snapshot = reader.snapshot(At::Durable)?;
    let series = Series { instrument, kind: FairValue::KIND };
    let mut rows = snapshot.scan(series, TimeRange { from: now, to: Ts(now.0 + 1) });
    while let Some(row) = rows.next()? {
        if let Some(value) = row.record.get::<FairValue>() {
            println!("{}: order {} fair {} edge {}", row.lsn, value.order_id, value.fair, value.edge);
        }
    }
    println!("with order id 7: {}", snapshot.find(series, "order_id", 7)?.len());
    Ok(())
}
