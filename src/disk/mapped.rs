//! Owns: an immutable file, mapped for reading; on the simulated disk, a copy of it.
//!
//! What must hold: the file is never written, truncated or renamed over while it may be mapped: it is
//! complete before it gets its name, and afterwards only unlinked. An unreadable page is an error of
//! [`Mapped::populate`], called before the first touch, and raises no signal. A page that goes bad after
//! that is an error of [`Mapped::check`], called after each use, in a process with the handler of
//! [`crate::pages`].

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::{Error, Result};
use crate::pages::{self, Guarded};

/// The bytes of an immutable file.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// The guard is dropped before the mapping.
    Map(Guarded, Mmap),
    /// Words, for alignment, and the number of valid bytes in them.
    Copy(Vec<u64>, usize),
}

impl Mapped {
    /// Maps the file `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn open(path: &Path) -> Result<Mapped> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
        if len == 0 {
            return Ok(Mapped::copy(path, &[]));
        }
        // SAFETY: by the rule of this file no process changes the bytes or the length of a file that is
        // mapped here: its writer completed it before it got its name.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::map(path, e))?;
        let guarded = Guarded::new(map.as_ptr(), map.len(), false);
        Ok(Mapped { path: path.to_path_buf(), bytes: Bytes::Map(guarded, map) })
    }

    /// The file `path` as a copy of `bytes`.
    pub(super) fn copy(path: &Path, bytes: &[u8]) -> Mapped {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words).iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Mapped { path: path.to_path_buf(), bytes: Bytes::Copy(words, bytes.len()) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file; the first is aligned to 8.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Map(_, map) => map,
            Bytes::Copy(words, len) => bytemuck::cast_slice(words).get(..*len).unwrap_or(&[]),
        }
    }

    /// Releases the memory of its pages; a touched page is read again.
    pub fn release(&self) {
        let Bytes::Map(_, map) = &self.bytes else { return };
        // SAFETY: a shared mapping of a file that never changes: a page read again has the same bytes, so slices
        // of it stay valid.
        let released = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, path = %self.path.display(), "cannot release the pages of a mapping");
        }
    }

    /// Brings the pages of `len` bytes from `offset` on into memory.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk cannot read one; touching it would have raised SIGBUS.
    pub fn populate(&self, offset: u64, len: u64) -> Result<()> {
        let Bytes::Map(_, map) = &self.bytes else { return Ok(()) };
        let from = (offset as usize).min(map.len());
        let len = (len as usize).min(map.len() - from);
        if len == 0 {
            return Ok(());
        }
        match map.advise_range(Advice::PopulateRead, from, len) {
            // Kernels before 5.14 do not support this advice.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
            Err(e) => Err(Error::io("read a page of", &self.path, e)),
            Ok(()) => Ok(()),
        }
    }

    /// Checks that all bytes read so far are the file's: every page was readable, and its last byte is still `last`,
    /// which is not 0 (a truncated file ends in zeros, or its last page is gone). Call after each use.
    ///
    /// # Errors
    /// [`Error::Io`] if they are not: discard what was read. Never, in a process without the handler.
    #[inline]
    pub fn check(&self, last: u8) -> Result<()> {
        let Bytes::Map(guarded, map) = &self.bytes else { return Ok(()) };
        if !pages::is_guarded() {
            return Ok(());
        }
        let ends_right = map.last().is_none_or(|byte| {
            // SAFETY: the last byte of the mapping; a volatile read, because truncation of the file changes it.
            last == unsafe { std::ptr::from_ref(byte).read_volatile() }
        });
        if ends_right && !guarded.is_damaged() { Ok(()) } else { Err(self.is_bad()) }
    }

    /// Whether a page was unreadable when it was touched. This is permanent; another mapping of the file may be sound.
    pub fn is_damaged(&self) -> bool {
        matches!(&self.bytes, Bytes::Map(guarded, _) if guarded.is_damaged())
    }

    #[cold]
    fn is_bad(&self) -> Error {
        let why = "the disk cannot read it again, or the file was truncated after it was opened; \
                   to list every such file, run: tape verify";
        Error::io("read a page of", &self.path, std::io::Error::other(why))
    }
}
