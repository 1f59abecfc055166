//! Owns: the names in a store's run directory, in shared memory, and how it is found.
//!
//! ```text
//! STORE/run -> /dev/shm/tapestore-<tag>/    tag: 8 digits of the store's id, 16 of which directory it is
//!                store         link back to STORE
//!                lock          held by the storage process, released by the kernel
//!                control       control page: same inode for as long as the host is up
//!                bells         futexes
//!                symbols-N     instrument names of instance N
//!                kinds-N       kinds that programs defined, of instance N
//!                memtable-N-M  MemTable M of instance N
//!                attach.sock   where publishers ask to be let in
//!                iox2-N/       bus files of instance N; its segments are /dev/shm/tape<tag>i<N>_*
//! ```
//!
//! What must hold: what belongs to an instance carries its number and is swept when a later instance
//! starts, so that nothing a killed process left behind outlives the next start. A run directory belongs to one directory on
//! the disk, told by device, inode and when it was made: a copy of a store has the store's id and its link, and is another
//! directory, so the link is believed only where the tag says that it is of this one. A run directory whose store is gone is
//! removed by the next start of any store, unless it is another user's, or locked: then its process lives.
//!
//! Shared memory is everybody's, and every user can take a name in it first. So a run directory is used only if it is a
//! directory itself, the storage process's user has made it, and nobody else can write in it; what is another's is passed over,
//! and the tag then has a random end. Who may read the store's directory by its group may read what is in shared memory;
//! publishing is its user's alone.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::spill::{self, BACK, SPILLED};
use super::user;
use crate::error::{Error, Result};

/// Where run directories live unless told otherwise.
pub const ROOT_DEFAULT: &str = "/dev/shm";

/// Name of the link in the store directory.
pub const LINK: &str = "run";

/// Name of the file that says of a directory that it is a backup, which is never served.
pub const BACKUP: &str = "BACKUP";

/// Name of the lock in the run directory.
const LOCK: &str = "lock";
const PREFIX: &str = "tapestore-";
/// How often, and how long, the lock is asked for: a start of another store may just be looking at it.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Names that are tried beside the tag alone, if other users have taken that.
const OTHER_NAMES: usize = 8;

/// Who may write in a run directory besides its user: nobody.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// What a group has to be allowed in the store's directory, to be allowed to read what is in shared memory.
const READABLE_BY_GROUP: u32 = 0o050;
const MODE_PRIVATE: u32 = 0o700;
/// What is made in it has its group.
const MODE_SHARED: u32 = 0o2750;

/// Digits of a tag that say which store it is, and which directory.
const ID_DIGITS: usize = 8;
const DIR_DIGITS: usize = 16;

/// That a run directory is in use; for as long as this lives. The store's directory is held open with it, so that its inode
/// cannot become another's.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "what is held are the open files")] [File; 2]);

/// A store's run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    tag: String,
}

impl RunDir {
    /// Creates the run directory of the store in `store` under `root`, takes it and links to it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; [`Error::Io`].
    pub fn create(store: &Path, store_id: u128, root: &Path) -> Result<(RunDir, Held)> {
        let dir = File::open(store).map_err(|e| Error::io("open", store, e))?;
        let found = dir.metadata().map_err(|e| Error::io("stat", store, e))?;
        let tag = format!("{:08x}{}", (store_id >> 96) as u32, which(&found));
        let linked = std::fs::read_link(store.join(LINK)).ok();
        let linked = linked.filter(|p| p.parent() == Some(root) && tag_of(p).is_some_and(|t| t.starts_with(&tag)));
        let mut others = 0..OTHER_NAMES;
        let mut next = linked.or_else(|| Some(root.join(format!("{PREFIX}{tag}"))));
        let (path, lock) = loop {
            let Some(path) = next else { return Err(Error::Locked { path: store.to_path_buf() }) };
            match take(&path, &found)? {
                Taken::Held(lock) => break (path, lock),
                Taken::Busy => return Err(Error::Locked { path: store.to_path_buf() }),
                Taken::Foreign => {
                    tracing::warn!(path = %path.display(), "this name in shared memory is another's; one more is tried")
                }
            }
            next = others.next().map(|_| random()).transpose()?.map(|end| root.join(format!("{PREFIX}{tag}x{end:08x}")));
        };
        let tag = tag_of(&path).unwrap_or_default().to_owned();
        let held = Held([lock, dir]);
        let whole = store.canonicalize().map_err(|e| Error::io("look for", store, e))?;
        point(&path.join(BACK), &whole)?;
        point(&store.join(LINK), &path)?;
        Ok((RunDir { path, tag }, held))
    }

    /// The run directory of the store in `store`.
    ///
    /// # Errors
    /// [`Error::Backup`] of a backup; [`Error::StorageDown`] if there is none, or the one that the link leads to is another directory's; [`Error::Denied`] if
    /// this process's user may not use it; [`Error::Io`] if it cannot be looked at.
    pub fn find(store: &Path) -> Result<RunDir> {
        let down = |why| Error::StorageDown { dir: store.to_path_buf(), why };
        let found = match store.metadata() {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(down("the directory does not exist")),
            Err(e) => return Err(Error::io("look for", store, e)),
        };
        if store.join(BACKUP).exists() {
            return Err(Error::Backup { dir: store.to_path_buf() });
        }
        let link = store.join(LINK);
        let path = match std::fs::read_link(&link) {
            Ok(path) => path,
            Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(user::denied(store, found.uid(), user::own())),
            Err(_) => return Err(down("no storage process has run here")),
        };
        let tag = tag_of(&path).ok_or_else(|| down("its link 'run' is not a run directory"))?.to_owned();
        if !is_of(&tag, &found) {
            return Err(down("it is a copy, or was moved: its link 'run' is of another directory"));
        }
        let Ok(there) = path.symlink_metadata() else { return Err(down("not since this host was started")) };
        // The link is made by the storage process: what it leads to is another's if somebody has put it there since.
        let owner = link.symlink_metadata().map_err(|e| Error::io("look for", &link, e))?.uid();
        if !there.is_dir() || there.uid() != owner || there.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(down("what its link 'run' leads to was not made by its storage process"));
        }
        if rustix::fs::access(&path, rustix::fs::Access::EXEC_OK) == Err(rustix::io::Errno::ACCESS) {
            return Err(user::denied(store, owner, user::own()));
        }
        Ok(RunDir { path, tag })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that this process is of the user that serves the store in `store`: only that one may publish, or change it.
    ///
    /// # Errors
    /// [`Error::Denied`] if it is not; [`Error::StorageDown`] if the run directory is gone.
    pub fn check_user(&self, store: &Path) -> Result<()> {
        let down = |_| Error::StorageDown { dir: store.to_path_buf(), why: "its shared memory is gone" };
        let owner = self.path.symlink_metadata().map_err(down)?.uid();
        if owner == user::own() { Ok(()) } else { Err(user::denied(store, owner, user::own())) }
    }

    /// The control page.
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// The bells.
    pub fn bells(&self) -> PathBuf {
        self.path.join("bells")
    }

    /// The instrument names of `instance`.
    pub fn symbols(&self, instance: u64) -> PathBuf {
        self.path.join(format!("symbols-{instance}"))
    }

    /// The kinds that programs defined, of `instance`.
    pub fn kinds(&self, instance: u64) -> PathBuf {
        self.path.join(format!("kinds-{instance}"))
    }

    /// MemTable `id` of `instance`: in the store's directory if it says that it is spilled.
    pub fn memtable(&self, instance: u64, id: u64) -> PathBuf {
        let path = self.path.join(format!("memtable-{instance}-{}", id & !SPILLED));
        if id & SPILLED == 0 { path } else { spill::place(&path) }
    }

    /// The socket at which publishers attach.
    pub fn attach_socket(&self) -> PathBuf {
        self.path.join("attach.sock")
    }

    /// The socket of the replication process and of operators' tools.
    pub fn cluster_socket(&self) -> PathBuf {
        self.path.join("cluster.sock")
    }

    /// The bus files of `instance`.
    pub fn bus_root(&self, instance: u64) -> PathBuf {
        self.path.join(format!("iox2-{instance}"))
    }

    /// The prefix of the bus's shared memory segments of `instance`.
    pub fn bus_prefix(&self, instance: u64) -> String {
        format!("tape{}i{instance}_", self.tag)
    }

    /// Removes what instances other than `keep` left behind. The caller holds the store's lock. Live
    /// processes keep what they have mapped.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep(&self, keep: Option<u64>) -> Result<usize> {
        let mut removed = 0;
        let kept = |rest: &str| keep.is_some_and(|k| rest.split('-').next() == Some(k.to_string().as_str()));
        for name in names(&self.path)? {
            let stale =
                ["symbols-", "kinds-", "memtable-", "iox2-"].iter().any(|p| name.strip_prefix(p).is_some_and(|r| !kept(r)));
            if !stale {
                continue;
            }
            let path = self.path.join(&name);
            let gone = if name.starts_with("iox2-") { remove_tree(&path) } else { std::fs::remove_file(&path) };
            match gone {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
                _ => removed += 1,
            }
        }
        let (ours, current) = (format!("tape{}i", self.tag), keep.map(|k| self.bus_prefix(k)));
        let shm = Path::new(ROOT_DEFAULT);
        for name in names(shm)? {
            if name.starts_with(&ours) && !current.as_ref().is_some_and(|c| name.starts_with(c)) {
                match std::fs::remove_file(shm.join(&name)) {
                    Ok(()) => removed += 1,
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    // Another user has put it there.
                    Err(error) => tracing::warn!(%error, name, "a name of the bus in shared memory cannot be removed"),
                }
            }
        }
        Ok(removed)
    }

    /// The first of the instances `first`, `first + 2`, ... of which nothing lies in shared memory: of those that nobody has
    /// begun yet, others may have taken the names.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn free_instance(&self, first: u64) -> Result<u64> {
        let taken = self.bus_segments()?;
        let is_free = |instance: u64| !taken.iter().any(|name| name.starts_with(&self.bus_prefix(instance)));
        Ok((first..).step_by(2).find(|i| is_free(*i)).unwrap_or(first))
    }

    /// Removes run directories under `root` of this user whose stores are gone, with what belongs to them; gives
    /// their names. What cannot be removed stays.
    ///
    /// # Errors
    /// [`Error::Io`] if `root` cannot be listed.
    pub fn sweep_gone(root: &Path) -> Result<Vec<String>> {
        let mut gone = Vec::new();
        for name in names(root)? {
            let Some(tag) = name.strip_prefix(PREFIX) else { continue };
            let this = RunDir { path: root.join(&name), tag: tag.to_owned() };
            if !this.is_orphan() {
                continue;
            }
            // Held while it goes: a start of its store at this moment waits, and makes a new one.
            let Ok(file) = File::open(this.path.join(LOCK)) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !this.is_orphan() {
                continue;
            }
            match this.sweep(None).map_err(|e| e.to_string()).and_then(|_| remove_tree(&this.path).map_err(|e| e.to_string())) {
                Ok(()) => gone.push(name),
                Err(error) => tracing::warn!(error, path = %this.path.display(), "a run directory without a store stays"),
            }
        }
        Ok(gone)
    }

    /// Whether it is this user's, says whose it is, and that store is gone, is another or has another.
    fn is_orphan(&self) -> bool {
        let mine = self.path.symlink_metadata().is_ok_and(|m| m.is_dir() && m.uid() == rustix::process::geteuid().as_raw());
        let leads_here = |store: &Path| std::fs::read_link(store.join(LINK)).ok().as_deref() == Some(self.path.as_path());
        let is_there = |store: &Path| store.metadata().is_ok_and(|m| is_of(&self.tag, &m)) && leads_here(store);
        mine && std::fs::read_link(self.path.join(BACK)).is_ok_and(|store| !is_there(&store))
    }

    /// Bus segments of any instance of this store that exist now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bus_segments(&self) -> Result<Vec<String>> {
        let ours = format!("tape{}i", self.tag);
        Ok(names(Path::new(ROOT_DEFAULT))?.into_iter().filter(|n| n.starts_with(&ours)).collect())
    }
}

/// Which directory `found` is of, in [`DIR_DIGITS`] digits: no other on this host has them, nor one that gets its inode once it
/// is gone, if the file system says when a directory was made.
fn which(found: &Metadata) -> String {
    let made = found.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos());
    let words = [found.dev(), found.ino(), made as u64];
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&words)))
}

/// Whether a run directory with `tag` is of the directory `found`.
fn is_of(tag: &str, found: &Metadata) -> bool {
    tag.get(ID_DIGITS..ID_DIGITS + DIR_DIGITS) == Some(which(found).as_str())
}

/// The tag in the name of the run directory `path`.
fn tag_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)
}

fn random() -> Result<u32> {
    let mut bytes = [0u8; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("draw a name in", Path::new(ROOT_DEFAULT), e))?;
    Ok(u32::from_le_bytes(bytes))
}

/// What came of asking for a run directory.
enum Taken {
    /// It is this process's, by this lock.
    Held(File),
    /// Another process has it.
    Busy,
    /// It is another user's, or others can write in it.
    Foreign,
}

/// Makes the directory `path` of the store's directory `store` if it is not there, and takes its lock.
fn take(path: &Path, store: &Metadata) -> Result<Taken> {
    use rustix::io::Errno;
    for _ in 0..LOCK_TRIES {
        match std::fs::DirBuilder::new().mode(MODE_PRIVATE).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create directory", path, e)),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => File::from(dir),
            // It has just been swept.
            Err(Errno::NOENT) => continue,
            Err(Errno::LOOP | Errno::NOTDIR | Errno::ACCESS) => return Ok(Taken::Foreign),
            Err(e) => return Err(Error::io("open", path, e)),
        };
        let found = dir.metadata().map_err(|e| Error::io("stat", path, e))?;
        if found.uid() != user::own() || found.mode() & WRITABLE_BY_OTHERS != 0 {
            return Ok(Taken::Foreign);
        }
        let (lock, flags) = (path.join(LOCK), OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let file = match rustix::fs::openat(&dir, LOCK, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(Error::io("open", &lock, e)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let inode = |m: std::io::Result<Metadata>| m.map(|m| m.ino()).ok();
                if inode(file.metadata()) == inode(lock.metadata()) {
                    share(path, &dir, store)?;
                    return Ok(Taken::Held(file));
                }
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(e) => return Err(Error::io("lock", &lock, e)),
        }
    }
    Ok(Taken::Busy)
}

/// Lets the group of the store's directory read in the run directory `path`, which is open as `dir`, as far as it may read in
/// the store's.
fn share(path: &Path, dir: &File, store: &Metadata) -> Result<()> {
    use rustix::fs::{AtFlags, Gid, chownat, fchmod, fchown};
    let failed = |e| Error::io("set the mode of", path, e);
    let group = Some(Gid::from_raw(store.gid()));
    let has_group = |m: &Metadata| m.gid() == store.gid();
    // A user can give what is its own to the groups that it is in only.
    let is_given = |m: &Metadata| has_group(m) || fchown(dir, None, group).is_ok();
    let found = dir.metadata().map_err(|e| Error::io("stat", path, e))?;
    if store.mode() & READABLE_BY_GROUP != READABLE_BY_GROUP || !is_given(&found) {
        return fchmod(dir, Mode::from_raw_mode(MODE_PRIVATE)).map_err(failed);
    }
    if !has_group(&found) {
        // What is there already has the group from before.
        names(path)?.iter().try_for_each(|n| chownat(dir, n, None, group, AtFlags::SYMLINK_NOFOLLOW)).map_err(failed)?;
    }
    fchmod(dir, Mode::from_raw_mode(MODE_SHARED)).map_err(failed)
}

/// Makes `link` a link to `to`.
fn point(link: &Path, to: &Path) -> Result<()> {
    if std::fs::read_link(link).ok().as_deref() != Some(to) {
        if link.symlink_metadata().is_ok() {
            std::fs::remove_file(link).map_err(|e| Error::io("remove", link, e))?;
        }
        std::os::unix::fs::symlink(to, link).map_err(|e| Error::io("link", link, e))?;
    }
    Ok(())
}

/// Removes a directory with all in it, into which a process that has not noticed yet may still write.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for _ in 0..10 {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => std::thread::yield_now(),
            other => return other,
        }
    }
    tracing::warn!(path = %path.display(), "something still writes here; the next start removes it");
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
}
