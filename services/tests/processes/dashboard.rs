//! Each metric that the dashboard draws moves when its cause is provoked, cause by cause. Those of statements are in the tests of
//! `tape-query`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tape_services::addresses;
use tapestore::bus::attach::{Message, Mode, ask};
use tapestore::bus::{BatchHeader, Bus};
use tapestore::lsn::{Durability, InstrumentId, PubSeq, PublisherId};
use tapestore::publisher::Publisher;
use tapestore::reader::At;
use tapestore::record::{RecordRef, Trade};
use tapestore::time::Ts;

use crate::cluster::{Hosts, TIMES};
use crate::fixture::{PATIENCE, Store, eventually};
use crate::metrics::scrape;

type Samples = BTreeMap<String, f64>;

/// A process that is scraped, and the metrics of it that have moved.
struct Panels {
    address: String,
    moved: BTreeSet<String>,
}

/// The samples of the metric `name`.
fn of<'s>(samples: &'s Samples, name: &'s str) -> Vec<(&'s String, &'s f64)> {
    samples.iter().filter(|(sample, _)| sample.split('{').next() == Some(name)).collect()
}

impl Panels {
    fn new(address: &str) -> Panels {
        Panels { address: address.to_owned(), moved: BTreeSet::new() }
    }

    /// Does `act`, the cause, and waits until each of `metrics` has another value than before.
    fn provoke(&mut self, cause: &str, metrics: &[&str], act: impl FnOnce()) {
        let before = scrape(&self.address);
        act();
        for metric in metrics {
            eventually(&format!("{metric} moved by {cause}"), || {
                std::net::TcpStream::connect(&self.address).ok()?;
                let now = scrape(&self.address);
                (!of(&now, metric).is_empty() && of(&now, metric) != of(&before, metric)).then_some(())
            });
            self.moved.insert((*metric).to_owned());
        }
    }
}

/// The metrics that the dashboard draws, without those of the processes themselves.
fn drawn() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/grafana/tapestore.json");
    let text = std::fs::read_to_string(path).unwrap();
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("tapestore_")).map(str::to_owned).collect()
}

/// Those of hosts; they move in the test of hosts.
const OF_HOSTS: [&str; 3] = ["tapestore_role", "tapestore_term", "tapestore_durable_to_committed_seconds_bucket"];

fn is_of_hosts(name: &str) -> bool {
    name.starts_with("tapestore_replication_") || OF_HOSTS.contains(&name)
}

fn stage(publisher: &mut Publisher, count: u64) {
    for _ in 0..count {
        let trade = Trade { instrument: InstrumentId(1), ts_recv: Ts(1_700_000_000_000_000_000), ..Trade::default() };
        while publisher.stage(RecordRef::of(&trade)).is_err() {}
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

/// Sends a batch twice, as a publisher does that was not answered, and one with a gap before it.
fn send_wrongly(store: &Store) {
    let run_dir = store.run_dir();
    let mut stream = std::os::unix::net::UnixStream::connect(run_dir.attach_socket()).unwrap();
    let publisher = PublisherId(77);
    let request = Message::Attach { publisher, mode: Mode::New, level: Durability::Os, incarnation: 1 };
    let Message::Attached(grant) = ask(&mut stream, &request).unwrap() else { panic!("the publisher is not attached") };
    let bus = Bus::join(&run_dir.bus_root(grant.instance), &run_dir.bus_prefix(grant.instance), "publisher").unwrap();
    let sender = bus.send_ingest(grant.grant).unwrap();
    let trade = Trade { instrument: InstrumentId(1), ..Trade::default() };
    let words = RecordRef::of(&trade).words().to_vec();
    let mut send = |first: u64| {
        let header = BatchHeader::new(publisher, grant.epoch, PubSeq(first), 1);
        eventually("room on the bus", || sender.send(header, &words).unwrap().then_some(()));
    };
    [1, 1, 100].into_iter().for_each(&mut send);
    let control = store.reader().control().clone();
    eventually("storage", || {
        use tapestore::shm::control::Statistic::{Duplicates, Gaps};
        (control.statistic(Duplicates) > 0 && control.statistic(Gaps) > 0).then_some(())
    });
}

#[test]
fn each_panel_of_storage_moves_when_its_cause_is_provoked() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("storage.toml");
    std::fs::write(&config, "[compaction]\nruns-max = 2\n").unwrap();
    let address = addresses::unused(1).unwrap()[0].to_string();
    let with = |more: &[&str]| -> Vec<String> {
        let own = ["--config", config.to_str().unwrap(), "--segment-size", "4M", "--metrics", &address];
        own.iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let small = with(&["--memtable-size", "16M"]);
    let mut store = Store::new(&small.iter().map(String::as_str).collect::<Vec<_>>());
    store.start();
    let mut panels = Panels::new(&address);
    let mut publisher = store.numbered_publisher(7, Durability::Fsync);
    let of_records = [
        "tapestore_records_total",
        "tapestore_kind_records_total",
        "tapestore_publisher_records_total",
        "tapestore_publish_to_append_seconds_bucket",
        "tapestore_append_to_visible_seconds_bucket",
        "tapestore_append_to_durable_seconds_bucket",
        "tapestore_sync_seconds_bucket",
        "tapestore_watermark_lsn",
        "tapestore_frame_records_count",
        "tapestore_frame_records_sum",
        "tapestore_log_written_bytes_total",
        "tapestore_log_to_recover_bytes",
        "tapestore_memtable_used_bytes",
    ];
    // One batch in 16 is measured.
    panels.provoke("records", &of_records, || (0..20).for_each(|_| stage(&mut publisher, 100)));
    panels.provoke("wrong batches", &["tapestore_refused_batches_total", "tapestore_duplicates_total"], || send_wrongly(&store));
    let of_flushes = ["tapestore_flushed_bytes_total", "tapestore_sstables_bytes", "tapestore_free_bytes"];
    panels.provoke("a flush", &of_flushes, || drop(store.tape_ok(&["flush"])));
    let held = store.reader().snapshot(At::Committed).unwrap();
    panels.provoke("merges", &["tapestore_merged_bytes_total", "tapestore_removed_sstables_bytes"], || {
        for _ in 0..6 {
            stage(&mut publisher, 20_000);
            store.tape_ok(&["flush"]);
        }
    });
    // Maps of other processes are looked for once a minute.
    let began = std::time::Instant::now();
    while scrape(&address)["tapestore_pinned_bytes"] == 0.0 {
        assert!(began.elapsed() < Duration::from_secs(150), "what a held snapshot keeps is not counted");
        std::thread::sleep(Duration::from_millis(500));
    }
    panels.moved.insert("tapestore_pinned_bytes".to_owned());
    drop((held, publisher));
    let restart = |store: &mut Store, arguments: &[String]| {
        assert!(store.terminate().success());
        store.set_arguments(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        store.start();
    };
    panels.provoke("larger MemTables", &["tapestore_memtable_size_bytes"], || {
        restart(&mut store, &with(&["--memtable-size", "32M"]));
    });
    let of_space = ["tapestore_healthy", "tapestore_trouble", "tapestore_back_pressure", "tapestore_kept_free_bytes"];
    panels.provoke("a full disk", &of_space, || {
        restart(&mut store, &with(&["--memtable-size", "32M", "--space-min", "1000000G"]));
    });
    let wanted: BTreeSet<String> =
        drawn().into_iter().filter(|name| !is_of_hosts(name) && !name.starts_with("tapestore_query_")).collect();
    assert_eq!(panels.moved, wanted, "the dashboard draws metrics whose causes are not provoked here");
}

/// Certificates of the three hosts, in the directory `to`.
fn make(hosts: &Hosts, to: &Path) {
    let to = to.to_str().unwrap();
    let arguments = ["cluster", "certs", "--cluster", "test", "--nodes", "1,2,3", "--dir", to];
    let output = hosts.tape(1, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn each_panel_of_hosts_moves_when_its_cause_is_provoked() {
    let mut hosts = Hosts::initialised(true);
    let certs = hosts.certs();
    make(&hosts, &certs);
    let all: Vec<String> = addresses::unused(6).unwrap().iter().map(ToString::to_string).collect();
    let (of_storage, of_replication) = all.split_at(3);
    // The configuration is one file for all: the next host waits until this one has read it.
    let start = |hosts: &mut Hosts, n: usize| {
        // So little log is kept that a host which was away needs a snapshot.
        let storage = format!("metrics = \"{}\"\n{TIMES}retain-bytes = 1\n", of_storage[n - 1]);
        std::fs::write(hosts.dir.path().join("storage.toml"), storage).unwrap();
        let config = hosts.dir.path().join("replication.toml");
        std::fs::write(config, format!("metrics = \"{}\"\n", of_replication[n - 1])).unwrap();
        hosts.start(n);
        let is_served = |address: &String| std::net::TcpStream::connect(address).is_ok();
        eventually("its metrics", || (is_served(&of_storage[n - 1]) && is_served(&of_replication[n - 1])).then_some(()));
    };
    for n in 1..=3 {
        start(&mut hosts, n);
    }
    let leader = hosts.leader();
    let other = (1..=3).find(|n| *n != leader).unwrap();
    let publish = |hosts: &Hosts, count: &str| {
        let output = hosts.tape(hosts.leader(), &["publish", "--sim", "--records", count, "--durability", "quorum"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish(&hosts, "1000");
    let mut replication = Panels::new(&of_replication[leader - 1]);
    let mut storage = Panels::new(&of_storage[leader - 1]);
    storage.provoke("records", &["tapestore_durable_to_committed_seconds_bucket"], || publish(&hosts, "20000"));
    replication.provoke("records", &["tapestore_replication_frames_bytes_total"], || publish(&hosts, "1000"));
    let of_lag = ["tapestore_replication_peer_active", "tapestore_replication_peer_lag_seconds"];
    replication.provoke("a host that is killed", &of_lag, || {
        hosts.kill(other);
        publish(&hosts, "20000");
    });
    replication.provoke(
        "a host that comes back when the log it needs is gone",
        &["tapestore_replication_snapshots_bytes_total"],
        || {
            // The log that it would need is no longer there.
            hosts.tape(leader, &["flush"]);
            for _ in 0..4 {
                publish(&hosts, "60000");
                hosts.tape(leader, &["flush"]);
            }
            start(&mut hosts, other);
        },
    );
    replication.provoke("other certificates", &["tapestore_replication_certificate_end_timestamp_seconds"], || {
        let fresh = hosts.dir.path().join("fresh");
        make(&hosts, &fresh);
        for entry in std::fs::read_dir(&fresh).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), certs.join(entry.file_name())).unwrap();
        }
    });
    let (mut of_other, mut elections) = (Panels::new(&of_storage[other - 1]), Panels::new(&of_replication[other - 1]));
    eventually("a host that follows", || {
        scrape(&of_storage[other - 1]).get("tapestore_role{role=\"follower\"}").filter(|is| **is == 1.0).copied()
    });
    let before = scrape(&of_storage[other - 1]);
    elections.provoke("a leader that is killed", &["tapestore_replication_elections_total"], || hosts.kill(leader));
    eventually("another term", || {
        (of(&scrape(&of_storage[other - 1]), "tapestore_term") != of(&before, "tapestore_term")).then_some(())
    });
    // Whoever of the two is leader now was none before.
    let is_leader = |n: usize| scrape(&of_storage[n - 1]).get("tapestore_role{role=\"leader\"}") == Some(&1.0);
    eventually("another role", || (1..=3).filter(|n| *n != leader).any(is_leader).then_some(()));
    of_other.moved.extend(["tapestore_term".to_owned(), "tapestore_role".to_owned()]);
    let moved: BTreeSet<String> =
        [replication, storage, of_other, elections].into_iter().flat_map(|panels| panels.moved).collect();
    let wanted: BTreeSet<String> = drawn().into_iter().filter(|name| is_of_hosts(name)).collect();
    assert_eq!(moved, wanted, "the dashboard draws metrics of hosts whose causes are not provoked here");
}
