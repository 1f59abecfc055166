//! Owns: child processes of this release, as the demonstration, the tests and the measurements start and end them: a process,
//! a store with the process that serves it, and what hosts of a cluster say of themselves.
//!
//! What must hold: a child is killed and waited for when its owner is dropped; shared memory of a store is freed with its
//! owner; no process is signalled that was not started here.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tapestore::reader::Reader;
use tapestore::shm::run_dir::RunDir;

/// Limit of every wait: a guard against hangs, not a claim about speed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Interval of looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_micros(300);

/// What went wrong with a child process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It cannot be started, waited for or signalled.
    #[error("the {what} process: {source}")]
    System {
        /// Its name.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// It has ended, and should not have, or not so.
    #[error("the {what} process ended with {status}")]
    Ended {
        /// Its name.
        what: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// Something was waited for and did not come.
    #[error("{what} does not happen within {} s", PATIENCE.as_secs())]
    Late {
        /// What was waited for.
        what: String,
    },
}

/// Waits until `ready` returns a value.
///
/// # Errors
/// [`ProcessError::Late`] after [`PATIENCE`]; it names `what`.
pub fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T, ProcessError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(ProcessError::Late { what: what.to_owned() });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A child process; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts `command`; `what` names the process in errors.
    ///
    /// # Errors
    /// [`ProcessError::System`].
    pub fn start(what: &str, command: &mut Command) -> Result<Process, ProcessError> {
        let what = what.to_owned();
        match command.spawn() {
            Ok(child) => Ok(Process { child, what }),
            Err(source) => Err(ProcessError::System { what, source }),
        }
    }

    fn system(&self, source: std::io::Error) -> ProcessError {
        ProcessError::System { what: self.what.clone(), source }
    }

    /// Its name.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if it is piped and was not taken.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Closes its standard input. The processes of a measurement end then.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Its standard output, if it is piped and was not taken.
    pub fn stdout(&mut self) -> Option<&mut ChildStdout> {
        self.child.stdout.as_mut()
    }

    /// Takes its standard output, if it is piped.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// [`ProcessError::System`].
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        // The child was not waited for, so its number is not another's.
        let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) else { return Ok(()) };
        rustix::process::kill_process(pid, signal).map_err(|e| self.system(e.into()))
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// [`ProcessError::System`].
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|e| self.system(e))
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Ended`].
    pub fn demand_alive(&mut self) -> Result<(), ProcessError> {
        match self.ended()? {
            Some(status) => Err(ProcessError::Ended { what: self.what.clone(), status }),
            None => Ok(()),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ProcessError::Late`].
    pub fn wait(&mut self) -> Result<ExitStatus, ProcessError> {
        let what = format!("the end of the {} process", self.what);
        eventually(&what, || self.ended().transpose())?
    }

    /// Waits for its end, which must be a success.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] if it was none; [`ProcessError::Late`].
    pub fn finish(&mut self) -> Result<(), ProcessError> {
        match self.wait()? {
            status if status.success() => Ok(()),
            status => Err(ProcessError::Ended { what: self.what.clone(), status }),
        }
    }

    /// Ends it with SIGTERM, which it must obey.
    ///
    /// # Errors
    /// As [`Process::finish`].
    pub fn stop(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::TERM)?;
        self.finish()
    }

    /// Kills it with SIGKILL. One that has ended stays as it is.
    pub fn kill(&mut self) {
        // Its end is what counts, and the wait ends only then.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A store, and the process that serves it, if one does. Its shared memory is freed on drop; its directory stays.
#[derive(Debug)]
pub struct Served {
    /// The store's directory.
    pub store: PathBuf,
    process: Option<Process>,
    keeps_memory: bool,
}

impl Served {
    /// The store `store`, which no process of this owner serves yet.
    pub fn new(store: PathBuf) -> Served {
        Served { store, process: None, keeps_memory: false }
    }

    fn instance(&self) -> u64 {
        Reader::open(&self.store).map_or(0, |r| r.control().instance())
    }

    /// Starts `command`, without waiting until it serves.
    ///
    /// # Errors
    /// [`ProcessError::System`].
    pub fn spawn(&mut self, command: &mut Command) -> Result<(), ProcessError> {
        assert!(self.process.is_none(), "one process serves a store");
        self.process = Some(Process::start("storage", command)?);
        Ok(())
    }

    /// Starts `command` and waits until it serves.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] if it ends instead; [`ProcessError::Late`].
    pub fn start(&mut self, command: &mut Command) -> Result<(), ProcessError> {
        let before = self.instance();
        self.spawn(command)?;
        let mut ended = Ok(());
        eventually("a storage process that serves", || {
            let instance = self.instance();
            ended = self.process.as_mut().map_or(Ok(()), Process::demand_alive);
            // An odd number is of a start that is not over.
            (ended.is_err() || (instance > before && instance.is_multiple_of(2))).then_some(())
        })?;
        if ended.is_err() {
            self.process = None;
        }
        ended
    }

    /// The process that serves it.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Its process id; 0 if none serves it.
    pub fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::id)
    }

    /// Whether a process of this owner was started, and neither stopped nor found ended.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// How the process has ended by itself, if it has.
    ///
    /// # Errors
    /// [`ProcessError::System`].
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let ended = process.ended()?;
        if ended.is_some() {
            self.process = None;
        }
        Ok(ended)
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops the process with SIGTERM.
    ///
    /// # Errors
    /// As [`Process::stop`].
    pub fn stop(&mut self) -> Result<(), ProcessError> {
        let stopped = self.process.as_mut().map_or(Ok(()), Process::stop);
        self.process = None;
        stopped
    }

    /// Leaves the shared memory when this owner goes: the next start of storage uses it.
    pub fn keep_memory(&mut self) {
        self.keeps_memory = true;
    }

    /// Kills the process and frees the store's shared memory. Call it before the store's directory goes.
    pub fn free(&mut self) {
        self.kill();
        free_shared_memory(&self.store);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
        if !self.keeps_memory {
            self.free();
        }
    }
}

/// Frees the shared memory of `store`, which no process serves any more. What cannot be freed the next start frees.
pub fn free_shared_memory(store: &Path) {
    if let Ok(run_dir) = RunDir::find(store) {
        run_dir.sweep(None).ok();
        std::fs::remove_dir_all(run_dir.path()).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_process_that_fails_is_reported_with_its_name_and_one_that_is_dropped_is_gone() {
        let mut failing = Process::start("failing", Command::new("sh").args(["-c", "exit 3"])).unwrap();
        let error = failing.finish().unwrap_err().to_string();
        assert!(error.contains("failing") && error.contains('3'), "{error}");
        let mut sleeping = Process::start("sleeping", Command::new("sleep").arg("600").stdin(Stdio::null())).unwrap();
        sleeping.demand_alive().unwrap();
        let id = sleeping.id();
        drop(sleeping);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
        assert!(Process::start("absent", &mut Command::new("/there/is/no/such/program")).is_err());
    }
}
