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
pub mod fill;
pub mod flush;
pub mod history;
pub mod memtables;

mod attach;
mod cluster;
mod compact;
mod covered;
mod forward;
pub mod found;
mod ingest;
mod known;
mod lane;
mod life;
mod links;
mod members;
pub mod offer;
mod prepare;
mod recover;
pub mod rejoin;
mod rows;
mod serve;
mod space;
mod sync;

#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::bounded;

use self::attach::{AttachAgent, Waker, listen};
use self::cluster::Cluster;
use self::compact::CompactAgent;
use self::covered::Covered;
use self::flush::{Filer, FlushAgent, Tending};
use self::ingest::IngestAgent;
use self::links::Links;
use self::memtables::Source;
use self::prepare::PrepareAgent;
pub use self::recover::{Recovered, Started, recover};
use self::space::SpaceAgent;
use self::sync::{Pace, SYNC_QUEUE, SyncAgent, SyncItem};
use crate::agent::{Stop, Wait, spawn};
use crate::bus::Bus;
use crate::compaction;
use crate::compaction::retention::{Rule, Rules};
use crate::consensus::{self, message::Identity};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::lsn::Level;
use crate::shm::bell::Bells;
use crate::shm::control::{Control, SLOTS_MAX, TABLES_MAX};
use crate::shm::run_dir::{ROOT_DEFAULT, RunDir};
use crate::time::Clock;
use crate::wal::{self, MetaFile, Spares};

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
    /// Of a pair: whether this host leads without having heard of the other.
    #[serde(skip)]
    pub start_as_leader: bool,
    /// Times of the cluster, of a store that is in one.
    pub cluster: consensus::Options,
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
            start_as_leader: false,
            cluster: consensus::Options::default(),
        }
    }
}

/// Passed segments of the log that wait to be used again.
const RECYCLED_MAX: usize = 2;

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
        self.cluster.check()?;
        if self.level_min == Level::QuorumOs && !self.cluster.is_lossy() {
            self.level_min = Level::Quorum;
        }
        if self.cluster.is_lossy() && self.level_min > Level::Os {
            return bad(
                "level-min",
                format!(
                    "{}: with flush = \"interval\" it is none or os, and each publisher chooses fsync or quorum-os",
                    self.level_min
                ),
            );
        }
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
    /// Which life of the system's this is, since when its memory has been kept; 0: not known.
    pub boot: u128,
}

/// Why storage has ended, and what is to be done before the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Its log and the leader's differ: the log is to be cut behind this frame, the last that both have ([`rejoin::cut`]).
    Cut(u64),
    /// The copy of another host's store has come, and is to take the place of this one ([`fill::install`]).
    Fill,
}

/// A serving store.
pub struct Storage {
    started: Started,
    control: Control,
    bells: Bells,
    meta: MetaFile,
    stop: Stop,
    late_stop: Stop,
    ingest: JoinHandle<Result<Ended>>,
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
        let listeners = Listeners { attach: listen(&run_dir.attach_socket())?, cluster: listen(&run_dir.cluster_socket())? };
        Storage::launch(world, recovered, bells, bus, listeners)
    }

    /// Starts the agents.
    #[expect(clippy::too_many_lines, reason = "one list: which agent holds which end of which queue")]
    fn launch(world: World, recovered: Recovered, bells: Bells, bus: Bus, listeners: Listeners) -> Result<Storage> {
        let Recovered { options, mut core, syncer, meta, control, filer, sealed, node, started, run_dir, maker, lock } =
            recovered;
        let covered = Arc::new(Covered::new(syncer.durable().index.0, node.is_alone()));
        let identity = identity(&node, started.instance, meta.meta().segment_size, &options);
        let links = Links::new(listeners.cluster, run_dir.cluster_socket());
        let mut cluster = Cluster::new(node, options.cluster.clone(), links, covered.clone(), identity);
        let instance = started.instance;
        let io = |e: std::io::Error| Error::io("start a thread of", &options.store, e);
        if options.start_as_leader && cluster.node.meta().has_forgotten {
            let reason =
                "this host may have forgotten frames that the other has; `tape cluster force-promote` where more is left";
            return Err(Error::invalid("start-as-leader", reason));
        }
        cluster.may_lead = options.start_as_leader;
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
            covered: covered.clone(),
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
            covered,
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
            listener: listeners.attach,
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
            cluster,
            forwarding: forward::Forwarding::default(),
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
            is_lossy: options.cluster.is_lossy(),
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
        control.set_lossy(options.cluster.is_lossy());
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
    pub fn stop(mut self) -> Result<Ended> {
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
        let ended = ingest?;
        let syncer = sync?;
        let meta = wal::Meta { clean: true, durable: syncer.durable(), ..*self.meta.meta() };
        self.meta.update(meta)?;
        self.control.set_tables(&[], filer.manifest().state().seq);
        self.run_dir.sweep(None)?;
        Ok(ended)
    }
}

/// The sockets at which storage is asked.
struct Listeners {
    attach: UnixListener,
    cluster: UnixListener,
}

/// Who this is, for the replication process.
fn identity(node: &consensus::Node, session: u64, segment_size: u64, options: &Options) -> Identity {
    let meta = node.meta();
    Identity {
        cluster: meta.store_id,
        node: meta.node,
        incarnation: meta.incarnation,
        epoch: meta.epoch,
        session,
        segment_size,
        store: std::path::absolute(&options.store).unwrap_or_else(|_| options.store.clone()),
        heartbeat_ms: options.cluster.heartbeat_ms,
        election_ms: options.cluster.election_ms,
        is_lossy: options.cluster.is_lossy(),
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
