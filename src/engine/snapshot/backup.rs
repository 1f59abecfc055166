//! Owns: backups, copies of a store's files that are never served themselves, and stores that are restored from them.
//!
//! A copy is built beside the place where it is to be, in `NAME.unfinished`: files of history linked or copied, the
//! log from the checkpoint to what is durable, the manifest as one snapshot, `store.meta`. When every byte of it has
//! been read back, the directory takes its place in one step, and what was there is removed.
//!
//! What must hold: the place holds what it held, or all of the new copy, whatever is killed when; a copy is said to
//! be done after it has been read and is durable; nothing that no backup made is ever replaced; a restored store is
//! on a timeline that no other copy has been on, so that readers and publishers learn that they were ahead.

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

/// Held while a store is backed up or repaired.
pub const LOCK: &str = "LOCK.backup";

/// How a backup is made.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The store.
    pub store: &'a Path,
    /// Where the backup is to be.
    pub target: &'a Path,
    /// Files are copied even where they could be linked: a link does not outlive damage to the file.
    pub copies: bool,
    /// Files that an earlier backup into the same place has read are not read again.
    pub trusts_earlier: bool,
    /// The present.
    pub now: Ts,
}

/// Checks that `dir` is no backup: a backup holds what its store held then, and nothing but the next backup changes it.
///
/// # Errors
/// [`Error::Backup`] if it is one; [`Error::Io`].
pub fn refuse(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if disk.exists(&dir.join(MARK))? { Err(Error::Backup { dir: dir.to_path_buf() }) } else { Ok(()) }
}

fn invalid<T>(what: &'static str, reason: String) -> Result<T> {
    Err(Error::Invalid { what, reason })
}

/// Makes a backup of `options.store`, which may be served, or brings the earlier one in the same place up to date.
///
/// # Errors
/// [`Error::Invalid`] if the place holds anything but an earlier backup of the store; [`Error::Corrupt`],
/// [`Error::Missing`] if the store is damaged; [`Error::Io`]. The place is then as it was.
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
    let mark = format!("backup of {}\nmade {now}\nlast record {} taken in {}\n", store.display(), summary.last, summary.time);
    publish(disk, &fresh.join(MARK), mark.as_bytes())?;
    put_in_place(disk, &fresh, target, &parent)?;
    Ok(summary)
}

/// Whether `target` holds an earlier backup of the store of `meta`; nothing else may be there.
fn check_target(disk: &dyn Disk, target: &Path, meta: &Meta) -> Result<bool> {
    if !disk.exists(target)? || disk.list(target)?.is_empty() {
        return Ok(false);
    }
    let shown = target.display();
    if !disk.exists(&target.join(MARK))? {
        return invalid("directory", format!("{shown} is not empty and holds no backup; choose another"));
    }
    let found = meta_of(disk, target)?;
    if found.store_id != meta.store_id {
        return invalid("directory", format!("{shown} holds a backup of another store, {:032x}", found.store_id));
    }
    if found.timeline > meta.timeline {
        let why = format!(
            "{shown} is on timeline {}, the store on {}: it has been used as a store, or is of a later one; choose another",
            found.timeline, meta.timeline
        );
        return invalid("directory", why);
    }
    // Storage makes it, and nothing else does.
    if disk.exists(&target.join("run"))? {
        let why = format!("{shown} has been served as a store and may hold records of its own; choose another");
        return invalid("directory", why);
    }
    let lock = target.join("LOCK");
    if disk.exists(&lock)? && disk.lock(&lock)?.is_none() {
        return Err(Error::Locked { path: target.to_path_buf() });
    }
    let known = |n: &String| {
        let names = [MARK, LOCK, "LOCK", wal::meta::NAME, manifest::format::CURRENT, wal::DIR, sstable::DIR];
        names.contains(&n.as_str()) || manifest::format::file_number(n).is_some()
    };
    match disk.list(target)?.into_iter().find(|n| !known(n)) {
        Some(other) => invalid("directory", format!("{shown} also holds {other}, which no backup made; choose another")),
        None => Ok(true),
    }
}
