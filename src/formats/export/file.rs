//! Owns: a file that an export writes.
//!
//! What must hold: a file has its name only when it is whole and durable; one that fails leaves nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tapestore::reader::Row;
use tapestore::record::{Column, Name, Schema};

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
    path: PathBuf,
    temporary: PathBuf,
    sink: Option<Box<dyn Sink>>,
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
        check_free(&path, replace)?;
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(|source| Error::Create { path: path.clone(), source })?;
        let mut pending = Pending { path, temporary, sink: None, checksum: Checksum::default(), kind, reserved: 0 };
        pending.sink = Some(open(file).map_err(Error::write(&pending.path))?);
        Ok(pending)
    }

    /// Writes the next row, of the instrument called `name`, which hashes to `hash`; `false` if it is left in the store.
    pub(super) fn push(&mut self, row: &Row<'_>, name: &Name, hash: u64) -> Result<bool> {
        let Some(sink) = &mut self.sink else { return Ok(false) };
        if !sink.push(row, name).map_err(Error::write(&self.path))? {
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
    pub(super) fn finish(mut self) -> Result<FileReport> {
        let fail = Error::write(&self.path);
        let mut left = BTreeMap::new();
        if let Some(sink) = self.sink.take() {
            left = sink.left();
            sink.finish(&self.checksum).and_then(|file| file.sync_all()).map_err(&fail)?;
            name(&self.temporary, &self.path).map_err(&fail)?;
        }
        if self.reserved > 0 {
            left.insert("reserved fields of records that are not zero".to_owned(), self.reserved);
        }
        let bytes = std::fs::metadata(&self.path).map_err(&fail)?.len();
        Ok(FileReport { path: self.path.clone(), kind: self.kind.name, checksum: self.checksum, bytes, left })
    }
}

/// Whether a file may be made at `path`.
///
/// # Errors
/// What is there.
pub(super) fn check_free(path: &Path, replace: bool) -> Result {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(there) if !there.is_file() => Err(Error::Occupied { path: path.to_path_buf() }),
        Ok(_) if replace => Ok(()),
        Ok(_) => Err(Error::Exists { path: path.to_path_buf() }),
    }
}

#[expect(clippy::disallowed_methods, reason = "the file is not one of the store")]
fn name(temporary: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(temporary, path)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.temporary.exists() {
            std::fs::remove_file(&self.temporary).ok();
        }
    }
}
