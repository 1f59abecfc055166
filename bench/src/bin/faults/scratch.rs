//! Owns: what a campaign in one process needs of the host: a place in memory for stores, and what a trial that panicked
//! said.
//!
//! What must hold: nothing is left behind; trials beside each other share nothing.

use std::cell::RefCell;
use std::path::PathBuf;

use tapestore_engine::Options;

/// A directory in memory with a store directory and a place for its shared memory.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// An empty one.
    pub fn new() -> Scratch {
        quiet();
        let dir = tempfile::Builder::new().prefix("faults-").tempdir_in("/dev/shm").unwrap();
        let this = Scratch(dir);
        this.clear();
        this
    }

    /// The store directory.
    pub fn store(&self) -> PathBuf {
        self.0.path().join("s")
    }

    /// A file beside it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Forgets what is in it.
    pub fn clear(&self) {
        for dir in [self.store(), self.0.path().join("run")] {
            if dir.exists() {
                std::fs::remove_dir_all(&dir).unwrap();
            }
            std::fs::create_dir(&dir).unwrap();
        }
    }

    /// Small options.
    pub fn options(&self) -> Options {
        Options {
            store: self.store(),
            run_root: self.0.path().join("run"),
            segment_size: tapestore::wal::format::SEGMENT_SIZE_MIN,
            memtable_size: tapestore::memtable::format::LEN_MIN,
            memtables_max: 3,
            sparse_memtables: true,
            instruments_max: 1000,
            ..Options::default()
        }
    }
}

thread_local! {
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are kept instead of printed.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.payload_as_str().unwrap_or("a panic without words");
            let at = info.location().map(|l| format!("{}:{}: ", l.file(), l.line())).unwrap_or_default();
            SAID.with(|said| *said.borrow_mut() = format!("{at}{text}"));
        }));
    });
}

/// What the last panic of this thread said.
pub fn said() -> String {
    SAID.with(|said| said.borrow().clone())
}

/// Threads that work beside each other.
pub fn worker_count() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
