//! Owns: tests of three hosts in one process, with real agents on the real disk. The test replaces their replication processes:
//! it reads frames from the log of one and sends them to another.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::super::cluster_admin::{NewCluster, initialise, store_id};
use super::*;
use crate::consensus::message::{Command, Member, Message, Progress, Raft, Refusal, Report, Role, VERSION};
use tapestore::disk::RealDisk;
use tapestore::lsn::{NodeId, Position};
use tapestore::publisher::{self, Publisher};
use tapestore::shm::control::Statistic;
use tapestore::time::HostClock;
use tapestore::wal::format::segment_name;

const SEGMENT: u64 = wal::format::SEGMENT_SIZE_MIN;

/// The hosts and the network between them.
pub(super) struct Hosts {
    dir: tempfile::TempDir,
    pub(super) storages: Vec<Option<Storage>>,
    carriers: Vec<Option<std::thread::JoinHandle<()>>>,
    /// Bytes of log that a leader retains for hosts that are behind.
    pub(super) retain: u64,
    forwards: bool,
    pub(super) flush: consensus::options::Flush,
    /// The hosts whose syncs stall.
    pub(super) stalled: super::stall::Stalled,
    /// Least election timeout.
    pub(super) election_ms: u64,
    pub(super) net: Arc<Net>,
}

/// The socket of each host, and the isolated hosts.
#[derive(Default)]
pub(super) struct Net {
    ends: Mutex<std::collections::HashMap<u64, (UnixStream, Bells)>>,
    pub(super) cut_off: Mutex<std::collections::HashSet<u64>>,
    /// Hosts that need a snapshot.
    pub(super) behind: Mutex<std::collections::HashSet<u64>>,
    over: AtomicBool,
}

impl Net {
    pub(super) fn hand(&self, from: NodeId, to: NodeId, message: &Message) {
        let cut_off = self.cut_off.lock().unwrap();
        if cut_off.contains(&from.0) || cut_off.contains(&to.0) {
            return;
        }
        drop(cut_off);
        self.force(to, message);
    }

    /// Sends `message` although the host is isolated.
    pub(super) fn force(&self, to: NodeId, message: &Message) {
        let mut ends = self.ends.lock().unwrap();
        if let Some((stream, bells)) = ends.get_mut(&to.0)
            && stream.write_all(&message.encode().unwrap()).is_ok()
        {
            bells.post();
        }
    }
}

impl Hosts {
    pub(super) fn new(count: u64) -> Hosts {
        let dir = tempfile::tempdir().unwrap();
        let mut hosts = Hosts {
            dir,
            storages: Vec::new(),
            carriers: Vec::new(),
            retain: consensus::Options::default().retain_bytes,
            forwards: true,
            flush: consensus::options::Flush::Always,
            stalled: super::stall::Stalled::default(),
            election_ms: 250,
            net: Arc::default(),
        };
        let members: Vec<_> =
            (1..=count).map(|n| Member { node: NodeId(n), address: format!("127.0.0.{n}:1"), is_voter: true }).collect();
        for n in 1..=count {
            let new_cluster = NewCluster {
                cluster: "test".to_owned(),
                node: NodeId(n),
                members: members.clone(),
                segment_size: SEGMENT,
                joins: false,
                generation: 0,
            };
            assert_eq!(initialise(&RealDisk, &hosts.store(n), &new_cluster, Ts(1)).unwrap(), store_id("test"));
            hosts.storages.push(None);
            hosts.carriers.push(None);
            hosts.start(n);
        }
        hosts
    }

    pub(super) fn store(&self, n: u64) -> PathBuf {
        self.dir.path().join(format!("host-{n}"))
    }

    pub(super) fn options(&self, n: u64) -> Options {
        let mut options = options(&self.store(n));
        // Hosts of one store on one machine: each has a run directory of its own.
        options.run_root = self.dir.path().join(format!("run-{n}"));
        options.space_min = 1 << 20;
        options.segment_size = SEGMENT;
        options.cluster =
            consensus::Options { heartbeat_ms: 50, election_ms: self.election_ms, election_spread_ms: 150, ..Default::default() };
        options.cluster.retain_bytes = self.retain;
        options.cluster.forward = self.forwards;
        options.cluster.flush = self.flush;
        options
    }

    pub(super) fn start(&mut self, n: u64) {
        let options = self.options(n);
        std::fs::create_dir_all(&options.run_root).unwrap();
        let disk = super::stall::StallingDisk::new(n, self.stalled.clone());
        let world = World { disk: Arc::new(disk), clock: Arc::new(HostClock), store_id: 0, boot: 1 };
        let storage = Storage::start(options, world).unwrap();
        self.storages[n as usize - 1] = Some(storage);
        self.carry(n);
    }

    /// Starts to carry the messages of host `n`.
    fn carry(&mut self, n: u64) {
        let run_dir = RunDir::find(&self.store(n)).unwrap();
        let bells = Bells::open_or_create(&run_dir.bells()).unwrap();
        let mut stream = UnixStream::connect(run_dir.cluster_socket()).unwrap();
        stream.write_all(&Message::Hello { version: VERSION, pid: 1 }.encode().unwrap()).unwrap();
        bells.post();
        self.net.ends.lock().unwrap().insert(n, (stream.try_clone().unwrap(), bells));
        // It has met each other host, and they have recorded each other.
        let running: Vec<u64> = self.net.ends.lock().unwrap().keys().copied().filter(|m| *m != n).collect();
        for m in running {
            for (from, to) in [(n, m), (m, n)] {
                let reached = Message::Reached { node: NodeId(from), generation: 0, last: 0, needs_snapshot: false };
                self.net.hand(NodeId(from), NodeId(to), &reached);
            }
        }
        let (net, wal_dir) = (self.net.clone(), self.store(n).join(wal::DIR));
        self.carriers[n as usize - 1] = Some(std::thread::spawn(move || {
            let mut received = Vec::new();
            let mut chunk = [0; 1 << 16];
            while let Ok(len) = stream.read(&mut chunk) {
                if len == 0 || net.over.load(Ordering::Relaxed) {
                    return;
                }
                received.extend_from_slice(&chunk[..len]);
                while let Some((message, used)) = Message::decode(&received).unwrap() {
                    received.drain(..used);
                    match message {
                        Message::Raft(raft) => {
                            let (from, to) = (raft.from, raft.to);
                            net.hand(from, to, &Message::Raft(with_frames(&wal_dir, raft)));
                        }
                        Message::Relay { from, to, .. } => net.hand(from, to, &message),
                        Message::State(state) => {
                            let last = state.last;
                            (1..=9).for_each(|to| {
                                net.hand(
                                    NodeId(n),
                                    NodeId(to),
                                    &Message::Reached { node: NodeId(n), generation: 0, last, needs_snapshot: false },
                                )
                            });
                        }
                        Message::SnapshotNeeded { node, .. } => drop(net.behind.lock().unwrap().insert(node.0)),
                        Message::Welcome(_) | Message::Members(_) | Message::FetchSnapshot { .. } => {}
                        other => panic!("storage sends {other:?}"),
                    }
                }
            }
        }));
    }

    fn running(&self) -> impl Iterator<Item = (u64, &Storage)> {
        (1..).zip(&self.storages).filter_map(|(n, s)| s.as_ref().map(|s| (n, s)))
    }

    pub(super) fn control(&self, n: u64) -> &Control {
        self.storages[n as usize - 1].as_ref().unwrap().control()
    }

    /// The leader, once there is one other than `not`.
    pub(super) fn leader(&self, not: u64) -> u64 {
        eventually("a leader", || {
            self.running().find(|(n, s)| *n != not && s.control().role().0 == Role::Leader as u64).map(|(n, _)| n)
        })
    }

    /// Stops host `n` at once; when it is isolated, nothing that it still does counts.
    pub(super) fn stop(&mut self, n: u64) -> Ended {
        let storage = self.storages[n as usize - 1].take().unwrap();
        let ended = storage.stop().unwrap();
        self.net.ends.lock().unwrap().remove(&n);
        self.carriers[n as usize - 1].take().unwrap().join().unwrap();
        ended
    }

    pub(super) fn publisher(&self, n: u64, id: u16, level: Durability) -> Publisher {
        let mut options = publisher::Options::new(self.store(n), PublisherId(id));
        options.durability = level;
        let publisher = Publisher::open(options).unwrap();
        assert_eq!(publisher.instrument(&"X:1".parse().unwrap()).unwrap(), InstrumentId(1));
        publisher
    }

    pub(super) fn ask(&self, n: u64, command: Command) -> Result<Report, Refusal> {
        let run_dir = RunDir::find(&self.store(n)).unwrap();
        let mut stream = UnixStream::connect(run_dir.cluster_socket()).unwrap();
        stream.write_all(&Message::Command { id: 7, command }.encode().unwrap()).unwrap();
        Bells::open_or_create(&run_dir.bells()).unwrap().post();
        let mut received = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let len = stream.read(&mut chunk).unwrap();
            assert!(len > 0, "storage closes the connection");
            received.extend_from_slice(&chunk[..len]);
            if let Some((Message::Answer { id: 7, result }, _)) = Message::decode(&received).unwrap() {
                return result;
            }
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.net.over.store(true, Ordering::Relaxed);
        for storage in self.storages.drain(..).flatten() {
            let stopped = storage.stop();
            assert!(std::thread::panicking() || stopped.is_ok(), "{stopped:?}");
        }
    }
}

pub(super) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{what} never comes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Adds the bytes of its frames to `raft`, from the log.
fn with_frames(wal_dir: &Path, mut raft: Raft) -> Raft {
    for head in &raft.heads {
        let first = Position(head.position / SEGMENT * SEGMENT);
        let file = std::fs::File::open(wal_dir.join(segment_name(first))).unwrap();
        let mut bytes = vec![0; head.len as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, head.position - first.0).unwrap();
        raft.frames.extend(bytes);
    }
    raft
}

/// The trade with the id `id`.
pub(super) fn trade(id: u64) -> Trade {
    Trade { trade_id: id, instrument: InstrumentId(1), ..Trade::default() }
}

/// Publishes trades `from..to` and waits until they are committed.
pub(super) fn publish(publisher: &mut Publisher, from: u64, to: u64) {
    for seq in from..to {
        while publisher.publish(&trade(seq)).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    publisher.flush(Durability::Quorum, Duration::from_secs(20)).unwrap();
}

/// The trades in the log of the idle host with the store `dir`.
fn trades_in(dir: &Path) -> Vec<u64> {
    let meta = wal::meta::read(&RealDisk, dir).unwrap().unwrap();
    let from = wal::Chain::begin(meta.store_id);
    let mut ids = Vec::new();
    let visit = |frame: &wal::Frame<'_>| {
        if let wal::Body::Data(data) = &frame.body {
            ids.extend(tapestore::record::split(data.records).filter_map(|r| Some(r.unwrap().get::<Trade>()?.trade_id)));
        }
        Ok(())
    };
    wal::scan(&RealDisk, &dir.join(wal::DIR), &meta, from, tapestore::disk::Open::Read, visit).unwrap();
    ids
}

/// Bytes of the log of an idle host, up to its end.
fn log_of(dir: &Path) -> Vec<u8> {
    let meta = wal::meta::read(&RealDisk, dir).unwrap().unwrap();
    let mut bytes = Vec::new();
    let wal_dir = dir.join(wal::DIR);
    let visit = |frame: &wal::Frame<'_>| {
        let header = frame.header;
        let first = Position(header.position.0 / SEGMENT * SEGMENT);
        let len = if header.kind() == wal::FrameType::Pad { 64 } else { header.total_len() };
        let file = std::fs::File::open(wal_dir.join(segment_name(first))).unwrap();
        let mut frame = vec![0; len as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut frame, header.position.0 - first.0).unwrap();
        bytes.extend(frame);
        Ok(())
    };
    wal::scan(&RealDisk, &wal_dir, &meta, wal::Chain::begin(meta.store_id), tapestore::disk::Open::Read, visit).unwrap();
    bytes
}

#[test]
fn publishers_of_any_of_three_hosts_are_served_and_those_of_followers_outlive_the_leader() {
    let mut hosts = Hosts::new(3);
    let first = hosts.leader(0);
    let elsewhere = first % 3 + 1;
    let mut at_leader = hosts.publisher(first, 1, Durability::Quorum);
    let mut at_follower = hosts.publisher(elsewhere, 2, Durability::Quorum);
    publish(&mut at_leader, 0, 5_000);
    publish(&mut at_follower, 10_000, 15_000);
    for n in 1..=3 {
        eventually("all records on each host", || (hosts.control(n).committed() >= Lsn(10_000)).then_some(()));
    }
    // The leader is isolated and its publisher closed; the other publisher is not disturbed.
    hosts.net.cut_off.lock().unwrap().insert(first);
    drop(at_leader);
    let second = hosts.leader(first);
    publish(&mut at_follower, 15_000, 20_000);
    assert_eq!(at_follower.progress().reattached, 0, "it has never reattached");
    hosts.stop(first);
    hosts.net.cut_off.lock().unwrap().clear();
    hosts.start(first);
    eventually("the old leader to catch up", || (hosts.control(first).committed() >= Lsn(15_000)).then_some(()));
    publish(&mut at_follower, 20_000, 21_000);
    let report = hosts.ask(second, Command::Status).unwrap();
    assert_eq!((report.node, report.state.role, report.members.len()), (NodeId(second), Role::Leader, 3));
    eventually("the others to have the leader's frames", || {
        let report = hosts.ask(second, Command::Status).unwrap();
        let level = |p: &Progress| p.matched == report.state.last && p.is_active && p.lag_records == 0;
        (report.progress.len() == 2 && report.progress.iter().all(level)).then_some(())
    });
    drop(at_follower);
    let stores: Vec<_> = (1..=3).map(|n| hosts.store(n)).collect();
    // Before they stop, which flushes the records and recycles the log.
    let expected: Vec<u64> = (10_000..21_000).collect();
    for store in &stores {
        let ids = trades_in(store);
        assert_eq!(ids.iter().copied().filter(|i| *i >= 10_000).collect::<Vec<_>>(), expected);
        assert_eq!(ids.iter().copied().filter(|i| *i < 10_000).collect::<Vec<_>>(), (0..5_000).collect::<Vec<_>>());
    }
    let shortest = stores.iter().map(|s| log_of(s).len()).min().unwrap();
    let [a, b, c] = [0, 1, 2].map(|i| log_of(&stores[i])[..shortest].to_vec());
    assert!(a == b && b == c, "frames have the same bytes on each host");
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
}

#[test]
fn an_operator_hands_the_lead_over_and_changes_the_members() {
    let hosts = Hosts::new(3);
    let first = hosts.leader(0);
    let next = first % 3 + 1;
    let refusal = hosts.ask(next, Command::Transfer(NodeId(next))).unwrap_err();
    assert!(refusal.to_string().contains("does not lead"), "{refusal}");
    hosts.ask(first, Command::Transfer(NodeId(next))).unwrap();
    assert_eq!(hosts.leader(first), next);
    // A leader of a new term answers that a change is in progress, until the frame that opens its term is committed.
    eventually("the removal", || hosts.ask(next, Command::Remove { node: NodeId(first), force: false }).ok());
    eventually("two members", || {
        hosts.ask(next, Command::Status).ok().filter(|r| r.members.len() == 2 && r.state.role == Role::Leader)
    });
    hosts.ask(next, Command::Add { node: NodeId(first), address: "127.0.0.9:1".to_owned() }).unwrap();
    eventually("three members", || hosts.ask(next, Command::Status).ok().filter(|r| r.members.len() == 3));
    assert!(hosts.ask(next, Command::Add { node: NodeId(first), address: "x:1".to_owned() }).is_err());
    eventually("the promotion of the learner", || {
        hosts.ask(next, Command::Promote { node: NodeId(first), force: false }).ok();
        hosts.ask(next, Command::Status).ok().filter(|r| r.members.iter().all(|m| m.is_voter))
    });
    let mut publisher = hosts.publisher(next, 1, Durability::Quorum);
    publish(&mut publisher, 0, 10);
    assert!(hosts.ask(next, Command::Remove { node: NodeId(77), force: false }).unwrap_err().to_string().contains("no member"));
}

#[test]
fn records_of_an_isolated_leader_are_withdrawn_kept_in_a_file_and_reported_as_lost() {
    let mut hosts = Hosts::new(3);
    let old = hosts.leader(0);
    let mut publisher = hosts.publisher(old, 1, Durability::Os);
    publish(&mut publisher, 0, 1_000);
    let timeline = hosts.control(old).timeline();
    hosts.net.cut_off.lock().unwrap().insert(old);
    for seq in 50_000..50_500 {
        publisher.publish(&trade(seq)).unwrap();
    }
    publisher.flush(Durability::Os, Duration::from_secs(5)).unwrap();
    assert_eq!(hosts.control(old).committed(), Lsn(1_000), "nothing is committed by one of three");
    let new = hosts.leader(old);
    let mut other = hosts.publisher(new, 2, Durability::Quorum);
    publish(&mut other, 1_000, 2_000);
    hosts.net.cut_off.lock().unwrap().clear();
    eventually("the old leader to find that its log differs", || {
        hosts.storages[old as usize - 1].as_ref().unwrap().has_failed().then_some(())
    });
    let Ended::Truncate(last_kept) = hosts.stop(old) else { panic!("its log is not to be truncated") };
    let mut options = options(&hosts.store(old));
    options.segment_size = SEGMENT;
    let world = World { disk: Arc::new(RealDisk), clock: Arc::new(HostClock), store_id: 0, boot: 1 };
    let truncated = divergence::truncate(&options, &world, last_kept).unwrap();
    assert_eq!((truncated.records, truncated.first_lsn), (500, Lsn(1_001)));
    assert!(truncated.kept_in.unwrap().starts_with(hosts.store(old).join(wal::truncate::DIVERGENT)));
    hosts.start(old);
    eventually("the old leader to have the committed records", || (hosts.control(old).committed() >= Lsn(2_000)).then_some(()));
    let withdrawn_from = hosts.control(old).first_withdrawn();
    assert!(hosts.control(old).timeline() > timeline && withdrawn_from == Lsn(1_001), "readers are notified");
    // The publisher had released records at level os: it must report them as lost.
    let lost = eventually("the publisher to report the loss", || Some(publisher.take_lost()).filter(|l| !l.is_empty()));
    assert_eq!((lost.len(), lost[0].first, lost[0].last), (1, PubSeq(1_001), PubSeq(1_500)));
    publish(&mut publisher, 2_000, 2_100);
    drop((publisher, other));
    let stores: Vec<_> = (1..=3).map(|n| hosts.store(n)).collect();
    (1..=3).for_each(|n| assert_eq!(hosts.stop(n), Ended::Stopped));
    for store in &stores {
        let ids = trades_in(store);
        assert!(ids.iter().all(|id| *id < 2_100), "no log holds a withdrawn record");
        assert!(ids.len() >= 2_000, "{}", ids.len());
    }
}

#[test]
fn a_follower_that_does_not_forward_names_the_leader() {
    let mut hosts = Hosts::new(3);
    let leader = hosts.leader(0);
    let other = leader % 3 + 1;
    hosts.forwards = false;
    hosts.stop(other);
    hosts.start(other);
    let options = publisher::Options::new(hosts.store(other), PublisherId(1));
    let error = eventually("the follower to name the leader", || match Publisher::open(options.clone()) {
        Err(error @ Error::NotLeader { .. }) => Some(error),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is attached"),
    });
    assert!(matches!(error, Error::NotLeader { leader: Some(named), .. } if named == NodeId(leader)), "{error}");
    assert!(error.to_string().contains(&format!("node {leader} is")), "{error}");
    // On the leader's host publishers are served as usual.
    let mut at_leader = hosts.publisher(leader, 1, Durability::Quorum);
    publish(&mut at_leader, 0, 100);
}

#[test]
fn a_host_behind_the_checkpoint_catches_up_from_a_restarted_leader() {
    let mut hosts = Hosts::new(3);
    let leader = hosts.leader(0);
    let behind = leader % 3 + 1;
    let mut publisher = hosts.publisher(leader, 1, Durability::Quorum);
    publish(&mut publisher, 0, 100);
    eventually("the follower to have records", || (hosts.control(behind).committed() >= Lsn(100)).then_some(()));
    hosts.net.cut_off.lock().unwrap().insert(behind);
    let mut next = 100;
    let checkpoint = |hosts: &Hosts, n| hosts.control(n).statistic(Statistic::CheckpointPosition);
    while checkpoint(&hosts, leader) < 4 * SEGMENT {
        publish(&mut publisher, next, next + 2_000);
        next += 2_000;
    }
    drop(publisher);
    for n in (1..=3).filter(|n| *n != behind) {
        hosts.stop(n);
        hosts.start(n);
    }
    hosts.net.cut_off.lock().unwrap().clear();
    eventually("the host that was behind to catch up", || (hosts.control(behind).committed() >= Lsn(next)).then_some(()));
}
