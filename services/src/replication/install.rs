//! Owns: fetching a copy of the leader's store, when its log does not reach back to what this host lacks, or this host's
//! files are damaged.
//!
//! What must hold: what is fetched goes on where it stopped, file by file; every chunk is checked on the way, and all of
//! the copy is read before storage is told; nothing but files of a store, under their own names, is ever written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tapestore_engine::snapshot::Progress;
use tapestore_engine::consensus::message::{Command, Member, Message};
use tapestore::disk::{Disk, Open, RealDisk};
use tapestore_engine::snapshot::install;
use tapestore_engine::snapshot::transfer::is_file_name;
use tapestore::lsn::NodeId;
use tapestore::sstable::{self, FileMeta};
use tapestore::wal;
use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::proto::supply_client::SupplyClient;
use super::proto::{Chunk, CopyFile, SnapshotFiles, CopyRequest, FetchRequest};
use super::session::Known;
use super::{Options, local, send_snapshot, tls};

/// Bytes of what names the files of a copy, at most.
const OFFER_MAX: usize = 128 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A copy is made before the answer comes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long nothing may come before a file is asked for again, and how often without anything having come.
const QUIET: Duration = Duration::from_secs(10);
const TRIES: u32 = 20;
/// How long a leader says it until it is believed, whatever is here.
const INSISTS: Duration = Duration::from_secs(15);
/// Between two copies that came to nothing: at first, and when that does not help.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Bytes that stay free on the disk.
const SPARE: u64 = 64 << 20;
/// A copy that took longer is behind: what has come to the leader since is fetched too, so often at most.
const FRESH: Duration = Duration::from_secs(10);
const ROUNDS: u32 = 20;

/// Which store is to be filled, and from where.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Directory of the store.
    pub store: PathBuf,
    /// Its identity.
    pub cluster: u128,
    /// This host.
    pub node: NodeId,
    /// The host that leads.
    pub leader: Member,
    /// Certificates.
    pub tls: Option<tls::Files>,
}

/// Fetches copies whenever a leader says that its log does not reach back far enough, for ever.
pub async fn run(options: Options, known: watch::Receiver<Option<Known>>, mut snapshot_needed: mpsc::Receiver<(NodeId, u64)>) {
    let (mut since, mut heard, mut pause) = (Instant::now(), Instant::now(), PAUSE);
    while let Some((leader, first)) = snapshot_needed.recv().await {
        if heard.elapsed() > 3 * PAUSE {
            since = Instant::now();
        }
        heard = Instant::now();
        let now = known.borrow().clone();
        let Some(now) = now else { continue };
        // It may have been said before the leader knew what is here. If it does not stop saying it, the logs differ from a
        // frame on that the leader does not have any more.
        let last = now.storage.ask(Command::Status).await.map_or(u64::MAX, |r| r.state.last);
        let is_due = last.saturating_add(1) < first || since.elapsed() > INSISTS;
        if !is_due {
            continue;
        }
        let Some(leader) = now.members.iter().chain(&now.strangers).find(|m| m.node == leader) else {
            tracing::warn!(
                leader = leader.0,
                "a leader that is no member that this host knows is to give it a copy of its store: hand the lead to one that it knows, or run tape cluster fill here"
            );
            continue;
        };
        tracing::info!(
            leader = leader.node.0,
            first,
            last,
            "the leader's log does not reach back to what this host lacks; fetching a copy of its store"
        );
        let wanted = Wanted {
            store: now.identity.store.clone(),
            cluster: now.identity.cluster,
            node: now.identity.node,
            leader: leader.clone(),
            tls: options.tls.clone(),
        };
        let mut said = Instant::now();
        let mut done = 0;
        let mut tell = |progress: Progress| {
            done += progress.more;
            if said.elapsed() > Duration::from_secs(1) {
                said = Instant::now();
                tracing::info!(what = progress.what, done, total = progress.total, "filling");
            }
        };
        match fetch(&wanted, &mut tell).await {
            // Storage ends, puts the copy in the place of what is here, and is there again.
            Ok(()) if known.borrow().as_ref().is_none_or(|k| k.identity.session != now.identity.session) => {
                // What it promised between that it asked and that it ended need not be in it.
                tracing::info!("storage has been started again meanwhile: the copy is brought up to date");
            }
            Ok(()) => {
                pause = PAUSE;
                // Storage may have ended meanwhile, and hears it when it is there again.
                now.storage.control(&Message::SnapshotFetched).await.ok();
            }
            Err(why) => {
                tracing::warn!(%why, again_in = ?pause, "no copy of the leader's store could be fetched");
                let is_same = |other: NodeId| other == leader.node;
                pause = if rest(pause, &mut snapshot_needed, is_same).await { (pause * 2).min(PAUSE_MAX) } else { PAUSE };
            }
        }
        tokio::time::sleep(PAUSE).await;
        since = Instant::now();
        while snapshot_needed.try_recv().is_ok() {}
    }
}

/// Lets `pause` pass, or less if another host leads meanwhile; whether it passed.
async fn rest(pause: Duration, snapshot_needed: &mut mpsc::Receiver<(NodeId, u64)>, is_same: impl Fn(NodeId) -> bool) -> bool {
    let until = tokio::time::Instant::now() + pause;
    while let Ok(Some((leader, _))) = tokio::time::timeout_at(until, snapshot_needed.recv()).await {
        if !is_same(leader) {
            return false;
        }
    }
    // A sender that is gone says nothing more.
    tokio::time::sleep_until(until).await;
    true
}

/// Fetches a copy of the leader's store into the directory for it, and reads all of it. If that took long, what has come
/// to the leader since is fetched too, so that the log there still goes on from the copy's end.
///
/// # Errors
/// What went wrong; what has been fetched stays, and is not fetched again.
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
    Err("records come in at the leader faster than they can be fetched".to_owned())
}

/// One copy; of history, what is in `read` has been read before.
async fn fetch_once(
    wanted: &Wanted,
    read: &mut BTreeMap<u64, FileMeta>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let client = connect(wanted).await?;
    let request = CopyRequest { cluster: wanted.cluster.to_le_bytes().to_vec().into(), node: wanted.node.0 };
    let answer = tokio::time::timeout(OPEN_TIMEOUT, client.clone().open(request)).await;
    let answer = answer.map_err(|_| format!("{} makes no copy", wanted.leader.address))?;
    let offer = answer.map_err(|s| format!("{} refuses: {}", wanted.leader.address, s.message()))?.into_inner();
    let incoming = wanted.store.join(install::INCOMING);
    prepare(wanted, &offer, &incoming).map_err(|e| told(&e))?;
    let total = offer.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.len));
    // What names the others comes first: this host may have some of them.
    let (others, first): (Vec<_>, Vec<_>) = offer.files.iter().partition(|f| f.name.contains('/'));
    for (at, file) in first.iter().chain(&others).enumerate() {
        if at == first.len() {
            let store = wanted.store.clone();
            let reused = tokio::task::spawn_blocking(move || install::reuse(&RealDisk, &store)).await.map_err(|e| told(&e))?;
            tracing::info!(bytes = reused.map_err(|e| told(&e))?, "SSTables that are here already are not fetched");
        }
        let mut tell = |more| progress(Progress { what: "fetching a copy", more, total });
        fetch_file(&client, wanted, offer.copy, file, &incoming, &mut tell).await?;
    }
    let (store, mut known) = (wanted.store.clone(), std::mem::take(read));
    let (tell, mut told_of) = mpsc::channel(64);
    let reading = tokio::task::spawn_blocking(move || {
        // Whoever watches may be slow: then a step is not shown.
        let checked = install::check(&RealDisk, &store, &mut known, &mut |p| tell.try_send(p).unwrap_or(()));
        (checked, known)
    });
    while let Some(step) = told_of.recv().await {
        progress(step);
    }
    let (checked, known) = reading.await.map_err(|e| told(&e))?;
    *read = known;
    checked.map_err(|e| format!("what node {} gives is damaged, and is so there if it comes again: {e}", offer.node))?;
    let over = FetchRequest { node: wanted.node.0, copy: offer.copy, ..FetchRequest::default() };
    let closed = tokio::time::timeout(QUIET, client.clone().close(over)).await;
    if let Some(why) = closed.map_or_else(|_| Some("no answer".to_owned()), |c| c.err().map(|s| s.message().to_owned())) {
        tracing::info!(why, "the leader does not hear that its copy has been fetched; it gives it up by itself");
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

/// Makes room for the copy `offer` in `incoming`: what is there of another one, or of another host's, goes.
fn prepare(wanted: &Wanted, offer: &SnapshotFiles, incoming: &Path) -> std::io::Result<()> {
    let other = |e: tapestore::error::Error| std::io::Error::other(e);
    if let Some(bad) = offer.files.iter().find(|f| !is_file_name(&f.name)) {
        return Err(std::io::Error::other(format!("the copy has a file {:?}, which no store has", bad.name)));
    }
    install::begin(&RealDisk, &wanted.store).map_err(other)?;
    let history = incoming.join(sstable::DIR);
    for dir in [incoming, &history, &incoming.join(wal::DIR)] {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            // SSTables never change: what is there by the name of one that is offered stays, and is looked at when
            // the manifest is there.
            let stays = path.is_dir() || (dir == history && is_offered(&path, offer));
            if !stays {
                std::fs::remove_file(path)?;
            }
        }
    }
    let has = |f: &CopyFile| incoming.join(&f.name).metadata().map_or(0, |m| m.len());
    let missing = offer.files.iter().fold(0u64, |sum, f| sum.saturating_add(f.len.saturating_sub(has(f))));
    // The log is there twice for a moment.
    let log = offer.files.iter().filter(|f| f.name.starts_with(wal::DIR)).fold(0u64, |sum, f| sum.saturating_add(f.len));
    let missing = missing.saturating_add(log);
    let free = RealDisk.space(&wanted.store).map_err(other)?.free;
    if missing.saturating_add(SPARE) > free {
        return Err(std::io::Error::other(format!(
            "{missing} bytes are to be fetched, and {free} are free at {}",
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

/// Fetches `file` of the copy, from where it is.
async fn fetch_file(
    client: &SupplyClient<Channel>,
    wanted: &Wanted,
    copy: u64,
    file: &CopyFile,
    incoming: &Path,
    tell: &mut (dyn FnMut(u64) + Send),
) -> Result<(), String> {
    let path = incoming.join(&file.name);
    if path.metadata().is_ok_and(|m| m.len() == file.len) {
        tell(file.len);
        return Ok(());
    }
    let part = incoming.join(format!("{}.part", file.name));
    let told = |e: std::io::Error| format!("{}: {e}", part.display());
    if !part.exists() {
        // As a file of the store, which it is to be.
        RealDisk.open(&part, Open::CreateNew).map_err(|e| e.to_string())?;
    }
    let to = OpenOptions::new().write(true).open(&part).map_err(told)?;
    let mut at = to.metadata().map_err(told)?.len();
    tell(at);
    let mut tries = 0;
    while at < file.len {
        let before = at;
        let request = FetchRequest { node: wanted.node.0, copy, name: file.name.clone(), offset: at };
        let ended = fetch_rest(client.clone(), request, file.len, &to, &mut at).await;
        tell(at - before);
        tries = if at > before { 0 } else { tries + 1 };
        match ended {
            Ok(()) => {}
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) || tries > TRIES => {
                return Err(format!("{}: {}", file.name, status.message()));
            }
            Err(status) => {
                tracing::debug!(file = file.name, at, why = status.message(), "it is asked for again");
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
    let quiet = || Status::deadline_exceeded("nothing comes");
    let opened = tokio::time::timeout(QUIET, client.fetch(request)).await.map_err(|_| quiet())?;
    let mut chunks = opened?.into_inner();
    while let Some(chunk) = tokio::time::timeout(QUIET, chunks.message()).await.map_err(|_| quiet())?? {
        let more = write(to, &chunk, *at, len).map_err(|why| Status::data_loss(format!("at {at}: {why}")))?;
        *at += more;
    }
    if *at < len { Err(Status::data_loss(format!("it ends at {at} of {len}"))) } else { Ok(()) }
}

/// Writes `chunk`, which is to be of offset `at` in a file of `len` bytes; its bytes.
fn write(to: &File, chunk: &Chunk, at: u64, len: u64) -> Result<u64, String> {
    let more = if chunk.data.is_empty() { chunk.zeros } else { chunk.data.len() as u64 };
    let is_due = chunk.offset == at && more > 0 && more <= send_snapshot::CHUNK as u64 && more <= len - at;
    if !is_due || (!chunk.data.is_empty() && crc32c::crc32c(&chunk.data) != chunk.crc) {
        return Err(format!("a chunk of {more} bytes for offset {} is not the next one, or damaged", chunk.offset));
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
        let (say, mut snapshot_needed) = mpsc::channel(4);
        for leader in [1, 1, 2] {
            say.send((NodeId(leader), 5)).await.unwrap();
        }
        let rested = tokio::time::timeout(Duration::from_secs(60), rest(LONG, &mut snapshot_needed, is_same)).await;
        assert_eq!(rested, Ok(false), "node 2 may have a copy that node 1 had not");
        say.send((NodeId(1), 5)).await.unwrap();
        assert!(rest(Duration::from_millis(5), &mut snapshot_needed, is_same).await, "the same one says it again and again");
        drop(say);
        assert!(rest(Duration::from_millis(5), &mut snapshot_needed, is_same).await, "nobody says anything any more");
    }
}
