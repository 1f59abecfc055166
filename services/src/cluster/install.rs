//! Owns: `tape cluster install-snapshot`: replaces a host's damaged store by a snapshot of the leader's.

use std::path::Path;

use tapestore::disk::{Disk, RealDisk};
use tapestore::error::Error;
use tapestore_engine::consensus::message::Member;
use tapestore_engine::consensus::{MemberEntry, meta};
use tapestore_engine::snapshot::install;

use crate::backup::Bar;
use crate::exit::{Failure, Outcome, UNAVAILABLE, USAGE};
use crate::output::Format;
use crate::replication::certificates::Certificates;
use crate::replication::{install as snapshot, tls};
use crate::stdout::say;
use crate::terminal::thousands;

/// The reason why a cluster host gets a snapshot instead of a repair of its log, after the command.
pub const REPLACE: &str = "with the address of the leader's replication process: a snapshot of the leader replaces this store, which \
                           is kept aside. A host must not vote with a log that lacks records that it acknowledged";

/// `tape cluster install-snapshot`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The leader's replication process, host:port; with its node number, number=host:port, if it is not in this host's
    /// member list
    #[arg(long)]
    from: String,
    #[command(flatten)]
    tls: tls::Flags,
}

/// Runs the command on `store`.
///
/// # Errors
/// The store is not of a cluster; the leader is unknown or unreachable; the snapshot cannot be installed.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let own = meta::read(&RealDisk, store)?.ok_or_else(|| {
        let reason =
            "is not a host of a cluster. Run tape cluster init --join with a new store; it then gets a snapshot by itself";
        Failure::new(USAGE, format!("{} {reason}", store.display()))
    })?;
    let certificates = args.tls.files().map(Certificates::new).transpose()?;
    let leader = other_host(&own, &args.from)?;
    let wanted = snapshot::Wanted { store: store.to_path_buf(), cluster: own.store_id, node: own.node, leader, certificates };
    // Locked from before the request to the leader until its snapshot is in place: nothing is acknowledged here meanwhile.
    let lock = RealDisk.lock(&store.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: store.to_path_buf() })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut bar = Bar::default();
    let fetched = runtime.block_on(snapshot::fetch(&wanted, &mut |progress| bar.show(progress)));
    fetched.map_err(|why| Failure::new(UNAVAILABLE, format!("{why}. Fetched files stay; run the command again to resume")))?;
    let installed = {
        let world = tapestore_engine::World::of_this_host()?;
        install::install_held(store, &world.disk, world.clock.wall(), true, lock.as_ref())
    }?;
    if format.json {
        say(serde_json::json!({
            "store": store.display().to_string(), "files": installed.files, "last_lsn": installed.last.0,
            "kept_in": installed.kept_in.map(|kept| kept.display().to_string()),
        }));
        return Ok(());
    }
    let (files, last) = (installed.files, thousands(installed.last.0));
    say(format!("{} has {files} SSTables and the records up to {last} of node {}", store.display(), wanted.leader.node));
    if let Some(kept) = installed.kept_in {
        say(format!("the old store is kept in {}; remove it when it is no longer needed", kept.display()));
    }
    say(format!("next: tape-storage --store {}", store.display()));
    Ok(())
}

/// The other host of the cluster of `own` at the address `from`, or with the number before it.
///
/// # Errors
/// No other member has that address.
pub fn other_host(own: &meta::Meta, from: &str) -> Outcome<Member> {
    // The host's certificate names its node number.
    let named = super::member(from).ok().filter(|m| m.node != own.node);
    let listed = own.members.iter().find(|s| s.address == from && s.node != own.node);
    named.or_else(|| listed.map(MemberEntry::member)).ok_or_else(|| {
        let others = own.members.iter().filter(|s| s.node != own.node).map(|s| format!("{}={}", s.node, s.address));
        let others = others.collect::<Vec<_>>().join(", ");
        let why = "Name an unlisted host with its number: N=HOST:PORT";
        Failure::new(USAGE, format!("no other member has the address {from}; the members are {others}. {why}"))
    })
}
