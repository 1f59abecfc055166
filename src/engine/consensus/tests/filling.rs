//! Owns: snapshots of a leader's log in a simulated cluster: which host needs one, when it has arrived, and its installation.
//! Power loss in the middle of an installation is tested with the real one (`engine::tests::filling`).

use std::path::Path;

use super::super::message::Role;
use super::super::meta::{self, Meta};
use super::super::*;
use super::mutants::Mutant;
use super::world::{Cluster, DIR, STORE, start};
use tapestore::disk::sim::SimDisk;
use tapestore::lsn::{Lsn, NodeId, Position};
use tapestore::time::Ts;
use tapestore::wal::format::SEGMENT_SIZE_MIN;
use tapestore::wal::{self, Chain, FrameType};

/// A snapshot that a host fetches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetching {
    /// The host that makes it.
    from: usize,
    /// The term in which that host leads.
    term: u64,
    /// The last frame of that host at the request.
    least: u64,
    /// When the snapshot has arrived.
    ready_at: u64,
}

impl Cluster {
    /// Drops the old frames from the index of host `n`, as after a checkpoint.
    pub(super) fn forget(&mut self, n: usize) {
        self.compare(n);
        let Some(live) = self.hosts[n].live.as_mut() else { return };
        let last = live.node.frames().last();
        let behind = self.rng.below(60);
        if let Some(place) = live.node.frames().place(last.saturating_sub(behind)) {
            let position = place.position;
            live.node.forget(position);
            self.tally.up("logs shortened");
        }
    }

    /// Whether messages are blocked between the two hosts, in either direction.
    pub(super) fn is_cut_off(&self, one: usize, other: usize) -> bool {
        let (one, other) = (one as u64 + 1, other as u64 + 1);
        [(one, other), (other, one)].iter().any(|way| self.blocked.get(way).is_some_and(|until| *until > self.now))
    }

    /// Reports host `n`, which has been started, to the leader.
    pub(super) fn greet(&mut self, n: usize) {
        let report = self.hosts[n].live.as_ref().map(|l| (l.node.frames().last(), l.node.meta().needs_snapshot()));
        let Some((last, lacks)) = report else { return };
        for other in (0..self.hosts.len()).filter(|m| *m != n) {
            if !self.hosts[n].greets
                || !self.hosts[other].leads()
                || self.is_cut_off(n, other)
                || !self.accept_each_other(n, other)
            {
                continue;
            }
            if let Some(live) = self.hosts[other].live.as_mut() {
                live.node.reached(NodeId(n as u64 + 1), last, lacks);
                self.hosts[n].greets = false;
            }
        }
    }

    /// The leader whose snapshot host `n` needs, if it needs one: it joins, may have lost frames, or is behind the leader's log.
    fn lacks(&self, n: usize) -> Option<usize> {
        let own = NodeId(n as u64 + 1);
        let live = self.hosts[n].live.as_ref()?;
        let leader = live.node.state().leader.map(|l| l.0 as usize - 1).filter(|l| *l != n)?;
        let joins = live.node.meta().needs_snapshot();
        let theirs = &self.hosts[leader].live.as_ref()?.node;
        let progress = theirs.progress().into_iter().find(|p| p.node == own);
        let is_behind = progress.is_some_and(|p| p.is_behind_log);
        (theirs.state().role == Role::Leader && (joins || is_behind)).then_some(leader)
    }

    /// Fetches and installs a snapshot of the leader's log on host `n`, if it needs one.
    pub(super) fn fill(&mut self, n: usize) {
        let Some(fetching) = self.hosts[n].fetching else {
            if let Some(from) = self.lacks(n) {
                let Some(live) = self.hosts[from].live.as_ref() else { return };
                let state = live.node.state();
                let least = state.last;
                let ready_at = self.now + 2 + self.rng.below(30);
                self.hosts[n].fetching = Some(Fetching { from, term: state.term, least, ready_at });
            }
            return;
        };
        if fetching.ready_at > self.now {
            return;
        }
        let is_cut_off = self.is_cut_off(n, fetching.from);
        let theirs = self.hosts[fetching.from].live.as_ref().filter(|l| {
            let state = l.node.state();
            !is_cut_off && state.role == Role::Leader && state.term == fetching.term
        });
        let Some(theirs) = theirs else {
            self.hosts[n].fetching = None;
            return self.tally.up("snapshots given up");
        };
        let durable = theirs.syncer.durable().index.0;
        let copied = theirs.node.meta();
        // The snapshot is made again until it holds all that.
        if durable < fetching.least || durable < copied.commit.max(copied.membership) {
            return;
        }
        let copied = copied.clone();
        let last = match self.mutant {
            Some(Mutant::OldCopy) => durable.saturating_sub(self.rng.below(40)).max(copied.commit).max(copied.membership),
            _ => durable,
        };
        let (disk, end) = copy(&self.hosts[fetching.from].disk, last);
        self.hosts[n].fetching = None;
        self.install(n, &copied, disk, &end);
    }

    /// Replaces the log of host `n` by the snapshot `disk`, which ends with `end`, if its own state allows that.
    fn install(&mut self, n: usize, theirs: &Meta, disk: SimDisk, end: &Chain) {
        let how = self.how(n);
        let host = &mut self.hosts[n];
        let Some(live) = host.live.as_ref() else { return };
        let of = |chain: &Chain| (chain.index.0 - 1, u64::from(chain.term.0));
        let own = live.node.meta().clone();
        if own.admit(Some(of(live.writer.chain())), theirs, of(end)).is_err() {
            return self.tally.up("snapshots refused");
        }
        let filled = own.filled(theirs.clone(), u64::from(end.term.0));
        assert!(filled.term >= live.node.state().term && filled.commit < end.index.0);
        MetaFile::create(&disk, Path::new(DIR), &filled).unwrap();
        host.first_meta = disk.contents(&Path::new(DIR).join(meta::NAME)).unwrap();
        host.is_forgetful = false;
        host.inbox.clear();
        host.live = Some(start(&disk, how).unwrap());
        host.greets = true;
        host.unmet = (0..9).filter(|m| *m != n).collect();
        host.disk = disk;
        self.tally.up("snapshots");
    }
}

/// Copies the log on `disk` up to frame `last` to a new disk, and returns its end.
fn copy(disk: &SimDisk, last: u64) -> (SimDisk, Chain) {
    let (to, dir) = (SimDisk::new(), Path::new(DIR));
    wal::create_if_absent(&to, dir, wal::Create { store_id: STORE, segment_size: SEGMENT_SIZE_MIN, now: Ts(1) }).unwrap();
    let log = wal::open(std::sync::Arc::new(to.clone()), dir, Chain::begin(STORE), 0, Lsn(0), |_| Ok(())).unwrap();
    let (mut writer, mut syncer) = (log.writer, log.syncer);
    let meta = wal::meta::read(disk, dir).unwrap().unwrap();
    let visit = |frame: &wal::Frame<'_>| {
        let header = &frame.header;
        if header.kind() != FrameType::Pad && header.index.0 <= last {
            let words = words_of(disk, header);
            writer.ready()?;
            let appended = writer.append_as_is(header, &words)?;
            appended.opened.into_iter().for_each(|segment| syncer.opened(segment));
        }
        Ok(())
    };
    wal::scan(disk, &dir.join(wal::DIR), &meta, Chain::begin(STORE), tapestore::disk::Open::Read, visit).unwrap();
    syncer.sync(writer.end()).unwrap();
    (to, *writer.chain())
}

/// The words of the frame with `header`.
fn words_of(disk: &SimDisk, header: &wal::Header) -> Vec<u64> {
    let first = Position(header.position.0 / SEGMENT_SIZE_MIN * SEGMENT_SIZE_MIN);
    let path = Path::new(DIR).join(wal::DIR).join(wal::format::segment_name(first));
    let mut bytes = vec![0; header.total_len() as usize];
    let file = tapestore::disk::Disk::open(disk, &path, tapestore::disk::Open::Read).unwrap();
    file.read_at(&mut bytes, header.position.0 - first.0).unwrap();
    bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect()
}
