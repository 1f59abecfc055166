//! Figures of a store on three hosts, on one machine: each beside its limit of the same run.
//! `cargo run --release -p bench --bin cluster`

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be taken ends the program")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench::hosts::{Hosts, Shape, eventually};
use bench::{at_rate, histogram, print_head, print_line, show};
use clap::Parser;
use hdrhistogram::Histogram;
use tapestore::agent::{Idle, Wait};
use tapestore::consensus::message::Command;
use tapestore::lsn::{InstrumentId, Level, Lsn, NodeId, PubSeq};
use tapestore::publisher::Publisher;
use tapestore::record::{RecordRef, Trade};

#[derive(Parser)]
struct Arguments {
    /// Records a second of the latency measurement
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Records of the latency measurement
    #[arg(long, default_value_t = 5_000)]
    count: u64,
    /// Records of the throughput measurement
    #[arg(long, default_value_t = 3_000_000)]
    records: u64,
    /// How storage waits for work: busy, adaptive, blocking
    #[arg(long, default_value = "adaptive")]
    wait: Wait,
    /// Times that the lead is handed over
    #[arg(long, default_value_t = 20)]
    transfers: u64,
}

fn main() -> ExitCode {
    if let Some(code) = bench::hosts::play() {
        return code;
    }
    let arguments = Arguments::parse();
    println!("three hosts, each a storage and a replication process, on loopback; 2 cores are shared by all of them");
    print_head();
    limits(&arguments);
    latency(&arguments);
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

/// What one sync and one round trip cost here and now.
fn limits(arguments: &Arguments) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&vec![0; 16 << 20], 0).unwrap();
    file.as_file().sync_all().unwrap();
    let mut synced = histogram();
    at_rate(arguments.rate.min(1_000), arguments.count.min(3_000), |i, _| {
        let began = Instant::now();
        file.as_file().write_all_at(&[7; 192], i * 192 % (16 << 20)).unwrap();
        file.as_file().sync_data().unwrap();
        synced.record(began.elapsed().as_nanos() as u64).unwrap();
    });
    print_line("limit: pwrite of 192 B and fdatasync", &synced);
    print_line("limit: three files synced at once, the second", &second_of_three(arguments));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut bytes = [0; 256];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            stream.write_all(bytes.get(..n).unwrap()).unwrap();
        }
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut trips = histogram();
    at_rate(arguments.rate, arguments.count.min(5_000), |_, _| {
        let began = Instant::now();
        stream.write_all(&[1; 256]).unwrap();
        stream.read_exact(&mut [0; 256]).unwrap();
        trips.record(began.elapsed().as_nanos() as u64).unwrap();
    });
    drop(stream);
    echo.join().unwrap();
    print_line("limit: 256 B over loopback and back", &trips);
}

/// How long it takes until two of three files are synced that are written at once: the hosts of this program share a disk.
fn second_of_three(arguments: &Arguments) -> Histogram<u64> {
    let rounds = arguments.count.min(3_000);
    let period = Duration::from_nanos(1_000_000_000 / arguments.rate.clamp(1, 1_000));
    let start = std::sync::Barrier::new(3);
    let one = || {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&vec![0; 16 << 20], 0).unwrap();
        file.as_file().sync_all().unwrap();
        let mut took = Vec::new();
        for i in 0..rounds {
            start.wait();
            let began = Instant::now();
            file.as_file().write_all_at(&[7; 192], i * 192 % (16 << 20)).unwrap();
            file.as_file().sync_data().unwrap();
            took.push(began.elapsed().as_nanos() as u64);
            std::thread::sleep(period.saturating_sub(began.elapsed()));
        }
        took
    };
    let [a, b, c] = std::thread::scope(|scope| [(); 3].map(|()| scope.spawn(one)).map(|t| t.join().unwrap()));
    let mut h = histogram();
    for ((a, b), c) in a.into_iter().zip(b).zip(c) {
        let mut took = [a, b, c];
        took.sort_unstable();
        h.record(took[1]).unwrap();
    }
    h
}

/// Waits until `publisher` has reached `seq` at `level`.
fn wait_for(publisher: &mut Publisher, seq: PubSeq, level: Level, idle: &mut Idle) {
    loop {
        let progress = publisher.progress();
        let reached = if level == Level::Quorum { progress.committed } else { progress.durable };
        if reached >= seq {
            return;
        }
        if idle.should_park() {
            std::thread::yield_now();
        }
    }
}

/// Publishing at a fixed rate, each record waited for.
fn paced(publisher: &mut Publisher, arguments: &Arguments, level: Level, first: u64) -> Histogram<u64> {
    let mut h = histogram();
    let mut idle = Idle::new(Wait::Adaptive);
    at_rate(arguments.rate, arguments.count, |i, due| {
        let seq = publisher.publish_ref(RecordRef::of(&trade(first + i))).unwrap();
        wait_for(publisher, seq, level, &mut idle);
        h.record(due.elapsed().as_nanos() as u64).unwrap();
    });
    h
}

fn latency(arguments: &Arguments) {
    let alone = Hosts::start(Shape { count: 1, ..shape(arguments) });
    alone.leader().unwrap();
    let mut publisher = alone.publisher(1, 1, Level::Fsync).unwrap();
    print_line("one host: fsync acknowledged", &paced(&mut publisher, arguments, Level::Fsync, 0));
    drop(publisher);
    drop(alone);
    let hosts = Hosts::start(shape(arguments));
    let leader = hosts.leader().unwrap();
    let mut publisher = hosts.publisher(leader, 1, Level::Quorum).unwrap();
    paced(&mut publisher, &Arguments { count: arguments.rate, ..*arguments }, Level::Quorum, 0);
    print_line("three hosts, at the leader: quorum", &paced(&mut publisher, arguments, Level::Quorum, 0));
    let other = leader % 3 + 1;
    let mut publisher = hosts.publisher(other, 2, Level::Quorum).unwrap();
    print_line("three hosts, at a follower: quorum", &paced(&mut publisher, arguments, Level::Quorum, 0));
}

/// The lead is handed over under load.
fn transfers(arguments: &Arguments) {
    let hosts = Hosts::start(shape(arguments));
    let mut leader = hosts.leader().unwrap();
    let at = leader;
    let mut publisher = hosts.publisher(at, 1, Level::Quorum).unwrap();
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
        eventually("the lead to be handed over", || (hosts.leader_now(Some(leader)) == Some(next)).then_some(())).unwrap();
        let seq = publisher.publish_ref(RecordRef::of(&trade(next_id))).unwrap();
        next_id += 1;
        wait_for(&mut publisher, seq, Level::Quorum, &mut Idle::new(Wait::Adaptive));
        taken.record(began.elapsed().as_nanos() as u64).unwrap();
        leader = next;
    }
    print_line("handing over: asked to a record committed", &taken);
    assert!(publisher.take_lost().is_empty(), "nothing is lost by handing over");
}

/// Processor time of the processes of `hosts` so far.
fn cpu(hosts: &Hosts) -> Duration {
    let of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<u64> =
            stat.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        Duration::from_millis(fields.iter().sum::<u64>() * 10)
    };
    hosts.pids().into_iter().map(of).sum()
}

fn throughput(arguments: &Arguments) {
    for count in [2, 3] {
        let shape = Shape { count, sizes: [256 << 20, 64 << 20], ..shape(arguments) };
        let hosts = Hosts::start(shape);
        let leader = hosts.leader().unwrap();
        let mut publisher = hosts.publisher(leader, 1, Level::Quorum).unwrap();
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
        publisher.flush(Level::Quorum, Duration::from_secs(120)).unwrap();
        let committed = began.elapsed();
        let all = |n: &u64| hosts.committed(*n) >= Lsn(arguments.records);
        eventually("all records on each host", || (1..=count).all(|n| all(&n)).then_some(())).unwrap();
        let (took, used) = (began.elapsed(), cpu(&hosts) - before);
        println!(
            "{count} hosts, trades of {} B: {:.0} records/s committed, {:.0} on all hosts; {} of processor time a record, all processes together",
            RecordRef::of(&trade(0)).words().len() * 8,
            arguments.records as f64 / committed.as_secs_f64(),
            arguments.records as f64 / took.as_secs_f64(),
            show(used.as_nanos() as u64 / arguments.records),
        );
    }
}
