//! Owns: a store with a real storage process that tests can kill.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tapestore::error::Error;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;
use tapestore::record::Name;
use tapestore::shm::run_dir::RunDir;

/// Limit of every wait: a guard against hangs, not a claim about speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Instruments that [`register`] registers.
pub(crate) const INSTRUMENTS: u64 = 300;

/// Registers [`INSTRUMENTS`] instruments. In a store without others their ids are 1 to [`INSTRUMENTS`].
pub(crate) fn register(publisher: &Publisher) {
    let names: Vec<Name> = (1..=INSTRUMENTS).map(|i| format!("X:{i}").parse().unwrap()).collect();
    publisher.instruments(&names).unwrap();
}

pub(crate) struct Store {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    child: Option<Child>,
    arguments: Vec<String>,
    /// Shell commands that run before the shell becomes the storage process.
    limits: String,
}

impl Store {
    /// A store without a running storage process.
    pub(crate) fn new(arguments: &[&str]) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        Store {
            _dir: dir,
            path,
            child: None,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            limits: String::new(),
        }
    }

    /// A store whose storage runs under the shell commands `limits`; not started.
    pub(crate) fn limited(limits: &str, arguments: &[&str]) -> Store {
        let mut store = Store::new(arguments);
        store.limits = limits.to_owned();
        store
    }

    /// Process id of storage.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
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

    fn instance(&self) -> u64 {
        Reader::open(&self.path).map_or(0, |r| r.control().instance())
    }

    /// Starts storage and waits until it serves.
    pub(crate) fn start(&mut self) {
        let before = self.instance();
        let program = env!("CARGO_BIN_EXE_tape-storage");
        let mut command = if self.limits.is_empty() { Command::new(program) } else { under(&self.limits, program) };
        command.arg("--store").arg(&self.path).args(&self.arguments).env("RUST_LOG", "warn").stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let instance = self.instance();
            if instance > before && instance.is_multiple_of(2) {
                return;
            }
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("storage ended with {status}");
            }
            assert!(Instant::now() < deadline, "storage does not serve");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills storage with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops storage with SIGTERM and waits for its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        signal(child.id(), rustix::process::Signal::TERM);
        let status = eventually("storage's end", || child.try_wait().unwrap());
        self.child = None;
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

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
        if let Ok(run_dir) = RunDir::find(&self.path) {
            run_dir.sweep(None).ok();
            std::fs::remove_dir_all(run_dir.path()).ok();
        }
    }
}

/// Starts this test program as another process in the role `role`.
pub(crate) fn role(role: &str, store: &Path, more: &[(&str, String)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["roles::play", "--exact", "--nocapture"]).env("TAPE_ROLE", role).env("TAPE_ROLE_STORE", store);
    command.envs(more.iter().map(|(k, v)| (*k, v.clone()))).stdout(Stdio::null()).stdin(Stdio::null());
    command.spawn().unwrap()
}

/// Waits for `child`, which must succeed.
pub(crate) fn finish(mut child: Child, what: &str) {
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{what} ended with {status}");
            return;
        }
        if Instant::now() > deadline {
            child.kill().ok();
            panic!("{what} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Polls until `ready` returns a value.
pub(crate) fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
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
