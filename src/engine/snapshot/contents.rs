//! Owns: the contents of a directory with a store, a backup or an unfinished copy: reading, verifying, removing them.
//!
//! What must hold: verification reads every byte.

use std::path::Path;

use tapestore::disk::{Disk, Open};
use tapestore::error::{Error, Result};
use tapestore::{manifest, sstable, wal};

/// Progress of a long operation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub what: &'static str,
    /// Bytes done since the last call.
    pub more: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Reads `store.meta` in `dir`, which must exist.
pub(crate) fn meta_of(disk: &dyn Disk, dir: &Path) -> Result<wal::Meta> {
    let found = wal::meta::read(disk, dir)?;
    found.ok_or_else(|| Error::Missing { path: dir.join(wal::meta::NAME), what: "it holds the store's identity" })
}

/// Reads every byte of those files of `state` in the store `dir` that `wanted` selects; returns the records in all of them.
pub(crate) fn verify_files(
    disk: &dyn Disk,
    dir: &Path,
    state: &manifest::State,
    wanted: impl Fn(u64) -> bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<u64> {
    let (mut rows, total) = (0, state.files.values().map(|f| f.len).sum());
    for meta in state.files.values() {
        if wanted(meta.id) {
            let table = sstable::Table::open(disk, &dir.join(sstable::DIR), *meta)?;
            table.verify(|_| Ok(()))?;
            table.release();
        }
        rows += meta.rows;
        progress(Progress { what: "verifying files", more: meta.len, total });
    }
    Ok(rows)
}

/// Reads every byte of the log of the store `dir`, strictly.
pub(crate) fn verify_log(disk: &dyn Disk, dir: &Path, meta: &wal::Meta, from: wal::Chain) -> Result<wal::Chain> {
    wal::scan(disk, &dir.join(wal::DIR), meta, from, Open::Read, |_| Ok(())).map(|end| end.chain)
}

/// Reads the manifest of the store in `dir`; the empty state if there is none.
pub(crate) fn state_of(disk: &dyn Disk, dir: &Path, store_id: u128) -> Result<manifest::State> {
    if !disk.exists(&dir.join(manifest::format::CURRENT))? {
        return Ok(manifest::State::begin(store_id));
    }
    let (follower, _) = manifest::read_all(disk, dir, store_id, &mut |_, _| {})?;
    Ok(follower.state().clone())
}

/// Removes the store or the copy in `dir`.
pub(crate) fn remove(disk: &dyn Disk, dir: &Path) -> Result<()> {
    for within in [sstable::DIR, wal::DIR].map(|d| dir.join(d)) {
        if disk.exists(&within)? {
            for name in disk.list(&within)? {
                disk.remove(&within.join(name))?;
            }
            disk.sync_dir(&within)?;
            disk.remove_dir(&within)?;
        }
    }
    for name in disk.list(dir)? {
        disk.remove(&dir.join(name))?;
    }
    disk.remove_dir(dir)
}
