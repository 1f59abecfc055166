//! Owns: the replication process: it carries what the storage processes of a store's hosts say to each other, and the
//! frames of the log, over gRPC.
//!
//! ```text
//! storage ◀─ cluster.sock ─▶ session ─▶ one peer a host: control, append, relay streams ══▶ its server ─▶ its session ─▶ its storage
//!                                ▲                                                            │ receipts
//!                              server ◀══ the same from every other host                      ▼ open the window again
//! ```
//!
//! What must hold: it knows nothing that must survive: killed, it is started again and storage goes on; control never
//! waits behind frames; memory is bounded by queues, windows and permits; what may have been lost is said to storage.

mod awake;
pub mod digest;
pub mod door;
pub mod install;
pub mod local;
pub mod log;
pub mod peer;
pub mod server;
pub mod session;
pub mod send_snapshot;
pub mod tls;
pub mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::exit::{Failure, Outcome, USAGE};
use crate::terminal;

/// The messages between hosts.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "made from services/proto"
)]
pub mod proto {
    tonic::include_proto!("tapestore.replication.v1");
}

/// How hosts are reached and kept apart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Directory of the store.
    pub store: PathBuf,
    /// Where to listen; empty: the address that the cluster's members know this host by.
    pub listen: String,
    /// Certificate, key and authority, PEM files; all or none. Without them only loopback addresses are used, and only by
    /// processes of one user.
    pub tls: Option<tls::Files>,
    /// Bytes of frames that wait for one host at most.
    pub queue_bytes: u64,
    /// Bytes on the way to one host that it has not handed to its storage, at most.
    pub window_bytes: u64,
    /// Bytes a second of a copy of the store that another host fetches, at most; 0: as fast as it goes.
    pub copy_bytes_per_second: u64,
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
        }
    }
}

/// Carries a store's log to its other hosts, and theirs to it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory of the store
    #[arg(long, env = "TAPE_STORE")]
    pub store: Option<PathBuf>,
    /// Configuration file; flags win over it
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Where to listen, host:port [default: the address that the cluster's members know this host by]
    #[arg(long)]
    pub listen: Option<String>,
    /// This host's certificate, PEM
    #[arg(long, requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long)]
    pub tls_key: Option<PathBuf>,
    /// The authority that signs the hosts' certificates, PEM
    #[arg(long)]
    pub tls_ca: Option<PathBuf>,
    /// End when the process that started this one has ended
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// The options in the TOML file `path`.
///
/// # Errors
/// What is wrong in it.
pub fn read_options(path: &Path) -> Outcome<Options> {
    let text = std::fs::read_to_string(path)?;
    toml::from_str(&text).map_err(|e| Failure::new(USAGE, format!("{}: {e}", path.display())))
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
        if let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            options.tls = Some(tls::Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() });
        }
        Ok(options)
    }
}

/// What the parts count.
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
    /// Connections to other hosts begun.
    pub connects: AtomicU64,
    /// Messages not sent because there was no room or nobody there.
    pub dropped: AtomicU64,
    /// Frames that were not in the log as storage had named them.
    pub stale_frames: AtomicU64,
    /// Messages of others that were refused.
    pub refused: AtomicU64,
}

/// Adds to a counter; a lone number: relaxed.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting.
pub fn run(args: &Args) -> Outcome {
    terminal::log("info", true);
    let options = args.options()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).event_interval(awake::TURNS).enable_all().build()?;
    let served = runtime.block_on(serve(options, args.with_parent));
    runtime.shutdown_timeout(Duration::from_millis(200));
    served
}

async fn serve(options: Options, with_parent: bool) -> Outcome {
    let counters = Arc::new(Counters::default());
    let (snapshot_needed_by, snapshot_needed) = tokio::sync::mpsc::channel(1);
    let (strangers_in, strangers) = tokio::sync::mpsc::channel(16);
    let (session, ends) = session::new(options.clone(), counters.clone(), snapshot_needed_by.clone(), strangers);
    let identity = session.identity();
    tracing::info!(store = %options.store.display(), "waiting for the storage process of this store");
    let awake = session.awake();
    tokio::spawn(async move { awake.keep().await });
    let session = tokio::spawn(session.run(ends));
    let work = async {
        let listen = listen_address(&options, &identity).await?;
        tls::check_plain(&listen, options.tls.is_some())?;
        let acceptor = options.tls.clone().map(tls::Acceptor::new).transpose()?;
        let listener = tokio::net::TcpListener::bind(&listen)
            .await
            .map_err(|e| Failure::new(crate::exit::IO, format!("cannot listen at {listen}: {e}")))?;
        let at = listener.local_addr()?;
        tracing::info!(%at, tls = options.tls.is_some(), store = %options.store.display(), "replicating; stop with SIGTERM");
        tokio::spawn(tell(counters.clone()));
        let copies = send_snapshot::Copies::new(&options);
        tokio::spawn(copies.clone().tend());
        tokio::spawn(install::run(options.clone(), identity.clone(), snapshot_needed));
        server::serve(listener, acceptor, identity.clone(), counters, (copies, snapshot_needed_by, strangers_in)).await
    };
    let parent = rustix::process::getppid();
    tokio::select! {
        ended = work => ended,
        ended = session => ended.map_err(|e| Failure::new(crate::exit::INTERNAL, e.to_string()))?,
        () = stopped() => Ok(()),
        () = orphaned(parent), if with_parent => Ok(()),
    }
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
}

async fn orphaned(parent: Option<rustix::process::Pid>) {
    while rustix::process::getppid() == parent {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Where to listen: as said, or as the members know this host.
async fn listen_address(options: &Options, identity: &watch::Receiver<Option<session::Known>>) -> Outcome<String> {
    if !options.listen.is_empty() {
        return Ok(options.listen.clone());
    }
    let mut identity = identity.clone();
    loop {
        if let Some(address) = identity.borrow_and_update().as_ref().and_then(session::Known::own_address) {
            return Ok(address);
        }
        if identity.changed().await.is_err() {
            return Err(Failure::new(crate::exit::INTERNAL, "the session with storage has ended".to_owned()));
        }
    }
}

/// Says now and then what has been counted, if that has changed.
async fn tell(counters: Arc<Counters>) {
    let mut before = String::new();
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = format!("{counters:?}");
        if now != before {
            tracing::debug!(?counters, "so far");
            before = now;
        }
    }
}

/// The loopback addresses of `listen`, if it names nothing else.
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
    fn the_file_in_the_repository_is_complete_and_says_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/replication.toml");
        let read = read_options(Path::new(path)).map_err(|e| e.to_string()).unwrap();
        assert_eq!(read, Options::default());
        let text = std::fs::read_to_string(path).unwrap();
        for key in ["store", "listen", "tls", "queue-bytes", "window-bytes", "copy-bytes-per-second"] {
            assert!(text.contains(&format!("{key} =")), "{key} is not in config/replication.toml");
        }
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
