//! Owns: how many of the records that a publisher took have not come as far as its level asks: what a program that ends
//! has to say of them.

use super::{Publisher, State, lock};
use crate::lsn::{Level, PubSeq};

/// Records that a publisher took and whose level is not reached, by what has been acknowledged up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// In the log file, and not yet at the publisher's level.
    pub in_log: u64,
    /// Not acknowledged at all. They are in this process, and lost when it ends, unless storage had received them by then.
    pub unacknowledged: u64,
}

impl Outstanding {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.in_log + self.unacknowledged
    }
}

impl Publisher {
    /// Records taken and not at the publisher's level yet; of [`Level::None`] those that are not in the log file. What
    /// [`Publisher::take_lost`] gives is not among them.
    pub fn outstanding(&self) -> Outstanding {
        let mut state = lock(&self.state);
        state.reap();
        state.outstanding()
    }
}

impl State {
    fn outstanding(&self) -> Outstanding {
        let reached = match self.level {
            Level::None | Level::Os => self.progress.accepted,
            Level::Fsync => self.progress.durable,
            Level::Standby | Level::Quorum | Level::QuorumOs => self.progress.committed,
        };
        // The record of a gap is the publisher's own, not its caller's.
        let above = |seq: PubSeq| (self.ring.next().0 - 1).saturating_sub(seq.0) - self.ring.gaps_above(seq);
        let unacknowledged = above(self.progress.accepted);
        Outstanding { in_log: above(reached).saturating_sub(unacknowledged), unacknowledged }
    }
}
