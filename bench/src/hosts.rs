//! Owns: a cluster of this program's own, every host two processes of it, with a link between each two hosts that can be
//! cut, frozen and slowed down.
//!
//! ```text
//! host a's replication ──▶ link a→b (a port) ──▶ host b's replication
//! ```
//!
//! What must hold: each host has a list of members of its own, in which the others are behind links; a link carries what
//! one host says to the other, and the receipts for that.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use tapestore::agent::Wait;
use tapestore_engine::consensus::message::{Command as Asked, Member, Message, Report, Role};
use tapestore::disk::RealDisk;
use tapestore_engine::cluster_admin::{Founding, found};
use tapestore::lsn::{Level, Lsn, NodeId, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;
use tapestore::shm::bell::Bells;
use tapestore::shm::run_dir::RunDir;
use tapestore::time::{Clock, HostClock};

/// First argument of a process that is a host's.
const ROLE: &str = "host-process";
/// A guard against a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Plays the part of a host's process, if this process was started as one. To be asked before a program reads its own
/// command line.
pub fn play() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    let program = arguments.next()?;
    if arguments.next().as_deref() != Some(ROLE) {
        return None;
    }
    let line = std::iter::once(program).chain(arguments);
    Some(tape_services::exit::code(tape_services::cli::Tape::parse_from(line).run()))
}

/// How a cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Hosts.
    pub count: u64,
    /// Heartbeats, least and further time until an election, ms.
    pub times: [u64; 3],
    /// Bytes of a MemTable and of a log segment.
    pub sizes: [u64; 2],
    /// Whether hosts reach each other through links that can be cut: not where times are measured, because each link is a
    /// process's two threads more on the way.
    pub has_links: bool,
    /// How storage waits for work.
    pub wait: Wait,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { count: 3, times: [100, 300, 150], sizes: [64 << 20, 16 << 20], has_links: true, wait: Wait::Adaptive }
    }
}

/// What one host says to another goes through here.
#[derive(Debug, Default)]
pub struct Link {
    /// Nothing gets through, connections stay.
    pub frozen: AtomicBool,
    /// Connections are closed, and new ones at once.
    pub cut: AtomicBool,
    /// How long everything takes, us.
    pub delay_us: AtomicU64,
    /// How much gets through in a second; 0: as much as there is.
    pub bytes_per_second: AtomicU64,
}

/// One host.
pub struct Host {
    /// Its number.
    pub node: u64,
    /// Its store.
    pub store: PathBuf,
    /// Where its replication process listens.
    pub address: String,
    storage: Option<Child>,
    replication: Option<Child>,
}

/// The cluster.
pub struct Hosts {
    dir: tempfile::TempDir,
    shape: Shape,
    /// The hosts.
    pub hosts: Vec<Host>,
    links: std::collections::BTreeMap<(u64, u64), Arc<Link>>,
}

fn spawn(arguments: &[&str], store: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(ROLE).args(arguments).arg("--store").arg(store).env("RUST_LOG", "error");
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Hosts {
    /// A cluster that serves.
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
        let addresses: Vec<String> = (0..shape.count).map(|_| free_address()).collect();
        for (node, address) in (1..).zip(&addresses) {
            let store = this.dir.path().join(format!("node-{node}"));
            this.hosts.push(Host { node, store, address: address.clone(), storage: None, replication: None });
        }
        for node in 1..=shape.count {
            this.make(node, false);
            this.start_host(node);
        }
        this
    }

    /// Makes the store of `node`, with links to all others.
    fn make(&mut self, node: u64, joins: bool) {
        let own: Vec<(u64, String)> = self.hosts.iter().map(|h| (h.node, h.address.clone())).collect();
        let mut members = Vec::new();
        for (other, address) in own {
            let address = if other == node || !self.shape.has_links { address } else { self.link(node, other, address) };
            members.push(Member { node: NodeId(other), address, is_voter: true });
        }
        let segment_size = self.shape.sizes[1];
        let founding = Founding { cluster: "trial".to_owned(), node: NodeId(node), members, segment_size, joins, epoch: 0 };
        found(&RealDisk, &self.host(node).store, &founding, HostClock.wall()).unwrap();
    }

    /// A new link from `from` to `to`, which listens at `address`; where it is to be dialled.
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
        host.storage = Some(spawn(&arguments, &host.store));
        host.replication = Some(spawn(&["replication", "--with-parent", "--listen", &host.address.clone()], &host.store));
    }

    /// SIGKILL of both processes of `node`.
    pub fn kill(&mut self, node: u64) {
        let host = self.host_mut(node);
        for child in [&mut host.storage, &mut host.replication] {
            if let Some(mut child) = child.take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    /// Whether the storage process of `node` has ended by itself.
    pub fn has_ended(&mut self, node: u64) -> bool {
        self.host_mut(node).storage.as_mut().is_none_or(|c| c.try_wait().unwrap().is_some())
    }

    /// Ends both processes of `node` in order.
    pub fn stop(&mut self, node: u64) {
        let host = self.host_mut(node);
        for child in [&mut host.replication, &mut host.storage] {
            if let Some(mut child) = child.take() {
                let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
                child.wait().unwrap();
            }
        }
    }

    /// Numbers of all processes.
    pub fn pids(&self) -> Vec<u32> {
        self.hosts.iter().flat_map(|h| [&h.storage, &h.replication]).flatten().map(Child::id).collect()
    }

    /// Whether the host's storage process runs, as far as is known.
    pub fn is_up(&self, node: u64) -> bool {
        self.host(node).storage.is_some()
    }

    /// The links on which `from` speaks to `to`.
    pub fn speaks(&self, from: u64, to: u64) -> Arc<Link> {
        self.links.get(&(from, to)).cloned().unwrap_or_default()
    }

    /// All links are well.
    pub fn heal(&self) {
        for link in self.links.values() {
            link.frozen.store(false, Ordering::Relaxed);
            link.cut.store(false, Ordering::Relaxed);
            link.bytes_per_second.store(0, Ordering::Relaxed);
        }
    }

    /// Everything takes `us` longer from host to host.
    pub fn set_delay(&self, us: u64) {
        self.links.values().for_each(|l| l.delay_us.store(us, Ordering::Relaxed));
    }

    /// Who leads by its own word, but for `not`.
    pub fn leader_now(&self, not: Option<u64>) -> Option<u64> {
        let leads = |h: &&Host| {
            let reader = (h.storage.is_some() && Some(h.node) != not).then(|| Reader::open(&h.store).ok()).flatten();
            reader.is_some_and(|r| r.is_storage_alive() && r.control().role().0 == Role::Leader as u64)
        };
        self.hosts.iter().find(leads).map(|h| h.node)
    }

    /// Who leads, once somebody does.
    ///
    /// # Errors
    /// That nobody does.
    pub fn leader(&self) -> Result<u64, String> {
        eventually("a leader", || self.leader_now(None))
    }

    /// Records that are committed by the word of `node`, while it serves; 0 of one that does not.
    pub fn committed(&self, node: u64) -> Lsn {
        let reader = Reader::open(&self.host(node).store).ok().filter(Reader::is_storage_alive);
        reader.map_or(Lsn(0), |r| r.control().committed())
    }

    /// A publisher on `node`.
    ///
    /// # Errors
    /// What storage says.
    pub fn publisher(&self, node: u64, id: u16, level: Level) -> Result<Publisher, String> {
        let options = Options::new(&self.host(node).store, PublisherId(id));
        let publisher = Publisher::open(Options { level, open_timeout: PATIENCE, ..options }).map_err(|e| e.to_string())?;
        // What is published is of the first instrument.
        let name = "BENCH:1".parse().map_err(|e: tapestore::error::Error| e.to_string())?;
        publisher.instrument(&name).map_err(|e| e.to_string())?;
        Ok(publisher)
    }

    /// Asks the storage process of `node`.
    ///
    /// # Errors
    /// Its refusal, or that it is not there.
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
                return Err("storage hangs up".to_owned());
            }
            received.extend_from_slice(chunk.get(..len).unwrap_or(&[]));
            if let Ok(Some((Message::Answer { result, .. }, _))) = Message::decode(&received) {
                return result;
            }
        }
    }

    /// Puts a copy of the store of `from`, which leads, in the place of what `node` has, and starts that.
    ///
    /// # Errors
    /// That it cannot be.
    pub fn fill(&mut self, node: u64, from: u64) -> Result<(), String> {
        self.kill(node);
        let leader = format!("{from}={}", self.host(from).address);
        let status = spawn(&["cluster", "fill", "--from", &leader], &self.host(node).store.clone()).wait().unwrap();
        if !status.success() {
            return Err(format!("filling node {node} ended with {status}"));
        }
        self.start_host(node);
        Ok(())
    }

    /// Takes `node` out of the cluster for good, and a host with another number in, whose store comes from a backup of
    /// `from`.
    ///
    /// # Errors
    /// Which step fails.
    pub fn replace(&mut self, node: u64, from: u64) -> Result<u64, String> {
        let next = self.hosts.iter().map(|h| h.node).max().unwrap_or(0) + 1;
        self.kill(node);
        eventually("the old host to be no member", || {
            let leader = self.leader_now(None)?;
            self.ask(leader, Asked::Remove { node: NodeId(node), force: false }).ok();
            self.ask(leader, Asked::Status).ok().filter(|r| r.members.iter().all(|m| m.node.0 != node))
        })?;
        if let Ok(run_dir) = RunDir::find(&self.host(node).store) {
            std::fs::remove_dir_all(run_dir.path()).ok();
        }
        self.hosts.retain(|h| h.node != node);
        let (address, store) = (free_address(), self.dir.path().join(format!("node-{next}")));
        let backup = self.dir.path().join(format!("backup-{next}"));
        let run = |arguments: &[&str], store: &Path| {
            let status = spawn(arguments, store).wait().unwrap();
            if status.success() { Ok(()) } else { Err(format!("{arguments:?} ended with {status}")) }
        };
        run(&["backup", &backup.to_string_lossy()], &self.host(from).store.clone())?;
        run(&["restore", &backup.to_string_lossy()], &store)?;
        self.hosts.push(Host { node: next, store, address: address.clone(), storage: None, replication: None });
        self.make(next, true);
        self.start_host(next);
        // The others dial it without a link between.
        for (asked, done) in
            [(Asked::Add { node: NodeId(next), address }, false), (Asked::Promote { node: NodeId(next), force: false }, true)]
        {
            eventually("the new host to be a member", || {
                let leader = self.leader_now(None)?;
                self.ask(leader, asked.clone()).ok();
                let report = self.ask(leader, Asked::Status).ok()?;
                report.members.iter().find(|m| m.node.0 == next && (m.is_voter || !done)).map(|_| ())
            })?;
        }
        Ok(next)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let nodes: Vec<u64> = self.hosts.iter().map(|h| h.node).collect();
        for node in nodes {
            self.kill(node);
            if let Ok(run_dir) = RunDir::find(&self.host(node).store) {
                run_dir.sweep(None).ok();
                std::fs::remove_dir_all(run_dir.path()).ok();
            }
        }
    }
}

/// How long bytes wait in a slow link at most.
const BUFFERED: Duration = Duration::from_millis(50);

/// Carries bytes from one end to the other as `link` lets them.
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
                    // What waits longer stays in the sockets, whose ends hold their writers back.
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

/// Polls until `ready` gives something.
///
/// # Errors
/// That it does not.
pub fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(format!("{what} does not come"));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
