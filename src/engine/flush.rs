//! Owns: the flush of sealed MemTables to SSTables, and the flush agent, which does it off the ingest thread.
//!
//! A sealed table becomes one SSTable per kind and window of index time, and one edit of the manifest that names them and
//! the place from which the log goes on. Then the table is dropped from the control page and unlinked, and the log's
//! segments before that place are recycled.
//!
//! What must hold: only records that are durable here and committed are flushed. Files and their names are durable before the
//! edit, and the edit before anything that it replaces is removed. A failed flush is tried again with new files, and leaves
//! none behind. Memory is one block, at most 60 bytes a row of a file, four a row of the table, and the rows of one series.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::clock::Watch;
use super::compact::Outcome;
use super::flush_source::Rows;
use super::history::{History, Next};
use super::memtables::Sealed;
use super::pinned::Removals;
use super::scheduler::Scheduler;
use super::space::Room;
use super::watermarks::Watermarks;
use crate::compaction::merge::{Merged, Unpaced};
use crate::compaction::retention::Rules;
use crate::compaction::{Merge, Options, newest};
use tapestore::agent::Stop;
use tapestore::disk::Disk;
use tapestore::error::Result;
use tapestore::lsn::Position;
use tapestore::manifest::{Edit, Manifest};
use tapestore::memtable::Table;
use tapestore::record::{Kind, Series, schema};
use tapestore::sabotage::{self, Sabotage};
use tapestore::shm::bell::{Bell, Bells};
use tapestore::shm::control::{Control, Statistic, TABLES_MAX};
use tapestore::shm::run_dir::RunDir;
use tapestore::sstable::{FileMeta, Spec, file_name};
use tapestore::time::Clock;
use tapestore::wal::{self, Spare};

/// Flushes MemTables.
pub struct Flusher {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    segment_size: u64,
    history: History,
    run_dir: RunDir,
    instance: u64,
    control: Control,
}

/// A table whose records are in SSTables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// The table.
    pub table: u64,
    /// The edit of the manifest.
    pub seq: u64,
}

/// Parts of a flusher.
pub(super) struct Parts {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) store_id: u128,
    pub(super) segment_size: u64,
    pub(super) manifest: Manifest,
    pub(super) run_dir: RunDir,
    pub(super) instance: u64,
    pub(super) control: Control,
}

impl Flusher {
    /// A flusher over the manifest that is on the disk.
    pub(super) fn new(parts: Parts) -> Flusher {
        let Parts { disk, dir, store_id, segment_size, manifest, run_dir, instance, control } = parts;
        let history = History::new(disk.clone(), dir.clone(), store_id, manifest);
        let this = Flusher { disk, dir, store_id, segment_size, history, run_dir, instance, control };
        this.show();
        this
    }

    /// Skips the numbers of files in the directory, so that none is given again.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`] if the directory cannot be read.
    pub fn skip_known_ids(&mut self) -> Result<()> {
        self.history.skip_known_ids()
    }

    /// Reports removed SSTables to `removals` from now on.
    pub(super) fn report_to(&mut self, removals: Removals) {
        self.history.report_to(removals);
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.history.manifest
    }

    /// Publishes the state of the manifest on the control page.
    fn show(&self) {
        let state = self.history.manifest.state();
        self.control.set_statistic(Statistic::Expired, state.expired);
        self.control.set_statistic(Statistic::Files, state.files.len() as u64);
        self.control.set_statistic(Statistic::HistoryBytes, state.files.values().map(|f| f.len).sum());
        self.control.set_statistic(Statistic::Covered, state.covered().0);
        self.control.set_statistic(Statistic::CheckpointPosition, state.checkpoint.position.0);
    }

    /// Removes files that no edit names, which an interrupted flush or merge has left. Call it when the log from the
    /// checkpoint on has been read without damage.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`] if a file cannot be removed.
    pub fn sweep(&mut self) -> Result<usize> {
        self.history.sweep()
    }

    /// Runs one merge on the calling thread, if one is due; returns whether it was. A running store merges on a thread of
    /// its own.
    ///
    /// # Errors
    /// The error of a file, with its name; nothing has changed then.
    pub fn compact_one(&mut self, options: &Options, rules: &Rules) -> Result<bool> {
        let now = newest(self.history.manifest.state());
        let merged = self.history.compact_one(options, rules, now, &mut Unpaced)?;
        if let Some(merged) = &merged {
            self.count(merged, 0);
        }
        Ok(merged.is_some())
    }

    /// Replaces the inputs of a merge, which took `ns`, by its outputs.
    fn replace(&mut self, merged: &Merged, ns: u64) -> Result<u64> {
        self.history.replace(merged)?;
        self.count(merged, ns);
        Ok(self.history.manifest.state().seq)
    }

    fn count(&self, merged: &Merged, ns: u64) {
        self.control.add(Statistic::Merges, 1);
        self.control.add(Statistic::MergedBytes, merged.bytes());
        self.control.add(Statistic::MergeNs, ns);
        self.show();
    }

    /// Drops the files whose retention has ended; returns the edit, if there were any.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`]: it is then unknown whether the edit was made, and all files stay.
    pub fn expire(&mut self, rules: &Rules) -> Result<Option<u64>> {
        let dropped = self.history.expire(rules)?;
        if dropped.is_empty() {
            return Ok(None);
        }
        let (rows, bytes) = dropped.iter().fold((0, 0), |(r, b), f| (r + f.rows, b + f.len));
        tracing::info!(
            name: "retention.files_removed", files = dropped.len(), rows, bytes,
            "SSTables are removed: their retention has ended"
        );
        self.show();
        Ok(Some(self.history.manifest.state().seq))
    }

    /// Flushes `sealed`, whose records are durable in the log.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`]: nothing is flushed, and no file is left that no edit may name.
    pub fn file(&mut self, sealed: &Sealed, clock: &dyn Clock) -> Result<Flushed> {
        let began = clock.monotonic();
        // Resolves a failed edit first: its files would pile up while the manifest cannot be written.
        self.history.resolve()?;
        let mut made = Vec::new();
        let written = self.write_files(sealed, &mut made);
        let synced = written.and_then(|()| if made.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.history.files_dir()) });
        if let Err(error) = synced {
            self.history.remove(made.iter().flat_map(|f| self.history.names_of(f)).collect());
            return Err(error);
        }
        let (rows, bytes) = (made.iter().map(|f| f.rows).sum::<u64>(), made.iter().map(|f| f.len).sum());
        assert!(rows == sealed.last.0 + 1 - sealed.base.0, "{rows} of the records {} to {} flushed", sealed.base, sealed.last);
        let known = &self.history.manifest.state().publishers;
        let publishers = sealed.mark.publishers.iter().filter(|(p, s)| known.get(p) != Some(s)).copied().collect();
        let edit = Edit {
            added: made.clone(),
            removed: Vec::new(),
            checkpoint: Some(sealed.mark.chain),
            publishers,
            names: sealed.mark.names.clone(),
            kinds: sealed.mark.kinds.clone(),
            expired: 0,
        };
        self.history.edit(edit)?;
        self.show();
        let ns = clock.monotonic() - began;
        self.control.add(Statistic::Flushes, 1);
        self.control.add(Statistic::FlushedRecords, rows);
        self.control.add(Statistic::FlushedBytes, bytes);
        self.control.add(Statistic::FlushNs, ns);
        tracing::debug!(
            name: "flush.finished", table = sealed.id, rows, bytes, files = made.len(), ms = ns / 1_000_000,
            "flushed a MemTable"
        );
        Ok(Flushed { table: sealed.id, seq: self.history.manifest.state().seq })
    }

    fn write_files(&mut self, sealed: &Sealed, made: &mut Vec<FileMeta>) -> Result<()> {
        if sealed.last < sealed.base {
            return Ok(());
        }
        let table = Table::open(&self.run_dir.memtable(self.instance, sealed.id), self.store_id)?;
        let source = Rows::new(&table, sealed.last);
        let mut kinds: BTreeMap<Kind, Vec<Series>> = BTreeMap::new();
        for series in table.series() {
            kinds.entry(series.kind).or_default().push(series);
        }
        for (kind, mut series) in kinds {
            series.sort_unstable();
            let Some(schema) = schema(kind) else { continue };
            for window in source.windows(&series) {
                let id = self.history.manifest.take_id();
                let mut spec = Spec { store_id: self.store_id, id, schema, window, stores_reserved: false };
                // Listed from here on: all of it that is on the disk is removed if this fails.
                let place = made.len();
                made.push(unfinished(&spec));
                let mut meta = source.write(self.disk.as_ref(), &self.history.files_dir(), spec, &series)?;
                if meta.is_none() {
                    // Reserved bytes are not zero: the file is made again with them.
                    spec = Spec { id: self.history.manifest.take_id(), stores_reserved: true, ..spec };
                    self.history.remove(made.pop().iter().flat_map(|f| self.history.names_of(f)).collect());
                    made.push(unfinished(&spec));
                    meta = source.write(self.disk.as_ref(), &self.history.files_dir(), spec, &series)?;
                }
                if let (Some(at), Some(meta)) = (made.get_mut(place), meta) {
                    *at = meta;
                }
            }
        }
        Ok(())
    }

    /// The log's segments that lie wholly before the checkpoint, the earliest first.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`] if the directory cannot be read.
    pub fn passed_segments(&self) -> Result<Vec<Position>> {
        let Position(mut end) = self.history.manifest.state().checkpoint.position;
        if sabotage::is(Sabotage::RecycleEarly) {
            end += self.segment_size;
        }
        let names = self.disk.list(&self.dir.join(wal::DIR))?;
        let firsts = names.iter().filter_map(|n| wal::format::segment_first(n));
        Ok(firsts.filter(|first| first.0 + self.segment_size <= end).collect())
    }

    /// Unlinks the shared memory of table `id`, which no version names any more.
    pub fn unlink(&self, id: u64) {
        let path = self.run_dir.memtable(self.instance, id);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(
                name: "memtable.not_removed", path = %path.display(), %error,
                "an unused MemTable cannot be removed; it stays until the next start"
            );
        }
    }

    /// Removes all passed segments from the log and from the disk.
    #[cfg(test)]
    pub(super) fn recycle_all(&self) -> Result<()> {
        for first in self.passed_segments()? {
            self.disk.remove(self.recycle(first)?.path())?;
        }
        Ok(())
    }

    /// The same for passed segments that no other host may still ask for.
    #[cfg(test)]
    pub(super) fn recycle_before(&self, needed: Position) -> Result<()> {
        for first in self.passed_segments()?.into_iter().filter(|first| first.0 + self.segment_size <= needed.0) {
            self.disk.remove(self.recycle(first)?.path())?;
        }
        Ok(())
    }

    /// Takes the segment that begins at `first` out of the log, to be recycled.
    fn recycle(&self, first: Position) -> Result<Spare> {
        let dir = self.dir.join(wal::DIR);
        wal::recycle(self.disk.as_ref(), &dir, first)
    }
}

/// Metadata of a file before it is finished.
fn unfinished(spec: &Spec) -> FileMeta {
    let (id, kind, window) = (spec.id, spec.schema.kind, spec.window);
    FileMeta { id, kind, window, rows: 0, len: 0, crc: 0, time: Default::default(), lsn: Default::default() }
}

/// Work for the flush agent.
pub(super) enum FlushItem {
    /// A table to flush.
    Sealed(Box<Sealed>),
    /// A table that no version names any more.
    Retired(u64),
}

/// Pause after a failed flush.
const RETRY: Duration = Duration::from_secs(1);
/// Pause after a failed merge.
const MERGE_RETRY: Duration = Duration::from_secs(10);
/// Interval between checks whether the log is durable, and of the stop flag.
const TURN: Duration = Duration::from_millis(5);

/// The flush agent.
pub(super) struct FlushAgent {
    pub(super) flusher: Flusher,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) items: Receiver<FlushItem>,
    /// Tables that recovery has sealed, and those that wait to be durable.
    pub(super) waiting: VecDeque<Box<Sealed>>,
    pub(super) notices: Sender<FlushNotice>,
    pub(super) spares: Sender<Spare>,
    /// Up to where the log is committed, and from where other hosts may still ask for it.
    pub(super) watermarks: Arc<Watermarks>,
    pub(super) bells: Bells,
    pub(super) stop: Stop,
    pub(super) room: Arc<Room>,
    /// Whether the current series of failed flushes has been logged.
    pub(super) is_failing: bool,
    pub(super) scheduler: Scheduler,
    /// Watches the host's clock.
    pub(super) watch: Watch,
}

/// A notice to ingest, which publishes it to readers.
pub(super) enum FlushNotice {
    /// A table's records are in SSTables.
    Flushed(Flushed),
    /// The manifest has a newer edit.
    Edited(u64),
}

/// Most notices of edits that wait: ingest does not need them at once.
const EDITED_MAX: usize = 4;
/// Most notices that wait for ingest.
pub(super) const NOTICES_MAX: usize = TABLES_MAX + EDITED_MAX;

/// The wall clock has jumped if it moves against the monotonic one by this, ns.
const JUMP: u64 = 3_600_000_000_000;
/// Files that could not be merged are skipped for this long.
const SKIP: Duration = Duration::from_secs(3600);
/// Interval of looks for rows that have expired.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl FlushAgent {
    /// Runs until it is stopped; returns the flusher.
    pub(super) fn run(mut self) -> Flusher {
        while !self.stop.is_stopped() {
            self.watch.look(self.clock.as_ref(), &self.flusher.control);
            match self.items.recv_timeout(if self.waiting.is_empty() { 20 * TURN } else { TURN }) {
                Ok(FlushItem::Sealed(sealed)) => self.waiting.push_back(sealed),
                Ok(FlushItem::Retired(id)) => self.flusher.unlink(id),
                Err(RecvTimeoutError::Timeout) => {}
                // Ingest has ended: what is not flushed stays in the log.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TURN),
            }
            if self.waiting.front().is_some_and(|s| self.is_durable(s)) {
                self.file();
            }
            if self.scheduler.change() {
                self.flusher.history.forget_looks();
            }
            if let Ok(outcome) = self.scheduler.done.try_recv() {
                self.set_merging(false);
                self.merged(outcome);
            }
            if !self.scheduler.is_merging && self.scheduler.is_new && self.clock.monotonic() >= self.scheduler.after {
                self.tend();
            }
        }
        self.finish();
        self.flusher
    }

    /// Flushes what waits, as far as it is durable and committed: a store that was stopped has its records in SSTables.
    fn finish(&mut self) {
        while let Ok(item) = self.items.try_recv() {
            match item {
                FlushItem::Sealed(sealed) => self.waiting.push_back(sealed),
                FlushItem::Retired(id) => self.flusher.unlink(id),
            }
        }
        if !self.waiting.is_empty() {
            tracing::info!(name: "flush.before_end", memtables = self.waiting.len(), "flushing MemTables before the end");
        }
        while let Some(sealed) = self.waiting.front().filter(|sealed| self.is_durable(sealed)) {
            match self.flusher.file(sealed, self.clock.as_ref()) {
                Ok(_) => self.waiting.pop_front(),
                Err(error) => {
                    tracing::warn!(
                        name: "flush.before_end_failed", %error,
                        "cannot flush a MemTable before the end; its records stay in the log, for the next start"
                    );
                    return;
                }
            };
        }
    }

    /// Drops files whose retention has ended, and starts the next merge.
    fn tend(&mut self) {
        self.scheduler.is_new = false;
        let rules = self.rules_now();
        match self.flusher.expire(&rules) {
            Ok(Some(seq)) => self.edited(seq),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(
                    name: "retention.files_not_removed", %error,
                    "cannot remove SSTables whose retention has ended; trying again every 10 seconds"
                );
                return self.hold_off();
            }
        }
        if !self.scheduler.options.enabled {
            return;
        }
        if self.clock.monotonic() >= self.scheduler.skip_until {
            self.scheduler.skip.clear();
        }
        let looks = self.clock.monotonic() >= self.scheduler.look_after;
        if looks {
            self.scheduler.look_after = self.clock.monotonic() + LOOK_AFTER.as_nanos() as u64;
        }
        let Scheduler { options, skip, .. } = &self.scheduler;
        let now = newest(self.flusher.manifest().state());
        // Free space is for flushes: skipping a merge makes reads slower, and loses no records.
        let fits = |bytes: u64| self.room.has(bytes / 4 * 5);
        match self.flusher.history.next_job(options, &rules, now, (skip, looks), &fits) {
            Next::Job(job) => {
                let (files, bytes) = (job.merge.inputs.len(), job.merge.bytes());
                tracing::debug!(name: "compaction.started", files, bytes, why = ?job.merge.why, "merging files");
                self.set_merging(true);
                if self.scheduler.jobs.try_send(*job).is_err() {
                    self.set_merging(false);
                }
            }
            Next::NoRoom => self.hold_off(),
            Next::Nothing if rules.has_instruments() && (!looks || self.flusher.history.has_unseen()) => {
                // Files are looked at once the interval is over, also if nothing is flushed meanwhile.
                self.scheduler.is_new = true;
                self.scheduler.after = self.scheduler.after.max(self.scheduler.look_after);
            }
            Next::Nothing => {}
        }
    }

    /// The rules as of now. When the wall clock has jumped since storage began, no file is removed by its age until the clock
    /// is back or storage is restarted.
    fn rules_now(&mut self) -> Rules {
        let (wall, ahead) = (self.clock.wall(), self.scheduler.wall_ahead);
        let moved = wall.0.wrapping_sub(self.clock.monotonic()).abs_diff(ahead);
        let rules = self.scheduler.rules.at(wall);
        let has_jumped = moved > JUMP && !rules.is_empty();
        if has_jumped && !self.scheduler.has_jumped {
            tracing::error!(
                name: "retention.clock_jumped", seconds = moved / 1_000_000_000,
                "the wall clock has jumped: no SSTable is removed by its age until it is back; if it is right now, restart storage"
            );
        }
        self.scheduler.has_jumped = has_jumped;
        if has_jumped { rules.held() } else { rules }
    }

    fn set_merging(&mut self, is_merging: bool) {
        self.scheduler.is_merging = is_merging;
        self.flusher.control.set_statistic(Statistic::Merging, u64::from(is_merging));
    }

    fn hold_off(&mut self) {
        self.scheduler.is_new = true;
        self.scheduler.after = self.clock.monotonic() + MERGE_RETRY.as_nanos() as u64;
    }

    /// Handles the outcome of a merge.
    fn merged(&mut self, Outcome { job, result, took }: Outcome) {
        let replaced = match result {
            Ok(Some(merged)) => self.flusher.replace(&merged, took.as_nanos() as u64),
            // The merge was stopped: storage ends, or the disk is too full.
            Ok(None) => return self.hold_off(),
            Err(error) => Err(error),
        };
        match replaced {
            Ok(seq) => {
                self.scheduler.is_new = true;
                self.edited(seq);
            }
            Err(error) => {
                self.flusher.control.add(Statistic::MergeFailures, 1);
                let Merge { window, inputs, .. } = &job.merge;
                let first = inputs.first().map_or_else(String::new, |f| file_name(f.kind, f.id));
                tracing::error!(
                    name: "compaction.failed", %error, files = inputs.len(), %first, window_from = %window.from,
                    "cannot merge SSTables; they are skipped for an hour. To find a damaged one, run: tape verify"
                );
                self.scheduler.skip.extend(job.merge.inputs.iter().map(|f| f.id));
                self.scheduler.skip_until = self.clock.monotonic() + SKIP.as_nanos() as u64;
                self.hold_off();
            }
        }
    }

    /// Notifies ingest of the edit `seq`; if ingest is behind, readers get it with the next flush.
    fn edited(&self, seq: u64) {
        if self.notices.len() < EDITED_MAX && self.notices.try_send(FlushNotice::Edited(seq)).is_ok() {
            self.bells.ring(Bell::Ingest);
        }
    }

    fn is_durable(&self, sealed: &Sealed) -> bool {
        let control = &self.flusher.control;
        control.durable() >= sealed.last
            && self.watermarks.committed() + 1 >= sealed.mark.chain.index.0
            && control.durable_position() >= sealed.mark.chain.position
    }

    fn file(&mut self) {
        let Some(sealed) = self.waiting.front() else { return };
        let flushed = self.flusher.file(sealed, self.clock.as_ref());
        self.room.flush(flushed.as_ref().err());
        match flushed {
            Ok(flushed) => {
                self.is_failing = false;
                self.waiting.pop_front();
                // The queue has a place for each table. Ingest may have ended.
                if self.notices.try_send(FlushNotice::Flushed(flushed)).is_ok() {
                    self.bells.ring(Bell::Ingest);
                }
                self.scheduler.is_new = true;
                self.recycle();
            }
            Err(error) => {
                self.flusher.control.add(Statistic::FlushFailures, 1);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(
                        name: "flush.failed", %error, memtable = sealed.id,
                        "cannot flush a MemTable to SSTables; trying again every second. Publishers wait once all MemTables are \
                         full: check the disk, then run: tape status"
                    );
                }
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Gives the log's passed segments to the prepare agent, or removes them if enough wait.
    fn recycle(&self) {
        let passed = match self.flusher.passed_segments() {
            Ok(passed) => passed,
            Err(error) => {
                return tracing::warn!(
                    name: "wal.segments_not_listed", %error,
                    "cannot list the log segments that are no longer needed"
                );
            }
        };
        let (size, Position(needed)) = (self.flusher.segment_size, self.watermarks.needed());
        for first in passed.into_iter().filter(|first| first.0 + size <= needed) {
            let outcome = self.flusher.recycle(first).and_then(|spare| match self.spares.try_send(spare) {
                Ok(()) => Ok(()),
                Err(back) => self.flusher.disk.remove(back.into_inner().path()),
            });
            if let Err(error) = outcome {
                tracing::warn!(
                    name: "wal.segment_not_recycled", %error,
                    "cannot recycle a log segment that is no longer needed; it stays until the next start"
                );
            }
        }
    }
}
