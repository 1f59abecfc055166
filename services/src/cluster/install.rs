//! Owns: `tape cluster fill`: a host whose files are damaged gets a copy of the leader's store.

use std::path::{Path, PathBuf};

use tapestore_engine::consensus::meta;
use tapestore::disk::{Disk, RealDisk};
use tapestore_engine::snapshot::install;
use tapestore::error::Error;

use crate::backup::Bar;
use crate::exit::{Failure, Outcome, UNAVAILABLE, USAGE};
use crate::replication::{install as copy, tls};
use crate::terminal::{say, thousands};

/// `tape cluster fill`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the replication process of the host that leads listens, host:port; with its number, number=host:port, if it
    /// is no member that this host knows of
    #[arg(long)]
    from: String,
    /// This host's certificate, PEM
    #[arg(long, requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long)]
    tls_key: Option<PathBuf>,
    /// The authority that signs the hosts' certificates, PEM
    #[arg(long)]
    tls_ca: Option<PathBuf>,
}

/// Runs the command on `store`.
///
/// # Errors
/// Why it failed.
pub fn run(store: &Path, args: &Args) -> Outcome {
    let own = meta::read(&RealDisk, store)?.ok_or_else(|| {
        let reason = "is no host of a cluster: `tape cluster init --join` makes a new one, which is filled by itself";
        Failure::new(USAGE, format!("{} {reason}", store.display()))
    })?;
    let tls = match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
        (Some(cert), Some(key), Some(ca)) => Some(tls::Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() }),
        _ => None,
    };
    // Its name is in the certificate of that host.
    let named = super::member(&args.from).ok();
    let known = own.members.iter().find(|s| s.address == args.from && s.node != own.node);
    let known = named.or_else(|| known.map(tapestore_engine::consensus::MemberEntry::member));
    let leader = known.ok_or_else(|| {
        let others = own.members.iter().filter(|s| s.node != own.node).map(|s| format!("{}={}", s.node, s.address));
        Failure::new(
            USAGE,
            format!("no other member has the address {}; there are {}. The number of one that is not known here goes before it: N=HOST:PORT", args.from, others.collect::<Vec<_>>().join(", ")),
        )
    })?;
    let wanted = copy::Wanted { store: store.to_path_buf(), cluster: own.store_id, node: own.node, leader, tls };
    // Nothing is acknowledged here from before the leader is asked until its copy is in place.
    let lock = RealDisk.lock(&store.join("LOCK"))?.ok_or_else(|| Error::Locked { path: store.to_path_buf() })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut bar = Bar::default();
    let fetched = runtime.block_on(copy::fetch(&wanted, &mut |progress| bar.show(progress)));
    fetched.map_err(|why| Failure::new(UNAVAILABLE, format!("{why}. What has been fetched stays; run the command again")))?;
    let filled = {
        let world = crate::storage::world()?;
        install::install_held(store, &world.disk, world.clock.wall(), true, lock.as_ref())
    }?;
    let (files, last) = (filled.files, thousands(filled.last.0));
    say(format!(
        "{} holds {files} SSTables and records up to {last}, as node {} has them",
        store.display(),
        wanted.leader.node
    ));
    if let Some(kept) = filled.kept_in {
        say(format!("what was here is in {}: remove it when it is not needed any more", kept.display()));
    }
    say(format!("next: tape-storage --store {}", store.display()));
    Ok(())
}
