//! Reads the trades of all instruments as Arrow arrays, a block at a time, and computes the average price.
//!
//! ```sh
//! cargo run --release --example columns [STORE]
//! ```

use std::path::PathBuf;

use arrow_array::Int64Array;
use arrow_buffer::{Buffer, ScalarBuffer};
use tapestore::{At, Price, Reader, Record, TimeRange, Trade};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = PathBuf::from(std::env::args().nth(1).unwrap_or("tapestore-data".to_owned()));
    let mut reader = Reader::open(&store)?;
    let snapshot = reader.snapshot(At::Appended)?;
    let Some(mut columns) = snapshot.columns(Trade::KIND, None, TimeRange::ALL) else { return Ok(()) };
    let (mut rows, mut sum) = (0u64, 0i128);
    while let Some(batch) = columns.next()? {
        // The values lie in the mapped file, or for the newest records in a buffer; Arrow gets a copy of the column.
        let Some(prices) = batch.values::<i64>("price") else { continue };
        let prices = Int64Array::new(ScalarBuffer::new(Buffer::from_slice_ref(prices), 0, prices.len()), None);
        rows += prices.iter().flatten().filter(|p| *p != Price::NULL.0).count() as u64;
        sum += prices.iter().flatten().filter(|p| *p != Price::NULL.0).map(i128::from).sum::<i128>();
    }
    // Prices are integers of 1e-9.
    let average = i64::try_from(sum / i128::from(rows.max(1)))?;
    println!("{rows} trades, average price {}", Price(average));
    Ok(())
}
