//! Owns: the campaign `nospace`: the disk is filled while records come, up to what is kept free or up to the last
//! byte, and there is room again.
//!
//! What must hold: writes are refused and say why, reads go on, storage does not end and can be started on the full
//! disk, writing goes on by itself within seconds, and nothing that was acknowledged is lost.

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

/// `n` rounds.
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
    // The store's process before the volume.
    site.kill();
    site.forget();
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
        let held = || (reader.control().statistic(Statistic::HeldBack) == NO_SPACE).then_some(());
        eventually("the refusal of records", held).map_err(at)?;
        let before: u64 = feeds.iter_mut().filter_map(|f| f.account()).map(|a| a.no_space).sum();
        let told = || {
            let now: u64 = feeds.iter_mut().filter_map(|f| f.account()).map(|a| a.no_space).sum();
            (now > before).then_some(now - before)
        };
        refused += eventually("a publisher's being told", told).map_err(at)?;
        let mut snapshot = site.snapshot(&mut reader).map_err(at)?;
        site::check(&mut tracker, &mut snapshot, 256, &mut rng).map_err(at)?;
        if let Some(status) = site.ended() {
            return Err(at(format!("storage ended with {status} on a full disk")));
        }
        if rng.below(3) == 0 {
            began += reader.control().statistic(Statistic::NoSpace);
            site.kill();
            feeds.iter_mut().for_each(Feed::listen);
            site.start().map_err(|e| at(format!("on a full disk {e}")))?;
            restarts += 1;
            let mut snapshot = site.snapshot(&mut reader).map_err(at)?;
            site::check(&mut tracker, &mut snapshot, 256, &mut rng).map_err(at)?;
            feeds.iter().try_for_each(|f| f.check(&tracker, false).map(drop)).map_err(at)?;
        }
        std::thread::sleep(Duration::from_millis(rng.below(1_000)));
        ballasts += u64::from(had_ballast && !site.store.join("ballast").exists());
        let durable = reader.control().durable();
        let room = Instant::now();
        volume.empty(FILLER);
        let goes_on = || {
            let control = reader.control();
            (control.statistic(Statistic::HeldBack) != NO_SPACE && control.durable() > durable).then_some(())
        };
        eventually("writing again", goes_on).map_err(at)?;
        slowest = slowest.max(room.elapsed());
        if room.elapsed() > Duration::from_secs(10) {
            return Err(at(format!("writing went on after {:?}", room.elapsed())));
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
    report.fact(watcher.finish()?);
    site.tape(&["verify"])?;
    site.stop()?;
    report.fact(format!("{} records; {refused} calls refused as NoSpace, {began} times counted by storage", tracker.last()));
    report.fact(format!("{restarts} starts on the full disk, {ballasts} times the ballast was given up"));
    report.fact(format!("writing went on after at most {slowest:?}"));
    Ok(())
}
