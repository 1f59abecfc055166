//! Owns: the campaign `fsyncgate`: the disk below the file system shrinks, so that the page cache cannot be written back: a
//! sync fails, and the next one would report success.
//!
//! What must hold: storage ends with exit code 74 at the first failed sync of the log and has acknowledged only records on
//! the disk; restarted on a sound volume it serves the durable records.

use std::time::Duration;

use rustix::process::Signal;
use tapestore::disk::sim::SimRng;

use crate::report::Report;
use crate::rows::Tracker;
use crate::site::{self, Feed, Plan, Site, eventually};
use crate::volumes::{self, Volume};

const PLANS: [Plan; 2] =
    [Plan { publisher: 1, level: "fsync", batch: 16, rate: 4_000 }, Plan { publisher: 2, level: "os", batch: 64, rate: 8_000 }];

/// Runs on `n` volumes.
pub(crate) fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("fsyncgate");
    if let Some(why) = volumes::why_not() {
        report.skip(&why);
        return report;
    }
    for trial in 0..n {
        let dir = std::env::temp_dir().join(format!("faults-fsync-{seed}-{trial}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let outcome = try_one(&dir, seed + trial, &mut report);
        if outcome.is_ok() {
            std::fs::remove_dir_all(&dir).ok();
        }
        report.add(outcome, format!("faults fsyncgate --n 1 --seed {}", seed + trial));
    }
    report
}

fn try_one(dir: &std::path::Path, seed: u64, report: &mut Report) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    let mut volume = Volume::ext4(&dir.join("volume"), &dir.join("image"), 256 << 20)?;
    let mut site = Site::at(dir.to_path_buf(), volume.path.join("store"), "memtable-size = 16777216\nsegment-size = 4194304\n");
    site.keep = true;
    site.start()?;
    let mut feeds: Vec<Feed> = PLANS.iter().map(|p| Feed::start(&site, *p, 1)).collect();
    std::thread::sleep(Duration::from_millis(500 + rng.below(1_000)));
    // The image is sparse: blocks of zeros, as in prepared segments, are allocated when records are written to them.
    // Storage is stopped while the image is copied.
    let mut pause = |with| site.child().map_or((), |c| site::signal(c, with));
    pause(Signal::STOP);
    let shrunk = volume.shrink();
    pause(Signal::CONT);
    let cut = shrunk?;
    let status = eventually("storage's end", || site.ended())?;
    if status.code() != Some(i32::from(tape_services::exit::IO)) {
        return Err(format!("storage ended with {status} after a failed sync"));
    }
    feeds.iter_mut().for_each(Feed::read_account);
    volume.unmount()?;
    volume.restore(cut)?;
    volume.mount()?;
    site.start()?;
    let mut tracker = Tracker::new(site.base);
    let mut reader = site.reader()?;
    let mut snapshot = site.snapshot(&mut reader)?;
    site::check(&mut tracker, &mut snapshot, 64, &mut rng)?;
    let mut missing = 0;
    for feed in &mut feeds {
        missing += feed.check(&tracker, true)?;
        feed.finish()?;
    }
    let mut snapshot = site.snapshot(&mut reader)?;
    site::check(&mut tracker, &mut snapshot, 0, &mut rng)?;
    site.tape(&["verify"])?;
    report.note(format!("{} records, 0 lost at fsync, {missing} at os", tracker.last()));
    site.stop()?;
    site.free_shared_memory();
    drop(feeds);
    drop(volume);
    Ok(())
}
