//! Owns: the counters and the clock of simulated trials.
//!
//! What must hold: counters order no memory accesses; simulated time advances only by explicit calls.

use std::sync::atomic::{AtomicU64, Ordering};

use tapestore::disk::sim::SimRng;
use tapestore::time::{Clock, Ts};

use crate::model::BEGIN;

/// Counters over all trials.
#[derive(Debug, Default)]
pub struct Counts {
    /// Starts of the store.
    pub starts: AtomicU64,
    /// Process runs that ended by a power loss.
    pub power: AtomicU64,
    /// Process runs that ended by a kill.
    pub killed: AtomicU64,
    /// Process runs that ended by a clean stop.
    pub stopped: AtomicU64,
    /// Process runs in which a call failed.
    pub failed: AtomicU64,
    /// Records sent.
    pub records: AtomicU64,
    /// Records that were never durable and are lost.
    pub lost: AtomicU64,
    /// MemTables flushed.
    pub flushed: AtomicU64,
    /// Merges.
    pub merged: AtomicU64,
    /// SSTables dropped by retention.
    pub dropped: AtomicU64,
    /// Torn tails truncated.
    pub truncated: AtomicU64,
    /// Log segments recycled.
    pub reused: AtomicU64,
}

/// Adds `more` to `counter`.
pub fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counts {
    /// Formats all counters.
    pub fn summary(&self) -> String {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        format!(
            "{} starts; runs ended by power loss {}, by a kill {}, by a clean stop {}; with a failed call {}; {} records sent, \
             {} of them never durable and lost; {} MemTables flushed; {} merges; {} SSTables expired; {} torn tails truncated; {} log segments recycled",
            get(&self.starts),
            get(&self.power),
            get(&self.killed),
            get(&self.stopped),
            get(&self.failed),
            get(&self.records),
            get(&self.lost),
            get(&self.flushed),
            get(&self.merged),
            get(&self.dropped),
            get(&self.truncated),
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
    /// A clock at the beginning of simulated time.
    pub fn new() -> JumpClock {
        JumpClock { wall: AtomicU64::new(BEGIN), monotonic: AtomicU64::new(1) }
    }

    /// Advances the time; sometimes the wall clock jumps.
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
