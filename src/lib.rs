//! tapestore: a shared-memory market-data store.
//!
//! How does a program publish records and read them, and how does it define kinds of records of its own?
//!
//! Publisher processes write fixed-layout market records into shared memory; one storage process
//! numbers, logs and indexes them; any number of reader processes query them through memory maps.
//! The pages in `src/docs` explain the rest: commands, durability, operation, several hosts, formats.
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
//! A program defines its own kinds by a derive. A kind has a number from `0x8000` on, unique in the store, and one
//! layout for ever: a changed struct needs a new number and may keep its name.
//!
//! ```
//! use tapestore::lsn::InstrumentId;
//! use tapestore::publisher::Publisher;
//! use tapestore::reader::{At, Reader, Series, TimeRange};
//! use tapestore::record::{Kind, Price, Record};
//! use tapestore::time::Ts;
//!
//! #[derive(Clone, Copy, Debug, Record)]
//! #[repr(C)]
//! #[record(kind = 0x8001, name = "signal", index = ts_recv, find(order_id))]
//! struct Signal {
//!     kind: Kind,
//!     source: u16,
//!     instrument: InstrumentId,
//!     ts_event: Ts,
//!     ts_recv: Ts,
//!     order_id: u64,
//!     fair: [Price; 2],
//!     model: [u8; 12],
//!     reserved: [u8; 4],
//! }
//!
//! fn run(publisher: &mut Publisher, reader: &mut Reader, instrument: InstrumentId) -> Result<(), Box<dyn std::error::Error>> {
//!     publisher.kind::<Signal>()?;
//!     publisher.publish(&Signal { instrument, order_id: 7, ts_recv: Ts(1), ..Signal::default() })?;
//!
//!     let snapshot = reader.snapshot(At::Appended)?;
//!     let series = Series { instrument, kind: Signal::KIND };
//!     let mut rows = snapshot.scan(series, TimeRange::ALL);
//!     while let Some(row) = rows.next()? {
//!         println!("{:?}", row.record.get::<Signal>());
//!     }
//!     println!("{}", snapshot.find(series, "order_id", 7)?.len());
//!     Ok(())
//! }
//! # assert_eq!(Signal::SCHEMA.columns.len(), 3 + 6);
//! # assert!(tapestore::record::Layout::of(&Signal::SCHEMA).is_ok());
//! ```
//!
//! A struct that cannot be a record does not compile, and the message gives the reason: "the record has padding: put
//! larger fields first", "`bool` cannot be a field of a record", "the number of a kind that a program defines is from
//! 0x8000 to 0x80ff", "write #[repr(C)] above it".
//!
//! A process holds one layout per number: it can use several stores at once as long as their kinds agree.
//!
//! ```compile_fail,E0080
//! # use tapestore::{lsn::InstrumentId, record::{Kind, Record}, time::Ts};
//! #[derive(Clone, Copy, Record)]
//! #[repr(C)]
//! #[record(kind = 0x8001, name = "padded")]
//! struct Padded { kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts, small: u8, large: u64 }
//! ```
//!
//! ```compile_fail,E0277
//! # use tapestore::{lsn::InstrumentId, record::{Kind, Record}, time::Ts};
//! #[derive(Clone, Copy, Record)]
//! #[repr(C)]
//! #[record(kind = 0x8001, name = "flagged")]
//! struct Flagged { kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts, flag: bool, reserved: [u8; 7] }
//! ```
//!
//! ```compile_fail,E0080
//! # use tapestore::{lsn::InstrumentId, record::{Kind, Record}, time::Ts};
//! #[derive(Clone, Copy, Record)]
//! #[repr(C)]
//! #[record(kind = 7, name = "built-in-number")]
//! struct Numbered { kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts }
//! ```
//!
//! ```compile_fail
//! # use tapestore::{lsn::InstrumentId, record::{Kind, Record}, time::Ts};
//! #[derive(Clone, Copy, Record)]
//! #[record(kind = 0x8001, name = "of-rust")]
//! struct OfRust { kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts }
//! ```
//!
//! ```compile_fail,E0308
//! # use tapestore::{lsn::InstrumentId, record::{Kind, Record}, time::Ts};
//! #[derive(Clone, Copy, Record)]
//! #[repr(C)]
//! #[record(kind = 0x8001, name = "sorted", index = price)]
//! struct Sorted { kind: Kind, source: u16, instrument: InstrumentId, ts_event: Ts, price: u64 }
//! ```
//!
//! Modules are layered in floors; a module uses only lower ones (`src/tidy.rs` enforces it):
//! `lsn sabotage error time` / `record agent pages` / `disk shm bus` / `wal memtable sstable` / `manifest` / `version` /
//! `book bars publisher subscriber reader`. There is no async code here.

#[cfg(not(all(target_endian = "little", target_pointer_width = "64", target_os = "linux")))]
compile_error!("tapestore runs on 64-bit little-endian Linux: its records are mapped as they are");

pub mod bars;
pub mod book;
#[cfg(any(doc, doctest))]
pub mod docs;
pub mod error;
pub mod lsn;
pub mod publisher;
pub mod reader;
pub mod record;
pub mod subscriber;
pub mod time;

// The storage process (package `tapestore-engine`) is built on these. Programs do not need them, and they may change.
#[doc(hidden)]
pub mod agent;
#[doc(hidden)]
pub mod bus;
#[doc(hidden)]
pub mod disk;
#[doc(hidden)]
pub mod manifest;
#[doc(hidden)]
pub mod memtable;
#[doc(hidden)]
pub mod pages;
#[doc(hidden)]
pub mod sabotage;
#[doc(hidden)]
pub mod shm;
#[doc(hidden)]
pub mod sstable;
#[doc(hidden)]
pub mod version;
#[doc(hidden)]
pub mod wal;

pub use book::Book;
pub use error::{Error, Result};
pub use lsn::{Durability, InstrumentId, Lsn, PublisherId};
pub use pages::guard as guard_pages;
pub use publisher::{PublishError, Publisher};
pub use reader::{At, Follow, Reader, Snapshot};
pub use record::{
    BookOrder, Definition, Depth10, Kind, Name, Price, Quote, Record, RecordRef, Row, Series, Size, TimeRange, Trade,
};
pub use shm::symbols::Symbols;
pub use subscriber::{Event, Subscriber};
pub use time::Ts;

// Used by the code that `derive(Record)` generates.
#[doc(hidden)]
pub use bytemuck;
extern crate self as tapestore;

#[cfg(test)]
mod tidy;
