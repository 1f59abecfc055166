//! Publishes 1,000 trades, and waits until they are on the disk.
//!
//! ```sh
//! cargo run --release --bin tape-storage &
//! cargo run --release --example publish [STORE]
//! ```

use std::time::Duration;

use tapestore::publisher::Options;
use tapestore::time::{Clock, HostClock};
use tapestore::{Durability, Publisher, PublisherId, Trade};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = std::env::args().nth(1).unwrap_or("tapestore-data".to_owned());
    // One process at a time publishes under a number. `Fsync` is the default: a record is kept for sending again until it is durable.
    let options = Options { durability: Durability::Fsync, ..Options::new(store, PublisherId(7)) };
    let mut publisher = Publisher::open(options)?;
    // The store gives each name a number once and for good.
    let instrument = publisher.instrument(&"XNAS:AAPL".parse()?)?;
    for id in 1..=1_000 {
        let trade = Trade {
            instrument,
            price: "189.98".parse()?,
            size: "100".parse()?,
            trade_id: id,
            ts_recv: HostClock.wall(),
            ..Trade::default()
        };
        // Returns when the record is in this process's ring. It is in storage's hands a microsecond later.
        publisher.publish(&trade)?;
    }
    let progress = publisher.close(Duration::from_secs(10))?;
    println!("published and durable: {}", progress.durable);
    Ok(())
}
