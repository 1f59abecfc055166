//! What storage says over HTTP: equal to `tape status`, moved by its causes, in the words that the page, the dashboard and the alerts
//! use, and read by Prometheus itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tape_services::addresses;
use tape_services::processes::Process;
use tapestore::lsn::{Durability, InstrumentId};
use tapestore::record::{RecordRef, Trade};
use tapestore::time::Ts;

use crate::cluster::Hosts;
use crate::fixture::{PATIENCE, Store, eventually};

fn configuration(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name)
}

/// A store that serves metrics, and where.
fn serve(arguments: &[&str]) -> (Store, String) {
    let address = addresses::unused(1).unwrap()[0].to_string();
    let mut store = Store::new(&[&["--memtable-size", "16M", "--segment-size", "4M", "--metrics", &address], arguments].concat());
    store.start();
    (store, address)
}

/// Status and body of the answer to `method path`.
fn ask(address: &str, method: &str, path: &str) -> (u16, String) {
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    answer(&mut socket, method, path)
}

fn answer<S: Read + Write>(socket: &mut S, method: &str, path: &str) -> (u16, String) {
    write!(socket, "{method} {path} HTTP/1.1\r\nHost: storage\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The samples of a scrape by name and labels.
fn samples(body: &str) -> BTreeMap<String, f64> {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

pub(crate) fn scrape(address: &str) -> BTreeMap<String, f64> {
    let (status, body) = ask(address, "GET", "/metrics");
    assert_eq!(status, 200, "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    samples(&body)
}

/// The names of all metrics of a scrape, as PromQL has them.
fn names(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    samples.keys().map(|sample| sample.split('{').next().unwrap().to_owned()).collect()
}

/// The words of `text` that are names of metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("tapestore_")).map(str::to_owned).collect()
}

/// Publishes `count` trades and waits until they are durable.
fn publish(store: &Store, count: u64) {
    let mut publisher = store.numbered_publisher(1, Durability::Fsync);
    for i in 1..=count {
        let trade = Trade { instrument: InstrumentId(1), ts_recv: Ts(1_700_000_000_000_000_000 + i), ..Trade::default() };
        publisher.stage(RecordRef::of(&trade)).unwrap();
    }
    publisher.close(PATIENCE).unwrap();
}

#[test]
fn metrics_are_the_numbers_of_the_status_and_each_is_in_the_page_of_metrics() {
    let (store, address) = serve(&[]);
    store.tape_ok(&["publish", "--sim", "--records", "20000"]);
    let _attached = store.numbered_publisher(7, Durability::Os);
    eventually("an attached publisher", || {
        scrape(&address).contains_key("tapestore_publisher_records_total{publisher=\"7\"}").then_some(())
    });
    let status: serde_json::Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
    let found = scrape(&address);
    assert_eq!(found["tapestore_records_total"], status["ingest"]["records"].as_f64().unwrap());
    assert!(found["tapestore_records_total"] >= 20_000.0);
    let by_kind: f64 = found.iter().filter(|(name, _)| name.starts_with("tapestore_kind_records_total{")).map(|(_, n)| n).sum();
    assert_eq!(by_kind, found["tapestore_records_total"]);
    assert!(found["tapestore_kind_records_total{kind=\"trade\"}"] > 0.0);
    for mark in ["appended", "applied", "durable", "committed"] {
        let lsn = found[&format!("tapestore_watermark_lsn{{watermark=\"{mark}\"}}")];
        assert_eq!(lsn, status["watermarks"][mark].as_f64().unwrap(), "{mark}");
    }
    assert_eq!(found["tapestore_healthy"], 1.0);
    assert_eq!(found["tapestore_state{state=\"serving\"}"], 1.0);
    for measured in ["publish_to_append", "append_to_visible", "append_to_durable", "sync"] {
        let (count, sum) =
            (found[&format!("tapestore_{measured}_seconds_count")], found[&format!("tapestore_{measured}_seconds_sum")]);
        assert!(count > 0.0 && sum > 0.0 && sum / count < 60.0, "{measured}: {count} in {sum} s");
        assert_eq!(found[&format!("tapestore_{measured}_seconds_bucket{{le=\"+Inf\"}}")], count, "{measured}");
        let json = &status["distributions"][measured];
        assert!(json["p50"].as_u64() <= json["p99"].as_u64() && json["count"].as_u64() > Some(0), "{json}");
    }
    assert_eq!(found["tapestore_frame_records_sum"], found["tapestore_records_total"]);
    assert!(
        found["process_resident_memory_bytes"] > 1e6
            && found["process_threads"] > 3.0
            && found["process_start_time_seconds"] > 1.7e9
    );
    // The page has each name, and no other.
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/docs/metrics.md")).unwrap();
    let plain = |name: &String| {
        let cut = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        cut.filter(|cut| found.contains_key(&format!("{cut}_bucket{{le=\"+Inf\"}}"))).unwrap_or(name).to_owned()
    };
    let exported: BTreeSet<String> = names(&found).iter().filter(|name| name.starts_with("tapestore_")).map(plain).collect();
    let is_others = |name: &String| {
        ["tapestore_replication_", "tapestore_query_", "tapestore_publishing_", "tapestore_reading_"]
            .iter()
            .any(|of| name.starts_with(of))
    };
    let documented: BTreeSet<String> = named(&page).into_iter().filter(|name| !is_others(name)).collect();
    let missing: Vec<_> = exported.difference(&documented).collect();
    let unknown: Vec<_> = documented.difference(&exported).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "not in the page: {missing:?}; not exported: {unknown:?}");
    // Nothing else is answered.
    assert_eq!(ask(&address, "GET", "/").0, 404);
    assert_eq!(ask(&address, "POST", "/metrics").0, 405);
    assert_eq!((ask(&address, "GET", "/healthz").0, ask(&address, "GET", "/readyz").0), (200, 200));
}

/// The names of the page that begin with `prefix`.
fn documented(prefix: &str) -> BTreeSet<String> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/docs/metrics.md")).unwrap();
    named(&page).into_iter().filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn a_publishing_and_a_following_command_serve_their_numbers_on_request() {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M"]);
    store.start();
    let addresses = addresses::unused(2).unwrap();
    let (publishing, reading) = (addresses[0].to_string(), addresses[1].to_string());
    let path = store.path.clone();
    let start = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(arguments).arg("--store").arg(&path).stdout(Stdio::null());
        Process::start("tape", &mut command).unwrap()
    };
    let mut publisher =
        start(&["publish", "--sim", "--records", "100000000", "--rate", "x1", "--publisher", "7", "--metrics", &publishing]);
    let mut follower = start(&["follow", "--kind", "trade", "--metrics", &reading]);
    let at = |place: &str| format!("tapestore_publishing_seq{{place=\"{place}\"}}");
    let of_publisher = eventually("durable records of the publisher", || {
        std::net::TcpStream::connect(&publishing).ok()?;
        let found = scrape(&publishing);
        (found.get(&at("durable"))? > &100.0).then_some(found)
    });
    assert!(of_publisher[&at("published")] >= of_publisher[&at("accepted")]);
    assert!(of_publisher[&at("accepted")] >= of_publisher[&at("durable")], "{of_publisher:?}");
    assert_eq!(of_publisher["tapestore_publishing_attached"], 1.0);
    let of_reader = eventually("records of the reader", || {
        std::net::TcpStream::connect(&reading).ok()?;
        let found = scrape(&reading);
        (found["tapestore_reading_passed_records_total"] > 10.0).then_some(found)
    });
    let (read, passed) = (of_reader["tapestore_reading_records_total"], of_reader["tapestore_reading_passed_records_total"]);
    assert!(passed < read && of_reader["tapestore_reading_next_lsn"] >= read, "{of_reader:?}");
    for (prefix, found) in [("tapestore_publishing_", &of_publisher), ("tapestore_reading_", &of_reader)] {
        let exported: BTreeSet<String> = names(found).into_iter().filter(|name| name.starts_with("tapestore_")).collect();
        assert_eq!(exported, documented(prefix));
    }
    // Without storage the publisher keeps its records and says so; the reader too.
    store.kill();
    eventually("what is said without storage", || {
        let (mine, others) = (scrape(&publishing), scrape(&reading));
        let waits = mine["tapestore_publishing_outstanding_records{place=\"ring\"}"] > 0.0;
        (waits && mine["tapestore_publishing_attached"] == 0.0 && others["tapestore_reading_storage_serves"] == 0.0).then_some(())
    });
    assert_eq!((ask(&publishing, "GET", "/healthz").0, ask(&publishing, "GET", "/readyz").0), (200, 503));
    assert_eq!((ask(&reading, "GET", "/healthz").0, ask(&reading, "GET", "/readyz").0), (200, 503));
    store.start();
    eventually("a publisher that is attached again", || {
        let found = scrape(&publishing);
        (found["tapestore_publishing_reattachments_total"] >= 1.0 && found["tapestore_publishing_attached"] == 1.0).then_some(())
    });
    assert_eq!(scrape(&publishing)["tapestore_publishing_lost_records_total"], 0.0);
    publisher.kill();
    follower.kill();
}

#[test]
fn a_cause_moves_its_metric() {
    let (mut store, address) = serve(&[]);
    publish(&store, 100);
    let before = scrape(&address);
    publish(&store, 50);
    let after = scrape(&address);
    assert_eq!(after["tapestore_records_total"], before["tapestore_records_total"] + 50.0);
    assert!(after["tapestore_syncs_total"] > before["tapestore_syncs_total"]);
    store.tape_ok(&["flush"]);
    let is_flushed = |found: &BTreeMap<String, f64>| found["tapestore_flushes_total"] > after["tapestore_flushes_total"];
    let flushed = eventually("a flush", || Some(scrape(&address)).filter(is_flushed));
    assert!(flushed["tapestore_sstables"] >= 1.0);
    assert_eq!(
        flushed["tapestore_watermark_lsn{watermark=\"flushed\"}"],
        flushed["tapestore_watermark_lsn{watermark=\"appended\"}"]
    );
    let publisher = store.numbered_publisher(7, Durability::Os);
    eventually("an attached publisher", || {
        scrape(&address).contains_key("tapestore_publisher_records_total{publisher=\"7\"}").then_some(())
    });
    drop(publisher);
    assert!(store.terminate().success());
    // More space than any disk has.
    store.set_arguments(&["--memtable-size", "16M", "--segment-size", "4M", "--space-min", "1000000G", "--metrics", &address]);
    store.start();
    let is_short = |found: &BTreeMap<String, f64>| found.get("tapestore_trouble{trouble=\"no-space\"}") == Some(&1.0);
    let found = eventually("no space", || Some(scrape(&address)).filter(is_short));
    assert_eq!(found["tapestore_healthy"], 0.0);
    assert_eq!(found["tapestore_back_pressure{reason=\"no-space\"}"], 1.0);
    assert!(found["tapestore_no_space_total"] >= 1.0);
    // The time is counted while it lasts, and not at its end alone.
    let waited = || scrape(&address)["tapestore_back_pressure_time_seconds_total"];
    let before = eventually("time of back-pressure", || Some(waited()).filter(|waited| *waited > 0.0));
    eventually("more of it", || (waited() > before).then_some(()));
    let (code, why) = ask(&address, "GET", "/readyz");
    assert!(code == 503 && why.contains("no-space") && why.contains("free space"), "{code} {why}");
    assert_eq!(ask(&address, "GET", "/healthz").0, 200, "to start it again would not help");
    // Without its shared memory nobody finds it, although its loop turns.
    std::fs::remove_dir_all(store.run_dir().path()).unwrap();
    let (code, why) = ask(&address, "GET", "/healthz");
    assert!(code == 503 && why.contains("shared memory was removed"), "{code} {why}");
}

#[test]
fn a_leader_measures_the_way_from_its_disk_to_a_majority() {
    let hosts = Hosts::new(false);
    let leader = hosts.leader();
    let status = eventually("a measured commit", || {
        let published = hosts.tape(leader, &["publish", "--sim", "--records", "20000"]);
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
        let status: serde_json::Value = serde_json::from_slice(&hosts.tape(leader, &["status", "--json"]).stdout).unwrap();
        (status["distributions"]["durable_to_committed"]["count"].as_u64() > Some(0)).then_some(status)
    });
    assert_eq!((&status["cluster"]["role"], &status["cluster"]["leader"]), (&"leader".into(), &leader.into()), "{status}");
    let of = &status["distributions"]["durable_to_committed"];
    assert!(of["p50"].as_u64() > Some(0) && of["p50"].as_u64() < Some(10_000_000_000), "{of}");
}

#[test]
fn metrics_at_a_socket_of_the_file_system_replace_a_dead_ones_and_an_address_that_is_taken_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let at = format!("unix:{}", path.display());
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M", "--metrics", &at]);
    store.start();
    let (code, body) = answer(&mut UnixStream::connect(&path).unwrap(), "GET", "/metrics");
    assert!(code == 200 && samples(&body)["tapestore_healthy"] == 1.0);
    assert!(store.terminate().success());
    assert!(!path.exists());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (address, why) in
        [(taken.local_addr().unwrap().to_string(), "cannot serve metrics at"), ("nowhere".to_owned(), "write host:port")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_tape-storage"))
            .arg("--store")
            .arg(&store.path)
            .args(["--metrics", &address])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(why), "{address}: {error}");
    }
}

#[test]
fn clients_that_hang_take_no_place_for_ever_and_storage_stops_beside_them() {
    let (mut store, address) = serve(&[]);
    let mut held: Vec<std::net::TcpStream> = (0..16).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    held.iter_mut().for_each(|socket| socket.write_all(b"GET /metrics HTTP/1.1\r\nHost").unwrap());
    // The next client waits until the heads of those requests take too long.
    let mut next = std::net::TcpStream::connect(&address).unwrap();
    next.write_all(b"GET /readyz HTTP/1.1\r\nHost: storage\r\nConnection: close\r\n\r\n").unwrap();
    next.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut text = [0; 12];
    assert!(next.read(&mut text).is_err(), "there is a most of clients");
    next.set_read_timeout(Some(PATIENCE)).unwrap();
    next.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"HTTP/1.1 200");
    assert!(store.terminate().success());
}

#[test]
fn the_dashboard_and_the_alerts_name_what_is_exported_and_promtool_accepts_them() {
    let (store, address) = serve(&[]);
    store.tape_ok(&["publish", "--sim", "--records", "5000"]);
    let _publisher = store.numbered_publisher(7, Durability::Os);
    let found =
        eventually("an attached publisher", || Some(scrape(&address)).filter(|found| found["tapestore_publishers"] == 1.0));
    // Those of replication and of the query process have tests of their own.
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/docs/metrics.md")).unwrap();
    let is_others = |name: &String| ["tapestore_replication_", "tapestore_query_"].iter().any(|of| name.starts_with(of));
    let others = named(&page).into_iter().filter(is_others);
    let buckets = |name: String| [format!("{name}_bucket"), name];
    let exported: BTreeSet<String> = names(&found).into_iter().chain(others.flat_map(buckets)).collect();
    let mut count = 0;
    for file in ["grafana/tapestore.json", "alerts.yml", "alerts-test.yml"] {
        let text = std::fs::read_to_string(configuration(file)).unwrap();
        for name in named(&text) {
            assert!(exported.contains(&name), "{file} has {name}, which no process exports");
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(configuration("grafana/tapestore.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.iter().all(|panel| panel["title"].is_string() && panel["targets"].as_array().is_some_and(|t| !t.is_empty())));
    // Each alert has a runbook in the page.
    let rules = std::fs::read_to_string(configuration("alerts.yml")).unwrap();
    let runbooks = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/docs/runbooks.md")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        assert!(page.contains(&format!("`{alert}`")), "{alert} has no line in metrics.md");
        assert!(runbooks.contains(&format!("`{alert}`")), "{alert} has no section in runbooks.md");
    }
    if !has_program("promtool") {
        println!("skipped: promtool is not installed (Debian: apt-get install prometheus)");
        return;
    }
    for arguments in
        [&["check", "rules", "alerts.yml"][..], &["test", "rules", "alerts-test.yml"], &["check", "config", "prometheus.yml"]]
    {
        let output = Command::new("promtool").args(arguments).current_dir(configuration("")).output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let body = ask(&address, "GET", "/metrics").1;
    let mut lint = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // promtool reads the older format, without units and the end.
    let body: String = body
        .lines()
        .filter(|line| !line.starts_with("# UNIT") && !line.starts_with("# EOF"))
        .map(|line| format!("{line}\n"))
        .collect();
    lint.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let output = lint.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("promtool check metrics: {said}");
}

/// Replication of three hosts, with certificates, that serves metrics; and where.
fn replicate() -> (Hosts, Vec<String>) {
    let mut hosts = Hosts::serving(true, true);
    let addresses: Vec<String> = addresses::unused(3).unwrap().iter().map(ToString::to_string).collect();
    for n in 1..=3 {
        hosts.stop_host(n);
        serve_replication(&hosts, &addresses, n);
        hosts.start(n);
    }
    let is_served = |address: &String| std::net::TcpStream::connect(address).is_ok();
    eventually("metrics of all hosts", || addresses.iter().all(is_served).then_some(()));
    (hosts, addresses)
}

/// The next start of replication on host `n` serves metrics at its address.
fn serve_replication(hosts: &Hosts, addresses: &[String], n: usize) {
    let config = hosts.store(n).parent().unwrap().join("replication.toml");
    std::fs::write(config, format!("metrics = \"{}\"\n", addresses[n - 1])).unwrap();
}

#[test]
fn replication_counts_what_it_carries_and_a_leader_how_far_the_others_are_behind() {
    let (mut hosts, addresses) = replicate();
    let leader = hosts.leader();
    let at = &addresses[leader - 1];
    let other = (1..=3).find(|n| *n != leader).unwrap();
    let of_other = |name: &str| format!("tapestore_replication_peer_{name}{{peer=\"{other}\"}}");
    let is = |found: &BTreeMap<String, f64>, name: &str, value: f64| found.get(&of_other(name)) == Some(&value);
    let publish = |count: &str| {
        let output = hosts.tape(leader, &["publish", "--sim", "--records", count, "--durability", "quorum"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish("5000");
    let found = eventually("no lag", || {
        let found = scrape(at);
        (is(&found, "connected", 1.0) && is(&found, "active", 1.0) && is(&found, "lag_records", 0.0)).then_some(found)
    });
    assert_eq!(found["tapestore_replication_storage_connected"], 1.0);
    assert_eq!(found["tapestore_replication_role{role=\"leader\"}"], 1.0);
    assert_eq!(found["tapestore_replication_leader"], leader as f64);
    assert_eq!((found["tapestore_replication_members"], found["tapestore_replication_voters"]), (3.0, 3.0));
    assert!(found["tapestore_replication_frames_bytes_total{direction=\"sent\"}"] > 5000.0 * 64.0);
    assert!(found["tapestore_replication_messages_total{direction=\"received\"}"] > 0.0);
    let end = found["tapestore_replication_certificate_end_timestamp_seconds{file=\"cert\"}"];
    assert!(end > 1.7e9 && end < 1e11, "{end}");
    let due = found["tapestore_replication_crl_next_update_timestamp_seconds"];
    assert!((end - due).abs() < 3600.0, "both are valid for a year: {end} {due}");
    assert_eq!((ask(at, "GET", "/healthz").0, ask(at, "GET", "/readyz").0), (200, 200));
    // Every name is in the page, and the page has no other.
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/docs/metrics.md")).unwrap();
    let own = |all: BTreeSet<String>| -> BTreeSet<String> {
        all.into_iter().filter(|name| name.starts_with("tapestore_replication_")).collect()
    };
    assert_eq!(own(names(&found)), own(named(&page)));
    // A host that is gone falls behind, and catches up when it is back.
    hosts.kill(other);
    let publish = |count: &str| {
        let output = hosts.tape(leader, &["publish", "--sim", "--records", count, "--durability", "quorum"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish("5000");
    let behind = eventually("lag", || {
        let found = scrape(at);
        (is(&found, "connected", 0.0) && found.get(&of_other("lag_records")) >= Some(&5000.0)).then_some(found)
    });
    assert!(behind[&of_other("lag_bytes")] > 5000.0 * 64.0 && behind[&of_other("lag_seconds")] > 0.0);
    eventually("a host out of touch", || is(&scrape(at), "active", 0.0).then_some(()));
    serve_replication(&hosts, &addresses, other);
    hosts.start(other);
    let back = eventually("no lag again", || {
        let found = scrape(at);
        (is(&found, "connected", 1.0) && is(&found, "lag_records", 0.0)).then_some(found)
    });
    let connects = "tapestore_replication_connects_total";
    assert!(back[connects] > behind[connects]);
    // Another leader is elected: both others count it. Without storage a host is not ready.
    let elections = |n: usize| scrape(&addresses[n - 1])["tapestore_replication_elections_total"];
    let before = elections(other);
    hosts.kill(leader);
    let next = hosts.leader();
    assert_ne!(next, leader);
    eventually("an election", || (elections(other) > before).then_some(()));
    eventually("another leader", || {
        (scrape(&addresses[other - 1])["tapestore_replication_leader_changes_total"] > 0.0).then_some(())
    });
    hosts.stop_storage(other);
    eventually("no storage", || {
        let (code, why) = ask(&addresses[other - 1], "GET", "/readyz");
        (code == 503 && why.contains("tape-storage")).then_some(())
    });
    assert_eq!(scrape(&addresses[other - 1])["tapestore_replication_storage_connected"], 0.0);
}

fn has_program(name: &str) -> bool {
    Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A child that ends with the test.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn prometheus_scrapes_a_store_and_answers_the_queries_of_the_dashboard() {
    if !has_program("prometheus") {
        println!("skipped: prometheus is not installed (Debian: apt-get install prometheus)");
        return;
    }
    let (store, address) = serve(&[]);
    store.tape_ok(&["publish", "--sim", "--records", "5000"]);
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(configuration("prometheus.yml")).unwrap();
    let config = config.replace("127.0.0.1:9101", &address).replace("scrape_interval: 5s", "scrape_interval: 1s");
    let config = config.replace("alerts.yml", &configuration("alerts.yml").display().to_string());
    assert!(config.contains(&address), "{config}");
    std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let at = addresses::unused(1).unwrap()[0].to_string();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address={at}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _prometheus = Ends(child);
    let query = |expression: &str| -> Option<serde_json::Value> {
        let mut socket = std::net::TcpStream::connect(&at).ok()?;
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let (code, body) = answer(&mut socket, "GET", &format!("/api/v1/query?query={escaped}"));
        let body = body.find('{').and_then(|from| body.get(from..=body.rfind('}')?)).unwrap_or("").to_owned();
        (code == 200).then(|| serde_json::from_str(&body).unwrap())
    };
    let value = |expression: &str| {
        let answer = query(expression)?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
    };
    eventually("a scrape", || value("up{job=\"tapestore\"}").filter(|up| *up == 1.0));
    assert_eq!(value("tapestore_records_total"), Some(scrape(&address)["tapestore_records_total"]));
    // Every query of the dashboard is one that Prometheus can answer.
    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(configuration("grafana/tapestore.json")).unwrap()).unwrap();
    // Rates need two scrapes.
    eventually("a rate", || value("rate(tapestore_records_total[1m])"));
    let (mut count, mut with_values) = (0, 0);
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m").replace("$instance", ".*");
            let answer = query(&expression).unwrap_or_else(|| panic!("{expression}"));
            assert_eq!(answer["status"], "success", "{expression}");
            // The other processes do not run.
            if ["tapestore_replication_", "tapestore_query_"].iter().any(|of| expression.contains(of)) {
                continue;
            }
            count += 1;
            with_values += usize::from(!answer["data"]["result"].as_array().unwrap().is_empty());
        }
    }
    // Nothing is wrong, no publisher is attached, and the store is in no cluster: these have none.
    assert!(count > 20 && with_values + 6 >= count, "{with_values} of {count}");
}
