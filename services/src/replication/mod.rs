//! Owns: the replication process: it carries raft messages, frames of the log and requests between the storage processes of
//! a store's hosts, over gRPC.
//!
//! ```text
//! storage ◀─ cluster.sock ─▶ session ─▶ one peer a host: control, append, relay streams ══▶ its server ─▶ its session ─▶ its storage
//!                                ▲                                                            │ receipts
//!                              server ◀══ the same from every other host                      ▼ open the window again
//! ```
//!
//! What must hold: the process has no state that must survive: after a kill it is restarted, and storage goes on; control
//! messages never wait behind frames; queues, windows and permits bound its memory; storage is notified of possible losses.

pub mod acceptor;
pub mod certificates;
pub mod crl;
pub mod digest;
pub mod fetch_rows;
pub mod install;
pub mod local;
pub mod log;
pub mod peer;
pub mod revocable;
pub mod rows;
pub mod send_snapshot;
pub mod server;
pub mod session;
mod spin;
pub mod tls;
pub mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use self::certificates::Certificates;
use crate::exit::{Failure, Outcome};
use crate::metrics::{self, Endpoint};
use crate::notify::Notifier;
use crate::terminal;

/// The messages between hosts.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated from services/proto"
)]
pub mod proto {
    tonic::include_proto!("tapestore.replication.v1");
}

/// Options of the replication process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Store directory.
    pub store: PathBuf,
    /// Address to listen on; empty: this host's address in the member list.
    pub listen: String,
    /// Certificate, key and authority, PEM files. Without them only loopback addresses are used, between processes of one
    /// user.
    pub tls: Option<tls::Files>,
    /// Most bytes of frames queued for one host.
    pub queue_bytes: u64,
    /// Most bytes in flight to one host: sent, and not yet passed to its storage.
    pub window_bytes: u64,
    /// Most bytes a second of a snapshot that another host fetches; 0: no limit.
    pub copy_bytes_per_second: u64,
    /// What is logged; see [`terminal::Configured`].
    pub log: String,
    /// Where metrics are served; empty: nowhere.
    pub metrics: String,
}

impl Default for Options {
    fn default() -> Self {
        let store = tapestore_engine::Options::default().store;
        Options {
            store,
            listen: String::new(),
            tls: None,
            queue_bytes: 32 << 20,
            window_bytes: 16 << 20,
            copy_bytes_per_second: 128 << 20,
            log: String::new(),
            metrics: String::new(),
        }
    }
}

/// Replicates the log of a store between its hosts.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Store directory [default: tapestore-data]
    #[arg(long, env = "TAPE_STORE")]
    pub store: Option<PathBuf>,
    /// Configuration file; flags override it
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Log to standard error from this level on: error, warn, info, debug, trace, off [default: RUST_LOG, or info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<terminal::LevelFilter>,
    /// Form of log lines: text, or one object of JSON a line
    #[arg(long, value_enum, value_name = "FORMAT", env = terminal::LOG_FORMAT, default_value_t)]
    pub log_format: terminal::LogFormat,
    /// Address to listen on, host:port [default: this host's address in the member list]
    #[arg(long)]
    pub listen: Option<String>,
    /// Certificates.
    #[command(flatten)]
    pub tls: tls::Flags,
    /// Serve metrics for Prometheus at host:port, or unix:/path/of/socket, with /healthz and /readyz [default: nowhere]
    #[arg(long)]
    pub metrics: Option<String>,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// Reads options from the TOML file `path`.
///
/// # Errors
/// The file is unreadable, or has an unknown key or a wrong value.
pub fn read_options(path: &Path) -> Outcome<Options> {
    Ok(tapestore_engine::config::read(path)?)
}

impl Args {
    fn options(&self) -> Outcome<Options> {
        let mut options = self.config.as_deref().map_or_else(|| Ok(Options::default()), read_options)?;
        if let Some(store) = &self.store {
            options.store.clone_from(store);
        }
        if let Some(listen) = &self.listen {
            options.listen.clone_from(listen);
        }
        options.tls = self.tls.files().or(options.tls);
        if let Some(metrics) = &self.metrics {
            options.metrics.clone_from(metrics);
        }
        Ok(options)
    }
}

/// Counters of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages sent to other hosts.
    pub sent: AtomicU64,
    /// Bytes of frames sent.
    pub sent_bytes: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// Bytes of frames received.
    pub received_bytes: AtomicU64,
    /// Connections to other hosts opened.
    pub connects: AtomicU64,
    /// Messages dropped because the queue was full or the host not connected.
    pub dropped: AtomicU64,
    /// Frames that the log no longer held under the head that storage sent.
    pub stale_frames: AtomicU64,
    /// Messages of other hosts that were refused.
    pub refused: AtomicU64,
    /// Terms that began.
    pub elections: AtomicU64,
    /// Times that another host became leader.
    pub leader_changes: AtomicU64,
    /// Snapshots of this store that other hosts have fetched.
    pub snapshots_sent: AtomicU64,
    /// Bytes of snapshots sent.
    pub snapshot_bytes_sent: AtomicU64,
    /// Snapshots of the leader's store that this host has fetched.
    pub snapshots_fetched: AtomicU64,
    /// Bytes of snapshots fetched.
    pub snapshot_bytes_fetched: AtomicU64,
}

/// Adds to a counter. Counters order nothing: relaxed.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The reason why it did not start, or a failure of the listener.
pub fn run(args: &Args) -> Outcome {
    terminal::log(terminal::Wanted::new(args.log, terminal::LevelFilter::INFO), args.log_format, true);
    let options = args.options()?;
    terminal::Configured::new(&options.log, terminal::LevelFilter::INFO)?.apply();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).event_interval(spin::EVENT_INTERVAL).enable_all().build()?;
    let notifier = Notifier::of_runtime(runtime.handle());
    let served = runtime.block_on(async {
        tokio::select! {
            served = serve(options, args.with_parent, &notifier) => served,
            () = terminal::reloads(|| reload(args)) => Ok(()),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    served
}

/// Reads the configuration again and uses what can change while the process runs: what is logged. Certificates are read again when
/// their files change.
fn reload(args: &Args) {
    let changed = args.options().and_then(|options| terminal::Configured::new(&options.log, terminal::LevelFilter::INFO));
    match changed {
        Ok(log) => {
            log.apply();
            tracing::info!(name: "replication.reloaded", "the configuration is read again: what is logged is as it says from now on")
        }
        Err(error) => {
            tracing::error!(name: "replication.reload_refused", %error, "the configuration is wrong; the earlier one stays in use")
        }
    }
}

async fn serve(options: Options, with_parent: bool, notifier: &Notifier) -> Outcome {
    let counters = Arc::new(Counters::default());
    let (snapshot_needed_by, snapshot_needed) = tokio::sync::mpsc::channel(1);
    let (unlisted_in, unlisted) = tokio::sync::mpsc::channel(16);
    let certificates = options.tls.clone().map(Certificates::new).transpose()?;
    if let Some(certificates) = &certificates {
        certificates.log_revoked(&certificates.settings());
    }
    let (session, ends) =
        session::new(options.clone(), certificates.clone(), counters.clone(), snapshot_needed_by.clone(), unlisted);
    let identity = session.identity();
    let _metrics = serve_metrics(&options, &session, counters.clone())?;
    tracing::info!(
        name: "replication.waiting_for_storage", store = %options.store.display(),
        "waiting for the storage process of this store"
    );
    let spin = session.spin();
    tokio::spawn(async move { spin.run().await });
    let session = tokio::spawn(session.run(ends));
    let work = async {
        let listen = listen_address(&options, &identity, notifier).await?;
        tls::check_plain(&listen, options.tls.is_some())?;
        let listener = tokio::net::TcpListener::bind(&listen)
            .await
            .map_err(|e| Failure::new(crate::exit::IO, format!("cannot listen on {listen}: {e}")))?;
        let at = listener.local_addr()?;
        tracing::info!(
            name: "replication.serving", %at, tls = options.tls.is_some(), store = %options.store.display(),
            "replicating; stop with SIGTERM"
        );
        notifier.ready(format!("replicating at {at}"));
        tokio::spawn(log_counters(counters.clone()));
        let snapshots = send_snapshot::Snapshots::new(&options, counters.clone());
        tokio::spawn(snapshots.clone().expire());
        tokio::spawn(install::run(certificates.clone(), identity.clone(), snapshot_needed, counters.clone()));
        server::serve(listener, certificates, identity.clone(), counters, (snapshots, snapshot_needed_by, unlisted_in)).await
    };
    let parent = rustix::process::getppid();
    tokio::select! {
        ended = work => ended,
        ended = session => ended.map_err(|e| Failure::new(crate::exit::INTERNAL, e.to_string()))?,
        () = stopped() => {
            notifier.stopping();
            Ok(())
        }
        () = orphaned(parent), if with_parent => Ok(()),
    }
}

/// Serves metrics where the options name an address.
fn serve_metrics(options: &Options, session: &session::Session, counters: Arc<Counters>) -> Outcome<Option<Endpoint>> {
    Endpoint::of(&options.metrics, || {
        let (sender, reports) = watch::channel(None);
        tokio::spawn(metrics::replication::ask(session.identity(), sender));
        metrics::replication::Replication {
            counters,
            reports,
            links: session.links(),
            tls: options.tls.clone(),
            storage: session.identity(),
        }
    })
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!(name: "replication.stopping", "stopping");
}

async fn orphaned(parent: Option<rustix::process::Pid>) {
    while rustix::process::getppid() == parent {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The configured address, or this host's address in the member list.
async fn listen_address(
    options: &Options,
    identity: &watch::Receiver<Option<session::StorageInfo>>,
    notifier: &Notifier,
) -> Outcome<String> {
    if !options.listen.is_empty() {
        return Ok(options.listen.clone());
    }
    let mut identity = identity.clone();
    loop {
        let storage = identity.borrow_and_update().clone();
        if let Some(address) = storage.as_ref().and_then(session::StorageInfo::own_address) {
            return Ok(address);
        }
        if storage.is_some() {
            // It works, and there is nothing to do.
            notifier.ready("waiting for an address in a cluster: tape cluster init on the stopped store".to_owned());
            tracing::warn!(
                name: "replication.no_address",
                "this store has no address in a cluster, and waits for one: run tape cluster init on the stopped store, or give --listen"
            );
        }
        if identity.changed().await.is_err() {
            return Err(Failure::new(crate::exit::INTERNAL, "the session with storage has ended".to_owned()));
        }
    }
}

/// Logs the counters every 10 s, if they changed.
async fn log_counters(counters: Arc<Counters>) {
    let mut before = String::new();
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = format!("{counters:?}");
        if now != before {
            tracing::debug!(name: "replication.counters", ?counters, "counters");
            before = now;
        }
    }
}

/// Whether `listen` is a loopback address.
pub(crate) fn is_loopback(listen: &str) -> bool {
    match listen.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => listen.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_the_repository_is_complete_and_equal_to_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/replication.toml");
        let read = read_options(Path::new(path)).map_err(|e| e.to_string()).unwrap();
        assert_eq!(read, Options::default());
        let text = std::fs::read_to_string(path).unwrap();
        for key in ["store", "listen", "tls", "queue-bytes", "window-bytes", "copy-bytes-per-second", "log", "metrics"] {
            assert!(text.contains(&format!("{key} =")), "{key} is not in config/replication.toml");
        }
        // The key without a default has every key of its own.
        let uncommented = text.replace("# tls =", "tls =");
        let options: Options = toml::from_str(&uncommented).unwrap();
        let expected =
            tls::Files { cert: "node-1.pem".into(), key: "node-1.key".into(), ca: "ca.pem".into(), crl: Some("crl.pem".into()) };
        assert_eq!(options.tls, Some(expected));
    }

    #[test]
    fn plain_text_is_for_loopback_alone() {
        for (address, loopback) in [
            ("127.0.0.1:1", true),
            ("[::1]:7", true),
            ("localhost:7", true),
            ("10.0.0.1:1", false),
            ("host:7", false),
            ("0.0.0.0:1", false),
        ] {
            assert_eq!(is_loopback(address), loopback, "{address}");
            assert_eq!(tls::check_plain(address, false).is_ok(), loopback);
            assert!(tls::check_plain(address, true).is_ok());
        }
    }
}
