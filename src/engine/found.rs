//! Owns: how a store comes to be in a cluster.
//!
//! What must hold: the hosts of a cluster that is founded have the same store identity and segment size, and know the
//! same members, or do not start: they would never agree.

use std::path::Path;

use crate::consensus::MetaFile;
use crate::consensus::format::{LEARNER, Seat, VOTER};
use crate::consensus::message::Member;
use crate::consensus::meta::{self, Meta};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::lsn::NodeId;
use crate::time::Ts;
use crate::wal;

/// What a host is told of the cluster that it is to be in.
#[derive(Clone, Debug)]
pub struct Founding {
    /// Name of the cluster, from which the identity of its store follows.
    pub cluster: String,
    /// This host's number.
    pub node: NodeId,
    /// All hosts, this one too; the same list on each.
    pub members: Vec<Member>,
    /// Bytes of a log segment, for a new store; the same on each.
    pub segment_size: u64,
    /// Whether the cluster is there already, and this host joins it: it holds the log and does not vote until it is told
    /// otherwise. Its store is new, or restored from a backup of another host's.
    pub joins: bool,
}

/// The identity of the store of the cluster called `name`.
pub fn store_id(name: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(format!("tapestore cluster {name}").as_bytes())
}

/// Makes the store in `dir` a host of a cluster; the store's identity. A store that exists already, and is in no cluster,
/// becomes the first host of one: it is then the only member, and others are added when it serves.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`]: what cannot be; [`Error::Io`].
pub fn found(disk: &dyn Disk, dir: &Path, founding: &Founding, now: Ts) -> Result<u128> {
    let invalid = |reason: String| Err(Error::invalid("cluster", reason));
    disk.create_dir(dir)?;
    let _lock = disk.lock(&dir.join("LOCK"))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    if founding.cluster.is_empty() || founding.members.iter().all(|m| m.node != founding.node) {
        return invalid(format!("it has a name, and node {} is among the members", founding.node));
    }
    if founding.members.iter().any(|m| m.address.is_empty()) {
        return invalid("each member has an address, host:port".to_owned());
    }
    let known = wal::meta::read(disk, dir)?;
    let raft = meta::read(disk, dir)?;
    if raft.as_ref().is_some_and(|m| !m.is_alone() || !m.seats.iter().all(|s| s.address.is_empty())) {
        return invalid(format!("{} is in a cluster already; `tape cluster status` shows it", dir.display()));
    }
    if known.is_some() && founding.members.len() > 1 && !founding.joins {
        let reason = "holds a store already: make it the first host of the cluster, with itself as the only member, and add the others when it serves; or, if it is restored from a backup of another host of the cluster, say that it joins";
        return invalid(format!("{} {reason}", dir.display()));
    }
    let id = known.map_or_else(|| store_id(&founding.cluster), |k| k.store_id);
    wal::create_if_absent(disk, dir, wal::Create { store_id: id, segment_size: founding.segment_size, now })?;
    let part = |m: &Member| if founding.joins && m.node == founding.node { LEARNER } else { VOTER };
    let seat = |m: &Member| Seat { node: m.node, part: part(m), address: m.address.clone() };
    let seats = founding.members.iter().map(seat).collect();
    match raft {
        None => {
            let term = known.map_or(0, |k| u64::from(k.term.0));
            MetaFile::create(disk, dir, &Meta { node: founding.node, seats, ..Meta::alone(id, term) })?;
        }
        Some(before) => {
            let changed = Meta { node: founding.node, seats, ..before };
            changed.check()?;
            MetaFile::open(disk, dir)?.update(changed)?;
        }
    }
    disk.sync_dir(dir)?;
    Ok(id)
}
