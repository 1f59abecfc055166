//! Owns: the campaign `publisher-kill`: publishers are killed, stopped and continued at random moments, and left as
//! zombies for a while.
//!
//! What must hold: storage keeps running; each record is stored completely or not at all, acknowledged ones always; the
//! resources of a dead publisher are freed: its slot, its shared memory, its bus files, descriptors of storage.

use std::time::Duration;

use rustix::process::Signal;
use tapestore::disk::sim::SimRng;
use tapestore::reader::Reader;
use tapestore::shm::control::SLOTS_MAX;

use crate::report::Report;
use crate::rows::Tracker;
use crate::site::{self, Feed, Plan, SMALL, Site, eventually};

const LEVELS: [&str; 3] = ["os", "fsync", "none"];
/// Publishers of a round.
const TOGETHER: u16 = 4;

/// Kills `n` publishers.
pub(crate) fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("publisher-kill");
    let mut site = Site::new("publisher-kill", seed, SMALL);
    if let Err(what) = campaign(&mut site, n, seed, &mut report) {
        let again = site.again("publisher-kill", n, seed);
        report.fail(what, again);
    }
    report
}

/// Possible leftovers of a dead publisher.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Left {
    segments: usize,
    bus_files: usize,
    slots: usize,
    descriptors: usize,
}

fn files_below(path: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(|e| e.ok());
    entries.map(|e| if e.path().is_dir() { files_below(&e.path()) } else { 1 }).sum()
}

/// Lists the bus files with modes and sizes.
fn listed(site: &Site, reader: &Reader) -> String {
    let Ok(run_dir) = site.run_dir() else { return String::new() };
    let root = run_dir.bus_root(reader.control().instance());
    let mut text = String::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, meta) = (entry.path(), entry.metadata());
            if path.is_dir() {
                dirs.push(path.clone());
            }
            let (len, mode) = meta.map_or((0, 0), |m| (m.len(), std::os::unix::fs::MetadataExt::mode(&m)));
            text.push_str(&format!("\n      {mode:o} {len} {}", path.strip_prefix(&root).unwrap_or(&path).display()));
        }
    }
    text
}

fn left(site: &Site, reader: &Reader) -> Result<Left, String> {
    let run_dir = site.run_dir()?;
    let pid = site.pid();
    Ok(Left {
        segments: run_dir.bus_segments().map_err(|e| e.to_string())?.len(),
        bus_files: files_below(&run_dir.bus_root(reader.control().instance())),
        slots: (0..SLOTS_MAX).filter(|i| reader.control().slot(*i).holder().is_some()).count(),
        descriptors: bench::process::held(pid).map_or(0, |held| held.descriptors as usize),
    })
}

/// Counts of how publishers ended.
#[derive(Default)]
struct Ends {
    stopped: u64,
    zombies: u64,
}

impl Ends {
    /// Kills all `feeds` in random order.
    fn bring(&mut self, mut feeds: Vec<Feed>, rng: &mut SimRng) -> Vec<Feed> {
        let mut dead = Vec::new();
        while !feeds.is_empty() {
            let mut feed = feeds.swap_remove(rng.below(feeds.len() as u64) as usize);
            if rng.below(3) == 0 {
                site::signal(&feed.child, Signal::STOP);
                std::thread::sleep(Duration::from_micros(rng.below(50_000)));
                self.stopped += 1;
                if rng.below(2) == 0 {
                    site::signal(&feed.child, Signal::CONT);
                }
            }
            site::signal(&feed.child, Signal::KILL);
            if rng.below(2) == 0 {
                feed.child.wait().unwrap();
            } else {
                self.zombies += 1;
            }
            std::thread::sleep(Duration::from_micros(rng.below(10_000)));
            dead.push(feed);
        }
        dead
    }
}

fn campaign(site: &mut Site, n: u64, seed: u64, report: &mut Report) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut reader = site.reader()?;
    // A first publisher, so that one-time resources exist.
    Feed::start(site, Plan { publisher: 99, level: "os", batch: 1, rate: 1_000 }, 1).finish()?;
    std::thread::sleep(Duration::from_millis(1_500));
    let before = left(site, &reader)?;
    let mut tracker = Tracker::new(site.base);
    let (mut ends, mut acknowledged) = (Ends::default(), 0);
    for round in 1..=n.div_ceil(u64::from(TOGETHER)) {
        let at = |e| format!("round {round}: {e}");
        let feeds: Vec<Feed> = (1..=TOGETHER)
            .map(|publisher| {
                let level = LEVELS[rng.below(3) as usize];
                let plan = Plan { publisher, level, batch: [1, 7, 100, 1000][rng.below(4) as usize], rate: 20_000 };
                Feed::start(site, plan, round as u16)
            })
            .collect();
        std::thread::sleep(Duration::from_micros(rng.below(150_000)));
        let mut dead = ends.bring(feeds, &mut rng);
        if let Some(status) = site.ended() {
            return Err(at(format!("storage ended with {status}")));
        }
        for feed in &mut dead {
            acknowledged += feed.account().map_or(0, |a| a.durable);
        }
        // Storage accepts all sent records before it frees the slot, of zombies too.
        eventually("the release of the slots", || {
            (0..SLOTS_MAX).all(|i| reader.control().slot(i).holder().is_none()).then_some(())
        })
        .map_err(at)?;
        let upto = reader.control().appended();
        eventually("durability of all records", || (reader.control().durable() >= upto).then_some(())).map_err(at)?;
        let mut snapshot = site.snapshot(&mut reader).map_err(at)?;
        site::check(&mut tracker, &mut snapshot, 32, &mut rng).map_err(at)?;
        dead.iter().for_each(|_| report.pass());
        dead.iter().filter(|f| f.plan.level != "none").try_for_each(|f| f.check(&tracker, false).map(drop)).map_err(at)?;
    }
    let mut last = before;
    let clean = eventually("the janitor's cleanup", || {
        last = left(site, &reader).ok()?;
        let same = last.segments <= before.segments && last.bus_files <= before.bus_files && last.slots == 0;
        (same && last.descriptors <= before.descriptors + 4).then_some(())
    });
    clean.map_err(|e| format!("{e}: {before:?} before, {last:?} after; on the bus:{}", listed(site, &reader)))?;
    let mut snapshot = site.snapshot(&mut reader)?;
    site::check(&mut tracker, &mut snapshot, 0, &mut rng)?;
    site::check_all(&tracker, &mut snapshot)?;
    site.tape(&["verify"])?;
    report.note(format!("{} records of {} epochs, {acknowledged} acknowledged as durable", tracker.last(), tracker.epochs()));
    report.note(format!("{} publishers were stopped before the kill, {} were zombies for a while", ends.stopped, ends.zombies));
    report.note(format!("leftovers: {before:?} before, {last:?} after"));
    site.stop()
}
