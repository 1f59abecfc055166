//! Hosts of a cluster that have lost what they promised to keep: their store, or their `raft.meta` alone.

use std::path::Path;
use std::process::{Command, Stdio};

use tapestore::lsn::{Level, Lsn};

use crate::cluster::{Hosts, ok, publish};
use crate::fixture::{PATIENCE, eventually};

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).unwrap();
}

/// What storage says when it is started on `store`, which it refuses.
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

/// Removes host `n`, whose store is made anew, from the cluster that `leader` leads, and lets it join again.
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
fn a_host_that_is_wiped_and_initialised_as_before_does_not_vote_what_was_acknowledged_away() {
    let mut hosts = Hosts::new(false);
    let members: Vec<_> = (1..).zip(&hosts.addresses).map(|(n, a)| format!("{n}={a}")).collect();
    let members = members.join(",");
    hosts.leader();
    hosts.kill(1);
    let mut publisher = hosts.publisher(2, 1);
    publish(&mut publisher, 0..5_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    drop(publisher);
    hosts.kill(3);
    hosts.kill(2);
    remove(hosts.store(3));
    init(&hosts, 3, &[], &members);
    hosts.start(3);
    hosts.start(1);
    let waits = |hosts: &Hosts, n: usize| hosts.status(n).map(|s| s["waits"].as_str().unwrap_or_default().to_owned());
    let said =
        eventually("a refusal", || waits(&hosts, 3).filter(|w| w.contains("node 3 of cluster 'test' has been here before")));
    assert!(said.contains("tape cluster remove 3") && said.contains("tape cluster init --join"), "{said}");
    assert!(ok(&hosts.tape(3, &["cluster", "status"])).contains("has been here before"));
    // Longer than both wait for a leader at most.
    std::thread::sleep(std::time::Duration::from_secs(4));
    for n in [1, 3] {
        let status = hosts.status(n).unwrap();
        assert!(status["role"] != "leader" && hosts.committed(n) < Lsn(5_000), "{status}");
    }
    hosts.start(2);
    let leader = hosts.leader();
    assert_eq!(leader, 2, "it alone has everything");
    eventually("what was acknowledged", || (hosts.committed(1) >= Lsn(5_000)).then_some(()));
    // As it was told.
    hosts.kill(3);
    remove(hosts.store(3));
    join_again(&mut hosts, leader, 3, &members);
    hosts.kill(1);
    let mut publisher = hosts.publisher(3, 2);
    publish(&mut publisher, 5_000..6_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    drop(publisher);
    // Without the other that is there nothing would be acknowledged.
    let leader = hosts.leader();
    let is_away = |s: &serde_json::Value| s["members"].as_array().unwrap().iter().any(|m| m["node"] == 1 && m["active"] == false);
    eventually("the leader to see it", || hosts.status(leader).filter(is_away));
    let refused = hosts.tape(leader, &["cluster", "remove", &(5 - leader).to_string()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("node 1 is away") && said.contains("--force"), "{said}");
    hosts.start(1);
    eventually("all records", || (hosts.committed(1) >= Lsn(6_000)).then_some(()));
    let expected: Vec<u64> = (0..6_000).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected));
}

#[test]
fn a_host_without_its_raft_meta_is_not_served_alone_and_its_log_is_not_cut() {
    let mut hosts = Hosts::new(false);
    let members: Vec<_> = (1..).zip(&hosts.addresses).map(|(n, a)| format!("{n}={a}")).collect();
    let leader = hosts.leader();
    let mut publisher = hosts.publisher(leader, 1);
    publish(&mut publisher, 0..1_000);
    publisher.flush(Level::Quorum, PATIENCE).unwrap();
    drop(publisher);
    let victim = leader % 3 + 1;
    eventually("all records", || (hosts.committed(victim) >= Lsn(1_000)).then_some(()));
    let backup = hosts.dir.path().join("backup");
    ok(&hosts.tape(leader, &["backup", backup.to_str().unwrap()]));
    hosts.kill(victim);
    std::fs::remove_file(hosts.store(victim).join("raft.meta")).unwrap();
    let said = refusal(hosts.store(victim));
    assert!(said.contains("raft.meta") && said.contains("tape cluster init --join"), "{said}");
    let cut = hosts.tape(victim, &["repair", "--truncate-at", "500", "--i-accept-loss"]);
    assert!(!cut.status.success() && String::from_utf8_lossy(&cut.stderr).contains("must not vote"), "{cut:?}");
    let node = victim.to_string();
    let alone = format!("{node}={}", hosts.addresses[victim - 1]);
    let init = hosts.tape(victim, &["cluster", "init", "--cluster", "test", "--node", &node, "--members", &alone]);
    assert!(!init.status.success() && String::from_utf8_lossy(&init.stderr).contains("--join"), "{init:?}");
    // What a backup of it was restored to is no host either, until it is said to be a store of its own.
    hosts.hosts.push(crate::cluster::Host { store: hosts.dir.path().join("host-4"), storage: None, replication: None });
    hosts.addresses.push(String::new());
    let restored = ok(&hosts.tape(4, &["restore", backup.to_str().unwrap()]));
    assert!(restored.contains("tape cluster detach"), "{restored}");
    assert!(refusal(hosts.store(4)).contains("tape cluster detach"));
    ok(&hosts.tape(4, &["cluster", "detach"]));
    hosts.start_storage(4);
    eventually("a store of its own", || (hosts.committed(4) >= Lsn(1_000)).then_some(()));
    let again = hosts.tape(4, &["cluster", "detach"]);
    assert!(!again.status.success(), "{again:?}");
    hosts.kill(4);
    join_again(&mut hosts, leader, victim, &members.join(","));
    let expected: Vec<u64> = (0..1_000).collect();
    assert!(hosts.stop().iter().all(|ids| *ids == expected));
}
