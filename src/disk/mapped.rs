//! Owns: an immutable file, mapped for reading; on the simulated disk, a copy of it.
//!
//! What must hold: the file is never written, truncated or renamed over while it may be mapped: it is
//! complete before it gets its name, and afterwards only unlinked. A page that cannot be read is an
//! error of [`Mapped::populate`], which is asked before the first touch, and no signal. A page that goes bad after that is
//! an error of [`Mapped::check`], which is asked after each use, where the process has asked for it ([`crate::pages`]).

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
    /// The guard ends before the mapping does.
    Map(Guarded, Mmap),
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

    /// All its bytes; the first is aligned to 8.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Map(_, map) => map,
            Bytes::Copy(words, len) => bytemuck::cast_slice(words).get(..*len).unwrap_or(&[]),
        }
    }

    /// Gives the memory of its pages back; a page that is touched again is read again.
    pub fn release(&self) {
        let Bytes::Map(_, map) = &self.bytes else { return };
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
        let Bytes::Map(_, map) = &self.bytes else { return Ok(()) };
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

    /// Whether what has been read of it so far is the file's: every page was there, and its last byte still is `last`,
    /// which is not 0 (a file that is cut short ends in zeros, or its last page is gone). To be asked after each use.
    ///
    /// # Errors
    /// [`Error::Io`] if it is not: what was read is not to be used. Always sound in a process that is not guarded.
    #[inline]
    pub fn check(&self, last: u8) -> Result<()> {
        let Bytes::Map(guarded, map) = &self.bytes else { return Ok(()) };
        if !pages::is_guarded() {
            return Ok(());
        }
        let ends_right = map.last().is_none_or(|byte| {
            // SAFETY: the last byte of the mapping; read anew, because a file that is cut short changes under it.
            last == unsafe { std::ptr::from_ref(byte).read_volatile() }
        });
        if ends_right && !guarded.is_damaged() { Ok(()) } else { Err(self.is_bad()) }
    }

    /// Whether a page of it could not be read when it was touched. It stays so; another mapping of the file may be sound.
    pub fn is_damaged(&self) -> bool {
        matches!(&self.bytes, Bytes::Map(guarded, _) if guarded.is_damaged())
    }

    #[cold]
    fn is_bad(&self) -> Error {
        let why = "the disk cannot read it again, or the file has been cut short since it was opened; \
                   tape verify names every such file";
        Error::io("read a page of", &self.path, std::io::Error::other(why))
    }
}
