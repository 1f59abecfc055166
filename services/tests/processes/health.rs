//! Trouble that `tape status` reports; log lines that cannot be written; kind names in the configuration.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use tapestore::error::Error;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;

use crate::cluster::Hosts;
use crate::fixture::{PATIENCE, Store, eventually};

fn check(output: &std::process::Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn status_prints_the_trouble_first_with_its_time_and_sets_the_exit_code() {
    let mut store = Store::serve();
    assert_eq!(store.tape(&["status", "--check"]).status.code(), Some(0));
    assert!(store.terminate().success());
    let (code, why) = check(&store.tape(&["status", "--check"]));
    assert!(code == Some(69) && why.contains("has stopped, since 20") && why.contains("tape-storage --store"), "{why}");
    // More space than any disk has.
    store.set_arguments(&["--memtable-size", "64M", "--segment-size", "4M", "--space-min", "1000000G"]);
    store.start();
    let (code, why) = eventually("no space", || {
        let found = check(&store.tape(&["status", "--check"]));
        (found.0 == Some(6)).then_some(found)
    });
    assert!(code == Some(6) && why.contains("NoSpace") && why.contains("since 20"), "{code:?} {why}");
    let status = store.tape_ok(&["status"]);
    assert!(status.lines().next().unwrap().contains("NoSpace") && status.contains("storage is serving"), "{status}");
    let json: serde_json::Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
    assert!(
        json["trouble"]["name"] == "no-space" && json["trouble"]["since"].is_string() && json["state"] == "serving",
        "{json}"
    );
    let (code, why) = check(&store.tape(&["publish", "--sim", "--records", "10"]));
    assert!(code == Some(75) && why.contains("NoSpace") && !why.contains("no storage process"), "{code:?} {why}");
    store.kill();
    let (code, why) = eventually("the end of the heartbeat", || {
        let found = check(&store.tape(&["status", "--check"]));
        (found.0 == Some(69)).then_some(found)
    });
    assert!(code == Some(69) && why.contains("no heartbeat"), "{code:?} {why}");
}

#[test]
fn a_host_without_a_majority_serves_and_reports_the_missing_leader() {
    let mut hosts = Hosts::new(false);
    let leader = hosts.leader();
    let own = leader % 3 + 1;
    eventually("a healthy follower", || hosts.tape(own, &["status", "--check"]).status.success().then_some(()));
    (1..=3).filter(|n| *n != own).for_each(|n| hosts.kill(n));
    let (code, why) = eventually("the loss of the leader", || {
        let found = check(&hosts.tape(own, &["status", "--check"]));
        (found.0 == Some(6)).then_some(found)
    });
    assert!(code == Some(6) && why.contains("has no leader") && why.contains("since 20"), "{code:?} {why}");
    assert!(why.contains("tape cluster status"), "{why}");
    let options = Options { open_timeout: Duration::ZERO, ..Options::new(hosts.store(own), PublisherId(1)) };
    let error = Publisher::open(options).err().unwrap();
    assert!(matches!(error, Error::Unanswered { why, .. } if why.contains("has no leader")), "{error}");
}

#[test]
fn log_lines_that_cannot_be_written_are_counted_and_do_not_end_storage() {
    for to in ["closed pipe", "full disk", "unread pipe"] {
        let store = Store::new(&[]);
        let (unread, mut pipe) = std::io::pipe().unwrap();
        // A pipe holds 64 KiB: this fills nearly all of it.
        pipe.write_all(&[b'.'; 65_000]).unwrap();
        let unread = Some(unread).filter(|_| to != "closed pipe");
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let stderr = if to == "full disk" { Stdio::from(full()) } else { Stdio::from(pipe) };
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape-storage"));
        command.args(["--memtable-size", "16M", "--segment-size", "4M"]).arg("--store").arg(&store.path);
        let mut child = command.env("RUST_LOG", "trace").stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        drop(command);
        eventually("a store that is served", || Reader::open(&store.path).ok().filter(Reader::is_storage_alive).map(drop));
        // Each attach writes a line or more.
        let lost = || {
            let json: serde_json::Value = serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap();
            json["log"]["lines_lost"].as_u64().unwrap()
        };
        eventually("lost lines", || {
            for _ in 0..20 {
                store.publisher(1, Durability::Os).close(PATIENCE).unwrap();
            }
            assert!(child.try_wait().unwrap().is_none(), "{to}: storage has ended");
            (lost() > 0).then_some(())
        });
        assert!(store.tape(&["status", "--check"]).status.success(), "{to}");
        crate::fixture::signal(child.id(), rustix::process::Signal::TERM);
        let status = eventually("its end", || child.try_wait().unwrap());
        assert!(status.success(), "{to}: {status}");
        drop(unread);
    }
}

#[test]
fn a_command_that_cannot_print_exits_with_an_error() {
    let store = Store::serve();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    for arguments in [&["kinds"][..], &["status"], &["inspect", "memtable"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        command.args(arguments).arg("--store").arg(&store.path).stdout(full());
        let (code, why) = check(&command.output().unwrap());
        assert!(code == Some(73) && why.contains("No space left"), "{arguments:?}: {code:?} {why}");
    }
    // An error message that cannot be printed does not change the exit code.
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    command.args(["get", "99"]).arg("--store").arg(&store.path).stderr(full());
    assert_eq!(command.status().unwrap().code(), Some(3));
}

#[test]
fn a_retention_rule_with_an_unknown_kind_is_refused_or_logged() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("storage.toml");
    let start = |rules: &str, store: &std::path::Path| {
        std::fs::write(&config, format!("retention = [{rules}]\n")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape-storage"));
        command.arg("--config").arg(&config).arg("--store").arg(store).args(["--memtable-size", "16M", "--segment-size", "4M"]);
        command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let store = Store::new(&[]);
    let refused = start(r#"{ kind = "quotes", keep = "1d" }"#, &store.path).wait_with_output().unwrap();
    let (code, why) = check(&refused);
    assert!(code == Some(2) && why.contains("did you mean 'quote'"), "{code:?} {why}");
    assert!(!store.path.exists(), "the store must not be created");
    let child = start(r#"{ kind = "signal", keep = "1d" }, { kind = "quote", keep = "1d" }"#, &store.path);
    eventually("a store that is served", || Reader::open(&store.path).ok().filter(Reader::is_storage_alive).map(drop));
    let (code, why) = check(&store.tape(&["retention", "--kind", "signal", "--keep", "1d", "--dry-run"]));
    assert!(code == Some(2) && why.contains("kind 'signal' is unknown"), "{code:?} {why}");
    let (code, why) = check(&store.tape(&["retention", "--kind", "trades", "--keep", "1d", "--dry-run"]));
    assert!(code == Some(2) && why.contains("did you mean 'trade'"), "{code:?} {why}");
    crate::fixture::signal(child.id(), rustix::process::Signal::TERM);
    let (code, log) = check(&child.wait_with_output().unwrap());
    assert!(code == Some(0) && log.matches("does not have yet").count() == 1 && log.contains("signal"), "{code:?} {log}");
}
