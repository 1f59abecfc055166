//! A host that the leader's log does not reach back to, or whose files are damaged, gets a copy of the leader's store.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tape_services::replication::local;
use tape_services::replication::proto::supply_client::SupplyClient;
use tape_services::replication::proto::{CopyRequest, FetchRequest};
use tapestore_engine::consensus::MetaFile;
use tapestore_engine::consensus::meta::Meta;
use tapestore::disk::RealDisk;
use tapestore_engine::snapshot::install::INCOMING;
use tapestore::lsn::{Level, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::shm::control::Statistic;
use tapestore::{reader::Reader, sstable, wal};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::cluster::{Host, Hosts, TIMES, end, ok, publish};
use crate::fixture::{PATIENCE, eventually};

/// Three hosts whose logs do not reach back to the first record, and what was published.
fn with_history(has_tls: bool, bytes_per_second: u64) -> (Hosts, Publisher, usize, u64) {
    let mut hosts = Hosts::new(has_tls);
    (1..=3).for_each(|n| hosts.kill(n));
    hosts.memtable = "16M";
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    let mut next = 0;
    let filed = |hosts: &Hosts, n| {
        Reader::open(hosts.store(n)).unwrap().control().statistic(Statistic::CheckpointPosition) > 3 * (4 << 20)
    };
    while !(1..=3).all(|n| filed(&hosts, n)) {
        publish(&mut publisher, next..next + 20_000);
        publisher.flush(Level::Quorum, PATIENCE).unwrap();
        next += 20_000;
    }
    drop(publisher);
    (1..=3).for_each(|n| eventually("all records on each host", || (hosts.committed(n) >= Lsn(next)).then_some(())));
    // From now on hardly more log is kept than a start needs.
    (1..=3).for_each(|n| hosts.kill(n));
    std::fs::write(hosts.dir.path().join("storage.toml"), format!("{TIMES}retain-bytes = 1048576\n")).unwrap();
    std::fs::write(hosts.dir.path().join("replication.toml"), format!("copy-bytes-per-second = {bytes_per_second}\n")).unwrap();
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let publisher = hosts.publisher(leader, 1);
    (hosts, publisher, leader, next)
}

/// Adds a host with an empty store, which is told of itself and `others`.
fn join(hosts: &mut Hosts, n: usize, others: std::ops::RangeInclusive<usize>) -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = hosts.dir.path().join(format!("host-{n}"));
    hosts.hosts.push(Host { store, storage: None, replication: None });
    hosts.addresses.push(port.to_string());
    let all: Vec<_> = others.chain([n]).map(|n| format!("{n}={}", hosts.addresses[n - 1])).collect();
    let init = ["cluster", "init", "--join", "--cluster", "test", "--segment-size", "4M", "--node", &n.to_string(), "--members"];
    ok(&hosts.tape(n, &[&init[..], &[&all.join(",")]].concat()));
    hosts.start(n);
    format!("{n}={port}")
}

/// Asks whoever leads for a change of members until it has happened: the lead may go over in between.
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

/// Files of `dir` that have their names for good.
fn files(dir: &Path) -> BTreeSet<(u64, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let whole = entries.filter(|e| e.path().extension().is_some_and(|x| x != "part"));
    whole.filter_map(|e| Some((e.metadata().ok()?.ino(), e.path()))).collect()
}

#[test]
fn a_new_host_is_filled_by_itself_while_records_come_in_and_goes_on_where_it_was_killed() {
    let (mut hosts, mut publisher, leader, mut next) = with_history(false, 4 << 20);
    let itself = join(&mut hosts, 4, 1..=3);
    add(&hosts, 4, &itself);
    let incoming = hosts.store(4).join(INCOMING);
    let history = incoming.join(sstable::DIR);
    // Not everything is fetched yet: it comes at 4 MiB a second.
    let before = eventually("a file of history", || Some(files(&history)).filter(|f| !f.is_empty()));
    end(&mut hosts.hosts[3].replication);
    publish(&mut publisher, next..next + 5_000);
    next += 5_000;
    assert!(hosts.committed(4) == Lsn(0), "what is fetched is not seen before it is whole");
    hosts.start_replication(4);
    eventually("all records on the new host", || (hosts.committed(4) >= Lsn(next)).then_some(()));
    publish(&mut publisher, next..next + 5_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    next += 5_000;
    eventually("it to follow", || (hosts.committed(4) >= Lsn(next)).then_some(()));
    assert!(!incoming.exists());
    let now: BTreeSet<u64> = files(&hosts.store(4).join(sstable::DIR)).into_iter().map(|f| f.0).collect();
    assert!(before.iter().any(|(inode, _)| now.contains(inode)), "a file that was there has been fetched again");
    promote(&hosts, 4);
    let same = ok(&hosts.tape(leader, &["cluster", "scrub"]));
    assert!(same.contains("equal    4 hosts"), "{same}");
    // Nothing is left behind at the leader.
    let offers = hosts.store(leader).join("offers");
    eventually("the copy to go", || std::fs::read_dir(&offers).unwrap().next().is_none().then_some(()));
    drop(publisher);
    assert!(hosts.status(4).unwrap()["members"].as_array().unwrap().len() == 4);
}

#[test]
fn a_host_with_damaged_files_is_filled_from_the_leader_by_one_command_and_what_it_had_is_kept() {
    let (mut hosts, mut publisher, leader, mut next) = with_history(true, 0);
    let broken = leader % 3 + 1;
    // History, and when it is stopped the log below what was durable.
    let table = files(&hosts.store(broken).join(sstable::DIR)).into_iter().next().unwrap().1;
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    // In place: storage and readers have it mapped.
    let damaged = std::fs::OpenOptions::new().write(true).open(&table).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&damaged, &bytes[middle..=middle], middle as u64).unwrap();
    let certs = hosts.certs();
    let file = |name: String| certs.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("operator.pem".into()), file("operator.key".into()), file("ca.pem".into()));
    let operator = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    let scrub = |hosts: &Hosts| hosts.tape(leader, &[&["cluster", "scrub"][..], &operator].concat());
    let found = scrub(&hosts);
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.status.code() == Some(1) && said.contains(&format!("node {broken} cannot read")), "{said}");
    hosts.kill(broken);
    let logs: Vec<_> = files(&hosts.store(broken).join(wal::DIR)).into_iter().map(|f| f.1).collect();
    let log = logs.iter().max().unwrap();
    let mut bytes = std::fs::read(log).unwrap();
    bytes[4096..4160].fill(0xaa);
    std::fs::write(log, bytes).unwrap();
    publish(&mut publisher, next..next + 5_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    next += 5_000;
    let fill = |from: &str, node: usize| {
        let (cert, key, ca) = (file(format!("node-{node}.pem")), file(format!("node-{node}.key")), file("ca.pem".to_owned()));
        let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
        hosts.tape(broken, &[&["cluster", "fill", "--from", from][..], &tls].concat())
    };
    let other = 6 - leader - broken;
    let not_there = fill(&hosts.addresses[other - 1], broken);
    let said = String::from_utf8_lossy(&not_there.stderr).into_owned();
    assert!(!not_there.status.success() && said.contains(&format!("node {leader} does")), "a follower makes no copy: {said}");
    let other_name = fill(&hosts.addresses[leader - 1], other);
    assert!(!other_name.status.success(), "another host's certificate");
    let done = ok(&fill(&hosts.addresses[leader - 1], broken));
    assert!(done.contains("what was here is in"), "{done}");
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
    // It can lead: nothing that it had promised is forgotten.
    ok(&hosts.tape(leader, &["cluster", "transfer", &broken.to_string()]));
    publish(&mut publisher, next..next + 1_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    let served = hosts.tape(broken, &["cluster", "fill", "--from", &hosts.addresses[leader - 1]]);
    assert!(!served.status.success(), "a store that is served is not filled");
}

#[test]
fn a_host_joins_when_none_of_the_founders_is_a_member_any_more() {
    let mut hosts = Hosts::new(false);
    let mut publisher = hosts.publisher(hosts.leader(), 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    drop(publisher);
    // All are added before the first of them votes: who began with the present members could not make sense of the log.
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
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    eventually("all records on the new host", || (hosts.committed(7) >= Lsn(2_000)).then_some(()));
    promote(&hosts, 7);
    assert_eq!(hosts.status(7).unwrap()["members"].as_array().unwrap().len(), 4);
}

#[test]
fn a_host_that_was_away_hears_a_leader_that_became_a_member_meanwhile() {
    let mut hosts = Hosts::new(false);
    let away = hosts.leader() % 3 + 1;
    hosts.kill(away);
    let itself = join(&mut hosts, 4, 1..=3);
    add(&hosts, 4, &itself);
    promote(&hosts, 4);
    // Who is to lead has to have carried out its own promotion.
    eventually("its promotion", || hosts.status(4).filter(|s| member(s, 4).is_some_and(|m| m["votes"] == true)));
    change(&hosts, &["transfer", "4"], |s| s["leader"] == 4);
    let mut publisher = hosts.publisher(4, 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    // It knows nothing of node 4, whose frames tell of it.
    hosts.start(away);
    eventually("all records on the host that was away", || (hosts.committed(away) >= Lsn(1_000)).then_some(()));
}

#[test]
fn copies_are_for_members_and_nothing_but_their_files_is_read() {
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
        // A copy is made anew when it is asked for again, and the one before is gone.
        let again = client.open(request(id, node)).await.unwrap().into_inner();
        assert_eq!(client.fetch(fetch(offer.copy, "store.meta", 0)).await.unwrap_err().code(), Code::NotFound);
        client.close(fetch(again.copy, "", 0)).await.unwrap();
        assert_eq!(client.fetch(fetch(again.copy, "store.meta", 0)).await.unwrap_err().code(), Code::NotFound);
    });
    std::thread::sleep(Duration::from_millis(10));
    assert!(std::fs::read_dir(hosts.store(leader).join("offers")).unwrap().next().is_none());
}

#[test]
fn a_host_that_may_have_forgotten_frames_is_filled_by_itself_and_votes_again() {
    let mut hosts = Hosts::new(false);
    (1..=3).for_each(|n| hosts.kill(n));
    std::fs::write(hosts.dir.path().join("storage.toml"), format!("{TIMES}flush = \"interval\"\n")).unwrap();
    (1..=3).for_each(|n| hosts.start(n));
    let leader = hosts.leader();
    let (forgetful, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let open = |hosts: &Hosts, n| {
        let options = Options::new(hosts.store(n), PublisherId(1));
        Publisher::open(Options { level: Level::QuorumOs, open_timeout: PATIENCE, ..options }).unwrap()
    };
    let mut publisher = open(&hosts, third);
    publish(&mut publisher, 0..2_000);
    publisher.flush(Level::QuorumOs, PATIENCE).unwrap();
    hosts.kill(forgetful);
    // As if it had been switched off: this is another life of the system's.
    let mut meta = MetaFile::open(&RealDisk, hosts.store(forgetful)).unwrap();
    assert!(meta.meta().boot > 0);
    meta.update(Meta { boot: 5, ..meta.meta().clone() }).unwrap();
    publish(&mut publisher, 2_000..3_000);
    hosts.start_storage(forgetful);
    let says = |hosts: &Hosts, what: &str| {
        let output = hosts.tape(forgetful, &["cluster", "status"]);
        String::from_utf8_lossy(&output.stdout).contains(what).then_some(())
    };
    eventually("it to say so", || says(&hosts, "waits for a copy of the leader's store, and does not vote"));
    assert!(says(&hosts, "lossy").is_some());
    hosts.start_replication(forgetful);
    eventually("a copy", || hosts.status(forgetful).filter(|s| s["lacks_copy"] == false));
    eventually("all records", || (hosts.committed(forgetful) >= Lsn(3_000)).then_some(()));
    hosts.kill(leader);
    publish(&mut publisher, 3_000..4_000);
    publisher.flush(Level::QuorumOs, PATIENCE).unwrap();
    drop(publisher);
    hosts.start(leader);
    (1..=3).for_each(|n| eventually("all records on each host", || (hosts.committed(n) >= Lsn(4_000)).then_some(())));
    let expected: Vec<u64> = (0..4_000).collect();
    assert!(hosts.stop().iter().all(|ids| ids.ends_with(&expected[3_000..])));
}
