//! Owns: SSTables, the immutable files that hold history: byte layout ([`format`]), writer
//! ([`Writer`]), in-place reader ([`Table`]).
//!
//! What must hold: a file is complete and durable before it gets its name, and is never written again.
//! Every part of it is checked against its CRC once, before its first use, and read in place from then
//! on. An unreadable page is an error.

pub mod bloom;
pub mod format;

mod ahead;
mod arrow;
mod block;
mod checked;
mod lookup;
mod reader;
mod size;
mod transpose;
mod writer;

#[cfg(test)]
mod tests;

use crate::lsn::Lsn;
use crate::record::Kind;
use crate::time::Ts;

pub use ahead::{AHEAD_BLOCKS, Ahead, Part, has_likely_series};
pub use block::{BlockView, Slice, Times};
pub use reader::Table;
pub use size::Content;
pub use transpose::{BatchBuffer, Body, Plan, Run};
pub use writer::{Origin, Spec, Writer};

/// Directory of the SSTables, in the store directory.
pub const DIR: &str = "sst";

/// A span of index time with SSTables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// The first moment.
    pub from: Ts,
    /// Its length, ns.
    pub len: u64,
}

impl Window {
    /// The window lengths, ns: an hour, a day, thirty days, all of time.
    pub const LENGTHS: [u64; 4] = [3_600_000_000_000, 86_400_000_000_000, 30 * 86_400_000_000_000, u64::MAX];

    /// The window of length `len` that holds `time`.
    pub fn of(time: Ts, len: u64) -> Window {
        Window { from: Ts(time.0 / len * len), len }
    }

    /// The last moment.
    pub fn last(&self) -> Ts {
        Ts(self.from.0.saturating_add(self.len - 1))
    }
}

/// A file's entry in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Its number, unique in the store for ever.
    pub id: u64,
    /// The kind of the records.
    pub kind: Kind,
    /// The window of the records.
    pub window: Window,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub len: u64,
    /// CRC of the trailer, which holds the other CRCs.
    pub crc: u32,
    /// Least and greatest index time.
    pub time: (Ts, Ts),
    /// Least and greatest LSN.
    pub lsn: (Lsn, Lsn),
}

/// Name of file `id` of `kind`.
pub fn file_name(kind: Kind, id: u64) -> String {
    let name = crate::record::schema(kind).map_or_else(|| format!("kind{}", kind.0), |s| s.name.to_owned());
    format!("{name}-{id:012x}.{}", format::EXTENSION)
}

/// The number of the file called `name`, finished or not; `None` if that is not an SSTable's name.
pub fn file_id(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".tmp").or_else(|| name.strip_suffix(format::EXTENSION)?.strip_suffix('.'))?;
    let (_, hex) = stem.rsplit_once('-')?;
    (hex.len() == 12).then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}
