//! Builds one-minute bars from the trades of an instrument.
//!
//! ```sh
//! cargo run --release --example bars [STORE [INSTRUMENT]]
//! ```

use std::path::PathBuf;

use tapestore::bars::{Bar, Builder, Options, Rule};
use tapestore::time::NANOS_PER_SECOND;
use tapestore::{At, Reader, Record, Series, TimeRange, Trade};

fn print(bar: Bar) {
    println!("{} {} {} {} {} volume {} in {} trades", bar.start, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trades);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = PathBuf::from(arguments.next().unwrap_or("tapestore-data".to_owned()));
    let name = arguments.next().unwrap_or("SIM:00000".to_owned()).parse()?;
    let mut reader = Reader::open(&store)?;
    let series = Series { instrument: reader.instrument(&name)?, kind: Trade::KIND };
    let snapshot = reader.snapshot(At::Appended)?;
    let mut builder = Builder::new(Options::new(Rule::Time { interval: 60 * NANOS_PER_SECOND }))?;
    let mut trades = snapshot.scan(series, TimeRange::ALL);
    while let Some(row) = trades.next()? {
        if let Some(trade) = row.record.get::<Trade>() {
            builder.push(row.lsn, row.index_time, trade, &mut print);
        }
    }
    // Every trade is in one bar, or in one counter.
    let oddities = builder.finish(&mut print);
    println!("{} trades left out: {oddities:?}", oddities.left_out());
    Ok(())
}
