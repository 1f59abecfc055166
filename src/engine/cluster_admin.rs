//! Owns: how a store comes to be in a cluster, and what an operator decides for a host of one by hand.
//!
//! What must hold: the hosts of a cluster that is founded have the same store identity and segment size, and know the
//! same members, or do not start: they would never agree; `store.meta` says that a store is of a cluster before `raft.meta`
//! says of which hosts, so that the one is missed without the other.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::path::Path;

use crate::consensus::MetaFile;
use crate::consensus::format::{LEARNER, NAME_MAX, Seat, VOTER};
use crate::consensus::message::Member;
use crate::consensus::meta::{self, Meta};
use tapestore::disk::Disk;
use tapestore::error::{Error, Result};
use tapestore::lsn::NodeId;
use tapestore::time::Ts;
use tapestore::wal;

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
    /// Whether the cluster is there already, and this host joins it: it gets a copy of the leader's store, holds the log and
    /// does not vote until it is told otherwise. Its store is new, or restored from a backup of another host's.
    pub joins: bool,
    /// Forced promotions that there have been, of a cluster that it joins; 0 else.
    pub epoch: u64,
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
    crate::snapshot::backup::refuse(disk, dir)?;
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
    if known.is_some_and(|k| k.in_cluster) && raft.is_none() && !founding.joins {
        let reason = "is the store of a host of a cluster, or a backup of one, and has no raft.meta: what it has promised to other hosts is not known. Say that it joins: tape cluster init --join; or, if no other host counts on it, make it a store of its own first: tape cluster detach. If nothing was ever stored in it, remove the directory";
        return invalid(format!("{} {reason}", dir.display()));
    }
    if known.is_some() && founding.members.len() > 1 && !founding.joins {
        let reason = "holds a store already: make it the first host of the cluster, with itself as the only member, and add the others when it serves; or, if it is restored from a backup of another host of the cluster, say that it joins";
        return invalid(format!("{} {reason}", dir.display()));
    }
    let id = known.map_or_else(|| store_id(&founding.cluster), |k| k.store_id);
    wal::create_if_absent(disk, dir, wal::Create { store_id: id, segment_size: founding.segment_size, now })?;
    set_in_cluster(disk, dir, true)?;
    let part = |m: &Member| if founding.joins && m.node == founding.node { LEARNER } else { VOTER };
    let seat = |m: &Member| Seat { node: m.node, part: part(m), address: m.address.clone() };
    let seats = founding.members.iter().map(seat).collect();
    let term = known.map_or(0, |k| u64::from(k.term.0));
    let before = raft.clone().unwrap_or_else(|| Meta::alone(id, term));
    let meta = Meta {
        node: founding.node,
        seats,
        epoch: before.epoch.max(founding.epoch),
        joins: founding.joins,
        incarnation: drawn(now),
        is_fresh: !founding.joins && founding.members.len() > 1,
        remembers: true,
        name: if founding.cluster.len() <= NAME_MAX { founding.cluster.clone() } else { String::new() },
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

/// A number that no other host that is initialised draws.
fn drawn(now: Ts) -> u64 {
    // Its keys are drawn by the system.
    std::collections::hash_map::RandomState::new().hash_one(now.0).max(1)
}

/// Makes `store.meta` say whether the store in `dir` is of a cluster.
fn set_in_cluster(disk: &dyn Disk, dir: &Path, in_cluster: bool) -> Result<()> {
    let mut meta = wal::MetaFile::open(disk, dir)?;
    meta.update(wal::Meta { in_cluster, ..*meta.meta() })
}

/// Makes the store in `dir`, which nobody serves and which has no `raft.meta`, a store of its own: it was restored from a
/// backup of a host of a cluster, or has lost the file, and no other host counts on it.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`] if it is a host of a cluster, or of none.
pub fn detach(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let _lock = disk.lock(&dir.join("LOCK"))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    let known = wal::meta::read(disk, dir)?
        .ok_or_else(|| Error::Missing { path: dir.join(wal::meta::NAME), what: "it says what the store is" })?;
    if disk.exists(&dir.join(meta::NAME))? {
        let reason = "has its raft.meta: other hosts may count on it. `tape cluster remove`, on the leader, makes a host a member no longer; `tape cluster force-promote` makes it go on without the others";
        return Err(Error::invalid("store", format!("{} {reason}", dir.display())));
    }
    if !known.in_cluster {
        return Err(Error::invalid("store", format!("{} is a store of its own already", dir.display())));
    }
    set_in_cluster(disk, dir, false)
}

/// Whether other hosts may count on what the store in `dir` has acknowledged: it is one of several of a cluster, or has lost
/// what says so.
///
/// # Errors
/// `store.meta` cannot be read.
pub fn is_counted_on(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    match meta::read(disk, dir) {
        Ok(Some(meta)) => Ok(!meta.is_alone()),
        // What cannot be read has said something once.
        Ok(None) | Err(_) => Ok(wal::meta::read(disk, dir)?.is_some_and(|known| known.in_cluster)),
    }
}

/// `raft.meta` of the store in `dir`, which nobody serves, after `change`; what it says then.
fn changed(disk: &dyn Disk, dir: &Path, change: impl FnOnce(&Meta) -> Result<Meta>) -> Result<Meta> {
    let _lock = disk.lock(&dir.join("LOCK"))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    // What is decided is decided of the store that the next start would find.
    super::snapshot::install::finish(disk, dir)?;
    let Some(before) = meta::read(disk, dir)? else {
        return Err(Error::invalid("cluster", format!("{} is in none", dir.display())));
    };
    let after = change(&before)?;
    after.check()?;
    MetaFile::open(disk, dir)?.update(after.clone())?;
    Ok(after)
}

/// Terms that a forced promotion leaves to the leader before: it cannot have got that far unnoticed.
const TERMS_SKIPPED: u64 = 1000;

/// Makes the host with the store in `dir`, which nobody serves, a cluster of one, whatever the others have: for a pair
/// whose leader is gone for good or cut off from its publishers. What the leader had and this host does not is lost.
/// `epoch` is the one that the operator takes it to be of; it rises by one, and hosts of the one before are not heard.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`] if it is of another epoch or in no cluster.
pub fn force_promote(disk: &dyn Disk, dir: &Path, epoch: u64) -> Result<Meta> {
    changed(disk, dir, |before| {
        if before.epoch != epoch {
            return Err(Error::invalid("epoch", format!("this host is of epoch {}, not {epoch}", before.epoch)));
        }
        let own = before.seats.iter().filter(|s| s.node == before.node);
        let seats = own.map(|s| Seat { part: VOTER, ..s.clone() }).collect();
        let (term, epoch) = (before.term.saturating_add(TERMS_SKIPPED), before.epoch.saturating_add(1));
        // What it may have forgotten is part of what is lost.
        Ok(Meta {
            term,
            vote: 0,
            epoch,
            seats,
            auto_leave: false,
            has_forgotten: false,
            boot: 0,
            is_fresh: false,
            met: BTreeMap::new(),
            ..before.clone()
        })
    })
}

/// Makes the host with the store in `dir`, which nobody serves, a standby of `leader` in `epoch`, which has begun without
/// it. When it serves again, what it has and the leader does not is cut off its log and kept aside; if files of history
/// hold it, it does not take part, and its store has to be made anew from a backup of the leader's.
///
/// # Errors
/// [`Error::Locked`] while the store is served; [`Error::Invalid`] if that epoch is not later than its own.
pub fn rejoin(disk: &dyn Disk, dir: &Path, epoch: u64, leader: &Member) -> Result<Meta> {
    changed(disk, dir, |before| {
        if before.epoch >= epoch || leader.node == before.node {
            let reason =
                format!("this host is node {} of epoch {}: it rejoins another in a later one", before.node, before.epoch);
            return Err(Error::invalid("epoch", reason));
        }
        let own = before.seats.iter().find(|s| s.node == before.node).map_or_else(String::new, |s| s.address.clone());
        let seats = vec![
            Seat { node: leader.node, part: VOTER, address: leader.address.clone() },
            Seat { node: before.node, part: LEARNER, address: own },
        ];
        let incarnation = before.incarnation.wrapping_add(1).max(1);
        // Changes of members that it has carried out are not carried out again.
        let changed = Meta { epoch, seats, vote: 0, commit: 0, auto_leave: false, incarnation, rejoins: true, ..before.clone() };
        // Another epoch is another cluster: who was met in this one is met anew.
        Ok(Meta { is_fresh: false, met: BTreeMap::new(), ..changed })
    })
}
