//! Owns: the campaign `nospace`: the disk is filled during ingest, into the reserve or to the last byte, then has space
//! again.
//!
//! What must hold: writes are refused with the reason, reads continue, storage does not end and can start on the full disk,
//! writes resume by themselves within seconds, and no acknowledged record is lost.

use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;
use tapestore::shm::control::{NO_SPACE, Statistic};

use crate::report::Report;
use crate::rows::Tracker;
use crate::site::{self, Feed, Plan, SMALL, Site, Watcher, eventually};
use crate::volumes::{self, Volume};

const FILLER: &str = "filler";
const BYTES: u64 = 1 << 30;

const PLANS: [Plan; 2] =
    [Plan { publisher: 1, level: "fsync", batch: 16, rate: 4_000 }, Plan { publisher: 2, level: "os", batch: 128, rate: 16_000 }];

/// Fills the disk `n` times.
pub(crate) fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("nospace");
    if let Some(why) = volumes::why_not() {
        report.skip(&why);
        return report;
    }
    let dir = std::env::temp_dir().join(format!("faults-nospace-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let volume = match Volume::tmpfs(&dir.join("volume"), BYTES) {
        Ok(volume) => volume,
        Err(why) => {
            report.skip(&why);
            return report;
        }
    };
    let mut site = Site::at(dir, volume.path.join("store"), SMALL);
    if let Err(what) = rounds(&mut site, &volume, n, seed, &mut report) {
        let again = site.again("nospace", n, seed);
        report.fail(what, again);
    }
    // Ends storage before the volume is unmounted.
    site.kill();
    site.free_shared_memory();
    drop(volume);
    report
}

fn rounds(site: &mut Site, volume: &Volume, n: u64, seed: u64, report: &mut Report) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut feeds: Vec<Feed> = PLANS.iter().map(|p| Feed::start(site, *p, 1)).collect();
    let mut watcher = Watcher::start(site, "random", 0, seed);
    let mut tracker = Tracker::new(site.base);
    let mut reader = site.reader()?;
    let (mut slowest, mut refused, mut began, mut restarts, mut ballasts) = (Duration::ZERO, 0, 0, 0, 0);
    for round in 1..=n {
        let at = |e| format!("round {round}: {e}");
        std::thread::sleep(Duration::from_millis(300 + rng.below(1_500)));
        let kept = reader.control().statistic(Statistic::KeptFree);
        let had_ballast = site.store.join("ballast").exists();
        let left = if rng.below(2) == 0 { 0 } else { rng.below(kept) };
        volume.fill(FILLER, left);
        let is_refusing = || (reader.control().statistic(Statistic::BackPressure) == NO_SPACE).then_some(());
        eventually("the refusal of records", is_refusing).map_err(at)?;
        let before: u64 = feeds.iter_mut().filter_map(|f| f.account()).map(|a| a.no_space).sum();
        let new_refusals = || {
            let now: u64 = feeds.iter_mut().filter_map(|f| f.account()).map(|a| a.no_space).sum();
            (now > before).then_some(now - before)
        };
        refused += eventually("a NoSpace error of a publisher", new_refusals).map_err(at)?;
        let mut snapshot = site.snapshot(&mut reader).map_err(at)?;
        site::check(&mut tracker, &mut snapshot, 256, &mut rng).map_err(at)?;
        if let Some(status) = site.ended() {
            return Err(at(format!("storage ended with {status} on a full disk")));
        }
        if rng.below(3) == 0 {
            began += reader.control().statistic(Statistic::NoSpace);
            site.kill();
            feeds.iter_mut().for_each(Feed::read_account);
            site.start().map_err(|e| at(format!("start on a full disk: {e}")))?;
            restarts += 1;
            let mut snapshot = site.snapshot(&mut reader).map_err(at)?;
            site::check(&mut tracker, &mut snapshot, 256, &mut rng).map_err(at)?;
            feeds.iter().try_for_each(|f| f.check(&tracker, false).map(drop)).map_err(at)?;
        }
        std::thread::sleep(Duration::from_millis(rng.below(1_000)));
        ballasts += u64::from(had_ballast && !site.store.join("ballast").exists());
        let durable = reader.control().durable();
        let freed_at = Instant::now();
        volume.empty(FILLER);
        let is_writing = || {
            let control = reader.control();
            (control.statistic(Statistic::BackPressure) != NO_SPACE && control.durable() > durable).then_some(())
        };
        eventually("writes after the refusal", is_writing).map_err(at)?;
        slowest = slowest.max(freed_at.elapsed());
        if freed_at.elapsed() > Duration::from_secs(10) {
            return Err(at(format!("writes resumed only after {:?}", freed_at.elapsed())));
        }
        watcher.demand_alive().map_err(at)?;
        feeds.iter_mut().try_for_each(|f| f.demand_alive()).map_err(at)?;
        report.pass();
    }
    began += reader.control().statistic(Statistic::NoSpace);
    site::finish_all(&mut feeds)?;
    let mut snapshot = site.snapshot(&mut reader)?;
    site::check(&mut tracker, &mut snapshot, 0, &mut rng)?;
    site::check_all(&tracker, &mut snapshot)?;
    report.note(watcher.finish()?);
    site.tape(&["verify"])?;
    site.stop()?;
    report.note(format!("{} records; {refused} calls refused with NoSpace; storage counted {began} times", tracker.last()));
    report.note(format!("{restarts} starts on the full disk; the ballast was released {ballasts} times"));
    report.note(format!("writes resumed within {slowest:?}"));
    Ok(())
}
