//! Prints the newest quote of an instrument, and the one that was valid a second before it.
//!
//! ```sh
//! cargo run --release --example as_of [STORE [INSTRUMENT]]
//! ```

use std::path::PathBuf;

use tapestore::time::NANOS_PER_SECOND;
use tapestore::{At, Quote, Reader, Record, Row, Series, Ts};

fn print(row: &Row<'_>) {
    if let Some(quote) = row.record.get::<Quote>() {
        println!("{}: bid {} x {}, ask {} x {}", row.index_time, quote.bid_px, quote.bid_sz, quote.ask_px, quote.ask_sz);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = PathBuf::from(arguments.next().unwrap_or("tapestore-data".to_owned()));
    let name = arguments.next().unwrap_or("SIM:00000".to_owned()).parse()?;
    let mut reader = Reader::open(&store)?;
    let series = Series { instrument: reader.instrument(&name)?, kind: Quote::KIND };
    // `Appended` includes the newest microsecond; `Durable` and `Committed` exclude records that a crash could withdraw.
    let mut snapshot = reader.snapshot(At::Appended)?;
    let Some(newest) = snapshot.as_of(series, Ts(u64::MAX))? else {
        println!("{name} has no quote");
        return Ok(());
    };
    let time = newest.index_time;
    print(&newest);
    match snapshot.as_of(series, Ts(time.0 - NANOS_PER_SECOND))? {
        Some(row) => print(&row),
        None => println!("there was none a second before"),
    }
    Ok(())
}
