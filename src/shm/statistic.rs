//! Owns: the counters of the control page, and why publishers are under back-pressure, by their numbers.

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
    /// Records that came a second time and were dropped.
    Duplicates = 3,
    /// Batches refused because records before them are missing.
    Gaps = 4,
    /// Batches refused because they were malformed.
    Malformed = 5,
    /// Batches of a fenced epoch.
    Fenced = 6,
    /// Syncs of the log.
    Syncs = 7,
    /// Nanoseconds of back-pressure: full MemTables, too much unsynced, or no space.
    HeldBackNs = 8,
    /// Why publishers are under back-pressure now: 0 they are not, else a [`BackPressure`].
    HeldBack = 9,
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
    /// MemTables filed into history.
    Flushes = 15,
    /// Records filed.
    FlushedRecords = 16,
    /// Bytes of files written.
    FlushedBytes = 17,
    /// Nanoseconds spent on filing, waiting for the log's syncs aside.
    FlushNs = 18,
    /// Filings that failed and are tried again.
    FlushFailures = 19,
    /// Files of history.
    Files = 20,
    /// Bytes of history.
    HistoryBytes = 21,
    /// The last record that files hold.
    Covered = 22,
    /// Where the log goes on behind what the files hold.
    CheckpointPosition = 23,
    /// Merges of files of history.
    Merges = 24,
    /// Bytes of files that merges have written.
    MergedBytes = 25,
    /// Nanoseconds spent on merges.
    MergeNs = 26,
    /// Merges that failed.
    MergeFailures = 27,
    /// Records that are held no longer, because they have lived long enough: of the store, not since the start.
    Expired = 28,
    /// Whether files are being merged now: 1, else 0.
    Merging = 29,
    /// Times that records began to be refused because the disk is full.
    NoSpace = 32,
    /// Bytes free on the store's file system.
    FreeBytes = 33,
    /// Bytes of it that are kept free.
    KeptFree = 34,
    /// Kinds that programs defined.
    Kinds = 35,
    /// Since when publishers are under back-pressure, ns of the monotonic clock; 0: they are not.
    HeldBackSince = 36,
    /// Since when this host has the leader that it has, or none, ns of the monotonic clock.
    LeaderSince = 37,
    /// Since when this host waits for a snapshot of the leader's store, ns of the monotonic clock; 0: it does not.
    NeedsSnapshotSince = 38,
    /// Log lines of the storage process that could not be written.
    LogLinesLost = 39,
    /// MemTables that lay in the store's directory, because shared memory was short.
    Spilled = 40,
    /// Times that the host's clock was found to have been set, or to be behind the store.
    ClockSteps = 48,
    /// By how much it was, the last time: ns, in two's complement.
    ClockStep = 49,
}

/// Why publishers are under back-pressure, as [`Statistic::HeldBack`] numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum BackPressure {
    /// The MemTables are full and not flushed yet.
    MemTablesFull = 1,
    /// The disk does not sync as fast as records come.
    DiskBehind = 2,
    /// The log is stopped after a failed write or sync.
    Halted = 3,
    /// The disk is full.
    NoSpace = 4,
}

impl BackPressure {
    /// The reason of number `raw`.
    pub fn from_raw(raw: u64) -> Option<BackPressure> {
        [BackPressure::MemTablesFull, BackPressure::DiskBehind, BackPressure::Halted, BackPressure::NoSpace]
            .into_iter()
            .find(|why| *why as u64 == raw)
    }
}

/// Of [`Statistic::HeldBack`]: the disk is full.
pub const NO_SPACE: u64 = BackPressure::NoSpace as u64;
