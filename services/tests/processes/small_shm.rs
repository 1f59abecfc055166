//! Storage keeps running in a shared memory as small as a container's, pinned by readers.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tape_services::processes::Process;
use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::publisher::{PublishError, Publisher};
use tapestore::reader::{At, Reader, Snapshot};
use tapestore::record::Depth10;
use tapestore::shm::control::Statistic;
use tapestore::shm::spill;

use crate::fixture::{PATIENCE, Store, eventually, role, signal};

/// Environment variable: MiB of the inner test's own shared memory.
const SIZE: &str = "TAPE_TEST_SHM_MIB";

/// Runs the test `inner` of this module in a mount namespace with a /dev/shm of `mib` MiB.
fn in_shared_memory_of(mib: u32, inner: &str) {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can mount a shared memory of its own");
    }
    let exe = std::env::current_exe().unwrap();
    let mount = format!("mount -t tmpfs -o size={mib}m tmpfs /dev/shm || exit 77; exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &mount]).arg(exe);
    command.args([&format!("small_shm::{inner}"), "--exact", "--nocapture"]).env(SIZE, mib.to_string());
    match command.status() {
        Ok(status) if status.code() == Some(77) => println!("skipped: no shared memory can be mounted here"),
        Ok(status) => assert!(status.success(), "with {mib} MiB of shared memory: {status}"),
        Err(error) => println!("skipped: no mount namespace: {error}"),
    }
}

#[test]
fn storage_accepts_and_flushes_while_stopped_readers_pin_all_of_64_mib_of_shared_memory() {
    in_shared_memory_of(64, "readers_pin_everything");
}

#[test]
fn storage_serves_in_128_mib_of_shared_memory() {
    in_shared_memory_of(128, "readers_pin_everything");
}

/// Pins a snapshot of each MemTable until the process is killed.
pub(crate) fn hold(store: &Path) {
    let mut reader = Reader::open(store).unwrap();
    let mut held: Vec<Snapshot> = Vec::new();
    let mut version = 0;
    loop {
        let now = reader.control().table_version();
        if now != version
            && let Ok(mut snapshot) = reader.snapshot(At::Appended)
        {
            let last = snapshot.last();
            drop(snapshot.get(last));
            held.push(snapshot);
            version = now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Load {
    publisher: Publisher,
    sent: u64,
}

impl Load {
    fn publish(&mut self) {
        let instrument = InstrumentId(1 + (self.sent % 10) as u32);
        // Long records: few fill a MemTable.
        let depth = Depth10 { instrument, sequence: self.sent as u32 + 1, ..Depth10::default() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.publisher.publish(&depth) {
                Ok(_) => break,
                Err(PublishError::Full { .. }) if Instant::now() < deadline => {}
                Err(e) => panic!("record {}: {e}", self.sent + 1),
            }
        }
        self.sent += 1;
    }

    /// Publishes until `more` further MemTables are flushed.
    fn until_flushed(&mut self, reader: &Reader, more: u64) {
        let counted = || reader.control().statistic(Statistic::Flushes);
        // A guard against hangs, per MemTable.
        for target in counted() + 1..=counted() + more {
            let deadline = Instant::now() + 2 * PATIENCE;
            while counted() < target {
                (0..100).for_each(|_| self.publish());
                assert!(Instant::now() < deadline, "{} of {target} MemTables are flushed after {}", counted(), self.sent);
            }
        }
    }
}

fn spilled_files(store: &Store) -> Vec<String> {
    let entries = std::fs::read_dir(store.path.join(spill::DIR)).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}

#[test]
fn readers_pin_everything() {
    if std::env::var(SIZE).is_err() {
        return;
    }
    // Memory sizes are the defaults.
    let mut store = Store::new(&["--segment-size", "4M"]);
    store.start();
    let mut load = Load { publisher: store.numbered_publisher(1, Durability::Os), sent: 0 };
    let mut reader = store.reader();
    let holders: Vec<Process> = (0..3).map(|_| role("holder", &store.path, &[])).collect();
    load.until_flushed(&reader, 5);
    holders.iter().for_each(|h| signal(h.id(), rustix::process::Signal::STOP));
    assert_eq!(reader.control().statistic(Statistic::FlushFailures), 0);
    load.until_flushed(&reader, 2);
    assert!(reader.control().statistic(Statistic::Spilled) > 0, "shared memory is short");
    assert!(!spilled_files(&store).is_empty());
    let status = store.tape_ok(&["status"]);
    assert!(status.contains("shared memory is short") && status.contains("keeps"), "{status}");
    // A kill leaves spilled MemTables; the next start removes them and spills again.
    store.kill();
    let left = spilled_files(&store);
    store.start();
    load.until_flushed(&reader, 2);
    assert!(reader.control().statistic(Statistic::Spilled) > 0);
    assert!(spilled_files(&store).iter().all(|name| !left.contains(name)), "{left:?}");
    load.publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    assert_eq!(load.publisher.take_lost(), []);
    let mut snapshot = reader.snapshot(At::Committed).unwrap();
    assert_eq!(snapshot.last(), Lsn(load.sent));
    for lsn in (1..=load.sent).step_by(997) {
        let row = snapshot.get(Lsn(lsn)).unwrap().unwrap();
        assert_eq!(u64::from(row.record.get::<Depth10>().unwrap().sequence), lsn);
    }
    drop(snapshot);
    // Without the readers, memory is free again.
    drop(holders);
    eventually("MemTables in shared memory", || {
        (0..1000).for_each(|_| load.publish());
        let list = reader.control().tables()?;
        list.tables.iter().take(list.count).all(|(id, _)| id & spill::SPILLED == 0).then_some(())
    });
    load.publisher.close(PATIENCE).unwrap();
    assert!(store.terminate().success());
    assert!(!store.path.join(spill::DIR).exists(), "a clean stop removes spilled MemTables");
    store.tape_ok(&["verify"]);
}
