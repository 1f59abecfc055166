//! Owns: the numbers of the log and of its writers, each a type of its own.
//!
//! What must hold: `durable <= appended`, `applied <= appended`, `committed <= appended`; standalone,
//! `committed = durable`. Watermarks fall only when [`Timeline`] rises.

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
    /// Byte position in the log, counted from its start over all segments.
    Position(u64)
}
number! {
    /// Dense number of a frame in the log; the first is 1. The raft index.
    FrameIndex(u64)
}
number! {
    /// Number of a leadership of the log. It rises when a host stands for election, and at every start of a single host; it is
    /// durable before the first frame that carries it.
    Term(u32)
}
number! {
    /// Rises when records that readers may have seen are withdrawn.
    Timeline(u64)
}
number! {
    /// A publisher's identity on the bus, chosen by its owner.
    PublisherId(u16)
}
number! {
    /// Rises each time a publisher attaches as new; a higher epoch fences the lower ones.
    Epoch(u32)
}
number! {
    /// Dense number of a record of one (publisher, epoch); the first is 1.
    PubSeq(u64)
}
number! {
    /// A host of a cluster, numbered by its operator; a number is never reused for another host. 0 means "none".
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
    #[doc(hidden)]
    pub const fn plus(self, count: u64) -> Lsn {
        Lsn(self.0 + count)
    }
}

impl InstrumentId {
    /// The null instrument, for records that concern no single one.
    pub const NULL: InstrumentId = InstrumentId(u32::MAX);
}

/// How far a resumed epoch may lie above the publisher's newest epoch in the log. Such an epoch was granted before the store
/// lost the end of its log, or was restored. Each start of a publisher, and each loss of its ring's records, takes one epoch.
#[doc(hidden)]
pub const EPOCHS_LOST_MAX: u32 = 1024;

/// Why storage refuses for good a publisher that resumes an epoch above that limit.
#[doc(hidden)]
pub const NO_SUCH_EPOCH: &str = "the store has never granted that epoch to this publisher; start the publisher again";

/// How durable a record must be before storage acknowledges it, in rising order; `quorum-os` stands apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Durability {
    /// No guarantee; every loss is counted.
    None = 0,
    /// In the log file: survives the death of any process. Synced within 50 ms or 4 MiB.
    Os = 1,
    /// Synced to the disk: survives the loss of power.
    #[default]
    Fsync = 2,
    /// Committed, and on the disk of a learner: for a pair. Without a learner the same as `quorum`.
    Standby = 3,
    /// Synced to the disks of a majority of the cluster's hosts: survives the loss of the others. Without a cluster the same
    /// as `fsync`.
    Quorum = 4,
    /// In the memory and the log files of a majority of the hosts, in a cluster with `flush = "interval"`: survives the death
    /// of any process and the loss of a minority of hosts, but **is lost** if a majority loses power within the interval.
    /// In every other store the same as `quorum`.
    QuorumOs = 5,
}

/// Why a store refuses a level that it cannot guarantee.
#[doc(hidden)]
pub const NO_SUCH_LEVEL: &str = "this store runs with flush = \"interval\": its hosts acknowledge a record that is only in memory. Ask for the level `quorum-os`, which means that, or for `fsync`, the disk of the publisher's own host";

impl Durability {
    /// The level numbered `raw`, if there is one.
    #[doc(hidden)]
    pub const fn from_raw(raw: u8) -> Option<Durability> {
        match raw {
            0 => Some(Durability::None),
            1 => Some(Durability::Os),
            2 => Some(Durability::Fsync),
            3 => Some(Durability::Standby),
            4 => Some(Durability::Quorum),
            5 => Some(Durability::QuorumOs),
            _ => None,
        }
    }

    /// Whether an acknowledgement at this level waits for a disk.
    #[doc(hidden)]
    pub const fn waits_for_disk(self) -> bool {
        matches!(self, Durability::Fsync | Durability::Standby | Durability::Quorum)
    }

    /// The level that a store grants to a publisher that asks for this one. `least`: the store's lowest level; `is_lossy`:
    /// its other hosts acknowledge a record before it is on their disks. `None`: the store does not have this level.
    #[doc(hidden)]
    pub fn granted(self, least: Durability, is_lossy: bool) -> Option<Durability> {
        match (self, is_lossy) {
            (Durability::Standby | Durability::Quorum, true) => None,
            // The lowest level of a lossy store is `none` or `os`; of `fsync` and `quorum-os` neither includes the other.
            (Durability::Fsync | Durability::QuorumOs, true) => Some(self),
            (Durability::QuorumOs, false) => Durability::Quorum.granted(least, false),
            _ => Some(if least.strength() > self.strength() { least } else { self }),
        }
    }

    /// Its place among the levels of a store: a higher one includes the lower ones. `standby` includes `quorum`, because it
    /// waits for the commit too.
    const fn strength(self) -> u8 {
        match self {
            Durability::None => 0,
            Durability::Os => 1,
            Durability::Fsync => 2,
            Durability::Quorum | Durability::QuorumOs => 3,
            Durability::Standby => 4,
        }
    }
}

/// A text that names no [`Durability`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDurability(pub String);

impl fmt::Display for UnknownDurability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is none of: none, os, fsync, standby, quorum, quorum-os", self.0)
    }
}

impl std::error::Error for UnknownDurability {}

impl std::str::FromStr for Durability {
    type Err = UnknownDurability;

    fn from_str(text: &str) -> Result<Self, UnknownDurability> {
        match text {
            "none" => Ok(Durability::None),
            "os" => Ok(Durability::Os),
            "fsync" => Ok(Durability::Fsync),
            "standby" => Ok(Durability::Standby),
            "quorum" => Ok(Durability::Quorum),
            "quorum-os" => Ok(Durability::QuorumOs),
            _ => Err(UnknownDurability(text.to_owned())),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::None => "none",
            Durability::Os => "os",
            Durability::Fsync => "fsync",
            Durability::Standby => "standby",
            Durability::Quorum => "quorum",
            Durability::QuorumOs => "quorum-os",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_granted_level_includes_the_one_asked_for_and_the_lowest_of_the_store() {
        use Durability::{Fsync, None, Os, Quorum, QuorumOs, Standby};
        // The levels that each one includes, in a store that is not lossy: there `quorum-os` is `quorum`.
        let includes = |level, other| match level {
            None => other == None,
            Os => matches!(other, None | Os),
            Fsync => matches!(other, None | Os | Fsync),
            Quorum | QuorumOs => other != Standby,
            Standby => true,
        };
        for asked in [None, Os, Fsync, Standby, Quorum, QuorumOs] {
            for least in [None, Os, Fsync, Standby, Quorum, QuorumOs] {
                let granted = asked.granted(least, false).unwrap();
                assert!(includes(granted, asked) && includes(granted, least), "{asked} with {least} at least: {granted}");
                assert!(granted == asked || granted == least || granted == Quorum, "{asked}, {least}: no more than is needed");
            }
        }
        assert_eq!(Standby.granted(Quorum, false), Some(Standby), "of a pair: quorum is its leader alone");
        assert_eq!((Quorum.granted(None, true), Standby.granted(None, true)), (Option::None, Option::None));
        assert_eq!((QuorumOs.granted(Os, true), None.granted(Os, true)), (Some(QuorumOs), Some(Os)));
    }
}
