//! Owns: the control page, one file per store, kept across restarts of storage. Storage writes it, all other processes read
//! it.
//!
//! ```text
//!    0 magic u64 · 8 version u64 · 16 store id u128
//!   64 instance u64 (odd while recovering) · 72 timeline u64 · 80 term u64 · 88 serving u64 (0 no, 1 yes)
//!   96 pid u64 · 104 started ts · 112 first LSN that the newest timeline withdrew
//!  128 heartbeat u64 (ns of CLOCK_MONOTONIC)
//!  192 role in the cluster u64 (0 none yet, else as in `consensus::message::Role`) · 200 leader u64 (0 unknown)
//!  208 lossy u64 (0: committed records are on the disks of a majority, 1: they may be in memories only)
//!  256 table version u64 (odd while it changes) · 264 count · 272 { memtable id u64 (its top bit: spilled), first LSN u64 } × 4
//!  336 manifest edit u64: its SSTables hold the records of the MemTables that are no longer listed
//!  448 oldest snapshot u64: readers are asked to release snapshots of an earlier manifest edit
//!  512 appended: LSN u64, position u64        each hot watermark on its own 128 bytes
//!  640 applied: LSN
//!  768 durable: LSN, position
//!  896 committed: LSN
//! 1024 statistics: 64 × u64
//! 1536 histograms: 7 × 40 × u64 (`histogram`)
//! 3776 records accepted since the start, by kind: 17 × u64: all kinds of users together, then the kinds 1 to 16
//! 4096 slots: 256 × 256 B, one per publisher session (`slot`)
//! ```
//!
//! Writing threads of storage, one at a time for each word:
//!
//! ```text
//! the thread that starts and stops storage   instance, timeline, first withdrawn LSN, serving, pid, started, lossy; and all
//!                                            others while neither ingest nor sync runs
//! space                                      the oldest snapshot
//! ingest                                     heartbeat, term, role, leader, the list of MemTables, appended, applied;
//!                                            committed in a cluster
//! sync                                       durable; committed on a single host
//! slots                                      as `slot` says
//! statistics                                 each has one of: ingest, sync, flush, space, attach, the starting thread
//! histograms                                 sync: append to durable, sync; ingest: the others
//! records by kind                            ingest
//! ```
//!
//! What must hold: a watermark is stored, with release, after everything that it covers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Mapping;
use super::health::Trouble;
use super::histogram::{self, BUCKETS, Distribution, HISTOGRAMS, Histogram};
use super::slot::SLOT_LEN;
pub use super::slot::{Slot, SlotState, SlotView};
pub use super::statistic::{BackPressure, NO_SPACE, Statistic};
use super::words::Words;
use crate::error::{Error, Result};
use crate::lsn::{Lsn, Position, Term, Timeline};
use crate::time::{Clock, HostClock, Ts};

const MAGIC: u64 = u64::from_le_bytes(*b"TAPECTRL");
const VERSION: u64 = 1;
const STORE_ID: u64 = 16;
const INSTANCE: u64 = 64;
const TIMELINE: u64 = 72;
const TERM: u64 = 80;
const SERVING: u64 = 88;
const PID: u64 = 96;
const STARTED: u64 = 104;
const WITHDRAWN: u64 = 112;
const HEARTBEAT: u64 = 128;
const ROLE: u64 = 192;
const LEADER: u64 = 200;
const FLUSH: u64 = 208;
const TABLE_VERSION: u64 = 256;
const TABLE_COUNT: u64 = 264;
const TABLES: u64 = 272;
const MANIFEST: u64 = 336;
/// On a cache line of its own: readers load it with every call, and it changes when they are asked to release something.
const OLDEST: u64 = 448;
const APPENDED: u64 = 512;
const APPLIED: u64 = 640;
const DURABLE: u64 = 768;
const COMMITTED: u64 = 896;
const STATISTICS: u64 = 1024;
const STATISTICS_MAX: u64 = 64;
const HISTOGRAMS_AT: u64 = 1536;
const BY_KIND: u64 = 3776;
const SLOTS: u64 = 4096;

/// Publishers that can be attached at once.
pub const SLOTS_MAX: usize = 256;
/// MemTables that can be live at once: one active, three sealed.
pub const TABLES_MAX: usize = 4;
/// Bytes of the page.
pub const LEN: u64 = SLOTS + SLOTS_MAX as u64 * SLOT_LEN;

/// Most reads of a table list that is changing: a change takes nanoseconds, unless its writer was killed in it.
const TABLE_TURNS: u32 = 20_000;

/// A heartbeat older than this means that storage is down.
pub const HEARTBEAT_AGE_MAX_NS: u64 = 1_000_000_000;

const _: () = assert!(TABLES + 16 * TABLES_MAX as u64 <= MANIFEST && MANIFEST + 8 <= OLDEST && OLDEST + 8 <= APPENDED);
const _: () = assert!(STATISTICS + STATISTICS_MAX * 8 <= HISTOGRAMS_AT);
const _: () = assert!(HISTOGRAMS_AT + HISTOGRAMS.len() as u64 * histogram::LEN <= BY_KIND);
const _: () = assert!(BY_KIND + KINDS_COUNTED as u64 * 8 <= SLOTS);

/// Counters of records by kind: one for each built-in kind, and one for all kinds of users.
pub const KINDS_COUNTED: usize = SCHEMAS_COUNT + 1;
const SCHEMAS_COUNT: usize = crate::record::SCHEMAS.len();

/// The control page.
#[derive(Clone, Debug)]
pub struct Control(Arc<Mapping>);

/// The live MemTables, as of one table version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableList {
    /// Version of the list; even.
    pub version: u64,
    /// Id and first LSN of each MemTable, oldest first; the first `count` are valid.
    pub tables: [(u64, Lsn); TABLES_MAX],
    /// Number of MemTables.
    pub count: usize,
    /// The manifest edit whose SSTables hold all earlier records.
    pub manifest: u64,
}

impl Control {
    /// Maps the control page at `path` for storage, creating it for the store `store_id`.
    ///
    /// # Errors
    /// [`Error::Foreign`] if the file is another store's or no control page; [`Error::Version`]; as
    /// [`Mapping::open_or_create`].
    pub fn open_or_create(path: &Path, store_id: u128) -> Result<Control> {
        let this = Control(Arc::new(Mapping::open_or_create(path, LEN)?));
        this.begin(store_id);
        this.check(path)?;
        if this.store_id() != store_id {
            return Err(Error::Foreign { path: path.to_path_buf(), what: "control page of this store", found: store_id as u64 });
        }
        Ok(this)
    }

    /// A control page of this process alone, for the store `store_id` that no storage process serves.
    ///
    /// # Errors
    /// As [`Mapping::private`].
    pub fn private(store_id: u128) -> Result<Control> {
        let this = Control(Arc::new(Mapping::private(LEN)?));
        this.begin(store_id);
        Ok(this)
    }

    /// Writes the head of a new page.
    fn begin(&self, store_id: u128) {
        if self.word(0).load(Ordering::Acquire) == 0 {
            self.word(8).store(VERSION, Ordering::Relaxed);
            self.word(STORE_ID).store(store_id as u64, Ordering::Relaxed);
            self.word(STORE_ID + 8).store((store_id >> 64) as u64, Ordering::Relaxed);
            // SYNC: pairs with the load in `check`.
            self.word(0).store(MAGIC, Ordering::Release);
        }
    }

    /// Maps the control page at `path` for reading.
    ///
    /// # Errors
    /// [`Error::Foreign`] or [`Error::Version`] if it is not one; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Control> {
        let this = Control(Arc::new(Mapping::open(path, false)?));
        this.check(path)?;
        Ok(this)
    }

    fn check(&self, path: &Path) -> Result<()> {
        if self.0.len() < LEN {
            return Err(Error::Foreign { path: path.to_path_buf(), what: "control page", found: self.0.len() });
        }
        // SYNC: pairs with the store in `open_or_create`.
        let magic = self.word(0).load(Ordering::Acquire);
        if magic != MAGIC {
            return Err(Error::Foreign { path: path.to_path_buf(), what: "control page", found: magic });
        }
        let version = self.word(8).load(Ordering::Relaxed);
        if version != VERSION {
            return Err(Error::Version { path: path.to_path_buf(), found: version as u32, supported: VERSION as u32 });
        }
        Ok(())
    }

    #[inline]
    fn word(&self, offset: u64) -> &AtomicU64 {
        self.0.u64(offset)
    }

    /// Whether this page was mapped from `path` and a file is still there.
    pub fn is_at(&self, path: &Path) -> bool {
        self.0.path() == path && path.exists()
    }

    /// Id of the store that the page belongs to.
    pub fn store_id(&self) -> u128 {
        let half = |at| u128::from(self.word(at).load(Ordering::Relaxed));
        half(STORE_ID) | half(STORE_ID + 8) << 64
    }

    /// Number of the storage process's start (its instance); odd while it recovers.
    pub fn instance(&self) -> u64 {
        // SYNC: pairs with `set_instance`.
        self.word(INSTANCE).load(Ordering::Acquire)
    }

    /// Publishes the instance, after everything that belongs to it.
    pub fn set_instance(&self, instance: u64) {
        // SYNC: pairs with `instance`.
        self.word(INSTANCE).store(instance, Ordering::Release);
    }

    /// The timeline.
    pub fn timeline(&self) -> Timeline {
        // SYNC: pairs with `set_timeline`.
        Timeline(self.word(TIMELINE).load(Ordering::Acquire))
    }

    /// The first LSN that the newest timeline withdrew.
    pub fn first_withdrawn(&self) -> Lsn {
        // SYNC: acquire, so that a timeline loaded afterwards is not older.
        Lsn(self.word(WITHDRAWN).load(Ordering::Acquire))
    }

    /// Sets the timeline and the first LSN that it withdrew.
    pub fn set_timeline(&self, timeline: Timeline, first_withdrawn: Lsn) {
        raise_timeline(&*self.0, timeline, first_withdrawn);
    }

    /// The term.
    pub fn term(&self) -> Term {
        Term(self.word(TERM).load(Ordering::Relaxed) as u32)
    }

    /// Process id of the storage process that serves; `None` if none is registered.
    pub fn server(&self) -> Option<u64> {
        // SYNC: pairs with `set_server`.
        let role = self.word(SERVING).load(Ordering::Acquire);
        (role != 0).then(|| self.word(PID).load(Ordering::Relaxed))
    }

    /// Start time of the storage process.
    pub fn started(&self) -> Ts {
        Ts(self.word(STARTED).load(Ordering::Relaxed))
    }

    /// Registers the serving process (pid, term, start time); `None`: no process serves.
    pub fn set_server(&self, server: Option<(u64, Term, Ts)>) {
        if let Some((pid, term, started)) = server {
            self.word(PID).store(pid, Ordering::Relaxed);
            self.word(TERM).store(u64::from(term.0), Ordering::Relaxed);
            self.word(STARTED).store(started.0, Ordering::Relaxed);
        } else {
            self.set_role(self.word(TERM).load(Ordering::Relaxed), 0, 0, 0);
        }
        // SYNC: pairs with `server`.
        self.word(SERVING).store(u64::from(server.is_some()), Ordering::Release);
    }

    /// Time of storage's last heartbeat, once per turn of its loop: ns of the monotonic clock.
    pub fn heartbeat(&self) -> u64 {
        // A lone number: relaxed.
        self.word(HEARTBEAT).load(Ordering::Relaxed)
    }

    /// Records a heartbeat of storage at `monotonic`.
    pub fn beat(&self, monotonic: u64) {
        self.word(HEARTBEAT).store(monotonic, Ordering::Relaxed);
    }

    /// Whether storage serves and its last heartbeat is less than a second before `monotonic`.
    pub fn is_alive(&self, monotonic: u64) -> bool {
        self.server().is_some() && self.has_beat(monotonic)
    }

    /// Whether the last heartbeat is less than a second before `monotonic`; storage also sends them while it recovers.
    pub fn has_beat(&self, monotonic: u64) -> bool {
        monotonic.saturating_sub(self.heartbeat()) < HEARTBEAT_AGE_MAX_NS
    }

    /// The trouble that the store has now, and its start time if known. `tape status`, its exit code and a publisher without
    /// an answer all use this one result. Of several troubles it reports the root, from which the others follow.
    pub fn trouble(&self) -> Option<(Trouble, Option<Ts>)> {
        let (monotonic, wall) = (HostClock.monotonic(), HostClock.wall());
        let at = |then: u64| Some(Ts(wall.0.saturating_sub(monotonic.saturating_sub(then)))).filter(|_| then > 0);
        let since = |which| at(self.statistic(which));
        let last_beat = at(self.heartbeat());
        let pressure = BackPressure::from_raw(self.statistic(Statistic::BackPressure));
        if !self.instance().is_multiple_of(2) {
            return Some((Trouble::Recovering, None));
        }
        if self.server().is_none() {
            let why = if pressure == Some(BackPressure::Halted) { Trouble::Halted } else { Trouble::Stopped };
            return Some((why, last_beat));
        }
        if !self.is_alive(monotonic) {
            return Some((Trouble::Silent, last_beat));
        }
        if self.statistic(Statistic::NeedsSnapshotSince) > 0 {
            return Some((Trouble::NeedsSnapshot, since(Statistic::NeedsSnapshotSince)));
        }
        let (role, leader) = self.role();
        if role > 0 && leader == 0 {
            return Some((Trouble::NoLeader, since(Statistic::LeaderSince)));
        }
        let trouble = match pressure? {
            BackPressure::MemTablesFull => Trouble::MemTablesFull,
            BackPressure::DiskBehind => Trouble::DiskBehind,
            BackPressure::Halted => Trouble::Halted,
            BackPressure::NoSpace => Trouble::NoSpace,
        };
        Some((trouble, since(Statistic::BackPressureSince)))
    }

    /// The manifest edit of the oldest snapshot that readers may keep: storage asks them to release those of earlier edits.
    #[inline]
    pub fn oldest_snapshot(&self) -> u64 {
        // A lone number: relaxed. A reader that sees it late releases its snapshot late.
        self.word(OLDEST).load(Ordering::Relaxed)
    }

    /// Asks readers to release the snapshots of manifest edits before `edit`; 0: none.
    pub fn set_oldest_snapshot(&self, edit: u64) {
        self.word(OLDEST).store(edit, Ordering::Relaxed);
    }

    /// The live MemTables; waits for a change in progress. `None` if the change does not end: storage was killed in it.
    pub fn tables(&self) -> Option<TableList> {
        for turn in 0..TABLE_TURNS {
            if let Some(list) = look_at_tables(&*self.0) {
                return Some(list);
            }
            if turn < 100 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        None
    }

    /// The version of the table list.
    pub fn table_version(&self) -> u64 {
        // SYNC: pairs with the last store in `change_tables`.
        self.word(TABLE_VERSION).load(Ordering::Acquire)
    }

    /// Replaces the list of live MemTables; `manifest` is the edit whose SSTables hold all earlier records.
    ///
    /// # Panics
    /// If there are more than [`TABLES_MAX`].
    pub fn set_tables(&self, tables: &[(u64, Lsn)], manifest: u64) {
        assert!(tables.len() <= TABLES_MAX);
        change_tables(&*self.0, tables, manifest);
    }

    /// LSN of the last record appended to the log.
    pub fn appended(&self) -> Lsn {
        // SYNC: pairs with `set_appended`.
        Lsn(self.word(APPENDED).load(Ordering::Acquire))
    }

    /// End of the log.
    pub fn appended_position(&self) -> Position {
        Position(self.word(APPENDED + 8).load(Ordering::Relaxed))
    }

    /// Moves `appended`.
    pub fn set_appended(&self, lsn: Lsn, position: Position) {
        self.word(APPENDED + 8).store(position.0, Ordering::Relaxed);
        // SYNC: pairs with `appended`.
        self.word(APPENDED).store(lsn.0, Ordering::Release);
    }

    /// LSN of the last record in a MemTable: readers see records up to it.
    #[inline]
    pub fn applied(&self) -> Lsn {
        // SYNC: pairs with `set_applied`; rows, lengths and arrival entries are ordered before it.
        Lsn(self.word(APPLIED).load(Ordering::Acquire))
    }

    /// Moves `applied`, after the rows.
    pub fn set_applied(&self, lsn: Lsn) {
        // SYNC: pairs with `applied`.
        self.word(APPLIED).store(lsn.0, Ordering::Release);
    }

    /// LSN of the last durable record.
    pub fn durable(&self) -> Lsn {
        // SYNC: pairs with `set_durable`.
        Lsn(self.word(DURABLE).load(Ordering::Acquire))
    }

    /// End of the durable part of the log.
    pub fn durable_position(&self) -> Position {
        Position(self.word(DURABLE + 8).load(Ordering::Relaxed))
    }

    /// Moves `durable`.
    pub fn set_durable(&self, lsn: Lsn, position: Position) {
        self.word(DURABLE + 8).store(position.0, Ordering::Relaxed);
        // SYNC: pairs with `durable`.
        self.word(DURABLE).store(lsn.0, Ordering::Release);
    }

    /// Moves `committed` up.
    pub fn set_committed(&self, lsn: Lsn) {
        // SYNC: pairs with `committed`.
        self.word(COMMITTED).fetch_max(lsn.0, Ordering::Release);
    }

    /// Sets `committed` at a start; it falls only if the timeline has risen.
    pub fn reset_committed(&self, lsn: Lsn) {
        // SYNC: pairs with `committed`.
        self.word(COMMITTED).store(lsn.0, Ordering::Release);
    }

    /// Publishes this host's role in the cluster in `term`, and the leader, as of `now`; 0: unknown.
    pub fn set_role(&self, term: u64, part: u64, leader: u64, now: u64) {
        if leader != self.word(LEADER).load(Ordering::Relaxed) || self.statistic(Statistic::LeaderSince) == 0 {
            self.set_statistic(Statistic::LeaderSince, now);
        }
        self.word(TERM).store(term, Ordering::Relaxed);
        self.word(LEADER).store(leader, Ordering::Relaxed);
        self.word(ROLE).store(part, Ordering::Relaxed);
    }

    /// Whether committed records may be in memory only on a majority of the hosts.
    pub fn is_lossy(&self) -> bool {
        // A lone number, set before the instance is even: relaxed.
        self.word(FLUSH).load(Ordering::Relaxed) == 1
    }

    /// Publishes whether committed records may be in memory only on a majority of the hosts.
    pub fn set_lossy(&self, is_lossy: bool) {
        self.word(FLUSH).store(u64::from(is_lossy), Ordering::Relaxed);
    }

    /// This host's role in the cluster, as a number of `consensus::message::Role`, and the leader; 0: unknown.
    pub fn role(&self) -> (u64, u64) {
        (self.word(ROLE).load(Ordering::Relaxed), self.word(LEADER).load(Ordering::Relaxed))
    }

    /// LSN of the last committed record.
    pub fn committed(&self) -> Lsn {
        // SYNC: pairs with `set_committed`.
        Lsn(self.word(COMMITTED).load(Ordering::Acquire))
    }

    /// Value of the counter `which`.
    pub fn statistic(&self, which: Statistic) -> u64 {
        self.word(STATISTICS + which as u64 * 8).load(Ordering::Relaxed)
    }

    /// Adds `more` to the counter `which`, which has one writing thread.
    pub fn add(&self, which: Statistic, more: u64) {
        let word = self.word(STATISTICS + which as u64 * 8);
        word.store(word.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }

    /// Sets the counter `which`.
    pub fn set_statistic(&self, which: Statistic, value: u64) {
        self.word(STATISTICS + which as u64 * 8).store(value, Ordering::Relaxed);
    }

    /// Adds `value` to the histogram `which`, which has one writing thread.
    #[inline]
    pub fn observe(&self, which: Histogram, value: u64) {
        let at = HISTOGRAMS_AT + which as u64 * histogram::LEN;
        let add = |word: &AtomicU64, more| word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        add(self.word(at + which.bucket(value) as u64 * 8), 1);
        add(self.word(at + BUCKETS as u64 * 8), value);
    }

    /// The histogram `which`.
    pub fn distribution(&self, which: Histogram) -> Distribution {
        let at = HISTOGRAMS_AT + which as u64 * histogram::LEN;
        let word = |n: usize| self.word(at + n as u64 * 8).load(Ordering::Relaxed);
        Distribution { of: which, counts: std::array::from_fn(word), sum: word(BUCKETS) }
    }

    /// Adds accepted records: `counts` by kind, as [`Control::records_by_kind`] has them. One thread does.
    #[inline]
    pub fn add_by_kind(&self, counts: &[u32; KINDS_COUNTED]) {
        for (at, count) in (BY_KIND..).step_by(8).zip(counts).filter(|(_, count)| **count > 0) {
            let word = self.word(at);
            word.store(word.load(Ordering::Relaxed) + u64::from(*count), Ordering::Relaxed);
        }
    }

    /// Records accepted since the start: of all kinds of users together, then of the kinds 1, 2 and so on.
    pub fn records_by_kind(&self) -> [u64; KINDS_COUNTED] {
        std::array::from_fn(|n| self.word(BY_KIND + n as u64 * 8).load(Ordering::Relaxed))
    }

    /// Publishes the reason of the back-pressure on publishers, as of `now`; `None`: no back-pressure.
    pub fn set_back_pressure(&self, why: Option<BackPressure>, now: u64) {
        self.set_since(Statistic::BackPressureSince, why.is_some(), now);
        self.set_statistic(Statistic::BackPressure, why.map_or(0, |why| why as u64));
    }

    /// Publishes whether this host needs a snapshot of the leader's store, as of `now`.
    pub fn set_needs_snapshot(&self, needs: bool, now: u64) {
        self.set_since(Statistic::NeedsSnapshotSince, needs, now);
    }

    /// Keeps in `which` the time since when the condition holds; 0 while it does not.
    fn set_since(&self, which: Statistic, is: bool, now: u64) {
        if !is || self.statistic(which) == 0 {
            self.set_statistic(which, if is { now.max(1) } else { 0 });
        }
    }

    /// Slot number `index`.
    ///
    /// # Panics
    /// If `index` is not below [`SLOTS_MAX`].
    pub fn slot(&self, index: usize) -> Slot {
        assert!(index < SLOTS_MAX, "slot {index}");
        Slot { map: self.0.clone(), base: SLOTS + index as u64 * SLOT_LEN }
    }

    /// Sets counters to zero and frees all slots, at a start of storage. Watermarks stay until recovery sets them.
    pub fn reset(&self) {
        // Statistics, histograms and records by kind lie one after the other.
        for at in (STATISTICS..SLOTS).step_by(8) {
            self.word(at).store(0, Ordering::Relaxed);
        }
        for i in 0..SLOTS_MAX {
            self.slot(i).free();
        }
    }
}

/// Sets the timeline and the first LSN that it withdrew.
fn raise_timeline(words: &impl Words, timeline: Timeline, first_withdrawn: Lsn) {
    words.store64(WITHDRAWN, first_withdrawn.0, Ordering::Relaxed);
    // SYNC: pairs with `Control::timeline`; the first withdrawn LSN is ordered before it, and it before any watermark that
    // falls.
    words.store64(TIMELINE, timeline.0, Ordering::Release);
}

/// Replaces the list of MemTables.
fn change_tables(words: &impl Words, tables: &[(u64, Lsn)], manifest: u64) {
    // A process killed in here leaves an odd version.
    let version = words.load64(TABLE_VERSION, Ordering::Relaxed) | 1;
    words.store64(TABLE_VERSION, version, Ordering::Relaxed);
    // SYNC: orders the odd version before the entries (a sequence lock); pairs with the fence in `look_at_tables`.
    words.fence(Ordering::Release);
    for (&(id, first), at) in tables.iter().zip((TABLES..).step_by(16)) {
        words.store64(at, id, Ordering::Relaxed);
        words.store64(at + 8, first.0, Ordering::Relaxed);
    }
    words.store64(TABLE_COUNT, tables.len() as u64, Ordering::Relaxed);
    words.store64(MANIFEST, manifest, Ordering::Relaxed);
    // SYNC: pairs with the first load in `look_at_tables`.
    words.store64(TABLE_VERSION, version + 1, Ordering::Release);
}

/// Reads the list of MemTables; `None` while it changes.
fn look_at_tables(words: &impl Words) -> Option<TableList> {
    // SYNC: pairs with the last store in `change_tables`.
    let version = words.load64(TABLE_VERSION, Ordering::Acquire);
    let mut list = TableList { version, tables: [(0, Lsn::NONE); TABLES_MAX], count: 0, manifest: 0 };
    list.count = (words.load64(TABLE_COUNT, Ordering::Relaxed) as usize).min(TABLES_MAX);
    for (entry, at) in list.tables.iter_mut().zip((TABLES..).step_by(16)).take(list.count) {
        *entry = (words.load64(at, Ordering::Relaxed), Lsn(words.load64(at + 8, Ordering::Relaxed)));
    }
    list.manifest = words.load64(MANIFEST, Ordering::Relaxed);
    // SYNC: orders the entries before the second load of the version; pairs with the fence in `change_tables`.
    words.fence(Ordering::Acquire);
    (version.is_multiple_of(2) && words.load64(TABLE_VERSION, Ordering::Relaxed) == version).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::{Epoch, PubSeq, PublisherId};
    use crate::shm::words::model::Modelled;

    #[test]
    fn a_table_list_is_read_whole_or_not_at_all_in_every_memory_order() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let words = [TABLE_VERSION, TABLE_COUNT, TABLES, TABLES + 8, MANIFEST];
            let page = loom::sync::Arc::new(Modelled::new(&[], &words));
            change_tables(&*page, &[(1, Lsn(10))], 100);
            let theirs = page.clone();
            let writer = loom::thread::spawn(move || change_tables(&*theirs, &[(2, Lsn(20))], 200));
            if let Some(list) = look_at_tables(&*page) {
                let whole = [(2, (1, Lsn(10)), 100), (4, (2, Lsn(20)), 200)];
                assert!(whole.contains(&(list.version, list.tables[0], list.manifest)) && list.count == 1, "{list:?}");
            }
            writer.join().unwrap();
        });
    }

    #[test]
    fn a_reader_of_a_fallen_watermark_reads_the_new_timeline_and_the_first_withdrawn_lsn() {
        loom::model(|| {
            let page = loom::sync::Arc::new(Modelled::new(&[], &[WITHDRAWN, TIMELINE, APPLIED]));
            page.store64(APPLIED, 9, Ordering::Release);
            raise_timeline(&*page, Timeline(1), Lsn::NONE);
            let theirs = page.clone();
            // The log is truncated after record 5.
            let writer = loom::thread::spawn(move || {
                raise_timeline(&*theirs, Timeline(2), Lsn(6));
                theirs.store64(APPLIED, 5, Ordering::Release);
            });
            if page.load64(APPLIED, Ordering::Acquire) == 5 {
                assert_eq!(page.load64(TIMELINE, Ordering::Acquire), 2);
                assert_eq!(page.load64(WITHDRAWN, Ordering::Acquire), 6);
            }
            writer.join().unwrap();
        });
    }

    fn page() -> (tempfile::TempDir, Control) {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open_or_create(&dir.path().join("control"), 7).unwrap();
        (dir, control)
    }

    #[test]
    fn a_slot_is_readable_with_its_current_grant_only() {
        let (_dir, control) = page();
        let slot = control.slot(3);
        assert!(slot.view(0x11).is_none());
        slot.grant(0x11, (PublisherId(1), 77), Epoch(2), PubSeq(5), Lsn(9));
        let view = slot.view(0x11).unwrap();
        assert_eq!((view.accepted, view.durable, view.gap_count, view.pid), (PubSeq(5), PubSeq(5), 0, Some(77)));
        slot.grant(0x12, (PublisherId(8), 0), Epoch(1), PubSeq(0), Lsn(9));
        assert!(slot.view(0x11).is_none(), "the slot has another grant now");
        slot.gap(PubSeq(1));
        let view = slot.view(0x12).unwrap();
        assert_eq!((view.gap_expected, view.pid), (PubSeq(1), None));
    }

    #[test]
    fn the_page_of_another_store_or_version_is_refused() {
        let (dir, control) = page();
        let path = dir.path().join("control");
        assert!(matches!(Control::open_or_create(&path, 8), Err(Error::Foreign { .. })));
        control.word(8).store(9, Ordering::Relaxed);
        assert!(matches!(Control::open(&path), Err(Error::Version { found: 9, .. })));
        control.word(0).store(1, Ordering::Relaxed);
        assert!(matches!(Control::open(&path), Err(Error::Foreign { .. })));
    }

    #[test]
    fn an_unfinished_change_of_the_table_list_is_not_waited_for() {
        let (_dir, control) = page();
        control.set_tables(&[(1, Lsn(1))], 0);
        control.word(TABLE_VERSION).fetch_add(1, Ordering::Relaxed);
        assert_eq!(control.tables(), None);
        control.set_tables(&[(2, Lsn(1))], 0);
        assert_eq!(control.tables().unwrap().count, 1);
    }

    #[test]
    fn the_table_list_is_read_whole_while_it_changes() {
        let (_dir, control) = page();
        let writer = control.clone();
        let end = crate::agent::Stop::default();
        let theirs = end.clone();
        let thread = std::thread::spawn(move || {
            let mut i = 0;
            while !theirs.is_stopped() {
                i += 1;
                writer.set_tables(&[(i, Lsn(i)), (i + 1, Lsn(i + 1))], i);
                // Changes are rare in production too.
                std::thread::yield_now();
            }
        });
        for _ in 0..20_000 {
            let list = control.tables().unwrap();
            if list.count == 2 {
                let [(a, b), (c, d), ..] = list.tables;
                assert_eq!((Lsn(a), c, d, list.manifest), (b, a + 1, Lsn(a + 1), a));
            }
        }
        end.stop();
        thread.join().unwrap();
    }

    #[test]
    fn the_root_trouble_is_reported_with_its_time() {
        let (_dir, control) = page();
        let what = || control.trouble().map(|(trouble, _)| trouble);
        // Whole hours since the trouble began: the test takes less than one.
        let hours = || {
            let since = control.trouble().unwrap().1.unwrap();
            (HostClock.wall().0 - since.0) / 3_600_000_000_000
        };
        let ago = |hours: u64| HostClock.monotonic().saturating_sub(hours * 3_600_000_000_000).max(1);
        control.set_instance(1);
        assert_eq!(what(), Some(Trouble::Recovering));
        control.set_instance(2);
        assert_eq!(control.trouble(), Some((Trouble::Stopped, None)));
        control.set_server(Some((1, Term(1), Ts(5))));
        assert_eq!(what(), Some(Trouble::Silent));
        control.beat(HostClock.monotonic());
        assert_eq!(what(), None, "it serves, outside a cluster");
        control.set_role(1, 2, 0, 10);
        control.set_back_pressure(Some(BackPressure::NoSpace), ago(0));
        assert_eq!(what(), Some(Trouble::NoLeader));
        let since = control.trouble().unwrap().1.unwrap();
        control.set_role(2, 2, 0, ago(0));
        let again = control.trouble().unwrap().1.unwrap();
        assert!(again.0.abs_diff(since.0) < 1_000_000_000, "a new term keeps the time since when there is no leader");
        control.set_role(2, 2, 3, ago(0));
        control.set_back_pressure(Some(BackPressure::DiskBehind), ago(0));
        assert_eq!((what(), hours()), (Some(Trouble::DiskBehind), 0));
        control.set_needs_snapshot(true, ago(0));
        assert_eq!(what(), Some(Trouble::NeedsSnapshot));
        control.set_needs_snapshot(false, ago(0));
        control.set_back_pressure(None, ago(0));
        assert_eq!(what(), None);
        control.set_back_pressure(Some(BackPressure::Halted), ago(0));
        control.set_server(None);
        assert_eq!(what(), Some(Trouble::Halted));
    }
}
