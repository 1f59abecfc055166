//! Owns: the session with the storage process of this host, and the peers of the other hosts.
//!
//! What must hold: storage may end and restart at any time, and the session reconnects; a message of storage is passed on as
//! soon as it is read, and storage is notified as soon as a message is written to it; control goes before bulk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tapestore::lsn::NodeId;
use tapestore::shm::bell::Bells;
use tapestore::shm::run_dir::RunDir;
use tapestore_engine::consensus::message::{Command, Identity, Member, Message, Refusal, Report, VERSION};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::certificates::Certificates;
use super::peer::{Outbox, Peer};
use super::spin::Spin;
use super::{Counters, Options, count};
use crate::exit::Outcome;

/// Most control messages queued for storage.
const CONTROL_MAX: usize = 4096;
/// Most bytes queued for storage; beyond, other hosts are not read.
const BULK_MAX: usize = 64 << 20;
/// Most hosts dialled without being in the member list.
const UNLISTED_MAX: usize = 8;
/// Bytes read from storage at once.
const CHUNK: usize = 64 << 10;
/// Longest wait for the answer to a command.
const ANSWER: Duration = Duration::from_secs(5);
/// Interval of attempts to connect to storage.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Identity and members, as storage sent them.
#[derive(Clone, Debug)]
pub struct StorageInfo {
    /// Identity of this host.
    pub identity: Identity,
    /// The members.
    pub members: Vec<Member>,
    /// Hosts that have connected and are not in the member list: they may have become members while this host was down.
    pub unlisted: Vec<Member>,
    /// Sends to storage.
    pub link: ToStorage,
}

impl StorageInfo {
    /// Identity and store of this host, for [`super::local`].
    pub fn as_local(&self) -> (super::local::Host, std::path::PathBuf) {
        let Identity { node, cluster, ref store, .. } = self.identity;
        (super::local::Host { node, cluster }, store.clone())
    }

    /// This host's address in the member list.
    pub fn own_address(&self) -> Option<String> {
        let own = self.members.iter().find(|m| m.node == self.identity.node);
        own.map(|m| m.address.clone()).filter(|a| !a.is_empty())
    }
}

/// The reason why storage did not take a message, or did not carry out a command.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The message cannot be encoded.
    #[error(transparent)]
    Encode(#[from] tapestore::error::Error),
    /// The session with storage has ended; it reconnects.
    #[error("the session with storage has ended")]
    Ended,
    /// Storage did not answer in time.
    #[error("storage did not answer within {} s", ANSWER.as_secs())]
    NoAnswer,
    /// Storage refuses the command.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Receives the answer to a command.
type AnswerSender = oneshot::Sender<Result<Report, Refusal>>;

/// Sends messages to storage.
#[derive(Clone, Debug)]
pub struct ToStorage {
    control: mpsc::Sender<Vec<u8>>,
    bulk: mpsc::UnboundedSender<(Vec<u8>, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    waiting: Arc<Mutex<HashMap<u64, AnswerSender>>>,
    /// Notified of every message from storage and for it.
    pub(super) spin: Arc<Spin>,
}

impl ToStorage {
    /// Sends a short message that must not wait behind frames.
    ///
    /// # Errors
    /// The message cannot be encoded, or the session has ended.
    pub async fn control(&self, message: &Message) -> Result<(), LinkError> {
        let bytes = message.encode()?;
        self.control.send(bytes).await.map_err(|_| LinkError::Ended)
    }

    /// Sends a message with frames or records; waits while the queue is full.
    ///
    /// # Errors
    /// As [`ToStorage::control`].
    pub async fn bulk(&self, message: &Message) -> Result<(), LinkError> {
        let bytes = message.encode()?;
        let permits = bytes.len().min(BULK_MAX) as u32;
        let permit = self.room.clone().acquire_many_owned(permits).await.map_err(|_| LinkError::Ended)?;
        self.bulk.send((bytes, permit)).map_err(|_| LinkError::Ended)
    }

    /// Sends a command to storage and waits for the answer.
    ///
    /// # Errors
    /// Storage refuses the command, or does not answer within 5 s.
    pub async fn ask(&self, command: Command) -> Result<Report, LinkError> {
        let id = fastrand::u64(..);
        let (sender, received) = oneshot::channel();
        self.waiting.lock().await.insert(id, sender);
        self.control(&Message::Command { id, command }).await?;
        let answer = tokio::time::timeout(ANSWER, received).await;
        self.waiting.lock().await.remove(&id);
        match answer {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) | Err(_) => Err(LinkError::NoAnswer),
        }
    }
}

/// The session.
pub struct Session {
    options: Options,
    certificates: Option<Arc<Certificates>>,
    counters: Arc<Counters>,
    storage: watch::Sender<Option<StorageInfo>>,
    link: ToStorage,
    /// The leader from which this host needs a snapshot, and the first frame of the leader's log.
    snapshot_needed_by: mpsc::Sender<(NodeId, u64)>,
    peers: HashMap<NodeId, (Outbox, String, tokio::task::JoinHandle<()>)>,
    /// The queues of the peers, for whoever watches them.
    links: watch::Sender<Links>,
    /// The newest term, and its leader, of which storage has sent.
    state: (u64, Option<NodeId>),
}

/// The queues for the other hosts.
pub type Links = Vec<(NodeId, Outbox)>;

/// The receiving ends of the queues to storage.
pub struct Ends {
    control: mpsc::Receiver<Vec<u8>>,
    bulk: mpsc::UnboundedReceiver<(Vec<u8>, OwnedSemaphorePermit)>,
    unlisted: mpsc::Receiver<Member>,
}

/// A session that is not connected yet. Hosts outside the member list come in by `unlisted`; leaders from which storage needs
/// a snapshot go out by `snapshot_needed_by`.
pub fn new(
    options: Options,
    certificates: Option<Arc<Certificates>>,
    counters: Arc<Counters>,
    snapshot_needed_by: mpsc::Sender<(NodeId, u64)>,
    unlisted: mpsc::Receiver<Member>,
) -> (Session, Ends) {
    let (control_in, control) = mpsc::channel(CONTROL_MAX);
    let (bulk_in, bulk) = mpsc::unbounded_channel();
    let (room, waiting) = (Arc::new(Semaphore::new(BULK_MAX)), Arc::default());
    let link = ToStorage { control: control_in, bulk: bulk_in, room, waiting, spin: Arc::default() };
    let storage = watch::Sender::new(None);
    let (peers, links) = (HashMap::new(), watch::Sender::new(Links::new()));
    let state = (0, None);
    let session = Session { options, certificates, counters, storage, link, snapshot_needed_by, peers, links, state };
    (session, Ends { control, bulk, unlisted })
}

/// The reason why a session ended.
type Ended = std::io::Error;

impl Session {
    /// Identity and members from storage, while it is connected.
    pub fn identity(&self) -> watch::Receiver<Option<StorageInfo>> {
        self.storage.subscribe()
    }

    /// The queues for the other hosts, as they come and go.
    pub fn links(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    /// Keeps the message loop spinning after a message.
    pub(super) fn spin(&self) -> Arc<Spin> {
        self.link.spin.clone()
    }

    /// Runs for ever.
    ///
    /// # Errors
    /// Storage rejects this process: another version.
    pub async fn run(mut self, mut ends: Ends) -> Outcome {
        loop {
            match self.connect(&mut ends).await {
                Ok(Some(refusal)) => return Err(crate::exit::Failure::new(crate::exit::USAGE, refusal)),
                Ok(None) => tracing::warn!(
                    name: "replication.storage_disconnected",
                    "storage has closed the connection; reconnecting"
                ),
                Err(error) => tracing::debug!(name: "replication.storage_unreachable", %error, "cannot connect to storage"),
            }
            self.storage.send_replace(None);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// One connection, until it ends; the reason if storage rejected it.
    async fn connect(&mut self, ends: &mut Ends) -> Result<Option<String>, Ended> {
        let run_dir = RunDir::find(&self.options.store).map_err(std::io::Error::other)?;
        let stream = UnixStream::connect(run_dir.cluster_socket()).await?;
        let bells = Bells::open(&run_dir.bells()).map_err(std::io::Error::other)?;
        let hello = Message::Hello { version: VERSION, pid: std::process::id() };
        write(&stream, &bells, &hello.encode().map_err(std::io::Error::other)?).await?;
        let (mut received, mut chunk) = (Vec::new(), vec![0; CHUNK]);
        loop {
            tokio::select! {
                // Control first, then messages of storage, then bulk.
                biased;
                Some(bytes) = ends.control.recv() => write(&stream, &bells, &bytes).await?,
                ready = stream.readable() => {
                    ready?;
                    if !read(&stream, &mut chunk, &mut received)? {
                        return Ok(None);
                    }
                    if let Some(refusal) = self.receive(&mut received).await? {
                        return Ok(Some(refusal));
                    }
                }
                Some(host) = ends.unlisted.recv() => self.add_unlisted(host),
                Some((bytes, permit)) = ends.bulk.recv() => {
                    write(&stream, &bells, &bytes).await?;
                    drop(permit);
                }
            }
        }
    }

    async fn receive(&mut self, received: &mut Vec<u8>) -> Result<Option<String>, Ended> {
        let mut at = 0;
        while let Some((message, len)) = Message::decode(received.get(at..).unwrap_or(&[])).map_err(std::io::Error::other)? {
            at += len;
            match message {
                Message::Welcome(identity) => {
                    tracing::info!(
                        name: "replication.storage_connected", node = identity.node.0, session = identity.session,
                        "connected to storage"
                    );
                    let storage = StorageInfo { identity, members: Vec::new(), unlisted: Vec::new(), link: self.link.clone() };
                    self.storage.send_replace(Some(storage));
                }
                Message::Refused(reason) => return Ok(Some(reason)),
                Message::Members(members) => self.set_members(members),
                Message::State(state) => {
                    tracing::info!(
                        name: "replication.raft_state", term = state.term, role = ?state.role, leader = state.leader.map(|l| l.0),
                        "raft state"
                    );
                    self.count_state(state.term, state.leader);
                }
                Message::Raft(raft) => {
                    self.link.spin.notify();
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
                    // Storage repeats it while it holds.
                    self.snapshot_needed_by.try_send((leader, u64::MAX)).ok();
                }
                Message::Answer { id, result } => {
                    if let Some(sender) = self.link.waiting.lock().await.remove(&id) {
                        // The asking task may be gone.
                        sender.send(result).ok();
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

    /// Counts what a state of storage adds to the last one.
    fn count_state(&mut self, term: u64, leader: Option<NodeId>) {
        let (last_term, last_leader) = self.state;
        if last_term > 0 && term > last_term {
            count(&self.counters.elections, term - last_term);
        }
        if leader.is_some() && last_leader.is_some() && leader != last_leader {
            count(&self.counters.leader_changes, 1);
        }
        self.state = (term, leader.or(last_leader));
    }

    async fn drop_one(&self, to: NodeId, has_frames: bool) {
        count(&self.counters.dropped, 1);
        if has_frames && let Ok(bytes) = Message::Unreachable(to).encode() {
            // If the queue is full, raft finds out by the next heartbeat.
            self.link.control.try_send(bytes).ok();
        }
    }

    /// Replaces the member list: dials new members, drops the peers of removed ones.
    fn set_members(&mut self, members: Vec<Member>) {
        self.storage.send_if_modified(|storage| {
            let Some(now) = storage.as_mut() else { return false };
            now.unlisted.retain(|host| members.iter().all(|m| m.node != host.node));
            now.members = members;
            true
        });
        self.dial();
    }

    /// Dials a host that is not in the member list too: it may be the leader.
    fn add_unlisted(&mut self, host: Member) {
        self.storage.send_if_modified(|storage| {
            let Some(now) = storage.as_mut().filter(|s| !s.unlisted.contains(&host)) else { return false };
            now.unlisted.retain(|other| other.node != host.node);
            now.unlisted.truncate(UNLISTED_MAX - 1);
            now.unlisted.insert(0, host);
            true
        });
        self.dial();
    }

    /// Starts a peer for each other host, and stops those of hosts that are gone or have moved.
    fn dial(&mut self) {
        let Some(storage) = self.storage.borrow().clone() else { return };
        let (identity, members) = (storage.identity, [storage.members, storage.unlisted].concat());
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
                self.certificates.clone(),
                self.storage.subscribe(),
                self.link.clone(),
                self.counters.clone(),
            );
            self.peers.insert(member.node, (outbox, member.address.clone(), tokio::spawn(peer.run())));
        }
        let mut links: Links = self.peers.iter().map(|(node, (outbox, ..))| (*node, outbox.clone())).collect();
        links.sort_unstable_by_key(|(node, _)| node.0);
        self.links.send_replace(links);
    }
}

/// Writes all of `bytes`, and notifies storage after each part, so that it reads and makes room for the next.
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

/// Reads the bytes that are available; `false` if the other end has closed.
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
