//! Cost of compaction for publishers: records at a fixed rate; the time from when a batch was due until it was
//! acknowledged, with and without a running merge, in the same run.
//! `cargo run --release -p bench --bin compaction`

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

use std::time::{Duration, Instant};

use bench::store::{Served, has_served, renumber};
use bench::{at_rate, histogram, print_head, print_line, show};
use clap::Parser;
use tapestore::lsn::{Durability, InstrumentId, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::record::RecordRef;
use tapestore::shm::control::Statistic;
use tapestore_formats::input::{Input, Market, Message, Sim};

#[derive(Parser)]
struct Arguments {
    /// Seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Records a second
    #[arg(long, default_value_t = 200_000)]
    rate: u64,
    /// Instruments
    #[arg(long, default_value_t = 4000)]
    instruments: u32,
    /// Bytes of a MemTable
    #[arg(long, default_value_t = 16 << 20)]
    memtable: u64,
}

/// Records that are sent together and then waited for.
const BATCH: u64 = 100;

fn main() {
    if has_served() {
        return;
    }
    let arguments = Arguments::parse();
    let served = Served::start("adaptive", arguments.memtable);
    let control = served.reader().control().clone();
    let mut publisher =
        Publisher::open(Options { durability: Durability::Os, ..Options::new(served.path(), PublisherId(1)) }).unwrap();
    let records = arguments.seconds * arguments.rate;
    let mut sim = Sim::new(Market { seed: 1, records: records + BATCH, instruments: arguments.instruments }).unwrap();
    let ids: Vec<InstrumentId> = sim.names().to_vec().iter().map(|n| publisher.instrument(n).unwrap()).collect();
    let (mut message, mut ready) = (Message::default(), Vec::<Vec<u64>>::new());
    let (mut quiet, mut merging, mut both) = (histogram(), histogram(), histogram());
    let began = Instant::now();
    at_rate(arguments.rate / BATCH, records / BATCH, |_, due| {
        while (ready.len() as u64) < BATCH && sim.next(&mut message).unwrap() {
            for record in tapestore::record::split(&message.words).flatten() {
                let mut words = Vec::new();
                renumber(record, &ids, &mut words);
                ready.push(words);
            }
        }
        let before = control.statistic(Statistic::Merging);
        for words in ready.drain(..) {
            while let Err(e) = publisher.stage(RecordRef::first(&words).unwrap()) {
                assert!(matches!(e, PublishError::Full { .. }), "{e}");
            }
        }
        publisher.send();
        publisher.flush(Durability::Os, Duration::from_secs(60)).unwrap();
        let ns = due.elapsed().as_nanos() as u64;
        let which = match (before, control.statistic(Statistic::Merging)) {
            (0, 0) => &mut quiet,
            (1, 1) => &mut merging,
            _ => &mut both,
        };
        which.record(ns.max(1)).unwrap();
    });
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{records} records of {} instruments at {} records/s for {seconds:.0} s, batches of {BATCH}, level os; {} CPUs",
        arguments.instruments,
        arguments.rate,
        std::thread::available_parallelism().unwrap()
    );
    let counted = |s| control.statistic(s);
    println!(
        "{} flushes, {} merges that ran for {:.0} s in total and wrote {} MB; {} SSTables; write amplification {:.2}",
        counted(Statistic::Flushes),
        counted(Statistic::Merges),
        counted(Statistic::MergeNs) as f64 / 1e9,
        counted(Statistic::MergedBytes) / 1_000_000,
        counted(Statistic::Files),
        (counted(Statistic::FlushedBytes) + counted(Statistic::MergedBytes)) as f64 / counted(Statistic::FlushedBytes) as f64
    );
    println!("from when a batch was due until it was acknowledged:");
    print_head();
    print_line("no merge running", &quiet);
    print_line("a merge running", &merging);
    print_line("a merge began or ended", &both);
    let (with, without) = (merging.value_at_quantile(0.99), quiet.value_at_quantile(0.99));
    println!("p99 with a merge: {} = {:.2} times {} without", show(with), with as f64 / without as f64, show(without));
}
