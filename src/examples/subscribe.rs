//! Receives records as publishers send them, before they are stored, and prints gaps.
//!
//! ```sh
//! cargo run --release --example subscribe [STORE [RECORDS]]
//! ```
//!
//! A record that the bus dropped is fetched from the store, in its place (`healed`). A record that neither has within two
//! seconds is a [`Event::Gap`]: nothing is left out without notice.

use std::path::PathBuf;
use std::time::Duration;

use tapestore::{Event, Subscriber, Trade};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = PathBuf::from(arguments.next().unwrap_or("tapestore-data".to_owned()));
    let records: u64 = arguments.next().map_or(Ok(1_000), |n| n.parse())?;
    let mut subscriber = Subscriber::open(&store)?;
    println!("subscribed");
    let (mut received, mut missing) = (0, 0);
    while received + missing < records {
        match subscriber.poll()? {
            Some(Event::Record { publisher, pub_seq, record, healed, .. }) => {
                received += 1;
                if let Some(trade) = record.get::<Trade>() {
                    println!("publisher {publisher} record {pub_seq}: {} x {} healed: {healed}", trade.price, trade.size);
                }
            }
            Some(Event::Gap { publisher, first, last, .. }) => {
                missing += last.0.saturating_sub(first.0) + 1;
                println!("publisher {publisher}: records {first} to {last} are missing");
            }
            Some(Event::Reopened { timeline, continues }) => {
                println!("the store is served from elsewhere: timeline {timeline}, continues: {continues}");
            }
            None => subscriber.wait(Duration::from_millis(100)),
        }
    }
    println!("{received} received, {missing} missing");
    Ok(())
}
