//! The program `tape-query`, as `tape sql` runs it: output in each format, exit codes, a closed pipe, a full disk.

#![expect(clippy::unwrap_used, reason = "an unexpected value fails a test by a panic")]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Price, Size, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

/// A store with three trades, one of them without a price.
fn store() -> &'static Embedded {
    static STORE: OnceLock<Embedded> = OnceLock::new();
    STORE.get_or_init(|| {
        let store = Embedded::temporary().unwrap();
        let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
        let instrument = publisher.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
        for (at, price) in [(1, Price(189_980_000_000)), (2, Price::NULL), (3, Price(190_000_000_001))] {
            let ts_recv = Ts(1_723_161_600_000_000_000 + at);
            let trade = Trade { instrument, price, size: Size(100_000_000_000), ts_recv, trade_id: at, ..Trade::default() };
            publisher.publish(&trade).unwrap();
        }
        publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
        store
    })
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    command.arg("sql").arg("--store").arg(store().path()).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {} {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

const TRADES: &str = "select symbol, time, price, price_raw, trade_id, side from trade order by time";

#[test]
fn rows_are_printed_as_a_table_as_json_and_as_csv() {
    let csv = ok(&["--csv", "-c", TRADES]);
    let expected = "symbol,time,price,price_raw,trade_id,side\n\
                    XNAS:AAPL,2024-08-09T00:00:00.000000001Z,189.98,189980000000,1,null\n\
                    XNAS:AAPL,2024-08-09T00:00:00.000000002Z,null,null,2,null\n\
                    XNAS:AAPL,2024-08-09T00:00:00.000000003Z,190.000000001,190000000001,3,null\n";
    assert_eq!(csv, expected);
    let json = ok(&["--json", "-c", TRADES]);
    let rows: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = |at: usize, column: &str| rows.get(at).and_then(|row| row.get(column)).cloned().unwrap();
    assert_eq!((row(0, "price"), row(1, "price"), row(2, "trade_id")), (189.98.into(), serde_json::Value::Null, 3.into()));
    let table = ok(&["--columns", "price", "-c", TRADES]);
    assert_eq!(table.split_whitespace().collect::<Vec<_>>(), ["price", "189.98", "null", "190.000000001"]);
    let table = ok(&["-c", "select count(*), max(price) as high from trade; select 'a;b' as x"]);
    assert_eq!(table.split_whitespace().collect::<Vec<_>>(), ["count(*)", "high", "3", "190.000000001", "x", "a;b"]);
}

#[test]
fn a_store_at_rest_answers_and_standard_error_says_that_nobody_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path().join("store")).unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    let instrument = publisher.instrument(&"A:B".parse().unwrap()).unwrap();
    publisher.publish(&Trade { instrument, ts_recv: Ts(7), ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
    drop(publisher);
    let path = store.path().to_path_buf();
    store.stop().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    let output = command.args(["sql", "--csv", "-c", "select symbol from trade", "--store"]).arg(path).output().unwrap();
    assert_eq!(text(&output.stdout), "symbol\nA:B\n");
    assert!(text(&output.stderr).contains("no storage process serves the store"), "{}", text(&output.stderr));
}

#[test]
fn statements_come_from_a_file_and_from_standard_input_and_settings_last() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "-- the last two\nset at = 'lsn 2';\nselect count(*) as n from trade;\nset at = 'committed';\nselect count(*) as n from trade")
        .unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(ok(&["--csv", "-f", path]), "n\n2\nn\n3\n");
    let mut child = command(&["--csv"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"select 7 as seven").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "seven\n7\n");
}

#[test]
fn what_goes_wrong_has_an_exit_code_and_a_message_that_helps() {
    for (sql, code, message) in [
        ("select * from trades", 2, "trades"),
        ("select prize from trade", 2, "prize"),
        ("selct 1", 2, "Expected"),
        ("drop table trade", 2, "DDL"),
        ("set at = 'yesterday'", 2, "appended, durable, committed, flushed"),
        ("set speed = 'high'", 2, "no setting 'speed'"),
    ] {
        let output = run(&["-c", sql]);
        assert_eq!(output.status.code(), Some(code), "{sql}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{sql}: {}", text(&output.stderr));
    }
    let nothing = run(&["-c", "select * from trade where symbol = 'X:X'"]);
    assert!(nothing.status.success() && text(&nothing.stderr).contains("no rows"));
    let dir = tempfile::tempdir().unwrap();
    let mut absent = Command::new(env!("CARGO_BIN_EXE_tape-query"));
    let absent = absent.args(["sql", "-c", "select 1", "--store"]).arg(dir.path().join("none")).output().unwrap();
    assert_eq!(absent.status.code(), Some(69), "{}", text(&absent.stderr));
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_a_reader_that_has_gone_is_none() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&["-c", TRADES]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(73), "{}", text(&output.stderr));
    let many = "select a.lsn from trade a, generate_series(1, 1000000)";
    let mut child = command(&["--csv", "-c", many]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_statement_ends_at_its_limits_of_time_and_of_memory() {
    let endless = "select count(*) from generate_series(1, 10000000000) a, generate_series(1, 10000000000) b";
    let output = run(&["--time", "1", "-c", endless]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 s, its limit"), "{}", text(&output.stderr));
    let large = "select array_agg(value) from generate_series(1, 100000000)";
    let output = run(&["--memory", "10MiB", "-c", large]);
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--memory"), "{}", text(&output.stderr));
}
