//! Owns: `tape demo`: storage, a publisher and a reader as three processes on a temporary store; compares the published
//! records with those that the reader got from shared memory and those in the store.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tapestore::lsn::{Durability, Lsn, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::{At, Reader, Tally};
use tapestore::record::split;
use tapestore::shm::Mapping;
use tapestore::time::{Clock, HostClock};
use tapestore::wal::Body;

use crate::choice;
use crate::exit::{DIFFERENCE, Failure, INTERRUPTED, IO, LATER, Outcome, USAGE};
use crate::inspect;
use crate::load::Loader;
use crate::output::Format;
use crate::processes::{Process, Served};
use crate::source::{Rate, Source};
use crate::terminal::{self, duration, thousands};

/// Runs storage, a publisher and a reader as processes on a temporary store, with real or simulated market data, and compares
/// their records.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Run this many hosts on loopback addresses instead, and kill the leader after a third of the records
    #[arg(long)]
    pub(crate) cluster: Option<u64>,
    /// Speed: realtime (at the records' own times), a multiple like x2 or x100, or max [default: realtime for the simulated
    /// market, x100 for a file]
    #[arg(long)]
    pub(crate) rate: Option<Rate>,
    /// Keep the store and print its directory
    #[arg(long)]
    keep: bool,
    /// Durability required before a record is acknowledged. At the end all records are made durable
    #[arg(long, alias = "level", value_parser = choice::durability(), default_value = "os")]
    durability: Durability,
}

/// The publish time of every n-th record is passed to the reader, for latencies.
const SAMPLE_EVERY: u64 = 8;
/// Most publish times.
const SAMPLES_MAX: u64 = 1 << 20;
/// Interval between looks whether a process has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long to wait for a process to serve, and to end.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Percentiles, ns.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Latency {
    count: u64,
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// Report of a process of the demo.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Report {
    records: u64,
    checksum: u32,
    last: u64,
    seconds: f64,
    /// Records by the name of their kind.
    kinds: Vec<(String, u64)>,
    durable: u64,
    latency: Latency,
}

/// The command that runs this program with `arguments` on `store`; it logs at the level `log` unless `RUST_LOG` is set.
pub(crate) fn own(log: &str, arguments: &[&str], store: &Path) -> Outcome<Command> {
    let mut command = Command::new(terminal::this_program()?);
    command.args(arguments).arg("--store").arg(store).stdin(Stdio::piped()).stdout(Stdio::piped());
    // Success is printed here, once.
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", log);
    }
    command.env(terminal::LOG_FORMAT, crate::logging::form().format());
    Ok(command)
}

/// The report of a process of the demo: the last line of its output, which fits a pipe.
fn report(process: &mut Process, stop: &AtomicBool) -> Outcome<Report> {
    let no_report = |what: &str| Failure::new(DIFFERENCE, format!("the {what} process printed no report"));
    while process.ended()?.is_none() {
        check_stop(stop)?;
        std::thread::sleep(LOOK_AGAIN);
    }
    check_stop(stop)?;
    let Some(stdout) = process.take_stdout() else { return Err(no_report(process.what())) };
    let last = BufReader::new(stdout).lines().map_while(Result::ok).last().unwrap_or_default();
    process.finish()?;
    serde_json::from_str(&last).map_err(|_| no_report(process.what()))
}

/// The failure of a demo that was interrupted.
fn interrupted() -> Failure {
    Failure::new(
        INTERRUPTED,
        "interrupted: the demo has ended its processes and removed their shared memory and its temporary files",
    )
}

/// Fails if the demo was interrupted: its owners end the processes and free what they hold.
///
/// # Errors
/// Exit code 4.
pub(crate) fn check_stop(stop: &AtomicBool) -> Outcome {
    if terminal::is_raised(stop) { Err(interrupted()) } else { Ok(()) }
}

/// `outcome`; a failure of an interrupted demo is the interruption, which also the processes of the demo get.
pub(crate) fn unless_interrupted(outcome: Outcome, stop: &AtomicBool) -> Outcome {
    outcome.map_err(|failure| if terminal::is_raised(stop) { interrupted() } else { failure })
}

/// `tape demo`.
///
/// # Errors
/// The published, read and stored records differ (exit code 1); a process cannot run; it was interrupted (4).
pub fn run(store: Option<PathBuf>, args: &Args, format: Format) -> Outcome {
    let stop = &*terminal::stop_flag()?;
    unless_interrupted(run_until(stop, store, args, format), stop)
}

fn run_until(stop: &AtomicBool, store: Option<PathBuf>, args: &Args, format: Format) -> Outcome {
    let temporary = tempfile::Builder::new().prefix("tape-demo-").tempdir()?;
    let store = store.unwrap_or_else(|| temporary.path().join("store"));
    if store.join("store.meta").exists() {
        return Err(Failure::new(USAGE, format!("{} is a store already; give the demo a new directory", store.display())));
    }
    let say = |text: String| {
        if !format.json {
            out!("{text}");
        }
    };
    say(format!("store    {}{}", store.display(), if args.keep { "" } else { " (temporary)" }));
    let memtable = ["storage", "--with-parent", "--memtable-size", "256M"];
    let mut storage = Served::new(store.clone());
    storage.start(&mut own("warn", &memtable, &store)?)?;
    let times = temporary.path().join("times");
    drop(Mapping::open_or_create(&times, SAMPLES_MAX * 8)?);
    let times = times.to_string_lossy().into_owned();
    let mut reader = Process::start("reader", &mut own("warn", &["demo-reader", "--times", &times], &store)?)?;
    let arguments = publisher_arguments(args, &times);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut publisher = Process::start("publisher", &mut own("warn", &arguments, &store)?)?;
    say(format!("started  storage (pid {}), reader ({}), publisher ({})", storage.id(), reader.id(), publisher.id()));
    let published = report(&mut publisher, stop)?;
    if let Some(stdin) = reader.stdin() {
        writeln!(stdin, "{}", published.records)?;
    }
    let read = report(&mut reader, stop)?;
    storage.stop()?;
    let stored = stored(&store)?;
    let outcome = compare(&published, &read, &stored, format);
    if args.keep {
        storage.keep_memory();
        if temporary.path().starts_with(store.parent().unwrap_or(Path::new("/"))) {
            let kept = temporary.keep();
            say(format!("kept     {}; next: tape status --store {0}", kept.join("store").display()));
        } else {
            say(format!("kept     {}", store.display()));
        }
    }
    outcome
}

/// The records of the store on the disk: SSTables, and the log after them.
///
/// # Errors
/// A file is unreadable or damaged.
pub fn stored(store: &Path) -> Outcome<Tally> {
    let mut follow = Reader::open(store)?.follow(Lsn(1), At::Flushed);
    loop {
        match follow.poll() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(e) if e.is_down() => break,
            Err(e) => return Err(e.into()),
        }
    }
    let mut tally = follow.tally();
    inspect::read_log(store, |frame| {
        if let Body::Data(data) = &frame.body {
            for (lsn, record) in (frame.header.first_lsn.0..).map(Lsn).zip(split(data.records)) {
                tally.add(lsn, record?.words());
            }
        }
        Ok(())
    })?;
    Ok(tally)
}

fn publisher_arguments(args: &Args, times: &str) -> Vec<String> {
    let mut arguments: Vec<String> = ["demo-publisher", "--times", times, "--durability"].map(str::to_owned).to_vec();
    arguments.push(args.durability.to_string());
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    let source = &args.source;
    source.arguments().into_iter().for_each(|(flag, value)| add(flag, value));
    let default = if source.from.is_some() { Rate::Times(100.0) } else { Rate::Times(1.0) };
    add(
        "--rate",
        match args.rate.unwrap_or(default) {
            Rate::Max => "max".to_owned(),
            Rate::Times(t) => format!("x{t}"),
        },
    );
    arguments
}

fn compare(published: &Report, read: &Report, stored: &Tally, format: Format) -> Outcome {
    let equal = published.records == read.records
        && published.checksum == read.checksum
        && stored.count == published.records
        && stored.checksum == published.checksum
        && stored.last == Lsn(published.records)
        && published.durable == published.records;
    let rate = published.records as f64 / published.seconds.max(1e-9);
    let l = read.latency;
    if format.json {
        let kinds: serde_json::Map<String, serde_json::Value> =
            published.kinds.iter().map(|(name, n)| (name.clone(), (*n).into())).collect();
        let object = serde_json::json!({
            "published": published.records, "kinds": kinds, "read": read.records, "stored": stored.count, "equal": equal,
            "checksum": format!("{:08x}", published.checksum), "records_per_second": rate,
            "visible_ns": { "samples": l.count, "p50": l.p50, "p99": l.p99, "p99.9": l.p999, "max": l.max },
        });
        out!("{object}");
    } else {
        let line = |what: &str, n: u64, crc: u32| out!("{what}{:>12} records, checksum {crc:08x}", thousands(n));
        line("published", published.records, published.checksum);
        let kinds: Vec<String> = published.kinds.iter().map(|(name, n)| format!("{} {name}", thousands(*n))).collect();
        out!("         {}", kinds.join(", "));
        line("read     ", read.records, read.checksum);
        line("stored   ", stored.count, stored.checksum);
        out!("rate     {} records/s for {:.2} s", thousands(rate as u64), published.seconds);
        let [p50, p99, p999, max] = [l.p50, l.p99, l.p999, l.max].map(duration);
        out!(
            "visible  publish to another process: p50 {p50}, p99 {p99}, p99.9 {p999}, max {max} ({} samples)",
            thousands(l.count)
        );
        out!("equal    {}", if equal { "yes: published = read in shared memory = stored on the disk" } else { "NO" });
    }
    if equal { Ok(()) } else { Err(Failure::new(DIFFERENCE, "the published, read and stored records differ")) }
}

/// The publisher process of the demo.
#[derive(clap::Args, Debug)]
pub struct PublisherArgs {
    #[command(flatten)]
    source: Source,
    #[arg(long)]
    rate: Rate,
    #[arg(long)]
    durability: Durability,
    #[arg(long)]
    times: PathBuf,
}

/// Runs the publisher of the demo.
///
/// # Errors
/// The input or storage fails.
pub fn publisher(store: PathBuf, args: &PublisherArgs, format: terminal::LogFormat) -> Outcome {
    terminal::log(terminal::Wanted::new(None, terminal::LevelFilter::WARN), format, false);
    let times = Mapping::open(&args.times, true)?;
    let mut input = args.source.open(&|| false)?;
    let mut publisher = Publisher::open(Options { durability: args.durability, ..Options::new(store, PublisherId(1)) })?;
    let began = Instant::now();
    let mut tally = Tally::default();
    let mut loader = Loader { rate: args.rate, timed: true, ..Loader::new(&mut publisher, &|| false) };
    let (done, outcome) = loader.publish(input.as_mut(), &mut |n, due, words| {
        tally.add(Lsn(n + 1), words);
        if n.is_multiple_of(SAMPLE_EVERY) && n / SAMPLE_EVERY < SAMPLES_MAX {
            let due = HostClock.monotonic() - due.elapsed().as_nanos() as u64;
            times.u64(n / SAMPLE_EVERY * 8).store(due, Ordering::Relaxed);
        }
    });
    outcome?;
    let progress = publisher.flush(Durability::Fsync, END_TIMEOUT)?;
    let report = Report {
        records: tally.count,
        checksum: tally.checksum,
        last: tally.last.0,
        seconds: began.elapsed().as_secs_f64(),
        kinds: done.by_kind().map(|(name, n)| (name.to_owned(), n)).collect(),
        durable: progress.durable.0,
        latency: Latency::default(),
    };
    print_report(&report)
}

fn print_report(report: &Report) -> Outcome {
    out!("{}", serde_json::to_string(report).map_err(|e| Failure::new(IO, e.to_string()))?);
    Ok(())
}

/// The reader process of the demo.
#[derive(clap::Args, Debug)]
pub struct ReaderArgs {
    #[arg(long)]
    times: PathBuf,
}

/// Runs the reader of the demo: follows the store until it has read as many records as a line on standard input gives.
///
/// # Errors
/// The store cannot be read; records are missing after a time.
pub fn reader(store: &Path, args: &ReaderArgs) -> Outcome {
    let times = Mapping::open(&args.times, false)?;
    let target = Arc::new(AtomicU64::new(u64::MAX));
    let count = target.clone();
    std::thread::spawn(move || {
        let mut line = String::new();
        // The end of input without a number means that the parent process is gone.
        let n = std::io::stdin().read_line(&mut line).ok().and_then(|_| line.trim().parse().ok());
        count.store(n.unwrap_or(0), Ordering::Release);
    });
    let mut follow = Reader::open(store)?.follow(Lsn(1), At::Appended);
    let mut latency = Histogram::<u64>::new(3).map_err(|e| Failure::new(IO, e.to_string()))?;
    let mut idle = tapestore::agent::Idle::new(tapestore::agent::Wait::Adaptive);
    let mut deadline = None;
    while follow.tally().count < target.load(Ordering::Acquire) {
        if let Some(row) = follow.poll()? {
            idle.worked();
            let n = row.lsn.0 - 1;
            if n.is_multiple_of(SAMPLE_EVERY) && n / SAMPLE_EVERY < SAMPLES_MAX {
                let due = times.u64(n / SAMPLE_EVERY * 8).load(Ordering::Relaxed);
                let ns = HostClock.monotonic().saturating_sub(due);
                latency.record(ns).map_err(|e| Failure::new(IO, e.to_string()))?;
            }
            continue;
        }
        if idle.should_park() {
            follow.wait(Duration::from_millis(20));
        }
        if target.load(Ordering::Acquire) != u64::MAX && Instant::now() > *deadline.get_or_insert(Instant::now() + END_TIMEOUT) {
            return Err(Failure::new(LATER, "the last records did not arrive in time"));
        }
    }
    let tally = follow.tally();
    let latency = Latency {
        count: latency.len(),
        p50: latency.value_at_quantile(0.5),
        p99: latency.value_at_quantile(0.99),
        p999: latency.value_at_quantile(0.999),
        max: latency.max(),
    };
    print_report(&Report { records: tally.count, checksum: tally.checksum, last: tally.last.0, latency, ..Report::default() })
}
