//! Process limits: descriptors and address space. An error names the limit to raise.

use std::path::Path;
use std::process::Command;

use procfs::process::{LimitValue, Process};
use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::record::Trade;
use tapestore::shm::control::Statistic;

use crate::fixture::{PATIENCE, Store, eventually, under};

const SMALL: [&str; 4] = ["--memtable-size", "16M", "--segment-size", "1M"];

fn descriptors(pid: u32) -> usize {
    Process::new(pid.cast_signed()).unwrap().fd_count().unwrap()
}

#[test]
fn publishers_beyond_the_descriptor_limit_are_refused_and_attached_ones_are_served() {
    let mut store = Store::limited("ulimit -n 100", &SMALL);
    store.start();
    let open = |id| Publisher::open(Options::new(&store.path, PublisherId(id)));
    let before = descriptors(store.pid());
    let (mut attached, mut refused) = (Vec::new(), 0);
    for id in 1..=24 {
        match open(id) {
            Ok(publisher) => attached.push(publisher),
            Err(Error::Refused { reason, .. }) if reason.contains("files open") && reason.contains("ulimit -n") => refused += 1,
            Err(other) => panic!("publisher {id}: {other}"),
        }
    }
    assert!(attached.len() > 4 && attached.len() + refused == 24, "{} are attached", attached.len());
    let instrument = attached[0].instrument(&"X:A".parse().unwrap()).unwrap();
    for (n, publisher) in attached.iter_mut().enumerate() {
        publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
        let flushed = publisher.flush(Durability::Fsync, PATIENCE);
        assert!(flushed.is_ok(), "attached publisher {n} is not served: {flushed:?}");
    }
    let more = descriptors(store.pid()) - before;
    assert!(more <= attached.len() * 6 + 6, "{} publishers use {more} descriptors", attached.len());
    assert_eq!(store.reader().control().statistic(Statistic::Records), attached.len() as u64);
    // Once some have ended, others can attach.
    drop(attached);
    let late = eventually("an attach", || open(99).ok());
    late.close(PATIENCE).unwrap();
}

/// The soft and the hard limit of open files of the process `pid`; `None` is no limit.
fn limit(pid: u32) -> [Option<u64>; 2] {
    let limit = Process::new(pid.cast_signed()).unwrap().limits().unwrap().max_open_files;
    [limit.soft_limit, limit.hard_limit].map(|l| if let LimitValue::Value(n) = l { Some(n) } else { None })
}

#[test]
fn storage_raises_its_soft_limit_of_open_files_to_the_hard_one() {
    let mut store = Store::limited("ulimit -S -n 64", &SMALL);
    store.start();
    let [soft, hard] = limit(store.pid());
    assert_eq!(soft, hard);
}

/// Exit code and error message of `tape scan` on `store` with `mib` MiB of address space.
fn scan_with(store: &Path, mib: u64) -> (Option<i32>, String) {
    let mut command: Command = under(&format!("ulimit -v {}", mib << 10), env!("CARGO_BIN_EXE_tape"));
    let output = command.args(["scan", "X:A", "trade", "--store"]).arg(store).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_reader_without_address_space_reports_it_and_not_storage_down() {
    let mut store = Store::new(&["--memtable-size", "128M", "--segment-size", "1M"]);
    store.start();
    let mut publisher = store.publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"X:A".parse().unwrap()).unwrap();
    assert_eq!(instrument, InstrumentId(1));
    publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!(scan_with(&store.path, 4096).0, Some(0));
    // Lowers the limit until a MemTable no longer fits; stops where the process cannot start.
    let steps = (1..=12).map(|n| scan_with(&store.path, 512 - n * 32)).take_while(|(code, _)| code.is_some());
    let failed = steps.filter(|(code, _)| *code != Some(0)).collect::<Vec<_>>();
    assert!(failed.iter().any(|(_, message)| message.contains("ulimit -v")), "{failed:?}");
    assert!(!failed.iter().any(|(_, message)| message.contains("no storage process")), "{failed:?}");
}
