//! Owns: the truncation of a log that diverges from the leader's: the tail is removed, and kept aside. That it diverges, and
//! after which frame, is decided by `Verdict` in `consensus::work`.
//!
//! What must hold: no committed frame is removed; the store is not served meanwhile.

use super::options::{Options, World};
use crate::consensus::MetaFile;
use crate::consensus::meta::{self, Meta};
use tapestore::error::{Error, Result};
use tapestore::lsn::FrameIndex;
use tapestore::manifest::Manifest;
use tapestore::wal::{self, Truncated};

/// Truncates the store's log after frame `last_kept`, which [`super::Storage::stop`] has returned.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Missing`] if there is no store; [`Error::Consensus`] if a frame
/// after `last_kept` is committed; as `wal::truncate`.
pub fn truncate(options: &Options, world: &World, last_kept: u64) -> Result<Truncated> {
    let (disk, dir) = (&world.disk, &options.store);
    let _lock = disk.lock(&dir.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: dir.clone() })?;
    let known = wal::meta::read(disk.as_ref(), dir)?;
    let known = known.ok_or_else(|| Error::Missing { path: dir.join(wal::meta::NAME), what: "a store was served here" })?;
    let committed = meta::read(disk.as_ref(), dir)?.map_or(u64::MAX, |m| m.commit);
    if last_kept < committed {
        let cause = format!(
            "frame {} differs from the leader's, but frames up to {committed} are committed: one of the two hosts has lost \
             frames. Check both with: tape verify. To replace this store by the leader's: \
             tape cluster install-snapshot --store {} --from HOST:PORT",
            last_kept + 1,
            dir.display()
        );
        return Err(Error::Consensus { what: "truncate its log", cause });
    }
    if known.clean && meta::read(disk.as_ref(), dir)?.is_some_and(|m| m.boot != 0) {
        // All of it is durable, and the next start must not count a tail truncated on purpose as lost.
        let mut file = MetaFile::open(disk.as_ref(), dir)?;
        file.update(Meta { boot: 0, ..file.meta().clone() })?;
    }
    let from = Manifest::open(disk.clone(), dir, known.store_id)?.state().checkpoint;
    wal::truncate(disk.as_ref(), dir, from, FrameIndex(last_kept))
}
