//! Owns: the options of a publisher and their defaults.

use std::path::PathBuf;
use std::time::Duration;

use crate::agent::Wait;
use crate::lsn::{Durability, PublisherId};

/// The options of a publisher.
///
/// ```
/// use tapestore::lsn::{Durability, PublisherId};
/// use tapestore::publisher::{Options, Wait};
///
/// let mut options = Options::new("tapestore-data", PublisherId(7));
/// options.durability = Durability::Os;
/// options.wait = Wait::Busy;
/// options.core = Some(2);
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// The store.
    pub store: PathBuf,
    /// The publisher's number. At most one process publishes under it.
    pub publisher: PublisherId,
    /// Whether to fence a live process of this host that publishes as this publisher, for the standby of a feed handler
    /// that hangs. A publisher whose process has ended is always taken over; so is, in a cluster, one on another host.
    pub take_over: bool,
    /// The level at which a record is released from the ring.
    pub durability: Durability,
    /// Size of the ring, in bytes.
    pub ring_bytes: usize,
    /// Maximum wait of a call for room in the ring.
    pub send_timeout: Duration,
    /// Maximum wait for storage when opening.
    pub open_timeout: Duration,
    /// Whether to send to live subscribers too.
    pub live: bool,
    /// How calls wait for room in the ring and for acknowledgements: [`Wait::Busy`] never gives up the core.
    pub wait: Wait,
    /// CPU core to which the thread that opens the publisher is pinned.
    pub core: Option<usize>,
}

impl Options {
    /// The defaults: level `fsync`, 64 MiB, 5 ms, 10 s, live, an adaptive wait on any core.
    pub fn new(store: impl Into<PathBuf>, publisher: PublisherId) -> Options {
        Options {
            store: store.into(),
            publisher,
            take_over: false,
            durability: Durability::Fsync,
            ring_bytes: 64 << 20,
            send_timeout: Duration::from_millis(5),
            open_timeout: Duration::from_secs(10),
            live: true,
            wait: Wait::Adaptive,
            core: None,
        }
    }
}
