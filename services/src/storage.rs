//! Owns: the storage process: reads its options, serves a store, stops cleanly.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use tapestore::agent::Wait;
use tapestore::error::Error;
use tapestore::lsn::Durability;
use tapestore::shm::control::{Control, Statistic};
use tapestore::shm::user;
use tapestore_engine::snapshot::install;
use tapestore_engine::traces::{Moment, Traces};
use tapestore_engine::{Ended, Options, Started, Storage, World, divergence};

use crate::choice;
use crate::exit::{Failure, IO, NO_PERMISSION, Outcome};
use crate::logging;
use crate::metrics::{self, Endpoint};
use crate::notify::Notifier;
use crate::terminal;
use crate::traces::{self, Sender};

/// Serves a store: logs the records of publishers and makes them readable in shared memory.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Store directory; created if it does not exist [default: tapestore-data]
    #[arg(long, env = "TAPE_STORE")]
    pub store: Option<PathBuf>,
    /// Configuration file; flags override it
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Size of a MemTable, like 256M [default: 256M, or a quarter of the free shared memory if that is less]
    #[arg(long, value_parser = terminal::size)]
    pub memtable_size: Option<u64>,
    /// Most MemTables, the active one and sealed ones: 2 to 4 [default: 3]
    #[arg(long)]
    pub memtables_max: Option<usize>,
    /// Size of a log segment, for a new store [default: 64M]
    #[arg(long, value_parser = terminal::size)]
    pub segment_size: Option<u64>,
    /// Bytes kept free on the disk; with less, records are refused [default: 1G, or a twentieth of the volume if that is less]
    #[arg(long, value_parser = terminal::size)]
    pub space_min: Option<u64>,
    /// Bytes of removed SSTables that readers' snapshots may keep on the disk [default: a tenth of the volume]
    #[arg(long, value_parser = terminal::size)]
    pub pinned_max: Option<u64>,
    /// Lowest durability level of publishers [default: none]
    #[arg(long, alias = "level-min", value_parser = choice::durability())]
    pub durability_min: Option<Durability>,
    /// How the ingest thread waits for work [default: adaptive]
    #[arg(long, value_parser = choice::wait())]
    pub wait: Option<Wait>,
    /// Of a pair: become leader without contact with the other host. Use it only if the other host was not promoted
    #[arg(long)]
    pub start_as_leader: bool,
    /// CPU core to pin the ingest thread to
    #[arg(long)]
    pub ingest_core: Option<usize>,
    /// CPU core to pin the sync thread to
    #[arg(long)]
    pub sync_core: Option<usize>,
    /// Serve metrics for Prometheus at this address: host:port or unix:/path; also /healthz and /readyz [default: not served]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Send traces to this collector of OpenTelemetry, OTLP over gRPC, like http://127.0.0.1:4317 [default: not sent]
    #[arg(long)]
    pub traces: Option<String>,
    /// Trace one frame in so many [default: 100]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub traces_one_in: Option<u64>,
    /// Log to standard error from this level on: error, warn, info, debug, trace, off [default: RUST_LOG, or info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<terminal::LevelFilter>,
    /// Form of log lines: text, or one object of JSON a line
    #[arg(long, value_enum, value_name = "FORMAT", env = terminal::LOG_FORMAT, default_value_t)]
    pub log_format: terminal::LogFormat,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

impl Args {
    /// The options: defaults, overridden by the file, overridden by flags.
    ///
    /// # Errors
    /// The configuration file is absent or invalid.
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
        set(&mut options.pinned_max, &self.pinned_max);
        set(&mut options.durability_min, &self.durability_min);
        set(&mut options.wait, &self.wait);
        set(&mut options.metrics, &self.metrics);
        set(&mut options.traces, &self.traces);
        set(&mut options.traces_one_in, &self.traces_one_in);
        options.start_as_leader = self.start_as_leader;
        options.ingest_core = self.ingest_core.or(options.ingest_core);
        options.sync_core = self.sync_core.or(options.sync_core);
        Ok(options)
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The reason why storage did not start, or ended: exit code 74 after a failed write or sync.
pub fn run(args: &Args) -> Outcome {
    terminal::log(terminal::Wanted::new(args.log, terminal::LevelFilter::INFO), args.log_format, true);
    let (stop, reload_asked) = terminal::serving_flags()?;
    // A file size limit is then a write error (EFBIG) instead of a signal.
    ignore_file_size_signal();
    let parent = rustix::process::getppid();
    let mut options = args.options()?;
    check_owner(&options.store)?;
    terminal::Configured::new(&options.log, terminal::LevelFilter::INFO)?.apply();
    let world = World::of_this_host()?;
    let tracing = Tracing::of(&options)?;
    // Before the store is served: a recovery can take minutes.
    let _metrics = Endpoint::of(&options.metrics, || {
        let dropped = tracing.clone();
        metrics::storage::Storage::new(&options.store).dropping(move || dropped.dropped())
    })?;
    let notifier = Notifier::of_storage(&options.store);
    let is_over = || terminal::is_raised(&stop) || (args.with_parent && rustix::process::getppid() != parent);
    loop {
        let storage = Storage::start_traced(options.clone(), world.clone(), tracing.traces.clone())?;
        tracing.follow(storage.control())?;
        announce(&options.store, storage.started());
        notifier.ready(format!("serving {}", options.store.display()));
        if options.cluster.is_lossy() {
            tracing::warn!(
                name: "storage.lossy_flush",
                "flush = \"interval\": records that the cluster commits can be lost if most of its hosts lose power within the sync interval; publishers get the level quorum-os instead of quorum"
            );
        }
        while !is_over() && !storage.has_failed() {
            // Raised by a signal: nothing to order.
            if reload_asked.swap(false, Ordering::Relaxed)
                && let Some(changed) = reload(&storage, args)
            {
                // Storage starts with them again, within this process too.
                (options.retention, options.compaction) = (changed.retention, changed.compaction);
            }
            storage.control().set_statistic(Statistic::LogLinesLost, logging::lost());
            std::thread::sleep(Duration::from_millis(20));
        }
        if !storage.has_failed() {
            tracing::info!(name: "storage.stopping", "stopping");
            notifier.stopping();
        }
        let control = storage.control().clone();
        match storage.stop().map_err(|e| Failure::new(IO, e.to_string()))? {
            Ended::Stopped => {
                tracing::info!(name: "storage.stopped", records = control.appended().0, "stopped; all records are durable");
                return Ok(());
            }
            Ended::Truncate(last_kept) => truncate(&options, &world, last_kept)?,
            Ended::Fill => install_snapshot(&options, &world)?,
        }
    }
}

/// Reads the configuration again and uses what can change while storage runs; returns it. One that is wrong changes nothing.
fn reload(storage: &Storage, args: &Args) -> Option<Options> {
    let changed = args.options().and_then(|options| {
        let log = terminal::Configured::new(&options.log, terminal::LevelFilter::INFO)?;
        // All or nothing: what can be refused comes first.
        storage.reload(&options)?;
        log.apply();
        Ok(options)
    });
    let counter = match &changed {
        Ok(_) => Statistic::Reloads,
        Err(_) => Statistic::ReloadFailures,
    };
    match &changed {
        Ok(_) => {
            tracing::info!(name: "storage.reloaded", "the configuration is read again: retention, compaction and what is logged are as it says from now on")
        }
        Err(error) => {
            tracing::error!(name: "storage.reload_refused", %error, "the configuration is wrong; storage goes on with the earlier one")
        }
    }
    storage.control().add(counter, 1);
    changed.ok()
}

/// What a process traces, if it does.
#[derive(Clone)]
struct Tracing {
    traces: Traces,
    /// The moments, until a thread makes spans of them; and where these go.
    to: Option<(Receiver<Moment>, Sender)>,
    is_followed: Arc<AtomicBool>,
}

impl Tracing {
    fn of(options: &Options) -> Outcome<Tracing> {
        let is_followed = Arc::default();
        if options.traces.is_empty() {
            return Ok(Tracing { traces: Traces::off(), to: None, is_followed });
        }
        let instance = options.store.display().to_string();
        let sender = traces::start(&traces::Options { endpoint: &options.traces, service: "tape-storage", instance: &instance })?;
        let (traces, moments) = Traces::of(options.traces_one_in);
        Ok(Tracing { traces, to: Some((moments, sender)), is_followed })
    }

    /// Starts the thread that makes spans, if it does not run yet. It ends with the process.
    fn follow(&self, control: &Control) -> Outcome {
        let Some((moments, to)) = self.to.clone() else { return Ok(()) };
        // One thread starts it: nothing to order.
        if !self.is_followed.swap(true, Ordering::Relaxed) {
            let control = control.clone();
            let run = move || {
                terminal::yield_to_work();
                traces::frames::run(&moments, &control, &to);
            };
            std::thread::Builder::new().name("tape-spans".to_owned()).spawn(run)?;
        }
        Ok(())
    }

    /// Moments and spans that were dropped.
    fn dropped(&self) -> u64 {
        self.traces.dropped() + self.to.as_ref().map_or(0, |(_, to)| to.dropped())
    }
}

/// Truncates the divergent tail of the log: records that only this host has and the cluster did not commit.
fn truncate(options: &Options, world: &World, last_kept: u64) -> Outcome {
    let truncated = divergence::truncate(options, world, last_kept)?;
    let kept_in = truncated.kept_in.as_deref().unwrap_or(&options.store);
    tracing::warn!(
        name: "wal.divergent_tail",
        frames = truncated.frames, records = truncated.records, first_lsn = truncated.first_lsn.0, kept_in = %kept_in.display(),
        "truncated records that the cluster did not commit; they are kept aside"
    );
    Ok(())
}

/// Replaces the store by the snapshot of the leader that was fetched, because the leader's log begins after this log's end.
fn install_snapshot(options: &Options, world: &World) -> Outcome {
    match install::install(&options.store, &world.disk, world.clock.wall(), false) {
        Ok(installed) => {
            tracing::info!(
                name: "storage.snapshot_installed", files = installed.files, records = installed.last.0,
                "installed a snapshot of the leader's store"
            );
        }
        Err(error @ (Error::Consensus { .. } | Error::Missing { .. } | Error::Corrupt { .. } | Error::Locked { .. })) => {
            tracing::warn!(
                name: "storage.snapshot_rejected", %error,
                "rejected the fetched snapshot; the store is served unchanged"
            );
            install::refuse(world.disk.as_ref(), &options.store)?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Refuses to serve a store whose files are another user's: that user could not read what this process writes.
fn check_owner(store: &Path) -> Outcome {
    let own = rustix::process::geteuid().as_raw();
    let Ok(found) = std::fs::metadata(store.join(tapestore::wal::meta::NAME)) else { return Ok(()) };
    if found.uid() == own {
        return Ok(());
    }
    let (owner, user, shown) = (user::name(found.uid()), user::name(own), store.display());
    let why = format!(
        "{shown} is the store of {owner}, and this process runs as {user}, whose files that user could not read. \
         Run it as that user, or, if it is installed as a service: systemctl start tape-storage"
    );
    Err(Failure::new(NO_PERMISSION, why))
}

fn ignore_file_size_signal() {
    // The handler raises a flag that is never read.
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        tracing::warn!(
            name: "process.file_size_signal", %error,
            "cannot catch SIGXFSZ: a file size limit will end this process by a signal"
        );
    }
}

fn announce(store: &Path, started: &Started) {
    if let Some(tail) = &started.truncated {
        tracing::warn!(name: "wal.torn_tail", %tail, "truncated a torn tail of the log, after the durable mark");
    }
    tracing::info!(
        name: "storage.recovered",
        store = %store.display(),
        records = started.records,
        flushed = started.flushed,
        files = started.files,
        log_bytes = started.log_bytes,
        clean = started.was_clean,
        "recovered the store"
    );
    tracing::info!(
        name: "storage.serving",
        publishers_attach_at = %started.run_dir.join("attach.sock").display(),
        readers_map = %started.run_dir.display(),
        memtable_bytes = started.memtable_size,
        "serving {}; stop with SIGTERM",
        store.display()
    );
}
