//! Owns: what can keep a store from taking records in or its readers from what is new: what each trouble is called, what it
//! means and what to do. Which of them a store has the control page says.

use std::fmt;

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its storage process has stopped in order.
    Stopped,
    /// Its storage process has ended because the log could not be written or synced.
    Halted,
    /// Its storage process recovers, or was ended while it did.
    Recovering,
    /// Its storage process does not turn its loop: it was killed, or hangs.
    Silent,
    /// This host of a cluster has no snapshot of the leader's store yet.
    NeedsSnapshot,
    /// No host of the cluster is known to lead.
    NoLeader,
    /// The disk is full.
    NoSpace,
    /// The MemTables are full.
    MemTablesFull,
    /// The disk does not sync as fast as records come.
    DiskBehind,
}

impl Trouble {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Trouble::Stopped => "stopped",
            Trouble::Halted => "halted",
            Trouble::Recovering => "recovering",
            Trouble::Silent => "no-heartbeat",
            Trouble::NeedsSnapshot => "needs-snapshot",
            Trouble::NoLeader => "no-leader",
            Trouble::NoSpace => "no-space",
            Trouble::MemTablesFull => "memtables-full",
            Trouble::DiskBehind => "disk-behind",
        }
    }

    /// What it means.
    pub fn reason(self) -> &'static str {
        match self {
            Trouble::Stopped => "its storage process has stopped",
            Trouble::Halted => "its storage process has ended because the log could not be written or synced",
            Trouble::Recovering => "its storage process is recovering, or ended while it did",
            Trouble::Silent => "its storage process gives no heartbeat: it was killed, or hangs",
            Trouble::NeedsSnapshot => "this host waits for a snapshot of the leader's store",
            Trouble::NoLeader => "no host of the cluster is known to lead: a majority may be away",
            Trouble::NoSpace => "the disk is full (NoSpace); publishers are under back-pressure until there is room",
            Trouble::MemTablesFull => "the MemTables are full and not flushed yet; publishers are under back-pressure",
            Trouble::DiskBehind => "the disk is behind; publishers are under back-pressure",
        }
    }

    /// What to do or to look at next, in a store whose directory stands for `STORE`.
    pub fn advice(self) -> &'static str {
        match self {
            Trouble::Stopped | Trouble::Silent | Trouble::Recovering => "start it with: tape-storage --store STORE",
            Trouble::Halted => "see its log, check the disk, then: tape-storage --store STORE",
            Trouble::NeedsSnapshot | Trouble::NoLeader => "how the hosts stand says: tape cluster status --store STORE",
            Trouble::NoSpace => "free space on the disk; it goes on by itself",
            Trouble::MemTablesFull | Trouble::DiskBehind => "it goes on by itself; if it lasts, give the store a faster disk",
        }
    }

    /// Whether a storage process serves the store all the same: readers have what it had taken in.
    pub fn is_served(self) -> bool {
        !matches!(self, Trouble::Stopped | Trouble::Halted | Trouble::Recovering | Trouble::Silent)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}
