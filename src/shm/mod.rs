//! Owns: shared memory. [`Mapping`] is a mapped file of a memory file system, shared by many processes. [`control`] is the
//! store's control page, [`bell`] wakes sleepers, [`run_dir`] names the files, [`user`] checks who uses them, [`spill`] places
//! them on disk when that file system is short of memory.
//!
//! What must hold: every byte of a mapping is allocated before it is mapped, so a full memory file system is an error here
//! and not a signal later. Each word has one writing thread at a time. A writer stores an atomic with release after it has
//! written plain words; a reader loads that atomic with acquire before it reads them.

pub mod bell;
pub mod control;
mod growing;
pub mod health;
pub mod histogram;
pub mod kinds;
pub mod origin;
pub mod release;
pub mod run_dir;
pub mod slot;
pub mod spill;
mod statistic;
pub mod status;
pub mod symbols;
pub mod user;
pub mod words;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, Mode, OFlags};

use crate::error::{Error, Result};
use crate::pages::Guarded;

/// A mapped file of shared memory.
#[derive(Debug)]
pub struct Mapping {
    /// Dropped before the mapping.
    guarded: Guarded,
    map: MmapRaw,
    writable: bool,
    /// Whether it is memory of this process alone, whose content is lost when its pages are dropped.
    is_private: bool,
    path: PathBuf,
}

impl Mapping {
    /// Creates `path` of `len` bytes, all allocated and zero, and maps it for writing.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`] if there is not enough memory; [`Error::Io`] otherwise.
    pub fn create(path: &Path, len: u64) -> Result<Mapping> {
        let file = open(OpenOptions::new().read(true).write(true).create_new(true), "create", path)?;
        if let Err(e) = allocate(&file, path, 0, len) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(
                    name: "shm.file_not_removed", path = %path.display(), %error,
                    "cannot remove a file that could not be allocated"
                );
            }
            return Err(e);
        }
        Mapping::map(&file, path, true, false)
    }

    /// Creates `path` of `len` zero bytes and maps it for writing. Memory is allocated at the first touch, so a full memory
    /// file system raises a signal then. For simulations only.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_sparse(path: &Path, len: u64) -> Result<Mapping> {
        let file = open(OpenOptions::new().read(true).write(true).create_new(true), "create", path)?;
        file.set_len(len).map_err(|e| Error::io("size", path, e))?;
        Mapping::map(&file, path, true, true)
    }

    /// As [`Mapping::create`], but in the store's directory, at the path that [`spill::place`] gives.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk has no room, or the file cannot be created.
    pub fn create_spilled(path: &Path, len: u64) -> Result<Mapping> {
        let place = spill::prepare(path)?;
        let file = open(OpenOptions::new().read(true).write(true).create_new(true), "create", &place)?;
        if let Err(e) = spill::allocate(&file, &place, 0, len) {
            if let Err(error) = std::fs::remove_file(&place) {
                tracing::warn!(
                    name: "shm.file_not_removed", path = %place.display(), %error,
                    "cannot remove a file that could not be allocated"
                );
            }
            return Err(e);
        }
        Mapping::map(&file, &place, true, true)
    }

    /// Opens `path`, or creates it with `len` bytes, and maps it for writing.
    ///
    /// # Errors
    /// As [`Mapping::create`].
    pub fn open_or_create(path: &Path, len: u64) -> Result<Mapping> {
        let file = match open(OpenOptions::new().read(true).write(true).create_new(true), "create", path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                open(OpenOptions::new().read(true).write(true), "open", path)?
            }
            other => other?,
        };
        allocate(&file, path, 0, len)?;
        Mapping::map(&file, path, true, false)
    }

    /// Whether the file is mapped for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Maps the existing `path`, for writing if `writable`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or mapped; [`Error::TooManyMaps`] if this process has no map left.
    pub fn open(path: &Path, writable: bool) -> Result<Mapping> {
        let file = open(OpenOptions::new().read(true).write(writable), "open", path)?;
        Mapping::map(&file, path, writable, is_sparse(&file) || !spill::is_memory(&file))
    }

    /// Maps `len` zero bytes of this process's own memory, allocated at the first touch.
    ///
    /// # Errors
    /// [`Error::Exhausted`] or [`Error::Io`] if the system refuses.
    pub fn private(len: u64) -> Result<Mapping> {
        let path = Path::new("memory of this process");
        let map = MmapOptions::new().len(len as usize).no_reserve_swap().map_anon().map_err(|e| Error::io("map", path, e))?;
        let map = MmapRaw::from(map);
        let guarded = Guarded::new(map.as_ptr(), map.len(), true);
        Ok(Mapping { guarded, map, writable: true, is_private: true, path: path.to_path_buf() })
    }

    /// Maps one private page that the kernel zeroes in every forked child.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel does not support such pages (before Linux 4.14).
    pub(crate) fn wiped_on_fork() -> Result<Mapping> {
        let this = Mapping::private(4096)?;
        let advice = rustix::mm::Advice::LinuxWipeOnFork;
        // SAFETY: the range is this mapping; it is private and anonymous, and only `Mapping` accesses it, by atomics.
        let wiped = unsafe { rustix::mm::madvise(this.map.as_mut_ptr().cast(), this.map.len(), advice) };
        wiped.map_err(|e| Error::io("advise", &this.path, e))?;
        Ok(this)
    }

    fn map(file: &File, path: &Path, writable: bool, is_sparse: bool) -> Result<Mapping> {
        let options = MmapOptions::new();
        let len = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
        let map = if writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
        let map = map.map_err(|e| Error::map(path, e))?;
        if len <= POPULATE_MAX && !is_sparse {
            populate(&map, writable);
        }
        let guarded = Guarded::new(map.as_ptr(), map.len(), writable);
        Ok(Mapping { guarded, map, writable, is_private: false, path: path.to_path_buf() })
    }

    /// Drops the pages from this process's resident memory. They stay in shared memory and are mapped again when touched. Does
    /// nothing to a mapping of [`Mapping::private`].
    pub fn release(&self) {
        if self.is_private {
            return;
        }
        // SAFETY: the mapping is shared: its pages belong to the file and keep their content, mapped or not.
        let released = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            tracing::debug!(
                name: "shm.pages_not_dropped", %error, path = %self.path.display(),
                "cannot drop the pages of a mapping; they stay resident"
            );
        }
    }

    /// Checks that every page touched so far was readable. Call it after the reads and writes that it covers; see
    /// [`crate::pages`].
    ///
    /// # Errors
    /// [`Error::Io`] if one was not: discard what was read; no other process sees what was written.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.guarded.is_damaged() { Err(self.is_bad()) } else { Ok(()) }
    }

    #[cold]
    fn is_bad(&self) -> Error {
        let why = "its memory is gone: the file was shortened, or the disk or memory under it fails; start tape-storage again";
        Error::io("use a page of", &self.path, std::io::Error::other(why))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Whether the mapping has no bytes.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// The mapped file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The 64-bit atomic at byte `offset`.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 8 inside the mapping.
    #[inline]
    pub fn u64(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset.saturating_add(8) <= self.len(), "offset {offset}");
        // SAFETY: the offset was just checked to lie inside the mapping.
        let at = unsafe { self.map.as_mut_ptr().add(offset as usize) };
        // SAFETY: aligned (mappings begin on a page) and inside the mapping, which lives as long as `self`; the word is
        // accessed through atomics only, or before it is published.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// The 32-bit atomic at byte `offset`.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 4 inside the mapping.
    #[inline]
    pub fn u32(&self, offset: u64) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset.saturating_add(4) <= self.len(), "offset {offset}");
        // SAFETY: the offset was just checked to lie inside the mapping.
        let at = unsafe { self.map.as_mut_ptr().add(offset as usize) };
        // SAFETY: as in `u64`.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// `count` words from byte `offset`; `None` if they are not all inside the mapping. Call it only for published words:
    /// their writer never writes them again.
    #[inline]
    pub fn words(&self, offset: u64, count: usize) -> Option<&[u64]> {
        let end = (count as u64).checked_mul(8)?.checked_add(offset)?;
        if !offset.is_multiple_of(8) || end > self.len() {
            return None;
        }
        // SAFETY: the offset was just checked to lie inside the mapping.
        let at = unsafe { self.map.as_ptr().add(offset as usize) };
        // SAFETY: aligned and inside the mapping, which outlives the borrow; published words are never written again while
        // their file is mapped (files are unlinked, never reused or truncated).
        Some(unsafe { std::slice::from_raw_parts(at.cast(), count) })
    }

    /// Copies `words` to byte `offset`, before they are published.
    ///
    /// # Panics
    /// If the mapping is read-only or the words do not fit in it.
    #[inline]
    pub fn write_words(&self, offset: u64, words: &[u64]) {
        let end = offset.saturating_add(words.len() as u64 * 8);
        assert!(self.writable && offset.is_multiple_of(8) && end <= self.len(), "offset {offset}");
        // SAFETY: the range was just checked to lie inside the mapping.
        let at = unsafe { self.map.as_mut_ptr().add(offset as usize) };
        // SAFETY: both ranges are valid for the length. They cannot overlap: no slice of unpublished words of a mapping
        // exists. This thread is the only writer of the range.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), at.cast(), words.len()) };
    }
}

/// Mappings up to this length are populated when they are mapped: some 10 ms for 256 MiB.
const POPULATE_MAX: u64 = 1 << 30;

/// Fills the page tables now, which saves a fault at the first touch of each page. It goes piece by piece: populating a whole
/// table in one call blocks every other thread that maps or unmaps memory for half a second.
fn populate(map: &MmapRaw, writable: bool) {
    let advice = if writable { memmap2::Advice::PopulateWrite } else { memmap2::Advice::PopulateRead };
    for at in (0..map.len()).step_by(POPULATE_PIECE) {
        // Kernels before 5.14 lack this advice: pages then fault at their first touch.
        if map.advise_range(advice, at, POPULATE_PIECE.min(map.len() - at)).is_err() {
            return;
        }
    }
}

/// Bytes populated by one call.
const POPULATE_PIECE: usize = 4 << 20;

/// Whether some bytes of `file` are not allocated: populating it would allocate them.
fn is_sparse(file: &File) -> bool {
    file.metadata().map_or(true, |m| m.blocks() * 512 < m.len())
}

/// Mode of files in shared memory, independent of the umask: the group may read. The run directory limits who gets this far.
const MODE: u32 = 0o640;

fn open(options: &mut OpenOptions, op: &'static str, path: &Path) -> Result<File> {
    let file = options.mode(MODE).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path);
    let file = file.map_err(|e| Error::io(op, path, e))?;
    if op == "create" {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(MODE)).map_err(|e| Error::io("set the mode of", path, e))?;
    }
    Ok(file)
}

/// Allocates `len` bytes of `file` from `offset` on, so that no later store into them can fail.
fn allocate(file: &File, path: &Path, offset: u64, len: u64) -> Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOSPC | rustix::io::Errno::NOMEM) => {
            Err(Error::NoSharedMemory { path: path.to_path_buf(), wanted: len, free: free_bytes(path) })
        }
        Err(e) => Err(Error::io("allocate", path, e)),
    }
}

/// Bytes free in the file system that holds `path`; 0 if unknown.
pub fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| s.f_bavail * s.f_frsize)
}

/// Size in bytes of the file system that holds `path`; 0 if unknown.
pub fn total_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| s.f_blocks * s.f_frsize)
}

/// User and process id of the peer of `stream`, as the kernel reports them. The id is 0 if the peer's process has no number where this
/// one runs, as in another container: rustix takes that for a failure.
fn peer_of(stream: &UnixStream) -> std::io::Result<(u32, u32)> {
    let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of_val(&found) as libc::socklen_t;
    let to = (&raw mut found).cast();
    // SAFETY: the kernel writes at most `len` bytes to `found`, which is plain numbers.
    let failed = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, to, &mut len) } != 0;
    if failed { Err(std::io::Error::last_os_error()) } else { Ok((found.uid, found.pid.cast_unsigned())) }
}
