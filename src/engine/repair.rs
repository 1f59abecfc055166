//! Owns: the examination of a damaged store, the one way to give up records, and ([`rebuild`]) SSTables that are rebuilt from
//! another host's records.
//!
//! What must hold: nothing is changed before what will be lost is copied to `STORE/lost` and durable there. The timeline has
//! risen, durably, before the shorter log can be opened. Killed at any point, the store is refused as before, and the same
//! command continues; or the work is done. An SSTable is put back only if it is identical to the lost one.

pub mod rebuild;
pub mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::snapshot::backup::LOCK;
use crate::snapshot::restore::LOST;
use crate::snapshot::{Progress, meta_of, state_of, verify_file, verify_log};
use tapestore::disk::{Disk, Open, copy, copy_range, publish};
use tapestore::error::{Error, Result};
use tapestore::lsn::{Epoch, Lsn, Position, PubSeq, PublisherId, Timeline};
use tapestore::manifest::State;
use tapestore::sstable::{self, FileMeta};
use tapestore::time::Ts;
use tapestore::wal::format::{MARK_OFFSETS, SEGMENT_HEAD_LEN, SegmentHeader, segment_first, segment_name};
use tapestore::wal::{self, Body, Chain, DurableMark, Frame, Meta, MetaFile, Tail};

/// Records of one publisher's epoch that would be lost, as far as they can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// First number that would be lost.
    pub first: PubSeq,
    /// Last number that would be lost.
    pub last: PubSeq,
    /// Number of records.
    pub count: u64,
}

/// Records that the log would lose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The first lost record; `last` is less if there is none.
    pub first: Lsn,
    /// The last record that is known to have existed.
    pub last: Lsn,
    /// Of these, records that can still be read.
    pub readable: u64,
    /// Readable records, by publisher and epoch.
    pub publishers: BTreeMap<(PublisherId, Epoch), Gone>,
    /// Readable control entries: attached publishers, names, kinds.
    pub entries: u64,
    /// First and last ingest time of what is readable.
    pub ingested: Option<(Ts, Ts)>,
}

impl Loss {
    /// Number of records.
    pub fn count(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }

    fn add(&mut self, frame: &Frame<'_>) {
        let ts = frame.header.ingest_ts;
        self.ingested = Some(self.ingested.map_or((ts, ts), |(from, to)| (from.min(ts), to.max(ts))));
        match &frame.body {
            Body::Control(entries) => self.entries += entries.len() as u64,
            Body::Data(data) => {
                self.last = self.last.max(Lsn(frame.header.first_lsn.0 + frame.header.records() - 1));
                self.readable += frame.header.records();
                for run in data.runs {
                    let (first, count) = (run.first_pub_seq, u64::from(run.count));
                    let last = PubSeq(first.0 + count - 1);
                    let gone = self.publishers.entry((run.publisher, run.epoch)).or_insert(Gone { first, last, count: 0 });
                    *gone = Gone { first: gone.first.min(first), last: gone.last.max(last), count: gone.count + count };
                }
            }
            Body::Empty | Body::Membership(_) => {}
        }
    }
}

/// Result of an examination.
#[derive(Debug)]
pub struct Findings {
    /// Number of SSTables.
    pub files: u64,
    /// Records in them.
    pub flushed: u64,
    /// The last record that can be read from the log.
    pub last: Lsn,
    /// SSTables that are damaged or missing, with the error.
    pub damaged: Vec<(FileMeta, Error)>,
    /// Damage in the part of the log that was durable, and the loss if the log is truncated there.
    pub log: Option<(Error, Loss)>,
    /// A torn tail above that part, which the next start truncates by itself.
    pub torn: Option<Tail>,
}

/// The examined log of a store.
struct Log {
    meta: Meta,
    state: State,
    /// Up to where it can be read.
    end: Chain,
    durable_mark: DurableMark,
    damage: Option<Error>,
    torn: Option<Tail>,
}

impl Log {
    /// Reads the log of `store` and passes each valid frame to `visit`, with the chain before it.
    fn look(disk: &dyn Disk, store: &Path, mut visit: impl FnMut(&Chain, &Frame<'_>)) -> Result<Log> {
        let meta = meta_of(disk, store)?;
        let state = state_of(disk, store, meta.store_id)?;
        let mut chain = state.checkpoint;
        let (end, damage) = wal::examine(disk, &store.join(wal::DIR), &meta, chain, Open::Read, |frame| {
            visit(&chain, frame);
            chain.advance(&frame.header, meta.segment_size);
            Ok(())
        })?;
        assert!(chain == end.chain, "every frame up to the end was visited");
        let torn = end.tail.filter(|t| t.is_frame && damage.is_none());
        Ok(Log { meta, state, end: end.chain, durable_mark: end.durable_mark, damage, torn })
    }

    /// The loss if the log ends at `point`.
    fn loss(&self, disk: &dyn Disk, store: &Path, point: Chain) -> Result<Loss> {
        let mut loss = Loss { first: point.lsn, last: Lsn(point.lsn.0.saturating_sub(1)), ..Loss::default() };
        wal::leftovers(disk, &store.join(wal::DIR), &self.meta, point, |frame| {
            loss.add(frame);
            Ok(())
        })?;
        loss.last = loss.last.max(self.durable_mark.lsn);
        Ok(loss)
    }
}

/// Examines every byte of the SSTables and the log of `store`, which may be served.
///
/// # Errors
/// [`Error::Io`]; the error of `store.meta` or the manifest if it cannot be read.
pub fn examine(disk: &dyn Disk, store: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Findings> {
    let mut turns = 0;
    loop {
        let (found, seen) = examine_once(disk, store, progress)?;
        turns += 1;
        // A file that storage has merged, dropped or recycled meanwhile is no damage.
        let is_sound = found.damaged.is_empty() && found.log.is_none();
        if is_sound || turns >= TURNS || state_of(disk, store, meta_of(disk, store)?.store_id)?.seq == seen {
            return Ok(found);
        }
    }
}

/// Most attempts at a store that changes meanwhile.
const TURNS: u32 = 20;

/// Examines once; also returns the manifest's edit that was examined.
fn examine_once(disk: &dyn Disk, store: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(Findings, u64)> {
    let log = Log::look(disk, store, |_, _| {})?;
    let total = log.state.files.values().map(|f| f.len).sum();
    let mut damaged = Vec::new();
    for meta in log.state.files.values() {
        if let Err(error) = verify_file(disk, &store.join(sstable::DIR), *meta) {
            damaged.push((*meta, error));
        }
        progress(Progress { what: "reading files", more: meta.len, total });
    }
    let loss = match log.damage {
        Some(_) => Some(log.loss(disk, store, log.end)?),
        None => None,
    };
    let seen = log.state.seq;
    let found = Findings {
        files: log.state.files.len() as u64,
        flushed: log.state.files.values().map(|f| f.rows).sum(),
        last: Lsn(log.end.lsn.0 - 1),
        damaged,
        log: log.damage.zip(loss),
        torn: log.torn,
    };
    Ok((found, seen))
}

fn invalid<T>(reason: String) -> Result<T> {
    Err(Error::Invalid { what: "--truncate-at", reason })
}

/// The place at which the log ends before the record `at`.
fn truncation_point(disk: &dyn Disk, store: &Path, at: Lsn) -> Result<(Log, Chain)> {
    let (mut point, mut within) = (None, None);
    let log = Log::look(disk, store, |chain, frame| {
        let (first, records) = (frame.header.first_lsn.0, frame.header.records());
        if records > 0 && first == at.0 && point.is_none() {
            point = Some(*chain);
        }
        if first < at.0 && at.0 < first + records {
            within = Some((first, first + records));
        }
    })?;
    let covered = log.state.covered();
    if at <= covered {
        return invalid(format!(
            "records up to {covered} are in SSTables and are not truncated: restore a backup instead, with \
             tape restore BACKUP --store NEW-DIRECTORY"
        ));
    }
    if let Some((first, next)) = within {
        return invalid(format!(
            "record {at} lies within a frame, which is kept or removed as one: give {first} or {next} instead"
        ));
    }
    match point {
        Some(point) => Ok((log, point)),
        None if at == log.end.lsn => {
            let end = log.end;
            Ok((log, end))
        }
        None => {
            let (last, end) = (Lsn(log.end.lsn.0 - 1), log.end.lsn);
            invalid(format!("the log holds records up to {last}: {end} is the highest that can be given"))
        }
    }
}

/// The loss if the log of `store` ended before the record `at`.
///
/// # Errors
/// [`Error::Invalid`] if it cannot end there, with the places where it can; as [`examine`].
pub fn loss(disk: &dyn Disk, store: &Path, at: Lsn) -> Result<Loss> {
    let (log, point) = truncation_point(disk, store, at)?;
    log.loss(disk, store, point)
}

/// Truncates the log of `store` before the record `at`. Returns the loss, and the directory that keeps the removed
/// segments, if there was anything to remove.
///
/// # Errors
/// [`Error::Locked`] while the store is served; as [`loss`].
pub fn truncate(disk: &dyn Disk, store: &Path, at: Lsn, now: Ts) -> Result<(Loss, Option<PathBuf>)> {
    let locks = (disk.lock(&store.join(tapestore::disk::LOCK))?, disk.lock(&store.join(LOCK))?);
    if locks.0.is_none() || locks.1.is_none() {
        return Err(Error::Locked { path: store.to_path_buf() });
    }
    let (log, point) = truncation_point(disk, store, at)?;
    assert!(point.lsn == at && at > log.state.covered(), "the log ends before the record, and no SSTable has it");
    let loss = log.loss(disk, store, point)?;
    if log.damage.is_none() && loss.count() == 0 {
        return Ok((loss, None));
    }
    let wal_dir = store.join(wal::DIR);
    let size = log.meta.segment_size;
    let firsts = disk.list(&wal_dir)?.iter().filter_map(|n| segment_first(n)).collect::<Vec<_>>();
    let from = point.position.0 / size * size;
    let gone: Vec<Position> = firsts.into_iter().filter(|first| first.0 >= from).collect();
    let kept_in = keep(disk, store, &gone, &loss, now)?;
    // From here on a log that ends at this place is on a later timeline, and no durable mark of `store.meta` is after it.
    let mut meta = MetaFile::open(disk, store)?;
    let timeline = Timeline(log.meta.timeline.0 + 1);
    meta.update(Meta { timeline, clean: false, durable: DurableMark::of(&point), ..log.meta })?;
    let raised = meta.meta();
    assert!(raised.timeline > log.meta.timeline && raised.durable.lsn < at, "the timeline rises before anything is removed");
    for first in gone.iter().filter(|first| first.0 > from || point.position.0 == from + SEGMENT_HEAD_LEN) {
        disk.remove(&wal_dir.join(segment_name(*first)))?;
    }
    disk.sync_dir(&wal_dir)?;
    if point.position.0 > from + SEGMENT_HEAD_LEN {
        shorten(disk, &wal_dir, &log.meta, Position(from), point)?;
    }
    let end = verify_log(disk, store, meta.meta(), log.state.checkpoint)?;
    if end != point {
        let (path, what) = (wal_dir, "end of the truncated log");
        return Err(Error::Corrupt { path, offset: 0, lsn: at, what, expected: point.position.0, found: end.position.0 });
    }
    Ok((loss, Some(kept_in)))
}

/// Copies the segments `gone` and the description of `loss` to a directory of their own, durably.
fn keep(disk: &dyn Disk, store: &Path, gone: &[Position], loss: &Loss, now: Ts) -> Result<PathBuf> {
    let lost = store.join(LOST);
    disk.create_dir(&lost)?;
    disk.sync_dir(store)?;
    let dir = lost.join(format!("log-from-{}-{}", loss.first, now.0));
    let unfinished = dir.with_extension("unfinished");
    disk.create_dir(&unfinished)?;
    for name in disk.list(&unfinished)? {
        disk.remove(&unfinished.join(name))?;
    }
    for name in gone.iter().map(|first| segment_name(*first)) {
        copy(disk, &store.join(wal::DIR).join(&name), &unfinished.join(&name), &mut |_| {})?;
    }
    publish(disk, &unfinished.join("what.txt"), format!("{loss:#?}\n").as_bytes())?;
    disk.sync_dir(&unfinished)?;
    disk.swap_dirs(&unfinished, &dir)?;
    disk.sync_dir(&lost)?;
    Ok(dir)
}

/// Replaces the segment that begins at `first` by one that ends at `point`.
fn shorten(disk: &dyn Disk, dir: &Path, meta: &Meta, first: Position, point: Chain) -> Result<()> {
    let path = dir.join(segment_name(first));
    assert!(point.position.0 - first.0 < meta.segment_size, "the log ends in this segment, before its last byte");
    // Named like a spare, so that the next start removes one that is left over.
    let fresh = dir.join("spare-repair.new");
    if disk.exists(&fresh)? {
        disk.remove(&fresh)?;
    }
    let file = disk.open(&fresh, Open::CreateNew)?;
    file.write_at(bytemuck::bytes_of(&SegmentHeader::new(meta.store_id, first, meta.segment_size)), 0)?;
    file.write_at(&DurableMark { seq: 2, ..DurableMark::of(&point) }.to_bytes(), MARK_OFFSETS[0])?;
    // Without the segment the log ends at the checkpoint, before which nothing is read.
    if disk.exists(&path)? {
        let source = disk.open(&path, Open::Read)?;
        copy_range(source.as_ref(), file.as_ref(), SEGMENT_HEAD_LEN, point.position.0 - first.0, &mut |_| {})?;
    }
    file.write_at(&[0], meta.segment_size - 1)?;
    file.sync()?;
    disk.rename(&fresh, &path)?;
    disk.sync_dir(dir)
}
