//! Time from the start of a killed storage process until it serves, by length of the log; with two limits from the same
//! run: the start of an empty store, and reading and checksumming the same log.
//! `cargo run --release -p bench --bin reopen`

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bench::store::{Served, has_served, renumber};
use clap::Parser;
use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::record::RecordRef;
use tapestore_formats::input::{Input, Market, Message, Sim};

#[derive(Parser)]
struct Arguments {
    /// Records
    #[arg(long, default_value_t = 6_000_000)]
    records: u64,
    /// Instruments
    #[arg(long, default_value_t = 4000)]
    instruments: u32,
    /// Number of kills and starts
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Bytes of a MemTable
    #[arg(long, default_value_t = 256 << 20)]
    memtable: u64,
}

const GIB: f64 = (1u64 << 30) as f64;

fn publish(served: &Served, records: u64, instruments: u32) {
    let mut publisher =
        Publisher::open(Options { durability: Durability::Fsync, ..Options::new(served.path(), PublisherId(1)) }).unwrap();
    let mut sim = Sim::new(Market { seed: 1, records, instruments }).unwrap();
    let ids: Vec<InstrumentId> = sim.names().to_vec().iter().map(|n| publisher.instrument(n).unwrap()).collect();
    let (mut message, mut words) = (Message::default(), Vec::new());
    while sim.next(&mut message).unwrap() {
        for record in tapestore::record::split(&message.words).flatten() {
            renumber(record, &ids, &mut words);
            while let Err(e) = publisher.stage(RecordRef::first(&words).unwrap()) {
                assert!(matches!(e, PublishError::Full { .. }), "{e}");
            }
        }
    }
    publisher.send();
    publisher.flush(Durability::Fsync, Duration::from_secs(60)).unwrap();
}

/// Reads and checksums `bytes` of the log in `store`: the least that recovery must do.
fn read_log(store: &Path, mut bytes: u64) -> Duration {
    let mut files: Vec<PathBuf> = std::fs::read_dir(store.join("wal")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "wal"));
    files.sort();
    let began = Instant::now();
    let (mut buffer, mut sum) = (vec![0; 1 << 20], 0);
    for path in files {
        let mut file = std::fs::File::open(path).unwrap().take(bytes);
        loop {
            let n = file.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            sum = crc32c::crc32c_append(sum, buffer.get(..n).unwrap());
            bytes -= n as u64;
        }
    }
    std::hint::black_box(sum);
    began.elapsed()
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap()
}

fn main() {
    if has_served() {
        return;
    }
    let arguments = Arguments::parse();
    let mut empty = Served::start("adaptive", arguments.memtable);
    let mut served = Served::start("adaptive", arguments.memtable);
    publish(&served, arguments.records, arguments.instruments);
    let log = served.reader().control().appended_position();
    let (mut full, mut none, mut reading, mut per_gib) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut read = 0;
    for _ in 0..arguments.rounds {
        let empty = empty.restart_killed("adaptive", arguments.memtable).0.as_secs_f64();
        let (took, bytes) = served.restart_killed("adaptive", arguments.memtable);
        (read, full, none) = (bytes, [full, vec![took.as_secs_f64()]].concat(), [none, vec![empty]].concat());
        per_gib.push((took.as_secs_f64() - empty) * GIB / bytes as f64);
        reading.push(read_log(&served.path(), log.0).as_secs_f64() * GIB / log.0 as f64);
    }
    let list = |times: &[f64]| times.iter().map(|t| format!("{t:.2}")).collect::<Vec<_>>().join(" ");
    println!(
        "{} records of {} instruments published, {:.3} GiB of log to read at a start; MemTables of {} MiB; {} CPUs",
        arguments.records,
        arguments.instruments,
        read as f64 / GIB,
        arguments.memtable >> 20,
        std::thread::available_parallelism().unwrap(),
    );
    println!("killed and started {} times; from the start of the process until it serves, s:", arguments.rounds);
    println!("  with that log:           {}", list(&full));
    println!("  without log:             {}", list(&none));
    println!("  the difference, per GiB: {}", list(&per_gib));
    println!("reading and checksumming the log alone, s per GiB: {}", list(&reading));
    let (of_all, per_gib, reading) = (median(&mut full) * GIB / read as f64, median(&mut per_gib), median(&mut reading));
    println!(
        "medians per GiB of log: {of_all:.2} s in total, {per_gib:.2} s beyond a start without log, {reading:.2} s reading alone"
    );
}
