//! Owns: a file system in memory that crashes, tears, forgets and fails the n-th call.
//!
//! Model: a write lands in the cache and is durable when its file is synced; names are durable when
//! their directory is synced. At [`SimDisk::power_loss`] each unsynced write survives whole, torn at a
//! 512-byte sector, or not at all, independently of the others; each unsynced name change of a
//! directory survives up to a random point. Everything follows from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Mapped, Open};
use crate::error::{Error, Result};

const SECTOR: usize = 512;

/// A small seeded generator (SplitMix64, Steele et al. 2014); for simulation only.
#[derive(Clone, Debug)]
pub struct SimRng(u64);

impl SimRng {
    /// A generator whose numbers follow from `seed`.
    pub fn new(seed: u64) -> Self {
        SimRng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        self.next_u64() % bound
    }
}

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: this call and all later ones fail.
    PowerLoss,
    /// The call fails with this kind of error, once.
    Once(ErrorKind),
    /// The call and all later ones that write or sync fail with this kind of error.
    Forever(ErrorKind),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    live: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(PathBuf, usize),
    Remove(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: usize,
    },
    /// Two directories, with all in them.
    Swap(PathBuf, PathBuf),
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Add(path, inode) => {
                names.insert(path, inode);
            }
            NameChange::Remove(path) => {
                names.remove(&path);
            }
            NameChange::Rename { from, to, inode } => {
                names.remove(&from);
                names.insert(to, inode);
            }
            NameChange::Swap(a, b) => {
                let moved = |path: PathBuf| match (path.strip_prefix(&a), path.strip_prefix(&b)) {
                    (Ok(rest), _) => b.join(rest),
                    (_, Ok(rest)) => a.join(rest),
                    _ => path,
                };
                *names = std::mem::take(names).into_iter().map(|(path, inode)| (moved(path), inode)).collect();
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    unsynced_names: BTreeMap<PathBuf, Vec<NameChange>>,
    dirs: Vec<PathBuf>,
    locked: BTreeSet<PathBuf>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
    no_links: bool,
}

/// The simulated file system. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

struct SimFile {
    disk: SimDisk,
    inode: usize,
    path: PathBuf,
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}

impl SimDisk {
    /// An empty file system.
    pub fn new() -> Self {
        SimDisk::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls made so far that change or sync something.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Arranges `fault` at the `call`-th changing call from the beginning (the first is 1).
    pub fn set_fault(&self, call: u64, fault: Fault) {
        self.state().fault = Some((call, fault));
    }

    /// The file system as the next start finds it: what was synced, and of the rest what `seed` says.
    #[must_use]
    pub fn power_loss(&self, seed: u64) -> SimDisk {
        let mut rng = SimRng::new(seed);
        let mut state = self.state();
        state.dead = true;
        let mut names = state.synced_names.clone();
        for changes in state.unsynced_names.values() {
            let kept = rng.below(changes.len() as u64 + 1) as usize;
            for change in changes.iter().take(kept) {
                change.clone().apply(&mut names);
            }
        }
        let inodes = state.inodes.iter().map(|inode| survivor(inode, &mut rng)).collect();
        SimDisk(Arc::new(Mutex::new(State {
            inodes,
            synced_names: names.clone(),
            names,
            dirs: state.dirs.clone(),
            ..State::default()
        })))
    }

    /// Another file system with the same contents, no fault and no locks.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State { locked: BTreeSet::new(), fault: None, ..self.state().clone() })))
    }

    /// From now on files cannot have a second name.
    pub fn forbid_links(&self) {
        self.state().no_links = true;
    }

    /// The contents of `path`, as a program would read them now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = *state.names.get(path)?;
        state.inodes.get(inode).map(|i| i.live.clone())
    }

    /// Replaces the contents of `path`, durably: damage done behind the program's back.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state();
        let Some(&inode) = state.names.get(path) else { return };
        if let Some(inode) = state.inodes.get_mut(inode) {
            *inode = Inode { live: bytes.clone(), synced: bytes, unsynced: Vec::new() };
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
        *to = *from;
    }
}

fn survivor(inode: &Inode, rng: &mut SimRng) -> Inode {
    let mut bytes = inode.synced.clone();
    for (offset, data) in &inode.unsynced {
        let kept = match rng.below(3) {
            0 => 0,
            1 => data.len(),
            _ => {
                // Torn: what lies before a sector boundary of the file survives.
                let sectors = (data.len() / SECTOR) as u64 + 1;
                let end = (offset / SECTOR + 1 + rng.below(sectors) as usize) * SECTOR;
                end.saturating_sub(*offset).min(data.len())
            }
        };
        put(&mut bytes, *offset, data.get(..kept).unwrap_or(&[]));
    }
    Inode { live: bytes.clone(), synced: bytes, unsynced: Vec::new() }
}

impl State {
    /// Counts a changing call and fails it if its turn has come.
    fn step(&mut self, op: &'static str, path: &Path) -> Result<()> {
        self.calls += 1;
        let due = self.fault.filter(|&(call, fault)| match fault {
            Fault::Once(_) => self.calls == call,
            _ => self.calls >= call,
        });
        match due {
            Some((_, Fault::PowerLoss)) => self.dead = true,
            Some((_, Fault::Once(kind) | Fault::Forever(kind))) => return Err(Error::io(op, path, IoError::from(kind))),
            None => {}
        }
        self.alive(op, path)
    }

    fn alive(&self, op: &'static str, path: &Path) -> Result<()> {
        if self.dead { Err(Error::io(op, path, IoError::other("the power is off"))) } else { Ok(()) }
    }

    fn change(&mut self, change: NameChange) {
        let (NameChange::Add(path, _)
        | NameChange::Remove(path)
        | NameChange::Rename { to: path, .. }
        | NameChange::Swap(_, path)) = &change;
        self.unsynced_names.entry(parent(path)).or_default().push(change.clone());
        change.apply(&mut self.names);
    }

    fn find(&self, op: &'static str, path: &Path) -> Result<usize> {
        self.names.get(path).copied().ok_or_else(|| Error::io(op, path, IoError::from(ErrorKind::NotFound)))
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let inode = if how == Open::CreateNew {
            state.step("create", path)?;
            if state.names.contains_key(path) {
                return Err(Error::io("create", path, IoError::from(ErrorKind::AlreadyExists)));
            }
            state.inodes.push(Inode::default());
            let inode = state.inodes.len() - 1;
            state.change(NameChange::Add(path.to_path_buf(), inode));
            inode
        } else {
            state.alive("open", path)?;
            state.find("open", path)?
        };
        Ok(Box::new(SimFile { disk: self.clone(), inode, path: path.to_path_buf() }))
    }

    fn map(&self, path: &Path) -> Result<Mapped> {
        let state = self.state();
        state.alive("map", path)?;
        let inode = state.find("map", path)?;
        Ok(Mapped::copy(path, state.inodes.get(inode).map_or(&[], |i| &i.live)))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let state = self.state();
        state.alive("look for", path)?;
        Ok(state.names.contains_key(path) || state.dirs.iter().any(|d| d == path))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("create directory", path)?;
        if !state.dirs.iter().any(|d| d == path) {
            state.dirs.push(path.to_path_buf());
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        let state = self.state();
        state.alive("list", path)?;
        let within = state.names.keys().filter(|p| p.parent() == Some(path));
        Ok(within.filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("rename to", to)?;
        let inode = state.find("rename", from)?;
        state.change(NameChange::Rename { from: from.to_path_buf(), to: to.to_path_buf(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("remove", path)?;
        state.find("remove", path)?;
        state.change(NameChange::Remove(path.to_path_buf()));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        let mut state = self.state();
        state.step("link", to)?;
        let inode = state.find("link", from)?;
        if state.no_links {
            return Ok(false);
        }
        if state.names.contains_key(to) {
            return Err(Error::io("link", to, IoError::from(ErrorKind::AlreadyExists)));
        }
        state.change(NameChange::Add(to.to_path_buf(), inode));
        Ok(true)
    }

    fn swap_dirs(&self, fresh: &Path, name: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("exchange directories with", name)?;
        let within = |path: &PathBuf| path.starts_with(fresh) || path.starts_with(name);
        assert!(!state.unsynced_names.keys().any(within), "directories are exchanged before their names are durable");
        if !state.dirs.iter().any(|d| d == name) {
            state.dirs.push(name.to_path_buf());
        }
        state.change(NameChange::Swap(fresh.to_path_buf(), name.to_path_buf()));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("remove directory", path)?;
        if state.names.keys().any(|p| p.starts_with(path)) {
            return Err(Error::io("remove directory", path, IoError::from(ErrorKind::DirectoryNotEmpty)));
        }
        state.dirs.retain(|d| d != path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("sync directory", path)?;
        for change in state.unsynced_names.remove(path).unwrap_or_default() {
            change.apply(&mut state.synced_names);
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Send + Sync>>> {
        let mut state = self.state();
        state.alive("lock", path)?;
        if !state.locked.insert(path.to_path_buf()) {
            return Ok(None);
        }
        drop(state);
        Ok(Some(Box::new(SimLock(self.clone(), path.to_path_buf()))))
    }
}

struct SimLock(SimDisk, PathBuf);

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.state().locked.remove(&self.1);
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.disk.state();
        state.alive("read", &self.path)?;
        let live = state.inodes.get(self.inode).map_or(&[][..], |i| &i.live);
        let from = live.get(offset as usize..).unwrap_or(&[]);
        for (to, from) in buf.iter_mut().zip(from) {
            *to = *from;
        }
        Ok(from.len().min(buf.len()))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut state = self.disk.state();
        let went = state.step("write", &self.path);
        if let Some(inode) = state.inodes.get_mut(self.inode) {
            // The write during which the power goes may have reached the cache's way to the disk.
            if went.is_ok() {
                put(&mut inode.live, offset as usize, buf);
            }
            inode.unsynced.push((offset as usize, buf.to_vec()));
        }
        went
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.disk.state();
        state.step("sync", &self.path)?;
        if let Some(inode) = state.inodes.get_mut(self.inode) {
            for (offset, data) in std::mem::take(&mut inode.unsynced) {
                put(&mut inode.synced, offset, &data);
            }
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        let state = self.disk.state();
        state.alive("stat", &self.path)?;
        Ok(state.inodes.get(self.inode).map_or(0, |i| i.live.len() as u64))
    }

    fn drop_cache(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_power_loss_and_an_unsynced_name_may_not() {
        let mut lost = 0;
        for seed in 0..64 {
            let disk = SimDisk::new();
            let a = disk.open(Path::new("/d/a"), Open::CreateNew).unwrap();
            a.write_at(b"durable", 0).unwrap();
            a.sync().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            a.write_at(&[9; 2000], 7).unwrap();
            let b = disk.open(Path::new("/d/b"), Open::CreateNew).unwrap();
            b.write_at(b"b", 0).unwrap();
            b.sync().unwrap();
            let after = disk.power_loss(seed);
            assert!(after.contents(Path::new("/d/a")).unwrap().starts_with(b"durable"));
            lost += u32::from(!after.exists(Path::new("/d/b")).unwrap());
            assert!(a.sync().is_err(), "the old handles are dead");
        }
        assert!(lost > 0 && lost < 64, "both outcomes occur: {lost} of 64 lost");
    }

    #[test]
    fn the_chosen_call_fails_once_or_for_ever() {
        let disk = SimDisk::new();
        disk.set_fault(2, Fault::Once(ErrorKind::StorageFull));
        let f = disk.open(Path::new("/f"), Open::CreateNew).unwrap();
        assert!(f.write_at(b"x", 0).is_err());
        assert!(f.write_at(b"x", 0).is_ok());
        disk.set_fault(4, Fault::Forever(ErrorKind::Other));
        assert!(f.sync().is_err());
        assert!(f.sync().is_err());
    }
}
