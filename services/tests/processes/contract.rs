//! The contract of the command line: one table of all commands, measured, and the rules that hold for all of them.

mod commands;
mod measure;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tape_services::processes::Process;
use tapestore::lsn::Durability;
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{Quote, Record, Trade};

use self::commands::{CASES, Stores};
use self::measure::{Measure, code, text};
use crate::fixture::{PATIENCE, Store, eventually, signal};

/// The page with the table.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/docs/commands.md");
/// Rewrites the page.
const WRITE: &str = "TAPESTORE_WRITE_COMMANDS";

#[test]
fn every_command_keeps_the_contract_and_the_page_holds_what_was_measured() {
    let mut stores = Stores::new();
    let mut table = String::from(
        "| command | prints | `--json` | `--csv` | `--columns` | no such instrument | `> /dev/full` | closed pipe |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let mut wrong = Vec::new();
    for case in CASES {
        let mut measure = Measure { stores: &mut stores, case, wrong: &mut wrong };
        writeln!(table, "{}", measure.line()).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once("<!-- measured -->\n").unwrap();
    let (old, after) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(PAGE, format!("{before}<!-- measured -->\n{table}<!-- end -->{after}")).unwrap();
    } else {
        assert_eq!(old, table, "the table of src/docs/commands.md is not what the commands do; to rewrite it, set {WRITE}=1");
    }
}

/// The commands that the help of `tape` with `arguments` lists.
fn listed(arguments: &[&str]) -> Vec<String> {
    let help = Command::new(env!("CARGO_BIN_EXE_tape")).args(arguments).arg("--help").output().unwrap();
    let help = text(&help.stdout);
    let listed = help.split("\nCommands:\n").nth(1).map_or("", |rest| rest.split("\nOptions:").next().unwrap());
    let lines = listed.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    lines.filter_map(|l| l.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_that_the_help_lists_is_in_the_table() {
    // `sql` is the program of another package, whose tests hold it to the same contract.
    let commands = listed(&[]).into_iter().filter(|command| command != "sql");
    let (mut names, mut groups) = (Vec::new(), 0);
    for command in commands {
        let within = listed(&[&command]);
        groups += usize::from(!within.is_empty());
        if within.is_empty() {
            names.push(command);
        } else {
            names.extend(within.iter().map(|each| format!("{command} {each}")));
        }
    }
    assert_eq!(groups, 2, "`cluster` and `inspect` have commands of their own: {names:?}");
    for name in &names {
        assert!(CASES.iter().any(|case| case.name == *name), "tape {name} is not in the table");
    }
    let is_listed =
        |case: &str| names.iter().any(|name| case == name || case.strip_prefix(name).is_some_and(|o| o.starts_with(" --")));
    assert!(CASES.iter().all(|case| is_listed(case.name)), "the table has a command that is not there");
}

#[test]
fn sql_is_answered_by_the_program_beside_tape_and_without_it_the_command_says_how_to_build_it() {
    let dir = tempfile::tempdir().unwrap();
    let tape = dir.path().join("tape");
    std::fs::copy(env!("CARGO_BIN_EXE_tape"), &tape).unwrap();
    // A process that another test starts meanwhile may still have the copy open for writing.
    let run = |arguments: &[&str]| {
        eventually("a copy that can be run", || match Command::new(&tape).args(arguments).env_remove("TAPE_STORE").output() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
            output => Some(output.unwrap()),
        })
    };
    let missing = run(&["sql", "-c", "select 1"]);
    assert!(missing.status.code() == Some(66) && text(&missing.stderr).contains("cargo build --release -p tape-query"));
    let program = dir.path().join("tape-query");
    std::fs::write(&program, "#!/bin/sh\nprintf '%s|' \"$@\"\nexit 7\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let ran = run(&["--store", "x", "--csv", "sql", "-c", "select 1", "--help"]);
    assert_eq!((text(&ran.stdout).as_str(), ran.status.code()), ("sql|--store|x|--csv|-c|select 1|--help|", Some(7)));
    let ran = run(&["sql", "--json", "--columns", "a,b"]);
    assert_eq!(text(&ran.stdout), "sql|--store|tapestore-data|--json|--columns=a,b|");
}

#[test]
fn a_subscriber_of_a_stopped_store_gets_the_reason() {
    let mut store = Store::serve();
    assert!(store.terminate().success());
    let reason = tapestore::Subscriber::open(&store.path).unwrap_err().to_string();
    assert!(reason.contains("it has stopped"), "{reason}");
}

#[test]
fn a_follower_of_a_quiet_store_ends_when_its_reader_has_gone() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "100", "--instruments", "1"]);
    for arguments in [&["tail"][..], &["tail", "--live"], &["follow"], &["bars", "SIM:00000", "--every", "1s", "--follow"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(arguments).arg("--store").arg(&store.path).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if !arguments.contains(&"--live") {
            // It has printed what there is, and waits for more.
            let mut first = [0];
            child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        }
        drop(child.stdout.take());
        let status = eventually("the end of a follower whose reader has gone", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_watch_ends_with_its_output_and_prints_an_unreachable_host_in_its_format() {
    let dir = tempfile::tempdir().unwrap();
    let watch = |stdout: Stdio, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(["cluster", "watch"]).args(more).arg("--store").arg(dir.path());
        Process::start("watch", command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null())).unwrap()
    };
    let mut watched = watch(Stdio::piped(), &["--every-ms", "3600000", "--json"]);
    let mut line = String::new();
    BufReader::new(watched.take_stdout().unwrap()).read_line(&mut line).unwrap();
    let report: Value = serde_json::from_str(&line).unwrap();
    assert!(report["error"].as_str().unwrap().contains("no storage process serves"), "{line}");
    // Its reader has gone.
    assert_eq!(watched.wait().unwrap().code(), Some(0));
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(watch(full.into(), &["--every-ms", "10"]).wait().unwrap().code(), Some(73));
    // Ctrl-C is how a watch ends; one with a number of reports has not finished.
    for (more, code) in [(&["--every-ms", "3600000"][..], 0), (&["--every-ms", "3600000", "--count", "2"], 4)] {
        let mut watched = watch(Stdio::piped(), more);
        watched.stdout().unwrap().read_exact(&mut [0]).unwrap();
        watched.signal(Signal::INT).unwrap();
        assert_eq!(watched.wait().unwrap().code(), Some(code), "{more:?}");
    }
}

#[test]
fn a_demo_that_is_interrupted_leaves_no_file_and_no_shared_memory() {
    for arguments in [&["demo"][..], &["demo", "--cluster", "3"]] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(arguments).args(["--records", "100000000", "--rate", "x1"]).env("TMPDIR", dir.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let started = |dir: &Path| {
            std::fs::read_dir(dir).unwrap().flatten().find(|e| e.file_name().to_string_lossy().starts_with("tape-demo-"))
        };
        let demo = eventually("the demo's directory", || started(dir.path())).path();
        let first = if arguments.len() > 1 { demo.join("node-1") } else { demo.join("store") };
        eventually("records of the demo", || {
            let mut reader = Reader::open(&first).ok()?;
            (reader.snapshot(At::Appended).ok()?.last().0 > 0).then_some(())
        });
        let run_dir = tapestore::shm::run_dir::RunDir::find(&first).unwrap().path().to_path_buf();
        assert!(run_dir.exists());
        signal(child.id(), Signal::TERM);
        let status = eventually("the end of the demo", || child.try_wait().unwrap());
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        assert!(status.code() == Some(4) && message.contains("interrupted: the demo has ended"), "{status} {message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{arguments:?}");
        assert!(!run_dir.exists(), "{} is still there", run_dir.display());
    }
}

/// What `tape` with `arguments` prints on a terminal of `width` characters; `None` if there is no program to make one.
fn on_terminal(store: &Store, width: u32, arguments: &str) -> Option<String> {
    let tape = env!("CARGO_BIN_EXE_tape");
    let line = format!("stty cols {width}; {tape} {arguments} --store {}", store.path.display());
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().ok()?;
    Some(text(&output.stdout))
}

#[test]
fn a_table_fits_the_terminal_and_says_what_it_left_out() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "2000", "--instruments", "2"]);
    let Some(printed) = on_terminal(&store, 100, "scan SIM:00000 quote -n 5") else {
        return println!("skipped: this host has no `script`, which makes a terminal");
    };
    let (notes, rows): (Vec<&str>, Vec<&str>) = printed.lines().map(str::trim_end).partition(|l| l.starts_with("note:"));
    assert!(notes.len() == 1 && notes[0].contains("do not fit 100 characters") && notes[0].contains("--columns"), "{printed}");
    assert!(rows.len() == 6 && rows.iter().all(|row| row.len() <= 100) && rows[0].contains("bid_px"), "{printed}");
    let chosen = on_terminal(&store, 100, "scan SIM:00000 quote -n 5 --columns lsn,ask_px,bid_px").unwrap();
    let header: Vec<&str> = chosen.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["lsn", "ask_px", "bid_px"], "{chosen}");
    // What goes to a file or a program has all columns.
    assert!(store.tape_ok(&["scan", "SIM:00000", "quote", "-n", "1"]).lines().next().unwrap().contains("ts_in_delta"));
}

#[test]
fn chosen_columns_are_those_of_every_format() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "2000", "--instruments", "2"]);
    let run =
        |format: &[&str]| store.tape_ok(&[&["scan", "SIM:00001", "trade", "-n", "3", "--columns", "price,lsn"], format].concat());
    let csv = run(&["--csv"]);
    let json: Vec<Value> = run(&["--json"]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((csv.lines().next(), csv.lines().count(), json.len()), (Some("price,lsn"), 4, 3));
    for (line, object) in csv.lines().skip(1).zip(&json) {
        let expected = format!("{},{}", object["price"].as_str().unwrap(), object["lsn"]);
        assert_eq!((line, object.as_object().unwrap().len()), (expected.as_str(), 2));
    }
    let refused = store.tape(&["scan", "SIM:00001", "trade", "--columns", "prise"]);
    assert!(code(&refused) == 2 && text(&refused.stderr).contains("there is no column 'prise'"), "{}", text(&refused.stderr));
}

#[test]
fn a_join_of_the_command_line_is_the_library_s() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "3000", "--instruments", "2"]);
    let out = store.tape_ok(&["asof", "SIM:00000", "--join", "trade", "quote", "--json"]);
    let mut reader = store.reader();
    let instrument = reader.instrument(&"SIM:00000".parse().unwrap()).unwrap();
    let mut snapshot = reader.snapshot(At::Committed).unwrap();
    let series = |kind| Series { instrument, kind };
    let mut lines = out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let mut pairs = snapshot.join(series(Trade::KIND), series(Quote::KIND), TimeRange::ALL).unwrap();
    let mut joined = 0;
    while let Some((trade, quote)) = pairs.next().unwrap() {
        let line = lines.next().unwrap();
        assert_eq!(line["lsn"], trade.lsn.0);
        assert_eq!(line["price"], trade.record.get::<Trade>().unwrap().price.to_string());
        match quote {
            Some(quote) => {
                joined += 1;
                assert_eq!(line["quote_lsn"], quote.lsn.0);
                assert_eq!(line["quote_bid_px"], quote.record.get::<Quote>().unwrap().bid_px.to_string());
            }
            None => assert!(line["quote_lsn"].is_null() && line["quote_bid_px"].is_null(), "{line}"),
        }
    }
    assert!(joined > 0 && lines.next().is_none());
    let nothing = store.tape(&["asof", "SIM:00000", "--join", "trade", "quote", "--from", "now"]);
    assert!(
        code(&nothing) == 0 && text(&nothing.stderr).contains("there is no trade of SIM:00000 from"),
        "{}",
        text(&nothing.stderr)
    );
    let csv = store.tape_ok(&["asof", "SIM:00000", "--join", "trade", "quote", "--csv", "-n", "2"]);
    assert!(csv.lines().next().unwrap().contains(",quote_ask_px,") && csv.lines().count() == 3, "{csv}");
}

#[test]
fn bars_of_a_pattern_are_the_bars_of_each_instrument() {
    let store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "5000", "--instruments", "3"]);
    let bars = |name: &str| store.tape_ok(&["bars", name, "--every", "1s", "--json"]);
    let each: String = ["SIM:00000", "SIM:00001", "SIM:00002"].map(bars).concat();
    assert!(!each.is_empty());
    assert_eq!(bars("SIM:*"), each);
    assert_eq!(bars("SIM:0000[02]"), [bars("SIM:00000"), bars("SIM:00002")].concat());
    let table = store.tape_ok(&["bars", "SIM:*", "--every", "1s"]);
    assert!(table.lines().next().unwrap().contains("instrument") && table.contains("SIM:00002"), "{table}");
    let malformed = store.tape(&["bars", "SIM:[", "--every", "1s"]);
    assert!(code(&malformed) == 2 && text(&malformed.stderr).contains("'SIM:[' is not a pattern of names"));
}

#[test]
fn a_silent_publisher_is_named_with_its_process_and_is_a_problem_on_request() {
    let store = Store::serve();
    let mut publisher = store.publisher(7, Durability::Fsync);
    let instrument = publisher.instrument(&"X:1".parse().unwrap()).unwrap();
    publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    let healthy = store.tape(&["status", "--check", "--silent-after", "1h"]);
    assert_eq!(code(&healthy), 0, "{}", text(&healthy.stderr));
    std::thread::sleep(Duration::from_millis(20));
    let silent = store.tape(&["status", "--check", "--silent-after", "1ms"]);
    let expected = format!("publisher 7 (process {}) is attached and has sent nothing for", std::process::id());
    assert!(code(&silent) == 6 && text(&silent.stderr).contains(&expected), "{}", text(&silent.stderr));
    let shown = store.tape_ok(&["status", "--silent-after", "1ms"]);
    assert!(shown.starts_with(&format!("PROBLEM: {expected}")), "{shown}");
    let json: Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
    assert_eq!((&json["publishers"][0]["pid"], &json["healthy"]), (&std::process::id().into(), &true.into()));
    assert!(json["publishers"][0]["newest_record"].is_string(), "{json}");
}

#[test]
fn a_store_has_spare_log_segments_only_while_it_is_served_and_may_get_records() {
    let mut store = Store::new(&["--memtable-size", "64M", "--segment-size", "8M"]);
    store.start();
    let bytes = |store: &Store| -> u64 {
        let files = std::fs::read_dir(store.path.join("wal")).unwrap().flatten();
        files.map(|f| f.metadata().unwrap().len()).sum()
    };
    // Several of the agent's turns.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bytes(&store), 8 << 20);
    let publisher = store.publisher(7, Durability::Fsync);
    eventually("two segments that are made ahead", || (bytes(&store) == 3 * (8 << 20)).then_some(()));
    drop(publisher);
    assert!(store.terminate().success());
    assert_eq!(bytes(&store), 8 << 20);
}

#[test]
fn completions_name_the_commands_and_their_options() {
    let script = Command::new(env!("CARGO_BIN_EXE_tape")).args(["completions", "bash"]).output().unwrap();
    let script = text(&script.stdout);
    assert!(script.contains("asof") && script.contains("--columns") && script.contains("--join"), "{script}");
}
