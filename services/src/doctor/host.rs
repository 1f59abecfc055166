//! Owns: what the examination looks at: the system's files in `/proc` and `/sys`, the store, its options and its processes.
//!
//! What must hold: nothing is changed; what the system does not say is `None`, and never an error.

use std::path::{Path, PathBuf};

use tapestore::disk::RealDisk;
use tapestore::shm::control::Control;
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::status::{State, Status};
use tapestore_engine::Options;

use crate::replication::tls;

/// The system's files. Tests give another root, to provoke what this host does not have.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// The system whose files are below `root`.
    pub fn new(root: &Path) -> System {
        System { root: root.to_path_buf() }
    }

    /// The place of the file `path`, which begins with `/`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of the file `path`, without space around it.
    pub fn text(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The number in the file `path`.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The names in the directory `path`, in order.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The value of `key` in the file `path` of lines `key: value kB`, in bytes.
    pub fn kilobytes(&self, path: &str, key: &str) -> Option<u64> {
        let text = self.text(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let number: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(number.saturating_mul(1024))
    }
}

/// This host, as a store sees it.
#[derive(Debug)]
pub struct Host {
    /// The system's files.
    pub system: System,
    /// The store's directory, which may not exist.
    pub store: PathBuf,
    /// The store's directory, or the next one above it that exists.
    pub place: PathBuf,
    /// The options with which storage will run, checked; as far as they can be seen, those with which it runs.
    pub options: Options,
    /// The run directory, or why there is none.
    pub run_dir: tapestore::error::Result<RunDir>,
    /// The control page, if there has been a storage process since the host was started.
    pub status: Option<Status>,
    /// Certificate, key and authority of the replication process.
    pub tls: Option<tls::Files>,
}

impl Host {
    /// This host, with the store of `options`.
    ///
    /// # Errors
    /// The options are invalid.
    pub fn new(system: System, options: Options, tls: Option<tls::Files>) -> tapestore::Result<Host> {
        let store = options.store.clone();
        let run_dir = RunDir::find(&store);
        let status = run_dir.as_ref().ok().and_then(|run_dir| Control::open(&run_dir.control()).ok());
        let status = status.map(|control| Status::read(&control));
        let mut options = options.check()?;
        let serving = status.as_ref().filter(|status| status.state == State::Serving);
        if let Some(bytes) = serving.map(|status| status.memory.memtable_bytes).filter(|bytes| *bytes > 0) {
            options.memtable_size = bytes;
        }
        // The size of a store's segments is decided when it is made.
        if let Ok(Some(meta)) = tapestore::wal::meta::read(&RealDisk, &store) {
            options.segment_size = meta.segment_size;
        }
        let place = store.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_path_buf();
        Ok(Host { system, store, place, options, run_dir, status, tls })
    }

    /// Whether a storage process serves the store.
    pub fn is_served(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.state == State::Serving)
    }

    /// The storage process that serves the store.
    pub fn server(&self) -> Option<u64> {
        let status = self.status.as_ref().filter(|status| matches!(status.state, State::Serving | State::Recovering))?;
        Some(status.process.as_ref()?.pid)
    }

    /// Bytes of all MemTables.
    pub fn memtable_bytes(&self) -> u64 {
        self.options.memtable_size.saturating_mul(self.options.memtables_max as u64)
    }

    /// The names of the store's SSTables.
    pub fn sstables(&self) -> usize {
        std::fs::read_dir(self.store.join(tapestore::sstable::DIR)).map_or(0, |entries| entries.flatten().count())
    }

    /// The store in a command line.
    pub fn store_text(&self) -> String {
        self.store.display().to_string()
    }
}
