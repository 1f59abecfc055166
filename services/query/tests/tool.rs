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
fn settings_say_what_they_are_and_trades_are_as_known_at_a_record() {
    assert_eq!(
        ok(&["--csv", "-c", "show as_known_at; set as_known_at = 'lsn 2'; show as_known_at"]),
        "as_known_at\noff\nas_known_at\nlsn 2\n"
    );
    assert_eq!(ok(&["--csv", "--as-known-at", "2", "-c", "select count(*) as n from trade"]), "n\n2\n");
    let both = "set as_known_at = now; set at = 'lsn 1'; select count(*) as n from trade; show as_known_at";
    assert_eq!(ok(&["--csv", "-c", both]), "n\n1\nas_known_at\nnow\n");
}

#[test]
fn parameters_have_the_types_that_their_statements_need() {
    let sql = "select trade_id from trade where symbol = $1 and time > $2 and price > $3 order by trade_id limit $4";
    let of = |time: &str| ok(&["--csv", "-p", "XNAS:AAPL", "-p", time, "-p", "-1.5", "-p", "5", "-c", sql]);
    assert_eq!(of("2024-08-09"), "trade_id\n1\n3\n");
    assert_eq!(of("2024-08-09T00:00:00.000000001Z"), "trade_id\n3\n");
    assert_eq!(ok(&["--csv", "-p", "it's", "-c", "set at = 'durable'; select $1 as x; select 1 as y"]), "x\nit's\ny\n1\n");
    for (arguments, message) in [
        (&["-p", "1", "-c", "select $1, $2"][..], "2 parameters, and -p gives 1"),
        (&["-p", "1", "-p", "2", "-c", "select $1"], "no statement has a parameter $2"),
        (&["-p", "soon", "-c", "select * from trade where time > $1"], "'soon', the value of $1"),
        (&["-p", "1", "-c", "select * from trades where lsn = $1"], "trades"),
    ] {
        let output = run(arguments);
        assert!(output.status.code() == Some(2) && text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
}

/// The names of the files in `dir`.
fn names(dir: &std::path::Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_answer_goes_to_a_file_of_the_format_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, flag) in [("a.csv", "--csv"), ("a.json", "--json")] {
        let said = ok(&["--out", &path(name), "-c", TRADES]);
        let written = std::fs::read_to_string(path(name)).unwrap();
        assert_eq!(written, ok(&[flag, "-c", TRADES]), "a file has what is printed");
        assert_eq!(said, format!("{}: 3 rows, {} bytes\n", path(name), written.len()));
    }
    ok(&["--out", &path("a.arrow"), "-c", &format!("set at = 'lsn 2'; {TRADES}")]);
    let open = std::fs::File::open(path("a.arrow")).unwrap();
    let mut batches = arrow::ipc::reader::FileReader::try_new(open, None).unwrap();
    let batch = batches.next().unwrap().unwrap();
    let utc = arrow::datatypes::DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, Some("UTC".into()));
    assert_eq!((batch.num_rows(), batch.schema().field(1).data_type().clone(), batches.count()), (2, utc, 0));
    assert_eq!(batch.schema().field(0).data_type(), &arrow::datatypes::DataType::Utf8);
    // As its own export, a Parquet file can be asked for its rows; the count is in its last bytes.
    ok(&[
        "--out",
        &path("a.parquet"),
        "-c",
        "select a.price, b.price, struct(a.symbol) as s from trade a join trade b on a.lsn = b.lsn",
    ]);
    let parquet = std::fs::read(path("a.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    let wanted: &[u8] = b"price_2";
    assert!(parquet.windows(wanted.len()).any(|bytes| bytes == wanted), "names that occur twice get a number");
}

#[test]
fn a_file_is_replaced_only_if_it_may_be_and_a_failure_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv").to_str().unwrap().to_owned();
    std::fs::write(&path, "mine").unwrap();
    let out = |path: &str, more: &[&str]| run(&[&["--out", path], more].concat());
    let refused = out(&path, &["-c", TRADES]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--overwrite"), "{}", text(&refused.stderr));
    // It fails after some rows: what was there stays.
    let late = "select 10 / (value - 900000) as x from generate_series(1, 1000000)";
    let failed = out(&path, &["--overwrite", "-c", late]);
    assert_eq!(failed.status.code(), Some(2), "{}", text(&failed.stderr));
    assert_eq!((std::fs::read_to_string(&path).unwrap(), names(dir.path())), ("mine".to_owned(), vec!["a.csv".to_owned()]));
    assert!(out(&path, &["--overwrite", "-c", "select 1 as x"]).status.success());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n1\n");
    let other = dir.path().join("b.parquet").to_str().unwrap().to_owned();
    for (path, more, message) in [
        ("b.xlsx", &["-c", "select 1"][..], ".parquet, .arrow, .csv or .json"),
        (&other, &["-c", "select 1; select 2"], "not of 2"),
        (&other, &["-c", "set at = 'durable'"], "not of 0"),
        (&other, &["--csv", "-c", "select 1"], "leave out --csv"),
        (&other, &["-c", "select nothing"], "nothing"),
        ("/no/such/directory/a.csv", &["-c", "select 1"], "/no/such/directory/a.csv"),
        (dir.path().with_extension("csv").to_str().unwrap(), &["--columns", "z", "-c", "select 1 as x"], "'z'"),
    ] {
        let refused = out(path, more);
        assert!(!refused.status.success() && text(&refused.stderr).contains(message), "{}", text(&refused.stderr));
        assert_eq!(names(dir.path()), ["a.csv"]);
    }
    let full = "/dev/full";
    assert!(!out(full, &["-c", "select 1"]).status.success());
}

#[test]
fn an_answer_that_is_interrupted_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let many = "select a.value * b.value as x from generate_series(1, 100000000) a, generate_series(1, 1000) b";
    for (name, signal) in [("a.parquet", rustix::process::Signal::INT), ("a.csv", rustix::process::Signal::TERM)] {
        let path = dir.path().join(name);
        let mut child = command(&["--out", path.to_str().unwrap(), "-c", many]).stderr(Stdio::piped()).spawn().unwrap();
        // The file has begun.
        while names(dir.path()).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(4));
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert!(said.contains("interrupted") && said.contains(name), "{said}");
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    }
}

#[test]
fn what_goes_wrong_has_an_exit_code_and_a_message_that_helps() {
    for (sql, code, message) in [
        ("select * from trades", 2, "trades"),
        ("select prize from trade", 2, "prize"),
        ("selct 1", 2, "Expected"),
        ("drop table trade", 2, "DDL"),
        ("set at = 'yesterday'", 2, "appended, durable, committed, flushed"),
        ("set as_known_at = 'yesterday'", 2, "off, now, lsn and a number"),
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
