//! Owns: what of the configuration can change while storage runs: retention and compaction.
//!
//! What must hold: a change is checked as a whole before any of it is used; a running merge goes on under the old options but for its
//! rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::compaction;
use crate::compaction::retention::Rules;
use crate::options::Options;
use tapestore::error::{Error, Result};

/// What the flush agent receives.
pub(super) type Change = (compaction::Options, Rules);

/// How long a change waits for the flush agent: it can be in a flush.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes the options of running agents.
pub(super) struct Reload {
    changes: Sender<Change>,
    /// Bytes a second of merges.
    pace: Arc<AtomicU64>,
}

impl Reload {
    /// With the options of the start.
    pub(super) fn new(options: &Options) -> (Reload, Receiver<Change>) {
        let (changes, received) = bounded(1);
        (Reload { changes, pace: Arc::new(AtomicU64::new(options.compaction.bytes_per_second)) }, received)
    }

    /// The rate of merges, for the compaction agent.
    pub(super) fn pace(&self) -> Arc<AtomicU64> {
        self.pace.clone()
    }

    /// Uses retention and compaction of `options` from now on.
    pub(super) fn change(&self, options: &Options) -> Result<()> {
        options.compaction.check()?;
        let rules = Rules::new(&options.retention)?;
        let sent = self.changes.send_timeout((options.compaction.clone(), rules), PATIENCE);
        sent.map_err(|_| Error::invalid("reload", "storage has not used the change before; try again later"))?;
        // Orders nothing: a number that the next write of a merge reads.
        self.pace.store(options.compaction.bytes_per_second, Ordering::Relaxed);
        Ok(())
    }
}
