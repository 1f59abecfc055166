//! Owns: fetching a snapshot of the leader's store, when the leader's log begins after the end of this log or files of this
//! host are damaged.
//!
//! What must hold: an interrupted fetch resumes file by file; every chunk is checked on arrival, and the whole snapshot is
//! read before storage is notified; only files of a store, under their own names, are ever written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tapestore::disk::{Disk, Open, RealDisk};
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

use super::proto::supply_client::SupplyClient;
use super::proto::{Chunk, CopyFile, CopyRequest, FetchRequest, SnapshotFiles};
use super::session::StorageInfo;
use super::{Options, local, send_snapshot, tls};

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
    pub tls: Option<tls::Files>,
}

/// Fetches a snapshot each time that a leader sends that its log begins after the end of this log. Runs for ever.
pub async fn run(
    options: Options,
    storage: watch::Receiver<Option<StorageInfo>>,
    mut snapshot_needed: mpsc::Receiver<(NodeId, u64)>,
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
                leader = leader.0,
                "this host needs a snapshot, but the leader is not in its member list: run tape cluster transfer to a listed member, or tape cluster install-snapshot here"
            );
            continue;
        };
        tracing::info!(
            leader = leader.node.0,
            first,
            last,
            "the leader's log begins after the end of this log; fetching a snapshot of its store"
        );
        let wanted = Wanted {
            store: now.identity.store.clone(),
            cluster: now.identity.cluster,
            node: now.identity.node,
            leader: leader.clone(),
            tls: options.tls.clone(),
        };
        let mut logged = Instant::now();
        let mut done = 0;
        let mut report = |progress: Progress| {
            done += progress.more;
            if logged.elapsed() > Duration::from_secs(1) {
                logged = Instant::now();
                tracing::info!(what = progress.what, done, total = progress.total, "snapshot install");
            }
        };
        match fetch(&wanted, &mut report).await {
            // Storage installs the snapshot when it starts.
            Ok(()) if storage.borrow().as_ref().is_none_or(|s| s.identity.session != now.identity.session) => {
                // The snapshot need not hold what storage acknowledged between the request and its end.
                tracing::info!("storage was restarted during the fetch; updating the snapshot");
            }
            Ok(()) => {
                pause = PAUSE;
                // If storage ends now, it finds the snapshot at its next start.
                now.link.control(&Message::SnapshotFetched).await.ok();
            }
            Err(why) => {
                tracing::warn!(%why, again_in = ?pause, "cannot fetch a snapshot of the leader's store");
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
/// The reason of the failure. Fetched files stay and are not fetched again.
pub async fn fetch(wanted: &Wanted, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<(), String> {
    let _held = install::hold(&RealDisk, &wanted.store).map_err(|e| e.to_string())?;
    let mut read = BTreeMap::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        fetch_once(wanted, &mut read, progress).await?;
        if began.elapsed() < FRESH {
            return Ok(());
        }
    }
    Err("the leader appends records faster than they can be fetched".to_owned())
}

/// One fetch. SSTables in `read` were verified before.
async fn fetch_once(
    wanted: &Wanted,
    read: &mut BTreeMap<u64, FileMeta>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let client = connect(wanted).await?;
    let request = CopyRequest { cluster: wanted.cluster.to_le_bytes().to_vec().into(), node: wanted.node.0 };
    let answer = tokio::time::timeout(OPEN_TIMEOUT, client.clone().open(request)).await;
    let answer = answer.map_err(|_| format!("{} created no snapshot within {OPEN_TIMEOUT:?}", wanted.leader.address))?;
    let offer = answer.map_err(|s| format!("{} refuses: {}", wanted.leader.address, s.message()))?.into_inner();
    let incoming = wanted.store.join(install::INCOMING);
    prepare(wanted, &offer, &incoming).map_err(|e| text(&e))?;
    let total = offer.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.len));
    // Manifest and meta files first: they name SSTables that this host may have.
    let (others, first): (Vec<_>, Vec<_>) = offer.files.iter().partition(|f| f.name.contains('/'));
    for (at, file) in first.iter().chain(&others).enumerate() {
        if at == first.len() {
            let store = wanted.store.clone();
            let reused = tokio::task::spawn_blocking(move || install::reuse(&RealDisk, &store)).await.map_err(|e| text(&e))?;
            tracing::info!(bytes = reused.map_err(|e| text(&e))?, "reused SSTables that this host has");
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
    let (checked, verified) = reading.await.map_err(|e| text(&e))?;
    *read = verified;
    checked.map_err(|e| {
        format!("the snapshot of node {} is damaged; if it is again, the damage is in that store: {e}", offer.node)
    })?;
    let over = FetchRequest { node: wanted.node.0, copy: offer.copy, ..FetchRequest::default() };
    let closed = tokio::time::timeout(QUIET, client.clone().close(over)).await;
    if let Some(why) = closed.map_or_else(|_| Some("no answer".to_owned()), |c| c.err().map(|s| s.message().to_owned())) {
        tracing::info!(why, "cannot close the snapshot at the leader; it expires there");
    }
    Ok(())
}

async fn connect(wanted: &Wanted) -> Result<SupplyClient<Channel>, String> {
    let address = &wanted.leader.address;
    tls::check_plain(address, wanted.tls.is_some()).map_err(|e| e.to_string())?;
    let scheme = if wanted.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| e.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    let (node, cluster) = (wanted.leader.node, wanted.cluster);
    let connected = match &wanted.tls {
        Some(files) => {
            let config = files.client(node, cluster).map_err(|e| e.to_string())?;
            endpoint.tls_config(config).map_err(|e| e.to_string())?.connect().await
        }
        None => {
            let local = local::Wanted { host: Some(local::Host { node, cluster }), store: wanted.store.clone() };
            local::connect(endpoint, address.clone(), local).await
        }
    };
    let channel = connected.map_err(|e| format!("{address}: {}", tls::why(&e)))?;
    Ok(SupplyClient::new(channel).max_decoding_message_size(OFFER_MAX))
}

/// Prepares the directory `incoming` for the snapshot `offer`: removes files of another snapshot.
fn prepare(wanted: &Wanted, offer: &SnapshotFiles, incoming: &Path) -> std::io::Result<()> {
    let other = |e: tapestore::error::Error| std::io::Error::other(e);
    if let Some(bad) = offer.files.iter().find(|f| !is_file_name(&f.name)) {
        return Err(std::io::Error::other(format!("the snapshot has a file {:?}, which is not a file of a store", bad.name)));
    }
    install::begin(&RealDisk, &wanted.store).map_err(other)?;
    let history = incoming.join(sstable::DIR);
    for dir in [incoming, &history, &incoming.join(wal::DIR)] {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            // SSTables never change: one with a name that is offered stays, and is compared once the manifest has been
            // fetched.
            let stays = path.is_dir() || (dir == history && is_offered(&path, offer));
            if !stays {
                std::fs::remove_file(path)?;
            }
        }
    }
    let has = |f: &CopyFile| incoming.join(&f.name).metadata().map_or(0, |m| m.len());
    let missing = offer.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.len.saturating_sub(has(f))));
    // The log is on the disk twice for a moment.
    let log = offer.files.iter().filter(|f| f.name.starts_with(wal::DIR)).fold(0u64, |sum, f| sum.saturating_add(f.len));
    let missing = missing.saturating_add(log);
    let free = RealDisk.space(&wanted.store).map_err(other)?.free;
    if missing.saturating_add(SPARE) > free {
        return Err(std::io::Error::other(format!(
            "the snapshot needs {missing} more bytes, and {free} are free at {}",
            wanted.store.display()
        )));
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
) -> Result<(), String> {
    let path = incoming.join(&file.name);
    if path.metadata().is_ok_and(|m| m.len() == file.len) {
        report(file.len);
        return Ok(());
    }
    let part = incoming.join(format!("{}.part", file.name));
    let failed = |e: std::io::Error| format!("{}: {e}", part.display());
    if !part.exists() {
        // Created with the mode of a store's file.
        RealDisk.open(&part, Open::CreateNew).map_err(|e| e.to_string())?;
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
                return Err(format!("{}: {}", file.name, status.message()));
            }
            Err(status) => {
                tracing::debug!(file = file.name, at, why = status.message(), "repeating the fetch");
                tokio::time::sleep(Duration::from_millis(50 << tries.min(5))).await;
            }
        }
    }
    drop(to);
    RealDisk.rename(&part, &path).map_err(|e| e.to_string())
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
fn write(to: &File, chunk: &Chunk, at: u64, len: u64) -> Result<u64, String> {
    let more = if chunk.data.is_empty() { chunk.zeros } else { chunk.data.len() as u64 };
    let is_due = chunk.offset == at && more > 0 && more <= send_snapshot::CHUNK as u64 && more <= len - at;
    if !is_due || (!chunk.data.is_empty() && crc32c::crc32c(&chunk.data) != chunk.crc) {
        return Err(format!("the chunk of {more} bytes for offset {} is out of order or damaged", chunk.offset));
    }
    let written = if chunk.data.is_empty() { to.set_len(at + more) } else { to.write_all_at(&chunk.data, at) };
    written.map(|()| more).map_err(|e| e.to_string())
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
