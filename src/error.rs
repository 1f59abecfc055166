//! Owns: the library's one error type, and what a check of a format says before a path and an LSN are known.
//!
//! Every variant carries the facts an operator needs (path, offset, LSN, expected, found) and its
//! message says what happened, to what, and what to do. No crate's type appears here: a cause from
//! another library is kept as its text. Whoever consumes an error reports it; whoever passes it on
//! does not.

use std::path::{Path, PathBuf};

use crate::lsn::Lsn;

/// The result of every fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why bytes are not what they should be; whoever read them makes an [`Error`] of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Which check failed.
    pub what: &'static str,
    /// What it demands.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

/// The store whose file `path` is.
fn store_of(path: &Path) -> &Path {
    let parent = path.parent().unwrap_or(path);
    match parent.file_name().and_then(|n| n.to_str()) {
        Some("wal" | "sst") => parent.parent().unwrap_or(parent),
        _ => parent,
    }
}

/// Memory maps that a process can have at most; `None` if the system does not say.
pub fn maps_max() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}

/// Memory maps that this process has. Little memory is taken for it: there may be none.
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

/// A process that is so near to the limit has reached it: the system shows some maps as one, and this look takes some.
const MAPS_NEAR: u64 = 64;

/// The check `what`.
pub fn demand(what: &'static str, expected: u64, found: u64) -> Result<(), Bad> {
    if expected == found { Ok(()) } else { Err(Bad { what, expected, found }) }
}

/// What went wrong, with the facts.
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
        /// The system's own words.
        source: std::io::Error,
    },
    /// This process, or the host, has no more of what an operation on a file takes.
    #[error("cannot {op} {path}: {what}", path = path.display())]
    Exhausted {
        /// Present-tense verb.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What there is no more of, and how to raise it.
        what: &'static str,
    },
    /// Bytes that were known durable are not what was written.
    #[error(
        "{path} is damaged at offset {offset} ({what}: expected {expected:#x}, found {found:#x}) before LSN {lsn}; \
         nothing was changed. What can be done says: tape repair --store {store}",
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
        /// The value the check demands.
        expected: u64,
        /// The value in the file.
        found: u64,
    },
    /// A file that this program did not write.
    #[error("{path} is not a tapestore {what} (it begins with {found:#018x}); if it should be one, what can be done says: tape repair --store {store}", path = path.display(), store = store_of(path).display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was looked for.
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
        "{path} is missing ({what}); nothing was changed. What can be done says: tape repair --store {store}",
        path = path.display(), store = store_of(path).display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Why it must be there.
        what: &'static str,
    },
    /// Another process owns the store.
    #[error("the store {path} is held by another process, which serves, backs up, merges or repairs it; stop that first or use another --store. Whether it is served says: tape status --store {path}", path = path.display())]
    Locked {
        /// The store directory.
        path: PathBuf,
    },
    /// Hosts of a cluster do not agree, or cannot say what they ask of each other.
    #[error("the cluster's log cannot {what}: {cause}")]
    Consensus {
        /// What was to be done.
        what: &'static str,
        /// Why it cannot be.
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
    /// The MemTables hold as much as they can until one of them is filed.
    #[error(
        "the MemTables are full: {rows} records in {tables} tables of {bytes} bytes wait to be filed into history; give the disk time or free space on it, or start tape-storage with a larger --memtable-size"
    )]
    MemTableFull {
        /// Rows held.
        rows: u64,
        /// Bytes of one table.
        bytes: u64,
        /// Tables in use.
        tables: usize,
    },
    /// Shared memory cannot hold what was asked for.
    #[error("{path}: shared memory has {free} bytes free, {wanted} are needed; free some of it (df -h /dev/shm; du -sh /dev/shm/*; tape status names processes that keep some) or make it larger (of a container: --shm-size)", path = path.display())]
    NoSharedMemory {
        /// The file that could not be allocated.
        path: PathBuf,
        /// Bytes needed.
        wanted: u64,
        /// Bytes free.
        free: u64,
    },
    /// The system gives this process no more memory maps.
    #[error(
        "cannot map {path}: this process has {maps} of the {limit} memory maps that the system gives one, and each SSTable and \
         MemTable takes one. Let go of snapshots, or raise the limit: sysctl -w vm.max_map_count={more}",
        path = path.display(), more = limit.saturating_mul(4)
    )]
    TooManyMaps {
        /// The file that was to be mapped.
        path: PathBuf,
        /// Maps of this process.
        maps: u64,
        /// The most that it can have.
        limit: u64,
    },
    /// A value from outside breaks a rule.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// What was given.
        what: &'static str,
        /// Which rule it breaks.
        reason: String,
    },
    /// The bus refused.
    #[error("bus: cannot {op} {service}: {cause}")]
    Bus {
        /// Present-tense verb.
        op: &'static str,
        /// The service's name.
        service: String,
        /// The bus's own words.
        cause: String,
    },
    /// No storage process serves the store.
    #[error("no storage process serves {dir} ({why}); start one with: tape-storage --store {dir}", dir = dir.display())]
    StorageDown {
        /// The store directory.
        dir: PathBuf,
        /// How this was noticed.
        why: &'static str,
    },
    /// It is a backup, which is not served and not changed.
    #[error("{} is a backup and stays one: no storage process serves it, and only tape backup changes it. A store is made of it by: tape restore {} --store DIRECTORY", dir.display(), dir.display())]
    Backup {
        /// The directory.
        dir: PathBuf,
    },
    /// This process's user may not use the store as it asks.
    #[error("a process of {user} may not use the store {dir} so: {owner} serves it; run this as {owner}", dir = dir.display())]
    Denied {
        /// The store directory.
        dir: PathBuf,
        /// Who serves the store.
        owner: String,
        /// Who asks.
        user: String,
    },
    /// It is another process's, from which this one was forked.
    #[error("this {what} is process {pid}'s, from which this one was forked, and cannot be used here; open one of its own")]
    Forked {
        /// What was used.
        what: &'static str,
        /// Who opened it.
        pid: u32,
    },
    /// A storage process serves the store, and has not answered in time.
    #[error("storage of {dir} has not answered in time: {why}. What is wrong says: tape status --store {dir}", dir = dir.display())]
    Unanswered {
        /// The store directory.
        dir: PathBuf,
        /// What keeps it from answering.
        why: &'static str,
    },
    /// No storage process serves the store, and what its log alone has is not to be read without one: an answer without
    /// it would be a part.
    #[error("{what} {first} to {last} of {dir} are in the log alone, and no storage process serves them; an answer without them would not be whole. Start one with: tape-storage --store {dir}", dir = dir.display())]
    InLogAlone {
        /// The store directory.
        dir: PathBuf,
        /// Of what: `"records"`, `"instruments"`, `"kinds"`.
        what: &'static str,
        /// The first that cannot be read: an LSN, an instrument's id, or the place in the order of definition.
        first: u64,
        /// The last.
        last: u64,
    },
    /// This host of the store does not lead, and passes nothing on to the one that does.
    #[error("the store in {} does not lead{}; attach where the leader's storage runs, or set `forward = true` under [cluster]", dir.display(), leader.map_or_else(String::new, |l| format!(", node {l} does")))]
    NotLeader {
        /// Directory of the store.
        dir: PathBuf,
        /// Who leads, if it is known.
        leader: Option<crate::lsn::NodeId>,
    },
    /// The storage process refused a request.
    #[error("storage refused {request}: {reason}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Why it was refused.
        reason: String,
    },
    /// A newer process writes as this publisher.
    #[error("publisher {publisher} is fenced: a newer process writes as it")]
    Fenced {
        /// Who.
        publisher: crate::lsn::PublisherId,
    },
    /// A live process writes as this publisher.
    #[error("publisher {publisher} of {dir} is attached: a live process writes as it, and would be fenced. Take another number, or take over from it: tape publish --publisher {publisher} --take-over, Options::take_over", dir = dir.display())]
    Taken {
        /// The store directory.
        dir: PathBuf,
        /// Who.
        publisher: crate::lsn::PublisherId,
    },
    /// A limit of the store is reached.
    #[error("{what} is limited to {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A reader's position lies above a cut: the records from `first` on were withdrawn.
    #[error("records from LSN {first} on were withdrawn after an unclean stop; re-read from there")]
    Withdrawn {
        /// First withdrawn LSN.
        first: Lsn,
    },
    /// Records that are no longer held.
    #[error("records {first} to {last} are no longer held; the oldest held is {oldest}", oldest = last.next())]
    Expired {
        /// First LSN that is gone.
        first: Lsn,
        /// Last LSN that is gone.
        last: Lsn,
    },
}

/// What there is no more of, if that is why the system refused.
fn exhausted(source: &std::io::Error) -> Option<&'static str> {
    use rustix::io::Errno;
    match Errno::from_io_error(source)? {
        Errno::MFILE => {
            Some("this process has as many files open as it may; raise that (ulimit -n, or LimitNOFILE= of a service)")
        }
        Errno::NFILE => Some("the host has as many files open as it may; raise that (sysctl fs.file-max)"),
        Errno::NOMEM => Some(
            "there is no memory for it: the address space of this process (ulimit -v), its maps (sysctl vm.max_map_count) or \
             the memory of the host or of its container is used up; raise that",
        ),
        _ => None,
    }
}

impl Error {
    /// An [`Error::Io`] about `path`, or [`Error::Exhausted`] if a limit of the process or the host is behind it.
    pub fn io(op: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let (path, source) = (path.to_path_buf(), source.into());
        match exhausted(&source) {
            Some(what) => Error::Exhausted { op, path, what },
            None => Error::Io { op, path, source },
        }
    }

    /// That `path` cannot be mapped.
    pub(crate) fn map(path: &Path, source: std::io::Error) -> Self {
        // The system says the same of want of memory.
        if source.kind() == std::io::ErrorKind::OutOfMemory
            && let (Some(limit), Ok(maps)) = (maps_max(), maps_now())
            && maps + MAPS_NEAR >= limit
        {
            return Error::TooManyMaps { path: path.to_path_buf(), maps, limit };
        }
        Error::io("map", path, source)
    }

    /// Whether it is that no storage process serves the store, so that a call made again after one has started may succeed.
    pub fn is_down(&self) -> bool {
        matches!(self, Error::StorageDown { .. } | Error::InLogAlone { .. })
    }

    /// An [`Error::Invalid`].
    pub fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { what, reason: reason.into() }
    }
}
