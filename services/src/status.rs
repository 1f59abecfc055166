//! Owns: `tape status`: prints the control page of the storage process.

use std::path::Path;

use tapestore::lsn::{Epoch, PublisherId};
use tapestore::reader::{At, Reader};
use tapestore::shm;
use tapestore::shm::control::{BackPressure, Control, SLOTS_MAX, SlotState, SlotView, Statistic};
use tapestore::shm::health::Trouble;
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::spill::{self, SPILLED};
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts, parse_duration};

use crate::exit::{Failure, Outcome, UNAVAILABLE, UNHEALTHY};
use crate::held_files;
use crate::output::{Format, table};
use crate::terminal::{self, thousands};

/// The numbers of the control page, by name.
fn numbers(control: &Control) -> Vec<(&'static str, u64)> {
    let counted = |which| control.statistic(which);
    vec![
        ("instance", control.instance()),
        ("timeline", control.timeline().0),
        ("term", u64::from(control.term().0)),
        ("role", control.role().0),
        ("leader", control.role().1),
        ("appended", control.appended().0),
        ("applied", control.applied().0),
        ("durable", control.durable().0),
        ("committed", control.committed().0),
        ("log_position", control.appended_position().0),
        ("durable_position", control.durable_position().0),
        ("records", counted(Statistic::Records)),
        ("frames", counted(Statistic::Frames)),
        ("log_bytes", counted(Statistic::Bytes)),
        ("syncs", counted(Statistic::Syncs)),
        ("duplicates", counted(Statistic::Duplicates)),
        ("gaps", counted(Statistic::Gaps)),
        ("malformed", counted(Statistic::Malformed)),
        ("fenced", counted(Statistic::Fenced)),
        ("instruments", counted(Statistic::Instruments)),
        ("memtables", control.tables().map_or(0, |t| t.count) as u64),
        ("memtable_bytes", counted(Statistic::MemTableLen)),
        ("memtable_used", counted(Statistic::MemTableUsed)),
        ("memtables_spilled", counted(Statistic::Spilled)),
        ("memtables_spilled_now", spilled(control)),
        ("manifest_edit", control.tables().map_or(0, |t| t.manifest)),
        ("flushed", counted(Statistic::Covered)),
        ("checkpoint_position", counted(Statistic::CheckpointPosition)),
        ("history_files", counted(Statistic::Files)),
        ("history_bytes", counted(Statistic::HistoryBytes)),
        ("flushes", counted(Statistic::Flushes)),
        ("flushed_records", counted(Statistic::FlushedRecords)),
        ("flushed_bytes", counted(Statistic::FlushedBytes)),
        ("flush_ms", counted(Statistic::FlushNs) / 1_000_000),
        ("flush_failures", counted(Statistic::FlushFailures)),
        ("merging", counted(Statistic::Merging)),
        ("merges", counted(Statistic::Merges)),
        ("merged_bytes", counted(Statistic::MergedBytes)),
        ("merge_ms", counted(Statistic::MergeNs) / 1_000_000),
        ("merge_failures", counted(Statistic::MergeFailures)),
        ("expired_records", counted(Statistic::Expired)),
        ("back_pressure_ms", counted(Statistic::BackPressureNs) / 1_000_000),
        ("no_space", counted(Statistic::NoSpace)),
        ("free_bytes", counted(Statistic::FreeBytes)),
        ("kept_free", counted(Statistic::KeptFree)),
        ("swept", counted(Statistic::Swept)),
        ("clock_steps", counted(Statistic::ClockSteps)),
        ("log_lines_lost", counted(Statistic::LogLinesLost)),
    ]
}

/// MemTables that are in the store's directory now, because shared memory is short.
fn spilled(control: &Control) -> u64 {
    let list = control.tables();
    list.map_or(0, |list| list.tables.iter().take(list.count).filter(|(id, _)| id & SPILLED != 0).count() as u64)
}

fn pressure(why: BackPressure) -> &'static str {
    match why {
        BackPressure::MemTablesFull => "MemTables full",
        BackPressure::DiskBehind => "disk behind",
        BackPressure::Halted => "halted",
        BackPressure::NoSpace => "no space (NoSpace)",
    }
}

/// Bytes that flushes and merges wrote, per byte that flushes wrote.
fn amplification(control: &Control) -> Option<f64> {
    let (flushed, merged) = (control.statistic(Statistic::FlushedBytes), control.statistic(Statistic::MergedBytes));
    (flushed > 0).then(|| (flushed + merged) as f64 / flushed as f64)
}

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
fn sentence(dir: &Path, trouble: Trouble, since: Option<Ts>) -> String {
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

/// The state of the storage process, in a word.
fn state(trouble: Option<Trouble>) -> &'static str {
    match trouble {
        Some(Trouble::Stopped | Trouble::Halted) => "stopped",
        Some(Trouble::Recovering) => "recovering",
        Some(Trouble::Silent) => "dead (no heartbeat)",
        _ => "serving",
    }
}

/// An attached publisher.
struct Attached {
    publisher: PublisherId,
    epoch: Epoch,
    slot: SlotView,
    /// When storage appended its newest record; `None` if that cannot be read.
    newest: Option<Ts>,
}

impl Attached {
    /// How long it has sent nothing, ns.
    fn silence(&self, now: Ts) -> Option<u64> {
        let newest = self.newest.filter(|_| self.slot.state == SlotState::Attached)?;
        Some(now.0.saturating_sub(newest.0))
    }

    /// That it is silent, if it has been for `limit` ns.
    fn is_silent(&self, now: Ts, limit: u64) -> Option<String> {
        let silence = self.silence(now).filter(|silence| *silence >= limit)?;
        let process = self.slot.pid.map_or_else(|| "of another container".to_owned(), |pid| pid.to_string());
        let (publisher, silence) = (self.publisher, terminal::duration(silence));
        Some(format!("publisher {publisher} (process {process}) is attached and has sent nothing for {silence}"))
    }
}

/// The attached publishers of `store`.
fn publishers(store: &Path, control: &Control) -> Vec<Attached> {
    let attached = (0..SLOTS_MAX).filter_map(|i| {
        let slot = control.slot(i);
        let (grant, publisher, epoch) = slot.holder()?;
        Some(Attached { publisher, epoch, slot: slot.view(grant)?, newest: None })
    });
    let mut attached: Vec<Attached> = attached.collect();
    if !attached.is_empty()
        && let Ok(snapshot) = Reader::open(store).and_then(|mut reader| reader.snapshot(At::Appended))
    {
        for publisher in &mut attached {
            publisher.newest = snapshot.arrival(publisher.slot.accepted_lsn).ok().flatten().map(|arrival| arrival.ingest_ts);
        }
    }
    attached
}

/// The steps of the host's clock since storage started, if any.
fn clock_step(control: &Control) -> Option<String> {
    let (count, step) = (control.statistic(Statistic::ClockSteps), control.statistic(Statistic::ClockStep).cast_signed());
    let way = if step < 0 { "back" } else { "ahead" };
    let by = terminal::duration(step.unsigned_abs());
    (count > 0).then(|| {
        format!("clock of the host: stepped {count} times, last {way} by {by}; records without a time of their own have its time")
    })
}

/// The control page of the store's newest storage process; if there has been none since the host was started, one with what
/// the files hold.
fn page(store: &Path) -> Outcome<(Control, Option<RunDir>)> {
    match RunDir::find(store).and_then(|run_dir| Ok((Control::open(&run_dir.control())?, Some(run_dir)))) {
        Ok(page) => Ok(page),
        Err(_) => Ok((Reader::open(store)?.control().clone(), None)),
    }
}

/// A note that MemTables are in the store's directory, if some are.
fn shortage(store: &Path, control: &Control, run_dir: &RunDir) -> Option<String> {
    let (free, place) = (shm::free_bytes(run_dir.path()), store.join(spill::DIR));
    let (free, place) = (thousands(free), place.display());
    (spilled(control) > 0).then(|| {
        format!(
            "shared memory is short, {free} bytes are free: MemTables are in {place}; stop processes that hold deleted files (below), or enlarge it"
        )
    })
}

/// Prints the attached publishers.
fn show(publishers: &[Attached], now: Ts) {
    let mut t = table(&["publisher", "epoch", "process", "accepted", "durable", "gaps", "state", "newest record"]);
    for Attached { publisher, epoch, slot, newest } in publishers {
        let ago = |ts: &Ts| format!("{} ago", terminal::duration(now.0.saturating_sub(ts.0)));
        t.add_row([
            publisher.to_string(),
            epoch.to_string(),
            slot.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            slot.accepted.to_string(),
            slot.durable.to_string(),
            slot.gap_count.to_string(),
            format!("{:?}", slot.state),
            newest.as_ref().map_or_else(|| "-".to_owned(), ago),
        ]);
    }
    out!("{t}");
}

/// `tape status`.
///
/// # Errors
/// No storage process serves the store (exit code 69, after printing what is available); with `--check`, also a problem of a
/// store that is served (exit code 6).
pub fn status(store: &Path, args: &Args, format: Format) -> Outcome {
    let (control, run_dir) = page(store)?;
    let control = &control;
    let trouble = control.trouble();
    let (publishers, now) = (publishers(store, control), HostClock.wall());
    let silent: Vec<String> = match args.silent_after {
        Some(limit) if trouble.is_none() => publishers.iter().filter_map(|p| p.is_silent(now, limit)).collect(),
        _ => Vec::new(),
    };
    if args.check {
        return match (trouble, silent.is_empty()) {
            (Some((trouble, since)), _) => Err(failure(store, trouble, since)),
            (None, false) => Err(Failure::new(UNHEALTHY, format!("{}: {}", store.display(), silent.join("; ")))),
            (None, true) => {
                out!("{} is served and healthy", store.display());
                Ok(())
            }
        };
    }
    let seen = Seen {
        store,
        control,
        run_dir: run_dir.as_ref(),
        trouble,
        publishers,
        silent,
        now,
        holders: holders(store, run_dir.as_ref()),
    };
    if format.json {
        out!("{}", seen.json());
    } else {
        seen.print();
    }
    match trouble {
        Some((trouble, since)) if !trouble.is_served() => Err(failure(store, trouble, since)),
        _ => Ok(()),
    }
}

/// What there is to print.
struct Seen<'s> {
    store: &'s Path,
    control: &'s Control,
    run_dir: Option<&'s RunDir>,
    trouble: Option<(Trouble, Option<Ts>)>,
    publishers: Vec<Attached>,
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

impl Seen<'_> {
    fn state(&self) -> &'static str {
        state(self.trouble.map(|(trouble, _)| trouble))
    }

    fn pressure(&self) -> Option<&'static str> {
        BackPressure::from_raw(self.control.statistic(Statistic::BackPressure)).map(pressure)
    }

    fn json(&self) -> serde_json::Value {
        let Seen { control, trouble, publishers, holders, .. } = self;
        let mut object: serde_json::Map<String, serde_json::Value> =
            numbers(control).into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
        let list = publishers.iter().map(|Attached { publisher, epoch, slot, newest }| {
            serde_json::json!({
                "publisher": publisher.0, "epoch": epoch.0, "pid": slot.pid, "accepted": slot.accepted.0, "durable": slot.durable.0,
                "gaps": slot.gap_count, "newest_record": newest.map(|ts| ts.to_string()),
            })
        });
        object.insert("state".into(), self.state().into());
        object.insert("healthy".into(), (trouble.is_none() && self.silent.is_empty()).into());
        object.insert("silent_publishers".into(), self.silent.clone().into());
        object.insert("pid".into(), control.server().into());
        object.insert("trouble".into(), trouble.map(|(t, _)| t.name()).into());
        object.insert("trouble_reason".into(), trouble.map(|(t, _)| t.reason()).into());
        object.insert("trouble_since".into(), trouble.and_then(|(_, since)| Some(since?.to_string())).into());
        object.insert("back_pressure".into(), self.pressure().into());
        object.insert("publishers".into(), list.collect());
        object.insert("pinned_bytes".into(), holders.iter().map(|p| p.bytes).sum::<u64>().into());
        object.insert("pins".into(), holders.iter().map(|p| serde_json::json!({ "pid": p.pid, "bytes": p.bytes })).collect());
        object.insert("clock_step".into(), clock_step(control).into());
        object.insert("write_amplification".into(), amplification(control).into());
        serde_json::Value::Object(object)
    }

    fn print(&self) {
        let Seen { store, control, run_dir, trouble, .. } = self;
        match trouble {
            Some((trouble, since)) => out!("PROBLEM: {}", sentence(store, *trouble, *since)),
            None if !self.silent.is_empty() => out!("PROBLEM: {}", self.silent.join("; ")),
            None => {
                out!("OK: storage serves {} and accepts records", store.display());
                self.publishers.iter().filter_map(|p| p.is_silent(self.now, SILENT)).for_each(|line| out!("  {line}"));
            }
        }
        out!("store {} is {}", store.display(), self.state());
        if let Some(pid) = control.server() {
            let age = HostClock.monotonic().saturating_sub(control.heartbeat());
            out!("  process {pid} since {}, heartbeat {} ago", control.started(), terminal::duration(age));
        }
        match run_dir {
            Some(run_dir) => out!("  run directory {}", run_dir.path().display()),
            None => {
                out!("  no storage process has served it since this host was started; these are the numbers of its files")
            }
        }
        for (name, value) in numbers(control) {
            out!("  {name:<18}{:>20}", thousands(value));
        }
        if let Some(amplification) = amplification(control) {
            out!("  write amplification since the start: {amplification:.2} (bytes of SSTables written per byte flushed)");
        }
        if let Some(short) = run_dir.and_then(|run_dir| shortage(store, control, run_dir)) {
            out!("  {short}");
        }
        if let Some(warning) = held_files::maps_warning(control.statistic(Statistic::Files)) {
            out!("  {warning}");
        }
        for holder in &self.holders {
            out!("  process {} keeps {} bytes of deleted SSTables and MemTables", holder.pid, thousands(holder.bytes));
        }
        if let Some(step) = clock_step(control) {
            out!("  {step}");
        }
        out!("  back-pressure: {}", self.pressure().unwrap_or("none"));
        show(&self.publishers, self.now);
    }
}
