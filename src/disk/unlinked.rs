//! Owns: [`Unlinked`]: a file that was removed while other processes may map it, and whether one still does.
//!
//! Storage may not read which files another user's process maps, but it owns its files: the system gives a write lease on a file
//! to its owner alone, and only while nobody else has the file open or mapped (`fcntl(2)`, `F_SETLEASE`; the count of open files
//! behind it, `i_readcount`, includes maps, because a map keeps its file open).
//!
//! What must hold: a lease is given back at once. The removed file has no name, so nobody opens it meanwhile by accident; who
//! does through `/proc` waits, and this process receives a signal that it ignores.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// The command of `fcntl(2)` that sets the signal of a lease, on every architecture of Linux; `libc` has it not.
const F_SETSIG: libc::c_int = 10;

/// A removed file. It is kept open, which keeps its bytes allocated.
#[derive(Debug)]
pub struct Unlinked {
    file: File,
    len: u64,
}

impl Unlinked {
    /// The open `file`, which was removed; `None` if it has another name, as the files of a backup have: its bytes are the
    /// backup's then.
    pub(super) fn new(file: File) -> Option<Unlinked> {
        let now = file.metadata().ok()?;
        (now.nlink() == 0).then(|| Unlinked { len: now.blocks() * 512, file })
    }

    /// Bytes that it takes on the disk.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Whether another open file or a map of it exists, in any process. `None`: the system does not say, because the file system gives
    /// no leases, they are switched off (`fs.leases-enable`), or the file is another user's.
    pub fn is_held(&self) -> Option<bool> {
        let call = |command: libc::c_int, argument: libc::c_int| {
            // SAFETY: the descriptor is open for as long as `self` is, and these commands take a number and no pointer.
            unsafe { libc::fcntl(self.file.as_raw_fd(), command, argument) }
        };
        // The signal for the holder of a lease that is broken: by default it is SIGIO, which ends a process.
        if call(F_SETSIG, libc::SIGURG) != 0 {
            return None;
        }
        if call(libc::F_SETLEASE, libc::F_WRLCK) == 0 {
            call(libc::F_SETLEASE, libc::F_UNLCK);
            return Some(false);
        }
        (std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use crate::disk::{Disk, Open, RealDisk};

    #[test]
    fn a_removed_file_is_held_as_long_as_a_map_of_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = RealDisk.open(&path, Open::CreateNew).unwrap();
        file.write_at(&[7; 8192], 0).unwrap();
        drop(file);
        let map = RealDisk.map(&path).unwrap();
        let removed = RealDisk.unlink(&path).unwrap().unwrap();
        assert!(!path.exists() && removed.bytes() == 8192, "{removed:?}");
        assert_eq!(removed.is_held(), Some(true), "the map is there");
        drop(map);
        assert_eq!(removed.is_held(), Some(false));
    }

    #[test]
    fn a_removed_file_that_a_backup_links_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        RealDisk.open(&path, Open::CreateNew).unwrap().write_at(&[7], 0).unwrap();
        assert!(RealDisk.link(&path, &link).unwrap());
        assert!(RealDisk.unlink(&path).unwrap().is_none() && !path.exists() && link.exists());
    }
}
