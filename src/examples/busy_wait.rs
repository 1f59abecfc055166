//! Follows the newest records on a core of its own: never sleeps, so a record is seen as soon as it is visible.
//!
//! ```sh
//! cargo run --release --bin tape-storage -- --wait busy --ingest-core 2
//! cargo run --release --example busy_wait [STORE [RECORDS [CORE]]]
//! ```
//!
//! A busy loop needs a core that nothing else uses: on a host with fewer cores than loops it delays everything.

use std::path::PathBuf;

use tapestore::time::{Clock, HostClock};
use tapestore::{At, Reader};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = PathBuf::from(arguments.next().unwrap_or("tapestore-data".to_owned()));
    let records: u64 = arguments.next().map_or(Ok(1_000), |n| n.parse())?;
    if let Some(core) = arguments.next() {
        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core.parse()? });
        println!("pinned to core {core}: {pinned}");
    }
    let mut reader = Reader::open(&store)?;
    let newest = reader.snapshot(At::Appended)?.last();
    let mut follow = reader.follow(newest.next(), At::Appended);
    println!("following from {}", newest.next());
    let (mut seen, mut slowest) = (0, 0);
    while seen < records {
        // `poll` neither waits nor makes a system call when nothing is new.
        let Some(row) = follow.poll()? else {
            std::hint::spin_loop();
            continue;
        };
        let age = HostClock.wall().0.saturating_sub(row.index_time.0);
        slowest = slowest.max(age);
        seen += 1;
    }
    println!("{seen} records, the oldest was {slowest} ns old");
    Ok(())
}
