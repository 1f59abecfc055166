//! Owns: small files that change in place: two slots of 4096 bytes, each with a checksum and a sequence number.
//!
//! ```text
//! 0     slot A   odd sequence numbers
//! 4096  slot B   even sequence numbers
//! a slot begins with   magic u64 · version u32 · CRC-32C u32 (over the slot, with 0 here) · seq u64
//! ```
//!
//! What must hold: the valid slot with the higher number is the content, and a write overwrites the other slot, so a torn write
//! leaves the earlier content.

use std::path::Path;

use super::{Disk, DiskFile, Open, publish};
use crate::error::{Error, Result};
use crate::lsn::Lsn;

/// Bytes from one slot to the next.
pub const STRIDE: usize = 4096;

/// The result of parsing one slot.
#[derive(Debug)]
pub enum Parsed<T> {
    /// Its sequence number and content.
    Valid(u64, Box<T>),
    /// Another format version.
    Version(u32),
    /// Another magic: the first eight bytes.
    Foreign(u64),
    /// A check failed.
    Damaged {
        /// Which check.
        what: &'static str,
        /// The value that the check demands.
        expected: u64,
        /// The value in the slot.
        found: u64,
    },
}

/// Content of such a file.
pub trait Content: Clone {
    /// Name of the file in the store directory.
    const NAME: &'static str;
    /// The first eight bytes of a slot.
    const MAGIC: u64;
    /// Newest format version.
    const VERSION: u32;
    /// Why a store has the file.
    const PURPOSE: &'static str;

    /// The name of the CRC in errors.
    const CRC: &'static str;

    /// The bytes of a slot with the number `seq`; at most [`STRIDE`].
    fn encode(&self, seq: u64) -> Vec<u8>;

    /// Parses a slot. Total on any bytes.
    fn parse(bytes: &[u8]) -> Parsed<Self>;
}

/// Reads a slot of the layout `S` whose magic, CRC and version are right.
///
/// # Errors
/// The first of them that is not.
pub fn checked<S: bytemuck::AnyBitPattern, T: Content>(bytes: &[u8]) -> std::result::Result<S, Parsed<T>> {
    let foreign = || Parsed::Foreign(bytes.len() as u64);
    let slot = bytes.get(..size_of::<S>()).ok_or_else(foreign)?;
    let (magic, rest) = slot.split_first_chunk::<8>().ok_or_else(foreign)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(foreign)?;
    let (crc, rest) = rest.split_first_chunk::<4>().ok_or_else(foreign)?;
    let found = u64::from_le_bytes(*magic);
    if found != T::MAGIC {
        return Err(Parsed::Foreign(found));
    }
    let front = [&magic[..], &version[..], &[0; 4]].concat();
    let (expected, found) = (crc32c::crc32c_append(crc32c::crc32c(&front), rest), u32::from_le_bytes(*crc));
    if expected != found {
        return Err(Parsed::Damaged { what: T::CRC, expected: u64::from(expected), found: u64::from(found) });
    }
    let version = u32::from_le_bytes(*version);
    if !(1..=T::VERSION).contains(&version) {
        return Err(Parsed::Version(version));
    }
    bytemuck::try_pod_read_unaligned(slot).map_err(|_| foreign())
}

/// Such a file, open.
pub struct TwoSlots<T> {
    file: Box<dyn DiskFile>,
    seq: u64,
    content: T,
}

impl<T: std::fmt::Debug> std::fmt::Debug for TwoSlots<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TwoSlots").field("seq", &self.seq).field("content", &self.content).finish_non_exhaustive()
    }
}

/// Reads the file in the directory `dir`; `None` if there is none.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Version`] or [`Error::Corrupt`] if no slot is valid; [`Error::Io`].
pub fn read<T: Content>(disk: &dyn Disk, dir: &Path) -> Result<Option<T>> {
    let path = dir.join(T::NAME);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let file = disk.open(&path, Open::Read)?;
    newest(file.as_ref(), &path).map(|(_, content)| Some(content))
}

/// The valid slot with the higher number.
fn newest<T: Content>(file: &dyn DiskFile, path: &Path) -> Result<(u64, T)> {
    let mut bytes = vec![0u8; 2 * STRIDE];
    file.read_at(&mut bytes, 0)?;
    let mut best: Option<(u64, T)> = None;
    let mut worst = None;
    for (offset, slot) in (0u64..).step_by(STRIDE).zip(bytes.chunks(STRIDE)) {
        let path = path.to_path_buf();
        match T::parse(slot) {
            Parsed::Valid(seq, content) if best.as_ref().is_none_or(|(b, _)| seq > *b) => best = Some((seq, *content)),
            Parsed::Valid(..) => {}
            Parsed::Version(found) => return Err(Error::Version { path, found, supported: T::VERSION }),
            Parsed::Foreign(found) => worst = worst.or(Some(Error::Foreign { path, what: T::NAME, found })),
            Parsed::Damaged { what, expected, found } => {
                worst = Some(Error::Corrupt { path, offset, lsn: Lsn(1), what, expected, found });
            }
        }
    }
    match (best, worst) {
        (Some(best), damaged) => {
            if let Some(error) = damaged {
                tracing::warn!(
                    name: "disk.slot_unreadable", %error,
                    "one slot of {} is unreadable; using the other; check the disk", T::NAME
                );
            }
            Ok(best)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::Missing { path: path.to_path_buf(), what: T::PURPOSE }),
    }
}

impl<T: Content> TwoSlots<T> {
    /// Creates the file in `dir`, whole or not at all, with `content` in both slots.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(disk: &dyn Disk, dir: &Path, content: &T) -> Result<TwoSlots<T>> {
        let mut bytes = content.encode(1);
        bytes.resize(STRIDE, 0);
        bytes.extend(content.encode(2));
        bytes.resize(2 * STRIDE, 0);
        publish(disk, &dir.join(T::NAME), &bytes)?;
        TwoSlots::open(disk, dir)
    }

    /// Opens the file in `dir`.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none; as [`read`].
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<TwoSlots<T>> {
        let path = dir.join(T::NAME);
        if !disk.exists(&path)? {
            return Err(Error::Missing { path, what: T::PURPOSE });
        }
        let file = disk.open(&path, Open::Write)?;
        let (seq, content) = newest(file.as_ref(), &path)?;
        Ok(TwoSlots { file, seq, content })
    }

    /// The content.
    pub fn content(&self) -> &T {
        &self.content
    }

    /// Stores `content` in the older slot, durably.
    ///
    /// # Errors
    /// [`Error::Io`]; the file then holds the old content or the new.
    pub fn write(&mut self, content: T) -> Result<()> {
        self.seq += 1;
        let bytes = content.encode(self.seq);
        assert!(bytes.len() <= STRIDE, "a slot does not reach into the next");
        self.file.write_at(&bytes, if self.seq % 2 == 1 { 0 } else { STRIDE as u64 })?;
        self.file.sync()?;
        self.content = content;
        Ok(())
    }
}
