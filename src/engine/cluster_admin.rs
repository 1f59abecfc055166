//! Owns: how a store becomes a host of a cluster, and what an operator decides by hand for one.
//!
//! What must hold: the hosts of a new cluster have the same store identity, segment size and members, or do not start: they
//! would never agree. `store.meta` records that a store is of a cluster before `raft.meta` records its members, so that a
//! missing `raft.meta` is noticed.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::path::Path;

use crate::consensus::MetaFile;
use crate::consensus::format::{LEARNER, MemberEntry, NAME_MAX, VOTER};
use crate::consensus::message::Member;
use crate::consensus::meta::{self, Meta};
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;
use tapestore::time::Ts;
use tapestore::wal;

/// A cluster that a store is to be a host of.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Name of the cluster; the identity of its store is derived from it.
    pub cluster: String,
    /// This host's number.
    pub node: NodeId,
    /// All hosts, this one included; the same list on each.
    pub members: Vec<Member>,
    /// Bytes of a log segment, for a new store; the same on each.
    pub segment_size: u64,
    /// Whether this host joins an existing cluster: it installs a snapshot of the leader's store and is a learner until it is
    /// promoted. Its store is new, or restored from a backup of another host's.
    pub joins: bool,
    /// Forced promotions that the cluster has seen, if this host joins it; 0 otherwise.
    pub generation: u64,
}

/// Returns the identity of the store of the cluster called `name`.
pub fn store_id(name: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(format!("tapestore cluster {name}").as_bytes())
}

/// Initialises the store in `dir` as a host of a cluster; returns the store's identity. A store that exists and is in no
/// cluster becomes the first host: it is the only member, and others are added while it serves.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`] if the cluster's settings contradict each other or the
/// store; [`Error::Io`].
pub fn initialise(disk: &dyn Disk, dir: &Path, new_cluster: &NewCluster, now: Ts) -> Result<u128> {
    let invalid = |reason: String| Err(Error::invalid("cluster", reason));
    disk.create_dir(dir)?;
    crate::snapshot::backup::refuse(disk, dir)?;
    let _lock = disk.lock(&dir.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    if new_cluster.cluster.is_empty() || new_cluster.members.iter().all(|m| m.node != new_cluster.node) {
        return invalid(format!("a cluster has a name, and node {} must be among the members", new_cluster.node));
    }
    if new_cluster.members.iter().any(|m| m.address.is_empty()) {
        return invalid("each member needs an address, host:port".to_owned());
    }
    let known = wal::meta::read(disk, dir)?;
    let raft = meta::read(disk, dir)?;
    if raft.as_ref().is_some_and(|m| !m.is_alone() || !m.members.iter().all(|s| s.address.is_empty())) {
        return invalid(format!("{} is in a cluster already; `tape cluster status` shows it", dir.display()));
    }
    if known.is_some_and(|k| k.in_cluster) && raft.is_none() && !new_cluster.joins {
        let reason = "is the store of a host of a cluster, or a backup of one, and has no raft.meta: its term and vote are unknown. To join the cluster: tape cluster init --join. To make it a store of its own, if no other host counts on it: tape cluster detach. If nothing was ever stored in it, remove the directory";
        return invalid(format!("{} {reason}", dir.display()));
    }
    if known.is_some() && new_cluster.members.len() > 1 && !new_cluster.joins {
        let reason = "holds a store already: initialise it as the first host of the cluster, with itself as the only member, and add the others while it serves; or, if it is restored from a backup of another host of the cluster, use tape cluster init --join";
        return invalid(format!("{} {reason}", dir.display()));
    }
    let id = known.map_or_else(|| store_id(&new_cluster.cluster), |k| k.store_id);
    wal::create_if_absent(disk, dir, wal::Create { store_id: id, segment_size: new_cluster.segment_size, now })?;
    set_in_cluster(disk, dir, true)?;
    let part = |m: &Member| if new_cluster.joins && m.node == new_cluster.node { LEARNER } else { VOTER };
    let entry = |m: &Member| MemberEntry { node: m.node, roles: part(m), address: m.address.clone() };
    let members = new_cluster.members.iter().map(entry).collect();
    let term = known.map_or(0, |k| u64::from(k.term.0));
    let before = raft.clone().unwrap_or_else(|| Meta::alone(id, term));
    let meta = Meta {
        node: new_cluster.node,
        members,
        generation: before.generation.max(new_cluster.generation),
        joins: new_cluster.joins,
        incarnation: drawn(now),
        is_fresh: !new_cluster.joins && new_cluster.members.len() > 1,
        remembers: true,
        name: if new_cluster.cluster.len() <= NAME_MAX { new_cluster.cluster.clone() } else { String::new() },
        ..before
    };
    meta.check()?;
    match raft {
        None => drop(MetaFile::create(disk, dir, &meta)?),
        Some(_) => MetaFile::open(disk, dir)?.update(meta)?,
    }
    disk.sync_dir(dir)?;
    Ok(id)
}

/// Draws a number that no other host draws.
fn drawn(now: Ts) -> u64 {
    // The system provides its random keys.
    std::collections::hash_map::RandomState::new().hash_one(now.0).max(1)
}

/// Records in `store.meta` whether the store in `dir` is of a cluster.
fn set_in_cluster(disk: &dyn Disk, dir: &Path, in_cluster: bool) -> Result<()> {
    let mut meta = wal::MetaFile::open(disk, dir)?;
    meta.update(wal::Meta { in_cluster, ..*meta.meta() })
}

/// Makes the store in `dir`, which is not served and has no `raft.meta`, a store of its own. It was restored from a backup
/// of a cluster's host, or has lost the file, and no other host counts on it.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Missing`] if there is no store; [`Error::Invalid`] if it has its
/// `raft.meta`, or is in no cluster.
pub fn detach(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let _lock = disk.lock(&dir.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    let known = wal::meta::read(disk, dir)?
        .ok_or_else(|| Error::Missing { path: dir.join(wal::meta::NAME), what: "it identifies the store" })?;
    if disk.exists(&dir.join(meta::NAME))? {
        let reason = "has its raft.meta: other hosts may count on it. To remove the host from its cluster: `tape cluster remove`, on the leader. To go on without the other hosts: `tape cluster force-promote`";
        return Err(Error::invalid("store", format!("{} {reason}", dir.display())));
    }
    if !known.in_cluster {
        return Err(Error::invalid("store", format!("{} is a store of its own already", dir.display())));
    }
    set_in_cluster(disk, dir, false)
}

/// Whether other hosts may count on the acknowledgements of the store in `dir`: it is one of several hosts of a cluster, or
/// has lost the file that records it.
///
/// # Errors
/// As [`wal::meta::read`].
pub fn is_counted_on(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    match meta::read(disk, dir) {
        Ok(Some(meta)) => Ok(!meta.is_alone()),
        // A `raft.meta` that cannot be read was valid once.
        Ok(None) | Err(_) => Ok(wal::meta::read(disk, dir)?.is_some_and(|known| known.in_cluster)),
    }
}

/// Applies `change` to `raft.meta` of the store in `dir`, which is not served; returns the new contents.
fn changed(disk: &dyn Disk, dir: &Path, change: impl FnOnce(&Meta) -> Result<Meta>) -> Result<Meta> {
    let _lock = disk.lock(&dir.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    // The change applies to the store as the next start would find it.
    super::snapshot::install::finish(disk, dir)?;
    let Some(before) = meta::read(disk, dir)? else {
        return Err(Error::invalid("cluster", format!("{} is in no cluster", dir.display())));
    };
    let after = change(&before)?;
    after.check()?;
    MetaFile::open(disk, dir)?.update(after.clone())?;
    Ok(after)
}

/// Terms that a forced promotion skips: the previous leader cannot have used more unnoticed.
const TERMS_SKIPPED: u64 = 1000;

/// Makes the host with the store in `dir`, which is not served, a cluster of one, regardless of the other hosts: for a pair
/// whose leader is gone for good or cut off from its publishers. What only the leader had is lost. `generation` is the generation
/// that the operator expects; it rises by one, and messages of hosts of the previous generation are rejected.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`] if it is of another generation or in no cluster.
pub fn force_promote(disk: &dyn Disk, dir: &Path, generation: u64) -> Result<Meta> {
    changed(disk, dir, |before| {
        if before.generation != generation {
            return Err(Error::invalid(
                "generation",
                format!("this host is of generation {}, not {generation}", before.generation),
            ));
        }
        let own = before.members.iter().filter(|s| s.node == before.node);
        let members = own.map(|s| MemberEntry { roles: VOTER, ..s.clone() }).collect();
        let (term, generation) = (before.term.saturating_add(TERMS_SKIPPED), before.generation.saturating_add(1));
        // Frames that it may have forgotten are among the lost ones.
        Ok(Meta {
            term,
            vote: 0,
            generation,
            members,
            auto_leave: false,
            has_forgotten: false,
            boot: 0,
            is_fresh: false,
            met: BTreeMap::new(),
            ..before.clone()
        })
    })
}

/// Makes the host with the store in `dir`, which is not served, a standby of `leader` in the generation `generation`, which began
/// without it. When it serves again, the tail of its log that the leader does not have is truncated and kept aside. If
/// SSTables hold such records, the host takes no part, and its store must be restored from a backup of the leader's.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`] if that generation is not later than its own, or `leader`
/// is this host.
pub fn rejoin(disk: &dyn Disk, dir: &Path, generation: u64, leader: &Member) -> Result<Meta> {
    changed(disk, dir, |before| {
        if before.generation >= generation || leader.node == before.node {
            let reason = format!(
                "this host is node {} of generation {}: it can rejoin another in a later one",
                before.node, before.generation
            );
            return Err(Error::invalid("generation", reason));
        }
        let own = before.members.iter().find(|s| s.node == before.node).map_or_else(String::new, |s| s.address.clone());
        let members = vec![
            MemberEntry { node: leader.node, roles: VOTER, address: leader.address.clone() },
            MemberEntry { node: before.node, roles: LEARNER, address: own },
        ];
        let incarnation = before.incarnation.wrapping_add(1).max(1);
        // Membership changes that it has applied are not applied again.
        let changed =
            Meta { generation, members, vote: 0, commit: 0, auto_leave: false, incarnation, rejoins: true, ..before.clone() };
        // Another generation is another cluster: hosts met in this one do not count as met there.
        Ok(Meta { is_fresh: false, met: BTreeMap::new(), ..changed })
    })
}
