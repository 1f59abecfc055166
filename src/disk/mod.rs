//! Owns: all access to the disk. Everything durable goes through [`Disk`], so that [`sim::SimDisk`] can
//! replace it and crash, tear writes, lose writes and fail calls.
//!
//! What must hold: a new file or directory is durable only when its parent has been synced; files
//! appear under their final name in [`publish`] alone; after a failed sync the caller stops (the
//! kernel marks the pages clean, so a second sync succeeds without writing them).

mod mapped;
mod real;
pub mod sim;
pub mod two_slots;
mod unlinked;

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::time::Ts;

pub use mapped::Mapped;
pub use real::{RealDisk, is_locked};
pub use unlinked::Unlinked;

/// Name of the lock in a store directory: whoever holds it may write the store.
pub const LOCK: &str = "LOCK";

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    Write,
    /// New, for reading and writing; an existing file is an error.
    CreateNew,
}

/// Space on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free bytes.
    pub free: u64,
    /// Total bytes.
    pub total: u64,
}

/// The absolute form of `path`, for objects that keep a path: the program may change its working directory.
///
/// # Errors
/// [`Error::Io`] if the working directory cannot be determined, [`Error::Invalid`] if `path` is empty.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    match std::path::absolute(path) {
        Err(_) if path.as_os_str().is_empty() => Err(Error::invalid("directory", "its name is empty")),
        whole => whole.map_err(|e| Error::io("determine the working directory for", path, e)),
    }
}

/// Bytes copied at once.
const COPY_CHUNK: usize = 1 << 20;

/// A file system.
pub trait Disk: Send + Sync {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// [`Error::Io`], as for every call of this trait.
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn DiskFile>>;
    /// Maps the file `path`, which must be complete and never written again.
    fn map(&self, path: &Path) -> Result<Mapped>;
    /// Whether `path` exists.
    fn exists(&self, path: &Path) -> Result<bool>;
    /// Creates the directory `path`; an existing one is fine.
    fn create_dir(&self, path: &Path) -> Result<()>;
    /// Names of the entries of the directory `path`, sorted.
    fn list(&self, path: &Path) -> Result<Vec<String>>;
    /// Renames within one directory. Not durable before [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file. Not durable before [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> Result<()>;
    /// Like [`Disk::remove`], of a file that other processes may map; returns it, so that the caller can find out whether they
    /// still do. `None`: it has another name, or this disk does not know.
    fn unlink(&self, path: &Path) -> Result<Option<Unlinked>> {
        self.remove(path).map(|()| None)
    }
    /// Hard-links the file `from` as `to`. `false`: the file system cannot, and nothing was done. Not durable
    /// before [`Disk::sync_dir`].
    fn link(&self, from: &Path, to: &Path) -> Result<bool>;
    /// Atomically exchanges the directory `fresh` with the directory `name` of the same parent, or renames `fresh`
    /// if `name` does not exist. Not durable before [`Disk::sync_dir`] of the parent.
    fn swap_dirs(&self, fresh: &Path, name: &Path) -> Result<()>;
    /// Removes an empty directory. Not durable before [`Disk::sync_dir`].
    fn remove_dir(&self, path: &Path) -> Result<()>;
    /// Makes the entries of the directory `path` durable.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Space of the file system of `path`; unlimited by default.
    fn space(&self, path: &Path) -> Result<Space> {
        tracing::trace!(name: "disk.unlimited", path = %path.display(), "this disk is unlimited");
        Ok(Space { free: u64::MAX, total: u64::MAX })
    }
    /// When the file or directory `path` was last written, by the host's clock at that time; `None` if unknown.
    fn modified(&self, path: &Path) -> Result<Option<Ts>> {
        tracing::trace!(name: "disk.without_times", path = %path.display(), "this disk keeps no times");
        Ok(None)
    }
    /// Takes the exclusive lock of `path`, creating the file; `None` if another process holds it. The lock
    /// ends with the returned value or with the process.
    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Send + Sync>>>;
}

/// An open file. Reads and writes are positional and loop over short counts.
pub trait DiskFile: Send + Sync {
    /// Reads `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// Makes the contents durable (`fdatasync`).
    fn sync(&self) -> Result<()>;
    /// Length in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Drops the clean pages of the bytes `range` from the system's cache, so that later reads go to the disk. Pages around them
    /// may go too. `u64::MAX` stands for the end of the file.
    fn drop_cache(&self, range: Range<u64>) -> Result<()>;
}

/// Copies the file `from` to `to`, which appears whole and synced or not at all. Calls `visit` with the number of
/// bytes of each chunk. Not durable before the directory has been synced.
///
/// # Errors
/// [`Error::Io`].
pub fn copy(disk: &dyn Disk, from: &Path, to: &Path, visit: &mut dyn FnMut(u64)) -> Result<()> {
    let temporary = to.with_extension("tmp");
    if disk.exists(&temporary)? {
        disk.remove(&temporary)?;
    }
    let source = disk.open(from, Open::Read)?;
    let file = disk.open(&temporary, Open::CreateNew)?;
    copy_range(source.as_ref(), file.as_ref(), 0, u64::MAX, visit)?;
    file.sync()?;
    disk.rename(&temporary, to)
}

/// Copies the bytes `from` to `to` of `source`, or up to its end, to the same offsets of `file`.
///
/// # Errors
/// [`Error::Io`].
pub fn copy_range(source: &dyn DiskFile, file: &dyn DiskFile, from: u64, to: u64, visit: &mut dyn FnMut(u64)) -> Result<()> {
    let (mut at, mut chunk) = (from, vec![0u8; COPY_CHUNK]);
    while at < to {
        let wanted = chunk.get_mut(..(to - at).min(COPY_CHUNK as u64) as usize).unwrap_or(&mut []);
        let read = source.read_at(wanted, at)?;
        file.write_at(chunk.get(..read).unwrap_or(&[]), at)?;
        at += read as u64;
        visit(read as u64);
        if read < COPY_CHUNK {
            break;
        }
    }
    Ok(())
}

/// Creates or replaces `path` with `bytes`, atomically: temporary file, write, sync, rename, sync of the
/// directory.
///
/// # Errors
/// [`Error::Io`]; `path` then has its old or its new contents.
pub fn publish(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    if disk.exists(&temporary)? {
        disk.remove(&temporary)?;
    }
    let file = disk.open(&temporary, Open::CreateNew)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}
