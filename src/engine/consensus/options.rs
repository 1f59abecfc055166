//! Owns: the times of a cluster, as an operator gives them and as the raft crate counts them; when its hosts say that they
//! have a frame.

use raft::Config;

use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;

/// Milliseconds of a tick.
pub const TICK_MS: u64 = 10;
/// Bytes of entries, as the raft crate counts them, in one message: so many that their frames fit in four MiB.
const MESSAGE_ENTRY_BYTES: u64 = 64 * 12;
/// Messages with frames that are on the way to a member at once.
const INFLIGHT_MAX: usize = 256;

/// When a host says to others that it has a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// Once it is on its disk.
    #[default]
    Always,
    /// Once it is in its log file; it comes to the disk within the sync interval. **Lossy**: what most hosts had only in
    /// memory when they lost power is gone, whatever was said of it. A host that may have lost something does not vote
    /// until it has a copy of the leader's store.
    Interval,
}

/// Times of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Time between heartbeats of a leader, ms.
    pub heartbeat_ms: u64,
    /// Least time without a heartbeat after which a follower stands for election, ms,
    pub election_ms: u64,
    /// and how much longer it may wait, so that not all stand at once, ms.
    pub election_spread_ms: u64,
    /// Bytes of log kept for members that lag behind, at most.
    pub retain_bytes: u64,
    /// Whether a host that does not lead passes on what its publishers send; else it refuses them.
    pub forward: bool,
    /// When a host says that it has a frame; the same on all hosts.
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
    /// Checks them against each other.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option and its bounds.
    pub fn check(&self) -> Result<()> {
        let bad = |what, reason: String| Err(Error::Invalid { what, reason });
        if self.heartbeat_ms < TICK_MS || self.heartbeat_ms > 60_000 {
            return bad("heartbeat-ms", format!("{} is not from {TICK_MS} to 60000", self.heartbeat_ms));
        }
        if self.election_ms < 2 * self.heartbeat_ms || self.election_ms > 600_000 {
            return bad("election-ms", format!("{} is not from twice heartbeat-ms to 600000", self.election_ms));
        }
        if self.election_spread_ms < TICK_MS || self.election_spread_ms > 600_000 {
            return bad("election-spread-ms", format!("{} is not from {TICK_MS} to 600000", self.election_spread_ms));
        }
        Ok(())
    }

    /// Whether what is said to be on most hosts may be in their memories only.
    pub fn is_lossy(&self) -> bool {
        self.flush == Flush::Interval
    }

    /// As the raft crate takes them, for node `id`, which has carried out changes of members up to frame `applied`.
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
