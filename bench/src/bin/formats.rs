//! Formats: exports a store of the simulated market in every format and imports it into another store; compares counts and
//! checksums; prints speed and memory, and for DBN the speed of the `dbn` crate's decoder on the same files.
//! `cargo run --release -p bench --bin formats`

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::store::{Served, has_served};
use clap::Parser;
use dbn::decode::{DecodeRecordRef as _, DynDecoder};
use serde_json::Value;
use tape_services::cli::Tape;
use tapestore_formats::input::{self, Message, Options};

#[derive(Parser)]
struct Arguments {
    /// Records
    #[arg(long, default_value_t = 10_000_000)]
    records: u64,
    /// Instruments
    #[arg(long, default_value_t = 500)]
    instruments: u32,
    /// Measurements of each DBN decoder, in turns
    #[arg(long, default_value_t = 3)]
    turns: u32,
}

/// A finished command: its JSON output, its time and its peak memory: private, and with mapped pages.
struct Ran {
    output: Vec<Value>,
    seconds: f64,
    own: u64,
    all: u64,
}

/// Runs the tool in its own process.
fn tape(store: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("tape").args(arguments).args(["--json", "--store"]).arg(store);
    let out = tempfile::NamedTempFile::new().unwrap();
    command.stdout(out.reopen().unwrap()).stdin(Stdio::null());
    let began = Instant::now();
    let mut child = command.spawn().unwrap();
    let (mut own, mut all) = (0, 0);
    let status = loop {
        let held = bench::process::held(child.id()).unwrap_or_default();
        own = own.max(held.private);
        all = all.max(held.peak);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let seconds = began.elapsed().as_secs_f64();
    // Exit code 65 reports records that DBN cannot represent.
    assert!(status.success() || status.code() == Some(65), "tape {arguments:?}: {status}");
    let text = std::fs::read_to_string(out.path()).unwrap();
    Ran { output: text.lines().map(|l| serde_json::from_str(l).unwrap()).collect(), seconds, own, all }
}

/// Sums of records, checksums and bytes over the output of a command.
fn total(output: &[Value]) -> (u64, u64, u64) {
    let sum = |key: &str| output.iter().filter_map(|v| v[key].as_u64()).sum();
    let checksums = output.iter().filter_map(|v| u64::from_str_radix(v["checksum"].as_str()?, 16).ok());
    (sum("records"), checksums.fold(0, u64::wrapping_add), sum("bytes"))
}

fn line(what: &str, records: u64, bytes: u64, ran: &Ran) {
    println!(
        "{what:<22}{:>7.2} M records/s{:>8.0} MB/s of the file{:>8.1} bytes/record{:>8.0} MiB private,{:>5.0} MiB with mapped pages",
        records as f64 / ran.seconds / 1e6,
        bytes as f64 / ran.seconds / 1e6,
        bytes as f64 / records as f64,
        ran.own as f64 / 1048576.0,
        ran.all as f64 / 1048576.0
    );
}

fn main() {
    // Runs as the tool.
    if std::env::args().nth(1).as_deref() == Some("tape") {
        let outcome = Tape::parse_from(std::env::args().skip(1)).run();
        std::process::exit(outcome.map_or_else(
            |failure| {
                eprintln!("note: {failure}");
                i32::from(failure.code)
            },
            |()| 0,
        ));
    }
    if has_served() {
        return;
    }
    let arguments = Arguments::parse();
    let (records, instruments) = (arguments.records.to_string(), arguments.instruments.to_string());
    println!("{records} records of {instruments} instruments, {} CPUs\n", std::thread::available_parallelism().unwrap());
    let served = Served::start("adaptive", 64 << 20);
    tape(&served.path(), &["publish", "--sim", "--records", &records, "--instruments", &instruments, "--durability", "os"]);
    let dir = tempfile::tempdir().unwrap();
    for format in ["parquet", "arrow", "csv", "csv-gz", "dbn", "dbn-zst"] {
        let out = dir.path().join(format);
        let exported = tape(&served.path(), &["export", out.to_str().unwrap(), "--format", format]);
        let (n, checksum, bytes) = total(&exported.output);
        line(&format!("export {format}"), n, bytes, &exported);
        assert_eq!(n, arguments.records);
        let files: Vec<&str> = exported.output.iter().filter_map(|v| v["file"].as_str()).collect();
        let other = Served::start("adaptive", 64 << 20);
        let imported = tape(&other.path(), &[&["import", "--durability", "os"], &files[..]].concat());
        let (m, back, _) = total(&imported.output);
        line(&format!("import {format}"), m, bytes, &imported);
        if !format.starts_with("dbn") {
            assert_eq!((n, checksum), (m, back), "the imported records differ from the exported ones");
            std::fs::remove_dir_all(&out).unwrap();
        }
        if format == "parquet" {
            println!("{:<22}{n} records, checksum {checksum:016x}: equal after each round trip", "");
        }
    }
    println!();
    for format in ["dbn", "dbn-zst"] {
        let files = std::fs::read_dir(dir.path().join(format)).unwrap().map(|f| f.unwrap().path());
        for file in files.filter(|f| !f.to_str().unwrap().contains("definition")) {
            decode(&file, arguments.turns);
        }
    }
}

/// Times the `dbn` crate's decoder and our whole input path on `file` in turns; prints the best of each.
fn decode(file: &Path, turns: u32) {
    let bytes = std::fs::metadata(file).unwrap().len();
    let (mut bare, mut ours, mut records) = (f64::MAX, f64::MAX, 0u64);
    for _ in 0..turns {
        let began = Instant::now();
        let mut decoder = DynDecoder::from_file(file, dbn::VersionUpgradePolicy::UpgradeToV3).unwrap();
        let mut n = 0u64;
        while let Some(record) = decoder.decode_record_ref().unwrap() {
            std::hint::black_box(record);
            n += 1;
        }
        bare = bare.min(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let (mut input, mut message) = (input::open(file, &Options::default()).unwrap(), Message::default());
        records = 0;
        while input.next(&mut message).unwrap() {
            std::hint::black_box(&message);
            records += u64::from(!message.at.is_null());
        }
        ours = ours.min(began.elapsed().as_secs_f64());
        assert_eq!(n, records);
    }
    let rate = |s: f64| (records as f64 / s / 1e6, bytes as f64 / s / 1e6);
    let ((a, a_mb), (b, b_mb)) = (rate(bare), rate(ours));
    println!(
        "{:<24}dbn crate {a:>6.1} M records/s {a_mb:>5.0} MB/s; decoded and converted {b:>5.1} M records/s {b_mb:>5.0} MB/s: {:.2}",
        file.file_name().unwrap().to_str().unwrap(),
        bare / ours
    );
}
