//! Owns: a storage process to measure, started from this program, and its helpers.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tape_services::processes::{self, Process};
use tapestore::agent::Wait;
use tapestore::disk::RealDisk;
use tapestore::lsn::InstrumentId;
use tapestore::reader::Reader;
use tapestore::record::RecordRef;
use tapestore::time::HostClock;
use tapestore_engine::{Options, Storage, World};

/// A served store in a temporary directory.
pub struct Served {
    served: processes::Served,
    _dir: tempfile::TempDir,
}

fn own(arguments: &[&str], store: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).arg("--store").arg(store).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Starts this program in another role.
pub fn role(arguments: &[&str], store: &Path) -> Process {
    Process::start("measured", &mut own(arguments, store)).unwrap()
}

fn storage(wait: &str, memtable_size: u64, store: &Path) -> Command {
    own(&["storage", "--wait", wait, "--memtable-size", &memtable_size.to_string()], store)
}

/// The command line of the storage process of a [`Served`].
#[derive(clap::Parser)]
struct StorageArguments {
    #[arg(long)]
    store: PathBuf,
    #[arg(long)]
    wait: Wait,
    #[arg(long)]
    memtable_size: u64,
}

/// Serves and returns `true` if this process was started as the storage process of a [`Served`]. Call it before the
/// program parses its own command line.
pub fn has_served() -> bool {
    if std::env::args().nth(1).as_deref() != Some("storage") {
        return false;
    }
    let StorageArguments { store, wait, memtable_size } = clap::Parser::parse_from(std::env::args().skip(1));
    serve(&store, wait, memtable_size);
    true
}

/// Copies `record` into `words` with the store's instrument id: `ids`, indexed by the id in `record`.
pub fn renumber(record: RecordRef<'_>, ids: &[InstrumentId], words: &mut Vec<u64>) {
    words.clear();
    words.extend_from_slice(record.words());
    let id = ids.get(record.instrument().0 as usize).map_or(0, |i| i.0);
    if let Some(head) = words.first_mut() {
        *head = *head & 0xffff_ffff | u64::from(id) << 32;
    }
}

/// Runs storage until standard input ends; first prints how many bytes of log recovery read.
fn serve(store: &Path, wait: Wait, memtable_size: u64) {
    let options = Options { store: store.to_path_buf(), memtable_size, memtables_max: 3, wait, ..Options::default() };
    let world = World {
        disk: Arc::new(RealDisk),
        clock: Arc::new(HostClock),
        store_id: u128::from(std::process::id()) << 96 | 1,
        boot: 1,
    };
    let storage = Storage::start(options, world).unwrap();
    println!("{}", storage.started().log_bytes);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    storage.stop().unwrap();
}

impl Served {
    /// Starts storage in a temporary directory and waits until it serves.
    pub fn start(wait: &str, memtable_size: u64) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let mut served = processes::Served::new(dir.path().join("store"));
        served.start(&mut storage(wait, memtable_size, &dir.path().join("store"))).unwrap();
        // Storage has written the log's first segment: wait until the disk is idle.
        std::thread::sleep(Duration::from_millis(500));
        Served { served, _dir: dir }
    }

    /// Restarts storage cleanly; returns the time from the start until it serves.
    pub fn restart(&mut self, wait: &str, memtable_size: u64) -> Duration {
        if let Some(process) = self.served.process() {
            process.close_stdin();
            process.finish().unwrap();
        }
        self.served.kill();
        self.start_again(wait, memtable_size)
    }

    /// Kills and restarts storage; returns the time from the start until it serves, and the bytes of log that it read.
    pub fn restart_killed(&mut self, wait: &str, memtable_size: u64) -> (Duration, u64) {
        self.served.kill();
        let took = self.start_again(wait, memtable_size);
        let mut line = String::new();
        let out = self.served.process().and_then(Process::take_stdout).unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        (took, line.trim().parse().unwrap())
    }

    fn start_again(&mut self, wait: &str, memtable_size: u64) -> Duration {
        let mut command = storage(wait, memtable_size, &self.path());
        let began = std::time::Instant::now();
        self.served.start(&mut command).unwrap();
        began.elapsed()
    }

    /// Process id of storage.
    pub fn pid(&self) -> u32 {
        self.served.id()
    }

    /// The store's directory.
    pub fn path(&self) -> PathBuf {
        self.served.store.clone()
    }

    /// Opens a reader of the store.
    pub fn reader(&self) -> Reader {
        Reader::open(&self.path()).unwrap()
    }
}
