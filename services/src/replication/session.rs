//! Owns: the session with the storage process of this host, and which peers there are.
//!
//! What must hold: storage may end and come back at any time, and is found again; what it says is passed on the moment
//! it is read, and it is rung the moment something has been written to it; control goes before bulk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tapestore_engine::consensus::message::{Command, Identity, Member, Message, Report, VERSION};
use tapestore::lsn::NodeId;
use tapestore::shm::bell::Bells;
use tapestore::shm::run_dir::RunDir;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::awake::Awake;
use super::peer::{Outbox, Peer};
use super::{Counters, Options, count};
use crate::exit::Outcome;

/// Control messages for storage that wait at most.
const CONTROL_MAX: usize = 4096;
/// Bytes for storage that wait at most: above, other hosts are not read.
const BULK_MAX: usize = 64 << 20;
/// Hosts that are dialled without being known as members, at most.
const STRANGERS_MAX: usize = 8;
/// Bytes read from storage at once.
const CHUNK: usize = 64 << 10;
/// How often storage is looked for while it is away.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What storage has said of itself and of the cluster.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who it is.
    pub identity: Identity,
    /// The members.
    pub members: Vec<Member>,
    /// Hosts that are no members as far as this one knows, and have said who they are: this host may have been away when
    /// they became some.
    pub strangers: Vec<Member>,
    /// What is for it goes here.
    pub storage: ToStorage,
}

impl Known {
    /// Who this host is, for others on this machine, and where its key is.
    pub fn as_local(&self) -> (super::local::Host, std::path::PathBuf) {
        let Identity { node, cluster, ref store, .. } = self.identity;
        (super::local::Host { node, cluster }, store.clone())
    }

    /// Where the members know this host to listen.
    pub fn own_address(&self) -> Option<String> {
        let own = self.members.iter().find(|m| m.node == self.identity.node);
        own.map(|m| m.address.clone()).filter(|a| !a.is_empty())
    }
}

/// Who waits for an answer.
type Asked = oneshot::Sender<Result<Report, String>>;

/// The way to storage.
#[derive(Clone, Debug)]
pub struct ToStorage {
    control: mpsc::Sender<Vec<u8>>,
    bulk: mpsc::UnboundedSender<(Vec<u8>, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    waiting: Arc<Mutex<HashMap<u64, Asked>>>,
    /// Stirred by every message from storage or for it.
    pub(super) awake: Arc<Awake>,
}

impl ToStorage {
    /// Passes on a message that is short and must not wait.
    ///
    /// # Errors
    /// That it cannot be encoded, or storage takes nothing.
    pub async fn control(&self, message: &Message) -> Result<(), String> {
        let bytes = message.encode().map_err(|e| e.to_string())?;
        self.control.send(bytes).await.map_err(|_| "the session with storage has ended".to_owned())
    }

    /// Passes on a message with frames or records; waits while there is no room.
    ///
    /// # Errors
    /// As [`ToStorage::control`].
    pub async fn bulk(&self, message: &Message) -> Result<(), String> {
        let bytes = message.encode().map_err(|e| e.to_string())?;
        let permits = bytes.len().min(BULK_MAX) as u32;
        let ended = "the session with storage has ended";
        let permit = self.room.clone().acquire_many_owned(permits).await.map_err(|_| ended.to_owned())?;
        self.bulk.send((bytes, permit)).map_err(|_| ended.to_owned())
    }

    /// Asks storage, and waits for the answer.
    ///
    /// # Errors
    /// Its refusal, or that it does not answer.
    pub async fn ask(&self, command: Command) -> Result<Report, String> {
        let id = fastrand::u64(..);
        let (tell, told) = oneshot::channel();
        self.waiting.lock().await.insert(id, tell);
        self.control(&Message::Command { id, command }).await?;
        let answer = tokio::time::timeout(Duration::from_secs(5), told).await;
        self.waiting.lock().await.remove(&id);
        match answer {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err("storage does not answer".to_owned()),
        }
    }
}

/// The session.
pub struct Session {
    options: Options,
    counters: Arc<Counters>,
    known: watch::Sender<Option<Known>>,
    storage: ToStorage,
    /// Who is to give this host a copy of its store, and the first frame of its log.
    lacks: mpsc::Sender<(NodeId, u64)>,
    peers: HashMap<NodeId, (Outbox, String, tokio::task::JoinHandle<()>)>,
}

/// The ends of the queues to storage.
pub struct Ends {
    control: mpsc::Receiver<Vec<u8>>,
    bulk: mpsc::UnboundedReceiver<(Vec<u8>, OwnedSemaphorePermit)>,
    strangers: mpsc::Receiver<Member>,
}

/// A session that has not begun.
/// What comes from other hosts goes in by `strangers`; what storage says of a copy that it is to get goes out by `lacks`.
pub fn new(
    options: Options,
    counters: Arc<Counters>,
    lacks: mpsc::Sender<(NodeId, u64)>,
    strangers: mpsc::Receiver<Member>,
) -> (Session, Ends) {
    let (control_in, control) = mpsc::channel(CONTROL_MAX);
    let (bulk_in, bulk) = mpsc::unbounded_channel();
    let (room, waiting) = (Arc::new(Semaphore::new(BULK_MAX)), Arc::default());
    let storage = ToStorage { control: control_in, bulk: bulk_in, room, waiting, awake: Arc::default() };
    let session = Session { options, counters, known: watch::Sender::new(None), storage, lacks, peers: HashMap::new() };
    (session, Ends { control, bulk, strangers })
}

/// Why a session ended.
type Ended = std::io::Error;

impl Session {
    /// What storage says of itself, while it is there.
    pub fn identity(&self) -> watch::Receiver<Option<Known>> {
        self.known.subscribe()
    }

    /// What keeps the loop awake after a message.
    pub(super) fn awake(&self) -> Arc<Awake> {
        self.storage.awake.clone()
    }

    /// Runs for ever.
    ///
    /// # Errors
    /// Storage refuses to talk: another version.
    pub async fn run(mut self, mut ends: Ends) -> Outcome {
        loop {
            match self.hold(&mut ends).await {
                Ok(Some(refusal)) => return Err(crate::exit::Failure::new(crate::exit::USAGE, refusal)),
                Ok(None) => tracing::warn!("storage is gone; looking for it again"),
                Err(error) => tracing::debug!(%error, "storage is not there"),
            }
            self.known.send_replace(None);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// One session; a refusal if storage gave one.
    async fn hold(&mut self, ends: &mut Ends) -> Result<Option<String>, Ended> {
        let run_dir = RunDir::find(&self.options.store).map_err(std::io::Error::other)?;
        let stream = UnixStream::connect(run_dir.cluster_socket()).await?;
        let bells = Bells::open(&run_dir.bells()).map_err(std::io::Error::other)?;
        let hello = Message::Hello { version: VERSION, pid: std::process::id() };
        write(&stream, &bells, &hello.encode().map_err(std::io::Error::other)?).await?;
        let (mut received, mut chunk) = (Vec::new(), vec![0; CHUNK]);
        loop {
            tokio::select! {
                // Control first, then what storage says, then bulk.
                biased;
                Some(bytes) = ends.control.recv() => write(&stream, &bells, &bytes).await?,
                ready = stream.readable() => {
                    ready?;
                    if !read(&stream, &mut chunk, &mut received)? {
                        return Ok(None);
                    }
                    if let Some(refusal) = self.hear(&mut received).await? {
                        return Ok(Some(refusal));
                    }
                }
                Some(stranger) = ends.strangers.recv() => self.meet_stranger(stranger),
                Some((bytes, permit)) = ends.bulk.recv() => {
                    write(&stream, &bells, &bytes).await?;
                    drop(permit);
                }
            }
        }
    }

    async fn hear(&mut self, received: &mut Vec<u8>) -> Result<Option<String>, Ended> {
        let mut at = 0;
        while let Some((message, len)) = Message::decode(received.get(at..).unwrap_or(&[])).map_err(std::io::Error::other)? {
            at += len;
            match message {
                Message::Welcome(identity) => {
                    tracing::info!(node = identity.node.0, session = identity.session, "storage is there");
                    let known = Known { identity, members: Vec::new(), strangers: Vec::new(), storage: self.storage.clone() };
                    self.known.send_replace(Some(known));
                }
                Message::Refused(reason) => return Ok(Some(reason)),
                Message::Members(members) => self.meet(members),
                Message::State(state) => {
                    tracing::info!(term = state.term, role = ?state.role, leader = state.leader.map(|l| l.0), "this host");
                }
                Message::Raft(raft) => {
                    self.storage.awake.stir();
                    let to = raft.to;
                    let has_frames = !raft.heads.is_empty();
                    let sent = self.peers.get(&to).is_some_and(|p| p.0.raft(raft));
                    if !sent {
                        self.drop_one(to, has_frames).await;
                    }
                }
                Message::Relay { to, bytes, .. } => {
                    if !self.peers.get(&to).is_some_and(|p| p.0.relay(bytes)) {
                        count(&self.counters.dropped, 1);
                    }
                }
                Message::SnapshotNeeded { node, first } => {
                    if !self.peers.get(&node).is_some_and(|p| p.0.snapshot_needed(first)) {
                        count(&self.counters.dropped, 1);
                    }
                }
                Message::FetchSnapshot { leader } => {
                    // Said again as long as it holds.
                    self.lacks.try_send((leader, u64::MAX)).ok();
                }
                Message::Answer { id, result } => {
                    if let Some(tell) = self.storage.waiting.lock().await.remove(&id) {
                        // Who has asked may have gone.
                        tell.send(result).ok();
                    }
                }
                Message::Hello { .. }
                | Message::Unreachable(_)
                | Message::Command { .. }
                | Message::Reached { .. }
                | Message::Rejected { .. }
                | Message::SnapshotFetched => {}
            }
        }
        received.drain(..at);
        Ok(None)
    }

    async fn drop_one(&self, to: NodeId, has_frames: bool) {
        count(&self.counters.dropped, 1);
        if has_frames && let Ok(bytes) = Message::Unreachable(to).encode() {
            // There may be no room: then consensus learns it by the next heartbeat.
            self.storage.control.try_send(bytes).ok();
        }
    }

    /// The members are these: peers that are new are dialled, those that are none any more are let go.
    fn meet(&mut self, members: Vec<Member>) {
        self.known.send_if_modified(|known| {
            let Some(now) = known.as_mut() else { return false };
            now.strangers.retain(|s| members.iter().all(|m| m.node != s.node));
            now.members = members;
            true
        });
        self.dial();
    }

    /// A host that is no member as far as this one knows is dialled too: it may lead.
    fn meet_stranger(&mut self, stranger: Member) {
        self.known.send_if_modified(|known| {
            let Some(now) = known.as_mut().filter(|k| !k.strangers.contains(&stranger)) else { return false };
            now.strangers.retain(|s| s.node != stranger.node);
            now.strangers.truncate(STRANGERS_MAX - 1);
            now.strangers.insert(0, stranger);
            true
        });
        self.dial();
    }

    /// Each other host has its peer.
    fn dial(&mut self) {
        let Some(known) = self.known.borrow().clone() else { return };
        let (identity, members) = (known.identity, [known.members, known.strangers].concat());
        let is_other = |m: &&Member| m.node != identity.node && !m.address.is_empty();
        self.peers.retain(|node, (_, address, task)| {
            let stays = members.iter().any(|m| m.node == *node && m.address == *address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for member in members.iter().filter(is_other) {
            if self.peers.contains_key(&member.node) {
                continue;
            }
            let (outbox, peer) = Peer::new(
                member.clone(),
                self.options.clone(),
                self.known.subscribe(),
                self.storage.clone(),
                self.counters.clone(),
            );
            self.peers.insert(member.node, (outbox, member.address.clone(), tokio::spawn(peer.run())));
        }
    }
}

/// Writes all of `bytes`; storage is rung with each part, so that it makes room for the next.
async fn write(stream: &UnixStream, bells: &Bells, bytes: &[u8]) -> Result<(), Ended> {
    let mut rest = bytes;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(n) => {
                rest = rest.get(n..).unwrap_or(&[]);
                bells.post();
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads what is there; `false` if the other end has closed.
fn read(stream: &UnixStream, chunk: &mut [u8], received: &mut Vec<u8>) -> Result<bool, Ended> {
    match stream.try_read(chunk) {
        Ok(0) => Ok(false),
        Ok(n) => {
            received.extend_from_slice(chunk.get(..n).unwrap_or(&[]));
            Ok(true)
        }
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
        Err(e) => Err(e),
    }
}
