//! Owns: what the state machine of a host asks of the world: each effect is carried out by the ingest thread, or by a
//! simulation, in the order in which it was asked for.
//!
//! What must hold: the state machine itself never waits, reads no clock and holds no socket; what it wants done outside of
//! the log and of shared memory stands here.

use super::flush::FlushItem;
use super::sync::SyncItem;
use crate::consensus::message::Message;
use tapestore::shm::bell::Bell;

/// One thing to be done.
pub(super) enum Effect {
    /// Give this to the sync agent.
    Sync(SyncItem),
    /// Give this to the flush agent, which has room for it.
    Flush(FlushItem),
    /// Wake who sleeps at this bell.
    Ring(Bell),
    /// Send this to the replication process, if it is there.
    Tell(Message),
    /// Send this on the connection of this number.
    Say(u64, Message),
    /// The connection of this number is the replication process from now on.
    Replication(u64),
    /// The batches of the publisher on this connection go to this session from now on.
    Attached {
        /// The connection.
        connection: u64,
        /// The session's slot.
        slot: usize,
    },
    /// The publisher on this connection has ended: its session ends when its queue is empty.
    Ending {
        /// The session's slot.
        slot: usize,
    },
    /// Nothing is received for this connection any more.
    Detached {
        /// The connection.
        connection: u64,
    },
}

/// A moment, as the ingest thread reads its clocks once a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Of the monotonic clock, ns.
    pub(super) now: u64,
    /// Of the wall clock.
    pub(super) wall: tapestore::time::Ts,
}
