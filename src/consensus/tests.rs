//! A cluster in one thread, from one seed: real logs and `raft.meta` on simulated disks, virtual time, a network that
//! delays, drops and parts, processes that are killed, paused and started again, power that goes, disks that stall. What
//! was acknowledged must be in every log in the end, in order; the logs are the same, byte for byte.
//!
//! A failing seed is printed; `TAPE_SIM_SEED=n` runs it alone, `TAPE_SIM_SEEDS=n` runs so many.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::frames::Frames;
use super::message::{Raft, Role};
use super::meta::{self, Meta};
use super::*;
use crate::disk::sim::{SimDisk, SimRng};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, FrameIndex, Lsn, NodeId, Position, PubSeq, PublisherId, Term};
use crate::record::{RecordRef, Trade, split};
use crate::time::Ts;
use crate::wal::format::{SEGMENT_SIZE_MIN, segment_name};
use crate::wal::{self, Body, Chain, Evidence, FrameBuilder, FrameType, Header};

const DIR: &str = "/s";
const STORE: u128 = 77;
/// Ticks of 10 ms in which things go wrong, and in which they must be well again.
const TICKS: u64 = 600;
const HEALING: u64 = 1_000;

/// A rule that is broken on purpose: each must be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Frames are called durable when they are written.
    PersistedEarly,
    /// The leader acknowledges what its own disk has.
    AckedAlone,
    /// Term and vote are forgotten by a crash.
    ForgottenVote,
    /// A log that differs from the leader's stays as it is.
    NeverCut,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    acked: u64,
    proposed: u64,
    kills: u64,
    power_losses: u64,
    pauses: u64,
    partitions: u64,
    stalls: u64,
    cuts: u64,
    transfers: u64,
    terms: u64,
}

/// A running process.
struct Live {
    writer: wal::Writer,
    syncer: wal::Syncer,
    node: Node,
    /// Frames on the way to the disk: up to where, and when the disk is done.
    syncing: Option<(Evidence, u64)>,
    waiting: VecDeque<Raft>,
}

struct Host {
    disk: SimDisk,
    live: Option<Live>,
    /// When it is started again, or goes on.
    back_at: u64,
    /// Until when its disk takes long.
    stalls_until: u64,
    first_meta: Vec<u8>,
    inbox: Vec<Raft>,
}

/// A record that a client has sent.
#[derive(Clone, Copy)]
struct Sent {
    id: u64,
    host: usize,
    index: u64,
    term: u64,
    /// The highest index that had been acknowledged to anybody when it was sent.
    after: u64,
}

struct Cluster {
    seed: u64,
    rng: SimRng,
    now: u64,
    hosts: Vec<Host>,
    /// When a message arrives, where.
    net: Vec<(u64, Raft)>,
    /// Who does not hear whom, until when.
    blocked: BTreeMap<(u64, u64), u64>,
    sent: Vec<Sent>,
    acked: BTreeMap<u64, u64>,
    /// Which host acknowledged in a term.
    ackers: BTreeMap<u64, usize>,
    next_id: u64,
    mutant: Option<Mutant>,
    tally: Tally,
}

fn meta_of(node: u64, hosts: u64) -> Meta {
    let seat = |n| Seat { node: NodeId(n), part: format::VOTER, address: format!("127.0.0.1:{n}") };
    Meta { node: NodeId(node), seats: (1..=hosts).map(seat).collect(), ..Meta::alone(STORE, 0) }
}

/// Starts the process of a host, as storage starts.
fn start(disk: &SimDisk) -> Result<Live> {
    let dir = Path::new(DIR);
    wal::create_if_absent(disk, dir, wal::Create { store_id: STORE, segment_size: SEGMENT_SIZE_MIN, now: Ts(1) })?;
    let from = Chain::begin(STORE);
    let (mut frames, mut changes) = (Frames::new(&from), BTreeMap::new());
    let log = wal::open(Arc::new(disk.clone()), dir, from, 0, Lsn(0), |frame| {
        if frame.header.kind() != FrameType::Pad {
            frames.push(&frame.header);
        }
        if let Body::Membership(words) = &frame.body {
            changes.insert(frame.header.index.0, Change::parse(words).unwrap());
        }
        Ok(())
    })?;
    let node = Node::new(&Options::default(), MetaFile::open(disk, dir)?, frames, changes, 0)?;
    Ok(Live { writer: log.writer, syncer: log.syncer, node, syncing: None, waiting: VecDeque::new() })
}

/// `raft` with the bytes of its frames out of the log on `disk`; `None` if they are not there.
fn with_frames(disk: &SimDisk, mut raft: Raft) -> Option<Raft> {
    for head in &raft.heads {
        let first = Position(head.position / SEGMENT_SIZE_MIN * SEGMENT_SIZE_MIN);
        let segment = disk.contents(&Path::new(DIR).join(wal::DIR).join(segment_name(first)))?;
        let at = (head.position - first.0) as usize;
        let bytes = segment.get(at..at + head.len as usize)?;
        let header = Header::parse(bytes).ok()?;
        if header.header_crc != head.header_crc {
            return None;
        }
        raft.frames.extend_from_slice(bytes);
    }
    Some(raft)
}

impl Live {
    fn opened(&mut self, appended: wal::Appended) -> Header {
        appended.opened.into_iter().for_each(|segment| self.syncer.opened(segment));
        appended.header
    }

    /// Frames that raft itself has begun.
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
                    frame.push_fact(|words| change.encode(words));
                    (FrameType::Membership, frame, Some(change))
                }
            };
            let appended = self.writer.append(&mut frame, kind, Ts(now))?;
            let header = self.opened(appended);
            self.node.written(&header, change)?;
        }
        Ok(())
    }

    /// Frames of a leader; the index behind which the log is to be cut, if it is.
    fn take(&mut self, mutant: Option<Mutant>) -> Result<Option<u64>> {
        while let Some(raft) = self.waiting.pop_front() {
            match self.node.judge(&raft) {
                Verdict::Pass => self.step(&Raft { frames: Vec::new(), ..raft })?,
                Verdict::Append(known) => self.take_frames(&raft, known)?,
                Verdict::Cut(_) if mutant == Some(Mutant::NeverCut) => {}
                Verdict::Cut(index) => return Ok(Some(index)),
                Verdict::Denies(index) => panic!("frame {index} is committed here, and the leader has another"),
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
}

impl Cluster {
    fn new(seed: u64, mutant: Option<Mutant>) -> Cluster {
        let mut rng = SimRng::new(seed);
        let count = if rng.below(4) == 0 { 5 } else { 3 };
        let host = |n| {
            let disk = SimDisk::new();
            let dir = Path::new(DIR);
            wal::create_if_absent(&disk, dir, wal::Create { store_id: STORE, segment_size: SEGMENT_SIZE_MIN, now: Ts(1) })
                .unwrap();
            MetaFile::create(&disk, dir, &meta_of(n, count)).unwrap();
            let first_meta = disk.contents(&dir.join(meta::NAME)).unwrap();
            let live = Some(start(&disk).unwrap());
            Host { disk, live, back_at: 0, stalls_until: 0, first_meta, inbox: Vec::new() }
        };
        Cluster {
            seed,
            rng,
            now: 0,
            hosts: (1..=count).map(host).collect(),
            net: Vec::new(),
            blocked: BTreeMap::new(),
            sent: Vec::new(),
            acked: BTreeMap::new(),
            ackers: BTreeMap::new(),
            next_id: 1,
            mutant,
            tally: Tally::default(),
        }
    }

    fn ends(&mut self, n: usize, power: bool) {
        let host = &mut self.hosts[n];
        host.live = None;
        host.inbox.clear();
        host.back_at = self.now + 5 + self.rng.below(60);
        if power {
            self.tally.power_losses += 1;
            host.disk = host.disk.power_loss(self.rng.next_u64());
        } else {
            self.tally.kills += 1;
            host.disk = host.disk.copy();
        }
        if self.mutant == Some(Mutant::ForgottenVote) {
            host.disk.overwrite(&Path::new(DIR).join(meta::NAME), host.first_meta.clone());
        }
    }

    /// What goes wrong in this tick.
    fn nemesis(&mut self) {
        let n = self.rng.below(self.hosts.len() as u64) as usize;
        match self.rng.below(220) {
            0 if self.hosts[n].live.is_some() => self.ends(n, false),
            1 if self.hosts[n].live.is_some() => self.ends(n, true),
            2 => {
                self.hosts[n].back_at = self.now + self.rng.below(80);
                self.tally.pauses += 1;
            }
            3 | 4 => {
                self.tally.partitions += 1;
                let until = self.now + 10 + self.rng.below(120);
                let one_way = self.rng.below(2) == 0;
                for other in (1..=self.hosts.len() as u64).filter(|o| *o != n as u64 + 1) {
                    self.blocked.insert((n as u64 + 1, other), until);
                    if !one_way {
                        self.blocked.insert((other, n as u64 + 1), until);
                    }
                }
            }
            5 => {
                self.hosts[n].stalls_until = self.now + 40;
                self.tally.stalls += 1;
            }
            6 => {
                let to = NodeId(1 + self.rng.below(self.hosts.len() as u64));
                self.tally.transfers += u64::from(
                    self.hosts[n].live.as_mut().is_some_and(|l| l.node.leads().is_some() && l.node.transfer(to).is_ok()),
                );
            }
            // All at once, now and then.
            7 if self.rng.below(8) == 0 => {
                for n in 0..self.hosts.len() {
                    if self.hosts[n].live.is_some() {
                        self.ends(n, true);
                    }
                }
            }
            _ => {}
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        let (ready, rest) = std::mem::take(&mut self.net).into_iter().partition(|m| m.0 <= self.now);
        self.net = rest;
        for (_, raft) in Vec::<(u64, Raft)>::from_iter::<Vec<_>>(ready) {
            let host = &mut self.hosts[raft.to.0 as usize - 1];
            if host.live.is_some() {
                host.inbox.push(raft);
            }
        }
        for n in 0..self.hosts.len() {
            if self.hosts[n].back_at > self.now {
                continue;
            }
            if self.hosts[n].live.is_none() {
                self.hosts[n].live = Some(start(&self.hosts[n].disk).unwrap());
            }
            let vote = |h: &Host| h.live.as_ref().map(|l| (l.node.meta().term, l.node.meta().vote));
            let before = vote(&self.hosts[n]);
            self.turn(n);
            self.clients(n);
            // A rule about votes is broken where one has just been given.
            if self.mutant == Some(Mutant::ForgottenVote) && vote(&self.hosts[n]) != before && self.rng.below(2) == 0 {
                self.ends(n, false);
                self.hosts[n].back_at = self.now + 1;
            }
        }
    }

    /// One turn of a host.
    fn turn(&mut self, n: usize) {
        // Close to each other, if two are to stand in one term.
        let spread = if self.mutant == Some(Mutant::ForgottenVote) { 2 } else { 15 };
        let election = 30 + self.rng.below(spread) as usize;
        let (now, mutant) = (self.now, self.mutant);
        let host = &mut self.hosts[n];
        let Some(live) = host.live.as_mut() else { return };
        for raft in std::mem::take(&mut host.inbox) {
            if raft.heads.is_empty() {
                live.step(&raft).unwrap();
            } else {
                live.waiting.push_back(raft);
            }
        }
        if let Some(last_kept) = live.take(mutant).unwrap() {
            self.tally.cuts += 1;
            host.live = None;
            wal::cut(&host.disk, Path::new(DIR), Chain::begin(STORE), FrameIndex(last_kept)).unwrap();
            host.live = Some(start(&host.disk).unwrap());
            return;
        }
        if live.node.state().role != Role::Leader {
            live.node.set_election_ticks(election);
        }
        live.node.tick().unwrap();
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
            let done = if host.stalls_until > now { host.stalls_until } else { now + self.rng.below(2) };
            live.syncing = Some((end, done));
        }
        self.speak(n);
    }

    fn speak(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let Some(live) = host.live.as_mut() else { return };
        for raft in live.node.take_messages() {
            let blocked = self.blocked.get(&(raft.from.0, raft.to.0)).is_some_and(|until| *until > self.now);
            if blocked || self.rng.below(50) == 0 {
                continue;
            }
            let delay = 1 + self.rng.below(3) / 2;
            if let Some(raft) = with_frames(&host.disk, raft) {
                self.net.push((self.now + delay, raft));
            }
        }
    }

    /// Clients send to who leads, and hear what is committed.
    fn clients(&mut self, n: usize) {
        let Some(live) = self.hosts[n].live.as_mut() else { return };
        if let Some(term) = live.node.leads()
            && self.rng.below(3) > 0
        {
            let last_acked = self.acked.values().max().copied().unwrap_or(0);
            for _ in 0..=self.rng.below(3) {
                if live.node.leads() != Some(term) || !live.writer.ready().unwrap() {
                    break;
                }
                let mut frame = FrameBuilder::new();
                let count = 1 + self.rng.below(40);
                let id = self.next_id;
                self.next_id += count;
                for id in id..id + count {
                    let trade = Trade { trade_id: id, ..Trade::default() };
                    frame.push_records(PublisherId(1), Epoch(1), PubSeq(id), 1, RecordRef::of(&trade).words());
                }
                let appended = live.writer.append(&mut frame, FrameType::Data, Ts(self.now)).unwrap();
                let header = live.opened(appended);
                live.node.proposed(&header);
                self.sent.push(Sent { id, host: n, index: header.index.0, term, after: last_acked });
                self.tally.proposed += 1;
            }
            live.node.pump().unwrap();
        }
        let state = live.node.state();
        self.tally.terms = self.tally.terms.max(state.term);
        let known = if self.mutant == Some(Mutant::AckedAlone) { live.syncer.durable().index.0 } else { state.committed };
        if state.role != Role::Leader {
            return;
        }
        let mine = |s: &Sent| s.host == n && s.term == state.term && s.index <= known;
        let acked: Vec<Sent> = self.sent.iter().copied().filter(|s| mine(s) && !self.acked.contains_key(&s.id)).collect();
        for sent in acked {
            let acker = *self.ackers.entry(sent.term).or_insert(n);
            assert_eq!(acker, n, "seed {}: two hosts acknowledge in term {}", self.seed, sent.term);
            assert!(sent.index > sent.after, "seed {}: what was sent after an acknowledgement is stored before it", self.seed);
            self.acked.insert(sent.id, sent.index);
            self.tally.acked += 1;
        }
        self.speak(n);
    }

    /// All is well again: the hosts have to agree, on all that was acknowledged.
    fn check(&mut self) -> std::result::Result<(), String> {
        self.blocked.clear();
        self.hosts.iter_mut().for_each(|h| (h.back_at, h.stalls_until) = (0, 0));
        let deadline = self.now + HEALING;
        loop {
            self.tick();
            let states: Vec<_> = self.hosts.iter().filter_map(|h| h.live.as_ref().map(|l| l.node.state())).collect();
            let one = states.iter().any(|s| s.role == Role::Leader);
            let same = states.iter().all(|s| s.term == states[0].term && s.committed > 0);
            if one && same && self.now > deadline - HEALING / 2 {
                break;
            }
            if self.now > deadline {
                return Err(format!("the hosts do not agree: {states:?}"));
            }
        }
        // Nothing new, until everything is everywhere.
        for _ in 0..HEALING {
            self.now += 1;
            let ready: Vec<_> = self.net.extract_if(.., |m| m.0 <= self.now).collect();
            ready.into_iter().for_each(|(_, raft)| self.hosts[raft.to.0 as usize - 1].inbox.push(raft));
            (0..self.hosts.len()).for_each(|n| self.turn(n));
        }
        let logs: Vec<BTreeMap<u64, (u32, Vec<u64>)>> = self.hosts.iter().map(|h| log_of(&h.disk)).collect();
        if logs.iter().any(|log| *log != logs[0]) {
            return Err(format!("logs differ: {:?}", logs.iter().map(BTreeMap::len).collect::<Vec<_>>()));
        }
        for (id, index) in &self.acked {
            if !logs[0].get(index).is_some_and(|(_, ids)| ids.contains(id)) {
                return Err(format!("record {id} was acknowledged as of frame {index} and is not there"));
            }
        }
        Ok(())
    }
}

/// Of each frame of a log its CRC, which covers all before it, and the records in it.
fn log_of(disk: &SimDisk) -> BTreeMap<u64, (u32, Vec<u64>)> {
    let mut frames = BTreeMap::new();
    let visit = |frame: &wal::Frame<'_>| {
        let ids = match &frame.body {
            Body::Data(data) => split(data.records).map(|r| r.unwrap().get::<Trade>().unwrap().trade_id).collect(),
            _ => Vec::new(),
        };
        if frame.header.kind() != FrameType::Pad {
            frames.insert(frame.header.index.0, (frame.header.header_crc, ids));
        }
        Ok(())
    };
    let meta = wal::meta::read(disk, Path::new(DIR)).unwrap().unwrap();
    let dir = Path::new(DIR).join(wal::DIR);
    wal::scan(disk, &dir, &meta, Chain::begin(STORE), crate::disk::Open::Read, visit).unwrap();
    frames
}

/// One seed; what is wrong, if anything is.
fn run(seed: u64, mutant: Option<Mutant>) -> std::result::Result<Tally, String> {
    let outcome = std::panic::catch_unwind(|| {
        let mut cluster = Cluster::new(seed, mutant);
        for _ in 0..TICKS {
            cluster.nemesis();
            cluster.tick();
        }
        cluster.check().map(|()| cluster.tally)
    });
    match outcome {
        Ok(result) => result.map_err(|why| format!("seed {seed}: {why}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("seed {seed}: {}", text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()))
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn five_hundred_seeds_of_crashes_partitions_and_stalls_lose_nothing_that_was_acknowledged() {
    if let Some(seed) = number("TAPE_SIM_SEED") {
        run(seed, None).unwrap();
        return;
    }
    let count = number("TAPE_SIM_SEEDS").unwrap_or(500);
    let next = std::sync::atomic::AtomicU64::new(0);
    let sums = std::thread::scope(|scope| {
        let work = || {
            let mut sum = Tally::default();
            loop {
                let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if seed >= count {
                    return sum;
                }
                let t = run(seed, None).unwrap_or_else(|why| panic!("{why}; TAPE_SIM_SEED={seed} runs it alone"));
                let add = |a: u64, b: u64| a + b;
                sum = Tally {
                    acked: add(sum.acked, t.acked),
                    proposed: add(sum.proposed, t.proposed),
                    kills: add(sum.kills, t.kills),
                    power_losses: add(sum.power_losses, t.power_losses),
                    pauses: add(sum.pauses, t.pauses),
                    partitions: add(sum.partitions, t.partitions),
                    stalls: add(sum.stalls, t.stalls),
                    cuts: add(sum.cuts, t.cuts),
                    transfers: add(sum.transfers, t.transfers),
                    terms: add(sum.terms, t.terms),
                };
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{count} seeds: {sums:?}");
    let enough = |of: fn(&Tally) -> u64| sums.iter().map(of).sum::<u64>() >= count / 4;
    assert!(enough(|t| t.cuts) && enough(|t| t.power_losses) && enough(|t| t.partitions), "hardly anything went wrong");
}

#[test]
fn rules_that_are_broken_on_purpose_are_noticed() {
    for mutant in [Mutant::PersistedEarly, Mutant::AckedAlone, Mutant::ForgottenVote, Mutant::NeverCut] {
        let caught = (0..400).find_map(|seed| run(seed, Some(mutant)).err());
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} is not noticed");
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let of = |seed| format!("{:?}", run(seed, None).unwrap());
    for seed in 0..5 {
        assert_eq!(of(seed), of(seed));
    }
}
