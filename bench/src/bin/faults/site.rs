//! Owns: the store of a campaign with a real storage process, and the campaign's publisher and reader processes.
//!
//! What must hold: however a campaign ends, only the directory of a failure is left behind; no process is signalled that
//! was not started here.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
pub(crate) use tape_services::processes::PATIENCE;
use tape_services::processes::{self, Process, Served};
use tapestore::disk::sim::SimRng;
use tapestore::lsn::Lsn;
use tapestore::reader::{At, Reader, Snapshot};
use tapestore::shm::run_dir::RunDir;

use crate::rows::Tracker;

/// First argument of this program in another role.
pub(crate) const ROLE: &str = "role";

/// Small MemTables and segments, so that they roll, and two runs a window, so that compaction runs.
pub(crate) const SMALL: &str = "memtable-size = 16777216\nsegment-size = 1048576\n[compaction]\nruns-max = 2\n";

/// A command that runs this program in another role.
pub(crate) fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([ROLE, name]);
    command
}

/// Sends `signal` to a child.
pub(crate) fn signal(child: &Process, signal: Signal) {
    child.signal(signal).unwrap();
}

/// Waits until `ready` returns a value; the error names `what`.
pub(crate) fn eventually<T>(what: &str, ready: impl FnMut() -> Option<T>) -> Result<T, String> {
    processes::eventually(what, ready).map_err(|e| e.to_string())
}

/// A store and its storage process.
pub(crate) struct Site {
    dir: PathBuf,
    /// The store's directory.
    pub(crate) store: PathBuf,
    /// Base of the records' times.
    pub(crate) base: u64,
    served: Served,
    /// Whether the directory is kept.
    pub(crate) keep: bool,
}

impl Site {
    /// A store without a running storage process.
    pub(crate) fn new(campaign: &str, seed: u64, config: &str) -> Site {
        let dir = std::env::temp_dir().join(format!("faults-{campaign}-{seed}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let store = dir.join("store");
        Site::at(dir, store, config)
    }

    /// The same, with the store outside the campaign's directory.
    pub(crate) fn at(dir: PathBuf, store: PathBuf, config: &str) -> Site {
        std::fs::write(dir.join("storage.toml"), config).unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let base = now / 1_000_000_000 * 1_000_000_000;
        let served = Served::new(store.clone());
        Site { dir, store, base, served, keep: false }
    }

    /// Directory of the campaign's files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.dir.join("storage.log")).unwrap();
        let mut command = role("storage");
        command.arg("--with-parent").arg("--store").arg(&self.store).arg("--config").arg(self.dir.join("storage.toml"));
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or("warn".into()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Starts storage without waiting.
    pub(crate) fn spawn(&mut self) {
        self.served.spawn(&mut self.command()).unwrap();
    }

    /// Starts storage and waits until it serves.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        let mut command = self.command();
        self.served.start(&mut command).map_err(|e| format!("{e}; see {}", self.log().display()))
    }

    /// Path of storage's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("storage.log")
    }

    /// The exit status of storage, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.served.ended().unwrap()
    }

    /// Process id of storage; 0 if it does not run.
    pub(crate) fn pid(&self) -> u32 {
        self.served.id()
    }

    /// The storage process.
    pub(crate) fn child(&mut self) -> Option<&mut Process> {
        self.served.process()
    }

    /// Kills storage with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.served.kill();
    }

    /// Stops storage with SIGTERM and waits for its end.
    pub(crate) fn stop(&mut self) -> Result<(), String> {
        self.served.stop().map_err(|e| format!("after SIGTERM: {e}"))
    }

    /// Opens a reader.
    pub(crate) fn reader(&self) -> Result<Reader, String> {
        Reader::open(&self.store).map_err(|e| e.to_string())
    }

    /// The run directory.
    pub(crate) fn run_dir(&self) -> Result<RunDir, String> {
        RunDir::find(&self.store).map_err(|e| e.to_string())
    }

    /// Takes a snapshot of the durable records; retries until storage serves.
    pub(crate) fn snapshot(&self, reader: &mut Reader) -> Result<Snapshot, String> {
        let mut last = String::new();
        let found = eventually("a snapshot", || reader.snapshot(At::Durable).map_err(|e| last = e.to_string()).ok());
        found.map_err(|e| format!("{e}: {last}"))
    }

    /// Runs `tape` with `arguments` on the store.
    pub(crate) fn tape(&self, arguments: &[&str]) -> Result<String, String> {
        let output = role("tape").args(arguments).arg("--store").arg(&self.store).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("tape {arguments:?} ended with {}: {}", output.status, text(&output.stderr))),
        }
    }

    /// Kills storage and frees its shared memory. Call it before the store's directory is unmounted.
    pub(crate) fn free_shared_memory(&mut self) {
        self.served.free();
    }

    /// Keeps the directory after a failure; returns the command that repeats the campaign.
    pub(crate) fn again(&mut self, campaign: &str, n: u64, seed: u64) -> String {
        self.keep = true;
        format!("faults {campaign} --n {n} --seed {seed} (timing differs); kept: {}", self.dir.display())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.served.free();
        if !self.keep {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// Checks the records of `snapshot` after those of `tracker`, and `old` earlier ones at random; returns the number of new ones.
pub(crate) fn check(tracker: &mut Tracker, snapshot: &mut Snapshot, old: u64, rng: &mut SimRng) -> Result<u64, String> {
    let before = tracker.last();
    if snapshot.last() < before {
        return Err(format!("{} is the last record, but {before} was durable before", snapshot.last()));
    }
    let (first, last) = (before.next(), snapshot.last());
    for lsn in first.0..=last.0 {
        let arrival = snapshot.arrival(Lsn(lsn)).map_err(|e| e.to_string())?;
        let arrival = arrival.ok_or_else(|| format!("record {lsn} of {last} has no publisher"))?;
        let row = snapshot.get(Lsn(lsn)).map_err(|e| e.to_string())?;
        tracker.see(&row.ok_or_else(|| format!("record {lsn} of {last} is missing"))?, &arrival)?;
    }
    for _ in 0..old {
        let lsn = Lsn(1 + rng.below(last.0.max(1)));
        if lsn <= last {
            let row = snapshot.get(lsn).map_err(|e| e.to_string())?;
            tracker.again(&row.ok_or_else(|| format!("record {lsn} of {last} is missing"))?)?;
        }
    }
    Ok(last.0 + 1 - first.0)
}

/// Checks every record of `snapshot` against `tracker` once more.
pub(crate) fn check_all(tracker: &Tracker, snapshot: &mut Snapshot) -> Result<(), String> {
    for lsn in 1..=tracker.last().0 {
        let row = snapshot.get(Lsn(lsn)).map_err(|e| e.to_string())?;
        tracker.again(&row.ok_or_else(|| format!("record {lsn} is missing"))?)?;
    }
    Ok(())
}

/// Words of an account file.
const WORDS: usize = 12;

/// The acknowledgements and counters that a publisher process writes to its account file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    /// Number of the process.
    pub(crate) process: u64,
    /// Its epoch and the acknowledged numbers of that.
    pub(crate) epoch: u64,
    pub(crate) accepted: u64,
    pub(crate) durable: u64,
    /// Records published by this process.
    pub(crate) published: u64,
    /// Refused calls, by reason.
    pub(crate) full: u64,
    pub(crate) no_space: u64,
    /// The longest call, ns.
    pub(crate) longest: u64,
    /// Records reported lost.
    pub(crate) lost: u64,
    pub(crate) reattached: u64,
    /// 1 after a clean end with everything durable.
    pub(crate) done: u64,
}

impl Account {
    fn words(&self) -> [u64; WORDS - 1] {
        let Account { process, epoch, accepted, durable, published, full, no_space, longest, lost, reattached, done } = *self;
        [process, epoch, accepted, durable, published, full, no_space, longest, lost, reattached, done]
    }

    /// Writes the account to `file`.
    pub(crate) fn write(&self, file: &File) {
        let mut bytes: Vec<u8> = self.words().iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.extend(u64::from(crc32c::crc32c(&bytes)).to_le_bytes());
        file.write_all_at(&bytes, 0).unwrap();
    }

    /// Reads the account in `path`; `None` if it is missing or torn.
    pub(crate) fn read(path: &Path) -> Option<Account> {
        for _ in 0..100 {
            let bytes = std::fs::read(path).ok()?;
            let words: Vec<u64> = bytes.chunks_exact(8).map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))).collect();
            let body = bytes.get(..(WORDS - 1) * 8)?;
            let [process, epoch, accepted, durable, published, full, no_space, longest, lost, reattached, done, crc] =
                <[u64; WORDS]>::try_from(words).ok()?;
            if crc == u64::from(crc32c::crc32c(body)) {
                let account =
                    Account { process, epoch, accepted, durable, published, full, no_space, longest, lost, reattached, done };
                return Some(account);
            }
            std::thread::yield_now();
        }
        None
    }
}

/// Parameters of a publisher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) publisher: u16,
    pub(crate) level: &'static str,
    /// Records sent together.
    pub(crate) batch: u64,
    /// Records a second.
    pub(crate) rate: u64,
}

/// A publisher's process.
pub(crate) struct Feed {
    pub(crate) plan: Plan,
    pub(crate) child: Process,
    path: PathBuf,
    /// Highest acknowledged numbers by epoch: accepted and durable.
    acked: BTreeMap<u64, (u64, u64)>,
}

impl Feed {
    /// Starts process number `process` of a publisher.
    pub(crate) fn start(site: &Site, plan: Plan, process: u16) -> Feed {
        let path = site.dir().join(format!("account-{}-{process}", plan.publisher));
        let log = File::options().create(true).append(true).open(site.dir().join("publishers.log")).unwrap();
        let mut command = role("publisher");
        command.arg(&site.store).arg(&path);
        let numbers = [u64::from(plan.publisher), u64::from(process), site.base, plan.batch, plan.rate].map(|n| n.to_string());
        command.arg(plan.level).args(numbers).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        Feed { plan, child: Process::start("publisher", &mut command).unwrap(), path, acked: BTreeMap::new() }
    }

    /// Reads the current account and records its acknowledgements.
    pub(crate) fn account(&mut self) -> Option<Account> {
        let account = Account::read(&self.path)?;
        let acked = self.acked.entry(account.epoch).or_default();
        *acked = (acked.0.max(account.accepted), acked.1.max(account.durable));
        Some(account)
    }

    /// Clears acknowledgements that were checked: their epoch may have ended.
    pub(crate) fn clear_acked(&mut self) {
        self.acked.clear();
    }

    /// Records the acknowledgements of the current account.
    pub(crate) fn read_account(&mut self) {
        self.account();
    }

    /// Fails if the process has ended by itself.
    pub(crate) fn demand_alive(&mut self) -> Result<(), String> {
        self.child.demand_alive().map_err(|e| format!("publisher {}: {e}", self.plan.publisher))
    }

    /// Checks that the records of `tracker` include the acknowledged ones: the durable ones after a power loss, otherwise
    /// the accepted ones too. Returns how many accepted records are missing.
    pub(crate) fn check(&self, tracker: &Tracker, power_lost: bool) -> Result<u64, String> {
        let mut missing = 0;
        for (&epoch, &(accepted, durable)) in &self.acked {
            let reached = tracker.reached(self.plan.publisher, epoch as u32);
            let acknowledged = if power_lost { durable } else { accepted.max(durable) };
            if reached < acknowledged {
                let who = format!("publisher {} epoch {epoch}", self.plan.publisher);
                return Err(format!("{who}: {acknowledged} acknowledged ({accepted} os, {durable} fsync), {reached} stored"));
            }
            missing += accepted.saturating_sub(reached);
        }
        Ok(missing)
    }

    /// Ends the publisher once all its records are durable; returns its last account.
    pub(crate) fn finish(&mut self) -> Result<Account, String> {
        self.child.close_stdin();
        let status = self.child.wait().map_err(|e| e.to_string())?;
        let account = self.account().ok_or("a publisher left no account")?;
        match status.success() && account.done == 1 {
            true => Ok(account),
            false => Err(format!("publisher {} ended with {status}: {account:?}", self.plan.publisher)),
        }
    }
}

/// Ends all publishers and checks that no record is lost, but at level `none`, which a kill of storage may cost some; returns
/// the longest call.
pub(crate) fn finish_all(feeds: &mut [Feed]) -> Result<Duration, String> {
    let mut longest = 0;
    for feed in feeds {
        let account = feed.finish()?;
        longest = longest.max(account.longest);
        if feed.plan.level != "none" && (account.lost > 0 || account.published != account.durable) {
            return Err(format!("publisher {} ends with {account:?}", feed.plan.publisher));
        }
    }
    Ok(Duration::from_nanos(longest))
}

/// A reader's process.
pub(crate) struct Watcher {
    child: Process,
    out: PathBuf,
}

impl Watcher {
    /// Starts a reader in the mode `how`.
    pub(crate) fn start(site: &Site, how: &str, number: u64, seed: u64) -> Watcher {
        let out = site.dir().join(format!("reader-{number}"));
        let log = File::create(&out).unwrap();
        let mut command = role("reader");
        command.arg(&site.store).arg(how).args([site.base, seed].map(|n| n.to_string()));
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = Process::start("reader", &mut command).unwrap();
        Watcher { child, out }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the process has ended by itself.
    pub(crate) fn demand_alive(&mut self) -> Result<(), String> {
        self.child.demand_alive().map_err(|e| format!("{e}: {}", self.output()))
    }

    /// Its process.
    pub(crate) fn child(&self) -> &Process {
        &self.child
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default().trim().to_owned()
    }

    /// Ends the reader; returns its output.
    pub(crate) fn finish(&mut self) -> Result<String, String> {
        self.child.close_stdin();
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() { Ok(self.output()) } else { Err(format!("a reader ended with {status}: {}", self.output())) }
    }
}
