//! Owns: the MemTables of the storage process: the active one, the sealed ones, the next one.
//!
//! What must hold: a table is named on the control page before a record in it is applied, and dropped
//! from it only when files hold its records; at most `tables_max` exist, and when they are full nothing
//! more is taken in. A table is sealed between two frames, so that the log can go on behind it.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::agent::spawn;
use crate::error::{Error, Result};
use crate::lsn::{Lsn, PubSeq, PublisherId};
use crate::manifest::PublisherState;
use crate::memtable::format::FRAME_ROWS_MAX;
use crate::memtable::{Origin, Writer};
use crate::record::{self, Layout, Name};
use crate::shm::control::{Control, Statistic, TABLES_MAX};
use crate::shm::run_dir::RunDir;
use crate::time::Ts;
use crate::wal::format::FRAME_RECORDS_MAX;
use crate::wal::{Chain, Run};

const _: () = assert!(FRAME_ROWS_MAX == FRAME_RECORDS_MAX as u64);

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
    /// Whether their memory is allocated when it is touched.
    pub is_sparse: bool,
}

impl Maker {
    /// Makes table `id`.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`]; [`Error::Io`].
    pub fn make(&self, id: u64) -> Result<Writer> {
        let path = self.run_dir.memtable(self.instance, id);
        let make = if self.is_sparse { Writer::create_sparse } else { Writer::create };
        make(&path, self.store_id, id, self.len)
    }
}

/// Where the next table comes from.
pub enum Source {
    /// Made when it is needed: in simulation.
    Inline,
    /// Made ahead by another thread, on request.
    Ahead {
        /// Asks for the table of this number.
        request: Sender<u64>,
        /// Gives it.
        ready: Receiver<Result<Writer>>,
        /// Whether one that is needed is waited for: at start-up.
        waits: bool,
    },
}

impl Source {
    /// A thread that makes tables with `maker` while the log is read, for as long as this is not dropped.
    ///
    /// # Errors
    /// The system's, if there is no thread to be had.
    pub fn beside(maker: Maker) -> std::io::Result<Source> {
        let (request, requests) = bounded(1);
        let (made, ready) = bounded(1);
        spawn("tape-tables", None, move || {
            while let Ok(id) = requests.recv() {
                if made.send(maker.make(id)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Source::Ahead { request, ready, waits: true })
    }
}

/// What must survive with the log, as of a place between two of its frames.
pub struct Mark {
    /// The place.
    pub chain: Chain,
    /// Publishers.
    pub publishers: Vec<(PublisherId, PublisherState)>,
    /// Instrument names since the mark before.
    pub names: Vec<Name>,
    /// Kinds that programs defined since the mark before.
    pub kinds: Vec<Layout>,
}

/// A table into which nothing more is put.
pub struct Sealed {
    /// Its number.
    pub id: u64,
    /// LSN of its first record.
    pub base: Lsn,
    /// LSN of its last record; one less than `base` if it has none.
    pub last: Lsn,
    /// The log behind it.
    pub mark: Mark,
    /// The writer's mapping, given back by whoever drops this: that takes milliseconds.
    _writer: Writer,
}

/// The MemTables.
pub struct MemTables {
    maker: Maker,
    source: Source,
    control: Control,
    active: Writer,
    live: Vec<(u64, Lsn)>,
    /// The manifest's edit whose files hold what the live tables do not.
    manifest: u64,
    next: Option<Writer>,
    requested: bool,
    /// Gives the table that was requested of the source before.
    pending: Option<Receiver<Result<Writer>>>,
    tables_max: usize,
    /// Bytes of log since the active table began.
    logged: u64,
}

/// A table is sealed when the log behind its beginning has become so many times longer than it is, or
/// longer than this: frames of facts fill the log alone.
const LOG_TIMES: u64 = 4;
const LOG_MIN: u64 = 1 << 30;

impl MemTables {
    /// A first table whose first record will be `base`, named on the control page with the edit `manifest`.
    ///
    /// # Errors
    /// As [`Maker::make`].
    pub fn new(maker: Maker, control: Control, base: Lsn, tables_max: usize, manifest: u64) -> Result<MemTables> {
        assert!((2..=TABLES_MAX).contains(&tables_max));
        let mut active = maker.make(1)?;
        active.begin(base);
        let live = vec![(1, base)];
        control.set_tables(&live, manifest);
        control.set_statistic(Statistic::MemTableLen, maker.len);
        let (source, next, pending) = (Source::Inline, None, None);
        Ok(MemTables { maker, source, control, active, live, manifest, next, requested: false, pending, tables_max, logged: 0 })
    }

    /// From now on takes tables from `source`.
    pub fn set_source(&mut self, source: Source) {
        if let (Source::Ahead { ready, .. }, true) = (std::mem::replace(&mut self.source, source), self.requested) {
            self.pending = Some(ready);
        }
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

    /// Notes that a frame of `bytes` was appended to the log.
    pub fn logged(&mut self, bytes: u64) {
        self.logged += bytes;
    }

    /// Makes the next frame seal the active table, as if the log had become long.
    /// For simulations.
    pub fn seal_soon(&mut self) {
        self.logged = u64::MAX / 2;
    }

    fn is_log_long(&self) -> bool {
        self.logged > (self.maker.len * LOG_TIMES).max(LOG_MIN)
    }

    /// Whether a frame of `records` records fits, in the active table or a next one.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`] at start-up and in simulation, if the table that is needed could not be made. Later that is
    /// no error but no room, until it can be.
    pub fn has_room(&mut self, records: u64) -> Result<bool> {
        // A next table is asked for early, so that it is there when it is needed.
        let soon = self.active.used() > self.active.len() / 2 || !self.active.has_room(2 * records) || self.is_log_long();
        if self.requested || soon {
            let waits = matches!(self.source, Source::Ahead { waits: true, .. });
            let needed = !self.active.has_room(records) || (waits && self.is_log_long());
            let provided = self.provide(needed);
            if let Err(error) = provided {
                if !self.active.has_room(records) && (waits || matches!(self.source, Source::Inline)) {
                    return Err(error);
                }
                tracing::warn!(%error, "there is no next MemTable yet");
            }
        }
        Ok(self.next.is_some() || self.active.has_room(records))
    }

    /// Takes the next table if it is there, and asks for it before; waits for it if it is `needed` and the source waits.
    fn provide(&mut self, needed: bool) -> Result<()> {
        if self.next.is_some() || self.live.len() >= self.tables_max {
            return Ok(());
        }
        let id = self.live.last().map_or(0, |(id, _)| *id) + 1;
        match &self.source {
            Source::Inline => self.next = Some(self.maker.make(id)?),
            Source::Ahead { request, ready, waits } => {
                if !self.requested && request.try_send(id).is_ok() {
                    self.requested = true;
                }
                let ready = self.pending.as_ref().unwrap_or(ready);
                let made = if *waits && needed { ready.recv().ok() } else { ready.try_recv().ok() };
                if let Some(made) = made {
                    self.requested = false;
                    self.pending = None;
                    self.next = Some(made?);
                }
            }
        }
        Ok(())
    }

    /// Whether the active table must be sealed before a frame of `records` records is put in.
    pub fn must_seal(&self, records: u64) -> bool {
        !self.active.has_room(records) || (self.next.is_some() && self.is_log_long())
    }

    /// Seals the active table and goes on in the next; `mark` is the log as of now.
    ///
    /// # Panics
    /// If there is no next one: [`MemTables::has_room`] was not asked.
    pub fn seal(&mut self, mark: Mark) -> Sealed {
        let Some(mut next) = self.next.take() else { panic!("a full MemTable and no next one: `has_room` was not asked") };
        let base = self.active.next();
        assert!(mark.chain.lsn == base, "a table is sealed between two frames");
        next.begin(base);
        let id = self.live.last().map_or(0, |(id, _)| *id);
        self.live.push((id + 1, base));
        self.control.set_tables(&self.live, self.manifest);
        tracing::debug!(table = id, last_lsn = base.0 - 1, used = self.active.used(), "sealed a MemTable");
        self.logged = 0;
        let writer = std::mem::replace(&mut self.active, next);
        Sealed { id, base: writer.base(), last: Lsn(base.0 - 1), mark, _writer: writer }
    }

    /// The records of table `id` are in files since the edit `manifest`: the table is named no more.
    pub fn filed(&mut self, id: u64, manifest: u64) {
        assert!(self.live.first().is_some_and(|(first, _)| *first == id) && self.live.len() > 1, "tables are filed in order");
        self.live.remove(0);
        self.manifest = manifest;
        self.control.set_tables(&self.live, manifest);
    }

    /// The manifest's edit `manifest` has changed the files, and not which records they hold: readers are shown it.
    pub fn edited(&mut self, manifest: u64) {
        self.manifest = self.manifest.max(manifest);
        self.control.set_tables(&self.live, self.manifest);
    }

    /// Puts in the records of one frame. Nothing is visible before the caller moves `applied`.
    ///
    /// # Panics
    /// If [`MemTables::must_seal`] says that they may not fit, or the frame has not been checked.
    pub fn apply(&mut self, runs: &[Run], records: &[u64], ingest_ts: Ts) {
        let mut rest = records;
        for run in runs {
            let (mine, after) = rest.split_at_checked(run.bytes as usize / 8).unwrap_or((&[], &[]));
            assert!(self.active.reserve_run(), "a table with room has room for a run");
            for record in record::split(mine) {
                let Ok(record) = record else { panic!("a checked frame holds whole records") };
                assert!(self.active.push(record, ingest_ts), "a table with room has room for a record");
            }
            let origin = Origin { publisher: run.publisher, epoch: run.epoch, first_pub_seq: PubSeq(run.first_pub_seq.0) };
            self.active.push_run(origin, run.count, ingest_ts);
            rest = after;
        }
        assert!(rest.is_empty(), "runs and records of a checked frame agree");
    }
}
