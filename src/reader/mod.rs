//! Owns: reading a store from another process through memory maps: no lock, no message, no effect on the writer.
//!
//! What must hold: a [`Snapshot`] never changes: it shows the records up to its watermark for as long as it is held,
//! independently of storage. A record seen at [`At::Committed`] is never withdrawn, except in a cluster with
//! `flush = "interval"`, whose hosts acknowledge records that are only in memory. There, and at the other watermarks, a
//! withdrawal is reported.

mod batch;
mod columns;
mod follow;
mod known;
mod scan;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Disk, RealDisk, absolute};
use crate::error::{Error, Result};
use crate::lsn::{InstrumentId, Lsn, Timeline};
use crate::record::{Kind, Name, Record, schema};
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::{Control, Statistic};
use crate::shm::kinds::Kinds;
use crate::shm::run_dir::RunDir;
use crate::shm::symbols::Symbols;
use crate::time::{Clock, HostClock, Ts};
use crate::version::{History, Versions, View};

pub use crate::record::{Arrival, Row, Series, TimeRange};
pub use batch::RowBatch;
pub use columns::{ColumnBatch, Columns};
pub use follow::{Follow, Tally};
pub use known::{KnownAt, KnownTrade, KnownTrades, Standing};
pub use scan::Scan;

/// The watermark up to which to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Everything that storage has appended; after a loss of power the newest records may be withdrawn.
    Appended,
    /// Records that are durable on this host.
    Durable,
    /// Records that are never withdrawn. In a cluster with `flush = "interval"` they are in the memory of a majority of
    /// hosts, and withdrawn if those lose power.
    Committed,
    /// Records that are flushed to SSTables: a part of the store, on explicit request.
    Flushed,
}

impl std::str::FromStr for At {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "appended" => Ok(At::Appended),
            "durable" => Ok(At::Durable),
            "committed" => Ok(At::Committed),
            "flushed" => Ok(At::Flushed),
            _ => Err(Error::invalid("watermark", format!("'{text}' is none of: appended, durable, committed, flushed"))),
        }
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            At::Appended => "appended",
            At::Durable => "durable",
            At::Committed => "committed",
            At::Flushed => "flushed",
        })
    }
}

/// The last record of the store at `at`.
fn watermark(control: &Control, at: At) -> Lsn {
    match at {
        At::Appended => control.appended(),
        At::Durable => control.durable(),
        At::Committed => control.committed(),
        At::Flushed => Lsn(control.statistic(Statistic::Covered)),
    }
}

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
    run_dir: RunDir,
    control: Control,
    bells: Bells,
    versions: Versions,
    symbols: Option<(u64, Symbols)>,
    kinds: Option<(u64, Kinds)>,
    /// Whether the last snapshot was of [`At::Flushed`]: the catalog as of the checkpoint is enough for that.
    is_part: bool,
}

impl Reader {
    /// Opens the store in the directory `store`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if no storage process has served it since the host started.
    pub fn open(store: &Path) -> Result<Reader> {
        Reader::open_on(Arc::new(RealDisk), store)
    }

    /// Like [`Reader::open`], reading SSTables from `disk`.
    ///
    /// # Errors
    /// As [`Reader::open`].
    #[doc(hidden)]
    pub fn open_on(disk: Arc<dyn Disk>, store: &Path) -> Result<Reader> {
        let store = &absolute(store)?;
        let run_dir = RunDir::find(store)?;
        let control = Control::open(&run_dir.control())?;
        let bells = Bells::open(&run_dir.bells())?;
        let versions = Versions::new(disk.clone(), store, control.store_id());
        let disk = Disks(disk);
        Ok(Reader {
            disk,
            store: store.to_path_buf(),
            run_dir,
            control,
            bells,
            versions,
            symbols: None,
            kinds: None,
            is_part: false,
        })
    }

    /// Switches to the control page that the store's directory leads to now, if storage sends no heartbeat on this one:
    /// the store was restored from a backup, or its shared memory moved. Never switches to another store.
    fn reopen_if_silent(&mut self) {
        if self.is_storage_alive() {
            return;
        }
        let Ok(now) = Reader::open_on(self.disk.0.clone(), &self.store) else { return };
        let page = |c: &Control| (c.instance(), c.started(), c.timeline());
        if now.control.store_id() == self.control.store_id() && page(&now.control) != page(&self.control) {
            *self = Reader { is_part: self.is_part, ..now };
        }
    }

    /// The control page: watermarks and counters.
    #[doc(hidden)]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The run directory.
    #[doc(hidden)]
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// Whether storage has sent a heartbeat within the last second.
    pub fn is_storage_alive(&self) -> bool {
        self.control.is_alive(HostClock.monotonic())
    }

    /// The whole store now, up to `at`. After storage was killed or has stopped in order, this requires that SSTables
    /// and shared memory hold all records up to `at`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] while storage recovers, or after it has stopped if nothing is flushed;
    /// [`Error::InLogAlone`] after it has stopped or was killed, if records up to `at` are only in the log.
    pub fn snapshot(&mut self, at: At) -> Result<Snapshot> {
        self.reopen_if_silent();
        self.is_part = at == At::Flushed;
        let timeline = self.control.timeline();
        let view = match at {
            At::Flushed => {
                let (view, _) = self.versions.look(&self.run_dir, &self.control, |_| Lsn::NONE)?;
                View { upto: view.history.covered(), tables: Vec::new(), ..view }
            }
            _ => self.versions.view(&self.run_dir, &self.control, |control| watermark(control, at))?,
        };
        // After the watermark is read: a kind is published before its first record.
        self.refresh_kinds()?;
        // Drops symbols of an earlier instance.
        let instance = self.control.instance() & !1;
        self.symbols = self.symbols.take_if(|(known, _)| *known == instance);
        if view.tables.is_empty() && view.history.files().is_empty() && self.control.server().is_none() {
            return Err(Error::StorageDown { dir: self.store.clone(), why: "it has stopped" });
        }
        Ok(Snapshot { view, timeline, scratch: Vec::new() })
    }

    /// Unmaps files and MemTables that are kept for the next snapshot and that no [`Snapshot`] uses. Call it before a
    /// long idle time: a map keeps the bytes of an unlinked file allocated.
    pub fn let_go(&mut self) {
        self.versions.let_go();
    }

    /// The instrument names. If storage has stopped and the last snapshot was of [`At::Flushed`], those as of the
    /// checkpoint.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if no names are readable; [`Error::InLogAlone`] after storage has stopped, if instruments
    /// were registered after the checkpoint.
    pub fn symbols(&mut self) -> Result<&mut Symbols> {
        let instance = self.control.instance() & !1;
        let symbols = match self.symbols.take() {
            Some((known, symbols)) if known == instance => symbols,
            _ => match Symbols::open(&self.run_dir.symbols(instance)) {
                Ok(symbols) => symbols,
                Err(error @ Error::Exhausted { .. }) => return Err(error),
                Err(_) if self.control.server().is_none() => {
                    let down = || Error::StorageDown { dir: self.store.clone(), why: "it has stopped" };
                    let names = self.versions.names()?.ok_or_else(down)?;
                    self.demand_all("instruments", names.len() as u64, Statistic::Instruments)?;
                    Symbols::fixed(names)
                }
                Err(_) => return Err(Error::StorageDown { dir: self.store.clone(), why: "its shared memory is gone" }),
            },
        };
        Ok(&mut self.symbols.insert((instance, symbols)).1)
    }

    /// Checks that `held`, the readable number of catalog entries, is the number that the stopped storage process
    /// counted.
    fn demand_all(&self, what: &'static str, held: u64, counted: Statistic) -> Result<()> {
        let last = self.control.statistic(counted);
        // A start resets the counters, after it has marked the instance as recovering.
        if !self.control.instance().is_multiple_of(2) {
            return Err(Error::StorageDown { dir: self.store.clone(), why: "it is recovering" });
        }
        match last {
            last if held < last && !self.is_part => {
                Err(Error::InLogAlone { dir: self.store.clone(), what, first: held + 1, last })
            }
            _ => Ok(()),
        }
    }

    /// Registers the store's user kinds in this process; see [`crate::record::user_kinds`]. Every [`Reader::snapshot`]
    /// does this.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this process has another layout under a number; [`Error::InLogAlone`] after storage has
    /// stopped, if kinds were defined after the checkpoint; [`Error::Io`].
    pub fn kinds(&mut self) -> Result<()> {
        if self.refresh_kinds()? {
            return Ok(());
        }
        self.versions.names()?;
        self.demand_all("kinds", self.versions.kinds(), Statistic::Kinds)
    }

    /// Like [`Reader::kinds`]; `false` if only the manifest has the kinds.
    fn refresh_kinds(&mut self) -> Result<bool> {
        let instance = self.control.instance() & !1;
        if self.kinds.as_ref().is_none_or(|(known, _)| *known != instance) {
            match Kinds::open(&self.run_dir.kinds(instance)) {
                Ok(kinds) => self.kinds = Some((instance, kinds)),
                // After storage has stopped, the manifest has them.
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

/// How record `lsn` arrived in the store of `view`.
fn arrival_in(view: &View, lsn: Lsn) -> Result<Option<Arrival>> {
    if lsn > view.history.covered() {
        let found = view.table_of(lsn).and_then(|t| t.arrival(lsn));
        return view.check_tables().map(|()| found);
    }
    for file in view.history.files_at(lsn) {
        if let Some(arrival) = file.arrival(lsn)? {
            return Ok(Some(arrival));
        }
    }
    Ok(None)
}

/// A store as of one moment. A clone is cheap; use one per thread.
///
/// A call fails because of one file, which the error names: [`Error::Corrupt`] or [`Error::Io`].
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

    /// The SSTables, and the last record in them.
    #[doc(hidden)]
    pub fn history(&self) -> &History {
        &self.view.history
    }

    /// The record at `lsn`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file, as for every call below.
    #[inline]
    pub fn get(&mut self, lsn: Lsn) -> Result<Option<Row<'_>>> {
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
        arrival_in(&self.view, lsn)
    }

    /// The record of `series` with the greatest (index time, LSN) not after `time`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] of a file.
    #[inline]
    pub fn as_of(&mut self, series: Series, time: Ts) -> Result<Option<Row<'_>>> {
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
