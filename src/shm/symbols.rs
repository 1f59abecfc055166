//! Owns: the catalog of instrument names in shared memory: storage appends, all other processes read.
//!
//! ```text
//! 0    magic u64 · version u64 · count u64 · moved u64
//! 64   80 B per instrument, in the order of ids from 1: id u64 · name length u8 · name 71 B
//! ```
//!
//! What must hold: an entry is written once, before `count` covers it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::growing::{GROW_STEP, Growing, Grown, MOVED};
use crate::error::{Error, Result};
use crate::lsn::InstrumentId;
use crate::record::Name;

const MAGIC: u64 = u64::from_le_bytes(*b"TAPESYMB");
const VERSION: u64 = 1;
const COUNT: u64 = 16;
const HEAD_LEN: u64 = 64;
const _: () = assert!(COUNT + 8 <= MOVED && MOVED + 8 <= HEAD_LEN);
const ENTRY_WORDS: usize = 10;
const ENTRY_LEN: u64 = ENTRY_WORDS as u64 * 8;

/// Bytes of shared memory that the names of `instruments` instruments take.
pub fn bytes_of(instruments: u64) -> u64 {
    (HEAD_LEN + instruments * ENTRY_LEN).next_multiple_of(GROW_STEP)
}

/// Writer of the names, in storage.
#[derive(Debug)]
pub struct SymbolsWriter {
    pub(super) file: Growing,
    count: u64,
    max: u64,
}

impl SymbolsWriter {
    /// Creates the file `path` for at most `max` instruments.
    ///
    /// # Errors
    /// As [`Growing::create`].
    pub fn create(path: &Path, max: u64) -> Result<SymbolsWriter> {
        let mut file = Growing::create(path, HEAD_LEN + max * ENTRY_LEN)?;
        file.reserve(HEAD_LEN)?;
        file.map().u64(8).store(VERSION, Ordering::Relaxed);
        file.map().u64(0).store(MAGIC, Ordering::Release);
        Ok(SymbolsWriter { file, count: 0, max })
    }

    /// Number of instruments.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Largest number of instruments.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Publishes the appended names to readers. Call it after their control entries are in the log.
    pub fn publish(&self) {
        // SYNC: pairs with the load in `Symbols::refresh`.
        self.file.map().u64(COUNT).store(self.count, Ordering::Release);
    }

    /// Appends the name of the next instrument; readers do not see it before [`SymbolsWriter::publish`].
    ///
    /// # Errors
    /// [`Error::Limit`] if there are [`SymbolsWriter::max`] already; as [`Growing::reserve`].
    pub fn push(&mut self, name: &Name) -> Result<InstrumentId> {
        if self.count == self.max {
            return Err(Error::Limit {
                what: "the number of instruments (instruments-max in the configuration)",
                limit: self.max,
            });
        }
        let at = HEAD_LEN + self.count * ENTRY_LEN;
        self.file.reserve(at + ENTRY_LEN)?;
        let id = self.count + 1;
        let mut bytes = [0u8; ENTRY_WORDS * 8];
        let text = name.as_str().as_bytes();
        let fields = id.to_le_bytes();
        for (to, from) in bytes.iter_mut().zip(fields.iter().chain(std::iter::once(&(text.len() as u8))).chain(text)) {
            *to = *from;
        }
        self.file.map().write_words(at, &bytemuck::cast::<_, [u64; ENTRY_WORDS]>(bytes));
        self.count = id;
        Ok(InstrumentId(id as u32))
    }
}

/// Reader of the names; caches all names that it has read.
#[derive(Debug)]
pub struct Symbols {
    /// Source of further names; `None` if the set is fixed.
    map: Option<Grown>,
    names: Vec<Name>,
    ids: HashMap<Name, InstrumentId>,
}

impl Symbols {
    /// Maps the file `path`.
    ///
    /// # Errors
    /// [`Error::Foreign`] if it is no instrument table; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Symbols> {
        let grown = Grown::open(path)?;
        let map = grown.map();
        let magic = if map.len() < HEAD_LEN { 0 } else { map.u64(0).load(Ordering::Acquire) };
        if magic != MAGIC || map.u64(8).load(Ordering::Relaxed) != VERSION {
            return Err(Error::Foreign { path: path.to_path_buf(), what: "instrument table", found: magic });
        }
        Ok(Symbols { map: Some(grown), names: Vec::new(), ids: HashMap::new() })
    }

    /// A fixed set of `names`, in the order of ids from 1.
    pub fn fixed(names: Vec<Name>) -> Symbols {
        let ids = (1u32..).map(InstrumentId).zip(&names).map(|(id, name)| (*name, id)).collect();
        Symbols { map: None, names, ids }
    }

    /// Reads the names that storage has added.
    pub fn refresh(&mut self) {
        let Some(grown) = &mut self.map else { return };
        grown.refresh();
        let map = grown.map();
        // SYNC: pairs with the store in `SymbolsWriter::publish`.
        let count = map.u64(COUNT).load(Ordering::Acquire);
        while (self.names.len() as u64) < count {
            let at = HEAD_LEN + self.names.len() as u64 * ENTRY_LEN;
            let Some(name) = map.words(at + 8, ENTRY_WORDS - 1).and_then(parse_name) else { return };
            self.names.push(name);
            self.ids.insert(name, InstrumentId(self.names.len() as u32));
        }
    }

    /// The names in the order of ids from 1, as of the last refresh.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// Id of the instrument `name`; `None` if it is not registered.
    pub fn id(&mut self, name: &Name) -> Option<InstrumentId> {
        if !self.ids.contains_key(name) {
            self.refresh();
        }
        self.ids.get(name).copied()
    }

    /// Name of `instrument`; `None` if it is not registered.
    pub fn name(&mut self, instrument: InstrumentId) -> Option<Name> {
        let index = (instrument.0 as usize).checked_sub(1)?;
        if index >= self.names.len() {
            self.refresh();
        }
        self.names.get(index).copied()
    }
}

fn parse_name(words: &[u64]) -> Option<Name> {
    let (&len, text) = bytemuck::cast_slice::<u64, u8>(words).split_first()?;
    Name::new(text.get(..usize::from(len))?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_names_are_written_once_and_found_both_ways() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("symbols");
        let mut writer = SymbolsWriter::create(&path, 1_000_000).unwrap();
        let mut reader = Symbols::open(&path).unwrap();
        let name = |i: u32| -> Name { format!("VENUE:INSTRUMENT-{i}").parse().unwrap() };
        for i in 1..=1_000_000 {
            assert_eq!(writer.push(&name(i)).unwrap(), InstrumentId(i));
        }
        assert!(matches!(writer.push(&name(0)), Err(Error::Limit { .. })));
        assert_eq!(reader.id(&name(1)), None, "not published yet");
        writer.publish();
        for i in [1, 2, 500_000, 1_000_000] {
            assert_eq!(reader.id(&name(i)), Some(InstrumentId(i)));
            assert_eq!(reader.name(InstrumentId(i)), Some(name(i)));
        }
        assert_eq!((reader.id(&name(0)), reader.name(InstrumentId(0)), reader.name(InstrumentId(1_000_001))), (None, None, None));
    }
}
