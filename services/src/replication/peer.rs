//! Owns: the connection to one other host and its queues.
//!
//! What must hold: messages of one kind leave in order; queued frames are bounded by bytes, and so are frames in flight that
//! the other host has not passed to its storage; when the connection breaks, storage is notified that messages may be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tapestore::wal;
use tapestore_engine::consensus::message::{Command, GENERATION_MAX, Greeting, Member, Message, Raft};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use super::certificates::Certificates;
use super::log::LogReader;
use super::proto::peer_client::PeerClient;
use super::proto::{Envelope, HelloRequest, Receipt, envelope};
use super::session::{StorageInfo, ToStorage};
use super::{Counters, Options, count, local, tls, wire};

/// Version of the protocol between hosts.
pub const VERSION: u32 = 5;
/// Metadata key of a status: the other host's storage rejects this host.
pub const REJECTED: &str = "tape-unheard";
/// Most queued control messages; raft sends lost ones again.
const CONTROL_MAX: usize = 1024;
/// Most queued bytes of forwarded batches; the publisher sends dropped ones again.
const RELAY_BYTES: u64 = 32 << 20;
/// Shortest and longest pause between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Bytes in one queue.
#[derive(Debug)]
struct Bounded {
    bytes: AtomicU64,
    most: u64,
}

impl Bounded {
    fn new(most: u64) -> Arc<Bounded> {
        Arc::new(Bounded { bytes: AtomicU64::new(0), most })
    }

    fn take(&self, len: u64) -> bool {
        // Only one session adds, and the other end only subtracts: the value read is not below the true one.
        let fits = self.bytes.load(Ordering::Relaxed) + len <= self.most;
        if fits {
            self.bytes.fetch_add(len, Ordering::Relaxed);
        }
        fits
    }

    fn give_back(&self, len: u64) {
        self.bytes.fetch_sub(len, Ordering::Relaxed);
    }
}

/// Queues messages for a host.
#[derive(Clone, Debug)]
pub struct Outbox {
    control: mpsc::Sender<Envelope>,
    append: mpsc::UnboundedSender<Raft>,
    append_bytes: Arc<Bounded>,
    relay: mpsc::UnboundedSender<Vec<u8>>,
    relay_bytes: Arc<Bounded>,
    is_connected: Arc<AtomicBool>,
}

fn bytes_of(raft: &Raft) -> u64 {
    raft.heads.iter().map(|h| u64::from(h.len)).sum()
}

impl Outbox {
    /// Queues a raft message; `false` if the queue is full or the host not connected.
    pub fn raft(&self, raft: Raft) -> bool {
        if !self.is_connected.load(Ordering::Relaxed) {
            return false;
        }
        if raft.heads.is_empty() {
            return wire::to_proto(&raft, Vec::new()).is_ok_and(|envelope| self.control.try_send(envelope).is_ok());
        }
        self.append_bytes.take(bytes_of(&raft)) && self.append.send(raft).is_ok()
    }

    /// Queues that this host's log begins with frame `first`, after the end of that host's log.
    pub fn snapshot_needed(&self, first: u64) -> bool {
        let is_connected = self.is_connected.load(Ordering::Relaxed);
        is_connected && self.control.try_send(Envelope { message: Some(envelope::Message::SnapshotNeeded(first)) }).is_ok()
    }

    /// Whether the host is connected.
    pub fn is_connected(&self) -> bool {
        // Orders nothing: a number for people.
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Bytes of frames, and of forwarded batches, that are queued.
    pub fn queued(&self) -> (u64, u64) {
        (self.append_bytes.bytes.load(Ordering::Relaxed), self.relay_bytes.bytes.load(Ordering::Relaxed))
    }

    /// Queues a message of storage for the other host's storage.
    pub fn relay(&self, bytes: Vec<u8>) -> bool {
        let is_connected = self.is_connected.load(Ordering::Relaxed);
        is_connected && self.relay_bytes.take(bytes.len() as u64) && self.relay.send(bytes).is_ok()
    }
}

/// Another host.
pub struct Peer {
    member: Member,
    options: Options,
    certificates: Option<Arc<Certificates>>,
    storage: watch::Receiver<Option<StorageInfo>>,
    link: ToStorage,
    counters: Arc<Counters>,
    control: mpsc::Receiver<Envelope>,
    append: mpsc::UnboundedReceiver<Raft>,
    relay: mpsc::UnboundedReceiver<Vec<u8>>,
    outbox: Outbox,
}

/// The reason why a connection ended.
type Broken = Box<dyn std::error::Error + Send + Sync>;

impl Peer {
    /// The host `member` and the queues for it.
    pub fn new(
        member: Member,
        options: Options,
        certificates: Option<Arc<Certificates>>,
        storage: watch::Receiver<Option<StorageInfo>>,
        link: ToStorage,
        counters: Arc<Counters>,
    ) -> (Outbox, Peer) {
        let (control_in, control) = mpsc::channel(CONTROL_MAX);
        let (append_in, append) = mpsc::unbounded_channel();
        let (relay_in, relay) = mpsc::unbounded_channel();
        let outbox = Outbox {
            control: control_in,
            append: append_in,
            append_bytes: Bounded::new(options.queue_bytes),
            relay: relay_in,
            relay_bytes: Bounded::new(RELAY_BYTES),
            is_connected: Arc::default(),
        };
        (outbox.clone(), Peer { member, options, certificates, storage, link, counters, control, append, relay, outbox })
    }

    /// Connects and reconnects, for ever.
    pub async fn run(mut self) {
        let (least, most) = BACKOFF;
        let mut pause = least;
        let mut logged = String::new();
        let node = self.member.node;
        loop {
            let began = tokio::time::Instant::now();
            let ended = self.connection().await.err().map_or_else(|| "the other host closed it".to_owned(), |e| e.to_string());
            let was_connected = self.outbox.is_connected.swap(false, Ordering::Relaxed);
            self.clear_queues();
            if was_connected || ended != logged {
                tracing::warn!(
                    name: "replication.peer_unreachable", node = node.0, address = %self.member.address, why = %ended,
                    "no connection to another host; reconnecting"
                );
                logged = ended;
            }
            if was_connected {
                self.link.control(&Message::Unreachable(node)).await.ok();
            }
            pause = if was_connected && began.elapsed() > most { least } else { (pause * 2).min(most) };
            // Random, so that hosts do not dial in step.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// Drops all queued messages.
    fn clear_queues(&mut self) {
        while self.control.try_recv().is_ok() {}
        while let Ok(raft) = self.append.try_recv() {
            self.outbox.append_bytes.give_back(bytes_of(&raft));
        }
        while let Ok(bytes) = self.relay.try_recv() {
            self.outbox.relay_bytes.give_back(bytes.len() as u64);
        }
    }

    /// One connection, until it ends.
    async fn connection(&mut self) -> Result<(), Broken> {
        let storage = self.storage.borrow().clone().ok_or("not connected to storage")?;
        let channel = self.connect(&storage).await?;
        count(&self.counters.connects, 1);
        let client = PeerClient::new(channel).max_decoding_message_size(wire::MESSAGE_MAX);
        let hello = HelloRequest {
            cluster: storage.identity.cluster.to_le_bytes().to_vec().into(),
            node: storage.identity.node.0,
            to: self.member.node.0,
            incarnation: storage.identity.greeting.incarnation,
            is_fresh: storage.identity.greeting.is_fresh,
            initial_members: storage.identity.greeting.initial_members,
            generation: storage.identity.generation,
            version_min: VERSION,
            version_max: VERSION,
            segment_size: storage.identity.segment_size,
            is_lossy: storage.identity.is_lossy,
            address: storage.own_address().unwrap_or_default(),
        };
        let hello = tokio::time::timeout(CONNECT_TIMEOUT, client.clone().hello(hello)).await;
        let reply = match hello.map_err(|_| "no answer to Hello")? {
            Ok(reply) => reply.into_inner(),
            Err(status) => {
                // Storage needs the other generation, above all if it leads in one that has ended.
                if let Some(generation) = status.metadata().get("tape-epoch").and_then(|v| v.to_str().ok()?.parse().ok()) {
                    self.link
                        .control(&Message::Reached { node: self.member.node, generation, last: 0, needs_snapshot: false })
                        .await?;
                }
                if status.metadata().contains_key(REJECTED) {
                    let reason = status.message().to_owned();
                    self.link.control(&Message::Rejected { node: self.member.node, reason }).await?;
                }
                return Err(status.message().to_owned().into());
            }
        };
        if reply.generation > GENERATION_MAX {
            return Err(format!("it reports the impossible generation {}", reply.generation).into());
        }
        let (node, incarnation) = (self.member.node, reply.incarnation);
        let greeting = Greeting { node, incarnation, is_fresh: reply.is_fresh, initial_members: reply.initial_members };
        self.link.ask(Command::Greet(greeting)).await?;
        let ticket = reply.ticket;
        let (node, needs_snapshot) = (self.member.node, reply.needs_snapshot);
        self.link.control(&Message::Reached { node, generation: reply.generation, last: reply.last, needs_snapshot }).await?;
        let (control, control_out) = mpsc::channel(64);
        let (append, append_out) = mpsc::channel(4);
        let (relay, relay_out) = mpsc::channel(64);
        let node = storage.identity.node.0;
        let control_in = client.clone().control(with_ticket(control_out, node, ticket)).await?.into_inner();
        let append_in = client.clone().append(with_ticket(append_out, node, ticket)).await?.into_inner();
        let relay_in = client.clone().relay(with_ticket(relay_out, node, ticket)).await?.into_inner();
        self.outbox.is_connected.store(true, Ordering::Relaxed);
        tracing::info!(
            name: "replication.peer_connected", node = self.member.node.0, address = %self.member.address,
            "connected to another host"
        );
        let log = LogReader::new(storage.identity.store.join(wal::DIR), storage.identity.segment_size);
        let (append_credit, relay_credit) = (Credit::new(self.options.window_bytes), Credit::new(self.options.window_bytes));
        let counters = &self.counters;
        let own = storage.identity.session;
        tokio::select! {
            ended = send_control(&mut self.control, control, counters) => ended,
            ended = send_frames(&mut self.append, append, log, &append_credit, counters, &self.link, &self.outbox) => ended,
            ended = send_relays(&mut self.relay, relay, &relay_credit, &self.outbox) => ended,
            ended = receipts(control_in, None) => ended,
            ended = receipts(append_in, Some(&append_credit)) => ended,
            ended = receipts(relay_in, Some(&relay_credit)) => ended,
            ended = other_session(&mut self.storage, own) => ended,
        }
    }

    async fn connect(&self, storage: &StorageInfo) -> Result<Channel, Broken> {
        tls::check_plain(&self.member.address, self.certificates.is_some()).map_err(|e| e.to_string())?;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.member.address))?
            .connect_timeout(2 * CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(2 * KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let (node, cluster) = (self.member.node, storage.identity.cluster);
        let connected = match &self.certificates {
            Some(certificates) => certificates.dial(node, cluster).map_err(|e| e.to_string())?.connect(endpoint).await,
            None => {
                let wanted = local::Wanted { host: Some(local::Host { node, cluster }), store: self.options.store.clone() };
                local::connect(endpoint, self.member.address.clone(), wanted).await
            }
        };
        Ok(connected.map_err(|e| tls::why(&e))?)
    }
}

/// Window of bytes in flight to the other host's storage.
struct Credit {
    window: u64,
    sent: AtomicU64,
    done: AtomicU64,
    more: Notify,
}

impl Credit {
    fn new(window: u64) -> Credit {
        Credit { window, sent: AtomicU64::new(0), done: AtomicU64::new(0), more: Notify::new() }
    }

    /// Waits until `len` more bytes fit into the window; a single message always does.
    async fn take(&self, len: u64) {
        loop {
            let more = self.more.notified();
            let on_the_way = self.sent.load(Ordering::Relaxed) - self.done.load(Ordering::Relaxed);
            if on_the_way == 0 || on_the_way + len <= self.window {
                self.sent.fetch_add(len, Ordering::Relaxed);
                return;
            }
            more.await;
        }
    }

    fn done(&self, total: u64) {
        // A receipt for more than was sent is not believed.
        let total = total.min(self.sent.load(Ordering::Relaxed));
        self.done.fetch_max(total, Ordering::Relaxed);
        self.more.notify_one();
    }
}

fn with_ticket(out: mpsc::Receiver<Envelope>, node: u64, ticket: u64) -> Request<ReceiverStream<Envelope>> {
    let mut request = Request::new(ReceiverStream::new(out));
    request.metadata_mut().insert("tape-node", node.into());
    request.metadata_mut().insert("tape-ticket", ticket.into());
    request
}

async fn send_control(
    from: &mut mpsc::Receiver<Envelope>,
    to: mpsc::Sender<Envelope>,
    counters: &Counters,
) -> Result<(), Broken> {
    while let Some(envelope) = from.recv().await {
        to.send(envelope).await?;
        count(&counters.sent, 1);
    }
    Ok(())
}

async fn send_frames(
    from: &mut mpsc::UnboundedReceiver<Raft>,
    to: mpsc::Sender<Envelope>,
    mut log: LogReader,
    credit: &Credit,
    counters: &Counters,
    storage: &ToStorage,
    outbox: &Outbox,
) -> Result<(), Broken> {
    while let Some(raft) = from.recv().await {
        let len = bytes_of(&raft);
        outbox.append_bytes.give_back(len);
        credit.take(len).await;
        // New frames are in the page cache. Others are read from the disk, outside the message loop.
        let cached = log.read_cached(&raft.heads);
        let read = cached.or_else(|| tokio::task::block_in_place(|| log.read(&raft.heads)));
        let Some(frames) = read else {
            count(&counters.stale_frames, 1);
            credit.done(credit.done.load(Ordering::Relaxed) + len);
            storage.control(&Message::Unreachable(raft.to)).await.map_err(std::io::Error::other)?;
            continue;
        };
        count(&counters.sent_bytes, len);
        count(&counters.sent, 1);
        to.send(wire::to_proto(&raft, frames).map_err(std::io::Error::other)?).await?;
    }
    Ok(())
}

async fn send_relays(
    from: &mut mpsc::UnboundedReceiver<Vec<u8>>,
    to: mpsc::Sender<Envelope>,
    credit: &Credit,
    outbox: &Outbox,
) -> Result<(), Broken> {
    while let Some(bytes) = from.recv().await {
        let len = bytes.len() as u64;
        outbox.relay_bytes.give_back(len);
        credit.take(len).await;
        to.send(Envelope { message: Some(envelope::Message::Relay(bytes.into())) }).await?;
    }
    Ok(())
}

async fn receipts(mut from: Streaming<Receipt>, credit: Option<&Credit>) -> Result<(), Broken> {
    while let Some(receipt) = from.message().await.map_err(|s| s.message().to_owned())? {
        if let Some(credit) = credit {
            credit.done(receipt.bytes);
        }
    }
    Ok(())
}

/// Ends with the session of storage: messages of an ended session are void.
async fn other_session(storage: &mut watch::Receiver<Option<StorageInfo>>, own: u64) -> Result<(), Broken> {
    let is_other = |s: &Option<StorageInfo>| s.as_ref().is_none_or(|s| s.identity.session != own);
    storage.wait_for(is_other).await.map(drop)?;
    Err("storage has ended or restarted".into())
}
