//! Owns: the library's one error type, and the result of a format check that has no path and no LSN yet.
//!
//! What must hold: every variant carries the values an operator needs (path, offset, LSN, expected,
//! found), and its message states what happened, to what, and what to do. No other crate's type appears
//! here: a cause from another library is kept as text. The code that handles an error reports it; code
//! that returns it does not.

use std::path::{Path, PathBuf};

use crate::lsn::Lsn;

/// The result of every fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed check of some bytes; the code that read them turns it into an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Bad {
    /// Which check failed.
    pub what: &'static str,
    /// The value it requires.
    pub expected: u64,
    /// The value that was found.
    pub found: u64,
}

/// The store that the file `path` belongs to.
fn store_of(path: &Path) -> &Path {
    let parent = path.parent().unwrap_or(path);
    match parent.file_name().and_then(|n| n.to_str()) {
        Some("wal" | "sst") => parent.parent().unwrap_or(parent),
        _ => parent,
    }
}

/// The most memory maps a process can have; `None` if the system does not report it.
#[doc(hidden)]
pub fn maps_max() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}

/// Memory maps of this process. Allocates little: there may be no memory left.
fn maps_now() -> std::io::Result<u64> {
    let (mut file, mut chunk, mut lines) = (std::fs::File::open("/proc/self/maps")?, [0; 4096], 0);
    loop {
        let read = std::io::Read::read(&mut file, &mut chunk)?;
        if read == 0 {
            return Ok(lines);
        }
        lines += chunk.iter().take(read).filter(|b| **b == b'\n').count() as u64;
    }
}

/// A process this near to the limit has reached it: the system lists some maps as one, and counting takes some.
const MAPS_NEAR: u64 = 64;

/// Checks that `found` is `expected`; `what` names the check.
#[doc(hidden)]
pub fn demand(what: &'static str, expected: u64, found: u64) -> Result<(), Bad> {
    if expected == found { Ok(()) } else { Err(Bad { what, expected, found }) }
}

/// Every error of the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// Present-tense verb, e.g. `"sync"`.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// This process, or the host, has exhausted a resource that an operation on a file needs.
    #[error("cannot {op} {path}: {what}", path = path.display())]
    Exhausted {
        /// Present-tense verb.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Which resource is exhausted, and how to raise its limit.
        what: &'static str,
    },
    /// Durable bytes are not those that were written.
    #[error(
        "{path} is damaged at offset {offset} ({what}: expected {expected:#x}, found {found:#x}) before LSN {lsn}; \
         nothing was changed. To see the remedies, run: tape repair --store {store}",
        path = path.display(), store = store_of(path).display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Byte offset of the damaged structure in the file.
        offset: u64,
        /// The first LSN that cannot be read.
        lsn: Lsn,
        /// Which check failed.
        what: &'static str,
        /// The value the check requires.
        expected: u64,
        /// The value in the file.
        found: u64,
    },
    /// A file that this program did not write.
    #[error("{path} is not a tapestore {what} (it begins with {found:#018x}); if it should be one, run: tape repair --store {store}", path = path.display(), store = store_of(path).display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The kind of file that was expected.
        what: &'static str,
        /// Its first eight bytes, little-endian.
        found: u64,
    },
    /// A file of another format version.
    #[error("{path} has format version {found}, this program reads version {supported}; use the program version that wrote it: tape-storage --version", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version this program reads.
        supported: u32,
    },
    /// A file that must exist does not.
    #[error(
        "{path} is missing ({what}); nothing was changed. To see the remedies, run: tape repair --store {store}",
        path = path.display(), store = store_of(path).display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Why it must exist.
        what: &'static str,
    },
    /// Another process owns the store.
    #[error("the store {path} is locked by another process, which serves, backs up, compacts or repairs it; stop that process first or use another --store. To see whether it is served, run: tape status --store {path}", path = path.display())]
    Locked {
        /// The store directory.
        path: PathBuf,
    },
    /// The hosts of a cluster disagree, or one cannot do what another asks of it.
    #[error("this host cannot {what}: {cause}")]
    Consensus {
        /// The operation that failed: a verb and its object.
        what: &'static str,
        /// Why it failed, and the next command.
        cause: String,
    },
    /// The log stopped after an I/O error; nothing is acknowledged until the process restarts.
    #[error(
        "the log is stopped after a failed {op}: {cause}. Nothing more is acknowledged; check the disk, then restart tape-storage"
    )]
    Halted {
        /// The operation that failed first.
        op: &'static str,
        /// The first failure's text.
        cause: String,
    },
    /// The MemTables are full until one of them is flushed.
    #[error(
        "the MemTables are full: {rows} records in {tables} tables of {bytes} bytes wait to be flushed; give the disk time or free space on it, or start tape-storage with a larger --memtable-size"
    )]
    MemTableFull {
        /// Rows in all tables.
        rows: u64,
        /// Bytes of one table.
        bytes: u64,
        /// Tables in use.
        tables: usize,
    },
    /// Shared memory has too little room for an allocation.
    #[error("{path}: shared memory has {free} bytes free, {wanted} are needed; free some of it (df -h /dev/shm; du -sh /dev/shm/*; tape status names processes that hold some) or enlarge it (for a container: --shm-size)", path = path.display())]
    NoSharedMemory {
        /// The file that could not be allocated.
        path: PathBuf,
        /// Bytes needed.
        wanted: u64,
        /// Bytes free.
        free: u64,
    },
    /// This process has reached its limit of memory maps.
    #[error(
        "cannot map {path}: this process has {maps} of the {limit} memory maps that the system allows, an SSTable takes two \
         and a MemTable one. Release snapshots, or raise the limit: sysctl -w vm.max_map_count={more}",
        path = path.display(), more = limit.saturating_mul(4)
    )]
    TooManyMaps {
        /// The file that was to be mapped.
        path: PathBuf,
        /// Maps of this process.
        maps: u64,
        /// The most it can have.
        limit: u64,
    },
    /// A value from outside breaks a rule.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// The value's name.
        what: &'static str,
        /// Which rule it breaks.
        reason: String,
    },
    /// The bus failed an operation.
    #[error("cannot {op} {service} on the bus: {cause}. To see the state of storage, run: tape status")]
    Bus {
        /// Present-tense verb.
        op: &'static str,
        /// The service's name.
        service: String,
        /// The bus's error text.
        cause: String,
    },
    /// No storage process serves the store.
    #[error("no storage process serves {dir} ({why}); start one with: tape-storage --store {dir}", dir = dir.display())]
    StorageDown {
        /// The store directory.
        dir: PathBuf,
        /// How it was detected.
        why: &'static str,
    },
    /// The directory is a backup, which is read, and neither served nor changed.
    #[error("{} is a backup: it can be read, no storage process serves it, and only tape backup changes it. To make a store of it, run: tape restore {} --store DIRECTORY", dir.display(), dir.display())]
    Backup {
        /// The directory.
        dir: PathBuf,
    },
    /// This process's user may not use the store in this way.
    #[error("a process of {user} may not use the store {dir} in this way: {owner} serves it; run this as {owner}", dir = dir.display())]
    Denied {
        /// The store directory.
        dir: PathBuf,
        /// The user that serves the store.
        owner: String,
        /// The user that was refused.
        user: String,
    },
    /// The handle belongs to another process, from which this one was forked.
    #[error(
        "this {what} belongs to process {pid}, from which this one was forked, and cannot be used here; open one in this process"
    )]
    Forked {
        /// The handle: `"reader"`, `"publisher"`, ...
        what: &'static str,
        /// The process that opened it.
        pid: u32,
    },
    /// A storage process serves the store but has not answered in time.
    #[error("storage of {dir} has not answered in time: {why}. To see its state, run: tape status --store {dir}", dir = dir.display())]
    Unanswered {
        /// The store directory.
        dir: PathBuf,
        /// Why it has not answered.
        why: &'static str,
    },
    /// No storage process serves the store, and some of what the answer rests on is only in its log: a command that changes
    /// SSTables by their newest record refuses to.
    #[error("{what} {first} to {last} of {dir} are only in the log, and no storage process serves them; an answer without them would be incomplete. Start one with: tape-storage --store {dir}", dir = dir.display())]
    InLogAlone {
        /// The store directory.
        dir: PathBuf,
        /// Their name: `"records"`, `"instruments"`, `"kinds"`.
        what: &'static str,
        /// The first that cannot be read: an LSN, an instrument's id, or the position in the order of definition.
        first: u64,
        /// The last.
        last: u64,
    },
    /// This host is not the leader and forwards nothing to it.
    #[error("the host of {} is not the leader{}; attach on the leader's host, or set `forward = true` under [cluster]", dir.display(), leader.map_or_else(String::new, |l| format!(", node {l} is")))]
    NotLeader {
        /// Directory of the store.
        dir: PathBuf,
        /// The leader, if there is one.
        leader: Option<crate::lsn::NodeId>,
    },
    /// The storage process refused a request.
    #[error("storage refused {request}: {reason}")]
    Refused {
        /// The request.
        request: &'static str,
        /// The reason.
        reason: String,
    },
    /// A storage process has sent an answer that this program cannot use.
    #[error(
        "storage of {dir} sent a malformed answer to the request {request}; run this program and tape-storage from one release \
         (tape-storage --version)",
        dir = dir.display()
    )]
    MalformedAnswer {
        /// The store directory.
        dir: PathBuf,
        /// The request.
        request: &'static str,
    },
    /// A newer process has attached as this publisher.
    #[error(
        "publisher {publisher} is fenced: a newer process publishes as it; stop that process or use another publisher number \
         (--publisher)"
    )]
    Fenced {
        /// The publisher.
        publisher: crate::lsn::PublisherId,
    },
    /// A live process is attached as this publisher.
    #[error("publisher {publisher} of {dir} is attached already: a live process publishes as it and would be fenced. Use another number, or fence that process: tape publish --publisher {publisher} --take-over (in a program: set the option take_over)", dir = dir.display())]
    Taken {
        /// The store directory.
        dir: PathBuf,
        /// The publisher.
        publisher: crate::lsn::PublisherId,
    },
    /// A limit of the store is reached.
    #[error("{what} would exceed its limit of {limit}")]
    Limit {
        /// The limited quantity, with the setting that raises the limit, if there is one.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A snapshot keeps removed SSTables mapped, and storage needs their room.
    #[error(
        "this snapshot of {dir} is too old (manifest edit {edit}; the oldest that may be kept is {oldest}): SSTables that were \
         compacted or expired since take more room than pinned-max, or the disk is nearly full, and storage has asked readers to \
         release them. Drop the snapshot, take a new one, and continue after the last record read",
        dir = dir.display()
    )]
    SnapshotTooOld {
        /// The store directory.
        dir: PathBuf,
        /// The snapshot's edit of the manifest.
        edit: u64,
        /// The oldest edit whose snapshots may be kept.
        oldest: u64,
    },
    /// A reader's position lies in a truncated tail of the log: the records from `first` on were withdrawn.
    #[error(
        "records from LSN {first} on were withdrawn: the log was truncated or replaced there, after an unclean stop, a change of \
         leader or a restore. Drop what was read of them and continue from {first}; --at committed reads only committed records"
    )]
    Withdrawn {
        /// First withdrawn LSN.
        first: Lsn,
    },
    /// Records that the store no longer holds.
    #[error(
        "records {first} to {last} have expired: retention removed them. Continue from {next}, or restore a backup that has \
         them: tape restore BACKUP --store DIRECTORY",
        next = last.next()
    )]
    Expired {
        /// First LSN that is gone.
        first: Lsn,
        /// Last LSN that is gone.
        last: Lsn,
    },
}

/// Which resource is exhausted, if the system refused because of that.
fn exhausted(source: &std::io::Error) -> Option<&'static str> {
    use rustix::io::Errno;
    match Errno::from_io_error(source)? {
        Errno::MFILE => {
            Some("this process has reached its limit of open files; raise it (ulimit -n, or LimitNOFILE= of a service)")
        }
        Errno::NFILE => Some("the host has reached its limit of open files; raise it (sysctl fs.file-max)"),
        Errno::NOMEM => Some(
            "there is no memory for it: the address space of this process (ulimit -v), its maps (sysctl vm.max_map_count) or \
             the memory of the host or its container is exhausted; raise that limit",
        ),
        _ => None,
    }
}

impl Error {
    /// An [`Error::Io`] about `path`, or [`Error::Exhausted`] if a limit of the process or the host is the cause.
    #[doc(hidden)]
    pub fn io(op: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let (path, source) = (path.to_path_buf(), source.into());
        match exhausted(&source) {
            Some(what) => Error::Exhausted { op, path, what },
            None => Error::Io { op, path, source },
        }
    }

    /// The error of a failed mapping of `path`.
    pub(crate) fn map(path: &Path, source: std::io::Error) -> Self {
        // The system returns the same error when memory is exhausted.
        if source.kind() == std::io::ErrorKind::OutOfMemory
            && let (Some(limit), Ok(maps)) = (maps_max(), maps_now())
            && maps + MAPS_NEAR >= limit
        {
            return Error::TooManyMaps { path: path.to_path_buf(), maps, limit };
        }
        Error::io("map", path, source)
    }

    /// Whether the cause is that no storage process serves the store: a retry may succeed after one has started.
    pub fn is_down(&self) -> bool {
        matches!(self, Error::StorageDown { .. } | Error::InLogAlone { .. })
    }

    /// An [`Error::Invalid`].
    #[doc(hidden)]
    pub fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { what, reason: reason.into() }
    }
}
