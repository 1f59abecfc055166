//! Owns: [`Growing`], a file of shared memory that only grows, and [`Grown`], its reader. The file is mapped once at its
//! largest size and allocated as it is used. When shared memory is short it moves to the store's directory.
//!
//! What must hold: published bytes are the same in both places. A word of the old file marks the move, before anything is
//! published in the new file alone.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::{Mapping, allocate, free_bytes, open, spill};
use crate::error::{Error, Result};

/// Step in bytes by which a growing file is allocated.
pub(super) const GROW_STEP: u64 = 1 << 20;
/// Offset of the word of every growing file that is 1 once the file has moved to its spill path.
pub(super) const MOVED: u64 = 24;

/// Writer of a file that only grows.
#[derive(Debug)]
pub(super) struct Growing {
    map: Mapping,
    file: File,
    /// Its path in shared memory, even after the move.
    path: PathBuf,
    allocated: u64,
    is_spilled: bool,
}

fn create(path: &Path, len_max: u64) -> Result<(File, Mapping)> {
    let file = open(OpenOptions::new().read(true).write(true).create_new(true), "create", path)?;
    file.set_len(len_max).map_err(|e| Error::io("size", path, e))?;
    let map = Mapping::map(&file, path, true, true)?;
    Ok((file, map))
}

impl Growing {
    /// Creates `path` for at most `len_max` bytes and allocates none of them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn create(path: &Path, len_max: u64) -> Result<Growing> {
        let (file, map) = create(path, len_max)?;
        Ok(Growing { map, file, path: path.to_path_buf(), allocated: 0, is_spilled: false })
    }

    /// Allocates all bytes before `end`; moves the file to disk if shared memory is short.
    ///
    /// # Errors
    /// [`Error::Io`] if neither shared memory nor the disk has room.
    pub(super) fn reserve(&mut self, end: u64) -> Result<()> {
        assert!(end <= self.map.len(), "{end} bytes of {}", self.map.len());
        if end <= self.allocated {
            return Ok(());
        }
        let target = end.next_multiple_of(GROW_STEP).min(self.map.len());
        let more = target - self.allocated;
        if !self.is_spilled {
            match allocate_beside_the_bus(&self.file, &self.path, self.allocated, more) {
                Err(error @ Error::NoSharedMemory { .. }) => self.spill(&error)?,
                other => {
                    self.allocated = target;
                    return other;
                }
            }
        }
        spill::allocate(&self.file, self.map.path(), self.allocated, more)?;
        self.allocated = target;
        Ok(())
    }

    /// Moves the file with its content to the store's directory.
    fn spill(&mut self, why: &Error) -> Result<()> {
        let place = spill::prepare(&self.path)?;
        let (file, map) = create(&place, self.map.len())?;
        spill::allocate(&file, &place, 0, self.allocated)?;
        if let Some(words) = self.map.words(0, self.allocated as usize / 8) {
            map.write_words(0, words);
        }
        tracing::warn!(
            name: "shm.names_spilled", %why, place = %place.display(),
            "shared memory is short: a table of names lies on disk now"
        );
        if self.allocated > 0 {
            // SYNC: pairs with the load in `Grown::refresh`; the content of the new file is ordered before it.
            self.map.u64(MOVED).store(1, Ordering::Release);
        }
        std::fs::remove_file(&self.path).map_err(|e| Error::io("remove", &self.path, e))?;
        (self.file, self.map, self.is_spilled) = (file, map, true);
        Ok(())
    }

    /// The mapping; touch reserved bytes only.
    pub(super) fn map(&self) -> &Mapping {
        &self.map
    }
}

/// Allocates `len` bytes in shared memory if enough stays free for the bus.
fn allocate_beside_the_bus(file: &File, path: &Path, offset: u64, len: u64) -> Result<()> {
    if !spill::fits(path, len) {
        return Err(Error::NoSharedMemory { path: path.to_path_buf(), wanted: len, free: free_bytes(path) });
    }
    allocate(file, path, offset, len)
}

/// Reader of a growing file.
#[derive(Debug)]
pub(super) struct Grown(Mapping);

impl Grown {
    /// Maps `path`, or its spilled file if `path` is absent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn open(path: &Path) -> Result<Grown> {
        match Mapping::open(path, false) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Mapping::open(&spill::place(path), false).map(Grown)
            }
            other => other.map(Grown),
        }
    }

    /// Maps the new file if the file has moved. If the new file is gone, so is that instance of storage: the old map stays.
    pub(super) fn refresh(&mut self) {
        // SYNC: pairs with the store in `Growing::spill`.
        if self.0.len() > MOVED && self.0.u64(MOVED).load(Ordering::Acquire) != 0 {
            match Mapping::open(&spill::place(self.0.path()), false) {
                Ok(map) => self.0 = map,
                Err(error) => {
                    tracing::debug!(
                        name: "shm.old_names_in_use", %error,
                        "a moved table of names is gone with its storage process; the old map stays in use"
                    )
                }
            }
        }
    }

    /// The mapping.
    pub(super) fn map(&self) -> &Mapping {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::InstrumentId;
    use crate::record::Name;
    use crate::shm::symbols::{Symbols, SymbolsWriter};

    #[test]
    fn names_moved_to_the_store_are_found_by_readers_opened_before_and_after() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(store.path(), dir.path().join(crate::shm::spill::BACK)).unwrap();
        let path = dir.path().join("symbols-2");
        let name = |i: u32| -> Name { format!("N:{i}").parse().unwrap() };
        let mut writer = SymbolsWriter::create(&path, 1_000_000).unwrap();
        writer.push(&name(1)).unwrap();
        writer.publish();
        let mut before = Symbols::open(&path).unwrap();
        assert_eq!(before.id(&name(1)), Some(InstrumentId(1)));
        writer.file.spill(&Error::invalid("test", "")).unwrap();
        // More than one allocation step.
        for i in 2..=50_000 {
            writer.push(&name(i)).unwrap();
        }
        writer.publish();
        assert!(!path.exists() && spill::place(&path).exists());
        let mut after = Symbols::open(&path).unwrap();
        for symbols in [&mut before, &mut after] {
            for i in [1, 2, 50_000] {
                assert_eq!((symbols.id(&name(i)), symbols.name(InstrumentId(i))), (Some(InstrumentId(i)), Some(name(i))));
            }
        }
    }
}
