//! Owns: reading a store from another process, through memory maps alone: no lock, no message, no
//! effect on the writer.
//!
//! What must hold: a [`Snapshot`] never changes: it shows the records up to its watermark, for as long
//! as it is held, whatever storage does; a reader that is told a record at [`At::Committed`] is never
//! told otherwise later; at the other watermarks a withdrawal is announced.

mod follow;
mod merge;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::lsn::{InstrumentId, Lsn, Timeline};
use crate::memtable::{Tables, View};
use crate::record::Name;
use crate::shm::bell::{Bell, Bells};
use crate::shm::control::Control;
use crate::shm::run_dir::RunDir;
use crate::shm::symbols::Symbols;
use crate::time::{Clock, HostClock, Ts};

pub use crate::memtable::{Arrival, Row, Series, TimeRange};
pub use follow::{Follow, Tally};
pub use merge::Merge;

/// Up to which watermark to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Everything that storage has taken in; a loss of power may withdraw the newest.
    Appended,
    /// What is durable on this host.
    Durable,
    /// What can never be withdrawn.
    Committed,
}

impl std::str::FromStr for At {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "appended" => Ok(At::Appended),
            "durable" => Ok(At::Durable),
            "committed" => Ok(At::Committed),
            _ => Err(Error::invalid("watermark", format!("'{text}' is none of: appended, durable, committed"))),
        }
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            At::Appended => "appended",
            At::Durable => "durable",
            At::Committed => "committed",
        })
    }
}

/// The last record that a reader at `at` may see.
fn watermark(control: &Control, at: At) -> Lsn {
    let limit = match at {
        At::Appended => control.appended(),
        At::Durable => control.durable(),
        At::Committed => control.committed(),
    };
    limit.min(control.applied())
}

/// A process's access to a store.
#[derive(Debug)]
pub struct Reader {
    store: PathBuf,
    run_dir: RunDir,
    control: Control,
    bells: Bells,
    tables: Tables,
    symbols: Option<(u64, Symbols)>,
}

impl Reader {
    /// Opens the store in the directory `store`.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if no storage process has served it since the host was started.
    pub fn open(store: &Path) -> Result<Reader> {
        let run_dir = RunDir::find(store)?;
        let control = Control::open(&run_dir.control())?;
        let bells = Bells::open_or_create(&run_dir.bells())?;
        Ok(Reader { store: store.to_path_buf(), run_dir, control, bells, tables: Tables::default(), symbols: None })
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

    /// The store as it is now, up to `at`. Serves what is in shared memory even after storage has been
    /// killed.
    ///
    /// # Errors
    /// [`Error::StorageDown`] while storage recovers, or after it has stopped in order.
    pub fn snapshot(&mut self, at: At) -> Result<Snapshot> {
        let timeline = self.control.timeline();
        let view = self.tables.view(&self.run_dir, &self.control, |control| watermark(control, at)).map_err(|e| self.name(e))?;
        if view.tables.is_empty() {
            return Err(Error::StorageDown { dir: self.store.clone(), why: "it has stopped" });
        }
        Ok(Snapshot { view, timeline })
    }

    /// Errors of lower floors know the run directory; users know the store.
    fn name(&self, error: Error) -> Error {
        match error {
            Error::StorageDown { why, .. } => Error::StorageDown { dir: self.store.clone(), why },
            other => other,
        }
    }

    /// The instrument names.
    ///
    /// # Errors
    /// [`Error::StorageDown`] if there are none to be read.
    pub fn symbols(&mut self) -> Result<&mut Symbols> {
        let instance = self.control.instance() & !1;
        if self.symbols.as_ref().is_none_or(|(i, _)| *i != instance) {
            let opened = Symbols::open(&self.run_dir.symbols(instance));
            let symbols = opened.map_err(|_| Error::StorageDown { dir: self.store.clone(), why: "it has stopped" })?;
            self.symbols = Some((instance, symbols));
        }
        match &mut self.symbols {
            Some((_, symbols)) => Ok(symbols),
            None => Err(Error::StorageDown { dir: self.store.clone(), why: "it has stopped" }),
        }
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

/// A store as of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    view: View,
    timeline: Timeline,
}

impl Snapshot {
    /// The last record it shows; 0 if there is none.
    pub fn last(&self) -> Lsn {
        self.view.upto
    }

    /// The first record it shows, if it shows any.
    pub fn first(&self) -> Lsn {
        self.view.tables.first().map_or(Lsn(1), |t| t.base())
    }

    /// The timeline it belongs to.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    #[inline]
    fn table_of(&self, lsn: Lsn) -> Option<&crate::memtable::Table> {
        if lsn > self.view.upto {
            return None;
        }
        self.view.tables.iter().rev().find(|t| t.base() <= lsn).map(|t| &**t)
    }

    /// The record of number `lsn`.
    #[inline]
    pub fn get(&self, lsn: Lsn) -> Option<Row<'_>> {
        self.table_of(lsn)?.row(lsn)
    }

    /// How the record of number `lsn` came into the store.
    pub fn arrival(&self, lsn: Lsn) -> Option<Arrival> {
        self.table_of(lsn)?.arrival(lsn)
    }

    /// The record of `series` with the greatest (index time, LSN) not after `time`.
    #[inline]
    pub fn as_of(&self, series: Series, time: Ts) -> Option<Row<'_>> {
        let each = self.view.tables.iter().filter_map(|t| t.as_of(series, time, self.view.upto));
        each.max_by_key(|row| (row.index_time, row.lsn))
    }

    /// The records of `series` at exactly `time`, in LSN order.
    pub fn get_at(&self, series: Series, time: Ts) -> Merge<'_> {
        self.scan(series, TimeRange { from: time, to: time })
    }

    /// The records of `series` in `range`, in (index time, LSN) order.
    pub fn scan(&self, series: Series, range: TimeRange) -> Merge<'_> {
        Merge::new(self.view.tables.iter().map(|t| t.rows(series, range, self.view.upto)))
    }

    /// The records of all the `series` in `range`, in (index time, LSN) order.
    pub fn replay(&self, series: &[Series], range: TimeRange) -> Merge<'_> {
        let tables = self.view.tables.iter();
        Merge::new(tables.flat_map(|t| series.iter().map(move |&s| t.rows(s, range, self.view.upto))))
    }

    /// Every series that has a record, sorted.
    pub fn series(&self) -> Vec<Series> {
        let mut all: Vec<Series> = self.view.tables.iter().flat_map(|t| t.series()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Bytes of shared memory that the MemTables fill, a table each.
    pub fn used(&self) -> Vec<u64> {
        self.view.tables.iter().map(|t| t.used()).collect()
    }
}
