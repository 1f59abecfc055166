//! Owns: copies of a served store that another host of the cluster fetches, when the log does not reach back to what
//! that host lacks.
//!
//! What must hold: the copy's log ends with frames of this store's log and is durable up to there; what it says of the
//! members is as of a frame that it holds, or that its checkpoint covers, and no change of them is missing between the
//! two. No file of history is read here: whoever fetches the copy reads all of it before using it.

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

/// How often members may change while a copy is made.
const TRIES: u32 = 5;

/// A copy for another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    /// The last frame of its log.
    pub last: FrameIndex,
    /// That frame's term.
    pub term: Term,
    /// Its files, as `name`, `sst/name` or `wal/name`, and their bytes.
    pub files: Vec<(String, u64)>,
}

/// Whether `name` is one that a file of a copy may have: nothing else is ever read or written for another host.
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

/// Makes a copy of the store in `store`, which is served, in `target`, a directory in it; files of history are links
/// where that is possible.
///
/// # Errors
/// [`Error::Missing`], [`Error::Corrupt`] if the store is damaged; [`Error::Io`].
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
        // Whoever reads the other host's manifest must not take this one for it.
        number: now.0 / NANOS_PER_SECOND,
    };
    for _ in 0..TRIES {
        let before = members(disk, store)?;
        prepare(disk, &job)?;
        let (_, end) = build(disk, &job, &mut |_| {})?;
        let after = members(disk, store)?;
        // A change between the two may be under the checkpoint, and `before` does not have it.
        if (after.membership, after.epoch) != (before.membership, before.epoch) {
            continue;
        }
        let last = FrameIndex(end.index.0 - 1);
        MetaFile::create(disk, target, &Meta { commit: before.commit.min(last.0), ..before })?;
        disk.sync_dir(target)?;
        return Ok(HostSnapshot { last, term: end.term, files: files(disk, target)? });
    }
    Err(Error::invalid("copy for another host", "the members of the cluster change again and again"))
}

/// Removes the copy in `target`.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(disk: &dyn Disk, target: &Path) -> Result<()> {
    if disk.exists(target)? { contents::remove(disk, target) } else { Ok(()) }
}

fn members(disk: &dyn Disk, dir: &Path) -> Result<Meta> {
    let path = || dir.join(raft_meta::NAME);
    raft_meta::read(disk, dir)?.ok_or_else(|| Error::Missing { path: path(), what: "it says who the members are" })
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
