//! Owns: how a publisher is to be, and the defaults.

use std::path::PathBuf;
use std::time::Duration;

use crate::lsn::{Level, PublisherId};

/// How a publisher is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store.
    pub store: PathBuf,
    /// Who it is. At most one process writes as a publisher.
    pub publisher: PublisherId,
    /// Whether to fence a live process of this host that writes as this publisher, as the standby of a feed handler does
    /// when that hangs. One whose process has ended is taken over from in any case, and on the hosts of a cluster so is
    /// one that writes on another host.
    pub take_over: bool,
    /// Until when records are kept for sending again.
    pub level: Level,
    /// Bytes of the ring.
    pub ring_bytes: usize,
    /// How long a call waits for room in the ring.
    pub send_timeout: Duration,
    /// How long opening waits for storage.
    pub open_timeout: Duration,
    /// Whether to send to live subscribers.
    pub live: bool,
}

impl Options {
    /// The defaults: level `fsync`, 64 MiB, 5 ms, 10 s, live.
    pub fn new(store: impl Into<PathBuf>, publisher: PublisherId) -> Options {
        Options {
            store: store.into(),
            publisher,
            take_over: false,
            level: Level::Fsync,
            ring_bytes: 64 << 20,
            send_timeout: Duration::from_millis(5),
            open_timeout: Duration::from_secs(10),
            live: true,
        }
    }
}
