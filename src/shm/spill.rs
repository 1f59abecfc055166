//! Owns: spilling: files in the store's directory that replace shared memory when it is short. They are mapped the same way.
//!
//! ```text
//! STORE/spill/memtable-N-M    as in the run directory
//!             symbols-N
//!             kinds-N
//! ```
//!
//! What must hold: enough shared memory stays free for the bus, which cannot spill. Readers may pin any amount of it: the next
//! MemTable or table then spills. The spilled files of an instance are removed at its end, or at the next start.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::{free_bytes, total_bytes};
use crate::error::{Error, Result};

/// Name of the link back, in the run directory.
pub(super) const BACK: &str = "store";

/// Name of the directory in the store's directory.
pub const DIR: &str = "spill";

/// Shared memory left free for the bus: at most 64 MiB, and at most a fifth of the whole.
const LEFT_MAX: u64 = 64 << 20;
const LEFT_PART: u64 = 5;

/// Bit of a MemTable's id: the MemTable is spilled.
pub const SPILLED: u64 = 1 << 63;

/// Mode of the directory, as of every directory in a store.
const MODE: u32 = 0o750;

/// Bytes of zeros per write, on a file system without `fallocate`.
const ZEROS: usize = 64 << 10;

/// Whether the file system of the file `path` has `len` bytes free and enough besides for the bus.
pub fn fits(path: &Path, len: u64) -> bool {
    let path = path.parent().unwrap_or(path);
    let left = (total_bytes(path) / LEFT_PART).min(LEFT_MAX);
    free_bytes(path) >= len.saturating_add(left)
}

/// Spill path, in the store's directory, of the file `path` of a run directory.
pub fn place(path: &Path) -> PathBuf {
    let (run_dir, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    run_dir.join(BACK).join(DIR).join(name)
}

/// Whether `file` is in shared memory; other files get their pages at the first touch.
pub(super) fn is_memory(file: &File) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|s| s.f_type.cast_unsigned() == TMPFS)
}

/// Allocates `len` bytes of `file` on disk from `offset` on, so that no later store into them fails for lack of space.
pub(super) fn allocate(file: &File, path: &Path, offset: u64, len: u64) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let failed = |e: std::io::Error| Error::io("allocate", path, e);
    match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let zeros = [0; ZEROS];
            for at in (offset..offset + len).step_by(ZEROS) {
                let piece = zeros.get(..(offset + len - at).min(ZEROS as u64) as usize).unwrap_or(&zeros);
                file.write_all_at(piece, at).map_err(failed)?;
            }
            Ok(())
        }
        other => other.map_err(|e| failed(e.into())),
    }
}

/// Creates the directory of the spill path of `path`; returns that path.
///
/// # Errors
/// [`Error::Io`].
pub fn prepare(path: &Path) -> Result<PathBuf> {
    let place = place(path);
    let dir = place.parent().unwrap_or(&place);
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(place),
        Err(e) => Err(Error::io("create directory", dir, e)),
        Ok(()) => {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(MODE);
            std::fs::set_permissions(dir, mode).map_err(|e| Error::io("set the mode of", dir, e))?;
            Ok(place)
        }
    }
}

/// Removes the spilled files of earlier instances of the store in `store`, whose lock the caller holds. Live processes keep
/// their mappings.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep(store: &Path) -> Result<()> {
    let dir = store.join(DIR);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &dir, e)),
        _ => Ok(()),
    }
}
