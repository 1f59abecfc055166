//! Owns: backups: copies of a store's files that are never served themselves, and from which stores are restored.
//!
//! A backup is built in `NAME.unfinished` beside its place: SSTables, linked or copied; the log from the checkpoint to its
//! durable end; the manifest as one snapshot; `store.meta`. After every byte has been read back, the directory replaces the
//! old one in one step, and the old one is removed.
//!
//! What must hold: a crash at any moment leaves the old contents of the place or all of the new backup. A backup is reported
//! done after it has been read back and is durable. Only an earlier backup is ever replaced. A restored store is on a timeline
//! that no other copy has been on, so that readers and publishers find that they were ahead.

use std::path::Path;

use super::contents::{Progress, meta_of};
use super::create::{Job, Summary, build, prepare};
use super::place::{beside, put_in_place};
use tapestore::disk::{Disk, publish};
use tapestore::error::{Error, Result};
use tapestore::manifest;
pub use tapestore::shm::run_dir::BACKUP as MARK;
use tapestore::sstable;
use tapestore::time::Ts;
use tapestore::wal::{self, Meta};

/// Lock that is held while a store is backed up or repaired.
pub const LOCK: &str = "LOCK.backup";

/// Options of a backup.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The store.
    pub store: &'a Path,
    /// Place of the backup.
    pub target: &'a Path,
    /// Copies files even where they could be linked: damage to a file damages its links too.
    pub copies: bool,
    /// Does not read again the files that an earlier backup in the same place has read.
    pub trusts_earlier: bool,
    /// The current time.
    pub now: Ts,
}

/// Checks that `dir` is no backup: only the next backup may change one.
///
/// # Errors
/// [`Error::Backup`] if it is one; [`Error::Io`].
pub fn refuse(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if disk.exists(&dir.join(MARK))? { Err(Error::Backup { dir: dir.to_path_buf() }) } else { Ok(()) }
}

fn invalid<T>(what: &'static str, reason: String) -> Result<T> {
    Err(Error::Invalid { what, reason })
}

/// Makes a backup of `options.store`, which may be served, or updates the earlier one in the same place.
///
/// # Errors
/// [`Error::Invalid`] if the place holds anything but an earlier backup of the store; [`Error::Locked`]; [`Error::Corrupt`],
/// [`Error::Missing`] if the store is damaged; [`Error::Io`]. The place is unchanged then.
pub fn backup(disk: &dyn Disk, options: &Options<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Summary> {
    let Options { store, target, copies, trusts_earlier, now } = *options;
    let meta = meta_of(disk, store)?;
    let lock = disk.lock(&store.join(LOCK))?;
    if lock.is_none() {
        return Err(Error::Locked { path: store.to_path_buf() });
    }
    let (fresh, parent) = beside(target)?;
    let earlier = check_target(disk, target, &meta)?;
    let job = Job {
        source: store,
        target: &fresh,
        earlier: earlier.then_some(target),
        copies,
        trusts_earlier,
        reads_nothing: false,
        fills: false,
        timeline: meta.timeline,
        clean: false,
        number: 0,
    };
    prepare(disk, &job)?;
    let (summary, _) = build(disk, &job, progress)?;
    let mark = format!("backup of {}\nmade {now}\nlast record {} ingested {}\n", store.display(), summary.last, summary.time);
    publish(disk, &fresh.join(MARK), mark.as_bytes())?;
    put_in_place(disk, &fresh, target, &parent)?;
    Ok(summary)
}

/// Whether `target` holds an earlier backup of the store of `meta`; it may hold nothing else.
fn check_target(disk: &dyn Disk, target: &Path, meta: &Meta) -> Result<bool> {
    if !disk.exists(target)? || disk.list(target)?.is_empty() {
        return Ok(false);
    }
    let shown = target.display();
    if !disk.exists(&target.join(MARK))? {
        return invalid("directory", format!("{shown} is not empty and holds no backup; choose another directory"));
    }
    let found = meta_of(disk, target)?;
    if found.store_id != meta.store_id {
        return invalid(
            "directory",
            format!("{shown} holds a backup of another store, {:032x}; choose another directory", found.store_id),
        );
    }
    if found.timeline > meta.timeline {
        let why = format!(
            "{shown} is on timeline {}, the store on {}: it was used as a store, or is of a later one; choose another directory",
            found.timeline, meta.timeline
        );
        return invalid("directory", why);
    }
    // Only storage makes this directory.
    if disk.exists(&target.join("run"))? {
        let why = format!("{shown} was served as a store and may hold records of its own; choose another directory");
        return invalid("directory", why);
    }
    let lock = target.join(tapestore::disk::LOCK);
    if disk.exists(&lock)? && disk.lock(&lock)?.is_none() {
        return Err(Error::Locked { path: target.to_path_buf() });
    }
    let known = |n: &String| {
        let names = [MARK, LOCK, tapestore::disk::LOCK, wal::meta::NAME, manifest::format::CURRENT, wal::DIR, sstable::DIR];
        names.contains(&n.as_str()) || manifest::format::file_number(n).is_some()
    };
    match disk.list(target)?.into_iter().find(|n| !known(n)) {
        Some(other) => {
            invalid("directory", format!("{shown} also holds {other}, which is no part of a backup; choose another directory"))
        }
        None => Ok(true),
    }
}
