//! Owns: the query process: which addresses it listens to, who may connect, and its end.
//!
//! What must hold: without users and certificates nothing but a loopback address is listened to. An empty password is
//! refused. The process has no state: it can be killed, and several can serve one store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tape_services::exit::{Failure, INTERNAL, NO_INPUT, Outcome, UNAVAILABLE, USAGE};
use tape_services::metrics::Endpoint;
use tape_services::notify::Notifier;
use tape_services::terminal;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::access::{Access, Rules};
use crate::engine::{self, Engine};
use crate::metrics::Served;
use crate::nesting::STACK;
use crate::traces::Traces;
use crate::{console, derive, flight, postgres};

/// How long clients have to end when the process is stopped.
const GRACE: Duration = Duration::from_secs(2);
/// Time between two looks whether the store has changed.
const LOOK: Duration = Duration::from_secs(1);

/// Certificate and key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tls {
    /// The certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Options of the query process: the keys of `config/query.toml`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Store directory.
    pub store: PathBuf,
    /// Address of PostgreSQL's protocol; empty: none.
    pub postgres: String,
    /// Address of Arrow Flight SQL; empty: none.
    pub flight: String,
    /// Address of the console; empty: none.
    pub console: String,
    /// File of the users; empty: none.
    pub users: PathBuf,
    /// Certificate and key.
    pub tls: Option<Tls>,
    /// Memory of all statements, bytes.
    pub memory_bytes: u64,
    /// Spilled data, bytes.
    pub spill_bytes: u64,
    /// The longest time of a statement, seconds.
    pub statement_seconds: u64,
    /// Threads of a statement; 0: one for each core.
    pub threads: usize,
    /// How much lower than this process's the priority of statements that read many rows is: 0 to 19, as of `nice`.
    pub nice: u8,
    /// Most connections of each protocol.
    pub connections: usize,
    /// Whether clients may read files of the host with the rights of this process.
    pub read_files: bool,
    /// What is logged; see [`terminal::Configured`].
    pub log: String,
    /// Where metrics are served; empty: nowhere.
    pub metrics: String,
    /// Where traces go, an address of OTLP over gRPC; empty: nowhere.
    pub traces: String,
    /// One statement in so many is traced.
    pub traces_one_in: u64,
    /// Bars that are made in the store.
    pub derive: Vec<derive::Entry>,
}

impl Default for Options {
    fn default() -> Options {
        let defaults = engine::Options::default();
        Options {
            store: "tapestore-data".into(),
            postgres: "127.0.0.1:5433".to_owned(),
            flight: "127.0.0.1:32010".to_owned(),
            console: "127.0.0.1:8120".to_owned(),
            users: PathBuf::new(),
            tls: None,
            memory_bytes: defaults.memory as u64,
            spill_bytes: defaults.spill,
            statement_seconds: defaults.time.as_secs(),
            threads: 0,
            nice: 19,
            connections: 64,
            read_files: false,
            log: String::new(),
            metrics: String::new(),
            traces: String::new(),
            traces_one_in: 100,
            derive: Vec::new(),
        }
    }
}

/// `tape-query serve`.
#[derive(clap::Args, Debug, Default)]
pub struct Args {
    /// Configuration, TOML; see config/query.toml
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address of PostgreSQL's protocol, host:port; empty: none [default: 127.0.0.1:5433]
    #[arg(long)]
    postgres: Option<String>,
    /// Address of Arrow Flight SQL, host:port; empty: none [default: 127.0.0.1:32010]
    #[arg(long)]
    flight: Option<String>,
    /// Address of the console in the browser, host:port; empty: none [default: 127.0.0.1:8120]
    #[arg(long)]
    console: Option<String>,
    /// TOML file of users and their passwords, readable by its owner alone
    #[arg(long)]
    users: Option<PathBuf>,
    /// Certificate, PEM
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Allow read_parquet and its like: every client reads the files that this process can read
    #[arg(long)]
    read_files: bool,
    /// Serve metrics for Prometheus at host:port, or unix:/path/of/socket, with /healthz and /readyz [default: nowhere]
    #[arg(long)]
    metrics: Option<String>,
    /// Send traces to this collector of OpenTelemetry, OTLP over gRPC, like http://127.0.0.1:4317 [default: not sent]
    #[arg(long)]
    traces: Option<String>,
    /// Trace one statement in so many [default: 100]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    traces_one_in: Option<u64>,
}

impl Args {
    fn options(&self, store: Option<PathBuf>) -> Outcome<Options> {
        let mut options = match &self.config {
            Some(path) => tapestore_engine::config::read(path)?,
            None => Options::default(),
        };
        options.store = store.unwrap_or(options.store);
        if let Some(address) = &self.postgres {
            options.postgres.clone_from(address);
        }
        if let Some(address) = &self.flight {
            options.flight.clone_from(address);
        }
        if let Some(address) = &self.console {
            options.console.clone_from(address);
        }
        if let Some(users) = &self.users {
            options.users.clone_from(users);
        }
        if let Some(metrics) = &self.metrics {
            options.metrics.clone_from(metrics);
        }
        if let Some(traces) = &self.traces {
            options.traces.clone_from(traces);
        }
        options.traces_one_in = self.traces_one_in.unwrap_or(options.traces_one_in);
        options.read_files |= self.read_files;
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            options.tls = Some(Tls { cert: cert.clone(), key: key.clone() });
        }
        Ok(options)
    }
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| Failure::new(NO_INPUT, format!("{} cannot be read: {e}", path.display())))
}

/// The users in `path`.
fn users(path: &Path) -> Outcome<BTreeMap<String, String>> {
    let wrong = |reason: String| Failure::new(USAGE, format!("{}: {reason}", path.display()));
    let mode =
        std::fs::metadata(path).map_err(|e| Failure::new(NO_INPUT, format!("{}: {e}", path.display())))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong(format!("others may read the passwords (mode {:o}); run: chmod 600 {}", mode & 0o777, path.display())));
    }
    toml::from_str(&read(path)?).map_err(|e| wrong(format!("it is not a list of users like  ann = \"her password\": {e}")))
}

fn tls(files: &Tls) -> Outcome<Arc<ServerConfig>> {
    let wrong = |path: &Path, reason: String| Failure::new(USAGE, format!("{}: {reason}", path.display()));
    let pem = |path: &PathBuf| std::fs::read(path).map_err(|e| Failure::new(NO_INPUT, format!("{}: {e}", path.display())));
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem(&files.cert)?).collect();
    let certificates = certificates.map_err(|e| wrong(&files.cert, e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&pem(&files.key)?).map_err(|e| wrong(&files.key, e.to_string()))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| wrong(&files.cert, e.to_string()))?;
    let config = config.with_no_client_auth().with_single_cert(certificates, key);
    config.map(Arc::new).map_err(|e| wrong(&files.cert, e.to_string()))
}

/// Who may connect now; refuses an address that others reach without passwords and certificates.
fn rules(options: &Options) -> Outcome<Rules> {
    let tls = options.tls.as_ref().map(tls).transpose()?;
    let users = if options.users.as_os_str().is_empty() { None } else { Some(users(&options.users)?) };
    for address in [&options.postgres, &options.flight, &options.console].into_iter().filter(|address| !address.is_empty()) {
        let parsed = address.parse::<SocketAddr>();
        let is_loopback = parsed.as_ref().is_ok_and(|address| address.ip().is_loopback());
        if !is_loopback && (users.is_none() || tls.is_none()) {
            return Err(Failure::new(
                USAGE,
                format!(
                    "{address} is no loopback address: give --users, --tls-cert and --tls-key, so that only users with a \
                     password read the store, or use 127.0.0.1"
                ),
            ));
        }
    }
    match users {
        Some(users) => Rules::with(users, tls).map_err(|e| Failure::new(USAGE, format!("{}: {e}", options.users.display()))),
        None => Ok(Rules { tls, passwords: None, number: 0 }),
    }
}

/// `threads` threads whose priority is lower by `nice`.
fn runtime(threads: usize, nice: u8) -> Outcome<Runtime> {
    if nice > 19 {
        return Err(Failure::new(USAGE, format!("nice = {nice}: it is a number from 0 to 19")));
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads.max(2)).thread_stack_size(STACK).enable_all().on_thread_start(move || {
        // Of this thread alone. Nothing is lost if the system refuses it.
        let _is_lower = rustix::process::nice(i32::from(nice)).is_ok();
    });
    builder.build().map_err(|e| Failure::new(INTERNAL, format!("threads cannot be started: {e}")))
}

/// `tape-query serve`: returns when it is stopped.
///
/// # Errors
/// The configuration is wrong, the store cannot be read, or an address cannot be listened to.
pub fn run(store: Option<PathBuf>, args: &Args) -> Outcome {
    let options = args.options(store.clone())?;
    terminal::Configured::new(&options.log, terminal::LevelFilter::INFO)?.apply();
    let access = Arc::new(Access::new(rules(&options)?));
    let derived = derive::check(&options.derive)?;
    let threads = if options.threads == 0 { engine::Options::default().threads } else { options.threads };
    let [runtime, background] = [runtime(threads, 0)?, runtime(threads, options.nice)?];
    let notifier = Notifier::of_runtime(runtime.handle());
    let limits = engine::Options {
        memory: usize::try_from(options.memory_bytes).unwrap_or(usize::MAX),
        spill: options.spill_bytes,
        time: Duration::from_secs(options.statement_seconds),
        threads,
        background: Some(background.handle().clone()),
        files: options.read_files,
        traces: traces(&options)?,
    };
    let engine = Arc::new(Engine::open(&options.store, limits)?);
    engine.note_at_rest(&engine::Settings::default())?;
    let _metrics = Endpoint::of(&options.metrics, || Served(engine.clone()))?;
    let deriving = derive::Deriving::start(&options.store, derived)?;
    let changed = access.clone();
    let served = runtime.block_on(async {
        tokio::select! {
            served = serve(&options, engine, access, &notifier) => served,
            () = terminal::reloads(|| reload(args, store.clone(), &options, &changed)) => Ok(()),
        }
    });
    drop(deriving);
    runtime.shutdown_timeout(GRACE);
    background.shutdown_timeout(GRACE);
    served
}

/// Reads the configuration again and uses what can change while the process serves as `started`: users, certificates, what is logged.
fn reload(args: &Args, store: Option<PathBuf>, started: &Options, access: &Access) {
    let changed = args.options(store).and_then(|options| {
        let Options { postgres, flight, console, .. } = started.clone();
        let rules = rules(&Options { postgres, flight, console, ..options.clone() })?;
        let log = terminal::Configured::new(&options.log, terminal::LevelFilter::INFO)?;
        access.change(rules);
        log.apply();
        Ok(())
    });
    match changed {
        Ok(()) => tracing::info!(
            name: "query.reloaded",
            "the configuration is read again: users, certificates and what is logged are as it says for connections from now on"
        ),
        Err(error) => tracing::error!(
            name: "query.reload_refused", %error,
            "the configuration is wrong; the earlier one stays in use"
        ),
    }
}

/// Where traces of statements go.
fn traces(options: &Options) -> Outcome<Option<Traces>> {
    if options.traces.is_empty() {
        return Ok(None);
    }
    let instance = options.store.display().to_string();
    let to = tape_services::traces::Options { endpoint: &options.traces, service: "tape-query", instance: &instance };
    let to = tape_services::traces::start(&to)?;
    Ok(Some(Traces { to, one_in: options.traces_one_in }))
}

async fn listen(address: &str) -> Outcome<Option<TcpListener>> {
    if address.is_empty() {
        return Ok(None);
    }
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|e| Failure::new(UNAVAILABLE, format!("{address} cannot be listened to: {e}")))
}

fn bound(listener: &Option<TcpListener>) -> String {
    listener.as_ref().and_then(|l| l.local_addr().ok()).map_or_else(|| "not served".to_owned(), |address| address.to_string())
}

/// Maps once a second what the store has then, so that removed files are not kept between statements.
async fn renew(engine: Arc<Engine>) {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        engine.renew();
    }
}

async fn serve(options: &Options, engine: Arc<Engine>, access: Arc<Access>, notifier: &Notifier) -> Outcome {
    tokio::spawn(renew(engine.clone()));
    let postgres = listen(&options.postgres).await?;
    let flight = listen(&options.flight).await?;
    let console = listen(&options.console).await?;
    let (stop, stopped) = watch::channel(false);
    let rules = access.now();
    tracing::info!(
        name: "query.serving",
        postgres = %bound(&postgres), flight = %bound(&flight), console = %bound(&console), passwords = rules.passwords.is_some(), tls = rules.tls.is_some(),
        "answering SQL over {}; stop with SIGTERM", engine.store().display()
    );
    let mut servers = tokio::task::JoinSet::new();
    if let Some(listener) = postgres {
        let limits = postgres::Options { connections: options.connections, ..postgres::Options::default() };
        servers.spawn(postgres::serve(listener, engine.clone(), access.clone(), limits, stopped.clone()));
    }
    if let Some(listener) = flight {
        let limits = flight::Options { connections: options.connections, ..flight::Options::default() };
        servers.spawn(flight::serve(listener, engine.clone(), access.clone(), limits, stopped.clone()));
    }
    if let Some(listener) = console {
        let limits = console::Options { connections: options.connections, ..console::Options::default() };
        servers.spawn(console::serve(listener, engine.clone(), access.clone(), limits, stopped.clone()));
    }
    notifier.ready(format!("answering SQL over {}", options.store.display()));
    let ended = tokio::select! {
        () = terminated() => Ok(()),
        Some(server) = servers.join_next() => match server {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(Failure::new(INTERNAL, format!("a server has ended: {error}"))),
        },
    };
    tracing::info!(name: "query.stopping", "stopping");
    notifier.stopping();
    // Nobody listens any more if every server has ended.
    let _is_received = stop.send(true).is_ok();
    let all = async { while servers.join_next().await.is_some() {} };
    let _is_over = tokio::time::timeout(GRACE, all).await.is_ok();
    ended
}

/// Waits for SIGTERM or Ctrl-C.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// How log lines of the process go.
pub fn log(level: Option<terminal::LevelFilter>, format: terminal::LogFormat) {
    terminal::log(terminal::Wanted::new(level, terminal::LevelFilter::INFO), format, true);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_file_in_the_repository_is_complete_and_equal_to_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/query.toml");
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(toml::from_str::<Options>(&text).unwrap(), Options::default());
        for key in toml::Table::try_from(Options::default()).unwrap().keys().chain(["tls".to_owned()].iter()) {
            let is_there = text.contains(&format!("{key} =")) || text.contains(&format!("[[{key}]]"));
            assert!(is_there, "{key} is not in config/query.toml");
        }
        assert!(toml::from_str::<Options>("memory = 5").is_err());
        // The example of derived bars is what an entry without its optional keys is.
        let example = text.split("# [[derive]]\n").nth(1).unwrap().replace("# ", "");
        let entry = toml::from_str::<derive::Entry>(&example).unwrap();
        let short = toml::from_str::<derive::Entry>("kind = \"bar-1m\"\npublisher = 60001").unwrap();
        assert_eq!(entry, derive::Entry { name: "bars_1m".to_owned(), ..short });
    }

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn other_hosts_need_a_password_and_an_encrypted_connection() {
        let of = |postgres: &str, users: &Path| {
            rules(&Options { postgres: postgres.to_owned(), users: users.to_path_buf(), ..Options::default() })
        };
        assert!(
            of("127.0.0.1:0", Path::new("")).is_ok() && of("[::1]:0", Path::new("")).is_ok() && of("", Path::new("")).is_ok()
        );
        let good = file("ann = \"secret\"", 0o600);
        for (address, users) in [("0.0.0.0:0", Path::new("")), ("10.1.2.3:0", good.path()), ("example.com:1", Path::new(""))] {
            let refused = of(address, users).err().unwrap();
            assert!(refused.code == USAGE && refused.message.contains("--tls-cert"), "{refused}");
        }
        assert!(of("127.0.0.1:0", good.path()).unwrap().passwords.is_some());
        let console = Options { console: "0.0.0.0:0".to_owned(), ..Options::default() };
        assert!(rules(&console).err().unwrap().message.contains("--tls-cert"));
    }

    #[test]
    fn a_file_of_users_that_others_can_read_or_that_has_an_empty_password_is_refused() {
        let refused = |file: &tempfile::NamedTempFile| {
            rules(&Options { users: file.path().to_path_buf(), ..Options::default() }).err().unwrap().message
        };
        assert!(refused(&file("ann = \"secret\"", 0o644)).contains("chmod 600"));
        assert!(refused(&file("ann = \"\"", 0o600)).contains("password"));
        assert!(refused(&file("", 0o600)).contains("user"));
        assert!(refused(&file("ann = 5", 0o600)).contains("list of users"));
    }
}
