//! Owns: `tape plan`: what a load needs of disk, memory, limits and network, beside what this host has.
//!
//! | file | owns |
//! |---|---|
//! | `load` | the load |
//! | `needs` | what it needs |

pub mod load;
pub mod needs;

use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use tapestore::disk::{Disk, RealDisk};
use tapestore::error::maps_max;
use tapestore::lsn::Durability;
use tapestore::shm::control::SLOTS_MAX;
use tapestore::shm::{free_bytes, total_bytes};
use tapestore_engine::Options;

use self::load::Load;
use self::needs::Needs;
use crate::choice;
use crate::doctor::fsync::Cost;
use crate::doctor::host::System;
use crate::exit::{Failure, IO, Outcome, USAGE};
use crate::output::Format;
use crate::terminal::{self, thousands};

/// `tape plan`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Records a second while they come
    #[arg(long)]
    rate: f64,
    /// Instruments, each with records of every kind
    #[arg(long)]
    instruments: u64,
    /// Days that are kept
    #[arg(long)]
    days: u64,
    /// Hours of a day in which records come
    #[arg(long, default_value_t = 24.0)]
    hours: f64,
    /// Kinds, separated by commas, with weights if they are not alike, like quote=9,trade=1
    #[arg(long, default_value = "trade", conflicts_with = "record_size")]
    kind: String,
    /// Bytes of a record of a kind of your own, instead of --kind
    #[arg(long, value_name = "BYTES")]
    record_size: Option<usize>,
    /// Publishers, of which each sends the same part
    #[arg(long, default_value_t = 1)]
    publishers: u64,
    /// Hosts of the cluster; 1 is a store on one host
    #[arg(long, default_value_t = 1)]
    hosts: u64,
    /// Level at which a record counts as stored
    #[arg(long, alias = "durability", value_parser = choice::durability(), default_value = "fsync")]
    level: Durability,
    /// Records that a publisher sends together
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Configuration file of tape-storage, for its sizes
    #[arg(long)]
    config: Option<PathBuf>,
    /// Size of a MemTable, like 256M [default: as tape-storage chooses it on this host]
    #[arg(long, value_parser = terminal::size)]
    memtable_size: Option<u64>,
    /// Measure what a sync costs beside the store: writes 4 MiB and syncs them some hundred times
    #[arg(long)]
    measure: bool,
}

/// A need beside what this host has.
#[derive(Clone, Debug, Serialize)]
struct Fit {
    name: &'static str,
    needed: u64,
    has: u64,
    fits: bool,
    /// What to change; `None` if it fits.
    change: Option<String>,
    #[serde(skip)]
    is_bytes: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Plan<'p> {
    rate: f64,
    instruments: u64,
    days: u64,
    hours: f64,
    kinds: Vec<Part>,
    publishers: u64,
    hosts: u64,
    level: String,
    batch: u64,
    fits: bool,
    #[serde(flatten)]
    needs: &'p Needs,
    /// What was measured of the disk, with `--measure`.
    sync_cost: Option<Cost>,
    host: &'p [Fit],
}

/// A kind of the load.
#[derive(Serialize)]
struct Part {
    kind: &'static str,
    record_bytes: usize,
    part: f64,
}

impl Args {
    fn load(&self) -> Outcome<Load> {
        let wrong = |what: &str| Err(Failure::new(USAGE, format!("{what}; tape plan --help lists what each option takes")));
        if !(self.rate > 0.0 && self.rate <= 1e9) {
            return wrong("--rate is from above 0 to a billion records a second");
        }
        if !(self.hours > 0.0 && self.hours <= 24.0) {
            return wrong("--hours is from above 0 to 24");
        }
        let bounds = [
            ("--instruments", self.instruments, u64::from(u32::MAX) - 1),
            ("--days", self.days, 100_000),
            ("--publishers", self.publishers, SLOTS_MAX as u64),
            ("--hosts", self.hosts, 32),
            ("--batch", self.batch, 4096),
        ];
        for (name, value, most) in bounds {
            if !(1..=most).contains(&value) {
                return wrong(&format!("{name} is from 1 to {most}"));
            }
        }
        let kinds = match self.record_size {
            Some(bytes) => vec![(load::sized(bytes)?, 1.0)],
            None => load::kinds(&self.kind)?,
        };
        Ok(Load {
            rate: self.rate,
            seconds_a_day: self.hours * 3600.0,
            instruments: self.instruments,
            days: self.days,
            kinds,
            publishers: self.publishers,
            hosts: self.hosts,
            level: self.level,
            batch: self.batch,
        })
    }

    fn options(&self, store: &Path) -> Outcome<Options> {
        let mut options = match &self.config {
            Some(path) => tapestore_engine::config::storage(path)?,
            None => Options::default(),
        };
        options.store = tapestore::disk::absolute(store)?;
        options.memtable_size = self.memtable_size.unwrap_or(options.memtable_size);
        Ok(options.check()?)
    }
}

/// `tape plan`.
///
/// # Errors
/// An option is out of bounds; the disk cannot be measured.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let (load, options) = (args.load()?, args.options(store)?);
    let place = options.store.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_path_buf();
    let disk = RealDisk.space(&place)?;
    let cost = match args.measure {
        true => Some(Cost::measure(&place).map_err(|e| Failure::new(IO, format!("cannot measure in {}: {e}", place.display())))?),
        false => None,
    };
    let shm = total_bytes(&options.run_root);
    let needs = Needs::of(&load, &options, (disk.total, shm), cost.as_ref())?;
    let host = compare(&load, &needs, &options, disk.free);
    if !format.json {
        print(&load, &needs, &host, cost.as_ref());
        return Ok(());
    }
    let kinds = load.kinds.iter();
    let plan = Plan {
        rate: load.rate,
        instruments: load.instruments,
        days: load.days,
        hours: args.hours,
        kinds: kinds.map(|(schema, part)| Part { kind: schema.name, record_bytes: schema.words * 8, part: *part }).collect(),
        publishers: load.publishers,
        hosts: load.hosts,
        level: load.level.to_string(),
        batch: load.batch,
        fits: host.iter().all(|fit| fit.fits),
        needs: &needs,
        sync_cost: cost,
        host: &host,
    };
    let json = serde_json::to_string(&plan).map_err(|error| Failure::new(IO, error.to_string()))?;
    out!("{json}");
    Ok(())
}

/// The needs beside what this host has.
fn compare(load: &Load, needs: &Needs, options: &Options, disk_free: u64) -> Vec<Fit> {
    let mut fits = Vec::new();
    let mut add = |name, is_bytes, needed: u64, has: u64, change: &str| {
        let change = (needed > has).then(|| change.to_owned());
        fits.push(Fit { name, needed, has, fits: needed <= has, change, is_bytes });
    };
    let total = System::new(Path::new("/")).kilobytes("/proc/meminfo", "MemTotal").unwrap_or(u64::MAX);
    let (shm, descriptors) = (total_bytes(&options.run_root), getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX));
    let maps = needs.limits.storage_maps.max(needs.limits.reader_maps);
    add(
        "rate",
        false,
        load.rate.ceil() as u64,
        needs.measured_rate,
        "larger batches (--batch), fewer hosts on one machine, or several stores",
    );
    add("instruments", false, load.instruments, options.instruments_max, "instruments-max in the configuration");
    add("disk", true, needs.disk.total, disk_free, "fewer --days (retention in the configuration), a larger disk");
    add(
        "shared-memory",
        true,
        needs.shared_memory.total,
        // A memory file system without a limit says 0.
        if shm == 0 { free_bytes(&options.run_root).max(total) } else { shm },
        "mount -o remount,size= of /dev/shm (docker run --shm-size), or a smaller memtable-size",
    );
    add(
        "memory",
        true,
        needs.memory.total + needs.shared_memory.total,
        total,
        "a smaller memtable-size or compaction.rows-max, smaller rings of publishers, or more memory",
    );
    add("open-files", false, needs.limits.storage_descriptors, descriptors, "ulimit -n, or LimitNOFILE= in the unit");
    add(
        "memory-maps",
        false,
        maps,
        maps_max().unwrap_or(u64::MAX),
        "sysctl -w vm.max_map_count=1048576, or a larger compaction.rows-max",
    );
    let rate = options.compaction.bytes_per_second;
    let rate = if rate == 0 { u64::MAX } else { rate };
    add("compaction", true, needs.disk.merged_a_second, rate, "a larger compaction.bytes-per-second");
    if let Some(appended) = needs.syncs.appended_in_longest {
        add("syncs", true, appended, options.unsynced_max, "a faster disk, or a larger unsynced-max in the configuration");
    }
    fits
}

fn line(name: &str, value: impl std::fmt::Display, note: &str) {
    out!("  {name:<24} {value:>14}  {note}");
}

/// Seconds as text.
fn seconds(value: f64) -> String {
    let ns = (value * 1e9).clamp(0.0, 9e18);
    terminal::duration(ns as u64)
}

fn print(load: &Load, needs: &Needs, host: &[Fit], cost: Option<&Cost>) {
    let kinds: Vec<String> = load
        .kinds
        .iter()
        .map(|(schema, part)| format!("{:.0} % {} of {} bytes", part * 100.0, schema.name, schema.words * 8))
        .collect();
    let misfits: Vec<&str> = host.iter().filter(|fit| !fit.fits).map(|fit| fit.name).collect();
    match misfits.is_empty() {
        true => out!("FITS: this host has what the load needs"),
        false => out!("DOES NOT FIT: {}; the last lines have what to change", misfits.join(", ")),
    }
    out!(
        "{} records in {} days ({}), {} instruments, {} publishers in batches of {}, {} hosts, level {}",
        thousands(needs.records),
        load.days,
        kinds.join(", "),
        thousands(load.instruments),
        load.publishers,
        load.batch,
        load.hosts,
        load.level
    );
    print_disk(needs);
    print_memory(needs);
    print_times(load, needs, cost);
    out!("on this host");
    for fit in host {
        let text = |value: u64| match (fit.is_bytes, value) {
            (_, u64::MAX) => "no limit".to_owned(),
            (true, value) => BinaryBytes(value).to_string(),
            (false, value) => thousands(value),
        };
        let mark = if fit.fits { "fits".to_owned() } else { format!("DOES NOT FIT: {}", fit.change.as_deref().unwrap_or("")) };
        out!("  {:<14} {:>14} of {:>14}  {mark}", fit.name, text(fit.needed), text(fit.has));
    }
}

fn print_disk(needs: &Needs) {
    let disk = &needs.disk;
    out!("disk");
    line(
        "SSTables",
        BinaryBytes(disk.sstables),
        &format!("{} a day, {:.1} bytes a record", BinaryBytes(disk.sstables_a_day), disk.sstable_bytes_a_record),
    );
    line(
        "log",
        BinaryBytes(disk.log),
        &format!("what is in MemTables, and prepared segments; {:.1} bytes a record", disk.log_bytes_a_record),
    );
    if disk.log_for_members > 0 {
        line("log for other hosts", BinaryBytes(disk.log_for_members), "cluster.retain-bytes");
    }
    line("headroom of a merge", BinaryBytes(disk.compaction), "the largest one writes this before it removes what it read");
    line("ballast, kept free", BinaryBytes(disk.ballast + disk.kept_free), "space-min");
    line("in all", BinaryBytes(disk.total), "");
    line(
        "backup",
        BinaryBytes(disk.backup_copied),
        &format!("with --copy; hard links on the same file system: {}", BinaryBytes(disk.backup_linked)),
    );
    line(
        "written a second",
        BinaryBytes(disk.written_a_second),
        "log, flushes, and merges (write amplification 2.07: bench/FIGURES.md, Compaction)",
    );
}

fn print_memory(needs: &Needs) {
    let (shared, memory, limits) = (&needs.shared_memory, &needs.memory, &needs.limits);
    out!("memory");
    line(
        "MemTables",
        BinaryBytes(shared.memtable * shared.memtables_max),
        &format!("{} of {}, in shared memory", shared.memtables_max, BinaryBytes(shared.memtable)),
    );
    line(
        "queues of publishers",
        BinaryBytes(shared.ingest_queues + shared.live_queues),
        "in shared memory; those to live subscribers once there is one",
    );
    line("instruments, control", BinaryBytes(shared.instruments + shared.control), "in shared memory");
    line("shared memory in all", BinaryBytes(shared.total), "");
    line("storage", BinaryBytes(memory.storage), "of its own, while it merges: 40 MiB and 60 bytes a row of compaction.rows-max");
    line("each publisher", BinaryBytes(memory.publisher), "of its own: its ring");
    line("open files of storage", thousands(limits.storage_descriptors), "");
    line(
        "memory maps",
        thousands(limits.storage_maps.max(limits.reader_maps)),
        &format!("a reader maps up to {} SSTables", thousands(limits.sstables)),
    );
}

fn print_times(load: &Load, needs: &Needs, cost: Option<&Cost>) {
    let (syncs, times) = (&needs.syncs, &needs.times);
    out!("syncs, network, times");
    let note = match (syncs.disk_a_second, cost) {
        (Some(disk), Some(cost)) => {
            format!(
                "this disk does {} one after the other (p50 {}, measured); waiting batches share one",
                thousands(disk),
                terminal::duration(cost.p50_ns)
            )
        }
        _ => "at most; waiting batches share one. --measure says what this disk does".to_owned(),
    };
    line("syncs a second", format!("{:.0}", syncs.wanted_a_second), &note);
    if let Some(waiting) = syncs.waiting_publisher {
        line("a waiting publisher", thousands(waiting), "records a second, if it waits for each batch");
    }
    if syncs.exposed_bytes > 0 {
        line("a loss of power loses", BinaryBytes(syncs.exposed_bytes), "at most, of what is acknowledged at this level");
    }
    if let Some(network) = needs.network {
        let note = format!(
            "a second to each other host; {} from the leader; frames of {} in messages of {} bytes, TCP and Ethernet counted",
            BinaryBytes(network.from_leader),
            network.frame,
            network.message
        );
        line("network", BinaryBytes(network.to_each), &note);
    }
    line(
        "start after a kill",
        seconds(times.recovery_seconds),
        &format!("reads {} of log, 1.7 s a GiB (bench/FIGURES.md, Start after SIGKILL)", BinaryBytes(times.recovery_log)),
    );
    line(
        "if nothing is synced",
        seconds(times.unsynced_seconds),
        &format!("until back-pressure (unsynced-max); then {} until the rings are full", seconds(times.rings_seconds)),
    );
    line(
        "if nothing is flushed",
        seconds(times.memtables_seconds),
        &format!("until the MemTables are full, {} records each", thousands(times.memtable_records)),
    );
    let note = if load.hosts > 1 {
        "bench/FIGURES.md, Several hosts: all hosts on the same two cores"
    } else {
        "bench/FIGURES.md, Live: on two cores, shared with publisher and reader"
    };
    line("measured records/s", thousands(needs.measured_rate), note);
}
