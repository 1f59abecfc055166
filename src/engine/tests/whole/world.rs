//! Owns: the simulated hosts, their disks and shared memory, the network between their replication processes, snapshots of
//! stores, virtual time, and everything that publishers and readers have received.
//!
//! What must hold: everything follows from the seed, and each result that leaves a host is checked when it leaves.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use super::super::super::cluster_admin::{NewCluster, initialise};
use super::super::super::options::Options;
use super::super::super::snapshot::{install, transfer};
use super::super::super::{Ended, World as Surroundings, divergence};
use super::super::*;
use super::client::Client;
use super::live::{Live, Pace, STEP_NS, store_of};
use super::nemesis::Aim;
use crate::consensus::message::{Member, Message, Raft, Role, VERSION};
use crate::consensus::tests::world::Tally;
use crate::consensus::{self, MemberEntry};
use tapestore::disk::{Disk, Open};
use tapestore::lsn::{InstrumentId, NodeId, Position};
use tapestore::wal::format::{SEGMENT_SIZE_MIN, segment_name};

/// Everything that publishers and readers have received.
#[derive(Default)]
pub(super) struct Claims {
    pub(super) names: BTreeMap<u64, InstrumentId>,
    pub(super) ids: BTreeMap<u32, u64>,
    pub(super) epochs: BTreeMap<(u16, u32), u32>,
    /// Trade id of each record acknowledged at `quorum`, by (publisher, epoch, pub_seq).
    pub(super) acked: BTreeMap<(u16, u32, u64), u64>,
    /// Committed records that any reader has read, by LSN.
    pub(super) seen: BTreeMap<u64, (u16, u32, u64, u64)>,
    pub(super) tally: Tally,
}

/// A stream between two replication processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Control,
    Append,
    Relay,
}

pub(super) const STREAMS: [Stream; 3] = [Stream::Control, Stream::Append, Stream::Relay];

/// A host.
pub(super) struct Machine {
    pub(super) disk: SimDisk,
    pub(super) live: Option<Live>,
    pub(super) back_at: u64,
    /// Until when it is paused, and until when its disk stalls.
    pub(super) paused_until: u64,
    pub(super) stalls_until: u64,
    pub(super) boot: u128,
    /// Number of starts of storage.
    pub(super) generation: u64,
    pub(super) clock: SimClock,
    pub(super) options: Options,
    /// The step from which its replication process runs.
    pub(super) replication_at: u64,
    greeted: bool,
    /// The host whose snapshot it fetches, and when the snapshot has arrived.
    copy: Option<(usize, u64)>,
    /// The start on which a reader has last read, and the last record that it has compared.
    read: (u64, u64),
}

/// The world.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: SimRng,
    pub(super) now: u64,
    pub(super) aim: Aim,
    pub(super) pace: Pace,
    /// One message in so many is lost; 0: none. `relay_loss`: the same of relayed messages, in addition.
    pub(super) loss: u64,
    pub(super) relay_loss: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) clients: Vec<Client>,
    pub(super) claims: Claims,
    /// Messages in flight of each stream, with their arrival times.
    net: BTreeMap<(usize, usize, Stream), VecDeque<(u64, Message)>>,
    /// Until when each stream is blocked.
    pub(super) blocked: BTreeMap<(usize, usize, Stream), u64>,
    pub(super) script: VecDeque<(u64, super::nemesis::Act)>,
    connections: u64,
    is_traced: bool,
    dir: tempfile::TempDir,
}

pub(super) type Verdict = std::result::Result<(), String>;

fn member(n: usize) -> Member {
    Member { node: NodeId(n as u64 + 1), address: format!("127.0.0.{}:1", n + 1), is_voter: true }
}

impl World {
    pub(super) fn new(seed: u64, aim: Aim) -> World {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut rng = SimRng::new(seed);
        let count = if aim == Aim::Alone { 1 } else { 3 };
        let members: Vec<Member> = (0..count).map(member).collect();
        let mut world = World {
            seed,
            now: 0,
            aim,
            pace: Pace { sync: 2, flush: 8, segment: 20 },
            loss: 60,
            relay_loss: 0,
            machines: Vec::new(),
            clients: Vec::new(),
            claims: Claims::default(),
            net: BTreeMap::new(),
            blocked: BTreeMap::new(),
            script: VecDeque::new(),
            connections: 0,
            is_traced: std::env::var_os("TAPE_WHOLE_TRACE").is_some(),
            dir,
            rng: rng.clone(),
        };
        for n in 0..count {
            world.add_machine(n, &members, false);
        }
        for publisher in 1..=4u16 {
            world.clients.push(Client::new(publisher, rng.below(count as u64) as usize));
        }
        world.rng = rng;
        world
    }

    fn options(&self, n: usize) -> Options {
        let mut options = super::super::options(&store_of(self.dir.path(), n));
        options.run_root = self.dir.path().join(format!("run-{}", n + 1));
        options.sparse_memtables = true;
        options.space_min = 1;
        options.cluster.retain_bytes = if self.aim == Aim::Members { 1 } else { consensus::Options::default().retain_bytes };
        options
    }

    /// Adds a host; with `joins` it joins an existing cluster.
    pub(super) fn add_machine(&mut self, n: usize, members: &[Member], joins: bool) {
        let (disk, options) = (SimDisk::new(), self.options(n));
        std::fs::create_dir_all(&options.store).unwrap();
        std::fs::create_dir_all(&options.run_root).unwrap();
        if self.aim != Aim::Alone {
            let new_cluster = NewCluster {
                cluster: "simulated".to_owned(),
                node: NodeId(n as u64 + 1),
                members: members.to_vec(),
                segment_size: SEGMENT_SIZE_MIN,
                joins,
                generation: 0,
            };
            initialise(&disk, &options.store, &new_cluster, Ts(1)).unwrap();
        }
        let clock = SimClock::new(Ts(1_700_000_000_000_000_000));
        clock.advance(self.now * STEP_NS);
        self.machines.push(Machine {
            disk,
            live: None,
            back_at: 0,
            paused_until: 0,
            stalls_until: 0,
            boot: 1,
            generation: 0,
            clock,
            options,
            replication_at: 0,
            greeted: false,
            copy: None,
            read: (0, 0),
        });
    }

    /// The host that leads; of several, the one with the highest term.
    pub(super) fn leader(&self) -> Option<usize> {
        let state = |m: &Machine| m.live.as_ref().map(|l| l.host.node().state());
        let leads = |n: &usize| state(&self.machines[*n]).is_some_and(|s| s.role == Role::Leader);
        (0..self.machines.len()).filter(leads).max_by_key(|n| state(&self.machines[*n]).map(|s| s.term))
    }

    /// Kills the process of host `n`, or takes its power.
    pub(super) fn kill(&mut self, n: usize, power: bool, back_in: u64) {
        self.claims.tally.up(if power { "power losses" } else { "kills" });
        let seed = self.rng.next_u64();
        let machine = &mut self.machines[n];
        machine.live = None;
        machine.copy = None;
        machine.back_at = self.now + back_in;
        if power {
            machine.boot += 1;
            std::fs::remove_dir_all(&machine.options.run_root).unwrap();
            std::fs::create_dir_all(&machine.options.run_root).unwrap();
            machine.disk = machine.disk.power_loss(seed);
        } else {
            machine.disk = machine.disk.copy();
        }
        self.restart_replication(n, back_in);
    }

    /// Kills the replication process of host `n`: messages in flight from and to it are lost.
    pub(super) fn restart_replication(&mut self, n: usize, back_in: u64) {
        self.net.retain(|(from, to, _), _| *from != n && *to != n);
        let machine = &mut self.machines[n];
        machine.replication_at = self.now + back_in;
        machine.greeted = false;
    }

    /// Starts storage of host `n`.
    fn start(&mut self, n: usize) -> Verdict {
        let ticket = super::super::super::requests::first_ticket(self.rng.next_u64());
        let machine = &mut self.machines[n];
        let started = Live::start(machine.options.clone(), &machine.disk, &machine.clock, machine.boot, ticket);
        machine.live = Some(started.map_err(|e| format!("host {} does not start: {e}", n + 1))?);
        machine.generation += 1;
        machine.greeted = false;
        self.claims.tally.up("starts");
        Ok(())
    }

    fn surroundings(&self, n: usize) -> Surroundings {
        let machine = &self.machines[n];
        Surroundings {
            disk: Arc::new(machine.disk.clone()),
            clock: Arc::new(machine.clock.clone()),
            store_id: 5,
            boot: machine.boot,
        }
    }

    /// Handles the end of storage of host `n` and starts it again in the same process.
    fn again(&mut self, n: usize, ended: Ended) -> Verdict {
        let surroundings = self.surroundings(n);
        self.machines[n].live = None;
        let options = self.machines[n].options.clone();
        let done = match ended {
            Ended::Stopped => Ok(()),
            Ended::Truncate(index) => {
                self.claims.tally.up("truncations");
                divergence::truncate(&options, &surroundings, index).map(drop)
            }
            Ended::Fill => {
                self.claims.tally.up("snapshots");
                match install::install(&options.store, &surroundings.disk, surroundings.clock.wall(), false) {
                    // The snapshot was behind what this host has acknowledged since.
                    Err(Error::Consensus { .. }) => Ok(()),
                    other => other.map(drop),
                }
            }
        };
        done.map_err(|e| format!("host {} ends with {ended:?}: {e}", n + 1))?;
        self.start(n)
    }

    /// Makes one step of everything.
    pub(super) fn step(&mut self) -> Verdict {
        self.now += 1;
        self.deliver()?;
        for n in 0..self.machines.len() {
            let machine = &mut self.machines[n];
            machine.clock.advance(STEP_NS);
            if machine.live.is_none() && machine.back_at <= self.now {
                self.start(n)?;
            }
            let machine = &mut self.machines[n];
            if machine.paused_until > self.now {
                continue;
            }
            let stalls = machine.stalls_until > self.now;
            let Some(live) = machine.live.as_mut() else { continue };
            match live.step(self.now, &mut self.rng, self.pace, stalls) {
                Ok(None) => {}
                Ok(Some(ended)) => {
                    self.again(n, ended)?;
                    continue;
                }
                Err(error) => return Err(format!("host {} fails: {error}", n + 1)),
            }
            self.answer(n)?;
            self.replicate(n);
            self.read(n)?;
        }
        self.install_snapshots()?;
        for at in 0..self.clients.len() {
            let client = &mut self.clients[at];
            let machine = &mut self.machines[client.host];
            let generation = machine.generation << 8 | client.host as u64;
            if machine.paused_until > self.now {
                continue;
            }
            let Some(live) = machine.live.as_mut() else { continue };
            let (rng, connections) = (&mut self.rng, &mut self.connections);
            client.step(live, generation, self.now, rng, connections, &mut self.claims)?;
        }
        self.check_requests()
    }

    /// Delivers the answers of host `n` to its publishers.
    fn answer(&mut self, n: usize) -> Verdict {
        let machine = &mut self.machines[n];
        let generation = machine.generation << 8 | n as u64;
        let Some(live) = machine.live.as_mut() else { return Ok(()) };
        for (connection, message) in std::mem::take(&mut live.answers) {
            let of = |c: &&mut Client| c.connection() == Some((generation, connection));
            if let Some(client) = self.clients.iter_mut().find(of) {
                client.answer(message, self.now, &mut self.claims)?;
            }
        }
        Ok(())
    }

    /// Does what a host's replication process does with the messages of storage.
    fn replicate(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        let Some(live) = machine.live.as_mut() else { return };
        let messages = std::mem::take(&mut live.outbox);
        let is_there = machine.replication_at <= self.now;
        if !machine.greeted && is_there {
            machine.greeted = true;
            let hello = Message::Hello { version: VERSION, pid: 1 };
            if live.message(1, true, hello).is_err() {
                return;
            }
        }
        let store = machine.options.store.clone();
        let disk = machine.disk.clone();
        for message in messages.into_iter().filter(|_| is_there) {
            match message {
                Message::Raft(raft) => {
                    let to = raft.to.0 as usize - 1;
                    let stream = if raft.heads.is_empty() { Stream::Control } else { Stream::Append };
                    if let Some(raft) = with_frames(&disk, &store, raft) {
                        self.post(n, to, stream, Message::Raft(raft));
                    }
                }
                Message::Relay { to, .. } => self.post(n, to.0 as usize - 1, Stream::Relay, message),
                Message::SnapshotNeeded { node, .. } => self.fetch(node.0 as usize - 1, n),
                Message::FetchSnapshot { leader } => self.fetch(n, leader.0 as usize - 1),
                _ => {}
            }
        }
        if self.now.is_multiple_of(20) {
            self.reach(n);
        }
    }

    /// Reports host `n` as reached to the others.
    fn reach(&mut self, n: usize) {
        let Some(live) = self.machines[n].live.as_ref() else { return };
        let Some(state) = live.state else { return };
        let (node, needs_snapshot) = (NodeId(n as u64 + 1), live.host.node().meta().needs_snapshot());
        let reached = Message::Reached { node, generation: 0, last: state.last, needs_snapshot };
        for to in (0..self.machines.len()).filter(|to| *to != n) {
            self.post(n, to, Stream::Control, reached.clone());
        }
    }

    fn post(&mut self, from: usize, to: usize, stream: Stream, message: Message) {
        let is_blocked = self.blocked.get(&(from, to, stream)).is_some_and(|until| *until > self.now);
        let lost = |rng: &mut SimRng, one_of: u64| one_of > 0 && rng.below(one_of) == 0;
        let is_lost = lost(&mut self.rng, self.loss) || (stream == Stream::Relay && lost(&mut self.rng, self.relay_loss));
        if to >= self.machines.len() || is_blocked || is_lost {
            return self.claims.tally.up("messages lost");
        }
        let queue = self.net.entry((from, to, stream)).or_default();
        let after = queue.back().map_or(0, |(at, _)| *at);
        queue.push_back(((self.now + 1 + self.rng.below(3)).max(after), message));
    }

    fn deliver(&mut self) -> Verdict {
        let keys: Vec<_> = self.net.keys().copied().collect();
        for key in keys {
            let to = key.1;
            while let Some((_, message)) = self.net.get_mut(&key).and_then(|q| q.pop_front_if(|(at, _)| *at <= self.now)) {
                let machine = &mut self.machines[to];
                let Some(live) = machine.live.as_mut().filter(|_| machine.replication_at <= self.now) else { continue };
                live.message(1, true, message).map_err(|e| format!("host {} fails: {e}", to + 1))?;
            }
        }
        Ok(())
    }

    /// Makes host `n` fetch a snapshot of the store of host `from`.
    fn fetch(&mut self, n: usize, from: usize) {
        if n < self.machines.len() && self.machines[n].copy.is_none() && n != from {
            let ready = self.now + 5 + self.rng.below(60);
            self.machines[n].copy = Some((from, ready));
        }
    }

    /// Makes and installs the snapshots that have arrived.
    fn install_snapshots(&mut self) -> Verdict {
        for n in 0..self.machines.len() {
            let Some((from, ready)) = self.machines[n].copy else { continue };
            let is_cut_off = [(n, from), (from, n)]
                .iter()
                .any(|(a, b)| self.blocked.get(&(*a, *b, Stream::Append)).is_some_and(|until| *until > self.now));
            if ready > self.now || is_cut_off || self.machines[n].live.is_none() {
                continue;
            }
            self.machines[n].copy = None;
            let leads = |l: &Live| l.host.node().state().role == Role::Leader;
            if !self.machines[from].live.as_ref().is_some_and(leads) {
                continue;
            }
            let (theirs, own) = (&self.machines[from], &self.machines[n]);
            let made_in = theirs.options.store.join("offers");
            let copied = (|| {
                theirs.disk.create_dir(&made_in)?;
                let made_in = made_in.join(format!("{n}"));
                let made = transfer::create(&theirs.disk, &theirs.options.store, &made_in, theirs.clock.wall())?;
                bring(&theirs.disk, &made, &made_in, &own.disk, &own.options.store)?;
                transfer::remove(&theirs.disk, &made_in)?;
                install::check(&own.disk, &own.options.store, &mut BTreeMap::new(), &mut |_| {})
            })();
            copied.map_err(|e| format!("a snapshot of host {} for host {}: {e}", from + 1, n + 1))?;
            if let Some(live) = self.machines[n].live.as_mut() {
                live.message(1, true, Message::SnapshotFetched).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    /// Reads committed records on host `n`: every reader must read the same records.
    fn read(&mut self, n: usize) -> Verdict {
        if !(self.now + n as u64 * 13).is_multiple_of(97) {
            return Ok(());
        }
        let machine = &mut self.machines[n];
        let Some(live) = machine.live.as_ref() else { return Ok(()) };
        if machine.read.0 != machine.generation {
            machine.read = (machine.generation, machine.read.1.saturating_sub(20));
        }
        let Some(view) = live.view(Control::committed) else { return Ok(()) };
        let upto = view.upto.0;
        let from = (machine.read.1 + 1).max(upto.saturating_sub(400) + 1);
        for lsn in from..=upto {
            self.claims.see(&view, lsn).map_err(|why| format!("a reader on host {}: {why}", n + 1))?;
        }
        machine.read.1 = upto;
        Ok(())
    }

    /// Prints publishers that wait long to standard error, for debugging a seed.
    fn trace(&self) {
        for client in self.clients.iter().filter(|c| c.waits_since().is_some_and(|since| self.now - since == 500)) {
            let live = self.machines[client.host].live.as_ref();
            let stands = live.map(|l| format!("{:?} {}", l.host.node().state(), l.host.stands()));
            eprintln!("{}: publisher {} of host {} waits: {stands:?}", self.now, client.publisher, client.host + 1);
            let leader = self.leader().and_then(|l| self.machines[l].live.as_ref());
            let frames = leader.map(|l| (l.host.node().frames().first(), l.host.node().frames().last()));
            eprintln!("{}: the leader: {frames:?} {:?}", self.now, leader.map(|l| l.host.node().progress()));
        }
    }

    /// Checks that no publisher waits long for a host that has led without interruption.
    fn check_requests(&self) -> Verdict {
        if self.is_traced {
            self.trace();
        }
        const LONG: u64 = 600;
        for client in &self.clients {
            let machine = &self.machines[client.host];
            let numbers = machine.live.as_ref().and_then(|l| l.numbers_since).is_some_and(|since| self.now - since > LONG);
            let is_quiet = machine.paused_until <= self.now && machine.stalls_until + LONG < self.now;
            let waits = client.waits_since().is_some_and(|since| self.now - since > LONG);
            // Relayed messages may all be lost for a while, but not for long.
            if waits && ((numbers && is_quiet) || self.aim == Aim::Lossy) {
                return Err(format!(
                    "publisher {} has waited for host {} for three seconds without faults",
                    client.publisher,
                    client.host + 1
                ));
            }
        }
        Ok(())
    }

    /// The members that host `n` has.
    pub(super) fn members(&self, n: usize) -> Vec<MemberEntry> {
        self.machines[n].live.as_ref().map_or_else(Vec::new, |l| l.host.node().meta().members.clone())
    }

    /// The list of members for initialising host `n`.
    pub(super) fn members_with(&self, n: usize, members: &[MemberEntry]) -> Vec<Member> {
        members.iter().map(MemberEntry::member).map(|m| Member { is_voter: true, ..m }).chain([member(n)]).collect()
    }
}

impl Claims {
    /// Checks record `lsn` as a reader returns it.
    pub(super) fn see(&mut self, view: &View, lsn: u64) -> Verdict {
        let (arrival, words) = super::super::stored(view, Lsn(lsn));
        let record = tapestore::record::RecordRef::first(&words).map_err(|e| e.to_string())?;
        let trade: &Trade = record.get::<Trade>().ok_or("a record of another kind")?;
        let now = (arrival.publisher.0, arrival.epoch.0, arrival.pub_seq.0, trade.trade_id);
        let before = *self.seen.entry(lsn).or_insert(now);
        if before != now {
            return Err(format!("record {lsn} is {now:?}, but was {before:?}"));
        }
        let name = trade.price.0 as u64;
        if self.names.get(&name).is_some_and(|id| *id != trade.instrument) {
            return Err(format!("record {lsn} has name {name} and the wrong number {}", trade.instrument));
        }
        Ok(())
    }
}

/// Adds the bytes of its frames to `raft`, from the log; `None` if they are gone.
fn with_frames(disk: &SimDisk, store: &Path, mut raft: Raft) -> Option<Raft> {
    for head in &raft.heads {
        let first = Position(head.position / SEGMENT_SIZE_MIN * SEGMENT_SIZE_MIN);
        let file = disk.open(&store.join(wal::DIR).join(segment_name(first)), Open::Read).ok()?;
        let mut bytes = vec![0; head.len as usize];
        file.read_at(&mut bytes, head.position - first.0).ok()?;
        raft.frames.extend(bytes);
    }
    Some(raft)
}

/// Copies the snapshot `offer`, which is in `made_in` on one disk, into the store `store` on another.
fn bring(from: &SimDisk, offer: &transfer::HostSnapshot, made_in: &Path, to: &SimDisk, store: &Path) -> Result<()> {
    install::begin(to, store)?;
    for (name, _) in &offer.files {
        let target: PathBuf = store.join(install::INCOMING).join(name);
        if to.exists(&target)? {
            to.remove(&target)?;
        }
        let bytes = from.contents(&made_in.join(name)).unwrap_or_default();
        let file = to.open(&target, Open::CreateNew)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
    }
    for within in [tapestore::sstable::DIR, wal::DIR] {
        to.sync_dir(&store.join(install::INCOMING).join(within))?;
    }
    to.sync_dir(&store.join(install::INCOMING))
}
