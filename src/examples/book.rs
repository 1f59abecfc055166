//! Rebuilds the order book of an instrument from its changes, as of now, and prints five levels of each side.
//!
//! ```sh
//! cargo run --release --example book [STORE [INSTRUMENT]]
//! ```

use std::path::PathBuf;

use tapestore::record::Volume;
use tapestore::{At, Book, BookOrder, Reader, Record, Series, TimeRange};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = PathBuf::from(arguments.next().unwrap_or("tapestore-data".to_owned()));
    let name = arguments.next().unwrap_or("SIM:00000".to_owned()).parse()?;
    let mut reader = Reader::open(&store)?;
    let series = Series { instrument: reader.instrument(&name)?, kind: BookOrder::KIND };
    let snapshot = reader.snapshot(At::Appended)?;
    let (mut book, mut changes) = (Book::new(), snapshot.scan(series, TimeRange::ALL));
    while let Some(row) = changes.next()? {
        if let Some(change) = row.record.get::<BookOrder>() {
            book.apply(change);
        }
    }
    for (price, level) in book.asks().take(5).collect::<Vec<_>>().into_iter().rev() {
        println!("ask {price} x {} in {} orders", Volume::new(level.size), level.count);
    }
    for (price, level) in book.bids().take(5) {
        println!("bid {price} x {} in {} orders", Volume::new(level.size), level.count);
    }
    // Changes that contradict the book, as a feed that began in the middle of a day sends them, are counted.
    println!("{} changes, {:?}", book.changes(), book.oddities());
    Ok(())
}
