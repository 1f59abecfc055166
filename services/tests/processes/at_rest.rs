//! A store gives one answer, whoever serves it: a storage process, or nobody.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tapestore::error::Error;
use tapestore::lsn::{Durability, InstrumentId, Lsn};
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{Kind, Quote, Record, Trade};
use tapestore::shm::control::Statistic;
use tapestore::subscriber::Subscriber;
use tapestore::time::Ts;

use crate::fixture::{PATIENCE, Store, eventually, tape};

#[derive(Clone, Copy, Debug, Record)]
#[repr(C)]
#[record(kind = 0x80f1, name = "late")]
struct Late {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
}

const FLUSHED: u64 = 60_000;
const RECORDS: u64 = 100_001;
/// The user `nobody`.
const OTHER: u32 = 65534;

/// A served store. Its first records are in SSTables; the newest ones, an instrument and a kind are in the log alone.
fn partly_flushed() -> Store {
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "4M"]);
    store.start();
    let publish = |records: u64, publisher: &str| {
        let records = records.to_string();
        let arguments = ["publish", "--sim", "--instruments", "20", "--durability", "os", "--records", &records];
        store.tape_ok(&[&arguments[..], &["--publisher", publisher]].concat());
    };
    publish(FLUSHED, "7");
    store.tape_ok(&["flush"]);
    publish(RECORDS - 1 - FLUSHED, "8");
    let mut publisher = store.publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"LATE".parse().unwrap()).unwrap();
    publisher.kind::<Late>().unwrap();
    publisher.publish(&Late { instrument, ts_event: Ts(9), ..Late::default() }).unwrap();
    publisher.close(PATIENCE).unwrap();
    store
}

/// A directory with the store in one state, and how to run `tape` on it.
struct State {
    name: &'static str,
    path: PathBuf,
    /// The copy of `tape` that another user runs.
    as_other: Option<PathBuf>,
    unmount: Option<PathBuf>,
}

impl State {
    fn new(name: &'static str, path: &Path) -> State {
        State { name, path: path.to_path_buf(), as_other: None, unmount: None }
    }

    fn tape(&self, arguments: &[&str]) -> Output {
        let Some(program) = &self.as_other else { return tape(&self.path, arguments) };
        let mut command = Command::new(program);
        command.args(arguments).arg("--store").arg(&self.path).uid(OTHER).gid(OTHER).current_dir("/").output().unwrap()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(place) = &self.unmount {
            Command::new("umount").arg(place).status().unwrap();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// The eight states of the store `store`, which is killed, restarted and stopped for them, after `ask` has asked the served one.
fn each_state(store: &mut Store, mut ask: impl FnMut(&State)) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    ask(&State::new("served", &store.path));
    store.kill();
    ask(&State::new("killed", &store.path));
    let (copy, backup, restored) = (path("copy"), path("backup"), path("restored"));
    run("cp", &["-r", &text(&store.path), &text(&copy)]);
    ask(&State::new("copied with cp -r", &copy));
    store.tape_ok(&["backup", &text(&backup)]);
    ask(&State::new("backed up", &backup));
    assert!(tape(&restored, &["restore", &text(&backup)]).status.success());
    ask(&State::new("restored", &restored));
    // A reboot leaves the directory and nothing in shared memory.
    let run_dir = store.run_dir();
    run_dir.sweep(None).unwrap();
    std::fs::remove_dir_all(run_dir.path()).unwrap();
    ask(&State::new("on a rebooted host", &store.path));
    if rustix::process::geteuid().is_root() {
        let place = path("read-only");
        std::fs::create_dir(&place).unwrap();
        let bound = Command::new("mount").args(["--bind", &text(&copy), &text(&place)]).status();
        if bound.is_ok_and(|status| status.success()) {
            let mut state = State::new("on a read-only file system", &place);
            state.unmount = Some(place.clone());
            run("mount", &["-o", "remount,bind,ro", &text(&place)]);
            ask(&state);
        } else {
            println!("skipped: a read-only file system, because this process may not mount one");
        }
        let program = path("tape");
        std::fs::copy(env!("CARGO_BIN_EXE_tape"), &program).unwrap();
        let mut state = State::new("under another user with read permission", &copy);
        state.as_other = Some(program);
        run("chmod", &["-R", "a+rX", &text(&copy)]);
        ask(&state);
    } else {
        println!("skipped: a read-only file system and another user, because this process is not root");
    }
    store.start();
    assert!(store.terminate().success());
    ask(&State::new("stopped in order", &store.path));
}

#[test]
fn every_command_that_reads_answers_alike_in_eight_states() {
    let mut store = partly_flushed();
    let first = store.tape_ok(&["get", "1", "--json"]);
    let time = serde_json::from_str::<serde_json::Value>(&first).unwrap()["index_time"].as_str().unwrap().to_owned();
    let (flushed, last) = (FLUSHED.to_string(), RECORDS.to_string());
    let commands: &[&[&str]] = &[
        &["bars", "SIM:00000", "--every", "1s"],
        &["bars", "SIM:00000", "--every", "100ms", "--json"],
        &["asof", "SIM:00000", "trade"],
        &["asof", "SIM:00000", "definition", &time],
        &["latest"],
        &["latest", "SIM:0000?", "--kind", "quote", "--json"],
        &["latest", "L*", "--kind", "late"],
        &["get", "1"],
        &["get", &flushed],
        &["get", &last, "--json"],
        &["get", "SIM:00000", "definition", &time],
        &["get", "999999999"],
        &["scan", "SIM:00000", "trade", "--csv"],
        &["scan", "SIM:00003", "book", "--limit", "100"],
        &["scan", "SIM:00000", "trade", "--as-known-at", &flushed],
        &["scan", "LATE", "late", "--json"],
        &["replay", "--json", "--kind", "trade"],
        &["find", "SIM:00000", "trade", "1"],
        &["book", "SIM:00000"],
        &["follow", "--once", "--tally"],
        &["follow", "--once", "--tally", "--at", "committed", "--instrument", "SIM:00001"],
        &["follow", "--once", "--from-lsn", "99000"],
        &["tail", "-n", "3", "--limit", "3"],
        &["symbols"],
        &["symbols", "LAT"],
        &["symbols", "--at", "now", "--json"],
        &["kinds"],
        &["asof", "NONE", "trade"],
    ];
    let mut served: Vec<(Option<i32>, Vec<u8>)> = Vec::new();
    let (mut states, mut table) = (Vec::new(), String::new());
    each_state(&mut store, |state| {
        let exported = tempfile::tempdir().unwrap();
        let out = exported.path().join("out");
        let mut answers: Vec<_> = commands.iter().map(|command| (state.tape(command), command.join(" "))).collect();
        let export = ["export", out.to_str().unwrap(), "--csv", "--kind", "trade"];
        if state.as_other.is_none() {
            let answer = state.tape(&export);
            assert!(answer.status.success(), "{}: {}", state.name, String::from_utf8_lossy(&answer.stderr));
            let mut files: Vec<_> = std::fs::read_dir(&out).unwrap().map(|f| f.unwrap().path()).collect();
            files.sort();
            let bytes = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
            answers.push((Output { stdout: bytes, ..answer }, "export --csv --kind trade".to_owned()));
        }
        for (i, (answer, command)) in answers.into_iter().enumerate() {
            let why = String::from_utf8_lossy(&answer.stderr).into_owned();
            let answer = (answer.status.code(), answer.stdout);
            match served.get(i) {
                Some(wanted) => assert!(*wanted == answer, "{}: {command}: {:?} {why}", state.name, answer.0),
                None => {
                    let may_be_empty = ["999999999", "NONE", "find"].iter().any(|part| command.contains(part));
                    assert!(may_be_empty || answer.0 == Some(0), "{command}: {why}");
                    writeln!(table, "{:<90} exit code {:?}", command, answer.0).unwrap();
                    served.push(answer);
                }
            }
        }
        states.push(state.name);
    });
    println!("the same answers {states:?}:\n{table}");
    assert!(states.len() >= 7, "{states:?}");
}

/// Everything that a reader of `store` answers.
fn answers(store: &Path) -> String {
    let mut reader = Reader::open(store).unwrap();
    let mut text = String::new();
    let put = |text: &mut String, what: &dyn std::fmt::Debug| writeln!(text, "{what:?}").unwrap();
    reader.kinds().unwrap();
    reader.kind::<Late>().unwrap();
    let instrument = reader.instrument(&"SIM:00000".parse().unwrap()).unwrap();
    let symbols = reader.symbols().unwrap();
    symbols.refresh();
    put(&mut text, &symbols.names());
    let (trades, quotes) = (Series { instrument, kind: Trade::KIND }, Series { instrument, kind: Quote::KIND });
    for at in [At::Appended, At::Durable, At::Committed] {
        let mut now = reader.snapshot(at).unwrap();
        put(&mut text, &(now.first(), now.last(), now.series().unwrap()));
        for lsn in [1, FLUSHED, FLUSHED + 1, RECORDS].map(Lsn) {
            put(&mut text, &now.get(lsn).unwrap().map(|row| (row.lsn, row.index_time, row.record.words().to_vec())));
            put(&mut text, &now.arrival(lsn).unwrap());
        }
        let newest = now.as_of(trades, Ts(u64::MAX)).unwrap().map(|row| (row.lsn, row.index_time));
        put(&mut text, &newest);
        let time = newest.unwrap().1;
        let (mut rows, mut known, mut pairs) = (0, 0, Vec::new());
        let mut at_time = now.get_at(trades, time);
        while let Some(row) = at_time.next().unwrap() {
            put(&mut text, &row.lsn);
        }
        let mut scan = now.replay(&[trades, quotes], TimeRange::ALL);
        while let Some(row) = scan.next().unwrap() {
            rows += row.lsn.0;
        }
        let mut valid = now.as_known_at(Lsn(FLUSHED + 9)).trades(instrument, TimeRange::ALL).unwrap();
        while let Some(trade) = valid.next().unwrap() {
            known += trade.lsn.0;
        }
        let mut columns = now.columns(Quote::KIND, None, TimeRange::ALL).unwrap();
        let mut values = 0;
        while let Some(batch) = columns.next().unwrap() {
            values += batch.rows();
        }
        put(&mut text, &(rows, known, values, now.find(trades, "trade_id", 1).unwrap().len()));
        put(&mut text, &now.latest(Trade::KIND).unwrap().iter().map(|row| row.lsn).collect::<Vec<_>>());
        let mut join = now.join(trades, quotes, TimeRange::ALL).unwrap();
        while let Some((trade, quote)) = join.next().unwrap() {
            pairs.push((trade.lsn, quote.map(|row| row.lsn)));
        }
        put(&mut text, &pairs);
    }
    let mut follow = Reader::open(store).unwrap().follow(Lsn(1), At::Committed);
    while follow.position() <= Lsn(RECORDS) {
        follow.poll().unwrap();
    }
    put(&mut text, &follow.tally());
    text
}

#[test]
fn every_call_of_a_reader_answers_alike_in_each_state() {
    let mut store = partly_flushed();
    let mut served = None;
    each_state(&mut store, |state| {
        if state.as_other.is_some() {
            return;
        }
        let found = answers(&state.path);
        match &served {
            None => served = Some(found),
            Some(served) => assert!(*served == found, "{}", state.name),
        }
    });
}

#[test]
fn a_reader_goes_from_storage_to_the_files_and_back_and_keeps_its_snapshots() {
    let mut store = partly_flushed();
    let (mut reader, mut follow) = (store.reader(), store.reader().follow(Lsn(RECORDS - 1), At::Committed));
    assert!(!reader.is_at_rest());
    let held = reader.snapshot(At::Committed).unwrap();
    assert_eq!(follow.poll().unwrap().unwrap().lsn, Lsn(RECORDS - 1));
    assert!(store.terminate().success());
    let stopped = reader.snapshot(At::Committed).unwrap();
    assert!(reader.is_at_rest() && stopped.last() == Lsn(RECORDS) && reader.torn_tail().is_none());
    assert_eq!(reader.symbols().unwrap().id(&"LATE".parse().unwrap()), Some(InstrumentId(21)));
    assert_eq!(follow.poll().unwrap().unwrap().lsn, Lsn(RECORDS));
    assert!(follow.poll().unwrap_err().is_down(), "all that a stopped store has was read");
    assert!(Subscriber::open(&store.path).unwrap_err().is_down(), "nothing is sent by a stopped store");
    store.start();
    let mut publisher = store.publisher(3, Durability::Fsync);
    let instrument = publisher.instrument(&"LATER".parse().unwrap()).unwrap();
    publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
    publisher.close(PATIENCE).unwrap();
    assert_eq!(reader.snapshot(At::Committed).unwrap().last(), Lsn(RECORDS + 1));
    assert!(!reader.is_at_rest());
    assert_eq!(reader.symbols().unwrap().id(&"LATER".parse().unwrap()), Some(InstrumentId(22)));
    assert_eq!(eventually("the next record", || follow.poll().unwrap().map(|row| row.lsn)), Lsn(RECORDS + 1));
    assert_eq!((held.last(), stopped.last()), (Lsn(RECORDS), Lsn(RECORDS)), "snapshots stay as they were");
}

#[test]
fn a_reader_at_rest_notices_what_storage_appends_where_its_shared_memory_is_not_seen() {
    let mut store = partly_flushed();
    // The directory is reached by another path, as in another container: its link to shared memory is of no use there.
    let link = store.path.join("run");
    let memory = std::fs::read_link(&link).unwrap();
    std::fs::remove_file(&link).unwrap();
    let mut reader = store.reader();
    assert!(reader.is_at_rest());
    assert_eq!(reader.snapshot(At::Committed).unwrap().last(), Lsn(RECORDS));
    std::os::unix::fs::symlink(&memory, &link).unwrap();
    store.tape_ok(&["publish", "--sim", "--records", "100", "--instruments", "20", "--durability", "fsync", "--publisher", "9"]);
    std::fs::remove_file(&link).unwrap();
    assert_eq!(reader.snapshot(At::Committed).unwrap().last(), Lsn(RECORDS + 100));
    assert!(reader.is_at_rest());
    std::os::unix::fs::symlink(&memory, &link).unwrap();
    store.kill();
}

/// The newest segment of the log of `store`, and where its last frame ends.
fn log_end(store: &Path) -> (PathBuf, u64) {
    let position = Reader::open(store).unwrap().control().appended_position().0;
    let size = 4 << 20;
    let name = tapestore::wal::format::segment_name(tapestore::lsn::Position(position / size * size));
    (store.join("wal").join(name), position % size)
}

/// Damages the last frame of the log of `store`, whose segments have 4 MiB and which no process serves.
pub(crate) fn spoil_last_frame(store: &Path) {
    let (segment, end) = log_end(store);
    let mut bytes = std::fs::read(&segment).unwrap();
    let magic = bytes[4096..4100].to_vec();
    let last = (4096..end as usize).step_by(64).rfind(|&at| bytes[at..at + 4] == magic).unwrap();
    bytes[last + 64] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

#[test]
fn a_torn_tail_ends_the_view_and_is_said_and_damage_before_it_is_an_error() {
    let mut store = partly_flushed();
    assert!(store.terminate().success());
    // The sync of the records below comes too late: none is below the durable mark.
    let config = store.path.with_file_name("storage.toml");
    std::fs::write(&config, "sync-interval-ms = 3600000\nsegment-size = 4194304\nmemtable-size = 16777216\n").unwrap();
    store.set_arguments(&["--config", config.to_str().unwrap()]);
    store.start();
    let mut publisher = store.publisher(1, Durability::Fsync);
    let instrument = publisher.instrument(&"LATE".parse().unwrap()).unwrap();
    publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
    publisher.close(PATIENCE).unwrap();
    let mut publisher = store.publisher(2, Durability::Os);
    publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
    publisher.flush(Durability::Os, PATIENCE).unwrap();
    store.kill();
    let copy = store.path.with_file_name("copy");
    run("cp", &["-r", store.path.to_str().unwrap(), copy.to_str().unwrap()]);
    let (segment, end) = log_end(&copy);
    let bytes = std::fs::read(&segment).unwrap();
    // The last frame is the newest record; its header is the last 64-byte block with the magic.
    let magic = &bytes[4096..4100];
    let last = (4096..end as usize).step_by(64).rfind(|&at| &bytes[at..at + 4] == magic).unwrap();
    let spoil = |at: usize| {
        let mut spoiled = bytes.clone();
        spoiled[at] ^= 1;
        std::fs::write(&segment, spoiled).unwrap();
    };
    spoil(last + 64);
    let mut reader = Reader::open(&copy).unwrap();
    let torn = reader.torn_tail().unwrap().clone();
    assert_eq!((torn.path.as_path(), torn.offset, torn.last), (segment.as_path(), last as u64, Lsn(RECORDS + 1)));
    let read = std::ptr::from_ref(reader.torn_tail().unwrap());
    assert_eq!(reader.snapshot(At::Committed).unwrap().last(), Lsn(RECORDS + 1));
    assert_eq!(std::ptr::from_ref(reader.torn_tail().unwrap()), read, "a log that has not changed is not read again");
    let output = tape(&copy, &["get", "1"]);
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && note.contains("ends within a frame") && note.contains(&torn.last.to_string()), "{note}");
    // The first frame after the checkpoint: the log is durable beyond it.
    let checkpoint = reader.control().statistic(Statistic::CheckpointPosition) % (4 << 20);
    spoil(checkpoint as usize);
    let error = Reader::open(&copy).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, offset, .. } if *path == segment && *offset == checkpoint), "{error}");
    assert_eq!(tape(&copy, &["get", "1"]).status.code(), Some(65));
}
