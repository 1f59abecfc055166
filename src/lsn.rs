//! Owns: the numbers of the log and of its writers, each its own type.
//!
//! Watermarks obey `durable <= appended`, `applied <= appended`, `committed <= appended`; standalone,
//! `committed = durable`. They fall only when [`Timeline`] rises.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(bytemuck::Pod, bytemuck::Zeroable, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        #[repr(transparent)]
        pub struct $name(
            /// The number.
            pub $inner,
        );

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Dense, gap-free number of a record in its store. The first record is 1; 0 means "none".
    Lsn(u64)
}
number! {
    /// Byte position in the log, counted over all segments from its beginning.
    Position(u64)
}
number! {
    /// Dense number of a frame in the log; the first is 1. The raft index.
    FrameIndex(u64)
}
number! {
    /// Rises at every start of the log's owner; durable before the first frame that carries it.
    Term(u32)
}
number! {
    /// Rises when records that readers may have seen are withdrawn.
    Timeline(u64)
}
number! {
    /// Who writes: a bus identity chosen by the publisher's owner.
    PublisherId(u16)
}
number! {
    /// One attachment of a publisher as `new`; a higher epoch fences the lower ones.
    Epoch(u32)
}
number! {
    /// Dense number of a record of one (publisher, epoch); the first is 1.
    PubSeq(u64)
}
number! {
    /// A host of a cluster; chosen by its operator, never used again for another. 0 means "none".
    #[derive(serde::Serialize, serde::Deserialize)]
    NodeId(u64)
}
number! {
    /// An instrument of this store; the first is 1.
    InstrumentId(u32)
}

impl Lsn {
    /// No record yet.
    pub const NONE: Lsn = Lsn(0);

    /// The LSN that follows.
    #[must_use]
    pub const fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }

    /// The LSN `count` records later.
    #[must_use]
    pub const fn plus(self, count: u64) -> Lsn {
        Lsn(self.0 + count)
    }
}

impl InstrumentId {
    /// The null instrument, of records that concern no single one.
    pub const NULL: InstrumentId = InstrumentId(u32::MAX);
}

/// How far above the newest epoch of a publisher in the log the epoch may be that it goes on from. It was granted before the
/// store lost the end of its log, or was restored: each epoch is a start of the publisher, or a loss of what it held.
pub const EPOCHS_LOST_MAX: u32 = 1024;

/// Why a publisher that goes on from an epoch further above is refused for good.
pub const NO_SUCH_EPOCH: &str = "the store has never granted that epoch to this publisher; start the publisher again";

/// How far a record must have come before its publisher is told, in rising order; `quorum-os` stands apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Level {
    /// Nothing is promised; every loss is counted.
    None = 0,
    /// In the log file: survives the death of any process. Synced within 50 ms or 4 MiB.
    Os = 1,
    /// Synced to the disk: survives the loss of power.
    #[default]
    Fsync = 2,
    /// Committed, and on the disk of a host that holds the log without a vote: for a pair. Where there is no such host the
    /// same as `quorum`.
    Standby = 3,
    /// Synced to the disks of most hosts of the cluster: survives the loss of the others. Without a cluster the same as
    /// `fsync`.
    Quorum = 4,
    /// In the memory of most hosts of a cluster that is kept with `flush = "interval"`, and in their log files: survives the
    /// death of any process and the loss of a few hosts, but **is lost** if most of them lose power within the interval.
    /// In every other store the same as `quorum`.
    QuorumOs = 5,
}

/// Why a store refuses a level that it cannot hold.
pub const NO_SUCH_LEVEL: &str = "this store is kept with flush = \"interval\": its hosts have a record in memory when they say that they have it. Ask for the level `quorum-os`, which says so, or for `fsync`, the disk of the publisher's own host";

impl Level {
    /// The level of number `raw`, if there is one.
    pub const fn from_raw(raw: u8) -> Option<Level> {
        match raw {
            0 => Some(Level::None),
            1 => Some(Level::Os),
            2 => Some(Level::Fsync),
            3 => Some(Level::Standby),
            4 => Some(Level::Quorum),
            5 => Some(Level::QuorumOs),
            _ => None,
        }
    }

    /// Whether its publishers wait for a disk.
    pub const fn waits_for_disk(self) -> bool {
        matches!(self, Level::Fsync | Level::Standby | Level::Quorum)
    }

    /// What who asks for this level gets of a store whose least level is `least`; `is_lossy`: other hosts say that they have
    /// a record before it is on their disks. `None`: this store has no such level.
    pub fn granted(self, least: Level, is_lossy: bool) -> Option<Level> {
        match (self, is_lossy) {
            (Level::Standby | Level::Quorum, true) => None,
            // Of a lossy store the least level is `none` or `os`: neither of the two above it holds what the other does.
            (Level::Fsync | Level::QuorumOs, true) => Some(self),
            (Level::QuorumOs, false) => Some(Level::Quorum),
            _ => Some(self.max(least)),
        }
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Level::None),
            "os" => Ok(Level::Os),
            "fsync" => Ok(Level::Fsync),
            "standby" => Ok(Level::Standby),
            "quorum" => Ok(Level::Quorum),
            "quorum-os" => Ok(Level::QuorumOs),
            _ => Err(format!("'{text}' is none of: none, os, fsync, standby, quorum, quorum-os")),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::None => "none",
            Level::Os => "os",
            Level::Fsync => "fsync",
            Level::Standby => "standby",
            Level::Quorum => "quorum",
            Level::QuorumOs => "quorum-os",
        })
    }
}
