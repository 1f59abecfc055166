//! Owns: what storage says of a store: its control page in Prometheus' words, and whether the process works and serves.
//!
//! What must hold: the page of an earlier process, which lies there until this one begins its own, is not taken for this one's. The
//! page stays mapped: where descriptors are gone, the numbers are still there. Every metric is in `docs/metrics.md`; a test holds both against each other.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use tapestore::shm;
use tapestore::shm::control::{BackPressure, Control, SlotState};
use tapestore::shm::health::Trouble;
use tapestore::shm::histogram::{Distribution, Histogram};
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::spill;
use tapestore::shm::status::{PublisherStatus, Role, State, Status};

use super::Source;
use super::words::{Of, Words};
use crate::{held_files, last_backup};

/// The processes that hold deleted files are looked for at most so often: it reads the maps of every process.
const HELD_AFTER: Duration = Duration::from_secs(60);

/// The store that this process serves.
pub struct Storage {
    store: PathBuf,
    page: Mutex<Option<Page>>,
    held: Mutex<Option<(Instant, Held)>>,
    /// Whether this process's page was found once.
    was_found: AtomicBool,
    /// Moments and spans of traces that were dropped.
    dropped: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// A store's run directory and control page.
#[derive(Clone, Debug)]
struct Page {
    run_dir: RunDir,
    control: Control,
}

/// What processes keep of deleted files.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bytes: u64,
    processes: u64,
}

impl Storage {
    /// The store in `store`.
    pub fn new(store: &Path) -> Storage {
        let (page, held, was_found) = (Mutex::new(None), Mutex::new(None), AtomicBool::new(false));
        Storage { store: store.to_path_buf(), page, held, was_found, dropped: Box::new(|| 0) }
    }

    /// The same; its process has dropped so many moments and spans of traces.
    #[must_use]
    pub fn dropping(self, dropped: impl Fn() -> u64 + Send + Sync + 'static) -> Storage {
        Storage { dropped: Box::new(dropped), ..self }
    }

    /// The page of this process.
    ///
    /// # Errors
    /// Why there is none: it cannot be found, or is still an earlier process's.
    fn page(&self) -> Result<Page, String> {
        let mut last = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let page = match last.take() {
            Some(page) if page.control.is_at(&page.run_dir.control()) => page,
            _ => {
                let run_dir = RunDir::find(&self.store).map_err(|error| error.to_string())?;
                let control = Control::open(&run_dir.control()).map_err(|error| error.to_string())?;
                Page { run_dir, control }
            }
        };
        let control = &page.control;
        let is_own = control.server() == Some(u64::from(std::process::id())) || !control.instance().is_multiple_of(2);
        let found = if is_own { Ok(page.clone()) } else { Err("storage starts or stops".to_owned()) };
        *last = Some(page);
        found
    }

    fn held(&self, run_dir: &RunDir) -> Held {
        let mut last = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, held)) = last.filter(|(at, _)| at.elapsed() < HELD_AFTER) {
            return held;
        }
        let (sstables, spilled) = (self.store.join(tapestore::sstable::DIR), self.store.join(spill::DIR));
        let holders = held_files::of(&[&sstables, &spilled, run_dir.path()]);
        let held = Held { bytes: holders.iter().map(|holder| holder.bytes).sum(), processes: holders.len() as u64 };
        *last = Some((Instant::now(), held));
        held
    }
}

impl Source for Storage {
    fn metrics(&self) -> Box<dyn Collector> {
        let seen = self.page().map(|Page { run_dir, control }| Seen {
            status: Status::read(&control),
            shared_free: shm::free_bytes(run_dir.path()),
            held: self.held(&run_dir),
            backup: last_backup::of(&self.store).map(|last| last.at.0),
            dropped: (self.dropped)(),
        });
        Box::new(Metrics(seen.ok()))
    }

    /// It works while its loop turns and others find its shared memory. While it starts, recovers or stops, the supervisor has to
    /// wait for it.
    fn health(&self) -> Result<(), String> {
        // A lone flag: relaxed.
        let was_found = self.was_found.load(Ordering::Relaxed);
        match self.page() {
            Ok(page) => {
                self.was_found.store(true, Ordering::Relaxed);
                match page.control.trouble() {
                    Some((trouble @ (Trouble::Halted | Trouble::Silent), _)) => Err(trouble.reason().to_owned()),
                    _ => Ok(()),
                }
            }
            Err(_) if was_found && RunDir::find(&self.store).is_err() => {
                Err("its shared memory was removed while it serves: no publisher and no reader finds it. Restart tape-storage"
                    .to_owned())
            }
            Err(_) => Ok(()),
        }
    }

    /// It is ready while nothing stops the store from accepting records.
    fn readiness(&self) -> Result<(), String> {
        match self.page()?.control.trouble() {
            None => Ok(()),
            Some((trouble, _)) => {
                let advice = trouble.advice().replace("STORE", &self.store.display().to_string());
                Err(format!("{}: {}; {advice}", trouble.name(), trouble.reason()))
            }
        }
    }
}

#[derive(Debug)]
struct Seen {
    status: Status,
    shared_free: u64,
    held: Held,
    /// When the last backup was done, ns since 1970.
    backup: Option<u64>,
    dropped: u64,
}

/// The metrics of a moment; without a page, what is known without one.
#[derive(Debug)]
struct Metrics(Option<Seen>);

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut to = Words(encoder);
        to.info("build", "The program.", &[("version", env!("CARGO_PKG_VERSION")), ("process", "storage")])?;
        let Some(seen) = &self.0 else {
            return to.gauge("healthy", "1 if the store accepts records and readers see them.", 0);
        };
        let status = &seen.status;
        to.gauge("healthy", "1 if the store accepts records and readers see them.", u64::from(status.healthy))?;
        let states = State::ALL.map(|state| (state.name(), state == status.state));
        to.one_of("state", "What the storage process does.", "state", states)?;
        let now = status.trouble.map(|now| now.trouble);
        let troubles = Trouble::ALL.map(|trouble| (trouble.name(), now == Some(trouble)));
        to.one_of("trouble", "What stops the store; see the runbook of that name.", "trouble", troubles)?;
        if let Some(process) = status.process {
            to.time("heartbeat_age", "Age of the last turn of storage's loop.", process.heartbeat_age_ns)?;
            to.gauge("starts", "Number of the store's start, odd while it recovers.", process.instance)?;
        }
        records(&mut to, status)?;
        publishers(&mut to, status)?;
        back_pressure(&mut to, status)?;
        memory_and_log(&mut to, status)?;
        history(&mut to, status)?;
        space(&mut to, seen)?;
        let backup = seen.backup.unwrap_or(0);
        to.time(
            "last_backup_timestamp",
            "When the last backup was done, since 1970; 0: never, or by an earlier release.",
            backup,
        )?;
        to.counter("traces_dropped", "Moments and spans that the collector of traces did not get.", seen.dropped)?;
        cluster(&mut to, status)?;
        distributions(&mut to, status)
    }
}

fn records(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    let ingest = &status.ingest;
    to.counter("records", "Records accepted since the start.", ingest.records)?;
    let by_kind = ingest.by_kind.iter().map(|kind| (kind.kind.to_owned(), kind.records));
    to.counters(Of::Count, ("kind_records", "The same by kind; those of all user-defined kinds are user."), "kind", by_kind)?;
    to.counter("duplicates", "Repeated records, dropped.", ingest.duplicates)?;
    let refused = [("gap", ingest.gaps), ("malformed", ingest.malformed), ("fenced", ingest.fenced)];
    let refused = refused.map(|(reason, batches)| (reason.to_owned(), batches));
    to.counters(Of::Count, ("refused_batches", "Batches refused; a gap is sent again by its publisher."), "reason", refused)?;
    let marks = status.watermarks;
    let marks = [
        ("appended", marks.appended),
        ("applied", marks.applied),
        ("durable", marks.durable),
        ("committed", marks.committed),
        ("flushed", marks.flushed),
    ];
    let marks = marks.map(|(mark, lsn)| (mark.to_owned(), lsn));
    to.gauges(Of::Count, ("watermark_lsn", "LSN of the newest record that is so far."), "watermark", marks)?;
    to.gauge("instruments", "Instruments registered.", ingest.instruments)?;
    to.gauge("user_kinds", "User-defined kinds.", ingest.kinds)?;
    to.counter("clock_steps", "Times that the host's clock was found set, or behind the store.", ingest.clock_steps)
}

/// The publishers by number. A session that was replaced keeps its slot until its process has gone: of a publisher the attached one
/// counts, else the newest.
fn newest(all: &[PublisherStatus]) -> BTreeMap<u16, &PublisherStatus> {
    let mut newest: BTreeMap<u16, &PublisherStatus> = BTreeMap::new();
    for one in all {
        let place = newest.entry(one.publisher).or_insert(one);
        if (one.state == SlotState::Attached, one.epoch) > (place.state == SlotState::Attached, place.epoch) {
            *place = one;
        }
    }
    newest
}

fn publishers(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    let all = &newest(&status.publishers);
    let attached = all.values().filter(|one| one.state == SlotState::Attached).count();
    to.gauge("publishers", "Attached publishers.", attached as u64)?;
    let of = |number: fn(&PublisherStatus) -> u64| all.values().map(move |one| (one.publisher.to_string(), number(one)));
    to.counters(Of::Count, ("publisher_records", "Number of its last record in the log."), "publisher", of(|one| one.accepted))?;
    to.counters(Of::Count, ("publisher_gaps", "Gaps found in its numbers."), "publisher", of(|one| one.gaps))?;
    let unsynced = of(|one| one.accepted.saturating_sub(one.durable));
    to.gauges(Of::Count, ("publisher_unsynced_records", "Of these, not durable yet."), "publisher", unsynced)
}

fn back_pressure(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    let pressure = status.back_pressure;
    let reasons = BackPressure::ALL.map(|why| (why.name(), pressure.why == Some(why)));
    to.one_of("back_pressure", "Why publishers wait now.", "reason", reasons)?;
    to.time_counter("back_pressure_time", "How long publishers have waited.", pressure.total_ns)?;
    to.counter("no_space", "Times that records were refused because the disk was nearly full.", status.space.refusals)
}

fn memory_and_log(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    let (memory, log, marks) = (status.memory, status.log, status.watermarks);
    to.gauge("memtables", "Live MemTables.", memory.memtables)?;
    to.gauge("memtables_spilled", "Of these, in the store's directory: shared memory is short.", memory.spilled)?;
    to.bytes("memtable_size", "Size of a MemTable.", memory.memtable_bytes)?;
    to.bytes("memtable_used", "Bytes used of the active MemTable.", memory.active_used_bytes)?;
    to.counter("frames", "Frames appended to the log.", log.frames)?;
    to.bytes_counter("log_written", "Bytes appended to the log.", log.bytes)?;
    to.counter("syncs", "Syncs of the log.", log.syncs)?;
    let unsynced = marks.appended_position.saturating_sub(marks.durable_position);
    to.bytes("log_unsynced", "Bytes of the log that are not durable.", unsynced)?;
    let to_recover = marks.appended_position.saturating_sub(marks.checkpoint_position);
    to.bytes("log_to_recover", "Bytes of the log that a start reads.", to_recover)?;
    to.counter("log_lines_lost", "Lines of the process's own log that could not be written.", log.lines_lost)
}

fn history(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    let history = status.history;
    to.gauge("sstables", "SSTables.", history.files)?;
    to.bytes("sstables", "Bytes of SSTables.", history.bytes)?;
    to.counter("flushes", "MemTables flushed.", history.flushes)?;
    to.counter("flushed_records", "Records flushed.", history.flushed_records)?;
    to.bytes_counter("flushed", "Bytes that flushes wrote.", history.flushed_bytes)?;
    to.time_counter("flush_time", "Time of flushes.", history.flush_ns)?;
    to.counter("flush_failures", "Flushes that failed and are retried.", history.flush_failures)?;
    to.gauge("merging", "1 while a merge runs.", u64::from(history.is_merging))?;
    to.counter("merges", "Merges of SSTables.", history.merges)?;
    to.bytes_counter("merged", "Bytes that merges wrote.", history.merged_bytes)?;
    to.time_counter("merge_time", "Time of merges.", history.merge_ns)?;
    to.counter("merge_failures", "Merges that failed.", history.merge_failures)?;
    to.gauge("expired_records", "Records dropped by retention, over the life of the store.", history.expired_records)
}

fn space(to: &mut Words<'_>, seen: &Seen) -> fmt::Result {
    let space = seen.status.space;
    let free = [("disk", space.free_bytes), ("shared_memory", seen.shared_free)].map(|(of, bytes)| (of.to_owned(), bytes));
    to.gauges(Of::Bytes, ("free", "Room left."), "place", free)?;
    to.bytes("kept_free", "Room on the disk below which records are refused.", space.kept_free_bytes)?;
    to.bytes("pinned", "Bytes of deleted files that processes still map.", seen.held.bytes)?;
    to.gauge("pinning_processes", "Processes that map them.", seen.held.processes)?;
    let removed = space.removed_mapped_bytes;
    to.bytes("removed_sstables", "Bytes of removed SSTables that a process of any user still maps.", removed)?;
    let over = u64::from(space.over_since.is_some());
    to.gauge("pinned_over", "1 while that is more than pinned-max.", over)?;
    to.counter("snapshot_release_requests", "Times that readers were asked to release old snapshots.", space.release_requests)
}

fn cluster(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    let cluster = status.cluster;
    to.one_of("role", "Role of this host.", "role", Role::ALL.map(|role| (role.name(), role == cluster.role)))?;
    to.gauge("leader", "Number of the leader; 0: none is known, or the store is in no cluster.", cluster.leader.unwrap_or(0))?;
    to.gauge("term", "The term: it rises with each election.", cluster.term)?;
    to.gauge("timeline", "The timeline: it rises when records are withdrawn.", cluster.timeline)
}

fn distributions(to: &mut Words<'_>, status: &Status) -> fmt::Result {
    for of in &status.distributions.0 {
        let Distribution { of: which, .. } = of;
        let (name, help, unit) = match which {
            Histogram::PublishToAppend => ("publish_to_append", "From a publisher's send to the log; one batch in 16.", None),
            Histogram::AppendToVisible => ("append_to_visible", "From the log to readers; of the same batches.", None),
            Histogram::AppendToDurable => ("append_to_durable", "From the log to the disk, of the oldest frame of a sync.", None),
            Histogram::DurableToCommitted => ("durable_to_committed", "From this disk to a majority of the hosts.", None),
            Histogram::Sync => ("sync", "Duration of a sync of the log.", None),
            Histogram::FrameRecords => ("frame_records", "Records of a frame.", None),
            Histogram::FrameBytes => ("frame_size", "Bytes of a frame.", Some(&Unit::Bytes)),
        };
        to.histogram(name, help, unit, of)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_sessions_of_a_publisher_the_attached_one_counts_and_else_the_newest() {
        let session = |publisher, epoch, state| PublisherStatus {
            publisher,
            epoch,
            pid: None,
            state,
            accepted: u64::from(epoch) * 10,
            accepted_lsn: 0,
            durable: 0,
            committed: 0,
            gaps: 0,
            newest_record: None,
        };
        let all = [
            session(7, 1, SlotState::Fenced),
            session(7, 2, SlotState::Attached),
            session(7, 3, SlotState::Refused),
            session(8, 4, SlotState::Fenced),
            session(8, 5, SlotState::Unreceived),
        ];
        let found: Vec<(u16, u32)> = newest(&all).into_iter().map(|(publisher, one)| (publisher, one.epoch)).collect();
        assert_eq!(found, [(7, 2), (8, 5)]);
    }
}
