//! Owns: what a start of storage has to know of the life before it, when that told other hosts of frames which were not on
//! its disk yet (`flush = "interval"`).
//!
//! What must hold: a host that may have lost such a frame does not vote, whatever happens in its starts, until it has a copy
//! of a leader's store; one that has lost nothing is not suspected of it after a kill of its process.

use std::path::Path;

use super::fill;
use crate::consensus;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::lsn::Position;
use crate::wal;

/// `raft.meta` of the store in `dir`, made if there is none: a store that has nothing is a cluster of one. What this start
/// must not forget of the life before, in the boot `boot` of the system's, stands in it before anything is said to anybody.
///
/// # Errors
/// [`Error::Foreign`] if it is another store's; [`Error::Invalid`] if the system does not say which boot this is, and that
/// matters; as [`consensus::MetaFile::open`].
pub(super) fn begin(disk: &dyn Disk, dir: &Path, known: &wal::Meta, is_lossy: bool, boot: u128) -> Result<consensus::MetaFile> {
    if boot == 0 && is_lossy {
        return Err(Error::invalid(
            "flush",
            "the system does not say which boot this is, without which \"interval\" is not safe",
        ));
    }
    let mut file = raft_meta(disk, dir, known)?;
    if file.meta().may_have_forgotten(boot, known.clean) {
        // A copy that was asked for before may be without them too.
        fill::discard(disk, dir)?;
    }
    if file.begin_life(boot, is_lossy, known.clean)? {
        say_forgotten();
    }
    Ok(file)
}

fn say_forgotten() {
    tracing::error!(
        "this host may have lost frames that it had in memory, and that others count on (flush = \"interval\"): it does not vote until it has a copy of the leader's store. If no host leads, choose the one with the most frames (`tape cluster status` on each): stop it, `tape cluster force-promote` there, and let the others rejoin"
    );
}

/// The log ends at `end`, and all of it is durable; the process before had written up to `written`.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn end(
    disk: &dyn Disk,
    dir: &Path,
    is_lossy: bool,
    file: &mut consensus::MetaFile,
    end: Position,
    written: Position,
) -> Result<()> {
    let before = file.meta().clone();
    let has_lost = before.boot != 0 && !before.is_alone() && end < written;
    if has_lost {
        // The disk has failed: what it did not take is not in the system's memory any more.
        fill::discard(disk, dir)?;
        say_forgotten();
    }
    let (has_forgotten, boot) = (before.has_forgotten || has_lost, if is_lossy { before.boot } else { 0 });
    if (has_forgotten, boot) == (before.has_forgotten, before.boot) {
        return Ok(());
    }
    file.update(consensus::meta::Meta { has_forgotten, boot, ..before })
}

fn raft_meta(disk: &dyn Disk, dir: &Path, known: &wal::Meta) -> Result<consensus::MetaFile> {
    if !disk.exists(&dir.join(consensus::meta::NAME))? {
        let alone = consensus::meta::Meta::alone(known.store_id, u64::from(known.term.0));
        return consensus::MetaFile::create(disk, dir, &alone);
    }
    let file = consensus::MetaFile::open(disk, dir)?;
    if file.meta().store_id != known.store_id {
        let path = dir.join(consensus::meta::NAME);
        return Err(Error::Foreign { path, what: "raft.meta of this store", found: file.meta().store_id as u64 });
    }
    Ok(file)
}
