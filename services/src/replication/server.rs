//! Owns: what other hosts say to this one, and what operators ask from afar.
//!
//! What must hold: nobody is heard who has not said who it is, of this cluster and in a version that is spoken, and under
//! TLS proved it; what is malformed ends its stream with a status and never reaches storage; a host is read no faster
//! than storage takes in.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tapestore_engine::consensus::format::ADDRESS_MAX;
use tapestore_engine::consensus::message::{Command, GENERATION_MAX, Greeting, Member, Message, Report};
use tapestore::lsn::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::peer::{UNHEARD, VERSION};
use super::proto::admin_server::{Admin, AdminServer};
use super::proto::peer_server::{Peer, PeerServer};
use super::proto::supply_server::SupplyServer;
use super::proto::{self, Envelope, HelloReply, HelloRequest, Receipt, envelope};
use super::session::Known;
use super::send_snapshot::Copies;
use super::{Counters, count, digest, door, tls, wire};
use crate::exit::{Failure, IO, Outcome};

/// Bytes after which a receipt is sent, and how long after what came last it is in any case: one for each message would
/// cost both hosts more than the message.
const RECEIPT_BYTES: u64 = 256 << 10;
const RECEIPT_AFTER: Duration = Duration::from_millis(10);
/// Hosts that have said who they are, at most.
const TICKETS_MAX: usize = 64;
/// Bytes of what one storage says to another, of one message, at most.
const RELAY_MAX: usize = 4 << 20;
const STREAMS_MAX: u32 = 64;
const REQUESTS_MAX: usize = 32;
/// Streams that were reset and not yet forgotten, at most: a flood of resets ends the connection.
const RESETS_MAX: usize = 20;

/// What answers other hosts.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) known: watch::Receiver<Option<Known>>,
    counters: Arc<Counters>,
    /// Copies that other hosts fetch.
    pub(super) copies: Arc<Copies>,
    /// Leaders whose log does not reach back to what this host lacks.
    snapshot_needed_by: mpsc::Sender<(NodeId, u64)>,
    /// Hosts of the cluster that are no members as far as this one knows.
    strangers: mpsc::Sender<Member>,
    tickets: Arc<Mutex<HashMap<NodeId, u64>>>,
    tls: Option<tls::Files>,
}

type Receipts = Pin<Box<dyn Stream<Item = Result<Receipt, Status>> + Send>>;

/// Serves until the listener fails.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    acceptor: Option<tls::Acceptor>,
    known: watch::Receiver<Option<Known>>,
    counters: Arc<Counters>,
    (copies, snapshot_needed_by, strangers): (Arc<Copies>, mpsc::Sender<(NodeId, u64)>, mpsc::Sender<Member>),
) -> Outcome {
    let tls = acceptor.as_ref().map(|a| a.files().clone());
    let host = Host { known: known.clone(), counters, copies, snapshot_needed_by, strangers, tickets: Arc::default(), tls };
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
    let ended = match acceptor {
        None => {
            let proof = move |stream| tls::plain_proof(stream, known.borrow().as_ref().map(Known::as_local));
            router.serve_with_incoming(door::accept(listener, proof)).await
        }
        Some(mut acceptor) => router.serve_with_incoming(door::accept(listener, move |stream| acceptor.proof(stream))).await,
    };
    ended.map_err(|e| Failure::new(IO, format!("the server for other hosts has ended: {e}")))
}

impl Host {
    /// What storage has said, if it is there.
    pub(super) fn known(&self) -> Result<Known, Status> {
        self.known.borrow().clone().ok_or_else(|| Status::unavailable("the storage process of this host is not there"))
    }

    pub(super) fn refuse(&self, status: Status) -> Status {
        count(&self.counters.refused, 1);
        tracing::warn!(code = ?status.code(), why = status.message(), "another host is refused");
        status
    }

    /// Whether the certificate of `request` is one of host `node`; without TLS whoever is connected has proved all that is
    /// asked.
    pub(super) fn proves_host<T>(&self, request: &Request<T>, known: &Known, node: NodeId) -> Result<(), Status> {
        self.proves(request, known, |cluster| tls::node_name(node, cluster))
    }

    /// Whether the certificate of `request` is an operator's; as [`Host::proves_host`].
    fn proves_operator<T>(&self, request: &Request<T>, known: &Known) -> Result<(), Status> {
        self.proves(request, known, tls::operator_name)
    }

    fn proves<T>(&self, request: &Request<T>, known: &Known, name: impl Fn(&str) -> String) -> Result<(), Status> {
        let Some(files) = &self.tls else { return Ok(()) };
        let clusters = files.clusters(known.identity.cluster);
        let clusters = clusters.map_err(|e| self.refuse(Status::internal(format!("this host's own certificate: {e}"))))?;
        let names = request.peer_certs().and_then(|c| c.first().map(|c| tls::names(c))).unwrap_or_default();
        let wanted: Vec<String> = clusters.iter().map(|c| name(c)).collect();
        if names.iter().any(|n| wanted.iter().any(|w| w.eq_ignore_ascii_case(n))) {
            return Ok(());
        }
        let wanted = wanted.join(" or ");
        Err(self.refuse(Status::permission_denied(format!("the certificate is for {names:?}, not for {wanted}"))))
    }

    /// Who sends on the stream `request`.
    fn sender<T>(&self, request: &Request<T>) -> Result<(Known, NodeId), Status> {
        let known = self.known()?;
        let number = |key| request.metadata().get(key).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let (node, ticket) = (number("tape-node"), number("tape-ticket"));
        let tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let node = node.map(NodeId).filter(|n| ticket.is_some() && tickets.get(n).copied() == ticket);
        drop(tickets);
        let node = node.ok_or_else(|| self.refuse(Status::unauthenticated("no ticket of this connection: say Hello first")))?;
        self.proves_host(request, &known, node)?;
        Ok((known, node))
    }

    /// Whether who says `hello` is of this cluster, and to be understood.
    fn check(known: &Known, hello: &HelloRequest) -> Result<(), Status> {
        let own = &known.identity;
        if hello.cluster[..] != own.cluster.to_le_bytes() {
            return Err(Status::failed_precondition("this host is of another cluster"));
        }
        if hello.to != own.node.0 || hello.node == own.node.0 || hello.node == 0 {
            let why = format!("this host is node {}, and was taken for node {} by node {}", own.node, hello.to, hello.node);
            return Err(Status::failed_precondition(why));
        }
        if hello.generation > GENERATION_MAX {
            return Err(Status::failed_precondition(format!("generation {} cannot be", hello.generation)));
        }
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            let why = format!("this host speaks version {VERSION}, not {} to {}", hello.version_min, hello.version_max);
            return Err(Status::failed_precondition(why));
        }
        if hello.segment_size != own.segment_size {
            let why = format!("log segments have {} bytes here, not {}", own.segment_size, hello.segment_size);
            return Err(Status::failed_precondition(why));
        }
        if hello.is_lossy != own.is_lossy {
            let word = |is_lossy| if is_lossy { "interval" } else { "always" };
            let (theirs, ours) = (word(hello.is_lossy), word(own.is_lossy));
            let why = format!("flush is \"{theirs}\" there and \"{ours}\" here: it is the same on all hosts of a cluster");
            return Err(Status::failed_precondition(why));
        }
        if hello.generation != own.generation {
            let why = format!("generation {} there and {} here: the host with the lower one has to rejoin", hello.generation, own.generation);
            let mut status = Status::failed_precondition(why);
            status.metadata_mut().insert("tape-generation", own.generation.into());
            return Err(status);
        }
        Ok(())
    }

    /// Storage notes who says `hello`, or says why that host is not heard.
    async fn greet(&self, known: &Known, hello: &HelloRequest) -> Result<Report, Status> {
        let HelloRequest { node, incarnation, is_fresh, initial_members, .. } = *hello;
        let greeting = Greeting { node: NodeId(node), incarnation, is_fresh, initial_members };
        known.storage.ask(Command::Greet(greeting)).await.map_err(|why| match why.strip_prefix("invalid host: ") {
            Some(reason) => {
                let mut status = Status::failed_precondition(reason);
                status.metadata_mut().insert(UNHEARD, 1u32.into());
                status
            }
            None => Status::unavailable(why),
        })
    }

    /// Who says `hello` has a ticket from now on.
    fn admit(&self, known: &Known, hello: &HelloRequest, report: &Report) -> Result<HelloReply, Status> {
        let own = &known.identity;
        let ticket = fastrand::u64(1..1 << 62);
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() >= TICKETS_MAX && !tickets.contains_key(&NodeId(hello.node)) {
            return Err(Status::resource_exhausted("too many hosts"));
        }
        tickets.insert(NodeId(hello.node), ticket);
        drop(tickets);
        let (node, address) = (NodeId(hello.node), hello.address.clone());
        let is_stranger = known.members.iter().all(|m| m.node != node);
        if is_stranger && (1..=ADDRESS_MAX).contains(&address.len()) {
            // It says so again when it dials again.
            self.strangers.try_send(Member { node, address, is_voter: false }).ok();
        }
        let Greeting { incarnation, is_fresh, initial_members, .. } = own.greeting;
        let (last, needs_snapshot) = (report.state.last, report.needs_snapshot);
        Ok(HelloReply { ticket, version: VERSION, incarnation, generation: own.generation, last, needs_snapshot, is_fresh, initial_members })
    }

    /// Passes what comes on a stream on to storage.
    fn take(&self, request: Request<Streaming<Envelope>>, is_bulk: bool) -> Result<Response<Receipts>, Status> {
        let (known, node) = self.sender(&request)?;
        let mut messages = request.into_inner();
        let (receipts, out) = mpsc::channel(16);
        let host = self.clone();
        tokio::spawn(async move {
            let ended = host.pass_on(&mut messages, &known, node, is_bulk, &receipts).await;
            if let Err(status) = ended {
                // The other end may be gone.
                receipts.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn pass_on(
        &self,
        messages: &mut Streaming<Envelope>,
        known: &Known,
        from: NodeId,
        is_bulk: bool,
        receipts: &mpsc::Sender<Result<Receipt, Status>>,
    ) -> Result<(), Status> {
        let (mut total, mut told, to) = (0, 0, known.identity.node);
        loop {
            let next = if total > told {
                // What is not told yet is told once nothing has come for a moment.
                tokio::time::timeout(RECEIPT_AFTER, messages.message()).await.ok()
            } else {
                Some(messages.message().await)
            };
            let Some(next) = next else {
                if receipts.send(Ok(Receipt { bytes: total })).await.is_err() {
                    break;
                }
                told = total;
                continue;
            };
            let Some(envelope) = next? else { break };
            known.storage.awake.stir();
            if self.known()?.identity.session != known.identity.session {
                return Err(Status::unavailable("the storage process of this host has been started again"));
            }
            let bad = |why: String| self.refuse(Status::invalid_argument(why));
            let (message, len) = match envelope.message {
                Some(envelope::Message::Raft(raft)) => {
                    let len = raft.frames.len();
                    (Message::Raft(wire::from_proto(raft, from, to).map_err(bad)?), len)
                }
                Some(envelope::Message::Relay(bytes)) if bytes.len() <= RELAY_MAX && is_bulk => {
                    let len = bytes.len();
                    (Message::Relay { to, from, bytes: bytes.into() }, len)
                }
                Some(envelope::Message::Relay(bytes)) => return Err(bad(format!("{} bytes for storage", bytes.len()))),
                Some(envelope::Message::SnapshotNeeded(first)) => {
                    // Said again as long as it holds.
                    self.snapshot_needed_by.try_send((from, first)).ok();
                    continue;
                }
                None => return Err(bad("an empty message".to_owned())),
            };
            count(&self.counters.received, 1);
            count(&self.counters.received_bytes, len as u64);
            let passed = if is_bulk { known.storage.bulk(&message).await } else { known.storage.control(&message).await };
            passed.map_err(Status::unavailable)?;
            total += len as u64;
            if !is_bulk {
                told = total;
            } else if total - told >= RECEIPT_BYTES {
                told = total;
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
        let known = self.known()?;
        self.proves_host(&request, &known, NodeId(request.get_ref().node))?;
        let hello = request.get_ref();
        Host::check(&known, hello).map_err(|s| self.refuse(s))?;
        // A leader whose log does not reach back far enough learns only here that it does by now.
        let report = self.greet(&known, hello).await.map_err(|s| self.refuse(s))?;
        Ok(Response::new(self.admit(&known, hello, &report).map_err(|s| self.refuse(s))?))
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
        let known = self.known()?;
        self.proves_operator(&request, &known)?;
        let command = wire::command(request.into_inner()).ok_or_else(|| Status::invalid_argument("no command"))?;
        let report = known.storage.ask(command).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::report(&report)))
    }

    type ReadStream = Pin<Box<dyn Stream<Item = Result<proto::Digest, Status>> + Send>>;

    async fn read(&self, request: Request<proto::Range>) -> Result<Response<Self::ReadStream>, Status> {
        let known = self.known()?;
        self.proves_operator(&request, &known)?;
        let proto::Range { first, last } = request.into_inner();
        if first == 0 || first > last {
            return Err(Status::invalid_argument(format!("records {first} to {last}")));
        }
        let (parts, out) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || digest::read(&known.identity.store, first, last, &parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}
