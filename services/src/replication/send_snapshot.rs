//! Owns: what other hosts fetch from this host: snapshots of its store, because its log begins after the end of theirs, and
//! records for SSTables that they have lost ([`rows`]).
//!
//! What must hold: only a leader creates one, and it holds every frame that the leader had at the request; one snapshot per
//! host, kept while it is fetched and `KEPT` after that, in a directory that is emptied at every start; other hosts can
//! read only the files of their snapshot, and no faster than the configured rate.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapestore::disk::{Disk, RealDisk};
use tapestore::lsn::NodeId;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::consensus::message::{Command, Role, State};
use tapestore_engine::snapshot::transfer::{self, HostSnapshot};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::proto::supply_server::Supply;
use super::proto::{Chunk, Closed, CopyFile, CopyRequest, FetchRequest, RowsPart, RowsRequest, SnapshotFiles};
use super::server::{ADDRESSES, Host};
use super::session::StorageInfo;
use super::{Counters, Options, count, rows};

/// Directory of the snapshots in the store directory.
pub const DIR: &str = "offers";
/// Bytes of one chunk.
pub const CHUNK: usize = 1 << 20;
/// How long a snapshot is kept after the last fetch.
const KEPT: Duration = Duration::from_secs(60);
/// A snapshot's log ends with the durable frames of this host, which can be before the committed ones. Attempts until it
/// reaches far enough, and the pause between them.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(50);

/// A snapshot that another host fetches.
struct Snapshot {
    number: u64,
    dir: PathBuf,
    files: HashMap<String, u64>,
    touched: Instant,
}

/// The snapshots.
pub struct Snapshots {
    dir: PathBuf,
    bytes_per_second: u64,
    snapshots: Mutex<HashMap<NodeId, Snapshot>>,
    /// Held while one is created or removed.
    making: Arc<tokio::sync::Mutex<()>>,
    counters: Arc<Counters>,
}

impl Snapshots {
    /// No snapshots yet, of the store in `options`.
    pub fn new(options: &Options, counters: Arc<Counters>) -> Arc<Snapshots> {
        let dir = options.store.join(DIR);
        let bytes_per_second = options.copy_bytes_per_second;
        Arc::new(Snapshots { dir, bytes_per_second, snapshots: Mutex::default(), making: Arc::default(), counters })
    }

    /// Removes snapshots of an earlier process, then those that are no longer fetched, for ever.
    pub async fn expire(self: Arc<Snapshots>) {
        loop {
            self.lock().retain(|_, snapshot| snapshot.touched.elapsed() <= KEPT);
            self.remove_others().await;
            tokio::time::sleep(KEPT / 10).await;
        }
    }

    /// Removes directories that belong to no snapshot.
    async fn remove_others(self: &Arc<Snapshots>) {
        let making = self.making.clone().lock_owned().await;
        let snapshots = self.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let kept: Vec<PathBuf> = snapshots.lock().values().map(|s| s.dir.clone()).collect();
            for entry in std::fs::read_dir(&snapshots.dir).into_iter().flatten().flatten() {
                if !kept.contains(&entry.path()) {
                    remove(&entry.path());
                }
            }
            drop(making);
        });
        // The task fails only at the end of this process.
        removed.await.ok();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Snapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Path and length of the requested file; prolongs the life of its snapshot.
    fn find(&self, request: &FetchRequest) -> Result<(PathBuf, u64), Status> {
        let mut snapshots = self.lock();
        let snapshot = snapshots.get_mut(&NodeId(request.node)).filter(|s| s.number == request.copy);
        let snapshot = snapshot.ok_or_else(|| Status::not_found("no such snapshot; it may have expired"))?;
        snapshot.touched = Instant::now();
        let len = snapshot.files.get(&request.name).copied();
        let len = len.ok_or_else(|| Status::invalid_argument(format!("the snapshot has no file {:?}", request.name)))?;
        Ok((snapshot.dir.join(&request.name), len))
    }
}

fn remove(dir: &Path) {
    if let Err(error) = transfer::remove(&RealDisk, dir) {
        tracing::warn!(name: "snapshot.not_removed", %error, dir = %dir.display(), "cannot remove a snapshot for another host");
    }
}

/// Whether `offer` has every frame that the leader had in the state `asked`. In a later term this host no longer leads, and
/// its frames are not those of that leader.
fn holds_all(offer: &HostSnapshot, asked: &State) -> bool {
    offer.last.0 >= asked.last && u64::from(offer.term.0) == asked.term
}

impl Host {
    /// The raft state of this host, which must be the leader.
    async fn leading(&self, storage: &StorageInfo) -> Result<State, Status> {
        let report = storage.link.ask(Command::Status).await.map_err(|e| Status::unavailable(e.to_string()))?;
        if report.state.role == Role::Leader {
            return Ok(report.state);
        }
        let leader = report.state.leader.map_or_else(|| "the leader is unknown".to_owned(), |l| format!("node {l} leads"));
        Err(Status::failed_precondition(format!("this host does not lead and creates no snapshot; {leader}")))
    }

    /// Creates a snapshot of the store for `node`, with every frame that this leader has now.
    async fn make(&self, storage: &StorageInfo, node: NodeId) -> Result<(u64, HostSnapshot), Status> {
        let asked = self.leading(storage).await?;
        self.snapshots.lock().remove(&node);
        for _ in 0..TRIES {
            let making = self.snapshots.making.clone().lock_owned().await;
            let (store, snapshots) = (storage.identity.store.clone(), self.snapshots.clone());
            // If the client is gone before it is done, the snapshot expires.
            let made = tokio::task::spawn_blocking(move || {
                let dir = snapshots.dir.join(node.to_string());
                RealDisk.create_dir(&snapshots.dir).map_err(std::io::Error::other)?;
                let offer = transfer::create(&RealDisk, &store, &dir, HostClock.wall()).map_err(std::io::Error::other)?;
                let is_whole = holds_all(&offer, &asked);
                let number = fastrand::u64(1..1 << 62);
                if is_whole {
                    let files = offer.files.iter().cloned().collect();
                    snapshots.lock().insert(node, Snapshot { number, dir, files, touched: Instant::now() });
                }
                drop(making);
                Ok::<_, std::io::Error>(is_whole.then_some((number, offer)))
            });
            let made = made.await.map_err(|e| Status::internal(e.to_string()))?;
            if let Some(made) = made.map_err(|e| Status::data_loss(format!("cannot create a snapshot: {e}")))? {
                return Ok(made);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(Status::unavailable("the disk of this leader is behind: not all of its frames are durable"))
    }

    /// Checks that `cluster`, which node `node` sends, is the cluster of this host.
    fn is_cluster(&self, storage: &StorageInfo, cluster: &[u8], node: u64) -> Result<(), Status> {
        if *cluster == storage.identity.cluster.to_le_bytes() {
            return Ok(());
        }
        let why = format!("node {} is in another cluster than node {node}; {ADDRESSES}", storage.identity.node);
        Err(self.refuse(Status::failed_precondition(why)))
    }

    /// Checks that the client may fetch a snapshot or records for `node`.
    fn may_have<T>(&self, storage: &StorageInfo, request: &Request<T>, node: u64) -> Result<(), Status> {
        self.proves_host(request, storage, NodeId(node))?;
        if storage.members.iter().any(|m| m.node.0 == node) && storage.identity.node.0 != node {
            return Ok(());
        }
        let why = format!("node {node} is not another member of this cluster; add it with tape cluster add");
        Err(self.refuse(Status::permission_denied(why)))
    }
}

#[tonic::async_trait]
impl Supply for Host {
    async fn open(&self, request: Request<CopyRequest>) -> Result<Response<SnapshotFiles>, Status> {
        let storage = self.storage()?;
        let CopyRequest { cluster, node } = request.get_ref();
        let node = *node;
        self.is_cluster(&storage, cluster, node)?;
        self.may_have(&storage, &request, node)?;
        let (copy, offer) = self.make(&storage, NodeId(node)).await?;
        tracing::info!(
            name: "snapshot.created", node, last = offer.last.0, files = offer.files.len(),
            "created a snapshot for another host"
        );
        let files = offer.files.into_iter().map(|(name, len)| CopyFile { name, len }).collect();
        let (last, term) = (offer.last.0, u64::from(offer.term.0));
        Ok(Response::new(SnapshotFiles { copy, last, term, node: storage.identity.node.0, files }))
    }

    type FetchStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let storage = self.storage()?;
        self.may_have(&storage, &request, request.get_ref().node)?;
        let request = request.into_inner();
        let (path, len) = self.snapshots.find(&request)?;
        if request.offset > len {
            return Err(Status::invalid_argument(format!("offset {} is past the end at {len}", request.offset)));
        }
        let (chunks, out) = mpsc::channel(4);
        let snapshots = self.snapshots.clone();
        tokio::spawn(async move {
            if let Err(status) = send(&snapshots, &request, &path, len, &chunks).await {
                // The client may be gone.
                chunks.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn close(&self, request: Request<FetchRequest>) -> Result<Response<Closed>, Status> {
        let storage = self.storage()?;
        let FetchRequest { node, copy, .. } = *request.get_ref();
        self.may_have(&storage, &request, node)?;
        let over = self.snapshots.lock().extract_if(|n, s| n.0 == node && s.number == copy).next();
        if over.is_some() {
            tracing::info!(name: "snapshot.fetched", node, "another host has fetched its snapshot");
            count(&self.snapshots.counters.snapshots_sent, 1);
            self.snapshots.remove_others().await;
        }
        Ok(Response::new(Closed {}))
    }

    type RowsStream = Pin<Box<dyn Stream<Item = Result<RowsPart, Status>> + Send>>;

    async fn rows(&self, request: Request<RowsRequest>) -> Result<Response<Self::RowsStream>, Status> {
        let storage = self.storage()?;
        let node = request.get_ref().node;
        self.is_cluster(&storage, &request.get_ref().cluster, node)?;
        self.may_have(&storage, &request, node)?;
        let request = request.into_inner();
        let job = rows::Job::new(&storage, &request, self.snapshots.bytes_per_second).map_err(|s| self.refuse(s))?;
        let busy = || Status::resource_exhausted("this host reads records for other hosts already; try again");
        let permit = self.readers.clone().try_acquire_owned().map_err(|_| busy())?;
        let (parts, out) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let sent = job.run(&parts);
            tracing::info!(
                name: "repair.rows_sent", node, kind = job.wanted.kind.0, sent,
                "sent records to another host, which has lost an SSTable"
            );
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

/// Sends the file `path` of `len` bytes in chunks, no faster than the configured rate.
async fn send(
    snapshots: &Snapshots,
    request: &FetchRequest,
    path: &Path,
    len: u64,
    to: &mpsc::Sender<Result<Chunk, Status>>,
) -> Result<(), Status> {
    let failed = |e: std::io::Error| Status::data_loss(format!("{}: {e}", path.display()));
    let file = Arc::new(std::fs::File::open(path).map_err(failed)?);
    let mut at = request.offset;
    while at < len {
        let began = Instant::now();
        let wanted = (len - at).min(CHUNK as u64) as usize;
        let from = file.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut data = vec![0; wanted];
            from.read_exact_at(&mut data, at).map(|()| data)
        });
        let data = read.await.map_err(|e| Status::internal(e.to_string()))?.map_err(failed)?;
        let chunk = if data.iter().all(|b| *b == 0) {
            Chunk { offset: at, data: Bytes::new(), crc: 0, zeros: wanted as u64 }
        } else {
            Chunk { offset: at, crc: crc32c::crc32c(&data), data: data.into(), zeros: 0 }
        };
        let sent = chunk.data.len() as u64;
        if to.send(Ok(chunk)).await.is_err() {
            return Ok(());
        }
        snapshots.find(request)?;
        count(&snapshots.counters.snapshot_bytes_sent, sent);
        at += wanted as u64;
        if snapshots.bytes_per_second > 0 {
            let least = Duration::from_secs_f64(sent as f64 / snapshots.bytes_per_second as f64);
            tokio::time::sleep(least.saturating_sub(began.elapsed())).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tapestore::lsn::{FrameIndex, Term};

    use super::*;

    #[test]
    fn a_snapshot_is_served_only_with_all_frames_the_leader_had_and_in_its_term() {
        let asked = State { term: 3, role: Role::Leader, leader: Some(NodeId(1)), last: 10, last_term: 3, committed: 9 };
        let of = |last, term| HostSnapshot { last: FrameIndex(last), term: Term(term), files: Vec::new() };
        assert!(holds_all(&of(10, 3), &asked) && holds_all(&of(11, 3), &asked));
        assert!(!holds_all(&of(9, 3), &asked), "the leader's disk is behind");
        assert!(!holds_all(&of(12, 4), &asked), "another host has led since");
        assert!(!holds_all(&of(12, 2), &asked), "the first frame of the term is not durable yet");
    }
}
