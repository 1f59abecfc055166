//! Owns: the MemTables of the storage process: the active one, the sealed ones, the next one.
//!
//! What must hold: a table is named on the control page before a record in it is applied, and dropped from it only when
//! SSTables hold its records (the reader's half of this order is in `tapestore::version`). At most `tables_max` exist; when
//! they are full, no more records are accepted. A table is sealed between two frames, so that the log can go on after it.
//! Where shared memory is short, because readers keep earlier tables or for any other reason, the next table is spilled; and
//! a full table can be sealed and flushed even if no next one can be made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use tapestore::agent::spawn;
use tapestore::error::{Error, Result};
use tapestore::lsn::{Lsn, PublisherId};
use tapestore::manifest::PublisherState;
use tapestore::memtable::format::FRAME_ROWS_MAX;
use tapestore::memtable::{Origin, Writer};
use tapestore::record::{Layout, Name};
use tapestore::shm;
use tapestore::shm::control::{Control, KINDS_COUNTED, Statistic, TABLES_MAX};
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::spill::{self, SPILLED};
use tapestore::time::Ts;
use tapestore::wal::format::FRAME_RECORDS_MAX;
use tapestore::wal::{Chain, Run};

const _: () = assert!(FRAME_ROWS_MAX == FRAME_RECORDS_MAX as u64);

/// Makes tables.
#[derive(Clone, Debug)]
pub struct Maker {
    /// The run directory that holds them.
    pub run_dir: RunDir,
    /// The instance that they are for.
    pub instance: u64,
    /// The store that they are of.
    pub store_id: u128,
    /// Bytes of each.
    pub len: u64,
    /// Whether their memory is allocated when it is touched.
    pub is_sparse: bool,
    /// Whether the last one was spilled.
    pub spills: Arc<AtomicBool>,
}

impl Maker {
    /// Makes table `id`, in the store's directory if shared memory is short and it `may_spill`; its number records which.
    ///
    /// # Errors
    /// [`Error::NoSharedMemory`]; [`Error::Io`].
    pub fn make(&self, id: u64, may_spill: bool) -> Result<Writer> {
        let path = self.run_dir.memtable(self.instance, id);
        if self.is_sparse {
            return Writer::create_sparse(&path, self.store_id, id, self.len);
        }
        let short = if spill::fits(&path, self.len) {
            match Writer::create(&path, self.store_id, id, self.len) {
                Err(error @ Error::NoSharedMemory { .. }) => error,
                other => {
                    if other.is_ok() && self.spills.swap(false, Ordering::Relaxed) {
                        tracing::info!(
                            name: "memtable.spilling_ended",
                            "shared memory is free again: MemTables are no longer spilled"
                        );
                    }
                    return other;
                }
            }
        } else {
            Error::NoSharedMemory { path: path.clone(), wanted: self.len, free: shm::free_bytes(self.run_dir.path()) }
        };
        if !may_spill {
            return Err(short);
        }
        let spilled = Writer::create_spilled(&path, self.store_id, id | SPILLED, self.len)?;
        // A flag on its own, which orders nothing: relaxed.
        if !self.spills.swap(true, Ordering::Relaxed) {
            let place = spill::place(&path);
            tracing::warn!(
                name: "memtable.spilling", %short, place = %place.display(),
                "shared memory is short: MemTables are spilled to files of the store until there is more"
            );
        }
        Ok(spilled)
    }
}

/// Source of the next table.
pub enum Source {
    /// Made when needed, for simulation.
    Inline,
    /// Made ahead by another thread, on request.
    Ahead {
        /// Requests the table of this number.
        request: Sender<u64>,
        /// Delivers it.
        ready: Receiver<Result<Writer>>,
        /// Whether a table that is needed is waited for, as at start-up.
        waits: bool,
    },
}

impl Source {
    /// Starts a thread that makes tables with `maker` while the log is read, until this is dropped.
    ///
    /// # Errors
    /// The system's, if no thread can be started.
    pub fn beside(maker: Maker) -> std::io::Result<Source> {
        let (request, requests) = bounded(1);
        let (made, ready) = bounded(1);
        spawn("tape-tables", None, move || {
            while let Ok(id) = requests.recv() {
                if made.send(maker.make(id, true)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Source::Ahead { request, ready, waits: true })
    }
}

/// The state that must survive with the log, as of a place between two frames.
pub struct Mark {
    /// The place.
    pub chain: Chain,
    /// Publishers.
    pub publishers: Vec<(PublisherId, PublisherState)>,
    /// Instrument names since the previous mark.
    pub names: Vec<Name>,
    /// Kinds that programs have defined since the previous mark.
    pub kinds: Vec<Layout>,
}

/// A table that accepts no more records.
pub struct Sealed {
    /// Its number.
    pub id: u64,
    /// LSN of its first record.
    pub base: Lsn,
    /// LSN of its last record; one less than `base` if it has none.
    pub last: Lsn,
    /// The log after it.
    pub mark: Mark,
    /// The writer's mapping, unmapped when this is dropped, which takes milliseconds.
    _writer: Writer,
}

/// The MemTables.
pub struct MemTables {
    maker: Maker,
    source: Source,
    control: Control,
    /// The table that is being filled; `None` after a full one without a successor.
    active: Option<Writer>,
    /// LSN of the first record that no sealed table holds.
    sealed_to: Lsn,
    live: Vec<(u64, Lsn)>,
    /// Tables that were made or requested.
    made: u64,
    /// The manifest's edit whose files hold what the live tables do not.
    manifest: u64,
    next: Option<Writer>,
    requested: bool,
    /// Whether the last requested table could not be made.
    is_short: bool,
    /// Delivers the table that was requested of the previous source.
    pending: Option<Receiver<Result<Writer>>>,
    tables_max: usize,
    /// Bytes of log since the active table began.
    logged: u64,
}

/// A table is sealed when the log after its beginning is this many times longer than the table, and longer than this
/// minimum: frames of control entries fill the log alone.
const LOG_TIMES: u64 = 4;
const LOG_MIN: u64 = 1 << 30;

impl MemTables {
    /// A first table whose first record will be `base`, named on the control page with the edit `manifest`.
    ///
    /// # Errors
    /// As [`Maker::make`].
    pub fn new(maker: Maker, control: Control, base: Lsn, tables_max: usize, manifest: u64) -> Result<MemTables> {
        assert!((2..=TABLES_MAX).contains(&tables_max));
        let next = Some(maker.make(1, true)?);
        control.set_statistic(Statistic::MemTableLen, maker.len);
        let mut this = MemTables {
            maker,
            source: Source::Inline,
            control,
            active: None,
            sealed_to: base,
            live: Vec::with_capacity(TABLES_MAX),
            made: 1,
            manifest,
            next,
            requested: false,
            is_short: false,
            pending: None,
            tables_max,
            logged: 0,
        };
        this.begin_next();
        Ok(this)
    }

    /// Takes tables from `source` from now on.
    pub fn set_source(&mut self, source: Source) {
        if let (Source::Ahead { ready, .. }, true) = (std::mem::replace(&mut self.source, source), self.requested) {
            self.pending = Some(ready);
        }
    }

    /// Bytes used of the active table.
    pub fn used(&self) -> u64 {
        self.active.as_ref().map_or(0, Writer::used)
    }

    /// LSN of the record that comes next.
    fn next_lsn(&self) -> Lsn {
        self.active.as_ref().map_or(self.sealed_to, Writer::next)
    }

    /// The error for full MemTables.
    pub fn full(&self) -> Error {
        let rows = self.live.first().map_or(0, |(_, first)| self.next_lsn().0 - first.0);
        Error::MemTableFull { rows, bytes: self.maker.len, tables: self.live.len() }
    }

    /// Notes that a frame of `bytes` was appended to the log.
    pub fn logged(&mut self, bytes: u64) {
        self.logged += bytes;
    }

    /// Makes the next frame seal the active table, as if the log had become long. For simulations.
    pub fn seal_soon(&mut self) {
        self.logged = u64::MAX / 2;
    }

    fn is_log_long(&self) -> bool {
        self.logged > (self.maker.len * LOG_TIMES).max(LOG_MIN)
    }

    /// Whether frames of `records` records together fit in the active table.
    fn fits(&self, records: u64) -> bool {
        self.active.as_ref().is_some_and(|active| active.has_room(records))
    }

    /// Whether frames of `records` records together fit, in the active table or a next one.
    ///
    /// # Errors
    /// At start-up and in simulation, as [`Maker::make`], if a needed table could not be made. A serving store has no room
    /// until the table can be made, and returns no error.
    pub fn has_room(&mut self, records: u64) -> Result<bool> {
        // A next table is requested early, so that it is ready when it is needed.
        let soon = self.used() > self.maker.len / 2 || !self.fits(2 * records) || self.is_log_long();
        if self.requested || soon {
            let waits = matches!(self.source, Source::Ahead { waits: true, .. });
            let needed = !self.fits(records) || (waits && self.is_log_long());
            let was_short = self.is_short;
            if let Err(error) = self.provide(needed) {
                if !self.fits(records) && (waits || matches!(self.source, Source::Inline)) {
                    return Err(error);
                }
                if !was_short {
                    tracing::error!(
                        name: "memtable.create_failed",
                        %error,
                        "cannot create the next MemTable; trying again every second. Publishers wait once the current one is \
                         full: free shared memory (df -h /dev/shm) or space on the store's disk"
                    );
                }
            }
        }
        if self.active.is_none() {
            self.begin_next();
        }
        Ok(self.next.is_some() || self.fits(records))
    }

    /// Takes the next table if it is ready, and requests it first; waits for it if it is `needed` and the source waits.
    fn provide(&mut self, needed: bool) -> Result<()> {
        if self.next.is_some() || self.live.len() >= self.tables_max {
            return Ok(());
        }
        let id = self.made + 1;
        let made = match &self.source {
            Source::Inline => self.maker.make(id, true),
            Source::Ahead { request, ready, waits } => {
                if !self.requested && request.try_send(id).is_ok() {
                    self.requested = true;
                }
                let ready = self.pending.as_ref().unwrap_or(ready);
                let made = if *waits && needed { ready.recv().ok() } else { ready.try_recv().ok() };
                let Some(made) = made else { return Ok(()) };
                self.requested = false;
                self.pending = None;
                made
            }
        };
        self.is_short = made.is_err();
        self.next = Some(made?);
        self.made = id;
        Ok(())
    }

    /// Whether the active table must be sealed before a frame of `records` records is applied.
    pub fn must_seal(&self, records: u64) -> bool {
        !self.fits(records) || (self.next.is_some() && self.is_log_long())
    }

    /// Whether the active table has no room for frames of `records` records and no next one can be made. It must then be
    /// sealed, so that its records can be flushed and its memory released.
    pub fn is_stuck(&self, records: u64) -> bool {
        self.is_short && self.next.is_none() && self.active.as_ref().is_some_and(|a| !a.is_empty() && !a.has_room(records))
    }

    /// Whether the active table holds records.
    pub fn holds_records(&self) -> bool {
        self.active.as_ref().is_some_and(|active| !active.is_empty())
    }

    /// Whether the next table is ready. Requests it if it is not.
    pub fn is_next_ready(&mut self) -> bool {
        if let Err(error) = self.provide(false) {
            tracing::debug!(name: "memtable.not_created_yet", %error, "cannot create the next MemTable yet");
        }
        self.next.is_some()
    }

    /// Seals the active table and goes on in the next, if there is one; `mark` is the log as of now.
    ///
    /// # Panics
    /// If there is no active table: the caller has not called [`MemTables::has_room`].
    pub fn seal(&mut self, mark: Mark) -> Sealed {
        let Some(active) = self.active.take() else { panic!("no MemTable to seal: `has_room` was not called") };
        self.sealed_to = active.next();
        assert!(mark.chain.lsn == self.sealed_to, "a table is sealed between two frames");
        self.logged = 0;
        self.begin_next();
        let (id, base, last) = (active.id(), active.base(), Lsn(self.sealed_to.0 - 1));
        tracing::debug!(
            name: "memtable.sealed", table = id & !SPILLED, last_lsn = last.0, used = active.used(),
            "sealed a MemTable"
        );
        Sealed { id, base, last, mark, _writer: active }
    }

    /// Begins to fill the next table, if it is ready.
    fn begin_next(&mut self) {
        let Some(mut next) = self.next.take() else { return };
        next.begin(self.sealed_to);
        self.live.push((next.id(), self.sealed_to));
        self.control.set_tables(&self.live, self.manifest);
        self.control.add(Statistic::Spilled, next.id() >> 63);
        self.active = Some(next);
    }

    /// Drops table `id` from the control page: SSTables hold its records since the edit `manifest`.
    pub fn flushed(&mut self, id: u64, manifest: u64) {
        assert!(self.live.first().is_some_and(|(first, _)| *first == id), "tables are flushed in order");
        assert!(self.active.as_ref().is_none_or(|active| active.id() != id), "the active table is not flushed");
        self.live.remove(0);
        self.manifest = manifest;
        self.control.set_tables(&self.live, manifest);
    }

    /// Publishes the edit `manifest`, which has changed the SSTables and not the records that they hold.
    pub fn edited(&mut self, manifest: u64) {
        self.manifest = self.manifest.max(manifest);
        self.control.set_tables(&self.live, self.manifest);
    }

    /// Applies the records of one frame, and returns how many there are of each kind. Readers see nothing of it before the caller
    /// raises `applied`.
    ///
    /// # Panics
    /// If [`MemTables::must_seal`] holds for the frame, or the frame has not been checked.
    pub fn apply(&mut self, runs: &[Run], records: &[u64], ingest_ts: Ts) -> [u32; KINDS_COUNTED] {
        let Some(active) = &mut self.active else { panic!("no MemTable to fill: `has_room` was not called") };
        let mut rest = records;
        for run in runs {
            let (mine, after) = rest.split_at_checked(run.bytes as usize / 8).unwrap_or((&[], &[]));
            let origin = Origin { publisher: run.publisher, epoch: run.epoch, first_pub_seq: run.first_pub_seq };
            active.apply(origin, run.count, mine, ingest_ts);
            rest = after;
        }
        assert!(rest.is_empty(), "runs and records of a checked frame agree");
        active.take_by_kind()
    }
}
