//! Owns: the way to one other host: what waits for it, the connection, and its coming back.
//!
//! What must hold: messages of one kind leave in order; frames that wait are bounded by bytes, and so is what is on the
//! way and not yet with the other host's storage; when the connection breaks, storage hears that the host may not have
//! got what was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tapestore_engine::consensus::message::{Command, GENERATION_MAX, Greeting, Member, Message, Raft};
use tapestore::wal;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use super::log::LogReader;
use super::proto::peer_client::PeerClient;
use super::proto::{Envelope, HelloRequest, Receipt, envelope};
use super::session::{Known, ToStorage};
use super::{Counters, Options, count, local, tls, wire};

/// The version of the protocol between hosts.
pub const VERSION: u32 = 4;
/// Says in a status that this host's storage does not hear the other host's.
pub const UNHEARD: &str = "tape-unheard";
/// Control messages that wait at most; consensus says again what is lost.
const CONTROL_MAX: usize = 1024;
/// Bytes of publishers' batches that wait for a host at most: what is dropped, its publisher sends again.
const RELAY_BYTES: u64 = 32 << 20;
/// Longest pause between two tries to connect, and the shortest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What waits, in bytes, of one queue.
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
        // One session pushes; the other end only takes out: what is read here is no less than what waits.
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

/// Where messages for a host are put.
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
    /// Puts in a message of consensus; `false` if there is no room or no connection.
    pub fn raft(&self, raft: Raft) -> bool {
        if !self.is_connected.load(Ordering::Relaxed) {
            return false;
        }
        if raft.heads.is_empty() {
            return self.control.try_send(wire::to_proto(raft, Vec::new())).is_ok();
        }
        self.append_bytes.take(bytes_of(&raft)) && self.append.send(raft).is_ok()
    }

    /// Puts in that this host's log begins with frame `first`, behind what that host lacks.
    pub fn snapshot_needed(&self, first: u64) -> bool {
        let is_connected = self.is_connected.load(Ordering::Relaxed);
        is_connected && self.control.try_send(Envelope { message: Some(envelope::Message::SnapshotNeeded(first)) }).is_ok()
    }

    /// Puts in what one storage process says to another.
    pub fn relay(&self, bytes: Vec<u8>) -> bool {
        let is_connected = self.is_connected.load(Ordering::Relaxed);
        is_connected && self.relay_bytes.take(bytes.len() as u64) && self.relay.send(bytes).is_ok()
    }
}

/// One other host.
pub struct Peer {
    member: Member,
    options: Options,
    known: watch::Receiver<Option<Known>>,
    storage: ToStorage,
    counters: Arc<Counters>,
    control: mpsc::Receiver<Envelope>,
    append: mpsc::UnboundedReceiver<Raft>,
    relay: mpsc::UnboundedReceiver<Vec<u8>>,
    outbox: Outbox,
}

/// Why a connection ended.
type Broken = Box<dyn std::error::Error + Send + Sync>;

impl Peer {
    /// The host `member`, and where messages for it are put.
    pub fn new(
        member: Member,
        options: Options,
        known: watch::Receiver<Option<Known>>,
        storage: ToStorage,
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
        (outbox.clone(), Peer { member, options, known, storage, counters, control, append, relay, outbox })
    }

    /// Keeps the connection, for ever.
    pub async fn run(mut self) {
        let (least, most) = BACKOFF;
        let mut pause = least;
        let mut said = String::new();
        let node = self.member.node;
        loop {
            let began = tokio::time::Instant::now();
            let ended = self.hold().await.err().map_or_else(|| "it has closed".to_owned(), |e| e.to_string());
            let was_connected = self.outbox.is_connected.swap(false, Ordering::Relaxed);
            self.forget();
            if was_connected || ended != said {
                tracing::warn!(node = node.0, address = %self.member.address, why = %ended, "no connection to another host; trying on");
                said = ended;
            }
            if was_connected {
                self.storage.control(&Message::Unreachable(node)).await.ok();
            }
            pause = if was_connected && began.elapsed() > most { least } else { (pause * 2).min(most) };
            // Not all at once.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// Whatever waited is void.
    fn forget(&mut self) {
        while self.control.try_recv().is_ok() {}
        while let Ok(raft) = self.append.try_recv() {
            self.outbox.append_bytes.give_back(bytes_of(&raft));
        }
        while let Ok(bytes) = self.relay.try_recv() {
            self.outbox.relay_bytes.give_back(bytes.len() as u64);
        }
    }

    /// One connection, until it ends.
    async fn hold(&mut self) -> Result<(), Broken> {
        let known = self.known.borrow().clone().ok_or("storage is not there")?;
        let channel = self.connect(&known).await?;
        count(&self.counters.connects, 1);
        let client = PeerClient::new(channel).max_decoding_message_size(wire::MESSAGE_MAX);
        let hello = HelloRequest {
            cluster: known.identity.cluster.to_le_bytes().to_vec().into(),
            node: known.identity.node.0,
            to: self.member.node.0,
            incarnation: known.identity.greeting.incarnation,
            is_fresh: known.identity.greeting.is_fresh,
            initial_members: known.identity.greeting.initial_members,
            generation: known.identity.generation,
            version_min: VERSION,
            version_max: VERSION,
            segment_size: known.identity.segment_size,
            is_lossy: known.identity.is_lossy,
            address: known.own_address().unwrap_or_default(),
        };
        let hello = tokio::time::timeout(CONNECT_TIMEOUT, client.clone().hello(hello)).await;
        let reply = match hello.map_err(|_| "it does not answer")? {
            Ok(reply) => reply.into_inner(),
            Err(status) => {
                // Storage has to know of another generation, most of all if it leads in one that is over.
                if let Some(generation) = status.metadata().get("tape-generation").and_then(|v| v.to_str().ok()?.parse().ok()) {
                    self.storage.control(&Message::Reached { node: self.member.node, generation, last: 0, needs_snapshot: false }).await?;
                }
                if status.metadata().contains_key(UNHEARD) {
                    let reason = status.message().to_owned();
                    self.storage.control(&Message::Rejected { node: self.member.node, reason }).await?;
                }
                return Err(status.message().to_owned().into());
            }
        };
        if reply.generation > GENERATION_MAX {
            return Err(format!("it says that it is of generation {}, which cannot be", reply.generation).into());
        }
        let (node, incarnation) = (self.member.node, reply.incarnation);
        let greeting = Greeting { node, incarnation, is_fresh: reply.is_fresh, initial_members: reply.initial_members };
        self.storage.ask(Command::Greet(greeting)).await?;
        let ticket = reply.ticket;
        let (node, needs_snapshot) = (self.member.node, reply.needs_snapshot);
        self.storage.control(&Message::Reached { node, generation: reply.generation, last: reply.last, needs_snapshot }).await?;
        let (control, control_out) = mpsc::channel(64);
        let (append, append_out) = mpsc::channel(4);
        let (relay, relay_out) = mpsc::channel(64);
        let node = known.identity.node.0;
        let control_in = client.clone().control(with_ticket(control_out, node, ticket)).await?.into_inner();
        let append_in = client.clone().append(with_ticket(append_out, node, ticket)).await?.into_inner();
        let relay_in = client.clone().relay(with_ticket(relay_out, node, ticket)).await?.into_inner();
        self.outbox.is_connected.store(true, Ordering::Relaxed);
        tracing::info!(node = self.member.node.0, address = %self.member.address, "connected to another host");
        let log = LogReader::new(known.identity.store.join(wal::DIR), known.identity.segment_size);
        let (append_credit, relay_credit) = (Credit::new(self.options.window_bytes), Credit::new(self.options.window_bytes));
        let counters = &self.counters;
        let own = known.identity.session;
        tokio::select! {
            ended = send_control(&mut self.control, control, counters) => ended,
            ended = send_frames(&mut self.append, append, log, &append_credit, counters, &self.storage, &self.outbox) => ended,
            ended = send_relays(&mut self.relay, relay, &relay_credit, &self.outbox) => ended,
            ended = receipts(control_in, None) => ended,
            ended = receipts(append_in, Some(&append_credit)) => ended,
            ended = receipts(relay_in, Some(&relay_credit)) => ended,
            ended = other_session(&mut self.known, own) => ended,
        }
    }

    async fn connect(&self, known: &Known) -> Result<Channel, Broken> {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        tls::check_plain(&self.member.address, self.options.tls.is_some()).map_err(|e| e.to_string())?;
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.member.address))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(2 * KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let (node, cluster) = (self.member.node, known.identity.cluster);
        let connected = match &self.options.tls {
            Some(files) => {
                let config = files.client(node, cluster).map_err(|e| e.to_string())?;
                endpoint = endpoint.tls_config(config)?;
                endpoint.connect().await
            }
            None => {
                let endpoint = endpoint.connect_timeout(2 * CONNECT_TIMEOUT);
                let wanted = local::Wanted { host: Some(local::Host { node, cluster }), store: self.options.store.clone() };
                local::connect(endpoint, self.member.address.clone(), wanted).await
            }
        };
        Ok(connected.map_err(|e| tls::why(&e))?)
    }
}

/// What may be on the way to the other host's storage.
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

    /// Waits until `len` bytes more may be on the way; one message always may.
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
        // A receipt is not trusted further than what was sent.
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
        // What has just been written is in memory. What is not is read from the disk: that is no work for the loop of messages.
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
        to.send(wire::to_proto(raft, frames)).await?;
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

/// Ends when storage has: what was said in its name is void.
async fn other_session(known: &mut watch::Receiver<Option<Known>>, own: u64) -> Result<(), Broken> {
    let is_other = |k: &Option<Known>| k.as_ref().is_none_or(|k| k.identity.session != own);
    known.wait_for(is_other).await.map(drop)?;
    Err("storage has ended".into())
}
