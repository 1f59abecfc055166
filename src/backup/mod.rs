//! Owns: backups, copies of a store's files that are never served themselves, and stores that are restored from them.
//!
//! A copy is built beside the place where it is to be, in `NAME.unfinished`: files of history linked or copied, the
//! log from the checkpoint to what is durable, the manifest as one snapshot, `store.meta`. When every byte of it has
//! been read back, the directory takes its place in one step, and what was there is removed.
//!
//! What must hold: the place holds what it held, or all of the new copy, whatever is killed when; a copy is said to
//! be done after it has been read and is durable; nothing that no backup made is ever replaced; a restored store is
//! on a timeline that no other copy has been on, so that readers and publishers learn that they were ahead.

mod build;
mod log;

use std::path::{Path, PathBuf};

pub(crate) use self::build::{Job, build, prepare};
use crate::disk::{Disk, Open, publish};
use crate::error::{Error, Result};
use crate::lsn::{Lsn, Timeline};
use crate::manifest;
use crate::sstable;
use crate::time::{NANOS_PER_SECOND, Ts};
use crate::wal::{self, Meta};

pub use crate::shm::run_dir::BACKUP as MARK;
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

/// What is being done, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What.
    pub what: &'static str,
    /// Bytes done since the last call.
    pub more: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files of history that are links.
    pub linked: u64,
    /// Files that were copied.
    pub copied: u64,
    /// Files that an earlier backup, or one that was cut short, had.
    pub reused: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Records in the files.
    pub filed: u64,
    /// Bytes of frames of the log.
    pub log_bytes: u64,
    /// Records in the log.
    pub logged: u64,
    /// The last record.
    pub last: Lsn,
    /// When it was taken in.
    pub time: Ts,
    /// The timeline of the copy.
    pub timeline: Timeline,
    /// How often it was begun again because the store had filed or compacted meanwhile.
    pub retries: u64,
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

/// What `store.meta` in `dir` says; that there must be one.
pub(crate) fn meta_of(disk: &dyn Disk, dir: &Path) -> Result<Meta> {
    let found = wal::meta::read(disk, dir)?;
    found.ok_or_else(|| Error::Missing { path: dir.join(wal::meta::NAME), what: "it holds the store's identity" })
}

/// The directory in which the copy for `target` is built, and the parent of both.
fn beside(target: &Path) -> Result<(PathBuf, PathBuf)> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => {
            let mut name = name.to_owned();
            name.push(".unfinished");
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent.join(name), parent.to_path_buf()))
        }
        _ => invalid("directory", format!("{} cannot be replaced in one step: name one inside it", target.display())),
    }
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

/// Makes the store `target` of the backup `backup`.
///
/// # Errors
/// [`Error::Invalid`] if `target` holds anything; [`Error::Corrupt`], [`Error::Missing`] if the backup is
/// damaged; [`Error::Io`]. Then `target` is as it was.
pub fn restore(
    disk: &dyn Disk,
    backup: &Path,
    target: &Path,
    copies: bool,
    now: Ts,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary> {
    let (fresh, parent) = beside(target)?;
    let (unfinished, _) = beside(backup)?;
    if !disk.exists(&backup.join(MARK))? {
        let why = if disk.exists(&unfinished)? {
            format!("the backup {} was never finished: make it again with tape backup", backup.display())
        } else {
            format!("{} is not what tape backup makes: it has no file {MARK}", backup.display())
        };
        return invalid("backup", why);
    }
    let meta = meta_of(disk, backup)?;
    if disk.exists(target)? && !disk.list(target)?.is_empty() {
        return invalid("store", format!("{} is not empty; restore into a new directory", target.display()));
    }
    // Seconds since 1970: no copy that goes on by itself, by ones, comes to a number of a later restore.
    let unused = now.0 / NANOS_PER_SECOND;
    let job = Job {
        source: backup,
        target: &fresh,
        earlier: None,
        copies,
        trusts_earlier: false,
        reads_nothing: false,
        fills: true,
        timeline: Timeline((meta.timeline.0 + 1).max(unused)),
        clean: true,
        number: unused,
    };
    prepare(disk, &job)?;
    let (summary, _) = build(disk, &job, progress)?;
    put_in_place(disk, &fresh, target, &parent)?;
    Ok(summary)
}

/// Puts the finished copy `fresh` in the place of `target`, and removes what was there.
fn put_in_place(disk: &dyn Disk, fresh: &Path, target: &Path, parent: &Path) -> Result<()> {
    disk.swap_dirs(fresh, target)?;
    disk.sync_dir(parent)?;
    if disk.exists(fresh)?
        && let Err(error) = remove(disk, fresh)
    {
        let path = fresh.display();
        tracing::warn!(%error, %path, "what the copy has replaced is not removed yet; the next one does it");
    }
    Ok(())
}

/// Removes the copy in `dir`.
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

/// Reads every byte of the files of `state` in the store `dir` that `wanted` names; gives the records in them.
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
        progress(Progress { what: "reading files back", more: meta.len, total });
    }
    Ok(rows)
}

/// Reads every byte of the log of the store `dir`, strictly.
pub(crate) fn verify_log(disk: &dyn Disk, dir: &Path, meta: &Meta, from: wal::Chain) -> Result<wal::Chain> {
    wal::scan(disk, &dir.join(wal::DIR), meta, from, Open::Read, |_| Ok(())).map(|end| end.chain)
}

/// What the manifest of the store in `dir` says; a store that has none has no history.
pub(crate) fn state_of(disk: &dyn Disk, dir: &Path, store_id: u128) -> Result<manifest::State> {
    if !disk.exists(&dir.join(manifest::format::CURRENT))? {
        return Ok(manifest::State::begin(store_id));
    }
    let (follower, _) = manifest::read_all(disk, dir, store_id, &mut |_, _| {})?;
    Ok(follower.state().clone())
}
