//! Cluster hosts that lost durable state: their whole store, or `raft.meta` alone.

use std::path::Path;
use std::process::{Command, Stdio};

use tapestore::lsn::{Durability, Lsn};

use crate::cluster::{Hosts, ok, publish};
use crate::fixture::{PATIENCE, eventually};

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).unwrap();
}

/// The error message of storage, which refuses to start on `store`.
fn refusal(store: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-storage"));
    command.arg("--store").arg(store).args(["--memtable-size", "64M"]).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn init(hosts: &Hosts, n: usize, more: &[&str], members: &str) {
    let node = n.to_string();
    let init = ["cluster", "init", "--cluster", "test", "--node", &node, "--segment-size", "4M", "--members", members];
    ok(&hosts.tape(n, &[&init[..], more].concat()));
}

/// Removes host `n` from the cluster of `leader`, initialises its new store and joins it again.
fn join_again(hosts: &mut Hosts, leader: usize, n: usize, members: &str) {
    let (node, itself) = (n.to_string(), format!("{n}={}", hosts.addresses[n - 1]));
    ok(&hosts.tape(leader, &["cluster", "remove", &node]));
    init(hosts, n, &["--join"], members);
    hosts.start(n);
    ok(&hosts.tape(leader, &["cluster", "add", &itself]));
    let end = hosts.committed(leader);
    eventually("all records on the host", || (hosts.committed(n) >= end).then_some(()));
    eventually("its vote", || hosts.tape(leader, &["cluster", "promote", &node]).status.success().then_some(()));
}

#[test]
fn a_wiped_and_reinitialised_host_cannot_vote_acknowledged_records_away() {
    let mut hosts = Hosts::new(false);
    let members: Vec<_> = (1..).zip(&hosts.addresses).map(|(n, a)| format!("{n}={a}")).collect();
    let members = members.join(",");
    hosts.leader();
    hosts.kill(1);
    let mut publisher = hosts.publisher(2, 1);
    publish(&mut publisher, 0..5_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    drop(publisher);
    hosts.kill(3);
    hosts.kill(2);
    remove(hosts.store(3));
    init(&hosts, 3, &[], &members);
    hosts.start(3);
    hosts.start(1);
    let waits = |hosts: &Hosts, n: usize| hosts.status(n).map(|s| s["waits"].as_str().unwrap_or_default().to_owned());
    let message =
        eventually("a refusal", || waits(&hosts, 3).filter(|w| w.contains("node 3 of cluster 'test' has been here before")));
    assert!(message.contains("tape cluster remove 3") && message.contains("tape cluster init --join"), "{message}");
    assert!(ok(&hosts.tape(3, &["cluster", "status"])).contains("has been here before"));
    // Longer than the election timeouts of both.
    std::thread::sleep(std::time::Duration::from_secs(4));
    for n in [1, 3] {
        let status = hosts.status(n).unwrap();
        assert!(status["role"] != "leader" && hosts.committed(n) < Lsn(5_000), "{status}");
    }
    hosts.start(2);
    let leader = hosts.leader();
    assert_eq!(leader, 2, "it alone has all acknowledged records");
    eventually("the acknowledged records", || (hosts.committed(1) >= Lsn(5_000)).then_some(()));
    // As the message advises.
    hosts.kill(3);
    remove(hosts.store(3));
    join_again(&mut hosts, leader, 3, &members);
    hosts.kill(1);
    let mut publisher = hosts.publisher(3, 2);
    publish(&mut publisher, 5_000..6_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    drop(publisher);
    // Node 1 is away: removing the other follower would end acknowledgements.
    let leader = hosts.leader();
    let is_away = |s: &serde_json::Value| s["members"].as_array().unwrap().iter().any(|m| m["node"] == 1 && m["active"] == false);
    eventually("the leader to report it as away", || hosts.status(leader).filter(is_away));
    let refused = hosts.tape(leader, &["cluster", "remove", &(5 - leader).to_string()]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("node 1 is away") && message.contains("--force"), "{message}");
    hosts.start(1);
    eventually("all records", || (hosts.committed(1) >= Lsn(6_000)).then_some(()));
    let expected: Vec<u64> = (0..6_000).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected));
}

#[test]
fn a_host_without_raft_meta_does_not_start_and_its_log_is_not_truncated() {
    let mut hosts = Hosts::new(false);
    let members: Vec<_> = (1..).zip(&hosts.addresses).map(|(n, a)| format!("{n}={a}")).collect();
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Durability::Quorum, PATIENCE).unwrap();
    drop(publisher);
    let victim = leader % 3 + 1;
    eventually("all records", || (hosts.committed(victim) >= Lsn(1_000)).then_some(()));
    let backup = hosts.dir.path().join("backup");
    ok(&hosts.tape(leader, &["backup", backup.to_str().unwrap()]));
    hosts.kill(victim);
    std::fs::remove_file(hosts.store(victim).join("raft.meta")).unwrap();
    let message = refusal(hosts.store(victim));
    assert!(message.contains("raft.meta") && message.contains("tape cluster init --join"), "{message}");
    let truncate = hosts.tape(victim, &["repair", "--truncate-at", "500", "--i-accept-loss"]);
    assert!(!truncate.status.success() && String::from_utf8_lossy(&truncate.stderr).contains("must not vote"), "{truncate:?}");
    let node = victim.to_string();
    let alone = format!("{node}={}", hosts.addresses[victim - 1]);
    let init = hosts.tape(victim, &["cluster", "init", "--cluster", "test", "--node", &node, "--members", &alone]);
    assert!(!init.status.success() && String::from_utf8_lossy(&init.stderr).contains("--join"), "{init:?}");
    // A store restored from a host's backup does not start either, until it is detached.
    hosts.hosts.push(crate::cluster::Host { store: hosts.dir.path().join("host-4"), storage: None, replication: None });
    hosts.addresses.push(String::new());
    let restored = ok(&hosts.tape(4, &["restore", backup.to_str().unwrap()]));
    assert!(restored.contains("tape cluster detach"), "{restored}");
    assert!(refusal(hosts.store(4)).contains("tape cluster detach"));
    ok(&hosts.tape(4, &["cluster", "detach"]));
    hosts.start_storage(4);
    eventually("a standalone store", || (hosts.committed(4) >= Lsn(1_000)).then_some(()));
    let again = hosts.tape(4, &["cluster", "detach"]);
    assert!(!again.status.success(), "{again:?}");
    hosts.kill(4);
    join_again(&mut hosts, leader, victim, &members.join(","));
    let expected: Vec<u64> = (0..1_000).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected));
}
