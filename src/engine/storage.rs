//! Owns: a store that is served: its agents, started together and stopped in order.
//!
//! What must hold: publishers and readers find the store once every agent runs. A stop makes durable what was accepted before it
//! records that the store was stopped in order.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::bounded;

use super::agents::{IngestEnds, Shared};
use super::attach::listen;
use super::cluster_socket::ClusterSocket;
use super::consensus::message::Identity;
use super::ended::Ended;
use super::flush::Flusher;
use super::host::{Host, HostParts};
use super::log::LogParts;
use super::memtables::Source;
use super::options::{Options, World};
use super::recover::{Recovered, Started, recover};
use super::reload::Reload;
use super::requests::DurabilityPolicy;
use super::space::SpaceAgent;
use super::sync::{SYNC_QUEUE, SyncItem};
use super::traces::Traces;
use super::waker::Waker;
use super::watermarks::Watermarks;
use super::{attach, consensus, flush, requests, space};
use tapestore::agent::{Stop, spawn};
use tapestore::bus::Bus;
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::lsn::Term;
use tapestore::shm::bell::Bells;
use tapestore::shm::control::{BackPressure, Control, SLOTS_MAX, TABLES_MAX};
use tapestore::shm::run_dir::RunDir;
use tapestore::wal::{self, MetaFile, Spares};

const _: () = assert!(tapestore::bus::attach::SLOTS_MAX == SLOTS_MAX);

/// Most recycled segments of the log that wait to be used again.
const RECYCLED_MAX: usize = 2;

/// A store that is served.
pub struct Storage {
    started: Started,
    control: Control,
    bells: Bells,
    meta: MetaFile,
    stop: Stop,
    late: Stop,
    ingest: JoinHandle<Result<Ended>>,
    sync: JoinHandle<Result<wal::Syncer>>,
    flush: JoinHandle<Flusher>,
    others: Vec<JoinHandle<()>>,
    reload: Reload,
    run_dir: RunDir,
    store: PathBuf,
    disk: Arc<dyn Disk>,
    /// Held until the last file of the stop is in place.
    lock: Box<dyn Send + Sync>,
}

impl Storage {
    /// Recovers the store and begins to serve it.
    ///
    /// # Errors
    /// As [`recover`]; [`Error::Bus`] if the bus cannot be joined; [`Error::Invalid`] if options are not valid.
    pub fn start(options: Options, world: World) -> Result<Storage> {
        Storage::start_traced(options, world, Traces::off())
    }

    /// The same; moments of sampled frames go to `traces`.
    ///
    /// # Errors
    /// As [`Storage::start`].
    pub fn start_traced(options: Options, world: World, traces: Traces) -> Result<Storage> {
        let mut recovered = recover(options, &world)?;
        recovered.state.trace(traces);
        let (run_dir, instance) = (&recovered.run_dir, recovered.started.instance);
        let bells = Bells::open_or_create(&run_dir.bells())?;
        let bus = Bus::join(&run_dir.bus_root(instance), &run_dir.bus_prefix(instance), "storage")?;
        let listeners = Listeners { attach: listen(&run_dir.attach_socket())?, cluster: listen(&run_dir.cluster_socket())? };
        Storage::launch(world, recovered, bells, bus, listeners)
    }

    /// Starts the agents: which agent holds which end of which queue.
    fn launch(world: World, recovered: Recovered, bells: Bells, bus: Bus, listeners: Listeners) -> Result<Storage> {
        let Recovered { options, mut state, syncer, meta, control, mut flusher, sealed, node, started, run_dir, maker, lock } =
            recovered;
        let io = |e: std::io::Error| Error::io("start a thread of", &options.store, e);
        check_lead(&options, &node)?;
        let watermarks = Arc::new(Watermarks::new(syncer.durable().index.0, node.is_alone()));
        let identity = identity(&node, started.instance, meta.meta().segment_size, &options);
        let (segment_size, table, instance) = (meta.meta().segment_size, options.memtable_size, started.instance);
        let waker = Waker::new().map_err(io)?;
        let (stop, late, halted) = (Stop::default(), Stop::default(), Stop::default());
        let (request_in, requests) = bounded(attach::REQUESTS_MAX);
        let (answer_in, answers) = bounded(4096);
        let (sync_in, sync_items) = bounded::<SyncItem>(SYNC_QUEUE);
        let (freed_in, freed) = bounded(SLOTS_MAX);
        let (spares, spare_out) = bounded(1);
        let (recycled_in, recycled) = bounded(RECYCLED_MAX);
        let (flush_in, flush_items) = bounded(2 * TABLES_MAX);
        let (notice_in, notices) = bounded(flush::NOTICES_MAX);
        let (request, table_requests) = bounded(1);
        let (tables, ready) = bounded(1);
        state.writer.set_spares(Spares::Ahead(spare_out));
        state.memtables.set_source(Source::Ahead { request, ready, waits: false });
        let keep = |total| space::keep_free(options.space_min, total, segment_size, table);
        let space = SpaceAgent::new(world.disk.clone(), &options.store, keep, segment_size, control.clone(), late.clone())?;
        let room = space.room();
        let traces = state.traces().clone();
        let shared = Shared { options: &options, world: &world, control: &control, bells: &bells, room: &room, stop: &late };
        let pinned = shared.pinned(&mut flusher)?;
        let prepare = shared.prepare(maker, segment_size, (spares, recycled), (table_requests, tables));
        let (scheduler, compact, reload) = shared.compaction()?;
        let flush = shared.flush((flusher, sealed), scheduler, watermarks.clone(), (flush_items, notice_in, recycled_in));
        let sync = shared.sync((syncer, traces), watermarks.clone(), (&waker, &halted), (sync_items, answer_in, freed_in));
        let attach = shared.attach((listeners.attach, run_dir.attach_socket()), (bus, instance), waker, (request_in, answers));
        let is_lossy = options.cluster.is_lossy();
        let (control_of_log, unsynced_max) = (control.clone(), options.unsynced_max);
        let host = Host::new(HostParts {
            log: LogParts {
                state,
                node,
                watermarks,
                control: control_of_log,
                room: room.clone(),
                halted,
                unsynced_max,
                is_lossy,
            },
            options: options.cluster.clone(),
            identity,
            levels: DurabilityPolicy { least: options.durability_min, is_lossy },
            instance,
            may_lead: options.start_as_leader,
            first_ticket: requests::first_ticket(random().map_err(io)?),
        });
        let cluster_socket = ClusterSocket::new(listeners.cluster, run_dir.cluster_socket());
        let ends = IngestEnds { requests, sync: sync_in, freed, flush: flush_in, notices };
        let ingest = shared.ingest(host, cluster_socket, stop.clone(), ends);
        announce(&control, &world, meta.meta().term, (instance, is_lossy));
        let others = vec![
            spawn("tape-prepare", None, move || prepare.run()).map_err(io)?,
            spawn("tape-space", None, move || space.run()).map_err(io)?,
            spawn("tape-pinned", None, move || pinned.run()).map_err(io)?,
            spawn("tape-attach", None, move || attach.run()).map_err(io)?,
            spawn("tape-compact", None, move || compact.run()).map_err(io)?,
        ];
        let flush = spawn("tape-flush", None, move || flush.run()).map_err(io)?;
        let sync = spawn("tape-sync", options.sync_core, move || sync.run()).map_err(io)?;
        let ingest = spawn("tape-ingest", options.ingest_core, move || ingest.run()).map_err(io)?;
        let (store, disk) = (options.store, world.disk);
        Ok(Storage { started, control, bells, meta, stop, late, ingest, sync, flush, others, reload, run_dir, store, disk, lock })
    }

    /// The result of the start.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Uses the retention and the compaction of `options` from now on; other options stay as they were at the start.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of them is not valid: nothing has changed then.
    pub fn reload(&self, options: &Options) -> Result<()> {
        self.reload.change(options)
    }

    /// The control page.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Whether an agent has ended by itself: [`Storage::stop`] then returns why.
    pub fn has_failed(&self) -> bool {
        self.ingest.is_finished() || self.sync.is_finished()
    }

    /// Accepts what waits, makes it durable, records a clean stop and ends. Shared memory is released, except the control
    /// page.
    ///
    /// # Errors
    /// [`Error::Halted`] if an agent has failed: the durable watermark stays as it was last published.
    pub fn stop(mut self) -> Result<Ended> {
        self.stop.stop();
        self.bells.ring(tapestore::shm::bell::Bell::Ingest);
        let ingest = joined(self.ingest);
        // When ingest has failed its queue is closed, which ends the sync agent.
        let sync = joined(self.sync);
        self.control.set_server(None);
        self.late.stop();
        for other in self.others {
            joined(other);
        }
        let flusher = joined(self.flush);
        if ingest.is_err() || sync.is_err() {
            self.control.set_back_pressure(Some(BackPressure::Halted), self.control.heartbeat());
        }
        let ended = ingest?;
        let syncer = sync?;
        let meta = wal::Meta { clean: true, durable: syncer.durable(), ..*self.meta.meta() };
        self.meta.update(meta)?;
        self.control.set_tables(&[], flusher.manifest().state().seq);
        self.run_dir.sweep(None)?;
        tapestore::shm::spill::sweep(&self.store)?;
        // The next start would remove them. A store at rest takes what its records need.
        wal::remove_spares(self.disk.as_ref(), &self.store.join(wal::DIR))?;
        drop(self.lock);
        Ok(ended)
    }
}

/// Shows on the control page that this process serves the store.
fn announce(control: &Control, world: &World, term: Term, (instance, is_lossy): (u64, bool)) {
    control.set_server(Some((u64::from(std::process::id()), term, world.clock.wall())));
    control.beat(world.clock.monotonic());
    control.set_lossy(is_lossy);
    control.set_instance(instance);
}

/// Refuses to lead from the start on a host that may have lost frames.
fn check_lead(options: &Options, node: &consensus::Node) -> Result<()> {
    if options.start_as_leader && node.meta().has_forgotten {
        let reason =
            "this host may have lost frames that the other has; run `tape cluster force-promote` on the host that has more";
        return Err(Error::invalid("start-as-leader", reason));
    }
    Ok(())
}

/// The sockets on which storage is asked.
struct Listeners {
    attach: UnixListener,
    cluster: UnixListener,
}

/// The identity that the replication process receives.
pub(super) fn identity(node: &consensus::Node, session: u64, segment_size: u64, options: &Options) -> Identity {
    let meta = node.meta();
    Identity {
        cluster: meta.store_id,
        node: meta.node,
        greeting: meta.greeting(),
        generation: meta.generation,
        session,
        segment_size,
        store: options.store.clone(),
        heartbeat_ms: options.cluster.heartbeat_ms,
        election_ms: options.cluster.election_ms,
        is_lossy: options.cluster.is_lossy(),
    }
}

/// A random number, which no earlier process has begun with.
fn random() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    debug_assert_eq!(filled, bytes.len(), "so few bytes come in one call");
    Ok(u64::from_le_bytes(bytes))
}

fn joined<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(value) => value,
        // A panicking agent aborts the process before anybody can join it.
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The store directory of a program: as given, or the default.
pub fn store_dir(given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| Options::default().store, Path::to_path_buf)
}
