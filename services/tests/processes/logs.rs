//! What processes log: objects of JSON that parse, priorities for the journal, times for people, and events of the page alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tape_services::processes::Process;
use tape_services::terminal::{self, LevelFilter, LogFormat, Wanted};
use tapestore::lsn::{Durability, InstrumentId};
use tapestore::record::Trade;
use tapestore::time::Ts;

use crate::at_rest::spoil_last_frame;
use crate::fixture::{PATIENCE, Store, eventually, register};

const STORAGE: &str = env!("CARGO_BIN_EXE_tape-storage");
const REPLICATION: &str = env!("CARGO_BIN_EXE_tape-replication");

/// The events of the page, each with its level.
fn page() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/docs/events.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let events = rows.flat_map(|row| {
        row[1].split(", ").map(|name| (name.trim_matches('`').to_owned(), row[2].to_owned())).collect::<Vec<_>>()
    });
    events.collect()
}

/// `program` without variables of the log.
fn command(program: &str, store: &Path) -> Command {
    let mut command = Command::new(program);
    ["RUST_LOG", "TAPE_LOG_FORMAT", "JOURNAL_STREAM", "RUST_BACKTRACE"].iter().for_each(|name| {
        command.env_remove(name);
    });
    command.arg("--store").arg(store).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The objects in `text`: each line is one, its event is in the page, and its level is the page's. Returns the names in their order.
fn events(text: &str) -> Vec<(String, Value)> {
    let page = page();
    assert!(page.len() > 190 && text.ends_with('\n'), "{text}");
    text.lines()
        .map(|line| {
            let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let keys: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["event", "fields", "level", "message", "pid", "target", "thread", "time"].into(), "{line}");
            let name = object["event"].as_str().unwrap().to_owned();
            let level = page.get(&name).unwrap_or_else(|| panic!("not in the page: {line}"));
            assert!(level == "any" || *level == object["level"].as_str().unwrap().to_lowercase(), "{line}");
            let time = object["time"].as_str().unwrap();
            assert!(time.len() == "2026-03-02T14:30:00.123456789Z".len() && time.parse::<Ts>().is_ok(), "{line}");
            assert!(object["pid"].as_u64() > Some(0) && object["fields"].is_object(), "{line}");
            (name, object)
        })
        .collect()
}

fn has(events: &[(String, Value)], name: &str) -> bool {
    events.iter().any(|(given, _)| given == name)
}

/// The command that serves `store` with standard error in the file `to`.
fn storage(store: &Store, to: &Path, arguments: &[&str]) -> Command {
    let mut command = command(STORAGE, &store.path);
    command.args(["--memtable-size", "16M", "--segment-size", "4M"]).args(arguments);
    command.stderr(File::options().create(true).append(true).open(to).unwrap());
    command
}

/// What comes out of the pipe `from` up to its end.
fn read(mut from: std::io::PipeReader) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

fn publish(store: &Store, publisher: u16, level: Durability) {
    let mut publisher = store.publisher(publisher, level);
    register(&publisher);
    publisher.publish(&Trade { instrument: InstrumentId(1), ..Trade::default() }).unwrap();
    publisher.flush(level, PATIENCE).unwrap();
    publisher.close(PATIENCE).unwrap();
}

/// A store that no process serves, and a file for what its processes log.
fn quiet() -> (Store, PathBuf) {
    let store = Store::new(&[]);
    let log = store.path.with_file_name("log");
    (store, log)
}

#[test]
fn storage_logs_objects_of_json_alone_from_its_start_to_its_end() {
    let (mut store, log) = quiet();
    let json = ["--log-format", "json", "--log", "debug"];
    let config = store.path.with_file_name("storage.toml");
    std::fs::write(&config, "sync-interval-ms = 3600000\nretention = [{ kind = \"signal\", keep = \"1d\" }]\n").unwrap();
    store.start_by(&mut storage(&store, &log, &[&json[..], &["--config", config.to_str().unwrap()]].concat()));
    publish(&store, 1, Durability::Fsync);
    store.tape_ok(&["flush"]);
    // No sync comes for this one: the frame that the kill leaves is not below the durable mark.
    publish(&store, 2, Durability::Os);
    store.kill();
    spoil_last_frame(&store.path);
    store.start_by(&mut storage(&store, &log, &json));
    assert!(store.terminate().success());
    let text = std::fs::read_to_string(&log).unwrap();
    let found = events(&text);
    for name in [
        "retention.kind_not_defined",
        "storage.recovered",
        "storage.serving",
        "session.attached",
        "session.detached",
        "flush.finished",
        "wal.torn_tail",
        "storage.stopping",
        "storage.stopped",
    ] {
        assert!(has(&found, name), "{name} is not logged\n{text}");
    }
    // Numbers are numbers, and paths are texts.
    let (_, recovered) = found.iter().find(|(name, _)| name == "storage.recovered").unwrap();
    assert!(recovered["fields"]["records"].is_u64() && recovered["fields"]["clean"].is_boolean(), "{recovered}");
    assert_eq!((&recovered["fields"]["store"], &recovered["thread"]), (&store.path.to_str().into(), &"main".into()));
    // A start that fails says so in an object too.
    let failed = command(STORAGE, &store.path).args(["--log-format", "json", "--config", "/nowhere"]).output().unwrap();
    let found = events(&String::from_utf8(failed.stderr).unwrap());
    let (name, object) = found.last().unwrap();
    assert_eq!((name.as_str(), object["fields"]["exit_code"].as_i64()), ("process.failed", failed.status.code().map(i64::from)));
    assert!(object["message"].as_str().unwrap().contains("/nowhere"), "{object}");
}

#[test]
fn lines_to_the_journal_have_a_priority_and_no_time() {
    let (mut store, _) = quiet();
    let (pipe, written) = std::io::pipe().unwrap();
    let is = rustix::fs::fstat(&written).unwrap();
    let mut command = command(STORAGE, &store.path);
    command.args(["--memtable-size", "16M", "--segment-size", "4M", "--log", "debug"]);
    store.start_by(command.env("JOURNAL_STREAM", format!("{}:{}", is.st_dev, is.st_ino)).stderr(written));
    drop(command);
    let lines = read(pipe);
    publish(&store, 1, Durability::Fsync);
    assert!(store.terminate().success());
    let text = lines.join().unwrap();
    let page = page();
    for line in text.lines() {
        let (priority, rest) = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).unwrap_or_else(|| panic!("{line}"));
        let (level, rest) = rest.split_once(' ').unwrap();
        let expected = match level {
            "ERROR" => "3",
            "WARN" => "4",
            "INFO" => "6",
            _ => "7",
        };
        let (event, _) = rest.split_once(": ").unwrap();
        assert_eq!(priority, expected, "{line}");
        assert!(page.contains_key(event) && !line.contains('\u{1b}'), "{line}");
    }
    assert!(text.contains("<6>INFO storage.stopped: stopped; all records are durable records="), "{text}");
    assert!(text.contains("\n<7>DEBUG "), "{text}");
    // The end of a process that fails, too. A stream of another name is not the journal.
    let fail = |is_journal: bool| {
        let (pipe, written) = std::io::pipe().unwrap();
        let is = rustix::fs::fstat(&written).unwrap();
        let inode = if is_journal { is.st_ino } else { is.st_ino + 1 };
        let mut command = self::command(STORAGE, &store.path);
        command.args(["--config", "/nowhere"]).env("JOURNAL_STREAM", format!("{}:{inode}", is.st_dev)).stderr(written);
        assert!(!command.status().unwrap().success());
        drop(command);
        read(pipe).join().unwrap()
    };
    let (to_journal, elsewhere) = (fail(true), fail(false));
    assert!(to_journal.starts_with("<3>ERROR process.failed: ") && to_journal.contains("exit_code="), "{to_journal}");
    assert!(elsewhere.starts_with("error: "), "{elsewhere}");
}

#[test]
fn lines_for_people_have_a_time_a_level_and_an_event() {
    let (mut store, log) = quiet();
    store.start_by(&mut storage(&store, &log, &[]));
    assert!(store.terminate().success());
    let (text, page) = (std::fs::read_to_string(&log).unwrap(), page());
    for line in text.lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.parse::<Ts>().is_ok(), "{line}");
        let (level, rest) = rest.trim_start().split_once(' ').unwrap();
        let (event, _) = rest.split_once(": ").unwrap();
        assert_eq!(page[event], level.to_lowercase(), "{line}");
    }
    assert!(text.contains("  INFO storage.serving: serving "), "{text}");
}

#[test]
fn the_line_that_counts_lost_lines_is_an_object_too() {
    let (mut store, _) = quiet();
    let (unread, pipe) = std::io::pipe().unwrap();
    let mut command = command(STORAGE, &store.path);
    command.args(["--memtable-size", "16M", "--segment-size", "4M", "--log", "trace"]).env("TAPE_LOG_FORMAT", "json");
    store.start_by(command.stderr(pipe));
    drop(command);
    // The pipe is full first, then the queue.
    eventually("lost lines", || {
        for _ in 0..50 {
            store.publisher(1, Durability::Os).close(PATIENCE).unwrap();
        }
        let status: Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
        (status["log"]["lines_lost"].as_u64() > Some(0)).then_some(())
    });
    let lines = read(unread);
    // A line after the lost ones.
    store.publisher(1, Durability::Os).close(PATIENCE).unwrap();
    assert!(store.terminate().success());
    let found = events(&lines.join().unwrap());
    let (_, lost) = found.iter().find(|(name, _)| name == "log.lines_lost").unwrap();
    assert!(lost["fields"]["lines"].as_u64() > Some(0) && lost["level"] == "WARN", "{lost}");
}

#[test]
fn replication_and_commands_write_objects_of_json_too() {
    let (mut store, log) = quiet();
    store.start_by(&mut storage(&store, &store.path.with_file_name("of-storage"), &[]));
    let mut command = command(REPLICATION, &store.path);
    command.args(["--log-format", "json", "--log", "debug", "--listen", "127.0.0.1:0"]).stderr(File::create(&log).unwrap());
    let mut replication = Process::start("replication", &mut command).unwrap();
    let written = || std::fs::read_to_string(&log).unwrap();
    eventually("a connection to storage", || written().contains("replication.storage_connected").then_some(()));
    eventually("the handler of SIGTERM", || {
        let status = procfs::process::Process::new(replication.id().cast_signed()).unwrap().status().unwrap();
        (status.sigcgt >> 14 & 1 == 1).then_some(())
    });
    replication.stop().unwrap();
    let found = events(&written());
    assert!(has(&found, "replication.serving") && has(&found, "replication.stopping"), "{found:?}");
    // A command: its notes and its failure. The option stands before or after the command.
    for arguments in [&["--log-format", "json", "get", "99"][..], &["get", "99", "--log-format", "json"]] {
        let output = self::command(env!("CARGO_BIN_EXE_tape"), &store.path).args(arguments).output().unwrap();
        let found = events(&String::from_utf8(output.stderr).unwrap());
        let (name, object) = found.last().unwrap();
        assert_eq!(name, "process.failed", "{found:?}");
        assert_eq!(object["fields"]["exit_code"].as_i64(), output.status.code().map(i64::from));
    }
    // The process behind a command that is a process takes its format.
    let output = self::command(env!("CARGO_BIN_EXE_tape"), &store.path)
        .args(["--log-format", "json", "storage", "--config", "/nowhere"])
        .output()
        .unwrap();
    assert!(has(&events(&String::from_utf8(output.stderr).unwrap()), "process.failed"));
    let refused = self::command(env!("CARGO_BIN_EXE_tape"), &store.path).args(["kinds", "--log-format", "xml"]).output().unwrap();
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && why.contains("text, json"), "{why}");
}

/// Panics in a process of its own whose log is JSON: the role `panics`.
pub(crate) fn panic_in_json() {
    terminal::log(Wanted::Given(LevelFilter::INFO), LogFormat::Json, false);
    panic!("a \"text\"\nof two lines");
}

#[test]
fn a_panic_is_an_object_too() {
    let mut role = Command::new(std::env::current_exe().unwrap());
    role.args(["roles::play", "--exact", "--nocapture"]).env("TAPE_ROLE", "panics").env("TAPE_ROLE_STORE", "none");
    let output = role.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{text}"));
    let (name, object) = events(&format!("{line}\n")).remove(0);
    assert_eq!((name.as_str(), object["message"].as_str()), ("process.panicked", Some("a \"text\"\nof two lines")));
    assert!(object["fields"]["at"].as_str().unwrap().contains("logs.rs:"), "{object}");
    assert!(!text.contains("panicked at"), "{text}");
}

#[test]
fn what_is_logged_changes_with_a_reload_unless_a_flag_has_chosen_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(&[]);
    let (config, of_replication) = (dir.path().join("storage.toml"), dir.path().join("replication.toml"));
    let configure = |log: &str| {
        std::fs::write(&config, format!("log = \"{log}\"\nsegment-size = 4194304\nmemtable-size = 16777216\n")).unwrap();
        std::fs::write(&of_replication, format!("log = \"{log}\"\nlisten = \"127.0.0.1:0\"\n")).unwrap();
    };
    configure("warn");
    let start = |program: &str, config: &Path, to: &Path, arguments: &[&str]| {
        let mut command = command(program, &store.path);
        command.arg("--config").arg(config).args(arguments).args(["--log-format", "json"]);
        command.stderr(File::options().create(true).append(true).open(to).unwrap());
        Process::start(program, &mut command).unwrap()
    };
    let logs = ["storage", "chosen", "replication"].map(|name| dir.path().join(name));
    let text = |of: usize| std::fs::read_to_string(&logs[of]).unwrap();
    let storage = start(STORAGE, &config, &logs[0], &[]);
    let replication = start(REPLICATION, &of_replication, &logs[2], &[]);
    eventually("storage", || store.tape(&["status", "--check"]).status.success().then_some(()));
    eventually("handlers of signals", || {
        let status = |of: u32| procfs::process::Process::new(of as i32).ok()?.status().ok();
        let catches = |of: u32| status(of).is_some_and(|status| status.sigcgt >> 9 & 1 == 1);
        (catches(storage.id()) && catches(replication.id())).then_some(())
    });
    assert!(!text(0).contains("storage.serving") && !text(2).contains("replication.waiting_for_storage"), "{}", text(0));
    configure("info");
    store.tape_ok(&["reload"]);
    replication.signal(rustix::process::Signal::USR1).unwrap();
    eventually("lines of the new level", || {
        (text(0).contains("storage.reloaded") && text(2).contains("replication.reloaded")).then_some(())
    });
    // A wrong one changes nothing, and says what is wrong.
    configure("loud");
    assert_eq!(store.tape(&["reload"]).status.code(), Some(2));
    replication.signal(rustix::process::Signal::USR1).unwrap();
    eventually("the refusal", || {
        let is_refused = |of: usize, name: &str| text(of).lines().any(|line| line.contains(name) && line.contains("loud"));
        (is_refused(0, "storage.reload_refused") && is_refused(2, "replication.reload_refused")).then_some(())
    });
    configure("warn");
    store.tape_ok(&["reload"]);
    assert_eq!(text(0).matches("storage.reloaded").count(), 1, "{}", text(0));
    drop((storage, replication));
    // A flag counts more, at the start and at a reload.
    let mut chosen = start(STORAGE, &config, &logs[1], &["--log", "info"]);
    eventually("its first lines", || text(1).contains("storage.serving").then_some(()));
    eventually("storage", || store.tape(&["status", "--check"]).status.success().then_some(()));
    store.tape_ok(&["reload"]);
    eventually("the reload", || text(1).contains("storage.reloaded").then_some(()));
    chosen.kill();
}
