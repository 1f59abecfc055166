//! Owns: the counters of the control page and the reasons of back-pressure, with their numbers.
//!
//! What must hold: a number is never given to another counter or reason, because other processes read them.

/// Counters of the storage process, since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Statistic {
    /// Records accepted.
    Records = 0,
    /// Frames appended.
    Frames = 1,
    /// Bytes appended to the log.
    Bytes = 2,
    /// Repeated records, dropped.
    Duplicates = 3,
    /// Batches refused for a gap in the sequence numbers before them.
    Gaps = 4,
    /// Batches refused as malformed.
    Malformed = 5,
    /// Batches refused because their epoch is fenced.
    Fenced = 6,
    /// Syncs of the log.
    Syncs = 7,
    /// Nanoseconds of back-pressure: MemTables full, disk behind, or no space.
    BackPressureNs = 8,
    /// Reason of the present back-pressure: a [`BackPressure`]; 0: none.
    BackPressure = 9,
    /// Publishers attached.
    Publishers = 10,
    /// Instruments registered.
    Instruments = 11,
    /// Bytes of one MemTable.
    MemTableLen = 12,
    /// Bytes used of the active MemTable.
    MemTableUsed = 13,
    /// Dead publishers whose bus files were swept.
    Swept = 14,
    /// MemTables flushed.
    Flushes = 15,
    /// Records flushed.
    FlushedRecords = 16,
    /// Bytes of SSTables that flushes have written.
    FlushedBytes = 17,
    /// Nanoseconds of flushes, without waits for syncs of the log.
    FlushNs = 18,
    /// Flushes that failed and are retried.
    FlushFailures = 19,
    /// SSTables.
    Files = 20,
    /// Bytes of SSTables.
    HistoryBytes = 21,
    /// LSN of the last flushed record.
    Covered = 22,
    /// Position of the checkpoint: recovery reads the log from there.
    CheckpointPosition = 23,
    /// Merges of SSTables.
    Merges = 24,
    /// Bytes of SSTables that merges have written.
    MergedBytes = 25,
    /// Nanoseconds of merges.
    MergeNs = 26,
    /// Merges that failed.
    MergeFailures = 27,
    /// Records dropped by retention, over the life of the store and not since the start.
    Expired = 28,
    /// 1 while a merge runs, else 0.
    Merging = 29,
    /// Times that back-pressure began because the disk is full.
    NoSpace = 32,
    /// Bytes free on the store's file system.
    FreeBytes = 33,
    /// Bytes of it that the store keeps free.
    KeptFree = 34,
    /// User-defined kinds.
    Kinds = 35,
    /// Start of the present back-pressure, ns of the monotonic clock; 0: none.
    BackPressureSince = 36,
    /// Since when this host has its present leader, or none: ns of the monotonic clock.
    LeaderSince = 37,
    /// Since when this host needs a snapshot of the leader's store, ns of the monotonic clock; 0: it does not.
    NeedsSnapshotSince = 38,
    /// Lines of the storage process's own log that could not be written.
    LogLinesLost = 39,
    /// MemTables spilled to the store's directory because shared memory was short.
    Spilled = 40,
    /// Times that the configuration was read again and used.
    Reloads = 41,
    /// Times that it was read again and refused.
    ReloadFailures = 42,
    /// Bytes of removed SSTables that other processes still map.
    PinnedBytes = 43,
    /// Times that readers were asked to release old snapshots.
    SnapshotsReleased = 44,
    /// Since when more is pinned than may be, although readers were asked: ns of the monotonic clock; 0: it is not.
    PinnedSince = 45,
    /// Times that the host's clock was found set, or behind the store.
    ClockSteps = 48,
    /// Amount of the newest clock step: ns, in two's complement.
    ClockStep = 49,
}

/// Reason of back-pressure, as [`Statistic::BackPressure`] numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum BackPressure {
    /// The MemTables are full and not flushed yet.
    MemTablesFull = 1,
    /// The disk syncs more slowly than records arrive.
    DiskBehind = 2,
    /// The log has stopped after a failed write or sync.
    Halted = 3,
    /// The disk is full.
    NoSpace = 4,
}

impl BackPressure {
    /// All reasons.
    pub const ALL: [BackPressure; 4] =
        [BackPressure::MemTablesFull, BackPressure::DiskBehind, BackPressure::Halted, BackPressure::NoSpace];

    /// Name for programs.
    pub fn name(self) -> &'static str {
        match self {
            BackPressure::MemTablesFull => "memtables-full",
            BackPressure::DiskBehind => "disk-behind",
            BackPressure::Halted => "halted",
            BackPressure::NoSpace => "no-space",
        }
    }

    /// Reason with the number `raw`.
    pub fn from_raw(raw: u64) -> Option<BackPressure> {
        BackPressure::ALL.into_iter().find(|why| *why as u64 == raw)
    }
}

/// Value of [`Statistic::BackPressure`] while the disk is full.
pub const NO_SPACE: u64 = BackPressure::NoSpace as u64;
