//! Owns: a disk whose syncs take two seconds, and the test of a leader with such a disk.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::replicas::{Hosts, eventually, publish};
use super::*;
use crate::consensus::message::{Command, Role};
use tapestore::disk::{Disk, DiskFile, Mapped, Open, RealDisk, Space};

/// The host whose syncs stall; 0: none; [`ALL`].
pub(super) type Stalled = Arc<AtomicU64>;
/// The syncs of every host stall.
pub(super) const ALL: u64 = u64::MAX;

pub(super) struct StallingDisk {
    host: u64,
    stalled: Stalled,
}

struct StallingFile {
    file: Box<dyn DiskFile>,
    host: u64,
    stalled: Stalled,
}

impl StallingDisk {
    pub(super) fn new(host: u64, stalled: Stalled) -> StallingDisk {
        StallingDisk { host, stalled }
    }
}

impl Disk for StallingDisk {
    fn open(&self, path: &Path, how: Open) -> Result<Box<dyn DiskFile>> {
        let file = RealDisk.open(path, how)?;
        Ok(Box::new(StallingFile { file, host: self.host, stalled: self.stalled.clone() }))
    }

    fn map(&self, path: &Path) -> Result<Mapped> {
        RealDisk.map(path)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        RealDisk.exists(path)
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        RealDisk.create_dir(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        RealDisk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        RealDisk.remove(path)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<bool> {
        RealDisk.link(from, to)
    }

    fn swap_dirs(&self, fresh: &Path, name: &Path) -> Result<()> {
        RealDisk.swap_dirs(fresh, name)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        RealDisk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        RealDisk.sync_dir(path)
    }

    fn space(&self, path: &Path) -> Result<Space> {
        RealDisk.space(path)
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Send + Sync>>> {
        RealDisk.lock(path)
    }
}

impl DiskFile for StallingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<()> {
        if [self.host, ALL].contains(&self.stalled.load(Ordering::Relaxed)) {
            std::thread::sleep(Duration::from_secs(2));
        }
        self.file.sync()
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn drop_cache(&self, range: Range<u64>) -> Result<()> {
        self.file.drop_cache(range)
    }
}

#[test]
fn a_leader_whose_syncs_take_two_seconds_keeps_the_lead_and_the_others_commit_without_it() {
    let mut hosts = Hosts::new(3);
    // Much longer than the machine may pause a thread, and much shorter than a stall.
    hosts.election_ms = 800;
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader(0);
    let mut publisher = hosts.publisher(leader, 1, Durability::Quorum);
    publish(&mut publisher, 0, 1_000);
    let term = |hosts: &Hosts| hosts.ask(leader, Command::Status).unwrap().state.term;
    let before = term(&hosts);
    hosts.stalled.store(leader, Ordering::Relaxed);
    let mut was_ahead = false;
    // Stall after stall, each twice as long as an election timeout.
    let began = std::time::Instant::now();
    let mut next = 1_000;
    while began.elapsed() < Duration::from_secs(6) {
        publish(&mut publisher, next, next + 100);
        next += 100;
        let control = hosts.control(leader);
        was_ahead |= control.committed() > control.durable();
        assert_eq!(control.role().0, Role::Leader as u64);
    }
    assert!(was_ahead, "frames of the two others are committed before they are durable here");
    assert_eq!(term(&hosts), before, "there was no election");
    hosts.stalled.store(0, Ordering::Relaxed);
    eventually("the leader's disk", || (hosts.control(leader).durable() >= Lsn(next)).then_some(()));
    drop(publisher);
}
