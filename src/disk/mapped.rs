//! Owns: an immutable file, mapped for reading; on the simulated disk, a copy of it.
//!
//! What must hold: the file is never written, truncated or renamed over while it may be mapped: it is
//! complete before it gets its name, and afterwards only unlinked. A page that cannot be read is an
//! error of [`Mapped::populate`], which is asked before the first touch, and no signal.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::{Error, Result};

/// The bytes of an immutable file.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Map(Mmap),
    /// Words, for their alignment, and how many bytes of them count.
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
        // SAFETY: by the rule of this file nobody changes the bytes or the length of a file that is
        // mapped here: its writer has finished it before it got its name.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::map(path, e))?;
        Ok(Mapped { path: path.to_path_buf(), bytes: Bytes::Map(map) })
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

    /// All its bytes; the first is aligned to 8.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Map(map) => map,
            Bytes::Copy(words, len) => bytemuck::cast_slice(words).get(..*len).unwrap_or(&[]),
        }
    }

    /// Gives the memory of its pages back; a page that is touched again is read again.
    pub fn release(&self) {
        let Bytes::Map(map) = &self.bytes else { return };
        // SAFETY: a shared mapping of a file that nobody changes: what is read again is what was there, so slices
        // of it stay as they are.
        let released = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, path = %self.path.display(), "pages are not given back");
        }
    }

    /// Brings the pages of `len` bytes from `offset` on into memory.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk cannot read one; touching it would have been a signal.
    pub fn populate(&self, offset: u64, len: u64) -> Result<()> {
        let Bytes::Map(map) = &self.bytes else { return Ok(()) };
        let from = (offset as usize).min(map.len());
        let len = (len as usize).min(map.len() - from);
        if len == 0 {
            return Ok(());
        }
        match map.advise_range(Advice::PopulateRead, from, len) {
            // Kernels before 5.14 do not know the advice.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
            Err(e) => Err(Error::io("read a page of", &self.path, e)),
            Ok(()) => Ok(()),
        }
    }
}
