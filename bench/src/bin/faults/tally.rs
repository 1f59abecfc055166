//! Owns: what simulated trials count, and the clock that they live by.
//!
//! What must hold: a count orders nothing; simulated time moves only when it is told to.

use std::sync::atomic::{AtomicU64, Ordering};

use tapestore::disk::sim::SimRng;
use tapestore::time::{Clock, Ts};

use crate::model::BEGIN;

/// What happened in all trials.
#[derive(Debug, Default)]
pub struct Counts {
    /// Starts of the store.
    pub starts: AtomicU64,
    /// Lives that ended by loss of power.
    pub power: AtomicU64,
    /// Lives that ended by a kill.
    pub killed: AtomicU64,
    /// Lives that ended in order.
    pub stopped: AtomicU64,
    /// Lives in which a call failed.
    pub failed: AtomicU64,
    /// Records sent.
    pub records: AtomicU64,
    /// Records that were never durable and are gone.
    pub lost: AtomicU64,
    /// MemTables filed.
    pub filed: AtomicU64,
    /// Merges.
    pub merged: AtomicU64,
    /// Files let go of.
    pub dropped: AtomicU64,
    /// Torn tails.
    pub cut: AtomicU64,
    /// Log segments used again.
    pub reused: AtomicU64,
}

/// Adds `more` to `counter`.
pub fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counts {
    /// All of it, for people.
    pub fn summary(&self) -> String {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        format!(
            "{} starts; lives ended by loss of power {}, by a kill {}, in order {}; with a failed call {}; {} records sent, \
             {} of them never durable and lost; {} MemTables filed; {} merges; {} files dropped for their age; {} torn tails cut; {} log segments used again",
            get(&self.starts),
            get(&self.power),
            get(&self.killed),
            get(&self.stopped),
            get(&self.failed),
            get(&self.records),
            get(&self.lost),
            get(&self.filed),
            get(&self.merged),
            get(&self.dropped),
            get(&self.cut),
            get(&self.reused)
        )
    }
}

/// A clock whose wall time jumps.
#[derive(Debug)]
pub struct JumpClock {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl Clock for JumpClock {
    fn wall(&self) -> Ts {
        Ts(self.wall.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> u64 {
        self.monotonic.load(Ordering::Relaxed)
    }
}

impl JumpClock {
    /// At the beginning of simulated time.
    pub fn new() -> JumpClock {
        JumpClock { wall: AtomicU64::new(BEGIN), monotonic: AtomicU64::new(1) }
    }

    /// Time passes; sometimes the wall clock jumps.
    pub fn turn(&self, rng: &mut SimRng) {
        self.monotonic.fetch_add(rng.below(10_000_000), Ordering::Relaxed);
        let hour = 3_600_000_000_000;
        match rng.below(40) {
            0 => self.wall.fetch_add(rng.below(2 * hour), Ordering::Relaxed),
            1 => self.wall.fetch_sub(rng.below(hour), Ordering::Relaxed),
            _ => self.wall.fetch_add(rng.below(1_000_000_000), Ordering::Relaxed),
        };
    }
}
