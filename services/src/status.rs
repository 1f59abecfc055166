//! Owns: `tape status`: prints what the control page says, what is wrong first.

use std::path::Path;

use tapestore::lsn::Lsn;
use tapestore::reader::{At, Reader};
use tapestore::shm;
use tapestore::shm::control::{Control, SlotState};
use tapestore::shm::health::Trouble;
use tapestore::shm::histogram::Unit;
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::spill;
use tapestore::shm::status::{PublisherStatus, Role, State, Status, Watermarks};
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts, parse_duration};

use crate::exit::{Failure, IO, Outcome, UNAVAILABLE, UNHEALTHY};
use crate::output::{Format, table};
use crate::terminal::{self, thousands};
use crate::{held_files, last_backup};

/// `tape status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print one line, and exit with 0 if the store is healthy, 6 if it is served with a problem, 69 if no storage process
    /// serves it
    #[arg(long)]
    check: bool,
    /// A publisher that is attached and has sent no record for this long is a problem, like 90s or 5m [default: it is only
    /// named, after a minute]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    silent_after: Option<u64>,
}

/// How long a publisher is silent before it is named.
const SILENT: u64 = 60 * NANOS_PER_SECOND;

/// The problem of the store `dir`, and what to do, as a sentence.
pub(crate) fn sentence(dir: &Path, trouble: Trouble, since: Option<Ts>) -> String {
    if let (Trouble::Stopped, Err(error)) = (trouble, RunDir::find(dir)) {
        return error.to_string();
    }
    let since = since.map_or_else(String::new, |ts| format!(", since {ts}"));
    let advice = trouble.advice().replace("STORE", &dir.display().to_string());
    format!("{trouble}{since}; {advice}")
}

/// The exit code and message of `trouble`.
fn failure(dir: &Path, trouble: Trouble, since: Option<Ts>) -> Failure {
    let code = if trouble.is_served() { UNHEALTHY } else { UNAVAILABLE };
    Failure::new(code, format!("{}: {}", dir.display(), sentence(dir, trouble, since)))
}

/// How long `publisher` has sent nothing, ns.
fn silence(publisher: &PublisherStatus, now: Ts) -> Option<u64> {
    let newest = publisher.newest_record.filter(|_| publisher.state == SlotState::Attached)?;
    Some(now.0.saturating_sub(newest.0))
}

/// That `publisher` is silent, if it has been for `limit` ns.
fn is_silent(publisher: &PublisherStatus, now: Ts, limit: u64) -> Option<String> {
    let silence = silence(publisher, now).filter(|silence| *silence >= limit)?;
    let process = publisher.pid.map_or_else(|| "of another container".to_owned(), |pid| pid.to_string());
    let (publisher, silence) = (publisher.publisher, terminal::duration(silence));
    Some(format!("publisher {publisher} (process {process}) is attached and has sent nothing for {silence}"))
}

/// Looks up when the newest records of the attached publishers came.
pub(crate) fn look_up_newest(store: &Path, publishers: &mut [PublisherStatus]) {
    if !publishers.is_empty()
        && let Ok(snapshot) = Reader::open(store).and_then(|mut reader| reader.snapshot(At::Appended))
    {
        for publisher in publishers {
            let arrival = snapshot.arrival(Lsn(publisher.accepted_lsn)).ok().flatten();
            publisher.newest_record = arrival.map(|arrival| arrival.ingest_ts);
        }
    }
}

/// The steps of the host's clock since storage started, if any.
fn clock_step(status: &Status) -> Option<String> {
    let (count, step) = (status.ingest.clock_steps, status.ingest.last_clock_step_ns);
    let way = if step < 0 { "back" } else { "ahead" };
    let by = terminal::duration(step.unsigned_abs());
    (count > 0).then(|| {
        format!("clock of the host: stepped {count} times, last {way} by {by}; records without a time of their own have its time")
    })
}

/// The control page of the store's newest storage process; if there has been none since the host was started, one with what
/// the files hold.
pub(crate) fn page(store: &Path) -> Outcome<(Control, Option<RunDir>)> {
    match RunDir::find(store).and_then(|run_dir| Ok((Control::open(&run_dir.control())?, Some(run_dir)))) {
        Ok(page) => Ok(page),
        Err(_) => Ok((Reader::open(store)?.control().clone(), None)),
    }
}

/// A note that MemTables are in the store's directory, if some are.
fn shortage(store: &Path, status: &Status, run_dir: &RunDir) -> Option<String> {
    let (free, place) = (shm::free_bytes(run_dir.path()), store.join(spill::DIR));
    let (free, place) = (thousands(free), place.display());
    (status.memory.spilled > 0).then(|| {
        format!(
            "shared memory is short, {free} bytes are free: MemTables are in {place}; stop processes that hold deleted files (below), or enlarge it"
        )
    })
}

/// `tape status`.
///
/// # Errors
/// No storage process serves the store (exit code 69, after printing what is available); with `--check`, also a problem of a
/// store that is served (exit code 6).
pub fn status(store: &Path, args: &Args, format: Format) -> Outcome {
    let (control, run_dir) = page(store)?;
    let mut status = Status::read(&control);
    let trouble = status.trouble;
    look_up_newest(store, &mut status.publishers);
    let now = HostClock.wall();
    let silent: Vec<String> = match args.silent_after {
        Some(limit) if trouble.is_none() => status.publishers.iter().filter_map(|p| is_silent(p, now, limit)).collect(),
        _ => Vec::new(),
    };
    status.healthy &= silent.is_empty();
    if args.check {
        return match (trouble, silent.is_empty()) {
            (Some(now), _) => Err(failure(store, now.trouble, now.since)),
            (None, false) => Err(Failure::new(UNHEALTHY, format!("{}: {}", store.display(), silent.join("; ")))),
            (None, true) => {
                out!("{} is served and healthy", store.display());
                Ok(())
            }
        };
    }
    let holders = holders(store, run_dir.as_ref());
    let seen = Seen { store, status, run_dir: run_dir.as_ref(), silent, now, holders };
    if format.json {
        let json = serde_json::to_string(&seen.json()).map_err(|error| Failure::new(IO, error.to_string()))?;
        out!("{json}");
    } else {
        seen.print();
    }
    match trouble {
        Some(now) if !now.trouble.is_served() => Err(failure(store, now.trouble, now.since)),
        _ => Ok(()),
    }
}

/// What there is to print.
struct Seen<'s> {
    store: &'s Path,
    status: Status,
    run_dir: Option<&'s RunDir>,
    /// The publishers that are a problem, because they are silent.
    silent: Vec<String>,
    now: Ts,
    /// Processes that keep deleted files.
    holders: Vec<held_files::Holder>,
}

fn holders(store: &Path, run_dir: Option<&RunDir>) -> Vec<held_files::Holder> {
    let (sstables, spilled) = (store.join(tapestore::sstable::DIR), store.join(spill::DIR));
    let places = [Some(sstables.as_path()), Some(&spilled), run_dir.map(RunDir::path)];
    held_files::of(&places.into_iter().flatten().collect::<Vec<_>>())
}

/// A line of a group: what, how much, and what that means.
fn line(name: &str, value: impl std::fmt::Display) {
    out!("  {name:<22} {value}");
}

/// `ns` as a mean of `count`.
fn mean(ns: u64, count: u64) -> String {
    ns.checked_div(count).map_or_else(|| "-".to_owned(), terminal::duration)
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Json<'s> {
    store: String,
    run_directory: Option<String>,
    #[serde(flatten)]
    status: &'s Status,
    silent_publishers: &'s [String],
    pins: Vec<Pin>,
    pinned_bytes: u64,
    last_backup: Option<Backup>,
}

/// The last backup.
#[derive(serde::Serialize)]
struct Backup {
    at: String,
    to: String,
}

/// A process that keeps deleted files.
#[derive(serde::Serialize)]
struct Pin {
    pid: u32,
    bytes: u64,
}

impl Seen<'_> {
    /// The status, with what the control page does not know.
    fn json(&self) -> Json<'_> {
        let Seen { store, status, holders, .. } = self;
        Json {
            store: store.display().to_string(),
            run_directory: self.run_dir.map(|run_dir| run_dir.path().display().to_string()),
            status,
            silent_publishers: &self.silent,
            pins: holders.iter().map(|holder| Pin { pid: holder.pid, bytes: holder.bytes }).collect(),
            pinned_bytes: holders.iter().map(|holder| holder.bytes).sum(),
            last_backup: last_backup::of(store).map(|last| Backup { at: last.at.to_string(), to: last.to.display().to_string() }),
        }
    }

    /// What is wrong comes first.
    fn print(&self) {
        let Seen { store, status, .. } = self;
        match status.trouble {
            Some(now) => out!("PROBLEM: {}", sentence(store, now.trouble, now.since)),
            None if !self.silent.is_empty() => out!("PROBLEM: {}", self.silent.join("; ")),
            None => {
                out!("OK: storage serves {} and accepts records", store.display());
                status.publishers.iter().filter_map(|p| is_silent(p, self.now, SILENT)).for_each(|line| out!("  {line}"));
            }
        }
        self.print_process();
        self.print_records();
        self.print_work();
        self.print_latencies();
        self.print_publishers();
    }

    fn print_process(&self) {
        let Seen { store, status, run_dir, .. } = self;
        match (status.process, status.state) {
            (_, State::Dead) => out!("storage is dead (no heartbeat)"),
            (_, state) => out!("storage is {}", state.name()),
        }
        if let Some(process) = status.process {
            let age = terminal::duration(process.heartbeat_age_ns);
            line(
                "process",
                format!("{}, since {}, start {}, heartbeat {age} ago", process.pid, process.started, process.instance),
            );
        }
        match run_dir {
            Some(run_dir) => line("run directory", run_dir.path().display()),
            None => {
                out!("  no storage process has served it since this host was started; these are the numbers of its files")
            }
        }
        if let Some(short) = run_dir.and_then(|run_dir| shortage(store, status, run_dir)) {
            out!("  {short}");
        }
        if let Some(warning) = held_files::maps_warning(status.history.files) {
            out!("  {warning}");
        }
        for holder in &self.holders {
            out!("  process {} keeps {} bytes of deleted SSTables and MemTables", holder.pid, thousands(holder.bytes));
        }
        if let Some(line) = pinned(status, self.now) {
            out!("  {line}");
        }
        if let Some(step) = clock_step(status) {
            out!("  {step}");
        }
        let cluster = status.cluster;
        if cluster.role != Role::Alone {
            let leader = cluster.leader.map_or_else(|| "no leader".to_owned(), |leader| format!("leader {leader}"));
            let lossy = if cluster.is_lossy { ", committed records may be in memories alone" } else { "" };
            line("role", format!("{}, {leader}, term {}{lossy}", cluster.role.name(), cluster.term));
        }
    }

    fn print_records(&self) {
        let Watermarks { appended, applied, durable, committed, flushed, .. } = self.status.watermarks;
        let behind = |lsn: u64, what: &str| match appended.saturating_sub(lsn) {
            0 => format!("{:>20}", thousands(lsn)),
            n => format!("{:>20}  {} behind: {what}", thousands(lsn), thousands(n)),
        };
        out!("records");
        line("appended", format!("{:>20}", thousands(appended)));
        line("visible", behind(applied, "readers do not see them yet"));
        line("durable", behind(durable, "a loss of power can lose them"));
        line("committed", behind(committed, "a majority of the hosts does not have them yet"));
        line("in SSTables", behind(flushed, "in MemTables"));
        let ingest = &self.status.ingest;
        out!("since the start");
        line("accepted", thousands(ingest.records));
        for kind in &ingest.by_kind {
            line(&format!("  {}", kind.kind), thousands(kind.records));
        }
        let refused = [(ingest.gaps, "gaps"), (ingest.malformed, "malformed"), (ingest.fenced, "fenced")];
        let refused: Vec<String> =
            refused.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{} {why}", thousands(*n))).collect();
        line("batches refused", if refused.is_empty() { "0".to_owned() } else { refused.join(", ") });
        line("repeats dropped", thousands(ingest.duplicates));
        let pressure = self.status.back_pressure;
        let now = pressure.why.map_or_else(|| "none now".to_owned(), |why| format!("{}, now", why.name()));
        line("back-pressure", format!("{now}; {} in all", terminal::duration(pressure.total_ns)));
        line("instruments, kinds", format!("{}, {} of users", thousands(ingest.instruments), thousands(ingest.kinds)));
    }

    fn print_work(&self) {
        let Status { log, memory, history, space, watermarks, .. } = &self.status;
        out!("log, MemTables, SSTables");
        let frames = log.bytes.checked_div(log.frames).unwrap_or(0);
        line(
            "log",
            format!("{} in {} frames of {frames} bytes, {} syncs", bytes(log.bytes), thousands(log.frames), thousands(log.syncs)),
        );
        line("log to recover", bytes(watermarks.appended_position.saturating_sub(watermarks.checkpoint_position)));
        let spilled = if memory.spilled > 0 { format!(", {} of them on disk", memory.spilled) } else { String::new() };
        line(
            "MemTables",
            format!(
                "{} of {}{spilled}, the active one holds {}",
                memory.memtables,
                bytes(memory.memtable_bytes),
                bytes(memory.active_used_bytes)
            ),
        );
        line("SSTables", format!("{} files, {}", thousands(history.files), bytes(history.bytes)));
        let failed = |n: u64| if n > 0 { format!(", {} failed", thousands(n)) } else { String::new() };
        line(
            "flushes",
            format!(
                "{}, {}, {} each{}",
                thousands(history.flushes),
                bytes(history.flushed_bytes),
                mean(history.flush_ns, history.flushes),
                failed(history.flush_failures)
            ),
        );
        let running = if history.is_merging { ", one now" } else { "" };
        line(
            "merges",
            format!(
                "{}, {}, {} each{running}{}",
                thousands(history.merges),
                bytes(history.merged_bytes),
                mean(history.merge_ns, history.merges),
                failed(history.merge_failures)
            ),
        );
        if let Some(amplification) = history.write_amplification {
            line("write amplification", format!("{amplification:.2} (bytes of SSTables written per byte flushed)"));
        }
        if history.expired_records > 0 {
            line("expired records", thousands(history.expired_records));
        }
        // A store that no process serves has no numbers of it.
        if space.kept_free_bytes > 0 {
            line("disk", format!("{} free, {} kept free", bytes(space.free_bytes), bytes(space.kept_free_bytes)));
        }
        if let Some(last) = last_backup::of(self.store) {
            let ago = terminal::duration(self.now.0.saturating_sub(last.at.0));
            line("last backup", format!("{ago} ago, into {}", last.to.display()));
        }
        if log.lines_lost > 0 {
            line("log lines lost", thousands(log.lines_lost));
        }
    }

    /// Quantiles of what has been measured.
    fn print_latencies(&self) {
        let measured = self.status.distributions.0.iter().filter(|one| one.count() > 0 && one.of.unit() == Unit::Time);
        let mut t = table(&["latency since the start", "p50", "p90", "p99", "p99.9", "measured"]);
        let mut has_one = false;
        for one in measured {
            has_one = true;
            let at = |quantile| one.quantile(quantile).map_or_else(|| "> 15 s".to_owned(), terminal::duration);
            t.add_row([one.of.name().replace('_', " "), at(0.5), at(0.9), at(0.99), at(0.999), thousands(one.count())]);
        }
        if has_one {
            out!("{t}");
        }
    }

    fn print_publishers(&self) {
        let mut t = table(&["publisher", "epoch", "process", "accepted", "durable", "gaps", "state", "newest record"]);
        for of in &self.status.publishers {
            let ago = |ts: &Ts| format!("{} ago", terminal::duration(self.now.0.saturating_sub(ts.0)));
            t.add_row([
                of.publisher.to_string(),
                of.epoch.to_string(),
                of.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                of.accepted.to_string(),
                of.durable.to_string(),
                of.gaps.to_string(),
                of.state.name().to_owned(),
                of.newest_record.as_ref().map_or_else(|| "-".to_owned(), ago),
            ]);
        }
        out!("{t}");
    }
}

/// What readers keep of removed SSTables, if it is much.
fn pinned(status: &Status, now: Ts) -> Option<String> {
    let space = status.space;
    let since = terminal::duration(now.0.saturating_sub(space.over_since?.0));
    Some(format!(
        "readers keep {} of removed SSTables on the disk, more than pinned-max, for {since}: they were asked to release old snapshots. \
         A process that does not read does not notice: end it, or restart it",
        bytes(space.removed_mapped_bytes)
    ))
}

/// `count` bytes for people.
fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
