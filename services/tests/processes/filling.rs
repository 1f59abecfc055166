//! Snapshot install: for a host behind the leader's log, and for a host with damaged files.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tape_services::replication::local;
use tape_services::replication::proto::supply_client::SupplyClient;
use tape_services::replication::proto::{CopyRequest, FetchRequest};
use tapestore::disk::RealDisk;
use tapestore::lsn::{Durability, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::shm::control::Statistic;
use tapestore::{reader::Reader, sstable, wal};
use tapestore_engine::consensus::MetaFile;
use tapestore_engine::consensus::meta::Meta;
use tapestore_engine::snapshot::install::INCOMING;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::cluster::{Host, Hosts, TIMES, ok, publish};
use crate::fixture::{PATIENCE, eventually};

/// Three hosts whose logs no longer hold the first records; a publisher, the leader and the number of records.
fn with_history(has_tls: bool, bytes_per_second: u64) -> (Hosts, Publisher, usize, u64) {
    let mut hosts = Hosts::new(has_tls);
    (1..=3).for_each(|n| hosts.kill(n));
    hosts.memtable = "16M";
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    let mut next = 0;
    let is_flushed = |hosts: &Hosts, n| {
        Reader::open(hosts.store(n)).unwrap().control().statistic(Statistic::CheckpointPosition) > 3 * (4 << 20)
    };
    while !(1..=3).all(|n| is_flushed(&hosts, n)) {
        publish(&mut publisher, next..next + 20_000);
        publisher.flush(Durability::Quorum, PATIENCE).unwrap();
        next += 20_000;
    }
    drop(publisher);
    (1..=3).for_each(|n| eventually("all records on each host", || (hosts.committed(n) >= Lsn(next)).then_some(())));
    // From here on hosts retain hardly more log than a start needs.
    (1..=3).for_each(|n| hosts.kill(n));
    std::fs::write(hosts.dir.path().join("storage.toml"), format!("{TIMES}retain-bytes = 1048576\n")).unwrap();
    std::fs::write(hosts.dir.path().join("replication.toml"), format!("copy-bytes-per-second = {bytes_per_second}\n")).unwrap();
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let publisher = hosts.publisher(leader, 1);
    (hosts, publisher, leader, next)
}

/// Initialises and starts a host with an empty store and the members `others` and itself.
fn join(hosts: &mut Hosts, n: usize, others: std::ops::RangeInclusive<usize>) -> String {
    let port = tape_services::addresses::unused(1).unwrap().remove(0);
    let store = hosts.dir.path().join(format!("host-{n}"));
    hosts.hosts.push(Host { store, storage: None, replication: None });
    hosts.addresses.push(port.to_string());
    let all: Vec<_> = others.chain([n]).map(|n| format!("{n}={}", hosts.addresses[n - 1])).collect();
    let init = ["cluster", "init", "--join", "--cluster", "test", "--segment-size", "4M", "--node", &n.to_string(), "--members"];
    ok(&hosts.tape(n, &[&init[..], &[&all.join(",")]].concat()));
    hosts.start(n);
    format!("{n}={port}")
}

/// Sends a membership change to the current leader until it is done: leadership may move in between.
fn change(hosts: &Hosts, what: &[&str], is_done: impl Fn(&serde_json::Value) -> bool) {
    eventually("a change of members", || {
        let leader = hosts.leader();
        hosts.tape(leader, &[&["cluster"][..], what].concat());
        hosts.status(leader).filter(|s| is_done(s))
    });
}

fn member(status: &serde_json::Value, n: usize) -> Option<&serde_json::Value> {
    status["members"].as_array().unwrap().iter().find(|m| m["node"] == n)
}

fn add(hosts: &Hosts, n: usize, itself: &str) {
    change(hosts, &["add", itself], |s| member(s, n).is_some());
}

fn promote(hosts: &Hosts, n: usize) {
    change(hosts, &["promote", &n.to_string()], |s| member(s, n).is_some_and(|m| m["votes"] == true));
}

/// Files of `dir` with their final names.
fn files(dir: &Path) -> BTreeSet<(u64, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let whole = entries.filter(|e| e.path().extension().is_some_and(|x| x != "part"));
    whole.filter_map(|e| Some((e.metadata().ok()?.ino(), e.path()))).collect()
}

#[test]
fn a_new_host_installs_a_snapshot_under_load_and_resumes_after_a_kill() {
    let (mut hosts, mut publisher, leader, mut next) = with_history(false, 4 << 20);
    let itself = join(&mut hosts, 4, 1..=3);
    add(&hosts, 4, &itself);
    let incoming = hosts.store(4).join(INCOMING);
    let history = incoming.join(sstable::DIR);
    // The fetch is not complete yet: it is limited to 4 MiB/s.
    let before = eventually("an SSTable", || Some(files(&history)).filter(|f| !f.is_empty()));
    hosts.hosts[3].replication = None;
    publish(&mut publisher, next..next + 5_000);
    next += 5_000;
    assert!(hosts.committed(4) == Lsn(0), "a partial snapshot is not visible");
    hosts.start_replication(4);
    eventually("all records on the new host", || (hosts.committed(4) >= Lsn(next)).then_some(()));
    publish(&mut publisher, next..next + 5_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    next += 5_000;
    eventually("it to follow", || (hosts.committed(4) >= Lsn(next)).then_some(()));
    assert!(!incoming.exists());
    let now: BTreeSet<u64> = files(&hosts.store(4).join(sstable::DIR)).into_iter().map(|f| f.0).collect();
    assert!(before.iter().any(|(inode, _)| now.contains(inode)), "all SSTables were fetched again after the kill");
    promote(&hosts, 4);
    let same = ok(&hosts.tape(leader, &["cluster", "scrub"]));
    assert!(same.contains("equal    4 hosts"), "{same}");
    // The leader removes its copy.
    let offers = hosts.store(leader).join("offers");
    eventually("the copy to go", || std::fs::read_dir(&offers).unwrap().next().is_none().then_some(()));
    drop(publisher);
    assert!(hosts.status(4).unwrap()["members"].as_array().unwrap().len() == 4);
}

#[test]
fn a_host_with_damaged_files_installs_a_snapshot_by_one_command_and_keeps_the_old_files() {
    let (mut hosts, mut publisher, leader, mut next) = with_history(true, 0);
    let broken = leader % 3 + 1;
    // Damages an SSTable, and once the host is stopped the log below its durable mark.
    let table = files(&hosts.store(broken).join(sstable::DIR)).into_iter().next().unwrap().1;
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    // Written in place: storage and readers map the file.
    let damaged = std::fs::OpenOptions::new().write(true).open(&table).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&damaged, &bytes[middle..=middle], middle as u64).unwrap();
    let certs = hosts.certs();
    let file = |name: String| certs.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("operator.pem".into()), file("operator.key".into()), file("ca.pem".into()));
    let operator = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    let scrub = |hosts: &Hosts| hosts.tape(leader, &[&["cluster", "scrub"][..], &operator].concat());
    let found = scrub(&hosts);
    let message = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.status.code() == Some(1) && message.contains(&format!("node {broken} cannot read")), "{message}");
    hosts.kill(broken);
    let logs: Vec<_> = files(&hosts.store(broken).join(wal::DIR)).into_iter().map(|f| f.1).collect();
    let log = logs.iter().max().unwrap();
    let mut bytes = std::fs::read(log).unwrap();
    bytes[4096..4160].fill(0xaa);
    std::fs::write(log, bytes).unwrap();
    publish(&mut publisher, next..next + 5_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    next += 5_000;
    let fill = |from: &str, node: usize| {
        let (cert, key, ca) = (file(format!("node-{node}.pem")), file(format!("node-{node}.key")), file("ca.pem".to_owned()));
        let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
        hosts.tape(broken, &[&["cluster", "fill", "--from", from][..], &tls].concat())
    };
    let other = 6 - leader - broken;
    let not_there = fill(&hosts.addresses[other - 1], broken);
    let message = String::from_utf8_lossy(&not_there.stderr).into_owned();
    assert!(
        !not_there.status.success() && message.contains(&format!("node {leader} leads")),
        "a follower sends no snapshot: {message}"
    );
    let other_name = fill(&hosts.addresses[leader - 1], other);
    assert!(!other_name.status.success(), "another host's certificate");
    let done = ok(&fill(&hosts.addresses[leader - 1], broken));
    assert!(done.contains("the old store is kept in"), "{done}");
    let kept = std::fs::read_dir(hosts.store(broken)).unwrap().flatten().map(|e| e.path());
    let kept = kept.into_iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("replaced-")).unwrap();
    assert_eq!(std::fs::read(kept.join(wal::DIR).join(log.file_name().unwrap())).unwrap()[4096..4160], [0xaa; 64]);
    hosts.start(broken);
    eventually("it to have all", || (hosts.committed(broken) >= Lsn(next)).then_some(()));
    let operator = [
        "--tls-cert",
        &file("operator.pem".to_owned()),
        "--tls-key",
        &file("operator.key".to_owned()),
        "--tls-ca",
        &file("ca.pem".to_owned()),
    ];
    let same = ok(&hosts.tape(leader, &[&["cluster", "scrub"][..], &operator].concat()));
    assert!(same.contains("equal    3 hosts"), "{same}");
    // The host can lead: its term and vote are kept.
    ok(&hosts.tape(leader, &["cluster", "transfer", &broken.to_string()]));
    publish(&mut publisher, next..next + 1_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    let served = hosts.tape(broken, &["cluster", "fill", "--from", &hosts.addresses[leader - 1]]);
    assert!(!served.status.success(), "a served store installs no snapshot");
}

#[test]
fn a_host_joins_when_no_initial_member_is_left() {
    let mut hosts = Hosts::new(false);
    let mut publisher = hosts.publisher(hosts.leader(), 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    drop(publisher);
    // All are added before the first one votes: a host that begins with the present members cannot apply the earlier log.
    for n in 4..=6 {
        let itself = join(&mut hosts, n, 1..=3);
        add(&hosts, n, &itself);
    }
    for n in 4..=6 {
        eventually("all records on the new host", || (hosts.committed(n) >= Lsn(1_000)).then_some(()));
        promote(&hosts, n);
    }
    for n in 1..=3 {
        change(&hosts, &["transfer", "4"], |s| s["leader"] == 4 || s["leader"] == 5 || s["leader"] == 6);
        change(&hosts, &["remove", &n.to_string()], |s| member(s, n).is_none());
        hosts.kill(n);
    }
    let itself = join(&mut hosts, 7, 4..=6);
    add(&hosts, 7, &itself);
    let mut publisher = hosts.publisher(4, 1);
    publish(&mut publisher, 1_000..2_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    eventually("all records on the new host", || (hosts.committed(7) >= Lsn(2_000)).then_some(()));
    promote(&hosts, 7);
    assert_eq!(hosts.status(7).unwrap()["members"].as_array().unwrap().len(), 4);
}

#[test]
fn a_returning_host_accepts_a_leader_that_joined_in_its_absence() {
    let mut hosts = Hosts::new(false);
    let away = hosts.leader() % 3 + 1;
    hosts.kill(away);
    let itself = join(&mut hosts, 4, 1..=3);
    add(&hosts, 4, &itself);
    promote(&hosts, 4);
    // The next leader must have applied its own promotion.
    eventually("its promotion", || hosts.status(4).filter(|s| member(s, 4).is_some_and(|m| m["votes"] == true)));
    change(&hosts, &["transfer", "4"], |s| s["leader"] == 4);
    let mut publisher = hosts.publisher(4, 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    // Node 4 is not in its member list yet; it learns of it from node 4's frames.
    hosts.start(away);
    eventually("all records on the host that was away", || (hosts.committed(away) >= Lsn(1_000)).then_some(()));
}

#[test]
fn snapshots_are_sent_to_members_only_and_only_their_files_are_served() {
    let (hosts, publisher, leader, _) = with_history(false, 0);
    drop(publisher);
    let follower = leader % 3 + 1;
    let id = wal::meta::read(&tapestore::disk::RealDisk, hosts.store(leader)).unwrap().unwrap().store_id;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let at = |n: usize| {
            let address = hosts.addresses[n - 1].clone();
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            local::connect(endpoint, address, local::Wanted::default())
        };
        let mut client = SupplyClient::new(at(leader).await.unwrap());
        let request = |cluster: u128, node| CopyRequest { cluster: cluster.to_le_bytes().to_vec().into(), node };
        let mut refused = Vec::new();
        for bad in [request(id + 1, follower as u64), request(id, leader as u64), request(id, 77)] {
            refused.push(client.open(bad).await.unwrap_err().code());
        }
        let mut other = SupplyClient::new(at(follower).await.unwrap());
        refused.push(other.open(request(id, leader as u64)).await.unwrap_err().code());
        let (denied, failed) = (Code::PermissionDenied, Code::FailedPrecondition);
        assert_eq!(refused, [failed, denied, denied, failed]);
        let node = follower as u64;
        let offer = client.open(request(id, node)).await.unwrap().into_inner();
        assert!(offer.files.iter().any(|f| f.name.starts_with("sst/")) && offer.node == leader as u64);
        let fetch = |copy, name: &str, offset| FetchRequest { node, copy, name: name.to_owned(), offset };
        for (bad, code) in [
            (fetch(offer.copy + 1, "store.meta", 0), Code::NotFound),
            (fetch(offer.copy, "../LOCK", 0), Code::InvalidArgument),
            (fetch(offer.copy, "/etc/passwd", 0), Code::InvalidArgument),
            (fetch(offer.copy, "store.meta", 1 << 40), Code::InvalidArgument),
            (FetchRequest { node: 77, ..fetch(offer.copy, "store.meta", 0) }, Code::PermissionDenied),
        ] {
            assert_eq!(client.fetch(bad).await.unwrap_err().code(), code);
        }
        // A second request makes a new copy and removes the one before.
        let again = client.open(request(id, node)).await.unwrap().into_inner();
        assert_eq!(client.fetch(fetch(offer.copy, "store.meta", 0)).await.unwrap_err().code(), Code::NotFound);
        client.close(fetch(again.copy, "", 0)).await.unwrap();
        assert_eq!(client.fetch(fetch(again.copy, "store.meta", 0)).await.unwrap_err().code(), Code::NotFound);
    });
    std::thread::sleep(Duration::from_millis(10));
    assert!(std::fs::read_dir(hosts.store(leader).join("offers")).unwrap().next().is_none());
}

#[test]
fn a_host_that_may_have_lost_frames_installs_a_snapshot_and_votes_again() {
    let mut hosts = Hosts::new(false);
    (1..=3).for_each(|n| hosts.kill(n));
    std::fs::write(hosts.dir.path().join("storage.toml"), format!("{TIMES}flush = \"interval\"\n")).unwrap();
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let (lossy_host, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let open = |hosts: &Hosts, n| {
        let options = Options::new(hosts.store(n), PublisherId(1));
        Publisher::open(Options { durability: Durability::QuorumOs, open_timeout: PATIENCE, ..options }).unwrap()
    };
    let mut publisher = open(&hosts, third);
    publish(&mut publisher, 0..2_000);
    publisher.flush(Durability::QuorumOs, PATIENCE).unwrap();
    hosts.kill(lossy_host);
    // A different boot id: as if the host had lost power.
    let mut meta = MetaFile::open(&RealDisk, hosts.store(lossy_host)).unwrap();
    assert!(meta.meta().boot > 0);
    meta.update(Meta { boot: 5, ..meta.meta().clone() }).unwrap();
    publish(&mut publisher, 2_000..3_000);
    hosts.start_storage(lossy_host);
    let status_contains = |hosts: &Hosts, what: &str| {
        let output = hosts.tape(lossy_host, &["cluster", "status"]);
        String::from_utf8_lossy(&output.stdout).contains(what).then_some(())
    };
    eventually("the status of a host without a vote", || {
        status_contains(&hosts, "waits for a snapshot of the leader's store, and does not vote")
    });
    assert!(status_contains(&hosts, "lossy").is_some());
    hosts.start_replication(lossy_host);
    eventually("the snapshot install", || hosts.status(lossy_host).filter(|s| s["needs_snapshot"] == false));
    eventually("all records", || (hosts.committed(lossy_host) >= Lsn(3_000)).then_some(()));
    hosts.kill(leader);
    publish(&mut publisher, 3_000..4_000);
    publisher.flush(Durability::QuorumOs, PATIENCE).unwrap();
    drop(publisher);
    hosts.start(leader);
    (1..=3).for_each(|n| eventually("all records on each host", || (hosts.committed(n) >= Lsn(4_000)).then_some(())));
    let expected: Vec<u64> = (0..4_000).collect();
    assert!(hosts.stop().iter().all(|ids| ids.ends_with(&expected[3_000..])));
}
