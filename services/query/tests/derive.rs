//! Bars that `tape-query serve` makes in a store: equal to those of all trades, whatever is killed when, and made once.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

mod feed;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use tapestore::bars::{Builder, Options as BarOptions, Rule};
use tapestore::lsn::{InstrumentId, Lsn, PublisherId};
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{Bar1m, Bar1s, Kind, Record, Trade};
use tapestore::time::NANOS_PER_SECOND;
use tapestore_engine::Embedded;

use feed::Feed;

const PATIENCE: Duration = Duration::from_secs(60);
const START: u64 = 1_723_161_600_000_000_000;
const MINUTES: PublisherId = PublisherId(60_001);
const SECONDS: PublisherId = PublisherId(60_002);
const BOTH: [(Kind, u64, PublisherId); 2] = [(Bar1m::KIND, 60, MINUTES), (Bar1s::KIND, 1, SECONDS)];

/// `tape-query serve`, which answers nobody and makes bars.
struct Deriving {
    child: Child,
    lines: Receiver<String>,
    _config: tempfile::NamedTempFile,
}

impl Drop for Deriving {
    fn drop(&mut self) {
        // It may have ended.
        let _is_killed = self.child.kill().is_ok();
        let _is_reaped = self.child.wait().is_ok();
    }
}

impl Deriving {
    fn start(store: &Path) -> Deriving {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        let text = "postgres = \"\"\nflight = \"\"\nconsole = \"\"\n\
             [[derive]]\nkind = \"bar-1m\"\nsymbols = [\"X:*\"]\npublisher = 60001\nlate = \"100ms\"\n\
             [[derive]]\nkind = \"bar-1s\"\nsymbols = [\"X:A\", \"X:B\", \"X:C\"]\npublisher = 60002\nlate = \"0s\"\n";
        config.write_all(text.as_bytes()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
        command.arg("--store").arg(store).args(["serve", "--config"]).arg(config.path());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Deriving { child, lines, _config: config }
    }

    /// Waits until both kinds of bars are logged as current.
    fn current(&self) {
        let mut tables = std::collections::BTreeSet::new();
        while tables.len() < 2 {
            let line = self.lines.recv_timeout(PATIENCE).unwrap();
            if line.contains("the bars are current") {
                tables.insert(line.split("table=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned());
            }
        }
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

/// Some trades are minutes late.
fn feed_of(store: &Path) -> Feed {
    let kind = feed::Kind {
        start: START,
        steps: (400, 1_000_000),
        late: (20, 300),
        priceless: 50,
        prices: (0, 1000, 10_000_000),
        sizes: (9, 500_000_000),
    };
    Feed::new(store, &["X:A", "X:B", "X:C", "Y:OTHER"], kind)
}

/// The instrument and the start of a bar.
type Key = (u32, u64);

/// The bars of all trades.
fn expected(snapshot: &Snapshot, seconds: u64) -> BTreeMap<Key, Vec<u64>> {
    let mut all = BTreeMap::new();
    for instrument in (1..=3).map(InstrumentId) {
        let mut builder = Builder::new(BarOptions::new(Rule::Time { interval: seconds * NANOS_PER_SECOND })).unwrap();
        let mut bars = Vec::new();
        let mut trades = snapshot.scan(Series { instrument, kind: Trade::KIND }, TimeRange::ALL);
        while let Some(row) = trades.next().unwrap() {
            builder.push(row.lsn, row.index_time, row.record.get::<Trade>().unwrap(), &mut |bar| bars.push(bar));
        }
        builder.finish(&mut |bar| bars.push(bar));
        for bar in bars {
            let words = bar.record().unwrap().as_ref().words().to_vec();
            assert!(all.insert((instrument.0, bar.start.0), words).is_none());
        }
    }
    all
}

/// The newest stored revision of each bar, and how many revisions there are.
fn stored(snapshot: &Snapshot, kind: Kind, publisher: PublisherId) -> (BTreeMap<Key, Vec<u64>>, usize) {
    let mut all: BTreeMap<Key, (Lsn, Vec<u64>)> = BTreeMap::new();
    let mut revisions = 0;
    for series in snapshot.series().unwrap().into_iter().filter(|series| series.kind == kind) {
        let mut rows = snapshot.scan(series, TimeRange::ALL);
        while let Some(row) = rows.next().unwrap() {
            assert_eq!(snapshot.arrival(row.lsn).unwrap().unwrap().publisher, publisher);
            revisions += 1;
            let newest = all.entry((series.instrument.0, row.index_time.0)).or_default();
            if newest.0 < row.lsn {
                *newest = (row.lsn, row.record.words().to_vec());
            }
        }
    }
    (all.into_iter().map(|(key, (_, words))| (key, words)).collect(), revisions)
}

/// Waits until the stored bars are those of all trades; returns the number of revisions.
fn until_equal(store: &Path) -> [usize; 2] {
    let ends = Instant::now() + PATIENCE;
    let mut reader = Reader::open(store).unwrap();
    loop {
        let snapshot = reader.snapshot(At::Committed).unwrap();
        let all = BOTH.map(|(kind, seconds, publisher)| (expected(&snapshot, seconds), stored(&snapshot, kind, publisher)));
        if all.iter().all(|(expected, (stored, _))| expected == stored) {
            assert!(all.iter().all(|(expected, _)| expected.len() > 10));
            return all.map(|(_, (_, revisions))| revisions);
        }
        if Instant::now() > ends {
            for (expected, (stored, _)) in all {
                let missing = expected.keys().filter(|key| !stored.contains_key(key)).count();
                let wrong = expected.iter().filter(|(key, words)| stored.get(key).is_some_and(|stored| stored != *words)).count();
                println!("of {} bars {missing} are missing and {wrong} wrong; {} are stored", expected.len(), stored.len());
            }
            panic!("the stored bars are not those of all trades");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn last(store: &Path) -> Lsn {
    Reader::open(store).unwrap().snapshot(At::Committed).unwrap().last()
}

fn sql(store: &Path, statement: &str) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    let output = command.arg("sql").arg("--store").arg(store).args(["--csv", "-c", statement]).output().unwrap();
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn bars_of_a_process_that_is_killed_at_any_moment_are_those_of_all_trades_and_are_made_once() {
    let path = tempfile::tempdir().unwrap().keep().join("store");
    let options = || tapestore_engine::Options {
        store: path.clone(),
        memtable_size: 16 << 20,
        segment_size: 8 << 20,
        ..tapestore_engine::Options::default()
    };
    let store = Embedded::with(options()).unwrap();
    let mut feed = feed_of(&path);
    // History that is there before the first start.
    feed.publish(20_000);
    for round in 0..6u64 {
        let deriving = Deriving::start(&path);
        // Killed before, in and after the bars of history; then among late trades.
        std::thread::sleep(Duration::from_millis(150 * (round + 1)));
        feed.publish(500);
        std::thread::sleep(Duration::from_millis(120 * round));
        drop(deriving);
    }
    let deriving = Deriving::start(&path);
    until_equal(&path);
    feed.publish(500);
    let revisions = until_equal(&path);
    deriving.stop();
    let before = last(&path);
    let idle = Deriving::start(&path);
    idle.current();
    idle.stop();
    assert_eq!((last(&path), until_equal(&path)), (before, revisions), "an idle restart publishes nothing");

    // Storage restarts under it.
    let waiting = Deriving::start(&path);
    waiting.current();
    drop(feed);
    store.stop().unwrap();
    let store = Embedded::with(options()).unwrap();
    let mut feed = feed_of(&path);
    feed.time = START + 40_000 * NANOS_PER_SECOND;
    feed.publish(300);
    until_equal(&path);
    waiting.stop();
    store.stop().unwrap();
}

#[test]
fn the_table_of_derived_bars_has_the_newest_revision_of_each_and_pushes_conditions_down() {
    let store = Embedded::temporary().unwrap();
    let mut feed = feed_of(store.path());
    feed.publish(2_000);
    let deriving = Deriving::start(store.path());
    until_equal(store.path());
    feed.publish(2_000);
    let [minutes, seconds] = until_equal(store.path());
    deriving.stop();
    let path = store.path();
    let columns = "symbol, time, open, high, low, close, volume_raw";
    for (table, every, revisions) in [("bars_1m", "1m", minutes), ("bars_1s", "1s", seconds)] {
        let newest = sql(path, &format!("select {columns} from {table} order by symbol, time"));
        let sampled = sql(
            path,
            &format!(
                "select symbol, time, first(price) as open, max(price) as high, min(price) as low, last(price) as close, \
                 sum(size_raw) as volume_raw from trade where symbol like 'X:%' and price is not null and size > 0 \
                 sample by {every} order by symbol, time"
            ),
        );
        assert!(newest.len() > 20, "{table}");
        assert_eq!(newest, sampled, "{table}");
        assert!(revisions > newest.len(), "some bars have several revisions");
        let count = sql(path, &format!("select count(*) from {table}"));
        assert_eq!(count, [newest.len().to_string()]);
        let from = "2024-08-09T00:03:00Z";
        let some = sql(path, &format!("select {columns} from {table} where symbol = 'X:B' and time >= '{from}' order by time"));
        let wanted = |line: &&String| line.starts_with("X:B,") && line.split(',').nth(1).unwrap() >= "2024-08-09T00:03:00";
        assert_eq!(some, newest.iter().filter(wanted).cloned().collect::<Vec<_>>());
        // A condition on another column is of the newest revisions alone: an older one has less volume.
        let all = sql(path, &format!("select symbol, time, high, volume from {table} order by symbol, time"));
        let volume = |line: &&String| line.rsplit(',').next().unwrap().parse::<f64>().unwrap();
        for limit in [2.0, 6.0] {
            let small = sql(
                path,
                &format!("select symbol, time, high, volume from {table} where volume < {limit} order by symbol, time"),
            );
            assert_eq!(small, all.iter().filter(|line| volume(line) < limit).cloned().collect::<Vec<_>>(), "{table} {limit}");
        }
        let plan = sql(path, &format!("explain select * from {table} where symbol = 'X:B' and time >= '{from}'")).join("\n");
        assert!(plan.contains("symbols=1 of 4") && plan.contains("from=2024-08-09T00:03:00"), "{plan}");
        assert!(!plan.contains("SortExec"), "{plan}");
    }
    assert!(sql(path, "show tables").iter().any(|line| line.contains("bars_1m")));
}
