//! Owns: `tape reload`: makes a running storage process read its configuration again.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tapestore::reader::Reader;
use tapestore::shm::control::Statistic;
use tapestore::shm::run_dir::RunDir;

use crate::exit::{Failure, LATER, Outcome, UNAVAILABLE, USAGE};
use crate::held_files;
use crate::output::Format;

/// How long storage may take: its flush can be busy.
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(10);

/// Whether process `pid` maps files of `store` and catches SIGUSR1, which ends a process that does not: one of an earlier release, a
/// program with an embedded store, another process of that number.
fn catches(pid: u64, store: &Path) -> bool {
    let status = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok()?.status().ok());
    let is_caught = status.is_some_and(|status| status.sigcgt >> (signal_hook::consts::SIGUSR1 - 1) & 1 == 1);
    let run_dir = RunDir::find(store).ok();
    let places: Vec<&Path> = run_dir.iter().map(RunDir::path).chain([store]).collect();
    is_caught && held_files::mapped(&places).iter().any(|process| u64::from(process.pid) == pid)
}

/// `tape reload`.
///
/// # Errors
/// No storage process serves the store (exit code 69), it runs as another user (77), it cannot be signalled, its configuration is wrong (2), or it does not answer (75).
pub fn run(store: &Path, format: Format) -> Outcome {
    let reader = Reader::open(store)?;
    let control = reader.control();
    let no_storage =
        || Failure::new(UNAVAILABLE, format!("no storage process serves {}; start it: tape-storage", store.display()));
    let pid = control.server().filter(|_| reader.is_storage_alive()).ok_or_else(no_storage)?;
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_storage)?;
    if !rustix::process::geteuid().is_root() {
        RunDir::find(store)?.check_user(store)?;
    }
    if !catches(pid, store) {
        let why = format!(
            "process {pid}, which serves {}, is no tape-storage of this release that this user can see: stop it and start it again, \
             or send SIGHUP to it yourself if it is in another container",
            store.display()
        );
        return Err(Failure::new(UNAVAILABLE, why));
    }
    let counts = || (control.statistic(Statistic::Reloads), control.statistic(Statistic::ReloadFailures));
    let (done, refused) = counts();
    rustix::process::kill_process(process, Signal::USR1).map_err(|error| {
        Failure::new(UNAVAILABLE, format!("cannot signal storage, process {pid}: {error}; run this as its user"))
    })?;
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let now = counts();
        if now.1 > refused {
            let why = "the configuration is wrong, and storage goes on with the earlier one; its log says what is wrong";
            return Err(Failure::new(USAGE, why));
        }
        if now.0 > done {
            if format.json {
                out!("{}", serde_json::json!({ "process": pid, "reloads": now.0 }));
            } else {
                out!("storage, process {pid}, uses retention, compaction and log level of its configuration as it is now");
            }
            return Ok(());
        }
        if !reader.is_storage_alive() {
            return Err(no_storage());
        }
        std::thread::sleep(LOOK);
    }
    Err(Failure::new(
        LATER,
        format!("storage, process {pid}, has not answered within {} s; its log says more", PATIENCE.as_secs()),
    ))
}
