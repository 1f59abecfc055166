//! Owns: what a start of storage has to know of the life before it, when that told other hosts of frames which were not on
//! its disk yet (`flush = "interval"`).
//!
//! What must hold: a host that may have lost such a frame does not vote, whatever happens in its starts, until it has a copy
//! of a leader's store; one that has lost nothing is not suspected of it after a kill of its process; the store of a host of
//! a cluster is never served without its `raft.meta`, as if it were a cluster of one.

use std::path::Path;

use super::snapshot::install;
use crate::consensus;
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::lsn::Position;
use tapestore::wal;

/// What a start knows of the life before it.
pub(super) struct Life {
    /// `raft.meta`.
    pub(super) file: consensus::MetaFile,
    /// Whether that life may have told others of frames that were not on the disk when it ended.
    has_told: bool,
}

/// `raft.meta` of the store in `dir`, made if there is none: a store that has nothing is a cluster of one. What this start
/// must not forget of the life before, in the boot `boot` of the system's, stands in it before anything is said to anybody.
///
/// # Errors
/// [`Error::Foreign`] if it is another store's; [`Error::Invalid`] if the system does not say which boot this is, and that
/// matters; as [`consensus::MetaFile::open`].
pub(super) fn begin(disk: &dyn Disk, dir: &Path, known: &wal::Meta, is_lossy: bool, boot: u128) -> Result<Life> {
    if boot == 0 && is_lossy {
        let reason = "the system does not say which boot this is, without which \"interval\" is not safe";
        return Err(Error::invalid("flush", reason));
    }
    let mut file = raft_meta(disk, dir, known)?;
    let has_told = file.meta().boot != 0 && !known.clean && !file.meta().is_alone();
    if file.meta().may_have_forgotten(boot, known.clean) {
        // A copy that was asked for before may be without them too.
        install::discard(disk, dir)?;
    }
    file.begin_life(boot, is_lossy, known.clean)?;
    Ok(Life { file, has_told })
}

impl Life {
    /// The log ends at `end`, and all of it is durable; the process before had written up to `written`, if that is known.
    /// Gives `raft.meta`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn recovered(
        mut self,
        disk: &dyn Disk,
        dir: &Path,
        is_lossy: bool,
        end: Position,
        written: Option<Position>,
    ) -> Result<consensus::MetaFile> {
        let before = self.file.meta().clone();
        // If the disk has failed, what it did not take is not in the system's memory any more.
        let has_lost = self.has_told && written.is_none_or(|written| end < written);
        if has_lost {
            install::discard(disk, dir)?;
        }
        let (has_forgotten, boot) = (before.has_forgotten || has_lost, if is_lossy { before.boot } else { 0 });
        if (has_forgotten, boot) != (before.has_forgotten, before.boot) {
            self.file.update(consensus::meta::Meta { has_forgotten, boot, ..before })?;
        }
        if has_forgotten {
            tracing::error!(
                "this host may have lost frames that it had in memory, and that others count on (flush = \"interval\"): it does not vote until it has a copy of the leader's store, which it fetches by itself. If no host leads, find the one whose last frame has the highest term, and of those the one with the most frames (`tape cluster status` on each): stop it, `tape cluster force-promote` there, and let the others rejoin"
            );
        }
        Ok(self.file)
    }
}

/// `raft.meta` of the store in `dir`, and that `store.meta` says whether it is of a cluster.
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
        // A store of an earlier version, in which `store.meta` did not say so.
        let mut meta = wal::MetaFile::open(disk, dir)?;
        meta.update(wal::Meta { in_cluster: true, ..*meta.meta() })?;
    }
    Ok(file)
}

/// Why the store in `dir`, which is of a cluster, is not served without `raft.meta`.
fn without_raft_meta(dir: &Path) -> Error {
    let store = dir.display();
    let cause = format!(
        "{store} is the store of a host of a cluster, or a backup of one, and has no raft.meta, which holds the host's term, \
         vote and members: alone it would acknowledge what no other host has. To make it a host of its cluster again: \
         tape cluster remove NODE, on the leader, if it was a member; tape cluster init --join --cluster NAME --node NODE \
         --members LIST --store {store}, here; then tape cluster add NODE=HOST:PORT, on the leader. To make it a store of its \
         own, which no other host counts on: tape cluster detach --store {store}"
    );
    Error::Consensus { what: "be served", cause }
}
