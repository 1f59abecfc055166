//! Owns: building a copy of a store in a directory of its own.
//!
//! What must hold: before [`build`] returns, the whole directory is durable and has been read back. If the store flushes or
//! compacts meanwhile and removes a file of the copy, the copy is made again from the newer manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::contents::{Progress, meta_of, state_of, verify_files, verify_log};
use super::log_tail::{copy_log, durable_end};
use tapestore::disk::{Disk, copy};
use tapestore::error::{Error, Result};
use tapestore::lsn::{Lsn, Timeline};
use tapestore::manifest::{self, State};
use tapestore::sstable::{self, FileMeta, Table};
use tapestore::time::Ts;
use tapestore::wal::{self, Chain, DurableMark, Meta, MetaFile};

/// Statistics of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// SSTables that were linked.
    pub linked: u64,
    /// SSTables that were copied.
    pub copied: u64,
    /// SSTables that an earlier backup, or an interrupted one, already had.
    pub reused: u64,
    /// Bytes of all SSTables.
    pub file_bytes: u64,
    /// Records in the SSTables.
    pub flushed: u64,
    /// Bytes of log frames.
    pub log_bytes: u64,
    /// Records in the log.
    pub logged: u64,
    /// The last record.
    pub last: Lsn,
    /// Ingest time of that record.
    pub time: Ts,
    /// The timeline of the copy.
    pub timeline: Timeline,
    /// Number of retries because the store had flushed or compacted meanwhile.
    pub retries: u64,
}

/// Retries at most.
const TRIES: u64 = 50;

/// A copy to build.
pub(super) struct Job<'a> {
    /// The store to copy.
    pub(super) source: &'a Path,
    /// The directory of the copy.
    pub(super) target: &'a Path,
    /// An earlier copy whose files are used.
    pub(super) earlier: Option<&'a Path>,
    /// Whether files are copied rather than linked.
    pub(super) copies: bool,
    /// Whether files of the earlier copy are not read again.
    pub(super) trusts_earlier: bool,
    /// Whether no SSTable is read back: the receiver of the copy does that.
    pub(super) reads_nothing: bool,
    /// Whether the log's last segment is filled with zeros.
    pub(super) fills: bool,
    /// The timeline of the copy.
    pub(super) timeline: Timeline,
    /// Whether the copy counts as stopped cleanly.
    pub(super) clean: bool,
    /// Least number of its manifest.
    pub(super) number: u64,
}

/// Creates the directories, and removes the rest of an interrupted copy except its whole SSTables.
///
/// # Errors
/// [`Error::Invalid`] if the copy would be built in its source, which is emptied first; [`Error::Io`].
pub(super) fn prepare(disk: &dyn Disk, job: &Job<'_>) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if job.source == job.target || real(job.source) == real(job.target) {
        let source = job.source.display();
        let reason = format!("{source} would be emptied: a copy is built in NAME.unfinished beside NAME; choose another name");
        return Err(Error::invalid("directory", reason));
    }
    let (files, log) = (job.target.join(sstable::DIR), job.target.join(wal::DIR));
    for dir in [job.target, &files, &log] {
        disk.create_dir(dir)?;
    }
    empty(disk, &log)?;
    for name in disk.list(job.target)?.iter().filter(|n| ![sstable::DIR, wal::DIR].contains(&n.as_str())) {
        disk.remove(&job.target.join(name))?;
    }
    disk.sync_dir(job.target)?;
    disk.sync_dir(job.target.parent().unwrap_or(Path::new(".")))
}

fn empty(disk: &dyn Disk, dir: &Path) -> Result<()> {
    disk.list(dir)?.iter().try_for_each(|name| disk.remove(&dir.join(name)))
}

/// Builds the copy; returns its statistics and the end of its log.
///
/// # Errors
/// As [`super::backup::backup`].
pub(super) fn build(disk: &dyn Disk, job: &Job<'_>, progress: &mut dyn FnMut(Progress)) -> Result<(Summary, Chain)> {
    let (mut retries, mut brought) = (0, BTreeMap::new());
    loop {
        let meta = meta_of(disk, job.source)?;
        let state = state_of(disk, job.source, meta.store_id)?;
        match attempt(disk, job, (&meta, &state), &mut brought, progress) {
            Ok((summary, end)) => return Ok((Summary { retries, ..summary }, end)),
            // A file that disappears while it is read was removed by an edit.
            Err(error) => {
                let moved = state_of(disk, job.source, meta.store_id).is_ok_and(|now| now.seq != state.seq);
                if !moved || retries == TRIES {
                    return Err(error);
                }
                tracing::debug!(
                    name: "snapshot.copy_repeated", %error,
                    "the store has flushed or compacted meanwhile; the copy is made again"
                );
                retries += 1;
            }
        }
    }
}

fn attempt(
    disk: &dyn Disk,
    job: &Job<'_>,
    (meta, state): (&Meta, &State),
    brought: &mut BTreeMap<u64, How>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Summary, Chain)> {
    bring_files(disk, job, state, brought, progress)?;
    let (source, log) = (job.source.join(wal::DIR), job.target.join(wal::DIR));
    let from = state.checkpoint;
    let end = durable_end(disk, job.source, meta, from)?;
    empty(disk, &log)?;
    let total = end.position.0 - from.position.0;
    let mut copied = 0;
    copy_log(disk, (&source, &log), meta, (from, end), job.fills, &mut |more| {
        copied += more;
        progress(Progress { what: "copying the log", more, total });
    })?;
    let durable = DurableMark::of(&end);
    let own = Meta { term: meta.term.max(end.term), clean: job.clean, timeline: job.timeline, durable, ..*meta };
    MetaFile::create(disk, job.target, own)?;
    let number = manifest::Follower::new(job.source, meta.store_id).number_now(disk)?.unwrap_or(0) + 1;
    manifest::create(disk, job.target, meta.store_id, number.max(job.number), state)?;
    disk.sync_dir(job.target)?;
    let is_read = |id| !(job.reads_nothing || job.trusts_earlier && brought.get(&id) == Some(&How::Earlier));
    verify(disk, job, state, end, is_read, progress)?;
    let of = |how| state.files.keys().filter(|id| brought.get(id) == Some(&how)).count() as u64;
    let mut summary = Summary { timeline: job.timeline, linked: of(How::Linked), copied: of(How::Copied), ..Summary::default() };
    summary.reused = of(How::Earlier) + of(How::There);
    let counted = summary.linked + summary.copied + summary.reused;
    assert!(counted == state.files.len() as u64, "every SSTable of the copy was linked, copied or there before");
    summary.flushed = state.files.values().map(|f| f.rows).sum();
    summary.file_bytes = state.files.values().map(|f| f.len).sum();
    summary.logged = end.lsn.0 - from.lsn.0;
    (summary.log_bytes, summary.last, summary.time) = (copied, durable.lsn, end.ingest_ts);
    Ok((summary, end))
}

/// Reads the copy back: its manifest and log are as intended, and every byte is valid.
fn verify(
    disk: &dyn Disk,
    job: &Job<'_>,
    state: &State,
    end: Chain,
    wanted: impl Fn(u64) -> bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let meta = meta_of(disk, job.target)?;
    let found = state_of(disk, job.target, meta.store_id)?;
    let damaged = |what, expected, found| {
        let path = job.target.to_path_buf();
        Err(Error::Corrupt { path, offset: 0, lsn: end.lsn, what, expected, found })
    };
    if found != *state {
        return damaged("manifest of the copy", state.seq, found.seq);
    }
    verify_files(disk, job.target, state, wanted, progress).map_err(|e| of_source(e, job))?;
    let read = verify_log(disk, job.target, &meta, state.checkpoint)?;
    if read != end { damaged("end of the copied log", end.position.0, read.position.0) } else { Ok(()) }
}

/// Names damage of a linked or copied file in the store, where it comes from.
fn of_source(error: Error, job: &Job<'_>) -> Error {
    match error {
        Error::Corrupt { path, offset, lsn, what, expected, found } => {
            let path = path.strip_prefix(job.target).map_or(path.clone(), |rest| job.source.join(rest));
            Error::Corrupt { path, offset, lsn, what, expected, found }
        }
        other => other,
    }
}

/// Whether `dir` holds exactly the file of `meta`: same name, length, and the CRC that covers the other CRCs.
fn has(disk: &dyn Disk, dir: &Path, meta: FileMeta) -> bool {
    Table::open(disk, dir, meta).is_ok_and(|table| table.trailer().is_ok())
}

/// How a file came into the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Linked,
    Copied,
    /// The earlier copy had it.
    Earlier,
    /// An interrupted copy had it.
    There,
}

/// Brings the files of `state` into the copy, durably, and removes others; records how in `brought`.
fn bring_files(
    disk: &dyn Disk,
    job: &Job<'_>,
    state: &State,
    brought: &mut BTreeMap<u64, How>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let (to, total) = (job.target.join(sstable::DIR), state.files.values().map(|f| f.len).sum());
    let names: BTreeSet<String> = state.files.values().map(|f| sstable::file_name(f.kind, f.id)).collect();
    for name in disk.list(&to)?.into_iter().filter(|n| !names.contains(n)) {
        disk.remove(&to.join(name))?;
    }
    for meta in state.files.values() {
        let name = sstable::file_name(meta.kind, meta.id);
        let path = to.join(&name);
        let mut report = |more| progress(Progress { what: "bringing files", more, total });
        if disk.exists(&path)? {
            if has(disk, &to, *meta) {
                brought.entry(meta.id).or_insert(How::There);
                report(meta.len);
                continue;
            }
            disk.remove(&path)?;
        }
        let earlier = job.earlier.map(|dir| dir.join(sstable::DIR)).filter(|dir| has(disk, dir, *meta));
        let from = earlier.clone().unwrap_or_else(|| job.source.join(sstable::DIR)).join(&name);
        if !disk.exists(&from)? {
            return Err(Error::Missing { path: from, what: "the manifest names it" });
        }
        let linked = (!job.copies || earlier.is_some()) && disk.link(&from, &path)?;
        match linked {
            true => report(meta.len),
            false => copy(disk, &from, &path, &mut report)?,
        }
        let how = match (&earlier, linked) {
            (Some(_), _) => How::Earlier,
            (None, true) => How::Linked,
            (None, false) => How::Copied,
        };
        brought.insert(meta.id, how);
    }
    disk.sync_dir(&to)
}
