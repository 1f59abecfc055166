//! A store on three hosts on loopback, each with its own storage and replication process.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tape_services::addresses;
use tape_services::processes::{Process, free_shared_memory};
use tape_services::replication::local;
use tape_services::replication::peer::VERSION;
use tape_services::replication::proto::admin_client::AdminClient;
use tape_services::replication::proto::peer_client::PeerClient;
use tape_services::replication::proto::{self, Envelope, HelloRequest, envelope};
use tape_services::replication::wire;
use tapestore::disk::{Open, RealDisk};
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;
use tapestore::record::{Trade, split};
use tapestore::shm::run_dir::RunDir;
use tapestore::time::{Clock, HostClock};
use tapestore::wal::{self, Body, Chain};
use tapestore_engine::consensus::message::{FrameHead, Raft};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tonic::transport::Endpoint;

use crate::fixture::{PATIENCE, eventually, signal};

/// Timeouts for a shared machine.
pub(crate) const TIMES: &str = "[cluster]\nheartbeat-ms = 100\nelection-ms = 1000\nelection-spread-ms = 500\n";

pub(crate) struct Host {
    pub(crate) store: PathBuf,
    pub(crate) storage: Option<Process>,
    pub(crate) replication: Option<Process>,
}

pub(crate) struct Hosts {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) hosts: Vec<Host>,
    pub(crate) addresses: Vec<String>,
    has_tls: bool,
    /// Whether hosts are started with their revocation lists.
    pub(crate) has_lists: bool,
    pub(crate) memtable: &'static str,
}

pub(crate) fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Hosts {
    /// `count` hosts that are not initialised.
    pub(crate) fn bare(count: usize, has_tls: bool) -> (Hosts, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("storage.toml"), TIMES).unwrap();
        let addresses: Vec<_> = addresses::unused(count).unwrap().iter().map(ToString::to_string).collect();
        let members = (1..).zip(&addresses).map(|(n, a)| format!("{n}={a}")).collect();
        let store = |n| dir.path().join(format!("host-{n}"));
        let hosts = (1..=count).map(|n| Host { store: store(n), storage: None, replication: None }).collect();
        (Hosts { dir, hosts, addresses, has_tls, has_lists: false, memtable: "64M" }, members)
    }

    /// Three initialised hosts that are not started.
    pub(crate) fn initialised(has_tls: bool) -> Hosts {
        let (this, members) = Hosts::bare(3, has_tls);
        for n in 1..=3 {
            let node = n.to_string();
            let init = ["cluster", "init", "--cluster", "test", "--node", &node, "--segment-size", "4M", "--members"];
            ok(&this.tape(n, &[&init[..], &[&members.join(",")]].concat()));
        }
        this
    }

    /// Adds `keys` to the configuration of storage of all hosts, before it starts.
    pub(crate) fn configure(&self, keys: &str) {
        std::fs::write(self.dir.path().join("storage.toml"), format!("{keys}{TIMES}")).unwrap();
    }

    /// Three serving hosts.
    pub(crate) fn new(has_tls: bool) -> Hosts {
        Hosts::serving(has_tls, false)
    }

    /// Three serving hosts, with certificates if `has_tls`, and with a revocation list each if `has_lists`.
    pub(crate) fn serving(has_tls: bool, has_lists: bool) -> Hosts {
        let mut this = Hosts::initialised(has_tls);
        this.has_lists = has_lists;
        if has_tls {
            let certs = this.certs();
            let args = ["cluster", "certs", "--cluster", "test", "--nodes", "1,2,3", "--dir", certs.to_str().unwrap()];
            ok(&this.tape(1, &args));
        }
        (1..=3).for_each(|n| this.start(n));
        // Until the others have met a host, it does not vote: after the kill of one there would be no majority.
        let votes = |n: &usize| this.status(*n).is_some_and(|s| s["waits"] == "");
        eventually("votes of all hosts", || (1..=3).all(|n| votes(&n)).then_some(()));
        this
    }

    pub(crate) fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    /// The revocation list of host `n`.
    pub(crate) fn list(&self, n: usize) -> PathBuf {
        self.certs().join(format!("crl-{n}.pem"))
    }

    pub(crate) fn store(&self, n: usize) -> &Path {
        &self.hosts[n - 1].store
    }

    pub(crate) fn start(&mut self, n: usize) {
        self.start_storage(n);
        self.start_replication(n);
    }

    pub(crate) fn start_storage(&mut self, n: usize) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape-storage"));
        command.arg("--config").arg(self.dir.path().join("storage.toml"));
        command.arg("--store").arg(self.store(n)).args(["--memtable-size", self.memtable]);
        command.env("RUST_LOG", "error").stdin(Stdio::null());
        self.hosts[n - 1].storage = Some(Process::start("storage", &mut command).unwrap());
    }

    pub(crate) fn start_replication(&mut self, n: usize) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape-replication"));
        command
            .arg("--store")
            .arg(self.store(n))
            .env("RUST_LOG", std::env::var("TAPE_TEST_LOG").unwrap_or_else(|_| "off".into()))
            .stdin(Stdio::null());
        let config = self.dir.path().join("replication.toml");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        if self.has_tls {
            let certs = self.certs();
            command.arg("--tls-cert").arg(certs.join(format!("node-{n}.pem")));
            command.arg("--tls-key").arg(certs.join(format!("node-{n}.key")));
            command.arg("--tls-ca").arg(certs.join("ca.pem"));
        }
        if self.has_lists {
            let list = self.list(n);
            if !list.exists() {
                std::fs::copy(self.certs().join("crl.pem"), &list).unwrap();
            }
            command.arg("--tls-crl").arg(list);
        }
        self.hosts[n - 1].replication = Some(Process::start("replication", &mut command).unwrap());
    }

    /// Kills both processes of host `n` with SIGKILL.
    pub(crate) fn kill(&mut self, n: usize) {
        self.hosts[n - 1].storage = None;
        self.hosts[n - 1].replication = None;
    }

    /// Kills storage of host `n` with SIGKILL.
    pub(crate) fn stop_storage(&mut self, n: usize) {
        self.hosts[n - 1].storage = None;
    }

    pub(crate) fn tape(&self, n: usize, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tape")).args(arguments).arg("--store").arg(self.store(n)).output().unwrap()
    }

    pub(crate) fn status(&self, n: usize) -> Option<serde_json::Value> {
        let output = self.tape(n, &["cluster", "status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// The host whose status reports the leader role.
    pub(crate) fn leader(&self) -> usize {
        eventually("a leader", || {
            let leads = |n: &usize| self.hosts[n - 1].storage.is_some() && self.status(*n).is_some_and(|s| s["role"] == "leader");
            (1..=self.hosts.len()).find(leads)
        })
    }

    pub(crate) fn publisher(&self, n: usize, id: u16) -> Publisher {
        let options = Options::new(self.store(n), PublisherId(id));
        Publisher::open(Options { durability: Durability::Quorum, open_timeout: PATIENCE, ..options }).unwrap()
    }

    pub(crate) fn committed(&self, n: usize) -> Lsn {
        Reader::open(self.store(n)).map_or(Lsn(0), |r| r.control().committed())
    }

    /// Stops host `n` cleanly.
    pub(crate) fn stop_host(&mut self, n: usize) {
        let host = &mut self.hosts[n - 1];
        for child in [&mut host.replication, &mut host.storage] {
            child.take().map_or(Ok(()), |mut process| process.stop()).unwrap();
        }
    }

    /// Stops all hosts cleanly and returns the trade ids in each log.
    pub(crate) fn stop(&mut self) -> Vec<Vec<u64>> {
        (1..=self.hosts.len()).for_each(|n| self.stop_host(n));
        self.hosts.iter().map(|h| trades_in(&h.store)).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            (host.storage, host.replication) = (None, None);
            free_shared_memory(&host.store);
        }
    }
}

fn trades_in(store: &Path) -> Vec<u64> {
    let meta = wal::meta::read(&RealDisk, store).unwrap().unwrap();
    let mut ids = Vec::new();
    let visit = |frame: &wal::Frame<'_>| {
        if let Body::Data(data) = &frame.body {
            ids.extend(split(data.records).map(|r| r.unwrap().get::<Trade>().unwrap().trade_id));
        }
        Ok(())
    };
    wal::scan(&RealDisk, &store.join(wal::DIR), &meta, Chain::begin(meta.store_id), Open::Read, visit).unwrap();
    ids
}

pub(crate) fn publish(publisher: &mut Publisher, ids: std::ops::Range<u64>) {
    let name = "X:1".parse().unwrap();
    let instrument = eventually("the instrument", || publisher.instrument(&name).ok());
    for id in ids {
        let trade = Trade { trade_id: id, instrument, ..Trade::default() };
        while publisher.publish(&trade).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_publisher_survives_two_leader_failures_and_each_record_is_stored_once() {
    let mut hosts = Hosts::new(false);
    let first = hosts.leader();
    let own = first % 3 + 1;
    let mut publisher = hosts.publisher(own, 1);
    publish(&mut publisher, 0..2_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    publish(&mut publisher, 2_000..4_000);
    hosts.kill(first);
    publish(&mut publisher, 4_000..6_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    hosts.start(first);
    let mut second = hosts.leader();
    if second == own {
        // The publisher's host must not die: the restarted host becomes leader.
        eventually("the leadership transfer", || {
            hosts.tape(own, &["cluster", "transfer", &first.to_string()]).status.success().then_some(())
        });
        second = first;
    }
    publish(&mut publisher, 6_000..8_000);
    hosts.kill(second);
    publish(&mut publisher, 8_000..10_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    assert!(publisher.take_lost().is_empty() && publisher.progress().reattached == 0);
    hosts.start(second);
    for n in 1..=3 {
        eventually("all records on each host", || (hosts.committed(n) >= Lsn(10_000)).then_some(()));
    }
    drop(publisher);
    let expected: Vec<u64> = (0..10_000).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected), "each record once and in order, on each host");
}

#[test]
fn a_rolling_restart_of_three_hosts_is_invisible_to_a_publisher() {
    let mut hosts = Hosts::new(false);
    let at = hosts.leader();
    let mut publisher = hosts.publisher(at, 1);
    let mut next = 0;
    // Restarts all hosts but the publisher's; a host that leads hands over first.
    for n in (1..=3).filter(|n| *n != at) {
        publish(&mut publisher, next..next + 500);
        next += 500;
        if hosts.leader() == at {
            ok(&hosts.tape(at, &["cluster", "transfer", &n.to_string()]));
        }
        let host = &mut hosts.hosts[n - 1];
        for child in [&mut host.storage, &mut host.replication] {
            child.as_mut().unwrap().stop().unwrap();
        }
        publish(&mut publisher, next..next + 500);
        next += 500;
        publisher.flush(Durability::Quorum, PATIENCE).unwrap();
        hosts.start(n);
        eventually("the host to catch up", || (hosts.committed(n) >= Lsn(next)).then_some(()));
    }
    assert!(publisher.take_lost().is_empty() && publisher.progress().reattached == 0);
    drop(publisher);
    let expected: Vec<u64> = (0..next).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected));
}

#[test]
fn killed_replication_processes_reconnect_and_catch_up() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    let mut next = 0;
    for round in 0..3 {
        // A follower's, then the leader's, then both followers': without a majority nothing commits.
        let gone: Vec<usize> = match round {
            0 => vec![leader % 3 + 1],
            1 => vec![leader],
            _ => (1..=3).filter(|n| *n != leader).collect(),
        };
        gone.iter().for_each(|n| hosts.hosts[n - 1].replication = None);
        publish(&mut publisher, next..next + 1_000);
        next += 1_000;
        gone.iter().for_each(|n| hosts.start_replication(*n));
        publisher.flush(Durability::Quorum, PATIENCE).unwrap();
        for n in 1..=3 {
            eventually("all records on each host", || (hosts.committed(n) >= Lsn(next)).then_some(()));
        }
    }
    drop(publisher);
    assert!(hosts.stop().iter().all(|ids| ids.len() as u64 == next && ids.is_sorted()));
}

#[test]
fn the_tool_prints_status_transfers_leadership_and_changes_members() {
    let hosts = Hosts::new(false);
    let leader = hosts.leader();
    let next = leader % 3 + 1;
    let shown = ok(&hosts.tape(leader, &["cluster", "status"]));
    assert!(shown.contains(&format!("node {leader}: leader in term")), "{shown}");
    let far = ok(&hosts.tape(next, &["cluster", "status", "--json", "--at", &hosts.addresses[leader - 1]]));
    let far: serde_json::Value = serde_json::from_str(&far).unwrap();
    assert_eq!((&far["node"], &far["role"]), (&leader.into(), &"leader".into()));
    ok(&hosts.tape(leader, &["cluster", "transfer", &next.to_string()]));
    assert_eq!(hosts.leader(), next);
    let refused = hosts.tape(leader, &["cluster", "remove", &next.to_string()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("does not lead") && !refused.status.success());
    ok(&hosts.tape(next, &["cluster", "remove", &leader.to_string()]));
    let address = &hosts.addresses[leader - 1];
    ok(&hosts.tape(next, &["cluster", "add", &format!("{leader}={address}")]));
    let votes = |s: &serde_json::Value| -> BTreeMap<u64, bool> {
        let members = s["members"].as_array().unwrap();
        members.iter().map(|m| (m["node"].as_u64().unwrap(), m["votes"].as_bool().unwrap())).collect()
    };
    assert_eq!(votes(&hosts.status(next).unwrap()).get(&(leader as u64)), Some(&false));
    ok(&hosts.tape(next, &["cluster", "promote", &leader.to_string()]));
    assert!(votes(&hosts.status(next).unwrap()).values().all(|v| *v));
    let again = hosts.tape(next, &["cluster", "init", "--cluster", "x", "--node", "1", "--members", "1=127.0.0.1:1"]);
    assert!(!again.status.success(), "a store of a cluster cannot be initialised again");
}

#[test]
fn a_host_joins_with_an_empty_store_and_another_with_a_backup_and_both_have_everything() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..20_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    let members: Vec<_> = (1..).zip(&hosts.addresses).map(|(n, a)| format!("{n}={a}")).collect();
    for n in [4, 5] {
        let port = addresses::unused(1).unwrap().remove(0);
        let store = hosts.dir.path().join(format!("host-{n}"));
        hosts.hosts.push(Host { store, storage: None, replication: None });
        hosts.addresses.push(port.to_string());
        let itself = format!("{n}={port}");
        let backup = hosts.dir.path().join("backup");
        if n == 5 {
            ok(&hosts.tape(leader, &["backup", backup.to_str().unwrap()]));
            ok(&hosts.tape(n, &["restore", backup.to_str().unwrap()]));
        }
        let all = format!("{},{itself}", members.join(","));
        let node = n.to_string();
        let init = ["cluster", "init", "--join", "--cluster", "test", "--segment-size", "4M", "--node", &node, "--members", &all];
        ok(&hosts.tape(n, &init));
        hosts.start(n);
        ok(&hosts.tape(leader, &["cluster", "add", &itself]));
        publish(&mut publisher, n as u64 * 10_000..n as u64 * 10_000 + 1_000);
        publisher.flush(Durability::Quorum, PATIENCE).unwrap();
        let end = hosts.committed(leader);
        eventually("all records on the new host", || (hosts.committed(n) >= end).then_some(()));
        ok(&hosts.tape(leader, &["cluster", "promote", &node]));
    }
    drop(publisher);
    let stored = hosts.stop();
    assert!(
        stored.iter().all(|ids| ids.len() == 22_000 && ids == &stored[0]),
        "{:?}",
        stored.iter().map(Vec::len).collect::<Vec<_>>()
    );
}

#[test]
fn under_tls_only_the_clusters_certificates_are_accepted_and_changed_files_are_reloaded() {
    let mut hosts = Hosts::new(true);
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    let certs = hosts.certs();
    let follower = leader % 3 + 1;
    let at = hosts.addresses[leader - 1].clone();
    let asked = |name: &str, ca: &Path| {
        let file = |end: &str| certs.join(format!("{name}.{end}")).to_str().unwrap().to_owned();
        let (cert, key) = (file("pem"), file("key"));
        let ca = ca.to_str().unwrap();
        let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", ca];
        hosts.tape(follower, &[&["cluster", "status", "--at", &at][..], &tls].concat())
    };
    ok(&asked("operator", &certs.join("ca.pem")));
    let refused = asked("node-2", &certs.join("ca.pem"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("operator"), "a host's certificate is not an operator's");
    let plain = hosts.tape(follower, &["cluster", "status", "--at", &at]);
    let message = String::from_utf8_lossy(&plain.stderr);
    assert!(!plain.status.success() && message.contains("requires TLS") && message.contains("--tls-cert"), "{message}");
    // Certificates of another authority, with the right names.
    let other = hosts.dir.path().join("other");
    ok(&hosts.tape(1, &["cluster", "certs", "--cluster", "test", "--nodes", "1,2,3", "--dir", other.to_str().unwrap()]));
    for end in ["pem", "key"] {
        std::fs::copy(other.join(format!("operator.{end}")), certs.join(format!("forged.{end}"))).unwrap();
    }
    assert!(!asked("forged", &certs.join("ca.pem")).status.success());
    // All hosts switch to the other authority one after the other; no storage process restarts.
    for name in ["ca.pem", "node-1.pem", "node-1.key", "node-2.pem", "node-2.key", "node-3.pem", "node-3.key"] {
        std::fs::copy(other.join(name), certs.join(name)).unwrap();
    }
    let storages: Vec<usize> = (1..=3).filter(|n| *n != leader).collect();
    for n in storages {
        hosts.hosts[n - 1].replication = None;
        hosts.start_replication(n);
    }
    publish(&mut publisher, 1_000..2_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    drop(publisher);
    assert!(hosts.stop().iter().any(|ids| ids.len() == 2_000));
}

/// Runs openssl in `dir`; `false` if this machine has none.
pub(crate) fn openssl(dir: &Path, arguments: &str) -> bool {
    match Command::new("openssl").current_dir(dir).args(arguments.split(' ')).output() {
        Ok(output) => !ok(&output).is_empty() || output.status.success(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: openssl is not installed ({error})");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Writes a certificate and key `file` for the DNS name `name`, signed by the authority `ca.pem` in `dir`.
pub(crate) fn certify(dir: &Path, file: &str, name: &str) {
    std::fs::write(dir.join("ext"), format!("subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth,clientAuth\n")).unwrap();
    let key = format!("-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {file}.key");
    assert!(openssl(dir, &format!("req {key} -out {file}.csr -subj /CN={file}")));
    let by = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext";
    assert!(openssl(dir, &format!("x509 -req -in {file}.csr {by} -out {file}.pem")));
}

#[test]
fn certificates_of_an_own_authority_work_with_the_documented_names() {
    let mut hosts = Hosts::initialised(true);
    let certs = hosts.certs();
    std::fs::create_dir(&certs).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key";
    if !openssl(&certs, &format!("req -x509 {key} -out ca.pem -days 30 -subj /CN=authority")) {
        return;
    }
    for name in ["node-1", "node-2", "node-3", "operator"] {
        certify(&certs, name, &format!("{name}.test"));
    }
    // The same authority signs for other clusters too.
    certify(&certs, "stranger", "operator.other");
    certify(&certs, "nobody", "www.example.org");
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let follower = leader % 3 + 1;
    let mut publisher = hosts.publisher(follower, 1);
    publish(&mut publisher, 0..500);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    let asked = |name: &str| {
        let file = |file: String| certs.join(file).to_str().unwrap().to_owned();
        let (cert, key, ca) = (file(format!("{name}.pem")), file(format!("{name}.key")), file("ca.pem".to_owned()));
        let at = &hosts.addresses[leader - 1];
        let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
        hosts.tape(follower, &[&["cluster", "status", "--at", at][..], &tls].concat())
    };
    ok(&asked("operator"));
    let outcome = |output: Output| (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned());
    let (is_accepted, why) = outcome(asked("stranger"));
    assert!(!is_accepted && why.contains("certificate"), "{why}");
    let (is_accepted, why) = outcome(asked("nobody"));
    assert!(!is_accepted && why.contains("operator.CLUSTER") && why.contains("www.example.org"), "{why}");
    let (is_accepted, why) = outcome(asked(&format!("node-{follower}")));
    assert!(!is_accepted && why.contains("not for operator.test"), "{why}");
    drop(publisher);
    assert!(hosts.stop().iter().any(|ids| ids.len() == 500));
}

#[test]
fn silent_connections_do_not_keep_a_host_from_joining_again() {
    let mut hosts = Hosts::new(true);
    let leader = hosts.leader();
    let (back, away) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..100);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    let (over, opened) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let to: SocketAddr = hosts.addresses[leader - 1].parse().unwrap();
        let (over, opened) = (&over, &opened);
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut silent = VecDeque::new();
                while !over.load(Ordering::Relaxed) {
                    for _ in 0..20 {
                        let socket = tokio::net::TcpSocket::new_v4().unwrap();
                        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
                        // The host may not accept it: wait only briefly.
                        let connected = tokio::time::timeout(Duration::from_millis(50), socket.connect(to)).await;
                        silent.extend(connected.into_iter().flatten());
                    }
                    // At most so many are open at once; the oldest close.
                    silent.drain(..silent.len().saturating_sub(600));
                    opened.store(silent.len() as u64, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        });
        eventually("many silent connections", || (opened.load(Ordering::Relaxed) >= 600).then_some(()));
        hosts.kill(away);
        hosts.hosts[back - 1].replication = None;
        hosts.start_replication(back);
        publish(&mut publisher, 100..200);
        let flushed = publisher.flush(Durability::Quorum, PATIENCE);
        over.store(true, Ordering::Relaxed);
        flushed.unwrap();
    });
}

#[test]
fn trial_certificates_are_valid_for_a_year() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let certs = dir.path().join("certs");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    command.args(["cluster", "certs", "--cluster", "prod", "--nodes", "7", "--dir"]).arg(&certs);
    ok(&command.arg("--store").arg(&store).output().unwrap());
    let day = 24 * 3600;
    let now = (HostClock.wall().0 / 1_000_000_000).cast_signed();
    for (file, name) in [("ca", None), ("node-7", Some("node-7.prod")), ("operator", Some("operator.prod"))] {
        let pem = std::fs::read(certs.join(format!("{file}.pem"))).unwrap();
        let der = <CertificateDer<'_> as PemObject>::pem_slice_iter(&pem).next().unwrap().unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        assert!(from < now && now < to && to < now + 367 * day, "{file}: {from} to {to}");
        assert_eq!(tape_services::replication::tls::names(&der), name.map(str::to_owned).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn without_certificates_another_users_process_is_rejected() {
    let hosts = Hosts::new(false);
    let leader = hosts.leader();
    let follower = leader % 3 + 1;
    let key = hosts.store(leader).join(local::NAME);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.metadata().unwrap().permissions()) & 0o777, 0o600);
    let to = hosts.addresses[leader - 1].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Without the proof of the local key.
        let plain = AdminClient::connect(format!("http://{to}")).await;
        let asked = match plain {
            Ok(mut client) => client.ask(proto::Command::default()).await.map_err(|s| format!("{s:?}")).map(drop),
            Err(error) => Err(format!("{error:?}")),
        };
        assert!(asked.is_err());
        // A client with the key is accepted.
        let endpoint = || Endpoint::from_shared(format!("http://{to}")).unwrap();
        local::connect(endpoint(), to.clone(), local::Wanted::default()).await.unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        let refused = local::connect(endpoint(), to.clone(), local::Wanted::default()).await;
        assert!(refused.is_err(), "a key that other users may read is rejected");
    });
    let refused = hosts.tape(follower, &["cluster", "status", "--at", &to]);
    assert!(!refused.status.success());
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    ok(&hosts.tape(follower, &["cluster", "status", "--at", &to]));
}

#[test]
fn without_certificates_only_loopback_is_allowed() {
    let hosts = Hosts::new(false);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-replication"));
    let output = command.arg("--store").arg(hosts.store(1)).args(["--listen", "0.0.0.0:0"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("tape cluster certs"), "{message}");
}

fn hello(node: u64, to: u64) -> HelloRequest {
    HelloRequest {
        is_lossy: false,
        cluster: tapestore_engine::cluster_admin::store_id("test").to_le_bytes().to_vec().into(),
        node,
        to,
        incarnation: 1,
        generation: 0,
        version_min: VERSION,
        version_max: VERSION,
        segment_size: 4 << 20,
        is_fresh: false,
        initial_members: 0,
        address: String::new(),
    }
}

fn sent(message: Vec<u8>, frames: usize) -> Envelope {
    let raft = proto::Raft { message: message.into(), frames: vec![0; frames].into() };
    Envelope { message: Some(envelope::Message::Raft(raft)) }
}

fn raft_envelope(raft: &Raft, frames: usize) -> Envelope {
    sent(raft.encode().unwrap(), frames)
}

/// Messages that a host refuses: none, an empty one, an unknown version, garbage, an unknown kind, a wrong length, one over the
/// limit of frames; and terms that do not fit a frame's field: a host that stored one could never elect a leader again.
fn invalid(vote: &Raft) -> Vec<Envelope> {
    let head = FrameHead { kind: 0, term: 1, index: 1, position: 4096, len: 640, header_crc: 0 };
    let append = Raft { kind: 3, ..Raft::default() };
    let mut newer = vote.encode().unwrap();
    newer[0] += 1;
    let endless = |kind| Raft { kind, term: 1 << 32, context: b"CampaignTransfer".to_vec(), ..vote.clone() };
    let endless = [3, 5, 8].map(|kind| raft_envelope(&endless(kind), 0));
    let others = [
        Envelope { message: None },
        sent(Vec::new(), 0),
        sent(newer, 0),
        sent(vec![1; 4096], 0),
        raft_envelope(&Raft { kind: 250, ..Raft::default() }, 0),
        raft_envelope(&Raft { heads: vec![head], ..append.clone() }, 64),
        raft_envelope(&append, wire::FRAMES_MAX + 1),
    ];
    others.into_iter().chain(endless).collect()
}

#[test]
fn hostile_hosts_get_a_status_and_change_nothing() {
    let hosts = Hosts::new(false);
    let leader = hosts.leader();
    let follower = leader % 3 + 1;
    let before = eventually("a leader known to the follower", || hosts.status(follower).filter(|s| !s["leader"].is_null()));
    let to = format!("http://{}", hosts.addresses[follower - 1]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = || async {
            let (endpoint, wanted) = (Endpoint::from_shared(to.clone()).unwrap(), local::Wanted::default());
            let channel = local::connect(endpoint, hosts.addresses[follower - 1].clone(), wanted).await.unwrap();
            PeerClient::new(channel).max_encoding_message_size(64 << 20)
        };
        let mut client = connect().await;
        let to_follower = follower as u64;
        // A wrong cluster, an empty cluster, a wrong node, a wrong version, a wrong segment size, other durability, node 0.
        let wrong: [fn(&mut HelloRequest); 7] = [
            |h| h.cluster = vec![7; 16].into(),
            |h| h.cluster = Vec::new().into(),
            |h| h.to = 9,
            |h| (h.version_min, h.version_max) = (VERSION + 1, VERSION + 2),
            |h| h.segment_size = 4096,
            |h| h.is_lossy = true,
            |h| h.node = 0,
        ];
        for spoil in wrong {
            let mut request = hello(9, to_follower);
            spoil(&mut request);
            assert_eq!(client.hello(request).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
        }
        let ticket = client.hello(hello(9, to_follower)).await.unwrap().into_inner().ticket;
        // A vote request in a made-up term: without a ticket, with a wrong ticket, with another node's.
        let vote = Raft { kind: 5, term: 900, index: 1 << 40, log_term: 900, ..Raft::default() };
        for (node, ticket) in [(None, None), (Some(9), Some(ticket ^ 1)), (Some(leader as u64), Some(ticket))] {
            let mut request = tonic::Request::new(tokio_stream::iter([raft_envelope(&vote, 0)]));
            node.map(|n: u64| request.metadata_mut().insert("tape-node", n.into()));
            ticket.map(|t: u64| request.metadata_mut().insert("tape-ticket", t.into()));
            assert_eq!(client.control(request).await.unwrap_err().code(), tonic::Code::Unauthenticated);
        }
        let send = |messages: Vec<Envelope>| {
            let mut request = tonic::Request::new(tokio_stream::iter(messages));
            request.metadata_mut().insert("tape-node", 9.into());
            request.metadata_mut().insert("tape-ticket", ticket.into());
            request
        };
        for bad in invalid(&vote) {
            let mut receipts = client.append(send(vec![bad])).await.unwrap().into_inner();
            assert_eq!(receipts.message().await.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        let vast = raft_envelope(&Raft { kind: 3, ..Raft::default() }, 2 * wire::MESSAGE_MAX);
        let mut receipts = client.append(send(vec![vast])).await.unwrap().into_inner();
        assert_eq!(receipts.message().await.unwrap_err().code(), tonic::Code::OutOfRange);
        // Garbage instead of HTTP, and streams that are opened and dropped.
        for _ in 0..200 {
            drop(client.append(send(Vec::new())).await);
        }
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096]] {
            let mut stream = tokio::net::TcpStream::connect(&hosts.addresses[follower - 1]).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, garbage).await.unwrap();
        }
        connect().await.hello(hello(9, to_follower)).await.unwrap();
    });
    let after = hosts.status(follower).unwrap();
    assert_eq!((&before["term"], &before["leader"]), (&after["term"], &after["leader"]));
    let mut publisher = hosts.publisher(follower, 1);
    publish(&mut publisher, 0..100);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
}

#[test]
fn a_forced_promotion_deposes_the_old_leader_which_rejoins_without_its_divergent_tail() {
    let (mut hosts, members) = Hosts::bare(2, false);
    let init = ["cluster", "init", "--cluster", "test", "--segment-size", "4M"];
    ok(&hosts.tape(1, &[&init[..], &["--node", "1", "--members", &members[0]]].concat()));
    ok(&hosts.tape(2, &[&init[..], &["--join", "--node", "2", "--members", &members.join(",")]].concat()));
    hosts.start(1);
    hosts.start(2);
    assert_eq!(hosts.leader(), 1);
    ok(&hosts.tape(1, &["cluster", "add", &members[1]]));
    let options = Options::new(hosts.store(1), PublisherId(1));
    let mut publisher = Publisher::open(Options { durability: Durability::Standby, ..options }).unwrap();
    publish(&mut publisher, 0..1_000);
    publisher.flush(Durability::Standby, PATIENCE).unwrap();
    drop(publisher);
    ok(&hosts.tape(2, &["status", "--check"]));
    // Records that the standby never receives, acknowledged at level fsync by the leader alone.
    hosts.hosts[1].replication = None;
    let mut publisher = Publisher::open(Options::new(hosts.store(1), PublisherId(2))).unwrap();
    publish(&mut publisher, 50_000..50_200);
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    drop(publisher);
    hosts.kill(1);
    // A standby does not vote, and it says that its leader is gone.
    eventually("a standby without a leader", || {
        let checked = hosts.tape(2, &["status", "--check"]);
        let why = String::from_utf8_lossy(&checked.stderr).into_owned();
        (checked.status.code() == Some(6) && why.contains("no leader")).then_some(())
    });
    signal(hosts.hosts[1].storage.as_ref().unwrap().id(), rustix::process::Signal::TERM);
    hosts.hosts[1].storage.as_mut().unwrap().wait().unwrap();
    let wrong = hosts.tape(2, &["cluster", "force-promote", "--generation", "3", "--the-leader-is-gone"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("generation 0, not 3"));
    ok(&hosts.tape(2, &["cluster", "force-promote", "--generation", "0", "--the-leader-is-gone"]));
    hosts.hosts[1].storage = None;
    hosts.start(2);
    let mut publisher = hosts.publisher(2, 3);
    publish(&mut publisher, 1_000..1_500);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    // The old leader comes back: it is the only voter of its own configuration, and must not lead.
    hosts.start(1);
    let follows = |hosts: &Hosts| hosts.status(1).is_some_and(|s| s["role"] == "follower" && s["leader"].is_null());
    for _ in 0..20 {
        eventually("the old leader's answer", || hosts.status(1).map(|_| ()));
        assert!(follows(&hosts), "{:?}", hosts.status(1));
        std::thread::sleep(Duration::from_millis(100));
    }
    let refused = hosts.tape(1, &["cluster", "rejoin", "--generation", "1", "--leader", &members[1]]);
    assert!(!refused.status.success(), "a served store cannot rejoin");
    hosts.kill(1);
    ok(&hosts.tape(1, &["cluster", "rejoin", "--generation", "1", "--leader", &members[1]]));
    hosts.start(1);
    ok(&hosts.tape(2, &["cluster", "add", &members[0]]));
    eventually("the old leader to have everything", || (hosts.committed(1) >= Lsn(1_500)).then_some(()));
    let kept = std::fs::read_dir(hosts.store(1).join(wal::truncate::DIVERGENT)).unwrap().count();
    assert_eq!(kept, 1, "the divergent tail is kept aside");
    drop(publisher);
    let expected: Vec<u64> = (0..1_500).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected));
}

#[test]
fn the_demonstration_kills_a_leader_and_loses_nothing() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    let report = ok(&command.args(["demo", "--cluster", "3", "--records", "60000", "--json"]).output().unwrap());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["equal"], &report["lost"], &report["published"]), (&true.into(), &0.into(), &60_000.into()));
}

#[test]
fn a_scrub_finds_a_record_that_differs_on_one_host() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..3_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    drop(publisher);
    for n in 1..=3 {
        eventually("all records on each host", || (hosts.committed(n) >= Lsn(3_000)).then_some(()));
    }
    let same = ok(&hosts.tape(leader, &["cluster", "scrub"]));
    assert!(same.contains("equal    3 hosts, records 1 to 3,000"), "{same}");
    // Changes one record in the shared memory of one host, which has no checksums.
    let other = leader % 3 + 1;
    let run_dir = RunDir::find(hosts.store(other)).unwrap();
    let instance = Reader::open(hosts.store(other)).unwrap().control().instance();
    let path = run_dir.memtable(instance, 1);
    let bytes = std::fs::read(&path).unwrap();
    let id = 1_234u64.to_le_bytes();
    let trade = Trade { trade_id: 1_234, instrument: InstrumentId(1), ..Trade::default() };
    let record: &[u8] = bytemuck::cast_slice(tapestore::record::RecordRef::of(&trade).words());
    let at = bytes.windows(record.len()).position(|w| w == record).unwrap();
    let within = record.windows(8).position(|w| w == id).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff], (at + within) as u64).unwrap();
    let differs = hosts.tape(leader, &["cluster", "scrub", "--json"]);
    assert_eq!(differs.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&differs.stdout).unwrap();
    assert_eq!(report["differ"].as_array().unwrap().len(), 1, "{report}");
    hosts.stop();
}

#[test]
fn a_repair_does_not_truncate_the_log_of_a_cluster_host() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    // Two frames or more: damage of the last one alone would be a torn tail.
    for records in [0..500, 500..1_000] {
        publish(&mut publisher, records);
        publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    }
    drop(publisher);
    (1..=3).for_each(|n| hosts.kill(n));
    let segment = hosts.store(leader).join(wal::DIR).join(wal::format::segment_name(tapestore::lsn::Position(0)));
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let advice = hosts.tape(leader, &["repair"]);
    let message = format!("{}{}", String::from_utf8_lossy(&advice.stdout), String::from_utf8_lossy(&advice.stderr));
    assert!(message.contains("tape cluster install-snapshot"), "{message}");
    let refused = hosts.tape(leader, &["repair", "--truncate-at", "1", "--i-accept-loss"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("must not vote"));
}
