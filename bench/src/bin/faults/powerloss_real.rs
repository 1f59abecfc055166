//! Owns: the campaign `powerloss-real`: an ext4 on a loop device is shut down under real publishers, so that everything that
//! was not synced is lost.
//!
//! What must hold: no record acknowledged at `fsync` is lost. At `os` the loss is at most the 4 MiB that may wait for a sync
//! plus the bytes appended during the sync (a limit in time would not hold: a reattached publisher sends its whole ring at
//! once). Lost records are reported by their publisher and stored as a gap.

use std::time::Duration;

use tapestore::disk::sim::SimRng;

use crate::report::Report;
use crate::rows::Tracker;
use crate::site::{self, Feed, Plan, SMALL, Site, eventually};
use crate::volumes::{self, Volume};

const PLANS: [Plan; 3] = [
    Plan { publisher: 1, level: "fsync", batch: 1, rate: 500 },
    Plan { publisher: 2, level: "fsync", batch: 64, rate: 4_000 },
    Plan { publisher: 3, level: "os", batch: 16, rate: 4_000 },
];

/// Bytes that may wait for a sync, plus the ring of a publisher, which may be appended during the sync.
const UNSYNCED_MAX: u64 = (4 << 20) + (2 << 20);

/// Simulates `n` power losses.
pub(crate) fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("powerloss-real");
    if let Some(why) = volumes::why_not() {
        report.skip(&why);
        return report;
    }
    let dir = std::env::temp_dir().join(format!("faults-power-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut volume = match Volume::ext4(&dir.join("volume"), &dir.join("image"), 2 << 30) {
        Ok(volume) => volume,
        Err(why) => {
            report.skip(&why);
            std::fs::remove_dir_all(&dir).ok();
            return report;
        }
    };
    let mut site = Site::at(dir, volume.path.join("store"), SMALL);
    if let Err(what) = campaign(&mut site, &mut volume, n, seed, &mut report) {
        let again = site.again("powerloss-real", n, seed);
        report.fail(what, again);
    }
    site.free_shared_memory();
    drop(volume);
    report
}

fn campaign(site: &mut Site, volume: &mut Volume, n: u64, seed: u64, report: &mut Report) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut feeds: Vec<Feed> = PLANS.iter().map(|p| Feed::start(site, *p, 1)).collect();
    let mut tracker = Tracker::new(site.base);
    let (mut worst, mut total, mut fail_stops, mut losses) = (0, 0, 0, 0);
    // The first cycle needs an initialised store with records.
    eventually("a first record", || (feeds.iter_mut().all(|f| f.account().is_some_and(|a| a.durable > 0))).then_some(()))?;
    for cycle in 1..=n {
        let at = |e| format!("cycle {cycle}: {e}");
        std::thread::sleep(Duration::from_micros(rng.below(300_000)));
        volume.shutdown().map_err(at)?;
        if rng.below(2) == 0 {
            // A sync fails, and storage ends by itself.
            let status = eventually("storage's end", || site.ended()).map_err(at)?;
            if status.code() != Some(i32::from(tape_services::exit::IO)) {
                return Err(at(format!("storage ended with {status} after the loss of its disk")));
            }
            fail_stops += 1;
        } else {
            site.kill();
        }
        feeds.iter_mut().for_each(Feed::read_account);
        volume.unmount().map_err(at)?;
        volume.mount().map_err(at)?;
        site.start().map_err(at)?;
        let mut reader = site.reader().map_err(at)?;
        let mut snapshot = site.snapshot(&mut reader).map_err(at)?;
        site::check(&mut tracker, &mut snapshot, 32, &mut rng).map_err(at)?;
        for feed in &mut feeds {
            let missing = feed.check(&tracker, true).map_err(at)?;
            // A record takes at least 64 bytes of the log.
            if missing * 64 > UNSYNCED_MAX {
                return Err(at(format!("{missing} records acknowledged at os are gone: more than {UNSYNCED_MAX} bytes")));
            }
            worst = worst.max(missing);
            total += missing;
            losses += u64::from(missing > 0);
            feed.clear_acked();
            feed.demand_alive().map_err(at)?;
        }
        report.pass();
        // The publishers reattach.
        let now = snapshot.last();
        eventually("new durable records", || (reader.control().durable() > now).then_some(())).map_err(at)?;
    }
    let mut lost = 0;
    for feed in &mut feeds {
        let account = feed.finish()?;
        if feed.plan.level == "fsync" && account.lost > 0 {
            return Err(format!("publisher {} reports losses: {account:?}", feed.plan.publisher));
        }
        lost += account.lost;
    }
    let mut reader = site.reader()?;
    let mut snapshot = site.snapshot(&mut reader)?;
    site::check(&mut tracker, &mut snapshot, 0, &mut rng)?;
    site::check_all(&tracker, &mut snapshot)?;
    if tracker.missing != lost {
        return Err(format!("{lost} records were reported lost, {} are missing before a gap", tracker.missing));
    }
    site.tape(&["verify"])?;
    site.stop()?;
    report.note(format!("{} records of {} epochs; 0 lost at fsync", tracker.last(), tracker.epochs()));
    report.note(format!("{total} lost at os in {losses} of the cycles, {worst} at once at most, {} gaps stored", tracker.gaps));
    report.note(format!("storage ended by itself {fail_stops} times, with exit code 74"));
    Ok(())
}
