//! Owns: the memory of the bus's segments. iceoryx2 makes them sparse: a page is allocated when it is first touched, and if
//! shared memory is full by then, that is SIGBUS. So all memory of a segment is allocated once it is made, before it is used.
//!
//! What must hold: who sends or receives has all memory that it touches; what is not to be had is
//! [`Error::NoSharedMemory`] of the call that makes a port. The pages that iceoryx2 touches while it makes one are looked for
//! before, and watched ([`crate::pages::watch`]), because another program may take them in between.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::pages;

/// Where the bus has its segments.
pub(super) const SEGMENTS: &str = "/dev/shm";
/// Where a publisher's records lie until they are received: the one kind of segment that is large.
const DATA: &str = ".data";
/// Bytes that a port needs beside its data, generously: its connections, its service, where they are listed.
const SMALL: u64 = 512 << 10;

/// Bytes free in shared memory; without end where it has no size.
fn free() -> u64 {
    rustix::fs::statvfs(SEGMENTS).map_or(u64::MAX, |s| if s.f_blocks == 0 { u64::MAX } else { s.f_bavail * s.f_frsize })
}

/// Bytes of shared memory; without end where it has no size.
pub(super) fn total() -> u64 {
    rustix::fs::statvfs(SEGMENTS).map_or(u64::MAX, |s| if s.f_blocks == 0 { u64::MAX } else { s.f_blocks * s.f_frsize })
}

fn none(path: &Path, wanted: u64) -> Error {
    Error::NoSharedMemory { path: path.to_path_buf(), wanted, free: free() }
}

/// Carries out `make`, which makes a port of the bus with segments of `prefix`, and allocates the small ones. The data of a
/// sender is allocated by [`allocate_data`].
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
            // It may touch what is not there.
            pages::watch(|| drop(made));
            Err(error)
        }
    }
}

/// The segment with the data of the sending port `port`, which has been made.
///
/// # Errors
/// [`Error::Io`] if there is none.
pub(super) fn data_segment(prefix: &str, port: u128) -> Result<PathBuf> {
    let (dir, end) = (Path::new(SEGMENTS), format!("{port}{DATA}"));
    let is_its = |name: &str| name.starts_with(prefix) && name.ends_with(&end);
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    let found = entries.flatten().find(|e| e.file_name().to_str().is_some_and(is_its));
    found.map(|e| e.path()).ok_or_else(|| Error::io("find", &dir.join(end), std::io::ErrorKind::NotFound))
}

/// Allocates all of the segment `path`.
///
/// # Errors
/// [`Error::NoSharedMemory`]; [`Error::Io`].
pub(super) fn allocate_data(path: &Path) -> Result<()> {
    allocate(path, &open(path).map_err(|e| Error::io("open", path, e))?)
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
}

/// Allocates all segments of `prefix` but those with data: who made a connection or a service is not always who is the first
/// to touch a page of it.
fn allocate_small(prefix: &str) -> Result<()> {
    for entry in std::fs::read_dir(SEGMENTS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_small = name.to_str().is_some_and(|n| n.starts_with(prefix) && !n.ends_with(DATA));
        let is_sparse = || entry.metadata().is_ok_and(|m| m.is_file() && m.blocks() * 512 < m.len());
        if !is_small || !is_sparse() {
            continue;
        }
        // One that is gone, or is being made by another process, is that one's.
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
        // Of no length yet: its maker has not come so far.
        Err(Errno::INVAL) => Ok(()),
        Err(e) => Err(Error::io("allocate", path, e)),
    }
}

/// Carries out `call` on a port that has been made.
///
/// # Errors
/// [`Error::NoSharedMemory`] if it touched memory that is not to be had: the port is of no use any more.
#[inline]
pub(super) fn watched<T>(name: &str, call: impl FnOnce() -> T) -> Result<T> {
    let (value, has_faulted) = pages::watch(call);
    if has_faulted { Err(none(&Path::new(SEGMENTS).join(name), rustix::param::page_size() as u64)) } else { Ok(value) }
}
