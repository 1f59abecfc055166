//! Owns: snapshot install: replacing a host's store by a snapshot of the leader's, when the leader's log no longer holds the
//! frames that the host needs, or when the host's own files are damaged.
//!
//! ```text
//! STORE/incoming/…        the snapshot while it is fetched: the files of a store, and raft.meta of the host that made it
//! STORE/incoming/WHOLE    every byte of it has been read and is valid
//! STORE/LOCK.incoming     lock of the process that changes `incoming`
//! STORE/FILLING           the snapshot is replacing the store: step `clear`, `place` or `done`, timeline, place of the old store
//! ```
//!
//! What must hold: the old store stays until a whole, durable snapshot that is not behind it has been read. From then on every
//! start first finishes the installation, and nothing is served before. The host keeps its own term, vote and number. Readers
//! are notified by the timeline.
//!
//! Why a snapshot may replace a log from which this host has acknowledged frames: a log that ends with a frame of term T holds
//! every frame committed in terms before T (raft, leader completeness and log matching). If this host's own term is at most T,
//! and its log does not go beyond the snapshot's in term T, the snapshot holds everything that this host has helped to commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::contents::{self, Progress};
use crate::consensus::{self, meta as raft_meta};
use tapestore::disk::{Disk, Open, copy, publish};
use tapestore::error::{Error, Result};
use tapestore::lsn::{FrameIndex, Lsn, Timeline};
use tapestore::manifest::format::{CURRENT, file_number};
use tapestore::manifest::{Manifest, State};
use tapestore::sstable::{self, FileMeta};
use tapestore::time::{NANOS_PER_SECOND, Ts};
use tapestore::wal::{self, Chain};

/// Directory of the snapshot while it is fetched, in the store directory.
pub const INCOMING: &str = "incoming";
/// File that marks the snapshot as verified.
const WHOLE: &str = "WHOLE";
/// Lock of the process that changes the snapshot.
const LOCK: &str = "LOCK.incoming";
/// File that marks a started installation.
const FILLING: &str = "FILLING";

/// Result of an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// SSTables.
    pub files: u64,
    /// The last record.
    pub last: Lsn,
    /// Where the old store is kept, if it is.
    pub kept_in: Option<PathBuf>,
}

/// The snapshot in `incoming`.
struct Found {
    meta: wal::Meta,
    state: State,
    end: Chain,
    raft: raft_meta::Meta,
}

fn incoming(dir: &Path) -> PathBuf {
    dir.join(INCOMING)
}

/// Reads the snapshot in `dir`, with its log.
fn found(disk: &dyn Disk, dir: &Path) -> Result<Found> {
    let meta = contents::meta_of(disk, dir)?;
    let state = contents::state_of(disk, dir, meta.store_id)?;
    let end = contents::verify_log(disk, dir, &meta, state.checkpoint)?;
    let missing = || Error::Missing { path: dir.join(raft_meta::NAME), what: "it holds the members" };
    let raft = raft_meta::read(disk, dir)?.ok_or_else(missing)?;
    if raft.store_id != meta.store_id || raft.needs_snapshot() || raft.commit >= end.index.0 || raft.membership >= end.index.0 {
        let (path, found) = (dir.join(raft_meta::NAME), raft.commit.max(raft.membership));
        return Err(Error::Corrupt {
            path,
            offset: 0,
            lsn: end.lsn,
            what: "last frame named in raft.meta",
            expected: end.index.0 - 1,
            found,
        });
    }
    Ok(Found { meta, state, end, raft })
}

/// Begins to change the snapshot in the store `dir`: it no longer counts as whole.
///
/// # Errors
/// [`Error::Io`].
pub fn begin(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let incoming = incoming(dir);
    for dir in [&incoming, &incoming.join(sstable::DIR), &incoming.join(wal::DIR)] {
        disk.create_dir(dir)?;
    }
    remove_if_there(disk, &incoming.join(WHOLE))?;
    disk.sync_dir(&incoming)?;
    disk.sync_dir(dir)
}

/// Links SSTables of the store `dir` into the snapshot, whose manifest has arrived, where both have the same file: these need
/// not be fetched, and have been read. Removes invalid files of those names from the snapshot. Returns the linked bytes.
///
/// # Errors
/// As [`check`].
pub fn reuse(disk: &dyn Disk, dir: &Path) -> Result<u64> {
    let (incoming, own) = (incoming(dir), dir.join(sstable::DIR));
    let meta = contents::meta_of(disk, &incoming)?;
    let state = contents::state_of(disk, &incoming, meta.store_id)?;
    let mut bytes = 0;
    for meta in state.files.values() {
        let name = sstable::file_name(meta.kind, meta.id);
        let to = incoming.join(sstable::DIR).join(&name);
        if disk.exists(&to)? {
            if sstable::Table::open(disk, &incoming.join(sstable::DIR), *meta).and_then(|t| t.trailer().map(drop)).is_err() {
                disk.remove(&to)?;
            }
            continue;
        }
        if read_table(disk, &own, *meta).is_ok() && disk.link(&own.join(&name), &to)? {
            bytes += meta.len;
        }
    }
    Ok(bytes)
}

/// Reads every byte of the SSTable of `meta` in `dir`.
fn read_table(disk: &dyn Disk, dir: &Path, meta: FileMeta) -> Result<()> {
    let table = sstable::Table::open(disk, dir, meta)?;
    table.verify(|_| Ok(()))?;
    table.release();
    Ok(())
}

/// Reads every byte of the snapshot in the store `dir`, except SSTables in `read`, and marks it as whole if it is valid. A
/// damaged SSTable is removed, so that it is fetched again; valid ones are added to `read`.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Missing`] if a file is damaged or absent; [`Error::Io`].
pub fn check(disk: &dyn Disk, dir: &Path, read: &mut BTreeMap<u64, FileMeta>, progress: &mut dyn FnMut(Progress)) -> Result<()> {
    let incoming = incoming(dir);
    let Found { state, end, .. } = found(disk, &incoming)?;
    let total = state.files.values().map(|f| f.len).sum();
    for meta in state.files.values() {
        let history = incoming.join(sstable::DIR);
        if read.get(&meta.id) != Some(meta) {
            if let Err(error) = read_table(disk, &history, *meta) {
                if matches!(error, Error::Corrupt { .. }) {
                    remove_if_there(disk, &history.join(sstable::file_name(meta.kind, meta.id)))?;
                }
                return Err(error);
            }
            read.insert(meta.id, *meta);
        }
        progress(Progress { what: "verifying the snapshot", more: meta.len, total });
    }
    let is_read = state.files.iter().all(|(id, meta)| read.get(id) == Some(meta));
    assert!(is_read, "a snapshot is whole when every SSTable of it has been read");
    sync_all(disk, &incoming)?;
    publish(disk, &incoming.join(WHOLE), format!("a store up to frame {} of term {}\n", end.index.0 - 1, end.term).as_bytes())
}

/// Marks the snapshot in the store `dir` as not whole. Its SSTables stay, for the next one.
///
/// # Errors
/// [`Error::Io`].
pub fn refuse(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let incoming = incoming(dir);
    if !disk.exists(&incoming)? {
        return Ok(());
    }
    remove_if_there(disk, &incoming.join(WHOLE))?;
    disk.sync_dir(&incoming)
}

/// Locks the snapshot in the store `dir` for changes, until the returned value is dropped.
///
/// # Errors
/// [`Error::Locked`] if another process holds it, or an installation is unfinished; [`Error::Io`].
pub fn hold(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>> {
    let held = disk.lock(&dir.join(LOCK))?.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
    if disk.exists(&dir.join(FILLING))? { Err(Error::Locked { path: dir.to_path_buf() }) } else { Ok(held) }
}

/// Removes the snapshot in the store `dir`, which is of no use.
///
/// # Errors
/// [`Error::Io`].
pub fn discard(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let incoming = incoming(dir);
    if !disk.exists(&incoming)? {
        return Ok(());
    }
    remove_if_there(disk, &incoming.join(WHOLE))?;
    disk.sync_dir(&incoming)?;
    contents::remove(disk, &incoming)?;
    disk.sync_dir(dir)
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<()> {
    if disk.exists(path)? { disk.remove(path) } else { Ok(()) }
}

fn sync_all(disk: &dyn Disk, dir: &Path) -> Result<()> {
    for within in [sstable::DIR, wal::DIR] {
        for name in disk.list(&dir.join(within))? {
            disk.open(&dir.join(within).join(name), Open::Write)?.sync()?;
        }
        disk.sync_dir(&dir.join(within))?;
    }
    for name in store_files(disk, dir)?.iter().map(String::as_str).chain([raft_meta::NAME]) {
        disk.open(&dir.join(name), Open::Write)?.sync()?;
    }
    disk.sync_dir(dir)
}

/// Files directly in a store's directory, except `raft.meta`.
fn store_files(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let mut names = disk.list(dir)?;
    names.retain(|n| n == wal::meta::NAME || n == CURRENT || file_number(n).is_some());
    Ok(names)
}

/// Replaces the store by the whole snapshot in `incoming`. No process may serve the store. With `is_damaged` the old store
/// need not be readable, and is kept aside. The caller then guarantees that the host that made the snapshot led, and had at
/// the request every frame that it ever sent to this host.
///
/// # Errors
/// [`Error::Locked`]; [`Error::Consensus`] if the snapshot is behind this host's acknowledgements; [`Error::Missing`] if there
/// is no whole snapshot; [`Error::Corrupt`] if the old store is damaged and `is_damaged` is false; [`Error::Io`].
pub fn install(store: &Path, disk: &Arc<dyn Disk>, now: Ts, is_damaged: bool) -> Result<Installed> {
    let lock = disk.lock(&store.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: store.to_path_buf() })?;
    install_held(store, disk, now, is_damaged, lock.as_ref())
}

/// As [`install`], while the caller holds the lock of the store.
///
/// # Errors
/// As [`install`].
pub fn install_held(dir: &Path, real: &Arc<dyn Disk>, now: Ts, is_damaged: bool, _lock: &(dyn Send + Sync)) -> Result<Installed> {
    let disk = real.as_ref();
    let _held = hold(disk, dir)?;
    let incoming = incoming(dir);
    if !disk.exists(&incoming.join(WHOLE))? {
        return Err(Error::Missing { path: incoming.join(WHOLE), what: "it marks a fetched and verified snapshot" });
    }
    let copy = found(disk, &incoming)?;
    for meta in copy.state.files.values() {
        sstable::Table::open(disk, &incoming.join(sstable::DIR), *meta)?.trailer().map(|_| ())?;
    }
    let missing = || Error::Missing { path: dir.join(raft_meta::NAME), what: "it holds this host's identity" };
    let own = raft_meta::read(disk, dir)?.ok_or_else(missing)?;
    let log = own_log(real, dir, is_damaged)?;
    let end = |chain: &Chain| (chain.index.0 - 1, u64::from(chain.term.0));
    own.admit(log.as_ref().map(|l| end(&l.1)), &copy.raft, end(&copy.end))?;
    // Frames of an earlier generation may exist nowhere else.
    let is_new_generation = copy.raft.generation > own.generation || own.rejoins;
    let mut is_prefix = log.is_some() && !is_new_generation;
    if let Some((begin, end)) = log
        && !is_new_generation
        && end.term < copy.end.term
    {
        // Frames that the leader may lack are kept aside, as at a truncation. They also stay in the log until the snapshot is
        // in place, because this host has acknowledged them.
        let last_kept = FrameIndex(own.commit.max(begin.index.0 - 1));
        if let Some(path) = wal::truncate::keep_tail(disk, dir, begin, last_kept)? {
            is_prefix = false;
            tracing::info!(
                name: "snapshot.frames_kept", path = %path.display(),
                "frames that may not be committed are kept in a file"
            );
        }
    }
    let now = now.0 / NANOS_PER_SECOND;
    let timeline = match wal::meta::read(disk, dir) {
        // With a step of one, readers go on after the snapshot's end; with more, they must drop everything that they have read.
        Ok(Some(own)) => Timeline(own.timeline.0 + if is_prefix { 1 } else { 2 }),
        // No store reaches this timeline by steps of one.
        _ => Timeline((copy.meta.timeline.0 + 2).max(now)),
    };
    let keep = (is_damaged || is_new_generation).then(|| format!("replaced-{now}"));
    // Checked again before the first step that cannot be undone.
    let (ours, theirs) = (own.generation, copy.raft.generation);
    let is_covered = u64::from(copy.end.term.0) >= own.term && copy.end.index.0 > own.commit;
    assert!(theirs > ours || (theirs == ours && is_covered), "a snapshot holds what this host has acknowledged");
    Mark { step: Step::Clear, timeline, keep: keep.clone() }.write(disk, dir)?;
    finish(disk, dir)?;
    let kept_in = keep.map(|k| dir.join(k));
    Ok(Installed { files: copy.state.files.len() as u64, last: Lsn(copy.end.lsn.0 - 1), kept_in })
}

/// Begin and end of the log of the store in `dir`; `None` if it cannot be read and `is_damaged` is set.
fn own_log(disk: &Arc<dyn Disk>, dir: &Path, is_damaged: bool) -> Result<Option<(Chain, Chain)>> {
    let read = || {
        let meta = contents::meta_of(disk.as_ref(), dir)?;
        let from = Manifest::open(disk.clone(), dir, meta.store_id)?.state().checkpoint;
        Ok((from, contents::verify_log(disk.as_ref(), dir, &meta, from)?))
    };
    match read() {
        Ok(log) => Ok(Some(log)),
        Err(error) if is_damaged => {
            tracing::warn!(name: "snapshot.old_log_damaged", %error, "the old log is damaged and is not used");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Step of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The old store is being removed.
    Clear,
    /// The snapshot is being put in its place.
    Place,
    /// The rest of the snapshot is being removed.
    Done,
}

/// Contents of `FILLING`.
struct Mark {
    step: Step,
    timeline: Timeline,
    keep: Option<String>,
}

impl Mark {
    fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let step = match self.step {
            Step::Clear => "clear",
            Step::Place => "place",
            Step::Done => "done",
        };
        let text = format!("{step} {} {}\n", self.timeline, self.keep.as_deref().unwrap_or("-"));
        publish(disk, &dir.join(FILLING), text.as_bytes())
    }

    fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Mark>> {
        let path = dir.join(FILLING);
        if !disk.exists(&path)? {
            return Ok(None);
        }
        let mut bytes = [0; 256];
        let read = disk.open(&path, Open::Read)?.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(bytes.get(..read).unwrap_or(&[])).into_owned();
        let mut words = text.split_whitespace();
        let step = match words.next() {
            Some("clear") => Some(Step::Clear),
            Some("place") => Some(Step::Place),
            Some("done") => Some(Step::Done),
            _ => None,
        };
        let timeline = words.next().and_then(|w| w.parse().ok()).map(Timeline);
        let keep = words.next().map(|w| (w != "-").then(|| w.to_owned()));
        match (step, timeline, keep) {
            (Some(step), Some(timeline), Some(keep)) if keep.as_ref().is_none_or(|k| !k.contains('/')) => {
                Ok(Some(Mark { step, timeline, keep }))
            }
            _ => {
                Err(Error::Corrupt { path, offset: 0, lsn: Lsn::NONE, what: "words in FILLING", expected: 3, found: read as u64 })
            }
        }
    }
}

/// Finishes an installation that has begun; returns whether there was one. No process may serve the store, and the caller
/// holds its lock.
///
/// # Errors
/// [`Error::Corrupt`] if `FILLING` or the snapshot is damaged; [`Error::Io`].
pub fn finish(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let Some(mut mark) = Mark::read(disk, dir)? else { return Ok(false) };
    let incoming = incoming(dir);
    if mark.step == Step::Clear {
        if let Some(name) = &mark.keep {
            keep(disk, dir, &dir.join(name))?;
        }
        clear(disk, dir)?;
        mark.step = Step::Place;
        mark.write(disk, dir)?;
    }
    if mark.step == Step::Place {
        place(disk, &incoming, dir)?;
        become_own(disk, dir, mark.timeline)?;
        mark.step = Step::Done;
        mark.write(disk, dir)?;
    }
    assert!(mark.step == Step::Done, "a snapshot is removed only after it is in its place");
    discard(disk, dir)?;
    disk.remove(&dir.join(FILLING))?;
    disk.sync_dir(dir)?;
    tracing::info!(name: "snapshot.installed", store = %dir.display(), "the snapshot of another host's store is installed");
    Ok(true)
}

/// Gives the installed store in `dir` this host's identity: the timeline `timeline`, this host's term and vote.
fn become_own(disk: &dyn Disk, dir: &Path, timeline: Timeline) -> Result<()> {
    let mut meta = wal::MetaFile::open(disk, dir)?;
    if meta.meta().timeline < timeline {
        meta.update(wal::Meta { timeline, ..*meta.meta() })?;
    }
    let theirs = found(disk, &incoming(dir))?;
    let mut own = consensus::MetaFile::open(disk, dir)?;
    let after = own.meta().clone().filled(theirs.raft, u64::from(theirs.end.term.0));
    let before = own.meta();
    assert!(
        (after.node, after.incarnation) == (before.node, before.incarnation)
            && (after.term > before.term || (after.term, after.vote) == (before.term, before.vote)),
        "a host keeps its identity, and its vote in a term"
    );
    own.update(after)
}

/// Links or copies the store `dir` to `to`.
fn keep(disk: &dyn Disk, dir: &Path, to: &Path) -> Result<()> {
    disk.create_dir(to)?;
    for within in [Path::new(""), Path::new(sstable::DIR), Path::new(wal::DIR)] {
        let (from, to) = (dir.join(within), to.join(within));
        if !disk.exists(&from)? {
            continue;
        }
        disk.create_dir(&to)?;
        let names = if within == Path::new("") { store_files(disk, &from)? } else { disk.list(&from)? };
        for name in names {
            take(disk, &from.join(&name), &to.join(&name))?;
        }
        disk.sync_dir(&to)?;
    }
    disk.sync_dir(dir)
}

/// Links `from` as `to`, or copies it if it cannot be linked.
fn take(disk: &dyn Disk, from: &Path, to: &Path) -> Result<()> {
    if disk.exists(to)? || disk.link(from, to)? {
        return Ok(());
    }
    copy(disk, from, to, &mut |_| {})
}

/// Removes the files of the store `dir`; readers keep those that they have mapped.
fn clear(disk: &dyn Disk, dir: &Path) -> Result<()> {
    // These first: without them the other files do not make a store.
    for name in store_files(disk, dir)? {
        disk.remove(&dir.join(name))?;
    }
    for within in [sstable::DIR, wal::DIR].map(|d| dir.join(d)) {
        if disk.exists(&within)? {
            disk.list(&within)?.iter().try_for_each(|name| disk.remove(&within.join(name)))?;
            disk.sync_dir(&within)?;
        }
    }
    disk.sync_dir(dir)
}

/// Puts the files of the snapshot `from` in the store `dir`.
fn place(disk: &dyn Disk, from: &Path, dir: &Path) -> Result<()> {
    for within in [sstable::DIR, wal::DIR] {
        let (from, to) = (from.join(within), dir.join(within));
        disk.create_dir(&to)?;
        disk.list(&from)?.iter().try_for_each(|name| take_whole(disk, &from.join(name), &to.join(name), within == wal::DIR))?;
        disk.sync_dir(&to)?;
    }
    for name in store_files(disk, from)? {
        // These will be written, and must not change in the snapshot.
        let to = dir.join(&name);
        if !disk.exists(&to)? {
            copy(disk, &from.join(&name), &to, &mut |_| {})?;
        }
    }
    disk.sync_dir(dir)
}

fn take_whole(disk: &dyn Disk, from: &Path, to: &Path, is_written: bool) -> Result<()> {
    match disk.exists(to)? {
        true => Ok(()),
        false if is_written => copy(disk, from, to, &mut |_| {}),
        false => take(disk, from, to),
    }
}
