//! Owns: the numbers that the agents share: how far the log is durable and committed, and from where it is needed.
//!
//! What must hold: each number is written by one thread: `durable` by the sync agent, the others by ingest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tapestore::lsn::Position;

/// The numbers that the ingest, sync and flush agents share.
#[derive(Debug)]
pub(super) struct Watermarks {
    durable: AtomicU64,
    committed: AtomicU64,
    needed: AtomicU64,
    alone: AtomicBool,
}

impl Watermarks {
    pub(super) fn new(durable: u64, alone: bool) -> Watermarks {
        let (committed, needed) = (AtomicU64::new(0), AtomicU64::new(0));
        Watermarks { durable: AtomicU64::new(durable), committed, needed, alone: AtomicBool::new(alone) }
    }

    /// Frames up to this index are committed, as far as ingest has been notified.
    pub(super) fn committed(&self) -> u64 {
        // SYNC: pairs with `set_committed`; the number only rises.
        self.committed.load(Ordering::Acquire)
    }

    pub(super) fn set_committed(&self, index: u64) {
        // SYNC: pairs with `committed`.
        self.committed.store(index, Ordering::Release);
    }

    pub(super) fn set_needed(&self, position: Position) {
        self.needed.store(position.0, Ordering::Relaxed);
    }

    /// The log is kept from this position on, regardless of the checkpoint: another host may still ask for it.
    pub(super) fn needed(&self) -> Position {
        // A number on its own: relaxed.
        Position(self.needed.load(Ordering::Relaxed))
    }

    /// Frames up to this index are durable.
    pub(super) fn durable(&self) -> u64 {
        // SYNC: pairs with `set_durable`: the sync has returned.
        self.durable.load(Ordering::Acquire)
    }

    pub(super) fn set_durable(&self, index: u64) {
        // SYNC: pairs with `durable`.
        self.durable.store(index, Ordering::Release);
    }

    /// Whether frames that are durable here are committed. The caller has taken the frames in question from the queue before,
    /// which orders them after the change to a cluster of several hosts.
    pub(super) fn is_alone(&self) -> bool {
        // SYNC: pairs with `set_alone`.
        self.alone.load(Ordering::Acquire)
    }

    pub(super) fn set_alone(&self, alone: bool) {
        // SYNC: pairs with `is_alone`.
        self.alone.store(alone, Ordering::Release);
    }
}
