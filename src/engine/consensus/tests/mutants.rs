//! Owns: rules that are broken on purpose; the simulation must notice each.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::nemesis::Aim;
use super::run;
use tapestore::disk::sim::SimDisk;
use tapestore::disk::{Disk, DiskFile, Mapped, Open};
use tapestore::error::Result;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Frames count as durable when they are written.
    PersistedEarly,
    /// The leader acknowledges frames that only its own disk has.
    AckedAlone,
    /// A crash loses term and vote.
    ForgottenVote,
    /// A log that differs from the leader's is not truncated.
    NeverTruncate,
    /// A start does not sync the log that it finds.
    RecoveredUnsynced,
    /// A host that has lost power goes on as if it still had the frames of its memory.
    Forgetful,
    /// A snapshot may hold less than the leader had at the request.
    OldCopy,
    /// A host that was initialised again under its number votes at once.
    WipedVotes,
    /// A frame is accepted after any other frame, and with a lower term.
    Unchained,
}

/// A disk that syncs nothing until [`Lazy::wakes`].
#[derive(Clone)]
pub(super) struct Lazy {
    disk: SimDisk,
    sleeps: Arc<AtomicBool>,
}

struct LazyFile {
    file: Box<dyn DiskFile>,
    sleeps: Arc<AtomicBool>,
}

impl Lazy {
    pub(super) fn new(disk: SimDisk) -> Lazy {
        Lazy { disk, sleeps: Arc::new(AtomicBool::new(true)) }
    }

    pub(super) fn wakes(&self) {
        self.sleeps.store(false, Ordering::Relaxed);
    }
}

impl Disk for Lazy {
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn DiskFile>> {
        Ok(Box::new(LazyFile { file: self.disk.open(path, how)?, sleeps: self.sleeps.clone() }))
    }

    fn map(&self, path: &Path) -> Result<Mapped> {
        self.disk.map(path)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.disk.exists(path)
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.disk.remove(path)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        self.disk.link(from, to)
    }

    fn swap_dirs(&self, fresh: &Path, name: &Path) -> Result<()> {
        self.disk.swap_dirs(fresh, name)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        self.disk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        if self.sleeps.load(Ordering::Relaxed) { Ok(()) } else { self.disk.sync_dir(path) }
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Send + Sync>>> {
        self.disk.lock(path)
    }
}

impl DiskFile for LazyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<()> {
        if self.sleeps.load(Ordering::Relaxed) { Ok(()) } else { self.file.sync() }
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn drop_cache(&self, range: Range<u64>) -> Result<()> {
        self.file.drop_cache(range)
    }
}

#[test]
fn each_rule_that_is_broken_on_purpose_is_noticed() {
    for (mutant, aim) in [
        (Mutant::PersistedEarly, Aim::Anything),
        (Mutant::AckedAlone, Aim::Anything),
        (Mutant::ForgottenVote, Aim::Anything),
        (Mutant::NeverTruncate, Aim::Anything),
        (Mutant::RecoveredUnsynced, Aim::KilledThenPower),
        (Mutant::Unchained, Aim::TornTruncated),
        (Mutant::Forgetful, Aim::Memory),
        (Mutant::WipedVotes, Aim::Wiped),
    ] {
        let caught = (0..400).find_map(|seed| run(seed, aim, Some(mutant)).err());
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} is not noticed");
    }
}

#[test]
fn a_snapshot_older_than_requested_loses_nothing_because_the_leader_counts_on_more() {
    // The leader's heartbeat shows the host that it lacks frames; it does not vote and fetches another snapshot.
    for seed in 0..60 {
        run(seed, Aim::Forgotten, Some(Mutant::OldCopy)).unwrap();
    }
}
