//! Owns: the names in a store's run directory, in shared memory, and how it is found.
//!
//! ```text
//! STORE/run -> /dev/shm/tapestore-<store id>-<inode>/
//!                control       control page: same inode for as long as the host is up
//!                bells         futexes
//!                symbols-N     instrument names of instance N
//!                kinds-N       kinds that programs defined, of instance N
//!                memtable-N-M  MemTable M of instance N
//!                attach.sock   where publishers ask to be let in
//!                iox2-N/       bus files of instance N; its segments are /dev/shm/tape<id><inode>i<N>_*
//! ```
//!
//! What must hold: what belongs to an instance carries its number and is swept when a later instance
//! starts, so that nothing a killed process left behind outlives the next start.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where run directories live unless told otherwise.
pub const ROOT_DEFAULT: &str = "/dev/shm";

/// Name of the link in the store directory.
pub const LINK: &str = "run";

/// A store's run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    tag: String,
}

impl RunDir {
    /// Creates the run directory of the store in `store` under `root` and links to it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(store: &Path, store_id: u128, root: &Path) -> Result<RunDir> {
        let inode = store.metadata().map_err(|e| Error::io("stat", store, e))?.ino();
        let tag = format!("{:08x}{inode:x}", (store_id >> 96) as u32);
        let path = root.join(format!("tapestore-{tag}"));
        match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io("create directory", &path, e)),
            _ => {}
        }
        let link = store.join(LINK);
        if std::fs::read_link(&link).ok().as_deref() != Some(&path) {
            if link.symlink_metadata().is_ok() {
                std::fs::remove_file(&link).map_err(|e| Error::io("remove", &link, e))?;
            }
            std::os::unix::fs::symlink(&path, &link).map_err(|e| Error::io("link", &link, e))?;
        }
        Ok(RunDir { path, tag })
    }

    /// The run directory of the store in `store`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if there is none.
    pub fn find(store: &Path) -> Result<RunDir> {
        let down = |why| Error::StorageDown { dir: store.to_path_buf(), why };
        if !store.is_dir() {
            return Err(down("the directory does not exist"));
        }
        let path = std::fs::read_link(store.join(LINK)).map_err(|_| down("no storage process has run here"))?;
        let tag = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("tapestore-"));
        let tag = tag.ok_or_else(|| down("its link 'run' is not a run directory"))?.to_owned();
        if !path.is_dir() {
            return Err(down("not since this host was started"));
        }
        Ok(RunDir { path, tag })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
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

    /// MemTable `id` of `instance`.
    pub fn memtable(&self, instance: u64, id: u64) -> PathBuf {
        self.path.join(format!("memtable-{instance}-{id}"))
    }

    /// The socket at which publishers attach.
    pub fn attach_socket(&self) -> PathBuf {
        self.path.join("attach.sock")
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
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
                _ => removed += 1,
            }
        }
        let (ours, current) = (format!("tape{}i", self.tag), keep.map(|k| self.bus_prefix(k)));
        let shm = Path::new(ROOT_DEFAULT);
        for name in names(shm)? {
            if name.starts_with(&ours) && !current.as_ref().is_some_and(|c| name.starts_with(c)) {
                match std::fs::remove_file(shm.join(&name)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &shm.join(name), e)),
                    _ => removed += 1,
                }
            }
        }
        Ok(removed)
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

/// Removes a directory with all in it, into which a process that has not noticed yet may still write.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for _ in 0..10 {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => std::thread::yield_now(),
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
