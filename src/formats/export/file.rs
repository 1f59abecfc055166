//! Owns: a file of records that an export writes.
//!
//! What must hold: its checksum and its count are those of the records that it holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use tapestore::reader::Row;
use tapestore::record::{Column, Name, Schema};

use super::named::NewFile;
use crate::checksum::Checksum;
use crate::error::{Error, Result};

/// Receives rows and makes a file of them.
pub(super) trait Sink {
    /// Writes the next row; `false` if it is left in the store, counted.
    fn push(&mut self, row: &Row<'_>, name: &Name) -> io::Result<bool>;

    /// Writes what is buffered, and gives the file. Where the format has a place for it, `checksum` goes into the file.
    fn finish(self: Box<Self>, checksum: &Checksum) -> io::Result<File>;

    /// What the format could not hold, and how often.
    fn left(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// A file that an export has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// Where it is.
    pub path: PathBuf,
    /// The kind of its records.
    pub kind: &'static str,
    /// Its records, and their checksum.
    pub checksum: Checksum,
    /// Its length.
    pub bytes: u64,
    /// What the format could not hold, and how often: it is left in the store.
    pub left: BTreeMap<String, u64>,
}

/// A file that gets its name when it is whole.
pub(super) struct Pending {
    new: NewFile,
    sink: Box<dyn Sink>,
    checksum: Checksum,
    kind: &'static Schema,
    /// Records with bytes in their reserved fields, which no file holds.
    reserved: u64,
}

impl Pending {
    /// Begins the file `path` of rows of `kind`, which the sink that `open` makes writes.
    pub(super) fn create(
        path: PathBuf,
        kind: &'static Schema,
        replace: bool,
        open: impl FnOnce(File) -> io::Result<Box<dyn Sink>>,
    ) -> Result<Pending> {
        let new = NewFile::create(path, replace)?;
        let sink = open(new.writer()?).map_err(Error::write(new.path()))?;
        Ok(Pending { new, sink, checksum: Checksum::default(), kind, reserved: 0 })
    }

    /// Writes the next row, of the instrument called `name`, which hashes to `hash`; `false` if it is left in the store.
    pub(super) fn push(&mut self, row: &Row<'_>, name: &Name, hash: u64) -> Result<bool> {
        if !self.sink.push(row, name).map_err(Error::write(self.new.path()))? {
            return Ok(false);
        }
        self.checksum.add(hash, row.record.words());
        let is_used = |c: &Column| {
            let bytes = row.record.bytes().get(c.offset..c.offset + c.of.size());
            bytes.is_some_and(|b| b.iter().any(|b| *b != 0))
        };
        self.reserved += u64::from(self.kind.reserved().any(is_used));
        Ok(true)
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn finish(self) -> Result<FileReport> {
        let mut left = self.sink.left();
        if self.reserved > 0 {
            left.insert("reserved fields of records that are not zero".to_owned(), self.reserved);
        }
        let path = self.new.path().to_path_buf();
        self.sink.finish(&self.checksum).map_err(Error::write(&path))?;
        let bytes = self.new.finish()?;
        Ok(FileReport { path, kind: self.kind.name, checksum: self.checksum, bytes, left })
    }
}
