//! Owns: the hosts of a simulated cluster, their disks, the network between them, virtual time, the clients.
//!
//! What must hold: everything follows from the seed. Each acknowledgement and its sender are checked at once, and so is each
//! frame that a host reports as committed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::super::frames::Frames;
use super::super::message::{Raft, Role};
use super::super::meta;
use super::super::*;
use super::filling::Fetching;
use super::mutants::{Lazy, Mutant};
use super::nemesis::{Act, Aim};
use super::wiped::initialised;
use tapestore::disk::sim::{SimDisk, SimRng};
use tapestore::disk::{Disk, Open};
use tapestore::error::{Error, Result};
use tapestore::lsn::{Epoch, FrameIndex, Lsn, NodeId, Position, PubSeq, PublisherId, Term};
use tapestore::record::{RecordRef, Trade};
use tapestore::time::Ts;
use tapestore::wal::format::{SEGMENT_SIZE_MIN, segment_name};
use tapestore::wal::{self, Body, Chain, DurableMark, FrameBuilder, FrameType, Header};

pub(super) const DIR: &str = "/s";
pub(super) const STORE: u128 = 77;

/// Counts of what happened in runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(pub(crate) BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn up(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        other.0.iter().for_each(|(what, n)| *self.0.entry(what).or_default() += n);
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// How time passes: a host's tick takes that many steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) tick: u64,
    /// Steps of a sync: the first, and up to the second more.
    pub(super) disk: (u64, u64),
    /// The same of a message, in halves of a step.
    pub(super) hop: (u64, u64),
    /// One message in so many is lost; 0: none.
    pub(super) loss: u64,
}

/// Steps of 10 ms, for faults.
pub(super) const COARSE: Pace = Pace { tick: 1, disk: (0, 2), hop: (2, 3), loss: 50 };

/// Steps of a millisecond, for measuring times: disks of 1 to 6 ms, hops of 1 to 2 ms.
pub(super) const FINE: Pace = Pace { tick: 10, disk: (1, 6), hop: (2, 4), loss: 0 };

/// A running process.
pub(super) struct Live {
    pub(super) writer: wal::Writer,
    pub(super) syncer: wal::Syncer,
    pub(super) node: Node,
    /// The sync in flight: its end in the log, and when it returns.
    pub(super) syncing: Option<(DurableMark, u64)>,
    pub(super) waiting: VecDeque<Raft>,
    /// The state for which `patience` was drawn.
    patience_of: Option<(u64, Role, Option<NodeId>)>,
    /// Ticks without a leader after which it campaigns.
    patience: usize,
    /// Offset of its ticks, from the time of its start.
    pub(super) phase: u64,
}

pub(super) struct Host {
    pub(super) disk: SimDisk,
    pub(super) live: Option<Live>,
    /// When it is restarted, or resumes.
    pub(super) back_at: u64,
    /// Until when its disk stalls.
    pub(super) stalls_until: u64,
    pub(super) first_meta: Vec<u8>,
    pub(super) inbox: Vec<Raft>,
    /// The change that an operator asks for.
    pub(super) asked: Option<Change>,
    /// The host that is to get the lead then.
    pub(super) hands_to: Option<NodeId>,
    /// The last frame kept by a truncation; its power goes once it has other frames after that.
    pub(super) torn_behind: Option<u64>,
    /// Up to which frame its committed frames have been compared.
    compared: u64,
    /// Its boot: the memory is kept since then.
    pub(super) boot: u128,
    /// Whether others may count on frames that a power loss took from its memory, with no snapshot since.
    pub(super) is_forgetful: bool,
    pub(super) fetching: Option<Fetching>,
    /// Hosts that it has not met since its start.
    pub(super) unmet: Vec<usize>,
    /// Number of times that it was initialised before.
    pub(super) life: u64,
    /// Whether the leader has no report of its start yet.
    pub(super) greets: bool,
}

/// Records that a client has sent and that are not acknowledged.
#[derive(Clone, Copy)]
struct Sent {
    id: u64,
    host: usize,
    index: u64,
    term: u64,
    /// The highest index that was acknowledged when it was sent.
    after: u64,
}

pub(super) struct Cluster {
    pub(super) seed: u64,
    pub(super) rng: SimRng,
    pub(super) now: u64,
    pub(super) pace: Pace,
    pub(super) aim: Aim,
    pub(super) hosts: Vec<Host>,
    /// Messages in flight, with their arrival times.
    pub(super) net: Vec<(u64, Raft)>,
    /// Blocked directions, and until when.
    pub(super) blocked: BTreeMap<(u64, u64), u64>,
    /// Planned faults and their times.
    pub(super) script: VecDeque<(u64, Act)>,
    /// The newest term whose leader has been isolated.
    pub(super) trapped: u64,
    /// The host that was wiped.
    pub(super) wiped: Option<usize>,
    /// Members that the operator has removed.
    pub(super) gone: BTreeSet<u64>,
    pub(super) hosts_max: usize,
    sent: Vec<Sent>,
    pub(super) acked: BTreeMap<u64, u64>,
    /// The last acknowledged frame, and the host that acknowledged it.
    pub(super) last_acked: (u64, usize),
    /// The host that acknowledged in a term.
    ackers: BTreeMap<u64, usize>,
    /// The CRC of each frame that a host has reported as committed; it covers all frames before it.
    pub(super) committed: BTreeMap<u64, u32>,
    next_id: u64,
    pub(super) mutant: Option<Mutant>,
    pub(super) tally: Tally,
}

/// Options of a start.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) mutant: Option<Mutant>,
    pub(super) is_lossy: bool,
    pub(super) boot: u128,
}

/// All possible hosts except `node`.
fn others(node: u64) -> Vec<usize> {
    (0..9).filter(|n| *n as u64 + 1 != node).collect()
}

pub(super) fn member_entry(node: u64, roles: u32) -> MemberEntry {
    MemberEntry { node: NodeId(node), roles, address: format!("127.0.0.1:{node}") }
}

/// Starts the process of a host, the way storage starts.
pub(super) fn start(disk: &SimDisk, how: How) -> Result<Live> {
    let (dir, How { mutant, is_lossy, boot }) = (Path::new(DIR), how);
    wal::create_if_absent(disk, dir, wal::Create { store_id: STORE, segment_size: SEGMENT_SIZE_MIN, now: Ts(1) })?;
    let from = Chain::begin(STORE);
    let (mut frames, mut changes) = (Frames::new(&from), BTreeMap::new());
    let mut meta = MetaFile::open(disk, dir)?;
    meta.begin_life(if mutant == Some(Mutant::Forgetful) { 1 } else { boot }, is_lossy, false)?;
    let lazy = (mutant == Some(Mutant::RecoveredUnsynced)).then(|| Lazy::new(disk.clone()));
    let of_log: Arc<dyn Disk> = lazy.as_ref().map_or_else(|| Arc::new(disk.clone()) as Arc<dyn Disk>, |l| Arc::new(l.clone()));
    let log = wal::open(of_log, dir, from, 0, Lsn(0), |frame| {
        if frame.header.kind() != FrameType::Pad {
            frames.push(&frame.header);
        }
        if let Body::Membership(words) = &frame.body {
            changes.insert(frame.header.index.0, Change::parse(words).unwrap());
        }
        Ok(())
    })?;
    lazy.inspect(Lazy::wakes);
    let flush = if is_lossy { options::Flush::Interval } else { options::Flush::Always };
    let node = Node::new(&Options { flush, ..Options::default() }, meta, frames, changes, 0)?;
    let waiting = VecDeque::new();
    Ok(Live { writer: log.writer, syncer: log.syncer, node, syncing: None, waiting, patience_of: None, patience: 0, phase: 0 })
}

/// Adds the bytes of its frames to `raft`, from the log on `disk`; `None` if they are gone.
fn with_frames(disk: &SimDisk, mut raft: Raft) -> Option<Raft> {
    for head in &raft.heads {
        let first = Position(head.position / SEGMENT_SIZE_MIN * SEGMENT_SIZE_MIN);
        let file = disk.open(&Path::new(DIR).join(wal::DIR).join(segment_name(first)), Open::Read).ok()?;
        let mut bytes = vec![0; head.len as usize];
        file.read_at(&mut bytes, head.position - first.0).ok()?;
        if Header::parse(&bytes).ok()?.header_crc != head.header_crc {
            return None;
        }
        raft.frames.extend(bytes);
    }
    Some(raft)
}

impl Live {
    fn opened(&mut self, appended: wal::Appended) -> Header {
        appended.opened.into_iter().for_each(|segment| self.syncer.opened(segment));
        appended.header
    }

    /// Writes the frames that raft has created.
    fn work(&mut self, now: u64) -> Result<()> {
        while let Some(work) = self.node.work() {
            self.writer.ready()?;
            let (kind, mut frame, change) = match work {
                Work::Open { term } => {
                    self.writer.set_term(Term(term as u32));
                    (FrameType::NoOp, FrameBuilder::new(), None)
                }
                Work::Change { change, .. } => {
                    let mut frame = FrameBuilder::new();
                    frame.push_entry(|words| change.encode(words));
                    (FrameType::Membership, frame, Some(change))
                }
            };
            let appended = self.writer.append(&mut frame, kind, Ts(now))?;
            let header = self.opened(appended);
            self.node.written(&header, change)?;
        }
        Ok(())
    }

    /// Processes a leader's frames; returns the last index to keep if the log must be truncated.
    fn take(&mut self, mutant: Option<Mutant>) -> Result<Option<u64>> {
        while let Some(raft) = self.waiting.pop_front() {
            match self.node.judge(&raft) {
                Verdict::Pass => self.step(&Raft { frames: Vec::new(), ..raft })?,
                Verdict::Append(known) => self.take_frames(&raft, known)?,
                Verdict::Truncate(_) if mutant == Some(Mutant::NeverTruncate) => {}
                Verdict::Truncate(index) => return Ok(Some(index)),
                Verdict::Denies(index) => panic!("frame {index} is committed here, but the leader has another"),
            }
        }
        Ok(None)
    }

    fn step(&mut self, raft: &Raft) -> Result<()> {
        match self.node.step(raft) {
            Err(Error::Consensus { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Processes an arbitrary message the way storage does, and lets time pass now and then. Frames enter the log only after
    /// they are checked, and these have no bytes.
    pub(super) fn hostile(&mut self, raft: &Raft, now: u64) -> Result<()> {
        raft.check()?;
        let verdict = self.node.judge(raft);
        if raft.heads.is_empty() || verdict == Verdict::Pass {
            self.node.step(raft)?;
        }
        if now.is_multiple_of(7) {
            self.node.tick()?;
        }
        self.work(now)?;
        self.syncer.sync(self.writer.end())?;
        self.node.persisted(self.writer.end().index.0)?;
        self.node.take_messages();
        Ok(())
    }

    fn take_frames(&mut self, raft: &Raft, known: usize) -> Result<()> {
        let mut at: usize = raft.heads.iter().take(known).map(|h| h.len as usize).sum();
        for (i, head) in raft.heads.iter().enumerate().skip(known) {
            let words: Vec<u64> =
                raft.frames[at..at + head.len as usize].chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            at += head.len as usize;
            let frame = wal::parse(&words)?;
            self.writer.ready()?;
            if self.writer.check(&frame.header).is_err() {
                return Ok(());
            }
            let (index, log_term) =
                i.checked_sub(1).map_or((raft.index, raft.log_term), |b| (raft.heads[b].index, raft.heads[b].term));
            let sub = Raft { index, log_term, heads: vec![*head], frames: Vec::new(), context: Vec::new(), ..*raft };
            if self.node.step(&sub)? != 1 {
                return Ok(());
            }
            let change = match &frame.body {
                Body::Membership(words) => Some(Change::parse(words).unwrap()),
                _ => None,
            };
            let appended = self.writer.append_as_is(&frame.header, &words)?;
            let header = self.opened(appended);
            self.node.written(&header, change)?;
        }
        Ok(())
    }

    /// Draws, from the seed, how long it waits for a leader; it draws again where raft does.
    fn wait_for_leader(&mut self, rng: &mut SimRng, spread: u64) {
        let state = self.node.state();
        let now = Some((state.term, state.role, state.leader));
        if self.patience_of != now || spread < 10 {
            self.patience_of = now;
            self.patience = 30 + rng.below(spread) as usize;
        }
        if state.role != Role::Leader {
            self.node.set_election_ticks(self.patience);
        }
    }
}

impl Host {
    pub(super) fn new(node: u64, members: Vec<MemberEntry>, is_lossy: bool, joins: bool) -> Host {
        let disk = initialised(node, 0, members, joins);
        let first_meta = disk.contents(&Path::new(DIR).join(meta::NAME)).unwrap();
        let live = Some(start(&disk, How { mutant: None, is_lossy, boot: 1 }).unwrap());
        Host {
            disk,
            live,
            back_at: 0,
            stalls_until: 0,
            first_meta,
            inbox: Vec::new(),
            asked: None,
            hands_to: None,
            torn_behind: None,
            compared: 0,
            boot: 1,
            is_forgetful: false,
            fetching: None,
            unmet: others(node),
            life: 0,
            greets: true,
        }
    }

    /// Compares its committed frames from the beginning again.
    pub(super) fn compares_again(&mut self) {
        self.compared = 0;
    }

    pub(super) fn leads(&self) -> bool {
        self.live.as_ref().is_some_and(|l| l.node.state().role == Role::Leader)
    }
}

impl Cluster {
    pub(super) fn new(seed: u64, aim: Aim, mutant: Option<Mutant>) -> Cluster {
        let mut rng = SimRng::new(seed);
        let count = if aim == Aim::Anything && rng.below(4) == 0 { 5 } else { 3 };
        let hosts_max = match aim {
            Aim::Members => count + 1 + rng.below(2) as usize,
            Aim::Wiped => count + 1,
            _ => count,
        };
        let members: Vec<MemberEntry> = (1..=count as u64).map(|n| member_entry(n, format::VOTER)).collect();
        Cluster {
            seed,
            rng,
            now: 0,
            pace: COARSE,
            aim,
            hosts: (1..=count as u64).map(|n| Host::new(n, members.clone(), aim.is_lossy(), false)).collect(),
            net: Vec::new(),
            blocked: BTreeMap::new(),
            script: VecDeque::new(),
            trapped: 0,
            wiped: None,
            gone: BTreeSet::new(),
            hosts_max,
            sent: Vec::new(),
            acked: BTreeMap::new(),
            last_acked: (0, 0),
            ackers: BTreeMap::new(),
            committed: BTreeMap::new(),
            next_id: 1,
            mutant,
            tally: Tally::default(),
        }
    }

    /// The options for starting host `n`.
    pub(super) fn how(&self, n: usize) -> How {
        How { mutant: self.mutant, is_lossy: self.is_lossy(), boot: self.hosts[n].boot }
    }

    /// Whether hosts acknowledge frames that they have in memory only.
    pub(super) fn is_lossy(&self) -> bool {
        self.aim.is_lossy()
    }

    /// Whether host `n` may lose power without losing acknowledged frames: a majority keeps its memory.
    pub(super) fn may_lose_power(&self, n: usize) -> bool {
        let others = self.hosts.iter().enumerate().filter(|(m, h)| *m != n && h.is_forgetful).count();
        !self.is_lossy() || others < (self.hosts.len() - 1) / 2
    }

    /// The host that leads; of several, the one with the highest term.
    pub(super) fn leader(&self) -> Option<usize> {
        let leaders = (0..self.hosts.len()).filter(|n| self.hosts[*n].leads());
        leaders.max_by_key(|n| self.hosts[*n].live.as_ref().map(|l| l.node.state().term))
    }

    pub(super) fn tick(&mut self) {
        self.step(true);
    }

    /// Makes one step of time, in which clients may send.
    pub(super) fn step(&mut self, with_clients: bool) {
        self.now += 1;
        let ready: Vec<_> = self.net.extract_if(.., |m| m.0 <= self.now).collect();
        for (_, raft) in ready {
            if let Some(host) = self.hosts.get_mut(raft.to.0 as usize - 1).filter(|h| h.live.is_some()) {
                host.inbox.push(raft);
            }
        }
        for n in 0..self.hosts.len() {
            if self.hosts[n].back_at > self.now || (self.hosts[n].live.is_none() && !self.starts(n)) {
                continue;
            }
            let vote = |h: &Host| h.live.as_ref().map(|l| (l.node.meta().term, l.node.meta().vote));
            let before = vote(&self.hosts[n]);
            self.meet(n);
            self.turn(n);
            self.greet(n);
            self.fill(n);
            if with_clients {
                self.clients(n);
            }
            // To break the rule about votes, crash a host right after it has voted.
            if self.mutant == Some(Mutant::ForgottenVote) && vote(&self.hosts[n]) != before && self.rng.below(2) == 0 {
                self.ends(n, false);
                self.hosts[n].back_at = self.now + 1;
            }
        }
    }

    /// Starts host `n`; the power may go. Returns whether it runs.
    fn starts(&mut self, n: usize) -> bool {
        let loses_power = !self.is_well() && self.rng.below(8) == 0 && self.may_lose_power(n);
        let how = self.how(n);
        let host = &mut self.hosts[n];
        if loses_power {
            host.disk.set_fault(host.disk.calls() + 1 + self.rng.below(12), tapestore::disk::sim::Fault::PowerLoss);
        }
        match start(&host.disk, how) {
            Ok(live) => {
                host.disk.clear_faults();
                host.live = Some(Live { phase: self.rng.below(self.pace.tick), ..live });
                host.greets = true;
                host.unmet = others(n as u64 + 1);
                true
            }
            Err(_) if host.disk.is_off() => {
                self.tally.up("power losses in a start");
                self.ends(n, true);
                false
            }
            Err(error) => panic!("host {} does not start: {error}", n + 1),
        }
    }

    /// Makes one turn of a host.
    fn turn(&mut self, n: usize) {
        // Close to each other if two hosts are to campaign in one term.
        let spread = if self.mutant == Some(Mutant::ForgottenVote) { 2 } else { 15 };
        let (now, mutant, pace) = (self.now, self.mutant, self.pace);
        let host = &mut self.hosts[n];
        let Some(live) = host.live.as_mut() else { return };
        let promised = |live: &Live| (live.node.meta().term, live.node.meta().vote, live.node.meta().membership);
        let before = promised(live);
        let voted =
            |live: &Live| live.node.meta().members.iter().any(|s| s.node.0 == n as u64 + 1 && s.roles & format::VOTER != 0);
        let led = live.node.state().role == Role::Leader && voted(live);
        let heir = host.hands_to.take();
        if let Some(change) = host.asked.take()
            && live.node.change(change).is_ok()
        {
            self.tally.up("changes");
            heir.into_iter().for_each(|heir| live.node.transfer(heir).unwrap());
        }
        for raft in std::mem::take(&mut host.inbox) {
            if raft.heads.is_empty() {
                live.step(&raft).unwrap();
            } else if !live.node.meta().is_mute() {
                live.waiting.push_back(raft);
            }
        }
        if let Some(last_kept) = live.take(mutant).unwrap() {
            host.live = None;
            return self.truncate(n, last_kept);
        }
        live.wait_for_leader(&mut self.rng, spread);
        if (now + live.phase).is_multiple_of(pace.tick) {
            live.node.tick().unwrap();
        }
        live.wait_for_leader(&mut self.rng, spread);
        live.work(now).unwrap();
        if let Some((end, _)) = live.syncing.take_if(|s| s.1 <= now) {
            live.syncer.sync(end).unwrap();
            live.node.persisted(end.index.0).unwrap();
        }
        let end = live.writer.end();
        if mutant == Some(Mutant::PersistedEarly) {
            live.node.persisted(end.index.0).unwrap();
        }
        if live.syncing.is_none() && end.index > live.syncer.durable().index {
            let takes = pace.disk.0 + self.rng.below(pace.disk.1);
            live.syncing = Some((end, if host.stalls_until > now { host.stalls_until } else { now + takes }));
        }
        if led && !voted(live) {
            self.tally.up("leaders that lost their vote");
        }
        if promised(live) != before && pace.tick > 1 {
            // Both slots are synced before anything else is done or sent.
            host.back_at = now + 2 * (pace.disk.0 + self.rng.below(pace.disk.1));
        }
        self.compare(n);
        self.send(n);
    }

    /// Truncates the log of host `n`, whose process has ended for that; the power may go.
    fn truncate(&mut self, n: usize, last_kept: u64) {
        self.tally.up("truncations");
        let often = if self.aim == Aim::TornTruncated { 1 } else { 4 };
        let loses_power = !self.is_well() && self.rng.below(often) == 0 && self.may_lose_power(n);
        let how = self.how(n);
        let host = &mut self.hosts[n];
        if loses_power {
            host.disk.set_fault(host.disk.calls() + 1 + self.rng.below(60), tapestore::disk::sim::Fault::PowerLoss);
        }
        match wal::truncate(&host.disk, Path::new(DIR), Chain::begin(STORE), FrameIndex(last_kept)) {
            Ok(_) => host.disk.clear_faults(),
            Err(_) if host.disk.is_off() => self.tally.up("power losses in a truncation"),
            Err(error) => panic!("host {} cannot truncate its log: {error}", n + 1),
        }
        if host.disk.is_off() || self.aim == Aim::TornTruncated {
            self.ends(n, true);
            self.after_cut(n, last_kept);
        } else {
            host.live = Some(start(&host.disk, how).unwrap());
            host.greets = true;
            host.unmet = others(n as u64 + 1);
        }
    }

    /// Whether faults have ended.
    pub(super) fn is_well(&self) -> bool {
        self.pace.loss == 0
    }

    fn send(&mut self, n: usize) {
        self.trap(n);
        let accepted: Vec<bool> = (0..self.hosts.len()).map(|other| self.accept_each_other(n, other)).collect();
        let host = &mut self.hosts[n];
        let Some(live) = host.live.as_mut() else { return };
        for raft in live.node.take_messages() {
            if !accepted.get(raft.to.0 as usize - 1).copied().unwrap_or(true) {
                continue;
            }
            let blocked = self.blocked.get(&(raft.from.0, raft.to.0)).is_some_and(|until| *until > self.now);
            if blocked || (self.pace.loss > 0 && self.rng.below(self.pace.loss) == 0) {
                continue;
            }
            let delay = (self.pace.hop.0 + self.rng.below(self.pace.hop.1)) / 2;
            if let Some(raft) = with_frames(&host.disk, raft) {
                self.net.push((self.now.max(host.back_at) + delay, raft));
            }
        }
    }

    /// Checks that the committed frames of host `n` equal those of every other host.
    pub(super) fn compare(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let Some(live) = host.live.as_ref() else { return };
        for index in host.compared + 1..=live.node.committed().min(live.node.frames().last()) {
            let crc = live.node.frames().place(index).unwrap().header_crc;
            let first = *self.committed.entry(index).or_insert(crc);
            assert_eq!(
                crc,
                first,
                "seed {}: host {} has committed another frame {index} than a host before it",
                self.seed,
                n + 1
            );
            host.compared = index;
        }
    }

    /// Number of frames that clients send in this step, and of records in each.
    fn demand(&mut self) -> (u64, u64) {
        match self.aim {
            _ if self.pace.tick > 1 => (u64::from(self.rng.below(5) == 0), 1 + self.rng.below(3)),
            // Frames of one size, so that other frames can lie at the same positions.
            Aim::TornTruncated => (1, 20),
            _ if self.rng.below(3) > 0 => (1 + self.rng.below(3), 40),
            _ => (0, 0),
        }
    }

    /// Makes clients send to the leader and receive acknowledgements.
    fn clients(&mut self, n: usize) {
        let (frames, records) = self.demand();
        let Some(live) = self.hosts[n].live.as_mut() else { return };
        if let Some(term) = live.node.leads() {
            for _ in 0..frames {
                if live.node.leads() != Some(term) || !live.writer.ready().unwrap() {
                    break;
                }
                let mut frame = FrameBuilder::new();
                let count = if self.aim == Aim::TornTruncated { records } else { 1 + self.rng.below(records) };
                let id = self.next_id;
                self.next_id += count;
                for id in id..id + count {
                    let trade = Trade { trade_id: id, ..Trade::default() };
                    frame.push_records(PublisherId(1), Epoch(1), PubSeq(id), 1, RecordRef::of(&trade).words());
                }
                let appended = live.writer.append(&mut frame, FrameType::Data, Ts(self.now)).unwrap();
                let header = live.opened(appended);
                live.node.proposed(&header);
                self.sent.push(Sent { id, host: n, index: header.index.0, term, after: self.last_acked.0 });
                self.tally.up("proposed");
            }
            live.node.pump().unwrap();
        }
        self.acknowledge(n);
        self.send(n);
    }

    /// Acknowledges committed records to the clients of host `n`.
    fn acknowledge(&mut self, n: usize) {
        let Some(live) = self.hosts[n].live.as_ref().filter(|l| l.node.state().role == Role::Leader) else { return };
        let state = live.node.state();
        let known = if self.mutant == Some(Mutant::AckedAlone) { live.syncer.durable().index.0 } else { state.committed };
        let is_acked = |s: &mut Sent| s.host == n && s.term == state.term && s.index <= known;
        for sent in self.sent.extract_if(.., is_acked).collect::<Vec<_>>() {
            let acker = *self.ackers.entry(sent.term).or_insert(n);
            assert_eq!(acker, n, "seed {}: two hosts acknowledge in term {}", self.seed, sent.term);
            assert!(
                sent.index > sent.after,
                "seed {}: a record sent after an acknowledgement is stored before the acknowledged one",
                self.seed
            );
            self.acked.insert(sent.id, sent.index);
            self.last_acked = (sent.index.max(self.last_acked.0), n);
            self.tally.up("acked");
        }
        self.sent.retain(|s| s.host != n || s.term >= state.term);
    }
}
