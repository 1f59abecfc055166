//! Owns: the effects that a host's state machine asks for. The ingest thread, or a simulation, carries them out in the order
//! in which they were asked for.
//!
//! What must hold: the state machine itself never waits, reads no clock and holds no socket. All that it needs done outside
//! the log and shared memory is an effect.

use super::flush::FlushItem;
use super::sync::SyncItem;
use crate::consensus::message::Message;
use tapestore::shm::bell::Bell;

/// One action to carry out.
pub(super) enum Effect {
    /// Send this to the sync agent.
    Sync(SyncItem),
    /// Send this to the flush agent, which has room for it.
    Flush(FlushItem),
    /// Ring this bell.
    Ring(Bell),
    /// Send this to the replication process, if it is connected.
    Notify(Message),
    /// Send this on the connection of this number.
    Say(u64, Message),
    /// Mark the connection of this number as the replication process.
    Replication(u64),
    /// Pass the batches of the publisher on this connection to this session.
    Attached {
        /// The connection.
        connection: u64,
        /// The session's slot.
        slot: usize,
    },
    /// End the session when its queue is empty: its publisher has ended.
    Ending {
        /// The session's slot.
        slot: usize,
    },
    /// Stop receiving for this connection.
    Detached {
        /// The connection.
        connection: u64,
    },
}

/// The clocks, as the ingest thread reads them once a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// The monotonic clock, ns.
    pub(super) now: u64,
    /// The wall clock.
    pub(super) wall: tapestore::time::Ts,
}
