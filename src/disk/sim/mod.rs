//! Owns: a file system in memory that crashes, tears writes, loses writes and fails the n-th call.
//!
//! Model: a write goes to the cache and is durable when its file is synced; names of files and directories are
//! durable when their directory is synced. At [`SimDisk::power_loss`] each unsynced write survives whole, torn at a
//! 512-byte sector, or not at all, independently of the others; the unsynced name changes of a directory survive up
//! to a random point, either in one order for all or per file. A failed sync may lose the writes that it could not
//! make durable: their pages are clean then, and read from the cache until it is dropped. Everything follows from
//! one seed.

mod names;
mod rng;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error as IoError, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::names::{NameChange, Names, survive};
pub use self::rng::SimRng;
use super::{Disk, DiskFile, Mapped, Open, Space};
use crate::error::{Error, Result};
use crate::sabotage::{self, Sabotage};

const SECTOR: usize = 512;

/// A fault at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Loss of power: this call and all later ones fail.
    PowerLoss,
    /// The call fails with this kind of error, once.
    Once(ErrorKind),
    /// The call and all later ones that write or sync fail with this kind of error.
    Forever(ErrorKind),
    /// The first write from the call on is partial and fails with this kind of error.
    Short(ErrorKind),
    /// The first sync of a file from the call on fails with this kind of error and loses writes: later syncs
    /// succeed without them.
    Forget(ErrorKind),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    live: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: Names,
    synced_names: Names,
    unsynced_names: BTreeMap<PathBuf, Vec<NameChange>>,
    /// Directories that a loss of power removed.
    lost: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
    /// Free bytes to report; `None`: unlimited.
    free: Option<u64>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    looks: u64,
    /// The read-only call that fails, its error, and whether all later ones fail too.
    look_fault: Option<(u64, ErrorKind, bool)>,
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

    /// Number of changing calls so far: writes, syncs, changes of names.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Number of read-only calls so far.
    pub fn looks(&self) -> u64 {
        self.state().looks
    }

    /// Reports `free` bytes as free from now on; `None`: unlimited.
    pub fn set_free(&self, free: Option<u64>) {
        self.state().free = free;
    }

    /// Schedules `fault` at the `call`-th changing call from the beginning (the first is 1).
    pub fn set_fault(&self, call: u64, fault: Fault) {
        self.state().fault = Some((call, fault));
    }

    /// Makes the `look`-th read-only call fail with this `kind` of error, and, if `forever`, all later ones.
    pub fn set_look_fault(&self, look: u64, kind: ErrorKind, forever: bool) {
        self.state().look_fault = Some((look, kind, forever));
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.state().dead
    }

    /// Cancels all scheduled faults.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        (state.fault, state.look_fault) = (None, None);
    }

    /// The file system at the next start: the synced state, and the unsynced changes that `seed` selects.
    #[must_use]
    pub fn power_loss(&self, seed: u64) -> SimDisk {
        let mut rng = SimRng::new(seed);
        let mut state = self.state();
        state.dead = true;
        let mut names = state.synced_names.clone();
        for changes in state.unsynced_names.values() {
            survive(changes, &mut names, &mut rng);
        }
        let lost: BTreeSet<PathBuf> = state.names.dirs.union(&state.lost).filter(|d| !names.dirs.contains(*d)).cloned().collect();
        let is_lost = |path: &Path| path.ancestors().skip(1).any(|dir| lost.contains(dir));
        names.files.retain(|path, _| !is_lost(path));
        names.dirs.retain(|path| !is_lost(path));
        // Files without a name are gone; the others are renumbered.
        let mut inodes = Vec::new();
        for place in names.files.values_mut() {
            if let Some(inode) = state.inodes.get(*place) {
                inodes.push(survivor(inode, &mut rng));
                *place = inodes.len() - 1;
            }
        }
        SimDisk(Arc::new(Mutex::new(State { inodes, synced_names: names.clone(), names, lost, ..State::default() })))
    }

    /// A copy with the same contents and call counts, without locks and without a fault of a changing call.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State { locked: BTreeSet::new(), fault: None, ..self.state().clone() })))
    }

    /// Makes all later hard links fail.
    pub fn forbid_links(&self) {
        self.state().no_links = true;
    }

    /// The contents of `path`, as a program would read them now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = *state.names.files.get(path)?;
        state.inodes.get(inode).map(|i| i.live.clone())
    }

    /// Replaces the contents of `path` durably, without a call of the program: injects damage.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state();
        let Some(&inode) = state.names.files.get(path) else { return };
        if let Some(inode) = state.inodes.get_mut(inode) {
            *inode = Inode { live: bytes.clone(), synced: bytes, unsynced: Vec::new() };
        }
    }

    /// Replaces the byte `at` of `path` durably; returns the old one.
    pub fn patch(&self, path: &Path, at: usize, byte: u8) -> Option<u8> {
        let mut state = self.state();
        let inode = *state.names.files.get(path)?;
        let inode = state.inodes.get_mut(inode)?;
        if let Some(place) = inode.synced.get_mut(at) {
            *place = byte;
        }
        inode.live.get_mut(at).map(|place| std::mem::replace(place, byte))
    }

    /// All files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().names.files.keys().cloned().collect()
    }

    /// An independent copy, without faults, locks and counts.
    #[must_use]
    pub fn copy(&self) -> SimDisk {
        let s = self.state();
        let (inodes, names, synced_names) = (s.inodes.clone(), s.names.clone(), s.synced_names.clone());
        let (unsynced_names, lost) = (s.unsynced_names.clone(), s.lost.clone());
        SimDisk(Arc::new(Mutex::new(State { inodes, names, synced_names, unsynced_names, lost, ..State::default() })))
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(to) = bytes.get_mut(offset..end) {
        to.copy_from_slice(data);
    }
}

/// The number of bytes of an unsynced write that survive.
fn kept_of(offset: usize, data: &[u8], rng: &mut SimRng) -> usize {
    match rng.below(3) {
        0 => 0,
        1 => data.len(),
        _ => {
            // Torn: the bytes before a sector boundary of the file survive.
            let sectors = (data.len() / SECTOR) as u64 + 1;
            let end = (offset / SECTOR + 1 + rng.below(sectors) as usize) * SECTOR;
            end.saturating_sub(offset).min(data.len())
        }
    }
}

fn survivor(inode: &Inode, rng: &mut SimRng) -> Inode {
    let mut bytes = inode.synced.clone();
    for (offset, data) in &inode.unsynced {
        let kept = kept_of(*offset, data, rng);
        put(&mut bytes, *offset, data.get(..kept).unwrap_or(&[]));
    }
    Inode { live: bytes.clone(), synced: bytes, unsynced: Vec::new() }
}

impl State {
    /// Counts a changing call and applies the fault if it is due.
    fn step(&mut self, op: &'static str, path: &Path) -> Result<()> {
        self.calls += 1;
        let due = self.fault.filter(|&(call, fault)| match fault {
            Fault::Once(_) => self.calls == call,
            Fault::Short(_) => self.calls >= call && op == "write",
            Fault::Forget(_) => self.calls >= call && op == "sync",
            _ => self.calls >= call,
        });
        match due {
            Some((_, Fault::PowerLoss)) => self.dead = true,
            Some((_, fault @ (Fault::Once(kind) | Fault::Forever(kind) | Fault::Short(kind) | Fault::Forget(kind)))) => {
                if matches!(fault, Fault::Short(_) | Fault::Forget(_)) {
                    self.fault = None;
                }
                return Err(Error::io(op, path, IoError::from(kind)));
            }
            None => {}
        }
        self.alive(op, path)
    }

    /// Counts a read-only call and fails it if that is due.
    fn look(&mut self, op: &'static str, path: &Path) -> Result<()> {
        self.looks += 1;
        match self.look_fault {
            Some((look, kind, forever)) if self.looks == look || (forever && self.looks > look) => {
                Err(Error::io(op, path, IoError::from(kind)))
            }
            _ => self.alive(op, path),
        }
    }

    fn alive(&self, op: &'static str, path: &Path) -> Result<()> {
        if self.dead { Err(Error::io(op, path, IoError::other("the power is off"))) } else { Ok(()) }
    }

    fn change(&mut self, change: NameChange) {
        let (NameChange::Add(path, _)
        | NameChange::AddDir(path)
        | NameChange::Remove(path, _)
        | NameChange::Rename { to: path, .. }
        | NameChange::Swap(_, path)) = &change;
        self.unsynced_names.entry(parent(path)).or_default().push(change.clone());
        change.apply(&mut self.names);
    }

    fn find(&self, op: &'static str, path: &Path) -> Result<usize> {
        self.names.files.get(path).copied().ok_or_else(|| Error::io(op, path, IoError::from(ErrorKind::NotFound)))
    }

    fn is_there(&self, op: &'static str, dir: &Path) -> Result<()> {
        if self.lost.contains(dir) { Err(Error::io(op, dir, IoError::from(ErrorKind::NotFound))) } else { Ok(()) }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let inode = if how == Open::CreateNew {
            state.step("create", path)?;
            state.is_there("create", &parent(path))?;
            if state.names.files.contains_key(path) {
                return Err(Error::io("create", path, IoError::from(ErrorKind::AlreadyExists)));
            }
            state.inodes.push(Inode::default());
            let inode = state.inodes.len() - 1;
            state.change(NameChange::Add(path.to_path_buf(), inode));
            inode
        } else {
            state.look("open", path)?;
            state.find("open", path)?
        };
        Ok(Box::new(SimFile { disk: self.clone(), inode, path: path.to_path_buf() }))
    }

    fn map(&self, path: &Path) -> Result<Mapped> {
        let mut state = self.state();
        state.look("map", path)?;
        let inode = state.find("map", path)?;
        Ok(Mapped::copy(path, state.inodes.get(inode).map_or(&[], |i| &i.live)))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let mut state = self.state();
        state.look("look for", path)?;
        Ok(state.names.files.contains_key(path) || state.names.dirs.contains(path))
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("create directory", path)?;
        state.lost.remove(path);
        if !state.names.dirs.contains(path) {
            state.change(NameChange::AddDir(path.to_path_buf()));
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        let mut state = self.state();
        state.look("list", path)?;
        state.is_there("list", path)?;
        let within = state.names.files.keys().filter(|p| p.parent() == Some(path));
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
        let inode = state.find("remove", path)?;
        state.change(NameChange::Remove(path.to_path_buf(), inode));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        let mut state = self.state();
        state.step("link", to)?;
        let inode = state.find("link", from)?;
        if state.no_links {
            return Ok(false);
        }
        if state.names.files.contains_key(to) {
            return Err(Error::io("link", to, IoError::from(ErrorKind::AlreadyExists)));
        }
        state.change(NameChange::Add(to.to_path_buf(), inode));
        Ok(true)
    }

    fn swap_dirs(&self, fresh: &Path, name: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("exchange directories with", name)?;
        let within = |path: &PathBuf| path.starts_with(fresh) || path.starts_with(name);
        assert!(!state.unsynced_names.keys().any(within), "exchange of directories with names that are not durable");
        state.lost.retain(|path| !within(path));
        state.change(NameChange::Swap(fresh.to_path_buf(), name.to_path_buf()));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("remove directory", path)?;
        if state.names.files.keys().any(|p| p.starts_with(path)) {
            return Err(Error::io("remove directory", path, IoError::from(ErrorKind::DirectoryNotEmpty)));
        }
        state.names.dirs.remove(path);
        state.synced_names.dirs.remove(path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.step("sync directory", path)?;
        if sabotage::is(Sabotage::SkipDirSync) {
            return Ok(());
        }
        for change in state.unsynced_names.remove(path).unwrap_or_default() {
            change.apply(&mut state.synced_names);
        }
        Ok(())
    }

    fn space(&self, path: &Path) -> Result<Space> {
        let state = self.state();
        state.alive("get the free space of", path)?;
        Ok(Space { free: state.free.unwrap_or(u64::MAX), total: u64::MAX })
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Send + Sync>>> {
        let mut state = self.state();
        state.look("lock", path)?;
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

impl SimFile {
    /// Writes the first `kept` bytes of a write to the cache.
    fn land(&self, state: &mut State, buf: &[u8], offset: u64, kept: usize) {
        let Some(inode) = state.inodes.get_mut(self.inode) else { return };
        let data = buf.get(..kept).unwrap_or(buf);
        put(&mut inode.live, offset as usize, data);
        inode.unsynced.push((offset as usize, data.to_vec()));
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut state = self.disk.state();
        state.look("read", &self.path)?;
        let live = state.inodes.get(self.inode).map_or(&[][..], |i| &i.live);
        let from = live.get(offset as usize..).unwrap_or(&[]);
        let len = from.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut state = self.disk.state();
        let planned = state.fault;
        let went = state.step("write", &self.path);
        match &went {
            Ok(()) => self.land(&mut state, buf, offset, buf.len()),
            // A write at the loss of power may still survive.
            Err(_) if state.dead => {
                if let Some(inode) = state.inodes.get_mut(self.inode) {
                    inode.unsynced.push((offset as usize, buf.to_vec()));
                }
            }
            Err(_) if matches!(planned, Some((_, Fault::Short(_)))) && state.fault.is_none() => {
                let kept = SimRng::new(state.calls).below(buf.len() as u64 + 1) as usize;
                self.land(&mut state, buf, offset, kept);
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::StorageFull && sabotage::is(Sabotage::IgnoreFull) => {
                return Ok(());
            }
            Err(_) => {}
        }
        went
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.disk.state();
        let planned = state.fault;
        let went = state.step("sync", &self.path);
        let loses = matches!(planned, Some((_, Fault::Forget(_)))) && state.fault.is_none();
        let mut rng = SimRng::new(state.calls);
        if (went.is_ok() || loses)
            && let Some(inode) = state.inodes.get_mut(self.inode)
        {
            for (offset, data) in std::mem::take(&mut inode.unsynced) {
                let kept = if loses { kept_of(offset, &data, &mut rng) } else { data.len() };
                put(&mut inode.synced, offset, data.get(..kept).unwrap_or(&[]));
            }
        }
        went
    }

    fn len(&self) -> Result<u64> {
        let mut state = self.disk.state();
        state.look("stat", &self.path)?;
        Ok(state.inodes.get(self.inode).map_or(0, |i| i.live.len() as u64))
    }

    fn drop_cache(&self, range: Range<u64>) -> Result<()> {
        let mut state = self.disk.state();
        state.alive("advise", &self.path)?;
        if let Some(inode) = state.inodes.get_mut(self.inode) {
            // Dirty data stays.
            let mut bytes = inode.synced.clone();
            inode.unsynced.iter().for_each(|(offset, data)| put(&mut bytes, *offset, data));
            let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(bytes.len()).min(inode.live.len());
            let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
            match (inode.live.get_mut(start..end), bytes.get(start..end)) {
                (Some(live), Some(disk)) if range.end != u64::MAX => live.copy_from_slice(disk),
                _ => inode.live = bytes,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synced_bytes_survive_power_loss_and_an_unsynced_name_may_not() {
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

    #[test]
    fn a_failed_sync_loses_data_that_the_cache_still_serves_and_a_short_write_is_partial() {
        let mut forgotten = 0;
        for call in 3..40 {
            let disk = SimDisk::new();
            let f = disk.open(Path::new("/f"), Open::CreateNew).unwrap();
            (0..call).for_each(|i| f.write_at(&[7; 512], i * 512).unwrap());
            disk.set_fault(2, Fault::Forget(ErrorKind::Other));
            assert!(f.sync().is_err() && f.sync().is_ok());
            assert_eq!(disk.contents(Path::new("/f")).unwrap(), vec![7; call as usize * 512]);
            f.drop_cache(0..u64::MAX).unwrap();
            forgotten += usize::from(disk.contents(Path::new("/f")).unwrap() != vec![7; call as usize * 512]);
        }
        assert!(forgotten > 30, "{forgotten}");
        let disk = SimDisk::new();
        let f = disk.open(Path::new("/f"), Open::CreateNew).unwrap();
        disk.set_fault(2, Fault::Short(ErrorKind::StorageFull));
        assert!(f.write_at(&[1; 4096], 0).is_err() && f.is_empty().is_ok_and(|e| !e));
        disk.set_look_fault(disk.looks() + 1, ErrorKind::Other, false);
        assert!(f.read_at(&mut [0; 8], 0).is_err() && f.read_at(&mut [0; 8], 0).is_ok());
    }

    #[test]
    fn a_directory_whose_parent_was_not_synced_may_be_lost_with_its_contents() {
        let mut lost = 0;
        for seed in 0..32 {
            let disk = SimDisk::new();
            disk.create_dir(Path::new("/d")).unwrap();
            let f = disk.open(Path::new("/d/f"), Open::CreateNew).unwrap();
            f.sync().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            let after = disk.power_loss(seed);
            let there = after.exists(Path::new("/d/f")).unwrap();
            assert_eq!(there, after.exists(Path::new("/d")).unwrap());
            assert!(there || after.list(Path::new("/d")).is_err());
            lost += u32::from(!there);
        }
        assert!(lost > 0 && lost < 32, "{lost}");
    }
}
