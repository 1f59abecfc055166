//! History: publishes the simulated market into a store whose MemTables hold a small part of it, reads everything back by
//! every path, compares it with the sent records, and prints figures with their limits.
//! `cargo run --release -p bench --bin history`

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed measurement ends the program")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench::store::{Served, has_served, renumber};
use bench::{histogram, limits, print_head, print_line};
use clap::Parser;
use tapestore::agent::Wait;
use tapestore::disk::sim::SimRng;
use tapestore::lsn::{Durability, InstrumentId, Lsn, PublisherId};
use tapestore::publisher::{Options, PublishError, Publisher};
use tapestore::reader::{At, Reader, Series, Snapshot, TimeRange};
use tapestore::record::{BookOrder, Kind, Quote, Record, RecordRef, SCHEMAS, Trade};
use tapestore::shm::control::Statistic;
use tapestore::time::Ts;
use tapestore_formats::input::{Input, Market, Message, Sim};

#[derive(Parser)]
struct Arguments {
    /// How storage waits: busy, adaptive, blocking
    #[arg(long, default_value = "adaptive")]
    wait: Wait,
    /// Records
    #[arg(long, default_value_t = 50_000_000)]
    records: u64,
    /// Instruments
    #[arg(long, default_value_t = 2000)]
    instruments: u32,
    /// Bytes of a MemTable
    #[arg(long, default_value_t = 64 << 20)]
    memtable: u64,
    /// As-of queries and id lookups that are compared with the model
    #[arg(long, default_value_t = 100_000)]
    probes: u64,
}

/// The sent records: a checksum of each, times and LSNs by series, and the ids of some.
#[derive(Default)]
struct Model {
    crc: Vec<u32>,
    series: std::collections::HashMap<Series, Vec<(u64, u64)>>,
    ids: Vec<(Series, u64)>,
    kinds: [u64; SCHEMAS.len()],
}

fn crc(words: &[u64]) -> u32 {
    words.iter().fold(0, |crc, w| crc32c::crc32c_append(crc, &w.to_le_bytes()))
}

impl Model {
    fn add(&mut self, record: RecordRef<'_>) {
        self.crc.push(crc(record.words()));
        let lsn = self.crc.len() as u64;
        let series = Series { instrument: record.instrument(), kind: record.kind() };
        self.series.entry(series).or_default().push((record.own_index_time().0, lsn));
        self.kinds[usize::from(record.kind().0) - 1] += 1;
        let id = match (record.get::<Trade>(), record.get::<BookOrder>()) {
            (Some(t), _) => t.trade_id,
            (_, Some(b)) => b.order_id,
            _ => return,
        };
        if lsn.is_multiple_of(61) {
            self.ids.push((series, id));
        }
    }

    fn check(&self, lsn: Lsn, words: &[u64]) {
        assert_eq!(crc(words), self.crc[lsn.0 as usize - 1], "record {lsn} differs from the sent one");
    }
}

/// Resident bytes of process `pid`: private and shared.
fn memory(pid: u32) -> (u64, u64) {
    let held = bench::process::held(pid).unwrap_or_default();
    (held.private, held.shared)
}

/// Starts a reader of random records and series that runs until `stop`; returns how many records it read.
fn watcher(path: PathBuf, stop: Arc<AtomicBool>, seed: u64) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let (mut reader, mut rng, mut looks) = (Reader::open(&path).unwrap(), SimRng::new(seed), 0);
        while !stop.load(Ordering::Acquire) {
            let Ok(mut snapshot) = reader.snapshot(At::Appended) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let last = snapshot.last().0;
            for _ in 0..200.min(last) {
                let lsn = Lsn(1 + rng.below(last));
                assert_eq!(snapshot.get(lsn).unwrap().unwrap().lsn, lsn);
                looks += 1;
            }
            let series = Series { instrument: InstrumentId(1 + rng.below(2000) as u32), kind: Quote::KIND };
            let newest = snapshot.as_of(series, Ts(u64::MAX)).unwrap().map(|r| r.lsn);
            assert!(newest.is_none_or(|l| l.0 <= last));
            std::thread::sleep(Duration::from_millis(5));
        }
        looks
    })
}

/// Samples during ingest: peak memory, and the longest time without an applied record.
struct Watch {
    stop: Arc<AtomicBool>,
    own: Arc<AtomicU64>,
    shared: Arc<AtomicU64>,
    stall: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(served: &Served, sent: Arc<AtomicU64>) -> Watch {
        let (stop, own, shared, stall) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default(), Arc::default());
        let theirs: (Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>) = (stop.clone(), own, shared, stall);
        let (own, shared, stall) = (theirs.1.clone(), theirs.2.clone(), theirs.3.clone());
        let (pid, control) = (served.pid(), served.reader().control().clone());
        let thread = std::thread::spawn(move || {
            let (mut applied, mut since, mut turn) = (Lsn(0), Instant::now(), 0u64);
            while !theirs.0.load(Ordering::Acquire) {
                if turn.is_multiple_of(50) {
                    let (own, shared) = memory(pid);
                    theirs.1.fetch_max(own, Ordering::Relaxed);
                    theirs.2.fetch_max(shared, Ordering::Relaxed);
                }
                turn += 1;
                let now = control.applied();
                if now != applied || sent.load(Ordering::Relaxed) <= now.0 {
                    (applied, since) = (now, Instant::now());
                } else {
                    theirs.3.fetch_max(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Watch { stop, own, shared, stall, thread }
    }

    fn end(self) -> [u64; 3] {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        [self.own, self.shared, self.stall].map(|n| n.load(Ordering::Relaxed))
    }
}

fn main() {
    if has_served() {
        return;
    }
    let arguments = Arguments::parse();
    let wait = match arguments.wait {
        Wait::Busy => "busy",
        Wait::Adaptive => "adaptive",
        Wait::Blocking => "blocking",
    };
    println!(
        "{} records of {} instruments, MemTables of {} MiB, {} CPUs",
        arguments.records,
        arguments.instruments,
        arguments.memtable >> 20,
        std::thread::available_parallelism().unwrap()
    );
    let mut served = Served::start(wait, arguments.memtable);
    let mut model = Model::default();
    let mut sim = Sim::new(Market { seed: 1, records: arguments.records, instruments: arguments.instruments }).unwrap();
    // A tenth first, to measure a start with little history.
    send(&served, &mut sim, &mut model, arguments.records / 10);
    let early = served.restart(wait, arguments.memtable);
    let early_files = served.reader().control().statistic(Statistic::Files);
    send(&served, &mut sim, &mut model, arguments.records);
    settle(&served, &model);
    let late = served.restart(wait, arguments.memtable);
    let late_files = served.reader().control().statistic(Statistic::Files);
    println!(
        "start: {:.0} ms with {early_files} SSTables, {:.0} ms with {late_files}",
        early.as_secs_f64() * 1e3,
        late.as_secs_f64() * 1e3
    );
    let mut snapshot = served.reader().snapshot(At::Durable).unwrap();
    sizes(&snapshot);
    let read = limits::memory_read();
    println!("\nlimit: memory read, one thread {:>40.1} GB/s", read / 1e9);
    compare(&served, &mut snapshot, &model, arguments.probes);
    figures(&mut snapshot, &model, read);
}

/// Sends until the model holds `upto` records.
fn send(served: &Served, sim: &mut Sim, model: &mut Model, upto: u64) {
    let options = Options { durability: Durability::Os, ..Options::new(served.path(), PublisherId(1)) };
    let mut publisher = Publisher::open(options).unwrap();
    let ids: Vec<InstrumentId> = sim.names().to_vec().iter().map(|n| publisher.instrument(n).unwrap()).collect();
    let sent = Arc::new(AtomicU64::new(0));
    let watch = Watch::start(served, sent.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = (0..2).map(|seed| watcher(served.path(), stop.clone(), seed)).collect();
    let (mut message, mut words, first, mut longest) = (Message::default(), Vec::new(), model.crc.len(), Duration::ZERO);
    let began = Instant::now();
    let mut staged = 0;
    while (model.crc.len() as u64) < upto && sim.next(&mut message).unwrap() {
        for record in tapestore::record::split(&message.words).flatten() {
            renumber(record, &ids, &mut words);
            let record = RecordRef::first(&words).unwrap();
            let call = Instant::now();
            while let Err(e) = publisher.stage(record) {
                assert!(matches!(e, PublishError::Full { .. }), "{e}");
            }
            longest = longest.max(call.elapsed());
            model.add(record);
            staged += 1;
        }
        if staged >= 256 {
            publisher.send();
            staged = 0;
            sent.store(model.crc.len() as u64, Ordering::Relaxed);
        }
    }
    publisher.close(Duration::from_secs(120)).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Release);
    let looks: u64 = watchers.into_iter().map(|w| w.join().unwrap()).sum();
    let [own, shared, stall] = watch.end();
    let control = served.reader().control().clone();
    let counted = |s| control.statistic(s);
    println!(
        "sent {} records in {seconds:.1} s, {:.2} M/s; {} flushes, {} SSTables; longest call {:.1} ms; longest pause of applied {:.1} ms; back-pressure for {} ms in total",
        model.crc.len() - first,
        (model.crc.len() - first) as f64 / seconds / 1e6,
        counted(Statistic::Flushes),
        counted(Statistic::Files),
        longest.as_secs_f64() * 1e3,
        stall as f64 / 1e6,
        counted(Statistic::BackPressureNs) / 1_000_000
    );
    println!(
        "  flush: {:.2} M records/s, {:.0} MB/s while one runs; storage at most {} MiB private, {} MiB shared; {looks} concurrent reads, none failed",
        counted(Statistic::FlushedRecords) as f64 / counted(Statistic::FlushNs) as f64 * 1e3,
        counted(Statistic::FlushedBytes) as f64 / counted(Statistic::FlushNs) as f64 * 1e3,
        own >> 20,
        shared >> 20
    );
}

/// Waits for the end of compaction; prints the bytes that flushes and merges wrote and the size of history.
fn settle(served: &Served, model: &Model) {
    let control = served.reader().control().clone();
    let began = Instant::now();
    let mut quiet = Instant::now();
    let mut merges = control.statistic(Statistic::Merges);
    while quiet.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50));
        let now = control.statistic(Statistic::Merges);
        if control.statistic(Statistic::Merging) > 0 || now != merges {
            (quiet, merges) = (Instant::now(), now);
        }
    }
    let counted = |s| control.statistic(s) as f64;
    let covered = counted(Statistic::Covered) as usize;
    let bytes: u64 = model.kinds.iter().zip(&SCHEMAS).map(|(rows, schema)| rows * schema.words as u64 * 8).sum::<u64>()
        * covered as u64
        / model.crc.len() as u64;
    println!(
        "compaction: {merges} merges, {:.0} MB/s while one runs, done {:.1} s after the last record; {} SSTables; write amplification {:.2} (without the log); history takes {:.2} times the bytes of its records",
        counted(Statistic::MergedBytes) / counted(Statistic::MergeNs) * 1e3,
        began.elapsed().as_secs_f64() - 2.0,
        counted(Statistic::Files),
        (counted(Statistic::FlushedBytes) + counted(Statistic::MergedBytes)) / counted(Statistic::FlushedBytes),
        counted(Statistic::HistoryBytes) / bytes as f64
    );
}

/// Prints bytes a row by kind.
fn sizes(snapshot: &Snapshot) {
    for schema in &SCHEMAS {
        let files: Vec<_> = snapshot.history().files().iter().filter(|f| f.meta().kind == schema.kind).collect();
        let (rows, bytes): (u64, u64) = (files.iter().map(|f| f.meta().rows).sum(), files.iter().map(|f| f.meta().len).sum());
        if rows > 0 {
            println!(
                "  {:<11}{:>12} rows in {:>4} SSTables, {:>6.1} bytes a row (a record has {})",
                schema.name,
                rows,
                files.len(),
                bytes as f64 / rows as f64,
                schema.words * 8
            );
        }
    }
}

/// Compares every record, by every path, with the model.
fn compare(served: &Served, snapshot: &mut Snapshot, model: &Model, probes: u64) {
    let total = model.crc.len() as u64;
    assert_eq!(snapshot.last(), Lsn(total));
    let began = Instant::now();
    for lsn in 1..=total {
        model.check(Lsn(lsn), snapshot.get(Lsn(lsn)).unwrap().unwrap().record.words());
    }
    println!("get: {total} records equal ({:.1} s)", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let mut follow = served.reader().follow(Lsn(1), At::Durable);
    let mut next = 1;
    while let Some(row) = follow.poll().unwrap() {
        assert_eq!(row.lsn, Lsn(next));
        model.check(row.lsn, row.record.words());
        next += 1;
    }
    assert_eq!(next, total + 1);
    println!("follow: {total} records equal, in LSN order ({:.1} s)", began.elapsed().as_secs_f64());
    let all = snapshot.series().unwrap();
    assert_eq!(all.len(), model.series.len());
    let began = Instant::now();
    let (mut replay, mut count, mut before) = (snapshot.replay(&all, TimeRange::ALL), 0u64, (Ts(0), Lsn(0)));
    while let Some(row) = replay.next().unwrap() {
        assert!((row.index_time, row.lsn) > before);
        before = (row.index_time, row.lsn);
        model.check(row.lsn, row.record.words());
        count += 1;
    }
    assert_eq!(count, total);
    println!("replay: {count} records equal, in (time, LSN) order ({:.1} s)", began.elapsed().as_secs_f64());
    let (began, mut count) = (Instant::now(), 0u64);
    for (&series, rows) in &model.series {
        let (mut scan, mut n) = (snapshot.scan(series, TimeRange::ALL), 0);
        while let Some(row) = scan.next().unwrap() {
            assert_eq!((row.index_time.0, row.lsn.0), rows[n]);
            n += 1;
        }
        assert_eq!(n, rows.len());
        count += n as u64;
    }
    println!("scan: {count} records in {} series as expected ({:.1} s)", all.len(), began.elapsed().as_secs_f64());
    let mut rng = SimRng::new(9);
    let (first, last) = (model.series.values().map(|r| r[0].0).min().unwrap(), before.0.0);
    let began = Instant::now();
    for _ in 0..probes {
        let series = all[rng.below(all.len() as u64) as usize];
        let (rows, time) = (&model.series[&series], first + rng.below(last - first));
        let expected = rows[..rows.partition_point(|r| r.0 <= time)].last().copied();
        assert_eq!(snapshot.as_of(series, Ts(time)).unwrap().map(|r| (r.index_time.0, r.lsn.0)), expected);
    }
    println!("as-of: {probes} random queries as expected ({:.1} s)", began.elapsed().as_secs_f64());
    let began = Instant::now();
    for _ in 0..probes {
        let (series, id) = model.ids[rng.below(model.ids.len() as u64) as usize];
        let column = if series.kind == Trade::KIND { "trade_id" } else { "order_id" };
        let found = snapshot.find(series, column, id).unwrap();
        assert!(!found.is_empty());
        found.iter().for_each(|row| model.check(row.lsn, row.record.words()));
        assert!(snapshot.find(series, column, id | 1 << 62).unwrap().is_empty());
    }
    println!("find: {probes} ids found, {probes} absent ids not found ({:.1} s)\n", began.elapsed().as_secs_f64());
}

/// Times a call in groups of 16: one call is shorter than the clock's resolution.
fn timed(label: &str, rounds: u64, mut call: impl FnMut(u64)) {
    let mut h = histogram();
    for round in 0..rounds {
        let began = Instant::now();
        (0..16).for_each(|i| call(round * 16 + i));
        h.record((began.elapsed().as_nanos() as u64 / 16).max(1)).unwrap();
    }
    print_line(label, &h);
}

fn figures(snapshot: &mut Snapshot, model: &Model, limit: f64) {
    let covered = snapshot.history().covered().0;
    let spread = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    println!("of the {covered} records in SSTables (means of 16 calls):");
    print_head();
    for (label, among) in [("get(LSN), 1,000 hot records", 1000), ("get(LSN), all records", covered)] {
        timed(label, 20_000, |i| {
            let lsn = Lsn(1 + covered / 2 * u64::from(among == 1000) + spread(i) % among);
            std::hint::black_box(snapshot.get(lsn).unwrap().unwrap());
        });
    }
    let all: Vec<Series> = snapshot.series().unwrap().into_iter().filter(|s| s.kind == Quote::KIND).collect();
    let (first, last) =
        (model.series.values().map(|r| r[0].0).min().unwrap(), model.series.values().map(|r| r[r.len() - 1].0).max().unwrap());
    let flushed = last - (last - first) / 10;
    timed("as-of, any series, any time", 10_000, |i| {
        let time = Ts(first + spread(i) % (flushed - first));
        std::hint::black_box(snapshot.as_of(all[spread(i + 7) as usize % all.len()], time).unwrap());
    });
    timed("as-of, 10 series, 1 ms of time", 10_000, |i| {
        std::hint::black_box(
            snapshot.as_of(all[spread(i) as usize % 10], Ts(first + (flushed - first) / 2 + spread(i) % 1_000_000)).unwrap(),
        );
    });
    let flushed: Vec<&(Series, u64)> = model.ids.iter().take(model.ids.len() / 10 * 8).collect();
    let column = |kind: Kind| if kind == Trade::KIND { "trade_id" } else { "order_id" };
    timed("find, present (MemTables are searched too)", 300, |i| {
        let (series, id) = flushed[spread(i) as usize % flushed.len()];
        std::hint::black_box(snapshot.find(*series, column(series.kind), *id).unwrap());
    });
    timed("find, absent", 300, |i| {
        let (series, id) = flushed[spread(i) as usize % flushed.len()];
        std::hint::black_box(snapshot.find(*series, column(series.kind), id | 1 << 62).unwrap());
    });
    scans(snapshot, model, limit);
}

fn scans(snapshot: &Snapshot, model: &Model, limit: f64) {
    println!();
    // Two passes: the first checks every block's CRC.
    for pass in ["first pass, CRCs checked", "again"] {
        let (mut columns, mut sum, mut rows) = (snapshot.columns(Quote::KIND, None, TimeRange::ALL).unwrap(), 0i64, 0u64);
        let began = Instant::now();
        while let Some(batch) = columns.next().unwrap() {
            sum = batch.values::<i64>("bid_px").unwrap().iter().fold(sum, |a, b| a.wrapping_add(*b));
            rows += batch.rows() as u64;
        }
        std::hint::black_box(sum);
        report(&format!("one column of all quotes, {pass}"), rows, 8, began, limit);
    }
    let names: Vec<&str> = Quote::SCHEMA.columns.iter().filter(|c| !c.is_reserved()).map(|c| c.name).collect();
    let (mut columns, mut sum, mut rows) = (snapshot.columns(Quote::KIND, None, TimeRange::ALL).unwrap(), 0u64, 0u64);
    let began = Instant::now();
    while let Some(batch) = columns.next().unwrap() {
        for name in &names {
            let bytes = batch.bytes(name).unwrap();
            let (words, rest) = bytes.split_at(bytes.len() / 8 * 8);
            sum = words.chunks_exact(8).fold(sum, |a, w| a.wrapping_add(u64::from_le_bytes(w.try_into().unwrap())));
            sum = rest.iter().fold(sum, |a, b| a.wrapping_add(u64::from(*b)));
        }
        rows += batch.rows() as u64;
    }
    std::hint::black_box(sum);
    report("all columns of all quotes", rows, 94, began, limit);
    let (began, mut rows) = (Instant::now(), 0u64);
    for series in model.series.keys().filter(|s| s.kind == Quote::KIND) {
        let mut scan = snapshot.scan(*series, TimeRange::ALL);
        while let Some(row) = scan.next().unwrap() {
            std::hint::black_box(row.record.words()[3]);
            rows += 1;
        }
    }
    report("scan of every series of quotes, as records", rows, 96, began, limit);
    let all = snapshot.series().unwrap();
    let busy: Vec<Series> = all.iter().copied().filter(|s| s.instrument.0 <= 10).collect();
    for (label, series) in [("replay of everything in time order", &all), ("replay of the 10 busiest instruments", &busy)] {
        let (began, mut rows, mut sum) = (Instant::now(), 0u64, 0u64);
        let mut replay = snapshot.replay(series, TimeRange::ALL);
        while let Some(row) = replay.next().unwrap() {
            sum = sum.wrapping_add(row.record.words()[3]);
            rows += 1;
        }
        std::hint::black_box(sum);
        report(label, rows, 78, began, limit);
    }
    let mut reader = Reader::open(snapshot.history().files()[0].path().parent().unwrap().parent().unwrap()).unwrap();
    let last = reader.snapshot(At::Durable).unwrap().last();
    let mut follow = reader.follow(Lsn(1), At::Durable);
    let began = Instant::now();
    while follow.poll().unwrap().is_some() {}
    assert_eq!(follow.tally().count, last.0);
    report("follow from the first record, with a checksum", last.0, 78, began, limit);
}

fn report(label: &str, rows: u64, bytes: u64, began: Instant, limit: f64) {
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    println!(
        "{label:<48}{:>9.1} M rows/s{:>8.1} GB/s{:>6.0} % of memory read",
        rate / 1e6,
        rate * bytes as f64 / 1e9,
        rate * bytes as f64 * 100.0 / limit
    );
}
