//! The examples of the library run against a served store, as their first lines say.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::fixture::{Store, eventually};

/// The example `name`; `cargo test --workspace` builds it beside the programs.
fn example(name: &str, store: &Path, more: &[&str]) -> Command {
    let programs: PathBuf = Path::new(env!("CARGO_BIN_EXE_tape")).parent().unwrap().into();
    let program = programs.join("examples").join(name);
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    let mut command = Command::new(program);
    command.arg(store).args(more).stdin(Stdio::null());
    command
}

fn run(name: &str, store: &Path, more: &[&str]) -> String {
    finished(name, example(name, store, more).output().unwrap())
}

fn finished(name: &str, output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Starts the example `name`, and returns when it has printed its first line.
fn started(name: &str, store: &Path, more: &[&str], file: &Path) -> Child {
    let out = std::fs::File::create(file).unwrap();
    let child = example(name, store, more).stdout(out).spawn().unwrap();
    eventually("its first line", || std::fs::read_to_string(file).ok().filter(|t| t.contains('\n')));
    child
}

#[test]
fn every_example_runs_and_prints_what_the_store_holds() {
    let store = Store::serve();
    let simulated = ["publish", "--sim", "--records", "20000", "--instruments", "20", "--publisher", "1"];
    store.tape_ok(&simulated);
    assert!(run("as_of", &store.path, &[]).contains(": bid "));
    assert!(run("book", &store.path, &[]).contains("bid "));
    assert!(run("bars", &store.path, &[]).contains("volume"));
    assert!(run("columns", &store.path, &[]).contains("trades, average price"));
    assert!(run("own_kind", &store.path, &[]).contains("with order id 7: 1"));
    assert!(run("back_pressure", &store.path, &["50000"]).contains("50000 durable"));
    assert!(run("replay", &store.path, &["70010"]).contains("70010 records"));
    let said = run("monitor", &store.path, &["50000"]);
    assert!(said.contains("published") && said.contains("0 lost") && said.contains("50000 durable"), "{said}");

    let lines = |name: &str| store.path.with_file_name(name);
    let subscriber = started("subscribe", &store.path, &["1000"], &lines("subscribe"));
    let follower = started("busy_wait", &store.path, &["1000"], &lines("busy_wait"));
    assert!(run("publish", &store.path, &[]).contains("published and durable: 1000"));
    for (name, child) in [("subscribe", subscriber), ("busy_wait", follower)] {
        let output = child.wait_with_output().unwrap();
        let text = std::fs::read_to_string(lines(name)).unwrap();
        assert!(output.status.success(), "{name}: {text}");
        let end = text.lines().last().unwrap();
        assert!(end.starts_with("1000 received, 0 missing") || end.starts_with("1000 records"), "{name}: {end}");
    }
}
