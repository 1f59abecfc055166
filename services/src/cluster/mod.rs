//! Owns: `tape cluster`: initialises a cluster, queries its hosts, changes it.

pub mod certs;
pub mod demo;
pub mod install;
pub mod request;
pub mod revocation;
pub mod scrub;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Subcommand;
use tapestore::disk::RealDisk;
use tapestore::lsn::NodeId;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::cluster_admin::{NewCluster, detach, force_promote, initialise, rejoin};
use tapestore_engine::consensus::message::{Command as Request, Member, Report, Role};

use crate::exit::{Failure, INTERRUPTED, LATER, Outcome, USAGE};
use crate::output::{Format, table};
use crate::replication::tls;
use crate::stdout::{self, say};
use crate::terminal::{self, duration, thousands};
use crate::waiting::Waiting;

/// Operates a store on several hosts.
#[derive(Subcommand, Debug)]
pub enum Cluster {
    /// Initialise the store as a host of a cluster: on each host, with the same name and members, before storage starts
    Init(Init),
    /// Print a host's role, term, leader and watermarks, and on the leader the lag of the members
    Status(Target),
    /// Add a host as a member without a vote; send it to the leader
    Add(Add),
    /// Give a member a vote; waits up to 10 s until it has caught up; send it to the leader
    Promote(Change),
    /// Remove a member; send it to the leader
    Remove(Change),
    /// Transfer the lead to another member
    Transfer(Node),
    /// Make this stopped standby of a pair the leader of a new generation, after the loss of the leader. Records that only the
    /// old leader has are lost. Stop the old leader first if it still runs, or both hosts accept records
    ForcePromote(ForcePromote),
    /// Make this stopped host a standby of the leader that was promoted in its place
    Rejoin(Rejoin),
    /// Replace the damaged store of this stopped host by a snapshot of the leader's store. The old store is kept aside. A host
    /// that only lags behind gets a snapshot by itself while it runs
    #[command(alias = "fill")]
    InstallSnapshot(install::Args),
    /// Make this store a store of its own, without a cluster: after a restore from a backup of a cluster host, or after the
    /// loss of its raft.meta
    Detach,
    /// Read all records on every host and compare their checksums
    Scrub(Scrub),
    /// Print the status repeatedly
    Watch(Watch),
    /// Create a certificate authority and certificates for trials, or revoke such certificates
    Certs(certs::Args),
}

/// The host to send a request to.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Target {
    /// Send the request to the replication process at host:port instead of the storage process of --store
    #[arg(long)]
    at: Option<String>,
    #[command(flatten)]
    tls: tls::Flags,
}

/// `tape cluster init`.
#[derive(clap::Args, Debug)]
pub struct Init {
    /// Name of the cluster, the same on each host
    #[arg(long)]
    cluster: String,
    /// Node number of this host, above 0; never reuse it for another host
    #[arg(long)]
    node: u64,
    /// All hosts, this one too: number=host:port of their replication processes, separated by commas
    #[arg(long, value_delimiter = ',', required = true, value_parser = member)]
    members: Vec<Member>,
    /// Join an existing cluster. The store must be new, or restored from a backup of another host. Then run `tape cluster add`
    /// on the leader
    #[arg(long)]
    join: bool,
    /// With --join: the generation (number of forced promotions) that `tape cluster status` prints on the leader
    #[arg(long, alias = "epoch", default_value_t = 0, requires = "join")]
    generation: u64,
    /// Size of a log segment, the same on each host
    #[arg(long, value_parser = terminal::size, default_value = "64M")]
    segment_size: u64,
}

/// `tape cluster add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// The host: number=host:port of its replication process
    #[arg(value_parser = member)]
    member: Member,
    #[command(flatten)]
    target: Target,
}

/// A command with a node number.
#[derive(clap::Args, Debug)]
pub struct Node {
    /// Node number of the host
    node: u64,
    #[command(flatten)]
    target: Target,
}

/// A command that changes the voters.
#[derive(clap::Args, Debug)]
pub struct Change {
    /// Node number of the host
    node: u64,
    /// Do it even if too few of the resulting voters are up: nothing is acknowledged until a majority is
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

/// `tape cluster force-promote`.
#[derive(clap::Args, Debug)]
pub struct ForcePromote {
    /// The generation that `tape cluster status` last printed here: 0 without an earlier forced promotion
    #[arg(long, alias = "epoch")]
    generation: u64,
    /// Confirm that the old leader is stopped, or unreachable for every publisher
    #[arg(long, required = true)]
    the_leader_is_gone: bool,
}

/// `tape cluster rejoin`.
#[derive(clap::Args, Debug)]
pub struct Rejoin {
    /// The generation that `tape cluster status` prints on the leader
    #[arg(long, alias = "epoch")]
    generation: u64,
    /// The leader: number=host:port of its replication process
    #[arg(long, value_parser = member)]
    leader: Member,
}

/// `tape cluster scrub`.
#[derive(clap::Args, Debug)]
pub struct Scrub {
    /// First LSN to compare
    #[arg(long, default_value_t = 1)]
    from_lsn: u64,
    #[command(flatten)]
    target: Target,
}

/// `tape cluster watch`.
#[derive(clap::Args, Debug)]
pub struct Watch {
    /// Interval, ms
    #[arg(long, default_value_t = 1000)]
    every_ms: u64,
    /// End after this many reports
    #[arg(long)]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// How long to wait for a change of members.
const PATIENCE: Duration = Duration::from_secs(10);

fn member(text: &str) -> Result<Member, String> {
    let what = || format!("'{text}' is not number=host:port");
    let (node, address) = text.split_once('=').ok_or_else(what)?;
    let node = node.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(what)?;
    let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
    if port.is_none() {
        return Err(what());
    }
    Ok(Member { node: NodeId(node), address: address.to_owned(), is_voter: true })
}

/// Runs the command on `store`.
///
/// # Errors
/// The request or the change failed.
pub fn run(store: &Path, command: &Cluster, format: Format) -> Outcome {
    match command {
        Cluster::Init(args) => init(store, args, format),
        Cluster::Status(target) => show(&request::send(store, target, Request::Status)?, format),
        Cluster::Add(args) => {
            let Member { node, address, .. } = args.member.clone();
            change(store, &args.target, Request::Add { node, address }, format, |r| r.members.iter().any(|m| m.node == node))
        }
        Cluster::Promote(args) => {
            wait_for(store, &args.target, NodeId(args.node))?;
            let votes = |r: &Report| r.members.iter().any(|m| m.node.0 == args.node && m.is_voter);
            change(store, &args.target, Request::Promote { node: NodeId(args.node), force: args.force }, format, votes)
        }
        Cluster::Remove(args) => {
            let is_gone = |r: &Report| r.members.iter().all(|m| m.node.0 != args.node);
            change(store, &args.target, Request::Remove { node: NodeId(args.node), force: args.force }, format, is_gone)
        }
        Cluster::Transfer(args) => {
            let leads = |r: &Report| r.state.leader == Some(NodeId(args.node));
            change(store, &args.target, Request::Transfer(NodeId(args.node)), format, leads)
        }
        Cluster::ForcePromote(args) => {
            let meta = force_promote(&RealDisk, store, args.generation)?;
            if format.json {
                return json(store, meta.node, meta.generation);
            }
            say(format!(
                "node {} will lead alone: generation {}, term {}; next: tape-storage --store {}",
                meta.node,
                meta.generation,
                meta.term,
                store.display()
            ));
            say("to make the old leader a standby, with its storage stopped:".to_owned());
            say(format!("  tape cluster rejoin --generation {} --leader {}=HOST:PORT   # there", meta.generation, meta.node));
            say("  tape cluster add NUMBER=HOST:PORT   # here".to_owned());
            Ok(())
        }
        Cluster::Rejoin(args) => {
            let meta = rejoin(&RealDisk, store, args.generation, &args.leader)?;
            let leader = args.leader.node;
            if format.json {
                return json(store, meta.node, meta.generation);
            }
            say(format!("node {} will be a standby of node {leader}: generation {}", meta.node, meta.generation));
            say(format!("if node {leader} does not list it as a member, run there: tape cluster add {}=HOST:PORT", meta.node));
            Ok(())
        }
        Cluster::InstallSnapshot(args) => install::run(store, args, format),
        Cluster::Detach => {
            detach(&RealDisk, store)?;
            if format.json {
                say(serde_json::json!({ "store": store.display().to_string() }));
                return Ok(());
            }
            say(format!("{} is a store of its own now; next: tape-storage --store {0}", store.display()));
            Ok(())
        }
        Cluster::Scrub(args) => scrub::run(store, args, format),
        Cluster::Watch(args) => watch(store, args, format),
        Cluster::Certs(args) => certs::run(store, args, format),
    }
}

/// Prints what a change made of the store of this host.
fn json(store: &Path, node: NodeId, generation: u64) -> Outcome {
    say(serde_json::json!({ "store": store.display().to_string(), "node": node.0, "generation": generation }));
    Ok(())
}

fn init(store: &Path, args: &Init, format: Format) -> Outcome {
    let new_cluster = NewCluster {
        cluster: args.cluster.clone(),
        node: NodeId(args.node),
        members: args.members.clone(),
        segment_size: args.segment_size,
        joins: args.join,
        generation: args.generation,
    };
    let id = initialise(&RealDisk, store, &new_cluster, HostClock.wall())?;
    if format.json {
        say(serde_json::json!({
            "store": store.display().to_string(), "cluster": args.cluster, "node": args.node, "identity": format!("{id:032x}"),
        }));
        return Ok(());
    }
    say(format!("{} is node {} of cluster '{}', identity {id:032x}", store.display(), args.node, args.cluster));
    let own = args.members.iter().find(|m| m.node.0 == args.node).map_or("", |m| m.address.as_str());
    say("next, on this host:".to_owned());
    say(format!("  tape-storage --store {}", store.display()));
    say(format!("  tape-replication --store {}   # listens on {own}", store.display()));
    Ok(())
}

/// Waits until `node` has nearly all of the log, because the leader refuses the promotion before. A follower and a leader
/// without that member have no progress to wait for; the change itself then fails.
fn wait_for(store: &Path, target: &Target, node: NodeId) -> Outcome {
    let began = Instant::now();
    let _waiting = Waiting::new(format!("node {node} to have nearly all of the log"));
    loop {
        let report = request::send(store, target, Request::Status)?;
        let is_behind = report.progress.iter().any(|p| p.node == node && !p.has_caught_up());
        if !is_behind || began.elapsed() > PATIENCE {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Requests a change and waits until `is_done`.
fn change(store: &Path, target: &Target, command: Request, format: Format, is_done: impl Fn(&Report) -> bool) -> Outcome {
    let began = Instant::now();
    let _waiting = Waiting::new("the hosts of the cluster to make the change");
    let mut report = request::send(store, target, command)?;
    while !is_done(&report) {
        if began.elapsed() > PATIENCE {
            let message =
                "requested, but not done within 10 s: a majority of the hosts may be down. Check with: tape cluster status";
            return Err(Failure::new(LATER, message));
        }
        std::thread::sleep(Duration::from_millis(20));
        report = request::send(store, target, Request::Status)?;
    }
    show(&report, format)
}

/// The name of `role`.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

fn show(report: &Report, format: Format) -> Outcome {
    let [appended, durable, committed] = report.records;
    let state = &report.state;
    if format.json {
        let members = report.members.iter().map(|m| {
            let progress = report.progress.iter().find(|p| p.node == m.node);
            serde_json::json!({
                "node": m.node.0, "address": m.address, "votes": m.is_voter,
                "behind_log": progress.map(|p| p.is_behind_log), "matched": progress.map(|p| p.matched), "active": progress.map(|p| p.is_active),
                "lag_records": progress.map(|p| p.lag_records), "lag_bytes": progress.map(|p| p.lag_bytes),
                "lag_ms": progress.filter(|p| p.lag_ns < u64::MAX).map(|p| p.lag_ns as f64 / 1e6),
            })
        });
        let object = serde_json::json!({
            "node": report.node.0, "role": role(state.role), "term": state.term, "generation": report.generation,
            "leader": state.leader.map(|l| l.0), "last_frame": state.last, "committed_frame": state.committed,
            "flush": if report.is_lossy { "interval" } else { "always" }, "needs_snapshot": report.needs_snapshot, "votes_again_later": report.is_mute, "waits": report.waits, "last_term": state.last_term,
            "appended": appended, "durable": durable, "committed": committed, "members": members.collect::<Vec<_>>(),
        });
        say(object);
        return Ok(());
    }
    let leader = state.leader.map_or_else(|| "leader unknown".to_owned(), |l| format!("leader: node {l}"));
    say(format!("node {}: {} in term {}, generation {}; {leader}", report.node, role(state.role), state.term, report.generation));
    say(format!(
        "  records: {} appended, {} durable here, {} committed; frames: {} of {} committed, last frame of term {}",
        thousands(appended),
        thousands(durable),
        thousands(committed),
        thousands(state.committed),
        thousands(state.last),
        state.last_term
    ));
    if report.is_lossy {
        say("  flush = \"interval\", lossy: committed records are in the memory of most hosts, and on their disks after the sync interval"
            .to_owned());
    }
    if report.needs_snapshot {
        let until = if report.is_mute { ", and does not vote until it is installed" } else { "" };
        say(format!("  waits for a snapshot of the leader's store{until}"));
    }
    if !report.waits.is_empty() {
        say(format!("  {}", report.waits));
    }
    let mut t = table(&["node", "address", "votes", "active", "lag records", "lag bytes", "lag"]);
    for m in &report.members {
        let progress = report.progress.iter().find(|p| p.node == m.node);
        let of = |f: &dyn Fn(&tapestore_engine::consensus::message::Progress) -> String| progress.map_or_else(String::new, f);
        t.add_row([
            m.node.to_string(),
            m.address.clone(),
            if m.is_voter { "yes" } else { "no" }.to_owned(),
            of(&|p| match (p.is_active, p.is_behind_log || p.needs_snapshot) {
                (_, true) => "needs snapshot".to_owned(),
                (true, _) => "yes".to_owned(),
                (false, _) => "no".to_owned(),
            }),
            of(&|p| thousands(p.lag_records)),
            of(&|p| thousands(p.lag_bytes)),
            of(&|p| if p.lag_ns == u64::MAX { "unknown".to_owned() } else { duration(p.lag_ns) }),
        ]);
    }
    say(t);
    if report.progress.is_empty() && state.role != Role::Leader {
        say("  the leader reports the lag of the members: run the command there, or with --at".to_owned());
    }
    Ok(())
}

fn watch(store: &Path, args: &Watch, format: Format) -> Outcome {
    if args.every_ms == 0 {
        return Err(Failure::new(USAGE, "--every-ms must be above 0"));
    }
    let stop = terminal::stop_flag()?;
    let mut looks = 0;
    while !terminal::is_raised(&stop) {
        match request::send(store, &args.target, Request::Status) {
            Ok(report) => show(&report, format)?,
            // The signal may be what ended the request.
            Err(_) if terminal::is_raised(&stop) => break,
            // An unreachable host is printed, not an end of watching.
            Err(failure) if format.json => say(serde_json::json!({ "error": failure.to_string() })),
            Err(failure) => say(failure),
        }
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        pause(Duration::from_millis(args.every_ms), &stop)?;
    }
    match args.count {
        Some(count) => Err(Failure::new(INTERRUPTED, format!("interrupted: {looks} of {count} reports are printed"))),
        None => Ok(()),
    }
}

/// Waits for `time`, or until `stop` is raised.
///
/// # Errors
/// Standard output is closed, or cannot be written.
fn pause(time: Duration, stop: &AtomicBool) -> Outcome {
    let began = Instant::now();
    loop {
        stdout::check()?;
        let left = time.saturating_sub(began.elapsed());
        if left.is_zero() || terminal::is_raised(stop) {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
