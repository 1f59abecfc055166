//! Owns: the note of a store's last backup: the file `last-backup` in its directory, which `tape backup` replaces when it is done.
//!
//! What must hold: the note is for operators alone. A store without one, or with one that cannot be read, is a good store; a backup
//! whose note cannot be written is a good backup, and says that it has none.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tapestore::time::Ts;

/// Name of the file.
const NAME: &str = "last-backup";
/// Most bytes of a note that are read.
const LEN_MAX: usize = 4096;

/// The last backup of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastBackup {
    /// When it was done.
    pub at: Ts,
    /// The directory that it was written to.
    pub to: PathBuf,
}

/// Notes that a backup of `store` into `to` is done now.
///
/// # Errors
/// The file cannot be written.
pub fn note(store: &Path, to: &Path) -> std::io::Result<()> {
    let mut part = tempfile::NamedTempFile::new_in(store)?;
    // As all files of a store.
    part.as_file().set_permissions(Permissions::from_mode(0o640))?;
    writeln!(part, "{}", to.display())?;
    part.persist(store.join(NAME))?;
    Ok(())
}

/// The last backup of `store`, if it has one.
pub fn of(store: &Path) -> Option<LastBackup> {
    let path = store.join(NAME);
    let modified = std::fs::metadata(&path).ok()?.modified().ok()?;
    let at = modified.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    // Of a backup that another user has made the time can be read, and the text perhaps not.
    let text = std::fs::read(&path).unwrap_or_default();
    let line = text.get(..text.len().min(LEN_MAX))?.split(|byte| *byte == b'\n').next()?;
    Some(LastBackup { at: Ts(u64::try_from(at).ok()?), to: PathBuf::from(String::from_utf8_lossy(line).into_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_a_store_is_that_of_its_newest_backup_and_a_store_without_one_has_none() {
        let store = tempfile::tempdir().unwrap();
        assert_eq!(of(store.path()), None);
        note(store.path(), Path::new("/backup/one")).unwrap();
        note(store.path(), Path::new("/backup/two words")).unwrap();
        let last = of(store.path()).unwrap();
        assert_eq!(last.to, Path::new("/backup/two words"));
        assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 1, "no part of it stays");
        std::fs::write(store.path().join(NAME), [0xff; 10_000]).unwrap();
        assert!(of(store.path()).is_some(), "any bytes");
        assert!(note(Path::new("/there/is/no/such"), Path::new("x")).is_err());
    }
}
