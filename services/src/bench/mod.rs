//! Owns: `tape bench`: measures a store on this machine and this disk, beside what the machine itself can do.
//!
//! | file | owns |
//! |---|---|
//! | `machine` | the limits: a handover between two cores, a sync of the disk, the disk's and the memory's speed |
//! | `paths` | the paths of a store: publish to visible, publish to durable, ingest, reads |
//!
//! What must hold: the store is a temporary one beside `--dir`, served by a process of its own, and is removed at the end, also after an
//! interrupt. Latency under load has a fixed schedule: a late record counts from when it was due. A limit is measured in the same run as
//! what it is compared with.

pub mod machine;
pub mod paths;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::demo::{check_stop, own, unless_interrupted};
use crate::exit::{Failure, IO, Outcome, USAGE};
use crate::output::{Format, table};
use crate::processes::Served;
use crate::terminal::{self, duration, thousands};

/// Room that the measurement takes: log and SSTables of so many records, and the file that the disk is measured with.
const ROOM: u64 = 6 << 30;
const ROOM_RECORDS: u64 = 20_000_000;
/// The longest time of a histogram, ns; longer ones count as this.
const LONGEST: u64 = 60_000_000_000;

/// `tape bench`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the temporary store is made: a directory of the disk that is to be measured [default: that of --store]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// About how long it takes, seconds: 1 to 3600
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Records a second while the latency of publish to visible is measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Most records of the measurement of ingest
    #[arg(long, default_value_t = 20_000_000, value_parser = clap::value_parser!(u64).range(100_000..=1_000_000_000))]
    records: u64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// What.
    pub what: &'static str,
    /// Quantiles, if it is a latency.
    pub latency: Option<Latency>,
    /// How many a second, if it is a speed.
    pub per_second: Option<f64>,
    /// The unit of the speed.
    pub unit: &'static str,
    /// The limit that it is compared with: what, and its value in the same unit, ns for a latency.
    pub limit: Option<(&'static str, f64)>,
    /// How many times the limit a latency is, or which part of the limit a speed is.
    pub ratio: Option<f64>,
}

/// Quantiles of a latency, ns.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// Of ten, nine were at most this.
    pub p90: u64,
    /// Of a hundred, 99 were.
    pub p99: u64,
    /// Of a thousand, 999 were.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl Latency {
    /// Those of `values`.
    pub fn of(values: &Histogram<u64>) -> Latency {
        let at = |quantile| values.value_at_quantile(quantile);
        Latency { count: values.len(), p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: values.max() }
    }
}

/// An empty histogram of times, ns.
///
/// # Errors
/// There is no memory.
pub fn times() -> Outcome<Histogram<u64>> {
    Histogram::new_with_bounds(1, LONGEST, 3).map_err(|error| Failure::new(IO, error.to_string()))
}

impl Measured {
    /// A latency, beside the median of its limit.
    pub fn latency(what: &'static str, values: &Histogram<u64>, limit: Option<(&'static str, u64)>) -> Measured {
        let latency = Latency::of(values);
        let limit = limit.map(|(name, ns)| (name, ns as f64));
        let ratio = limit.filter(|(_, ns)| *ns > 0.0).map(|(_, ns)| latency.p50 as f64 / ns);
        Measured { what, latency: Some(latency), per_second: None, unit: "ns", limit, ratio }
    }

    /// A speed of `per_second` `unit`, beside its limit.
    pub fn speed(what: &'static str, per_second: f64, unit: &'static str, limit: Option<(&'static str, f64)>) -> Measured {
        let ratio = limit.filter(|(_, most)| *most > 0.0).map(|(_, most)| per_second / most);
        Measured { what, latency: None, per_second: Some(per_second), unit, limit, ratio }
    }
}

/// `tape bench`.
///
/// # Errors
/// There is no room; the store or the disk fails; it was interrupted (exit code 4).
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let stop = &*terminal::stop_flag()?;
    unless_interrupted(run_until(stop, store, args, format), stop)
}

fn run_until(stop: &AtomicBool, store: &Path, args: &Args, format: Format) -> Outcome {
    let parent = store.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = args.dir.clone().unwrap_or_else(|| parent.to_path_buf());
    let free = rustix::fs::statvfs(&place)
        .map(|found| found.f_bavail * found.f_frsize)
        .map_err(|error| Failure::new(USAGE, format!("{}: {error}; choose a directory with --dir", place.display())))?;
    let room = ROOM / ROOM_RECORDS * args.records.max(ROOM_RECORDS);
    if free < room {
        let (free, room) = (indicatif::BinaryBytes(free), indicatif::BinaryBytes(room));
        let why =
            format!("{} has {free} free, and the measurement takes up to {room}; choose a directory with --dir", place.display());
        return Err(Failure::new(USAGE, why));
    }
    let temporary = tempfile::Builder::new().prefix("tape-bench-").tempdir_in(&place)?;
    let path = temporary.path().join("store");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if !format.json {
        out!("measuring on {cores} cores, in {}, for about {} s", place.display(), args.seconds);
        if cfg!(debug_assertions) {
            out!("this is a debug build: its figures are not those of a release build");
        }
    }
    let mut measured = Vec::new();
    let mut add = |one: Measured| measured.push(one);
    let share = |part: f64| args.seconds as f64 * part;
    let handover = machine::handover()?;
    let memory = machine::memory();
    let disk = machine::disk(temporary.path(), args.seconds)?;
    check_stop(stop)?;
    add(Measured::latency("handover between two cores", &handover, None));
    add(Measured::speed("sum of an array in memory", memory, "B/s", None));
    add(Measured::speed("write to the disk, synced", disk, "B/s", None));
    let mut storage = Served::new(path.clone());
    storage.start(&mut own("error", &["storage", "--with-parent"], &path)?)?;
    // Two handovers are the least: publisher to storage, storage to reader.
    let least = 2 * handover.value_at_quantile(0.5);
    let visible = paths::visible(&path, args.rate, share(0.3), stop)?;
    add(Measured::latency("publish to visible", &visible, Some(("two handovers", least))));
    let (durable, sync) = paths::durable(&path, temporary.path(), share(0.2), stop)?;
    let bare = sync.value_at_quantile(0.5);
    add(Measured::latency("write and sync of 4 KiB", &sync, None));
    add(Measured::latency("publish to durable, one at a time", &durable, Some(("write and sync", bare))));
    let ingest = paths::ingest(&path, args.records, share(0.25), stop)?;
    add(Measured::speed("ingest, batches of 100, level os", ingest.records, "records/s", None));
    add(Measured::speed("the same, bytes of log", ingest.bytes, "B/s", Some(("write to the disk", disk))));
    check_stop(stop)?;
    for one in paths::reads(&path, &ingest, share(0.1), memory, stop)? {
        add(one);
    }
    storage.stop()?;
    print(&measured, cores, format)
}

fn print(measured: &[Measured], cores: usize, format: Format) -> Outcome {
    if format.json {
        let json = serde_json::json!({ "cores": cores, "debug_build": cfg!(debug_assertions), "measured": measured });
        out!("{json}");
        return Ok(());
    }
    let mut t = table(&["latency", "p50", "p90", "p99", "p99.9", "max", "limit", "ratio"]);
    for one in measured {
        let Some(of) = one.latency else { continue };
        let limit = one.limit.map_or_else(String::new, |(name, ns)| format!("{name}, {}", duration(ns as u64)));
        let mut row = vec![one.what.to_owned()];
        row.extend([of.p50, of.p90, of.p99, of.p999, of.max].map(duration));
        row.extend([limit, one.ratio.map_or_else(String::new, |ratio| format!("{ratio:.1} x"))]);
        t.add_row(row);
    }
    out!("{t}");
    let mut t = table(&["speed", "a second", "limit", "ratio"]);
    for one in measured {
        let Some(speed) = one.per_second else { continue };
        let text = |speed: f64| match one.unit {
            "B/s" => indicatif::BinaryBytes(speed as u64).to_string(),
            unit => format!("{} {}", thousands(speed as u64), unit.trim_end_matches("/s")),
        };
        let limit = one.limit.map_or_else(String::new, |(name, most)| format!("{name}, {}", text(most)));
        let ratio = one.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} x"));
        t.add_row([one.what.to_owned(), text(speed), limit, ratio]);
    }
    out!("{t}");
    Ok(())
}
