//! Stores of an earlier version open with every record. `services/tests/fixtures` holds them as a kill left them.
//!
//! The programs of 2026-11-28 wrote them (`raft.meta` version 2, `store.meta` version 1, protocol between hosts 3):
//! `tape publish --sim --records 20000 --instruments 3000 --seed 3`, six times, with `--segment-size 1M --memtable-size 16M`;
//! and `--records 2000 --instruments 50 --seed 4 --level quorum` on three hosts. The constants below are the output of
//! `tape export --json` of that version.

use std::path::Path;
use std::process::{Command, Stdio};

use tapestore::lsn::Lsn;

use crate::cluster::{Hosts, ok};
use crate::fixture::{Store, eventually};

/// Kind, records and checksum, as `tape export --json` prints them.
type Expected = [(&'static str, u64, &'static str); 4];

const ONE_HOST: Expected = [
    ("book", 45_768, "4deb1b4bf0c3fcec"),
    ("definition", 18_000, "a49e3387d08b21c2"),
    ("quote", 46_554, "b6cc0164552cdadc"),
    ("trade", 9_678, "7934c5db8fa692fc"),
];

const THREE_HOSTS: Expected = [
    ("book", 972, "2b6812ae971908cf"),
    ("definition", 50, "767f426c00eea0a4"),
    ("quote", 797, "694d36d79c773eef"),
    ("trade", 181, "48956d24737a0e26"),
];

/// Unpacks the fixture `name` into `dir`.
fn unpack(name: &str, dir: &Path) {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut tar = zstd::Decoder::new(std::fs::File::open(packed).unwrap()).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    let mut child = Command::new("tar").arg("-x").arg("-C").arg(dir).stdin(Stdio::piped()).spawn().unwrap();
    std::io::copy(&mut tar, child.stdin.as_mut().unwrap()).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Kind, records and checksum of each file in the output of `tape export --json`, by kind.
fn exported(output: &str) -> Vec<(String, u64, String)> {
    let of = |line: &str| {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| object[key].as_str().unwrap().to_owned();
        (text("kind"), object["records"].as_u64().unwrap(), text("checksum"))
    };
    let mut files: Vec<_> = output.lines().map(of).collect();
    files.sort();
    files
}

fn expected(files: Expected) -> Vec<(String, u64, String)> {
    files.map(|(kind, records, checksum)| (kind.to_owned(), records, checksum.to_owned())).to_vec()
}

#[test]
fn a_store_of_an_earlier_version_opens_with_every_record_and_accepts_more() {
    let mut store = Store::new(&["--memtable-size", "64M"]);
    unpack("one-host-2026-11-28.tar.zst", &store.path);
    store.start();
    assert_eq!(store.reader().control().durable(), Lsn(120_000));
    let out = store.path.with_file_name("out");
    let export = |dir: &str| store.tape_ok(&["export", out.join(dir).to_str().unwrap(), "--format", "csv", "--json"]);
    assert_eq!(exported(&export("1/")), expected(ONE_HOST));
    store.tape_ok(&["verify"]);
    let symbols = store.tape_ok(&["symbols", "--json"]);
    assert_eq!(symbols.lines().count(), 3_000);
    // The store accepts records, and a second start of this version reads them.
    store.tape_ok(&[
        "publish",
        "--sim",
        "--records",
        "20000",
        "--instruments",
        "3000",
        "--seed",
        "3",
        "--publisher",
        "1",
        "--durability",
        "fsync",
    ]);
    store.kill();
    store.start();
    assert_eq!(store.reader().control().durable(), Lsn(140_000));
    store.tape_ok(&["verify"]);
}

#[test]
fn three_hosts_of_an_earlier_version_elect_a_leader_and_have_every_record() {
    let (mut hosts, _) = Hosts::bare(3, false);
    unpack("three-hosts-2026-11-28.tar.zst", &hosts.dir.path().join("three"));
    for n in 1..=3 {
        let status = Command::new("mv").arg(hosts.dir.path().join(format!("three/{n}"))).arg(hosts.store(n)).status();
        assert!(status.unwrap().success());
        hosts.start(n);
    }
    let leader = hosts.leader();
    for n in 1..=3 {
        eventually("its records", || (hosts.committed(n) >= Lsn(2_000)).then_some(()));
        let out = hosts.dir.path().join(format!("out-{n}/"));
        let output = ok(&hosts.tape(n, &["export", out.to_str().unwrap(), "--format", "csv", "--json"]));
        assert_eq!(exported(&output), expected(THREE_HOSTS), "on host {n}");
    }
    ok(&hosts.tape(leader, &["publish", "--sim", "--records", "1000", "--instruments", "50", "--durability", "quorum"]));
    (1..=3).for_each(|n| eventually("the new records", || (hosts.committed(n) >= Lsn(3_000)).then_some(())));
}
