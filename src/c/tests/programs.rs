//! Owns: that programs in C and C++ publish, subscribe and read the values that Rust programs do, and that misuse of a call has
//! a code and a text.
//!
//! Each test builds its programs with `cc` or `c++` against the library of this build, and runs them on a served store.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "an unexpected value fails a test by a panic")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tapestore::publisher::Options;
use tapestore::reader::Reader;
use tapestore::record::{Kind, Price};
use tapestore::{At, InstrumentId, Lsn, Publisher, PublisherId, Record, Series, TimeRange, Trade, Ts};
use tapestore_engine::Embedded;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The directory of `libtapestore_c.so`, which cargo has built with this test.
fn library_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().skip(1).take(2).find(|dir| dir.join("libtapestore_c.so").exists());
    found.expect("the library is beside its tests").to_path_buf()
}

/// Whether there is a compiler called `name`. A test that has none gives the reason and ends.
fn has(name: &str) -> bool {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let has = found.is_ok_and(|status| status.success());
    if !has {
        println!("skipped: there is no compiler '{name}'");
    }
    has
}

/// Runs `compiler` on `source`, with the header's directory.
fn compile(compiler: &str, standard: &str, source: &Path, arguments: &[&OsStr]) {
    let mut command = Command::new(compiler);
    command.arg(standard).args(WARNINGS).arg("-I").arg(package()).arg(source).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Builds the program `source` of this package into `dir`.
fn build(compiler: &str, standard: &str, source: &str, dir: &Path) -> PathBuf {
    let (library, program) = (library_dir(), dir.join(Path::new(source).file_stem().unwrap()));
    let rpath = format!("-Wl,-rpath,{}", library.display());
    let (rpath, pthread) = (OsStr::new(&rpath), OsStr::new("-pthread"));
    let arguments = [OsStr::new("-L"), library.as_os_str(), OsStr::new("-ltapestore_c"), rpath, pthread];
    let arguments = [&arguments[..], &[OsStr::new("-o"), program.as_os_str()]].concat();
    compile(compiler, standard, &package().join(source), &arguments);
    program
}

/// What `program` prints.
fn run(program: &Path, arguments: &[&OsStr]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{}: {}\n{out}{err}", program.display(), output.status);
    out
}

/// LSN, price, size and id of the trades of XNAS:AAPL, as the Rust reader has them.
fn trades(store: &Path) -> Vec<(u64, i64, u64, u64)> {
    let mut reader = Reader::open(store).unwrap();
    let instrument = reader.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
    let snapshot = reader.snapshot(At::Committed).unwrap();
    let mut rows = snapshot.scan(Series { instrument, kind: Trade::KIND }, TimeRange::ALL);
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let trade = row.record.get::<Trade>().unwrap();
        found.push((row.lsn.0, trade.price.0, trade.size.0, trade.trade_id));
    }
    found
}

#[test]
fn a_c_program_publishes_and_another_reads_the_same_values() {
    if !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let publish = build("cc", "-std=c11", "examples/publish.c", dir.path());
    let read = build("cc", "-std=c11", "examples/read.c", dir.path());
    let served = Embedded::temporary().unwrap();
    let store = served.path();
    assert_eq!(run(&publish, &[store.as_os_str()]), "published and durable: 10\n");

    let known = trades(store);
    let expected: Vec<_> = (1..=10).map(|id| (id, 189_980_000_000 + 10_000_000 * id as i64, 100_000_000_000, id)).collect();
    assert_eq!(known, expected);
    let (size, price): (u64, i64) = (known.iter().map(|t| t.2).sum(), known.iter().map(|t| t.1).sum());
    let text = format!("newest: lsn 10 price 190080000000\nrows: 10 size {size}\ncolumns: 10 sum of prices {price}\n");
    let arguments = [store.as_os_str(), OsStr::new("XNAS:AAPL")];
    assert_eq!(run(&read, &arguments), text);
    served.stop().unwrap();
}

#[test]
fn the_program_of_the_page_runs() {
    if !has("cc") {
        return;
    }
    let page = std::fs::read_to_string(package().join("../docs/c.md")).unwrap();
    let program = page.split_once("```c\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("page.c");
    std::fs::write(&source, program).unwrap();
    let program = build("cc", "-std=c11", source.to_str().unwrap(), dir.path());
    let served = Embedded::open(dir.path().join("tapestore-data")).unwrap();
    let output = Command::new(program).current_dir(dir.path()).output().unwrap();
    assert_eq!((output.status.success(), String::from_utf8_lossy(&output.stdout).as_ref()), (true, "1: 189980000000\n"));
    served.stop().unwrap();
}

#[test]
fn a_c_program_reads_a_store_at_rest_from_its_files() {
    if !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let publish = build("cc", "-std=c11", "examples/publish.c", dir.path());
    let read = build("cc", "-std=c11", "examples/read.c", dir.path());
    let store = dir.path().join("store");
    let served = Embedded::open(&store).unwrap();
    run(&publish, &[store.as_os_str()]);
    let arguments = [store.as_os_str(), OsStr::new("XNAS:AAPL")];
    let text = run(&read, &arguments);
    // Stopping flushes: the columns are borrowed from the mapped file now.
    served.stop().unwrap();
    assert_eq!(run(&read, &arguments), text);
    assert!(text.ends_with("columns: 10 sum of prices 1900350000000\n"), "{text}");
}

/// A kind that this program defines; `tests/own_kind.c` has the same struct.
#[derive(Clone, Copy, Debug, PartialEq, Record)]
#[repr(C)]
#[record(kind = 0x8001, name = "signal", find(order_id))]
struct Signal {
    kind: Kind,
    source: u16,
    instrument: InstrumentId,
    ts_event: Ts,
    fair: Price,
    order_id: u64,
    score: i32,
    rank: u32,
}

#[test]
fn a_c_program_publishes_and_reads_a_kind_that_a_rust_program_has_defined_served_and_at_rest() {
    if !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own_kind = build("cc", "-std=c11", "tests/own_kind.c", dir.path());
    let store = dir.path().join("store");
    let served = Embedded::open(&store).unwrap();
    let mut publisher = Publisher::open(Options::new(&store, PublisherId(1))).unwrap();
    let instrument = publisher.instrument(&"XNAS:AAPL".parse().unwrap()).unwrap();
    publisher.kind::<Signal>().unwrap();
    publisher
        .publish(&Signal { instrument, ts_event: Ts(5), fair: Price(7), order_id: 9, score: -3, ..Signal::default() })
        .unwrap();
    publisher.close(Duration::from_secs(60)).unwrap();

    let records = "lsn 1 order 9 score -3 fair 7\nlsn 2 order 10 score 0 fair null\n";
    let text = run(&own_kind, &[store.as_os_str(), OsStr::new("publish")]);
    assert_eq!(text, format!("kind 0x8001 at rest 0\n{records}"));
    let mut snapshot = Reader::open(&store).unwrap().snapshot(At::Committed).unwrap();
    let row = snapshot.get(Lsn(2)).unwrap().unwrap();
    let expected = Signal { instrument, ts_event: Ts(6), order_id: 10, ..Signal::default() };
    assert_eq!(row.record.get::<Signal>(), Some(&expected), "what C does not set is the default of Rust");
    drop(snapshot);
    served.stop().unwrap();
    let text = run(&own_kind, &[store.as_os_str(), OsStr::new("read")]);
    assert_eq!(text, format!("kind 0x8001 at rest 1\n{records}"));
}

#[test]
fn a_c_program_links_the_static_library() {
    if !has("cc") {
        return;
    }
    let (dir, library) = (tempfile::tempdir().unwrap(), library_dir().join("libtapestore_c.a"));
    let program = dir.path().join("publish");
    // As the page says.
    let needs = ["-lm", "-lpthread", "-ldl", "-o"].map(OsStr::new);
    let arguments = [&[library.as_os_str()], &needs[..], &[program.as_os_str()]].concat();
    compile("cc", "-std=c11", &package().join("examples/publish.c"), &arguments);
    let served = Embedded::temporary().unwrap();
    assert_eq!(run(&program, &[served.path().as_os_str()]), "published and durable: 10\n");
    served.stop().unwrap();
}

#[test]
fn a_cpp_program_receives_what_a_c_program_publishes() {
    if !has("cc") || !has("c++") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let publish = build("cc", "-std=c11", "examples/publish.c", dir.path());
    let subscribe = build("c++", "-std=c++17", "examples/subscribe.cpp", dir.path());
    let served = Embedded::temporary().unwrap();
    let store = served.path();
    let mut subscriber = Command::new(subscribe).arg(store).arg("10").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(subscriber.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "subscribed\n");
    run(&publish, &[store.as_os_str()]);
    let mut text = String::new();
    lines.read_to_string(&mut text).unwrap();
    assert!(subscriber.wait().unwrap().success());
    let record = |(lsn, price, ..): &(u64, i64, u64, u64)| format!("publisher 7 record {lsn} price {price}\n");
    assert_eq!(text, trades(store).iter().map(record).collect::<String>());
    served.stop().unwrap();
}

/// The calls of `tests/misuse.c` that fail: what, the code, and a part of the text.
const FAILURES: [(&str, &str, &str); 38] = [
    ("no store", "INVALID", "the argument 'options.store' is NULL"),
    ("down", "STORAGE_DOWN", "no storage process serves /nonexistent/store"),
    ("level", "INVALID", "the argument 'options.durability' is 77, which is none of TAPESTORE_DURABILITY_..."),
    ("taken", "TAKEN", "publisher 8 of"),
    ("name", "INVALID", "invalid instrument name: 'not a name'"),
    ("not UTF-8", "INVALID", "the argument 'name' is not UTF-8"),
    ("NULL name", "INVALID", "the argument 'name' is NULL"),
    ("NULL result", "INVALID", "the argument 'instrument' is NULL"),
    ("NULL publisher", "INVALID", "the argument 'publisher' is NULL"),
    ("NULL record", "INVALID", "the argument 'record' is NULL"),
    ("short", "INVALID", "invalid record: a quote has 96 bytes, and this one has 64"),
    ("empty", "INVALID", "invalid record: it has 0 bytes"),
    ("init kind", "NO_KIND", "the store has no kind 32769"),
    ("init size", "INVALID", "the argument 'record' has 88 bytes, and a record of this kind has 96"),
    ("init NULL", "INVALID", "the argument 'record' is NULL"),
    ("odd", "INVALID", "invalid record: a quote has 96 bytes, and this one has 95"),
    ("kind", "NO_KIND", "the store has no kind 32769"),
    ("instrument", "NO_INSTRUMENT", "77 is not registered in this store"),
    ("no reader", "STORAGE_DOWN", "/nonexistent/store"),
    ("NULL store", "INVALID", "the argument 'store' is NULL"),
    ("unknown", "NO_INSTRUMENT", "'XNAS:NONE' is not in this store"),
    ("unknown number", "NO_INSTRUMENT", "the store has no instrument 99"),
    ("buffer", "INVALID", "the argument 'name' has 9 bytes, and 10 are needed"),
    ("kind name", "NO_KIND", "the store has no kind 'signal'"),
    ("watermark", "INVALID", "the argument 'at' is 9, which is none of TAPESTORE_AT_..."),
    ("kind of as-of", "NO_KIND", "the store has no kind 33023"),
    ("NULL row", "INVALID", "the argument 'row' is NULL"),
    ("lookup column", "NO_COLUMN", "'price' is not a lookup column"),
    ("NULL rows", "INVALID", "the argument 'rows' is NULL"),
    ("NULL series", "INVALID", "the argument 'series' is NULL"),
    ("no batch", "INVALID", "there is no batch"),
    ("column", "NO_COLUMN", "kind 1 has no column 'bid_px'"),
    ("after the last batch", "INVALID", "there is no batch"),
    ("NULL position", "INVALID", "the argument 'lsn' is NULL"),
    ("filter", "INVALID", "invalid instrument name: 'not a name'"),
    ("NULL filter", "INVALID", "the argument 'options.instruments' is NULL"),
    ("NULL event", "INVALID", "the argument 'event' is NULL"),
    ("fenced", "FENCED", "publisher 10 epoch 1 is fenced: a newer process publishes as it"),
];

#[test]
fn an_error_of_a_c_call_has_a_code_and_a_text_and_a_null_pointer_is_refused_and_named() {
    if !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let publish = build("cc", "-std=c11", "examples/publish.c", dir.path());
    let misuse = build("cc", "-std=c11", "tests/misuse.c", dir.path());
    let served = Embedded::temporary().unwrap();
    run(&publish, &[served.path().as_os_str()]);
    let text = run(&misuse, &[served.path().as_os_str()]);
    let mut lines = text.lines();
    for (what, code, part) in FAILURES {
        let line = lines.next().unwrap_or("");
        assert!(
            line.starts_with(&format!("{what}: TAPESTORE_{code}: ")) && line.contains(part),
            "{what}, {code}, {part}: {line}"
        );
    }
    assert_eq!((lines.next(), lines.next()), (Some("done"), None));
    served.stop().unwrap();
}

#[test]
fn the_header_is_strict_c11_and_cpp_11_and_17() {
    let dir = tempfile::tempdir().unwrap();
    let only = OsStr::new("-fsyntax-only");
    for (compiler, standard, file) in [("cc", "-std=c11", "a.c"), ("c++", "-std=c++11", "a.cpp"), ("c++", "-std=c++17", "a.cpp")]
    {
        let source = dir.path().join(file);
        std::fs::write(&source, "#include <tapestore.h>\n#include <tapestore.h>\nint main(void) { return 0; }\n").unwrap();
        if has(compiler) {
            compile(compiler, standard, &source, &[only]);
        }
    }
}

#[test]
fn every_declared_call_is_in_the_library() {
    if !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let header = std::fs::read_to_string(package().join("tapestore.h")).unwrap();
    let declared =
        header.lines().filter(|line| !line.starts_with([' ', '/', '#', 't', 's']) || line.starts_with("tapestore_status "));
    let names: Vec<&str> = declared
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("tapestore_"))
        .collect();
    assert!(names.len() > 50, "the header declares {} calls: {names:?}", names.len());
    let source = dir.path().join("all.c");
    let calls: String = names.iter().map(|name| format!("(void (*)(void)){name}, ")).collect();
    let text = format!(
        "#include <tapestore.h>\nvoid (*volatile all[])(void) = {{{calls}}};\nint main(void) {{ return all[0] == 0; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    run(&build("cc", "-std=c11", source.to_str().unwrap(), dir.path()), &[]);
}
