//! Owns: a store's run directory in shared memory: its creation, lock, lookup and sweep, and the names in it.
//!
//! ```text
//! STORE/run -> /dev/shm/tapestore-<tag>/    tag: 8 digits of the store's id, 16 of the directory's identity
//!                store         link back to STORE
//!                lock          locked by the storage process, released by the kernel
//!                control       control page: same inode as long as the host is up
//!                bells         futexes
//!                symbols-N     instrument names of instance N
//!                kinds-N       kinds that programs defined, of instance N
//!                memtable-N-M  MemTable M of instance N
//!                attach.sock   socket at which publishers attach
//!                cluster.sock  socket of the replication process and of operators' tools
//!                iox2-N/       bus files of instance N; its segments are /dev/shm/tape<tag>i<N>_*
//! ```
//!
//! What must hold: every name of an instance carries its number. A later instance sweeps these names, so no file of a killed
//! process outlives the next start. A run directory belongs to one directory on disk, identified by device, inode and creation
//! time. A copy of a store has the store's id and its link but is another directory, so the link counts only if its tag
//! matches the directory. The next start of any store removes run directories whose stores are gone, except those of other
//! users and locked ones, whose processes live.
//!
//! Every user can create names in shared memory first. So a run directory is used only if it is a directory and no link, the
//! storage process's user owns it, and no other user can write in it. A foreign one is skipped, and the tag then gets a random
//! suffix. The group that may read the store's directory may read its shared memory; only the store's user may publish.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::spill::{self, BACK, SPILLED};
use super::{release, user};
use crate::error::{Error, Result};

/// Default parent of run directories.
pub const ROOT_DEFAULT: &str = "/dev/shm";

/// Name of the link in the store directory.
pub const LINK: &str = "run";

/// Name of the file that marks a directory as a backup, which is never served.
pub const BACKUP: &str = "BACKUP";

/// Name of the lock in the run directory.
const LOCK: &str = "lock";
const PREFIX: &str = "tapestore-";
/// Tries for the lock, and the pause between them: a start of another store may hold it for a moment.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Names tried besides the plain tag, if other users own that.
const OTHER_NAMES: usize = 8;

/// Mode bits that no run directory may have: only its user may write in it.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Mode bits of the store's directory that let its group read its shared memory.
const READABLE_BY_GROUP: u32 = 0o050;
const MODE_PRIVATE: u32 = 0o700;
/// Group-readable, with setgid: new files inherit the directory's group.
const MODE_SHARED: u32 = 0o2750;

/// Digits of a tag for the store's id and for the directory's identity.
const ID_DIGITS: usize = 8;
const DIR_DIGITS: usize = 16;

/// What is left in shared memory of a store that has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its run directory, if that is there, and its bus segments.
    pub paths: Vec<PathBuf>,
}

/// Guard of a run directory that is in use. It keeps the store's directory open too, so that no other directory gets its inode.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "keeps the files open")] [File; 2]);

/// A store's run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    tag: String,
}

impl RunDir {
    /// Creates the run directory of the store in `store` under `root`, locks it and links to it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has the lock, or other users own every name tried; [`Error::Io`].
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
                    tracing::warn!(
                        name: "shm.foreign_directory", path = %path.display(),
                        "another user owns this, or can write in it; trying another name"
                    )
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
    /// [`Error::Backup`] if `store` is a backup; [`Error::StorageDown`] if there is no run directory, or the link leads to that
    /// of another directory; [`Error::Denied`] if this process's user may not use it; [`Error::Io`] if it cannot be examined.
    pub fn find(store: &Path) -> Result<RunDir> {
        release::leave_mark();
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
        let tag = tag_of(&path).ok_or_else(|| down("its link 'run' does not lead to a run directory"))?.to_owned();
        if !is_of(&tag, &found) {
            return Err(down("it is a copy, or was moved: its link 'run' belongs to another directory"));
        }
        let Ok(there) = path.symlink_metadata() else {
            return Err(down("no storage process has run since this host was started"));
        };
        // The storage process makes the link, so its owner must own the target too: another user may have replaced that since.
        let owner = link.symlink_metadata().map_err(|e| Error::io("look for", &link, e))?.uid();
        if !there.is_dir() || there.uid() != owner || there.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(down("the target of its link 'run' was not made by its storage process"));
        }
        if rustix::fs::access(&path, rustix::fs::Access::EXEC_OK) == Err(rustix::io::Errno::ACCESS) {
            return Err(user::denied(store, owner, user::own()));
        }
        Ok(RunDir { path, tag })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that this process runs as the user that serves the store in `store`: only that user may publish or change it.
    ///
    /// # Errors
    /// [`Error::Denied`] if it runs as another user; [`Error::StorageDown`] if the run directory is gone.
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

    /// MemTable `id` of `instance`; in the store's directory if the id has the [`SPILLED`] bit.
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

    /// Removes the files of all instances other than `keep` and returns their number. The caller holds the store's lock. Live
    /// processes keep their mappings.
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
                    // Another user owns it.
                    Err(error) => tracing::warn!(
                        name: "bus.segment_not_removed", %error, name,
                        "cannot remove a stale bus segment: another user may own it"
                    ),
                }
            }
        }
        Ok(removed)
    }

    /// The first of the instances `first`, `first + 2`, ... without a bus segment in shared memory: other users may have
    /// created names of an instance that has not started yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn free_instance(&self, first: u64) -> Result<u64> {
        let taken = self.bus_segments()?;
        let is_free = |instance: u64| !taken.iter().any(|name| name.starts_with(&self.bus_prefix(instance)));
        Ok((first..).step_by(2).find(|i| is_free(*i)).unwrap_or(first))
    }

    /// Removes this user's run directories under `root` whose stores are gone, with their bus segments, and returns their
    /// names. A directory that cannot be removed stays, with a warning.
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
            // Locked during the removal: a concurrent start of its store waits and makes a new one.
            let Ok(file) = File::open(this.path.join(LOCK)) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !this.is_orphan() {
                continue;
            }
            match this.sweep(None).map_err(|e| e.to_string()).and_then(|_| remove_tree(&this.path).map_err(|e| e.to_string())) {
                Ok(()) => gone.push(name),
                Err(error) => {
                    tracing::warn!(
                        name: "shm.run_directory_not_removed", error, path = %this.path.display(),
                        "cannot remove a run directory without a store"
                    )
                }
            }
        }
        Ok(gone)
    }

    /// Whether this user owns it, and its store is gone.
    fn is_orphan(&self) -> bool {
        let mine = self.path.symlink_metadata().is_ok_and(|m| m.is_dir() && m.uid() == rustix::process::geteuid().as_raw());
        mine && self.has_no_store()
    }

    /// Whether it links back to a store, and that store is gone, replaced or linked to another run directory.
    fn has_no_store(&self) -> bool {
        let leads_here = |store: &Path| std::fs::read_link(store.join(LINK)).ok().as_deref() == Some(self.path.as_path());
        let is_there = |store: &Path| store.metadata().is_ok_and(|m| is_of(&self.tag, &m)) && leads_here(store);
        std::fs::read_link(self.path.join(BACK)).is_ok_and(|store| !is_there(&store))
    }

    /// Whether a process has its lock.
    fn is_locked(&self) -> bool {
        let lock = File::open(self.path.join(LOCK));
        // The lock is given back at once.
        lock.is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// What is left in shared memory of stores that have gone, of any user, as far as this one may look: run directories under
    /// `root` without a store and without a process, with their bus segments, and bus segments without a run directory.
    /// Removes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if `root` or the directory of the bus's segments cannot be listed.
    pub fn leftovers(root: &Path) -> Result<Vec<Leftover>> {
        let dirs: Vec<String> = names(root)?.into_iter().filter_map(|n| Some(n.strip_prefix(PREFIX)?.to_owned())).collect();
        let mut left = Vec::new();
        for tag in &dirs {
            let this = RunDir { path: root.join(format!("{PREFIX}{tag}")), tag: tag.clone() };
            if this.has_no_store() && !this.is_locked() {
                let segments = this.bus_segments()?.into_iter().map(|name| Path::new(ROOT_DEFAULT).join(name));
                left.push(Leftover { paths: std::iter::once(this.path.clone()).chain(segments).collect() });
            }
        }
        if root == Path::new(ROOT_DEFAULT) {
            let mut lone: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
            for name in names(root)? {
                if let Some(tag) = tag_of_segment(&name).filter(|tag| !dirs.iter().any(|dir| dir == tag)) {
                    lone.entry(tag.to_owned()).or_default().push(root.join(&name));
                }
            }
            left.extend(lone.into_values().map(|paths| Leftover { paths }));
        }
        Ok(left)
    }

    /// Names of the existing bus segments of all instances of this store.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bus_segments(&self) -> Result<Vec<String>> {
        let ours = format!("tape{}i", self.tag);
        Ok(names(Path::new(ROOT_DEFAULT))?.into_iter().filter(|n| n.starts_with(&ours)).collect())
    }
}

/// Identity of the directory with metadata `found`, in [`DIR_DIGITS`] digits, unique on this host. A later directory with the
/// same inode differs too if the file system records creation times.
fn which(found: &Metadata) -> String {
    let made = found.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos());
    let words = [found.dev(), found.ino(), made as u64];
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&words)))
}

/// Whether a run directory with `tag` belongs to the directory with metadata `found`.
fn is_of(tag: &str, found: &Metadata) -> bool {
    tag.get(ID_DIGITS..ID_DIGITS + DIR_DIGITS) == Some(which(found).as_str())
}

/// The tag in the name of the run directory `path`.
fn tag_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)
}

/// The tag in the name of the bus segment `name`: `tape<tag>i<N>_...`.
fn tag_of_segment(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("tape")?;
    let (tag, after) = rest.split_once('i')?;
    let digits = after.split_once('_')?.0;
    let (own, end) = tag.split_at_checked(ID_DIGITS + DIR_DIGITS)?;
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_tag = is_hex(own) && (end.is_empty() || end.strip_prefix('x').is_some_and(is_hex));
    (is_tag && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(tag)
}

fn random() -> Result<u32> {
    let mut bytes = [0u8; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("draw a name in", Path::new(ROOT_DEFAULT), e))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Outcome of [`take`].
enum Taken {
    /// This process holds the lock.
    Held(File),
    /// Another process holds the lock.
    Busy,
    /// Another user owns the directory, or can write in it.
    Foreign,
}

/// Creates the directory `path` for the store's directory `store` if it is absent, and locks it.
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
            // Another process has just swept it.
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

/// Gives the group of the store's directory read access to the run directory `path`, open as `dir`, if it has read access to
/// the store's directory.
fn share(path: &Path, dir: &File, store: &Metadata) -> Result<()> {
    use rustix::fs::{AtFlags, Gid, chownat, fchmod, fchown};
    let failed = |e| Error::io("set the mode of", path, e);
    let group = Some(Gid::from_raw(store.gid()));
    let has_group = |m: &Metadata| m.gid() == store.gid();
    // A user can give its files only to groups that it is in.
    let is_given = |m: &Metadata| has_group(m) || fchown(dir, None, group).is_ok();
    let found = dir.metadata().map_err(|e| Error::io("stat", path, e))?;
    if store.mode() & READABLE_BY_GROUP != READABLE_BY_GROUP || !is_given(&found) {
        return fchmod(dir, Mode::from_raw_mode(MODE_PRIVATE)).map_err(failed);
    }
    if !has_group(&found) {
        // Existing files still have the previous group.
        names(path)?.iter().try_for_each(|n| chownat(dir, n, None, group, AtFlags::SYMLINK_NOFOLLOW)).map_err(failed)?;
    }
    fchmod(dir, Mode::from_raw_mode(MODE_SHARED)).map_err(failed)
}

/// Makes `link` a symbolic link to `to`.
fn point(link: &Path, to: &Path) -> Result<()> {
    if std::fs::read_link(link).ok().as_deref() != Some(to) {
        if link.symlink_metadata().is_ok() {
            std::fs::remove_file(link).map_err(|e| Error::io("remove", link, e))?;
        }
        std::os::unix::fs::symlink(to, link).map_err(|e| Error::io("link", link, e))?;
    }
    Ok(())
}

/// Removes a directory tree, in which a process that is about to end may still create files.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for _ in 0..10 {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => std::thread::yield_now(),
            other => return other,
        }
    }
    tracing::warn!(
        name: "shm.run_directory_in_use", path = %path.display(),
        "a process still creates files in this directory; the next start removes it"
    );
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
}
