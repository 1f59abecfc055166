//! Owns: MemTables, the newest records in shared memory: their bytes ([`format`]), filling
//! ([`Writer`]) and reading ([`Table`]).
//!
//! What must hold: one writer, any number of readers that never wait and never make it wait; a reader
//! that has loaded `applied` sees every row up to it whole, in any process.

pub mod format;

mod order;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use crate::lsn::{Epoch, PubSeq, PublisherId};

pub use reader::{Rows, Table};
pub use writer::Writer;

/// Where the records of a run come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who wrote them.
    pub publisher: PublisherId,
    /// In which epoch.
    pub epoch: Epoch,
    /// Number of the first.
    pub first_pub_seq: PubSeq,
}
