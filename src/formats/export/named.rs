//! Owns: a file that is written under another name first.
//!
//! What must hold: a file has its name only when it is whole and durable; one that is dropped before leaves nothing.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file that gets its name when it is whole.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl NewFile {
    /// Begins the file `path`.
    ///
    /// # Errors
    /// [`Error::Exists`] if it is there and `replace` is not set; [`Error::Occupied`]; [`Error::Create`].
    pub fn create(path: PathBuf, replace: bool) -> Result<NewFile> {
        check_free(&path, replace)?;
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(|source| Error::Create { path: path.clone(), source })?;
        Ok(NewFile { path, temporary, file })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is written to it.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn writer(&self) -> Result<File> {
        self.file.try_clone().map_err(Error::write(&self.path))
    }

    /// Makes it durable and gives it its name; returns its bytes.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn finish(self) -> Result<u64> {
        let named = || {
            self.file.sync_all()?;
            name(&self.temporary, &self.path)?;
            Ok(self.file.metadata()?.len())
        };
        named().map_err(Error::write(&self.path))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Of one that has its name there is none.
        std::fs::remove_file(&self.temporary).ok();
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing_and_one_that_is_replaces_only_if_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let begun = NewFile::create(path.clone(), false).unwrap();
        begun.writer().unwrap().write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(begun);
        assert!(names(dir.path()).is_empty());
        let whole = NewFile::create(path.clone(), false).unwrap();
        whole.writer().unwrap().write_all(b"whole").unwrap();
        assert_eq!(whole.finish().unwrap(), 5);
        assert_eq!((std::fs::read(&path).unwrap(), names(dir.path())), (b"whole".to_vec(), vec!["a.csv".to_owned()]));
        assert!(matches!(NewFile::create(path.clone(), false), Err(Error::Exists { .. })));
        assert!(matches!(NewFile::create(dir.path().to_path_buf(), true), Err(Error::Occupied { .. })));
        drop(NewFile::create(path.clone(), true).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"whole", "an unfinished one replaces nothing");
        assert_eq!(NewFile::create(path.clone(), true).unwrap().finish().unwrap(), 0);
        assert!(std::fs::read(&path).unwrap().is_empty());
    }
}
