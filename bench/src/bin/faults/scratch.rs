//! Owns: host resources of campaigns in one process: a scratch directory in memory for stores, and panic messages.
//!
//! What must hold: nothing is left behind; concurrent trials share nothing.

use std::cell::RefCell;
use std::path::PathBuf;

use tapestore_engine::Options;

/// A directory in memory with a store directory and a root for its run directory.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Creates an empty scratch directory.
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

    /// The path of a file beside the store directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Removes all contents.
    pub fn clear(&self) {
        for dir in [self.store(), self.0.path().join("run")] {
            if dir.exists() {
                std::fs::remove_dir_all(&dir).unwrap();
            }
            std::fs::create_dir(&dir).unwrap();
        }
    }

    /// Options with small sizes.
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
    static PANIC_MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Stores panic messages instead of printing them.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.payload_as_str().unwrap_or("a panic without a message");
            let at = info.location().map(|l| format!("{}:{}: ", l.file(), l.line())).unwrap_or_default();
            PANIC_MESSAGE.with(|message| *message.borrow_mut() = format!("{at}{text}"));
        }));
    });
}

/// The message of this thread's last panic.
pub fn panic_message() -> String {
    PANIC_MESSAGE.with(|message| message.borrow().clone())
}

/// Number of worker threads.
pub fn worker_count() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
