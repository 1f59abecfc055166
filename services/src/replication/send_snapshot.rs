//! Owns: copies of this host's store that other hosts fetch because the log does not reach back to what they lack.
//!
//! What must hold: only a host that leads makes one, and it holds every frame that the leader had when it was asked; one
//! copy a host, kept while it is fetched from and [`KEPT`] after that, in a directory that is emptied at every start;
//! nothing but the files of the copy is ever read for another host, and no faster than is allowed.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapestore_engine::consensus::message::{Command, Role, State};
use tapestore::disk::{Disk, RealDisk};
use tapestore_engine::snapshot::transfer::{self, HostSnapshot};
use tapestore::lsn::NodeId;
use tapestore::time::{Clock, HostClock};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Options;
use super::proto::supply_server::Supply;
use super::proto::{Chunk, Closed, CopyFile, SnapshotFiles, CopyRequest, FetchRequest};
use super::server::Host;
use super::session::Known;

/// Directory of the copies in the store directory.
pub const DIR: &str = "offers";
/// Bytes of one chunk.
pub const CHUNK: usize = 1 << 20;
/// How long a copy is kept that nobody fetches from.
const KEPT: Duration = Duration::from_secs(60);
/// A copy of the log ends with what is durable here, which need not be committed: how often one is made until that is far
/// enough, and how long that is waited for in between.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(50);

/// A copy that is being fetched.
struct Copy {
    number: u64,
    dir: PathBuf,
    files: HashMap<String, u64>,
    touched: Instant,
}

/// The copies.
pub struct Copies {
    dir: PathBuf,
    bytes_per_second: u64,
    copies: Mutex<HashMap<NodeId, Copy>>,
    /// Held by whoever makes or removes one.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl Copies {
    /// No copies of the store that `options` name.
    pub fn new(options: &Options) -> Arc<Copies> {
        let dir = options.store.join(DIR);
        let bytes_per_second = options.copy_bytes_per_second;
        Arc::new(Copies { dir, bytes_per_second, copies: Mutex::default(), making: Arc::default() })
    }

    /// Removes what an earlier process has left, and from then on, what is not fetched from.
    pub async fn tend(self: Arc<Copies>) {
        loop {
            self.lock().retain(|_, copy| copy.touched.elapsed() <= KEPT);
            self.remove_others().await;
            tokio::time::sleep(KEPT / 10).await;
        }
    }

    /// Removes the directories that are no copy's.
    async fn remove_others(self: &Arc<Copies>) {
        let making = self.making.clone().lock_owned().await;
        let copies = self.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let kept: Vec<PathBuf> = copies.lock().values().map(|c| c.dir.clone()).collect();
            for entry in std::fs::read_dir(&copies.dir).into_iter().flatten().flatten() {
                if !kept.contains(&entry.path()) {
                    remove(&entry.path());
                }
            }
            drop(making);
        });
        // It ends by itself when this process does.
        removed.await.ok();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Copy>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that is asked for, of a copy that is kept for longer by that.
    fn find(&self, request: &FetchRequest) -> Result<(PathBuf, u64), Status> {
        let mut copies = self.lock();
        let copy = copies.get_mut(&NodeId(request.node)).filter(|c| c.number == request.copy);
        let copy = copy.ok_or_else(|| Status::not_found("there is no such copy, or not any more"))?;
        copy.touched = Instant::now();
        let len = copy.files.get(&request.name).copied();
        let len = len.ok_or_else(|| Status::invalid_argument(format!("the copy has no file {:?}", request.name)))?;
        Ok((copy.dir.join(&request.name), len))
    }
}

fn remove(dir: &Path) {
    if let Err(error) = transfer::remove(&RealDisk, dir) {
        tracing::warn!(%error, dir = %dir.display(), "a copy for another host is not removed");
    }
}

/// Whether `offer` has every frame that the leader had when it stood as `asked`. In a later term it leads no more, and what
/// it has is not what that leader had.
fn holds_all(offer: &HostSnapshot, asked: &State) -> bool {
    offer.last.0 >= asked.last && u64::from(offer.term.0) == asked.term
}

impl Host {
    /// How this host stands, if it leads.
    async fn leading(&self, known: &Known) -> Result<State, Status> {
        let report = known.storage.ask(Command::Status).await.map_err(Status::unavailable)?;
        if report.state.role == Role::Leader {
            return Ok(report.state);
        }
        let leader = report.state.leader.map_or_else(|| "nobody that it knows".to_owned(), |l| format!("node {l}"));
        Err(Status::failed_precondition(format!("this host does not lead; {leader} does: a copy is made there")))
    }

    /// Makes a copy of the store for `node`: it holds every frame that this leader has now.
    async fn make(&self, known: &Known, node: NodeId) -> Result<(u64, HostSnapshot), Status> {
        let asked = self.leading(known).await?;
        self.copies.lock().remove(&node);
        for _ in 0..TRIES {
            let making = self.copies.making.clone().lock_owned().await;
            let (store, copies) = (known.identity.store.clone(), self.copies.clone());
            // Whoever asked may be gone before it is done: then it is a copy that nobody fetches from.
            let made = tokio::task::spawn_blocking(move || {
                let dir = copies.dir.join(node.to_string());
                RealDisk.create_dir(&copies.dir).map_err(std::io::Error::other)?;
                let offer = transfer::create(&RealDisk, &store, &dir, HostClock.wall()).map_err(std::io::Error::other)?;
                let is_whole = holds_all(&offer, &asked);
                let number = fastrand::u64(1..1 << 62);
                if is_whole {
                    let files = offer.files.iter().cloned().collect();
                    copies.lock().insert(node, Copy { number, dir, files, touched: Instant::now() });
                }
                drop(making);
                Ok::<_, std::io::Error>(is_whole.then_some((number, offer)))
            });
            let made = made.await.map_err(|e| Status::internal(e.to_string()))?;
            if let Some(made) = made.map_err(|e| Status::data_loss(format!("a copy cannot be made: {e}")))? {
                return Ok(made);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(Status::unavailable("this leader's own disk is behind"))
    }

    /// Whether whoever asks may have a copy for `node`.
    fn may_have<T>(&self, known: &Known, request: &Request<T>, node: u64) -> Result<(), Status> {
        self.proves_host(request, known, NodeId(node))?;
        if known.members.iter().any(|m| m.node.0 == node) && known.identity.node.0 != node {
            return Ok(());
        }
        Err(self.refuse(Status::permission_denied(format!("node {node} is no other member: tape cluster add makes it one"))))
    }
}

#[tonic::async_trait]
impl Supply for Host {
    async fn open(&self, request: Request<CopyRequest>) -> Result<Response<SnapshotFiles>, Status> {
        let known = self.known()?;
        let CopyRequest { cluster, node } = request.get_ref();
        let node = *node;
        if cluster[..] != known.identity.cluster.to_le_bytes() {
            return Err(self.refuse(Status::failed_precondition("this host is of another cluster")));
        }
        self.may_have(&known, &request, node)?;
        let (copy, offer) = self.make(&known, NodeId(node)).await?;
        tracing::info!(node, last = offer.last.0, files = offer.files.len(), "a copy of the store is there for another host");
        let files = offer.files.into_iter().map(|(name, len)| CopyFile { name, len }).collect();
        let (last, term) = (offer.last.0, u64::from(offer.term.0));
        Ok(Response::new(SnapshotFiles { copy, last, term, node: known.identity.node.0, files }))
    }

    type FetchStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let known = self.known()?;
        self.may_have(&known, &request, request.get_ref().node)?;
        let request = request.into_inner();
        let (path, len) = self.copies.find(&request)?;
        if request.offset > len {
            return Err(Status::invalid_argument(format!("offset {} of {len}", request.offset)));
        }
        let (chunks, out) = mpsc::channel(4);
        let copies = self.copies.clone();
        tokio::spawn(async move {
            if let Err(status) = send(&copies, &request, &path, len, &chunks).await {
                // Whoever asked may be gone.
                chunks.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn close(&self, request: Request<FetchRequest>) -> Result<Response<Closed>, Status> {
        let known = self.known()?;
        let FetchRequest { node, copy, .. } = *request.get_ref();
        self.may_have(&known, &request, node)?;
        let over = self.copies.lock().extract_if(|n, c| n.0 == node && c.number == copy).next();
        if over.is_some() {
            tracing::info!(node, "another host has fetched its copy of the store");
            self.copies.remove_others().await;
        }
        Ok(Response::new(Closed {}))
    }
}

/// Sends the file `path` of `len` bytes, chunk after chunk, no faster than is allowed.
async fn send(
    copies: &Copies,
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
        copies.find(request)?;
        at += wanted as u64;
        if copies.bytes_per_second > 0 {
            let least = Duration::from_secs_f64(sent as f64 / copies.bytes_per_second as f64);
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
    fn a_copy_is_given_only_if_it_has_all_that_the_leader_had_and_is_of_its_term() {
        let asked = State { term: 3, role: Role::Leader, leader: Some(NodeId(1)), last: 10, last_term: 3, committed: 9 };
        let of = |last, term| HostSnapshot { last: FrameIndex(last), term: Term(term), files: Vec::new() };
        assert!(holds_all(&of(10, 3), &asked) && holds_all(&of(11, 3), &asked));
        assert!(!holds_all(&of(9, 3), &asked), "its own disk is behind");
        assert!(!holds_all(&of(12, 4), &asked), "another has led since");
        assert!(!holds_all(&of(12, 2), &asked), "the term's own first frame is not there yet");
    }
}
