//! Owns: fetching a snapshot of the leader's store, when the leader's log begins after the end of this log or files of this
//! host are damaged.
//!
//! What must hold: an interrupted fetch resumes file by file; every chunk is checked on arrival, and the whole snapshot is
//! read before storage is notified; only files of a store, under their own names, are ever written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tapestore::disk::{Disk, Open, RealDisk};
use tapestore::error::Error;
use tapestore::lsn::NodeId;
use tapestore::sstable::{self, FileMeta};
use tapestore::wal;
use tapestore_engine::consensus::message::{Command, Member, Message};
use tapestore_engine::snapshot::Progress;
use tapestore_engine::snapshot::install;
use tapestore_engine::snapshot::transfer::is_file_name;
use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::certificates::Certificates;
use super::proto::supply_client::SupplyClient;
use super::proto::{Chunk, CopyFile, CopyRequest, FetchRequest, SnapshotFiles};
use super::session::StorageInfo;
use super::{Counters, count, local, send_snapshot, tls};

/// Most bytes of the list of a snapshot's files.
const OFFER_MAX: usize = 128 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The leader creates the snapshot before it answers.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a fetch waits for data before it is repeated, and how often it is repeated without progress.
const QUIET: Duration = Duration::from_secs(10);
const TRIES: u32 = 20;
/// How long a leader has to repeat its notice before this host follows it against its own state.
const INSISTS: Duration = Duration::from_secs(15);
/// Pause after a failed fetch: the first, and the longest.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Bytes left free on the disk.
const SPARE: u64 = 64 << 20;
/// A fetch that took longer is repeated for the records that the leader appended since, at most so often.
const FRESH: Duration = Duration::from_secs(10);
const ROUNDS: u32 = 20;

/// The reason why a snapshot was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A file of this host cannot be read or written.
    #[error(transparent)]
    Store(#[from] Error),
    /// A file of the snapshot cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// No connection to the leader.
    #[error("{address}: {reason}")]
    Connect {
        /// Address of its replication process.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The leader did not create a snapshot in time.
    #[error("{address} created no snapshot within {} s", OPEN_TIMEOUT.as_secs())]
    Unanswered {
        /// Address of its replication process.
        address: String,
    },
    /// The leader refuses.
    #[error("{address} refuses: {reason}")]
    Refused {
        /// Address of its replication process.
        address: String,
        /// Its reason.
        reason: String,
    },
    /// The leader offers a file that no store has.
    #[error("the snapshot has a file {name:?}, which is not a file of a store")]
    Name {
        /// Its name.
        name: String,
    },
    /// The disk has too little space for the snapshot.
    #[error("the snapshot needs {missing} more bytes, and {free} are free at {}", store.display())]
    NoSpace {
        /// Bytes that are still to be written.
        missing: u64,
        /// Bytes that are free.
        free: u64,
        /// Directory of the store.
        store: PathBuf,
    },
    /// The bytes of a file did not arrive, or not as they were sent.
    #[error("{name}: {reason}")]
    File {
        /// Its name.
        name: String,
        /// What failed.
        reason: String,
    },
    /// The snapshot arrived damaged.
    #[error("the snapshot of node {node} is damaged; if it is again, the damage is in that store: {source}")]
    Damaged {
        /// The leader.
        node: u64,
        /// What is damaged.
        source: Error,
    },
    /// The leader appends records faster than they are fetched.
    #[error("the leader appends records faster than they can be fetched")]
    TooSlow,
    /// A step that ran on a thread of its own has panicked; the log says where.
    #[error("a step of the fetch has panicked: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// The store to replace, and the leader to fetch from.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Store directory.
    pub store: PathBuf,
    /// Identity of the store.
    pub cluster: u128,
    /// This host.
    pub node: NodeId,
    /// The leader.
    pub leader: Member,
    /// Certificates of this host.
    pub certificates: Option<Arc<Certificates>>,
}

impl Wanted {
    /// A snapshot of the store of `leader`, for the host of `storage`.
    fn of(storage: &StorageInfo, leader: &Member, certificates: Option<Arc<Certificates>>) -> Wanted {
        let identity = &storage.identity;
        let (store, leader) = (identity.store.clone(), leader.clone());
        Wanted { store, cluster: identity.cluster, node: identity.node, leader, certificates }
    }
}

/// Fetches a snapshot each time that a leader sends that its log begins after the end of this log. Runs for ever.
pub async fn run(
    certificates: Option<Arc<Certificates>>,
    storage: watch::Receiver<Option<StorageInfo>>,
    mut snapshot_needed: mpsc::Receiver<(NodeId, u64)>,
    counters: Arc<Counters>,
) {
    let (mut since, mut last_notice, mut pause) = (Instant::now(), Instant::now(), PAUSE);
    while let Some((leader, first)) = snapshot_needed.recv().await {
        if last_notice.elapsed() > 3 * PAUSE {
            since = Instant::now();
        }
        last_notice = Instant::now();
        let now = storage.borrow().clone();
        let Some(now) = now else { continue };
        // The leader may have sent the notice before it had this host's state. If it keeps sending it, the logs diverge from
        // a frame on that the leader no longer has.
        let last = now.link.ask(Command::Status).await.map_or(u64::MAX, |r| r.state.last);
        let is_due = last.saturating_add(1) < first || since.elapsed() > INSISTS;
        if !is_due {
            continue;
        }
        let Some(leader) = now.members.iter().chain(&now.unlisted).find(|m| m.node == leader) else {
            tracing::warn!(
                name: "snapshot.leader_not_listed",
                leader = leader.0,
                "this host needs a snapshot, but the leader is not in its member list: run tape cluster transfer to a listed member, or tape cluster install-snapshot here"
            );
            continue;
        };
        tracing::info!(
            name: "snapshot.needed",
            leader = leader.node.0,
            first,
            last,
            "the leader's log begins after the end of this log; fetching a snapshot of its store"
        );
        let wanted = Wanted::of(&now, leader, certificates.clone());
        let mut logged = Instant::now();
        let mut done = 0;
        let mut report = |progress: Progress| {
            done += progress.more;
            count(&counters.snapshot_bytes_fetched, progress.more);
            if logged.elapsed() > Duration::from_secs(1) {
                logged = Instant::now();
                tracing::info!(
                    name: "snapshot.fetch_progress", what = progress.what, done, total = progress.total,
                    "snapshot install"
                );
            }
        };
        match fetch(&wanted, &mut report).await {
            // Storage installs the snapshot when it starts.
            Ok(()) if storage.borrow().as_ref().is_none_or(|s| s.identity.session != now.identity.session) => {
                // The snapshot need not hold what storage acknowledged between the request and its end.
                tracing::info!(name: "snapshot.fetch_updated", "storage was restarted during the fetch; updating the snapshot");
            }
            Ok(()) => {
                count(&counters.snapshots_fetched, 1);
                pause = PAUSE;
                // If storage ends now, it finds the snapshot at its next start.
                now.link.control(&Message::SnapshotFetched).await.ok();
            }
            Err(why) => {
                tracing::warn!(
                    name: "snapshot.fetch_failed", %why, again_in = ?pause,
                    "cannot fetch a snapshot of the leader's store"
                );
                let is_same = |other: NodeId| other == leader.node;
                pause = if rest(pause, &mut snapshot_needed, is_same).await { (pause * 2).min(PAUSE_MAX) } else { PAUSE };
            }
        }
        tokio::time::sleep(PAUSE).await;
        since = Instant::now();
        while snapshot_needed.try_recv().is_ok() {}
    }
}

/// Waits for `pause`, or until another host leads; whether the pause passed.
async fn rest(pause: Duration, snapshot_needed: &mut mpsc::Receiver<(NodeId, u64)>, is_same: impl Fn(NodeId) -> bool) -> bool {
    let until = tokio::time::Instant::now() + pause;
    while let Ok(Some((leader, _))) = tokio::time::timeout_at(until, snapshot_needed.recv()).await {
        if !is_same(leader) {
            return false;
        }
    }
    // After the last sender is gone there are no more notices.
    tokio::time::sleep_until(until).await;
    true
}

/// Fetches a snapshot of the leader's store and verifies it. If that took long, the records that the leader appended since
/// are fetched too, so that the leader's log still reaches back to the snapshot's end.
///
/// # Errors
/// [`FetchError`]. Fetched files stay and are not fetched again.
pub async fn fetch(wanted: &Wanted, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<(), FetchError> {
    let _held = install::hold(&RealDisk, &wanted.store)?;
    let mut read = BTreeMap::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        fetch_once(wanted, &mut read, progress).await?;
        if began.elapsed() < FRESH {
            return Ok(());
        }
    }
    Err(FetchError::TooSlow)
}

/// One fetch. SSTables in `read` were verified before.
async fn fetch_once(
    wanted: &Wanted,
    read: &mut BTreeMap<u64, FileMeta>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), FetchError> {
    let address = || wanted.leader.address.clone();
    let client = connect(wanted).await?;
    let request = CopyRequest { cluster: wanted.cluster.to_le_bytes().to_vec().into(), node: wanted.node.0 };
    let answer = tokio::time::timeout(OPEN_TIMEOUT, client.clone().open(request)).await;
    let answer = answer.map_err(|_| FetchError::Unanswered { address: address() })?;
    let refused = |s: Status| FetchError::Refused { address: address(), reason: s.message().to_owned() };
    let offer = answer.map_err(refused)?.into_inner();
    let incoming = wanted.store.join(install::INCOMING);
    prepare(wanted, &offer, &incoming)?;
    let total = offer.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.len));
    // Manifest and meta files first: they name SSTables that this host may have.
    let (others, first): (Vec<_>, Vec<_>) = offer.files.iter().partition(|f| f.name.contains('/'));
    for (at, file) in first.iter().chain(&others).enumerate() {
        if at == first.len() {
            let store = wanted.store.clone();
            let reused = tokio::task::spawn_blocking(move || install::reuse(&RealDisk, &store)).await?;
            tracing::info!(name: "snapshot.files_reused", bytes = reused?, "reused SSTables that this host has");
        }
        let mut report = |more| progress(Progress { what: "fetching a snapshot", more, total });
        fetch_file(&client, wanted, offer.copy, file, &incoming, &mut report).await?;
    }
    let (store, mut verified) = (wanted.store.clone(), std::mem::take(read));
    let (steps_in, mut steps) = mpsc::channel(64);
    let reading = tokio::task::spawn_blocking(move || {
        // If the queue is full, a progress step is dropped.
        let checked = install::check(&RealDisk, &store, &mut verified, &mut |p| steps_in.try_send(p).unwrap_or(()));
        (checked, verified)
    });
    while let Some(step) = steps.recv().await {
        progress(step);
    }
    let (checked, verified) = reading.await?;
    *read = verified;
    checked.map_err(|source| FetchError::Damaged { node: offer.node, source })?;
    let over = FetchRequest { node: wanted.node.0, copy: offer.copy, ..FetchRequest::default() };
    let closed = tokio::time::timeout(QUIET, client.clone().close(over)).await;
    if let Some(why) = closed.map_or_else(|_| Some("no answer".to_owned()), |c| c.err().map(|s| s.message().to_owned())) {
        tracing::info!(name: "snapshot.not_closed", why, "cannot close the snapshot at the leader; it expires there");
    }
    Ok(())
}

/// Connects to the host that `wanted` names as the leader; any host sends rows.
pub(super) async fn connect(wanted: &Wanted) -> Result<SupplyClient<Channel>, FetchError> {
    let address = &wanted.leader.address;
    let failed = |e: &dyn std::fmt::Display| FetchError::Connect { address: address.clone(), reason: e.to_string() };
    tls::check_plain(address, wanted.certificates.is_some()).map_err(|e| failed(&e))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| failed(&e))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    let (node, cluster) = (wanted.leader.node, wanted.cluster);
    let connected = match &wanted.certificates {
        Some(certificates) => certificates.dial(node, cluster).map_err(|e| failed(&e))?.connect(endpoint).await,
        None => {
            let local = local::Wanted { host: Some(local::Host { node, cluster }), store: wanted.store.clone() };
            local::connect(endpoint, address.clone(), local).await
        }
    };
    let channel = connected.map_err(|e| failed(&tls::why(&e)))?;
    Ok(SupplyClient::new(channel).max_decoding_message_size(OFFER_MAX))
}

/// Prepares the directory `incoming` for the snapshot `offer`: removes files of another snapshot.
fn prepare(wanted: &Wanted, offer: &SnapshotFiles, incoming: &Path) -> Result<(), FetchError> {
    if let Some(bad) = offer.files.iter().find(|f| !is_file_name(&f.name)) {
        return Err(FetchError::Name { name: bad.name.clone() });
    }
    install::begin(&RealDisk, &wanted.store)?;
    let history = incoming.join(sstable::DIR);
    for dir in [incoming, &history, &incoming.join(wal::DIR)] {
        let failed = |source| FetchError::Write { path: dir.to_path_buf(), source };
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // SSTables never change: one with a name that is offered stays, and is compared once the manifest has been
            // fetched.
            let stays = path.is_dir() || (dir == history && is_offered(&path, offer));
            if !stays {
                std::fs::remove_file(path).map_err(failed)?;
            }
        }
    }
    let has = |f: &CopyFile| incoming.join(&f.name).metadata().map_or(0, |m| m.len());
    let missing = offer.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.len.saturating_sub(has(f))));
    // The log is on the disk twice for a moment.
    let log = offer.files.iter().filter(|f| f.name.starts_with(wal::DIR)).fold(0u64, |sum, f| sum.saturating_add(f.len));
    let missing = missing.saturating_add(log);
    let free = RealDisk.space(&wanted.store)?.free;
    if missing.saturating_add(SPARE) > free {
        return Err(FetchError::NoSpace { missing, free, store: wanted.store.clone() });
    }
    Ok(())
}

fn is_offered(path: &Path, offer: &SnapshotFiles) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return false };
    let name = format!("{}/{}", sstable::DIR, name.trim_end_matches(".part"));
    let len = path.metadata().map_or(u64::MAX, |m| m.len());
    offer.files.iter().any(|f| f.name == name && len <= f.len)
}

/// Fetches the rest of `file` of the snapshot.
async fn fetch_file(
    client: &SupplyClient<Channel>,
    wanted: &Wanted,
    copy: u64,
    file: &CopyFile,
    incoming: &Path,
    report: &mut (dyn FnMut(u64) + Send),
) -> Result<(), FetchError> {
    let path = incoming.join(&file.name);
    if path.metadata().is_ok_and(|m| m.len() == file.len) {
        report(file.len);
        return Ok(());
    }
    let part = incoming.join(format!("{}.part", file.name));
    let failed = |source| FetchError::Write { path: part.clone(), source };
    if !part.exists() {
        // Created with the mode of a store's file.
        RealDisk.open(&part, Open::CreateNew)?;
    }
    let to = OpenOptions::new().write(true).open(&part).map_err(failed)?;
    let mut at = to.metadata().map_err(failed)?.len();
    report(at);
    let mut tries = 0;
    while at < file.len {
        let before = at;
        let request = FetchRequest { node: wanted.node.0, copy, name: file.name.clone(), offset: at };
        let ended = fetch_rest(client.clone(), request, file.len, &to, &mut at).await;
        report(at - before);
        tries = if at > before { 0 } else { tries + 1 };
        match ended {
            Ok(()) => {}
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) || tries > TRIES => {
                return Err(FetchError::File { name: file.name.clone(), reason: status.message().to_owned() });
            }
            Err(status) => {
                tracing::debug!(
                    name: "snapshot.fetch_repeated", file = file.name, at, why = status.message(),
                    "repeating the fetch"
                );
                tokio::time::sleep(Duration::from_millis(50 << tries.min(5))).await;
            }
        }
    }
    drop(to);
    Ok(RealDisk.rename(&part, &path)?)
}

async fn fetch_rest(
    mut client: SupplyClient<Channel>,
    request: FetchRequest,
    len: u64,
    to: &File,
    at: &mut u64,
) -> Result<(), Status> {
    let quiet = || Status::deadline_exceeded("no data");
    let opened = tokio::time::timeout(QUIET, client.fetch(request)).await.map_err(|_| quiet())?;
    let mut chunks = opened?.into_inner();
    while let Some(chunk) = tokio::time::timeout(QUIET, chunks.message()).await.map_err(|_| quiet())?? {
        let more = write(to, &chunk, *at, len).map_err(|why| Status::data_loss(format!("at {at}: {why}")))?;
        *at += more;
    }
    if *at < len { Err(Status::data_loss(format!("the file ends at {at} of {len}"))) } else { Ok(()) }
}

/// Writes `chunk`, which must be for offset `at` of a file of `len` bytes; returns its bytes.
fn write(to: &File, chunk: &Chunk, at: u64, len: u64) -> std::io::Result<u64> {
    let more = if chunk.data.is_empty() { chunk.zeros } else { chunk.data.len() as u64 };
    let is_due = chunk.offset == at && more > 0 && more <= send_snapshot::CHUNK as u64 && more <= len - at;
    if !is_due || (!chunk.data.is_empty() && crc32c::crc32c(&chunk.data) != chunk.crc) {
        let what = format!("the chunk of {more} bytes for offset {} is out of order or damaged", chunk.offset);
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    let written = if chunk.data.is_empty() { to.set_len(at + more) } else { to.write_all_at(&chunk.data, at) };
    written.map(|()| more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_is_over_when_another_host_leads_and_not_before() {
        const LONG: Duration = Duration::from_secs(3600);
        let is_same = |n: NodeId| n == NodeId(1);
        let (notices, mut snapshot_needed) = mpsc::channel(4);
        for leader in [1, 1, 2] {
            notices.send((NodeId(leader), 5)).await.unwrap();
        }
        let rested = tokio::time::timeout(Duration::from_secs(60), rest(LONG, &mut snapshot_needed, is_same)).await;
        assert_eq!(rested, Ok(false), "node 2 may have a snapshot that node 1 could not make");
        notices.send((NodeId(1), 5)).await.unwrap();
        assert!(rest(Duration::from_millis(5), &mut snapshot_needed, is_same).await, "the same leader repeats its notice");
        drop(notices);
        assert!(rest(Duration::from_millis(5), &mut snapshot_needed, is_same).await, "no leader sends notices any more");
    }
}
