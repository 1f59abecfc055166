//! Owns: a cluster of processes of this program, two for each host, with a link between each two hosts that tests can cut,
//! freeze and slow down.
//!
//! ```text
//! host a's replication ──▶ link a→b (a port) ──▶ host b's replication
//! ```
//!
//! What must hold: each host has its own member list, with the links' addresses for the others; a link carries the
//! messages from one host to the other, and their receipts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use tape_services::addresses;
pub use tape_services::processes::PATIENCE;
use tape_services::processes::{self, Process, Served};
use tapestore::agent::Wait;
use tapestore::disk::RealDisk;
use tapestore::lsn::{Durability, Lsn, NodeId, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;
use tapestore::shm::bell::Bells;
use tapestore::shm::run_dir::RunDir;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::cluster_admin::{NewCluster, initialise};
use tapestore_engine::consensus::message::{Command as Asked, Member, Message, Report, Role};

/// First argument of a host's process.
const ROLE: &str = "host-process";

/// Runs as a host's process and returns its exit code if this process was started as one. Call it before the program
/// parses its own command line.
pub fn play() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    let program = arguments.next()?;
    if arguments.next().as_deref() != Some(ROLE) {
        return None;
    }
    let line = std::iter::once(program).chain(arguments);
    Some(tape_services::stdout::code(tape_services::cli::Tape::parse_from(line).run()))
}

/// Shape of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of hosts.
    pub count: u64,
    /// Heartbeat interval, election timeout and its random spread, ms.
    pub times: [u64; 3],
    /// Size of a MemTable and of a log segment, bytes.
    pub sizes: [u64; 2],
    /// Whether hosts connect through links that can be cut. Not for measured times: each link adds two threads to the
    /// path.
    pub has_links: bool,
    /// How storage waits for work.
    pub wait: Wait,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { count: 3, times: [100, 300, 150], sizes: [64 << 20, 16 << 20], has_links: true, wait: Wait::Adaptive }
    }
}

/// The messages from one host to another pass through here.
#[derive(Debug, Default)]
pub struct Link {
    /// No bytes pass; connections stay open.
    pub frozen: AtomicBool,
    /// Connections are closed; new ones are closed at once.
    pub cut: AtomicBool,
    /// Delay of every byte, us.
    pub delay_us: AtomicU64,
    /// Bandwidth, bytes a second; 0: unlimited.
    pub bytes_per_second: AtomicU64,
}

/// A host.
pub struct Host {
    /// Node number.
    pub node: u64,
    /// Directory of its store.
    pub store: PathBuf,
    /// Address of its replication process.
    pub address: String,
    served: Served,
    replication: Option<Process>,
}

/// A cluster.
pub struct Hosts {
    /// The hosts; they go before their directory.
    pub hosts: Vec<Host>,
    dir: tempfile::TempDir,
    shape: Shape,
    links: std::collections::BTreeMap<(u64, u64), Arc<Link>>,
}

fn own(arguments: &[&str], store: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let log = std::env::var("TAPE_TEST_LOG").unwrap_or_else(|_| "error".to_owned());
    command.arg(ROLE).args(arguments).arg("--store").arg(store).env("RUST_LOG", log);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn unused_address() -> String {
    addresses::unused(1).unwrap().remove(0).to_string()
}

impl Hosts {
    /// Starts a cluster, and waits until every host votes: a new host does so only when the others have met it.
    pub fn start(shape: Shape) -> Hosts {
        let dir = tempfile::tempdir().unwrap();
        let [heartbeat, election, spread] = shape.times;
        let wait = match shape.wait {
            Wait::Busy => "busy",
            Wait::Adaptive => "adaptive",
            Wait::Blocking => "blocking",
        };
        let text = format!(
            "wait = \"{wait}\"\n[cluster]\nheartbeat-ms = {heartbeat}\nelection-ms = {election}\nelection-spread-ms = {spread}\n"
        );
        std::fs::write(dir.path().join("storage.toml"), text).unwrap();
        let mut this = Hosts { dir, shape, hosts: Vec::new(), links: std::collections::BTreeMap::new() };
        let addresses: Vec<String> = (0..shape.count).map(|_| unused_address()).collect();
        for (node, address) in (1..).zip(&addresses) {
            let store = this.dir.path().join(format!("node-{node}"));
            let served = Served::new(store.clone());
            this.hosts.push(Host { node, store, address: address.clone(), served, replication: None });
        }
        for node in 1..=shape.count {
            this.make(node, false);
            this.start_host(node);
        }
        let votes = |node| this.ask(node, Asked::Status).is_ok_and(|report| report.waits.is_empty());
        eventually("the vote of every host", || (1..=shape.count).all(votes).then_some(())).unwrap();
        this
    }

    /// Initialises the store of `node`, with links to all others.
    fn make(&mut self, node: u64, joins: bool) {
        let own: Vec<(u64, String)> = self.hosts.iter().map(|h| (h.node, h.address.clone())).collect();
        let mut members = Vec::new();
        for (other, address) in own {
            let address = if other == node || !self.shape.has_links { address } else { self.link(node, other, address) };
            members.push(Member { node: NodeId(other), address, is_voter: true });
        }
        let segment_size = self.shape.sizes[1];
        let new_cluster =
            NewCluster { cluster: "trial".to_owned(), node: NodeId(node), members, segment_size, joins, generation: 0 };
        initialise(&RealDisk, &self.host(node).store, &new_cluster, HostClock.wall()).unwrap();
    }

    /// Creates a link from `from` to `to`, which listens at `address`; returns the address to dial.
    fn link(&mut self, from: u64, to: u64, address: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let link = Arc::new(Link::default());
        self.links.insert((from, to), link.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(onward) = TcpStream::connect(&address) else { continue };
                for (from, to) in [(&stream, &onward), (&onward, &stream)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let link = link.clone();
                    std::thread::spawn(move || carry(&link, from, to));
                }
            }
        });
        at
    }

    /// The host `node`.
    pub fn host(&self, node: u64) -> &Host {
        self.hosts.iter().find(|h| h.node == node).unwrap()
    }

    fn host_mut(&mut self, node: u64) -> &mut Host {
        self.hosts.iter_mut().find(|h| h.node == node).unwrap()
    }

    /// Starts both processes of `node`.
    pub fn start_host(&mut self, node: u64) {
        let config = self.dir.path().join("storage.toml").to_string_lossy().into_owned();
        let [memtable, segment] = self.shape.sizes.map(|s| s.to_string());
        let host = self.host_mut(node);
        let arguments =
            ["storage", "--with-parent", "--config", &config, "--memtable-size", &memtable, "--segment-size", &segment];
        host.served.spawn(&mut own(&arguments, &host.store)).unwrap();
        let mut command = own(&["replication", "--with-parent", "--listen", &host.address], &host.store);
        host.replication = Some(Process::start("replication", &mut command).unwrap());
    }

    /// Kills both processes of `node` with SIGKILL.
    pub fn kill(&mut self, node: u64) {
        let host = self.host_mut(node);
        host.served.kill();
        host.replication = None;
    }

    /// Whether the storage process of `node` has ended by itself.
    pub fn has_ended(&mut self, node: u64) -> bool {
        self.host_mut(node).served.process().is_none_or(|p| p.ended().unwrap().is_some())
    }

    /// Stops both processes of `node` cleanly.
    pub fn stop(&mut self, node: u64) {
        let host = self.host_mut(node);
        host.replication.take().map_or(Ok(()), |mut process| process.stop()).unwrap();
        host.served.stop().unwrap();
    }

    /// Process ids of all processes.
    pub fn pids(&self) -> Vec<u32> {
        let replication = self.hosts.iter().filter_map(|h| h.replication.as_ref().map(Process::id));
        self.hosts.iter().map(|h| h.served.id()).filter(|id| *id > 0).chain(replication).collect()
    }

    /// Whether the storage process of `node` was started and not stopped.
    pub fn is_up(&self, node: u64) -> bool {
        self.host(node).served.is_started()
    }

    /// The link for messages from `from` to `to`.
    pub fn link_to(&self, from: u64, to: u64) -> Arc<Link> {
        self.links.get(&(from, to)).cloned().unwrap_or_default()
    }

    /// Restores all links, except for the delay.
    pub fn heal(&self) {
        for link in self.links.values() {
            link.frozen.store(false, Ordering::Relaxed);
            link.cut.store(false, Ordering::Relaxed);
            link.bytes_per_second.store(0, Ordering::Relaxed);
        }
    }

    /// Sets the delay of all links to `us`.
    pub fn set_delay(&self, us: u64) {
        self.links.values().for_each(|l| l.delay_us.store(us, Ordering::Relaxed));
    }

    /// The host whose control page reports the leader role, other than `not`.
    pub fn leader_now(&self, not: Option<u64>) -> Option<u64> {
        let leads = |h: &&Host| {
            let reader = (h.served.is_started() && Some(h.node) != not).then(|| Reader::open(&h.store).ok()).flatten();
            reader.is_some_and(|r| r.is_storage_alive() && r.control().role().0 == Role::Leader as u64)
        };
        self.hosts.iter().find(leads).map(|h| h.node)
    }

    /// Waits for a leader and returns it.
    ///
    /// # Errors
    /// No leader within [`PATIENCE`].
    pub fn leader(&self) -> Result<u64, String> {
        eventually("a leader", || self.leader_now(None))
    }

    /// The committed LSN that `node` reports while it serves; otherwise 0.
    pub fn committed(&self, node: u64) -> Lsn {
        let reader = Reader::open(&self.host(node).store).ok().filter(Reader::is_storage_alive);
        reader.map_or(Lsn(0), |r| r.control().committed())
    }

    /// Opens a publisher on `node`.
    ///
    /// # Errors
    /// The error of storage.
    pub fn publisher(&self, node: u64, id: u16, level: Durability) -> Result<Publisher, String> {
        let options = Options::new(&self.host(node).store, PublisherId(id));
        let publisher =
            Publisher::open(Options { durability: level, open_timeout: PATIENCE, ..options }).map_err(|e| e.to_string())?;
        // Published records are of the first instrument.
        let name = "BENCH:1".parse().map_err(|e: tapestore::error::Error| e.to_string())?;
        publisher.instrument(&name).map_err(|e| e.to_string())?;
        Ok(publisher)
    }

    /// Sends `command` to the storage process of `node`.
    ///
    /// # Errors
    /// The process is not reachable, or refuses.
    pub fn ask(&self, node: u64, command: Asked) -> Result<Report, String> {
        let store = &self.host(node).store;
        let run_dir = RunDir::find(store).map_err(|e| e.to_string())?;
        let mut stream = std::os::unix::net::UnixStream::connect(run_dir.cluster_socket()).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
        let bytes = Message::Command { id: 1, command }.encode().map_err(|e| e.to_string())?;
        stream.write_all(&bytes).map_err(|e| e.to_string())?;
        Bells::open_or_create(&run_dir.bells()).map_err(|e| e.to_string())?.post();
        let mut received = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let len = stream.read(&mut chunk).map_err(|e| e.to_string())?;
            if len == 0 {
                return Err("storage closed the connection".to_owned());
            }
            received.extend_from_slice(chunk.get(..len).unwrap_or(&[]));
            if let Ok(Some((Message::Answer { result, .. }, _))) = Message::decode(&received) {
                return result.map_err(|refusal| refusal.to_string());
            }
        }
    }

    /// Installs a snapshot of the leader `from` on `node`, and starts it.
    ///
    /// # Errors
    /// The install failed.
    pub fn install_snapshot(&mut self, node: u64, from: u64) -> Result<(), String> {
        self.kill(node);
        let leader = format!("{from}={}", self.host(from).address);
        let status = own(&["cluster", "install-snapshot", "--from", &leader], &self.host(node).store).status().unwrap();
        if !status.success() {
            return Err(format!("the snapshot install on node {node} ended with {status}"));
        }
        self.start_host(node);
        Ok(())
    }

    /// Removes `node` from the cluster for good and adds a host with another number, restored from a backup of `from`.
    ///
    /// # Errors
    /// Names the failed step.
    pub fn replace(&mut self, node: u64, from: u64) -> Result<u64, String> {
        let next = self.hosts.iter().map(|h| h.node).max().unwrap_or(0) + 1;
        self.kill(node);
        eventually("the removal of the old host", || {
            let leader = self.leader_now(None)?;
            self.ask(leader, Asked::Remove { node: NodeId(node), force: false }).ok();
            self.ask(leader, Asked::Status).ok().filter(|r| r.members.iter().all(|m| m.node.0 != node))
        })?;
        self.hosts.retain(|h| h.node != node);
        let (address, store) = (unused_address(), self.dir.path().join(format!("node-{next}")));
        let backup = self.dir.path().join(format!("backup-{next}"));
        let run = |arguments: &[&str], store: &Path| {
            let status = own(arguments, store).status().unwrap();
            if status.success() { Ok(()) } else { Err(format!("{arguments:?} ended with {status}")) }
        };
        run(&["backup", &backup.to_string_lossy()], &self.host(from).store.clone())?;
        run(&["restore", &backup.to_string_lossy()], &store)?;
        let served = Served::new(store.clone());
        self.hosts.push(Host { node: next, store, address: address.clone(), served, replication: None });
        self.make(next, true);
        self.start_host(next);
        // The others dial it directly, without a link.
        for (asked, done) in
            [(Asked::Add { node: NodeId(next), address }, false), (Asked::Promote { node: NodeId(next), force: false }, true)]
        {
            eventually("the new host's membership", || {
                let leader = self.leader_now(None)?;
                self.ask(leader, asked.clone()).ok();
                let report = self.ask(leader, Asked::Status).ok()?;
                report.members.iter().find(|m| m.node.0 == next && (m.is_voter || !done)).map(|_| ())
            })?;
        }
        Ok(next)
    }
}

/// How long bytes wait in a slow link, at most.
const BUFFERED: Duration = Duration::from_millis(50);

/// Copies bytes from one end to the other, with the faults of `link`.
fn carry(link: &Link, mut from: TcpStream, mut to: TcpStream) {
    from.set_nodelay(true).ok();
    to.set_nodelay(true).ok();
    from.set_read_timeout(Some(Duration::from_millis(20))).ok();
    let (send, receive) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    let end = to.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        while let Ok((due, bytes)) = receive.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    let mut chunk = vec![0; 64 << 10];
    let mut free_at = Instant::now();
    while !link.cut.load(Ordering::Relaxed) && !writer.is_finished() {
        if link.frozen.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                let rate = link.bytes_per_second.load(Ordering::Relaxed);
                if rate > 0 {
                    free_at = free_at.max(Instant::now()) + Duration::from_secs_f64(n as f64 / rate as f64);
                    // More bytes stay in the sockets, whose flow control slows the senders.
                    std::thread::sleep(free_at.saturating_duration_since(Instant::now() + BUFFERED));
                }
                let due = Instant::now().max(free_at) + Duration::from_micros(link.delay_us.load(Ordering::Relaxed));
                if send.send((due, chunk.get(..n).unwrap_or(&[]).to_vec())).is_err() {
                    break;
                }
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    for stream in [&from, &end] {
        stream.shutdown(std::net::Shutdown::Both).ok();
    }
}

/// Waits until `ready` returns a value.
///
/// # Errors
/// No value within [`PATIENCE`].
pub fn eventually<T>(what: &str, ready: impl FnMut() -> Option<T>) -> Result<T, String> {
    processes::eventually(what, ready).map_err(|e| e.to_string())
}
