//! The query process: it says what it listens to, answers over its protocols, refuses what is not safe, and ends in order.

#![expect(clippy::unwrap_used, reason = "an unexpected value fails a test by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Price, RecordRef, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

/// The process, and the addresses that it has logged.
struct Served {
    child: Child,
    postgres: String,
    flight: String,
    console: String,
    metrics: String,
}

impl Served {
    /// A client of PostgreSQL's protocol.
    async fn client(&self) -> tokio_postgres::Client {
        let port = self.postgres.rsplit(':').next().unwrap();
        let config = format!("host=127.0.0.1 port={port} user=ann dbname=tapestore");
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _is_killed = self.child.kill().is_ok();
        let _is_reaped = self.child.wait().is_ok();
    }
}

fn command(store: &Embedded) -> Command {
    command_at(store, "127.0.0.1:0")
}

/// The process, with its console at `console`.
fn command_at(store: &Embedded, console: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    command.args(["--store"]).arg(store.path()).args([
        "serve",
        "--postgres",
        "127.0.0.1:0",
        "--flight",
        "127.0.0.1:0",
        "--console",
        console,
        "--metrics",
        "127.0.0.1:0",
    ]);
    command
}

fn serve(store: &Embedded) -> Served {
    started(&mut command(store))
}

fn started(command: &mut Command) -> Served {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (sender, lines) = sync_channel(1024);
    std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut log = String::new();
    while !log.contains("answering SQL") {
        log += &lines.recv_timeout(Duration::from_secs(60)).unwrap();
        log.push('\n');
    }
    let field = |name: &str| log.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let metrics = field("at=http://").trim_end_matches("/metrics").to_owned();
    Served { child, postgres: field("postgres="), flight: field("flight="), console: field("console="), metrics }
}

fn store() -> Embedded {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    let instrument = publisher.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
    let trade = Trade { instrument, price: Price(189_980_000_000), size: Size(5), ts_recv: Ts(7), ..Trade::default() };
    publisher.publish(&trade).unwrap();
    publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
    store
}

#[test]
fn the_service_manager_is_notified_when_the_process_listens_while_it_works_and_when_it_stops() {
    let store = store();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let console = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = console.local_addr().unwrap().to_string();
    drop(console);
    let mut command = command_at(&store, &address);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let until = |wanted: &str| {
        let mut bytes = [0; 4096];
        loop {
            let len = manager.recv(&mut bytes).unwrap();
            let lines = String::from_utf8_lossy(bytes.get(..len).unwrap()).into_owned();
            if lines.lines().any(|line| line == wanted) {
                return lines;
            }
        }
    };
    let lines = until("READY=1");
    assert!(lines.contains("STATUS=answering SQL over /"), "{lines}");
    assert!(std::net::TcpStream::connect(&address).is_ok());
    (0..5).for_each(|_| drop(until("WATCHDOG=1")));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_client_of_postgresql_gets_an_answer_and_sigterm_ends_the_process_in_order() {
    let store = store();
    let mut served = serve(&store);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let price: f64 = runtime.block_on(async {
        let client = served.client().await;
        client.query_one("select price from trade where symbol = $1", &[&"XNAS:AAPL"]).await.unwrap().get(0)
    });
    assert!((price - 189.98).abs() < f64::EPSILON);
    assert!(std::net::TcpStream::connect(&served.flight).is_ok());
    assert!(std::net::TcpStream::connect(&served.console).is_ok());
    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn users_change_by_a_signal_without_a_restart_and_a_wrong_file_changes_nothing() {
    use std::os::unix::fs::OpenOptionsExt;
    let (store, dir) = (store(), tempfile::tempdir().unwrap());
    let users = dir.path().join("users.toml");
    let write = |text: &str| {
        let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&users).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    write("ann = \"one\"\n");
    let log = dir.path().join("log");
    let said = |what: &str| std::fs::read_to_string(&log).unwrap().contains(what);
    let mut command = command(&store);
    command.env_remove("RUST_LOG").arg("--users").arg(&users).stderr(std::fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let until = |done: &dyn Fn() -> bool| {
        let began = std::time::Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until(&|| said("answering SQL"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    let port = text.split("postgres=127.0.0.1:").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let login = |user: &str, password: &str| {
        let config = format!("host=127.0.0.1 port={port} user={user} password={password} dbname=tapestore");
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.ok()?;
            tokio::spawn(connection);
            Some(client)
        })
    };
    let early = login("ann", "one").unwrap();
    assert!(login("bob", "two").is_none());
    let signal = || {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    };
    write("bob = \"two\"\n");
    signal();
    until(&|| login("bob", "two").is_some());
    assert!(login("ann", "one").is_none());
    // A connection that was open before stays.
    assert!(runtime.block_on(early.query_one("select count(*) from trade", &[])).is_ok());
    // Without a user nobody could connect, or everybody: it is refused.
    write("");
    signal();
    until(&|| said("query.reload_refused"));
    assert!(login("bob", "two").is_some() && login("ann", "one").is_none() && login("eve", "three").is_none());
    write("eve = \"three\"\n");
    signal();
    until(&|| login("eve", "three").is_some());
    assert!(login("bob", "two").is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn removed_files_are_not_kept_mapped_between_statements() {
    use tapestore::shm::control::Statistic;
    let dir = tempfile::tempdir().unwrap();
    let options = tapestore_engine::Options {
        store: dir.path().join("store"),
        memtable_size: 16 << 20,
        segment_size: 1 << 20,
        compaction: tapestore_engine::compaction::Options { runs_max: 2, ..Default::default() },
        ..tapestore_engine::Options::default()
    };
    let world = tapestore_engine::World::of_this_host().unwrap();
    let storage = tapestore_engine::Storage::start(options, world).unwrap();
    let store = dir.path().join("store");
    let mut publisher = Publisher::open(publisher::Options::new(&store, PublisherId(1))).unwrap();
    let instrument = publisher.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
    let mut next = 0;
    let mut publish = |count: u64| {
        for _ in 0..count {
            next += 1;
            let trade = Trade { instrument, price: Price(1), size: Size(5), ts_recv: Ts(next), ..Trade::default() };
            while publisher.stage(RecordRef::of(&trade)).is_err() {}
        }
        publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
    };
    publish(250_000);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    let addresses =
        ["--postgres", "127.0.0.1:0", "--flight", "127.0.0.1:0", "--console", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let served = started(command.arg("--store").arg(&store).arg("serve").args(addresses));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let count = || -> i64 {
        runtime.block_on(async { served.client().await.query_one("select count(*) from trade", &[]).await.unwrap().get(0) })
    };
    let control = storage.control();
    let until = |done: &dyn Fn() -> bool| {
        let began = std::time::Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(&|| control.statistic(Statistic::Files) > 0);
    assert_eq!(count(), 250_000);
    publish(500_000);
    until(&|| control.statistic(Statistic::Merges) > 0);
    let maps = || std::fs::read_to_string(format!("/proc/{}/maps", served.child.id())).unwrap();
    let path = store.to_str().unwrap();
    let removed = |line: &str| line.contains(path) && line.ends_with("(deleted)");
    until(&|| maps().lines().any(|line| line.contains(path)) && !maps().lines().any(removed));
    assert_eq!(count(), 750_000);
    drop(served);
    drop(publisher);
    storage.stop().unwrap();
}

/// Status and body of the answer to `path`.
fn ask(address: &str, path: &str) -> (u16, String) {
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: query\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The samples of a scrape by name and labels.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let (status, body) = ask(address, "/metrics");
    assert!(status == 200 && body.ends_with("# EOF\n"), "{body}");
    let lines = body.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn statements_and_clients_are_counted_by_how_they_end_and_each_metric_is_in_its_page() {
    let store = store();
    let config = store.path().parent().unwrap().join("query.toml");
    std::fs::write(&config, "memory-bytes = 20000000\nspill-bytes = 1000000\nstatement-seconds = 2\n").unwrap();
    let served = started(command(&store).arg("--config").arg(&config));
    let at = &served.metrics;
    assert_eq!((ask(at, "/healthz").0, ask(at, "/readyz").0, ask(at, "/other").0), (200, 200, 404));
    let outcome =
        |found: &BTreeMap<String, f64>, of: &str| found[&format!("tapestore_query_statements_total{{outcome=\"{of}\"}}")];
    let before = scrape(at);
    for of in ["answered", "refused", "failed", "out-of-memory", "too-long", "cancelled"] {
        assert_eq!(outcome(&before, of), 0.0, "{of}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = served.client().await;
        assert_eq!(scrape(at)["tapestore_query_connections{protocol=\"postgres\"}"], 1.0);
        client.query_one("select price from trade where symbol = $1", &[&"XNAS:AAPL"]).await.unwrap();
        let found = scrape(at);
        assert_eq!((outcome(&found, "answered"), found["tapestore_query_rows_total"]), (1.0, 1.0));
        assert_eq!(found["tapestore_query_statement_seconds_count"], 1.0);
        client.query_one("select prize from trade", &[]).await.unwrap_err();
        client.query_one("select no_such_function(price) from trade", &[]).await.unwrap_err();
        assert_eq!(outcome(&scrape(at), "refused"), 2.0);
        // It fails while it is planned or while it runs.
        client.query_one("select 1 / (value - 5) from generate_series(1, 10) where value = 5", &[]).await.unwrap_err();
        let found = scrape(at);
        assert_eq!(outcome(&found, "refused") + outcome(&found, "failed"), 3.0, "{found:?}");
        // It sorts more than it may hold, or is too slow for that.
        let memory =
            "select count(*) from (select value from generate_series(1, 30000000) order by value % 1000003 limit 20000000)";
        client.query_one(memory, &[]).await.unwrap_err();
        let found = scrape(at);
        assert_eq!(outcome(&found, "out-of-memory") + outcome(&found, "too-long"), 1.0, "{found:?}");
        let long = "select count(*) from generate_series(1, 100000000000) where value % 7 = 3";
        client.query_one(long, &[]).await.unwrap_err();
        assert!(outcome(&scrape(at), "too-long") >= 1.0);
        // One that runs is a gauge, and a client that asks for its end makes it cancelled.
        let cancel = client.cancel_token();
        let long = client.query_one(long, &[]);
        let ends = async {
            while scrape(at)["tapestore_query_running_statements"] < 1.0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        };
        let (cancelled, ()) = tokio::join!(long, ends);
        cancelled.unwrap_err();
    });
    drop(runtime);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let found = loop {
        let found = scrape(at);
        let is_over = found["tapestore_query_connections{protocol=\"postgres\"}"] == 0.0;
        if is_over && found["tapestore_query_running_statements"] == 0.0 && outcome(&found, "cancelled") >= 1.0 {
            break found;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(found["tapestore_query_store_served"], 1.0);
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/docs/metrics.md")).unwrap();
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let documented: BTreeSet<String> = words.filter(|word| word.starts_with("tapestore_query_")).map(str::to_owned).collect();
    let exported: BTreeSet<String> = found
        .keys()
        .map(|name| name.split('{').next().unwrap())
        .map(|name| ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned())
        .filter(|name| name.starts_with("tapestore_query_"))
        .collect();
    assert_eq!(exported, documented);
}

/// Whether `pid` handles SIGTERM itself.
fn catches_sigterm(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() >> 14 & 1 == 1
}

#[test]
fn the_log_is_objects_of_json_if_that_is_asked_for() {
    let store = store();
    let mut child = command(&store).args(["--log-format", "json"]).stderr(Stdio::piped()).spawn().unwrap();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/docs/events.md")).unwrap();
    let mut events = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let object: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let event = object.get("event").and_then(|event| event.as_str()).unwrap().to_owned();
        assert!(page.contains(&format!("`{event}`")), "{object}");
        if event == "query.serving" {
            // The handler of SIGTERM follows the line.
            while !catches_sigterm(child.id()) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        events.push(event);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(["query.serving", "query.stopping"].iter().all(|name| events.iter().any(|event| event == name)), "{events:?}");
}

/// The numbers of a thread or process in `/proc`, from the one behind its name on.
fn numbers(path: &Path) -> Option<Vec<i64>> {
    let line = std::fs::read_to_string(path.join("stat")).ok()?;
    // The name is in brackets; the first field behind it is a letter.
    Some(line.rsplit(')').next()?.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Processor time, ticks, of the threads of `pid` whose priority `is_lower` than the process's, or those whose is not.
fn ticks(pid: u32, is_lower: bool) -> i64 {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let of = |numbers: &[i64], at: usize| numbers.get(at).copied().unwrap();
    let base = of(&numbers(&process).unwrap(), 16);
    let threads = std::fs::read_dir(process.join("task")).unwrap().map_while(Result::ok);
    let threads = threads.filter_map(|thread| numbers(&thread.path())).filter(|thread| (of(thread, 16) > base) == is_lower);
    threads.map(|thread| of(&thread, 11) + of(&thread, 12)).sum()
}

#[test]
fn a_statement_of_many_rows_runs_at_a_lower_priority_and_a_short_one_does_not() {
    let store = store();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(2))).unwrap();
    let instrument = publisher.instrument(&"XNAS:MSFT".parse().unwrap()).unwrap();
    for at in 0..150_000 {
        let trade = Trade { instrument, ts_recv: Ts(at), ..Trade::default() };
        while publisher.stage(RecordRef::of(&trade)).is_err() {}
    }
    publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
    let served = serve(&store);
    let pid = served.child.id();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = served.client().await;
        for sql in [
            "select price from trade where symbol = 'XNAS:AAPL'",
            "select price from trade where symbol = 'XNAS:MSFT' order by time desc limit 1",
            "select time from trade latest on time partition by symbol limit 1",
        ] {
            for _ in 0..50 {
                client.query_one(sql, &[]).await.unwrap();
            }
        }
        assert!(ticks(pid, false) > 0 && ticks(pid, true) == 0, "{} {}", ticks(pid, false), ticks(pid, true));
        let before = ticks(pid, false);
        let many = "select count(*) from generate_series(1, 20000000) where value % 7 = 3";
        let count: i64 = client.query_one(many, &[]).await.unwrap().get(0);
        assert_eq!(count, 2_857_143);
        let (short, long) = (ticks(pid, false) - before, ticks(pid, true));
        assert!(long > 10 && long > 10 * short, "{short} {long}");
        // One that its client drops ends there too.
        let cancel = client.cancel_token();
        let endless = client.query_one("select count(*) from generate_series(1, 100000000000) where value % 7 = 3", &[]);
        let cancelled = async {
            while ticks(pid, true) < long + 5 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        };
        assert!(futures::join!(endless, cancelled).0.is_err());
        let mut last = ticks(pid, true);
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            match ticks(pid, true) {
                now if now == last => break,
                now => last = now,
            }
        }
    });
}

#[test]
fn an_address_that_others_reach_is_refused_without_users_and_certificates() {
    let store = store();
    let output = command(&store).args(["--postgres", "0.0.0.0:0"]).output();
    // The last of two equal options would count; clap refuses them.
    assert!(!output.unwrap().status.success());
    let mut open = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    let open = open.arg("--store").arg(store.path()).args(["serve", "--postgres", "0.0.0.0:0"]).output().unwrap();
    let message = String::from_utf8(open.stderr).unwrap();
    assert!(open.status.code() == Some(2) && message.contains("--tls-cert"), "{message}");
}
