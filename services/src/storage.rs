//! Owns: the storage process: options in, a serving store, a clean end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tapestore::agent::Wait;
use tapestore::disk::RealDisk;
use tapestore_engine::{Ended, Options, Started, Storage, World, divergence};
use tapestore_engine::snapshot::install;
use tapestore::error::Error;
use tapestore::lsn::Durability;
use tapestore::shm::control::Statistic;
use tapestore::time::HostClock;

use crate::exit::{Failure, IO, Outcome};
use crate::logging;
use crate::terminal;

/// Keeps a store: takes in what publishers send, logs it, serves it to readers through shared memory.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory of the store; created if it is not there [default: tapestore-data]
    #[arg(long, env = "TAPE_STORE")]
    pub store: Option<PathBuf>,
    /// Configuration file; flags win over it
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Bytes of a MemTable, like 256M [default: 256M, or a quarter of the free shared memory]
    #[arg(long, value_parser = terminal::size)]
    pub memtable_size: Option<u64>,
    /// MemTables at most
    #[arg(long)]
    pub memtables_max: Option<usize>,
    /// Bytes of a log segment, for a new store [default: 64M]
    #[arg(long, value_parser = terminal::size)]
    pub segment_size: Option<u64>,
    /// Bytes kept free on the disk; below, no records are taken in [default: 1G, or a twentieth of the volume]
    #[arg(long, value_parser = terminal::size)]
    pub space_min: Option<u64>,
    /// Lowest durability that publishers get: none, os, fsync, standby, quorum, quorum-os [default: none]
    #[arg(long, alias = "level-min")]
    pub durability_min: Option<Durability>,
    /// How ingest waits for work: busy, adaptive, blocking [default: adaptive]
    #[arg(long)]
    pub wait: Option<Wait>,
    /// Of a pair: lead without having heard of the other host. Only if it is certain that it was not promoted
    #[arg(long)]
    pub start_as_leader: bool,
    /// Core to pin the ingest thread to
    #[arg(long)]
    pub ingest_core: Option<usize>,
    /// Core to pin the sync thread to
    #[arg(long)]
    pub sync_core: Option<usize>,
    /// End when the process that started this one has ended
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

impl Args {
    /// The options: defaults, then the file, then the flags.
    ///
    /// # Errors
    /// A bad file.
    pub fn options(&self) -> Outcome<Options> {
        let mut options = match &self.config {
            Some(path) => tapestore_engine::config::storage(path)?,
            None => Options::default(),
        };
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        set(&mut options.store, &self.store);
        options.store = tapestore::disk::absolute(&options.store)?;
        set(&mut options.memtable_size, &self.memtable_size);
        set(&mut options.memtables_max, &self.memtables_max);
        set(&mut options.segment_size, &self.segment_size);
        set(&mut options.space_min, &self.space_min);
        set(&mut options.durability_min, &self.durability_min);
        set(&mut options.wait, &self.wait);
        options.start_as_leader = self.start_as_leader;
        options.ingest_core = self.ingest_core.or(options.ingest_core);
        options.sync_core = self.sync_core.or(options.sync_core);
        Ok(options)
    }
}

/// The world as this host has it.
///
/// # Errors
/// The system's, if it has no randomness.
pub fn world() -> Outcome<World> {
    let mut id = [0u8; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(std::io::Error::from)?;
    Ok(World { disk: Arc::new(RealDisk), clock: Arc::new(HostClock), store_id: u128::from_le_bytes(id), boot: boot() })
}

/// Which life of the system's this is; 0 if it does not say.
fn boot() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or ended it: exit 74 after a failed write or sync.
pub fn run(args: &Args) -> Outcome {
    terminal::log("info", true);
    let stop = terminal::stop_flag()?;
    // Full disks and limits are errors here, never signals.
    ignore_file_size_signal();
    let parent = rustix::process::getppid();
    let options = args.options()?;
    let world = world()?;
    let is_over = || terminal::is_raised(&stop) || (args.with_parent && rustix::process::getppid() != parent);
    loop {
        let storage = Storage::start(options.clone(), world.clone())?;
        announce(&options.store, storage.started());
        if options.cluster.is_lossy() {
            tracing::warn!(
                "flush = \"interval\": what this cluster commits can be lost if most of its hosts lose power within the sync interval; publishers get the level quorum-os, not quorum"
            );
        }
        while !is_over() && !storage.has_failed() {
            storage.control().set_statistic(Statistic::LogLinesLost, logging::lost());
            std::thread::sleep(Duration::from_millis(20));
        }
        if !storage.has_failed() {
            tracing::info!("stopping");
        }
        let last = storage.control().appended();
        match storage.stop().map_err(|e| Failure::new(IO, e.to_string()))? {
            Ended::Stopped => {
                tracing::info!(records = last.0, "stopped; everything is durable");
                return Ok(());
            }
            Ended::Truncate(last_kept) => truncate(&options, &world, last_kept)?,
            Ended::Fill => fill(&options, &world)?,
        }
    }
}

/// The leader's log goes on otherwise: what only this host has was never committed.
fn truncate(options: &Options, world: &World, last_kept: u64) -> Outcome {
    let cut = divergence::truncate(options, world, last_kept)?;
    let kept_in = cut.kept_in.as_deref().unwrap_or(&options.store);
    tracing::warn!(
        frames = cut.frames, records = cut.records, first_lsn = cut.first_lsn.0, kept_in = %kept_in.display(),
        "this host had records that the cluster did not commit; they are cut off the log and kept aside"
    );
    Ok(())
}

/// The leader's log does not reach back to what this host lacks: a copy of the leader's store takes the place of this one.
fn fill(options: &Options, world: &World) -> Outcome {
    match install::install(&options.store, &world.disk, world.clock.wall(), false) {
        Ok(filled) => tracing::info!(files = filled.files, records = filled.last.0, "filled with a copy of the leader's store"),
        Err(error @ (Error::Consensus { .. } | Error::Missing { .. } | Error::Corrupt { .. } | Error::Locked { .. })) => {
            tracing::warn!(%error, "a copy that was fetched is not used; what was here is served on");
            install::refuse(world.disk.as_ref(), &options.store)?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn ignore_file_size_signal() {
    // A handler that only raises a flag nobody reads: the write then fails with EFBIG.
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        tracing::warn!(%error, "a file size limit would end this process by a signal");
    }
}

fn announce(store: &std::path::Path, started: &Started) {
    if let Some(cut) = &started.cut {
        tracing::warn!(%cut, "a torn tail, above what was durable, was cut off the log");
    }
    tracing::info!(
        store = %store.display(),
        records = started.records,
        flushed = started.flushed,
        files = started.files,
        log_bytes = started.log_bytes,
        clean = started.was_clean,
        "the store is recovered"
    );
    tracing::info!(
        publishers_attach_at = %started.run_dir.join("attach.sock").display(),
        readers_map = %started.run_dir.display(),
        memtable_bytes = started.memtable_size,
        "serving {}; stop with SIGTERM",
        store.display()
    );
}
