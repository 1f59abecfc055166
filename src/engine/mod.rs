//! Owns: the storage process: recovery, and the agents that keep the store.
//!
//! ```text
//! attach (socket, janitor) ── requests ──▶ ingest (batches → log → MemTable) ── items ──▶ sync (fdatasync, acks)
//!      ▲ answers, when durable ────────────────────────────────────────────────────────────┘
//! prepare (segments, MemTables ahead of need) ──▶ ingest ── sealed MemTables ──▶ flush (files, manifest) ◀─▶ compact
//!      ▲ segments to use again ──────────────────────────────────────────────────────┘
//! ```
//!
//! What must hold: one process a store, by a lock that the kernel releases; queues between agents are
//! bounded; whatever ends an agent ends the process, with nothing acknowledged that is not so.

pub mod core;
pub mod flush;
pub mod history;
pub mod memtables;

mod attach;
mod compact;
mod ingest;
mod prepare;
mod rows;
mod space;
mod sync;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::bounded;

use self::attach::{AttachAgent, Waker, listen};
use self::compact::CompactAgent;
use self::core::{Core, Rebuilt};
use self::flush::{Filer, FlushAgent, Tending};
use self::ingest::IngestAgent;
use self::memtables::{Maker, MemTables, Sealed, Source};
use self::prepare::PrepareAgent;
use self::space::SpaceAgent;
use self::sync::{Pace, SYNC_QUEUE, SyncAgent, SyncItem};
use crate::agent::{Stop, Wait, spawn};
use crate::bus::Bus;
use crate::compaction;
use crate::compaction::retention::{Rule, Rules};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::lsn::{Level, Lsn, Timeline};
use crate::manifest::Manifest;
use crate::shm::bell::Bells;
use crate::shm::control::{Control, SLOTS_MAX, TABLES_MAX};
use crate::shm::kinds::KindsWriter;
use crate::shm::run_dir::{ROOT_DEFAULT, RunDir};
use crate::shm::symbols::SymbolsWriter;
use crate::time::Clock;
use crate::wal::{self, Log, MetaFile, Spares};

const _: () = assert!(crate::bus::attach::SLOTS_MAX == SLOTS_MAX);

/// How a store is kept.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Directory of the store.
    pub store: PathBuf,
    /// Where its run directory is made: a memory file system.
    pub run_root: PathBuf,
    /// Bytes of a log segment, for a new store.
    pub segment_size: u64,
    /// Bytes of a MemTable; 0 is 256 MiB, or a quarter of the free shared memory if that is less.
    pub memtable_size: u64,
    /// MemTables at most: the active one and sealed ones.
    pub memtables_max: usize,
    /// Whether MemTables are allocated as they fill: for simulations, which make thousands of them and put little into
    /// each. A memory file system that is full is a signal then.
    #[serde(skip)]
    pub sparse_memtables: bool,
    /// Instruments at most.
    pub instruments_max: u64,
    /// What nobody waits for is durable after this many milliseconds,
    pub sync_interval_ms: u64,
    /// or this many bytes.
    pub sync_bytes: u64,
    /// Bytes appended and not durable at most; then publishers are held back.
    pub unsynced_max: u64,
    /// Bytes kept free on the file system; below, no records are taken in. 0: 1 GiB, or a twentieth of the volume if
    /// that is less, but room for two segments and the filing of a MemTable in any case.
    pub space_min: u64,
    /// The least level that publishers get.
    pub level_min: Level,
    /// How ingest waits for work.
    pub wait: Wait,
    /// Core of the ingest thread.
    pub ingest_core: Option<usize>,
    /// Core of the sync thread.
    pub sync_core: Option<usize>,
    /// When and how files of history are merged.
    pub compaction: compaction::Options,
    /// How long records are kept; without a rule, for ever.
    pub retention: Vec<Rule>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            store: PathBuf::from("tapestore-data"),
            run_root: PathBuf::from(ROOT_DEFAULT),
            segment_size: 64 << 20,
            memtable_size: 0,
            memtables_max: 3,
            sparse_memtables: false,
            instruments_max: 4_000_000,
            sync_interval_ms: 50,
            sync_bytes: 4 << 20,
            unsynced_max: 64 << 20,
            space_min: 0,
            level_min: Level::None,
            wait: Wait::Adaptive,
            ingest_core: None,
            sync_core: None,
            compaction: compaction::Options::default(),
            retention: Vec::new(),
        }
    }
}

/// Passed segments of the log that wait to be used again.
const RECYCLED_MAX: usize = 2;

/// How often a long recovery says how far it is.
const SAY_EVERY_NS: u64 = 1_000_000_000;

/// The largest MemTable that is made without being asked for.
const MEMTABLE_SIZE_DEFAULT: u64 = 256 << 20;

impl Options {
    /// Checks the options against each other and fills in what depends on the host, as it is now: what
    /// an earlier instance held of its memory has to be given back before.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the option and its bounds.
    pub fn check(mut self) -> Result<Options> {
        let bad = |what, reason: String| Err(Error::Invalid { what, reason });
        let (min, max) = (crate::memtable::format::LEN_MIN, crate::memtable::format::LEN_MAX);
        if self.memtable_size == 0 {
            let quarter = crate::shm::free_bytes(&self.run_root) / 4 / 4096 * 4096;
            self.memtable_size = MEMTABLE_SIZE_DEFAULT.min(quarter.max(min));
        }
        if !(min..=max).contains(&self.memtable_size) || !self.memtable_size.is_multiple_of(4096) {
            return bad("memtable-size", format!("{} is not a multiple of 4096 from {min} to {max}", self.memtable_size));
        }
        if !(2..=TABLES_MAX).contains(&self.memtables_max) {
            return bad("memtables-max", format!("{} is not from 2 to {TABLES_MAX}", self.memtables_max));
        }
        if self.sync_interval_ms == 0 || self.sync_bytes == 0 || self.unsynced_max < self.sync_bytes {
            return bad(
                "sync-interval-ms, sync-bytes, unsynced-max",
                "they are above 0, and unsynced-max is at least sync-bytes".into(),
            );
        }
        self.compaction.check()?;
        Rules::new(&self.retention)?;
        if self.instruments_max == 0 || self.instruments_max >= u64::from(u32::MAX) {
            return bad("instruments-max", format!("{} is not from 1 to 4294967294", self.instruments_max));
        }
        Ok(self)
    }
}

/// What a store needs of the world.
#[derive(Clone)]
pub struct World {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// An identity for a store that is created: random.
    pub store_id: u128,
}

/// What a start found and made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Number of the start.
    pub instance: u64,
    /// Records of the store.
    pub records: u64,
    /// Of these, records in files of history.
    pub filed: u64,
    /// Files of history.
    pub files: u64,
    /// Bytes of log read, behind the checkpoint.
    pub log_bytes: u64,
    /// Whether the process before stopped in order.
    pub was_clean: bool,
    /// Torn bytes cut off above what was durable, and why.
    pub cut: Option<String>,
    /// Bytes of a MemTable.
    pub memtable_size: u64,
}

/// A recovered store, before its agents run: what a simulation drives by hand.
pub struct Recovered {
    /// The options, checked.
    pub options: Options,
    /// The state.
    pub core: Core,
    /// Makes the log durable.
    pub syncer: wal::Syncer,
    /// The store's own file.
    pub meta: MetaFile,
    /// The control page.
    pub control: Control,
    /// Files MemTables.
    pub filer: Filer,
    /// MemTables that are to be filed, the oldest first.
    pub sealed: VecDeque<Box<Sealed>>,
    /// What was found.
    pub started: Started,
    run_dir: RunDir,
    maker: Maker,
    lock: Box<dyn Send + Sync>,
}

/// What the store in `dir` is, and its manifest; both are made if there is no store.
fn open_files(disk: &Arc<dyn Disk>, dir: &Path, options: &Options, world: &World) -> Result<(wal::Meta, Manifest)> {
    let table = options.memtable_size.max(crate::memtable::format::LEN_MIN);
    space::make_room(disk.as_ref(), dir, |total| space::keep_free(options.space_min, total, options.segment_size, table))?;
    let create = wal::Create { store_id: world.store_id, segment_size: options.segment_size, now: world.clock.wall() };
    wal::create_if_absent(disk.as_ref(), dir, create)?;
    let known = wal::meta::read(disk.as_ref(), dir)?;
    let Some(known) = known else { return Err(Error::Missing { path: dir.join(wal::meta::NAME), what: "it was there" }) };
    flush::create_dir(disk.as_ref(), dir)?;
    let manifest = Manifest::open(disk.clone(), dir, known.store_id)?;
    Ok((known, manifest))
}

/// Removes a `store.meta` that was never given its name.
fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let unfinished = dir.join(wal::meta::NAME).with_extension("tmp");
    if disk.exists(&unfinished)? { disk.remove(&unfinished) } else { Ok(()) }
}

/// The control page, made anew if what is there is none of this store: only this process writes it.
fn control_page(run_dir: &RunDir, store_id: u128) -> Result<Control> {
    let path = run_dir.control();
    match Control::open_or_create(&path, store_id) {
        Err(error @ (Error::Foreign { .. } | Error::Version { .. })) => {
            tracing::warn!(%error, "the control page in shared memory is made anew");
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            Control::open_or_create(&path, store_id)
        }
        other => other,
    }
}

/// How MemTables are made.
fn maker(run_dir: &RunDir, instance: u64, store_id: u128, options: &Options) -> Maker {
    let (len, is_sparse) = (options.memtable_size, options.sparse_memtables);
    Maker { run_dir: run_dir.clone(), instance, store_id, len, is_sparse }
}

/// The MemTables of a start, of which the first begins at `base`; what follows it is made while the log is read.
fn memtables(maker: &Maker, control: &Control, base: Lsn, edit: u64, options: &Options) -> Result<MemTables> {
    let mut memtables = MemTables::new(maker.clone(), control.clone(), base, options.memtables_max, edit)?;
    if !options.sparse_memtables {
        let beside = Source::beside(maker.clone()).map_err(|e| Error::io("start a thread of", &options.store, e))?;
        memtables.set_source(beside);
    }
    Ok(memtables)
}

/// The run directory of the store in `dir`, and what holds it; shared memory of stores that are gone is given back.
fn run_directory(dir: &Path, store_id: u128, options: &Options) -> Result<(RunDir, Box<dyn Send + Sync>)> {
    let (run_dir, held) = RunDir::create(dir, store_id, &options.run_root)?;
    let gone = RunDir::sweep_gone(&options.run_root)?;
    if !gone.is_empty() {
        tracing::info!(?gone, "shared memory of stores that are gone is given back");
    }
    Ok((run_dir, Box::new(held)))
}

/// Says on the page that another instance recovers, and removes what the one before has left; its number.
fn begin_instance(control: &Control, run_dir: &RunDir) -> Result<u64> {
    let recovering = (control.instance() + 1) | 1;
    control.set_instance(recovering);
    control.set_server(None);
    run_dir.sweep(None)?;
    control.reset();
    Ok(recovering + 1)
}

/// Says now and then how far recovery is; `said` is when it last did.
fn tell(frame: &wal::Frame<'_>, now: u64, control: &Control, said: &mut u64) {
    control.beat(now);
    if now.saturating_sub(*said) > SAY_EVERY_NS {
        *said = now;
        tracing::info!(records = frame.header.first_lsn.0 - 1, log_bytes = frame.header.position.0, "recovering the log");
    }
}

/// Opens the store, creating it if there is none, and rebuilds its state from the checkpoint and the log
/// behind it. Afterwards a new term has begun, and everything rebuilt is durable.
///
/// # Errors
/// [`Error::Locked`] if another process has it; as [`Manifest::open`] and [`wal::open`].
pub fn recover(options: Options, world: &World) -> Result<Recovered> {
    let (disk, dir) = (&world.disk, &options.store.clone());
    disk.create_dir(dir)?;
    let lock = disk.lock(&dir.join("LOCK"))?.ok_or_else(|| Error::Locked { path: dir.clone() })?;
    let (known, manifest) = open_files(disk, dir, &options, world)?;
    let store_id = known.store_id;
    let (run_dir, held) = run_directory(dir, store_id, &options)?;
    let control = control_page(&run_dir, store_id)?;
    // The page is new when the host has been started since: what readers saw before is not known then.
    let unknown = control.timeline() == Timeline(0) && !known.clean;
    // That the timeline has risen is told below, whatever readers have seen.
    let told = control.timeline() < known.timeline && control.timeline() > Timeline(0);
    let instance = begin_instance(&control, &run_dir)?;
    let options = options.check()?;
    let maker = maker(&run_dir, instance, store_id, &options);
    let (from, seq) = (manifest.state().checkpoint, manifest.state().seq);
    remove_unfinished(disk.as_ref(), dir)?;
    let memtables = memtables(&maker, &control, from.lsn, seq, &options)?;
    let symbols = SymbolsWriter::create(&run_dir.symbols(instance), options.instruments_max)?;
    let mut rebuilt = Rebuilt::new(memtables, symbols, KindsWriter::create(&run_dir.kinds(instance))?, manifest.state())?;
    let mut filer = Filer::new(flush::Parts {
        disk: disk.clone(),
        dir: dir.clone(),
        store_id,
        segment_size: known.segment_size,
        manifest,
        run_dir: run_dir.clone(),
        instance,
        control: control.clone(),
    });
    filer.skip_known_ids()?;
    let seen = match (told, unknown) {
        (true, _) => Lsn::NONE,
        (false, true) => Lsn(u64::MAX),
        (false, false) => control.applied(),
    };
    let mut said = world.clock.monotonic();
    let log = wal::open(disk.clone(), dir, from, seen, |frame| {
        tell(frame, world.clock.monotonic(), &control, &mut said);
        rebuilt.visit(frame, &mut filer, world.clock.as_ref())
    })?;
    filer.sweep()?;
    let Log { mut writer, mut syncer, meta, cut, was_clean } = log;
    let end = writer.end();
    // The timeline first: a reader that sees a watermark fall has seen the timeline rise.
    if meta.meta().timeline != control.timeline() {
        control.set_timeline(meta.meta().timeline, end.lsn.next());
    }
    control.set_appended(end.lsn, end.position);
    control.set_applied(end.lsn);
    writer.ready()?;
    let (mut core, sealed) = rebuilt.into_core(writer, control.clone());
    let opened = core.open_term(world.clock.wall())?;
    if let Some(segment) = opened.opened {
        syncer.opened(segment);
    }
    syncer.sync(opened.end)?;
    control.set_durable(opened.end.lsn, opened.end.position);
    let started = Started {
        run_dir: run_dir.path().to_path_buf(),
        instance,
        records: end.lsn.0,
        filed: filer.manifest().state().covered().0,
        files: filer.manifest().state().files.len() as u64,
        log_bytes: end.position.0 - from.position.0.min(end.position.0),
        was_clean,
        cut: cut.map(|c| format!("{} at offset {}: {}", c.path.display(), c.offset, c.bad.what)),
        memtable_size: options.memtable_size,
    };
    let lock = Box::new((lock, held));
    Ok(Recovered { options, core, syncer, meta, control, filer, sealed, started, run_dir, maker, lock })
}

/// A serving store.
pub struct Storage {
    started: Started,
    control: Control,
    bells: Bells,
    meta: MetaFile,
    stop: Stop,
    late_stop: Stop,
    ingest: JoinHandle<Result<()>>,
    sync: JoinHandle<Result<wal::Syncer>>,
    flush: JoinHandle<Filer>,
    others: Vec<JoinHandle<()>>,
    run_dir: RunDir,
    _lock: Box<dyn Send + Sync>,
}

impl Storage {
    /// Recovers the store and begins to serve it.
    ///
    /// # Errors
    /// As [`recover`]; [`Error::Bus`]; [`Error::Invalid`] for options that cannot be.
    pub fn start(options: Options, world: World) -> Result<Storage> {
        let recovered = recover(options, &world)?;
        let (run_dir, instance) = (&recovered.run_dir, recovered.started.instance);
        let bells = Bells::open_or_create(&run_dir.bells())?;
        let bus = Bus::join(&run_dir.bus_root(instance), &run_dir.bus_prefix(instance), "storage")?;
        let listener = listen(&run_dir.attach_socket())?;
        Storage::launch(world, recovered, bells, bus, listener)
    }

    /// Starts the agents.
    #[expect(clippy::too_many_lines, reason = "one list: which agent holds which end of which queue")]
    fn launch(world: World, recovered: Recovered, bells: Bells, bus: Bus, listener: UnixListener) -> Result<Storage> {
        let Recovered { options, mut core, syncer, meta, control, filer, sealed, started, run_dir, maker, lock } = recovered;
        let instance = started.instance;
        let io = |e: std::io::Error| Error::io("start a thread of", &options.store, e);
        let waker = Waker::new().map_err(io)?;
        let (stop, late_stop, halted) = (Stop::default(), Stop::default(), Stop::default());
        let (request_in, request_out) = bounded(attach::REQUESTS_MAX);
        let (answer_in, answer_out) = bounded(4096);
        let (item_in, item_out) = bounded::<SyncItem>(SYNC_QUEUE);
        let (freed_in, freed_out) = bounded(SLOTS_MAX);
        let (spare_in, spare_out) = bounded(1);
        let (recycled_in, recycled_out) = bounded(RECYCLED_MAX);
        let (flush_in, flush_out) = bounded(2 * TABLES_MAX);
        let (told_in, told_out) = bounded(flush::TOLD_MAX);
        let (job_in, job_out) = bounded(1);
        let (done_in, done_out) = bounded(1);
        let (table_request_in, table_request_out) = bounded(1);
        let (table_in, table_out) = bounded(1);
        core.writer.set_spares(Spares::Ahead(spare_out));
        core.memtables.set_source(Source::Ahead { request: table_request_in, ready: table_out, waits: false });
        let (segment_size, table) = (meta.meta().segment_size, options.memtable_size);
        let keep = |total| space::keep_free(options.space_min, total, segment_size, table);
        let disk = world.disk.clone();
        let space = SpaceAgent::new(disk, &options.store, keep, segment_size, control.clone(), late_stop.clone())?;
        let room = space.room();
        let prepare = PrepareAgent {
            room: room.clone(),
            said: false,
            disk: world.disk.clone(),
            dir: options.store.join(wal::DIR),
            segment_size: meta.meta().segment_size,
            next: 0,
            spares: spare_in,
            recycled: recycled_out,
            maker,
            requests: table_request_out,
            tables: table_in,
            stop: late_stop.clone(),
        };
        let flush = FlushAgent {
            filer,
            room: room.clone(),
            said: false,
            clock: world.clock.clone(),
            items: flush_out,
            waiting: sealed,
            told: told_in,
            spares: recycled_in,
            bells: bells.clone(),
            stop: late_stop.clone(),
            tending: Tending::new(options.compaction.clone(), &options.retention, world.clock.as_ref(), job_in, done_out)?,
        };
        let compact = CompactAgent {
            disk: world.disk.clone(),
            dir: options.store.join(crate::sstable::DIR),
            jobs: job_out,
            done: done_in,
            bytes_per_second: options.compaction.bytes_per_second,
            control: control.clone(),
            room: room.clone(),
            stop: late_stop.clone(),
        };
        let sync = SyncAgent {
            syncer,
            items: item_out,
            answers: answer_in,
            freed: freed_in,
            control: control.clone(),
            bells: bells.clone(),
            wake_attach: waker.clone(),
            pace: Pace {
                interval: Duration::from_millis(options.sync_interval_ms).saturating_sub(ingest::TELL_AFTER),
                bytes: options.sync_bytes,
            },
            // A core is kept busy for ingest alone: for the disk an adaptive wait is enough.
            wait: if options.wait == Wait::Busy { Wait::Adaptive } else { options.wait },
            was_urgent: false,
            halted: halted.clone(),
        };
        let attach = AttachAgent {
            listener,
            socket: run_dir.attach_socket(),
            bus,
            instance,
            requests: request_in,
            answers: answer_out,
            waker,
            bells: bells.clone(),
            control: control.clone(),
            clock: world.clock.clone(),
            stop: late_stop.clone(),
        };
        let ingest = IngestAgent {
            core,
            room,
            control: control.clone(),
            bells: bells.clone(),
            clock: world.clock.clone(),
            requests: request_out,
            sync: item_in,
            freed: freed_out,
            flush: flush_in,
            told: told_out,
            instance,
            unsynced_max: options.unsynced_max,
            level_min: options.level_min,
            wait: options.wait,
            stop: stop.clone(),
            halted,
            lanes: Vec::new(),
            first: 0,
            slots: (0..SLOTS_MAX).rev().collect(),
            untold: ingest::Untold::default(),
            held_since: None,
        };
        control.set_server(Some((u64::from(std::process::id()), meta.meta().term, world.clock.wall())));
        control.beat(world.clock.monotonic());
        control.set_instance(instance);
        let others = vec![
            spawn("tape-prepare", None, move || prepare.run()).map_err(io)?,
            spawn("tape-space", None, move || space.run()).map_err(io)?,
            spawn("tape-attach", None, move || attach.run()).map_err(io)?,
            spawn("tape-compact", None, move || compact.run()).map_err(io)?,
        ];
        let flush = spawn("tape-flush", None, move || flush.run()).map_err(io)?;
        let sync = spawn("tape-sync", options.sync_core, move || sync.run()).map_err(io)?;
        let ingest = spawn("tape-ingest", options.ingest_core, move || ingest.run()).map_err(io)?;
        Ok(Storage { started, control, bells, meta, stop, late_stop, ingest, sync, flush, others, run_dir, _lock: lock })
    }

    /// What the start found.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// The control page.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Whether an agent has ended without being asked: [`Storage::stop`] then says why.
    pub fn has_failed(&self) -> bool {
        self.ingest.is_finished() || self.sync.is_finished()
    }

    /// Takes in what waits, makes it durable, says so on the disk and ends. Shared memory is given
    /// back, but for the control page.
    ///
    /// # Errors
    /// [`Error::Halted`] if an agent has ended by one: what is durable is as it was last said.
    pub fn stop(mut self) -> Result<()> {
        self.stop.stop();
        self.bells.ring(crate::shm::bell::Bell::Ingest);
        let ingest = joined(self.ingest);
        // When ingest has failed its queue is closed, and the sync agent ends by that.
        let sync = joined(self.sync);
        self.control.set_server(None);
        self.late_stop.stop();
        for other in self.others {
            joined(other);
        }
        let filer = joined(self.flush);
        let syncer = ingest.and(sync)?;
        let meta = wal::Meta { clean: true, durable: syncer.durable(), ..*self.meta.meta() };
        self.meta.update(meta)?;
        self.control.set_tables(&[], filer.manifest().state().seq);
        self.run_dir.sweep(None)?;
        Ok(())
    }
}

fn joined<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(value) => value,
        // An agent that panics has ended the process before anybody could join it.
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The directory in which a program finds the store it is asked for: as given, or the default.
pub fn store_dir(given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| Options::default().store, Path::to_path_buf)
}
