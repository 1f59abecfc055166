//! Owns: the memory of the bus's segments. iceoryx2 creates them sparse: a page is allocated at its first touch, and raises
//! SIGBUS if shared memory is full by then. So all memory of a segment is allocated after its creation, before its use.
//!
//! What must hold: a send or a receive touches allocated memory only; if memory is short, the call that creates the port
//! returns [`Error::NoSharedMemory`]. iceoryx2 touches pages while it creates a port: the free memory is checked before, and
//! the creation is watched ([`crate::pages::watch`]), because another program may take the memory in between.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::pages;

/// The directory of the bus's segments.
pub(super) const SEGMENTS: &str = "/dev/shm";
/// Suffix of the segments with a publisher's records: the only large ones.
const DATA: &str = ".data";
/// Upper bound of a port's bytes beside its data: its connections, its service, their lists.
const SMALL: u64 = 512 << 10;

/// Free bytes of shared memory; `u64::MAX` where it has no size.
fn free() -> u64 {
    rustix::fs::statvfs(SEGMENTS).map_or(u64::MAX, |s| if s.f_blocks == 0 { u64::MAX } else { s.f_bavail * s.f_frsize })
}

/// Total bytes of shared memory; `u64::MAX` where it has no size.
pub(super) fn total() -> u64 {
    rustix::fs::statvfs(SEGMENTS).map_or(u64::MAX, |s| if s.f_blocks == 0 { u64::MAX } else { s.f_blocks * s.f_frsize })
}

fn none(path: &Path, wanted: u64) -> Error {
    Error::NoSharedMemory { path: path.to_path_buf(), wanted, free: free() }
}

/// Runs `make`, which creates a port with segments of `prefix`, and allocates the small segments. [`allocate_data`] allocates
/// a sender's data.
pub(super) fn make<T>(prefix: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let path = Path::new(SEGMENTS).join(prefix);
    if free() < SMALL {
        return Err(none(&path, SMALL));
    }
    let (made, has_faulted) = pages::watch(make);
    let allocated = match has_faulted {
        true => Err(none(&path, SMALL)),
        false => allocate_small(prefix),
    };
    match allocated {
        Ok(()) => made,
        Err(error) => {
            // The drop may touch pages that are missing.
            pages::watch(|| drop(made));
            Err(error)
        }
    }
}

/// The data segment of the sending port `port`.
///
/// # Errors
/// [`Error::Io`] if there is none.
pub(super) fn data_segment(prefix: &str, port: u128) -> Result<PathBuf> {
    let (dir, end) = (Path::new(SEGMENTS), format!("{port}{DATA}"));
    let is_data = |name: &str| name.starts_with(prefix) && name.ends_with(&end);
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    let found = entries.flatten().find(|e| e.file_name().to_str().is_some_and(is_data));
    found.map(|e| e.path()).ok_or_else(|| Error::io("find", &dir.join(end), std::io::ErrorKind::NotFound))
}

/// Allocates all memory of the segment `path`.
///
/// # Errors
/// [`Error::NoSharedMemory`]; [`Error::Io`].
pub(super) fn allocate_data(path: &Path) -> Result<()> {
    allocate(path, &open(path).map_err(|e| Error::io("open", path, e))?)
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
}

/// Allocates all segments of `prefix` but those with data: the first process to touch a page of a connection or a service is
/// not always its creator.
fn allocate_small(prefix: &str) -> Result<()> {
    for entry in std::fs::read_dir(SEGMENTS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_small = name.to_str().is_some_and(|n| n.starts_with(prefix) && !n.ends_with(DATA));
        let is_sparse = || entry.metadata().is_ok_and(|m| m.is_file() && m.blocks() * 512 < m.len());
        if !is_small || !is_sparse() {
            continue;
        }
        // A segment that is gone, or that another process is creating, is left to that process.
        if let Ok(file) = open(&entry.path()) {
            allocate(&entry.path(), &file)?;
        }
    }
    Ok(())
}

fn allocate(path: &Path, file: &File) -> Result<()> {
    let len = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        Err(Errno::NOSPC | Errno::NOMEM) => Err(none(path, len)),
        // Its creator has not set its length yet.
        Err(Errno::INVAL) => Ok(()),
        Err(e) => Err(Error::io("allocate", path, e)),
    }
}

/// Runs `call` on an existing port.
///
/// # Errors
/// [`Error::NoSharedMemory`] if it touched memory that could not be allocated: the port is unusable afterwards.
#[inline]
pub(super) fn watched<T>(name: &str, call: impl FnOnce() -> T) -> Result<T> {
    let (value, has_faulted) = pages::watch(call);
    if has_faulted { Err(none(&Path::new(SEGMENTS).join(name), rustix::param::page_size() as u64)) } else { Ok(value) }
}
