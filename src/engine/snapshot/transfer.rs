//! Owns: snapshots of a served store for other hosts of the cluster, whose missing frames are no longer in the log.
//!
//! What must hold: the snapshot's log ends with frames of this store's log and is durable to its end. Its members are as of a
//! frame that it holds, or that its checkpoint covers, and no membership frame between the two is missing. No SSTable is read
//! here: the receiver reads all of the snapshot before it uses it.

use std::path::Path;

use super::contents::{self, meta_of};
use super::create::{Job, build, prepare};
use crate::consensus::MetaFile;
use crate::consensus::meta::{self as raft_meta, Meta};
use tapestore::disk::{Disk, Open};
use tapestore::error::{Error, Result};
use tapestore::lsn::{FrameIndex, Term};
use tapestore::manifest::format::{CURRENT, file_number};
use tapestore::sstable;
use tapestore::time::{NANOS_PER_SECOND, Ts};
use tapestore::wal;

/// Tries at most, if members change while a snapshot is made.
const TRIES: u32 = 5;

/// A snapshot for another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    /// The last frame of its log.
    pub last: FrameIndex,
    /// That frame's term.
    pub term: Term,
    /// Its files, as `name`, `sst/name` or `wal/name`, and their bytes.
    pub files: Vec<(String, u64)>,
}

/// Whether `name` is valid for a file of a snapshot; no other file is read or written for another host.
pub fn is_file_name(name: &str) -> bool {
    let plain = |n: &str| {
        !n.is_empty()
            && n.len() < 64
            && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !n.starts_with('.')
    };
    match name.split_once('/') {
        Some((dir, rest)) => (dir == sstable::DIR || dir == wal::DIR) && plain(rest),
        None => name == wal::meta::NAME || name == raft_meta::NAME || name == CURRENT || file_number(name).is_some(),
    }
}

/// Makes a snapshot of the served store `store` in its subdirectory `target`; SSTables are linked where possible.
///
/// # Errors
/// [`Error::Missing`], [`Error::Corrupt`] if the store is damaged; [`Error::Invalid`] if the members keep changing;
/// [`Error::Io`].
pub fn create(disk: &dyn Disk, store: &Path, target: &Path, now: Ts) -> Result<HostSnapshot> {
    let meta = meta_of(disk, store)?;
    let job = Job {
        source: store,
        target,
        earlier: None,
        copies: false,
        trusts_earlier: false,
        reads_nothing: true,
        fills: false,
        timeline: meta.timeline,
        clean: false,
        // A reader of the other host's manifest must not take the two for the same.
        number: now.0 / NANOS_PER_SECOND,
    };
    for _ in 0..TRIES {
        let before = members(disk, store)?;
        prepare(disk, &job)?;
        let (_, end) = build(disk, &job, &mut |_| {})?;
        let after = members(disk, store)?;
        // A membership frame between the two may be below the checkpoint, and missing in `before`.
        if (after.membership, after.generation) != (before.membership, before.generation) {
            continue;
        }
        let last = FrameIndex(end.index.0 - 1);
        MetaFile::create(disk, target, &Meta { commit: before.commit.min(last.0), ..before })?;
        disk.sync_dir(target)?;
        return Ok(HostSnapshot { last, term: end.term, files: files(disk, target)? });
    }
    Err(Error::invalid("snapshot for another host", "the members of the cluster keep changing; it is tried again"))
}

/// Removes the snapshot in `target`.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(disk: &dyn Disk, target: &Path) -> Result<()> {
    if disk.exists(target)? { contents::remove(disk, target) } else { Ok(()) }
}

fn members(disk: &dyn Disk, dir: &Path) -> Result<Meta> {
    let path = || dir.join(raft_meta::NAME);
    raft_meta::read(disk, dir)?.ok_or_else(|| Error::Missing { path: path(), what: "it holds the members" })
}

fn files(disk: &dyn Disk, dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut names: Vec<String> = disk.list(dir)?;
    names.retain(|n| n != sstable::DIR && n != wal::DIR);
    for within in [sstable::DIR, wal::DIR] {
        names.extend(disk.list(&dir.join(within))?.into_iter().map(|n| format!("{within}/{n}")));
    }
    let with_len = |name: String| {
        let len = disk.open(&dir.join(&name), Open::Read)?.len()?;
        Ok((name, len))
    };
    names.into_iter().map(with_len).collect()
}
