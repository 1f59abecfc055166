//! Owns: the checks that a start makes on the previous run of storage, which may have acknowledged frames to other hosts
//! before they were on its disk (`flush = "interval"`).
//!
//! What must hold: a host that may have lost such a frame does not vote, however often it starts, until a snapshot of a
//! leader's store is installed. A host that has lost nothing is not suspected after its process was killed. The store of a
//! cluster's host is never served without its `raft.meta`, as if it were a cluster of one.

use std::path::Path;

use super::snapshot::install;
use crate::consensus;
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::lsn::Position;
use tapestore::wal;

/// The previous run, as a start finds it.
pub(super) struct BootCheck {
    /// `raft.meta`.
    pub(super) file: consensus::MetaFile,
    /// Whether that run may have acknowledged frames to other hosts that were not on the disk when it ended.
    has_acknowledged: bool,
}

/// Opens `raft.meta` of the store in `dir`, or creates it: a store without one is a cluster of one. Records in it what this
/// start must keep of the previous run, before anything is sent to another host. `boot` is the system's boot id.
///
/// # Errors
/// [`Error::Foreign`] if it belongs to another store; [`Error::Invalid`] if the boot id is unknown and `is_lossy`; as
/// [`consensus::MetaFile::open`].
pub(super) fn begin(disk: &dyn Disk, dir: &Path, known: &wal::Meta, is_lossy: bool, boot: u128) -> Result<BootCheck> {
    if boot == 0 && is_lossy {
        let reason = "the system reports no boot id, without which \"interval\" is not safe";
        return Err(Error::invalid("flush", reason));
    }
    let mut file = raft_meta(disk, dir, known)?;
    let has_acknowledged = file.meta().boot != 0 && !known.clean && !file.meta().is_alone();
    if file.meta().may_have_forgotten(boot, known.clean) {
        // A snapshot that was requested before may lack these frames too.
        install::discard(disk, dir)?;
    }
    file.begin_life(boot, is_lossy, known.clean)?;
    Ok(BootCheck { file, has_acknowledged })
}

impl BootCheck {
    /// Records the result of recovery and returns `raft.meta`. The log ends at `end`, and all of it is durable; the previous
    /// process had written up to `written`, if that is known.
    ///
    /// # Errors
    /// [`Error::Io`] if `raft.meta` cannot be written.
    pub(super) fn recovered(
        mut self,
        disk: &dyn Disk,
        dir: &Path,
        is_lossy: bool,
        end: Position,
        written: Option<Position>,
    ) -> Result<consensus::MetaFile> {
        let before = self.file.meta().clone();
        // After a disk failure the page cache no longer holds what the disk did not accept.
        let has_lost = self.has_acknowledged && written.is_none_or(|written| end < written);
        if has_lost {
            install::discard(disk, dir)?;
        }
        let (has_forgotten, boot) = (before.has_forgotten || has_lost, if is_lossy { before.boot } else { 0 });
        if (has_forgotten, boot) != (before.has_forgotten, before.boot) {
            self.file.update(consensus::meta::Meta { has_forgotten, boot, ..before })?;
        }
        if has_forgotten {
            tracing::error!(
                name: "raft.frames_may_be_lost",
                "this host may have lost frames that it acknowledged to other hosts before they were on its disk (flush = \"interval\"): it does not vote until a snapshot of the leader's store is installed, which it fetches by itself. If no host leads, run `tape cluster status` on each: of those whose last frame has the highest term, choose the host with the most frames; stop it, run `tape cluster force-promote` there, and let the others rejoin"
            );
        }
        Ok(self.file)
    }
}

/// Opens or creates `raft.meta` of the store in `dir`, and makes `store.meta` record that the store is of a cluster.
fn raft_meta(disk: &dyn Disk, dir: &Path, known: &wal::Meta) -> Result<consensus::MetaFile> {
    let path = dir.join(consensus::meta::NAME);
    if !disk.exists(&path)? {
        if known.in_cluster {
            return Err(without_raft_meta(dir));
        }
        let alone = consensus::meta::Meta::alone(known.store_id, u64::from(known.term.0));
        return consensus::MetaFile::create(disk, dir, &alone);
    }
    let file = consensus::MetaFile::open(disk, dir)?;
    if file.meta().store_id != known.store_id {
        return Err(Error::Foreign { path, what: "raft.meta of this store", found: file.meta().store_id as u64 });
    }
    if file.meta().is_clustered() && !known.in_cluster {
        // A store of an earlier version, whose `store.meta` did not record it.
        let mut meta = wal::MetaFile::open(disk, dir)?;
        meta.update(wal::Meta { in_cluster: true, ..*meta.meta() })?;
    }
    Ok(file)
}

/// Returns the error for a cluster's store in `dir` that has no `raft.meta`.
fn without_raft_meta(dir: &Path) -> Error {
    let store = dir.display();
    let cause = format!(
        "{store} is the store of a host of a cluster, or a backup of one, and has no raft.meta, which holds the host's term, \
         vote and members: alone it would acknowledge records that no other host has. To make it a host of its cluster again: \
         tape cluster remove NODE, on the leader, if it was a member; tape cluster init --join --cluster NAME --node NODE \
         --members LIST --store {store}, here; then tape cluster add NODE=HOST:PORT, on the leader. To make it a store of its \
         own, which no other host counts on: tape cluster detach --store {store}"
    );
    Error::Consensus { what: "serve its store", cause }
}
