//! `tape-query sql` on a real terminal: the pager, the bar of a long statement, the prompt with its completion. The terminal is
//! that of util-linux's `script`; where that is not installed, these tests say so and do nothing.

#![expect(clippy::unwrap_used, reason = "an unexpected value fails a test by a panic")]

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{self, Publisher};
use tapestore::record::{Price, Trade};
use tapestore::time::Ts;
use tapestore_engine::Embedded;

const PATIENCE: Duration = Duration::from_secs(60);

fn has_terminal() -> bool {
    let is_there = Command::new("script").arg("--version").output().is_ok();
    if !is_there {
        println!("skipped: the program script (util-linux) is not installed");
    }
    is_there
}

/// A store with 40 trades.
fn store() -> Embedded {
    let store = Embedded::temporary().unwrap();
    let mut publisher = Publisher::open(publisher::Options::new(store.path(), PublisherId(1))).unwrap();
    let instrument = publisher.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
    for at in 1..=40 {
        let trade = Trade { instrument, price: Price(at * 1_000_000_000), ts_recv: Ts(at.cast_unsigned()), ..Trade::default() };
        publisher.publish(&trade).unwrap();
    }
    publisher.flush(Durability::Fsync, PATIENCE).unwrap();
    store
}

/// The program on a terminal of 20 lines; `rest` is for a shell.
fn on_terminal(store: &Embedded, rest: &str) -> Command {
    let program = env!("CARGO_BIN_EXE_tape-query");
    let line = format!("stty rows 20 cols 100; exec {program} sql --store {} {rest}", store.path().display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    command.env("PAGER", "sed s/^/PAGED:/").env("HOME", store.path().parent().unwrap());
    command.env_remove("XDG_STATE_HOME");
    command
}

#[test]
fn a_statement_that_takes_long_shows_a_bar_and_the_bar_is_gone_before_its_rows() {
    if !has_terminal() {
        return;
    }
    let store = store();
    let long = "select count(t.price_raw) from trade t, generate_series(1, 10000000000) where value % 7 = 1";
    let output = on_terminal(&store, &format!("--time 3 -c '{long}'")).stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("reading"), "{shown}");
    assert_eq!(output.status.code(), Some(75), "{shown}");
    // To clear its line a bar goes back to its beginning.
    let after = shown.rsplit_once("reading").unwrap().1;
    assert!(after.contains('\r') && after.contains("its limit"), "{shown}");
    let short = on_terminal(&store, "-c 'select count(*) from trade'").stdin(Stdio::null()).output().unwrap();
    assert!(!String::from_utf8(short.stdout).unwrap().contains("reading"));
}

/// Reads what a terminal shows until it has `text`.
fn until(child: &mut Child, shown: &mut String, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    let out = child.stdout.as_mut().unwrap();
    let mut bytes = [0; 4096];
    while !shown.contains(text) {
        assert!(Instant::now() < deadline, "no {text:?} in {shown:?}");
        let count = out.read(&mut bytes).unwrap();
        assert!(count > 0, "the program has ended: {shown:?}");
        shown.push_str(&String::from_utf8_lossy(bytes.get(..count).unwrap()));
    }
}

/// The prompt, its terminal, and what was shown when it came.
fn prompt(store: &Embedded) -> (Child, ChildStdin, String) {
    let mut child = on_terminal(store, "").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take().unwrap();
    let mut shown = String::new();
    until(&mut child, &mut shown, "tape> ");
    (child, input, shown)
}

#[test]
fn at_the_prompt_an_answer_with_more_lines_than_the_terminal_goes_through_the_pager_and_a_shorter_one_does_not() {
    if !has_terminal() {
        return;
    }
    let store = store();
    let (mut child, mut input, _) = prompt(&store);
    let mut shown = |count: u32, last: &str| {
        let mut shown = String::new();
        input.write_all(format!("select price * 100 as p from trade order by time limit {count};\r").as_bytes()).unwrap();
        until(&mut child, &mut shown, last);
        until(&mut child, &mut shown, "tape> ");
        shown
    };
    let (short, long) = (shown(10, "1000"), shown(40, "4000"));
    assert!(!short.contains("PAGED:"), "{short}");
    assert!(long.matches("PAGED:").count() > 40, "{long}");
    input.write_all(b"\\q\r").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_prompt_completes_names_and_an_interrupt_ends_the_statement_and_not_the_prompt() {
    if !has_terminal() {
        return;
    }
    let store = store();
    let (mut child, mut input, mut shown) = prompt(&store);
    input.write_all(b"select 1000 + count(*) as n from trade where symbol = 'XN\t;\r").unwrap();
    until(&mut child, &mut shown, "1040");
    shown.clear();
    input.write_all(b"select count(t.price_raw) from trade t, generate_series(1, 10000000000);\r").unwrap();
    until(&mut child, &mut shown, "reading");
    shown.clear();
    // Ctrl-C.
    input.write_all(&[3]).unwrap();
    until(&mut child, &mut shown, "tape> ");
    shown.clear();
    input.write_all(b"select 2000 + count(*) as n from trade;\r").unwrap();
    until(&mut child, &mut shown, "2040");
    input.write_all(b"\\q\r").unwrap();
    assert!(child.wait().unwrap().success());
}
