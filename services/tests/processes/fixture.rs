//! Owns: a store with a real storage process that tests can kill.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

pub(crate) use tape_services::processes::PATIENCE;
use tape_services::processes::{self, Process, Served};
use tapestore::error::Error;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;
use tapestore::record::Name;
use tapestore::shm::run_dir::RunDir;

/// Instruments that [`register`] registers.
pub(crate) const INSTRUMENTS: u64 = 300;

/// Registers [`INSTRUMENTS`] instruments. In a store without others their ids are 1 to [`INSTRUMENTS`].
pub(crate) fn register(publisher: &Publisher) {
    let names: Vec<Name> = (1..=INSTRUMENTS).map(|i| format!("X:{i}").parse().unwrap()).collect();
    publisher.instruments(&names).unwrap();
}

pub(crate) struct Store {
    served: Served,
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    arguments: Vec<String>,
    /// Shell commands that run before the shell becomes the storage process.
    limits: String,
}

impl Store {
    /// A store without a running storage process.
    pub(crate) fn new(arguments: &[&str]) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Store { served: Served::new(path.clone()), _dir: dir, path, arguments, limits: String::new() }
    }

    /// A store whose storage runs under the shell commands `limits`; not started.
    pub(crate) fn limited(limits: &str, arguments: &[&str]) -> Store {
        let mut store = Store::new(arguments);
        store.limits = limits.to_owned();
        store
    }

    /// Process id of storage.
    pub(crate) fn pid(&self) -> u32 {
        self.served.id()
    }

    /// A small store with a running storage process.
    pub(crate) fn serve() -> Store {
        let mut store = Store::new(&["--memtable-size", "64M", "--segment-size", "4M"]);
        store.start();
        store
    }

    pub(crate) fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
    }

    /// Starts storage and waits until it serves.
    pub(crate) fn start(&mut self) {
        let program = env!("CARGO_BIN_EXE_tape-storage");
        let mut command = if self.limits.is_empty() { Command::new(program) } else { under(&self.limits, program) };
        command.arg("--store").arg(&self.path).args(&self.arguments).env("RUST_LOG", "warn").stdin(Stdio::null());
        self.served.start(&mut command).unwrap();
    }

    /// Starts storage by `command` and waits until it serves.
    pub(crate) fn start_by(&mut self, command: &mut Command) {
        self.served.start(command).unwrap();
    }

    /// Kills storage with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.served.kill();
    }

    /// Stops storage with SIGTERM and waits for its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let process = self.served.process().unwrap();
        process.signal(rustix::process::Signal::TERM).unwrap();
        let status = process.wait().unwrap();
        self.served.kill();
        status
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::open(&self.path).unwrap()
    }

    pub(crate) fn publisher(&self, id: u16, level: Durability) -> Publisher {
        Publisher::open(Options { durability: level, ..Options::new(&self.path, PublisherId(id)) }).unwrap()
    }

    /// A publisher of a store with the instrument ids 1 to [`INSTRUMENTS`].
    pub(crate) fn numbered_publisher(&self, id: u16, level: Durability) -> Publisher {
        let publisher = self.publisher(id, level);
        register(&publisher);
        publisher
    }

    pub(crate) fn run_dir(&self) -> RunDir {
        RunDir::find(&self.path).unwrap()
    }

    /// Runs `tape` with `arguments` on this store.
    pub(crate) fn tape(&self, arguments: &[&str]) -> Output {
        tape(&self.path, arguments)
    }

    /// Runs `tape`, which must succeed; returns its standard output.
    pub(crate) fn tape_ok(&self, arguments: &[&str]) -> String {
        let output = self.tape(arguments);
        assert!(output.status.success(), "tape {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

pub(crate) fn tape(store: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tape")).args(arguments).arg("--store").arg(store).output().unwrap()
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Starts this test program as another process in the role `role`.
pub(crate) fn role(role: &str, store: &Path, more: &[(&str, String)]) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["roles::play", "--exact", "--nocapture"]).env("TAPE_ROLE", role).env("TAPE_ROLE_STORE", store);
    command.envs(more.iter().map(|(k, v)| (*k, v.clone()))).stdout(Stdio::null()).stdin(Stdio::null());
    Process::start(role, &mut command).unwrap()
}

/// Waits for `child`, which must succeed.
pub(crate) fn finish(mut child: Process) {
    child.finish().unwrap_or_else(|e| panic!("{e}"));
}

/// Waits until `ready` returns a value.
pub(crate) fn eventually<T>(what: &str, ready: impl FnMut() -> Option<T>) -> T {
    processes::eventually(what, ready).unwrap_or_else(|e| panic!("{e}"))
}

/// Whether `error` means that storage is down.
pub(crate) fn is_down(error: &Error) -> bool {
    error.is_down()
}

/// Runs `program` through a shell that sets `limits` first.
pub(crate) fn under(limits: &str, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{limits} && exec \"$0\" \"$@\"")).arg(program);
    command
}
