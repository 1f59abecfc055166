//! `tape reload`: retention changes while storage runs; a wrong configuration changes nothing and says what is wrong.

use tapestore::reader::Reader;
use tapestore::shm::control::Statistic;

use crate::fixture::{Store, eventually};

#[test]
fn a_configuration_that_is_read_again_changes_retention_and_a_wrong_one_changes_nothing() {
    let mut store = Store::new(&[]);
    let config = store.path.parent().unwrap().join("storage.toml");
    std::fs::write(&config, "segment-size = 4194304\nmemtable-size = 16777216\n").unwrap();
    store.set_arguments(&["--config", config.to_str().unwrap()]);
    store.start();
    store.tape_ok(&["publish", "--sim", "--records", "20000"]);
    store.tape_ok(&["flush"]);
    let status = || -> serde_json::Value { serde_json::from_str(&store.tape_ok(&["status", "--json"])).unwrap() };
    let files = status()["history"]["files"].as_u64().unwrap();
    assert!(files > 0 && status()["history"]["expired_records"] == 0);
    // Wrong: the key, the value, a rule.
    for wrong in ["retension = []\n", "[compaction]\nruns-max = 1000\n", "retention = [{ kind = \"trad\", keep = \"1s\" }]\n"] {
        std::fs::write(&config, wrong).unwrap();
        let output = store.tape(&["reload"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains("goes on with the earlier one"), "{wrong}: {error}");
    }
    store.tape_ok(&["status", "--check"]);
    // Right: all kinds are kept for no bytes, so what is not the newest goes.
    std::fs::write(&config, "retention = [{ kind = \"*\", bytes = 1 }]\n").unwrap();
    let said = store.tape_ok(&["reload"]);
    assert!(said.contains("retention, compaction"), "{said}");
    eventually("expired records", || (status()["history"]["expired_records"].as_u64() > Some(0)).then_some(()));
    let json: serde_json::Value = serde_json::from_str(&store.tape_ok(&["reload", "--json"])).unwrap();
    assert_eq!(json["reloads"], 2);
    // As a supervisor does it.
    let pid = rustix::process::Pid::from_raw(json["process"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let reader = Reader::open(&store.path).unwrap();
    eventually("a reload by SIGHUP", || (reader.control().statistic(Statistic::Reloads) == 3).then_some(()));
    assert!(store.terminate().success());
    let output = store.tape(&["reload"]);
    assert_eq!(output.status.code(), Some(69));
}

#[test]
fn a_program_that_serves_a_store_within_itself_is_not_ended_by_a_reload() {
    let store = tapestore_engine::Embedded::temporary().unwrap();
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_tape")).args(["reload", "--store"]).arg(store.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(69) && error.contains("no tape-storage of this release"), "{error}");
    store.stop().unwrap();
}
