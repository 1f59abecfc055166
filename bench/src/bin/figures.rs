//! Latency, ingest and query figures, each with its limit from the same run. `cargo run --release -p bench --bin figures`

#![expect(clippy::unwrap_used, reason = "a failed measurement ends the program")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bench::limits::{self, BareDisk};
use bench::store::{Served, has_served, role};
use bench::{at_rate, histogram, print_head, print_line};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use tape_services::processes::Process;
use tapestore::agent::{Idle, Wait};
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Reader, Series, TimeRange};
use tapestore::record::{Record, RecordRef, Trade};
use tapestore::subscriber::{Event, Subscriber};
use tapestore::time::{Clock, HostClock, Ts};

/// Index time of the first record for queries; the records are 1 us apart.
const FIRST_TIME: u64 = 1_700_000_000_000_000_000;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[arg(long, global = true)]
    store: Option<PathBuf>,
    /// Wait mode of every loop: busy, adaptive, blocking
    #[arg(long, global = true, default_value = "adaptive")]
    wait: Wait,
    /// Records of the ingest and query measurements
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Records a second of the latency measurements
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
}

#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Subscriber { count: u64 },
    #[command(hide = true)]
    Reader { count: u64 },
}

fn main() {
    if has_served() {
        return;
    }
    let arguments = Arguments::parse();
    let wait = arguments.wait;
    match (arguments.role, arguments.store) {
        (Some(Role::Subscriber { count }), Some(store)) => subscriber(&store, wait, count),
        (Some(Role::Reader { count }), Some(store)) => reader(&store, wait, count),
        _ => figures(arguments.wait, arguments.rate, arguments.records),
    }
}

fn name(wait: Wait) -> &'static str {
    match wait {
        Wait::Busy => "busy",
        Wait::Adaptive => "adaptive",
        Wait::Blocking => "blocking",
    }
}

/// Number of instruments.
const INSTRUMENTS: u64 = 1000;

fn trade(id: u64, ts_recv: Ts) -> Trade {
    Trade { trade_id: id, ts_recv, instrument: InstrumentId(1 + (id % INSTRUMENTS) as u32), ..Trade::default() }
}

/// Prints "ready"; [`give`] prints the histogram at the end.
fn ready() {
    println!("ready");
    std::io::stdout().flush().unwrap();
}

fn give(h: &Histogram<u64>) {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(h, &mut bytes).unwrap();
    std::io::stdout().write_all(&bytes).unwrap();
}

fn wait_ready(child: &mut Process) {
    let mut line = [0u8; 6];
    child.stdout().unwrap().read_exact(&mut line).unwrap();
}

fn take(mut child: Process) -> Histogram<u64> {
    let mut bytes = Vec::new();
    child.stdout().unwrap().read_to_end(&mut bytes).unwrap();
    child.wait().unwrap();
    Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap()
}

/// Nanoseconds since the record was due: `ts_event` holds that monotonic time.
fn late(record: &RecordRef<'_>) -> u64 {
    HostClock.monotonic().saturating_sub(record.header().ts_event.0).max(1)
}

fn subscriber(store: &Path, wait: Wait, count: u64) {
    let mut subscriber = Subscriber::open(store).unwrap();
    ready();
    let (mut h, mut idle) = (histogram(), Idle::new(wait));
    while h.len() < count {
        match subscriber.poll().unwrap() {
            Some(Event::Record { record, .. }) => {
                h.record(late(&record)).unwrap();
                idle.worked();
            }
            Some(Event::Gap { .. } | Event::Reopened { .. }) => {}
            None if idle.should_park() => subscriber.wait(Duration::from_millis(20)),
            None => {}
        }
    }
    give(&h);
}

fn reader(store: &Path, wait: Wait, count: u64) {
    let mut reader = Reader::open(store).unwrap();
    let last = reader.snapshot(At::Appended).unwrap().last();
    let mut follow = reader.follow(last.next(), At::Appended);
    ready();
    let (mut h, mut idle) = (histogram(), Idle::new(wait));
    while h.len() < count {
        if let Some(row) = follow.poll().unwrap() {
            h.record(late(&row.record)).unwrap();
            idle.worked();
        } else if idle.should_park() {
            follow.wait(Duration::from_millis(20));
        }
    }
    give(&h);
}

fn figures(wait: Wait, rate: u64, records: u64) {
    println!(
        "wait mode {}; {rate} records/s by schedule; {} CPUs; latencies from when a record was due",
        name(wait),
        std::thread::available_parallelism().unwrap()
    );
    print_head();
    let line = limits::line_round_trip();
    print_line("limit: cache line, round trip", &line);
    let served = Served::start(name(wait), 512 << 20);
    paths(&served, wait, rate);
    durable(&served);
    drop(served);
    ingest_and_query(wait, records);
}

fn open(served: &Served, level: Durability) -> Publisher {
    let publisher = Publisher::open(Options { durability: level, ..Options::new(served.path(), PublisherId(1)) }).unwrap();
    let names: Vec<_> = (1..=INSTRUMENTS).map(|i| format!("BENCH:{i}").parse().unwrap()).collect();
    publisher.instruments(&names).unwrap();
    publisher
}

/// Publish to subscriber and to a reader's view, in turns with iceoryx2 alone.
fn paths(served: &Served, wait: Wait, rate: u64) {
    let count = rate * 3;
    for _ in 0..2 {
        print_line("limit: iceoryx2 alone, one way, busy", &limits::bus_one_way(rate, count));
        for (what, level, label) in [
            ("subscriber", Durability::Os, "publish -> subscriber in another process"),
            ("reader", Durability::Os, "publish -> visible in another process"),
            ("reader", Durability::Fsync, "  the same while every record is synced"),
        ] {
            let mut child = role(&[what, "--wait", name(wait), &count.to_string()], &served.path());
            wait_ready(&mut child);
            let mut publisher = open(served, level);
            let mut send = histogram();
            at_rate(rate, count, |i, due| {
                let began = Instant::now();
                let ts = Ts(HostClock.monotonic() - due.elapsed().as_nanos() as u64);
                let record = Trade { ts_event: ts, ..trade(i, HostClock.wall()) };
                while publisher.publish(&record).is_err() {}
                send.record(began.elapsed().as_nanos() as u64).unwrap();
            });
            publisher.close(Duration::from_secs(20)).unwrap();
            print_line(label, &take(child));
            print_line("  the publish call itself", &send);
        }
    }
}

/// Publish to durable, in turns with a bare write and sync of the same bytes.
fn durable(served: &Served) {
    let mut publisher = open(served, Durability::Fsync);
    let (mut ours, mut bare) = (histogram(), histogram());
    let dir = tempfile::tempdir().unwrap();
    let mut disk = BareDisk::new(dir.path());
    // A frame of one trade: header, run, record, padded.
    let frame = [7u8; 192];
    for block in 0..40u64 {
        for i in 0..50 {
            let began = Instant::now();
            publisher.publish(&trade(block * 50 + i, HostClock.wall())).unwrap();
            publisher.flush(Durability::Fsync, Duration::from_secs(20)).unwrap();
            ours.record(began.elapsed().as_nanos() as u64).unwrap();
        }
        for _ in 0..50 {
            let began = Instant::now();
            disk.write(&frame);
            disk.sync();
            bare.record(began.elapsed().as_nanos() as u64).unwrap();
        }
    }
    print_line("limit: pwrite + fdatasync of a frame's bytes", &bare);
    print_line("publish -> durable, acknowledged", &ours);
    println!(
        "{:<44}{:>10.2} x the bare sync at p50",
        "",
        ours.value_at_quantile(0.5) as f64 / bare.value_at_quantile(0.5) as f64
    );
}

fn ingest_and_query(wait: Wait, records: u64) {
    let read = limits::memory_read();
    println!("\nlimit: memory read, one thread{:>38.1} GB/s", read / 1e9);
    let served = Served::start(name(wait), 1 << 30);
    // Storage makes log segments ahead when the first publisher attaches: a store in use has them.
    drop(open(&served, Durability::Os));
    std::thread::sleep(Duration::from_millis(500));
    let dir = tempfile::tempdir().unwrap();
    let mut disk = BareDisk::new(dir.path());
    let bytes = vec![7u8; 64 << 10];
    let began = Instant::now();
    (0..records * 64 / (64 << 10)).for_each(|_| disk.write(&bytes));
    let seconds = began.elapsed().as_secs_f64();
    println!("limit: bare pwrite of the same bytes, 64 KiB each {:>14.2} M records/s", records as f64 / seconds / 1e6);
    for (pass, (what, batch)) in (0u64..).zip([("ingest at os, batches of 256", 256), ("ingest at os, single records", 1)]) {
        let mut publisher = open(&served, Durability::Os);
        let began = Instant::now();
        for i in 0..records {
            let record = trade(i, Ts(FIRST_TIME + (pass * records + i) * 1000));
            loop {
                let taken = if batch == 1 { publisher.publish(&record) } else { publisher.stage(RecordRef::of(&record)) };
                match taken {
                    Ok(_) => break,
                    Err(PublishError::Full { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            if batch > 1 && i % batch == batch - 1 {
                publisher.send();
            }
        }
        publisher.close(Duration::from_secs(60)).unwrap();
        println!("{what:<50}{:>14.2} M records/s", records as f64 / began.elapsed().as_secs_f64() / 1e6);
    }
    query(&served, read);
}

/// Times a call in groups of `batch`: one call is shorter than the clock's resolution.
fn timed(label: &str, batch: u64, mut call: impl FnMut(u64)) {
    let mut h = histogram();
    for round in 0..20_000u64 {
        let began = Instant::now();
        (0..batch).for_each(|i| call(round * batch + i));
        h.record((began.elapsed().as_nanos() as u64 / batch).max(1)).unwrap();
    }
    print_line(label, &h);
}

fn query(served: &Served, limit: f64) {
    let mut snapshot = served.reader().snapshot(At::Appended).unwrap();
    let last = snapshot.last().0;
    let series = |i: u64| Series { instrument: InstrumentId(1 + (i % INSTRUMENTS) as u32), kind: Trade::KIND };
    let spread = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    println!();
    print_head();
    timed("get(LSN), 1,000 hot records (mean of 16)", 16, |i| {
        std::hint::black_box(snapshot.get(Lsn(last - i % 1000)).unwrap().unwrap());
    });
    timed("get(LSN), all records (mean of 16)", 16, |i| {
        std::hint::black_box(snapshot.get(Lsn(1 + spread(i) % last)).unwrap().unwrap());
    });
    timed("as-of, 1,000 series, the newest (mean of 16)", 16, |i| {
        std::hint::black_box(snapshot.as_of(series(i), Ts(u64::MAX)).unwrap().unwrap());
    });
    let span = last * 1000;
    timed("as-of, 1,000 series, any time (mean of 16)", 16, |i| {
        std::hint::black_box(snapshot.as_of(series(i), Ts(FIRST_TIME + 1_000_000 + spread(i) % span)).unwrap().unwrap());
    });
    let (began, mut rows, mut sum) = (Instant::now(), 0u64, 0u64);
    for i in 0..1000 {
        let mut scan = snapshot.scan(series(i), TimeRange::ALL);
        while let Some(row) = scan.next().unwrap() {
            sum = sum.wrapping_add(row.record.get::<Trade>().unwrap().size.0);
            rows += 1;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    std::hint::black_box(sum);
    let rate = rows as f64 / seconds;
    println!(
        "\nscan of 1,000 series, row by row{:>20.1} M rows/s = {:.1} GB/s, {:.0} % of memory read",
        rate / 1e6,
        rate * 64.0 / 1e9,
        rate * 6400.0 / limit
    );
    let all: Vec<Series> = (0..1000).map(series).collect();
    let began = Instant::now();
    let rows = snapshot.replay(&all, TimeRange::ALL).count().unwrap();
    println!("replay of 1,000 series, merged by time{:>14.1} M rows/s", rows as f64 / began.elapsed().as_secs_f64() / 1e6);
    let mut follow = served.reader().follow(Lsn(1), At::Appended);
    let began = Instant::now();
    while follow.poll().unwrap().is_some() {}
    println!(
        "follow from the first record, with checksum{:>9.1} M rows/s",
        follow.tally().count as f64 / began.elapsed().as_secs_f64() / 1e6
    );
}
