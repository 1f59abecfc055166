//! Owns: SSTables, the immutable files of history: their bytes ([`format`]), writing ([`Writer`]) and
//! reading in place ([`Table`]).
//!
//! What must hold: a file is complete and durable before it has its name, and is never written again;
//! every part of it is checked against its CRC once, before its first use, and read in place from then
//! on; a page that cannot be read is an error.

pub mod bloom;
pub mod format;

mod arrow;
mod block;
mod lookup;
mod reader;
mod transpose;
mod writer;

#[cfg(test)]
mod tests;

use crate::lsn::Lsn;
use crate::record::Kind;
use crate::time::Ts;

pub use block::{BlockView, Slice, Times};
pub use reader::Table;
pub use transpose::{BatchBuffer, Body, Plan, Run};
pub use writer::{Origin, Spec, Writer};

/// Directory of the SSTables in the store directory.
pub const DIR: &str = "sst";

/// A span of index time whose records lie in files of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// The first moment.
    pub from: Ts,
    /// Its length, ns.
    pub len: u64,
}

impl Window {
    /// The lengths of windows, ns: an hour, a day, thirty days, all of time.
    pub const LENGTHS: [u64; 4] = [3_600_000_000_000, 86_400_000_000_000, 30 * 86_400_000_000_000, u64::MAX];

    /// The window of length `len` that holds `time`.
    pub fn of(time: Ts, len: u64) -> Window {
        Window { from: Ts(time.0 / len * len), len }
    }

    /// Its last moment.
    pub fn last(&self) -> Ts {
        Ts(self.from.0.saturating_add(self.len - 1))
    }
}

/// What the manifest knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Its number; no other file of the store ever has it.
    pub id: u64,
    /// The kind of its records.
    pub kind: Kind,
    /// The window they lie in.
    pub window: Window,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub len: u64,
    /// CRC of the trailer, which holds the others.
    pub crc: u32,
    /// Least and greatest index time.
    pub time: (Ts, Ts),
    /// Least and greatest LSN.
    pub lsn: (Lsn, Lsn),
}

/// Name of the file `id` of `kind`.
pub fn file_name(kind: Kind, id: u64) -> String {
    let name = crate::record::schema(kind).map_or_else(|| format!("kind{}", kind.0), |s| s.name.to_owned());
    format!("{name}-{id:012x}.{}", format::EXTENSION)
}

/// The number of the file called `name`, finished or not; `None` if it is no SSTable's name.
pub fn file_id(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".tmp").or_else(|| name.strip_suffix(format::EXTENSION)?.strip_suffix('.'))?;
    let (_, hex) = stem.rsplit_once('-')?;
    (hex.len() == 12).then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}
