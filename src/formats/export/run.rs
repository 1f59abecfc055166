//! Owns: an export as it runs: where its files go, what it has written so far, and who is notified.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;

use tapestore::lsn::InstrumentId;
use tapestore::reader::{Snapshot, TimeRange};
use tapestore::record::Name;
use tapestore::shm::symbols::Symbols;

use super::file::{FileReport, Pending};
use super::target::Target;
use crate::checksum::Checksum;
use crate::error::{Error, Result, Work};
use crate::input::NO_NAME;

/// Rows between two times at which the memory of what has been read is given back.
const RELEASE_ROWS: u64 = 1 << 19;
/// Rows between two times at which the caller is notified.
const NOTIFY_ROWS: u64 = 4096;

/// What of the series is exported, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Index times.
    pub range: TimeRange,
    /// Records at most.
    pub limit: u64,
    /// Prices and sizes as decimals instead of integers of 1e-9 (Parquet, Arrow).
    pub decimal: bool,
    /// Replace files that are there.
    pub replace: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { range: TimeRange::ALL, limit: u64::MAX, decimal: false, replace: false }
    }
}

/// What happens while an export runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// So many rows have been read.
    Rows(u64),
    /// A file is whole.
    File(&'a FileReport),
    /// So many things are left in the store, and no file was begun for them.
    Left(&'a str, u64),
}

/// Receives events; [`ControlFlow::Break`] ends the export with [`Error::Interrupted`].
pub type OnEvent<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// What an export has written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Its files, in the order in which they became whole.
    pub files: Vec<FileReport>,
    /// What no file was begun for, and how often: it is left in the store.
    pub left: BTreeMap<String, u64>,
}

impl Summary {
    /// Records of all files, and their checksum.
    pub fn checksum(&self) -> Checksum {
        let mut total = Checksum::default();
        self.files.iter().for_each(|file| total.add_all(file.checksum));
        total
    }

    /// How many things are left in the store.
    pub fn left(&self) -> u64 {
        self.files.iter().flat_map(|file| file.left.values()).chain(self.left.values()).sum()
    }
}

/// An export as it runs.
pub(super) struct Run<'a> {
    pub(super) snapshot: &'a Snapshot,
    names: &'a mut Symbols,
    pub(super) target: Target,
    pub(super) options: Options,
    on_event: OnEvent<'a>,
    /// The files of this export.
    made: BTreeSet<PathBuf>,
    /// Rows read.
    rows: u64,
    /// Records written.
    records: u64,
    pub(super) summary: Summary,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        names: &'a mut Symbols,
        target: Target,
        options: Options,
        on_event: OnEvent<'a>,
    ) -> Run<'a> {
        let (made, summary) = (BTreeSet::new(), Summary::default());
        Run { snapshot, names, target, options, on_event, made, rows: 0, records: 0, summary }
    }

    /// Where the file called `stem` goes.
    pub(super) fn path(&self, stem: &str) -> PathBuf {
        let file = format!("{stem}.{}", self.target.format.extension());
        if self.target.is_dir { self.target.path.join(file) } else { self.target.path.clone() }
    }

    /// Where the file called `stem` goes, which is begun now.
    ///
    /// # Errors
    /// [`Error::Usage`] if another of this export has gone there.
    pub(super) fn take_path(&mut self, stem: &str) -> Result<PathBuf> {
        let path = self.path(stem);
        if self.made.insert(path.clone()) {
            return Ok(path);
        }
        Err(Error::Usage(format!("two files would be called {}; choose with --kind and --instrument", path.display())))
    }

    /// The name of `instrument`.
    pub(super) fn name(&mut self, instrument: InstrumentId) -> Result<Name> {
        if instrument == InstrumentId::NULL {
            return Ok(NO_NAME.parse()?);
        }
        self.names.name(instrument).ok_or(Error::NoName { instrument })
    }

    /// Whether no more records are wanted.
    pub(super) fn is_full(&self) -> bool {
        self.records >= self.options.limit
    }

    fn notify(&mut self, event: Event<'_>) -> Result {
        match (self.on_event)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted { path: self.target.path.clone(), work: Work::Export }),
        }
    }

    /// To be called for each row that is read.
    pub(super) fn tick(&mut self) -> Result {
        self.rows += 1;
        if self.rows.is_multiple_of(RELEASE_ROWS) {
            self.snapshot.release();
        }
        if self.rows.is_multiple_of(NOTIFY_ROWS) { self.notify(Event::Rows(self.rows)) } else { Ok(()) }
    }

    /// To be called after each row that a file has been given: whether it `is_written`.
    pub(super) fn count(&mut self, is_written: bool) {
        self.records += u64::from(is_written);
    }

    /// Counts what no file was begun for.
    pub(super) fn leave(&mut self, what: &str, n: u64) -> Result {
        *self.summary.left.entry(what.to_owned()).or_default() += n;
        self.notify(Event::Left(what, n))
    }

    /// Gives `file` its name.
    pub(super) fn finish(&mut self, file: Pending) -> Result {
        let report = file.finish()?;
        let notified = self.notify(Event::File(&report));
        self.summary.files.push(report);
        notified
    }
}
