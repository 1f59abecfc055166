//! Owns: versions: the SSTables and MemTables that a reading process has mapped at one moment.
//!
//! What must hold: a view covers every row up to its watermark, each once. SSTables hold the records up to
//! `covered`, MemTables those after it. A view is made in this order: read the list of MemTables and open
//! them, read the manifest and open new SSTables, load the watermark, check the list again. If the list is
//! unchanged, the view has all rows up to the watermark, because storage lists a MemTable before it applies
//! a row in it, and the SSTables that replace a MemTable before it drops that one. Tables of a view stay
//! readable for as long as the view exists, even when they are unlinked. A view that would miss records
//! because no storage process serves the store is refused here, for the readers of every process; [`AtRest`] reads such a
//! store from its files.

mod at_rest;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::lsn::{Epoch, Lsn, PubSeq, PublisherId};
use crate::manifest::Follower;
use crate::memtable::Table;
use crate::pages;
use crate::record::{Arrival, Kind, Series, TimeRange};
use crate::shm::control::Control;
use crate::shm::run_dir::RunDir;
use crate::sstable;
use crate::time::{Clock, HostClock, Ts};

pub use at_rest::{AtRest, TornTail, is_store};

/// A mapped SSTable.
pub type File = Arc<sstable::Table>;

/// SSTables, sorted by the first key of their spans.
#[derive(Clone, Debug, Default)]
struct Spans {
    /// First and last of each SSTable's span, sorted by first.
    spans: Vec<(u64, u64)>,
    /// The greatest last of each SSTable and those before it.
    last_max: Vec<u64>,
    files: Vec<File>,
}

impl Spans {
    fn new(mut files: Vec<(u64, u64, File)>) -> Spans {
        files.sort_by_key(|(first, last, file)| (*first, *last, file.meta().id));
        let mut spans = Spans::default();
        let mut max = 0;
        for (first, last, file) in files {
            max = max.max(last);
            spans.spans.push((first, last));
            spans.last_max.push(max);
            spans.files.push(file);
        }
        spans
    }

    /// The SSTables whose spans meet `from` to `to`, the latest first; stops when none of the rest can
    /// reach `from`.
    #[inline]
    fn back_from(&self, from: u64, to: u64) -> impl Iterator<Item = &File> {
        let end = self.spans.partition_point(|s| s.0 <= to);
        let candidates = self.files.iter().zip(&self.spans).zip(&self.last_max).take(end).rev();
        candidates.take_while(move |(_, max)| **max >= from).filter(move |((_, s), _)| s.1 >= from).map(|((file, _), _)| file)
    }
}

/// The SSTables of one version of the manifest.
#[derive(Clone, Debug, Default)]
pub struct History {
    covered: Lsn,
    number: u64,
    seq: u64,
    by_lsn: Spans,
    by_time: BTreeMap<Kind, Spans>,
}

impl History {
    fn new(covered: Lsn, seq: u64, files: &BTreeMap<u64, File>) -> History {
        let by_lsn = files.values().map(|f| (f.meta().lsn.0.0, f.meta().lsn.1.0, f.clone()));
        let mut by_kind: BTreeMap<Kind, Vec<(u64, u64, File)>> = BTreeMap::new();
        for file in files.values() {
            let (min, max) = file.meta().time;
            by_kind.entry(file.meta().kind).or_default().push((min.0, max.0, file.clone()));
        }
        let by_time = by_kind.into_iter().map(|(kind, files)| (kind, Spans::new(files))).collect();
        History { covered, number: 0, seq, by_lsn: Spans::new(by_lsn.collect()), by_time }
    }

    /// The last record in the SSTables.
    pub fn covered(&self) -> Lsn {
        self.covered
    }

    /// The numbers of the manifest and of its last edit.
    pub fn edit(&self) -> (u64, u64) {
        (self.number, self.seq)
    }

    /// All SSTables, sorted by first LSN.
    pub fn files(&self) -> &[File] {
        &self.by_lsn.files
    }

    /// The kinds that have SSTables.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.by_time.keys().copied()
    }

    /// The SSTables that may hold the record `lsn`.
    #[inline]
    pub fn files_at(&self, lsn: Lsn) -> impl Iterator<Item = &File> {
        self.by_lsn.back_from(lsn.0, lsn.0)
    }

    /// The SSTables that may hold records from `from` to `to`.
    pub fn files_between(&self, from: Lsn, to: Lsn) -> impl Iterator<Item = &File> {
        self.by_lsn.back_from(from.0, to.0)
    }

    /// The SSTables of `kind` with rows up to `time`, the latest first, each with the greatest index time
    /// of it and those that follow.
    #[inline]
    pub fn files_until(&self, kind: Kind, time: Ts) -> impl Iterator<Item = (&File, Ts)> {
        self.by_time.get(&kind).into_iter().flat_map(move |spans| {
            let end = spans.spans.partition_point(|s| s.0 <= time.0);
            spans.files.iter().zip(&spans.last_max).take(end).rev().map(|(file, max)| (file, Ts(*max)))
        })
    }

    /// The SSTables of `kind` with rows in `range`, the latest first.
    #[inline]
    pub fn files_in(&self, kind: Kind, range: TimeRange) -> impl Iterator<Item = &File> {
        self.by_time.get(&kind).into_iter().flat_map(move |spans| spans.back_from(range.from.0, range.to.0))
    }

    /// Finds the record that `publisher` numbered `pub_seq` in `epoch`, above `after`.
    ///
    /// # Errors
    /// Those of reading an SSTable.
    pub fn find_published(
        &self,
        publisher: PublisherId,
        epoch: Epoch,
        pub_seq: PubSeq,
        after: Lsn,
    ) -> Result<Option<(File, u32)>> {
        for file in self.files_between(after.next(), Lsn(u64::MAX)) {
            for run in file.runs()?.iter().filter(|r| r.publisher == publisher && r.epoch == epoch) {
                let Some(offset) = pub_seq.0.checked_sub(run.first_pub_seq.0) else { continue };
                let lsn = Lsn(run.first.0.saturating_add(offset));
                if lsn > run.last || lsn <= after {
                    continue;
                }
                if let Some(place) = file.place_of(lsn)? {
                    return Ok(Some((file.clone(), place)));
                }
            }
            file.check()?;
        }
        Ok(None)
    }
}

/// A store at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// SSTables: the records up to [`History::covered`].
    pub history: Arc<History>,
    /// MemTables, oldest first: the records after those.
    pub tables: Vec<Arc<Table>>,
    /// The last row that may be read.
    pub upto: Lsn,
    /// The control page of its storage process, and the store's directory.
    served: (Control, Arc<Path>),
}

impl View {
    /// Its SSTables alone.
    pub fn flushed(self) -> View {
        View { tables: Vec::new(), upto: self.history.covered(), ..self }
    }

    /// The MemTable that holds the record `lsn`.
    #[inline]
    pub fn table_of(&self, lsn: Lsn) -> Option<&Arc<Table>> {
        if lsn > self.upto {
            return None;
        }
        self.tables.iter().rev().find(|t| t.base() <= lsn)
    }

    /// How record `lsn` arrived in the store.
    ///
    /// # Errors
    /// Those of reading an SSTable.
    pub fn arrival(&self, lsn: Lsn) -> Result<Option<Arrival>> {
        if lsn > self.history.covered() {
            let found = self.table_of(lsn).and_then(|t| t.arrival(lsn));
            return self.check_tables().map(|()| found);
        }
        for file in self.history.files_at(lsn) {
            if let Some(arrival) = file.arrival(lsn)? {
                return Ok(Some(arrival));
            }
        }
        Ok(None)
    }

    /// Checks that storage does not ask for the room of SSTables that this view may have kept since they were removed.
    ///
    /// # Errors
    /// [`Error::SnapshotTooOld`] if it does.
    #[inline]
    pub fn check_age(&self) -> Result<()> {
        let (control, edit) = (&self.served.0, self.history.seq);
        let oldest = control.oldest_snapshot();
        if edit >= oldest { Ok(()) } else { self.too_old(edit, oldest) }
    }

    #[cold]
    fn too_old(&self, edit: u64, oldest: u64) -> Result<()> {
        Err(Error::SnapshotTooOld { dir: self.served.1.to_path_buf(), edit, oldest })
    }

    /// Checks that everything read from the MemTables so far is what was written; see [`Table::check`].
    ///
    /// # Errors
    /// [`Error::Io`] if it is not.
    #[inline]
    pub fn check_tables(&self) -> Result<()> {
        self.tables.iter().try_for_each(|t| t.check())
    }

    /// Every series that has a record, sorted.
    ///
    /// # Errors
    /// Those of reading an SSTable.
    pub fn series(&self) -> Result<Vec<Series>> {
        let mut all: Vec<Series> = self.tables.iter().flat_map(|t| t.series()).collect();
        for file in self.history.files() {
            let kind = file.meta().kind;
            all.extend(file.series()?.iter().map(|s| Series { instrument: s.instrument, kind }));
            file.check()?;
        }
        self.check_tables()?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

/// The mapped tables, kept from one view to the next.
pub struct Versions {
    disk: Arc<dyn Disk>,
    dir: Arc<Path>,
    manifest: Follower,
    files: BTreeMap<u64, File>,
    history: Arc<History>,
    instance: u64,
    version: u64,
    /// MemTables of live views: one that has been flushed is unmapped when its last view ends.
    tables: Vec<Weak<Table>>,
    /// The active MemTable, which would otherwise be mapped again for every view.
    active: Option<Arc<Table>>,
    /// [`pages::damaged`] at the last search for damaged mappings.
    damaged: u64,
}

impl std::fmt::Debug for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Versions").field("dir", &self.dir).field("history", &self.history).finish_non_exhaustive()
    }
}

/// Reads the list at most this often before it gives up: storage changes it when a MemTable is full and at each edit of the manifest.
const TRIES: u32 = 1000;
/// Returns the error of an SSTable or MemTable that cannot be opened after so many tries: it may have been replaced meanwhile.
const FAILURES_MAX: u32 = 20;

impl Versions {
    /// For the store `store_id` in the directory `dir`; maps nothing yet.
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, store_id: u128) -> Versions {
        Versions {
            disk,
            dir: dir.into(),
            manifest: Follower::new(dir, store_id),
            files: BTreeMap::new(),
            history: Arc::default(),
            instance: 0,
            version: 0,
            tables: Vec::new(),
            active: None,
            damaged: pages::damaged(),
        }
    }

    /// The store now, up to the record that `watermark` returns, or up to the last one applied while storage has yet to
    /// apply that one.
    ///
    /// # Errors
    /// Those of [`Versions::look`]; [`Error::InLogAlone`] if no storage process serves the store and some records up to
    /// `watermark` are in neither SSTables nor shared memory.
    pub fn view(&mut self, run_dir: &RunDir, control: &Control, watermark: impl Fn(&Control) -> Lsn) -> Result<View> {
        let (view, wanted) = self.look(run_dir, control, watermark)?;
        if view.upto < wanted && !control.is_alive(HostClock.monotonic()) {
            let (first, last) = (view.upto.next().0, wanted.0);
            return Err(Error::InLogAlone { dir: self.dir.to_path_buf(), what: "records", first, last });
        }
        Ok(view)
    }

    /// The readable part of the store now, up to the record that `watermark` returns, and that record. After an orderly
    /// stop of storage only SSTables are readable.
    ///
    /// # Errors
    /// [`Error::StorageDown`] while storage recovers, or after it was killed during a change of its MemTables;
    /// [`Error::Exhausted`]; [`Error::TooManyMaps`].
    pub fn look(&mut self, run_dir: &RunDir, control: &Control, watermark: impl Fn(&Control) -> Lsn) -> Result<(View, Lsn)> {
        let mut failures = 0;
        let damaged = pages::damaged();
        for _ in 0..TRIES {
            let instance = control.instance();
            if instance % 2 == 1 {
                return self.down("it is recovering");
            }
            let Some(list) = control.tables() else { return self.down("it was killed while it changed its MemTables") };
            // Storage removes files before ingest publishes the edit, so the oldest edit that is allowed may be a newer one.
            let oldest = control.oldest_snapshot();
            let is_known = instance == self.instance && list.version == self.version;
            let is_current = is_known && damaged == self.damaged && self.history.seq >= oldest;
            let wanted = list.tables.get(..list.count).unwrap_or(&[]);
            let tables = match self.open_tables(run_dir, control.store_id(), instance, wanted) {
                Ok(tables) => tables,
                Err(error @ (Error::Exhausted { .. } | Error::TooManyMaps { .. })) => return Err(error),
                // Removed after the list was read: read it again.
                Err(Error::StorageDown { .. }) => continue,
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    failures += 1;
                    if failures > FAILURES_MAX {
                        return Err(error);
                    }
                    continue;
                }
            };
            if !is_current {
                if let Err(error) = self.refresh_history(list.manifest.max(oldest)) {
                    failures += 1;
                    if failures > FAILURES_MAX {
                        return Err(error);
                    }
                    continue;
                }
                self.tables = tables.iter().map(Arc::downgrade).collect();
                self.active = tables.last().cloned();
                (self.instance, self.version, self.damaged) = (instance, list.version, damaged);
            }
            let wanted = watermark(control);
            let upto = wanted.min(control.applied());
            if control.table_version() == list.version && control.instance() == instance {
                let covered = self.history.covered;
                // A stopped storage process has removed its MemTables.
                let upto = if tables.is_empty() { covered } else { upto };
                // The MemTables with records that no SSTable has.
                let tables = tables.into_iter().filter(|t| t.base() > covered).collect();
                let served = (control.clone(), self.dir.clone());
                return Ok((View { history: self.history.clone(), tables, upto, served }, wanted));
            }
        }
        self.down("its MemTables are gone")
    }

    /// Whether the newest view has the SSTables and MemTables that storage lists now.
    #[inline]
    pub fn is_current(&self, control: &Control) -> bool {
        let is_known = control.table_version() == self.version && control.instance() == self.instance;
        is_known && self.history.seq >= control.oldest_snapshot()
    }

    /// Unmaps every SSTable and MemTable that no view uses; the next view maps what it needs. Kept mappings may be of
    /// unlinked files, whose bytes are freed only when no process maps them.
    pub fn let_go(&mut self) {
        self.files.clear();
        self.tables.clear();
        (self.history, self.active) = (Arc::default(), None);
        (self.instance, self.version) = (0, 0);
    }

    fn down<T>(&self, why: &'static str) -> Result<T> {
        Err(Error::StorageDown { dir: self.dir.to_path_buf(), why })
    }

    /// Opens the MemTables of `list`, reusing those that a view still has mapped.
    fn open_tables(&self, run_dir: &RunDir, store_id: u128, instance: u64, list: &[(u64, Lsn)]) -> Result<Vec<Arc<Table>>> {
        let mut open = Vec::with_capacity(list.len());
        for &(id, base) in list {
            let mut mapped = self.tables.iter().filter_map(Weak::upgrade).filter(|t| t.check().is_ok());
            let found = mapped.find(|t| self.instance == instance && t.id() == id);
            let table = match found {
                Some(table) => table,
                None => Arc::new(Table::open(&run_dir.memtable(instance, id), store_id)?),
            };
            if table.base() != base {
                // The list belongs to another instance by now.
                return self.down("it has just been restarted");
            }
            open.push(table);
        }
        Ok(open)
    }

    fn refresh_history(&mut self, seq: u64) -> Result<()> {
        self.manifest.refresh(self.disk.as_ref(), seq)?;
        let state = self.manifest.state();
        // An SSTable with an unreadable page is mapped again: its disk may have recovered.
        let before = self.files.len();
        self.files.retain(|_, file| !file.is_damaged());
        // Compares with the SSTables that are open, not with those listed: an open may have failed in between.
        let is_whole = self.files.len() == before && self.files.len() == state.files.len();
        if is_whole && (self.history.number, self.history.seq) == (self.manifest.number(), state.seq) {
            return Ok(());
        }
        // A number may name another SSTable now, if a failed sync withdrew an edit.
        self.files.retain(|id, file| state.files.get(id) == Some(file.meta()));
        for (id, meta) in &state.files {
            if !self.files.contains_key(id) {
                let table = sstable::Table::open(self.disk.as_ref(), &self.dir.join(sstable::DIR), *meta)?;
                self.files.insert(*id, Arc::new(table));
            }
        }
        let has_all = self.files.keys().eq(state.files.keys());
        assert!(has_all && state.seq >= seq, "a version has exactly the SSTables of its edit, which is no older than wanted");
        self.history =
            Arc::new(History { number: self.manifest.number(), ..History::new(state.covered(), state.seq, &self.files) });
        Ok(())
    }
}
