//! Owns: the watermarks up to which a reader reads.

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::shm::control::{Control, Statistic};

/// The watermark up to which to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Everything that storage has appended; after a loss of power the newest records may be withdrawn.
    Appended,
    /// Records that are durable on this host.
    Durable,
    /// Records that are never withdrawn. In a cluster with `flush = "interval"` they are in the memory of a majority of
    /// hosts, and withdrawn if those lose power.
    Committed,
    /// Records that are flushed to SSTables: a part of the store, on explicit request.
    Flushed,
}

impl std::str::FromStr for At {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "appended" => Ok(At::Appended),
            "durable" => Ok(At::Durable),
            "committed" => Ok(At::Committed),
            "flushed" => Ok(At::Flushed),
            _ => Err(Error::invalid("watermark", format!("'{text}' is none of: appended, durable, committed, flushed"))),
        }
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            At::Appended => "appended",
            At::Durable => "durable",
            At::Committed => "committed",
            At::Flushed => "flushed",
        })
    }
}

/// The last record of the store at `at`.
#[doc(hidden)]
pub fn watermark(control: &Control, at: At) -> Lsn {
    match at {
        At::Appended => control.appended(),
        At::Durable => control.durable(),
        At::Committed => control.committed(),
        At::Flushed => Lsn(control.statistic(Statistic::Covered)),
    }
}
