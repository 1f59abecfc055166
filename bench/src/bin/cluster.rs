//! Figures of a store on two and three hosts of one machine, measured in turns with their limits.
//! `cargo run --release -p bench --bin cluster`

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use bench::hosts::{Hosts, Shape, eventually};
use bench::{at_rate, histogram, print_head, print_line, show};
use clap::Parser;
use hdrhistogram::Histogram;
use tapestore::agent::Wait;
use tapestore::lsn::{Durability, InstrumentId, Lsn, NodeId, PubSeq};
use tapestore::publisher::Publisher;
use tapestore::record::{RecordRef, Trade};
use tapestore_engine::consensus::message::Command;
use tempfile::NamedTempFile;

#[derive(Parser)]
struct Arguments {
    /// Records a second of the latency measurement
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Records of the latency measurement
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// Further rates for `quorum` at the leader, four seconds each; 0: none
    #[arg(long, value_delimiter = ',', default_value = "5000,20000")]
    rates: Vec<u64>,
    /// Records of the throughput measurement
    #[arg(long, default_value_t = 3_000_000)]
    records: u64,
    /// How storage waits for work: busy, adaptive, blocking
    #[arg(long, default_value = "adaptive")]
    wait: Wait,
    /// Number of leadership transfers
    #[arg(long, default_value_t = 20)]
    transfers: u64,
}

fn main() -> ExitCode {
    if let Some(code) = bench::hosts::play() {
        return code;
    }
    let arguments = Arguments::parse();
    println!(
        "two and three hosts on loopback, each a storage and a replication process; all share one disk and {} cores",
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
    );
    print_head();
    latency(&arguments, 2);
    latency(&arguments, 3);
    transfers(&arguments);
    throughput(&arguments);
    ExitCode::SUCCESS
}

fn shape(arguments: &Arguments) -> Shape {
    Shape { has_links: false, wait: arguments.wait, ..Shape::default() }
}

fn trade(id: u64) -> Trade {
    Trade { trade_id: id, instrument: InstrumentId(1), ..Trade::default() }
}

/// Size of the synced file, bytes.
const FILE_BYTES: u64 = 16 << 20;
/// Records of one turn. The measurements alternate in turns because the speed of the machine changes.
const A_TURN: u64 = 500;

fn written() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&vec![0; FILE_BYTES as usize], 0).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

/// Time of one write and sync of `file`, ns.
fn sync_once(file: &NamedTempFile, i: u64) -> u64 {
    let began = Instant::now();
    file.as_file().write_all_at(&[7; 192], i * 192 % FILE_BYTES).unwrap();
    file.as_file().sync_data().unwrap();
    began.elapsed().as_nanos() as u64
}

/// A connection to an echo thread.
fn echo() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut bytes = [0; 256];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            stream.write_all(bytes.get(..n).unwrap()).unwrap();
        }
    });
    stream.set_nodelay(true).unwrap();
    stream
}

/// Time until a majority of `files`, written at the same time, is synced: the hosts of this program share a disk.
fn majority_synced(files: &[NamedTempFile], rate: u64, h: &mut Histogram<u64>) {
    let period = Duration::from_nanos(1_000_000_000 / rate.max(1));
    let start = Barrier::new(files.len());
    let each = |file| {
        let mut took = Vec::new();
        for i in 0..A_TURN {
            start.wait();
            let began = Instant::now();
            took.push(sync_once(file, i));
            std::thread::sleep(period.saturating_sub(began.elapsed()));
        }
        took
    };
    let all: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = files.iter().map(|f| scope.spawn(move || each(f))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for i in 0..A_TURN as usize {
        let mut took: Vec<u64> = all.iter().filter_map(|t| t.get(i).copied()).collect();
        h.record(*took.select_nth_unstable(files.len() / 2).1).unwrap();
    }
}

/// The last number of `publisher` acknowledged at `level`.
fn reached(publisher: &Publisher, level: Durability) -> PubSeq {
    let progress = publisher.progress();
    if level == Durability::Quorum { progress.committed } else { progress.durable }
}

/// Publishes at a fixed rate without waiting between records; measures from when a record was due until it is
/// acknowledged at `level`.
fn paced(publisher: &mut Publisher, (rate, count): (u64, u64), level: Durability, next_id: &mut u64, h: &mut Histogram<u64>) {
    let mut in_flight: VecDeque<(PubSeq, Instant)> = VecDeque::new();
    let (start, mut sent) = (Instant::now(), 0);
    while sent < count || !in_flight.is_empty() {
        let due = start + Duration::from_nanos(sent * 1_000_000_000 / rate);
        if sent < count && Instant::now() >= due {
            let seq = publisher.publish_ref(RecordRef::of(&trade(*next_id))).unwrap();
            in_flight.push_back((seq, due));
            (sent, *next_id) = (sent + 1, *next_id + 1);
        } else {
            // Yields its core while it has nothing to do, as a strategy on a shared core does.
            std::thread::yield_now();
        }
        let reached = reached(publisher, level);
        while let Some((_, due)) = in_flight.pop_front_if(|(seq, _)| *seq <= reached) {
            h.record(due.elapsed().as_nanos() as u64).unwrap();
        }
    }
}

/// Measures a commit on `count` hosts, in turns with its limits: syncs and a round trip.
fn latency(arguments: &Arguments, count: u64) {
    let (rate, mut next_id) = (arguments.rate, 0);
    let (file, mut echo) = (written(), echo());
    let files: Vec<_> = (0..count).map(|_| written()).collect();
    let alone = Hosts::start(Shape { count: 1, ..shape(arguments) });
    alone.leader().unwrap();
    let mut of_one = alone.publisher(1, 1, Durability::Fsync).unwrap();
    let hosts = Hosts::start(Shape { count, ..shape(arguments) });
    let leader = hosts.leader().unwrap();
    let mut at_leader = hosts.publisher(leader, 1, Durability::Quorum).unwrap();
    let mut at_follower = hosts.publisher(leader % count + 1, 2, Durability::Quorum).unwrap();
    let term = || hosts.ask(leader, Command::Status).unwrap().state.term;
    let began = term();
    let [mut synced, mut majority, mut trips, mut one, mut quorum, mut forwarded] = [(); 6].map(|()| histogram());
    for turn in 0..=arguments.count.div_ceil(A_TURN) {
        at_rate(rate, A_TURN, |i, _| synced.record(sync_once(&file, i)).unwrap());
        majority_synced(&files, rate, &mut majority);
        at_rate(rate, A_TURN, |_, _| {
            let began = Instant::now();
            echo.write_all(&[1; 256]).unwrap();
            echo.read_exact(&mut [0; 256]).unwrap();
            trips.record(began.elapsed().as_nanos() as u64).unwrap();
        });
        paced(&mut of_one, (rate, A_TURN), Durability::Fsync, &mut next_id, &mut one);
        paced(&mut at_leader, (rate, A_TURN), Durability::Quorum, &mut next_id, &mut quorum);
        paced(&mut at_follower, (rate, A_TURN), Durability::Quorum, &mut next_id, &mut forwarded);
        if turn == 0 {
            // The first turn is the warm-up.
            for h in [&mut synced, &mut majority, &mut trips, &mut one, &mut quorum, &mut forwarded] {
                h.reset();
            }
        }
    }
    print_line("limit: pwrite of 192 B and fdatasync", &synced);
    print_line(&format!("limit: {count} files synced at once, a majority"), &majority);
    print_line("limit: 256 B over loopback and back", &trips);
    print_line("one host: fsync acknowledged", &one);
    print_line(&format!("{count} hosts, at the leader: quorum"), &quorum);
    print_line(&format!("{count} hosts, at a follower: quorum"), &forwarded);
    let [synced, majority, trips, quorum] = [&synced, &majority, &trips, &quorum].map(|h| h.value_at_quantile(0.5) as f64);
    println!(
        "{count} hosts, at the leader, p50: {:.2} times a round trip plus a sync of the shared disk, {:.2} times with a disk for each host",
        quorum / (trips + majority),
        quorum / (trips + synced)
    );
    for rate in arguments.rates.iter().copied().filter(|rate| *rate > 0) {
        let mut h = histogram();
        paced(&mut at_leader, (rate, rate * 4), Durability::Quorum, &mut next_id, &mut h);
        print_line(&format!("{count} hosts, at the leader: {rate} a second"), &h);
    }
    println!("{count} hosts: {} elections during the measurement", term() - began);
}

/// Measures leadership transfers under load.
fn transfers(arguments: &Arguments) {
    let hosts = Hosts::start(shape(arguments));
    let mut leader = hosts.leader().unwrap();
    let at = leader;
    let mut publisher = hosts.publisher(at, 1, Durability::Quorum).unwrap();
    let mut taken = histogram();
    let mut next_id = 0;
    for _ in 0..arguments.transfers {
        for _ in 0..200 {
            publisher.publish_ref(RecordRef::of(&trade(next_id))).unwrap();
            next_id += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
        let next = leader % 3 + 1;
        let began = Instant::now();
        hosts.ask(leader, Command::Transfer(NodeId(next))).unwrap();
        eventually("the leadership transfer", || (hosts.leader_now(Some(leader)) == Some(next)).then_some(())).unwrap();
        let seq = publisher.publish_ref(RecordRef::of(&trade(next_id))).unwrap();
        next_id += 1;
        while reached(&publisher, Durability::Quorum) < seq {
            std::thread::yield_now();
        }
        taken.record(began.elapsed().as_nanos() as u64).unwrap();
        leader = next;
    }
    print_line("transfer: request to next record committed", &taken);
    assert!(publisher.take_lost().is_empty(), "a transfer must lose no records");
}

/// CPU time of all processes of `hosts` so far.
fn cpu(hosts: &Hosts) -> Duration {
    hosts.pids().into_iter().map(bench::process::processor_time).sum()
}

fn throughput(arguments: &Arguments) {
    for count in [2, 3] {
        let shape = Shape { count, sizes: [256 << 20, 64 << 20], ..shape(arguments) };
        let hosts = Hosts::start(shape);
        let leader = hosts.leader().unwrap();
        let mut publisher = hosts.publisher(leader, 1, Durability::Quorum).unwrap();
        let (began, before) = (Instant::now(), cpu(&hosts));
        for id in 0..arguments.records {
            let trade = trade(id);
            let record = RecordRef::of(&trade);
            while publisher.stage(record).is_err() {
                std::thread::sleep(Duration::from_micros(100));
            }
            if id.is_multiple_of(256) {
                publisher.send();
            }
        }
        publisher.flush(Durability::Quorum, Duration::from_secs(120)).unwrap();
        let committed = began.elapsed();
        let all = |n: &u64| hosts.committed(*n) >= Lsn(arguments.records);
        eventually("all records on each host", || (1..=count).all(|n| all(&n)).then_some(())).unwrap();
        let (took, used) = (began.elapsed(), cpu(&hosts) - before);
        println!(
            "{count} hosts, trades of {} B: {:.0} records/s committed, {:.0} on all hosts; {} of CPU time a record over all processes",
            RecordRef::of(&trade(0)).words().len() * 8,
            arguments.records as f64 / committed.as_secs_f64(),
            arguments.records as f64 / took.as_secs_f64(),
            show(used.as_nanos() as u64 / arguments.records),
        );
    }
}
