//! Owns: reading a store from another process through memory maps: no lock, no message, no effect on the writer.
//!
//! A store that no storage process serves is read from its files ([`AtRest`]): stopped, killed, copied, backed up or on a host
//! that was restarted. A reader goes over from one to the other by itself.
//!
//! What must hold: a [`Snapshot`] never changes: it shows the records up to its watermark for as long as it is held,
//! independently of storage. A record seen at [`At::Committed`] is never withdrawn, except in a cluster with
//! `flush = "interval"`, whose hosts acknowledge records that are only in memory. There, and at the other watermarks, a
//! withdrawal is reported.

mod at;
mod batch;
mod columns;
mod follow;
mod join;
mod known;
mod scan;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Disk, LOCK, RealDisk, absolute, is_locked};
use crate::error::{Error, Result};
use crate::lsn::{InstrumentId, Lsn, Timeline};
use crate::record::{Kind, Name, Record, schema};
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::Control;
use crate::shm::kinds::Kinds;
use crate::shm::run_dir::RunDir;
use crate::shm::symbols::Symbols;
use crate::time::{Clock, HostClock, Ts};
use crate::version::{AtRest, History, Versions, View, is_store};

pub use crate::record::{Arrival, Row, Series, TimeRange};
pub use crate::version::TornTail;
pub use at::At;
#[doc(hidden)]
pub use at::watermark;
pub use batch::RowBatch;
pub use columns::{ColumnBatch, Columns};
pub use follow::{Follow, Tally};
pub use join::Join;
#[doc(hidden)]
pub use known::{Effect, Effects};
pub use known::{KnownAt, KnownTrade, KnownTrades, Standing};
pub use scan::Scan;

/// The disk from which SSTables are read.
#[derive(Clone)]
struct Disks(Arc<dyn Disk>);

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// A process's access to a store. A forked child may use it too: it only reads maps.
///
/// # Example
#[doc = concat!("```no_run\n", include_str!("../examples/as_of.rs"), "\n```")]
#[derive(Debug)]
pub struct Reader {
    disk: Disks,
    store: PathBuf,
    /// `None`: the store is read at rest and no storage process has served it here.
    run_dir: Option<RunDir>,
    control: Control,
    bells: Bells,
    versions: Versions,
    symbols: Option<(u64, Symbols)>,
    kinds: Option<(u64, Kinds)>,
    /// The store as its files hold it, while no storage process serves it.
    at_rest: Option<Box<AtRest>>,
}

impl Reader {
    /// Opens the store in the directory `store`: by its shared memory while a storage process serves it, and otherwise by its
    /// files, which takes the time to read the log after the last flush. Files are only read: read permission and a read-only
    /// file system are enough. [`Reader::is_at_rest`] returns which it is.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if there is no store; [`Error::Denied`] if this process's
    /// user may not read it; of a store at rest also [`Error::Corrupt`], [`Error::Missing`], [`Error::Foreign`] or
    /// [`Error::Version`] if a file is damaged, and [`Error::Limit`] if more records are in its log only than may be read into
    /// memory (4 GiB).
    pub fn open(store: &Path) -> Result<Reader> {
        Reader::open_on(Arc::new(RealDisk), store)
    }

    /// Like [`Reader::open`], reading files from `disk`.
    ///
    /// # Errors
    /// As [`Reader::open`].
    #[doc(hidden)]
    pub fn open_on(disk: Arc<dyn Disk>, store: &Path) -> Result<Reader> {
        let store = &absolute(store)?;
        let served = Reader::open_shared(disk.clone(), store);
        match served {
            // A storage process serves it, or was killed: shared memory may have the whole store.
            Ok(reader) if reader.control.server().is_some() => Ok(reader),
            Ok(mut reader) => {
                reader.read_files()?;
                Ok(reader)
            }
            Err(error @ (Error::StorageDown { .. } | Error::Backup { .. })) if !is_store(disk.as_ref(), store)? => Err(error),
            Err(Error::StorageDown { .. } | Error::Backup { .. }) => Reader::open_files(disk, store),
            // Its shared memory is of another user. Nobody writes its files while no process holds its lock.
            Err(Error::Denied { .. }) if is_store(disk.as_ref(), store).unwrap_or(false) && !is_locked(&store.join(LOCK)) => {
                Reader::open_files(disk, store)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the store by the shared memory that a storage process serves or has left.
    fn open_shared(disk: Arc<dyn Disk>, store: &Path) -> Result<Reader> {
        let run_dir = RunDir::find(store)?;
        let control = Control::open(&run_dir.control())?;
        let bells = Bells::open(&run_dir.bells())?;
        let versions = Versions::new(disk.clone(), store, control.store_id());
        let (disk, store, run_dir) = (Disks(disk), store.to_path_buf(), Some(run_dir));
        Ok(Reader { disk, store, run_dir, control, bells, versions, symbols: None, kinds: None, at_rest: None })
    }

    /// Opens the store by its files.
    fn open_files(disk: Arc<dyn Disk>, store: &Path) -> Result<Reader> {
        let rest = AtRest::read(disk.as_ref(), store)?;
        let versions = Versions::new(disk.clone(), store, rest.control.store_id());
        let (control, bells, store) = (rest.control.clone(), Bells::private()?, store.to_path_buf());
        let at_rest = Some(Box::new(rest));
        Ok(Reader { disk: Disks(disk), store, run_dir: None, control, bells, versions, symbols: None, kinds: None, at_rest })
    }

    /// Goes over to the storage process that serves the store now, if this reader's sends no heartbeat or the store was read at
    /// rest: storage has started, the store was restored from a backup, or its shared memory moved. Never goes over to another
    /// store. If files of a store at rest have changed, they are read again.
    fn reopen_if_silent(&mut self) -> Result<()> {
        if self.at_rest.is_none() && self.is_storage_alive() {
            return Ok(());
        }
        let shared = Reader::open_shared(self.disk.0.clone(), &self.store).ok();
        let shared = shared.filter(|now| now.control.store_id() == self.control.store_id());
        match (&self.at_rest, shared) {
            (Some(_), Some(now)) if now.is_storage_alive() => *self = now,
            (Some(rest), _) if rest.is_current(self.disk.0.as_ref(), &self.store)? => {}
            (Some(_), _) => self.read_files()?,
            (None, Some(now)) => {
                let page = |c: &Control| (c.instance(), c.started(), c.timeline());
                if page(&now.control) != page(&self.control) {
                    *self = now;
                }
            }
            (None, None) => {}
        }
        let has_stopped = self.control.server().is_none() && !self.is_recovering();
        if self.at_rest.is_none() && has_stopped && is_store(self.disk.0.as_ref(), &self.store)? {
            self.read_files()?;
        }
        Ok(())
    }

    /// Reads the store from its files, as they are now.
    fn read_files(&mut self) -> Result<()> {
        let files = Reader::open_files(self.disk.0.clone(), &self.store)?;
        *self = Reader { run_dir: self.run_dir.take(), ..files };
        Ok(())
    }

    /// Whether the store is read from its files, because no storage process serves it.
    pub fn is_at_rest(&self) -> bool {
        self.at_rest.is_some()
    }

    /// The torn tail of the log of a store at rest: the view ends before it, and storage's next start truncates it.
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.at_rest.as_ref().and_then(|rest| rest.torn.as_ref())
    }

    /// The control page: watermarks and counters.
    #[doc(hidden)]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The run directory; `None` if no storage process has served the store since this host was started.
    #[doc(hidden)]
    pub fn run_dir(&self) -> Option<&RunDir> {
        self.run_dir.as_ref()
    }

    /// Whether storage has sent a heartbeat within the last second.
    pub fn is_storage_alive(&self) -> bool {
        self.control.is_alive(HostClock.monotonic())
    }

    /// The whole store now, up to `at`. While no storage process serves it, its files have it.
    ///
    /// # Errors
    /// [`Error::StorageDown`] while storage recovers; those of [`Reader::open`] and of a file.
    pub fn snapshot(&mut self, at: At) -> Result<Snapshot> {
        self.reopen_if_silent()?;
        if self.at_rest.is_none() {
            match self.shared_snapshot(at) {
                // Killed: a part of its MemTables is gone, or it was killed while it changed them.
                Err(error) if error.is_down() && !self.is_storage_alive() && !self.is_recovering() => self.read_files()?,
                other => return other,
            }
        }
        let timeline = self.control.timeline();
        let Some(rest) = &self.at_rest else { panic!("a reader of shared memory has returned its snapshot") };
        let view = if at == At::Flushed { rest.flushed() } else { rest.view(watermark(&self.control, at)) };
        Ok(Snapshot { view, timeline, scratch: Vec::new() })
    }

    /// Whether a live storage process is recovering the store.
    fn is_recovering(&self) -> bool {
        !self.control.instance().is_multiple_of(2) && self.control.has_beat(HostClock.monotonic())
    }

    fn shared_snapshot(&mut self, at: At) -> Result<Snapshot> {
        let Some(run_dir) = &self.run_dir else { panic!("shared memory is in a run directory") };
        let timeline = self.control.timeline();
        let view = match at {
            At::Flushed => {
                let (view, _) = self.versions.look(run_dir, &self.control, |_| Lsn::NONE)?;
                view.flushed()
            }
            _ => self.versions.view(run_dir, &self.control, |control| watermark(control, at))?,
        };
        // After the watermark is read: a kind is published before its first record.
        self.refresh_kinds()?;
        // Drops symbols of an earlier instance.
        let instance = self.control.instance() & !1;
        self.symbols = self.symbols.take_if(|(known, _)| *known == instance);
        Ok(Snapshot { view, timeline, scratch: Vec::new() })
    }

    /// Whether the files and MemTables that are kept for the next snapshot are those of the store now.
    pub fn is_current(&self) -> bool {
        self.at_rest.is_some() || self.versions.is_current(&self.control)
    }

    /// Unmaps files and MemTables that are kept for the next snapshot and that no [`Snapshot`] uses. Call it before a
    /// long idle time: a map keeps the bytes of an unlinked file allocated.
    pub fn let_go(&mut self) {
        self.versions.let_go();
    }

    /// The instrument names.
    ///
    /// # Errors
    /// As [`Reader::snapshot`].
    pub fn symbols(&mut self) -> Result<&mut Symbols> {
        self.reopen_if_silent()?;
        let instance = self.control.instance() & !1;
        let mut symbols = match self.symbols.take() {
            Some((known, symbols)) if known == instance => Some(symbols),
            _ => None,
        };
        if let (None, None, Some(run_dir)) = (&symbols, &self.at_rest, &self.run_dir) {
            match Symbols::open(&run_dir.symbols(instance)) {
                Ok(open) => symbols = Some(open),
                Err(error @ Error::Exhausted { .. }) => return Err(error),
                Err(_) if self.is_recovering() || self.is_storage_alive() => {
                    return Err(Error::StorageDown { dir: self.store.clone(), why: "it is recovering" });
                }
                Err(_) => self.read_files()?,
            }
        }
        let names = || self.at_rest.as_ref().map_or_else(Vec::new, |rest| rest.names.clone());
        let symbols = symbols.unwrap_or_else(|| Symbols::fixed(names()));
        Ok(&mut self.symbols.insert((instance, symbols)).1)
    }

    /// Registers the store's user kinds in this process; see [`crate::record::user_kinds`]. Every [`Reader::snapshot`]
    /// does this. While storage recovers, those that were read before stay registered.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this process has another layout under a number; as [`Reader::open`].
    pub fn kinds(&mut self) -> Result<()> {
        self.reopen_if_silent()?;
        // Reading the files has registered them.
        if self.at_rest.is_none() && !self.refresh_kinds()? && !self.is_recovering() && !self.is_storage_alive() {
            self.read_files()?;
        }
        Ok(())
    }

    /// Like [`Reader::kinds`]; `false` if shared memory does not have them.
    fn refresh_kinds(&mut self) -> Result<bool> {
        let Some(run_dir) = &self.run_dir else { return Ok(false) };
        let instance = self.control.instance() & !1;
        if self.kinds.as_ref().is_none_or(|(known, _)| *known != instance) {
            match Kinds::open(&run_dir.kinds(instance)) {
                Ok(kinds) => self.kinds = Some((instance, kinds)),
                // Storage has stopped or was started again.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.kinds.as_mut().map_or(Ok(()), |(_, kinds)| kinds.refresh())?;
        Ok(true)
    }

    /// Checks that the store's records of `R`'s kind, which the program defined, have the layout of `R`.
    /// [`crate::record::RecordRef::get`] returns no `R` for a record of another layout.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the layouts differ, with the difference; those of [`Reader::kinds`].
    pub fn kind<R: Record>(&mut self) -> Result<()> {
        self.kinds()?;
        crate::record::Layout::of(R::SCHEMA_REF)?.register().map(drop)
    }

    /// The instrument called `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none; those of [`Reader::symbols`].
    pub fn instrument(&mut self, name: &Name) -> Result<InstrumentId> {
        let found = self.symbols()?.id(name);
        found.ok_or_else(|| {
            Error::invalid("instrument", format!("'{name}' is not in this store; to list its instruments, run: tape symbols"))
        })
    }

    /// Follows the store in LSN order from `next` on, up to `at`, and continues as records arrive.
    pub fn follow(self, next: Lsn, at: At) -> Follow {
        Follow::new(self, next, at)
    }

    /// Sleeps until a record above `lsn` is visible at [`At::Appended`], or for `limit`.
    #[doc(hidden)]
    pub fn wait_beyond(&self, lsn: Lsn, limit: Duration) {
        self.bells.sleep(Bell::Applied, limit, || self.control.applied() > lsn);
    }
}

/// A store as of one moment. A clone is cheap; use one per thread.
///
/// It keeps the SSTables and MemTables of its moment mapped, and so their bytes allocated when they have been compacted, have
/// expired or were flushed. Release it when it is not needed; [`Snapshot::check_age`] says when storage needs the room.
///
/// A call fails because of one file, which the error names: [`Error::Corrupt`] or [`Error::Io`]; or because of
/// [`Error::SnapshotTooOld`].
#[derive(Clone, Debug)]
pub struct Snapshot {
    view: View,
    timeline: Timeline,
    /// The last record read from an SSTable.
    scratch: Vec<u64>,
}

impl Snapshot {
    /// The last record; 0 if there is none.
    pub fn last(&self) -> Lsn {
        self.view.upto
    }

    /// The first record, if there is one.
    pub fn first(&self) -> Lsn {
        let flushed = self.view.history.files().first().map(|f| f.meta().lsn.0);
        flushed.or_else(|| self.view.tables.first().map(|t| t.base())).unwrap_or(Lsn(1))
    }

    /// Its timeline.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Checks that storage does not ask for the room of removed SSTables that this snapshot keeps mapped. Every call that reads
    /// checks it; a program that holds a snapshot for long without reading asks here.
    ///
    /// # Errors
    /// [`Error::SnapshotTooOld`] if more than `pinned-max` bytes are kept, or the disk is nearly full. Every later call returns it
    /// too: drop the snapshot, take a new one, and continue after the last record read.
    #[inline]
    pub fn check_age(&self) -> Result<()> {
        self.view.check_age()
    }

    /// The SSTables, and the last record in them.
    #[doc(hidden)]
    pub fn history(&self) -> &History {
        &self.view.history
    }

    /// The MemTables, oldest first: the records after those of [`Snapshot::history`], up to [`Snapshot::last`].
    #[doc(hidden)]
    pub fn tables(&self) -> &[Arc<crate::memtable::Table>] {
        &self.view.tables
    }

    /// The record at `lsn`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file, as for every call below.
    #[inline]
    pub fn get(&mut self, lsn: Lsn) -> Result<Option<Row<'_>>> {
        self.check_age()?;
        if lsn > self.view.history.covered() {
            let Some(table) = self.view.table_of(lsn) else { return Ok(None) };
            let row = table.row(lsn);
            return table.check().map(|()| row);
        }
        self.scratch.clear();
        for file in self.view.history.files_at(lsn) {
            if let Some(place) = file.place_of(lsn)? {
                let (lsn, index_time) = file.row(place, &mut self.scratch)?;
                return row_of(lsn, index_time, &self.scratch).map(Some);
            }
        }
        Ok(None)
    }

    /// How record `lsn` arrived in the store.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    pub fn arrival(&self, lsn: Lsn) -> Result<Option<Arrival>> {
        self.check_age()?;
        self.view.arrival(lsn)
    }

    /// The record of `series` with the greatest (index time, LSN) not after `time`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    #[inline]
    pub fn as_of(&mut self, series: Series, time: Ts) -> Result<Option<Row<'_>>> {
        self.check_age()?;
        let each = self.view.tables.iter().filter_map(|t| t.as_of(series, time, self.view.upto));
        let newest = each.max_by_key(|row| (row.index_time, row.lsn));
        self.view.check_tables()?;
        let mut best = newest.map(|row| (row.index_time, row.lsn));
        let mut in_file = None;
        for (file, newest) in self.view.history.files_until(series.kind, time) {
            // Files come by descending newest index time: no later one has a better row.
            if best.is_some_and(|(t, _)| newest < t) {
                break;
            }
            if let Some((t, lsn, place)) = file.as_of(series.instrument, time)?
                && best.is_none_or(|b| b < (t, lsn))
            {
                best = Some((t, lsn));
                in_file = Some((file, place));
            }
        }
        let Some((file, place)) = in_file else { return Ok(newest) };
        self.scratch.clear();
        let (lsn, index_time) = file.row(place, &mut self.scratch)?;
        row_of(lsn, index_time, &self.scratch).map(Some)
    }

    /// The newest record of each instrument that has records of `kind`, in the order of instruments: the one with the greatest
    /// (index time, LSN).
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    pub fn latest(&mut self, kind: Kind) -> Result<RowBatch> {
        let mut batch = RowBatch::default();
        for series in self.series()?.into_iter().filter(|series| series.kind == kind) {
            if let Some(row) = self.as_of(series, Ts(u64::MAX))? {
                batch.push(&row);
            }
        }
        Ok(batch)
    }

    /// The records of `left` in `range`, each with the newest record of `right` at its index time: the trades of an instrument
    /// with the quote that each met, for one. [`Snapshot::as_of`] says which record that is; it may be before `range`. Both
    /// series are read once, in constant memory.
    ///
    /// ```no_run
    /// # use tapestore::{Reader, Trade, Quote, record::Record, reader::{At, Series, TimeRange}, lsn::InstrumentId};
    /// # fn run(reader: &mut Reader, instrument: InstrumentId) -> Result<(), tapestore::Error> {
    /// let mut now = reader.snapshot(At::Committed)?;
    /// let (trades, quotes) = (Series { instrument, kind: Trade::KIND }, Series { instrument, kind: Quote::KIND });
    /// let mut pairs = now.join(trades, quotes, TimeRange::ALL)?;
    /// while let Some((trade, quote)) = pairs.next()? {
    ///     println!("{:?} {:?}", trade.record.get::<Trade>(), quote.and_then(|row| row.record.get::<Quote>()));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    pub fn join(&mut self, left: Series, right: Series, range: TimeRange) -> Result<Join<'_>> {
        let mut before = RowBatch::default();
        if let Some(time) = range.from.0.checked_sub(1)
            && let Some(row) = self.as_of(right, Ts(time))?
        {
            before.push(&row);
        }
        Ok(Join::new(self.scan(left, range), self.scan(right, range), before.get(0)))
    }

    /// The records of `series` at exactly `time`, in LSN order.
    pub fn get_at(&self, series: Series, time: Ts) -> Scan<'_> {
        self.scan(series, TimeRange { from: time, to: time })
    }

    /// The records of `series` in `range`, in (index time, LSN) order.
    pub fn scan(&self, series: Series, range: TimeRange) -> Scan<'_> {
        Scan::new(&self.view, &[series], range)
    }

    /// The records of all of `series` in `range`, in (index time, LSN) order.
    pub fn replay(&self, series: &[Series], range: TimeRange) -> Scan<'_> {
        Scan::new(&self.view, series, range)
    }

    /// The records of `kind`, of one `instrument` or of all, in `range` as columns; see [`Columns`] for
    /// their order. `None` if the kind is unknown.
    pub fn columns(&self, kind: Kind, instrument: Option<InstrumentId>, range: TimeRange) -> Option<Columns<'_>> {
        Columns::new(&self.view, kind, instrument, range)
    }

    /// The records of `series` whose lookup column `column`, one of the kind's [`crate::record::Schema::find`], is
    /// `id`, in (index time, LSN) order. A miss costs one filter lookup per file; MemTables are searched row by row.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the kind has no such column; [`Error::Corrupt`] or [`Error::Io`] of a file.
    pub fn find(&self, series: Series, column: &str, id: u64) -> Result<RowBatch> {
        let of = schema(series.kind).filter(|s| s.find.contains(&column)).and_then(|s| s.column(column));
        let index = schema(series.kind).and_then(|s| s.find.iter().position(|c| *c == column));
        let (Some(of), Some(index)) = (of, index) else {
            let known = schema(series.kind).map_or(&[][..], |s| s.find);
            return Err(Error::invalid("column", format!("'{column}' is not a lookup column of this kind; those are {known:?}")));
        };
        self.check_age()?;
        let (mut batch, mut places) = (RowBatch::default(), Vec::new());
        for file in self.view.history.files_in(series.kind, TimeRange::ALL) {
            places.clear();
            file.find(series.instrument, index as u32, id, &mut places)?;
            for &place in &places {
                let mut words = Vec::new();
                let (lsn, index_time) = file.row(place, &mut words)?;
                batch.push(&row_of(lsn, index_time, &words)?);
            }
        }
        let word = of.offset / 8;
        if id != crate::sstable::format::ID_NULL {
            let tables = self.view.tables.iter();
            tables.flat_map(|t| t.rows_with(series, word, id, self.view.upto)).for_each(|row| batch.push(&row));
            self.view.check_tables()?;
        }
        batch.heads.sort_unstable();
        Ok(batch)
    }

    /// The store as of the moment when record `at` was its newest: later records are ignored.
    pub fn as_known_at(&self, at: Lsn) -> KnownAt<'_> {
        KnownAt::new(self, at)
    }

    /// All series that have a record, sorted.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    pub fn series(&self) -> Result<Vec<Series>> {
        self.check_age()?;
        self.view.series()
    }

    /// Bytes used in shared memory, per MemTable.
    #[doc(hidden)]
    pub fn used(&self) -> Vec<u64> {
        self.view.tables.iter().map(|t| t.used()).collect()
    }

    /// Returns the memory of everything read to the system, where mapped pages count as this process's. Later reads
    /// come from the page cache, the disk or shared memory. For programs that read much and must stay small.
    pub fn release(&self) {
        self.view.history.files().iter().for_each(|f| f.release());
        self.view.tables.iter().for_each(|t| t.release());
    }

    /// The MemTables: number, first LSN, bytes used, number of series.
    #[doc(hidden)]
    pub fn memtables(&self) -> Vec<(u64, Lsn, u64, usize)> {
        self.view.tables.iter().map(|t| (t.id(), t.base(), t.used(), t.series().len())).collect()
    }
}

fn row_of(lsn: Lsn, index_time: Ts, words: &[u64]) -> Result<Row<'_>> {
    Ok(Row { lsn, index_time, record: crate::record::RecordRef::first(words)? })
}
