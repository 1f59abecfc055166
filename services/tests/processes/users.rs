//! Several users on one host: all share /dev/shm, each store has one owner. Tests that need a second user run only as root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tape_services::processes::Process;
use tapestore::error::Error;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::{At, Reader};
use tapestore::record::Trade;
use tapestore::shm::run_dir::RunDir;

use crate::fixture::{PATIENCE, Store, eventually, tape};

/// The other user: nobody.
const OTHER: u32 = 65534;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: a second user needs root");
    }
    is_root
}

/// Runs `program` as the other user in the directory `/`, which that user may enter.
fn as_other(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).uid(OTHER).gid(OTHER).current_dir("/").output().unwrap()
}

fn other_does(program: &str, arguments: &[&str]) {
    let done = as_other(Path::new(program), arguments);
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
}

fn publish(store: &Path) {
    let mut publisher =
        Publisher::open(Options { durability: Durability::Fsync, ..Options::new(store, PublisherId(1)) }).unwrap();
    let instrument = publisher.instrument(&"X:1".parse().unwrap()).unwrap();
    publisher.publish(&Trade { instrument, ..Trade::default() }).unwrap();
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
}

/// The path at which the next start of `store` creates its run directory, if the name is free.
fn place(store: &mut Store) -> PathBuf {
    store.start();
    let path = store.run_dir().path().to_path_buf();
    assert!(store.terminate().success());
    std::fs::remove_dir_all(&path).unwrap();
    path
}

#[test]
fn names_taken_by_another_user_in_shared_memory_are_skipped() {
    if !is_root() {
        return;
    }
    let mut store = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    let path = place(&mut store);
    let trap = tempfile::tempdir().unwrap();
    std::fs::set_permissions(trap.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let target = trap.path().join("target");
    std::fs::create_dir(&target).unwrap();
    for (program, arguments) in [
        ("/bin/mkdir", vec!["-m", "777", path.to_str().unwrap()]),
        ("/bin/ln", vec!["-s", target.to_str().unwrap(), path.to_str().unwrap()]),
        ("/bin/touch", vec![path.to_str().unwrap()]),
    ] {
        other_does(program, &arguments);
        assert!(RunDir::find(&store.path).is_err(), "{program}: a run directory of another user is not accepted");
        store.start();
        let run_dir = store.run_dir();
        let made = run_dir.path().symlink_metadata().unwrap();
        assert!(run_dir.path() != path && made.is_dir() && made.uid() == 0, "{program}: {}", run_dir.path().display());
        publish(&store.path);
        assert!(std::fs::read_dir(&target).unwrap().next().is_none(), "{program}: a link is not followed");
        store.kill();
        store.start();
        assert_eq!(store.run_dir(), run_dir, "{program}: it is found again");
        assert!(store.terminate().success());
        std::fs::remove_dir_all(run_dir.path()).unwrap();
        let removed = if path.is_symlink() || path.is_file() { std::fs::remove_file(&path) } else { std::fs::remove_dir(&path) };
        removed.unwrap();
    }
    // Bus names of this instance and of others, as directories: unlink does not remove them.
    let path = place(&mut store);
    let tag = path.file_name().unwrap().to_str().unwrap().strip_prefix("tapestore-").unwrap();
    let squatted: Vec<PathBuf> = [format!("tape{tag}i1"), format!("tape{tag}i2_x"), format!("tape{tag}i4_live.dynamic")]
        .map(|n| Path::new("/dev/shm").join(n))
        .into();
    for name in &squatted {
        other_does("/bin/mkdir", &[name.to_str().unwrap()]);
    }
    store.start();
    assert!(store.reader().control().instance() > 4, "{}", store.reader().control().instance());
    publish(&store.path);
    squatted.iter().for_each(|name| std::fs::remove_dir(name).unwrap());
}

#[test]
fn files_are_writable_by_their_user_and_readable_by_the_group_under_any_umask() {
    for umask in ["0000", "0077"] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let arguments = ["--memtable-size", "16M", "--segment-size", "1M"];
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&script).arg(env!("CARGO_BIN_EXE_tape-storage")).arg("--store").arg(&store).args(arguments);
        let mut storage = command.env("RUST_LOG", "warn").spawn().unwrap();
        eventually("storage", || Reader::open(&store).ok().filter(Reader::is_storage_alive));
        publish(&store);
        let run_dir = RunDir::find(&store).unwrap().path().to_path_buf();
        let backup = dir.path().join("backup");
        let tool = |arguments: &[&str]| {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(&script).arg(env!("CARGO_BIN_EXE_tape")).args(arguments);
            assert!(command.arg("--store").arg(&store).status().unwrap().success());
        };
        tool(&["backup", backup.to_str().unwrap()]);
        let mut wrong = Vec::new();
        let mut dirs = vec![(store.clone(), 0o750), (backup, 0o750), (run_dir.clone(), 0o2750)];
        while let Some((dir, mode)) = dirs.pop() {
            let found = dir.metadata().unwrap().mode() & 0o7777;
            if found != mode {
                wrong.push(format!("{}: {found:o}", dir.display()));
            }
            for entry in std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap()) {
                let kind = entry.file_type().unwrap();
                let name = entry.file_name().into_string().unwrap();
                let due = match name.as_str() {
                    // iceoryx2's own files, and files for storage's user alone.
                    _ if name.starts_with("iox2-") => continue,
                    "lock" | "attach.sock" | "cluster.sock" => 0o600,
                    _ => 0o640,
                };
                let found = entry.metadata().unwrap().mode() & 0o777;
                if kind.is_dir() {
                    dirs.push((entry.path(), 0o750));
                } else if !kind.is_symlink() && found != due {
                    wrong.push(format!("{}: {found:o}", entry.path().display()));
                }
            }
        }
        storage.kill().unwrap();
        storage.wait().unwrap();
        RunDir::find(&store).unwrap().sweep(None).unwrap();
        std::fs::remove_dir_all(run_dir).unwrap();
        assert!(wrong.is_empty(), "umask {umask}: {wrong:#?}");
    }
}

/// A copy of the program `name` in `dir`, where the other user can run it.
fn reachable(name: &str, dir: &Path) -> PathBuf {
    let program = dir.join(Path::new(name).file_name().unwrap());
    if std::fs::hard_link(name, &program).is_err() {
        std::fs::copy(name, &program).unwrap();
    }
    program
}

#[test]
fn another_user_and_root_may_not_publish_and_the_error_names_the_owner() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (program, client) =
        (reachable(env!("CARGO_BIN_EXE_tape-storage"), dir.path()), reachable(env!("CARGO_BIN_EXE_tape"), dir.path()));
    // A store of the other user; root publishes.
    let theirs = dir.path().join("theirs");
    let mut command = Command::new(&program);
    command.arg("--store").arg(&theirs).args(["--memtable-size", "16M", "--segment-size", "1M"]).env("RUST_LOG", "error");
    let mut storage = command.uid(OTHER).gid(OTHER).current_dir("/").spawn().unwrap();
    eventually("storage", || Reader::open(&theirs).ok().filter(Reader::is_storage_alive));
    let error = Publisher::open(Options::new(&theirs, PublisherId(1))).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Denied { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("root (0)") && message.contains("(65534)") && message.contains(theirs.to_str().unwrap()),
        "{message}"
    );
    let output = tape(&theirs, &["publish", "--sim", "--records", "10"]);
    assert_eq!(output.status.code(), Some(77), "{output:?}");
    // Storage rejects a client that skips the check: the kernel reports the peer's user.
    let mut stream = std::os::unix::net::UnixStream::connect(RunDir::find(&theirs).unwrap().attach_socket()).unwrap();
    let request = tapestore::bus::attach::Message::Symbols(vec!["A".parse().unwrap()]);
    match tapestore::bus::attach::ask(&mut stream, &request).unwrap() {
        tapestore::bus::attach::Message::Refused(why) => {
            assert!(why.contains("root (0)") && why.contains("(65534)"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    // Root reads every store.
    assert!(Reader::open(&theirs).unwrap().snapshot(At::Appended).unwrap().last().0 == 0);
    let run_dir = RunDir::find(&theirs).unwrap();
    storage.kill().unwrap();
    storage.wait().unwrap();
    // Root does not serve it either: its user could not read what root writes.
    let output = Command::new("timeout").arg("60").arg(&program).arg("--store").arg(&theirs).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(77) && message.contains("(65534)") && message.contains("systemctl"), "{message}");
    assert!(!message.contains("  "), "a gap in: {message}");
    run_dir.sweep(None).unwrap();
    std::fs::remove_dir_all(run_dir.path()).unwrap();
    // A store of root; the other user publishes and reads: neither without group rights, only reading with them.
    let mut ours = Store::new(&["--memtable-size", "16M", "--segment-size", "1M"]);
    ours.start();
    publish(&ours.path);
    std::fs::set_permissions(ours.path.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let store = ours.path.to_str().unwrap().to_owned();
    let store = store.as_str();
    for command in [&["status", "--store", store][..], &["publish", "--sim", "--records", "10", "--store", store]] {
        let output = as_other(&client, command);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(77) && message.contains("root (0)"), "{command:?}: {message}");
    }
    std::os::unix::fs::chown(&ours.path, None, Some(OTHER)).unwrap();
    ours.kill();
    // Its files belong to root's group: `status` reads shared memory alone.
    ours.start();
    let status = as_other(&client, &["status", "--store", store]);
    assert!(status.status.success(), "{status:?}");
    for command in [
        &["publish", "--sim", "--records", "10", "--store", store][..],
        &["flush", "--store", store],
        &["reload", "--store", store],
        &["cluster", "status", "--store", store],
    ] {
        let output = as_other(&client, command);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(77) && message.contains("root (0)"), "{command:?}: {message}");
    }
}

#[test]
fn a_publisher_whose_process_has_no_number_where_storage_runs_publishes() {
    if !is_root() {
        return;
    }
    let mut store = Store::serve();
    let apart = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", program]);
        command
    };
    if !apart("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: there are no namespaces of processes here");
        return;
    }
    // Storage in a namespace of its own, too: neither sees the other, as in two containers.
    assert!(store.terminate().success());
    let mut storage = apart(env!("CARGO_BIN_EXE_tape-storage"));
    storage.args(["--memtable-size", "64M", "--segment-size", "4M"]).arg("--store").arg(&store.path);
    let mut storage = Process::start("storage", storage.stderr(std::process::Stdio::null())).unwrap();
    eventually("a store that is served", || Reader::open(&store.path).ok().filter(Reader::is_storage_alive).map(drop));
    for records in [1_000, 2_000] {
        let mut tape = apart(env!("CARGO_BIN_EXE_tape"));
        tape.args(["publish", "--sim", "--records", "1000", "--store"]).arg(&store.path);
        let output = tape.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let status: serde_json::Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
        assert_eq!(status["ingest"]["records"], records);
    }
    storage.kill();
}
