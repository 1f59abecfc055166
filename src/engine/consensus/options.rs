//! Owns: the cluster's timeouts, as an operator sets them and as the raft crate counts them; when a host acknowledges a frame.
//!
//! What must hold: an election timeout is at least two heartbeats.

use raft::Config;

use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Milliseconds of a tick.
pub const TICK_MS: u64 = 10;
/// Bytes of entries in one message, as the raft crate counts them: few enough that their frames fit in four MiB.
const MESSAGE_ENTRY_BYTES: u64 = 64 * 12;
/// Messages with frames in flight to one member.
const INFLIGHT_MAX: usize = 256;

/// When a host acknowledges a frame to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// Once it is on its disk.
    #[default]
    Always,
    /// Once it is in its log file; it reaches the disk within the sync interval. **Lossy**: if a majority loses power, frames
    /// that it had only in memory are gone although they were committed. A host that may have lost frames does not vote
    /// until it has a snapshot of the leader's store.
    Interval,
}

/// Timeouts and modes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Time between heartbeats of a leader, ms.
    pub heartbeat_ms: u64,
    /// Least time without a heartbeat after which a follower campaigns, ms.
    pub election_ms: u64,
    /// Random extra time before that, so that not all campaign at once, ms.
    pub election_spread_ms: u64,
    /// Bytes of log kept for members that lag behind, at most.
    pub retain_bytes: u64,
    /// Whether a host that does not lead forwards its publishers' batches; else it refuses them.
    pub forward: bool,
    /// When a host acknowledges a frame; the same on all hosts.
    pub flush: Flush,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            heartbeat_ms: 100,
            election_ms: 300,
            election_spread_ms: 150,
            retain_bytes: 8 << 30,
            forward: true,
            flush: Flush::Always,
        }
    }
}

impl Options {
    /// Checks the values against their bounds.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option and its bounds.
    pub fn check(&self) -> Result<()> {
        let bad = |what, reason: String| Err(Error::Invalid { what, reason });
        if self.heartbeat_ms < TICK_MS || self.heartbeat_ms > 60_000 {
            return bad("heartbeat-ms", format!("{} is out of bounds; give {TICK_MS} to 60000", self.heartbeat_ms));
        }
        if self.election_ms < 2 * self.heartbeat_ms || self.election_ms > 600_000 {
            return bad("election-ms", format!("{} is out of bounds; give twice heartbeat-ms to 600000", self.election_ms));
        }
        if self.election_spread_ms < TICK_MS || self.election_spread_ms > 600_000 {
            return bad("election-spread-ms", format!("{} is out of bounds; give {TICK_MS} to 600000", self.election_spread_ms));
        }
        Ok(())
    }

    /// Whether committed frames may be in the memories of a majority only.
    pub fn is_lossy(&self) -> bool {
        self.flush == Flush::Interval
    }

    /// Converts to the raft crate's configuration of node `id`, which has applied membership frames up to `applied`.
    pub(super) fn config(&self, id: NodeId, applied: u64) -> Config {
        let ticks = |ms: u64| (ms / TICK_MS).max(1) as usize;
        let (least, spread) = (ticks(self.election_ms), ticks(self.election_spread_ms));
        Config {
            id: id.0,
            applied,
            heartbeat_tick: ticks(self.heartbeat_ms),
            election_tick: least,
            min_election_tick: least,
            max_election_tick: least + spread,
            max_size_per_msg: MESSAGE_ENTRY_BYTES,
            max_inflight_msgs: INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        }
    }
}
