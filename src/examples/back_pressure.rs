//! Publishes as fast as it can, and handles back-pressure: a full ring is an error with its reason, and nothing is lost.
//!
//! ```sh
//! cargo run --release --example back_pressure [STORE [RECORDS]]
//! ```

use std::time::Duration;

use tapestore::publisher::Options;
use tapestore::time::{Clock, HostClock};
use tapestore::{Durability, PublishError, Publisher, PublisherId, Trade};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = arguments.next().unwrap_or("tapestore-data".to_owned());
    let records: u64 = arguments.next().map_or(Ok(1_000_000), |n| n.parse())?;
    // A small ring fills soon: 1 MiB holds some 10,000 trades. A call waits 1 ms for room, then it returns an error.
    let small = Options { ring_bytes: 1 << 20, send_timeout: Duration::from_millis(1), ..Options::new(store, PublisherId(9)) };
    let mut publisher = Publisher::open(Options { durability: Durability::Fsync, ..small })?;
    let instrument = publisher.instrument(&"XNAS:AAPL".parse()?)?;
    let mut waits = 0;
    for trade_id in 1..=records {
        let trade = Trade { instrument, trade_id, ts_recv: HostClock.wall(), ..Trade::default() };
        loop {
            match publisher.publish(&trade) {
                Ok(_) => break,
                // The record was not taken. A feed handler would conflate or drop here; this program tries again.
                Err(PublishError::Full { .. } | PublishError::NoSpace { .. }) => waits += 1,
                // Another process publishes under this number, or storage refuses it: this publisher cannot continue.
                Err(error) => return Err(error.into()),
            }
        }
    }
    let progress = publisher.close(Duration::from_secs(60))?;
    println!("{} durable, {waits} calls returned back-pressure", progress.durable);
    Ok(())
}
