//! Owns: files that records come from and go to. [`input`] reads DBN, Parquet, Arrow IPC, CSV and Binance captures, and
//! makes the simulated market; [`export`] writes what a store holds as DBN, Parquet, Arrow IPC and CSV; [`schema`] is the
//! one Arrow schema of both.
//!
//! What must hold: a record that [`export`] writes to Parquet, Arrow or CSV, and [`input`] reads again, is the same, bit
//! for bit, unless the export has counted what the format cannot hold; a file that cannot be read gives an [`Error`] with
//! its path, the place in it and the reason, never a panic. Nothing here prints, reads a command line or runs async code.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tapestore_formats::input::{self, Message, Options};
//!
//! let mut input = input::open("trades.parquet".as_ref(), &Options::default())?;
//! let mut message = Message::default();
//! while input.next(&mut message)? {
//!     for record in tapestore::record::split(&message.words) {
//!         println!("{:?}", record?);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod checksum;
pub mod error;
pub mod export;
pub mod input;
pub mod progress;
pub mod scatter;
pub mod schema;

pub use error::Error;
