//! SSTables of a stopped cluster host that are rebuilt from the records of another host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use tapestore::lsn::Lsn;
use tapestore::sstable;

use crate::cluster::{Hosts, ok};
use crate::fixture::{Store, eventually};

/// The SSTables of `store`, with their bytes.
fn files(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = std::fs::read_dir(store.join(sstable::DIR)).unwrap().map(|e| e.unwrap());
    names.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// Changes a byte in the middle of the SSTable `name`.
fn damage(store: &Path, name: &str) {
    let path = store.join(sstable::DIR).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Publishes records of several kinds on host `n`; returns the last LSN.
fn load(hosts: &Hosts, n: usize) -> Lsn {
    ok(&hosts.tape(n, &["publish", "--sim", "--records", "6000", "--instruments", "20", "--durability", "quorum"]));
    hosts.committed(n)
}

fn has(hosts: &Hosts, n: usize, last: Lsn) {
    eventually("all records on a host", || (hosts.committed(n) >= last).then_some(()));
}

#[test]
fn a_lost_sstable_of_a_cluster_host_is_rebuilt_from_the_records_of_another_host() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let (host, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    // Each host flushes at another record: no SSTable of one host is one of another.
    for flushes in [leader, host, third] {
        let last = load(&hosts, leader);
        (1..=3).for_each(|n| has(&hosts, n, last));
        ok(&hosts.tape(flushes, &["flush"]));
    }
    let last = load(&hosts, leader);
    (1..=3).for_each(|n| has(&hosts, n, last));
    hosts.stop_host(host);
    let before = files(hosts.store(host));
    let theirs = files(hosts.store(leader));
    assert!(before.iter().all(|file| theirs.values().all(|bytes| bytes != file.1)), "SSTables differ between hosts");
    let store = hosts.store(host).to_path_buf();
    let mut largest: Vec<&String> = before.keys().collect();
    largest.sort_by_key(|name| std::cmp::Reverse(before[*name].len()));
    let kinds = |name: &str| name.split('-').next().unwrap().to_owned();
    let other = largest.iter().find(|name| kinds(name) != kinds(largest[0])).expect("several kinds");
    // A changed byte; then a file that is gone; then all files.
    for (lost, from) in [(vec![largest[0]], leader), (vec![other, largest[0]], third), (largest.clone(), leader)] {
        match &lost[..] {
            [one] => damage(&store, one),
            more => more.iter().for_each(|name| std::fs::remove_file(store.join(sstable::DIR).join(name)).unwrap()),
        }
        let found = hosts.tape(host, &["repair"]);
        let advice = format!("tape repair --from-peer HOST:PORT --store {}", store.display());
        assert!(found.status.code() == Some(65) && both(&found).contains(&advice), "{}", both(&found));
        let report = ok(&hosts.tape(host, &["repair", "--from-peer", &hosts.addresses[from - 1]]));
        assert_eq!(report.matches("replaced, rebuilt from the records of node").count(), lost.len(), "{report}");
        assert!(report.contains(&format!("next: tape-storage --store {}", store.display())), "{report}");
        assert!(files(&store) == before, "the very same bytes: {report}");
        ok(&hosts.tape(host, &["repair"]));
        ok(&hosts.tape(host, &["verify"]));
    }
    let kept: Vec<_> = std::fs::read_dir(store.join("lost")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(kept.len() == 1 && kept[0].to_str().unwrap().starts_with(largest[0].as_str()), "the damaged file is kept: {kept:?}");
    let again = ok(&hosts.tape(host, &["repair", "--from-peer", &hosts.addresses[leader - 1]]));
    assert!(again.contains("no SSTable is damaged"), "{again}");
    hosts.start(host);
    has(&hosts, host, last);
    let same = eventually("answers of all hosts", || {
        let output = hosts.tape(leader, &["cluster", "scrub"]);
        (output.status.code() != Some(69)).then_some(output)
    });
    assert!(ok(&same).contains("equal    3 hosts"), "{}", both(&same));
}

#[test]
fn a_host_that_lacks_the_records_or_has_damaged_ones_is_refused_and_nothing_is_changed() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let (host, behind) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let first = load(&hosts, leader);
    (1..=3).for_each(|n| has(&hosts, n, first));
    hosts.stop_host(behind);
    let last = load(&hosts, leader);
    has(&hosts, host, last);
    hosts.stop_host(host);
    hosts.stop_host(leader);
    let store = hosts.store(host).to_path_buf();
    let name = files(&store).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    damage(&store, &name);
    let before = files(&store);
    let at = |hosts: &Hosts, n: usize| hosts.addresses[n - 1].clone();
    let refused = |hosts: &Hosts, peer: &str, code: i32, words: &[&str]| {
        let output = hosts.tape(host, &["repair", "--from-peer", peer]);
        let text = both(&output);
        assert!(output.status.code() == Some(code) && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        assert!(files(&store) == before && !store.join("lost").exists() && !store.join("rebuild").exists(), "{text}");
    };
    refused(&hosts, "127.0.0.1:9", 2, &["no other member has the address 127.0.0.1:9", &at(&hosts, leader)]);
    refused(&hosts, &at(&hosts, leader), 69, &[&at(&hosts, leader), "run the command again"]);
    // Alone it has no majority, and no more records than it had.
    hosts.start(behind);
    let path = store.join(sstable::DIR).join(&name);
    let reasons = [&format!("{}: not rebuilt", path.display()), "has the committed records up to", "tape repair --from BACKUP"];
    eventually("an answer of the host that is behind", || {
        let output = hosts.tape(host, &["repair", "--from-peer", &at(&hosts, behind)]);
        (output.status.code() != Some(69)).then_some(())
    });
    refused(&hosts, &at(&hosts, behind), 65, &reasons);
    // The number of another host: the other end does not prove to be that one.
    refused(&hosts, &format!("{leader}={}", at(&hosts, behind)), 69, &["run the command again"]);
    // A host that has the records, but not whole.
    let theirs = files(hosts.store(leader)).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    damage(hosts.store(leader), &theirs);
    hosts.start(leader);
    has(&hosts, behind, last);
    has(&hosts, leader, last);
    refused(&hosts, &at(&hosts, leader), 65, &["not rebuilt", "cannot read its own records", "Try another host"]);
    let report = ok(&hosts.tape(host, &["repair", "--json", "--from-peer", &at(&hosts, behind)]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["healed"][0], &report["left"]), (&path.to_str().unwrap().into(), &serde_json::json!([])));
    // While it is served it is not touched.
    hosts.start(host);
    has(&hosts, host, last);
    let locked = hosts.tape(host, &["repair", "--from-peer", &at(&hosts, behind)]);
    assert_eq!(locked.status.code(), Some(75), "{}", both(&locked));
}

#[test]
fn records_leave_a_host_only_for_the_certificate_of_a_member() {
    let mut hosts = Hosts::new(true);
    let leader = hosts.leader();
    let (host, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let last = load(&hosts, leader);
    has(&hosts, host, last);
    hosts.stop_host(host);
    let store = hosts.store(host).to_path_buf();
    let sound = files(&store);
    damage(&store, sound.keys().next().unwrap());
    let before = files(&store);
    let certs = hosts.certs();
    let repair = |name: &str| {
        let file = |file: &str| certs.join(file).to_str().unwrap().to_owned();
        let (cert, key, ca) = (file(&format!("{name}.pem")), file(&format!("{name}.key")), file("ca.pem"));
        let peer = ["repair", "--from-peer", &hosts.addresses[leader - 1]];
        hosts.tape(host, &[&peer[..], &["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca]].concat())
    };
    for other in ["operator".to_owned(), format!("node-{third}")] {
        let refused = repair(&other);
        assert!(!refused.status.success() && both(&refused).contains("certificate"), "{}", both(&refused));
        assert!(files(&store) == before, "nothing is changed");
    }
    let plain = hosts.tape(host, &["repair", "--from-peer", &hosts.addresses[leader - 1]]);
    assert!(!plain.status.success() && files(&store) == before, "{}", both(&plain));
    ok(&repair(&format!("node-{host}")));
    assert!(files(&store) == sound, "the very same bytes");
}

#[test]
fn a_store_of_its_own_and_a_damaged_log_are_not_rebuilt_from_another_host() {
    let mut store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "2000"]);
    assert!(store.terminate().success());
    let alone = store.tape(&["repair", "--from-peer", "127.0.0.1:9"]);
    assert!(alone.status.code() == Some(2) && both(&alone).contains("is not a host of a cluster"), "{}", both(&alone));
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let host = leader % 3 + 1;
    for _ in 0..2 {
        let last = load(&hosts, leader);
        has(&hosts, host, last);
    }
    hosts.kill(host);
    let segment = hosts.store(host).join("wal").join(tapestore::wal::format::segment_name(tapestore::lsn::Position(0)));
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let refused = hosts.tape(host, &["repair", "--from-peer", &hosts.addresses[leader - 1]]);
    let text = both(&refused);
    assert!(refused.status.code() == Some(65) && text.contains("tape cluster install-snapshot --from HOST:PORT"), "{text}");
}
