//! Reads every record from the first one on in LSN order, goes on into records as they arrive, and checks that none is missing.
//!
//! ```sh
//! cargo run --release --example replay [STORE [RECORDS]]
//! ```

use std::path::PathBuf;
use std::time::Duration;

use tapestore::{At, Lsn, Reader};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = PathBuf::from(arguments.next().unwrap_or("tapestore-data".to_owned()));
    let records: u64 = arguments.next().map_or(Ok(1_000), |n| n.parse())?;
    let mut follow = Reader::open(&store)?.follow(Lsn(1), At::Durable);
    let mut next = None;
    let mut read = 0;
    while read < records {
        match follow.poll()? {
            Some(row) => {
                // LSNs are dense. Only retention, which deletes old records, makes the first one read more than 1.
                assert!(next.is_none_or(|next| row.lsn == next), "a record is missing before {}", row.lsn);
                next = Some(row.lsn.next());
                read += 1;
            }
            // Caught up: sleeps until storage publishes more.
            None => follow.wait(Duration::from_millis(100)),
        }
    }
    println!("{read} records, the next is {}", follow.position());
    Ok(())
}
