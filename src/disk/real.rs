//! Owns: the host's file system behind [`Disk`].
//!
//! What must hold: descriptors close on exec; writes are `pwrite`, so a full disk is an error and never a
//! signal; files and directories are writable by their user and readable by their group under any umask.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FlockOperation};

use super::{Disk, DiskFile, Mapped, Open, Space, Unlinked};
use crate::error::{Error, Result};
use crate::sabotage::{self, Sabotage};
use crate::time::Ts;

/// The host's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// The system keeps pages of a file in groups of up to this size, and drops a group as a whole or not at all.
const LARGE_PAGE: u64 = 2 << 20;
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// Sets the mode of the new file or directory `path`, undoing the umask.
fn set_mode(path: &Path, mode: u32) {
    let is_due = path.metadata().is_ok_and(|m| m.permissions().mode() & 0o777 != mode);
    // Some file systems have a single mode for all files.
    if is_due && let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(mode)) {
        tracing::debug!(
            name: "disk.mode_not_set", %error, path = %path.display(),
            "cannot set the mode; the file system's own stays"
        );
    }
}

struct RealFile {
    file: File,
    path: PathBuf,
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::Read).create_new(how == Open::CreateNew).mode(FILE_MODE);
        let op = if how == Open::CreateNew { "create" } else { "open" };
        let file = options.open(path).map_err(|e| Error::io(op, path, e))?;
        if how == Open::CreateNew {
            set_mode(path, FILE_MODE);
        }
        Ok(Box::new(RealFile { file, path: path.to_path_buf() }))
    }

    fn map(&self, path: &Path) -> Result<Mapped> {
        Mapped::open(path)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        path.try_exists().map_err(|e| Error::io("look for", path, e))
    }

    fn modified(&self, path: &Path) -> Result<Option<Ts>> {
        let time = std::fs::metadata(path).and_then(|m| m.modified()).map_err(|e| Error::io("look at", path, e))?;
        let since = time.duration_since(std::time::UNIX_EPOCH).ok();
        Ok(since.and_then(|since| u64::try_from(since.as_nanos()).ok()).map(Ts))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        match DirBuilder::new().mode(DIR_MODE).create(path) {
            Ok(()) => {
                set_mode(path, DIR_MODE);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(Error::io("create directory", path, e)),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| Error::io("list", path, e))? {
            let entry = entry.map_err(|e| Error::io("list", path, e))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that renames")]
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to).map_err(|e| Error::io("rename to", to, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
    }

    fn unlink(&self, path: &Path) -> Result<Option<Unlinked>> {
        // Without a descriptor the file is removed all the same.
        let file = File::open(path).ok();
        self.remove(path).map(|()| file.and_then(Unlinked::new))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        use rustix::io::Errno;
        match rustix::fs::link(from, to) {
            Ok(()) => Ok(true),
            // Another file system, one without links, a file with the most links, or a file of another user.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK | Errno::PERM) => Ok(false),
            Err(e) => Err(Error::io("link", to, e)),
        }
    }

    fn swap_dirs(&self, fresh: &Path, name: &Path) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let flags = if self.exists(name)? { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, fresh, CWD, name, flags) {
            // Some file systems do not support the flags. A plain rename works if `name` is missing or empty.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => self.rename(fresh, name),
            other => other.map_err(|e| Error::io("exchange directories with", name, e)),
        }
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        std::fs::remove_dir(path).map_err(|e| Error::io("remove directory", path, e))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        if sabotage::is(Sabotage::SkipDirSync) {
            return Ok(());
        }
        let dir = File::open(path).map_err(|e| Error::io("open", path, e))?;
        dir.sync_all().map_err(|e| Error::io("sync directory", path, e))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        let stat = rustix::fs::statvfs(path).map_err(|e| Error::io("get the free space of", path, e))?;
        Ok(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Send + Sync>>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)
            .map_err(|e| Error::io("open", path, e))?;
        set_mode(path, FILE_MODE);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::io("lock", path, e)),
        }
    }
}

/// Whether a process of this host holds the lock of `path`, as the kernel's list of locks has it. Locks of another
/// container are not in it. Unlike [`Disk::lock`] this needs no permission and disturbs nobody who takes the lock.
pub fn is_locked(path: &Path) -> bool {
    let Ok(file) = std::fs::metadata(path) else { return false };
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    // A line: number, FLOCK, ADVISORY, WRITE, pid, device and inode, range.
    locks.lines().any(|line| line.split_whitespace().any(|word| word == place))
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let rest = buf.get_mut(done..).unwrap_or(&mut []);
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", &self.path, e)),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        match self.file.write_all_at(buf, offset) {
            Err(e) if e.kind() == ErrorKind::StorageFull && sabotage::is(Sabotage::IgnoreFull) => Ok(()),
            other => other.map_err(|e| Error::io("write", &self.path, e)),
        }
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("sync", &self.path, e))
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Error::io("stat", &self.path, e))?.len())
    }

    fn drop_cache(&self, range: Range<u64>) -> Result<()> {
        let from = range.start / LARGE_PAGE * LARGE_PAGE;
        // Zero: to the end.
        let len = range.end.checked_next_multiple_of(LARGE_PAGE).map_or(0, |end| end.saturating_sub(from));
        rustix::fs::fadvise(&self.file, from, NonZeroU64::new(len), Advice::DontNeed)
            .map_err(|e| Error::io("advise", &self.path, e))
    }
}
