//! Owns: asking a host of a cluster: the storage process of this host over its socket, another one over the network.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tapestore_engine::consensus::message::{Command, Member, Message, Progress, Report, Role, State};
use tapestore::lsn::NodeId;
use tapestore::shm::bell::Bells;
use tapestore::shm::run_dir::RunDir;
use tonic::transport::{Channel, Endpoint};

use super::Far;
use crate::exit::{DATA, Failure, Outcome, UNAVAILABLE, USAGE};
use crate::replication::proto::{self, admin_client::AdminClient};
use crate::replication::{local, tls};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the host that listens at `address` has of the records `first` to `last`, stripe after stripe.
///
/// # Errors
/// That it is not there, or cannot read them.
pub fn read(store: &Path, far: &Far, address: &str, first: u64, last: u64) -> Outcome<Vec<proto::Digest>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = tokio::time::timeout(PATIENCE, connect(store, far, address)).await;
        let channel = channel.map_err(|_| Failure::new(UNAVAILABLE, format!("{address} does not answer")))??;
        let refused = |s: tonic::Status| Failure::new(DATA, format!("{address}: {}", s.message()));
        let mut parts = AdminClient::new(channel).read(proto::Range { first, last }).await.map_err(refused)?.into_inner();
        let mut digests = Vec::new();
        while let Some(part) = parts.message().await.map_err(refused)? {
            digests.push(part);
        }
        Ok(digests)
    })
}

/// Asks the host that `far` names, or the one with `store`.
///
/// # Errors
/// That it is not there, or why it refuses.
pub fn ask(store: &Path, far: &Far, command: Command) -> Outcome<Report> {
    match &far.at {
        Some(address) => from_afar(store, far, address, command),
        None => here(store, command),
    }
}

fn unavailable(store: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(UNAVAILABLE, format!("no storage process serves {}: {why}; start tape-storage", store.display()))
}

fn here(store: &Path, command: Command) -> Outcome<Report> {
    let run_dir = RunDir::find(store)?;
    let mut stream = UnixStream::connect(run_dir.cluster_socket()).map_err(|e| unavailable(store, &e))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let bells = Bells::open(&run_dir.bells())?;
    stream.write_all(&Message::Command { id: 1, command }.encode()?)?;
    bells.post();
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let len = stream.read(&mut chunk).map_err(|e| unavailable(store, &e))?;
        if len == 0 {
            return Err(unavailable(store, &"it has hung up"));
        }
        received.extend_from_slice(chunk.get(..len).unwrap_or(&[]));
        if let Some((Message::Answer { result, .. }, _)) = Message::decode(&received)? {
            return result.map_err(|why| Failure::new(USAGE, why));
        }
    }
}

fn from_afar(store: &Path, far: &Far, address: &str, command: Command) -> Outcome<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = tokio::time::timeout(PATIENCE, connect(store, far, address)).await;
        let channel = channel.map_err(|_| Failure::new(UNAVAILABLE, format!("{address} does not answer")))??;
        let answer = tokio::time::timeout(PATIENCE, AdminClient::new(channel).ask(to_proto(command))).await;
        let answer = answer.map_err(|_| Failure::new(UNAVAILABLE, format!("{address} does not answer")))?;
        let report = answer.map_err(|s| Failure::new(USAGE, format!("{address} refuses: {}", s.message())))?;
        from_proto(report.into_inner()).ok_or_else(|| Failure::new(DATA, format!("{address} says what makes no sense")))
    })
}

async fn connect(store: &Path, far: &Far, address: &str) -> Outcome<Channel> {
    let bad = |e: &dyn std::fmt::Display| Failure::new(USAGE, format!("{address}: {e}"));
    let away = |e: tonic::transport::Error| Failure::new(UNAVAILABLE, format!("{address}: {}", tls::why(&e)));
    let id = tapestore::wal::meta::read(&tapestore::disk::RealDisk, store)?.map_or(0, |m| m.store_id);
    let (Some(cert), Some(key), Some(ca)) = (&far.tls_cert, &far.tls_key, &far.tls_ca) else {
        tls::check_plain(address, false)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| bad(&e))?;
        // Which host that is, is known if this one knows the members; else whichever answers is asked.
        let known = here(store, Command::Status).ok().and_then(|r| r.members.into_iter().find(|m| m.address == address));
        let host = known.map(|m| local::Host { node: m.node, cluster: id });
        let wanted = local::Wanted { host, store: store.to_path_buf() };
        return local::connect(endpoint, address.to_owned(), wanted).await.map_err(away);
    };
    // Which host that is, is asked of the one here that knows the members.
    let known = here(store, Command::Status)?;
    let node = known.members.iter().find(|m| m.address == address).map(|m| m.node);
    let node = node.ok_or_else(|| bad(&"no member of the cluster that this store is in has this address"))?;
    let files = tls::Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() };
    let config = files.client(node, id)?;
    let endpoint = Endpoint::from_shared(format!("https://{address}")).and_then(|e| e.tls_config(config)).map_err(|e| bad(&e))?;
    endpoint.connect().await.map_err(away)
}

/// `command` as it is asked from afar; what only a replication process asks of its own storage is asked as status.
fn to_proto(command: Command) -> proto::Command {
    use proto::command::Command as To;
    let force = matches!(command, Command::Promote { force: true, .. } | Command::Remove { force: true, .. });
    let command = match command {
        Command::Status | Command::Greet(_) => To::Status(true),
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
