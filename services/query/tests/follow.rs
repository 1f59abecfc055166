//! `tape sql --follow`: what is printed while records come, of a statement of single rows and of others.

#![expect(clippy::unwrap_used, reason = "an unexpected value fails a test by a panic")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use serde_json::Value;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Price, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

const PATIENCE: Duration = Duration::from_secs(30);
const START: u64 = 1_723_161_600_000_000_000;

struct Followed {
    child: Child,
    lines: Receiver<String>,
}

impl Followed {
    fn start(store: &Embedded, statement: &str) -> Followed {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
        command.arg("sql").arg("--store").arg(store.path()).args(["--json", "--follow", "--every", "20ms", "-c", statement]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(1000);
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Followed { child, lines }
    }

    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(PATIENCE).unwrap()).unwrap()
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
        assert!(self.lines.try_recv().is_err(), "nothing is printed twice");
    }
}

fn trade(publisher: &mut Publisher, symbol: &str, second: u64, price: i64) {
    let instrument = publisher.instrument(&symbol.parse().unwrap()).unwrap();
    let ts_recv = Ts(START + second * 1_000_000_000);
    let trade = Trade { instrument, price: Price(price * 1_000_000_000), size: Size(1_000_000_000), ts_recv, ..Trade::default() };
    publisher.publish(&trade).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

#[test]
fn a_followed_statement_of_rows_prints_each_new_row_once_with_the_lsn_it_is_as_of() {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    trade(&mut publisher, "X:A", 0, 101);
    let followed = Followed::start(&store, "select symbol, price, lsn from trade where price > 100");
    let first = followed.next();
    assert_eq!((&first["price"], &first["lsn"]), (&101.0.into(), &first["as_of"]));
    trade(&mut publisher, "X:A", 1, 99);
    trade(&mut publisher, "X:B", 1, 102);
    let second = followed.next();
    assert_eq!((&second["symbol"], &second["price"]), (&"X:B".into(), &102.0.into()));
    assert!(second["as_of"].as_u64() >= second["lsn"].as_u64() && second["as_of"].as_u64() > first["as_of"].as_u64());
    // Late by its time, new by its LSN.
    trade(&mut publisher, "X:A", 0, 103);
    assert_eq!(followed.next()["price"], 103.0);
    followed.stop();
}

#[test]
fn a_followed_sample_prints_buckets_that_change_also_by_late_trades() {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    trade(&mut publisher, "X:A", 0, 101);
    trade(&mut publisher, "X:A", 60, 102);
    let followed = Followed::start(&store, "select time, count(*) as n, last(price) as p from trade sample by 1m");
    let row =
        |value: Value| (value["time"].as_str().unwrap().to_owned(), value["n"].as_u64().unwrap(), value["p"].as_f64().unwrap());
    let (zero, one) = ("2024-08-09T00:00:00.000000000Z".to_owned(), "2024-08-09T00:01:00.000000000Z".to_owned());
    assert_eq!(row(followed.next()), (zero.clone(), 1, 101.0));
    assert_eq!(row(followed.next()), (one.clone(), 1, 102.0));
    trade(&mut publisher, "X:A", 61, 103);
    assert_eq!(row(followed.next()), (one, 2, 103.0));
    trade(&mut publisher, "X:A", 30, 100);
    assert_eq!(row(followed.next()), (zero, 2, 100.0));
    followed.stop();
    let refused = Command::new(env!("CARGO_BIN_EXE_tape-query"))
        .args(["sql", "--store"])
        .arg(store.path())
        .args(["--follow", "-c", "select 1; select 2"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
}
