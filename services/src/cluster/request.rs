//! Owns: requests to hosts of a cluster: to this host's storage process by its socket, to another host over the network.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tapestore::lsn::NodeId;
use tapestore::shm::bell::Bells;
use tapestore::shm::run_dir::RunDir;
use tapestore_engine::consensus::message::{Command, Member, Message, Progress, Report, Role, State};
use tonic::transport::{Channel, Endpoint};

use super::Target;
use crate::exit::{DATA, Failure, Outcome, UNAVAILABLE, USAGE};
use crate::replication::certificates::Certificates;
use crate::replication::proto::{self, admin_client::AdminClient};
use crate::replication::{local, tls};

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The digests of the records `first` to `last` on the host at `address`.
///
/// # Errors
/// The host does not answer, or cannot read its records.
pub fn digests(store: &Path, target: &Target, address: &str, first: u64, last: u64) -> Outcome<Vec<proto::Digest>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = tokio::time::timeout(PATIENCE, connect(store, target, address)).await;
        let channel = channel.map_err(|_| no_connection(address))??;
        let refused = |s: tonic::Status| Failure::new(DATA, format!("{address}: {}", s.message()));
        let mut parts = AdminClient::new(channel).read(proto::Range { first, last }).await.map_err(refused)?.into_inner();
        let mut digests = Vec::new();
        while let Some(part) = parts.message().await.map_err(refused)? {
            digests.push(part);
        }
        Ok(digests)
    })
}

/// Sends `command` to the host that `target` names, or to the one with `store`.
///
/// # Errors
/// The host does not answer, or refuses.
pub fn send(store: &Path, target: &Target, command: Command) -> Outcome<Report> {
    match &target.at {
        Some(address) => other_host(store, target, address, command),
        None => own_host(store, command),
    }
}

fn unavailable(store: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(UNAVAILABLE, format!("no storage process serves {}: {why}; start tape-storage", store.display()))
}

fn no_connection(address: &str) -> Failure {
    let limit = PATIENCE.as_secs();
    let why = format!("no connection to {address} within {limit} s; check that tape-replication runs there, and the network");
    Failure::new(UNAVAILABLE, why)
}

/// Sends `command` to the storage process of `store`, on this host.
///
/// # Errors
/// It does not answer, or refuses; [`tapestore::error::Error::Denied`] if it runs as another user.
pub fn own_host(store: &Path, command: Command) -> Outcome<Report> {
    let run_dir = RunDir::find(store)?;
    let mut stream = match UnixStream::connect(run_dir.cluster_socket()) {
        // A member of the group may read the store, and ask nothing of storage.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            run_dir.check_user(store)?;
            return Err(unavailable(store, &e));
        }
        other => other.map_err(|e| unavailable(store, &e))?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let bells = Bells::open(&run_dir.bells())?;
    stream.write_all(&Message::Command { id: 1, command }.encode()?)?;
    bells.post();
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let len = stream.read(&mut chunk).map_err(|e| unavailable(store, &e))?;
        if len == 0 {
            return Err(unavailable(store, &"it closed the connection"));
        }
        received.extend_from_slice(chunk.get(..len).unwrap_or(&[]));
        if let Some((Message::Answer { result, .. }, _)) = Message::decode(&received)? {
            return result.map_err(|why| Failure::new(USAGE, why.to_string()));
        }
    }
}

fn other_host(store: &Path, target: &Target, address: &str, command: Command) -> Outcome<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = tokio::time::timeout(PATIENCE, connect(store, target, address)).await;
        let channel = channel.map_err(|_| no_connection(address))??;
        let answer = tokio::time::timeout(PATIENCE, AdminClient::new(channel).ask(to_proto(command))).await;
        let answer = answer.map_err(|_| {
            let limit = PATIENCE.as_secs();
            Failure::new(UNAVAILABLE, format!("{address} did not answer within {limit} s; on that host, run: tape status"))
        })?;
        let report = answer.map_err(|s| Failure::new(USAGE, format!("{address} refuses: {}", s.message())))?;
        from_proto(report.into_inner()).ok_or_else(|| Failure::new(DATA, format!("{address} sent a report with an unknown role")))
    })
}

async fn connect(store: &Path, target: &Target, address: &str) -> Outcome<Channel> {
    let bad = |e: &dyn std::fmt::Display| Failure::new(USAGE, format!("{address}: {e}"));
    let away = |e: tonic::transport::Error| Failure::new(UNAVAILABLE, format!("{address}: {}", tls::why(&e)));
    let id = tapestore::wal::meta::read(&tapestore::disk::RealDisk, store)?.map_or(0, |m| m.store_id);
    let Some(files) = target.tls.files() else {
        tls::check_plain(address, false)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| bad(&e))?;
        // This host's member list names the node of that address. Without it any node is accepted.
        let own = own_host(store, Command::Status).ok().and_then(|r| r.members.into_iter().find(|m| m.address == address));
        let host = own.map(|m| local::Host { node: m.node, cluster: id });
        let wanted = local::Wanted { host, store: store.to_path_buf() };
        return local::connect(endpoint, address.to_owned(), wanted).await.map_err(away);
    };
    // This host's member list names the node of that address, which the certificate must name too.
    let own = own_host(store, Command::Status)?;
    let node = own.members.iter().find(|m| m.address == address).map(|m| m.node);
    let node = node.ok_or_else(|| {
        let why = "no member of this store's cluster has this address; to list the members, run: tape cluster status --store";
        bad(&format_args!("{why} {}", store.display()))
    })?;
    let dial = Certificates::new(files)?.dial(node, id)?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| bad(&e))?;
    dial.connect(endpoint).await.map_err(away)
}

/// `command` for another host. `Greet` and `Flush` are requests to the storage of this host; they are sent as `Status`.
fn to_proto(command: Command) -> proto::Command {
    use proto::command::Command as To;
    let force = matches!(command, Command::Promote { force: true, .. } | Command::Remove { force: true, .. });
    let command = match command {
        Command::Status | Command::Greet(_) | Command::Flush => To::Status(true),
        Command::Add { node, address } => To::Add(proto::Member { node: node.0, address, is_voter: false }),
        Command::Promote { node, .. } => To::Promote(node.0),
        Command::Remove { node, .. } => To::Remove(node.0),
        Command::Transfer(node) => To::Transfer(node.0),
    };
    proto::Command { command: Some(command), force }
}

fn from_proto(report: proto::Report) -> Option<Report> {
    let role = [Role::Leader, Role::Follower, Role::Candidate, Role::Learner].into_iter().find(|r| *r as u32 == report.role)?;
    let leader = (report.leader != 0).then_some(NodeId(report.leader));
    let member = |m: proto::Member| Member { node: NodeId(m.node), address: m.address, is_voter: m.is_voter };
    let progress = |p: proto::Progress| Progress {
        node: NodeId(p.node),
        matched: p.matched,
        is_active: p.is_active,
        lag_records: p.lag_records,
        lag_bytes: p.lag_bytes,
        lag_ns: p.lag_ns,
        is_behind_log: p.is_behind_log,
        needs_snapshot: p.needs_snapshot,
    };
    Some(Report {
        node: NodeId(report.node),
        generation: report.generation,
        state: State {
            term: report.term,
            role,
            leader,
            last: report.last,
            last_term: report.last_term,
            committed: report.committed,
        },
        members: report.members.into_iter().map(member).collect(),
        records: [report.appended_lsn, report.durable_lsn, report.committed_lsn],
        progress: report.progress.into_iter().map(progress).collect(),
        is_lossy: report.is_lossy,
        needs_snapshot: report.needs_snapshot,
        is_mute: report.is_mute,
        waits: report.waits,
    })
}
