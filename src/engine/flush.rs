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

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::memtables::Sealed;
use crate::agent::Stop;
use crate::disk::Disk;
use crate::error::Result;
use crate::lsn::{Lsn, Position};
use crate::manifest::{Edit, Manifest};
use crate::memtable::Table;
use crate::record::{Arrival, Kind, Row, Schema, Series, TimeRange, schema};
use crate::sabotage::{self, Sabotage};
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::{Control, Statistic};
use crate::shm::run_dir::RunDir;
use crate::sstable::{self, FileMeta, Spec, Window};
use crate::time::Clock;
use crate::wal::{self, Spare};

/// Files of a kind that one table becomes at most: if its rows lie in more windows, longer ones are used.
const WINDOWS_MAX: usize = 16;

/// Files MemTables.
pub struct Filer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: u128,
    segment_size: u64,
    manifest: Manifest,
    run_dir: RunDir,
    instance: u64,
    control: Control,
    /// Files of an edit of which it is not known whether it was made; removed after the next one.
    doubtful: Vec<PathBuf>,
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
        let this = Filer { disk, dir, store_id, segment_size, manifest, run_dir, instance, control, doubtful: Vec::new() };
        this.show();
        this
    }

    /// Takes note of the numbers of files that lie about, so that none is given again.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub fn skip_known_ids(&mut self) -> Result<()> {
        for id in self.disk.list(&self.files_dir())?.iter().filter_map(|n| sstable::file_id(n)) {
            self.manifest.skip_ids(id + 1);
        }
        Ok(())
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn files_dir(&self) -> PathBuf {
        self.dir.join(sstable::DIR)
    }

    /// Tells what there is.
    fn show(&self) {
        let state = self.manifest.state();
        self.control.set_statistic(Statistic::Files, state.files.len() as u64);
        self.control.set_statistic(Statistic::HistoryBytes, state.files.values().map(|f| f.len).sum());
        self.control.set_statistic(Statistic::Covered, state.covered().0);
        self.control.set_statistic(Statistic::CheckpointPosition, state.checkpoint.position.0);
    }

    /// Removes files that no edit names: a filing was cut short. To be called when the log behind the
    /// checkpoint has been found whole.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub fn sweep(&mut self) -> Result<usize> {
        let mut removed = 0;
        let dir = self.files_dir();
        for name in self.disk.list(&dir)? {
            let Some(id) = sstable::file_id(&name) else { continue };
            let live = self.manifest.state().files.get(&id);
            if live.is_none_or(|f| sstable::file_name(f.kind, id) != name) {
                self.disk.remove(&dir.join(name))?;
                removed += 1;
            }
        }
        if removed > 0 {
            self.disk.sync_dir(&dir)?;
        }
        Ok(removed)
    }

    /// Files `sealed`, whose records are durable in the log.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`]: nothing is filed, and no file is left that no edit may name.
    pub fn file(&mut self, sealed: &Sealed, clock: &dyn Clock) -> Result<Filed> {
        let began = clock.monotonic();
        let mut made = Vec::new();
        let written = self.write_files(sealed, &mut made);
        let synced = written.and_then(|()| if made.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.files_dir()) });
        if let Err(error) = synced {
            self.remove(made.iter().flat_map(|f| self.names_of(f)).collect());
            return Err(error);
        }
        let (rows, bytes) = (made.iter().map(|f| f.rows).sum::<u64>(), made.iter().map(|f| f.len).sum());
        assert!(rows == sealed.last.0 + 1 - sealed.base.0, "{rows} of the records {} to {} filed", sealed.base, sealed.last);
        let known = &self.manifest.state().publishers;
        let publishers = sealed.mark.publishers.iter().filter(|(p, s)| known.get(p) != Some(s)).copied().collect();
        let edit = Edit {
            added: made.clone(),
            removed: Vec::new(),
            checkpoint: Some(sealed.mark.chain),
            publishers,
            names: sealed.mark.names.clone(),
            kinds: sealed.mark.kinds.clone(),
        };
        if let Err(error) = self.manifest.edit(edit) {
            let names: Vec<PathBuf> = made.iter().flat_map(|f| self.names_of(f)).collect();
            self.doubtful.extend(names);
            return Err(error);
        }
        let doubtful = std::mem::take(&mut self.doubtful);
        self.remove(doubtful);
        self.show();
        let ns = clock.monotonic() - began;
        self.control.add(Statistic::Flushes, 1);
        self.control.add(Statistic::FlushedRecords, rows);
        self.control.add(Statistic::FlushedBytes, bytes);
        self.control.add(Statistic::FlushNs, ns);
        tracing::debug!(table = sealed.id, rows, bytes, files = made.len(), ms = ns / 1_000_000, "filed a MemTable");
        Ok(Filed { table: sealed.id, seq: self.manifest.state().seq })
    }

    fn names_of(&self, file: &FileMeta) -> [PathBuf; 2] {
        let path = self.files_dir().join(sstable::file_name(file.kind, file.id));
        [path.with_extension("tmp"), path]
    }

    fn remove(&self, paths: Vec<PathBuf>) {
        for path in paths {
            let gone = self.disk.exists(&path).and_then(|there| if there { self.disk.remove(&path) } else { Ok(()) });
            if let Err(error) = gone {
                tracing::warn!(%error, "a file that is not in use stays until the next start");
            }
        }
    }

    fn write_files(&mut self, sealed: &Sealed, made: &mut Vec<FileMeta>) -> Result<()> {
        if sealed.last < sealed.base {
            return Ok(());
        }
        let table = Table::open(&self.run_dir.memtable(self.instance, sealed.id), self.store_id)?;
        let source = Source::new(&table, sealed.last);
        let mut kinds: BTreeMap<Kind, Vec<Series>> = BTreeMap::new();
        for series in table.series() {
            kinds.entry(series.kind).or_default().push(series);
        }
        for (kind, mut series) in kinds {
            series.sort_unstable();
            let Some(schema) = schema(kind) else { continue };
            for window in source.windows(&series) {
                let id = self.manifest.take_id();
                let mut spec = Spec { store_id: self.store_id, id, schema, window, stores_reserved: false };
                // Known from here on: whatever of it is on the disk is removed if this fails.
                let place = made.len();
                made.push(unfinished(&spec));
                let mut meta = source.write(self.disk.as_ref(), &self.files_dir(), spec, &series)?;
                if meta.is_none() {
                    // Bytes that should be zero are not: the file is made again with them.
                    spec = Spec { id: self.manifest.take_id(), stores_reserved: true, ..spec };
                    self.remove(made.pop().iter().flat_map(|f| self.names_of(f)).collect());
                    made.push(unfinished(&spec));
                    meta = source.write(self.disk.as_ref(), &self.files_dir(), spec, &series)?;
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
    /// [`crate::error::Error::Io`].
    pub fn passed_segments(&self) -> Result<Vec<Position>> {
        let Position(mut end) = self.manifest.state().checkpoint.position;
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

/// A table with what every row of it is asked.
struct Source<'t> {
    table: &'t Table,
    last: Lsn,
    /// The run of each row.
    run_of: Vec<u32>,
    runs: Vec<(Lsn, Arrival)>,
}

impl<'t> Source<'t> {
    fn new(table: &'t Table, last: Lsn) -> Source<'t> {
        let rows = (last.0 + 1 - table.base().0) as usize;
        let (mut run_of, mut runs) = (Vec::with_capacity(rows), Vec::new());
        table.each_run(last, |first, count, arrival| {
            run_of.resize(run_of.len() + count as usize, runs.len() as u32);
            runs.push((first, arrival));
        });
        Source { table, last, run_of, runs }
    }

    fn arrival(&self, lsn: Lsn) -> Arrival {
        let run = self.run_of.get((lsn.0 - self.table.base().0) as usize);
        let Some((first, arrival)) = run.and_then(|&r| self.runs.get(r as usize)) else {
            panic!("record {lsn} of a sealed MemTable belongs to no run")
        };
        Arrival { lsn, pub_seq: crate::lsn::PubSeq(arrival.pub_seq.0 + (lsn.0 - first.0)), ..*arrival }
    }

    /// The windows in which rows of `series` lie: of an hour, or longer if there are too many.
    fn windows(&self, series: &[Series]) -> Vec<Window> {
        let [hour, longer @ ..] = Window::LENGTHS;
        let mut windows: Vec<Window> = Vec::new();
        for &series in series {
            let Some((min, max)) = self.table.span(series) else { continue };
            if max <= Window::of(min, hour).last() {
                windows.push(Window::of(min, hour));
            } else {
                let mut window: Option<Window> = None;
                for row in self.table.rows(series, TimeRange::ALL, self.last) {
                    if window.is_none_or(|w| row.index_time > w.last()) {
                        window = Some(Window::of(row.index_time, hour));
                        windows.extend(window);
                    }
                }
            }
            if windows.len() > 4096 {
                windows.sort_unstable();
                windows.dedup();
            }
        }
        let mut longer = longer.into_iter();
        loop {
            windows.sort_unstable();
            windows.dedup();
            match longer.next() {
                Some(len) if windows.len() > WINDOWS_MAX => windows.iter_mut().for_each(|w| *w = Window::of(w.from, len)),
                _ => return windows,
            }
        }
    }

    /// Writes the rows of `series` in the window of `spec`. `None`, and no file, if a row has bytes that should
    /// be zero and are not, which the file would not keep.
    fn write(&self, disk: &dyn Disk, dir: &std::path::Path, spec: Spec, series: &[Series]) -> Result<Option<FileMeta>> {
        let range = TimeRange { from: spec.window.from, to: spec.window.last() };
        let mut writer = sstable::Writer::create(disk, dir, spec)?;
        let mut rows: Vec<Row<'_>> = Vec::new();
        for &one in series {
            rows.clear();
            rows.extend(self.table.rows(one, range, self.last));
            if rows.is_empty() {
                continue;
            }
            writer.begin_series(one.instrument, rows.len() as u32)?;
            for row in &rows {
                if !spec.stores_reserved && has_reserved(spec.schema, row) {
                    return Ok(None);
                }
                writer.push(row.lsn, self.arrival(row.lsn).ingest_ts, row.record.words())?;
            }
        }
        let finished = writer.finish(|lsn| {
            let Arrival { publisher, epoch, pub_seq, .. } = self.arrival(lsn);
            (publisher, epoch, pub_seq)
        });
        finished.map(Some)
    }
}

fn has_reserved(schema: &Schema, row: &Row<'_>) -> bool {
    let bytes = row.record.bytes();
    schema.reserved().any(|c| bytes.get(c.offset..c.offset + c.of.size()).is_some_and(|b| b.iter().any(|&b| b != 0)))
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
/// How often it looks whether the log is durable, or whether it is to end.
const TURN: Duration = Duration::from_millis(5);

/// The flush agent.
pub(super) struct FlushAgent {
    pub(super) filer: Filer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) items: Receiver<FlushItem>,
    /// Tables that recovery has sealed.
    pub(super) waiting: VecDeque<Box<Sealed>>,
    pub(super) filed: Sender<Filed>,
    pub(super) spares: Sender<Spare>,
    pub(super) bells: Bells,
    pub(super) stop: Stop,
}

impl FlushAgent {
    /// Runs until it is told to stop; gives back the filer.
    pub(super) fn run(mut self) -> Filer {
        while !self.stop.is_stopped() {
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
        }
        self.filer
    }

    fn is_durable(&self, sealed: &Sealed) -> bool {
        let control = &self.filer.control;
        control.durable() >= sealed.last
            && control.committed() >= sealed.last
            && control.durable_position() >= sealed.mark.chain.position
    }

    fn file(&mut self) {
        let Some(sealed) = self.waiting.front() else { return };
        match self.filer.file(sealed, self.clock.as_ref()) {
            Ok(filed) => {
                self.waiting.pop_front();
                // One place for each table there is; ingest may have ended.
                if self.filed.try_send(filed).is_ok() {
                    self.bells.ring(Bell::Ingest);
                }
                self.recycle();
            }
            Err(error) => {
                self.filer.control.add(Statistic::FlushFailures, 1);
                tracing::error!(%error, "a MemTable cannot be filed into history; trying again in a second");
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
        for first in passed {
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

/// Makes the directory of history if there is none.
///
/// # Errors
/// [`crate::error::Error::Io`].
pub(super) fn create_dir(disk: &dyn Disk, dir: &std::path::Path) -> Result<()> {
    let files = dir.join(sstable::DIR);
    if !disk.exists(&files)? {
        disk.create_dir(&files)?;
        disk.sync_dir(dir)?;
    }
    Ok(())
}
