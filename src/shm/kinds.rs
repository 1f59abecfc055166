//! Owns: the catalog of user-defined kinds in shared memory: storage appends, all other processes read.
//!
//! ```text
//! 0    magic u64 · version u64 · words published u64 · moved u64
//! 64   one kind after the other: words of its layout u64 · the layout
//! ```
//!
//! What must hold: a layout is written once, before the published words cover it, and published before the first record of
//! its kind.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::growing::{GROW_STEP, Growing, Grown, MOVED};
use crate::error::{Error, Result};
use crate::record::{LAYOUT_WORDS_MAX, Layout, Schema, USER_MAX};

const MAGIC: u64 = u64::from_le_bytes(*b"TAPEKIND");
const VERSION: u64 = 1;
const PUBLISHED: u64 = 16;
const HEAD_LEN: u64 = 64;
const _: () = assert!(PUBLISHED + 8 <= MOVED && MOVED + 8 <= HEAD_LEN);
const LEN_MAX: u64 = HEAD_LEN + (USER_MAX * (1 + LAYOUT_WORDS_MAX) * 8) as u64;

/// Bytes of shared memory that the layouts of a few kinds take.
pub const BYTES_OF_FEW: u64 = GROW_STEP;

/// Writer of the kinds, in storage.
#[derive(Debug)]
pub struct KindsWriter {
    file: Growing,
    words: u64,
}

impl KindsWriter {
    /// Creates the file `path`.
    ///
    /// # Errors
    /// As [`Growing::create`].
    pub fn create(path: &Path) -> Result<KindsWriter> {
        let mut file = Growing::create(path, LEN_MAX)?;
        file.reserve(HEAD_LEN)?;
        file.map().u64(8).store(VERSION, Ordering::Relaxed);
        file.map().u64(0).store(MAGIC, Ordering::Release);
        Ok(KindsWriter { file, words: 0 })
    }

    /// Appends a layout; readers do not see it before [`KindsWriter::publish`].
    ///
    /// # Errors
    /// As [`Growing::reserve`].
    pub fn push(&mut self, layout: &Layout) -> Result<()> {
        let layout = layout.encode();
        let at = HEAD_LEN + self.words * 8;
        self.file.reserve(at + (layout.len() as u64 + 1) * 8)?;
        self.file.map().write_words(at, &[layout.len() as u64]);
        self.file.map().write_words(at + 8, &layout);
        self.words += layout.len() as u64 + 1;
        Ok(())
    }

    /// Publishes the appended layouts to readers. Call it after their control entries are in the log.
    pub fn publish(&self) {
        // SYNC: pairs with the load in `Kinds::refresh`.
        self.file.map().u64(PUBLISHED).store(self.words, Ordering::Release);
    }
}

/// Reader of the kinds.
#[derive(Debug)]
pub struct Kinds {
    grown: Grown,
    words: u64,
    schemas: Vec<&'static Schema>,
}

impl Kinds {
    /// Maps the file `path`.
    ///
    /// # Errors
    /// [`Error::Foreign`] if it is no table of kinds; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Kinds> {
        let grown = Grown::open(path)?;
        let map = grown.map();
        let magic = if map.len() < HEAD_LEN { 0 } else { map.u64(0).load(Ordering::Acquire) };
        if magic != MAGIC || map.u64(8).load(Ordering::Relaxed) != VERSION {
            return Err(Error::Foreign { path: path.to_path_buf(), what: "table of kinds", found: magic });
        }
        Ok(Kinds { grown, words: 0, schemas: Vec::new() })
    }

    /// Registers the layouts that storage has added since the last call. A call without news costs a few loads.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this process has another layout under the same kind id; [`Error::Foreign`] if a layout is damaged.
    pub fn refresh(&mut self) -> Result<()> {
        self.grown.refresh();
        let map = self.grown.map();
        // SYNC: pairs with the store in `KindsWriter::publish`.
        let published = map.u64(PUBLISHED).load(Ordering::Acquire);
        while self.words < published {
            let at = HEAD_LEN + self.words * 8;
            let foreign = || Error::Foreign { path: map.path().to_path_buf(), what: "table of kinds", found: at };
            let len = map.words(at, 1).and_then(|w| w.first().copied()).ok_or_else(foreign)?;
            let layout = usize::try_from(len).ok().and_then(|len| map.words(at + 8, len));
            let layout = layout.and_then(Layout::parse).ok_or_else(foreign)?;
            self.schemas.push(layout.register()?);
            self.words += 1 + len;
        }
        Ok(())
    }

    /// User-defined kinds of the store, as of the last refresh.
    pub fn schemas(&self) -> &[&'static Schema] {
        &self.schemas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_visible_to_readers_once_it_is_published() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("kinds");
        let mut writer = KindsWriter::create(&path).unwrap();
        let mut reader = Kinds::open(&path).unwrap();
        let layout = crate::record::example_layout();
        writer.push(&layout).unwrap();
        reader.refresh().unwrap();
        assert!(reader.schemas().is_empty());
        writer.publish();
        reader.refresh().unwrap();
        assert!(reader.schemas().len() == 1 && reader.schemas()[0].name == "test-signal");
        std::fs::write(&path, [0; 64]).unwrap();
        assert!(matches!(Kinds::open(&path), Err(Error::Foreign { .. })));
    }
}
