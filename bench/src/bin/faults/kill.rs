//! Owns: the campaign `kill`: storage is killed at random moments while publishers and readers run, also during flushes,
//! compaction and recovery, and restarted.
//!
//! What must hold: records acknowledged at any level are there, once, in order, byte for byte; LSNs are dense; publishers
//! and readers recover by themselves and read no wrong record.

use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;
use tapestore::shm::control::Statistic;

use crate::report::Report;
use crate::rows::Tracker;
use crate::site::{self, Feed, Plan, SMALL, Site, Watcher};

/// The publishers: all levels with acknowledgements; single records and batches.
pub(crate) const PLANS: [Plan; 4] = [
    Plan { publisher: 1, level: "fsync", batch: 1, rate: 1_000 },
    Plan { publisher: 2, level: "os", batch: 16, rate: 5_000 },
    Plan { publisher: 3, level: "fsync", batch: 64, rate: 5_000 },
    Plan { publisher: 4, level: "os", batch: 256, rate: 10_000 },
];

/// Cycles between two checks of all records.
const ALL_EVERY: u64 = 250;

/// Counts of what the kills interrupted.
#[derive(Default)]
struct Hits {
    in_recovery: u64,
    in_flush: u64,
    edits: u64,
    merges: u64,
    checked: u64,
}

/// Kills storage `n` times.
pub(crate) fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("kill");
    let mut site = Site::new("kill", seed, SMALL);
    let mut hits = Hits::default();
    match campaign(&mut site, n, seed, &mut report, &mut hits) {
        Ok(tracker) => {
            report.note(format!("{} records of {} epochs, {} record checks", tracker.last(), tracker.epochs(), hits.checked));
        }
        Err(what) => {
            let again = site.again("kill", n, seed);
            report.fail(what, again);
        }
    }
    report.note(format!("{} kills during recovery, {} during a flush", hits.in_recovery, hits.in_flush));
    report.note(format!("{} manifest edits; {} merges before the kills", hits.edits, hits.merges));
    report
}

fn campaign(site: &mut Site, n: u64, seed: u64, report: &mut Report, hits: &mut Hits) -> Result<Tracker, String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut feeds: Vec<Feed> = PLANS.iter().map(|p| Feed::start(site, *p, 1)).collect();
    let mut watchers: Vec<Watcher> =
        ["follow", "random"].iter().zip(0..).map(|(how, i)| Watcher::start(site, how, i, seed + i)).collect();
    let mut tracker = Tracker::new(site.base);
    let mut reader = site.reader()?;
    for cycle in 1..=n {
        wait(&reader, &mut rng);
        let control = reader.control();
        hits.edits = control.tables().map_or(hits.edits, |t| t.manifest);
        hits.merges += control.statistic(Statistic::Merges);
        hits.in_flush += u64::from(control.tables().is_some_and(|t| t.count > 1));
        site.kill();
        feeds.iter_mut().for_each(Feed::read_account);
        if rng.below(4) == 0 {
            for _ in 0..=rng.below(3) {
                site.spawn();
                std::thread::sleep(Duration::from_micros(rng.below(60_000)));
                let instance = reader.control().instance();
                site.kill();
                hits.in_recovery += instance % 2;
                feeds.iter_mut().for_each(Feed::read_account);
            }
        }
        site.start()?;
        let mut snapshot = site.snapshot(&mut reader)?;
        let at = |e| format!("cycle {cycle}: {e}");
        hits.checked += site::check(&mut tracker, &mut snapshot, 64, &mut rng).map_err(at)?;
        for feed in &mut feeds {
            feed.check(&tracker, false).map_err(at)?;
            feed.demand_alive().map_err(at)?;
        }
        watchers.iter_mut().try_for_each(|w| w.demand_alive()).map_err(at)?;
        if cycle % ALL_EVERY == 0 {
            site::check_all(&tracker, &mut snapshot).map_err(at)?;
            hits.checked += tracker.last().0;
        }
        report.pass();
    }
    let longest = site::finish_all(&mut feeds)?;
    report.note(format!("longest call of a publisher {longest:?}"));
    let mut snapshot = site.snapshot(&mut reader)?;
    site::check(&mut tracker, &mut snapshot, 0, &mut rng)?;
    feeds.iter().try_for_each(|f| f.check(&tracker, false).map(drop))?;
    site::check_all(&tracker, &mut snapshot)?;
    for watcher in &mut watchers {
        report.note(watcher.finish()?);
    }
    site.tape(&["verify"])?;
    site.stop()?;
    Ok(tracker)
}

/// Waits for the moment of the kill: a random one, one during a flush, or one just after a manifest edit.
fn wait(reader: &tapestore::reader::Reader, rng: &mut SimRng) {
    let tables = || reader.control().tables().map_or((0, 0), |t| (t.count, t.manifest));
    let edit = tables().1;
    let (until, patience) = match rng.below(16) {
        0..3 => (1, 500),
        3 => (2, 4_000),
        _ => (0, 0),
    };
    let end = Instant::now() + Duration::from_millis(patience);
    while Instant::now() < end && !((until == 1 && tables().0 > 1) || (until == 2 && tables().1 > edit)) {
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_micros(rng.below(if until == 1 { 400_000 } else { 80_000 })));
}
