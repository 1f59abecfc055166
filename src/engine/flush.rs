//! Owns: filing sealed MemTables into history, and the flush agent that does it off the ingest thread.
//!
//! A sealed table becomes one file per kind and window of index time, and one edit of the manifest that
//! names them and the place from which the log goes on. Then the table is dropped from the control page
//! and unlinked, and the log's segments before that place are used again.
//!
//! What must hold: only what is durable in the log is filed; files and their names are durable before
//! the edit, and the edit before anything that it replaces is given up; a filing that fails is tried
//! again with new files, and leaves none behind; memory is one block, at most 60 bytes a row of a file, four
//! a row of the table, and the rows of one series.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::clock::Watch;
use super::compact::Outcome;
use super::watermarks::Covered;
use super::history::{History, Next};
use super::memtables::Sealed;
use super::flush_source::Rows;
use super::space::Room;
use tapestore::agent::Stop;
use crate::compaction::merge::{Job, Merged, Unpaced};
use crate::compaction::retention::{Rule, Rules};
use crate::compaction::{Options, newest};
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
use tapestore::sstable::{FileMeta, Spec};
use tapestore::time::Clock;
use tapestore::wal::{self, Spare};

/// Files MemTables.
pub struct Filer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    segment_size: u64,
    history: History,
    run_dir: RunDir,
    instance: u64,
    control: Control,
}

/// A table whose records are in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filed {
    /// The table.
    pub table: u64,
    /// The edit of the manifest.
    pub seq: u64,
}

/// What a filer works on.
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

impl Filer {
    /// A filer; the manifest is what the disk says.
    pub(super) fn new(parts: Parts) -> Filer {
        let Parts { disk, dir, store_id, segment_size, manifest, run_dir, instance, control } = parts;
        let history = History::new(disk.clone(), dir.clone(), store_id, manifest);
        let this = Filer { disk, dir, store_id, segment_size, history, run_dir, instance, control };
        this.show();
        this
    }

    /// Takes note of the numbers of files that lie about, so that none is given again.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`].
    pub fn skip_known_ids(&mut self) -> Result<()> {
        self.history.skip_known_ids()
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.history.manifest
    }

    /// Tells what there is.
    fn show(&self) {
        let state = self.history.manifest.state();
        self.control.set_statistic(Statistic::Expired, state.expired);
        self.control.set_statistic(Statistic::Files, state.files.len() as u64);
        self.control.set_statistic(Statistic::HistoryBytes, state.files.values().map(|f| f.len).sum());
        self.control.set_statistic(Statistic::Covered, state.covered().0);
        self.control.set_statistic(Statistic::CheckpointPosition, state.checkpoint.position.0);
    }

    /// Removes files that no edit names: a filing or a merge was cut short. To be called when the log behind the
    /// checkpoint has been found whole.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`].
    pub fn sweep(&mut self) -> Result<usize> {
        self.history.sweep()
    }

    /// Merges files once, if that is due, on the calling thread; whether it was. A running store does it on a
    /// thread of its own.
    ///
    /// # Errors
    /// Of a file, named; nothing has changed then.
    pub fn compact_one(&mut self, options: &Options, rules: &Rules) -> Result<bool> {
        let now = newest(self.history.manifest.state());
        let merged = self.history.compact_one(options, rules, now, &mut Unpaced)?;
        if let Some(merged) = &merged {
            self.count(merged, 0);
        }
        Ok(merged.is_some())
    }

    /// Puts what a merge that took `ns` has made in the place of its files.
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

    /// Lets go of the files that have lived long enough; gives the edit, if there were any.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`]: it is then unknown whether they are gone, and all of them stay.
    pub fn expire(&mut self, rules: &Rules) -> Result<Option<u64>> {
        let dropped = self.history.expire(rules)?;
        if dropped.is_empty() {
            return Ok(None);
        }
        let (rows, bytes) = dropped.iter().fold((0, 0), |(r, b), f| (r + f.rows, b + f.len));
        tracing::info!(files = dropped.len(), rows, bytes, "files have lived long enough and are gone");
        self.show();
        Ok(Some(self.history.manifest.state().seq))
    }

    /// Files `sealed`, whose records are durable in the log.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Io`]: nothing is filed, and no file is left that no edit may name.
    pub fn file(&mut self, sealed: &Sealed, clock: &dyn Clock) -> Result<Filed> {
        let began = clock.monotonic();
        // Files of an edit that failed would pile up while the manifest cannot be written.
        self.history.resolve()?;
        let mut made = Vec::new();
        let written = self.write_files(sealed, &mut made);
        let synced = written.and_then(|()| if made.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.history.files_dir()) });
        if let Err(error) = synced {
            self.history.remove(made.iter().flat_map(|f| self.history.names_of(f)).collect());
            return Err(error);
        }
        let (rows, bytes) = (made.iter().map(|f| f.rows).sum::<u64>(), made.iter().map(|f| f.len).sum());
        assert!(rows == sealed.last.0 + 1 - sealed.base.0, "{rows} of the records {} to {} filed", sealed.base, sealed.last);
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
        tracing::debug!(table = sealed.id, rows, bytes, files = made.len(), ms = ns / 1_000_000, "filed a MemTable");
        Ok(Filed { table: sealed.id, seq: self.history.manifest.state().seq })
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
                // Known from here on: whatever of it is on the disk is removed if this fails.
                let place = made.len();
                made.push(unfinished(&spec));
                let mut meta = source.write(self.disk.as_ref(), &self.history.files_dir(), spec, &series)?;
                if meta.is_none() {
                    // Bytes that should be zero are not: the file is made again with them.
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
    /// [`tapestore::error::Error::Io`].
    pub fn passed_segments(&self) -> Result<Vec<Position>> {
        let Position(mut end) = self.history.manifest.state().checkpoint.position;
        if sabotage::is(Sabotage::RecycleEarly) {
            end += self.segment_size;
        }
        let names = self.disk.list(&self.dir.join(wal::DIR))?;
        let firsts = names.iter().filter_map(|n| wal::format::segment_first(n));
        Ok(firsts.filter(|first| first.0 + self.segment_size <= end).collect())
    }

    /// Gives back the shared memory of table `id`, which is named no more.
    pub fn unlink(&self, id: u64) {
        let path = self.run_dir.memtable(self.instance, id);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a MemTable that is not in use stays until the next start");
        }
    }

    /// Takes all passed segments out of the log and removes them.
    #[cfg(test)]
    pub(super) fn recycle_all(&self) -> Result<()> {
        for first in self.passed_segments()? {
            self.disk.remove(self.recycle(first)?.path())?;
        }
        Ok(())
    }

    /// Takes those passed segments out of the log that nobody may still ask for, and removes them.
    #[cfg(test)]
    pub(super) fn recycle_before(&self, needed: Position) -> Result<()> {
        for first in self.passed_segments()?.into_iter().filter(|first| first.0 + self.segment_size <= needed.0) {
            self.disk.remove(self.recycle(first)?.path())?;
        }
        Ok(())
    }

    /// Takes the segment that begins at `first` out of the log, to be used again.
    fn recycle(&self, first: Position) -> Result<Spare> {
        let dir = self.dir.join(wal::DIR);
        wal::recycle(self.disk.as_ref(), &dir, first)
    }
}

/// What is known of a file before it is finished.
fn unfinished(spec: &Spec) -> FileMeta {
    let (id, kind, window) = (spec.id, spec.schema.kind, spec.window);
    FileMeta { id, kind, window, rows: 0, len: 0, crc: 0, time: Default::default(), lsn: Default::default() }
}

/// What the flush agent is given.
pub(super) enum FlushItem {
    /// A table to be filed.
    Sealed(Box<Sealed>),
    /// A table that is named no more.
    Retired(u64),
}

/// How long after a failure it tries again.
const RETRY: Duration = Duration::from_secs(1);
/// How long after a failed merge another is tried.
const MERGE_RETRY: Duration = Duration::from_secs(10);
/// How often it looks whether the log is durable, or whether it is to end.
const TURN: Duration = Duration::from_millis(5);

/// The flush agent.
pub(super) struct FlushAgent {
    pub(super) filer: Filer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) items: Receiver<FlushItem>,
    /// Tables that recovery has sealed.
    pub(super) waiting: VecDeque<Box<Sealed>>,
    pub(super) told: Sender<Told>,
    pub(super) spares: Sender<Spare>,
    /// What is committed, and from where on other hosts may still ask for the log.
    pub(super) covered: Arc<Covered>,
    pub(super) bells: Bells,
    pub(super) stop: Stop,
    pub(super) room: Arc<Room>,
    /// Whether it has been said that a MemTable cannot be filed.
    pub(super) said: bool,
    pub(super) tending: Tending,
    /// Over the host's clock.
    pub(super) watch: Watch,
}

/// What ingest is told, to show it to readers.
pub(super) enum Told {
    /// A table's records are in files.
    Filed(Filed),
    /// There is a newer edit of the manifest.
    Edited(u64),
}

/// Edits of which ingest need not be told at once wait up to here.
const EDITED_MAX: usize = 4;
/// What ingest may not have taken notice of.
pub(super) const TOLD_MAX: usize = TABLES_MAX + EDITED_MAX;

/// What the flush agent knows of merging and of what has lived long enough.
pub(super) struct Tending {
    pub(super) options: Options,
    pub(super) rules: Rules,
    pub(super) jobs: Sender<Job>,
    pub(super) done: Receiver<Outcome>,
    /// Whether a merge is being carried out: its files must stay.
    pub(super) is_merging: bool,
    /// Whether the version has changed since it was looked at.
    pub(super) is_new: bool,
    /// Not before this moment of the monotonic clock, after a failure.
    pub(super) after: u64,
    /// Files that could not be merged, and until when of the monotonic clock they are left alone.
    pub(super) skip: BTreeSet<u64>,
    pub(super) skip_until: u64,
    /// How far the wall clock was ahead of the monotonic one when storage began, and whether it has jumped since.
    pub(super) wall_ahead: u64,
    pub(super) has_jumped: bool,
}

impl Tending {
    /// Nothing has been looked at yet.
    ///
    /// # Errors
    /// [`tapestore::error::Error::Invalid`] for a rule that cannot be.
    pub(super) fn new(
        options: Options,
        rules: &[Rule],
        clock: &dyn Clock,
        jobs: Sender<Job>,
        done: Receiver<Outcome>,
    ) -> Result<Tending> {
        let wall_ahead = clock.wall().0.wrapping_sub(clock.monotonic());
        let (rules, skip) = (Rules::new(rules)?, BTreeSet::new());
        for kind in rules.unmet() {
            tracing::warn!(
                kind,
                "a retention rule names a kind that the store does not have yet: it lets nothing go before then"
            );
        }
        let (is_merging, is_new, has_jumped) = (false, true, false);
        Ok(Tending { options, rules, jobs, done, is_merging, is_new, after: 0, skip, skip_until: 0, wall_ahead, has_jumped })
    }
}

/// A wall clock that has moved against the monotonic one by this has jumped, ns.
const JUMP: u64 = 3_600_000_000_000;
/// Files that could not be merged are tried again after so long.
const SKIP: Duration = Duration::from_secs(3600);

impl FlushAgent {
    /// Runs until it is told to stop; gives back the filer.
    pub(super) fn run(mut self) -> Filer {
        while !self.stop.is_stopped() {
            self.watch.look(self.clock.as_ref(), &self.filer.control);
            match self.items.recv_timeout(if self.waiting.is_empty() { 20 * TURN } else { TURN }) {
                Ok(FlushItem::Sealed(sealed)) => self.waiting.push_back(sealed),
                Ok(FlushItem::Retired(id)) => self.filer.unlink(id),
                Err(RecvTimeoutError::Timeout) => {}
                // Ingest has ended: what is not filed stays in the log.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TURN),
            }
            if self.waiting.front().is_some_and(|s| self.is_durable(s)) {
                self.file();
            }
            if let Ok(outcome) = self.tending.done.try_recv() {
                self.set_merging(false);
                self.merged(outcome);
            }
            if !self.tending.is_merging && self.tending.is_new && self.clock.monotonic() >= self.tending.after {
                self.tend();
            }
        }
        self.filer
    }

    /// Lets go of what has lived long enough, and has the next merge be carried out.
    fn tend(&mut self) {
        self.tending.is_new = false;
        let rules = self.rules_now();
        match self.filer.expire(&rules) {
            Ok(Some(seq)) => self.edited(seq),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "files that have lived long enough cannot be let go; trying again");
                return self.hold_off();
            }
        }
        if !self.tending.options.enabled {
            return;
        }
        if self.clock.monotonic() >= self.tending.skip_until {
            self.tending.skip.clear();
        }
        let Tending { options, skip, .. } = &self.tending;
        let now = newest(self.filer.manifest().state());
        // What is free is for filing; that files are not merged costs reading, not records.
        let fits = |bytes: u64| self.room.has(bytes / 4 * 5);
        match self.filer.history.next_job(options, &rules, now, skip, &fits) {
            Next::Job(job) => {
                let (files, bytes) = (job.merge.inputs.len(), job.merge.bytes());
                tracing::debug!(files, bytes, why = ?job.merge.why, "merging files");
                self.set_merging(true);
                if self.tending.jobs.try_send(*job).is_err() {
                    self.set_merging(false);
                }
            }
            Next::NoRoom => self.hold_off(),
            Next::Nothing => {}
        }
    }

    /// The rules as of now. When the wall clock has jumped since storage began, nothing goes by its age until it is
    /// back or storage is started again.
    fn rules_now(&mut self) -> Rules {
        let (wall, ahead) = (self.clock.wall(), self.tending.wall_ahead);
        let moved = wall.0.wrapping_sub(self.clock.monotonic()).abs_diff(ahead);
        let rules = self.tending.rules.at(wall);
        let has_jumped = moved > JUMP && !rules.is_empty();
        if has_jumped && !self.tending.has_jumped {
            tracing::error!(
                seconds = moved / 1_000_000_000,
                "the wall clock has jumped: nothing is let go by its age until it is back; if it is right now, start storage again"
            );
        }
        self.tending.has_jumped = has_jumped;
        if has_jumped { rules.held() } else { rules }
    }

    fn set_merging(&mut self, is_merging: bool) {
        self.tending.is_merging = is_merging;
        self.filer.control.set_statistic(Statistic::Merging, u64::from(is_merging));
    }

    fn hold_off(&mut self) {
        self.tending.is_new = true;
        self.tending.after = self.clock.monotonic() + MERGE_RETRY.as_nanos() as u64;
    }

    /// A merge has come to `outcome`.
    fn merged(&mut self, Outcome { job, result, took }: Outcome) {
        let replaced = match result {
            Ok(Some(merged)) => self.filer.replace(&merged, took.as_nanos() as u64),
            // It was stopped: storage ends, or the disk became too full for it.
            Ok(None) => return self.hold_off(),
            Err(error) => Err(error),
        };
        match replaced {
            Ok(seq) => {
                self.tending.is_new = true;
                self.edited(seq);
            }
            Err(error) => {
                self.filer.control.add(Statistic::MergeFailures, 1);
                tracing::error!(%error, files = job.merge.inputs.len(), "files cannot be merged; they are left alone for an hour");
                self.tending.skip.extend(job.merge.inputs.iter().map(|f| f.id));
                self.tending.skip_until = self.clock.monotonic() + SKIP.as_nanos() as u64;
                self.hold_off();
            }
        }
    }

    /// Has readers be shown the edit `seq`; if ingest is behind, they see it with the next filing.
    fn edited(&self, seq: u64) {
        if self.told.len() < EDITED_MAX && self.told.try_send(Told::Edited(seq)).is_ok() {
            self.bells.ring(Bell::Ingest);
        }
    }

    fn is_durable(&self, sealed: &Sealed) -> bool {
        let control = &self.filer.control;
        control.durable() >= sealed.last
            && self.covered.committed() + 1 >= sealed.mark.chain.index.0
            && control.durable_position() >= sealed.mark.chain.position
    }

    fn file(&mut self) {
        let Some(sealed) = self.waiting.front() else { return };
        let filed = self.filer.file(sealed, self.clock.as_ref());
        self.room.filing(filed.as_ref().err());
        match filed {
            Ok(filed) => {
                self.said = false;
                self.waiting.pop_front();
                // One place for each table there is; ingest may have ended.
                if self.told.try_send(Told::Filed(filed)).is_ok() {
                    self.bells.ring(Bell::Ingest);
                }
                self.tending.is_new = true;
                self.recycle();
            }
            Err(error) => {
                self.filer.control.add(Statistic::FlushFailures, 1);
                if !std::mem::replace(&mut self.said, true) {
                    tracing::error!(%error, "a MemTable cannot be filed into history; trying again every second");
                }
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Gives the log's passed segments to those who make spares, or removes them if enough wait.
    fn recycle(&self) {
        let passed = match self.filer.passed_segments() {
            Ok(passed) => passed,
            Err(error) => return tracing::warn!(%error, "cannot look for log segments that are not needed any more"),
        };
        let (size, Position(needed)) = (self.filer.segment_size, self.covered.needed());
        for first in passed.into_iter().filter(|first| first.0 + size <= needed) {
            let outcome = self.filer.recycle(first).and_then(|spare| match self.spares.try_send(spare) {
                Ok(()) => Ok(()),
                Err(back) => self.filer.disk.remove(back.into_inner().path()),
            });
            if let Err(error) = outcome {
                tracing::warn!(%error, "a log segment that is not needed any more stays until the next start");
            }
        }
    }
}
