//! Prints a publisher's numbers once a second on a thread of their own, as a program does that serves metrics.
//!
//! ```sh
//! cargo run --release --example monitor [STORE [RECORDS]]
//! ```

use std::time::Duration;

use tapestore::publisher::Options;
use tapestore::time::{Clock, HostClock};
use tapestore::{PublishError, Publisher, PublisherId, Trade};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = arguments.next().unwrap_or("tapestore-data".to_owned());
    let records: u64 = arguments.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let mut publisher = Publisher::open(Options::new(store, PublisherId(11)))?;
    let instrument = publisher.instrument(&"XNAS:AAPL".parse()?)?;
    let monitor = publisher.monitor();
    std::thread::spawn(move || {
        while let Some(now) = monitor.read() {
            let (progress, waiting) = (now.progress, now.outstanding.unacknowledged);
            println!("{} published, {waiting} not acknowledged, {} lost", progress.published, progress.lost);
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    for trade_id in 1..=records {
        let trade = Trade { instrument, trade_id, ts_recv: HostClock.wall(), ..Trade::default() };
        while let Err(error) = publisher.publish(&trade) {
            if !matches!(error, PublishError::Full { .. } | PublishError::NoSpace { .. }) {
                return Err(error.into());
            }
        }
    }
    println!("{} durable", publisher.close(Duration::from_secs(60))?.durable);
    Ok(())
}
