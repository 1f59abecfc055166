//! Owns: MemTables, which hold the newest records in shared memory: byte layout ([`format`]), writer
//! ([`Writer`]), reader ([`Table`]).
//!
//! What must hold: one writer, and any number of readers that never wait and never make it wait. A
//! reader that has loaded `applied` sees every row up to it whole, in any process.

pub mod format;

mod order;
mod reader;
pub mod size;
mod writer;

#[cfg(test)]
mod tests;

use crate::lsn::{Epoch, PubSeq, PublisherId};

pub use reader::{Rows, Table};
pub use writer::Writer;

/// Publisher and first number of the records of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The publisher.
    pub publisher: PublisherId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The publisher's number of the first record.
    pub first_pub_seq: PubSeq,
}
