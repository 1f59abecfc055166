//! Owns: reading a store from another process, through memory maps alone: no lock, no message, no
//! effect on the writer.
//!
//! What must hold: a [`Snapshot`] never changes: it shows the records up to its watermark, for as long
//! as it is held, whatever storage does; a reader that is told a record at [`At::Committed`] is never
//! told otherwise later, unless hosts are said to have what they have in memory only (`flush = "interval"`); there, and at the
//! other watermarks, a withdrawal is announced.

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

/// Up to which watermark to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Everything that storage has taken in; a loss of power may withdraw the newest.
    Appended,
    /// What is durable on this host.
    Durable,
    /// What can never be withdrawn; of a cluster with `flush = "interval"`, what is in the memory of most hosts, which can be
    /// if they lose power.
    Committed,
    /// What is flushed to the files of history: a part of the store, for who asks for that part.
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

/// The last record that the store has at `at`.
fn watermark(control: &Control, at: At) -> Lsn {
    match at {
        At::Appended => control.appended(),
        At::Durable => control.durable(),
        At::Committed => control.committed(),
        At::Flushed => Lsn(control.statistic(Statistic::Covered)),
    }
}

/// Where history is read from.
#[derive(Clone)]
struct Disks(Arc<dyn Disk>);

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// A process's access to a store. It may be used in a process that was forked off too: it only reads what is mapped.
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
    /// Whether the part that is flushed was asked for last: then the catalog as of the checkpoint is enough for it.
    is_part: bool,
}

impl Reader {
    /// Opens the store in the directory `store`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if no storage process has served it since the host was started.
    pub fn open(store: &Path) -> Result<Reader> {
        Reader::open_on(Arc::new(RealDisk), store)
    }

    /// The same, with history read from `disk`.
    ///
    /// # Errors
    /// As [`Reader::open`].
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

    /// Goes over to the control page that the store's directory leads to now, if storage is silent on this one: the
    /// store has been restored from a backup, or lies elsewhere in shared memory. Another store is not gone over to.
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
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The run directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// Whether storage has turned its loop within the last second.
    pub fn is_storage_alive(&self) -> bool {
        self.control.is_alive(HostClock.monotonic())
    }

    /// The store as it is now, up to `at`: all of it. After storage has been killed or has stopped in order that is so if
    /// files and shared memory hold all records up to `at`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] while storage recovers, or after it has stopped if nothing is flushed;
    /// [`Error::InLogAlone`] after it has stopped or was killed, if records up to `at` are in the log alone.
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
        // After the watermark: a kind is published before the first record of it.
        self.refresh_kinds()?;
        // Those of an instance that is gone.
        let instance = self.control.instance() & !1;
        self.symbols = self.symbols.take_if(|(known, _)| *known == instance);
        if view.tables.is_empty() && view.history.files().is_empty() && self.control.server().is_none() {
            return Err(Error::StorageDown { dir: self.store.clone(), why: "it has stopped" });
        }
        Ok(Snapshot { view, timeline, scratch: Vec::new() })
    }

    /// Gives back the files and MemTables that no [`Snapshot`] holds, which are kept mapped for the next one: for who will
    /// not look again for long. What storage unlinks meanwhile takes its bytes until then otherwise.
    pub fn let_go(&mut self) {
        self.versions.let_go();
    }

    /// The instrument names; of a store that has stopped, after a snapshot of what is flushed, those as of the checkpoint.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if there are none to be read; [`Error::InLogAlone`] after storage has stopped, if
    /// instruments were registered after the checkpoint.
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

    /// Whether the `held` things of the catalog that are to be read are as many as the storage process that has stopped
    /// counted.
    fn demand_all(&self, what: &'static str, held: u64, counted: Statistic) -> Result<()> {
        let last = self.control.statistic(counted);
        // A start counts anew, after it has said that it recovers.
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

    /// Makes the kinds that programs defined in the store known to this process; see
    /// [`crate::record::user_kinds`]. Every [`Reader::snapshot`] does it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this process knows another layout under a number; [`Error::InLogAlone`] after storage has
    /// stopped, if kinds were defined after the checkpoint; [`Error::Io`].
    pub fn kinds(&mut self) -> Result<()> {
        if self.refresh_kinds()? {
            return Ok(());
        }
        self.versions.names()?;
        self.demand_all("kinds", self.versions.kinds(), Statistic::Kinds)
    }

    /// The same; `false` if there is only what the manifest has of them.
    fn refresh_kinds(&mut self) -> Result<bool> {
        let instance = self.control.instance() & !1;
        if self.kinds.as_ref().is_none_or(|(known, _)| *known != instance) {
            match Kinds::open(&self.run_dir.kinds(instance)) {
                Ok(kinds) => self.kinds = Some((instance, kinds)),
                // Of a store that has stopped the manifest has them.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.kinds.as_mut().map_or(Ok(()), |(_, kinds)| kinds.refresh())?;
        Ok(true)
    }

    /// Checks that records of `R`'s kind, which the program defined, are in this store as `R` lays them out. Without
    /// it, records of another layout are no `R`s: [`crate::record::RecordRef::get`] gives none.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they are not, saying how the two differ; as [`Reader::kinds`].
    pub fn kind<R: Record>(&mut self) -> Result<()> {
        self.kinds()?;
        crate::record::Layout::of(R::SCHEMA_REF)?.register().map(drop)
    }

    /// The instrument called `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none; as [`Reader::symbols`].
    pub fn instrument(&mut self, name: &Name) -> Result<InstrumentId> {
        let found = self.symbols()?.id(name);
        found.ok_or_else(|| Error::invalid("instrument", format!("'{name}' is not in this store; `tape symbols` lists what is")))
    }

    /// Follows the store in LSN order from `next` on, up to `at`, and then as records come.
    pub fn follow(self, next: Lsn, at: At) -> Follow {
        Follow::new(self, next, at)
    }

    /// Sleeps until a record above `lsn` is visible at [`At::Appended`], or `limit` has passed.
    pub fn wait_beyond(&self, lsn: Lsn, limit: Duration) {
        self.bells.sleep(Bell::Applied, limit, || self.control.applied() > lsn);
    }
}

/// How the record `lsn` came into the store that `view` shows.
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

/// A store as of one moment. Cloning it is cheap; each thread has its own.
///
/// A call that fails does so because of one file: [`Error::Corrupt`] or [`Error::Io`], naming it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    view: View,
    timeline: Timeline,
    /// The record of history that was asked for last.
    scratch: Vec<u64>,
}

impl Snapshot {
    /// The last record it shows; 0 if there is none.
    pub fn last(&self) -> Lsn {
        self.view.upto
    }

    /// The first record it shows, if it shows any.
    pub fn first(&self) -> Lsn {
        let filed = self.view.history.files().first().map(|f| f.meta().lsn.0);
        filed.or_else(|| self.view.tables.first().map(|t| t.base())).unwrap_or(Lsn(1))
    }

    /// The timeline it belongs to.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The files of history, and up to which record they go.
    pub fn history(&self) -> &History {
        &self.view.history
    }

    /// The record of number `lsn`.
    ///
    /// # Errors
    /// Of a file, as for every call below.
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

    /// How the record of number `lsn` came into the store.
    ///
    /// # Errors
    /// Of a file.
    pub fn arrival(&self, lsn: Lsn) -> Result<Option<Arrival>> {
        arrival_in(&self.view, lsn)
    }

    /// The record of `series` with the greatest (index time, LSN) not after `time`.
    ///
    /// # Errors
    /// Of a file.
    #[inline]
    pub fn as_of(&mut self, series: Series, time: Ts) -> Result<Option<Row<'_>>> {
        let each = self.view.tables.iter().filter_map(|t| t.as_of(series, time, self.view.upto));
        let newest = each.max_by_key(|row| (row.index_time, row.lsn));
        self.view.check_tables()?;
        let mut best = newest.map(|row| (row.index_time, row.lsn));
        let mut filed = None;
        for (file, newest) in self.view.history.files_until(series.kind, time) {
            // An older file can only be better if something in it is as new.
            if best.is_some_and(|(t, _)| newest < t) {
                break;
            }
            if let Some((t, lsn, place)) = file.as_of(series.instrument, time)?
                && best.is_none_or(|b| b < (t, lsn))
            {
                best = Some((t, lsn));
                filed = Some((file, place));
            }
        }
        let Some((file, place)) = filed else { return Ok(newest) };
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

    /// The records of all the `series` in `range`, in (index time, LSN) order.
    pub fn replay(&self, series: &[Series], range: TimeRange) -> Scan<'_> {
        Scan::new(&self.view, series, range)
    }

    /// The records of `kind`, of one `instrument` or of all, in `range` as columns; see [`Columns`] for
    /// their order. `None` if the kind is unknown.
    pub fn columns(&self, kind: Kind, instrument: Option<InstrumentId>, range: TimeRange) -> Option<Columns<'_>> {
        Columns::new(&self.view, kind, instrument, range)
    }

    /// The records of `series` whose id `column`, one of the kind's [`crate::record::Schema::find`], is
    /// `id`, in (index time, LSN) order. In files a miss costs a look at a filter each; MemTables are
    /// searched row by row.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the kind has no such column; of a file.
    pub fn find(&self, series: Series, column: &str, id: u64) -> Result<RowBatch> {
        let of = schema(series.kind).filter(|s| s.find.contains(&column)).and_then(|s| s.column(column));
        let index = schema(series.kind).and_then(|s| s.find.iter().position(|c| *c == column));
        let (Some(of), Some(index)) = (of, index) else {
            let known = schema(series.kind).map_or(&[][..], |s| s.find);
            return Err(Error::invalid("column", format!("'{column}' is none of the columns to find by: {known:?}")));
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

    /// The store as it was known when record `at` was its newest: later records are not looked at.
    pub fn as_known_at(&self, at: Lsn) -> KnownAt<'_> {
        KnownAt::new(self, at)
    }

    /// Every series that has a record, sorted.
    ///
    /// # Errors
    /// Of a file.
    pub fn series(&self) -> Result<Vec<Series>> {
        self.view.series()
    }

    /// Bytes of shared memory that the MemTables fill, a table each.
    pub fn used(&self) -> Vec<u64> {
        self.view.tables.iter().map(|t| t.used()).collect()
    }

    /// Gives the memory of what has been read back to the system, where mapped pages count as this process's. What is
    /// read again comes from the page cache, the disk or shared memory. For who reads much and wants to stay small.
    pub fn release(&self) {
        self.view.history.files().iter().for_each(|f| f.release());
        self.view.tables.iter().for_each(|t| t.release());
    }

    /// The MemTables it shows: number, first LSN, bytes used, series.
    pub fn memtables(&self) -> Vec<(u64, Lsn, u64, usize)> {
        self.view.tables.iter().map(|t| (t.id(), t.base(), t.used(), t.series().len())).collect()
    }
}

fn row_of(lsn: Lsn, index_time: Ts, words: &[u64]) -> Result<Row<'_>> {
    Ok(Row { lsn, index_time, record: crate::record::RecordRef::first(words)? })
}
