//! Owns: a store that no storage process serves, read from its files: the SSTables that the manifest names, and the records of
//! the log after the checkpoint, which are put into MemTables in this process's own memory.
//!
//! What must hold: nothing is written, locked or created, so a read-only file system and read permission are enough. The view
//! has every record that a start of storage would keep, each once, and no other: the log is read as recovery reads it. Files
//! that change meanwhile, because storage starts, are read again. As at a start, the disk counts and not what the cache holds
//! after a failed sync.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{History, View};
use crate::disk::{Disk, Open};
use crate::error::{Error, Result};
use crate::lsn::{FrameIndex, Lsn, Position};
use crate::manifest::{self, State};
use crate::memtable::{Origin, Table, Writer};
use crate::record::Name;
use crate::shm::control::{Control, Statistic};
use crate::sstable;
use crate::wal::{self, Body, Chain, ControlEntry, Frame, Meta, raft_meta};

/// Most memory that the records of the log may take. Storage keeps as many records out of SSTables as its MemTables hold,
/// 1 GiB unless `memtable-size` is set.
const MEMORY_MAX: u64 = 4 << 30;
/// Address space of one MemTable; memory is used as it fills.
const TABLE_LEN: u64 = 256 << 20;
/// Attempts to read the files while they change.
const TRIES: u32 = 20;

/// A store at rest.
#[derive(Debug)]
pub struct AtRest {
    dir: Arc<Path>,
    history: Arc<History>,
    tables: Vec<Arc<Table>>,
    /// Instrument names, by id from 1.
    pub names: Vec<Name>,
    /// A control page of this process, with the watermarks as of the end of the log.
    pub control: Control,
    /// The torn tail of the log, which a start of storage truncates; `None` if the log ends with a whole frame.
    pub torn: Option<TornTail>,
    read_as: ReadAs,
    end: Chain,
    segment_size: u64,
}

/// The place where a log ends within a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Where the torn frame begins in it.
    pub offset: u64,
    /// The check that failed.
    pub why: &'static str,
    /// The last record before it.
    pub last: Lsn,
}

/// The changing files, as they were when the store was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadAs {
    meta: Meta,
    manifest: Option<u64>,
    manifest_len: u64,
}

impl ReadAs {
    /// The files of the store in `dir` now; `None` if there is no store.
    fn now(disk: &dyn Disk, dir: &Path) -> Result<Option<ReadAs>> {
        let Some(meta) = wal::meta::read(disk, dir)? else { return Ok(None) };
        let manifest = manifest::Follower::new(dir, meta.store_id).number_now(disk)?;
        let path = manifest.map(|number| dir.join(manifest::format::file_name(number)));
        let manifest_len = path.map_or(Ok(0), |path| disk.open(&path, Open::Read)?.len())?;
        Ok(Some(ReadAs { meta, manifest, manifest_len }))
    }
}

/// Whether `dir` holds a store.
///
/// # Errors
/// [`Error::Io`].
pub fn is_store(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    disk.exists(&dir.join(wal::meta::NAME))
}

impl AtRest {
    /// Reads the store in `dir`.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no store; [`Error::Corrupt`], [`Error::Foreign`], [`Error::Version`] or
    /// [`Error::Missing`] if a file is damaged or absent; [`Error::Limit`] if the log holds more records than may be put into
    /// memory; [`Error::Io`].
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<AtRest> {
        let mut tries = 0;
        loop {
            let absent = || Error::Missing { path: dir.join(wal::meta::NAME), what: "every store has it" };
            let read_as = ReadAs::now(disk, dir)?.ok_or_else(absent)?;
            let found = read_once(disk, dir, read_as);
            tries += 1;
            if tries == TRIES || ReadAs::now(disk, dir).is_ok_and(|now| now == Some(read_as)) {
                return found;
            }
        }
    }

    /// Whether the files of the store in `dir` still are as they were read: storage may have served it meanwhile, or serve it
    /// where this process does not see it.
    ///
    /// # Errors
    /// As [`AtRest::read`].
    pub fn is_current(&self, disk: &dyn Disk, dir: &Path) -> Result<bool> {
        // An SSTable with an unreadable page is mapped again: its disk may have recovered.
        let is_sound = !self.history.files().iter().any(|file| file.is_damaged());
        Ok(is_sound && ReadAs::now(disk, dir)? == Some(self.read_as) && !self.has_next_frame(disk, dir)?)
    }

    /// Whether a whole frame has been appended after the last one read: a torn one stays what it is.
    fn has_next_frame(&self, disk: &dyn Disk, dir: &Path) -> Result<bool> {
        let first = self.end.position.0 / self.segment_size * self.segment_size;
        let path = dir.join(wal::DIR).join(wal::format::segment_name(Position(first)));
        if !disk.exists(&path)? {
            return Ok(false);
        }
        let mut bytes = [0; wal::format::HEADER_LEN as usize];
        let offset = (self.end.position.0 - first).max(wal::format::SEGMENT_HEAD_LEN);
        let segment = disk.open(&path, Open::Read)?;
        segment.read_at(&mut bytes, offset)?;
        let Some(header) = wal::Header::parse(&bytes).ok().filter(|header| self.end.check(header).is_ok()) else {
            return Ok(false);
        };
        if header.kind() == wal::FrameType::Pad || offset + header.total_len() > self.segment_size {
            return Ok(header.kind() == wal::FrameType::Pad);
        }
        let mut words = vec![0u64; header.total_len() as usize / 8];
        segment.read_at(bytemuck::cast_slice_mut(&mut words), offset)?;
        Ok(wal::parse(&words).is_ok())
    }

    /// The store up to `upto`.
    pub fn view(&self, upto: Lsn) -> View {
        View {
            history: self.history.clone(),
            tables: self.tables.clone(),
            upto: upto.min(self.control.applied()),
            served: (self.control.clone(), self.dir.clone()),
        }
    }

    /// The SSTables alone.
    pub fn flushed(&self) -> View {
        self.view(Lsn::NONE).flushed()
    }
}

fn read_once(disk: &dyn Disk, dir: &Path, read_as: ReadAs) -> Result<AtRest> {
    let meta = read_as.meta;
    if let Some(number) = read_as.manifest {
        disk.open(&dir.join(manifest::format::file_name(number)), Open::Read)?.drop_cache(0..u64::MAX)?;
    }
    let state = manifest_state(disk, dir, &meta)?;
    let mut files = std::collections::BTreeMap::new();
    for (id, file) in &state.files {
        files.insert(*id, Arc::new(sstable::Table::open(disk, &dir.join(sstable::DIR), *file)?));
    }
    let history = Arc::new(History::new(state.covered(), state.seq, &files));
    let mut rest = Tail {
        store_id: meta.store_id,
        names: state.names.clone(),
        kinds: state.kinds.len() as u64,
        active: None,
        tables: Vec::new(),
        bytes: 0,
        commit: raft_meta::committed(disk, dir)?.map(FrameIndex),
        committed: state.covered(),
    };
    let wal = dir.join(wal::DIR);
    wal::forget_unsynced(disk, &wal, &meta, state.checkpoint)?;
    let end = wal::scan(disk, &wal, &meta, state.checkpoint, Open::Read, |frame| rest.visit(frame))?;
    rest.finish();
    let last = Lsn(end.chain.lsn.0 - 1);
    let control = Control::private(meta.store_id)?;
    // What an earlier timeline withdrew is unknown here.
    control.set_timeline(meta.timeline, Lsn(1));
    control.set_appended(last, end.chain.position);
    control.set_durable(last, end.chain.position);
    control.reset_committed(if rest.commit.is_some() { rest.committed } else { last });
    control.set_applied(last);
    let counts = [
        (Statistic::Covered, state.covered().0),
        (Statistic::CheckpointPosition, state.checkpoint.position.0),
        (Statistic::Files, state.files.len() as u64),
        (Statistic::HistoryBytes, state.files.values().map(|f| f.len).sum()),
        (Statistic::Expired, state.expired),
        (Statistic::Instruments, rest.names.len() as u64),
        (Statistic::Kinds, rest.kinds),
    ];
    counts.into_iter().for_each(|(which, count)| control.set_statistic(which, count));
    let tail = end.tail.filter(|tail| tail.is_frame);
    let torn = tail.map(|tail| TornTail { path: tail.path, offset: tail.offset, why: tail.bad.what, last });
    let (names, tables) = (rest.names, rest.tables);
    let dir = dir.into();
    Ok(AtRest { dir, history, tables, names, control, torn, read_as, end: end.chain, segment_size: meta.segment_size })
}

/// The state of the manifest. A store whose first start was interrupted has none, and no SSTable.
fn manifest_state(disk: &dyn Disk, dir: &Path, meta: &Meta) -> Result<State> {
    if !disk.exists(&dir.join(manifest::format::CURRENT))? && !disk.exists(&dir.join(sstable::DIR))? {
        return Ok(State::begin(meta.store_id));
    }
    // Nothing has acted on a torn last edit.
    let (follower, _torn) = manifest::read_all(disk, dir, meta.store_id, &mut |_, _| {})?;
    Ok(follower.state().clone())
}

/// The records and control entries of the log after the checkpoint.
struct Tail {
    store_id: u128,
    names: Vec<Name>,
    kinds: u64,
    active: Option<Writer>,
    tables: Vec<Arc<Table>>,
    /// Bytes of the finished tables.
    bytes: u64,
    /// In a cluster: a frame that is known to be committed.
    commit: Option<FrameIndex>,
    /// The last record of the frames up to that one.
    committed: Lsn,
}

impl Tail {
    fn visit(&mut self, frame: &Frame<'_>) -> Result<()> {
        let header = &frame.header;
        match &frame.body {
            Body::Empty | Body::Membership(_) => {}
            Body::Control(entries) => entries.iter().for_each(|entry| match entry {
                ControlEntry::Symbol { name, .. } => self.names.push(*name),
                // Reading the log has registered it.
                ControlEntry::Kind(_) => self.kinds += 1,
                ControlEntry::Attach { .. } => {}
            }),
            Body::Data(data) => {
                let active = self.table(u64::from(header.count), header.first_lsn)?;
                let mut rest = data.records;
                for run in data.runs {
                    let (mine, after) = rest.split_at_checked(run.bytes as usize / 8).unwrap_or((&[], &[]));
                    let origin = Origin { publisher: run.publisher, epoch: run.epoch, first_pub_seq: run.first_pub_seq };
                    active.apply(origin, run.count, mine, header.ingest_ts);
                    rest = after;
                }
                assert!(rest.is_empty(), "runs and records of a checked frame agree");
            }
        }
        if self.commit.is_some_and(|commit| header.index <= commit) {
            self.committed = Lsn(header.first_lsn.0 + header.records() - 1);
        }
        Ok(())
    }

    /// The table for a frame of `records` records that begins at `first`.
    fn table(&mut self, records: u64, first: Lsn) -> Result<&mut Writer> {
        if self.active.as_ref().is_some_and(|active| !active.has_room(records)) {
            self.finish();
            if self.bytes + TABLE_LEN > MEMORY_MAX {
                let what = "the memory for records that are in the log only (start tape-storage, which flushes them)";
                return Err(Error::Limit { what, limit: MEMORY_MAX });
            }
        }
        match &mut self.active {
            Some(active) => Ok(active),
            none => {
                let mut active = Writer::private(self.store_id, self.tables.len() as u64 + 1, TABLE_LEN)?;
                active.begin(first);
                Ok(none.insert(active))
            }
        }
    }

    /// Finishes the active table.
    fn finish(&mut self) {
        if let Some(active) = self.active.take() {
            self.bytes += active.used();
            self.tables.push(Arc::new(active.finish()));
        }
    }
}
