//! Owns: `tape cluster`: new_cluster a cluster, asking its hosts, changing it.

pub mod ask;
pub mod certs;
pub mod demo;
pub mod install;
pub mod scrub;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use tapestore_engine::consensus::message::{Command as Asked, Member, Report, Role};
use tapestore::disk::RealDisk;
use tapestore_engine::cluster_admin::{NewCluster, detach, force_promote, initialise, rejoin};
use tapestore::lsn::NodeId;
use tapestore::time::{Clock, HostClock};

use crate::exit::{Failure, LATER, Outcome, USAGE};
use crate::output::{Format, table};
use crate::terminal::{self, duration, say, thousands};

/// Keeps a store on several hosts.
#[derive(Subcommand, Debug)]
pub enum Cluster {
    /// Make the store a host of a cluster: once on each host, with the same name and members, before storage starts
    Init(Init),
    /// How this host, or another one, stands: role, term, leader, watermarks, how far the others are
    Status(Far),
    /// Make a host a member that holds the log and does not vote; to be asked of the leader
    Add(Add),
    /// Let a member that has caught up vote
    Promote(Change),
    /// Make a host a member no longer
    Remove(Change),
    /// Hand the lead over
    Transfer(Node),
    /// Of a pair whose leader is gone: make this host, whose storage is stopped, the one that leads. What only the old
    /// leader had is lost; if it still runs somewhere, stop it first, or both take records in
    ForcePromote(ForcePromote),
    /// Make this host, whose storage is stopped, a standby of the one that was promoted in its place
    Rejoin(Rejoin),
    /// Fill this host, whose storage is stopped, with a copy of the leader's store: when its own files are damaged. What is
    /// here is kept aside. A host that only lags behind is filled by itself, while it serves
    #[command(alias = "fill")]
    InstallSnapshot(install::Args),
    /// Make this store, which was restored from a backup of a host of a cluster or has lost its raft.meta, a store of its
    /// own: storage serves it alone, and no other host counts on it
    Detach,
    /// Read all records on every host and compare them
    Scrub(Scrub),
    /// Status again and again
    Watch(Watch),
    /// A certificate authority and certificates for trials
    Certs(certs::Args),
}

/// Which host is asked.
#[derive(clap::Args, Clone, Debug)]
pub struct Far {
    /// Ask the host whose replication process listens here, host:port, instead of the one with --store
    #[arg(long)]
    at: Option<String>,
    /// An operator's certificate, PEM
    #[arg(long, requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long)]
    tls_key: Option<PathBuf>,
    /// The authority that signs the hosts' certificates, PEM
    #[arg(long)]
    tls_ca: Option<PathBuf>,
}

/// `tape cluster init`.
#[derive(clap::Args, Debug)]
pub struct Init {
    /// Name of the cluster: the same on each host
    #[arg(long)]
    cluster: String,
    /// This host's number, above 0; never used again for another host
    #[arg(long)]
    node: u64,
    /// All hosts, this one too, as number=host:port of their replication processes, in a list with commas
    #[arg(long, value_delimiter = ',', required = true, value_parser = member)]
    members: Vec<Member>,
    /// The cluster is there already, and this host joins it: its store is new, or restored from a backup of another
    /// host's; then `tape cluster add` on the leader makes it a member
    #[arg(long)]
    join: bool,
    /// With --join: how many forced promotions there were, as `tape cluster status` shows it on the leader
    #[arg(long, alias = "epoch", default_value_t = 0, requires = "join")]
    generation: u64,
    /// Bytes of a log segment, the same on each host
    #[arg(long, value_parser = terminal::size, default_value = "64M")]
    segment_size: u64,
}

/// `tape cluster add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// The host, as number=host:port of its replication process
    #[arg(value_parser = member)]
    member: Member,
    #[command(flatten)]
    far: Far,
}

/// A command that names a host.
#[derive(clap::Args, Debug)]
pub struct Node {
    /// The host's number
    node: u64,
    #[command(flatten)]
    far: Far,
}

/// A command that changes which hosts vote.
#[derive(clap::Args, Debug)]
pub struct Change {
    /// The host's number
    node: u64,
    /// Even if too few of the hosts that vote then are there: nothing is acknowledged until more of them are
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    far: Far,
}

/// `tape cluster force-promote`.
#[derive(clap::Args, Debug)]
pub struct ForcePromote {
    /// The generation that this host is of, as `tape cluster status` showed it last: 0 if nobody was promoted by force yet
    #[arg(long, alias = "epoch")]
    generation: u64,
    /// The old leader is stopped or cannot be reached by any publisher
    #[arg(long, required = true)]
    the_leader_is_gone: bool,
}

/// `tape cluster rejoin`.
#[derive(clap::Args, Debug)]
pub struct Rejoin {
    /// The generation of the host that leads now
    #[arg(long, alias = "epoch")]
    generation: u64,
    /// That host, as number=host:port of its replication process
    #[arg(long, value_parser = member)]
    leader: Member,
}

/// `tape cluster scrub`.
#[derive(clap::Args, Debug)]
pub struct Scrub {
    /// From this record on
    #[arg(long, default_value_t = 1)]
    from_lsn: u64,
    #[command(flatten)]
    far: Far,
}

/// `tape cluster watch`.
#[derive(clap::Args, Debug)]
pub struct Watch {
    /// Pause between two looks, ms
    #[arg(long, default_value_t = 1000)]
    every_ms: u64,
    /// End after so many looks
    #[arg(long)]
    count: Option<u64>,
    #[command(flatten)]
    far: Far,
}

/// How long a change of members is waited for.
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
/// Why it failed.
pub fn run(store: &Path, command: &Cluster, format: Format) -> Outcome {
    match command {
        Cluster::Init(args) => init(store, args),
        Cluster::Status(far) => show(&ask::ask(store, far, Asked::Status)?, format),
        Cluster::Add(args) => {
            let Member { node, address, .. } = args.member.clone();
            change(store, &args.far, Asked::Add { node, address }, format, |r| r.members.iter().any(|m| m.node == node))
        }
        Cluster::Promote(args) => {
            wait_for(store, &args.far, NodeId(args.node))?;
            let votes = |r: &Report| r.members.iter().any(|m| m.node.0 == args.node && m.is_voter);
            change(store, &args.far, Asked::Promote { node: NodeId(args.node), force: args.force }, format, votes)
        }
        Cluster::Remove(args) => {
            let is_gone = |r: &Report| r.members.iter().all(|m| m.node.0 != args.node);
            change(store, &args.far, Asked::Remove { node: NodeId(args.node), force: args.force }, format, is_gone)
        }
        Cluster::Transfer(args) => {
            let leads = |r: &Report| r.state.leader == Some(NodeId(args.node));
            change(store, &args.far, Asked::Transfer(NodeId(args.node)), format, leads)
        }
        Cluster::ForcePromote(args) => {
            let meta = force_promote(&RealDisk, store, args.generation)?;
            say(format!("node {} leads alone when it is started: generation {}, term {}", meta.node, meta.generation, meta.term));
            say("the old leader rejoins, while its storage is stopped, by:".to_owned());
            say(format!("  tape cluster rejoin --generation {} --leader {}=HOST:PORT   # there", meta.generation, meta.node));
            say("  tape cluster add NUMBER=HOST:PORT   # here".to_owned());
            Ok(())
        }
        Cluster::Rejoin(args) => {
            let meta = rejoin(&RealDisk, store, args.generation, &args.leader)?;
            let leader = args.leader.node;
            say(format!("node {} is a standby of node {leader} when it is started: generation {}", meta.node, meta.generation));
            say(format!(
                "if node {leader} does not count it among its members yet, there: tape cluster add {}=HOST:PORT",
                meta.node
            ));
            Ok(())
        }
        Cluster::InstallSnapshot(args) => install::run(store, args),
        Cluster::Detach => {
            detach(&RealDisk, store)?;
            say(format!("{} is a store of its own; next: tape-storage --store {0}", store.display()));
            Ok(())
        }
        Cluster::Scrub(args) => scrub::run(store, args, format),
        Cluster::Watch(args) => watch(store, args, format),
        Cluster::Certs(args) => certs::run(store, args),
    }
}

fn init(store: &Path, args: &Init) -> Outcome {
    let new_cluster = NewCluster {
        cluster: args.cluster.clone(),
        node: NodeId(args.node),
        members: args.members.clone(),
        segment_size: args.segment_size,
        joins: args.join,
        generation: args.generation,
    };
    let id = initialise(&RealDisk, store, &new_cluster, HostClock.wall())?;
    say(format!("{} is node {} of cluster '{}', identity {id:032x}", store.display(), args.node, args.cluster));
    let own = args.members.iter().find(|m| m.node.0 == args.node).map_or("", |m| m.address.as_str());
    say("next, on this host:".to_owned());
    say(format!("  tape-storage --store {}", store.display()));
    say(format!("  tape-replication --store {}   # listens at {own}", store.display()));
    Ok(())
}

/// Waits until `node` has nearly all of the log: sooner the leader gives it no vote. Who asks a host that does not lead, or
/// of a node that is no member, hears it from the change itself.
fn wait_for(store: &Path, far: &Far, node: NodeId) -> Outcome {
    let began = std::time::Instant::now();
    loop {
        let report = ask::ask(store, far, Asked::Status)?;
        let is_behind = report.progress.iter().any(|p| p.node == node && !p.has_caught_up());
        if !is_behind || began.elapsed() > PATIENCE {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks for a change, and waits until `is_done` says that it is.
fn change(store: &Path, far: &Far, command: Asked, format: Format, is_done: impl Fn(&Report) -> bool) -> Outcome {
    let began = std::time::Instant::now();
    let mut report = ask::ask(store, far, command)?;
    while !is_done(&report) {
        if began.elapsed() > PATIENCE {
            let message = "it was asked for and is not done: a majority of the hosts may be away. `tape cluster status` shows it";
            return Err(Failure::new(LATER, message));
        }
        std::thread::sleep(Duration::from_millis(20));
        report = ask::ask(store, far, Asked::Status)?;
    }
    show(&report, format)
}

fn role(role: Role) -> &'static str {
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
                "snapshot_needed": progress.map(|p| p.is_behind_log), "matched": progress.map(|p| p.matched), "active": progress.map(|p| p.is_active),
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
    let leader = state.leader.map_or_else(|| "nobody that it knows".to_owned(), |l| format!("node {l}"));
    say(format!("node {} is {} in term {}, generation {}; {leader} leads", report.node, role(state.role), state.term, report.generation));
    say(format!(
        "  records: {} appended, {} durable here, {} committed; frames: {} of {} committed, the last of term {}",
        thousands(appended),
        thousands(durable),
        thousands(committed),
        thousands(state.committed),
        thousands(state.last),
        state.last_term
    ));
    if report.is_lossy {
        say("  flush = \"interval\", lossy: what is committed is in the memory of most hosts, and on their disks a moment later"
            .to_owned());
    }
    if report.needs_snapshot {
        let until = if report.is_mute { ", and does not vote until it has it" } else { "" };
        say(format!("  it waits for a copy of the leader's store{until}"));
    }
    if !report.waits.is_empty() {
        say(format!("  {}", report.waits));
    }
    let mut t = table(&["node", "address", "votes", "heard of", "lag records", "lag bytes", "lag"]);
    for m in &report.members {
        let progress = report.progress.iter().find(|p| p.node == m.node);
        let of = |f: &dyn Fn(&tapestore_engine::consensus::message::Progress) -> String| progress.map_or_else(String::new, f);
        t.add_row([
            m.node.to_string(),
            m.address.clone(),
            if m.is_voter { "yes" } else { "no" }.to_owned(),
            of(&|p| match (p.is_active, p.is_behind_log || p.needs_snapshot) {
                (_, true) => "is being filled".to_owned(),
                (true, _) => "yes".to_owned(),
                (false, _) => "no".to_owned(),
            }),
            of(&|p| thousands(p.lag_records)),
            of(&|p| thousands(p.lag_bytes)),
            of(&|p| if p.lag_ns == u64::MAX { "long".to_owned() } else { duration(p.lag_ns) }),
        ]);
    }
    say(t);
    if report.progress.is_empty() && state.role != Role::Leader {
        say("  how far the others are is known to the leader: ask there".to_owned());
    }
    Ok(())
}

fn watch(store: &Path, args: &Watch, format: Format) -> Outcome {
    if args.every_ms == 0 {
        return Err(Failure::new(USAGE, "--every-ms is above 0"));
    }
    let mut looks = 0;
    loop {
        match ask::ask(store, &args.far, Asked::Status) {
            Ok(report) => show(&report, format)?,
            // A host that is away is what one watches for.
            Err(failure) => say(failure),
        }
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(args.every_ms));
    }
}
