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

/// Bytes that are asked for at once: the kernel reads no more of a call than its read-ahead, which is 128 KiB by default.
const READ_AHEAD: usize = 128 << 10;

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
            tracing::debug!(
                name: "disk.pages_not_released", %error, path = %self.path.display(),
                "cannot release the pages of a mapping"
            );
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
        // Without it the kernel reads all pages around the first one that is missing, megabytes on some disks.
        self.read_ahead(offset, len as u64);
        match map.advise_range(Advice::PopulateRead, from, len) {
            // Kernels before 5.14 do not support this advice.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
            Err(e) => Err(Error::io("read a page of", &self.path, e)),
            Ok(()) => Ok(()),
        }
    }

    /// Starts to read the pages of `len` bytes from `offset` on into memory, these and no others, and does not wait for them.
    pub fn read_ahead(&self, offset: u64, len: u64) {
        let Bytes::Map(_, map) = &self.bytes else { return };
        let from = (offset as usize).min(map.len());
        let len = (len as usize).min(map.len() - from);
        if len == 0 {
            return;
        }
        for at in (from..from + len).step_by(READ_AHEAD) {
            if let Err(error) = map.advise_range(Advice::WillNeed, at, READ_AHEAD.min(from + len - at)) {
                tracing::debug!(
                    name: "disk.read_ahead_failed", %error, path = %self.path.display(),
                    "cannot read a mapping ahead"
                );
                return;
            }
        }
    }

    /// The bytes from `offset` on are read here and there: a page that is touched is read without those around it.
    pub fn is_random_from(&self, offset: u64) {
        let Bytes::Map(_, map) = &self.bytes else { return };
        let page = rustix::param::page_size();
        let from = (offset as usize).min(map.len()).next_multiple_of(page);
        if from < map.len()
            && let Err(error) = map.advise_range(Advice::Random, from, map.len() - from)
        {
            tracing::debug!(name: "disk.advice_failed", %error, path = %self.path.display(), "cannot say how a mapping is read");
        }
    }

    /// Whether `len` bytes from `offset` on are in memory, as far as the kernel says: to a process that may not write the
    /// file it says so of every page.
    pub fn is_in_memory(&self, offset: u64, len: u64) -> bool {
        let Bytes::Map(_, map) = &self.bytes else { return true };
        let page = rustix::param::page_size();
        let from = (offset as usize).min(map.len()) / page * page;
        let to = (offset.saturating_add(len) as usize).min(map.len());
        let mut pages = [1u8; 128];
        map.get(from..to).unwrap_or(&[]).chunks(pages.len() * page).all(|part| {
            // SAFETY: `part` begins at a page of the mapping, since the mapping and each part before do; `pages` has a byte
            // for each page of it, which is what the call writes.
            let outcome = unsafe { libc::mincore(part.as_ptr().cast_mut().cast(), part.len(), pages.as_mut_ptr()) };
            outcome != 0 || pages.iter().take(part.len().div_ceil(page)).all(|page| page & 1 != 0)
        })
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
