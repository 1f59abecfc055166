//! Owns: restoring a store from a backup, and repairing damaged or missing SSTables of a store from one.
//!
//! What must hold: a restored store is on a timeline that no other copy has been on, so that readers and publishers find
//! that they were ahead. An SSTable is replaced only by the same file. A damaged file is kept in `STORE/lost`.

use std::path::{Path, PathBuf};

use super::backup::{LOCK, MARK};
use super::contents::{Progress, meta_of, state_of};
use super::create::{Job, Summary, build, prepare};
use super::place::{beside, put_in_place};
use tapestore::disk::{Disk, copy};
use tapestore::error::{Error, Result};
use tapestore::lsn::Timeline;
use tapestore::sstable::{self, FileMeta, Table, file_name};
use tapestore::time::{NANOS_PER_SECOND, Ts};

/// Directory in the store that keeps what `tape repair` removes.
pub const LOST: &str = "lost";

fn invalid<T>(what: &'static str, reason: String) -> Result<T> {
    Err(Error::Invalid { what, reason })
}

/// Restores the store `target` from the backup `backup`.
///
/// # Errors
/// [`Error::Invalid`] if `backup` is no finished backup or `target` is not empty; [`Error::Corrupt`], [`Error::Missing`] if
/// the backup is damaged; [`Error::Io`]. `target` is unchanged then.
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
            format!("the backup {} is unfinished; make it again with tape backup", backup.display())
        } else {
            format!("{} is no backup: it has no file {MARK}; name a directory that tape backup made", backup.display())
        };
        return invalid("backup", why);
    }
    let meta = meta_of(disk, backup)?;
    if disk.exists(target)? && !disk.list(target)?.is_empty() {
        return invalid("store", format!("{} is not empty; restore into a new directory", target.display()));
    }
    // Seconds since 1970: no copy reaches the number of a later restore by steps of one.
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

/// Reads every byte of the file `meta` in `dir`.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::Missing`].
pub(crate) fn verify_file(disk: &dyn Disk, dir: &Path, meta: FileMeta) -> Result<()> {
    let table = Table::open(disk, dir, meta)?;
    table.verify(|_| Ok(()))?;
    table.release();
    Ok(())
}

/// Result of a repair from a backup.
#[derive(Debug, Default)]
pub struct PutBack {
    /// Files that are valid again.
    pub healed: Vec<PathBuf>,
    /// Files that the backup lacks or has damaged too, and the error.
    pub left: Vec<(PathBuf, Error)>,
}

/// Replaces SSTables of `store` that are damaged or missing by the same files of `backup`. Damaged ones go to `STORE/lost`.
/// The store may be served.
///
/// # Errors
/// [`Error::Invalid`] if the backup is of another store; [`Error::Locked`]; [`Error::Corrupt`], [`Error::Missing`] if a
/// manifest or a `store.meta` is damaged; [`Error::Io`].
pub fn put_back(disk: &dyn Disk, store: &Path, backup: &Path, now: Ts, progress: &mut dyn FnMut(Progress)) -> Result<PutBack> {
    let lock = disk.lock(&store.join(LOCK))?;
    if lock.is_none() {
        return Err(Error::Locked { path: store.to_path_buf() });
    }
    let (meta, theirs) = (meta_of(disk, store)?, meta_of(disk, backup)?);
    if meta.store_id != theirs.store_id {
        return Err(Error::invalid("--from", format!("{} is a backup of another store", backup.display())));
    }
    let state = state_of(disk, store, meta.store_id)?;
    let (dir, from) = (store.join(sstable::DIR), backup.join(sstable::DIR));
    let total = state.files.values().map(|f| f.len).sum();
    let mut done = PutBack::default();
    for file in state.files.values() {
        progress(Progress { what: "reading files", more: file.len, total });
        if verify_file(disk, &dir, *file).is_ok() {
            continue;
        }
        if state_of(disk, store, meta.store_id)?.files.get(&file.id) != Some(file) {
            // It was merged or dropped meanwhile.
            continue;
        }
        let path = dir.join(file_name(file.kind, file.id));
        // The file has the number, length and CRC that the store's manifest demands.
        match verify_file(disk, &from, *file) {
            Err(error) => done.left.push((path, error)),
            Ok(()) => {
                aside(disk, store, &path, now)?;
                let name = file_name(file.kind, file.id);
                copy(disk, &from.join(name), &path, &mut |_| {})?;
                disk.sync_dir(&dir)?;
                verify_file(disk, &dir, *file)?;
                done.healed.push(path);
            }
        }
    }
    Ok(done)
}

/// Links the damaged file `path` into `STORE/lost`, durably, so that another file can take its name.
pub(crate) fn aside(disk: &dyn Disk, store: &Path, path: &Path, now: Ts) -> Result<()> {
    if !disk.exists(path)? {
        return Ok(());
    }
    let lost = store.join(LOST);
    disk.create_dir(&lost)?;
    disk.sync_dir(store)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let to = lost.join(format!("{name}-{}", now.0));
    if !disk.exists(&to)? && !disk.link(path, &to)? {
        copy(disk, path, &to, &mut |_| {})?;
    }
    disk.sync_dir(&lost)
}
