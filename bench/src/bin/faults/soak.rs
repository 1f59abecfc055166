//! Owns: the campaign `soak`: minutes of ordinary operation: ingest, flushes, compaction, expiry, publishers and readers that
//! start and end, storage that is stopped, killed and started; samples of the resources of storage.
//!
//! What must hold: memory, descriptors, threads, shared memory and files reach a level and stay there.

use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;

use crate::readers::CHURN;
use crate::report::Report;
use crate::site::{Feed, Plan, Site, Watcher};

/// Resources of the storage process and its store.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Private memory in MiB, without mapped files and shared memory.
    memory: u64,
    descriptors: u64,
    threads: u64,
    shared_files: u64,
    store_files: u64,
}

/// Allowed growth of each maximum from the second to the last quarter.
const MORE: [(&str, u64); 5] =
    [("MiB of memory", 48), ("descriptors", 12), ("threads", 2), ("files in shared memory", 12), ("files in the store", 160)];

fn files(path: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(|e| e.ok());
    entries.map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { files(&e.path()) } else { 1 }).sum()
}

fn held(site: &Site) -> Result<Held, String> {
    let pid = site.pid();
    let process = bench::process::held(pid).ok_or_else(|| format!("process {pid} has ended"))?;
    let run_dir = site.run_dir()?;
    Ok(Held {
        memory: process.private >> 20,
        descriptors: process.descriptors,
        threads: process.threads,
        shared_files: files(run_dir.path()) + run_dir.bus_segments().map_err(|e| e.to_string())?.len() as u64,
        store_files: files(&site.store),
    })
}

impl Held {
    fn numbers(&self) -> [u64; 5] {
        [self.memory, self.descriptors, self.threads, self.shared_files, self.store_files]
    }
}

/// Runs for `minutes`.
pub(crate) fn run(minutes: u64, seed: u64) -> Report {
    let mut report = Report::new("soak");
    let mut site = Site::new("soak", seed, CHURN);
    if let Err(what) = live(&mut site, minutes, seed, &mut report) {
        let again = site.again("soak", minutes, seed);
        report.fail(what, again);
    }
    report
}

fn live(site: &mut Site, minutes: u64, seed: u64, report: &mut Report) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut feeds: Vec<Feed> =
        (1..=3).map(|publisher| Feed::start(site, Plan { publisher, level: "os", batch: 64, rate: 8_000 }, 1)).collect();
    let mut watcher = Watcher::start(site, "random", 0, seed);
    let mut samples: Vec<Held> = Vec::new();
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let (mut process, mut restarts, mut next) = (1u16, 0, Instant::now() + Duration::from_secs(15));
    while Instant::now() < end {
        // A guest publisher starts and ends.
        process += 1;
        let mut guest = Feed::start(site, Plan { publisher: 9, level: "fsync", batch: 8, rate: 1_000 }, process);
        std::thread::sleep(Duration::from_millis(700));
        if rng.below(3) > 0 {
            guest.finish()?;
        }
        drop(guest);
        // The janitor runs once a second.
        std::thread::sleep(Duration::from_millis(1_300));
        samples.push(held(site)?);
        report.pass();
        if Instant::now() > next {
            if rng.below(2) == 0 {
                site.kill()
            } else {
                site.stop()?
            }
            site.start()?;
            restarts += 1;
            next = Instant::now() + Duration::from_secs(15 + rng.below(15));
            std::thread::sleep(Duration::from_millis(1_500));
        }
        feeds.iter_mut().try_for_each(Feed::demand_alive)?;
        watcher.demand_alive()?;
    }
    report.note(format!("{} samples", report.trials()));
    let quarter = samples.len() / 4;
    let most = |some: &[Held], i: usize| some.iter().map(|h| h.numbers()[i]).max().unwrap_or(0);
    for (i, (what, more)) in MORE.into_iter().enumerate() {
        let (early, late) = (most(&samples[quarter..2 * quarter], i), most(&samples[3 * quarter..], i));
        report.note(format!("{what}: at most {early} in the second quarter, {late} in the last"));
        if late > early + more {
            return Err(format!("{what} grow from {early} to {late}"));
        }
    }
    feeds.iter_mut().try_for_each(|f| f.finish().map(drop))?;
    report.note(watcher.finish()?);
    report.note(format!("{restarts} restarts, {process} processes of one publisher"));
    site.tape(&["verify"])?;
    site.stop()
}
