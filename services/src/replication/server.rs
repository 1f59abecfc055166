//! Owns: the server for other hosts and for operators.
//!
//! What must hold: no message is accepted before its sender has identified itself as a host of this cluster with a supported
//! version, and with TLS has authenticated; a malformed message ends its stream with a status and never reaches storage; a
//! host is read no faster than storage accepts.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tapestore::lsn::NodeId;
use tapestore_engine::consensus::format::ADDRESS_MAX;
use tapestore_engine::consensus::message::{Command, GENERATION_MAX, Greeting, Member, Message, Refusal, Report};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::certificates::Certificates;
use super::peer::{REJECTED, VERSION};
use super::proto::admin_server::{Admin, AdminServer};
use super::proto::peer_server::{Peer, PeerServer};
use super::proto::supply_server::SupplyServer;
use super::proto::{self, Envelope, HelloReply, HelloRequest, Receipt, envelope};
use super::send_snapshot::Snapshots;
use super::session::{LinkError, StorageInfo};
use super::wire::Malformed;
use super::{Counters, acceptor, count, digest, rows, tls, wire};
use crate::exit::{Failure, IO, Outcome};

/// A receipt is sent after this many bytes, or this long after the last message. One for each message would cost both hosts
/// more than the message.
const RECEIPT_BYTES: u64 = 256 << 10;
const RECEIPT_AFTER: Duration = Duration::from_millis(10);
/// The remedy if a host has reached another one than it expected.
pub(super) const ADDRESSES: &str = "on both, compare the addresses of the members: tape cluster status";
/// Most hosts with a ticket.
const TICKETS_MAX: usize = 64;
/// Most bytes of one relayed message.
const RELAY_MAX: usize = 4 << 20;
const STREAMS_MAX: u32 = 64;
const REQUESTS_MAX: usize = 32;
/// Most streams that were reset and are still accounted: a flood of resets ends the connection.
const RESETS_MAX: usize = 20;

/// Serves other hosts.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) storage: watch::Receiver<Option<StorageInfo>>,
    counters: Arc<Counters>,
    /// Snapshots that other hosts fetch.
    pub(super) snapshots: Arc<Snapshots>,
    /// Permits to read records for other hosts: each holds a thread, and files that storage has replaced.
    pub(super) readers: Arc<Semaphore>,
    /// Leaders whose log begins after the end of this host's log.
    snapshot_needed_by: mpsc::Sender<(NodeId, u64)>,
    /// Hosts of the cluster that are not in this host's member list.
    unlisted: mpsc::Sender<Member>,
    tickets: Arc<Mutex<HashMap<NodeId, u64>>>,
    certificates: Option<Arc<Certificates>>,
}

type Receipts = Pin<Box<dyn Stream<Item = Result<Receipt, Status>> + Send>>;

/// Serves until the listener fails.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    storage: watch::Receiver<Option<StorageInfo>>,
    counters: Arc<Counters>,
    (snapshots, snapshot_needed_by, unlisted): (Arc<Snapshots>, mpsc::Sender<(NodeId, u64)>, mpsc::Sender<Member>),
) -> Outcome {
    let host = Host {
        storage: storage.clone(),
        counters,
        snapshots,
        readers: Arc::new(Semaphore::new(rows::READERS)),
        snapshot_needed_by,
        unlisted,
        tickets: Arc::default(),
        certificates: certificates.clone(),
    };
    let limit = wire::MESSAGE_MAX;
    let peer = PeerServer::new(host.clone()).max_decoding_message_size(limit);
    let admin = AdminServer::new(host.clone()).max_decoding_message_size(1 << 16);
    let supply = SupplyServer::new(host).max_decoding_message_size(1 << 16);
    let router = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(STREAMS_MAX)
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .add_service(peer)
        .add_service(admin)
        .add_service(supply);
    let ended = match certificates {
        None => {
            let local = move |stream| tls::accept_local(stream, storage.borrow().as_ref().map(StorageInfo::as_local));
            router.serve_with_incoming(acceptor::accept(listener, local)).await
        }
        Some(certificates) => {
            router.serve_with_incoming(acceptor::accept(listener, move |stream| certificates.accept(stream))).await
        }
    };
    ended.map_err(|e| Failure::new(IO, format!("the server for other hosts failed: {e}")))
}

impl Host {
    /// Identity and members from storage, while it is connected.
    pub(super) fn storage(&self) -> Result<StorageInfo, Status> {
        self.storage.borrow().clone().ok_or_else(|| Status::unavailable("no storage process serves the store of this host"))
    }

    pub(super) fn refuse(&self, status: Status) -> Status {
        count(&self.counters.refused, 1);
        tracing::warn!(
            name: "replication.request_refused", code = ?status.code(), why = status.message(),
            "refused a request of another host"
        );
        status
    }

    /// Checks that the certificate of `request` is one of host `node`. Without TLS [`super::local`] has authenticated the
    /// connection.
    pub(super) fn proves_host<T>(&self, request: &Request<T>, storage: &StorageInfo, node: NodeId) -> Result<(), Status> {
        self.proves(request, storage, |cluster| tls::node_name(node, cluster))
    }

    /// Checks that the certificate of `request` is an operator's; as [`Host::proves_host`].
    fn proves_operator<T>(&self, request: &Request<T>, storage: &StorageInfo) -> Result<(), Status> {
        self.proves(request, storage, tls::operator_name)
    }

    fn proves<T>(&self, request: &Request<T>, storage: &StorageInfo, name: impl Fn(&str) -> String) -> Result<(), Status> {
        let Some(certificates) = &self.certificates else { return Ok(()) };
        let clusters = certificates.files().clusters(storage.identity.cluster);
        let clusters = clusters.map_err(|e| self.refuse(Status::internal(format!("this host's own certificate: {e}"))))?;
        let names = request.peer_certs().and_then(|c| c.first().map(|c| tls::names(c))).unwrap_or_default();
        let wanted: Vec<String> = clusters.iter().map(|c| name(c)).collect();
        if names.iter().any(|n| wanted.iter().any(|w| w.eq_ignore_ascii_case(n))) {
            return Ok(());
        }
        let wanted = wanted.join(" or ");
        Err(self.refuse(Status::permission_denied(format!("the certificate is for {names:?}, not for {wanted}"))))
    }

    /// The host that sends on the stream `request`.
    fn sender<T>(&self, request: &Request<T>) -> Result<(StorageInfo, NodeId), Status> {
        let storage = self.storage()?;
        let number = |key| request.metadata().get(key).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let (node, ticket) = (number("tape-node"), number("tape-ticket"));
        let tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let node = node.map(NodeId).filter(|n| ticket.is_some() && tickets.get(n).copied() == ticket);
        drop(tickets);
        let node =
            node.ok_or_else(|| self.refuse(Status::unauthenticated("no valid ticket for this connection: send Hello first")))?;
        self.proves_host(request, &storage, node)?;
        Ok((storage, node))
    }

    /// Checks that the sender of `hello` is a host of this cluster with the same protocol and settings.
    fn check(storage: &StorageInfo, hello: &HelloRequest) -> Result<(), Status> {
        let own = &storage.identity;
        if hello.cluster[..] != own.cluster.to_le_bytes() {
            let why = format!("node {} is in another cluster than node {}; {ADDRESSES}", own.node, hello.node);
            return Err(Status::failed_precondition(why));
        }
        if hello.to != own.node.0 {
            let why = format!("this host is node {}; node {} expected node {}; {ADDRESSES}", own.node, hello.node, hello.to);
            return Err(Status::failed_precondition(why));
        }
        if hello.node == own.node.0 || hello.node == 0 {
            let why = format!(
                "a host that is node {} connected to node {}: initialise its store again with a number of its own, above 0 \
                 (tape cluster init --node)",
                hello.node, own.node
            );
            return Err(Status::failed_precondition(why));
        }
        if hello.generation > GENERATION_MAX {
            return Err(Status::failed_precondition(format!("generation {} is impossible", hello.generation)));
        }
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            let HelloRequest { node, version_min, version_max, .. } = hello;
            let why = format!(
                "node {} supports version {VERSION} of the protocol, node {node} versions {version_min} to {version_max}; \
                 install one release on both",
                own.node
            );
            return Err(Status::failed_precondition(why));
        }
        if hello.segment_size != own.segment_size {
            let why = format!(
                "log segments have {} bytes on node {} and {} on node {}; initialise the store of the newer host again with the \
                 size of the other (tape cluster init --segment-size)",
                own.segment_size, own.node, hello.segment_size, hello.node
            );
            return Err(Status::failed_precondition(why));
        }
        if hello.is_lossy != own.is_lossy {
            let word = |is_lossy| if is_lossy { "interval" } else { "always" };
            let (theirs, ours) = (word(hello.is_lossy), word(own.is_lossy));
            let why = format!("flush is \"{theirs}\" there and \"{ours}\" here: set the same value on all hosts of a cluster");
            return Err(Status::failed_precondition(why));
        }
        if hello.generation != own.generation {
            let why = format!(
                "generation {} there and {} here: run tape cluster rejoin on the host with the lower one",
                hello.generation, own.generation
            );
            let mut status = Status::failed_precondition(why);
            status.metadata_mut().insert("tape-epoch", own.generation.into());
            return Err(status);
        }
        Ok(())
    }

    /// Passes the greeting of `hello` to storage, which records it or rejects the host.
    async fn greet(&self, storage: &StorageInfo, hello: &HelloRequest) -> Result<Report, Status> {
        let HelloRequest { node, incarnation, is_fresh, initial_members, .. } = *hello;
        let greeting = Greeting { node: NodeId(node), incarnation, is_fresh, initial_members };
        storage.link.ask(Command::Greet(greeting)).await.map_err(|error| match error {
            LinkError::Refused(Refusal::Host(reason)) => {
                let mut status = Status::failed_precondition(reason);
                status.metadata_mut().insert(REJECTED, 1u32.into());
                status
            }
            error => Status::unavailable(error.to_string()),
        })
    }

    /// Gives the sender of `hello` a ticket.
    fn admit(&self, storage: &StorageInfo, hello: &HelloRequest, report: &Report) -> Result<HelloReply, Status> {
        let own = &storage.identity;
        let ticket = fastrand::u64(1..1 << 62);
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() >= TICKETS_MAX && !tickets.contains_key(&NodeId(hello.node)) {
            return Err(Status::resource_exhausted("too many hosts"));
        }
        tickets.insert(NodeId(hello.node), ticket);
        drop(tickets);
        let (node, address) = (NodeId(hello.node), hello.address.clone());
        let is_unlisted = storage.members.iter().all(|m| m.node != node);
        if is_unlisted && (1..=ADDRESS_MAX).contains(&address.len()) {
            // If the queue is full, the host's next Hello repeats it.
            self.unlisted.try_send(Member { node, address, is_voter: false }).ok();
        }
        let Greeting { incarnation, is_fresh, initial_members, .. } = own.greeting;
        let (last, needs_snapshot) = (report.state.last, report.needs_snapshot);
        Ok(HelloReply {
            ticket,
            version: VERSION,
            incarnation,
            generation: own.generation,
            last,
            needs_snapshot,
            is_fresh,
            initial_members,
        })
    }

    /// Passes the messages of a stream to storage.
    fn take(&self, request: Request<Streaming<Envelope>>, is_bulk: bool) -> Result<Response<Receipts>, Status> {
        let (storage, node) = self.sender(&request)?;
        let mut messages = request.into_inner();
        let (receipts, out) = mpsc::channel(16);
        let host = self.clone();
        tokio::spawn(async move {
            let ended = host.pass_on(&mut messages, &storage, node, is_bulk, &receipts).await;
            if let Err(status) = ended {
                // The sender may be gone.
                receipts.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn pass_on(
        &self,
        messages: &mut Streaming<Envelope>,
        storage: &StorageInfo,
        from: NodeId,
        is_bulk: bool,
        receipts: &mpsc::Sender<Result<Receipt, Status>>,
    ) -> Result<(), Status> {
        let (mut total, mut receipted, to) = (0, 0, storage.identity.node);
        loop {
            let next = if total > receipted {
                // Send the outstanding receipt once nothing has arrived for a moment.
                tokio::time::timeout(RECEIPT_AFTER, messages.message()).await.ok()
            } else {
                Some(messages.message().await)
            };
            let Some(next) = next else {
                if receipts.send(Ok(Receipt { bytes: total })).await.is_err() {
                    break;
                }
                receipted = total;
                continue;
            };
            let Some(envelope) = next? else { break };
            storage.link.spin.notify();
            if self.storage()?.identity.session != storage.identity.session {
                return Err(Status::unavailable("the storage process of this host was restarted"));
            }
            let bad = |why: Malformed| self.refuse(Status::invalid_argument(why.to_string()));
            let (message, len) = match envelope.message {
                Some(envelope::Message::Raft(raft)) => {
                    let len = raft.frames.len();
                    (Message::Raft(wire::from_proto(raft, from, to).map_err(bad)?), len)
                }
                Some(envelope::Message::Relay(bytes)) if bytes.len() <= RELAY_MAX && is_bulk => {
                    let len = bytes.len();
                    (Message::Relay { to, from, bytes: bytes.into() }, len)
                }
                Some(envelope::Message::Relay(bytes)) => return Err(bad(Malformed::Relay { bytes: bytes.len() })),
                Some(envelope::Message::SnapshotNeeded(first)) => {
                    // The leader repeats it while it holds.
                    self.snapshot_needed_by.try_send((from, first)).ok();
                    continue;
                }
                None => return Err(bad(Malformed::Empty)),
            };
            count(&self.counters.received, 1);
            count(&self.counters.received_bytes, len as u64);
            let passed = if is_bulk { storage.link.bulk(&message).await } else { storage.link.control(&message).await };
            passed.map_err(|e| Status::unavailable(e.to_string()))?;
            total += len as u64;
            if !is_bulk {
                receipted = total;
            } else if total - receipted >= RECEIPT_BYTES {
                receipted = total;
                if receipts.send(Ok(Receipt { bytes: total })).await.is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Peer for Host {
    type ControlStream = Receipts;
    type AppendStream = Receipts;
    type RelayStream = Receipts;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let storage = self.storage()?;
        self.proves_host(&request, &storage, NodeId(request.get_ref().node))?;
        let hello = request.get_ref();
        Host::check(&storage, hello).map_err(|s| self.refuse(s))?;
        // The reply has the end of this log: only by it a leader learns that its log reaches back to it again.
        let report = self.greet(&storage, hello).await.map_err(|s| self.refuse(s))?;
        Ok(Response::new(self.admit(&storage, hello, &report).map_err(|s| self.refuse(s))?))
    }

    async fn control(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Receipts>, Status> {
        self.take(request, false)
    }

    async fn append(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Receipts>, Status> {
        self.take(request, true)
    }

    async fn relay(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Receipts>, Status> {
        self.take(request, true)
    }
}

#[tonic::async_trait]
impl Admin for Host {
    async fn ask(&self, request: Request<proto::Command>) -> Result<Response<proto::Report>, Status> {
        let storage = self.storage()?;
        self.proves_operator(&request, &storage)?;
        let command = wire::command(request.into_inner()).ok_or_else(|| Status::invalid_argument("no command"))?;
        let report = storage.link.ask(command).await.map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(wire::report(&report)))
    }

    type ReadStream = Pin<Box<dyn Stream<Item = Result<proto::Digest, Status>> + Send>>;

    async fn read(&self, request: Request<proto::Range>) -> Result<Response<Self::ReadStream>, Status> {
        let storage = self.storage()?;
        self.proves_operator(&request, &storage)?;
        let proto::Range { first, last } = request.into_inner();
        if first == 0 || first > last {
            return Err(Status::invalid_argument(format!("records {first} to {last} are no valid range")));
        }
        let (parts, out) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || digest::read(&storage.identity.store, first, last, &parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}
