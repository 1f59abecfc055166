//! Owns: what keeps a store from taking records in or its readers from what is new, as the control page has it: one
//! judgement for `tape status`, for its exit code, and for a publisher that is not answered.
//!
//! What must hold: of several troubles the one is given that the others follow from.

use std::fmt;

use super::control::{BackPressure, Control, Statistic};
use crate::time::{Clock, HostClock, Ts};

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

impl Control {
    /// What is wrong with the store now, and since when if that is known.
    pub fn trouble(&self) -> Option<(Trouble, Option<Ts>)> {
        let (monotonic, wall) = (HostClock.monotonic(), HostClock.wall());
        let at = |then: u64| Some(Ts(wall.0.saturating_sub(monotonic.saturating_sub(then)))).filter(|_| then > 0);
        let since = |which| at(self.statistic(which));
        let last_beat = at(self.heartbeat());
        let pressure = BackPressure::from_raw(self.statistic(Statistic::HeldBack));
        if !self.instance().is_multiple_of(2) {
            return Some((Trouble::Recovering, None));
        }
        if self.server().is_none() {
            let why = if pressure == Some(BackPressure::Halted) { Trouble::Halted } else { Trouble::Stopped };
            return Some((why, last_beat));
        }
        if !self.is_alive(monotonic) {
            return Some((Trouble::Silent, last_beat));
        }
        if self.statistic(Statistic::NeedsSnapshotSince) > 0 {
            return Some((Trouble::NeedsSnapshot, since(Statistic::NeedsSnapshotSince)));
        }
        let (role, leader) = self.role();
        if role > 0 && leader == 0 {
            return Some((Trouble::NoLeader, since(Statistic::LeaderSince)));
        }
        let trouble = match pressure? {
            BackPressure::MemTablesFull => Trouble::MemTablesFull,
            BackPressure::DiskBehind => Trouble::DiskBehind,
            BackPressure::Halted => Trouble::Halted,
            BackPressure::NoSpace => Trouble::NoSpace,
        };
        Some((trouble, since(Statistic::HeldBackSince)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Term;

    #[test]
    fn the_trouble_that_the_others_follow_from_is_given_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open_or_create(&dir.path().join("control"), 7).unwrap();
        let what = || control.trouble().map(|(trouble, _)| trouble);
        // Since how many whole hours ago: the test takes less than one.
        let hours = || {
            let since = control.trouble().unwrap().1.unwrap();
            (HostClock.wall().0 - since.0) / 3_600_000_000_000
        };
        let ago = |hours: u64| HostClock.monotonic().saturating_sub(hours * 3_600_000_000_000).max(1);
        control.set_instance(1);
        assert_eq!(what(), Some(Trouble::Recovering));
        control.set_instance(2);
        assert_eq!(control.trouble(), Some((Trouble::Stopped, None)));
        control.set_server(Some((1, Term(1), Ts(5))));
        assert_eq!(what(), Some(Trouble::Silent));
        control.beat(HostClock.monotonic());
        assert_eq!(what(), None, "it serves, and belongs to no cluster");
        control.set_role(1, 2, 0, 10);
        control.hold_back(Some(BackPressure::NoSpace), ago(0));
        assert_eq!(what(), Some(Trouble::NoLeader));
        let since = control.trouble().unwrap().1.unwrap();
        control.set_role(2, 2, 0, ago(0));
        let again = control.trouble().unwrap().1.unwrap();
        assert!(again.0.abs_diff(since.0) < 1_000_000_000, "nobody leads since the time before");
        control.set_role(2, 2, 3, ago(0));
        control.hold_back(Some(BackPressure::DiskBehind), ago(0));
        assert_eq!((what(), hours()), (Some(Trouble::DiskBehind), 0));
        control.set_needs_snapshot(true, ago(0));
        assert_eq!(what(), Some(Trouble::NeedsSnapshot));
        control.set_needs_snapshot(false, ago(0));
        control.hold_back(None, ago(0));
        assert_eq!(what(), None);
        control.hold_back(Some(BackPressure::Halted), ago(0));
        control.set_server(None);
        assert_eq!(what(), Some(Trouble::Halted));
    }
}
