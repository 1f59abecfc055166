//! tapestore: a shared-memory market-data store.
//!
//! Publisher processes write fixed-layout market records into shared memory; one storage process
//! numbers, logs and indexes them; any number of reader processes query them through memory maps.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tapestore::{lsn::PublisherId, publisher, reader, time::Ts};
//! use tapestore::record::{Record, Trade};
//!
//! let mut publisher = publisher::Publisher::open(publisher::Options::new("tapestore-data", PublisherId(7)))?;
//! let instrument = publisher.instrument(&"XNAS:AAPL".parse()?)?;
//! let (price, size) = ("189.98".parse()?, "100".parse()?);
//! publisher.publish(&Trade { instrument, price, size, ts_recv: Ts(1), ..Trade::default() })?;
//!
//! let mut reader = reader::Reader::open("tapestore-data".as_ref())?;
//! let mut now = reader.snapshot(reader::At::Appended)?;
//! let series = reader::Series { instrument, kind: Trade::KIND };
//! if let Some(row) = now.as_of(series, Ts(u64::MAX))? {
//!     println!("{} {:?}", row.lsn, row.record.get::<Trade>());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Modules stand on floors; a module uses only lower ones (`src/tidy.rs` keeps it):
//! `lsn error time` / `record agent` / `disk shm bus` / `wal memtable sstable` / `manifest version` /
//! `book bars publisher subscriber reader` / `engine` / `config`. There is no async code here.

#[cfg(not(all(target_endian = "little", target_pointer_width = "64", target_os = "linux")))]
compile_error!("tapestore runs on 64-bit little-endian Linux: its records are mapped as they are");

pub mod agent;
pub mod bars;
pub mod book;
pub mod bus;
pub mod config;
pub mod disk;
pub mod engine;
pub mod error;
pub mod lsn;
pub mod manifest;
pub mod memtable;
pub mod publisher;
pub mod reader;
pub mod record;
pub mod shm;
pub mod sstable;
pub mod subscriber;
pub mod time;
pub mod version;
pub mod wal;

#[cfg(test)]
mod tidy;
