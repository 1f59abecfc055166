//! What processes send to the service manager: that they serve, once they do; that they work, while they do; that they stop.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tape_services::addresses;
use tape_services::processes::Process;
use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::Reader;

use crate::fixture::{PATIENCE, Store, eventually};

/// Period of the watchdog, in microseconds.
const PERIOD: &str = "400000";
/// A process that works sends many messages in this time. One that does not must send none.
const LONG: Duration = Duration::from_secs(3);

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path }
    }

    /// Starts `program` on `store` as its service.
    fn start(&self, program: &str, store: &Path, arguments: &[&str]) -> Process {
        let mut command = Command::new(program);
        command.arg("--store").arg(store).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", PERIOD);
        Process::start(program, &mut command).unwrap()
    }

    /// The lines of the next message; `None` if none comes in `wait`.
    fn next(&self, wait: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(len) => Some(std::str::from_utf8(&bytes[..len]).unwrap().lines().map(str::to_owned).collect()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// All lines up to the first one that begins with `wanted`.
    fn until(&self, wanted: &str) -> Vec<String> {
        let mut lines = Vec::new();
        eventually(wanted, || {
            lines.extend(self.next(PATIENCE).unwrap_or_default());
            lines.iter().any(|line| line.starts_with(wanted)).then_some(())
        });
        lines
    }

    /// Whether a message comes that the process works.
    fn is_fed(&self) -> bool {
        self.next(LONG).is_some_and(|lines| lines.contains(&"WATCHDOG=1".to_owned()))
    }

    /// Forgets what has come so far.
    fn forget(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }
}

/// Stops one thread of a process; it continues when this is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(pid: u32, name: &str) -> Option<Stopped> {
        // A thread names itself, after its start.
        let thread: i32 = eventually(name, || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|task| task.path());
            let is_named = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
            tasks.into_iter().find(is_named)?.file_name()?.to_str()?.parse().ok()
        });
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: both requests take no memory of this process.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) } != 0 {
            println!("skipped: a thread cannot be stopped here: {}", std::io::Error::last_os_error());
            return None;
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) }, 0);
        // SAFETY: no status is asked for.
        assert_eq!(unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) }, thread);
        Some(Stopped(thread))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the request takes no memory of this process.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) }, 0);
    }
}

const SMALL: [&str; 4] = ["--memtable-size", "64M", "--segment-size", "4M"];

#[test]
fn storage_is_ready_when_it_serves_and_notifies_of_its_stop() {
    let store = Store::new(&[]);
    let manager = Manager::new(store.path.parent().unwrap());
    let mut storage = manager.start(env!("CARGO_BIN_EXE_tape-storage"), &store.path, &SMALL);
    let lines = manager.until("READY=1");
    // A publisher that does not wait is served: nothing is missing after the message.
    let options = Options { open_timeout: Duration::ZERO, ..Options::new(&store.path, PublisherId(1)) };
    Publisher::open(options).unwrap().close(PATIENCE).unwrap();
    assert!(Reader::open(&store.path).unwrap().is_storage_alive());
    assert!(lines.iter().any(|line| line == "STATUS=starting"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("STATUS=serving /")), "{lines:?}");
    for _ in 0..10 {
        manager.until("WATCHDOG=1");
    }
    storage.stop().unwrap();
    let rest = manager.until("STOPPING=1");
    assert!(rest.iter().any(|line| line == "STATUS=stopping"), "{rest:?}");
    assert!(!rest.contains(&"READY=1".to_owned()), "ready is sent once: {rest:?}");
}

#[test]
fn storage_that_does_not_start_is_never_ready() {
    let store = Store::serve();
    let manager = Manager::new(store.path.parent().unwrap());
    // Another process serves it.
    let mut storage = manager.start(env!("CARGO_BIN_EXE_tape-storage"), &store.path, &SMALL);
    assert_eq!(storage.wait().unwrap().code(), Some(75));
    let mut lines = Vec::new();
    while let Some(more) = manager.next(Duration::from_millis(1)) {
        lines.extend(more);
    }
    assert!(lines.contains(&"STATUS=starting".to_owned()) && !lines.contains(&"READY=1".to_owned()), "{lines:?}");
}

#[test]
fn the_watchdog_gets_nothing_while_the_loop_of_storage_stands_and_again_when_it_turns() {
    let store = Store::new(&[]);
    let manager = Manager::new(store.path.parent().unwrap());
    let mut storage = manager.start(env!("CARGO_BIN_EXE_tape-storage"), &store.path, &SMALL);
    let served = manager.until("READY=1");
    assert!(served.iter().any(|line| line.starts_with("STATUS=serving /")), "{served:?}");
    {
        let Some(_stopped) = Stopped::new(storage.id(), "tape-ingest") else { return };
        // The other threads live: the line about the state names the trouble, and then nothing comes.
        let lines = manager.until("STATUS=");
        assert!(lines.iter().any(|line| line.starts_with("STATUS=") && line.contains("no-heartbeat")), "{lines:?}");
        manager.forget();
        assert_eq!(manager.next(LONG), None);
        let status = store.tape(&["status", "--check"]);
        assert_eq!(status.status.code(), Some(69), "{}", String::from_utf8_lossy(&status.stderr));
        assert_eq!(manager.next(LONG), None);
    }
    let mut lines = Vec::new();
    eventually("messages without trouble", || {
        lines.extend(manager.next(PATIENCE).unwrap_or_default());
        let is_well = lines.iter().any(|line| line.starts_with("STATUS=serving /") && !line.contains(';'));
        (is_well && lines.contains(&"WATCHDOG=1".to_owned())).then_some(())
    });
    assert!(!lines.contains(&"READY=1".to_owned()));
    storage.stop().unwrap();
}

#[test]
fn the_line_about_the_state_names_the_trouble() {
    let store = Store::new(&[]);
    let manager = Manager::new(store.path.parent().unwrap());
    // More space than any disk has.
    let short = [&SMALL[..], &["--space-min", "1000000G"]].concat();
    let mut storage = manager.start(env!("CARGO_BIN_EXE_tape-storage"), &store.path, &short);
    let trouble = eventually("the trouble", || {
        let lines = manager.next(PATIENCE).unwrap_or_default();
        lines.into_iter().find(|line| line.starts_with("STATUS=") && line.contains("no-space"))
    });
    assert!(trouble.contains("free space on the disk"), "{trouble}");
    assert!(manager.is_fed(), "a full disk is no reason to start storage again");
    storage.stop().unwrap();
}

#[test]
fn replication_is_ready_when_it_listens_and_not_while_it_waits_for_storage() {
    let mut store = Store::new(&SMALL);
    let manager = Manager::new(store.path.parent().unwrap());
    let own = addresses::unused(1).unwrap()[0].to_string();
    let members = format!("1={own}");
    store.tape_ok(&["cluster", "init", "--cluster", "one", "--node", "1", "--members", &members]);
    let program = env!("CARGO_BIN_EXE_tape-replication");
    let mut replication = manager.start(program, &store.path, &[]);
    let mut before = manager.until("WATCHDOG=1");
    for _ in 0..10 {
        before.extend(manager.until("WATCHDOG=1"));
    }
    assert!(!before.contains(&"READY=1".to_owned()), "it waits for its address: {before:?}");
    store.start();
    let lines = manager.until("READY=1");
    assert!(std::net::TcpStream::connect(&own).is_ok());
    assert!(lines.iter().any(|line| *line == format!("STATUS=replicating at {own}")), "{lines:?}");
    manager.until("WATCHDOG=1");
    replication.stop().unwrap();
    manager.until("STOPPING=1");
}

#[test]
fn a_service_manager_that_reads_nothing_or_is_gone_delays_no_process() {
    for is_gone in [false, true] {
        let mut store = Store::new(&[]);
        let manager = Manager::new(store.path.parent().unwrap());
        let mut storage = manager.start(env!("CARGO_BIN_EXE_tape-storage"), &store.path, &SMALL);
        eventually("a store that is served", || Reader::open(&store.path).ok().filter(Reader::is_storage_alive).map(drop));
        if is_gone {
            std::fs::remove_file(&manager.path).unwrap();
        } else {
            // More messages than its queue holds.
            std::thread::sleep(LONG);
        }
        store.numbered_publisher(1, Durability::Fsync).close(PATIENCE).unwrap();
        storage.stop().unwrap();
        store.kill();
    }
}
