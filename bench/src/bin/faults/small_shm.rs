//! Owns: the campaign `small-shm`: shared memories of three sizes, each in its own mount namespace, with eight readers that
//! pin a snapshot of every version; half of them are stopped.
//!
//! What must hold: storage accepts and flushes records whatever readers pin; no publisher is refused, no process ends by a
//! signal, and no record is lost.

use std::io::BufRead;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;
use tapestore::shm::control::Statistic;

use crate::report::Report;
use crate::site::{self, Feed, Plan, ROLE, Site, Watcher, signal};

/// Sizes in MiB: a container's default, twice that, and one for which the store's defaults are made.
const SIZES: [u64; 3] = [64, 128, 1024];
/// Memory sizes are the defaults; segments and retention are small, so that the disk does not fill up.
const CONFIG: &str = "segment-size = 1048576\n[compaction]\nruns-max = 2\n[[retention]]\nkind = \"*\"\nbytes = 67108864\n";
const PLANS: [Plan; 3] = [
    Plan { publisher: 1, level: "fsync", batch: 4, rate: 2_000 },
    Plan { publisher: 2, level: "os", batch: 64, rate: 15_000 },
    Plan { publisher: 3, level: "none", batch: 256, rate: 30_000 },
];
const READERS: u64 = 8;
/// Exit code of the shell when no shared memory can be mounted.
const NO_MOUNT: i32 = 77;

/// Runs for `minutes`, a third for each size.
pub(crate) fn run(minutes: u64, seed: u64) -> Report {
    let mut report = Report::new("small-shm");
    if !rustix::process::geteuid().is_root() {
        report.skip("only root can mount a shared memory of its own");
        return report;
    }
    for mib in SIZES {
        let again = format!("faults small-shm --n {minutes} --seed {seed}");
        match within(mib, minutes * 60 / SIZES.len() as u64, seed, &mut report) {
            Ok(true) => report.pass(),
            Ok(false) => report.skip("no shared memory can be mounted here"),
            Err(what) => report.fail(format!("{mib} MiB: {what}"), again),
        }
    }
    report
}

/// Runs the role in a namespace with `mib` MiB; returns `false` if none can be mounted.
fn within(mib: u64, seconds: u64, seed: u64, report: &mut Report) -> Result<bool, String> {
    let mount = format!("mount -t tmpfs -o size={mib}m tmpfs /dev/shm || exit {NO_MOUNT}; exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &mount]).arg(std::env::current_exe().unwrap());
    command.args([ROLE, "small-shm", &seconds.to_string(), &seed.to_string()]).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("unshare: {e}"))?;
    let mut last = String::new();
    for line in std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        report.note(format!("{mib} MiB: {line}"));
        last = line;
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    match status.code() {
        Some(0) => Ok(true),
        Some(NO_MOUNT) => Ok(false),
        _ => Err(format!("{status}: {last}")),
    }
}

/// The role that runs in the namespace.
pub(crate) fn play(seconds: u64, seed: u64) -> ExitCode {
    let mut site = Site::new("small-shm", seed, CONFIG);
    match live(&mut site, seconds, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            site.keep = true;
            println!("{what}; kept: {}", site.dir().display());
            ExitCode::from(tape_services::exit::DIFFERENCE)
        }
    }
}

fn live(site: &mut Site, seconds: u64, seed: u64) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut feeds: Vec<Feed> = PLANS.iter().map(|p| Feed::start(site, *p, 1)).collect();
    let mut readers: Vec<Watcher> = (0..READERS).map(|i| Watcher::start(site, "hoard", i, seed + i)).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut kills, mut flushes, mut spilled) = (0u64, 0u64, 0u64);
    let mut stopped = false;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(3_000 + rng.below(3_000)));
        feeds.iter_mut().try_for_each(Feed::demand_alive)?;
        readers.iter_mut().try_for_each(Watcher::demand_alive)?;
        let reader = site.reader()?;
        let counted = |which| reader.control().statistic(which);
        if counted(Statistic::Flushes) > 2 && !std::mem::replace(&mut stopped, true) {
            // From here on these release no memory.
            readers.iter().step_by(2).for_each(|r| signal(r.child(), rustix::process::Signal::STOP));
        }
        if rng.below(6) == 0 {
            flushes += counted(Statistic::Flushes);
            spilled += counted(Statistic::Spilled);
            site.kill();
            kills += 1;
            site.start()?;
        }
    }
    readers.iter().for_each(|r| signal(r.child(), rustix::process::Signal::CONT));
    let longest = site::finish_all(&mut feeds)?;
    for reader in &mut readers {
        println!("{}", reader.finish()?);
    }
    let reader = site.reader()?;
    flushes += reader.control().statistic(Statistic::Flushes);
    spilled += reader.control().statistic(Statistic::Spilled);
    println!("{} records, {flushes} MemTables flushed, {spilled} spilled, {kills} kills", reader.control().durable());
    println!("longest call of a publisher {longest:?}");
    if flushes < 3 {
        return Err("fewer than 3 MemTables were flushed: nothing was tested".into());
    }
    drop(reader);
    site.tape(&["verify"])?;
    site.stop()
}
