//! Owns: [`Trouble`], the conditions that stop a store from accepting records or its readers from seeing new ones, each with
//! its name, reason and advice. The control page determines which one a store has.
//!
//! What must hold: names are stable, because programs match on them.

use std::fmt;

/// A trouble of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The storage process has stopped cleanly.
    Stopped,
    /// The storage process has ended because a write or sync of the log failed.
    Halted,
    /// The storage process is recovering, or ended during recovery.
    Recovering,
    /// The storage process sends no heartbeat: it was killed, or hangs.
    Silent,
    /// This host needs a snapshot of the leader's store and has none yet.
    NeedsSnapshot,
    /// This host has no leader.
    NoLeader,
    /// The disk is full.
    NoSpace,
    /// The MemTables are full and not flushed yet.
    MemTablesFull,
    /// The disk syncs more slowly than records arrive.
    DiskBehind,
}

impl Trouble {
    /// All troubles.
    pub const ALL: [Trouble; 9] = [
        Trouble::Stopped,
        Trouble::Halted,
        Trouble::Recovering,
        Trouble::Silent,
        Trouble::NeedsSnapshot,
        Trouble::NoLeader,
        Trouble::NoSpace,
        Trouble::MemTablesFull,
        Trouble::DiskBehind,
    ];

    /// Name for programs.
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

    /// Explanation for people.
    pub fn reason(self) -> &'static str {
        match self {
            Trouble::Stopped => "the storage process has stopped",
            Trouble::Halted => "the storage process has ended because a write or sync of the log failed",
            Trouble::Recovering => "the storage process is recovering, or ended during recovery",
            Trouble::Silent => "the storage process sends no heartbeat: it was killed, or hangs",
            Trouble::NeedsSnapshot => "this host needs a snapshot of the leader's store and waits for it",
            Trouble::NoLeader => "this host has no leader: a majority of the hosts may be down or unreachable",
            Trouble::NoSpace => "the disk is full (NoSpace); publishers are under back-pressure until space is free",
            Trouble::MemTablesFull => "the MemTables are full and not flushed yet; publishers are under back-pressure",
            Trouble::DiskBehind => "the disk syncs more slowly than records arrive; publishers are under back-pressure",
        }
    }

    /// Next command or action; `STORE` stands for the store's directory.
    pub fn advice(self) -> &'static str {
        match self {
            Trouble::Stopped => "start the storage process: tape-storage --store STORE",
            Trouble::Recovering => "wait; if the process has ended, start it: tape-storage --store STORE",
            Trouble::Silent => {
                "if the process still runs (tape status prints its pid), stop it; then start it: tape-storage --store STORE"
            }
            Trouble::Halted => "read the log of the storage process, check the disk, then start it: tape-storage --store STORE",
            Trouble::NeedsSnapshot | Trouble::NoLeader => "show the state of the hosts: tape cluster status --store STORE",
            Trouble::NoSpace => "free space on the disk; the store then resumes by itself",
            Trouble::MemTablesFull | Trouble::DiskBehind => "the store resumes by itself; if this lasts, give it a faster disk",
        }
    }

    /// Whether a storage process still serves the store: readers then see all records that it has accepted.
    pub fn is_served(self) -> bool {
        !matches!(self, Trouble::Stopped | Trouble::Halted | Trouble::Recovering | Trouble::Silent)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}
