//! Owns: the MemTables of the storage process: the active one, the sealed ones, the next one.
//!
//! What must hold: a table is named on the control page before a record in it is applied; at most
//! `tables_max` exist, and when they are full nothing more is taken in.

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use crate::error::{Error, Result};
use crate::lsn::{Lsn, PubSeq};
use crate::memtable::{Origin, Writer};
use crate::record;
use crate::shm::control::{Control, Statistic, TABLES_MAX};
use crate::shm::run_dir::RunDir;
use crate::time::Ts;
use crate::wal::Run;

/// How tables are made.
#[derive(Clone, Debug)]
pub struct Maker {
    /// Where.
    pub run_dir: RunDir,
    /// For which instance.
    pub instance: u64,
    /// Of which store.
    pub store_id: u128,
    /// Bytes of each.
    pub len: u64,
}

impl Maker {
    /// Makes table `id`.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`]; [`Error::Io`].
    pub fn make(&self, id: u64) -> Result<Writer> {
        Writer::create(&self.run_dir.memtable(self.instance, id), self.store_id, id, self.len)
    }
}

/// Where the next table comes from.
pub enum Source {
    /// Made when it is needed: at start-up, in simulation.
    Inline,
    /// Made ahead by another thread, on request.
    Ahead {
        /// Asks for the table of this number.
        request: Sender<u64>,
        /// Gives it.
        ready: Receiver<Result<Writer>>,
    },
}

/// The MemTables.
pub struct MemTables {
    maker: Maker,
    source: Source,
    control: Control,
    active: Writer,
    live: Vec<(u64, Lsn)>,
    next: Option<Writer>,
    requested: bool,
    tables_max: usize,
}

impl MemTables {
    /// A first table whose first record will be `base`, named on the control page.
    ///
    /// # Errors
    /// As [`Maker::make`].
    pub fn new(maker: Maker, control: Control, base: Lsn, tables_max: usize) -> Result<MemTables> {
        assert!((1..=TABLES_MAX).contains(&tables_max));
        let mut active = maker.make(1)?;
        active.begin(base);
        let live = vec![(1, base)];
        control.set_tables(&live);
        control.set_statistic(Statistic::MemTableLen, maker.len);
        Ok(MemTables { maker, source: Source::Inline, control, active, live, next: None, requested: false, tables_max })
    }

    /// From now on takes tables from `source`.
    pub fn set_source(&mut self, source: Source) {
        self.source = source;
    }

    /// Bytes used of the active table.
    pub fn used(&self) -> u64 {
        self.active.used()
    }

    /// The error that says that there is no room.
    pub fn full(&self) -> Error {
        let rows = self.live.first().map_or(0, |(_, first)| self.active.next().0 - first.0);
        Error::MemTableFull { rows, bytes: self.maker.len, tables: self.live.len() }
    }

    /// Whether a frame of `records` records fits, in the active table or a next one.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`] at start-up, if the table that is needed could not be made. Later that is
    /// no error but no room, until it can be.
    pub fn has_room(&mut self, records: u64) -> Result<bool> {
        // A next table is asked for early, so that it is there when it is needed.
        if self.requested || self.active.used() > self.active.len() / 2 || !self.active.has_room(2 * records) {
            let provided = self.provide();
            if let Err(error) = provided {
                if !self.active.has_room(records) && matches!(self.source, Source::Inline) {
                    return Err(error);
                }
                tracing::warn!(%error, "there is no next MemTable yet");
            }
        }
        Ok(self.next.is_some() || self.active.has_room(records))
    }

    fn provide(&mut self) -> Result<()> {
        if self.next.is_some() || self.live.len() >= self.tables_max {
            return Ok(());
        }
        let id = self.live.last().map_or(0, |(id, _)| *id) + 1;
        match &self.source {
            Source::Inline => self.next = Some(self.maker.make(id)?),
            Source::Ahead { request, ready } => {
                if !self.requested && request.try_send(id).is_ok() {
                    self.requested = true;
                }
                match ready.try_recv() {
                    Ok(made) => {
                        self.requested = false;
                        self.next = Some(made?);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
                }
            }
        }
        Ok(())
    }

    /// Puts in the records of one frame. Nothing is visible before the caller moves `applied`.
    ///
    /// # Panics
    /// If [`MemTables::has_room`] has not said that they fit, or the frame has not been checked.
    pub fn apply(&mut self, runs: &[Run], records: &[u64], ingest_ts: Ts) {
        let mut rest = records;
        for run in runs {
            let (mine, after) = rest.split_at_checked(run.bytes as usize / 8).unwrap_or((&[], &[]));
            self.apply_run(run, mine, ingest_ts);
            rest = after;
        }
        assert!(rest.is_empty(), "runs and records of a checked frame agree");
    }

    fn apply_run(&mut self, run: &Run, records: &[u64], ingest_ts: Ts) {
        let origin = |skip: u32| Origin {
            publisher: run.publisher,
            epoch: run.epoch,
            first_pub_seq: PubSeq(run.first_pub_seq.0 + u64::from(skip)),
        };
        let (mut done, mut here) = (0u32, 0u32);
        if !self.active.reserve_run() {
            self.roll();
            assert!(self.active.reserve_run(), "a new table has room for a run");
        }
        for record in record::split(records) {
            let Ok(record) = record else { panic!("a checked frame holds whole records") };
            if !self.active.push(record, ingest_ts) {
                self.active.push_run(origin(done - here), here, ingest_ts);
                self.roll();
                here = 0;
                assert!(self.active.reserve_run() && self.active.push(record, ingest_ts), "a new table has room for a record");
            }
            done += 1;
            here += 1;
        }
        self.active.push_run(origin(done - here), here, ingest_ts);
    }

    /// Seals the active table and goes on in the next.
    fn roll(&mut self) {
        let Some(mut next) = self.next.take() else { panic!("a full MemTable and no next one: `has_room` was not asked") };
        let base = self.active.next();
        next.begin(base);
        let id = self.live.last().map_or(0, |(id, _)| *id) + 1;
        self.live.push((id, base));
        self.control.set_tables(&self.live);
        tracing::info!(table = id, first_lsn = base.0, used = self.active.used(), "sealed a MemTable");
        self.active = next;
    }
}
