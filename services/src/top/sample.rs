//! Owns: the samples of `tape top`: the status of a store at a moment, with what other places have: the newest records by
//! instrument, the processes that map the store, the other hosts.
//!
//! What must hold: a sample only reads. At most 20,000 records are read for one. What takes long (the maps of all processes,
//! the leader's report) is looked for less often, and a failure of it leaves the rest as it is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tapestore::lsn::Lsn;
use tapestore::reader::{At, Reader};
use tapestore::shm;
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::status::{Role, Status};
use tapestore::time::{Clock, HostClock, Ts};
use tapestore_engine::consensus::message::{Command, Report};

use crate::cluster::request;
use crate::exit::Outcome;
use crate::held_files::{self, Mapped};
use crate::status;

/// The most records that are read for the busiest instruments.
const RECORDS_MAX: u64 = 20_000;
/// The processes are looked for at most so often: it reads the maps of every process of the host.
const PROCESSES_AFTER: Duration = Duration::from_secs(5);
/// Samples that wait for the screen.
const WAITING: usize = 4;

/// A store at a moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was taken.
    pub at: Instant,
    /// The same, for people.
    pub time: Ts,
    /// What the control page has.
    pub status: Status,
    /// What is wrong, as a sentence; else `None`.
    pub problem: Option<String>,
    /// Free shared memory, bytes.
    pub shared_free: u64,
    /// The newest records by instrument.
    pub instruments: Instruments,
    /// The processes that map files of the store.
    pub processes: Arc<Vec<Mapped>>,
    /// The state of the cluster, if the store is in one and storage answers.
    pub report: Option<Report>,
}

/// How often instruments come in the newest records.
#[derive(Clone, Debug, Default)]
pub struct Instruments {
    /// The names, and how many of the records that were read are of them.
    pub counts: Vec<(String, u64)>,
    /// How many records were read.
    pub read: u64,
}

/// Takes samples.
pub struct Taker {
    store: PathBuf,
    processes: Option<(Instant, Arc<Vec<Mapped>>)>,
    /// The last record of the sample before.
    last: Option<Lsn>,
}

impl Taker {
    /// Takes samples of `store`.
    pub fn new(store: &Path) -> Taker {
        Taker { store: store.to_path_buf(), processes: None, last: None }
    }

    /// A sample of now.
    ///
    /// # Errors
    /// There is no store.
    pub fn take(&mut self) -> Outcome<Sample> {
        let (control, run_dir) = status::page(&self.store)?;
        let (mut status, at) = (Status::read(&control), Instant::now());
        status::look_up_newest(&self.store, &mut status.publishers);
        let problem = status.trouble.map(|now| status::sentence(&self.store, now.trouble, now.since));
        let instruments = self.instruments(Lsn(status.watermarks.applied)).unwrap_or_default();
        let is_in_cluster = status.cluster.role != Role::Alone && status.process.is_some();
        let report = if is_in_cluster { request::own_host(&self.store, Command::Status).ok() } else { None };
        Ok(Sample {
            at,
            time: HostClock.wall(),
            problem,
            shared_free: run_dir.as_ref().map_or(0, |run_dir| shm::free_bytes(run_dir.path())),
            instruments,
            processes: self.processes(run_dir.as_ref()),
            report,
            status,
        })
    }

    /// Counts the newest records since the last sample by instrument.
    fn instruments(&mut self, newest: Lsn) -> tapestore::error::Result<Instruments> {
        let from = Lsn(newest.0.saturating_sub(RECORDS_MAX - 1).max(1));
        let from = self.last.replace(newest).map_or(from, |last| from.max(Lsn(last.0 + 1)));
        if newest.0 == 0 || from > newest {
            return Ok(Instruments::default());
        }
        let mut follow = Reader::open(&self.store)?.follow(from, At::Appended);
        let (mut counts, mut read) = (HashMap::new(), 0);
        while read < RECORDS_MAX && follow.position() <= newest {
            let Some(row) = follow.poll()? else { break };
            *counts.entry(row.record.instrument()).or_insert(0) += 1;
            read += 1;
        }
        let symbols = follow.reader().symbols()?;
        symbols.refresh();
        let counts = counts.into_iter().map(|(instrument, count)| {
            (symbols.name(instrument).map_or_else(|| format!("#{}", instrument.0), |name| name.to_string()), count)
        });
        Ok(Instruments { counts: counts.collect(), read })
    }

    fn processes(&mut self, run_dir: Option<&RunDir>) -> Arc<Vec<Mapped>> {
        if let Some((at, processes)) = &self.processes
            && at.elapsed() < PROCESSES_AFTER
        {
            return processes.clone();
        }
        let places: Vec<&Path> = [Some(self.store.as_path()), run_dir.map(RunDir::path)].into_iter().flatten().collect();
        let mut found = held_files::mapped(&places);
        found.retain(|process| process.pid != std::process::id());
        let found = Arc::new(found);
        self.processes = Some((Instant::now(), found.clone()));
        found
    }
}

/// The thread that takes samples.
pub struct Sampler {
    samples: Mutex<Receiver<Outcome<Sample>>>,
    /// Nanoseconds between samples; only a number, so relaxed.
    every: Arc<AtomicU64>,
}

impl Sampler {
    /// Takes a sample of `store` now, and then each `every`. The thread ends with the process.
    ///
    /// # Errors
    /// There is no store, or the thread cannot be started.
    pub fn start(store: &Path, every: Duration) -> Outcome<Sampler> {
        let mut taker = Taker::new(store);
        let first = taker.take()?;
        let (sender, samples) = sync_channel(WAITING);
        let interval = Arc::new(AtomicU64::new(every.as_nanos() as u64));
        let every = interval.clone();
        // There is room: the channel is new.
        drop(sender.try_send(Ok(first)));
        std::thread::Builder::new().name("tape-samples".to_owned()).spawn(move || take(&mut taker, &sender, &interval))?;
        Ok(Sampler { samples: Mutex::new(samples), every })
    }

    /// The next sample that was taken, if there is one. One that failed is left out: the store may be in a restart.
    pub fn next(&self) -> Option<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.try_iter().find_map(Result::ok)
    }

    /// Takes samples each `every` from now on.
    pub fn set_interval(&self, every: Duration) {
        self.every.store(every.as_nanos() as u64, Ordering::Relaxed);
    }
}

fn take(taker: &mut Taker, to: &SyncSender<Outcome<Sample>>, every: &AtomicU64) {
    loop {
        std::thread::sleep(Duration::from_nanos(every.load(Ordering::Relaxed)));
        // Where the screen is behind, newer samples have what this one has.
        if let Err(TrySendError::Disconnected(_)) = to.try_send(taker.take()) {
            return;
        }
    }
}
