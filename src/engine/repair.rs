//! Owns: examining a store that is damaged, the one way of giving records up, and putting files of history back.
//!
//! What must hold: nothing is changed before what will be gone is copied to `STORE/lost` and durable there; the
//! timeline has risen, durably, before the shorter log can be opened; killed at any point the store is refused as
//! before, and the same command goes on, or it is done; a file of history is put back only if it is the very same.

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
use tapestore::wal::format::{EVIDENCE_OFFSETS, SEGMENT_HEAD_LEN, SegmentHeader, segment_first, segment_name};
use tapestore::wal::{self, Body, Chain, Evidence, Frame, Meta, MetaFile, Tail};

/// What one epoch of a publisher would lose, as far as it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its first number that would be lost.
    pub first: PubSeq,
    /// Its last.
    pub last: PubSeq,
    /// Records.
    pub count: u64,
}

/// What the log would lose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The first record; `last` is less if there is none.
    pub first: Lsn,
    /// The last record that is known to have been there.
    pub last: Lsn,
    /// Of these, records that can still be read.
    pub readable: u64,
    /// By publisher and epoch, what can be read.
    pub publishers: BTreeMap<(PublisherId, Epoch), Gone>,
    /// Facts that can be read: attached publishers, names, kinds.
    pub facts: u64,
    /// When what can be read was taken in, from and to.
    pub taken_in: Option<(Ts, Ts)>,
}

impl Loss {
    /// Records.
    pub fn count(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }

    fn add(&mut self, frame: &Frame<'_>) {
        let ts = frame.header.ingest_ts;
        self.taken_in = Some(self.taken_in.map_or((ts, ts), |(from, to)| (from.min(ts), to.max(ts))));
        match &frame.body {
            Body::Control(facts) => self.facts += facts.len() as u64,
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

/// What is the matter with a store.
#[derive(Debug)]
pub struct Findings {
    /// Files of history.
    pub files: u64,
    /// Records in them, and in the log.
    pub filed: u64,
    /// The last record that the log still gives.
    pub last: Lsn,
    /// Files that are damaged or absent, and how.
    pub damaged: Vec<(FileMeta, Error)>,
    /// Damage at or below what is known to be durable of the log, and what it would cost to cut there.
    pub log: Option<(Error, Loss)>,
    /// A torn tail above that, which the next start cuts by itself.
    pub torn: Option<Tail>,
}

/// The log of a store, looked at.
struct Log {
    meta: Meta,
    state: State,
    /// Where it can be read up to.
    end: Chain,
    evidence: Evidence,
    damage: Option<Error>,
    torn: Option<Tail>,
}

impl Log {
    /// Looks at the log of `store` and shows each frame that the chain gives to `visit`, with the chain before it.
    fn look(disk: &dyn Disk, store: &Path, mut visit: impl FnMut(&Chain, &Frame<'_>)) -> Result<Log> {
        let meta = meta_of(disk, store)?;
        let state = state_of(disk, store, meta.store_id)?;
        let mut chain = state.checkpoint;
        let (end, damage) = wal::examine(disk, &store.join(wal::DIR), &meta, chain, Open::Read, |frame| {
            visit(&chain, frame);
            chain.advance(&frame.header, meta.segment_size);
            Ok(())
        })?;
        let torn = end.tail.filter(|t| t.is_frame && damage.is_none());
        Ok(Log { meta, state, end: end.chain, evidence: end.evidence, damage, torn })
    }

    /// What is lost when the log ends at `cut`.
    fn loss(&self, disk: &dyn Disk, store: &Path, cut: Chain) -> Result<Loss> {
        let mut loss = Loss { first: cut.lsn, last: Lsn(cut.lsn.0.saturating_sub(1)), ..Loss::default() };
        wal::leftovers(disk, &store.join(wal::DIR), &self.meta, cut, |frame| {
            loss.add(frame);
            Ok(())
        })?;
        loss.last = loss.last.max(self.evidence.lsn);
        Ok(loss)
    }
}

/// Examines the store `store`, which may be served: every byte of its files and log.
///
/// # Errors
/// That `store.meta` or the manifest cannot be read; [`Error::Io`].
pub fn examine(disk: &dyn Disk, store: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Findings> {
    let mut turns = 0;
    loop {
        let (found, seen) = examine_once(disk, store, progress)?;
        turns += 1;
        // What storage has merged, let go or used again meanwhile is no damage.
        let is_sound = found.damaged.is_empty() && found.log.is_none();
        if is_sound || turns >= TURNS || state_of(disk, store, meta_of(disk, store)?.store_id)?.seq == seen {
            return Ok(found);
        }
    }
}

/// Looks at a store that changes meanwhile at most this often.
const TURNS: u32 = 20;

/// What is found, and the edit of the manifest that it is of.
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
        filed: log.state.files.values().map(|f| f.rows).sum(),
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
fn cut_at(disk: &dyn Disk, store: &Path, at: Lsn) -> Result<(Log, Chain)> {
    let (mut cut, mut within) = (None, None);
    let log = Log::look(disk, store, |chain, frame| {
        let (first, records) = (frame.header.first_lsn.0, frame.header.records());
        if records > 0 && first == at.0 && cut.is_none() {
            cut = Some(*chain);
        }
        if first < at.0 && at.0 < first + records {
            within = Some((first, first + records));
        }
    })?;
    let covered = log.state.covered();
    if at <= covered {
        return invalid(format!(
            "records up to {covered} are in files of history and are not cut off: restore a backup instead, with \
             tape restore BACKUP --store NEW-DIRECTORY"
        ));
    }
    if let Some((first, next)) = within {
        return invalid(format!(
            "record {at} stands within a frame, which is kept or cut as one: name {first} or {next} instead"
        ));
    }
    match cut {
        Some(cut) => Ok((log, cut)),
        None if at == log.end.lsn => {
            let end = log.end;
            Ok((log, end))
        }
        None => {
            let (last, end) = (Lsn(log.end.lsn.0 - 1), log.end.lsn);
            invalid(format!("the log gives records up to {last}: {end} is the most that can be named"))
        }
    }
}

/// What would be lost if the log of `store` ended before the record `at`.
///
/// # Errors
/// [`Error::Invalid`] if it cannot end there, saying where it can; as [`examine`].
pub fn loss(disk: &dyn Disk, store: &Path, at: Lsn) -> Result<Loss> {
    let (log, cut) = cut_at(disk, store, at)?;
    log.loss(disk, store, cut)
}

/// Ends the log of `store` before the record `at`; gives what was lost, and the directory in which it is kept, if
/// there was anything to cut.
///
/// # Errors
/// [`Error::Locked`] while the store is served; as [`loss`].
pub fn truncate(disk: &dyn Disk, store: &Path, at: Lsn, now: Ts) -> Result<(Loss, Option<PathBuf>)> {
    let locks = (disk.lock(&store.join("LOCK"))?, disk.lock(&store.join(LOCK))?);
    if locks.0.is_none() || locks.1.is_none() {
        return Err(Error::Locked { path: store.to_path_buf() });
    }
    let (log, cut) = cut_at(disk, store, at)?;
    let loss = log.loss(disk, store, cut)?;
    if log.damage.is_none() && loss.count() == 0 {
        return Ok((loss, None));
    }
    let wal_dir = store.join(wal::DIR);
    let size = log.meta.segment_size;
    let firsts = disk.list(&wal_dir)?.iter().filter_map(|n| segment_first(n)).collect::<Vec<_>>();
    let from = cut.position.0 / size * size;
    let gone: Vec<Position> = firsts.into_iter().filter(|first| first.0 >= from).collect();
    let kept_in = keep(disk, store, &gone, &loss, now)?;
    // From here on a log that ends at the cut is on a later timeline, and no evidence of `store.meta` is behind it.
    let mut meta = MetaFile::open(disk, store)?;
    let timeline = Timeline(log.meta.timeline.0 + 1);
    meta.update(Meta { timeline, clean: false, durable: Evidence::of(&cut), ..log.meta })?;
    for first in gone.iter().filter(|first| first.0 > from || cut.position.0 == from + SEGMENT_HEAD_LEN) {
        disk.remove(&wal_dir.join(segment_name(*first)))?;
    }
    disk.sync_dir(&wal_dir)?;
    if cut.position.0 > from + SEGMENT_HEAD_LEN {
        shorten(disk, &wal_dir, &log.meta, Position(from), cut)?;
    }
    let end = verify_log(disk, store, meta.meta(), log.state.checkpoint)?;
    if end != cut {
        let (path, what) = (wal_dir, "end of the log that was cut");
        return Err(Error::Corrupt { path, offset: 0, lsn: at, what, expected: cut.position.0, found: end.position.0 });
    }
    Ok((loss, Some(kept_in)))
}

/// Copies the segments `gone`, and what is known of them, to a directory of their own, durably.
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

/// Puts a segment that ends at `cut` in the place of the one that begins at `first`.
fn shorten(disk: &dyn Disk, dir: &Path, meta: &Meta, first: Position, cut: Chain) -> Result<()> {
    let path = dir.join(segment_name(first));
    // The name of a spare: one that is left over goes at the next start.
    let fresh = dir.join("spare-repair.new");
    if disk.exists(&fresh)? {
        disk.remove(&fresh)?;
    }
    let file = disk.open(&fresh, Open::CreateNew)?;
    file.write_at(bytemuck::bytes_of(&SegmentHeader::new(meta.store_id, first, meta.segment_size)), 0)?;
    file.write_at(&Evidence { seq: 2, ..Evidence::of(&cut) }.to_bytes(), EVIDENCE_OFFSETS[0])?;
    // Without it the log ends at the checkpoint, before which nothing is read.
    if disk.exists(&path)? {
        let source = disk.open(&path, Open::Read)?;
        copy_range(source.as_ref(), file.as_ref(), SEGMENT_HEAD_LEN, cut.position.0 - first.0, &mut |_| {})?;
    }
    file.write_at(&[0], meta.segment_size - 1)?;
    file.sync()?;
    disk.rename(&fresh, &path)?;
    disk.sync_dir(dir)
}
