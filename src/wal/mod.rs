//! Owns: the log: its formats ([`format`], [`control_entry`], [`meta`]), its files ([`segment`]), appending and syncing ([`Writer`],
//! [`Syncer`]), reading ([`scan`]), truncation (`truncate`) and recovery ([`open`]). `examine` finds a torn tail and [`open`]
//! truncates it: it ends the log there. `truncate` is for divergent tails, and for a pad at the end.
//!
//! What must hold: a frame has the same bytes here and on every follower. Recovery is idempotent. It keeps every frame at or
//! below the durable mark, or refuses; it syncs the frames that it keeps before it publishes a watermark.

pub mod control_entry;
pub mod format;
pub mod frame;
pub mod meta;
pub mod raft_meta;
pub mod segment;
pub mod truncate;

mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, Open};
use crate::error::{Error, Result};
use crate::lsn::{FrameIndex, Lsn, Position, Term, Timeline};
use crate::time::Ts;

pub use control_entry::ControlEntry;
pub use format::{Chain, Data, DurableMark, FrameType, Header, Run};
pub use frame::FrameBuilder;
pub use meta::{Meta, MetaFile};
pub use reader::{Body, End, Frame, Tail, durable_mark, examine, forget_unsynced, leftovers, parse, passed, scan};
pub use segment::{Spare, Spares, prepare, recycle, remove_spares};
pub use truncate::{Truncated, truncate};
pub use writer::{Appended, Opened, READY_FRAMES, Syncer, Writer};

/// Directory of the segments in the store directory.
pub const DIR: &str = "wal";

/// Properties of a new store.
#[derive(Clone, Copy, Debug)]
pub struct Create {
    /// Id of the store: random.
    pub store_id: u128,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Present time.
    pub now: Ts,
}

/// An open log.
pub struct Log {
    /// Appends frames.
    pub writer: Writer,
    /// Makes them durable.
    pub syncer: Syncer,
    /// The store's `store.meta`.
    pub meta: MetaFile,
    /// The torn tail above the durable mark that recovery truncated; `None` if there was no frame in it.
    pub truncated: Option<Tail>,
    /// Whether the previous process stopped cleanly.
    pub was_clean: bool,
}

/// Creates the store in `dir` if there is none.
///
/// # Errors
/// [`Error::Missing`] if there is a log without a `store.meta`; [`Error::Invalid`] if the segment size is; [`Error::Io`].
pub fn create_if_absent(disk: &dyn Disk, dir: &Path, create: Create) -> Result<()> {
    if !(format::SEGMENT_SIZE_MIN..=format::SEGMENT_SIZE_MAX).contains(&create.segment_size)
        || !create.segment_size.is_multiple_of(format::SEGMENT_HEAD_LEN)
    {
        let (min, max) = (format::SEGMENT_SIZE_MIN, format::SEGMENT_SIZE_MAX);
        return Err(Error::invalid(
            "segment size",
            format!("{} is not a multiple of 4096 from {min} to {max}", create.segment_size),
        ));
    }
    let wal = dir.join(DIR);
    if disk.exists(&dir.join(meta::NAME))? {
        return Ok(());
    }
    disk.create_dir(dir)?;
    disk.create_dir(&wal)?;
    if disk.list(&wal)?.iter().any(|n| format::segment_first(n).is_some()) {
        return Err(Error::Missing { path: dir.join(meta::NAME), what: "the directory holds a log" });
    }
    // The directories must be durable before `store.meta` is.
    disk.sync_dir(dir)?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    let first = Meta {
        store_id: create.store_id,
        segment_size: create.segment_size,
        created: create.now,
        term: Term(0),
        clean: true,
        timeline: Timeline(1),
        durable: DurableMark::default(),
        in_cluster: false,
    };
    MetaFile::create(disk, dir, first).map(drop)
}

/// Opens the log of the store in `dir` and passes every frame that it keeps from `from` on, a checkpoint or the log's
/// beginning, to `visit`. `seen` is the last record that readers may have seen.
///
/// Afterwards all visited frames are durable, and the timeline has risen if a record up to `seen` is gone. A pad at the end is
/// removed too: with it, hosts would disagree on the next frame's position. The writer has no term of its own before
/// [`Writer::set_term`]. Segments before `from` are removed, except those that reach into the last `keep` bytes.
///
/// # Errors
/// As [`scan`], and [`Error::Io`]. Nothing is changed before the whole log has been read, except that spare segments are
/// removed.
pub fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    from: Chain,
    keep: u64,
    seen: Lsn,
    mut visit: impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<Log> {
    let mut meta_file = MetaFile::open(disk.as_ref(), dir)?;
    let mut meta = *meta_file.meta();
    let wal = dir.join(DIR);
    segment::remove_spares(disk.as_ref(), &wal)?;
    // Visited records may be flushed at once: the names of their segments must be durable too.
    disk.sync_dir(&wal)?;
    let (was_clean, mut chain, mut before_pad) = (meta.clean, from, None);
    let mut end = scan(disk.as_ref(), &wal, &meta, from, Open::Write, |frame| {
        before_pad = (frame.header.kind() == FrameType::Pad).then_some(chain);
        chain.advance(&frame.header, meta.segment_size);
        visit(frame)
    })?;
    if let Some(at) = before_pad {
        truncate(disk.as_ref(), dir, from, FrameIndex(at.index.0 - 1))?;
        meta_file = MetaFile::open(disk.as_ref(), dir)?;
        meta = *meta_file.meta();
        let tail = end.tail.take();
        end = scan(disk.as_ref(), &wal, &meta, at, Open::Write, |_| Ok(()))?;
        end.tail = tail;
    }
    let is_kept = |first: Position| first.0 + meta.segment_size + keep > from.position.0;
    let passed = end.passed.iter().filter(|(first, _)| !is_kept(*first)).map(|(_, path)| path);
    for path in end.beyond.iter().chain(passed) {
        disk.remove(path)?;
    }
    disk.sync_dir(&wal)?;
    let durable = DurableMark {
        seq: end.durable_mark.seq,
        position: end.chain.position,
        index: FrameIndex(end.chain.index.0 - 1),
        lsn: Lsn(end.chain.lsn.0 - 1),
    };
    let withdrawn = durable.lsn < seen;
    meta_file.update(Meta {
        term: meta.term.max(end.chain.term),
        clean: false,
        timeline: Timeline(meta.timeline.0 + u64::from(withdrawn)),
        durable,
        ..meta
    })?;
    let parts = writer::Parts {
        disk: disk.clone(),
        dir: wal.clone(),
        store_id: meta.store_id,
        segment_size: meta.segment_size,
        chain: end.chain,
        segment: end.segment.clone(),
    };
    Ok(Log {
        writer: Writer::new(parts),
        syncer: Syncer::new(disk, wal, end.segment.map(|(_, file)| file), durable),
        meta: meta_file,
        truncated: end.tail.filter(|t| t.is_frame),
        was_clean,
    })
}

/// Position of the first frame of a log; the end of an empty log.
pub const BEGINNING: Position = Position(format::SEGMENT_HEAD_LEN);
