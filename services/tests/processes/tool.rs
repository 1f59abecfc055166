//! The command line tool: output and exit codes of each command.

use std::io::Write;

use serde_json::Value;
use tapestore::lsn::Lsn;
use tapestore::reader::At;

use crate::fixture::{Store, tape};

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn code(store: &Store, arguments: &[&str]) -> (i32, String) {
    let output = store.tape(arguments);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A store with 5,000 records of the simulated market.
fn market() -> Store {
    let store = Store::serve();
    let published = store.tape_ok(&["publish", "--sim", "--records", "5000", "--instruments", "20", "--json"]);
    let report = &json(&published)[0];
    assert_eq!((report["records"].as_u64(), report["durable"].as_u64()), (Some(5000), Some(5000)));
    store
}

#[test]
fn every_reading_command_finds_what_was_published() {
    let store = market();
    let replay = json(&store.tape_ok(&["replay", "--json"]));
    assert_eq!(replay.len(), 5000);
    let times: Vec<_> = replay.iter().map(|r| (r["index_time"].as_str().unwrap().to_owned(), r["lsn"].as_u64())).collect();
    assert!(times.is_sorted());
    let trades: Vec<&Value> = replay.iter().filter(|r| r["kind"] == "trade" && r["instrument"] == "SIM:00000").collect();
    let scan = json(&store.tape_ok(&["scan", "SIM:00000", "trade", "--json"]));
    assert!(!scan.is_empty() && scan.iter().eq(trades.iter().copied()));
    let middle = &scan[scan.len() / 2];
    let (time, lsn) = (middle["index_time"].as_str().unwrap(), middle["lsn"].to_string());
    assert!(json(&store.tape_ok(&["get", "SIM:00000", "trade", time, "--json"])).contains(middle));
    assert_eq!(json(&store.tape_ok(&["get", &lsn, "--json"])), std::slice::from_ref(middle));
    assert!(store.tape_ok(&["get", &lsn]).contains("SIM:00000"));
    let as_of = json(&store.tape_ok(&["asof", "SIM:00000", "trade", time, "--json"]));
    assert_eq!(as_of[0]["index_time"], time);
    let to = json(&store.tape_ok(&["scan", "SIM:00000", "trade", "--to", time, "--json"]));
    assert_eq!(to.last(), as_of.first());
    assert_eq!(json(&store.tape_ok(&["tail", "-n", "7", "--limit", "7", "--json"])).len(), 7);
    assert_eq!(store.tape_ok(&["symbols", "--json"]).lines().count(), 20);
    let listed = store.tape_ok(&["symbols", "sim:00007"]);
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["id", "instrument", "8", "SIM:00007"]);
    let defined = json(&store.tape_ok(&["symbols", "00007", "--at", "now", "--json"]));
    let definition = json(&store.tape_ok(&["asof", "SIM:00007", "definition", "--json"]));
    assert!(defined.len() == 1 && defined[0]["min_price_increment"] == definition[0]["min_price_increment"], "{defined:?}");
    assert!(
        json(&store.tape_ok(&["symbols", "00007", "--at", "1", "--json"]))[0]["since"].is_null(),
        "no definition at that time"
    );
    let status = &json(&store.tape_ok(&["status", "--json"]))[0];
    assert_eq!((status["state"].as_str(), status["watermarks"]["durable"].as_u64()), (Some("serving"), Some(5000)));
    let log = &json(&store.tape_ok(&["inspect", "wal", "--json"]))[0];
    assert_eq!((log["records"].as_u64(), log["entries"].as_u64()), (Some(5000), Some(21)));
    assert!(store.tape_ok(&["inspect", "wal", "--frames"]).contains("Control"));
    let verified = &json(&store.tape_ok(&["verify", "--json"]))[0];
    assert_eq!((verified["records"].as_u64(), verified["compared_with_memory"].as_u64()), (Some(5000), Some(5000)));
}

#[test]
fn a_book_is_printed_as_of_a_time_and_a_missing_book_sets_the_exit_code() {
    let store = market();
    let book = &json(&store.tape_ok(&["book", "SIM:00000", "--levels", "3", "--json"]))[0];
    let best = |side: &str| book[side][0]["price"].as_str().unwrap().parse::<f64>().unwrap();
    assert!(best("bids") < best("asks") && book["bids"].as_array().unwrap().len() <= 3, "{book}");
    assert_eq!([&book["crossed"], &book["unknown_orders"], &book["malformed"]], [0, 0, 0]);
    let changes = json(&store.tape_ok(&["scan", "SIM:00000", "book", "--json"]));
    assert_eq!(book["changes"], changes.len());
    let first = changes[0]["index_time"].as_str().unwrap();
    let early = &json(&store.tape_ok(&["book", "SIM:00000", "--at", first, "--at", "appended", "--json"]))[0];
    assert!(early["changes"].as_u64().unwrap() < changes.len() as u64 && early["time"] == first, "{early}");
    let (exit, message) = code(&store, &["book", "SIM:00000", "--at", "2000-01-01T00:00:00Z"]);
    assert!(exit == 3 && message.contains("no book of SIM:00000"), "{message}");
}

#[test]
fn a_pipe_that_nobody_reads_ends_a_command_quietly() {
    let store = market();
    for arguments in [&["kinds"][..], &["kinds", "--json"], &["status"], &["verify"], &["scan", "SIM:00000", "quote", "--csv"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(arguments).arg("--store").arg(&store.path);
        let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(0) && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[test]
fn csv_round_trips_as_the_same_records() {
    let store = market();
    for kind in ["trade", "quote", "book", "definition"] {
        let out = store.tape_ok(&["replay", "--kind", kind, "--csv"]);
        let file = store.path.with_extension("csv");
        std::fs::write(&file, &out).unwrap();
        let other = Store::serve();
        other.tape_ok(&["publish", "--from", file.to_str().unwrap()]);
        // Only LSNs and instrument ids may differ.
        let strip = |text: &str| text.lines().map(|l| l.split_once(',').unwrap().1.to_owned()).collect::<Vec<_>>();
        let back = other.tape_ok(&["replay", "--kind", kind, "--csv"]);
        let (mut a, mut b) = (strip(&out), strip(&back));
        a.sort();
        b.sort();
        assert_eq!(a, b, "{kind}");
    }
    let (status, text) = code(&store, &["replay", "--csv"]);
    assert!(status == 2 && text.contains("--kind"), "{text}");
}

#[test]
fn unreadable_input_is_named_by_line_and_the_records_before_it_are_stored() {
    let store = Store::serve();
    let file = store.path.with_extension("txt");
    let good = r#"1 {"stream":"x@trade","data":{"e":"trade","E":1,"T":1,"s":"X","t":1,"p":"1","q":"1","m":true}}"#;
    std::fs::write(&file, format!("{good}\n{good}\nrubbish\n{good}\n")).unwrap();
    let (status, text) = code(&store, &["publish", "--from", file.to_str().unwrap()]);
    assert!(
        status == 65 && text.contains("line 3") && text.contains("The 2 records before it are stored at level fsync"),
        "{status} {text}"
    );
    assert_eq!(store.reader().snapshot(At::Durable).unwrap().last(), Lsn(2));
    // A truncated gzip file.
    let mut whole = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..5000).for_each(|_| writeln!(whole, "{good}").unwrap());
    let whole = whole.finish().unwrap();
    std::fs::write(&file, &whole[..whole.len() - 20]).unwrap();
    let (status, text) = code(&store, &["publish", "--from", file.to_str().unwrap()]);
    assert!(status == 65 && text.contains("are stored at level fsync"), "{status} {text}");
    let (status, text) = code(&store, &["publish", "--from", "/nowhere/file.gz"]);
    assert!(status == 66 && text.contains("/nowhere/file.gz"), "{status} {text}");
}

#[test]
fn exit_codes_are_specific_and_messages_name_the_next_command() {
    let mut store = market();
    assert_eq!(code(&store, &["get", "5001"]).0, 3);
    let (status, text) = code(&store, &["scan", "NO:SUCH", "trade"]);
    assert!(status == 3 && text.contains("tape symbols"), "{text}");
    assert_eq!(code(&store, &["scan", "SIM:00000", "whale"]).0, 2);
    assert_eq!(code(&store, &["asof", "SIM:00000", "trade", "1970-01-01T00:00:01Z"]).0, 3);
    assert_eq!(code(&store, &["symbols", "zzz"]).0, 3);
    assert_eq!(code(&store, &["publish"]).0, 2);
    // A second storage process is refused.
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_tape-storage")).arg("--store").arg(&store.path).output().unwrap();
    assert_eq!(second.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&second.stderr).contains("locked by another process"));
    assert!(store.terminate().success(), "SIGTERM is a clean end");
    let (status, text) = code(&store, &["get", "1"]);
    assert!(status == 0 && text.contains("no storage process serves"), "{text}");
    let (status, text) = code(&store, &["status"]);
    assert!(status == 69 && text.contains("tape-storage --store"), "{text}");
    store.tape_ok(&["verify"]);
    assert!(store.tape_ok(&["inspect", "wal"]).contains("last stop clean"));
    let nowhere = tape(&store.path.with_extension("not"), &["status"]);
    assert_eq!(nowhere.status.code(), Some(69));
    // Damage is named, and nothing is changed.
    store.start();
    store.tape_ok(&["publish", "--sim", "--records", "5000", "--instruments", "20"]);
    store.kill();
    let checkpoint = store.reader().control().statistic(tapestore::shm::control::Statistic::CheckpointPosition) as usize;
    let segment = store.path.join("wal").join("0000000000000000.wal");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[checkpoint] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let (status, text) = code(&store, &["verify"]);
    assert!(status == 65 && text.contains("offset") && text.contains("LSN"), "{text}");
    let refused =
        std::process::Command::new(env!("CARGO_BIN_EXE_tape-storage")).arg("--store").arg(&store.path).output().unwrap();
    assert_eq!(refused.status.code(), Some(65));
    assert_eq!(std::fs::read(&segment).unwrap(), bytes);
}

#[test]
fn the_demo_compares_published_read_and_stored_counts_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("demo");
    let before = std::fs::read_dir("/dev/shm")
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("tapestore-"))
        .count();
    let output = tape(&store, &["demo", "--records", "30000", "--rate", "max", "--json"]);
    let report = &json(std::str::from_utf8(&output.stdout).unwrap())[0];
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for end in ["published", "read", "stored"] {
        assert_eq!(report[end].as_u64(), Some(30_000), "{end}");
    }
    assert!(report["visible_ns"]["p50"].as_u64().unwrap() > 100, "a measured figure: {report}");
    let after = std::fs::read_dir("/dev/shm")
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("tapestore-"))
        .count();
    assert!(after <= before + 8, "run directories pile up (other tests run at the same time)");
    let again = tape(&store, &["demo"]);
    assert_eq!(again.status.code(), Some(2), "an existing store is refused");
}

#[test]
fn both_captures_are_stored_and_read_back_equal() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let captures = [("binance_usdm", [21_313, 66_089, 443_521 + 2001]), ("binance_spot", [9_757, 28_040, 124_090 + 2001])];
    for (venue, [trades, quotes, levels]) in captures {
        let file = format!("{data}/{venue}/btcusdt_20240808.gz");
        if !std::path::Path::new(&file).exists() {
            println!("skipped: {file} is not there");
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let output = tape(&dir.path().join("demo"), &["demo", "--from", &file, "--rate", "max", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report = &json(std::str::from_utf8(&output.stdout).unwrap())[0];
        let kinds = &report["kinds"];
        assert_eq!(
            [&kinds["trade"], &kinds["quote"], &kinds["book"]].map(|k| k.as_u64().unwrap()),
            [trades, quotes, levels],
            "{venue}"
        );
        assert_eq!(report["equal"], true);
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_a_closed_pipe_is_none() {
    let store = market();
    let commands: [&[&str]; 14] = [
        &["status"],
        &["status", "--json"],
        &["status", "--check"],
        &["verify"],
        &["kinds"],
        &["symbols"],
        &["inspect", "wal"],
        &["inspect", "sst"],
        &["inspect", "manifest"],
        &["inspect", "memtable"],
        &["get", "1"],
        &["scan", "SIM:00000", "book", "--csv"],
        &["follow", "--once"],
        &["flush"],
    ];
    for command in commands {
        let run = |out: std::process::Stdio| {
            let mut tape = std::process::Command::new(env!("CARGO_BIN_EXE_tape"));
            tape.args(command).arg("--store").arg(&store.path).stdout(out).output().unwrap()
        };
        let full = run(std::fs::File::options().write(true).open("/dev/full").unwrap().into());
        let why = String::from_utf8_lossy(&full.stderr).into_owned();
        assert!(full.status.code() == Some(73) && why.contains("standard output"), "{command:?}: {} {why}", full.status);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = run(writer.into());
        assert!(closed.status.success(), "{command:?}: {closed:?}");
    }
    let (status, text) = code(&store, &["status", "--csv"]);
    assert!(status == 2 && text.contains("--csv"), "{text}");
    assert_eq!(code(&store, &["asof", "NO:SUCH", "trade"]).0, 3);
    let row = &json(&store.tape_ok(&["get", "21", "--json"]))[0];
    assert!(row["lsn"].is_u64() && row["instrument"].is_string(), "{row}");
    for line in json(&store.tape_ok(&["follow", "--once"])) {
        let ids = ["trade_id", "order_id", "sequence"].iter().filter_map(|id| line.get(id));
        assert!(ids.into_iter().all(|id| id.is_u64() || id.is_null()), "{line}");
    }
}

#[test]
fn tail_begins_with_the_newest_records_that_pass_the_filter_however_far_back_they_are() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "30000", "--instruments", "3"]);
    let last = |instrument: &str, count: &str| -> Vec<serde_json::Value> {
        let lines = store.tape_ok(&["tail", "-n", count, "--instrument", instrument, "--kind", "trade", "--idle-ms", "300"]);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let lsn = |rows: &[serde_json::Value]| rows.iter().map(|row| row["lsn"].as_u64().unwrap()).collect::<Vec<_>>();
    let all = lsn(&last("SIM:00001", "1000000"));
    assert!(all.len() > 100 && all.is_sorted());
    for count in [1, 2, 77, all.len() - 1, all.len()] {
        assert_eq!(lsn(&last("SIM:00001", &count.to_string())), all[all.len() - count..], "the last {count}");
    }
    // More than the records that are looked at first come after it.
    store.tape_ok(&["publish", "--sim", "--records", "40000", "--instruments", "1", "--publisher", "9"]);
    assert_eq!(lsn(&last("SIM:00001", "5")), all[all.len() - 5..]);
    assert!(last("SIM:00001", "0").is_empty());
}
