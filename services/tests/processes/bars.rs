//! Bars of stored trades, and of trades as they arrive.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::Value;
use tape_services::processes::Process;
use tapestore::bars;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Durability, InstrumentId};
use tapestore::publisher::Publisher;
use tapestore::record::{Price, Size, Trade, Volume};
use tapestore::time::{Clock, HostClock, Ts};

use crate::fixture::{PATIENCE, Store, eventually};

const SECOND: u64 = 1_000_000_000;

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap()
}

/// Bars of `interval` in order of their starts, recomputed from the output of `tape scan`.
fn naive(store: &Store, name: &str, interval: u64) -> Vec<Value> {
    let mut groups: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for row in json(&store.tape_ok(&["scan", name, "trade", "--json"])) {
        let time: Ts = text(&row, "index_time").parse().unwrap();
        groups.entry(time.0 / interval).or_default().push(row);
    }
    let bar = |(number, rows): (u64, Vec<Value>)| {
        let prices: Vec<Price> = rows.iter().map(|r| text(r, "price").parse().unwrap()).collect();
        let sizes: Vec<Size> = rows.iter().map(|r| text(r, "size").parse().unwrap()).collect();
        let volume: u128 = sizes.iter().map(|s| u128::from(s.0)).sum();
        let value: i128 = prices.iter().zip(&sizes).map(|(p, s)| i128::from(p.0) * i128::from(s.0)).sum();
        let vwap = Price(((value + volume as i128 / 2) / volume as i128) as i64);
        serde_json::json!({
            "start": Ts(number * interval).to_string(), "end": Ts((number + 1) * interval).to_string(), "instrument": name,
            "open": prices[0].to_string(), "high": prices.iter().max().unwrap().to_string(),
            "low": prices.iter().min().unwrap().to_string(), "close": prices[prices.len() - 1].to_string(),
            "volume": Volume::new(volume).to_string(), "value": bars::Value(value).to_string(), "vwap": vwap.to_string(),
            "trades": rows.len(), "first_lsn": rows[0]["lsn"], "last_lsn": rows[rows.len() - 1]["lsn"],
        })
    };
    groups.into_iter().map(bar).collect()
}

/// Trades, volume and value of all `bars`.
fn sums(bars: &[Value]) -> (u64, u128, i128) {
    let volume = |b: &Value| text(b, "volume").parse::<Volume>().unwrap().units();
    let value = |b: &Value| text(b, "value").parse::<bars::Value>().unwrap().0;
    (bars.iter().map(|b| b["trades"].as_u64().unwrap()).sum(), bars.iter().map(volume).sum(), bars.iter().map(value).sum())
}

/// Checks that the bars of `name` equal those recomputed from its trades, that every bar rule gives the same sums, and
/// that bar records survive a round trip through another store.
fn check(store: &Store, name: &str, every: &str, interval: u64, kind: &str) {
    let bars = json(&store.tape_ok(&["bars", name, "--every", every, "--json"]));
    assert!(bars.len() > 3, "{} bars", bars.len());
    assert_eq!(bars, naive(store, name, interval));
    let middle = &bars[bars.len() / 2];
    let volume = text(middle, "volume");
    for rule in [["--ticks", "7"], ["--volume", volume], ["--value", text(middle, "value")], ["--every", "1d"]] {
        let others = json(&store.tape_ok(&["bars", name, rule[0], rule[1], "--json"]));
        assert_eq!(sums(&others), sums(&bars), "{rule:?}");
    }
    // Bars are whole although the range begins and ends within them.
    let inside = |row: &Value| Ts(text(row, "start").parse::<Ts>().unwrap().0 + interval / 2).to_string();
    let (from, to) = (inside(&bars[1]), inside(&bars[2]));
    let part = store.tape_ok(&["bars", name, "--every", every, "--from", &from, "--to", &to, "--json"]);
    assert_eq!(json(&part), bars[1..3]);
    let first = store.tape_ok(&["bars", name, "--every", every, "--limit", "2", "--json"]);
    assert_eq!(json(&first), bars[..2]);
    // Bar records are stored and read back.
    let records = store.tape_ok(&["bars", name, "--every", every, "--records", "--csv"]);
    let file = store.path.with_extension("csv");
    std::fs::write(&file, &records).unwrap();
    let other = Store::serve();
    other.tape_ok(&["publish", "--from", file.to_str().unwrap()]);
    let strip = |text: &str| text.lines().map(|l| l.split_once(',').unwrap().1.to_owned()).collect::<Vec<_>>();
    let back = other.tape_ok(&["scan", name, kind, "--csv"]);
    assert_eq!(strip(&back), strip(&records));
    assert_eq!(strip(&back).len(), bars.len() + 1);
}

#[test]
fn bars_of_the_simulated_market_equal_those_recomputed_from_its_trades() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--seed", "7", "--records", "600000", "--instruments", "3"]);
    check(&store, "SIM:00001", "1s", SECOND, "bar-1s");
    let shown = store.tape_ok(&["bars", "SIM:00001", "--every", "1d"]);
    let header: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["start", "end", "open", "high", "low", "close", "volume", "value", "vwap", "trades"]);
    let code = |arguments: &[&str]| {
        let output = store.tape(&[&["bars", "SIM:00001"], arguments].concat());
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (exit, message) = code(&["--to", "2000-01-01T00:00:00Z"]);
    assert!(exit == 3 && message.contains("no bars of SIM:00001"), "{message}");
    let (exit, message) = code(&["--session", "00:00-00:00", "--zone", "Mars/Olympus"]);
    assert!(exit == 2 && message.contains("Mars/Olympus"), "{message}");
    for bad in [&["--ticks", "0"][..], &["--every", "1"], &["--every", "5m", "--records"], &["--every", "1m", "--volume", "1"]] {
        assert_eq!(code(bad).0, 2, "{bad:?}");
    }
    let (exit, message) = code(&["--session", "00:00-00:01", "--zone", "UTC"]);
    assert!(exit == 3 && message.contains("outside the session"), "{message}");
}

#[test]
fn an_unfinished_bar_is_not_written_as_a_record() {
    let store = Store::serve();
    let mut publisher = store.publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"X:Y".parse().unwrap()).unwrap();
    let (now, hour) = (HostClock.wall().0, 3_600_000_000_000);
    for at in [now - 48 * hour, now + hour] {
        let (price, size) = ("1".parse().unwrap(), "1".parse().unwrap());
        publisher.publish(&Trade { instrument, ts_recv: Ts(at), price, size, ..Trade::default() }).unwrap();
    }
    publisher.close(PATIENCE).unwrap();
    assert_eq!(json(&store.tape_ok(&["bars", "X:Y", "--every", "1d", "--json"])).len(), 2);
    let records = json(&store.tape_ok(&["bars", "X:Y", "--every", "1d", "--records", "--json"]));
    assert!(records.len() == 1 && records[0]["kind"] == "bar-1d", "{records:?}");
}

#[test]
fn bars_of_a_capture_equal_those_recomputed_from_its_trades() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/binance_usdm/btcusdt_20240808.gz");
    if !std::path::Path::new(file).exists() {
        println!("skipped: {file} is not there");
        return;
    }
    let store = Store::serve();
    store.tape_ok(&["publish", "--from", file]);
    let name = "BINANCE-USDM:BTCUSDT";
    check(&store, name, "1m", 60 * SECOND, "bar-1m");
    let all = sums(&json(&store.tape_ok(&["bars", name, "--json"])));
    assert_eq!(all.0, 21_313);
    assert_eq!(sums(&json(&store.tape_ok(&["bars", name, "--by", "event", "--json"]))), all);
    // A session of five minutes in New York time.
    let session =
        store.tape(&["bars", name, "--session", "19:55-20:00", "--zone", "America/New_York", "--every", "1d", "--json"]);
    let bars = json(std::str::from_utf8(&session.stdout).unwrap());
    assert_eq!((bars.len(), text(&bars[0], "start")), (1, "2024-08-08T23:55:00.000000000Z"));
    let outside = 21_313 - bars[0]["trades"].as_u64().unwrap();
    assert!(String::from_utf8_lossy(&session.stderr).contains(&format!("{outside} outside the session")));
}

/// A `tape bars NAME --follow` process that writes to a file.
struct FollowedBars {
    child: Option<Process>,
    file: std::path::PathBuf,
}

impl FollowedBars {
    fn start(store: &Store, arguments: &[&str]) -> FollowedBars {
        let file = store.path.with_extension("followed");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.arg("bars").args(arguments).arg("--follow").arg("--store").arg(&store.path);
        let out = std::fs::File::create(&file).unwrap();
        command.stdin(Stdio::null()).stdout(out);
        FollowedBars { child: Some(Process::start("tape bars --follow", &mut command).unwrap()), file }
    }

    /// The complete lines so far.
    fn bars(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        json(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
    }

    /// Sends SIGTERM, requires a clean exit and returns all lines.
    fn end(mut self) -> Vec<Value> {
        self.child.take().unwrap().stop().unwrap();
        json(&std::fs::read_to_string(&self.file).unwrap())
    }
}

/// Trades of one hour in order of arrival, delayed by less than `late` seconds.
fn unordered(seed: u64, instrument: InstrumentId, late: u64) -> Vec<Trade> {
    let mut rng = SimRng::new(seed);
    let start = "2024-08-08T12:00:00Z".parse::<Ts>().unwrap().0;
    let mut all: Vec<(u64, Trade)> = Vec::new();
    for trade_id in 0..3000 {
        let time = start + rng.below(3600 * 1000) * 1_000_000;
        let (price, size) = (Price(100_000_000_000 + rng.below(999) as i64 * 1_000_000), Size(1 + rng.below(5 * SECOND)));
        let trade = Trade { instrument, trade_id, ts_recv: Ts(time), ts_event: Ts(time), price, size, ..Trade::default() };
        all.push((time + rng.below(late * SECOND), trade));
    }
    all.sort_by_key(|(arrival, _)| *arrival);
    all.into_iter().map(|(_, trade)| trade).collect()
}

fn publish(publisher: &mut Publisher, trades: &[Trade]) {
    for trade in trades {
        publisher.publish(trade).unwrap();
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

#[test]
fn followed_bars_of_out_of_order_trades_equal_those_of_history_across_a_storage_kill() {
    let mut store = Store::serve();
    let mut publisher = store.publisher(7, Durability::Fsync);
    let (name, other) = ("X:ONE", publisher.instrument(&"X:TWO".parse().unwrap()).unwrap());
    let trades = unordered(11, publisher.instrument(&name.parse().unwrap()).unwrap(), 60);
    publish(&mut publisher, &trades[..1000]);
    // A trade may be a minute late, and a slow host may add another minute.
    let followed = FollowedBars::start(&store, &[name, "--every", "1m", "--grace", "2m"]);
    eventually("bars of history", || (followed.bars().len() > 10).then_some(()));
    for (number, part) in trades[1000..].chunks(250).enumerate() {
        publish(&mut publisher, part);
        publish(&mut publisher, &part.iter().map(|t| Trade { instrument: other, ..*t }).collect::<Vec<_>>());
        if number == 3 {
            store.kill();
            store.start();
        }
    }
    eventually("bars of the new trades", || (followed.bars().len() >= 57).then_some(()));
    let bars = followed.end();
    assert_eq!(bars, naive(&store, name, 60 * SECOND));
    assert_eq!(bars, json(&store.tape_ok(&["bars", name, "--grace", "0s", "--json"])));
    assert_eq!(sums(&bars).0, 3000);
}

#[test]
fn a_followed_bar_closes_when_its_time_has_passed_without_another_trade() {
    let store = Store::serve();
    let mut publisher = store.publisher(7, Durability::Fsync);
    let instrument = publisher.instrument(&"X:ONE".parse().unwrap()).unwrap();
    let trade = |ts_recv| Trade { ts_recv: Ts(ts_recv), ..unordered(1, instrument, 1)[0] };
    publish(&mut publisher, &[trade(5 * SECOND), trade(5 * SECOND + 1)]);
    let followed = FollowedBars::start(&store, &["X:ONE", "--every", "1s", "--grace", "10ms"]);
    let bar = eventually("the bar of history", || followed.bars().first().cloned());
    assert_eq!((text(&bar, "start"), bar["trades"].as_u64()), ("1970-01-01T00:00:05.000000000Z", Some(2)));
    publish(&mut publisher, &[trade(100 * SECOND)]);
    eventually("the bar of the new trade", || (followed.bars().len() == 2).then_some(()));
    // The last, open bar is printed too.
    publish(&mut publisher, &[trade(86_400 * SECOND)]);
    let last = eventually("the trade", || json(&store.tape_ok(&["bars", "X:ONE", "--json"])).pop());
    assert_eq!(text(&last, "start"), "1970-01-02T00:00:00.000000000Z");
    eventually("its bar", || (followed.bars().len() == 3).then_some(()));
    assert_eq!(followed.end().len(), 3);
}
